/* data/peft: PEFT's own folders read as PEFT reads them, what we write reads back with the same rank and scale for every module, and
 * folders that would compute something else are refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/peft.h"
#include "tests/check.h"

static lk_peft *open_golden(const char *name)
{
    lk_error err = {0};
    lk_peft *p;
    char relative[100];
    snprintf(relative, sizeof relative, "adapters/%s", name);
    char *path = check_golden(relative);
    CHECK_OK(lk_peft_open(&p, path, NULL, &err), &err);
    free(path);
    return p;
}

static const lk_peft_module *module_named(const lk_peft *p, const char *name)
{
    for (int64_t i = 0; i < lk_peft_count(p); i++)
        if (!strcmp(lk_peft_at(p, i)->name, name)) return lk_peft_at(p, i);
    fail_msg("no module %s", name);
    return NULL;
}

static void test_golden(void **state)
{
    (void)state;
    lk_peft *p = open_golden("r8_all");
    for (int64_t i = 0; i < lk_peft_count(p); i++) {
        const lk_peft_module *m = lk_peft_at(p, i);
        assert_int_equal(m->rank, 8);
        assert_true(m->scale == 2.0);
        assert_int_equal(m->a->shape[0], 8);
        if (i) assert_true(strcmp(lk_peft_at(p, i - 1)->name, m->name) < 0);
    }
    assert_string_equal(lk_peft_base(p), "models/llama-tiny");
    assert_int_equal(strlen(lk_peft_digest(p)), 64);
    assert_null(lk_peft_metadata(p, "lorikeet.base_digest"));
    lk_peft_close(p);

    /* Patterns: r 6, alpha 12; see the config beside the tensors. Ranks are checked against the shapes by opening. */
    static const struct {
        const char *name;
        int rank;
        double alpha;
    } rows[] = {
        {"model.layers.0.self_attn.q_proj", 3, 5}, {"model.layers.1.self_attn.q_proj", 6, 12}, {"model.layers.0.self_attn.v_proj", 6, 9},
        {"model.layers.1.self_attn.v_proj", 1, 9}, {"model.layers.0.mlp.down_proj", 16, 12},
    };
    p = open_golden("mixed");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const lk_peft_module *m = module_named(p, rows[i].name);
        assert_int_equal(m->rank, rows[i].rank);
        assert_true(m->alpha == rows[i].alpha && m->scale == rows[i].alpha / rows[i].rank);
    }
    lk_peft_close(p);

    p = open_golden("rslora");
    const lk_peft_module *m = lk_peft_at(p, 0);
    assert_true(m->scale == m->alpha / sqrt(m->rank));
    lk_peft_close(p);
}

/* ---- writing ---- */

typedef struct row {
    const char *name;
    int rank;
    double alpha;
    int in, out;
} row;

static void write_rows(const char *folder, const row *rows, int n, const lk_peft_write_options *options)
{
    lk_error err = {0};
    lk_peft_write_module modules[16];
    float *values[32];
    check_random r = {7};
    for (int i = 0; i < n; i++) {
        const row *x = &rows[i];
        values[2 * i] = malloc((size_t)(x->rank * x->in) * sizeof(float));
        values[2 * i + 1] = malloc((size_t)(x->rank * x->out) * sizeof(float));
        check_random_fill(&r, values[2 * i], x->rank * x->in, 1);
        check_random_fill(&r, values[2 * i + 1], x->rank * x->out, 1);
        modules[i] = (lk_peft_write_module){x->name, x->rank, x->alpha, x->in, x->out, values[2 * i], values[2 * i + 1]};
    }
    CHECK_OK(lk_peft_write(folder, modules, n, options, &err), &err);
    lk_peft *p;
    CHECK_OK(lk_peft_open(&p, folder, NULL, &err), &err);
    assert_int_equal(lk_peft_count(p), n);
    for (int i = 0; i < n; i++) {
        const lk_peft_module *m = module_named(p, rows[i].name);
        assert_int_equal(m->rank, rows[i].rank);
        assert_true(m->alpha == rows[i].alpha);
        assert_true(m->scale == (options->use_rslora ? rows[i].alpha / sqrt(rows[i].rank) : rows[i].alpha / rows[i].rank));
        assert_int_equal(m->a->shape[1], rows[i].in);
        assert_int_equal(m->b->shape[0], rows[i].out);
        check_same_bits(m->a->name, m->a->data, values[2 * i], (size_t)m->a->n_bytes);
        check_same_bits(m->b->name, m->b->data, values[2 * i + 1], (size_t)m->b->n_bytes);
    }
    lk_peft_close(p);
    for (int i = 0; i < 2 * n; i++) free(values[i]);
}

