/* Strings that know where their bytes come from, the builder that makes them, and Python's str() and repr().
 *
 * A text is all of one origin or has a list of spans. Empty spans are kept where an empty value was put in: they say that a message with
 * an empty content has its place there. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "data/chat/jinja_internal.h"
#include "data/tokenizer/utf8.h"

lk_jtext *lk_j_text(lk_j *j, const char *p, size_t n, uint32_t origin)
{
    if (n > UINT32_MAX / 2) lk_j_raise(j, LK_ERR_MEMORY, "a string of %zu bytes is too long", n);
    lk_jtext *t = lk_j_alloc(j, sizeof *t);
    *t = (lk_jtext){.p = p, .n = (uint32_t)n, .origin = origin, .chars = -1};
    return t;
}

const lk_jtext *lk_j_literal(lk_j *j, const char *text) { return lk_j_text(j, text, strlen(text), LK_ORIGIN_TEMPLATE); }

/* ------------------------------------------------------------------------------------------------ the builder */

static void grow_text(lk_j *j, lk_jbuilder *b, size_t n)
{
    if (b->n + n <= b->room) return;
    size_t room = 2 * b->room + n + 32;
    if (b->n + n > j->max_output) lk_j_raise(j, LK_ERR_MEMORY, "the text grows beyond %zu bytes", j->max_output);
    char *grown = lk_j_alloc(j, room);
    if (b->n) memcpy(grown, b->p, b->n);
    b->p = grown;
    b->room = room;
}

/* An empty stretch is kept only when it says something. */
static void add_span(lk_j *j, lk_jbuilder *b, size_t n, uint32_t origin)
{
    lk_jinja_span *last = b->n_spans ? &b->spans[b->n_spans - 1] : NULL;
    if (last && last->origin == origin) {
        last->end += (uint32_t)n;
        return;
    }
    if (n == 0 && !(origin & LK_ORIGIN_SOURCE)) return;
    if (b->n_spans == b->span_room) {
        size_t room = 2 * b->span_room + 8;
        lk_jinja_span *grown = lk_j_alloc(j, room * sizeof *grown);
        if (b->n_spans) memcpy(grown, b->spans, b->n_spans * sizeof *grown);
        b->spans = grown;
        b->span_room = room;
    }
    b->spans[b->n_spans++] = (lk_jinja_span){(uint32_t)(b->n + n), origin};
}

