/* label: slow */
/* The printed plan of a run against what the process really took: peak resident memory within 5%. A base of 25 million random parameters,
 * so that the program itself (some 20 MiB) does not drown what is planned. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "data/safetensors.h"
#include "tests/check.h"
#include "tests/program.h"

enum { HIDDEN = 512, FFN = 1408, LAYERS = 8, VOCAB = 2048, KV = 256 };

static void tensor(lk_st_writer *w, int pass, const char *name, int64_t rows, int64_t cols)
{
    lk_error err = {0};
    int64_t shape[2] = {rows, cols}, n = rows * (cols ? cols : 1);
    if (pass == 0) {
        CHECK_OK(lk_st_writer_declare(w, name, LK_BF16, cols ? 2 : 1, shape, &err), &err);
        return;
    }
    check_random r = {(uint64_t)(rows * 31 + cols + (int64_t)strlen(name))};
    uint16_t *values = malloc((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) values[i] = lk_f32_to_bf16(cols ? 0.04f * (float)(check_random_uniform(&r) - 0.5) : 1.0f);
    CHECK_OK(lk_st_writer_write(w, values, (size_t)n * 2, &err), &err);
    free(values);
}

static void write_base(const char *folder)
{
    static const struct {
        const char *name;
        int64_t rows, cols;
    } parts[] = {{"input_layernorm", HIDDEN, 0},       {"post_attention_layernorm", HIDDEN, 0},
                 {"self_attn.q_proj", HIDDEN, HIDDEN}, {"self_attn.k_proj", KV, HIDDEN},
                 {"self_attn.v_proj", KV, HIDDEN},     {"self_attn.o_proj", HIDDEN, HIDDEN},
                 {"mlp.gate_proj", FFN, HIDDEN},       {"mlp.up_proj", FFN, HIDDEN},
                 {"mlp.down_proj", HIDDEN, FFN}};
    lk_error err = {0};
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    for (int pass = 0; pass < 2; pass++) {
        tensor(w, pass, "model.embed_tokens.weight", VOCAB, HIDDEN);
        for (int l = 0; l < LAYERS; l++) {
            for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
                char name[200];
                snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, parts[i].name);
                tensor(w, pass, name, parts[i].rows, parts[i].cols);
            }
        }
        tensor(w, pass, "model.norm.weight", HIDDEN, 0);
    }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    static const char config[] =
        "{\"model_type\":\"llama\",\"hidden_size\":512,\"intermediate_size\":1408,\"num_hidden_layers\":8,\"num_attention_heads\":8,"
        "\"num_key_value_heads\":4,\"vocab_size\":2048,\"max_position_embeddings\":1024,\"tie_word_embeddings\":true}";
    char path[4200];
    snprintf(path, sizeof path, "%s/config.json", folder);
    check_write_file(path, config, sizeof config - 1);
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char *text;
        size_t size;
        snprintf(path, sizeof path, LK_SOURCE_DIR "/recipes/demo/base/%s", files[i]);
        CHECK_OK(lk_file_read(path, 16 << 20, &text, &size, &err), &err);
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        check_write_file(path, text, size);
        free(text);
    }
}

/* Peak resident bytes of one run. */
static double run_and_measure(const char *recipe, const char *out, const char *length)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        execl(LK_BINARY_DIR "/lorikeet", "lorikeet", "train", recipe, "--out", out, "--fresh", "--quiet", "--log-level", "error", "--set",
              length, (char *)NULL);
        _exit(127);
    }
    int status;
    struct rusage usage;
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return (double)usage.ru_maxrss * 1024.0;
}

static void test_plan_holds(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("memory_base"), *out = check_temporary("memory_run");
    write_base(folder);
    char recipe[4200], text[2000];
    snprintf(recipe, sizeof recipe, "%s/recipe.json", folder);
    snprintf(text, sizeof text,
             "{\"base\":{\"path\":\"%s\"},\"adapter\":{\"r\":16,\"alpha\":32,\"targets\":\"all-linear\"},"
             "\"data\":{\"train\":[{\"path\":\"%s/recipes/demo/harbor/train.jsonl\",\"format\":\"messages\"}],\"eval\":[{\"path\":\"%s/"
             "recipes/demo/harbor/eval.jsonl\","
             "\"format\":\"messages\"}],\"max_length\":128},\"optim\":{\"lr\":0.001},\"schedule\":{\"name\":\"constant\"},\"batch\":{"
             "\"rows\":2,\"accumulate\":1,\"steps\":2},\"checkpoint\":{\"every\":1,\"keep\":1},\"seed\":1}",
             folder, LK_SOURCE_DIR, LK_SOURCE_DIR);
    check_write_file(recipe, text, strlen(text));
    static const char *const lengths[] = {"data.max_length=64", "data.max_length=1024"}; /* loading is the peak; training is the peak */
    for (int i = 0; i < 2; i++) {
        check_run plan = check_program("plan %s --json --set %s", recipe, lengths[i]);
        if (plan.code) fail_msg("%s", plan.err);
        cJSON *json;
        CHECK_OK(lk_json_parse(&json, plan.out, strlen(plan.out), "plan", &err), &err);
        double planned = 0, took = run_and_measure(recipe, out, lengths[i]);
        CHECK_OK(lk_json_number(json, "peak_bytes", 1, 1e15, &planned, "plan", &err), &err);
        printf("%s: planned %.1f MiB, took %.1f MiB\n", lengths[i], planned / 1048576, took / 1048576);
        if (!(fabs(took - planned) <= 0.05 * planned))
            fail_msg("%s: planned %.1f MiB, took %.1f MiB", lengths[i], planned / 1048576, took / 1048576);
        cJSON_Delete(json);
        check_run_free(&plan);
    }
    free(folder);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan_holds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
