/* Shapes of frozen matrices and of products with them, shared by the tests of every backend. */
#ifndef LK_TESTS_KERNELS_LINEAR_CASES_H
#define LK_TESTS_KERNELS_LINEAR_CASES_H

#include "kernels/nf4.h"
#include "tests/kernels/ops_check.h"

typedef struct linear_case {
    int64_t rows, n, k, gap;
} linear_case;

static const linear_case linear_cases[] = {
    {0, 16, 64, 0},   {1, 1, 1, 0},      {1, 3, 2, 1},      {3, 17, 7, 0},    {1, 64, 64, 0},
    {4, 32, 128, 2},  {5, 33, 63, 0},    {13, 48, 65, 1},   {2, 97, 192, 0},  {12, 128, 256, 0},
    {31, 80, 320, 0}, {33, 257, 130, 3}, {65, 300, 100, 0}, {129, 64, 96, 0}, {7, 1031, 257, 0},
};
enum { N_LINEAR_CASES = sizeof linear_cases / sizeof *linear_cases };
static const lk_dtype linear_types[] = {LK_F32, LK_BF16, LK_F16, LK_NF4};

/* A matrix in the form of a file; the caller frees data and absmax. */
static inline lk_matrix_source make_source(lk_dtype type, int64_t n, int64_t k, void **data, float **absmax)
{
    float *values = random_floats((uint64_t)(n * 1000 + k), n * k, 0.5f);
    *absmax = NULL;
    if (type == LK_NF4) {
        *data = calloc(1, (size_t)(n * k + 1) / 2);
        *absmax = malloc((size_t)lk_nf4_blocks(n * k) * sizeof(float));
        lk_nf4_quantize(*data, *absmax, values, n * k);
    } else {
        *data = malloc((size_t)(n * k * lk_dtype_size(type)));
        lk_from_f32(*data, type, values, n * k);
    }
    free(values);
    return (lk_matrix_source){type, n, k, *data, *absmax};
}

#endif
