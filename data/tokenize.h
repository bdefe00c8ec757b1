/* Examples to documents of tokens with their loss mask: what the token store holds.
 *
 *     static lk_status keep(void *context, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
 *     { return lk_store_append(context, ids, mask, n, err); }
 *     ...
 *     LK_TRY(lk_tokenize_documents(tk, chat, &example, LK_LOSS_ASSISTANT, 1024, keep, store, &truncated, err));
 *
 * What is supervised (mask 1), by kind of example:
 *
 *     kind        ASSISTANT                        COMPLETION                     ALL
 *     messages    every assistant turn that is     the last message, if it is     everything
 *                 not marked weight 0              such a turn
 *     completion  the completion and its EOS       the same                       everything
 *     text        everything                       everything                     everything
 *
 * The first token of a document is never supervised: nothing comes before it.
 *
 * messages: as the chat format renders them. completion: the prompt as a request's prompt is encoded (BOS where the tokenizer's
 * post-processor adds one), then the completion encoded on its own as a continuation (a tokenizer that puts a space before a text puts none
 * here), then EOS. text: BOS likewise, the text, EOS. EOS is not added twice, nor BOS: where the data bring their own, one of them is left
 * out. Special tokens written out in prompts, completions and texts are recognised, as in a request's prompt. */
#ifndef LK_DATA_TOKENIZE_H
#define LK_DATA_TOKENIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/chat/chat.h"
#include "data/reader.h"
#include "data/tokenizer/tokenizer.h"

typedef enum lk_loss_on { LK_LOSS_ASSISTANT, LK_LOSS_COMPLETION, LK_LOSS_ALL } lk_loss_on;

/* One example to one document of at most max_length tokens (>= 1); what is longer loses its end, and *truncated says so. free() *ids and
 * *mask. *n may be 0 (an empty text for a tokenizer without BOS and EOS). Nothing may be supervised: the caller looks. chat is used for
 * messages only and may be NULL otherwise. Thread-safe. */
lk_status lk_tokenize_example(const lk_tokenizer *tk, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, int64_t max_length,
                              int32_t **ids, uint8_t **mask, int64_t *n, bool *truncated, lk_error *err);

/* Takes one document; ids and mask are borrowed for the call. An error ends the tokenising and is passed on. */
typedef lk_status lk_document_sink(void *context, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err);

/* The same, but a text longer than max_length (>= 2) becomes several documents instead of losing its end. Each of them begins with the last
 * token of the one before, so that every token of the text but its first is predicted exactly once. The sink is not called for an empty
 * example. */
lk_status lk_tokenize_documents(const lk_tokenizer *tk, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, int64_t max_length,
                                lk_document_sink *sink, void *context, bool *truncated, lk_error *err);

#endif
