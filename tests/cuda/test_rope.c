/* RoPE on the CUDA backend: the table, and the rotation both ways. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/activation_cases.h"

/* Whole groups of eight: a head, one of several, part of a head turned, more groups than threads. */
static const rope_case eights[] = {{3, 1, 16, 16, 1.0f}, {5, 6, 64, 64, 1.0f}, {7, 3, 96, 32, 0.5f}, {2, 40, 128, 128, 1.0f}};
enum { N_EIGHTS = sizeof eights / sizeof *eights };

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const rope_case *c = the_case;
    lk_dtype act = lk_backend_act(be);
    int64_t width = c->heads * c->head_dim;
    float *values = random_floats(21, c->rows * width, 1.0f), inv_freq[64];
    int32_t positions[32];
    for (int64_t i = 0; i < c->rows; i++) positions[i] = (int32_t)(i * 131 % 4000);
    for (int64_t i = 0; i < c->rotated / 2; i++) inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / (double)c->rotated);
    device_tensor frequencies = device_exact(be, 1, c->rotated / 2, inv_freq), table = device_make(be, LK_F32, c->rows, c->rotated, 4);
    device_tensor x = device_from(be, act, c->rows, width, 8, values), back = device_from(be, act, c->rows, width, 3, values);
    OP(be, lk_rope_table(be, &table.t, positions, device_f32(&frequencies), c->factor));
    OP(be, lk_rope(be, &x.t, c->heads, &table.t, false));
    OP(be, lk_rope(be, &back.t, c->heads, &table.t, true));
    outcome_add(o, "table", &table, 1e-6); /* two libraries' sin and cos */
    outcome_add(o, "forward", &x, 4e-3);
    outcome_add(o, "backward", &back, 4e-3);
    device_free(&frequencies);
    free(values);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_ROPES; i++) check_on_cuda("rope", run, &ropes[i]);
    for (int i = 0; i < N_EIGHTS; i++) check_on_cuda("rope", run, &eights[i]);
}

/* The table where fp32 angles matter. */
static void run_far(lk_backend *be, const void *unused, outcome *o)
{
    (void)unused;
    const float inv_freq[2] = {1.0f, 0.31622776f};
    const int32_t positions[2] = {0, 100003};
    device_tensor frequencies = device_exact(be, 1, 2, inv_freq), table = device_make(be, LK_F32, 2, 4, 0);
    OP(be, lk_rope_table(be, &table.t, positions, device_f32(&frequencies), 2.0f));
    outcome_add(o, "table", &table, 3e-7);
    device_free(&frequencies);
}

static void test_far(void **state)
{
    (void)state;
    check_on_cuda("rope_table", run_far, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_far)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
