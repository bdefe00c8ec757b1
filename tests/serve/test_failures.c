/* Faults while adapters come in: a copy to the device or from it that fails; memory that the host does not give; a host tier
 * that is too small for what it should keep. Whoever waits for the adapter hears what went wrong, nobody else notices, the next request
 * tries again, and nothing is lost: pages, places and host memory are all there afterwards. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "kernels/backend.h"
#include "tests/engine.h"

enum { N = 4, PIECE = 1 << 20 };

/* A backend whose loaders fail when they are told to. */
typedef struct faulty {
    lk_ops ops, loader_ops;
    const lk_ops *real, *loader_real;
    lk_backend *be;
    atomic_int uploads, downloads; /* so many of the next ones fail */
    atomic_bool host;              /* no pinned memory */
} faulty;

static faulty *planted;

static lk_status upload(lk_backend *be, void *device, const void *host, size_t bytes)
{
    if (atomic_fetch_sub(&planted->uploads, 1) > 0) return lk_fail(&be->error, LK_ERR_INTERNAL, "planted: the device takes no copy");
    atomic_fetch_add(&planted->uploads, 1);
    return planted->loader_real->upload(be, device, host, bytes);
}

static lk_status download(lk_backend *be, void *host, const void *device, size_t bytes)
{
    if (atomic_fetch_sub(&planted->downloads, 1) > 0) return lk_fail(&be->error, LK_ERR_INTERNAL, "planted: the device gives no copy");
    atomic_fetch_add(&planted->downloads, 1);
    return planted->loader_real->download(be, host, device, bytes);
}

static lk_status host_alloc(lk_backend *be, size_t bytes, void **out)
{
    if (atomic_load(&planted->host)) return lk_fail(&be->error, LK_ERR_MEMORY, "planted: no pinned memory for %zu bytes", bytes);
    return planted->loader_real->host_alloc(be, bytes, out);
}

static lk_status loader_open(lk_backend **loader, lk_backend *be, lk_error *err)
{
    LK_TRY(planted->real->loader_open(loader, be, err));
    planted->loader_real = (*loader)->ops;
    planted->loader_ops = *(*loader)->ops;
    planted->loader_ops.upload = upload;
    planted->loader_ops.download = download;
    planted->loader_ops.host_alloc = host_alloc;
    (*loader)->ops = &planted->loader_ops;
    return LK_OK;
}

typedef struct scene {
    check_model m;
    faulty faulty;
    char *folders[N];
    int32_t prompt[24];
    lk_request_spec spec;
    check_answer *alone[N + 1];
} scene;

static const char *const names[N] = {"a0", "a1", "a2", "a3"};

static lk_engine *start(scene *s, int32_t max_resident, size_t host)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_resident_adapters = max_resident;
    o.max_rank = 8;
    o.adapter_host_bytes = (int64_t)host;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, s->m.model, &o, &err), &err);
    return engine;
}

static lk_request *submit(scene *s, lk_engine *engine, int i)
{
    lk_error err = {0};
    lk_request *request;
    lk_request_spec spec = s->spec;
    spec.adapter = i < N ? names[i] : NULL;
    CHECK_OK(lk_engine_submit(engine, &spec, &request, &err), &err);
    return request;
}

static void collect(scene *s, lk_request *request, int i)
{
    check_answer *a = check_collect(request);
    check_same_answer("answer", a, s->alone[i]);
    free(a);
}

static void ask(scene *s, lk_engine *engine, int i) { collect(s, submit(s, engine, i), i); }

static void collect_error(lk_request *request, const char *adapter, const char *cause)
{
    check_answer *a = check_collect(request);
    assert_int_equal(a->finish, LK_FINISH_ERROR);
    if (!strstr(a->error.message, adapter) || !strstr(a->error.message, cause))
        fail_msg("the error '%s' does not name %s and '%s'", a->error.message, adapter, cause);
    free(a);
}

static void load(scene *s, lk_engine *engine, int i)
{
    lk_error err = {0};
    CHECK_OK(lk_engine_load_adapter(engine, names[i], s->folders[i], true, NULL, &err), &err);
}

