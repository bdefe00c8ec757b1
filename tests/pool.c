#include "tests/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/log.h"
#include "serve/registry.h"
#include "tests/engine.h"

enum { N_ADAPTERS = 6, MOST_TABLE = 64, N_TASKS = 4, BIG = 4, TOO_BIG = 5, BESIDE_BIG = 14 };
static const int32_t RANKS[N_ADAPTERS] = {4, 8, 4, 8, 16, 32};

typedef struct known {
    char path[4200];
    void *values; /* what its weights must be */
    size_t bytes;
    int32_t pages;
} known;

typedef struct pool {
    check_model m;
    lk_kv *kv;
    size_t page_bytes;
    lk_pages pages;
    lk_scheduler scheduler;
    lk_registry *registry;
    atomic_bool changed;
    known adapters[N_ADAPTERS];
    lk_flow flow; /* of the tasks */
    lk_task tasks[N_TASKS];
    int32_t tables[N_TASKS][MOST_TABLE];
    int64_t moved;
} pool;

static void copy_page(void *context, int32_t to, int32_t from)
{
    pool *p = context;
    assert_int_equal(lk_copy(p->m.be, lk_kv_page(p->kv, to), lk_kv_page(p->kv, from), p->page_bytes), LK_OK);
    p->moved++;
}

static void move(void *context, int32_t first, int32_t n)
{
    pool *p = context;
    lk_scheduler_move(&p->scheduler, first, n, copy_page, p);
}

static bool reclaim(void *context, int64_t pages, bool waited) { return lk_registry_reclaim(((pool *)context)->registry, pages, waited); }

static void changed(void *context) { atomic_store(&((pool *)context)->changed, true); }

/* ------------------------------------------------------------------------------------------------ set up */

static void *from_heap(void *context, size_t bytes)
{
    (void)context;
    return malloc(bytes);
}

static void make_adapters(pool *p, const char *golden, const char *folder, size_t page_bytes)
{
    lk_error err = {0};
    lk_backend_options on_cpu = {.device = "cpu", .threads = 1, .compute = LK_F32};
    check_model cpu = check_model_open_on(golden, LK_QUANT_NF4, &on_cpu);
    lk_host_memory heap = {from_heap, NULL};
    for (int i = 0; i < N_ADAPTERS; i++) {
        known *a = &p->adapters[i];
        lk_adapter *read;
        snprintf(a->path, sizeof a->path, "%s/%d", folder, i);
        check_adapter_write(cpu.model, a->path, RANKS[i], (uint64_t)(3 * i + 2), 0.1f);
        CHECK_OK(lk_adapter_read(&read, &a->values, p->m.model, a->path, lk_backend_compute(p->m.be), NULL, &heap, &err), &err);
        a->bytes = lk_adapter_bytes(read);
        a->pages = (int32_t)((a->bytes + page_bytes - 1) / page_bytes);
        lk_adapter_destroy(read);
    }
    check_model_close(&cpu);
}

static void open_pool(pool *p, const lk_backend_options *backend, size_t host_bytes)
{
    lk_log_set_level(LK_LOG_WARN);
    lk_error err = {0};
    *p = (pool){0};
    char *golden = check_golden("models/llama-tiny"), *folder = check_temporary(strcmp(backend->device, "cpu") ? "pool_device" : "pool");
    p->m = check_model_open_on(golden, LK_QUANT_NF4, backend);
    lk_kv_shape shape = lk_infer_kv_shape(p->m.model, 16, 1);
    p->page_bytes = lk_kv_page_bytes(p->m.be, &shape);
    make_adapters(p, golden, folder, p->page_bytes);
    shape.n_pages = p->adapters[BIG].pages + BESIDE_BIG;
    assert_int_equal(lk_kv_create(p->m.be, &p->kv, &shape), LK_OK);
    CHECK_OK(lk_pages_init(&p->pages, shape.n_pages, 16, &err), &err);
    lk_scheduler_options scheduler = {.max_running = N_TASKS, .token_budget = 1024, .overtake = 100, .reclaim = reclaim, .context = p};
    CHECK_OK(lk_scheduler_init(&p->scheduler, &scheduler, &p->pages, &err), &err);
    lk_registry_options registry = {.max_resident = N_ADAPTERS,
                                    .max_rank = 64,
                                    .host_bytes = host_bytes,
                                    .pages = &p->pages,
                                    .kv = p->kv,
                                    .move = move,
                                    .changed = changed,
                                    .context = p};
    CHECK_OK(lk_registry_open(&p->registry, p->m.model, &registry, &err), &err);
    free(golden);
    free(folder);
}

