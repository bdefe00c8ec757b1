/* What DoRA and adapters' biases do at the end of a layer, both ways, and the norms behind the gains.
 *
 * gain_rows: y = y * gain + bias + residual. Bytes an element: 4, with a residual 6; gain and bias stay in L1. A thread has one group of
 * eight columns, or one, and walks over rows. For a serving batch a block takes a tile of one adapter's tokens (adapters.h) and finds
 * gain and bias in the adapter's entry, so that one launch serves whatever mixture; blocks of adapters without either leave at once.
 *
 * gain_backward: 6 bytes an element read and written, and sums over rows: a block adds ROWS rows for its columns, a second launch adds the
 * blocks' sums in order. Both orders are those of the rows' numbers.
 *
 * gain_norms: 1 / ||w + s b a|| by rows. No W + s B A is formed: a block has 16 rows and goes over K in 64 columns, a thread having four
 * rows of one column, so that A is read once for 16 rows (from L2) and a row's sum is made of its own values in one order. Arithmetic: R
 * multiplications a weight, 1e11 for r 16 on all layers of an 8B model, some 4 ms of an H200 (computed), once a step of training and once
 * when an adapter is loaded.
 *
 * Rejected: norms from ||w||^2 + 2 s b (A w) + s^2 b A A^T b, whose products cost as much and need cuBLASLt and scratch; dm by one thread
 * a column over all rows (a sixteenth of the device busy). */
#include "kernels/cuda/scales.h"

enum { THREADS = 256, MOST_ROWS = 65535, ROWS = 64 /* that a block of gain_backward adds */ };
enum { NORM_ROWS = 16, NORM_COLUMNS = 64, A_THREAD = NORM_ROWS * NORM_COLUMNS / THREADS };

static_assert(NORM_COLUMNS == 64 && A_THREAD == 4, "two warps have a row");

/* Of bf16 or, a router's logits, of fp32. */
template <typename T> struct matrix_rows {
    T *p;
    int64_t stride;
};

template <int N> LK_DEVICE void load(float *v, const lk_bf16 *p)
{
    if (N == 8)
        lk_load8(v, p);
    else
        v[0] = lk_bf16_float(p[0]);
}
template <int N> LK_DEVICE void store(lk_bf16 *p, const float *v)
{
    if (N == 8)
        lk_store8(p, v);
    else
        p[0] = lk_float_bf16(v[0]);
}
template <int N> LK_DEVICE void load(float *v, const float *p) { v[0] = p[0]; }
template <int N> LK_DEVICE void store(float *p, const float *v) { p[0] = v[0]; }

/* ---------------------------------------------------------------------------------------------- forward */

/* Columns c .. c+N-1 of one row. The same operations in the same order for every way here. */
template <typename T, int N>
LK_DEVICE void end_row(const matrix_rows<T> &y, const matrix_rows<T> &residual, const float *gain, const float *bias, int64_t row,
                       int64_t c)
{
    float v[N], r[N];
    load<N>(v, y.p + row * y.stride + c);
    if (residual.p) load<N>(r, residual.p + row * residual.stride + c);
    LK_UNROLL
    for (int i = 0; i < N; i++) {
        if (gain) v[i] = lk_mul_rn(v[i], gain[c + i]);
        if (bias) v[i] = lk_add_rn(v[i], bias[c + i]);
        if (residual.p) v[i] = lk_add_rn(v[i], r[i]);
    }
    store<N>(y.p + row * y.stride + c, v);
}

template <typename T, int N>
LK_KERNEL void gain_rows(matrix_rows<T> y, matrix_rows<T> residual, const float *gain, const float *bias, int64_t rows, int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) end_row<T, N>(y, residual, gain, bias, r, c);
}

/* What a batch's adapters bring to a site. */
typedef struct site_gains {
    const lk_cuda_tokens *tiles;
    const lk_cuda_adapter *adapters;
    int32_t n_sites;
    const float *bias; /* where an adapter has none */
} site_gains;

template <typename T, int N> LK_KERNEL void gain_tiles(matrix_rows<T> y, matrix_rows<T> residual, site_gains s, int64_t cols)
{
    const lk_cuda_tokens tile = s.tiles[blockIdx.y];
    if (tile.count == 0) return;
    const lk_cuda_adapter &a = s.adapters[(int64_t)tile.adapter * s.n_sites];
    if (!a.gain && !a.bias) return;
    const float *own = a.bias ? a.bias : s.bias;
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (c >= cols) return;
    for (int32_t r = 0; r < tile.count; r++) end_row<T, N>(y, residual, a.gain, own, tile.first + r, c);
}

static bool eights_of(const lk_tensor *y, const lk_tensor *residual)
{
    return y->type == LK_BF16 && lk_cuda_eights(y) && (!residual || lk_cuda_eights(residual));
}

