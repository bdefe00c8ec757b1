/* Reading PEFT LoRA folders.
 *
 * The tensors say which modules are adapted; the config says with which rank and scale, and both must tell the same story. Where PEFT
 * silently drops something (tensors of modules that target_modules does not name) or a field asks for more than plain LoRA, the
 * folder is refused by name: an adapter that loads but computes something else is the worst outcome here.
 *
 * Patterns are Python regular expressions in PEFT; PCRE2 reads them the same way for everything that names of modules need. The
 * match limit keeps a hostile pattern from running for hours. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/peft.h"

#include <inttypes.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"

enum { MAX_CONFIG_BYTES = 16 << 20, MAX_RANK = 65536, MATCH_LIMIT = 100000 };

struct lk_peft {
    lk_arena arena;
    lk_safetensors *st;
    lk_peft_module *modules;
    int64_t n_modules;
    const char *base;
    char digest[65];
};

/* A key of rank_pattern or alpha_pattern, or target_modules as a regular expression. */
typedef struct pattern {
    pcre2_code *code;
    double value;
} pattern;

typedef struct pattern_list {
    pattern *items;
    int n;
} pattern_list;

typedef struct config {
    const char *where; /* path, for messages */
    int64_t r;
    double alpha;
    bool rslora;
    pattern_list ranks, alphas;
    pattern_list target; /* one item when target_modules is a regular expression */
    const cJSON *target_list;
} config;

/* ---- patterns ---- */

static lk_status pattern_compile(pcre2_code **code, const char *format, const char *text, const char *field, const char *where,
                                 lk_error *err)
{
    size_t size = strlen(text) + 32;
    char *full = malloc(size);
    if (!full) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    snprintf(full, size, format, text);
    int number;
    PCRE2_SIZE offset;
    *code = pcre2_compile((PCRE2_SPTR)full, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &number, &offset, NULL);
    free(full);
    if (*code) return LK_OK;
    char reason[160] = "";
    pcre2_get_error_message(number, (PCRE2_UCHAR *)reason, sizeof reason);
    return lk_fail(err, LK_ERR_FORMAT, "%s: %s \"%.200s\" is not a regular expression: %s", where, field, text, reason);
}

/* *found: the pattern matches from the start of name. */
static lk_status pattern_match(const pattern *p, const char *name, bool *found, const char *where, lk_error *err)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    lk_status status = LK_OK;
    if (!data || !context) {
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
        goto out;
    }
    pcre2_set_match_limit(context, MATCH_LIMIT);
    int n = pcre2_match(p->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, PCRE2_ANCHORED, data, context);
    *found = n >= 0;
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        status = lk_fail(err, LK_ERR_FORMAT, "%s: a pattern takes too many steps on \"%.200s\"; simplify it", where, name);
out:
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    return status;
}

static void pattern_list_free(pattern_list *list)
{
    for (int i = 0; i < list->n; i++) pcre2_code_free(list->items[i].code);
    free(list->items);
}

/* rank_pattern and alpha_pattern: {regular expression of the end of a module's name: number}. */
static lk_status pattern_list_parse(pattern_list *list, const cJSON *root, const char *field, const char *where, lk_error *err)
{
    const cJSON *object = lk_json_get(root, field), *item;
    if (!object || cJSON_IsNull(object)) return LK_OK;
    if (!cJSON_IsObject(object)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be an object of numbers", where, field);
    list->items = calloc((size_t)cJSON_GetArraySize(object) + 1, sizeof *list->items);
    if (!list->items) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
            return lk_fail(err, LK_ERR_FORMAT, "%s: %s \"%.200s\" must be a number", where, field, item->string);
        list->items[list->n].value = item->valuedouble;
        LK_TRY(pattern_compile(&list->items[list->n].code, "(.*\\.)?(%s)$", item->string, field, where, err));
        list->n++;
    }
    return LK_OK;
}

/* The value of the first pattern that matches, in the file's order, as PEFT's get_pattern_key does; else *value stays. */
static lk_status pattern_list_value(const pattern_list *list, const char *name, double *value, const char *where, lk_error *err)
{
    for (int i = 0; i < list->n; i++) {
        bool found;
        LK_TRY(pattern_match(&list->items[i], name, &found, where, err));
        if (!found) continue;
        *value = list->items[i].value;
        return LK_OK;
    }
    return LK_OK;
}

/* ---- the config ---- */

/* Fields that say nothing about what a trained adapter computes: provenance, initialisation, or a choice of modules that the tensors
 * already show. Everything else that is neither here nor read by name must be null, false or empty. */
static const char *const harmless[] = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
    "fan_in_fan_out",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "init_lora_weights",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "runtime_config",
    "ensure_weight_tying",
};

