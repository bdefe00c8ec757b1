/* What both attentions share: blocks of 64 keys at fixed positions, and the running softmax over them. */
#ifndef LK_KERNELS_CPU_ATTENTION_H
#define LK_KERNELS_CPU_ATTENTION_H

#include <math.h>

#include "kernels/cpu/ops.h"

enum { LK_KEY_BLOCK = 64 };

/* Keys [first, last) of a block starting at position `start` that the query at `position` sees; empty when last <= first. */
static inline void lk_visible(const lk_attention_shape *s, int64_t position, int64_t start, int *first, int *last)
{
    int64_t from = s->window > 0 ? position - s->window + 1 - start : 0, to = position + 1 - start;
    *first = from < 0 ? 0 : from > LK_KEY_BLOCK ? LK_KEY_BLOCK : (int)from;
    *last = to < 0 ? 0 : to > LK_KEY_BLOCK ? LK_KEY_BLOCK : (int)to;
}

/* The first block that the query at `position` sees anything of. */
static inline int64_t lk_first_block(const lk_attention_shape *s, int64_t position)
{
    int64_t from = s->window > 0 ? position - s->window + 1 : 0;
    return from > 0 ? from / LK_KEY_BLOCK : 0;
}

/* The soft cap on what the softmax will multiply by scale: in one row of a block, columns [first, last). */
static inline void lk_cap_scores(const lk_attention_shape *s, float *scores, int first, int last)
{
    float in = s->scale / s->cap, out = s->cap / s->scale;
    for (int j = first; j < last; j++) scores[j] = out * tanhf(in * scores[j]);
}

#endif
