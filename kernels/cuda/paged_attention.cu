/* Attention over the paged cache (Kwon et al. 2023), for decoding and for prefill chunks, with the same bits for a row in either.
 *
 * What a row computes is one thing: its keys in splits of 256 absolute positions; in each split an online softmax over steps of 64 (32
 * beyond a head size of 128), whose scores and weighted values are chains of mma in ascending order; the splits joined in order. Rows are
 * (token, query head of the group): a group shares each key and value that is loaded. Two kernels do this in two shapes:
 *
 *   few rows (at most 16: decoding)  a block a (split, key/value head). Its warps share the one tile of 16 rows: each scores a part of the
 * keys, all take all probabilities from shared memory, each sums up a part of the value columns. Keys and values stream through two
 * buffers. A third kernel joins the splits of a row. many rows (prefill)              a block a (64 rows, key/value head), a warp 16 of
 * them, which walks over all splits and joins them itself.
 *
 * Keys and values in 8 bits come as they are into buffers of their own, half as large, and are written out as bf16 codes (whole numbers to
 * 127: exact) before they are multiplied: a key's scale goes onto its scores, a value's onto its probabilities.
 *
 * An element of an mma does not depend on the tile's other rows or columns, fused products are written out, and what a step
 * leaves out are exact zeros; so the two agree.
 *
 * Arithmetic. Decoding a token at context n: 4 n D bytes for each key/value head (once, for all the group's heads) and 16 D operations per
 * position of the padded tile and byte-pair: bandwidth-bound by a factor of 30. Partial results: 4 (D + 4) bytes a split and row, written
 * and read once: at D = 128 and a group of 4, 4.2 KiB per 128 KiB of keys and values, 3%. In flight: 32 KiB a block and three blocks a
 * multiprocessor at D = 128, where 4.3 TB/s and 1 us ask for 33 KiB. Prefill: 64 operations a byte from L2 (64 rows x 4 D over 4 D bytes):
 * 350 TFLOP/s at 5.5 TB/s, where reading fragments from shared memory allows 490 and mma.sync 610.
 *
 * Rejected, by the same arithmetic: 128 rows a block. L2 would do, but eight warps of 255 registers have a multiprocessor to themselves and
 * nobody works while they wait for a step's keys: 1.2 times the attention at best, which is 3% of a prompt of 2048 tokens and a third of
 * one of 32768; and chunks of fewer than 512 tokens would leave multiprocessors idle. */
#include <math.h>

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/kv.h"

/* Unrolled whole, the loops over codes crowd the registers (D = 256 spills, D = 96 takes 189 instead of 165 on sm_80). */
#ifdef LK_CUDA_EMU
#define PAGED_UNROLL_2
#else
#define PAGED_UNROLL_2 _Pragma("unroll 2")
#endif

typedef struct paged_args {
    attention_rows q, o;
    lk_cuda_kv_view kv;
    lk_cuda_kv_tables t;
    int32_t heads, group, kv_heads, head_dim, window, vector;
    int32_t wide;                      /* head_dim in whole groups of eight */
    float scale_log2, cap_in, cap_out; /* the caps as in attention_args */
    float *partial;                    /* [n_splits][kv_heads][few_rows][wide + 4]: weighted values, then the most and the sum */
} paged_args;

enum { PARTIAL_TOP = 0, PARTIAL_SUM = 1, PARTIAL_EXTRA = 4 };

