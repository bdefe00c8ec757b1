/* From text to a checked recipe: parse, extend, set, validate, fill in defaults, read into the struct. The tree is edited before it is
 * validated, so whatever --set and extends bring passes the same schema. Reading comes last and can rely on types and ranges. */
#include "train/recipe.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "train/canonical.h"
#include "train/plan.h"
#include "train/schema.h"

enum { MAX_BYTES = 1 << 20, MAX_EXTENDS = 8 };

/* ---------------------------------------------------------------------------------------------- paths */

static lk_status absolute_member(cJSON *object, const char *key, const char *folder, lk_error *err)
{
    cJSON *item = lk_json_get(object, key);
    if (!cJSON_IsString(item) || !item->valuestring[0]) return LK_OK;
    char path[4096];
    LK_TRY(lk_path_join(path, sizeof path, folder, item->valuestring, err));
    cJSON *text = cJSON_CreateString(path);
    if (!text || !cJSON_ReplaceItemInObjectCaseSensitive(object, key, text)) {
        cJSON_Delete(text);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    }
    return LK_OK;
}

/* Before validation, so of anything that is not where it belongs it takes no notice. */
static lk_status absolute_paths(cJSON *root, const char *folder, lk_error *err)
{
    static const char *const lists[] = {"train", "eval"};
    if (cJSON_IsObject(lk_json_get(root, "base"))) LK_TRY(absolute_member(lk_json_get(root, "base"), "path", folder, err));
    const cJSON *data = lk_json_get(root, "data");
    for (int i = 0; i < 2; i++) {
        cJSON *list = cJSON_IsObject(data) ? lk_json_get(data, lists[i]) : NULL, *source;
        if (!cJSON_IsArray(list)) continue;
        cJSON_ArrayForEach(source, list)
        {
            if (cJSON_IsObject(source)) LK_TRY(absolute_member(source, "path", folder, err));
        }
    }
    return LK_OK;
}

static void absolute_folder(char out[4096], const char *folder)
{
    char real[PATH_MAX];
    snprintf(out, 4096, "%s", realpath(folder, real) ? real : folder);
}

/* ---------------------------------------------------------------------------------------------- extends */

/* Keys that exclude each other: whoever overrides one takes the other away. */
static void drop_rival(cJSON *parent, const cJSON *child)
{
    static const char *const rivals[][2] = {
        {"epochs", "steps"}, {"steps", "epochs"}, {"warmup_ratio", "warmup_steps"}, {"warmup_steps", "warmup_ratio"}};
    for (size_t i = 0; i < sizeof rivals / sizeof *rivals; i++)
        if (lk_json_get(child, rivals[i][0]) && !lk_json_get(child, rivals[i][1]))
            cJSON_DeleteItemFromObjectCaseSensitive(parent, rivals[i][1]);
}

/* Moves what child has into parent, objects key by key. */
static lk_status merge(cJSON *parent, cJSON *child, lk_error *err)
{
    drop_rival(parent, child);
    while (child->child) {
        cJSON *item = cJSON_DetachItemViaPointer(child, child->child), *old = lk_json_get(parent, item->string);
        if (cJSON_IsObject(item) && cJSON_IsObject(old)) {
            lk_status status = merge(old, item, err);
            cJSON_Delete(item);
            if (status) return status;
            continue;
        }
        char *key = strdup(item->string);
        if (old) cJSON_DeleteItemFromObjectCaseSensitive(parent, item->string);
        bool added = key && cJSON_AddItemToObject(parent, key, item);
        free(key);
        if (added) continue;
        cJSON_Delete(item);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    }
    return LK_OK;
}

static lk_status parse_tree(cJSON **root, const char *text, size_t size, const char *where, const char *folder, int depth, lk_error *err);

static lk_status read_tree(cJSON **root, const char *path, int depth, lk_error *err)
{
    char *text, folder[4096], full[4096];
    size_t size;
    *root = NULL;
    LK_TRY(lk_path_folder(folder, sizeof folder, path, err));
    absolute_folder(full, folder);
    LK_TRY(lk_file_read(path, MAX_BYTES, &text, &size, err));
    lk_status status = parse_tree(root, text, size, path, full, depth, err);
    free(text);
    return status;
}

