/* Forward, loss and backward of a training micro-batch, with gradient checkpointing.
 *
 * The last `kept` layers keep their activations, each in a slot of its own. Of the layers below, only the input is kept (the checkpoint):
 * the backward recomputes them one at a time in slot 0, which is free by then, and can leave out each one's last product. Recomputing in
 * groups would need fewer checkpoints, but that product for every layer of a group except its last: a checkpoint is a tenth of a layer's
 * activations, the product a quarter of its work. Normalised inputs and gated products are cheap and are remade instead of kept.
 *
 * Layer l reads inputs[l % n_inputs] up to the first kept one. Usually there is one for each; with offload there are three that take turns.
 * Then the forward sends layer l's input to the host while layer l + 1 computes, and has it gone before layer l + 2 writes its place. The
 * three that are last stay. In the backward, the place of layer l + 1's input is free while layer l computes: there comes that of l - 2. */
#include "model/transformer.h"

#include <stdlib.h>
#include <string.h>

#include "model/adapted.h"
#include "model/block.h"
#include "model/carve.h"

enum { RING = 3 };

struct lk_pass {
    const lk_model *model;
    lk_pass_options options;
    int64_t kept, first_kept; /* slots; the lowest layer that has one to itself (when not training: none, all share slot 0) */
    int64_t n_inputs, n_away; /* layer inputs on the device; in host memory */
    int64_t gap;              /* lk_row_gap: free elements behind the rows that go into or come out of adapted layers */
    void *memory;             /* one block of backend memory, carved */
    char *away;               /* [n_away] layer inputs in host memory */
    lk_tensor *inputs;
    lk_block *slots;
    lk_positions positions;
    lk_routing routing; /* and, where there are experts, the buffers that all layers share */
    lk_experts_block experts;
    lk_tensor x_final, normed, act, dx;
    float *final_rstd, *nll;
    uint8_t *hits;
    lk_block_grads grads;
};

/* Query, key and value of a fused layer lie in the columns of one tensor, without a gap that somebody would overwrite. */
static void carve_projections(lk_carve *c, lk_block *b, const lk_config *m, const lk_pass_options *o, lk_dtype act, int64_t gap)
{
    int64_t T = o->max_tokens, q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, F = lk_mlp_width(m);
    if (m->fused) {
        b->qkv = lk_carve_tensor(c, act, T, q + 2 * kv);
        b->q = lk_tensor_columns(&b->qkv, 0, q);
        b->k = lk_tensor_columns(&b->qkv, q, kv);
        b->v = lk_tensor_columns(&b->qkv, q + kv, kv);
        b->gate_up = lk_carve_gapped(c, act, T, 2 * F, gap);
        b->gate = lk_tensor_columns(&b->gate_up, 0, F);
        b->up = lk_tensor_columns(&b->gate_up, F, F);
        return;
    }
    b->q = lk_carve_tensor(c, act, T, q);
    b->k = lk_carve_tensor(c, act, T, kv);
    b->v = lk_carve_tensor(c, act, T, kv);
    if (!F) return; /* experts have their own */
    b->gate = lk_carve_gapped(c, act, T, F, gap);
    b->up = lk_carve_gapped(c, act, T, F, gap);
}

