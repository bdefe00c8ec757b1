/* JSON into values, and transformers' tojson: json.dumps with ensure_ascii off and no HTML escaping. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/jinja_internal.h"
#include "data/tokenizer/utf8.h"

/* ------------------------------------------------------------------------------------------------ reading */

static lk_jvalue number_from_json(const cJSON *json)
{
    const char *spelling = json->valuestring;
    double d = json->valuedouble;
    if (spelling && !strpbrk(spelling, ".eE")) {
        lk_jtext t = {.p = spelling, .n = (uint32_t)strlen(spelling)};
        int64_t i;
        if (lk_j_parse_int(&t, 10, &i)) return lk_j_int(i);
    }
    if (spelling) return lk_j_float(strtod(spelling, NULL));
    return d == floor(d) && fabs(d) <= 9007199254740992.0 ? lk_j_int((int64_t)d) : lk_j_float(d);
}

lk_jvalue lk_j_from_json(lk_j *j, const cJSON *json, uint32_t origin)
{
    lk_jvalue v = {.kind = LK_J_NONE};
    lk_j_enter(j);
    if (cJSON_IsBool(json)) {
        v = lk_j_bool(cJSON_IsTrue(json));
    } else if (cJSON_IsNumber(json)) {
        v = number_from_json(json);
    } else if (cJSON_IsString(json)) {
        v = lk_j_string(lk_j_text(j, json->valuestring, strlen(json->valuestring), origin));
    } else if (cJSON_IsArray(json)) {
        v = lk_j_list(j, LK_J_LIST, cJSON_GetArraySize(json));
        for (const cJSON *item = json->child; item; item = item->next) lk_j_push(j, v, lk_j_from_json(j, item, origin));
    } else if (cJSON_IsObject(json)) {
        v = lk_j_dict(j, cJSON_GetArraySize(json));
        lk_jdict *d = v.dict;
        for (const cJSON *item = json->child; item; item = item->next) { /* keys are known to differ */
            d->keys[d->n] = lk_j_string(lk_j_text(j, item->string, strlen(item->string), origin));
            d->values[d->n++] = lk_j_from_json(j, item, origin);
        }
    }
    v.origin = origin;
    lk_j_leave(j);
    return v;
}

/* ------------------------------------------------------------------------------------------------ writing */

typedef struct writer {
    lk_j *j;
    lk_jbuilder out;
    bool ascii, sort_keys;
    const lk_jtext *indent; /* NULL: on one line */
    const lk_jtext *comma, *colon;
} writer;

static void write_string(writer *w, const lk_jtext *t)
{
    lk_j *j = w->j;
    lk_j_add(j, &w->out, "\"", 1, lk_j_origin_at(t, 0));
    size_t done = 0;
    for (size_t at = 0; at < t->n;) {
        int length = 1;
        uint32_t cp = (unsigned char)t->p[at];
        if (cp >= 0x80) cp = lk_j_char_at(t, at, &length);
        bool escape = cp < 0x20 || cp == '"' || cp == '\\' || (w->ascii && cp >= 0x7f);
        if (escape) {
            static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
            const char *known = cp ? memchr(from, (int)cp, cp < 0x80 ? sizeof from - 1 : 0) : NULL;
            uint32_t origin = lk_j_origin_at(t, at);
            lk_j_add_part(j, &w->out, t, done, at);
            if (known)
                lk_j_add_printf(j, &w->out, origin, "\\%c", to[known - from]);
            else if (cp < 0x10000)
                lk_j_add_printf(j, &w->out, origin, "\\u%04x", cp);
            else
                lk_j_add_printf(j, &w->out, origin, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10), 0xdc00 + ((cp - 0x10000) & 0x3ff));
            done = at + (size_t)length;
        }
        at += (size_t)length;
    }
    lk_j_add_part(j, &w->out, t, done, t->n);
    lk_j_add(j, &w->out, "\"", 1, lk_j_origin_at(t, t->n ? t->n - 1 : 0));
}

static void write_float(writer *w, double f, uint32_t origin)
{
    char text[40];
    if (isnan(f))
        strcpy(text, "NaN");
    else if (isinf(f))
        strcpy(text, f > 0 ? "Infinity" : "-Infinity");
    else
        lk_j_float_text(f, text);
    lk_j_add(w->j, &w->out, text, strlen(text), origin);
}

static void new_line(writer *w, int level, uint32_t origin)
{
    if (!w->indent) return;
    lk_j_add(w->j, &w->out, "\n", 1, origin);
    for (int i = 0; i < level; i++) lk_j_add(w->j, &w->out, w->indent->p, w->indent->n, origin);
}

static void write_value(writer *w, lk_jvalue v, int level);

