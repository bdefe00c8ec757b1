#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "data/gguf.h"
#include "kernels/nf4.h"
#include "model/bnb.h"
#include "model/names.h"

lk_status lk_weights_open(lk_safetensors **st, const char *base, const lk_config *config, lk_error *err)
{
    return lk_gguf_is_file(base) ? lk_gguf_open_weights(st, base, config, err) : lk_names_open(st, base, config, NULL, err);
}

typedef struct compute_job {
    const lk_st_tensor *tensor;
    unsigned char *out;
    lk_status status[256]; /* one a thread: no sharing */
    lk_error error[256];
} compute_job;

static void compute_elements(void *context, int64_t begin, int64_t end, int thread)
{
    enum { PIECE = 8192 };
    compute_job *job = context;
    float values[PIECE];
    int64_t size = lk_dtype_size(job->tensor->type);
    for (int64_t first = begin; first < end; first += PIECE) {
        int64_t n = end - first < PIECE ? end - first : PIECE;
        if ((job->status[thread] = lk_st_read_f32(job->tensor, first, n, values, &job->error[thread]))) return;
        lk_from_f32(job->out + first * size, job->tensor->type, values, n);
    }
}

lk_status lk_weights_bytes(const lk_st_tensor *t, lk_pool *pool, const void **data, void **own, lk_error *err)
{
    *own = NULL;
    *data = t->data;
    if (!t->source) return LK_OK;
    compute_job *job = calloc(1, sizeof *job);
    *own = malloc((size_t)t->n_bytes);
    lk_status status =
        job && *own ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the %lld bytes of %s", (long long)t->n_bytes, t->name);
    if (!status) {
        job->tensor = t;
        job->out = *own;
        lk_pool_run(pool, t->n_elements, 8192, compute_elements, job);
        for (int i = 0; i < lk_pool_threads(pool) && !status; i++)
            if (job->status[i]) status = lk_fail(err, job->status[i], "%s", job->error[i].message);
    }
    free(job);
    *data = *own;
    if (!status) return LK_OK;
    free(*own);
    *own = NULL;
    return status;
}

void lk_nf4_host_free(lk_nf4_host *m)
{
    free(m->own_codes);
    free(m->absmax);
    free(m->own_absmax8);
    free(m->absmax2);
    memset(m, 0, sizeof *m);
}

typedef struct quantize_job {
    const lk_st_tensor *tensor;
    int64_t total;
    uint8_t *codes;
    float *absmax;
    lk_status status[256]; /* one a thread: no sharing */
    lk_error error[256];
} quantize_job;

/* Values are widened in pieces: a whole matrix in fp32 would be four times the largest thing loading otherwise needs. */
static void quantize_blocks(void *context, int64_t begin, int64_t end, int thread)
{
    enum { PIECE = 64 * LK_NF4_BLOCK };
    quantize_job *job = context;
    float values[PIECE];
    for (int64_t first = begin * LK_NF4_BLOCK; first < end * LK_NF4_BLOCK && first < job->total; first += PIECE) {
        int64_t n = job->total - first;
        if (n > PIECE) n = PIECE;
        if (n > end * LK_NF4_BLOCK - first) n = end * LK_NF4_BLOCK - first;
        if ((job->status[thread] = lk_st_read_f32(job->tensor, first, n, values, &job->error[thread]))) return;
        lk_nf4_quantize(job->codes + first / 2, job->absmax + first / LK_NF4_BLOCK, values, n);
    }
}

lk_status lk_nf4_host_quantize(lk_nf4_host *m, const lk_st_tensor *t, int64_t n, int64_t k, lk_pool *pool, lk_error *err)
{
    memset(m, 0, sizeof *m);
    int64_t total = n * k, blocks = lk_nf4_blocks(total), nested = lk_nf4_nested_blocks(blocks);
    *m = (lk_nf4_host){.n = n, .k = k};
    m->own_codes = malloc((size_t)(total + 1) / 2);
    m->absmax = malloc((size_t)blocks * 4);
    m->absmax8 = m->own_absmax8 = malloc((size_t)blocks);
    m->absmax2 = malloc((size_t)nested * 4);
    quantize_job *job = calloc(1, sizeof *job);
    lk_status status = LK_OK;
    if (!m->own_codes || !m->absmax || !m->absmax8 || !m->absmax2 || !job) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory to quantise %s", t->name);
        goto out;
    }
    m->codes = m->own_codes;
    job->tensor = t;
    job->total = total;
    job->codes = m->own_codes;
    job->absmax = m->absmax;
    lk_pool_run(pool, blocks, 64, quantize_blocks, job);
    for (int i = 0; i < lk_pool_threads(pool) && !status; i++)
        if (job->status[i]) status = lk_fail(err, job->status[i], "%s", job->error[i].message);
    if (status) goto out;
    for (int64_t b = 0; b < blocks; b++) {
        /* NaN or infinity anywhere in a block shows in its scale. */
        if (!(m->absmax[b] <= 3.4e38f)) {
            status = lk_fail(err, LK_ERR_FORMAT, "%s: %s holds NaN or infinity near element %lld", t->file, t->name,
                             (long long)(b * LK_NF4_BLOCK));
            goto out;
        }
    }
    lk_nf4_nest(m->own_absmax8, m->absmax2, &m->offset, m->absmax, blocks);
    lk_nf4_unnest(m->absmax, m->absmax8, m->absmax2, m->offset, blocks);
