/* The rotation of RoPE, as every kernel that rotates does it: fused products are written out, so that they give the same bits. */
#ifndef LK_KERNELS_CUDA_ROPE_H
#define LK_KERNELS_CUDA_ROPE_H

#include "kernels/cuda/device.h"

/* (a, b) -> (a cos - b sin, b cos + a sin) */
LK_DEVICE float lk_cuda_turn_low(float a, float b, float c, float s) { return fmaf(a, c, -lk_mul_rn(b, s)); }
LK_DEVICE float lk_cuda_turn_high(float a, float b, float c, float s) { return fmaf(b, c, lk_mul_rn(a, s)); }

/* Eight pairs: from[0..7] with from[half..half+7], turn[0..7] their cosines and turn[half..half+7] their sines, times `sign`. 16-byte
 * aligned. */
LK_DEVICE void lk_cuda_turn_eights(lk_bf16 *low, lk_bf16 *high, const lk_bf16 *from, const float *turn, int half, float sign)
{
    float a[8], b[8];
    lk_load8(a, from);
    lk_load8(b, from + half);
    LK_UNROLL
    for (int i = 0; i < 8; i++) {
        float c = turn[i], s = sign * turn[half + i], was = a[i];
        a[i] = lk_cuda_turn_low(was, b[i], c, s);
        b[i] = lk_cuda_turn_high(was, b[i], c, s);
    }
    lk_store8(low, a);
    lk_store8(high, b);
}

#endif