static lk_status extend(cJSON **root, const char *where, const char *folder, int depth, lk_error *err)
{
    const cJSON *extends = lk_json_get(*root, "extends");
    if (!cJSON_IsString(extends)) return LK_OK;
    if (depth >= MAX_EXTENDS)
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: extends is more than %d recipes deep (a circle?)", where, MAX_EXTENDS);
    char path[4096];
    LK_TRY(lk_path_join(path, sizeof path, folder, extends->valuestring, err));
    cJSON *parent;
    lk_status status = read_tree(&parent, path, depth + 1, err);
    if (status) return lk_error_prefix(err, status, "%s: extends", where);
    cJSON_DeleteItemFromObjectCaseSensitive(*root, "extends");
    status = merge(parent, *root, err);
    cJSON_Delete(*root);
    *root = parent;
    return status;
}

static lk_status parse_tree(cJSON **root, const char *text, size_t size, const char *where, const char *folder, int depth, lk_error *err)
{
    LK_TRY(lk_json_parse_commented(root, text, size, where, err));
    lk_status status = LK_OK;
    if (!cJSON_IsObject(*root)) status = lk_fail(err, LK_ERR_ARGUMENT, "%s: a recipe is a JSON object", where);
    if (!status) status = absolute_paths(*root, folder, err);
    if (!status) status = extend(root, where, folder, depth, err);
    if (!status) return LK_OK;
    cJSON_Delete(*root);
    *root = NULL;
    return status;
}

/* ---------------------------------------------------------------------------------------------- --set */

static lk_status bad_set(const char *set, const char *why, lk_error *err)
{
    return lk_fail(err, LK_ERR_ARGUMENT, "--set %.100s: %s (wanted: key.key=value, as in optim.lr=1e-4 or data.train[0].path=a.jsonl)", set,
                   why);
}

/* The value as JSON, else as the text itself. */
static cJSON *set_value(const char *text)
{
    cJSON *value = NULL;
    if (!lk_json_parse(&value, text, strlen(text), "--set", NULL)) return value;
    return cJSON_CreateString(text);
}

/* One step of the path: "key" or "key[3]"; key[0] is 0 for a bare index. *more: where the next step begins, or NULL. */
static bool next_part(const char *p, char key[100], long *index, const char **more)
{
    size_t n = strcspn(p, ".[");
    if (n >= 100) return false;
    memcpy(key, p, n);
    key[n] = 0;
    p += n;
    *index = -1;
    if (*p == '[') {
        char *end;
        *index = strtol(p + 1, &end, 10);
        if (end == p + 1 || *end != ']' || *index < 0 || *index > 10000) return false;
        p = end + 1;
    }
    if (*p && *p != '.' && *p != '[') return false;
    *more = *p == '.' ? p + 1 : *p ? p : NULL;
    return key[0] != 0 && (!*more || **more);
}

static lk_status apply_set(cJSON *root, const char *set, const char *folder, lk_error *err)
{
    const char *equals = strchr(set, '=');
    if (!equals || equals == set) return bad_set(set, "no key=value", err);
    char path[400], key[100];
    snprintf(path, sizeof path, "%.*s", (int)(equals - set), set);
    if ((size_t)(equals - set) >= sizeof path) return bad_set(set, "the key is too long", err);
    if (!strcmp(path, "extends")) return bad_set(set, "extends can only stand in a file", err);
    cJSON *at = root;
    for (const char *p = path; p;) {
        long index;
        const char *more;
        if (!next_part(p, key, &index, &more)) return bad_set(set, "the key is malformed", err);
        cJSON *child = lk_json_get(at, key);
        if (index >= 0) {
            child = cJSON_IsArray(child) ? cJSON_GetArrayItem(child, (int)index) : NULL;
            if (!child) return bad_set(set, "there is no such entry in that list", err);
        }
        if (!more) {
            cJSON *value = set_value(equals + 1);
            if (!value) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
            drop_rival(at, &(cJSON){.type = cJSON_Object, .child = &(cJSON){.type = cJSON_Number, .string = key}});
            bool done;
            if (index >= 0)
                done = cJSON_ReplaceItemInArray(lk_json_get(at, key), (int)index, value);
            else if (child)
                done = cJSON_ReplaceItemInObjectCaseSensitive(at, key, value);
            else
                done = cJSON_AddItemToObject(at, key, value);
            if (!done) {
                cJSON_Delete(value);
                return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
            }
            break;
        }
        if (!child) child = cJSON_AddObjectToObject(at, key);
        if (!cJSON_IsObject(child)) return bad_set(set, "the part before the last dot is not an object", err);
        at = child;
        p = more;
    }
    return absolute_paths(root, folder, err);
}

