/* One lock guards the names and versions and is held for moments. A second, `loading`, is held while a folder is read and while adapters
 * are destroyed, because only one thread at a time may drive the loading backend; it is taken before the first, never after.
 *
 * Freeing must not wait for a load to end (the engine thread frees), so adapters that are no longer wanted go onto a list of graves, and
 * whoever can take `loading` empties it; one who holds it empties it after letting go. */
#include "serve/registry.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"

/* A name keeps its place after an unload, so that version numbers are never used twice. */
typedef struct alias {
    char name[256];
    int64_t last_number;
    lk_version *current; /* NULL: unloaded */
    struct alias *next;
} alias;

struct lk_registry {
    lk_registry_options options;
    lk_model model; /* the base with the loading backend in place of its own */
    pthread_mutex_t lock, loading;
    pthread_cond_t work; /* for the thread: a version is wanted, or stop */
    pthread_t thread;
    bool stop;
    alias *aliases;
    lk_version *versions; /* current, or pinned, or being brought in */
    int32_t n_resident;
    lk_adapter **graves; /* room for every resident one and one that failed to take its place */
    int32_t n_graves;
    uint64_t clock, serials;
    int64_t loads, evictions;
};

static void *bring_in(void *context);

static void backend_device(char *device, size_t size, const lk_backend *be)
{
    snprintf(device, size, "%s", lk_backend_name(be)); /* "cpu/avx512" */
    device[strcspn(device, "/")] = 0;
}

lk_status lk_registry_open(lk_registry **registry, const lk_model *model, const lk_registry_options *options, lk_error *err)
{
    *registry = NULL;
    lk_registry *reg = calloc(1, sizeof *reg);
    lk_adapter **graves = calloc((size_t)options->max_resident + 2, sizeof *graves);
    lk_status status = LK_OK;
    if (!reg || !graves) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for a registry of %d adapters", options->max_resident);
        goto out;
    }
    reg->options = *options;
    reg->graves = graves;
    reg->model = *model;
    char device[32];
    backend_device(device, sizeof device, model->be);
    lk_backend_options backend = {.device = device, .threads = 1, .compute = lk_backend_compute(model->be)};
    if ((status = lk_backend_open(&reg->model.be, &backend, err))) goto out;
    pthread_mutex_init(&reg->lock, NULL);
    pthread_mutex_init(&reg->loading, NULL);
    pthread_cond_init(&reg->work, NULL);
    if (pthread_create(&reg->thread, NULL, bring_in, reg)) {
        lk_backend_close(reg->model.be);
        status = lk_fail(err, LK_ERR_MEMORY, "the system gave no thread for loading adapters");
        goto out;
    }
    *registry = reg;
    return LK_OK;
out:
    free(graves);
    free(reg);
    return status;
}

/* ------------------------------------------------------------------------------------------------ memory */

/* Holding `loading` but not the lock. */
static void bury_holding(lk_registry *reg)
{
    for (;;) {
        pthread_mutex_lock(&reg->lock);
        lk_adapter *dead = reg->n_graves ? reg->graves[--reg->n_graves] : NULL;
        pthread_mutex_unlock(&reg->lock);
        if (!dead) return;
        lk_adapter_destroy(dead);
    }
}

/* Without any lock. Never waits: whoever holds `loading` comes here after letting go. */
static void bury(lk_registry *reg)
{
    for (;;) {
        pthread_mutex_lock(&reg->lock);
        bool any = reg->n_graves > 0;
        pthread_mutex_unlock(&reg->lock);
        if (!any || pthread_mutex_trylock(&reg->loading)) return;
        bury_holding(reg);
        pthread_mutex_unlock(&reg->loading);
    }
}

/* A load begins and ends without graves, so that there are never more than the resident ones and the one being loaded. */
static void loading_begin(lk_registry *reg)
{
    pthread_mutex_lock(&reg->loading);
    bury_holding(reg);
}

static void loading_end(lk_registry *reg)
{
    bury_holding(reg);
    pthread_mutex_unlock(&reg->loading);
    bury(reg);
}

/* With the lock. */
static void put_out(lk_registry *reg, lk_version *v)
{
    if (!v->resident) return;
    reg->graves[reg->n_graves++] = v->resident;
    v->resident = NULL;
    v->adapter = NULL;
    reg->n_resident--;
}

