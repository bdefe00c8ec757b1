/* A linear layer over an NF4 matrix and its adapter as one product, by joining their contractions:
 *
 *     y  = [x  | s h] [W | B]^T          dequantising writes W with room behind each row, B goes there; s h goes behind the rows of x
 *     dx = [dy | dh ] [W ; A]            A goes below W's last row, dh = s dy B behind the rows of dy
 *
 * Why: the thin second product with beta = 1 reads and writes all of y (dx) for R multiplications an element. At 4096 tokens of the
 * Llama-3.1-8B shape these passes are 4 T (N of all layers) bytes forward, 0.70 GB a layer or 0.16 ms at 4.3 TB/s beside 2.3 ms of
 * products: 7 %. Joined they cost R more terms of k, 16 in 4096 (computed; a GPU has yet to measure it). The sum is rounded to bf16 once
 * instead of twice.
 *
 * h and dh come from skinny.cu, which reads x or dy once and writes them where the joined product looks for them.
 *
 * When: one segment over all rows, an NF4 matrix, rows with a gap (lk_row_gap) that allow loads of 16 bytes; backward without dropout,
 * since dx = drop(dh A) is no part of a joint sum. Everything else goes through lk_cuda_linear and lk_cuda_lora_*, one after the other. The
 * choice follows from shapes alone, so a run repeats its bits. */
#include "kernels/cuda/lora.h"
#include "kernels/cuda/product.h"

int64_t lk_cuda_row_gap(const lk_backend *be, int64_t rank)
{
    (void)be;
    return lk_cuda_padded(rank);
}

/* ---------------------------------------------------------------------------------------------- scratch */

typedef struct joined {
    lk_backend *be;
    const lk_cuda_matrix *w;
    const lk_lora *lora;
    int64_t tokens, n, k, ranks;
    void *weights; /* [N, K+R] forward, [N+R, K] backward */
    void *factor;  /* the other factor: A[R,K] forward, B^T[R,N] backward */
    void *h;       /* bf16 [T,R] backward */
} joined;

enum { PARTS = 3 };
static size_t sizes_of(size_t sizes[PARTS], int64_t tokens, int64_t ranks, int64_t matrix, int64_t n, int64_t k)
{
    int64_t larger = n > k ? n : k;
    sizes[0] = lk_cuda_carved((size_t)(matrix + larger * ranks) * 2);
    sizes[1] = lk_cuda_carved((size_t)(larger * ranks) * 2);
    sizes[2] = lk_cuda_carved((size_t)(tokens * ranks) * 2);
    return sizes[0] + sizes[1] + sizes[2];
}

size_t lk_cuda_linear_lora_scratch(const lk_limits *l)
{
    size_t sizes[PARTS];
    if (!l->training || !l->rank) return 0;
    return sizes_of(sizes, l->tokens, lk_cuda_padded(l->rank), l->matrix, l->width, lk_cuda_padded(l->width));
}

/* False: the layer's parts go one after the other. */
static bool joinable(joined *j, lk_backend *be, const lk_batch *batch, int32_t site, const lk_matrix *w, const lk_tensor *gapped)
{
    *j = (joined){.be = be, .w = lk_cuda_matrix_of(w), .tokens = batch->n_tokens, .n = w->n, .k = w->k};
    if (j->w->storage != LK_NF4 || batch->n_segments != 1) return false;
    const lk_segment *s = &batch->segments[0];
    if (s->begin != 0 || s->end != batch->n_tokens || !(j->lora = lk_cuda_segment_lora(batch, site, s))) return false;
    j->ranks = lk_cuda_padded(j->lora->rank);
    return gapped->stride - gapped->cols >= j->ranks && gapped->stride % 8 == 0 && gapped->cols % 8 == 0 && w->k % 8 == 0 &&
           (uintptr_t)gapped->data % 16 == 0;
}

static lk_status take_scratch(joined *j, const char *op)
{
    size_t sizes[PARTS], bytes = sizes_of(sizes, j->tokens, j->ranks, j->n * j->k, j->n, j->k);
    void *rest;
    LK_TRY(lk_cuda_scratch(j->be, op, bytes, &rest));
    j->weights = lk_cuda_carve(&rest, sizes[0]);
    j->factor = lk_cuda_carve(&rest, sizes[1]);
    j->h = lk_cuda_carve(&rest, sizes[2]);
    return LK_OK;
}

/* a[m,k] b[n,k]^T or, with b_transposed cleared by the caller, a[m,k] b[k,n]; bf16 throughout. */
static lk_gemm product(int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb, void *d, int64_t ldd)
{
    return (lk_gemm){.m = m,
                     .n = n,
                     .k = k,
                     .type = LK_BF16,
                     .a = a,
                     .lda = lda,
                     .b = b,
                     .ldb = ldb,
                     .d_type = LK_BF16,
                     .d = d,
                     .ldd = ldd,
                     .alpha = 1.0f};
}

/* ---------------------------------------------------------------------------------------------- forward */

/* h = drop(x) A^T, kept in fp32, and bf16(s h) behind the rows of x. */
static lk_status shrink(const joined *j, int32_t site, const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    return lk_cuda_skinny(j->be, &(lk_cuda_skinny_args){.x = x,
                                                        .rows = j->tokens,
                                                        .f = j->factor,
                                                        .rank = j->lora->rank,
                                                        .scale = j->lora->scale,
                                                        .out = (uint16_t *)x->data + j->k,
                                                        .ldo = x->stride,
                                                        .h = h->data,
                                                        .ldh = h->stride,
                                                        .dropout = dropout,
                                                        .site = site});
}

