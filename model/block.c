#include "model/block.h"

/* y = x W^T (+ bias) (+ residual), plus the adapters of the batch. */
static lk_status linear(const lk_block_context *c, int64_t layer, lk_module m, const lk_tensor *y, const lk_tensor *x, const lk_tensor *h,
                        const lk_tensor *residual)
{
    lk_backend *be = c->model->be;
    int32_t site = lk_site_of(&c->model->config, layer, m, -1);
    const lk_weight *weight = &c->model->weights[site];
    if (!c->batch->n_segments) return lk_linear(be, y, x, weight->w, weight->bias, residual);
    return lk_linear_lora(be, c->batch, site, y, x, weight->w, weight->bias, residual, h, c->dropout);
}

/* The same for layers that share their input. */
static lk_status linears(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_tensor *x, int n, const lk_module modules[],
                         const lk_tensor *const y[])
{
    lk_part parts[LK_MOST_PARTS];
    for (int i = 0; i < n; i++) {
        int32_t site = lk_site_of(&c->model->config, layer, modules[i], -1);
        const lk_weight *weight = &c->model->weights[site];
        parts[i] = (lk_part){.w = weight->w, .bias = weight->bias, .site = site, .y = *y[i], .h = b->h[modules[i]]};
    }
    return lk_linear_parts(c->model->be, c->batch, parts, n, x, c->dropout);
}

/* A [T, heads*D] tensor as [T*heads, D]: the per-head norms see each head as a row. */
static lk_tensor by_head(const lk_tensor *x, int64_t head_dim)
{
    return lk_tensor_make(x->data, x->type, x->rows * (x->cols / head_dim), head_dim);
}

static lk_status head_norm(const lk_block_context *c, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight)
{
    lk_tensor heads_y = by_head(y, c->model->config.head_dim), heads_x = by_head(x, c->model->config.head_dim);
    return lk_rmsnorm(c->model->be, &heads_y, rstd, &heads_x, weight, c->model->config.rms_eps);
}

static lk_status head_norm_backward(const lk_block_context *c, const lk_tensor *dx, const lk_tensor *x, const float *weight,
                                    const float *rstd)
{
    lk_tensor heads_d = by_head(dx, c->model->config.head_dim), heads_x = by_head(x, c->model->config.head_dim);
    return lk_rmsnorm_backward(c->model->be, &heads_d, &heads_d, &heads_x, weight, rstd, false);
}

static lk_attention_shape attention_shape(const lk_config *config)
{
    return (lk_attention_shape){.heads = config->heads,
                                .kv_heads = config->kv_heads,
                                .head_dim = config->head_dim,
                                .scale = 1.0f / __builtin_sqrtf((float)config->head_dim),
                                .window = config->window};
}

static lk_status attend(const lk_block_context *c, int64_t layer, const lk_block *b)
{
    lk_backend *be = c->model->be;
    lk_attention_shape shape = attention_shape(&c->model->config);
    if (!c->kv) return lk_attention(be, c->batch, &shape, &b->o, b->lse, &b->q, &b->k, &b->v);
    LK_TRY(lk_kv_write(be, c->batch, c->kv, (int32_t)layer, &b->k, &b->v));
    return lk_paged_attention(be, c->batch, &shape, &b->o, &b->q, c->kv, (int32_t)layer);
}

lk_status lk_block_forward(const lk_block_context *c, int64_t layer, const lk_block *b, bool skip_output)
{
    const lk_model *model = c->model;
    const lk_config *config = &model->config;
    const lk_layer *l = &model->layers[layer];
    lk_backend *be = model->be;

    LK_TRY(lk_rmsnorm(be, &b->normed, b->attn_rstd, &b->x_in, l->attn_norm, config->rms_eps));
    LK_TRY(linears(c, layer, b, &b->normed, 3, (const lk_module[]){LK_Q, LK_K, LK_V}, (const lk_tensor *[]){&b->q_raw, &b->k_raw, &b->v}));
    if (config->qk_norm) {
        LK_TRY(head_norm(c, &b->q, b->q_rstd, &b->q_raw, l->q_norm));
        LK_TRY(head_norm(c, &b->k, b->k_rstd, &b->k_raw, l->k_norm));
    }
    LK_TRY(lk_rope(be, &b->q, config->heads, c->cos_sin, false));
    LK_TRY(lk_rope(be, &b->k, config->kv_heads, c->cos_sin, false));
    LK_TRY(attend(c, layer, b));
    LK_TRY(linear(c, layer, LK_O, &b->x_mid, &b->o, &b->h[LK_O], &b->x_in));

    LK_TRY(lk_rmsnorm(be, &b->normed, b->mlp_rstd, &b->x_mid, l->mlp_norm, config->rms_eps));
    LK_TRY(linears(c, layer, b, &b->normed, 2, (const lk_module[]){LK_GATE, LK_UP}, (const lk_tensor *[]){&b->gate, &b->up}));
    LK_TRY(lk_glu(be, &b->act, &b->gate, &b->up, LK_SILU));
    if (skip_output) {
        /* Backward still wants LoRA's inner activations of the last layer; x_out takes the useless expansion. */
        if (!c->batch->n_segments) return LK_OK;
        return lk_lora_forward(be, c->batch, lk_site_of(config, layer, LK_DOWN, -1), &b->x_out, &b->act, &b->h[LK_DOWN], c->dropout);
    }
    return linear(c, layer, LK_DOWN, &b->x_out, &b->act, &b->h[LK_DOWN], &b->x_mid);
}

