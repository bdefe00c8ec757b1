/* Exports. What llama.cpp makes of them is for tests/e2e/test_gguf.py, which needs it; here: the same bytes as those that were judged there
 * (tests/golden/gguf_exports.json), the types of a mixed file, and what is refused. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"
#include "data/chat/modelfile.h"
#include "data/gguf.h"
#include "data/safetensors.h"
#include "model/export_gguf.h"
#include "model/gguf_config.h"
#include "model/merge.h"
#include "tests/check.h"

static cJSON *digests(void)
{
    lk_error err = {0};
    char *path = check_golden("gguf_exports.json");
    cJSON *json;
    CHECK_OK(lk_json_read(&json, path, 1 << 20, &err), &err);
    free(path);
    return json;
}

static void check_digest(const cJSON *want, const char *key, const char *path)
{
    lk_error err = {0};
    lk_map map;
    char hex[65];
    const cJSON *item = lk_json_get(want, key);
    CHECK_OK(lk_map_open(&map, path, &err), &err);
    lk_sha256_bytes(map.data, map.size, hex);
    lk_map_close(&map);
    if (!cJSON_IsString(item) || strcmp(item->valuestring, hex)) fail_msg("%s: %s is not the file that llama.cpp was run on", key, hex);
}

static void test_same_bytes(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("export"), path[4200];
    cJSON *want = digests();
    static const char *const models[] = {"llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "llama-tiny-bnb4", "chat-tiny"};
    static const char *const types[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        for (size_t t = 0; t < (m == 5 ? sizeof types / sizeof *types : 1); t++) {
            char name[100], key[100];
            snprintf(name, sizeof name, "models/%s", models[m]);
            snprintf(key, sizeof key, "%s.%s", models[m], types[t]);
            snprintf(path, sizeof path, "%s/%s.gguf", folder, key);
            char *base = check_golden(name);
            lk_gguf_export_result result;
            CHECK_OK(lk_export_gguf(base, path, &(lk_gguf_export_options){.type = types[t], .threads = m % 2 ? 1 : 3}, &result, &err),
                     &err);
            check_digest(want, key, path);
            free(base);
        }
    }
    static const char *const adapters[][2] = {
        {"r8_all", "llama-tiny"}, {"mixed", "llama-tiny"}, {"rslora", "llama-tiny"}, {"r8_all_qwen3", "qwen3-tiny"}};
    for (size_t a = 0; a < 4; a++) {
        char name[100], from[100], key[100];
        snprintf(name, sizeof name, "models/%s", adapters[a][1]);
        snprintf(from, sizeof from, "adapters/%s", adapters[a][0]);
        snprintf(key, sizeof key, "lora.%s", adapters[a][0]);
        snprintf(path, sizeof path, "%s/%s.gguf", folder, key);
        char *base = check_golden(name), *adapter = check_golden(from);
        lk_gguf_export_result result;
        CHECK_OK(lk_export_gguf_lora(base, adapter, path, &result, &err), &err);
        check_digest(want, key, path);
        free(base);
        free(adapter);
    }
    cJSON_Delete(want);
    free(folder);
}

/* ---- a model whose rows are whole blocks of 256 ---- */

enum { LAYERS = 8, WIDTH = 256, HEADS = 64, VOCAB = 40 };

typedef struct tensor {
    const char *name; /* %d: the layer */
    int64_t rows, columns;
} tensor;

static const tensor tensors[] = {
    {"model.embed_tokens.weight", VOCAB, WIDTH},
    {"model.norm.weight", 0, WIDTH},
    {"lm_head.weight", VOCAB, WIDTH},
    {"model.layers.%d.input_layernorm.weight", 0, WIDTH},
    {"model.layers.%d.post_attention_layernorm.weight", 0, WIDTH},
    {"model.layers.%d.self_attn.q_proj.weight", HEADS, WIDTH},
    {"model.layers.%d.self_attn.k_proj.weight", HEADS, WIDTH},
    {"model.layers.%d.self_attn.v_proj.weight", HEADS, WIDTH},
    {"model.layers.%d.self_attn.o_proj.weight", WIDTH, HEADS},
    {"model.layers.%d.mlp.gate_proj.weight", WIDTH, WIDTH},
    {"model.layers.%d.mlp.up_proj.weight", WIDTH, WIDTH},
    {"model.layers.%d.mlp.down_proj.weight", WIDTH, WIDTH},
};

