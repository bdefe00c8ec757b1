/* Products of serving: y[T,N] = x[T,K] w[N,K]^T + bias + residual with one arithmetic for every number of rows, so that a token's bits
 * are the same alone, among sixty and in the middle of a prompt. product.c dispatches, nf4_product.cu and dense_product.cu are the two
 * kinds of weights, product_kernels.h and product_groups.h the kernels that they are put into, product_launch.h chooses among these.
 *
 * The arithmetic, for one row of y and one of w:
 *
 *     K is cut into depths of 64 and into at most eight pieces (lk_cuda_piece).
 *     p_j = sum over the depths of piece j, ascending, from zero
 *             NF4:    fma(scale of the depth, c, p),  c = the 64 products of bf16(codebook) and x, four mma of 16, ascending, from zero
 *             dense:  four mma of 16 on top of p
 *     y   = ((p_0 + p_1) + p_2) ... + bias + residual, in fp32, rounded once to y's type
 *
 * c is the sum of four steps of 16, each added to the one before as mma.m16n8k16 does it. wgmma (sm_90, many tokens) is taken only where it
 * gives those bits: group_probe.cu asks the device when the backend opens.
 *
 * The order depends on K alone. Pieces may be computed by different warps, blocks or launches; their sums are always joined in order. An
 * element of an mma depends on its own row of w and its own token only, wherever in a tile they sit.
 *
 * Training's products are cuBLASLt's over bf16(codebook * absmax) (linear.c): faster from some hundred rows on, but in an order
 * that NVIDIA chooses by shape. Which of the two runs follows from the kind of the batch (lk_batch_begin), never from its size. */
#ifndef LK_KERNELS_CUDA_PRODUCT_H
#define LK_KERNELS_CUDA_PRODUCT_H

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_LEAST_PIECE = 1024 };

/* Columns of a piece of K: 1024, or as many runs of 512 as leave at most eight pieces. */
static inline int64_t lk_cuda_piece(int64_t k)
{
    int64_t eighth = (k + 8 * 512 - 1) / (8 * 512) * 512;
    return eighth > LK_CUDA_LEAST_PIECE ? eighth : LK_CUDA_LEAST_PIECE;
}

/* x: rows of whole 16-byte groups, 16-byte aligned, with zeros from K to the next multiple of 8. */
typedef struct lk_cuda_product {
    const lk_cuda_matrix *w;
    const void *x;
    int64_t ldx, tokens;
    void *y; /* BF16, or F32 when y_f32; residual of the same type */
    int64_t ldy;
    const void *residual; /* or NULL */
    int64_t ldr;
    bool y_f32;
    const float *bias; /* or NULL */
    float *partials;   /* scratch for sums of pieces */
    size_t partials_bytes;
} lk_cuda_product;

/* n <= LK_MOST_PARTS products with the same x, in one launch or two (pieces and their joining). */
lk_status lk_cuda_nf4_product(lk_backend *be, const lk_cuda_product *p, int n);
lk_status lk_cuda_dense_product(lk_backend *be, const lk_cuda_product *p, int n);
/* Lets the kernels use the shared memory they want; once, when the backend opens. */
lk_status lk_cuda_nf4_product_prepare(lk_backend *be);
lk_status lk_cuda_dense_product_prepare(lk_backend *be);
/* y[t][row] = partials[0][t][row] + ... + partials[pieces-1][t][row] + bias + residual, of n products */
lk_status lk_cuda_product_join(lk_backend *be, const lk_cuda_product *p, int n, int64_t pieces);

/* lk_linear for a serving batch. */
lk_status lk_cuda_serve_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                               const lk_tensor *residual);
/* The products of lk_linear_parts, without their adapters. */
lk_status lk_cuda_serve_linears(lk_backend *be, const lk_part *parts, int n, const lk_tensor *x);
size_t lk_cuda_product_scratch(const lk_limits *limits);

#ifdef __cplusplus
}
#endif
#endif
