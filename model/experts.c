#include "model/experts.h"

#include <stdlib.h>
#include <string.h>

#include "model/adapted.h"

static const lk_module modules[3] = {LK_GATE, LK_UP, LK_DOWN};

lk_status lk_routing_init(lk_routing *r, const lk_config *config, int64_t tokens, lk_error *err)
{
    memset(r, 0, sizeof *r);
    if (!config->experts) return LK_OK;
    size_t n = (size_t)(tokens * config->experts_used);
    r->most = (int64_t)n;
    r->ids = calloc(n, sizeof *r->ids);
    r->rows = calloc(n, sizeof *r->rows);
    r->slots = calloc(n, sizeof *r->slots);
    r->first = calloc((size_t)config->experts + 1, sizeof *r->first);
    r->segments = calloc((size_t)tokens, sizeof *r->segments);
    if (r->ids && r->rows && r->slots && r->first && r->segments) return LK_OK;
    lk_routing_free(r);
    return lk_fail(err, LK_ERR_MEMORY, "no memory to route %lld tokens", (long long)tokens);
}

void lk_routing_free(lk_routing *r)
{
    free(r->ids);
    free(r->rows);
    free(r->slots);
    free(r->first);
    free(r->segments);
    memset(r, 0, sizeof *r);
}

void lk_experts_carve(lk_experts_block *b, lk_carve *c, const lk_config *m, lk_dtype act, int64_t tokens, int64_t rank, bool training)
{
    int64_t T = tokens, K = m->experts_used;
    if (!m->experts) return;
    b->logits = lk_carve_tensor(c, LK_F32, T, m->experts);
    b->weights = lk_carve_tensor(c, LK_F32, T, K);
    b->ids = lk_carve_bytes(c, (size_t)(T * K) * 4);
    b->gate = lk_carve_tensor(c, act, T * K, m->intermediate);
    b->up = lk_carve_tensor(c, act, T * K, m->intermediate);
    b->out = lk_carve_tensor(c, act, T * K, m->hidden);
    for (int i = 0; i < 3; i++) b->h[i] = i && !training ? b->h[0] : lk_carve_tensor(c, LK_F32, T * K, rank > 0 ? rank : 1);
    b->h_router = lk_carve_tensor(c, LK_F32, T, rank > 0 ? rank : 1);
    if (training) return;
    b->rows = lk_carve_tensor(c, act, T * K, m->hidden);
    b->act = b->gate;
}

void lk_experts_carve_shared(lk_experts_block *b, lk_experts_grads *g, lk_carve *c, const lk_config *m, lk_dtype act, int64_t tokens)
{
    int64_t T = tokens, K = m->experts_used;
    if (!m->experts) return;
    b->rows = lk_carve_tensor(c, act, T * K, m->hidden);
    b->act = lk_carve_tensor(c, act, T * K, m->intermediate);
    if (!g) return;
    g->dact = lk_carve_tensor(c, act, T * K, m->intermediate);
    g->dweights = lk_carve_tensor(c, LK_F32, T, K);
    g->dlogits = lk_carve_tensor(c, act, T, m->experts);
}

/* ---------------------------------------------------------------------------------------------- who gets what */

/* Brings the choices to the host and gives each a slot: by expert, and within one by token. */
static lk_status place(const lk_experts_call *call, const int32_t *ids, int64_t tokens)
{
    lk_routing *r = call->routing;
    int64_t K = call->model->config.experts_used, E = call->model->config.experts, n = tokens * K;
    LK_TRY(lk_download(call->model->be, r->ids, ids, (size_t)n * 4));
    memset(r->first, 0, (size_t)(E + 1) * sizeof *r->first);
    for (int64_t i = 0; i < n; i++) r->first[r->ids[i] + 1]++;
    for (int64_t e = 0; e < E; e++) r->first[e + 1] += r->first[e];
    for (int64_t i = 0; i < n; i++) {
        int64_t slot = r->first[r->ids[i]]++;
        r->slots[i] = (int32_t)slot;
        r->rows[slot] = (int32_t)(i / K);
    }
    for (int64_t e = E; e > 0; e--) r->first[e] = r->first[e - 1]; /* each had moved to the next one's */
    r->first[0] = 0;
    return LK_OK;
}

