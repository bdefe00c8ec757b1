/* Opening, memory and its accounting, the scratch, and the checks that stand before every operation. */
#include "tests/kernels/ops_check.h"

static lk_status open_device(const char *device, lk_error *err)
{
    lk_backend *be;
    lk_status status = lk_backend_open(&be, &(lk_backend_options){.device = device, .threads = 1, .compute = LK_BF16}, err);
    if (!status) {
        assert_true(strncmp(lk_backend_name(be), "cpu/", 4) == 0);
        lk_backend_close(be);
    }
    return status;
}

/* One line for each way in which a module cannot be had; `auto` computes on the CPU then, except where the device itself failed. */
static void test_module(void **state)
{
    (void)state;
    static const struct {
        const char *module, *text, *fails; /* the module, what the message says, what the FAILING module answers */
        lk_status status;
        bool auto_fails;
    } cases[] = {
        {"", "no CUDA module", NULL, LK_ERR_NOT_FOUND, false},
        {"nowhere.so", "nowhere.so: no such file", NULL, LK_ERR_NOT_FOUND, false},
        {"text.so", "text.so: ", NULL, LK_ERR_UNSUPPORTED, false},
        {"libm.so.6", "has no symbol lk_cuda_module_entry", NULL, LK_ERR_UNSUPPORTED, false},
        {"module_layout.so", "of another build", NULL, LK_ERR_UNSUPPORTED, false},
        {"module_needy.so", "needs liblk_absent.so, which is not found", NULL, LK_ERR_UNSUPPORTED, false},
        {"module_failing.so", "no driver", "unsupported", LK_ERR_UNSUPPORTED, false},
        {"module_failing.so", "device memory", "memory", LK_ERR_MEMORY, true},
    };
    const char *was = getenv("LK_CUDA_MODULE");
    char *before = was ? strdup(was) : NULL, *folder = check_temporary("module"), path[4096], text[4096];
    snprintf(text, sizeof text, "%s/text.so", folder);
    check_write_file(text, "not a library\n", 14);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lk_error err = {0};
        snprintf(path, sizeof path, "%s/tests/modules/%s", check_build_folder(), cases[i].module);
        bool as_it_is = !*cases[i].module || strncmp(cases[i].module, "libm", 4) == 0;
        setenv("LK_CUDA_MODULE", as_it_is ? cases[i].module : strcmp(cases[i].module, "text.so") == 0 ? text : path, 1);
        setenv("LK_TEST_MODULE_FAILS", cases[i].fails ? cases[i].fails : "", 1);
        CHECK_FAILS(open_device("cuda", &err), cases[i].status, cases[i].text, &err);
        assert_null(strchr(err.message, '\n'));
        CHECK_FAILS(open_device("cuda:3", &err), cases[i].status, cases[i].text, &err);
        if (cases[i].auto_fails)
            CHECK_FAILS(open_device("auto", &err), cases[i].status, cases[i].text, &err);
        else
            CHECK_OK(open_device("auto", &err), &err);
        CHECK_OK(open_device("cpu", &err), &err);
    }
    unsetenv("LK_TEST_MODULE_FAILS");
    if (before)
        setenv("LK_CUDA_MODULE", before, 1);
    else
        unsetenv("LK_CUDA_MODULE");
    free(before);
    free(folder);
}

static void test_open(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_backend *be;
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "tpu"}, &err), LK_ERR_ARGUMENT, "\"tpu\"", &err);
    assert_null(be);
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "cuda:"}, &err), LK_ERR_ARGUMENT, "\"cuda:\"", &err);
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "cuda:1x"}, &err), LK_ERR_ARGUMENT, "\"cuda:1x\"", &err);
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .cpu_tier = "sse9"}, &err), LK_ERR_ARGUMENT, "\"sse9\"", &err);
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .compute = LK_F16}, &err), LK_ERR_ARGUMENT, "f16", &err);
    CHECK_FAILS(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = -1}, &err), LK_ERR_ARGUMENT, "-1", &err);
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 2, .compute = LK_BF16}, &err), &err);
    assert_true(strncmp(lk_backend_name(be), "cpu/", 4) == 0);
    assert_int_equal(lk_backend_threads(be), 2);
    assert_int_equal(lk_backend_compute(be), LK_BF16);
    assert_int_equal(lk_backend_act(be), LK_F32);
    lk_backend_close(be);
    lk_backend_close(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_backend *be;
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 1}, &err), &err);
    static const size_t sizes[] = {0, 1, 63, 4096, (2u << 20) - 1, 2u << 20, (5u << 20) + 3};
    void *blocks[7];
    size_t total = 0;
    for (int i = 0; i < 7; i++) {
        OP(be, lk_alloc(be, sizes[i], &blocks[i]));
        total += sizes[i];
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        assert_int_equal(lk_allocated(be), total);
        for (size_t j = 0; j < sizes[i]; j += 509) assert_int_equal(((char *)blocks[i])[j], 0);
        if (sizes[i]) memset(blocks[i], 1, sizes[i]);
    }
    for (int i = 0; i < 7; i++) lk_free(be, blocks[i]);
    lk_free(be, NULL);
    assert_int_equal(lk_allocated(be), 0);
    assert_int_equal(lk_allocated_peak(be), total);
    void *none = &none;
    CHECK_FAILS(lk_alloc(be, (size_t)1 << 62, &none), LK_ERR_MEMORY, "no memory", lk_backend_error(be));
    assert_null(none);
    lk_backend_close(be);
}