static const row uniform[] = {{"model.layers.0.self_attn.q_proj", 4, 8, 6, 10},
                              {"model.layers.0.mlp.down_proj", 4, 8, 9, 6},
                              {"model.layers.1.self_attn.q_proj", 4, 8, 6, 10},
                              {"model.layers.1.mlp.down_proj", 4, 8, 9, 6}};

static char *config_of(const char *folder)
{
    char path[4200], *text;
    size_t size;
    assert_int_equal(lk_path_join(path, sizeof path, folder, "adapter_config.json", NULL), LK_OK);
    assert_int_equal(lk_file_read(path, 1 << 20, &text, &size, NULL), LK_OK);
    return text;
}

static void test_write(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("peft_write");
    const lk_peft_write_options plain = {.base = "llama", .base_digest = "abc", .quantization = "nf4", .dropout = 0.05};
    write_rows(folder, uniform, 4, &plain);
    char *text = config_of(folder);
    assert_non_null(strstr(text, "\"q_proj\""));
    assert_null(strstr(text, "layers"));
    assert_non_null(strstr(text, "0.05,"));
    free(text);
    lk_peft *p;
    CHECK_OK(lk_peft_open(&p, folder, NULL, &err), &err);
    assert_string_equal(lk_peft_metadata(p, "lorikeet.base_digest"), "abc");
    assert_string_equal(lk_peft_metadata(p, "lorikeet.quantization"), "nf4");
    assert_string_equal(lk_peft_base(p), "llama");
    lk_peft_close(p);

    /* leaves that differ from each other, modules of a leaf that differ, layers left out, a path that ends another */
    const row leaves[] = {{"model.layers.0.self_attn.q_proj", 4, 8, 6, 10},
                          {"model.layers.0.mlp.down_proj", 2, 7.5, 9, 6},
                          {"model.layers.1.self_attn.q_proj", 4, 8, 6, 10},
                          {"model.layers.1.mlp.down_proj", 2, 7.5, 9, 6},
                          {"lm_head", 1, 3, 6, 30}};
    write_rows(folder, leaves, 5, &plain);
    const row mixed[] = {{"model.layers.0.self_attn.q_proj", 4, 8, 6, 10},
                         {"model.layers.1.self_attn.q_proj", 3, 8, 6, 10},
                         {"model.layers.10.self_attn.q_proj", 5, 9, 6, 10},
                         {"layers.1.self_attn.q_proj", 4, 8, 6, 10}};
    write_rows(folder, mixed, 4, &(lk_peft_write_options){.use_rslora = true});
    text = config_of(folder);
    assert_non_null(strstr(text, "\"model.layers.10.self_attn.q_proj\"")); /* targets are whole paths now */
    free(text);
    write_rows(folder, mixed, 1, &plain);
    free(folder);
}

/* PEFT's folders, written again: the same digest, so PEFT's own result (tests/golden compares it) is what our files stand for too. */
static void test_rewrite(void **state)
{
    (void)state;
    static const char *const names[] = {"mixed", "rslora", "r8_all_qwen3"};
    for (int k = 0; k < 3; k++) {
        lk_error err = {0};
        lk_peft *p = open_golden(names[k]), *q;
        int64_t n = lk_peft_count(p);
        lk_peft_write_module *modules = calloc((size_t)n, sizeof *modules);
        for (int64_t i = 0; i < n; i++) {
            const lk_peft_module *m = lk_peft_at(p, i);
            float *a = malloc((size_t)m->a->n_elements * 4), *b = malloc((size_t)m->b->n_elements * 4);
            CHECK_OK(lk_st_read_f32(m->a, 0, m->a->n_elements, a, &err), &err);
            CHECK_OK(lk_st_read_f32(m->b, 0, m->b->n_elements, b, &err), &err);
            modules[i] = (lk_peft_write_module){m->name, m->rank, m->alpha, m->a->shape[1], m->b->shape[0], a, b};
        }
        char *folder = check_temporary(names[k]);
        const lk_peft_write_options options = {.base = lk_peft_base(p), .use_rslora = k == 1};
        CHECK_OK(lk_peft_write(folder, modules, n, &options, &err), &err);
        CHECK_OK(lk_peft_open(&q, folder, NULL, &err), &err);
        assert_string_equal(lk_peft_digest(p), lk_peft_digest(q));
        for (int64_t i = 0; i < n; i++) {
            free((void *)(uintptr_t)modules[i].a);
            free((void *)(uintptr_t)modules[i].b);
        }
        free(modules);
        free(folder);
        lk_peft_close(p);
        lk_peft_close(q);
    }
}

