/* New keys and values into the pages of their sequences, on their own or with the rotation of query and key: a block a row. Where a row
 * goes stands in the batch's table of slots, nowhere for a padded one. What lies between two rows of odd heads is written too, as zeros: a
 * page may have been an adapter's before. Bytes a row: 4 G D read and as many written (half in 8 bits, where a warp has one head's key or
 * value), in runs of 2 D. Rotating here saves a decoding step two launches a layer, and the rotated keys' way through memory. */
#include <math.h>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/rope.h"

enum { THREADS = 128, MOST_EACH = 8 /* values of a lane in 8 bits */ };

typedef struct write_args {
    const lk_bf16 *k, *v;
    int64_t k_stride, v_stride;
    lk_cuda_kv_view kv;
    const int32_t *slots;
    int32_t kv_heads, head_dim, vector;
    /* with the rotation: */
    lk_bf16 *q;
    const float *table; /* NULL: without */
    int64_t q_stride, table_stride;
    int32_t heads, half;
} write_args;

/* Where the head's key (or value) of this slot begins. */
LK_DEVICE char *place_of(const write_args &a, int32_t slot, int head, bool value)
{
    int64_t page = slot >> a.kv.page_shift, inside = slot & (a.kv.page_tokens - 1);
    return a.kv.data + page * a.kv.page_stride + head * a.kv.head_stride + (value ? a.kv.to_values : 0) + inside * a.kv.pitch_bytes;
}

LK_KERNEL void kv_write_kernel(write_args a)
{
    int64_t row = blockIdx.x;
    int32_t slot = a.slots[row];
    if (slot < 0) return;
    int chunks = a.kv.pitch / 8, both = a.kv_heads * chunks;
    for (int i = (int)threadIdx.x; i < 2 * both; i += THREADS) {
        bool value = i >= both;
        int head = (value ? i - both : i) / chunks, column = i % chunks * 8;
        const lk_bf16 *from = (value ? a.v + row * a.v_stride : a.k + row * a.k_stride) + head * a.head_dim + column;
        lk_bf16 *at = (lk_bf16 *)place_of(a, slot, head, value) + column;
        if (a.vector)
            *(uint4 *)at = *(const uint4 *)from;
        else
            for (int e = 0; e < 8; e++) at[e] = column + e < a.head_dim ? from[e] : (lk_bf16)0;
    }
}

/* The row's queries, eight pairs a thread; what is not turned stays as it is. */
LK_DEVICE void turn_queries(const write_args &a, int64_t row)
{
    const float *turn = a.table + row * a.table_stride;
    int groups = a.half / 8;
    for (int i = (int)threadIdx.x; i < a.heads * groups; i += THREADS) {
        int at = i % groups * 8;
        lk_bf16 *p = a.q + row * a.q_stride + (int64_t)(i / groups) * a.head_dim + at;
        lk_cuda_turn_eights(p, p + a.half, p, turn + at, a.half, 1.0f);
    }
}

/* All of it in whole groups of eight. */
LK_KERNEL void rope_kv_write_kernel(write_args a)
{
    int64_t row = blockIdx.x;
    turn_queries(a, row);
    int32_t slot = a.slots[row];
    if (slot < 0) return;
    const float *turn = a.table + row * a.table_stride;
    int groups = a.half / 8, chunks = a.head_dim / 8, each = chunks - groups; /* of a key: pairs, then what is not turned */
    for (int i = (int)threadIdx.x; i < a.kv_heads * each; i += THREADS) {
        int head = i / each, item = i % each;
        const lk_bf16 *from = a.k + row * a.k_stride + (int64_t)head * a.head_dim;
        lk_bf16 *to = (lk_bf16 *)place_of(a, slot, head, false);
        if (item < groups)
            lk_cuda_turn_eights(to + item * 8, to + a.half + item * 8, from + item * 8, turn + item * 8, a.half, 1.0f);
        else
            *(uint4 *)(to + (item + groups) * 8) = *(const uint4 *)(from + (item + groups) * 8);
    }
    for (int i = (int)threadIdx.x; i < a.kv_heads * chunks; i += THREADS) {
        const lk_bf16 *from = a.v + row * a.v_stride + (int64_t)i * 8;
        *(uint4 *)((lk_bf16 *)place_of(a, slot, i / chunks, true) + i % chunks * 8) = *(const uint4 *)from;
    }
}

/* Element d of a key, turned and rounded as lk_rope leaves it. */
LK_DEVICE float turned(const write_args &a, const lk_bf16 *key, const float *turn, int d)
{
    float x = lk_bf16_float(key[d]);
    if (d >= 2 * a.half) return x;
    bool high = d >= a.half;
    int i = high ? d - a.half : d;
    float other = lk_bf16_float(key[high ? i : d + a.half]), c = turn[i], s = turn[a.half + i];
    return lk_bf16_float(lk_float_bf16(high ? lk_cuda_turn_high(other, x, c, s) : lk_cuda_turn_low(x, other, c, s)));
}

