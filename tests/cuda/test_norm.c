/* RMSNorm on the CUDA backend: the shapes of the CPU's test and those that choose the kernels for groups of eight. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/norm_cases.h"

/* A warp a row with one and four groups a lane, a block a row with one, two and four a thread, then twice the threads, then too wide. */
static const norm_case wide[] = {
    {19, 64, 8, 11, 0},  {9, 256, 0, 12, 0},  {11, 1000, 8, 13, 0}, {3, 1032, 0, 14, 0},  {2, 2056, 16, 15, 0},
    {2, 4104, 0, 16, 0}, {1, 8200, 0, 17, 0}, {1, 16384, 0, 18, 0}, {1, 16392, 0, 19, 0}, {1, 2000, 4, 20, 0},
};
enum { N_WIDE = sizeof wide / sizeof *wide };

/* The output's own rounding, 2^-8 of a value; accumulating rounds a sum that may cancel. */
static const double tolerance = 4e-3;

static void run_rows(lk_backend *be, const norm_case *c, int64_t first, int64_t rows, outcome *o)
{
    lk_dtype act = lk_backend_act(be);
    int64_t n = c->rows * c->cols, from = first * c->cols;
    float *x = random_floats(c->seed, n, 1.3f), *dy = random_floats(c->seed + 100, n, 1.0f);
    float *w = random_floats(c->seed + 200, c->cols, 1.0f), *start = random_floats(c->seed + 300, n, 1.0f);
    device_tensor gx = device_from(be, act, rows, c->cols, c->gap, x + from), gdy = device_from(be, act, rows, c->cols, c->gap, dy + from);
    device_tensor y = device_make(be, act, rows, c->cols, c->gap), rstd = device_make(be, LK_F32, rows, 1, 0);
    device_tensor dx = device_make(be, act, rows, c->cols, c->gap), added = device_from(be, act, rows, c->cols, c->gap, start + from);
    device_tensor gw = device_exact(be, 1, c->cols, w);
    const float *weight = device_f32(&gw);
    OP(be, lk_rmsnorm(be, &y.t, device_f32(&rstd), &gx.t, weight, 1e-5f));
    OP(be, lk_rmsnorm_backward(be, &dx.t, &gdy.t, &gx.t, weight, device_f32(&rstd), false));
    OP(be, lk_rmsnorm_backward(be, &added.t, &gdy.t, &gx.t, weight, device_f32(&rstd), true));
    /* in place gives the same bits */
    OP(be, lk_rmsnorm_backward(be, &gdy.t, &gdy.t, &gx.t, weight, device_f32(&rstd), false));
    OP(be, lk_rmsnorm(be, &gx.t, NULL, &gx.t, weight, 1e-5f));
    float *in_place = device_values("y in place", &gx), *dx_in_place = device_values("dx in place", &gdy);
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "rstd", &rstd, 2e-6);
    outcome_add(o, "dx", &dx, tolerance);
    outcome_add(o, "dx +=", &added, tolerance);
    check_same_bits("rmsnorm in place", in_place, o->parts[0].values, (size_t)(rows * c->cols) * 4);
    check_same_bits("rmsnorm_backward in place", dx_in_place, o->parts[2].values, (size_t)(rows * c->cols) * 4);
    device_free(&gx);
    device_free(&gdy);
    device_free(&gw);
    free(in_place);
    free(dx_in_place);
    free(x);
    free(dy);
    free(w);
    free(start);
}

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const norm_case *c = the_case;
    run_rows(be, c, 0, c->rows, o);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_NORM_CASES; i++) check_on_cuda("rmsnorm", run, &norm_cases[i]);
    for (int i = 0; i < N_WIDE; i++) check_on_cuda("rmsnorm", run, &wide[i]);
}

static void test_rows_alone(void **state)
{
    (void)state;
    lk_backend *be = open_cuda(&test_limits);
    for (int i = 0; i < 4; i++) {
        const norm_case *c = &wide[i];
        outcome all = {0};
        run_rows(be, c, 0, c->rows, &all);
        for (int64_t r = 0; r < c->rows; r++) {
            outcome alone = {0};
            run_rows(be, c, r, 1, &alone);
            check_same_bits("a row alone", alone.parts[0].values, all.parts[0].values + r * c->cols, (size_t)c->cols * 4);
            check_same_bits("a gradient row alone", alone.parts[2].values, all.parts[2].values + r * c->cols, (size_t)c->cols * 4);
            outcome_clear(&alone);
        }
        outcome_clear(&all);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_rows_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
