/* Adapters on stacked experts (PEFT's target_parameters) over mixtures whose experts are separate: tests/golden/experts, made by PEFT
 * beside transformers 5, and experts.safetensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/peft.h"
#include "model/combine.h"
#include "model/merge.h"
#include "tests/model.h"

static const char *const names[] = {"all", "parameters", "one"};
enum { N_ADAPTERS = sizeof names / sizeof *names };

typedef struct setting {
    lk_safetensors *golden;
    char *base[N_ADAPTERS], *adapter[N_ADAPTERS];
} setting;

static int begin(void **state)
{
    static setting s;
    lk_error err = {0};
    lk_safetensors *st;
    cJSON *all = check_families(&st), *bases;
    char *path = check_golden("experts.safetensors");
    CHECK_OK(lk_safetensors_open(&s.golden, path, &err), &err);
    free(path);
    const char *text = lk_safetensors_metadata(s.golden, "bases");
    CHECK_OK(lk_json_parse(&bases, text, strlen(text), "bases", &err), &err);
    for (int i = 0; i < N_ADAPTERS; i++) {
        char name[100];
        snprintf(name, sizeof name, "experts/%s", names[i]);
        s.adapter[i] = check_golden(name);
        const cJSON *c, *want = lk_json_get(bases, names[i]);
        cJSON_ArrayForEach(c, lk_json_get(all, "cases")) if (!strcmp(lk_json_get(c, "name")->valuestring, want->valuestring)) s.base[i] =
            check_family_folder(c);
        assert_non_null(s.base[i]);
    }
    cJSON_Delete(bases);
    cJSON_Delete(all);
    lk_safetensors_close(st);
    *state = &s;
    return 0;
}

static int end(void **state)
{
    setting *s = *state;
    lk_safetensors_close(s->golden);
    for (int i = 0; i < N_ADAPTERS; i++) {
        free(s->base[i]);
        free(s->adapter[i]);
    }
    return 0;
}

static int32_t *ids_of(const setting *s, int i, int64_t *n)
{
    char key[100];
    snprintf(key, sizeof key, "%s.ids", names[i]);
    return check_ints(s->golden, key, n);
}

/* PEFT's logits, with any folder that ought to be the same adapter. */
static void same_logits(const setting *s, int i, const char *adapter)
{
    int64_t n, count, want_count;
    char key[100];
    int32_t *ids = ids_of(s, i, &n);
    snprintf(key, sizeof key, "%s.logits", names[i]);
    float *want = check_floats(s->golden, key, &want_count), *got = check_pass_logits(s->base[i], adapter, LK_QUANT_NONE, ids, n, &count);
    assert_int_equal(count, want_count);
    check_close(key, got, want, count, 1e-4, 1e-4);
    free(ids);
    free(want);
    free(got);
}

static void test_logits(void **state)
{
    const setting *s = *state;
    for (int i = 0; i < N_ADAPTERS; i++) same_logits(s, i, s->adapter[i]);
}

/* ---- gradients ---- */

static void compare(const setting *s, int i, const char *key, const char *factor, const float *got, int64_t n)
{
    char name[400];
    int64_t count;
    snprintf(name, sizeof name, "%s.grad.%s.%s.weight", names[i], key, factor);
    float *want = check_floats(s->golden, name, &count);
    assert_int_equal(count, n);
    double size = 0, off = 0;
    for (int64_t j = 0; j < n; j++) {
        size += (double)want[j] * (double)want[j];
        off += ((double)want[j] - (double)got[j]) * ((double)want[j] - (double)got[j]);
    }
    if (!(sqrt(off) <= 1e-3 * sqrt(size))) fail_msg("%s: off by %.3g of %.3g", name, sqrt(off), sqrt(size));
    free(want);
}

