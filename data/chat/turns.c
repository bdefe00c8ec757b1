/* Where in a rendering the assistant's turns lie: what the model must have produced, and so what is trained on.
 *
 * With {% generation %} the template says so itself. Without, two facts find a turn exactly:
 *
 *     every byte knows which message it was copied from       -> where the turn's words are
 *     the conversation up to the turn, rendered with the      -> what stands in front of them already when the model begins to write
 *     generation prompt
 *
 *     ... one<|im_end|>\n<|im_start|>assistant\n                            the prompt, behind the last byte of an earlier message
 *     ... one<|im_end|>\n<|im_start|>assistant\n<think>\n..two<|im_end|>    the whole
 *                                               ^ the turn begins where the prompt ends, or where its words begin if that is earlier
 *
 * Both texts are compared only behind the last byte that an earlier message gave, so templates that rewrite earlier turns (drop their
 * reasoning, move the system text into the last question) are no obstacle. When the two disagree before the words begin, or the message's
 * words are scattered between others', nothing is guessed: the conversation is refused.
 *
 * Rejected: comparing renderings of conversation prefixes as whole texts (wrong for templates that look ahead), and searching for the
 * content's text (it may stand elsewhere, or be changed). */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/chat/internal.h"

typedef struct place {
    size_t begin, end;   /* of the message's words */
    size_t anchor, next; /* the end of the last byte of another message before, the begin of the first one behind */
    uint32_t anchor_origin;
    bool found, scattered;
} place;

static uint32_t source(uint32_t origin) { return origin & LK_ORIGIN_SOURCE; }

/* Finds message i's words among the spans. */
static place find_words(const lk_jinja_output *r, int64_t i)
{
    place p = {.next = r->n};
    uint32_t own = LK_ORIGIN_MESSAGE + (uint32_t)i;
    bool other = false; /* another message since its words began */
    for (int64_t s = 0; s < r->n_spans; s++) {
        uint32_t origin = r->spans[s].origin;
        size_t begin = s ? r->spans[s - 1].end : 0, end = r->spans[s].end;
        if (source(origin) < LK_ORIGIN_MESSAGE) continue;
        if (source(origin) == own && !(origin & LK_ORIGIN_ROLE)) {
            if (!p.found) p.begin = begin;
            p.scattered |= other;
            p.found = true;
            p.end = end;
            p.next = r->n;
            other = false;
        } else if (source(origin) != own && !p.found) {
            p.anchor = end;
            p.anchor_origin = origin & ~(uint32_t)LK_ORIGIN_GENERATED;
        } else if (source(origin) != own && p.found && !other) {
            other = true;
            p.next = begin;
        }
    }
    return p;
}

/* The last byte that any message gave. */
static void find_anchor(const lk_jinja_output *r, size_t *anchor, uint32_t *origin)
{
    *anchor = 0;
    *origin = 0;
    for (int64_t s = 0; s < r->n_spans; s++)
        if (source(r->spans[s].origin) >= LK_ORIGIN_MESSAGE) {
            *anchor = r->spans[s].end;
            *origin = r->spans[s].origin & ~(uint32_t)LK_ORIGIN_GENERATED;
        }
}

/* The first n messages, borrowed. */
static cJSON *first_messages(const cJSON *messages, int64_t n)
{
    cJSON *list = cJSON_CreateArray();
    for (cJSON *m = messages->child; list && m && n > 0; m = m->next, n--)
        if (!cJSON_AddItemReferenceToArray(list, m)) {
            cJSON_Delete(list);
            return NULL;
        }
    return list;
}

static lk_status render_prompt(const lk_chat *chat, const lk_chat_input *in, const cJSON *messages, bool prompt, lk_jinja_output *out,
                               lk_error *err)
{
    lk_chat_input before = *in;
    before.messages = messages;
    before.generation_prompt = prompt;
    return lk_chat_run(chat, &before, out, err);
}

/* Where the turn begins, by the prompt of the conversation before it. false: they disagree. */
static bool begin_by_prompt(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *whole, int64_t i, const place *p,
                            size_t *begin)
{
    lk_jinja_output prompt;
    cJSON *before = first_messages(in->messages, i);
    if (!before || render_prompt(chat, in, before, true, &prompt, NULL)) {
        cJSON_Delete(before);
        return false;
    }
    size_t anchor, same = 0, gap = p->begin - p->anchor;
    uint32_t origin;
    find_anchor(&prompt, &anchor, &origin);
    size_t left = prompt.n - anchor;
    while (same < gap && same < left && whole->text[p->anchor + same] == prompt.text[anchor + same]) same++;
    bool agree = origin == p->anchor_origin && (same == gap || same == left);
    *begin = p->anchor + same;
    lk_jinja_output_free(&prompt);
    cJSON_Delete(before);
    return agree;
}

