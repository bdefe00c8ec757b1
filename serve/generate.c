#include "serve/generate.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "serve/text_gate.h"

typedef struct encoded {
    int32_t *ids;
    int64_t n;
} encoded;

typedef struct choice {
    lk_request *request;
    lk_detokenizer *detokenizer;
    lk_text_gate gate;
    int64_t n_tokens;
    int64_t n_bytes, n_chars; /* of text pushed into the gate */
    lk_token_logprob *logprobs;
    int64_t n_logprobs, capacity, n_given; /* of them handed out by the last piece */
    bool done;
} choice;

struct lk_generation {
    lk_place place;
    const lk_openai_request *request;
    encoded *prompts;
    choice *choices;
    int32_t n_prompts, n_choices, next; /* next: the choice asked first, so that none starves */
};

/* ------------------------------------------------------------------------------------------------ prompts */

static lk_status encode_messages(const lk_place *place, const lk_openai_request *request, int32_t **ids, int64_t *n, lk_api_error *e)
{
    lk_error err = {0};
    lk_chat_tokens tokens = {0};
    const lk_chat_input in = {.messages = request->messages,
                              .tools = request->tools,
                              .documents = request->documents,
                              .variables = request->variables,
                              .generation_prompt = request->generation_prompt,
                              .train_from = INT64_MAX};
    if (lk_chat_encode(place->chat, &in, &tokens, &err)) return lk_api_fail_from(e, &err, "messages");
    *n = tokens.n;
    *ids = malloc(((size_t)tokens.n + 1) * sizeof **ids);
    if (*ids && tokens.n) memcpy(*ids, tokens.ids, (size_t)tokens.n * sizeof **ids);
    lk_chat_tokens_free(&tokens);
    if (!*ids) return lk_api_fail(e, 503, NULL, "out of memory for the prompt");
    return LK_OK;
}

lk_status lk_generation_encode(const lk_place *place, const lk_openai_request *request, int64_t prompt, int32_t **ids, int64_t *n,
                               lk_api_error *e)
{
    if (request->messages) return encode_messages(place, request, ids, n, e);
    const lk_openai_prompt *p = &request->prompts[prompt];
    lk_error err = {0};
    if (p->text) {
        int flags = request->add_special_tokens ? LK_TK_SPECIALS : 0;
        lk_status status = lk_tokenizer_encode(place->tk, p->text, p->size, flags, ids, n, &err);
        return status ? lk_api_fail_from(e, &err, "prompt") : LK_OK;
    }
    *ids = malloc(((size_t)p->n_ids + 1) * sizeof **ids);
    if (!*ids) return lk_api_fail(e, 503, NULL, "out of memory for the prompt");
    if (p->n_ids) memcpy(*ids, p->ids, (size_t)p->n_ids * sizeof **ids);
    *n = p->n_ids;
    return LK_OK;
}

static lk_status check_length(const lk_place *place, const lk_openai_request *request, int64_t n, lk_api_error *e)
{
    const char *param = request->messages ? "messages" : "prompt";
    int64_t room = lk_engine_get_options(place->engine)->max_model_len, asked = request->sampling.max_tokens;
    if (n == 0) return lk_api_fail(e, 400, param, "the prompt has no tokens");
    if (n + (asked > 0 ? asked : 1) <= room) return LK_OK;
    if (asked <= 0)
        return lk_api_fail_code(e, 400, "context_length_exceeded", param,
                                "the context holds %" PRId64 " tokens and the %s alone has %" PRId64, room, param, n);
    return lk_api_fail_code(e, 400, "context_length_exceeded", param,
                            "the context holds %" PRId64 " tokens; %" PRId64 " were requested (%" PRId64 " in the %s, %" PRId64
                            " to generate): shorten one of them",
                            room, n + asked, n, param, asked);
}

static lk_status create_choices(lk_generation *g, lk_api_error *e)
{
    const lk_openai_request *q = g->request;
    for (int32_t i = 0; i < g->n_choices; i++) {
        lk_error err = {0};
        choice *c = &g->choices[i];
        lk_text_gate_init(&c->gate, q->stops, q->n_stops);
        if (lk_detokenizer_create(&c->detokenizer, g->place.tk, q->skip_special_tokens, &err)) return lk_api_fail_from(e, &err, NULL);
    }
    return LK_OK;
}

lk_status lk_generation_create(lk_generation **out, const lk_place *place, const lk_openai_request *request, lk_api_error *e)
{
    *out = NULL;
    int32_t n_prompts = request->messages ? 1 : (int32_t)request->n_prompts;
    lk_generation *g = calloc(1, sizeof *g);
    if (g) {
        *g = (lk_generation){.place = *place, .request = request, .n_prompts = n_prompts, .n_choices = n_prompts * request->n};
        g->prompts = calloc((size_t)n_prompts, sizeof *g->prompts);
        g->choices = calloc((size_t)g->n_choices, sizeof *g->choices);
    }
    lk_status status = g && g->prompts && g->choices ? LK_OK : lk_api_fail(e, 503, NULL, "out of memory for the request");
    for (int32_t i = 0; i < n_prompts && !status; i++) {
        status = lk_generation_encode(place, request, i, &g->prompts[i].ids, &g->prompts[i].n, e);
        if (!status) status = check_length(place, request, g->prompts[i].n, e);
    }
    if (!status) status = create_choices(g, e);
    if (!status)
        *out = g;
    else
        lk_generation_destroy(g);
    return status;
}

