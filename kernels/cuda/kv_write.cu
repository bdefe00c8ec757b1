/* New keys and values into the pages of their sequences: a block a row, each thread 16 bytes of one head. Where a row goes stands in the
 * batch's table of slots, nowhere for a padded one. Bytes a row: 4 G D read and as many written, in runs of 2 D. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kv.h"

typedef struct write_args {
    const lk_bf16 *k, *v;
    int64_t k_stride, v_stride;
    lk_cuda_kv_view kv;
    const int32_t *slots;
    int32_t kv_heads, head_dim, vector;
} write_args;

LK_KERNEL void kv_write_kernel(write_args a)
{
    int64_t row = blockIdx.x;
    int32_t slot = a.slots[row];
    if (slot < 0) return;
    int64_t page = slot >> a.kv.page_shift;
    lk_bf16 *to = a.kv.data + page * a.kv.page_stride + (int64_t)(slot & (a.kv.page_tokens - 1)) * a.kv.pitch;
    int chunks = a.kv.pitch / 8, both = a.kv_heads * chunks;
    for (int i = (int)threadIdx.x; i < 2 * both; i += (int)blockDim.x) {
        bool value = i >= both;
        int head = (value ? i - both : i) / chunks, column = i % chunks * 8;
        const lk_bf16 *from = (value ? a.v + row * a.v_stride : a.k + row * a.k_stride) + head * a.head_dim + column;
        lk_bf16 *at = to + head * a.kv.head_stride + (value ? (int64_t)a.kv.page_tokens * a.kv.pitch : 0) + column;
        if (a.vector)
            *(uint4 *)at = *(const uint4 *)from;
        else
            for (int e = 0; e < 8 && column + e < a.head_dim; e++) at[e] = from[e];
    }
}

lk_status lk_cuda_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (k->rows == 0) return LK_OK;
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
    LK_LAUNCH("kv_write", kv_write_kernel, dim3((unsigned)k->rows), dim3(128), 0, cu->stream, a);
    return lk_rt_launched("kv_write", &be->error);
}
