#include "model/adapter_parts.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/pool.h"
#include "model/adapter.h"
#include "model/names.h"
#include "model/sites.h"
#include "model/weights.h"

static const char embedding_name[] = "model.embed_tokens", head_name[] = "lm_head";

/* ---- finding ---- */

typedef struct finder {
    lk_adapter_parts *parts;
    const lk_config *config;
    const char *where, *base;
    lk_error *err;
} finder;

static lk_status expect_table(const finder *f, const char *name, const lk_st_tensor *t)
{
    if (t->shape[0] == f->config->vocab && t->shape[1] == f->config->hidden) return LK_OK;
    return lk_fail(f->err, LK_ERR_MISMATCH,
                   "adapter %s: its %s is [%" PRId64 ",%" PRId64 "], but %s has [%" PRId64 ",%" PRId64
                   "] there: another base model, or one whose "
                   "vocabulary was resized; save and use that model",
                   f->where, name, t->shape[0], t->shape[1], f->base, f->config->vocab, f->config->hidden);
}

static lk_status place_embedding_lora(const finder *f, const lk_peft_module *m, const char *name)
{
    if (strcmp(name, embedding_name))
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s adapts the embedding %s, which %s does not have", f->where, m->name, f->base);
    if (m->magnitude)
        return lk_fail(f->err, LK_ERR_UNSUPPORTED,
                       "adapter %s: use_dora on an embedding (%s) is not supported; leave it out of target_modules", f->where, m->name);
    if (m->bias)
        return lk_fail(f->err, LK_ERR_UNSUPPORTED, "adapter %s: lora_bias on an embedding (%s) is not supported", f->where, m->name);
    if (m->a->shape[1] != f->config->vocab || m->b->shape[0] != f->config->hidden)
        return lk_fail(f->err, LK_ERR_MISMATCH,
                       "adapter %s: %s adapts a [%" PRId64 ",%" PRId64 "] embedding, but %s has [%" PRId64 ",%" PRId64
                       "]: another base model",
                       f->where, m->name, m->a->shape[1], m->b->shape[0], f->base, f->config->vocab, f->config->hidden);
    f->parts->embedding_lora = m;
    return LK_OK;
}

static lk_status put_site(const finder *f, const lk_peft_module *m, int32_t site, lk_adapter_slice slice)
{
    if (f->parts->sites[site])
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s adapts the same weights twice: %s and %s", f->where,
                       f->parts->sites[site]->name, m->name);
    f->parts->sites[site] = m;
    f->parts->slices[site] = slice;
    return LK_OK;
}

static lk_status place_head_lora(const finder *f, const lk_peft_module *m)
{
    if (m->magnitude || m->bias)
        return lk_fail(f->err, LK_ERR_UNSUPPORTED, "adapter %s: %s on the head (%s) is not supported; leave it out of target_modules",
                       f->where, m->magnitude ? "use_dora" : "lora_bias", m->name);
    if (m->a->shape[1] != f->config->hidden || m->b->shape[0] != f->config->vocab)
        return lk_fail(f->err, LK_ERR_MISMATCH,
                       "adapter %s: %s adapts a [%" PRId64 ",%" PRId64 "] head, but %s has [%" PRId64 ",%" PRId64 "]: another base model",
                       f->where, m->name, m->b->shape[0], m->a->shape[1], f->base, f->config->vocab, f->config->hidden);
    f->parts->head_lora = m;
    return LK_OK;
}

/* Factors on a parameter in which transformers stacks a layer's experts: gate over up, or down. */
static lk_status place_stacked(const finder *f, const lk_peft_module *m, const char *name)
{
    const lk_config *c = f->config;
    bool gate_up;
    int64_t layer = lk_stacked_find(c, name, &gate_up);
    if (layer < 0)
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s adapts %s (target_parameters), which %s does not have", f->where, m->name,
                       f->base);
    int64_t n = gate_up ? 2 * c->intermediate : c->hidden, k = gate_up ? c->hidden : c->intermediate;
    int64_t in = m->a->shape[1], out = m->b->shape[0];
    bool straight = in == k && out == n, turned = in == n && out == k;
    if ((!straight && !turned) || m->experts != c->experts)
        return lk_fail(f->err, LK_ERR_MISMATCH,
                       "adapter %s: %s adapts %" PRId64 " matrices [%" PRId64 ",%" PRId64 "], but %s has %" PRId64 " of [%" PRId64
                       ",%" PRId64 "] there: another base model, or another rank",
                       f->where, m->name, m->experts, out, in, f->base, c->experts, n, k);
    for (int32_t e = 0; e < c->experts; e++) {
        lk_adapter_slice slice = {e, 0, !straight};
        LK_TRY(put_site(f, m, lk_site_of(c, layer, gate_up ? LK_GATE : LK_DOWN, e), slice));
        slice.row = c->intermediate;
        if (gate_up) LK_TRY(put_site(f, m, lk_site_of(c, layer, LK_UP, e), slice));
    }
    return LK_OK;
}

