/* The layout of the CPU's KV cache. One page of one layer and one key/value head is two tiles:
 *
 *     keys    [page_tokens/16][D][16]     sixteen positions side by side for each dimension
 *     values  [page_tokens][D]
 *
 * so that scores of sixteen keys are a chain of multiply-adds over D with no sum across lanes, and the weighted sum of values is a
 * chain over keys with none either: every lane adds in one fixed order, however many queries are computed together. In 8 bits the scales of
 * the keys and then those of the values follow, F32 [page_tokens] each. */
#ifndef LK_KERNELS_CPU_KV_H
#define LK_KERNELS_CPU_KV_H

#include "kernels/cpu/cpu.h"

enum { LK_KV_LANES = 16 };

/* Bytes of the tiles of one page, layer and head. */
static inline int64_t lk_kv_tile_bytes(const lk_kv_shape *s)
{
    int64_t values = 2 * (int64_t)s->page_tokens * s->head_dim * lk_dtype_size(s->type);
    return s->type == LK_I8 ? values + 2 * (int64_t)s->page_tokens * (int64_t)sizeof(float) : values;
}
/* The tiles of this page, layer and head. */
static inline char *lk_kv_tile(const lk_kv *kv, int32_t page, int32_t layer, int64_t head)
{
    const lk_kv_shape *s = &kv->shape;
    return (char *)kv->data + (size_t)page * kv->page_bytes + (layer * s->kv_heads + head) * lk_kv_tile_bytes(s);
}
/* Within the tiles: element (position in page, dimension), and the scales of the keys (0) or values (1). */
static inline int64_t lk_kv_key_at(const lk_kv_shape *s, int64_t position, int64_t d)
{
    return (position / LK_KV_LANES * s->head_dim + d) * LK_KV_LANES + position % LK_KV_LANES;
}
static inline int64_t lk_kv_value_at(const lk_kv_shape *s, int64_t position, int64_t d)
{
    return ((int64_t)s->page_tokens + position) * s->head_dim + d;
}
static inline float *lk_kv_scales(const lk_kv_shape *s, char *tile, int which)
{
    return (float *)(void *)(tile + 2 * (int64_t)s->page_tokens * s->head_dim) + which * s->page_tokens;
}

size_t lk_cpu_kv_page_bytes(const lk_backend *be, const lk_kv_shape *shape);
lk_status lk_cpu_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape);
void lk_cpu_kv_destroy(lk_backend *be, lk_kv *kv);
lk_status lk_cpu_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v);

#endif
