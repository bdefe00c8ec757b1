/* adapter_config.json. PEFT reads a field as it needs it and ignores what it does not know; here every field is honoured, known to be
 * harmless, or refused by name: an adapter that loads but computes something else is the worst outcome.
 *
 * Patterns are Python regular expressions in PEFT; PCRE2 reads them the same way for everything that names of modules need. The
 * match limit keeps a hostile pattern from running for hours. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/peft_config.h"

#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { MAX_RANK = 65536, MATCH_LIMIT = 100000 };

/* ---- patterns ---- */

static lk_status pattern_compile(void **code, const char *format, const char *text, const char *field, const char *where, lk_error *err)
{
    size_t size = strlen(text) + 64;
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

/* *found: the pattern matches from the start of name. group, when not NULL, receives the number in the group "idx". */
static lk_status pattern_match(const lk_peft_pattern *p, const char *name, bool *found, int64_t *group, const char *where, lk_error *err)
{
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(p->code, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    lk_status status = LK_OK;
    if (!data || !context) {
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
        goto out;
    }
    pcre2_set_match_limit(context, MATCH_LIMIT);
    int n = pcre2_match(p->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, PCRE2_ANCHORED, data, context);
    *found = n >= 0;
    if (n < 0 && n != PCRE2_ERROR_NOMATCH) {
        status = lk_fail(err, LK_ERR_FORMAT, "%s: a pattern takes too many steps on \"%.200s\"; simplify it", where, name);
        goto out;
    }
    PCRE2_UCHAR digits[24];
    PCRE2_SIZE length = sizeof digits;
    if (n >= 0 && group && !pcre2_substring_copy_byname(data, (PCRE2_SPTR) "idx", digits, &length))
        *group = strtoll((const char *)digits, NULL, 10);
out:
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    return status;
}

static void patterns_free(lk_peft_patterns *list)
{
    for (int i = 0; i < list->n; i++) pcre2_code_free(list->items[i].code);
    free(list->items);
}

static lk_status patterns_add(lk_peft_patterns *list, const char *format, const char *text, const char *field, double value,
                              const char *where, lk_error *err)
{
    lk_peft_pattern *more = realloc(list->items, ((size_t)list->n + 1) * sizeof *more);
    if (!more) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    list->items = more;
    list->items[list->n] = (lk_peft_pattern){.value = value};
    LK_TRY(pattern_compile(&list->items[list->n].code, format, text, field, where, err));
    list->n++;
    return LK_OK;
}

/* rank_pattern and alpha_pattern: {regular expression of the end of a module's name: number}. */
static lk_status parse_numbers(lk_peft_patterns *list, const lk_peft_config *c, const char *field, lk_error *err)
{
    const cJSON *object = lk_json_get(c->root, field), *item;
    if (!object || cJSON_IsNull(object)) return LK_OK;
    if (!cJSON_IsObject(object)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be an object of numbers", c->where, field);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
            return lk_fail(err, LK_ERR_FORMAT, "%s: %s \"%.200s\" must be a number", c->where, field, item->string);
        LK_TRY(patterns_add(list, "(.*\\.)?(%s)$", item->string, field, item->valuedouble, c->where, err));
    }
    return LK_OK;
}

/* The value of the first pattern that matches, in the file's order, as PEFT's get_pattern_key does; else *value stays. */
static lk_status patterns_value(const lk_peft_patterns *list, const char *name, double *value, const char *where, lk_error *err)
{
    for (int i = 0; i < list->n; i++) {
        bool found;
        LK_TRY(pattern_match(&list->items[i], name, &found, NULL, where, err));
        if (!found) continue;
        *value = list->items[i].value;
        return LK_OK;
    }
    return LK_OK;
}

/* ---- fields ---- */

/* Fields that this file reads, and fields that say nothing about what a trained adapter computes: provenance and initialisation.
 * Everything that is not here must be null, false or empty. */
static const char *const known_fields[] = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "bias",
    "fan_in_fan_out",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "qalora_group_size",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "runtime_config",
};

static bool is_unset(const cJSON *item)
{
    if (cJSON_IsNull(item) || cJSON_IsFalse(item)) return true;
    if (cJSON_IsObject(item) || cJSON_IsArray(item)) return item->child == NULL;
    return cJSON_IsString(item) && item->valuestring[0] == 0;
}

static const char *advice_for(const char *field)
{
    if (!strcmp(field, "layer_replication")) return "a base with repeated layers is not supported; save the enlarged model and adapt that";
    if (!strcmp(field, "loftq_config")) return "LoftQ changes the base model's weights; save that base and use it, with this field removed";
    return "this program does not know how to honour it, and ignoring it would compute something else";
}

static lk_status check_fields(const lk_peft_config *c, lk_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, c->root)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof known_fields / sizeof *known_fields && !known; i++) known = !strcmp(known_fields[i], item->string);
        if (!known && !is_unset(item))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %.100s is set: %s", c->where, item->string, advice_for(item->string));
    }
    return LK_OK;
}

