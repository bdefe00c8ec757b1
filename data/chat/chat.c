/* Conversations to tokens. The conversation is rendered as one text that knows of each stretch whether it is the template's or
 * a message's and whether it is trained on. The text is encoded as a whole (so the ids are those of the rendered text, however the
 * template's words and the content meet), with special tokens recognised in the template's stretches only; the mask follows from
 * where each token begins. */
#include "data/chat/chat.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "data/chat/internal.h"

static lk_status add_mark(lk_chat *chat, const char *text, int32_t *id, lk_error *err)
{
    *id = lk_tokenizer_id(chat->tk, text);
    if (*id < 0)
        return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: the tokenizer has no token %s, which the format is made of",
                       chat->format->name, text);
    chat->marks[chat->n_marks++] = *id;
    return LK_OK;
}

/* The tokens the format is made of must be there. */
static lk_status find_marks(lk_chat *chat, lk_error *err)
{
    const lk_chat_format *f = chat->format;
    int32_t ignored, bos = lk_tokenizer_bos(chat->tk), eos = lk_tokenizer_eos(chat->tk);
    chat->bos = lk_tokenizer_piece(chat->tk, bos, NULL);
    chat->eos = lk_tokenizer_piece(chat->tk, eos, NULL);
    if (bos >= 0) chat->marks[chat->n_marks++] = bos;
    if (eos >= 0) chat->marks[chat->n_marks++] = eos;
    chat->end_of_turn = -1;
    if ((f->family == LK_CHAT_LLAMA2 || f->family == LK_CHAT_LLAMA3) && !chat->bos)
        return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: tokenizer_config.json names no bos_token, with which the format begins",
                       f->name);
    switch (f->family) {
    case LK_CHAT_PLAIN: return LK_OK;
    case LK_CHAT_CHATML:
        LK_TRY(add_mark(chat, "<|im_start|>", &ignored, err));
        return add_mark(chat, "<|im_end|>", &chat->end_of_turn, err);
    case LK_CHAT_LLAMA2:
        if (!chat->eos)
            return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: tokenizer_config.json names no eos_token, which ends a turn", f->name);
        chat->end_of_turn = eos;
        return LK_OK;
    case LK_CHAT_LLAMA3:
        LK_TRY(add_mark(chat, "<|start_header_id|>", &ignored, err));
        LK_TRY(add_mark(chat, "<|end_header_id|>", &ignored, err));
        return add_mark(chat, "<|eot_id|>", &chat->end_of_turn, err);
    }
    return lk_fail(err, LK_ERR_INTERNAL, "chat: an unknown format");
}

/* Takes system over on success only as far as it is in chat's own arena. */
static lk_status open_format(lk_chat **out, const lk_tokenizer *tk, const lk_chat_format *format, const char *system, lk_error *err)
{
    *out = NULL;
    lk_chat *chat = calloc(1, sizeof *chat);
    if (!chat) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    chat->tk = tk;
    chat->format = format;
    lk_status status = LK_OK;
    if (system && !(chat->system = lk_arena_strdup(&chat->arena, system))) status = lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    if (!status) status = find_marks(chat, err);
    if (status)
        lk_chat_close(chat);
    else
        *out = chat;
    return status;
}

static lk_status refuse(const char *why, const char *digest, lk_error *err)
{
    return lk_fail(err, LK_ERR_UNSUPPORTED,
                   "the model's chat template cannot be honoured: %s. Full Jinja is not supported; recognised are ChatML (Qwen2, Qwen2.5, "
                   "Qwen3, SmolLM "
                   "and others), Llama-2 and Llama-3 as published. To use a format all the same, choose chatml, qwen3, llama2, llama3, "
                   "llama3.1 or plain "
                   "with data.chat_format in the recipe or --chat-format (canonical form %.12s)",
                   why, digest);
}

