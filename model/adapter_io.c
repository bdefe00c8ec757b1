/* Adapters from and to PEFT folders. The flat vector keeps PEFT's own orientation (A[R,in], B[out,R]), so both ways are copies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "data/bundle.h"
#include "data/peft.h"
#include "model/adapter_internal.h"
#include "model/names.h"

static lk_status check_base(const lk_peft *peft, const lk_model *model, const char *folder, lk_error *err)
{
    const char *identity = lk_peft_metadata(peft, "lorikeet.base_identity"), *digest = lk_peft_metadata(peft, "lorikeet.base_digest");
    if (identity && strcmp(identity, model->identity))
        return lk_fail(err, LK_ERR_MISMATCH, "adapter %s was trained on another base (%.12s..., %s) than %s (%.12s...)", folder, identity,
                       *lk_peft_base(peft) ? lk_peft_base(peft) : "unnamed", model->name, model->identity);
    if (identity && digest && strcmp(digest, model->digest))
        lk_log(LK_LOG_WARN, "adapter %s was trained on another quantisation of %s: its outputs will differ slightly from those in training",
               folder, model->name);
    return LK_OK;
}

static lk_status place_sites(lk_adapter *a, const lk_adapter_parts *parts, const char *path, lk_error *err)
{
    for (int32_t s = 0; s < a->n_sites; s++) {
        lk_adapter_site *site = &a->sites[s];
        const lk_peft_module *m = parts->sites[s];
        lk_site shape = lk_site_at(&a->model->config, s);
        site->n = shape.n;
        site->k = shape.k;
        site->own_bias = parts->biases[s] || (m && m->bias);
        if (!m) continue;
        if (m->rank > LK_ADAPTER_MAX_RANK)
            return lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: rank %d of %s is above the largest supported, %d", path, m->rank, m->name,
                           LK_ADAPTER_MAX_RANK);
        site->rank = m->rank;
        site->alpha = (float)m->alpha;
        site->scale = (float)m->scale;
        site->dora = m->magnitude != NULL;
        site->stacked = m->experts > 0;
        site->shares_a = site->stacked && shape.module == LK_UP;
    }
    return LK_OK;
}

/* Some values to their place. */
static void put(const lk_adapter *a, const float *wide, int64_t at, int64_t n, char *values)
{
    lk_from_f32(values + at * lk_dtype_size(a->type), a->type, wide, n);
}

static lk_status read_factors(const lk_adapter *a, const lk_adapter_parts *parts, char *values, lk_error *err)
{
    int64_t most = 1;
    for (int32_t s = 0; s < a->n_sites; s++) {
        int64_t wider = a->sites[s].n > a->sites[s].k ? a->sites[s].n : a->sites[s].k, rank = a->sites[s].rank ? a->sites[s].rank : 1;
        if (rank * wider > most) most = rank * wider;
    }
    float *wide = malloc((size_t)(2 * most) * sizeof *wide), *b = wide + most;
    if (!wide) return lk_fail(err, LK_ERR_MEMORY, "no memory for a factor of %lld values", (long long)most);
    lk_status status = LK_OK;
    for (int32_t s = 0; s < a->n_sites && !status; s++) {
        const lk_adapter_site *site = &a->sites[s];
        const lk_peft_module *m = parts->sites[s];
        if (!m) continue;
        if ((status = lk_adapter_factors(parts, s, site->n, site->k, wide, b, err))) break;
        put(a, wide, site->a, site->rank * site->k, values);
        put(a, b, site->b, site->rank * site->n, values);
        if (!site->dora) continue;
        status = lk_st_read_f32(m->magnitude, 0, site->n, wide, err);
        put(a, wide, site->m, site->n, values);
    }
    free(wide);
    return status;
}