/* Some initialisations subtract the adapter's first value from the base: as trained, the factors mean nothing on the plain base. PEFT
 * writes true when it has converted such an adapter into a plain one. */
static lk_status check_init(const lk_peft_config *c, lk_error *err)
{
    const cJSON *init = lk_json_get(c->root, "init_lora_weights");
    static const char *const fine[] = {"gaussian", "eva", "orthogonal", "mica"};
    if (!cJSON_IsString(init)) return LK_OK;
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
        if (!strcmp(fine[i], init->valuestring)) return LK_OK;
    return lk_fail(
        err, LK_ERR_UNSUPPORTED,
        "%s: init_lora_weights \"%.40s\" changes the base model's weights, which this adapter alone does not carry; save it again "
        "with save_pretrained(..., path_initial_model_for_weight_conversion=...) to make it a plain one",
        c->where, init->valuestring);
}

static lk_status parse_bias(lk_peft_config *c, lk_error *err)
{
    static const char *const names[] = {"none", "all", "lora_only"};
    const char *bias = "none";
    LK_TRY(lk_json_opt_string(c->root, "bias", &bias, c->where, err));
    for (int i = 0; i < 3; i++) {
        if (strcmp(bias, names[i])) continue;
        c->bias = (lk_peft_bias)i;
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_FORMAT, "%s: bias is \"%.40s\"; none, all and lora_only are known", c->where, bias);
}

/* A list of names into *list, or a regular expression that must match whole names into patterns. */
static lk_status parse_names(const lk_peft_config *c, const char *field, const cJSON **list, lk_peft_patterns *patterns, lk_error *err)
{
    const cJSON *value = lk_json_get(c->root, field), *item;
    if (!value || cJSON_IsNull(value)) return LK_OK;
    if (cJSON_IsArray(value)) {
        cJSON_ArrayForEach(item, value)
        {
            if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must hold names", c->where, field);
        }
        *list = value;
        return LK_OK;
    }
    if (!cJSON_IsString(value)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be a list or a string", c->where, field);
    if (!strcmp(value->valuestring, "all-linear")) return LK_OK;
    return patterns_add(patterns, "(?:%s)\\z", value->valuestring, field, 0, c->where, err);
}

static lk_status parse_saved(lk_peft_config *c, lk_error *err)
{
    const cJSON *saved = lk_json_get(c->root, "modules_to_save"), *item;
    if (!saved || cJSON_IsNull(saved)) return LK_OK;
    if (!cJSON_IsArray(saved)) return lk_fail(err, LK_ERR_FORMAT, "%s: modules_to_save must be a list", c->where);
    cJSON_ArrayForEach(item, saved)
    {
        if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: modules_to_save must hold names", c->where);
        LK_TRY(patterns_add(&c->saved, "(^|.*\\.)%s($|\\..*)", item->valuestring, "modules_to_save", 0, c->where, err));
    }
    return LK_OK;
}

/* PEFT makes neither of these beside target_parameters, and so nobody knows what they would mean. */
static lk_status parse_parameters(lk_peft_config *c, lk_error *err)
{
    const cJSON *list = lk_json_get(c->root, "target_parameters"), *item;
    if (!list || is_unset(list)) return LK_OK;
    if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: target_parameters must be a list", c->where);
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: target_parameters must hold names", c->where);
    }
    if (c->dora || c->lora_bias)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s together with target_parameters is not supported (nor does PEFT make it)", c->where,
                       c->dora ? "use_dora" : "lora_bias");
    c->parameter_list = list;
    return LK_OK;
}

static bool whole_number(const cJSON *item)
{
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble <= INT32_MAX &&
           item->valuedouble == floor(item->valuedouble);
}

static lk_status parse_layers(lk_peft_config *c, lk_error *err)
{
    const cJSON *layers = lk_json_get(c->root, "layers_to_transform"), *pattern = lk_json_get(c->root, "layers_pattern"), *item;
    if (!layers || is_unset(layers)) return LK_OK;
    bool good = whole_number(layers) || cJSON_IsArray(layers);
    cJSON_ArrayForEach(item, layers) good = good && whole_number(item);
    if (!good) return lk_fail(err, LK_ERR_FORMAT, "%s: layers_to_transform must be a layer number or a list of them", c->where);
    c->layer_numbers = layers;
    if (!pattern || is_unset(pattern))
        return patterns_add(&c->layers, "%s", ".*?\\.[^.]*\\.(?P<idx>\\d+)\\.", "layers_pattern", 0, c->where, err);
    const char *format = "(?:^|.*?\\.)%s\\.(?P<idx>\\d+)\\.";
    if (cJSON_IsString(pattern)) return patterns_add(&c->layers, format, pattern->valuestring, "layers_pattern", 0, c->where, err);
    if (!cJSON_IsArray(pattern)) return lk_fail(err, LK_ERR_FORMAT, "%s: layers_pattern must be a string or a list", c->where);
    cJSON_ArrayForEach(item, pattern)
    {
        if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: layers_pattern must hold strings", c->where);
        LK_TRY(patterns_add(&c->layers, format, item->valuestring, "layers_pattern", 0, c->where, err));
    }
    return LK_OK;
}

