/* The plan is a sum of sizes that the parts themselves state (lk_model_bytes, lk_pass_plan_bytes, ...): nothing is estimated that somebody
 * knows. Checkpointing "auto" asks for the plan at every number of kept layers and takes the largest that fits: memory grows with it, but
 * for a layer's input or two. */
#include "train/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "train/batch.h"

enum { LOADING = 1, TRAINING = 2, BACKEND = 4 };

static void __attribute__((format(printf, 5, 6))) add(lk_plan *plan, const char *name, size_t bytes, int when, const char *detail, ...)
{
    if (plan->n_terms >= LK_PLAN_MAX_TERMS || bytes == 0) return;
    lk_plan_term *t = &plan->terms[plan->n_terms++];
    snprintf(t->name, sizeof t->name, "%s", name);
    va_list args;
    va_start(args, detail);
    vsnprintf(t->detail, sizeof t->detail, detail, args);
    va_end(args);
    t->bytes = bytes;
    t->backend = when & BACKEND;
    t->loading = when & LOADING;
    t->training = when & TRAINING;
}

/* ---------------------------------------------------------------------------------------------- this machine */

/* A number of the form "Name:   123 kB" in /proc, in bytes; 0 when it is not there. */
static size_t proc_field(const char *file, const char *name)
{
    FILE *f = fopen(file, "r");
    if (!f) return 0;
    char line[256];
    size_t kib = 0, length = strlen(name);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, name, length)) kib = strtoull(line + length, NULL, 10);
    fclose(f);
    return kib * 1024;
}

static bool read_number(const char *path, size_t *value)
{
    FILE *f = fopen(path, "r");
    if (!f) return false;
    unsigned long long number;
    bool found = fscanf(f, "%llu", &number) == 1; /* "max" is no number: no limit */
    fclose(f);
    *value = found ? (size_t)number : 0;
    return found;
}