static void test_write_refused(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("peft_bad");
    float a[2] = {1, 2}, b[2] = {1, NAN};
    lk_peft_write_module m = {"model.layers.0.q", 1, 1, 2, 2, a, b};
    const lk_peft_write_options options = {0};
    CHECK_FAILS(lk_peft_write(folder, &m, 1, &options, &err), LK_ERR_ARGUMENT, "NaN", &err);
    CHECK_FAILS(lk_peft_write(folder, &m, 0, &options, &err), LK_ERR_ARGUMENT, "at least one", &err);
    m.b = a;
    m.rank = 0;
    CHECK_FAILS(lk_peft_write(folder, &m, 1, &options, &err), LK_ERR_ARGUMENT, "rank 0", &err);
    m.rank = 1;
    m.name = "a(b";
    CHECK_FAILS(lk_peft_write(folder, &m, 1, &options, &err), LK_ERR_ARGUMENT, "path", &err);
    lk_peft *p;
    CHECK_FAILS(lk_peft_open(&p, folder, NULL, &err), LK_ERR_NOT_FOUND, "adapter_config.json", &err);
    free(folder);
}

/* ---- hostile configs: the tensors of `uniform`, another config ---- */

static lk_status open_with(const char *folder, const char *config, lk_error *err)
{
    char path[4200];
    lk_peft *p;
    assert_int_equal(lk_path_join(path, sizeof path, folder, "adapter_config.json", NULL), LK_OK);
    check_write_file(path, config, strlen(config));
    lk_status status = lk_peft_open(&p, folder, NULL, err);
    if (!status)
        lk_peft_close(p);
    else
        assert_null(p);
    return status;
}

