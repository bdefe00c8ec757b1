/* The adapters a server knows: names, their versions, who uses them, and which are in memory.
 *
 *     lk_registry *reg;
 *     LK_TRY(lk_registry_open(&reg, model, &options, err));
 *     LK_TRY(lk_registry_load(reg, "acme", "adapters/acme", true, &version, err));    -- any thread, reads the folder there
 *     LK_TRY(lk_registry_pin(reg, "acme", &v, err));                                  -- a request takes the version of this moment
 *     if (lk_registry_hold(reg, v, pages)) ... v->adapter may be used until lk_registry_drop(reg, v)
 *     lk_registry_unpin(reg, v);                                                      -- the request has ended
 *     lk_registry_close(reg);
 *
 * A name is an alias of its current version. Loading under a known name makes the next version and moves the alias in one step; the
 * version before serves those who pinned it and goes with the last of them. Unloading takes the alias away, with the same end.
 *
 * Where adapters lie. Their weights are runs of pages of the pool that they share with keys and values (serve/pages.h); at most
 * max_resident versions are in it. One that runs nothing leaves it when another adapter or a sequence needs the memory: those that no
 * request waits for first, then the least recently used. It stays known, and what it takes to bring it back is kept as well as
 * can be: its bytes, laid out as they will lie in the pool, in a piece of pinned host memory (host_bytes, taken at the start), where the
 * least recently used make room; else its folder. A request for a version that is outside makes the engine ask for it (lk_registry_want)
 * and waits, while others run. A thread of the registry reads the folder, if need be, and uploads beside the computing, on a loader.
 *
 * What is read again must have the digest it had: if the folder has changed meanwhile, the requests end with an error, never with other
 * weights. A version that is replaced or unloaded while requests still use it therefore keeps its bytes in host memory until the last of
 * them ends.
 *
 * Memory is given out by the engine's thread alone, between two steps: it owns the pages, and may have to move some to make a run.
 * Loading asks it and waits (lk_registry_serve answers at the next iteration); freeing leaves runs for it to collect. What is given out may
 * still be used by steps that are queued: the loader is put behind them (lk_loader_after), nobody waits.
 *
 *   an explicit load    read the folder -> ask for memory -> upload -> the name moves to the new version. Nothing changes before the
 *                       adapter is known to be good. Without memory at the moment the version is known, and its first request brings it in.
 *   a wanted version    read its folder, unless the host has its bytes -> memory, as soon as there is enough -> upload
 *
 * Everything here may be called from any thread, unless it says otherwise. */
#ifndef LK_SERVE_REGISTRY_H
#define LK_SERVE_REGISTRY_H

#include "model/adapter.h"
#include "serve/engine.h"
#include "serve/scheduler.h"

typedef struct lk_registry lk_registry;

/* What the registry's thread has to do for a version. */
typedef enum lk_version_job { LK_JOB_NONE, LK_JOB_READ, LK_JOB_UPLOAD } lk_version_job;

/* An adapter's bytes in host memory: n pieces of the registry's own, or from the heap (n 0). */
typedef struct lk_host_block {
    void *p; /* NULL: none */
    int32_t first, n;
} lk_host_block;

typedef struct lk_version {
    lk_flow flow; /* first; the engine thread's: a version is one flow of the scheduler */
    char name[256], path[4096], digest[65];
    int64_t number; /* 1, 2, ... of this name */
    int64_t queued; /* the engine's, under its bell: submitted and never admitted yet */
    int32_t pages;  /* of its run */
    /* Constant while held, but for the place of the weights and with it the serial, which change between steps. */
    const lk_adapter *adapter; /* NULL: not in the pool */
    uint64_t serial;           /* differs for every time any version came into the pool, or was moved in it */
    /* The rest is the registry's, under its lock. */
    lk_adapter *content; /* always there; its weights only while it is in the pool */
    int32_t first;       /* page of its run, in the pool or on the way there */
    lk_host_block host;
    lk_version_job job;
    int64_t pins, active;
    int32_t copied_out; /* threads that read its weights: they may neither go nor move */
    bool current, failed;
    lk_error error;
    int32_t max_rank;
    int64_t bytes;
    double loaded_unix;
    uint64_t last_used;
    struct lk_version *next;
} lk_version;

