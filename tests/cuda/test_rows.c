/* Adding, picking rows, and the backend's memory on the CUDA backend. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/activation_cases.h"

static const shape_case eights[] = {{3, 8, 8}, {5, 2056, 0}, {2, 4096, 16}, {9, 48, 4}};
enum { N_EIGHTS = sizeof eights / sizeof *eights };

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const shape_case *s = the_case;
    lk_dtype act = lk_backend_act(be);
    int64_t n = s->rows * s->cols;
    float *a = random_floats(31, n, 1.0f), *b = random_floats(32, n, 1.0f);
    device_tensor y = device_from(be, act, s->rows, s->cols, s->gap, a), x = device_from(be, act, s->rows, s->cols, s->gap, b);
    device_tensor picked = device_make(be, act, s->rows, s->cols, s->gap);
    int32_t rows[32];
    for (int64_t r = 0; r < s->rows; r++) rows[r] = (int32_t)((r * 5 + 1) % s->rows);
    OP(be, lk_gather_rows(be, &picked.t, &x.t, rows));
    OP(be, lk_add(be, &y.t, &x.t));
    device_tensor half = device_make(be, act, s->rows, s->cols, s->gap);
    OP(be, lk_scale(be, &half.t, &x.t, 0.3f));
    OP(be, lk_scale(be, &half.t, &half.t, 2.0f)); /* exact: the second rounds nothing */
    outcome_add(o, "scaled", &half, 4e-3);
    device_tensor capped = device_exact(be, s->rows, s->cols, a);
    OP(be, lk_cap(be, &capped.t, 0.5f));
    outcome_add(o, "capped", &capped, 1e-6);
    outcome_add(o, "sum", &y, 4e-3); /* one rounding */
    outcome_add(o, "picked", &picked, 0);
    device_free(&x);
    free(a);
    free(b);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) check_on_cuda("add", run, &shapes[i]);
    for (int i = 0; i < N_EIGHTS; i++) check_on_cuda("add", run, &eights[i]);
}

static void test_memory(void **state)
{
    (void)state;
    lk_limits small = {.tokens = 16, .width = 64}, large = {.tokens = 64, .width = 64, .matrix = 64 * 1024};
    lk_backend *be = open_cuda(&small);
    assert_int_equal(lk_allocated(be), lk_scratch_bytes(be, &small));
    OP(be, lk_reserve(be, &large));
    assert_int_equal(lk_allocated(be), lk_scratch_bytes(be, &large));
    OP(be, lk_reserve(be, &small)); /* never shrinks */
    assert_int_equal(lk_allocated(be), lk_scratch_bytes(be, &large));

    enum { N = 1000 };
    char host[N], back[N];
    void *a, *b;
    size_t before = lk_allocated(be);
    OP(be, lk_alloc(be, N, &a));
    OP(be, lk_alloc(be, N, &b));
    assert_int_equal(lk_allocated(be), before + 2 * N);
    OP(be, lk_download(be, back, a, N));
    for (int i = 0; i < N; i++) assert_int_equal(back[i], 0);
    for (int i = 0; i < N; i++) host[i] = (char)(i * 7);
    OP(be, lk_upload(be, a, host, N));
    OP(be, lk_copy(be, b, a, N));
    OP(be, lk_zero(be, a, N / 2));
    OP(be, lk_download(be, back, b, N));
    assert_memory_equal(back, host, N);
    OP(be, lk_download(be, back, a, N));
    for (int i = 0; i < N; i++) assert_int_equal(back[i], i < N / 2 ? 0 : host[i]);
    lk_free(be, a);
    lk_free(be, b);
    assert_int_equal(lk_allocated(be), before);
    assert_true(lk_allocated_peak(be) >= before + 2 * N);
    lk_backend_close(be);
}

/* Out to the host and in again, other work between; the slots are independent. */
static void test_transfers(void **state)
{
    (void)state;
    enum { N = 4096 };
    lk_backend *be = open_cuda(&test_limits);
    void *device[LK_TRANSFER_SLOTS], *pinned[LK_TRANSFER_SLOTS];
    float *values = random_floats(41, N, 1.0f), *back = malloc(N * sizeof(float));
    for (int i = 0; i < LK_TRANSFER_SLOTS; i++) {
        OP(be, lk_alloc(be, N * sizeof(float), &device[i]));
        OP(be, lk_host_alloc(be, N * sizeof(float), &pinned[i]));
        values[0] = (float)i;
        OP(be, lk_upload(be, device[i], values, N * sizeof(float)));
        OP(be, lk_transfer_begin(be, i, pinned[i], device[i], N * sizeof(float)));
    }
    assert_int_equal(lk_transfer_begin(be, 1, pinned[1], device[1], 4), LK_ERR_INTERNAL);
    for (int i = 0; i < LK_TRANSFER_SLOTS; i++) {
        OP(be, lk_transfer_wait(be, i));
        OP(be, lk_transfer_wait(be, i)); /* idle: nothing */
        OP(be, lk_zero(be, device[i], N * sizeof(float)));
        OP(be, lk_transfer_begin(be, i, device[i], pinned[i], N * sizeof(float)));
    }
    for (int i = LK_TRANSFER_SLOTS - 1; i >= 0; i--) {
        OP(be, lk_transfer_wait(be, i));
        OP(be, lk_download(be, back, device[i], N * sizeof(float)));
        values[0] = (float)i;
        check_same_bits("there and back", back, values, N * sizeof(float));
        lk_free(be, device[i]);
        lk_host_free(be, pinned[i]);
    }
    free(values);
    free(back);
    lk_backend_close(be);
}

static void test_opening(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_backend *be;
    assert_int_equal(lk_backend_open(&be, &(lk_backend_options){.device = "cuda", .compute = LK_F32}, &err), LK_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "--dtype bf16"));
    assert_int_equal(lk_backend_open(&be, &(lk_backend_options){.device = "cuda:x", .compute = LK_BF16}, &err), LK_ERR_ARGUMENT);
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cuda:0", .compute = LK_BF16}, &err), &err);
    assert_int_equal(lk_backend_act(be), LK_BF16);
    assert_int_equal(lk_allocated(be), 0);
    assert_int_equal(strncmp(lk_backend_name(be), "cuda/sm_", 8), 0);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_memory), cmocka_unit_test(test_transfers),
                                       cmocka_unit_test(test_opening)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
