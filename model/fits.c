#include "model/fits.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/bnb.h"
#include "model/config.h"
#include "model/gguf_map.h"
#include "model/sites.h"
#include "model/weights.h"

enum { MOST_COMPARED = 65536 };

/* ---- two models ---- */

typedef struct side {
    const char *path;
    lk_config config;
    lk_safetensors *st;
    char identity[65];
} side;

static lk_status open_side(side *s, lk_pool *pool, lk_error *err)
{
    LK_TRY(lk_config_read(&s->config, s->path, err));
    LK_TRY(lk_weights_open(&s->st, s->path, &s->config, err));
    return lk_weights_identity(s->st, &s->config, pool, s->identity, err);
}

static lk_status same_layers(const side *a, const side *b, lk_error *err)
{
    const lk_config *x = &a->config, *y = &b->config;
    const struct {
        const char *what;
        int64_t here, there;
    } facts[] = {
        {"hidden_size", x->hidden, y->hidden},
        {"layers", x->layers, y->layers},
        {"heads", x->heads, y->heads},
        {"kv_heads", x->kv_heads, y->kv_heads},
        {"head_dim", x->head_dim, y->head_dim},
        {"vocab_size", x->vocab, y->vocab},
        {"intermediate_size", x->intermediate, y->intermediate},
        {"experts", x->experts, y->experts},
        {"linear layers", lk_sites(x), lk_sites(y)},
        {"norms", x->norms, y->norms},
        {"norms of queries and keys", x->qk_norm, y->qk_norm},
        {"fused layers", x->fused, y->fused},
        {"activation", x->activation, y->activation},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (facts[i].here != facts[i].there)
            return lk_fail(err, LK_ERR_MISMATCH, "another model: %s is %lld, in %s %lld (%s and %s)", facts[i].what,
                           (long long)facts[i].here, b->path, (long long)facts[i].there, x->model_type, y->model_type);
    return LK_OK;
}

/* Of the base's values; a[n] and b[n] are read here. */
static lk_status difference_of(const lk_st_tensor *a, const lk_st_tensor *b, double *difference, lk_error *err)
{
    int64_t n = a->n_elements < MOST_COMPARED ? a->n_elements : MOST_COMPARED;
    float *x = malloc((size_t)(2 * n + 1) * sizeof *x), *y = x + n;
    if (!x) return lk_fail(err, LK_ERR_MEMORY, "no memory to compare %s", a->name);
    double apart = 0, size = 0;
    lk_status status = lk_st_read_f32(a, 0, n, x, err);
    if (!status) status = lk_st_read_f32(b, 0, n, y, err);
    for (int64_t i = 0; i < n && !status; i++) {
        double d = (double)x[i] - (double)y[i];
        apart += d * d;
        size += (double)y[i] * (double)y[i];
    }
    free(x);
    *difference = apart == 0 ? 0 : sqrt(apart / (size > 0 ? size : apart));
    return status;
}

static lk_status same_weights(const side *a, const side *b, lk_likeness *out, lk_error *err)
{
    for (int64_t i = 0; i < lk_safetensors_count(a->st); i++) {
        const lk_st_tensor *t = lk_safetensors_at(a->st, i), *other = lk_safetensors_find(b->st, t->name);
        if (lk_bnb_is_state(t->name) || strstr(t->name, ".rotary_emb.") || !strcmp(t->name, "lm_head.weight")) continue;
        if (!other) return lk_fail(err, LK_ERR_MISMATCH, "another model: %s has no tensor %s", b->path, t->name);
        if (lk_bnb_is_quantized(a->st, t->name) || lk_bnb_is_quantized(b->st, t->name)) continue;
        if (t->n_elements != other->n_elements)
            return lk_fail(err, LK_ERR_MISMATCH, "another model: %s has %lld values, in %s %lld", t->name, (long long)t->n_elements,
                           b->path, (long long)other->n_elements);
        double difference;
        LK_TRY(difference_of(t, other, &difference, err));
        if (!(difference > out->difference)) continue;
        out->difference = difference;
        snprintf(out->tensor, sizeof out->tensor, "%s", t->name);
    }
    if (out->difference <= 0.25) return LK_OK;
    return lk_fail(err, LK_ERR_MISMATCH, "another model of the same sizes: %s differs from that of %s by %.0f%% of its size", out->tensor,
                   b->path, 100 * out->difference);
}

lk_status lk_model_fits(const char *path, const char *base, lk_likeness *out, lk_error *err)
{
    side *sides = calloc(2, sizeof *sides); /* configurations are large */
    lk_pool *pool = NULL;
    memset(out, 0, sizeof *out);
    lk_status status = sides ? lk_pool_create(&pool, 0, err) : lk_fail(err, LK_ERR_MEMORY, "no memory to compare %s", path);
    if (status) goto out;
    sides[0].path = path;
    sides[1].path = base;
    for (int i = 0; i < 2; i++)
        if ((status = open_side(&sides[i], pool, err))) goto out;
    out->same_identity = !strcmp(sides[0].identity, sides[1].identity);
    if ((status = same_layers(&sides[0], &sides[1], err))) goto out;
    status = same_weights(&sides[0], &sides[1], out, err);
out:
    for (int i = 0; sides && i < 2; i++) lk_safetensors_close(sides[i].st);
    lk_pool_destroy(pool);
    free(sides);
    return status;
}

/* ---- llama.cpp's adapter ---- */

/* "blk.0.attn_q.weight.lora_a": the shape its matrix has in the base, n == 0 when that has none. */
static void matrix_of(const lk_gguf_family *f, const lk_config *c, const char *name, int64_t *n, int64_t *k)
{
    char tensor[300];
    lk_gguf_place place;
    *n = *k = 0;
    if (!lk_gguf_tensor_of(tensor, sizeof tensor, &place, f, name, 0) || place.bias) return;
    if (!strcmp(tensor, "lm_head.weight") || !strcmp(tensor, "model.embed_tokens.weight")) {
        *n = c->vocab;
        *k = c->hidden;
        return;
    }
    tensor[strlen(tensor) - strlen(".weight")] = 0;
    int32_t number = lk_site_find(c, tensor);
    if (number < 0) return;
    lk_site site = lk_site_at(c, number);
    *n = site.n;
    *k = site.k;
}

static lk_status factor_fits(const lk_gguf *g, const lk_gguf_tensor *t, const lk_gguf_family *f, const lk_config *c, const char *base,
                             lk_error *err)
{
    char name[LK_GGUF_MAX_NAME + 1], other[LK_GGUF_MAX_NAME + 1];
    size_t size = strlen(t->name), end = strlen(".lora_a");
    bool a = size > end && !strcmp(t->name + size - end, ".lora_a"), b = size > end && !strcmp(t->name + size - end, ".lora_b");
    if (!a && !b) return lk_fail(err, LK_ERR_MISMATCH, "%s is no factor of a LoRA", t->name);
    snprintf(name, sizeof name, "%.*s", (int)(size - end), t->name);
    snprintf(other, sizeof other, "%s.lora_%c", name, a ? 'b' : 'a');
    const lk_gguf_tensor *pair = lk_gguf_find(g, other);
    int64_t n, k;
    if (!pair) return lk_fail(err, LK_ERR_MISMATCH, "%s is missing beside %s", other, t->name);
    matrix_of(f, c, name, &n, &k);
    if (!n) return lk_fail(err, LK_ERR_MISMATCH, "%s adapts %s, which %s does not have", t->name, name, base);
    int last = t->n_dims - 1; /* experts are one more dimension in front */
    if (last < 1 || pair->n_dims != t->n_dims || t->shape[a ? last : last - 1] != (a ? k : n))
        return lk_fail(err, LK_ERR_MISMATCH, "%s is not for a [%lld,%lld] matrix, which %s has there", t->name, (long long)n, (long long)k,
                       base);
    if (a && t->shape[last - 1] != pair->shape[last])
        return lk_fail(err, LK_ERR_MISMATCH, "%s has rank %lld, %s %lld", t->name, (long long)t->shape[last - 1], other,
                       (long long)pair->shape[last]);
    return LK_OK;
}

lk_status lk_gguf_lora_fits(const lk_gguf *g, const char *base, lk_error *err)
{
    lk_config c;
    const char *architecture;
    size_t size;
    LK_TRY(lk_config_read(&c, base, err));
    const lk_gguf_family *f = lk_gguf_family_of(c.model_type);
    if (!f) return lk_fail(err, LK_ERR_MISMATCH, "llama.cpp has no architecture for %s, a %s model", base, c.model_type);
    LK_TRY(lk_gguf_string(g, "general.architecture", &architecture, &size, err));
    if (size != strlen(f->architecture) || memcmp(architecture, f->architecture, size))
        return lk_fail(err, LK_ERR_MISMATCH, "an adapter for %.*s models; %s is %s to llama.cpp", size > 40 ? 40 : (int)size, architecture,
                       base, f->architecture);
    for (int64_t i = 0; i < lk_gguf_count(g); i++) LK_TRY(factor_fits(g, lk_gguf_at(g, i), f, &c, base, err));
    return LK_OK;
}

/* ---- loose tensors ---- */

lk_status lk_tensors_fit(const lk_safetensors *st, const char *base, lk_error *err)
{
    lk_config c;
    lk_safetensors *there = NULL;
    LK_TRY(lk_config_read(&c, base, err));
    LK_TRY(lk_weights_open(&there, base, &c, err));
    lk_status status = LK_OK;
    for (int64_t i = 0; i < lk_safetensors_count(st) && !status; i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i), *other = lk_safetensors_find(there, t->name);
        if (!strncmp(t->name, "base_model.model.", 17))
            status =
                lk_fail(err, LK_ERR_MISMATCH, "%s is part of a PEFT adapter: inspect its folder, with the adapter_config.json", t->name);
        else if (!other)
            status = lk_fail(err, LK_ERR_MISMATCH, "%s has no tensor %s", base, t->name);
        else if (t->n_dims != other->n_dims || memcmp(t->shape, other->shape, (size_t)t->n_dims * sizeof *t->shape) != 0)
            status = lk_fail(err, LK_ERR_MISMATCH, "%s has another shape in %s", t->name, base);
    }
    lk_safetensors_close(there);
    return status;
}
