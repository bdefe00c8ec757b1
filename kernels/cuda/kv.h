/* The cache of keys and values on the device, and what kernels need to find a sequence's positions in it.
 *
 * One page of one layer and one key/value head is [page_tokens][P] keys and, after them, [page_tokens][P] values, bf16, P the head size
 * rounded up to 8 with zeros behind: rows of 16-byte chunks, and the positions of a page one block of memory. Activations are bf16, so
 * a cache of LK_F32 keeps the same values in the same layout.
 *
 *     lk_cuda_kv_tables t = {0};
 *     do {
 *         LK_TRY(lk_cuda_kv_prepare(be, kv, batch, group, most_splits, &t));       -- sequences [t.first, t.next) of the batch
 *         launch over t
 *     } while (t.next < batch->n_sequences);
 *
 * The tables of a batch lie in memory of the cache, a batch that does not fit goes in parts, and they are kept until the next
 * lk_batch_begin, so that the layers of a step share them. */
#ifndef LK_KERNELS_CUDA_KV_H
#define LK_KERNELS_CUDA_KV_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LK_KV_SPLIT = 256, /* positions that paged attention sums up on their own, before the splits are joined in order */
    LK_KV_FEW = 16     /* rows (tokens times query heads of a group) that make a sequence one of few rows */
};

/* In a table: 8 words. */
typedef struct lk_cuda_kv_sequence {
    int32_t begin, count, length;
    int32_t first_page;            /* in `pages` */
    int32_t first_split, n_splits; /* in `splits`; n_splits 0: a sequence of many rows */
    int32_t unused[2];
} lk_cuda_kv_sequence;

typedef struct lk_cuda_kv_split {
    int32_t sequence, split;
} lk_cuda_kv_split;

typedef struct lk_cuda_kv_tables {
    int64_t first, next;
    const lk_cuda_kv_sequence *sequences; /* [n_sequences], device memory as all of these */
    const int32_t *pages;
    const lk_cuda_kv_split *splits; /* [n_splits], of sequences of few rows */
    const int32_t *many;            /* [n_many]: sequences of many rows */
    int32_t n_sequences, n_splits, n_many;
    int32_t few_rows, many_rows; /* the most rows of one sequence of each kind */
    int32_t row, n_rows;         /* of the batch, that these sequences are */
} lk_cuda_kv_tables;

typedef struct lk_cuda_kv {
    lk_kv base;
    int32_t *tables, *host; /* device memory and the host's copy of it */
    size_t words;
    /* what the tables hold */
    const lk_batch *batch;
    uint64_t serial;
    int64_t group, most_splits;
    lk_cuda_kv_tables held;
} lk_cuda_kv;

static inline lk_cuda_kv *lk_cuda_kv_of(const lk_kv *kv)
{
    union {
        const lk_kv *given;
        lk_cuda_kv *ours;
    } p = {kv};
    return p.ours; /* its tables change where the cache itself does not */
}

/* Tables for the sequences from t->next on. group: query heads on a key/value head, 0 where it does not matter. */
lk_status lk_cuda_kv_prepare(lk_backend *be, const lk_kv *kv, const lk_batch *batch, int64_t group, int64_t most_splits,
                             lk_cuda_kv_tables *t);

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
