/* Products of many tokens on sm_90: warp groups (wgmma) in place of warps. The same arithmetic, product.h's, and on every device that takes
 * this way the same bits as mma.sync: group_probe.cu has asked it.
 *
 * A block is two warp groups with M times 64 rows each and 128 tokens, one a multiprocessor. Warp w of a group unpacks the tiles of 16 rows
 * that lie at w, 4 + w ... into registers just as the other kernels do, since four neighbouring tiles are the A operand of an m64 product.
 * x is the B operand, straight from the ring of stages in shared memory, where W::place is the 128-byte swizzle. A depth of 64 rows and
 * 128 tokens is two chains of four products into two sets of registers, one for either half of the tokens, which are scaled into the sums
 * while the next codes are looked up. Codes come straight from global memory, a depth ahead, the eight after that on their way to L2.
 *
 * Cycles of a multiprocessor for a depth of 256 rows x 128 tokens (M = 2): tensor cores 1024 (2048 products a cycle); shared memory 512 for
 * x (each m64 product reads its 64 tokens), 256 for lookups, 128 for the copies of x, some 100 for running totals over K = 4096: 1000;
 * L2 25 KB (16 of x, 9 of codes), which at 24 bytes a cycle are 1040; four schedulers some 600 each. M = 1, 128 rows: 512, 512, 20.6 KB and
 * 860. So M = 2, unless its blocks leave multiprocessors idle. A group by itself would take some 810 cycles a depth: 512 of products, and
 * 300 between its chains, for scaling, lookups and the barrier. Two groups that take turns hide that; in step with each other they would
 * need 1320. Costs below count on 1230. Computed from the machine code that ptxas 13.0 makes, not measured.
 *
 * Rejected: both operands from shared memory (weights would be written there first: with 128 rows 128 cycles more, and read by every
 * product); 64 tokens a block (x and codes through L2 twice as often); multicast of x among clusters and descriptors of tensor copies
 * (halves L2's part, which is not the bound, for twice the machinery); producer warps (copies of 16 bytes are four instructions a thread
 * and depth). */
#ifndef LK_KERNELS_CUDA_PRODUCT_GROUPS_H
#define LK_KERNELS_CUDA_PRODUCT_GROUPS_H

#include "kernels/cuda/product_kernels.h"

enum { GROUP_TOKENS = 128, GROUP_STAGES = 3, GROUP_AHEAD = 8, SCALES_BYTES = 16 * RUN * 4 };

template <typename W, int M> struct group_layout {
    static constexpr int TOKENS = GROUP_TOKENS, GROUP = WARPS * M; /* tiles of 16 rows a block */
    static constexpr int STAGE_BYTES = TOKENS * ROW_BYTES, TABLE = GROUP_STAGES * STAGE_BYTES, SCALES = TABLE + W::TABLE_BYTES;
    static constexpr int TOTALS = SCALES + WARPS * M * SCALES_BYTES;
    static constexpr int BYTES = TOTALS + THREADS * M * (TOKENS / 8) * 16;
    static constexpr int CYCLES = M == 1 ? 860 : 1230;
};

/* sum += scale * c for 64 tokens. */
LK_DEVICE void add_scaled(float (*sum)[4], const float c[8][4], const float scale[2])
{
    LK_UNROLL
    for (int t = 0; t < 8; t++) LK_UNROLL
    for (int i = 0; i < 4; i++) sum[t][i] = fmaf(scale[i / 2], c[t][i], sum[t][i]);
}

#ifdef LK_HAS_GROUPS
template <typename W> LK_DEVICE void stage_tokens(unsigned char *stage, const product &p, int32_t token0, int32_t depth)
{
    LK_UNROLL
    for (int i = 0; i < GROUP_TOKENS * 8 / THREADS; i++) {
        int id = (int)threadIdx.x + i * THREADS;
        copy_x<W>(stage, p, id / 8, id % 8, token0 + id / 8, depth);
    }
}

/* c = a b^T for 64 of the tokens at `rows`: queued, not waited for. */
LK_DEVICE void queue_depth(float (&c)[8][4], const uint32_t a[4][4], uint64_t rows)
{
    LK_UNROLL
    for (int step = 0; step < 4; step++) lk_group_mma(c, a[step], rows + 2 * (uint64_t)step, step > 0);
    lk_group_commit();
}

