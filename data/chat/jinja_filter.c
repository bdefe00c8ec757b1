/* Filters on sequences and mappings. */
#include <math.h>
#include <string.h>

#include "data/chat/jinja_internal.h"

static const lk_jvalue absent = {.kind = LK_J_ABSENT};

static bool given(lk_jvalue v) { return v.kind != LK_J_ABSENT && v.kind != LK_J_NONE; }

static lk_jvalue generator(lk_j *j, int64_t room) { return lk_j_list(j, LK_J_GENERATOR, room); }

/* ------------------------------------------------------------------------------------------------ by attribute */

/* "a.b.0" of an item: names, and numbers as indices. None: the item itself. */
static lk_jvalue by_attribute(lk_j *j, lk_jvalue item, lk_jvalue attribute, lk_jvalue fallback)
{
    if (!given(attribute)) return item;
    if (attribute.kind != LK_J_STRING) {
        item = lk_j_item(j, item, attribute);
        return item.kind == LK_J_UNDEFINED && given(fallback) ? fallback : item;
    }
    const lk_jtext *t = attribute.s;
    for (size_t at = 0; at <= t->n;) {
        const char *dot = memchr(t->p + at, '.', t->n - at);
        size_t end = dot ? (size_t)(dot - t->p) : t->n;
        const lk_jtext *part = lk_j_part(j, t, at, end);
        bool digits = part->n > 0;
        int64_t index = 0;
        for (uint32_t i = 0; i < part->n; i++) digits &= part->p[i] >= '0' && part->p[i] <= '9';
        bool number = digits && lk_j_parse_int(part, 10, &index);
        item = lk_j_item(j, item, number ? lk_j_int(index) : lk_j_string(part));
        if (item.kind == LK_J_UNDEFINED && given(fallback)) item = fallback;
        at = end + 1;
    }
    return item;
}

static lk_jvalue ignore_case(lk_j *j, lk_jvalue v, bool case_sensitive)
{
    return v.kind == LK_J_STRING && !case_sensitive ? lk_j_string(lk_j_map_case(j, v.s, 'l')) : v;
}

/* ------------------------------------------------------------------------------------------------ length, ends, order */

static lk_jvalue f_length(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "length", args, 0, 0, NULL, NULL);
    int64_t n = lk_j_length(j, v);
    if (n < 0) lk_j_fail(j, "object of type '%s' has no len()", lk_j_type_name(v));
    return lk_j_int(n);
}

static lk_jvalue f_list(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n;
    lk_j_take(j, "list", args, 0, 0, NULL, NULL);
    lk_jvalue *items = lk_j_items(j, v, &n), list = lk_j_list(j, LK_J_LIST, n);
    list.origin = v.origin;
    for (int64_t i = 0; i < n; i++) lk_j_push(j, list, items[i]);
    return list;
}

static lk_jvalue f_first(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n;
    lk_j_take(j, "first", args, 0, 0, NULL, NULL);
    lk_jvalue *items = lk_j_items(j, v, &n);
    return n ? items[0] : lk_j_undefined(j, "No first item, sequence was empty.");
}

static lk_jvalue f_last(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n;
    lk_j_take(j, "last", args, 0, 0, NULL, NULL);
    if (v.kind == LK_J_GENERATOR) lk_j_fail(j, "'%s' object is not reversible", lk_j_type_name(v));
    lk_jvalue *items = lk_j_items(j, v, &n);
    return n ? items[n - 1] : lk_j_undefined(j, "No last item, sequence was empty.");
}

static lk_jvalue f_reverse(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n;
    lk_j_take(j, "reverse", args, 0, 0, NULL, NULL);
    if (v.kind == LK_J_STRING) return lk_j_slice(j, v, absent, absent, lk_j_int(-1));
    lk_jvalue *items = lk_j_items(j, v, &n);
    /* what Python can reverse becomes an iterator, the rest a list */
    lk_jvalue out = v.kind == LK_J_GENERATOR ? lk_j_list(j, LK_J_LIST, n) : generator(j, n);
    for (int64_t i = n; i-- > 0;) lk_j_push(j, out, items[i]);
    return out;
}

static lk_jvalue sorted(lk_j *j, lk_jvalue *items, lk_jvalue *keys, int64_t n, bool reverse)
{
    lk_jvalue list = lk_j_list(j, LK_J_LIST, n);
    if (n) memcpy(list.list->items, items, (size_t)n * sizeof *items);
    list.list->n = n;
    lk_j_sort(j, list.list->items, keys, n, reverse);
    return list;
}