static bool is_unset(const cJSON *item)
{
    if (cJSON_IsNull(item) || cJSON_IsFalse(item)) return true;
    if (cJSON_IsObject(item) || cJSON_IsArray(item)) return item->child == NULL;
    return cJSON_IsString(item) && item->valuestring[0] == 0;
}

static lk_status check_fields(const cJSON *root, const char *where, lk_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof harmless / sizeof *harmless && !known; i++) known = !strcmp(harmless[i], item->string);
        if (!known && !is_unset(item))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %.100s is set; only plain LoRA adapters can be loaded", where, item->string);
    }
    const char *bias = "none";
    bool transposed = false;
    LK_TRY(lk_json_opt_string(root, "bias", &bias, where, err));
    if (strcmp(bias, "none")) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: bias is \"%.40s\"; only \"none\" can be loaded", where, bias);
    LK_TRY(lk_json_opt_bool(root, "fan_in_fan_out", &transposed, where, err));
    if (transposed) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: fan_in_fan_out is true; transposed layers are not supported", where);
    /* These initialisations subtract the adapter's first value from the base: the factors mean nothing on the plain base. */
    const cJSON *init = lk_json_get(root, "init_lora_weights");
    static const char *const fine[] = {"gaussian", "eva", "orthogonal"};
    if (cJSON_IsString(init)) {
        for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
            if (!strcmp(fine[i], init->valuestring)) return LK_OK;
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: init_lora_weights \"%.40s\" changes the base model's weights; save the adapter with "
                       "path_initial_model_for_weight_conversion to make it a plain one",
                       where, init->valuestring);
    }
    return LK_OK;
}

static lk_status parse_targets(config *c, const cJSON *root, lk_error *err)
{
    const cJSON *target = lk_json_get(root, "target_modules"), *item;
    if (!target || cJSON_IsNull(target)) return LK_OK;
    if (cJSON_IsArray(target)) {
        cJSON_ArrayForEach(item, target)
        {
            if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: target_modules must hold names", c->where);
        }
        c->target_list = target;
        return LK_OK;
    }
    if (!cJSON_IsString(target)) return lk_fail(err, LK_ERR_FORMAT, "%s: target_modules must be a list or a string", c->where);
    if (!strcmp(target->valuestring, "all-linear")) return LK_OK;
    c->target.items = calloc(1, sizeof *c->target.items);
    if (!c->target.items) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", c->where);
    LK_TRY(pattern_compile(&c->target.items[0].code, "(?:%s)\\z", target->valuestring, "target_modules", c->where, err));
    c->target.n = 1;
    return LK_OK;
}

