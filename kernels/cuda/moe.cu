/* Routing among experts and joining what they give, both ways.
 *
 * route: a warp a row, its logits in shared memory, K rounds of finding the largest that is left; lane j keeps the j-th choice. Bytes: 4 E
 * a row read, 8 K written; E 128 and K 8 at 8192 rows are 4.7 MB, microseconds beside any product.
 *
 * combine: 2 bytes an element of each of the K slots read, 2 written (4 with a residual read): at 8192 rows of 4096 and K 2 that is 270 MB,
 * 63 us at 4.3 TB/s (computed). A thread has eight columns of a row, or one, and adds its choices in the router's order.
 *
 * combine_backward: a block a row; dot products by lk_block_sum. 6 bytes an element and slot.
 *
 * Rejected: adding each expert's result to the tokens as it comes (atomics, or an order by expert number that rounds to bf16 in between).
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, WARPS = THREADS / 32, MOST_ROWS = 65535, MOST_EXPERTS = 1024, MOST_CHOICES = 32 };

/* ---------------------------------------------------------------------------------------------- routing */

typedef struct row_choice {
    int32_t id;     /* of lane j: the j-th choice */
    float top, sum; /* of all lanes: the largest logit, and the sum of exp(l - top) that counts */
} row_choice;

/* Whether expert e comes before what is best so far; a value that is no number comes last. */
LK_DEVICE bool better(float value, int32_t e, float best, int32_t best_e)
{
    return best_e < 0 || value > best || (value == best && e < best_e);
}

LK_DEVICE float counted(float logit) { return logit == logit ? logit : -INFINITY; }

/* The sum over the choices in their order, or over all experts by lanes. */
LK_DEVICE float sum_that_counts(const float *l, int64_t experts, int32_t id, int64_t k, float top, bool normalise, int lane)
{
    float sum = 0.0f;
    if (!normalise) {
        for (int64_t e = lane; e < experts; e += 32) sum += expf(l[e] - top);
        return lk_warp_sum(sum);
    }
    float mine = lane < k ? expf(l[id] - top) : 0.0f;
    for (int j = 0; j < k; j++) sum += lk_shuffle(mine, j);
    return sum;
}

/* l[experts] in shared memory, as it is; taken[experts] bytes of it, cleared here. */
LK_DEVICE int32_t choose(const float *l, unsigned char *taken, int64_t experts, int64_t k, int lane)
{
    int32_t mine = 0;
    for (int64_t e = lane; e < experts; e += 32) taken[e] = 0;
    lk_warp_sync();
    for (int j = 0; j < k; j++) {
        float best = -INFINITY;
        int32_t best_e = -1;
        for (int32_t e = lane; e < experts; e += 32)
            if (!taken[e] && better(counted(l[e]), e, best, best_e)) best = counted(l[e]), best_e = e;
        for (int mask = 16; mask; mask >>= 1) {
            float other = lk_shuffle_xor(best, mask);
            int32_t other_e = lk_shuffle_xor(best_e, mask);
            if (other_e >= 0 && better(other, other_e, best, best_e)) best = other, best_e = other_e;
        }
        if (lane == j) mine = best_e;
        if (lane == 0) taken[best_e] = 1;
        lk_warp_sync();
    }
    return mine;
}

LK_DEVICE float *own_logits(float *all, const float *logits, int64_t stride, int64_t row, int64_t rows, int64_t experts, int warp, int lane)
{
    float *l = all + warp * experts;
    for (int64_t e = lane; e < experts && row < rows; e += 32) l[e] = logits[row * stride + e];
    lk_warp_sync();
    return l;
}

LK_KERNEL void moe_route(int32_t *ids, float *weights, int64_t weights_stride, const float *logits, int64_t stride, int64_t rows,
                         int64_t experts, int64_t k, bool normalise)
{
    LK_SHARED_DYNAMIC(float, all);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t row = (int64_t)blockIdx.x * WARPS + warp;
    float *l = own_logits(all, logits, stride, row, rows, experts, warp, lane);
    if (row >= rows) return;
    int32_t id = choose(l, (unsigned char *)(all + WARPS * experts) + warp * experts, experts, k, lane);
    float top = l[lk_shuffle(id, 0)], sum = sum_that_counts(l, experts, id, k, top, normalise, lane);
    if (lane >= k) return;
    ids[row * k + lane] = id;
    weights[row * weights_stride + lane] = expf(l[id] - top) / sum;
}

