/* Adapter layout, creation and the batch table. Files are adapter_io.c's. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/adapter.h"

#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "model/adapter_internal.h"

lk_status lk_adapter_targets(bool targets[LK_N_MODULES], const char *const *names, int n_names, const char *where, lk_error *err)
{
    memset(targets, 0, LK_N_MODULES * sizeof *targets);
    for (int i = 0; i < n_names; i++) {
        bool found = false;
        for (int m = 0; m < LK_N_MODULES; m++) {
            const char *number = lk_module_number((lk_module)m);
            bool named = !strcmp(names[i], lk_module_name((lk_module)m)) || (number && !strcmp(names[i], number));
            if (strcmp(names[i], "all-linear") && !named) continue;
            targets[m] = found = true;
        }
        if (!found)
            return lk_fail(
                err, LK_ERR_ARGUMENT,
                "%s: unknown target '%.60s'; known are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj (w1, w3, w2), "
                "qkv_proj, gate_up_proj, gate (the router of a mixture) and \"all-linear\"",
                where, names[i]);
    }
    return LK_OK;
}

/* A full match of `before`(pattern) on a path. */
static lk_status matches_fully(const char *before, const char *pattern, const char *path, bool *matches, lk_error *err)
{
    char text[600];
    int n = snprintf(text, sizeof text, "^(?:%s(?:%s))$", before, pattern);
    if (n < 0 || (size_t)n >= sizeof text) return lk_fail(err, LK_ERR_ARGUMENT, "pattern too long: %.80s...", pattern);
    int code = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &offset, NULL);
    if (!re) {
        char why[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return lk_fail(err, LK_ERR_ARGUMENT, "not a valid pattern: '%.80s': %s", pattern, why);
    }
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(re, NULL);
    *matches = data && pcre2_match(re, (PCRE2_SPTR)path, strlen(path), 0, 0, data, NULL) >= 0;
    pcre2_match_data_free(data);
    pcre2_code_free(re);
    return LK_OK;
}

/* PEFT's rule (utils/other.py get_pattern_key): the first key with a full match of (.*\.)?(KEY)$ on the module path. */
static lk_status pattern_matches(const char *pattern, const char *path, bool *matches, lk_error *err)
{
    return matches_fully("(?:.*\\.)?", pattern, path, matches, err);
}

float lk_adapter_scale(double alpha, int32_t rank, bool use_rslora)
{
    return (float)(use_rslora ? alpha / sqrt((double)rank) : alpha / (double)rank);
}

static bool in_layers(const lk_adapter_spec *spec, int64_t layer)
{
    for (int i = 0; i < spec->n_layers; i++)
        if (spec->layers[i] == layer) return true;
    return spec->n_layers == 0;
}

/* PEFT's rule for lists of names: the path is one, or ends in ".name". */
static bool in_list(const char *const *names, int n_names, const char *path)
{
    size_t length = strlen(path);
    for (int i = 0; i < n_names; i++) {
        size_t n = strlen(names[i]);
        if (n <= length && !strcmp(path + length - n, names[i]) && (n == length || path[length - n - 1] == '.')) return true;
    }
    return false;
}

/* The parameter in which transformers has a site's weights. */
static void parameter_path(char *out, size_t size, const lk_config *config, int32_t site)
{
    lk_site where = lk_site_at(config, site);
    if (where.expert >= 0) {
        lk_stacked_path(out, size, where.layer, where.module != LK_DOWN);
        return;
    }
    lk_site_path(out, size, config, site);
    if (where.module == LK_ROUTER) snprintf(out, size, "model.layers.%lld.mlp.gate", (long long)where.layer);
    snprintf(out + strlen(out), size - strlen(out), ".weight");
}

/* rank and alpha of a target by its path and the patterns. */
static lk_status pattern_rank(const lk_adapter_spec *spec, const char *path, int32_t *rank, double *alpha, lk_error *err)
{
    *rank = spec->rank;
    *alpha = spec->alpha;
    bool have_rank = false, have_alpha = false;
    for (int i = 0; i < spec->n_patterns; i++) {
        const lk_adapter_pattern *p = &spec->patterns[i];
        if ((p->rank == 0 || have_rank) && (p->alpha == 0.0 || have_alpha)) continue;
        bool matches = false;
        LK_TRY(pattern_matches(p->pattern, path, &matches, err));
        if (!matches) continue;
        if (p->rank && !have_rank) *rank = p->rank, have_rank = true;
        if (p->alpha != 0.0 && !have_alpha) *alpha = p->alpha, have_alpha = true;
    }
    return LK_OK;
}

