/* What the kernels of sampling share (sample.cu has the whole): their arguments, a row's order as keys, chances as whole numbers, and the
 * sums and loads of a block. */
#ifndef LK_KERNELS_CUDA_SAMPLE_ROWS_H
#define LK_KERNELS_CUDA_SAMPLE_ROWS_H

#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, EACH = 16, PIECE = THREADS * EACH };
enum { STEPS = 512, MOST_RANKED = STEPS }; /* also the threads of a block that selects */

typedef unsigned long long wide;

typedef struct sample_args {
    float *logits;
    int64_t stride;
    int32_t vocab, pieces;
    bool fours; /* rows begin at 16 bytes */
    const lk_cuda_sample_row *rows;
    const int32_t *words;
    const int32_t *before; /* tokens that may be pending */
    float *saved;
    /* scratch: [row][piece] and so on */
    wide *raw_keys, *changed_keys;
    float *sums;                    /* of exp(x - the piece's largest) */
    wide *best;                     /* [row][piece][LK_MAX_LOGPROBS] */
    wide *masses;                   /* of survivors */
    wide *tally_mass, *tally_count; /* [row][STEPS] */
    wide *cuts;                     /* [row]: the least key that survives top-k and top-p */
    int32_t *pending;               /* [row]: the token, -1: none; `before` may be overwritten when the row is put back */
    lk_sample_result *results;
    int32_t *drawn;
} sample_args;

/* ---------------------------------------------------------------------------------------------- keys and chances */

/* 0 for what cannot be drawn: not a number, infinite. */
LK_DEVICE wide key_of(float x, int32_t id)
{
    uint32_t b = lk_as_bits(x);
    if ((b & 0x7f800000u) == 0x7f800000u) return 0;
    if (b == 0x80000000u) b = 0; /* zeros are equal */
    b = b & 0x80000000u ? ~b : b | 0x80000000u;
    return (wide)b << 32 | (uint32_t)~id;
}
LK_DEVICE float key_value(wide key)
{
    uint32_t b = (uint32_t)(key >> 32);
    return lk_as_float(b & 0x80000000u ? b & 0x7fffffffu : ~b);
}
LK_DEVICE int32_t key_id(wide key) { return (int32_t) ~(uint32_t)key; }

/* How chances are seen from a row's top. */
typedef struct scale {
    float top, temperature;
} scale;

LK_DEVICE float distance(scale s, float x) { return lk_add_rn(s.top, -x) / s.temperature; } /* the difference first, as on the CPU */
LK_DEVICE float chance(scale s, float x) { return expf(-distance(s, x)); }
LK_DEVICE wide mass_of(float p) { return (wide)(p * 0x1p44f); }
LK_DEVICE int step_of(scale s, float x) { return (int)fminf(lk_mul_rn(distance(s, x), 16.0f), (float)(STEPS - 1)); }

/* ---------------------------------------------------------------------------------------------- blocks */

LK_DEVICE wide larger(wide a, wide b) { return a > b ? a : b; }

/* These three as lk_block_sum: `part` for 32, the same result in every thread. */
LK_DEVICE wide block_max(wide x, wide *part)
{
    int thread = (int)threadIdx.x, warps = (int)blockDim.x / 32;
    for (int mask = 16; mask; mask >>= 1) x = larger(x, lk_shuffle_xor(x, mask));
    lk_block_sync();
    if (thread % 32 == 0) part[thread / 32] = x;
    lk_block_sync();
    x = part[0];
    for (int w = 1; w < warps; w++) x = larger(x, part[w]);
    return x;
}
/* The sum over the threads before this one, and over all. */
LK_DEVICE wide block_before(wide x, wide *part, wide *all)
{
    int thread = (int)threadIdx.x, lane = thread % 32, warps = (int)blockDim.x / 32;
    wide sum = x, earlier = 0;
    for (int by = 1; by < 32; by *= 2) {
        wide other = lk_shuffle(sum, (lane - by) & 31);
        if (lane >= by) sum += other;
    }
    lk_block_sync();
    if (lane == 31) part[thread / 32] = sum;
    lk_block_sync();
    *all = 0;
    for (int w = 0; w < warps; w++) {
        if (w < thread / 32) earlier += part[w];
        *all += part[w];
    }
    return earlier + sum - x;
}
LK_DEVICE wide block_total(wide x, wide *part)
{
    wide all;
    (void)block_before(x, part, &all);
    return all;
}

/* ---------------------------------------------------------------------------------------------- rows */

LK_DEVICE float *row_of(const sample_args &a, int32_t r) { return a.logits + r * a.stride; }

/* The id of this thread's i-th value from `first` on: fours, side by side across the block. */
LK_DEVICE int32_t place(int32_t first, int i) { return first + (i / 4 * (int32_t)blockDim.x + (int32_t)threadIdx.x) * 4 + i % 4; }

LK_DEVICE void load(float x[EACH], const sample_args &a, const float *row, int32_t first)
{
    LK_UNROLL
    for (int i = 0; i < EACH; i += 4) {
        int32_t at = place(first, i);
        if (a.fours && at + 4 <= a.vocab) {
            float4 v = *(const float4 *)(row + at);
            x[i] = v.x;
            x[i + 1] = v.y;
            x[i + 2] = v.z;
            x[i + 3] = v.w;
        } else {
            LK_UNROLL
            for (int j = 0; j < 4; j++) x[i + j] = at + j < a.vocab ? row[at + j] : -INFINITY;
        }
    }
}

LK_DEVICE wide *piece_keys(const sample_args &a, int32_t r, bool raw)
{
    return (raw || !a.rows[r].changed ? a.raw_keys : a.changed_keys) + (int64_t)r * a.pieces;
}
LK_DEVICE wide top_key(const sample_args &a, const wide *keys, wide *part)
{
    wide top = 0;
    for (int32_t p = (int32_t)threadIdx.x; p < a.pieces; p += (int32_t)blockDim.x) top = larger(top, keys[p]);
    return block_max(top, part);
}

#endif
