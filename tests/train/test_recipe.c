/* Recipes: what is accepted, what is refused and with which words; --set, extends, comments, defaults, digest and essence; the demo's
 * recipes; and that the embedded schema holds only keywords that are interpreted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/check.h"
#include "train/canonical.h"
#include "train/plan.h"
#include "train/recipe.h"
#include "train/schema.h"

#define BASE  "\"base\":{\"path\":\"b\"}"
#define DATA  "\"data\":{\"train\":[{\"path\":\"t.jsonl\",\"format\":\"messages\"}]}"
#define OPTIM "\"optim\":{\"lr\":2e-4}"
#define BATCH "\"batch\":{\"steps\":10}"
#define REST  BASE "," DATA "," OPTIM
#define SMALL "{" REST "," BATCH "}"

static lk_status parse(lk_recipe **r, const char *text, const char *const *sets, int n, lk_error *err)
{
    return lk_recipe_parse(r, text, strlen(text), "r.json", "/data", sets, n, err);
}

static void test_defaults(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_recipe *r;
    CHECK_OK(parse(&r, "// a comment\n" SMALL " /* and one */", NULL, 0, &err), &err);
    assert_string_equal(r->base_path, "/data/b");
    assert_string_equal(r->train[0].path, "/data/t.jsonl");
    assert_string_equal(r->name, "r");
    assert_int_equal(r->quant, LK_QUANT_NF4);
    assert_int_equal(r->compute, LK_BF16);
    assert_int_equal(r->adapter.rank, 16);
    assert_true(r->adapter.alpha == 32.0 && r->adapter.dropout == 0.0 && !r->adapter.use_rslora);
    for (int m = 0; m < LK_N_MODULES; m++) assert_true(r->adapter.targets[m]);
    assert_true(r->beta1 == 0.9 && r->beta2 == 0.999 && r->eps == 1e-8 && r->weight_decay == 0.0 && r->clip == 1.0 && r->lr == 2e-4);
    assert_int_equal(r->schedule, LK_SCHEDULE_COSINE);
    assert_int_equal(r->max_length, 1024);
    assert_string_equal(r->loss_on, "assistant");
    assert_null(r->chat_format);
    assert_int_equal(r->rows * r->accumulate, 1);
    assert_int_equal(r->steps, 10);
    assert_int_equal(r->epochs, 0);
    assert_int_equal(r->checkpointing, LK_CHECKPOINTING_AUTO);
    assert_false(r->offload);
    assert_int_equal(r->optim, LK_ADAMW_F32);
    assert_int_equal(r->budget, 0);
    assert_int_equal(r->checkpoint_every, 100);
    assert_int_equal(r->checkpoint_keep, 2);
    assert_int_equal(r->seed, 1);
    assert_int_equal(r->n_eval, 0);
    lk_recipe_free(r);
}