/* `first`: the slot's x_in is a checkpoint. */
static void carve_slot(lk_carve *c, lk_block *b, const lk_config *m, const lk_pass_options *o, lk_dtype act, int64_t gap, bool first)
{
    int64_t T = o->max_tokens, q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    if (!first) b->x_in = lk_carve_tensor(c, act, T, m->hidden);
    b->attn_rstd = lk_carve_floats(c, T);
    b->mlp_rstd = lk_carve_floats(c, T);
    carve_projections(c, b, m, o, act, gap);
    b->q_raw = b->q;
    b->k_raw = b->k;
    if (m->qk_norm) {
        b->q_raw = lk_carve_tensor(c, act, T, q);
        b->k_raw = lk_carve_tensor(c, act, T, kv);
        b->q_rstd = lk_carve_floats(c, T * (m->qk_norm == LK_QK_HEADS ? m->heads : 1));
        b->k_rstd = lk_carve_floats(c, T * (m->qk_norm == LK_QK_HEADS ? m->kv_heads : 1));
    }
    b->o = lk_carve_gapped(c, act, T, q, gap);
    b->lse = lk_carve_floats(c, T * m->heads);
    b->x_mid = lk_carve_tensor(c, act, T, m->hidden);
    if (m->norms != LK_NORMS_BEFORE) {
        b->attn_out = lk_carve_tensor(c, act, T, m->hidden);
        b->mlp_out = lk_carve_tensor(c, act, T, m->hidden);
        b->attn_out_rstd = lk_carve_floats(c, T);
        b->mlp_out_rstd = lk_carve_floats(c, T);
    }
    for (int i = 0; i < LK_N_MODULES; i++)
        if (lk_has_module(m, (lk_module)i) && i != LK_ROUTER && (lk_mlp_width(m) || i < LK_GATE || i > LK_DOWN))
            b->h[i] = lk_carve_tensor(c, LK_F32, T, o->max_rank > 0 ? o->max_rank : 1);
}

/* Fills pointers and tensors of p (whose inputs and slots arrays exist) from c; the three running totals are the plan. */
static void carve(lk_pass *p, lk_carve *c, const lk_config *m, lk_dtype act, lk_pass_plan *plan)
{
    const lk_pass_options *o = &p->options;
    int64_t T = o->max_tokens;
    for (int64_t i = 0; i < p->n_inputs; i++) p->inputs[i] = lk_carve_tensor(c, act, T, m->hidden);
    plan->checkpoints = c->used;
    for (int64_t i = 0; i < p->kept; i++) carve_slot(c, &p->slots[i], m, o, act, p->gap, i == 0);
    for (int64_t i = 0; i < p->kept; i++) lk_experts_carve(&p->slots[i].experts, c, m, act, T, o->max_rank, true);
    plan->activations = c->used - plan->checkpoints;
    lk_positions_carve(&p->positions, c, m, T);
    p->x_final = lk_carve_tensor(c, act, T, m->hidden);
    p->normed = lk_carve_gapped(c, act, T, m->hidden, p->gap);
    int64_t q = m->heads * m->head_dim + (m->fused ? 2 * m->kv_heads * m->head_dim : 0);
    int64_t wide = lk_mlp_width(m) < q ? q : lk_mlp_width(m);
    p->act = lk_carve_gapped(c, act, T, wide, p->gap);
    p->final_rstd = lk_carve_floats(c, T);
    p->nll = lk_carve_floats(c, T);
    p->hits = lk_carve_bytes(c, (size_t)T);
    if (o->training) {
        p->dx = lk_carve_gapped(c, act, T, m->hidden, p->gap);
        p->grads.wide[0] = p->act; /* the forward's gated product is dead by then */
        p->grads.wide[1] = lk_carve_gapped(c, act, T, wide, p->gap);
        if (!m->fused) {
            int64_t kv = m->kv_heads * m->head_dim;
            p->grads.dk = lk_carve_gapped(c, act, T, kv, m->qk_norm == LK_QK_HEADS ? 0 : p->gap); /* the per-head norm wants none */
            p->grads.dv = lk_carve_gapped(c, act, T, kv, p->gap);
        }
        if (lk_block_has_branch(m)) p->grads.dbranch = lk_carve_gapped(c, act, T, m->hidden, p->gap);
        for (int i = 0; i < LK_ADAPTED_SPARE && o->gains && (i == 0 || o->dropped_gains); i++)
            p->grads.spare[i] = lk_carve_tensor(c, act, T, lk_config_widest(m));
        p->grads.gap = p->gap;
        p->grads.dnormed = lk_carve_tensor(c, act, T, m->hidden);
    }
    lk_experts_carve_shared(&p->experts, o->training ? &p->grads.experts : NULL, c, m, act, T);
    plan->transient = c->used - plan->checkpoints - plan->activations;
}

