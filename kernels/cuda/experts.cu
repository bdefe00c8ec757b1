/* A mixture's products in a server's step without the host: who goes to which expert stays on the device, and one launch does a layer of
 * all experts, so that a step of decoding has fixed launches and can be recorded.
 *
 * place: a block an expert counts the choices of the experts before it and gives its own slots in the order of the tokens; a second launch
 * cuts every expert's slots into tiles of up to TOKENS. Tables are as long as they can become, with empty tiles at the end.
 *
 * product: a block takes 128 rows of one expert's matrix and one tile of tokens, whose rows of x it finds by their tokens' numbers (nothing
 * is gathered first). A warp has 16 rows of w over all of K; x goes through a ring of stages in shared memory, codes through registers,
 * four depths ahead. The sums have the order of product.h: pieces of 512, ascending, NF4 scaled in fp32 by depth. A token's sums are made
 * of its own row and its experts' matrices alone.
 *
 * Bytes for T tokens with K of E experts: the matrices of the experts that were chosen, 0.53 a weight, once for every 32 of an expert's
 * tokens, of which all but the first reading is L2's. One sequence of Mixtral 8x7B (2 experts of 4096 x 14336, three matrices, 32 layers):
 * 6.0 GB, 1.4 ms at 4.3 TB/s; 224 blocks of eight warps have 4 x 512 bytes a warp on their way, 62 KB a multiprocessor at two blocks
 * (computed, not measured). Prompts reach the rate of mma.sync at 32 tokens a tile.
 *
 * Rejected: rows of w that meet the tokens of every expert (most of it for nothing); tiles of more tokens for prompts (a second shape of
 * the kernel, worth having once a GPU says so); a list of tiles counted by the host (a wait a layer, and no recording). */
#include "kernels/cuda/scales.h"

enum { WARPS = 8, THREADS = WARPS * 32, TOKENS = 32, GROUPS = TOKENS / 8, DEPTH = LK_CUDA_TILE_DEPTH, ROW_BYTES = DEPTH * 2 };
enum { STAGES = 3, STAGE_BYTES = TOKENS * ROW_BYTES };
enum { PAIRS = 256, BANKS = 32, MOST_EXPERTS = 1024 };

static_assert(TOKENS * 8 == THREADS, "a thread stages 16 bytes of a depth");

/* A matrix as kernels find it in device memory. */
typedef struct expert_matrix {
    lk_cuda_nf4 nf4;
    const lk_bf16 *dense;
    int64_t ld;
} expert_matrix;

/* Slots [first, first + count) of an expert; count 0: none. */
typedef struct expert_tile {
    int32_t expert, first, count, unused;
} expert_tile;

/* The caller's memory, laid out. */
typedef struct placing {
    int32_t *slots, *rows, *first, *count;
    expert_tile *tiles;
    int32_t n_tiles;
} placing;

static int64_t tiles_of(int64_t n, int64_t experts) { return n / TOKENS + (n < experts ? n : experts); }

static size_t aligned(int64_t n) { return (size_t)(n + 3) / 4 * 4; }

static placing placing_in(int32_t *memory, int64_t n, int64_t experts)
{
    placing p;
    p.slots = memory;
    p.rows = p.slots + aligned(n);
    p.first = p.rows + aligned(n);
    p.count = p.first + aligned(experts);
    p.tiles = (expert_tile *)(p.count + aligned(experts));
    p.n_tiles = (int32_t)tiles_of(n, experts);
    return p;
}

extern "C" size_t lk_cuda_moe_placing_bytes(const lk_backend *, int64_t n, int64_t experts)
{
    return (2 * aligned(n) + 2 * aligned(experts)) * sizeof(int32_t) + (size_t)tiles_of(n, experts) * sizeof(expert_tile);
}

/* ---------------------------------------------------------------------------------------------- placing */

/* Sum over the lanes up to this one. */
LK_DEVICE int32_t running(int32_t value, int lane)
{
    for (int by = 1; by < 32; by *= 2) {
        int32_t before = lk_shuffle(value, lane >= by ? lane - by : lane);
        if (lane >= by) value += before;
    }
    return value;
}

