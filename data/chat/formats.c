/* The formats we can render, and the published templates we know to be them.
 *
 * A template is known by the SHA-256 of its canonical form (template.c): not by what it looks like, nor by how it answers a few
 * probes, but by doing step by step the same. Adding one means: see with tests/data/test_chat.c's helper what its canonical form
 * is, make sure that the renderer below does the same for every conversation without tools, and put the digest in the table.
 *
 * What the templates do (transformers' apply_chat_template without tools, documents or extra variables):
 *
 *   chatml    [default system]  <|im_start|>ROLE\nCONTENT<|im_end|>\n ...            <|im_start|>assistant\n
 *   qwen3     the same; the turns after the last user's begin with <think>\nREASONING\n</think>\n\n, earlier ones lose theirs
 *   minimind  the same with the block in every assistant turn, and an empty one in the generation prompt
 *   llama2    <s>[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nUSER [/INST] ASSISTANT </s><s>[INST] ...      (nothing)
 *   llama3    <|begin_of_text|> <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|> ...   the assistant's header
 *   llama3.1  the same after a system turn that always begins with two lines about dates
 *
 * Trained on: what the model must produce itself, that is an assistant's content (with the block, if it is not part of the
 * generation prompt) and the token that ends the turn. */
#include <stdlib.h>
#include <string.h>

#include "data/chat/internal.h"
#include "data/tokenizer/utf8.h"

static const lk_chat_format formats[] = {
    {.name = "plain", .family = LK_CHAT_PLAIN},
    {.name = "chatml", .family = LK_CHAT_CHATML},
    {.name = "qwen3", .family = LK_CHAT_CHATML, .think = LK_THINK_LAST},
    {.name = "minimind", .family = LK_CHAT_CHATML, .think = LK_THINK_ALWAYS},
    {.name = "llama2", .family = LK_CHAT_LLAMA2},
    {.name = "llama3", .family = LK_CHAT_LLAMA3},
    {.name = "llama3.1", .family = LK_CHAT_LLAMA3, .dated = true},
    /* recognised but not offered by name: the ones above are what people mean */
    {.name = "chatml", .family = LK_CHAT_CHATML, .needs_default = true},
    {.name = "llama2", .family = LK_CHAT_LLAMA2, .strip_parts = true},
};
enum { PLAIN, CHATML, QWEN3, MINIMIND, LLAMA2, LLAMA3, LLAMA31, CHATML_DEFAULT, LLAMA2_PARTS, N_NAMED = CHATML_DEFAULT };

static const struct {
    const char *digest;
    int format;
} known[] = {
    /* ChatML without a default system prompt: teknium's OpenHermes, HuggingFaceTB's SmolLM-Instruct, the one in transformers' documentation
     */
    {"0592b275895886e35132df1675e3480db17044da28bcde239f032f3ae4dd765b", CHATML},
    /* Qwen1.5, Qwen2, SmolLM2: a default system prompt in front when the first message is none */
    {"1044c93bd518efaaed943b623a01890bc45702f989324241a6d2c843eef8b9c5", CHATML_DEFAULT},
    /* Qwen2.5 and its Coder and Math models, whatever their default system prompt */
    {"6afde13dafcb09ef71df1cc070fa366ad63b84baa51ea44de195b59fd5c1e214", CHATML_DEFAULT},
    /* Qwen3 (April 2025), and its later text that also reads contents that are no strings */
    {"d6d28582a78de752aa522264f82360c5b28ba9eea779d0aa2c8687d192b49ece", QWEN3},
    {"895d80b01957e9b97c15eb223d313c57ca1da467c3d5eb9e74ed1fc733e13691", QWEN3},
    /* minimind */
    {"fb19c94076142bfbfca2a0c2869f4a99b2982ba91d57ad6461fa1f22cad5c1e9", MINIMIND},
    /* Llama-2-chat: with content.strip(), and with the filter trim */
    {"c86ddbb5eeb27f1cda999271fef1a8c22cfa69933f653d244ffde470cea8d3fe", LLAMA2},
    {"1edf60fc5deda04e362e11d3afc1f7d0cc513f2d82100b6d86585a52ae551991", LLAMA2},
    /* tests/golden/make_chat.py's own form of Llama-2 */
    {"0161a2e66c16da6028f2f955690d5819b891063dd5cd1d2e986cf99ce7ef8204", LLAMA2_PARTS},
    /* Llama-3-Instruct as published, and the same written without a loop variable */
    {"db713130b7631064c7ed041a3d6b0ab08334feaefab1efd05156449c94e44104", LLAMA3},
    {"3221b5efda75e04a3ded79a0638a67ec46479f9801975e369b59661699921f24", LLAMA3},
    /* Llama-3.1-Instruct and Llama-3.3-Instruct; Llama-3.2 asks for today's date and is refused */
    {"5492a3b23ef6541a8c891b0586d45b3b051493b4e165b72b7bdccc344ff8d537", LLAMA31},
};

