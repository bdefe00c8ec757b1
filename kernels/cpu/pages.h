/* The inner loops of paged attention, one set per instruction set (pages_portable.c, pages_avx2.c, pages_avx512.c from pages_body.h).
 * Queries that share a key/value head go through together, so that a key or value is loaded once for several of them. What is
 * summed for one query, and in which order, does not depend on the others. */
#ifndef LK_KERNELS_CPU_PAGES_H
#define LK_KERNELS_CPU_PAGES_H

#include "kernels/cpu/kv.h"

enum { LK_QUERIES = 8 }; /* that go through together */

/* The 64 keys and values of one block: four tiles of sixteen positions, each wherever its page is. Tiles without a visible key are
 * NULL. */
typedef struct lk_page_block {
    const void *keys[4];       /* [D][16] */
    const void *values[4];     /* [16][D] */
    const float *scales[2][4]; /* 8 bits: [16] of the keys, of the values */
    lk_dtype type;
    int64_t head_dim;
} lk_page_block;

typedef struct lk_pages {
    /* s[r*64 + j] = q[r] . key j for n <= LK_QUERIES queries, q[r*D + d]; columns of NULL tiles are left alone. */
    void (*scores)(float *s, const float *q, int n, const lk_page_block *b);
    /* o[r*D + d] += sum over j in [first[r], last[r]) of p[r*64 + j] * value j, j rising. */
    void (*weigh)(float *o, const float *p, int n, const int *first, const int *last, const lk_page_block *b);
} lk_pages;

const lk_pages *lk_pages_get(lk_cpu_tier tier);

extern const lk_pages lk_pages_portable, lk_pages_avx2, lk_pages_avx512;

#endif