out:
    free(job);
    if (status) lk_nf4_host_free(m);
    return status;
}

lk_status lk_nf4_host_read(lk_nf4_host *m, const lk_safetensors *st, const char *weight, int64_t n, int64_t k, lk_pool *pool, lk_error *err)
{
    memset(m, 0, sizeof *m);
    if (lk_bnb_is_quantized(st, weight)) {
        lk_bnb_tensor t;
        LK_TRY(lk_bnb_read(&t, st, weight, n, k, err));
        *m = (lk_nf4_host){
            .n = n, .k = k, .codes = t.codes, .absmax = t.absmax, .absmax8 = t.absmax8, .absmax2 = t.absmax2, .offset = t.offset};
        return LK_OK;
    }
    const lk_st_tensor *t;
    int64_t shape[2] = {n, k};
    LK_TRY(lk_safetensors_expect(st, weight, 2, shape, &t, err));
    return lk_nf4_host_quantize(m, t, n, k, pool, err);
}

typedef struct digest_job {
    const unsigned char *bytes;
    int64_t size;
    char (*hex)[65];
} digest_job;

enum { DIGEST_PIECE = 1 << 20 };

static void digest_pieces(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    digest_job *job = context;
    for (int64_t i = begin; i < end; i++) {
        int64_t first = i * DIGEST_PIECE, n = job->size - first < DIGEST_PIECE ? job->size - first : DIGEST_PIECE;
        lk_sha256_bytes(job->bytes + first, (size_t)n, job->hex[i]);
    }
}

void lk_tree_digest(lk_pool *pool, const void *bytes, int64_t size, char hex[65])
{
    int64_t pieces = (size + DIGEST_PIECE - 1) / DIGEST_PIECE;
    digest_job job = {bytes, size, malloc((size_t)(pieces ? pieces : 1) * 65)};
    if (!job.hex) abort(); /* a few kilobytes */
    lk_pool_run(pool, pieces, 1, digest_pieces, &job);
    lk_sha256 all;
    lk_sha256_init(&all);
    for (int64_t i = 0; i < pieces; i++) lk_sha256_update(&all, job.hex[i], 64);
    lk_sha256_final(&all, hex);
    free(job.hex);
}

/* The site a tensor belongs to when its name is that site's path and `ending`; else -1. */
static int32_t site_of(const lk_config *c, const char *name, const char *ending)
{
    char path[512];
    size_t length = strlen(name), tail = strlen(ending);
    if (length <= tail || length >= sizeof path || strcmp(name + length - tail, ending)) return -1;
    memcpy(path, name, length - tail);
    path[length - tail] = 0;
    return lk_site_find(c, path);
}

/* Is this a tensor that some part of the loader reads? */
static bool known_name(const char *name, const lk_config *c)
{
    static const char *const top[] = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"};
    for (size_t i = 0; i < sizeof top / sizeof *top; i++)
        if (!strcmp(name, top[i])) return true;
    if (lk_bnb_is_state(name) || strstr(name, ".rotary_emb.inv_freq")) return true;
    long long layer = -1;
    int used = 0;
    if (sscanf(name, "model.layers.%lld.%n", &layer, &used) != 1 || used == 0 || layer < 0 || layer >= c->layers) return false;
    const char *rest = name + used;
    for (int i = 0; i < LK_N_NORMS; i++) {
        int64_t width;
        const char *norm = lk_norm_name(c, (lk_norm)i, &width);
        if (norm && !strncmp(rest, norm, strlen(norm)) && !strcmp(rest + strlen(norm), ".weight")) return true;
    }
    int32_t site = site_of(c, name, ".weight");
    if (site >= 0) return true;
    site = site_of(c, name, ".bias");
    return site >= 0 && lk_site_at(c, site).bias;
}

lk_status lk_weights_check_names(const lk_safetensors *st, const lk_config *config, lk_error *err)
{
    for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        if (!known_name(t->name, config))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: tensor %s has no place in a %s model with this config.json; refusing to ignore it",
                           t->file, t->name, config->model_type);
    }
    return LK_OK;
}

