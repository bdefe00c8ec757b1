/* A template's text to tokens, as jinja2's lexer does it with trim_blocks and lstrip_blocks on:
 *
 *     {# #}          vanish                       {%- -%} and so on   eat all white space on their side
 *     {% %}, {# #}   alone before on their line: the white space before them goes; a newline right after goes too
 *     {%+ +%}        keep both                    {{ }}               only a minus does anything
 *     {% raw %}      text until {% endraw %}
 *
 * Newlines are normalised and one at the very end is dropped. Inside a tag the end is looked for only outside brackets. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/jinja_internal.h"
#include "data/tokenizer/utf8.h"

typedef struct lexer {
    lk_jparser *p;
    lk_j *j;
    const char *s; /* newlines normalised */
    size_t n, at;
    int line;
    bool line_starting; /* the last tag ended with a newline */
    char brackets[LK_J_MAX_DEPTH];
    int n_brackets;
} lexer;

const lk_jtext *lk_j_intern(lk_jparser *p, const char *text, size_t n)
{
    lk_jnames *t = &p->template->names;
    if (2 * (t->n + 1) > t->room) { /* grow: insert all again */
        lk_jnames old = *t;
        t->room = old.room ? 2 * old.room : 256;
        t->names = lk_j_alloc(p->j, t->room * sizeof *t->names);
        t->n = 0;
        for (size_t i = 0; i < old.room; i++)
            if (old.names[i]) {
                size_t h = 5381;
                for (uint32_t k = 0; k < old.names[i]->n; k++) h = h * 33 + (unsigned char)old.names[i]->p[k];
                while (t->names[h & (t->room - 1)]) h++;
                t->names[h & (t->room - 1)] = old.names[i];
                t->n++;
            }
    }
    size_t h = 5381;
    for (size_t k = 0; k < n; k++) h = h * 33 + (unsigned char)text[k];
    for (; t->names[h & (t->room - 1)]; h++) {
        const lk_jtext *name = t->names[h & (t->room - 1)];
        if (name->n == n && !memcmp(name->p, text, n)) return name;
    }
    t->n++;
    lk_jtext *fresh = lk_j_text(p->j, text, n, LK_ORIGIN_TEMPLATE);
    lk_j_chars(p->j, fresh);
    return t->names[h & (t->room - 1)] = fresh;
}

static lk_jtoken *push(lexer *l, lk_jtoken_type type)
{
    lk_jparser *p = l->p;
    if (p->n == p->room) {
        size_t room = p->room ? 2 * p->room : 256;
        lk_jtoken *grown = lk_j_alloc(l->j, room * sizeof *grown);
        if (p->n) memcpy(grown, p->tokens, p->n * sizeof *grown);
        p->tokens = grown;
        p->room = room;
    }
    lk_jtoken *t = &p->tokens[p->n++];
    *t = (lk_jtoken){.type = (uint8_t)type, .line = l->line};
    return t;
}

/* Moves on by n bytes. */
static void advance(lexer *l, size_t n)
{
    for (size_t i = 0; i < n; i++) l->line += l->s[l->at + i] == '\n';
    l->at += n;
    l->j->line = l->line;
}

static size_t left(const lexer *l) { return l->n - l->at; }

static bool starts(const lexer *l, size_t at, const char *text)
{
    size_t n = strlen(text);
    return l->n - at >= n && !memcmp(l->s + at, text, n);
}

/* The length of Python's \s* at a place. */
static size_t space_at(const lexer *l, size_t at)
{
    size_t begin = at;
    while (at < l->n) {
        uint32_t cp;
        int length = lk_utf8_decode(l->s + at, l->n - at, &cp);
        if (!length || !lk_j_is_space(cp)) break;
        at += (size_t)length;
    }
    return at - begin;
}

static size_t trimmed_right(const char *s, size_t begin, size_t end)
{
    while (end > begin) {
        size_t i = end - 1;
        while (i > begin && ((unsigned char)s[i] & 0xc0) == 0x80) i--;
        uint32_t cp;
        if (!lk_utf8_decode(s + i, end - i, &cp) || !lk_j_is_space(cp)) break;
        end = i;
    }
    return end;
}

/* What follows a tag's end is eaten: all white space after a minus, one newline after a block's or comment's end, nothing after a plus. */
static void after_end(lexer *l, bool minus, bool plus, bool block)
{
    size_t begin = l->at;
    if (minus)
        advance(l, space_at(l, l->at));
    else if (block && !plus && left(l) && l->s[l->at] == '\n')
        advance(l, 1);
    l->line_starting = l->at > begin && l->s[l->at - 1] == '\n';
}

