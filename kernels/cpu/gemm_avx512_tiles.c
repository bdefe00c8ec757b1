/* Packing with AVX-512: loading, transposing and NF4 unpacking of tiles, for the kernels of gemm_avx512.c and gemm_amx.c.
 *
 * NF4 weights are exact in every kernel: for each row and block of 64 the 16 possible values codebook * absmax are computed once
 * (and rounded once), after which a weight costs one table look-up: vpermw gives 32 bf16 weights of a row at a time. The alternative
 * that keeps bare codebook values and multiplies sums by absmax every 64 k saves the table, but cannot be used with AMX (which
 * sums inside the tile) and makes weights differ between forward, backward and embedding. */
#if defined(__x86_64__)
#include "kernels/cpu/gemm_avx512.h"

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

static inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

static inline __m512 from_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

/* 16 values at p + at, of which `k` (counted from p) exist. */
static inline __m512 values16(const char *row, lk_dtype type, int at, int k)
{
    int n = k - at;
    __mmask16 mask = n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
    if (type == LK_BF16) return from_bf16(_mm256_maskz_loadu_epi16(mask, row + 2 * at));
    return _mm512_maskz_loadu_ps(mask, row + 4 * at);
}

/* A whole tile of fp32 values, which is nearly all of them. Sixteen rows are more streams than the hardware's prefetchers follow, so each
 * row fetches what the next two tiles to the right will want. */
static inline void load_whole(__m512i *to, const char *row, int64_t step, __m512 factor, bool scaled)
{
    for (int i = 0; i < LK_TILE_ROWS; i++, row += step) {
        __m512 low = _mm512_loadu_ps(row), high = _mm512_loadu_ps(row + 64);
        _mm_prefetch(row + 256, _MM_HINT_T0);
        _mm_prefetch(row + 320, _MM_HINT_T0);
        if (scaled) low = _mm512_mul_ps(low, factor), high = _mm512_mul_ps(high, factor);
        _mm512_store_si512(to + i, to_bf16(low, high));
    }
}

void lk_avx512_load_bf16(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale)
{
    const char *row = data;
    __m512i *to = tile;
    __m512 factor = _mm512_set1_ps(scale);
    int64_t step = stride * lk_dtype_size(type);
    if (type == LK_F32 && rows == LK_TILE_ROWS && k == LK_TILE_DEPTH) {
        if (scale == 1.0f)
            load_whole(to, row, step, factor, false);
        else
            load_whole(to, row, step, factor, true);
        return;
    }
    for (int i = 0; i < rows; i++, row += step) {
        __m512 low = _mm512_mul_ps(values16(row, type, 0, k), factor), high = _mm512_mul_ps(values16(row, type, 16, k), factor);
        _mm512_store_si512(to + i, to_bf16(low, high));
    }
    for (int i = rows; i < LK_TILE_ROWS; i++) _mm512_store_si512(to + i, _mm512_setzero_si512());
}

void lk_avx512_load_f32(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale)
{
    const char *row = data;
    float *to = tile;
    __m512 factor = _mm512_set1_ps(scale);
    int64_t step = stride * lk_dtype_size(type);
    for (int i = 0; i < rows; i++, row += step)
        for (int at = 0; at < LK_TILE_DEPTH; at += 16)
            _mm512_store_ps(to + i * LK_TILE_DEPTH + at, _mm512_mul_ps(values16(row, type, at, k), factor));
    if (rows < LK_TILE_ROWS) memset(to + rows * LK_TILE_DEPTH, 0, (size_t)(LK_TILE_ROWS - rows) * LK_TILE_DEPTH * sizeof(float));
}

