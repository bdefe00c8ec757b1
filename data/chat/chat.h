/* Chat templates: messages to tokens, the same in training and in serving.
 *
 *     lk_chat *chat;
 *     LK_TRY(lk_chat_open(&chat, tk, err));         -- recognises the model's template
 *     lk_chat_message m[] = {{"user", "Hello"}};
 *     LK_TRY(lk_chat_encode(chat, m, 1, true, &out, err));   -- with the generation prompt
 *     lk_chat_tokens_free(&out);
 *
 * Known are ChatML (Qwen2, Qwen2.5 with its default system prompt, Qwen3, minimind, SmolLM), Llama-2 [INST], Llama-3 and Llama-3.1,
 * and plain (no template: "role: content" lines are NOT invented; a base model without template only takes plain text and a
 * conversation is refused). A template is recognised when it does, step by step, what a known published one does, whatever its layout and
 * quotes (data/chat/template.c); one that was changed, or that cannot be honoured (Llama-3.2 puts in today's date), is refused
 * with its reason, never guessed. Template text is encoded without adding special tokens again: double BOS is impossible. Special
 * tokens, and the format's own marks, are not recognised inside contents, so contents cannot forge turns; for contents without
 * such strings the ids are those of the rendered text as transformers encodes it. (Llama-2's [INST] is ordinary text and can be
 * written by anyone.) */
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

/* Tokens with their loss mask: mask[i] = 1 where token i is what the model must produce: an assistant's content (and the space
 * before it in Llama-2, the <think> block in Qwen3) and the end-of-turn token, not the newline after that, nor headers, nor what the
 * generation prompt brings. A token that begins in the header and reaches into the content counts as header. */
typedef struct lk_chat_tokens {
    int32_t *ids;
    uint8_t *mask;
    int64_t n;
} lk_chat_tokens;

/* tk is borrowed and must outlive chat. A tokenizer without template opens as plain. LK_ERR_UNSUPPORTED for a template that is not
 * recognised, LK_ERR_MISMATCH when the tokenizer lacks a token the format is made of. A chat is immutable and may be used by many
 * threads. */
lk_status lk_chat_open(lk_chat **chat, const lk_tokenizer *tk, lk_error *err);
/* By name, whatever the tokenizer's template says (data.chat_format, --chat-format): chatml (no default system prompt), qwen3, minimind,
 * llama2, llama3, llama3.1 (its date lines fixed at 26 Jul 2024, as in its template), plain. */
lk_status lk_chat_open_named(lk_chat **chat, const lk_tokenizer *tk, const char *name, lk_error *err);
void lk_chat_close(lk_chat *chat);
const char *lk_chat_name(const lk_chat *chat);

/* Roles other than system, user and assistant, an empty conversation, and orders the format cannot write are LK_ERR_ARGUMENT.
 * The text as the template renders it (what transformers' apply_chat_template(tokenize=False) gives); free(*text). */
lk_status lk_chat_render(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, char **text,
                         lk_error *err);
lk_status lk_chat_encode(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, lk_chat_tokens *out,
                         lk_error *err);
void lk_chat_tokens_free(lk_chat_tokens *out);
/* The token that ends an assistant turn (<|im_end|>, <|eot_id|>, </s>): generation stops at it. -1 for plain. */
int32_t lk_chat_end_of_turn(const lk_chat *chat);

#endif