lk_status lk_adapter_rank(const lk_adapter_spec *spec, const char *path, bool targeted, int32_t *rank, double *alpha, lk_error *err)
{
    *rank = 0;
    return targeted && !in_list(spec->exclude, spec->n_exclude, path) ? pattern_rank(spec, path, rank, alpha, err) : LK_OK;
}

static lk_status site_rank(const lk_config *config, const lk_adapter_spec *spec, int32_t site, int32_t *rank, double *alpha, bool *stacked,
                           lk_error *err)
{
    *rank = 0;
    lk_site where = lk_site_at(config, site);
    char path[220], parameter[220];
    lk_site_path(path, sizeof path, config, site);
    parameter_path(parameter, sizeof parameter, config, site);
    bool module = spec->targets[where.module] || in_list(spec->names, spec->n_names, path);
    if (spec->expression) LK_TRY(matches_fully("", spec->expression, path, &module, err));
    module = module && in_layers(spec, where.layer) && !in_list(spec->exclude, spec->n_exclude, path);
    bool whole = in_list(spec->parameters, spec->n_parameters, parameter);
    if (!module && !whole) return LK_OK;
    if (module && whole)
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "%s is adapted twice: as %s of target_parameters, and by the targets (all-linear has every layer)", path, parameter);
    *stacked = whole && where.expert >= 0;
    return pattern_rank(spec, whole ? parameter : path, rank, alpha, err); /* what patterns are matched with */
}

/* A factor begins where a block of 8-bit moments does: it shares a scale with no other. */
int64_t lk_adapter_factor(int64_t rank, int64_t width) { return (rank * width + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK * LK_ADAMW8_BLOCK; }

void lk_adapter_place(lk_adapter_site *sites, int32_t n_sites, int64_t *n_params, int32_t *max_rank)
{
    int64_t at = 0;
    int32_t most = 0;
    for (int32_t s = 0; s < n_sites; s++) {
        sites[s].a = sites[s].shares_a ? sites[s - 1].a : at;
        if (!sites[s].shares_a) at += lk_adapter_factor(sites[s].rank, sites[s].k);
        sites[s].b = at;
        at += lk_adapter_factor(sites[s].rank, sites[s].n);
        sites[s].m = at;
        if (sites[s].dora) at += lk_adapter_factor(1, sites[s].n);
        if (sites[s].rank > most) most = sites[s].rank;
    }
    *n_params = at;
    *max_rank = most;
}

/* A name that no layer has, and a regular expression for what is no linear layer of a block. */
static lk_status check_names(const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    char path[220];
    for (int i = 0; i < spec->n_names; i++) {
        int32_t s = 0;
        for (; s < lk_sites(config); s++) {
            lk_site_path(path, sizeof path, config, s);
            if (in_list(&spec->names[i], 1, path)) break;
        }
        if (s == lk_sites(config))
            return lk_fail(err, LK_ERR_ARGUMENT,
                           "adapter.targets names %.100s, and no linear layer of this %s model is called that or ends in it",
                           spec->names[i], config->model_type);
    }
    static const char *const tables[] = {"model.embed_tokens", "lm_head"};
    for (int i = 0; spec->expression && i < 2; i++) {
        bool matches = false;
        LK_TRY(matches_fully("", spec->expression, tables[i], &matches, err));
        if (matches)
            return lk_fail(err, LK_ERR_ARGUMENT,
                           "adapter.targets '%.100s' is also a match for %s: a regular expression chooses linear layers of the blocks; "
                           "name embed_tokens and lm_head in a list",
                           spec->expression, tables[i]);
    }
    return LK_OK;
}

/* A module that is named and not there would silently be left out: Phi-3 has no q_proj. All of them together are "all-linear". */
static lk_status check_targets(const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    char there[200] = "", path[220];
    int missing = -1;
    bool all = true;
    for (int m = 0; m < LK_N_MODULES; m++) {
        bool has = lk_has_module(config, (lk_module)m);
        if (has) snprintf(there + strlen(there), sizeof there - strlen(there), "%s%s", *there ? ", " : "", lk_module_name((lk_module)m));
        if (!spec->targets[m]) all = false;
        if (spec->targets[m] && !has && missing < 0) missing = m;
    }
    for (int i = 0; i < spec->n_parameters; i++) {
        int32_t s = 0;
        for (; s < lk_sites(config); s++) {
            parameter_path(path, sizeof path, config, s);
            if (in_list(&spec->parameters[i], 1, path)) break;
        }
        if (s == lk_sites(config))
            return lk_fail(err, LK_ERR_ARGUMENT,
                           "target_parameters names %.100s, which this %s model does not have; a mixture of experts has "
                           "mlp.experts.gate_up_proj and mlp.experts.down_proj",
                           spec->parameters[i], config->model_type);
    }
    if (all || missing < 0) return LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "the adapter targets %s, which a %s model does not have; it has %s",
                   lk_module_name((lk_module)missing), config->model_type, there);
}

