/* Conversations to tokens. The template's text knows of each stretch whether it is the template's or was copied from a message. It is
 * encoded as a whole (so the ids are those of the rendered text, however the template's words and the content meet), with special tokens
 * recognised in the template's stretches only; the mask follows from where each token begins.
 *
 * Which tokens separate turns is not written down anywhere in a model's folder, so a short conversation is rendered when a chat is opened:
 * what stands between its turns are the marks, and the first of them behind the assistant's words ends a turn. */
#include "data/chat/chat.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/sha256.h"
#include "data/chat/internal.h"
#include "data/tokenizer/vocabulary.h"

/* ------------------------------------------------------------------------------------------------ rendering */

const lk_jinja *lk_chat_choose(const lk_chat *chat, const lk_chat_input *in)
{
    if (in->tools && in->tools->child && chat->tool_use) return chat->tool_use;
    if (in->documents && in->documents->child && chat->rag) return chat->rag;
    return chat->template;
}

lk_status lk_chat_run(const lk_chat *chat, const lk_chat_input *in, lk_jinja_output *out, lk_error *err)
{
    cJSON prompt = {.type = in->generation_prompt ? cJSON_True : cJSON_False}, none = {.type = cJSON_NULL};
    int room = 5 + cJSON_GetArraySize(chat->tokens) + cJSON_GetArraySize(in->variables), n = 0;
    lk_jinja_variable *v = malloc((size_t)room * sizeof *v);
    lk_jinja_options options;
    *out = (lk_jinja_output){0};
    if (!v) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    lk_jinja_options_default(&options);
    if (in->now) options.now = in->now;
    for (const cJSON *t = chat->tokens->child; t; t = t->next) v[n++] = (lk_jinja_variable){t->string, t, LK_ORIGIN_TEMPLATE};
    for (const cJSON *t = in->variables ? in->variables->child : NULL; t; t = t->next)
        v[n++] = (lk_jinja_variable){t->string, t, LK_ORIGIN_DATA};
    v[n++] = (lk_jinja_variable){"messages", in->messages, LK_ORIGIN_MESSAGES};
    v[n++] = (lk_jinja_variable){"tools", in->tools ? in->tools : &none, LK_ORIGIN_DATA};
    v[n++] = (lk_jinja_variable){"documents", in->documents ? in->documents : &none, LK_ORIGIN_DATA};
    v[n++] = (lk_jinja_variable){"add_generation_prompt", &prompt, LK_ORIGIN_TEMPLATE};
    lk_status status = lk_jinja_render(lk_chat_choose(chat, in), v, n, &options, out, err);
    free(v);
    return status;
}

/* A role is a word of the template's when it is one of those templates know; any other is a user's text. */
static bool is_known_role(const char *p, size_t n)
{
    static const char *const roles[] = {"system",    "user",        "assistant",    "tool",          "developer",
                                        "function",  "ipython",     "tool_results", "tool_response", "document",
                                        "documents", "environment", "model",        "context",       "observation"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strlen(roles[i]) == n && !memcmp(roles[i], p, n)) return true;
    return false;
}

static lk_status encode(const lk_chat *chat, const lk_jinja_output *r, int32_t **ids, int64_t **starts, int64_t *n, lk_error *err)
{
    lk_text_part *parts = malloc(((size_t)r->n_spans + 1) * sizeof *parts);
    if (!parts) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory for the conversation");
    for (int64_t i = 0; i < r->n_spans; i++) {
        size_t begin = i ? r->spans[i - 1].end : 0, size = r->spans[i].end - begin;
        uint32_t origin = r->spans[i].origin;
        bool plain = origin & LK_ORIGIN_SOURCE && !(origin & LK_ORIGIN_ROLE && is_known_role(r->text + begin, size));
        parts[i] = (lk_text_part){r->text + begin, size, plain};
    }
    lk_text_marks marks = {chat->marks, chat->n_marks};
    lk_status status = lk_tokenizer_encode_parts(chat->tk, parts, r->n_spans, marks, 0, ids, starts, n, err);
    free(parts);
    return status;
}

/* ------------------------------------------------------------------------------------------------ opening */

