#include "model/block.h"

#include "model/adapted.h"

lk_block lk_block_rows(const lk_block *block, int64_t T)
{
    lk_block b = *block;
    lk_tensor *all[] = {&b.x_in,     &b.normed, &b.qkv,     &b.q_raw, &b.k_raw, &b.q,   &b.k,       &b.v,    &b.o,
                        &b.attn_out, &b.x_mid,  &b.gate_up, &b.gate,  &b.up,    &b.act, &b.mlp_out, &b.x_out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->data) *all[i] = lk_tensor_rows(all[i], 0, T);
    for (int i = 0; i < LK_N_MODULES; i++)
        if (b.h[i].data) b.h[i] = lk_tensor_rows(&b.h[i], 0, T);
    lk_experts_block *x = &b.experts;
    if (!x->logits.data) return b;
    lk_tensor *by_slot[] = {&x->rows, &x->gate, &x->up, &x->act, &x->out, &x->h[0], &x->h[1], &x->h[2]};
    int64_t slots = T * x->weights.cols;
    x->logits = lk_tensor_rows(&x->logits, 0, T);
    x->weights = lk_tensor_rows(&x->weights, 0, T);
    x->h_router = lk_tensor_rows(&x->h_router, 0, T);
    for (size_t i = 0; i < sizeof by_slot / sizeof *by_slot; i++) *by_slot[i] = lk_tensor_rows(by_slot[i], 0, slots);
    return b;
}

static const lk_config *config_of(const lk_block_context *c) { return &c->model->config; }

static const float *norm_of(const lk_block_context *c, int64_t layer, lk_norm norm) { return c->model->layers[layer].norm[norm]; }

/* ---------------------------------------------------------------------------------------------- forward */

/* y = x W^T (+ bias) (+ residual), plus the adapters of the batch. */
static lk_status linear(const lk_block_context *c, int64_t layer, lk_module m, const lk_tensor *y, const lk_tensor *x, const lk_tensor *h,
                        const lk_tensor *residual)
{
    return lk_adapted_linear(c->model, c->batch, lk_site_of(config_of(c), layer, m, -1), y, x, residual, h, c->spare, c->dropout);
}

/* The same for layers that share their input. */
static lk_status linears(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_tensor *x, int n, const lk_module modules[],
                         const lk_tensor *const y[])
{
    lk_part parts[LK_MOST_PARTS];
    for (int i = 0; i < n; i++) {
        int32_t site = lk_site_of(config_of(c), layer, modules[i], -1);
        const lk_weight *weight = &c->model->weights[site];
        parts[i] = (lk_part){.w = weight->w, .bias = weight->bias, .site = site, .y = *y[i], .h = b->h[modules[i]]};
    }
    return lk_adapted_parts(c->model, c->batch, parts, n, x, c->spare, c->dropout);
}

static lk_status query_key_value(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_tensor *x)
{
    if (config_of(c)->fused) return linears(c, layer, b, x, 1, (const lk_module[]){LK_QKV}, (const lk_tensor *[]){&b->qkv});
    return linears(c, layer, b, x, 3, (const lk_module[]){LK_Q, LK_K, LK_V}, (const lk_tensor *[]){&b->q_raw, &b->k_raw, &b->v});
}

static lk_status gate_and_up(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_tensor *x)
{
    if (config_of(c)->fused) return linears(c, layer, b, x, 1, (const lk_module[]){LK_GATE_UP}, (const lk_tensor *[]){&b->gate_up});
    return linears(c, layer, b, x, 2, (const lk_module[]){LK_GATE, LK_UP}, (const lk_tensor *[]){&b->gate, &b->up});
}

/* What attention or MLP reads: x normalised into b->normed, or x itself where the family has no norm there. */
static lk_status enter(const lk_block_context *c, int64_t layer, lk_norm norm, const lk_block *b, float *rstd, const lk_tensor *x,
                       const lk_tensor **in)
{
    const float *weight = norm_of(c, layer, norm);
    *in = weight ? &b->normed : x;
    return weight ? lk_rmsnorm(c->model->be, &b->normed, rstd, x, weight, config_of(c)->rms_eps) : LK_OK;
}

/* How attention or MLP ends. */
typedef struct ending {
    lk_module module; /* its last layer */
    lk_norm norm;     /* behind it */
    const lk_tensor *x, *h, *residual, *raw, *out;
    float *rstd;
} ending;

/* out = residual + scale * norm(W x). skip: out is not wanted; backward still wants LoRA's inner activations, and the product where a norm
 * stands behind it. */
