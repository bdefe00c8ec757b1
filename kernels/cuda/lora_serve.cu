/* LoRA of a serving batch (SGMV of Punica, Chen et al. 2023; S-LoRA, Sheng et al. 2023): all segments of a site, and of sites that
 * share their input, in two launches, whatever the adapters and ranks, one arithmetic for every number of tokens:
 *
 *     K is cut into pieces of 512
 *     p_j = sum of piece j of x A^T, 32 mma of 16, ascending, from zero        shrink: a block a piece, 16 ranks, up to 32 tokens
 *     h   = ((p_0 + p_1) + p_2) ...                                            expand: each block for its own tokens
 *     y  += bf16(scale * h) B^T, mma of 16 ranks, ascending                    expand: a block 128 columns, up to 32 tokens
 *
 * Factors count as bf16, as in training. A token's sums are made of its own x and its own adapter alone: neither other tokens, nor which
 * segment or tile it is in, nor how many pieces run side by side, changes a bit.
 *
 * Shrink needs nothing of the base's product and has a stream of its own beside it, a branch of the recorded step: at 32 tokens that
 * product leaves half of HBM's time unused, which is more than all A of 32 adapters take, and shrink's launch is hidden too.
 *
 * Sums of pieces go through scratch. Where they would not fit, a block walks over the pieces instead and adds as it goes (the same
 * additions); for more than JOIN tokens a launch of its own adds them, since every block of expand would do it again.
 *
 * Bytes moved for T tokens on adapters of rank R: 2 R (K + N) an adapter (R 16, 4096 x 4096: 0.26 MB; 32 adapters 8.4 MB, which is what the
 * base's NF4 matrix takes), 2 T K, 4 T N, and sums of pieces 8 T R K / 512, which stay in L2. A shrink block has all of its 16 KB of A and
 * 1 KB a token of x on their way at once; 32 tokens on 32 adapters at K 4096 are 256 blocks, 2 a multiprocessor.
 *
 * Rejected: split k with atomics (the order of adding would be the arrivals'); padding all to the largest rank (rank 8 beside 256 would pay
 * 32-fold); one launch a segment. */
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/lora.h"
#include "kernels/cuda/product.h"

enum { WARPS = 4, THREADS = WARPS * 32, TOKENS = LK_CUDA_TILE_TOKENS, GROUPS = TOKENS / 8, JOIN = 64 };
enum { PIECE = 512, CHUNKS = PIECE / 8, ROW_BYTES = PIECE * 2, COLUMN_TILES = 2, COLUMNS = WARPS * COLUMN_TILES * 16 };
enum { RANKS = 256 /* of a pass of expand */ };

static_assert(GROUPS == WARPS, "in shrink a warp has eight tokens");

/* One of the layers that share x. */
typedef struct lora_part {
    const lk_cuda_adapter *adapters; /* of the site: an adapter every n_sites */
    float *h, *totals;               /* what the caller gets; [token][ranks], what expand reads when `summed` */
    int64_t ldh;
    void *y;
    int64_t ldy;
    int32_t n, blocks; /* blocks of expand along n */
    bool y_f32;
} lora_part;

typedef struct lora_args {
    const lk_cuda_tokens *tiles; /* empty ones at the end */
    int32_t n_sites;
    const lk_bf16 *x;
    int64_t ldx;
    int32_t k, rank_tiles; /* rank_tiles: blocks of shrink for the ranks of a part */
    bool x_eights;         /* x can be read 16 bytes at a time */
    bool walk;             /* shrink adds up all pieces */
    bool summed;           /* expand finds totals */
    float *sums;           /* [part][piece][token][ranks] */
    int32_t pieces, ranks;
    int64_t tokens;
    lora_part parts[LK_MOST_PARTS];
} lora_args;

LK_DEVICE const lk_cuda_adapter &adapter_of(const lora_args &p, int32_t of, const lk_cuda_tokens &tile)
{
    return p.parts[of].adapters[(int64_t)tile.adapter * p.n_sites];
}

