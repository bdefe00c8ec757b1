/* Chat templates: messages to tokens, the same in training and in serving.
 *
 *     lk_chat *chat;
 *     LK_TRY(lk_chat_open(&chat, tk, err));         -- recognises the model's template
 *     lk_chat_message m[] = {{"user", "Hello"}};
 *     LK_TRY(lk_chat_encode(chat, m, 1, true, &out, err));   -- with the generation prompt
 *     lk_chat_tokens_free(&out);
 *
 * Four formats are known: ChatML, Llama-2 [INST], Llama-3 headers, and plain (no template: "role: content" lines are NOT invented; a
 * base model without template only takes plain text and a chat request is refused). A template is recognised by rendering probe
 * conversations with our renderer and comparing the structure of the template's text; one that cannot be honoured is refused with
 * its reason, never guessed. Template text is encoded without adding special tokens again: double BOS is impossible. Contents are
 * encoded so that they cannot forge special tokens. */
#ifndef LK_DATA_CHAT_CHAT_H
#define LK_DATA_CHAT_CHAT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/tokenizer/tokenizer.h"

typedef struct lk_chat lk_chat;

typedef struct lk_chat_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
    bool no_loss; /* an assistant turn with "weight": 0 */
} lk_chat_message;

/* Tokens with their loss mask: mask[i] = 1 where token i belongs to an assistant turn that is trained, end-of-turn token included. */
typedef struct lk_chat_tokens {
    int32_t *ids;
    uint8_t *mask;
    int64_t n;
} lk_chat_tokens;

/* tk is borrowed and must outlive chat. A tokenizer without template opens as plain. */
lk_status lk_chat_open(lk_chat **chat, const lk_tokenizer *tk, lk_error *err);
/* By name: "chatml", "llama2", "llama3", "plain" (a recipe's data.chat_format), whatever the tokenizer says. */
lk_status lk_chat_open_named(lk_chat **chat, const lk_tokenizer *tk, const char *name, lk_error *err);
void lk_chat_close(lk_chat *chat);
const char *lk_chat_name(const lk_chat *chat);

/* The text as the template renders it (what transformers' apply_chat_template(tokenize=False) gives); free(*text). */
lk_status lk_chat_render(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, char **text, lk_error *err);
lk_status lk_chat_encode(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, lk_chat_tokens *out, lk_error *err);
void lk_chat_tokens_free(lk_chat_tokens *out);
/* The token that ends an assistant turn (<|im_end|>, <|eot_id|>, </s>): generation stops at it. -1 for plain. */
int32_t lk_chat_end_of_turn(const lk_chat *chat);

#endif
