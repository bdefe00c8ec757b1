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

/* One weight as bf16: matrix.h, read backwards (which lane's which byte holds it). For reading single rows, not for products. */
LK_DEVICE lk_bf16 lk_cuda_nf4_weight(const lk_cuda_nf4 &w, int64_t row, int64_t column, int64_t along)
{
    int in_tile = (int)(row % LK_CUDA_TILE_ROWS), at = (int)(column % 16), step = (int)(column % LK_CUDA_TILE_DEPTH / 16);
    int lane = in_tile % 8 * 4 + at % 8 / 2, byte = in_tile / 8 + at / 8 * 2;
    int64_t tile = row / LK_CUDA_TILE_ROWS * along + column / LK_CUDA_TILE_DEPTH;
    int pair = ((const unsigned char *)w.tiles)[tile * LK_CUDA_TILE_BYTES + lane * 16 + step * 4 + byte];
    float value = w.constants[LK_CUDA_CODEBOOK + (column % 2 ? pair & 15 : pair >> 4)];
    return lk_float_bf16(lk_mul_rn(value, lk_cuda_block_scale(w, row * along + column / LK_CUDA_TILE_DEPTH)));
}

#endif
