/* Bringing adapters in: from a folder into host memory, from there into the pool. What the pool needs to know is registry_room.c's.
 *
 * Reading needs no backend, so a slow disk holds up nobody. Uploads go in pieces, because the copies of one direction share an engine of
 * the device, and those of a step (ids, tables) must not stand behind 80 MB.
 *
 * Host memory is one block, pinned once at the start: pinning stops a device for milliseconds, so it must not happen while serving. It
 * is given out in pieces, lying together; when it is full, the copy that was used least recently goes. Adapters that do not fit, and all
 * of them where there is none (the CPU: a copy beside the pool would only be the same memory twice), pass through memory of the heap. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "serve/registry_internal.h"

static const size_t UPLOAD_PIECE = (size_t)4 << 20;

/* ------------------------------------------------------------------------------------------------ host memory */

void lk_host_give(lk_registry *reg, lk_host_block *block)
{
    if (block->n)
        lk_pages_give(&reg->host, block->first, block->n);
    else
        free(block->p);
    *block = (lk_host_block){0};
}

/* With the lock: the least recently used copy that nothing depends on. A version that requests wait for outside the pool needs its own. */
static lk_version *oldest_copy(const lk_registry *reg)
{
    lk_version *best = NULL;
    for (lk_version *v = reg->versions; v; v = v->next) {
        if (!v->host.n || v->job || (v->pins && (!v->adapter || !v->current))) continue;
        if (!best || v->last_used < best->last_used) best = v;
    }
    return best;
}

typedef struct taking {
    lk_registry *reg;
    lk_host_block block;
} taking;

static void *take(void *context, size_t bytes)
{
    taking *t = context;
    lk_registry *reg = t->reg;
    size_t pieces = (bytes + LK_HOST_PIECE - 1) / LK_HOST_PIECE;
    if (pieces && pieces <= (size_t)reg->host.n_pages) {
        pthread_mutex_lock(&reg->lock);
        int32_t first;
        lk_version *oldest;
        while ((first = lk_pages_find(&reg->host, (int32_t)pieces)) < 0 && (oldest = oldest_copy(reg))) lk_host_give(reg, &oldest->host);
        if (first >= 0) {
            lk_pages_take(&reg->host, first, (int32_t)pieces);
            t->block = (lk_host_block){reg->host_memory + (size_t)first * LK_HOST_PIECE, first, (int32_t)pieces};
        }
        pthread_mutex_unlock(&reg->lock);
    }
    if (!t->block.p) t->block = (lk_host_block){.p = malloc(bytes + 1)};
    return t->block.p;
}

static void give(lk_registry *reg, lk_host_block *block)
{
    pthread_mutex_lock(&reg->lock);
    lk_host_give(reg, block);
    pthread_mutex_unlock(&reg->lock);
}

/* With the lock: a copy from the heap stays only while it is needed: on the way into the pool, or for an old version that requests use. */
static void trim(lk_registry *reg, lk_version *v)
{
    if (v->host.p && !v->host.n && v->current && !v->job) lk_host_give(reg, &v->host);
}

/* ------------------------------------------------------------------------------------------------ folders and uploads */

static lk_status read_adapter(lk_registry *reg, const char *name, const char *path, lk_adapter **adapter, lk_host_block *block,
                              lk_error *err)
{
    *adapter = NULL;
    if (!lk_path_exists(path))
        return lk_fail(err, LK_ERR_NOT_FOUND, "adapter '%s': nothing at %s; give the path of a PEFT folder or a bundle", name, path);
    taking t = {.reg = reg};
    lk_host_memory memory = {take, &t};
    void *values;
    lk_status status =
        lk_adapter_read(adapter, &values, reg->model, path, lk_backend_compute(reg->model->be), reg->options.trusted_keys, &memory, err);
    int32_t rank = status ? 0 : (*adapter)->max_rank;
    if (status)
        lk_error_prefix(err, status, "adapter '%s'", name);
    else if (rank > reg->options.max_rank)
        status = lk_fail(err, LK_ERR_UNSUPPORTED,
                         "adapter '%s' has rank %d and this server was started for at most %d: start it with a larger maximum rank", name,
                         rank, reg->options.max_rank);
    if (!status && !(status = lk_adapter_fold(*adapter, values, err))) {
        *block = t.block;
        return LK_OK;
    }
    lk_adapter_destroy(*adapter);
    *adapter = NULL;
    give(reg, &t.block);
    return status;
}