static void hash_rotary(lk_sha256 *hash, const lk_rotary *r)
{
    char text[200];
    int n = snprintf(text, sizeof text, " rope %d %.17g %.17g %.17g %.17g %.17g %.17g %d %.17g", (int)r->kind, r->theta, r->partial,
                     r->factor, r->low, r->high, r->original, r->exact, r->attention_factor);
    lk_sha256_update(hash, text, (size_t)n);
    if (r->kind != LK_ROPE_LONG) return;
    lk_sha256_update(hash, r->short_factor, sizeof r->short_factor);
    lk_sha256_update(hash, r->long_factor, sizeof r->long_factor);
}

/* Is there nothing in the configuration but what the first text of hash_config says? */
static bool all_said(const lk_config *c)
{
    bool same = true;
    for (int64_t i = 0; i < c->layers; i++) same = same && c->layer[i] == (c->window ? LK_LAYER_SLIDES : 0);
    return same && c->norms == LK_NORMS_BEFORE && !c->norm_plus_one && c->qk_norm != LK_QK_WHOLE && !c->fused && c->activation == LK_SILU &&
           c->embedding_scale == 0.0 && c->residual_scale == 0.0 && c->attention_scale == 0.0 && c->logit_divisor == 0.0 &&
           c->attention_cap == 0.0 && c->logit_cap == 0.0 && !c->experts && c->rope.kind <= LK_ROPE_LLAMA3 && c->rope.partial == 0.0;
}

/* Everything of the configuration that enters a forward pass. The second half came with later families: models that need none of it keep
 * the identity that adapters were stamped with. */
static void hash_config(lk_sha256 *hash, const lk_config *c)
{
    char text[512];
    int n = snprintf(
        text, sizeof text,
        "%s %lld %lld %lld %lld %lld %lld %lld window %lld eps %.9g tied %d bias %d%d%d qk %d rope %.17g %d %.17g %.17g %.17g %.17g",
        c->model_type, (long long)c->hidden, (long long)c->intermediate, (long long)c->layers, (long long)c->heads, (long long)c->kv_heads,
        (long long)c->head_dim, (long long)c->vocab, (long long)c->window, (double)c->rms_eps, c->tied, c->qkv_bias, c->o_bias, c->mlp_bias,
        (int)c->qk_norm, c->rope.theta, (int)c->rope.kind, c->rope.factor, c->rope.low, c->rope.high, c->rope.original);
    lk_sha256_update(hash, text, (size_t)n);
    if (all_said(c)) return;
    n = snprintf(text, sizeof text, " norms %d%d fused %d act %d scales %.17g %.17g %.17g %.17g caps %.17g %.17g experts %lld %lld %d",
                 (int)c->norms, c->norm_plus_one, c->fused, (int)c->activation, c->embedding_scale, c->residual_scale, c->attention_scale,
                 c->logit_divisor, c->attention_cap, c->logit_cap, (long long)c->experts, (long long)c->experts_used, c->experts_as_is);
    lk_sha256_update(hash, text, (size_t)n);
    if (c->experts && lk_mlp_width(c)) {
        n = snprintf(text, sizeof text, " dense %lld", (long long)c->dense_intermediate);
        lk_sha256_update(hash, text, (size_t)n);
    }
    lk_sha256_update(hash, c->layer, (size_t)c->layers);
    hash_rotary(hash, &c->rope);
    hash_rotary(hash, &c->local_rope);
}

int32_t lk_weights_site(const lk_config *c, const char *name)
{
    int32_t site = site_of(c, name, ".weight");
    return site >= 0 && lk_site_at(c, site).module == LK_ROUTER ? -1 : site;
}

int32_t lk_weights_router(const lk_config *c, const char *name)
{
    int32_t site = site_of(c, name, ".weight");
    return site >= 0 && lk_site_at(c, site).module == LK_ROUTER ? site : -1;
}

lk_status lk_weights_identity(const lk_safetensors *st, const lk_config *config, lk_pool *pool, char hex[65], lk_error *err)
{
    lk_sha256 hash;
    lk_sha256_init(&hash);
    hash_config(&hash, config);
    int64_t hashed = 0;
    for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
        const lk_st_tensor *t = lk_safetensors_at(st, i);
        bool derived = lk_bnb_is_state(t->name) || strstr(t->name, ".rotary_emb.");
        bool unread_head = config->tied && !strcmp(t->name, "lm_head.weight");
        if (derived || unread_head || lk_weights_site(config, t->name) >= 0) continue;
        char part[65];
        lk_tree_digest(pool, t->source ? t->source->bytes : t->data, t->source ? t->source->n_bytes : t->n_bytes, part);
        lk_sha256_update(&hash, t->name, strlen(t->name));
        lk_sha256_update(&hash, lk_dtype_name(t->type), strlen(lk_dtype_name(t->type)));
        lk_sha256_update(&hash, part, 64);
        hashed++;
    }
    lk_sha256_final(&hash, hex);
    return hashed ? LK_OK : lk_fail(err, LK_ERR_FORMAT, "the model folder holds no weights");
}
