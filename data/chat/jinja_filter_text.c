/* Filters on text and numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/jinja_internal.h"

static bool given(lk_jvalue v) { return v.kind != LK_J_ABSENT && v.kind != LK_J_NONE; }

static lk_jvalue like(lk_jvalue model, const lk_jtext *t)
{
    lk_jvalue v = lk_j_string(t);
    v.markup = model.kind == LK_J_STRING && model.markup;
    return v;
}

static lk_jvalue map_case(lk_j *j, lk_jvalue v, const lk_jargs *args, const char *name, char how)
{
    lk_j_take(j, name, args, 0, 0, NULL, NULL);
    return like(v, lk_j_map_case(j, lk_j_str(j, v), how));
}

static lk_jvalue f_upper(lk_j *j, lk_jvalue v, const lk_jargs *args) { return map_case(j, v, args, "upper", 'u'); }
static lk_jvalue f_lower(lk_j *j, lk_jvalue v, const lk_jargs *args) { return map_case(j, v, args, "lower", 'l'); }
static lk_jvalue f_capitalize(lk_j *j, lk_jvalue v, const lk_jargs *args) { return map_case(j, v, args, "capitalize", 'c'); }

/* jinja2's own title: words begin after -, white space and opening brackets; an apostrophe does not begin one. */
static lk_jvalue f_title(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jbuilder b = {0};
    lk_j_take(j, "title", args, 0, 0, NULL, NULL);
    const lk_jtext *t = lk_j_str(j, v);
    for (size_t at = 0; at < t->n;) {
        size_t begin = at, word;
        int length;
        for (; at < t->n; at += (size_t)length) {
            uint32_t cp = lk_j_char_at(t, at, &length);
            if (!lk_j_is_space(cp) && (cp >= 128 || !strchr("-({[<", (int)cp))) break;
        }
        lk_j_add_part(j, &b, t, begin, at);
        word = at;
        for (; at < t->n; at += (size_t)length) {
            uint32_t cp = lk_j_char_at(t, at, &length);
            if (lk_j_is_space(cp) || (cp < 128 && strchr("-({[<", (int)cp))) break;
        }
        if (at == word) continue;
        lk_j_char_at(t, word, &length);
        lk_j_add_text(j, &b, lk_j_map_case(j, lk_j_part(j, t, word, word + (size_t)length), 'u'));
        lk_j_add_text(j, &b, lk_j_map_case(j, lk_j_part(j, t, word + (size_t)length, at), 'l'));
    }
    return like(v, lk_j_built(j, &b));
}

static lk_jvalue f_trim(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "trim", args, 0, 1, (const char *const[]){"chars"}, a);
    if (given(a[0]) && a[0].kind != LK_J_STRING) lk_j_fail(j, "strip arg must be None or str");
    return like(v, lk_j_strip(j, lk_j_str(j, v), given(a[0]) ? a[0].s : NULL, true, true));
}

static lk_jvalue f_replace(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"old", "new", "count"};
    lk_jvalue a[3];
    lk_j_take(j, "replace", args, 2, 3, names, a);
    int64_t count = given(a[2]) ? lk_j_need_int(j, a[2], "count") : -1;
    return lk_j_string(lk_j_replace(j, lk_j_str(j, v), lk_j_str(j, a[0]), lk_j_str(j, a[1]), count));
}

static lk_jvalue f_join(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"d", "attribute"};
    lk_jvalue a[2];
    lk_jbuilder b = {0};
    int64_t n;
    lk_j_take(j, "join", args, 0, 2, names, a);
    if (given(a[1])) { /* map(attribute=...) */
        lk_jkeyword attribute = {lk_j_literal(j, "attribute"), a[1]};
        lk_jargs more = {.keywords = &attribute, .n_keywords = 1};
        v = lk_j_apply_filter(j, lk_j_literal(j, "map"), v, &more);
    }
    lk_jvalue *items = lk_j_items(j, v, &n);
    const lk_jtext *between = a[0].kind ? lk_j_str(j, a[0]) : lk_j_literal(j, "");
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_j_add_text(j, &b, between);
        lk_j_add_text(j, &b, lk_j_str(j, items[i]));
    }
    return lk_j_string(lk_j_built(j, &b));
}

