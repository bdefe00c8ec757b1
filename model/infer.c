/* The serving forward: one step over a mixed batch of prefill chunks and decodes, over paged keys and values. Nothing is kept for a
 * backward, so most buffers are shared: the block's output goes back into its input, the gated product into the gate.
 *
 * A step of decoding alone (one token of each sequence, all logits wanted) comes again and again. Where the backend records, its rows are
 * padded to one of a few numbers and it runs as a recorded step (lk_step_begin); a row's bits do not depend on the others. */
#include "model/transformer.h"

#include <stdlib.h>
#include <string.h>

#include "model/adapted.h"
#include "model/block.h"
#include "model/carve.h"

struct lk_infer {
    const lk_model *model;
    lk_infer_options options;
    void *memory;
    lk_block block;
    lk_positions positions;
    lk_routing routing;
    lk_expert_groups groups;
    lk_tensor rows, logits;
    int32_t *padded_ids, *padded_positions, *padded_wanted; /* host, [padded_rows(most)] of a padded step */
    int64_t recorded;
};

/* What every sequence may become: fixes the frequencies of RoPE kinds that ask (model/rotary.h). */
static int64_t longest(const lk_infer_options *o) { return o->max_context > 0 ? o->max_context : 1; }

/* Rows of a recorded step of n tokens. Steps grow with n, so that at most a third of the rows is padding. A buffer's end is a size too. */
static int64_t padded_rows(const lk_infer *f, int64_t n)
{
    int64_t most = f->options.max_tokens < f->options.max_rows ? f->options.max_tokens : f->options.max_rows;
    int64_t by = n <= 2 ? 1 : n <= 4 ? 2 : n <= 8 ? 4 : n <= 64 ? 8 : n <= 128 ? 16 : n <= 256 ? 32 : 64;
    int64_t padded = (n + by - 1) / by * by;
    return padded < most ? padded : most;
}

int64_t lk_infer_padded(const lk_infer *f, int64_t n) { return padded_rows(f, n); }
int64_t lk_infer_recorded(const lk_infer *f) { return f->recorded; }

static void carve(lk_infer *f, lk_carve *c, const lk_backend *be, const lk_config *m)
{
    lk_dtype act = lk_backend_act(be);
    int64_t T = f->options.max_tokens, R = f->options.max_rows;
    int64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    lk_block *b = &f->block;
    b->x_in = b->x_out = lk_carve_tensor(c, act, T, m->hidden);
    b->x_mid = lk_carve_tensor(c, act, T, m->hidden);
    b->normed = lk_carve_tensor(c, act, T, m->hidden);
    b->attn_out = b->x_mid;
    b->mlp_out = b->x_out;
    if (m->fused) {
        b->qkv = lk_carve_tensor(c, act, T, q + 2 * kv);
        b->q = lk_tensor_columns(&b->qkv, 0, q);
        b->k = lk_tensor_columns(&b->qkv, q, kv);
        b->v = lk_tensor_columns(&b->qkv, q + kv, kv);
        b->gate_up = lk_carve_tensor(c, act, T, 2 * m->intermediate);
        b->gate = lk_tensor_columns(&b->gate_up, 0, m->intermediate);
        b->up = lk_tensor_columns(&b->gate_up, m->intermediate, m->intermediate);
    } else {
        b->q = lk_carve_tensor(c, act, T, q);
        b->k = lk_carve_tensor(c, act, T, kv);
        b->v = lk_carve_tensor(c, act, T, kv);
        if (lk_mlp_width(m)) b->gate = lk_carve_tensor(c, act, T, lk_mlp_width(m));
        if (lk_mlp_width(m)) b->up = lk_carve_tensor(c, act, T, lk_mlp_width(m));
    }
    lk_experts_carve(&b->experts, c, m, act, T, f->options.max_rank, false);
    lk_expert_groups_carve(&f->groups, c, be, m, T);
    b->q_raw = b->q;
    b->k_raw = b->k;
    b->act = b->gate;
    b->o = lk_carve_tensor(c, act, T, q);
    lk_tensor h = lk_carve_tensor(c, LK_F32, T, f->options.max_rank > 0 ? f->options.max_rank : 1);
    for (int i = 0; i < LK_N_MODULES; i++) b->h[i] = h;
    lk_positions_carve(&f->positions, c, m, T);
    f->rows = lk_carve_tensor(c, act, R, m->hidden);
    f->logits = lk_carve_tensor(c, LK_F32, R, m->vocab);
}

