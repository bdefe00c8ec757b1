/* The cache of keys and values on the device, and what kernels need to find a sequence's positions in it.
 *
 * One page of one layer and one key/value head is [page_tokens][P] keys and, after them, [page_tokens][P] values, bf16, P the head size
 * rounded up to 8 with zeros behind: rows of 16-byte chunks, and the positions of a page one block of memory. Activations are bf16, so
 * a cache of LK_F32 keeps the same values in the same layout. In 8 bits P is rounded up to 16, and the scales of the keys and those of the
 * values follow, F32 [page_tokens] each.
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
    char *data;                 /* of the layer in page 0 */
    int64_t page_stride;        /* bytes from a page to the next */
    int64_t head_stride;        /* from a head's keys to the next head's */
    int64_t to_values;          /* from a head's keys to its values */
    int64_t to_scales;          /* 8 bits: from a head's keys to their scales; those of the values follow */
    int32_t pitch, pitch_bytes; /* of one position */
    int32_t page_shift, page_tokens;
} lk_cuda_kv_view;

static inline int32_t lk_cuda_kv_pitch(const lk_kv_shape *s)
{
    int32_t chunk = s->type == LK_I8 ? 16 : 8;
    return (s->head_dim + chunk - 1) / chunk * chunk;
}

/* Bytes of one page, layer and head. */
static inline int64_t lk_cuda_kv_head_bytes(const lk_kv_shape *s)
{
    int64_t each = s->type == LK_I8 ? lk_cuda_kv_pitch(s) + (int64_t)sizeof(float) : 2 * (int64_t)lk_cuda_kv_pitch(s);
    return 2 * (int64_t)s->page_tokens * each;
}

static inline lk_cuda_kv_view lk_cuda_kv_layer(const lk_kv *kv, int32_t layer)
{
    const lk_kv_shape *s = &kv->shape;
    lk_cuda_kv_view v;
    v.pitch = lk_cuda_kv_pitch(s);
    v.pitch_bytes = s->type == LK_I8 ? v.pitch : 2 * v.pitch;
    v.page_tokens = s->page_tokens;
    v.page_shift = __builtin_ctz((unsigned)s->page_tokens);
    v.to_values = (int64_t)s->page_tokens * v.pitch_bytes;
    v.to_scales = 2 * v.to_values;
    v.head_stride = lk_cuda_kv_head_bytes(s);
    v.page_stride = (int64_t)kv->page_bytes;
    v.data = (char *)kv->data + layer * s->kv_heads * v.head_stride;
    return v;
}

#ifdef __cplusplus
}
#endif
#endif
