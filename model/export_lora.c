/* A PEFT adapter to a GGUF file. llama.cpp computes scale * B (A x) with scale = alpha/rank, one alpha for the file. */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "data/gguf.h"
#include "data/peft.h"
#include "model/names.h"
#include "model/export_gguf.h"
#include "model/gguf_config.h"
#include "model/gguf_map.h"
#include "model/sites.h"

typedef struct exporter {
    lk_config config;
    const lk_gguf_family *family;
    lk_peft *peft;
    lk_gguf_writer *w;
    double alpha;
    lk_error *err;
    int64_t n_modules;
} exporter;

static const char *kind_of(const lk_peft_value *v)
{
    return v->kind == LK_PEFT_WEIGHT   ? "modules_to_save"
           : v->kind == LK_PEFT_TOKENS ? "trainable_token_indices"
           : v->kind == LK_PEFT_BIAS   ? "bias"
                                       : "an adapted embedding";
}

/* Everything that the format has no place for, by name. */
static lk_status check_module(const exporter *e, const lk_peft_module *m, lk_gguf_place *place)
{
    const char *what = m->experts                    ? "target_parameters"
                       : m->magnitude                ? "use_dora"
                       : m->bias                     ? "lora_bias"
                       : m->embedding                ? "an adapted embedding"
                       : !strcmp(m->name, "lm_head") ? "an adapted head"
                                                     : NULL;
    if (what)
        return lk_fail(e->err, LK_ERR_UNSUPPORTED, "%s: %s has no place in a GGUF adapter; merge the adapter into its base instead",
                       m->name, what);
    char text[600], tensor[300];
    const char *name = lk_text_name(&e->config, m->name, text, sizeof text);
    int32_t number = name ? lk_site_find(&e->config, name) : -1;
    snprintf(tensor, sizeof tensor, "%s.weight", name ? name : "");
    if (number < 0 || !lk_gguf_place_of(place, e->family, tensor))
        return lk_fail(e->err, LK_ERR_MISMATCH, "the adapter adapts %s, which is not a linear layer of this %s model", m->name,
                       e->config.model_type);
    if (place->how & LK_GGUF_EXPERT)
        return lk_fail(e->err, LK_ERR_UNSUPPORTED, "%s: adapters on single experts have no place in a GGUF adapter; merge instead",
                       m->name);
    lk_site site = lk_site_at(&e->config, number);
    if (m->a->shape[1] != site.k || m->b->shape[0] != site.n)
        return lk_fail(e->err, LK_ERR_MISMATCH, "the adapter's %s is for a [%lld,%lld] layer, the base has [%lld,%lld]", m->name,
                       (long long)m->b->shape[0], (long long)m->a->shape[1], (long long)site.n, (long long)site.k);
    return LK_OK;
}

/* What an adapter of a model of images and text has in its images is left out, as the images are. */
static bool of_text(const exporter *e, const lk_peft_module *m)
{
    char text[600];
    return lk_text_name(&e->config, m->name, text, sizeof text) != NULL;
}

static lk_status check(exporter *e)
{
    const lk_peft_module *first = NULL;
    if (lk_peft_n_values(e->peft) > 0) {
        const lk_peft_value *v = lk_peft_value_at(e->peft, 0);
        return lk_fail(e->err, LK_ERR_UNSUPPORTED, "%s: %s has no place in a GGUF adapter; merge the adapter into its base instead",
                       v->name, kind_of(v));
    }
    for (int64_t i = 0; i < lk_peft_count(e->peft); i++) {
        lk_gguf_place place;
        const lk_peft_module *m = lk_peft_at(e->peft, i);
        if (!of_text(e, m)) continue;
        LK_TRY(check_module(e, m, &place));
        if (!first) first = m;
        e->n_modules++;
    }
    if (!first) return lk_fail(e->err, LK_ERR_ARGUMENT, "the adapter adapts nothing of the text part of a %s model", e->config.part_of);
    e->alpha = first->scale * first->rank;
    if (e->alpha == 0) e->alpha = 1; /* alpha 0 would mean "no scale" to llama.cpp: B becomes 0 instead */
    return LK_OK;
}

