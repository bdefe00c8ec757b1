/* Shared by registry.c (names, versions, requests), registry_room.c (the pool) and registry_load.c (folders, host memory, uploads).
 *
 * Locks. `lock` guards names, versions and the list of host memory; it is held for moments, never while a file is read or a copy to the
 * pool is under way. `naming` is held by an explicit load from beginning to end: there is one at a time. `loading` is held by whoever
 * drives the loader. They are taken in the order naming, loading, lock. The engine's thread takes only `lock`. */
#ifndef LK_SERVE_REGISTRY_INTERNAL_H
#define LK_SERVE_REGISTRY_INTERNAL_H

#include <pthread.h>

#include "serve/registry.h"

/* Host memory is given out in pieces of this size. */
enum { LK_HOST_PIECE = 1 << 20 };

/* A name keeps its place after an unload, so that version numbers are never used twice. */
typedef struct lk_alias {
    char name[256];
    int64_t last_number;
    lk_version *current; /* NULL: unloaded */
    struct lk_alias *next;
} lk_alias;

typedef struct lk_run {
    int32_t first, n;
} lk_run;

/* What an explicit load asks of the engine's thread, and hears. */
typedef enum lk_answer { LK_ASKED_NOTHING, LK_ASKED, LK_GRANTED, LK_NO_PLACE, LK_NO_ROOM, LK_STOPPING } lk_answer;

struct lk_registry {
    lk_registry_options options;
    const lk_model *model;
    lk_backend *loader;
    size_t page_bytes;
    pthread_mutex_t naming, loading, lock;
    pthread_cond_t work;     /* for the threads: a version has a job, or stop */
    pthread_cond_t answered; /* for an explicit load */
    pthread_t reader, uploader;
    bool stop;
    bool left; /* the engine's thread will not answer any more */
    lk_alias *aliases;
    lk_version *versions;
    /* The pool. */
    int32_t n_places;     /* versions in it or on their way */
    int64_t pages_in_use; /* of those that run something, and of those on their way */
    int64_t waited_pages; /* what a wanted version waits for: explicit loads leave it */
    lk_run *graves;       /* runs to collect; [max_resident + 1] */
    int32_t n_graves;
    lk_answer answer;
    const lk_version *asks; /* for whom: not known yet, but it has a name and pages */
    int32_t granted;
    /* Host memory. */
    lk_pages host; /* pieces; n_pages 0: none */
    char *host_memory;
    uint64_t clock, serials;
    int64_t loads, evictions;
};

/* ---- registry.c */

/* With the lock: forgets a version that nobody can reach any more. */
void lk_version_settle(lk_registry *registry, lk_version *version);
lk_alias *lk_alias_find(const lk_registry *registry, const char *name);

/* ---- registry_room.c; all with the lock */

/* The version to put out when room is needed: those nobody waits for first, then the least recently used. waited: one that only has
 * waiting requests may go too, for they bring it back; an explicit load must not push them about. */
lk_version *lk_version_idle(const lk_registry *registry, bool waited);
void lk_version_put_out(lk_registry *registry, lk_version *version);
/* Its weights are at the run it was given. */
void lk_version_arrive(lk_registry *registry, lk_version *version);
/* A run that was given for nothing. */
void lk_run_bury(lk_registry *registry, int32_t first, int32_t n);

/* ---- registry_load.c */

/* The threads: one for each kind of job. */
void *lk_registry_reads(void *registry);
void *lk_registry_uploads(void *registry);
/* With the lock, which it lets go for a while: a version that is about to be replaced or unloaded gets a copy in host memory, since
 * requests that use it may have to bring it back when its folder is another's. It may be gone on return. */
lk_status lk_version_secure(lk_registry *registry, lk_version *old, lk_error *err);
/* With the lock. */
void lk_host_give(lk_registry *registry, lk_host_block *block);

#endif
