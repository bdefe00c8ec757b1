/* AdamW element by element: four elements a thread, as 16-byte loads where all four arrays allow it.
 *
 * Bytes moved: 28 an element (p, m, v read and written, g read), 7 loads and stores of 16 bytes a thread: 64 bytes in flight per thread,
 * 128 KiB per multiprocessor, well above what hides the latency of memory. The arithmetic (a square root and two divisions, rounded to
 * nearest) is hidden behind that.
 *
 * Every operation rounds once and none are fused, so the bits are those of the CPU's paths. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

#include "kernels/cuda/adamw.h"

enum { THREADS = 256, EACH = 4 };

template <bool ALIGNED> LK_KERNEL void adamw_kernel(float *p, const float *g, float *m, float *v, int64_t n, lk_cuda_adamw_rates r)
{
    int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (ALIGNED && first + EACH <= n) {
        float a[EACH], b[EACH], c[EACH], d[EACH];
        lk_load4(a, p + first);
        lk_load4(b, g + first);
        lk_load4(c, m + first);
        lk_load4(d, v + first);
        LK_UNROLL
        for (int i = 0; i < EACH; i++) {
            float change = lk_adamw_moments(b[i], &c[i], &d[i], &r);
            a[i] = lk_add_rn(lk_mul_rn(a[i], r.decay), -change);
        }
        lk_store4(p + first, a);
        lk_store4(m + first, c);
        lk_store4(v + first, d);
        return;
    }
    for (int64_t i = first; i < n && i < first + EACH; i++) {
        float c = m[i], d = v[i], change = lk_adamw_moments(g[i], &c, &d, &r);
        p[i] = lk_add_rn(lk_mul_rn(p[i], r.decay), -change);
        m[i] = c;
        v[i] = d;
    }
}

extern "C" lk_status lk_cuda_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step)
{
    if (n == 0) return LK_OK;
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_adamw_rates rates = lk_cuda_adamw_rates_of(step);
    dim3 grid((unsigned)((n + THREADS * EACH - 1) / (THREADS * EACH)));
    if (lk_aligned16(p) && lk_aligned16(g) && lk_aligned16(m) && lk_aligned16(v))
        LK_LAUNCH("adamw", adamw_kernel<true>, grid, dim3(THREADS), 0, cu->stream, p, g, m, v, n, rates);
    else
        LK_LAUNCH("adamw", adamw_kernel<false>, grid, dim3(THREADS), 0, cu->stream, p, g, m, v, n, rates);
    return lk_rt_launched("adamw", &be->error);
}