/* ---------------------------------------------------------------------------------------------- shrink */

LK_DEVICE float value_of(lk_bf16 v) { return lk_bf16_float(v); }
LK_DEVICE float value_of(float v) { return v; }

/* Elements at .. at+7 of a row of `end`, as bf16; zeros from its end on. */
template <typename T> LK_DEVICE uint4 eight_of(const T *row, int32_t at, int32_t end)
{
    uint32_t w[4];
    LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t k = at + 2 * i;
        w[i] = lk_pack_bf16(k < end ? value_of(row[k]) : 0.0f, k + 1 < end ? value_of(row[k + 1]) : 0.0f);
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
}
LK_DEVICE uint4 eight_aligned(const float *p)
{
    const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
    return make_uint4(lk_pack_bf16(a.x, a.y), lk_pack_bf16(a.z, a.w), lk_pack_bf16(b.x, b.y), lk_pack_bf16(b.z, b.w));
}

LK_DEVICE unsigned char *chunk_place(unsigned char *rows, int row, int chunk)
{
    return rows + row * ROW_BYTES + (chunk & ~7) * 16 + lk_cuda_row_place(row, chunk & 7) * 16;
}

/* `count` rows of `all` in shared memory, the others zeros, from column first on. */
LK_DEVICE void stage_rows(unsigned char *rows, int all, const lk_bf16 *from, int64_t ld, int count, int32_t first, int32_t k, bool eights)
{
    for (int i = (int)threadIdx.x; i < all * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        int32_t at = first + chunk * 8;
        const lk_bf16 *own = from + row * ld;
        bool valid = row < count && at < k;
        if (eights)
            lk_async_copy16(chunk_place(rows, row, chunk), valid ? own + at : from, valid);
        else
            *(uint4 *)chunk_place(rows, row, chunk) = valid ? eight_of(own, at, k) : make_uint4(0, 0, 0, 0);
    }
}
LK_DEVICE void stage_rows(unsigned char *rows, int all, const float *from, int64_t ld, int count, int32_t first, int32_t k, bool eights)
{
    LK_UNROLL
    for (int i = 0; i < all * CHUNKS / THREADS; i++) { /* `all` is a constant: the loads of all rounds are on their way together */
        int row = ((int)threadIdx.x + i * THREADS) / CHUNKS, chunk = ((int)threadIdx.x + i * THREADS) % CHUNKS;
        int32_t at = first + chunk * 8;
        const float *own = from + row * ld;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row < count && at < k) v = eights ? eight_aligned(own + at) : eight_of(own, at, k);
        *(uint4 *)chunk_place(rows, row, chunk) = v;
    }
}

/* One piece: 16 ranks from rank0 on, eight tokens a warp. */
LK_DEVICE void multiply_piece(float sum[4], const unsigned char *a, const unsigned char *x, int warp, int lane)
{
    int g = lane / 4, t = lane % 4, token = warp * 8 + g;
    LK_UNROLL
    for (int depth = 0; depth < PIECE / 64; depth++) {
        uint32_t low[4][2], high[4][2], b[4][2];
        lk_cuda_row_pairs(low, a + g * ROW_BYTES + depth * 128, g, t);
        lk_cuda_row_pairs(high, a + (g + 8) * ROW_BYTES + depth * 128, g + 8, t);
        lk_cuda_row_pairs(b, x + token * ROW_BYTES + depth * 128, token, t);
        LK_UNROLL
        for (int step = 0; step < 4; step++) {
            const uint32_t four[4] = {low[step][0], high[step][0], low[step][1], high[step][1]};
            lk_mma_bf16(sum, four, b[step]);
        }
    }
}

LK_DEVICE void write_total(const lora_args &p, int32_t of, int64_t token, int32_t r, float total)
{
    p.parts[of].totals[token * p.ranks + r] = total;
    p.parts[of].h[token * p.parts[of].ldh + r] = total;
}