static lk_limits pass_limits(const lk_config *m, const lk_pass_options *o)
{
    return (lk_limits){.tokens = o->max_tokens,
                       .slots = o->max_tokens * m->experts_used,
                       .width = lk_config_widest(m),
                       .vocab = m->vocab,
                       .matrix = lk_config_largest_matrix(m),
                       .rank = o->max_rank,
                       .heads = m->heads,
                       .kv_heads = m->kv_heads,
                       .head_dim = m->head_dim,
                       .context = o->max_tokens,
                       .training = o->training,
                       .gains = o->gains,
                       .head = o->head};
}

static lk_status make_arrays(lk_pass *p, const lk_backend *be, const lk_config *m, const lk_pass_options *o)
{
    p->options = *o;
    p->gap = o->training ? lk_row_gap(be, o->max_rank) : 0;
    p->kept = o->training ? o->kept_layers : 1;
    if (p->kept < 1) p->kept = 1;
    if (p->kept > m->layers) p->kept = m->layers;
    p->first_kept = o->training ? m->layers - p->kept : m->layers;
    p->n_inputs = o->training ? p->first_kept + 1 : 2;
    if (o->training && o->offload && p->n_inputs > RING) {
        p->n_away = p->n_inputs - RING;
        p->n_inputs = RING;
    }
    p->inputs = calloc((size_t)p->n_inputs, sizeof *p->inputs);
    p->slots = calloc((size_t)p->kept, sizeof *p->slots);
    return p->inputs && p->slots ? LK_OK : LK_ERR_MEMORY;
}

static size_t input_bytes(const lk_pass *p, const lk_backend *be, const lk_config *m)
{
    return (size_t)(p->options.max_tokens * m->hidden * lk_dtype_size(lk_backend_act(be)));
}

static void free_arrays(lk_pass *p)
{
    free(p->inputs);
    free(p->slots);
}

void lk_pass_plan_bytes(const lk_backend *be, const lk_config *config, const lk_pass_options *options, lk_pass_plan *plan)
{
    lk_pass p = {0};
    memset(plan, 0, sizeof *plan);
    if (!make_arrays(&p, be, config, options)) carve(&p, &(lk_carve){0}, config, lk_backend_act(be), plan);
    plan->host = (size_t)p.n_away * input_bytes(&p, be, config);
    free_arrays(&p);
    lk_limits limits = pass_limits(config, options);
    plan->scratch = lk_scratch_bytes(be, &limits);
}

lk_status lk_pass_create(lk_pass **out, const lk_model *model, const lk_pass_options *options, lk_error *err)
{
    *out = NULL;
    lk_backend *be = model->be;
    if (options->max_tokens < 1 || options->max_tokens > INT32_MAX)
        return lk_fail(err, LK_ERR_ARGUMENT, "a micro-batch of %lld tokens is not possible", (long long)options->max_tokens);
    lk_pass *p = calloc(1, sizeof *p);
    if (!p) return lk_fail(err, LK_ERR_MEMORY, "no memory for a pass");
    p->model = model;
    lk_status status = make_arrays(p, be, &model->config, options);
    if (status) {
        lk_fail(err, status, "no memory for a pass");
        goto out;
    }
    lk_pass_plan plan;
    lk_carve count = {0};
    carve(p, &count, &model->config, lk_backend_act(be), &plan);
    if ((status = lk_alloc(be, count.used, &p->memory))) {
        lk_backend_fail(be, status, err);
        goto out;
    }
    carve(p, &(lk_carve){.base = p->memory}, &model->config, lk_backend_act(be), &plan);
    lk_limits limits = pass_limits(&model->config, options);
    void *away = NULL;
    status = lk_reserve(be, &limits);
    if (!status && (status = lk_routing_init(&p->routing, &model->config, options->max_tokens, err))) goto out;
    if (!status && p->n_away) status = lk_host_alloc(be, (size_t)p->n_away * input_bytes(p, be, &model->config), &away);
    p->away = away;
    if (status) lk_backend_fail(be, status, err);
out:
    if (status)
        lk_pass_destroy(p);
    else
        *out = p;
    return status;
}

