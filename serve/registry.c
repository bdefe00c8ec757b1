/* Names, versions and who uses them. How adapters come into the pool and leave it is registry_room.c's and registry_load.c's. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "serve/registry_internal.h"

/* ------------------------------------------------------------------------------------------------ open and close */

static lk_status take_host_memory(lk_registry *reg, lk_error *err)
{
    size_t pieces = reg->options.host_bytes / LK_HOST_PIECE;
    if (pieces == 0) return LK_OK;
    if (pieces > INT32_MAX) pieces = INT32_MAX;
    void *p;
    lk_status status = lk_host_alloc(reg->loader, pieces * LK_HOST_PIECE, &p);
    if (status) {
        lk_backend_fail(reg->loader, status, err);
        return lk_error_prefix(err, status, "host memory for adapters, %zu MiB (--adapter-host-memory)", pieces);
    }
    reg->host_memory = p;
    return lk_pages_init(&reg->host, (int32_t)pieces, 1, err);
}

static lk_status start_threads(lk_registry *reg, lk_error *err)
{
    if (pthread_create(&reg->reader, NULL, lk_registry_reads, reg)) goto none;
    if (!pthread_create(&reg->uploader, NULL, lk_registry_uploads, reg)) return LK_OK;
    pthread_mutex_lock(&reg->lock);
    reg->stop = true;
    pthread_cond_broadcast(&reg->work);
    pthread_mutex_unlock(&reg->lock);
    pthread_join(reg->reader, NULL);
none:
    return lk_fail(err, LK_ERR_MEMORY, "the system gave no threads for loading adapters");
}

/* All that is there but the threads. */
static void registry_free(lk_registry *reg)
{
    while (reg->versions) {
        lk_version *v = reg->versions;
        reg->versions = v->next;
        if (!v->host.n) free(v->host.p);
        lk_adapter_destroy(v->content);
        free(v);
    }
    while (reg->aliases) {
        lk_alias *a = reg->aliases;
        reg->aliases = a->next;
        free(a);
    }
    lk_pages_free(&reg->host);
    if (reg->loader) lk_host_free(reg->loader, reg->host_memory);
    lk_backend_close(reg->loader);
    pthread_cond_destroy(&reg->answered);
    pthread_cond_destroy(&reg->work);
    pthread_mutex_destroy(&reg->lock);
    pthread_mutex_destroy(&reg->loading);
    pthread_mutex_destroy(&reg->naming);
    free(reg->graves);
    free(reg);
}

lk_status lk_registry_open(lk_registry **registry, const lk_model *model, const lk_registry_options *options, lk_error *err)
{
    *registry = NULL;
    lk_registry *reg = calloc(1, sizeof *reg);
    if (!reg) return lk_fail(err, LK_ERR_MEMORY, "no memory for a registry of %d adapters", options->max_resident);
    reg->options = *options;
    reg->model = model;
    reg->page_bytes = (size_t)((char *)lk_kv_page(options->kv, 1) - (char *)lk_kv_page(options->kv, 0));
    pthread_mutex_init(&reg->naming, NULL);
    pthread_mutex_init(&reg->loading, NULL);
    pthread_mutex_init(&reg->lock, NULL);
    pthread_cond_init(&reg->work, NULL);
    pthread_cond_init(&reg->answered, NULL);
    lk_status status = LK_OK;
    if (!(reg->graves = calloc((size_t)options->max_resident + 1, sizeof *reg->graves)))
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for a registry of %d adapters", options->max_resident);
    if (!status) status = lk_loader_open(&reg->loader, model->be, err);
    if (!status) status = take_host_memory(reg, err);
    if (!status) status = start_threads(reg, err);
    if (status)
        registry_free(reg);
    else
        *registry = reg;
    return status;
}

void lk_registry_close(lk_registry *reg)
{
    if (!reg) return;
    pthread_mutex_lock(&reg->lock);
    reg->stop = true;
    pthread_cond_broadcast(&reg->work);
    pthread_mutex_unlock(&reg->lock);
    pthread_join(reg->reader, NULL);
    pthread_join(reg->uploader, NULL);
    registry_free(reg);
}

/* ------------------------------------------------------------------------------------------------ names and versions */

lk_alias *lk_alias_find(const lk_registry *reg, const char *name)
{
    for (lk_alias *a = reg->aliases; a; a = a->next)
        if (!strcmp(a->name, name)) return a;
    return NULL;
}

void lk_version_settle(lk_registry *reg, lk_version *v)
{
    if (v->current || v->pins || v->job || v->copied_out) return;
    lk_version_put_out(reg, v);
    if (v->host.p) lk_host_give(reg, &v->host);
    lk_version **at = &reg->versions;
    while (*at != v) at = &(*at)->next;
    *at = v->next;
    lk_adapter_destroy(v->content);
    free(v);
}

