/* DoRA's gain, both ways: every tier against the reference, gradients against differences, rows alone. */
#include "tests/kernels/activation_cases.h"

typedef struct gain_outcome {
    float *y, *dy, *dm;
} gain_outcome;

typedef struct gain_inputs {
    float *y, *dy, *residual, *gain, *bias, *inverse_norm;
} gain_inputs;

static gain_inputs inputs_make(const shape_case *s)
{
    int64_t n = s->rows * s->cols;
    return (gain_inputs){random_floats(31, n, 1.0f),       random_floats(32, n, 1.0f),       random_floats(33, n, 1.0f),
                         random_floats(34, s->cols, 2.0f), random_floats(35, s->cols, 1.0f), random_floats(36, s->cols, 1.0f)};
}

static void inputs_free(gain_inputs *in)
{
    float *all[] = {in->y, in->dy, in->residual, in->gain, in->bias, in->inverse_norm};
    for (int i = 0; i < 6; i++) free(all[i]);
}

/* kind: bit 0 with bias, bit 1 with residual. */
static gain_outcome run(lk_backend *be, const shape_case *s, const gain_inputs *in, int kind, int64_t first, int64_t rows)
{
    guarded y = guarded_from(rows, s->cols, s->gap, in->y + first * s->cols),
            residual = guarded_from(rows, s->cols, s->gap, in->residual + first * s->cols),
            back = guarded_from(rows, s->cols, s->gap, in->y + first * s->cols),
            dy = guarded_from(rows, s->cols, s->gap, in->dy + first * s->cols), dm = guarded_make(1, s->cols, 0);
    float *dm_values = dm.t.data;
    for (int64_t n = 0; n < s->cols; n++) dm_values[n] = 0.5f; /* accumulates */
    OP(be, lk_gain(be, &y.t, in->gain, kind & 1 ? in->bias : NULL, kind & 2 ? &residual.t : NULL));
    OP(be, lk_gain_backward(be, &back.t, &dy.t, in->gain, dm_values, in->inverse_norm));
    gain_outcome o = {guarded_values("y", &y), guarded_values("dy before the gain", &back), guarded_values("dm", &dm)};
    guarded *all[] = {&y, &residual, &back, &dy, &dm};
    for (int i = 0; i < 5; i++) guarded_free(all[i]);
    return o;
}

static void outcome_free(gain_outcome *o)
{
    free(o->y);
    free(o->dy);
    free(o->dm);
}

static void test_tiers(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int t = 1; t < N_TIERS; t++)
        for (int threads = 1; threads <= 3; threads += 2) {
            lk_backend *be = open_tier(all_tiers[t], threads, LK_F32);
            for (int i = 0; i < 4 * N_SHAPES && be; i++) {
                const shape_case *s = &shapes[i / 4];
                gain_inputs in = inputs_make(s);
                gain_outcome want = run(reference, s, &in, i % 4, 0, s->rows), got = run(be, s, &in, i % 4, 0, s->rows);
                size_t bytes = (size_t)(s->rows * s->cols) * 4; /* one multiplication and additions in one order: the same bits */
                check_same_bits("gain", got.y, want.y, bytes);
                check_same_bits("dy before the gain", got.dy, want.dy, bytes);
                check_same_bits("dm", got.dm, want.dm, (size_t)s->cols * 4);
                for (int64_t r = 0; r < s->rows; r++) {
                    gain_outcome alone = run(be, s, &in, i % 4, r, 1);
                    check_same_bits("a row alone", alone.y, got.y + r * s->cols, (size_t)s->cols * 4);
                    outcome_free(&alone);
                }
                outcome_free(&want);
                outcome_free(&got);
                inputs_free(&in);
            }
            lk_backend_close(be);
        }
    lk_backend_close(reference);
}

typedef struct difference {
    const shape_case *s;
    const gain_inputs *in;
} difference;

/* x is y[rows,cols], then m[cols]; gain = m * inverse_norm, the norm held. */
static double in_double(const double *x, void *context)
{
    const difference *d = context;
    int64_t rows = d->s->rows, cols = d->s->cols;
    double total = 0;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t n = 0; n < cols; n++)
            total += x[t * cols + n] * x[rows * cols + n] * (double)d->in->inverse_norm[n] * (double)d->in->dy[t * cols + n];
    return total;
}

static void test_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    const shape_case *s = &shapes[4];
    int64_t n = s->rows * s->cols;
    gain_inputs in = inputs_make(s);
    float *m = random_floats(37, s->cols, 1.0f), *gradient = malloc((size_t)(n + s->cols) * 4);
    double *x = malloc((size_t)(n + s->cols) * sizeof *x);
    for (int64_t i = 0; i < s->cols; i++) in.gain[i] = m[i] * in.inverse_norm[i];
    for (int64_t i = 0; i < n + s->cols; i++) x[i] = (double)(i < n ? in.y[i] : m[i - n]);
    gain_outcome o = run(be, s, &in, 0, 0, s->rows);
    memcpy(gradient, o.dy, (size_t)n * 4);
    for (int64_t i = 0; i < s->cols; i++) gradient[n + i] = o.dm[i] - 0.5f;
    check_gradient("gain_backward", gradient, x, n + s->cols, in_double, &(difference){s, &in}, 1e-4);
    outcome_free(&o);
    inputs_free(&in);
    free(m);
    free(gradient);
    free(x);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiers), cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