LK_KERNEL void __launch_bounds__(THREADS) shrink_kernel(lora_args p)
{
    LK_SHARED(unsigned char, a, 16 * ROW_BYTES);
    LK_SHARED(unsigned char, x, TOKENS *ROW_BYTES);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const lk_cuda_tokens tile = p.tiles[blockIdx.z];
    if (tile.count == 0) return;
    int32_t of = (int32_t)blockIdx.y / p.rank_tiles, rank0 = (int32_t)blockIdx.y % p.rank_tiles * 16;
    const lk_cuda_adapter adapter = adapter_of(p, of, tile);
    int32_t ranks = adapter.rank - rank0 < 16 ? adapter.rank - rank0 : 16;
    if (ranks <= 0) return;
    bool eights = p.k % 8 == 0 && (uintptr_t)adapter.a % 16 == 0;
    int32_t piece = p.walk ? 0 : (int32_t)blockIdx.x, last = p.walk ? p.pieces - 1 : piece, rows = (tile.count + 7) / 8 * 8;
    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (bool first = true; piece <= last; piece++, first = false) {
        int32_t from = piece * PIECE;
        if (!first) lk_block_sync(); /* all have read the piece before it */
        if (adapter.is_bf16)
            stage_rows(a, 16, (const lk_bf16 *)adapter.a + (int64_t)rank0 * p.k, p.k, ranks, from, p.k, eights);
        else
            stage_rows(a, 16, (const float *)adapter.a + (int64_t)rank0 * p.k, p.k, ranks, from, p.k, eights);
        stage_rows(x, rows, p.x + tile.first * p.ldx, p.ldx, tile.count, from, p.k, p.x_eights);
        lk_async_commit();
        lk_async_wait<0>();
        lk_block_sync();
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (warp * 8 < tile.count) multiply_piece(sum, a, x, warp, lane);
        LK_UNROLL
        for (int i = 0; i < 4; i++) total[i] = first ? sum[i] : lk_add_rn(total[i], sum[i]);
    }
    LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t r = lane / 4 + 8 * (i / 2), token = warp * 8 + 2 * (lane % 4) + i % 2;
        if (r >= ranks || token >= tile.count) continue;
        if (p.walk)
            write_total(p, of, tile.first + token, rank0 + r, total[i]);
        else
            p.sums[(((int64_t)of * p.pieces + last) * p.tokens + tile.first + token) * p.ranks + rank0 + r] = total[i];
    }
}

/* ---------------------------------------------------------------------------------------------- expand */

LK_DEVICE float joined(const lora_args &p, int32_t of, int64_t token, int32_t r)
{
    if (p.summed) return p.parts[of].totals[token * p.ranks + r];
    const float *at = p.sums + ((int64_t)of * p.pieces * p.tokens + token) * p.ranks + r;
    float total = *at;
    LK_UNROLL
    for (int32_t piece = 1; piece < p.pieces; piece++) total = lk_add_rn(total, at[piece * p.tokens * p.ranks]);
    return total;
}

LK_KERNEL void lora_join_kernel(lora_args p)
{
    const lk_cuda_tokens tile = p.tiles[blockIdx.x];
    if (tile.count == 0) return;
    int32_t of = (int32_t)blockIdx.y, rank = adapter_of(p, of, tile).rank;
    for (int32_t i = (int32_t)threadIdx.x; i < tile.count * rank; i += THREADS) {
        int64_t token = tile.first + i / rank;
        write_total(p, of, token, i % rank, joined(p, of, token, i % rank));
    }
}

/* Ranks at .. at+3 of a row of B as two pairs of bf16. */
template <typename T> LK_DEVICE uint2 four_of(const T *row, int32_t at, int32_t rank)
{
    float v[4];
    LK_UNROLL
    for (int i = 0; i < 4; i++) v[i] = at + i < rank ? value_of(row[at + i]) : 0.0f;
    return make_uint2(lk_pack_bf16(v[0], v[1]), lk_pack_bf16(v[2], v[3]));
}
LK_DEVICE uint2 four_aligned(const lk_bf16 *p) { return *(const uint2 *)p; }
LK_DEVICE uint2 four_aligned(const float *p)
{
    const float4 v = *(const float4 *)p;
    return make_uint2(lk_pack_bf16(v.x, v.y), lk_pack_bf16(v.z, v.w));
}