static lk_jvalue f_string(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "string", args, 0, 0, NULL, NULL);
    return like(v, lk_j_str(j, v));
}

static lk_jvalue f_safe(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "safe", args, 0, 0, NULL, NULL);
    lk_jvalue out = lk_j_string(lk_j_str(j, v));
    out.markup = true;
    return out;
}

static lk_jvalue f_escape(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "escape", args, 0, 0, NULL, NULL);
    return lk_j_escape(j, v);
}

static lk_jvalue f_forceescape(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "forceescape", args, 0, 0, NULL, NULL);
    return lk_j_escape(j, lk_j_string(lk_j_str(j, v)));
}

static lk_jvalue f_indent(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"width", "first", "blank"};
    lk_jvalue a[3], newline = lk_j_string(lk_j_literal(j, "\n"));
    lk_jbuilder b = {0};
    lk_j_take(j, "indent", args, 0, 3, names, a);
    lk_jvalue width = a[0].kind ? a[0] : lk_j_int(4);
    const lk_jtext *indent = width.kind == LK_J_STRING ? width.s : lk_j_binary(j, '*', lk_j_string(lk_j_literal(j, " ")), width).s;
    bool blank = lk_j_truth(a[2]);
    lk_jvalue lines = lk_j_split_lines(j, lk_j_binary(j, '+', v, newline).s, false);
    if (lk_j_truth(a[1])) lk_j_add_text(j, &b, indent);
    for (int64_t i = 0; i < lines.list->n; i++) {
        const lk_jtext *line = lines.list->items[i].s;
        if (i) lk_j_add_text(j, &b, newline.s);
        if (i && (blank || line->n)) lk_j_add_text(j, &b, indent);
        lk_j_add_text(j, &b, line);
    }
    return like(v, lk_j_built(j, &b));
}

static lk_jvalue f_center(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "center", args, 0, 1, (const char *const[]){"width"}, a);
    lk_jvalue width = a[0].kind ? a[0] : lk_j_int(80);
    lk_jargs more = {.values = &width, .n = 1};
    return like(v, lk_j_string_method("center", 6)(j, lk_j_str(j, v), &more).s);
}

static lk_jvalue f_truncate(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"length", "killwords", "end", "leeway"};
    lk_jvalue a[4];
    lk_j_take(j, "truncate", args, 0, 4, names, a);
    int64_t length = a[0].kind ? lk_j_need_int(j, a[0], "length") : 255, leeway = given(a[3]) ? lk_j_need_int(j, a[3], "leeway") : 5;
    if (a[2].kind && a[2].kind != LK_J_STRING) lk_j_fail(j, "end must be a string");
    const lk_jtext *end = a[2].kind ? a[2].s : lk_j_literal(j, "...");
    int64_t tail = lk_j_chars(j, end);
    if (length < tail) lk_j_fail(j, "expected length >= %lld, got %lld", (long long)tail, (long long)length);
    if (leeway < 0) lk_j_fail(j, "expected leeway >= 0, got %lld", (long long)leeway);
    int64_t n = lk_j_length(j, v);
    if (n >= 0 && n <= length + leeway) return v;
    if (v.kind != LK_J_STRING) lk_j_fail(j, "truncate works on strings, not on '%s'", lk_j_type_name(v));
    const lk_jtext *kept = lk_j_part(j, v.s, 0, lk_j_byte_of(j, v.s, length - tail));
    const char *space = lk_j_truth(a[1]) ? NULL : memrchr(kept->p, ' ', kept->n);
    if (space) kept = lk_j_part(j, kept, 0, (size_t)(space - kept->p));
    return lk_j_binary(j, '+', like(v, kept), lk_j_string(end));
}

