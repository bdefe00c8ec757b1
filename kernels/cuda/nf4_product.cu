/* Products of serving with NF4 weights, straight from the tiles of matrix.h: 0.5 byte a weight and the scales (0.53 with nested ones) are
 * all that is read of w.
 *
 * A byte of codes becomes the pair of bf16 that an A register wants by one lookup in a table of 256 pairs, which every one of the 32 banks
 * of shared memory holds for itself (32 KiB), so that no lane waits for another. The scale of a block of 64 multiplies in fp32 the sum of
 * its 64 products (product.h): a weight is bf16(codebook) * absmax there, where training's is bf16(codebook * absmax). */
#include "kernels/cuda/product_launch.h"

enum { BANKS = 32, PAIRS = 256, LUT_BYTES = PAIRS * BANKS * 4 };

struct nf4_weights {
    lk_cuda_nf4 nf4;
    int32_t n, tiles, depths;

    static constexpr int TABLE_BYTES = LUT_BYTES + 256 * 4, RING = 8, TILE_BYTES = LK_CUDA_TILE_BYTES;
    static constexpr bool GROUPS = true;   /* x's columns go in their own order, as warp groups want them */
    static constexpr int TILES_A_WARP = 2; /* from 17 tokens on: reading x from shared memory is what bounds it, two tiles share that */
    static constexpr const char *few_name = "nf4_few", *tiles_name = "nf4_tiles", *prompt_name = "nf4_prompt";
    struct codes {
        uint4 v;
    };
    /* Of 8 depths of a tile a lane holds the scales of depths 2t and 2t+1 for rows g and g+8. As loaded, and finished. */
    struct raw {
        uint32_t code[2][2];
        float second[2][2];
    };
    struct scales {
        float v[2][2];
    };

    /* Table: pairs, then the map of nested scales. A thread computes one pair and writes it to all banks, a different one than its
     * neighbours at each moment. */
    LK_DEVICE void fill_table(unsigned char *table, const nf4_weights &w)
    {
        int byte = (int)threadIdx.x;
        const float *codebook = w.nf4.constants + LK_CUDA_CODEBOOK;
        uint32_t pair = lk_pack_bf16(codebook[byte >> 4], codebook[byte & 15]);
        for (int i = 0; i < BANKS; i++) ((uint32_t *)table)[byte * BANKS + ((i + byte) & (BANKS - 1))] = pair;
        ((float *)(table + LUT_BYTES))[byte] = w.nf4.constants[LK_CUDA_MAP_SIGNED + byte];
    }

    LK_DEVICE void load(codes &c, const nf4_weights &w, int32_t tile, int32_t depth, int lane)
    {
        c.v = make_uint4(0, 0, 0, 0);
        if (tile < w.tiles && depth < w.depths) c.v = ((const uint4 *)w.nf4.tiles)[((int64_t)tile * w.depths + depth) * 32 + lane];
    }
    LK_DEVICE void stage(unsigned char *to, const nf4_weights &w, int32_t tile, int32_t depth, int lane)
    {
        bool valid = tile < w.tiles;
        const uint4 *from = (const uint4 *)w.nf4.tiles;
        lk_async_copy16(to + lane * 16, valid ? from + ((int64_t)tile * w.depths + depth) * 32 + lane : from, valid);
    }
    LK_DEVICE void load_staged(codes &c, const unsigned char *tile, int lane) { c.v = *(const uint4 *)(tile + lane * 16); }

