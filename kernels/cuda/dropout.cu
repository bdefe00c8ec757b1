/* LoRA's input dropout, forward into a copy and backward out of one. The mask is the CPU's, bit for bit: a function of seed, micro-batch,
 * site, row and column (lk_dropout in kernels/ops.h), computed again wherever it is wanted and never stored.
 *
 * A thread takes eight columns of a row: two Philox calls, 40 wide integer products. Bytes moved: 4 an element forward (bf16 in and out), 6
 * backward; but some 25 instructions a column make this arithmetic rather than bandwidth, about 10^12 columns a second on an H200. The
 * adapters of an 8B model read 35 thousand columns a token and layer, four times a step that recomputes: 17 ms of the quarter of a second
 * that 4096 tokens take. A row is as many whole blocks as it needs, so that a division finds the row once a block, in 32 bits. */
#include <math.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/lora.h"

enum { THREADS = 256, EACH = 8 };

typedef struct mask {
    lk_philox_key key;
    uint64_t counter, site; /* site in its place, bits 44 and up */
    uint32_t least;         /* uniform(word) >= p exactly when (word >> 8) >= least */
    float kept;
    bool active;
} mask;

static mask mask_of(int32_t site, const lk_dropout *d)
{
    mask m = {};
    m.active = lk_cuda_drops(d);
    if (!m.active) return m;
    m.key = d->key;
    m.counter = d->counter;
    m.site = (uint64_t)(uint32_t)site << 44;
    m.least = (uint32_t)ceil((double)d->p * 0x1p24);
    m.kept = 1.0f / (1.0f - d->p);
    return m;
}

/* x[i] *= 0 or 1/(1-p), for columns k .. k+7 of row t; k is a multiple of 8. */
LK_DEVICE void drop8(float x[EACH], const mask *m, int64_t t, int64_t k, int64_t width)
{
    if (!m->active) return;
    uint64_t place = m->site | ((uint64_t)t * (uint64_t)((width + 3) / 4) + (uint64_t)k / 4);
    LK_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t words[4];
        lk_philox(m->key, m->counter, place + (uint64_t)half, words);
        LK_UNROLL
        for (int i = 0; i < 4; i++) x[4 * half + i] = words[i] >> 8 >= m->least ? lk_mul_rn(x[4 * half + i], m->kept) : 0.0f;
    }
}

/* `count` <= 8 values, as one load where the row allows it; zeros after them. */
LK_DEVICE void load_some(float out[EACH], const lk_bf16 *p, int64_t count, bool aligned)
{
    if (aligned && count == EACH) {
        lk_load8(out, p);
        return;
    }
    LK_UNROLL
    for (int i = 0; i < EACH; i++) out[i] = i < count ? lk_bf16_float(p[i]) : 0.0f;
}

typedef struct shape {
    int64_t first, width, padded, stride; /* stride of x or dx */
    unsigned blocks;                      /* to a row */
    bool aligned;
} shape;

LK_KERNEL void dropped_kernel(lk_bf16 *out, const lk_bf16 *x, shape s, mask m)
{
    int64_t row = blockIdx.x / s.blocks, k = ((int64_t)(blockIdx.x % s.blocks) * THREADS + threadIdx.x) * EACH;
    if (k >= s.padded) return;
    int64_t left = s.width - k < EACH ? s.width - k : EACH;
    float values[EACH];
    load_some(values, x + (s.first + row) * s.stride + k, left, s.aligned);
    drop8(values, &m, s.first + row, k, s.width);
    lk_store8(out + row * s.padded + k, values);
}

LK_KERNEL void dropped_add_kernel(lk_bf16 *dx, const lk_bf16 *in, shape s, mask m)
{
    int64_t row = blockIdx.x / s.blocks, k = ((int64_t)(blockIdx.x % s.blocks) * THREADS + threadIdx.x) * EACH;
    if (k >= s.padded) return;
    int64_t left = s.width - k < EACH ? s.width - k : EACH;
    lk_bf16 *to = dx + (s.first + row) * s.stride + k;
    float values[EACH], sum[EACH];
    lk_load8(values, in + row * s.padded + k);
    load_some(sum, to, left, s.aligned);
    drop8(values, &m, s.first + row, k, s.width);
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
              (const lk_bf16 *)x->data, s, mask_of(site, dropout));
    return lk_rt_launched("dropout", &be->error);
}

extern "C" lk_status lk_cuda_dropped_add(lk_backend *be, const lk_tensor *dx, const void *in, int64_t first, int64_t rows, int32_t site,
                                         const lk_dropout *dropout)
{
    shape s = shape_of(dx, first);
    LK_LAUNCH("dropout_add", dropped_add_kernel, dim3((unsigned)rows * s.blocks), dim3(THREADS), 0, lk_cuda_of(be)->stream,
              (lk_bf16 *)dx->data, (const lk_bf16 *)in, s, mask_of(site, dropout));
    return lk_rt_launched("dropout_add", &be->error);
}
