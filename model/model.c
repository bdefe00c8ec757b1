/* Opening a model: headers, then matrix by matrix (read or quantise, digest, hand to the backend), so that the host never holds more than
 * one matrix besides what is mapped. */
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/sha256.h"
#include "kernels/nf4.h"
#include "model/bnb.h"
#include "model/weights.h"

typedef struct loader {
    lk_model *model;
    lk_safetensors *st;
    lk_pool *pool;
    const lk_model_options *options;
    lk_sha256 digest;
    int64_t done, total;
    lk_error *err;
} loader;

static void hash_text(lk_sha256 *hash, const char *text) { lk_sha256_update(hash, text, strlen(text)); }

static void hash_part(loader *l, const char *name, const void *bytes, int64_t size)
{
    char hex[65];
    lk_tree_digest(l->pool, bytes, size, hex);
    hash_text(&l->digest, name);
    hash_text(&l->digest, hex);
}

static lk_status load_vector(loader *l, float **out, const char *name, int64_t n)
{
    const lk_st_tensor *t;
    int64_t shape[1] = {n};
    LK_TRY(lk_safetensors_expect(l->st, name, 1, shape, &t, l->err));
    float *host = malloc((size_t)n * 4);
    if (!host) return lk_fail(l->err, LK_ERR_MEMORY, "no memory for %s", name);
    lk_status status = lk_st_read_f32(t, 0, n, host, l->err);
    for (int64_t i = 0; i < n && !status; i++)
        if (!(host[i] - host[i] == 0.0f))
            status = lk_fail(l->err, LK_ERR_FORMAT, "%s: %s holds NaN or infinity at element %lld", t->file, name, (long long)i);
    void *device = NULL;
    if (!status &&
        ((status = lk_alloc(l->model->be, (size_t)n * 4, &device)) || (status = lk_upload(l->model->be, device, host, (size_t)n * 4))))
        lk_backend_fail(l->model->be, status, l->err);
    free(host);
    *out = device;
    return status;
}

/* A norm's weights as they multiply: with their 1, and divided. */
static lk_status load_norm(loader *l, float **out, const char *name, int64_t n, double divisor)
{
    float *weights = NULL;
    LK_TRY(load_vector(l, &weights, name, n));
    *out = weights;
    if (!l->model->config.norm_plus_one && divisor == 1.0) return LK_OK;
    float *host = malloc((size_t)n * 4);
    if (!host) return lk_fail(l->err, LK_ERR_MEMORY, "no memory for %s", name);
    lk_status status = lk_download(l->model->be, host, weights, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) host[i] = (float)((double)(l->model->config.norm_plus_one ? 1.0f + host[i] : host[i]) / divisor);
    if (!status) status = lk_upload(l->model->be, weights, host, (size_t)n * 4);
    free(host);
    return status ? lk_backend_fail(l->model->be, status, l->err) : LK_OK;
}

static void report(loader *l)
{
    l->done++;
    if (l->options->progress) l->options->progress(l->options->context, l->done, l->total);
}

static lk_status create(loader *l, lk_matrix **out, const lk_matrix_source *source)
{
    lk_status status = lk_matrix_create(l->model->be, out, source);
    return status ? lk_backend_fail(l->model->be, status, l->err) : LK_OK;
}

static lk_status load_dense(loader *l, lk_matrix **out, const char *name, int64_t n, int64_t k)
{
    const lk_st_tensor *t;
    int64_t shape[2] = {n, k};
    LK_TRY(lk_safetensors_expect(l->st, name, 2, shape, &t, l->err));
    if (t->type != LK_F32 && t->type != LK_BF16 && t->type != LK_F16)
        return lk_fail(l->err, LK_ERR_UNSUPPORTED, "%s: %s is %s; F32, BF16, F16 or bitsandbytes NF4 expected", t->file, name,
                       lk_dtype_name(t->type));
    const void *data;
    void *own;
    LK_TRY(lk_weights_bytes(t, l->pool, &data, &own, l->err));
    lk_status status = create(l, out, &(lk_matrix_source){.type = t->type, .n = n, .k = k, .data = data});
    free(own);
    if (!status) report(l);
    return status;
}

