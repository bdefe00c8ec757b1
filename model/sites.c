#include "model/sites.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[LK_N_MODULES] = {"q_proj",  "k_proj",    "v_proj",   "o_proj",       "gate_proj",
                                                "up_proj", "down_proj", "qkv_proj", "gate_up_proj", "gate"};

/* The layers of one block in their order: those of the attention, then those of the MLP, or of each expert and the router. */
static const lk_module apart[] = {LK_Q, LK_K, LK_V, LK_O}, joined[] = {LK_QKV, LK_O};
static const lk_module mlp_apart[] = {LK_GATE, LK_UP, LK_DOWN}, mlp_joined[] = {LK_GATE_UP, LK_DOWN};

static int attention_sites(const lk_config *c) { return c->fused ? 2 : 4; }
static int mlp_sites(const lk_config *c) { return c->fused ? 2 : 3; }

const char *lk_module_name(lk_module m) { return names[m]; }

const char *lk_module_number(lk_module m) { return m == LK_GATE ? "w1" : m == LK_DOWN ? "w2" : m == LK_UP ? "w3" : NULL; }

bool lk_layer_mixes(const lk_config *c, int64_t layer) { return c->experts && !(c->layer[layer] & LK_LAYER_DENSE); }

int64_t lk_mlp_width(const lk_config *c)
{
    if (!c->experts) return c->intermediate;
    for (int64_t i = 0; i < c->layers; i++)
        if (!lk_layer_mixes(c, i)) return c->dense_intermediate;
    return 0;
}

int32_t lk_layer_sites(const lk_config *c, int64_t layer)
{
    return attention_sites(c) + (lk_layer_mixes(c, layer) ? (int32_t)c->experts * mlp_sites(c) + 1 : mlp_sites(c));
}

int32_t lk_layer_first_site(const lk_config *c, int64_t layer)
{
    if (!c->experts) return (int32_t)layer * lk_layer_sites(c, 0);
    int32_t first = 0;
    for (int64_t i = 0; i < layer; i++) first += lk_layer_sites(c, i);
    return first;
}

int32_t lk_sites(const lk_config *c) { return lk_layer_first_site(c, c->layers); }

static void shape(const lk_config *c, int64_t width, lk_module m, int64_t *n, int64_t *k)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    *k = c->hidden;
    switch (m) {
    case LK_Q: *n = q; return;
    case LK_K:
    case LK_V: *n = kv; return;
    case LK_QKV: *n = q + 2 * kv; return;
    case LK_GATE:
    case LK_UP: *n = width; return;
    case LK_GATE_UP: *n = 2 * width; return;
    case LK_ROUTER: *n = c->experts; return;
    case LK_O: *n = c->hidden, *k = q; return;
    default: *n = c->hidden, *k = width; return;
    }
}

static bool is_mlp(lk_module m) { return m == LK_GATE || m == LK_UP || m == LK_DOWN || m == LK_GATE_UP; }

static bool has_bias(const lk_config *c, lk_module m)
{
    return m != LK_ROUTER && (is_mlp(m) ? c->mlp_bias : m == LK_O ? c->o_bias : c->qkv_bias);
}

/* The layer of a site, and the site's place in it. */
static int64_t layer_of(const lk_config *c, int32_t number, int32_t *place)
{
    int64_t layer = 0;
    if (!c->experts) layer = number / lk_layer_sites(c, 0);
    *place = number - lk_layer_first_site(c, layer);
    for (; *place >= lk_layer_sites(c, layer); layer++) *place -= lk_layer_sites(c, layer);
    return layer;
}

lk_site lk_site_at(const lk_config *c, int32_t number)
{
    int32_t place;
    lk_site s = {.layer = layer_of(c, number, &place), .expert = -1};
    bool mixes = lk_layer_mixes(c, s.layer);
    if (place < attention_sites(c)) {
        s.module = c->fused ? joined[place] : apart[place];
    } else if (mixes && place == lk_layer_sites(c, s.layer) - 1) {
        s.module = LK_ROUTER;
    } else {
        place -= attention_sites(c);
        s.module = c->fused ? mlp_joined[place % mlp_sites(c)] : mlp_apart[place % mlp_sites(c)];
        if (mixes) s.expert = place / mlp_sites(c);
    }
    shape(c, mixes ? c->intermediate : lk_mlp_width(c), s.module, &s.n, &s.k);
    s.bias = has_bias(c, s.module);
    return s;
}

/* Place of a module in its list, or -1. */
static int32_t place_in(const lk_module *list, int n, lk_module m)
{
    for (int i = 0; i < n; i++)
        if (list[i] == m) return i;
    return -1;
}

int32_t lk_site_of(const lk_config *c, int64_t layer, lk_module m, int32_t expert)
{
    int32_t first = lk_layer_first_site(c, layer), place;
    bool mixes = lk_layer_mixes(c, layer);
    if (m == LK_ROUTER) return mixes && expert < 0 ? first + lk_layer_sites(c, layer) - 1 : -1;
    if (!is_mlp(m)) {
        place = place_in(c->fused ? joined : apart, attention_sites(c), m);
        return place < 0 || expert > 0 ? -1 : first + place;
    }
    place = place_in(c->fused ? mlp_joined : mlp_apart, mlp_sites(c), m);
    if (place < 0 || (mixes ? expert < 0 || expert >= c->experts : expert > 0)) return -1;
    return first + attention_sites(c) + (expert > 0 ? expert : 0) * mlp_sites(c) + place;
}

