/* The cache of keys and values on the device, and what kernels need to find a sequence's positions in it.
 *
 * One page of one layer and one key/value head is [page_tokens][P] keys and, after them, [page_tokens][P] values, bf16, P the head size
 * rounded up to 8 with zeros behind: rows of 16-byte chunks, and the positions of a page one block of memory. Activations are bf16, so
 * a cache of LK_F32 keeps the same values in the same layout.
 *
 *     int64_t next = 0;
 *     do {
 *         LK_TRY(lk_cuda_tables_for(be, batch, kv, group, next));       -- mostly there since lk_batch_begin (tables.h)
 *         launch over cu->tables.kv
 *         next = cu->tables.kv.next;
 *     } while (next < batch->n_sequences); */
#ifndef LK_KERNELS_CUDA_KV_H
#define LK_KERNELS_CUDA_KV_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LK_KV_SPLIT = 256,    /* positions that paged attention sums up on their own, before the splits are joined in order */
    LK_KV_FEW = 16,       /* rows (tokens times query heads of a group) that make a sequence one of few rows */
    LK_KV_LEAST_PAGE = 16 /* tokens */
};

/* Scratch for the results of one split of a sequence of this many rows, for every key/value head (paged_attention.cu). */
size_t lk_cuda_paged_split_bytes(int64_t kv_heads, int64_t rows, int64_t head_dim);

/* A kernel's view of one layer. */
typedef struct lk_cuda_kv_view {
    uint16_t *data;      /* of the layer in page 0 */
    int64_t page_stride; /* elements from a page to the next */
    int64_t head_stride; /* from a head's keys to the next head's */
    int32_t pitch, page_shift, page_tokens;
} lk_cuda_kv_view;

static inline lk_cuda_kv_view lk_cuda_kv_layer(const lk_kv *kv, int32_t layer)
{
    const lk_kv_shape *s = &kv->shape;
    lk_cuda_kv_view v;
    v.pitch = (int32_t)lk_cuda_padded(s->head_dim);
    v.page_tokens = s->page_tokens;
    v.page_shift = __builtin_ctz((unsigned)s->page_tokens);
    v.head_stride = 2 * (int64_t)s->page_tokens * v.pitch;
    v.page_stride = v.head_stride * s->kv_heads * s->n_layers;
    v.data = (uint16_t *)kv->data + layer * s->kv_heads * v.head_stride;
    return v;
}

#ifdef __cplusplus
}
#endif
#endif