static void test_everything_is_read(void **state)
{
    (void)state;
    static const char text[] =
        "{\"base\":{\"path\":\"/m\",\"quant\":\"none\",\"dtype\":\"f32\"},"
        "\"adapter\":{\"r\":4,\"alpha\":8,\"dropout\":0.05,\"targets\":[\"q_proj\",\"v_proj\"],\"rslora\":true,\"rank_pattern\":{\"layers."
        "0.*\":2},"
        "\"alpha_pattern\":{\"v_proj\":3}},"
        "\"data\":{\"train\":[{\"path\":\"a\",\"format\":{\"prompt\":\"q\",\"completion\":\"a\"}},{\"path\":\"b\",\"format\":\"text\"}],"
        "\"eval\":[{\"path\":\"c\",\"format\":\"sharegpt\"}],\"max_length\":64,\"loss_on\":\"all\",\"chat_format\":\"chatml\"},"
        "\"objective\":\"sft\",\"optim\":{\"name\":\"adamw8bit\",\"lr\":1e-3,\"betas\":[0.8,0.95],\"eps\":1e-6,\"weight_decay\":0.1,"
        "\"clip\":0."
        "3},"
        "\"schedule\":{\"name\":\"linear\",\"warmup_steps\":7},\"batch\":{\"rows\":2,\"accumulate\":3,\"epochs\":4},"
        "\"memory\":{\"checkpointing\":3,\"offload\":true,\"budget\":\"2 "
        "GiB\"},\"eval\":{\"every\":5},\"checkpoint\":{\"every\":6,\"keep\":1},\"log\":{\"every\":2},\"seed\":9}";
    lk_error err = {0};
    lk_recipe *r;
    CHECK_OK(parse(&r, text, NULL, 0, &err), &err);
    assert_string_equal(r->base_path, "/m");
    assert_int_equal(r->quant, LK_QUANT_NONE);
    assert_int_equal(r->compute, LK_F32);
    assert_true(r->adapter.targets[LK_Q] && r->adapter.targets[LK_V] && !r->adapter.targets[LK_K] && !r->adapter.targets[LK_DOWN]);
    assert_int_equal(r->adapter.n_patterns, 2);
    assert_string_equal(r->patterns[0].pattern, "layers.0.*");
    assert_int_equal(r->patterns[0].rank, 2);
    assert_true(r->patterns[1].alpha == 3.0 && r->patterns[1].rank == 0);
    assert_true(r->adapter.use_rslora && r->adapter.dropout == 0.05);
    assert_string_equal(r->train[0].prompt_field, "q");
    assert_string_equal(r->train[0].completion_field, "a");
    assert_int_equal(r->train[1].format, LK_DATA_TEXT);
    assert_int_equal(r->eval[0].format, LK_DATA_SHAREGPT);
    assert_string_equal(r->chat_format, "chatml");
    assert_true(r->beta1 == 0.8 && r->beta2 == 0.95 && r->eps == 1e-6 && r->weight_decay == 0.1 && r->clip == 0.3);
    assert_int_equal(r->schedule, LK_SCHEDULE_LINEAR);
    assert_int_equal(r->warmup_steps, 7);
    assert_int_equal(r->epochs, 4);
    assert_int_equal(r->checkpointing, 3);
    assert_true(r->offload);
    assert_int_equal(r->optim, LK_ADAMW_8BIT);
    assert_int_equal(r->budget, (size_t)2 << 30);
    assert_int_equal(r->eval_every, 5);
    assert_int_equal(r->checkpoint_every, 6);
    assert_int_equal(r->log_every, 2);
    assert_int_equal(r->seed, 9);
    lk_recipe_free(r);
}

