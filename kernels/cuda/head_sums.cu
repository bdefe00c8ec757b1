/* Bytes moved: 2 n an element read, 2 written; one thread has eight neighbours of one row. At 8192 rows of 128 values in 4 parts that is
 * 10 MB, three microseconds on an H200. */
#include "kernels/cuda/head_sums.h"

#include "kernels/cuda/device.h"

enum { THREADS = 256, MOST_BLOCKS = 4096 };

LK_KERNEL void head_sums_kernel(lk_bf16 *out, int64_t stride, const lk_bf16 *parts, int64_t eights, int64_t rows, int64_t n)
{
    int64_t width = eights * 8;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < rows * eights; i += (int64_t)gridDim.x * THREADS) {
        int64_t row = i / eights, col = i % eights * 8;
        const lk_bf16 *from = parts + row * n * width + col;
        float sum[8], part[8];
        lk_load8(sum, from);
        for (int64_t p = 1; p < n; p++) {
            lk_load8(part, from + p * width);
            LK_UNROLL
            for (int c = 0; c < 8; c++) sum[c] += part[c];
        }
        lk_store8(out + row * stride + col, sum);
    }
}

extern "C" lk_status lk_cuda_head_sums(void *out, int64_t stride, const void *parts, int64_t rows, int64_t n, int64_t width,
                                       lk_rt_stream stream, lk_error *err)
{
    if (rows < 1 || width < 1) return LK_OK;
    if (n < 1 || width % 8 || stride % 8 || (uintptr_t)out % 16 || (uintptr_t)parts % 16)
        return lk_fail(err, LK_ERR_INTERNAL, "head_sums: %lld parts of %lld values in rows of %lld, at %p and %p", (long long)n,
                       (long long)width, (long long)stride, out, parts);
    int64_t blocks = (rows * (width / 8) + THREADS - 1) / THREADS;
    LK_LAUNCH("head_sums", head_sums_kernel, dim3((unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS)), dim3(THREADS), 0, stream,
              (lk_bf16 *)out, stride, (const lk_bf16 *)parts, width / 8, rows, n);
    return lk_rt_launched("head_sums", err);
}
