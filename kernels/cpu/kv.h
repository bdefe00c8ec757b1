/* The layout of the CPU's KV cache. One page of one layer and one key/value head is two tiles:
 *
 *     keys    [page_tokens/16][D][16]     sixteen positions side by side for each dimension
 *     values  [page_tokens][D]
 *
 * so that scores of sixteen keys are a chain of multiply-adds over D with no sum across lanes, and the weighted sum of values is a
 * chain over keys with none either: every lane adds in one fixed order, however many queries are computed together. */
#ifndef LK_KERNELS_CPU_KV_H
#define LK_KERNELS_CPU_KV_H

#include "kernels/cpu/cpu.h"

enum { LK_KV_LANES = 16 };

/* Elements before the tiles of this page, layer and head: keys first, values page_tokens * D after them. */
static inline int64_t lk_kv_tile(const lk_kv_shape *s, int32_t page, int32_t layer, int64_t head)
{
    return (((int64_t)page * s->n_layers + layer) * s->kv_heads + head) * 2 * s->page_tokens * s->head_dim;
}
/* Within the tiles: element (position in page, dimension). */
static inline int64_t lk_kv_key_at(const lk_kv_shape *s, int64_t position, int64_t d)
{
    return (position / LK_KV_LANES * s->head_dim + d) * LK_KV_LANES + position % LK_KV_LANES;
}
static inline int64_t lk_kv_value_at(const lk_kv_shape *s, int64_t position, int64_t d)
{
    return ((int64_t)s->page_tokens + position) * s->head_dim + d;
}

size_t lk_cpu_kv_page_bytes(const lk_backend *be, const lk_kv_shape *shape);
lk_status lk_cpu_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape);
void lk_cpu_kv_destroy(lk_backend *be, lk_kv *kv);
lk_status lk_cpu_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v);

#endif