bool lk_has_module(const lk_config *c, lk_module m)
{
    for (int64_t i = 0; i < c->layers; i++)
        if (lk_site_of(c, i, m, is_mlp(m) && lk_layer_mixes(c, i) ? 0 : -1) >= 0) return true;
    return false;
}

void lk_site_path(char *out, size_t size, const lk_config *c, int32_t number)
{
    lk_site s = lk_site_at(c, number);
    long long layer = (long long)s.layer;
    if (s.expert >= 0)
        snprintf(out, size, "model.layers.%lld.%s.experts.%d.%s", layer, c->expert_numbers ? "block_sparse_moe" : "mlp", s.expert,
                 c->expert_numbers ? lk_module_number(s.module) : names[s.module]);
    else
        snprintf(out, size, "model.layers.%lld.%s.%s", layer,
                 s.module == LK_ROUTER && c->expert_numbers  ? "block_sparse_moe"
                 : is_mlp(s.module) || s.module == LK_ROUTER ? "mlp"
                                                             : "self_attn",
                 names[s.module]);
}

int32_t lk_site_find(const lk_config *c, const char *path)
{
    static const char prefix[] = "model.layers.", router[] = ".mlp.gate";
    if (strncmp(path, prefix, sizeof prefix - 1)) return -1;
    char *rest;
    long long layer = strtoll(path + sizeof prefix - 1, &rest, 10);
    if (layer < 0 || layer >= c->layers || *rest != '.') return -1;
    if (c->expert_numbers && !strcmp(rest, router)) return lk_site_of(c, layer, LK_ROUTER, -1); /* transformers 5's name for Mixtral's */
    const char *experts = strstr(rest, ".experts.");
    int32_t expert = -1;
    if (experts) {
        long long number = strtoll(experts + strlen(".experts."), NULL, 10);
        if (number < 0 || number >= c->experts) return -1;
        expert = (int32_t)number;
    }
    /* The few sites of that layer and expert, compared as they would be written: nothing else parses. */
    for (int m = 0; m < LK_N_MODULES; m++) {
        char want[200];
        int32_t site = lk_site_of(c, layer, (lk_module)m, expert);
        if (site < 0) continue;
        lk_site_path(want, sizeof want, c, site);
        if (!strcmp(want, path)) return site;
    }
    return -1;
}

void lk_stacked_path(char *out, size_t size, int64_t layer, bool gate_up)
{
    snprintf(out, size, "model.layers.%lld.mlp.experts.%s", (long long)layer, gate_up ? "gate_up_proj" : "down_proj");
}

int64_t lk_stacked_find(const lk_config *c, const char *path, bool *gate_up)
{
    char want[200];
    for (int64_t i = 0; i < c->layers; i++)
        for (int part = 0; part < 2 && lk_layer_mixes(c, i); part++) {
            lk_stacked_path(want, sizeof want, i, part == 0);
            *gate_up = part == 0;
            if (!strcmp(want, path)) return i;
        }
    return -1;
}

/* [norms of lk_config][norm of lk_norm] */
static const char *const norm_names[][4] = {
    [LK_NORMS_BEFORE] = {"input_layernorm", NULL, "post_attention_layernorm", NULL},
    [LK_NORMS_AFTER] = {NULL, "post_attention_layernorm", NULL, "post_feedforward_layernorm"},
    [LK_NORMS_BOTH] = {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"},
};

const char *lk_norm_name(const lk_config *c, lk_norm norm, int64_t *width)
{
    *width = c->hidden;
    if (norm < LK_NORM_Q) return norm_names[c->norms][norm];
    if (c->qk_norm == LK_QK_PLAIN) return NULL;
    int64_t heads = norm == LK_NORM_Q ? c->heads : c->kv_heads;
    *width = c->head_dim * (c->qk_norm == LK_QK_WHOLE ? heads : 1);
    return norm == LK_NORM_Q ? "self_attn.q_norm" : "self_attn.k_norm";
}

int64_t lk_config_linear_params(const lk_config *c)
{
    int64_t total = 0;
    for (int32_t s = 0; s < lk_sites(c); s++) {
        lk_site site = lk_site_at(c, s);
        if (site.module != LK_ROUTER) total += site.n * site.k + (site.bias ? site.n : 0);
    }
    return total;
}

int64_t lk_config_largest_matrix(const lk_config *c)
{
    int64_t most = 0;
    for (int32_t s = 0; s < lk_sites(c); s++) {
        lk_site site = lk_site_at(c, s);
        if (site.n * site.k > most) most = site.n * site.k;
    }
    return most;
}

int64_t lk_config_widest(const lk_config *c)
{
    int64_t most = 0;
    for (int32_t s = 0; s < lk_sites(c); s++) {
        lk_site site = lk_site_at(c, s);
        if (site.n > most) most = site.n;
        if (site.k > most) most = site.k;
    }
    return most;
}

int64_t lk_config_params(const lk_config *c)
{
    int64_t norms = 0, width, routers = 0;
    for (int i = 0; i < LK_N_NORMS; i++)
        if (lk_norm_name(c, (lk_norm)i, &width)) norms += width;
    for (int64_t i = 0; i < c->layers; i++) routers += lk_layer_mixes(c, i) ? c->experts * c->hidden : 0;
    norms = c->layers * norms + c->hidden;
    return lk_config_linear_params(c) + routers + norms + c->vocab * c->hidden * (c->tied ? 1 : 2);
}