void lk_pass_destroy(lk_pass *p)
{
    if (!p) return;
    lk_host_free(p->model->be, p->away);
    lk_free(p->model->be, p->memory);
    lk_routing_free(&p->routing);
    free_arrays(p);
    free(p);
}

static lk_tensor front(const lk_tensor *t, int64_t rows) { return lk_tensor_rows(t, 0, rows); }

static lk_tensor *input_of(const lk_pass *p, int64_t layer)
{
    return layer > p->first_kept ? &p->slots[layer - p->first_kept].x_in : &p->inputs[layer % p->n_inputs];
}

/* The block of a layer for T rows: its input from where the layer below left it, its output where the next layer or the final norm reads
 * it. */
static lk_block block_of(const lk_pass *p, int64_t layer, int64_t T)
{
    lk_block b = p->slots[layer > p->first_kept ? layer - p->first_kept : 0];
    b.x_in = *input_of(p, layer);
    b.x_out = layer + 1 < p->model->config.layers ? *input_of(p, layer + 1) : p->x_final;
    b.normed = p->normed;
    int64_t width = lk_mlp_width(&p->model->config);
    b.act = (lk_tensor){p->act.data, p->act.type, p->act.rows, width, width + p->gap};
    b.experts.rows = p->experts.rows;
    b.experts.act = p->experts.act;
    return lk_block_rows(&b, T);
}

static lk_status check_batch(const lk_pass *p, const lk_batch *batch, lk_error *err)
{
    if (batch->n_tokens < 1 || batch->n_tokens > p->options.max_tokens)
        return lk_fail(err, LK_ERR_INTERNAL, "a micro-batch of %lld tokens does not fit the planned %lld", (long long)batch->n_tokens,
                       (long long)p->options.max_tokens);
    for (int64_t t = 0; t < batch->n_tokens; t++)
        if (batch->ids[t] < 0 || batch->ids[t] >= p->model->config.vocab)
            return lk_fail(err, LK_ERR_FORMAT, "token id %d at row %lld is outside the model's vocabulary of %lld", batch->ids[t],
                           (long long)t, (long long)p->model->config.vocab);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- offload */

/* Each of the RING inputs has the transfer slot of its number. */
static char *away_of(const lk_pass *p, int64_t layer) { return p->away + (size_t)layer * input_bytes(p, p->model->be, &p->model->config); }

static size_t used_bytes(const lk_pass *p, int64_t T)
{
    return (size_t)(T * p->model->config.hidden * lk_dtype_size(lk_backend_act(p->model->be)));
}

/* Layer `layer` has read its input: on its way to the host, if it is one of those. */
static lk_status send_away(const lk_pass *p, int64_t layer, int64_t T)
{
    if (layer >= p->n_away) return LK_OK;
    return lk_transfer_begin(p->model->be, (int)(layer % RING), away_of(p, layer), input_of(p, layer)->data, used_bytes(p, T));
}

/* Nothing reads the input of layer + RING any more: there comes that of `layer`, if it is one of those. */
static lk_status fetch_back(const lk_pass *p, int64_t layer, int64_t T)
{
    if (layer < 0 || layer >= p->n_away) return LK_OK;
    return lk_transfer_begin(p->model->be, (int)(layer % RING), input_of(p, layer)->data, away_of(p, layer), used_bytes(p, T));
}

/* Before the place of this layer's input is used: a transfer from or to there is over. */
static lk_status settle(const lk_pass *p, int64_t layer)
{
    return p->n_away && layer <= p->first_kept ? lk_transfer_wait(p->model->be, (int)(layer % RING)) : LK_OK;
}

/* After a failure: nothing is on its way any more. The failure that came first is the one to report. */
static lk_status abandon(const lk_pass *p, lk_status status, lk_error *err)
{
    lk_backend_fail(p->model->be, status, err);
    for (int64_t slot = 0; p->n_away && slot < RING; slot++) (void)lk_transfer_wait(p->model->be, (int)slot);
    return status;
}

/* ---------------------------------------------------------------------------------------------- forward and backward */

/* The inner activations of any site: free until the first layer. */
static const lk_tensor *embedding_inner(const lk_pass *p)
{
    int i = 0;
    while (!p->slots[0].h[i].data) i++;
    return &p->slots[0].h[i];
}

/* backward_follows: inputs that the device does not keep are sent to the host. */
static lk_status forward(lk_pass *p, const lk_block_context *c, lk_tensor *x_final, bool backward_follows)
{
    const lk_model *model = p->model;
    lk_backend *be = model->be;
    int64_t T = c->batch->n_tokens;
    LK_TRY(lk_batch_begin(be, c->batch));
    LK_TRY(lk_positions_fill(&p->positions, model, c->batch, 0));
    lk_tensor x0 = front(input_of(p, 0), T);
    lk_tensor spare = front(&p->normed, T), inner = front(embedding_inner(p), T);
    LK_TRY(lk_adapted_embed(model, c->batch, &x0, &spare, &inner));
    if (model->config.embedding_scale != 0.0) LK_TRY(lk_scale(be, &x0, &x0, (float)model->config.embedding_scale));
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        lk_block b = block_of(p, layer, T);
        LK_TRY(settle(p, layer + 1));
        LK_TRY(lk_block_forward(c, layer, &b, false));
        if (backward_follows) LK_TRY(send_away(p, layer, T));
    }
    *x_final = front(&p->x_final, T);
    return LK_OK;
}

