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
    lk_tool_parser **parsers; /* [choices], or NULL: what looks like a tool call is text */
    /* Streams only. */
    lk_writer out;
    size_t sent;
    bool finished;
} job;

static void job_free(void *context)
{
    job *j = context;
    for (int32_t i = 0; j->parsers && i < lk_generation_choices(j->g); i++) lk_tool_parser_destroy(j->parsers[i]);
    free(j->parsers);
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

/* Mistral's templates want nine letters and digits. */
static void make_call_id(char id[32], lk_tool_format format)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    unsigned char random[24];
    if (getrandom(random, sizeof random, 0) != sizeof random) snprintf((char *)random, sizeof random, "%.15f", lk_clock_seconds());
    int n = format == LK_TOOLS_MISTRAL ? 0 : snprintf(id, 32, "call_"), length = format == LK_TOOLS_MISTRAL ? 9 : 24;
    for (int i = 0; i < length; i++) id[n++] = digits[random[i] % (sizeof digits - 1)];
    id[n] = 0;
}

/* Where the server was told how the model writes them, and the request has tools. */
static lk_status make_parsers(job *j, lk_api_error *e)
{
    lk_tool_format format = j->x->server->tool_format;
    if (format == LK_TOOLS_NONE || j->request.kind != LK_OPENAI_CHAT || !j->request.tools) return LK_OK;
    lk_error err = {0};
    j->parsers = calloc((size_t)lk_generation_choices(j->g), sizeof(lk_tool_parser *));
    lk_status status = j->parsers ? LK_OK : LK_ERR_MEMORY;
    for (int32_t i = 0; i < lk_generation_choices(j->g) && !status; i++)
        status = lk_tool_parser_create(&j->parsers[i], format, j->request.one_tool_call, &err);
    return status ? lk_api_fail(e, 503, NULL, "out of memory for the request") : LK_OK;
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

/* A choice's calls and what remains as text, from all it wrote. */
typedef struct parsed {
    lk_writer text, arguments; /* of all calls, behind one another, each with a zero; names as well */
    lk_reply_call *calls;
    int32_t n_calls;
} parsed;

static void parsed_free(parsed *p)
{
    lk_writer_free(&p->text);
    lk_writer_free(&p->arguments);
    free(p->calls);
}

static bool add_call(parsed *p, const lk_tool_event *event, lk_tool_format format)
{
    if (p->n_calls % 8 == 0) {
        lk_reply_call *grown = realloc(p->calls, (size_t)(p->n_calls + 8) * sizeof *grown);
        if (!grown) return false;
        p->calls = grown;
    }
    lk_reply_call *call = &p->calls[p->n_calls++];
    *call = (lk_reply_call){.size = event->size};
    make_call_id(call->id, format);
    lk_writer_add(&p->arguments, event->name, strlen(event->name) + 1);
    lk_writer_add(&p->arguments, event->text, event->size);
    lk_writer_add(&p->arguments, "", 1);
    return !p->arguments.failed;
}

static bool parse_calls(parsed *p, lk_tool_parser *parser, const char *text, size_t size, lk_tool_format format)
{
    lk_tool_event event;
    if (!lk_tool_parser_push(parser, text, size, true)) return false;
    while (lk_tool_parser_next(parser, &event)) {
        if (!event.call)
            lk_writer_add(&p->text, event.text, event.size);
        else if (!add_call(p, &event, format))
            return false;
    }
    const char *at = p->arguments.data; /* it has stopped moving */
    for (int32_t i = 0; i < p->n_calls; i++) {
        p->calls[i].name = at;
        p->calls[i].arguments = at += strlen(at) + 1;
        at += p->calls[i].size + 1;
    }
    return !p->text.failed;
}

/* Writes the reply; false: no memory. */
static bool write_whole(job *j, const collected *all, int32_t n, const lk_usage *usage, lk_writer *out)
{
    lk_reply_choice *choices = calloc((size_t)n, sizeof *choices);
    parsed *calls = calloc((size_t)n, sizeof *calls);
    bool good = choices && calls;
    for (int32_t i = 0; i < n && good; i++) {
        const char *text = all[i].text.data ? all[i].text.data : "";
        choices[i] = (lk_reply_choice){
            .text = text, .size = all[i].text.size, .logprobs = all[i].logprobs, .n_logprobs = all[i].n_logprobs, .finish = all[i].finish};
        if (!j->parsers) continue;
        parsed *p = &calls[i];
        good = parse_calls(p, j->parsers[i], text, all[i].text.size, j->x->server->tool_format);
        choices[i].text = p->text.data ? p->text.data : "";
        choices[i].size = p->text.size;
        choices[i].calls = p->calls;
        choices[i].n_calls = p->n_calls;
    }
    if (good) lk_reply_whole(out, &j->head, choices, n, usage);
    for (int32_t i = 0; i < n && calls; i++) parsed_free(&calls[i]);
    free(calls);
    free(choices);
    return good;
}

static enum MHD_Result send_whole(job *j, const collected *all, int32_t n)
{
    lk_exchange *x = j->x;
    lk_writer out = {0};
    lk_usage usage = lk_generation_usage(j->g);
    out.failed = !write_whole(j, all, n, &usage, &out);
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

/* A piece of a choice, its calls taken out of the text. */
static void write_piece(job *j, const lk_piece *piece)
{
    lk_piece part = *piece;
    lk_tool_event event;
    if (!j->parsers) {
        lk_reply_piece(&j->out, &j->head, piece);
        return;
    }
    lk_tool_parser *parser = j->parsers[piece->choice];
    j->out.failed |= !lk_tool_parser_push(parser, piece->text, piece->size, piece->finish != LK_FINISH_NONE);
    part.finish = LK_FINISH_NONE;
    while (!j->out.failed && lk_tool_parser_next(parser, &event)) {
        if (event.call) {
            lk_reply_call call = {.name = event.name, .arguments = event.text, .size = event.size};
            make_call_id(call.id, j->x->server->tool_format);
            lk_reply_call_event(&j->out, &j->head, piece->choice, event.index, &call);
        } else {
            part.text = event.text;
            part.size = event.size;
            lk_reply_piece(&j->out, &j->head, &part);
            part.n_logprobs = 0;
        }
    }
    part.size = 0; /* logprobs of text that is kept, and the end */
    part.finish = piece->finish;
    part.called = lk_tool_parser_calls(parser) > 0;
    lk_reply_piece(&j->out, &j->head, &part);
}

/* Writes at least one event, or a heartbeat, into the empty j->out. false: the client is gone. */
static bool produce(job *j)
{
    lk_api_error e;
    lk_piece piece;
    double begun = lk_clock_seconds(), looked = begun;
    while (!j->finished && j->out.size < STREAM_BATCH) {
        if (aborting(j, &e)) {
            finish_stream(j, &e);
            break;
        }
        /* Once there is something to send, only what is there already is added to it. */
        switch (lk_generation_next(j->g, j->out.size ? 0 : LOOK_MS, &piece, &e)) {
        case LK_NEXT_PIECE:
            write_piece(j, &piece);
            if (j->out.size || lk_clock_seconds() - looked < LOOK_MS * 1e-3) break;
            if (lk_exchange_abandoned(j->x)) return false; /* a long call is being written, and nothing is sent meanwhile */
            looked = lk_clock_seconds();
            break;
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
    /* The mark of Mistral's calls is a special token. */
    if (!status && j->request.tools && server->tool_format == LK_TOOLS_MISTRAL) j->request.skip_special_tokens = false;
    if (!status) status = lk_generation_create(&j->g, &server->place, &j->request, e);
    if (!status) status = make_parsers(j, e);
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