size_t lk_memory_available(void)
{
    size_t available = proc_field("/proc/meminfo", "MemAvailable:"), limit, used;
    static const char *const groups[][2] = {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                                            {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
    for (int i = 0; i < 2; i++) {
        if (!read_number(groups[i][0], &limit) || !read_number(groups[i][1], &used)) continue;
        size_t room = limit > used ? limit - used : 0;
        if (room < available) available = room;
    }
    return available;
}

/* ---------------------------------------------------------------------------------------------- sums */

enum { OF_DEVICE, OF_HOST };

static size_t sum(const lk_plan *plan, int of, bool loading, bool training)
{
    size_t total = 0;
    for (int i = 0; i < plan->n_terms; i++) {
        const lk_plan_term *t = &plan->terms[i];
        if (of == OF_DEVICE ? !t->backend : t->backend && plan->own_memory) continue;
        if ((loading && t->loading) || (training && t->training)) total += t->bytes;
    }
    return total;
}

size_t lk_plan_backend_bytes(const lk_plan *plan) { return sum(plan, OF_DEVICE, false, true); }
size_t lk_plan_loading_bytes(const lk_plan *plan) { return sum(plan, OF_HOST, true, false); }
size_t lk_plan_training_bytes(const lk_plan *plan) { return sum(plan, OF_HOST, false, true); }

size_t lk_plan_host_bytes(const lk_plan *plan)
{
    size_t loading = lk_plan_loading_bytes(plan), training = lk_plan_training_bytes(plan);
    return loading > training ? loading : training;
}

size_t lk_plan_peak_bytes(const lk_plan *plan) { return plan->own_memory ? lk_plan_backend_bytes(plan) : lk_plan_host_bytes(plan); }

/* ---------------------------------------------------------------------------------------------- terms */

/* While one matrix is quantised its codes and scales lie beside it. */
static size_t quantising_bytes(const lk_config *c)
{
    int64_t most = lk_config_largest_matrix(c);
    return (size_t)(most / 2 + most / 64 * 6);
}

static void add_host(lk_plan *plan, const lk_plan_request *r)
{
    const lk_config *c = &r->facts->config;
    lk_batches_options train = {.rows = r->rows, .accumulate = r->accumulate, .max_length = r->max_length};
    lk_batches_options eval = {.rows = r->rows, .accumulate = 1, .max_length = r->max_length};
    add(plan, "base file, mapped", r->model_file_bytes, LOADING, "let go when the weights are prepared");
    if (r->quant == LK_QUANT_NF4 && !r->facts->prequantized)
        add(plan, "one matrix being quantised", quantising_bytes(c), LOADING, "codes and scales");
    add(plan, "training batches", lk_batches_bytes(&train, r->train_documents), TRAINING, "%lld documents, %lld micro-batches a step",
        (long long)r->train_documents, (long long)r->accumulate);
    if (r->eval_documents)
        add(plan, "evaluation batches", lk_batches_bytes(&eval, r->eval_documents), TRAINING, "%lld documents",
            (long long)r->eval_documents);
    add(plan, "losses on the host", (size_t)plan->micro_batch_tokens * 9, TRAINING, "of training and of evaluation");
    add(plan, "a copy of the adapter", (size_t)plan->n_params * 4, TRAINING, "while a checkpoint or the adapter is saved");
    add(plan, "program and libraries", proc_field("/proc/self/status", "VmRSS:"), LOADING | TRAINING, "resident now");
    /* Measured: HDF5's writing half, kernels' code, stacks of the threads, what malloc keeps. None of it is resident at planning time. */
    add(plan, "code and heap to come", (size_t)3 << 20, TRAINING, "touched first in training and saving");
}

static lk_status make_terms(lk_plan *plan, const lk_plan_request *r, int64_t kept, lk_error *err)
{
    const lk_config *c = &r->facts->config;
    lk_adapter_sizes adapter;
    if (kept > c->layers) kept = c->layers;
    *plan = (lk_plan){
        .kept_layers = kept, .micro_batch_tokens = r->rows * r->max_length, .layers = c->layers, .own_memory = lk_device_memory(r->be) > 0};
    snprintf(plan->device, sizeof plan->device, "%.40s, %d threads", lk_backend_name(r->be), lk_backend_threads(r->be));
    LK_TRY(lk_adapter_sizes_of(&adapter, r->be, c, r->adapter, err));
    plan->n_params = adapter.n_params;
    plan->n_trainable = adapter.n_trainable;
    size_t params = (size_t)plan->n_params * 4;
    lk_pass_plan pass;
    lk_pass_options options = {.max_tokens = plan->micro_batch_tokens,
                               .max_rank = adapter.max_rank,
                               .kept_layers = kept,
                               .offload = r->offload,
                               .training = true,
                               .gains = adapter.gains,
                               .dropped_gains = adapter.dropped,
                               .head = adapter.head};
    lk_pass_plan_bytes(r->be, c, &options, &pass);
    bool nf4 = r->quant == LK_QUANT_NF4 || r->facts->prequantized;
    add(plan, "base weights", lk_model_bytes(r->be, r->facts, r->quant), BACKEND | LOADING | TRAINING, "%s, %lld layers, %.4g M parameters",
        nf4 ? "NF4" : lk_dtype_name(r->facts->linear), (long long)c->layers, (double)lk_config_params(c) / 1e6);
    add(plan, "adapter", params, BACKEND | TRAINING, "%.4g M parameters, fp32", (double)plan->n_trainable / 1e6);
    add(plan, "adapter's derived values", adapter.derived, BACKEND | TRAINING, "gains, biases, copies of tables for the kernels");
    add(plan, "gradients", params, BACKEND | TRAINING, "fp32");
    add(plan, "AdamW moments", lk_adamw_state_bytes(r->optim, plan->n_params), BACKEND | TRAINING, "%s, two of them",
        r->optim == LK_ADAMW_8BIT ? "8 bits" : "fp32");
    add(plan, "checkpointed layer inputs", pass.checkpoints, BACKEND | TRAINING, "%lld x %lld tokens", (long long)r->rows,
        (long long)r->max_length);
    add(plan, "activations", pass.activations, BACKEND | TRAINING, "of %lld of %lld layers", (long long)kept, (long long)c->layers);
    add(plan, "activation gradients, losses", pass.transient, BACKEND | TRAINING, "shared by all layers");
    add(plan, "scratch of the kernels", pass.scratch > adapter.scratch ? pass.scratch : adapter.scratch, BACKEND | TRAINING,
        "shared by all operations");
    add(plan, "offloaded layer inputs", pass.host, TRAINING, "in host memory");
    add_host(plan, r);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- checkpointing */

/* The most kept layers that fit, else the leanest plan. */
static lk_status choose(lk_plan *plan, const lk_plan_request *r, size_t budget, lk_error *err)
{
    size_t least = SIZE_MAX;
    int64_t leanest = 1;
    for (int64_t kept = r->facts->config.layers; kept >= 1; kept--) {
        LK_TRY(make_terms(plan, r, kept, err));
        size_t bytes = lk_plan_peak_bytes(plan);
        if (bytes <= budget) return LK_OK;
        if (bytes >= least) continue;
        least = bytes;
        leanest = kept;
    }
    return make_terms(plan, r, leanest, err);
}

static void shown(char out[32], size_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    int u = 0;
    for (; x >= 1024 && u < 4; u++) x /= 1024;
    snprintf(out, 32, u ? "%.1f %s" : "%.0f %s", x, units[u]);
}

static size_t own_share(const lk_plan_request *r) { return lk_memory_available() / (size_t)(r->processes > 1 ? r->processes : 1); }

/* What the plan may take, and in words whose decision that is. */
static size_t find_budget(const lk_plan_request *r, char source[96])
{
    size_t on_device = lk_device_memory(r->be), available = on_device ? on_device : own_share(r);
    char size[32];
    shown(size, available);
    if (r->budget)
        snprintf(source, 96, "memory.budget of the recipe");
    else if (on_device)
        snprintf(source, 96, "90%% of the %s free on the device", size);
    else
        snprintf(source, 96, r->processes > 1 ? "80%% of the %s available here to each process" : "80%% of the %s available here", size);
    return r->budget ? r->budget : on_device ? available / 10 * 9 : available / 10 * 8;
}

/* A device's own memory is one thing; what the process keeps beside it must have room too. */
static lk_status check_host(const lk_plan *plan, const lk_plan_request *r, lk_error *err)
{
    size_t available = own_share(r), needed = lk_plan_host_bytes(plan);
    if (!plan->own_memory || needed <= available) return LK_OK;
    char size[32], peak[32];
    shown(size, available);
    shown(peak, needed);
    return lk_fail(
        err, LK_ERR_MEMORY,
        "the run needs %s of this machine's memory beside the device's and %s are available: lower batch.rows or data.max_length, or use a "
        "machine with more",
        peak, size);
}

lk_status lk_plan_make(lk_plan *plan, const lk_plan_request *request, lk_error *err)
{
    char source[96], size[32], peak[32];
    size_t budget = find_budget(request, source);
    if (request->checkpointing == LK_CHECKPOINTING_AUTO)
        LK_TRY(choose(plan, request, budget, err));
    else
        LK_TRY(make_terms(plan, request, request->checkpointing, err));
    plan->budget = budget;
    memcpy(plan->budget_source, source, sizeof source);
    if (lk_plan_peak_bytes(plan) <= budget) return check_host(plan, request, err);
    shown(size, budget);
    shown(peak, lk_plan_peak_bytes(plan));
    return lk_fail(err, LK_ERR_MEMORY,
                   "the run needs %s%s and %s are allowed (%s): lower batch.rows or data.max_length, set memory.checkpointing to \"full\", "
                   "%sor raise memory.budget",
                   peak, plan->own_memory ? " of the device's memory" : "", size, source,
                   plan->own_memory && !request->offload ? "memory.offload to true, " : "");
}

/* ---------------------------------------------------------------------------------------------- printing */

static const char *checkpointing_name(const lk_plan *plan, char buffer[64])
{
    if (plan->kept_layers == plan->layers) return "none";
    if (plan->kept_layers == 1) return "full (every layer but the last recomputed)";
    snprintf(buffer, 64, "the first %lld of %lld layers recomputed", (long long)(plan->layers - plan->kept_layers),
             (long long)plan->layers);
    return buffer;
}

char *lk_plan_text(const lk_plan *plan)
{
    char *text = NULL, amount[32], other[32], buffer[64];
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    fprintf(out, "Memory plan for %s\n  %lld tokens a micro-batch, checkpointing: %s\n", plan->device, (long long)plan->micro_batch_tokens,
            checkpointing_name(plan, buffer));
    for (int i = 0; i < plan->n_terms; i++) {
        const lk_plan_term *t = &plan->terms[i];
        shown(amount, t->bytes);
        fprintf(out, "  %-30s %10s  %s%s\n", t->name, amount, t->detail, t->training ? "" : " (only while loading)");
    }
    if (plan->own_memory) {
        shown(amount, lk_plan_peak_bytes(plan));
        fprintf(out, "  %-30s %10s  on the device\n", "peak", amount);
    }
    shown(amount, lk_plan_host_bytes(plan));
    shown(other, lk_plan_loading_bytes(plan));
    fprintf(out, "  %-30s %10s  ", plan->own_memory ? "peak of the host's memory" : "peak", amount);
    if (lk_plan_loading_bytes(plan) > lk_plan_training_bytes(plan))
        fprintf(out, "while the base loads\n");
    else
        fprintf(out, "in training (%s while the base loads)\n", other);
    shown(amount, plan->budget);
    fprintf(out, "  %-30s %10s  %s\n", "budget", amount, plan->budget_source);
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

char *lk_plan_json(const lk_plan *plan)
{
    cJSON *root = cJSON_CreateObject(), *terms = cJSON_AddArrayToObject(root, "terms");
    for (int i = 0; terms && i < plan->n_terms; i++) {
        const lk_plan_term *t = &plan->terms[i];
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "name", t->name);
        cJSON_AddStringToObject(one, "detail", t->detail);
        cJSON_AddNumberToObject(one, "bytes", (double)t->bytes);
        cJSON_AddBoolToObject(one, "backend", t->backend);
        cJSON_AddBoolToObject(one, "loading", t->loading);
        cJSON_AddBoolToObject(one, "training", t->training);
        cJSON_AddItemToArray(terms, one);
    }
    cJSON_AddStringToObject(root, "device", plan->device);
    cJSON_AddNumberToObject(root, "kept_layers", (double)plan->kept_layers);
    cJSON_AddNumberToObject(root, "layers", (double)plan->layers);
    cJSON_AddNumberToObject(root, "micro_batch_tokens", (double)plan->micro_batch_tokens);
    cJSON_AddNumberToObject(root, "trainable_parameters", (double)plan->n_trainable);
    cJSON_AddNumberToObject(root, "backend_bytes", (double)lk_plan_backend_bytes(plan));
    cJSON_AddNumberToObject(root, "loading_bytes", (double)lk_plan_loading_bytes(plan));
    cJSON_AddNumberToObject(root, "training_bytes", (double)lk_plan_training_bytes(plan));
    cJSON_AddNumberToObject(root, "host_bytes", (double)lk_plan_host_bytes(plan));
    cJSON_AddNumberToObject(root, "peak_bytes", (double)lk_plan_peak_bytes(plan));
    cJSON_AddNumberToObject(root, "budget_bytes", (double)plan->budget);
    cJSON_AddStringToObject(root, "budget_source", plan->budget_source);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}
