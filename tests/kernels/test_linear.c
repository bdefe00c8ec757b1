/* Products with frozen matrices of every kind, forward and backward, and embedding. */
#include "tests/kernels/linear_cases.h"

/* What the contract says the weights are. */
static float *meant_weights(const lk_matrix_source *s, lk_dtype compute)
{
    float *w = malloc((size_t)(s->n * s->k) * sizeof(float));
    if (s->type == LK_NF4)
        lk_nf4_dequantize(w, s->data, s->absmax, s->n * s->k);
    else
        lk_to_f32(w, s->data, s->type, s->n * s->k);
    for (int64_t i = 0; i < s->n * s->k && compute == LK_BF16; i++) w[i] = lk_bf16_to_f32(lk_f32_to_bf16(w[i]));
    return w;
}

static double rounded(float x, lk_dtype compute) { return (double)(compute == LK_BF16 ? lk_bf16_to_f32(lk_f32_to_bf16(x)) : x); }

typedef struct outcome {
    float *y, *plain, *dx, *added;
} outcome;

static void outcome_free(outcome *o)
{
    free(o->y);
    free(o->plain);
    free(o->dx);
    free(o->added);
}

static outcome run(lk_backend *be, const lk_matrix *w, const linear_case *c, int64_t first, int64_t rows)
{
    float *x = random_floats(5, c->rows * c->k, 1.0f), *dy = random_floats(6, c->rows * c->n, 1.0f), *bias = random_floats(7, c->n, 1.0f);
    float *start = random_floats(8, c->rows * c->k, 1.0f);
    guarded gx = guarded_from(rows, c->k, c->gap, x + first * c->k), gdy = guarded_from(rows, c->n, c->gap, dy + first * c->n);
    guarded y = guarded_make(rows, c->n, c->gap), plain = guarded_make(rows, c->n, 0), dx = guarded_make(rows, c->k, c->gap);
    guarded added = guarded_from(rows, c->k, c->gap, start + first * c->k);
    OP(be, lk_linear(be, &y.t, &gx.t, w, bias, NULL));
    OP(be, lk_linear(be, &plain.t, &gx.t, w, NULL, NULL));
    /* with a residual: the same bits and one addition */
    guarded summed = guarded_make(rows, c->n, 1);
    OP(be, lk_linear(be, &summed.t, &gx.t, w, bias, &gdy.t));
    float *sums = guarded_values("y with a residual", &summed), *plain_y = guarded_values("y", &y);
    for (int64_t i = 0; i < rows * c->n; i++) plain_y[i] += dy[first * c->n + i];
    check_same_bits("residual", sums, plain_y, (size_t)(rows * c->n) * sizeof(float));
    free(sums);
    free(plain_y);
    guarded_free(&summed);
    OP(be, lk_linear_backward(be, &dx.t, &gdy.t, w, false));
    OP(be, lk_linear_backward(be, &added.t, &gdy.t, w, true));
    outcome o = {guarded_values("y", &y), guarded_values("y", &plain), guarded_values("dx", &dx), guarded_values("dx +=", &added)};
    guarded *all[] = {&gx, &gdy, &y, &plain, &dx, &added};
    for (int i = 0; i < 6; i++) guarded_free(all[i]);
    free(x);
    free(dy);
    free(bias);
    free(start);
    return o;
}

