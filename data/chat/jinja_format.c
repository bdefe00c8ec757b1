/* Numbers as text and back, and the two ways of Python to format: "%5.1f" % x and "{:>5}".format(x). */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/jinja_internal.h"

/* ------------------------------------------------------------------------------------------------ numbers */

/* repr(float): the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on. */
void lk_j_float_text(double f, char out[40])
{
    char digits[40];
    if (isnan(f) || isinf(f)) {
        strcpy(out, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    for (int precision = 0; precision < 18; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f) break;
    }
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        char *e = strchr(digits, 'e');
        snprintf(out, 40, "%.*se%c%02d", (int)(e - digits), digits, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    char *e = strchr(digits, 'e'), *dot = strchr(digits, '.');
    int significant = dot ? (int)(e - dot) - 1 : 0, places = significant - exponent;
    snprintf(out, 40, "%.*f", places > 0 ? places : 1, f);
}

/* int(text, base): white space round it, a sign, a prefix that fits, single underscores between digits. */
bool lk_j_parse_int(const lk_jtext *t, int base, int64_t *out)
{
    const char *p = t->p, *end = p + t->n;
    while (p < end && isspace((unsigned char)*p)) p++;
    while (end > p && isspace((unsigned char)end[-1])) end--;
    bool negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+')) p++;
    if (end - p > 2 && p[0] == '0' &&
        ((base == 16 && (p[1] | 32) == 'x') || (base == 8 && (p[1] | 32) == 'o') || (base == 2 && (p[1] | 32) == 'b'))) {
        p += 2;
        if (*p == '_') p++;
    }
    int64_t v = 0;
    bool digit = false;
    for (; p < end; p++) {
        if (*p == '_' && digit && p + 1 < end) {
            digit = false;
            continue;
        }
        int d = isdigit((unsigned char)*p) ? *p - '0' : isalpha((unsigned char)*p) ? (*p | 32) - 'a' + 10 : 99;
        if (d >= base) return false;
        if (__builtin_mul_overflow(v, base, &v) || __builtin_sub_overflow(v, d, &v)) return false; /* counted down: INT64_MIN fits */
        digit = true;
    }
    if (!digit || (!negative && v == INT64_MIN)) return false;
    *out = negative ? v : -v;
    return true;
}

bool lk_j_parse_float(const lk_jtext *t, double *out)
{
    char copy[400];
    size_t n = 0, begin = 0, end = t->n;
    while (begin < end && isspace((unsigned char)t->p[begin])) begin++;
    while (end > begin && isspace((unsigned char)t->p[end - 1])) end--;
    if (begin == end || end - begin >= sizeof copy) return false;
    for (size_t i = begin; i < end; i++) {
        char c = t->p[i];
        if (c == '_' && i > begin && isdigit((unsigned char)t->p[i - 1]) && i + 1 < end && isdigit((unsigned char)t->p[i + 1])) continue;
        if (c == 'x' || c == 'X' || c == 'p' || c == 'P' || c == '(' || c == '_' || !c)
            return false; /* strtod takes hexadecimal, Python does not */
        copy[n++] = c;
    }
    copy[n] = 0;
    char *stop;
    *out = strtod(copy, &stop);
    return stop == copy + n && n > 0 && !isspace((unsigned char)copy[0]);
}

/* ------------------------------------------------------------------------------------------------ one field */

typedef struct field {
    char fill[5];
    char align; /* '<' '>' '^' '=' or 0 */
    char sign;  /* '+' ' ' or 0 */
    bool alternate, comma;
    int64_t width, precision; /* precision -1: none */
    char type;                /* 0: none */
} field;

static void pad(lk_j *j, lk_jbuilder *b, const lk_jtext *t, const field *f, char fallback)
{
    int64_t n = lk_j_chars(j, t), missing = f->width > n ? f->width - n : 0;
    char align = f->align ? f->align : fallback;
    int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    size_t sign = align == '=' && t->n && strchr("+- ", t->p[0]) ? 1 : 0;
    if (f->width > (int64_t)j->max_output) lk_j_raise(j, LK_ERR_MEMORY, "a width of %lld", (long long)f->width);
    const char *fill = *f->fill ? f->fill : " ";
    lk_j_step(j, missing / 8);
    lk_j_add_part(j, b, t, 0, sign);
    for (int64_t i = 0; i < before; i++) lk_j_add(j, b, fill, strlen(fill), LK_ORIGIN_TEMPLATE);
    lk_j_add_part(j, b, t, sign, t->n);
    for (int64_t i = before; i < missing; i++) lk_j_add(j, b, fill, strlen(fill), LK_ORIGIN_TEMPLATE);
}

static void add_commas(char *text, size_t room)
{
    size_t begin = text[0] == '-' || text[0] == '+' || text[0] == ' ', end = begin;
    while (isdigit((unsigned char)text[end])) end++;
    for (size_t at = end; at > begin + 3;) {
        at -= 3;
        if (strlen(text) + 2 > room) return;
        memmove(text + at + 1, text + at, strlen(text + at) + 1);
        text[at] = ',';
    }
}

static void number_field(lk_j *j, lk_jbuilder *b, lk_jvalue v, field *f)
{
    char text[512] = "";
    int64_t precision = f->precision > 300 ? 300 : f->precision;
    char sign[2] = {f->sign, 0}, spec[32];
    if (strchr("eEfFgG%", f->type)) {
        double d = lk_j_as_float(v) * (f->type == '%' ? 100 : 1);
        char conversion = f->type == '%' ? 'f' : f->type;
        if (fabs(d) > 1e200 && (conversion == 'f' || conversion == 'F'))
            lk_j_raise(j, LK_ERR_UNSUPPORTED, "a number too large for this format");
        snprintf(spec, sizeof spec, "%%%s%s.*%c", sign, f->alternate ? "#" : "", conversion);
        snprintf(text, sizeof text - 2, spec, (int)(precision < 0 ? 6 : precision), d); // NOLINT: the format is made of checked parts
        if (f->type == '%') strcat(text, "%");
    } else if (strchr("xXob", f->type)) {
        int64_t i = lk_j_as_int(v);
        unsigned long long u = i < 0 ? 0 - (unsigned long long)i : (unsigned long long)i;
        char digits[80] = "";
        int shift = f->type == 'b' ? 1 : f->type == 'o' ? 3 : 4, n = 0;
        do {
            int d = (int)(u & ((1u << shift) - 1));
            digits[n++] = (char)(d < 10 ? '0' + d : (f->type == 'X' ? 'A' : 'a') + d - 10);
        } while (u >>= shift);
        size_t m = 0;
        if (i < 0 || f->sign) text[m++] = i < 0 ? '-' : f->sign;
        if (f->alternate) text[m++] = '0', text[m++] = f->type;
        for (int64_t k = n; k < precision; k++) text[m++] = '0';
        while (n) text[m++] = digits[--n];
        text[m] = 0;
    } else {
        snprintf(text, sizeof text,
                 f->sign == '+' ? "%+.*lld"
                 : f->sign      ? "% .*lld"
                                : "%.*lld",
                 (int)(precision < 0 ? 1 : precision), (long long)lk_j_as_int(v));
    }
    if (f->comma) add_commas(text, sizeof text);
    pad(j, b, lk_j_text(j, text, strlen(text), v.origin), f, '>');
}

/* ------------------------------------------------------------------------------------------------ % */

typedef struct percent {
    lk_j *j;
    lk_jvalue args;
    int64_t used;
    bool by_name;
} percent;

static lk_jvalue percent_next(percent *p)
{
    if (p->by_name && p->args.kind != LK_J_TUPLE) lk_j_fail(p->j, "not enough arguments for format string");
    if (p->args.kind != LK_J_TUPLE) {
        if (p->used++) lk_j_fail(p->j, "not enough arguments for format string");
        return p->args;
    }
    if (p->used >= p->args.list->n) lk_j_fail(p->j, "not enough arguments for format string");
    return p->args.list->items[p->used++];
}

static size_t percent_number(percent *p, const lk_jtext *t, size_t at, int64_t *n)
{
    if (at < t->n && t->p[at] == '*') {
        *n = lk_j_need_int(p->j, percent_next(p), "*");
        return at + 1;
    }
    *n = 0;
    while (at < t->n && isdigit((unsigned char)t->p[at]) && *n < 1000000000) *n = *n * 10 + (t->p[at++] - '0');
    return at;
}

static void percent_value(percent *p, lk_jbuilder *b, lk_jvalue v, field *f)
{
    lk_j *j = p->j;
    if (v.kind == LK_J_UNDEFINED && f->type != 's' && f->type != 'r' && f->type != 'a') lk_j_fail_undefined(j, v);
    if (f->type == 's' || f->type == 'r' || f->type == 'a') {
        const lk_jtext *t;
        if (f->type == 's') {
            t = lk_j_str(j, v);
        } else {
            lk_jbuilder repr = {0};
            lk_j_repr(j, &repr, v);
            t = lk_j_built(j, &repr);
        }
        if (f->precision >= 0 && f->precision < lk_j_chars(j, t)) t = lk_j_part(j, t, 0, lk_j_byte_of(j, t, f->precision));
        *f->fill = 0;
        pad(j, b, t, f, '>');
        return;
    }
    if (f->type == 'c') {
        if (v.kind != LK_J_STRING || lk_j_chars(j, v.s) != 1) lk_j_fail(j, "%%c requires one character");
        pad(j, b, v.s, f, '>');
        return;
    }
    if (!f->type || !strchr("diueEfFgGxXo", f->type)) lk_j_fail(j, "unsupported format character '%c'", f->type ? f->type : ' ');
    if (!lk_j_is_number(v)) lk_j_fail(j, "%%%c format: a real number is required, not %s", f->type, lk_j_type_name(v));
    if (v.kind == LK_J_FLOAT && !strchr("eEfFgG", f->type)) {
        if (strchr("xXo", f->type) || !(fabs(v.f) < 9.2e18)) lk_j_fail(j, "%%%c format: an integer is required, not float", f->type);
        v = lk_j_int((int64_t)v.f);
    }
    if (*f->fill == '0' && f->align != '<') f->align = '=';
    if (f->type == 'i' || f->type == 'u') f->type = 'd';
    number_field(j, b, v, f);
}

lk_jvalue lk_j_percent(lk_j *j, const lk_jtext *t, lk_jvalue args)
{
    percent p = {.j = j, .args = args};
    lk_jbuilder b = {0};
    size_t done = 0;
    for (;;) {
        const char *found = memchr(t->p + done, '%', t->n - done);
        size_t at = found ? (size_t)(found - t->p) : t->n;
        lk_j_add_part(j, &b, t, done, at);
        if (!found) break;
        field f = {.precision = -1};
        bool named = false;
        lk_jvalue value = {0};
        if (++at < t->n && t->p[at] == '(') {
            size_t end = ++at;
            int depth = 1;
            while (end < t->n && (depth += t->p[end] == '(' ? 1 : t->p[end] == ')' ? -1 : 0)) end++;
            if (end >= t->n) lk_j_fail(j, "incomplete format key");
            if (args.kind != LK_J_DICT) lk_j_fail(j, "format requires a mapping");
            const lk_jtext *key = lk_j_part(j, t, at, end);
            const lk_jvalue *v = lk_j_get_name(args.dict, key);
            if (!v) lk_j_fail(j, "the key '%.*s' is missing", (int)key->n, key->p);
            value = *v;
            named = p.by_name = true;
            at = end + 1;
        }
        for (; at < t->n && t->p[at] && strchr("-+ 0#", t->p[at]); at++) {
            if (t->p[at] == '-') f.align = '<';
            if (t->p[at] == '+' || (t->p[at] == ' ' && !f.sign)) f.sign = t->p[at];
            if (t->p[at] == '0') strcpy(f.fill, "0");
            if (t->p[at] == '#') f.alternate = true;
        }
        at = percent_number(&p, t, at, &f.width);
        if (f.width < 0) f.align = '<', f.width = -f.width;
        if (at < t->n && t->p[at] == '.') at = percent_number(&p, t, at + 1, &f.precision);
        while (at < t->n && t->p[at] && strchr("hlL", t->p[at])) at++;
        if (at >= t->n) lk_j_fail(j, "incomplete format");
        f.type = t->p[at++];
        if (f.align == '<') *f.fill = 0;
        done = at;
        if (f.type == '%') {
            lk_j_add(j, &b, "%", 1, lk_j_origin_at(t, at - 1));
            continue;
        }
        percent_value(&p, &b, named ? value : percent_next(&p), &f);
    }
    /* whatever can be subscripted might have been asked for by name, so it need not be used */
    bool subscript = args.kind == LK_J_DICT || args.kind == LK_J_LIST || args.kind == LK_J_RANGE || args.kind == LK_J_UNDEFINED;
    bool left = args.kind == LK_J_TUPLE ? p.used < args.list->n : !p.used && !subscript;
    if (left && !p.by_name) lk_j_fail(j, "not all arguments converted during string formatting");
    return lk_j_string(lk_j_built(j, &b));
}

/* ------------------------------------------------------------------------------------------------ format */

static void parse_spec(lk_j *j, const lk_jtext *t, size_t at, size_t end, field *f)
{
    const char *p = t->p;
    int length = 0;
    if (at < end) lk_j_char_at(t, at, &length);
    *f = (field){.precision = -1};
    if (at + (size_t)length < end && strchr("<>^=", p[at + (size_t)length])) {
        memcpy(f->fill, p + at, (size_t)length);
        f->align = p[at + (size_t)length];
        at += (size_t)length + 1;
    } else if (at < end && strchr("<>^=", p[at])) {
        f->align = p[at++];
    }
    if (at < end && strchr("+- ", p[at])) f->sign = p[at] == '-' ? 0 : p[at], at++;
    if (at < end && p[at] == '#') f->alternate = true, at++;
    if (at < end && p[at] == '0') {
        if (!f->align) f->align = '=', strcpy(f->fill, "0");
        at++;
    }
    while (at < end && isdigit((unsigned char)p[at]) && f->width < 1000000000) f->width = f->width * 10 + (p[at++] - '0');
    if (at < end && p[at] == ',') f->comma = true, at++;
    if (at < end && p[at] == '.') {
        f->precision = 0;
        if (++at >= end || !isdigit((unsigned char)p[at])) lk_j_fail(j, "Format specifier missing precision");
        while (at < end && isdigit((unsigned char)p[at]) && f->precision < 1000000) f->precision = f->precision * 10 + (p[at++] - '0');
    }
    if (at < end) f->type = p[at++];
    if (at < end) lk_j_fail(j, "Invalid format specifier");
}

static void format_value(lk_j *j, lk_jbuilder *b, lk_jvalue v, field *f, bool has_spec)
{
    if (!has_spec) {
        lk_j_add_text(j, b, lk_j_str(j, v));
    } else if (v.kind == LK_J_STRING) {
        const lk_jtext *t = v.s;
        if ((f->type && f->type != 's') || f->sign || f->comma || f->alternate) lk_j_fail(j, "Invalid format specifier for a string");
        if (f->align == '=' && *f->fill != '0') lk_j_fail(j, "'=' alignment not allowed in string format specifier");
        if (f->align == '=') f->align = '<';
        if (f->precision >= 0 && f->precision < lk_j_chars(j, t)) t = lk_j_part(j, t, 0, lk_j_byte_of(j, t, f->precision));
        pad(j, b, t, f, '<');
    } else if (lk_j_is_number(v)) {
        bool real = v.kind == LK_J_FLOAT;
        if (!f->type && !real) f->type = 'd';
        if (!f->type && f->precision >= 0) lk_j_raise(j, LK_ERR_UNSUPPORTED, "a precision without a type for a float is not supported");
        if (!f->type) {
            pad(j, b, lk_j_str(j, v), f, '>');
            return;
        }
        if (!strchr(real ? "eEfFgG%" : "bdoxXeEfFgG%", f->type)) lk_j_fail(j, "Unknown format code '%c'", f->type);
        if (f->precision >= 0 && strchr("bdoxX", f->type)) lk_j_fail(j, "Precision not allowed in integer format specifier");
        number_field(j, b, v, f);
    } else {
        lk_j_fail(j, "unsupported format string passed to %s.__format__", lk_j_type_name(v));
    }
}

/* name.attribute[key] behind a field's first part. */
static lk_jvalue format_path(lk_j *j, const lk_jtext *t, size_t at, size_t end, lk_jvalue v)
{
    while (at < end) {
        bool dot = t->p[at] == '.';
        if (!dot && t->p[at] != '[') lk_j_fail(j, "Only '.' or '[' may follow ']' in format field specifier");
        size_t begin = ++at;
        while (at < end && (dot ? t->p[at] != '.' && t->p[at] != '[' : t->p[at] != ']')) at++;
        const lk_jtext *name = lk_j_part(j, t, begin, at);
        int64_t index;
        if (dot)
            v = lk_j_attribute(j, v, name);
        else if (lk_j_parse_int(name, 10, &index))
            v = lk_j_item(j, v, lk_j_int(index));
        else
            v = lk_j_item(j, v, lk_j_string(name));
        if (!dot) at++;
    }
    return v;
}

static lk_jvalue format_argument(lk_j *j, const lk_jtext *t, size_t at, size_t end, const lk_jargs *args, int *next)
{
    size_t stop = at;
    while (stop < end && t->p[stop] != '.' && t->p[stop] != '[') stop++;
    const lk_jtext *name = lk_j_part(j, t, at, stop);
    int64_t index = -1;
    if (name->n == 0 || lk_j_parse_int(name, 10, &index)) {
        if (name->n == 0) index = (*next)++;
        if (index < 0 || index >= args->n) lk_j_fail(j, "Replacement index %lld out of range for positional args tuple", (long long)index);
        return format_path(j, t, stop, end, args->values[index]);
    }
    for (int i = 0; i < args->n_keywords; i++)
        if (lk_j_text_equal(args->keywords[i].name, name)) return format_path(j, t, stop, end, args->keywords[i].value);
    lk_j_fail(j, "the key '%.*s' is missing", (int)name->n, name->p);
}

lk_jvalue lk_j_format(lk_j *j, const lk_jtext *t, const lk_jargs *args)
{
    lk_jbuilder b = {0};
    int next = 0;
    for (size_t at = 0; at < t->n;) {
        char c = t->p[at];
        if (c != '{' && c != '}') {
            size_t begin = at;
            while (at < t->n && t->p[at] != '{' && t->p[at] != '}') at++;
            lk_j_add_part(j, &b, t, begin, at);
            continue;
        }
        if (at + 1 < t->n && t->p[at + 1] == c) {
            lk_j_add_part(j, &b, t, at, at + 1);
            at += 2;
            continue;
        }
        size_t end = at + 1;
        while (c == '{' && end < t->n && t->p[end] != '}' && t->p[end] != '{') end++;
        if (c == '}' || end >= t->n) lk_j_fail(j, "Single '%c' encountered in format string", c);
        if (t->p[end] == '{') lk_j_raise(j, LK_ERR_UNSUPPORTED, "nested fields in a format string are not supported");
        size_t colon = at + 1, bang;
        while (colon < end && t->p[colon] != ':') colon++;
        for (bang = at + 1; bang < colon && t->p[bang] != '!';) bang++;
        lk_jvalue v = format_argument(j, t, at + 1, bang, args, &next);
        if (bang < colon) {
            if (bang + 2 != colon || !strchr("rs", t->p[bang + 1])) lk_j_fail(j, "an unknown conversion in a format string");
            lk_jbuilder repr = {0};
            if (t->p[bang + 1] == 'r') lk_j_repr(j, &repr, v);
            v = lk_j_string(t->p[bang + 1] == 'r' ? lk_j_built(j, &repr) : lk_j_str(j, v));
        }
        field f;
        parse_spec(j, t, colon < end ? colon + 1 : end, end, &f);
        format_value(j, &b, v, &f, colon + 1 < end);
        at = end + 1;
    }
    return lk_j_string(lk_j_built(j, &b));
}