/* CODES: 1 for keys and values in 8 bits. */
template <int DP, int CODES> struct paged_cut {
    static constexpr int STEP = DP > 128 ? 32 : 64;
    static constexpr int FEW_WARPS = DP % 64 == 0 ? 4 : 2; /* a warp's columns are whole pairs of tiles */
    static constexpr int SLICE = DP / FEW_WARPS;
    static constexpr int SCORE_PITCH = STEP + 8; /* floats; eight rows of pairs in different banks */
    static constexpr int MANY_WARPS = DP > 128 ? 2 : 4;
    static constexpr int MANY_ROWS = 16 * MANY_WARPS;
    static constexpr int TILE = STEP * DP * (int)sizeof(lk_bf16); /* bytes of the keys or the values of a step */
    static constexpr int RAW = STEP * DP;                         /* and of their codes */
    static constexpr int SCALES = 2 * STEP * (int)sizeof(float);
    static constexpr size_t FEW_STREAMS = CODES ? 2 * TILE + 4 * RAW + 2 * SCALES : 4 * TILE;
    static constexpr size_t FEW_BYTES = 16 * DP * sizeof(lk_bf16) + FEW_STREAMS + 16 * SCORE_PITCH * sizeof(float);
    static constexpr size_t MANY_BYTES = MANY_ROWS * DP * (sizeof(lk_bf16) + sizeof(float)) + 2 * TILE + (CODES ? 2 * RAW + 2 * SCALES : 0);
};

/* ---------------------------------------------------------------------------------------------- what the kernels share */

/* Rows of a sequence on one key/value head; those that are not there see nothing. */
LK_DEVICE int row_position(const paged_args &a, const lk_cuda_kv_sequence &s, int row)
{
    return row < s.count * a.group ? s.length - s.count + row / a.group : -1;
}
LK_DEVICE int64_t row_at(const paged_args &a, const lk_cuda_kv_sequence &s, const attention_rows &x, int kv_head, int row)
{
    return (s.begin + row / a.group) * x.stride + (kv_head * a.group + row % a.group) * a.head_dim;
}
/* The first position that a query sees. */
LK_DEVICE int first_seen(const paged_args &a, int position) { return position - a.window + 1 > 0 ? position - a.window + 1 : 0; }

template <int DP, int ROWS, int THREADS>
LK_DEVICE void load_queries(lk_bf16 *tile, const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int row0)
{
    constexpr int CHUNKS = DP / 8;
    for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        bool inside = row0 + row < s.count * a.group && column < a.head_dim;
        lk_bf16 *to = tile + tile_at<DP>(row, column / 8);
        const lk_bf16 *from = inside ? a.q.data + row_at(a, s, a.q, kv_head, row0 + row) + column : a.q.data;
        if (a.vector) {
            lk_async_copy16(to, from, inside);
        } else {
            for (int e = 0; e < 8; e++) to[e] = inside && column + e < a.head_dim ? from[e] : (lk_bf16)0;
        }
    }
}

/* The head's keys in the page of this position; the first page's where there is no such position. */
LK_DEVICE const char *page_at(const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int key)
{
    int64_t page = key < s.length ? a.t.pages[s.first_page + (key >> a.kv.page_shift)] : 0;
    return a.kv.data + page * a.kv.page_stride + kv_head * a.kv.head_stride;
}

/* Positions [key0, key0 + ROWS) of the sequence: keys, or values (`skip` bytes further). Beyond its length, zeros. */
template <int DP, int ROWS, int THREADS>
LK_DEVICE void load_positions(lk_bf16 *tile, const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int key0, int64_t skip)
{
    constexpr int CHUNKS = DP / 8;
    for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8, key = key0 + row;
        bool inside = key < s.length && column < a.kv.pitch;
        const char *from = page_at(a, s, kv_head, key) + skip + (int64_t)(key & (a.kv.page_tokens - 1)) * a.kv.pitch_bytes + column * 2;
        lk_async_copy16(tile + tile_at<DP>(row, column / 8), inside ? from : a.kv.data, inside);
    }
}

/* The same as codes, [ROWS][DP] bytes, and their scales, [ROWS] floats, from `scales_skip` bytes behind the keys on. A page is a multiple
 * of 16 positions, so four scales that begin inside are all there; those beyond the length are anything. */
