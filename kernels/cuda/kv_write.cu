/* New keys and values into the pages of their sequences: a block a row, each thread 16 bytes of one head. Bytes a row: 4 G D read and as
 * many written, in runs of 2 D. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/kv.h"

typedef struct write_args {
    const lk_bf16 *k, *v;
    int64_t k_stride, v_stride;
    lk_cuda_kv_view kv;
    const lk_cuda_kv_sequence *sequences;
    const int32_t *pages;
    int32_t n_sequences, first_row, kv_heads, head_dim, vector;
} write_args;

LK_KERNEL void kv_write_kernel(write_args a)
{
    int row = a.first_row + (int)blockIdx.x, low = 0, high = a.n_sequences - 1;
    while (low < high) { /* the last sequence that begins at the row or before; empty ones begin where the next does */
        int middle = (low + high + 1) / 2;
        if (a.sequences[middle].begin <= row)
            low = middle;
        else
            high = middle - 1;
    }
    const lk_cuda_kv_sequence s = a.sequences[low];
    int position = s.length - s.count + row - s.begin;
    int64_t page = a.pages[s.first_page + (position >> a.kv.page_shift)];
    lk_bf16 *to = a.kv.data + page * a.kv.page_stride + (int64_t)(position & (a.kv.page_tokens - 1)) * a.kv.pitch;
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
    lk_cuda_kv_tables t = {};
    if (batch->n_tokens == 0) return LK_OK;
    do {
        LK_TRY(lk_cuda_kv_prepare(be, kv, batch, 0, INT32_MAX, &t));
        if (t.n_rows == 0) continue;
        write_args a = {(const lk_bf16 *)k->data,
                        (const lk_bf16 *)v->data,
                        k->stride,
                        v->stride,
                        lk_cuda_kv_layer(kv, layer),
                        t.sequences,
                        t.pages,
                        t.n_sequences,
                        t.row,
                        kv->shape.kv_heads,
                        kv->shape.head_dim,
                        lk_cuda_eights(k) && lk_cuda_eights(v) && kv->shape.head_dim % 8 == 0};
        LK_LAUNCH("kv_write", kv_write_kernel, dim3((unsigned)t.n_rows), dim3(128), 0, cu->stream, a);
        LK_TRY(lk_rt_launched("kv_write", &be->error));
    } while (t.next < batch->n_sequences);
    return LK_OK;
}
