/* LoRA beside a base whose product is already made: per segment two thin products forward and four backward, from bf16 copies of the
 * factors in scratch. Those that make h and dh out of a whole activation are a kernel of their own (skinny.cu), the others cuBLASLt's.
 * Serving batches go to lora_serve.cu.
 *
 * Forward: h = drop(x) A^T in fp32, kept as it is and, times the scale, as bf16; y += (scale h) B^T. Backward: dh = scale dy B, rounded to
 * bf16; db += dy^T (scale h); da += dh^T drop(x); dx += drop(dh A). The gradients of the factors are fp32 and add up in the order of rows.
 *
 * In backward x and dy are read where they lie when their rows allow loads of 16 bytes. Dropout, or rows that do not, go through a copy of
 * at most CHUNK rows: the scratch stays small however long the batch. With dropout an element of dx is rounded twice, as the product and as
 * the sum.
 *
 * Bytes moved for T rows, rank R: forward 2 TK (x) + 4 TN (y, both ways) + 8 TR (h) + 6 R(N+K) (factors); backward 4 TN (dy, twice) + 2 TK
 * (x) + 4 TK (dx) + 14 R(N+K) (factors, da, db). Beside the base's product this is y and dx once more through memory; a joined product
 * (lk_linear_lora) saves that. Dropout adds nothing forward, 4 TK for da and 8 TK for dx. */
#include "kernels/cuda/lora.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, CHUNK = 1024 };

/* ---------------------------------------------------------------------------------------------- small kernels */

LK_DEVICE lk_bf16 scaled_bf16(float value, float scale) { return lk_float_bf16(lk_mul_rn(value, scale)); }
LK_DEVICE lk_bf16 scaled_bf16(lk_bf16 value, float scale) { return scaled_bf16(lk_bf16_float(value), scale); }

typedef struct factor_shape {
    int64_t n, k, rank, ranks, width, ldb; /* ranks, width: padded */
    int64_t of_a, of_b;                    /* elements to write */
    float b_scale;
} factor_shape;

template <typename T> LK_KERNEL void factors_kernel(lk_bf16 *a, lk_bf16 *b, const T *from_a, const T *from_b, factor_shape s)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < s.of_a) {
        int64_t r = i / s.width, k = i % s.width;
        a[i] = r < s.rank && k < s.k ? scaled_bf16(from_a[r * s.k + k], 1.0f) : (lk_bf16)0;
        return;
    }
    i -= s.of_a;
    if (i >= s.of_b) return;
    int64_t n = i / s.ranks, r = i % s.ranks;
    b[n * s.ldb + r] = r < s.rank ? scaled_bf16(from_b[n * s.rank + r], s.b_scale) : (lk_bf16)0;
}

extern "C" lk_status lk_cuda_lora_factors(lk_backend *be, const lk_lora *l, int64_t n, int64_t k, void *a, void *b, int64_t ldb,
                                          float b_scale)
{
    int64_t ranks = lk_cuda_padded(l->rank), width = lk_cuda_padded(k);
    factor_shape s = {n, k, l->rank, ranks, width, ldb, a ? ranks * width : 0, b ? n * ranks : 0, b_scale};
    dim3 grid((unsigned)((s.of_a + s.of_b + THREADS - 1) / THREADS));
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (l->type == LK_BF16)
        LK_LAUNCH("lora_factors", factors_kernel<lk_bf16>, grid, dim3(THREADS), 0, stream, (lk_bf16 *)a, (lk_bf16 *)b,
                  (const lk_bf16 *)l->a, (const lk_bf16 *)l->b, s);
    else
        LK_LAUNCH("lora_factors", factors_kernel<float>, grid, dim3(THREADS), 0, stream, (lk_bf16 *)a, (lk_bf16 *)b, (const float *)l->a,
                  (const float *)l->b, s);
    return lk_rt_launched("lora_factors", &be->error);
}

template <typename T> LK_KERNEL void transpose_kernel(lk_bf16 *out, const T *b, int64_t n, int64_t ld, int64_t rank, int64_t ranks)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, r = i / ld, column = i % ld;
    if (r < ranks) out[i] = r < rank && column < n ? scaled_bf16(b[column * rank + r], 1.0f) : (lk_bf16)0;
}