static void test_configs(void **state)
{
    (void)state;
    static const struct {
        const char *config, *text;
        lk_status status;
    } rows[] = {
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\",\"down_proj\"]}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":\"all-linear\",\"use_dora\":false,\"new_thing\":null,\"x\":{},\"y\":[]}", NULL,
         LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":\".*\\\\.(q|down)_proj\",\"init_lora_weights\":\"gaussian\"}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":9,\"rank_pattern\":{\".*_proj\":4,\"q_proj\":5}}", NULL, LK_OK}, /* the first match counts */
        {"[]", "object", LK_ERR_FORMAT},
        {"{\"r\":4}", "peft_type", LK_ERR_FORMAT},
        {"{\"peft_type\":\"IA3\"}", "IA3", LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\"}", "rank 8", LK_ERR_MISMATCH},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "r must", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":\"8\"}", "lora_alpha", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"use_dora\":true}",
         "use_dora is true, but model.layers.0.mlp.down_proj has no lora_magnitude_vector", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_bias\":true}", "lora_bias is true, but model.layers.0.mlp.down_proj has no lora_B.bias",
         LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"bias\":\"all\"}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"bias\":\"some\"}", "bias is \"some\"", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"fan_in_fan_out\":true}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"modules_to_save\":[\"lm_head\"]}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"modules_to_save\":[\"q_proj\"]}", "which modules_to_save replaces", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"modules_to_save\":\"lm_head\"}", "must be a list", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"trainable_token_indices\":[1.5]}", "token numbers", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_parameters\":[\"x\"],\"use_dora\":true}", "use_dora together with target_parameters",
         LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"alora_invocation_tokens\":[1]}", "alora_invocation_tokens", LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"some_future_field\":3}", "some_future_field", LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"init_lora_weights\":\"pissa_niter_4\"}", "path_initial_model_for_weight_conversion",
         LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"layer_replication\":[[0,2]]}", "layer_replication is set: a base with repeated layers",
         LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"loftq_config\":{\"loftq_bits\":4}}", "loftq_config is set: LoftQ", LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"use_qalora\":true}", "use_qalora is set", LK_ERR_UNSUPPORTED},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"exclude_modules\":[\"down_proj\"]}", "down_proj, which exclude_modules leaves out",
         LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"exclude_modules\":\".*q_proj\"}", "q_proj, which exclude_modules leaves out", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"exclude_modules\":[\"k_proj\"]}", NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\",\"down_proj\"],\"layers_to_transform\":[1]}",
         "layers.0.mlp.down_proj, which layers_to_transform", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\",\"down_proj\"],\"layers_to_transform\":[0,1],\"layers_pattern\":"
         "\"layers\"}",
         NULL, LK_OK},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\",\"down_proj\"],\"layers_to_transform\":[0,1],\"layers_pattern\":["
         "\"h\"]}",
         "layers_to_transform", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"layers_to_transform\":\"all\"}", "a layer number or a list", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\"]}", "down_proj, which target_modules", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"proj\",\"_proj\"]}", "target_modules", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":\"q_proj\"}", "target_modules", LK_ERR_FORMAT}, /* full match, as in PEFT */
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[3]}", "names", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":\"(\"}", "regular expression", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":\"(([a-z_.0-9]+)+)+[XY]\"}", "steps", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"q_proj\":5}}", "rank 5", LK_ERR_MISMATCH},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"q_proj\":4.5}}", "whole number", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"q_proj\":-1}}", "whole number", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"q_proj\":\"4\"}}", "must be a number", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"rank_pattern\":{\"[\":4}}", "regular expression", LK_ERR_FORMAT},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"alpha_pattern\":[4]}", "alpha_pattern", LK_ERR_FORMAT},
    };
    char *folder = check_temporary("peft_configs");
    write_rows(folder, uniform, 4, &(lk_peft_write_options){0});
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        if (rows[i].status)
            CHECK_FAILS(open_with(folder, rows[i].config, &err), rows[i].status, rows[i].text, &err);
        else
            CHECK_OK(open_with(folder, rows[i].config, &err), &err);
    }
    free(folder);
}

/* ---- hostile tensors ---- */

typedef struct tensor {
    const char *name;
    lk_dtype type;
    int n_dims;
    int64_t shape[2];
    float value; /* of the last element */
} tensor;

static void put_tensors(const char *folder, const tensor *tensors)
{
    lk_error err = {0};
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "adapter_model", 0, &err), &err);
    for (const tensor *t = tensors; t->name; t++) CHECK_OK(lk_st_writer_declare(w, t->name, t->type, t->n_dims, t->shape, &err), &err);
    for (const tensor *t = tensors; t->name; t++) {
        int64_t n = t->n_dims > 1 ? t->shape[0] * t->shape[1] : t->shape[0];
        unsigned char zero[4] = {0}, last[4];
        if (t->type == LK_F32)
            memcpy(last, &t->value, 4);
        else
            lk_from_f32(last, t->type == LK_BF16 ? LK_BF16 : LK_F16, &t->value, 1);
        for (int64_t i = 0; i < n; i++)
            CHECK_OK(lk_st_writer_write(w, i == n - 1 ? last : zero, (size_t)lk_dtype_size(t->type), &err), &err);
    }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
}

#define KEY(tail) "base_model.model.m.q_proj." tail

