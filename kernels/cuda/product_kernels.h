/* The kernels behind product.h, for any weights W that can be loaded, unpacked into tensor-core fragments and accumulated. Weights are the
 * A operand of mma.m16n8k16 (16 rows of w), tokens the B operand (8 tokens).
 *
 * few_kernel, up to 8 tokens: a decoding step of few sequences, bound by the bytes of w. A block takes 16 rows of w over all of K, its
 * warps take pieces; they join their sums in shared memory, in order. A warp keeps the next 8 depths of codes on their way in registers
 * (NF4: 4 KB; dense: 2 depths, 4 KB), so that 16 warps of a multiprocessor have 64 KB under way, where latency times bandwidth of an H200
 * asks 36 KB (4.8 TB/s, 1 us, 132 multiprocessors). x comes by asynchronous copies into slots of the warp's own, eight depths ahead like
 * the codes; where K is no more than a round of pieces (4096) it is fetched once and stays. Blocks are as many as fit at once and walk over
 * the rows: the pair table is written once, while the first codes are on their way. Arithmetic of a tile (16 x 64 weights, 512 bytes):
 * shared memory is read for 16 table lookups and 8 cycles of x, 2 cycles for shuffled scales: 26 cycles; some 80 instructions over four
 * schedulers: 20 cycles. HBM delivers a tile in 23 cycles at 4.8 TB/s and 26 at the 4.3 TB/s that a copy reaches (1.75 GHz): the design is
 * level with the copy rate and 75 % leaves a third of slack. Computed, not measured.
 *
 * tiles_kernel, middle_kernel and prompt_kernel, more tokens: a block takes 128 or 256 rows of w and a tile of tokens, x and codes go
 * through a ring of stages in shared memory, each warp unpacks its own rows in registers. Shapes (layout below): 16 rows a warp and 16 or
 * 32 tokens; for 17 to 64 tokens of NF4 32 rows a warp, which share what is read of x: at 32 tokens a tile costs 36 cycles of shared memory
 * instead of 52, at 64 52 instead of 84, beside 26 and 52 of mma (2048 products a cycle at 62 %, which is what mma.sync reaches of
 * wgmma's rate); 32 rows and 128 tokens for prompts, 104 beside 104. With few rows of blocks each block takes one piece of K and writes its
 * sum; a second kernel joins them (the same bits: see product.h). Parts with one x share both launches.
 *
 * Computed for a layer of Llama-3.1-8B (213,000 tiles) on an H200, 2 us a launch, sums of pieces at 5.5 TB/s of L2: at 32 tokens 59 us
 * (tiles 36, sums 9, launches 14; with 16 rows a warp and every part in launches and pieces of its own 96); at 128 tokens 156 us (tiles
 * 105, sums 37, launches 14; in two halves of 64 it was 290).
 *
 * Rejected: split k by atomics or by the number of tokens (bits would depend on company); x through L1 straight into fragments (8 lines a
 * load); a table of 16 entries (twice the lookups); prmt arithmetic instead of a table (96 cycles of half-rate instructions a tile);
 * wgmma for prompts (weights would have to be written to shared memory, and its order of adding would be another one). */
#ifndef LK_KERNELS_CUDA_PRODUCT_KERNELS_H
#define LK_KERNELS_CUDA_PRODUCT_KERNELS_H

#include "kernels/cuda/device.h"
#include "kernels/cuda/product.h"

enum { WARPS = 8, THREADS = WARPS * 32, DEPTH = 64, PIECE = LK_CUDA_PIECE / DEPTH, ROW_BYTES = DEPTH * 2 };
enum { FEW = 8, SLOT_BYTES = FEW * ROW_BYTES, OUTPUTS = 16 * FEW };
enum { IN_PIECES = 128 }; /* tokens that may go in pieces: as many as scratch has room for (product.c) */

/* By value into kernels. */
typedef struct product {
    const lk_bf16 *x;
    int64_t ldx;
    int32_t tokens, n, depths, chunks; /* chunks: readable 16-byte groups of a row of x */
    void *y;
    int64_t ldy;
    const void *residual;
    int64_t ldr;
    const float *bias;
    float *partials; /* [piece][token][n], or NULL: write y */
    bool y_f32;
} product;

