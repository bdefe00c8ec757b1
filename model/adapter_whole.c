/* What an adapter that is trained here has beside the factors of its sites: biases, whole embeddings and heads, factors on the two, rows of
 * chosen tokens. All of it lies in the same flat vector, so that gradients, moments, clipping, checkpoints and the sum over processes need
 * to know nothing of it. Order: the sites' factors, then tables, factors and rows, then all biases, which take no weight decay
 * (transformers' Trainer leaves out what is called bias; PEFT has no optimiser of its own).
 *
 * Products read matrices in the kernels' layout, so a trained table is there twice: in the flat vector, and as an lk_matrix whose rows are
 * set anew after every update. Multiplying from the flat vector instead would save that copy and need a second set of kernels for heads.
 *
 * Which combinations there are follows PEFT 0.21: what it refuses is refused, and what it lets one setting silently win over is refused
 * too, naming both. */
#include <stdlib.h>
#include <string.h>

#include "model/adapter_internal.h"

enum { PIECE = 64 }; /* rows of a table read at a time */

static const char embedding_path[] = "model.embed_tokens", head_path[] = "lm_head";

/* ---------------------------------------------------------------------------------------------- checks */

static lk_status refuse(lk_error *err, const char *text) { return lk_fail(err, LK_ERR_ARGUMENT, "%s", text); }

static lk_status check_factors(const lk_config *config, const lk_adapter_spec *s, lk_error *err)
{
    if (s->target_embedding && s->save_embedding)
        return refuse(err, "adapter.targets and adapter.modules_to_save both name embed_tokens; choose one");
    if (s->target_head && s->save_head) return refuse(err, "adapter.targets and adapter.modules_to_save both name lm_head; choose one");
    if (!s->target_embedding && !s->target_head) return LK_OK;
    if (s->use_dora)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "dora on embed_tokens or lm_head is not trained; leave them out of adapter.targets");
    if (s->lora_bias)
        return refuse(err, "adapter.lora_bias: embed_tokens and lm_head have no place for a bias; leave them out of adapter.targets");
    if (s->target_head && s->init == LK_INIT_PISSA)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "pissa on lm_head is not trained; leave it out of adapter.targets");
    if (s->target_embedding && s->n_layers)
        return refuse(err, "adapter.layers_to_transform leaves out embed_tokens, which adapter.targets names; drop one of the two");
    if (s->tie_tables && config->tied)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "adapter.ensure_weight_tying with factors on a tied embedding or head is not trained; use adapter.modules_to_save");
    return LK_OK;
}

static lk_status check_tokens(const lk_config *config, const lk_adapter_spec *s, lk_error *err)
{
    if (s->n_tokens && (s->target_embedding || s->save_embedding))
        return refuse(err, "adapter.trainable_token_indices are rows of embed_tokens, which is trained already; choose one");
    if (s->n_tokens && config->tied && (s->target_head || s->save_head))
        return refuse(err, "adapter.trainable_token_indices are rows of the tied lm_head, which is trained already; choose one");
    for (int i = 0; i < s->n_tokens; i++) {
        if (s->tokens[i] >= config->vocab)
            return lk_fail(err, LK_ERR_ARGUMENT, "adapter.trainable_token_indices: token %d is outside the vocabulary of %lld",
                           s->tokens[i], (long long)config->vocab);
        for (int j = 0; j < i; j++)
            if (s->tokens[j] == s->tokens[i])
                return lk_fail(err, LK_ERR_ARGUMENT, "adapter.trainable_token_indices: token %d is there twice", s->tokens[i]);
    }
    return LK_OK;
}

static lk_status check_tie(const lk_config *config, const lk_adapter_spec *s, lk_error *err)
{
    if (!s->tie_tables) return LK_OK;
    if (!config->tied) return refuse(err, "adapter.ensure_weight_tying: this model's head is not tied to its embedding");
    if (s->save_embedding || s->save_head) return LK_OK;
    return refuse(err, "adapter.ensure_weight_tying: neither embed_tokens nor lm_head is in adapter.modules_to_save");
}