LK_DEVICE void add_to(const lora_part &p, int64_t token, int32_t column, float sum)
{
    int64_t at = token * p.ldy + column;
    if (p.y_f32)
        ((float *)p.y)[at] = lk_add_rn(((const float *)p.y)[at], sum);
    else
        ((lk_bf16 *)p.y)[at] = lk_float_bf16(lk_add_rn(lk_bf16_float(((const lk_bf16 *)p.y)[at]), sum));
}

/* Ranks [from, from + RANKS) of every token of the tile as bf16(scale * h), zeros beyond a token or a rank. */
LK_DEVICE void stage_hidden(unsigned char *hidden, int hidden_bytes, const lora_args &p, int32_t of, bool writes,
                            const lk_cuda_tokens &tile, int32_t rank, float scale, int32_t from)
{
    int32_t left = (rank - from + 15) / 16 * 16, ranks = left < RANKS ? left : (int32_t)RANKS, rows = (tile.count + 7) / 8 * 8;
    for (int32_t i = (int32_t)threadIdx.x; i < rows * ranks; i += THREADS) {
        int32_t token = i / ranks, r = from + i % ranks;
        float value = 0.0f;
        if (token < tile.count && r < rank) {
            value = joined(p, of, tile.first + token, r);
            if (writes && !p.summed) p.parts[of].h[(tile.first + token) * p.parts[of].ldh + r] = value;
        }
        *(lk_bf16 *)(hidden + token * hidden_bytes + (r - from) * 2) = lk_float_bf16(lk_mul_rn(value, scale));
    }
}

/* A warp's COLUMN_TILES tiles of 16 columns, over the staged ranks. As in fragments.h the 16 ranks of a step may come in any order: lane t
 * has 4t .. 4t+3 of them. */
template <typename T>
LK_DEVICE void multiply_ranks(float sum[COLUMN_TILES][GROUPS][4], int32_t n, int32_t count, const T *b, int32_t rank, int32_t from,
                              const unsigned char *hidden, int hidden_bytes, int32_t column0, int lane)
{
    int g = lane / 4, t = lane % 4;
    bool aligned = rank % 4 == 0 && (uintptr_t)b % 16 == 0;
    int32_t end = rank - from < RANKS ? rank - from : (int32_t)RANKS;
    for (int32_t step = 0; step < end; step += 16) {
        int32_t r = from + step + 4 * t;
        uint32_t a[COLUMN_TILES][4];
        LK_UNROLL
        for (int c = 0; c < COLUMN_TILES; c++) LK_UNROLL
        for (int high = 0; high < 2; high++) {
            int32_t column = column0 + c * 16 + g + 8 * high;
            const T *row = b + (int64_t)column * rank;
            uint2 v = make_uint2(0, 0);
            if (column < n && r < rank) v = aligned ? four_aligned(row + r) : four_of(row, r, rank);
            a[c][high] = v.x;
            a[c][2 + high] = v.y;
        }
        LK_UNROLL
        for (int group = 0; group < GROUPS; group++) {
            if (group * 8 >= count) break; /* the same for all lanes */
            const uint2 v = *(const uint2 *)(hidden + (group * 8 + g) * hidden_bytes + (step + 4 * t) * 2);
            const uint32_t two[2] = {v.x, v.y};
            LK_UNROLL
            for (int c = 0; c < COLUMN_TILES; c++) lk_mma_bf16(sum[c][group], a[c], two);
        }
    }
}

