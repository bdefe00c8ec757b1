/* Tile functions that the AVX-512 and AMX kernels share: bf16 tiles are made the same way for both. */
#ifndef LK_KERNELS_CPU_GEMM_AVX512_H
#define LK_KERNELS_CPU_GEMM_AVX512_H

#include <immintrin.h>

#include "kernels/cpu/gemm.h"
#include "kernels/nf4.h"

/* gemm_avx512_tiles.c: the functions of struct lk_gemm on bf16 tiles. `turn_pairs` leaves the transposed tiles as AMX wants right
 * tiles, [16 pairs of k][16 rows][2]. */
void lk_avx512_load_bf16(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale);
void lk_avx512_swap_pairs(void *to, const void *from);
void lk_avx512_turn_pairs(void *right0, void *right1, const void *top, const void *bottom);
void lk_avx512_turn_bf16(void *right0, void *right1, const void *top, const void *bottom);
void lk_avx512_nf4_bf16(void *tiles, const lk_nf4_tile *block);
/* The same while fetching `next` into the cache. */
void lk_avx512_nf4_ahead(void *tiles, const lk_nf4_tile *block, const lk_nf4_tile *next);
/* ... and on fp32 tiles. */
void lk_avx512_load_f32(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale);
void lk_avx512_turn_f32(void *right0, void *right1, const void *top, const void *bottom);
void lk_avx512_nf4_f32(void *tiles, const lk_nf4_tile *block);
/* to[16][16] of 32-bit elements = from[16][16]^T; strides in elements. `to` must not overlap `from`. */
void lk_avx512_transpose(float *to, int64_t to_stride, const float *from, int64_t from_stride);

#endif
