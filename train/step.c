#include "train/step.h"

#include <math.h>
#include <stdlib.h>

#include "optim/clip.h"

static bool is_dora(const lk_adapter *a)
{
    for (int32_t s = 0; s < a->n_sites; s++)
        if (a->sites[s].dora) return true;
    return false;
}

static bool trains_head(const lk_adapter_tables *t) { return t->dhead || t->dhead_tokens || t->head_factors.rank; }

static lk_status take_memory(lk_trainer *t, lk_error *err)
{
    lk_backend *be = t->model->be;
    void *grads = NULL;
    lk_status status = lk_alloc(be, (size_t)t->adapter->n_params * sizeof(float), &grads);
    if (status) return lk_backend_fail(be, status, err);
    t->grads = grads;
    LK_TRY(lk_adamw_state_init(&t->optim, be, t->options.optim, t->adapter->n_params, err));
    t->table = calloc((size_t)t->adapter->n_sites, sizeof *t->table);
    t->nll = malloc((size_t)t->options.max_tokens * sizeof *t->nll);
    if (!t->table || !t->nll) return lk_fail(err, LK_ERR_MEMORY, "no memory for a trainer");
    const lk_adapter *adapters[1] = {t->adapter};
    lk_adapter_table(t->table, adapters, 1, &t->grads);
    t->has_tables = lk_adapter_train_tables(&t->tables, t->adapter, t->grads) != NULL;
    lk_pass_options pass = {.max_tokens = t->options.max_tokens,
                            .max_rank = t->adapter->max_rank,
                            .kept_layers = t->options.kept_layers,
                            .offload = t->options.offload,
                            .training = true,
                            .gains = is_dora(t->adapter),
                            .dropped_gains = is_dora(t->adapter) && t->options.dropout > 0,
                            .head = t->has_tables && trains_head(&t->tables)};
    return lk_pass_create(&t->pass, t->model, &pass, err);
}

lk_status lk_trainer_init(lk_trainer *t, const lk_model *model, lk_adapter *adapter, const lk_trainer_options *options, lk_error *err)
{
    *t = (lk_trainer){.model = model, .adapter = adapter, .options = *options};
    lk_status status = take_memory(t, err);
    if (status) lk_trainer_free(t);
    return status;
}

void lk_trainer_free(lk_trainer *t)
{
    if (!t->model) return;
    lk_pass_destroy(t->pass);
    lk_adamw_state_free(&t->optim);
    lk_free(t->model->be, t->grads);
    free(t->table);
    free(t->nll);
    *t = (lk_trainer){0};
}

/* Gradients of one micro-batch are added to t->grads, its summed NLL to *total. */
static lk_status accumulate(lk_trainer *t, const lk_micro_batch *m, const lk_dropout *dropout, float scale, double *total, lk_error *err)
{
    lk_segment segment = {0, m->batch.n_tokens, 0};
    lk_batch batch = m->batch;
    batch.n_segments = 1;
    batch.segments = &segment;
    batch.n_sites = t->adapter->n_sites;
    batch.n_adapters = 1;
    batch.lora = t->table;
    batch.tables = t->has_tables ? &t->tables : NULL;
    LK_TRY(lk_pass_gradient(t->pass, &batch, m->labels, scale, dropout, t->nll, err));
    for (int64_t i = 0; i < batch.n_tokens; i++) *total += (double)t->nll[i];
    return LK_OK;
}

static bool has_frozen(const lk_adapter *a)
{
    for (int32_t s = 0; s < a->n_sites; s++)
        if (a->sites[s].frozen) return true;
    return false;
}

/* Biases take no weight decay, as in transformers' Trainer. Where parts of factors are frozen decay comes by itself: before the update with
 * moments in fp32, behind it in 8 bits, as the two do it. */
static lk_status apply(lk_trainer *t, lk_adamw_step *update, lk_error *err)
{
    lk_adapter *a = t->adapter;
    int64_t decayed = a->n_decayed;
    float by = 1.0f - update->lr * update->weight_decay;
    bool apart = update->weight_decay > 0.0f && has_frozen(a), behind = t->optim.kind == LK_ADAMW_8BIT;
    if (apart) update->weight_decay = 0.0f;
    if (apart && !behind) LK_TRY(lk_adapter_decay(a, by, err));
    LK_TRY(lk_adamw_state_update_part(&t->optim, a->weights, t->grads, 0, decayed, update, err));
    if (apart && behind) LK_TRY(lk_adapter_decay(a, by, err));
    update->weight_decay = 0.0f;
    return lk_adamw_state_update_part(&t->optim, a->weights, t->grads, decayed, a->n_params - decayed, update, err);
}

lk_status lk_trainer_step(lk_trainer *t, const lk_micro_batch *const *micro, int n_micro, int64_t step, double lr, lk_step_result *result,
                          lk_error *err)
{
    lk_backend *be = t->model->be;
    const lk_trainer_options *o = &t->options;
    *result = (lk_step_result){0};
    for (int i = 0; i < n_micro; i++) {
        result->tokens += micro[i]->batch.n_tokens;
        result->supervised += micro[i]->supervised;
    }
    if (result->supervised == 0) return lk_fail(err, LK_ERR_FORMAT, "step %lld has no supervised token", (long long)step + 1);
    lk_status status = lk_zero(be, t->grads, (size_t)t->adapter->n_params * sizeof(float));
    if (status) return lk_backend_fail(be, status, err);
    double total = 0.0;
    lk_dropout dropout = {.p = (float)o->dropout, .key = lk_philox_key_make(o->seed, LK_STREAM_DROPOUT)};
    for (int i = lk_ranks_rank(o->ranks); i < n_micro; i += lk_ranks_size(o->ranks)) {
        dropout.counter = (uint64_t)step << 20 | (uint64_t)i; /* a step has at most 65536 micro-batches */
        LK_TRY(accumulate(t, micro[i], o->dropout > 0 ? &dropout : NULL, (float)(1.0 / (double)result->supervised), &total, err));
    }
    LK_TRY(lk_adapter_mask(t->adapter, t->grads, err));
    LK_TRY(lk_ranks_sum_doubles(o->ranks, &total, 1, err));
    if ((status = lk_all_reduce(be, t->grads, t->adapter->n_params))) return lk_backend_fail(be, status, err);
    result->loss = total / (double)result->supervised;
    float scale = 1.0f;
    LK_TRY(lk_clip_norm(be, t->grads, t->adapter->n_params, o->clip, &result->grad_norm, &scale, err));
    if (!isfinite(result->loss) || !isfinite(result->grad_norm))
        return lk_fail(err, LK_ERR_FORMAT,
                       "step %lld: loss %g with gradient norm %g: training has diverged. A lower optim.lr or a longer warm-up helps most",
                       (long long)step + 1, result->loss, result->grad_norm);
    lk_adamw_step update = {.lr = (float)lr,
                            .beta1 = (float)o->beta1,
                            .beta2 = (float)o->beta2,
                            .eps = (float)o->eps,
                            .weight_decay = (float)o->weight_decay,
                            .step = step + 1,
                            .grad_scale = scale};
    LK_TRY(apply(t, &update, err));
    return lk_adapter_refresh(t->adapter, err);
}