/* "a,b": by several attributes, as a list to compare. */
static lk_jvalue sort_key(lk_j *j, lk_jvalue item, lk_jvalue attribute, bool case_sensitive)
{
    lk_jvalue key = lk_j_list(j, LK_J_LIST, 1);
    if (attribute.kind != LK_J_STRING) {
        lk_j_push(j, key, ignore_case(j, by_attribute(j, item, attribute, absent), case_sensitive));
        return key;
    }
    const lk_jtext *t = attribute.s;
    for (size_t at = 0; at <= t->n;) {
        const char *comma = memchr(t->p + at, ',', t->n - at);
        size_t end = comma ? (size_t)(comma - t->p) : t->n;
        lk_jvalue one = by_attribute(j, item, lk_j_string(lk_j_part(j, t, at, end)), absent);
        lk_j_push(j, key, ignore_case(j, one, case_sensitive));
        at = end + 1;
    }
    return key;
}

static lk_jvalue f_sort(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
    lk_jvalue a[3];
    int64_t n;
    lk_j_take(j, "sort", args, 0, 3, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n), *keys = lk_j_alloc(j, (size_t)n * sizeof *keys);
    for (int64_t i = 0; i < n; i++) keys[i] = sort_key(j, items[i], a[2], lk_j_truth(a[1]));
    return sorted(j, items, keys, n, lk_j_truth(a[0]));
}

static lk_jvalue f_dictsort(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"case_sensitive", "by", "reverse"};
    lk_jvalue a[3];
    int64_t n;
    lk_j_take(j, "dictsort", args, 0, 3, names, a);
    bool by_value = a[1].kind == LK_J_STRING && lk_j_text_is(a[1].s, "value");
    if (a[1].kind && !by_value && !(a[1].kind == LK_J_STRING && lk_j_text_is(a[1].s, "key")))
        lk_j_fail(j, "You can only sort by either \"key\" or \"value\"");
    if (v.kind != LK_J_DICT) lk_j_fail(j, "'%s' object has no attribute 'items'", lk_j_type_name(v));
    lk_jview view = {v.dict, LK_J_ITEMS};
    lk_jvalue *items = lk_j_items(j, (lk_jvalue){.kind = LK_J_VIEW, .view = &view}, &n), *keys = lk_j_alloc(j, (size_t)n * sizeof *keys);
    for (int64_t i = 0; i < n; i++) keys[i] = ignore_case(j, items[i].list->items[by_value], lk_j_truth(a[0]));
    return sorted(j, items, keys, n, lk_j_truth(a[2]));
}

static lk_jvalue min_or_max(lk_j *j, lk_jvalue v, const lk_jargs *args, bool max)
{
    static const char *const names[] = {"case_sensitive", "attribute"};
    lk_jvalue a[2], best = {0}, best_key = {0};
    int64_t n;
    lk_j_take(j, max ? "max" : "min", args, 0, 2, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n);
    if (n == 0) return lk_j_undefined(j, "No aggregated item, sequence was empty.");
    for (int64_t i = 0; i < n; i++) {
        lk_jvalue key = ignore_case(j, by_attribute(j, items[i], a[1], absent), lk_j_truth(a[0]));
        if (i && lk_j_order(j, key, best_key, max ? ">" : "<") != (max ? 1 : -1)) continue;
        best = items[i];
        best_key = key;
    }
    return best;
}

static lk_jvalue f_min(lk_j *j, lk_jvalue v, const lk_jargs *args) { return min_or_max(j, v, args, false); }
static lk_jvalue f_max(lk_j *j, lk_jvalue v, const lk_jargs *args) { return min_or_max(j, v, args, true); }

static lk_jvalue f_sum(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"attribute", "start"};
    lk_jvalue a[2];
    int64_t n;
    lk_j_take(j, "sum", args, 0, 2, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n), total = a[1].kind ? a[1] : lk_j_int(0);
    if (total.kind == LK_J_STRING) lk_j_fail(j, "sum() can't sum strings [use ''.join(seq) instead]");
    for (int64_t i = 0; i < n; i++) total = lk_j_binary(j, '+', total, by_attribute(j, items[i], a[0], absent));
    return total;
}

/* ------------------------------------------------------------------------------------------------ choosing */

static lk_jvalue f_unique(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"case_sensitive", "attribute"};
    lk_jvalue a[2];
    int64_t n;
    lk_j_take(j, "unique", args, 0, 2, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n), out = generator(j, n), seen = lk_j_list(j, LK_J_LIST, n);
    for (int64_t i = 0; i < n; i++) {
        lk_jvalue key = ignore_case(j, by_attribute(j, items[i], a[1], absent), lk_j_truth(a[0]));
        lk_j_check_hashable(j, key);
        lk_j_step(j, seen.list->n / 8);
        if (lk_j_contains(j, seen, key)) continue;
        lk_j_push(j, seen, key);
        lk_j_push(j, out, items[i]);
    }
    return out;
}

