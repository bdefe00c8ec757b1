/* The engine's answers do not depend on company (tests/company.h): chunked and unchunked, with pages enough and with so few that requests
 * are preempted, with fewer places in memory than adapters, with memory that adapters and pages compete for, so that adapters leave and
 * come and pages are moved. Once more with an engine that looks ahead: what was asked alone on a backend
 * that answers at once must come out of one that queues. */
#include "tests/company.h"

static const check_scene scenes[] = {
    {"all at once", 2048, 256, CHECK_ADAPTERS, 16, CHECK_ADAPTERS + 1, false, true},
    {"chunked", 19, 256, CHECK_ADAPTERS, 16, 8, false},
    {"few pages", 2048, 24, CHECK_ADAPTERS, 16, 8, true},
    {"chunked, few pages", 23, 24, CHECK_ADAPTERS, 16, 8, true},
    {"chunks of one page at most, barely any pages", 16, 14, CHECK_ADAPTERS, 16, 8, true},
    {"adapters, keys and values compete", 64, 30, 2, 16, 8, true},
    {"two places in memory", 64, 256, CHECK_ADAPTERS, 16, 2, false},
};
enum { N_SCENES = sizeof scenes / sizeof *scenes };

static const lk_backend_options bf16 = {.device = "cpu", .threads = 2, .compute = LK_BF16};

static void test_nf4_bf16(void **state)
{
    (void)state;
    check_company(&(check_crowd){"models/llama-tiny", LK_QUANT_NF4, bf16, .shrink = 1, .scenes = scenes, .n_scenes = N_SCENES});
}

static void test_f32_one_thread(void **state)
{
    (void)state;
    const lk_backend_options f32 = {.device = "cpu", .threads = 1, .compute = LK_F32};
    check_company(&(check_crowd){"models/qwen3-tiny", LK_QUANT_NONE, f32, .shrink = 1, .scenes = scenes, .n_scenes = N_SCENES});
}

static void test_ahead(void **state)
{
    (void)state;
    check_company(
        &(check_crowd){"models/llama-tiny", LK_QUANT_NF4, bf16, .queued = true, .shrink = 1, .scenes = scenes, .n_scenes = N_SCENES});
}

static void test_8bit_keys_and_values(void **state)
{
    (void)state;
    check_company(&(check_crowd){"models/llama-tiny", LK_QUANT_NF4, bf16, .kv_8bit = true, .queued = true, .shrink = 2, .scenes = scenes,
                                 .n_scenes = N_SCENES - 1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nf4_bf16),
        cmocka_unit_test(test_f32_one_thread),
        cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_8bit_keys_and_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
