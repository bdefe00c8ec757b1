/* RoPE, gated activations, add and gather: every tier against the reference, gradients against differences, rows alone. */
#include "tests/kernels/activation_cases.h"

/* ---------------------------------------------------------------------------------------------- gated activations */

typedef struct glu_outcome {
    float *y, *dgate, *dup;
} glu_outcome;

static void glu_free(glu_outcome *o)
{
    free(o->y);
    free(o->dgate);
    free(o->dup);
}

static glu_outcome run_glu(lk_backend *be, const shape_case *s, lk_activation act, int64_t first, int64_t rows)
{
    float *in[3];
    glu_inputs(s, in);
    guarded gate = guarded_from(rows, s->cols, s->gap, in[0] + first * s->cols),
            up = guarded_from(rows, s->cols, s->gap, in[1] + first * s->cols);
    guarded dy = guarded_from(rows, s->cols, s->gap, in[2] + first * s->cols), y = guarded_make(rows, s->cols, s->gap);
    OP(be, lk_glu(be, &y.t, &gate.t, &up.t, act));
    OP(be, lk_glu_backward(be, &gate.t, &up.t, &dy.t, &gate.t, &up.t, act)); /* the aliasing the contract allows */
    glu_outcome o = {guarded_values("glu", &y), guarded_values("dgate", &gate), guarded_values("dup", &up)};
    guarded *all[] = {&gate, &up, &dy, &y};
    for (int i = 0; i < 4; i++) guarded_free(all[i]);
    for (int i = 0; i < 3; i++) free(in[i]);
    return o;
}

static void test_glu_tiers(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int t = 1; t < N_TIERS; t++)
        for (int threads = 1; threads <= 3; threads++) {
            lk_backend *be = open_tier(all_tiers[t], threads, LK_F32);
            for (int i = 0; i < 2 * N_SHAPES && be; i++) {
                const shape_case *s = &shapes[i / 2];
                lk_activation act = i % 2 ? LK_GELU_TANH : LK_SILU;
                int64_t n = s->rows * s->cols;
                glu_outcome want = run_glu(reference, s, act, 0, s->rows), got = run_glu(be, s, act, 0, s->rows);
                check_close("glu", got.y, want.y, n, 2e-6, 2e-6); /* an own exp within a few ulp, times values up to 10 */
                check_close("dgate", got.dgate, want.dgate, n, 4e-6, 4e-6);
                check_close("dup", got.dup, want.dup, n, 4e-6, 4e-6);
                for (int64_t r = 0; r < s->rows; r++) {
                    glu_outcome alone = run_glu(be, s, act, r, 1);
                    check_same_bits("glu of a row alone", alone.y, got.y + r * s->cols, (size_t)s->cols * 4);
                    check_same_bits("dgate of a row alone", alone.dgate, got.dgate + r * s->cols, (size_t)s->cols * 4);
                    glu_free(&alone);
                }
                glu_free(&want);
                glu_free(&got);
            }
            lk_backend_close(be);
        }
    lk_backend_close(reference);
}

typedef struct glu_difference {
    int64_t n;
    lk_activation act;
    const float *dy;
} glu_difference;

/* x is gate[n] then up[n]. */
static double glu_double(const double *x, void *context)
{
    const glu_difference *d = context;
    double total = 0.0;
    for (int64_t i = 0; i < d->n; i++) {
        double g = x[i], a = d->act == LK_SILU ? g / (1 + exp(-g))
                                               : 0.5 * g * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g)));
        total += a * x[d->n + i] * (double)d->dy[i];
    }
    return total;
}

static void test_glu_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    const shape_case *s = &shapes[4];
    int64_t n = s->rows * s->cols;
    for (int act = 0; act < 2; act++) {
        float *in[3], *gradient = malloc((size_t)(2 * n) * sizeof(float));
        glu_inputs(s, in);
        double *x = malloc((size_t)(2 * n) * sizeof(double));
        for (int64_t i = 0; i < 2 * n; i++) x[i] = (double)in[i / n][i % n];
        glu_outcome o = run_glu(be, s, (lk_activation)act, 0, s->rows);
        memcpy(gradient, o.dgate, (size_t)n * 4);
        memcpy(gradient + n, o.dup, (size_t)n * 4);
        check_gradient("glu_backward", gradient, x, 2 * n, glu_double, &(glu_difference){n, (lk_activation)act, in[2]}, 1e-4);
        glu_free(&o);
        free(gradient);
        free(x);
        for (int i = 0; i < 3; i++) free(in[i]);
    }
    lk_backend_close(be);
}

/* ---------------------------------------------------------------------------------------------- RoPE */

static float *run_rope(lk_backend *be, const rope_case *c, const float *values, bool backward)
{
    guarded x = guarded_from(c->rows, c->heads * c->head_dim, 3, values), table = guarded_make(c->rows, c->rotated, 0);
    int32_t positions[32];
    float inv_freq[64];
    for (int64_t i = 0; i < c->rows; i++) positions[i] = (int32_t)(i * 131 % 4000);
    for (int64_t i = 0; i < c->rotated / 2; i++) inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / (double)c->rotated);
    OP(be, lk_rope_table(be, &table.t, positions, inv_freq, c->factor));
    OP(be, lk_rope(be, &x.t, c->heads, &table.t, backward));
    float *out = guarded_values("rope", &x);
    guarded_free(&x);
    guarded_free(&table);
    return out;
}

