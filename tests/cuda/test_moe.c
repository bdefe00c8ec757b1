/* Routing among experts and joining what they give, on the CUDA backend. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/moe_cases.h"

/* One rounding to bf16, 2^-8; a sum of up to eight products before it. */
static const double tolerance = 5e-3;

static float *ids_values(lk_backend *be, const void *ids, int64_t n)
{
    int32_t *host = malloc((size_t)n * 4);
    float *out = malloc((size_t)n * 4);
    OP(be, lk_download(be, host, ids, (size_t)n * 4));
    for (int64_t i = 0; i < n; i++) out[i] = (float)host[i];
    free(host);
    return out;
}

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const moe_case *c = the_case;
    lk_dtype act = lk_backend_act(be);
    int64_t n = c->rows * c->k;
    int32_t *slots = moe_slots(c);
    void *ids;
    OP(be, lk_alloc(be, (size_t)n * 4, &ids));
    device_tensor logits = device_random(be, LK_F32, c->rows, c->experts, c->gap, 1, 2.0f);
    device_tensor weights = device_make(be, LK_F32, c->rows, c->k, c->gap), dlogits = device_make(be, act, c->rows, c->experts, c->gap);
    device_tensor dw = device_random(be, LK_F32, c->rows, c->k, c->gap, 2, 1.0f), x = device_random(be, act, n, c->cols, c->gap, 3, 1.0f);
    device_tensor residual = device_random(be, act, c->rows, c->cols, 0, 4, 1.0f),
                  dy = device_random(be, act, c->rows, c->cols, c->gap, 6, 1.0f);
    device_tensor y = device_make(be, act, c->rows, c->cols, c->gap), plain = device_make(be, act, c->rows, c->cols, c->gap);
    device_tensor dweights = device_make(be, LK_F32, c->rows, c->k, 0);
    OP(be, lk_moe_route(be, ids, &weights.t, &logits.t, c->normalise));
    OP(be, lk_moe_route_backward(be, &dlogits.t, &dw.t, ids, &logits.t, c->normalise));
    OP(be, lk_moe_combine(be, &y.t, &x.t, slots, &weights.t, &residual.t));
    OP(be, lk_moe_combine(be, &plain.t, &x.t, slots, NULL, NULL));
    OP(be, lk_moe_combine_backward(be, &x.t, &dweights.t, &dy.t, &x.t, slots, &weights.t)); /* in place, as the contract allows */
    outcome_take(o, "ids", ids_values(be, ids, n), n, 0.0);
    outcome_add(o, "weights", &weights, 1e-5);
    outcome_add(o, "dlogits", &dlogits, tolerance);
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "without weights", &plain, tolerance);
    outcome_add(o, "dx", &x, tolerance);
    outcome_add(o, "dweights", &dweights, 1e-4);
    device_tensor *all[] = {&logits, &dw, &residual, &dy};
    for (int i = 0; i < 4; i++) device_free(all[i]);
    lk_free(be, ids);
    free(slots);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_MOE_CASES; i++) check_on_cuda("moe", run, &moe_cases[i]);
    check_on_cuda("moe", run, &(moe_case){9, 2056, 16, 2, 8, true});
}

/* Equal logits: the lower id first. Not a number: each choice is still another expert. */
static void test_ties(void **state)
{
    (void)state;
    lk_backend *be = open_cuda(&test_limits);
    const float l[10] = {1, 3, 3, 0, 3, NAN, NAN, NAN, NAN, NAN};
    float w[6];
    int32_t ids[6];
    void *device_ids;
    OP(be, lk_alloc(be, sizeof ids, &device_ids));
    device_tensor logits = device_exact(be, 2, 5, l), weights = device_make(be, LK_F32, 2, 3, 0);
    OP(be, lk_moe_route(be, device_ids, &weights.t, &logits.t, true));
    OP(be, lk_download(be, ids, device_ids, sizeof ids));
    OP(be, lk_download(be, w, weights.t.data, sizeof w));
    assert_true(ids[0] == 1 && ids[1] == 2 && ids[2] == 4);
    for (int j = 0; j < 3; j++) assert_true(fabsf(w[j] - 1.0f / 3.0f) < 1e-6f);
    assert_true(ids[3] != ids[4] && ids[4] != ids[5] && ids[3] != ids[5]);
    for (int j = 3; j < 6; j++) assert_true(ids[j] >= 0 && ids[j] < 5);
    lk_tensor many = lk_tensor_make(logits.t.data, LK_F32, 1, 2000), one = lk_tensor_make(weights.t.data, LK_F32, 1, 2);
    assert_int_equal(lk_moe_route(be, device_ids, &one, &many, true), LK_ERR_UNSUPPORTED);
    assert_non_null(strstr(lk_backend_error(be)->message, "2 of 2000 experts a token; the CUDA backend takes up to 32 of 1024"));
    lk_free(be, device_ids);
    device_free(&logits);
    lk_free(be, weights.memory);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_ties)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
