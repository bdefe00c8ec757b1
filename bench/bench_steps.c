/* Whole steps of serving: the model's forward over pages, and sampling, as the engine queues them: the next step before this one's tokens
 * are read.
 *
 *     bench_steps [--device D] [--shape S] [--kv int8]
 *
 * Decoding alone, 32 requests with 2k of context, 128 with little; the same 32 with room for adapters that nobody uses, and on 32 adapters;
 * a prompt; and an adapter that comes in beside decoding. Weights are random (bench/random_model.h), and so is what the cache holds: what
 * a step costs depends on neither. Rows as bench/device.h has them: tokens/s, and the share of what the step's bytes (weights once,
 * keys and values, adapters) and operations would take at the ceilings measured in the same run. On the CPU (`--device cpu --shape tiny`)
 * the same program shows that it works. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/device.h"
#include "bench/random_model.h"
#include "model/transformer.h"

enum { MOST = 128, PAGE = 16, RANK = 16, WARM = 4, MOST_STEPS = 64, PROMPT = 4096, CHUNK = 2048 };

typedef struct steps {
    bench *b;
    lk_model *model;
    lk_infer *infer;
    lk_kv *kv;
    double page_bytes;
    int64_t n, length; /* sequences, and tokens each has in the cache */
    int n_adapters;    /* one each for the first so many sequences */
    lk_lora *table;
    int32_t *pages;
    bool begun; /* a sampling is under way */
} steps;

static void fits(const char *what, lk_status status, const lk_error *err)
{
    if (status) bench_stop(what, err);
}

static lk_infer *make_infer(steps *s, int64_t tokens, int64_t rows, int64_t context, int32_t rank)
{
    lk_infer *infer;
    lk_infer_options options = {.max_tokens = tokens, .max_rows = rows, .max_context = context, .max_rank = rank};
    fits("inference", lk_infer_create(&infer, s->model, &options, &s->b->err), &s->b->err);
    return infer;
}

static void end_sampling(steps *s)
{
    lk_sample_result results[MOST];
    if (s->begun) bench_check(s->b, "sample_end", lk_sample_end(s->b->be, results));
    s->begun = false;
}

/* Queues a step of decoding and then reads the tokens of the one before it. */
static void decode(steps *s)
{
    int32_t ids[MOST], positions[MOST], rows[MOST];
    lk_sequence sequences[MOST];
    lk_segment segments[MOST];
    lk_sample_request requests[MOST];
    lk_backend *be = s->b->be;
    int64_t each = (s->length + MOST_STEPS + 2 * WARM + PAGE) / PAGE + 1;
    for (int64_t i = 0; i < s->n; i++) {
        ids[i] = s->begun && lk_backend_ahead(be) ? lk_drawn(i) : 1;
        positions[i] = (int32_t)s->length;
        rows[i] = (int32_t)i;
        sequences[i] = (lk_sequence){i, 1, s->length + 1, s->pages + i * each};
        segments[i] = (lk_segment){i, i + 1, i < s->n_adapters ? (int32_t)i : -1};
        requests[i] = (lk_sample_request){
            .temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1.0f, .counter = (uint64_t)s->length, .n_logprobs = -1};
    }
    lk_batch batch = {.n_tokens = s->n, .ids = ids, .positions = positions, .n_sequences = s->n, .sequences = sequences};
    if (s->n_adapters) {
        batch.n_segments = s->n;
        batch.segments = segments;
        batch.n_sites = lk_sites(&s->model->config);
        batch.n_adapters = s->n_adapters;
        batch.lora = s->table;
    }
    lk_tensor logits;
    fits("forward", lk_infer_forward(s->infer, &batch, s->kv, rows, s->n, &logits, &s->b->err), &s->b->err);
    if (lk_backend_ahead(be)) {
        bench_check(s->b, "sample_begin", lk_sample_begin(be, &logits, requests));
        end_sampling(s);
        s->begun = true;
    } else {
        lk_sample_result results[MOST];
        bench_check(s->b, "sample", lk_sample(be, &logits, requests, results));
    }
    s->length++;
}