extern "C" lk_status lk_cuda_lora_b_transposed(lk_backend *be, const lk_lora *l, int64_t n, void *bt)
{
    int64_t ranks = lk_cuda_padded(l->rank), ld = lk_cuda_padded(n);
    dim3 grid((unsigned)((ranks * ld + THREADS - 1) / THREADS));
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (l->type == LK_BF16)
        LK_LAUNCH("lora_transpose", transpose_kernel<lk_bf16>, grid, dim3(THREADS), 0, stream, (lk_bf16 *)bt, (const lk_bf16 *)l->b, n, ld,
                  l->rank, ranks);
    else
        LK_LAUNCH("lora_transpose", transpose_kernel<float>, grid, dim3(THREADS), 0, stream, (lk_bf16 *)bt, (const float *)l->b, n, ld,
                  l->rank, ranks);
    return lk_rt_launched("lora_transpose", &be->error);
}

typedef struct hidden_shape {
    int64_t rows, rank, ranks, ldo, ldi, ldc;
    float scale;
} hidden_shape;

LK_KERNEL void hidden_kernel(lk_bf16 *out, const float *in, float *copy, hidden_shape s)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= s.rows * s.ranks) return;
    int64_t row = i / s.ranks, r = i % s.ranks;
    float value = r < s.rank ? in[row * s.ldi + r] : 0.0f;
    out[row * s.ldo + r] = lk_float_bf16(lk_mul_rn(value, s.scale));
    if (copy && r < s.rank) copy[row * s.ldc + r] = value;
}

extern "C" lk_status lk_cuda_lora_hidden(lk_backend *be, void *out, int64_t ldo, const float *in, int64_t ldi, float *copy, int64_t ldc,
                                         int64_t rows, int64_t rank, float scale)
{
    hidden_shape s = {rows, rank, lk_cuda_padded(rank), ldo, ldi, ldc, scale};
    dim3 grid((unsigned)((rows * s.ranks + THREADS - 1) / THREADS));
    LK_LAUNCH("lora_hidden", hidden_kernel, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, (lk_bf16 *)out, in, copy, s);
    return lk_rt_launched("lora_hidden", &be->error);
}

/* ---------------------------------------------------------------------------------------------- scratch */

typedef struct lora_scratch {
    void *a, *b;  /* bf16 factors: [padded(R), padded(K)], [N, padded(R)] or, for backward, its transpose [padded(R), padded(N)] */
    void *h, *dh; /* bf16 [T, padded(R)], scaled */
    void *rows;   /* bf16 [CHUNK, padded(K or N)]: copies of x, dy, or a product on its way to dx */
} lora_scratch;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Bytes of each, in the order of the fields. */
enum { PARTS = 5 };
static size_t sizes_of(size_t sizes[PARTS], int64_t tokens, int64_t rank, int64_t n, int64_t k)
{
    int64_t ranks = lk_cuda_padded(rank), width = larger(lk_cuda_padded(n), lk_cuda_padded(k)), total = 0;
    const int64_t elements[PARTS] = {ranks * lk_cuda_padded(k), lk_cuda_padded(n) * ranks, tokens * ranks, tokens * ranks,
                                     smaller(tokens, CHUNK) * width};
    for (int i = 0; i < PARTS; i++) {
        sizes[i] = lk_cuda_carved((size_t)elements[i] * sizeof(lk_bf16));
        total += (int64_t)sizes[i];
    }
    return (size_t)total;
}

extern "C" size_t lk_cuda_lora_scratch(const lk_limits *limits)
{
    size_t sizes[PARTS];
    return limits->rank ? sizes_of(sizes, limits->tokens, limits->rank, limits->width, limits->width) : 0;
}

/* One call: what its segments share. */
typedef struct lora_call {
    lk_backend *be;
    const lk_batch *batch;
    int32_t site;
    const lk_tensor *x, *y, *h, *dx; /* y is dy in backward */
    const lk_dropout *dropout;       /* NULL when inactive */
    lora_scratch s;
    const lk_lora *loaded; /* whose factors are in scratch */
} lora_call;

