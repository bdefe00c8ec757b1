/* The kernels behind product.h, for any weights W that can be loaded, unpacked into tensor-core fragments and accumulated. Weights are the
 * A operand of mma.m16n8k16 (16 rows of w), tokens the B operand (8 tokens). product_groups.h has the same for warp groups, which is what
 * more than 64 tokens of NF4 take on sm_90; product_launch.h chooses.
 *
 * few_kernel, up to 8 tokens: a decoding step of few sequences, bound by the bytes of w. A block takes 16 rows of w over all of K, its
 * warps take a piece each, or, where there are four pieces or fewer, two times 16 rows; they join their sums in shared memory, in order. A
 * warp keeps the next 8 depths of codes on their way in registers (NF4: 4 KB; dense: 2 depths, 4 KB), so that 16 warps of a multiprocessor
 * have 64 KB under way, where latency times bandwidth of an H200 asks 36 KB (4.8 TB/s, 1 us, 132 multiprocessors). x comes by asynchronous
 * copies: for K up to 4096 once for the block, where it stays; else into slots of the warp's own, eight depths ahead like the codes. Blocks
 * are as many as fit at once and walk over the rows: the pair table is written once, while the first codes are on their way. Arithmetic of
 * a tile (16 x 64 weights, 512 bytes): shared memory is read for 16 table lookups and 8 cycles of x, 2 cycles for shuffled scales: 26
 * cycles; some 80 instructions over four schedulers: 20 cycles. HBM delivers a tile in 23 cycles at 4.8 TB/s and 26 at the 4.3 TB/s that a
 * copy reaches (1.75 GHz): the design is level with the copy rate and 75 % leaves a third of slack. Computed, not measured.
 *
 * tiles_kernel, middle_kernel and prompt_kernel, more tokens: a block takes 128 or 256 rows of w and a tile of tokens, x and codes go
 * through a ring of stages in shared memory, each warp unpacks its own rows in registers. Shapes (layout below): 16 rows a warp and 16 or
 * 32 tokens; for 17 to 64 tokens of NF4 32 rows a warp, which share what is read of x. At 32 tokens codes go straight to registers: 32
 * cycles of shared memory a tile, and 33 for what comes through L2 (24 bytes a cycle and multiprocessor); with 16 rows a warp it would be
 * 52; at 64 tokens 52 beside 52 of mma (2048 products a cycle at 62 %, which is what mma.sync reaches of wgmma's rate); 32 rows and 128
 * tokens for prompts, 104 beside 104. With few rows of blocks each block takes one piece of K and writes its sum; a second kernel joins
 * them (the same bits: see product.h). Parts with one x share both launches.
 *
 * Computed for a layer of Llama-3.1-8B (213,000 tiles) on an H200, 2 us a launch, sums of pieces at 5.5 TB/s of L2, blocks in whole waves:
 * at 32 tokens 54 us (blocks 37, sums 3, launches 14); at 128 tokens 113 us by warp groups (blocks 87, sums 13, launches 14) and 141 us by
 * mma.sync. With pieces of 512 throughout, sums were 9 and 37 us: that is why there are at most eight, and four at K = 4096.
 *
 * Rejected: split k by atomics or by the number of tokens (bits would depend on company); x through L1 straight into fragments (8 lines a
 * load); a table of 16 entries (twice the lookups); prmt arithmetic instead of a table (96 cycles of half-rate instructions a tile); warp
 * groups for 17 to 64 tokens (with 32 tokens a tile 26 cycles of shared memory instead of 32, where L2 takes 33). */
#ifndef LK_KERNELS_CUDA_PRODUCT_KERNELS_H
#define LK_KERNELS_CUDA_PRODUCT_KERNELS_H

#include "kernels/cuda/device.h"
#include "kernels/cuda/product.h"

/* RUN: depths whose scales are loaded together; a piece is some runs. */
enum { WARPS = 8, THREADS = WARPS * 32, DEPTH = 64, RUN = 8, ROW_BYTES = DEPTH * 2 };
enum { FEW = 8, SLOT_BYTES = FEW * ROW_BYTES, OUTPUTS = 16 * FEW };
enum { IN_PIECES = 128 }; /* tokens that may go in pieces: as many as scratch has room for (product.c) */