lk_status lk_chat_add(cJSON *messages, const char *role, const char *content, lk_error *err)
{
    cJSON *m = cJSON_CreateObject();
    bool added = m && cJSON_AddStringToObject(m, "role", role) && cJSON_AddStringToObject(m, "content", content) &&
                 cJSON_AddItemToArray(messages, m);
    if (added) return LK_OK;
    cJSON_Delete(m);
    return lk_fail(err, LK_ERR_MEMORY, "chat: no memory for a message");
}

bool lk_chat_is_mark(const lk_chat *chat, int32_t id)
{
    for (int i = 0; i < chat->n_marks; i++)
        if (chat->marks[i] == id) return true;
    return lk_tokenizer_is_special(chat->tk, id);
}

static void add_mark(lk_chat *chat, int32_t id)
{
    for (int i = 0; i < chat->n_marks; i++)
        if (chat->marks[i] == id) return;
    if (id >= 0 && chat->n_marks < LK_CHAT_MAX_MARKS) chat->marks[chat->n_marks++] = id;
}

/* bos_token and so on: as tokenizer_config.json writes them, or as the vocabulary has them. */
static lk_status take_tokens(lk_chat *chat, lk_error *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    const lk_tokenizer *tk = chat->tk;
    chat->tokens = cJSON_CreateObject();
    for (size_t i = 0; chat->tokens && i < sizeof names / sizeof *names; i++) {
        const char *text = lk_tokenizer_text(tk, names[i]);
        if (!text && i == 0) text = lk_tokenizer_piece(tk, lk_tokenizer_bos(tk), NULL);
        if (!text && i == 1) text = lk_tokenizer_piece(tk, lk_tokenizer_eos(tk), NULL);
        if (text && !cJSON_AddStringToObject(chat->tokens, names[i], text)) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    }
    add_mark(chat, lk_tokenizer_bos(tk));
    add_mark(chat, lk_tokenizer_eos(tk));
    return chat->tokens ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
}

/* The last byte of message i's words in a rendering, or -1. */
static int64_t end_of_message(const lk_jinja_output *r, uint32_t i)
{
    int64_t end = -1;
    for (int64_t s = 0; s < r->n_spans; s++)
        if ((r->spans[s].origin & LK_ORIGIN_SOURCE) == LK_ORIGIN_MESSAGE + i && !(r->spans[s].origin & LK_ORIGIN_ROLE))
            end = r->spans[s].end;
    return end;
}

static int64_t begin_of_message(const lk_jinja_output *r, uint32_t i)
{
    for (int64_t s = 0; s < r->n_spans; s++)
        if ((r->spans[s].origin & LK_ORIGIN_SOURCE) == LK_ORIGIN_MESSAGE + i && !(r->spans[s].origin & LK_ORIGIN_ROLE))
            return s ? r->spans[s - 1].end : 0;
    return -1;
}

/* A probe conversation: these roles, contents that are no words of templates. NULL when there is no memory. */
static cJSON *probe_messages(const char *roles)
{
    cJSON *messages = cJSON_CreateArray();
    for (const char *r = roles; messages && *r; r++) {
        const char *role = *r == 's' ? "system" : *r == 'u' ? "user" : "assistant";
        if (lk_chat_add(messages, role, "Zq", NULL)) {
            cJSON_Delete(messages);
            return NULL;
        }
    }
    return messages;
}

static lk_status run_probe(const lk_chat *chat, const char *roles, lk_jinja_output *out, lk_error *err)
{
    cJSON *messages = probe_messages(roles);
    lk_chat_input in = {.messages = messages, .now = 1};
    *out = (lk_jinja_output){0};
    if (!messages) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    lk_status status = lk_chat_run(chat, &in, out, err);
    cJSON_Delete(messages);
    return status;
}

static bool is_added(const lk_chat *chat, int32_t id)
{
    int type = lk_tokenizer_type(chat->tk, id);
    return type == LK_TOKEN_CONTROL || type == LK_TOKEN_USER_DEFINED;
}

