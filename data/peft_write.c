/* Writing PEFT LoRA folders: one config for modules that may differ in rank and alpha.
 *
 * PEFT's config has one r and one lora_alpha, and pattern dicts for the exceptions. The commonest value becomes the config's own. A
 * leaf name ("q_proj") whose modules agree on another value gets one pattern; a leaf whose modules disagree gets one pattern for each
 * of them, anchored to the whole path, so that no pattern can reach a module that it was not written for.
 *
 * target_modules holds leaf names where every layer has them, and whole paths otherwise: PEFT would make (idle) adapters in the
 * layers that were left out, and warn about each. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "data/peft.h"

static const char *leaf_of(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static bool same_leaf(const lk_peft_write_module *a, const lk_peft_write_module *b) { return !strcmp(leaf_of(a->name), leaf_of(b->name)); }

static double rank_value(const lk_peft_write_module *m) { return (double)m->rank; }
static double alpha_value(const lk_peft_write_module *m) { return m->alpha; }
typedef double value_of(const lk_peft_write_module *m);

/* The first module that has this one's leaf: the leaf is dealt with there, once. */
static bool first_of_leaf(const lk_peft_write_module *modules, int64_t index)
{
    for (int64_t i = 0; i < index; i++)
        if (same_leaf(&modules[i], &modules[index])) return false;
    return true;
}

static double commonest(const lk_peft_write_module *modules, int64_t n, value_of *value)
{
    double best = value(&modules[0]);
    int64_t best_count = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t count = 0;
        for (int64_t j = 0; j < n; j++) count += value(&modules[j]) == value(&modules[i]);
        if (count <= best_count) continue;
        best = value(&modules[i]);
        best_count = count;
    }
    return best;
}

/* Keys are regular expressions of the end of a name; "^" makes one the whole name, as PEFT's documentation writes it. A dot matches
 * itself and, harmlessly, more: paths never differ by a dot only. */
static bool add_pattern(cJSON *object, const char *name, bool whole, double value)
{
    char key[600];
    snprintf(key, sizeof key, "%s%.500s", whole ? "^" : "", name);
    return lk_json_add_number(object, key, value) != NULL;
}

static bool add_patterns(cJSON *root, const char *field, const lk_peft_write_module *modules, int64_t n, double common, value_of *value)
{
    cJSON *object = cJSON_AddObjectToObject(root, field);
    if (!object) return false;
    for (int64_t i = 0; i < n; i++) {
        if (!first_of_leaf(modules, i)) continue;
        bool agree = true;
        for (int64_t j = i + 1; j < n && agree; j++)
            agree = !same_leaf(&modules[i], &modules[j]) || value(&modules[j]) == value(&modules[i]);
        if (agree && value(&modules[i]) == common) continue;
        if (agree && !add_pattern(object, leaf_of(modules[i].name), false, value(&modules[i]))) return false;
        for (int64_t j = i; j < n && !agree; j++)
            if (same_leaf(&modules[i], &modules[j]) && value(&modules[j]) != common &&
                !add_pattern(object, modules[j].name, true, value(&modules[j])))
                return false;
    }
    return true;
}

/* The number after the first ".layers."-like segment ("model.layers.12.mlp" gives 12), or -1. */
static int64_t layer_of(const char *name)
{
    for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.'))
        if (dot[1] >= '0' && dot[1] <= '9') return strtoll(dot + 1, NULL, 10);
    return -1;
}

/* Whether this leaf is adapted in every layer from 0 to the last that the adapter knows of. */
static bool leaf_everywhere(const lk_peft_write_module *modules, int64_t n, int64_t index, int64_t n_layers)
{
    if (layer_of(modules[index].name) < 0) return true;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += same_leaf(&modules[i], &modules[index]);
    return count >= n_layers;
}

/* stacked: of target_parameters, whose names are matched like those of modules. */
static bool add_targets(cJSON *root, const char *field, const lk_peft_write_module *modules, int64_t n, bool stacked, bool whole_paths)
{
    cJSON *targets = cJSON_AddArrayToObject(root, field);
    int64_t n_layers = 0;
    bool everywhere = !whole_paths;
    for (int64_t i = 0; i < n; i++)
        if (layer_of(modules[i].name) >= n_layers) n_layers = layer_of(modules[i].name) + 1;
    for (int64_t i = 0; i < n && everywhere; i++) everywhere = leaf_everywhere(modules, n, i, n_layers);
    for (int64_t i = 0; i < n; i++) {
        if ((modules[i].experts > 0) != stacked || (everywhere && !first_of_leaf(modules, i))) continue;
        if (!cJSON_AddItemToArray(targets, cJSON_CreateString(everywhere ? leaf_of(modules[i].name) : modules[i].name))) return false;
    }
    return true;
}

static bool add_parameters(cJSON *root, const lk_peft_write_module *modules, int64_t n, bool whole_paths)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++) any = any || modules[i].experts;
    return !any || add_targets(root, "target_parameters", modules, n, true, whole_paths);
}

static bool any_bias(const lk_peft_write_module *modules, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (modules[i].bias) return true;
    return false;
}

