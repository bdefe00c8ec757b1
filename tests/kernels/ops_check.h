/* What the tests of operations share: the tiers of this machine, tensors with guard floats round and between their rows, and
 * gradients by central differences in double.
 *
 *     CHECK_TIERS(tier) { lk_backend *be = open_tier(tier, 2, LK_F32); ...; lk_backend_close(be); }
 */
#ifndef LK_TESTS_KERNELS_OPS_CHECK_H
#define LK_TESTS_KERNELS_OPS_CHECK_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/check.h"

static const char *const all_tiers[] = {"reference", "portable", "avx2", "avx512", "amx"};
enum { N_TIERS = 5 };

/* Limits that cover every case of these tests. */
static const lk_limits test_limits = {.tokens = 512,
                                      .width = 2500,
                                      .vocab = 2100,
                                      .rank = 256,
                                      .heads = 16,
                                      .kv_heads = 16,
                                      .head_dim = 256,
                                      .context = 1200,
                                      .training = true,
                                      .head = true};

/* NULL when this processor lacks the tier. */
static inline lk_backend *open_tier(const char *tier, int threads, lk_dtype compute)
{
    lk_error err = {0};
    lk_backend *be;
    lk_status status =
        lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = threads, .compute = compute, .cpu_tier = tier}, &err);
    if (status == LK_ERR_UNSUPPORTED) return NULL;
    CHECK_OK(status, &err);
    CHECK_OK(lk_reserve(be, &test_limits), lk_backend_error(be));
    return be;
}

#define OP(be, expression) CHECK_OK(expression, lk_backend_error(be))

/* ---- guarded tensors: [guard][row 0][gap][row 1][gap]...[guard], where guard and gap hold a pattern */

enum { GUARD = 32 };
static const uint32_t guard_bits = 0x7fc0beef; /* a NaN: reading it shows as well */

typedef struct guarded {
    float *memory;
    int64_t size;
    lk_tensor t;
} guarded;

static inline guarded guarded_make(int64_t rows, int64_t cols, int64_t gap)
{
    guarded g = {.size = rows * (cols + gap) + 2 * GUARD};
    g.memory = malloc((size_t)g.size * sizeof(float));
    assert_non_null(g.memory);
    for (int64_t i = 0; i < g.size; i++) memcpy(&g.memory[i], &guard_bits, 4);
    g.t = lk_tensor_make(g.memory + GUARD, LK_F32, rows, cols);
    g.t.stride = cols + gap;
    return g;
}

static inline void guarded_fill(guarded *g, const float *values)
{
    for (int64_t r = 0; r < g->t.rows; r++)
        memcpy((float *)g->t.data + r * g->t.stride, values + r * g->t.cols, (size_t)g->t.cols * sizeof(float));
}

static inline guarded guarded_from(int64_t rows, int64_t cols, int64_t gap, const float *values)
{
    guarded g = guarded_make(rows, cols, gap);
    guarded_fill(&g, values);
    return g;
}

/* The values without gaps; the caller frees. Checks the guards on the way. */
static inline float *guarded_values(const char *what, const guarded *g)
{
    float *out = malloc((size_t)(g->t.rows * g->t.cols + 1) * sizeof(float));
    assert_non_null(out);
    for (int64_t i = 0; i < g->size; i++) {
        int64_t at = i - GUARD, row = at / g->t.stride, column = at % g->t.stride;
        if (at >= 0 && row < g->t.rows && column < g->t.cols) {
            out[row * g->t.cols + column] = g->memory[i];
        } else if (memcmp(&g->memory[i], &guard_bits, 4) != 0) {
            fail_msg("%s: wrote outside its rows, at element %lld of row %lld", what, (long long)column, (long long)row);
        }
    }
    return out;
}

static inline void guarded_free(guarded *g) { free(g->memory); }

static inline float *random_floats(uint64_t seed, int64_t n, float scale)
{
    check_random r = {seed * 0x9e3779b97f4a7c15u + 1};
    float *out = malloc((size_t)(n + 1) * sizeof(float));
    assert_non_null(out);
    check_random_fill(&r, out, n, scale);
    return out;
}

static inline double *to_doubles(const float *x, int64_t n)
{
    double *out = malloc((size_t)(n + 1) * sizeof(double));
    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) out[i] = (double)x[i];
    return out;
}

/* ---- finite differences: f is a scalar function of x[n] in double */

typedef double scalar_function(const double *x, void *context);

static inline void check_gradient(const char *what, const float *gradient, double *x, int64_t n, scalar_function *f, void *context,
                                  double tolerance)
{
    double scale = 0.0;
    for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs((double)gradient[i]));
    for (int64_t i = 0; i < n; i++) {
        double kept = x[i], step = 1e-5;
        x[i] = kept + step;
        double up = f(x, context);
        x[i] = kept - step;
        double down = f(x, context);
        x[i] = kept;
        double want = (up - down) / (2 * step);
        if (!(fabs(want - (double)gradient[i]) <= tolerance * (fabs(want) + 0.1 * scale + 1e-3)))
            fail_msg("%s: gradient [%lld] is %.8g, by differences %.8g", what, (long long)i, (double)gradient[i], want);
    }
}

static inline double weighted_sum(const double *y, const float *weights, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += y[i] * (double)weights[i];
    return sum;
}

#endif
