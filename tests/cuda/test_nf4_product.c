/* label: slow */
/* Products of a serving batch on the CUDA backend: against the reference, and each row alone bit for bit what it is in company, whatever
 * kernel its company calls for (up to 8 rows, 16, 32, 64, 128, more), by warp groups or without, and on devices with little shared memory.
 */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/linear_cases.h"

typedef struct serve_case {
    int64_t rows, n, k, gap;
    lk_dtype type;
    bool nested;
} serve_case;

/* K: one depth, less than a piece of 512, exactly one, several, more than a round of eight pieces; for dense matrices also no multiple of
 * anything. N: one row, whole tiles of 16, tiles of 128 and what is left over. */
static const serve_case serve_cases[] = {
    {1, 16, 64, 0, LK_NF4, false},     {8, 33, 576, 8, LK_NF4, true},    {5, 1, 512, 0, LK_NF4, false},
    {3, 97, 1152, 0, LK_NF4, true},    {2, 20, 4672, 0, LK_NF4, true},   {9, 150, 1088, 0, LK_NF4, false},
    {30, 129, 640, 16, LK_NF4, true},  {64, 40, 1024, 0, LK_NF4, false}, {70, 24, 576, 0, LK_NF4, true},
    {130, 136, 704, 0, LK_NF4, false}, {4, 48, 128, 3, LK_NF4, false},   {0, 16, 64, 0, LK_NF4, false},
    {1, 1, 1, 0, LK_BF16, false},      {7, 37, 515, 1, LK_BF16, false},  {8, 64, 4168, 0, LK_BF16, false},
    {17, 140, 1032, 0, LK_F16, false}, {50, 20, 520, 0, LK_BF16, false}, {129, 33, 96, 0, LK_F32, false},
    {65, 300, 100, 0, LK_NF4, false},
};
enum { N_SERVE_CASES = sizeof serve_cases / sizeof *serve_cases };

static const lk_limits limits = {.tokens = 160, .width = 4800, .vocab = 300, .matrix = 600 * 1024, .context = 64, .serving = true};

static int32_t no_page;

/* One sequence over all rows: products ask only whether there is one. */
static void begin_serving(lk_backend *be, int64_t rows)
{
    lk_sequence sequence = {.begin = 0, .count = rows, .length = rows, .pages = &no_page};
    lk_batch batch = {.n_tokens = rows, .n_sequences = rows > 0, .sequences = &sequence};
    OP(be, lk_batch_begin(be, &batch));
}

typedef struct served {
    lk_matrix *m;
    void *data, *codes8;
    float *absmax, *absmax2;
} served;

static served served_make(lk_backend *be, const serve_case *c)
{
    served s = {0};
    lk_matrix_source source = make_source(c->type, c->n, c->k, &s.data, &s.absmax);
    if (c->nested) {
        int64_t blocks = lk_nf4_blocks(c->n * c->k);
        s.codes8 = malloc((size_t)blocks);
        s.absmax2 = malloc((size_t)lk_nf4_nested_blocks(blocks) * sizeof(float));
        assert_true(s.codes8 && s.absmax2);
        lk_nf4_nest(s.codes8, s.absmax2, &source.absmax_offset, s.absmax, blocks);
        lk_nf4_unnest(s.absmax, s.codes8, s.absmax2, source.absmax_offset, blocks);
        source.absmax8 = s.codes8;
        source.absmax2 = s.absmax2;
    }
    OP(be, lk_matrix_create(be, &s.m, &source));
    return s;
}

static void served_free(lk_backend *be, served *s)
{
    lk_matrix_destroy(be, s->m);
    free(s->data);
    free(s->codes8);
    free(s->absmax);
    free(s->absmax2);
}

