/* Regular expressions of tokenizer.json. huggingface/tokenizers matches with Oniguruma in Ruby's syntax; we match with PCRE2 and its JIT
 * compiler. The patterns in use mean the same in both except in corners, so a pattern is translated before it is compiled:
 * what is known to be equal passes, what differs and can be expressed is rewritten, everything else is refused by name.
 *
 *   \s \S          Unicode White_Space in Oniguruma; PCRE2 adds U+180E
 *   \w \W          also marks, connectors and circled letters; of the numbers that are no digits only Latin-1's
 *   \p{L} \p{Nd}   with the characters that are newer than PCRE2's tables (unicode.c)
 *   \p{Script}     Script in Oniguruma, Script_Extensions in PCRE2 (hence sc:)
 *   ^ $            always at lines in Ruby: PCRE2_MULTILINE
 *   \v \uHHHH      a character in Ruby; \v is a class in PCRE2
 *   {n,m}+ {n}?    not possessive and not lazy in Ruby: refused
 *   \b \B \h \R \X \G, back-references, named groups, set operations and [:classes:]: refused
 *
 * Matching has limits: a file may hold a pattern that needs exponential time on some text. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"

enum {
    MAX_PATTERN = 1 << 14,
    MATCH_LIMIT = 20 * 1000 * 1000, /* steps of one match; ordinary patterns need about one a byte */
    HEAP_LIMIT_KIB = 64 * 1024,
    STACK_BYTES = 8 << 20, /* for the JIT, when its 32 KiB on the machine stack do not suffice */
};

struct lk_regex {
    pcre2_code *code;
    bool jit;
};

#define SPACES "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define WORDS  "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

typedef struct translator {
    const char *at; /* the rest of the pattern */
    char *out;
    size_t n, room;
    bool in_class;
    const char *bad; /* why the pattern is refused */
} translator;

static void put(translator *t, const char *text, size_t n)
{
    if (t->n + n + 1 > t->room) {
        t->bad = "is too long";
        return;
    }
    memcpy(t->out + t->n, text, n);
    t->n += n;
    t->out[t->n] = 0;
}

static void puts_(translator *t, const char *text) { put(t, text, strlen(text)); }

/* A general category's members, to stand inside a class: PCRE2's and the newer ones. */
static void category(translator *t, const char *name)
{
    char text[40];
    size_t n, length = strlen(name);
    snprintf(text, sizeof text, "\\p{%s}", name);
    puts_(t, text);
    const lk_new_range *ranges = lk_unicode_added(&n);
    for (size_t i = 0; i < n; i++) {
        if (strncmp(ranges[i].category, name, length)) continue;
        snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", (unsigned)ranges[i].first, (unsigned)ranges[i].last);
        puts_(t, text);
    }
}

/* \w, to stand inside a class. */
static void words(translator *t)
{
    static const char *const parts[] = {"L", "M", "Nd", "Nl", "Pc"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) category(t, parts[i]);
    puts_(t, WORDS);
}

/* One category as an item: a class of its own outside of one. */
static void category_item(translator *t, const char *name, bool negated)
{
    if (t->in_class && negated) {
        /* the newer characters of other categories are rarer than what this would cost to say */
        char text[16];
        snprintf(text, sizeof text, "\\P{%s}", name);
        puts_(t, text);
        return;
    }
    if (!t->in_class) puts_(t, negated ? "[^" : "[");
    category(t, name);
    if (!t->in_class) puts_(t, "]");
}