static void finish(pool *p, int i) { lk_scheduler_finish(&p->scheduler, &p->tasks[i]); }

/* Whatever happened: without requests and adapters every page is free again. */
static void close_pool(pool *p)
{
    lk_error err = {0};
    lk_adapter_info *infos;
    int64_t n;
    for (int i = 0; i < N_TASKS; i++) finish(p, i);
    CHECK_OK(lk_registry_list(p->registry, &infos, &n, &err), &err);
    for (int64_t i = 0; i < n; i++) CHECK_OK(lk_registry_unload(p->registry, infos[i].name, &err), &err);
    free(infos);
    lk_registry_serve(p->registry, 0);
    lk_registry_counts counts;
    lk_registry_count(p->registry, &counts);
    assert_int_equal(counts.pages_in_use, 0);
    assert_int_equal(p->pages.n_runs, 0);
    assert_int_equal(p->pages.n_free, p->pages.n_pages);
    assert_int_equal(lk_pages_find(&p->pages, p->pages.n_pages), 0);
    lk_registry_close(p->registry);
    lk_scheduler_free(&p->scheduler);
    lk_pages_free(&p->pages);
    lk_kv_destroy(p->m.be, p->kv);
    for (int i = 0; i < N_ADAPTERS; i++) free(p->adapters[i].values);
    check_model_close(&p->m);
}

/* ------------------------------------------------------------------------------------------------ sequences */

static void pattern(char *bytes, size_t n, int task, int32_t index)
{
    check_random r = {(uint64_t)(task * 1000 + index + 1)};
    for (size_t i = 0; i < n; i++) bytes[i] = (char)check_random_u64(&r);
}

/* A sequence of n_pages pages, each with bytes of its own; most: of all it may ever need. */
static void run_task(pool *p, int i, int64_t n_pages, int64_t most)
{
    p->tasks[i] = (lk_task){.flow = &p->flow,
                            .n_tokens = n_pages * 16,
                            .most_tokens = most * 16,
                            .order = (uint64_t)i,
                            .table = {.pages = p->tables[i], .capacity = MOST_TABLE}};
    lk_scheduler_add(&p->scheduler, &p->tasks[i]);
    lk_scheduler_plan(&p->scheduler);
    lk_scheduler_commit(&p->scheduler);
    assert_int_equal(p->tasks[i].table.n, n_pages);
    char *bytes = malloc(p->page_bytes);
    for (int32_t k = 0; k < n_pages; k++) {
        pattern(bytes, p->page_bytes, i, k);
        assert_int_equal(lk_upload(p->m.be, lk_kv_page(p->kv, p->tables[i][k]), bytes, p->page_bytes), LK_OK);
    }
    free(bytes);
}

static void check_tasks(const pool *p)
{
    char *want = malloc(p->page_bytes), *got = malloc(p->page_bytes);
    for (int i = 0; i < N_TASKS; i++)
        for (int32_t k = 0; k < p->tasks[i].table.n; k++) {
            pattern(want, p->page_bytes, i, k);
            assert_int_equal(lk_download(p->m.be, got, lk_kv_page(p->kv, p->tables[i][k]), p->page_bytes), LK_OK);
            if (memcmp(got, want, p->page_bytes)) fail_msg("page %d of task %d has other bytes", k, i);
        }
    free(want);
    free(got);
}

/* ------------------------------------------------------------------------------------------------ adapters */

typedef struct loading {
    pool *p;
    const char *name, *path;
    lk_status status;
    lk_error err;
    atomic_bool done;
} loading;

static void *load_there(void *context)
{
    loading *l = context;
    l->status = lk_registry_load(l->p->registry, l->name, l->path, true, NULL, &l->err);
    atomic_store(&l->done, true);
    return NULL;
}

static void pause_shortly(void) { nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL); }

/* An explicit load from a thread of its own, which this one serves. */
static lk_status load(pool *p, const char *name, const char *path, lk_error *err)
{
    loading l = {.p = p, .name = name, .path = path};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, load_there, &l), 0);
    while (!atomic_load(&l.done)) {
        lk_registry_serve(p->registry, lk_scheduler_most_pages(&p->scheduler));
        pause_shortly();
    }
    pthread_join(thread, NULL);
    *err = l.err;
    return l.status;
}