/* Each rounded codebook value is 2^-9 off at most, and so is y; the reference rounds nothing. */
static const double tolerance = 1e-2;

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const serve_case *c = the_case;
    lk_dtype act = lk_backend_act(be);
    served s = served_make(be, c);
    float *values[3] = {random_floats(5, c->rows * c->k, 1.0f), random_floats(6, c->rows * c->n, 1.0f), random_floats(7, c->n, 1.0f)};
    device_tensor x = device_from(be, act, c->rows, c->k, c->gap, values[0]), plain = device_make(be, act, c->rows, c->n, c->gap);
    device_tensor residual = device_from(be, act, c->rows, c->n, 1, values[1]), summed = device_make(be, act, c->rows, c->n, 0);
    device_tensor residual32 = device_from(be, LK_F32, c->rows, c->n, 0, values[1]), y32 = device_make(be, LK_F32, c->rows, c->n, 1);
    device_tensor bias = device_exact(be, 1, c->n, values[2]);
    begin_serving(be, c->rows);
    OP(be, lk_linear(be, &plain.t, &x.t, s.m, NULL, NULL));
    OP(be, lk_linear(be, &summed.t, &x.t, s.m, device_f32(&bias), &residual.t));
    OP(be, lk_linear(be, &y32.t, &x.t, s.m, NULL, &residual32.t));
    outcome_add(o, "y", &plain, tolerance);
    outcome_add(o, "y with bias and residual", &summed, tolerance);
    outcome_add(o, "y in fp32 with residual", &y32, tolerance);
    device_tensor *read[] = {&x, &residual, &residual32, &bias};
    for (int i = 0; i < 4; i++) device_free(read[i]);
    for (int i = 0; i < 3; i++) free(values[i]);
    served_free(be, &s);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_SERVE_CASES; i++) check_on_cuda_within(&limits, "serve linear", run, &serve_cases[i]);
}

/* Rows [first, first + count) of x in one call, fp32 results; the caller frees. */
static float *product_of_rows(lk_backend *be, const lk_matrix *m, const device_tensor *x, int64_t first, int64_t count)
{
    device_tensor y = device_make(be, LK_F32, count, lk_matrix_n(m), 0);
    lk_tensor rows = lk_tensor_rows(&x->t, first, count);
    begin_serving(be, count);
    OP(be, lk_linear(be, &y.t, &rows, m, NULL, NULL));
    float *out = device_values("y", &y);
    lk_free(be, y.memory);
    return out;
}

/* What many tokens may run on: warp groups, mma.sync in a data centre's shapes, and in those of devices with little shared memory. */
static const struct {
    const char *device, *wgmma;
} ways[] = {{"sm_90", "1"}, {"sm_90", "0"}, {"sm_86", "1"}};
enum { N_WAYS = sizeof ways / sizeof *ways };

/* False: a real GPU, which is one device only. */
static bool take_way(int i)
{
    bool emulated = set_device(ways[i].device);
    setenv("LK_CUDA_WGMMA", ways[i].wgmma, 1);
    return emulated || strcmp(ways[i].device, "sm_90") == 0;
}

/* Row by row and all together on each of the ways, bit for bit. */
static void check_ways(const serve_case *c)
{
    float *first = NULL;
    for (int i = 0; i < N_WAYS; i++) {
        if (!take_way(i)) continue;
        lk_backend *be = open_cuda(&limits);
        served s = served_make(be, c);
        float *values = random_floats(9, c->rows * c->k, 1.0f);
        device_tensor x = device_from(be, LK_BF16, c->rows, c->k, c->gap, values);
        float *all = product_of_rows(be, s.m, &x, 0, c->rows), *one = product_of_rows(be, s.m, &x, c->rows - 1, 1);
        check_same_bits("the last row alone", one, all + (c->rows - 1) * c->n, (size_t)c->n * sizeof(float));
        if (first) check_same_bits(ways[i].device, all, first, (size_t)(c->rows * c->n) * sizeof(float));
        free(one);
        free(values);
        if (first)
            free(all);
        else
            first = all;
        device_free(&x);
        served_free(be, &s);
        lk_backend_close(be);
    }
    free(first);
    take_way(0);
}

