/* The engine on the CUDA backend: answers do not depend on company (tests/company.h), with steps recorded and the next one queued before
 * this one is read. */
/* label: threads */
#include "tests/company.h"
#include "tests/cuda/cuda_check.h"

static const check_scene scenes[] = {
    {"all at once", 512, 256, CHECK_ADAPTERS, 16, CHECK_ADAPTERS + 1, false, true},
    {"chunked, few pages", 23, 3, CHECK_ADAPTERS, 16, 8, true},
    {"adapters, keys and values compete", 64, 4, 1, 16, 8, true},
    {"two places in memory", 64, 256, CHECK_ADAPTERS, 16, 2, false},
};
enum { N_SCENES = sizeof scenes / sizeof *scenes, SHRINK = 5 };

static const lk_backend_options on_cuda = {.device = "cuda", .threads = 1, .compute = LK_BF16};

static void test_company(void **state)
{
    (void)state;
    check_company(&(check_crowd){"models/llama-tiny", LK_QUANT_NF4, on_cuda, .shrink = SHRINK, .scenes = scenes, .n_scenes = N_SCENES});
}

static void test_8_and_4_bits(void **state)
{
    (void)state;
    check_company(&(check_crowd){"models/qwen3-tiny", LK_QUANT_NF4, on_cuda, .kv_8bit = true, .nf4_head = true, .shrink = 2 * SHRINK,
                                 .scenes = scenes, .n_scenes = 1});
}

/* DoRA, an adapter's own biases, embedding, head and tokens beside plain factors and the base: a step is not recorded with them, and the
 * next one is queued before it is known what this one draws. They take turns in the pool. */
static void test_more_than_factors(void **state)
{
    (void)state;
    static const char *const given[] = {"embedding", "dora", "lora_bias", "saved", "tokens"};
    static const check_scene mixed[] = {{"more than factors, two places, chunked", 23, 256, CHECK_ADAPTERS, 16, 2, false}};
    check_company(&(check_crowd){"models/llama-tiny", LK_QUANT_NF4, on_cuda, .shrink = 2 * SHRINK, .given = given, .n_given = 5,
                                 .scenes = mixed, .n_scenes = 1});
}

/* A mixture of experts, with adapters on attention and on experts. */
static void test_mixture(void **state)
{
    (void)state;
    static const check_scene one[] = {{"experts", 37, 256, CHECK_ADAPTERS, 16, CHECK_ADAPTERS, false}};
    check_company(
        &(check_crowd){"family mixtral", LK_QUANT_NF4, on_cuda, .most_rank = 16, .shrink = 3 * SHRINK, .scenes = one, .n_scenes = 1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_company), cmocka_unit_test(test_8_and_4_bits),
                                       cmocka_unit_test(test_more_than_factors), cmocka_unit_test(test_mixture)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