static lk_jargs rest(const lk_jargs *args, int skip)
{
    lk_jargs out = *args;
    if (skip) out.values += skip;
    out.n -= skip;
    return out;
}

/* select, reject and their twins that look at an attribute: by a test, or by truth when none is named. */
static lk_jvalue choose(lk_j *j, lk_jvalue v, const lk_jargs *args, bool wanted, bool attribute)
{
    int64_t n;
    int off = attribute;
    if (!lk_j_truth(v)) return generator(j, 0);
    if (args->n < off) lk_j_fail(j, "Missing parameter for attribute name");
    const lk_jtext *test = NULL;
    if (args->n > off) {
        if (args->values[off].kind != LK_J_STRING) lk_j_fail(j, "a test's name must be a string");
        test = args->values[off].s;
    }
    lk_jargs more = rest(args, test ? off + 1 : off);
    lk_jvalue *items = lk_j_items(j, v, &n), out = generator(j, n);
    for (int64_t i = 0; i < n; i++) {
        lk_jvalue item = attribute ? by_attribute(j, items[i], args->values[0], absent) : items[i];
        bool passes = test ? lk_j_apply_test(j, test, item, &more) : lk_j_truth(item);
        lk_j_step(j, 1);
        if (passes == wanted) lk_j_push(j, out, items[i]);
    }
    return out;
}

static lk_jvalue f_select(lk_j *j, lk_jvalue v, const lk_jargs *args) { return choose(j, v, args, true, false); }
static lk_jvalue f_reject(lk_j *j, lk_jvalue v, const lk_jargs *args) { return choose(j, v, args, false, false); }
static lk_jvalue f_selectattr(lk_j *j, lk_jvalue v, const lk_jargs *args) { return choose(j, v, args, true, true); }
static lk_jvalue f_rejectattr(lk_j *j, lk_jvalue v, const lk_jargs *args) { return choose(j, v, args, false, true); }

static const lk_jkeyword *keyword(const lk_jargs *args, const char *name)
{
    for (int i = 0; i < args->n_keywords; i++)
        if (lk_j_text_is(args->keywords[i].name, name)) return &args->keywords[i];
    return NULL;
}

static lk_jvalue f_map(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n;
    if (!lk_j_truth(v)) return generator(j, 0);
    const lk_jkeyword *attribute = args->n ? NULL : keyword(args, "attribute"), *fallback = keyword(args, "default");
    if (attribute && args->n_keywords > 1 + (fallback != NULL)) lk_j_fail(j, "map got an unexpected keyword argument");
    if (!attribute && args->n == 0) lk_j_fail(j, "map requires a filter argument");
    if (!attribute && args->values[0].kind != LK_J_STRING) lk_j_fail(j, "a filter's name must be a string");
    lk_jvalue *items = lk_j_items(j, v, &n), out = generator(j, n);
    lk_jargs more = attribute ? *args : rest(args, 1);
    for (int64_t i = 0; i < n; i++) {
        lk_j_step(j, 1);
        lk_j_push(j, out,
                  attribute ? by_attribute(j, items[i], attribute->value, fallback ? fallback->value : absent)
                            : lk_j_apply_filter(j, args->values[0].s, items[i], &more));
    }
    return out;
}

static lk_jvalue f_items(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    int64_t n = 0;
    lk_j_take(j, "items", args, 0, 0, NULL, NULL);
    if (v.kind == LK_J_UNDEFINED) return generator(j, 0);
    if (v.kind != LK_J_DICT) lk_j_fail(j, "Can only get item pairs from a mapping.");
    lk_jview view = {v.dict, LK_J_ITEMS};
    lk_jvalue *items = lk_j_items(j, (lk_jvalue){.kind = LK_J_VIEW, .view = &view}, &n), out = generator(j, n);
    for (int64_t i = 0; i < n; i++) lk_j_push(j, out, items[i]);
    return out;
}

/* ------------------------------------------------------------------------------------------------ groups */

static lk_jvalue f_groupby(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"attribute", "default", "case_sensitive"};
    lk_jvalue a[3], out = lk_j_list(j, LK_J_LIST, 0);
    int64_t n;
    lk_j_take(j, "groupby", args, 1, 3, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n), *keys = lk_j_alloc(j, (size_t)n * sizeof *keys);
    for (int64_t i = 0; i < n; i++) keys[i] = ignore_case(j, by_attribute(j, items[i], a[0], a[1]), lk_j_truth(a[2]));
    lk_jvalue list = sorted(j, items, keys, n, false);
    for (int64_t i = 0, end; i < n; i = end) {
        lk_jvalue group = lk_j_list(j, LK_J_LIST, 0), pair = lk_j_list(j, LK_J_TUPLE, 2);
        for (end = i; end < n && lk_j_equal(j, keys[end], keys[i]); end++) lk_j_push(j, group, list.list->items[end]);
        if (end == i) end++; /* a NaN */
        lk_j_push(j, pair, by_attribute(j, list.list->items[i], a[0], a[1]));
        lk_j_push(j, pair, group);
        lk_j_push(j, out, pair);
    }
    return out;
}

