/* Products with a frozen matrix on all threads: the bulk of training and of serving.
 *
 * lk_cpu_linear, lk_cpu_linear_backward and lk_cpu_embed are the entries of the operation table. An operation that needs such a
 * product inside (the loss) uses the functions below them with its own part of the scratch:
 *
 *     size_t bytes = lk_cpu_product_scratch(g, threads, max_rows, max_width);
 *     lk_cpu_team team = lk_cpu_team_of(be, scratch);
 *     lk_cpu_product(&team, logits, v, x, c, rows, head, NULL);
 *
 * The same bits for a row whatever the number of rows and threads. */
#ifndef LK_KERNELS_CPU_LINEAR_H
#define LK_KERNELS_CPU_LINEAR_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matrix.h"

lk_status lk_cpu_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                        const lk_tensor *residual);
lk_status lk_cpu_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate);
lk_status lk_cpu_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids);
/* Scratch of the first two for these limits. */
size_t lk_cpu_linear_scratch(const lk_backend *be, const lk_limits *limits);

typedef struct lk_cpu_team {
    const lk_gemm *gemm;
    lk_pool *pool;
    void *scratch; /* 64-byte aligned */
} lk_cpu_team;

lk_cpu_team lk_cpu_team_of(lk_backend *be, void *scratch);

/* Bytes for products of up to `rows` rows with matrices whose N and K are up to `width`. */
size_t lk_cpu_product_scratch(const lk_gemm *g, int threads, int64_t rows, int64_t width);

/* y[T,N] = x[T,K] * w^T + bias[N] (NULL: none). */
void lk_cpu_product(const lk_cpu_team *team, float *y, int64_t ldy, const float *x, int64_t ldx, int64_t rows, const lk_matrix *w,
                    const float *bias);

/* dx[T,K] = dy[T,N] * w, or += with accumulate. */
void lk_cpu_product_backward(const lk_cpu_team *team, float *dx, int64_t lddx, const float *dy, int64_t lddy, int64_t rows,
                             const lk_matrix *w, bool accumulate);

#endif
