/* Adapters combined as PEFT combines them, and what cannot be. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/peft.h"
#include "model/combine.h"
#include "model/low_rank.h"
#include "tests/model.h"

static const double weights[] = {0.7, -0.4};

static lk_status combine(const char *out, const lk_combine_options *o, lk_error *err)
{
    char *a = check_golden("options/combine_a"), *b = check_golden("options/combine_b");
    const char *paths[] = {a, b};
    lk_status status = lk_combine(out, paths, 2, o, err);
    free(a);
    free(b);
    return status;
}

static float *product(const lk_peft_module *m)
{
    int64_t n = m->b->shape[0], k = m->a->shape[1];
    float *out = calloc((size_t)(n * k), 4), *a = malloc((size_t)(m->rank * k) * 4), *b = malloc((size_t)(m->rank * n) * 4);
    lk_error err;
    CHECK_OK(lk_st_read_f32(m->a, 0, m->rank * k, a, &err), &err);
    CHECK_OK(lk_st_read_f32(m->b, 0, m->rank * n, b, &err), &err);
    for (int64_t i = 0; i < n; i++)
        for (int32_t r = 0; r < m->rank; r++)
            for (int64_t j = 0; j < k; j++) out[i * k + j] += b[i * m->rank + r] * a[r * k + j];
    free(a);
    free(b);
    return out;
}

static void compare_tensor(const lk_safetensors *golden, const char *kind, const lk_st_tensor *t)
{
    char key[400];
    int64_t n;
    snprintf(key, sizeof key, "combine.%s.%s", kind, t->name);
    float *want = check_floats(golden, key, &n), *got = malloc((size_t)n * 4);
    lk_error err;
    CHECK_OK(lk_st_read_f32(t, 0, n, got, &err), &err);
    check_close(key, got, want, n, 1e-6, 1e-5);
    free(want);
    free(got);
}

static void test_as_peft(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        lk_combine_options o;
        int32_t rank;
    } rows[] = {
        {"linear", {.kind = LK_COMBINE_LINEAR}, 3},
        {"ties", {.kind = LK_COMBINE_TIES, .density = 0.4}, 3},
        {"ties_frequency", {.kind = LK_COMBINE_TIES, .density = 0.4, .by_frequency = true}, 3},
        {"magnitude_prune", {.kind = LK_COMBINE_PRUNE, .density = 0.3}, 3},
        {"cat", {.kind = LK_COMBINE_CAT}, 6},
        {"svd", {.kind = LK_COMBINE_SVD, .rank = 3}, 3},
    };
    lk_error err = {0};
    char *path = check_golden("adapter_options.safetensors");
    lk_safetensors *golden;
    CHECK_OK(lk_safetensors_open(&golden, path, &err), &err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_combine_options o = rows[i].o;
        o.weights = weights;
        char *out = check_temporary("combined");
        CHECK_OK(combine(out, &o, &err), &err);
        lk_peft *p;
        CHECK_OK(lk_peft_open(&p, out, NULL, &err), &err);
        assert_int_equal(lk_peft_count(p), 4);
        for (int64_t m = 0; m < lk_peft_count(p); m++) {
            const lk_peft_module *module = lk_peft_at(p, m);
            assert_int_equal(module->rank, rows[i].rank);
            assert_true(module->scale == 1.0);
            if (i < 4) {
                compare_tensor(golden, rows[i].name, module->a);
                compare_tensor(golden, rows[i].name, module->b);
            } else if (strstr(module->name, "layers.1")) {
                char key[400];
                int64_t n;
                snprintf(key, sizeof key, "combine.%s.base_model.model.%s", rows[i].name, module->name);
                float *want = check_floats(golden, key, &n), *got = product(module);
                check_close(key, got, want, n, 1e-6, 1e-5);
                free(want);
                free(got);
            }
        }
        lk_peft_close(p);
        free(out);
    }
    lk_safetensors_close(golden);
    free(path);
}

/* DARE: a seed is a result; about the share of the density stays, and is rescaled. */
static void test_dare(void **state)
{
    (void)state;
    lk_error err = {0};
    char *one = check_temporary("dare_1"), *two = check_temporary("dare_2"), *three = check_temporary("dare_3");
    lk_combine_options o = {.kind = LK_COMBINE_DARE_LINEAR, .density = 0.25, .seed = 5};
    char *a = check_golden("options/combine_a");
    const char *paths[] = {a};
    CHECK_OK(lk_combine(one, paths, 1, &o, &err), &err);
    CHECK_OK(lk_combine(two, paths, 1, &o, &err), &err);
    o.seed = 6;
    CHECK_OK(lk_combine(three, paths, 1, &o, &err), &err);
    lk_peft *p[4];
    CHECK_OK(lk_peft_open(&p[0], one, NULL, &err), &err);
    CHECK_OK(lk_peft_open(&p[1], two, NULL, &err), &err);
    CHECK_OK(lk_peft_open(&p[2], three, NULL, &err), &err);
    CHECK_OK(lk_peft_open(&p[3], a, NULL, &err), &err);
    assert_string_equal(lk_peft_digest(p[0]), lk_peft_digest(p[1]));
    assert_string_not_equal(lk_peft_digest(p[0]), lk_peft_digest(p[2]));
    int64_t kept = 0, all = 0;
    for (int64_t m = 0; m < lk_peft_count(p[0]); m++) {
        const lk_st_tensor *got = lk_peft_at(p[0], m)->a, *was = lk_peft_at(p[3], m)->a;
        float root = sqrtf((float)lk_peft_at(p[3], m)->scale);
        for (int64_t i = 0; i < got->n_elements; i++) {
            float x, y;
            memcpy(&x, (const char *)got->data + 4 * i, 4);
            memcpy(&y, (const char *)was->data + 4 * i, 4);
            all++;
            if (x == 0) continue;
            kept++;
            assert_true(fabsf(x - y * root / 0.25f) <= 1e-5f * fabsf(x));
        }
    }
    assert_true(kept > all / 5 && kept < all * 3 / 10);
    for (int i = 0; i < 4; i++) lk_peft_close(p[i]);
    free(a);
    free(one);
    free(two);
    free(three);
}