static lk_status check_tokens(const lk_peft_config *c, const cJSON *list, lk_error *err)
{
    const cJSON *item;
    bool good = cJSON_IsArray(list);
    cJSON_ArrayForEach(item, list) good = good && whole_number(item);
    return good ? LK_OK : lk_fail(err, LK_ERR_FORMAT, "%s: trainable_token_indices must hold token numbers", c->where);
}

static lk_status parse_tokens(const lk_peft_config *c, lk_error *err)
{
    const cJSON *tokens = lk_json_get(c->root, "trainable_token_indices"), *item;
    if (!tokens || cJSON_IsNull(tokens)) return LK_OK;
    if (!cJSON_IsObject(tokens)) return check_tokens(c, tokens, err);
    cJSON_ArrayForEach(item, tokens) LK_TRY(check_tokens(c, item, err));
    return LK_OK;
}

lk_status lk_peft_config_parse(lk_peft_config *c, const cJSON *root, const char *where, lk_error *err)
{
    const char *type;
    double dropout = 0;
    bool transposed = false;
    *c = (lk_peft_config){.where = where, .root = root, .r = 8, .alpha = 8}; /* PEFT's defaults */
    if (!cJSON_IsObject(root)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    LK_TRY(lk_json_string(root, "peft_type", &type, where, err));
    if (strcmp(type, "LORA")) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: peft_type is \"%.40s\"; only LORA can be loaded", where, type);
    LK_TRY(check_fields(c, err));
    LK_TRY(check_init(c, err));
    LK_TRY(parse_bias(c, err));
    LK_TRY(lk_json_opt_int(root, "r", 1, MAX_RANK, &c->r, where, err));
    LK_TRY(lk_json_opt_number(root, "lora_alpha", -1e9, 1e9, &c->alpha, where, err));
    LK_TRY(lk_json_opt_number(root, "lora_dropout", 0, 1, &dropout, where, err));
    LK_TRY(lk_json_opt_bool(root, "use_rslora", &c->rslora, where, err));
    LK_TRY(lk_json_opt_bool(root, "use_dora", &c->dora, where, err));
    LK_TRY(lk_json_opt_bool(root, "lora_bias", &c->lora_bias, where, err));
    LK_TRY(lk_json_opt_bool(root, "ensure_weight_tying", &c->tie_tables, where, err));
    LK_TRY(lk_json_opt_bool(root, "fan_in_fan_out", &transposed, where, err));
    if (transposed)
        lk_log(LK_LOG_DEBUG, "%s: fan_in_fan_out is for transposed layers; these models have none, so as in PEFT it changes nothing",
               where);
    LK_TRY(parse_numbers(&c->ranks, c, "rank_pattern", err));
    LK_TRY(parse_numbers(&c->alphas, c, "alpha_pattern", err));
    LK_TRY(parse_saved(c, err));
    LK_TRY(parse_layers(c, err));
    LK_TRY(parse_tokens(c, err));
    LK_TRY(parse_parameters(c, err));
    LK_TRY(parse_names(c, "exclude_modules", &c->exclude_list, &c->exclude, err));
    return parse_names(c, "target_modules", &c->target_list, &c->target, err);
}

void lk_peft_config_free(lk_peft_config *c)
{
    lk_peft_patterns *all[] = {&c->ranks, &c->alphas, &c->target, &c->exclude, &c->saved, &c->layers};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) patterns_free(all[i]);
}

/* ---- questions ---- */

/* Is `name` an entry of the list, or does it end in ".entry"? */
static bool in_list(const cJSON *list, const char *name)
{
    const cJSON *item;
    size_t length = strlen(name);
    cJSON_ArrayForEach(item, list)
    {
        size_t n = strlen(item->valuestring);
        if (n > length || strcmp(name + length - n, item->valuestring)) continue;
        if (n == length || name[length - n - 1] == '.') return true;
    }
    return false;
}

static lk_status any_match(const lk_peft_patterns *list, const char *name, bool *found, const char *where, lk_error *err)
{
    *found = false;
    for (int i = 0; i < list->n && !*found; i++) LK_TRY(pattern_match(&list->items[i], name, found, NULL, where, err));
    return LK_OK;
}

