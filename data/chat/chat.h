/* Chat templates: messages to tokens, the same in training and in serving.
 *
 *     lk_chat *chat;
 *     LK_TRY(lk_chat_open(&chat, tk, err));         -- the model's own template
 *     cJSON *messages = cJSON_CreateArray();
 *     LK_TRY(lk_chat_add(messages, "user", "Hello", err));
 *     LK_TRY(lk_chat_encode(chat, &(lk_chat_input){.messages = messages, .generation_prompt = true}, &out, err));
 *     lk_chat_tokens_free(&out);
 *
 * The template is run by an interpreter of the Jinja that transformers uses (data/chat/jinja.h), so the text is what apply_chat_template
 * gives. It is encoded without adding special tokens again, and one BOS too many at the start is left out: double BOS is impossible.
 * Special tokens, and the added tokens that the template separates turns with, are not recognised in what comes from messages, tools and
 * documents, so contents cannot forge turns; for contents without such strings the ids are those of the text as transformers encodes it.
 *
 * Messages are prepared a little first, as other servers do: fields that are null are dropped; reasoning_content, thinking and reasoning
 * stand for each other, as in transformers; a tool call's arguments that are a JSON text of an object become that object; a missing content
 * beside tool calls becomes ""; the role developer becomes system, and text parts are joined by newlines, unless the template knows them.
 */
#ifndef LK_DATA_CHAT_CHAT_H
#define LK_DATA_CHAT_CHAT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/tokenizer/tokenizer.h"

typedef struct lk_chat lk_chat;

/* All borrowed. */
typedef struct lk_chat_input {
    const cJSON *messages;  /* an array of {"role", "content", ...}, as OpenAI's; "weight": 0 on a turn that is not trained on */
    const cJSON *tools;     /* an array of objects, or NULL */
    const cJSON *documents; /* the same */
    const cJSON *variables; /* an object of further variables (chat_template_kwargs), or NULL */
    bool generation_prompt;
    int64_t train_from; /* turns before this message are not trained on */
    int64_t now;        /* seconds since 1970 for templates that write the date; 0: the clock */
} lk_chat_input;

/* Tokens with their loss mask: mask[i] = 1 where token i is what the model must produce. With {% generation %} in the template that is what
 * it encloses, as transformers' return_assistant_tokens_mask has it. Without: everything from the end of the generation prompt to the token
 * that ends the turn, so an assistant's content, tool calls and reasoning, not headers nor the newline after the turn. A token that begins
 * in the header and reaches into the content counts as header. */
typedef struct lk_chat_tokens {
    int32_t *ids;
    uint8_t *mask;
    int64_t n;
} lk_chat_tokens;

/* tk is borrowed and must outlive chat. A tokenizer without template opens as plain. LK_ERR_FORMAT for a template that jinja2 would not
 * take either, LK_ERR_UNSUPPORTED for one that uses what this interpreter lacks, with the line. A chat is immutable and may be used by many
 * threads. */
lk_status lk_chat_open(lk_chat **chat, const lk_tokenizer *tk, lk_error *err);
/* By name, whatever the tokenizer's template says (data.chat_format): chatml (no default system prompt), qwen3, minimind, llama2, llama3,
 * llama3.1 (its date lines fixed at 26 Jul 2024), plain. LK_ERR_MISMATCH when the tokenizer lacks a token the format is made of. */
lk_status lk_chat_open_named(lk_chat **chat, const lk_tokenizer *tk, const char *name, lk_error *err);
/* With a template of the caller's. */
lk_status lk_chat_open_template(lk_chat **chat, const lk_tokenizer *tk, const char *template, lk_error *err);
void lk_chat_close(lk_chat *chat);
const char *lk_chat_name(const lk_chat *chat); /* the format's name, or "template" and the start of its SHA-256 */
bool lk_chat_is_dated(const lk_chat *chat);    /* its text depends on the day */

/* Adds a message to an array. */
lk_status lk_chat_add(cJSON *messages, const char *role, const char *content, lk_error *err);

/* LK_ERR_ARGUMENT: an empty conversation, messages that are no messages, what the template refuses by raise_exception. LK_ERR_FORMAT: other
 * errors of the template on this conversation, with its line. LK_ERR_UNSUPPORTED: plain; parts that are not text; a mask that cannot
 * be found (only in encode).
 * The text as the template renders it (what transformers' apply_chat_template(tokenize=False) gives); free(*text). */
lk_status lk_chat_render(const lk_chat *chat, const lk_chat_input *in, char **text, lk_error *err);
/* As render, and encoded. The mask is of use only without generation_prompt; with it, it is all zero. */
lk_status lk_chat_encode(const lk_chat *chat, const lk_chat_input *in, lk_chat_tokens *out, lk_error *err);
void lk_chat_tokens_free(lk_chat_tokens *out);
/* The token that ends an assistant turn (<|im_end|>, <|eot_id|>, </s>): generation stops at it. -1 for plain, and where the template ends a
 * turn with no token of its own. */
int32_t lk_chat_end_of_turn(const lk_chat *chat);

#endif
