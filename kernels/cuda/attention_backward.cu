/* The gradient of attention.cu: FlashAttention-2's backward (Dao 2023, arXiv 2307.08691, algorithm 2) in its deterministic form.
 *
 *     delta[t,h] = dout . o                                   one small kernel
 *     p = exp(scale q.k - lse),  ds = p (dout.v - delta)      recomputed tile by tile, never stored
 *     dv = p^T dout,  dk = scale ds^T q                       a block per (128 keys, key/value head)
 *     dq = scale ds k                                         a block per (128 queries, head)
 *
 * The published form makes all three in one pass and adds dq with atomics. Here dq has a kernel of its own, which recomputes p and ds: 14 D
 * operations for each pair of query and key instead of 10 D, and the same bits every time. The first kernel walks over the query heads of
 * the group and, in each, over the queries in ascending order; the second over the keys.
 *
 * Both have one shape: 128 rows (64 beyond a head size of 128) stay, 16 a warp, with two operands in shared memory and the sums in
 * registers; 32 (16) rows at a time of the other side stream through two buffers. For dk and dv the scores are made transposed, keys as
 * rows, so that p and ds lie in registers as left operands of the next product in either kernel and never go through memory. Beyond a head
 * size of 128 dk and dv do not fit the registers together: the kernel runs twice, once for each (18 D operations).
 *
 * Arithmetic, n tokens, one head: 7 n^2 D operations after the causal half. Streamed from L2: 4 D bytes a row for 128 x 8 D (dk, dv)
 * or 128 x 6 D (dq) operations: 256 and 192 a byte. Shared memory per warp and step of 32 rows, D = 128: 40 KiB for 128 mma (dk, dv), 2.5
 * cycles a mma; 32 KiB for 96 (dq), 2.7; the tensor cores of sm_80 take 2. Memory: 14 n D bytes and delta, 4 n. */
#include <math.h>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/cuda.h"

/* delta[t,h]: eight lanes a row and head, each every eighth chunk of eight values, then a butterfly: an order fixed by the head size. */
LK_KERNEL void attention_delta_kernel(attention_args a)
{
    int64_t item = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 8;
    int lane = (int)threadIdx.x % 8;
    bool inside = item < a.tokens * a.heads;
    int64_t row = inside ? item / a.heads : 0, head = inside ? item % a.heads : 0;
    const lk_bf16 *o = a.o.data + row * a.o.stride + head * a.head_dim, *dout = a.dout.data + row * a.dout.stride + head * a.head_dim;
    float sum = 0.0f;
    for (int column = 8 * lane; column < a.head_dim; column += 64) {
        float x[8], y[8];
        if (a.vector) {
            lk_load8(x, o + column);
            lk_load8(y, dout + column);
        } else {
            for (int e = 0; e < 8; e++) {
                bool is = column + e < a.head_dim;
                x[e] = is ? lk_bf16_float(o[column + e]) : 0.0f;
                y[e] = is ? lk_bf16_float(dout[column + e]) : 0.0f;
            }
        }
        for (int e = 0; e < 8; e++) sum += x[e] * y[e];
    }
    for (int mask = 4; mask; mask >>= 1) sum += lk_shuffle_xor(sum, mask);
    if (inside && lane == 0) a.delta[item] = sum;
}

/* A query's statistics; beyond the document lse is infinite, which makes every probability zero. */
LK_DEVICE void query_statistics(const attention_args &a, const attention_tile &tile, int query, int head, float *lse_log2, float *delta)
{
    bool inside = query < tile.end - tile.begin;
    int64_t at = (int64_t)(tile.begin + query) * a.heads + head;
    *lse_log2 = inside ? a.lse_kept[at] * 1.44269504088896340736f : INFINITY;
    *delta = inside ? a.delta[at] : 0.0f;
}

/* ---------------------------------------------------------------------------------------------- dq */

