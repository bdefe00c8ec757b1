#include "model/merge.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/peft.h"
#include "kernels/nf4.h"
#include "model/adapter.h"
#include "model/adapter_parts.h"
#include "model/bnb.h"
#include "model/folder.h"
#include "model/sites.h"
#include "model/weights.h"

typedef struct merger {
    lk_config config;
    lk_safetensors *st;
    lk_peft *peft;
    lk_adapter_parts parts;
    lk_pool *pool;
    lk_st_writer *w;
    lk_merge_into into;
    lk_dtype dtype;
    lk_merge_result *result;
    lk_error *err;
} merger;

static lk_status write_as(const merger *g, const float *values, int64_t n)
{
    if (g->dtype == LK_F32) return lk_st_writer_write(g->w, values, (size_t)n * 4, g->err);
    uint16_t narrow[4096];
    for (int64_t i = 0; i < n; i += 4096) {
        int64_t count = n - i < 4096 ? n - i : 4096;
        lk_from_f32(narrow, g->dtype, values + i, count);
        LK_TRY(lk_st_writer_write(g->w, narrow, (size_t)count * 2, g->err));
    }
    return LK_OK;
}

/* Quantised as bitsandbytes would, from the fp32 sum. */
static lk_status write_nf4(const merger *g, const char *name, float *values, int64_t n, int64_t k)
{
    lk_st_tensor sum = {.name = name,
                        .type = LK_F32,
                        .n_dims = 2,
                        .shape = {n, k},
                        .n_elements = n * k,
                        .data = values,
                        .n_bytes = n * k * 4,
                        .file = "the merged model"};
    lk_nf4_host m;
    LK_TRY(lk_nf4_host_quantize(&m, &sum, n, k, g->pool, g->err));
    lk_bnb_matrix out = {name, lk_torch_dtype(g->dtype), n, k, m.codes, m.absmax8, m.absmax2, m.offset};
    lk_status status = lk_bnb_write(g->w, &out, g->err);
    lk_nf4_host_free(&m);
    return status;
}

static lk_status read_dense(const merger *g, const char *name, float *w, int64_t n, int64_t k)
{
    const lk_st_tensor *t;
    int64_t shape[2] = {n, k};
    LK_TRY(lk_safetensors_expect(g->st, name, 2, shape, &t, g->err));
    return lk_st_read_f32(t, 0, n * k, w, g->err);
}

static lk_status read_linear(const merger *g, const char *name, float *w, int64_t n, int64_t k)
{
    if (g->into == LK_MERGE_ORIGINAL) return read_dense(g, name, w, n, k);
    lk_nf4_host host;
    LK_TRY(lk_nf4_host_read(&host, g->st, name, n, k, g->pool, g->err));
    lk_nf4_dequantize(w, host.codes, host.absmax, n * k);
    lk_nf4_host_free(&host);
    return LK_OK;
}

/* One linear layer of a block: read or dequantised, plus the delta. A router is never in 4 bits. */
static lk_status write_linear(const merger *g, const char *name, int32_t number, bool router)
{
    lk_site site = lk_site_at(&g->config, number);
    int64_t n = site.n, k = site.k;
    const lk_peft_module *m = g->peft ? g->parts.sites[number] : NULL;
    float *w = malloc((size_t)(n * k) * 4);
    if (!w) return lk_fail(g->err, LK_ERR_MEMORY, "no memory for the [%lld,%lld] values of %s", (long long)n, (long long)k, name);
    lk_status status = router ? read_dense(g, name, w, n, k) : read_linear(g, name, w, n, k);
    if (!status && m) {
        status = lk_adapter_add_delta(&g->parts, number, w, n, k, g->pool, g->err);
        g->result->merged++;
    } else {
        g->result->copied++;
    }
    if (!status) status = g->into == LK_MERGE_NF4 && !router ? write_nf4(g, name, w, n, k) : write_as(g, w, n * k);
    free(w);
    return status;
}

static lk_status write_bias(const merger *g, const lk_st_tensor *t, int32_t site)
{
    float *bias = malloc((size_t)t->n_elements * 4 + 1);
    bool given = false;
    lk_status status =
        bias ? lk_st_read_f32(t, 0, t->n_elements, bias, g->err) : lk_fail(g->err, LK_ERR_MEMORY, "no memory for %s", t->name);
    if (!status && g->peft) status = lk_adapter_bias(&g->parts, site, t->n_elements, bias, &given, g->err);
    if (!status) status = write_as(g, bias, t->n_elements);
    free(bias);
    *(given ? &g->result->merged : &g->result->copied) += 1;
    return status;
}

