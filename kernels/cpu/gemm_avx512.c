/* AVX-512 kernels: fp32 with FMA, and bf16 with vdpbf16ps (two products a lane, summed in fp32).
 *
 * An element of the result is a dot product of two rows in 16 lanes, joined at the end of every `depth`. So rows go straight from
 * a row-major tile into registers, and one weight row meets one token without being copied to all lanes. The classic outer product
 * (lanes = 16 weight rows, tokens broadcast) saves the joining, some 3 operations an element, but needs weights interleaved by
 * row, which NF4 look-ups by row do not produce.
 *
 * The depth keeps eight rows of a tile panel in the first-level cache (16 KiB in fp32, 32 in bf16).
 *
 * Blocks are 8 rows of one side by 1, 2 or 3 of the other: 24 sums, 3 + 1 operands in registers. Which block an element falls
 * into does not change its bits: its lanes are summed alike everywhere. */
#if defined(__x86_64__)
#include "kernels/cpu/gemm_avx512.h"

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

enum { SIDE = 8, WIDE = 3, LANES = 16, DEPTH_F32 = 512 / LK_TILE_DEPTH, DEPTH_BF16 = 2048 / LK_TILE_DEPTH };

/* Two vectors' lanes joined within every 128 bits. */
static inline __m512 join32(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
static inline __m512 join64(__m512 a, __m512 b)
{
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* The sums of eight vectors' lanes, always by the same tree. */
static inline __m256 sums(const __m512 s[SIDE])
{
    __m512 low = join64(join32(s[0], s[1]), join32(s[2], s[3])), high = join64(join32(s[4], s[5]), join32(s[6], s[7]));
    __m512 halves = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
    __m512 even = _mm512_shuffle_f32x4(halves, halves, 0x08), odd = _mm512_shuffle_f32x4(halves, halves, 0x0d);
    return _mm256_add_ps(_mm512_castps512_ps256(even), _mm512_castps512_ps256(odd));
}

static inline const char *row_of(const void *panel, int64_t pitch, int64_t row, int64_t row_bytes)
{
    return (const char *)panel + row / LK_TILE_ROWS * pitch + row % LK_TILE_ROWS * row_bytes;
}

/* Where a block's lanes come from and go to: NULL when it begins at, or reaches, a multiple of `depth`. */
typedef struct lanes {
    const float *from;
    float *to;
} lanes;

/* Compilers would rather give each of three multiplications its own load: more loads than the first-level cache serves. */
#define IN_REGISTER(v) __asm__("" : "+v"(v))

/* c[i + j*across], i < 8 (those in the mask exist), j < n: eight rows of a by n of b over `tiles` tiles. */
#define BLOCK_KERNEL(name, n, STEP, ROW_BYTES)                                                                                          \
    static inline void name(float *c, int64_t across, __mmask8 mask, const char *a, const char *const b[WIDE], int64_t tiles, bool add, \
                            lanes kept)                                                                                                 \
    {                                                                                                                                   \
        __m512 sum[n][SIDE];                                                                                                            \
        for (int j = 0; j < n; j++)                                                                                                     \
            for (int i = 0; i < SIDE; i++)                                                                                              \
                sum[j][i] = kept.from ? _mm512_load_ps(kept.from + (j * SIDE + i) * LANES) : _mm512_setzero_ps();                       \
        for (int64_t t = 0; t < tiles; t++) {                                                                                           \
            int64_t at = t * LK_TILE_ROWS * (ROW_BYTES);                                                                                \
            for (int part = 0; part < (ROW_BYTES); part += 64) {                                                                        \
                __m512 right[n];                                                                                                        \
                _Pragma("GCC unroll 3") for (int j = 0; j < n; j++) right[j] = _mm512_load_ps(b[j] + at + part);                        \
                _Pragma("GCC unroll 8") for (int i = 0; i < SIDE; i++)                                                                  \
                {                                                                                                                       \
                    __m512 left = _mm512_load_ps(a + at + part + i * (ROW_BYTES));                                                      \
                    IN_REGISTER(left);                                                                                                  \
                    _Pragma("GCC unroll 3") for (int j = 0; j < n; j++) sum[j][i] = STEP(sum[j][i], left, right[j]);                    \
                }                                                                                                                       \
            }                                                                                                                           \
        }                                                                                                                               \
        for (int j = 0; j < n; j++) {                                                                                                   \
            if (kept.to) {                                                                                                              \
                for (int i = 0; i < SIDE; i++) _mm512_store_ps(kept.to + (j * SIDE + i) * LANES, sum[j][i]);                            \
            } else {                                                                                                                    \
                __m256 result = sums(sum[j]);                                                                                           \
                if (add) result = _mm256_add_ps(_mm256_maskz_loadu_ps(mask, c + j * across), result);                                   \
                _mm256_mask_storeu_ps(c + j * across, mask, result);                                                                    \
            }                                                                                                                           \
        }                                                                                                                               \
    }

#define STEP_F32(sum, left, right)  _mm512_fmadd_ps(left, right, sum)
#define STEP_BF16(sum, left, right) _mm512_dpbf16_ps(sum, (__m512bh)(left), (__m512bh)(right))

BLOCK_KERNEL(block1_f32, 1, STEP_F32, 128)
BLOCK_KERNEL(block2_f32, 2, STEP_F32, 128)
BLOCK_KERNEL(block3_f32, 3, STEP_F32, 128)
BLOCK_KERNEL(block1_bf16, 1, STEP_BF16, 64)
BLOCK_KERNEL(block2_bf16, 2, STEP_BF16, 64)
BLOCK_KERNEL(block3_bf16, 3, STEP_BF16, 64)

/* The side along which c is contiguous becomes the eight rows. */
static inline lk_gemm_pass contiguous_down(const lk_gemm_pass *pass)
{
    lk_gemm_pass p = *pass;
    if (p.down == 1) return p;
    p.down = pass->across, p.across = pass->down;
    p.left = pass->right, p.left_rows = pass->right_rows, p.left_pitch = pass->right_pitch;
    p.right = pass->left, p.right_rows = pass->left_rows, p.right_pitch = pass->left_pitch;
    return p;
}

/* A part of a pass that does not cross a multiple of `depth`: tiles [t, t + tiles) of it. */
#define MULTIPLY_PART(name, suffix, ROW_BYTES, DEPTH)                                                                       \
    static void name(const lk_gemm_pass *p, int64_t t, int64_t tiles)                                                       \
    {                                                                                                                       \
        int64_t offset = t * LK_TILE_ROWS * (ROW_BYTES), begin = p->first + t, finish = begin + tiles;                      \
        bool last = t + tiles == p->tiles && !p->partial, resume = begin % DEPTH != 0, keep = finish % DEPTH != 0 && !last; \
        bool add = begin >= DEPTH || p->mode == LK_GEMM_ADD;                                                                \
        for (int64_t i = 0; i < p->left_rows; i += SIDE) {                                                                  \
            const char *a = row_of(p->left, p->left_pitch, i, ROW_BYTES) + offset;                                          \
            __mmask8 mask = p->left_rows - i >= SIDE ? 0xff : (__mmask8)((1u << (p->left_rows - i)) - 1);                   \
            for (int64_t j = 0; j < p->right_rows; j += WIDE) {                                                             \
                int n = p->right_rows - j < WIDE ? (int)(p->right_rows - j) : WIDE;                                         \
                const char *b[WIDE] = {NULL};                                                                               \
                for (int m = 0; m < n; m++) b[m] = row_of(p->right, p->right_pitch, j + m, ROW_BYTES) + offset;             \
                float *c = p->c + i + j * p->across;                                                                        \
                lanes kept = {NULL, NULL};                                                                                  \
                if (resume) kept.from = p->sums + (i * p->right_rows + j * SIDE) * LANES;                                   \
                if (keep) kept.to = p->sums + (i * p->right_rows + j * SIDE) * LANES;                                       \
                if (n == 3)                                                                                                 \
                    block3_##suffix(c, p->across, mask, a, b, tiles, add, kept);                                            \
                else if (n == 2)                                                                                            \
                    block2_##suffix(c, p->across, mask, a, b, tiles, add, kept);                                            \
                else                                                                                                        \
                    block1_##suffix(c, p->across, mask, a, b, tiles, add, kept);                                            \
            }                                                                                                               \
        }                                                                                                                   \
    }

MULTIPLY_PART(part_f32, f32, 128, DEPTH_F32)
MULTIPLY_PART(part_bf16, bf16, 64, DEPTH_BF16)

static inline void multiply(const lk_gemm_pass *pass, int64_t depth, void (*part)(const lk_gemm_pass *, int64_t, int64_t))
{
    lk_gemm_pass p = contiguous_down(pass);
    for (int64_t t = 0; t < p.tiles;) {
        int64_t tiles = depth - (p.first + t) % depth;
        if (tiles > p.tiles - t) tiles = p.tiles - t;
        part(&p, t, tiles);
        t += tiles;
    }
}

static void multiply_f32(const lk_gemm_pass *pass) { multiply(pass, DEPTH_F32, part_f32); }
static void multiply_bf16(const lk_gemm_pass *pass) { multiply(pass, DEPTH_BF16, part_bf16); }

/* ---------------------------------------------------------------------------------------------- one token, from nibbles to sums
 *
 * Looked-up weights are multiplied where they are, in registers, instead of going through a panel: 16 rows are 16 sums. */
/* One block; `tiles` (2 or 4) is a constant where this is inlined. x: 32 values of the token for each tile. */
static inline __attribute__((always_inline)) void strip_block(__m512 sum[LK_TILE_ROWS], const lk_nf4_tile *block, const lk_nf4_tile *next,
                                                              const uint16_t *x, int tiles)
{
    __m512 codebook = _mm512_loadu_ps(lk_nf4_codebook);
    __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 32);
    __m512 x2 = _mm512_setzero_ps(), x3 = x2;
    if (tiles > 2) x2 = _mm512_loadu_ps(x + 64), x3 = _mm512_loadu_ps(x + 96);
#pragma GCC unroll 16
    for (int r = 0; r < LK_TILE_ROWS; r++) {
        lk_nf4_fetch(next, r);
        __m512i words = _mm512_load_si512(block->codes[r]);
        __m512 first = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[0][r]));
        __m512 second = _mm512_mul_ps(codebook, _mm512_set1_ps(block->absmax[1][r]));
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first), table = _mm512_shuffle_i64x2(both, both, 0x44);
        sum[r] = STEP_BF16(sum[r], _mm512_permutexvar_epi16(words, table), x0);
        sum[r] = STEP_BF16(sum[r], _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table), x1);
        if (tiles == 2) continue;
        table = _mm512_shuffle_i64x2(both, both, 0xee);
        sum[r] = STEP_BF16(sum[r], _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table), x2);
        sum[r] = STEP_BF16(sum[r], _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table), x3);
    }
}