/* Added tokens of a rendering that begin in [begin, end) become marks; *first: the first of them. */
static lk_status take_marks(lk_chat *chat, const lk_jinja_output *r, int64_t begin, int64_t end, int32_t *first, lk_error *err)
{
    int32_t *ids = NULL;
    int64_t *starts = NULL, n;
    *first = -1;
    LK_TRY(encode(chat, r, &ids, &starts, &n, err));
    for (int64_t i = 0; i < n; i++) {
        if (starts[i] < begin || starts[i] >= end || !is_added(chat, ids[i])) continue;
        if (*first < 0) *first = ids[i];
        add_mark(chat, ids[i]);
    }
    free(ids);
    free(starts);
    return LK_OK;
}

/* A template that does not take the probe gives no marks; whether it is any good shows when it is used. */
static lk_status study(lk_chat *chat, lk_error *err)
{
    static const char *const pairs[] = {"ua", "sua"}, *const triples[] = {"uau", "suau"};
    lk_jinja_output r;
    int32_t first;
    lk_status status = LK_OK;
    for (size_t i = 0; i < 2 && !status && chat->end_of_turn < 0; i++) {
        if (run_probe(chat, pairs[i], &r, NULL)) continue;
        int64_t end = end_of_message(&r, i ? 2 : 1);
        if (end >= 0) status = take_marks(chat, &r, end, (int64_t)r.n, &chat->end_of_turn, err);
        lk_jinja_output_free(&r);
    }
    for (size_t i = 0; i < 2 && !status; i++) {
        if (run_probe(chat, triples[i], &r, NULL)) continue;
        int64_t end = end_of_message(&r, i ? 2 : 1), begin = begin_of_message(&r, i ? 3 : 2), last = end_of_message(&r, i ? 3 : 2);
        if (end >= 0 && begin >= end) status = take_marks(chat, &r, end, begin, &first, err);
        if (!status && last >= 0) status = take_marks(chat, &r, last, (int64_t)r.n, &first, err);
        lk_jinja_output_free(&r);
        break;
    }
    return status;
}

/* Whether a content that is a list of parts gives what its text alone gives. */
static bool reads_parts(const lk_chat *chat)
{
    lk_jinja_output plain, parted;
    if (run_probe(chat, "u", &plain, NULL)) return false;
    bool same = false;
    cJSON *messages = cJSON_Parse("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Zq\"}]}]");
    if (messages && !lk_chat_run(chat, &(lk_chat_input){.messages = messages, .now = 1}, &parted, NULL)) {
        same = plain.n == parted.n && !memcmp(plain.text, parted.text, plain.n);
        lk_jinja_output_free(&parted);
    }
    cJSON_Delete(messages);
    lk_jinja_output_free(&plain);
    return same;
}

static lk_status compile(lk_chat *chat, lk_jinja **out, const char *what, const char *text, lk_error *err)
{
    if (!text) return LK_OK;
    lk_status status = lk_jinja_compile(out, what, text, strlen(text), err);
    if (status) return status;
    chat->knows_developer |= strstr(text, "developer") != NULL;
    chat->dated |= lk_jinja_uses(*out, "strftime_now");
    return LK_OK;
}

static lk_status fill(lk_chat *chat, const char *text, const char *tool_use, const char *rag, lk_error *err)
{
    LK_TRY(take_tokens(chat, err));
    if (!text) return LK_OK;
    LK_TRY(compile(chat, &chat->template, "chat_template", text, err));
    LK_TRY(compile(chat, &chat->tool_use, "chat_template (tool_use)", tool_use, err));
    LK_TRY(compile(chat, &chat->rag, "chat_template (rag)", rag, err));
    LK_TRY(study(chat, err));
    chat->takes_parts = reads_parts(chat);
    return LK_OK;
}