/* Pages of its run; LK_ERR_UNSUPPORTED when not even one page would be left beside it. */
static lk_status count_pages(const lk_registry *reg, const char *name, const lk_adapter *adapter, int32_t *n, lk_error *err)
{
    size_t bytes = lk_adapter_image_bytes(adapter), beside = bytes - lk_adapter_bytes(adapter),
           pages = (bytes + reg->page_bytes - 1) / reg->page_bytes;
    size_t all = (size_t)reg->options.pages->n_pages;
    if (pages >= all)
        return lk_fail(
            err, LK_ERR_UNSUPPORTED,
            "adapter '%s' takes %zu bytes, %zu of them for what is not factors (gains, biases, an own head or embedding), and the "
            "memory for keys, values and adapters together is %zu: start the server with --kv-memory above %zu",
            name, bytes, beside, all * reg->page_bytes, (pages + 1) * reg->page_bytes);
    *n = (int32_t)pages;
    return LK_OK;
}

/* Without a lock: v's bytes from the host to its run. Ends when they are there. */
static lk_status upload(lk_registry *reg, const lk_version *v, lk_error *err)
{
    pthread_mutex_lock(&reg->loading);
    lk_backend *loader = reg->loader;
    lk_status status = lk_backend_use(loader);
    char *to = lk_kv_page(reg->options.kv, v->first);
    const char *bytes = v->host.p;
    size_t size = (size_t)v->bytes;
    for (size_t at = 0; at < size && !status; at += UPLOAD_PIECE) {
        size_t n = size - at < UPLOAD_PIECE ? size - at : UPLOAD_PIECE;
        status = lk_upload(loader, to + at, bytes + at, n);
    }
    if (status) lk_backend_fail(loader, status, err);
    pthread_mutex_unlock(&reg->loading);
    return status ? lk_error_prefix(err, status, "adapter '%s' did not reach the device's memory", v->name) : LK_OK;
}

lk_status lk_version_secure(lk_registry *reg, lk_version *old, lk_error *err)
{
    taking t = {.reg = reg};
    size_t bytes = (size_t)old->bytes;
    const void *weights = old->content->weights;
    old->copied_out++;
    pthread_mutex_unlock(&reg->lock);
    lk_status status = LK_OK;
    if (!take(&t, bytes)) status = lk_fail(err, LK_ERR_MEMORY, "no memory for a copy of adapter '%s', which requests still use", old->name);
    if (!status) {
        pthread_mutex_lock(&reg->loading);
        status = lk_backend_use(reg->loader);
        if (!status) status = lk_download(reg->loader, t.block.p, weights, bytes);
        if (status) lk_backend_fail(reg->loader, status, err);
        pthread_mutex_unlock(&reg->loading);
        if (status) lk_error_prefix(err, status, "a copy of adapter '%s', which requests still use", old->name);
    }
    pthread_mutex_lock(&reg->lock);
    old->copied_out--;
    if (status || old->host.p)
        lk_host_give(reg, &t.block);
    else
        old->host = t.block;
    lk_version_settle(reg, old);
    return status;
}

/* ------------------------------------------------------------------------------------------------ explicit loads */

static lk_status check_name(const lk_registry *reg, const char *name, lk_error *err)
{
    size_t n = name ? strlen(name) : 0;
    if (n == 0 || n >= sizeof((lk_version *)0)->name)
        return lk_fail(err, LK_ERR_ARGUMENT, "an adapter's name must have 1 to %zu bytes, not %zu", sizeof((lk_version *)0)->name - 1, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f || c == '@' || c == '/')
            return lk_fail(err, LK_ERR_ARGUMENT, "adapter name '%.60s': '@', '/' and control characters are not allowed (byte %zu)", name,
                           i);
    }
    if (!strcmp(name, reg->model->name))
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "adapter '%s' has the name of the base model; requests could not tell them apart: choose another name", name);
    return LK_OK;
}

static lk_status too_many(const lk_registry *reg, const char *name, lk_error *err)
{
    return lk_fail(err, LK_ERR_BUSY,
                   "adapter '%s': all %d places for adapters in memory are in use by requests; try again later, unload one, or start the "
                   "server with a larger --max-resident-adapters",
                   name, reg->options.max_resident);
}

/* With the lock: may this name be loaded, and would there be a place? */
static lk_status check_load(const lk_registry *reg, const char *name, bool replace, lk_error *err)
{
    const lk_alias *a = lk_alias_find(reg, name);
    const lk_version *old = a ? a->current : NULL;
    if (old && !replace)
        return lk_fail(err, LK_ERR_CONFLICT, "adapter '%s' is loaded already (version %lld); ask for a replacement, or unload it first",
                       name, (long long)old->number);
    if (reg->n_places < reg->options.max_resident || (old && old->adapter && !old->pins) || lk_version_idle(reg, false)) return LK_OK;
    return too_many(reg, name, err);
}