/* In four steps: 32-bit, 64-bit, 128-bit and 256-bit elements change places. */
void lk_avx512_transpose(float *to, int64_t to_stride, const float *from, int64_t from_stride)
{
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * to_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_storeu_si512(to + (4 + i) * to_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
        _mm512_storeu_si512(to + (8 + i) * to_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
        _mm512_storeu_si512(to + (12 + i) * to_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
    }
}

/* A bf16 tile is 16 x 16 pairs of k: 32-bit elements. */
void lk_avx512_swap_pairs(void *to, const void *from) { lk_avx512_transpose(to, 16, from, 16); }

void lk_avx512_turn_pairs(void *right0, void *right1, const void *top, const void *bottom)
{
    static const uint16_t first[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i low = _mm512_loadu_si512(first), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const __m512i *source[2] = {top, bottom};
    __m512i *to0 = right0, *to1 = right1;
    for (int pair = 0; pair < 16; pair++) {
        const __m512i *rows = source[pair / 8] + pair % 8 * 2;
        __m512i a = _mm512_load_si512(rows), b = _mm512_load_si512(rows + 1);
        _mm512_store_si512(to0 + pair, _mm512_permutex2var_epi16(a, low, b));
        _mm512_store_si512(to1 + pair, _mm512_permutex2var_epi16(a, high, b));
    }
}

void lk_avx512_turn_bf16(void *right0, void *right1, const void *top, const void *bottom)
{
    _Alignas(64) uint16_t pairs[2][LK_TILE_SIZE];
    lk_avx512_turn_pairs(pairs[0], pairs[1], top, bottom);
    lk_avx512_swap_pairs(right0, pairs[0]);
    lk_avx512_swap_pairs(right1, pairs[1]);
}

void lk_avx512_turn_f32(void *right0, void *right1, const void *top, const void *bottom)
{
    const float *source[2] = {top, bottom};
    float *to[2] = {right0, right1};
    for (int half = 0; half < 2; half++)
        for (int side = 0; side < 2; side++)
            lk_avx512_transpose(to[half] + side * 16, LK_TILE_DEPTH, source[side] + half * 16, LK_TILE_DEPTH);
}

/* vpermw looks at five bits of each word, of which the fifth belongs to the next code, so it wants a table twice in its register. One
 * conversion (four operations, as much as two look-ups) makes both tables of a row, and a shuffle doubles each. */
void lk_avx512_nf4_ahead(void *tiles, const lk_nf4_tile *block, const lk_nf4_tile *next)
{
    __m512 codebook = _mm512_loadu_ps(lk_nf4_codebook);
    __m512i *to = tiles;
    for (int r = 0; r < LK_TILE_ROWS; r++) {
        lk_nf4_fetch(next, r);
        __m512 first = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[0][r]));
        __m512 second = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[1][r]));
        __m512i both = to_bf16(first, second);
        __m512i table0 = _mm512_shuffle_i64x2(both, both, 0x44), table1 = _mm512_shuffle_i64x2(both, both, 0xee);
        __m512i words = _mm512_load_si512(block->codes[r]);
        _mm512_store_si512(to + r, _mm512_permutexvar_epi16(words, table0));
        _mm512_store_si512(to + 16 + r, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table0));
        _mm512_store_si512(to + 32 + r, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table1));
        _mm512_store_si512(to + 48 + r, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table1));
    }
}

void lk_avx512_nf4_bf16(void *tiles, const lk_nf4_tile *block) { lk_avx512_nf4_ahead(tiles, block, block + 2); }

void lk_avx512_nf4_f32(void *tiles, const lk_nf4_tile *block)
{
    __m512 codebook = _mm512_loadu_ps(lk_nf4_codebook);
    float *to = tiles;
    for (int r = 0; r < LK_TILE_ROWS; r++) {
        lk_nf4_fetch(block + 2, r);
        __m512 table0 = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[0][r]));
        __m512 table1 = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[1][r]));
        for (int at = 0; at < 32; at += 16) {
            __m512i words = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(const void *)(block->codes[r] + at)));
            float *out = to + r * LK_TILE_DEPTH + at;
            _mm512_store_ps(out, _mm512_permutexvar_ps(words, table0));
            _mm512_store_ps(out + LK_TILE_SIZE, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 8), table0));
            _mm512_store_ps(out + 2 * LK_TILE_SIZE, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4), table1));
            _mm512_store_ps(out + 3 * LK_TILE_SIZE, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 12), table1));
        }
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
