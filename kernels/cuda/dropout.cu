/* LoRA's input dropout, forward into a copy and backward out of one. The mask is the CPU's, bit for bit: a function of seed, micro-batch,
 * site, row and column (lk_dropout in kernels/ops.h), computed again wherever it is wanted and never stored.
 *
 * A thread takes eight columns of a row: two Philox calls, 40 wide integer products. Bytes moved: 4 an element forward (bf16 in and out), 6
 * backward; but some 25 instructions a column make this arithmetic rather than bandwidth, about 10^12 columns a second on an H200. The
 * adapters of an 8B model read 35 thousand columns a token and layer, four times a step that recomputes: 17 ms of the quarter of a second
 * that 4096 tokens take. A row is as many whole blocks as it needs, so that a division finds the row once a block, in 32 bits. */
#include "kernels/cuda/dropout.h"

enum { THREADS = 256, EACH = 8 };

typedef struct shape {
    int64_t first, width, padded, stride; /* stride of x or dx */
    unsigned blocks;                      /* to a row */
    bool aligned;
} shape;

LK_KERNEL void dropped_kernel(lk_bf16 *out, const lk_bf16 *x, shape s, lk_cuda_mask m)
{
    int64_t row = blockIdx.x / s.blocks, k = ((int64_t)(blockIdx.x % s.blocks) * THREADS + threadIdx.x) * EACH;
    if (k >= s.padded) return;
    int64_t left = s.width - k < EACH ? s.width - k : EACH;
    float values[EACH];
    lk_load_some(values, x + (s.first + row) * s.stride + k, left, s.aligned);
    lk_drop8(values, &m, s.first + row, k, s.width);
    lk_store8(out + row * s.padded + k, values);
}

LK_KERNEL void dropped_add_kernel(lk_bf16 *dx, const lk_bf16 *in, shape s, lk_cuda_mask m)
{
    int64_t row = blockIdx.x / s.blocks, k = ((int64_t)(blockIdx.x % s.blocks) * THREADS + threadIdx.x) * EACH;
    if (k >= s.padded) return;
    int64_t left = s.width - k < EACH ? s.width - k : EACH;
    lk_bf16 *to = dx + (s.first + row) * s.stride + k;
    float values[EACH], sum[EACH];
    lk_load8(values, in + row * s.padded + k);
    lk_load_some(sum, to, left, s.aligned);
    lk_drop8(values, &m, s.first + row, k, s.width);
    LK_UNROLL
    for (int i = 0; i < EACH; i++) sum[i] += values[i];
    if (s.aligned && left == EACH) {
        lk_store8(to, sum);
        return;
    }
    LK_UNROLL
    for (int i = 0; i < EACH; i++)
        if (i < left) to[i] = lk_float_bf16(sum[i]);
}

static shape shape_of(const lk_tensor *x, int64_t first)
{
    int64_t padded = lk_cuda_padded(x->cols);
    unsigned blocks = (unsigned)((padded / EACH + THREADS - 1) / THREADS);
    shape s = {first, x->cols, padded, x->stride, blocks, x->stride % EACH == 0 && (uintptr_t)x->data % 16 == 0};
    return s;
}

extern "C" lk_status lk_cuda_dropped(lk_backend *be, void *out, const lk_tensor *x, int64_t first, int64_t rows, int32_t site,
                                     const lk_dropout *dropout)
{
    shape s = shape_of(x, first);
    LK_LAUNCH("dropout", dropped_kernel, dim3((unsigned)rows * s.blocks), dim3(THREADS), 0, lk_cuda_of(be)->stream, (lk_bf16 *)out,
              (const lk_bf16 *)x->data, s, lk_cuda_mask_of(site, dropout));
    return lk_rt_launched("dropout", &be->error);
}

extern "C" lk_status lk_cuda_dropped_add(lk_backend *be, const lk_tensor *dx, const void *in, int64_t first, int64_t rows, int32_t site,
                                         const lk_dropout *dropout)
{
    shape s = shape_of(dx, first);
    LK_LAUNCH("dropout_add", dropped_add_kernel, dim3((unsigned)rows * s.blocks), dim3(THREADS), 0, lk_cuda_of(be)->stream,
              (lk_bf16 *)dx->data, (const lk_bf16 *)in, s, lk_cuda_mask_of(site, dropout));
    return lk_rt_launched("dropout_add", &be->error);
}
