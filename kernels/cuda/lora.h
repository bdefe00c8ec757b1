/* What the LoRA operations are made of, for lora.cu itself and for a linear layer that joins base and adapter in one product.
 *
 * Ranks and widths are padded with zeros to multiples of 8 in scratch, so that cuBLASLt may always load 16 bytes at once. */
#ifndef LK_KERNELS_CUDA_LORA_H
#define LK_KERNELS_CUDA_LORA_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The adapter of a segment at a site; NULL when it has none there. */
static inline const lk_lora *lk_cuda_segment_lora(const lk_batch *batch, int32_t site, const lk_segment *s)
{
    if (s->adapter < 0 || s->begin == s->end) return NULL;
    const lk_lora *l = &batch->lora[(int64_t)site * batch->n_adapters + s->adapter];
    return l->rank > 0 ? l : NULL;
}

/* bf16 copies of the factors: a[padded(R), padded(K)] and, times b_scale, b[N, ldb] with ldb >= padded(R); zeros where they are padded, and
 * in b's columns up to padded(R). Either may be NULL. */
lk_status lk_cuda_lora_factors(lk_backend *be, const lk_lora *l, int64_t n, int64_t k, void *a, void *b, int64_t ldb, float b_scale);

/* out[rows, padded(R)] bf16 = scale * in[rows, R], leading dimensions ldo and ldi, zeros where it is padded; copy, when not NULL, takes in
 * as it is (F32, leading dimension ldc). */
lk_status lk_cuda_lora_hidden(lk_backend *be, void *out, int64_t ldo, const float *in, int64_t ldi, float *copy, int64_t ldc, int64_t rows,
                              int64_t rank, float scale);

/* bt[padded(R), padded(N)] bf16 = B^T, zeros where it is padded. */
lk_status lk_cuda_lora_b_transposed(lk_backend *be, const lk_lora *l, int64_t n, void *bt);

/* out[rows, padded(R)] bf16 = scale * drop(x) f^T for rows [first, first + rows) of x[T,W], f[padded(R), padded(W)] bf16; h[rows, R] F32
 * takes drop(x) f^T as it is. A row's bits depend on that row and W only. x bf16, of any stride. */
typedef struct lk_cuda_skinny_args {
    const lk_tensor *x;
    int64_t first, rows;
    const void *f;
    int32_t rank;
    float scale;
    void *out;
    int64_t ldo;
    float *h; /* or NULL */
    int64_t ldh;
    const lk_dropout *dropout; /* or NULL */
    int32_t site;
} lk_cuda_skinny_args;
lk_status lk_cuda_skinny(lk_backend *be, const lk_cuda_skinny_args *args);

/* out[rows, padded(K)] bf16 = drop(x) for rows [first, first + rows) of x, zeros where it is padded. dropout NULL: a copy. */
lk_status lk_cuda_dropped(lk_backend *be, void *out, const lk_tensor *x, int64_t first, int64_t rows, int32_t site,
                          const lk_dropout *dropout);
/* rows [first, first + rows) of dx += drop(in), in[rows, padded(K)] bf16. */
lk_status lk_cuda_dropped_add(lk_backend *be, const lk_tensor *dx, const void *in, int64_t first, int64_t rows, int32_t site,
                              const lk_dropout *dropout);

static inline bool lk_cuda_drops(const lk_dropout *d) { return d && d->p > 0.0f; }

#ifdef __cplusplus
}
#endif
#endif