static lk_status open_texts(lk_chat **out, const lk_tokenizer *tk, const char *name, const char *text, const char *tool_use,
                            const char *rag, lk_error *err)
{
    *out = NULL;
    lk_chat *chat = calloc(1, sizeof *chat);
    if (!chat) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    chat->tk = tk;
    chat->end_of_turn = -1;
    if (name) {
        snprintf(chat->name, sizeof chat->name, "%s", name);
    } else {
        char digest[65];
        lk_sha256 hash;
        const char *const texts[] = {text, tool_use, rag};
        lk_sha256_init(&hash);
        for (int i = 0; i < 3; i++) lk_sha256_update(&hash, texts[i] ? texts[i] : "", texts[i] ? strlen(texts[i]) + 1 : 1);
        lk_sha256_final(&hash, digest);
        snprintf(chat->name, sizeof chat->name, "template %.12s", digest);
    }
    lk_status status = fill(chat, text, tool_use, rag, err);
    if (status)
        lk_chat_close(chat);
    else
        *out = chat;
    return status;
}

lk_status lk_chat_open(lk_chat **chat, const lk_tokenizer *tk, lk_error *err)
{
    const char *text = lk_tokenizer_chat_template(tk);
    if (!text || !*text) return lk_chat_open_named(chat, tk, "plain", err);
    return open_texts(chat, tk, NULL, text, lk_tokenizer_text(tk, "tool_use"), lk_tokenizer_text(tk, "rag"), err);
}

lk_status lk_chat_open_template(lk_chat **chat, const lk_tokenizer *tk, const char *template, lk_error *err)
{
    return open_texts(chat, tk, NULL, template, NULL, NULL, err);
}

lk_status lk_chat_open_named(lk_chat **chat, const lk_tokenizer *tk, const char *name, lk_error *err)
{
    const lk_chat_format *format = lk_chat_format_named(name);
    *chat = NULL;
    if (!format)
        return lk_fail(err, LK_ERR_ARGUMENT, "chat format \"%.60s\" is not one of chatml, qwen3, minimind, llama2, llama3, llama3.1, plain",
                       name);
    for (int i = 0; format->tokens[i]; i++)
        if (lk_tokenizer_id(tk, format->tokens[i]) < 0)
            return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: the tokenizer has no token %s, which the format is made of", name,
                           format->tokens[i]);
    if (format->needs_bos && lk_tokenizer_bos(tk) < 0)
        return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: tokenizer_config.json names no bos_token, with which the format begins",
                       name);
    if (format->needs_bos && !format->tokens[0] && lk_tokenizer_eos(tk) < 0)
        return lk_fail(err, LK_ERR_MISMATCH, "chat format %s: tokenizer_config.json names no eos_token, which ends a turn", name);
    return open_texts(chat, tk, name, format->template, NULL, NULL, err);
}

void lk_chat_close(lk_chat *chat)
{
    if (!chat) return;
    lk_jinja_free(chat->template);
    lk_jinja_free(chat->tool_use);
    lk_jinja_free(chat->rag);
    cJSON_Delete(chat->tokens);
    free(chat);
}

const char *lk_chat_name(const lk_chat *chat) { return chat->name; }

bool lk_chat_is_dated(const lk_chat *chat) { return chat->dated; }

int32_t lk_chat_end_of_turn(const lk_chat *chat) { return chat->end_of_turn; }

/* ------------------------------------------------------------------------------------------------ conversations */

static lk_status check_objects(const cJSON *list, const char *what, lk_error *err)
{
    if (!list) return LK_OK;
    if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_ARGUMENT, "%s must be a list", what);
    int i = 0;
    for (const cJSON *item = list->child; item; item = item->next, i++)
        if (!cJSON_IsObject(item)) return lk_fail(err, LK_ERR_ARGUMENT, "%s[%d] must be an object", what, i);
    return LK_OK;
}

/* Checks, prepares, renders. */
static lk_status render(const lk_chat *chat, const lk_chat_input *in, cJSON **prepared, lk_jinja_output *out, lk_error *err)
{
    *prepared = NULL;
    if (!chat->template)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "this model has no chat template, so messages cannot be turned into text; use plain prompts, or choose chatml, "
                       "llama2 or llama3 with data.chat_format in the recipe");
    if (!cJSON_IsArray(in->messages) || !in->messages->child) return lk_fail(err, LK_ERR_ARGUMENT, "messages: the conversation is empty");
    LK_TRY(check_objects(in->tools, "tools", err));
    LK_TRY(check_objects(in->documents, "documents", err));
    if (in->variables && !cJSON_IsObject(in->variables)) return lk_fail(err, LK_ERR_ARGUMENT, "chat_template_kwargs must be an object");
    LK_TRY(lk_chat_prepare(chat, in->messages, prepared, err));
    lk_chat_input clean = *in;
    clean.messages = *prepared;
    lk_status status = lk_chat_run(chat, &clean, out, err);
    if (status) {
        cJSON_Delete(*prepared);
        *prepared = NULL;
    }
    return status;
}