static lk_status leave(const lk_block_context *c, int64_t layer, const ending *e, bool skip)
{
    lk_backend *be = c->model->be;
    const lk_config *config = config_of(c);
    const float *weight = norm_of(c, layer, e->norm);
    if (skip && !weight) {
        if (!c->batch->n_segments) return LK_OK;
        return lk_lora_forward(be, c->batch, lk_site_of(config, layer, e->module, -1), e->out, e->x, e->h, c->dropout);
    }
    if (!weight && config->residual_scale == 0.0) return linear(c, layer, e->module, e->out, e->x, e->h, e->residual);
    LK_TRY(linear(c, layer, e->module, weight ? e->raw : e->out, e->x, e->h, NULL));
    if (skip) return lk_rmsnorm(be, e->out, e->rstd, e->raw, weight, config->rms_eps); /* for rstd */
    if (weight) LK_TRY(lk_rmsnorm(be, e->out, e->rstd, e->raw, weight, config->rms_eps));
    if (config->residual_scale != 0.0) LK_TRY(lk_scale(be, e->out, e->out, (float)config->residual_scale));
    return lk_add(be, e->out, e->residual);
}

/* Queries or keys as their norm sees them: each head a row, or the whole. */
static lk_tensor norm_rows(const lk_block_context *c, const lk_tensor *x)
{
    int64_t D = config_of(c)->head_dim;
    if (config_of(c)->qk_norm == LK_QK_WHOLE) return *x;
    return lk_tensor_make(x->data, x->type, x->rows * (x->cols / D), D);
}

static lk_status qk_norm(const lk_block_context *c, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight)
{
    lk_tensor rows_y = norm_rows(c, y), rows_x = norm_rows(c, x);
    return lk_rmsnorm(c->model->be, &rows_y, rstd, &rows_x, weight, config_of(c)->rms_eps);
}

static lk_status qk_norm_backward(const lk_block_context *c, const lk_tensor *dx, const lk_tensor *x, const float *weight,
                                  const float *rstd)
{
    lk_tensor rows_d = norm_rows(c, dx), rows_x = norm_rows(c, x);
    return lk_rmsnorm_backward(c->model->be, &rows_d, &rows_d, &rows_x, weight, rstd, false);
}

static lk_status rotate(const lk_block_context *c, int64_t layer, const lk_tensor *q, const lk_tensor *k, bool backward)
{
    const lk_config *config = config_of(c);
    lk_tensor table;
    if (!lk_positions_of(c->positions, config, layer, q->rows, &table)) return LK_OK;
    LK_TRY(lk_rope(c->model->be, q, config->heads, &table, backward));
    return lk_rope(c->model->be, k, config->kv_heads, &table, backward);
}

static lk_attention_shape attention_shape(const lk_config *config, int64_t layer)
{
    float scale = config->attention_scale > 0.0 ? (float)config->attention_scale : 1.0f / __builtin_sqrtf((float)config->head_dim);
    return (lk_attention_shape){.heads = config->heads,
                                .kv_heads = config->kv_heads,
                                .head_dim = config->head_dim,
                                .scale = scale,
                                .window = lk_layer_window(config, layer),
                                .cap = (float)config->attention_cap};
}

/* Rotates queries and keys, and attends. */
static lk_status attend(const lk_block_context *c, int64_t layer, const lk_block *b)
{
    lk_backend *be = c->model->be;
    const lk_config *config = config_of(c);
    lk_attention_shape shape = attention_shape(config, layer);
    if (!c->kv) {
        LK_TRY(rotate(c, layer, &b->q, &b->k, false));
        return lk_attention(be, c->batch, &shape, &b->o, b->lse, &b->q, &b->k, &b->v);
    }
    lk_tensor table;
    if (lk_positions_of(c->positions, config, layer, b->q.rows, &table))
        LK_TRY(lk_rope_kv_write(be, c->batch, c->kv, (int32_t)layer, config->heads, &b->q, &b->k, &b->v, &table));
    else
        LK_TRY(lk_kv_write(be, c->batch, c->kv, (int32_t)layer, &b->k, &b->v));
    return lk_paged_attention(be, c->batch, &shape, &b->o, &b->q, c->kv, (int32_t)layer);
}

static lk_status attention_forward(const lk_block_context *c, int64_t layer, const lk_block *b)
{
    const lk_tensor *x;
    LK_TRY(enter(c, layer, LK_NORM_ATTENTION, b, b->attn_rstd, &b->x_in, &x));
    LK_TRY(query_key_value(c, layer, b, x));
    if (config_of(c)->qk_norm) {
        LK_TRY(qk_norm(c, &b->q, b->q_rstd, &b->q_raw, norm_of(c, layer, LK_NORM_Q)));
        LK_TRY(qk_norm(c, &b->k, b->k_rstd, &b->k_raw, norm_of(c, layer, LK_NORM_K)));
    }
    LK_TRY(attend(c, layer, b));
    ending e = {LK_O, LK_NORM_ATTENTION_OUT, &b->o, &b->h[LK_O], &b->x_in, &b->attn_out, &b->x_mid, b->attn_out_rstd};
    return leave(c, layer, &e, false);
}

