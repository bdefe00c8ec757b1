/* Head and cross-entropy in one: chunks, ignored rows, ties, gradients. */
#include "tests/kernels/loss_cases.h"

typedef struct outcome {
    float *nll, *dx;
    uint8_t hits[200];
} outcome;

static outcome run(lk_backend *be, const loss_case *c, int64_t first, int64_t rows, bool gradient)
{
    float *x = random_floats(1, c->rows * c->width, 1.0f), *w = random_floats(2, c->vocab * c->width, 1.0f);
    int32_t labels[200];
    loss_labels(c, labels);
    lk_matrix *head;
    OP(be, lk_matrix_create(be, &head, &(lk_matrix_source){LK_F32, c->vocab, c->width, w, NULL}));
    guarded gx = guarded_from(rows, c->width, c->gap, x + first * c->width), dx = guarded_make(rows, c->width, c->gap),
            nll = guarded_make(rows, 1, 0);
    outcome o = {0};
    memset(o.hits, 77, sizeof o.hits);
    OP(be, lk_linear_loss(be, nll.t.data, o.hits, gradient ? &dx.t : NULL, &gx.t, head, labels + first, 0.25f, c->cap));
    assert_int_equal(o.hits[rows], 77);
    o.nll = guarded_values("nll", &nll);
    o.dx = guarded_values("dx", &dx);
    OP(be, lk_linear_loss(be, nll.t.data, NULL, NULL, &gx.t, head, labels + first, 0.25f, c->cap));
    float *again = guarded_values("nll", &nll);
    check_same_bits("nll with and without gradient", again, o.nll, (size_t)rows * 4);
    free(again);
    lk_matrix_destroy(be, head);
    guarded_free(&gx);
    guarded_free(&dx);
    guarded_free(&nll);
    free(x);
    free(w);
    return o;
}

static void outcome_free(outcome *o)
{
    free(o->nll);
    free(o->dx);
}

static void run_tiers(lk_dtype compute, double tolerance, double hit_margin)
{
    lk_backend *reference = open_tier("reference", 1, compute);
    for (int tier = 1; tier < N_TIERS; tier++) {
        lk_backend *one = open_tier(all_tiers[tier], 1, compute), *three = open_tier(all_tiers[tier], 3, compute);
        for (int i = 0; i < N_LOSS_CASES && one; i++) {
            const loss_case *c = &loss_cases[i];
            outcome want = run(reference, c, 0, c->rows, true), got = run(one, c, 0, c->rows, true), more = run(three, c, 0, c->rows, true);
            check_close("nll", got.nll, want.nll, c->rows, tolerance, tolerance);
            check_close("dx", got.dx, want.dx, c->rows * c->width, tolerance, tolerance);
            check_same_bits("loss: threads", more.nll, got.nll, (size_t)c->rows * 4);
            check_same_bits("loss gradient: threads", more.dx, got.dx, (size_t)(c->rows * c->width) * 4);
            for (int64_t t = 0; t < c->rows; t++) {
                assert_int_equal(more.hits[t], got.hits[t]);
                if (hit_margin == 0.0) assert_int_equal(got.hits[t], want.hits[t]);
                outcome alone = run(one, c, t, 1, true);
                check_same_bits("loss of a row alone", alone.nll, got.nll + t, 4);
                check_same_bits("gradient of a row alone", alone.dx, got.dx + t * c->width, (size_t)c->width * 4);
                outcome_free(&alone);
                if (c->rows > 20) t += 11;
            }
            outcome_free(&want);
            outcome_free(&got);
            outcome_free(&more);
        }
        lk_backend_close(one);
        lk_backend_close(three);
    }
    lk_backend_close(reference);
}

static void test_f32(void **state)
{
    (void)state;
    run_tiers(LK_F32, 2e-5, 0.0); /* logits of magnitude up to 30 with fp32 error, through exp and differences */
}

static void test_bf16(void **state)
{
    (void)state;
    run_tiers(LK_BF16, 2e-3, 1.0); /* the gradient of the logits is rounded to bf16 in its product: 0.4% of the largest term */
}

typedef struct difference {
    const loss_case *c;
    const float *w;
    const int32_t *labels;
} difference;

static double loss_double(const double *x, void *context)
{
    const difference *d = context;
    double total = 0.0, logits[300];
    for (int64_t t = 0; t < d->c->rows; t++) {
        if (d->labels[t] < 0) continue;
        double sum = 0.0;
        for (int64_t v = 0; v < d->c->vocab; v++) {
            logits[v] = 0.0;
            for (int64_t k = 0; k < d->c->width; k++) logits[v] += x[t * d->c->width + k] * (double)d->w[v * d->c->width + k];
            if (d->c->cap > 0.0f) logits[v] = (double)d->c->cap * tanh(logits[v] / (double)d->c->cap);
            sum += exp(logits[v]);
        }
        total += log(sum) - logits[d->labels[t]];
    }
    return total * 0.25;
}

static void test_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    static const int chosen[] = {2, 3, 8};
    for (int i = 0; i < 3; i++) {
        const loss_case *c = &loss_cases[chosen[i]];
        float *x = random_floats(1, c->rows * c->width, 1.0f), *w = random_floats(2, c->vocab * c->width, 1.0f);
        int32_t labels[200];
        loss_labels(c, labels);
        double *xd = to_doubles(x, c->rows * c->width), total = 0.0;
        outcome o = run(be, c, 0, c->rows, true);
        difference d = {c, w, labels};
        check_gradient("linear_loss", o.dx, xd, c->rows * c->width, loss_double, &d, 1e-4);
        for (int64_t t = 0; t < c->rows; t++) {
            total += 0.25 * (double)o.nll[t];
            if (labels[t] < 0) assert_true(o.nll[t] == 0.0f && o.hits[t] == 0);
            for (int64_t k = 0; k < c->width && labels[t] < 0; k++) assert_true(o.dx[t * c->width + k] == 0.0f);
        }
        assert_true(fabs(total - loss_double(xd, &d)) < 1e-5 * total);
        outcome_free(&o);
        free(x);
        free(w);
        free(xd);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16), cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
