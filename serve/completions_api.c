/* POST /v1/chat/completions and /v1/completions: one request from parsed body to reply, whole or streamed.
 *
 * A client that goes away cancels its request: while waiting for tokens the socket is looked at ten times a second, since a thread that
 * waits for the engine does not notice a closed socket otherwise. Reply headers name the weights that answer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/openai_reply.h"
#include "serve/server.h"

enum { LOOK_MS = 100, HEARTBEAT_S = 10, STREAM_BATCH = 8192 };

typedef struct job {
    lk_exchange *x;
    lk_openai_request request;
    lk_generation *g;
    lk_reply_head head;
    char id[48];
    /* Streams only. */
    lk_writer out;
    size_t sent;
    bool finished;
} job;

static void job_free(void *context)
{
    job *j = context;
    lk_generation_destroy(j->g);
    lk_openai_request_free(&j->request);
    lk_writer_free(&j->out);
    free(j);
}

static void make_id(char *id, size_t size, lk_openai_kind kind)
{
    unsigned char random[12];
    if (getrandom(random, sizeof random, 0) != sizeof random) snprintf((char *)random, sizeof random, "%.6f", lk_clock_seconds());
    int n = snprintf(id, size, "%s-", kind == LK_OPENAI_CHAT ? "chatcmpl" : "cmpl");
    for (size_t i = 0; i < sizeof random; i++) snprintf(id + n + 2 * i, size - (size_t)n - 2 * i, "%02x", random[i]);
}

static void name_weights(job *j)
{
    lk_exchange *x = j->x;
    lk_request_facts facts;
    lk_generation_facts(j->g, &facts);
    if (facts.adapter[0]) {
        lk_exchange_header(x, "x-adapter-id", "%s", facts.adapter);
        lk_exchange_header(x, "x-adapter-version", "%" PRId64, facts.adapter_version);
        lk_exchange_header(x, "x-adapter-digest", "%s", facts.adapter_digest);
    }
    lk_exchange_header(x, "x-base-digest", "%s", lk_engine_model(x->server->place.engine)->digest);
    lk_exchange_header(x, "x-prompt-tokens", "%" PRId64, lk_generation_usage(j->g).prompt);
    lk_exchange_header(x, "x-request-id", "%s", j->id);
}

/* ------------------------------------------------------------------------------------------------ whole */

typedef struct collected {
    lk_writer text;
    lk_token_logprob *logprobs;
    int64_t n_logprobs;
    lk_finish finish;
} collected;

static bool collect(collected *c, const lk_piece *piece)
{
    lk_writer_add(&c->text, piece->text, piece->size);
    if (piece->finish) c->finish = piece->finish;
    if (piece->n_logprobs == 0) return !c->text.failed;
    /* Grown by doubling: the capacity is the next power of two, so it need not be stored. */
    int64_t n = c->n_logprobs + piece->n_logprobs, capacity = 1, had = 1;
    while (capacity < n) capacity *= 2;
    while (had < c->n_logprobs) had *= 2;
    if (!c->logprobs || capacity > had) {
        lk_token_logprob *grown = realloc(c->logprobs, (size_t)capacity * sizeof *grown);
        if (!grown) return false;
        c->logprobs = grown;
    }
    memcpy(c->logprobs + c->n_logprobs, piece->logprobs, (size_t)piece->n_logprobs * sizeof *piece->logprobs);
    c->n_logprobs = n;
    return !c->text.failed;
}

static bool aborting(const job *j, lk_api_error *e)
{
    return atomic_load(&j->x->server->aborting) && lk_api_fail(e, 503, NULL, "the server is stopping") != LK_OK;
}

/* LK_ERR_INTERRUPTED without a message in *e (http 0): the client is gone, nobody to answer. Tokens may come faster than LOOK_MS, so
 * the clock decides when to look at the socket. */
static lk_status run_whole(job *j, collected *all, lk_api_error *e)
{
    double looked = lk_clock_seconds();
    while (!aborting(j, e)) {
        lk_piece piece;
        lk_next next = lk_generation_next(j->g, LOOK_MS, &piece, e);
        if (next == LK_NEXT_END) return LK_OK;
        if (next == LK_NEXT_FAILED) return LK_ERR_INTERNAL;
        if (next == LK_NEXT_PIECE && !collect(&all[piece.choice], &piece)) return lk_api_fail(e, 503, NULL, "out of memory for the reply");
        double now = lk_clock_seconds();
        if (now - looked < LOOK_MS * 1e-3) continue;
        if (lk_exchange_abandoned(j->x)) return LK_ERR_INTERRUPTED;
        looked = now;
    }
    return LK_ERR_INTERRUPTED;
}

static enum MHD_Result send_whole(job *j, const collected *all, int32_t n)
{
    lk_exchange *x = j->x;
    lk_reply_choice *choices = calloc((size_t)n, sizeof *choices);
    lk_writer out = {0};
    out.failed = !choices;
    for (int32_t i = 0; i < n && choices; i++)
        choices[i] = (lk_reply_choice){all[i].text.data ? all[i].text.data : "", all[i].text.size, all[i].logprobs, all[i].n_logprobs,
                                       all[i].finish};
    lk_usage usage = lk_generation_usage(j->g);
    if (choices) lk_reply_whole(&out, &j->head, choices, n, &usage);
    free(choices);
    lk_request_facts facts;
    lk_generation_facts(j->g, &facts);
    lk_exchange_header(x, "x-generated-tokens", "%" PRId64, usage.completion);
    /* Milliseconds, as LoRAX. */
    lk_exchange_header(x, "x-queue-time", "%.0f", facts.queued_s * 1e3);
    lk_exchange_header(x, "x-time-to-first-token", "%.0f", facts.first_token_s * 1e3);
    lk_exchange_header(x, "x-inference-time", "%.0f", (facts.total_s - facts.queued_s) * 1e3);
    return lk_exchange_send(x, 200, "application/json", &out);
}

