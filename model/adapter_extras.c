/* What an adapter has beside factors: DoRA's gains, biases of its own, and its own embedding and head.
 *
 * Of an adapter that was read, all of it lies in memory of a loader of the adapter's own (lk_loader_open): adapters are loaded beside a
 * running forward, and one thread drives a backend at a time. What is computed for it, norms and rows of the base's tables, is computed
 * there. The loader's scratch is a second one's, which goes when the adapter is there. Of an adapter that is trained it is the model's
 * backend's, which counts and computes it, and follows from the flat vector (adapter_whole.c). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "data/peft.h"
#include "model/adapter_internal.h"

enum { PIECE = 64 }; /* rows of a matrix read at a time */

/* ---- memory ---- */

static int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }

int64_t lk_adapter_place_extra(lk_adapter *a)
{
    int64_t at = 0;
    for (int32_t s = 0; s < a->n_sites; s++) {
        lk_adapter_site *site = &a->sites[s];
        int64_t *const offsets[] = {&site->gain, &site->inverse_norm, &site->bias};
        for (int i = 0; i < 3; i++) {
            *offsets[i] = at;
            if (i < 2 ? site->dora : site->own_bias) at += rounded(site->n);
        }
    }
    lk_table_factors *head = &a->head_read;
    if (!head->rank) return at;
    head->a = at;
    head->b = at + rounded(head->rank * a->model->config.hidden);
    return head->b + rounded(head->rank * a->model->config.vocab);
}

static lk_status place_extra(lk_adapter *a, lk_error *err)
{
    void *memory = NULL;
    a->n_extra = lk_adapter_place_extra(a);
    if (!a->n_extra) return LK_OK;
    lk_status status = lk_alloc(a->own, (size_t)a->n_extra * sizeof *a->extra, &memory);
    a->extra = memory;
    return status ? lk_backend_fail(a->own, status, err) : LK_OK;
}

void lk_adapter_extras_free(lk_adapter *a)
{
    if (!a->own && !a->folded) return;
    lk_backend *be = a->folded ? a->model->be : a->own; /* folded: handles alone, no memory */
    lk_matrix *const tables[] = {a->embedding, a->head == a->embedding ? NULL : a->head, a->embed_a, a->embed_b, a->token_rows};
    bool trained = a->own == a->model->be;
    if (a->own && !trained) (void)lk_backend_use(a->own); /* who ends an adapter need not be who made it */
    for (int i = 0; i < 5; i++) lk_matrix_destroy(be, tables[i]);
    if (!a->own) return;
    lk_free(a->own, a->extra);
    lk_free(a->own, a->token_ids);
    if (!trained) lk_backend_close(a->own);
}

/* Rows [first, first + n) of a table, n at most PIECE, as they are computed with. */
static lk_status rows_of(lk_backend *be, const lk_matrix *w, int64_t first, int64_t n, float *rows)
{
    int32_t ids[PIECE];
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(first + i);
    int64_t k = lk_matrix_k(w), count = n * k;
    lk_dtype act = lk_backend_act(be);
    size_t bytes = (size_t)(count * lk_dtype_size(act));
    void *memory = NULL;
    char *host = malloc(bytes);
    lk_status status = host ? lk_alloc(be, bytes, &memory) : LK_ERR_MEMORY;
    lk_tensor y = lk_tensor_make(memory, act, n, k);
    if (!status) status = lk_embed(be, &y, w, ids);
    if (!status) status = lk_download(be, host, memory, bytes);
    if (!status) lk_to_f32(rows, host, act, count);
    lk_free(be, memory);
    free(host);
    return status;
}

/* ---- DoRA ---- */