static lk_status fill_sites(lk_adapter_site *sites, const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    bool any = false;
    if (config->router_training)
        return lk_fail(
            err, LK_ERR_UNSUPPORTED,
            "config.json sets %s, with which transformers trains a mixture of experts in another way: that is not computed here; "
            "set it to %s in the base's config.json to train as PEFT does by default",
            config->router_training, !strcmp(config->router_training, "router_jitter_noise") ? "0" : "false");
    LK_TRY(check_targets(config, spec, err));
    LK_TRY(check_names(config, spec, err));
    for (int32_t s = 0; s < lk_sites(config); s++) {
        lk_adapter_site *site = &sites[s];
        lk_site where = lk_site_at(config, s);
        double alpha = 0;
        site->n = where.n;
        site->k = where.k;
        LK_TRY(site_rank(config, spec, s, &site->rank, &alpha, &site->stacked, err));
        if (!site->rank) continue;
        any = true;
        site->shares_a = site->stacked && where.module == LK_UP;
        int64_t most = site->n < site->k && where.module != LK_ROUTER ? site->n : site->k; /* 8 experts and rank 16 are usual */
        if (site->rank < 0 || site->rank > most || site->rank > LK_ADAPTER_MAX_RANK)
            return lk_fail(err, LK_ERR_ARGUMENT, "rank %d does not fit %s of shape [%lld,%lld] (at most %lld)", site->rank,
                           lk_module_name(where.module), (long long)site->n, (long long)site->k,
                           (long long)(most < LK_ADAPTER_MAX_RANK ? most : LK_ADAPTER_MAX_RANK));
        site->dora = spec->use_dora;
        site->alpha = (float)alpha;
        site->scale = lk_adapter_scale(alpha, site->rank, spec->use_rslora);
        if (spec->init != LK_INIT_PISSA) continue;
        if (2 * site->rank > LK_ADAPTER_MAX_RANK)
            return lk_fail(err, LK_ERR_ARGUMENT, "rank %d is too large for pissa, which takes twice as much (at most %d)", site->rank,
                           LK_ADAPTER_MAX_RANK);
        site->frozen = site->rank;
        site->rank *= 2;
        site->alpha *= spec->use_rslora ? sqrtf(2.0f) : 2.0f; /* the scale stays */
    }
    if (spec->target_embedding || spec->target_head) any = true;
    if (any) return LK_OK;
    if (!spec->expression) return lk_fail(err, LK_ERR_ARGUMENT, "the adapter targets no layer at all");
    char path[220];
    lk_site_path(path, sizeof path, config, 0);
    return lk_fail(err, LK_ERR_ARGUMENT,
                   "the adapter targets no layer at all: '%.100s' has to match whole paths such as %s (a regular expression; "
                   "\"all-linear\" and lists of names are the other ways)",
                   spec->expression, path);
}