static lk_experts_call experts_call(const lk_block_context *c, int64_t layer)
{
    return (lk_experts_call){.model = c->model,
                             .batch = c->batch,
                             .dropout = c->dropout,
                             .routing = c->routing,
                             .layer = layer,
                             .groups = c->groups,
                             .adapted = c->experts_adapted};
}

static lk_status mlp_forward(const lk_block_context *c, int64_t layer, const lk_block *b, bool skip_output)
{
    const lk_tensor *x;
    LK_TRY(enter(c, layer, LK_NORM_MLP, b, b->mlp_rstd, &b->x_mid, &x));
    if (lk_layer_mixes(config_of(c), layer)) {
        lk_experts_call call = experts_call(c, layer);
        return lk_experts_forward(&call, &b->experts, skip_output ? NULL : &b->x_out, x, &b->x_mid);
    }
    LK_TRY(gate_and_up(c, layer, b, x));
    LK_TRY(lk_glu(c->model->be, &b->act, &b->gate, &b->up, config_of(c)->activation));
    ending e = {LK_DOWN, LK_NORM_MLP_OUT, &b->act, &b->h[LK_DOWN], &b->x_mid, &b->mlp_out, &b->x_out, b->mlp_out_rstd};
    return leave(c, layer, &e, skip_output);
}

lk_status lk_block_forward(const lk_block_context *c, int64_t layer, const lk_block *b, bool skip_output)
{
    LK_TRY(attention_forward(c, layer, b));
    return mlp_forward(c, layer, b, skip_output);
}

/* ---------------------------------------------------------------------------------------------- backward */

/* dx (+)= dy W and the adapters' three gradients. dx NULL: only the adapters' own. */
static lk_status linear_backward(const lk_block_context *c, int64_t layer, lk_module m, const lk_block_grads *g, const lk_tensor *dx,
                                 const lk_tensor *dy, const lk_tensor *x, const lk_tensor *h, bool accumulate)
{
    return lk_adapted_backward(c->model, c->batch, lk_site_of(config_of(c), layer, m, -1), dx, dy, x, h, g->spare, accumulate, c->dropout);
}

bool lk_block_has_branch(const lk_config *c) { return c->norms != LK_NORMS_BEFORE || c->residual_scale != 0.0; }

/* The gradient of what the last layer gave, from that of what was added: dx itself where nothing stands between. */
static lk_status leave_backward(const lk_block_context *c, int64_t layer, lk_norm norm, const lk_block_grads *g, const lk_tensor *dx,
                                const lk_tensor *raw, const float *rstd, const lk_tensor **dy)
{
    const float *weight = norm_of(c, layer, norm);
    float scale = (float)config_of(c)->residual_scale;
    *dy = dx;
    if (scale != 0.0f) {
        LK_TRY(lk_scale(c->model->be, &g->dbranch, dx, scale));
        *dy = &g->dbranch;
    }
    if (!weight) return LK_OK;
    LK_TRY(lk_rmsnorm_backward(c->model->be, &g->dbranch, *dy, raw, weight, rstd, false));
    *dy = &g->dbranch;
    return LK_OK;
}

/* dx += the gradient that comes out of attention or MLP (g->dnormed), through the norm before it. */
static lk_status enter_backward(const lk_block_context *c, int64_t layer, lk_norm norm, const lk_block_grads *g, const lk_tensor *dx,
                                const lk_tensor *x, const float *rstd)
{
    const float *weight = norm_of(c, layer, norm);
    if (!weight) return lk_add(c->model->be, dx, &g->dnormed);
    return lk_rmsnorm_backward(c->model->be, dx, &g->dnormed, x, weight, rstd, true);
}

/* `gap` elements stay free behind each row, as lk_linear_lora_backward likes it. */
static lk_tensor narrow(const lk_tensor *wide, int64_t cols, int64_t gap)
{
    return (lk_tensor){wide->data, wide->type, wide->rows, cols, cols + gap};
}