static void test_copies(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 1, LK_F32);
    void *a, *b;
    char host[100], back[100];
    for (int i = 0; i < 100; i++) host[i] = (char)(i * 7);
    OP(be, lk_alloc(be, 100, &a));
    OP(be, lk_alloc(be, 100, &b));
    OP(be, lk_upload(be, a, host, 100));
    OP(be, lk_copy(be, b, a, 100));
    OP(be, lk_zero(be, b, 10));
    OP(be, lk_sync(be));
    OP(be, lk_download(be, back, b, 100));
    memset(host, 0, 10);
    check_same_bits("copies", back, host, 100);
    lk_free(be, a);
    lk_free(be, b);
    lk_backend_close(be);
}

static void test_scratch(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_error err = {0};
        lk_backend *be;
        lk_status status = lk_backend_open(
            &be, &(lk_backend_options){.device = "cpu", .threads = 2, .compute = LK_F32, .cpu_tier = all_tiers[tier]}, &err);
        if (status) continue;
        lk_limits small = test_limits;
        small.tokens = 4;
        size_t want = lk_scratch_bytes(be, &test_limits);
        OP(be, lk_reserve(be, &small));
        OP(be, lk_reserve(be, &test_limits));
        assert_int_equal(lk_allocated(be), want);
        OP(be, lk_reserve(be, &small)); /* never shrinks */
        assert_int_equal(lk_allocated(be), want);
        lk_backend_close(be);
    }
}

/* Each mistake is caught by name before anything is written. */
static void test_checks(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 1, LK_F32);
    float x[64] = {0}, y[64] = {0}, w[64] = {0};
    const lk_error *err = lk_backend_error(be);
    lk_tensor t24 = lk_tensor_make(x, LK_F32, 2, 4), t23 = lk_tensor_make(y, LK_F32, 2, 3), half = lk_tensor_make(y, LK_BF16, 2, 4),
              thin = lk_tensor_make(y, LK_F32, 2, 4);
    thin.stride = 3;
    lk_matrix *m;
    CHECK_FAILS(lk_matrix_create(be, &m, &(lk_matrix_source){LK_I8, 3, 4, w, NULL}), LK_ERR_UNSUPPORTED, "i8", err);
    CHECK_FAILS(lk_matrix_create(be, &m, &(lk_matrix_source){LK_NF4, 3, 4, w, NULL}), LK_ERR_INTERNAL, "absmax", err);
    CHECK_FAILS(lk_matrix_create(be, &m, &(lk_matrix_source){LK_F32, 0, 4, w, NULL}), LK_ERR_INTERNAL, "0 x 4", err);
    OP(be, lk_matrix_create(be, &m, &(lk_matrix_source){LK_F32, 3, 4, w, NULL}));
    CHECK_FAILS(lk_linear(be, &t24, &t24, m, NULL, NULL), LK_ERR_INTERNAL, "linear: y is [2, 4], wanted [2, 3]", err);
    CHECK_FAILS(lk_linear(be, &t23, &t23, m, NULL, NULL), LK_ERR_INTERNAL, "linear: x", err);
    CHECK_FAILS(lk_linear(be, &t23, &half, m, NULL, NULL), LK_ERR_INTERNAL, "x is bf16", err);
    CHECK_FAILS(lk_linear(be, &t23, &thin, m, NULL, NULL), LK_ERR_INTERNAL, "stride 3", err);
    CHECK_FAILS(lk_embed(be, &t24, m, (const int32_t[]){0, 3}), LK_ERR_INTERNAL, "token id 3 at row 1", err);
    CHECK_FAILS(lk_linear_loss(be, y, NULL, NULL, &t24, m, (const int32_t[]){-1, 3}, 1.0f, 0.0f), LK_ERR_INTERNAL, "label 3", err);
    CHECK_FAILS(lk_rope(be, &t24, 3, &t24, false), LK_ERR_INTERNAL, "heads", err);
    CHECK_FAILS(lk_gather_rows(be, &t24, &t24, (const int32_t[]){0, 2}), LK_ERR_INTERNAL, "outside", err);
    lk_kv *kv;
    CHECK_FAILS(lk_kv_create(be, &kv, &(lk_kv_shape){1, 1, 4, 24, 1, LK_F32}), LK_ERR_INTERNAL, "power of two", err);
    const int32_t starts[] = {0, 3};
    CHECK_FAILS(lk_batch_begin(be, &(lk_batch){.n_tokens = 2, .n_docs = 1, .doc_starts = starts}), LK_ERR_INTERNAL, "documents", err);
    const lk_segment gap[] = {{0, 1, -1}, {2, 2, 0}};
    CHECK_FAILS(lk_batch_begin(be, &(lk_batch){.n_tokens = 2, .n_segments = 2, .segments = gap}), LK_ERR_INTERNAL, "segment 1", err);
    const lk_sequence late[] = {{0, 2, 1, starts}};
    CHECK_FAILS(lk_batch_begin(be, &(lk_batch){.n_tokens = 2, .n_sequences = 1, .sequences = late}), LK_ERR_INTERNAL, "sequence 0", err);
    lk_error copy = {0};
    assert_int_equal(lk_backend_fail(be, LK_ERR_INTERNAL, &copy), LK_ERR_INTERNAL);
    assert_non_null(strstr(copy.message, "sequence 0"));
    lk_matrix_destroy(be, m);
    lk_matrix_destroy(be, NULL);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_open),   cmocka_unit_test(test_module),  cmocka_unit_test(test_memory),
                                       cmocka_unit_test(test_copies), cmocka_unit_test(test_scratch), cmocka_unit_test(test_checks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