static lk_status check_spec(const lk_backend *be, const lk_adapter_spec *spec, lk_error *err)
{
    bool pissa = spec->init == LK_INIT_PISSA;
    if (spec->use_dora && spec->dropout > 0 && !lk_backend_drops(be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "a DoRA is not trained with dropout on %s; set dropout to 0, or use --device cpu",
                       lk_backend_name(be));
    if (spec->n_parameters && (spec->use_dora || pissa || spec->dropout > 0))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "target_parameters together with %s is not supported (nor by PEFT)",
                       spec->use_dora ? "dora"
                       : pissa        ? "init pissa"
                                      : "dropout");
    if ((spec->use_dora || pissa) && !lk_backend_gains(be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s is not trained on %s; use --device cpu", pissa ? "init pissa" : "dora",
                       lk_backend_name(be));
    const char *whole = spec->bias                                    ? "bias"
                        : spec->lora_bias                             ? "lora_bias"
                        : spec->save_embedding || spec->save_head     ? "modules_to_save"
                        : spec->target_embedding || spec->target_head ? "factors on embed_tokens and lm_head"
                        : spec->n_tokens                              ? "trainable_token_indices"
                                                                      : NULL;
    if (whole && !(lk_backend_trains_weights(be) && lk_backend_gains(be)))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: not trained on %s; use --device cpu", whole, lk_backend_name(be));
    return LK_OK;
}

/* Everything that has a place in the flat vector, and its place. */
static lk_status lay_out(lk_adapter *a, const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    LK_TRY(fill_sites(a->sites, config, spec, err));
    LK_TRY(lk_adapter_whole_fill(&a->whole, a->sites, config, spec, err));
    lk_adapter_place(a->sites, a->n_sites, &a->n_params, &a->max_rank);
    lk_adapter_whole_place(&a->whole, a->sites, config, &a->n_params, &a->n_decayed, &a->max_rank);
    return LK_OK;
}

lk_status lk_adapter_sizes_of(lk_adapter_sizes *sizes, const lk_backend *be, const lk_config *config, const lk_adapter_spec *spec,
                              lk_error *err)
{
    lk_adapter a = {.n_sites = lk_sites(config)};
    LK_TRY(check_spec(be, spec, err));
    a.sites = calloc((size_t)a.n_sites, sizeof *a.sites);
    if (!a.sites) return lk_fail(err, LK_ERR_MEMORY, "no memory for %d adapter sites", a.n_sites);
    lk_status status = lay_out(&a, config, spec, err);
    if (!status) {
        *sizes = (lk_adapter_sizes){
            .n_params = a.n_params, .max_rank = a.max_rank, .gains = spec->use_dora, .dropped = spec->use_dora && spec->dropout > 0};
        sizes->head = a.whole.head || a.whole.head_factors.rank || (a.whole.n_tokens && config->tied);
        sizes->n_trainable = lk_adapter_whole_trainable(&a.whole, a.sites, config);
        for (int32_t s = 0; s < a.n_sites; s++)
            sizes->n_trainable += (a.sites[s].rank - a.sites[s].frozen) * ((a.sites[s].shares_a ? 0 : a.sites[s].k) + a.sites[s].n) +
                                  (a.sites[s].dora ? a.sites[s].n : 0);
        if (sizes->gains) sizes->scratch = lk_adapter_norm_scratch(be, config);
        sizes->derived = (size_t)lk_adapter_place_extra(&a) * sizeof(float) + lk_adapter_whole_bytes(be, config, &a.whole);
    }
    free(a.sites);
    return status;
}

lk_status lk_adapter_alloc(lk_adapter **out, const lk_model *model, lk_error *err)
{
    lk_adapter *a = calloc(1, sizeof *a);
    int32_t n_sites = lk_sites(&model->config);
    lk_adapter_site *sites = calloc((size_t)n_sites, sizeof *sites);
    if (!a || !sites) {
        free(a);
        free(sites);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for an adapter");
    }
    a->model = model;
    a->n_sites = n_sites;
    a->sites = sites;
    *out = a;
    return LK_OK;
}

/* One uniform number an element, the element's place in the flat vector as the counter: the same whatever the machine. */
void lk_adapter_uniform(float *a, int64_t first, int64_t n, float bound, lk_philox_key key)
{
    uint32_t word[4];
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) lk_philox(key, 0, (uint64_t)(first + i), word);
        a[i] = (2.0f * lk_philox_uniform(word[i % 4]) - 1.0f) * bound;
    }
}

/* The same with normal numbers (Box and Muller 1958), two words each. */
void lk_adapter_normal(float *a, int64_t first, int64_t n, double deviation, lk_philox_key key)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t word[4];
        lk_philox(key, 1, (uint64_t)(first + i), word);
        double u = ((double)word[0] + 0.5) / 4294967296.0, v = (double)word[1] / 4294967296.0;
        a[i] = (float)(deviation * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
}

static int by_number(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return a < b ? -1 : a > b;
}

