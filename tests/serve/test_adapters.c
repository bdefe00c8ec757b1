/* Adapters that come, go and change while requests run. What must hold: a request is answered by the version it began with, whatever
 * happens to its name; a load that fails changes nothing; memory holds no more versions than it may, and nobody waits for ever for a place.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "data/bundle.h"
#include "tests/engine.h"

enum { N_FOLDERS = 6 };

typedef struct fixture {
    check_model m;     /* the engine's */
    check_model maker; /* writes adapters while the engine runs */
    char *folder;
    char paths[N_FOLDERS][4200]; /* adapters with seeds 1, 2, ... and ranks 4, 8, ... */
    int32_t prompt[24];
    lk_request_spec spec;
    check_answer *alone[N_FOLDERS + 1]; /* what each adapter answers; the last: the base */
} fixture;

static int32_t rank_of(int i) { return 4 * (i + 1); }

static lk_engine *start(fixture *f, int32_t max_resident)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_resident_adapters = max_resident;
    o.max_rank = 24;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, f->m.model, &o, &err), &err);
    return engine;
}

static void load(fixture *f, lk_engine *engine, const char *name, int i)
{
    lk_error err = {0};
    CHECK_OK(lk_engine_load_adapter(engine, name, f->paths[i], true, NULL, &err), &err);
}

static lk_request *submit(fixture *f, lk_engine *engine, const char *adapter)
{
    lk_error err = {0};
    lk_request *request;
    lk_request_spec spec = f->spec;
    spec.adapter = adapter;
    CHECK_OK(lk_engine_submit(engine, &spec, &request, &err), &err);
    return request;
}

/* The request must be answered by the adapter of folder i (N_FOLDERS: the base). */
static void collect(fixture *f, lk_request *request, int i)
{
    check_answer *a = check_collect(request);
    check_same_answer("answer", a, f->alone[i]);
    assert_string_equal(a->facts.adapter_digest, f->alone[i]->facts.adapter_digest);
    free(a);
}

static int64_t list(lk_engine *engine, lk_adapter_info **infos)
{
    lk_error err = {0};
    int64_t n;
    CHECK_OK(lk_engine_list_adapters(engine, infos, &n, &err), &err);
    return n;
}

/* Folders, and what each adapter answers when it is alone. */
static int open_fixture(void **state)
{
    lk_log_set_level(LK_LOG_ERROR);
    fixture *f = calloc(1, sizeof *f);
    char *golden = check_golden("models/llama-tiny");
    f->m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    f->maker = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    free(golden);
    f->folder = check_temporary("adapters");
    for (int i = 0; i < N_FOLDERS; i++) {
        snprintf(f->paths[i], sizeof f->paths[i], "%s/%d", f->folder, i);
        check_adapter_write(f->maker.model, f->paths[i], rank_of(i), (uint64_t)i + 1, 0.1f);
    }
    for (int t = 0; t < 24; t++) f->prompt[t] = 3 + t * 5;
    lk_request_spec_default(&f->spec);
    f->spec.prompt = f->prompt;
    f->spec.n_prompt = 24;
    f->spec.max_tokens = 60;
    f->spec.ignore_eos = true;
    f->spec.temperature = 0.8f;
    f->spec.seed = 42;
    f->spec.n_logprobs = 2;
    lk_engine *engine = start(f, N_FOLDERS);
    for (int i = 0; i <= N_FOLDERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "solo%d", i);
        if (i < N_FOLDERS) load(f, engine, name, i);
        lk_request_spec spec = f->spec;
        spec.adapter = i < N_FOLDERS ? name : NULL;
        f->alone[i] = check_ask(engine, &spec);
        for (int j = 0; j < i; j++) assert_true(memcmp(f->alone[i]->logprobs, f->alone[j]->logprobs, sizeof f->alone[i]->logprobs) != 0);
    }
    lk_engine_stop(engine);
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    for (int i = 0; i <= N_FOLDERS; i++) free(f->alone[i]);
    check_model_close(&f->m);
    check_model_close(&f->maker);
    free(f->folder);
    free(f);
    return 0;
}

