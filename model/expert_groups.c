#include "model/expert_groups.h"

#include <stdlib.h>

static const lk_module modules[3] = {LK_GATE, LK_UP, LK_DOWN};

static bool wanted(const lk_backend *be, const lk_config *c)
{
    return c->experts && lk_backend_groups(be) && c->hidden % 8 == 0 && c->intermediate % 8 == 0;
}

static size_t table_bytes(const lk_backend *be, const lk_config *c) { return (lk_experts_bytes(be, c->experts) + 63) / 64 * 64; }

void lk_expert_groups_carve(lk_expert_groups *g, lk_carve *c, const lk_backend *be, const lk_config *config, int64_t tokens)
{
    if (!wanted(be, config)) return;
    g->places = lk_carve_bytes(c, lk_moe_placing_bytes(be, tokens * config->experts_used, config->experts));
    g->tables = lk_carve_bytes(c, (size_t)(3 * config->layers) * table_bytes(be, config));
}

/* Files may mix types of quantisation; a call has one. */
static bool alike(const lk_matrix *const *w, int64_t n)
{
    for (int64_t e = 1; e < n; e++)
        if (lk_matrix_type(w[e]) != lk_matrix_type(w[0])) return false;
    return true;
}

lk_status lk_expert_groups_prepare(lk_expert_groups *g, const lk_model *model, lk_error *err)
{
    const lk_config *c = &model->config;
    lk_backend *be = model->be;
    if (!wanted(be, c)) return LK_OK;
    int64_t E = c->experts;
    g->of = calloc((size_t)(3 * c->layers), sizeof *g->of);
    g->matrices = calloc((size_t)(3 * c->layers * E), sizeof *g->matrices);
    g->sites = calloc((size_t)(3 * c->layers * E), sizeof *g->sites);
    if (!g->of || !g->matrices || !g->sites) return lk_fail(err, LK_ERR_MEMORY, "no memory for the tables of %lld experts", (long long)E);
    for (int64_t i = 0; i < 3 * c->layers; i++) {
        if (!lk_layer_mixes(c, i / 3)) continue;
        lk_experts *of = &g->of[i];
        const lk_matrix **w = g->matrices + i * E;
        for (int64_t e = 0; e < E; e++) {
            int32_t site = lk_site_of(c, i / 3, modules[i % 3], (int32_t)e);
            w[e] = model->weights[site].w;
            g->sites[g->n_sites++] = site;
        }
        if (!alike(w, E)) continue;
        *of = (lk_experts){.w = w, .count = E, .table = g->tables + (size_t)i * table_bytes(be, c)};
        lk_status status = lk_experts_fill(be, of);
        if (status) return lk_backend_fail(be, status, err);
    }
    return LK_OK;
}

void lk_expert_groups_free(lk_expert_groups *g)
{
    free(g->of);
    free(g->matrices);
    free(g->sites);
    *g = (lk_expert_groups){0};
}

const lk_experts *lk_expert_groups_at(const lk_expert_groups *g, int64_t layer)
{
    if (!g || !g->of) return NULL;
    const lk_experts *three = &g->of[3 * layer];
    return three[0].count && three[1].count && three[2].count ? three : NULL;
}

bool lk_expert_groups_whole(const lk_expert_groups *g, const lk_model *model)
{
    for (int64_t layer = 0; layer < model->config.layers; layer++)
        if (lk_layer_mixes(&model->config, layer) && !lk_expert_groups_at(g, layer)) return false;
    return true;
}

bool lk_expert_groups_adapted(const lk_expert_groups *g, const lk_batch *batch)
{
    if (!batch->n_segments) return false;
    for (int32_t i = 0; i < g->n_sites; i++) {
        const lk_lora *l = &batch->lora[(int64_t)g->sites[i] * batch->n_adapters];
        for (int32_t a = 0; a < batch->n_adapters; a++)
            if (l[a].rank || l[a].gain || l[a].bias) return true;
    }
    return false;
}