static bool add_saved(cJSON *root, const lk_peft_write_options *o)
{
    if (!o->n_modules_to_save) return cJSON_AddNullToObject(root, "modules_to_save") != NULL;
    cJSON *saved = cJSON_AddArrayToObject(root, "modules_to_save");
    for (int i = 0; saved && i < o->n_modules_to_save; i++)
        if (!cJSON_AddItemToArray(saved, cJSON_CreateString(o->modules_to_save[i]))) return false;
    return saved != NULL;
}

/* A list: PEFT gives it to the embedding, and to a head that is tied to it. */
static bool add_tokens(cJSON *root, const lk_peft_write_options *o)
{
    if (!o->n_tokens) return cJSON_AddNullToObject(root, "trainable_token_indices") != NULL;
    cJSON *ids = cJSON_AddArrayToObject(root, "trainable_token_indices");
    for (int32_t i = 0; ids && i < o->n_tokens; i++)
        if (!cJSON_AddItemToArray(ids, cJSON_CreateNumber((double)o->tokens[i]))) return false;
    return ids != NULL;
}

static cJSON *make_config(const lk_peft_write_module *modules, int64_t n, const lk_peft_write_options *options)
{
    double r = commonest(modules, n, rank_value), alpha = commonest(modules, n, alpha_value);
    cJSON *root = cJSON_CreateObject();
    bool complete =
        cJSON_AddStringToObject(root, "peft_type", "LORA") && cJSON_AddStringToObject(root, "task_type", "CAUSAL_LM") &&
        cJSON_AddStringToObject(root, "base_model_name_or_path", options->base ? options->base : "") && lk_json_add_number(root, "r", r) &&
        lk_json_add_number(root, "lora_alpha", alpha) && lk_json_add_number(root, "lora_dropout", options->dropout) &&
        add_targets(root, "target_modules", modules, n, false, options->whole_paths) &&
        add_parameters(root, modules, n, options->whole_paths) && add_patterns(root, "rank_pattern", modules, n, r, rank_value) &&
        add_patterns(root, "alpha_pattern", modules, n, alpha, alpha_value) &&
        cJSON_AddBoolToObject(root, "use_rslora", options->use_rslora) &&
        cJSON_AddBoolToObject(root, "use_dora", modules[0].magnitude != NULL) &&
        cJSON_AddBoolToObject(root, "lora_bias", any_bias(modules, n)) &&
        cJSON_AddStringToObject(root, "bias", options->bias ? options->bias : "none") && add_saved(root, options) &&
        add_tokens(root, options) && cJSON_AddBoolToObject(root, "ensure_weight_tying", options->tie_tables) &&
        cJSON_AddFalseToObject(root, "fan_in_fan_out") && cJSON_AddTrueToObject(root, "init_lora_weights") &&
        cJSON_AddTrueToObject(root, "inference_mode");
    if (complete) return root;
    cJSON_Delete(root);
    return NULL;
}

static lk_status write_config(const char *folder, const lk_peft_write_module *modules, int64_t n, const lk_peft_write_options *options,
                              lk_error *err)
{
    char path[4096];
    LK_TRY(lk_path_join(path, sizeof path, folder, "adapter_config.json", err));
    cJSON *root = make_config(modules, n, options);
    char *text = root ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    if (!text) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    lk_status status = lk_file_replace(path, text, strlen(text), err);
    cJSON_free(text);
    return status;
}

/* ---- weights ---- */

/* The module that has the factors. Of two parameters of one module PEFT wraps the first ("gate_up_proj") further in. */
static void owner_of(char *out, size_t size, const lk_peft_write_module *modules, int64_t n, const lk_peft_write_module *m)
{
    size_t bare = m->experts ? (size_t)(leaf_of(m->name) - 1 - m->name) : strlen(m->name);
    bool wrapped = false;
    for (int64_t i = 0; m->experts && i < n && !wrapped; i++)
        wrapped = modules[i].experts && !strcmp(leaf_of(m->name), "gate_up_proj") && !strcmp(leaf_of(modules[i].name), "down_proj") &&
                  !strncmp(modules[i].name, m->name, bare + 1);
    snprintf(out, size, "%.*s%s", (int)bare, m->name, wrapped ? ".base_layer" : "");
}

/* All tensors one after the other, twice: to declare them and to write them. */
typedef lk_status put_tensor(lk_st_writer *w, const char *name, int n_dims, const int64_t *shape, const float *values, lk_error *err);

static lk_status declare(lk_st_writer *w, const char *name, int n_dims, const int64_t *shape, const float *values, lk_error *err)
{
    (void)values;
    return lk_st_writer_declare(w, name, LK_F32, n_dims, shape, err);
}

static lk_status write_values(lk_st_writer *w, const char *name, int n_dims, const int64_t *shape, const float *values, lk_error *err)
{
    int64_t n = shape[0] * (n_dims > 1 ? shape[1] : 1);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return lk_fail(err, LK_ERR_ARGUMENT, "%.300s holds %s: the training diverged, the adapter is not written", name,
                           isnan(values[i]) ? "NaN" : "an infinity");
    return lk_st_writer_write(w, values, (size_t)n * sizeof *values, err);
}