static void test_reload_while_streaming(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 4);
    bool seen_draining = false;
    load(f, engine, "acme", 0);
    for (int64_t round = 0; round < 20; round++) { /* the reload should hit the middle of the answers; it does so nearly always */
        int old = (int)(round % 2), new = 1 - old;
        lk_request *before[6], *after[6];
        lk_event event;
        for (int i = 0; i < 6; i++) before[i] = submit(f, engine, "acme");
        assert_true(lk_request_next(before[0], 60000, &event)); /* they are streaming */
        assert_int_equal(event.token, f->alone[old]->ids[0]);
        int64_t version;
        lk_error err = {0};
        CHECK_OK(lk_engine_load_adapter(engine, "acme", f->paths[new], true, &version, &err), &err);
        assert_int_equal(version, round + 2);
        lk_adapter_info *infos;
        int64_t n = list(engine, &infos);
        for (int64_t i = 0; i < n; i++) {
            assert_string_equal(infos[i].name, "acme");
            if (!infos[i].current)
                seen_draining |= infos[i].running > 0;
            else
                assert_string_equal(infos[i].digest, f->alone[new]->facts.adapter_digest);
        }
        free(infos);
        for (int i = 0; i < 6; i++) after[i] = submit(f, engine, "acme");
        for (int i = 1; i < 6; i++) collect(f, before[i], old);
        for (int i = 0; i < 6; i++) collect(f, after[i], new);
        lk_request_release(before[0]);
        check_engine_idle(engine);
    }
    assert_true(seen_draining);
    lk_adapter_info *infos;
    assert_int_equal(list(engine, &infos), 1); /* the old ones have gone */
    assert_int_equal(infos[0].version, 21);
    assert_true(infos[0].current && infos[0].resident && !infos[0].running && !infos[0].waiting);
    free(infos);
    lk_engine_stop(engine);
}

static void test_unload_in_flight(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine *engine = start(f, 4);
    load(f, engine, "acme", 2);
    lk_request *requests[8], *none;
    for (int i = 0; i < 8; i++) requests[i] = submit(f, engine, "acme");
    CHECK_OK(lk_engine_unload_adapter(engine, "acme", &err), &err);
    lk_request_spec spec = f->spec;
    spec.adapter = "acme";
    CHECK_FAILS(lk_engine_submit(engine, &spec, &none, &err), LK_ERR_NOT_FOUND, "'acme' is not loaded", &err);
    spec.adapter = "acme@1";
    CHECK_FAILS(lk_engine_submit(engine, &spec, &none, &err), LK_ERR_NOT_FOUND, "'acme@1'", &err);
    CHECK_FAILS(lk_engine_unload_adapter(engine, "acme", &err), LK_ERR_NOT_FOUND, "acme", &err);
    for (int i = 0; i < 8; i++) collect(f, requests[i], 2);
    check_engine_idle(engine);
    lk_adapter_info *infos;
    assert_int_equal(list(engine, &infos), 0);
    free(infos);
    load(f, engine, "acme", 3); /* the name may come back, with a version number of its own */
    assert_int_equal(list(engine, &infos), 1);
    assert_int_equal(infos[0].version, 2);
    free(infos);
    collect(f, submit(f, engine, "acme@2"), 3);
    lk_engine_stop(engine);
}

static void corrupt(const char *folder, long keep, const char *garbage)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    lk_error err = {0};
    char *bytes;
    size_t size;
    CHECK_OK(lk_file_read(path, 100 << 20, &bytes, &size, &err), &err);
    if (garbage) memcpy(bytes, garbage, strlen(garbage));
    check_write_file(path, bytes, keep >= 0 ? (size_t)keep : size);
    free(bytes);
}