static void take_place(lk_registry *reg, lk_version *v, lk_adapter *adapter)
{
    v->resident = adapter;
    v->adapter = adapter;
    v->serial = ++reg->serials;
    v->last_used = ++reg->clock;
    reg->n_resident++;
    reg->loads++;
}

/* With the lock: forgets a version that nobody can reach any more. */
static void version_settle(lk_registry *reg, lk_version *v)
{
    if (v->current || v->pins || v->wanted) return;
    put_out(reg, v);
    lk_version **at = &reg->versions;
    while (*at != v) at = &(*at)->next;
    *at = v->next;
    free(v);
}

/* With the lock: the version to put out when a place is needed; first those nobody waits for, then the least recently used. for_request:
 * one that only has waiting requests may go too, for they will bring it back; an explicit load must not push them about. */
static lk_version *find_idle(const lk_registry *reg, bool for_request)
{
    lk_version *best = NULL;
    for (lk_version *v = reg->versions; v; v = v->next) {
        if (!v->resident || v->active || (v->pins && (!v->current || !for_request))) continue;
        if (!best || !v->pins > !best->pins || (!v->pins == !best->pins && v->last_used < best->last_used)) best = v;
    }
    return best;
}

/* With the lock. */
static void evict(lk_registry *reg, lk_version *v)
{
    lk_log(LK_LOG_INFO, "adapter %s@%lld leaves memory to make room; its next request brings it back", v->name, (long long)v->number);
    put_out(reg, v);
    reg->evictions++;
}

static lk_status too_many(const lk_registry *reg, const char *name, lk_error *err)
{
    return lk_fail(err, LK_ERR_BUSY,
                   "adapter '%s': all %d places for adapters in memory are in use by requests; try again later, unload one, or start the "
                   "server with a "
                   "larger --max-resident-adapters",
                   name, reg->options.max_resident);
}

/* ------------------------------------------------------------------------------------------------ loading */

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
    if (!strcmp(name, reg->model.name))
        return lk_fail(err, LK_ERR_ARGUMENT,
                       "adapter '%s' has the name of the base model; requests could not tell them apart: choose another name", name);
    return LK_OK;
}

/* Holding `loading`. */
static lk_status read_adapter(lk_registry *reg, const char *name, const char *path, lk_adapter **adapter, lk_error *err)
{
    if (!lk_path_exists(path))
        return lk_fail(err, LK_ERR_NOT_FOUND, "adapter '%s': nothing at %s; give the path of a PEFT folder or a bundle", name, path);
    lk_status status =
        lk_adapter_load_trusted(adapter, &reg->model, path, lk_backend_compute(reg->model.be), reg->options.trusted_keys, err);
    if (status) return lk_error_prefix(err, status, "adapter '%s'", name);
    int32_t rank = (*adapter)->max_rank;
    if (rank <= reg->options.max_rank) return LK_OK;
    lk_adapter_destroy(*adapter);
    *adapter = NULL;
    return lk_fail(err, LK_ERR_UNSUPPORTED,
                   "adapter '%s' has rank %d and this server was started for at most %d: start it with a larger maximum rank", name, rank,
                   reg->options.max_rank);
}

static alias *find_alias(const lk_registry *reg, const char *name)
{
    for (alias *a = reg->aliases; a; a = a->next)
        if (!strcmp(a->name, name)) return a;
    return NULL;
}

/* With the lock: may this name be loaded, and would there be a place? */
static lk_status check_load(const lk_registry *reg, const char *name, bool replace, lk_error *err)
{
    const alias *a = find_alias(reg, name);
    const lk_version *old = a ? a->current : NULL;
    if (old && !replace)
        return lk_fail(err, LK_ERR_CONFLICT, "adapter '%s' is loaded already (version %lld); ask for a replacement, or unload it first",
                       name, (long long)old->number);
    if (reg->n_resident < reg->options.max_resident || (old && old->resident && !old->pins) || find_idle(reg, false)) return LK_OK;
    return too_many(reg, name, err);
}

/* With the lock: what was checked is done, in an order that cannot fail half way. fresh and fresh_alias are taken over. */
static void flip(lk_registry *reg, lk_version *fresh, alias *fresh_alias, lk_adapter *adapter)
{
    alias *a = find_alias(reg, fresh->name);
    if (!a) {
        a = fresh_alias;
        fresh_alias = NULL;
        memcpy(a->name, fresh->name, sizeof a->name);
        a->next = reg->aliases;
        reg->aliases = a;
    }
    free(fresh_alias);
    lk_version *old = a->current;
    fresh->number = ++a->last_number;
    fresh->current = true;
    a->current = fresh;
    if (old) {
        old->current = false;
        version_settle(reg, old);
    }
    if (reg->n_resident >= reg->options.max_resident) evict(reg, find_idle(reg, false));
    take_place(reg, fresh, adapter);
    fresh->next = reg->versions;
    reg->versions = fresh;
}