/* name: as a text model has it (model/names.h). */
static lk_status place_module(const finder *f, const lk_peft_module *m, const char *name)
{
    if (m->experts) return place_stacked(f, m, name);
    if (m->embedding) return place_embedding_lora(f, m, name);
    if (!strcmp(name, head_name)) return place_head_lora(f, m);
    int32_t number = lk_site_find(f->config, name);
    if (number < 0)
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s adapts %s, which is not a linear layer of %s (%" PRId64 " layers)", f->where,
                       m->name, f->base, f->config->layers);
    lk_site site = lk_site_at(f->config, number);
    if (m->a->shape[1] != site.k || m->b->shape[0] != site.n)
        return lk_fail(f->err, LK_ERR_MISMATCH,
                       "adapter %s: %s adapts a [%" PRId64 ",%" PRId64 "] layer, but %s has [%" PRId64 ",%" PRId64
                       "] there: another base model",
                       f->where, m->name, m->b->shape[0], m->a->shape[1], f->base, site.n, site.k);
    return put_site(f, m, number, (lk_adapter_slice){.expert = -1});
}

static lk_status place_bias(const finder *f, const lk_peft_value *v, const char *name)
{
    int32_t number = lk_site_find(f->config, name);
    lk_site site = {0};
    if (number >= 0) site = lk_site_at(f->config, number);
    if (number < 0 || !site.bias)
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s brings a bias for %s, which has none in %s", f->where, v->name, f->base);
    if (v->tensor->shape[0] != site.n)
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s: the bias of %s has %" PRId64 " elements, that of %s %" PRId64, f->where,
                       v->name, v->tensor->shape[0], f->base, site.n);
    f->parts->biases[number] = v->tensor;
    return LK_OK;
}

static lk_status place_tokens(const finder *f, const lk_peft_value *v, const char *name)
{
    bool embedding = !strcmp(name, embedding_name);
    if (!embedding && strcmp(name, head_name))
        return lk_fail(f->err, LK_ERR_UNSUPPORTED, "adapter %s: trainable_token_indices of %s; only %s and %s have trained tokens",
                       f->where, v->name, embedding_name, head_name);
    if (v->tensor->shape[1] != f->config->hidden)
        return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s: its trained tokens have width %" PRId64 ", %s has %" PRId64, f->where,
                       v->tensor->shape[1], f->base, f->config->hidden);
    for (int64_t i = 0; i < v->tensor->shape[0]; i++)
        if (v->ids[i] >= f->config->vocab)
            return lk_fail(f->err, LK_ERR_MISMATCH, "adapter %s: token %d of trainable_token_indices is outside the vocabulary of %s",
                           f->where, v->ids[i], f->base);
    *(embedding ? &f->parts->embedding_tokens : &f->parts->head_tokens) = v;
    return LK_OK;
}

static lk_status place_weight(const finder *f, const lk_peft_value *v, const char *name)
{
    bool embedding = !strcmp(name, embedding_name);
    if (!embedding && strcmp(name, head_name))
        return lk_fail(f->err, LK_ERR_UNSUPPORTED, "adapter %s: modules_to_save holds %s; only embed_tokens and lm_head can be replaced",
                       f->where, v->name);
    LK_TRY(expect_table(f, v->name, v->tensor));
    if (v->kind == LK_PEFT_BASE)
        *(embedding ? &f->parts->embedding_base : &f->parts->head_base) = v->tensor;
    else
        *(embedding ? &f->parts->embedding : &f->parts->head) = v->tensor;
    return LK_OK;
}

static lk_status place_value(const finder *f, const lk_peft_value *v, const char *name)
{
    switch (v->kind) {
    case LK_PEFT_BIAS: return place_bias(f, v, name);
    case LK_PEFT_TOKENS: return place_tokens(f, v, name);
    default: return place_weight(f, v, name);
    }
}

/* Everything, but what an adapter of a model of images and text has in its images: a text never comes there. */
static lk_status place_all(const finder *f)
{
    const lk_peft *peft = f->parts->peft;
    const char *name;
    char text[600];
    int64_t left_out = 0;
    for (int64_t i = 0; i < lk_peft_count(peft); i++) {
        const lk_peft_module *m = lk_peft_at(peft, i);
        if ((name = lk_text_name(f->config, m->name, text, sizeof text)))
            LK_TRY(place_module(f, m, name));
        else
            left_out++;
    }
    for (int64_t i = 0; i < lk_peft_n_values(peft); i++) {
        const lk_peft_value *v = lk_peft_value_at(peft, i);
        if ((name = lk_text_name(f->config, v->name, text, sizeof text)))
            LK_TRY(place_value(f, v, name));
        else
            left_out++;
    }
    if (left_out)
        lk_log(LK_LOG_INFO, "adapter %s: what it adapts of the images of a %s model (%" PRId64 " modules) is left out", f->where,
               f->config->part_of, left_out);
    return LK_OK;
}