static lk_status begin(lora_call *c, const char *op)
{
    int64_t rank = 0;
    if (!lk_cuda_drops(c->dropout)) c->dropout = NULL;
    for (int64_t i = 0; i < c->batch->n_segments; i++) {
        const lk_lora *l = lk_cuda_segment_lora(c->batch, c->site, &c->batch->segments[i]);
        if (l) rank = larger(rank, l->rank);
    }
    size_t sizes[PARTS], bytes = sizes_of(sizes, c->batch->n_tokens, rank, c->y->cols, c->x->cols);
    void *rest;
    LK_TRY(lk_cuda_scratch(c->be, op, bytes, &rest));
    c->s.a = lk_cuda_carve(&rest, sizes[0]);
    c->s.b = lk_cuda_carve(&rest, sizes[1]);
    c->s.h = lk_cuda_carve(&rest, sizes[2]);
    c->s.dh = lk_cuda_carve(&rest, sizes[3]);
    c->s.rows = lk_cuda_carve(&rest, sizes[4]);
    return LK_OK;
}

/* Forward wants A and B, backward A and the transpose of B. */
static lk_status load_factors(lora_call *c, const lk_lora *l, bool backward)
{
    if (c->loaded == l) return LK_OK;
    c->loaded = l;
    LK_TRY(lk_cuda_lora_factors(c->be, l, c->y->cols, c->x->cols, c->s.a, backward ? NULL : c->s.b, lk_cuda_padded(l->rank), 1.0f));
    return backward ? lk_cuda_lora_b_transposed(c->be, l, c->y->cols, c->s.b) : LK_OK;
}

static bool direct(const lk_tensor *t) { return t->stride % 8 == 0 && (uintptr_t)t->data % 16 == 0; }

/* Rows of a tensor as bf16 that cuBLASLt can load 16 bytes at a time: where they lie, or a (dropped) copy. */
static lk_status rows_of(const lora_call *c, const lk_tensor *t, int64_t first, int64_t rows, const lk_dropout *dropout, const void **data,
                         int64_t *ld)
{
    if (!dropout && direct(t)) {
        *data = (const lk_bf16 *)t->data + first * t->stride;
        *ld = t->stride;
        return LK_OK;
    }
    *data = c->s.rows;
    *ld = lk_cuda_padded(t->cols);
    return lk_cuda_dropped(c->be, c->s.rows, t, first, rows, c->site, dropout);
}

static lk_gemm product(int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb)
{
    lk_gemm g = {};
    g.m = m;
    g.n = n;
    g.k = k;
    g.type = g.d_type = LK_BF16;
    g.a = a;
    g.lda = lda;
    g.b = b;
    g.ldb = ldb;
    g.alpha = 1.0f;
    return g;
}

/* ---------------------------------------------------------------------------------------------- forward */

/* h and the bf16 of scale*h. */
static lk_status shrink(const lora_call *c, const lk_lora *l, const lk_segment *s)
{
    lk_cuda_skinny_args a = {c->x, s->begin, s->end - s->begin, c->s.a, l->rank, l->scale, c->s.h, lk_cuda_padded(l->rank)};
    a.h = (float *)c->h->data + s->begin * c->h->stride;
    a.ldh = c->h->stride;
    a.dropout = c->dropout;
    a.site = c->site;
    return lk_cuda_skinny(c->be, &a);
}

static lk_status expand(const lora_call *c, const lk_lora *l, const lk_segment *s)
{
    int64_t ranks = lk_cuda_padded(l->rank);
    lk_gemm g = product(s->end - s->begin, c->y->cols, ranks, c->s.h, ranks, c->s.b, ranks);
    g.b_transposed = true;
    g.d_type = c->y->type;
    g.d = (char *)c->y->data + s->begin * c->y->stride * lk_dtype_size(c->y->type);
    g.ldd = c->y->stride;
    g.beta = 1.0f;
    return lk_cuda_multiply(c->be, &g);
}