LK_KERNEL void __launch_bounds__(THREADS, 4) expand_kernel(lora_args p)
{
    LK_SHARED(unsigned char, hidden, TOKENS *(RANKS + 16) * 2);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const lk_cuda_tokens tile = p.tiles[blockIdx.y];
    if (tile.count == 0) return;
    int32_t of = 0, block = (int32_t)blockIdx.x;
    while (block >= p.parts[of].blocks) block -= p.parts[of++].blocks;
    const lk_cuda_adapter adapter = adapter_of(p, of, tile);
    int32_t n = p.parts[of].n, column0 = block * COLUMNS + warp * COLUMN_TILES * 16;
    int steps = ((adapter.rank < RANKS ? adapter.rank : (int)RANKS) + 15) / 16;
    int hidden_bytes = (steps | 1) * 32; /* an odd number of 32 bytes: four rows then lie in different banks */
    float sum[COLUMN_TILES][GROUPS][4] = {};
    for (int32_t from = 0; from < adapter.rank; from += RANKS) {
        if (from > 0) lk_block_sync(); /* all have read the ranks before these */
        stage_hidden(hidden, hidden_bytes, p, of, block == 0, tile, adapter.rank, adapter.scale, from);
        lk_block_sync();
        if (adapter.is_bf16)
            multiply_ranks(sum, n, tile.count, (const lk_bf16 *)adapter.b, adapter.rank, from, hidden, hidden_bytes, column0, lane);
        else
            multiply_ranks(sum, n, tile.count, (const float *)adapter.b, adapter.rank, from, hidden, hidden_bytes, column0, lane);
    }
    if (adapter.rank == 0) return; /* y stays as it is, a negative zero too */
    LK_UNROLL
    for (int c = 0; c < COLUMN_TILES; c++) LK_UNROLL
    for (int group = 0; group < GROUPS; group++) LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t column = column0 + c * 16 + lane / 4 + 8 * (i / 2), token = group * 8 + 2 * (lane % 4) + i % 2;
        if (column < n && token < tile.count) add_to(p.parts[of], tile.first + token, column, sum[c][group][i]);
    }
}

/* ---------------------------------------------------------------------------------------------- the operation */

static int64_t pieces_of(int64_t k) { return (k + PIECE - 1) / PIECE; }
static size_t totals_bytes(int64_t tokens, int64_t ranks) { return lk_cuda_carved((size_t)(tokens * ranks) * sizeof(float)); }

extern "C" size_t lk_cuda_lora_serve_scratch(const lk_limits *l)
{
    if (!l->adapters) return 0;
    int64_t tokens = l->tokens < JOIN ? l->tokens : (int64_t)JOIN, rank = lk_cuda_rank_class(l->rank);
    return LK_MOST_PARTS * (totals_bytes(l->tokens, rank) + lk_cuda_carved((size_t)(pieces_of(l->width) * tokens * rank) * sizeof(float)));
}

/* What a call launches. */
typedef struct lora_run {
    lora_args args;
    unsigned used, tiles; /* parts that an adapter of the batch touches */
} lora_run;

static lk_status shrink(lk_backend *be, lora_run *run, lk_rt_stream stream)
{
    lora_args *p = &run->args;
    dim3 pieces(p->walk ? 1 : (unsigned)p->pieces, run->used * (unsigned)p->rank_tiles, run->tiles);
    LK_LAUNCH("lora_shrink", shrink_kernel, pieces, dim3(THREADS), 0, stream, *p);
    LK_TRY(lk_rt_launched("lora_shrink", &be->error));
    p->summed = p->walk;
    if (p->summed || p->tokens <= JOIN) return LK_OK;
    LK_LAUNCH("lora_join", lora_join_kernel, dim3(run->tiles, run->used), dim3(THREADS), 0, stream, *p);
    p->summed = true;
    return lk_rt_launched("lora_join", &be->error);
}

static lk_status expand(lk_backend *be, const lora_run *run)
{
    dim3 columns(0, run->tiles);
    for (unsigned i = 0; i < run->used; i++) columns.x += (unsigned)run->args.parts[i].blocks;
    LK_LAUNCH("lora_expand", expand_kernel, columns, dim3(THREADS), 0, lk_cuda_of(be)->stream, run->args);
    return lk_rt_launched("lora_expand", &be->error);
}