static void make_wide(const char *folder, const char *more)
{
    lk_error err = {0};
    char path[4200], text[1000];
    snprintf(path, sizeof path, "%s/config.json", folder);
    snprintf(text, sizeof text,
             "{\"model_type\": \"llama\", \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": 1, \"head_dim\": %d, \"vocab_size\": %d, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5%s}",
             WIDTH, WIDTH, LAYERS, HEADS, VOCAB, more);
    check_write_file(path, text, strlen(text));
    check_random r = {3};
    float *values = malloc(WIDTH * WIDTH * 4);
    uint16_t *narrow = malloc(WIDTH * WIDTH * 2);
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++) {
            bool vector = tensors[t].rows == 0, layers = strchr(tensors[t].name, '%') != NULL;
            int64_t shape[2] = {tensors[t].rows, tensors[t].columns}, n = (vector ? 1 : shape[0]) * shape[1];
            for (int layer = 0; layer < (layers ? LAYERS : 1); layer++) {
                char name[200];
                const char *mark = strchr(tensors[t].name, '%');
                if (mark)
                    snprintf(name, sizeof name, "%.*s%d%s", (int)(mark - tensors[t].name), tensors[t].name, layer, mark + 2);
                else
                    snprintf(name, sizeof name, "%s", tensors[t].name);
                if (pass == 0) {
                    CHECK_OK(lk_st_writer_declare(w, name, LK_BF16, vector ? 1 : 2, vector ? shape + 1 : shape, &err), &err);
                    continue;
                }
                check_random_fill(&r, values, n, 0.05f);
                lk_from_f32(narrow, LK_BF16, values, n);
                CHECK_OK(lk_st_writer_write(w, narrow, (size_t)n * 2, &err), &err);
            }
        }
    }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    free(values);
    free(narrow);
}

static const char *type_of(const lk_gguf *g, int layer, const char *name)
{
    char full[100];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    const lk_gguf_tensor *t = lk_gguf_find(g, full);
    assert_non_null(t);
    return t->type->name;
}

/* The mix of llama.cpp's own tool, and values that are those of the folder within what a type can say. */
static void test_mixed_types(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("export_wide"), path[4200];
    snprintf(path, sizeof path, "%s.gguf", folder);
    make_wide(folder, "");
    lk_gguf_export_result result;
    CHECK_OK(lk_export_gguf(folder, path, &(lk_gguf_export_options){.type = "q4_k_m"}, &result, &err), &err);
    assert_int_equal(result.tensors, 3 + LAYERS * 9);
    assert_int_equal(result.fallbacks, LAYERS); /* o_proj's rows have 64 values */
    lk_gguf *g;
    CHECK_OK(lk_gguf_open(&g, path, &err), &err);
    int64_t file_type;
    CHECK_OK(lk_gguf_int(g, "general.file_type", 0, 100, &file_type, &err), &err);
    assert_int_equal(file_type, 15);
    assert_string_equal(lk_gguf_find(g, "token_embd.weight")->type->name, "q4_k");
    assert_string_equal(lk_gguf_find(g, "output.weight")->type->name, "q6_k");
    static const bool more[LAYERS] = {true, false, false, true, false, false, true, true};
    for (int layer = 0; layer < LAYERS; layer++) {
        assert_string_equal(type_of(g, layer, "attn_q"), "q4_k");
        assert_string_equal(type_of(g, layer, "attn_output"), "q8_0");
        assert_string_equal(type_of(g, layer, "attn_norm"), "f32");
        assert_string_equal(type_of(g, layer, "ffn_gate"), "q4_k");
        assert_string_equal(type_of(g, layer, "attn_v"), more[layer] ? "q6_k" : "q4_k");
        assert_string_equal(type_of(g, layer, "ffn_down"), more[layer] ? "q6_k" : "q4_k");
    }
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, folder, &err), &err);
    float *want = malloc(WIDTH * WIDTH * 4), *got = malloc(WIDTH * WIDTH * 4);
    for (int layer = 0; layer < LAYERS; layer++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.%d.mlp.down_proj.weight", layer);
        CHECK_OK(lk_st_read_f32(lk_safetensors_find(st, name), 0, WIDTH * WIDTH, want, &err), &err);
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight", layer);
        const lk_gguf_tensor *t = lk_gguf_find(g, name);
        lk_ggml_decode(t->type, t->data, 0, WIDTH * WIDTH, got);
        check_close(name, got, want, WIDTH * WIDTH, more[layer] ? 0.006 : 0.02, 0); /* half a step of a group that spans 0.4 */
    }
    free(want);
    free(got);
    lk_safetensors_close(st);
    lk_gguf_close(g);
    free(folder);
}

