/* Gated activations on the CUDA backend, both ways, with the aliasing that the contract allows. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/activation_cases.h"

typedef struct glu_case {
    shape_case shape;
    lk_activation act;
} glu_case;

static const shape_case eights[] = {{3, 8, 8}, {5, 2056, 0}, {2, 4096, 16}, {2, 48, 4}};
enum { N_EIGHTS = sizeof eights / sizeof *eights };

/* One rounding to bf16, 2^-8. */
static const double tolerance = 4e-3;

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const glu_case *c = the_case;
    const shape_case *s = &c->shape;
    lk_dtype act = lk_backend_act(be);
    float *in[3];
    glu_inputs(s, in);
    device_tensor gate = device_from(be, act, s->rows, s->cols, s->gap, in[0]), up = device_from(be, act, s->rows, s->cols, s->gap, in[1]);
    device_tensor dy = device_from(be, act, s->rows, s->cols, s->gap, in[2]), y = device_make(be, act, s->rows, s->cols, s->gap);
    device_tensor dgate = device_make(be, act, s->rows, s->cols, s->gap), dup = device_make(be, act, s->rows, s->cols, s->gap);
    device_tensor on_up = device_from(be, act, s->rows, s->cols, s->gap, in[1]);
    OP(be, lk_glu(be, &y.t, &gate.t, &up.t, c->act));
    OP(be, lk_glu(be, &on_up.t, &gate.t, &on_up.t, c->act));
    OP(be, lk_glu_backward(be, &dgate.t, &dup.t, &dy.t, &gate.t, &up.t, c->act));
    OP(be, lk_glu_backward(be, &gate.t, &up.t, &dy.t, &gate.t, &up.t, c->act));
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "dgate", &dgate, tolerance);
    outcome_add(o, "dup", &dup, tolerance);
    size_t bytes = (size_t)(s->rows * s->cols) * 4;
    float *in_place[3] = {device_values("y on up", &on_up), device_values("dgate on gate", &gate), device_values("dup on up", &up)};
    for (int i = 0; i < 3; i++) {
        check_same_bits("in place", in_place[i], o->parts[i].values, bytes);
        free(in_place[i]);
        free(in[i]);
    }
    device_free(&gate);
    device_free(&up);
    device_free(&on_up);
    device_free(&dy);
}

static void test_reference(void **state)
{
    (void)state;
    for (int act = 0; act < 2; act++) {
        for (int i = 0; i < N_SHAPES; i++) check_on_cuda("glu", run, &(glu_case){shapes[i], (lk_activation)act});
        for (int i = 0; i < N_EIGHTS; i++) check_on_cuda("glu", run, &(glu_case){eights[i], (lk_activation)act});
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