static void test_bad_loads_change_nothing(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine *engine = start(f, 3);
    load(f, engine, "acme", 0);
    load(f, engine, "zenith", 1);
    lk_request *streaming[4];
    for (int i = 0; i < 4; i++) streaming[i] = submit(f, engine, i % 2 ? "zenith" : "acme");

    char bad[4200], missing[4200], foreign[4200], large[4200];
    snprintf(bad, sizeof bad, "%s/bad", f->folder);
    snprintf(missing, sizeof missing, "%s/missing", f->folder);
    snprintf(foreign, sizeof foreign, "%s/foreign", f->folder);
    snprintf(large, sizeof large, "%s/large", f->folder);
    char *golden = check_golden("models/qwen2-tiny");
    check_model other = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    check_adapter_write(other.model, foreign, 4, 1, 0.1f);
    check_model_close(&other);
    free(golden);
    check_adapter_write(f->maker.model, large, 25, 1, 0.1f);

    check_adapter_write(f->maker.model, bad, 4, 9, 0.1f);
    corrupt(bad, 1000, NULL);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", bad, true, NULL, &err), LK_ERR_FORMAT, "bad", &err);
    check_adapter_write(f->maker.model, bad, 4, 9, 0.1f);
    corrupt(bad, -1, "\xff\xff\xff\xff\xff\xff\xff\x7f{{{{");
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", bad, true, NULL, &err), LK_ERR_FORMAT, "bad", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", missing, true, NULL, &err), LK_ERR_NOT_FOUND, "missing", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", foreign, true, NULL, &err), LK_ERR_MISMATCH, "base", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", large, true, NULL, &err), LK_ERR_UNSUPPORTED, "rank 25", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", f->paths[2], false, NULL, &err), LK_ERR_CONFLICT, "loaded already", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "llama-tiny", f->paths[2], true, NULL, &err), LK_ERR_ARGUMENT, "base model", &err);
    static const char *const NAMES[] = {"", "a@1", "a/b", "a\nb", NULL};
    for (int i = 0; i < 5; i++)
        CHECK_FAILS(lk_engine_load_adapter(engine, NAMES[i], f->paths[2], true, NULL, &err), LK_ERR_ARGUMENT, "name", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "a", "", true, NULL, &err), LK_ERR_ARGUMENT, "path", &err);

    for (int i = 0; i < 4; i++) collect(f, streaming[i], i % 2);
    check_engine_idle(engine);
    lk_adapter_info *infos;
    assert_int_equal(list(engine, &infos), 2);
    for (int i = 0; i < 2; i++) assert_true(infos[i].current && infos[i].resident && infos[i].version == 1);
    free(infos);
    collect(f, submit(f, engine, "acme"), 0);
    collect(f, submit(f, engine, "zenith"), 1);
    collect(f, submit(f, engine, NULL), N_FOLDERS);
    lk_engine_stop(engine);
}

static void test_more_adapters_than_places(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 2);
    char names[N_FOLDERS][16];
    for (int i = 0; i < N_FOLDERS; i++) {
        snprintf(names[i], sizeof names[i], "n%d", i);
        load(f, engine, names[i], i);
    }
    lk_adapter_info *infos;
    assert_int_equal(list(engine, &infos), N_FOLDERS);                                           /* all are known ... */
    for (int i = 0; i < N_FOLDERS; i++) assert_int_equal(infos[i].resident, i >= N_FOLDERS - 2); /* ... the last two in memory */
    free(infos);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.adapter_evictions, N_FOLDERS - 2);
    lk_request *requests[48];
    for (int i = 0; i < 48; i++) requests[i] = submit(f, engine, names[i % N_FOLDERS]);
    for (int i = 0; i < 48; i++) collect(f, requests[i], i % N_FOLDERS);
    check_engine_idle(engine);
    int resident = 0;
    assert_int_equal(list(engine, &infos), N_FOLDERS);
    for (int i = 0; i < N_FOLDERS; i++) resident += infos[i].resident;
    assert_int_equal(resident, 2);
    free(infos);
    lk_engine_stop(engine);
}