const lk_chat_format *lk_chat_format_named(const char *name)
{
    for (int i = 0; i < N_NAMED; i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    return NULL;
}

const lk_chat_format *lk_chat_format_known(const char *digest)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].digest, digest)) return &formats[known[i].format];
    return NULL;
}

/* ---- writing ---- */

static void add(lk_rendering *r, const char *text, size_t n, bool content, bool trained)
{
    if (n == 0 || r->no_memory) return;
    if (r->n + n + 1 > r->room) {
        size_t room = 2 * (r->n + n + 1);
        char *grown = realloc(r->text, room);
        r->no_memory = !grown;
        if (!grown) return;
        r->text = grown;
        r->room = room;
    }
    memcpy(r->text + r->n, text, n);
    r->n += n;
    r->text[r->n] = 0;
    lk_segment *last = r->n_segments ? &r->segments[r->n_segments - 1] : NULL;
    if (last && last->content == content && last->trained == trained) {
        last->end = r->n;
        return;
    }
    if (r->n_segments == r->segment_room) {
        int64_t room = r->segment_room ? 2 * r->segment_room : 32;
        lk_segment *grown = realloc(r->segments, (size_t)room * sizeof *grown);
        r->no_memory = !grown;
        if (!grown) return;
        r->segments = grown;
        r->segment_room = room;
    }
    r->segments[r->n_segments++] = (lk_segment){r->n, content, trained};
}

static void mark(lk_rendering *r, const char *text, bool trained) { add(r, text, strlen(text), false, trained); }

void lk_rendering_free(lk_rendering *r)
{
    free(r->text);
    free(r->segments);
    *r = (lk_rendering){0};
}

/* A stretch of a message. */
typedef struct span {
    const char *p;
    size_t n;
} span;

static span whole(const char *text) { return (span){text, strlen(text)}; }

static void say(lk_rendering *r, span s, bool trained) { add(r, s.p, s.n, true, trained); }

/* Python's str.strip(): Unicode white space and the four separators of ASCII. */
static bool strips(uint32_t cp) { return lk_is_space(cp) || (cp >= 0x1c && cp <= 0x1f); }

static span strip(span s)
{
    uint32_t cp;
    int length;
    while (s.n && (length = lk_utf8_decode(s.p, s.n, &cp)) && strips(cp)) {
        s.p += length;
        s.n -= (size_t)length;
    }
    while (s.n) {
        size_t i = s.n - 1;
        while (i > 0 && ((unsigned char)s.p[i] & 0xc0) == 0x80) i--;
        length = lk_utf8_decode(s.p + i, s.n - i, &cp);
        if (!length || (size_t)length != s.n - i || !strips(cp)) break;
        s.n = i;
    }
    return s;
}

static span strip_newlines(span s, bool left, bool right)
{
    while (left && s.n && s.p[0] == '\n') s.p++, s.n--;
    while (right && s.n && s.p[s.n - 1] == '\n') s.n--;
    return s;
}

static const char *find(span s, const char *mark_text) { return s.n ? memmem(s.p, s.n, mark_text, strlen(mark_text)) : NULL; }

/* What follows the last mark in s, or s. */
static span after_last(span s, const char *mark_text)
{
    const char *found;
    while ((found = find(s, mark_text))) {
        size_t skip = (size_t)(found - s.p) + strlen(mark_text);
        s.p += skip;
        s.n -= skip;
    }
    return s;
}

/* ---- ChatML ---- */

