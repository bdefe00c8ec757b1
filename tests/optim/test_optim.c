/* Schedules against hand-computed values of transformers' formulas and the rates a real run used (golden); clipping and AdamW against
 * torch's definitions, on a tiny vector. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"
#include "tests/check.h"

static void test_schedule_table(void **state)
{
    (void)state;
    static const struct {
        lk_schedule_kind kind;
        int64_t warmup, total, step;
        double want;
    } rows[] = {
        {LK_SCHEDULE_CONSTANT, 0, 10, 0, 1.0}, {LK_SCHEDULE_CONSTANT, 4, 10, 0, 0.0},  {LK_SCHEDULE_CONSTANT, 4, 10, 3, 0.75},
        {LK_SCHEDULE_CONSTANT, 4, 10, 4, 1.0}, {LK_SCHEDULE_CONSTANT, 4, 10, 99, 1.0}, {LK_SCHEDULE_LINEAR, 0, 10, 0, 1.0},
        {LK_SCHEDULE_LINEAR, 0, 10, 5, 0.5},   {LK_SCHEDULE_LINEAR, 2, 10, 1, 0.5},    {LK_SCHEDULE_LINEAR, 2, 10, 6, 0.5},
        {LK_SCHEDULE_LINEAR, 2, 10, 10, 0.0},  {LK_SCHEDULE_LINEAR, 2, 10, 12, 0.0},   {LK_SCHEDULE_LINEAR, 10, 10, 10, 0.0},
        {LK_SCHEDULE_COSINE, 0, 10, 0, 1.0},   {LK_SCHEDULE_COSINE, 0, 10, 5, 0.5},    {LK_SCHEDULE_COSINE, 2, 10, 0, 0.0},
        {LK_SCHEDULE_COSINE, 2, 10, 6, 0.5},   {LK_SCHEDULE_COSINE, 2, 10, 10, 0.0},   {LK_SCHEDULE_COSINE, 2, 10, 4, 0.85355339059327373},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_schedule s = {rows[i].kind, rows[i].warmup, rows[i].total};
        double got = lk_schedule_factor(&s, rows[i].step);
        if (fabs(got - rows[i].want) > 1e-15) fail_msg("row %zu: got %.17g want %.17g", i, got, rows[i].want);
    }
    assert_int_equal(lk_schedule_warmup(0, 0.03, 100), 3);
    assert_int_equal(lk_schedule_warmup(0, 0.03, 101), 4); /* ceil */
    assert_int_equal(lk_schedule_warmup(7, 0.5, 100), 7);
    assert_int_equal(lk_schedule_warmup(0, 0.0, 100), 0);
}

/* The rates of fifty steps of torch with transformers' get_cosine_schedule_with_warmup. */
static void test_schedule_golden(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("train50.json");
    cJSON *root, *step;
    CHECK_OK(lk_json_read(&root, path, 1 << 20, &err), &err);
    int64_t steps = (int64_t)lk_json_get(root, "steps")->valuedouble;
    double lr = lk_json_get(root, "lr")->valuedouble;
    lk_schedule s = {LK_SCHEDULE_COSINE, (int64_t)lk_json_get(root, "warmup_steps")->valuedouble, steps};
    int64_t i = 0;
    cJSON_ArrayForEach(step, lk_json_get(root, "steps_log"))
    {
        double got = lr * lk_schedule_factor(&s, i), want = lk_json_get(step, "lr")->valuedouble;
        if (fabs(got - want) > 1e-12 * lr) fail_msg("step %lld: rate %.17g, want %.17g", (long long)i, got, want);
        i++;
    }
    assert_int_equal(i, steps);
    cJSON_Delete(root);
    free(path);
}

static void *uploaded(lk_backend *be, const float *x, int64_t n)
{
    void *p;
    lk_error err = {0};
    CHECK_OK(lk_alloc(be, (size_t)n * 4, &p), &err);
    CHECK_OK(lk_upload(be, p, x, (size_t)n * 4), &err);
    return p;
}

static void test_clip_and_adamw(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_backend *be;
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
    const float g[3] = {3.0f, 0.0f, -4.0f}, p0[3] = {1.0f, -2.0f, 0.5f};
    float *grads = uploaded(be, g, 3), *params = uploaded(be, p0, 3);
    double norm;
    float scale;
    CHECK_OK(lk_clip_norm(be, grads, 3, 1.0, &norm, &scale, &err), &err);
    assert_true(norm == 5.0);
    assert_true(fabs((double)scale - 1.0 / (5.0 + 1e-6)) < 1e-7);
    CHECK_OK(lk_clip_norm(be, grads, 3, 100.0, &norm, &scale, &err), &err);
    assert_true(scale == 1.0f);
    CHECK_OK(lk_clip_norm(be, grads, 3, 0.0, &norm, &scale, &err), &err);
    assert_true(scale == 1.0f);

    lk_adamw_state s;
    CHECK_OK(lk_adamw_state_init(&s, be, LK_ADAMW_F32, 3, &err), &err);
    double m[3] = {0}, v[3] = {0}, p[3] = {1.0, -2.0, 0.5};
    for (int step = 1; step <= 3; step++) {
        lk_adamw_step u = {
            .lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f, .step = step, .grad_scale = 0.2f};
        CHECK_OK(lk_adamw_state_update(&s, params, grads, &u, &err), &err);
        for (int i = 0; i < 3; i++) { /* torch.optim.AdamW, in double */
            double gi = 0.2 * (double)g[i];
            p[i] *= 1 - 0.1 * 0.01;
            m[i] = 0.9 * m[i] + 0.1 * gi;
            v[i] = 0.999 * v[i] + 0.001 * gi * gi;
            p[i] -= 0.1 / (1 - pow(0.9, step)) * m[i] / (sqrt(v[i]) / sqrt(1 - pow(0.999, step)) + 1e-8);
        }
    }
    float want[3] = {(float)p[0], (float)p[1], (float)p[2]};
    check_close("AdamW after three steps", params, want, 3, 1e-6, 1e-5);
    lk_adamw_state_free(&s);
    lk_adamw_state_free(&s);
    lk_free(be, grads);
    lk_free(be, params);
    assert_int_equal(lk_allocated(be), 0);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedule_table), cmocka_unit_test(test_schedule_golden),
                                       cmocka_unit_test(test_clip_and_adamw)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