/* ---------------------------------------------------------------------------------------------- sizes */

bool lk_parse_bytes(const char *text, size_t *bytes)
{
    static const struct {
        const char *unit;
        double factor;
    } units[] = {{"", 1},     {"B", 1},    {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"KB", 1e3},
                 {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},    {"K", 0x1p10},   {"M", 0x1p20},   {"G", 0x1p30},   {"T", 0x1p40}};
    char *end;
    double number = strtod(text, &end);
    if (end == text || !(number > 0)) return false;
    while (*end == ' ') end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(end, units[i].unit)) continue;
        double total = number * units[i].factor;
        if (!(total >= 1 && total < 0x1p62)) return false;
        *bytes = (size_t)total;
        return true;
    }
    return false;
}

/* ---------------------------------------------------------------------------------------------- reading */

static const cJSON *member(const cJSON *root, const char *section, const char *key) { return lk_json_get(lk_json_get(root, section), key); }
static double number(const cJSON *root, const char *section, const char *key) { return member(root, section, key)->valuedouble; }
static int64_t whole(const cJSON *root, const char *section, const char *key)
{
    const cJSON *item = member(root, section, key);
    return item ? (int64_t)item->valuedouble : 0;
}
static const char *word(const cJSON *root, const char *section, const char *key) { return member(root, section, key)->valuestring; }

static lk_data_format format_of(const char *name)
{
    static const char *const names[] = {[LK_DATA_MESSAGES] = "messages",
                                        [LK_DATA_COMPLETION] = "completion",
                                        [LK_DATA_TEXT] = "text",
                                        [LK_DATA_ALPACA] = "alpaca",
                                        [LK_DATA_SHAREGPT] = "sharegpt"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (!strcmp(name, names[i])) return (lk_data_format)i;
    return LK_DATA_MESSAGES; /* the schema lets nothing else through */
}

static lk_status read_sources(const cJSON *list, lk_source **out, int *n, lk_error *err)
{
    *n = cJSON_GetArraySize(list);
    *out = calloc((size_t)*n + 1, sizeof **out);
    if (!*out) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        lk_source *s = &(*out)[i++];
        const cJSON *format = lk_json_get(item, "format");
        s->path = lk_json_get(item, "path")->valuestring;
        if (cJSON_IsString(format)) {
            s->format = format_of(format->valuestring);
        } else {
            s->format = LK_DATA_COMPLETION;
            s->prompt_field = lk_json_get(format, "prompt")->valuestring;
            s->completion_field = lk_json_get(format, "completion")->valuestring;
        }
    }
    return LK_OK;
}

/* Beside the targets: target_parameters. Which of the targets: layers_to_transform and exclude. */
static lk_status read_choice(lk_recipe *r, const cJSON *a, lk_error *err)
{
    const cJSON *layers = lk_json_get(a, "layers_to_transform"), *exclude = lk_json_get(a, "exclude"),
                *parameters = lk_json_get(a, "target_parameters"), *item;
    lk_adapter_spec *s = &r->adapter;
    r->layers = calloc((size_t)cJSON_GetArraySize(layers) + 1, sizeof *r->layers);
    r->exclude = calloc((size_t)cJSON_GetArraySize(exclude) + 1, sizeof *r->exclude);
    r->parameters = calloc((size_t)cJSON_GetArraySize(parameters) + 1, sizeof *r->parameters);
    if (!r->layers || !r->exclude || !r->parameters) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    s->layers = r->layers;
    s->exclude = r->exclude;
    s->parameters = r->parameters;
    cJSON_ArrayForEach(item, parameters) r->parameters[s->n_parameters++] = item->valuestring;
    cJSON_ArrayForEach(item, layers) r->layers[s->n_layers++] = (int32_t)item->valuedouble;
    cJSON_ArrayForEach(item, exclude) r->exclude[s->n_exclude++] = item->valuestring;
    return LK_OK;
}