/* The gradients of a trained adapter, saved as if they were its factors: they must come out under PEFT's names and in its layout. */
static void compare_saved(const setting *s, int i, const char *folder)
{
    lk_error err = {0};
    lk_safetensors *got, *want;
    char path[4300];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(lk_safetensors_open(&got, path, &err), &err);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", s->adapter[i]);
    CHECK_OK(lk_safetensors_open(&want, path, &err), &err);
    assert_int_equal(lk_safetensors_count(got), lk_safetensors_count(want));
    for (int64_t t = 0; t < lk_safetensors_count(got); t++) {
        char key[300];
        const lk_st_tensor *g = lk_safetensors_at(got, t), *w = lk_safetensors_at(want, t);
        assert_string_equal(g->name, w->name);
        assert_memory_equal(g->shape, w->shape, 2 * sizeof *g->shape);
        float *values = check_floats(got, g->name, NULL);
        snprintf(key, sizeof key, "%.*s", (int)(strlen(g->name) - strlen(".lora_A.weight")), g->name);
        compare(s, i, key, strstr(g->name, "lora_A") ? "lora_A" : "lora_B", values, g->n_elements);
        free(values);
    }
    lk_safetensors_close(got);
    lk_safetensors_close(want);
}

static void test_gradients(void **state)
{
    const setting *s = *state;
    for (int i = 0; i < N_ADAPTERS; i++) {
        lk_error err = {0};
        int64_t n;
        int32_t *ids = ids_of(s, i, &n), *labels = malloc((size_t)n * 4);
        for (int64_t t = 0; t < n; t++) labels[t] = t >= 10 && t + 1 < n ? ids[t + 1] : -1;
        check_model m = check_model_open(s->base[i], LK_QUANT_NONE, LK_F32, 2, NULL);
        lk_adapter *a;
        CHECK_OK(lk_adapter_load(&a, m.model, s->adapter[i], LK_F32, &err), &err);
        float *grads = calloc((size_t)a->n_params, 4), *nll = malloc((size_t)n * 4);
        lk_pass *pass;
        lk_pass_options options = {.max_tokens = n, .max_rank = a->max_rank, .kept_layers = 1, .training = true};
        CHECK_OK(lk_pass_create(&pass, m.model, &options, &err), &err);
        check_batch b;
        check_batch_init(&b, ids, n);
        check_batch_adapter(&b, a, grads);
        CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 1.0f / (float)(n - 11), NULL, nll, &err), &err);
        char key[100], *folder = check_temporary("stacked_gradients");
        snprintf(key, sizeof key, "%s.loss", names[i]);
        float *want = check_floats(s->golden, key, NULL);
        double loss = 0;
        for (int64_t t = 0; t < n; t++) loss += (double)nll[t] / (double)(n - 11);
        assert_true(fabs(loss - (double)want[0]) < 1e-4);
        CHECK_OK(lk_upload(m.be, a->weights, grads, (size_t)a->n_params * 4), lk_backend_error(m.be));
        CHECK_OK(lk_adapter_save(a, folder, &err), &err);
        compare_saved(s, i, folder);
        check_batch_free(&b);
        lk_pass_destroy(pass);
        lk_adapter_destroy(a);
        check_model_close(&m);
        free(want);
        free(folder);
        free(grads);
        free(nll);
        free(ids);
        free(labels);
    }
}

/* ---- out again ---- */

/* Loaded and saved: the same adapter, to us. */
static void test_saves(void **state)
{
    const setting *s = *state;
    for (int i = 0; i < N_ADAPTERS; i++) {
        lk_error err = {0};
        lk_peft *p, *q;
        char *folder = check_temporary("stacked_saved");
        check_model m = check_model_open(s->base[i], LK_QUANT_NONE, LK_F32, 1, NULL);
        lk_adapter *a;
        CHECK_OK(lk_adapter_load(&a, m.model, s->adapter[i], LK_F32, &err), &err);
        a->use_rslora = i == 1;
        CHECK_OK(lk_adapter_save(a, folder, &err), &err);
        CHECK_OK(lk_peft_open(&p, s->adapter[i], NULL, &err), &err);
        CHECK_OK(lk_peft_open(&q, folder, NULL, &err), &err);
        assert_string_equal(lk_peft_digest(p), lk_peft_digest(q));
        lk_peft_close(p);
        lk_peft_close(q);
        lk_adapter_destroy(a);
        check_model_close(&m);
        free(folder);
    }
}

