/* Model to GGUF: a list of the tensors to be written (plan), then each of them in turn, in pieces of rows that all threads share. */
#include "model/export_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "data/gguf.h"
#include "data/gguf_tokenizer.h"
#include "kernels/nf4.h"
#include "model/bnb.h"
#include "model/folder.h"
#include "model/gguf_config.h"
#include "model/gguf_map.h"
#include "model/weights.h"

enum { PIECE = 4 << 20 }; /* values converted at a time, a row at least */

/* The types by name: what most matrices get and what general.file_type says (gguf package, LlamaFileType). */
static const struct recipe {
    const char *name;
    uint32_t matrix;
    int file_type;
    bool mixed; /* head and some projections keep more bits */
} recipes[] = {
    {"f32", LK_GGML_F32, 0, false},   {"f16", LK_GGML_F16, 1, false},  {"bf16", LK_GGML_BF16, 32, false},
    {"q8_0", LK_GGML_Q8_0, 7, false}, {"q4_0", LK_GGML_Q4_0, 2, true}, {"q4_k_m", LK_GGML_Q4_K, 15, true},
};
enum { N_RECIPES = sizeof recipes / sizeof *recipes };

typedef struct item {
    const lk_st_tensor *tensor; /* of the folder; the first expert's; NULL: the divisors below */
    lk_gguf_place place;
    const lk_ggml_type *type;
    int64_t n, k; /* rows and values of a row, of one expert */
    int n_dims;
    const float *values;
} item;

typedef struct exporter {
    lk_config config;
    const lk_gguf_family *family;
    const struct recipe *recipe;
    lk_safetensors *st;
    lk_tokenizer *tk;
    lk_pool *pool;
    lk_gguf_writer *w;
    const lk_gguf_export_options *options;
    lk_gguf_export_result *result;
    lk_gguf_divisors divisors;
    item *items;
    int64_t n_items;
    lk_error *err;
} exporter;

/* ---- which type ---- */

static bool is_layer(const item *it, const char *name)
{
    const char *dot = strchr(it->place.name + strlen("blk."), '.');
    size_t n = strlen(name);
    return it->place.layer >= 0 && dot && !strncmp(dot + 1, name, n) && !strcmp(dot + 1 + n, ".weight");
}

