/* Carving a plan into one block of backend memory: the same function first counts (base NULL) and then hands out pointers, so the plan and
 * the allocation cannot disagree. Internal to model/. */
#ifndef LK_MODEL_CARVE_H
#define LK_MODEL_CARVE_H

#include "kernels/ops.h"

typedef struct lk_carve {
    char *base; /* NULL while counting */
    size_t used;
} lk_carve;

static inline void *lk_carve_bytes(lk_carve *c, size_t bytes)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return p;
}

static inline lk_tensor lk_carve_tensor(lk_carve *c, lk_dtype type, int64_t rows, int64_t cols)
{
    return lk_tensor_make(lk_carve_bytes(c, (size_t)(rows * cols * lk_dtype_size(type))), type, rows, cols);
}

/* With `gap` free elements behind each row. */
static inline lk_tensor lk_carve_gapped(lk_carve *c, lk_dtype type, int64_t rows, int64_t cols, int64_t gap)
{
    lk_tensor t = lk_carve_tensor(c, type, rows, cols + gap);
    t.cols = cols;
    return t;
}

static inline float *lk_carve_floats(lk_carve *c, int64_t n) { return lk_carve_bytes(c, (size_t)n * 4); }

#endif