static void test_merges(void **state)
{
    const setting *s = *state;
    for (int i = 0; i < N_ADAPTERS; i++) {
        lk_error err = {0};
        char *out = check_temporary("stacked_merged");
        lk_merge_result result;
        lk_merge_options options = {.into = LK_MERGE_ORIGINAL, .dtype = LK_F32, .threads = 2};
        CHECK_OK(lk_model_merge(s->base[i], s->adapter[i], out, &options, &result, &err), &err);
        int64_t n, count;
        int32_t *ids = ids_of(s, i, &n);
        char key[100];
        snprintf(key, sizeof key, "%s.logits", names[i]);
        float *want = check_floats(s->golden, key, NULL), *got = check_pass_logits(out, NULL, LK_QUANT_NONE, ids, n, &count);
        check_close(key, got, want, count, 2e-4, 2e-4);
        free(want);
        free(got);
        free(ids);
        free(out);
    }
}

/* An adapter is the sum of 0.3 and 0.7 of itself; nothing else is said of stacked experts. */
static void test_combines(void **state)
{
    const setting *s = *state;
    lk_error err = {0};
    double weights[] = {0.3, 0.7};
    for (int i = 0; i < N_ADAPTERS; i++) {
        char *out = check_temporary("stacked_sum");
        const char *both[] = {s->adapter[i], s->adapter[i]};
        lk_combine_options options = {.kind = LK_COMBINE_CAT, .weights = weights};
        CHECK_OK(lk_combine(out, both, 2, &options, &err), &err);
        same_logits(s, i, out);
        options.kind = LK_COMBINE_LINEAR;
        CHECK_FAILS(lk_combine(out, both, 2, &options, &err), LK_ERR_UNSUPPORTED,
                    "(target_parameters) are only combined by cat, not by linear", &err);
        free(out);
    }
}

/* ---- other forms, and none ---- */

/* A copy of an adapter, its tensors changed by `change` (NULL: as they are; false: left out) and its configuration given. */
typedef bool change_tensor(const lk_safetensors *st, const lk_st_tensor *t, float *values, int64_t *shape);

static char *copy_with(const char *adapter, const char *config, change_tensor *change)
{
    lk_error err = {0};
    char path[4300], *folder = check_temporary("stacked_copy"), *text;
    lk_safetensors *st;
    lk_st_writer *w;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", adapter);
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    CHECK_OK(lk_st_writer_create(&w, folder, "adapter_model", 0, &err), &err);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < lk_safetensors_count(st); i++) {
            const lk_st_tensor *t = lk_safetensors_at(st, i);
            int64_t shape[2] = {t->shape[0], t->shape[1]};
            float *values = calloc(1 << 14, 4); /* room for any */
            CHECK_OK(lk_st_read_f32(t, 0, t->n_elements, values, &err), &err);
            if (!change || change(st, t, values, shape)) {
                if (pass)
                    CHECK_OK(lk_st_writer_write(w, values, (size_t)(shape[0] * shape[1]) * 4, &err), &err);
                else
                    CHECK_OK(lk_st_writer_declare(w, t->name, LK_F32, 2, shape, &err), &err);
            }
            free(values);
        }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    lk_safetensors_close(st);
    cJSON *json;
    snprintf(path, sizeof path, "%s/adapter_config.json", adapter);
    CHECK_OK(lk_json_read(&json, path, 1 << 20, &err), &err);
    if (config) {
        cJSON *more, *item;
        CHECK_OK(lk_json_parse(&more, config, strlen(config), "more", &err), &err);
        while ((item = cJSON_DetachItemFromArray(more, 0))) {
            cJSON_DeleteItemFromObjectCaseSensitive(json, item->string);
            cJSON_AddItemToObject(json, item->string, item);
        }
        cJSON_Delete(more);
    }
    text = cJSON_Print(json);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    check_write_file(path, text, strlen(text));
    cJSON_free(text);
    cJSON_Delete(json);
    return folder;
}

