/* AMX: products of bf16 tiles, 16 x 32 by 32 x 16, summed in fp32 inside a 16 x 16 tile register. Used for any number of rows,
 * one included, so that a row has the same bits alone and in company: per step of 32 k the instruction adds up the even k and the odd k
 * (two chains of fused multiply-adds) and then adds both to the sum, whatever the shape of the tiles.
 *
 * Because a sum continues from what is in c, K may be split anywhere (at multiples of 32) without changing bits.
 *
 * Blocks are 2 x 2 tiles of sums, with two left and two right tiles beside them: all eight registers. When c is contiguous down (the
 * linear layers, whose weights are left and whose activations are right), a finished tile is transposed on its way out. Unfinished full tiles
 * are parked in c untransposed: they have the same 16 places of 16 floats. */
#if defined(__x86_64__)
#include "kernels/cpu/gemm_avx512.h"

#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

enum { TILE_BYTES = LK_TILE_SIZE * 2, ROW_BYTES = 64 };

/* Which registers hold what; the intrinsics want literal numbers. */
#define SUM00 0
#define SUM01 1
#define SUM10 2
#define SUM11 3
#define LEFT0 4
#define LEFT1 5
#define RIGHT0 6
#define RIGHT1 7

/* Two blocks of rows, two of columns; a second one may be empty. */
typedef struct shape {
    int rows[2], columns[2];
} shape;

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* What was written to p must be in memory now: to gcc 12 a tile load does not read memory, and a configuration is eight bytes. */
static inline void settle(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

static void set_register(tile_config *config, int number, int rows, int columns, int element)
{
    config->rows[number] = (uint8_t)(rows ? rows : 1); /* an unused register still needs a valid shape */
    config->row_bytes[number] = (uint16_t)((columns ? columns : 1) * element);
}

static void configure(const shape *s)
{
    _Alignas(64) tile_config config = {.palette = 1};
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) set_register(&config, SUM00 + 2 * i + j, s->rows[i], s->columns[j], 4);
        set_register(&config, LEFT0 + i, s->rows[i], LK_TILE_DEPTH, 2);
        set_register(&config, RIGHT0 + i, LK_TILE_DEPTH / 2, s->columns[i], 4);
    }
    settle(&config);
    _tile_loadconfig(&config);
}

/* The tile loops. Every combination of one or two blocks on each side gets its own, so that nothing is loaded in vain. */
#define STEP_COMMON                              \
    _tile_loadd(LEFT0, a0, ROW_BYTES);           \
    _tile_loadd(RIGHT0, b0, ROW_BYTES);          \
    _tile_dpbf16ps(SUM00, LEFT0, RIGHT0)

static inline void loop11(const char *a0, const char *b0, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, b0 += TILE_BYTES) {
        STEP_COMMON;
    }
}

static inline void loop12(const char *a0, const char *b0, const char *b1, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        STEP_COMMON;
        _tile_loadd(RIGHT1, b1, ROW_BYTES);
        _tile_dpbf16ps(SUM01, LEFT0, RIGHT1);
    }
}

static inline void loop21(const char *a0, const char *a1, const char *b0, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, a1 += TILE_BYTES, b0 += TILE_BYTES) {
        STEP_COMMON;
        _tile_loadd(LEFT1, a1, ROW_BYTES);
        _tile_dpbf16ps(SUM10, LEFT1, RIGHT0);
    }
}

static inline void loop22(const char *a0, const char *a1, const char *b0, const char *b1, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, a1 += TILE_BYTES, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        STEP_COMMON;
        _tile_loadd(LEFT1, a1, ROW_BYTES);
        _tile_dpbf16ps(SUM10, LEFT1, RIGHT0);
        _tile_loadd(RIGHT1, b1, ROW_BYTES);
        _tile_dpbf16ps(SUM01, LEFT0, RIGHT1);
        _tile_dpbf16ps(SUM11, LEFT1, RIGHT1);
    }
}

/* ---------------------------------------------------------------------------------------------- sums in and out */

/* _tile_loadd of a register whose number is known only at run time (once per 16 x 16 sums: it does not matter). */
static inline void load_sum(int number, const float *p, int64_t stride)
{
    size_t bytes = (size_t)stride * sizeof(float);
    switch (number) {
    case SUM00: _tile_loadd(SUM00, p, bytes); break;
    case SUM01: _tile_loadd(SUM01, p, bytes); break;
    case SUM10: _tile_loadd(SUM10, p, bytes); break;
    default: _tile_loadd(SUM11, p, bytes); break;
    }
}

static inline void store_sum(int number, float *p, int64_t stride)
{
    size_t bytes = (size_t)stride * sizeof(float);
    switch (number) {
    case SUM00: _tile_stored(SUM00, p, bytes); break;
    case SUM01: _tile_stored(SUM01, p, bytes); break;
    case SUM10: _tile_stored(SUM10, p, bytes); break;
    default: _tile_stored(SUM11, p, bytes); break;
    }
}

