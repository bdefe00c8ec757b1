#include "tests/engine.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

check_answer *check_collect(lk_request *request)
{
    check_answer *a = calloc(1, sizeof *a);
    lk_event event;
    do {
        if (!lk_request_next(request, 60000, &event)) fail_msg("no event for a minute");
        if (event.finish) assert_int_equal(event.token, -1);
        if (event.token < 0) continue;
        assert_true(a->n < CHECK_MOST_TOKENS);
        a->ids[a->n] = event.token;
        a->logprobs[a->n] = event.logprob;
        a->n_top[a->n] = event.n_top;
        memcpy(a->top_ids[a->n], event.top_ids, sizeof event.top_ids);
        memcpy(a->top_logprobs[a->n], event.top_logprobs, sizeof event.top_logprobs);
        a->n++;
    } while (!event.finish);
    a->finish = event.finish;
    a->error = event.error;
    lk_event more;
    assert_false(lk_request_next(request, 0, &more));
    lk_request_get_facts(request, &a->facts);
    lk_request_release(request);
    return a;
}

check_answer *check_ask(lk_engine *engine, const lk_request_spec *spec)
{
    lk_error err = {0};
    lk_request *request;
    CHECK_OK(lk_engine_submit(engine, spec, &request, &err), &err);
    return check_collect(request);
}

void check_same_answer(const char *what, const check_answer *got, const check_answer *want)
{
    for (int64_t i = 0; i < got->n && i < want->n; i++)
        if (got->ids[i] != want->ids[i]) fail_msg("%s: token %lld is %d, want %d", what, (long long)i, got->ids[i], want->ids[i]);
    if (got->n != want->n || got->finish != want->finish)
        fail_msg("%s: %lld tokens and finish %d, want %lld and %d (%s)", what, (long long)got->n, got->finish, (long long)want->n,
                 want->finish, got->error.message);
    check_same_bits(what, got->logprobs, want->logprobs, sizeof got->logprobs);
    check_same_bits(what, got->n_top, want->n_top, sizeof got->n_top);
    check_same_bits(what, got->top_ids, want->top_ids, sizeof got->top_ids);
    check_same_bits(what, got->top_logprobs, want->top_logprobs, sizeof got->top_logprobs);
}

int64_t check_adapter_write(const lk_model *model, const char *folder, int32_t rank, uint64_t seed, float size)
{
    lk_error err = {0};
    lk_adapter *a;
    lk_adapter_spec spec = {.rank = rank, .alpha = 2.0 * rank, .targets = {true, true, true, true, true, true, true}};
    if (seed % 3 == 1) spec.targets[LK_K] = spec.targets[LK_UP] = false; /* not every adapter touches every layer */
    CHECK_OK(lk_adapter_create(&a, model, &spec, seed, &err), &err);
    float *host = calloc((size_t)a->n_params, sizeof *host);
    assert_int_equal(lk_download(model->be, host, a->weights, lk_adapter_bytes(a)), LK_OK);
    check_random r = {seed * 2654435761u + 1};
    for (int32_t s = 0; s < a->n_sites; s++)
        if (a->sites[s].rank) check_random_fill(&r, host + a->sites[s].b, a->sites[s].rank * a->sites[s].n, size);
    assert_int_equal(lk_upload(model->be, a->weights, host, lk_adapter_bytes(a)), LK_OK);
    free(host);
    CHECK_OK(lk_adapter_update_digest(a, &err), &err);
    CHECK_OK(lk_adapter_save(a, folder, &err), &err);
    int64_t n_params = a->n_params;
    lk_adapter_destroy(a);
    return n_params;
}

void check_engine_idle(lk_engine *engine)
{
    lk_engine_stats stats;
    for (int i = 0; i < 20000; i++) {
        lk_engine_get_stats(engine, &stats);
        if (!stats.running && !stats.waiting && !stats.pages_used) return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    fail_msg("the engine still has %lld running, %lld waiting, %d pages", (long long)stats.running, (long long)stats.waiting,
             stats.pages_used);
}
