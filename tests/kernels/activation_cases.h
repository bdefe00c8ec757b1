/* Shapes of element-wise operations and of RoPE, shared by the tests of every backend. */
#ifndef LK_TESTS_KERNELS_ACTIVATION_CASES_H
#define LK_TESTS_KERNELS_ACTIVATION_CASES_H

#include "tests/kernels/ops_check.h"

typedef struct shape_case {
    int64_t rows, cols, gap;
} shape_case;

static const shape_case shapes[] = {{0, 5, 0}, {1, 1, 0}, {2, 15, 1}, {7, 16, 0}, {5, 33, 2}, {19, 97, 0}, {3, 1031, 5}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Gate, up and the gradient of the output. */
static inline void glu_inputs(const shape_case *s, float *in[3])
{
    int64_t n = s->rows * s->cols;
    in[0] = random_floats(11, n, 3.0f); /* wide enough to reach both tails */
    in[1] = random_floats(12, n, 1.0f);
    in[2] = random_floats(13, n, 1.0f);
    if (n > 20) {
        in[0][3] = 100.0f;
        in[0][4] = -100.0f;
        in[0][5] = 0.0f;
    }
}

typedef struct rope_case {
    int64_t rows, heads, head_dim, rotated;
    float factor;
} rope_case;

static const rope_case ropes[] = {
    {1, 1, 2, 2, 1.0f}, {3, 2, 6, 6, 1.0f}, {9, 3, 34, 32, 1.0f}, {17, 4, 64, 64, 0.5f}, {5, 2, 128, 32, 1.0f}};
enum { N_ROPES = sizeof ropes / sizeof *ropes };

#endif
