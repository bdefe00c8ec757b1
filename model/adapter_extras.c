/* What an adapter has beside factors: DoRA's gains, biases of its own, and its own embedding and head.
 *
 * All of it lies in memory of a backend of the adapter's own, with one thread and of the model's kind: adapters are loaded beside a running
 * forward, and one thread drives a backend at a time. Only backends that compute in host memory have lk_gain, so its memory is read and
 * written here like any other.
 *
 * DoRA's norms come from ||w + s b A||^2 = ||w||^2 + 2 s b (A w) + s^2 b A A^T b: A w for all rows is one product of the kernels that the
 * layer itself uses, ||w||^2 is taken once, and no W + s B A is ever formed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "data/peft.h"
#include "model/adapter_internal.h"

enum { PIECE = 64 }; /* rows of a matrix read at a time */

/* ---- memory ---- */

static lk_status open_own(lk_adapter *a, lk_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "%s", lk_backend_name(a->model->be)); /* "cpu/avx512" */
    char *slash = strchr(name, '/');
    if (slash) *slash = 0;
    lk_backend_options options = {
        .device = name, .threads = 1, .compute = lk_backend_compute(a->model->be), .cpu_tier = slash ? slash + 1 : NULL};
    return lk_backend_open(&a->own, &options, err);
}

/* Offsets in the extra vector, in site order, and the vector. */
static lk_status place_extra(lk_adapter *a, lk_error *err)
{
    int64_t at = 0;
    void *memory = NULL;
    for (int32_t s = 0; s < a->n_sites; s++) {
        lk_adapter_site *site = &a->sites[s];
        int64_t *const offsets[] = {&site->gain, &site->inverse_norm, &site->w_squares, &site->bias};
        for (int i = 0; i < 4; i++) {
            *offsets[i] = at;
            if (i < 3 ? site->dora : site->own_bias) at += (site->n + 15) / 16 * 16;
        }
    }
    a->n_extra = at;
    lk_status status = lk_alloc(a->own, (size_t)(at ? at : 1) * sizeof *a->extra, &memory);
    a->extra = memory;
    return status ? lk_backend_fail(a->own, status, err) : LK_OK;
}

void lk_adapter_extras_free(lk_adapter *a)
{
    if (!a->own) return;
    lk_matrix_destroy(a->own, a->embedding);
    lk_matrix_destroy(a->own, a->head);
    lk_matrix_destroy(a->own, a->embed_a);
    lk_matrix_destroy(a->own, a->embed_b);
    lk_matrix_destroy(a->own, a->token_rows);
    lk_free(a->own, a->extra);
    free(a->token_ids);
    lk_backend_close(a->own);
}

/* ---- DoRA ---- */

static lk_status rows_of(lk_backend *be, const lk_matrix *w, int64_t first, int64_t n, float *rows)
{
    int32_t ids[PIECE];
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(first + i);
    lk_tensor y = lk_tensor_make(rows, LK_F32, n, lk_matrix_k(w));
    return lk_embed(be, &y, w, ids);
}

static lk_status square_rows(lk_backend *be, const lk_matrix *w, float *squares, lk_error *err)
{
    int64_t n = lk_matrix_n(w), k = lk_matrix_k(w);
    float *rows = malloc((size_t)(PIECE * k) * sizeof *rows);
    if (!rows) return lk_fail(err, LK_ERR_MEMORY, "no memory for rows of a matrix");
    lk_status status = LK_OK;
    for (int64_t first = 0; first < n && !status; first += PIECE) {
        int64_t count = n - first < PIECE ? n - first : PIECE;
        if ((status = rows_of(be, w, first, count, rows))) lk_backend_fail(be, status, err);
        for (int64_t i = 0; i < count && !status; i++) {
            double sum = 0;
            for (int64_t j = 0; j < k; j++) sum += (double)rows[i * k + j] * (double)rows[i * k + j];
            squares[first + i] = (float)sum;
        }
    }
    free(rows);
    return status;
}

