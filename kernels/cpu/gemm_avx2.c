/* AVX2 kernels: fp32 with FMA for both kinds of compute; BF16 rounds while packing, so its products are exact and its sums are the fp32
 * ones. The shape of the kernels is that of gemm_avx512.c: dot products of rows, here in 8 lanes, 4 rows by up to 3 (12 sums,
 * 3 + 1 operands), 8 rows by 1 at a single token, where four sums would wait for each other. Lanes are
 * joined every 1024 k: four rows of that depth fill half of the first-level cache and stay there. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/nf4.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

enum { SIDE = 4, WIDE = 3, LANES = 8, DEPTH = 1024 / LK_TILE_DEPTH };

/* ---------------------------------------------------------------------------------------------- tiles */

/* To bf16 and back, nearest even; a NaN stays one. */
static inline __m256 round_bf16(__m256 v)
{
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 ordered = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
    rounded = _mm256_blendv_epi8(bits, rounded, _mm256_castps_si256(ordered));
    return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32((int)0xffff0000)));
}

static inline __m256 from_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }

static inline void load_row(float *to, const char *row, lk_dtype type, int k, __m256 factor, bool bf16)
{
    _Alignas(32) char padded[LK_TILE_DEPTH * sizeof(float)];
    if (k < LK_TILE_DEPTH) { /* the last tile of a row: do not read past its end */
        memset(padded, 0, sizeof padded);
        row = memcpy(padded, row, (size_t)(k * lk_dtype_size(type)));
    }
    for (int j = 0; j < LK_TILE_DEPTH; j += 8) {
        __m256 v = type == LK_BF16 ? from_bf16(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * j)))
                                   : _mm256_loadu_ps((const float *)(const void *)(row + 4 * j));
        v = _mm256_mul_ps(v, factor);
        _mm256_store_ps(to + j, bf16 ? round_bf16(v) : v);
    }
}

static inline void load(float *to, const char *row, lk_dtype type, int64_t stride, int rows, int k, float scale, bool bf16)
{
    __m256 factor = _mm256_set1_ps(scale);
    for (int i = 0; i < rows; i++, row += stride * lk_dtype_size(type)) load_row(to + i * LK_TILE_DEPTH, row, type, k, factor, bf16);
    if (rows < LK_TILE_ROWS) memset(to + rows * LK_TILE_DEPTH, 0, (size_t)(LK_TILE_ROWS - rows) * LK_TILE_DEPTH * sizeof(float));
}

static void load_f32(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale)
{
    load(tile, data, type, stride, rows, k, scale, false);
}

static void load_bf16(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale)
{
    load(tile, data, type, stride, rows, k, scale, true);
}

static void swap(void *to, const void *from) { memcpy(to, from, LK_TILE_SIZE * sizeof(float)); }

/* to[8][8] = from[8][8]^T, rows LK_TILE_DEPTH apart. */
static inline void transpose8(float *to, const float *from)
{
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_load_ps(from + i * LK_TILE_DEPTH);
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_store_ps(to + i * LK_TILE_DEPTH, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
        _mm256_store_ps(to + (4 + i) * LK_TILE_DEPTH, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
    }
}

static void turn(void *right0, void *right1, const void *top, const void *bottom)
{
    const float *source[2] = {top, bottom};
    float *to[2] = {right0, right1};
    for (int row = 0; row < LK_TILE_DEPTH; row += 8) /* of the source */
        for (int k = 0; k < LK_TILE_DEPTH; k += 8)
            transpose8(to[k / LK_TILE_ROWS] + k % LK_TILE_ROWS * LK_TILE_DEPTH + row,
                       source[row / LK_TILE_ROWS] + row % LK_TILE_ROWS * LK_TILE_DEPTH + k);
}

/* Eight values of a 16-entry table by the codes at bits `shift`.. of eight words: two look-ups of eight and a choice by bit 3. */
static inline __m256 look_up(__m256 low, __m256 high, __m256i words, int shift)
{
    __m256i codes = _mm256_srli_epi32(words, shift);
    __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - shift));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), choice);
}