static lk_jvalue f_batch(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"linecount", "fill_with"};
    lk_jvalue a[2], out = generator(j, 0), row = {0};
    int64_t n;
    lk_j_take(j, "batch", args, 1, 2, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n);
    int64_t size = lk_j_need_int(j, a[0], "linecount");
    for (int64_t i = 0; i < n; i++) {
        if (!row.kind || row.list->n == size) {
            if (row.kind) lk_j_push(j, out, row);
            row = lk_j_list(j, LK_J_LIST, 0);
        }
        lk_j_push(j, row, items[i]);
    }
    if (!row.kind) return out;
    while (given(a[1]) && row.list->n < size) lk_j_step(j, 1), lk_j_push(j, row, a[1]);
    lk_j_push(j, out, row);
    return out;
}

static lk_jvalue f_slice(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"slices", "fill_with"};
    lk_jvalue a[2], out = generator(j, 0);
    int64_t n, at = 0;
    lk_j_take(j, "slice", args, 1, 2, names, a);
    lk_jvalue *items = lk_j_items(j, v, &n);
    int64_t slices = lk_j_need_int(j, a[0], "slices");
    if (slices == 0) lk_j_fail(j, "integer division or modulo by zero");
    for (int64_t s = 0; s < slices; s++) {
        lk_jvalue row = lk_j_list(j, LK_J_LIST, 0);
        lk_j_step(j, 1);
        for (int64_t end = at + n / slices + (s < n % slices); at < end; at++) lk_j_push(j, row, items[at]);
        if (given(a[1]) && s >= n % slices) lk_j_push(j, row, a[1]);
        lk_j_push(j, out, row);
    }
    return out;
}

/* ------------------------------------------------------------------------------------------------ values */

static lk_jvalue f_default(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    static const char *const names[] = {"default_value", "boolean"};
    lk_jvalue a[2];
    lk_j_take(j, "default", args, 0, 2, names, a);
    if (v.kind != LK_J_UNDEFINED && !(lk_j_truth(a[1]) && !lk_j_truth(v))) return v;
    return a[0].kind ? a[0] : lk_j_string(lk_j_literal(j, ""));
}

static lk_jvalue f_attr(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "attr", args, 1, 1, (const char *const[]){"name"}, a);
    if (a[0].kind != LK_J_STRING) lk_j_fail(j, "attribute name must be string, not '%s'", lk_j_type_name(a[0]));
    if (v.kind == LK_J_DICT) { /* only real attributes, no keys */
        lk_jvalue method = lk_j_find_method(j, v, a[0].s);
        return method.kind ? method : lk_j_undefined(j, "'dict object' has no attribute '%.*s'", (int)a[0].s->n, a[0].s->p);
    }
    return lk_j_attribute(j, v, a[0].s);
}

static lk_jvalue f_abs(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_j_take(j, "abs", args, 0, 0, NULL, NULL);
    if (v.kind == LK_J_FLOAT) return lk_j_float(fabs(v.f));
    if (v.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, v);
    if (!lk_j_is_integer(v)) lk_j_fail(j, "bad operand type for abs(): '%s'", lk_j_type_name(v));
    return lk_j_as_int(v) < 0 ? lk_j_unary(j, '-', v) : lk_j_int(lk_j_as_int(v));
}

lk_jfilter *lk_j_filter(const lk_jtext *name)
{
    static const struct {
        const char *name;
        lk_jfilter *filter;
    } filters[] = {
        {"abs", f_abs},           {"attr", f_attr},     {"batch", f_batch},
        {"count", f_length},      {"d", f_default},     {"default", f_default},
        {"dictsort", f_dictsort}, {"first", f_first},   {"groupby", f_groupby},
        {"items", f_items},       {"last", f_last},     {"length", f_length},
        {"list", f_list},         {"map", f_map},       {"max", f_max},
        {"min", f_min},           {"reject", f_reject}, {"rejectattr", f_rejectattr},
        {"reverse", f_reverse},   {"select", f_select}, {"selectattr", f_selectattr},
        {"slice", f_slice},       {"sort", f_sort},     {"sum", f_sum},
        {"tojson", lk_j_tojson},  {"unique", f_unique},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (lk_j_text_is(name, filters[i].name)) return filters[i].filter;
    return NULL;
}