/* In memory of the backend, by rising number. */
static lk_status take_tokens(lk_adapter *a, const lk_adapter_spec *spec, lk_error *err)
{
    lk_backend *be = a->model->be;
    size_t bytes = (size_t)spec->n_tokens * sizeof *a->token_ids;
    void *memory = NULL;
    if (!spec->n_tokens) return LK_OK;
    int32_t *ids = malloc(bytes);
    if (!ids) return lk_fail(err, LK_ERR_MEMORY, "no memory for %d trained tokens", spec->n_tokens);
    memcpy(ids, spec->tokens, bytes);
    qsort(ids, (size_t)spec->n_tokens, sizeof *ids, by_number);
    lk_status status = lk_alloc(be, bytes, &memory);
    if (!status) status = lk_upload(be, memory, ids, bytes);
    free(ids);
    a->own = be;
    a->token_ids = memory;
    a->n_tokens = spec->n_tokens;
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

lk_status lk_adapter_create(lk_adapter **out, const lk_model *model, const lk_adapter_spec *spec, uint64_t seed, lk_error *err)
{
    *out = NULL;
    lk_adapter *a = NULL;
    LK_TRY(lk_adapter_alloc(&a, model, err));
    a->type = LK_F32;
    a->use_rslora = spec->use_rslora;
    a->dropout = spec->dropout;
    float *host = NULL;
    lk_status status = check_spec(model->be, spec, err);
    if (!status) status = lay_out(a, &model->config, spec, err);
    if (!status) status = take_tokens(a, spec, err);
    if (status) goto out;
    host = calloc((size_t)a->n_params, sizeof *host);
    if (!host) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for %lld adapter parameters", (long long)a->n_params);
        goto out;
    }
    lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_INIT);
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (spec->init == LK_INIT_GAUSSIAN)
            lk_adapter_normal(host + site->a, site->a, site->rank * site->k, 1.0 / (double)(site->rank ? site->rank : 1), key);
        else
            lk_adapter_uniform(host + site->a, site->a, site->rank * site->k, (float)(1.0 / sqrt((double)site->k)), key);
    }
    if (spec->init == LK_INIT_PISSA && (status = lk_adapter_pissa(a, host, seed, err))) goto out;
    if ((status = lk_adapter_whole_init(a, spec, host, seed, err))) goto out;
    status = lk_adapter_set(a, host, err);
    if (!status && (spec->use_dora || spec->lora_bias || lk_adapter_whole_any(&a->whole))) status = lk_adapter_extras_create(a, err);
out:
    free(host);
    if (status)
        lk_adapter_destroy(a);
    else
        *out = a;
    return status;
}

lk_status lk_adapter_set(lk_adapter *a, const float *host, lk_error *err)
{
    lk_backend *be = a->model->be;
    size_t bytes = lk_adapter_bytes(a);
    lk_status status = LK_OK;
    if (!a->weights && (status = lk_alloc(be, bytes, &a->weights))) return lk_backend_fail(be, status, err);
    if (a->type == LK_F32) {
        if ((status = lk_upload(be, a->weights, host, bytes))) return lk_backend_fail(be, status, err);
    } else {
        void *narrow = malloc(bytes);
        if (!narrow) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld adapter parameters", (long long)a->n_params);
        lk_from_f32(narrow, a->type, host, a->n_params);
        status = lk_upload(be, a->weights, narrow, bytes);
        free(narrow);
        if (status) return lk_backend_fail(be, status, err);
    }
    return lk_adapter_update_digest(a, err);
}

void lk_adapter_destroy(lk_adapter *a)
{
    if (!a) return;
    lk_adapter_extras_free(a);
    if (!a->lent) lk_free(a->model->be, a->weights);
    free(a->sites);
    free(a);
}

size_t lk_adapter_bytes(const lk_adapter *a) { return (size_t)a->n_params * (size_t)lk_dtype_size(a->type); }

void lk_adapter_digest(lk_adapter *a, const void *values)
{
    lk_sha256 hash;
    lk_sha256_init(&hash);
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        char text[64];
        int n = snprintf(text, sizeof text, "%d %d %.9g;", s, site->rank, (double)site->scale);
        lk_sha256_update(&hash, text, (size_t)n);
    }
    const lk_table_factors *factors[] = {&a->whole.embedding_factors, &a->whole.head_factors};
    for (int i = 0; i < 2; i++) {
        char text[64];
        int n = snprintf(text, sizeof text, "table %d %d %.9g;", i, factors[i]->rank, (double)factors[i]->scale);
        if (factors[i]->rank) lk_sha256_update(&hash, text, (size_t)n);
    }
    if (a->whole.n_tokens) lk_sha256_update(&hash, a->token_ids, (size_t)a->n_tokens * sizeof *a->token_ids); /* trained: the host's */
    lk_sha256_update(&hash, values, lk_adapter_bytes(a));
    lk_sha256_update(&hash, a->values_digest, strlen(a->values_digest));
    lk_sha256_final(&hash, a->digest);
}

