/* The canonical form of a chat template.
 *
 * We do not run Jinja. A template is recognised when what it does, step by step, is what a known one does; and since the same
 * template is written with ever different layout and quotes, that is compared on a form in which those are gone. The reading
 * follows Jinja's lexer as transformers sets it up (trim_blocks, lstrip_blocks, no trailing newline):
 *
 *     {# #}       vanish                        {%- -%}      eat white space on their side
 *     {% %}       alone on a line: so does the line's white space before it and the newline after it
 *     {{ a + b }} puts out a, then b, when nothing but + joins them at the top level (filters bind tighter than +)
 *
 * Rejected: running the template on probe conversations. A template that treats one word in a message differently passes any
 * probe that lacks the word. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/internal.h"
#include "data/tokenizer/utf8.h"

enum { MAX_TOKENS = 4096 };

typedef struct token {
    enum { NAME, NUMBER, STRING, OPERATOR } kind;
    const char *p; /* for strings: the decoded text, in the arena */
    size_t n;
} token;

typedef struct reader {
    lk_arena *arena;
    char *text; /* newlines normalised, the last one dropped */
    size_t size, at;
    token tokens[MAX_TOKENS];
    int n_tokens;
    char *out;
    size_t n, room;
    bool in_literal; /* a D"... is open */
    lk_error *err;
} reader;

static lk_status bad(reader *r, const char *what)
{
    int line = 1;
    for (size_t i = 0; i < r->at && i < r->size; i++) line += r->text[i] == '\n';
    return lk_fail(r->err, LK_ERR_FORMAT, "chat template: line %d: %s", line, what);
}

/* ---- writing ---- */

static lk_status put(reader *r, const char *p, size_t n)
{
    if (r->n + n + 1 > r->room) {
        size_t room = 2 * (r->n + n + 1);
        char *grown = realloc(r->out, room);
        if (!grown) return lk_fail(r->err, LK_ERR_MEMORY, "chat template: no memory");
        r->out = grown;
        r->room = room;
    }
    memcpy(r->out + r->n, p, n);
    r->n += n;
    r->out[r->n] = 0;
    return LK_OK;
}

static lk_status put_escaped(reader *r, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char two[2] = {'\\', p[i] == '\n' ? 'n' : p[i]};
        bool escape = p[i] == '\n' || p[i] == '"' || p[i] == '\\';
        LK_TRY(put(r, escape ? two : p + i, escape ? 2 : 1));
    }
    return LK_OK;
}

static lk_status end_literal(reader *r)
{
    if (!r->in_literal) return LK_OK;
    r->in_literal = false;
    return put(r, "\"\n", 2);
}

/* Text that is put out; neighbours join. */
static lk_status put_literal(reader *r, const char *p, size_t n)
{
    if (n == 0) return LK_OK;
    if (!r->in_literal) LK_TRY(put(r, "D\"", 2));
    r->in_literal = true;
    return put_escaped(r, p, n);
}

static bool is(const token *t, const char *text) { return t->kind != STRING && t->n == strlen(text) && !memcmp(t->p, text, t->n); }

static bool is_name(const char *p, size_t n)
{
    if (n == 0 || isdigit((unsigned char)p[0])) return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)p[i]) && p[i] != '_') return false;
    return true;
}

/* Tokens [begin, end) with single spaces, strings in double quotes, and x["name"] as x . name. */
static lk_status put_tokens(reader *r, int begin, int end)
{
    for (int i = begin; i < end; i++) {
        const token *t = &r->tokens[i];
        LK_TRY(put(r, " ", 1));
        bool after_value = i > begin && (t[-1].kind == NAME || is(&t[-1], ")") || is(&t[-1], "]"));
        if (is(t, "[") && after_value && i + 2 < end && t[1].kind == STRING && is_name(t[1].p, t[1].n) && is(&t[2], "]")) {
            LK_TRY(put(r, ". ", 2));
            LK_TRY(put(r, t[1].p, t[1].n));
            i += 2;
        } else if (t->kind == STRING) {
            LK_TRY(put(r, "\"", 1));
            LK_TRY(put_escaped(r, t->p, t->n));
            LK_TRY(put(r, "\"", 1));
        } else {
            LK_TRY(put(r, t->p, t->n));
        }
    }
    return LK_OK;
}

