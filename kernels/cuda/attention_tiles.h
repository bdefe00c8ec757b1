/* What the attention kernels share: tiles of rows in shared memory, and their fragments for mma.m16n8k16.
 *
 *     tile_load<DP, 128, 64>(k_tile, k, stride, rows, head_dim, vector);  lk_async_commit(); lk_async_wait<0>(); lk_block_sync();
 *     tile_a<DP>(a, q_tile, 16 * warp, step);            -- rows of the tile are rows of A, 16 columns from 16 * step
 *     tile_b<DP>(b, k_tile, n, step);                    -- rows n..n+15 of the tile are columns of B: two fragments
 *     tile_b_transposed<DP>(b, v_tile, step, column);    -- rows 16*step.. are rows of B, columns column..column+15: two fragments
 *
 * A tile is [rows][DP] bf16, DP the head size padded with zeros to one of 32, 64, 96, 128, 256. Its 16-byte chunks are swizzled: chunk c of
 * row r lies where c XOR f(r) would, so that the eight rows that ldmatrix takes at once lie in different banks without padding.
 *
 * Rows come by cp.async when everything is a multiple of 16 bytes (`vector`), else value by value; past the end of the document and of
 * the head they are zeros. */
#ifndef LK_KERNELS_CUDA_ATTENTION_TILES_H
#define LK_KERNELS_CUDA_ATTENTION_TILES_H

#include <math.h>

#include "kernels/cuda/device.h"

/* Steps over the head index no registers: unrolled whole they only crowd them (D = 256 spills, D = 128 takes 232 instead of 180). */
#ifdef LK_CUDA_EMU
#define ATTENTION_UNROLL_4
#else
#define ATTENTION_UNROLL_4 _Pragma("unroll 4")
#endif

/* Rows [first, first + ROWS) of the document of rows [begin, end): one block's work. `first` counts from the document's beginning. */
typedef struct attention_tile {
    int32_t begin, end, first, unused;
} attention_tile;

typedef struct attention_rows {
    lk_bf16 *data;
    int64_t stride;
} attention_rows;

/* A kernel's argument. */
typedef struct attention_args {
    attention_rows q, k, v, o, dout, dq, dk, dv;
    float *lse;                     /* [T, heads], forward's; NULL: not wanted */
    const float *lse_kept;          /* the same, backward's */
    float *delta;                   /* [T, heads] */
    int32_t heads, group, head_dim; /* group: query heads on one key/value head */
    int32_t window;                 /* a key is seen when query - key < window; never 0 here */
    float scale, scale_log2;        /* and times log2(e) */
    float cap_in, cap_out;          /* a raw score s becomes cap_out * tanh(cap_in * s); cap_out 0: it does not */
    int32_t vector;                 /* all rows are 16-byte aligned and head_dim % 8 == 0 */
    int64_t tokens;
} attention_args;

template <int DP> LK_DEVICE int tile_at(int row, int chunk)
{
    constexpr int CHUNKS = DP / 8;
    int f = CHUNKS % 8 == 0 ? row % 8 : (row / 2) % 4;
    return row * DP + (chunk ^ f) * 8;
}

/* Queues ROWS rows of a tile by THREADS threads; the caller commits. Rows from `valid` on are zeros. */
template <int DP, int ROWS, int THREADS>
LK_DEVICE void tile_load(lk_bf16 *tile, const lk_bf16 *from, int64_t stride, int valid, int head_dim, int vector)
{
    constexpr int CHUNKS = DP / 8;
    for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        lk_bf16 *to = tile + tile_at<DP>(row, column / 8);
        bool inside = row < valid && column < head_dim;
        const lk_bf16 *at = inside ? from + row * stride + column : from;
        if (vector) {
            lk_async_copy16(to, at, inside);
        } else {
            for (int e = 0; e < 8; e++) to[e] = inside && column + e < head_dim ? at[e] : (lk_bf16)0;
        }
    }
}