/* layers_to_transform holds for modules that a list of names selects by their end, as in PEFT's check_target_module_exists. */
static lk_status in_layers(const lk_peft_config *c, const char *name, bool *found, lk_error *err)
{
    *found = true;
    const cJSON *item;
    cJSON_ArrayForEach(item, c->target_list) if (!strcmp(item->valuestring, name)) return LK_OK;
    if (!c->layer_numbers || !c->target_list) return LK_OK;
    int64_t layer = -1;
    bool matched = false;
    for (int i = 0; i < c->layers.n && !matched; i++) LK_TRY(pattern_match(&c->layers.items[i], name, &matched, &layer, c->where, err));
    *found = cJSON_IsNumber(c->layer_numbers) && (double)layer == c->layer_numbers->valuedouble;
    cJSON_ArrayForEach(item, c->layer_numbers) *found = *found || (double)layer == item->valuedouble;
    return LK_OK;
}

lk_status lk_peft_config_check_target(const lk_peft_config *c, const char *name, lk_error *err)
{
    bool found = (!c->target_list && !c->target.n) || in_list(c->target_list, name), excluded, inside, saved;
    const char *why = "there are factors for";
    if (c->target.n) LK_TRY(any_match(&c->target, name, &found, c->where, err));
    if (!found) return lk_fail(err, LK_ERR_FORMAT, "%s: %s %.250s, which target_modules does not name", c->where, why, name);
    LK_TRY(any_match(&c->exclude, name, &excluded, c->where, err));
    if (excluded || in_list(c->exclude_list, name))
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s %.250s, which exclude_modules leaves out", c->where, why, name);
    LK_TRY(in_layers(c, name, &inside, err));
    if (!inside) return lk_fail(err, LK_ERR_FORMAT, "%s: %s %.250s, which layers_to_transform leaves out", c->where, why, name);
    LK_TRY(lk_peft_config_saved(c, name, &saved, err));
    if (saved) return lk_fail(err, LK_ERR_FORMAT, "%s: %s %.250s, which modules_to_save replaces as a whole", c->where, why, name);
    return LK_OK;
}

int lk_peft_config_parameters(const lk_peft_config *c, const char *module, const char *names[LK_PEFT_PARAMETERS])
{
    /* In the order in which transformers' modules register them. Those called "experts" have the stacked ones, all others a weight. */
    static const char *const stacked[] = {"gate_up_proj", "down_proj"}, *const plain[] = {"weight"};
    const char *leaf = strrchr(module, '.');
    bool experts = leaf && !strcmp(leaf, ".experts");
    const char *const *known = experts ? stacked : plain;
    int n = 0;
    for (int i = 0; i < (experts ? 2 : 1); i++) {
        char path[700];
        snprintf(path, sizeof path, "%.600s.%s", module, known[i]);
        if (in_list(c->parameter_list, path)) names[n++] = known[i];
    }
    return n;
}

lk_status lk_peft_config_scale(const lk_peft_config *c, const char *name, int32_t *out_rank, double *out_alpha, double *scale,
                               lk_error *err)
{
    double rank = (double)c->r, alpha = c->alpha;
    LK_TRY(patterns_value(&c->ranks, name, &rank, c->where, err));
    LK_TRY(patterns_value(&c->alphas, name, &alpha, c->where, err));
    if (!(rank >= 1 && rank <= MAX_RANK) || rank != floor(rank))
        return lk_fail(err, LK_ERR_FORMAT, "%s: rank_pattern gives %.250s the rank %g; it must be a whole number, 1 to %d", c->where, name,
                       rank, MAX_RANK);
    *out_rank = (int32_t)rank;
    *out_alpha = alpha;
    *scale = c->rslora ? alpha / sqrt(rank) : alpha / rank;
    return LK_OK;
}

lk_status lk_peft_config_saved(const lk_peft_config *c, const char *name, bool *saved, lk_error *err)
{
    return any_match(&c->saved, name, saved, c->where, err);
}

const cJSON *lk_peft_config_tokens(const lk_peft_config *c, const char *name)
{
    const cJSON *tokens = lk_json_get(c->root, "trainable_token_indices"), *item;
    size_t length = strlen(name);
    if (cJSON_IsArray(tokens)) return length >= 12 && !strcmp(name + length - 12, "embed_tokens") ? tokens : NULL;
    if (!cJSON_IsObject(tokens)) return NULL;
    cJSON_ArrayForEach(item, tokens)
    {
        size_t n = strlen(item->string);
        if (n <= length && !strcmp(name + length - n, item->string) && (n == length || name[length - n - 1] == '.')) return item;
    }
    return NULL;
}