/* gain and inverse_norm of a site from its factors and magnitude. */
static lk_status site_gains(lk_adapter *a, lk_backend *be, int32_t number, const float *factor_a, const float *factor_b, const float *m,
                            lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    int32_t R = site->rank;
    float *products = malloc((size_t)(R * site->n) * sizeof *products);
    double *gram = malloc((size_t)(R * R) * sizeof *gram);
    lk_status status = products && gram ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the norms of a DoRA of rank %d", R);
    if (status) goto out;
    lk_tensor y = lk_tensor_make(products, LK_F32, R, site->n);
    union {
        const float *read;
        void *data;
    } source = {factor_a}; /* an input of the product */
    lk_tensor x = lk_tensor_make(source.data, LK_F32, R, site->k);
    if ((status = lk_linear(be, &y, &x, a->model->weights[number].w, NULL, NULL))) {
        lk_backend_fail(be, status, err);
        goto out;
    }
    for (int32_t i = 0; i < R; i++)
        for (int32_t j = 0; j < R; j++) {
            double sum = 0;
            for (int64_t k = 0; k < site->k; k++) sum += (double)factor_a[i * site->k + k] * (double)factor_a[j * site->k + k];
            gram[i * R + j] = sum;
        }
    double s = (double)site->scale;
    for (int64_t n = 0; n < site->n; n++) {
        const float *b = factor_b + n * R;
        double squares = (double)a->extra[site->w_squares + n];
        for (int32_t i = 0; i < R; i++) {
            double inner = 0;
            for (int32_t j = 0; j < R; j++) inner += gram[i * R + j] * (double)b[j];
            squares += s * (double)b[i] * (2 * (double)products[i * site->n + n] + s * inner);
        }
        float inverse = (float)(1 / sqrt(squares > 1e-30 ? squares : 1e-30));
        a->extra[site->inverse_norm + n] = inverse;
        a->extra[site->gain + n] = m[n] * inverse;
    }
out:
    free(products);
    free(gram);
    return status;
}

static lk_status reserve(lk_adapter *a, lk_backend *be, lk_error *err)
{
    const lk_config *c = &a->model->config;
    int64_t tokens = a->max_rank > PIECE ? a->max_rank : PIECE;
    lk_limits limits = {.tokens = tokens, .width = lk_config_widest(c), .matrix = lk_config_largest_matrix(c)};
    lk_status status = lk_reserve(be, &limits);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

lk_status lk_adapter_refresh(lk_adapter *a, lk_error *err)
{
    if (!a->own || a->type != LK_F32) return LK_OK;
    const float *w = a->weights;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (site->dora) LK_TRY(site_gains(a, a->model->be, s, w + site->a, w + site->b, w + site->m, err));
    }
    return LK_OK;
}

lk_status lk_adapter_extras_create(lk_adapter *a, lk_error *err)
{
    const lk_config *c = &a->model->config;
    for (int32_t s = 0; s < a->n_sites; s++)
        if (a->sites[s].dora && (lk_site_at(c, s).expert >= 0 || lk_site_at(c, s).module == LK_ROUTER))
            return lk_fail(err, LK_ERR_UNSUPPORTED,
                           "dora on the experts of a mixture is not trained; leave gate_proj, up_proj, down_proj and the router, gate, "
                           "out of the targets");
    LK_TRY(open_own(a, err));
    LK_TRY(place_extra(a, err));
    LK_TRY(reserve(a, a->model->be, err));
    float *w = a->weights;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->dora) continue;
        LK_TRY(square_rows(a->model->be, a->model->weights[s].w, a->extra + site->w_squares, err));
        for (int64_t n = 0; n < site->n; n++) w[site->m + n] = sqrtf(a->extra[site->w_squares + n]);
    }
    LK_TRY(lk_adapter_refresh(a, err));
    return lk_adapter_update_digest(a, err);
}

/* ---- reading ---- */

static lk_status load_gains(lk_adapter *a, const lk_adapter_parts *parts, int32_t number, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    const lk_peft_module *module = parts->sites[number];
    float *factor_a = malloc((size_t)(site->rank * site->k) * 4), *factor_b = malloc((size_t)(site->rank * site->n) * 4),
          *m = malloc((size_t)site->n * 4);
    lk_status status = factor_a && factor_b && m ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", module->name);
    if (!status) status = lk_st_read_f32(module->a, 0, site->rank * site->k, factor_a, err);
    if (!status) status = lk_st_read_f32(module->b, 0, site->rank * site->n, factor_b, err);
    if (!status) status = lk_st_read_f32(module->magnitude, 0, site->n, m, err);
    if (!status) status = square_rows(a->own, a->model->weights[number].w, a->extra + site->w_squares, err);
    if (!status) status = site_gains(a, a->own, number, factor_a, factor_b, m, err);
    free(factor_a);
    free(factor_b);
    free(m);
    return status;
}

static lk_status load_bias(lk_adapter *a, const lk_adapter_parts *parts, int32_t number, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    const float *base = a->model->weights[number].bias;
    float *bias = a->extra + site->bias;
    bool given;
    if (base) memcpy(bias, base, (size_t)site->n * sizeof *bias);
    return lk_adapter_bias(parts, number, site->n, bias, &given, err);
}