static lk_jvalue f_wordcount(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n = 0;
    bool word = false;
    lk_j_take(j, "wordcount", args, 0, 0, NULL, NULL);
    const lk_jtext *t = lk_j_str(j, v);
    for (size_t at = 0; at < t->n;) {
        int length;
        uint32_t cp = lk_j_char_at(t, at, &length);
        bool now = cp == '_' || lk_j_is_alnum(cp);
        n += now && !word;
        word = now;
        at += (size_t)length;
    }
    return lk_j_int(n);
}

static lk_jvalue f_format(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue given_args = lk_j_list(j, LK_J_TUPLE, args->n);
    if (args->n && args->n_keywords) lk_j_fail(j, "can't handle positional and keyword arguments at the same time");
    for (int i = 0; i < args->n; i++) lk_j_push(j, given_args, args->values[i]);
    if (args->n_keywords) given_args = lk_j_dict(j, args->n_keywords);
    for (int i = 0; i < args->n_keywords; i++) lk_j_put(j, given_args, lk_j_string(args->keywords[i].name), args->keywords[i].value);
    return lk_j_percent(j, lk_j_str(j, v), given_args);
}

static lk_jvalue f_urlencode(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jbuilder b = {0};
    lk_j_take(j, "urlencode", args, 0, 0, NULL, NULL);
    if (v.kind != LK_J_STRING && lk_j_is_iterable(v)) lk_j_raise(j, LK_ERR_UNSUPPORTED, "urlencode of a mapping is not supported");
    const lk_jtext *t = lk_j_str(j, v);
    for (size_t i = 0; i < t->n; i++) {
        unsigned char c = (unsigned char)t->p[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c && strchr("_.-~/", c));
        if (plain)
            lk_j_add_part(j, &b, t, i, i + 1);
        else
            lk_j_add_printf(j, &b, lk_j_origin_at(t, i), "%%%02X", c);
    }
    return lk_j_string(lk_j_built(j, &b));
}

/* ------------------------------------------------------------------------------------------------ numbers */

static lk_jvalue truncated(lk_j *j, double f, lk_jvalue fallback)
{
    if (isnan(f) || isinf(f)) return fallback;
    if (fabs(f) >= 9.2e18) lk_j_raise(j, LK_ERR_UNSUPPORTED, "a whole number beyond 64 bits");
    return lk_j_int((int64_t)f);
}

static lk_jvalue f_int(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"default", "base"};
    lk_jvalue a[2];
    int64_t i;
    double f;
    lk_j_take(j, "int", args, 0, 2, names, a);
    lk_jvalue fallback = a[0].kind ? a[0] : lk_j_int(0);
    int64_t base = a[1].kind ? lk_j_need_int(j, a[1], "base") : 10;
    if (v.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, v);
    if (lk_j_is_integer(v)) return lk_j_int(lk_j_as_int(v));
    if (v.kind == LK_J_FLOAT && isinf(v.f)) lk_j_fail(j, "cannot convert float infinity to integer");
    if (v.kind == LK_J_FLOAT) return truncated(j, v.f, fallback);
    if (v.kind != LK_J_STRING) return fallback;
    if (base >= 2 && base <= 36 && lk_j_parse_int(v.s, (int)base, &i)) return lk_j_int(i);
    return lk_j_parse_float(v.s, &f) ? truncated(j, f, fallback) : fallback;
}

static lk_jvalue f_float(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue a[1];
    double f;
    lk_j_take(j, "float", args, 0, 1, (const char *const[]){"default"}, a);
    if (v.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, v);
    if (lk_j_is_number(v)) return lk_j_float(lk_j_as_float(v));
    if (v.kind == LK_J_STRING && lk_j_parse_float(v.s, &f)) return lk_j_float(f);
    return a[0].kind ? a[0] : lk_j_float(0);
}

/* Python's round: half to even on the exact binary value, which printing with so many places does. */
static double rounded(double f, int64_t places)
{
    char text[512];
    if (isnan(f) || isinf(f) || places > 300) return f;
    if (places < 0) {
        double unit = pow(10, (double)-places);
        return isinf(unit) ? copysign(0, f) : nearbyint(f / unit) * unit;
    }
    snprintf(text, sizeof text, "%.*f", (int)places, f);
    return fabs(f) < 1e17 ? strtod(text, NULL) : f;
}

