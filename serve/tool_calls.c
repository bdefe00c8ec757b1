/* Text is kept until it is decided. Each state looks at the front of it and says: so much is text, this is a call, or more is needed.
 *
 * Arguments are handed on as the bytes the model wrote, not printed anew: a number of twenty digits stays one. */
#include "serve/tool_calls.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "serve/writer.h"

typedef enum state {
    START,  /* llama3_json: nothing but white space so far */
    TEXT,   /* until the mark */
    MARKED, /* behind a mark */
    LIST,   /* mistral: between the calls of a list */
    AFTER,  /* behind a call: white space is nobody's */
    PASS    /* no more calls are to come */
} state;

typedef struct dialect {
    const char *name, *mark, *end; /* mark: what calls begin with */
    lk_tool_format format;
    state start;
} dialect;

static const dialect dialects[] = {
    {"hermes", "<tool_call>", "</tool_call>", LK_TOOLS_HERMES, TEXT},
    {"llama3_json", "<|python_tag|>", NULL, LK_TOOLS_LLAMA3_JSON, START},
    {"mistral", "[TOOL_CALLS]", NULL, LK_TOOLS_MISTRAL, TEXT},
};
enum { N_DIALECTS = sizeof dialects / sizeof *dialects, MOST_DEPTH = 64, MOST_NAME = 256 };

struct lk_tool_parser {
    const dialect *dialect;
    bool only_first, last;
    state state;
    lk_writer pending;
    size_t at;              /* of what is undecided */
    size_t mark, mark_size; /* where what looks like a call began, and the mark's bytes: it may turn out to be text */
    cJSON *call;            /* the last one: whose name it is */
    char name[MOST_NAME];
    int n_calls;
};

lk_status lk_tool_format_find(lk_tool_format *format, const char *name, lk_error *err)
{
    for (int i = 0; i < N_DIALECTS; i++)
        if (!strcmp(dialects[i].name, name)) return *format = dialects[i].format, LK_OK;
    return lk_fail(err, LK_ERR_ARGUMENT, "tool-call parser '%.60s' is not known; there are hermes, llama3_json and mistral", name);
}

lk_status lk_tool_parser_create(lk_tool_parser **parser, lk_tool_format format, bool only_first, lk_error *err)
{
    lk_tool_parser *p = *parser = calloc(1, sizeof *p);
    if (!p) return lk_fail(err, LK_ERR_MEMORY, "no memory for a parser of tool calls");
    for (int i = 0; i < N_DIALECTS; i++)
        if (dialects[i].format == format) p->dialect = &dialects[i];
    p->only_first = only_first;
    p->state = p->dialect ? p->dialect->start : PASS;
    return LK_OK;
}

void lk_tool_parser_destroy(lk_tool_parser *p)
{
    if (!p) return;
    cJSON_Delete(p->call);
    lk_writer_free(&p->pending);
    free(p);
}

int lk_tool_parser_calls(const lk_tool_parser *p) { return p->n_calls; }

bool lk_tool_parser_push(lk_tool_parser *p, const char *text, size_t size, bool last)
{
    bool marked = (p->state == MARKED || p->state == LIST) && p->mark < p->at; /* what stands before `at` may still be text */
    size_t drop = marked ? p->mark : p->at;
    if (drop) {
        memmove(p->pending.data, p->pending.data + drop, p->pending.size - drop + 1);
        p->pending.size -= drop;
        p->mark = p->mark > drop ? p->mark - drop : 0;
        p->at -= drop;
    }
    p->last = last;
    lk_writer_add(&p->pending, text, size);
    return !p->pending.failed;
}

/* ------------------------------------------------------------------------------------------------ JSON */

/* Bytes of the object or list that begins at p; 0: it has not ended. */
static size_t nested_end(const char *p, size_t n)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted && p[i] == '\\')
            i++;
        else if (p[i] == '"')
            quoted = !quoted;
        else if (!quoted && (p[i] == '{' || p[i] == '['))
            depth++;
        else if (!quoted && (p[i] == '}' || p[i] == ']') && --depth == 0)
            return i + 1;
    }
    return 0;
}

static size_t skip_space(const char *p, size_t n)
{
    size_t i = 0;
    while (i < n && isspace((unsigned char)p[i])) i++;
    return i;
}

static size_t string_end(const char *p, size_t n)
{
    size_t i = 1;
    while (i < n && p[i] != '"') i += p[i] == '\\' ? 2 : 1;
    return i < n ? i + 1 : n;
}