/* y and dx by the definition, in double. The derivative of a linear map is itself: this is its check by differences. */
static void check_definition(lk_backend *be, const outcome *o, const linear_case *c, const float *w)
{
    lk_dtype compute = lk_backend_compute(be);
    float *x = random_floats(5, c->rows * c->k, 1.0f), *dy = random_floats(6, c->rows * c->n, 1.0f), *bias = random_floats(7, c->n, 1.0f);
    float *start = random_floats(8, c->rows * c->k, 1.0f), *want = malloc((size_t)(c->rows * (c->n + c->k) + 1) * sizeof(float));
    for (int64_t t = 0; t < c->rows; t++)
        for (int64_t n = 0; n < c->n; n++) {
            double sum = (double)bias[n];
            for (int64_t k = 0; k < c->k; k++) sum += rounded(x[t * c->k + k], compute) * (double)w[n * c->k + k];
            want[t * c->n + n] = (float)sum;
        }
    /* sums of `width` terms of order 0.5: fp32 rounding of a sum grows with its length */
    double forward = 2e-7 * (double)(16 + c->k), backward = 2e-7 * (double)(16 + c->n);
    check_close("linear", o->y, want, c->rows * c->n, forward, 1e-6);
    for (int64_t i = 0; i < c->rows * c->n; i++) want[i] -= bias[i % c->n];
    check_close("linear without bias", o->plain, want, c->rows * c->n, forward, 2e-6);
    for (int64_t t = 0; t < c->rows; t++)
        for (int64_t k = 0; k < c->k; k++) {
            double sum = 0.0;
            for (int64_t n = 0; n < c->n; n++) sum += rounded(dy[t * c->n + n], compute) * (double)w[n * c->k + k];
            want[t * c->k + k] = (float)sum;
        }
    check_close("linear_backward", o->dx, want, c->rows * c->k, backward, 1e-6);
    for (int64_t i = 0; i < c->rows * c->k; i++) want[i] += start[i];
    check_close("linear_backward, added", o->added, want, c->rows * c->k, backward, 2e-6);
    free(x);
    free(dy);
    free(bias);
    free(start);
    free(want);
}

static void check_rows_alone(lk_backend *be, const lk_matrix *w, const linear_case *c, const outcome *all)
{
    int64_t step = c->rows > 20 ? 7 : 1;
    for (int64_t r = 0; r < c->rows; r += step) {
        int64_t rows = r % 2 && r + 2 <= c->rows ? 2 : 1;
        outcome alone = run(be, w, c, r, rows);
        check_same_bits("linear: a row alone", alone.y, all->y + r * c->n, (size_t)(rows * c->n) * 4);
        check_same_bits("linear_backward: a row alone", alone.dx, all->dx + r * c->k, (size_t)(rows * c->k) * 4);
        outcome_free(&alone);
    }
}

static void check_embed(lk_backend *be, const lk_matrix *m, const linear_case *c, const float *w)
{
    int32_t ids[200];
    for (int64_t t = 0; t < c->rows; t++) ids[t] = (int32_t)((t * 7 + 3) % c->n);
    guarded y = guarded_make(c->rows, c->k, c->gap);
    OP(be, lk_embed(be, &y.t, m, ids));
    float *got = guarded_values("embed", &y);
    for (int64_t t = 0; t < c->rows; t++) check_same_bits("embed", got + t * c->k, w + ids[t] * c->k, (size_t)c->k * 4);
    free(got);
    guarded_free(&y);
}

static void run_all(lk_dtype compute)
{
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be[3] = {0};
        for (int threads = 1; threads <= 3; threads++) be[threads - 1] = open_tier(all_tiers[tier], threads, compute);
        for (int i = 0; i < N_LINEAR_CASES * 4 && be[0]; i++) {
            const linear_case *c = &linear_cases[i / 4];
            void *data;
            float *absmax;
            lk_matrix_source source = make_source(linear_types[i % 4], c->n, c->k, &data, &absmax);
            float *w = meant_weights(&source, compute);
            outcome first = {0};
            for (int b = 0; b < 3; b++) {
                lk_matrix *m;
                size_t before = lk_allocated(be[b]);
                OP(be[b], lk_matrix_create(be[b], &m, &source));
                assert_true(lk_allocated(be[b]) - before == lk_matrix_bytes(be[b], source.type, c->n, c->k, false));
                outcome o = run(be[b], m, c, 0, c->rows);
                if (b == 0) {
                    check_definition(be[b], &o, c, w);
                    check_embed(be[b], m, c, w);
                    check_rows_alone(be[b], m, c, &o);
                    first = o;
                } else {
                    check_same_bits("linear: threads", o.y, first.y, (size_t)(c->rows * c->n) * 4);
                    check_same_bits("linear_backward: threads", o.dx, first.dx, (size_t)(c->rows * c->k) * 4);
                    outcome_free(&o);
                }
                lk_matrix_destroy(be[b], m);
                assert_true(lk_allocated(be[b]) == before);
            }
            outcome_free(&first);
            free(w);
            free(data);
            free(absmax);
        }
        for (int b = 0; b < 3; b++) lk_backend_close(be[b]);
    }
}

static void test_f32(void **state)
{
    (void)state;
    run_all(LK_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    run_all(LK_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