/* With the lock, which it lets go while it waits: memory for v, from the engine's thread. */
static lk_answer ask(lk_registry *reg, lk_version *v)
{
    if (reg->left) return LK_STOPPING;
    reg->asks = v;
    reg->answer = LK_ASKED;
    pthread_mutex_unlock(&reg->lock);
    reg->options.changed(reg->options.context);
    pthread_mutex_lock(&reg->lock);
    while (reg->answer == LK_ASKED) pthread_cond_wait(&reg->answered, &reg->lock);
    lk_answer heard = reg->answer;
    reg->answer = LK_ASKED_NOTHING;
    reg->asks = NULL;
    v->first = reg->granted;
    return heard;
}

/* With the lock: the name moves. fresh is taken over, *fresh_alias where the name is new; nothing here can fail. */
static void flip(lk_registry *reg, lk_version *fresh, lk_alias **fresh_alias)
{
    lk_alias *a = lk_alias_find(reg, fresh->name);
    if (!a) {
        a = *fresh_alias;
        *fresh_alias = NULL;
        memcpy(a->name, fresh->name, sizeof a->name);
        a->next = reg->aliases;
        reg->aliases = a;
    }
    lk_version *old = a->current;
    fresh->number = ++a->last_number;
    fresh->current = true;
    a->current = fresh;
    fresh->next = reg->versions;
    reg->versions = fresh;
    if (!old) return;
    old->current = false;
    lk_version_settle(reg, old);
}

/* With the lock; leaves without a version that could be replaced and is in the pool only. */
static lk_status secure_current(lk_registry *reg, const char *name, lk_error *err)
{
    for (;;) {
        const lk_alias *a = lk_alias_find(reg, name);
        lk_version *old = a ? a->current : NULL;
        if (!old || !old->adapter || old->host.p) return LK_OK;
        LK_TRY(lk_version_secure(reg, old, err));
    }
}

/* From the adapter's bytes in host memory to the moved name. */
static lk_status bring(lk_registry *reg, lk_version *fresh, lk_alias **fresh_alias, lk_error *err)
{
    pthread_mutex_lock(&reg->lock);
    lk_status status = secure_current(reg, fresh->name, err);
    lk_answer heard = status ? LK_ASKED_NOTHING : ask(reg, fresh);
    pthread_mutex_unlock(&reg->lock);
    if (status) return status;
    if (heard == LK_STOPPING) return lk_fail(err, LK_ERR_INTERRUPTED, "the server is stopping");
    if (heard == LK_NO_PLACE) return too_many(reg, fresh->name, err);
    if (heard == LK_GRANTED) status = upload(reg, fresh, err);
    pthread_mutex_lock(&reg->lock);
    if (!status) status = secure_current(reg, fresh->name, err); /* a request may have brought it back meanwhile */
    if (!status) {
        flip(reg, fresh, fresh_alias);
        if (heard == LK_GRANTED) lk_version_arrive(reg, fresh);
    } else if (heard == LK_GRANTED) {
        lk_run_bury(reg, fresh->first, fresh->pages);
        reg->n_places--;
        reg->pages_in_use -= fresh->pages;
    }
    pthread_mutex_unlock(&reg->lock);
    return status;
}

static void describe(lk_version *v, const char *name, const char *path)
{
    snprintf(v->name, sizeof v->name, "%s", name);
    snprintf(v->path, sizeof v->path, "%s", path);
    memcpy(v->digest, v->content->digest, sizeof v->digest);
    v->max_rank = v->content->max_rank;
    v->bytes = (int64_t)lk_adapter_image_bytes(v->content);
    v->loaded_unix = lk_clock_unix();
}