static lk_status check_lora_bias(const lk_adapter_site *sites, const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    if (!spec->lora_bias) return LK_OK;
    if (spec->use_dora) return refuse(err, "adapter.lora_bias together with dora is not possible (nor in PEFT)");
    if (spec->init != LK_INIT_DEFAULT) return refuse(err, "adapter.lora_bias wants adapter.init default (as in PEFT)");
    for (int32_t s = 0; s < lk_sites(config); s++)
        if (sites[s].rank && (lk_site_at(config, s).expert >= 0 || lk_site_at(config, s).module == LK_ROUTER))
            return lk_fail(err, LK_ERR_UNSUPPORTED,
                           "adapter.lora_bias on the experts of a mixture is not trained; leave gate_proj, up_proj, down_proj and the "
                           "router, gate, out of the targets");
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- what there is */

static lk_status fill_biases(lk_adapter_site *sites, const lk_config *config, const lk_adapter_spec *spec, lk_error *err)
{
    int any = 0;
    LK_TRY(check_lora_bias(sites, config, spec, err));
    for (int32_t s = 0; s < lk_sites(config); s++) {
        bool bias = lk_site_at(config, s).bias;
        sites[s].trains_bias = bias && (spec->bias == LK_BIAS_ALL || (spec->bias == LK_BIAS_LORA_ONLY && sites[s].rank));
        sites[s].trains_lora_bias = spec->lora_bias && sites[s].rank;
        sites[s].own_bias = sites[s].trains_lora_bias;
        any += sites[s].trains_bias;
    }
    if (spec->bias == LK_BIAS_NONE || any) return LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "adapter.bias: in this %s model %s has a bias to train; leave it \"none\"", config->model_type,
                   spec->bias == LK_BIAS_ALL ? "no linear layer" : "none of the adapted layers");
}

static lk_status fill_factors(lk_table_factors *f, const lk_config *config, const lk_adapter_spec *spec, const char *path, bool targeted,
                              lk_error *err)
{
    double alpha = 0;
    LK_TRY(lk_adapter_rank(spec, path, targeted, &f->rank, &alpha, err));
    if (!f->rank) return LK_OK;
    int64_t most = config->hidden < LK_ADAPTER_MAX_RANK ? config->hidden : LK_ADAPTER_MAX_RANK;
    if (f->rank < 0 || f->rank > most || f->rank > config->vocab)
        return lk_fail(err, LK_ERR_ARGUMENT, "rank %d does not fit %s of shape [%lld,%lld] (at most %lld)", f->rank, path,
                       (long long)config->vocab, (long long)config->hidden, (long long)most);
    f->alpha = (float)alpha;
    f->scale = lk_adapter_scale(alpha, f->rank, spec->use_rslora);
    return LK_OK;
}

lk_status lk_adapter_whole_fill(lk_adapter_whole *w, lk_adapter_site *sites, const lk_config *config, const lk_adapter_spec *spec,
                                lk_error *err)
{
    LK_TRY(check_factors(config, spec, err));
    LK_TRY(check_tokens(config, spec, err));
    LK_TRY(check_tie(config, spec, err));
    LK_TRY(fill_biases(sites, config, spec, err));
    LK_TRY(fill_factors(&w->embedding_factors, config, spec, embedding_path, spec->target_embedding, err));
    LK_TRY(fill_factors(&w->head_factors, config, spec, head_path, spec->target_head, err));
    w->tied = spec->tie_tables;
    w->embedding = spec->save_embedding || w->tied;
    w->head = spec->save_head || w->tied;
    w->n_tokens = spec->n_tokens;
    return LK_OK;
}

bool lk_adapter_whole_any(const lk_adapter_whole *w)
{
    return w->embedding || w->head || w->embedding_factors.rank || w->head_factors.rank || w->n_tokens;
}

/* ---------------------------------------------------------------------------------------------- places */

static int64_t take(int64_t *at, int64_t rows, int64_t width)
{
    int64_t place = *at;
    *at += lk_adapter_factor(rows, width);
    return place;
}

static void place_factors(lk_table_factors *f, int64_t of_a, int64_t of_b, int64_t *at, int32_t *max_rank)
{
    f->a = take(at, f->rank, of_a);
    f->b = take(at, f->rank, of_b);
    if (f->rank > *max_rank) *max_rank = f->rank;
}

void lk_adapter_whole_place(lk_adapter_whole *w, lk_adapter_site *sites, const lk_config *config, int64_t *n_params, int64_t *n_decayed,
                            int32_t *max_rank)
{
    int64_t V = config->vocab, C = config->hidden;
    w->embedding_at = take(n_params, w->embedding ? V : 0, C);
    w->head_at = w->tied ? w->embedding_at : take(n_params, w->head ? V : 0, C);
    place_factors(&w->embedding_factors, V, C, n_params, max_rank);
    place_factors(&w->head_factors, C, V, n_params, max_rank);
    w->tokens_at = take(n_params, w->n_tokens, C);
    *n_decayed = *n_params;
    for (int32_t s = 0; s < lk_sites(config); s++) {
        sites[s].bias_at = take(n_params, sites[s].trains_bias, sites[s].n);
        sites[s].lora_bias_at = take(n_params, sites[s].trains_lora_bias, sites[s].n);
    }
}

