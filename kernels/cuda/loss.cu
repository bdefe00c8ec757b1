/* Head and cross-entropy in one (Liger's fused linear cross-entropy), in chunks of the rows that have a label: their x is gathered,
 * cuBLASLt makes fp32 logits, one block a row turns these into loss and gradient where they lie, cuBLASLt multiplies back, and the result
 * is scattered. Rows that are ignored cost a memset. A chunk is as large as a fixed budget of logits allows: the head is read once a chunk.
 *
 * The gradient takes the place of its logits as bf16 at the front of the row: what a row of V fp32 values needs is then all that exists
 * of the logits at any time. A block overwrites a row in tiles: it reads one into registers, waits for all its threads, and writes it at
 * half the distance from the front, where everything has been read.
 *
 * Bytes moved a row: 4V written and read once for the softmax, running maximum and sum in one pass (Milakov & Gimelshein 2018), 4V read and
 * 2V written for the gradient, 2V read by the product: 16 V, 2 MB at V = 128256, half a microsecond on an H200; the two products of such
 * a row (K = 4096) take 2.1 GFLOP, 2.7 microseconds.
 *
 * A quantised head that is larger than the workspace is dequantised in blocks of rows, twice a chunk; dx is summed over them in fp32.
 *
 * Rejected: bf16 logits (an error of 0.4% of the largest logit is 0.1 of the loss); one pass that keeps a row in shared memory (128256
 * values are 501 KiB). */
#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix.h"

enum { THREADS = 512, EACH = 8, TILE = THREADS * EACH, SMALL = 256 };
enum { LOGIT_BYTES = 128 << 20, LEAST_ROWS = 64, MOST_ROWS = 1024, LEAST_HEAD = 128 };

static int64_t chunk_rows(int64_t vocab, int64_t tokens)
{
    int64_t rows = LOGIT_BYTES / (4 * lk_cuda_padded(vocab)) / LEAST_ROWS * LEAST_ROWS;
    if (rows < LEAST_ROWS) rows = LEAST_ROWS;
    if (rows > MOST_ROWS) rows = MOST_ROWS;
    return rows < tokens ? rows : tokens;
}

/* Of logits, x, dx. */
static size_t chunk_bytes(int64_t rows, int64_t vocab, int64_t width, size_t sizes[3])
{
    sizes[0] = lk_cuda_carved((size_t)(rows * lk_cuda_padded(vocab)) * sizeof(float));
    sizes[1] = lk_cuda_carved((size_t)(rows * lk_cuda_padded(width)) * sizeof(lk_bf16));
    sizes[2] = lk_cuda_carved((size_t)(rows * lk_cuda_padded(width)) * sizeof(float));
    return sizes[0] + sizes[1] + sizes[2];
}

extern "C" size_t lk_cuda_loss_scratch(const lk_limits *l)
{
    size_t sizes[3];
    if (!l->vocab || !l->tokens) return 0;
    return lk_cuda_weights_scratch(l) + chunk_bytes(chunk_rows(l->vocab, l->tokens), l->vocab, l->width, sizes);
}

/* ---------------------------------------------------------------------------------------------- rows in and out */

/* What the rows without a label get. */
LK_KERNEL void ignored_kernel(const int32_t *labels, float *nll, uint8_t *hits, lk_bf16 *dx, int64_t stride, int64_t width)
{
    int64_t t = blockIdx.x;
    if (labels[t] >= 0) return;
    if (threadIdx.x == 0) {
        nll[t] = 0.0f;
        if (hits) hits[t] = 0;
    }
    if (dx)
        for (int64_t k = threadIdx.x; k < width; k += SMALL) dx[t * stride + k] = 0;
}

LK_KERNEL void gather_kernel(lk_bf16 *out, int64_t ldo, const lk_bf16 *x, int64_t stride, const int32_t *rows, int64_t width)
{
    const lk_bf16 *from = x + (int64_t)rows[blockIdx.x] * stride;
    lk_bf16 *to = out + (int64_t)blockIdx.x * ldo;
    if (stride % 8 == 0 && width % 8 == 0 && (uintptr_t)x % 16 == 0) {
        for (int64_t k = (int64_t)threadIdx.x * 8; k < width; k += SMALL * 8) *(uint4 *)(to + k) = *(const uint4 *)(from + k);
        return;
    }
    for (int64_t k = threadIdx.x; k < ldo; k += SMALL) to[k] = k < width ? from[k] : (lk_bf16)0;
}