/* By value into kernels. */
typedef struct product {
    const lk_bf16 *x;
    int64_t ldx;
    int32_t tokens, n, depths, chunks; /* chunks: readable 16-byte groups of a row of x */
    int32_t piece, pieces;             /* depths of a piece; pieces of K */
    int32_t in_hand; /* tiles of 16 rows that a block has at once, up to 8 tokens: with few pieces its warps share out two */
    void *y;
    int64_t ldy;
    const void *residual;
    int64_t ldr;
    const float *bias;
    float *partials; /* [piece][token][n], or NULL: write y */
    bool y_f32;
} product;

LK_DEVICE float residual_at(const product &p, int32_t token, int32_t row)
{
    int64_t at = token * p.ldr + row;
    return p.y_f32 ? ((const float *)p.residual)[at] : lk_bf16_float(((const lk_bf16 *)p.residual)[at]);
}

/* value + bias + residual into y, of which bias and residual count where there are some. */
LK_DEVICE void finish_with(const product &p, int32_t token, int32_t row, float value, float bias, float residual)
{
    if (p.bias) value = lk_add_rn(value, bias);
    if (p.residual) value = lk_add_rn(value, residual);
    int64_t at = token * p.ldy + row;
    if (p.y_f32)
        ((float *)p.y)[at] = value;
    else
        ((lk_bf16 *)p.y)[at] = lk_float_bf16(value);
}

LK_DEVICE void finish(const product &p, int32_t token, int32_t row, float value)
{
    finish_with(p, token, row, value, p.bias ? p.bias[row] : 0.0f, p.residual ? residual_at(p, token, row) : 0.0f);
}

/* The 16 bytes `chunk` (of 8) of depth `depth` of a token into a row of 128 bytes; zeros where there is none. */
template <typename W> LK_DEVICE void copy_x(unsigned char *rows, const product &p, int32_t row, int32_t chunk, int32_t token, int32_t depth)
{
    int32_t at = depth * (DEPTH / 8) + chunk;
    bool valid = token < p.tokens && at < p.chunks;
    lk_async_copy16(rows + row * ROW_BYTES + W::place(row, chunk) * 16, valid ? p.x + token * p.ldx + at * 8 : p.x, valid);
}

/* ---------------------------------------------------------------------------------------------- up to 8 tokens */

LK_DEVICE void clear_slots(unsigned char *slots, int lane) /* tokens that are not there stay zero */
{
    for (int i = lane; i < RUN * SLOT_BYTES / 16; i += 32) ((uint4 *)slots)[i] = make_uint4(0, 0, 0, 0);
    lk_warp_sync();
}

template <typename W> LK_DEVICE void stage_slot(unsigned char *slot, const product &p, int32_t depth, int lane)
{
    if (depth < p.depths)
        for (int i = lane; i < p.tokens * 8; i += 32) copy_x<W>(slot, p, i / 8, i % 8, i / 8, depth);
}

/* Joins the pieces of one output of one of the tiles in hand, and writes it. */
LK_DEVICE void join_warps(const product &p, const float *part, int32_t tiles, int32_t in_hand)
{
    int32_t which = (int32_t)threadIdx.x / OUTPUTS;
    if (which >= in_hand) return;
    int i = (int)threadIdx.x % OUTPUTS, lane = i / 4;
    const float *of = part + which * (WARPS / in_hand) * OUTPUTS + i;
    float total = of[0];
    for (int32_t piece = 1; piece < p.pieces; piece++) total = lk_add_rn(total, of[piece * OUTPUTS]);
    int32_t row = (tiles + which) * 16 + lane / 4 + 8 * (i % 4 / 2), token = 2 * (lane % 4) + i % 2;
    if (row < p.n && token < p.tokens) finish(p, token, row, total);
}