/* A folder written anew says 4.0 where its base did: vLLM takes a factor of 4 for something else. */
static void test_numbers_stay(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("export_numbers"), *out = check_temporary("export_numbers_out"), path[4200], *text;
    size_t size;
    make_wide(folder, ", \"rope_theta\": 10000.0, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}");
    lk_merge_result result;
    CHECK_OK(lk_model_merge(folder, NULL, out, &(lk_merge_options){.dtype = LK_BF16}, &result, &err), &err);
    snprintf(path, sizeof path, "%s/config.json", out);
    CHECK_OK(lk_file_read(path, 1 << 20, &text, &size, &err), &err);
    if (!strstr(text, "\"factor\":\t4.0") || !strstr(text, "10000.0") || !strstr(text, "1e-5") || !strstr(text, ":\t256,"))
        fail_msg("%s", text);
    free(text);
    free(folder);
    free(out);
}

/* ---- what llama.cpp takes where a file is silent ---- */

static void read_small(lk_config *c, const char *folder, const char *more)
{
    lk_error err = {0};
    char path[4200], text[400];
    snprintf(path, sizeof path, "%s/config.json", folder);
    snprintf(text, sizeof text,
             "{%s, \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"head_dim\": 8, "
             "\"vocab_size\": 40, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5}",
             more);
    check_write_file(path, text, strlen(text));
    CHECK_OK(lk_config_read(c, folder, &err), &err);
}

static void test_silent_files(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_config c;
    char *folder = check_temporary("export_silent"), path[4200];
    read_small(&c, folder, "\"model_type\": \"gemma2\", \"query_pre_attn_scalar\": 8, \"attn_logit_softcapping\": null");
    CHECK_FAILS(lk_gguf_check_config(&c, "here", &err), LK_ERR_UNSUPPORTED, "here: llama.cpp caps a gemma2 model's scores at 50", &err);
    read_small(&c, folder, "\"model_type\": \"gemma2\", \"query_pre_attn_scalar\": 8");
    CHECK_OK(lk_gguf_check_config(&c, "here", &err), &err);

    /* no Granite is opened without this key, which config.json leaves out where it says 1 */
    read_small(&c, folder, "\"model_type\": \"granite\"");
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    lk_gguf_writer *w;
    CHECK_OK(lk_gguf_writer_create(&w, path, &err), &err);
    CHECK_OK(lk_gguf_add_config(w, &c, &err), &err);
    CHECK_OK(lk_gguf_commit(w, &err), &err);
    lk_gguf *g;
    double scale = 0;
    CHECK_OK(lk_gguf_open(&g, path, &err), &err);
    CHECK_OK(lk_gguf_number(g, "granite.logit_scale", &scale, &err), &err);
    assert_true(scale == 1);
    lk_gguf_close(g);
    free(folder);
}

/* ---- Ollama ---- */

static void test_modelfile(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/chat-tiny"), *folder = check_temporary("export_modelfile"), path[4200], *text;
    lk_tokenizer *tk;
    CHECK_OK(lk_tokenizer_open(&tk, base, &err), &err);
    CHECK_OK(lk_modelfile(&text, tk, (const int32_t[]){lk_tokenizer_eos(tk), 5}, 2, true, &err), &err);
    static const char start[] =
        "FROM ./model.gguf\nADAPTER ./adapter.gguf\n"
        "TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role \"system\" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n"
        "{{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n"
        "{{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n"
        "{{ end }}{{ end }}<|im_start|>assistant\n\"\"\"\n";
    if (strncmp(text, start, sizeof start - 1)) fail_msg("%s", text);
    char stops[200];
    snprintf(stops, sizeof stops, "PARAMETER stop \"%s\"\nPARAMETER stop \"%s\"\n", lk_tokenizer_piece(tk, lk_tokenizer_eos(tk), NULL),
             lk_tokenizer_piece(tk, 5, NULL));
    assert_string_equal(text + sizeof start - 1, stops);
    free(text);
    lk_tokenizer_close(tk);

    /* a template that is the same whatever is said */
    char from[4200], *json;
    size_t size;
    snprintf(from, sizeof from, "%s/tokenizer.json", base);
    CHECK_OK(lk_file_read(from, 1 << 20, &json, &size, &err), &err);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    check_write_file(path, json, size);
    free(json);
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    /* one that writes something where there is no system message, the day, and an end of text behind the last message */
    static const char jinja[] =
        "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nKind, ' + strftime_now('%Y') + '.<|im_end|>\\n' }}{% endif %}"
        "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}";
    check_write_file(path, jinja, sizeof jinja - 1);
    char config[4200];
    snprintf(config, sizeof config, "%s/tokenizer_config.json", folder);
    static const char ends[] = "{\"eos_token\": \"<|im_end|>\"}";
    check_write_file(config, ends, sizeof ends - 1);
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    CHECK_OK(lk_modelfile(&text, tk, NULL, 0, false, &err), &err);
    static const char led[] =
        "FROM ./model.gguf\n# The chat template writes the day of the conversation; here it stays that of the export.\n"
        "TEMPLATE \"\"\"{{ if not .System }}<|im_start|>system\nKind, 20";
    if (strncmp(text, led, sizeof led - 1)) fail_msg("%s", text);
    assert_non_null(strstr(text, ".<|im_end|>\n{{ end }}{{ range .Messages }}{{ if eq .Role \"system\" }}<|im_start|>system\n{{ .Content "
                                 "}}<|im_end|>\n{{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else"));
    free(text);
    lk_tokenizer_close(tk);
    check_write_file(path, "{{ 'x' }}", 9);
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    CHECK_OK(lk_modelfile(&text, tk, NULL, 0, false, &err), &err);
    assert_string_equal(
        text, "FROM ./model.gguf\n# The chat template (tokenizer.chat_template in model.gguf) cannot be said in Ollama's language. "
              "Ollama has templates of its\n# own for some; where it knows none it sends texts without any marks: then write a "
              "TEMPLATE here.\nPARAMETER stop \"<|im_end|>\"\n");
    free(text);
    lk_tokenizer_close(tk);
    free(base);
    free(folder);
}