/* One expert's slots as a batch: the batch's segments cut down to its tokens. */
static lk_batch batch_of(const lk_experts_call *call, int64_t e)
{
    const lk_batch *whole = call->batch;
    lk_routing *r = call->routing;
    lk_batch b = {.n_tokens = r->first[e + 1] - r->first[e],
                  .of = whole,
                  .n_sites = whole->n_sites,
                  .n_adapters = whole->n_adapters,
                  .lora = whole->lora};
    const int32_t *rows = r->rows + r->first[e];
    int64_t at = 0;
    for (int64_t s = 0; s < whole->n_segments; s++) {
        int64_t begin = at;
        while (at < b.n_tokens && rows[at] < whole->segments[s].end) at++;
        if (at > begin) r->segments[b.n_segments++] = (lk_segment){begin, at, whole->segments[s].adapter};
    }
    b.segments = r->segments;
    return b;
}

/* An expert's turn: its rows of the slots, its batch begun. */
typedef struct turn {
    const lk_experts_call *call;
    lk_batch batch;
    int64_t first;
    int32_t expert;
} turn;

static lk_status turn_begin(turn *t, const lk_experts_call *call, int64_t e)
{
    *t = (turn){.call = call, .batch = batch_of(call, e), .first = call->routing->first[e], .expert = (int32_t)e};
    return lk_batch_begin(call->model->be, &t->batch);
}

static lk_tensor slots_of(const turn *t, const lk_tensor *all) { return lk_tensor_rows(all, t->first, t->batch.n_tokens); }

static lk_status linear(const turn *t, const lk_experts_block *b, int part, const lk_tensor *y, const lk_tensor *x)
{
    const lk_model *model = t->call->model;
    int32_t site = lk_site_of(&model->config, t->call->layer, modules[part], t->expert);
    lk_tensor ye = slots_of(t, y), xe = slots_of(t, x), h = slots_of(t, &b->h[part]);
    return lk_adapted_linear(model, &t->batch, site, &ye, &xe, NULL, &h, NULL, t->call->dropout);
}

static lk_status linear_backward(const turn *t, const lk_experts_block *b, int part, const lk_tensor *dx, const lk_tensor *dy,
                                 const lk_tensor *x, bool accumulate)
{
    const lk_model *model = t->call->model;
    int32_t site = lk_site_of(&model->config, t->call->layer, modules[part], t->expert);
    const lk_matrix *w = model->weights[site].w;
    lk_tensor dxe = slots_of(t, dx), dye = slots_of(t, dy), xe = slots_of(t, x), h = slots_of(t, &b->h[part]);
    if (!t->batch.n_segments) return lk_linear_backward(model->be, &dxe, &dye, w, accumulate);
    return lk_linear_lora_backward(model->be, &t->batch, site, &dxe, &dye, w, &xe, &h, accumulate, t->call->dropout);
}

/* ---------------------------------------------------------------------------------------------- forward and backward */

/* What adapters add to a part of all experts, whose products are there. */
static lk_status add_adapters(const lk_experts_call *call, const lk_experts_block *b, int part, const lk_tensor *y, const lk_tensor *x)
{
    lk_backend *be = call->model->be;
    const lk_config *config = &call->model->config;
    for (int64_t e = 0; e < config->experts; e++) {
        turn t = {.call = call, .batch = batch_of(call, e), .first = call->routing->first[e], .expert = (int32_t)e};
        if (!t.batch.n_tokens || !t.batch.n_segments) continue;
        int32_t site = lk_site_of(config, call->layer, modules[part], t.expert);
        lk_tensor ye = slots_of(&t, y), xe = slots_of(&t, x), h = slots_of(&t, &b->h[part]);
        LK_TRY(lk_batch_begin(be, &t.batch));
        LK_TRY(lk_lora_forward(be, &t.batch, site, &ye, &xe, &h, call->dropout));
        LK_TRY(lk_lora_gain(be, &t.batch, site, &ye, NULL, NULL));
    }
    return lk_batch_begin(be, call->batch);
}

/* The choices stay on the device. Slots are in the same order as `place` has them. */
static lk_status grouped(const lk_experts_call *call, const lk_experts *w, const lk_experts_block *b, const lk_tensor *out,
                         const lk_tensor *x, const lk_tensor *residual)
{
    const lk_config *config = &call->model->config;
    lk_backend *be = call->model->be;
    int32_t *places = call->groups->places;
    LK_TRY(lk_moe_place(be, places, b->ids, x->rows, config->experts_used, config->experts));
    LK_TRY(lk_experts_linear(be, &b->gate, x, &w[0], places, true));
    LK_TRY(lk_experts_linear(be, &b->up, x, &w[1], places, true));
    if (call->adapted) {
        LK_TRY(place(call, b->ids, x->rows));
        LK_TRY(lk_gather_rows(be, &b->rows, x, call->routing->rows));
        LK_TRY(add_adapters(call, b, 0, &b->gate, &b->rows));
        LK_TRY(add_adapters(call, b, 1, &b->up, &b->rows));
    }
    LK_TRY(lk_glu(be, &b->act, &b->gate, &b->up, config->activation));
    LK_TRY(lk_experts_linear(be, &b->out, &b->act, &w[2], places, false));
    if (call->adapted) LK_TRY(add_adapters(call, b, 2, &b->out, &b->act));
    return out ? lk_moe_combine_placed(be, out, &b->out, places, &b->weights, residual) : LK_OK;
}

