/* Sums of what the query heads of one key head contribute, for the thin layers of attention (sdpa.h) that compute them apart.
 *
 *     out[r, c] = sum over p of parts[r, p * width + c], in fp32 and in order, rounded once
 *
 * out is [rows, width] bf16 with a row stride, parts [rows, n * width] bf16, dense; width and the stride are multiples of 8, both pointers
 * of 16 bytes. They must not overlap. */
#ifndef LK_KERNELS_CUDA_HEAD_SUMS_H
#define LK_KERNELS_CUDA_HEAD_SUMS_H

#include "kernels/cuda/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

lk_status lk_cuda_head_sums(void *out, int64_t stride, const void *parts, int64_t rows, int64_t n, int64_t width, lk_rt_stream stream,
                            lk_error *err);

#ifdef __cplusplus
}
#endif
#endif