LK_KERNEL void moe_route_back(lk_bf16 *dlogits, int64_t dlogits_stride, const float *dweights, int64_t dweights_stride, const int32_t *ids,
                              const float *logits, int64_t stride, int64_t rows, int64_t experts, int64_t k, bool normalise)
{
    LK_SHARED_DYNAMIC(float, all);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t row = (int64_t)blockIdx.x * WARPS + warp;
    const float *l = own_logits(all, logits, stride, row, rows, experts, warp, lane);
    if (row >= rows) return;
    int32_t id = lane < k ? ids[row * k + lane] : 0;
    float top = l[lk_shuffle(id, 0)], sum = sum_that_counts(l, experts, id, k, top, normalise, lane);
    float part = lane < k ? expf(l[id] - top) / sum : 0.0f, slope = lane < k ? dweights[row * dweights_stride + lane] : 0.0f;
    float mean = lk_warp_sum(part * slope);
    lk_bf16 *out = dlogits + row * dlogits_stride;
    for (int64_t e = lane; e < experts; e += 32) {
        bool chosen = false;
        for (int j = 0; j < k; j++) chosen = chosen || ids[row * k + j] == e;
        if (!chosen) out[e] = normalise ? lk_float_bf16(0.0f) : lk_float_bf16(-mean * expf(l[e] - top) / sum);
    }
    if (lane < k) out[id] = lk_float_bf16(part * (slope - mean));
}

static lk_status check_route(lk_backend *be, int64_t experts, int64_t k)
{
    if (experts <= MOST_EXPERTS && k <= MOST_CHOICES) return LK_OK;
    return lk_fail(&be->error, LK_ERR_UNSUPPORTED,
                   "moe_route: %lld of %lld experts a token; the CUDA backend takes up to %d of %d: use --device cpu", (long long)k,
                   (long long)experts, MOST_CHOICES, MOST_EXPERTS);
}

static unsigned route_blocks(int64_t rows) { return (unsigned)((rows + WARPS - 1) / WARPS); }

extern "C" lk_status lk_cuda_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise)
{
    int64_t experts = logits->cols, k = weights->cols;
    if (logits->rows == 0) return LK_OK;
    LK_TRY(check_route(be, experts, k));
    LK_LAUNCH("moe_route", moe_route, dim3(route_blocks(logits->rows)), dim3(THREADS), (size_t)(WARPS * experts) * 5,
              lk_cuda_of(be)->stream, ids, (float *)weights->data, weights->stride, (const float *)logits->data, logits->stride,
              logits->rows, experts, k, normalise);
    return lk_rt_launched("moe_route", &be->error);
}

extern "C" lk_status lk_cuda_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                                const lk_tensor *logits, bool normalise)
{
    int64_t experts = logits->cols, k = dweights->cols;
    if (logits->rows == 0) return LK_OK;
    LK_TRY(check_route(be, experts, k));
    LK_LAUNCH("moe_route_back", moe_route_back, dim3(route_blocks(logits->rows)), dim3(THREADS), (size_t)(WARPS * experts) * 4,
              lk_cuda_of(be)->stream, (lk_bf16 *)dlogits->data, dlogits->stride, (const float *)dweights->data, dweights->stride, ids,
              (const float *)logits->data, logits->stride, logits->rows, experts, k, normalise);
    return lk_rt_launched("moe_route_backward", &be->error);
}

/* ---------------------------------------------------------------------------------------------- joining */

typedef struct slot_rows {
    lk_bf16 *p;
    int64_t stride;
} slot_rows;

static slot_rows rows_of(const lk_tensor *t)
{
    slot_rows out = {t ? (lk_bf16 *)t->data : NULL, t ? t->stride : 0};
    return out;
}

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