/* Products with one x: blocks [sum of those before, ... + blocks) take the tiles of a part in turn. */
template <typename W> struct few_args {
    W w[LK_MOST_PARTS];
    product p[LK_MOST_PARTS];
    int32_t blocks[LK_MOST_PARTS];
};

template <typename W> LK_KERNEL void __launch_bounds__(THREADS, 2) few_kernel(few_args<W> all)
{
    int32_t of = 0, own = (int32_t)blockIdx.x;
    while (own >= all.blocks[of]) own -= all.blocks[of++];
    const W &w = all.w[of];
    const product &p = all.p[of];
    int32_t stride = all.blocks[of];
    LK_SHARED_DYNAMIC(unsigned char, shared);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    unsigned char *table = shared, *all_slots = shared + W::TABLE_BYTES, *slots = all_slots + warp * RUN * SLOT_BYTES;
    float *parts = (float *)(all_slots + WARPS * RUN * SLOT_BYTES); /* two of [WARPS][OUTPUTS] */
    int32_t in_hand = p.in_hand, team = WARPS / in_hand, n_tiles = (p.n + 15) / 16;
    int32_t mine = warp / team, piece0 = warp % team * p.piece, piece_end = piece0 + min(p.piece, (p.depths + RUN - 1) / RUN * RUN);
    bool stays = p.depths <= WARPS * RUN; /* all of x, a slot a depth; else each warp brings what it needs */

    int32_t tile = own * in_hand + mine, depth0 = piece0; /* of the run at hand */
    typename W::codes ring[W::RING];
    LK_UNROLL
    for (int i = 0; i < W::RING; i++) W::load(ring[i], w, tile, depth0 + i, lane);
    typename W::raw raw;
    W::load_scales(raw, w, tile, depth0, lane);
    clear_slots(slots, lane);
    LK_UNROLL
    for (int slot = 0; slot < RUN; slot++) {
        stage_slot<W>(slots + slot * SLOT_BYTES, p, (stays ? warp * RUN : depth0) + slot, lane);
        lk_async_commit();
    }
    W::fill_table(table, w);
    if (stays) lk_async_wait<0>();
    lk_block_sync();

    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int flip = 0; tile - mine < n_tiles;) {
        bool ends = depth0 + RUN == piece_end; /* for all warps at once */
        int32_t next = ends ? tile + stride * in_hand : tile, next_depth0 = ends ? piece0 : depth0 + RUN;
        const unsigned char *x = stays ? all_slots + depth0 * SLOT_BYTES : slots;
        typename W::scales scales;
        W::finish_scales(scales, raw, w, table);
        W::load_scales(raw, w, next, next_depth0, lane);
        LK_UNROLL
        for (int slot = 0; slot < RUN; slot++) {
            lk_async_wait<RUN - 1>(); /* one group a slot: all but the seven that follow have arrived */
            lk_warp_sync();
            if (depth0 + slot < p.depths) {
                uint32_t a[4][4], b[4][2];
                float scale[2];
                W::x_fragments(b, x + slot * SLOT_BYTES, lane);
                W::unpack(a, ring[slot % W::RING], table, lane);
                W::scale_at(scale, scales, slot, lane);
                W::accumulate(sum, a, b, scale);
            }
            bool here = slot + W::RING < RUN;
            W::load(ring[slot % W::RING], w, here ? tile : next, here ? depth0 + slot + W::RING : next_depth0 + slot + W::RING - RUN, lane);
            if (!stays) {
                lk_warp_sync();                                                        /* all lanes have read the slot */
                stage_slot<W>(slots + slot * SLOT_BYTES, p, next_depth0 + slot, lane); /* after the last tile for nobody */
            }
            lk_async_commit();
        }
        if (ends) {
            float *part = parts + flip * WARPS * OUTPUTS; /* two in turn: a barrier lies between reading one and writing it again */
            *(float4 *)(part + warp * OUTPUTS + lane * 4) = make_float4(sum[0], sum[1], sum[2], sum[3]);
            lk_block_sync();
            join_warps(p, part, tile - mine, in_hand);
            sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
            flip ^= 1;
        }
        tile = next;
        depth0 = next_depth0;
    }
}