static lk_status parse_config(config *c, const cJSON *root, lk_error *err)
{
    const char *type;
    double dropout = 0;
    c->r = 8; /* PEFT's defaults */
    c->alpha = 8;
    if (!cJSON_IsObject(root)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", c->where);
    LK_TRY(lk_json_string(root, "peft_type", &type, c->where, err));
    if (strcmp(type, "LORA"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: peft_type is \"%.40s\"; only LORA can be loaded", c->where, type);
    LK_TRY(check_fields(root, c->where, err));
    LK_TRY(lk_json_opt_int(root, "r", 1, MAX_RANK, &c->r, c->where, err));
    LK_TRY(lk_json_opt_number(root, "lora_alpha", -1e9, 1e9, &c->alpha, c->where, err));
    LK_TRY(lk_json_opt_number(root, "lora_dropout", 0, 1, &dropout, c->where, err));
    LK_TRY(lk_json_opt_bool(root, "use_rslora", &c->rslora, c->where, err));
    LK_TRY(pattern_list_parse(&c->ranks, root, "rank_pattern", c->where, err));
    LK_TRY(pattern_list_parse(&c->alphas, root, "alpha_pattern", c->where, err));
    return parse_targets(c, root, err);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* PEFT drops the tensors of a module that target_modules does not select. */
static lk_status check_target(const config *c, const char *name, lk_error *err)
{
    bool found = !c->target_list && !c->target.n;
    const cJSON *item;
    cJSON_ArrayForEach(item, c->target_list)
    {
        size_t before = strlen(name) - strlen(item->valuestring);
        if (ends_with(name, item->valuestring) && (before == 0 || name[before - 1] == '.')) found = true;
    }
    if (c->target.n) LK_TRY(pattern_match(&c->target.items[0], name, &found, c->where, err));
    if (found) return LK_OK;
    return lk_fail(err, LK_ERR_FORMAT, "%s: there are factors for %.250s, which target_modules does not name", c->where, name);
}

/* ---- the tensors ---- */

static lk_status refuse_tensor(const lk_st_tensor *t, lk_error *err)
{
    static const struct {
        const char *part, *what;
    } known[] = {
        {".lora_magnitude_vector", "DoRA is not supported"},
        {".lora_embedding_", "adapted embeddings are not supported"},
        {".lora_B.bias", "lora_bias is not supported"},
        {"trainable_tokens_delta", "trained tokens are not supported"},
        {".modules_to_save.", "modules_to_save is not supported"},
        {".default.weight", "the adapter's name must not be part of the tensor's; save it with save_pretrained"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(t->name, known[i].part))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: tensor \"%.250s\": %s", t->file, t->name, known[i].what);
    return lk_fail(err, LK_ERR_FORMAT,
                   "%s: tensor \"%.250s\" is not a LoRA factor (base_model.model.MODULE.lora_A.weight or lora_B.weight)", t->file, t->name);
}

static const char prefix[] = "base_model.model.", suffix_a[] = ".lora_A.weight", suffix_b[] = ".lora_B.weight";

/* The module's path when the tensor is a factor ("a" or "b" in *which), else NULL. */
static char *module_of(lk_arena *arena, const lk_st_tensor *t, char *which)
{
    size_t n = strlen(t->name), head = sizeof prefix - 1, tail = sizeof suffix_a - 1;
    if (n <= head + tail || strncmp(t->name, prefix, head)) return NULL;
    if (ends_with(t->name, suffix_a))
        *which = 'a';
    else if (ends_with(t->name, suffix_b))
        *which = 'b';
    else
        return NULL;
    return lk_arena_strndup(arena, t->name + head, n - head - tail);
}

static lk_status check_factor(const lk_st_tensor *t, lk_error *err)
{
    if (t->type != LK_F32 && t->type != LK_BF16 && t->type != LK_F16 && t->type != LK_F64)
        return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.250s\" is %s; a floating type is needed", t->file, t->name,
                       lk_dtype_name(t->type));
    if (t->n_dims == 2 && t->n_elements > 0) return LK_OK;
    return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.250s\" must be a matrix that is not empty", t->file, t->name);
}

static int compare_modules(const void *x, const void *y)
{
    const lk_peft_module *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* In the order of names a module's A comes right before its B. */
static lk_status collect_modules(lk_peft *p, lk_error *err)
{
    int64_t n = lk_safetensors_count(p->st);
    p->modules = calloc((size_t)n / 2 + 1, sizeof *p->modules);
    if (!p->modules) return lk_fail(err, LK_ERR_MEMORY, "no memory for an adapter of %" PRId64 " tensors", n);
    lk_peft_module open = {0}; /* has its A, waits for its B */
    for (int64_t i = 0; i < n; i++) {
        const lk_st_tensor *t = lk_safetensors_at(p->st, i);
        char which = 0;
        const char *name = module_of(&p->arena, t, &which);
        if (!name) return refuse_tensor(t, err);
        LK_TRY(check_factor(t, err));
        bool mate = open.a && !strcmp(open.name, name);
        if (which == 'b' && !mate) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.250s\" has no lora_A beside it", t->file, t->name);
        if (which == 'a' && open.a) break;
        if (which == 'a') {
            open = (lk_peft_module){.name = name, .a = t};
            continue;
        }
        open.b = t;
        p->modules[p->n_modules++] = open;
        open = (lk_peft_module){0};
    }
    if (open.a) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.250s\" has no lora_B beside it", open.a->file, open.a->name);
    if (!p->n_modules) return lk_fail(err, LK_ERR_FORMAT, "the adapter holds no LoRA factors");
    qsort(p->modules, (size_t)p->n_modules, sizeof *p->modules, compare_modules);
    return LK_OK;
}

/* Rank and scale from the config, and that the shapes agree with them. */
static lk_status settle_module(lk_peft_module *m, const config *c, lk_error *err)
{
    double rank = (double)c->r, alpha = c->alpha;
    LK_TRY(check_target(c, m->name, err));
    LK_TRY(pattern_list_value(&c->ranks, m->name, &rank, c->where, err));
    LK_TRY(pattern_list_value(&c->alphas, m->name, &alpha, c->where, err));
    if (!(rank >= 1 && rank <= MAX_RANK) || rank != floor(rank))
        return lk_fail(err, LK_ERR_FORMAT, "%s: rank_pattern gives %.250s the rank %g; it must be a whole number, 1 to %d", c->where,
                       m->name, rank, MAX_RANK);
    m->rank = (int32_t)rank;
    m->alpha = alpha;
    m->scale = c->rslora ? alpha / sqrt(rank) : alpha / rank;
    if (m->a->shape[0] != m->rank)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.250s\" has shape [%" PRId64 ", %" PRId64 "], the config gives it rank %d",
                       m->a->file, m->a->name, m->a->shape[0], m->a->shape[1], m->rank);
    if (m->b->shape[1] != m->rank)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.250s\" has shape [%" PRId64 ", %" PRId64 "], the config gives it rank %d",
                       m->b->file, m->b->name, m->b->shape[0], m->b->shape[1], m->rank);
    return LK_OK;
}