LK_KERNEL void place_slots(placing p, const int32_t *ids, int64_t n, int32_t k)
{
    LK_SHARED(float, part, 32);
    LK_SHARED(int32_t, totals, WARPS);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t expert = (int32_t)blockIdx.x;
    float before = 0.0f; /* counts below 2^24 are exact */
    for (int64_t i = threadIdx.x; i < n; i += THREADS) before += ids[i] < expert ? 1.0f : 0.0f;
    int32_t first = (int32_t)lk_block_sum(before, part), taken = 0;
    for (int64_t from = 0; from < n; from += THREADS) {
        int64_t i = from + threadIdx.x;
        int32_t mine = i < n && ids[i] == expert, upto = running(mine, lane), base = first + taken;
        lk_block_sync(); /* all have read the totals before these */
        if (lane == 31) totals[warp] = upto;
        lk_block_sync();
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) base += totals[w];
            taken += totals[w];
        }
        if (!mine) continue;
        int32_t slot = base + upto - 1;
        p.slots[i] = slot;
        p.rows[slot] = (int32_t)(i / k);
    }
    if (threadIdx.x > 0) return;
    p.first[expert] = first;
    p.count[expert] = taken;
}

LK_KERNEL void place_tiles(placing p, int32_t experts)
{
    LK_SHARED(int32_t, tiles, MOST_EXPERTS);
    for (int32_t e = (int32_t)threadIdx.x; e < experts; e += THREADS) tiles[e] = (p.count[e] + TOKENS - 1) / TOKENS;
    lk_block_sync();
    int32_t all = 0;
    for (int32_t e = 0; e < experts; e++) all += tiles[e];
    for (int32_t e = (int32_t)threadIdx.x; e < experts; e += THREADS) {
        int32_t at = 0;
        for (int32_t i = 0; i < e; i++) at += tiles[i];
        for (int32_t i = 0; i < tiles[e]; i++) {
            int32_t left = p.count[e] - i * TOKENS;
            expert_tile tile = {e, p.first[e] + i * TOKENS, left < TOKENS ? left : (int32_t)TOKENS, 0};
            p.tiles[at + i] = tile;
        }
    }
    expert_tile none = {};
    for (int32_t i = all + (int32_t)threadIdx.x; i < p.n_tiles; i += THREADS) p.tiles[i] = none;
}

extern "C" lk_status lk_cuda_moe_place(lk_backend *be, int32_t *memory, const int32_t *ids, int64_t tokens, int64_t k, int64_t experts)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    int64_t n = tokens * k;
    if (n == 0) return LK_OK;
    if (experts > MOST_EXPERTS || n >= 1 << 24)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED,
                       "moe_place: %lld choices among %lld experts; the CUDA backend takes fewer than %d, among up to %d: use --device cpu",
                       (long long)n, (long long)experts, 1 << 24, MOST_EXPERTS);
    placing p = placing_in(memory, n, experts);
    LK_LAUNCH("place_slots", place_slots, dim3((unsigned)experts), dim3(THREADS), 0, stream, p, ids, n, (int32_t)k);
    LK_LAUNCH("place_tiles", place_tiles, dim3(1), dim3(THREADS), 0, stream, p, (int32_t)experts);
    return lk_rt_launched("moe_place", &be->error);
}

/* ---------------------------------------------------------------------------------------------- products */

typedef struct experts_args {
    const expert_matrix *w;
    const expert_tile *tiles;
    const int32_t *rows; /* of x, by slot; NULL: x has a row a slot */
    const lk_bf16 *x;
    int64_t ldx;
    lk_bf16 *y;
    int64_t ldy;
    int32_t n, k;
} experts_args;

/* 16 rows of w at one depth, as loaded. */
struct nf4_depth {
    static constexpr int AHEAD = 4;
    uint4 v;
};
struct dense_depth {
    static constexpr int AHEAD = 2;
    uint32_t v[4][4];
};

LK_DEVICE void load(nf4_depth &c, const expert_matrix &w, const experts_args &p, int32_t tile, int32_t depth, int lane)
{
    c.v = make_uint4(0, 0, 0, 0);
    if (tile * 16 < p.n && depth * DEPTH < p.k) c.v = ((const uint4 *)w.nf4.tiles)[((int64_t)tile * (p.k / DEPTH) + depth) * 32 + lane];
}

/* Rows end at a multiple of eight with zeros (matrix.h). */
LK_DEVICE void load(dense_depth &c, const expert_matrix &w, const experts_args &p, int32_t tile, int32_t depth, int lane)
{
    LK_UNROLL
    for (int step = 0; step < 4; step++) LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t row = tile * 16 + lane / 4 + 8 * (i & 1), column = depth * DEPTH + step * 16 + 2 * (lane % 4) + 8 * (i >> 1);
        c.v[step][i] = row < p.n && column < w.ld ? *(const uint32_t *)(w.dense + row * w.ld + column) : 0;
    }
}