template <int DP> LK_KERNEL void attention_dq_kernel(attention_args a, const attention_tile *tiles)
{
    constexpr int ROWS = attention_cut<DP>::ROWS, THREADS = attention_cut<DP>::THREADS, KEYS = attention_cut<DP>::STREAM;
    LK_SHARED_DYNAMIC(lk_bf16, q_tile);
    lk_bf16 *dout_tile = q_tile + ROWS * DP, *streams = dout_tile + ROWS * DP; /* two buffers of keys, then values */
    const attention_tile tile = tiles[blockIdx.x];
    int head = (int)blockIdx.y, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int length = tile.end - tile.begin, last = tile.first + ROWS < length ? tile.first + ROWS : length;
    int seen = tile.first - a.window + 1, key0 = seen > 0 ? seen / KEYS * KEYS : 0;
    int row0 = tile.first + 16 * warp;
    int64_t begin = tile.begin, column = head * a.head_dim, kv_column = head / a.group * a.head_dim;
    const lk_bf16 *k = a.k.data + begin * a.k.stride + kv_column, *v = a.v.data + begin * a.v.stride + kv_column;

    const float uncap = a.cap_out != 0.0f ? 1.0f / a.cap_out : 0.0f;
    float acc[DP / 8][4], lse[2], delta[2];
    LK_UNROLL
    for (int n = 0; n < DP / 8; n++)
        for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;
    LK_UNROLL
    for (int i = 0; i < 2; i++) query_statistics(a, tile, row0 + lane / 4 + 8 * i, head, &lse[i], &delta[i]);

    tile_load<DP, ROWS, THREADS>(q_tile, a.q.data + (begin + tile.first) * a.q.stride + column, a.q.stride, length - tile.first, a.head_dim,
                                 a.vector);
    tile_load<DP, ROWS, THREADS>(dout_tile, a.dout.data + (begin + tile.first) * a.dout.stride + column, a.dout.stride, length - tile.first,
                                 a.head_dim, a.vector);
    tile_load<DP, KEYS, THREADS>(streams, k + key0 * a.k.stride, a.k.stride, length - key0, a.head_dim, a.vector);
    tile_load<DP, KEYS, THREADS>(streams + KEYS * DP, v + key0 * a.v.stride, a.v.stride, length - key0, a.head_dim, a.vector);
    lk_async_commit();
    for (int turn = 0; key0 < last; key0 += KEYS, turn ^= 1) {
        lk_bf16 *k_tile = streams + turn * 2 * KEYS * DP, *v_tile = k_tile + KEYS * DP, *next = streams + (turn ^ 1) * 2 * KEYS * DP;
        lk_async_wait<0>();
        lk_block_sync(); /* this step's rows are here, and nobody reads the other buffer any more */
        int key1 = key0 + KEYS;
        if (key1 < last) {
            tile_load<DP, KEYS, THREADS>(next, k + key1 * a.k.stride, a.k.stride, length - key1, a.head_dim, a.vector);
            tile_load<DP, KEYS, THREADS>(next + KEYS * DP, v + key1 * a.v.stride, a.v.stride, length - key1, a.head_dim, a.vector);
            lk_async_commit();
        }
        if (row0 >= length || key0 >= row0 + 16 || row0 - (key1 - 1) >= a.window) continue; /* nothing that this warp sees */
        float p[KEYS / 8][4], ds[KEYS / 8][4];
        tile_scores<DP, KEYS>(p, q_tile, 16 * warp, k_tile);
        tile_cap<KEYS>(p, a.cap_in, a.cap_out);
        tile_scores<DP, KEYS>(ds, dout_tile, 16 * warp, v_tile);
        bool edge = key1 - 1 > row0 || row0 + 15 - key0 >= a.window;
        LK_UNROLL
        for (int n = 0; n < KEYS / 8; n++)
            for (int e = 0; e < 4; e++) {
                float probability = lk_exp2(p[n][e] * a.scale_log2 - lse[e / 2]);
                int behind = row0 + lane / 4 + e / 2 * 8 - (key0 + 8 * n + lane % 4 * 2 + e % 2);
                if (edge && (behind < 0 || behind >= a.window)) probability = 0.0f;
                float t = p[n][e] * uncap; /* tanh: the cap's slope is 1 - t^2 */
                ds[n][e] = probability * (ds[n][e] - delta[e / 2]) * (1.0f - t * t);
            }
        tile_accumulate<DP, KEYS>(acc, ds, k_tile);
    }
    const float by[2] = {a.scale, a.scale};
    tile_store<DP>(a.dq.data + (begin + row0) * a.dq.stride + column, a.dq.stride, length - row0, acc, by, a.head_dim, a.vector);
}

