/* Merged and unmerged agree: in fp32 to rounding of the sum, in bf16 to rounding of the weights. And what a merge refuses. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "data/peft.h"
#include "model/drift.h"
#include "model/merge.h"
#include "tests/model.h"

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
        unmerged = check_pass_logits(cases[i].base, adapter, cases[i].quant, ids, 40, &n);
        merged = check_pass_logits(out, NULL, LK_QUANT_NONE, ids, 40, &n);
        check_close("merged logits", merged, unmerged, n, cases[i].tolerance, cases[i].tolerance);
        free(unmerged);
        free(merged);
        free(out);
    }
    free(base);
    free(four);
    free(adapter);
}

/* Merged into 4 bits is merged into the dequantised weights and then quantised, byte for byte. */
static void test_nf4(void **state)
{
    (void)state;
    lk_error err = {0};
    char *four = check_golden("models/llama-tiny-bnb4"), *adapter = check_golden("options/dora");
    char *wide = check_temporary("merged_wide"), *quantized = check_temporary("merged_quantized"), *direct = check_temporary("merged_nf4");
    lk_merge_result result;
    CHECK_OK(lk_model_merge(four, adapter, wide, &(lk_merge_options){.into = LK_MERGE_DEQUANTIZED, .dtype = LK_F32}, &result, &err), &err);
    CHECK_OK(lk_model_quantize(wide, quantized, 2, &err), &err);
    CHECK_OK(lk_model_merge(four, adapter, direct, &(lk_merge_options){.into = LK_MERGE_NF4, .dtype = LK_F32}, &result, &err), &err);
    char digests[2][65];
    for (int i = 0; i < 2; i++) {
        lk_safetensors *st;
        CHECK_OK(lk_safetensors_open(&st, i ? direct : quantized, &err), &err);
        CHECK_OK(lk_safetensors_digest(st, digests[i], &err), &err);
        lk_safetensors_close(st);
    }
    assert_string_equal(digests[0], digests[1]);
    free(four);
    free(adapter);
    free(wide);
    free(quantized);
    free(direct);
}

/* Without an adapter a folder is only written anew: a 4-bit one in fp32, in shards, is the same model. */
static void test_anew(void **state)
{
    (void)state;
    lk_error err = {0};
    char *four = check_golden("models/llama-tiny-bnb4"), *out = check_temporary("merge_anew"), path[4200];
    int32_t ids[20];
    for (int i = 0; i < 20; i++) ids[i] = (i * 37 + 5) % 160;
    lk_merge_result result;
    CHECK_OK(lk_model_merge(four, NULL, out, &(lk_merge_options){.dtype = LK_F32, .shard_bytes = 100000}, &result, &err), &err);
    assert_true(result.merged == 0 && result.copied == 21 && result.into == LK_MERGE_DEQUANTIZED);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", out);
    assert_true(lk_path_exists(path));
    float *want, *got;
    int64_t n;
    want = check_pass_logits(four, NULL, LK_QUANT_NF4, ids, 20, &n);
    got = check_pass_logits(out, NULL, LK_QUANT_NONE, ids, 20, &n);
    check_close("logits", got, want, n, 1e-5, 1e-5);
    free(want);
    free(got);
    free(four);
    free(out);
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
    char mine[4200];
    snprintf(mine, sizeof mine, "%s/mine.txt", out);
    check_write_file(mine, "x", 1);
    CHECK_FAILS(lk_model_merge(four, adapter, out, &options, &result, &err), LK_ERR_ARGUMENT, "not empty", &err);
    assert_true(lk_path_exists(mine));
    free(four);
    free(other);
    free(adapter);
    free(out);
}

