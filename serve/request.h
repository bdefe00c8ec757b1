/* One request: what was asked, what has been generated, and how the client hears of it.
 *
 *     LK_TRY(lk_request_create(&r, spec, &limits, bell, err));     -- checks and copies everything; two references: client and engine
 *     lk_request_admitted(r); lk_request_push(r, &result); lk_request_end(r, LK_FINISH_STOP, NULL);      -- the engine
 *     lk_request_next(r, ...); lk_request_cancel(r); lk_request_release(r);                              -- the client, serve/engine.h
 *
 * The output is its own queue: generated tokens stay where they are and the client reads behind the engine, so nothing is allocated and
 * nothing can overflow. The engine alone writes; n_output, finish, error and the times are shared under the request's lock.
 *
 * A request outlives the engine when the client is slow to release it: at its end it lets go of everything of the engine's. */
#ifndef LK_SERVE_REQUEST_H
#define LK_SERVE_REQUEST_H

#include <pthread.h>
#include <stdatomic.h>

#include "serve/engine.h"
#include "serve/registry.h"
#include "serve/scheduler.h"
#include "serve/seen.h"

/* Wakes the engine from any thread. */
typedef struct lk_bell {
    pthread_mutex_t lock; /* also guards the arrivals of the engine */
    pthread_cond_t rung;
    bool ringing;
    atomic_bool cancels; /* some request wants to end */
} lk_bell;

void lk_bell_init(lk_bell *bell);
void lk_bell_free(lk_bell *bell);
void lk_bell_ring(lk_bell *bell);
void lk_bell_wait(lk_bell *bell); /* until `ringing`, which whoever takes the arrivals clears */

/* What a request may ask for. */
typedef struct lk_request_limits {
    const lk_config *config;
    int64_t max_model_len;
    int64_t kv_tokens; /* positions of all pages together */
    int32_t page_tokens;
} lk_request_limits;

struct lk_request {
    lk_task task;        /* first: the engine gets from tasks back to requests */
    lk_version *version; /* pinned; NULL: the base. The engine's, until the end. */
    struct lk_request *next_arrival;
    uint64_t drawn_step; /* the queued step that draws a token of this request, unknown as yet; 0: none. The engine's */
    int32_t drawn_row;   /* of that step's sampling */

    /* Constant once submitted. */
    int64_t n_prompt, max_tokens, min_tokens;
    lk_sample_request sampling; /* all but counter, seen and banned */
    int32_t stops[LK_MAX_EOS + LK_MAX_STOPS];
    int32_t n_stops;
    int32_t bias_ids[LK_MAX_BIAS];
    float bias[LK_MAX_BIAS];
    char adapter[256], digest[65];
    int64_t adapter_version;

    /* The engine writes. tokens[n_prompt + n_output]; of the output only the first n_readable are the client's to read. */
    int32_t *tokens;
    float *logprobs;          /* [max_tokens] */
    int32_t *top_ids, *n_top; /* [max_tokens, n_logprobs], [max_tokens]; NULL when none are wanted */
    float *top_logprobs;
    lk_seen seen;
    bool counts_seen; /* a penalty is on */

    atomic_bool cancelled;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    lk_bell *bell; /* NULL after the end */
    int references;
    int64_t n_output; /* generated, the stop token included */
    int64_t n_readable, n_read;
    bool end_read;
    int64_t n_preempted;
    lk_finish finish;
    lk_error error;
    double submitted, admitted, first_token, last_token, ended; /* lk_clock_seconds; 0: not yet */
};

lk_status lk_request_create(lk_request **request, const lk_request_spec *spec, const lk_request_limits *limits, lk_bell *bell,
                            lk_error *err);
/* Before anybody else knows the request. */
void lk_request_discard(lk_request *request);

/* What sampling needs for the next token, which may be the one behind a token that is being drawn; borrowed until the next push. */
void lk_request_sampling(const lk_request *request, lk_sample_request *sampling);
/* Its first tokens are about to be computed, for the first time or after a preemption. Returns the seconds it waited the first time, else
 * -1. */
double lk_request_admitted(lk_request *request);
/* Appends a token and tells the client, unless it is a stop token; returns the finish it brings about. */
lk_finish lk_request_push(lk_request *request, const lk_sample_result *result);
/* The last word. error only with LK_FINISH_ERROR. The engine's reference is still held. */
void lk_request_end(lk_request *request, lk_finish finish, const lk_error *error);
void lk_request_unref(lk_request *request);

#endif
