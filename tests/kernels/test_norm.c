/* RMSNorm both ways: against the reference on every tier and thread count, against differences, alone against in company. */
#include "tests/kernels/norm_cases.h"

typedef struct outcome {
    float *y, *rstd, *dx, *added;
} outcome;

static void outcome_free(outcome *o)
{
    free(o->y);
    free(o->rstd);
    free(o->dx);
    free(o->added);
}

/* Rows [first, first + rows) of the case's data. */
static outcome run(lk_backend *be, const norm_case *c, int64_t first, int64_t rows)
{
    int64_t n = c->rows * c->cols;
    float *x = random_floats(c->seed, n, 1.3f), *dy = random_floats(c->seed + 100, n, 1.0f),
          *w = random_floats(c->seed + 200, c->cols, 1.0f);
    float *start = random_floats(c->seed + 300, n, 1.0f);
    guarded gx = guarded_from(rows, c->cols, c->gap, x + first * c->cols), gdy = guarded_from(rows, c->cols, c->gap, dy + first * c->cols);
    guarded gy = guarded_make(rows, c->cols, c->gap), gdx = guarded_make(rows, c->cols, c->gap);
    guarded gadd = guarded_from(rows, c->cols, c->gap, start + first * c->cols), rstd = guarded_make(rows, 1, 0);
    OP(be, lk_rmsnorm(be, &gy.t, rstd.t.data, &gx.t, w, 1e-5f));
    OP(be, lk_rmsnorm_backward(be, &gdx.t, &gdy.t, &gx.t, w, rstd.t.data, false));
    OP(be, lk_rmsnorm_backward(be, &gadd.t, &gdy.t, &gx.t, w, rstd.t.data, true));
    outcome o = {guarded_values("y", &gy), guarded_values("rstd", &rstd), guarded_values("dx", &gdx), guarded_values("dx +=", &gadd)};
    /* in place gives the same bits */
    OP(be, lk_rmsnorm_backward(be, &gdy.t, &gdy.t, &gx.t, w, rstd.t.data, false));
    OP(be, lk_rmsnorm(be, &gx.t, NULL, &gx.t, w, 1e-5f));
    float *y2 = guarded_values("y in place", &gx), *dx2 = guarded_values("dx in place", &gdy);
    check_same_bits("rmsnorm in place", y2, o.y, (size_t)(rows * c->cols) * 4);
    check_same_bits("rmsnorm_backward in place", dx2, o.dx, (size_t)(rows * c->cols) * 4);
    free(y2);
    free(dx2);
    free(x);
    free(dy);
    free(w);
    free(start);
    guarded *all[] = {&gx, &gdy, &gy, &gdx, &gadd, &rstd};
    for (int i = 0; i < 6; i++) guarded_free(all[i]);
    return o;
}

static void test_tiers(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int t = 0; t < N_TIERS; t++)
        for (int threads = 1; threads <= 3; threads++) {
            lk_backend *be = open_tier(all_tiers[t], threads, LK_F32);
            if (!be) continue;
            for (int i = 0; i < N_NORM_CASES; i++) {
                const norm_case *c = &norm_cases[i];
                int64_t n = c->rows * c->cols;
                outcome want = run(reference, c, 0, c->rows), got = run(be, c, 0, c->rows);
                check_close("rmsnorm", got.y, want.y, n, c->tolerance, c->tolerance);
                check_close("rstd", got.rstd, want.rstd, c->rows, 0, c->tolerance);
                check_close("rmsnorm_backward", got.dx, want.dx, n, 4 * c->tolerance, 4 * c->tolerance);
                check_close("rmsnorm_backward, added", got.added, want.added, n, 4 * c->tolerance, 4 * c->tolerance);
                for (int64_t r = 0; r < c->rows; r++) {
                    outcome alone = run(be, c, r, 1);
                    check_same_bits("a row alone", alone.y, got.y + r * c->cols, (size_t)c->cols * 4);
                    check_same_bits("a gradient row alone", alone.dx, got.dx + r * c->cols, (size_t)c->cols * 4);
                    outcome_free(&alone);
                }
                outcome_free(&want);
                outcome_free(&got);
            }
            lk_backend_close(be);
        }
    lk_backend_close(reference);
}

static void test_threads(void **state)
{
    (void)state;
    for (int t = 1; t < N_TIERS; t++) {
        lk_backend *one = open_tier(all_tiers[t], 1, LK_F32), *three = open_tier(all_tiers[t], 3, LK_F32);
        for (int i = 0; i < N_NORM_CASES && one; i++) {
            outcome a = run(one, &norm_cases[i], 0, norm_cases[i].rows), b = run(three, &norm_cases[i], 0, norm_cases[i].rows);
            check_same_bits("1 and 3 threads", b.y, a.y, (size_t)(norm_cases[i].rows * norm_cases[i].cols) * 4);
            check_same_bits("1 and 3 threads, gradient", b.dx, a.dx, (size_t)(norm_cases[i].rows * norm_cases[i].cols) * 4);
            outcome_free(&a);
            outcome_free(&b);
        }
        lk_backend_close(one);
        lk_backend_close(three);
    }
}

typedef struct difference {
    const norm_case *c;
    const float *w, *dy;
} difference;

static double norm_double(const double *x, void *context)
{
    const difference *d = context;
    double total = 0.0;
    for (int64_t r = 0; r < d->c->rows; r++) {
        double sum = 0.0;
        const double *row = x + r * d->c->cols;
        for (int64_t i = 0; i < d->c->cols; i++) sum += row[i] * row[i];
        double rstd = 1.0 / sqrt(sum / (double)d->c->cols + (double)1e-5f);
        for (int64_t i = 0; i < d->c->cols; i++) total += row[i] * rstd * (double)d->w[i] * (double)d->dy[r * d->c->cols + i];
    }
    return total;
}

static void test_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    for (int i = 2; i < 6; i++) { /* not the single column, whose gradient is a difference of equals */
        const norm_case *c = &norm_cases[i];
        int64_t n = c->rows * c->cols;
        float *x = random_floats(c->seed, n, 1.3f), *dy = random_floats(c->seed + 100, n, 1.0f),
              *w = random_floats(c->seed + 200, c->cols, 1.0f);
        double *xd = to_doubles(x, n);
        outcome o = run(be, c, 0, c->rows);
        double from_op = 0.0;
        for (int64_t j = 0; j < n; j++) from_op += (double)o.y[j] * (double)dy[j];
        assert_true(fabs(norm_double(xd, &(difference){c, w, dy}) - from_op) < 1e-5 * (double)n);
        check_gradient("rmsnorm_backward", o.dx, xd, n, norm_double, &(difference){c, w, dy}, 1e-4);
        outcome_free(&o);
        free(x);
        free(dy);
        free(w);
        free(xd);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiers), cmocka_unit_test(test_threads), cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