template <typename T> static matrix_rows<T> rows_of(const lk_tensor *t) { return {t ? (T *)t->data : NULL, t ? t->stride : 0}; }

static unsigned blocks_for(int64_t cols, int n) { return (unsigned)((cols + THREADS * n - 1) / (THREADS * n)); }

template <typename T, int N>
static void launch_rows(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual)
{
    dim3 grid(blocks_for(y->cols, N), (unsigned)(y->rows < MOST_ROWS ? y->rows : MOST_ROWS));
    auto *kernel = gain_rows<T, N>;
    LK_LAUNCH("gain_rows", kernel, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, rows_of<T>(y), rows_of<T>(residual), gain, bias, y->rows,
              y->cols);
}

template <typename T, int N> static void launch_tiles(lk_backend *be, const lk_tensor *y, const site_gains &s, const lk_tensor *residual)
{
    dim3 grid(blocks_for(y->cols, N), (unsigned)lk_cuda_of(be)->tables.bounds.tiles);
    auto *kernel = gain_tiles<T, N>;
    LK_LAUNCH("gain_tiles", kernel, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, rows_of<T>(y), rows_of<T>(residual), s, y->cols);
}

extern "C" lk_status lk_cuda_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual)
{
    if (y->rows == 0 || y->cols == 0 || !(gain || bias || residual)) return LK_OK;
    if (y->type == LK_F32)
        launch_rows<float, 1>(be, y, gain, bias, residual);
    else if (eights_of(y, residual))
        launch_rows<lk_bf16, 8>(be, y, gain, bias, residual);
    else
        launch_rows<lk_bf16, 1>(be, y, gain, bias, residual);
    return lk_rt_launched("gain", &be->error);
}

/* Training and evaluation: as many calls as segments, of which there is one. */
static lk_status gain_segments(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                               const lk_tensor *residual)
{
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_segment *s = &batch->segments[i];
        const lk_lora *l = s->adapter < 0 ? NULL : &batch->lora[(int64_t)site * batch->n_adapters + s->adapter];
        if (!l || !(l->gain || l->bias)) continue;
        lk_tensor own = lk_tensor_rows(y, s->begin, s->end - s->begin), beside = {};
        if (residual) beside = lk_tensor_rows(residual, s->begin, s->end - s->begin);
        LK_TRY(lk_cuda_gain(be, &own, l->gain, l->bias ? l->bias : bias, residual ? &beside : NULL));
    }
    return LK_OK;
}

extern "C" lk_status lk_cuda_lora_gain(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                                       const lk_tensor *residual)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (!cu->serving) return gain_segments(be, batch, site, y, bias, residual);
    if (y->rows == 0 || y->cols == 0 || cu->tables.bounds.tiles == 0) return LK_OK;
    site_gains s = {cu->tables.tiles, cu->adapters.entries + site, cu->adapters.n_sites, bias};
    if (y->type == LK_F32)
        launch_tiles<float, 1>(be, y, s, residual);
    else if (eights_of(y, residual))
        launch_tiles<lk_bf16, 8>(be, y, s, residual);
    else
        launch_tiles<lk_bf16, 1>(be, y, s, residual);
    return lk_rt_launched("lora_gain", &be->error);
}

/* ---------------------------------------------------------------------------------------------- backward */

/* sums[blockIdx.y][c] = the block's rows of dy * y, and y = dy * gain. sums NULL: not wanted. */
LK_KERNEL void gain_back(matrix_rows<lk_bf16> y, matrix_rows<lk_bf16> dy, const float *gain, float *sums, int64_t rows, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    int64_t first = (int64_t)blockIdx.y * ROWS, last = first + ROWS < rows ? first + ROWS : rows;
    float sum = 0.0f, g = gain[c];
    for (int64_t r = first; r < last; r++) {
        float d = lk_bf16_float(dy.p[r * dy.stride + c]);
        sum += d * lk_bf16_float(y.p[r * y.stride + c]);
        y.p[r * y.stride + c] = lk_float_bf16(d * g);
    }
    if (sums) sums[(int64_t)blockIdx.y * cols + c] = sum;
}

LK_KERNEL void gain_join(float *dm, const float *sums, const float *inverse_norm, int64_t blocks, int64_t cols)
{
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    float total = 0.0f;
    for (int64_t b = 0; b < blocks; b++) total += sums[b * cols + c];
    dm[c] += inverse_norm[c] * total;
}

static size_t sums_bytes(int64_t rows, int64_t cols) { return (size_t)((rows + ROWS - 1) / ROWS * cols) * sizeof(float); }

extern "C" size_t lk_cuda_gain_scratch(const lk_limits *l) { return l->gains && l->training ? sums_bytes(l->tokens, l->width) : 0; }

