/* Training tokens per second and peak memory of a QLoRA step (r 16 on all linear layers, AdamW, every layer recomputed) on a random model.
 *
 *     bench_train [SHAPE [TOKENS [STEPS [KEPT_LAYERS [THREADS]]]]]       defaults: 100m 512 6 1 0
 *
 * bench/peer_train.py does the same with PEFT and bitsandbytes on the same folder; bench/run.sh runs both and prints the ratio. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "bench/shape.h"
#include "model/adapter.h"
#include "model/transformer.h"

typedef struct trainer {
    lk_backend *be;
    lk_model *model;
    lk_adapter *adapter;
    lk_pass *pass;
    float *state[3]; /* gradient, first and second moment */
    lk_lora *table;
    int32_t *ids, *labels, *positions;
    float *nll;
    int64_t tokens;
} trainer;

static lk_status open_trainer(trainer *t, const char *folder, int64_t kept_layers, int threads, lk_error *err)
{
    LK_TRY(lk_backend_open(&t->be, &(lk_backend_options){.device = "cpu", .threads = threads, .compute = LK_BF16}, err));
    LK_TRY(lk_model_open(&t->model, t->be, folder, &(lk_model_options){.quant = LK_QUANT_NF4}, err));
    lk_adapter_spec spec = {.rank = 16, .alpha = 32};
    for (int m = 0; m < LK_N_MODULES; m++) spec.targets[m] = true;
    LK_TRY(lk_adapter_create(&t->adapter, t->model, &spec, 1, err));
    lk_pass_options options = {.max_tokens = t->tokens, .max_rank = 16, .kept_layers = kept_layers, .training = true};
    LK_TRY(lk_pass_create(&t->pass, t->model, &options, err));
    for (int i = 0; i < 3; i++) {
        void *p;
        lk_status status = lk_alloc(t->be, (size_t)t->adapter->n_params * 4, &p);
        if (status) return lk_backend_fail(t->be, status, err);
        t->state[i] = p;
    }
    t->table = calloc((size_t)t->adapter->n_sites, sizeof *t->table);
    t->ids = malloc((size_t)t->tokens * 4);
    t->labels = malloc((size_t)t->tokens * 4);
    t->positions = malloc((size_t)t->tokens * 4);
    t->nll = malloc((size_t)t->tokens * 4);
    if (!t->table || !t->ids || !t->labels || !t->positions || !t->nll) return lk_fail(err, LK_ERR_MEMORY, "no memory");
    lk_adapter_table(t->table, (const lk_adapter *const *)&t->adapter, 1, &t->state[0]);
    for (int64_t i = 0; i < t->tokens; i++) {
        t->ids[i] = (int32_t)((i * 7919 + 13) % t->model->config.vocab);
        t->labels[i] = (int32_t)((i * 104729 + 7) % t->model->config.vocab);
        t->positions[i] = (int32_t)i;
    }
    return LK_OK;
}

static lk_status step(trainer *t, int64_t number, double *loss, lk_error *err)
{
    int32_t starts[2] = {0, (int32_t)t->tokens};
    lk_segment segment = {0, t->tokens, 0};
    lk_batch batch = {.n_tokens = t->tokens,
                      .ids = t->ids,
                      .positions = t->positions,
                      .n_docs = 1,
                      .doc_starts = starts,
                      .n_segments = 1,
                      .segments = &segment,
                      .n_sites = t->adapter->n_sites,
                      .n_adapters = 1,
                      .lora = t->table};
    lk_adamw_step adamw = {.lr = 2e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .step = number, .grad_scale = 1.0f};
    lk_status status = lk_zero(t->be, t->state[0], (size_t)t->adapter->n_params * 4);
    if (status) return lk_backend_fail(t->be, status, err);
    LK_TRY(lk_pass_gradient(t->pass, &batch, t->labels, 1.0f / (float)t->tokens, NULL, t->nll, err));
    status = lk_adamw(t->be, t->adapter->weights, t->state[0], t->state[1], t->state[2], t->adapter->n_params, &adamw);
    if (status) return lk_backend_fail(t->be, status, err);
    *loss = 0;
    for (int64_t i = 0; i < t->tokens; i++) *loss += (double)t->nll[i] / (double)t->tokens;
    return LK_OK;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const char *shape = argc > 1 ? argv[1] : "100m";
    trainer t = {.tokens = argc > 2 ? atoll(argv[2]) : 512};
    int steps = argc > 3 ? atoi(argv[3]) : 6;
    lk_error err = {0};
    char folder[4096];
    double seconds[100], loss = 0, start = lk_clock_seconds();
    if (steps < 2 || steps > 100 || t.tokens < 2)
        return fprintf(stderr, "usage: bench_train [SHAPE [TOKENS [STEPS 2..100 [KEPT_LAYERS [THREADS]]]]]\n"), 2;
    lk_status status = bench_shape_folder(folder, sizeof folder, shape, &err);
    if (!status) status = open_trainer(&t, folder, argc > 4 ? atoi(argv[4]) : 1, argc > 5 ? atoi(argv[5]) : 0, &err);
    double opened = lk_clock_seconds() - start;
    for (int i = 0; i < steps && !status; i++) {
        double begin = lk_clock_seconds();
        status = step(&t, i + 1, &loss, &err);
        seconds[i] = lk_clock_seconds() - begin;
    }
    if (status) return fprintf(stderr, "bench_train: %s\n", err.message), 1;
    qsort(seconds + 1, (size_t)steps - 1, sizeof *seconds, compare); /* the first step warms up */
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double median = seconds[1 + (steps - 1) / 2];
    printf("{\"program\": \"lorikeet\", \"device\": \"%s\", \"threads\": %d, \"shape\": \"%s\", \"tokens\": %lld, \"open_s\": %.2f, "
           "\"step_s\": %.3f, \"tokens_per_s\": %.1f, \"peak_mb\": %.0f, "
           "\"backend_peak_mb\": %.0f, \"loss\": %.4f}\n",
           lk_backend_name(t.be), lk_backend_threads(t.be), shape, (long long)t.tokens, opened, median, (double)t.tokens / median,
           (double)usage.ru_maxrss / 1024, (double)lk_allocated_peak(t.be) / 1048576, loss);
    return 0;
}
