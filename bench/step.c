#include "bench/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/random_model.h"

enum { DEFAULT_RANK = 16 };

struct bench_step {
    bench_step_options options;
    lk_backend *be; /* borrowed */
    lk_model *model;
    lk_adapter *adapter;
    lk_pass *pass;
    float *gradient, *first, *second; /* backend memory, [n_params] */
    lk_lora *table;
    int32_t *ids, *labels, *positions, *starts;
    float *nll;
    lk_segment segment;
    int64_t steps;
};

static lk_adapter_spec spec_of(const bench_step_options *o)
{
    lk_adapter_spec spec = {.rank = o->rank ? o->rank : DEFAULT_RANK, .alpha = 32};
    for (int m = 0; m < LK_N_MODULES; m++) spec.targets[m] = true;
    return spec;
}

static lk_pass_options pass_of(const bench_step_options *o)
{
    return (lk_pass_options){.max_tokens = o->rows * o->length,
                             .max_rank = o->rank ? o->rank : DEFAULT_RANK,
                             .kept_layers = o->kept_layers,
                             .offload = o->offload,
                             .training = true};
}

static lk_status floats(float **out, lk_backend *be, int64_t n, lk_error *err)
{
    void *p;
    lk_status status = lk_alloc(be, (size_t)n * 4, &p);
    *out = p;
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

static void fill(bench_step *s)
{
    int64_t n = s->options.rows * s->options.length, vocab = s->model->config.vocab;
    for (int64_t i = 0; i < n; i++) {
        s->ids[i] = (int32_t)((i * 7919 + 13) % vocab);
        s->labels[i] = (int32_t)((i * 104729 + 7) % vocab);
        s->positions[i] = (int32_t)(i % s->options.length);
    }
    for (int64_t i = 0; i <= s->options.rows; i++) s->starts[i] = (int32_t)(i * s->options.length);
    s->segment = (lk_segment){0, n, 0};
    lk_adapter_table(s->table, (const lk_adapter *const *)&s->adapter, 1, &s->gradient);
}

static lk_status open_all(bench_step *s, lk_error *err)
{
    const bench_step_options *o = &s->options;
    size_t n = (size_t)(o->rows * o->length);
    lk_config config;
    lk_adapter_spec spec = spec_of(o);
    lk_pass_options pass = pass_of(o);
    LK_TRY(bench_config(&config, o->shape, err));
    LK_TRY(bench_random_model(&s->model, s->be, &config, err));
    LK_TRY(lk_adapter_create(&s->adapter, s->model, &spec, 1, err));
    LK_TRY(lk_pass_create(&s->pass, s->model, &pass, err));
    LK_TRY(floats(&s->gradient, s->be, s->adapter->n_params, err));
    LK_TRY(floats(&s->first, s->be, s->adapter->n_params, err));
    LK_TRY(floats(&s->second, s->be, s->adapter->n_params, err));
    s->table = calloc((size_t)s->adapter->n_sites, sizeof *s->table);
    s->ids = malloc(n * 4);
    s->labels = malloc(n * 4);
    s->positions = malloc(n * 4);
    s->starts = malloc(((size_t)o->rows + 1) * 4);
    s->nll = malloc(n * 4);
    if (!s->table || !s->ids || !s->labels || !s->positions || !s->starts || !s->nll)
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a batch");
    fill(s);
    return LK_OK;
}

lk_status bench_step_create(bench_step **out, lk_backend *be, const bench_step_options *options, lk_error *err)
{
    *out = NULL;
    bench_step *s = calloc(1, sizeof *s);
    if (!s) return lk_fail(err, LK_ERR_MEMORY, "no memory for a step");
    s->be = be;
    s->options = *options;
    lk_status status = open_all(s, err);
    if (status)
        bench_step_destroy(s);
    else
        *out = s;
    return status;
}

void bench_step_destroy(bench_step *s)
{
    if (!s) return;
    lk_pass_destroy(s->pass);
    lk_adapter_destroy(s->adapter);
    lk_model_close(s->model);
    lk_free(s->be, s->gradient);
    lk_free(s->be, s->first);
    lk_free(s->be, s->second);
    free(s->table);
    free(s->ids);
    free(s->labels);
    free(s->positions);
    free(s->starts);
    free(s->nll);
    free(s);
}

lk_status bench_step_run(bench_step *s, double *loss, lk_error *err)
{
    int64_t n = s->options.rows * s->options.length, params = s->adapter->n_params;
    lk_batch batch = {.n_tokens = n,
                      .ids = s->ids,
                      .positions = s->positions,
                      .n_docs = s->options.rows,
                      .doc_starts = s->starts,
                      .n_segments = 1,
                      .segments = &s->segment,
                      .n_sites = s->adapter->n_sites,
                      .n_adapters = 1,
                      .lora = s->table};
    double squares, sum = 0;
    lk_status status = lk_zero(s->be, s->gradient, (size_t)params * 4);
    for (int64_t i = 0; i < s->options.accumulate && !status; i++) {
        LK_TRY(lk_pass_gradient(s->pass, &batch, s->labels, 1.0f / (float)(n * s->options.accumulate), NULL, s->nll, err));
        for (int64_t t = 0; t < n; t++) sum += (double)s->nll[t];
    }
    if (!status) status = lk_sum_squares(s->be, &squares, s->gradient, params);
    if (!status) {
        float clip = squares > 1 ? (float)(1 / sqrt(squares)) : 1.0f;
        lk_adamw_step adamw = {.lr = 2e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .step = ++s->steps, .grad_scale = clip};
        status = lk_adamw(s->be, s->adapter->weights, s->gradient, s->first, s->second, params, &adamw);
    }
    if (!status) status = lk_sync(s->be);
    if (status) return lk_backend_fail(s->be, status, err);
    *loss = sum / (double)(n * s->options.accumulate);
    return LK_OK;
}

lk_status bench_step_bytes(size_t *bytes, const lk_backend *be, const bench_step_options *options, lk_error *err)
{
    lk_config config;
    lk_adapter_spec spec = spec_of(options);
    lk_pass_options pass = pass_of(options);
    lk_pass_plan plan;
    lk_adapter_sizes sizes;
    LK_TRY(bench_config(&config, options->shape, err));
    LK_TRY(lk_adapter_sizes_of(&sizes, be, &config, &spec, err));
    lk_pass_plan_bytes(be, &config, &pass, &plan);
    *bytes = bench_random_model_bytes(be, &config) + 4 * (size_t)sizes.n_params * 4 + plan.checkpoints + plan.activations + plan.transient +
             plan.scratch;
    return LK_OK;
}

lk_status bench_step_flops(double *flops, const bench_step_options *options, lk_error *err)
{
    lk_config c;
    LK_TRY(bench_config(&c, options->shape, err));
    double tokens = (double)(options->rows * options->length * options->accumulate);
    double products = 4.0 * (double)(lk_config_linear_params(&c) + c.vocab * c.hidden);
    /* Causal: half of length^2 scores, two products forward and five backward, two operations each. */
    double attention = (double)c.layers * 7.0 * (double)options->length * (double)(c.heads * c.head_dim);
    *flops = tokens * (products + attention);
    return LK_OK;
}
