/* Cases of the head's loss, for every backend. */
#ifndef LK_TESTS_KERNELS_LOSS_CASES_H
#define LK_TESTS_KERNELS_LOSS_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct loss_case {
    int64_t rows, vocab, width, gap;
    int ignore; /* every ignore-th row is ignored; 1: all of them, 0: none */
    float cap;  /* of the logits, 0: none */
} loss_case;

static const loss_case loss_cases[] = {{0, 7, 5, 0, 0},         {1, 1, 1, 0, 0},           {3, 17, 7, 1, 0},     {9, 33, 16, 0, 2},
                                       {65, 129, 64, 0, 3},     {5, 40, 24, 0, 1},         {130, 257, 48, 3, 5}, {17, 2053, 65, 0, 4},
                                       {6, 45, 32, 0, 4, 3.0f}, {20, 2100, 40, 8, 6, 8.0f}};
enum { N_LOSS_CASES = sizeof loss_cases / sizeof *loss_cases };

static inline void loss_labels(const loss_case *c, int32_t *labels)
{
    check_random r = {99};
    for (int64_t t = 0; t < c->rows; t++) {
        labels[t] = (int32_t)(check_random_u64(&r) % (uint64_t)c->vocab);
        if (c->ignore && t % c->ignore == 0) labels[t] = t % 2 ? -1 : -100;
    }
}

#endif