/* Seconds of a step: over some twenty to sixty of them, about a second. */
static double decode_seconds(steps *s, int64_t n, int64_t length, int n_adapters)
{
    s->n = n;
    s->length = length;
    s->n_adapters = n_adapters;
    for (int i = 0; i < WARM; i++) decode(s);
    double begin = lk_clock_seconds();
    int done = 0;
    while (done < MOST_STEPS && (done < 8 || lk_clock_seconds() - begin < 1.0)) {
        decode(s);
        done++;
    }
    end_sampling(s);
    return (lk_clock_seconds() - begin) / done;
}

/* Bytes that a decoding step must move once. */
static double step_bytes(const steps *s, int64_t n, int64_t length)
{
    const lk_config *c = &s->model->config;
    double layers = bench_nf4_bytes((double)lk_config_linear_params(c)), head = 2.0 * (double)c->vocab * (double)c->hidden;
    return layers + head + (double)n * (double)length * s->page_bytes / PAGE;
}

static void report_decode(steps *s, const char *name, double seconds, int64_t n, int64_t length, double goal)
{
    char value[64], of[128], wanted[32];
    double bytes = step_bytes(s, n, length), operations = 2 * (double)n * (double)lk_config_params(&s->model->config);
    double floor = bytes / s->b->copy > operations / s->b->product ? bytes / s->b->copy : operations / s->b->product;
    snprintf(value, sizeof value, "%.0f tokens/s", (double)n / seconds);
    snprintf(of, sizeof of, "%.3f ms a step, %.0f%% of the ceiling (%.2f GB)", seconds * 1e3, 100 * floor / seconds, bytes * 1e-9);
    snprintf(wanted, sizeof wanted, goal > 0 ? ">= %.0f" : "-", goal);
    bench_row(name, value, of, wanted, goal <= 0 ? "-" : (double)n / seconds >= goal ? "pass" : "MISSED");
}

/* One adapter: r 16 on every site, bf16. Factors one behind the other in memory of its own. */
static int64_t adapter_elements(const lk_config *c)
{
    int64_t total = 0;
    for (int32_t i = 0; i < lk_sites(c); i++) total += RANK * (lk_site_at(c, i).n + lk_site_at(c, i).k);
    return total;
}

static void place_adapter(lk_lora *table, const lk_config *c, int n_adapters, int which, void *memory)
{
    uint16_t *at = memory;
    for (int32_t i = 0; i < lk_sites(c); i++) {
        lk_site site = lk_site_at(c, i);
        table[(int64_t)i * n_adapters + which] = (lk_lora){.a = at, .b = at + RANK * site.k, .type = LK_BF16, .rank = RANK, .scale = 1e-3f};
        at += RANK * (site.n + site.k);
    }
}

static void bench_adapters(steps *s, const char *shape, int64_t n, int64_t length, double base)
{
    const lk_config *c = &s->model->config;
    int64_t elements = adapter_elements(c);
    lk_tensor *memory = calloc((size_t)n, sizeof *memory);
    s->table = calloc((size_t)(n * lk_sites(c)), sizeof *s->table);
    for (int i = 0; i < n; i++) {
        memory[i] = bench_tensor(s->b, LK_BF16, 1, elements, 0);
        place_adapter(s->table, c, (int)n, i, memory[i].data);
    }
    double unused = decode_seconds(s, n, length, 0), used = decode_seconds(s, n, length, (int)n);
    char name[96], value[64], of[96];
    snprintf(name, sizeof name, "%s decode x%lld, adapters possible, none used", shape, (long long)n);
    snprintf(value, sizeof value, "%+.1f%%", 100 * (unused / base - 1));
    snprintf(of, sizeof of, "%.3f ms a step, %.3f ms without", unused * 1e3, base * 1e3);
    bench_row(name, value, of, "< 1%", unused < 1.01 * base ? "pass" : "MISSED");
    snprintf(name, sizeof name, "%s decode x%lld on %lld adapters r %d", shape, (long long)n, (long long)n, RANK);
    snprintf(value, sizeof value, "%+.1f%%", 100 * (used / base - 1));
    snprintf(of, sizeof of, "%.3f ms a step; their bytes at copy rate %.3f ms", used * 1e3, 2e3 * (double)(n * elements) / s->b->copy);
    bench_row(name, value, of, "<= 15%", used <= 1.15 * base ? "pass" : "MISSED");
    for (int i = 0; i < n; i++) lk_free(s->b->be, memory[i].data);
    free(memory);
    free(s->table);
    s->table = NULL;
}

