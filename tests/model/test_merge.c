/* Merged and unmerged agree: in fp32 to rounding of the sum, in bf16 to rounding of the weights. And what a merge refuses. */
#include <stdlib.h>

#include "base/file.h"
#include "model/merge.h"
#include "tests/model.h"

static void logits(const char *folder, const char *adapter, lk_quant quant, const int32_t *ids, int64_t n, float **out, int64_t *n_out)
{
    lk_error err = {0};
    check_model m = check_model_open(folder, quant, LK_F32, 2, NULL);
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m.model, &(lk_pass_options){.max_tokens = n, .max_rank = 16}, &err), &err);
    check_batch b;
    check_batch_init(&b, ids, n);
    lk_adapter *a = NULL;
    if (adapter) {
        CHECK_OK(lk_adapter_load(&a, m.model, adapter, LK_F32, &err), &err);
        check_batch_adapter(&b, a, NULL);
    }
    *n_out = n * m.model->config.vocab;
    *out = malloc((size_t)*n_out * 4);
    CHECK_OK(lk_pass_logits(pass, &b.batch, *out, &err), &err);
    lk_adapter_destroy(a);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    check_model_close(&m);
}

static void test_agrees(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/llama-tiny"), *four = check_golden("models/llama-tiny-bnb4"),
         *adapter = check_golden("adapters/mixed");
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = (i * 37 + 5) % 160;
    const struct {
        const char *base;
        lk_merge_into into, becomes;
        lk_dtype dtype;
        lk_quant quant; /* the unmerged side */
        double tolerance;
    } cases[] = {
        {base, LK_MERGE_ORIGINAL, LK_MERGE_ORIGINAL, LK_F32, LK_QUANT_NONE, 1e-4},
        {base, LK_MERGE_DEQUANTIZED, LK_MERGE_DEQUANTIZED, LK_F32, LK_QUANT_NF4, 1e-4},
        {four, LK_MERGE_AUTO, LK_MERGE_DEQUANTIZED, LK_F32, LK_QUANT_NF4, 1e-4},
        {base, LK_MERGE_AUTO, LK_MERGE_ORIGINAL, LK_BF16, LK_QUANT_NONE, 0.15}, /* weights rounded to 8 bits, logits of size ~5 */
        {base, LK_MERGE_ORIGINAL, LK_MERGE_ORIGINAL, LK_F16, LK_QUANT_NONE, 0.02},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *out = check_temporary("merged");
        lk_merge_result result;
        lk_merge_options options = {.into = cases[i].into, .dtype = cases[i].dtype, .threads = 2};
        CHECK_OK(lk_model_merge(cases[i].base, adapter, out, &options, &result, &err), &err);
        assert_int_equal(result.into, cases[i].becomes);
        assert_true(result.merged > 0);
        float *unmerged, *merged;
        int64_t n;
        logits(cases[i].base, adapter, cases[i].quant, ids, 40, &unmerged, &n);
        logits(out, NULL, LK_QUANT_NONE, ids, 40, &merged, &n);
        check_close("merged logits", merged, unmerged, n, cases[i].tolerance, cases[i].tolerance);
        free(unmerged);
        free(merged);
        free(out);
    }
    free(base);
    free(four);
    free(adapter);
}

static void test_refuses(void **state)
{
    (void)state;
    lk_error err = {0};
    char *four = check_golden("models/llama-tiny-bnb4"), *other = check_golden("models/qwen2-tiny"),
         *adapter = check_golden("adapters/r8_all");
    char *out = check_temporary("merge_refused");
    lk_merge_result result;
    lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_BF16};
    CHECK_FAILS(lk_model_merge(four, adapter, out, &options, &result, &err), LK_ERR_ARGUMENT, "only 4-bit weights", &err);
    options.into = LK_MERGE_AUTO;
    CHECK_FAILS(lk_model_merge(other, adapter, out, &options, &result, &err), LK_ERR_MISMATCH, "layer", &err);
    CHECK_FAILS(lk_model_merge(four, "/nonexistent", out, &options, &result, &err), LK_ERR_NOT_FOUND, "/nonexistent", &err);
    check_write_file(LK_BINARY_DIR "/tests/tmp/merge_refused/mine.txt", "x", 1);
    CHECK_FAILS(lk_model_merge(four, adapter, out, &options, &result, &err), LK_ERR_ARGUMENT, "not empty", &err);
    assert_true(lk_path_exists(LK_BINARY_DIR "/tests/tmp/merge_refused/mine.txt"));
    free(four);
    free(other);
    free(adapter);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_agrees), cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
