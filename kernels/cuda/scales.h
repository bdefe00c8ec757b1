/* The scale of a block of 64 weights, for kernels: the same bits as lk_nf4_unnest gives on the host. */
#ifndef LK_KERNELS_CUDA_SCALES_H
#define LK_KERNELS_CUDA_SCALES_H

#include "kernels/cuda/matrix.h"
#include "kernels/cuda/device.h"

LK_DEVICE float lk_cuda_block_scale(const lk_cuda_nf4 &w, int64_t block)
{
    if (w.absmax) return w.absmax[block];
    float value = w.constants[LK_CUDA_MAP_SIGNED + w.absmax8[block]];
    return lk_add_rn(lk_mul_rn(value, w.absmax2[block / 256]), w.offset);
}

#endif
