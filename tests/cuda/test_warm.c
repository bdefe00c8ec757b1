/* Warming up (lk_engine_warm_up): afterwards the first requests, alone and together, for the base and for an adapter, make no recording and
 * take no memory, and say what they say without recordings. */
/* label: threads */
#include <time.h>

#include "base/log.h"
#include "tests/cuda/cuda_check.h"
#include "tests/engine.h"

enum { TOGETHER = 6, LONGEST = 320, PROMPT = 250 };

static lk_emu_counts counts(void)
{
    void (*get)(lk_emu_counts *);
    lk_emu_counts c = {0};
    void *symbol = emulation_symbol("lk_emu_get_counts");
    memcpy(&get, &symbol, sizeof symbol);
    if (get) get(&c);
    return c;
}

/* Blocks of memory, streams and events. */
static int64_t alive(void)
{
    int64_t (*get)(void);
    void *symbol = emulation_symbol("lk_emu_leaks");
    memcpy(&get, &symbol, sizeof symbol);
    return get ? get() : 0;
}

static char *random_model(void)
{
    static const lk_config shape = {
        .hidden = 64, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16, .intermediate = 128, .vocab = 160};
    return check_random_model("warm_model", &shape);
}

static lk_engine *start(lk_model *model, bool eager, const char *adapter)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_running = TOGETHER;
    o.max_model_len = LONGEST;
    o.token_budget = 64;
    o.max_rank = 32;
    o.kv_bytes = (size_t)8 << 20;
    o.adapter_host_bytes = 0;
    o.eager = eager;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, model, &o, &err), &err);
    CHECK_OK(lk_engine_load_adapter(engine, "acme", adapter, false, NULL, &err), &err);
    return engine;
}

/* Short and long, over the end of a split of attention; every other one for the adapter. */
static void ask_all(lk_engine *engine, check_answer *answers[TOGETHER])
{
    static int32_t prompt[PROMPT];
    lk_error err = {0};
    lk_request *requests[TOGETHER];
    for (int t = 0; t < PROMPT; t++) prompt[t] = 3 + t * 7 % 150;
    for (int i = 0; i < TOGETHER; i++) {
        lk_request_spec spec;
        lk_request_spec_default(&spec);
        spec.prompt = prompt;
        spec.n_prompt = i % 3 ? 5 + i : PROMPT;
        spec.max_tokens = 12;
        spec.ignore_eos = true;
        spec.adapter = i % 2 ? "acme" : NULL;
        CHECK_OK(lk_engine_submit(engine, &spec, &requests[i], &err), &err);
    }
    for (int i = 0; i < TOGETHER; i++) answers[i] = check_collect(requests[i]);
    check_engine_idle(engine);
}

static void ask_one(lk_engine *engine, const char *adapter)
{
    int32_t prompt[9];
    for (int t = 0; t < 9; t++) prompt[t] = 3 + t * 7;
    lk_request_spec spec;
    lk_request_spec_default(&spec);
    spec.prompt = prompt;
    spec.n_prompt = 9;
    spec.max_tokens = 5;
    spec.ignore_eos = true;
    spec.adapter = adapter;
    check_answer *a = check_ask(engine, &spec);
    assert_int_equal(a->n, 5);
    free(a);
    check_engine_idle(engine);
}

static void test_warm_up(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = random_model(), *adapter = check_temporary("warm"), *wide = check_temporary("warm_wide");
    lk_log_set_level(LK_LOG_WARN);
    check_model cpu = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    check_adapter_write(cpu.model, adapter, 8, 1, 0.05f);
    check_adapter_write(cpu.model, wide, 24, 2, 0.05f);
    check_model_close(&cpu);
    setenv("LK_CUDA_GRAPHS", "1", 1);
    check_model m = check_model_open_on(folder, LK_QUANT_NF4, &(lk_backend_options){.device = "cuda", .compute = LK_BF16});
    check_answer *eager[TOGETHER], *warm[TOGETHER];

    lk_emu_counts before = counts();
    lk_engine *engine = start(m.model, true, adapter);
    CHECK_OK(lk_engine_warm_up(engine, &err), &err);
    ask_all(engine, eager);
    assert_int_equal(counts().recordings, before.recordings);
    lk_engine_stop(engine);

    engine = start(m.model, false, adapter);
    int64_t blocks = alive();
    size_t bytes = lk_allocated(m.be);
    CHECK_OK(lk_engine_warm_up(engine, &err), &err);
    lk_emu_counts after = counts();
    bool emulated = after.kernels > 0;
    /* 1, 2, 4 and 6 rows, one split each and more; with the adapter once in one segment and once in as many as rows. */
    if (emulated) assert_int_equal(after.recordings - before.recordings, 4 * 2 + 7 * 2);
    CHECK_OK(lk_engine_warm_up(engine, &err), &err); /* nothing is left to do */
    assert_int_equal(counts().recordings, after.recordings);
    ask_all(engine, warm);
    lk_emu_counts asked = counts();
    assert_int_equal(asked.recordings, after.recordings);
    if (emulated) assert_true(asked.replays > after.replays + 10);
    assert_int_equal(alive(), blocks);
    assert_int_equal(lk_allocated(m.be), bytes);
    /* An adapter of another class of ranks, loaded while there is nothing to do. */
    if (emulated) {
        CHECK_OK(lk_engine_load_adapter(engine, "wide", wide, false, NULL, &err), &err);
        for (int i = 0; i < 5000 && counts().recordings < asked.recordings + 7 * 2; i++)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        assert_int_equal(counts().recordings, asked.recordings + 7 * 2);
        ask_one(engine, "wide");
        assert_int_equal(counts().recordings, asked.recordings + 7 * 2);
        CHECK_OK(lk_engine_unload_adapter(engine, "wide", &err), &err);
    }
    for (int i = 0; i < TOGETHER; i++) {
        check_same_answer("after warming up", warm[i], eager[i]);
        free(warm[i]);
        free(eager[i]);
    }
    lk_engine_stop(engine);
    check_model_close(&m);
    free(wide);
    free(adapter);
    free(folder);
}

/* Recording turned off: nothing is tried more than once, and nothing fails. */
static void test_without_recordings(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = random_model();
    setenv("LK_CUDA_GRAPHS", "0", 1);
    check_model m = check_model_open_on(folder, LK_QUANT_NF4, &(lk_backend_options){.device = "cuda", .compute = LK_BF16});
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_model_len = LONGEST;
    o.kv_bytes = (size_t)1 << 20;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, m.model, &o, &err), &err);
    lk_emu_counts before = counts();
    CHECK_OK(lk_engine_warm_up(engine, &err), &err);
    assert_int_equal(counts().recordings, before.recordings);
    if (before.kernels) assert_true(counts().kernels < before.kernels + 60); /* two steps of two layers */
    lk_engine_stop(engine);
    check_model_close(&m);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_warm_up), cmocka_unit_test(test_without_recordings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