int64_t lk_adapter_whole_trainable(const lk_adapter_whole *w, const lk_adapter_site *sites, const lk_config *config)
{
    int64_t tables = w->embedding + (w->head && !w->tied), V = config->vocab, C = config->hidden;
    int64_t n = tables * V * C + (w->embedding_factors.rank + w->head_factors.rank) * (V + C) + w->n_tokens * C;
    for (int32_t s = 0; s < lk_sites(config); s++) n += (sites[s].trains_bias + sites[s].trains_lora_bias) * sites[s].n;
    return n;
}

/* ---------------------------------------------------------------------------------------------- the start */

static lk_status table_rows(const lk_adapter *a, const lk_matrix *table, const int32_t *ids, int64_t n, float *out, lk_error *err)
{
    lk_backend *be = a->model->be;
    lk_tensor y = lk_tensor_make(out, LK_F32, n, lk_matrix_k(table));
    lk_status status = lk_embed(be, &y, table, ids);
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

static lk_status whole_table(const lk_adapter *a, const lk_matrix *table, float *out, lk_error *err)
{
    int32_t ids[PIECE];
    int64_t V = lk_matrix_n(table), C = lk_matrix_k(table);
    for (int64_t v = 0; v < V; v += PIECE) {
        int64_t n = V - v < PIECE ? V - v : PIECE;
        for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(v + i);
        LK_TRY(table_rows(a, table, ids, n, out + v * C, err));
    }
    return LK_OK;
}

lk_status lk_adapter_whole_init(const lk_adapter *a, const lk_adapter_spec *spec, float *host, uint64_t seed, lk_error *err)
{
    const lk_adapter_whole *w = &a->whole;
    const lk_config *c = &a->model->config;
    lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_INIT);
    if (w->embedding) LK_TRY(whole_table(a, a->model->embedding, host + w->embedding_at, err));
    if (w->head && !w->tied) LK_TRY(whole_table(a, a->model->head, host + w->head_at, err));
    /* PEFT: an embedding's A is zero and B normal, whatever the start of the others. */
    const lk_table_factors *e = &w->embedding_factors, *h = &w->head_factors;
    lk_adapter_normal(host + e->b, e->b, e->rank * c->hidden, 1.0, key);
    if (h->rank && spec->init == LK_INIT_GAUSSIAN)
        lk_adapter_normal(host + h->a, h->a, h->rank * c->hidden, 1.0 / (double)h->rank, key);
    else if (h->rank)
        lk_adapter_uniform(host + h->a, h->a, h->rank * c->hidden, 1.0f / __builtin_sqrtf((float)c->hidden), key);
    if (w->n_tokens) LK_TRY(table_rows(a, a->model->embedding, a->token_ids, w->n_tokens, host + w->tokens_at, err));
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->trains_bias) continue;
        lk_status status = lk_download(a->model->be, host + site->bias_at, a->model->weights[s].bias, (size_t)site->n * sizeof *host);
        if (status) return lk_backend_fail(a->model->be, status, err);
    }
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- the kernels' copies */

size_t lk_adapter_whole_bytes(const lk_backend *be, const lk_config *c, const lk_adapter_whole *w)
{
    int64_t V = c->vocab, C = c->hidden;
    bool head_copy = c->tied && w->n_tokens; /* a product has no exceptions for rows */
    size_t table = lk_matrix_bytes(be, LK_F32, V, C, false), bytes = 0;
    bytes += table * (size_t)(w->embedding + (w->head && !w->tied) + head_copy);
    if (w->embedding_factors.rank)
        bytes += lk_matrix_bytes(be, LK_F32, V, w->embedding_factors.rank, false) +
                 lk_matrix_bytes(be, LK_F32, C, w->embedding_factors.rank, false);
    if (w->n_tokens) bytes += lk_matrix_bytes(be, LK_F32, w->n_tokens, C, false) + (size_t)w->n_tokens * sizeof(int32_t); /* rows, ids */
    return bytes;
}

static lk_status make(lk_adapter *a, bool wanted, lk_matrix **out, int64_t n, int64_t k, lk_error *err)
{
    if (!wanted) return LK_OK;
    lk_status status = lk_matrix_create(a->own, out, &(lk_matrix_source){.type = LK_F32, .n = n, .k = k});
    return status ? lk_backend_fail(a->own, status, err) : LK_OK;
}