lk_status lk_chat_render(const lk_chat *chat, const lk_chat_input *in, char **text, lk_error *err)
{
    lk_jinja_output r = {0};
    cJSON *prepared;
    *text = NULL;
    LK_TRY(render(chat, in, &prepared, &r, err));
    *text = r.text;
    r.text = NULL;
    lk_jinja_output_free(&r);
    cJSON_Delete(prepared);
    return LK_OK;
}

/* The tokens of one turn: those that begin in it, and what follows up to the token that ends it. */
static void mask_turn(const lk_chat *chat, const lk_turn *turn, const int32_t *ids, const int64_t *starts, int64_t n, size_t size,
                      uint8_t *mask)
{
    int64_t i = 0;
    if (turn->exact) {
        for (; i < n; i++) {
            int64_t end = i + 1 < n ? starts[i + 1] : (int64_t)size;
            mask[i] |= starts[i] < (int64_t)turn->end && end > (int64_t)turn->begin;
        }
        return;
    }
    while (i < n && starts[i] < (int64_t)turn->begin) i++;
    for (; i < n && starts[i] < (int64_t)turn->end; i++) mask[i] = 1;
    int64_t stop = i;
    while (stop < n && starts[stop] < (int64_t)turn->limit && !lk_chat_is_mark(chat, ids[stop])) stop++;
    if (chat->end_of_turn < 0 || stop == n || starts[stop] >= (int64_t)turn->limit) return;
    for (; i <= stop; i++) mask[i] = 1;
}

static lk_status fill_mask(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *r, const int64_t *starts,
                           lk_chat_tokens *out, lk_error *err)
{
    lk_turn *turns = NULL;
    int64_t n = 0;
    out->mask = calloc((size_t)out->n + 1, 1);
    if (!out->mask) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory for %lld tokens", (long long)out->n);
    if (in->generation_prompt) return LK_OK;
    LK_TRY(lk_chat_find_turns(chat, in, r, &turns, &n, err));
    for (int64_t i = 0; i < n; i++) mask_turn(chat, &turns[i], out->ids, starts, out->n, r->n, out->mask);
    free(turns);
    return LK_OK;
}

/* One BOS is enough, whatever the template does. */
static void drop_double_bos(const lk_chat *chat, lk_chat_tokens *t, int64_t *starts)
{
    int32_t bos = lk_tokenizer_bos(chat->tk);
    while (bos >= 0 && t->n >= 2 && t->ids[0] == bos && t->ids[1] == bos) {
        memmove(t->ids, t->ids + 1, (size_t)(t->n - 1) * sizeof *t->ids);
        memmove(starts, starts + 1, (size_t)(t->n - 1) * sizeof *starts);
        t->n--;
    }
}

lk_status lk_chat_encode(const lk_chat *chat, const lk_chat_input *in, lk_chat_tokens *out, lk_error *err)
{
    lk_jinja_output r;
    cJSON *prepared;
    int64_t *starts = NULL;
    *out = (lk_chat_tokens){0};
    LK_TRY(render(chat, in, &prepared, &r, err));
    lk_chat_input clean = *in;
    clean.messages = prepared;
    lk_status status = encode(chat, &r, &out->ids, &starts, &out->n, err);
    if (!status) {
        drop_double_bos(chat, out, starts);
        status = fill_mask(chat, &clean, &r, starts, out, err);
    }
    if (status) lk_chat_tokens_free(out);
    free(starts);
    lk_jinja_output_free(&r);
    cJSON_Delete(prepared);
    return status;
}

void lk_chat_tokens_free(lk_chat_tokens *out)
{
    free(out->ids);
    free(out->mask);
    *out = (lk_chat_tokens){0};
}
