#include "bench/random_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/nf4.h"

enum { MOST_LAYERS = 80 };

static const struct {
    const char *name;
    int64_t hidden, layers, heads, kv_heads, intermediate, vocab;
} shapes[] = {
    {"tiny", 256, 2, 4, 2, 704, 1000},
    {"1b", 2048, 16, 32, 8, 8192, 128256},
    {"8b", 4096, 32, 32, 8, 14336, 128256},
    {"70b", 8192, 80, 64, 8, 28672, 128256},
};

lk_status bench_config(lk_config *config, const char *shape, lk_error *err)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, shape) != 0) continue;
        *config = (lk_config){.model_type = "llama",
                              .hidden = shapes[i].hidden,
                              .intermediate = shapes[i].intermediate,
                              .layers = shapes[i].layers,
                              .heads = shapes[i].heads,
                              .kv_heads = shapes[i].kv_heads,
                              .head_dim = shapes[i].hidden / shapes[i].heads,
                              .vocab = shapes[i].vocab,
                              .max_positions = 131072,
                              .rms_eps = 1e-5f,
                              .rope = {.theta = 500000.0},
                              .bos = -1};
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_ARGUMENT, "no shape is called '%s' (tiny, 1b, 8b, 70b)", shape);
}

/* xorshift, eight bytes at a time: the matrices are large and nobody looks at single weights. */
static void random_bytes(void *out, size_t n, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < n; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy((char *)out + i, &x, n - i < 8 ? n - i : 8);
    }
}

static lk_status create(lk_matrix **w, int64_t copies, lk_backend *be, const lk_matrix_source *source, lk_error *err)
{
    for (int64_t i = 0; i < copies; i++) {
        lk_status status = lk_matrix_create(be, &w[i], source);
        if (status) return lk_backend_fail(be, status, err);
    }
    return LK_OK;
}

static lk_status nf4_matrices(lk_matrix **w, int64_t copies, lk_backend *be, int64_t n, int64_t k, lk_error *err)
{
    int64_t blocks = lk_nf4_blocks(n * k), outer = lk_nf4_nested_blocks(blocks);
    uint8_t *codes = malloc((size_t)(n * k + 1) / 2), *absmax8 = malloc((size_t)blocks);
    float *absmax = malloc((size_t)blocks * 4), *absmax2 = malloc((size_t)outer * 4);
    lk_status status = LK_ERR_MEMORY;
    if (!codes || !absmax8 || !absmax || !absmax2) {
        lk_fail(err, LK_ERR_MEMORY, "no memory for a matrix of %lld x %lld", (long long)n, (long long)k);
    } else {
        random_bytes(codes, (size_t)(n * k + 1) / 2, (uint64_t)(n + k));
        random_bytes(absmax8, (size_t)blocks, (uint64_t)(n * 3 + k));
        /* Codes are drawn evenly, so the codebook's own deviation of about 0.6 counts: scales round 0.035 give weights near 0.02. */
        for (int64_t i = 0; i < outer; i++) absmax2[i] = 0.01f;
        const float offset = 0.035f;
        lk_nf4_unnest(absmax, absmax8, absmax2, offset, blocks);
        status = create(w, copies, be, &(lk_matrix_source){LK_NF4, n, k, codes, absmax, absmax8, absmax2, offset}, err);
    }
    free(codes);
    free(absmax8);
    free(absmax);
    free(absmax2);
    return status;
}

lk_status bench_random_matrices(lk_matrix **w, int64_t copies, lk_backend *be, lk_dtype type, int64_t n, int64_t k, lk_error *err)
{
    memset(w, 0, (size_t)copies * sizeof *w);
    if (type == LK_NF4) return nf4_matrices(w, copies, be, n, k, err);
    uint16_t *values = malloc((size_t)(n * k) * 2);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for a matrix of %lld x %lld", (long long)n, (long long)k);
    random_bytes(values, (size_t)(n * k) * 2, (uint64_t)(n * 7 + k));
    /* Sign and mantissa at random, the exponent of 2^-6: magnitudes from 0.0156 to 0.031. */
    for (int64_t i = 0; i < n * k; i++) values[i] = (uint16_t)((values[i] & 0x807f) | 0x3c80);
    lk_status status = create(w, copies, be, &(lk_matrix_source){.type = LK_BF16, .n = n, .k = k, .data = values}, err);
    free(values);
    return status;
}

static lk_status vector(float **out, lk_backend *be, const float *host, int64_t n, lk_error *err)
{
    void *p = NULL;
    lk_status status = lk_alloc(be, (size_t)n * 4, &p);
    if (!status) status = lk_upload(be, p, host, (size_t)n * 4);
    *out = p;
    return status ? lk_backend_fail(be, status, err) : LK_OK;
}

static lk_status fill(lk_model *m, float *host, lk_error *err)
{
    const lk_config *c = &m->config;
    lk_backend *be = m->be;
    for (int64_t i = 0; i < c->hidden; i++) host[i] = 1.0f;
    LK_TRY(vector(&m->final_norm, be, host, c->hidden, err));
    LK_TRY(bench_random_matrices(&m->embedding, 1, be, LK_BF16, c->vocab, c->hidden, err));
    LK_TRY(bench_random_matrices(&m->head, 1, be, LK_BF16, c->vocab, c->hidden, err));
    for (int64_t l = 0; l < c->layers; l++) {
        LK_TRY(vector(&m->layers[l].norm[LK_NORM_ATTENTION], be, host, c->hidden, err));
        LK_TRY(vector(&m->layers[l].norm[LK_NORM_MLP], be, host, c->hidden, err));
    }
    for (int32_t s = 0; s < lk_layer_sites(c, 0); s++) {
        lk_matrix *copies[MOST_LAYERS];
        lk_site site = lk_site_at(c, s);
        lk_status status = bench_random_matrices(copies, c->layers, be, LK_NF4, site.n, site.k, err);
        for (int64_t l = 0; l < c->layers; l++) m->weights[lk_layer_first_site(c, l) + s].w = copies[l];
        LK_TRY(status);
    }
    return LK_OK;
}

lk_status bench_random_model(lk_model **out, lk_backend *be, const lk_config *config, lk_error *err)
{
    *out = NULL;
    lk_model *m = calloc(1, sizeof *m);
    float *host = malloc((size_t)config->hidden * 4);
    lk_status status = LK_ERR_MEMORY;
    if (m) {
        *m = (lk_model){.be = be, .config = *config, .quant = LK_QUANT_NF4, .name = "random", .path = "random"};
        m->layers = calloc((size_t)config->layers, sizeof *m->layers);
        m->weights = calloc((size_t)lk_sites(config), sizeof *m->weights);
    }
    if (!m || !host || !m->layers || !m->weights)
        lk_fail(err, LK_ERR_MEMORY, "no memory for a model");
    else
        status = fill(m, host, err);
    free(host);
    if (status) {
        lk_model_close(m);
        return status;
    }
    *out = m;
    return LK_OK;
}

size_t bench_random_model_bytes(const lk_backend *be, const lk_config *config)
{
    lk_model_facts facts = {.config = *config, .dense = LK_BF16, .linear = LK_BF16};
    return lk_model_bytes(be, &facts, LK_QUANT_NF4);
}