/* ---------------------------------------------------------------------------------------------- more tokens */

/* Products with one x: blocks [sum of those before, ... + groups) along x take the rows of a part, a group each. */
template <typename W> struct tiles_args {
    W w[LK_MOST_PARTS];
    product p[LK_MOST_PARTS];
    int32_t groups[LK_MOST_PARTS];
};

/* Tokens [token0, token0 + TOKENS) and, unless they go straight to registers, GROUP tiles of rows at one depth. */
template <typename W, int TOKENS, int GROUP, bool STRAIGHT>
LK_DEVICE void stage_depth(unsigned char *stage, const W &w, const product &p, int32_t tile0, int32_t token0, int32_t depth)
{
    int thread = (int)threadIdx.x;
    LK_UNROLL
    for (int i = 0; i < (TOKENS * 8 + THREADS - 1) / THREADS; i++) {
        int id = thread + i * THREADS;
        if (id < TOKENS * 8) copy_x<W>(stage, p, id / 8, id % 8, token0 + id / 8, depth);
    }
    if (STRAIGHT) return;
    static_assert(GROUP == WARPS || GROUP == 2 * WARPS, "a warp stages one tile of rows, or two");
    W::stage(stage + TOKENS * ROW_BYTES + thread / 32 * W::TILE_BYTES, w, tile0 + thread / 32, depth, thread % 32);
    if (GROUP == WARPS) return;
    stage += WARPS * W::TILE_BYTES;
    W::stage(stage + TOKENS * ROW_BYTES + thread / 32 * W::TILE_BYTES, w, tile0 + WARPS + thread / 32, depth, thread % 32);
}

/* Adds a finished piece to the running total and clears it. Totals lie in shared memory, four floats of a thread together: they are touched
 * once a piece, and would cost as many registers as the sums. The last total stays in `sum`. */
template <int RT, int NT> LK_DEVICE void join_piece(float4 *totals, float sum[RT][NT][4], bool first, bool last)
{
    LK_UNROLL
    for (int r = 0; r < RT; r++) LK_UNROLL
    for (int t = 0; t < NT; t++) {
        float *v = sum[r][t];
        float4 *mine = totals + (r * NT + t) * THREADS + threadIdx.x;
        if (!first) {
            const float4 old = *mine;
            v[0] = lk_add_rn(old.x, v[0]);
            v[1] = lk_add_rn(old.y, v[1]);
            v[2] = lk_add_rn(old.z, v[2]);
            v[3] = lk_add_rn(old.w, v[3]);
        }
        if (last) continue;
        *mine = make_float4(v[0], v[1], v[2], v[3]);
        v[0] = v[1] = v[2] = v[3] = 0.0f;
    }
}

/* The residual at 16 places of which a lane writes those that are inside, all on their way before the first is wanted. */
LK_DEVICE void read_residual(float out[16], const product &p, const int32_t row[2], const int32_t token[8])
{
    LK_UNROLL
    for (int i = 0; i < 16; i++) out[i] = 0.0f;
    if (!p.residual) return;
    int64_t at[16];
    LK_UNROLL
    for (int i = 0; i < 16; i++) at[i] = min(token[i / 4 * 2 + i % 2], p.tokens - 1) * p.ldr + min(row[i % 4 / 2], p.n - 1);
    if (p.y_f32) LK_UNROLL
    for (int i = 0; i < 16; i++) out[i] = ((const float *)p.residual)[at[i]];
    else LK_UNROLL for (int i = 0; i < 16; i++) out[i] = lk_bf16_float(((const lk_bf16 *)p.residual)[at[i]]);
}