/* For combining: what a plain pair of factors does not say is refused by the name of its field. */
lk_status lk_adapter_check_plain(const lk_peft *peft, const char *path, lk_error *err)
{
    static const char *const kinds[] = {"modules_to_save", "bias", "trainable_token_indices", "an adapted embedding's base_layer"};
    const char *what = NULL, *name = NULL;
    for (int64_t i = 0; i < lk_peft_count(peft) && !what; i++) {
        const lk_peft_module *m = lk_peft_at(peft, i);
        name = m->name;
        what = m->embedding ? "adapted embeddings" : m->magnitude ? "use_dora" : m->bias ? "lora_bias" : NULL;
    }
    if (!what && lk_peft_n_values(peft)) {
        name = lk_peft_value_at(peft, 0)->name;
        what = kinds[lk_peft_value_at(peft, 0)->kind];
    }
    return what ? lk_fail(err, LK_ERR_UNSUPPORTED, "adapter %s: %s (of %s) cannot be combined", path, what, name) : LK_OK;
}

lk_status lk_adapter_read(lk_adapter **out, void **values, const lk_model *model, const char *path, lk_dtype type,
                          const lk_bundle_keys *keys, const lk_host_memory *memory, lk_error *err)
{
    *out = NULL;
    *values = NULL;
    lk_peft *peft = NULL;
    lk_adapter *a = NULL;
    lk_adapter_parts parts = {0};
    lk_status status;
    if ((status = lk_peft_open(&peft, path, keys, err))) goto out;
    if ((status = check_base(peft, model, path, err))) goto out;
    if ((status = lk_adapter_parts_find(&parts, peft, &model->config, path, model->name, err))) goto out;
    if ((status = lk_adapter_alloc(&a, model, err))) goto out;
    a->type = type;
    a->lent = true;
    if ((status = place_sites(a, &parts, path, err))) goto out;
    lk_adapter_place(a->sites, a->n_sites, &a->n_params, &a->max_rank);
    a->n_decayed = a->n_params;
    if ((status = lk_adapter_extras_load(a, &parts, path, err))) goto out;
    if (!(*values = memory->take(memory->context, lk_adapter_image_bytes(a)))) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for the %lld parameters of adapter %s", (long long)a->n_params, path);
        goto out;
    }
    memset(*values, 0, lk_adapter_bytes(a)); /* between the factors */
    if ((status = read_factors(a, &parts, *values, err))) goto out;
    lk_adapter_digest(a, *values);
out:
    lk_adapter_parts_free(&parts);
    lk_peft_close(peft);
    if (status)
        lk_adapter_destroy(a);
    else
        *out = a;
    return status;
}

lk_status lk_adapter_load(lk_adapter **out, const lk_model *model, const char *path, lk_dtype type, lk_error *err)
{
    return lk_adapter_load_trusted(out, model, path, type, NULL, err);
}

static void *from_heap(void *context, size_t bytes)
{
    (void)context;
    return malloc(bytes + 1);
}

lk_status lk_adapter_load_trusted(lk_adapter **out, const lk_model *model, const char *path, lk_dtype type, const lk_bundle_keys *keys,
                                  lk_error *err)
{
    *out = NULL;
    lk_backend *be = model->be;
    lk_adapter *a = NULL;
    void *values;
    lk_host_memory heap = {from_heap, NULL};
    lk_status status = lk_adapter_read(&a, &values, model, path, type, keys, &heap, err);
    if (status) goto out;
    a->lent = false;
    if ((status = lk_alloc(be, lk_adapter_bytes(a), &a->weights)) || (status = lk_upload(be, a->weights, values, lk_adapter_bytes(a)))) {
        lk_backend_fail(be, status, err);
        lk_adapter_destroy(a);
        goto out;
    }
    *out = a;
out:
    free(values);
    return status;
}

/* What is written, with the values in host memory. */
typedef struct writing {
    const lk_adapter *a;
    const float *host;
    lk_peft_write_module *modules;
    lk_peft_write_value *values;
    char (*names)[200]; /* of modules and values */
    float **stacks;     /* memory of stacked factors */
    int64_t n_modules, n_values, n_names;
} writing;