typedef struct lk_registry_options {
    int32_t max_resident, max_rank;
    size_t host_bytes;                         /* pinned memory for adapters outside the pool; 0: none */
    const struct lk_bundle_keys *trusted_keys; /* only bundles that these signed are loaded; NULL: anything. Borrowed until close */
    lk_pages *pages;                           /* the pool, and what its pages are; the engine thread's, borrowed until close */
    lk_kv *kv;
    /* The engine thread's: moves sequences' pages in [first, first + n) (lk_scheduler_move). */
    void (*move)(void *context, int32_t first, int32_t n);
    void (*changed)(void *context); /* any thread's: the engine has something to look at */
    void *context;
} lk_registry_options;

lk_status lk_registry_open(lk_registry **registry, const lk_model *model, const lk_registry_options *options, lk_error *err);
void lk_registry_close(lk_registry *registry); /* NULL is fine; nothing may be pinned any more */

/* lk_engine_load_adapter, lk_engine_unload_adapter and lk_engine_list_adapters of serve/engine.h. */
lk_status lk_registry_load(lk_registry *registry, const char *name, const char *path, bool replace, int64_t *version, lk_error *err);
lk_status lk_registry_unload(lk_registry *registry, const char *name, lk_error *err);
lk_status lk_registry_list(lk_registry *registry, lk_adapter_info **list, int64_t *n, lk_error *err);

/* name or name@version. LK_ERR_NOT_FOUND says what is known. A pinned version stays valid memory. */
lk_status lk_registry_pin(lk_registry *registry, const char *name, lk_version **version, lk_error *err);
void lk_registry_unpin(lk_registry *registry, lk_version *version);

/* ------------------------------------------------------------------------------------------------ the engine's thread alone */

/* Once in every iteration, before the plan: collects runs that were freed and answers a load that asks for memory. most_pages: what
 * running sequences may come to need (lk_scheduler_most_pages); memory for adapters must leave that. */
void lk_registry_serve(lk_registry *registry, int64_t most_pages);
/* The last call of the engine's thread: whoever asks for memory from now on hears that the server stops. */
void lk_registry_leave(lk_registry *registry);

/* From hold to drop the adapter stays in the pool. false: it is not there, or most_pages do not fit beside the adapters in use. version
 * NULL: the base, for which only the latter counts. Holds are counted. */
bool lk_registry_hold(lk_registry *registry, lk_version *version, int64_t most_pages);
void lk_registry_drop(lk_registry *registry, lk_version *version);
/* Puts out adapters that run nothing until `pages` more are free; false, and none, where that is not enough. waited: also such as requests
 * wait for. */
bool lk_registry_reclaim(lk_registry *registry, int64_t pages, bool waited);
/* An old version that is in memory for its last requests only. */
bool lk_registry_drains(lk_registry *registry, lk_version *version);

/* Asks for a version that could not be held. Does nothing while it is on its way. *kept: the pages it waits for, which newcomers should
 * leave; 0 when it waits for none. Returns true, and the reason, when the last attempt failed; the next request for it tries again. */
bool lk_registry_want(lk_registry *registry, lk_version *version, int64_t most_pages, int64_t *kept, lk_error *reason);

/* ------------------------------------------------------------------------------------------------ observation */

typedef struct lk_registry_counts {
    int64_t loads, evictions;
    int32_t pages_in_use; /* of adapters that run something or are on their way */
} lk_registry_counts;
void lk_registry_count(lk_registry *registry, lk_registry_counts *counts);

#endif
