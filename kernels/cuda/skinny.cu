/* out[T,R] = x[T,W] f[R,W]^T for R far below T and W: LoRA's h = drop(x) A^T and dh = dy B, which read a whole activation to make a few
 * columns.
 *
 * Why not cuBLASLt: its tiles of 64 and more rows leave half of a large GPU idle here unless k is cut, and cutting k depends on T. Here a
 * block takes 16 rows, its eight warps take steps of 32 columns in turn, and their sums are joined in the order of warps: the blocks of
 * 4096 tokens fill 128 multiprocessors twice, and a row's bits depend on that row, W and nothing else. Dropout happens on the way,
 * so that no copy of drop(x) is made; h leaves as fp32 and, scaled, as the bf16 that the next product reads, wherever that wants it.
 *
 * The order of columns within a step is permuted so that a lane loads 16 bytes of x and of f at once: lane t of four holds columns 8t ..
 * 8t+7, which are its two pairs of each of the two mma.m16n8k16 of a step. Both operands are permuted alike, so the sum is the same.
 *
 * Bytes moved: 2 T W (x) from memory and, through the second-level cache, 2 R W (f) for each 16 rows: at R = 16 as much as x. 64 bytes of
 * x and 32 bytes for each 8 ranks in flight per thread. At most 32 ranks a block; more are further blocks, which find x in the cache. */
#include "kernels/cuda/dropout.h"

enum { WARPS = 8, THREADS = 32 * WARPS, ROWS = 16, STEP = 32, AHEAD = 2, MOST_TILES = 4 };

typedef struct skinny_args {
    const lk_bf16 *x; /* row `first` */
    int64_t stride, first, rows, width;
    const lk_bf16 *f;
    int64_t ldf;
    float *h; /* or NULL */
    int64_t ldh;
    lk_bf16 *out;
    int64_t ldo;
    int32_t rank, ranks; /* ranks: padded */
    float scale;
    bool aligned;
    lk_cuda_mask mask;
} skinny_args;

/* Columns k .. k+7 of a row as four words of bf16 pairs; zeros beyond the ends. */
template <bool DROPS> LK_DEVICE void load_row(uint32_t out[4], const skinny_args *a, int64_t row, int64_t k)
{
    out[0] = out[1] = out[2] = out[3] = 0;
    if (row >= a->rows || k >= a->width) return;
    const lk_bf16 *p = a->x + row * a->stride + k;
    if (!DROPS && a->aligned && k + 8 <= a->width) {
        uint4 v = *(const uint4 *)p;
        out[0] = v.x;
        out[1] = v.y;
        out[2] = v.z;
        out[3] = v.w;
        return;
    }
    float values[8];
    lk_load_some(values, p, a->width - k, a->aligned);
    if (DROPS) lk_drop8(values, &a->mask, a->first + row, k, a->width);
    LK_UNROLL
    for (int i = 0; i < 4; i++) out[i] = lk_pack_bf16(values[2 * i], values[2 * i + 1]);
}

/* What one step of 32 columns needs of a lane. */
template <int TILES> struct operands {
    uint32_t low[4], high[4]; /* rows g and g + 8 */
    uint4 f[TILES];           /* rank g of each tile */
};

template <int TILES, bool DROPS>
LK_DEVICE void load_step(operands<TILES> *o, const skinny_args *a, int64_t row, int32_t rank, int64_t k, bool any)
{
    LK_UNROLL
    for (int tile = 0; tile < TILES; tile++) {
        uint4 zeros = {0, 0, 0, 0};
        int32_t r = rank + 8 * tile;
        o->f[tile] = any && r < a->ranks && k < a->ldf ? *(const uint4 *)(a->f + r * a->ldf + k) : zeros;
    }
    load_row<DROPS>(o->low, a, any ? row : a->rows, k);
    load_row<DROPS>(o->high, a, any ? row + 8 : a->rows, k);
}

