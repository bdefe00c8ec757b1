/* Rows of routing and joining, for the tests of every backend. */
#ifndef LK_TESTS_KERNELS_MOE_CASES_H
#define LK_TESTS_KERNELS_MOE_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct moe_case {
    int64_t rows, cols, experts, k, gap;
    bool normalise;
} moe_case;

static const moe_case moe_cases[] = {{1, 1, 1, 1, 0, true},   {3, 7, 4, 2, 1, true},    {3, 7, 4, 2, 0, false},    {17, 33, 8, 8, 0, false},
                                     {17, 16, 8, 3, 2, true}, {65, 40, 60, 4, 0, true}, {40, 24, 128, 8, 0, false}};
enum { N_MOE_CASES = sizeof moe_cases / sizeof *moe_cases };

/* A permutation of the slots that mixes rows. */
static inline int32_t *moe_slots(const moe_case *c)
{
    int64_t n = c->rows * c->k;
    int32_t *slots = malloc((size_t)n * sizeof *slots);
    check_random r = {5};
    for (int64_t i = 0; i < n; i++) slots[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)(check_random_u64(&r) % (uint64_t)(i + 1));
        int32_t t = slots[i];
        slots[i] = slots[j];
        slots[j] = t;
    }
    return slots;
}

#endif