static inline void nf4(float *tiles, const lk_nf4_tile *block, bool bf16)
{
    __m256 book[2] = {_mm256_loadu_ps(lk_nf4_codebook), _mm256_loadu_ps(lk_nf4_codebook + 8)};
    for (int r = 0; r < LK_TILE_ROWS; r++) {
        lk_nf4_fetch(block + 2, r);
        __m256 table[2][2];
        for (int half = 0; half < 2; half++) {
            for (int side = 0; side < 2; side++) {
                __m256 v = _mm256_mul_ps(book[side], _mm256_set1_ps(block->absmax[half][r]));
                table[half][side] = bf16 ? round_bf16(v) : v;
            }
        }
        for (int at = 0; at < LK_TILE_DEPTH; at += 8) {
            __m256i words = _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)(const void *)(block->codes[r] + at)));
            float *to = tiles + r * LK_TILE_DEPTH + at;
            _mm256_store_ps(to, look_up(table[0][0], table[0][1], words, 0));
            _mm256_store_ps(to + LK_TILE_SIZE, look_up(table[0][0], table[0][1], words, 8));
            _mm256_store_ps(to + 2 * LK_TILE_SIZE, look_up(table[1][0], table[1][1], words, 4));
            _mm256_store_ps(to + 3 * LK_TILE_SIZE, look_up(table[1][0], table[1][1], words, 12));
        }
    }
}

static void nf4_f32(void *tiles, const lk_nf4_tile *block) { nf4(tiles, block, false); }
static void nf4_bf16(void *tiles, const lk_nf4_tile *block) { nf4(tiles, block, true); }

/* ---------------------------------------------------------------------------------------------- products */

/* The sums of four vectors' lanes, always by the same tree. */
static inline __m128 sums(const __m256 s[SIDE])
{
    __m256 joined = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    return _mm_add_ps(_mm256_castps256_ps128(joined), _mm256_extractf128_ps(joined, 1));
}

static inline void put(float *c, __m128 result, int rows, bool add)
{
    if (rows >= SIDE) {
        _mm_storeu_ps(c, add ? _mm_add_ps(_mm_loadu_ps(c), result) : result);
        return;
    }
    float values[SIDE];
    _mm_storeu_ps(values, result);
    for (int i = 0; i < rows; i++) c[i] = add ? c[i] + values[i] : values[i];
}

/* Where a block's lanes come from and go to: NULL when it begins at, or reaches, a multiple of DEPTH. */
typedef struct lanes {
    const float *from;
    float *to;
} lanes;

/* c[i + j*across]: `height` rows of a (4 or 8; `rows` of them exist) by `n` of b over `tiles` tiles. Inlined with literal height and n. */
static inline __attribute__((always_inline)) void block(float *c, int64_t across, int rows, const float *a, const float *const b[WIDE],
                                                        int64_t tiles, bool add, lanes kept, const int height, const int n)
{
    __m256 sum[WIDE][2 * SIDE];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < height; i++) sum[j][i] = kept.from ? _mm256_load_ps(kept.from + (j * height + i) * LANES) : _mm256_setzero_ps();
    for (int64_t t = 0; t < tiles; t++) {
        for (int at = 0; at < LK_TILE_DEPTH; at += 8) {
            const int64_t from = t * LK_TILE_SIZE + at;
            __m256 right[WIDE];
#pragma GCC unroll 3
            for (int j = 0; j < n; j++) right[j] = _mm256_load_ps(b[j] + from);
#pragma GCC unroll 8
            for (int i = 0; i < height; i++) {
                __m256 left = _mm256_load_ps(a + from + i * LK_TILE_DEPTH);
                __asm__("" : "+x"(left)); /* in a register, not loaded for each multiplication */
#pragma GCC unroll 3
                for (int j = 0; j < n; j++) sum[j][i] = _mm256_fmadd_ps(left, right[j], sum[j][i]);
            }
        }
    }
    if (kept.to) {
        for (int j = 0; j < n; j++)
            for (int i = 0; i < height; i++) _mm256_store_ps(kept.to + (j * height + i) * LANES, sum[j][i]);
        return;
    }
    for (int j = 0; j < n; j++)
        for (int i = 0; i < height && i < rows; i += SIDE) put(c + i + j * across, sums(sum[j] + i), rows - i, add);
}

