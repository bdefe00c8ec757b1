/* What the engine promises whatever the adapters: cancellation in every state, limits that are refused at submission with a reason, a
 * bounded queue, stop tokens, statistics, and a thread that sleeps when there is nothing to do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "tests/engine.h"

typedef struct fixture {
    check_model m;
    int32_t prompt[200];
    lk_request_spec spec; /* greedy, 20 tokens of prompt, 40 of output */
} fixture;

static int open_fixture(void **state)
{
    lk_log_set_level(LK_LOG_ERROR);
    fixture *f = calloc(1, sizeof *f);
    char *golden = check_golden("models/llama-tiny");
    f->m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    free(golden);
    for (int t = 0; t < 200; t++) f->prompt[t] = (t * 37 + 11) % 160;
    lk_request_spec_default(&f->spec);
    f->spec.prompt = f->prompt;
    f->spec.n_prompt = 20;
    f->spec.max_tokens = 40;
    f->spec.ignore_eos = true;
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    check_model_close(&f->m);
    free(f);
    return 0;
}

static lk_engine *start(fixture *f, int32_t n_pages, int32_t max_running, int32_t max_waiting, int32_t budget)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    lk_kv_shape page = lk_infer_kv_shape(f->m.model, o.page_tokens, 1);
    o.kv_bytes = (size_t)n_pages * lk_kv_page_bytes(f->m.be, &page);
    o.max_running = max_running;
    o.max_waiting = max_waiting;
    o.token_budget = budget;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, f->m.model, &o, &err), &err);
    return engine;
}

static lk_request *submit(lk_engine *engine, const lk_request_spec *spec)
{
    lk_error err = {0};
    lk_request *request;
    CHECK_OK(lk_engine_submit(engine, spec, &request, &err), &err);
    return request;
}

static void expect_finish(lk_request *request, lk_finish finish)
{
    check_answer *a = check_collect(request);
    assert_int_equal(a->finish, finish);
    free(a);
}

/* On a busy machine the engine may be done before the test gets to cancel. Returns whether it was cancelled. */
static bool expect_cancelled_or_done(lk_request *request)
{
    check_answer *a = check_collect(request);
    bool cancelled = a->finish == LK_FINISH_CANCELLED;
    if (!cancelled) assert_int_equal(a->finish, LK_FINISH_LENGTH);
    free(a);
    return cancelled;
}

static void pause_ms(int ms) { nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL); }

static void test_cancel_in_every_state(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 12, 4, 64, 8); /* 192 positions: two long requests at most, and prefill takes many steps */
    lk_request_spec spec = f->spec;
    spec.n_prompt = 60;
    spec.max_tokens = 100;
    lk_request *r = submit(engine, &spec);
    lk_request_cancel(r); /* as it arrives */
    expect_cancelled_or_done(r);

    lk_request *all[24];
    for (int round = 0; round < 6; round++) { /* running, prefilling, preempted, waiting: at moments that differ by round */
        for (int i = 0; i < 24; i++) all[i] = submit(engine, &spec);
        lk_event event;
        assert_true(lk_request_next(all[0], 60000, &event));
        pause_ms(3 * round);
        for (int i = 23; i >= 0; i--) lk_request_cancel(all[i]);
        for (int i = 0; i < 24; i++) expect_cancelled_or_done(all[i]);
        check_engine_idle(engine);
    }
    for (int i = 0; i < 24; i++) all[i] = submit(engine, &spec);
    for (int i = 0; i < 24; i++) lk_request_release(all[i]); /* the clients are gone: the same as cancelled */
    check_engine_idle(engine);

    r = submit(engine, &f->spec);
    lk_event event;
    do assert_true(lk_request_next(r, 60000, &event));
    while (!event.finish);
    lk_request_cancel(r); /* after the end: nothing */
    lk_request_release(r);
    lk_engine_stats stats;
    check_engine_idle(engine);
    lk_engine_get_stats(engine, &stats);
    assert_true(stats.finished_cancelled > 100);
    assert_int_equal(stats.pages_used, 0);
    assert_int_equal(stats.pages_total, 12);
    lk_engine_stop(engine);
}

