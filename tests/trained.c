#include "tests/trained.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define Q  [LK_Q] = true
#define QV [LK_Q] = true, [LK_V] = true

static const int32_t tokens[] = {3, 9, 100}, few_tokens[] = {3, 9, 30};
static const lk_adapter_pattern patterns[] = {{.pattern = "lm_head", .rank = 5}, {.pattern = "embed_tokens", .alpha = 4}};

const trained_case trained_cases[N_TRAINED] = {
    {"bias_all", "qwen2-tiny", {.rank = 2, .alpha = 8, .targets = {Q}, .bias = LK_BIAS_ALL}},
    {"bias_both", "qwen2-tiny", {.rank = 2, .alpha = 6, .targets = {Q, [LK_O] = true}, .bias = LK_BIAS_LORA_ONLY, .lora_bias = true}},
    {"lora_bias", "llama-tiny", {.rank = 4, .alpha = 6, .targets = {Q, [LK_O] = true, [LK_DOWN] = true}, .lora_bias = true}},
    {"saved", "llama-tiny", {.rank = 2, .alpha = 8, .targets = {QV}, .save_head = true, .save_embedding = true}},
    {"saved_tied", "qwen3-tiny", {.rank = 2, .alpha = 8, .targets = {QV}, .save_embedding = true}},
    {"tied", "qwen3-tiny", {.rank = 2, .alpha = 8, .targets = {QV}, .save_embedding = true, .tie_tables = true}},
    {"embedding", "llama-tiny", {.rank = 3, .alpha = 7, .targets = {Q}, .target_embedding = true}},
    {"head", "llama-tiny", {.rank = 3, .alpha = 7, .targets = {Q}, .target_head = true}},
    {"head_tied",
     "qwen3-tiny",
     {.rank = 3,
      .alpha = 7,
      .use_rslora = true,
      .targets = {Q},
      .target_head = true,
      .target_embedding = true,
      .patterns = patterns,
      .n_patterns = 2}},
    {"tokens", "llama-tiny", {.rank = 2, .alpha = 8, .targets = {QV}, .tokens = tokens, .n_tokens = 3}},
    {"tokens_tied", "qwen3-tiny", {.rank = 2, .alpha = 8, .targets = {QV}, .tokens = tokens, .n_tokens = 3}},
    {"tokens_head", "llama-tiny", {.rank = 2, .alpha = 8, .targets = {Q}, .target_head = true, .tokens = tokens, .n_tokens = 3}},
    {"gemma2", "gemma2", {.rank = 2, .alpha = 3, .targets = {Q}, .target_head = true, .target_embedding = true}},
    {"granite", "granite", {.rank = 2, .alpha = 8, .targets = {QV}, .save_embedding = true, .tie_tables = true}},
    {"gemma2_tokens", "gemma2", {.rank = 2, .alpha = 8, .targets = {QV}, .tokens = few_tokens, .n_tokens = 3}},
};

/* ---- tensors */

typedef struct collecting {
    trained_tensor *list;
    int n;
} collecting;

static trained_tensor *add(collecting *c, const char *path, const char *part, int64_t at, int64_t n, float keep, float spread)
{
    trained_tensor *t = &c->list[c->n++];
    *t = (trained_tensor){.at = at, .n = n, .keep = keep, .spread = spread};
    snprintf(t->key, sizeof t->key, "base_model.model.%s.%s", path, part);
    return t;
}

static void add_site(collecting *c, const lk_adapter *a, int32_t s)
{
    const lk_adapter_site *site = &a->sites[s];
    char path[200];
    lk_site_path(path, sizeof path, &a->model->config, s);
    if (site->trains_bias) add(c, path, site->rank ? "base_layer.bias" : "bias", site->bias_at, site->n, 1, 0.05f);
    if (!site->rank) return;
    add(c, path, "lora_A.weight", site->a, site->rank * site->k, 0, 0.2f);
    add(c, path, "lora_B.weight", site->b, site->rank * site->n, 0, 0.15f);
    if (site->dora) add(c, path, "lora_magnitude_vector.weight", site->m, site->n, 1, 0.05f);
    if (site->trains_lora_bias) add(c, path, "lora_B.bias", site->lora_bias_at, site->n, 0, 0.15f);
}