static lk_status load_linear(loader *l, lk_matrix **out, const char *name, int64_t n, int64_t k)
{
    if (l->options->quant == LK_QUANT_NONE && !lk_bnb_is_quantized(l->st, name)) {
        const lk_st_tensor *t = lk_safetensors_find(l->st, name);
        if (t && t->source) hash_part(l, name, t->source->bytes, t->source->n_bytes);
        if (t && !t->source) hash_part(l, name, t->data, t->n_bytes);
        return load_dense(l, out, name, n, k);
    }
    lk_nf4_host host;
    LK_TRY(lk_nf4_host_read(&host, l->st, name, n, k, l->pool, l->err));
    hash_part(l, name, host.codes, (n * k + 1) / 2);
    hash_part(l, "absmax", host.absmax, lk_nf4_blocks(n * k) * 4);
    lk_matrix_source source = {.type = LK_NF4,
                               .n = n,
                               .k = k,
                               .data = host.codes,
                               .absmax = host.absmax,
                               .absmax8 = host.absmax8,
                               .absmax2 = host.absmax2,
                               .absmax_offset = host.offset};
    lk_status status = create(l, out, &source);
    lk_nf4_host_free(&host);
    if (!status) report(l);
    return status;
}

static lk_status load_site(loader *l, int32_t number)
{
    lk_site site = lk_site_at(&l->model->config, number);
    lk_weight *weight = &l->model->weights[number];
    char name[300], path[200];
    lk_site_path(path, sizeof path, &l->model->config, number);
    snprintf(name, sizeof name, "%s.weight", path);
    if (site.module == LK_ROUTER) return load_dense(l, &weight->w, name, site.n, site.k);
    LK_TRY(load_linear(l, &weight->w, name, site.n, site.k));
    if (!site.bias) return LK_OK;
    snprintf(name, sizeof name, "%s.bias", path);
    return load_vector(l, &weight->bias, name, site.n);
}

static lk_status load_layer(loader *l, int64_t index)
{
    const lk_config *c = &l->model->config;
    lk_layer *layer = &l->model->layers[index];
    for (int i = 0; i < LK_N_NORMS; i++) {
        char name[300];
        int64_t width;
        const char *norm = lk_norm_name(c, (lk_norm)i, &width);
        if (!norm) continue;
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)index, norm);
        LK_TRY(load_norm(l, &layer->norm[i], name, width, 1.0));
    }
    int32_t first = lk_layer_first_site(c, index), n = lk_layer_sites(c, index);
    for (int32_t s = first; s < first + n; s++) LK_TRY(load_site(l, s));
    return LK_OK;
}

static lk_status load_all(loader *l)
{
    lk_model *model = l->model;
    const lk_config *c = &model->config;
    LK_TRY(lk_weights_check_names(l->st, c, l->err));
    LK_TRY(lk_weights_identity(l->st, c, l->pool, model->identity, l->err));
    hash_text(&l->digest, model->identity);
    LK_TRY(load_dense(l, &model->embedding, "model.embed_tokens.weight", c->vocab, c->hidden));
    for (int64_t i = 0; i < c->layers; i++) LK_TRY(load_layer(l, i));
    LK_TRY(load_norm(l, &model->final_norm, "model.norm.weight", c->hidden, c->logit_divisor > 0.0 ? c->logit_divisor : 1.0));
    const char *head = c->tied ? "model.embed_tokens.weight" : "lm_head.weight";
    if (l->options->nf4_head) return load_linear(l, &model->head, head, c->vocab, c->hidden);
    if (!c->tied) return load_dense(l, &model->head, head, c->vocab, c->hidden);
    model->head = model->embedding;
    return LK_OK;
}

static void name_from_path(lk_model *model, const char *folder)
{
    snprintf(model->path, sizeof model->path, "%s", folder);
    size_t length = strlen(model->path);
    while (length > 1 && model->path[length - 1] == '/') model->path[--length] = 0;
    const char *slash = strrchr(model->path, '/');
    snprintf(model->name, sizeof model->name, "%s", slash && slash[1] ? slash + 1 : model->path);
}