/* "blk.0.attn_q.weight.lora_a" */
static void name_of(char out[80], const lk_gguf_place *place, char which) { snprintf(out, 80, "%s.lora_%c", place->name, which); }

static lk_status write_factor(exporter *e, const lk_st_tensor *t, int64_t head_dim, double ratio)
{
    int64_t n = t->shape[0], k = t->shape[1];
    float *row = malloc((size_t)k * 4);
    if (!row) return lk_fail(e->err, LK_ERR_MEMORY, "no memory for a row of %s", t->name);
    lk_status status = LK_OK;
    for (int64_t r = 0; r < n && !status; r++) {
        int64_t source = head_dim ? lk_gguf_row(r, head_dim) : r;
        status = lk_st_read_f32(t, source * k, k, row, e->err);
        for (int64_t i = 0; ratio != 1 && i < k; i++) row[i] = (float)((double)row[i] * ratio);
        if (!status) status = lk_gguf_write(e->w, row, (size_t)k * 4, e->err);
    }
    free(row);
    return status;
}

static lk_status write_module(exporter *e, const lk_peft_module *m, bool declare)
{
    char name[80];
    lk_gguf_place place;
    const lk_ggml_type *f32 = lk_ggml_type_of(LK_GGML_F32);
    LK_TRY(check_module(e, m, &place));
    if (declare) {
        name_of(name, &place, 'a');
        LK_TRY(lk_gguf_declare(e->w, name, f32, 2, m->a->shape, e->err));
        name_of(name, &place, 'b');
        return lk_gguf_declare(e->w, name, f32, 2, m->b->shape, e->err);
    }
    bool permuted = (place.how & (LK_GGUF_ROWS_Q | LK_GGUF_ROWS_K)) != 0;
    LK_TRY(write_factor(e, m->a, 0, 1));
    double ratio = m->scale * m->rank / e->alpha;
    return write_factor(e, m->b, permuted ? e->config.head_dim : 0, ratio);
}

static lk_status write_file(exporter *e, const char *out, lk_gguf_export_result *result)
{
    LK_TRY(lk_gguf_writer_create(&e->w, out, e->err));
    LK_TRY(lk_gguf_add_string(e->w, "general.architecture", e->family->architecture, e->err));
    LK_TRY(lk_gguf_add_string(e->w, "general.type", "adapter", e->err));
    LK_TRY(lk_gguf_add_string(e->w, "adapter.type", "lora", e->err));
    LK_TRY(lk_gguf_add_f32(e->w, "adapter.lora.alpha", e->alpha, e->err));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < lk_peft_count(e->peft); i++)
            if (of_text(e, lk_peft_at(e->peft, i))) LK_TRY(write_module(e, lk_peft_at(e->peft, i), pass == 0));
    result->tensors = 2 * e->n_modules;
    result->bytes = lk_gguf_written(e->w);
    LK_TRY(lk_gguf_commit(e->w, e->err));
    e->w = NULL;
    return LK_OK;
}

lk_status lk_export_gguf_lora(const char *base, const char *adapter, const char *out, lk_gguf_export_result *result, lk_error *err)
{
    exporter e = {.err = err};
    memset(result, 0, sizeof *result);
    lk_status status;
    if ((status = lk_config_read(&e.config, base, err))) goto out;
    if ((status = lk_gguf_check_config(&e.config, base, err))) goto out;
    e.family = lk_gguf_family_of(e.config.model_type);
    if ((status = lk_peft_open(&e.peft, adapter, NULL, err))) goto out;
    if (lk_peft_count(e.peft) == 0 && lk_peft_n_values(e.peft) == 0) {
        status = lk_fail(err, LK_ERR_ARGUMENT, "%s adapts nothing", adapter);
        goto out;
    }
    if ((status = check(&e))) goto out;
    status = write_file(&e, out, result);
out:
    lk_gguf_abort(e.w);
    lk_peft_close(e.peft);
    return status;
}
