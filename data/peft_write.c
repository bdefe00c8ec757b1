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
static bool add_targets(cJSON *root, const char *field, const lk_peft_write_module *modules, int64_t n, bool stacked)
{
    cJSON *targets = cJSON_AddArrayToObject(root, field);
    int64_t n_layers = 0;
    bool everywhere = true;
    for (int64_t i = 0; i < n; i++)
        if (layer_of(modules[i].name) >= n_layers) n_layers = layer_of(modules[i].name) + 1;
    for (int64_t i = 0; i < n && everywhere; i++) everywhere = leaf_everywhere(modules, n, i, n_layers);
    for (int64_t i = 0; i < n; i++) {
        if ((modules[i].experts > 0) != stacked || (everywhere && !first_of_leaf(modules, i))) continue;
        if (!cJSON_AddItemToArray(targets, cJSON_CreateString(everywhere ? leaf_of(modules[i].name) : modules[i].name))) return false;
    }
    return true;
}

static bool add_parameters(cJSON *root, const lk_peft_write_module *modules, int64_t n)
{
    bool any = false;
    for (int64_t i = 0; i < n; i++) any = any || modules[i].experts;
    return !any || add_targets(root, "target_parameters", modules, n, true);
}

static cJSON *make_config(const lk_peft_write_module *modules, int64_t n, const lk_peft_write_options *options)
{
    double r = commonest(modules, n, rank_value), alpha = commonest(modules, n, alpha_value);
    cJSON *root = cJSON_CreateObject();
    bool complete = cJSON_AddStringToObject(root, "peft_type", "LORA") && cJSON_AddStringToObject(root, "task_type", "CAUSAL_LM") &&
                    cJSON_AddStringToObject(root, "base_model_name_or_path", options->base ? options->base : "") &&
                    lk_json_add_number(root, "r", r) && lk_json_add_number(root, "lora_alpha", alpha) &&
                    lk_json_add_number(root, "lora_dropout", options->dropout) && add_targets(root, "target_modules", modules, n, false) &&
                    add_parameters(root, modules, n) && add_patterns(root, "rank_pattern", modules, n, r, rank_value) &&
                    add_patterns(root, "alpha_pattern", modules, n, alpha, alpha_value) &&
                    cJSON_AddBoolToObject(root, "use_rslora", options->use_rslora) &&
                    cJSON_AddBoolToObject(root, "use_dora", modules[0].magnitude != NULL) &&
                    cJSON_AddStringToObject(root, "bias", "none") && cJSON_AddNullToObject(root, "modules_to_save") &&
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

/* B is walked second: the name of a module's A sorts before its B's, and the file keeps that order. */
static lk_status declare_factors(lk_st_writer *w, const lk_peft_write_module *modules, int64_t n, const lk_peft_write_module *m,
                                 lk_error *err)
{
    char name[600], owner[540];
    int64_t rank = m->rank * (m->experts ? m->experts : 1);
    owner_of(owner, sizeof owner, modules, n, m);
    snprintf(name, sizeof name, "base_model.model.%s.lora_A.weight", owner);
    LK_TRY(lk_st_writer_declare(w, name, LK_F32, 2, (int64_t[]){rank, m->in}, err));
    snprintf(name, sizeof name, "base_model.model.%s.lora_B.weight", owner);
    LK_TRY(lk_st_writer_declare(w, name, LK_F32, 2, (int64_t[]){m->out, rank}, err));
    if (!m->magnitude) return LK_OK;
    snprintf(name, sizeof name, "base_model.model.%.500s.lora_magnitude_vector", m->name);
    return lk_st_writer_declare(w, name, LK_F32, 1, &m->out, err);
}

static lk_status write_factor(lk_st_writer *w, const lk_peft_write_module *m, const char *which, const float *values, int64_t n,
                              lk_error *err)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return lk_fail(err, LK_ERR_ARGUMENT, "%s of %.250s holds %s: the training diverged, the adapter is not written", which, m->name,
                           isnan(values[i]) ? "NaN" : "an infinity");
    return lk_st_writer_write(w, values, (size_t)n * sizeof *values, err);
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
    for (int64_t i = 0; i < n && !status; i++) status = declare_factors(w, modules, n, &modules[i], err);
    for (int64_t i = 0; i < n && !status; i++) {
        const lk_peft_write_module *m = &modules[i];
        int64_t rank = m->rank * (m->experts ? m->experts : 1);
        status = write_factor(w, m, "lora_A", m->a, rank * m->in, err);
        if (!status) status = write_factor(w, m, "lora_B", m->b, m->out * rank, err);
        if (!status && m->magnitude) status = write_factor(w, m, "lora_magnitude_vector", m->magnitude, m->out, err);
    }
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
