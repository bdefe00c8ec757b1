/* RMSNorm, both ways. Rows are read once: a thread keeps its part in registers, as the bf16 it came in, between the sum and the output.
 *
 * Bytes a row of C: forward 2*C read, 2*C written; backward 4*C read (6*C accumulating), 2*C written; the weights stay in the caches.
 * Short rows (heads, up to 1024) take a warp, eight of them a block, longer ones a block of their own: which it is, and with it the order
 * of the sum, follows from C alone. A block of 256 threads at C = 4096 has 8 KB on its way, a multiprocessor's eight blocks 64 KB.
 *
 * Rows wider than 16384, or not in groups of eight, are read twice by the plain kernels below. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { WARPS = 8, THREADS = 32 * WARPS, WIDEST = 16384 };

LK_DEVICE void unpack(float out[8], const uint4 &v)
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    LK_UNROLL
    for (int i = 0; i < 4; i++) {
        out[2 * i] = lk_low(w[i]);
        out[2 * i + 1] = lk_high(w[i]);
    }
}

LK_DEVICE void load_weights(float out[8], const float *w)
{
    float4 a = *(const float4 *)w, b = *(const float4 *)(w + 4);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

/* Where this thread stands: a row of its own warp, or of its block. */
typedef struct place {
    int64_t row;
    int first, step; /* in groups of eight */
} place;

template <bool WARP> LK_DEVICE place place_of(void)
{
    place p;
    p.row = WARP ? (int64_t)blockIdx.x * WARPS + threadIdx.x / 32 : (int64_t)blockIdx.x;
    p.first = WARP ? (int)threadIdx.x % 32 : (int)threadIdx.x;
    p.step = WARP ? 32 : (int)blockDim.x;
    return p;
}

/* ---------------------------------------------------------------------------------------------- forward */

template <int GROUPS, bool WARP>
LK_KERNEL void norm_eights(lk_bf16 *y, int64_t y_stride, float *rstd, const lk_bf16 *x, int64_t x_stride, const float *weight, float eps,
                           int64_t rows, int cols)
{
    LK_SHARED(float, part, 32);
    place p = place_of<WARP>();
    if (p.row >= rows) return; /* a whole warp, and no block's barrier follows in that case */
    const uint4 *from = (const uint4 *)(x + p.row * x_stride);
    uint4 kept[GROUPS];
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        int at = p.first + g * p.step;
        kept[g] = make_uint4(0, 0, 0, 0);
        if (at < cols / 8) kept[g] = from[at];
    }
    float sum = 0.0f;
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        float v[8];
        unpack(v, kept[g]);
        for (int i = 0; i < 8; i++) sum += v[i] * v[i];
    }
    sum = WARP ? lk_warp_sum(sum) : lk_block_sum(sum, part);
    float r = 1.0f / sqrtf(sum / (float)cols + eps);
    if (rstd && p.first == 0) rstd[p.row] = r;
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        int at = p.first + g * p.step;
        if (at >= cols / 8) continue;
        float v[8], w[8];
        unpack(v, kept[g]);
        load_weights(w, weight + at * 8);
        for (int i = 0; i < 8; i++) v[i] = v[i] * r * w[i];
        lk_store8(y + p.row * y_stride + at * 8, v);
    }
}

LK_KERNEL void norm_ones(lk_bf16 *y, int64_t y_stride, float *rstd, const lk_bf16 *x, int64_t x_stride, const float *weight, float eps,
                         int64_t cols)
{
    LK_SHARED(float, part, 32);
    const lk_bf16 *from = x + blockIdx.x * x_stride;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) {
        float v = lk_bf16_float(from[i]);
        sum += v * v;
    }
    float r = 1.0f / sqrtf(lk_block_sum(sum, part) / (float)cols + eps);
    if (rstd && threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (int64_t i = threadIdx.x; i < cols; i += THREADS)
        y[blockIdx.x * y_stride + i] = lk_float_bf16(lk_bf16_float(from[i]) * r * weight[i]);
}

template <int GROUPS, bool WARP>
static void launch_forward(lk_rt_stream stream, unsigned threads, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight,
                           float eps)
{
    unsigned blocks = (unsigned)(WARP ? (x->rows + WARPS - 1) / WARPS : x->rows);
    LK_LAUNCH("norm_eights", (norm_eights<GROUPS, WARP>), dim3(blocks), dim3(threads), 0, stream, (lk_bf16 *)y->data, y->stride, rstd,
              (const lk_bf16 *)x->data, x->stride, weight, eps, x->rows, (int)x->cols);
}

extern "C" lk_status lk_cuda_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    int64_t cols = x->cols;
    if (x->rows == 0) return LK_OK;
    if (!lk_cuda_eights(x) || !lk_cuda_eights(y) || (uintptr_t)weight % 16 || cols > WIDEST)
        LK_LAUNCH("norm_ones", norm_ones, dim3((unsigned)x->rows), dim3(THREADS), 0, stream, (lk_bf16 *)y->data, y->stride, rstd,
                  (const lk_bf16 *)x->data, x->stride, weight, eps, cols);
    else if (cols <= 256)
        launch_forward<1, true>(stream, THREADS, y, rstd, x, weight, eps);
    else if (cols <= 1024)
        launch_forward<4, true>(stream, THREADS, y, rstd, x, weight, eps);
    else if (cols <= 2048)
        launch_forward<1, false>(stream, THREADS, y, rstd, x, weight, eps);
    else if (cols <= 4096)
        launch_forward<2, false>(stream, THREADS, y, rstd, x, weight, eps);
    else if (cols <= 8192)
        launch_forward<4, false>(stream, THREADS, y, rstd, x, weight, eps);
    else
        launch_forward<4, false>(stream, 2 * THREADS, y, rstd, x, weight, eps);
    return lk_rt_launched("rmsnorm", &be->error);
}