/* ---------------------------------------------------------------------------------------------- dk, dv */

enum { WANT_DV = 1, WANT_DK = 2 };

/* What a block does next: one step of queries of one head of the group. */
typedef struct query_step {
    int head, query;
} query_step;

/* p times the soft cap's slope, 1 - tanh^2: the raw scores once more, into work, since nothing else is left of them. */
template <int DP, int N>
LK_DEVICE void multiply_slope(float (&p)[N / 8][4], float (&work)[N / 8][4], const lk_bf16 *a_tile, int row, const lk_bf16 *b_tile,
                              float cap_in)
{
    tile_scores<DP, N>(work, a_tile, row, b_tile);
    LK_UNROLL
    for (int n = 0; n < N / 8; n++)
        for (int e = 0; e < 4; e++) {
            float t = tanhf(cap_in * work[n][e]);
            p[n][e] *= 1.0f - t * t;
        }
}

template <int DP, int WANT> LK_KERNEL void attention_dkdv_kernel(attention_args a, const attention_tile *tiles)
{
    constexpr int ROWS = attention_cut<DP>::ROWS, THREADS = attention_cut<DP>::THREADS, QUERIES = attention_cut<DP>::STREAM;
    constexpr int DV = WANT & WANT_DV ? DP : 8, DK = WANT & WANT_DK ? DP : 8; /* sums that are not wanted take next to nothing */
    LK_SHARED_DYNAMIC(lk_bf16, k_tile);
    lk_bf16 *v_tile = k_tile + ROWS * DP, *streams = v_tile + ROWS * DP; /* two buffers of queries, then dout */
    float *statistics = (float *)(streams + 4 * QUERIES * DP);           /* two buffers of lse, then delta */
    const attention_tile tile = tiles[blockIdx.x];
    int kv_head = (int)blockIdx.y, thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32;
    int length = tile.end - tile.begin, key0 = tile.first + 16 * warp;
    int64_t begin = tile.begin, kv_column = kv_head * a.head_dim;
    int first = tile.first / QUERIES * QUERIES; /* = tile.first: ROWS is a multiple of QUERIES */
    int64_t far = (int64_t)(tile.first + ROWS < length ? tile.first + ROWS : length) - 1 + a.window; /* first query that sees none */
    int last = far < length ? (int)far : length;

    float dv[DV / 8][4], dk[DK / 8][4];
    LK_UNROLL
    for (int n = 0; n < DV / 8; n++)
        for (int e = 0; e < 4; e++) dv[n][e] = 0.0f;
    LK_UNROLL
    for (int n = 0; n < DK / 8; n++)
        for (int e = 0; e < 4; e++) dk[n][e] = 0.0f;

    tile_load<DP, ROWS, THREADS>(k_tile, a.k.data + (begin + tile.first) * a.k.stride + kv_column, a.k.stride, length - tile.first,
                                 a.head_dim, a.vector);
    if (WANT & WANT_DK)
        tile_load<DP, ROWS, THREADS>(v_tile, a.v.data + (begin + tile.first) * a.v.stride + kv_column, a.v.stride, length - tile.first,
                                     a.head_dim, a.vector);
    query_step step = {kv_head * a.group, first};
    int heads_end = step.head + a.group;
    /* One step ahead of the products: rows by asynchronous copies, statistics through registers of the first QUERIES threads. */
    float ahead_lse = 0.0f, ahead_delta = 0.0f;
    auto fetch = [&](query_step s, int turn) {
        lk_bf16 *to = streams + turn * 2 * QUERIES * DP;
        int64_t row = begin + s.query, column = s.head * a.head_dim;
        tile_load<DP, QUERIES, THREADS>(to, a.q.data + row * a.q.stride + column, a.q.stride, length - s.query, a.head_dim, a.vector);
        tile_load<DP, QUERIES, THREADS>(to + QUERIES * DP, a.dout.data + row * a.dout.stride + column, a.dout.stride, length - s.query,
                                        a.head_dim, a.vector);
        lk_async_commit();
        if (thread < QUERIES) query_statistics(a, tile, s.query + thread, s.head, &ahead_lse, &ahead_delta);
    };
    auto keep_statistics = [&](int turn) {
        if (thread >= QUERIES) return;
        statistics[turn * 2 * QUERIES + thread] = ahead_lse;
        statistics[turn * 2 * QUERIES + QUERIES + thread] = ahead_delta;
    };
    fetch(step, 0);
    keep_statistics(0);
    for (int turn = 0; step.head < heads_end; turn ^= 1) {
        const lk_bf16 *q_tile = streams + turn * 2 * QUERIES * DP, *dout_tile = q_tile + QUERIES * DP;
        const float *lse = statistics + turn * 2 * QUERIES, *delta = lse + QUERIES;
        int query0 = step.query;
        lk_async_wait<0>();
        lk_block_sync(); /* this step's rows are here, and nobody reads the other buffer any more */
        step.query += QUERIES;
        if (step.query >= last) {
            step.query = first;
            step.head++;
        }
        bool more = step.head < heads_end;
        if (more) fetch(step, turn ^ 1);
        bool busy = key0 < length && query0 + QUERIES > key0 && query0 - (key0 + 15) < a.window;
        if (busy) {
            float p[QUERIES / 8][4], ds[QUERIES / 8][4];
            tile_scores<DP, QUERIES>(p, k_tile, 16 * warp, q_tile);
            tile_cap<QUERIES>(p, a.cap_in, a.cap_out);
            bool edge = query0 < key0 + 15 || query0 + QUERIES - 1 - key0 >= a.window;
            LK_UNROLL
            for (int n = 0; n < QUERIES / 8; n++)
                for (int e = 0; e < 4; e++) {
                    int query = 8 * n + lane % 4 * 2 + e % 2, behind = query0 + query - (key0 + lane / 4 + e / 2 * 8);
                    p[n][e] = lk_exp2(p[n][e] * a.scale_log2 - lse[query]);
                    if (edge && (behind < 0 || behind >= a.window)) p[n][e] = 0.0f;
                }
            if constexpr ((WANT & WANT_DV) != 0) tile_accumulate<DP, QUERIES>(dv, p, dout_tile);
            if constexpr ((WANT & WANT_DK) != 0) {
                if (a.cap_out != 0.0f) multiply_slope<DP, QUERIES>(p, ds, k_tile, 16 * warp, q_tile, a.cap_in);
                tile_scores<DP, QUERIES>(ds, v_tile, 16 * warp, dout_tile);
                LK_UNROLL
                for (int n = 0; n < QUERIES / 8; n++)
                    for (int e = 0; e < 4; e++) ds[n][e] = p[n][e] * (ds[n][e] - delta[8 * n + lane % 4 * 2 + e % 2]);
                tile_accumulate<DP, QUERIES>(dk, ds, q_tile);
            }
        }
        if (more) keep_statistics(turn ^ 1);
    }
    int64_t row = begin + key0;
    const float one[2] = {1.0f, 1.0f}, scale[2] = {a.scale, a.scale};
    if constexpr ((WANT & WANT_DV) != 0)
        tile_store<DP>(a.dv.data + row * a.dv.stride + kv_column, a.dv.stride, length - key0, dv, one, a.head_dim, a.vector);
    if constexpr ((WANT & WANT_DK) != 0)
        tile_store<DP>(a.dk.data + row * a.dk.stride + kv_column, a.dk.stride, length - key0, dk, scale, a.head_dim, a.vector);
}