/* PEFT's adapters of every kind, merged: the logits are PEFT's with the adapter. */
static void test_options(void **state)
{
    (void)state;
    static const struct {
        const char *name, *base;
        bool untied;
    } rows[] = {
        {"dora", "llama-tiny", false},        {"dora_rslora", "qwen2-tiny", false},   {"bias_lora_only", "qwen2-tiny", false},
        {"bias_all", "qwen2-tiny", false},    {"saved", "llama-tiny", false},         {"saved_tied", "qwen3-tiny", true},
        {"embedding", "llama-tiny", false},   {"embedding_tied", "qwen3-tiny", true}, {"tokens", "llama-tiny", false},
        {"tokens_tied", "qwen3-tiny", false}, {"regex", "llama-tiny", false},         {"layers", "llama-tiny", false},
        {"transposed", "llama-tiny", false},  {"pissa", "llama-tiny", false},
    };
    lk_error err = {0};
    char *golden = check_golden("adapter_options.safetensors");
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, golden, &err), &err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char key[100], adapter_name[100], base_name[100];
        snprintf(adapter_name, sizeof adapter_name, "options/%s", rows[i].name);
        snprintf(base_name, sizeof base_name, "models/%s", rows[i].base);
        char *adapter = check_golden(adapter_name), *base = check_golden(base_name);
        snprintf(key, sizeof key, "%s.ids", rows[i].name);
        int64_t n, n_logits, n_merged;
        int32_t *ids = check_ints(st, key, &n);
        for (int nf4 = 0; nf4 < 2; nf4++) {
            snprintf(key, sizeof key, "%s.logits%s", rows[i].name, nf4 ? "_nf4" : "");
            if (!lk_safetensors_find(st, key)) continue; /* pissa: over the base as stored only */
            char *out = check_temporary("merged_option");
            float *want = check_floats(st, key, &n_logits), *merged;
            lk_merge_result result;
            lk_merge_options options = {.into = nf4 ? LK_MERGE_DEQUANTIZED : LK_MERGE_ORIGINAL, .dtype = LK_F32, .threads = 2};
            CHECK_OK(lk_model_merge(base, adapter, out, &options, &result, &err), &err);
            assert_int_equal(result.untied, rows[i].untied);
            merged = check_pass_logits(out, NULL, LK_QUANT_NONE, ids, n, &n_merged);
            assert_int_equal(n_merged, n_logits);
            check_close(key, merged, want, n_logits, 1e-4, 1e-4);
            free(merged);
            free(want);
            free(out);
        }
        free(ids);
        free(adapter);
        free(base);
    }
    /* A bias needs a place. */
    char *adapter = check_golden("options/lora_bias"), *base = check_golden("models/llama-tiny"), *out = check_temporary("merged_option");
    lk_merge_result result;
    lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_F32};
    CHECK_FAILS(lk_model_merge(base, adapter, out, &options, &result, &err), LK_ERR_UNSUPPORTED, "lora_bias of model.layers.0.", &err);
    free(adapter);
    free(base);
    free(out);
    free(golden);
    lk_safetensors_close(st);
}

static void test_drift(void **state)
{
    (void)state;
    const float p[] = {0, 1, 2, 3, 0, 0}, q[] = {0, 1, 2, 0, 3, 0};
    lk_drift same = lk_drift_measure(p, p, 2, 3), other = lk_drift_measure(p, q, 2, 3);
    assert_true(same.max == 0 && same.mean == 0 && same.kl == 0 && same.same_top == 1);
    assert_true(other.max == 3 && other.mean == 1 && other.same_top == 0.5);
    /* Softmax of (3,0,0) against that of (0,3,0): 3 (e^3 - 1) / (e^3 + 2), over one of two rows. */
    assert_true(fabs(other.kl - 0.5 * 3 * (exp(3) - 1) / (exp(3) + 2)) < 1e-12);
}