/* The bytes of a member of an object that is known to be good JSON; false: there is none. */
static bool member(const char *p, size_t n, const char *key, const char **value, size_t *size)
{
    size_t i = 1;
    while (i < n) {
        i += skip_space(p + i, n - i);
        if (i >= n || p[i] != '"') return false;
        size_t named = string_end(p + i, n - i), length = strlen(key);
        bool here = named == length + 2 && !memcmp(p + i + 1, key, length);
        i += named;
        i += skip_space(p + i, n - i) + 1; /* the colon */
        i += skip_space(p + i, n - i);
        size_t begin = i;
        if (i < n && p[i] == '"')
            i += string_end(p + i, n - i);
        else if (i < n && (p[i] == '{' || p[i] == '['))
            i += nested_end(p + i, n - i);
        else
            while (i < n && p[i] != ',' && p[i] != '}' && !isspace((unsigned char)p[i])) i++;
        *value = p + begin;
        *size = i - begin;
        if (here) return true;
        i += skip_space(p + i, n - i);
        if (i < n && p[i] == ',') i++;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ events */

static bool give_text(lk_tool_parser *p, size_t size, lk_tool_event *event)
{
    *event = (lk_tool_event){.text = p->pending.data ? p->pending.data + p->at : "", .size = size};
    p->at += size;
    return size > 0;
}

/* What looked like a call is text: its mark, and then whatever the rest turns out to be. Only the mark goes, so that a second one behind it
 * is found whether or not it has come already. */
static bool give_up(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    size_t mark = p->mark_size;
    p->at = p->mark;
    p->mark_size = 0;
    p->state = p->dialect->start == START ? PASS : TEXT;
    *more = mark == 0 || p->state == PASS;
    return *more ? false : give_text(p, mark, event);
}

static bool give_call(lk_tool_parser *p, const char *name, const char *arguments, size_t size, lk_tool_event *event)
{
    *event = (lk_tool_event){.call = true, .text = size ? arguments : "{}", .size = size ? size : 2, .name = name, .index = p->n_calls++};
    return true;
}

/* {"name": ..., "arguments" or "parameters": ...}, arguments an object, or a text, or missing. */
static bool read_call(lk_tool_parser *p, const char *json, size_t size, lk_tool_event *event)
{
    lk_error ignored;
    cJSON *call = NULL;
    const char *arguments = "", *text = NULL;
    size_t length = 0, space = skip_space(json, size);
    json += space;
    size -= space;
    while (size && isspace((unsigned char)json[size - 1])) size--;
    if (lk_json_parse(&call, json, size, "a tool call", &ignored)) return false;
    const cJSON *name = lk_json_get(call, "name"), *given = lk_json_get(call, "arguments");
    const char *key = "arguments";
    if (!given) given = lk_json_get(call, key = "parameters");
    bool good = cJSON_IsObject(call) && cJSON_IsString(name) && *name->valuestring &&
                (!given || cJSON_IsObject(given) || cJSON_IsString(given) || cJSON_IsNull(given));
    if (!good || (p->dialect->format == LK_TOOLS_LLAMA3_JSON && !given)) { /* any object may be an answer: it must have both */
        cJSON_Delete(call);
        return false;
    }
    cJSON_Delete(p->call);
    p->call = call;
    if (cJSON_IsString(given)) { /* some models quote them, as OpenAI does */
        text = given->valuestring;
        length = strlen(text);
    } else if (cJSON_IsObject(given) && member(json, size, key, &arguments, &length)) {
        text = arguments;
    }
    return give_call(p, name->valuestring, text, length, event);
}

/* ------------------------------------------------------------------------------------------------ states */

typedef struct view {
    const char *p; /* what is undecided */
    size_t n;
} view;

static view look(const lk_tool_parser *p) { return (view){p->pending.data ? p->pending.data + p->at : "", p->pending.size - p->at}; }

/* Bytes before the mark, or before what may become one; *whole: it is all there. */
static size_t before(const view *v, const char *mark, bool last, bool *whole)
{
    size_t length = strlen(mark);
    for (size_t i = 0; i < v->n; i++) {
        size_t left = v->n - i, n = left < length ? left : length;
        if (memcmp(v->p + i, mark, n)) continue;
        *whole = n == length;
        if (*whole || !last) return i;
    }
    *whole = false;
    return v->n;
}

static bool in_text(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    view v = look(p);
    bool whole;
    size_t n = before(&v, p->dialect->mark, p->last, &whole);
    if (n) return give_text(p, n, event);
    if (!whole) return false;
    p->mark = p->at;
    p->mark_size = strlen(p->dialect->mark);
    p->at += p->mark_size;
    p->state = MARKED;
    *more = true;
    return false;
}

/* Everything is white space, or a mark, up to the object; else all of it is text. */
static bool at_start(lk_tool_parser *p, bool *more)
{
    view v = look(p);
    size_t space = skip_space(v.p, v.n), length = strlen(p->dialect->mark), left = v.n - space, n = left < length ? left : length;
    p->mark = p->at;
    p->mark_size = 0;
    if (left == 0 && !p->last) return false;
    if (left && !memcmp(v.p + space, p->dialect->mark, n) && (n == length || !p->last)) {
        if (n < length) return false;
        p->at += space + length;
        p->state = MARKED;
        *more = true;
        return false;
    }
    if (left && v.p[space] == '{') {
        p->at += space;
        p->state = MARKED;
        *more = true;
        return false;
    }
    p->state = PASS;
    *more = true;
    return false;
}

static bool hermes_call(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    view v = look(p);
    const char *end = v.n ? memmem(v.p, v.n, p->dialect->end, strlen(p->dialect->end)) : NULL;
    if (!end && !p->last) return false;
    size_t size = end ? (size_t)(end - v.p) : v.n;
    if (!read_call(p, v.p, size, event)) return give_up(p, event, more);
    p->at += size + (end ? strlen(p->dialect->end) : 0);
    p->state = AFTER;
    return true;
}

/* One object; where it ends the state is `then`. */
static bool object_call(lk_tool_parser *p, state then, lk_tool_event *event, bool *more)
{
    view v = look(p);
    size_t space = skip_space(v.p, v.n);
    bool begins = space < v.n && v.p[space] == '{';
    size_t size = begins ? nested_end(v.p + space, v.n - space) : 0;
    if ((space == v.n || (begins && !size)) && !p->last) return false;
    if (!size || !read_call(p, v.p + space, size, event)) return give_up(p, event, more);
    p->at += space + size;
    p->mark = p->at;
    p->mark_size = 0;
    p->state = then;
    return true;
}

static bool in_name(char c) { return isalnum((unsigned char)c) || c == '_' || c == '-' || c == '.'; }

/* f{...}, also f[ARGS]{...} and f[CALL_ID]id[ARGS]{...}. */
static bool named_call(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    view v = look(p);
    const char *brace = v.n ? memchr(v.p, '{', v.n) : NULL;
    size_t name = brace ? (size_t)(brace - v.p) : v.n, size = brace ? nested_end(brace, v.n - name) : 0;
    if (!size && !p->last && name < MOST_NAME) return false; /* of all that stands before the brace */
    size_t length = 0, space = skip_space(v.p, v.n);
    while (space + length < name && in_name(v.p[space + length])) length++;
    size_t behind = space + length;
    bool good = size && length && name < MOST_NAME && (behind == name || v.p[behind] == '[' || isspace((unsigned char)v.p[behind]));
    lk_error ignored;
    cJSON *arguments = NULL;
    if (good) good = !lk_json_parse(&arguments, brace, size, "arguments", &ignored);
    cJSON_Delete(arguments);
    if (!good) return give_up(p, event, more);
    memcpy(p->name, v.p + space, length);
    p->name[length] = 0;
    p->at += name + size;
    p->state = AFTER;
    return give_call(p, p->name, brace, size, event);
}

static bool mistral_call(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    view v = look(p);
    size_t space = skip_space(v.p, v.n);
    if (space == v.n) return p->last && give_up(p, event, more);
    if (v.p[space] != '[') return named_call(p, event, more);
    p->at += space + 1;
    p->state = LIST;
    *more = true;
    return false;
}

/* White space, commas, the end of the list. */
static bool in_list(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    view v = look(p);
    size_t i = 0;
    while (i < v.n && (isspace((unsigned char)v.p[i]) || v.p[i] == ',')) i++;
    if (i == v.n && !p->last) return false;
    if (i < v.n && v.p[i] == '{') return p->at += i, object_call(p, LIST, event, more);
    if (i < v.n && v.p[i] != ']') return give_up(p, event, more);
    p->at += i + (i < v.n);
    p->state = AFTER;
    *more = i < v.n;
    return false;
}

/* Behind a call: of llama3_json a semicolon, of the others a mark, may bring the next one. */
static bool after_call(lk_tool_parser *p, bool *more)
{
    view v = look(p);
    size_t i = 0;
    bool json = p->dialect->start == START;
    while (i < v.n && (isspace((unsigned char)v.p[i]) || (json && v.p[i] == ';'))) i++;
    p->at += i;
    p->mark = p->at;
    p->mark_size = 0;
    if (i == v.n) return false;
    p->state = !json ? TEXT : v.p[i] == '{' ? MARKED : PASS;
    *more = true;
    return false;
}

static bool step(lk_tool_parser *p, lk_tool_event *event, bool *more)
{
    *more = false;
    switch (p->state) {
    case START: return at_start(p, more);
    case TEXT: return in_text(p, event, more);
    case LIST: return in_list(p, event, more);
    case AFTER: return after_call(p, more);
    case PASS: return give_text(p, p->pending.size - p->at, event);
    case MARKED: break;
    }
    if (p->dialect->format == LK_TOOLS_HERMES) return hermes_call(p, event, more);
    if (p->dialect->format == LK_TOOLS_MISTRAL) return mistral_call(p, event, more);
    return object_call(p, AFTER, event, more);
}

bool lk_tool_parser_next(lk_tool_parser *p, lk_tool_event *event)
{
    bool more = true;
    while (more) {
        bool had = step(p, event, &more);
        if (had && event->call && p->only_first && event->index > 0) {
            p->n_calls--;
            more = true;
        } else if (had) {
            return true;
        }
    }
    return false;
}
