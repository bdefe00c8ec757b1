/* A linear layer with its adapter as one product, where rows leave room, and as two where they do not: against the reference, which runs
 * two. */
#include "tests/cuda/cuda_check.h"

#include "kernels/nf4.h"

typedef struct joined_case {
    int64_t rows, n, k;
    int32_t rank;
    int64_t room; /* elements behind the rows of x and dy */
    float dropout;
    bool residual, accumulate;
} joined_case;

/* Widths that NF4 tiles take; ranks that fill their padding and ones that do not; 2304 columns are more than one round of the warps. */
static const joined_case cases[] = {
    {37, 48, 64, 8, 8, 0.0f, false, false},    {37, 48, 64, 5, 8, 0.0f, true, true},       {16, 136, 128, 16, 16, 0.2f, true, false},
    {33, 80, 64, 33, 40, 0.0f, false, true},   {9, 48, 64, 8, 0, 0.0f, true, false},       {9, 48, 64, 16, 8, 0.1f, false, true},
    {21, 64, 2304, 16, 16, 0.0f, true, false}, {21, 2304, 64, 16, 24, 0.0f, false, false},
};

static lk_matrix *matrix_make(lk_backend *be, const joined_case *c)
{
    int64_t n = c->n * c->k;
    float *w = random_floats(2, n, 0.3f), *absmax = malloc((size_t)lk_nf4_blocks(n) * sizeof(float));
    uint8_t *codes = malloc((size_t)n / 2 + 1);
    lk_nf4_quantize(codes, absmax, w, n);
    lk_matrix *m;
    OP(be, lk_matrix_create(be, &m, &(lk_matrix_source){.type = LK_NF4, .n = c->n, .k = c->k, .data = codes, .absmax = absmax}));
    free(w);
    free(absmax);
    free(codes);
    return m;
}

/* Room behind the rows is part of the tensor, so that it may be written; the view is what the operation sees. */
static device_tensor roomy(lk_backend *be, int64_t rows, int64_t cols, int64_t room, uint64_t seed, lk_tensor *view)
{
    float *values = random_floats(seed, rows * (cols + room), 1.0f);
    device_tensor d = device_from(be, lk_backend_act(be), rows, cols + room, 0, values);
    free(values);
    *view = lk_tensor_columns(&d.t, 0, cols);
    return d;
}

/* Where one product is made of the two, the gap behind the rows of x holds bf16(scale * h): so the joined path was taken. */
static void check_joined(lk_backend *be, const joined_case *c, const device_tensor *x_room, const device_tensor *h)
{
    int64_t ranks = (c->rank + 7) / 8 * 8, width = c->k + c->room;
    if (lk_row_gap(be, c->rank) != ranks || c->room < ranks) return;
    float *x = device_values("x and its room", x_room), *hidden = device_values("h", h);
    for (int64_t t = 0; t < c->rows; t++)
        for (int64_t r = 0; r < c->rank; r++) {
            float got = x[t * width + c->k + r], want = round_bf16(1.5f * hidden[t * c->rank + r]);
            if (got != want) fail_msg("row %d: %g behind x, where %g would join the products", (int)t, (double)got, (double)want);
        }
    free(x);
    free(hidden);
}

/* The matrix is rounded to bf16 here and not in the reference, 0.4% of each product of a sum whose terms partly cancel, beside the
 * rounding of h, dh and the outputs. */
static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const joined_case *c = the_case;
    lk_tensor x, dy;
    device_tensor x_room = roomy(be, c->rows, c->k, c->room, 81, &x), dy_room = roomy(be, c->rows, c->n, c->room, 83, &dy);
    device_tensor y = device_make(be, lk_backend_act(be), c->rows, c->n, 0), h = device_make(be, LK_F32, c->rows, c->rank, 0),
                  dx = device_random(be, lk_backend_act(be), c->rows, c->k, 0, 84, 1.0f),
                  residual = device_random(be, lk_backend_act(be), c->rows, c->n, 0, 85, 1.0f);
    device_tensor a = device_random(be, LK_F32, c->rank, c->k, 0, 40, 0.3f), b = device_random(be, LK_F32, c->n, c->rank, 0, 41, 0.3f),
                  da = device_random(be, LK_F32, c->rank, c->k, 0, 42, 1.0f), db = device_random(be, LK_F32, c->n, c->rank, 0, 43, 1.0f);
    lk_lora lora = {a.t.data, b.t.data, device_f32(&da), device_f32(&db), LK_F32, c->rank, 1.5f};
    lk_segment all = {0, c->rows, 0};
    lk_batch batch = {.n_tokens = c->rows, .n_segments = 1, .segments = &all, .n_sites = 1, .n_adapters = 1, .lora = &lora};
    lk_dropout dropout = {c->dropout, lk_philox_key_make(7, LK_STREAM_DROPOUT), 5};
    lk_matrix *w = matrix_make(be, c);
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_linear_lora(be, &batch, 0, &y.t, &x, w, NULL, c->residual ? &residual.t : NULL, &h.t, &dropout));
    check_joined(be, c, &x_room, &h);
    OP(be, lk_linear_lora_backward(be, &batch, 0, &dx.t, &dy, w, &x, &h.t, c->accumulate, &dropout));
    outcome_add(o, "y", &y, 2e-2);
    outcome_add(o, "h", &h, c->dropout > 0.0f ? 2e-2 : 1e-5);
    outcome_add(o, "dx", &dx, 2e-2);
    outcome_add(o, "da", &da, 2e-2);
    outcome_add(o, "db", &db, 2e-2);
    device_tensor *rest[] = {&x_room, &dy_room, &residual, &a, &b};
    for (int i = 0; i < 5; i++) device_free(rest[i]);
    lk_matrix_destroy(be, w);
}

static void test_cases(void **state)
{
    (void)state;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) check_on_cuda("linear_lora", run, &cases[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