/* A warp's tiles are `apart` from each other. */
template <int RT, int NT>
LK_DEVICE void write_sums(const float sum[RT][NT][4], const product &p, int32_t tile, int32_t apart, int32_t token0, int lane)
{
    static_assert(NT % 2 == 0, "tiles of 8 tokens go by four, or by two");
    constexpr int BY = NT % 4 ? 2 : 4;
    LK_UNROLL
    for (int r = 0; r < RT; r++) LK_UNROLL
    for (int t0 = 0; t0 < NT; t0 += BY) {
        int32_t row[2], token[8];
        float residual[16], bias[2] = {0.0f, 0.0f};
        LK_UNROLL
        for (int half = 0; half < 2; half++) {
            row[half] = (tile + r * apart) * 16 + lane / 4 + 8 * half;
            if (p.bias) bias[half] = p.bias[min(row[half], p.n - 1)];
        }
        LK_UNROLL
        for (int i = 0; i < 8; i++) token[i] = token0 + (t0 + i / 2) * 8 + 2 * (lane % 4) + i % 2;
        if (!p.partials) read_residual(residual, p, row, token);
        LK_UNROLL
        for (int i = 0; i < BY * 4; i++) {
            int32_t to_row = row[i % 4 / 2], to_token = token[i / 4 * 2 + i % 2];
            if (to_row >= p.n || to_token >= p.tokens) continue;
            float value = sum[r][t0 + i / 4][i % 4];
            if (p.partials)
                p.partials[((int64_t)blockIdx.z * p.tokens + to_token) * p.n + to_row] = value;
            else
                finish_with(p, to_token, to_row, value, bias[i % 4 / 2], residual[i]);
        }
    }
}

/* A shape: RT tiles of 16 rows and NT of 8 tokens a warp, WT warps side by side along the tokens. Shared memory: the table, the ring, the
 * totals. STRAIGHT: codes go from global memory to registers, a depth ahead and on their way to L2 eight before that. CYCLES: what a depth
 * of a block costs a multiprocessor: each tile of 16 x 64 weights by reading shared memory (16 for lookups, 4 for codes, 8 for x), or by
 * the bytes that L2 and HBM bring a cycle. */
template <typename W, int RT, int NT, int WT> struct layout {
    static constexpr bool STRAIGHT = RT == 2 && NT == 4;
    static constexpr int TOKENS = NT * 8 * WT, GROUP = WARPS / WT * RT, STAGES = WT == 1 ? 4 : 3;
    static constexpr int STAGE_BYTES = TOKENS * ROW_BYTES + (STRAIGHT ? 0 : GROUP * W::TILE_BYTES),
                         TOTALS = W::TABLE_BYTES + STAGES * STAGE_BYTES;
    static constexpr int BYTES = TOTALS + THREADS * RT * NT * 16;
    static constexpr int READING = GROUP * WT * ((STRAIGHT ? 16 : 20) + 8 * NT / RT), FROM_HBM = GROUP * W::TILE_BYTES / 18;
    static constexpr int FROM_L2 = (GROUP * W::TILE_BYTES + TOKENS * ROW_BYTES) / 24, ARRIVING = FROM_HBM > FROM_L2 ? FROM_HBM : FROM_L2;
    static constexpr int CYCLES = READING > ARRIVING ? READING : ARRIVING;
};

template <typename W, int NT> using small_tiles = layout<W, 1, NT, 1>;
template <typename W, int NT> using middle_tiles = layout<W, W::TILES_A_WARP, NT, 1>;
template <typename W> using prompt_tiles = layout<W, 2, 8, 2>;

