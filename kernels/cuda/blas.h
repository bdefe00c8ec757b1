/* Dense matrix products: the thin layer over cuBLASLt (native/blas.c); the emulation answers with plain loops (tests/cuda_emu/blas.cpp).
 *
 *     lk_gemm g = {.m = T, .n = N, .k = K, .a = x, .lda = K, .b = w, .ldb = K, .b_transposed = true, .d = y, .ldd = N,
 *                  .type = LK_BF16, .d_type = LK_BF16, .alpha = 1};                       -- y[T,N] = x[T,K] w[N,K]^T
 *     LK_TRY(lk_blas_gemm(blas, &g, stream, err));
 *
 * Everything is row-major; a leading dimension is the number of elements from one row to the next. Products of bf16 values summed in fp32;
 * one path through k in a fixed order (no split-k, no atomics), so that a row's bits do not depend on how many there are, unless `split`
 * allows cuBLASLt to cut k into a fixed number of pieces that are joined in order: gradients, whose m and n are the fixed widths and
 * whose k is the tokens. The algorithm of a shape is chosen once and kept. */
#ifndef LK_KERNELS_CUDA_BLAS_H
#define LK_KERNELS_CUDA_BLAS_H

#include <stdbool.h>

#include "kernels/cuda/runtime.h"
#include "kernels/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lk_blas lk_blas;

/* d[m,n] = alpha * op(a)[m,k] * op(b)[k,n] + beta * c[m,n] + bias[n] */
typedef struct lk_gemm {
    int64_t m, n, k;
    lk_dtype type; /* of a and b: LK_BF16 or LK_F32 (fp32 products, for tests and small things) */
    const void *a; /* [m,k], or [k,m] when a_transposed */
    int64_t lda;
    bool a_transposed;
    const void *b; /* [k,n], or [n,k] when b_transposed */
    int64_t ldb;
    bool b_transposed;
    lk_dtype d_type; /* of c and d: LK_BF16 or LK_F32 */
    const void *c;   /* NULL: d itself where beta is not 0 */
    int64_t ldc;
    void *d;
    int64_t ldd;
    float alpha, beta;
    const void *bias; /* [n] of d's type (cuBLASLt knows no other), or NULL */
    bool split;
} lk_gemm;

/* Its workspace is part of it: lk_blas_workspace_bytes, taken at creation. */
lk_status lk_blas_create(lk_blas **blas, const lk_rt_device *device, lk_error *err);
void lk_blas_destroy(lk_blas *blas); /* NULL is fine */
size_t lk_blas_workspace_bytes(void);
lk_status lk_blas_gemm(lk_blas *blas, const lk_gemm *g, lk_rt_stream stream, lk_error *err);

#ifdef __cplusplus
}
#endif
#endif