lk_status lk_registry_load(lk_registry *reg, const char *name, const char *path, bool replace, int64_t *version, lk_error *err)
{
    LK_TRY(check_name(reg, name, err));
    if (!path || !*path || strlen(path) >= sizeof((lk_version *)0)->path)
        return lk_fail(err, LK_ERR_ARGUMENT, "adapter '%s': the path must have 1 to %zu bytes", name, sizeof((lk_version *)0)->path - 1);
    double began = lk_clock_seconds();
    lk_adapter *adapter = NULL;
    lk_version *fresh = calloc(1, sizeof *fresh);
    alias *fresh_alias = calloc(1, sizeof *fresh_alias);
    loading_begin(reg);
    pthread_mutex_lock(&reg->lock);
    lk_status status =
        fresh && fresh_alias ? check_load(reg, name, replace, err) : lk_fail(err, LK_ERR_MEMORY, "no memory for adapter '%s'", name);
    pthread_mutex_unlock(&reg->lock);
    if (status || (status = read_adapter(reg, name, path, &adapter, err))) goto out;
    snprintf(fresh->name, sizeof fresh->name, "%s", name);
    snprintf(fresh->path, sizeof fresh->path, "%s", path);
    memcpy(fresh->digest, adapter->digest, sizeof fresh->digest);
    fresh->max_rank = adapter->max_rank;
    fresh->bytes = (int64_t)lk_adapter_bytes(adapter);
    fresh->loaded_unix = lk_clock_unix();
    pthread_mutex_lock(&reg->lock);
    status = check_load(reg, name, replace, err); /* requests may have come meanwhile */
    if (!status) {
        flip(reg, fresh, fresh_alias, adapter);
        if (version) *version = fresh->number;
        lk_log(LK_LOG_INFO, "adapter %s@%lld: rank %d, %lld bytes, digest %.12s, loaded from %s in %.0f ms", name, (long long)fresh->number,
               fresh->max_rank, (long long)fresh->bytes, fresh->digest, path, 1e3 * (lk_clock_seconds() - began));
        fresh = NULL;
        fresh_alias = NULL;
        adapter = NULL;
    }
    pthread_mutex_unlock(&reg->lock);
out:
    lk_adapter_destroy(adapter);
    loading_end(reg);
    free(fresh);
    free(fresh_alias);
    return status;
}

lk_status lk_registry_unload(lk_registry *reg, const char *name, lk_error *err)
{
    pthread_mutex_lock(&reg->lock);
    alias *a = find_alias(reg, name);
    lk_version *v = a ? a->current : NULL;
    if (v) {
        a->current = NULL;
        v->current = false;
        lk_log(LK_LOG_INFO, "adapter %s@%lld: unloaded; %lld requests still use it", v->name, (long long)v->number, (long long)v->pins);
        version_settle(reg, v);
    }
    pthread_mutex_unlock(&reg->lock);
    if (!v) return lk_fail(err, LK_ERR_NOT_FOUND, "adapter '%s' is not loaded", name);
    bury(reg);
    return LK_OK;
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
        info->resident = v->resident != NULL;
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
        const alias *a = find_alias(reg, name);
        return a ? a->current : NULL;
    }
    char *end;
    long long number = strtoll(at + 1, &end, 10);
    if (end == at + 1 || *end) return NULL;
    size_t n = (size_t)(at - name);
    for (lk_version *v = reg->versions; v; v = v->next)
        if (v->number == number && strlen(v->name) == n && !memcmp(v->name, name, n)) {
            /* After an unload the name is gone, with all of its versions. */
            const alias *a = find_alias(reg, v->name);
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
    version_settle(reg, v);
    pthread_mutex_unlock(&reg->lock);
    bury(reg);
}

bool lk_registry_hold(lk_registry *reg, lk_version *v)
{
    pthread_mutex_lock(&reg->lock);
    bool resident = v->resident != NULL;
    if (resident) {
        v->active++;
        v->last_used = ++reg->clock;
    }
    pthread_mutex_unlock(&reg->lock);
    return resident;
}