/* An assistant's content, its <think> block apart: reasoning is what precedes the first </think>, after a <think> if there is one. */
static void split_thought(span *content, span *reasoning)
{
    const char *close = find(*content, "</think>");
    *reasoning = (span){content->p, 0};
    if (!close) return;
    span before = {content->p, (size_t)(close - content->p)};
    *reasoning = strip_newlines(after_last(strip_newlines(before, false, true), "<think>"), true, false);
    *content = strip_newlines(after_last(*content, "</think>"), true, false);
}

/* The index of the last user turn that is a question and not a tool's answer; the last message when there is none. */
static int64_t last_question(const lk_chat_message *m, int64_t n)
{
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    for (int64_t i = n - 1; i >= 0; i--) {
        span c = whole(m[i].content);
        bool answer = c.n >= strlen(open) && !memcmp(c.p, open, strlen(open)) && c.n >= strlen(close) &&
                      !memcmp(c.p + c.n - strlen(close), close, strlen(close));
        if (!strcmp(m[i].role, "user") && !answer) return i;
    }
    return n - 1;
}

static void chatml_assistant(const lk_chat *chat, const lk_chat_message *m, bool after_question, bool last, lk_rendering *r)
{
    bool trained = !m->no_loss;
    span content = whole(m->content), reasoning = {NULL, 0};
    bool block = false;
    if (chat->format->think != LK_THINK_NONE) {
        split_thought(&content, &reasoning);
        block = chat->format->think == LK_THINK_ALWAYS || (after_question && (last || reasoning.n));
    }
    mark(r, "<|im_start|>assistant\n", false);
    if (block) {
        /* an empty block that the generation prompt brings is not the model's to produce */
        bool given = chat->format->think == LK_THINK_ALWAYS;
        span thought = strip_newlines(reasoning, true, true);
        mark(r, "<think>\n", trained && !given);
        say(r, thought, trained);
        mark(r, "\n</think>\n\n", trained && (!given || thought.n));
        content = strip_newlines(content, true, false);
    }
    say(r, content, trained);
    mark(r, "<|im_end|>", trained);
    mark(r, "\n", false);
}

static void render_chatml(const lk_chat *chat, const lk_chat_message *m, int64_t n, bool generation_prompt, lk_rendering *r)
{
    int64_t question = last_question(m, n);
    if (chat->system && strcmp(m[0].role, "system")) {
        mark(r, "<|im_start|>system\n", false);
        mark(r, chat->system, false);
        mark(r, "<|im_end|>\n", false);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!strcmp(m[i].role, "assistant")) {
            chatml_assistant(chat, &m[i], i > question, i == n - 1, r);
            continue;
        }
        mark(r, "<|im_start|>", false);
        mark(r, m[i].role, false);
        mark(r, "\n", false);
        say(r, whole(m[i].content), false);
        mark(r, "<|im_end|>\n", false);
    }
    if (generation_prompt) mark(r, "<|im_start|>assistant\n", false);
    if (generation_prompt && chat->format->think == LK_THINK_ALWAYS) mark(r, "<think>\n\n</think>\n\n", false);
}

/* ---- Llama-2 ---- */

static lk_status check_alternation(const lk_chat_message *m, int64_t n, lk_error *err)
{
    int64_t first = n && !strcmp(m[0].role, "system");
    for (int64_t i = first; i < n; i++) {
        const char *want = (i - first) % 2 == 0 ? "user" : "assistant";
        if (strcmp(m[i].role, want))
            return lk_fail(err, LK_ERR_ARGUMENT,
                           "messages[%lld]: the role is %s where the Llama-2 format wants %s (an optional system message, then "
                           "user and assistant in turn)",
                           (long long)i, m[i].role, want);
    }
    return n > first ? LK_OK
                     : lk_fail(err, LK_ERR_ARGUMENT,
                               "messages: the Llama-2 format puts the system text into the first user message, and there is none");
}