template <int DP, int ROWS, int THREADS>
LK_DEVICE void load_codes(char *codes, float *scales, const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int key0,
                          int64_t skip, int64_t scales_skip)
{
    constexpr int CHUNKS = DP / 16;
    PAGED_UNROLL_2
    for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 16, key = key0 + row;
        bool inside = key < s.length && column < a.kv.pitch;
        const char *from = page_at(a, s, kv_head, key) + skip + (int64_t)(key & (a.kv.page_tokens - 1)) * a.kv.pitch_bytes + column;
        lk_async_copy16(codes + row * DP + column, inside ? from : a.kv.data, inside);
    }
    for (int i = (int)threadIdx.x; i < ROWS / 4; i += THREADS) {
        int key = key0 + 4 * i;
        bool inside = key < s.length;
        const char *from = page_at(a, s, kv_head, key) + a.kv.to_scales + scales_skip + (key & (a.kv.page_tokens - 1)) * (int)sizeof(float);
        lk_async_copy16(scales + 4 * i, inside ? from : a.kv.data, inside);
    }
}

LK_DEVICE uint32_t two_codes(uint32_t word, int first)
{
    return lk_pack_bf16((float)(int8_t)(word >> 8 * first), (float)(int8_t)(word >> (8 * first + 8)));
}

/* Codes that have arrived, written out as a tile. */
template <int DP, int ROWS, int THREADS> LK_DEVICE void unpack_codes(lk_bf16 *tile, const char *codes)
{
    constexpr int CHUNKS = DP / 8;
    PAGED_UNROLL_2
    for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const uint2 eight = *(const uint2 *)(codes + i * 8);
        uint4 out;
        out.x = two_codes(eight.x, 0);
        out.y = two_codes(eight.x, 2);
        out.z = two_codes(eight.y, 0);
        out.w = two_codes(eight.y, 2);
        *(uint4 *)(tile + tile_at<DP>(i / CHUNKS, i % CHUNKS)) = out;
    }
}

/* Scores, or probabilities, times the scales of their keys or values. */
template <int STEP> LK_DEVICE void apply_scales(float (&p)[STEP / 8][4], const float *scales, const lk_cuda_kv_sequence &s, int key0)
{
    int lane = (int)threadIdx.x % 32;
    LK_UNROLL
    for (int n = 0; n < STEP / 8; n++)
        for (int e = 0; e < 4; e++) {
            int at = 8 * n + lane % 4 * 2 + e % 2;
            p[n][e] = lk_mul_rn(p[n][e], key0 + at < s.length ? scales[at] : 0.0f);
        }
}

template <int STEP> LK_DEVICE void hide(float (&p)[STEP / 8][4], const paged_args &a, const int (&position)[2], int key0)
{
    int lane = (int)threadIdx.x % 32;
    LK_UNROLL
    for (int n = 0; n < STEP / 8; n++)
        for (int e = 0; e < 4; e++) {
            int behind = position[e / 2] - (key0 + 8 * n + lane % 4 * 2 + e % 2);
            if (behind < 0 || behind >= a.window) p[n][e] = -INFINITY;
        }
}

/* How a row's splits join: what has been added up is worth `keep`, the next split `add`. */
LK_DEVICE void join(float *top, float *sum, float *keep, float *add, float next_top, float next_sum)
{
    float most = fmaxf(*top, next_top), base = most == -INFINITY ? 0.0f : most;
    *keep = lk_exp2(*top - base);
    *add = lk_exp2(next_top - base);
    *sum = fmaf(next_sum, *add, lk_mul_rn(*sum, *keep));
    *top = most;
}
LK_DEVICE float joined(float so_far, float keep, float next, float add) { return fmaf(next, add, lk_mul_rn(so_far, keep)); }

/* ---------------------------------------------------------------------------------------------- few rows */