LK_DEVICE void unpack(uint32_t a[4][4], const nf4_depth &c, const uint32_t *table, int lane)
{
    const uint32_t words[4] = {c.v.x, c.v.y, c.v.z, c.v.w};
    LK_UNROLL
    for (int step = 0; step < 4; step++) LK_UNROLL
    for (int i = 0; i < 4; i++) a[step][i] = table[((words[step] >> (8 * i)) & 255u) * BANKS + lane];
}
LK_DEVICE void unpack(uint32_t a[4][4], const dense_depth &c, const uint32_t *, int)
{
    LK_UNROLL
    for (int step = 0; step < 4; step++) LK_UNROLL
    for (int i = 0; i < 4; i++) a[step][i] = c.v[step][i];
}

/* What scales the sums of rows g and g + 8 at a depth. */
LK_DEVICE void scales_of(float out[2], const nf4_depth &, const expert_matrix &w, const experts_args &p, int32_t tile, int32_t depth,
                         int lane)
{
    LK_UNROLL
    for (int half = 0; half < 2; half++) {
        int32_t row = tile * 16 + lane / 4 + 8 * half;
        out[half] = row < p.n && depth * DEPTH < p.k ? lk_cuda_block_scale(w.nf4, (int64_t)row * (p.k / DEPTH) + depth) : 0.0f;
    }
}
LK_DEVICE void scales_of(float out[2], const dense_depth &, const expert_matrix &, const experts_args &, int32_t, int32_t, int)
{
    out[0] = out[1] = 1.0f;
}

/* The 64 products of a depth on top of the sums: NF4's scaled, dense ones as they are. */
LK_DEVICE void accumulate(float sum[4], const uint32_t a[4][4], const uint32_t b[4][2], const float scale[2], const nf4_depth &)
{
    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    LK_UNROLL
    for (int step = 0; step < 4; step++) lk_mma_bf16(c, a[step], b[step]);
    LK_UNROLL
    for (int i = 0; i < 4; i++) sum[i] = fmaf(scale[i / 2], c[i], sum[i]);
}
LK_DEVICE void accumulate(float sum[4], const uint32_t a[4][4], const uint32_t b[4][2], const float[2], const dense_depth &)
{
    LK_UNROLL
    for (int step = 0; step < 4; step++) lk_mma_bf16(sum, a[step], b[step]);
}

/* Eight tokens of a stage; 16 bytes lie where eight rows of a column are in different banks. */
LK_DEVICE int place_of(int row, int chunk) { return row * ROW_BYTES + (chunk ^ (row & 7)) * 16; }
LK_DEVICE void x_fragments(uint32_t b[4][2], const unsigned char *rows, int lane)
{
    LK_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t out[4];
        lk_ldmatrix4(out, rows + place_of(lane % 8, lane / 8 + 4 * half));
        b[2 * half][0] = out[0];
        b[2 * half][1] = out[1];
        b[2 * half + 1][0] = out[2];
        b[2 * half + 1][1] = out[3];
    }
}

/* Pairs of bf16 of a byte of codes, one for every bank. */
LK_DEVICE void fill_table(uint32_t *table, const expert_matrix &w, const nf4_depth &)
{
    int byte = (int)threadIdx.x;
    const float *codebook = w.nf4.constants + LK_CUDA_CODEBOOK;
    uint32_t pair = lk_pack_bf16(codebook[byte >> 4], codebook[byte & 15]);
    for (int i = 0; i < BANKS; i++) table[byte * BANKS + ((i + byte) & (BANKS - 1))] = pair;
}
LK_DEVICE void fill_table(uint32_t *, const expert_matrix &, const dense_depth &) {}