/* A wrong recipe and words its message must hold. */
static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "not valid JSON"},
        {"[]", "a recipe is a JSON object"},
        {"{\"a\":1,\"a\":2}", "appears twice"},
        {"{}", "\"base\" is missing"},
        {"{" REST "}", "\"batch\" is missing"},
        {"{" REST "," BATCH ",\"bathc\":{}}", "did you mean \"batch\"?"},
        {"{" REST "," BATCH ",\"lr\":1}", "did you mean \"optim.lr\"?"},
        {"{" REST "," BATCH ",\"frobnicate\":1}", "unknown key \"frobnicate\" Known here:"},
        {"{" REST "," BATCH ",\"adapter\":{\"rnak_pattern\":{}}}",
         "adapter: unknown key \"rnak_pattern\"; did you mean \"adapter.rank_pattern\"?"},
        {"{" REST "," BATCH ",\"adapter\":{\"lora_alpha\":8}}", "adapter: unknown key \"lora_alpha\""},
        {"{" REST "," BATCH ",\"schedule\":{\"warmup_ration\":0.1}}", "did you mean \"schedule.warmup_ratio\"?"},
        {"{" REST "," BATCH ",\"adapter\":{\"r\":0}}", "adapter.r: must be at least 1, not 0"},
        {"{" REST "," BATCH ",\"adapter\":{\"r\":1.5}}", "adapter.r: must be a whole number, not a fraction"},
        {"{" REST "," BATCH ",\"adapter\":{\"r\":\"8\"}}", "adapter.r: must be a whole number, not a string"},
        {"{" REST "," BATCH ",\"adapter\":{\"dropout\":1}}", "adapter.dropout: must be below 1"},
        {"{" REST "," BATCH ",\"adapter\":{\"targets\":7}}", "adapter.targets: must be string or array"},
        {"{" REST "," BATCH ",\"adapter\":{\"targets\":[\"q\"]}}", "adapter.targets: unknown target 'q'; known are q_proj"},
        {"{" REST "," BATCH ",\"adapter\":{\"targets\":[\"mlp.q\"]}}", "adapter.targets: unknown target 'q'; known are q_proj"},
        {"{" REST "," BATCH ",\"adapter\":{\"targets\":\".*q_proj\",\"layers_to_transform\":[0]}}", "leave layers_to_transform out"},
        {"{" REST "," BATCH ",\"adapter\":{\"targets\":[]}}", "at least 1 wanted"},
        {"{" REST "," BATCH ",\"adapter\":{\"rank_pattern\":{\"q\":0}}}", "adapter.rank_pattern.q: must be at least 1"},
        {"{" REST "," BATCH ",\"adapter\":{\"use_dora\":true}}", "adapter: unknown key \"use_dora\""},
        {"{" REST "," BATCH ",\"adapter\":{\"bias\":\"some\"}}", "adapter.bias: must be one of \"none\", \"all\", \"lora_only\""},
        {"{" REST "," BATCH ",\"adapter\":{\"modules_to_save\":[\"norm\"]}}",
         "adapter.modules_to_save[0]: must be one of \"embed_tokens\", \"lm_head\""},
        {"{" REST "," BATCH ",\"adapter\":{\"trainable_token_indices\":[-1]}}", "adapter.trainable_token_indices[0]: must be at least 0"},
        {"{" REST "," BATCH ",\"adapter\":{\"trainable_token_indices\":{\"lm_head\":[1]}}}", "unknown key \"lm_head\""},
        {"{" REST "," BATCH ",\"adapter\":{\"init\":\"olora\"}}", "adapter.init: must be one of \"default\", \"gaussian\", \"pissa\""},
        {"{" REST "," BATCH ",\"adapter\":{\"layers_to_transform\":[-1]}}", "adapter.layers_to_transform[0]: must be at least 0"},
        {"{" REST "," BATCH ",\"objective\":\"dpo\"}", "objective: must be \"sft\", the only value known"},
        {"{" REST ",\"batch\":{}}", "batch: give exactly one of \"epochs\" or \"steps\""},
        {"{" REST ",\"batch\":{\"epochs\":1,\"steps\":2}}", "give exactly one of"},
        {"{" BASE "," OPTIM
         ",\"data\":{\"train\":[{\"path\":\"a\",\"format\":\"text\"}],\"max_length\":65536},\"batch\":{\"epochs\":1,\"rows\":65536}}",
         "tokens in one micro-batch"},
        {"{" REST "," BATCH ",\"memory\":{\"checkpointing\":\"some\"}}",
         "memory.checkpointing: must be one of \"auto\", \"none\", \"full\""},
        {"{" REST "," BATCH ",\"memory\":{\"checkpointing\":0}}", "memory.checkpointing: must be at least 1"},
        {"{" REST "," BATCH ",\"memory\":{\"checkpointing\":true}}", "memory.checkpointing: must be"},
        {"{" REST "," BATCH ",\"memory\":{\"budget\":\"lots\"}}", "is no size"},
        {"{" REST "," BATCH ",\"schedule\":{\"warmup_ratio\":0.1,\"warmup_steps\":3}}", "not both"},
        {"{" REST "," BATCH ",\"seed\":-1}", "seed: must be at least 0"},
        {"{" REST "," BATCH ",\"extends\":\"nowhere.json\"}", "nowhere.json"},
        {"{" BASE "," OPTIM "," BATCH ",\"data\":{\"train\":[]}}", "at least one source wanted"},
        {"{" BASE "," OPTIM "," BATCH ",\"data\":{\"train\":[{\"path\":\"a\"}]}}", "data.train[0]: \"format\" is missing"},
        {"{" BASE "," OPTIM "," BATCH ",\"data\":{\"train\":[{\"path\":\"a\",\"format\":\"jsonl\"}]}}",
         "data.train[0].format: must be one of \"messages\""},
        {"{" BASE "," OPTIM "," BATCH ",\"data\":{\"train\":[{\"path\":\"a\",\"format\":{\"prompt\":\"q\"}}]}}",
         "data.train[0].format: \"completion\" is missing"},
        {"{" BASE "," DATA "," BATCH ",\"optim\":{\"lr\":0}}", "optim.lr: must be above 0"},
        {"{" BASE "," DATA "," BATCH ",\"optim\":{\"lr\":1,\"betas\":[0.9]}}", "optim.betas: has 1 entries, at least 2"},
        {"{" BASE "," DATA "," BATCH ",\"optim\":{\"lr\":1,\"betas\":[0.9,1]}}", "optim.betas[1]: must be below 1"},
        {"{" BASE "," DATA "," BATCH ",\"optim\":{\"lr\":1,\"name\":\"sgd\"}}", "optim.name: must be one of \"adamw\", \"adamw8bit\""},
        {"{" DATA "," OPTIM "," BATCH ",\"base\":\"b\"}", "base: must be object, not a string"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_recipe *r = NULL;
        lk_status status = parse(&r, rows[i].text, NULL, 0, &err);
        if (status != LK_ERR_ARGUMENT || err.code != status || !strstr(err.message, rows[i].says) || r)
            fail_msg("row %zu: %s gave %s '%s', wanted '%s'", i, rows[i].text, lk_status_name(status), err.message, rows[i].says);
    }
}