static lk_status make_matrix(lk_adapter *a, lk_matrix **out, lk_dtype type, const void *values, int64_t n, int64_t k, lk_error *err)
{
    lk_status status = lk_matrix_create(a->own, out, &(lk_matrix_source){.type = type, .n = n, .k = k, .data = values});
    return status ? lk_backend_fail(a->own, status, err) : LK_OK;
}

/* A whole table as the file has it. */
static lk_status load_table(lk_adapter *a, lk_matrix **out, const lk_st_tensor *t, lk_error *err)
{
    if (t->type != LK_F64) return make_matrix(a, out, t->type, t->data, t->shape[0], t->shape[1], err);
    float *values = malloc((size_t)t->n_elements * sizeof *values);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for %s", t->name);
    lk_status status = lk_st_read_f32(t, 0, t->n_elements, values, err);
    if (!status) status = make_matrix(a, out, LK_F32, values, t->shape[0], t->shape[1], err);
    free(values);
    return status;
}

/* The head with some of its rows replaced: a whole copy, for a product has no exceptions. */
static lk_status load_head(lk_adapter *a, const lk_adapter_parts *parts, lk_error *err)
{
    const lk_config *c = &a->model->config;
    float *values = malloc((size_t)(c->vocab * c->hidden) * sizeof *values);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for a head of %lld tokens", (long long)c->vocab);
    lk_status status = LK_OK;
    for (int64_t v = 0; v < c->vocab && !status; v += PIECE) {
        int64_t n = c->vocab - v < PIECE ? c->vocab - v : PIECE;
        float *rows = values + v * c->hidden;
        if ((status = rows_of(a->own, a->model->head, v, n, rows))) lk_backend_fail(a->own, status, err);
        if (!status) status = lk_adapter_head_rows(parts, c, v, n, rows, err);
    }
    if (!status) status = make_matrix(a, &a->head, LK_F32, values, c->vocab, c->hidden, err);
    free(values);
    return status;
}

/* PEFT saves the base's embedding beside an adapted one. Usually it is the base's. */
static lk_status same_as_base(lk_adapter *a, const lk_st_tensor *t, bool *same, lk_error *err)
{
    const lk_config *c = &a->model->config;
    size_t size = (size_t)(PIECE * c->hidden);
    float *rows = malloc(2 * size * sizeof *rows);
    if (!rows) return lk_fail(err, LK_ERR_MEMORY, "no memory to compare embeddings");
    float *saved = rows + size;
    lk_status status = LK_OK;
    *same = true;
    for (int64_t v = 0; v < c->vocab && *same && !status; v += PIECE) {
        int64_t n = c->vocab - v < PIECE ? c->vocab - v : PIECE;
        if ((status = rows_of(a->own, a->model->embedding, v, n, rows))) lk_backend_fail(a->own, status, err);
        if (!status) status = lk_st_read_f32(t, v * c->hidden, n * c->hidden, saved, err);
        for (int64_t i = 0; i < n * c->hidden && !status; i++) {
            bool rounded = lk_backend_compute(a->own) == LK_BF16;
            float value = rounded ? lk_bf16_to_f32(lk_f32_to_bf16(saved[i])) : saved[i];
            *same = *same && value == rows[i];
        }
    }
    free(rows);
    return status;
}

static lk_status load_embedding_lora(lk_adapter *a, const lk_peft_module *m, lk_error *err)
{
    const lk_config *c = &a->model->config;
    int32_t R = m->rank;
    float *file = malloc((size_t)(R * c->vocab) * 4), *turned = malloc((size_t)(R * c->vocab) * 4),
          *b = malloc((size_t)(R * c->hidden) * 4);
    lk_status status = file && turned && b ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    if (!status) status = lk_st_read_f32(m->a, 0, R * c->vocab, file, err);
    if (!status) status = lk_st_read_f32(m->b, 0, R * c->hidden, b, err);
    for (int64_t v = 0; v < c->vocab && !status; v++)
        for (int32_t r = 0; r < R; r++) turned[v * R + r] = file[r * c->vocab + v];
    for (int64_t i = 0; i < R * c->hidden && !status; i++) b[i] *= (float)m->scale;
    if (!status) status = make_matrix(a, &a->embed_a, LK_F32, turned, c->vocab, R, err);
    if (!status) status = make_matrix(a, &a->embed_b, LK_F32, b, c->hidden, R, err);
    if (R > a->max_rank) a->max_rank = R;
    free(file);
    free(turned);
    free(b);
    return status;
}