/* {{ ... }}: cut at the top level's +, unless another operator is there that binds weaker or as strongly. */
static lk_status put_output(reader *r)
{
    static const char *const others[] = {"if", "else", "or", "and", "not", "in", "is", "==", "!=", "<", ">", "<=", ">=", "-", "~"};
    int depth = 0;
    bool sum = true;
    for (int i = 0; i < r->n_tokens; i++) {
        const token *t = &r->tokens[i];
        depth += is(t, "(") || is(t, "[") || is(t, "{");
        depth -= is(t, ")") || is(t, "]") || is(t, "}");
        for (size_t k = 0; depth == 0 && k < sizeof others / sizeof *others; k++) sum &= !is(t, others[k]);
    }
    for (int begin = 0, end; begin < r->n_tokens; begin = end + 1) {
        for (end = begin; end < r->n_tokens; end++) {
            const token *t = &r->tokens[end];
            depth += is(t, "(") || is(t, "[") || is(t, "{");
            depth -= is(t, ")") || is(t, "]") || is(t, "}");
            if (sum && depth == 0 && is(t, "+")) break;
        }
        if (end == begin) return bad(r, "an empty expression");
        if (end == begin + 1 && r->tokens[begin].kind == STRING) {
            LK_TRY(put_literal(r, r->tokens[begin].p, r->tokens[begin].n));
            continue;
        }
        LK_TRY(end_literal(r));
        LK_TRY(put(r, "E", 1));
        LK_TRY(put_tokens(r, begin, end));
        LK_TRY(put(r, "\n", 1));
    }
    return LK_OK;
}

static lk_status put_statement(reader *r)
{
    LK_TRY(end_literal(r));
    LK_TRY(put(r, "S", 1));
    LK_TRY(put_tokens(r, 0, r->n_tokens));
    return put(r, "\n", 1);
}

/* ---- reading ---- */

/* A string in quotes, decoded as Python's unicode-escape does for the escapes templates use. */
static lk_status read_string(reader *r, token *t)
{
    char quote = r->text[r->at++], *to = lk_arena_alloc(r->arena, r->size - r->at + 1);
    if (!to) return lk_fail(r->err, LK_ERR_MEMORY, "chat template: no memory");
    *t = (token){STRING, to, 0};
    for (; r->at < r->size && r->text[r->at] != quote; r->at++) {
        char c = r->text[r->at];
        if (c == '\\') {
            char e = ++r->at < r->size ? r->text[r->at] : 0;
            if (e == 'n')
                c = '\n';
            else if (e == 't')
                c = '\t';
            else if (e == 'r')
                c = '\r';
            else if (e == '\\' || e == '\'' || e == '"')
                c = e;
            else
                return bad(r, "an escape in a string that is not read");
        }
        to[t->n++] = c;
    }
    if (r->at >= r->size) return bad(r, "a string that does not end");
    r->at++;
    return LK_OK;
}

static lk_status read_token(reader *r)
{
    if (r->n_tokens == MAX_TOKENS) return bad(r, "a tag with too many tokens");
    token *t = &r->tokens[r->n_tokens++];
    const char *p = r->text + r->at;
    size_t left = r->size - r->at, n = 0;
    if (*p == '"' || *p == '\'') return read_string(r, t);
    if (isalpha((unsigned char)*p) || *p == '_') {
        while (n < left && (isalnum((unsigned char)p[n]) || p[n] == '_')) n++;
        *t = (token){NAME, p, n};
    } else if (isdigit((unsigned char)*p)) {
        while (n < left && (isalnum((unsigned char)p[n]) || p[n] == '_')) n++;
        *t = (token){NUMBER, p, n};
    } else if (strchr("+-*/%~|.,:()[]{}<>=!", *p)) {
        static const char *const two[] = {"==", "!=", "<=", ">=", "**", "//"};
        n = 1;
        for (size_t k = 0; k < sizeof two / sizeof *two; k++)
            if (left >= 2 && !memcmp(p, two[k], 2)) n = 2;
        *t = (token){OPERATOR, p, n};
    } else {
        return bad(r, "a character that does not belong into a tag");
    }
    r->at += n;
    return LK_OK;
}

/* The tokens of a tag whose opening has been read, up to and with its closing. *trim: it ends in a minus; *keep: in a plus. */
static lk_status read_tag(reader *r, const char *close, bool *trim, bool *keep)
{
    int braces = 0;
    r->n_tokens = 0;
    for (;;) {
        while (r->at < r->size && isspace((unsigned char)r->text[r->at])) r->at++;
        if (r->at >= r->size) return bad(r, "a tag that does not end");
        const char *p = r->text + r->at;
        size_t left = r->size - r->at, sign = *p == '-' || *p == '+';
        if (braces == 0 && left >= sign + 2 && !memcmp(p + sign, close, 2)) {
            *trim = *p == '-';
            *keep = *p == '+';
            r->at += sign + 2;
            return LK_OK;
        }
        LK_TRY(read_token(r));
        const token *t = &r->tokens[r->n_tokens - 1];
        braces += is(t, "{") ? 1 : is(t, "}") ? -1 : 0;
        if (braces < 0) return bad(r, "a brace too many");
    }
}