static void test_ways(void **state)
{
    (void)state;
    static const serve_case cases[] = {
        {12, 40, 1088, 0, LK_NF4, false},  {20, 300, 1088, 0, LK_NF4, true},  {33, 40, 192, 0, LK_NF4, true},
        {64, 40, 4672, 0, LK_NF4, false},  {65, 33, 64, 0, LK_NF4, false},    {100, 130, 4672, 8, LK_NF4, true},
        {128, 520, 1088, 0, LK_NF4, true}, {129, 300, 192, 0, LK_NF4, false}, {150, 97, 1096, 8, LK_BF16, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_ways(&cases[i]);
}

/* On a GPU whose wgmma adds otherwise than its mma.sync nothing goes by wgmma. */
static void test_other_sums(void **state)
{
    (void)state;
    void (*set)(bool);
    void *symbol = emulation_symbol("lk_emu_set_other_sums");
    memcpy(&set, &symbol, sizeof symbol);
    if (!set) return;
    set(true);
    check_ways(&(serve_case){100, 40, 640, 0, LK_NF4, true}); /* all ways are mma.sync */
    set(false);
    setenv("LK_CUDA_WGMMA", "1", 1);
    lk_backend *be = open_cuda(&limits);
    set(true); /* after the question was asked: now it must show, or the answer was not asked for */
    serve_case c = {100, 40, 640, 0, LK_NF4, true};
    served s = served_make(be, &c);
    float *values = random_floats(9, c.rows * c.k, 1.0f);
    device_tensor x = device_from(be, LK_BF16, c.rows, c.k, 0, values);
    float *all = product_of_rows(be, s.m, &x, 0, c.rows), *one = product_of_rows(be, s.m, &x, 0, 1);
    assert_true(memcmp(one, all, (size_t)c.n * sizeof(float)) != 0);
    set(false);
    free(all);
    free(one);
    free(values);
    device_free(&x);
    served_free(be, &s);
    lk_backend_close(be);
}

static void check_company(const lk_limits *with, const serve_case *c)
{
    static const int64_t parts[] = {1, 3, 8, 13, 24, 64, 70, 130};
    lk_backend *be = open_cuda(with);
    served s = served_make(be, c);
    float *values = random_floats(9, c->rows * c->k, 1.0f);
    device_tensor x = device_from(be, LK_BF16, c->rows, c->k, c->gap, values);
    float *all = product_of_rows(be, s.m, &x, 0, c->rows);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (int64_t first = 0; first < c->rows; first += parts[i] + (parts[i] == 1 ? 17 : 0)) {
            int64_t count = first + parts[i] < c->rows ? parts[i] : c->rows - first;
            float *some = product_of_rows(be, s.m, &x, first, count);
            check_same_bits("rows in other company", some, all + first * c->n, (size_t)(count * c->n) * sizeof(float));
            free(some);
        }
    free(all);
    free(values);
    device_free(&x);
    served_free(be, &s);
    lk_backend_close(be);
}

static void test_company(void **state)
{
    (void)state;
    static const serve_case cases[] = {{140, 104, 1088, 0, LK_NF4, true},
                                       {131, 136, 576, 0, LK_NF4, false},
                                       {140, 97, 1096, 8, LK_BF16, false},
                                       {130, 40, 4672, 8, LK_NF4, true}};
    /* Pieces are added up by a second kernel where scratch has room for their sums, else within a block: in 64 KiB these have none. */
    const lk_limits little = {.tokens = 160, .width = 64};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_company(&limits, &cases[i]);
        if (i % 2 == 0) check_company(&little, &cases[i]);
    }
}

/* A training batch's products are others; the kind of batch decides, from one lk_batch_begin to the next. */
static void test_kind_of_batch(void **state)
{
    (void)state;
    enum { T = 5, N = 32, K = 192 };
    const serve_case c = {T, N, K, 0, LK_NF4, false};
    lk_backend *be = open_cuda(&limits);
    served s = served_make(be, &c);
    float *values = random_floats(11, T * K, 1.0f);
    device_tensor x = device_from(be, LK_BF16, T, K, 0, values), y = device_make(be, LK_F32, T, N, 0);
    int32_t starts[] = {0, T};
    lk_batch training = {.n_tokens = T, .n_docs = 1, .doc_starts = starts};
    OP(be, lk_batch_begin(be, &training));
    OP(be, lk_linear(be, &y.t, &x.t, s.m, NULL, NULL));
    float *trained = device_values("y", &y), *serving = product_of_rows(be, s.m, &x, 0, T);
    assert_true(memcmp(trained, serving, sizeof(float) * T * N) != 0);
    OP(be, lk_batch_begin(be, &training));
    OP(be, lk_linear(be, &y.t, &x.t, s.m, NULL, NULL));
    float *again = device_values("y", &y);
    check_same_bits("training after serving", again, trained, sizeof(float) * T * N);
    free(trained);
    free(serving);
    free(again);
    free(values);
    device_free(&x);
    device_free(&y);
    served_free(be, &s);
    lk_backend_close(be);
}

/* Layers that share x go together; each has the bits that it has alone. Of several sizes, so that blocks are shared out unevenly; of
 * several kinds; rows that no 16-byte load fits. */
static const int64_t wide[LK_MOST_PARTS] = {200, 1, 4400}, narrow[LK_MOST_PARTS] = {100, 33, 0};

/* launches: how many are allowed, or 0. */
static void check_parts(const lk_dtype types[LK_MOST_PARTS], const int64_t widths[LK_MOST_PARTS], int64_t rows, int64_t k, int64_t gap,
                        int n, int64_t launches)
{
    lk_backend *be = open_cuda(&limits);
    float *values = random_floats(13, rows * k, 1.0f);
    device_tensor x = device_from(be, LK_BF16, rows, k, gap, values), y[LK_MOST_PARTS], alone[LK_MOST_PARTS];
    served s[LK_MOST_PARTS];
    lk_part parts[LK_MOST_PARTS];
    for (int i = 0; i < n; i++) {
        s[i] = served_make(be, &(serve_case){rows, widths[i], k, 0, types[i], i == 2 && types[i] == LK_NF4});
        y[i] = device_make(be, LK_BF16, rows, widths[i], i);
        alone[i] = device_make(be, LK_BF16, rows, widths[i], 0);
        parts[i] = (lk_part){.w = s[i].m, .y = y[i].t};
    }
    begin_serving(be, rows);
    lk_batch batch = {.n_tokens = rows};
    int64_t before = kernels_launched();
    OP(be, lk_linear_parts(be, &batch, parts, n, &x.t, NULL));
    if (launches && before) assert_int_equal(kernels_launched() - before, launches);
    for (int i = 0; i < n; i++) {
        OP(be, lk_linear(be, &alone[i].t, &x.t, s[i].m, NULL, NULL));
        float *got = device_values("y", &y[i]), *want = device_values("alone", &alone[i]);
        check_same_bits("parts", got, want, (size_t)(rows * widths[i]) * sizeof(float));
        free(got);
        free(want);
        device_free(&y[i]);
        device_free(&alone[i]);
        served_free(be, &s[i]);
    }
    free(values);
    device_free(&x);
    lk_backend_close(be);
}

static void test_parts(void **state)
{
    (void)state;
    static const lk_dtype nf4[] = {LK_NF4, LK_NF4, LK_NF4}, dense[] = {LK_BF16, LK_BF16, LK_BF16}, mixed[] = {LK_NF4, LK_BF16, LK_NF4};
    check_parts(nf4, wide, 1, 192, 0, 3, 1);
    check_parts(nf4, wide, 8, 64, 8, 3, 1);
    check_parts(nf4, wide, 20, 64, 0, 2, 1);
    check_parts(nf4, narrow, 12, 4416, 0, 2, 2); /* in pieces, and what joins them */
    check_parts(nf4, narrow, 90, 4416, 0, 2, 2);
    check_parts(dense, narrow, 37, 4600, 0, 2, 2);
    check_parts(nf4, narrow, 100, 576, 0, 2, 1);
    check_parts(dense, narrow, 131, 72, 0, 2, 1);
    check_parts(dense, wide, 2, 72, 0, 3, 1);
    check_parts(mixed, wide, 3, 128, 0, 3, 0);
    check_parts(nf4, wide, 2, 64, 1, 2, 0);
}

/* A server reserves no room for dequantised weights; training's products then say so. */
static void test_server_limits(void **state)
{
    (void)state;
    const lk_limits server = {.tokens = 16, .width = 64, .serving = true};
    const serve_case c = {2, 1024, 512, 0, LK_NF4, false};
    lk_backend *be = open_cuda(&server);
    served s = served_make(be, &c);
    device_tensor x = device_make(be, LK_BF16, 2, 512, 0), y = device_make(be, LK_BF16, 2, 1024, 0);
    assert_int_equal(lk_linear(be, &y.t, &x.t, s.m, NULL, NULL), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "limits"));
    begin_serving(be, 2);
    OP(be, lk_linear(be, &y.t, &x.t, s.m, NULL, NULL));
    device_free(&x);
    device_free(&y);
    served_free(be, &s);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference),     cmocka_unit_test(test_company),
                                       cmocka_unit_test(test_ways),          cmocka_unit_test(test_other_sums),
                                       cmocka_unit_test(test_kind_of_batch), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_server_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
