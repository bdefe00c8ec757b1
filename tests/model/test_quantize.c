/* `lorikeet quantize`: the 4-bit folder equals what transformers and bitsandbytes save for the same model, byte for byte, and opening it
 * gives the very weights that opening the 16-bit folder with NF4 gives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/bnb.h"
#include "tests/model.h"

static void test_equals_bitsandbytes(void **state)
{
    (void)state;
    lk_error err = {0};
    char *from = check_golden("models/llama-tiny"), *want_folder = check_golden("models/llama-tiny-bnb4"),
         *out = check_temporary("quantized");
    CHECK_OK(lk_model_quantize(from, out, 2, &err), &err);
    lk_safetensors *got, *want;
    CHECK_OK(lk_safetensors_open(&got, out, &err), &err);
    CHECK_OK(lk_safetensors_open(&want, want_folder, &err), &err);
    assert_int_equal(lk_safetensors_count(got), lk_safetensors_count(want));
    int quantized = 0;
    for (int64_t i = 0; i < lk_safetensors_count(want); i++) {
        const lk_st_tensor *w = lk_safetensors_at(want, i), *g = lk_safetensors_find(got, w->name);
        if (!g) fail_msg("%s is missing", w->name);
        if (strstr(w->name, ".quant_state.")) continue; /* JSON text: compared by reading it back below */
        assert_int_equal(g->type, w->type);
        assert_int_equal(g->n_elements, w->n_elements);
        check_same_bits(w->name, g->data, w->data, (size_t)w->n_bytes);
        quantized += strstr(w->name, ".absmax") != NULL;
    }
    assert_int_equal(quantized, 14);
    lk_safetensors_close(got);
    lk_safetensors_close(want);
    check_model a = check_model_open(from, LK_QUANT_NF4, LK_F32, 1, NULL), b = check_model_open(out, LK_QUANT_NF4, LK_F32, 2, NULL);
    check_model c = check_model_open(want_folder, LK_QUANT_NONE, LK_F32, 2, NULL),
                d = check_model_open(from, LK_QUANT_NONE, LK_F32, 2, NULL);
    assert_string_equal(a.model->digest, b.model->digest);
    assert_string_equal(a.model->digest, c.model->digest);
    assert_string_not_equal(a.model->digest, d.model->digest);
    assert_string_equal(a.model->identity, b.model->identity);
    assert_string_equal(a.model->identity, d.model->identity);
    assert_int_equal(c.model->quant, LK_QUANT_NF4);
    check_model_close(&a);
    check_model_close(&b);
    check_model_close(&c);
    check_model_close(&d);
    /* transformers wants a float there and refuses the integer 6. */
    char path[4200], text[4096] = "";
    CHECK_OK(lk_path_join(path, sizeof path, out, "config.json", &err), &err);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    const char *threshold = strstr(text, "\"llm_int8_threshold\":");
    assert_non_null(threshold);
    assert_non_null(strstr(threshold, "6.0"));
    CHECK_FAILS(lk_model_quantize(out, "/nonexistent/x", 1, &err), LK_ERR_ARGUMENT, "already a 4-bit", &err);
    CHECK_FAILS(lk_model_quantize(from, from, 1, &err), LK_ERR_ARGUMENT, "is the input folder", &err);
    CHECK_FAILS(lk_model_quantize(from, out, 1, &err), LK_ERR_ARGUMENT, "not empty", &err);
    free(from);
    free(want_folder);
    free(out);
}

/* lk_model_bytes before loading equals what loading takes. */
static void test_bytes_are_exact(void **state)
{
    (void)state;
    static const char *const names[] = {"models/llama-tiny", "models/qwen2-tiny", "models/qwen3-tiny", "models/mistral-tiny",
                                        "models/llama-tiny-bnb4"};
    lk_error err = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int quant = 0; quant < 2; quant++) {
            for (int compute = 0; compute < 2; compute++) {
                char *folder = check_golden(names[i]);
                lk_model_facts facts;
                CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
                lk_backend *be;
                CHECK_OK(
                    lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = compute ? LK_BF16 : LK_F32}, &err),
                    &err);
                size_t before = lk_allocated(be);
                lk_model *model;
                CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = quant ? LK_QUANT_NF4 : LK_QUANT_NONE}, &err), &err);
                assert_int_equal(lk_allocated(be) - before, lk_model_bytes(be, &facts, quant ? LK_QUANT_NF4 : LK_QUANT_NONE));
                lk_model_close(model);
                assert_int_equal(lk_allocated(be), before);
                lk_backend_close(be);
                free(folder);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equals_bitsandbytes), cmocka_unit_test(test_bytes_are_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