/* Text up to the next tag, less what the tag's white-space control takes away. *kind: '{', '%', '#', or 0 at the end. */
static lk_status read_data(reader *r, char *kind)
{
    size_t begin = r->at, end = begin;
    *kind = 0;
    for (; end + 1 < r->size; end++)
        if (r->text[end] == '{' && strchr("{%#", r->text[end + 1])) break;
    if (end + 1 >= r->size)
        end = r->size;
    else
        *kind = r->text[end + 1];
    size_t stop = end, next = end + 2;
    char sign = *kind && next < r->size ? r->text[next] : 0;
    if (sign == '-') {
        while (stop > begin && isspace((unsigned char)r->text[stop - 1])) stop--;
    } else if (*kind == '%' || *kind == '#') {
        size_t line = stop;
        while (line > begin && (r->text[line - 1] == ' ' || r->text[line - 1] == '\t')) line--;
        /* only when nothing else stands before it on its line; a tag that ended on this line is something else */
        if (sign != '+' && (line == 0 || r->text[line - 1] == '\n')) stop = line;
    }
    LK_TRY(put_literal(r, r->text + begin, stop - begin));
    if (*kind)
        r->at = next + (sign == '-' || (sign == '+' && *kind != '{'));
    else
        r->at = r->size;
    return LK_OK;
}

static lk_status read_template(reader *r)
{
    for (;;) {
        char kind;
        bool trim = false, keep = false;
        LK_TRY(read_data(r, &kind));
        if (!kind) return end_literal(r);
        if (kind == '#') {
            const char *end = memmem(r->text + r->at, r->size - r->at, "#}", 2);
            if (!end) return bad(r, "a comment that does not end");
            trim = end > r->text + r->at && end[-1] == '-';
            r->at = (size_t)(end + 2 - r->text);
        } else {
            LK_TRY(read_tag(r, kind == '%' ? "%}" : "}}", &trim, &keep));
            LK_TRY(kind == '%' ? put_statement(r) : put_output(r));
            if (kind == '%' && r->n_tokens && is(&r->tokens[0], "raw")) return bad(r, "a raw block, which is not read");
        }
        if (trim)
            while (r->at < r->size && isspace((unsigned char)r->text[r->at])) r->at++;
        else if (kind != '{' && !keep && r->at < r->size && r->text[r->at] == '\n')
            r->at++;
    }
}

/* transformers always passes add_generation_prompt, so a default for it does nothing. */
static void drop_idle_default(char *text)
{
    static const char idle[] = "S if not add_generation_prompt is defined\nS set add_generation_prompt = false\nS endif\n";
    char *found = strstr(text, idle);
    if (found) memmove(found, found + strlen(idle), strlen(found + strlen(idle)) + 1);
}

/* Undoes put_escaped, in place. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *p = text; *p; p++) {
        if (*p == '\\' && p[1])
            p++, *to++ = *p == 'n' ? '\n' : *p;
        else
            *to++ = *p;
    }
    *to = 0;
}

/* Puts {} where the default system prompt stands and keeps it apart. */
static lk_status take_system(char *text, lk_arena *arena, char **system, lk_error *err)
{
    static const char open[] = "<|im_start|>system\\n", close[] = "<|im_end|>";
    *system = NULL;
    char *begin = strstr(text, open), *end = NULL;
    for (; begin; begin = strstr(begin, open)) {
        begin += strlen(open);
        for (end = begin; *end && *end != '"' && strncmp(end, "<|", 2); end++)
            if (*end == '\\' && end[1]) end++;
        if (end > begin && !strncmp(end, close, strlen(close))) break;
    }
    if (!begin) return LK_OK;
    size_t size = (size_t)(end - begin);
    *system = lk_arena_strndup(arena, begin, size);
    if (!*system) return lk_fail(err, LK_ERR_MEMORY, "chat template: no memory");
    /* everywhere: a branch for tools repeats it. {} is never longer than what it replaces unless that is one byte. */
    if (size < 2) {
        *system = NULL;
        return LK_OK;
    }
    for (char *at = text; (at = strstr(at, *system)); at += 2) {
        memcpy(at, "{}", 2);
        memmove(at + 2, at + size, strlen(at + size) + 1);
    }
    unescape(*system);
    return LK_OK;
}

lk_status lk_template_canonical(const char *template, lk_arena *arena, char **canonical, char **system, lk_error *err)
{
    reader *r = calloc(1, sizeof *r);
    *canonical = *system = NULL;
    if (!r) return lk_fail(err, LK_ERR_MEMORY, "chat template: no memory");
    r->arena = arena;
    r->err = err;
    lk_status status = LK_OK;
    if (!(r->text = lk_arena_strdup(arena, template))) status = lk_fail(err, LK_ERR_MEMORY, "chat template: no memory");
    for (const char *p = r->text; p && *p; p++) {
        bool carriage = *p == '\r';
        if (carriage && p[1] == '\n') p++;
        r->text[r->size++] = carriage ? '\n' : *p;
    }
    if (r->size && r->text[r->size - 1] == '\n') r->size--;
    if (!status) status = read_template(r);
    if (!status) status = put(r, "", 0);
    if (!status) {
        drop_idle_default(r->out);
        status = take_system(r->out, arena, system, err);
    }
    if (!status && !(*canonical = lk_arena_strdup(arena, r->out))) status = lk_fail(err, LK_ERR_MEMORY, "chat template: no memory");
    free(r->out);
    free(r);
    return status;
}
