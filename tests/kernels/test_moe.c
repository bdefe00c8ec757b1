/* Routing among experts and joining what they give: against a plain statement of it, against differences, with guard bytes, ties, and one
 * to all experts chosen. */
#include "tests/kernels/moe_cases.h"

typedef struct outcome {
    int32_t *ids;
    float *weights, *dlogits, *y, *dx, *dweights;
} outcome;

static outcome run(lk_backend *be, const moe_case *c)
{
    int64_t n = c->rows * c->k;
    float *l = random_floats(1, c->rows * c->experts, 2.0f), *dw = random_floats(2, n, 1.0f), *x = random_floats(3, n * c->cols, 1.0f);
    float *beside = random_floats(4, c->rows * c->cols, 1.0f), *dy = random_floats(6, c->rows * c->cols, 1.0f);
    int32_t *slots = moe_slots(c);
    guarded logits = guarded_from(c->rows, c->experts, c->gap, l), weights = guarded_make(c->rows, c->k, c->gap);
    guarded dweights = guarded_from(c->rows, c->k, c->gap, dw), dlogits = guarded_make(c->rows, c->experts, c->gap);
    guarded gx = guarded_from(n, c->cols, c->gap, x), y = guarded_make(c->rows, c->cols, c->gap);
    guarded residual = guarded_from(c->rows, c->cols, 0, beside), gdy = guarded_from(c->rows, c->cols, c->gap, dy);
    outcome o = {.ids = malloc((size_t)(n + 1) * sizeof(int32_t))};
    o.ids[n] = 77;
    OP(be, lk_moe_route(be, o.ids, &weights.t, &logits.t, c->normalise));
    OP(be, lk_moe_route_backward(be, &dlogits.t, &dweights.t, o.ids, &logits.t, c->normalise));
    OP(be, lk_moe_combine(be, &y.t, &gx.t, slots, &weights.t, &residual.t));
    o.y = guarded_values("combined", &y);
    OP(be, lk_moe_combine(be, &y.t, &gx.t, slots, NULL, NULL));
    float *plain = guarded_values("combined without weights", &y);
    for (int64_t t = 0; t < c->rows; t++)
        for (int64_t i = 0; i < c->cols; i++) {
            double sum = 0.0;
            for (int64_t j = 0; j < c->k; j++) sum += (double)x[slots[t * c->k + j] * c->cols + i];
            assert_true(fabs(sum - (double)plain[t * c->cols + i]) < 1e-5);
        }
    free(plain);
    OP(be, lk_moe_combine_backward(be, &gx.t, &dweights.t, &gdy.t, &gx.t, slots, &weights.t)); /* in place, as the contract allows */
    assert_int_equal(o.ids[n], 77);
    o.weights = guarded_values("weights", &weights);
    o.dlogits = guarded_values("dlogits", &dlogits);
    o.dx = guarded_values("dx", &gx);
    o.dweights = guarded_values("dweights", &dweights);
    guarded *all[] = {&logits, &weights, &dweights, &dlogits, &gx, &y, &residual, &gdy};
    for (int i = 0; i < 8; i++) guarded_free(all[i]);
    float *inputs[] = {l, dw, x, beside, dy};
    for (int i = 0; i < 5; i++) free(inputs[i]);
    free(slots);
    return o;
}

static void outcome_free(outcome *o)
{
    float *all[] = {o->weights, o->dlogits, o->y, o->dx, o->dweights};
    for (int i = 0; i < 5; i++) free(all[i]);
    free(o->ids);
}

static void test_tiers(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int tier = 1; tier < N_TIERS; tier++) {
        lk_backend *one = open_tier(all_tiers[tier], 1, LK_F32), *three = open_tier(all_tiers[tier], 3, LK_F32);
        for (int i = 0; i < N_MOE_CASES && one; i++) {
            const moe_case *c = &moe_cases[i];
            int64_t n = c->rows * c->k;
            outcome want = run(reference, c), got = run(one, c), more = run(three, c);
            check_same_bits("ids", got.ids, want.ids, (size_t)n * 4);
            check_close("weights", got.weights, want.weights, n, 1e-6, 1e-6); /* an exponential and a quotient in fp32 */
            check_close("dlogits", got.dlogits, want.dlogits, c->rows * c->experts, 2e-6, 1e-5);
            check_close("combined", got.y, want.y, c->rows * c->cols, 5e-6, 1e-6);
            check_close("dx", got.dx, want.dx, n * c->cols, 5e-6, 1e-6);
            check_close("dweights", got.dweights, want.dweights, n, 2e-5, 1e-6); /* sums of some 40 products */
            check_same_bits("threads: dlogits", more.dlogits, got.dlogits, (size_t)(c->rows * c->experts) * 4);
            check_same_bits("threads: combined", more.y, got.y, (size_t)(c->rows * c->cols) * 4);
            outcome_free(&want);
            outcome_free(&got);
            outcome_free(&more);
        }
        lk_backend_close(one);
        lk_backend_close(three);
    }
    lk_backend_close(reference);
}