/* gain and inverse_norm of a site from its factors and magnitude, in memory of be. */
static lk_status site_gains(const lk_adapter *a, lk_backend *be, int32_t number, const float *factor_a, const float *factor_b,
                            const float *m, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    lk_lora l = {.a = factor_a, .b = factor_b, .type = LK_F32, .rank = site->rank, .scale = site->scale};
    lk_status status = lk_gain_norms(be, a->extra + site->gain, a->extra + site->inverse_norm, a->model->weights[number].w, &l, m);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

static lk_limits norm_limits(const lk_config *c)
{
    return (lk_limits){.tokens = PIECE, .width = lk_config_widest(c), .serving = true, .gains = true};
}

size_t lk_adapter_norm_scratch(const lk_backend *be, const lk_config *config)
{
    lk_limits limits = norm_limits(config);
    return lk_scratch_bytes(be, &limits);
}

static lk_status reserve(const lk_adapter *a, lk_backend *be, lk_error *err)
{
    lk_limits limits = norm_limits(&a->model->config);
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
    return lk_adapter_whole_refresh(a, err);
}

/* A fresh DoRA's magnitude: the norms of the base's own rows. */
static lk_status first_magnitude(lk_adapter *a, int32_t number, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    lk_backend *be = a->model->be;
    size_t bytes = (size_t)site->n * sizeof(float);
    float *values = malloc(bytes);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld norms", (long long)site->n);
    float *inverse = a->extra + site->inverse_norm, *m = (float *)a->weights + site->m;
    lk_status status = lk_gain_norms(be, NULL, inverse, a->model->weights[number].w, &(lk_lora){.type = LK_F32}, NULL);
    if (!status) status = lk_download(be, values, inverse, bytes);
    for (int64_t n = 0; n < site->n && !status; n++) values[n] = 1.0f / values[n];
    if (!status) status = lk_upload(be, m, values, bytes);
    free(values);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

static lk_status first_magnitudes(lk_adapter *a, lk_error *err)
{
    const lk_config *c = &a->model->config;
    bool reserved = false;
    for (int32_t s = 0; s < a->n_sites; s++) {
        if (!a->sites[s].dora) continue;
        if (lk_site_at(c, s).expert >= 0 || lk_site_at(c, s).module == LK_ROUTER)
            return lk_fail(err, LK_ERR_UNSUPPORTED,
                           "dora on the experts of a mixture is not trained; leave gate_proj, up_proj, down_proj and the router, gate, "
                           "out of the targets");
        if (!reserved) LK_TRY(reserve(a, a->model->be, err));
        reserved = true;
        LK_TRY(first_magnitude(a, s, err));
    }
    return LK_OK;
}

lk_status lk_adapter_extras_create(lk_adapter *a, lk_error *err)
{
    a->own = a->model->be;
    LK_TRY(place_extra(a, err));
    LK_TRY(lk_adapter_whole_create(a, err));
    LK_TRY(first_magnitudes(a, err));
    LK_TRY(lk_adapter_refresh(a, err));
    return lk_adapter_update_digest(a, err);
}

/* ---- reading ---- */

/* Values of a file's tensor in memory of the backend. */
static lk_status bring(lk_backend *be, float *to, const lk_st_tensor *t, int64_t n, lk_error *err)
{
    float *values = malloc((size_t)n * sizeof *values);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for %s", t->name);
    lk_status status = lk_st_read_f32(t, 0, n, values, err);
    if (!status && (status = lk_upload(be, to, values, (size_t)n * sizeof *values))) lk_backend_fail(be, status, err);
    free(values);
    return status;
}

static lk_status load_gains(lk_adapter *a, lk_backend *work, const lk_adapter_parts *parts, int32_t number, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    const lk_peft_module *module = parts->sites[number];
    int64_t in_a = site->rank * site->k, in_b = site->rank * site->n;
    void *memory = NULL;
    lk_status status = lk_alloc(work, (size_t)(in_a + in_b + site->n) * sizeof(float), &memory);
    if (status) return lk_backend_fail(work, status, err);
    float *factor_a = memory, *factor_b = factor_a + in_a, *m = factor_b + in_b;
    status = bring(work, factor_a, module->a, in_a, err);
    if (!status) status = bring(work, factor_b, module->b, in_b, err);
    if (!status) status = bring(work, m, module->magnitude, site->n, err);
    if (!status) status = site_gains(a, work, number, factor_a, factor_b, m, err);
    lk_free(work, memory);
    return status;
}

static lk_status load_bias(lk_adapter *a, const lk_adapter_parts *parts, int32_t number, lk_error *err)
{
    const lk_adapter_site *site = &a->sites[number];
    const float *base = a->model->weights[number].bias;
    size_t bytes = (size_t)site->n * sizeof(float);
    float *values = calloc((size_t)site->n, sizeof *values);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for a bias of %lld values", (long long)site->n);
    bool given;
    lk_status status = LK_OK;
    if (base && (status = lk_download(a->own, values, base, bytes))) lk_backend_fail(a->own, status, err);
    if (!status) status = lk_adapter_bias(parts, number, site->n, values, &given, err);
    if (!status && (status = lk_upload(a->own, a->extra + site->bias, values, bytes))) lk_backend_fail(a->own, status, err);
    free(values);
    return status;
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
static lk_status load_head(lk_adapter *a, lk_backend *work, const lk_adapter_parts *parts, lk_error *err)
{
    const lk_config *c = &a->model->config;
    lk_adapter_parts rest = *parts; /* factors come on top, each time */
    rest.head_lora = NULL;
    float *values = malloc((size_t)(c->vocab * c->hidden) * sizeof *values);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for a head of %lld tokens", (long long)c->vocab);
    lk_status status = LK_OK;
    for (int64_t v = 0; v < c->vocab && !status; v += PIECE) {
        int64_t n = c->vocab - v < PIECE ? c->vocab - v : PIECE;
        float *rows = values + v * c->hidden;
        if ((status = rows_of(work, a->model->head, v, n, rows))) lk_backend_fail(work, status, err);
        if (!status) status = lk_adapter_head_rows(&rest, c, v, n, rows, err);
    }
    if (!status) status = make_matrix(a, &a->head, LK_F32, values, c->vocab, c->hidden, err);
    free(values);
    return status;
}

/* PEFT saves the base's table beside an adapted one. Usually it is the base's. */
static lk_status same_as_base(const lk_adapter *a, lk_backend *work, const lk_matrix *table, const lk_st_tensor *t, bool *same,
                              lk_error *err)
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
        if ((status = rows_of(work, table, v, n, rows))) lk_backend_fail(work, status, err);
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
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    float *rows = malloc((size_t)(n * width) * sizeof *rows);
    void *memory = NULL;
    lk_status status = from && rows && ids ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for %lld trained tokens", (long long)n);
    for (int64_t i = 0; i < n && !status; i++) {
        int32_t at = a->n_tokens;
        while (at > 0 && ids[at - 1] >= tokens->ids[i]) at--;
        bool there = at < a->n_tokens && ids[at] == tokens->ids[i];
        if (!there) {
            memmove(ids + at + 1, ids + at, (size_t)(a->n_tokens - at) * sizeof *ids);
            memmove(from + at + 1, from + at, (size_t)(a->n_tokens - at) * sizeof *from);
            a->n_tokens++;
        }
        ids[at] = tokens->ids[i];
        from[at] = i;
    }
    for (int32_t i = 0; i < a->n_tokens && !status; i++)
        status = lk_st_read_f32(tokens->tensor, from[i] * width, width, rows + i * width, err);
    if (!status) status = make_matrix(a, &a->token_rows, LK_F32, rows, a->n_tokens, width, err);
    if (!status) {
        size_t bytes = (size_t)a->n_tokens * sizeof *ids;
        status = lk_alloc(a->own, bytes, &memory);
        a->token_ids = memory;
        if (!status) status = lk_upload(a->own, memory, ids, bytes);
        if (status) lk_backend_fail(a->own, status, err);
    }
    free(from);
    free(ids);
    free(rows);
    return status;
}

static lk_status load_head_lora(lk_adapter *a, const lk_peft_module *m, lk_error *err)
{
    const lk_config *c = &a->model->config;
    LK_TRY(bring(a->own, a->extra + a->head_read.a, m->a, m->rank * c->hidden, err));
    return bring(a->own, a->extra + a->head_read.b, m->b, m->rank * c->vocab, err);
}

static lk_status load_tables(lk_adapter *a, lk_backend *work, const lk_adapter_parts *parts, lk_error *err)
{
    bool same = true, same_head = true;
    const lk_model *model = a->model;
    if (parts->embedding) LK_TRY(load_table(a, &a->embedding, parts->embedding, err));
    if (parts->embedding_base) LK_TRY(same_as_base(a, work, model->embedding, parts->embedding_base, &same, err));
    if (parts->head_base) LK_TRY(same_as_base(a, work, model->head, parts->head_base, &same_head, err));
    if (!same && !a->embedding) LK_TRY(load_table(a, &a->embedding, parts->embedding_base, err));
    if (parts->embedding_lora) LK_TRY(load_embedding_lora(a, parts->embedding_lora, err));
    if (parts->embedding_tokens) LK_TRY(load_tokens(a, parts->embedding_tokens, err));
    if (parts->head_lora) LK_TRY(load_head_lora(a, parts->head_lora, err));
    if (parts->head_tokens || (model->config.tied && !same && !parts->head_base)) return load_head(a, work, parts, err);
    const lk_st_tensor *head = parts->head ? parts->head : same_head ? NULL : parts->head_base;
    if (head && head == parts->embedding) a->head = a->embedding;
    return head && !a->head ? load_table(a, &a->head, head, err) : LK_OK;
}

/* What there will be of factors on the head, before the extra vector is made. */
static lk_status note_head_lora(lk_adapter *a, const lk_peft_module *m, const char *path, lk_error *err)
{
    if (!m) return LK_OK;
    if (m->rank > LK_ADAPTER_MAX_RANK)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: rank %d of %s is above the largest supported, %d", path, m->rank, m->name,
                       LK_ADAPTER_MAX_RANK);
    a->head_read = (lk_table_factors){.rank = m->rank, .alpha = (float)m->alpha, .scale = (float)m->scale};
    if (m->rank > a->max_rank) a->max_rank = m->rank;
    return LK_OK;
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
    if (p->head_lora || p->head_base) return "an adapted head";
    return p->embedding_tokens || p->head_tokens ? "trainable_token_indices" : NULL;
}

static lk_status load_all(lk_adapter *a, lk_backend *work, const lk_adapter_parts *parts, lk_error *err)
{
    LK_TRY(reserve(a, work, err));
    for (int32_t s = 0; s < a->n_sites; s++) {
        if (a->sites[s].dora) LK_TRY(load_gains(a, work, parts, s, err));
        if (a->sites[s].own_bias) LK_TRY(load_bias(a, parts, s, err));
    }
    LK_TRY(load_tables(a, work, parts, err));
    lk_status status = lk_sync(work); /* who uses it has another queue */
    if (!status && (status = lk_sync(a->own))) return lk_backend_fail(a->own, status, err);
    return status ? lk_backend_fail(work, status, err) : LK_OK;
}

lk_status lk_adapter_extras_load(lk_adapter *a, const lk_adapter_parts *parts, const char *path, lk_error *err)
{
    const char *what = first_extra(a, parts);
    lk_backend *be = a->model->be, *work;
    if (!what) return LK_OK;
    if (!lk_backend_gains(be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: adapters with %s are not computed on %s; use --device cpu, or merge it", path,
                       what, lk_backend_name(be));
    if (parts->head_lora && !lk_backend_trains_weights(be))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: factors on the head are not computed on %s; use --device cpu, or merge it",
                       path, lk_backend_name(be));
    LK_TRY(lk_loader_open(&a->own, be, err));
    lk_status status = lk_backend_use(a->own);
    if (status) return lk_backend_fail(a->own, status, err);
    LK_TRY(note_head_lora(a, parts->head_lora, path, err));
    LK_TRY(place_extra(a, err));
    if ((status = lk_sync(a->own))) return lk_backend_fail(a->own, status, err); /* its memory is zeroed before `work` writes there */
    memcpy(a->values_digest, lk_peft_digest(parts->peft), sizeof a->values_digest);
    LK_TRY(lk_loader_open(&work, be, err));
    status = load_all(a, work, parts, err);
    lk_backend_close(work);
    return status;
}

int32_t lk_adapter_head_rank(const lk_adapter *a) { return a->head_read.rank ? a->head_read.rank : a->whole.head_factors.rank; }

/* Of one that was read they lie in extra, of one that is trained in the flat vector. */
static lk_lora head_factors(const lk_adapter *a)
{
    const lk_table_factors *f = a->head_read.rank ? &a->head_read : &a->whole.head_factors;
    const float *values = a->head_read.rank ? a->extra : a->weights;
    if (!f->rank) return (lk_lora){.type = LK_F32};
    return (lk_lora){.a = values + f->a, .b = values + f->b, .type = LK_F32, .rank = f->rank, .scale = f->scale};
}

const lk_adapter_tables *lk_adapter_fill_tables(lk_adapter_tables *tables, const lk_adapter *const *adapters, int32_t n_adapters)
{
    bool any = false;
    for (int32_t i = 0; i < n_adapters; i++) {
        const lk_adapter *a = adapters[i];
        tables[i] =
            (lk_adapter_tables){a->embedding, a->head, a->embed_a, a->embed_b, a->token_rows, a->token_ids, a->n_tokens, head_factors(a)};
        any = any || a->embedding || a->head || a->embed_a || a->token_rows || lk_adapter_head_rank(a);
    }
    return any ? tables : NULL;
}
