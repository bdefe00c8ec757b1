/* The tier for machines without AVX2 (and for other architectures): plain C on vectors of four floats, which every compiler
 * maps to SSE or NEON. No fused multiply-add: it would be a library call on the oldest machines.
 *
 * Panels are fp32 for both kinds of compute; BF16 rounds while packing. */
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/nf4.h"

typedef float v4 __attribute__((vector_size(16)));

static inline float round_bf16(float f) { return lk_bf16_to_f32(lk_f32_to_bf16(f)); }

static void load(float *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale, bool bf16)
{
    memset(tile, 0, LK_TILE_SIZE * sizeof *tile);
    for (int i = 0; i < rows; i++) {
        float *to = tile + i * LK_TILE_DEPTH;
        if (type == LK_BF16) {
            const uint16_t *from = (const uint16_t *)data + i * stride;
            for (int j = 0; j < k; j++) to[j] = lk_bf16_to_f32(from[j]) * scale;
        } else {
            const float *from = (const float *)data + i * stride;
            for (int j = 0; j < k; j++) to[j] = from[j] * scale;
        }
        if (!bf16) continue;
        for (int j = 0; j < k; j++) to[j] = round_bf16(to[j]);
    }
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

static void turn(void *right0, void *right1, const void *top, const void *bottom)
{
    const float *source[2] = {top, bottom};
    float *to[2] = {right0, right1};
    for (int half = 0; half < 2; half++)
        for (int row = 0; row < LK_TILE_ROWS; row++)
            for (int i = 0; i < LK_TILE_DEPTH; i++)
                to[half][row * LK_TILE_DEPTH + i] = source[i / LK_TILE_ROWS][i % LK_TILE_ROWS * LK_TILE_DEPTH + half * LK_TILE_ROWS + row];
}

static void nf4(float *tiles, const lk_nf4_tile *block, bool bf16)
{
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < LK_TILE_ROWS; r++) {
            if (half == 0) lk_nf4_fetch(block + 2, r);
            float values[16];
            for (int c = 0; c < 16; c++) {
                values[c] = lk_nf4_codebook[c] * block->absmax[half][r];
                if (bf16) values[c] = round_bf16(values[c]);
            }
            float *low = tiles + 2 * half * LK_TILE_SIZE + r * LK_TILE_DEPTH, *high = low + LK_TILE_SIZE;
            for (int j = 0; j < LK_TILE_DEPTH; j++) {
                unsigned word = (unsigned)block->codes[r][j] >> (4 * half);
                low[j] = values[word & 15];
                high[j] = values[word >> 8 & 15];
            }
        }
    }
}

static void nf4_f32(void *tiles, const lk_nf4_tile *block) { nf4(tiles, block, false); }
static void nf4_bf16(void *tiles, const lk_nf4_tile *block) { nf4(tiles, block, true); }

enum { LANES = 8, DEPTH = LK_GEMM_DEPTH / LK_TILE_DEPTH };

/* Adds the dot product of two rows over `tiles` tiles to eight lanes. */
static inline void dot(v4 lanes[2], const float *a, const float *b, int64_t tiles)
{
    v4 low = lanes[0], high = lanes[1];
    for (int64_t t = 0; t < tiles; t++, a += LK_TILE_SIZE, b += LK_TILE_SIZE) {
        for (int j = 0; j < LK_TILE_DEPTH; j += LANES) {
            low += *(const v4 *)(a + j) * *(const v4 *)(b + j);
            high += *(const v4 *)(a + j + 4) * *(const v4 *)(b + j + 4);
        }
    }
    lanes[0] = low;
    lanes[1] = high;
}

/* One element over a whole pass; `kept`: its lanes, should the pass begin or end inside DEPTH. */
static void multiply_element(const lk_gemm_pass *p, float *c, const float *a, const float *b, float *kept)
{
    int64_t end = p->first + p->tiles;
    v4 lanes[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    if (p->first % DEPTH) memcpy(lanes, kept, sizeof lanes);
    for (int64_t t = p->first; t < end;) {
        int64_t stop = t - t % DEPTH + DEPTH < end ? t - t % DEPTH + DEPTH : end;
        dot(lanes, a + (t - p->first) * LK_TILE_SIZE, b + (t - p->first) * LK_TILE_SIZE, stop - t);
        if (stop % DEPTH && (stop < end || p->partial)) {
            memcpy(kept, lanes, sizeof lanes);
            return;
        }
        v4 sum = lanes[0] + lanes[1];
        float joined = (sum[0] + sum[2]) + (sum[1] + sum[3]);
        *c = t < DEPTH && p->mode == LK_GEMM_SET ? joined : *c + joined;
        memset(lanes, 0, sizeof lanes);
        t = stop;
    }
}

static const float *row_of(const void *panel, int64_t pitch, int64_t row)
{
    return (const float *)(const void *)((const char *)panel + row / LK_TILE_ROWS * pitch) + row % LK_TILE_ROWS * LK_TILE_DEPTH;
}

static void multiply(const lk_gemm_pass *p)
{
    for (int64_t i = 0; i < p->left_rows; i++)
        for (int64_t j = 0; j < p->right_rows; j++)
            multiply_element(p, p->c + i * p->down + j * p->across, row_of(p->left, p->left_pitch, i), row_of(p->right, p->right_pitch, j),
                             p->sums ? p->sums + (i * p->right_rows + j) * LANES : NULL);
}

const lk_gemm lk_gemm_portable_f32 = {.tier = LK_CPU_PORTABLE,
                                      .compute = LK_F32,
                                      .element = sizeof(float),
                                      .lanes = LANES,
                                      .depth = DEPTH,
                                      .load = load_f32,
                                      .swap = swap,
                                      .turn = turn,
                                      .nf4 = nf4_f32,
                                      .multiply = multiply};
const lk_gemm lk_gemm_portable_bf16 = {.tier = LK_CPU_PORTABLE,
                                       .compute = LK_BF16,
                                       .element = sizeof(float),
                                       .lanes = LANES,
                                       .depth = DEPTH,
                                       .load = load_bf16,
                                       .swap = swap,
                                       .turn = turn,
                                       .nf4 = nf4_bf16,
                                       .multiply = multiply};
