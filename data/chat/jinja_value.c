/* Values as Python sees them: truth, equality, order, length, iteration. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/jinja_internal.h"

const lk_jvalue lk_j_none = {.kind = LK_J_NONE};

lk_jvalue lk_j_undefined(lk_j *j, const char *format, ...)
{
    char text[200];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t size = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    char *copy = lk_j_alloc(j, size + 1);
    memcpy(copy, text, size);
    return (lk_jvalue){.kind = LK_J_UNDEFINED, .s = lk_j_text(j, copy, size, LK_ORIGIN_TEMPLATE)};
}

_Noreturn void lk_j_fail_undefined(lk_j *j, lk_jvalue v) { lk_j_fail(j, "%.*s", (int)v.s->n, v.s->p); }

const char *lk_j_type_name(lk_jvalue v)
{
    static const char *const names[] = {
        [LK_J_ABSENT] = "missing",    [LK_J_UNDEFINED] = "Undefined", [LK_J_NONE] = "NoneType",       [LK_J_BOOL] = "bool",
        [LK_J_INT] = "int",           [LK_J_FLOAT] = "float",         [LK_J_STRING] = "str",          [LK_J_LIST] = "list",
        [LK_J_TUPLE] = "tuple",       [LK_J_DICT] = "dict",           [LK_J_NAMESPACE] = "namespace", [LK_J_RANGE] = "range",
        [LK_J_VIEW] = "dict view",    [LK_J_GENERATOR] = "generator", [LK_J_LOOP] = "loop",           [LK_J_MACRO] = "macro",
        [LK_J_FUNCTION] = "function", [LK_J_METHOD] = "method",       [LK_J_CYCLER] = "cycler",       [LK_J_JOINER] = "joiner"};
    return names[v.kind];
}

/* ------------------------------------------------------------------------------------------------ containers */

lk_jvalue lk_j_list(lk_j *j, lk_jkind kind, int64_t room)
{
    lk_jlist *list = lk_j_alloc(j, sizeof *list);
    *list = (lk_jlist){.items = lk_j_alloc(j, (size_t)room * sizeof *list->items), .room = room};
    return (lk_jvalue){.kind = (uint8_t)kind, .list = list};
}

static lk_jvalue *grown(lk_j *j, const lk_jvalue *old, int64_t n, int64_t room)
{
    lk_jvalue *fresh = lk_j_alloc(j, (size_t)room * sizeof *fresh);
    if (n) memcpy(fresh, old, (size_t)n * sizeof *fresh);
    return fresh;
}

void lk_j_push(lk_j *j, lk_jvalue v, lk_jvalue item)
{
    lk_jlist *list = v.list;
    if (list->n == list->room) list->items = grown(j, list->items, list->n, list->room = 2 * list->room + 4);
    list->items[list->n++] = item;
}

lk_jvalue lk_j_dict(lk_j *j, int64_t room)
{
    lk_jdict *d = lk_j_alloc(j, sizeof *d);
    *d = (lk_jdict){
        .keys = lk_j_alloc(j, (size_t)room * sizeof *d->keys), .values = lk_j_alloc(j, (size_t)room * sizeof *d->values), .room = room};
    return (lk_jvalue){.kind = LK_J_DICT, .dict = d};
}

static int64_t find_key(lk_j *j, const lk_jdict *d, lk_jvalue key)
{
    lk_j_step(j, d->n / 16);
    for (int64_t i = 0; i < d->n; i++) {
        const lk_jvalue *k = &d->keys[i];
        if (k->kind == LK_J_STRING && key.kind == LK_J_STRING ? lk_j_text_equal(k->s, key.s) : lk_j_equal(j, *k, key)) return i;
    }
    return -1;
}