LK_KERNEL void scatter_kernel(lk_bf16 *dx, int64_t stride, const float *in, int64_t ldi, const int32_t *rows, int64_t width)
{
    lk_bf16 *to = dx + (int64_t)rows[blockIdx.x] * stride;
    const float *from = in + (int64_t)blockIdx.x * ldi;
    for (int64_t k = (int64_t)threadIdx.x * 2; k < width; k += SMALL * 2) {
        if (stride % 2 == 0 && (uintptr_t)dx % 4 == 0 && k + 1 < width) {
            *(uint32_t *)(to + k) = lk_pack_bf16(from[k], from[k + 1]);
        } else {
            to[k] = lk_float_bf16(from[k]);
            if (k + 1 < width) to[k + 1] = lk_float_bf16(from[k + 1]);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- a row of logits */

typedef struct row_args {
    float *logits; /* [n, ld] */
    int64_t ld;    /* a multiple of 8 */
    int32_t vocab;
    const int32_t *rows, *labels;
    float *nll;
    uint8_t *hits;         /* or NULL */
    float grad_scale, cap; /* cap 0: none */
    bool gradient;
} row_args;

/* Values at .. at+7 of a row; -inf beyond its end, which the padding of the row makes readable. */
LK_DEVICE void load_logits(float out[EACH], const float *row, int32_t at, int32_t vocab, float cap)
{
    LK_UNROLL
    for (int half = 0; half < EACH; half += 4) {
        uint4 v = *(const uint4 *)(row + at + half);
        out[half] = lk_as_float(v.x);
        out[half + 1] = lk_as_float(v.y);
        out[half + 2] = lk_as_float(v.z);
        out[half + 3] = lk_as_float(v.w);
    }
    if (cap > 0.0f) LK_UNROLL
    for (int i = 0; i < EACH; i++) out[i] = cap * tanhf(out[i] / cap);
    if (at + EACH <= vocab) return;
    LK_UNROLL
    for (int i = 0; i < EACH; i++)
        if (at + i >= vocab) out[i] = -INFINITY;
}

typedef struct softmax {
    float top, sum; /* sum of exp(x - top) */
    int32_t first;  /* where this thread saw the top first */
} softmax;

LK_DEVICE softmax scan_row(const float *row, int32_t vocab, float cap)
{
    softmax s = {-INFINITY, 0.0f, 0};
    for (int32_t at = (int32_t)threadIdx.x * EACH; at < vocab; at += TILE) {
        float x[EACH], top = s.top;
        load_logits(x, row, at, vocab, cap);
        LK_UNROLL
        for (int i = 0; i < EACH; i++)
            if (x[i] > top) {
                top = x[i];
                s.first = at + i;
            }
        if (top > s.top) s.sum *= expf(s.top - top);
        s.top = top;
        LK_UNROLL
        for (int i = 0; i < EACH; i++) s.sum += expf(x[i] - top);
    }
    return s;
}

/* (softmax - onehot) * grad_scale as bf16 over the front of the row, zeros up to a multiple of 8. */
LK_DEVICE void write_gradient(float *row, int32_t vocab, float lse, int32_t label, float grad_scale, float cap)
{
    float uncap = cap > 0.0f ? 1.0f / cap : 0.0f; /* tanh is the capped logit over the cap; the cap's slope 1 - tanh^2 */
    lk_bf16 *out = (lk_bf16 *)row;
    for (int32_t tile = 0; tile < vocab; tile += TILE) {
        int32_t at = tile + (int32_t)threadIdx.x * EACH;
        float x[EACH];
        if (at < vocab) {
            load_logits(x, row, at, vocab, cap);
            LK_UNROLL
            for (int i = 0; i < EACH; i++) {
                float t = x[i] * uncap;
                x[i] = grad_scale * (1.0f - t * t) * (expf(x[i] - lse) - (at + i == label ? 1.0f : 0.0f));
            }
        }
        lk_block_sync(); /* the tile has been read: what is written lies before its end */
        if (at < vocab) lk_store8(out + at, x);
    }
}

LK_KERNEL void row_kernel(row_args a)
{
    LK_SHARED(float, part, 32);
    int32_t t = a.rows[blockIdx.x], label = a.labels[t];
    float *row = a.logits + (int64_t)blockIdx.x * a.ld, own = row[label];
    if (a.cap > 0.0f) own = a.cap * tanhf(own / a.cap);
    softmax s = scan_row(row, a.vocab, a.cap);
    float top = lk_block_max(s.top, part);
    float sum = lk_block_sum(s.sum * expf(s.top - top), part);
    /* Among equals the lowest id counts as the arg max: a hit has no equal before it. */
    float earlier = lk_block_max(s.top == top && s.first < label ? 1.0f : 0.0f, part);
    float lse = top + logf(sum);
    if (threadIdx.x == 0) {
        a.nll[t] = lse - own;
        if (a.hits) a.hits[t] = own == top && earlier == 0.0f;
    }
    if (a.gradient) write_gradient(row, a.vocab, lse, label, a.grad_scale, a.cap);
}

/* ---------------------------------------------------------------------------------------------- the operation */

typedef struct loss_call {
    lk_backend *be;
    const lk_matrix *head;
    void *workspace, *x; /* of the head's rows; [n, ldx] bf16 */
    float *logits, *dx;  /* [n, ldl], [n, ldx] */
    int64_t fit;         /* rows of the head at a time */
    int64_t ldl, ldx;
} loss_call;

static lk_gemm product(int64_t m, int64_t n, int64_t k)
{
    lk_gemm g = {};
    g.m = m;
    g.n = n;
    g.k = k;
    g.type = LK_BF16;
    g.d_type = LK_F32;
    g.alpha = 1.0f;
    return g;
}

/* logits = x head^T, or with `back` dx = gradient head, over blocks of the head's rows. */
static lk_status head_products(const loss_call *c, int64_t n, bool back)
{
    int64_t vocab = lk_matrix_n(c->head), width = lk_matrix_k(c->head);
    for (int64_t begin = 0; begin < vocab; begin += c->fit) {
        int64_t end = begin + c->fit < vocab ? begin + c->fit : vocab;
        lk_gemm g = back ? product(n, width, end - begin) : product(n, end - begin, width);
        LK_TRY(lk_cuda_matrix_rows(c->be, c->head, begin, end, c->workspace, &g.b, &g.ldb));
        g.b_transposed = !back;
        g.a = back ? (const void *)((const lk_bf16 *)(const void *)c->logits + begin) : c->x;
        g.lda = back ? 2 * c->ldl : c->ldx;
        g.d = back ? c->dx : c->logits + begin;
        g.ldd = back ? c->ldx : c->ldl;
        g.beta = back && begin > 0 ? 1.0f : 0.0f;
        LK_TRY(lk_cuda_multiply(c->be, &g));
    }
    return LK_OK;
}

static lk_status run_chunk(const loss_call *c, const row_args *args, const lk_tensor *dx, const lk_tensor *x, int64_t n)
{
    lk_rt_stream stream = lk_cuda_of(c->be)->stream;
    LK_LAUNCH("loss_gather", gather_kernel, dim3((unsigned)n), dim3(SMALL), 0, stream, (lk_bf16 *)c->x, c->ldx, (const lk_bf16 *)x->data,
              x->stride, args->rows, x->cols);
    LK_TRY(lk_rt_launched("loss_gather", &c->be->error));
    LK_TRY(head_products(c, n, false));
    LK_LAUNCH("loss", row_kernel, dim3((unsigned)n), dim3(THREADS), 0, stream, *args);
    LK_TRY(lk_rt_launched("loss", &c->be->error));
    if (!dx) return LK_OK;
    LK_TRY(head_products(c, n, true));
    LK_LAUNCH("loss_scatter", scatter_kernel, dim3((unsigned)n), dim3(SMALL), 0, stream, (lk_bf16 *)dx->data, dx->stride, c->dx, c->ldx,
              args->rows, x->cols);
    return lk_rt_launched("loss_scatter", &c->be->error);
}

/* Takes the scratch: logits, x, dx, and what is left for the head's rows. */
static lk_status prepare(loss_call *c, int64_t most)
{
    lk_cuda *cu = lk_cuda_of(c->be);
    int64_t vocab = lk_matrix_n(c->head), width = lk_matrix_k(c->head), least = vocab < LEAST_HEAD ? vocab : LEAST_HEAD;
    size_t sizes[3], own = chunk_bytes(most, vocab, width, sizes);
    size_t weights = lk_cuda_matrix_of(c->head)->storage == LK_NF4 ? (size_t)(least * width) * sizeof(lk_bf16) : 0;
    void *rest;
    LK_TRY(lk_cuda_scratch(c->be, "linear_loss", own + weights, &rest));
    c->logits = (float *)lk_cuda_carve(&rest, sizes[0]);
    c->x = lk_cuda_carve(&rest, sizes[1]);
    c->dx = (float *)lk_cuda_carve(&rest, sizes[2]);
    c->workspace = rest;
    c->fit = lk_cuda_matrix_fit(c->head, cu->scratch_bytes - own);
    c->ldl = lk_cuda_padded(vocab);
    c->ldx = lk_cuda_padded(width);
    return LK_OK;
}

extern "C" lk_status lk_cuda_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                                         const lk_matrix *head, const int32_t *labels, float grad_scale, float cap)
{
    int64_t tokens = x->rows, most = chunk_rows(lk_matrix_n(head), tokens);
    if (tokens == 0) return LK_OK;
    loss_call c = {be, head};
    LK_TRY(prepare(&c, most));
    void *on_device, *rows_on_device;
    LK_TRY(lk_cuda_stage(be, &on_device, labels, (size_t)tokens * sizeof(int32_t)));
    LK_LAUNCH("loss_ignored", ignored_kernel, dim3((unsigned)tokens), dim3(SMALL), 0, lk_cuda_of(be)->stream, (const int32_t *)on_device,
              nll, hits, dx ? (lk_bf16 *)dx->data : NULL, dx ? dx->stride : 0, x->cols);
    LK_TRY(lk_rt_launched("loss_ignored", &be->error));
    row_args args = {c.logits, c.ldl, (int32_t)lk_matrix_n(head), NULL, (const int32_t *)on_device, nll, hits, grad_scale, cap, dx != NULL};
    int32_t rows[MOST_ROWS];
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; t++) {
        if (labels[t] >= 0) rows[n++] = (int32_t)t;
        if (n == 0 || (n < most && t + 1 < tokens)) continue;
        LK_TRY(lk_cuda_stage(be, &rows_on_device, rows, (size_t)n * sizeof(int32_t)));
        args.rows = (const int32_t *)rows_on_device;
        LK_TRY(run_chunk(&c, &args, dx, x, n));
        n = 0;
    }
    return LK_OK;
}