/* value + bias + residual into y. */
LK_DEVICE void finish(const product &p, int32_t token, int32_t row, float value)
{
    if (p.bias) value = lk_add_rn(value, p.bias[row]);
    int64_t at = token * p.ldy + row, from = token * p.ldr + row;
    if (p.y_f32) {
        if (p.residual) value = lk_add_rn(value, ((const float *)p.residual)[from]);
        ((float *)p.y)[at] = value;
    } else {
        if (p.residual) value = lk_add_rn(value, lk_bf16_float(((const lk_bf16 *)p.residual)[from]));
        ((lk_bf16 *)p.y)[at] = lk_float_bf16(value);
    }
}

/* The 16 bytes `chunk` (of 8) of depth `depth` of a token into a row of 128 bytes; zeros where there is none. */
template <typename W> LK_DEVICE void copy_x(unsigned char *rows, const product &p, int32_t row, int32_t chunk, int32_t token, int32_t depth)
{
    int32_t at = depth * (DEPTH / 8) + chunk;
    bool valid = token < p.tokens && at < p.chunks;
    lk_async_copy16(rows + row * ROW_BYTES + W::place(row, chunk) * 16, valid ? p.x + token * p.ldx + at * 8 : p.x, valid);
}

/* ---------------------------------------------------------------------------------------------- up to 8 tokens */

/* Where a warp is: 16 rows of w, and which round of pieces. */
typedef struct place {
    int32_t tile, round;
} place;

LK_DEVICE place next_place(place at, int32_t rounds, int32_t stride)
{
    if (at.round + 1 < rounds) return {at.tile, at.round + 1};
    return {at.tile + stride, 0};
}

LK_DEVICE void clear_slots(unsigned char *slots, int lane) /* tokens that are not there stay zero */
{
    for (int i = lane; i < PIECE * SLOT_BYTES / 16; i += 32) ((uint4 *)slots)[i] = make_uint4(0, 0, 0, 0);
    lk_warp_sync();
}

template <typename W> LK_DEVICE void stage_slot(unsigned char *slot, const product &p, int32_t depth, int lane)
{
    if (depth < p.depths)
        for (int i = lane; i < p.tokens * 8; i += 32) copy_x<W>(slot, p, i / 8, i % 8, i / 8, depth);
}