void lk_j_put(lk_j *j, lk_jvalue v, lk_jvalue key, lk_jvalue value)
{
    lk_jdict *d = v.dict;
    lk_j_check_hashable(j, key);
    int64_t at = find_key(j, d, key);
    if (at >= 0) {
        d->values[at] = value;
        return;
    }
    if (d->n == d->room) {
        int64_t room = 2 * d->room + 4;
        d->keys = grown(j, d->keys, d->n, room);
        d->values = grown(j, d->values, d->n, room);
        d->room = room;
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
}

const lk_jvalue *lk_j_get(lk_j *j, const lk_jdict *d, lk_jvalue key)
{
    int64_t at = find_key(j, d, key);
    return at < 0 ? NULL : &d->values[at];
}

const lk_jvalue *lk_j_get_name(const lk_jdict *d, const lk_jtext *name)
{
    for (int64_t i = 0; i < d->n; i++)
        if (d->keys[i].kind == LK_J_STRING && lk_j_text_equal(d->keys[i].s, name)) return &d->values[i];
    return NULL;
}

void lk_j_check_hashable(lk_j *j, lk_jvalue v)
{
    if (v.kind == LK_J_LIST || v.kind == LK_J_DICT || v.kind == LK_J_VIEW) lk_j_fail(j, "unhashable type: '%s'", lk_j_type_name(v));
    for (int64_t i = 0; v.kind == LK_J_TUPLE && i < v.list->n; i++) lk_j_check_hashable(j, v.list->items[i]);
}

/* ------------------------------------------------------------------------------------------------ truth and equality */

bool lk_j_truth(lk_jvalue v)
{
    switch ((lk_jkind)v.kind) {
    case LK_J_ABSENT:
    case LK_J_UNDEFINED:
    case LK_J_NONE: return false;
    case LK_J_BOOL: return v.b;
    case LK_J_INT: return v.i != 0;
    case LK_J_FLOAT: return v.f != 0;
    case LK_J_STRING: return v.s->n != 0;
    case LK_J_LIST:
    case LK_J_TUPLE: return v.list->n != 0;
    case LK_J_DICT: return v.dict->n != 0;
    case LK_J_RANGE: return v.range->n != 0;
    case LK_J_VIEW: return v.view->dict->n != 0;
    case LK_J_LOOP: return v.loop->n != 0;
    default: return true;
    }
}

/* -1, 0, 1, exact also where a double cannot hold the int; 2 with a NaN. */
static int compare_numbers(lk_jvalue a, lk_jvalue b)
{
    if (lk_j_is_integer(a) && lk_j_is_integer(b)) {
        int64_t x = lk_j_as_int(a), y = lk_j_as_int(b);
        return (x > y) - (x < y);
    }
    double x = lk_j_as_float(a), y = lk_j_as_float(b);
    if (isnan(x) || isnan(y)) return 2;
    if (x == y && a.kind != b.kind && fabs(x) < 9.2e18) {
        int64_t p = lk_j_is_integer(a) ? lk_j_as_int(a) : (int64_t)x, q = lk_j_is_integer(b) ? lk_j_as_int(b) : (int64_t)y;
        return (p > q) - (p < q);
    }
    return (x > y) - (x < y);
}

static bool equal_lists(lk_j *j, const lk_jlist *a, const lk_jlist *b)
{
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (int64_t i = 0; i < a->n; i++)
        if (!lk_j_equal(j, a->items[i], b->items[i])) return false;
    return true;
}

static bool equal_dicts(lk_j *j, const lk_jdict *a, const lk_jdict *b)
{
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (int64_t i = 0; i < a->n; i++) {
        const lk_jvalue *other = lk_j_get(j, b, a->keys[i]);
        if (!other || !lk_j_equal(j, a->values[i], *other)) return false;
    }
    return true;
}

bool lk_j_equal(lk_j *j, lk_jvalue a, lk_jvalue b)
{
    if (lk_j_is_number(a) && lk_j_is_number(b)) return compare_numbers(a, b) == 0;
    if (a.kind != b.kind) return false;
    bool equal = false;
    lk_j_enter(j);
    switch ((lk_jkind)a.kind) {
    case LK_J_UNDEFINED:
    case LK_J_NONE: equal = true; break;
    case LK_J_STRING: equal = lk_j_text_equal(a.s, b.s); break;
    case LK_J_LIST:
    case LK_J_TUPLE: equal = equal_lists(j, a.list, b.list); break;
    case LK_J_DICT: equal = equal_dicts(j, a.dict, b.dict); break;
    case LK_J_RANGE:
        equal = a.range->n == b.range->n &&
                (!a.range->n || (a.range->start == b.range->start && (a.range->n == 1 || a.range->step == b.range->step)));
        break;
    default: equal = a.list == b.list; /* identity */
    }
    lk_j_leave(j);
    return equal;
}

static int order_text(const lk_jtext *a, const lk_jtext *b)
{
    /* UTF-8 sorts as code points do */
    int c = memcmp(a->p, b->p, a->n < b->n ? a->n : b->n);
    return c ? (c > 0) - (c < 0) : (a->n > b->n) - (a->n < b->n);
}

int lk_j_order(lk_j *j, lk_jvalue a, lk_jvalue b, const char *op)
{
    if (a.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, a);
    if (b.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, b);
    if (lk_j_is_number(a) && lk_j_is_number(b)) return compare_numbers(a, b);
    if (a.kind == b.kind && a.kind == LK_J_STRING) return order_text(a.s, b.s);
    if (a.kind == b.kind && (a.kind == LK_J_LIST || a.kind == LK_J_TUPLE)) {
        int64_t n = a.list->n < b.list->n ? a.list->n : b.list->n;
        int order = 0;
        lk_j_enter(j);
        for (int64_t i = 0; i < n && !order; i++)
            if (!lk_j_equal(j, a.list->items[i], b.list->items[i])) {
                order = lk_j_order(j, a.list->items[i], b.list->items[i], op);
                if (order == 0) order = 2;
            }
        lk_j_leave(j);
        return order ? order : (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    lk_j_fail(j, "'%s' not supported between instances of '%s' and '%s'", op, lk_j_type_name(a), lk_j_type_name(b));
}

/* ------------------------------------------------------------------------------------------------ sequences */

int64_t lk_j_length(lk_j *j, lk_jvalue v)
{
    switch ((lk_jkind)v.kind) {
    case LK_J_UNDEFINED: return 0;
    case LK_J_STRING: return lk_j_chars(j, v.s);
    case LK_J_LIST:
    case LK_J_TUPLE: return v.list->n;
    case LK_J_DICT: return v.dict->n;
    case LK_J_RANGE: return v.range->n;
    case LK_J_VIEW: return v.view->dict->n;
    case LK_J_LOOP: return v.loop->n;
    default: return -1;
    }
}

bool lk_j_is_iterable(lk_jvalue v)
{
    return v.kind == LK_J_UNDEFINED || (v.kind >= LK_J_STRING && v.kind <= LK_J_LOOP && v.kind != LK_J_NAMESPACE);
}

static lk_jvalue *view_items(lk_j *j, const lk_jview *view)
{
    const lk_jdict *d = view->dict;
    if (view->what == LK_J_KEYS) return d->keys;
    if (view->what == LK_J_VALUES) return d->values;
    lk_jvalue *items = lk_j_alloc(j, (size_t)d->n * sizeof *items);
    for (int64_t i = 0; i < d->n; i++) {
        items[i] = lk_j_list(j, LK_J_TUPLE, 2);
        lk_j_push(j, items[i], d->keys[i]);
        lk_j_push(j, items[i], d->values[i]);
    }
    return items;
}

/* Everything a loop over v would see. The items belong to v or to the arena and must not be changed. */
lk_jvalue *lk_j_items(lk_j *j, lk_jvalue v, int64_t *n)
{
    *n = lk_j_length(j, v);
    if (*n > 0) lk_j_step(j, *n / 4);
    lk_jvalue *items;
    switch ((lk_jkind)v.kind) {
    case LK_J_UNDEFINED: return NULL;
    case LK_J_LIST:
    case LK_J_TUPLE: return v.list->items;
    case LK_J_DICT: return v.dict->keys;
    case LK_J_VIEW: return view_items(j, v.view);
    case LK_J_GENERATOR:
        *n = v.list->used_up ? 0 : v.list->n;
        v.list->used_up = true;
        return v.list->items;
    case LK_J_STRING:
        items = lk_j_alloc(j, (size_t)*n * sizeof *items);
        *n = 0;
        for (size_t at = 0; at < v.s->n;) {
            int length;
            lk_j_char_at(v.s, at, &length);
            items[(*n)++] = lk_j_string(lk_j_part(j, v.s, at, at + (size_t)length));
            at += (size_t)length;
        }
        return items;
    case LK_J_RANGE:
        items = lk_j_alloc(j, (size_t)*n * sizeof *items);
        for (int64_t i = 0; i < *n; i++) items[i] = lk_j_int(v.range->start + i * v.range->step);
        return items;
    case LK_J_LOOP: lk_j_raise(j, LK_ERR_UNSUPPORTED, "iterating over loop itself is not supported");
    default: lk_j_fail(j, "'%s' object is not iterable", lk_j_type_name(v));
    }
}

bool lk_j_contains(lk_j *j, lk_jvalue where, lk_jvalue what)
{
    if (where.kind == LK_J_STRING) {
        if (what.kind != LK_J_STRING) lk_j_fail(j, "'in <string>' requires string as left operand, not %s", lk_j_type_name(what));
        return lk_j_find(j, where.s, what.s, 0) >= 0;
    }
    if (where.kind == LK_J_DICT || (where.kind == LK_J_VIEW && where.view->what == LK_J_KEYS)) {
        lk_j_check_hashable(j, what);
        return lk_j_get(j, where.kind == LK_J_DICT ? where.dict : where.view->dict, what) != NULL;
    }
    if (!lk_j_is_iterable(where)) lk_j_fail(j, "argument of type '%s' is not iterable", lk_j_type_name(where));
    int64_t n;
    lk_jvalue *items = lk_j_items(j, where, &n);
    for (int64_t i = 0; i < n; i++)
        if (lk_j_equal(j, items[i], what)) return true;
    return false;
}

int64_t lk_j_need_int(lk_j *j, lk_jvalue v, const char *what)
{
    if (v.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, v);
    if (!lk_j_is_integer(v)) lk_j_fail(j, "%s must be an integer, not '%s'", what, lk_j_type_name(v));
    return lk_j_as_int(v);
}

/* ------------------------------------------------------------------------------------------------ sorting */

/* Merges neighbours [begin, middle) and [middle, end) of items and keys; stable. */
static void merge(lk_j *j, lk_jvalue *items, lk_jvalue *keys, lk_jvalue *spare, int64_t begin, int64_t middle, int64_t end, bool reverse)
{
    int64_t n = end - begin, a = begin, b = middle;
    lk_j_step(j, n);
    for (int64_t i = 0; i < n; i++) {
        bool second = a == middle;
        if (a < middle && b < end) {
            int order = lk_j_order(j, keys[b], keys[a], "<");
            second = reverse ? order == 1 : order == -1;
        }
        int64_t from = second ? b++ : a++;
        spare[i] = items[from];
        spare[n + i] = keys[from];
    }
    memcpy(items + begin, spare, (size_t)n * sizeof *items);
    memcpy(keys + begin, spare + n, (size_t)n * sizeof *keys);
}

void lk_j_sort(lk_j *j, lk_jvalue *items, lk_jvalue *keys, int64_t n, bool reverse)
{
    lk_jvalue *spare = lk_j_alloc(j, 2 * (size_t)n * sizeof *spare);
    for (int64_t width = 1; width < n; width *= 2)
        for (int64_t i = 0; i + width < n; i += 2 * width)
            merge(j, items, keys, spare, i, i + width, i + 2 * width < n ? i + 2 * width : n, reverse);
}