/* ------------------------------------------------------------------------------------------------ submission */

static uint64_t random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = (uint64_t)(lk_clock_unix() * 1e6);
    return seed;
}

static void withdraw(lk_generation *g)
{
    for (int32_t i = 0; i < g->n_choices; i++) {
        if (g->choices[i].request) lk_request_release(g->choices[i].request);
        g->choices[i].request = NULL;
    }
}

lk_status lk_generation_submit(lk_generation *g, const char *adapter, lk_error *err)
{
    const lk_openai_request *q = g->request;
    lk_request_spec spec = q->sampling;
    int32_t stop_ids[LK_MAX_STOPS];
    int32_t end = q->messages ? lk_chat_end_of_turn(g->place.chat) : -1;
    if (end >= 0 && !spec.ignore_eos) {
        if (spec.n_stop_ids) memcpy(stop_ids, spec.stop_ids, (size_t)spec.n_stop_ids * sizeof *stop_ids);
        stop_ids[spec.n_stop_ids++] = end;
        spec.stop_ids = stop_ids;
    }
    uint64_t seed = q->has_seed ? spec.seed : random_seed();
    char pinned[320];
    spec.adapter = adapter;
    for (int32_t i = 0; i < g->n_choices; i++) {
        spec.prompt = g->prompts[i / q->n].ids;
        spec.n_prompt = g->prompts[i / q->n].n;
        spec.seed = seed + (uint64_t)(i % q->n);
        lk_status status = lk_engine_submit(g->place.engine, &spec, &g->choices[i].request, err);
        if (status) {
            g->choices[i].request = NULL;
            withdraw(g);
            return status;
        }
        if (i == 0 && adapter) { /* the others on the very version the first was pinned to */
            lk_request_facts facts = {0};
            lk_request_get_facts(g->choices[0].request, &facts);
            snprintf(pinned, sizeof pinned, "%s@%" PRId64, facts.adapter, facts.adapter_version);
            spec.adapter = pinned;
        }
    }
    return LK_OK;
}

/* ------------------------------------------------------------------------------------------------ events to text */

static bool remember_logprob(choice *c, const lk_event *event)
{
    if (c->n_logprobs == c->capacity) {
        int64_t capacity = c->capacity ? c->capacity * 2 : 8;
        lk_token_logprob *grown = realloc(c->logprobs, (size_t)capacity * sizeof *grown);
        if (!grown) return false;
        c->logprobs = grown;
        c->capacity = capacity;
    }
    lk_token_logprob *l = &c->logprobs[c->n_logprobs++];
    *l = (lk_token_logprob){
        .id = event->token, .logprob = event->logprob, .text_offset = c->n_chars, .text_start = c->n_bytes, .n_top = event->n_top};
    memcpy(l->top_ids, event->top_ids, sizeof l->top_ids);
    memcpy(l->top_logprobs, event->top_logprobs, sizeof l->top_logprobs);
    return true;
}

static bool push_text(choice *c, const char *text, size_t size, bool armed)
{
    c->n_bytes += (int64_t)size;
    for (size_t i = 0; i < size; i++) c->n_chars += (text[i] & 0xc0) != 0x80;
    return lk_text_gate_push(&c->gate, text, size, armed);
}

static lk_status take_token(lk_generation *g, choice *c, const lk_event *event, bool *stopped, lk_api_error *e)
{
    lk_error err = {0};
    const char *text;
    size_t size;
    c->n_tokens++;
    if (g->request->logprobs && !remember_logprob(c, event)) return lk_api_fail(e, 503, NULL, "out of memory for the logprobs");
    if (lk_detokenizer_push(c->detokenizer, event->token, &text, &size, &err)) return lk_api_fail_from(e, &err, NULL);
    *stopped = push_text(c, text, size, c->n_tokens > g->request->sampling.min_tokens);
    return c->gate.pending.failed ? lk_api_fail(e, 503, NULL, "out of memory for the text") : LK_OK;
}

/* The entries of tokens whose text begins before `position` (all: of every token) go out with the piece. */
static void give_logprobs(choice *c, int64_t position, bool all, lk_piece *piece)
{
    int64_t n = 0;
    while (n < c->n_logprobs && (all || c->logprobs[n].text_start < position)) n++;
    piece->logprobs = c->logprobs;
    piece->n_logprobs = c->n_given = n;
}

static void drop_given(choice *c)
{
    if (c->n_given == 0) return;
    c->n_logprobs -= c->n_given;
    memmove(c->logprobs, c->logprobs + c->n_given, (size_t)c->n_logprobs * sizeof *c->logprobs);
    c->n_given = 0;
}

