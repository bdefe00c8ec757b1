/* Adapters from and to PEFT folders. The flat vector keeps PEFT's own orientation (A[R,in], B[out,R]), so both ways are copies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "data/bundle.h"
#include "data/peft.h"
#include "model/adapter_internal.h"

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

/* What is adapted, as PEFT names it. Who stacks experts has transformers 5, which calls Mixtral's router by another name. */
static lk_status list_modules(const lk_adapter *a, const float *host, lk_peft_write_module *modules, char (*names)[200], float **stacks,
                              int64_t *n, lk_error *err)
{
    bool stacked = false;
    for (int32_t s = 0; s < a->n_sites; s++) stacked = stacked || a->sites[s].stacked;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        lk_site where = lk_site_at(&a->model->config, s);
        if (!site->rank || (site->stacked && (where.expert > 0 || where.module == LK_UP))) continue;
        lk_peft_write_module *m = &modules[*n];
        if (site->stacked) {
            LK_TRY(lk_adapter_stack(a, host, s, m, &stacks[*n], err));
            lk_stacked_path(names[*n], sizeof names[0], where.layer, where.module == LK_GATE);
        } else {
            *m = (lk_peft_write_module){.rank = site->rank,
                                        .alpha = (double)site->alpha,
                                        .in = site->k,
                                        .out = site->n,
                                        .a = host + site->a,
                                        .b = host + site->b,
                                        .magnitude = site->dora ? host + site->m : NULL};
            lk_site_path(names[*n], sizeof names[0], &a->model->config, s);
            if (stacked && where.module == LK_ROUTER)
                snprintf(names[*n], sizeof names[0], "model.layers.%lld.mlp.gate", (long long)where.layer);
        }
        m->name = names[(*n)++];
    }
    return LK_OK;
}

lk_status lk_adapter_save(const lk_adapter *a, const char *folder, lk_error *err)
{
    if (a->type != LK_F32) return lk_fail(err, LK_ERR_INTERNAL, "only F32 adapters are saved");
    if (a->values_digest[0]) return lk_fail(err, LK_ERR_UNSUPPORTED, "only adapters that were made here are saved");
    lk_backend *be = a->model->be;
    float *host = malloc(lk_adapter_bytes(a) + 1);
    lk_peft_write_module *modules = calloc((size_t)a->n_sites, sizeof *modules);
    char(*names)[200] = calloc((size_t)a->n_sites, sizeof *names);
    float **stacks = calloc((size_t)a->n_sites, sizeof *stacks);
    lk_status status = LK_OK;
    if (!host || !modules || !names || !stacks) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory to save the adapter");
        goto out;
    }
    if ((status = lk_download(be, host, a->weights, lk_adapter_bytes(a)))) {
        lk_backend_fail(be, status, err);
        goto out;
    }
    int64_t n = 0;
    if ((status = list_modules(a, host, modules, names, stacks, &n, err))) goto out;
    lk_peft_write_options options = {.base = a->model->path,
                                     .base_identity = a->model->identity,
                                     .base_digest = a->model->digest,
                                     .quantization = a->model->quant == LK_QUANT_NF4 ? "nf4" : "none",
                                     .use_rslora = a->use_rslora,
                                     .dropout = a->dropout};
    status = lk_peft_write(folder, modules, n, &options, err);
out:
    free(host);
    free(modules);
    free(names);
    for (int32_t s = 0; stacks && s < a->n_sites; s++) free(stacks[s]);
    free(stacks);
    return status;
}