/* PEFT 0.17 adapts the transposed: what was B becomes A, and the other way round. */
static bool turn(const lk_safetensors *st, const lk_st_tensor *t, float *values, int64_t *shape)
{
    enum { EXPERTS = 5 };
    char name[300];
    if (!strstr(t->name, ".experts.")) return true;
    snprintf(name, sizeof name, "%s", t->name);
    char *which = strstr(name, ".lora_") + strlen(".lora_");
    bool to_a = *which == 'A';
    *which = to_a ? 'B' : 'A';
    float *other = check_floats(st, name, NULL);
    const lk_st_tensor *o = lk_safetensors_find(st, name);
    int64_t rank = (to_a ? t->shape[0] : t->shape[1]) / EXPERTS, width = to_a ? o->shape[0] : o->shape[1];
    shape[0] = to_a ? rank * EXPERTS : width;
    shape[1] = to_a ? width : rank * EXPERTS;
    for (int64_t e = 0; e < EXPERTS; e++)
        for (int64_t j = 0; j < rank; j++)
            for (int64_t i = 0; i < width; i++) {
                int64_t in_a = (e * rank + j) * width + i, in_b = (i * rank + j) * EXPERTS + e;
                values[to_a ? in_a : in_b] = other[to_a ? in_b : in_a];
            }
    free(other);
    return true;
}

static void test_older_form(void **state)
{
    const setting *s = *state;
    char *folder = copy_with(s->adapter[0], NULL, turn);
    same_logits(s, 0, folder);
    free(folder);
}

static bool without_outer(const lk_safetensors *st, const lk_st_tensor *t, float *values, int64_t *shape)
{
    (void)st, (void)values, (void)shape;
    return !strstr(t->name, ".experts.lora_");
}

static void test_refusals(void **state)
{
    const setting *s = *state;
    static const struct {
        int adapter;
        const char *config;
        change_tensor *change;
        lk_status status;
        const char *message;
    } cases[] = {
        {0, "{\"use_dora\":true}", NULL, LK_ERR_UNSUPPORTED, "use_dora together with target_parameters"},
        {0, "{\"lora_bias\":true}", NULL, LK_ERR_UNSUPPORTED, "lora_bias together with target_parameters"},
        {0, "{\"target_parameters\":\"down_proj\"}", NULL, LK_ERR_FORMAT, "target_parameters must be a list"},
        {0, "{\"target_parameters\":[1]}", NULL, LK_ERR_FORMAT, "target_parameters must hold names"},
        {0, "{\"target_parameters\":null}", NULL, LK_ERR_FORMAT, "experts, which target_modules does not name"},
        {0, "{\"target_parameters\":[\"down_proj\",\"gate.weight\"]}", NULL, LK_ERR_FORMAT, "has no target_parameters for it"},
        {0, NULL, without_outer, LK_ERR_FORMAT, "names 2 parameters of model.layers.0.mlp.experts, but there is no"},
        {0, "{\"rank_pattern\":{}}", NULL, LK_ERR_MISMATCH, "matrices ["},
        {0, "{\"r\":3}", NULL, LK_ERR_MISMATCH, "the config gives it rank 3"},
    };
    lk_error err = {0};
    check_model m = check_model_open(s->base[0], LK_QUANT_NONE, LK_F32, 1, NULL);
    lk_adapter *a;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = copy_with(s->adapter[cases[i].adapter], cases[i].config, cases[i].change);
        CHECK_FAILS(lk_adapter_load(&a, m.model, folder, LK_F32, &err), cases[i].status, cases[i].message, &err);
        free(folder);
    }
    CHECK_FAILS(lk_adapter_load(&a, m.model, s->adapter[2], LK_F32, &err), LK_ERR_MISMATCH, "3 matrices [32,16], but", &err);
    check_model_close(&m);
    char *llama = check_golden("models/llama-tiny");
    m = check_model_open(llama, LK_QUANT_NONE, LK_F32, 1, NULL);
    CHECK_FAILS(lk_adapter_load(&a, m.model, s->adapter[0], LK_F32, &err), LK_ERR_MISMATCH,
                "adapts model.layers.0.mlp.experts.down_proj (target_parameters), which llama-tiny does not have", &err);
    check_model_close(&m);
    free(llama);
}