/* ---- differences */

typedef struct difference {
    const moe_case *c;
    const int32_t *ids;
    const float *dw;
} difference;

static double route_double(const double *x, void *context)
{
    const difference *d = context;
    const moe_case *c = d->c;
    double total = 0.0;
    for (int64_t t = 0; t < c->rows; t++) {
        double sum = 0.0;
        for (int64_t e = 0; e < c->experts; e++) {
            bool counts = !c->normalise;
            for (int64_t j = 0; j < c->k; j++) counts = counts || d->ids[t * c->k + j] == e;
            if (counts) sum += exp(x[t * c->experts + e]);
        }
        for (int64_t j = 0; j < c->k; j++) total += exp(x[t * c->experts + d->ids[t * c->k + j]]) / sum * (double)d->dw[t * c->k + j];
    }
    return total;
}

static void test_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    for (int i = 1; i < 5; i++) {
        const moe_case *c = &moe_cases[i];
        outcome o = run(be, c);
        float *l = random_floats(1, c->rows * c->experts, 2.0f), *dw = random_floats(2, c->rows * c->k, 1.0f);
        double *x = to_doubles(l, c->rows * c->experts);
        check_gradient("moe_route_backward", o.dlogits, x, c->rows * c->experts, route_double, &(difference){c, o.ids, dw}, 1e-4);
        /* What is chosen is what is largest, and the weights add up. */
        for (int64_t t = 0; t < c->rows; t++) {
            double sum = 0.0;
            for (int64_t j = 0; j < c->k; j++) {
                sum += (double)o.weights[t * c->k + j];
                if (j) assert_true(l[t * c->experts + o.ids[t * c->k + j]] <= l[t * c->experts + o.ids[t * c->k + j - 1]]);
            }
            assert_true(c->normalise || c->k == c->experts ? fabs(sum - 1.0) < 1e-6 : sum < 1.0);
        }
        outcome_free(&o);
        free(l);
        free(dw);
        free(x);
    }
    lk_backend_close(be);
}

/* Equal logits: the lower id first. Not a number: each choice is still another expert. */
static void test_ties(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be = open_tier(all_tiers[tier], 1, LK_F32);
        if (!be) continue;
        float l[10] = {1, 3, 3, 0, 3, NAN, NAN, NAN, NAN, NAN}, w[6];
        int32_t ids[6];
        lk_tensor logits = lk_tensor_make(l, LK_F32, 2, 5), weights = lk_tensor_make(w, LK_F32, 2, 3);
        OP(be, lk_moe_route(be, ids, &weights, &logits, true));
        assert_true(ids[0] == 1 && ids[1] == 2 && ids[2] == 4);
        for (int j = 0; j < 3; j++) assert_true(fabsf(w[j] - 1.0f / 3.0f) < 1e-6f);
        assert_true(ids[3] != ids[4] && ids[4] != ids[5] && ids[3] != ids[5]);
        for (int j = 3; j < 6; j++) assert_true(ids[j] >= 0 && ids[j] < 5);
        lk_backend_close(be);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 1, LK_F32);
    float l[4] = {0}, w[8] = {0};
    int32_t ids[8] = {0}, slots[4] = {0, 1, 2, 9};
    lk_tensor logits = lk_tensor_make(l, LK_F32, 1, 4), many = lk_tensor_make(w, LK_F32, 1, 5), x = lk_tensor_make(w, LK_F32, 4, 2);
    lk_tensor y = lk_tensor_make(l, LK_F32, 2, 2), three = lk_tensor_make(l, LK_F32, 3, 1);
    assert_int_equal(lk_moe_route(be, ids, &many, &logits, true), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "more choices than experts"));
    assert_int_equal(lk_moe_combine(be, &y, &x, slots, NULL, NULL), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "slot 9 of 4"));
    assert_int_equal(lk_moe_combine(be, &three, &x, slots, NULL, NULL), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "do not divide into rows"));
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiers), cmocka_unit_test(test_differences), cmocka_unit_test(test_ties),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