/* Text up to a tag at `end` with this sign, less what the tag takes away. */
static void data(lexer *l, size_t end, char sign, bool variable)
{
    size_t begin = l->at, stop = end;
    if (sign == '-') {
        stop = trimmed_right(l->s, begin, end);
    } else if (sign != '+' && !variable) {
        size_t line = end;
        while (line > begin && l->s[line - 1] != '\n') line--;
        if (line > begin || l->line_starting) {
            size_t at = line;
            while (at < end) {
                uint32_t cp;
                int length = lk_utf8_decode(l->s + at, end - at, &cp);
                if (!length || !lk_j_is_space(cp)) break;
                at += (size_t)length;
            }
            if (at == end && end > line) stop = line;
        }
    }
    if (stop > begin) push(l, LK_T_DATA)->text = lk_j_text(l->j, l->s + begin, stop - begin, LK_ORIGIN_TEMPLATE);
    advance(l, end - begin);
}

/* ---- inside a tag ---- */

static bool is_name_start(uint32_t cp) { return cp == '_' || (cp < 128 ? isalpha((int)cp) : lk_is_word(cp)); }

static void name(lexer *l)
{
    size_t end = l->at;
    while (end < l->n) {
        uint32_t cp;
        int length = lk_utf8_decode(l->s + end, l->n - end, &cp);
        if (!length || !(cp < 128 ? isalnum((int)cp) || cp == '_' : lk_is_word(cp))) break;
        end += (size_t)length;
    }
    push(l, LK_T_NAME)->text = lk_j_intern(l->p, l->s + l->at, end - l->at);
    advance(l, end - l->at);
}

static size_t digits(const lexer *l, size_t at, const char *set)
{
    size_t begin = at;
    while (at < l->n && ((l->s[at] && strchr(set, l->s[at])) ||
                         (l->s[at] == '_' && at > begin && at + 1 < l->n && l->s[at + 1] && strchr(set, l->s[at + 1]))))
        at++;
    return at - begin;
}

/* 12, 1_000, 0x1f, 0b1, 0o7, 1.5, 1e3 */
static void number(lexer *l)
{
    static const char ten[] = "0123456789";
    const char *s = l->s + l->at;
    char copy[100];
    size_t n, m = 0;
    int base = 10;
    bool is_float = false, after_dot = l->at && s[-1] == '.'; /* a.1.0 is two subscripts */
    if (left(l) > 2 && s[0] == '0' && strchr("xXoObB", s[1])) {
        base = strchr("xX", s[1]) ? 16 : strchr("oO", s[1]) ? 8 : 2;
        n = 2 + digits(l, l->at + 2, base == 16 ? "0123456789abcdefABCDEF" : base == 8 ? "01234567" : "01");
        if (n == 2) lk_j_fail(l->j, "a number without digits");
    } else {
        n = digits(l, l->at, ten);
        size_t f = !after_dot && l->at + n < l->n && l->s[l->at + n] == '.' ? digits(l, l->at + n + 1, ten) : 0;
        if (f) n += f + 1, is_float = true;
        size_t e = l->at + n;
        if (!after_dot && e < l->n && (l->s[e] == 'e' || l->s[e] == 'E')) {
            size_t sign = e + 1 < l->n && strchr("+-", l->s[e + 1]) ? 1 : 0, k = digits(l, e + 1 + sign, ten);
            if (k) n += 1 + sign + k, is_float = true;
        }
    }
    for (size_t i = base == 10 ? 0 : 2; i < n && m + 1 < sizeof copy; i++)
        if (s[i] != '_') copy[m++] = s[i];
    copy[m] = 0;
    if (n > sizeof copy - 3) lk_j_fail(l->j, "a number with too many digits");
    lk_jtoken *t = push(l, is_float ? LK_T_FLOAT : LK_T_INTEGER);
    if (is_float) {
        t->value = lk_j_float(strtod(copy, NULL));
    } else {
        char *end;
        unsigned long long v = strtoull(copy, &end, base); /* saturates */
        if (v > INT64_MAX) lk_j_raise(l->j, LK_ERR_UNSUPPORTED, "a whole number beyond 64 bits");
        if (base == 10 && m > 1 && copy[0] == '0' && v) lk_j_fail(l->j, "a number with leading zeros");
        t->value = lk_j_int((int64_t)v);
    }
    advance(l, n);
}