static void test_no_place(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine *engine = start(f, 1);
    load(f, engine, "acme", 0);
    lk_request *requests[24];
    for (int i = 0; i < 24; i++) requests[i] = submit(f, engine, "acme");
    CHECK_FAILS(lk_engine_load_adapter(engine, "zenith", f->paths[1], false, NULL, &err), LK_ERR_BUSY, "all 1 places", &err);
    CHECK_FAILS(lk_engine_load_adapter(engine, "acme", f->paths[1], true, NULL, &err), LK_ERR_BUSY, "all 1 places", &err);
    for (int i = 0; i < 24; i++) collect(f, requests[i], 0);
    check_engine_idle(engine);
    load(f, engine, "acme", 1); /* idle: the new version takes the place of the old */
    collect(f, submit(f, engine, "acme"), 1);
    lk_engine_stop(engine);
}

/* Thirty requests for one adapter were there first; two for another must not wait for them all. */
static void test_a_flood_does_not_starve(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_running = 2;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, f->m.model, &o, &err), &err);
    load(f, engine, "flood", 0);
    load(f, engine, "quiet", 1);
    lk_request *flood[30], *quiet[2];
    for (int i = 0; i < 30; i++) flood[i] = submit(f, engine, "flood");
    for (int i = 0; i < 2; i++) quiet[i] = submit(f, engine, "quiet");
    for (int i = 0; i < 2; i++) collect(f, quiet[i], 1);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_true(stats.waiting > 10); /* most of the flood is still to come */
    for (int i = 0; i < 30; i++) collect(f, flood[i], 0);
    lk_engine_stop(engine);
}

/* What comes back from disk must be what was pinned. */
static void test_folder_changed_behind_our_back(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 1);
    char path[4200];
    snprintf(path, sizeof path, "%s/changing", f->folder);
    check_adapter_write(f->maker.model, path, 4, 1, 0.1f);
    lk_error err = {0};
    CHECK_OK(lk_engine_load_adapter(engine, "acme", path, false, NULL, &err), &err);
    load(f, engine, "zenith", 1);
    check_adapter_write(f->maker.model, path, 4, 77, 0.1f);
    check_answer *a = check_collect(submit(f, engine, "acme"));
    assert_int_equal(a->finish, LK_FINISH_ERROR);
    assert_non_null(strstr(a->error.message, "other weights"));
    free(a);
    collect(f, submit(f, engine, "zenith"), 1);
    CHECK_OK(lk_folder_remove(path, &err), &err);
    a = check_collect(submit(f, engine, "acme"));
    assert_int_equal(a->finish, LK_FINISH_ERROR);
    assert_non_null(strstr(a->error.message, "nothing at"));
    free(a);
    load(f, engine, "acme", 2);
    collect(f, submit(f, engine, "acme"), 2);
    lk_engine_stop(engine);
}

static void test_broken_weights_end_only_their_requests(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine *engine = start(f, 4);
    char path[4200];
    snprintf(path, sizeof path, "%s/overflow", f->folder);
    check_adapter_write(f->maker.model, path, 4, 3, 3e37f);
    CHECK_OK(lk_engine_load_adapter(engine, "overflow", path, false, NULL, &err), &err);
    load(f, engine, "acme", 0);
    lk_request *good[4], *bad[4];
    for (int i = 0; i < 4; i++) {
        good[i] = submit(f, engine, i % 2 ? "acme" : NULL);
        bad[i] = submit(f, engine, "overflow");
    }
    for (int i = 0; i < 4; i++) {
        collect(f, good[i], i % 2 ? 0 : N_FOLDERS);
        check_answer *a = check_collect(bad[i]);
        assert_int_equal(a->finish, LK_FINISH_ERROR);
        assert_non_null(strstr(a->error.message, "adapter overflow"));
        free(a);
    }
    check_engine_idle(engine);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.finished_error, 4);
    lk_engine_stop(engine);
}

/* ------------------------------------------------------------------------------------------------ churn */

enum { CHURN_SECONDS = 4, CHURN_NAMES = 5 };