template <int DP> LK_DEVICE void tile_a(uint32_t a[4], const lk_bf16 *tile, int row, int step)
{
    int lane = (int)threadIdx.x % 32;
    lk_ldmatrix4(a, tile + tile_at<DP>(row + lane % 16, 2 * step + lane / 16));
}
template <int DP> LK_DEVICE void tile_b(uint32_t b[4], const lk_bf16 *tile, int row, int step)
{
    int lane = (int)threadIdx.x % 32;
    lk_ldmatrix4(b, tile + tile_at<DP>(row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
}
template <int DP> LK_DEVICE void tile_b_transposed(uint32_t b[4], const lk_bf16 *tile, int step, int column)
{
    int lane = (int)threadIdx.x % 32;
    lk_ldmatrix4_transposed(b, tile + tile_at<DP>(16 * step + lane % 16, column / 8 + lane / 16));
}

/* out[N/8][4] = rows row..row+15 of `a_tile` times rows 0..N-1 of `b_tile`, over the head: scores, and the gradient of probabilities. */
template <int DP, int N> LK_DEVICE void tile_scores(float (&out)[N / 8][4], const lk_bf16 *a_tile, int row, const lk_bf16 *b_tile)
{
    LK_UNROLL
    for (int n = 0; n < N / 8; n++)
        for (int e = 0; e < 4; e++) out[n][e] = 0.0f;
    ATTENTION_UNROLL_4
    for (int step = 0; step < DP / 16; step++) {
        uint32_t a[4];
        tile_a<DP>(a, a_tile, row, step);
        LK_UNROLL
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            tile_b<DP>(b, b_tile, 16 * n, step);
            lk_mma_bf16(out[2 * n], a, b);
            lk_mma_bf16(out[2 * n + 1], a, b + 2);
        }
    }
}

/* acc[WIDTH/8][4] += p[16, K] (fragments as tile_scores leaves them, rounded to bf16) times rows 0..K-1 of `tile`, its columns from
 * `column`. */
template <int DP, int K, int WIDTH = DP>
LK_DEVICE void tile_accumulate(float (&acc)[WIDTH / 8][4], const float (&p)[K / 8][4], const lk_bf16 *tile, int column = 0)
{
    LK_UNROLL
    for (int step = 0; step < K / 16; step++) {
        const float *left = p[2 * step], *right = p[2 * step + 1];
        uint32_t a[4] = {lk_pack_bf16(left[0], left[1]), lk_pack_bf16(left[2], left[3]), lk_pack_bf16(right[0], right[1]),
                         lk_pack_bf16(right[2], right[3])};
        LK_UNROLL
        for (int n = 0; n < WIDTH / 16; n++) {
            uint32_t b[4];
            tile_b_transposed<DP>(b, tile, step, column + 16 * n);
            lk_mma_bf16(acc[2 * n], a, b);
            lk_mma_bf16(acc[2 * n + 1], a, b + 2);
        }
    }
}

/* The soft cap on raw scores. */
template <int N> LK_DEVICE void tile_cap(float (&p)[N / 8][4], float in, float out)
{
    if (out == 0.0f) return;
    LK_UNROLL
    for (int n = 0; n < N / 8; n++)
        for (int e = 0; e < 4; e++) p[n][e] = out * tanhf(in * p[n][e]);
}

/* A step of the online softmax (Milakov & Gimelshein 2018) over the warp's 16 rows of raw scores: they become probabilities against the
 * most so far, `top`; `sum` is this lane's part of a row's sum; what was added up before must be multiplied by `shrink`. Fused products are
 * written out, so that every kernel that calls this gives the same bits. */
template <int N> LK_DEVICE void tile_softmax(float (&p)[N / 8][4], float (&top)[2], float (&sum)[2], float (&shrink)[2], float scale_log2)
{
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        float most = top[i], part = 0.0f;
        LK_UNROLL
        for (int n = 0; n < N / 8; n++) most = fmaxf(most, fmaxf(p[n][2 * i], p[n][2 * i + 1]));
        most = fmaxf(most, lk_shuffle_xor(most, 1));
        most = fmaxf(most, lk_shuffle_xor(most, 2));
        float base = most == -INFINITY ? 0.0f : -lk_mul_rn(most, scale_log2); /* nothing seen yet: keep the difference a number */
        /* Not fused: where the step has nothing larger it is exactly 1, and a step of hidden keys leaves no trace. */
        shrink[i] = lk_exp2(lk_add_rn(lk_mul_rn(top[i], scale_log2), base));
        top[i] = most;
        LK_UNROLL
        for (int n = 0; n < N / 8; n++)
            for (int e = 2 * i; e < 2 * i + 2; e++) part += p[n][e] = lk_exp2(fmaf(p[n][e], scale_log2, base));
        sum[i] = fmaf(sum[i], shrink[i], part);
    }
}