lk_status lk_adapter_update_digest(lk_adapter *a, lk_error *err)
{
    size_t bytes = lk_adapter_bytes(a);
    void *host = malloc(bytes ? bytes : 1);
    if (!host) return lk_fail(err, LK_ERR_MEMORY, "no memory to digest the adapter");
    lk_status status = lk_download(a->model->be, host, a->weights, bytes);
    if (status) {
        free(host);
        return lk_backend_fail(a->model->be, status, err);
    }
    lk_adapter_digest(a, host);
    free(host);
    return LK_OK;
}

lk_status lk_adapter_decay(lk_adapter *a, float by, lk_error *err)
{
    lk_backend *be = a->model->be;
    float *w = a->weights;
    int64_t tables = a->whole.embedding_at; /* the first behind the sites' factors */
    lk_tensor rest = lk_tensor_make(w + tables, LK_F32, 1, a->n_decayed - tables);
    lk_status status = rest.cols > 0 ? lk_scale(be, &rest, &rest, by) : LK_OK;
    for (int32_t s = 0; s < a->n_sites && !status; s++) {
        const lk_adapter_site *site = &a->sites[s];
        int32_t trained = site->rank - site->frozen;
        if (!site->rank) continue;
        lk_tensor trained_a = lk_tensor_make(w + site->a, LK_F32, trained, site->k), m = lk_tensor_make(w + site->m, LK_F32, 1, site->n);
        lk_tensor all_b = lk_tensor_make(w + site->b, LK_F32, site->n, site->rank), trained_b = lk_tensor_columns(&all_b, 0, trained);
        status = lk_scale(be, &trained_a, &trained_a, by);
        if (!status) status = lk_scale(be, &trained_b, &trained_b, by);
        if (!status && site->dora) status = lk_scale(be, &m, &m, by);
    }
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

lk_status lk_adapter_mask(const lk_adapter *a, float *grads, lk_error *err)
{
    lk_backend *be = a->model->be;
    lk_status status = LK_OK;
    for (int32_t s = 0; s < a->n_sites && !status; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->frozen) continue;
        int32_t trained = site->rank - site->frozen;
        lk_tensor frozen_a = lk_tensor_make(grads + site->a + trained * site->k, LK_F32, site->frozen, site->k);
        lk_tensor all_b = lk_tensor_make(grads + site->b, LK_F32, site->n, site->rank);
        lk_tensor frozen_b = lk_tensor_columns(&all_b, trained, site->frozen);
        status = lk_clear(be, &frozen_a);
        if (!status) status = lk_clear(be, &frozen_b);
    }
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

void lk_adapter_table(lk_lora *table, const lk_adapter *const *adapters, int32_t n_adapters, float *const *grads)
{
    for (int32_t i = 0; i < n_adapters; i++) {
        const lk_adapter *a = adapters[i];
        int64_t size = lk_dtype_size(a->type);
        float *grad = grads ? grads[i] : NULL;
        for (int32_t s = 0; s < a->n_sites; s++) {
            const lk_adapter_site *site = &a->sites[s];
            lk_lora *entry = &table[(int64_t)s * n_adapters + i];
            *entry = (lk_lora){.type = a->type, .rank = site->rank, .scale = site->scale};
            if (site->own_bias)
                entry->bias = a->extra + site->bias;
            else if (site->trains_bias)
                entry->bias = (const float *)a->weights + site->bias_at;
            if (grad && site->trains_bias) entry->dbias = grad + site->bias_at;
            if (grad && site->trains_lora_bias) entry->dlora_bias = grad + site->lora_bias_at;
            if (!site->rank) continue;
            if (site->dora) {
                entry->gain = a->extra + site->gain;
                entry->inverse_norm = a->extra + site->inverse_norm;
                if (grad) entry->dm = grad + site->m;
            }
            entry->a = (const char *)a->weights + site->a * size;
            entry->b = (const char *)a->weights + site->b * size;
            if (grad) entry->da = grad + site->a, entry->db = grad + site->b;
        }
    }
}
