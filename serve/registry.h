/* The adapters a server knows: names, their versions, who uses them, and which are in memory.
 *
 *     lk_registry *reg;
 *     LK_TRY(lk_registry_open(&reg, model, &options, err));
 *     LK_TRY(lk_registry_load(reg, "acme", "adapters/acme", true, &version, err));    -- any thread, reads the folder there
 *     LK_TRY(lk_registry_pin(reg, "acme", &v, err));                                  -- a request takes the version of this moment
 *     if (lk_registry_hold(reg, v)) ... v->adapter may be used until lk_registry_drop(reg, v)
 *     lk_registry_unpin(reg, v);                                                      -- the request has ended
 *     lk_registry_close(reg);
 *
 * A name is an alias of its current version. Loading under a known name makes the next version and moves the alias in one step; the
 * version before serves those who pinned it and goes with the last of them. Unloading takes the alias away, with the same end.
 *
 * At most max_resident versions are in memory. A version whose folder was read once stays known when another one needs its place (the
 * least recently used that runs nothing leaves first); a request for it makes the engine ask for it (lk_registry_want) and waits. A thread
 * of the registry reads it again, so a slow disk delays nobody else. What comes back must have the digest it had: if the folder has
 * changed meanwhile, the requests end with an error, never with other weights. Old versions that still have requests are never put
 * out, since their folder usually holds the new version by then.
 *
 * Loading uses a backend of its own, of the same kind as the model's: one thread drives a backend at a time, and the model's is busy with
 * the forward. While a folder is read one adapter more than max_resident exists: it takes its place only once it is known to be good, so a
 * failed load changes nothing.
 *
 * Everything here may be called from any thread. */
#ifndef LK_SERVE_REGISTRY_H
#define LK_SERVE_REGISTRY_H

#include "model/adapter.h"
#include "serve/engine.h"
#include "serve/scheduler.h"

typedef struct lk_registry lk_registry;

typedef struct lk_version {
    lk_flow flow; /* first; the engine thread's: a version is one flow of the scheduler */
    char name[256], path[4096], digest[65];
    int64_t number; /* 1, 2, ... of this name */
    int64_t queued; /* the engine's, under its bell: submitted and never admitted yet */
    /* Constant while held. */
    const lk_adapter *adapter; /* NULL: not in memory */
    uint64_t serial;           /* differs for every time any version was brought into memory */
    /* The rest is the registry's, under its lock. */
    struct lk_adapter *resident;
    int64_t pins, active;
    bool current, wanted, failed;
    lk_error error;
    int32_t max_rank;
    int64_t bytes;
    double loaded_unix;
    uint64_t last_used;
    struct lk_version *next;
} lk_version;

typedef struct lk_registry_options {
    int32_t max_resident, max_rank;
    const struct lk_bundle_keys *trusted_keys; /* only bundles that these signed are loaded; NULL: anything. Borrowed until close */
    void (*changed)(void *context);            /* called by the registry's thread when a wanted version has arrived or failed */
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

/* From hold to drop the adapter stays where it is. false: it is not in memory. Holds are counted. */
bool lk_registry_hold(lk_registry *registry, lk_version *version);
void lk_registry_drop(lk_registry *registry, lk_version *version);
/* An old version that is in memory for its last requests only. */
bool lk_registry_drains(lk_registry *registry, lk_version *version);

/* Asks for a version that could not be held. Does nothing while it is on its way or nothing can be put out for it. Returns true, and the
 * reason, when the last attempt failed; the next request for it tries again. */
bool lk_registry_want(lk_registry *registry, lk_version *version, lk_error *reason);

void lk_registry_counts(lk_registry *registry, int64_t *loads, int64_t *evictions);

#endif