static void must_load(pool *p, const char *name, int i)
{
    lk_error err = {0};
    CHECK_OK(load(p, name, p->adapters[i].path, &err), &err);
}

static lk_version *pin(pool *p, const char *name)
{
    lk_error err = {0};
    lk_version *v;
    CHECK_OK(lk_registry_pin(p->registry, name, &v, &err), &err);
    return v;
}

/* One step of waiting for v, as the engine does it. Returns the pages it waits for. */
static int64_t want(pool *p, lk_version *v)
{
    lk_error reason = {0};
    int64_t kept;
    lk_registry_serve(p->registry, lk_scheduler_most_pages(&p->scheduler));
    if (lk_registry_want(p->registry, v, lk_scheduler_most_pages(&p->scheduler), &kept, &reason)) fail_msg("%s", reason.message);
    return kept;
}

static bool held(pool *p, lk_version *v) { return lk_registry_hold(p->registry, v, lk_scheduler_most_pages(&p->scheduler)); }

/* Waits until v is in the pool, and holds it. */
static void bring_in(pool *p, lk_version *v)
{
    for (int i = 0; i < 50000; i++) {
        if (held(p, v)) return;
        want(p, v);
        pause_shortly();
    }
    fail_msg("%s never came", v->name);
}

static void check_weights(const pool *p, const lk_version *v, int i)
{
    const known *a = &p->adapters[i];
    assert_int_equal(v->pages, a->pages);
    char *got = malloc(a->bytes);
    assert_int_equal(lk_download(p->m.be, got, v->adapter->weights, a->bytes), LK_OK);
    if (memcmp(got, a->values, a->bytes)) fail_msg("adapter %s has other weights in the pool", v->name);
    assert_ptr_equal(v->adapter->weights, lk_kv_page(p->kv, v->first));
    free(got);
}

static void let_go(pool *p, lk_version *v)
{
    lk_registry_drop(p->registry, v);
    lk_registry_unpin(p->registry, v);
}

/* ------------------------------------------------------------------------------------------------ what happens */

/* Running sequences push an idle adapter out. Later enough pages are free for it, but not together: pages of sequences move. */
static void moves(const lk_backend_options *backend)
{
    pool p;
    open_pool(&p, backend, 0);
    must_load(&p, "big", BIG);
    assert_int_equal(p.pages.n_runs, p.adapters[BIG].pages);
    for (int i = 0; i < N_TASKS; i++) run_task(&p, i, 4, 4); /* sixteen pages, two more than there are beside it */
    assert_int_equal(p.pages.n_runs, 0);
    lk_version *v = pin(&p, "big");
    int64_t waits = 0;
    for (int i = 0; i < 50000 && !waits; i++, pause_shortly()) waits = want(&p, v);
    assert_int_equal(waits, p.adapters[BIG].pages);
    assert_false(held(&p, v));
    assert_int_equal(p.moved, 0);
    finish(&p, 0); /* the lowest four */
    bring_in(&p, v);
    assert_int_equal(p.moved, 2);
    check_weights(&p, v, BIG);
    check_tasks(&p);
    let_go(&p, v);
    close_pool(&p);
}

/* Free pages lie between adapters that are in use: these move together, over themselves where they have to. */
static void adapters_move(const lk_backend_options *backend)
{
    pool p;
    open_pool(&p, backend, 0);
    static const char *const names[] = {"a", "b", "c", "d"};
    lk_version *v[4];
    for (int i = 0; i < 4; i++) {
        must_load(&p, names[i], i);
        v[i] = pin(&p, names[i]);
    }
    bring_in(&p, v[1]);
    bring_in(&p, v[3]);
    uint64_t serial = v[1]->serial;
    lk_error err = {0};
    for (int i = 0; i < 4; i += 2) {
        lk_registry_unpin(p.registry, v[i]);
        CHECK_OK(lk_registry_unload(p.registry, names[i], &err), &err);
    }
    run_task(&p, 0, 5, 5); /* four pages below them, and one between them */
    int32_t places[2] = {v[1]->first, v[3]->first};
    must_load(&p, "again", 3);
    lk_version *again = pin(&p, "again");
    assert_true(held(&p, again));
    assert_true(v[1]->first > places[0] && v[3]->first > places[1]);
    assert_true(v[1]->serial != serial);
    assert_int_equal(p.moved, 0); /* the sequence could stay */
    check_weights(&p, v[1], 1);
    check_weights(&p, v[3], 3);
    check_weights(&p, again, 3);
    check_tasks(&p);
    let_go(&p, v[1]);
    let_go(&p, v[3]);
    let_go(&p, again);
    close_pool(&p);
}

