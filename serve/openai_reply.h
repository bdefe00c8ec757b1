/* The JSON of replies: whole ones, and the events of a stream, for chat and for completions.
 *
 *     lk_reply_head head = {.id = id, .created = now, .model = "acme", .fingerprint = "lk-0123456789ab", .kind = LK_OPENAI_CHAT, .tk = tk};
 *     lk_reply_whole(&out, &head, choices, n, &usage);
 *     lk_reply_first(&out, &head, 0); lk_reply_piece(&out, &head, &piece); ... lk_reply_usage(&out, &head, &usage); lk_reply_done(&out);
 *
 * Shapes as OpenAI's API reference gives them. Stream events are `data: {...}` with an empty line after each. */
#ifndef LK_SERVE_OPENAI_REPLY_H
#define LK_SERVE_OPENAI_REPLY_H

#include "serve/generate.h"

typedef struct lk_reply_head {
    const char *id, *model, *fingerprint;
    int64_t created;
    lk_openai_kind kind;
    bool logprobs;      /* asked for: else null */
    bool include_usage; /* "usage": null on every chunk */
    const lk_tokenizer *tk;
} lk_reply_head;

/* A tool call. */
typedef struct lk_reply_call {
    char id[32];
    const char *name, *arguments; /* arguments: JSON text of this size */
    size_t size;
} lk_reply_call;

typedef struct lk_reply_choice {
    const char *text;
    size_t size;
    const lk_reply_call *calls; /* chat */
    int32_t n_calls;
    const lk_token_logprob *logprobs;
    int64_t n_logprobs;
    lk_finish finish;
} lk_reply_choice;

void lk_reply_whole(lk_writer *out, const lk_reply_head *head, const lk_reply_choice *choices, int32_t n, const lk_usage *usage);

/* The first event of a chat choice: its role. Completions have none. */
void lk_reply_first(lk_writer *out, const lk_reply_head *head, int32_t choice);
/* A whole tool call, number `index` of its choice, in one event. */
void lk_reply_call_event(lk_writer *out, const lk_reply_head *head, int32_t choice, int32_t index, const lk_reply_call *call);
/* One event for the text, one more for the finish; logprobs without text have one of their own. */
void lk_reply_piece(lk_writer *out, const lk_reply_head *head, const lk_piece *piece);
void lk_reply_usage(lk_writer *out, const lk_reply_head *head, const lk_usage *usage);
void lk_reply_error(lk_writer *out, const lk_api_error *e);
void lk_reply_done(lk_writer *out);

/* The usage object by itself. */
void lk_reply_usage_json(lk_writer *out, const lk_usage *usage);

#endif