static void add_value(writing *w, const char *path, const char *part, int n_dims, int64_t rows, int64_t columns, int64_t at)
{
    char *name = w->names[w->n_names++];
    snprintf(name, sizeof *w->names, "%s.%s", path, part);
    w->values[w->n_values++] = (lk_peft_write_value){name, n_dims, {rows, columns}, w->host + at};
}

static void add_site(writing *w, int32_t s, bool stacked)
{
    const lk_adapter_site *site = &w->a->sites[s];
    lk_site where = lk_site_at(&w->a->model->config, s);
    char path[160], *name = w->names[w->n_names++];
    lk_site_path(path, sizeof path, &w->a->model->config, s);
    if (stacked && where.module == LK_ROUTER) snprintf(path, sizeof path, "model.layers.%lld.mlp.gate", (long long)where.layer);
    memcpy(name, path, sizeof path);
    w->modules[w->n_modules++] = (lk_peft_write_module){.name = name,
                                                        .rank = site->rank,
                                                        .alpha = (double)site->alpha,
                                                        .in = site->k,
                                                        .out = site->n,
                                                        .a = w->host + site->a,
                                                        .b = w->host + site->b,
                                                        .magnitude = site->dora ? w->host + site->m : NULL,
                                                        .bias = site->trains_lora_bias ? w->host + site->lora_bias_at : NULL};
    if (site->trains_bias) add_value(w, path, "base_layer.bias", 1, site->n, 0, site->bias_at);
}

/* What is adapted, as PEFT names it. Who stacks experts has transformers 5, which calls Mixtral's router by another name. */
static lk_status add_sites(writing *w, lk_error *err)
{
    const lk_adapter *a = w->a;
    bool stacked = false;
    for (int32_t s = 0; s < a->n_sites; s++) stacked = stacked || a->sites[s].stacked;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        lk_site where = lk_site_at(&a->model->config, s);
        char path[160];
        if (!site->rank && site->trains_bias) {
            lk_site_path(path, sizeof path, &a->model->config, s);
            add_value(w, path, "bias", 1, site->n, 0, site->bias_at);
        }
        if (!site->rank || (site->stacked && (where.expert > 0 || where.module == LK_UP))) continue;
        if (!site->stacked) {
            add_site(w, s, stacked);
            continue;
        }
        lk_peft_write_module *m = &w->modules[w->n_modules];
        char *name = w->names[w->n_names++];
        LK_TRY(lk_adapter_stack(a, w->host, s, m, &w->stacks[w->n_modules], err));
        lk_stacked_path(name, sizeof *w->names, where.layer, where.module == LK_GATE);
        m->name = name;
        w->n_modules++;
    }
    return LK_OK;
}

static void add_factors(writing *w, const lk_table_factors *f, const char *path, bool embedding)
{
    const lk_config *c = &w->a->model->config;
    if (!f->rank) return;
    w->modules[w->n_modules++] = (lk_peft_write_module){.name = path,
                                                        .rank = f->rank,
                                                        .alpha = (double)f->alpha,
                                                        .in = embedding ? c->vocab : c->hidden,
                                                        .out = embedding ? c->hidden : c->vocab,
                                                        .a = w->host + f->a,
                                                        .b = w->host + f->b,
                                                        .embedding = embedding};
}

/* What PEFT's base_layer.weight would say of tables under factors is the base's: it is left out, as with save_embedding_layers=False. */
static void add_tables(writing *w)
{
    const lk_adapter_whole *whole = &w->a->whole;
    const lk_config *c = &w->a->model->config;
    add_factors(w, &whole->embedding_factors, "model.embed_tokens", true);
    add_factors(w, &whole->head_factors, "lm_head", false);
    if (whole->embedding) add_value(w, "model.embed_tokens", "weight", 2, c->vocab, c->hidden, whole->embedding_at);
    if (whole->head) add_value(w, "lm_head", "weight", 2, c->vocab, c->hidden, whole->head_at); /* of a tied pair too: PEFT asks for both */
    if (whole->n_tokens)
        add_value(w, "model.embed_tokens", "token_adapter.trainable_tokens_delta", 2, whole->n_tokens, c->hidden, whole->tokens_at);
}