/* Queues a step's keys and values into buffer `turn`. */
template <int DP, int CODES>
LK_DEVICE void few_load(char *streams, const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int key0, int turn)
{
    typedef paged_cut<DP, CODES> cut;
    constexpr int STEP = cut::STEP, THREADS = 32 * cut::FEW_WARPS;
    if (CODES) {
        char *codes = streams + 2 * cut::TILE + turn * 2 * cut::RAW;
        float *scales = (float *)(streams + 2 * cut::TILE + 4 * cut::RAW + turn * cut::SCALES);
        load_codes<DP, STEP, THREADS>(codes, scales, a, s, kv_head, key0, 0, 0);
        load_codes<DP, STEP, THREADS>(codes + cut::RAW, scales + STEP, a, s, kv_head, key0, a.kv.to_values,
                                      a.kv.page_tokens * (int)sizeof(float));
    } else {
        lk_bf16 *tiles = (lk_bf16 *)(streams + turn * 2 * cut::TILE);
        load_positions<DP, STEP, THREADS>(tiles, a, s, kv_head, key0, 0);
        load_positions<DP, STEP, THREADS>(tiles + STEP * DP, a, s, kv_head, key0, a.kv.to_values);
    }
    lk_async_commit();
}

template <int DP, int CODES> LK_KERNEL void paged_few_kernel(paged_args a)
{
    typedef paged_cut<DP, CODES> cut;
    constexpr int STEP = cut::STEP, THREADS = 32 * cut::FEW_WARPS, SLICE = cut::SLICE;
    LK_SHARED_DYNAMIC(lk_bf16, q_tile);
    char *streams = (char *)(q_tile + 16 * DP); /* two buffers of keys, then values; of codes and their scales behind one of each */
    float *scores = (float *)(streams + cut::FEW_STREAMS);
    const lk_cuda_kv_split item = a.t.splits[blockIdx.x];
    if (item.sequence < 0) return;
    const lk_cuda_kv_sequence s = a.t.sequences[item.sequence];
    int kv_head = (int)blockIdx.y, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int key0 = first_seen(a, s.length - s.count) / STEP * STEP, end = (item.split + 1) * LK_KV_SPLIT;
    if (key0 < item.split * LK_KV_SPLIT) key0 = item.split * LK_KV_SPLIT;
    if (end > s.length) end = s.length;
    if (key0 >= end) return; /* all of it is behind every window; whoever joins the splits does not ask for it */

    int position[2];
    float acc[SLICE / 8][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    LK_UNROLL
    for (int i = 0; i < 2; i++) position[i] = row_position(a, s, lane / 4 + 8 * i);
    LK_UNROLL
    for (int n = 0; n < SLICE / 8; n++)
        for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;
    load_queries<DP, 16, THREADS>(q_tile, a, s, kv_head, 0);
    few_load<DP, CODES>(streams, a, s, kv_head, key0, 0);
    for (int turn = 0; key0 < end; key0 += STEP, turn ^= 1) {
        lk_bf16 *k_tile = (lk_bf16 *)(streams + (CODES ? 0 : turn * 2 * cut::TILE)), *v_tile = k_tile + STEP * DP;
        const float *scales = (const float *)(streams + 2 * cut::TILE + 4 * cut::RAW + turn * cut::SCALES); /* of codes */
        lk_async_wait<0>();
        lk_block_sync(); /* this step is here; nobody reads the other buffer, the scores or unpacked codes any more */
        if (key0 + STEP < end) few_load<DP, CODES>(streams, a, s, kv_head, key0 + STEP, turn ^ 1);
        if (CODES) {
            const char *codes = streams + 2 * cut::TILE + turn * 2 * cut::RAW;
            unpack_codes<DP, STEP, THREADS>(k_tile, codes);
            unpack_codes<DP, STEP, THREADS>(v_tile, codes + cut::RAW);
            lk_block_sync();
        }
        for (int n = 16 * warp; n < STEP; n += 16 * cut::FEW_WARPS) { /* this warp's keys */
            float part[2][4];
            tile_scores<DP, 16>(part, q_tile, 0, k_tile + n * DP);
            for (int j = 0; j < 2; j++) LK_UNROLL
            for (int i = 0; i < 2; i++) {
                float *at = scores + (lane / 4 + 8 * i) * cut::SCORE_PITCH + n + 8 * j + lane % 4 * 2;
                at[0] = part[j][2 * i];
                at[1] = part[j][2 * i + 1];
            }
        }
        lk_block_sync();
        float p[STEP / 8][4], shrink[2];
        LK_UNROLL
        for (int n = 0; n < STEP / 8; n++)
            for (int e = 0; e < 4; e++) p[n][e] = scores[(lane / 4 + e / 2 * 8) * cut::SCORE_PITCH + 8 * n + lane % 4 * 2 + e % 2];
        if (CODES) apply_scales<STEP>(p, scales, s, key0);
        tile_cap<STEP>(p, a.cap_in, a.cap_out);
        hide<STEP>(p, a, position, key0);
        tile_softmax<STEP>(p, top, sum, shrink, a.scale_log2);
        if (CODES) apply_scales<STEP>(p, scales + STEP, s, key0);
        LK_UNROLL
        for (int n = 0; n < SLICE / 8; n++)
            for (int e = 0; e < 4; e++) acc[n][e] *= shrink[e / 2];
        tile_accumulate<DP, STEP, SLICE>(acc, p, v_tile, warp * SLICE);
    }
    int rows = s.count * a.group;
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        int row = lane / 4 + 8 * i;
        float total = tile_row_sum(sum[i]);
        if (row >= rows) continue;
        float *out = a.partial + (((int64_t)blockIdx.x * a.kv_heads + kv_head) * a.t.few_rows + row) * (a.wide + PARTIAL_EXTRA);
        LK_UNROLL
        for (int n = 0; n < SLICE / 8; n++) {
            int column = warp * SLICE + 8 * n + lane % 4 * 2;
            if (column < a.wide) *(float2 *)(out + column) = make_float2(acc[n][2 * i], acc[n][2 * i + 1]);
        }
        if (warp == 0 && lane % 4 == 0) {
            out[a.wide + PARTIAL_TOP] = lk_mul_rn(top[i], a.scale_log2);
            out[a.wide + PARTIAL_SUM] = total;
        }
    }
}