/* A rotation is orthogonal: backward undoes forward up to factor^2, norms of pairs are kept, and position 0 is the identity. */
static void test_rope(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int t = 0; t < N_TIERS; t++) {
        lk_backend *be = open_tier(all_tiers[t], 2, LK_F32);
        for (int i = 0; i < N_ROPES && be; i++) {
            const rope_case *c = &ropes[i];
            int64_t width = c->heads * c->head_dim, n = c->rows * width;
            float *x = random_floats(21, n, 1.0f), *want = run_rope(reference, c, x, false), *got = run_rope(be, c, x, false);
            check_close("rope", got, want, n, 1e-6, 1e-6);
            float *back = run_rope(be, c, got, true);
            for (int64_t j = 0; j < n; j++) {
                bool turned = j % c->head_dim < c->rotated;
                double f = turned ? (double)c->factor * (double)c->factor : 1.0;
                if (fabs((double)back[j] - f * (double)x[j]) > 2e-6 * (1 + fabs((double)x[j])))
                    fail_msg("rope there and back: [%lld]", (long long)j);
                if (j < width && turned && fabs((double)got[j] - (double)c->factor * (double)x[j]) > 1e-6)
                    fail_msg("position 0 must not turn");
            }
            free(x);
            free(want);
            free(got);
            free(back);
        }
        lk_backend_close(be);
    }
    lk_backend_close(reference);
}

/* The transpose: <dy, R x> = <R' dy, x>. */
static void test_rope_transpose(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    for (int i = 0; i < N_ROPES; i++) {
        const rope_case *c = &ropes[i];
        int64_t n = c->rows * c->heads * c->head_dim;
        float *x = random_floats(22, n, 1.0f), *dy = random_floats(23, n, 1.0f), *y = run_rope(be, c, x, false),
              *dx = run_rope(be, c, dy, true);
        double left = 0, right = 0;
        for (int64_t j = 0; j < n; j++) {
            left += (double)dy[j] * (double)y[j];
            right += (double)dx[j] * (double)x[j];
        }
        assert_true(fabs(left - right) < 1e-5 * (double)n);
        free(x);
        free(dy);
        free(y);
        free(dx);
    }
    lk_backend_close(be);
}

/* The table against values of the formula, for a position where fp32 angles matter. */
static void test_rope_table(void **state)
{
    (void)state;
    for (int t = 0; t < N_TIERS; t++) {
        lk_backend *be = open_tier(all_tiers[t], 1, LK_F32);
        if (!be) continue;
        float inv_freq[2] = {1.0f, 0.31622776f};
        int32_t positions[2] = {0, 100003};
        guarded table = guarded_make(2, 4, 0);
        OP(be, lk_rope_table(be, &table.t, positions, inv_freq, 2.0f));
        float *v = guarded_values("table", &table);
        float angle = 100003.0f * 0.31622776f;
        const float want[8] = {
            2, 2, 0, 0, 2 * (float)cos(100003.0), 2 * (float)cos((double)angle), 2 * (float)sin(100003.0), 2 * (float)sin((double)angle)};
        check_close("rope_table", v, want, 8, 3e-7, 0);
        free(v);
        guarded_free(&table);
        lk_backend_close(be);
    }
}

/* ---------------------------------------------------------------------------------------------- add, scale, cap, gather */

static void test_add_gather(void **state)
{
    (void)state;
    for (int t = 0; t < N_TIERS; t++) {
        lk_backend *be = open_tier(all_tiers[t], 3, LK_F32);
        for (int i = 0; i < N_SHAPES && be; i++) {
            const shape_case *s = &shapes[i];
            int64_t n = s->rows * s->cols;
            float *a = random_floats(31, n, 1.0f), *b = random_floats(32, n, 1.0f);
            guarded y = guarded_from(s->rows, s->cols, s->gap, a), x = guarded_from(s->rows, s->cols, s->gap, b),
                    picked = guarded_make(s->rows, s->cols, 1);
            int32_t rows[32];
            for (int64_t r = 0; r < s->rows; r++) rows[r] = (int32_t)((r * 5 + 1) % s->rows);
            OP(be, lk_gather_rows(be, &picked.t, &x.t, rows));
            OP(be, lk_add(be, &y.t, &x.t));
            guarded scaled = guarded_make(s->rows, s->cols, s->gap);
            OP(be, lk_scale(be, &scaled.t, &x.t, 0.22f));
            OP(be, lk_scale(be, &scaled.t, &scaled.t, 4.0f));
            OP(be, lk_cap(be, &scaled.t, 0.5f));
            float *capped = guarded_values("cap", &scaled);
            for (int64_t j = 0; j < n; j++) {
                double want = 0.5 * tanh((double)(0.22f * b[j] * 4.0f) / 0.5);
                assert_true(fabs((double)capped[j] - want) < 2e-7);
            }
            free(capped);
            guarded_free(&scaled);
            float *sum = guarded_values("add", &y), *chosen = guarded_values("gather", &picked);
            for (int64_t j = 0; j < n; j++) {
                assert_true(sum[j] == a[j] + b[j]);
                assert_true(chosen[j] == b[rows[j / s->cols] * s->cols + j % s->cols]);
            }
            free(sum);
            free(chosen);
            free(a);
            free(b);
            guarded_free(&y);
            guarded_free(&x);
            guarded_free(&picked);
        }
        lk_backend_close(be);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_glu_tiers),  cmocka_unit_test(test_glu_differences),
                                       cmocka_unit_test(test_rope),       cmocka_unit_test(test_rope_transpose),
                                       cmocka_unit_test(test_rope_table), cmocka_unit_test(test_add_gather)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