template <int N>
LK_KERNEL void moe_combine(slot_rows y, slot_rows x, slot_rows residual, const int32_t *slots, const float *weights, int64_t weights_stride,
                           int64_t k, int64_t rows, int64_t cols)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (c >= cols) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        float sum[N] = {};
        if (residual.p) load<N>(sum, residual.p + r * residual.stride + c);
        for (int64_t j = 0; j < k; j++) {
            float v[N], w = weights ? weights[r * weights_stride + j] : 1.0f;
            load<N>(v, x.p + slots[r * k + j] * x.stride + c);
            LK_UNROLL
            for (int i = 0; i < N; i++) sum[i] += w * v[i];
        }
        store<N>(y.p + r * y.stride + c, sum);
    }
}

/* dx may be x: a thread reads an element before it writes it. */
LK_KERNEL void moe_combine_back(slot_rows dx, float *dweights, int64_t dweights_stride, slot_rows dy, slot_rows x, const int32_t *slots,
                                const float *weights, int64_t weights_stride, int64_t k, int64_t cols)
{
    LK_SHARED(float, part, 32);
    int64_t row = blockIdx.x;
    const lk_bf16 *d = dy.p + row * dy.stride;
    for (int64_t j = 0; j < k; j++) {
        int64_t slot = slots[row * k + j];
        float w = weights[row * weights_stride + j], sum = 0.0f;
        for (int64_t c = threadIdx.x; c < cols; c += THREADS) {
            float value = lk_bf16_float(d[c]);
            sum += value * lk_bf16_float(x.p[slot * x.stride + c]);
            dx.p[slot * dx.stride + c] = lk_float_bf16(w * value);
        }
        sum = lk_block_sum(sum, part);
        if (threadIdx.x == 0) dweights[row * dweights_stride + j] = sum;
    }
}

/* slots are the device's. */
extern "C" lk_status lk_cuda_moe_combine_placed(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots,
                                                const lk_tensor *weights, const lk_tensor *residual)
{
    if (y->rows == 0 || y->cols == 0) return LK_OK;
    bool eights = lk_cuda_eights(y) && lk_cuda_eights(x) && (!residual || lk_cuda_eights(residual));
    int64_t k = x->rows / y->rows, a_block = THREADS * (eights ? 8 : 1);
    dim3 grid((unsigned)((y->cols + a_block - 1) / a_block), (unsigned)(y->rows < MOST_ROWS ? y->rows : MOST_ROWS));
    const float *w = weights ? (const float *)weights->data : NULL;
    int64_t stride = weights ? weights->stride : 0;
    if (eights)
        LK_LAUNCH("moe_combine", moe_combine<8>, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, rows_of(y), rows_of(x), rows_of(residual),
                  slots, w, stride, k, y->rows, y->cols);
    else
        LK_LAUNCH("moe_combine", moe_combine<1>, grid, dim3(THREADS), 0, lk_cuda_of(be)->stream, rows_of(y), rows_of(x), rows_of(residual),
                  slots, w, stride, k, y->rows, y->cols);
    return lk_rt_launched("moe_combine", &be->error);
}

extern "C" lk_status lk_cuda_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots,
                                         const lk_tensor *weights, const lk_tensor *residual)
{
    if (y->rows == 0) return LK_OK;
    const int32_t *places;
    LK_TRY(lk_cuda_array(be, &places, slots, x->rows));
    return lk_cuda_moe_combine_placed(be, y, x, places, weights, residual);
}

extern "C" lk_status lk_cuda_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                                  const lk_tensor *x, const int32_t *slots, const lk_tensor *weights)
{
    if (dy->rows == 0) return LK_OK;
    const int32_t *places;
    LK_TRY(lk_cuda_array(be, &places, slots, x->rows));
    LK_LAUNCH("moe_combine_back", moe_combine_back, dim3((unsigned)dy->rows), dim3(THREADS), 0, lk_cuda_of(be)->stream, rows_of(dx),
              (float *)dweights->data, dweights->stride, rows_of(dy), rows_of(x), places, (const float *)weights->data, weights->stride,
              weights->cols, dy->cols);
    return lk_rt_launched("moe_combine_backward", &be->error);
}