/* dx (+)= dy W and the adapters' three gradients. dx NULL: only the adapters' own. */
static lk_status linear_backward(const lk_block_context *c, int64_t layer, lk_module m, const lk_tensor *dx, const lk_tensor *dy,
                                 const lk_tensor *x, const lk_tensor *h, bool accumulate)
{
    lk_backend *be = c->model->be;
    int32_t site = lk_site_of(&c->model->config, layer, m, -1);
    const lk_matrix *w = c->model->weights[site].w;
    if (!c->batch->n_segments) return dx ? lk_linear_backward(be, dx, dy, w, accumulate) : LK_OK;
    return lk_linear_lora_backward(be, c->batch, site, dx, dy, w, x, h, accumulate, c->dropout);
}

/* `gap` elements stay free behind each row, as lk_linear_lora_backward likes it. */
static lk_tensor narrow(const lk_tensor *wide, int64_t cols, int64_t gap)
{
    return (lk_tensor){wide->data, wide->type, wide->rows, cols, cols + gap};
}

static lk_status mlp_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx)
{
    const lk_layer *l = &c->model->layers[layer];
    lk_backend *be = c->model->be;
    lk_tensor act = narrow(&g->wide[0], c->model->config.intermediate, g->gap);
    lk_tensor dact = narrow(&g->wide[1], c->model->config.intermediate, g->gap);
    LK_TRY(lk_rmsnorm(be, &b->normed, NULL, &b->x_mid, l->mlp_norm, c->model->config.rms_eps));
    LK_TRY(lk_glu(be, &act, &b->gate, &b->up, LK_SILU));
    LK_TRY(linear_backward(c, layer, LK_DOWN, &dact, dx, &act, &b->h[LK_DOWN], false));
    LK_TRY(lk_glu_backward(be, &b->gate, &b->up, &dact, &b->gate, &b->up, LK_SILU));
    LK_TRY(linear_backward(c, layer, LK_GATE, &g->dnormed, &b->gate, &b->normed, &b->h[LK_GATE], false));
    LK_TRY(linear_backward(c, layer, LK_UP, &g->dnormed, &b->up, &b->normed, &b->h[LK_UP], true));
    return lk_rmsnorm_backward(be, dx, &g->dnormed, &b->x_mid, l->mlp_norm, b->mlp_rstd, true);
}

static lk_status attention_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g,
                                    const lk_tensor *dx, bool need_dx)
{
    const lk_config *config = &c->model->config;
    const lk_layer *l = &c->model->layers[layer];
    lk_backend *be = c->model->be;
    lk_attention_shape shape = attention_shape(config);
    lk_tensor dout = narrow(&g->wide[0], config->heads * config->head_dim, g->gap);
    lk_tensor dq = narrow(&g->wide[1], config->heads * config->head_dim, config->qk_norm ? 0 : g->gap); /* by_head wants none */
    LK_TRY(linear_backward(c, layer, LK_O, &dout, dx, &b->o, &b->h[LK_O], false));
    LK_TRY(lk_attention_backward(be, c->batch, &shape, &dq, &g->dk, &g->dv, &dout, &b->o, b->lse, &b->q, &b->k, &b->v));
    LK_TRY(lk_rope(be, &dq, config->heads, c->cos_sin, true));
    LK_TRY(lk_rope(be, &g->dk, config->kv_heads, c->cos_sin, true));
    if (config->qk_norm) {
        LK_TRY(head_norm_backward(c, &dq, &b->q_raw, l->q_norm, b->q_rstd));
        LK_TRY(head_norm_backward(c, &g->dk, &b->k_raw, l->k_norm, b->k_rstd));
    }
    LK_TRY(lk_rmsnorm(be, &b->normed, NULL, &b->x_in, l->attn_norm, config->rms_eps));
    const lk_tensor *dnormed = need_dx ? &g->dnormed : NULL;
    LK_TRY(linear_backward(c, layer, LK_Q, dnormed, &dq, &b->normed, &b->h[LK_Q], false));
    LK_TRY(linear_backward(c, layer, LK_K, dnormed, &g->dk, &b->normed, &b->h[LK_K], true));
    LK_TRY(linear_backward(c, layer, LK_V, dnormed, &g->dv, &b->normed, &b->h[LK_V], true));
    if (!need_dx) return LK_OK;
    return lk_rmsnorm_backward(be, dx, &g->dnormed, &b->x_in, l->attn_norm, b->attn_rstd, true);
}

lk_status lk_block_backward(const lk_block_context *c, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx,
                            bool need_dx)
{
    LK_TRY(mlp_backward(c, layer, b, g, dx));
    return attention_backward(c, layer, b, g, dx, need_dx);
}
