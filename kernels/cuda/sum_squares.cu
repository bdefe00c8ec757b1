/* Sum of squares in double. A fixed number of threads takes the elements four at a time in strides, each keeps one sum, a block joins its
 * threads, and the host joins the blocks' sums: always in the same order, whatever the GPU, so the bits follow from x alone.
 *
 * Bytes moved: 4 an element, and 8 KiB to the host; 32 KiB in flight per multiprocessor. On GPUs with few double units (1 for 64 lanes) the
 * 42 million products of an adapter's gradients take some 0.1 ms, about as long as reading them. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, WARPS = THREADS / 32, BLOCKS = 1024, EACH = 4 };

extern "C" size_t lk_cuda_squares_scratch(void) { return lk_cuda_carved(BLOCKS * sizeof(double)); }

LK_KERNEL void squares_kernel(double *sums, const float *x, int64_t n, bool aligned)
{
    LK_SHARED(double, part, WARPS);
    int thread = (int)threadIdx.x;
    double sum = 0.0;
    for (int64_t at = ((int64_t)blockIdx.x * THREADS + thread) * EACH; at < n; at += (int64_t)BLOCKS * THREADS * EACH) {
        float four[EACH];
        if (aligned && at + EACH <= n) {
            uint4 v = *(const uint4 *)(x + at);
            four[0] = lk_as_float(v.x);
            four[1] = lk_as_float(v.y);
            four[2] = lk_as_float(v.z);
            four[3] = lk_as_float(v.w);
        } else {
            LK_UNROLL
            for (int i = 0; i < EACH; i++) four[i] = at + i < n ? x[at + i] : 0.0f;
        }
        LK_UNROLL
        for (int i = 0; i < EACH; i++) sum += (double)four[i] * (double)four[i]; /* the product is exact: fused or not, the same */
    }
    LK_UNROLL
    for (int mask = 16; mask; mask >>= 1) sum += lk_shuffle_xor(sum, mask);
    if (thread % 32 == 0) part[thread / 32] = sum;
    lk_block_sync();
    if (thread) return;
    for (int w = 1; w < WARPS; w++) sum += part[w];
    sums[blockIdx.x] = sum;
}

extern "C" lk_status lk_cuda_sum_squares(lk_backend *be, double *out, const float *x, int64_t n)
{
    lk_cuda *cu = lk_cuda_of(be);
    void *sums;
    double host[BLOCKS];
    *out = 0.0;
    if (n == 0) return LK_OK;
    LK_TRY(lk_cuda_scratch(be, "sum_squares", lk_cuda_squares_scratch(), &sums));
    LK_LAUNCH("sum_squares", squares_kernel, dim3(BLOCKS), dim3(THREADS), 0, cu->stream, (double *)sums, x, n, (uintptr_t)x % 16 == 0);
    LK_TRY(lk_rt_launched("sum_squares", &be->error));
    LK_TRY(lk_cuda_download(be, host, sums, sizeof host));
    for (int i = 0; i < BLOCKS; i++) *out += host[i];
    return LK_OK;
}