/* With partials a block computes piece blockIdx.z. */
template <typename W, int RT, int NT, int WT> LK_DEVICE void multiply_tiles(const tiles_args<W> &all)
{
    int32_t of = 0, own = (int32_t)blockIdx.x;
    while (own >= all.groups[of]) own -= all.groups[of++];
    const W &w = all.w[of];
    const product &p = all.p[of];
    typedef layout<W, RT, NT, WT> L;
    constexpr int TOKENS = L::TOKENS, STAGES = L::STAGES, STAGE_BYTES = L::STAGE_BYTES;
    LK_SHARED_DYNAMIC(unsigned char, shared);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    unsigned char *table = shared, *ring = shared + W::TABLE_BYTES;
    int32_t tile0 = own * L::GROUP, token0 = (int32_t)blockIdx.y * TOKENS, mine = warp / WT * RT;
    int32_t first = p.partials ? (int32_t)blockIdx.z * p.piece : 0, last = p.partials ? min(first + p.piece, p.depths) : p.depths;

    LK_UNROLL
    for (int s = 0; s < STAGES - 1; s++) {
        if (first + s < last) stage_depth<W, TOKENS, L::GROUP, L::STRAIGHT>(ring + s * STAGE_BYTES, w, p, tile0, token0, first + s);
        lk_async_commit();
    }
    typename W::codes straight[RT]; /* of the depth that is next */
    LK_UNROLL
    for (int r = 0; r < RT; r++)
        if (L::STRAIGHT) {
            W::load(straight[r], w, tile0 + mine + r, first, lane);
            W::prefetch(w, tile0 + mine + r, first + 1, 8, lane);
        }
    typename W::scales scales[RT];
    W::fill_table(table, w);

    float sum[RT][NT][4];
    LK_UNROLL
    for (int i = 0; i < RT * NT * 4; i++) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
    for (int32_t depth = first; depth < last; depth++) {
        int32_t turn = depth - first, ahead = depth + STAGES - 1, slot = depth % RUN;
        typename W::raw raw[RT];
        LK_UNROLL
        for (int r = 0; r < RT; r++)
            if (slot == 0) W::load_scales(raw[r], w, tile0 + mine + r, depth, lane);
        lk_async_wait<STAGES - 2>();
        lk_block_sync(); /* the stage has arrived for everyone, and everyone has left the one before it */
        if (ahead < last)
            stage_depth<W, TOKENS, L::GROUP, L::STRAIGHT>(ring + (turn + STAGES - 1) % STAGES * STAGE_BYTES, w, p, tile0, token0, ahead);
        lk_async_commit();
        const unsigned char *stage = ring + turn % STAGES * STAGE_BYTES, *x = stage + warp % WT * NT * SLOT_BYTES;
        uint32_t a[RT][4][4];
        float scale[RT][2];
        LK_UNROLL
        for (int r = 0; r < RT; r++) {
            typename W::codes codes = straight[r];
            if (L::STRAIGHT) {
                W::load(straight[r], w, tile0 + mine + r, depth + 1, lane);
                W::prefetch(w, tile0 + mine + r, depth + 9, 1, lane);
            } else
                W::load_staged(codes, stage + TOKENS * ROW_BYTES + (mine + r) * W::TILE_BYTES, lane);
            if (slot == 0) W::finish_scales(scales[r], raw[r], w, table);
            W::unpack(a[r], codes, table, lane);
            W::scale_at(scale[r], scales[r], slot, lane);
        }
        LK_UNROLL
        for (int t = 0; t < NT; t++) {
            uint32_t b[4][2];
            W::x_fragments(b, x + t * SLOT_BYTES, lane);
            LK_UNROLL
            for (int r = 0; r < RT; r++) W::accumulate(sum[r][t], a[r], b, scale[r]);
        }
        if ((depth + 1) % p.piece == 0 || depth + 1 == last)
            join_piece<RT, NT>((float4 *)(shared + L::TOTALS), sum, depth < first + p.piece, depth + 1 == last);
    }
    write_sums<RT, NT>(sum, p, tile0 + mine, 1, token0 + warp % WT * NT * 8, lane);
}

template <typename W, int NT> LK_KERNEL void __launch_bounds__(THREADS, 2) tiles_kernel(tiles_args<W> all)
{
    multiply_tiles<W, 1, NT, 1>(all);
}
/* One block a multiprocessor: sums and fragments take twice the registers. */
template <typename W, int NT> LK_KERNEL void __launch_bounds__(THREADS, 3 - W::TILES_A_WARP) middle_kernel(tiles_args<W> all)
{
    multiply_tiles<W, W::TILES_A_WARP, NT, 1>(all);
}
template <typename W> LK_KERNEL void __launch_bounds__(THREADS, 1) prompt_kernel(tiles_args<W> all) { multiply_tiles<W, 2, 8, 2>(all); }

#endif
