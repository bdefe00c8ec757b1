/* Adapters, keys and values in one pool (tests/pool.h), on the device. */
/* label: threads */
#include "tests/check.h"
#include "tests/pool.h"

static void test_pool(void **state)
{
    (void)state;
    check_pool(&(lk_backend_options){.device = "cuda", .threads = 1, .compute = LK_BF16});
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pool)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
