/* New keys and values into the pages of their sequences: a block a row. Where a row goes stands in the batch's table of slots, nowhere
 * for a padded one. What lies between two rows of odd heads is written too, as zeros: a page may have been an adapter's before. Bytes a
 * row: 4 G D read and as many written (half in 8 bits, where a warp has one head's key or value), in runs of 2 D. */
#include <math.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/kv.h"

enum { THREADS = 128, MOST_EACH = 8 /* values of a lane in 8 bits */ };

typedef struct write_args {
    const lk_bf16 *k, *v;
    int64_t k_stride, v_stride;
    lk_cuda_kv_view kv;
    const int32_t *slots;
    int32_t kv_heads, head_dim, vector;
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

/* ops.h, lk_kv_shape, in the CPU's operations: the same codes from the same values. */
LK_KERNEL void kv_write_codes_kernel(write_args a)
{
    int64_t row = blockIdx.x;
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
            x[e] = d < a.head_dim ? lk_bf16_float(from[d]) : 0.0f;
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

lk_status lk_cuda_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (k->rows == 0) return LK_OK;
    if (kv->shape.type == LK_I8 && kv->shape.head_dim > 32 * MOST_EACH)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "keys and values in 8 bits: heads of %d values; the CUDA backend takes up to %d",
                       kv->shape.head_dim, 32 * MOST_EACH);
    LK_TRY(lk_cuda_tables_for(be, batch, kv, 0, 0));
    write_args a = {(const lk_bf16 *)k->data,
                    (const lk_bf16 *)v->data,
                    k->stride,
                    v->stride,
                    lk_cuda_kv_layer(kv, layer),
                    cu->tables.slots,
                    kv->shape.kv_heads,
                    kv->shape.head_dim,
                    lk_cuda_eights(k) && lk_cuda_eights(v) && kv->shape.head_dim % 8 == 0};
    if (kv->shape.type == LK_I8)
        LK_LAUNCH("kv_write_codes", kv_write_codes_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    else
        LK_LAUNCH("kv_write", kv_write_kernel, dim3((unsigned)k->rows), dim3(THREADS), 0, cu->stream, a);
    return lk_rt_launched("kv_write", &be->error);
}
