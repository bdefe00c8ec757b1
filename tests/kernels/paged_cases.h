/* The cases of attention over the paged cache, for every backend: several sequences, one past a page, a block and a split, groups, windows.
 */
#ifndef LK_TESTS_KERNELS_PAGED_CASES_H
#define LK_TESTS_KERNELS_PAGED_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct paged_case {
    int64_t lengths[4]; /* of sequences */
    int64_t sequences, heads, kv_heads, head_dim, window;
    int32_t page_tokens;
    lk_dtype type;
    float cap; /* of the scores, 0: none */
} paged_case;

static const paged_case paged_cases[] = {
    {{1}, 1, 1, 1, 1, 0, 16, LK_F32},
    {{5, 1}, 2, 2, 1, 8, 0, 16, LK_F32},
    {{17, 33, 1}, 3, 4, 2, 16, 0, 16, LK_F32},
    {{65, 40}, 2, 6, 2, 33, 0, 16, LK_BF16},
    {{130, 64, 63}, 3, 4, 1, 64, 0, 32, LK_BF16},
    {{100, 257}, 2, 8, 4, 64, 40, 64, LK_BF16},
    {{129, 31}, 2, 5, 5, 80, 1, 128, LK_F32},
    {{300, 7}, 2, 2, 1, 128, 0, 256, LK_BF16},
    {{530, 7}, 2, 6, 2, 40, 0, 64, LK_BF16},
    {{40, 290}, 2, 3, 1, 256, 270, 32, LK_BF16},
    {{90}, 1, 20, 1, 96, 0, 16, LK_BF16},
    {{70, 16, 1}, 3, 4, 2, 33, 0, 16, LK_I8},
    {{300, 7}, 2, 8, 2, 128, 200, 64, LK_I8},
    {{70, 20}, 2, 4, 2, 24, 50, 16, LK_BF16, 2.0f},
};
enum { N_PAGED_CASES = sizeof paged_cases / sizeof *paged_cases, LAYERS = 2, LAYER = 1, N_PAGES = 31 };

typedef struct paged_inputs {
    float *q, *k, *v; /* all sequences one after another */
    int64_t rows;
} paged_inputs;

static inline paged_inputs paged_inputs_make(const paged_case *c)
{
    paged_inputs in = {0};
    for (int64_t s = 0; s < c->sequences; s++) in.rows += c->lengths[s];
    in.q = random_floats(1, in.rows * c->heads * c->head_dim, 1.5f);
    in.k = random_floats(2, in.rows * c->kv_heads * c->head_dim, 1.0f);
    in.v = random_floats(3, in.rows * c->kv_heads * c->head_dim, 1.0f);
    return in;
}

static inline void paged_inputs_free(paged_inputs *in)
{
    free(in->q);
    free(in->k);
    free(in->v);
}

#endif