lk_status lk_registry_load(lk_registry *reg, const char *name, const char *path, bool replace, int64_t *version, lk_error *err)
{
    LK_TRY(check_name(reg, name, err));
    if (!path || !*path || strlen(path) >= sizeof((lk_version *)0)->path)
        return lk_fail(err, LK_ERR_ARGUMENT, "adapter '%s': the path must have 1 to %zu bytes", name, sizeof((lk_version *)0)->path - 1);
    double began = lk_clock_seconds();
    lk_version *fresh = calloc(1, sizeof *fresh);
    lk_alias *fresh_alias = calloc(1, sizeof *fresh_alias);
    pthread_mutex_lock(&reg->naming);
    lk_status status = LK_OK;
    if (!fresh || !fresh_alias) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for adapter '%s'", name);
        goto out;
    }
    pthread_mutex_lock(&reg->lock);
    status = check_load(reg, name, replace, err);
    pthread_mutex_unlock(&reg->lock);
    if (status) goto out;
    if ((status = read_adapter(reg, name, path, &fresh->content, &fresh->host, err))) goto out;
    describe(fresh, name, path);
    if ((status = count_pages(reg, name, fresh->content, &fresh->pages, err))) goto out;
    if ((status = bring(reg, fresh, &fresh_alias, err))) goto out;

    pthread_mutex_lock(&reg->lock); /* it may be gone again, but for the name of it: nobody else loads */
    const lk_alias *a = lk_alias_find(reg, name);
    fresh = a->current;
    if (fresh) {
        if (version) *version = fresh->number;
        lk_log(LK_LOG_INFO, "adapter %s@%lld: rank %d, %lld bytes, digest %.12s, loaded from %s in %.0f ms%s", name,
               (long long)fresh->number, fresh->max_rank, (long long)fresh->bytes, fresh->digest, path, 1e3 * (lk_clock_seconds() - began),
               fresh->adapter ? "" : "; there is no memory for it at the moment, its first request brings it in");
        trim(reg, fresh);
    } else if (version) {
        *version = a->last_number;
    }
    pthread_mutex_unlock(&reg->lock);
    fresh = NULL;
out:
    if (fresh) {
        give(reg, &fresh->host);
        lk_adapter_destroy(fresh->content);
    }
    if (status) {
        pthread_mutex_lock(&reg->lock); /* a copy of the version that stays was for nothing */
        lk_alias *same = lk_alias_find(reg, name);
        if (same && same->current && same->current->adapter) trim(reg, same->current);
        pthread_mutex_unlock(&reg->lock);
    }
    pthread_mutex_unlock(&reg->naming);
    free(fresh);
    free(fresh_alias);
    return status;
}

/* ------------------------------------------------------------------------------------------------ wanted versions */

static lk_version *next_job(const lk_registry *reg, lk_version_job job)
{
    lk_version *v = reg->versions;
    while (v && v->job != job) v = v->next;
    return v;
}

/* Without a lock; v stays because it has a job. name, path and digest never change. */
static lk_status read_again(lk_registry *reg, const lk_version *v, lk_host_block *block, lk_error *err)
{
    lk_adapter *again;
    LK_TRY(read_adapter(reg, v->name, v->path, &again, block, err));
    bool same = !strcmp(again->digest, v->digest);
    lk_adapter_destroy(again);
    if (same) return LK_OK;
    give(reg, block);
    return lk_fail(err, LK_ERR_MISMATCH,
                   "adapter %s@%lld had left memory and %s now holds other weights: load it again to serve those as a new version", v->name,
                   (long long)v->number, v->path);
}

static lk_status do_job(lk_registry *reg, lk_version *v, lk_version_job job, lk_host_block *block, lk_error *err)
{
    if (job == LK_JOB_READ) return read_again(reg, v, block, err);
    return upload(reg, v, err);
}

/* With the lock. */
static void end_job(lk_registry *reg, lk_version *v, lk_status status, lk_host_block *block, const lk_error *err)
{
    bool uploaded = v->job == LK_JOB_UPLOAD;
    v->job = LK_JOB_NONE;
    if (status) {
        v->failed = true;
        v->error = *err;
    }
    if (uploaded && !status) {
        lk_version_arrive(reg, v);
        trim(reg, v);
    } else if (uploaded) {
        lk_run_bury(reg, v->first, v->pages);
        reg->n_places--;
        reg->pages_in_use -= v->pages;
    } else if (!status) {
        for (lk_version *other = reg->versions; other; other = other->next) trim(reg, other); /* read before, and never given memory */
        v->host = *block;
    }
    lk_version_settle(reg, v);
}

/* Two threads, so that a slow disk does not hold up what the host has. */
static void work(lk_registry *reg, lk_version_job job)
{
    pthread_mutex_lock(&reg->lock);
    for (;;) {
        lk_version *v;
        while (!reg->stop && !(v = next_job(reg, job))) pthread_cond_wait(&reg->work, &reg->lock);
        if (reg->stop) break;
        pthread_mutex_unlock(&reg->lock);
        lk_error err = {0};
        lk_host_block block = {0};
        lk_status status = do_job(reg, v, job, &block, &err);
        pthread_mutex_lock(&reg->lock);
        end_job(reg, v, status, &block, &err);
        pthread_mutex_unlock(&reg->lock);
        reg->options.changed(reg->options.context);
        pthread_mutex_lock(&reg->lock);
    }
    pthread_mutex_unlock(&reg->lock);
}

void *lk_registry_reads(void *registry)
{
    work(registry, LK_JOB_READ);
    return NULL;
}

void *lk_registry_uploads(void *registry)
{
    work(registry, LK_JOB_UPLOAD);
    return NULL;
}