static void test_limits_are_refused_with_a_reason(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_request *r;
    lk_engine *engine = start(f, 8, 4, 8, 64); /* 128 positions; the model has 256 */
    lk_request_spec s = f->spec;
    s.n_prompt = 200;
    s.max_tokens = 100;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "128", &err);
    s.n_prompt = 100;
    s.max_tokens = 157;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "max_model_len 256: ask for at most 156", &err);
    s.max_tokens = 30;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "128 positions of the whole KV cache: ask for at most 29", &err);
    s.max_tokens = 29; /* exactly full */
    expect_finish(submit(engine, &s), LK_FINISH_LENGTH);
    s.max_tokens = 0; /* as many as fit: the same */
    check_answer *a = check_ask(engine, &s);
    assert_int_equal(a->n, 29);
    assert_int_equal(a->facts.n_output, 29);
    free(a);

    static const struct {
        const char *text;
        size_t offset;
        double value;
    } BAD[] = {
        {"temperature", offsetof(lk_request_spec, temperature), -1},
        {"top_p", offsetof(lk_request_spec, top_p), 1.5},
        {"min_p", offsetof(lk_request_spec, min_p), -0.5},
        {"repetition_penalty", offsetof(lk_request_spec, repetition_penalty), 0},
        {"presence_penalty", offsetof(lk_request_spec, presence_penalty), 1e9},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        s = f->spec;
        *(float *)(void *)((char *)&s + BAD[i].offset) = (float)BAD[i].value;
        CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, BAD[i].text, &err);
    }
    s = f->spec;
    s.temperature = 0.0f / 0.0f;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "temperature is", &err);
    s = f->spec;
    s.n_prompt = 0;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "prompt is empty", &err);
    s = f->spec;
    int32_t foreign[3] = {1, 2, 163};
    s.prompt = foreign;
    s.n_prompt = 3;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "prompt[2] is token 163", &err);
    s = f->spec;
    s.n_stop_ids = 1;
    s.stop_ids = foreign + 2;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "stop token[0]", &err);
    s = f->spec;
    s.min_tokens = 41;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "min_tokens", &err);
    s = f->spec;
    s.n_logprobs = 21;
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_ARGUMENT, "logprobs", &err);
    s = f->spec;
    s.adapter = "nobody";
    CHECK_FAILS(lk_engine_submit(engine, &s, &r, &err), LK_ERR_NOT_FOUND, "'nobody' is not loaded", &err);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.refused, 0); /* that counter is for a full queue */
    lk_engine_stop(engine);

    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_model_len = 257;
    CHECK_FAILS(lk_engine_start(&engine, f->m.model, &o, &err), LK_ERR_ARGUMENT, "max_model_len is 257", &err);
    lk_engine_options_default(&o);
    o.kv_bytes = 100;
    CHECK_FAILS(lk_engine_start(&engine, f->m.model, &o, &err), LK_ERR_ARGUMENT, "less than one page", &err);
    lk_engine_options_default(&o);
    o.page_tokens = 24;
    CHECK_FAILS(lk_engine_start(&engine, f->m.model, &o, &err), LK_ERR_ARGUMENT, "power of two", &err);
}

static void test_queue_full(void **state)
{
    fixture *f = *state;
    lk_error err = {0};
    lk_engine *engine = start(f, 64, 1, 4, 64);
    lk_request_spec spec = f->spec;
    spec.max_tokens = 200;
    lk_request *requests[16];
    int n = 0;
    lk_status status = LK_OK;
    while (n < 16 && !(status = lk_engine_submit(engine, &spec, &requests[n], &err))) n++;
    assert_int_equal(status, LK_ERR_BUSY);
    assert_non_null(strstr(err.message, "try again"));
    assert_true(n >= 4 && n <= 12);
    for (int i = 0; i < n; i++) lk_request_cancel(requests[i]);
    for (int i = 0; i < n; i++) lk_request_release(requests[i]);
    check_engine_idle(engine);
    expect_finish(submit(engine, &f->spec), LK_FINISH_LENGTH); /* room again */
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.refused, 1);
    lk_engine_stop(engine);
}

