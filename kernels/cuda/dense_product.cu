/* Products of serving with bf16 weights (the head, models that are not quantised): 2 bytes a weight, read once for up to 8 tokens.
 *
 * Columns go to the tensor cores in the order of fragments.h, so that 16-byte loads will do. Rows of w end at a multiple of 8 with zeros
 * (matrix.h), so does x; beyond that zeros are multiplied. */
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/product_launch.h"

struct dense_weights {
    const lk_bf16 *rows;
    int64_t ld;
    int32_t n, chunks; /* chunks: 16-byte groups of a row */

    static constexpr int TABLE_BYTES = 0, RING = 2, TILE_BYTES = 16 * ROW_BYTES;
    static constexpr bool GROUPS = false;  /* they want x's columns in another order than fragments.h's */
    static constexpr int TILES_A_WARP = 1; /* HBM bounds it: 2 KB a tile */
    static constexpr const char *few_name = "dense_few", *tiles_name = "dense_tiles", *prompt_name = "dense_prompt";
    struct codes {
        uint4 v[2][2]; /* rows g and g+8, columns 8t and 32 + 8t */
    };
    struct raw {
    };
    struct scales {
    };

    LK_DEVICE void fill_table(unsigned char *, const dense_weights &) {}
    LK_DEVICE void load_scales(raw &, const dense_weights &, int32_t, int32_t, int) {}
    LK_DEVICE void finish_scales(scales &, const raw &, const dense_weights &, const unsigned char *) {}
    LK_DEVICE void scale_at(float[2], const scales &, int, int) {}

    LK_DEVICE void prefetch(const dense_weights &, int32_t, int32_t, int, int) {} /* stages are ahead far enough */
    LK_DEVICE void load(codes &c, const dense_weights &w, int32_t tile, int32_t depth, int lane)
    {
        LK_UNROLL
        for (int high = 0; high < 2; high++) LK_UNROLL
        for (int half = 0; half < 2; half++) {
            int64_t row = (int64_t)tile * 16 + lane / 4 + 8 * high;
            int32_t chunk = depth * (DEPTH / 8) + lane % 4 + 4 * half;
            c.v[high][half] = make_uint4(0, 0, 0, 0);
            if (row < w.n && chunk < w.chunks) c.v[high][half] = *(const uint4 *)(w.rows + row * w.ld + chunk * 8);
        }
    }
    LK_DEVICE void stage(unsigned char *to, const dense_weights &w, int32_t tile, int32_t depth, int lane)
    {
        LK_UNROLL
        for (int i = 0; i < 4; i++) {
            int row = i * 4 + lane / 8, chunk = lane % 8;
            int64_t at = (int64_t)tile * 16 + row;
            int32_t column = depth * (DEPTH / 8) + chunk;
            bool valid = at < w.n && column < w.chunks;
            lk_async_copy16(to + row * ROW_BYTES + place(row, chunk) * 16, valid ? w.rows + at * w.ld + column * 8 : w.rows, valid);
        }
    }
    LK_DEVICE void load_staged(codes &c, const unsigned char *tile, int lane)
    {
        LK_UNROLL
        for (int high = 0; high < 2; high++) LK_UNROLL
        for (int half = 0; half < 2; half++) {
            int row = lane / 4 + 8 * high;
            c.v[high][half] = *(const uint4 *)(tile + row * ROW_BYTES + place(row, lane % 4 + 4 * half) * 16);
        }
    }

    LK_DEVICE void unpack(uint32_t a[4][4], const codes &c, const unsigned char *, int)
    {
        LK_UNROLL
        for (int half = 0; half < 2; half++) {
            const uint4 low = c.v[0][half], high = c.v[1][half];
            const uint32_t g[4] = {low.x, low.y, low.z, low.w}, g8[4] = {high.x, high.y, high.z, high.w};
            LK_UNROLL
            for (int i = 0; i < 2; i++) {
                a[2 * half + i][0] = g[2 * i];
                a[2 * half + i][1] = g8[2 * i];
                a[2 * half + i][2] = g[2 * i + 1];
                a[2 * half + i][3] = g8[2 * i + 1];
            }
        }
    }

    LK_DEVICE int place(int row, int chunk) { return lk_cuda_row_place(row, chunk); }
    LK_DEVICE void x_fragments(uint32_t b[4][2], const unsigned char *rows, int lane)
    {
        lk_cuda_row_pairs(b, rows + lane / 4 * ROW_BYTES, lane / 4, lane % 4);
    }
    LK_DEVICE void accumulate(float sum[4], const uint32_t a[4][4], const uint32_t b[4][2], const float[2])
    {
        LK_UNROLL
        for (int step = 0; step < 4; step++) lk_mma_bf16(sum, a[step], b[step]);
    }
};

extern "C" lk_status lk_cuda_dense_product_prepare(lk_backend *be) { return allow_all<dense_weights>(be); }

extern "C" lk_status lk_cuda_dense_product(lk_backend *be, const lk_cuda_product *p, int n)
{
    dense_weights w[LK_MOST_PARTS];
    for (int i = 0; i < n; i++) {
        w[i].rows = (const lk_bf16 *)p[i].w->memory;
        w[i].ld = p[i].w->ld;
        w[i].n = (int32_t)p[i].w->base.n;
        w[i].chunks = (int32_t)(p[i].w->ld / 8);
    }
    return run_products(be, w, p, n);
}

/* ---------------------------------------------------------------------------------------------- joining pieces */

typedef struct join_args {
    product p[LK_MOST_PARTS];
    int32_t blocks[LK_MOST_PARTS]; /* along x, of each part */
    int32_t pieces;
} join_args;

/* A thread an output; bytes: 4 a piece and output, read once, mostly from L2. */
LK_KERNEL void join_kernel(join_args a)
{
    int32_t of = 0, own = (int32_t)blockIdx.x;
    while (own >= a.blocks[of]) own -= a.blocks[of++];
    const product &p = a.p[of];
    int32_t row = own * THREADS + (int32_t)threadIdx.x, token = (int32_t)blockIdx.y;
    if (row >= p.n) return;
    int64_t at = (int64_t)token * p.n + row, step = (int64_t)p.tokens * p.n;
    float total = p.partials[at];
    for (int32_t piece = 1; piece < a.pieces; piece++) total = lk_add_rn(total, p.partials[piece * step + at]);
    finish(p, token, row, total);
}

extern "C" lk_status lk_cuda_product_join(lk_backend *be, const lk_cuda_product *c, int n, int64_t pieces)
{
    join_args a = {};
    dim3 grid(0, (unsigned)c->tokens);
    a.pieces = (int32_t)pieces;
    for (int i = 0; i < n; i++) {
        a.p[i] = product_of(&c[i]);
        a.p[i].partials = c[i].partials;
        a.blocks[i] = (a.p[i].n + THREADS - 1) / THREADS;
        grid.x += (unsigned)a.blocks[i];
    }
    LK_LAUNCH("product_join", join_kernel, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, a);
    return lk_rt_launched("product_join", &be->error);
}