/* ---------------------------------------------------------------------------------------------- launches */

typedef void tile_kernel(attention_args, const attention_tile *);

static lk_status launch(lk_backend *be, const char *what, tile_kernel *kernel, const lk_attention_call *call, const attention_args *args,
                        int rows, bool last_first, int64_t heads, int threads, size_t shared)
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_rt_allow_shared((const void *)kernel, shared, &be->error));
    attention_walk walk = {call->batch, 0, 0};
    attention_tile tiles[ATTENTION_TILES];
    for (int n; (n = attention_next(&walk, rows, last_first, tiles)) > 0;) {
        void *list;
        LK_TRY(lk_cuda_stage(be, &list, tiles, (size_t)n * sizeof *tiles));
        LK_LAUNCH(what, kernel, dim3((unsigned)n, (unsigned)heads), dim3((unsigned)threads), shared, cu->stream, *args,
                  (const attention_tile *)list);
        LK_TRY(lk_rt_launched(what, &be->error));
    }
    return LK_OK;
}

template <int DP> static lk_status backward(lk_backend *be, const lk_attention_call *call, const attention_args *args)
{
    typedef attention_cut<DP> cut;
    size_t tiles = (size_t)(2 * cut::ROWS + 4 * cut::STREAM) * DP * sizeof(lk_bf16), shared = tiles + 4 * cut::STREAM * sizeof(float);
    int64_t kv_heads = args->heads / args->group;
    if constexpr (DP <= 128) {
        LK_TRY(launch(be, "attention_dkdv", attention_dkdv_kernel<DP, WANT_DK | WANT_DV>, call, args, cut::ROWS, false, kv_heads,
                      cut::THREADS, shared));
    } else {
        LK_TRY(
            launch(be, "attention_dv", attention_dkdv_kernel<DP, WANT_DV>, call, args, cut::ROWS, false, kv_heads, cut::THREADS, shared));
        LK_TRY(
            launch(be, "attention_dk", attention_dkdv_kernel<DP, WANT_DK>, call, args, cut::ROWS, false, kv_heads, cut::THREADS, shared));
    }
    return launch(be, "attention_dq", attention_dq_kernel<DP>, call, args, cut::ROWS, true, args->heads, cut::THREADS, tiles);
}

size_t lk_attention_own_bytes(int64_t tokens, int64_t heads) { return (size_t)(tokens * heads) * sizeof(float); }

lk_status lk_attention_own_backward(lk_backend *be, const lk_attention_call *call)
{
    attention_args args = {};
    LK_TRY(lk_attention_arguments(be, call, &args));
    args.lse_kept = call->lse_kept;
    args.delta = call->delta;
    int64_t blocks = (args.tokens * args.heads + 31) / 32;
    LK_LAUNCH("attention_delta", attention_delta_kernel, dim3((unsigned)blocks), dim3(256), 0, lk_cuda_of(be)->stream, args);
    LK_TRY(lk_rt_launched("attention_delta", &be->error));
    if (args.head_dim <= 32) return backward<32>(be, call, &args);
    if (args.head_dim <= 64) return backward<64>(be, call, &args);
    if (args.head_dim <= 96) return backward<96>(be, call, &args);
    if (args.head_dim <= 128) return backward<128>(be, call, &args);
    return backward<256>(be, call, &args);
}
