#include "serve/openai_reply.h"

#include <inttypes.h>
#include <string.h>

static const char *finish_word(lk_finish finish, bool called)
{
    if (finish == LK_FINISH_NONE) return "null";
    return finish == LK_FINISH_LENGTH ? "\"length\"" : called ? "\"tool_calls\"" : "\"stop\"";
}

/* ------------------------------------------------------------------------------------------------ logprobs */

static const char *token_bytes(const lk_tokenizer *tk, int32_t id, size_t *size)
{
    const char *bytes = lk_tokenizer_bytes(tk, id, size);
    if (!bytes) *size = 0;
    return bytes ? bytes : "";
}

/* "token": its text with U+FFFD for half characters, "bytes": what it really stands for. */
static void chat_token(lk_writer *out, const lk_tokenizer *tk, int32_t id, float logprob)
{
    size_t size;
    const char *bytes = token_bytes(tk, id, &size);
    lk_writer_string(out, "{\"token\":");
    lk_writer_json(out, bytes, size);
    lk_writer_string(out, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) lk_writer_printf(out, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    lk_writer_string(out, "],\"logprob\":");
    lk_writer_float(out, logprob);
}

static void chat_logprobs(lk_writer *out, const lk_tokenizer *tk, const lk_token_logprob *l, int64_t n)
{
    lk_writer_string(out, "{\"content\":[");
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_writer_string(out, ",");
        chat_token(out, tk, l[i].id, l[i].logprob);
        lk_writer_string(out, ",\"top_logprobs\":[");
        for (int32_t j = 0; j < l[i].n_top; j++) {
            if (j) lk_writer_string(out, ",");
            chat_token(out, tk, l[i].top_ids[j], l[i].top_logprobs[j]);
            lk_writer_string(out, "}");
        }
        lk_writer_string(out, "]}");
    }
    lk_writer_string(out, "],\"refusal\":null}");
}

/* Completions use token texts as keys of an object, so two different tokens must not look alike: what is not UTF-8 is written
 * bytes:\xe2\x80, as OpenAI did. */
static void completion_token(lk_writer *out, const lk_tokenizer *tk, int32_t id)
{
    size_t size, i = 0;
    const char *bytes = token_bytes(tk, id, &size);
    for (int n; i < size && (n = lk_utf8_length(bytes + i, size - i)) > 0;) i += (size_t)n;
    if (i == size) {
        lk_writer_json(out, bytes, size);
        return;
    }
    lk_writer_string(out, "\"bytes:");
    for (i = 0; i < size; i++) lk_writer_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    lk_writer_string(out, "\"");
}

static bool listed(const lk_token_logprob *l, int32_t id)
{
    for (int32_t j = 0; j < l->n_top; j++)
        if (l->top_ids[j] == id) return true;
    return false;
}

static void completion_top(lk_writer *out, const lk_tokenizer *tk, const lk_token_logprob *l)
{
    lk_writer_string(out, "{");
    for (int32_t j = 0; j < l->n_top; j++) {
        if (j) lk_writer_string(out, ",");
        completion_token(out, tk, l->top_ids[j]);
        lk_writer_string(out, ":");
        lk_writer_float(out, l->top_logprobs[j]);
    }
    if (!listed(l, l->id)) { /* the drawn token is always among them, as at OpenAI */
        if (l->n_top) lk_writer_string(out, ",");
        completion_token(out, tk, l->id);
        lk_writer_string(out, ":");
        lk_writer_float(out, l->logprob);
    }
    lk_writer_string(out, "}");
}

static void completion_logprobs(lk_writer *out, const lk_tokenizer *tk, const lk_token_logprob *l, int64_t n)
{
    lk_writer_string(out, "{\"tokens\":[");
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_writer_string(out, ",");
        completion_token(out, tk, l[i].id);
    }
    lk_writer_string(out, "],\"token_logprobs\":[");
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_writer_string(out, ",");
        lk_writer_float(out, l[i].logprob);
    }
    lk_writer_string(out, "],\"top_logprobs\":[");
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_writer_string(out, ",");
        completion_top(out, tk, &l[i]);
    }
    lk_writer_string(out, "],\"text_offset\":[");
    for (int64_t i = 0; i < n; i++) lk_writer_printf(out, i ? ",%" PRId64 : "%" PRId64, l[i].text_offset);
    lk_writer_string(out, "]}");
}

static void logprobs(lk_writer *out, const lk_reply_head *head, const lk_token_logprob *l, int64_t n)
{
    lk_writer_string(out, ",\"logprobs\":");
    if (!head->logprobs)
        lk_writer_string(out, "null");
    else if (head->kind == LK_OPENAI_CHAT)
        chat_logprobs(out, head->tk, l, n);
    else
        completion_logprobs(out, head->tk, l, n);
}

/* ------------------------------------------------------------------------------------------------ whole replies */

/* {"id":...,"model":...,"system_fingerprint":...,"choices":[ */
static void opening(lk_writer *out, const lk_reply_head *head, bool chunk)
{
    const char *object = head->kind == LK_OPENAI_COMPLETION ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
    lk_writer_string(out, "{\"id\":");
    lk_writer_json_string(out, head->id);
    lk_writer_printf(out, ",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", object, head->created);
    lk_writer_json_string(out, head->model);
    lk_writer_string(out, ",\"system_fingerprint\":");
    lk_writer_json_string(out, head->fingerprint);
    lk_writer_string(out, ",\"choices\":[");
}