static inline const float *row_of(const void *panel, int64_t pitch, int64_t row)
{
    return (const float *)(const void *)((const char *)panel + row / LK_TILE_ROWS * pitch) + row % LK_TILE_ROWS * LK_TILE_DEPTH;
}

/* The side along which c is contiguous becomes the rows of the blocks. */
static lk_gemm_pass contiguous_down(const lk_gemm_pass *pass)
{
    lk_gemm_pass p = *pass;
    if (p.down == 1) return p;
    p.down = pass->across, p.across = pass->down;
    p.left = pass->right, p.left_rows = pass->right_rows, p.left_pitch = pass->right_pitch;
    p.right = pass->left, p.right_rows = pass->left_rows, p.right_pitch = pass->left_pitch;
    return p;
}

/* A part of a pass that does not cross a multiple of DEPTH: tiles [t, t + tiles) of it. */
static void multiply_part(const lk_gemm_pass *p, int64_t t, int64_t tiles)
{
    int64_t begin = p->first + t, finish = begin + tiles;
    bool last = t + tiles == p->tiles && !p->partial, resume = begin % DEPTH != 0, keep = finish % DEPTH != 0 && !last;
    bool add = begin >= DEPTH || p->mode == LK_GEMM_ADD;
    int height = p->right_rows == 1 ? 2 * SIDE : SIDE;
    for (int64_t i = 0; i < p->left_rows; i += height) {
        const float *a = row_of(p->left, p->left_pitch, i) + t * LK_TILE_SIZE;
        int rows = p->left_rows - i < height ? (int)(p->left_rows - i) : height;
        for (int64_t j = 0; j < p->right_rows; j += WIDE) {
            int n = p->right_rows - j < WIDE ? (int)(p->right_rows - j) : WIDE;
            const float *b[WIDE] = {NULL};
            for (int m = 0; m < n; m++) b[m] = row_of(p->right, p->right_pitch, j + m) + t * LK_TILE_SIZE;
            float *c = p->c + i + j * p->across;
            lanes kept = {NULL, NULL};
            if (resume) kept.from = p->sums + (i * p->right_rows + j * height) * LANES;
            if (keep) kept.to = p->sums + (i * p->right_rows + j * height) * LANES;
            if (height == 2 * SIDE)
                block(c, p->across, rows, a, b, tiles, add, kept, 2 * SIDE, 1);
            else if (n == 3)
                block(c, p->across, rows, a, b, tiles, add, kept, SIDE, 3);
            else if (n == 2)
                block(c, p->across, rows, a, b, tiles, add, kept, SIDE, 2);
            else
                block(c, p->across, rows, a, b, tiles, add, kept, SIDE, 1);
        }
    }
}

static void multiply(const lk_gemm_pass *pass)
{
    lk_gemm_pass p = contiguous_down(pass);
    for (int64_t t = 0; t < p.tiles;) {
        int64_t tiles = DEPTH - (p.first + t) % DEPTH;
        if (tiles > p.tiles - t) tiles = p.tiles - t;
        multiply_part(&p, t, tiles);
        t += tiles;
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const lk_gemm lk_gemm_avx2_f32 = {.tier = LK_CPU_AVX2,
                                  .compute = LK_F32,
                                  .element = sizeof(float),
                                  .lanes = LANES,
                                  .depth = DEPTH,
                                  .load = load_f32,
                                  .swap = swap,
                                  .turn = turn,
                                  .nf4 = nf4_f32,
                                  .multiply = multiply};
const lk_gemm lk_gemm_avx2_bf16 = {.tier = LK_CPU_AVX2,
                                   .compute = LK_BF16,
                                   .element = sizeof(float),
                                   .lanes = LANES,
                                   .depth = DEPTH,
                                   .load = load_bf16,
                                   .swap = swap,
                                   .turn = turn,
                                   .nf4 = nf4_bf16,
                                   .multiply = multiply};
#endif