trained_tensor *trained_tensors(const lk_adapter *a, int *n)
{
    const lk_adapter_whole *w = &a->whole;
    int64_t V = a->model->config.vocab, C = a->model->config.hidden;
    collecting c = {calloc((size_t)(4 * a->n_sites + 8), sizeof *c.list), 0};
    static const char embedding[] = "model.embed_tokens", head[] = "lm_head";
    for (int32_t s = 0; s < a->n_sites; s++) add_site(&c, a, s);
    if (w->embedding) add(&c, embedding, "weight", w->embedding_at, V * C, 1, 0.05f);
    if (w->head && !w->tied) add(&c, head, "weight", w->head_at, V * C, 1, 0.05f);
    const lk_table_factors *e = &w->embedding_factors, *h = &w->head_factors;
    if (e->rank) add(&c, embedding, "lora_embedding_A", e->a, V * e->rank, 0, 0.4f)->turned = e->rank;
    if (e->rank) add(&c, embedding, "lora_embedding_B", e->b, C * e->rank, 0, 0.4f);
    if (h->rank) add(&c, head, "lora_A.weight", h->a, C * h->rank, 0, 0.2f);
    if (h->rank) add(&c, head, "lora_B.weight", h->b, V * h->rank, 0, 0.15f);
    if (w->n_tokens) add(&c, embedding, "token_adapter.trainable_tokens_delta", w->tokens_at, w->n_tokens * C, 1, 0.05f);
    *n = c.n;
    return c.list;
}

static int64_t place_of(const trained_tensor *t, int64_t i)
{
    int64_t width = t->turned ? t->n / t->turned : 0;
    return t->at + (t->turned ? i % width * t->turned + i / width : i);
}

float *trained_values(const trained_tensor *t, const float *flat)
{
    float *out = malloc((size_t)t->n * sizeof *out);
    assert_non_null(out);
    for (int64_t i = 0; i < t->n; i++) out[i] = flat[place_of(t, i)];
    return out;
}

/* ---- cases */

char *trained_base(const trained_case *c, lk_quant *quant)
{
    char name[100];
    snprintf(name, sizeof name, "models/%s", c->base);
    *quant = LK_QUANT_NF4;
    if (strstr(c->base, "-tiny")) return check_golden(name);
    *quant = LK_QUANT_NONE;
    lk_safetensors *st;
    cJSON *json = check_families(&st), *one;
    char *folder = NULL;
    cJSON_ArrayForEach(one, lk_json_get(json, "cases"))
    {
        if (!strcmp(lk_json_get(one, "name")->valuestring, c->base)) folder = check_family_folder(one);
    }
    cJSON_Delete(json);
    lk_safetensors_close(st);
    assert_non_null(folder);
    return folder;
}

lk_adapter *trained_adapter(const lk_model *model, const trained_case *c)
{
    lk_error err = {0};
    lk_adapter *a;
    CHECK_OK(lk_adapter_create(&a, model, &c->spec, 5, &err), &err);
    int n;
    trained_tensor *list = trained_tensors(a, &n);
    float *flat = a->weights; /* the CPU's memory is the host's */
    for (int i = 0; i < n; i++) {
        const trained_tensor *t = &list[i];
        float *u = malloc((size_t)t->n * sizeof *u);
        check_rule(t->key, u, t->n, 0.0f, 1.0f);
        for (int64_t j = 0; j < t->n; j++) flat[place_of(t, j)] = t->keep * flat[place_of(t, j)] + t->spread * u[j];
        free(u);
    }
    free(list);
    CHECK_OK(lk_adapter_refresh(a, &err), &err);
    return a;
}

lk_safetensors *trained_golden(void)
{
    lk_error err = {0};
    lk_safetensors *st;
    char *path = check_golden("trained.safetensors");
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    free(path);
    return st;
}

float *trained_floats(const lk_safetensors *st, const trained_case *c, const char *what, int64_t *n)
{
    char name[400];
    snprintf(name, sizeof name, "%s.%s", c->name, what);
    return check_floats(st, name, n);
}

int32_t *trained_ints(const lk_safetensors *st, const trained_case *c, const char *what)
{
    char name[400];
    snprintf(name, sizeof name, "%s.%s", c->name, what);
    return check_ints(st, name, NULL);
}