static lk_status mlp_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx)
{
    const lk_config *config = config_of(c);
    lk_backend *be = c->model->be;
    const lk_tensor *x, *dy;
    if (lk_layer_mixes(config, layer)) {
        lk_experts_call call = experts_call(c, layer);
        LK_TRY(enter(c, layer, LK_NORM_MLP, b, NULL, &b->x_mid, &x));
        LK_TRY(lk_experts_backward(&call, &b->experts, &g->experts, &g->dnormed, dx, x));
        return enter_backward(c, layer, LK_NORM_MLP, g, dx, &b->x_mid, b->mlp_rstd);
    }
    int64_t width = lk_mlp_width(config);
    lk_tensor act = narrow(&g->wide[0], width, g->gap), dact = narrow(&g->wide[1], width, g->gap);
    LK_TRY(leave_backward(c, layer, LK_NORM_MLP_OUT, g, dx, &b->mlp_out, b->mlp_out_rstd, &dy));
    LK_TRY(enter(c, layer, LK_NORM_MLP, b, NULL, &b->x_mid, &x));
    LK_TRY(lk_glu(be, &act, &b->gate, &b->up, config->activation));
    LK_TRY(linear_backward(c, layer, LK_DOWN, g, &dact, dy, &act, &b->h[LK_DOWN], false));
    LK_TRY(lk_glu_backward(be, &b->gate, &b->up, &dact, &b->gate, &b->up, config->activation));
    if (config->fused) {
        LK_TRY(linear_backward(c, layer, LK_GATE_UP, g, &g->dnormed, &b->gate_up, x, &b->h[LK_GATE_UP], false));
    } else {
        LK_TRY(linear_backward(c, layer, LK_GATE, g, &g->dnormed, &b->gate, x, &b->h[LK_GATE], false));
        LK_TRY(linear_backward(c, layer, LK_UP, g, &g->dnormed, &b->up, x, &b->h[LK_UP], true));
    }
    return enter_backward(c, layer, LK_NORM_MLP, g, dx, &b->x_mid, b->mlp_rstd);
}

/* Where the gradients of query, key and value go: columns of one tensor when one layer made them. */
static void qkv_gradients(const lk_config *config, const lk_block_grads *g, lk_tensor *dqkv, lk_tensor *dq, lk_tensor *dk, lk_tensor *dv)
{
    int64_t q = config->heads * config->head_dim, kv = config->kv_heads * config->head_dim;
    if (config->fused) {
        *dqkv = narrow(&g->wide[1], q + 2 * kv, g->gap);
        *dq = lk_tensor_columns(dqkv, 0, q);
        *dk = lk_tensor_columns(dqkv, q, kv);
        *dv = lk_tensor_columns(dqkv, q + kv, kv);
        return;
    }
    *dq = narrow(&g->wide[1], q, config->qk_norm == LK_QK_HEADS ? 0 : g->gap); /* norm_rows wants none */
    *dk = g->dk;
    *dv = g->dv;
}

static lk_status attention_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g,
                                    const lk_tensor *dx, bool need_dx)
{
    const lk_config *config = config_of(c);
    lk_backend *be = c->model->be;
    lk_attention_shape shape = attention_shape(config, layer);
    const lk_tensor *x, *dy, *dnormed = need_dx ? &g->dnormed : NULL;
    lk_tensor dout = narrow(&g->wide[0], config->heads * config->head_dim, g->gap), dqkv, dq, dk, dv;
    qkv_gradients(config, g, &dqkv, &dq, &dk, &dv);
    LK_TRY(leave_backward(c, layer, LK_NORM_ATTENTION_OUT, g, dx, &b->attn_out, b->attn_out_rstd, &dy));
    LK_TRY(linear_backward(c, layer, LK_O, g, &dout, dy, &b->o, &b->h[LK_O], false));
    LK_TRY(lk_attention_backward(be, c->batch, &shape, &dq, &dk, &dv, &dout, &b->o, b->lse, &b->q, &b->k, &b->v));
    LK_TRY(rotate(c, layer, &dq, &dk, true));
    if (config->qk_norm) {
        LK_TRY(qk_norm_backward(c, &dq, &b->q_raw, norm_of(c, layer, LK_NORM_Q), b->q_rstd));
        LK_TRY(qk_norm_backward(c, &dk, &b->k_raw, norm_of(c, layer, LK_NORM_K), b->k_rstd));
    }
    LK_TRY(enter(c, layer, LK_NORM_ATTENTION, b, NULL, &b->x_in, &x));
    if (config->fused) {
        LK_TRY(linear_backward(c, layer, LK_QKV, g, dnormed, &dqkv, x, &b->h[LK_QKV], false));
    } else {
        LK_TRY(linear_backward(c, layer, LK_Q, g, dnormed, &dq, x, &b->h[LK_Q], false));
        LK_TRY(linear_backward(c, layer, LK_K, g, dnormed, &dk, x, &b->h[LK_K], true));
        LK_TRY(linear_backward(c, layer, LK_V, g, dnormed, &dv, x, &b->h[LK_V], true));
    }
    return need_dx ? enter_backward(c, layer, LK_NORM_ATTENTION, g, dx, &b->x_in, b->attn_rstd) : LK_OK;
}

lk_status lk_block_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx,
                            bool need_dx)
{
    LK_TRY(mlp_backward(c, layer, b, g, dx));
    return attention_backward(c, layer, b, g, dx, need_dx);
}
