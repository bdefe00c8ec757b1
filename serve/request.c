/* The life of a request, both sides of it. The checks of a new one are in request_check.c. */
#include "serve/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "serve/request_check.h"

/* ------------------------------------------------------------------------------------------------ the bell */

void lk_bell_init(lk_bell *bell)
{
    pthread_mutex_init(&bell->lock, NULL);
    pthread_cond_init(&bell->rung, NULL);
    bell->ringing = false;
    atomic_init(&bell->cancels, false);
}

void lk_bell_free(lk_bell *bell)
{
    pthread_cond_destroy(&bell->rung);
    pthread_mutex_destroy(&bell->lock);
}

void lk_bell_ring(lk_bell *bell)
{
    pthread_mutex_lock(&bell->lock);
    bell->ringing = true;
    pthread_cond_signal(&bell->rung);
    pthread_mutex_unlock(&bell->lock);
}

void lk_bell_wait(lk_bell *bell)
{
    pthread_mutex_lock(&bell->lock);
    while (!bell->ringing) pthread_cond_wait(&bell->rung, &bell->lock);
    pthread_mutex_unlock(&bell->lock);
}

/* ------------------------------------------------------------------------------------------------ creation */

void lk_request_spec_default(lk_request_spec *spec)
{
    *spec = (lk_request_spec){.top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
}

static void request_free(lk_request *r)
{
    free(r->tokens);
    free(r->logprobs);
    free(r->top_ids);
    free(r->n_top);
    free(r->top_logprobs);
    free(r->task.table.pages);
    lk_seen_free(&r->seen);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* Waiting with a time limit must not jump with the wall clock. */
static void init_shared(lk_request *r)
{
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    atomic_init(&r->cancelled, false);
    r->references = 2;
    r->submitted = lk_clock_seconds();
}

/* All memory the request will ever need. */
static lk_status allocate(lk_request *r, const lk_request_spec *spec, const lk_request_limits *limits, lk_error *err)
{
    size_t n_output = (size_t)r->max_tokens, n_all = (size_t)r->n_prompt + n_output;
    size_t n_pages = (n_all + (size_t)limits->page_tokens - 1) / (size_t)limits->page_tokens;
    r->tokens = calloc(n_all, sizeof *r->tokens);
    r->logprobs = calloc(n_output, sizeof *r->logprobs);
    r->task.table = (lk_block_table){.pages = calloc(n_pages, sizeof(int32_t)), .capacity = (int32_t)n_pages};
    bool complete = r->tokens && r->logprobs && r->task.table.pages;
    if (spec->n_logprobs > 0) {
        r->top_ids = calloc(n_output * (size_t)spec->n_logprobs, sizeof *r->top_ids);
        r->top_logprobs = calloc(n_output * (size_t)spec->n_logprobs, sizeof *r->top_logprobs);
        r->n_top = calloc(n_output, sizeof *r->n_top);
        complete = complete && r->top_ids && r->top_logprobs && r->n_top;
    }
    if (!complete) return lk_fail(err, LK_ERR_MEMORY, "no memory for a request of %zu tokens", n_all);
    memcpy(r->tokens, spec->prompt, (size_t)r->n_prompt * sizeof *r->tokens);
    r->counts_seen = spec->repetition_penalty != 1.0f || spec->presence_penalty != 0.0f || spec->frequency_penalty != 0.0f;
    if (!r->counts_seen) return LK_OK;
    LK_TRY(lk_seen_init(&r->seen, (int64_t)n_all, err));
    for (int64_t i = 0; i < r->n_prompt; i++) lk_seen_prompt(&r->seen, r->tokens[i]);
    return LK_OK;
}

static void copy_sampling(lk_request *r, const lk_request_spec *spec, const lk_config *config)
{
    if (!spec->ignore_eos)
        for (int i = 0; i < config->n_eos; i++) r->stops[r->n_stops++] = config->eos[i];
    for (int i = 0; i < spec->n_stop_ids; i++) r->stops[r->n_stops++] = spec->stop_ids[i];
    for (int i = 0; i < spec->n_bias; i++) {
        r->bias_ids[i] = spec->bias_ids[i];
        r->bias[i] = spec->bias[i];
    }
    r->sampling = (lk_sample_request){
        .temperature = spec->temperature,
        .top_p = spec->top_p,
        .min_p = spec->min_p,
        .top_k = spec->top_k,
        .repetition_penalty = spec->repetition_penalty,
        .presence_penalty = spec->presence_penalty,
        .frequency_penalty = spec->frequency_penalty,
        .bias_ids = r->bias_ids,
        .bias = r->bias,
        .n_bias = spec->n_bias,
        .key = lk_philox_key_make(spec->seed, LK_STREAM_SAMPLE),
        .n_logprobs = spec->n_logprobs,
    };
}

lk_status lk_request_create(lk_request **request, const lk_request_spec *spec, const lk_request_limits *limits, lk_bell *bell,
                            lk_error *err)
{
    *request = NULL;
    int64_t max_tokens = 0;
    LK_TRY(lk_request_check(spec, limits, &max_tokens, err));
    lk_request *r = calloc(1, sizeof *r);
    if (!r) return lk_fail(err, LK_ERR_MEMORY, "no memory for a request");
    init_shared(r);
    r->bell = bell;
    r->n_prompt = spec->n_prompt;
    r->max_tokens = max_tokens;
    r->min_tokens = spec->min_tokens;
    r->task.n_tokens = spec->n_prompt;
    r->task.most_tokens = spec->n_prompt + max_tokens - 1; /* the last one is not fed back */
    copy_sampling(r, spec, limits->config);
    lk_status status = allocate(r, spec, limits, err);
    if (status) {
        request_free(r);
        return status;
    }
    *request = r;
    return LK_OK;
}

void lk_request_discard(lk_request *r) { request_free(r); }

/* ------------------------------------------------------------------------------------------------ the engine's side */

void lk_request_sampling(const lk_request *r, lk_sample_request *sampling)
{
    int64_t n_output = r->n_output + (r->drawn_step != 0);
    *sampling = r->sampling;
    sampling->counter = (uint64_t)n_output; /* never of the batch or the time: the draw is the same wherever it happens */
    if (r->counts_seen) {
        sampling->pending = r->drawn_step ? 1 + r->drawn_row : 0;
        sampling->seen = r->seen.ids;
        sampling->seen_counts = r->seen.counts;
        sampling->n_seen = r->seen.n;
    }
    if (n_output < r->min_tokens) {
        sampling->banned = r->stops;
        sampling->n_banned = r->n_stops;
    }
}

double lk_request_admitted(lk_request *r)
{
    double waited = -1;
    pthread_mutex_lock(&r->lock);
    if (r->admitted == 0) {
        r->admitted = lk_clock_seconds();
        waited = r->admitted - r->submitted;
    }
    r->n_preempted = r->task.n_preempted;
    pthread_mutex_unlock(&r->lock);
    return waited;
}

static bool is_stop(const lk_request *r, int32_t token)
{
    for (int32_t i = 0; i < r->n_stops; i++)
        if (r->stops[i] == token) return true;
    return false;
}

lk_finish lk_request_push(lk_request *r, const lk_sample_result *result)
{
    bool stop = is_stop(r, result->token);
    double now = lk_clock_seconds();
    pthread_mutex_lock(&r->lock);
    int64_t i = r->n_output++;
    if (r->first_token == 0) r->first_token = now;
    r->last_token = now;
    r->tokens[r->n_prompt + i] = result->token;
    if (!stop) {
        r->logprobs[i] = result->logprob;
        if (r->n_top) {
            size_t width = (size_t)r->sampling.n_logprobs;
            r->n_top[i] = result->n_top;
            memcpy(r->top_ids + (size_t)i * width, result->top_ids, (size_t)result->n_top * sizeof *r->top_ids);
            memcpy(r->top_logprobs + (size_t)i * width, result->top_logprobs, (size_t)result->n_top * sizeof *r->top_logprobs);
        }
        r->n_readable = i + 1;
        pthread_cond_signal(&r->changed);
    }
    int64_t n_output = r->n_output;
    pthread_mutex_unlock(&r->lock);
    if (stop) return LK_FINISH_STOP;
    if (r->counts_seen) lk_seen_output(&r->seen, result->token);
    return n_output == r->max_tokens ? LK_FINISH_LENGTH : LK_FINISH_NONE;
}

void lk_request_end(lk_request *r, lk_finish finish, const lk_error *error)
{
    pthread_mutex_lock(&r->lock);
    r->finish = finish;
    if (error) r->error = *error;
    r->ended = lk_clock_seconds();
    r->n_preempted = r->task.n_preempted;
    r->bell = NULL;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

void lk_request_unref(lk_request *r)
{
    pthread_mutex_lock(&r->lock);
    int left = --r->references;
    pthread_mutex_unlock(&r->lock);
    if (!left) request_free(r);
}

/* ------------------------------------------------------------------------------------------------ the client's side */

static void read_token(lk_request *r, lk_event *event)
{
    int64_t i = r->n_read++;
    event->token = r->tokens[r->n_prompt + i];
    event->logprob = r->logprobs[i];
    if (!r->n_top) return;
    size_t width = (size_t)r->sampling.n_logprobs;
    event->n_top = r->n_top[i];
    memcpy(event->top_ids, r->top_ids + (size_t)i * width, (size_t)event->n_top * sizeof *event->top_ids);
    memcpy(event->top_logprobs, r->top_logprobs + (size_t)i * width, (size_t)event->n_top * sizeof *event->top_logprobs);
}

static void deadline_after(struct timespec *deadline, int timeout_ms)
{
    clock_gettime(CLOCK_MONOTONIC, deadline);
    deadline->tv_sec += timeout_ms / 1000;
    deadline->tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (deadline->tv_nsec < 1000000000) return;
    deadline->tv_nsec -= 1000000000;
    deadline->tv_sec++;
}

bool lk_request_next(lk_request *r, int timeout_ms, lk_event *event)
{
    struct timespec deadline;
    if (timeout_ms >= 0) deadline_after(&deadline, timeout_ms);
    pthread_mutex_lock(&r->lock);
    bool late = false;
    while (!late && r->n_read == r->n_readable && !r->finish) {
        if (timeout_ms < 0)
            pthread_cond_wait(&r->changed, &r->lock);
        else
            late = pthread_cond_timedwait(&r->changed, &r->lock, &deadline) == ETIMEDOUT;
    }
    bool some = true;
    if (r->n_read < r->n_readable) {
        *event = (lk_event){.token = -1};
        read_token(r, event);
    } else if (r->finish && !r->end_read) {
        *event = (lk_event){.token = -1, .finish = r->finish, .error = r->error};
        r->end_read = true;
    } else {
        some = false;
    }
    pthread_mutex_unlock(&r->lock);
    return some;
}

void lk_request_cancel(lk_request *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->bell) { /* the lock keeps the engine from going away under it */
        atomic_store(&r->cancelled, true);
        atomic_store(&r->bell->cancels, true);
        lk_bell_ring(r->bell);
    }
    pthread_mutex_unlock(&r->lock);
}

void lk_request_release(lk_request *r)
{
    if (!r) return;
    lk_request_cancel(r);
    lk_request_unref(r);
}

void lk_request_get_facts(const lk_request *request, lk_request_facts *facts)
{
    lk_request *r = (lk_request *)(uintptr_t)request; /* locking is not a change that callers could see */
    *facts = (lk_request_facts){.adapter_version = r->adapter_version, .n_prompt = r->n_prompt};
    memcpy(facts->adapter, r->adapter, sizeof facts->adapter);
    memcpy(facts->adapter_digest, r->digest, sizeof facts->adapter_digest);
    pthread_mutex_lock(&r->lock);
    double now = r->ended > 0 ? r->ended : lk_clock_seconds();
    facts->queued_s = (r->admitted > 0 ? r->admitted : now) - r->submitted;
    facts->first_token_s = r->first_token > 0 ? r->first_token - r->submitted : 0;
    facts->total_s = now - r->submitted;
    facts->n_output = r->n_output;
    facts->n_preempted = r->n_preempted;
    pthread_mutex_unlock(&r->lock);
}
