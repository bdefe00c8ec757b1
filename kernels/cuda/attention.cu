/* Causal attention within packed documents, forward, on tensor cores: FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 1) with
 * mma.sync and cp.async, for where cuDNN is missing or refuses a shape. attention_backward.cu is its gradient.
 *
 * A block takes 128 queries of one document and one head (64 beyond a head size of 128), a warp 16 of them, and walks over the keys 64 (32)
 * at a time: scores by mma, softmax online in registers, and the probabilities, which lie in registers as a left operand wants them, times
 * V. Keys of the next step arrive while this step's probabilities are used, values while scores are computed. Tiles begin at
 * documents' beginnings and steps at multiples of 64 from there: a row's sums run in an order fixed by its position in its document.
 * Steps that nothing of a warp sees are left out: they would add exact zeros.
 *
 * Arithmetic, n tokens in one document and one head of size D: 2 n^2 D operations (4 D for each pair of query and key), plus the masked
 * halves of diagonal tiles, 128/n of it. Memory: 8 n D bytes (q, k, v, o once, 4 n of lse); from L2, k and v once per 128 queries: 4 D
 * bytes a key for 512 D operations, 128 a byte, 3.1 TB/s at 400 TFLOP/s. Shared memory: each warp reads every key and value for its 16
 * rows, 256 bytes for each mma of 4096 operations, and q once more for each 64 keys: 288 a mma, 2.3 cycles at 128 bytes a cycle, against
 * the 2 (sm_80) that the tensor cores take. Both near balance, so half to two thirds of the peak of mma.sync is what this form can give;
 * wgmma and TMA, which go beyond, are left to cuDNN.
 */
#include <math.h>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/cuda.h"

template <int DP> LK_KERNEL void attention_forward_kernel(attention_args a, const attention_tile *tiles)
{
    constexpr int ROWS = attention_cut<DP>::ROWS, THREADS = attention_cut<DP>::THREADS, KEYS = attention_cut<DP>::SCORES;
    LK_SHARED_DYNAMIC(lk_bf16, q_tile);
    lk_bf16 *k_tile = q_tile + ROWS * DP, *v_tile = k_tile + KEYS * DP;
    const attention_tile tile = tiles[blockIdx.x];
    int head = (int)blockIdx.y, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int length = tile.end - tile.begin, last = tile.first + ROWS < length ? tile.first + ROWS : length; /* keys end here */
    int seen = tile.first - a.window + 1, key0 = seen > 0 ? seen / KEYS * KEYS : 0;
    int row0 = tile.first + 16 * warp;
    const lk_bf16 *q = a.q.data + (tile.begin + tile.first) * a.q.stride + head * a.head_dim;
    const lk_bf16 *k = a.k.data + tile.begin * a.k.stride + head / a.group * a.head_dim;
    const lk_bf16 *v = a.v.data + tile.begin * a.v.stride + head / a.group * a.head_dim;

    float acc[DP / 8][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    LK_UNROLL
    for (int n = 0; n < DP / 8; n++)
        for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;

    tile_load<DP, ROWS, THREADS>(q_tile, q, a.q.stride, length - tile.first, a.head_dim, a.vector);
    tile_load<DP, KEYS, THREADS>(k_tile, k + key0 * a.k.stride, a.k.stride, length - key0, a.head_dim, a.vector);
    lk_async_commit();
    for (; key0 < last; key0 += KEYS) {
        bool busy = row0 < length && key0 < row0 + 16 && row0 - (key0 + KEYS - 1) < a.window;
        float p[KEYS / 8][4];
        lk_async_wait<0>();
        lk_block_sync();
        tile_load<DP, KEYS, THREADS>(v_tile, v + key0 * a.v.stride, a.v.stride, length - key0, a.head_dim, a.vector);
        lk_async_commit();
        if (busy) tile_scores<DP, KEYS>(p, q_tile, 16 * warp, k_tile);
        lk_async_wait<0>();
        lk_block_sync();
        if (key0 + KEYS < last) {
            tile_load<DP, KEYS, THREADS>(k_tile, k + (key0 + KEYS) * a.k.stride, a.k.stride, length - key0 - KEYS, a.head_dim, a.vector);
            lk_async_commit();
        }
        if (!busy) continue;
        tile_cap<KEYS>(p, a.cap_in, a.cap_out);
        if (key0 + KEYS - 1 > row0 || row0 + 15 - key0 >= a.window) { /* the diagonal or the window's edge runs through */
            LK_UNROLL
            for (int n = 0; n < KEYS / 8; n++)
                for (int e = 0; e < 4; e++) {
                    int behind = row0 + lane / 4 + e / 2 * 8 - (key0 + 8 * n + lane % 4 * 2 + e % 2);
                    if (behind < 0 || behind >= a.window) p[n][e] = -INFINITY;
                }
        }
        float shrink[2];
        tile_softmax<KEYS>(p, top, sum, shrink, a.scale_log2);
        LK_UNROLL
        for (int n = 0; n < DP / 8; n++)
            for (int e = 0; e < 4; e++) acc[n][e] *= shrink[e / 2];
        tile_accumulate<DP, KEYS>(acc, p, v_tile);
    }

    float by[2];
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        sum[i] = tile_row_sum(sum[i]);
        by[i] = 1.0f / sum[i];
        int row = row0 + lane / 4 + 8 * i;
        if (a.lse && lane % 4 == 0 && row < length) a.lse[(int64_t)(tile.begin + row) * a.heads + head] = top[i] * a.scale + logf(sum[i]);
    }
    tile_store<DP>(a.o.data + (tile.begin + row0) * a.o.stride + head * a.head_dim, a.o.stride, length - row0, acc, by, a.head_dim,
                   a.vector);
}