static void write_list(writer *w, lk_jvalue v, int level)
{
    lk_j_add(w->j, &w->out, "[", 1, v.origin);
    for (int64_t i = 0; i < v.list->n; i++) {
        if (i) lk_j_add(w->j, &w->out, w->comma->p, w->comma->n, v.origin);
        new_line(w, level + 1, v.origin);
        write_value(w, v.list->items[i], level + 1);
    }
    if (v.list->n) new_line(w, level, v.origin);
    lk_j_add(w->j, &w->out, "]", 1, v.origin);
}

static void write_key(writer *w, lk_jvalue key)
{
    lk_jbuilder b = {0};
    switch ((lk_jkind)key.kind) {
    case LK_J_STRING: write_string(w, key.s); return;
    case LK_J_BOOL:
    case LK_J_NONE: lk_j_add_printf(w->j, &w->out, key.origin, "\"%s\"", key.kind == LK_J_NONE ? "null" : key.b ? "true" : "false"); return;
    case LK_J_INT:
    case LK_J_FLOAT:
        lk_j_repr(w->j, &b, key);
        write_string(w, lk_j_built(w->j, &b));
        return;
    default: lk_j_fail(w->j, "keys must be str, int, float, bool or None, not %s", lk_j_type_name(key));
    }
}

static void write_dict(writer *w, lk_jvalue v, int level)
{
    lk_jdict d = *v.dict;
    if (w->sort_keys) {
        lk_jvalue *keys = lk_j_alloc(w->j, 2 * (size_t)d.n * sizeof *keys), *values = keys + d.n;
        if (d.n) memcpy(keys, d.keys, (size_t)d.n * sizeof *keys);
        if (d.n) memcpy(values, d.values, (size_t)d.n * sizeof *values);
        lk_j_sort(w->j, values, keys, d.n, false);
        d.keys = keys;
        d.values = values;
    }
    lk_j_add(w->j, &w->out, "{", 1, v.origin);
    for (int64_t i = 0; i < d.n; i++) {
        if (i) lk_j_add(w->j, &w->out, w->comma->p, w->comma->n, v.origin);
        new_line(w, level + 1, v.origin);
        write_key(w, d.keys[i]);
        lk_j_add(w->j, &w->out, w->colon->p, w->colon->n, v.origin);
        write_value(w, d.values[i], level + 1);
    }
    if (d.n) new_line(w, level, v.origin);
    lk_j_add(w->j, &w->out, "}", 1, v.origin);
}

static void write_value(writer *w, lk_jvalue v, int level)
{
    lk_j_enter(w->j);
    switch ((lk_jkind)v.kind) {
    case LK_J_NONE: lk_j_add(w->j, &w->out, "null", 4, v.origin); break;
    case LK_J_BOOL: lk_j_add(w->j, &w->out, v.b ? "true" : "false", v.b ? 4 : 5, v.origin); break;
    case LK_J_INT: lk_j_add_printf(w->j, &w->out, v.origin, "%lld", (long long)v.i); break;
    case LK_J_FLOAT: write_float(w, v.f, v.origin); break;
    case LK_J_STRING: write_string(w, v.s); break;
    case LK_J_LIST:
    case LK_J_TUPLE: write_list(w, v, level); break;
    case LK_J_DICT: write_dict(w, v, level); break;
    default: lk_j_fail(w->j, "Object of type %s is not JSON serializable", lk_j_type_name(v));
    }
    lk_j_leave(w->j);
}

lk_jvalue lk_j_tojson(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
    lk_jvalue a[4];
    lk_j_take(j, "tojson", args, 0, 4, names, a);
    writer w = {.j = j, .ascii = lk_j_truth(a[0]), .sort_keys = lk_j_truth(a[3])};
    if (a[1].kind == LK_J_STRING) {
        w.indent = a[1].s;
    } else if (a[1].kind != LK_J_ABSENT && a[1].kind != LK_J_NONE) {
        int64_t n = lk_j_need_int(j, a[1], "indent");
        lk_jbuilder b = {0};
        if (n > 1000) lk_j_fail(j, "an indent of more than 1000");
        for (int64_t i = 0; i < n; i++) lk_j_add(j, &b, " ", 1, LK_ORIGIN_TEMPLATE);
        w.indent = lk_j_built(j, &b);
    }
    w.comma = lk_j_literal(j, w.indent ? "," : ", ");
    w.colon = lk_j_literal(j, ": ");
    if (a[2].kind != LK_J_ABSENT && a[2].kind != LK_J_NONE) {
        bool pair = (a[2].kind == LK_J_LIST || a[2].kind == LK_J_TUPLE) && a[2].list->n == 2;
        if (!pair || a[2].list->items[0].kind != LK_J_STRING || a[2].list->items[1].kind != LK_J_STRING)
            lk_j_fail(j, "separators must be two strings");
        w.comma = a[2].list->items[0].s;
        w.colon = a[2].list->items[1].s;
    }
    write_value(&w, v, 0);
    return lk_j_string(lk_j_built(j, &w.out));
}