/* What running sequences may come to need is left to them; what can never fit is refused. */
static void limits(const lk_backend_options *backend)
{
    pool p;
    lk_error err = {0};
    open_pool(&p, backend, 0);
    CHECK_FAILS(load(&p, "huge", p.adapters[TOO_BIG].path, &err), LK_ERR_UNSUPPORTED, "--kv-memory above", &err);
    run_task(&p, 0, 1, BESIDE_BIG + 1);
    must_load(&p, "big", BIG); /* known, though there is no memory for it */
    assert_int_equal(p.pages.n_runs, 0);
    lk_version *v = pin(&p, "big");
    for (int i = 0; i < 200; i++, pause_shortly()) want(&p, v);
    assert_false(held(&p, v));
    assert_int_equal(want(&p, v), p.adapters[BIG].pages);
    finish(&p, 0);
    bring_in(&p, v);
    assert_false(lk_registry_hold(p.registry, NULL, BESIDE_BIG + 1)); /* nor may such a request begin now */
    assert_true(lk_registry_hold(p.registry, NULL, BESIDE_BIG));
    assert_false(lk_registry_reclaim(p.registry, BESIDE_BIG + 1, true)); /* it is in use */
    let_go(&p, v);
    close_pool(&p);
}

/* With host memory an adapter comes back without its folder; without, the request hears why not. */
static void comes_back(const lk_backend_options *backend, size_t host_bytes)
{
    pool p;
    lk_error err = {0};
    open_pool(&p, backend, host_bytes);
    must_load(&p, "acme", 2);
    assert_true(lk_registry_reclaim(p.registry, p.pages.n_free ? p.adapters[2].pages : 1, false));
    CHECK_OK(lk_folder_remove(p.adapters[2].path, &err), &err);
    lk_adapter_info *infos;
    int64_t n, kept;
    CHECK_OK(lk_registry_list(p.registry, &infos, &n, &err), &err);
    assert_true(n == 1 && !infos[0].resident && infos[0].in_host == (host_bytes > 0));
    free(infos);
    lk_version *v = pin(&p, "acme");
    if (host_bytes) {
        bring_in(&p, v);
        check_weights(&p, v, 2);
        let_go(&p, v);
    } else {
        bool failed = false;
        for (int i = 0; i < 50000 && !failed; i++, pause_shortly()) failed = lk_registry_want(p.registry, v, 0, &kept, &err);
        assert_non_null(strstr(err.message, "nothing at"));
        lk_registry_unpin(p.registry, v);
    }
    close_pool(&p);
}

/* A version that requests wait for is replaced, and then put out: it comes back as what it was, though its folder is gone. */
static void replaced_and_put_out(const lk_backend_options *backend, size_t host_bytes)
{
    pool p;
    lk_error err = {0};
    open_pool(&p, backend, host_bytes);
    must_load(&p, "acme", 0);
    lk_version *old = pin(&p, "acme");
    must_load(&p, "acme", 1);
    CHECK_OK(lk_folder_remove(p.adapters[0].path, &err), &err);
    lk_version *fresh = pin(&p, "acme");
    assert_int_equal(fresh->number, 2);
    assert_true(lk_registry_reclaim(p.registry, p.pages.n_runs, true));
    assert_true(!held(&p, old) && !held(&p, fresh));
    bring_in(&p, old);
    bring_in(&p, fresh);
    check_weights(&p, old, 0);
    check_weights(&p, fresh, 1);
    let_go(&p, old);
    let_go(&p, fresh);
    close_pool(&p);
}

void check_pool(const lk_backend_options *backend)
{
    moves(backend);
    adapters_move(backend);
    limits(backend);
    for (size_t host = 0; host <= (size_t)4 << 20; host += (size_t)4 << 20) {
        comes_back(backend, host);
        replaced_and_put_out(backend, host);
    }
}