/* By rising token number; of a token that is there twice the last counts, as in index_copy. */
static lk_status load_tokens(lk_adapter *a, const lk_peft_value *tokens, lk_error *err)
{
    int64_t n = tokens->tensor->shape[0], width = tokens->tensor->shape[1];
    int64_t *from = malloc((size_t)n * sizeof *from);
    float *rows = malloc((size_t)(n * width) * sizeof *rows);
    a->token_ids = malloc((size_t)n * sizeof *a->token_ids);
    lk_status status =
        from && rows && a->token_ids ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for %lld trained tokens", (long long)n);
    for (int64_t i = 0; i < n && !status; i++) {
        int32_t at = a->n_tokens;
        while (at > 0 && a->token_ids[at - 1] >= tokens->ids[i]) at--;
        bool there = at < a->n_tokens && a->token_ids[at] == tokens->ids[i];
        if (!there) {
            memmove(a->token_ids + at + 1, a->token_ids + at, (size_t)(a->n_tokens - at) * sizeof *a->token_ids);
            memmove(from + at + 1, from + at, (size_t)(a->n_tokens - at) * sizeof *from);
            a->n_tokens++;
        }
        a->token_ids[at] = tokens->ids[i];
        from[at] = i;
    }
    for (int32_t i = 0; i < a->n_tokens && !status; i++)
        status = lk_st_read_f32(tokens->tensor, from[i] * width, width, rows + i * width, err);
    if (!status) status = make_matrix(a, &a->token_rows, LK_F32, rows, a->n_tokens, width, err);
    free(from);
    free(rows);
    return status;
}

static lk_status load_tables(lk_adapter *a, const lk_adapter_parts *parts, lk_error *err)
{
    bool same = true;
    if (parts->embedding) LK_TRY(load_table(a, &a->embedding, parts->embedding, err));
    if (parts->embedding_base) LK_TRY(same_as_base(a, parts->embedding_base, &same, err));
    if (!same && !a->embedding) LK_TRY(load_table(a, &a->embedding, parts->embedding_base, err));
    if (parts->embedding_lora) LK_TRY(load_embedding_lora(a, parts->embedding_lora, err));
    if (parts->embedding_tokens) LK_TRY(load_tokens(a, parts->embedding_tokens, err));
    if (parts->head_tokens || (a->model->config.tied && !same)) return load_head(a, parts, err);
    return parts->head ? load_table(a, &a->head, parts->head, err) : LK_OK;
}

/* The first thing that is more than factors, for a message; NULL: nothing. */
static const char *first_extra(const lk_adapter *a, const lk_adapter_parts *p)
{
    for (int32_t s = 0; s < a->n_sites; s++) {
        if (a->sites[s].dora) return "use_dora";
        if (a->sites[s].own_bias) return p->biases[s] ? "bias" : "lora_bias";
    }
    if (p->embedding || p->head) return "modules_to_save";
    if (p->embedding_lora || p->embedding_base) return "an adapted embedding";
    return p->embedding_tokens || p->head_tokens ? "trainable_token_indices" : NULL;
}

lk_status lk_adapter_extras_load(lk_adapter *a, const lk_adapter_parts *parts, const char *path, lk_error *err)
{
    const char *what = first_extra(a, parts);
    if (!what) return LK_OK;
    if (!lk_backend_gains(a->model->be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: adapters with %s are not computed on %s yet; use --device cpu, or merge it",
                       path, what, lk_backend_name(a->model->be));
    LK_TRY(open_own(a, err));
    LK_TRY(place_extra(a, err));
    LK_TRY(reserve(a, a->own, err));
    for (int32_t s = 0; s < a->n_sites; s++) {
        if (a->sites[s].dora) LK_TRY(load_gains(a, parts, s, err));
        if (a->sites[s].own_bias) LK_TRY(load_bias(a, parts, s, err));
    }
    memcpy(a->values_digest, lk_peft_digest(parts->peft), sizeof a->values_digest);
    return load_tables(a, parts, err);
}

const lk_adapter_tables *lk_adapter_fill_tables(lk_adapter_tables *tables, const lk_adapter *const *adapters, int32_t n_adapters)
{
    bool any = false;
    for (int32_t i = 0; i < n_adapters; i++) {
        const lk_adapter *a = adapters[i];
        tables[i] = (lk_adapter_tables){a->embedding, a->head, a->embed_a, a->embed_b, a->token_rows, a->token_ids, a->n_tokens};
        any = any || a->embedding || a->head || a->embed_a || a->token_rows;
    }
    return any ? tables : NULL;
}