/* ops.h, lk_kv_shape, in the CPU's operations: the same codes from the same values. */
LK_KERNEL void kv_write_codes_kernel(write_args a)
{
    int64_t row = blockIdx.x;
    if (a.table) turn_queries(a, row);
    int32_t slot = a.slots[row];
    if (slot < 0) return;
    int lane = (int)threadIdx.x % 32;
    for (int i = (int)threadIdx.x / 32; i < 2 * a.kv_heads; i += THREADS / 32) {
        bool value = i >= a.kv_heads;
        int head = value ? i - a.kv_heads : i;
        const lk_bf16 *from = (value ? a.v + row * a.v_stride : a.k + row * a.k_stride) + head * a.head_dim;
        float x[MOST_EACH], most = 0.0f, lost = 0.0f;
        LK_UNROLL
        for (int e = 0; e < MOST_EACH; e++) {
            int d = lane + 32 * e;
            x[e] = 0.0f;
            if (d < a.head_dim) x[e] = a.table && !value ? turned(a, from, a.table + row * a.table_stride, d) : lk_bf16_float(from[d]);
            most = fmaxf(most, fabsf(x[e]));
            if (!(fabsf(x[e]) < INFINITY)) lost = 1.0f;
        }
        most = lk_warp_max(most);
        bool finite = lk_warp_max(lost) == 0.0f;
        float inverse = finite && most > 0.0f ? 127.0f / most : 0.0f;
        int8_t *to = (int8_t *)place_of(a, slot, head, value);
        LK_UNROLL
        for (int e = 0; e < MOST_EACH; e++) {
            float code = fminf(fmaxf(rintf(lk_mul_rn(x[e], inverse)), -127.0f), 127.0f);
            if (lane + 32 * e < a.kv.pitch) to[lane + 32 * e] = finite ? (int8_t)(int)code : (int8_t)0;
        }
        char *scales = place_of(a, 0, head, false) + (slot >> a.kv.page_shift) * a.kv.page_stride + a.kv.to_scales;
        int inside = (slot & (a.kv.page_tokens - 1)) + (value ? a.kv.page_tokens : 0);
        if (lane == 0) ((float *)scales)[inside] = finite ? most / 127.0f : NAN;
    }
}

static lk_status make_args(lk_backend *be, write_args *a, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k,
                           const lk_tensor *v)
{
    if (kv->shape.type == LK_I8 && kv->shape.head_dim > 32 * MOST_EACH)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "keys and values in 8 bits: heads of %d values; the CUDA backend takes up to %d",
                       kv->shape.head_dim, 32 * MOST_EACH);
    LK_TRY(lk_cuda_tables_for(be, batch, kv, 0, 0));
    *a = write_args{};
    a->k = (const lk_bf16 *)k->data;
    a->v = (const lk_bf16 *)v->data;
    a->k_stride = k->stride;
    a->v_stride = v->stride;
    a->kv = lk_cuda_kv_layer(kv, layer);
    a->slots = lk_cuda_of(be)->tables.slots;
    a->kv_heads = kv->shape.kv_heads;
    a->head_dim = kv->shape.head_dim;
    a->vector = lk_cuda_eights(k) && lk_cuda_eights(v) && kv->shape.head_dim % 8 == 0;
    return LK_OK;
}

lk_status lk_cuda_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v)
{
    lk_cuda *cu = lk_cuda_of(be);
    write_args a;
    if (k->rows == 0) return LK_OK;
    LK_TRY(make_args(be, &a, batch, kv, layer, k, v));
    if (kv->shape.type == LK_I8)
        LK_LAUNCH("kv_write_codes", kv_write_codes_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    else
        LK_LAUNCH("kv_write", kv_write_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    return lk_rt_launched("kv_write", &be->error);
}

extern "C" lk_status lk_cuda_rope_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, int64_t heads,
                                           const lk_tensor *q, const lk_tensor *k, const lk_tensor *v, const lk_tensor *cos_sin)
{
    lk_cuda *cu = lk_cuda_of(be);
    int64_t half = cos_sin->cols / 2;
    write_args a;
    if (k->rows == 0) return LK_OK;
    LK_TRY(make_args(be, &a, batch, kv, layer, k, v));
    if (!a.vector || !lk_cuda_eights(q) || half % 8 || half == 0) { /* odd sizes: one after the other */
        LK_TRY(lk_cuda_rope(be, q, heads, cos_sin, false));
        LK_TRY(lk_cuda_rope(be, k, kv->shape.kv_heads, cos_sin, false));
        return lk_cuda_kv_write(be, batch, kv, layer, k, v);
    }
    a.q = (lk_bf16 *)q->data;
    a.q_stride = q->stride;
    a.table = (const float *)cos_sin->data;
    a.table_stride = cos_sin->stride;
    a.heads = (int32_t)heads;
    a.half = (int32_t)half;
    if (kv->shape.type == LK_I8)
        LK_LAUNCH("rope_kv_write_codes", kv_write_codes_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    else
        LK_LAUNCH("rope_kv_write", rope_kv_write_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    return lk_rt_launched("rope_kv_write", &be->error);
}