extern "C" lk_status lk_cuda_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                                           const float *inverse_norm)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    int64_t blocks = (y->rows + ROWS - 1) / ROWS;
    if (blocks > MOST_ROWS) return lk_fail(&be->error, LK_ERR_INTERNAL, "gain_backward: %lld rows at once", (long long)y->rows);
    void *sums = NULL;
    if (dm) LK_TRY(lk_cuda_scratch(be, "gain_backward", sums_bytes(y->rows, y->cols), &sums));
    LK_LAUNCH("gain_back", gain_back, dim3(blocks_for(y->cols, 1), (unsigned)blocks), dim3(THREADS), 0, stream, rows_of<lk_bf16>(y),
              rows_of<lk_bf16>(dy), gain, (float *)sums, y->rows, y->cols);
    if (dm)
        LK_LAUNCH("gain_join", gain_join, dim3(blocks_for(y->cols, 1)), dim3(THREADS), 0, stream, dm, (const float *)sums, inverse_norm,
                  blocks, y->cols);
    return lk_rt_launched("gain_backward", &be->error);
}

/* ---------------------------------------------------------------------------------------------- norms */

/* A matrix and an adapter's factors, by value. */
typedef struct adapted_matrix {
    lk_cuda_nf4 nf4;
    const lk_bf16 *dense; /* or NULL */
    int64_t ld, n, k;
    const void *a, *b;
    int32_t rank;
    bool bf16;
    float scale;
} adapted_matrix;

LK_DEVICE float factor_at(const void *factor, bool bf16, int64_t at)
{
    return bf16 ? lk_bf16_float(((const lk_bf16 *)factor)[at]) : ((const float *)factor)[at];
}

LK_DEVICE float weight_at(const adapted_matrix &w, int64_t row, int64_t column)
{
    if (w.dense) return lk_bf16_float(w.dense[row * w.ld + column]);
    return lk_bf16_float(lk_cuda_nf4_weight(w.nf4, row, column, w.k / LK_CUDA_TILE_DEPTH));
}

LK_KERNEL void gain_norms(adapted_matrix w, float *gain, float *inverse_norm, const float *m)
{
    LK_SHARED(float, part, 2 * NORM_ROWS);
    int column = (int)threadIdx.x % NORM_COLUMNS, group = (int)threadIdx.x / NORM_COLUMNS;
    int64_t row0 = (int64_t)blockIdx.x * NORM_ROWS + group * A_THREAD;
    float sums[A_THREAD] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t k = column; k < w.k; k += NORM_COLUMNS) {
        float v[A_THREAD];
        LK_UNROLL
        for (int r = 0; r < A_THREAD; r++) v[r] = row0 + r < w.n ? weight_at(w, row0 + r, k) : 0.0f;
        for (int32_t i = 0; i < w.rank; i++) {
            float a = w.scale * factor_at(w.a, w.bf16, i * w.k + k);
            LK_UNROLL
            for (int r = 0; r < A_THREAD; r++)
                if (row0 + r < w.n) v[r] += a * factor_at(w.b, w.bf16, (row0 + r) * w.rank + i);
        }
        LK_UNROLL
        for (int r = 0; r < A_THREAD; r++) sums[r] += v[r] * v[r];
    }
    LK_UNROLL
    for (int r = 0; r < A_THREAD; r++) {
        float sum = lk_warp_sum(sums[r]);
        if (threadIdx.x % 32 == 0) part[(group * A_THREAD + r) * 2 + column / 32] = sum;
    }
    lk_block_sync();
    int64_t row = (int64_t)blockIdx.x * NORM_ROWS + threadIdx.x;
    if (threadIdx.x >= NORM_ROWS || row >= w.n) return;
    float squares = part[2 * threadIdx.x] + part[2 * threadIdx.x + 1], inverse = 1.0f / sqrtf(squares > 1e-30f ? squares : 1e-30f);
    inverse_norm[row] = inverse;
    if (gain) gain[row] = m[row] * inverse;
}

extern "C" lk_status lk_cuda_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l,
                                        const float *m)
{
    const lk_cuda_matrix *from = lk_cuda_matrix_of(w);
    adapted_matrix args = {};
    args.nf4 = from->nf4;
    args.dense = from->storage == LK_NF4 ? NULL : (const lk_bf16 *)from->memory;
    args.ld = from->ld;
    args.n = w->n;
    args.k = w->k;
    args.a = l->a;
    args.b = l->b;
    args.rank = l->rank;
    args.bf16 = l->type == LK_BF16;
    args.scale = l->scale;
    LK_LAUNCH("gain_norms", gain_norms, dim3((unsigned)((w->n + NORM_ROWS - 1) / NORM_ROWS)), dim3(THREADS), 0, lk_cuda_of(be)->stream,
              args, gain, inverse_norm, m);
    return lk_rt_launched("gain_norms", &be->error);
}