lk_status lk_chat_open(lk_chat **chat, const lk_tokenizer *tk, lk_error *err)
{
    const char *template = lk_tokenizer_chat_template(tk);
    *chat = NULL;
    if (!template || !*template) return lk_chat_open_named(chat, tk, "plain", err);
    lk_arena arena = {0};
    char *canonical, *system, digest[65] = "none";
    lk_status status = lk_template_canonical(template, &arena, &canonical, &system, err);
    if (status == LK_ERR_FORMAT) {
        lk_error why = {0};
        lk_template_canonical(template, &arena, &canonical, &system, &why);
        status = refuse(why.message, digest, err);
    } else if (!status) {
        lk_sha256_bytes(canonical, strlen(canonical), digest);
        const lk_chat_format *format = lk_chat_format_known(digest);
        if (format && format->needs_default == (system != NULL))
            status = open_format(chat, tk, format, system, err);
        else if (strstr(template, "strftime_now"))
            status = refuse("it puts today's date into the text, so the same conversation would be other tokens tomorrow", digest, err);
        else
            status = refuse("it is none of the templates known here, or a changed one", digest, err);
    }
    lk_arena_free(&arena);
    return status;
}

lk_status lk_chat_open_named(lk_chat **chat, const lk_tokenizer *tk, const char *name, lk_error *err)
{
    const lk_chat_format *format = lk_chat_format_named(name);
    *chat = NULL;
    if (!format)
        return lk_fail(err, LK_ERR_ARGUMENT, "chat format \"%.60s\" is not one of chatml, qwen3, minimind, llama2, llama3, llama3.1, plain",
                       name);
    return open_format(chat, tk, format, NULL, err);
}

void lk_chat_close(lk_chat *chat)
{
    if (!chat) return;
    lk_arena_free(&chat->arena);
    free(chat);
}

const char *lk_chat_name(const lk_chat *chat) { return chat->format->name; }

int32_t lk_chat_end_of_turn(const lk_chat *chat) { return chat->end_of_turn; }

lk_status lk_chat_render(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, char **text,
                         lk_error *err)
{
    lk_rendering r;
    *text = NULL;
    LK_TRY(lk_chat_render_segments(chat, messages, n, generation_prompt, &r, err));
    *text = r.text;
    r.text = NULL;
    lk_rendering_free(&r);
    return LK_OK;
}

/* mask[i] = token i begins in a trained segment. A token that begins in the header and reaches into the content is the header's:
 * after the generation prompt the model could not produce it. */
static void fill_mask(const lk_rendering *r, const int64_t *starts, int64_t n, uint8_t *mask)
{
    int64_t s = 0;
    for (int64_t i = 0; i < n; i++) {
        while (s + 1 < r->n_segments && (size_t)starts[i] >= r->segments[s].end) s++;
        mask[i] = r->segments[s].trained;
    }
}

lk_status lk_chat_encode(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, lk_chat_tokens *out,
                         lk_error *err)
{
    lk_rendering r;
    int64_t *starts = NULL;
    *out = (lk_chat_tokens){0};
    LK_TRY(lk_chat_render_segments(chat, messages, n, generation_prompt, &r, err));
    lk_status status = LK_OK;
    lk_text_part *parts = malloc((size_t)r.n_segments * sizeof *parts);
    if (!parts) {
        status = lk_fail(err, LK_ERR_MEMORY, "chat: no memory for the conversation");
        goto out;
    }
    for (int64_t i = 0; i < r.n_segments; i++) {
        size_t begin = i ? r.segments[i - 1].end : 0;
        parts[i] = (lk_text_part){r.text + begin, r.segments[i].end - begin, r.segments[i].content};
    }
    lk_text_marks marks = {chat->marks, chat->n_marks};
    if ((status = lk_tokenizer_encode_parts(chat->tk, parts, r.n_segments, marks, 0, &out->ids, &starts, &out->n, err))) goto out;
    out->mask = malloc((size_t)out->n + 1);
    if (!out->mask) {
        status = lk_fail(err, LK_ERR_MEMORY, "chat: no memory for %lld tokens", (long long)out->n);
        goto out;
    }
    fill_mask(&r, starts, out->n, out->mask);
out:
    if (status) lk_chat_tokens_free(out);
    free(starts);
    free(parts);
    lk_rendering_free(&r);
    return status;
}

void lk_chat_tokens_free(lk_chat_tokens *out)
{
    free(out->ids);
    free(out->mask);
    *out = (lk_chat_tokens){0};
}