    LK_DEVICE void load_scales(raw &r, const nf4_weights &w, int32_t tile, int32_t depth0, int lane)
    {
        LK_UNROLL
        for (int half = 0; half < 2; half++) LK_UNROLL
        for (int i = 0; i < 2; i++) {
            int32_t row = tile * 16 + lane / 4 + 8 * half, depth = depth0 + 2 * (lane % 4) + i;
            int64_t block = (int64_t)row * w.depths + depth;
            r.code[half][i] = 0;
            r.second[half][i] = 0.0f;
            if (row >= w.n || depth >= w.depths) continue;
            if (w.nf4.absmax) {
                r.code[half][i] = lk_as_bits(w.nf4.absmax[block]);
            } else {
                r.code[half][i] = w.nf4.absmax8[block];
                r.second[half][i] = w.nf4.absmax2[block / 256];
            }
        }
    }
    /* What load and load_scales are going to read, to L2: `count` <= 8 depths of codes; the scales of eight depths. */
    LK_DEVICE void prefetch(const nf4_weights &w, int32_t tile, int32_t depth, int count, int lane)
    {
        if (lane < 4 * count && tile < w.tiles && depth + lane / 4 < w.depths)
            lk_prefetch((const char *)w.nf4.tiles + ((int64_t)tile * w.depths + depth) * TILE_BYTES + lane * 128);
    }
    LK_DEVICE void prefetch_scales(const nf4_weights &w, int32_t tile, int32_t depth0, int lane)
    {
        int32_t row = tile * 16 + lane / 2, depth = depth0 + lane % 2 * 4;
        int64_t block = (int64_t)row * w.depths + depth;
        if (row >= w.n || depth >= w.depths) return;
        lk_prefetch(w.nf4.absmax ? (const void *)(w.nf4.absmax + block) : (const void *)(w.nf4.absmax8 + block));
    }
    /* The bits of lk_nf4_unnest. */
    LK_DEVICE void finish_scales(scales &s, const raw &r, const nf4_weights &w, const unsigned char *table)
    {
        const float *map = (const float *)(table + LUT_BYTES);
        LK_UNROLL
        for (int half = 0; half < 2; half++) LK_UNROLL
        for (int i = 0; i < 2; i++)
            s.v[half][i] =
                w.nf4.absmax ? lk_as_float(r.code[half][i]) : lk_add_rn(lk_mul_rn(map[r.code[half][i]], r.second[half][i]), w.nf4.offset);
    }
    /* [depth][row], of a tile */
    LK_DEVICE void keep_scales(float *kept, const scales &s, int lane)
    {
        LK_UNROLL
        for (int half = 0; half < 2; half++) LK_UNROLL
        for (int i = 0; i < 2; i++) kept[(2 * (lane % 4) + i) * 16 + lane / 4 + 8 * half] = s.v[half][i];
    }
    LK_DEVICE void scale_at(float out[2], const scales &s, int slot, int lane)
    {
        int from = (lane & ~3) | (slot / 2);
        out[0] = lk_shuffle(slot % 2 ? s.v[0][1] : s.v[0][0], from);
        out[1] = lk_shuffle(slot % 2 ? s.v[1][1] : s.v[1][0], from);
    }

    LK_DEVICE void unpack(uint32_t a[4][4], const codes &c, const unsigned char *table, int lane)
    {
        const unsigned char *own = table + lane * 4; /* entries are 128 bytes apart: a byte of codes times 128 */
        const uint32_t words[4] = {c.v.x, c.v.y, c.v.z, c.v.w};
        LK_UNROLL
        for (int step = 0; step < 4; step++) {
            uint32_t q = words[step];
            a[step][0] = *(const uint32_t *)(own + ((q << 7) & 0x7f80u));
            a[step][1] = *(const uint32_t *)(own + ((q >> 1) & 0x7f80u));
            a[step][2] = *(const uint32_t *)(own + ((q >> 9) & 0x7f80u));
            a[step][3] = *(const uint32_t *)(own + ((q >> 17) & 0x7f80u));
        }
    }

    /* Which 16 bytes of a row of x lie where: eight rows of one column of ldmatrix then lie in different banks. */
    LK_DEVICE int place(int row, int chunk) { return chunk ^ (row & 7); }
    LK_DEVICE void x_fragments(uint32_t b[4][2], const unsigned char *rows, int lane)
    {
        int row = lane % 8, chunk = lane / 8;
        LK_UNROLL
        for (int half = 0; half < 2; half++) {
            uint32_t out[4];
            lk_ldmatrix4(out, rows + row * ROW_BYTES + place(row, chunk + 4 * half) * 16);
            b[2 * half][0] = out[0];
            b[2 * half][1] = out[1];
            b[2 * half + 1][0] = out[2];
            b[2 * half + 1][1] = out[3];
        }
    }
    LK_DEVICE void accumulate(float sum[4], const uint32_t a[4][4], const uint32_t b[4][2], const float scale[2])
    {
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        LK_UNROLL
        for (int step = 0; step < 4; step++) lk_mma_bf16(c, a[step], b[step]);
        LK_UNROLL
        for (int i = 0; i < 4; i++) sum[i] = fmaf(scale[i / 2], c[i], sum[i]);
    }
};

extern "C" lk_status lk_cuda_nf4_product_prepare(lk_backend *be) { return allow_all<nf4_weights>(be); }

extern "C" lk_status lk_cuda_nf4_product(lk_backend *be, const lk_cuda_product *p, int n)
{
    nf4_weights w[LK_MOST_PARTS];
    for (int i = 0; i < n; i++) {
        w[i].nf4 = p[i].w->nf4;
        w[i].n = (int32_t)p[i].w->base.n;
        w[i].tiles = (w[i].n + 15) / 16;
        w[i].depths = (int32_t)(p[i].w->base.k / DEPTH);
    }
    return run_products(be, w, p, n);
}