/* ---------------------------------------------------------------------------------------------- backward */

/* With s = mean(dy*w*x): dx = rstd * (dy*w - x * rstd^2 * s). */
template <int GROUPS, bool WARP>
LK_KERNEL void norm_backward_eights(lk_bf16 *dx, int64_t dx_stride, const lk_bf16 *dy, int64_t dy_stride, const lk_bf16 *x,
                                    int64_t x_stride, const float *weight, const float *rstd, int64_t rows, int cols, int accumulate)
{
    LK_SHARED(float, part, 32);
    place p = place_of<WARP>();
    if (p.row >= rows) return;
    const uint4 *from = (const uint4 *)(x + p.row * x_stride), *from_dy = (const uint4 *)(dy + p.row * dy_stride);
    uint4 kept[GROUPS], kept_dy[GROUPS];
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        int at = p.first + g * p.step;
        kept[g] = kept_dy[g] = make_uint4(0, 0, 0, 0);
        if (at < cols / 8) kept[g] = from[at], kept_dy[g] = from_dy[at];
    }
    float sum = 0.0f;
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        int at = p.first + g * p.step;
        if (at >= cols / 8) continue;
        float v[8], d[8], w[8];
        unpack(v, kept[g]);
        unpack(d, kept_dy[g]);
        load_weights(w, weight + at * 8);
        for (int i = 0; i < 8; i++) sum += d[i] * w[i] * v[i];
    }
    sum = WARP ? lk_warp_sum(sum) : lk_block_sum(sum, part);
    float r = rstd[p.row], s = r * r * (sum / (float)cols);
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) {
        int at = p.first + g * p.step;
        if (at >= cols / 8) continue;
        float v[8], d[8], w[8], before[8];
        lk_bf16 *to = dx + p.row * dx_stride + at * 8;
        unpack(v, kept[g]);
        unpack(d, kept_dy[g]);
        load_weights(w, weight + at * 8);
        if (accumulate) lk_load8(before, to);
        for (int i = 0; i < 8; i++) {
            float value = r * (d[i] * w[i] - v[i] * s);
            d[i] = accumulate ? before[i] + value : value;
        }
        lk_store8(to, d);
    }
}

LK_KERNEL void norm_backward_ones(lk_bf16 *dx, int64_t dx_stride, const lk_bf16 *dy, int64_t dy_stride, const lk_bf16 *x, int64_t x_stride,
                                  const float *weight, const float *rstd, int64_t cols, int accumulate)
{
    LK_SHARED(float, part, 32);
    const lk_bf16 *from = x + blockIdx.x * x_stride, *from_dy = dy + blockIdx.x * dy_stride;
    lk_bf16 *to = dx + blockIdx.x * dx_stride;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) sum += lk_bf16_float(from_dy[i]) * weight[i] * lk_bf16_float(from[i]);
    float r = rstd[blockIdx.x], s = r * r * (lk_block_sum(sum, part) / (float)cols);
    for (int64_t i = threadIdx.x; i < cols; i += THREADS) {
        float value = r * (lk_bf16_float(from_dy[i]) * weight[i] - lk_bf16_float(from[i]) * s);
        if (accumulate) value += lk_bf16_float(to[i]);
        to[i] = lk_float_bf16(value);
    }
}

typedef struct backward_args {
    const lk_tensor *dx, *dy, *x;
    const float *weight, *rstd;
    int accumulate;
} backward_args;

template <int GROUPS, bool WARP> static void launch_backward(lk_rt_stream stream, unsigned threads, const backward_args *a)
{
    unsigned blocks = (unsigned)(WARP ? (a->x->rows + WARPS - 1) / WARPS : a->x->rows);
    LK_LAUNCH("norm_backward_eights", (norm_backward_eights<GROUPS, WARP>), dim3(blocks), dim3(threads), 0, stream, (lk_bf16 *)a->dx->data,
              a->dx->stride, (const lk_bf16 *)a->dy->data, a->dy->stride, (const lk_bf16 *)a->x->data, a->x->stride, a->weight, a->rstd,
              a->x->rows, (int)a->x->cols, a->accumulate);
}

extern "C" lk_status lk_cuda_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x,
                                              const float *weight, const float *rstd, bool accumulate)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    int64_t cols = x->cols;
    if (x->rows == 0) return LK_OK;
    backward_args a = {dx, dy, x, weight, rstd, accumulate ? 1 : 0};
    if (!lk_cuda_eights(x) || !lk_cuda_eights(dx) || !lk_cuda_eights(dy) || (uintptr_t)weight % 16 || cols > WIDEST)
        LK_LAUNCH("norm_backward_ones", norm_backward_ones, dim3((unsigned)x->rows), dim3(THREADS), 0, stream, (lk_bf16 *)dx->data,
                  dx->stride, (const lk_bf16 *)dy->data, dy->stride, (const lk_bf16 *)x->data, x->stride, weight, rstd, cols, a.accumulate);
    else if (cols <= 256)
        launch_backward<1, true>(stream, THREADS, &a);
    else if (cols <= 1024)
        launch_backward<4, true>(stream, THREADS, &a);
    else if (cols <= 2048)
        launch_backward<1, false>(stream, THREADS, &a);
    else if (cols <= 4096)
        launch_backward<2, false>(stream, THREADS, &a);
    else if (cols <= 8192)
        launch_backward<4, false>(stream, THREADS, &a);
    else
        launch_backward<4, false>(stream, 2 * THREADS, &a);
    return lk_rt_launched("rmsnorm_backward", &be->error);
}