/* 16 rows; sums are joined where `multiply` joins them. */
static void strip_rows(const lk_gemm_strip *s, int64_t row)
{
    const lk_nf4_tile *block = s->blocks + row / LK_TILE_ROWS * s->blocks_along;
    const uint16_t *x = s->packed;
    __m256 c[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t t = 0; t < s->tiles;) {
        int64_t end = s->tiles - t < DEPTH_BF16 ? s->tiles : t + DEPTH_BF16;
        bool add = t > 0;
        __m512 sum[LK_TILE_ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < LK_TILE_ROWS; r++) sum[r] = _mm512_setzero_ps();
        for (; t + 4 <= end; t += 4, block++, x += LK_NF4_TILE_DEPTH) strip_block(sum, block, block + 2, x, 4);
        if (t < end) strip_block(sum, block, block + 2, x, 2), t = end;
        for (int half = 0; half < 2; half++) {
            __m256 result = sums(sum + half * SIDE);
            c[half] = add ? _mm256_add_ps(c[half], result) : result;
        }
    }
    for (int half = 0; half < 2; half++) {
        int64_t left = s->rows - row - half * SIDE;
        __mmask8 mask = left >= SIDE ? 0xff : left <= 0 ? 0 : (__mmask8)((1u << left) - 1);
        _mm256_mask_storeu_ps(s->c + row + half * SIDE, mask, c[half]);
    }
}