static uint32_t hex(lexer *l, const char *p, size_t have, int n)
{
    uint32_t v = 0;
    for (int i = 0; i < n; i++) {
        if ((size_t)i >= have || !isxdigit((unsigned char)p[i])) lk_j_fail(l->j, "a truncated \\x, \\u or \\U escape in a string");
        v = v * 16 + (uint32_t)(isdigit((unsigned char)p[i]) ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
    }
    return v;
}

/* Python's unicode-escape. *at is behind the backslash. */
static void escape(lexer *l, lk_jbuilder *b, const char *p, size_t n, size_t *at)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = *at < n ? p[(*at)++] : 0, out[4];
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        lk_j_add(l->j, b, &to[known - from], 1, LK_ORIGIN_TEMPLATE);
    } else if (c == '\n') { /* a line joined */
    } else if (c == 'x' || c == 'u' || c == 'U') {
        int digits_of = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        uint32_t cp = hex(l, p + *at, n - *at, digits_of);
        *at += (size_t)digits_of;
        if (cp >= 0xd800 && cp < 0xe000) lk_j_fail(l->j, "a surrogate in a string");
        if (cp > 0x10ffff || cp == 0) lk_j_fail(l->j, "an escape in a string that is no character");
        lk_j_add(l->j, b, out, (size_t)lk_utf8_encode(cp, out), LK_ORIGIN_TEMPLATE);
    } else if (c >= '0' && c <= '7') {
        uint32_t cp = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < n && p[*at] >= '0' && p[*at] <= '7'; i++) cp = cp * 8 + (uint32_t)(p[(*at)++] - '0');
        if (cp == 0) lk_j_fail(l->j, "an escape in a string that is no character");
        lk_j_add(l->j, b, out, (size_t)lk_utf8_encode(cp, out), LK_ORIGIN_TEMPLATE);
    } else if (c == 'N') {
        lk_j_raise(l->j, LK_ERR_UNSUPPORTED, "\\N{...} in a string is not supported");
    } else { /* unknown ones stay */
        lk_j_add(l->j, b, "\\", 1, LK_ORIGIN_TEMPLATE);
        if (c) (*at)--;
    }
}

static void string(lexer *l)
{
    const char *p = l->s + l->at + 1;
    size_t n = 0, room = left(l) - 1, at = 0;
    while (n < room && p[n] != l->s[l->at]) n += p[n] == '\\' ? 2 : 1;
    if (n >= room) lk_j_fail(l->j, "a string that does not end");
    lk_jtoken *t = push(l, LK_T_STRING);
    if (!memchr(p, '\\', n)) {
        t->text = lk_j_text(l->j, p, n, LK_ORIGIN_TEMPLATE);
    } else {
        lk_jbuilder b = {0};
        while (at < n) {
            const char *slash = memchr(p + at, '\\', n - at);
            size_t plain = slash ? (size_t)(slash - p) - at : n - at;
            lk_j_add(l->j, &b, p + at, plain, LK_ORIGIN_TEMPLATE);
            at += plain;
            if (slash) at++, escape(l, &b, p, n, &at);
        }
        t->text = lk_j_built(l->j, &b);
    }
    lk_j_chars(l->j, t->text);
    t->value = lk_j_string(t->text);
    advance(l, n + 2);
}