template <int TILES> LK_DEVICE void multiply_step(float sums[TILES][4], const operands<TILES> *o)
{
    const uint32_t first[4] = {o->low[0], o->high[0], o->low[1], o->high[1]}, second[4] = {o->low[2], o->high[2], o->low[3], o->high[3]};
    LK_UNROLL
    for (int tile = 0; tile < TILES; tile++) {
        const uint32_t b[2] = {o->f[tile].x, o->f[tile].y}, c[2] = {o->f[tile].z, o->f[tile].w};
        lk_mma_bf16(sums[tile], first, b);
        lk_mma_bf16(sums[tile], second, c);
    }
}

template <int TILES, bool DROPS> LK_KERNEL void skinny_kernel(skinny_args a)
{
    LK_SHARED(float, parts, WARPS *ROWS *TILES * 8);
    const int thread = (int)threadIdx.x, warp = thread / 32, g = thread % 32 / 4, t = thread % 4, across = TILES * 8;
    int64_t row = (int64_t)blockIdx.x * ROWS, steps = (a.width + STEP - 1) / STEP;
    int32_t rank = (int32_t)blockIdx.y * across;
    float sums[TILES][4] = {};
    for (int64_t s = warp; s < steps; s += WARPS * AHEAD) {
        operands<TILES> o[AHEAD];
        LK_UNROLL
        for (int i = 0; i < AHEAD; i++)
            load_step<TILES, DROPS>(&o[i], &a, row + g, rank + g, (s + i * WARPS) * STEP + 8 * t, s + i * WARPS < steps);
        LK_UNROLL
        for (int i = 0; i < AHEAD; i++) multiply_step<TILES>(sums, &o[i]);
    }
    LK_UNROLL
    for (int tile = 0; tile < TILES; tile++) {
        float *to = parts + (warp * ROWS + g) * across + 8 * tile + 2 * t;
        to[0] = sums[tile][0];
        to[1] = sums[tile][1];
        to[8 * across] = sums[tile][2];
        to[8 * across + 1] = sums[tile][3];
    }
    lk_block_sync();
    for (int i = thread; i < ROWS * across; i += THREADS) {
        int64_t r = row + i / across;
        int32_t c = rank + i % across;
        if (r >= a.rows || c >= a.ranks) continue;
        float sum = 0.0f;
        LK_UNROLL
        for (int w = 0; w < WARPS; w++) sum += parts[w * ROWS * across + i];
        if (a.h && c < a.rank) a.h[r * a.ldh + c] = sum;
        a.out[r * a.ldo + c] = lk_float_bf16(lk_mul_rn(sum, a.scale));
    }
}

template <int TILES> static void launch(const skinny_args *a, lk_rt_stream stream)
{
    dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)((a->ranks / 8 + TILES - 1) / TILES));
    if (a->mask.active)
        LK_LAUNCH("skinny_dropped", (skinny_kernel<TILES, true>), grid, dim3(THREADS), 0, stream, *a);
    else
        LK_LAUNCH("skinny", (skinny_kernel<TILES, false>), grid, dim3(THREADS), 0, stream, *a);
}

extern "C" lk_status lk_cuda_skinny(lk_backend *be, const lk_cuda_skinny_args *s)
{
    const lk_tensor *x = s->x;
    skinny_args a = {};
    a.x = (const lk_bf16 *)x->data + s->first * x->stride;
    a.stride = x->stride;
    a.first = s->first;
    a.rows = s->rows;
    a.width = x->cols;
    a.f = (const lk_bf16 *)s->f;
    a.ldf = lk_cuda_padded(x->cols);
    a.h = s->h;
    a.ldh = s->ldh;
    a.out = (lk_bf16 *)s->out;
    a.ldo = s->ldo;
    a.rank = s->rank;
    a.ranks = (int32_t)lk_cuda_padded(s->rank);
    a.scale = s->scale;
    a.aligned = x->stride % 8 == 0 && (uintptr_t)x->data % 16 == 0;
    a.mask = lk_cuda_mask_of(s->site, s->dropout);
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (a.ranks <= 8)
        launch<1>(&a, stream);
    else if (a.ranks <= 16)
        launch<2>(&a, stream);
    else
        launch<MOST_TILES>(&a, stream);
    return lk_rt_launched("skinny", &be->error);
}