/* Embedding or head, rows in pieces. t: where the base's values are. */
static lk_status write_table(const merger *g, const lk_st_tensor *t, bool head)
{
    enum { PIECE = 256 };
    const lk_adapter_parts *p = &g->parts;
    int64_t hidden = g->config.hidden;
    float *rows = malloc((size_t)(PIECE * hidden) * 4);
    lk_status status = rows ? LK_OK : lk_fail(g->err, LK_ERR_MEMORY, "no memory for rows of %s", t->name);
    for (int64_t v = 0; v < g->config.vocab && !status; v += PIECE) {
        int64_t n = g->config.vocab - v < PIECE ? g->config.vocab - v : PIECE;
        status = lk_st_read_f32(t, v * hidden, n * hidden, rows, g->err);
        if (!status) status = (head ? lk_adapter_head_rows : lk_adapter_embedding_rows)(p, &g->config, v, n, rows, g->err);
        if (!status) status = write_as(g, rows, n * hidden);
    }
    free(rows);
    bool changed = head ? p->head || p->head_lora || p->head_tokens : p->embedding || p->embedding_lora || p->embedding_tokens;
    *(changed ? &g->result->merged : &g->result->copied) += 1;
    return status;
}

static lk_status write_other(const merger *g, const lk_st_tensor *t)
{
    float values[4096];
    for (int64_t i = 0; i < t->n_elements; i += 4096) {
        int64_t count = t->n_elements - i < 4096 ? t->n_elements - i : 4096;
        LK_TRY(lk_st_read_f32(t, i, count, values, g->err));
        LK_TRY(write_as(g, values, count));
    }
    g->result->copied++;
    return LK_OK;
}

/* ---- which tensors there are ---- */

static const char embedding_name[] = "model.embed_tokens.weight", head_name[] = "lm_head.weight";

/* A tied model may carry a head that nobody reads. */
static bool carried(const merger *g, const lk_st_tensor *t)
{
    return !lk_bnb_is_state(t->name) && !strstr(t->name, ".rotary_emb.") && !(g->config.tied && !strcmp(t->name, head_name));
}

static int32_t bias_site(const merger *g, const char *name)
{
    char path[512];
    size_t n = strlen(name);
    if (n < 6 || n >= sizeof path || strcmp(name + n - 5, ".bias")) return -1;
    memcpy(path, name, n - 5);
    path[n - 5] = 0;
    return lk_site_find(&g->config, path);
}

static lk_status declare(const merger *g, const lk_st_tensor *t)
{
    int32_t number = lk_weights_site(&g->config, t->name);
    if (number < 0) return lk_st_writer_declare(g->w, t->name, g->dtype, t->n_dims, t->shape, g->err);
    lk_site site = lk_site_at(&g->config, number); /* a 4-bit tensor has another shape on disk */
    if (g->into == LK_MERGE_NF4) return lk_bnb_declare(g->w, t->name, site.n, site.k, g->err);
    return lk_st_writer_declare(g->w, t->name, g->dtype, 2, (int64_t[]){site.n, site.k}, g->err);
}

static lk_status write_tensor(const merger *g, const lk_st_tensor *t)
{
    int32_t number = lk_weights_site(&g->config, t->name);
    if (number >= 0) return write_linear(g, t->name, number, false);
    number = lk_weights_router(&g->config, t->name);
    if (number >= 0) return write_linear(g, t->name, number, true);
    if (!strcmp(t->name, embedding_name)) return write_table(g, t, false);
    if (!strcmp(t->name, head_name)) return write_table(g, t, true);
    number = bias_site(g, t->name);
    return number >= 0 ? write_bias(g, t, number) : write_other(g, t);
}