/* As the whole model calls it that this one is the text part of. */
static const char *whole_name(writing *w, const char *name)
{
    char *out = w->names[w->n_names];
    if (lk_whole_name(&w->a->model->config, name, out, sizeof *w->names) == name) return name;
    w->n_names++;
    return out;
}

static void rename_all(writing *w)
{
    for (int64_t i = 0; i < w->n_modules; i++) w->modules[i].name = whole_name(w, w->modules[i].name);
    for (int64_t i = 0; i < w->n_values; i++) w->values[i].name = whole_name(w, w->values[i].name);
}

/* The config's word for the biases that are trained. */
static const char *bias_kind(const lk_adapter *a)
{
    const char *kind = NULL;
    for (int32_t s = 0; s < a->n_sites; s++) {
        if (!a->sites[s].trains_bias) continue;
        if (!a->sites[s].rank) return "all";
        kind = "lora_only";
    }
    return kind;
}

lk_status lk_adapter_save(const lk_adapter *a, const char *folder, lk_error *err)
{
    if (a->type != LK_F32) return lk_fail(err, LK_ERR_INTERNAL, "only F32 adapters are saved");
    if (a->values_digest[0]) return lk_fail(err, LK_ERR_UNSUPPORTED, "only adapters that were made here are saved");
    lk_backend *be = a->model->be;
    float *host = malloc(lk_adapter_bytes(a) + 1);
    size_t most = (size_t)a->n_sites + 8;
    writing w = {.a = a,
                 .host = host,
                 .modules = calloc(most, sizeof *w.modules),
                 .values = calloc(most, sizeof *w.values),
                 .names = calloc(4 * most, sizeof *w.names), /* each once more where the model is part of another */
                 .stacks = calloc(most, sizeof *w.stacks)};
    lk_status status = LK_OK;
    if (!host || !w.modules || !w.values || !w.names || !w.stacks) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory to save the adapter");
        goto out;
    }
    if ((status = lk_download(be, host, a->weights, lk_adapter_bytes(a)))) {
        lk_backend_fail(be, status, err);
        goto out;
    }
    if ((status = add_sites(&w, err))) goto out;
    add_tables(&w);
    rename_all(&w);
    const char *saved[2];
    int n_saved = 0;
    if (a->whole.embedding) saved[n_saved++] = "embed_tokens";
    if (a->whole.head && !a->whole.tied) saved[n_saved++] = "lm_head";
    lk_peft_write_options options = {.base = a->model->path,
                                     .base_identity = a->model->identity,
                                     .base_digest = a->model->digest,
                                     .quantization = a->model->quant == LK_QUANT_NF4 ? "nf4" : "none",
                                     .whole_paths = *a->model->config.part_of != 0,
                                     .use_rslora = a->use_rslora,
                                     .dropout = a->dropout,
                                     .values = w.values,
                                     .n_values = w.n_values,
                                     .bias = bias_kind(a),
                                     .modules_to_save = saved,
                                     .n_modules_to_save = n_saved,
                                     .tie_tables = a->whole.tied,
                                     .tokens = a->token_ids,
                                     .n_tokens = a->whole.n_tokens};
    status = lk_peft_write(folder, w.modules, w.n_modules, &options, err);
out:
    free(host);
    for (size_t i = 0; w.stacks && i < most; i++) free(w.stacks[i]);
    free(w.modules);
    free(w.values);
    free(w.names);
    free(w.stacks);
    return status;
}