static void prefill(steps *s)
{
    static int32_t ids[CHUNK], positions[CHUNK], rows[1];
    lk_backend *be = s->b->be;
    for (int64_t done = 0; done < PROMPT; done += CHUNK) {
        for (int i = 0; i < CHUNK; i++) {
            ids[i] = (int32_t)((done + i) * 7919 % s->model->config.vocab);
            positions[i] = (int32_t)(done + i);
        }
        rows[0] = CHUNK - 1;
        lk_sequence sequence = {0, CHUNK, done + CHUNK, s->pages};
        lk_batch batch = {.n_tokens = CHUNK, .ids = ids, .positions = positions, .n_sequences = 1, .sequences = &sequence};
        lk_tensor logits;
        fits("prefill", lk_infer_forward(s->infer, &batch, s->kv, rows, done + CHUNK == PROMPT, &logits, &s->b->err), &s->b->err);
    }
    bench_check(s->b, "prefill", lk_sync(be));
}

static void bench_prefill(steps *s, const char *shape)
{
    double best = 1e30;
    for (int i = 0; i < 4; i++) {
        double begin = lk_clock_seconds();
        prefill(s);
        double seconds = lk_clock_seconds() - begin;
        if (i && seconds < best) best = seconds; /* the first one chooses and compiles */
    }
    const lk_config *c = &s->model->config;
    double operations = 2 * (double)PROMPT * (double)lk_config_linear_params(c);
    operations += 2.0 * (double)PROMPT * (double)PROMPT * (double)(c->heads * c->head_dim) * (double)c->layers; /* causal */
    char name[96], value[64], of[96];
    double percent = 100 * operations / best / s->b->product;
    snprintf(name, sizeof name, "%s prefill, a prompt of %d in chunks of %d", shape, PROMPT, CHUNK);
    snprintf(value, sizeof value, "%.0f tokens/s", PROMPT / best);
    snprintf(of, sizeof of, "%.0f TFLOP/s, %.0f%% of the ceiling", operations / best * 1e-12, percent);
    bench_row(name, value, of, ">= 60%", percent >= 60 ? "pass" : "MISSED");
}

/* An adapter's way from pinned host memory while 32 requests decode: its own time, and what they notice. */
static void bench_arrival(steps *s, const char *shape, int64_t n, int64_t length, double base)
{
    bench *b = s->b;
    size_t bytes = (size_t)adapter_elements(&s->model->config) * 2;
    lk_backend *loader;
    void *host, *device;
    fits("loader", lk_loader_open(&loader, b->be, &b->err), &b->err);
    bench_check(b, "host memory", lk_host_alloc(b->be, bytes, &host));
    bench_check(b, "device memory", lk_alloc(b->be, bytes, &device));
    memset(host, 0, bytes);
    s->n = n;
    s->length = length;
    s->n_adapters = 0;
    for (int i = 0; i < WARM; i++) decode(s);
    decode(s); /* under way while the copy is */
    double begin = lk_clock_seconds();
    bench_check(b, "loader", lk_loader_after(loader, b->be));
    lk_status status = lk_upload(loader, device, host, bytes);
    double seconds = lk_clock_seconds() - begin;
    if (status) bench_stop("upload", lk_backend_error(loader));
    end_sampling(s);
    char name[96], value[64], of[96];
    snprintf(name, sizeof name, "%s adapter r %d, host to device beside decoding", shape, RANK);
    snprintf(value, sizeof value, "%.2f ms", seconds * 1e3);
    snprintf(of, sizeof of, "%.0f MB, %.1f GB/s; a step takes %.2f ms", (double)bytes * 1e-6, (double)bytes / seconds * 1e-9, base * 1e3);
    bench_row(name, value, of, "< 20 ms", seconds < 0.02 ? "pass" : "MISSED");
    lk_free(b->be, device);
    lk_host_free(b->be, host);
    lk_backend_close(loader);
}