/* The rows of a tied head that are not trained: those of the base. */
static lk_status fill_head_copy(lk_adapter *a, lk_error *err)
{
    const lk_matrix *base = a->model->head;
    int64_t V = lk_matrix_n(base), C = lk_matrix_k(base);
    int32_t ids[PIECE];
    float *rows = malloc((size_t)(PIECE * C) * sizeof *rows);
    lk_status status = rows ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for rows of a head");
    for (int64_t v = 0; v < V && !status; v += PIECE) {
        int64_t n = V - v < PIECE ? V - v : PIECE;
        for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(v + i);
        status = table_rows(a, base, ids, n, rows, err);
        if (!status && (status = lk_matrix_set(a->own, a->head, ids, n, rows))) lk_backend_fail(a->own, status, err);
    }
    free(rows);
    return status;
}

lk_status lk_adapter_whole_create(lk_adapter *a, lk_error *err)
{
    const lk_adapter_whole *w = &a->whole;
    const lk_config *c = &a->model->config;
    int32_t rank = w->embedding_factors.rank;
    bool head_copy = c->tied && w->n_tokens;
    LK_TRY(make(a, w->embedding, &a->embedding, c->vocab, c->hidden, err));
    if (w->tied) a->head = a->embedding;
    LK_TRY(make(a, (w->head && !w->tied) || head_copy, &a->head, c->vocab, c->hidden, err));
    LK_TRY(make(a, rank > 0, &a->embed_a, c->vocab, rank, err));
    LK_TRY(make(a, rank > 0, &a->embed_b, c->hidden, rank, err));
    LK_TRY(make(a, w->n_tokens > 0, &a->token_rows, w->n_tokens, c->hidden, err));
    return head_copy ? fill_head_copy(a, err) : LK_OK;
}

static lk_status set_tables(lk_adapter *a, const float *weights)
{
    const lk_adapter_whole *w = &a->whole;
    const lk_config *c = &a->model->config;
    if (w->embedding) LK_TRY(lk_matrix_set(a->own, a->embedding, NULL, c->vocab, weights + w->embedding_at));
    if (w->head && !w->tied) LK_TRY(lk_matrix_set(a->own, a->head, NULL, c->vocab, weights + w->head_at));
    if (w->n_tokens) LK_TRY(lk_matrix_set(a->own, a->token_rows, NULL, w->n_tokens, weights + w->tokens_at));
    if (w->n_tokens && c->tied) LK_TRY(lk_matrix_set(a->own, a->head, a->token_ids, w->n_tokens, weights + w->tokens_at));
    const lk_table_factors *e = &w->embedding_factors;
    if (!e->rank) return LK_OK;
    LK_TRY(lk_matrix_set(a->own, a->embed_a, NULL, c->vocab, weights + e->a));
    for (int32_t i = 0; i < c->hidden; i++) {
        float row[LK_ADAPTER_MAX_RANK];
        for (int32_t r = 0; r < e->rank; r++) row[r] = e->scale * weights[e->b + (int64_t)i * e->rank + r];
        LK_TRY(lk_matrix_set(a->own, a->embed_b, &i, 1, row));
    }
    return LK_OK;
}

lk_status lk_adapter_whole_refresh(lk_adapter *a, lk_error *err)
{
    const float *weights = a->weights;
    lk_status status = set_tables(a, weights);
    if (status) return lk_backend_fail(a->own, status, err);
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->trains_lora_bias) continue;
        const float *own = site->trains_bias ? weights + site->bias_at : a->model->weights[s].bias, *added = weights + site->lora_bias_at;
        float *bias = a->extra + site->bias;
        for (int64_t n = 0; n < site->n; n++) bias[n] = (own ? own[n] : 0.0f) + site->scale * added[n];
    }
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- in a batch */

const lk_adapter_tables *lk_adapter_train_tables(lk_adapter_tables *t, const lk_adapter *a, float *grads)
{
    const lk_adapter_whole *w = &a->whole;
    if (!lk_adapter_fill_tables(t, &a, 1)) return NULL;
    if (w->embedding) t->dembedding = grads + w->embedding_at;
    if (w->head) t->dhead = grads + w->head_at;
    if (w->n_tokens) t->dtokens = grads + w->tokens_at;
    if (w->n_tokens && a->model->config.tied) t->dhead_tokens = t->dtokens;
    if (w->embedding_factors.rank) {
        t->dembed_a = grads + w->embedding_factors.a;
        t->dembed_b = grads + w->embedding_factors.b;
        t->embed_scale = w->embedding_factors.scale;
    }
    if (w->head_factors.rank) {
        t->head_factors.da = grads + w->head_factors.a;
        t->head_factors.db = grads + w->head_factors.b;
    }
    return t;
}