static void test_stop_tokens(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 64, 4, 8, 64);
    check_answer *whole = check_ask(engine, &f->spec);
    assert_int_equal(whole->n, 40);
    int64_t at = 3; /* the first token from here on that has not appeared before */
    for (bool fresh = false; !fresh;) {
        fresh = true;
        for (int64_t i = 0; i < at; i++) fresh &= whole->ids[i] != whole->ids[at];
        assert_true(at < 39);
        at += !fresh;
    }
    lk_request_spec s = f->spec;
    int32_t stop = whole->ids[at];
    s.stop_ids = &stop;
    s.n_stop_ids = 1;
    check_answer *cut = check_ask(engine, &s);
    assert_int_equal(cut->finish, LK_FINISH_STOP);
    assert_int_equal(cut->n, at);                  /* the stop token is not delivered ... */
    assert_int_equal(cut->facts.n_output, at + 1); /* ... but was generated */
    check_same_bits("ids before the stop", cut->ids, whole->ids, (size_t)at * sizeof *cut->ids);
    s.min_tokens = at + 5;
    check_answer *longer = check_ask(engine, &s);
    assert_true(longer->n >= at + 5);
    for (int64_t i = 0; i < longer->n; i++) assert_int_not_equal(longer->ids[i], stop);
    free(whole);
    free(cut);
    free(longer);
    lk_engine_stop(engine);
}

static double process_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_idle_sleeps(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 64, 4, 8, 64);
    expect_finish(submit(engine, &f->spec), LK_FINISH_LENGTH);
    pause_ms(20); /* the backend's threads may spin a little before they sleep */
    double before = process_seconds();
    pause_ms(300);
    assert_true(process_seconds() - before < 0.05);
    expect_finish(submit(engine, &f->spec), LK_FINISH_LENGTH);
    lk_event event;
    lk_request_spec spec = f->spec;
    spec.max_tokens = 1;
    lk_request *r = submit(engine, &spec);
    while (lk_request_next(r, 200, &event) && !event.finish) {
    }
    assert_false(lk_request_next(r, 50, &event)); /* over: returns at once with nothing */
    lk_request_release(r);
    lk_engine_stop(engine);
}

static void test_statistics(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 64, 4, 8, 64);
    lk_engine_stats s;
    lk_engine_get_stats(engine, &s);
    assert_int_equal(s.pages_total, 64);
    assert_int_equal(s.iterations, 0);
    for (int i = 0; i < 3; i++) {
        check_answer *a = check_ask(engine, &f->spec);
        assert_true(a->facts.queued_s >= 0 && a->facts.queued_s <= a->facts.first_token_s && a->facts.first_token_s <= a->facts.total_s);
        assert_string_equal(a->facts.adapter, "");
        assert_int_equal(a->facts.n_prompt, 20);
        free(a);
    }
    check_engine_idle(engine);
    lk_engine_get_stats(engine, &s);
    assert_int_equal(s.prompt_tokens, 60);
    assert_int_equal(s.generated_tokens, 120);
    assert_int_equal(s.finished_length, 3);
    assert_int_equal(s.iterations, 120);
    int64_t first = 0, inter = 0, queue = 0, whole = 0;
    for (int i = 0; i <= LK_HISTOGRAM_BUCKETS; i++) {
        first += s.first_token.counts[i];
        inter += s.inter_token.counts[i];
        queue += s.queue.counts[i];
        whole += s.end_to_end.counts[i];
    }
    assert_int_equal(first, 3);
    assert_int_equal(inter, 117);
    assert_int_equal(queue, 3);
    assert_int_equal(whole, 3);
    assert_true(s.end_to_end.sum >= s.first_token.sum);
    lk_engine_memory memory;
    lk_error err = {0};
    CHECK_OK(lk_engine_plan(f->m.model, lk_engine_get_options(engine), &memory, &err), &err);
    assert_true(memory.pool > 0 && memory.activations > 0);
    assert_true(memory.pool + memory.activations <= lk_allocated(f->m.be));
    lk_engine_stop(engine);
}

static void test_stop_with_requests(void **state)
{
    fixture *f = *state;
    lk_engine *engine = start(f, 12, 2, 64, 16);
    lk_request_spec spec = f->spec;
    spec.max_tokens = 100;
    lk_request *requests[12];
    for (int i = 0; i < 12; i++) requests[i] = submit(engine, &spec);
    size_t before = lk_allocated(f->m.be);
    lk_engine_stop(engine);
    assert_true(lk_allocated(f->m.be) < before);
    int cancelled = 0;
    for (int i = 0; i < 12; i++) cancelled += expect_cancelled_or_done(requests[i]); /* they outlive the engine */
    assert_true(cancelled > 0);
    lk_engine_stop(NULL);
    lk_request_release(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel_in_every_state),
        cmocka_unit_test(test_limits_are_refused_with_a_reason),
        cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_stop_tokens),
        cmocka_unit_test(test_idle_sleeps),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_stop_with_requests),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