static void run(steps *s, const char *shape, bool small, bool codes)
{
    const int64_t many = small ? 8 : 32, most = small ? 16 : MOST, deep = small ? 256 : 2048, shallow = small ? 64 : 256;
    bench *b = s->b;
    int64_t context = deep + 256 > PROMPT ? deep + 256 : PROMPT, pages = (many * (deep + 256) + most * (shallow + 256) + PROMPT) / PAGE;
    if (pages % 7 == 0) pages++;
    lk_kv_shape kv = lk_infer_kv_shape(s->model, PAGE, (int32_t)pages);
    if (codes) kv.type = LK_I8;
    s->page_bytes = (double)lk_kv_page_bytes(b->be, &kv);
    bench_check(b, "cache", lk_kv_create(b->be, &s->kv, &kv));
    s->pages = malloc((size_t)pages * sizeof *s->pages);
    for (int64_t p = 0; p < pages; p++) s->pages[p] = (int32_t)((p * 7) % pages); /* out of order; a sequence's own all the same */
    char name[96];
    s->infer = make_infer(s, CHUNK, most, context, 0);
    snprintf(name, sizeof name, "%s decode, alone", shape);
    report_decode(s, name, decode_seconds(s, 1, 128, 0), 1, 128, small ? 0 : 600);
    double base = decode_seconds(s, many, deep, 0);
    snprintf(name, sizeof name, "%s decode x%lld, context %lld", shape, (long long)many, (long long)deep);
    report_decode(s, name, base, many, deep, small ? 0 : 7000);
    snprintf(name, sizeof name, "%s decode x%lld, context %lld", shape, (long long)most, (long long)shallow);
    report_decode(s, name, decode_seconds(s, most, shallow, 0), most, shallow, small ? 0 : 25000);
    bench_prefill(s, shape);
    bench_arrival(s, shape, many, deep, base);
    lk_infer_destroy(s->infer);
    s->infer = make_infer(s, CHUNK, most, context, RANK);
    bench_adapters(s, shape, many, deep, base);
    lk_infer_destroy(s->infer);
    lk_kv_destroy(b->be, s->kv);
    free(s->pages);
}

int main(int argc, char **argv)
{
    const char *device = "cuda", *shape = "8b", *kv = "";
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && strcmp(argv[i], "--device") == 0)
            device = argv[i + 1];
        else if (i + 1 < argc && strcmp(argv[i], "--shape") == 0)
            shape = argv[i + 1];
        else if (i + 1 < argc && strcmp(argv[i], "--kv") == 0 && strcmp(argv[i + 1], "int8") == 0)
            kv = argv[i + 1];
        else
            return fprintf(stderr, "usage: bench_steps [--device D] [--shape S] [--kv int8]\n"), 2;
    }
    bench b = {0};
    steps s = {.b = &b};
    bool small = strcmp(shape, "tiny") == 0;
    if (bench_config(&b.c, shape, &b.err)) bench_stop(shape, &b.err);
    if (lk_backend_open(&b.be, &(lk_backend_options){.device = device, .compute = LK_BF16}, &b.err)) bench_stop(device, &b.err);
    int64_t large = small ? 512 : 8192;
    const lk_limits limits = {.tokens = large, .width = large, .matrix = large * large};
    bench_check(&b, "reserve", lk_reserve(b.be, &limits));
    bench_ceilings(&b, small);
    if (bench_random_model(&s.model, b.be, &b.c, &b.err)) bench_stop("model", &b.err);
    run(&s, shape, small, *kv);
    lk_model_close(s.model);
    lk_backend_close(b.be);
    return 0;
}