static lk_status backward(lk_pass *p, const lk_block_context *c, const lk_tensor *dx)
{
    int64_t T = c->batch->n_tokens;
    bool embedding = lk_adapted_trains_embedding(c->batch);
    lk_block_grads g = p->grads;
    lk_tensor *all[] = {&g.wide[0], &g.wide[1], &g.dk, &g.dv, &g.dnormed, &g.dbranch, &g.spare[0], &g.spare[1], &g.spare[2]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->data) *all[i] = front(all[i], T);
    lk_experts_grads *e = &g.experts;
    if (e->dact.data) {
        e->dact = front(&e->dact, T * p->model->config.experts_used);
        e->dweights = front(&e->dweights, T);
        e->dlogits = front(&e->dlogits, T);
    }
    for (int64_t layer = p->model->config.layers - 1; layer >= 0; layer--) {
        lk_block b = block_of(p, layer, T);
        if (layer < p->first_kept) {
            LK_TRY(settle(p, layer));
            b.x_out = front(&p->x_final, T); /* dead, and the output is not wanted: the layer above is done */
            LK_TRY(lk_block_forward(c, layer, &b, true));
        }
        LK_TRY(lk_block_backward(c, layer, &b, &g, dx, layer > 0 || embedding));
        if (layer <= p->first_kept) LK_TRY(fetch_back(p, layer - RING, T));
    }
    if (!embedding) return LK_OK;
    const lk_model *model = p->model;
    lk_tensor inner = front(embedding_inner(p), T);
    if (model->config.embedding_scale != 0.0) LK_TRY(lk_scale(model->be, dx, dx, (float)model->config.embedding_scale));
    return lk_adapted_embed_backward(model, c->batch, dx, &g.dnormed, &inner);
}

/* Final norm, head and loss; dnormed NULL for evaluation. */
static lk_status loss(lk_pass *p, const lk_block_context *c, const lk_tensor *x_final, const lk_tensor *dnormed, const int32_t *labels,
                      float grad_scale, bool hits)
{
    const lk_model *model = p->model;
    lk_tensor normed = front(&p->normed, x_final->rows);
    LK_TRY(lk_rmsnorm(model->be, &normed, p->final_rstd, x_final, model->final_norm, model->config.rms_eps));
    return lk_adapted_loss(model, c->batch, p->nll, hits ? p->hits : NULL, dnormed, &normed, labels, grad_scale, c->dropout);
}