template <typename W, int M> LK_DEVICE void multiply_groups(const tiles_args<W> &all)
{
    int32_t of = 0, own = (int32_t)blockIdx.x;
    while (own >= all.groups[of]) own -= all.groups[of++];
    const W &w = all.w[of];
    const product &p = all.p[of];
    typedef group_layout<W, M> L;
    LK_SHARED_ROWS(unsigned char, shared);
    unsigned char *table = shared + L::TABLE;
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t tile = own * L::GROUP + warp / 4 * 4 * M + warp % 4; /* and those at every fourth place after it */
    int32_t token0 = (int32_t)blockIdx.y * GROUP_TOKENS;
    int32_t first = p.partials ? (int32_t)blockIdx.z * p.piece : 0, last = p.partials ? min(first + p.piece, p.depths) : p.depths;

    LK_UNROLL
    for (int s = 0; s < GROUP_STAGES - 1; s++) {
        if (first + s < last) stage_tokens<W>(shared + s * L::STAGE_BYTES, p, token0, first + s);
        lk_async_commit();
    }
    typename W::codes codes[M]; /* of the depth that is unpacked next */
    LK_UNROLL
    for (int r = 0; r < M; r++) {
        W::load(codes[r], w, tile + 4 * r, first, lane);
        W::prefetch(w, tile + 4 * r, first + 1, GROUP_AHEAD, lane);
        W::prefetch_scales(w, tile + 4 * r, first, lane);
    }
    W::fill_table(table, w);
    lk_block_sync();

    float *scales = (float *)(shared + L::SCALES + warp * M * SCALES_BYTES); /* of a run: registers have no room for them */
    uint32_t a[4][4];
    float sum[M][16][4];
    LK_UNROLL
    for (int i = 0; i < M * 64; i++) sum[i / 64][i / 4 % 16][i % 4] = 0.0f;
    W::unpack(a, codes[0], table, lane);
    W::load(codes[0], w, tile, first + 1, lane);
    int32_t end = min(first + p.piece, last); /* of the piece at hand */
    for (int32_t depth = first; depth < last; depth++) {
        int32_t turn = depth - first, ahead = depth + GROUP_STAGES - 1, slot = depth % RUN;
        lk_async_wait<GROUP_STAGES - 2>();
        lk_proxy_fence();
        lk_block_sync(); /* the stage has arrived for everyone, and everyone has left the one before it */
        if (ahead < last) stage_tokens<W>(shared + (turn + GROUP_STAGES - 1) % GROUP_STAGES * L::STAGE_BYTES, p, token0, ahead);
        lk_async_commit();
        const uint64_t x = lk_group_rows(shared + turn % GROUP_STAGES * L::STAGE_BYTES);
        LK_UNROLL
        for (int r = 0; r < M; r++) {
            float *own_scales = scales + r * (SCALES_BYTES / 4);
            if (slot == 0) { /* before c takes its registers */
                typename W::raw raw;
                typename W::scales v;
                W::load_scales(raw, w, tile + 4 * r, depth, lane);
                W::finish_scales(v, raw, w, table);
                lk_warp_sync(); /* all lanes have read those before */
                W::keep_scales(own_scales, v, lane);
                lk_warp_sync();
                W::prefetch_scales(w, tile + 4 * r, depth + RUN, lane);
            }
            float c[2][8][4], scale[2];
            lk_group_fence();
            queue_depth(c[0], a, x);
            queue_depth(c[1], a, x + 64 * ROW_BYTES / 16);
            W::prefetch(w, tile + 4 * r, depth + 1 + GROUP_AHEAD, 1, lane);
            scale[0] = own_scales[slot * 16 + lane / 4];
            scale[1] = own_scales[slot * 16 + lane / 4 + 8];
            lk_group_wait<1>();
            lk_group_arrived(c[0]);
            add_scaled(sum[r], c[0], scale);
            lk_group_wait<0>();
            lk_group_arrived(c[1]);
            const int next = (r + 1) % M; /* tile, of this depth or of the one after it */
            W::unpack(a, codes[next], table, lane);
            W::load(codes[next], w, tile + 4 * next, depth + (r + 1 == M ? 2 : 1), lane);
            add_scaled(sum[r] + 8, c[1], scale);
        }
        if (depth + 1 < end) continue;
        join_piece<M, 16>((float4 *)(shared + L::TOTALS), sum, end - first <= p.piece, end == last);
        end = min(end + p.piece, last);
    }
    write_sums<M, 16>(sum, p, tile, 4, token0, lane);
}
#endif

/* Nothing where there are no warp groups: it is not launched there. */
template <typename W, int M> LK_KERNEL void __launch_bounds__(THREADS, 1) group_kernel(tiles_args<W> all)
{
#ifdef LK_HAS_GROUPS
    multiply_groups<W, M>(all);
#endif
}

#endif