typedef struct churn {
    fixture *f;
    lk_engine *engine;
    uint64_t seed;
    double until;
    atomic_llong *answered, *loaded;
    pthread_t thread;
    char failure[200]; /* cmocka's assertions belong to the main thread */
} churn;

static void churn_name(char name[16], check_random *r) { snprintf(name, 16, "c%d", (int)(check_random_u64(r) % CHURN_NAMES)); }

static void *churn_load(void *context)
{
    churn *c = context;
    check_random r = {c->seed};
    while (lk_clock_seconds() < c->until && !*c->failure) {
        char name[16];
        churn_name(name, &r);
        lk_error err = {0};
        lk_status status;
        if (check_random_u64(&r) % 4 == 0) {
            status = lk_engine_unload_adapter(c->engine, name, &err);
        } else {
            status = lk_engine_load_adapter(c->engine, name, c->f->paths[check_random_u64(&r) % N_FOLDERS], check_random_u64(&r) % 8 != 0,
                                            NULL, &err);
            if (!status) atomic_fetch_add(c->loaded, 1);
        }
        if (status && status != LK_ERR_NOT_FOUND && status != LK_ERR_CONFLICT && status != LK_ERR_BUSY)
            snprintf(c->failure, sizeof c->failure, "load: %.180s", err.message);
    }
    return NULL;
}

static void churn_check(churn *c, const check_answer *a)
{
    int i = 0;
    while (i < N_FOLDERS && strcmp(a->facts.adapter_digest, c->f->alone[i]->facts.adapter_digest)) i++;
    const check_answer *want = c->f->alone[i];
    if (a->finish != want->finish || a->n != want->n || memcmp(a->ids, want->ids, sizeof a->ids) ||
        memcmp(a->logprobs, want->logprobs, sizeof a->logprobs))
        snprintf(c->failure, sizeof c->failure, "%s@%lld answered differently: finish %d, %lld tokens, %.100s", a->facts.adapter,
                 (long long)a->facts.adapter_version, a->finish, (long long)a->n, a->error.message);
}

static void *churn_ask(void *context)
{
    churn *c = context;
    check_random r = {c->seed};
    while (lk_clock_seconds() < c->until && !*c->failure) {
        char name[16];
        churn_name(name, &r);
        lk_request_spec spec = c->f->spec;
        spec.adapter = name;
        lk_request *request;
        lk_error err = {0};
        lk_status status = lk_engine_submit(c->engine, &spec, &request, &err);
        if (status == LK_ERR_NOT_FOUND) continue;
        if (status) {
            snprintf(c->failure, sizeof c->failure, "submit: %.180s", err.message);
        } else if (check_random_u64(&r) % 6 == 0) {
            lk_event event;
            lk_request_next(request, (int)(check_random_u64(&r) % 5), &event);
            lk_request_release(request); /* gone in the middle */
        } else {
            check_answer *a = check_collect(request);
            churn_check(c, a);
            free(a);
            atomic_fetch_add(c->answered, 1);
        }
    }
    return NULL;
}

static void test_churn(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 3);
    atomic_llong answered = 0, loaded = 0;
    churn threads[7];
    double until = lk_clock_seconds() + CHURN_SECONDS;
    for (int i = 0; i < 7; i++) {
        threads[i] = (churn){.f = f, .engine = engine, .seed = 100 + (uint64_t)i, .until = until, .answered = &answered, .loaded = &loaded};
        assert_int_equal(pthread_create(&threads[i].thread, NULL, i < 2 ? churn_load : churn_ask, &threads[i]), 0);
    }
    for (int i = 0; i < 7; i++) pthread_join(threads[i].thread, NULL);
    for (int i = 0; i < 7; i++)
        if (*threads[i].failure) fail_msg("%s", threads[i].failure);
    check_engine_idle(engine);
    print_message("%lld requests answered while %lld versions were loaded\n", (long long)answered, (long long)loaded);
    assert_true(answered > 0 && loaded > 0);
    lk_engine_stop(engine);
}

