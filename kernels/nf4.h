/* NF4, the 4-bit NormalFloat of QLoRA (Dettmers et al. 2023), exactly as bitsandbytes stores and computes it.
 *
 *     lk_nf4_quantize(codes, absmax, values, n);                         -- blocks of 64 over the flat row-major tensor
 *     lk_nf4_nest(absmax8, absmax2, &offset, absmax, n_blocks);          -- double quantisation of the block scales
 *     lk_nf4_unnest(absmax, absmax8, absmax2, offset, n_blocks);
 *     lk_nf4_dequantize(values, codes, absmax, n);
 *
 * value[i] = codebook[code[i]] * absmax[i / 64]. Two codes share a byte, the even element in the high nibble. The last block
 * may be short; an odd count leaves the last low nibble 0-filled as bitsandbytes does. All functions are pure and
 * thread-safe; quantize and dequantize may be called on ranges that start at multiples of 64. Matching is bit for bit and
 * tested against files made by bitsandbytes (tests/golden/nf4.safetensors). */
#ifndef LK_KERNELS_NF4_H
#define LK_KERNELS_NF4_H

#include <stdint.h>

#include "kernels/dynamic_map.h" /* second-level codes index the signed map */

enum { LK_NF4_BLOCK = 64, LK_NF4_NESTED_BLOCK = 256 };

extern const float lk_nf4_codebook[16];

static inline int64_t lk_nf4_blocks(int64_t n) { return (n + LK_NF4_BLOCK - 1) / LK_NF4_BLOCK; }
static inline int64_t lk_nf4_nested_blocks(int64_t n_blocks) { return (n_blocks + LK_NF4_NESTED_BLOCK - 1) / LK_NF4_NESTED_BLOCK; }

/* codes[(n+1)/2], absmax[blocks(n)]. */
void lk_nf4_quantize(uint8_t *codes, float *absmax, const float *values, int64_t n);
void lk_nf4_dequantize(float *values, const uint8_t *codes, const float *absmax, int64_t n);

/* absmax8[n], absmax2[nested_blocks(n)], *offset = mean(absmax). */
void lk_nf4_nest(uint8_t *absmax8, float *absmax2, float *offset, const float *absmax, int64_t n);
void lk_nf4_unnest(float *absmax, const uint8_t *absmax8, const float *absmax2, float offset, int64_t n);

#endif