static lk_status gradient(lk_pass *p, const lk_block_context *c, const int32_t *labels, float grad_scale, float *nll)
{
    const lk_model *model = p->model;
    int64_t T = c->batch->n_tokens;
    lk_tensor x_final, dnormed = front(&p->grads.dnormed, T), dx = front(&p->dx, T);
    LK_TRY(forward(p, c, &x_final, true));
    LK_TRY(loss(p, c, &x_final, &dnormed, labels, grad_scale, false));
    LK_TRY(lk_rmsnorm_backward(model->be, &dx, &dnormed, &x_final, model->final_norm, p->final_rstd, false));
    LK_TRY(backward(p, c, &dx));
    return lk_download(model->be, nll, p->nll, (size_t)T * 4);
}

lk_status lk_pass_gradient(lk_pass *p, const lk_batch *batch, const int32_t *labels, float grad_scale, const lk_dropout *dropout,
                           float *nll, lk_error *err)
{
    if (!p->options.training) return lk_fail(err, LK_ERR_INTERNAL, "this pass was made for evaluation only");
    LK_TRY(check_batch(p, batch, err));
    lk_block_context c = {.model = p->model,
                          .batch = batch,
                          .positions = &p->positions,
                          .routing = &p->routing,
                          .dropout = dropout && dropout->p > 0 ? dropout : NULL,
                          .spare = p->options.dropped_gains ? p->grads.spare : NULL};
    lk_status status = gradient(p, &c, labels, grad_scale, nll);
    return status ? abandon(p, status, err) : LK_OK;
}

lk_status lk_pass_loss(lk_pass *p, const lk_batch *batch, const int32_t *labels, float *nll, uint8_t *hits, lk_error *err)
{
    LK_TRY(check_batch(p, batch, err));
    lk_backend *be = p->model->be;
    lk_tensor x_final;
    lk_block_context c = {.model = p->model, .batch = batch, .positions = &p->positions, .routing = &p->routing};
    lk_status status = forward(p, &c, &x_final, false);
    if (!status) status = loss(p, &c, &x_final, NULL, labels, 0.0f, hits != NULL);
    if (!status) status = lk_download(be, nll, p->nll, (size_t)batch->n_tokens * 4);
    if (!status && hits) status = lk_download(be, hits, p->hits, (size_t)batch->n_tokens);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

lk_status lk_pass_logits(lk_pass *p, const lk_batch *batch, float *out, lk_error *err)
{
    LK_TRY(check_batch(p, batch, err));
    const lk_model *model = p->model;
    lk_backend *be = model->be;
    lk_tensor x_final, normed = front(&p->normed, batch->n_tokens);
    lk_block_context c = {.model = model, .batch = batch, .positions = &p->positions, .routing = &p->routing};
    void *memory = NULL;
    lk_status status = forward(p, &c, &x_final, false);
    if (!status) status = lk_rmsnorm(be, &normed, NULL, &x_final, model->final_norm, model->config.rms_eps);
    /* Row by row in pieces: this is a tool for looking, and [T,V] would be the largest thing in memory. */
    enum { PIECE = 64 };
    if (!status) status = lk_alloc(be, (size_t)(PIECE * model->config.vocab) * 4, &memory);
    for (int64_t t = 0; !status && t < batch->n_tokens; t += PIECE) {
        int64_t n = batch->n_tokens - t < PIECE ? batch->n_tokens - t : PIECE;
        lk_tensor x = lk_tensor_rows(&normed, t, n), y = lk_tensor_make(memory, LK_F32, n, model->config.vocab);
        status = lk_adapted_head(model, batch, &y, &x, NULL, t, embedding_inner(p));
        if (!status && model->config.logit_cap != 0.0) status = lk_cap(be, &y, (float)model->config.logit_cap);
        if (!status) status = lk_download(be, out + t * model->config.vocab, memory, (size_t)(n * model->config.vocab) * 4);
    }
    lk_free(be, memory);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}
