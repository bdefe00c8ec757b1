/* AdamW with 8-bit moments: recorded steps, every tier and partition the same bits, the codes at their bounds, and learning as well as with
 * fp32 moments. */
#include "tests/kernels/adamw8_golden.h"

static void test_golden(void **state)
{
    (void)state;
    adamw8_golden g = adamw8_golden_open();
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be = open_tier(all_tiers[tier], 2, LK_F32);
        if (!be) continue;
        check_adamw8_rule(&g, be);
        check_adamw8_library(&g, be);
        lk_backend_close(be);
    }
    adamw8_golden_close(&g);
}

/* Every entry, every bound, and one step of a float to each side of it. */
static void check_coder(const lk_dynamic_coder *coder, const float *map, int first, uint8_t (*code)(const lk_dynamic_coder *, float))
{
    for (int k = first; k < 256; k++) assert_int_equal(code(coder, map[k]), k);
    for (int k = first; k < 255; k++) {
        float middle = (map[k] + map[k + 1]) * 0.5f;
        assert_int_equal(code(coder, middle), k + k % 2);
        assert_int_equal(code(coder, nextafterf(middle, -2.0f)), k);
        assert_int_equal(code(coder, nextafterf(middle, 2.0f)), k + 1);
    }
}

static void test_maps(void **state)
{
    (void)state;
    adamw8_golden g = adamw8_golden_open();
    check_same_bits("the signed map", lk_dynamic_map(), golden_find(&g, "", "map")->data, 256 * 4);
    check_same_bits("the unsigned map", lk_dynamic_map_unsigned(), golden_find(&g, "", "map_unsigned")->data, 256 * 4);
    adamw8_golden_close(&g);
    lk_dynamic_coder coder;
    lk_dynamic_coder_init(&coder, lk_dynamic_map());
    check_coder(&coder, lk_dynamic_map(), LK_DYNAMIC_ZERO, lk_dynamic_code);
    check_coder(&coder, lk_dynamic_map(), 0, lk_dynamic_code_signed);
    assert_int_equal(lk_dynamic_code_signed(&coder, -1.0f), 0);
    assert_int_equal(lk_dynamic_code_signed(&coder, -0.0f), LK_DYNAMIC_ZERO);
    assert_int_equal(lk_dynamic_code_signed(&coder, NAN), 0);
    assert_int_equal(lk_dynamic_code_signed(&coder, -NAN), 0);
    lk_dynamic_coder_init(&coder, lk_dynamic_map_unsigned());
    check_coder(&coder, lk_dynamic_map_unsigned(), 0, lk_dynamic_code);
    assert_int_equal(lk_dynamic_code(&coder, NAN), 0);
    assert_int_equal(lk_dynamic_code(&coder, 0.0f), 0);
}

/* ---- the same bits from every tier, number of threads and partition */

static const int64_t sizes[] = {0, 1, 7, 255, 256, 257, 1009, 65537};
enum { N_SIZES = sizeof sizes / sizeof *sizes, STEPS = 4 };

static void fill_gradient(float *g, int64_t n, int step)
{
    check_random r = {(uint64_t)(step + 1) * 77};
    check_random_fill(&r, g, n, step % 2 ? 1e-3f : 2.0f);
    for (int64_t i = 3; i < n; i += 100) g[i] = 0.0f;
    for (int64_t i = 5; i < n; i += 50) g[i] *= 1e-6f;
    if (n > 600) g[600] = step == 1 ? INFINITY : 1.0f;
}