template <typename D, int TABLE> LK_KERNEL void __launch_bounds__(THREADS, 2) experts_kernel(experts_args p)
{
    LK_SHARED(uint32_t, table, TABLE);
    LK_SHARED(unsigned char, ring, STAGES *STAGE_BYTES);
    const expert_tile tile = p.tiles[blockIdx.y];
    if (tile.count == 0) return;
    const expert_matrix w = p.w[tile.expert];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t rows16 = (int32_t)blockIdx.x * WARPS + warp, depths = (p.k + DEPTH - 1) / DEPTH;
    /* what this thread stages: one 16-byte group of one token, depth after depth */
    int token = (int)threadIdx.x / 8, chunk = (int)threadIdx.x % 8;
    bool there = token < tile.count;
    int32_t slot = tile.first + (there ? token : 0);
    const lk_bf16 *from = p.x + (p.rows ? p.rows[slot] : slot) * p.ldx + chunk * 8;
    unsigned char *to = ring + place_of(token, chunk);

    constexpr int AHEAD = D::AHEAD;
    D codes[AHEAD];
    float scale[AHEAD][2];
    LK_UNROLL
    for (int i = 0; i < AHEAD; i++) {
        load(codes[i], w, p, rows16, i, lane);
        scales_of(scale[i], codes[i], w, p, rows16, i, lane);
    }
    LK_UNROLL
    for (int s = 0; s < STAGES - 1; s++) {
        bool valid = there && s * DEPTH + chunk * 8 < p.k;
        lk_async_copy16(to + s * STAGE_BYTES, valid ? from + s * DEPTH : p.x, valid);
        lk_async_commit();
    }
    fill_table(table, w, codes[0]);

    float sum[GROUPS][4] = {};
    for (int32_t depth0 = 0; depth0 < depths; depth0 += AHEAD) {
        LK_UNROLL
        for (int i = 0; i < AHEAD; i++) {
            int32_t depth = depth0 + i, next = depth + STAGES - 1;
            if (depth >= depths) break; /* the same for the whole block */
            lk_async_wait<STAGES - 2>();
            lk_block_sync(); /* the stage has arrived for everyone, and everyone has left the one before it */
            bool valid = there && next * DEPTH + chunk * 8 < p.k;
            if (next < depths) lk_async_copy16(to + next % STAGES * STAGE_BYTES, valid ? from + next * DEPTH : p.x, valid);
            lk_async_commit();
            uint32_t a[4][4];
            unpack(a, codes[i], table, lane);
            LK_UNROLL
            for (int g = 0; g < GROUPS; g++) {
                if (g * 8 >= tile.count) break; /* the same for the whole block */
                uint32_t b[4][2];
                x_fragments(b, ring + depth % STAGES * STAGE_BYTES + g * 8 * ROW_BYTES, lane);
                accumulate(sum[g], a, b, scale[i], codes[i]);
            }
            load(codes[i], w, p, rows16, depth + AHEAD, lane);
            scales_of(scale[i], codes[i], w, p, rows16, depth + AHEAD, lane);
        }
    }
    LK_UNROLL
    for (int g = 0; g < GROUPS; g++) LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t row = rows16 * 16 + lane / 4 + 8 * (i / 2), of = g * 8 + 2 * (lane % 4) + i % 2;
        if (row < p.n && of < tile.count) p.y[(tile.first + of) * p.ldy + row] = lk_float_bf16(sum[g][i]);
    }
}

extern "C" size_t lk_cuda_experts_bytes(const lk_backend *, int64_t experts) { return (size_t)experts * sizeof(expert_matrix); }

/* The table is written once, before a server's first step. */
extern "C" lk_status lk_cuda_experts_fill(lk_backend *be, void *memory, const lk_matrix *const *w, int64_t experts)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    for (int64_t e = 0; e < experts; e++) {
        const lk_cuda_matrix *m = lk_cuda_matrix_of(w[e]);
        expert_matrix entry = {};
        entry.nf4 = m->nf4;
        entry.dense = m->storage == LK_NF4 ? NULL : (const lk_bf16 *)m->memory;
        entry.ld = m->ld;
        LK_TRY(lk_rt_copy((expert_matrix *)memory + e, &entry, sizeof entry, stream, &be->error));
        LK_TRY(lk_rt_stream_sync(stream, &be->error)); /* the entry is on this stack */
    }
    return LK_OK;
}

extern "C" lk_status lk_cuda_experts_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_experts *w, int32_t *memory,
                                            bool by_token)
{
    const lk_cuda_matrix *first = lk_cuda_matrix_of(w->w[0]);
    placing places = placing_in(memory, y->rows, w->count);
    if (y->rows == 0) return LK_OK;
    if (!lk_cuda_eights(x) || places.n_tiles > 65535)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "experts_linear: rows of %lld values that are not groups of eight, or %d tiles",
                       (long long)x->cols, places.n_tiles);
    experts_args p = {};
    p.w = (const expert_matrix *)w->table;
    p.tiles = places.tiles;
    p.rows = by_token ? places.rows : NULL;
    p.x = (const lk_bf16 *)x->data;
    p.ldx = x->stride;
    p.y = (lk_bf16 *)y->data;
    p.ldy = y->stride;
    p.n = (int32_t)y->cols;
    p.k = (int32_t)x->cols;
    dim3 grid((unsigned)((y->cols + WARPS * 16 - 1) / (WARPS * 16)), (unsigned)places.n_tiles);
    auto *nf4 = experts_kernel<nf4_depth, PAIRS * BANKS>;
    auto *dense = experts_kernel<dense_depth, 1>;
    if (first->storage == LK_NF4)
        LK_LAUNCH("experts_nf4", nf4, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, p);
    else
        LK_LAUNCH("experts_dense", dense, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, p);
    return lk_rt_launched("experts_linear", &be->error);
}
