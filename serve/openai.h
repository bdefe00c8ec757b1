/* Bodies of OpenAI's chat/completions and completions, and of vLLM's tokenize and detokenize, into typed requests.
 *
 *     lk_openai_request request;
 *     lk_api_error e;
 *     if (lk_openai_parse(&request, LK_OPENAI_CHAT, body, size, &limits, &e)) reply with e;
 *     lk_openai_request_free(&request);
 *
 * Pure functions of bytes (tests/fuzz/fuzz_http_body.c). Nothing that would change the answer is ignored silently: a parameter this
 * server cannot honour, or does not know, is refused by name. null means absent, as OpenAI's clients send it. Ignored on purpose,
 * since they do not touch the answer: user, metadata, store, service_tier, safety_identifier, prompt_cache_key,
 * prompt_cache_retention, request_id. */
#ifndef LK_SERVE_OPENAI_H
#define LK_SERVE_OPENAI_H

#include "base/arena.h"
#include "data/chat/chat.h"
#include "serve/api_error.h"
#include "serve/engine.h"

enum {
    LK_OPENAI_MAX_N = 16,        /* choices of one prompt */
    LK_OPENAI_MAX_CHOICES = 128, /* prompts times choices */
    LK_OPENAI_MAX_STOP_BYTES = 1024,
    LK_OPENAI_MAX_MESSAGES = 4096,
    LK_OPENAI_MAX_VALUES = 500000 /* of one body: parsed, each takes about 70 bytes */
};

typedef enum lk_openai_kind { LK_OPENAI_CHAT, LK_OPENAI_COMPLETION, LK_OPENAI_TOKENIZE, LK_OPENAI_DETOKENIZE } lk_openai_kind;

typedef struct lk_openai_limits {
    int64_t vocab; /* token ids in the body must be below */
} lk_openai_limits;

/* A prompt is text or token ids. */
typedef struct lk_openai_prompt {
    const char *text; /* NULL: ids */
    size_t size;
    int32_t *ids;
    int64_t n_ids;
} lk_openai_prompt;

typedef struct lk_openai_request {
    lk_arena arena; /* owns everything below but the trees */
    lk_openai_kind kind;
    const char *model;
    cJSON *messages;                      /* chat, or tokenize of a chat; else NULL: checked, as lk_chat_input wants them */
    cJSON *tools, *documents, *variables; /* for the chat template; NULL when not given, tools also when tool_choice is none */
    lk_openai_prompt *prompts;            /* completion: at least one; tokenize: one; detokenize: one of ids */
    int64_t n_prompts;
    bool add_special_tokens, skip_special_tokens, generation_prompt, token_strings;

    lk_request_spec sampling; /* adapter, prompt and seed are left to the caller; max_tokens 0: as many as fit */
    bool has_seed;
    int32_t n; /* choices of each prompt; choice i draws with seed + i */
    const char *stops[LK_MAX_STOPS];
    int n_stops;
    bool stream, include_usage;
    bool logprobs;
    bool one_tool_call; /* parallel_tool_calls false: of the calls the model makes only the first counts */
} lk_openai_request;

/* On failure *request is empty and *e says which parameter and why (http 400). */
lk_status lk_openai_parse(lk_openai_request *request, lk_openai_kind kind, const char *body, size_t size, const lk_openai_limits *limits,
                          lk_api_error *e);
void lk_openai_request_free(lk_openai_request *request);

#endif