lk_status lk_experts_forward(const lk_experts_call *call, const lk_experts_block *b, const lk_tensor *out, const lk_tensor *x,
                             const lk_tensor *residual)
{
    const lk_config *config = &call->model->config;
    lk_backend *be = call->model->be;
    const lk_routing *r = call->routing;
    const lk_experts *groups = lk_expert_groups_at(call->groups, call->layer);
    turn t;
    int32_t router = lk_site_of(config, call->layer, LK_ROUTER, -1);
    LK_TRY(lk_adapted_linear(call->model, call->batch, router, &b->logits, x, NULL, &b->h_router, NULL, call->dropout));
    LK_TRY(lk_moe_route(be, b->ids, &b->weights, &b->logits, !config->experts_as_is));
    if (groups) return grouped(call, groups, b, out, x, residual);
    LK_TRY(place(call, b->ids, x->rows));
    LK_TRY(lk_gather_rows(be, &b->rows, x, r->rows));
    for (int64_t e = 0; e < config->experts; e++) {
        if (r->first[e] == r->first[e + 1]) continue;
        LK_TRY(turn_begin(&t, call, e));
        LK_TRY(linear(&t, b, 0, &b->gate, &b->rows));
        LK_TRY(linear(&t, b, 1, &b->up, &b->rows));
    }
    LK_TRY(lk_glu(be, &b->act, &b->gate, &b->up, config->activation));
    for (int64_t e = 0; e < config->experts; e++) {
        if (r->first[e] == r->first[e + 1]) continue;
        LK_TRY(turn_begin(&t, call, e));
        LK_TRY(linear(&t, b, 2, &b->out, &b->act));
    }
    LK_TRY(lk_batch_begin(be, call->batch));
    return out ? lk_moe_combine(be, out, &b->out, r->slots, &b->weights, residual) : LK_OK;
}

lk_status lk_experts_backward(const lk_experts_call *call, const lk_experts_block *b, const lk_experts_grads *g, const lk_tensor *dx,
                              const lk_tensor *dy, const lk_tensor *x)
{
    const lk_config *config = &call->model->config;
    lk_backend *be = call->model->be;
    const lk_routing *r = call->routing;
    const lk_tensor *dout = &b->out, *drows = &b->out; /* one after the other in the same place */
    turn t;
    LK_TRY(place(call, b->ids, x->rows));
    LK_TRY(lk_gather_rows(be, &b->rows, x, r->rows));
    LK_TRY(lk_moe_combine_backward(be, dout, &g->dweights, dy, &b->out, r->slots, &b->weights));
    LK_TRY(lk_glu(be, &b->act, &b->gate, &b->up, config->activation));
    for (int64_t e = 0; e < config->experts; e++) {
        if (r->first[e] == r->first[e + 1]) continue;
        LK_TRY(turn_begin(&t, call, e));
        LK_TRY(linear_backward(&t, b, 2, &g->dact, dout, &b->act, false));
    }
    LK_TRY(lk_glu_backward(be, &b->gate, &b->up, &g->dact, &b->gate, &b->up, config->activation));
    for (int64_t e = 0; e < config->experts; e++) {
        if (r->first[e] == r->first[e + 1]) continue;
        LK_TRY(turn_begin(&t, call, e));
        LK_TRY(linear_backward(&t, b, 0, drows, &b->gate, &b->rows, false));
        LK_TRY(linear_backward(&t, b, 1, drows, &b->up, &b->rows, true));
    }
    LK_TRY(lk_batch_begin(be, call->batch));
    LK_TRY(lk_moe_combine(be, dx, drows, r->slots, NULL, NULL));
    LK_TRY(lk_moe_route_backward(be, &g->dlogits, &g->dweights, b->ids, &b->logits, !config->experts_as_is));
    int32_t router = lk_site_of(config, call->layer, LK_ROUTER, -1);
    const lk_matrix *w = call->model->weights[router].w;
    if (!call->batch->n_segments) return lk_linear_backward(be, dx, &g->dlogits, w, true);
    return lk_linear_lora_backward(be, call->batch, router, dx, &g->dlogits, w, x, &b->h_router, true, call->dropout);
}