/* What the generation prompt adds to a conversation, as text; free(). NULL: it adds nothing, or that cannot be told. */
static char *prompt_text(const lk_chat *chat, const lk_chat_input *in, size_t *size)
{
    lk_jinja_output with = {0}, without = {0};
    char *text = NULL;
    cJSON *messages = cJSON_CreateArray();
    if (messages && !lk_chat_add(messages, "user", "Zq", NULL) && !render_prompt(chat, in, messages, true, &with, NULL) &&
        !render_prompt(chat, in, messages, false, &without, NULL) && with.n > without.n && !memcmp(with.text, without.text, without.n)) {
        *size = with.n - without.n;
        text = strndup(with.text + without.n, *size);
    }
    lk_jinja_output_free(&with);
    lk_jinja_output_free(&without);
    cJSON_Delete(messages);
    return text;
}

/* For conversations that cannot be cut before the turn (it is the first message, say): the last place of that text before the words. */
static bool begin_by_text(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *whole, const place *p, size_t *begin)
{
    size_t size = 0;
    bool found = false;
    char *text = prompt_text(chat, in, &size);
    for (size_t at = p->anchor; text && at + size <= p->begin; at++)
        if (!memcmp(whole->text + at, text, size)) {
            *begin = at + size;
            found = true;
        }
    free(text);
    return found;
}

static bool is_trained(const cJSON *message, int64_t index, int64_t from)
{
    const cJSON *role = lk_json_get(message, "role"), *weight = lk_json_get(message, "weight");
    bool assistant = cJSON_IsString(role) && (!strcmp(role->valuestring, "assistant") || !strcmp(role->valuestring, "model"));
    return assistant && index >= from && !(cJSON_IsNumber(weight) && weight->valuedouble == 0);
}

static lk_status find_by_words(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *r, lk_turn *turns, int64_t *n,
                               lk_error *err)
{
    int64_t i = 0;
    for (const cJSON *m = in->messages->child; m; m = m->next, i++) {
        if (!is_trained(m, i, in->train_from)) continue;
        place p = find_words(r, i);
        if (!p.found) continue; /* the template leaves it out: there is nothing to learn */
        lk_turn *turn = &turns[*n];
        *turn = (lk_turn){.end = p.end, .limit = p.next};
        bool clear = !p.scattered && (begin_by_prompt(chat, in, r, i, &p, &turn->begin) || begin_by_text(chat, in, r, &p, &turn->begin));
        if (!clear)
            return lk_fail(
                err, LK_ERR_UNSUPPORTED,
                "messages[%lld]: the chat template does not show where this turn of the assistant begins; use a template with "
                "{%% generation %%} (chat_template.jinja in the model's folder), choose a format with data.chat_format, or train "
                "with data.loss_on \"all\"",
                (long long)i);
        ++*n;
    }
    return LK_OK;
}

/* {% generation %}: stretches marked so, less those of messages that are not trained. A stretch of the template's own belongs to the
 * message whose words are nearest in the same block. */
static void find_by_blocks(const lk_chat_input *in, const lk_jinja_output *r, const bool *trained, int64_t n_messages, lk_turn *turns,
                           int64_t *n)
{
    (void)in;
    for (int64_t s = 0; s < r->n_spans;) {
        if (!(r->spans[s].origin & LK_ORIGIN_GENERATED)) {
            s++;
            continue;
        }
        int64_t message = -1, end = s;
        for (; end < r->n_spans && r->spans[end].origin & LK_ORIGIN_GENERATED; end++) {
            uint32_t of = source(r->spans[end].origin);
            if (of < LK_ORIGIN_MESSAGE) continue;
            if (message >= 0 && message != (int64_t)(of - LK_ORIGIN_MESSAGE)) break; /* the next block, without a gap */
            message = of - LK_ORIGIN_MESSAGE;
        }
        if (message < 0 || message >= n_messages || trained[message])
            turns[(*n)++] = (lk_turn){.begin = s ? r->spans[s - 1].end : 0, .end = r->spans[end - 1].end, .exact = true};
        s = end;
    }
}

static lk_status find_generated(const lk_chat_input *in, const lk_jinja_output *r, lk_turn *turns, int64_t *n, lk_error *err)
{
    int64_t n_messages = cJSON_GetArraySize(in->messages), i = 0;
    bool *trained = malloc((size_t)n_messages + 1);
    if (!trained) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    for (const cJSON *m = in->messages->child; m; m = m->next, i++) {
        const cJSON *weight = lk_json_get(m, "weight");
        trained[i] = i >= in->train_from && !(cJSON_IsNumber(weight) && weight->valuedouble == 0);
    }
    find_by_blocks(in, r, trained, n_messages, turns, n);
    free(trained);
    return LK_OK;
}

lk_status lk_chat_find_turns(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *out, lk_turn **turns, int64_t *n,
                             lk_error *err)
{
    bool generation = lk_jinja_has_generation(lk_chat_choose(chat, in));
    int64_t room = generation ? out->n_spans : cJSON_GetArraySize(in->messages);
    *n = 0;
    *turns = malloc(((size_t)room + 1) * sizeof **turns);
    if (!*turns) return lk_fail(err, LK_ERR_MEMORY, "chat: no memory");
    lk_status status = generation ? find_generated(in, out, *turns, n, err) : find_by_words(chat, in, out, *turns, n, err);
    if (status) {
        free(*turns);
        *turns = NULL;
    }
    return status;
}