static void test_refused(void **state)
{
    (void)state;
    lk_error err = {0};
    char *out = check_temporary("combine_refused"), *a = check_golden("options/combine_a"), *dora = check_golden("options/dora"),
         *mixed = check_golden("adapters/r8_all"), *other = check_golden("adapters/r8_all_qwen2");
    const char *with_dora[] = {a, dora}, *with_mixed[] = {a, mixed}, *with_other[] = {a, other};
    lk_combine_options o = {.kind = LK_COMBINE_LINEAR};
    CHECK_FAILS(lk_combine(out, with_dora, 2, &o, &err), LK_ERR_UNSUPPORTED, "use_dora (of model.layers.0", &err);
    CHECK_FAILS(lk_combine(out, with_mixed, 2, &o, &err), LK_ERR_ARGUMENT, "linear wants equal ranks; use cat or svd", &err);
    o.kind = LK_COMBINE_TIES;
    CHECK_FAILS(lk_combine(out, with_mixed, 2, &o, &err), LK_ERR_ARGUMENT, "ties wants a density", &err);
    o.kind = LK_COMBINE_CAT;
    CHECK_OK(lk_combine(out, with_mixed, 2, &o, &err), &err);
    CHECK_OK(lk_combine(out, with_other, 2, &o, &err), &err); /* the same shapes, and neither is stamped with its base */
    lk_combine_kind kind;
    assert_false(lk_combine_parse("ties_svd", &kind));
    free(out);
    free(a);
    free(dora);
    free(mixed);
    free(other);
}

/* A product of known singular values, deficient in rank, and one wider than its rank allows. */
static void test_low_rank(void **state)
{
    (void)state;
    enum { N = 5, K = 4, R = 3 };
    /* Rows of a: e0, e1, e0 (dependent). b's columns: so that b a = 3 e0 e0' + 2 e1 e1'. */
    const float a[R * K] = {1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0};
    const float b[N * R] = {1, 0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    float out_a[4 * K], out_b[4 * N];
    lk_error err = {0};
    CHECK_OK(lk_low_rank(out_a, out_b, 1, a, b, N, K, R, &err), &err);
    assert_true(fabsf(fabsf(out_b[0]) - 3) < 1e-6f && fabsf(fabsf(out_a[0]) - 1) < 1e-6f && fabsf(out_a[1]) < 1e-6f);
    CHECK_OK(lk_low_rank(out_a, out_b, 4, a, b, N, K, R, &err), &err);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            float sum = 0, want = n == 0 && k == 0 ? 3.0f : n == 1 && k == 1 ? 2.0f : 0.0f;
            for (int r = 0; r < 4; r++) sum += out_b[n * 4 + r] * out_a[r * K + k];
            assert_true(fabsf(sum - want) < 1e-6f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_peft), cmocka_unit_test(test_dare), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_low_rank)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