/* \p{Name} or \P{Name}: t->at stands at the p. General categories have one or two letters; other names are scripts. */
static void property(translator *t)
{
    bool negated = t->at[0] == 'P';
    if (t->at[1] != '{') {
        t->bad = "has \\p without {}";
        return;
    }
    const char *name = t->at + 2, *end = strchr(name, '}');
    if (end && *name == '^') negated = !negated, name++;
    if (!end || end <= name || end - name > 40) {
        t->bad = "has a malformed \\p{...}";
        return;
    }
    int n = (int)(end - name);
    char text[80];
    if (n <= 2 && isalpha((unsigned char)name[0])) {
        snprintf(text, sizeof text, "%.*s", n, name);
        category_item(t, text, negated);
    } else {
        snprintf(text, sizeof text, "\\%c{%s%.*s}", negated ? 'P' : 'p', n == 3 && !strncmp(name, "Any", 3) ? "" : "sc:", n, name);
        puts_(t, text);
    }
    t->at = end + 1;
}

/* After a backslash. */
static void escape(translator *t)
{
    char c = *t->at;
    switch (c) {
    case 's': puts_(t, t->in_class ? SPACES : "[" SPACES "]"); break;
    case 'S': puts_(t, t->in_class ? "\\S\\x{180e}" : "[^" SPACES "]"); break;
    case 'w':
    case 'W':
        if (t->in_class && c == 'W') t->bad = "has \\W inside a class";
        if (!t->in_class) puts_(t, c == 'w' ? "[" : "[^");
        words(t);
        if (!t->in_class) puts_(t, "]");
        break;
    case 'd': category_item(t, "Nd", false); break;
    case 'D': category_item(t, "Nd", true); break;
    case 'v': puts_(t, "\\x0b"); break;
    case 'p':
    case 'P': property(t); return;
    case 'u': {
        int digits = 0;
        while (digits < 4 && isxdigit((unsigned char)t->at[1 + digits])) digits++;
        if (digits != 4) t->bad = "has a malformed \\u";
        puts_(t, "\\x{");
        put(t, t->at + 1, (size_t)digits);
        puts_(t, "}");
        t->at += 1 + digits;
        return;
    }
    case 0: t->bad = "ends in a backslash"; return;
    default:
        if (isdigit((unsigned char)c) || (isalpha((unsigned char)c) && !strchr("rntfaexAzZ", c)) || (t->in_class && strchr("AzZ", c))) {
            t->bad = "has an escape that means something else, or nothing, in PCRE2";
            return;
        }
        put(t, "\\", 1);
        put(t, &c, 1);
    }
    t->at++;
}

static void class_(translator *t)
{
    t->in_class = true;
    put(t, "[", 1);
    t->at++;
    if (*t->at == '^') put(t, t->at++, 1);
    if (*t->at == ']') t->bad = "has a class that begins with ]";
    while (*t->at && *t->at != ']' && !t->bad) {
        if (*t->at == '[')
            t->bad = "has a class inside a class";
        else if (*t->at == '&' && t->at[1] == '&')
            t->bad = "has an intersection of classes";
        else if (*t->at == '\\') {
            t->at++;
            escape(t);
        } else
            put(t, t->at++, 1);
    }
    if (*t->at == ']') put(t, t->at++, 1);
    t->in_class = false;
}

static void group(translator *t, bool at_start)
{
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:", NULL};
    if (t->at[1] == '*') t->bad = "has a (*verb)";
    if (t->at[1] != '?') {
        put(t, t->at++, 1);
        return;
    }
    /* an isolated option reaches differently far in Ruby and in Perl, except at the very beginning */
    if (at_start && !strncmp(t->at, "(?i)", 4)) {
        puts_(t, "(?i)");
        t->at += 4;
        return;
    }
    for (int i = 0; known[i]; i++) {
        size_t n = strlen(known[i]);
        if (strncmp(t->at, known[i], n)) continue;
        put(t, t->at, n);
        t->at += n;
        return;
    }
    t->bad = "has a group of an unsupported kind";
}