/* What is trained beside factors. Whether the model has it is for lk_adapter_sizes_of to say. */
static lk_status read_whole(lk_recipe *r, const cJSON *a, lk_error *err)
{
    const cJSON *tokens = lk_json_get(a, "trainable_token_indices"), *item;
    const char *bias = lk_json_get(a, "bias")->valuestring;
    lk_adapter_spec *s = &r->adapter;
    s->bias = !strcmp(bias, "all") ? LK_BIAS_ALL : !strcmp(bias, "lora_only") ? LK_BIAS_LORA_ONLY : LK_BIAS_NONE;
    s->lora_bias = cJSON_IsTrue(lk_json_get(a, "lora_bias"));
    s->tie_tables = cJSON_IsTrue(lk_json_get(a, "ensure_weight_tying"));
    cJSON_ArrayForEach(item, lk_json_get(a, "modules_to_save"))
    {
        bool head = !strcmp(item->valuestring, "lm_head");
        *(head ? &s->save_head : &s->save_embedding) = true;
    }
    if (cJSON_IsObject(tokens)) tokens = lk_json_get(tokens, "embed_tokens");
    r->tokens = calloc((size_t)cJSON_GetArraySize(tokens) + 1, sizeof *r->tokens);
    if (!r->tokens) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    s->tokens = r->tokens;
    cJSON_ArrayForEach(item, tokens) r->tokens[s->n_tokens++] = (int32_t)item->valuedouble;
    return LK_OK;
}

/* PEFT's target_modules: "all-linear", a regular expression, or a list of names and ends of paths, whose last words are checked here. */
static lk_status read_targets(lk_recipe *r, const cJSON *a, const char *where, lk_error *err)
{
    const cJSON *targets = lk_json_get(a, "targets"), *item;
    lk_adapter_spec *s = &r->adapter;
    const char *names[64];
    char place[300];
    int n = 0;
    snprintf(place, sizeof place, "%.200s: adapter.targets", where);
    if (cJSON_IsString(targets) && strcmp(targets->valuestring, "all-linear")) {
        s->expression = targets->valuestring;
        if (!cJSON_GetArraySize(lk_json_get(a, "layers_to_transform"))) return LK_OK;
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: a regular expression says itself which layers; leave layers_to_transform out", place);
    }
    r->names = calloc((size_t)cJSON_GetArraySize(targets) + 1, sizeof *r->names);
    if (!r->names) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    s->names = r->names;
    if (cJSON_IsString(targets)) names[n++] = targets->valuestring;
    cJSON_ArrayForEach(item, targets)
    {
        const char *dot = strrchr(item->valuestring, '.');
        bool one[LK_N_MODULES];
        if (!strcmp(item->valuestring, "embed_tokens")) {
            s->target_embedding = true;
        } else if (!strcmp(item->valuestring, "lm_head")) {
            s->target_head = true;
        } else if (dot) {
            const char *last = dot + 1;
            LK_TRY(lk_adapter_targets(one, &last, 1, place, err));
            r->names[s->n_names++] = item->valuestring;
        } else if (n < 64) {
            names[n++] = item->valuestring;
        }
    }
    if (!cJSON_IsString(targets) && !cJSON_GetArraySize(targets) && !cJSON_GetArraySize(lk_json_get(a, "target_parameters")))
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: at least 1 wanted", place);
    return lk_adapter_targets(s->targets, names, n, place, err);
}

static lk_status read_adapter(lk_recipe *r, const char *where, lk_error *err)
{
    const cJSON *a = lk_json_get(r->resolved, "adapter"), *item;
    const cJSON *ranks = lk_json_get(a, "rank_pattern"), *alphas = lk_json_get(a, "alpha_pattern");
    lk_adapter_spec *s = &r->adapter;
    s->rank = (int32_t)lk_json_get(a, "r")->valuedouble;
    s->alpha = lk_json_get(a, "alpha")->valuedouble;
    s->dropout = lk_json_get(a, "dropout")->valuedouble;
    s->use_rslora = cJSON_IsTrue(lk_json_get(a, "rslora"));
    s->use_dora = cJSON_IsTrue(lk_json_get(a, "dora"));
    const char *init = lk_json_get(a, "init")->valuestring;
    s->init = !strcmp(init, "pissa") ? LK_INIT_PISSA : !strcmp(init, "gaussian") ? LK_INIT_GAUSSIAN : LK_INIT_DEFAULT;
    LK_TRY(read_targets(r, a, where, err));
    r->patterns = calloc((size_t)(cJSON_GetArraySize(ranks) + cJSON_GetArraySize(alphas)) + 1, sizeof *r->patterns);
    if (!r->patterns) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    s->patterns = r->patterns;
    cJSON_ArrayForEach(item, ranks) r->patterns[s->n_patterns++] =
        (lk_adapter_pattern){.pattern = item->string, .rank = (int32_t)item->valuedouble};
    cJSON_ArrayForEach(item, alphas) r->patterns[s->n_patterns++] =
        (lk_adapter_pattern){.pattern = item->string, .alpha = item->valuedouble};
    LK_TRY(read_choice(r, a, err));
    LK_TRY(read_whole(r, a, err));
    return LK_OK;
}

