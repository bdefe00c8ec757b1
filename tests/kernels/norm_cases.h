/* Shapes of RMSNorm, shared by the tests of every backend. */
#ifndef LK_TESTS_KERNELS_NORM_CASES_H
#define LK_TESTS_KERNELS_NORM_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct norm_case {
    int64_t rows, cols, gap;
    uint64_t seed;
    double tolerance; /* relative to 1: outputs are of order 1; fp32 sums of up to `cols` squares */
} norm_case;

static const norm_case norm_cases[] = {
    {0, 8, 0, 1, 0},      {1, 1, 0, 2, 2e-6},   {3, 7, 1, 3, 2e-6},    {5, 16, 0, 4, 2e-6},
    {17, 31, 5, 5, 2e-6}, {13, 64, 0, 6, 2e-6}, {33, 129, 3, 7, 3e-6}, {7, 1009, 0, 8, 5e-6},
};
enum { N_NORM_CASES = sizeof norm_cases / sizeof *norm_cases };

#endif