static lk_limits infer_limits(const lk_config *m, const lk_infer_options *o)
{
    return (lk_limits){.tokens = o->max_tokens > o->max_rows ? o->max_tokens : o->max_rows,
                       .slots = o->max_tokens * m->experts_used,
                       .width = lk_config_widest(m),
                       .vocab = m->vocab,
                       .matrix = lk_config_largest_matrix(m),
                       .rank = o->max_rank,
                       .heads = m->heads,
                       .kv_heads = m->kv_heads,
                       .head_dim = m->head_dim,
                       .context = o->max_context,
                       .serving = true,
                       .adapters = o->max_rank > 0 ? o->max_rows : 0,
                       .sites = lk_sites(m)};
}

size_t lk_infer_bytes(const lk_backend *be, const lk_config *config, const lk_infer_options *options)
{
    lk_infer f = {.options = *options};
    lk_carve count = {0};
    carve(&f, &count, be, config);
    lk_limits limits = infer_limits(config, options);
    return count.used + lk_scratch_bytes(be, &limits);
}

lk_status lk_infer_create(lk_infer **out, const lk_model *model, const lk_infer_options *options, lk_error *err)
{
    *out = NULL;
    lk_backend *be = model->be;
    if (options->max_tokens < 1 || options->max_rows < 1)
        return lk_fail(err, LK_ERR_ARGUMENT, "an inference step needs room for at least one token and one row");
    lk_infer *f = calloc(1, sizeof *f);
    if (!f) return lk_fail(err, LK_ERR_MEMORY, "no memory for inference");
    f->model = model;
    f->options = *options;
    lk_carve count = {0};
    carve(f, &count, be, &model->config);
    lk_limits limits = infer_limits(&model->config, options);
    lk_status status = lk_alloc(be, count.used, &f->memory);
    if (!status) {
        carve(f, &(lk_carve){.base = f->memory}, be, &model->config);
        status = lk_reserve(be, &limits);
        lk_status made = status ? LK_OK : lk_routing_init(&f->routing, &model->config, options->max_tokens, err);
        if (!status && !made) made = lk_expert_groups_prepare(&f->groups, model, err);
        if (made) {
            lk_infer_destroy(f);
            return made;
        }
        if (!status) status = lk_positions_prepare(&f->positions, model, longest(options));
    }
    size_t most = (size_t)padded_rows(f, INT32_MAX);
    f->padded_ids = calloc(most, sizeof *f->padded_ids);
    f->padded_positions = calloc(most, sizeof *f->padded_positions);
    f->padded_wanted = calloc(most, sizeof *f->padded_wanted);
    if (!status && !(f->padded_ids && f->padded_positions && f->padded_wanted)) {
        lk_infer_destroy(f);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for inference");
    }
    if (status) {
        lk_backend_fail(be, status, err);
        lk_infer_destroy(f);
        return status;
    }
    *out = f;
    return LK_OK;
}

void lk_infer_destroy(lk_infer *f)
{
    if (!f) return;
    lk_step_forget(f->model->be);
    lk_free(f->model->be, f->memory);
    lk_routing_free(&f->routing);
    lk_expert_groups_free(&f->groups);
    free(f->padded_ids);
    free(f->padded_positions);
    free(f->padded_wanted);
    free(f);
}

/* The operations of a step over the rows of the batch and its padding. */
static lk_status operations(lk_infer *f, const lk_batch *batch, lk_kv *kv, bool experts_adapted)
{
    const lk_model *model = f->model;
    lk_backend *be = model->be;
    int64_t R = batch->n_rows;
    lk_block b = lk_block_rows(&f->block, batch->n_tokens + batch->padding);
    lk_tensor last = lk_tensor_rows(&f->rows, 0, R), logits = lk_tensor_rows(&f->logits, 0, R);
    lk_block_context c = {.model = model,
                          .batch = batch,
                          .positions = &f->positions,
                          .kv = kv,
                          .routing = &f->routing,
                          .groups = &f->groups,
                          .experts_adapted = experts_adapted};
    LK_TRY(lk_positions_fill(&f->positions, model, batch, longest(&f->options)));
    LK_TRY(lk_adapted_embed(model, batch, &b.x_in, &b.normed, &b.h[LK_O]));
    if (model->config.embedding_scale != 0.0) LK_TRY(lk_scale(be, &b.x_in, &b.x_in, (float)model->config.embedding_scale));
    for (int64_t layer = 0; layer < model->config.layers; layer++) LK_TRY(lk_block_forward(&c, layer, &b, false));
    if (R == 0) return LK_OK;
    LK_TRY(lk_gather_rows(be, &last, &b.x_out, batch->rows));
    LK_TRY(lk_rmsnorm(be, &last, NULL, &last, model->final_norm, model->config.rms_eps));
    LK_TRY(lk_adapted_head(model, batch, &logits, &last, batch->rows, 0, &b.h[LK_O]));
    return model->config.logit_cap != 0.0 ? lk_cap(be, &logits, (float)model->config.logit_cap) : LK_OK;
}