/* Nothing runs, and of the pool only resident adapters have pages. */
static void check_idle(lk_engine *engine, int resident)
{
    lk_error err = {0};
    lk_adapter_info *list;
    int64_t n, found = 0;
    lk_engine_stats stats;
    check_engine_idle(engine);
    CHECK_OK(lk_engine_list_adapters(engine, &list, &n, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        found += list[i].resident;
        assert_int_equal(list[i].running + list[i].waiting, 0);
    }
    free(list);
    for (int i = 0; i < 2000 && (lk_engine_get_stats(engine, &stats), resident == 0 && stats.pages_adapters); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the engine's thread collects what was put out */
    assert_int_equal(found, resident);
    assert_true((stats.pages_adapters == 0) == (resident == 0));
    assert_int_equal(stats.pages_adapters_in_use, 0);
}

static int open_scene(void **state)
{
    lk_log_set_level(LK_LOG_ERROR + 1);
    scene *s = calloc(1, sizeof *s);
    char *golden = check_golden("models/llama-tiny"), *folder = check_temporary("failures");
    s->m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    for (int i = 0; i < N; i++) {
        s->folders[i] = malloc(4200);
        snprintf(s->folders[i], 4200, "%s/%d", folder, i);
        check_adapter_write(s->m.model, s->folders[i], 4 + i, (uint64_t)i + 1, 0.1f);
    }
    free(folder);
    free(golden);
    for (int t = 0; t < 24; t++) s->prompt[t] = 3 + t * 5;
    lk_request_spec_default(&s->spec);
    s->spec.prompt = s->prompt;
    s->spec.n_prompt = 24;
    s->spec.max_tokens = 20;
    s->spec.ignore_eos = true;
    s->spec.n_logprobs = 1;
    planted = &s->faulty;
    s->faulty.real = s->m.be->ops;
    s->faulty.ops = *s->m.be->ops;
    s->faulty.ops.loader_open = loader_open;
    s->m.be->ops = &s->faulty.ops;
    lk_engine *engine = start(s, N, 0);
    for (int i = 0; i <= N; i++) {
        lk_request_spec spec = s->spec;
        if (i < N) load(s, engine, i);
        spec.adapter = i < N ? names[i] : NULL;
        s->alone[i] = check_ask(engine, &spec);
    }
    lk_engine_stop(engine);
    *state = s;
    return 0;
}

static int close_scene(void **state)
{
    scene *s = *state;
    s->m.be->ops = s->faulty.real;
    for (int i = 0; i <= N; i++) free(s->alone[i]);
    for (int i = 0; i < N; i++) free(s->folders[i]);
    check_model_close(&s->m);
    free(s);
    return 0;
}

/* An adapter that was put out and is wanted again: from its folder, and from host memory. */
static void test_a_wanted_one(void **state)
{
    scene *s = *state;
    for (int host = 0; host < 2; host++) {
        lk_engine *engine = start(s, 2, (size_t)host * N * PIECE);
        for (int i = 0; i < 3; i++) load(s, engine, i); /* a0 leaves */
        lk_request *others[4];
        for (int i = 0; i < 4; i++) others[i] = submit(s, engine, i % 2 ? N : 2);
        atomic_store(&s->faulty.uploads, 1);
        lk_request *unlucky = submit(s, engine, 0), *second = submit(s, engine, 0);
        collect_error(unlucky, "a0", "planted: the device takes no copy");
        check_answer *a = check_collect(second); /* waited for the same attempt, or came after it */
        if (a->finish == LK_FINISH_ERROR)
            assert_non_null(strstr(a->error.message, "planted"));
        else
            check_same_answer("the next try", a, s->alone[0]);
        free(a);
        for (int i = 0; i < 4; i++) collect(s, others[i], i % 2 ? N : 2);
        assert_int_equal(atomic_load(&s->faulty.uploads), 0);
        ask(s, engine, 0);
        for (int i = 0; i < 3; i++) ask(s, engine, i);
        check_idle(engine, 2);
        lk_engine_stop(engine);
    }
}

/* A load that asks for a new name, and one that would replace a version in use. */
static void test_an_explicit_load(void **state)
{
    scene *s = *state;
    lk_error err = {0};
    lk_engine *engine = start(s, 2, 0);
    int64_t version = 0;
    load(s, engine, 1);
    lk_request *running = submit(s, engine, 1);
    atomic_store(&s->faulty.uploads, 1);
    CHECK_FAILS(lk_engine_load_adapter(engine, "a0", s->folders[0], false, NULL, &err), LK_ERR_INTERNAL, "adapter 'a0'", &err);
    assert_non_null(strstr(err.message, "planted"));
    lk_request *none;
    lk_request_spec spec = s->spec;
    spec.adapter = "a0";
    CHECK_FAILS(lk_engine_submit(engine, &spec, &none, &err), LK_ERR_NOT_FOUND, "a0", &err);
    atomic_store(&s->faulty.uploads, 1);
    CHECK_FAILS(lk_engine_load_adapter(engine, "a1", s->folders[2], true, NULL, &err), LK_ERR_INTERNAL, "planted", &err);
    collect(s, running, 1);
    ask(s, engine, 1);
    check_idle(engine, 1);
    CHECK_OK(lk_engine_load_adapter(engine, "a1", s->folders[1], true, &version, &err), &err);
    assert_int_equal(version, 2); /* the one that failed has no number */
    load(s, engine, 0);
    for (int i = 0; i < 2; i++) ask(s, engine, i);
    check_idle(engine, 2);
    lk_engine_stop(engine);
}

/* The copy of a version in use that is to be replaced cannot be made: it stays. Unloaded it has its folder. */
static void test_no_copy_of_the_old(void **state)
{
    scene *s = *state;
    lk_error err = {0};
    lk_engine *engine = start(s, 2, 0);
    load(s, engine, 1);
    lk_request *running = submit(s, engine, 1);
    atomic_store(&s->faulty.downloads, 1);
    CHECK_FAILS(lk_engine_load_adapter(engine, "a1", s->folders[2], true, NULL, &err), LK_ERR_INTERNAL, "planted: the device gives", &err);
    collect(s, running, 1);
    ask(s, engine, 1);
    check_idle(engine, 1);
    running = submit(s, engine, 1);
    atomic_store(&s->faulty.downloads, 1);
    CHECK_OK(lk_engine_unload_adapter(engine, "a1", &err), &err);
    atomic_store(&s->faulty.downloads, 0);
    collect(s, running, 1);
    check_idle(engine, 0);
    lk_engine_stop(engine);
}

static void test_no_pinned_memory(void **state)
{
    scene *s = *state;
    lk_error err = {0};
    lk_engine_options o;
    lk_engine *engine;
    lk_engine_options_default(&o);
    o.adapter_host_bytes = 8 * PIECE;
    size_t before = lk_allocated(s->m.be);
    atomic_store(&s->faulty.host, true);
    CHECK_FAILS(lk_engine_start(&engine, s->m.model, &o, &err), LK_ERR_MEMORY, "--adapter-host-memory", &err);
    atomic_store(&s->faulty.host, false);
    assert_int_equal(lk_allocated(s->m.be), before);
}

/* One piece for three adapters: the one used last has it, the others come from their folders. */
static void test_host_memory_is_full(void **state)
{
    scene *s = *state;
    lk_error err = {0};
    lk_engine *engine = start(s, 1, PIECE);
    for (int i = 0; i < N; i++) load(s, engine, i);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < N; i++) ask(s, engine, i);
    lk_request *all[3 * N];
    for (int i = 0; i < 3 * N; i++) all[i] = submit(s, engine, i % N);
    for (int i = 0; i < 3 * N; i++) collect(s, all[i], i % N);
    check_idle(engine, 1);
    lk_adapter_info *list;
    int64_t n, in_host = 0;
    CHECK_OK(lk_engine_list_adapters(engine, &list, &n, &err), &err);
    for (int64_t i = 0; i < n; i++) in_host += list[i].in_host;
    free(list);
    assert_int_equal(n, N);
    assert_int_equal(in_host, 1);
    lk_engine_stop(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_wanted_one),     cmocka_unit_test(test_an_explicit_load),    cmocka_unit_test(test_no_copy_of_the_old),
        cmocka_unit_test(test_no_pinned_memory), cmocka_unit_test(test_host_memory_is_full),
    };
    return cmocka_run_group_tests(tests, open_scene, close_scene);
}