static lk_status read_memory(lk_recipe *r, const char *where, lk_error *err)
{
    const cJSON *checkpointing = member(r->resolved, "memory", "checkpointing"), *budget = member(r->resolved, "memory", "budget");
    if (cJSON_IsNumber(checkpointing))
        r->checkpointing = (int64_t)checkpointing->valuedouble;
    else
        r->checkpointing = !strcmp(checkpointing->valuestring, "auto")   ? LK_CHECKPOINTING_AUTO
                           : !strcmp(checkpointing->valuestring, "full") ? 1
                                                                         : LK_CHECKPOINTING_NONE;
    r->offload = cJSON_IsTrue(member(r->resolved, "memory", "offload"));
    r->budget = 0;
    if (cJSON_IsNumber(budget))
        r->budget = (size_t)budget->valuedouble;
    else if (strcmp(budget->valuestring, "auto") && !lk_parse_bytes(budget->valuestring, &r->budget))
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: memory.budget: \"%.60s\" is no size; write bytes, \"24GiB\" or \"auto\"", where,
                       budget->valuestring);
    return LK_OK;
}

static lk_status read_all(lk_recipe *r, const char *where, lk_error *err)
{
    const cJSON *root = r->resolved, *betas = member(root, "optim", "betas");
    r->base_path = word(root, "base", "path");
    r->quant = strcmp(word(root, "base", "quant"), "nf4") ? LK_QUANT_NONE : LK_QUANT_NF4;
    r->compute = strcmp(word(root, "base", "dtype"), "bf16") ? LK_F32 : LK_BF16;
    LK_TRY(read_adapter(r, where, err));
    LK_TRY(read_sources(member(root, "data", "train"), &r->train, &r->n_train, err));
    LK_TRY(read_sources(member(root, "data", "eval"), &r->eval, &r->n_eval, err));
    if (r->n_train == 0) return lk_fail(err, LK_ERR_ARGUMENT, "%s: data.train: at least one source wanted", where);
    r->max_length = whole(root, "data", "max_length");
    r->loss_on = word(root, "data", "loss_on");
    const char *chat = word(root, "data", "chat_format");
    r->chat_format = strcmp(chat, "auto") ? chat : NULL;
    (void)lk_adamw_kind_parse(word(root, "optim", "name"), &r->optim); /* the schema knows the same names */
    r->lr = number(root, "optim", "lr");
    r->beta1 = cJSON_GetArrayItem(betas, 0)->valuedouble;
    r->beta2 = cJSON_GetArrayItem(betas, 1)->valuedouble;
    r->eps = number(root, "optim", "eps");
    r->weight_decay = number(root, "optim", "weight_decay");
    r->clip = number(root, "optim", "clip");
    r->schedule = (lk_schedule_kind)lk_schedule_parse(word(root, "schedule", "name"));
    r->warmup_ratio = number(root, "schedule", "warmup_ratio");
    r->warmup_steps = whole(root, "schedule", "warmup_steps");
    if (r->warmup_ratio > 0 && r->warmup_steps > 0)
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: schedule: give warmup_ratio or warmup_steps, not both", where);
    r->rows = whole(root, "batch", "rows");
    r->accumulate = whole(root, "batch", "accumulate");
    r->epochs = whole(root, "batch", "epochs");
    r->steps = whole(root, "batch", "steps");
    if (r->rows * r->max_length > INT32_MAX)
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: batch.rows * data.max_length is %lld tokens in one micro-batch; at most %d", where,
                       (long long)(r->rows * r->max_length), INT32_MAX);
    LK_TRY(read_memory(r, where, err));
    r->eval_every = whole(root, "eval", "every");
    r->checkpoint_every = whole(root, "checkpoint", "every");
    r->checkpoint_keep = whole(root, "checkpoint", "keep");
    r->log_every = whole(root, "log", "every");
    r->seed = (uint64_t)lk_json_get(root, "seed")->valuedouble;
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- digest and essence */

