/* Models on the CUDA backend take exactly what lk_model_bytes says, whether they come in 16 bits, are quantised at loading, or are a
 * bitsandbytes folder, whose nested scales stay nested. */
#include "model/model.h"
#include "tests/cuda/cuda_check.h"
#include "tests/model.h"

static const char *const names[] = {"models/llama-tiny", "models/qwen2-tiny", "models/qwen3-tiny", "models/mistral-tiny",
                                    "models/llama-tiny-bnb4"};

static void test_bytes(void **state)
{
    (void)state;
    lk_error err = {0};
    const lk_limits none = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int quant = 0; quant < 2; quant++) {
            char *folder = check_golden(names[i]);
            lk_model_facts facts;
            lk_quant how = quant ? LK_QUANT_NF4 : LK_QUANT_NONE;
            CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
            lk_backend *be = open_cuda(&none);
            size_t before = lk_allocated(be);
            lk_model *model;
            CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = how}, &err), &err);
            if (lk_allocated(be) - before != lk_model_bytes(be, &facts, how))
                fail_msg("%s, quant %d: took %zu bytes, planned %zu", names[i], quant, lk_allocated(be) - before,
                         lk_model_bytes(be, &facts, how));
            assert_true(lk_allocated_peak(be) == lk_allocated(be));
            lk_model_close(model);
            assert_int_equal(lk_allocated(be), before);
            lk_backend_close(be);
            free(folder);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