/* A row's sum from its four lanes. */
LK_DEVICE float tile_row_sum(float x)
{
    x += lk_shuffle_xor(x, 1);
    return x + lk_shuffle_xor(x, 2);
}

/* Writes the warp's 16 rows; by[i] multiplies row lane/4 + 8i. `to` is the first of them, `rows` how many exist. */
template <int DP>
LK_DEVICE void tile_store(lk_bf16 *to, int64_t stride, int rows, const float (&acc)[DP / 8][4], const float (&by)[2], int head_dim,
                          int vector)
{
    int lane = (int)threadIdx.x % 32;
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        int row = lane / 4 + 8 * i;
        if (row >= rows) continue;
        lk_bf16 *at = to + row * stride;
        LK_UNROLL
        for (int n = 0; n < DP / 8; n++) {
            int column = 8 * n + lane % 4 * 2;
            if (column >= head_dim) continue;
            uint32_t pair = lk_pack_bf16(acc[n][2 * i] * by[i], acc[n][2 * i + 1] * by[i]);
            if (vector) {
                *(uint32_t *)(at + column) = pair;
            } else {
                at[column] = (lk_bf16)pair;
                if (column + 1 < head_dim) at[column + 1] = (lk_bf16)(pair >> 16);
            }
        }
    }
}

/* How a padded head size is cut: ROWS rows stay in a block's registers and shared memory, 16 a warp; SCORES keys at a time in
 * forward, STREAM rows at a time in backward. At 96 KiB of shared memory at most, a block fits every GPU since sm_80. */
template <int DP> struct attention_cut {
    static constexpr int WARPS = DP > 128 ? 4 : 8;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int ROWS = 16 * WARPS;
    static constexpr int SCORES = DP > 128 ? 32 : 64;
    static constexpr int STREAM = DP > 128 ? 16 : 32;
};

/* ---- the host's side: documents cut into tiles, a launch's worth at a time (an operation allocates nothing) */

#include "kernels/cuda/attention.h"

enum { ATTENTION_TILES = 2048 }; /* of one launch: 32 KiB, what lk_cuda_stage takes by any limits */

typedef struct attention_walk {
    const lk_batch *batch;
    int64_t doc, done; /* tiles of `doc` given out */
} attention_walk;

/* Next tiles of `rows` rows, the heaviest of a document first: its last queries see the most keys (last_first), its first keys are seen by
 * the most queries. 0: no more. */
static inline int attention_next(attention_walk *w, int rows, bool last_first, attention_tile *out)
{
    int n = 0;
    while (n < ATTENTION_TILES && w->doc < w->batch->n_docs) {
        int32_t begin = w->batch->doc_starts[w->doc], end = w->batch->doc_starts[w->doc + 1];
        int64_t tiles = ((int64_t)end - begin + rows - 1) / rows;
        if (w->done >= tiles) {
            w->doc++;
            w->done = 0;
            continue;
        }
        int64_t i = last_first ? tiles - 1 - w->done : w->done;
        out[n++] = attention_tile{begin, end, (int32_t)(i * rows), 0};
        w->done++;
    }
    return n;
}

/* Fills the arguments; LK_ERR_UNSUPPORTED for shapes the kernels do not take. */
lk_status lk_attention_arguments(lk_backend *be, const lk_attention_call *call, attention_args *args);

#endif