/* ---- refusals ---- */

static void test_refuses(void **state)
{
    (void)state;
    lk_error err = {0};
    char *out = check_temporary("export_refused"), path[4200];
    snprintf(path, sizeof path, "%s/m.gguf", out);
    lk_gguf_export_result result;
    char *llama = check_golden("models/llama-tiny"), *qwen = check_golden("models/qwen2-tiny"), *r8 = check_golden("adapters/r8_all");
    CHECK_FAILS(lk_export_gguf(llama, path, &(lk_gguf_export_options){.type = "q5_1"}, &result, &err), LK_ERR_ARGUMENT,
                "a GGUF type is f16, bf16, f32, q8_0, q4_0 or q4_k_m, not 'q5_1'", &err);
    CHECK_FAILS(lk_export_gguf(out, path, &(lk_gguf_export_options){0}, &result, &err), LK_ERR_IO, "config.json", &err);
    CHECK_FAILS(lk_export_gguf_lora(qwen, r8, path, &result, &err), LK_ERR_MISMATCH, "layer", &err);
    static const struct {
        const char *more, *message;
    } cases[] = {
        {", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}", "llama.cpp has no dynamic RoPE scaling"},
        {", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2.0, \"beta_fast\": 8}", "llama.cpp has YaRN with beta_fast 32"},
    };
    char *wide = check_temporary("export_refused_base");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_wide(wide, cases[i].more);
        CHECK_FAILS(lk_export_gguf(wide, path, &(lk_gguf_export_options){0}, &result, &err), LK_ERR_UNSUPPORTED, cases[i].message, &err);
    }
    assert_int_equal(check_count_files(out), 0);

    /* a full disk */
    make_wide(wide, "");
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 1000000;
    setrlimit(RLIMIT_FSIZE, &limit);
    lk_status status = lk_export_gguf(wide, path, &(lk_gguf_export_options){0}, &result, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK_FAILS(status, LK_ERR_IO, "m.gguf", &err);
    assert_int_equal(check_count_files(out), 0);
    free(out);
    free(wide);
    free(llama);
    free(qwen);
    free(r8);
}

/* Options of an adapter that its format has no place for, by name (tests/golden/options). */
static void test_refuses_adapters(void **state)
{
    (void)state;
    lk_error err = {0};
    char *out = check_temporary("export_refused_lora"), path[4200];
    snprintf(path, sizeof path, "%s/a.gguf", out);
    char *base = check_golden("models/llama-tiny");
    static const struct {
        const char *adapter, *message;
    } cases[] = {
        {"dora", "mlp.down_proj: use_dora has no place in a GGUF adapter; merge"},
        {"bias_all", "bias has no place in a GGUF adapter"},
        {"lora_bias", "lora_bias has no place in a GGUF adapter"},
        {"saved", "lm_head: modules_to_save has no place in a GGUF adapter"},
        {"tokens", "model.embed_tokens: trainable_token_indices has no place in a GGUF adapter"},
        {"embedding", "model.embed_tokens: an adapted embedding has no place in a GGUF adapter"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[100];
        snprintf(name, sizeof name, "options/%s", cases[i].adapter);
        char *adapter = check_golden(name);
        lk_gguf_export_result result;
        CHECK_FAILS(lk_export_gguf_lora(base, adapter, path, &result, &err), LK_ERR_UNSUPPORTED, cases[i].message, &err);
        free(adapter);
    }
    assert_int_equal(check_count_files(out), 0);
    free(out);
    free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bytes),      cmocka_unit_test(test_mixed_types),
                                       cmocka_unit_test(test_numbers_stay),    cmocka_unit_test(test_silent_files),
                                       cmocka_unit_test(test_modelfile),       cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_refuses_adapters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