lk_status lk_cuda_linear_lora(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_matrix *w, const float *bias, const lk_tensor *residual, const lk_tensor *h,
                              const lk_dropout *dropout)
{
    joined j;
    if (lk_cuda_of(be)->serving || !joinable(&j, be, batch, site, w, x)) {
        LK_TRY(lk_cuda_linear(be, y, x, w, bias, residual));
        return lk_cuda_lora_forward(be, batch, site, y, x, h, dropout);
    }
    LK_TRY(take_scratch(&j, "linear_lora"));
    int64_t depth = j.k + j.ranks;
    LK_TRY(lk_cuda_lora_factors(be, j.lora, j.n, j.k, j.factor, (uint16_t *)j.weights + j.k, depth, 1.0f));
    LK_TRY(lk_cuda_nf4_dequantise(be, j.weights, depth, j.w, 0, j.n));
    LK_TRY(shrink(&j, site, x, h, dropout));
    lk_gemm g = product(j.tokens, j.n, depth, x->data, x->stride, j.weights, depth, y->data, y->stride);
    g.b_transposed = true;
    g.d_type = y->type;
    LK_TRY(lk_cuda_bias(be, &g.bias, bias, j.n, y->type));
    if (residual) {
        g.beta = 1.0f;
        g.c = residual->data;
        g.ldc = residual->stride;
    }
    return lk_cuda_multiply(j.be, &g);
}

/* Training's products are large enough to have nothing to gain from going together. */
lk_status lk_cuda_linear_parts(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                               const lk_dropout *dropout)
{
    if (lk_cuda_of(be)->serving && !lk_cuda_drops(dropout))
        return batch->n_segments ? lk_cuda_lora_serve_linears(be, batch, parts, n, x) : lk_cuda_serve_linears(be, parts, n, x);
    for (int i = 0; i < n; i++) {
        const lk_part *p = &parts[i];
        if (batch->n_segments)
            LK_TRY(lk_cuda_linear_lora(be, batch, p->site, &p->y, x, p->w, p->bias, NULL, &p->h, dropout));
        else
            LK_TRY(lk_cuda_linear(be, &p->y, x, p->w, p->bias, NULL));
    }
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- backward */

/* db += dy^T (s h), da += dh^T x. */
static lk_status factor_gradients(const joined *j, const lk_tensor *dy, const void *dh, const lk_tensor *x, const lk_tensor *h)
{
    const lk_lora *l = j->lora;
    if (!l->da || !l->db) return LK_OK;
    LK_TRY(lk_cuda_lora_hidden(j->be, j->h, j->ranks, h->data, h->stride, NULL, 0, j->tokens, l->rank, l->scale));
    lk_gemm g = product(j->n, l->rank, j->tokens, dy->data, dy->stride, j->h, j->ranks, l->db, l->rank);
    g.a_transposed = true;
    g.d_type = LK_F32;
    g.beta = 1.0f;
    g.split = true;
    LK_TRY(lk_cuda_multiply(j->be, &g));
    g = product(l->rank, j->k, j->tokens, dh, dy->stride, x->data, x->stride, l->da, j->k);
    g.a_transposed = true;
    g.d_type = LK_F32;
    g.beta = 1.0f;
    g.split = true;
    return lk_cuda_multiply(j->be, &g);
}

lk_status lk_cuda_linear_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                       const lk_matrix *w, const lk_tensor *x, const lk_tensor *h, bool accumulate,
                                       const lk_dropout *dropout)
{
    joined j;
    bool direct = x->stride % 8 == 0 && (uintptr_t)x->data % 16 == 0;
    if (lk_cuda_drops(dropout) || !direct || !joinable(&j, be, batch, site, w, dy)) {
        LK_TRY(lk_cuda_linear_backward(be, dx, dy, w, accumulate));
        return lk_cuda_lora_backward(be, batch, site, dx, dy, x, h, dropout);
    }
    LK_TRY(take_scratch(&j, "linear_lora_backward"));
    uint16_t *a = (uint16_t *)j.weights + j.n * j.k, *dh = (uint16_t *)dy->data + j.n;
    LK_TRY(lk_cuda_lora_factors(be, j.lora, j.n, j.k, a, NULL, 0, 1.0f));
    LK_TRY(lk_cuda_lora_b_transposed(be, j.lora, j.n, j.factor));
    LK_TRY(lk_cuda_nf4_dequantise(be, j.weights, j.k, j.w, 0, j.n));
    LK_TRY(lk_cuda_skinny(
        be, &(lk_cuda_skinny_args){
                .x = dy, .rows = j.tokens, .f = j.factor, .rank = j.lora->rank, .scale = j.lora->scale, .out = dh, .ldo = dy->stride}));
    LK_TRY(factor_gradients(&j, dy, dh, x, h));
    lk_gemm g = product(j.tokens, j.k, j.n + j.ranks, dy->data, dy->stride, j.weights, j.k, dx->data, dx->stride);
    g.beta = accumulate ? 1.0f : 0.0f;
    return lk_cuda_multiply(j.be, &g);
}