/* What a tied head does when the embedding changes (PEFT: trained tokens follow; copies and factors stay the embedding's alone unless
 * ensure_weight_tying). */
static lk_status settle_tie(const finder *f)
{
    lk_adapter_parts *p = f->parts;
    bool tie = lk_peft_ties_tables(p->peft);
    if (!f->config->tied) return LK_OK;
    if (p->embedding_tokens && !p->head_tokens) p->head_tokens = p->embedding_tokens;
    if (tie && p->embedding) p->head = p->embedding; /* PEFT writes the one table under both names */
    if (tie && (p->embedding_lora || p->head_lora))
        return lk_fail(f->err, LK_ERR_UNSUPPORTED, "adapter %s: ensure_weight_tying with factors on a tied embedding is not supported",
                       f->where);
    p->unties = p->embedding != p->head || p->embedding_lora || p->head_lora || p->embedding_tokens != p->head_tokens;
    return LK_OK;
}

lk_status lk_adapter_parts_find(lk_adapter_parts *parts, const lk_peft *peft, const lk_config *config, const char *where, const char *base,
                                lk_error *err)
{
    *parts = (lk_adapter_parts){.peft = peft};
    finder f = {parts, config, where, base, err};
    size_t n = (size_t)lk_sites(config);
    parts->sites = calloc(n, sizeof *parts->sites);
    parts->slices = calloc(n, sizeof *parts->slices);
    parts->biases = calloc(n, sizeof *parts->biases);
    lk_status status = parts->sites && parts->slices && parts->biases ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "adapter %s: no memory", where);
    if (!status) status = place_all(&f);
    if (!status) status = settle_tie(&f);
    if (status) lk_adapter_parts_free(parts);
    return status;
}

void lk_adapter_parts_free(lk_adapter_parts *parts)
{
    free(parts->sites);
    free(parts->slices);
    free(parts->biases);
    memset(parts, 0, sizeof *parts);
}

/* ---- values ---- */

static lk_status put_tokens(const lk_peft_value *tokens, int64_t hidden, int64_t first, int64_t n, float *rows, lk_error *err)
{
    for (int64_t i = 0; tokens && i < tokens->tensor->shape[0]; i++) {
        int64_t id = tokens->ids[i];
        if (id < first || id >= first + n) continue;
        LK_TRY(lk_st_read_f32(tokens->tensor, i * hidden, hidden, rows + (id - first) * hidden, err));
    }
    return LK_OK;
}

/* rows[v] += scale * B A[:,v]. */
static lk_status add_embedding_lora(const lk_peft_module *m, const lk_config *config, int64_t first, int64_t n, float *rows, lk_error *err)
{
    int64_t hidden = config->hidden;
    float *a = malloc((size_t)(m->rank * n) * 4), *b = malloc((size_t)(m->rank * hidden) * 4);
    lk_status status = a && b ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    for (int32_t r = 0; r < m->rank && !status; r++) status = lk_st_read_f32(m->a, r * config->vocab + first, n, a + r * n, err);
    if (!status) status = lk_st_read_f32(m->b, 0, m->rank * hidden, b, err);
    for (int64_t v = 0; v < n && !status; v++)
        for (int64_t c = 0; c < hidden; c++) {
            float sum = 0;
            for (int32_t r = 0; r < m->rank; r++) sum += b[c * m->rank + r] * a[r * n + v];
            rows[v * hidden + c] += (float)m->scale * sum;
        }
    free(a);
    free(b);
    return status;
}

/* rows[v] += scale * B[v] A. */
static lk_status add_head_lora(const lk_peft_module *m, const lk_config *config, int64_t first, int64_t n, float *rows, lk_error *err)
{
    int64_t hidden = config->hidden;
    float *a = malloc((size_t)(m->rank * hidden) * 4), *b = malloc((size_t)(m->rank * n) * 4);
    lk_status status = a && b ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    if (!status) status = lk_st_read_f32(m->a, 0, m->rank * hidden, a, err);
    if (!status) status = lk_st_read_f32(m->b, first * m->rank, n * m->rank, b, err);
    for (int64_t v = 0; v < n && !status; v++)
        for (int32_t r = 0; r < m->rank; r++) {
            float by = (float)m->scale * b[v * m->rank + r];
            for (int64_t c = 0; c < hidden; c++) rows[v * hidden + c] += by * a[r * hidden + c];
        }
    free(a);
    free(b);
    return status;
}