void lk_reply_usage_json(lk_writer *out, const lk_usage *usage)
{
    lk_writer_printf(out,
                     "{\"prompt_tokens\":%" PRId64 ",\"completion_tokens\":%" PRId64 ",\"total_tokens\":%" PRId64
                     ",\"prompt_tokens_details\":{\"cached_tokens\":0}}",
                     usage->prompt, usage->completion, usage->prompt + usage->completion);
}

static void call_json(lk_writer *out, const lk_reply_call *call)
{
    lk_writer_string(out, "\"id\":");
    lk_writer_json_string(out, call->id);
    lk_writer_string(out, ",\"type\":\"function\",\"function\":{\"name\":");
    lk_writer_json_string(out, call->name);
    lk_writer_string(out, ",\"arguments\":");
    lk_writer_json(out, call->arguments, call->size);
    lk_writer_string(out, "}}");
}

static void message(lk_writer *out, const lk_reply_choice *c)
{
    lk_writer_string(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (c->n_calls && c->size == 0)
        lk_writer_string(out, "null");
    else
        lk_writer_json(out, c->text, c->size);
    lk_writer_string(out, ",\"refusal\":null");
    for (int32_t i = 0; i < c->n_calls; i++) {
        lk_writer_string(out, i ? ",{" : ",\"tool_calls\":[{");
        call_json(out, &c->calls[i]);
    }
    lk_writer_string(out, c->n_calls ? "]}" : "}");
}

void lk_reply_whole(lk_writer *out, const lk_reply_head *head, const lk_reply_choice *choices, int32_t n, const lk_usage *usage)
{
    opening(out, head, false);
    for (int32_t i = 0; i < n; i++) {
        const lk_reply_choice *c = &choices[i];
        bool chat = head->kind == LK_OPENAI_CHAT;
        lk_writer_printf(out, "%s{\"index\":%d,", i ? "," : "", i);
        if (chat)
            message(out, c);
        else {
            lk_writer_string(out, "\"text\":");
            lk_writer_json(out, c->text, c->size);
        }
        logprobs(out, head, c->logprobs, c->n_logprobs);
        lk_writer_printf(out, ",\"finish_reason\":%s}", finish_word(c->finish, c->n_calls > 0));
    }
    lk_writer_string(out, "],\"usage\":");
    lk_reply_usage_json(out, usage);
    lk_writer_string(out, "}");
}

/* ------------------------------------------------------------------------------------------------ stream events */

static void event_open(lk_writer *out, const lk_reply_head *head, int32_t choice)
{
    lk_writer_string(out, "data: ");
    opening(out, head, true);
    lk_writer_printf(out, "{\"index\":%d,", choice);
}

static void event_close(lk_writer *out, const lk_reply_head *head, lk_finish finish, bool called)
{
    lk_writer_printf(out, ",\"finish_reason\":%s}]%s}\n\n", finish_word(finish, called), head->include_usage ? ",\"usage\":null" : "");
}

void lk_reply_first(lk_writer *out, const lk_reply_head *head, int32_t choice)
{
    if (head->kind != LK_OPENAI_CHAT) return;
    event_open(out, head, choice);
    lk_writer_string(out, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
    event_close(out, head, LK_FINISH_NONE, false);
}

void lk_reply_call_event(lk_writer *out, const lk_reply_head *head, int32_t choice, int32_t index, const lk_reply_call *call)
{
    event_open(out, head, choice);
    lk_writer_printf(out, "\"delta\":{\"tool_calls\":[{\"index\":%d,", index);
    call_json(out, call);
    lk_writer_string(out, "]},\"logprobs\":null");
    event_close(out, head, LK_FINISH_NONE, false);
}

/* finish without text says `"delta":{}`, or `"text":""` for completions. */
static void event(lk_writer *out, const lk_reply_head *head, const lk_piece *piece, bool text, lk_finish finish)
{
    bool chat = head->kind == LK_OPENAI_CHAT;
    event_open(out, head, piece->choice);
    lk_writer_string(out, !chat ? "\"text\":" : text ? "\"delta\":{\"content\":" : "\"delta\":{");
    if (text || !chat) lk_writer_json(out, piece->text, text ? piece->size : 0);
    if (chat) lk_writer_string(out, "}");
    bool here = piece->n_logprobs > 0 && (text || piece->size == 0);
    if (here)
        logprobs(out, head, piece->logprobs, piece->n_logprobs);
    else
        lk_writer_string(out, ",\"logprobs\":null");
    event_close(out, head, finish, piece->called);
}

void lk_reply_piece(lk_writer *out, const lk_reply_head *head, const lk_piece *piece)
{
    if (piece->size) event(out, head, piece, true, LK_FINISH_NONE);
    if (piece->finish || (!piece->size && piece->n_logprobs)) event(out, head, piece, false, piece->finish);
}

void lk_reply_usage(lk_writer *out, const lk_reply_head *head, const lk_usage *usage)
{
    lk_writer_string(out, "data: ");
    opening(out, head, true);
    lk_writer_string(out, "],\"usage\":");
    lk_reply_usage_json(out, usage);
    lk_writer_string(out, "}\n\n");
}

void lk_reply_error(lk_writer *out, const lk_api_error *e)
{
    lk_writer_string(out, "data: ");
    lk_api_error_json(out, e);
    lk_writer_string(out, "\n\n");
}

void lk_reply_done(lk_writer *out) { lk_writer_string(out, "data: [DONE]\n\n"); }