static lk_jvalue f_round(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"precision", "method"};
    lk_jvalue a[2];
    lk_j_take(j, "round", args, 0, 2, names, a);
    bool common = !a[1].kind || (a[1].kind == LK_J_STRING && lk_j_text_is(a[1].s, "common"));
    bool up = a[1].kind == LK_J_STRING && lk_j_text_is(a[1].s, "ceil"), down = a[1].kind == LK_J_STRING && lk_j_text_is(a[1].s, "floor");
    if (!common && !up && !down) lk_j_fail(j, "method must be common, ceil or floor");
    if (v.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, v);
    if (!lk_j_is_number(v)) lk_j_fail(j, "type %s doesn't define __round__ method", lk_j_type_name(v));
    int64_t places = a[0].kind ? lk_j_need_int(j, a[0], "precision") : 0;
    if (!common) {
        double unit = pow(10, (double)places), scaled = lk_j_as_float(v) * unit;
        if (unit == 0) lk_j_fail(j, "float division by zero");
        return lk_j_float((up ? ceil(scaled) : floor(scaled)) / unit);
    }
    if (v.kind == LK_J_FLOAT) return lk_j_float(rounded(v.f, places));
    if (places >= 0) return lk_j_int(lk_j_as_int(v));
    return truncated(j, rounded((double)lk_j_as_int(v), places), lk_j_int(0));
}

/* ------------------------------------------------------------------------------------------------ */

static lk_jvalue f_filesizeformat(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char units[] = "kMGTPEZY";
    lk_jvalue a[1];
    char text[64];
    lk_j_take(j, "filesizeformat", args, 0, 1, (const char *const[]){"binary"}, a);
    bool binary = lk_j_truth(a[0]);
    double bytes, base = binary ? 1024 : 1000;
    if (lk_j_is_number(v))
        bytes = lk_j_as_float(v);
    else if (v.kind != LK_J_STRING || !lk_j_parse_float(v.s, &bytes))
        lk_j_fail(j, "could not convert to a number");
    if (bytes == 1) return lk_j_string(lk_j_literal(j, "1 Byte"));
    if (bytes < base) {
        snprintf(text, sizeof text, "%.0f Bytes", trunc(bytes));
    } else {
        double unit = base * base;
        size_t i = 0;
        while (bytes >= unit && units[i + 1]) unit *= base, i++;
        snprintf(text, sizeof text, "%.1f %c%sB", base * bytes / unit, binary && i == 0 ? 'K' : units[i], binary ? "i" : "");
    }
    lk_jbuilder b = {0};
    lk_j_add(j, &b, text, strlen(text), v.origin);
    return lk_j_string(lk_j_built(j, &b));
}

lk_jfilter *lk_j_text_filter(const lk_jtext *name)
{
    static const struct {
        const char *name;
        lk_jfilter *filter;
    } filters[] = {
        {"capitalize", f_capitalize},
        {"center", f_center},
        {"e", f_escape},
        {"escape", f_escape},
        {"filesizeformat", f_filesizeformat},
        {"float", f_float},
        {"forceescape", f_forceescape},
        {"format", f_format},
        {"indent", f_indent},
        {"int", f_int},
        {"join", f_join},
        {"lower", f_lower},
        {"replace", f_replace},
        {"round", f_round},
        {"safe", f_safe},
        {"string", f_string},
        {"title", f_title},
        {"trim", f_trim},
        {"truncate", f_truncate},
        {"upper", f_upper},
        {"urlencode", f_urlencode},
        {"wordcount", f_wordcount},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (lk_j_text_is(name, filters[i].name)) return filters[i].filter;
    return NULL;
}

bool lk_j_known_filter(const lk_jtext *name)
{
    static const char *const others[] = {"pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (lk_j_text_is(name, others[i])) return true;
    return lk_j_filter(name) || lk_j_text_filter(name);
}