/* ---- made here ---- */

static void test_creates(void **state)
{
    const setting *s = *state;
    lk_error err = {0};
    static const char *const both[] = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}, *const unknown[] = {"experts.up_proj"};
    check_model m = check_model_open(s->base[1], LK_QUANT_NONE, LK_F32, 1, NULL);
    lk_adapter *a;
    lk_adapter_pattern patterns[] = {{.pattern = "down_proj", .rank = 2},
                                     {.pattern = ".*layers\\.1\\.mlp\\.experts\\.gate_up_proj", .alpha = 7}};
    lk_adapter_spec spec = {
        .rank = 3, .alpha = 5, .use_rslora = true, .parameters = both, .n_parameters = 2, .patterns = patterns, .n_patterns = 2};
    spec.targets[LK_Q] = true;
    int64_t stored = 0;
    lk_adapter_sizes sizes;
    CHECK_OK(lk_adapter_sizes_of(&sizes, m.be, &m.model->config, &spec, &err), &err);
    CHECK_OK(lk_adapter_create(&a, m.model, &spec, 1, &err), &err);
    assert_int_equal(a->n_params, sizes.n_params);
    /* Saved, it has the names, shapes, ranks and scales of the one that PEFT made of the same description. */
    char *folder = check_temporary("stacked_made");
    CHECK_OK(lk_adapter_save(a, folder, &err), &err);
    lk_peft *ours, *theirs;
    CHECK_OK(lk_peft_open(&ours, folder, NULL, &err), &err);
    CHECK_OK(lk_peft_open(&theirs, s->adapter[1], NULL, &err), &err);
    assert_int_equal(lk_peft_count(ours), lk_peft_count(theirs));
    for (int64_t i = 0; i < lk_peft_count(ours); i++) {
        const lk_peft_module *x = lk_peft_at(ours, i), *y = lk_peft_at(theirs, i);
        assert_string_equal(x->name, y->name);
        assert_string_equal(x->a->name, y->a->name);
        assert_int_equal(x->rank, y->rank);
        assert_true(fabs(x->scale - y->scale) < 1e-6);
        stored += x->a->n_elements + x->b->n_elements;
    }
    assert_int_equal(stored, sizes.n_trainable);
    lk_peft_close(ours);
    lk_peft_close(theirs);
    lk_adapter_destroy(a);
    free(folder);
    spec.dropout = 0.1;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_UNSUPPORTED, "target_parameters together with dropout", &err);
    spec.dropout = 0;
    spec.use_dora = true;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_UNSUPPORTED, "target_parameters together with dora", &err);
    spec.use_dora = false;
    spec.targets[LK_UP] = true;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT,
                "is adapted twice: as model.layers.0.mlp.experts.gate_up_proj", &err);
    spec.targets[LK_UP] = false;
    spec.parameters = unknown;
    spec.n_parameters = 1;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT,
                "target_parameters names experts.up_proj, which this qwen3_moe", &err);
    check_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits),   cmocka_unit_test(test_gradients), cmocka_unit_test(test_saves),
                                       cmocka_unit_test(test_merges),   cmocka_unit_test(test_combines),  cmocka_unit_test(test_older_form),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_creates)};
    return cmocka_run_group_tests(tests, begin, end);
}
