/* Folders whose tensors have other names: the text part of a model of images and text, in both spellings, with PEFT's adapters for it
 * (tests/golden/whole), and mixtures whose experts are stacked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/peft.h"
#include "model/merge.h"
#include "tests/model.h"

static char *family(const char *name)
{
    lk_safetensors *st;
    cJSON *all = check_families(&st);
    const cJSON *c;
    char *folder = NULL;
    cJSON_ArrayForEach(c, lk_json_get(all, "cases")) if (!strcmp(lk_json_get(c, "name")->valuestring, name)) folder =
        check_family_folder(c);
    assert_non_null(folder);
    cJSON_Delete(all);
    lk_safetensors_close(st);
    return folder;
}

static void copy_file(const char *from, const char *to, const char *name)
{
    lk_error err = {0};
    char path[4300], *text;
    size_t size;
    snprintf(path, sizeof path, "%s/%s", from, name);
    CHECK_OK(lk_file_read(path, 1 << 20, &text, &size, &err), &err);
    snprintf(path, sizeof path, "%s/%s", to, name);
    check_write_file(path, text, size);
    free(text);
}

/* The tensors of FOLDER/BASE.safetensors under names with the first of these beginnings exchanged; config CONFIG as it is. */
typedef struct rename_rule {
    const char *from, *to;
} rename_rule;

static char *renamed(const char *folder, const char *base_name, const char *config, const rename_rule *rules, int n_rules)
{
    lk_error err = {0};
    char path[4300], *out = check_temporary("whole_renamed");
    lk_safetensors *st;
    lk_st_writer *w;
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, base_name);
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    CHECK_OK(lk_st_writer_create(&w, out, base_name, 0, &err), &err);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
            const lk_st_tensor *t = lk_safetensors_at(st, i);
            char name[400];
            snprintf(name, sizeof name, "%s", t->name);
            for (int r = 0; r < n_rules; r++) {
                size_t n = strlen(rules[r].from);
                if (strncmp(t->name, rules[r].from, n)) continue;
                snprintf(name, sizeof name, "%s%s", rules[r].to, t->name + n);
                break;
            }
            if (pass)
                CHECK_OK(lk_st_writer_write(w, t->data, (size_t)t->n_bytes, &err), &err);
            else
                CHECK_OK(lk_st_writer_declare(w, name, t->type, t->n_dims, t->shape, &err), &err);
        }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    lk_safetensors_close(st);
    copy_file(folder, out, config);
    return out;
}

/* Both folders are one model. */
static void same_model(const char *a, const char *b, lk_quant quant)
{
    int32_t ids[12];
    int64_t n;
    for (int i = 0; i < 12; i++) ids[i] = 3 + 5 * i;
    check_model x = check_model_open(a, quant, LK_F32, 1, NULL), y = check_model_open(b, quant, LK_F32, 1, NULL);
    assert_string_equal(x.model->identity, y.model->identity);
    assert_string_equal(x.model->digest, y.model->digest);
    check_model_close(&x);
    check_model_close(&y);
    float *want = check_pass_logits(a, NULL, quant, ids, 12, &n), *got = check_pass_logits(b, NULL, quant, ids, 12, &n);
    check_same_bits(b, got, want, (size_t)n * 4);
    free(want);
    free(got);
}