/* What tells steps apart whose operations or tensors differ, beside their rows: whose buffers, which cache, adapters or none. */
static uint64_t step_key(const lk_infer *f, const lk_kv *kv, bool adapted)
{
    const uint64_t parts[] = {(uintptr_t)f, (uintptr_t)kv, adapted};
    uint64_t key = 14695981039346656037u; /* FNV-1a, by words */
    for (int i = 0; i < 3; i++) key = (key ^ parts[i]) * 1099511628211u;
    return key;
}

static lk_status recorded_step(lk_infer *f, lk_batch *batch, lk_kv *kv)
{
    lk_backend *be = f->model->be;
    int64_t n = batch->n_tokens, padded = padded_rows(f, n);
    size_t bytes = (size_t)n * sizeof(int32_t), behind = (size_t)(padded - n) * sizeof(int32_t);
    memcpy(f->padded_ids, batch->ids, bytes);
    memcpy(f->padded_positions, batch->positions, bytes);
    memcpy(f->padded_wanted, batch->rows, bytes);
    memset(f->padded_ids + n, 0, behind);
    memset(f->padded_positions + n, 0, behind);
    memset(f->padded_wanted + n, 0, behind);
    batch->padding = padded - n;
    batch->ids = f->padded_ids;
    batch->positions = f->padded_positions;
    batch->rows = f->padded_wanted;
    batch->n_rows = padded;
    bool queued;
    LK_TRY(lk_batch_begin(be, batch));
    LK_TRY(lk_step_begin(be, step_key(f, kv, batch->n_segments > 0), &queued));
    if (queued) return LK_OK;
    f->recorded++;
    lk_status status = operations(f, batch, kv, false), ended = lk_step_end(be);
    return status ? status : ended;
}

static lk_status step(lk_infer *f, const lk_batch *given, lk_kv *kv, const int32_t *rows, int64_t n_rows, lk_tensor *logits)
{
    lk_batch batch = *given;
    batch.rows = rows;
    batch.n_rows = n_rows;
    *logits = lk_tensor_rows(&f->logits, 0, n_rows);
    bool decoding = batch.n_sequences == batch.n_tokens && n_rows == batch.n_tokens;
    bool adapted = lk_expert_groups_adapted(&f->groups, &batch);
    /* Else what a router answers, or an adapter's own bias or embedding, decides which operations follow. */
    bool fixed = (!f->model->config.experts || (lk_expert_groups_whole(&f->groups, f->model) && !adapted)) && lk_adapted_plain(&batch);
    if (decoding && fixed && !f->options.eager && lk_backend_records(f->model->be)) return recorded_step(f, &batch, kv);
    LK_TRY(lk_batch_begin(f->model->be, &batch));
    return operations(f, &batch, kv, adapted);
}

lk_status lk_infer_forward(lk_infer *f, const lk_batch *batch, lk_kv *kv, const int32_t *rows, int64_t n_rows, lk_tensor *logits,
                           lk_error *err)
{
    if (batch->n_tokens < 1 || batch->n_tokens > f->options.max_tokens || n_rows < 0 || n_rows > f->options.max_rows)
        return lk_fail(err, LK_ERR_INTERNAL, "a step of %lld tokens and %lld rows does not fit the planned %lld and %lld",
                       (long long)batch->n_tokens, (long long)n_rows, (long long)f->options.max_tokens, (long long)f->options.max_rows);
    for (int64_t t = 0; t < batch->n_tokens; t++)
        if (batch->ids[t] < (lk_backend_ahead(f->model->be) ? lk_drawn(f->options.max_rows - 1) : 0) ||
            batch->ids[t] >= f->model->config.vocab)
            return lk_fail(err, LK_ERR_FORMAT, "token id %d is outside the model's vocabulary of %lld", batch->ids[t],
                           (long long)f->model->config.vocab);
    lk_status status = step(f, batch, kv, rows, n_rows, logits);
    return status ? lk_backend_fail(f->model->be, status, err) : LK_OK;
}

lk_kv_shape lk_infer_kv_shape(const lk_model *model, int32_t page_tokens, int32_t n_pages)
{
    const lk_config *c = &model->config;
    return (lk_kv_shape){.n_layers = (int32_t)c->layers,
                         .kv_heads = (int32_t)c->kv_heads,
                         .head_dim = (int32_t)c->head_dim,
                         .page_tokens = page_tokens,
                         .n_pages = n_pages,
                         .type = lk_backend_compute(model->be)};
}