template <int DP> static lk_status forward(lk_backend *be, const lk_attention_call *call, const attention_args *args)
{
    typedef attention_cut<DP> cut;
    lk_cuda *cu = lk_cuda_of(be);
    auto kernel = attention_forward_kernel<DP>;
    size_t shared = (size_t)(cut::ROWS + 2 * cut::SCORES) * DP * sizeof(lk_bf16);
    LK_TRY(lk_rt_allow_shared((const void *)kernel, shared, &be->error));
    attention_walk walk = {call->batch, 0, 0};
    attention_tile tiles[ATTENTION_TILES];
    for (int n; (n = attention_next(&walk, cut::ROWS, true, tiles)) > 0;) {
        void *list;
        LK_TRY(lk_cuda_stage(be, &list, tiles, (size_t)n * sizeof *tiles));
        LK_LAUNCH("attention_forward", kernel, dim3((unsigned)n, (unsigned)args->heads), dim3(cut::THREADS), shared, cu->stream, *args,
                  (const attention_tile *)list);
        LK_TRY(lk_rt_launched("attention_forward", &be->error));
    }
    return LK_OK;
}

static attention_rows rows_of(const lk_tensor *t, int32_t *vector)
{
    attention_rows rows = {NULL, 0};
    if (!t) return rows;
    rows.data = (lk_bf16 *)t->data;
    rows.stride = t->stride;
    if ((uintptr_t)t->data % 16 != 0 || t->stride % 8 != 0) *vector = 0;
    return rows;
}

lk_status lk_attention_arguments(lk_backend *be, const lk_attention_call *c, attention_args *args)
{
    const lk_attention_shape *s = c->shape;
    int64_t tokens = c->batch->n_tokens;
    if (s->head_dim > LK_ATTENTION_HEAD_DIM)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "attention: heads of %lld values; the CUDA backend takes up to %d",
                       (long long)s->head_dim, LK_ATTENTION_HEAD_DIM);
    if (tokens > (1 << 30) || s->heads > 65535)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "attention: %lld tokens of %lld heads are more than the CUDA backend counts",
                       (long long)tokens, (long long)s->heads);
    int32_t vector = s->head_dim % 8 == 0;
    memset(args, 0, sizeof *args);
    args->q = rows_of(c->q, &vector);
    args->k = rows_of(c->k, &vector);
    args->v = rows_of(c->v, &vector);
    args->o = rows_of(c->o, &vector);
    args->dout = rows_of(c->dout, &vector);
    args->dq = rows_of(c->dq, &vector);
    args->dk = rows_of(c->dk, &vector);
    args->dv = rows_of(c->dv, &vector);
    args->vector = vector;
    args->heads = (int32_t)s->heads;
    args->group = (int32_t)(s->heads / s->kv_heads);
    args->head_dim = (int32_t)s->head_dim;
    args->window = (int32_t)(s->window > 0 && s->window < tokens ? s->window : tokens);
    args->scale = s->scale;
    args->scale_log2 = s->scale * 1.44269504088896340736f;
    if (s->cap > 0.0f) args->cap_in = s->scale / s->cap, args->cap_out = s->cap / s->scale;
    args->tokens = tokens;
    return LK_OK;
}

lk_status lk_attention_own_forward(lk_backend *be, const lk_attention_call *call)
{
    attention_args args = {};
    LK_TRY(lk_attention_arguments(be, call, &args));
    args.lse = call->lse;
    if (args.head_dim <= 32) return forward<32>(be, call, &args);
    if (args.head_dim <= 64) return forward<64>(be, call, &args);
    if (args.head_dim <= 96) return forward<96>(be, call, &args);
    if (args.head_dim <= 128) return forward<128>(be, call, &args);
    return forward<256>(be, call, &args);
}