static void strip_bf16(const lk_gemm_strip *s)
{
    for (int64_t row = 0; row < s->rows; row += LK_TILE_ROWS) strip_rows(s, row);
}

static void copy_f32(void *to, const void *from) { memcpy(to, from, LK_TILE_SIZE * sizeof(float)); }
static void copy_bf16(void *to, const void *from) { memcpy(to, from, LK_TILE_SIZE * sizeof(uint16_t)); }

#if defined(__clang__)
#pragma clang attribute pop
#endif

const lk_gemm lk_gemm_avx512_f32 = {.tier = LK_CPU_AVX512,
                                    .compute = LK_F32,
                                    .element = sizeof(float),
                                    .lanes = LANES,
                                    .depth = DEPTH_F32,
                                    .load = lk_avx512_load_f32,
                                    .swap = copy_f32,
                                    .turn = lk_avx512_turn_f32,
                                    .nf4 = lk_avx512_nf4_f32,
                                    .multiply = multiply_f32};
const lk_gemm lk_gemm_avx512_bf16 = {.tier = LK_CPU_AVX512,
                                     .compute = LK_BF16,
                                     .element = sizeof(uint16_t),
                                     .lanes = LANES,
                                     .depth = DEPTH_BF16,
                                     .load = lk_avx512_load_bf16,
                                     .swap = copy_bf16,
                                     .turn = lk_avx512_turn_bf16,
                                     .nf4 = lk_avx512_nf4_bf16,
                                     .multiply = multiply_bf16,
                                     .few = 1,
                                     .strip = strip_bf16};
#endif
