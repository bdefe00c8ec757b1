/* Format: https://prometheus.io/docs/instrumenting/exposition_formats, text version 0.0.4. */
#include "serve/metrics.h"

#include <inttypes.h>
#include <string.h>

typedef struct writer {
    lk_writer *out;
    const char *model; /* the label value, already escaped */
} writer;

/* Inside a label value \, " and newline are escaped. */
static void label(lk_writer *out, const char *value)
{
    for (const char *p = value; *p; p++) {
        if (*p == '\\' || *p == '"') lk_writer_add(out, "\\", 1);
        if (*p == '\n')
            lk_writer_string(out, "\\n");
        else
            lk_writer_add(out, p, 1);
    }
}

static void head(const writer *w, const char *name, const char *type, const char *help)
{
    lk_writer_printf(w->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void number(const writer *w, const char *name, const char *type, const char *help, double value)
{
    head(w, name, type, help);
    lk_writer_printf(w->out, "%s{model_name=\"%s\"} %.17g\n", name, w->model, value);
}

static void gauge(const writer *w, const char *name, const char *help, double value) { number(w, name, "gauge", help, value); }
static void counter(const writer *w, const char *name, const char *help, int64_t value) { number(w, name, "counter", help, (double)value); }

static void histogram(const writer *w, const char *name, const char *help, const lk_histogram *h)
{
    int64_t total = 0;
    head(w, name, "histogram", help);
    for (int i = 0; i <= LK_HISTOGRAM_BUCKETS; i++) {
        total += h->counts[i];
        lk_writer_printf(w->out, "%s_bucket{model_name=\"%s\",le=\"", name, w->model);
        if (i < LK_HISTOGRAM_BUCKETS)
            lk_writer_printf(w->out, "%g", lk_histogram_bounds[i]);
        else
            lk_writer_string(w->out, "+Inf");
        lk_writer_printf(w->out, "\"} %" PRId64 "\n", total);
    }
    lk_writer_printf(w->out, "%s_sum{model_name=\"%s\"} %.9g\n%s_count{model_name=\"%s\"} %" PRId64 "\n", name, w->model, h->sum, name,
                     w->model, total);
}

static void finished(const writer *w, const lk_engine_stats *s)
{
    const struct {
        const char *reason;
        int64_t n;
    } rows[] = {{"stop", s->finished_stop}, {"length", s->finished_length}, {"abort", s->finished_cancelled}, {"error", s->finished_error}};
    head(w, "vllm:request_success_total", "counter", "Requests that ended, by reason.");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        lk_writer_printf(w->out, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"%s\"} %" PRId64 "\n", w->model,
                         rows[i].reason, rows[i].n);
}

static void engine(const writer *w, const lk_engine_stats *s)
{
    gauge(w, "vllm:num_requests_running", "Requests in the batch.", (double)s->running);
    gauge(w, "vllm:num_requests_waiting", "Requests in the queue.", (double)s->waiting);
    int32_t for_sequences = s->pages_total - s->pages_adapters_in_use;
    gauge(w, "vllm:kv_cache_usage_perc", "Part of the pages in use, of those that adapters in use leave to keys and values; 1 is all.",
          for_sequences > 0 ? (double)s->pages_used / for_sequences : 0.0);
    counter(w, "vllm:prompt_tokens_total", "Prompt tokens processed.", s->prompt_tokens);
    counter(w, "vllm:generation_tokens_total", "Tokens generated.", s->generated_tokens);
    counter(w, "vllm:num_preemptions_total", "Requests that gave their pages back and were computed again.", s->preemptions);
    /* There is no prefix cache yet: it is never asked, and the zeros say so. */
    counter(w, "vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", 0);
    counter(w, "vllm:prefix_cache_hits_total", "Prompt tokens found there.", 0);
    finished(w, s);
    histogram(w, "vllm:time_to_first_token_seconds", "From arrival to the first token.", &s->first_token);
    histogram(w, "vllm:inter_token_latency_seconds", "Between two tokens of a request.", &s->inter_token);
    histogram(w, "vllm:e2e_request_latency_seconds", "From arrival to the end.", &s->end_to_end);
    histogram(w, "vllm:request_queue_time_seconds", "Spent in the queue.", &s->queue);
    head(w, "vllm:cache_config_info", "gauge", "KV pages.");
    lk_writer_printf(w->out, "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%d\"} 1\n", s->page_tokens, s->pages_total);
    counter(w, "lorikeet_iterations_total", "Forward passes.", s->iterations);
    gauge(w, "lorikeet_batch_requests_max", "Most requests that were ever in one forward pass.", (double)s->largest_batch);
    counter(w, "lorikeet_requests_refused_total", "Requests refused because the queue was full.", s->refused);
    gauge(w, "lorikeet_adapter_pages", "Pages of the pool that hold adapters.", (double)s->pages_adapters);
    counter(w, "lorikeet_pages_moved_total", "Pages of keys and values moved to make room for an adapter.", s->pages_moved);
    counter(w, "lorikeet_adapter_loads_total", "Adapter versions brought into memory.", s->adapter_loads);
    counter(w, "lorikeet_adapter_evictions_total", "Adapter versions put out of memory for others.", s->adapter_evictions);
}

static bool has(const lk_adapter_info *a, bool waiting) { return waiting ? a->waiting > 0 : a->resident; }

/* The names that are in memory, or that requests wait for; a name with several versions stands once. */
static void name_list(lk_writer *out, const lk_adapter_info *a, int64_t n, bool waiting)
{
    bool first = true;
    for (int64_t i = 0; i < n; i++) {
        bool fresh = has(&a[i], waiting);
        for (int64_t j = 0; j < i && fresh; j++) fresh = !has(&a[j], waiting) || strcmp(a[j].name, a[i].name);
        if (!fresh) continue;
        if (!first) lk_writer_string(out, ",");
        label(out, a[i].name);
        first = false;
    }
}

static void adapter_row(const writer *w, const char *name, const lk_adapter_info *a, int64_t value)
{
    lk_writer_printf(w->out, "%s{model_name=\"%s\",adapter=\"", name, w->model);
    label(w->out, a->name);
    lk_writer_printf(w->out, "\",version=\"%" PRId64 "\"} %" PRId64 "\n", a->version, value);
}

static void adapters(const writer *w, const lk_adapter_info *a, int64_t n, const lk_metrics_facts *facts)
{
    head(w, "vllm:lora_requests_info", "gauge", "Adapters in memory, and those that requests wait for; the value is the time.");
    lk_writer_printf(w->out, "vllm:lora_requests_info{max_lora=\"%d\",running_lora_adapters=\"", facts->max_adapters);
    name_list(w->out, a, n, false);
    lk_writer_string(w->out, "\",waiting_lora_adapters=\"");
    name_list(w->out, a, n, true);
    lk_writer_printf(w->out, "\"} %.3f\n", facts->now_unix);
    head(w, "lorikeet_adapter_bytes", "gauge", "Memory of an adapter version; 0: put out, its next request brings it back.");
    for (int64_t i = 0; i < n; i++) adapter_row(w, "lorikeet_adapter_bytes", &a[i], a[i].resident ? a[i].bytes : 0);
    head(w, "lorikeet_adapter_requests_running", "gauge", "Running requests of an adapter version.");
    for (int64_t i = 0; i < n; i++) adapter_row(w, "lorikeet_adapter_requests_running", &a[i], a[i].running);
    head(w, "lorikeet_adapter_requests_waiting", "gauge", "Waiting requests of an adapter version.");
    for (int64_t i = 0; i < n; i++) adapter_row(w, "lorikeet_adapter_requests_waiting", &a[i], a[i].waiting);
    head(w, "lorikeet_adapter_info", "gauge", "What an adapter version is; current: requests that name the adapter get it.");
    for (int64_t i = 0; i < n; i++) {
        lk_writer_printf(w->out, "lorikeet_adapter_info{model_name=\"%s\",adapter=\"", w->model);
        label(w->out, a[i].name);
        lk_writer_printf(w->out, "\",version=\"%" PRId64 "\",digest=\"%s\",rank=\"%d\",current=\"%s\"} 1\n", a[i].version, a[i].digest,
                         a[i].max_rank, a[i].current ? "true" : "false");
    }
}

void lk_metrics_write(lk_writer *out, const lk_engine_stats *stats, const lk_adapter_info *list, int64_t n_adapters,
                      const lk_metrics_facts *facts)
{
    lk_writer model = {0};
    lk_writer_string(&model, "");
    label(&model, facts->model_name);
    writer w = {out, model.data ? model.data : ""};
    engine(&w, stats);
    adapters(&w, list, n_adapters, facts);
    gauge(&w, "lorikeet_http_connections", "Open connections.", (double)facts->connections);
    counter(&w, "lorikeet_http_slow_clients_total", "Connections closed because a request or reply took the client too long.", facts->slow);
    head(&w, "lorikeet_http_responses_total", "counter", "Responses by HTTP status.");
    for (int i = 0; i < LK_METRICS_CODES; i++)
        if (facts->responses[i]) lk_writer_printf(out, "lorikeet_http_responses_total{code=\"%d\"} %" PRId64 "\n", i, facts->responses[i]);
    head(&w, "lorikeet_build_info", "gauge", "Program and base.");
    lk_writer_printf(out, "lorikeet_build_info{model_name=\"%s\",version=\"%s\",base_digest=\"%s\"} 1\n", w.model, LK_VERSION,
                     facts->base_digest);
    lk_writer_free(&model);
}