static void test_tensors(void **state)
{
    (void)state;
    static const struct {
        tensor tensors[4];
        const char *text;
        lk_status status;
    } rows[] = {
        {{{KEY("lora_A.weight"), LK_BF16, 2, {2, 5}}, {KEY("lora_B.weight"), LK_F16, 2, {3, 2}, 2}}, NULL, LK_OK},
        {{{0}}, "no LoRA factors", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}}, "no lora_B", LK_ERR_FORMAT},
        {{{KEY("lora_B.weight"), LK_F32, 2, {5, 2}}}, "no lora_A", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {"base_model.model.n.lora_A.weight", LK_F32, 2, {2, 5}}}, "no lora_B", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {"base_model.model.n.lora_B.weight", LK_F32, 2, {2, 5}}}, "no lora_B", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {5, 2}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}}, "rank 2", LK_ERR_MISMATCH},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {KEY("lora_B.weight"), LK_F32, 2, {2, 3}}}, "rank 2", LK_ERR_MISMATCH},
        {{{KEY("lora_A.weight"), LK_F32, 1, {10}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}}, "matrix", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 0}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}}, "empty", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_U8, 2, {2, 5}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}}, "floating", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}, NAN}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}},
         "lora_A.weight\" holds NaN at [1, 4]",
         LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {KEY("lora_B.weight"), LK_BF16, 2, {3, 2}, -INFINITY}},
         "lora_B.weight\" holds an infinity",
         LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {KEY("lora_B.bias"), LK_F32, 1, {3}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}},
         "has no lora_bias for it",
         LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}},
          {KEY("lora_B.weight"), LK_F32, 2, {3, 2}},
          {KEY("lora_magnitude_vector"), LK_F32, 1, {3}}},
         "has no use_dora for it",
         LK_ERR_FORMAT},
        {{{"base_model.model.e.lora_embedding_A", LK_F32, 2, {2, 5}}, {"base_model.model.e.lora_embedding_B", LK_F32, 2, {3, 2}}},
         NULL,
         LK_OK},
        {{{"base_model.model.e.lora_embedding_A", LK_F32, 2, {2, 5}}}, "no lora_B", LK_ERR_FORMAT},
        {{{KEY("lora_A.weight"), LK_F32, 2, {2, 5}}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}}, {KEY("bias"), LK_F32, 1, {3}}},
         "has no bias for it",
         LK_ERR_FORMAT},
        {{{KEY("token_adapter.trainable_tokens_delta"), LK_F32, 2, {2, 5}}}, "has no trainable_token_indices for it", LK_ERR_FORMAT},
        {{{KEY("base_layer.weight"), LK_F32, 2, {2, 5}}}, "not a LoRA factor", LK_ERR_FORMAT},
        {{{"base_model.model.lm_head.weight", LK_F32, 2, {2, 5}}}, "not a LoRA factor", LK_ERR_FORMAT},
        {{{"base_model.model..lora_A.weight", LK_F32, 2, {2, 5}}}, "not a LoRA factor", LK_ERR_FORMAT},
        {{{"base_model.model.lora_A.weight", LK_F32, 2, {2, 5}}}, "not a LoRA factor", LK_ERR_FORMAT},
        {{{KEY("lora_A.default.weight"), LK_F32, 2, {2, 5}}}, "adapter's name", LK_ERR_UNSUPPORTED},
    };
    char *folder = check_temporary("peft_tensors");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        put_tensors(folder, rows[i].tensors);
        const char *config = "{\"peft_type\":\"LORA\",\"r\":2}";
        if (rows[i].status)
            CHECK_FAILS(open_with(folder, config, &err), rows[i].status, rows[i].text, &err);
        else
            CHECK_OK(open_with(folder, config, &err), &err);
    }
    free(folder);
}

/* The digest follows what is computed, not how it is stored. */
static void test_digest(void **state)
{
    (void)state;
    static const tensor sets[][3] = {
        {{KEY("lora_A.weight"), LK_F32, 2, {2, 5}, 1.5f}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}, 2}},
        {{KEY("lora_A.weight"), LK_BF16, 2, {2, 5}, 1.5f}, {KEY("lora_B.weight"), LK_F16, 2, {3, 2}, 2}},
        {{KEY("lora_A.weight"), LK_F32, 2, {2, 5}, 1.25f}, {KEY("lora_B.weight"), LK_F32, 2, {3, 2}, 2}},
    };
    char digests[4][65];
    lk_error err = {0};
    char *folder = check_temporary("peft_digest");
    for (int i = 0; i < 4; i++) {
        const char *config =
            i < 3 ? "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}" : "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":5}";
        lk_peft *p;
        put_tensors(folder, sets[i % 3]);
        CHECK_OK(open_with(folder, config, &err), &err);
        CHECK_OK(lk_peft_open(&p, folder, NULL, &err), &err);
        memcpy(digests[i], lk_peft_digest(p), 65);
        lk_peft_close(p);
    }
    assert_string_equal(digests[0], digests[1]);
    assert_string_not_equal(digests[0], digests[2]);
    assert_string_not_equal(digests[0], digests[3]);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_write),   cmocka_unit_test(test_rewrite),
        cmocka_unit_test(test_write_refused), cmocka_unit_test(test_configs), cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