/* A brace that is a quantifier: {n}, {n,}, {,m}, {n,m}. Ruby and PCRE2 10.42 disagree about {,m} and about what follows. */
static void brace(translator *t)
{
    const char *p = t->at + 1;
    bool digits = isdigit((unsigned char)*p), comma = false;
    while (isdigit((unsigned char)*p) || *p == ',') comma |= *p++ == ',';
    if (*p != '}' || p == t->at + 1) {
        t->bad = "has a brace that is no quantifier";
        return;
    }
    if (!digits) t->bad = "has {,n}";
    if (p[1] == '+') t->bad = "has a + after braces";
    if (p[1] == '?' && !comma) t->bad = "has {n}?";
    put(t, t->at, (size_t)(p + 1 - t->at));
    t->at = p + 1;
}

static void translate(translator *t)
{
    const char *start = t->at;
    while (*t->at && !t->bad) {
        switch (*t->at) {
        case '\\':
            t->at++;
            escape(t);
            break;
        case '[': class_(t); break;
        case '(': group(t, t->at == start); break;
        case '{': brace(t); break;
        default: put(t, t->at++, 1);
        }
    }
}

lk_status lk_regex_compile(lk_regex **out, const char *pattern, const char *where, lk_error *err)
{
    *out = NULL;
    lk_status status = LK_OK;
    size_t size = strlen(pattern);
    lk_regex *regex = NULL;
    pcre2_compile_context *context = NULL;
    if (size > MAX_PATTERN) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: a regular expression of %zu bytes is too long", where, size);
    /* the longest expansion is \\w's, of two bytes */
    translator t = {.at = pattern, .room = size / 2 * 4096 + 8192};
    t.out = malloc(t.room);
    regex = calloc(1, sizeof *regex);
    context = pcre2_compile_context_create(NULL);
    if (!t.out || !regex || !context) {
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
        goto out;
    }
    t.out[0] = 0;
    translate(&t);
    if (t.bad) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: the regular expression '%.200s' %s", where, pattern, t.bad);
        goto out;
    }
    int code;
    PCRE2_SIZE offset;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    regex->code =
        pcre2_compile((PCRE2_SPTR)t.out, t.n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
    if (!regex->code) {
        char why[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: the regular expression '%.200s' does not compile: %s", where, pattern, why);
        goto out;
    }
    regex->jit = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0;
    *out = regex;
    regex = NULL;
out:
    if (regex) free(regex);
    pcre2_compile_context_free(context);
    free(t.out);
    return status;
}

void lk_regex_free(lk_regex *regex)
{
    if (!regex) return;
    pcre2_code_free(regex->code);
    free(regex);
}

void lk_regex_scratch_free(lk_regex_scratch *s)
{
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    *s = (lk_regex_scratch){0};
}

static lk_status scratch_init(lk_regex_scratch *s, lk_error *err)
{
    s->data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    if (!s->data || !s->context) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for matching");
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    return LK_OK;
}

lk_status lk_regex_find(const lk_regex *regex, lk_regex_scratch *s, const char *p, size_t n, size_t from, size_t *begin, size_t *end,
                        lk_error *err)
{
    *begin = SIZE_MAX;
    if (!s->context) LK_TRY(scratch_init(s, err));
    int rc;
    for (;;) {
        /* the text is checked once per call, not once per match: that would be quadratic */
        rc = regex->jit ? pcre2_jit_match(regex->code, (PCRE2_SPTR)p, n, from, 0, s->data, s->context)
                        : pcre2_match(regex->code, (PCRE2_SPTR)p, n, from, PCRE2_NO_UTF_CHECK, s->data, s->context);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT || s->stack) break;
        if (!(s->stack = pcre2_jit_stack_create(64 << 10, STACK_BYTES, NULL)))
            return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for matching");
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return LK_OK;
    if (rc < 0) {
        char why[128] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return lk_fail(err, LK_ERR_UNSUPPORTED, "tokenizer: the pre-tokenizer's regular expression gave up on this text: %s", why);
    }
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(s->data);
    if (found[1] < found[0] || found[0] < from)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "tokenizer: the regular expression matched backwards");
    *begin = found[0];
    *end = found[1];
    return LK_OK;
}
