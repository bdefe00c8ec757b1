/* AdamW in fp32 and 8 bits, and sums of squares, on the CUDA backend. The optimisers' bits are the CPU's. */
#include "tests/cuda/cuda_check.h"

#include "tests/kernels/adamw8_golden.h"

static const int64_t sizes[] = {0, 1, 7, 255, 257, 1009, 20001};
enum { N_SIZES = sizeof sizes / sizeof *sizes, STEPS = 3 };

static void fill_gradient(float *g, int64_t n, int step)
{
    check_random r = {(uint64_t)(step + 1) * 77};
    check_random_fill(&r, g, n, step % 2 ? 1e-3f : 2.0f);
    for (int64_t i = 3; i < n; i += 100) g[i] = 0.0f;
    for (int64_t i = 5; i < n; i += 50) g[i] *= 1e-6f;
    if (n > 600) g[600] = step == 1 ? INFINITY : 1.0f;
}

/* p, m, v one after another after STEPS steps; each array begins `off` floats into aligned memory. */
static float *adamw_steps(lk_backend *be, int64_t n, int64_t off)
{
    int64_t size = n + off;
    float *host = calloc((size_t)(3 * size + 1), sizeof(float)), *g = random_floats(5, size, 1.0f);
    memcpy(host + off, g, (size_t)n * 4);
    void *all = on_backend(be, host, 3 * size * 4);
    for (int step = 1; step <= STEPS; step++) {
        lk_adamw_step s = golden_rule;
        s.step = step;
        fill_gradient(g + off, n, step);
        if (n > 600) g[off + 600] = 1.0f;
        void *gradient = on_backend(be, g, size * 4);
        float *p = (float *)all + off;
        OP(be, lk_adamw(be, p, (float *)gradient + off, p + size, p + 2 * size, n, &s));
        OP(be, lk_sync(be));
        lk_free(be, gradient);
    }
    OP(be, lk_download(be, host, all, (size_t)(3 * size) * 4));
    lk_free(be, all);
    free(g);
    return host;
}

static lk_backend *open_portable(void)
{
    lk_backend *be = open_tier("portable", 1, LK_F32);
    assert_non_null(be);
    return be;
}

static void test_adamw(void **state)
{
    (void)state;
    lk_backend *cpu = open_portable(), *cuda = open_cuda(&test_limits);
    for (int i = 0; i < N_SIZES; i++)
        for (int64_t off = 0; off < 4; off += 3) {
            float *want = adamw_steps(cpu, sizes[i], off), *got = adamw_steps(cuda, sizes[i], off);
            check_same_bits("adamw", got, want, (size_t)(3 * (sizes[i] + off)) * 4);
            free(want);
            free(got);
        }
    lk_backend_close(cpu);
    lk_backend_close(cuda);
}

/* The state after STEPS steps, in pieces of whole blocks. */
static adamw8_arrays adamw8_steps(lk_backend *be, int64_t n, int64_t piece)
{
    int64_t blocks = (n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    float *g = random_floats(6, n, 1.0f);
    adamw8_arrays host = {.p = random_floats(5, n, 1.0f),
                          .m_scale = calloc((size_t)blocks + 1, 4),
                          .v_scale = calloc((size_t)blocks + 1, 4),
                          .m8 = malloc((size_t)n + 1),
                          .v8 = malloc((size_t)n + 1)};
    memset(host.m8, 200, (size_t)n + 1);
    memset(host.v8, 13, (size_t)n + 1);
    adamw8_arrays a = arrays_upload(be, &host, n);
    arrays_free(&host);
    for (int step = 1; step <= STEPS; step++) {
        fill_gradient(g, n, step);
        float *gradient = on_backend(be, g, n * 4);
        lk_adamw_step s = golden_rule;
        s.step = step;
        for (int64_t at = 0; at < n; at += piece) {
            int64_t count = n - at < piece ? n - at : piece, block = at / LK_ADAMW8_BLOCK;
            OP(be, lk_adamw8(be, a.p + at, gradient + at, a.m8 + at, a.v8 + at, a.m_scale + block, a.v_scale + block, count, &s));
        }
        OP(be, lk_sync(be));
        lk_free(be, gradient);
    }
    free(g);
    host = arrays_download(be, &a, n);
    arrays_free_on(be, &a);
    return host;
}

static void test_adamw8(void **state)
{
    (void)state;
    lk_backend *cpu = open_portable(), *cuda = open_cuda(&test_limits);
    for (int i = 0; i < N_SIZES; i++)
        for (int64_t piece = 3 * LK_ADAMW8_BLOCK; piece < 1000000; piece *= 1000) {
            adamw8_arrays want = adamw8_steps(cpu, sizes[i], piece), got = adamw8_steps(cuda, sizes[i], piece);
            arrays_same("adamw8", &got, &want, sizes[i]);
            arrays_free(&want);
            arrays_free(&got);
        }
    lk_backend_close(cpu);
    lk_backend_close(cuda);
}

static void test_golden(void **state)
{
    (void)state;
    adamw8_golden g = adamw8_golden_open();
    lk_backend *cuda = open_cuda(&test_limits);
    for (uint64_t seed = 0; seed < N_SCHEDULES; seed++) {
        bool more = set_schedule(seed);
        check_adamw8_rule(&g, cuda);
        check_adamw8_library(&g, cuda);
        if (!more) break;
    }
    lk_backend_close(cuda);
    adamw8_golden_close(&g);
}

static void test_sum_squares(void **state)
{
    (void)state;
    static const int64_t lengths[] = {0, 1, 3, 5, 1009, 1100000}; /* the last goes round the grid more than once */
    lk_backend *cuda = open_cuda(&test_limits);
    for (int i = 0; i < 6; i++) {
        float *x = random_floats(9, lengths[i] + 1, 3.0f);
        double want = 0.0, first = 0.0, got;
        for (int64_t j = 0; j < lengths[i]; j++) want += (double)x[j] * (double)x[j];
        for (int64_t off = 0; off < 2; off++) { /* aligned or not, the same order */
            memmove(x + off, x, (size_t)lengths[i] * 4);
            float *there = on_backend(cuda, x, (lengths[i] + 1) * 4);
            set_schedule((uint64_t)off);
            OP(cuda, lk_sum_squares(cuda, &got, there + off, lengths[i]));
            if (off == 0) first = got;
            assert_true(got == first);
            assert_true(fabs(got - want) <= 1e-13 * want * (double)(1 + lengths[i] / 1000));
            lk_free(cuda, there);
        }
        free(x);
    }
    lk_backend_close(cuda);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adamw), cmocka_unit_test(test_adamw8), cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_sum_squares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