lk_status lk_adapter_embedding_rows(const lk_adapter_parts *p, const lk_config *config, int64_t first, int64_t n, float *rows,
                                    lk_error *err)
{
    const lk_st_tensor *whole = p->embedding ? p->embedding : p->embedding_base;
    if (whole) LK_TRY(lk_st_read_f32(whole, first * config->hidden, n * config->hidden, rows, err));
    if (p->embedding_lora) LK_TRY(add_embedding_lora(p->embedding_lora, config, first, n, rows, err));
    return put_tokens(p->embedding_tokens, config->hidden, first, n, rows, err);
}

lk_status lk_adapter_head_rows(const lk_adapter_parts *p, const lk_config *config, int64_t first, int64_t n, float *rows, lk_error *err)
{
    const lk_st_tensor *whole = p->head ? p->head : p->head_base ? p->head_base : config->tied ? p->embedding_base : NULL;
    if (whole) LK_TRY(lk_st_read_f32(whole, first * config->hidden, n * config->hidden, rows, err));
    if (p->head_lora) LK_TRY(add_head_lora(p->head_lora, config, first, n, rows, err));
    return put_tokens(p->head_tokens, config->hidden, first, n, rows, err);
}

typedef struct delta_job {
    float *w;
    const float *a, *b, *magnitude;
    int64_t k;
    int32_t rank;
    float scale;
} delta_job;

static void add_delta(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const delta_job *job = context;
    for (int64_t n = begin; n < end; n++) {
        float *row = job->w + n * job->k;
        for (int32_t r = 0; r < job->rank; r++) {
            float factor = job->scale * job->b[n * job->rank + r];
            const float *a = job->a + r * job->k;
            for (int64_t k = 0; k < job->k; k++) row[k] += factor * a[k];
        }
        if (!job->magnitude) continue;
        double squares = 0;
        for (int64_t k = 0; k < job->k; k++) squares += (double)row[k] * (double)row[k];
        float gain = job->magnitude[n] / (float)sqrt(squares);
        for (int64_t k = 0; k < job->k; k++) row[k] *= gain;
    }
}

lk_status lk_adapter_add_delta(const lk_adapter_parts *p, int32_t site, float *w, int64_t n, int64_t k, lk_pool *pool, lk_error *err)
{
    const lk_peft_module *m = p->sites[site];
    float *a = malloc((size_t)(m->rank * k) * 4), *b = malloc((size_t)(m->rank * n) * 4), *magnitude = NULL;
    lk_status status = LK_OK;
    if (m->magnitude) magnitude = malloc((size_t)n * 4);
    if (!a || !b || (m->magnitude && !magnitude)) status = lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    if (!status) status = lk_adapter_factors(p, site, n, k, a, b, err);
    if (!status && magnitude) status = lk_st_read_f32(m->magnitude, 0, n, magnitude, err);
    if (!status) {
        delta_job job = {w, a, b, magnitude, k, m->rank, (float)m->scale};
        lk_pool_run(pool, n, 8, add_delta, &job);
    }
    free(a);
    free(b);
    free(magnitude);
    return status;
}

lk_status lk_adapter_bias(const lk_adapter_parts *p, int32_t site, int64_t n, float *bias, bool *given, lk_error *err)
{
    const lk_peft_module *m = p->sites[site];
    *given = p->biases[site] || (m && m->bias);
    if (p->biases[site]) LK_TRY(lk_st_read_f32(p->biases[site], 0, n, bias, err));
    for (int64_t i = 0; m && m->bias && i < n; i++) {
        float value;
        LK_TRY(lk_st_read_f32(m->bias, i, 1, &value, err));
        bias[i] += (float)m->scale * value;
    }
    return LK_OK;
}

/* ---- a whole folder ---- */

lk_status lk_adapter_fits(const lk_peft *peft, const char *path, const char *base, lk_error *err)
{
    lk_config config;
    lk_safetensors *st = NULL;
    lk_pool *pool = NULL;
    lk_adapter_parts parts = {0};
    char identity[65];
    const char *stamp = lk_peft_metadata(peft, "lorikeet.base_identity");
    lk_status status;
    if ((status = lk_config_read(&config, base, err))) return status;
    if ((status = lk_adapter_parts_find(&parts, peft, &config, path, base, err))) goto out;
    if (!stamp) goto out;
    if ((status = lk_weights_open(&st, base, &config, err))) goto out;
    if ((status = lk_pool_create(&pool, 0, err))) goto out;
    if ((status = lk_weights_identity(st, &config, pool, identity, err))) goto out;
    if (strcmp(stamp, identity))
        status =
            lk_fail(err, LK_ERR_MISMATCH, "the adapter was trained on another base (%.12s...) than %s (%.12s...)", stamp, base, identity);
out:
    lk_pool_destroy(pool);
    lk_safetensors_close(st);
    lk_adapter_parts_free(&parts);
    return status;
}