/* A DoRA on every linear layer of a model, factors and magnitudes by rule. */
static void write_dora(const char *folder, const lk_config *c)
{
    enum { RANK = 3 };
    lk_error err = {0};
    int32_t n = lk_sites(c);
    lk_peft_write_module *modules = calloc((size_t)n, sizeof *modules);
    char(*names)[200] = calloc((size_t)n, sizeof *names);
    float **values = calloc((size_t)n, sizeof *values);
    for (int32_t s = 0; s < n; s++) {
        lk_site site = lk_site_at(c, s);
        float *v = values[s] = malloc((size_t)(RANK * (site.k + site.n) + site.n) * 4);
        lk_site_path(names[s], sizeof names[s], c, s);
        check_rule(names[s], v, RANK * (site.k + site.n), 0.0f, 0.2f);
        check_rule(names[s], v + RANK * (site.k + site.n), site.n, 1.0f, 0.3f);
        modules[s] = (lk_peft_write_module){.name = names[s],
                                            .rank = RANK,
                                            .alpha = 4,
                                            .in = site.k,
                                            .out = site.n,
                                            .a = v,
                                            .b = v + RANK * site.k,
                                            .magnitude = v + RANK * (site.k + site.n)};
    }
    CHECK_OK(lk_peft_write(folder, modules, n, &(lk_peft_write_options){.base = "family"}, &err), &err);
    for (int32_t s = 0; s < n; s++) free(values[s]);
    free(values);
    free(names);
    free(modules);
}

/* In families whose layers are fused, have norms behind them or experts: the adapter beside the model is the adapter in it. */
static void test_dora_everywhere(void **state)
{
    (void)state;
    static const char *const families[] = {"gemma2", "phi3", "olmo2", "granite", "mixtral", "qwen3_moe"};
    lk_error err = {0};
    lk_safetensors *st;
    cJSON *all = check_families(&st);
    const cJSON *the_case;
    int done = 0;
    cJSON_ArrayForEach(the_case, lk_json_get(all, "cases"))
    {
        const char *name = lk_json_get(the_case, "name")->valuestring;
        bool wanted = false;
        for (size_t i = 0; i < sizeof families / sizeof *families; i++) wanted = wanted || !strcmp(families[i], name);
        if (!wanted) continue;
        char *folder = check_family_folder(the_case), *adapter = check_temporary("family_dora"), *out = check_temporary("family_merged");
        lk_config config;
        CHECK_OK(lk_config_read(&config, folder, &err), &err);
        write_dora(adapter, &config);
        int32_t ids[20];
        for (int i = 0; i < 20; i++) ids[i] = (int32_t)(3 + 7 * i % (config.vocab - 3));
        lk_merge_result result;
        lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_F32, .threads = 2};
        CHECK_OK(lk_model_merge(folder, adapter, out, &options, &result, &err), &err);
        float *beside, *merged, *plain;
        int64_t n;
        beside = check_pass_logits(folder, adapter, LK_QUANT_NONE, ids, 20, &n);
        merged = check_pass_logits(out, NULL, LK_QUANT_NONE, ids, 20, &n);
        plain = check_pass_logits(folder, NULL, LK_QUANT_NONE, ids, 20, &n);
        check_close(name, beside, merged, n, 2e-4, 2e-4);
        double moved = 0;
        for (int64_t i = 0; i < n; i++) moved = fmax(moved, fabs((double)plain[i] - (double)merged[i]));
        assert_true(moved > 0.05);
        if (config.experts) {
            check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 1, NULL);
            lk_adapter *a;
            lk_adapter_spec spec = {.rank = 2, .alpha = 2, .use_dora = true, .targets = {[LK_GATE] = true}};
            CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_UNSUPPORTED, "dora on the experts of a mixture", &err);
            check_model_close(&m);
        }
        free(beside);
        free(merged);
        free(plain);
        free(folder);
        free(adapter);
        free(out);
        done++;
    }
    assert_int_equal(done, 6);
    cJSON_Delete(all);
    lk_safetensors_close(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_agrees),         cmocka_unit_test(test_nf4),     cmocka_unit_test(test_anew),
                                       cmocka_unit_test(test_refuses),        cmocka_unit_test(test_options), cmocka_unit_test(test_drift),
                                       cmocka_unit_test(test_dora_everywhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