static void operator_token(lexer *l)
{
    static const struct {
        char text[3], op;
    } two[] = {{"//", LK_OP_FLOOR}, {"**", LK_OP_POW}, {"==", LK_OP_EQ}, {"!=", LK_OP_NE}, {"<=", LK_OP_LE}, {">=", LK_OP_GE}};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (starts(l, l->at, two[i].text)) {
            push(l, LK_T_OPERATOR)->op = two[i].op;
            advance(l, 2);
            return;
        }
    char c = l->s[l->at];
    if (!c || !strchr("+-*/%~|.,:;()[]{}<>=", c)) lk_j_fail(l->j, "unexpected char '%c' in a tag", c);
    if (c == '(' || c == '[' || c == '{') {
        if (l->n_brackets == LK_J_MAX_DEPTH) lk_j_fail(l->j, "brackets nested deeper than %d", LK_J_MAX_DEPTH);
        l->brackets[l->n_brackets++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (l->n_brackets == 0) lk_j_fail(l->j, "unexpected '%c'", c);
        char wanted = l->brackets[--l->n_brackets];
        if (wanted != c) lk_j_fail(l->j, "unexpected '%c', expected '%c'", c, wanted);
    }
    push(l, LK_T_OPERATOR)->op = c == '=' ? 'a' : c;
    advance(l, 1);
}

/* Up to and with the tag's end. */
static void tag(lexer *l, bool block)
{
    const char *close = block ? "%}" : "}}";
    l->n_brackets = 0;
    for (;;) {
        size_t sign = left(l) && (l->s[l->at] == '-' || (block && l->s[l->at] == '+'));
        if (l->n_brackets == 0 && starts(l, l->at + sign, close)) {
            bool minus = sign && l->s[l->at] == '-', plus = sign && !minus;
            push(l, block ? LK_T_BLOCK_END : LK_T_VARIABLE_END);
            advance(l, sign + 2);
            after_end(l, minus, plus, block);
            return;
        }
        size_t space = space_at(l, l->at);
        if (space) {
            advance(l, space);
            continue;
        }
        if (!left(l)) lk_j_fail(l->j, "a tag that does not end");
        uint32_t cp;
        int length = lk_utf8_decode(l->s + l->at, left(l), &cp);
        if (length && is_name_start(cp))
            name(l);
        else if (isdigit((unsigned char)l->s[l->at]))
            number(l);
        else if (l->s[l->at] == '"' || l->s[l->at] == '\'')
            string(l);
        else
            operator_token(l);
    }
}

static void comment(lexer *l)
{
    const char *end = memmem(l->s + l->at, left(l), "#}", 2);
    if (!end) lk_j_fail(l->j, "a comment that does not end");
    char before = end > l->s + l->at ? end[-1] : 0;
    advance(l, (size_t)(end + 2 - l->s) - l->at);
    after_end(l, before == '-', before == '+', true);
}

/* Whether {%[+-] raw %} stands at `at`; its length without what it eats after. */
static size_t raw_begin(const lexer *l, size_t at, bool *minus)
{
    size_t i = at + 2;
    if (i < l->n && (l->s[i] == '-' || l->s[i] == '+')) i++;
    i += space_at(l, i);
    if (!starts(l, i, "raw")) return 0;
    i += 3;
    i += space_at(l, i);
    *minus = i < l->n && l->s[i] == '-';
    i += *minus;
    return starts(l, i, "%}") ? i + 2 - at : 0;
}

static void raw(lexer *l, size_t length, bool minus)
{
    advance(l, length);
    if (minus) advance(l, space_at(l, l->at));
    l->line_starting = l->at && l->s[l->at - 1] == '\n';
    for (size_t at = l->at; at < l->n; at++) {
        if (!starts(l, at, "{%")) continue;
        size_t i = at + 2;
        char sign = i < l->n ? l->s[i] : 0;
        if (sign == '-' || sign == '+') i++;
        i += space_at(l, i);
        if (!starts(l, i, "endraw")) continue;
        i += 6;
        i += space_at(l, i);
        bool end_minus = i < l->n && l->s[i] == '-', end_plus = i < l->n && l->s[i] == '+';
        i += end_minus || end_plus;
        if (!starts(l, i, "%}")) continue;
        data(l, at, sign, false);
        advance(l, i + 2 - at);
        after_end(l, end_minus, end_plus, true);
        return;
    }
    lk_j_fail(l->j, "a raw block that does not end");
}

static const char *normalised(lk_j *j, const char *source, size_t *size)
{
    char *s = lk_j_alloc(j, *size + 1);
    size_t n = 0;
    for (size_t i = 0; i < *size; i++) {
        bool carriage = source[i] == '\r';
        if (carriage && i + 1 < *size && source[i + 1] == '\n') i++;
        s[n++] = carriage ? '\n' : source[i];
    }
    if (n && s[n - 1] == '\n') n--;
    *size = n;
    return s;
}

void lk_j_lex(lk_jparser *p, const char *source, size_t size)
{
    lexer l = {.p = p, .j = p->j, .line = 1, .line_starting = true};
    if (size > (32u << 20)) lk_j_fail(p->j, "is larger than 32 MiB");
    if (lk_utf8_valid_prefix(source, size) != size || memchr(source, 0, size)) lk_j_fail(p->j, "is not UTF-8 text");
    l.s = normalised(p->j, source, &size);
    l.n = size;
    while (left(&l)) {
        size_t at = l.at;
        while (at + 1 < l.n && !(l.s[at] == '{' && (l.s[at + 1] == '{' || l.s[at + 1] == '%' || l.s[at + 1] == '#'))) at++;
        if (at + 1 >= l.n) {
            data(&l, l.n, '+', true);
            break;
        }
        char kind = l.s[at + 1], sign = at + 2 < l.n ? l.s[at + 2] : 0;
        bool minus;
        size_t raw_length = kind == '%' ? raw_begin(&l, at, &minus) : 0;
        data(&l, at, sign == '-' || sign == '+' ? sign : 0, kind == '{');
        if (raw_length) {
            raw(&l, raw_length, minus);
            continue;
        }
        if (kind != '#') push(&l, kind == '%' ? LK_T_BLOCK_BEGIN : LK_T_VARIABLE_BEGIN);
        advance(&l, 2 + (sign == '-' || sign == '+'));
        if (kind == '#')
            comment(&l);
        else
            tag(&l, kind == '%');
    }
    push(&l, LK_T_END);
}