/* The tensors of one module, and what its name is in the file. */
typedef struct putting {
    lk_st_writer *w;
    put_tensor *put;
    const char *owner;
    lk_error *err;
} putting;

static lk_status put_part(const putting *p, const char *part, int n_dims, int64_t rows, int64_t columns, const float *values)
{
    char name[600];
    snprintf(name, sizeof name, "base_model.model.%.500s.%s", p->owner, part);
    return p->put(p->w, name, n_dims, (const int64_t[]){rows, columns}, values, p->err);
}

static lk_status put_embedding(const putting *p, const lk_peft_write_module *m)
{
    float *turned = malloc((size_t)(m->rank * m->in) * sizeof *turned);
    if (!turned) return lk_fail(p->err, LK_ERR_MEMORY, "no memory for the factors of %.250s", m->name);
    for (int64_t v = 0; v < m->in; v++)
        for (int32_t r = 0; r < m->rank; r++) turned[r * m->in + v] = m->a[v * m->rank + r];
    lk_status status = put_part(p, "lora_embedding_A", 2, m->rank, m->in, turned);
    if (!status) status = put_part(p, "lora_embedding_B", 2, m->out, m->rank, m->b);
    free(turned);
    return status;
}

static lk_status put_module(const putting *p, const lk_peft_write_module *m)
{
    int64_t rank = m->rank * (m->experts ? m->experts : 1);
    if (m->embedding) return put_embedding(p, m);
    LK_TRY(put_part(p, "lora_A.weight", 2, rank, m->in, m->a));
    LK_TRY(put_part(p, "lora_B.weight", 2, m->out, rank, m->b));
    if (m->bias) LK_TRY(put_part(p, "lora_B.bias", 1, m->out, 0, m->bias));
    return m->magnitude ? put_part(p, "lora_magnitude_vector", 1, m->out, 0, m->magnitude) : LK_OK;
}

static lk_status put_all(lk_st_writer *w, put_tensor *put, const lk_peft_write_module *modules, int64_t n,
                         const lk_peft_write_options *options, lk_error *err)
{
    for (int64_t i = 0; i < n; i++) {
        char owner[540];
        owner_of(owner, sizeof owner, modules, n, &modules[i]);
        putting p = {w, put, owner, err};
        LK_TRY(put_module(&p, &modules[i]));
    }
    for (int64_t i = 0; i < options->n_values; i++) {
        const lk_peft_write_value *v = &options->values[i];
        char name[600];
        snprintf(name, sizeof name, "base_model.model.%.500s", v->name);
        LK_TRY(put(w, name, v->n_dims, v->shape, v->values, err));
    }
    return LK_OK;
}

static lk_status write_weights(const char *folder, const lk_peft_write_module *modules, int64_t n, const lk_peft_write_options *options,
                               lk_error *err)
{
    lk_st_writer *w;
    LK_TRY(lk_st_writer_create(&w, folder, "adapter_model", 0, err));
    lk_status status = LK_OK;
    if (options->base_identity) status = lk_st_writer_metadata(w, "lorikeet.base_identity", options->base_identity, err);
    if (!status && options->base_digest) status = lk_st_writer_metadata(w, "lorikeet.base_digest", options->base_digest, err);
    if (!status && options->quantization) status = lk_st_writer_metadata(w, "lorikeet.quantization", options->quantization, err);
    if (!status) status = put_all(w, declare, modules, n, options, err);
    if (!status) status = put_all(w, write_values, modules, n, options, err);
    if (!status) status = lk_st_writer_commit(w, err);
    if (status) lk_st_writer_abort(w);
    return status;
}

/* Letters, digits, _, - and dots: what Python's attribute paths are made of, and nothing that a regular expression treats specially. */
static bool is_path(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.");
    return n > 0 && n <= 500 && !name[n];
}

lk_status lk_peft_write(const char *folder, const lk_peft_write_module *modules, int64_t n_modules, const lk_peft_write_options *options,
                        lk_error *err)
{
    if (n_modules < 1) return lk_fail(err, LK_ERR_ARGUMENT, "%s: an adapter needs at least one module", folder);
    for (int64_t i = 0; i < n_modules; i++) {
        const lk_peft_write_module *m = &modules[i];
        if (!is_path(m->name)) return lk_fail(err, LK_ERR_ARGUMENT, "\"%.250s\" is not a module path", m->name);
        if (m->rank < 1 || m->in < 1 || m->out < 1 || !isfinite(m->alpha))
            return lk_fail(err, LK_ERR_ARGUMENT, "module %.250s: rank %d, in %" PRId64 ", out %" PRId64 ", alpha %g", m->name, m->rank,
                           m->in, m->out, m->alpha);
    }
    LK_TRY(lk_folder_create(folder, err));
    LK_TRY(write_weights(folder, modules, n_modules, options, err));
    return write_config(folder, modules, n_modules, options, err);
}