/* Where the data and the base lie, how memory is used, when it is reported: free to change when a run is resumed. What they contain is
 * compared by digest. */
static lk_status make_essence(lk_recipe *r, lk_error *err)
{
    static const char *const free_keys[] = {"$schema", "memory", "eval", "checkpoint", "log"};
    cJSON *copy = cJSON_Duplicate(r->resolved, 1), *source;
    if (!copy) return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    for (size_t i = 0; i < sizeof free_keys / sizeof *free_keys; i++) cJSON_DeleteItemFromObjectCaseSensitive(copy, free_keys[i]);
    cJSON_DeleteItemFromObjectCaseSensitive(lk_json_get(copy, "base"), "path");
    cJSON_DeleteItemFromObjectCaseSensitive(lk_json_get(copy, "data"), "eval");
    cJSON_ArrayForEach(source, lk_json_get(lk_json_get(copy, "data"), "train")) cJSON_DeleteItemFromObjectCaseSensitive(source, "path");
    r->essence = lk_canonical_json(copy);
    cJSON_Delete(copy);
    char *all = lk_canonical_json(r->resolved);
    if (all) lk_sha256_bytes(all, strlen(all), r->digest);
    bool made = all && r->essence;
    free(all);
    return made ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
}

/* ---------------------------------------------------------------------------------------------- putting it together */

static lk_status validate(lk_recipe *r, const char *where, lk_error *err)
{
    cJSON *schema;
    LK_TRY(lk_json_parse(&schema, (const char *)lk_recipe_schema, lk_recipe_schema_size, "recipe.schema.json", err));
    lk_status status = lk_schema_check(schema, r->resolved, where, err);
    if (!status) status = lk_schema_fill(schema, r->resolved, err);
    cJSON_Delete(schema);
    return status;
}

/* Takes the tree. */
static lk_status finish(lk_recipe **out, cJSON *root, const char *where, const char *folder, const char *const *sets, int n_sets,
                        lk_error *err)
{
    lk_recipe *r = calloc(1, sizeof *r);
    if (!r) {
        cJSON_Delete(root);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a recipe");
    }
    r->resolved = root;
    snprintf(r->path, sizeof r->path, "%s", where);
    const char *slash = strrchr(where, '/');
    snprintf(r->name, sizeof r->name, "%s", slash ? slash + 1 : where);
    char *dot = strrchr(r->name, '.');
    if (dot && dot != r->name) *dot = 0;
    lk_status status = LK_OK;
    for (int i = 0; i < n_sets && !status; i++) status = apply_set(root, sets[i], folder, err);
    if (!status) status = validate(r, where, err);
    if (!status) status = read_all(r, where, err);
    if (!status) status = make_essence(r, err);
    if (status)
        lk_recipe_free(r);
    else
        *out = r;
    return status;
}

/* A recipe that cannot be read or parsed is the user's mistake, like one that says the wrong thing. */
static lk_status users_mistake(lk_status status, lk_error *err)
{
    if (status != LK_ERR_FORMAT && status != LK_ERR_IO) return status;
    if (err) err->code = LK_ERR_ARGUMENT;
    return LK_ERR_ARGUMENT;
}

lk_status lk_recipe_load(lk_recipe **recipe, const char *path, const char *const *sets, int n_sets, lk_error *err)
{
    *recipe = NULL;
    char folder[4096], full[4096];
    cJSON *root;
    LK_TRY(lk_path_folder(folder, sizeof folder, path, err));
    absolute_folder(full, folder);
    lk_status status = read_tree(&root, path, 0, err);
    if (!status) status = finish(recipe, root, path, full, sets, n_sets, err);
    return users_mistake(status, err);
}

lk_status lk_recipe_parse(lk_recipe **recipe, const char *text, size_t size, const char *where, const char *folder, const char *const *sets,
                          int n_sets, lk_error *err)
{
    *recipe = NULL;
    cJSON *root;
    lk_status status = parse_tree(&root, text, size, where, folder, 0, err);
    if (!status) status = finish(recipe, root, where, folder, sets, n_sets, err);
    return users_mistake(status, err);
}

void lk_recipe_free(lk_recipe *r)
{
    if (!r) return;
    cJSON_Delete(r->resolved);
    free(r->essence);
    free(r->patterns);
    free(r->layers);
    free(r->exclude);
    free(r->names);
    free(r->parameters);
    free(r->tokens);
    free(r->train);
    free(r->eval);
    free(r);
}