void lk_j_add(lk_j *j, lk_jbuilder *b, const char *p, size_t n, uint32_t origin)
{
    lk_j_step(j, (int64_t)(n / 64));
    grow_text(j, b, n);
    add_span(j, b, n, origin);
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

void lk_j_add_part(lk_j *j, lk_jbuilder *b, const lk_jtext *t, size_t begin, size_t end)
{
    if (t->n_spans == 0) {
        lk_j_add(j, b, t->p + begin, end - begin, t->origin);
        return;
    }
    size_t at = begin, from = 0;
    for (uint32_t i = 0; i < t->n_spans; i++) {
        const lk_jinja_span *s = &t->spans[i];
        size_t stop = s->end < end ? s->end : end;
        /* stretches that overlap; empty ones that lie in or at the edges */
        if (s->end > at)
            lk_j_add(j, b, t->p + at, stop - at, s->origin), at = stop;
        else if (from == s->end && s->end >= begin && s->end <= end)
            add_span(j, b, 0, s->origin);
        from = s->end;
        if (at == end && (i + 1 == t->n_spans || t->spans[i + 1].end > end)) break;
    }
}

void lk_j_add_text(lk_j *j, lk_jbuilder *b, const lk_jtext *t) { lk_j_add_part(j, b, t, 0, t->n); }

void lk_j_add_printf(lk_j *j, lk_jbuilder *b, uint32_t origin, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    lk_j_add(j, b, text, n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1, origin);
}

/* Everything from `begin` on was written inside {% generation %}. */
void lk_j_mark_generated(lk_j *j, lk_jbuilder *b, size_t begin)
{
    lk_jbuilder old = *b;
    b->n = b->n_spans = b->span_room = 0;
    size_t from = 0;
    for (size_t i = 0; i < old.n_spans; i++) {
        size_t end = old.spans[i].end, middle = begin < from ? from : begin < end ? begin : end;
        uint32_t origin = old.spans[i].origin;
        if (from < middle || (from == end && end < begin)) add_span(j, b, middle - from, origin), b->n += middle - from;
        if (middle < end || (from == end && end >= begin)) add_span(j, b, end - middle, origin | LK_ORIGIN_GENERATED), b->n += end - middle;
        from = end;
    }
}

const lk_jtext *lk_j_built(lk_j *j, const lk_jbuilder *b)
{
    lk_jtext *t = lk_j_text(j, b->p ? b->p : "", b->n, b->n_spans == 1 ? b->spans[0].origin : LK_ORIGIN_TEMPLATE);
    if (b->n_spans > 1) {
        t->spans = b->spans;
        t->n_spans = (uint32_t)b->n_spans;
    }
    return t;
}

/* ------------------------------------------------------------------------------------------------ parts and characters */

uint32_t lk_j_origin_at(const lk_jtext *t, size_t byte)
{
    for (uint32_t i = 0; i < t->n_spans; i++)
        if (t->spans[i].end > byte) return t->spans[i].origin;
    return t->n_spans ? t->spans[t->n_spans - 1].origin : t->origin;
}

uint32_t lk_j_any_origin(const lk_jtext *t)
{
    for (uint32_t i = 0; i < t->n_spans; i++)
        if (t->spans[i].origin & LK_ORIGIN_SOURCE) return t->spans[i].origin;
    return t->n_spans ? LK_ORIGIN_TEMPLATE : t->origin;
}

/* A view: bytes are shared. A part that is empty has the origin of its place, so that strip of nothing but white space keeps it. */
const lk_jtext *lk_j_part(lk_j *j, const lk_jtext *t, size_t begin, size_t end)
{
    if (begin == 0 && end == t->n) return t;
    if (t->n_spans == 0) {
        lk_jtext *part = lk_j_text(j, t->p + begin, end - begin, t->origin);
        if (t->chars == (int32_t)t->n) part->chars = (int32_t)part->n;
        return part;
    }
    if (begin == end) return lk_j_text(j, t->p + begin, 0, lk_j_origin_at(t, begin));
    lk_jbuilder b = {0};
    lk_j_add_part(j, &b, t, begin, end);
    return lk_j_built(j, &b);
}

uint32_t lk_j_char_at(const lk_jtext *t, size_t byte, int *length)
{
    uint32_t cp;
    *length = lk_utf8_decode(t->p + byte, t->n - byte, &cp);
    if (*length) return cp;
    *length = 1; /* everything is checked before; this keeps us moving */
    return 0xfffd;
}

int64_t lk_j_chars(lk_j *j, const lk_jtext *t)
{
    if (t->chars >= 0) return t->chars;
    int32_t n = 0;
    lk_j_step(j, t->n / 64);
    for (uint32_t i = 0; i < t->n; i++) n += ((unsigned char)t->p[i] & 0xc0) != 0x80;
    /* A template's own texts are shared between threads; they were counted when it was compiled. */
    ((lk_jtext *)(uintptr_t)t)->chars = n;
    return n;
}

size_t lk_j_byte_of(lk_j *j, const lk_jtext *t, int64_t character)
{
    if (lk_j_chars(j, t) == t->n) return (size_t)character;
    size_t byte = 0;
    lk_j_step(j, character / 64);
    for (int64_t i = 0; i < character && byte < t->n; i++) do
            byte++;
        while (byte < t->n && ((unsigned char)t->p[byte] & 0xc0) == 0x80);
    return byte;
}

bool lk_j_text_is(const lk_jtext *t, const char *text) { return strlen(text) == t->n && !memcmp(t->p, text, t->n); }

bool lk_j_text_equal(const lk_jtext *a, const lk_jtext *b) { return a == b || (a->n == b->n && !memcmp(a->p, b->p, a->n)); }

int64_t lk_j_find(lk_j *j, const lk_jtext *t, const lk_jtext *what, size_t from)
{
    if (from > t->n) return -1;
    lk_j_step(j, (t->n - from) / 64);
    if (what->n == 0) return (int64_t)from;
    const char *found = memmem(t->p + from, t->n - from, what->p, what->n);
    return found ? found - t->p : -1;
}

bool lk_j_is_space(uint32_t cp) { return lk_is_space(cp) || (cp >= 0x1c && cp <= 0x1f); }

bool lk_j_is_break(uint32_t cp)
{
    return (cp >= '\n' && cp <= '\r') || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
}

/* ------------------------------------------------------------------------------------------------ str and repr */

/* What repr leaves as it is. */
static bool is_printable(uint32_t cp)
{
    if (cp < 0x7f) return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}

static void repr_text(lk_j *j, lk_jbuilder *b, const lk_jtext *t)
{
    char quote = memchr(t->p, '\'', t->n) && !memchr(t->p, '"', t->n) ? '"' : '\'';
    lk_j_step(j, t->n / 16);
    lk_j_add(j, b, &quote, 1, lk_j_origin_at(t, 0));
    for (size_t at = 0; at < t->n;) {
        int length;
        uint32_t cp = lk_j_char_at(t, at, &length), origin = lk_j_origin_at(t, at);
        if (cp == (unsigned char)quote || cp == '\\')
            lk_j_add_printf(j, b, origin, "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            lk_j_add_printf(j, b, origin, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (is_printable(cp))
            lk_j_add(j, b, t->p + at, (size_t)length, origin);
        else
            lk_j_add_printf(j, b, origin, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        at += (size_t)length;
    }
    lk_j_add(j, b, &quote, 1, lk_j_origin_at(t, t->n ? t->n - 1 : 0));
}

static void repr_items(lk_j *j, lk_jbuilder *b, lk_jvalue v, const char *open, const char *close)
{
    lk_j_add(j, b, open, strlen(open), v.origin);
    for (int64_t i = 0; i < v.list->n; i++) {
        if (i) lk_j_add(j, b, ", ", 2, v.origin);
        lk_j_repr(j, b, v.list->items[i]);
    }
    if (v.kind == LK_J_TUPLE && v.list->n == 1) lk_j_add(j, b, ",", 1, v.origin);
    lk_j_add(j, b, close, strlen(close), v.origin);
}

static void repr_dict(lk_j *j, lk_jbuilder *b, lk_jvalue v)
{
    lk_j_add(j, b, "{", 1, v.origin);
    for (int64_t i = 0; i < v.dict->n; i++) {
        if (i) lk_j_add(j, b, ", ", 2, v.origin);
        lk_j_repr(j, b, v.dict->keys[i]);
        lk_j_add(j, b, ": ", 2, v.origin);
        lk_j_repr(j, b, v.dict->values[i]);
    }
    lk_j_add(j, b, "}", 1, v.origin);
}

static void repr_view(lk_j *j, lk_jbuilder *b, lk_jvalue v)
{
    static const char *const names[] = {"dict_items([", "dict_keys([", "dict_values(["};
    const lk_jdict *d = v.view->dict;
    lk_j_add(j, b, names[v.view->what], strlen(names[v.view->what]), v.origin);
    for (int64_t i = 0; i < d->n; i++) {
        if (i) lk_j_add(j, b, ", ", 2, v.origin);
        if (v.view->what == LK_J_ITEMS) lk_j_add(j, b, "(", 1, v.origin);
        if (v.view->what != LK_J_VALUES) lk_j_repr(j, b, d->keys[i]);
        if (v.view->what == LK_J_ITEMS) lk_j_add(j, b, ", ", 2, v.origin);
        if (v.view->what != LK_J_KEYS) lk_j_repr(j, b, d->values[i]);
        if (v.view->what == LK_J_ITEMS) lk_j_add(j, b, ")", 1, v.origin);
    }
    lk_j_add(j, b, "])", 2, v.origin);
}

void lk_j_repr(lk_j *j, lk_jbuilder *b, lk_jvalue v)
{
    char number[40];
    lk_j_enter(j);
    switch ((lk_jkind)v.kind) {
    case LK_J_UNDEFINED: lk_j_add(j, b, "Undefined", 9, v.origin); break;
    case LK_J_NONE: lk_j_add(j, b, "None", 4, v.origin); break;
    case LK_J_BOOL: lk_j_add(j, b, v.b ? "True" : "False", v.b ? 4 : 5, v.origin); break;
    case LK_J_INT: lk_j_add_printf(j, b, v.origin, "%lld", (long long)v.i); break;
    case LK_J_FLOAT:
        lk_j_float_text(v.f, number);
        lk_j_add(j, b, number, strlen(number), v.origin);
        break;
    case LK_J_STRING:
        if (v.markup) lk_j_add(j, b, "Markup(", 7, v.origin);
        repr_text(j, b, v.s);
        if (v.markup) lk_j_add(j, b, ")", 1, v.origin);
        break;
    case LK_J_LIST: repr_items(j, b, v, "[", "]"); break;
    case LK_J_TUPLE: repr_items(j, b, v, "(", ")"); break;
    case LK_J_DICT: repr_dict(j, b, v); break;
    case LK_J_NAMESPACE:
        lk_j_add(j, b, "<Namespace ", 11, v.origin);
        repr_dict(j, b, v);
        lk_j_add(j, b, ">", 1, v.origin);
        break;
    case LK_J_RANGE:
        lk_j_add_printf(j, b, v.origin, v.range->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)", (long long)v.range->start,
                        (long long)v.range->stop, (long long)v.range->step);
        break;
    case LK_J_VIEW: repr_view(j, b, v); break;
    case LK_J_LOOP: lk_j_add_printf(j, b, v.origin, "<LoopContext %lld/%lld>", (long long)v.loop->index0 + 1, (long long)v.loop->n); break;
    case LK_J_MACRO:
        if (v.macro->node->name)
            lk_j_add_printf(j, b, v.origin, "<Macro '%.*s'>", (int)v.macro->node->name->n, v.macro->node->name->p);
        else
            lk_j_add(j, b, "<Macro anonymous>", 17, v.origin);
        break;
    default: lk_j_fail(j, "a %s cannot be written out", lk_j_type_name(v));
    }
    lk_j_leave(j);
}

const lk_jtext *lk_j_str(lk_j *j, lk_jvalue v)
{
    if (v.kind == LK_J_STRING) return v.s;
    lk_jbuilder b = {0};
    if (v.kind != LK_J_UNDEFINED) lk_j_repr(j, &b, v);
    return lk_j_built(j, &b);
}