static lk_status prepare(lk_backend *be, lora_run *run, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x)
{
    lk_cuda *cu = lk_cuda_of(be);
    lora_args &p = run->args;
    int64_t n_tiles = cu->tables.bounds.tiles;
    *run = {};
    if (n_tiles == 0) return LK_OK;
    for (int i = 0; i < n; i++) { /* parts that no adapter touches drop out */
        const lk_part *from = &parts[i];
        int32_t rank = cu->adapters.site_ranks[from->site];
        if (rank == 0) continue;
        if (rank > p.ranks) p.ranks = rank;
        if (from->y.cols > INT32_MAX / 2)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "lora_forward: %lld columns", (long long)from->y.cols);
        lora_part *to = &p.parts[run->used++];
        to->adapters = cu->adapters.entries + from->site;
        to->h = (float *)from->h.data;
        to->ldh = from->h.stride;
        to->y = from->y.data;
        to->ldy = from->y.stride;
        to->y_f32 = from->y.type == LK_F32;
        to->n = (int32_t)from->y.cols;
        to->blocks = (to->n + COLUMNS - 1) / COLUMNS;
    }
    if (run->used == 0) return LK_OK;
    if (n_tiles > 65535 || p.ranks > 65535 || x->cols > INT32_MAX / 2)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "lora_forward: %lld tiles of tokens at rank %d are more than the kernels count",
                       (long long)n_tiles, p.ranks);
    p.tiles = cu->tables.tiles;
    p.n_sites = batch->n_sites;
    p.x = (const lk_bf16 *)x->data;
    p.ldx = x->stride;
    p.k = (int32_t)x->cols;
    p.rank_tiles = (p.ranks + 15) / 16;
    p.x_eights = lk_cuda_eights(x);
    p.pieces = (int32_t)pieces_of(x->cols);
    p.tokens = x->rows;
    run->tiles = (unsigned)n_tiles;
    size_t totals = run->used * totals_bytes(p.tokens, p.ranks), sums = (size_t)(run->used * p.pieces * p.tokens * p.ranks) * sizeof(float);
    if (totals > cu->branch_bytes)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "lora_forward: needs %zu bytes of scratch and lk_reserve made %zu: limits too small",
                       totals, cu->branch_bytes);
    void *rest = (char *)cu->scratch + cu->scratch_bytes - cu->branch_bytes;
    for (unsigned i = 0; i < run->used; i++) p.parts[i].totals = (float *)lk_cuda_carve(&rest, totals_bytes(p.tokens, p.ranks));
    p.sums = (float *)rest;
    p.walk = totals + sums > cu->branch_bytes;
    return LK_OK;
}

extern "C" lk_status lk_cuda_lora_serve(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x)
{
    lora_run run;
    LK_TRY(prepare(be, &run, batch, parts, n, x));
    if (run.used == 0) return LK_OK;
    LK_TRY(shrink(be, &run, lk_cuda_of(be)->stream));
    return expand(be, &run);
}

extern "C" lk_status lk_cuda_lora_serve_linears(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x)
{
    lk_cuda *cu = lk_cuda_of(be);
    lora_run run;
    LK_TRY(prepare(be, &run, batch, parts, n, x));
    if (run.used == 0) return lk_cuda_serve_linears(be, parts, n, x);
    LK_TRY(lk_rt_event_record(cu->reached, cu->stream, &be->error));
    LK_TRY(lk_rt_stream_wait(cu->beside, cu->reached, &be->error));
    lk_status status = shrink(be, &run, cu->beside);
    if (!status) status = lk_cuda_serve_linears(be, parts, n, x);
    LK_TRY(lk_rt_event_record(cu->joined, cu->beside, &be->error)); /* also after a failure: a recording may not end with a branch open */
    LK_TRY(lk_rt_stream_wait(cu->stream, cu->joined, &be->error));
    return status ? status : expand(be, &run);
}