static void test_set(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_recipe *r;
    const char *sets[] = {"optim.lr=1e-3",  "data.train[0].path=u.jsonl", "adapter.targets=[\"q_proj\"]", "base.quant=none",
                          "batch.epochs=2", "memory.budget=1GiB"};
    CHECK_OK(parse(&r, SMALL, sets, 6, &err), &err);
    assert_true(r->lr == 1e-3);
    assert_string_equal(r->train[0].path, "/data/u.jsonl");
    assert_false(r->adapter.targets[LK_K]);
    assert_int_equal(r->quant, LK_QUANT_NONE);
    assert_int_equal(r->epochs, 2); /* steps went away */
    assert_int_equal(r->steps, 0);
    assert_int_equal(r->budget, (size_t)1 << 30);
    lk_recipe_free(r);
    static const char *const wrong[][2] = {{"optim.lr", "no key=value"},
                                           {"=3", "no key=value"},
                                           {".a=1", "malformed"},
                                           {"a..b=1", "malformed"},
                                           {"a.=1", "malformed"},
                                           {"data.train[x].path=1", "malformed"},
                                           {"data.train[7].path=1", "no such entry"},
                                           {"optim.lr.x=1", "not an object"},
                                           {"optim.lrr=1", "did you mean \"optim.lr\""},
                                           {"extends=x", "only stand in a file"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_FAILS(parse(&r, SMALL, &wrong[i][0], 1, &err), LK_ERR_ARGUMENT, wrong[i][1], &err);
}

static void test_extends(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("recipe"), path[4096], sub[4096];
    snprintf(sub, sizeof sub, "%s/sub", folder);
    CHECK_OK(lk_folder_create(sub, &err), &err);
    snprintf(path, sizeof path, "%s/parent.json", folder);
    check_write_file(path, SMALL, strlen(SMALL));
    snprintf(path, sizeof path, "%s/child.json", sub);
    static const char child[] = "{\"extends\":\"../parent.json\",\"optim\":{\"clip\":0.5},\"batch\":{\"epochs\":3},\"seed\":5}";
    check_write_file(path, child, strlen(child));
    lk_recipe *r;
    CHECK_OK(lk_recipe_load(&r, path, NULL, 0, &err), &err);
    assert_true(r->clip == 0.5 && r->lr == 2e-4);
    assert_int_equal(r->epochs, 3);
    assert_int_equal(r->steps, 0);
    assert_int_equal(r->seed, 5);
    assert_null(strstr(r->base_path, "/sub")); /* relative to the parent's folder */
    assert_null(lk_json_get(r->resolved, "extends"));
    lk_recipe_free(r);
    static const char self[] = "{\"extends\":\"child.json\"}";
    check_write_file(path, self, strlen(self));
    CHECK_FAILS(lk_recipe_load(&r, path, NULL, 0, &err), LK_ERR_ARGUMENT, "deep", &err);
    CHECK_FAILS(lk_recipe_load(&r, "/nowhere/x.json", NULL, 0, &err), LK_ERR_ARGUMENT, "/nowhere/x.json", &err);
    free(folder);
}

static void test_digest_and_essence(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_recipe *a, *b;
    char what[600];
    CHECK_OK(parse(&a, SMALL, NULL, 0, &err), &err);
    CHECK_OK(parse(&b, "{" BATCH "," OPTIM "," DATA "," BASE ",\"seed\":1}", NULL, 0, &err), &err);
    assert_string_equal(a->digest, b->digest); /* order and defaults do not matter */
    lk_recipe_free(b);
    const char *harmless[] = {"checkpoint.every=7", "memory.checkpointing=full", "base.path=/elsewhere", "log.every=1", "eval.every=3"};
    CHECK_OK(parse(&b, SMALL, harmless, 5, &err), &err);
    assert_string_not_equal(a->digest, b->digest);
    assert_string_equal(a->essence, b->essence);
    assert_false(lk_recipe_difference(a->essence, b->essence, what, sizeof what));
    lk_recipe_free(b);
    const char *harmful[] = {"optim.lr=1e-3", "batch.rows=2"};
    CHECK_OK(parse(&b, SMALL, harmful, 2, &err), &err);
    assert_true(lk_recipe_difference(a->essence, b->essence, what, sizeof what));
    assert_non_null(strstr(what, "optim.lr is 0.0002"));
    assert_non_null(strstr(what, "batch.rows is 1 here and 2 there"));
    lk_recipe_free(a);
    lk_recipe_free(b);
}

static void test_sizes(void **state)
{
    (void)state;
    size_t n;
    assert_true(lk_parse_bytes("24GiB", &n) && n == (size_t)24 << 30);
    assert_true(lk_parse_bytes("1.5 MiB", &n) && n == 3 << 19);
    assert_true(lk_parse_bytes("500 MB", &n) && n == 500000000);
    assert_true(lk_parse_bytes("4096", &n) && n == 4096);
    assert_false(lk_parse_bytes("", &n) || lk_parse_bytes("GiB", &n) || lk_parse_bytes("-1", &n) || lk_parse_bytes("1 Gib", &n) ||
                 lk_parse_bytes("nan", &n) || lk_parse_bytes("1e40", &n));
}

static void test_unknown_keyword_in_schema(void **state)
{
    (void)state;
    lk_error err = {0};
    cJSON *schema, *v;
    CHECK_OK(lk_json_parse(&schema, "{\"pattern\":\"x\"}", 15, "s", &err), &err);
    CHECK_OK(lk_json_parse(&v, "\"x\"", 3, "v", &err), &err);
    CHECK_FAILS(lk_schema_check(schema, v, "v", &err), LK_ERR_INTERNAL, "pattern", &err);
    cJSON_Delete(schema);
    cJSON_Delete(v);
}

static void test_demo_recipes(void **state)
{
    (void)state;
    static const char *const names[] = {"harbor", "harbor_v2", "orchard"};
    for (int i = 0; i < 3; i++) {
        lk_error err = {0};
        lk_recipe *r;
        char path[4096];
        snprintf(path, sizeof path, LK_SOURCE_DIR "/recipes/demo/%s.json", names[i]);
        CHECK_OK(lk_recipe_load(&r, path, NULL, 0, &err), &err);
        assert_true(lk_path_exists(r->train[0].path) && lk_path_exists(r->eval[0].path) && lk_path_is_folder(r->base_path));
        assert_string_equal(r->name, names[i]);
        lk_recipe_free(r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults),    cmocka_unit_test(test_everything_is_read),
                                       cmocka_unit_test(test_refusals),    cmocka_unit_test(test_set),
                                       cmocka_unit_test(test_extends),     cmocka_unit_test(test_digest_and_essence),
                                       cmocka_unit_test(test_sizes),       cmocka_unit_test(test_unknown_keyword_in_schema),
                                       cmocka_unit_test(test_demo_recipes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