static adamw8_arrays run(lk_backend *be, int64_t n, int64_t piece)
{
    int64_t blocks = (n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    adamw8_arrays a = {.p = random_floats(5, n, 1.0f),
                       .m_scale = calloc((size_t)blocks + 1, 4),
                       .v_scale = calloc((size_t)blocks + 1, 4),
                       .m8 = malloc((size_t)n + 1),
                       .v8 = malloc((size_t)n + 1)};
    memset(a.m8, 200, (size_t)n + 1); /* any codes at scale 0 */
    memset(a.v8, 13, (size_t)n + 1);
    a.m_scale[blocks] = a.v_scale[blocks] = 77.0f;
    float *g = random_floats(6, n, 1.0f);
    for (int step = 1; step <= STEPS; step++) {
        lk_adamw_step s = golden_rule;
        s.step = step;
        fill_gradient(g, n, step);
        for (int64_t at = 0; at < n; at += piece) {
            int64_t count = n - at < piece ? n - at : piece, block = at / LK_ADAMW8_BLOCK;
            OP(be, lk_adamw8(be, a.p + at, g + at, a.m8 + at, a.v8 + at, a.m_scale + block, a.v_scale + block, count, &s));
        }
    }
    assert_true(a.m8[n] == 200 && a.v8[n] == 13 && a.m_scale[blocks] == 77.0f && a.v_scale[blocks] == 77.0f);
    free(g);
    return a;
}

static void test_partitions(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int i = 0; i < N_SIZES; i++) {
        int64_t n = sizes[i];
        adamw8_arrays want = run(reference, n, n + 1);
        for (int tier = 1; tier < N_TIERS; tier++)
            for (int threads = 1; threads <= 3; threads++) {
                lk_backend *be = open_tier(all_tiers[tier], threads, LK_F32);
                if (!be) continue;
                adamw8_arrays got = run(be, n, threads == 2 ? 3 * LK_ADAMW8_BLOCK : n + 1);
                arrays_same(all_tiers[tier], &got, &want, n);
                arrays_free(&got);
                lk_backend_close(be);
            }
        arrays_free(&want);
    }
    lk_backend_close(reference);
}

/* ---- a regression learnt with noisy gradients, by both optimisers */

enum { WIDTH = 512, LEARN_STEPS = 400 };

static double learn(lk_backend *be, bool eight_bits)
{
    float *target = random_floats(21, WIDTH, 1.0f), *p = calloc(WIDTH, 4), *m = calloc(WIDTH, 4), *v = calloc(WIDTH, 4), g[WIDTH], x[WIDTH];
    uint8_t m8[WIDTH] = {0}, v8[WIDTH] = {0};
    float m_scale[2] = {0}, v_scale[2] = {0};
    check_random r = {4711};
    double loss = 0.0;
    for (int step = 1; step <= LEARN_STEPS; step++) {
        lk_adamw_step s = {.lr = 3e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .step = step, .grad_scale = 1.0f};
        memset(g, 0, sizeof g);
        for (int row = 0; row < 32; row++) {
            double error = 0.0;
            check_random_fill(&r, x, WIDTH, 1.0f);
            for (int i = 0; i < WIDTH; i++) error += (double)x[i] * ((double)p[i] - (double)target[i]);
            for (int i = 0; i < WIDTH; i++) g[i] += (float)(error * (double)x[i] / 32.0);
        }
        if (eight_bits)
            OP(be, lk_adamw8(be, p, g, m8, v8, m_scale, v_scale, WIDTH, &s));
        else
            OP(be, lk_adamw(be, p, g, m, v, WIDTH, &s));
    }
    for (int i = 0; i < WIDTH; i++) loss += pow((double)p[i] - (double)target[i], 2.0) / WIDTH;
    void *all[] = {target, p, m, v};
    for (int i = 0; i < 4; i++) free(all[i]);
    return loss;
}

static void test_learning(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 1, LK_F32);
    double full = learn(be, false), eight = learn(be, true);
    print_message("mean square error after %d steps: fp32 moments %.4g, 8-bit moments %.4g (1 at the start)\n", LEARN_STEPS, full, eight);
    assert_true(full < 1e-3 && eight < 1e-3 && eight < 1.5 * full);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_maps), cmocka_unit_test(test_partitions),
                                       cmocka_unit_test(test_learning)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