static void test_spellings(void **state)
{
    (void)state;
    static const rename_rule newer[] = {{"language_model.model.", "model.language_model."},
                                        {"language_model.lm_head.", "lm_head."},
                                        {"vision_tower.", "model.vision_tower."},
                                        {"multi_modal_projector.", "model.multi_modal_projector."}};
    static const rename_rule unknown[] = {{"vision_tower.", "sound_tower."}};
    static const char *const names[] = {"gemma3_whole", "mistral3_whole"};
    lk_error err = {0};
    for (int i = 0; i < 2; i++) {
        char *folder = family(names[i]), *other = renamed(folder, "model", "config.json", newer, 4), *out = check_temporary("whole_nf4");
        same_model(folder, other, LK_QUANT_NONE);
        CHECK_OK(lk_model_quantize(other, out, 1, &err), &err);
        same_model(folder, out, LK_QUANT_NF4);
        free(other);
        free(out);
        other = renamed(folder, "model", "config.json", unknown, 1);
        check_model m = {0};
        CHECK_OK(lk_backend_open(&m.be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
        CHECK_FAILS(lk_model_open(&m.model, m.be, other, &(lk_model_options){.quant = LK_QUANT_NONE}, &err), LK_ERR_UNSUPPORTED,
                    "tensor sound_tower.", &err);
        lk_backend_close(m.be);
        free(other);
        free(folder);
    }
}

/* ---- adapters ---- */

static void compare(const lk_safetensors *golden, const char *name, const char *base, const char *adapter)
{
    char key[100];
    int64_t n, count;
    snprintf(key, sizeof key, "%s.ids", name);
    int32_t *ids = check_ints(golden, key, &n);
    snprintf(key, sizeof key, "%s.logits", name);
    float *want = check_floats(golden, key, NULL), *got = check_pass_logits(base, adapter, LK_QUANT_NONE, ids, n, &count);
    check_close(key, got, want, count, 1e-4, 1e-4);
    free(ids);
    free(want);
    free(got);
}

/* With the adapter merged a text model is written, by its own names. */
static void check_merged(const lk_safetensors *golden, const char *name, const char *base, const char *adapter)
{
    lk_error err = {0};
    char *out = check_temporary("whole_merged"), path[4300];
    lk_merge_result result;
    lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_F32, .threads = 2};
    CHECK_OK(lk_model_merge(base, adapter, out, &options, &result, &err), &err);
    compare(golden, name, out, NULL);
    cJSON *config;
    snprintf(path, sizeof path, "%s/config.json", out);
    CHECK_OK(lk_json_read(&config, path, 1 << 20, &err), &err);
    assert_string_equal(lk_json_get(config, "model_type")->valuestring, "gemma3_text");
    assert_string_equal(lk_json_get(config, "architectures")->child->valuestring, "Gemma3ForCausalLM");
    assert_int_equal(cJSON_GetArraySize(lk_json_get(config, "eos_token_id")), 2);
    assert_null(lk_json_get(config, "vision_config"));
    cJSON_Delete(config);
    free(out);
}

static void test_adapters(void **state)
{
    (void)state;
    static const rename_rule older[] = {{"base_model.model.model.language_model.", "base_model.model.language_model.model."}};
    static const char *const names[] = {"all", "values"};
    lk_error err = {0};
    lk_safetensors *golden;
    char *path = check_golden("whole.safetensors"), *base = family("gemma3_whole");
    CHECK_OK(lk_safetensors_open(&golden, path, &err), &err);
    free(path);
    for (int i = 0; i < 2; i++) {
        char name[100];
        snprintf(name, sizeof name, "whole/%s", names[i]);
        char *adapter = check_golden(name), *other = renamed(adapter, "adapter_model", "adapter_config.json", older, 1);
        compare(golden, names[i], base, adapter);
        compare(golden, names[i], base, other);
        check_merged(golden, names[i], base, adapter);
        /* On a text model the same names mean the same, but there are no images that could be left out. */
        char *text = check_temporary("whole_text");
        lk_merge_result result;
        lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_F32, .threads = 2};
        CHECK_OK(lk_model_merge(base, NULL, text, &options, &result, &err), &err);
        check_model m = check_model_open(text, LK_QUANT_NONE, LK_F32, 1, NULL);
        lk_adapter *a = NULL;
        if (i)
            CHECK_OK(lk_adapter_load(&a, m.model, adapter, LK_F32, &err), &err);
        else
            CHECK_FAILS(lk_adapter_load(&a, m.model, adapter, LK_F32, &err), LK_ERR_MISMATCH, "which is not a linear layer of", &err);
        lk_adapter_destroy(a);
        check_model_close(&m);
        free(text);
        free(adapter);
        free(other);
    }
    lk_safetensors_close(golden);
    free(base);
}