/* A bundle is an adapter like its folder; where keys are trusted, only what they signed is loaded. */
static void test_bundles(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    char bundle[4300], unsigned_bundle[4300], private_key[4300], public_key[4300];
    check_make_key(f->folder, "key", private_key, public_key);
    snprintf(bundle, sizeof bundle, "%s/signed.tar.zst", f->folder);
    snprintf(unsigned_bundle, sizeof unsigned_bundle, "%s/plain.tar.zst", f->folder);
    CHECK_OK(lk_bundle_adapter(bundle, f->paths[2], NULL, private_key, &err), &err);
    CHECK_OK(lk_bundle_adapter(unsigned_bundle, f->paths[2], NULL, NULL, &err), &err);
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_rank = 24;
    lk_bundle_keys *keys;
    CHECK_OK(lk_bundle_keys_read(&keys, public_key, &err), &err);
    for (int trusting = 0; trusting < 2; trusting++) {
        o.trusted_keys = trusting ? keys : NULL;
        lk_engine *engine;
        CHECK_OK(lk_engine_start(&engine, f->m.model, &o, &err), &err);
        CHECK_OK(lk_engine_load_adapter(engine, "acme", bundle, true, NULL, &err), &err);
        collect(f, submit(f, engine, "acme"), 2);
        if (trusting) {
            CHECK_FAILS(lk_engine_load_adapter(engine, "b", unsigned_bundle, true, NULL, &err), LK_ERR_MISMATCH, "is not signed", &err);
            CHECK_FAILS(lk_engine_load_adapter(engine, "b", f->paths[2], true, NULL, &err), LK_ERR_MISMATCH, "is no bundle", &err);
        } else {
            CHECK_OK(lk_engine_load_adapter(engine, "b", unsigned_bundle, true, NULL, &err), &err);
            collect(f, submit(f, engine, "b"), 2);
        }
        lk_engine_stop(engine);
    }
    lk_bundle_keys_free(keys);
}

/* DoRA, own heads and trained tokens beside plain adapters: each request gets what it gets alone. */
static void test_more_than_factors(void **state)
{
    fixture *f = *state;
    static const char *const names[] = {"dora", "saved", "tokens", "lora_bias"};
    enum { N = 4 };
    lk_error err = {0};
    lk_engine *engine = start(f, N + 1);
    check_answer *alone[N];
    lk_request *requests[N + 2];
    load(f, engine, "plain", 0);
    for (int i = 0; i < N; i++) {
        char relative[100];
        snprintf(relative, sizeof relative, "options/%s", names[i]);
        char *path = check_golden(relative);
        CHECK_OK(lk_engine_load_adapter(engine, names[i], path, true, NULL, &err), &err);
        free(path);
        lk_request_spec spec = f->spec;
        spec.adapter = names[i];
        alone[i] = check_ask(engine, &spec);
        assert_true(memcmp(alone[i]->logprobs, f->alone[N_FOLDERS]->logprobs, sizeof alone[i]->logprobs) != 0);
    }
    requests[N] = submit(f, engine, "plain");
    for (int i = 0; i < N; i++) requests[i] = submit(f, engine, names[i]);
    requests[N + 1] = submit(f, engine, NULL);
    for (int i = 0; i < N; i++) {
        check_answer *a = check_collect(requests[i]);
        check_same_answer(names[i], a, alone[i]);
        free(a);
        free(alone[i]);
    }
    collect(f, requests[N], 0);
    collect(f, requests[N + 1], N_FOLDERS);
    lk_engine_stop(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reload_while_streaming),
        cmocka_unit_test(test_unload_in_flight),
        cmocka_unit_test(test_bad_loads_change_nothing),
        cmocka_unit_test(test_more_adapters_than_places),
        cmocka_unit_test(test_no_place),
        cmocka_unit_test(test_a_flood_does_not_starve),
        cmocka_unit_test(test_folder_changed_behind_our_back),
        cmocka_unit_test(test_broken_weights_end_only_their_requests),
        cmocka_unit_test(test_churn),
        cmocka_unit_test(test_bundles),
        cmocka_unit_test(test_more_than_factors),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
