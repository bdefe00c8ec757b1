/* Products with frozen matrices on the CUDA backend, both ways, with bias, residual and fp32 outputs. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/linear_cases.h"

typedef struct product_case {
    linear_case shape;
    lk_dtype type;
} product_case;

static const linear_case eights[] = {{16, 64, 128, 0}, {33, 128, 256, 8}, {70, 80, 320, 0}, {130, 256, 64, 16}};
enum { N_EIGHTS = sizeof eights / sizeof *eights };

/* The reference multiplies with weights in fp32, where the contract for bf16 rounds each to 2^-8; the sum of their errors grows as the
 * sum does, and the output is rounded once more. */
static const double tolerance = 1e-2;

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const product_case *p = the_case;
    const linear_case *c = &p->shape;
    lk_dtype act = lk_backend_act(be);
    void *data;
    float *absmax;
    lk_matrix_source source = make_source(p->type, c->n, c->k, &data, &absmax);
    lk_matrix *m;
    OP(be, lk_matrix_create(be, &m, &source));
    float *values[4] = {random_floats(5, c->rows * c->k, 1.0f), random_floats(6, c->rows * c->n, 1.0f), random_floats(7, c->n, 1.0f),
                        random_floats(8, c->rows * c->k, 1.0f)};
    device_tensor x = device_from(be, act, c->rows, c->k, c->gap, values[0]), dy = device_from(be, act, c->rows, c->n, c->gap, values[1]);
    device_tensor bias = device_exact(be, 1, c->n, values[2]), residual32 = device_from(be, LK_F32, c->rows, c->n, c->gap, values[1]);
    device_tensor plain = device_make(be, act, c->rows, c->n, 0), y = device_make(be, act, c->rows, c->n, c->gap);
    device_tensor summed = device_make(be, act, c->rows, c->n, 1), y32 = device_make(be, LK_F32, c->rows, c->n, c->gap);
    device_tensor dx = device_make(be, act, c->rows, c->k, c->gap), added = device_from(be, act, c->rows, c->k, c->gap, values[3]);
    OP(be, lk_linear(be, &plain.t, &x.t, m, NULL, NULL));
    OP(be, lk_linear(be, &y.t, &x.t, m, device_f32(&bias), NULL));
    OP(be, lk_linear(be, &summed.t, &x.t, m, device_f32(&bias), &dy.t));
    OP(be, lk_linear(be, &y32.t, &x.t, m, device_f32(&bias), &residual32.t));
    OP(be, lk_linear_backward(be, &dx.t, &dy.t, m, false));
    OP(be, lk_linear_backward(be, &added.t, &dy.t, m, true));
    lk_matrix_destroy(be, m);
    outcome_add(o, "y", &plain, tolerance);
    outcome_add(o, "y with bias", &y, tolerance);
    outcome_add(o, "y with bias and residual", &summed, tolerance);
    outcome_add(o, "y in fp32 with bias and residual", &y32, tolerance);
    outcome_add(o, "dx", &dx, tolerance);
    outcome_add(o, "dx +=", &added, tolerance);
    device_free(&x);
    device_free(&dy);
    device_free(&bias);
    device_free(&residual32);
    for (int i = 0; i < 4; i++) free(values[i]);
    free(data);
    free(absmax);
}

static void test_reference(void **state)
{
    (void)state;
    for (int type = 0; type < 4; type++) {
        for (int i = 0; i < N_LINEAR_CASES; i++) check_on_cuda("linear", run, &(product_case){linear_cases[i], linear_types[type]});
        for (int i = 0; i < N_EIGHTS; i++) check_on_cuda("linear", run, &(product_case){eights[i], linear_types[type]});
    }
}

/* The whole matrix has to fit for the gradient, and the message says what was too small. */
static void test_too_small(void **state)
{
    (void)state;
    const lk_limits limits = {.tokens = 16, .width = 64};
    lk_backend *be = open_cuda(&limits);
    void *data;
    float *absmax;
    lk_matrix_source source = make_source(LK_NF4, 1024, 64, &data, &absmax);
    lk_matrix *m;
    OP(be, lk_matrix_create(be, &m, &source));
    device_tensor dy = device_make(be, LK_BF16, 2, 1024, 0), dx = device_make(be, LK_BF16, 2, 64, 0);
    assert_int_equal(lk_linear_backward(be, &dx.t, &dy.t, m, false), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "limits.matrix"));
    lk_matrix_destroy(be, m);
    device_free(&dy);
    device_free(&dx);
    free(data);
    free(absmax);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_too_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