static void hash_number(lk_sha256 *hash, uint64_t value)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(value >> (8 * i));
    lk_sha256_update(hash, bytes, 8);
}

/* Hashes the factor as fp32, so that storing it in another type that holds it exactly changes nothing, and refuses NaN and Inf. */
static lk_status hash_factor(lk_sha256 *hash, const lk_st_tensor *t, lk_error *err)
{
    enum { CHUNK = 4096 };
    float values[CHUNK];
    hash_number(hash, (uint64_t)t->shape[0]);
    hash_number(hash, (uint64_t)t->shape[1]);
    for (int64_t i = 0; i < t->n_elements; i += CHUNK) {
        int64_t n = t->n_elements - i < CHUNK ? t->n_elements - i : CHUNK;
        LK_TRY(lk_st_read_f32(t, i, n, values, err));
        for (int64_t j = 0; j < n; j++)
            if (!isfinite(values[j]))
                return lk_fail(err, LK_ERR_FORMAT,
                               "%s: tensor \"%.250s\" holds %s at [%" PRId64 ", %" PRId64 "]; the training that made it diverged", t->file,
                               t->name, isnan(values[j]) ? "NaN" : "an infinity", (i + j) / t->shape[1], (i + j) % t->shape[1]);
        lk_sha256_update(hash, values, (size_t)n * sizeof *values);
    }
    return LK_OK;
}

static lk_status digest_modules(lk_peft *p, lk_error *err)
{
    lk_sha256 hash;
    lk_sha256_init(&hash);
    lk_status status = LK_OK;
    for (int64_t i = 0; i < p->n_modules && !status; i++) {
        const lk_peft_module *m = &p->modules[i];
        uint64_t scale;
        memcpy(&scale, &m->scale, 8);
        lk_sha256_update(&hash, m->name, strlen(m->name) + 1);
        hash_number(&hash, (uint64_t)m->rank);
        hash_number(&hash, scale);
        status = hash_factor(&hash, m->a, err);
        if (!status) status = hash_factor(&hash, m->b, err);
    }
    lk_sha256_final(&hash, p->digest);
    return status;
}

/* ---- public ---- */

static lk_status open_folder(lk_peft *p, const char *folder, lk_error *err)
{
    char config_path[4096], weights[4096];
    cJSON *root = NULL;
    config c = {.where = config_path};
    LK_TRY(lk_path_join(config_path, sizeof config_path, folder, "adapter_config.json", err));
    LK_TRY(lk_path_join(weights, sizeof weights, folder, "adapter_model.safetensors", err));
    if (!lk_path_exists(config_path)) return lk_fail(err, LK_ERR_NOT_FOUND, "%s is not an adapter: adapter_config.json is missing", folder);
    LK_TRY(lk_json_read(&root, config_path, MAX_CONFIG_BYTES, err));
    lk_status status = parse_config(&c, root, err);
    if (status) goto out;
    const char *base = "";
    if ((status = lk_json_opt_string(root, "base_model_name_or_path", &base, c.where, err))) goto out;
    p->base = lk_arena_strdup(&p->arena, base);
    if (!lk_path_exists(weights)) {
        status =
            lk_fail(err, LK_ERR_NOT_FOUND, "%s is missing (adapter_model.bin is not read: save with safe_serialization=True)", weights);
        goto out;
    }
    if ((status = lk_safetensors_open(&p->st, weights, err))) goto out;
    if ((status = collect_modules(p, err))) goto out;
    for (int64_t i = 0; i < p->n_modules && !status; i++) status = settle_module(&p->modules[i], &c, err);
    if (!status) status = digest_modules(p, err);
out:
    pattern_list_free(&c.ranks);
    pattern_list_free(&c.alphas);
    pattern_list_free(&c.target);
    cJSON_Delete(root);
    return status;
}

lk_status lk_peft_open(lk_peft **peft, const char *folder, lk_error *err)
{
    *peft = NULL;
    lk_peft *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", folder);
    lk_status status = open_folder(fresh, folder, err);
    if (status) {
        lk_peft_close(fresh);
        return status;
    }
    *peft = fresh;
    return LK_OK;
}

void lk_peft_close(lk_peft *peft)
{
    if (!peft) return;
    lk_safetensors_close(peft->st);
    free(peft->modules);
    lk_arena_free(&peft->arena);
    free(peft);
}

int64_t lk_peft_count(const lk_peft *peft) { return peft->n_modules; }
const lk_peft_module *lk_peft_at(const lk_peft *peft, int64_t index) { return &peft->modules[index]; }
const char *lk_peft_base(const lk_peft *peft) { return peft->base; }
const char *lk_peft_digest(const lk_peft *peft) { return peft->digest; }
const char *lk_peft_metadata(const lk_peft *peft, const char *key) { return lk_safetensors_metadata(peft->st, key); }
