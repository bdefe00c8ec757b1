/* One API request run on the engine: prompts encoded, n choices of each submitted, tokens turned back into text, stop strings cut.
 *
 *     lk_generation *g;
 *     LK_TRY(lk_generation_create(&g, &place, &request, &e));       -- encodes; 400 when it does not fit the context
 *     LK_TRY(lk_generation_submit(g, adapter, &err));               -- may be tried again after LK_ERR_NOT_FOUND
 *     while ((next = lk_generation_next(g, 100, &piece, &e)) ...)
 *     lk_generation_destroy(g);                                     -- cancels what still runs
 *
 * Both the streamed and the whole reply read the same pieces, so they cannot differ. All choices run on one version of the adapter, also
 * when a new one is loaded between their submissions. Choice i of a prompt draws with seed + i; without a seed it is random. One thread. */
#ifndef LK_SERVE_GENERATE_H
#define LK_SERVE_GENERATE_H

#include "data/tokenizer/tokenizer.h"
#include "serve/openai.h"

typedef struct lk_generation lk_generation;

typedef struct lk_place {
    lk_engine *engine; /* all borrowed */
    const lk_tokenizer *tk;
    const lk_chat *chat;
} lk_place;

typedef struct lk_token_logprob {
    int32_t id;
    float logprob;
    int64_t text_offset; /* in characters from the start of the choice's text */
    int64_t text_start;  /* the same in bytes */
    int32_t n_top;
    int32_t top_ids[LK_MAX_LOGPROBS];
    float top_logprobs[LK_MAX_LOGPROBS];
} lk_token_logprob;

/* What one choice gained. The pointers are valid until the next call. */
typedef struct lk_piece {
    int32_t choice;
    const char *text; /* whole characters; may be empty */
    size_t size;
    const lk_token_logprob *logprobs;
    int64_t n_logprobs;
    lk_finish finish; /* STOP or LENGTH on the choice's last piece, else NONE */
    bool called;      /* the choice has made tool calls; who parses them says so (tool_calls.h) */
} lk_piece;

typedef enum lk_next { LK_NEXT_END, LK_NEXT_PIECE, LK_NEXT_IDLE, LK_NEXT_FAILED } lk_next;

typedef struct lk_usage {
    int64_t prompt, completion; /* tokens; every prompt counts once whatever n is */
} lk_usage;

/* request is borrowed and must outlive g. Nothing is queued yet. */
lk_status lk_generation_create(lk_generation **g, const lk_place *place, const lk_openai_request *request, lk_api_error *e);
/* adapter: name, name@version or NULL for the base. On failure nothing is left queued. */
lk_status lk_generation_submit(lk_generation *g, const char *adapter, lk_error *err);
/* IDLE: timeout_ms passed without anything to say. END: all choices have finished. FAILED: *e says why; the rest is cancelled. */
lk_next lk_generation_next(lk_generation *g, int timeout_ms, lk_piece *piece, lk_api_error *e);
int32_t lk_generation_choices(const lk_generation *g);
lk_usage lk_generation_usage(const lk_generation *g);
/* Of the first choice: which weights answer, and how long it took so far. */
void lk_generation_facts(const lk_generation *g, lk_request_facts *facts);
void lk_generation_destroy(lk_generation *g); /* NULL is fine */

/* The tokens of a request's messages or of one of its prompts; free(*ids). */
lk_status lk_generation_encode(const lk_place *place, const lk_openai_request *request, int64_t prompt, int32_t **ids, int64_t *n,
                               lk_api_error *e);

#endif