static enum MHD_Result answer_whole(job *j)
{
    lk_api_error e = {0};
    int32_t n = lk_generation_choices(j->g);
    enum MHD_Result result = MHD_NO; /* closes the connection */
    collected *all = calloc((size_t)n, sizeof *all);
    lk_exchange_wait(j->x, true);
    lk_status status = all ? run_whole(j, all, &e) : lk_api_fail(&e, 503, NULL, "out of memory for the reply");
    lk_exchange_wait(j->x, false);
    if (!status)
        result = send_whole(j, all, n);
    else if (e.http)
        result = lk_exchange_fail(j->x, &e);
    else
        lk_log(LK_LOG_DEBUG, "%s: the client went away", j->id);
    for (int32_t i = 0; all && i < n; i++) {
        lk_writer_free(&all[i].text);
        free(all[i].logprobs);
    }
    free(all);
    job_free(j);
    return result;
}

/* ------------------------------------------------------------------------------------------------ streamed */

static void finish_stream(job *j, const lk_api_error *e)
{
    if (e)
        lk_reply_error(&j->out, e);
    else if (j->request.include_usage) {
        lk_usage usage = lk_generation_usage(j->g);
        lk_reply_usage(&j->out, &j->head, &usage);
    }
    lk_reply_done(&j->out);
    j->finished = true;
}

/* Writes at least one event, or a heartbeat, into the empty j->out. false: the client is gone. */
static bool produce(job *j)
{
    lk_api_error e;
    lk_piece piece;
    double begun = lk_clock_seconds();
    while (!j->finished && j->out.size < STREAM_BATCH) {
        if (aborting(j, &e)) {
            finish_stream(j, &e);
            break;
        }
        /* Once there is something to send, only what is there already is added to it. */
        switch (lk_generation_next(j->g, j->out.size ? 0 : LOOK_MS, &piece, &e)) {
        case LK_NEXT_PIECE: lk_reply_piece(&j->out, &j->head, &piece); break;
        case LK_NEXT_END: finish_stream(j, NULL); break;
        case LK_NEXT_FAILED: finish_stream(j, &e); break;
        case LK_NEXT_IDLE:
            if (j->out.size) return true;
            if (lk_exchange_abandoned(j->x)) return false;
            if (lk_clock_seconds() - begun > HEARTBEAT_S) lk_writer_string(&j->out, ": waiting\n\n"); /* a comment; proxies see life */
            break;
        }
    }
    return true;
}

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t max)
{
    job *j = context;
    (void)position;
    if (j->sent == j->out.size) {
        if (j->finished) return MHD_CONTENT_READER_END_OF_STREAM;
        lk_writer_clear(&j->out);
        j->sent = 0;
        lk_exchange_wait(j->x, true);
        bool alive = produce(j);
        lk_exchange_wait(j->x, false);
        if (!alive || j->out.failed) return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = j->out.size - j->sent < max ? j->out.size - j->sent : max;
    memcpy(buffer, j->out.data + j->sent, n);
    j->sent += n;
    return (ssize_t)n;
}

static enum MHD_Result answer_stream(job *j)
{
    for (int32_t i = 0; i < lk_generation_choices(j->g); i++) lk_reply_first(&j->out, &j->head, i);
    lk_exchange_header(j->x, "cache-control", "no-cache");
    lk_exchange_header(j->x, "x-accel-buffering", "no"); /* nginx would collect the events otherwise */
    return lk_exchange_stream(j->x, "text/event-stream; charset=utf-8", read_stream, j, job_free);
}

/* ------------------------------------------------------------------------------------------------ */

static lk_status prepare(job *j, lk_openai_kind kind, lk_api_error *e)
{
    lk_server *server = j->x->server;
    lk_openai_limits limits = lk_server_limits(server);
    lk_status status = lk_openai_parse(&j->request, kind, j->x->body.data, j->x->body.size, &limits, e);
    if (!status) status = lk_generation_create(&j->g, &server->place, &j->request, e);
    if (!status) status = lk_adapters_submit(server, j->g, j->request.model, e);
    if (status) return status;
    make_id(j->id, sizeof j->id, kind);
    j->head = (lk_reply_head){.id = j->id,
                              .model = j->request.model,
                              .fingerprint = server->fingerprint,
                              .created = (int64_t)lk_clock_unix(),
                              .kind = kind,
                              .logprobs = j->request.logprobs,
                              .include_usage = j->request.include_usage,
                              .tk = server->place.tk};
    name_weights(j);
    return LK_OK;
}

static enum MHD_Result handle(lk_exchange *x, lk_openai_kind kind)
{
    lk_api_error e = {0};
    job *j = calloc(1, sizeof *j);
    if (!j) {
        lk_api_fail(&e, 503, NULL, "out of memory for the request");
        return lk_exchange_fail(x, &e);
    }
    j->x = x;
    lk_exchange_wait(x, true); /* an adapter may have to be loaded */
    lk_status status = prepare(j, kind, &e);
    lk_exchange_wait(x, false);
    if (!status) return j->request.stream ? answer_stream(j) : answer_whole(j);
    job_free(j);
    return lk_exchange_fail(x, &e);
}

enum MHD_Result lk_chat_completions_handle(lk_exchange *x) { return handle(x, LK_OPENAI_CHAT); }
enum MHD_Result lk_completions_handle(lk_exchange *x) { return handle(x, LK_OPENAI_COMPLETION); }