static inline void zero_sum(int number)
{
    switch (number) {
    case SUM00: _tile_zero(SUM00); break;
    case SUM01: _tile_zero(SUM01); break;
    case SUM10: _tile_zero(SUM10); break;
    default: _tile_zero(SUM11); break;
    }
}

/* One tile of sums: rows x columns at c. */
static void begin_sum(const lk_gemm_pass *p, int number, const float *c, int rows, int columns)
{
    if (p->begin == LK_PASS_SET) {
        zero_sum(number);
    } else if (p->down != 1) {
        load_sum(number, c, p->down);
    } else if (columns == 1) {
        load_sum(number, c, 1);
    } else if (p->begin == LK_PASS_RESUME && rows == 16 && columns == 16) {
        load_sum(number, c, p->across);
    } else {
        _Alignas(64) float room[2][16 * 16];
        __mmask16 mask = (__mmask16)((1u << rows) - 1);
        for (int j = 0; j < 16; j++)
            _mm512_store_ps(room[0] + 16 * j, j < columns ? _mm512_maskz_loadu_ps(mask, c + j * p->across) : _mm512_setzero_ps());
        lk_avx512_transpose(room[1], 16, room[0], 16);
        settle(room[1]);
        load_sum(number, room[1], 16);
    }
}

static void end_sum(const lk_gemm_pass *p, int number, float *c, int rows, int columns)
{
    if (p->down != 1) {
        store_sum(number, c, p->down);
    } else if (columns == 1) {
        store_sum(number, c, 1);
    } else if (p->partial && rows == 16 && columns == 16) {
        store_sum(number, c, p->across);
    } else {
        _Alignas(64) float room[2][16 * 16];
        __mmask16 mask = (__mmask16)((1u << rows) - 1);
        store_sum(number, room[0], 16);
        lk_avx512_transpose(room[1], 16, room[0], 16);
        for (int j = 0; j < columns; j++) _mm512_mask_storeu_ps(c + j * p->across, mask, _mm512_load_ps(room[1] + 16 * j));
    }
}

static inline int block_rows(int64_t total, int64_t at)
{
    int64_t rest = total - at;
    return rest >= LK_TILE_ROWS ? LK_TILE_ROWS : rest > 0 ? (int)rest : 0;
}

static void multiply_block(const lk_gemm_pass *p, int64_t i, int64_t j, const shape *s)
{
    const char *a0 = (const char *)p->left + i / LK_TILE_ROWS * p->left_pitch, *a1 = a0 + p->left_pitch;
    const char *b0 = (const char *)p->right + j / LK_TILE_ROWS * p->right_pitch, *b1 = b0 + p->right_pitch;
    int row_blocks = s->rows[1] ? 2 : 1, column_blocks = s->columns[1] ? 2 : 1;
    float *c = p->c + i * p->down + j * p->across;
    for (int y = 0; y < row_blocks; y++)
        for (int x = 0; x < column_blocks; x++)
            begin_sum(p, SUM00 + 2 * y + x, c + (y * p->down + x * p->across) * LK_TILE_ROWS, s->rows[y], s->columns[x]);
    if (row_blocks == 2 && column_blocks == 2)
        loop22(a0, a1, b0, b1, p->tiles);
    else if (row_blocks == 2)
        loop21(a0, a1, b0, p->tiles);
    else if (column_blocks == 2)
        loop12(a0, b0, b1, p->tiles);
    else
        loop11(a0, b0, p->tiles);
    for (int y = 0; y < row_blocks; y++)
        for (int x = 0; x < column_blocks; x++)
            end_sum(p, SUM00 + 2 * y + x, c + (y * p->down + x * p->across) * LK_TILE_ROWS, s->rows[y], s->columns[x]);
}

static void multiply(const lk_gemm_pass *p)
{
    shape current = {{0, 0}, {0, 0}};
    for (int64_t i = 0; i < p->left_rows; i += 2 * LK_TILE_ROWS) {
        for (int64_t j = 0; j < p->right_rows; j += 2 * LK_TILE_ROWS) {
            shape s = {{block_rows(p->left_rows, i), block_rows(p->left_rows, i + LK_TILE_ROWS)},
                       {block_rows(p->right_rows, j), block_rows(p->right_rows, j + LK_TILE_ROWS)}};
            if (memcmp(&s, &current, sizeof s)) configure(&s);
            current = s;
            multiply_block(p, i, j, &s);
        }
    }
    _tile_release();
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const lk_gemm lk_gemm_amx_bf16 = {.tier = LK_CPU_AMX,
                                  .compute = LK_BF16,
                                  .element = sizeof(uint16_t),
                                  .right_differs = true,
                                  .load = lk_avx512_load_bf16,
                                  .swap = lk_avx512_swap_pairs,
                                  .turn = lk_avx512_turn_pairs,
                                  .nf4 = lk_avx512_nf4_bf16,
                                  .multiply = multiply};
#endif