/* Joins the splits of each row, a warp a row; four splits are on their way at a time. */
LK_KERNEL void paged_join_kernel(paged_args a)
{
    enum { AHEAD = 4, COLUMNS = LK_ATTENTION_HEAD_DIM / 32 };
    const lk_cuda_kv_sequence s = a.t.sequences[blockIdx.x];
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % 32, rows = s.n_splits ? s.count * a.group : 0;
    int64_t pitch = a.wide + PARTIAL_EXTRA, stride = (int64_t)a.kv_heads * a.t.few_rows * pitch; /* from a split to the next */
    for (int row = (int)threadIdx.x / 32; row < rows; row += (int)blockDim.x / 32) {
        int last = row_position(a, s, row) / LK_KV_SPLIT, split = first_seen(a, s.length - s.count) / LK_KV_SPLIT;
        const float *from = a.partial + ((int64_t)(s.first_split + split) * a.kv_heads + kv_head) * a.t.few_rows * pitch + row * pitch;
        float top = -INFINITY, sum = 0.0f, out[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) out[c] = 0.0f;
        for (; split <= last; split += AHEAD, from += AHEAD * stride) {
            float next[AHEAD][COLUMNS], next_top[AHEAD], next_sum[AHEAD];
            LK_UNROLL
            for (int j = 0; j < AHEAD; j++) {
                bool is = split + j <= last;
                next_top[j] = is ? from[j * stride + a.wide + PARTIAL_TOP] : -INFINITY;
                next_sum[j] = is ? from[j * stride + a.wide + PARTIAL_SUM] : 0.0f;
                LK_UNROLL
                for (int c = 0; c < COLUMNS; c++) next[j][c] = is && lane + 32 * c < a.wide ? from[j * stride + lane + 32 * c] : 0.0f;
            }
            LK_UNROLL
            for (int j = 0; j < AHEAD; j++) { /* a split that is not there changes nothing: kept whole, nothing added */
                float keep, add;
                join(&top, &sum, &keep, &add, next_top[j], next_sum[j]);
                LK_UNROLL
                for (int c = 0; c < COLUMNS; c++) out[c] = joined(out[c], keep, next[j][c], add);
            }
        }
        float by = 1.0f / sum;
        lk_bf16 *o = a.o.data + row_at(a, s, a.o, kv_head, row);
        LK_UNROLL
        for (int c = 0; c < COLUMNS; c++)
            if (lane + 32 * c < a.head_dim) o[lane + 32 * c] = lk_float_bf16(lk_mul_rn(out[c], by));
    }
}

