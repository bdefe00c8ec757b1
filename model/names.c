#include "model/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/sites.h"

static bool begins(const char *name, const char *with) { return !strncmp(name, with, strlen(with)); }

static const char *put(char *out, size_t size, const char *prefix, const char *rest)
{
    snprintf(out, size, "%s%s", prefix, rest);
    return out;
}

static bool of_images(const char *name)
{
    static const char *const parts[] = {"vision_tower.", "multi_modal_projector."};
    if (begins(name, "model.")) name += strlen("model.");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (begins(name, parts[i])) return true;
    return false;
}

const char *lk_text_name(const lk_config *c, const char *name, char *out, size_t size)
{
    static const char older[] = "language_model.", newer[] = "model.language_model.";
    if (*c->part_of && of_images(name)) return NULL;
    if (begins(name, older)) return put(out, size, "", name + sizeof older - 1);
    if (begins(name, newer)) return put(out, size, "model.", name + sizeof newer - 1);
    return name;
}

const char *lk_whole_name(const lk_config *c, const char *name, char *out, size_t size)
{
    static const char model[] = "model.";
    if (!*c->part_of || !begins(name, model)) return name;
    return put(out, size, "model.language_model.", name + sizeof model - 1);
}

/* ---- a folder ---- */

typedef struct view {
    lk_safetensors *st; /* what is stored */
    lk_st_tensor *tensors;
    char (*names)[256];
    int64_t n, room;
} view;

static void close_view(void *owner)
{
    view *v = owner;
    lk_safetensors_close(v->st);
    free(v->tensors);
    free(v->names);
    free(v);
}

static lk_status add(view *v, const lk_st_tensor *t, const char *name, lk_error *err)
{
    if (v->n == v->room || strlen(name) >= sizeof v->names[0])
        return lk_fail(err, LK_ERR_FORMAT, "%s: tensor %.200s: too many, or its name is too long", t->file, t->name);
    v->tensors[v->n] = *t;
    snprintf(v->names[v->n], sizeof v->names[0], "%s", name);
    v->tensors[v->n].name = v->names[v->n];
    v->n++;
    return LK_OK;
}

/* Rows first.. of expert e's matrix, of a tensor [E,all,K], as the weight of a site. */
static lk_status add_expert(view *v, const lk_st_tensor *t, const lk_config *c, int64_t layer, lk_module module, int32_t e, int64_t first,
                            lk_error *err)
{
    char path[200], name[220];
    int32_t number = lk_site_of(c, layer, module, e);
    lk_site site = lk_site_at(c, number);
    lk_site_path(path, sizeof path, c, number);
    snprintf(name, sizeof name, "%s.weight", path);
    int64_t size = lk_dtype_size(t->type), all = t->shape[1];
    lk_st_tensor part = *t;
    part.n_dims = 2;
    part.shape[0] = site.n;
    part.shape[1] = site.k;
    part.n_elements = site.n * site.k;
    part.n_bytes = part.n_elements * size;
    part.data = (const char *)t->data + (e * all + first) * site.k * size;
    return add(v, &part, name, err);
}

/* A parameter of stacked experts: gate over up, or down. */
static lk_status add_stacked(view *v, const lk_st_tensor *t, const lk_config *c, int64_t layer, bool gate_up, lk_error *err)
{
    int64_t n = gate_up ? 2 * c->intermediate : c->hidden, k = gate_up ? c->hidden : c->intermediate;
    if (t->n_dims != 3 || t->shape[0] != c->experts || t->shape[1] != n || t->shape[2] != k)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor %s must be [%lld,%lld,%lld]", t->file, t->name, (long long)c->experts,
                       (long long)n, (long long)k);
    for (int32_t e = 0; e < c->experts; e++) {
        LK_TRY(add_expert(v, t, c, layer, gate_up ? LK_GATE : LK_DOWN, e, 0, err));
        if (gate_up) LK_TRY(add_expert(v, t, c, layer, LK_UP, e, c->intermediate, err));
    }
    return LK_OK;
}

static lk_status add_tensor(view *v, const lk_st_tensor *t, const lk_config *c, int64_t *left_out, lk_error *err)
{
    char text[256], path[200];
    bool gate_up;
    const char *name = lk_text_name(c, t->name, text, sizeof text);
    if (!name) {
        ++*left_out;
        return LK_OK;
    }
    int64_t layer = c->experts ? lk_stacked_find(c, name, &gate_up) : -1;
    if (layer >= 0) return add_stacked(v, t, c, layer, gate_up, err);
    for (int64_t i = 0; c->expert_numbers && i < c->layers; i++) { /* beside stacked experts Mixtral's router has another name */
        snprintf(path, sizeof path, "model.layers.%lld.mlp.gate.weight", (long long)i);
        if (strcmp(path, name)) continue;
        snprintf(text, sizeof text, "model.layers.%lld.block_sparse_moe.gate.weight", (long long)i);
        name = text;
    }
    return add(v, t, name, err);
}

lk_status lk_names_open(lk_safetensors **st, const char *folder, const lk_config *c, int64_t *left_out, lk_error *err)
{
    int64_t unwanted = 0;
    if (left_out) *left_out = 0;
    LK_TRY(lk_safetensors_open(st, folder, err));
    if (!*c->part_of && !c->experts) return LK_OK;
    view *v = calloc(1, sizeof *v);
    if (!v) {
        lk_safetensors_close(*st);
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", folder);
    }
    v->st = *st;
    *st = NULL;
    v->room = lk_safetensors_count(v->st) + 3 * c->experts * c->layers;
    v->tensors = calloc((size_t)v->room, sizeof *v->tensors);
    v->names = calloc((size_t)v->room, sizeof *v->names);
    lk_status status = v->tensors && v->names ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", folder);
    for (int64_t i = 0; i < lk_safetensors_count(v->st) && !status; i++)
        status = add_tensor(v, lk_safetensors_at(v->st, i), c, left_out ? left_out : &unwanted, err);
    if (!status) status = lk_safetensors_of_tensors(st, folder, v->tensors, v->n, v, close_view, err);
    if (status) close_view(v);
    return status;
}
