/* Rows of activations: y += x, scaling, the soft cap of logits, and picking rows; a bias in the type of an output. Bytes: add reads 4 and
 * writes 2 an element, gather reads 2 and writes 2. One thread has one group of eight; a multiprocessor's 2048 threads keep 32 to 64 KB on
 * their way. Columns run along blockIdx.x and rows along blockIdx.y, so that no thread divides. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, MOST_ROWS = 65535 /* of a grid; more are walked */ };

LK_KERNEL void add_eights(lk_bf16 *y, int64_t y_stride, const lk_bf16 *x, int64_t x_stride, int64_t rows, int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        float a[8], b[8];
        lk_load8(a, y + r * y_stride + c);
        lk_load8(b, x + r * x_stride + c);
        for (int i = 0; i < 8; i++) a[i] += b[i];
        lk_store8(y + r * y_stride + c, a);
    }
}

LK_KERNEL void add_ones(lk_bf16 *y, int64_t y_stride, const lk_bf16 *x, int64_t x_stride, int64_t rows, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
        y[r * y_stride + c] = lk_float_bf16(lk_bf16_float(y[r * y_stride + c]) + lk_bf16_float(x[r * x_stride + c]));
}

LK_KERNEL void scale_ones(lk_bf16 *y, int64_t y_stride, const lk_bf16 *x, int64_t x_stride, float by, int64_t rows, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) y[r * y_stride + c] = lk_float_bf16(by * lk_bf16_float(x[r * x_stride + c]));
}

LK_KERNEL void cap_ones(float *y, int64_t stride, float cap, int64_t rows, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) y[r * stride + c] = cap * tanhf(y[r * stride + c] / cap);
}

LK_KERNEL void clear_ones(float *y, int64_t stride, int64_t rows, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) y[r * stride + c] = 0.0f;
}

LK_KERNEL void gather_eights(lk_bf16 *y, int64_t y_stride, const lk_bf16 *x, int64_t x_stride, const int32_t *from, int64_t rows,
                             int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) *(uint4 *)(y + r * y_stride + c) = *(const uint4 *)(x + from[r] * x_stride + c);
}

LK_KERNEL void gather_ones(lk_bf16 *y, int64_t y_stride, const lk_bf16 *x, int64_t x_stride, const int32_t *from, int64_t rows,
                           int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) y[r * y_stride + c] = x[from[r] * x_stride + c];
}

LK_KERNEL void round_bias(lk_bf16 *out, const float *bias, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) out[i] = lk_float_bf16(bias[i]);
}

static dim3 grid_for(int64_t rows, int64_t items)
{
    return dim3((unsigned)((items + THREADS - 1) / THREADS), (unsigned)(rows < MOST_ROWS ? rows : MOST_ROWS));
}

extern "C" lk_status lk_cuda_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    lk_bf16 *to = (lk_bf16 *)y->data;
    const lk_bf16 *from = (const lk_bf16 *)x->data;
    if (lk_cuda_eights(y) && lk_cuda_eights(x))
        LK_LAUNCH("add_eights", add_eights, grid_for(y->rows, y->cols / 8), dim3(THREADS), 0, stream, to, y->stride, from, x->stride,
                  y->rows, y->cols);
    else
        LK_LAUNCH("add_ones", add_ones, grid_for(y->rows, y->cols), dim3(THREADS), 0, stream, to, y->stride, from, x->stride, y->rows,
                  y->cols);
    return lk_rt_launched("add", &be->error);
}

extern "C" lk_status lk_cuda_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by)
{
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    LK_LAUNCH("scale_ones", scale_ones, grid_for(y->rows, y->cols), dim3(THREADS), 0, lk_cuda_of(be)->stream, (lk_bf16 *)y->data, y->stride,
              (const lk_bf16 *)x->data, x->stride, by, y->rows, y->cols);
    return lk_rt_launched("scale", &be->error);
}

extern "C" lk_status lk_cuda_cap(lk_backend *be, const lk_tensor *y, float cap)
{
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    LK_LAUNCH("cap_ones", cap_ones, grid_for(y->rows, y->cols), dim3(THREADS), 0, lk_cuda_of(be)->stream, (float *)y->data, y->stride, cap,
              y->rows, y->cols);
    return lk_rt_launched("cap", &be->error);
}

extern "C" lk_status lk_cuda_clear(lk_backend *be, const lk_tensor *y)
{
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    LK_LAUNCH("clear_ones", clear_ones, grid_for(y->rows, y->cols), dim3(THREADS), 0, lk_cuda_of(be)->stream, (float *)y->data, y->stride,
              y->rows, y->cols);
    return lk_rt_launched("clear", &be->error);
}

extern "C" lk_status lk_cuda_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    const int32_t *numbers;
    LK_TRY(lk_cuda_array(be, &numbers, rows, y->rows));
    lk_bf16 *to = (lk_bf16 *)y->data;
    const lk_bf16 *from = (const lk_bf16 *)x->data;
    if (lk_cuda_eights(y) && lk_cuda_eights(x))
        LK_LAUNCH("gather_eights", gather_eights, grid_for(y->rows, y->cols / 8), dim3(THREADS), 0, stream, to, y->stride, from, x->stride,
                  numbers, y->rows, y->cols);
    else
        LK_LAUNCH("gather_ones", gather_ones, grid_for(y->rows, y->cols), dim3(THREADS), 0, stream, to, y->stride, from, x->stride, numbers,
                  y->rows, y->cols);
    return lk_rt_launched("gather_rows", &be->error);
}

extern "C" lk_status lk_cuda_bias(lk_backend *be, const void **out, const float *bias, int64_t n, lk_dtype type)
{
    *out = bias;
    if (!bias || type == LK_F32) return LK_OK;
    void *rounded;
    LK_TRY(lk_cuda_ring(be, &rounded, (size_t)n * sizeof(lk_bf16)));
    LK_LAUNCH("round_bias", round_bias, dim3((unsigned)((n + THREADS - 1) / THREADS)), dim3(THREADS), 0, lk_cuda_of(be)->stream,
              (lk_bf16 *)rounded, bias, n);
    *out = rounded;
    return lk_rt_launched("round_bias", &be->error);
}