static lk_status failed_event(const lk_event *event, lk_api_error *e)
{
    if (event->finish == LK_FINISH_CANCELLED) return lk_api_fail(e, 503, NULL, "the request was cancelled: the server is stopping");
    return event->error.code ? lk_api_fail_from(e, &event->error, NULL) : lk_api_fail(e, 500, NULL, "the engine failed on this request");
}

/* Takes one event of a choice. *piece is filled; worth sending when it has text or a finish. */
static lk_status take_event(lk_generation *g, choice *c, const lk_event *event, lk_piece *piece, lk_api_error *e)
{
    drop_given(c);
    *piece = (lk_piece){.choice = (int32_t)(c - g->choices), .text = ""};
    if (event->finish == LK_FINISH_CANCELLED || event->finish == LK_FINISH_ERROR) return failed_event(event, e);
    bool stopped = false;
    lk_status status = event->token >= 0 ? take_token(g, c, event, &stopped, e) : LK_OK;
    if (status) return status;
    if (event->finish && !stopped) {
        lk_error err = {0};
        const char *text;
        size_t size;
        if (lk_detokenizer_finish(c->detokenizer, &text, &size, &err)) return lk_api_fail_from(e, &err, NULL);
        stopped = push_text(c, text, size, c->n_tokens > g->request->sampling.min_tokens);
        lk_request_facts facts;
        lk_request_get_facts(c->request, &facts);
        c->n_tokens = facts.n_output; /* counts the stop token, as vLLM's usage does */
    }
    if (stopped) lk_request_cancel(c->request);
    c->done = stopped || event->finish;
    piece->finish = stopped ? LK_FINISH_STOP : event->finish;
    lk_text_gate_take(&c->gate, c->done, &piece->text, &piece->size);
    if (piece->size || c->done) give_logprobs(c, lk_text_gate_position(&c->gate), c->done && !stopped, piece);
    return LK_OK;
}

/* One event of choice c, if it comes within timeout_ms. */
static lk_next ask(lk_generation *g, choice *c, int timeout_ms, lk_piece *piece, lk_api_error *e, bool *heard)
{
    lk_event event = {0};
    *heard = !c->done && lk_request_next(c->request, timeout_ms, &event);
    if (!*heard) return LK_NEXT_IDLE;
    if (take_event(g, c, &event, piece, e)) {
        withdraw(g);
        return LK_NEXT_FAILED;
    }
    return piece->size || c->done ? LK_NEXT_PIECE : LK_NEXT_IDLE;
}

lk_next lk_generation_next(lk_generation *g, int timeout_ms, lk_piece *piece, lk_api_error *e)
{
    double end = lk_clock_seconds() + timeout_ms * 1e-3;
    for (;;) {
        /* First whatever is there already, beginning after the choice served last. */
        bool heard = false;
        int32_t waiting = -1;
        for (int32_t i = 0; i < g->n_choices; i++) {
            int32_t at = (g->next + i) % g->n_choices;
            choice *c = &g->choices[at];
            bool one;
            lk_next next = ask(g, c, 0, piece, e, &one);
            heard |= one;
            if (next != LK_NEXT_IDLE) {
                g->next = (at + 1) % g->n_choices;
                return next;
            }
            if (!c->done && waiting < 0) waiting = at;
        }
        if (waiting < 0) return LK_NEXT_END;
        double left = (end - lk_clock_seconds()) * 1e3;
        if (heard && left > 0) continue; /* tokens without text yet: there may be more */
        /* Nothing: sleep on one of them. The engine advances all running requests together, so when one has news the others have too; with
         * several the sleep is short in case this one waits in the queue while another runs. */
        if (left <= 0) return LK_NEXT_IDLE;
        int sleep_ms = g->n_choices > 1 && left > 20 ? 20 : (int)left + 1;
        bool one;
        lk_next next = ask(g, &g->choices[waiting], sleep_ms, piece, e, &one);
        if (next != LK_NEXT_IDLE) {
            g->next = (waiting + 1) % g->n_choices;
            return next;
        }
    }
}

/* ------------------------------------------------------------------------------------------------ */

int32_t lk_generation_choices(const lk_generation *g) { return g->n_choices; }

lk_usage lk_generation_usage(const lk_generation *g)
{
    lk_usage usage = {0};
    for (int32_t i = 0; i < g->n_prompts; i++) usage.prompt += g->prompts[i].n;
    for (int32_t i = 0; i < g->n_choices; i++) usage.completion += g->choices[i].n_tokens;
    return usage;
}

void lk_generation_facts(const lk_generation *g, lk_request_facts *facts)
{
    *facts = (lk_request_facts){0};
    if (g->choices[0].request) lk_request_get_facts(g->choices[0].request, facts);
}

void lk_generation_destroy(lk_generation *g)
{
    if (!g) return;
    if (g->choices) withdraw(g);
    for (int32_t i = 0; g->choices && i < g->n_choices; i++) {
        choice *c = &g->choices[i];
        lk_detokenizer_destroy(c->detokenizer);
        lk_text_gate_free(&c->gate);
        free(c->logprobs);
    }
    for (int32_t i = 0; g->prompts && i < g->n_prompts; i++) free(g->prompts[i].ids);
    free(g->prompts);
    free(g->choices);
    free(g);
}
