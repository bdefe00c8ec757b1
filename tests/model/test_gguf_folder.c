/* A GGUF file as what other things are written from: folders (merged, in 4 bits), and GGUF files again. What a folder says is what the file
 * meant: the same logits, bit for bit, and transformers' (tests/e2e/test_gguf_folder.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/gguf.h"
#include "data/tokenizer/tokenizer.h"
#include "model/config_write.h"
#include "model/export_gguf.h"
#include "model/merge.h"
#include "tests/model.h"

enum { N = 20 };

static void same_logits(const char *what, const char *a, const char *adapter, lk_quant quant, const char *b, double tolerance)
{
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = 3 + (i * 37 + 5) % 60;
    int64_t n, m;
    float *want = check_pass_logits(a, adapter, quant, ids, N, &n), *got = check_pass_logits(b, NULL, LK_QUANT_NONE, ids, N, &m);
    assert_int_equal(n, m);
    check_close(what, got, want, n, tolerance, tolerance);
    free(want);
    free(got);
}

/* Every family that has a GGUF architecture: to a file, from that to a folder, and to a file again. */
static void test_families(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st;
    cJSON *json = check_families(&st);
    char *spare = check_temporary("gguf_folder_families"), file[4200], folder[4200], again[4200];
    int compared = 0;
    const cJSON *the_case;
    cJSON_ArrayForEach(the_case, lk_json_get(json, "cases"))
    {
        const char *name = lk_json_get(the_case, "name")->valuestring;
        snprintf(file, sizeof file, "%s/%s.gguf", spare, name);
        snprintf(folder, sizeof folder, "%s/%s", spare, name);
        snprintf(again, sizeof again, "%s/%s.again.gguf", spare, name);
        char *base = check_family_folder(the_case);
        lk_gguf_export_result result;
        lk_merge_result merged;
        lk_status status = lk_export_gguf(base, file, &(lk_gguf_export_options){.type = "f32", .threads = 1}, &result, &err);
        free(base);
        if (status == LK_ERR_UNSUPPORTED) continue; /* llama.cpp cannot say it: tests/model/test_export.c */
        CHECK_OK(status, &err);
        CHECK_OK(lk_model_merge(file, NULL, folder, &(lk_merge_options){.dtype = LK_F32, .threads = 1}, &merged, &err), &err);
        same_logits(name, file, NULL, LK_QUANT_NONE, folder, 0);
        CHECK_OK(lk_export_gguf(file, again, &(lk_gguf_export_options){.type = "f32", .threads = 1}, &result, &err), &err);
        same_logits(name, file, NULL, LK_QUANT_NONE, again, 0);
        compared++;
    }
    assert_true(compared >= 14);
    lk_safetensors_close(st);
    cJSON_Delete(json);
    free(spare);
}

/* With blocks of codes in the file, an adapter, and in 4 bits. */
static void test_merged(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/llama-tiny"), *adapter = check_golden("adapters/mixed"),
         *spare = check_temporary("gguf_folder_merged");
    char file[4200], out[4200];
    lk_gguf_export_result result;
    lk_merge_result merged;
    snprintf(file, sizeof file, "%s/m.gguf", spare);
    CHECK_OK(lk_export_gguf(base, file, &(lk_gguf_export_options){.type = "q4_0"}, &result, &err), &err);
    snprintf(out, sizeof out, "%s/merged", spare);
    CHECK_OK(lk_model_merge(file, adapter, out, &(lk_merge_options){.into = LK_MERGE_ORIGINAL, .dtype = LK_F32}, &merged, &err), &err);
    same_logits("merged", file, adapter, LK_QUANT_NONE, out, 1e-4);
    snprintf(out, sizeof out, "%s/dequantized", spare);
    CHECK_OK(lk_model_merge(file, adapter, out, &(lk_merge_options){.into = LK_MERGE_DEQUANTIZED, .dtype = LK_F32}, &merged, &err), &err);
    same_logits("merged into 4-bit weights", file, adapter, LK_QUANT_NF4, out, 1e-4);
    snprintf(out, sizeof out, "%s/quantized", spare);
    CHECK_OK(lk_model_quantize(file, out, 1, &err), &err);
    same_logits("quantised", file, NULL, LK_QUANT_NF4, out, 1e-5);
    CHECK_FAILS(lk_model_quantize(file, out, 1, &err), LK_ERR_ARGUMENT, "is not empty", &err);
    free(base);
    free(adapter);
    free(spare);
}

static void test_tokenizer(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/chat-tiny"), *spare = check_temporary("gguf_folder_tokenizer"), file[4200], out[4200];
    lk_gguf_export_result result;
    lk_merge_result merged;
    snprintf(file, sizeof file, "%s/m.gguf", spare);
    snprintf(out, sizeof out, "%s/out", spare);
    CHECK_OK(lk_export_gguf(base, file, &(lk_gguf_export_options){.type = "q8_0"}, &result, &err), &err);
    CHECK_OK(lk_model_merge(file, NULL, out, &(lk_merge_options){.dtype = LK_BF16}, &merged, &err), &err);
    lk_tokenizer *a, *b;
    CHECK_OK(lk_tokenizer_open(&a, base, &err), &err);
    CHECK_OK(lk_tokenizer_open(&b, out, &err), &err);
    const char *text = "<|im_start|>user\nHi, 2 words<|im_end|>\n";
    int32_t *x, *y;
    int64_t n, m;
    CHECK_OK(lk_tokenizer_encode(a, text, strlen(text), LK_TK_SPECIALS, &x, &n, &err), &err);
    CHECK_OK(lk_tokenizer_encode(b, text, strlen(text), LK_TK_SPECIALS, &y, &m, &err), &err);
    assert_int_equal(n, m);
    check_same_bits(text, y, x, (size_t)n * sizeof *x);
    assert_int_equal(lk_tokenizer_eos(a), lk_tokenizer_eos(b));
    assert_string_equal(lk_tokenizer_chat_template(a), lk_tokenizer_chat_template(b));
    lk_config c, d; /* every token that ends a text */
    CHECK_OK(lk_config_read(&c, base, &err), &err);
    CHECK_OK(lk_config_read(&d, out, &err), &err);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(d.n_eos, 2);
    free(x);
    free(y);
    lk_tokenizer_close(a);
    lk_tokenizer_close(b);
    free(base);
    free(spare);
}

/* What no config.json of the family says is refused by name. */
static void test_refuses(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/llama-tiny");
    lk_config c, plain;
    cJSON *json;
    CHECK_OK(lk_config_read(&plain, base, &err), &err);
    CHECK_OK(lk_config_json(&json, &plain, "here", &err), &err);
    cJSON_Delete(json);
    c = plain;
    c.layer[1] = LK_LAYER_NO_ROPE;
    CHECK_FAILS(lk_config_json(&json, &c, "here", &err), LK_ERR_UNSUPPORTED,
                "here: which layers slide or have RoPE of this model cannot be said in a llama config.json", &err);
    c = plain;
    c.embedding_scale = 12;
    CHECK_FAILS(lk_config_json(&json, &c, "here", &err), LK_ERR_UNSUPPORTED, "the scale of the embedding of this model", &err);
    c = plain;
    c.rope.kind = LK_ROPE_YARN;
    c.rope.factor = 4;
    c.rope.low = 2;
    c.rope.high = 16;
    c.rope.original = 64;
    CHECK_FAILS(lk_config_json(&json, &c, "here", &err), LK_ERR_UNSUPPORTED, "RoPE of this model", &err);
    assert_null(json);
    free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_families), cmocka_unit_test(test_merged), cmocka_unit_test(test_tokenizer),
                                       cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