/* What is trained here is called what PEFT calls it there, and names no layer of the images. */
static void test_saved(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = family("gemma3_whole"), *folder = check_temporary("whole_saved"), path[4300];
    check_model m = check_model_open(base, LK_QUANT_NONE, LK_F32, 1, NULL);
    lk_adapter *a, *again;
    static const int32_t tokens[] = {3, 9};
    lk_adapter_spec spec = {.rank = 2, .alpha = 2, .targets = {[LK_Q] = true, [LK_DOWN] = true}, .tokens = tokens, .n_tokens = 2};
    CHECK_OK(lk_adapter_create(&a, m.model, &spec, 1, &err), &err);
    CHECK_OK(lk_adapter_save(a, folder, &err), &err);
    lk_peft *p;
    CHECK_OK(lk_peft_open(&p, folder, NULL, &err), &err);
    assert_int_equal(lk_peft_count(p), 14);
    assert_string_equal(lk_peft_at(p, 0)->a->name, "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.weight");
    assert_int_equal(lk_peft_n_values(p), 1);
    assert_string_equal(lk_peft_value_at(p, 0)->tensor->name,
                        "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta");
    lk_peft_close(p);
    cJSON *config;
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    CHECK_OK(lk_json_read(&config, path, 1 << 20, &err), &err);
    const cJSON *target;
    cJSON_ArrayForEach(target, lk_json_get(config, "target_modules"))
        assert_true(!strncmp(target->valuestring, "model.language_model.layers.", 28));
    cJSON_Delete(config);
    CHECK_OK(lk_adapter_load(&again, m.model, folder, LK_F32, &err), &err);
    assert_int_equal(again->n_tokens, 2);
    lk_adapter_destroy(a);
    lk_adapter_destroy(again);
    check_model_close(&m);
    free(base);
    free(folder);
}

/* ---- stacked experts ---- */

/* The tensors of one layer's experts as transformers 5 keeps them. part 0: gate over up, 1: down. */
static void stack(lk_st_writer *w, const lk_safetensors *st, const lk_config *c, int64_t layer, int part, bool write)
{
    lk_error err = {0};
    char path[300], name[320];
    snprintf(path, sizeof path, "model.layers.%lld.mlp.experts.%s", (long long)layer, part ? "down_proj" : "gate_up_proj");
    int64_t shape[3] = {c->experts, part ? c->hidden : 2 * c->intermediate, part ? c->intermediate : c->hidden};
    if (!write) CHECK_OK(lk_st_writer_declare(w, path, LK_BF16, 3, shape, &err), &err);
    for (int32_t e = 0; write && e < c->experts; e++)
        for (int m = part ? LK_DOWN : LK_GATE; m <= (part ? LK_DOWN : LK_UP); m++) {
            lk_site_path(path, sizeof path, c, lk_site_of(c, layer, (lk_module)m, e));
            snprintf(name, sizeof name, "%s.weight", path);
            const lk_st_tensor *t = lk_safetensors_find(st, name);
            assert_non_null(t);
            CHECK_OK(lk_st_writer_write(w, t->data, (size_t)t->n_bytes, &err), &err);
        }
}

static void test_stacked(void **state)
{
    (void)state;
    static const char *const names[] = {"mixtral", "qwen3_moe_dense"};
    lk_error err = {0};
    for (int i = 0; i < 2; i++) {
        char *folder = family(names[i]), *out = check_temporary("whole_stacked"), name[300];
        lk_config c;
        lk_safetensors *st;
        lk_st_writer *w;
        CHECK_OK(lk_config_read(&c, folder, &err), &err);
        CHECK_OK(lk_safetensors_open(&st, folder, &err), &err);
        CHECK_OK(lk_st_writer_create(&w, out, "model", 0, &err), &err);
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t t = 0; t < lk_safetensors_count(st); t++) {
                const lk_st_tensor *from = lk_safetensors_at(st, t);
                if (strstr(from->name, ".experts.")) continue;
                snprintf(name, sizeof name, "%s", from->name);
                char *router = strstr(name, "block_sparse_moe.gate");
                if (router) snprintf(router, 20, "mlp.gate.weight");
                if (pass)
                    CHECK_OK(lk_st_writer_write(w, from->data, (size_t)from->n_bytes, &err), &err);
                else
                    CHECK_OK(lk_st_writer_declare(w, name, from->type, from->n_dims, from->shape, &err), &err);
            }
            for (int64_t l = 0; l < c.layers; l++)
                for (int part = 0; part < 2 && lk_layer_mixes(&c, l); part++) stack(w, st, &c, l, part, pass == 1);
        }
        CHECK_OK(lk_st_writer_commit(w, &err), &err);
        lk_safetensors_close(st);
        copy_file(folder, out, "config.json");
        same_model(folder, out, LK_QUANT_NONE);
        same_model(folder, out, LK_QUANT_NF4);
        free(folder);
        free(out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spellings), cmocka_unit_test(test_adapters), cmocka_unit_test(test_saved),
                                       cmocka_unit_test(test_stacked)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