/* Adds the pieces of a round to the running total of one output, and writes it after the last round. */
LK_DEVICE void join_round(float *total, const product &p, const float *part, place at, int32_t rounds)
{
    int i = (int)threadIdx.x, lane = i / 4, pieces = (p.depths + PIECE - 1) / PIECE;
    for (int w = 0; w < WARPS; w++) {
        int piece = at.round * WARPS + w;
        if (piece >= pieces) break;
        float value = part[w * OUTPUTS + i];
        *total = piece == 0 ? value : lk_add_rn(*total, value);
    }
    int32_t row = at.tile * 16 + lane / 4 + 8 * (i % 4 / 2), token = 2 * (lane % 4) + i % 2;
    if (at.round + 1 == rounds && row < p.n && token < p.tokens) finish(p, token, row, *total);
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
    unsigned char *table = shared, *slots = shared + W::TABLE_BYTES + warp * PIECE * SLOT_BYTES;
    float *parts = (float *)(shared + W::TABLE_BYTES + WARPS * PIECE * SLOT_BYTES); /* two of [WARPS][OUTPUTS] */
    int32_t tiles = (p.n + 15) / 16, rounds = (p.depths + WARPS * PIECE - 1) / (WARPS * PIECE);

    place at = {own, 0};
    int32_t depth0 = warp * PIECE;
    typename W::codes ring[W::RING];
    LK_UNROLL
    for (int i = 0; i < W::RING; i++) W::load(ring[i], w, at.tile, depth0 + i, lane);
    typename W::raw raw;
    W::load_scales(raw, w, at.tile, depth0, lane);
    clear_slots(slots, lane);
    LK_UNROLL
    for (int slot = 0; slot < PIECE; slot++) {
        stage_slot<W>(slots + slot * SLOT_BYTES, p, depth0 + slot, lane);
        lk_async_commit();
    }
    W::fill_table(table, w);
    lk_block_sync();

    float total = 0.0f;
    for (int flip = 0; at.tile < tiles; flip ^= 1) {
        place next = next_place(at, rounds, stride);
        int32_t next_depth0 = (next.round * WARPS + warp) * PIECE;
        typename W::scales scales;
        W::finish_scales(scales, raw, w, table);
        W::load_scales(raw, w, next.tile, next_depth0, lane);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        LK_UNROLL
        for (int slot = 0; slot < PIECE; slot++) {
            lk_async_wait<PIECE - 1>(); /* one group a slot: all but the seven that follow have arrived */
            lk_warp_sync();
            if (depth0 + slot < p.depths) {
                uint32_t a[4][4], b[4][2];
                float scale[2];
                W::x_fragments(b, slots + slot * SLOT_BYTES, lane);
                W::unpack(a, ring[slot % W::RING], table, lane);
                W::scale_at(scale, scales, slot, lane);
                W::accumulate(sum, a, b, scale);
            }
            bool here = slot + W::RING < PIECE;
            W::load(ring[slot % W::RING], w, here ? at.tile : next.tile,
                    here ? depth0 + slot + W::RING : next_depth0 + slot + W::RING - PIECE, lane);
            if (rounds > 1) {
                lk_warp_sync(); /* all lanes have read the slot */
                if (next.tile < tiles) stage_slot<W>(slots + slot * SLOT_BYTES, p, next_depth0 + slot, lane);
            }
            lk_async_commit();
        }
        float *part = parts + flip * WARPS * OUTPUTS; /* two in turn: a barrier lies between reading one and writing it again */
        *(float4 *)(part + warp * OUTPUTS + lane * 4) = make_float4(sum[0], sum[1], sum[2], sum[3]);
        lk_block_sync();
        if (threadIdx.x < OUTPUTS) join_round(&total, p, part, at, rounds);
        at = next;
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

/* Tokens [token0, token0 + TOKENS) and GROUP tiles of rows at one depth. */
template <typename W, int TOKENS, int GROUP>
LK_DEVICE void stage_depth(unsigned char *stage, const W &w, const product &p, int32_t tile0, int32_t token0, int32_t depth)
{
    int thread = (int)threadIdx.x;
    LK_UNROLL
    for (int i = 0; i < (TOKENS * 8 + THREADS - 1) / THREADS; i++) {
        int id = thread + i * THREADS;
        if (id < TOKENS * 8) copy_x<W>(stage, p, id / 8, id % 8, token0 + id / 8, depth);
    }
    static_assert(GROUP == WARPS || GROUP == 2 * WARPS, "a warp stages one tile of rows, or two");
    W::stage(stage + TOKENS * ROW_BYTES + thread / 32 * W::TILE_BYTES, w, tile0 + thread / 32, depth, thread % 32);
    if (GROUP == WARPS) return;
    stage += WARPS * W::TILE_BYTES;
    W::stage(stage + TOKENS * ROW_BYTES + thread / 32 * W::TILE_BYTES, w, tile0 + WARPS + thread / 32, depth, thread % 32);
}

/* Adds a finished piece to the running total and clears it. Totals lie in shared memory, four floats of a thread together: they are touched
 * once in 8 depths, and would cost as many registers as the sums. The last total stays in `sum`. */
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

template <int RT, int NT> LK_DEVICE void write_sums(const float sum[RT][NT][4], const product &p, int32_t tile, int32_t token0, int lane)
{
    LK_UNROLL
    for (int r = 0; r < RT; r++) LK_UNROLL
    for (int t = 0; t < NT; t++) LK_UNROLL
    for (int i = 0; i < 4; i++) {
        int32_t row = (tile + r) * 16 + lane / 4 + 8 * (i / 2), token = token0 + t * 8 + 2 * (lane % 4) + i % 2;
        if (row >= p.n || token >= p.tokens) continue;
        if (p.partials)
            p.partials[((int64_t)blockIdx.z * p.tokens + token) * p.n + row] = sum[r][t][i];
        else
            finish(p, token, row, sum[r][t][i]);
    }
}

/* A shape: RT tiles of 16 rows and NT of 8 tokens a warp, WT warps side by side along the tokens. Shared memory: the table, the ring, the
 * totals. CYCLES: what a tile of 16 x 64 weights costs a multiprocessor, by reading shared memory (20 for codes and lookups, 8 for x), or
 * by the bytes that HBM brings a cycle. */
template <typename W, int RT, int NT, int WT> struct layout {
    static constexpr int TOKENS = NT * 8 * WT, GROUP = WARPS / WT * RT, STAGES = WT == 1 ? 4 : 3;
    static constexpr int STAGE_BYTES = TOKENS * ROW_BYTES + GROUP * W::TILE_BYTES, TOTALS = W::TABLE_BYTES + STAGES * STAGE_BYTES;
    static constexpr int BYTES = TOTALS + THREADS * RT * NT * 16;
    static constexpr int READING = WT * (20 + 8 * NT / RT), ARRIVING = W::TILE_BYTES / 18;
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
    int32_t first = p.partials ? (int32_t)blockIdx.z * PIECE : 0, last = p.partials ? min(first + PIECE, p.depths) : p.depths;

    LK_UNROLL
    for (int s = 0; s < STAGES - 1; s++) {
        if (first + s < last) stage_depth<W, TOKENS, L::GROUP>(ring + s * STAGE_BYTES, w, p, tile0, token0, first + s);
        lk_async_commit();
    }
    typename W::scales scales[RT];
    W::fill_table(table, w);

    float sum[RT][NT][4];
    LK_UNROLL
    for (int i = 0; i < RT * NT * 4; i++) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
    for (int32_t depth = first; depth < last; depth++) {
        int32_t turn = depth - first, ahead = depth + STAGES - 1, slot = depth % PIECE;
        typename W::raw raw[RT];
        LK_UNROLL
        for (int r = 0; r < RT; r++)
            if (slot == 0) W::load_scales(raw[r], w, tile0 + mine + r, depth, lane);
        lk_async_wait<STAGES - 2>();
        lk_block_sync(); /* the stage has arrived for everyone, and everyone has left the one before it */
        if (ahead < last) stage_depth<W, TOKENS, L::GROUP>(ring + (turn + STAGES - 1) % STAGES * STAGE_BYTES, w, p, tile0, token0, ahead);
        lk_async_commit();
        const unsigned char *stage = ring + turn % STAGES * STAGE_BYTES, *x = stage + warp % WT * NT * SLOT_BYTES;
        uint32_t a[RT][4][4];
        float scale[RT][2];
        LK_UNROLL
        for (int r = 0; r < RT; r++) {
            typename W::codes codes;
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
        if (slot == PIECE - 1 || depth + 1 == last)
            join_piece<RT, NT>((float4 *)(shared + L::TOTALS), sum, depth - slot == first, depth + 1 == last);
    }
    write_sums<RT, NT>(sum, p, tile0 + mine, token0 + warp % WT * NT * 8, lane);
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

/* ---------------------------------------------------------------------------------------------- launching */

template <typename W> static constexpr size_t few_shared(void)
{
    return (size_t)(W::TABLE_BYTES + WARPS * PIECE * SLOT_BYTES) + 2 * WARPS * OUTPUTS * sizeof(float);
}
/* A kernel that wants more shared memory than the device has (99 KiB on the smaller ones) is not used there: others do its work with the
 * same bits. */
enum { SHARED_SM86 = 99 << 10, SHARED_SM80 = 163 << 10 };
static inline bool fits(lk_backend *be, size_t shared) { return shared <= lk_cuda_of(be)->device.shared_per_block; }
static inline lk_status allow(lk_backend *be, const void *kernel, size_t shared)
{
    return fits(be, shared) ? lk_rt_allow_shared(kernel, shared, &be->error) : LK_OK;
}

template <typename W> static lk_status allow_all(lk_backend *be)
{
    static_assert(small_tiles<W, 2>::BYTES <= SHARED_SM86 && small_tiles<W, 4>::BYTES <= SHARED_SM86, "somebody has to");
    static_assert(middle_tiles<W, 4>::BYTES <= SHARED_SM80 && middle_tiles<W, 8>::BYTES <= SHARED_SM80 &&
                      prompt_tiles<W>::BYTES <= SHARED_SM80,
                  "a data centre's device has all");
    LK_TRY(allow(be, (const void *)few_kernel<W>, few_shared<W>()));
    LK_TRY(allow(be, (const void *)tiles_kernel<W, 2>, small_tiles<W, 2>::BYTES));
    LK_TRY(allow(be, (const void *)tiles_kernel<W, 4>, small_tiles<W, 4>::BYTES));
    LK_TRY(allow(be, (const void *)middle_kernel<W, 4>, middle_tiles<W, 4>::BYTES));
    LK_TRY(allow(be, (const void *)middle_kernel<W, 8>, middle_tiles<W, 8>::BYTES));
    return allow(be, (const void *)prompt_kernel<W>, prompt_tiles<W>::BYTES);
}

static inline product product_of(const lk_cuda_product *c)
{
    product p = {};
    p.x = (const lk_bf16 *)c->x;
    p.ldx = c->ldx;
    p.tokens = (int32_t)c->tokens;
    p.n = (int32_t)c->w->base.n;
    p.depths = (int32_t)((c->w->base.k + DEPTH - 1) / DEPTH);
    p.chunks = (int32_t)(lk_cuda_padded(c->w->base.k) / 8);
    p.y = c->y;
    p.ldy = c->ldy;
    p.residual = c->residual;
    p.ldr = c->ldr;
    p.bias = c->bias;
    p.y_f32 = c->y_f32;
    return p;
}

/* Whether up to IN_PIECES tokens are faster in pieces of K. Times in units of what a piece of a group of rows takes a multiprocessor (2 to
 * 4 us): over all of K the fullest one has ceil(groups / sms) * pieces of them; in pieces the work is spread evenly, the joining launch is
 * 1 more, and sums are written and read through L2: 128 bytes a tile of 16 rows, piece and token, of which a multiprocessor moves 24 a
 * cycle. Computed for an H200, not measured. */
template <typename L> static inline bool better_in_pieces(int64_t groups, int64_t pieces, int64_t tokens, int64_t sms)
{
    int64_t whole = (groups + sms - 1) / sms * pieces * sms, sums = 128 * tokens / 24, tiles = PIECE * L::CYCLES;
    return whole * tiles > groups * pieces * (tiles + sums) + sms * tiles;
}

template <typename L> static inline int64_t groups_of(const lk_cuda_product *c)
{
    return (c->w->base.n + L::GROUP * 16 - 1) / (L::GROUP * 16);
}

/* Sums of pieces for all parts, behind one another in the scratch, when that is better and they fit; returns the pieces, else 1. */
template <typename L> static inline int64_t cut_in_pieces(const lk_backend *be, lk_cuda_product *c, int n)
{
    int64_t pieces = (c->w->base.k + LK_CUDA_PIECE - 1) / LK_CUDA_PIECE, groups = 0, tokens = c->tokens, rows = 0;
    for (int i = 0; i < n; i++) {
        groups += groups_of<L>(&c[i]);
        rows += c[i].w->base.n;
    }
    bool room = (size_t)(pieces * tokens * rows) * sizeof(float) <= c->partials_bytes;
    if (tokens > IN_PIECES || pieces > 65535 || !room) return 1;
    if (!better_in_pieces<L>(groups, pieces, tokens, ((const lk_cuda *)be)->device.sms)) return 1;
    for (int i = 1; i < n; i++) c[i].partials = c[i - 1].partials + pieces * tokens * c[i - 1].w->base.n;
    return pieces;
}

/* One launch of a shape over all parts, and one that joins pieces. */
template <typename W, typename L>
static lk_status run_shape(lk_backend *be, const char *name, void (*kernel)(tiles_args<W>), const W *w, const lk_cuda_product *c, int n)
{
    tiles_args<W> a = {};
    lk_cuda_product parts[LK_MOST_PARTS] = {c[0]}; /* n is at least 1 */
    for (int i = 0; i < n; i++) parts[i] = c[i];
    int64_t pieces = cut_in_pieces<L>(be, parts, n);
    dim3 grid(0, (unsigned)((c->tokens + L::TOKENS - 1) / L::TOKENS), (unsigned)pieces);
    for (int i = 0; i < n; i++) {
        a.w[i] = w[i];
        a.p[i] = product_of(&parts[i]);
        a.p[i].partials = pieces > 1 ? parts[i].partials : NULL;
        a.groups[i] = (int32_t)groups_of<L>(&parts[i]);
        grid.x += (unsigned)a.groups[i];
    }
    LK_LAUNCH(name, kernel, grid, dim3(THREADS), (size_t)L::BYTES, lk_cuda_of(be)->stream, a);
    LK_TRY(lk_rt_launched(name, &be->error));
    return pieces > 1 ? lk_cuda_product_join(be, parts, n, pieces) : LK_OK;
}

/* More than 8 tokens. */
template <typename W> static lk_status run_tiles(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    typedef middle_tiles<W, 4> middle;
    typedef middle_tiles<W, 8> large;
    typedef prompt_tiles<W> prompt;
    int64_t tokens = c->tokens;
    if (tokens <= small_tiles<W, 2>::TOKENS) return run_shape<W, small_tiles<W, 2>>(be, W::tiles_name, tiles_kernel<W, 2>, w, c, n);
    if (tokens <= middle::TOKENS && fits(be, middle::BYTES)) return run_shape<W, middle>(be, W::tiles_name, middle_kernel<W, 4>, w, c, n);
    if (tokens > middle::TOKENS && tokens <= large::TOKENS && fits(be, large::BYTES))
        return run_shape<W, large>(be, W::tiles_name, middle_kernel<W, 8>, w, c, n);
    if (tokens > large::TOKENS && fits(be, prompt::BYTES)) return run_shape<W, prompt>(be, W::prompt_name, prompt_kernel<W>, w, c, n);
    return run_shape<W, small_tiles<W, 4>>(be, W::tiles_name, tiles_kernel<W, 4>, w, c, n);
}

/* Every product its share of the blocks that fit at once, by its tiles. */
template <typename W> static lk_status run_few(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    lk_cuda *cu = lk_cuda_of(be);
    few_args<W> a = {};
    int64_t all = 0, most = 2 * (int64_t)cu->device.sms;
    dim3 grid(0);
    for (int i = 0; i < n; i++) all += (c[i].w->base.n + 15) / 16;
    for (int i = 0; i < n; i++) {
        int64_t tiles = (c[i].w->base.n + 15) / 16, share = all > most ? tiles * most / all : tiles;
        a.w[i] = w[i];
        a.p[i] = product_of(&c[i]);
        a.blocks[i] = share > 1 ? (int32_t)share : 1;
        grid.x += (unsigned)a.blocks[i];
    }
    LK_LAUNCH(W::few_name, few_kernel<W>, grid, dim3(THREADS), few_shared<W>(), cu->stream, a);
    return lk_rt_launched(W::few_name, &be->error);
}

/* Products with one x. */
template <typename W> static lk_status run_products(lk_backend *be, const W *w, const lk_cuda_product *c, int n)
{
    for (int i = 0; i < n; i++)
        if (c[i].w->base.n >= INT32_MAX / 2 || c[i].w->base.k >= INT32_MAX / 2 || c[i].tokens >= 65535 * 32)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "linear: %lld rows of a matrix of %lld x %lld are more than the kernels count",
                           (long long)c[i].tokens, (long long)c[i].w->base.n, (long long)c[i].w->base.k);
    return c->tokens <= FEW && fits(be, few_shared<W>()) ? run_few(be, w, c, n) : run_tiles(be, w, c, n);
}

#endif