void lk_registry_drop(lk_registry *reg, lk_version *v)
{
    pthread_mutex_lock(&reg->lock);
    v->active--;
    pthread_mutex_unlock(&reg->lock);
}

bool lk_registry_drains(lk_registry *reg, lk_version *v)
{
    pthread_mutex_lock(&reg->lock);
    bool drains = !v->current && v->resident;
    pthread_mutex_unlock(&reg->lock);
    return drains;
}

void lk_registry_counts(lk_registry *reg, int64_t *loads, int64_t *evictions)
{
    pthread_mutex_lock(&reg->lock);
    *loads = reg->loads;
    *evictions = reg->evictions;
    pthread_mutex_unlock(&reg->lock);
}

/* ------------------------------------------------------------------------------------------------ bringing versions back */

bool lk_registry_want(lk_registry *reg, lk_version *v, lk_error *reason)
{
    pthread_mutex_lock(&reg->lock);
    bool failed = v->failed;
    if (failed) {
        *reason = v->error;
        v->failed = false;
    } else if (!v->wanted && !v->resident && (reg->n_resident < reg->options.max_resident || find_idle(reg, true))) {
        v->wanted = true;
        pthread_cond_signal(&reg->work);
    }
    pthread_mutex_unlock(&reg->lock);
    return failed;
}

static lk_version *next_wanted(const lk_registry *reg)
{
    lk_version *v = reg->versions;
    while (v && !v->wanted) v = v->next;
    return v;
}

/* Without a lock; v stays because it is wanted. name, path and digest never change. */
static lk_status read_again(lk_registry *reg, const lk_version *v, lk_adapter **adapter, lk_error *err)
{
    lk_status status = read_adapter(reg, v->name, v->path, adapter, err);
    if (status || !strcmp((*adapter)->digest, v->digest)) return status;
    lk_adapter_destroy(*adapter);
    *adapter = NULL;
    return lk_fail(err, LK_ERR_MISMATCH,
                   "adapter %s@%lld had left memory and %s now holds other weights: load it again to serve those as a new version", v->name,
                   (long long)v->number, v->path);
}

/* The registry's thread. */
static void *bring_in(void *context)
{
    lk_registry *reg = context;
    pthread_mutex_lock(&reg->lock);
    for (;;) {
        lk_version *v;
        while (!reg->stop && !(v = next_wanted(reg))) pthread_cond_wait(&reg->work, &reg->lock);
        if (reg->stop) break;
        pthread_mutex_unlock(&reg->lock);

        lk_adapter *adapter = NULL;
        lk_error err = {0};
        loading_begin(reg);
        lk_status status = read_again(reg, v, &adapter, &err);
        pthread_mutex_lock(&reg->lock);
        lk_version *idle = reg->n_resident < reg->options.max_resident ? NULL : find_idle(reg, true);
        if (status) {
            v->failed = true;
            v->error = err;
        } else if (reg->n_resident < reg->options.max_resident || idle) {
            if (idle) evict(reg, idle);
            take_place(reg, v, adapter);
        } else {
            reg->graves[reg->n_graves++] = adapter; /* the place was taken by an explicit load: the engine asks again */
        }
        v->wanted = false;
        version_settle(reg, v);
        pthread_mutex_unlock(&reg->lock);
        loading_end(reg);
        reg->options.changed(reg->options.context);
        pthread_mutex_lock(&reg->lock);
    }
    pthread_mutex_unlock(&reg->lock);
    return NULL;
}

void lk_registry_close(lk_registry *reg)
{
    if (!reg) return;
    pthread_mutex_lock(&reg->lock);
    reg->stop = true;
    pthread_cond_signal(&reg->work);
    pthread_mutex_unlock(&reg->lock);
    pthread_join(reg->thread, NULL);
    bury(reg);
    while (reg->versions) {
        lk_version *v = reg->versions;
        reg->versions = v->next;
        lk_adapter_destroy(v->resident);
        free(v);
    }
    while (reg->aliases) {
        alias *a = reg->aliases;
        reg->aliases = a->next;
        free(a);
    }
    lk_backend_close(reg->model.be);
    pthread_cond_destroy(&reg->work);
    pthread_mutex_destroy(&reg->loading);
    pthread_mutex_destroy(&reg->lock);
    free(reg->graves);
    free(reg);
}