lk_status lk_model_open(lk_model **out, lk_backend *be, const char *folder, const lk_model_options *options, lk_error *err)
{
    *out = NULL;
    loader l = {.options = options, .err = err};
    lk_model *model = calloc(1, sizeof *model);
    if (!model) return lk_fail(err, LK_ERR_MEMORY, "no memory for a model");
    l.model = model;
    model->be = be;
    name_from_path(model, folder);
    lk_sha256_init(&l.digest);
    lk_status status;
    if ((status = lk_config_read(&model->config, folder, err))) goto out;
    if (model->config.experts && !lk_backend_mixes(be)) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s is a mixture of experts, which the backend %s does not run: use --device cpu", folder,
                         lk_backend_name(be));
        goto out;
    }
    model->layers = calloc((size_t)model->config.layers, sizeof *model->layers);
    model->weights = calloc((size_t)lk_sites(&model->config), sizeof *model->weights);
    if (!model->layers || !model->weights) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for %lld layers", (long long)model->config.layers);
        goto out;
    }
    if ((status = lk_weights_open(&l.st, folder, &model->config, err))) goto out;
    if (*model->config.part_of)
        lk_log(LK_LOG_INFO, "%s: the text part of a %s model; what is for images is left out", folder, model->config.part_of);
    if ((status = lk_pool_create(&l.pool, lk_backend_threads(be), err))) goto out;
    bool four_bit = lk_bnb_any(l.st);
    model->quant = four_bit ? LK_QUANT_NF4 : options->quant;
    if (four_bit && options->quant == LK_QUANT_NONE)
        lk_log(LK_LOG_INFO, "%s is a 4-bit checkpoint: its NF4 weights are used as they are", folder);
    l.total = lk_sites(&model->config) + (model->config.tied ? 1 : 2);
    status = load_all(&l);
out:
    lk_sha256_final(&l.digest, model->digest);
    lk_pool_destroy(l.pool);
    lk_safetensors_close(l.st);
    if (status) {
        lk_model_close(model);
        return status;
    }
    *out = model;
    return LK_OK;
}

void lk_model_close(lk_model *model)
{
    if (!model) return;
    lk_backend *be = model->be;
    for (int64_t i = 0; model->layers && i < model->config.layers; i++) {
        for (int n = 0; n < LK_N_NORMS; n++) lk_free(be, model->layers[i].norm[n]);
    }
    for (int32_t s = 0; model->weights && s < lk_sites(&model->config); s++) {
        lk_matrix_destroy(be, model->weights[s].w);
        lk_free(be, model->weights[s].bias);
    }
    if (model->head != model->embedding) lk_matrix_destroy(be, model->head);
    lk_matrix_destroy(be, model->embedding);
    lk_free(be, model->final_norm);
    free(model->layers);
    free(model->weights);
    free(model);
}

lk_status lk_model_probe(lk_model_facts *facts, const char *folder, lk_error *err)
{
    memset(facts, 0, sizeof *facts);
    LK_TRY(lk_config_read(&facts->config, folder, err));
    lk_safetensors *st;
    LK_TRY(lk_weights_open(&st, folder, &facts->config, err));
    const lk_st_tensor *embedding, *linear = NULL;
    int64_t shape[2] = {facts->config.vocab, facts->config.hidden};
    lk_status status = lk_safetensors_expect(st, "model.embed_tokens.weight", 2, shape, &embedding, err);
    if (!status) {
        char path[200], name[220];
        lk_site_path(path, sizeof path, &facts->config, 0);
        snprintf(name, sizeof name, "%s.weight", path);
        linear = lk_safetensors_find(st, name);
        if (!linear) status = lk_fail(err, LK_ERR_NOT_FOUND, "%s: tensor %s is missing", folder, name);
    }
    if (!status) {
        facts->dense = embedding->type;
        facts->prequantized = lk_bnb_is_quantized(st, linear->name);
        facts->linear = facts->prequantized ? LK_NF4 : linear->type;
        facts->nested = lk_bnb_is_nested(st, linear->name);
    }
    lk_safetensors_close(st);
    return status;
}

size_t lk_model_bytes(const lk_backend *be, const lk_model_facts *facts, lk_quant quant)
{
    const lk_config *c = &facts->config;
    lk_dtype linear = quant == LK_QUANT_NF4 ? LK_NF4 : facts->linear;
    bool nested = facts->prequantized ? facts->nested : linear == LK_NF4; /* quantised here: always double-quantised */
    size_t sites = 0;
    for (int32_t s = 0; s < lk_sites(c); s++) {
        lk_site site = lk_site_at(c, s);
        bool router = site.module == LK_ROUTER;
        sites += lk_matrix_bytes(be, router ? facts->dense : linear, site.n, site.k, !router && nested);
        if (site.bias) sites += (size_t)site.n * 4;
    }
    int64_t norms = 0, width;
    for (int i = 0; i < LK_N_NORMS; i++)
        if (lk_norm_name(c, (lk_norm)i, &width)) norms += width * 4;
    size_t tables = (c->tied ? 1 : 2) * lk_matrix_bytes(be, facts->dense, c->vocab, c->hidden, false);
    return sites + (size_t)(c->layers * norms) + tables + (size_t)c->hidden * 4;
}