/* The published template strips the concatenation of system and user text, so the user's own leading white space stays. */
static void llama2_user(const lk_chat *chat, const char *system, span user, lk_rendering *r)
{
    mark(r, chat->bos, false);
    mark(r, "[INST] ", false);
    if (system) {
        span s = whole(system), rest = strip(user);
        mark(r, "<<SYS>>\n", false);
        say(r, chat->format->strip_parts ? strip(s) : s, false);
        mark(r, "\n<</SYS>>\n\n", false);
        if (!chat->format->strip_parts)
            user.n = rest.n ? (size_t)(rest.p + rest.n - user.p) : 0;
        else
            user = rest;
        /* nothing but white space after the system text: the strip reaches back over the blank lines */
        if (user.n == 0 && !chat->format->strip_parts && !r->no_memory) {
            r->n -= 2;
            r->segments[r->n_segments - 1].end = r->n;
        }
        say(r, user, false);
    } else {
        say(r, strip(user), false);
    }
    mark(r, " [/INST]", false);
}

static void render_llama2(const lk_chat *chat, const lk_chat_message *m, int64_t n, lk_rendering *r)
{
    const char *system = !strcmp(m[0].role, "system") ? m[0].content : NULL;
    for (int64_t i = system != NULL; i < n; i++) {
        if (!strcmp(m[i].role, "user")) {
            llama2_user(chat, system, whole(m[i].content), r);
            system = NULL;
            continue;
        }
        /* the space before the answer is the first thing the model writes: SentencePiece has it in the answer's first token */
        bool trained = !m[i].no_loss;
        mark(r, " ", trained);
        say(r, strip(whole(m[i].content)), trained);
        mark(r, " ", trained);
        mark(r, chat->eos, trained);
    }
}

/* ---- Llama-3 ---- */

static void llama3_header(lk_rendering *r, const char *role)
{
    mark(r, "<|start_header_id|>", false);
    mark(r, role, false);
    mark(r, "<|end_header_id|>\n\n", false);
}

static void render_llama3(const lk_chat *chat, const lk_chat_message *m, int64_t n, bool generation_prompt, lk_rendering *r)
{
    int64_t i = 0;
    mark(r, chat->bos, false);
    if (chat->format->dated) {
        llama3_header(r, "system");
        mark(r, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", false);
        if (!strcmp(m[0].role, "system")) say(r, strip(whole(m[i++].content)), false);
        mark(r, "<|eot_id|>", false);
    }
    for (; i < n; i++) {
        bool trained = !strcmp(m[i].role, "assistant") && !m[i].no_loss;
        llama3_header(r, m[i].role);
        say(r, strip(whole(m[i].content)), trained);
        mark(r, "<|eot_id|>", trained);
    }
    if (generation_prompt) llama3_header(r, "assistant");
}

/* ---- all ---- */

static lk_status check_messages(const lk_chat_message *m, int64_t n, lk_error *err)
{
    if (n <= 0) return lk_fail(err, LK_ERR_ARGUMENT, "messages: the conversation is empty");
    for (int64_t i = 0; i < n; i++) {
        /* a role is written into the header, so it must not be free text */
        if (!m[i].role || (strcmp(m[i].role, "system") && strcmp(m[i].role, "user") && strcmp(m[i].role, "assistant")))
            return lk_fail(err, LK_ERR_ARGUMENT, "messages[%lld]: the role must be system, user or assistant, not \"%.40s\"", (long long)i,
                           m[i].role ? m[i].role : "");
        if (!m[i].content) return lk_fail(err, LK_ERR_ARGUMENT, "messages[%lld]: has no content", (long long)i);
    }
    return LK_OK;
}

lk_status lk_chat_render_segments(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, lk_rendering *r,
                                  lk_error *err)
{
    *r = (lk_rendering){0};
    LK_TRY(check_messages(messages, n, err));
    switch (chat->format->family) {
    case LK_CHAT_PLAIN:
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "this model has no chat template, so messages cannot be turned into text; use plain prompts, or choose "
                       "chatml, llama2 or llama3 with data.chat_format in the recipe or --chat-format");
    case LK_CHAT_CHATML: render_chatml(chat, messages, n, generation_prompt, r); break;
    case LK_CHAT_LLAMA2:
        LK_TRY(check_alternation(messages, n, err));
        render_llama2(chat, messages, n, r);
        break;
    case LK_CHAT_LLAMA3: render_llama3(chat, messages, n, generation_prompt, r); break;
    }
    if (!r->no_memory) return LK_OK;
    lk_rendering_free(r);
    return lk_fail(err, LK_ERR_MEMORY, "chat: no memory for the conversation");
}