/* ---------------------------------------------------------------------------------------------- many rows */

/* Queues a step's keys, or its values (which 1), into their tile, or their codes behind both tiles. */
template <int DP, int CODES>
LK_DEVICE void many_load(lk_bf16 *tiles, char *codes, const paged_args &a, const lk_cuda_kv_sequence &s, int kv_head, int key0, int which)
{
    typedef paged_cut<DP, CODES> cut;
    constexpr int STEP = cut::STEP, THREADS = 32 * cut::MANY_WARPS;
    if (CODES)
        load_codes<DP, STEP, THREADS>(codes + which * cut::RAW, (float *)(codes + 2 * cut::RAW) + which * STEP, a, s, kv_head, key0,
                                      which * a.kv.to_values, which * a.kv.page_tokens * (int)sizeof(float));
    else
        load_positions<DP, STEP, THREADS>(tiles + which * STEP * DP, a, s, kv_head, key0, which * a.kv.to_values);
    lk_async_commit();
}

template <int DP, int CODES> LK_KERNEL void paged_many_kernel(paged_args a)
{
    typedef paged_cut<DP, CODES> cut;
    constexpr int STEP = cut::STEP, THREADS = 32 * cut::MANY_WARPS, ROWS = cut::MANY_ROWS;
    LK_SHARED_DYNAMIC(lk_bf16, q_tile);
    lk_bf16 *k_tile = q_tile + ROWS * DP, *v_tile = k_tile + STEP * DP;
    float4 *whole = (float4 *)(v_tile + STEP * DP) + threadIdx.x;      /* each thread's own: the splits joined so far, laid out as acc */
    char *codes = (char *)((float *)(v_tile + STEP * DP) + ROWS * DP); /* of keys, of values, and the scales of both */
    const float *scales = (const float *)(codes + 2 * cut::RAW);
    int number = a.t.many[blockIdx.z];
    if (number < 0) return;
    const lk_cuda_kv_sequence s = a.t.sequences[number];
    int rows = s.count * a.group, first = (int)blockIdx.x * ROWS, kv_head = (int)blockIdx.y;
    if (first >= rows) return;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, row0 = first + 16 * warp;
    int key0 = first_seen(a, row_position(a, s, first)) / STEP * STEP;
    int end = row_position(a, s, first + ROWS < rows ? first + ROWS - 1 : rows - 1) + 1;
    int position[2];
    float acc[DP / 8][4], top[2], sum[2], whole_top[2] = {-INFINITY, -INFINITY}, whole_sum[2] = {0.0f, 0.0f};
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        position[i] = row_position(a, s, row0 + lane / 4 + 8 * i);
        top[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    LK_UNROLL
    for (int n = 0; n < DP / 8; n++) {
        for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;
        whole[n * THREADS] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    load_queries<DP, ROWS, THREADS>(q_tile, a, s, kv_head, first);
    many_load<DP, CODES>(k_tile, codes, a, s, kv_head, key0, 0);
    for (; key0 < end; key0 += STEP) {
        float p[STEP / 8][4], shrink[2];
        lk_async_wait<0>();
        lk_block_sync(); /* the keys are here, and nobody reads the values of the step before any more */
        many_load<DP, CODES>(k_tile, codes, a, s, kv_head, key0, 1);
        if (CODES) {
            unpack_codes<DP, STEP, THREADS>(k_tile, codes);
            lk_block_sync();
        }
        tile_scores<DP, STEP>(p, q_tile, 16 * warp, k_tile);
        if (CODES) apply_scales<STEP>(p, scales, s, key0);
        lk_async_wait<0>();
        lk_block_sync(); /* the values are here, and nobody reads the keys any more */
        if (key0 + STEP < end) many_load<DP, CODES>(k_tile, codes, a, s, kv_head, key0 + STEP, 0);
        tile_cap<STEP>(p, a.cap_in, a.cap_out);
        hide<STEP>(p, a, position, key0);
        tile_softmax<STEP>(p, top, sum, shrink, a.scale_log2);
        if (CODES) {
            unpack_codes<DP, STEP, THREADS>(v_tile, codes + cut::RAW);
            apply_scales<STEP>(p, scales + STEP, s, key0);
            lk_block_sync();
        }
        LK_UNROLL
        for (int n = 0; n < DP / 8; n++)
            for (int e = 0; e < 4; e++) acc[n][e] *= shrink[e / 2];
        tile_accumulate<DP, STEP>(acc, p, v_tile);
        if ((key0 + STEP) % LK_KV_SPLIT != 0 && key0 + STEP < end) continue;
        float keep[2], add[2]; /* a split ends */
        LK_UNROLL
        for (int i = 0; i < 2; i++) {
            join(&whole_top[i], &whole_sum[i], &keep[i], &add[i], lk_mul_rn(top[i], a.scale_log2), tile_row_sum(sum[i]));
            top[i] = -INFINITY;
            sum[i] = 0.0f;
        }
        LK_UNROLL
        for (int n = 0; n < DP / 8; n++) {
            float4 w = whole[n * THREADS];
            whole[n * THREADS] = make_float4(joined(w.x, keep[0], acc[n][0], add[0]), joined(w.y, keep[0], acc[n][1], add[0]),
                                             joined(w.z, keep[1], acc[n][2], add[1]), joined(w.w, keep[1], acc[n][3], add[1]));
            for (int e = 0; e < 4; e++) acc[n][e] = 0.0f;
        }
    }
    LK_UNROLL
    for (int i = 0; i < 2; i++) {
        int row = row0 + lane / 4 + 8 * i;
        if (row >= rows) continue;
        float by = 1.0f / whole_sum[i];
        lk_bf16 *o = a.o.data + row_at(a, s, a.o, kv_head, row);
        LK_UNROLL
        for (int n = 0; n < DP / 8; n++) {
            int column = 8 * n + lane % 4 * 2;
            float4 w = whole[n * THREADS];
            uint32_t pair = lk_pack_bf16(lk_mul_rn(i ? w.z : w.x, by), lk_mul_rn(i ? w.w : w.y, by));
            if (column >= a.head_dim) continue;
            if (a.vector) {
                *(uint32_t *)(o + column) = pair;
            } else {
                o[column] = (lk_bf16)pair;
                if (column + 1 < a.head_dim) o[column + 1] = (lk_bf16)(pair >> 16);
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------- launches */

extern "C" size_t lk_cuda_paged_split_bytes(int64_t kv_heads, int64_t rows, int64_t head_dim)
{
    return (size_t)(kv_heads * rows * (lk_cuda_padded(head_dim) + PARTIAL_EXTRA)) * sizeof(float);
}

/* Enough that a multiprocessor never waits for the next launch: 64 MiB are 4,000 splits of 8 heads, 4 rows and D = 128; and the longest
 * sequence alone. */
size_t lk_cuda_paged_scratch(const lk_limits *l)
{
    if (l->training || l->kv_heads < 1 || l->head_dim < 1 || l->context < 1) return 0;
    size_t split = lk_cuda_paged_split_bytes(l->kv_heads, LK_KV_FEW, l->head_dim), longest = (size_t)(l->context / LK_KV_SPLIT + 1) * split;
    size_t all = (size_t)l->tokens * longest, enough = (size_t)64 << 20;
    if (all > enough) all = enough;
    return all > longest ? all : longest;
}

template <int DP, int CODES> static lk_status launch_few(lk_backend *be, const paged_args *a)
{
    typedef paged_cut<DP, CODES> cut;
    lk_cuda *cu = lk_cuda_of(be);
    auto kernel = paged_few_kernel<DP, CODES>;
    LK_TRY(lk_rt_allow_shared((const void *)kernel, cut::FEW_BYTES, &be->error));
    LK_LAUNCH("paged_few", kernel, dim3((unsigned)a->t.n_splits, (unsigned)a->kv_heads), dim3(32 * cut::FEW_WARPS), cut::FEW_BYTES,
              cu->stream, *a);
    LK_TRY(lk_rt_launched("paged_few", &be->error));
    LK_LAUNCH("paged_join", paged_join_kernel, dim3((unsigned)a->t.n_sequences, (unsigned)a->kv_heads), dim3(128), 0, cu->stream, *a);
    return lk_rt_launched("paged_join", &be->error);
}

template <int DP, int CODES> static lk_status launch_many(lk_backend *be, const paged_args *a)
{
    typedef paged_cut<DP, CODES> cut;
    auto kernel = paged_many_kernel<DP, CODES>;
    LK_TRY(lk_rt_allow_shared((const void *)kernel, cut::MANY_BYTES, &be->error));
    unsigned tiles = (unsigned)((a->t.many_rows + cut::MANY_ROWS - 1) / cut::MANY_ROWS);
    LK_LAUNCH("paged_many", kernel, dim3(tiles, (unsigned)a->kv_heads, (unsigned)a->t.n_many), dim3(32 * cut::MANY_WARPS), cut::MANY_BYTES,
              lk_cuda_of(be)->stream, *a);
    return lk_rt_launched("paged_many", &be->error);
}

template <int DP, int CODES> static lk_status launch(lk_backend *be, const paged_args *a)
{
    if (a->t.n_splits > 0) LK_TRY((launch_few<DP, CODES>(be, a)));
    return a->t.n_many > 0 ? launch_many<DP, CODES>(be, a) : LK_OK;
}

template <int CODES> static lk_status launch_any(lk_backend *be, const paged_args *a)
{
    if (a->head_dim <= 32) return launch<32, CODES>(be, a);
    if (a->head_dim <= 64) return launch<64, CODES>(be, a);
    if (a->head_dim <= 96) return launch<96, CODES>(be, a);
    if (a->head_dim <= 128) return launch<128, CODES>(be, a);
    return launch<256, CODES>(be, a);
}

lk_status lk_cuda_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o,
                                  const lk_tensor *q, const lk_kv *kv, int32_t layer)
{
    const lk_cuda *cu = lk_cuda_of(be);
    if (batch->n_tokens == 0) return LK_OK;
    if (shape->head_dim > LK_ATTENTION_HEAD_DIM || shape->kv_heads > 65535)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED,
                       "paged attention: %lld key/value heads of %lld values; the CUDA backend takes heads up to %d",
                       (long long)shape->kv_heads, (long long)shape->head_dim, LK_ATTENTION_HEAD_DIM);
    paged_args a = {};
    a.q = attention_rows{(lk_bf16 *)q->data, q->stride};
    a.o = attention_rows{(lk_bf16 *)o->data, o->stride};
    a.kv = lk_cuda_kv_layer(kv, layer);
    a.heads = (int32_t)shape->heads;
    a.kv_heads = (int32_t)shape->kv_heads;
    a.group = a.heads / a.kv_heads;
    a.head_dim = (int32_t)shape->head_dim;
    a.wide = (int32_t)lk_cuda_padded(shape->head_dim);
    a.window = (int32_t)(shape->window > 0 && shape->window < INT32_MAX / 2 ? shape->window : INT32_MAX / 2);
    a.vector = lk_cuda_eights(q) && lk_cuda_eights(o) && shape->head_dim % 8 == 0;
    a.scale_log2 = shape->scale * 1.44269504088896340736f;
    if (shape->cap > 0.0f) a.cap_in = shape->scale / shape->cap, a.cap_out = shape->cap / shape->scale;
    a.partial = (float *)cu->scratch;
    do {
        LK_TRY(lk_cuda_tables_for(be, batch, kv, a.group, a.t.next));
        a.t = cu->tables.kv;
        LK_TRY(kv->shape.type == LK_I8 ? launch_any<1>(be, &a) : launch_any<0>(be, &a));
    } while (a.t.next < batch->n_sequences);
    return LK_OK;
}