extern "C" lk_status lk_cuda_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                                          const lk_tensor *h, const lk_dropout *dropout)
{
    if (lk_cuda_of(be)->serving && !lk_cuda_drops(dropout)) {
        lk_part part = {NULL, NULL, site, *y, *h};
        return lk_cuda_lora_serve(be, batch, &part, 1, x);
    }
    lora_call c = {be, batch, site, x, y, h, NULL, dropout};
    LK_TRY(begin(&c, "lora_forward"));
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_segment *s = &batch->segments[i];
        const lk_lora *l = lk_cuda_segment_lora(batch, site, s);
        if (!l) continue;
        LK_TRY(load_factors(&c, l, false));
        LK_TRY(shrink(&c, l, s));
        LK_TRY(expand(&c, l, s));
    }
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- backward */

/* dh = scale dy B, and db += dy^T (scale h). */
static lk_status backward_b(const lora_call *c, const lk_lora *l, int64_t first, int64_t rows)
{
    int64_t ranks = lk_cuda_padded(l->rank), ld;
    const void *dy;
    lk_cuda_skinny_args shrink_back = {c->y, first, rows, c->s.b, l->rank, l->scale, c->s.dh, ranks};
    LK_TRY(lk_cuda_skinny(c->be, &shrink_back));
    if (!l->da || !l->db) return LK_OK;
    LK_TRY(rows_of(c, c->y, first, rows, NULL, &dy, &ld));
    LK_TRY(lk_cuda_lora_hidden(c->be, c->s.h, ranks, (const float *)c->h->data + first * c->h->stride, c->h->stride, NULL, 0, rows, l->rank,
                               l->scale));
    lk_gemm g = product(c->y->cols, l->rank, rows, dy, ld, c->s.h, ranks);
    g.a_transposed = true;
    g.d_type = LK_F32;
    g.d = l->db;
    g.ldd = l->rank;
    g.beta = 1.0f;
    g.split = true;
    return lk_cuda_multiply(c->be, &g);
}

/* da += dh^T drop(x) */
static lk_status backward_a(const lora_call *c, const lk_lora *l, int64_t first, int64_t rows)
{
    int64_t ld;
    const void *x;
    LK_TRY(rows_of(c, c->x, first, rows, c->dropout, &x, &ld));
    lk_gemm g = product(l->rank, c->x->cols, rows, c->s.dh, lk_cuda_padded(l->rank), x, ld);
    g.a_transposed = true;
    g.d_type = LK_F32;
    g.d = l->da;
    g.ldd = c->x->cols;
    g.beta = 1.0f;
    g.split = true;
    return lk_cuda_multiply(c->be, &g);
}

/* dx += drop(dh A) */
static lk_status backward_x(const lora_call *c, const lk_lora *l, int64_t first, int64_t rows)
{
    int64_t ranks = lk_cuda_padded(l->rank), width = lk_cuda_padded(c->x->cols);
    lk_gemm g = product(rows, c->x->cols, ranks, c->s.dh, ranks, c->s.a, width);
    g.d = (lk_bf16 *)c->dx->data + first * c->dx->stride;
    g.ldd = c->dx->stride;
    g.beta = 1.0f;
    if (!c->dropout) return lk_cuda_multiply(c->be, &g);
    g.n = width; /* zeros where it is padded */
    g.d = c->s.rows;
    g.ldd = width;
    g.beta = 0.0f;
    LK_TRY(lk_cuda_multiply(c->be, &g));
    return lk_cuda_dropped_add(c->be, c->dx, c->s.rows, first, rows, c->site, c->dropout);
}

extern "C" lk_status lk_cuda_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                           const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    lora_call c = {be, batch, site, x, dy, h, dx, dropout};
    LK_TRY(begin(&c, "lora_backward"));
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_segment *s = &batch->segments[i];
        const lk_lora *l = lk_cuda_segment_lora(batch, site, s);
        if (!l || (!dx && !l->da)) continue;
        LK_TRY(load_factors(&c, l, true));
        int64_t step = c.dropout || !direct(dy) || !direct(x) ? (int64_t)CHUNK : s->end - s->begin; /* copies are of a few rows */
        for (int64_t first = s->begin; first < s->end; first += step) {
            int64_t rows = smaller(step, s->end - first);
            LK_TRY(backward_b(&c, l, first, rows));
            if (l->da) LK_TRY(backward_a(&c, l, first, rows));
            if (dx) LK_TRY(backward_x(&c, l, first, rows));
        }
    }
    return LK_OK;
}