lk_status lk_registry_unload(lk_registry *reg, const char *name, lk_error *err)
{
    pthread_mutex_lock(&reg->lock);
    lk_alias *a = lk_alias_find(reg, name);
    lk_version *v = a ? a->current : NULL;
    lk_status secured = LK_OK;
    while (v && v->pins && v->adapter && !v->host.p && !secured) { /* without a copy there is still its folder */
        secured = lk_version_secure(reg, v, err);
        v = a->current;
    }
    if (v) {
        a->current = NULL;
        v->current = false;
        lk_log(LK_LOG_INFO, "adapter %s@%lld: unloaded; %lld requests still use it", v->name, (long long)v->number, (long long)v->pins);
        lk_version_settle(reg, v);
    }
    pthread_mutex_unlock(&reg->lock);
    return v ? LK_OK : lk_fail(err, LK_ERR_NOT_FOUND, "adapter '%s' is not loaded", name);
}

lk_status lk_registry_list(lk_registry *reg, lk_adapter_info **list, int64_t *n, lk_error *err)
{
    *list = NULL;
    *n = 0;
    pthread_mutex_lock(&reg->lock);
    int64_t count = 0;
    for (const lk_version *v = reg->versions; v; v = v->next) count++;
    lk_adapter_info *infos = calloc((size_t)(count ? count : 1), sizeof *infos);
    int64_t i = infos ? count : 0; /* versions are listed newest first: fill from the back */
    for (const lk_version *v = reg->versions; v && infos; v = v->next) {
        lk_adapter_info *info = &infos[--i];
        memcpy(info->name, v->name, sizeof info->name);
        memcpy(info->path, v->path, sizeof info->path);
        memcpy(info->digest, v->digest, sizeof info->digest);
        info->version = v->number;
        info->max_rank = v->max_rank;
        info->bytes = v->bytes;
        info->running = v->active;
        info->waiting = v->pins - v->active;
        info->current = v->current;
        info->resident = v->adapter != NULL;
        info->in_host = v->host.p != NULL;
        info->loaded_unix = v->loaded_unix;
    }
    pthread_mutex_unlock(&reg->lock);
    if (!infos) return lk_fail(err, LK_ERR_MEMORY, "no memory for a list of %lld adapters", (long long)count);
    *list = infos;
    *n = count;
    return LK_OK;
}

/* ------------------------------------------------------------------------------------------------ requests */

/* With the lock. */
static lk_version *find_version(const lk_registry *reg, const char *name)
{
    const char *at = strchr(name, '@');
    if (!at) {
        const lk_alias *a = lk_alias_find(reg, name);
        return a ? a->current : NULL;
    }
    char *end;
    long long number = strtoll(at + 1, &end, 10);
    if (end == at + 1 || *end) return NULL;
    size_t n = (size_t)(at - name);
    for (lk_version *v = reg->versions; v; v = v->next)
        if (v->number == number && strlen(v->name) == n && !memcmp(v->name, name, n)) {
            /* After an unload the name is gone, with all of its versions. */
            const lk_alias *a = lk_alias_find(reg, v->name);
            return a && a->current ? v : NULL;
        }
    return NULL;
}

lk_status lk_registry_pin(lk_registry *reg, const char *name, lk_version **version, lk_error *err)
{
    pthread_mutex_lock(&reg->lock);
    lk_version *v = find_version(reg, name);
    if (v) {
        v->pins++;
        v->last_used = ++reg->clock;
    }
    pthread_mutex_unlock(&reg->lock);
    *version = v;
    return v ? LK_OK : lk_fail(err, LK_ERR_NOT_FOUND, "adapter '%.200s' is not loaded; load it first, or name one that is", name);
}

void lk_registry_unpin(lk_registry *reg, lk_version *v)
{
    pthread_mutex_lock(&reg->lock);
    v->pins--;
    lk_version_settle(reg, v);
    pthread_mutex_unlock(&reg->lock);
}

bool lk_registry_drains(lk_registry *reg, lk_version *v)
{
    pthread_mutex_lock(&reg->lock);
    bool drains = !v->current && v->adapter;
    pthread_mutex_unlock(&reg->lock);
    return drains;
}

void lk_registry_count(lk_registry *reg, lk_registry_counts *counts)
{
    pthread_mutex_lock(&reg->lock);
    *counts = (lk_registry_counts){reg->loads, reg->evictions, (int32_t)reg->pages_in_use};
    pthread_mutex_unlock(&reg->lock);
}