static lk_status write_all(const merger *g)
{
    int64_t n = lk_safetensors_count(g->st);
    int64_t shape[2] = {g->config.vocab, g->config.hidden};
    const lk_st_tensor *embedding;
    LK_TRY(lk_safetensors_expect(g->st, embedding_name, 2, shape, &embedding, g->err));
    for (int64_t i = 0; i < n; i++)
        if (carried(g, lk_safetensors_at(g->st, i))) LK_TRY(declare(g, lk_safetensors_at(g->st, i)));
    if (g->parts.unties) LK_TRY(lk_st_writer_declare(g->w, head_name, g->dtype, 2, shape, g->err));
    for (int64_t i = 0; i < n; i++)
        if (carried(g, lk_safetensors_at(g->st, i))) LK_TRY(write_tensor(g, lk_safetensors_at(g->st, i)));
    return g->parts.unties ? write_table(g, embedding, true) : LK_OK;
}

/* A bias needs a tensor to go into. */
static lk_status check_biases(const merger *g, const char *base)
{
    for (int32_t s = 0; s < lk_sites(&g->config); s++) {
        const lk_peft_module *m = g->parts.sites[s];
        if (m && m->bias && !lk_site_at(&g->config, s).bias)
            return lk_fail(g->err, LK_ERR_UNSUPPORTED,
                           "lora_bias of %s cannot be merged: a %s model has no bias there; serve %s with the adapter", m->name,
                           g->config.model_type, base);
    }
    return LK_OK;
}

static lk_status open_adapter(merger *g, const char *adapter, const char *base)
{
    LK_TRY(lk_peft_open(&g->peft, adapter, NULL, g->err));
    LK_TRY(lk_adapter_parts_find(&g->parts, g->peft, &g->config, adapter, base, g->err));
    return check_biases(g, base);
}

static lk_status resolve_into(merger *g, lk_merge_into asked, const char *base)
{
    bool four_bit = lk_bnb_any(g->st);
    const char *stamp = g->peft ? lk_peft_metadata(g->peft, "lorikeet.quantization") : NULL;
    g->into = asked;
    if (asked == LK_MERGE_AUTO) g->into = four_bit || (stamp && !strcmp(stamp, "nf4")) ? LK_MERGE_DEQUANTIZED : LK_MERGE_ORIGINAL;
    if (g->into == LK_MERGE_ORIGINAL && four_bit)
        return lk_fail(g->err, LK_ERR_ARGUMENT, "%s holds only 4-bit weights; give the 16-bit folder, or merge --into dequantized or nf4",
                       base);
    g->result->into = g->into;
    g->result->reference_nf4 = four_bit || (stamp ? !strcmp(stamp, "nf4") : g->into != LK_MERGE_ORIGINAL);
    return LK_OK;
}

lk_status lk_model_merge(const char *base, const char *adapter, const char *out, const lk_merge_options *options, lk_merge_result *result,
                         lk_error *err)
{
    merger g = {.dtype = options->dtype, .result = result, .err = err};
    memset(result, 0, sizeof *result);
    bool created = false;
    lk_status status;
    if ((status = lk_config_read(&g.config, base, err))) goto out;
    if ((status = lk_weights_open(&g.st, base, &g.config, err))) goto out;
    if ((status = lk_weights_check_names(g.st, &g.config, err))) goto out;
    if (adapter && (status = open_adapter(&g, adapter, base))) goto out;
    if ((status = lk_pool_create(&g.pool, options->threads, err))) goto out;
    if ((status = resolve_into(&g, options->into, base))) goto out;
    if (adapter && (status = lk_adapter_fits(g.peft, adapter, base, err))) goto out;
    if ((status = lk_folder_prepare_output(base, out, err))) goto out;
    created = true;
    if ((status = lk_st_writer_create(&g.w, out, "model", options->shard_bytes ? options->shard_bytes : (int64_t)5 << 30, err))) goto out;
    if ((status = write_all(&g))) goto out;
    if ((status = lk_st_writer_commit(g.w, err))) goto out;
    g.w = NULL;
    if ((status = lk_folder_copy_tokenizer(base, out, err))) goto out;
    result->untied = g.parts.unties;
    status = lk_folder_write_config(base, out, lk_torch_dtype(options->dtype),
                                    g.into == LK_MERGE_NF4 ? lk_bnb_config(options->dtype) : NULL, g.parts.unties, err);
out:
    lk_st_writer_abort(g.w);
    if (status && created) lk_folder_remove(out, NULL);
    lk_adapter_parts_free(&g.parts);
    lk_pool_destroy(g.pool);
    lk_peft_close(g.peft);
    lk_safetensors_close(g.st);
    return status;
}