/* Layers whose value and down projections keep more bits. */
static bool more_bits(int64_t layer, int64_t layers)
{
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static uint32_t wanted_type(const exporter *e, const item *it)
{
    if (it->n_dims == 1 || (it->place.how & LK_GGUF_KEEP_F32)) return LK_GGML_F32;
    const lk_config *c = &e->config;
    if (!e->recipe->mixed) return e->recipe->matrix;
    if (!strcmp(it->place.name, c->tied ? "token_embd.weight" : "output.weight")) return LK_GGML_Q6_K;
    if (c->experts == 8 && (is_layer(it, "attn_v") || is_layer(it, "attn_k"))) return LK_GGML_Q8_0;
    if (e->recipe->matrix != LK_GGML_Q4_K) return e->recipe->matrix;
    if (c->experts == 8 && is_layer(it, "attn_output")) return LK_GGML_Q6_K; /* Q5_K there, a type that is not written here */
    bool tender = is_layer(it, "attn_v") || is_layer(it, "attn_qkv") || is_layer(it, "ffn_down") || is_layer(it, "ffn_down_exps");
    return tender && more_bits(it->place.layer, c->layers) ? LK_GGML_Q6_K : LK_GGML_Q4_K;
}

static const lk_ggml_type *choose_type(exporter *e, const item *it)
{
    const lk_ggml_type *type = lk_ggml_type_of(wanted_type(e, it));
    if (it->k % type->block == 0) return type;
    e->result->fallbacks++;
    if (type->block == 256 && it->k % 32 == 0) return lk_ggml_type_of(LK_GGML_Q8_0);
    return lk_ggml_type_of(LK_GGML_F16);
}

/* ---- the plan ---- */

static bool carried(const exporter *e, const lk_st_tensor *t)
{
    bool unread_head = e->config.tied && !strcmp(t->name, "lm_head.weight");
    return !unread_head && !lk_bnb_is_state(t->name) && !strstr(t->name, ".rotary_emb.");
}

/* A 4-bit tensor has another shape on disk. */
static lk_status shape_of(const exporter *e, item *it)
{
    const lk_st_tensor *t = it->tensor;
    int32_t site = lk_weights_site(&e->config, t->name);
    if (site >= 0) {
        lk_site s = lk_site_at(&e->config, site);
        it->n = s.n;
        it->k = s.k;
        it->n_dims = 2;
        return LK_OK;
    }
    if (t->n_dims < 1 || t->n_dims > 2)
        return lk_fail(e->err, LK_ERR_FORMAT, "%s: tensor %s has %d dimensions", t->file, t->name, t->n_dims);
    it->n_dims = t->n_dims;
    it->n = t->n_dims == 2 ? t->shape[0] : 1;
    it->k = t->shape[t->n_dims - 1];
    if (it->n_dims == 1 && it->place.how & (LK_GGUF_ROWS_Q | LK_GGUF_ROWS_K)) { /* a bias is permuted as the rows are */
        it->n = it->k;
        it->k = 1;
    }
    return LK_OK;
}

static lk_status plan_tensors(exporter *e)
{
    int64_t n = lk_safetensors_count(e->st);
    e->items = calloc((size_t)n + 2, sizeof *e->items);
    if (!e->items) return lk_fail(e->err, LK_ERR_MEMORY, "no memory for the list of tensors");
    for (int64_t i = 0; i < n; i++) {
        item *it = &e->items[e->n_items];
        it->tensor = lk_safetensors_at(e->st, i);
        if (!carried(e, it->tensor)) continue;
        if (!lk_gguf_place_of(&it->place, e->family, it->tensor->name))
            return lk_fail(e->err, LK_ERR_UNSUPPORTED, "%s: llama.cpp's %s has no place for tensor %s", it->tensor->file,
                           e->family->architecture, it->tensor->name);
        if (it->place.expert > 0) continue; /* with the first expert's */
        LK_TRY(shape_of(e, it));
        it->type = choose_type(e, it);
        e->n_items++;
    }
    for (int i = 0; i < e->divisors.n; i++) {
        item *it = &e->items[e->n_items++];
        *it = (item){.type = lk_ggml_type_of(LK_GGML_F32), .n = 1, .k = e->divisors.pairs, .n_dims = 1, .values = e->divisors.values[i]};
        snprintf(it->place.name, sizeof it->place.name, "%s", e->divisors.name[i]);
    }
    return LK_OK;
}

static lk_status declare(const exporter *e, const item *it)
{
    bool expert = (it->place.how & LK_GGUF_EXPERT) != 0;
    int64_t shape[3] = {e->config.experts, it->n, it->k}, vector = it->n * it->k;
    if (it->n_dims == 1) return lk_gguf_declare(e->w, it->place.name, it->type, 1, &vector, e->err);
    return lk_gguf_declare(e->w, it->place.name, it->type, expert ? 3 : 2, expert ? shape : shape + 1, e->err);
}

/* ---- the data ---- */

typedef struct piece {
    const item *it;
    const lk_st_tensor *tensor; /* read from here unless values is set */
    const float *values;        /* [N,K] */
    int64_t first, heads_dim;   /* first row; head size for permuted rows, 0: none */
    bool plus_one;
    float *buffer; /* [rows,K] */
    uint8_t *out;
    lk_status status[256]; /* one a thread: no sharing */
    lk_error error[256];
} piece;

static void convert_rows(void *context, int64_t begin, int64_t end, int thread)
{
    piece *p = context;
    const item *it = p->it;
    int64_t row_bytes = lk_ggml_bytes(it->type, it->k);
    for (int64_t r = begin; r < end && !p->status[thread]; r++) {
        int64_t row = p->first + r, source = p->heads_dim ? lk_gguf_row(row, p->heads_dim) : row;
        float *x = p->buffer + r * it->k;
        if (p->values)
            memcpy(x, p->values + source * it->k, (size_t)it->k * 4);
        else
            p->status[thread] = lk_st_read_f32(p->tensor, source * it->k, it->k, x, &p->error[thread]);
        for (int64_t i = 0; p->plus_one && i < it->k; i++) x[i] += 1.0f;
        if (!p->status[thread])
            p->status[thread] = lk_ggml_encode(it->type, p->out + r * row_bytes, x, it->k, it->place.name, &p->error[thread]);
    }
}

static lk_status write_rows(exporter *e, piece *p)
{
    const item *it = p->it;
    int64_t rows = PIECE / it->k < 1 ? 1 : PIECE / it->k < it->n ? PIECE / it->k : it->n;
    int64_t row_bytes = lk_ggml_bytes(it->type, it->k);
    p->buffer = malloc((size_t)(rows * it->k) * 4);
    p->out = malloc((size_t)(rows * row_bytes));
    lk_status status = p->buffer && p->out ? LK_OK : lk_fail(e->err, LK_ERR_MEMORY, "no memory to convert %s", it->place.name);
    for (p->first = 0; p->first < it->n && !status; p->first += rows) {
        int64_t count = it->n - p->first < rows ? it->n - p->first : rows;
        lk_pool_run(e->pool, count, 1, convert_rows, p);
        for (int i = 0; i < lk_pool_threads(e->pool) && !status; i++)
            if (p->status[i]) status = lk_fail(e->err, p->status[i], "%s", p->error[i].message);
        if (!status) status = lk_gguf_write(e->w, p->out, (size_t)(count * row_bytes), e->err);
    }
    free(p->buffer);
    free(p->out);
    return status;
}

/* One matrix of the folder; a 4-bit one is dequantised whole. */
static lk_status write_matrix(exporter *e, const item *it, const lk_st_tensor *t)
{
    piece *p = calloc(1, sizeof *p);
    float *values = NULL;
    if (!p) return lk_fail(e->err, LK_ERR_MEMORY, "no memory to convert %s", it->place.name);
    lk_status status = LK_OK;
    p->it = it;
    p->tensor = t;
    p->values = it->values;
    p->plus_one = (it->place.how & LK_GGUF_NORM) != 0;
    if (it->place.how & (LK_GGUF_ROWS_Q | LK_GGUF_ROWS_K)) p->heads_dim = e->config.head_dim;
    if (t && lk_bnb_is_quantized(e->st, t->name)) {
        lk_nf4_host host;
        status = lk_nf4_host_read(&host, e->st, t->name, it->n, it->k, e->pool, e->err);
        if (!status && !(values = malloc((size_t)(it->n * it->k) * 4)))
            status = lk_fail(e->err, LK_ERR_MEMORY, "no memory for the %lld values of %s", (long long)(it->n * it->k), t->name);
        if (!status) lk_nf4_dequantize(values, host.codes, host.absmax, it->n * it->k);
        lk_nf4_host_free(&host);
        p->values = values;
    } else if (t && t->n_elements != it->n * it->k) {
        status = lk_fail(e->err, LK_ERR_MISMATCH, "%s: tensor %s has %lld values, expected %lld", t->file, t->name,
                         (long long)t->n_elements, (long long)(it->n * it->k));
    }
    if (!status) status = write_rows(e, p);
    free(values);
    free(p);
    return status;
}

static lk_status write_item(exporter *e, const item *it)
{
    if (!(it->place.how & LK_GGUF_EXPERT)) return write_matrix(e, it, it->tensor);
    for (int32_t x = 0; x < e->config.experts; x++) {
        char name[300];
        lk_gguf_place place;
        const lk_st_tensor *t = NULL;
        if (lk_gguf_tensor_of(name, sizeof name, &place, e->family, it->place.name, x)) t = lk_safetensors_find(e->st, name);
        if (!t) return lk_fail(e->err, LK_ERR_NOT_FOUND, "%s: the tensor of expert %d is missing", it->place.name, x);
        LK_TRY(write_matrix(e, it, t));
    }
    return LK_OK;
}

/* ---- the file ---- */

static lk_status add_general(exporter *e, const char *base)
{
    char name[256];
    size_t n = strlen(base);
    while (n > 1 && base[n - 1] == '/') n--;
    size_t start = n;
    while (start > 0 && base[start - 1] != '/') start--;
    snprintf(name, sizeof name, "%.*s", (int)(n - start), base + start);
    LK_TRY(lk_gguf_add_string(e->w, "general.type", "model", e->err));
    LK_TRY(lk_gguf_add_string(e->w, "general.name", e->options->name ? e->options->name : name, e->err));
    LK_TRY(lk_gguf_add_u32(e->w, "general.file_type", e->recipe->file_type, e->err));
    return lk_gguf_add_u32(e->w, "general.quantization_version", 2, e->err);
}

static lk_status add_tokenizer(exporter *e)
{
    if (!e->tk) return lk_gguf_add_string(e->w, "tokenizer.ggml.model", "no_vocab", e->err);
    const lk_config *c = &e->config;
    lk_gguf_tokenizer_options o = {.bos = c->bos, .eos = c->n_eos ? c->eos[0] : -1, .eot = -1, .pre = e->options->pre};
    int32_t eos = lk_tokenizer_eos(e->tk) >= 0 ? lk_tokenizer_eos(e->tk) : o.eos;
    for (int i = c->n_eos - 1; i >= 0; i--)
        if (c->eos[i] != eos) o.eot = c->eos[i];
    return lk_gguf_add_tokenizer(e->w, e->tk, c->vocab, &o, e->err);
}

static lk_status write_file(exporter *e, const char *base, const char *out)
{
    LK_TRY(plan_tensors(e));
    LK_TRY(lk_gguf_writer_create(&e->w, out, e->err));
    LK_TRY(lk_gguf_add_config(e->w, &e->config, e->err));
    LK_TRY(add_general(e, base));
    LK_TRY(add_tokenizer(e));
    for (int64_t i = 0; i < e->n_items; i++) LK_TRY(declare(e, &e->items[i]));
    for (int64_t i = 0; i < e->n_items; i++) {
        LK_TRY(write_item(e, &e->items[i]));
        if (e->options->progress) e->options->progress(e->options->context, i + 1, e->n_items);
    }
    e->result->tensors = e->n_items;
    e->result->bytes = lk_gguf_written(e->w);
    LK_TRY(lk_gguf_commit(e->w, e->err));
    e->w = NULL;
    return LK_OK;
}

static lk_status find_recipe(const struct recipe **recipe, const char *name, lk_error *err)
{
    for (int i = 0; i < N_RECIPES; i++) {
        *recipe = &recipes[i];
        if (!strcmp(recipes[i].name, name ? name : "f16")) return LK_OK;
    }
    return lk_fail(err, LK_ERR_ARGUMENT, "a GGUF type is f16, bf16, f32, q8_0, q4_0 or q4_k_m, not '%.40s'", name);
}

/* A folder without a tokenizer is exported without one: who brings their own ids can run it. */
static lk_status open_tokenizer(exporter *e, const char *base)
{
    lk_error missing = {0};
    lk_status status = lk_tokenizer_open(&e->tk, base, &missing);
    if (status == LK_ERR_NOT_FOUND) {
        lk_log(LK_LOG_WARN, "%s has no tokenizer, and neither will the GGUF file", base);
        return LK_OK;
    }
    return status ? lk_fail(e->err, status, "%s", missing.message) : LK_OK;
}

lk_status lk_export_gguf(const char *base, const char *out, const lk_gguf_export_options *options, lk_gguf_export_result *result,
                         lk_error *err)
{
    exporter e = {.options = options, .result = result, .err = err};
    memset(result, 0, sizeof *result);
    lk_status status;
    if ((status = find_recipe(&e.recipe, options->type, err))) goto out;
    if ((status = lk_config_read(&e.config, base, err))) goto out;
    if ((status = lk_gguf_check_config(&e.config, base, err))) goto out;
    e.family = lk_gguf_family_of(e.config.model_type);
    lk_gguf_rope_divisors(&e.divisors, &e.config);
    if ((status = open_tokenizer(&e, base))) goto out;
    if ((status = lk_weights_open(&e.st, base, &e.config, err))) goto out;
    if ((status = lk_weights_check_names(e.st, &e.config, err))) goto out;
    if ((status = lk_pool_create(&e.pool, options->threads, err))) goto out;
    status = write_file(&e, base, out);
out:
    lk_gguf_abort(e.w);
    free(e.items);
    lk_pool_destroy(e.pool);
    lk_safetensors_close(e.st);
    lk_tokenizer_close(e.tk);
    return status;
}
