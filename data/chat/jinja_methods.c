/* The global functions, and the methods of dicts, lists and the rest. As in the immutable sandbox, what would change a value is hidden. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "data/chat/jinja_internal.h"

/* ------------------------------------------------------------------------------------------------ methods */

enum { M_GET, M_ITEMS, M_KEYS, M_VALUES, M_COPY, M_COUNT, M_INDEX, M_CYCLE, M_CHANGED, M_NEXT, M_RESET, M_IS_INTEGER, M_UNKNOWN, M_HIDDEN };

static const struct {
    const char *name;
    lk_jkind kind;
    int id;
} methods[] = {
    {"get", LK_J_DICT, M_GET},
    {"items", LK_J_DICT, M_ITEMS},
    {"keys", LK_J_DICT, M_KEYS},
    {"values", LK_J_DICT, M_VALUES},
    {"copy", LK_J_DICT, M_COPY},
    {"fromkeys", LK_J_DICT, M_UNKNOWN},
    {"clear", LK_J_DICT, M_HIDDEN},
    {"pop", LK_J_DICT, M_HIDDEN},
    {"popitem", LK_J_DICT, M_HIDDEN},
    {"setdefault", LK_J_DICT, M_HIDDEN},
    {"update", LK_J_DICT, M_HIDDEN},
    {"count", LK_J_LIST, M_COUNT},
    {"index", LK_J_LIST, M_INDEX},
    {"copy", LK_J_LIST, M_COPY},
    {"append", LK_J_LIST, M_HIDDEN},
    {"clear", LK_J_LIST, M_HIDDEN},
    {"extend", LK_J_LIST, M_HIDDEN},
    {"insert", LK_J_LIST, M_HIDDEN},
    {"pop", LK_J_LIST, M_HIDDEN},
    {"remove", LK_J_LIST, M_HIDDEN},
    {"reverse", LK_J_LIST, M_HIDDEN},
    {"sort", LK_J_LIST, M_HIDDEN},
    {"count", LK_J_TUPLE, M_COUNT},
    {"index", LK_J_TUPLE, M_INDEX},
    {"count", LK_J_RANGE, M_COUNT},
    {"index", LK_J_RANGE, M_INDEX},
    {"cycle", LK_J_LOOP, M_CYCLE},
    {"changed", LK_J_LOOP, M_CHANGED},
    {"next", LK_J_CYCLER, M_NEXT},
    {"reset", LK_J_CYCLER, M_RESET},
    {"is_integer", LK_J_FLOAT, M_IS_INTEGER},
    {"hex", LK_J_FLOAT, M_UNKNOWN},
    {"bit_length", LK_J_INT, M_UNKNOWN},
};

static lk_jvalue bound_method(lk_j *j, lk_jmethod method)
{
    lk_jmethod *m = lk_j_alloc(j, sizeof *m);
    *m = method;
    return (lk_jvalue){.kind = LK_J_METHOD, .method = m};
}

lk_jvalue lk_j_find_method(lk_j *j, lk_jvalue self, const lk_jtext *name)
{
    if (self.kind == LK_J_STRING) {
        lk_jstring_method *method = lk_j_string_method(name->p, name->n);
        return method ? bound_method(j, (lk_jmethod){.self = self, .string = method}) : (lk_jvalue){0};
    }
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (methods[i].kind != (lk_jkind)self.kind || !lk_j_text_is(name, methods[i].name)) continue;
        if (methods[i].id == M_HIDDEN)
            return lk_j_undefined(j, "access to attribute '%s' of '%s' object is unsafe", methods[i].name, lk_j_type_name(self));
        return bound_method(j, (lk_jmethod){.self = self, .name = methods[i].name, .id = methods[i].id});
    }
    if (self.kind == LK_J_RANGE) {
        if (lk_j_text_is(name, "start")) return lk_j_int(self.range->start);
        if (lk_j_text_is(name, "stop")) return lk_j_int(self.range->stop);
        if (lk_j_text_is(name, "step")) return lk_j_int(self.range->step);
    }
    return (lk_jvalue){0};
}

static lk_jvalue view(lk_j *j, lk_jvalue dict, int id)
{
    lk_jview *v = lk_j_alloc(j, sizeof *v);
    *v = (lk_jview){dict.dict, id == M_ITEMS ? LK_J_ITEMS : id == M_KEYS ? LK_J_KEYS : LK_J_VALUES};
    return (lk_jvalue){.kind = LK_J_VIEW, .view = v, .origin = dict.origin};
}

static lk_jvalue get(lk_j *j, lk_jvalue self, const lk_jargs *args)
{
    lk_jvalue a[2];
    if (args->n_keywords) lk_j_fail(j, "get() takes no keyword arguments");
    lk_j_take(j, "get", args, 1, 2, (const char *const[]){"key", "default"}, a);
    lk_j_check_hashable(j, a[0]);
    const lk_jvalue *v = lk_j_get(j, self.dict, a[0]);
    return v ? *v : a[1].kind ? a[1] : lk_j_none;
}

/* A copy shares everything: nothing can change it. */
static lk_jvalue copy(lk_j *j, lk_jvalue self, const lk_jargs *args)
{
    lk_j_take(j, "copy", args, 0, 0, NULL, NULL);
    return self;
}

static lk_jvalue count_or_index(lk_j *j, lk_jvalue self, const lk_jargs *args, bool index)
{
    lk_jvalue a[1];
    int64_t n, count = 0;
    lk_j_take(j, index ? "index" : "count", args, 1, 1, (const char *const[]){"value"}, a);
    lk_jvalue *items = lk_j_items(j, self, &n);
    for (int64_t i = 0; i < n; i++)
        if (lk_j_equal(j, items[i], a[0])) {
            if (index) return lk_j_int(i);
            count++;
        }
    if (index) lk_j_fail(j, "the value is not in the %s", lk_j_type_name(self));
    return lk_j_int(count);
}

static lk_jvalue changed(lk_j *j, lk_jloop *loop, const lk_jargs *args)
{
    lk_jvalue now = lk_j_list(j, LK_J_TUPLE, args->n);
    for (int i = 0; i < args->n; i++) lk_j_push(j, now, args->values[i]);
    bool differs = !loop->changed.kind || !lk_j_equal(j, loop->changed, now);
    loop->changed = now;
    return lk_j_bool(differs);
}

static lk_jvalue next(lk_j *j, lk_jcycler *cycler, const lk_jargs *args)
{
    lk_j_take(j, "next", args, 0, 0, NULL, NULL);
    lk_jvalue v = cycler->items[cycler->at];
    cycler->at = (cycler->at + 1) % cycler->n;
    return v;
}

lk_jvalue lk_j_call_method(lk_j *j, const lk_jmethod *m, const lk_jargs *args)
{
    if (m->string) {
        lk_jvalue v = m->string(j, m->self.s, args);
        if (v.kind == LK_J_STRING) v.markup = m->self.markup;
        return v;
    }
    switch (m->id) {
    case M_GET: return get(j, m->self, args);
    case M_ITEMS:
    case M_KEYS:
    case M_VALUES: lk_j_take(j, m->name, args, 0, 0, NULL, NULL); return view(j, m->self, m->id);
    case M_COPY: return copy(j, m->self, args);
    case M_COUNT:
    case M_INDEX: return count_or_index(j, m->self, args, m->id == M_INDEX);
    case M_CYCLE:
        if (args->n == 0) lk_j_fail(j, "no items for cycling given");
        return args->values[m->self.loop->index0 % args->n];
    case M_CHANGED: return changed(j, m->self.loop, args);
    case M_NEXT: return next(j, m->self.cycler, args);
    case M_RESET: m->self.cycler->at = 0; return lk_j_none;
    case M_IS_INTEGER: return lk_j_bool(isfinite(m->self.f) && floor(m->self.f) == m->self.f);
    default: lk_j_raise(j, LK_ERR_UNSUPPORTED, "the method %s of %s is not supported", m->name, lk_j_type_name(m->self));
    }
}

/* ------------------------------------------------------------------------------------------------ functions */

struct lk_jfunction {
    const char *name;
    lk_jvalue (*call)(lk_j *j, const lk_jargs *args);
};

static lk_jvalue f_raise_exception(lk_j *j, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "raise_exception", args, 1, 1, (const char *const[]){"message"}, a);
    const lk_jtext *t = lk_j_str(j, a[0]);
    lk_j_raise(j, LK_ERR_ARGUMENT, "%.*s", (int)(t->n < 500 ? t->n : 500), t->p);
}

static lk_jvalue f_strftime_now(lk_j *j, const lk_jargs *args)
{
    lk_jvalue a[1];
    char text[512], format[256];
    struct tm tm;
    time_t now = (time_t)j->now;
    lk_j_take(j, "strftime_now", args, 1, 1, (const char *const[]){"format"}, a);
    if (a[0].kind != LK_J_STRING || a[0].s->n + 2 > sizeof format) lk_j_fail(j, "strftime_now wants a short format");
    memcpy(format, a[0].s->p, a[0].s->n);
    format[a[0].s->n] = ' '; /* strftime returns 0 for an empty text and for too little room alike */
    format[a[0].s->n + 1] = 0;
    size_t n = localtime_r(&now, &tm) ? strftime(text, sizeof text, format, &tm) : 0; // NOLINT: the format is the template's
    if (n == 0) lk_j_fail(j, "strftime_now: a format that cannot be filled in");
    char *copy = lk_j_alloc(j, n);
    memcpy(copy, text, n - 1);
    return lk_j_string(lk_j_text(j, copy, n - 1, LK_ORIGIN_TEMPLATE));
}

static lk_jvalue f_range(lk_j *j, const lk_jargs *args)
{
    lk_jvalue a[3];
    int64_t v[3] = {0, 0, 1};
    if (args->n_keywords) lk_j_fail(j, "range() takes no keyword arguments");
    lk_j_take(j, "range", args, 1, 3, (const char *const[]){"start", "stop", "step"}, a);
    for (int i = 0; i < args->n; i++) v[args->n == 1 ? 1 : i] = lk_j_need_int(j, a[i], "range's argument");
    if (v[2] == 0) lk_j_fail(j, "range() arg 3 must not be zero");
    lk_jrange *r = lk_j_alloc(j, sizeof *r);
    __int128 span = v[2] > 0 ? (__int128)v[1] - v[0] : (__int128)v[0] - v[1], step = v[2] > 0 ? v[2] : -(__int128)v[2];
    __int128 n = span <= 0 ? 0 : (span + step - 1) / step;
    if (n > LK_J_MAX_RANGE) lk_j_fail(j, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", LK_J_MAX_RANGE);
    *r = (lk_jrange){v[0], v[1], v[2], (int64_t)n};
    return (lk_jvalue){.kind = LK_J_RANGE, .range = r};
}

/* dict(mapping or pairs, name=value, ...) */
static lk_jvalue f_dict(lk_j *j, const lk_jargs *args)
{
    lk_jvalue d = lk_j_dict(j, args->n_keywords);
    if (args->n > 1) lk_j_fail(j, "dict expected at most 1 argument, got %d", args->n);
    if (args->n && args->values[0].kind == LK_J_DICT) {
        const lk_jdict *from = args->values[0].dict;
        for (int64_t i = 0; i < from->n; i++) lk_j_put(j, d, from->keys[i], from->values[i]);
    } else if (args->n) {
        int64_t n, two;
        lk_jvalue *items = lk_j_items(j, args->values[0], &n);
        for (int64_t i = 0; i < n; i++) {
            lk_jvalue *pair = lk_j_items(j, items[i], &two);
            if (two != 2)
                lk_j_fail(j, "dictionary update sequence element #%lld has length %lld; 2 is required", (long long)i, (long long)two);
            lk_j_put(j, d, pair[0], pair[1]);
        }
    }
    for (int i = 0; i < args->n_keywords; i++) lk_j_put(j, d, lk_j_string(args->keywords[i].name), args->keywords[i].value);
    return d;
}

static lk_jvalue f_namespace(lk_j *j, const lk_jargs *args)
{
    lk_jvalue space = f_dict(j, args);
    for (int64_t i = 0; i < space.dict->n; i++) {
        lk_jvalue key = space.dict->keys[i];
        if (key.kind == LK_J_STRING && key.s->n && key.s->p[0] == '_')
            lk_j_fail(j, "a namespace cannot hold names that begin with an underscore");
    }
    space.kind = LK_J_NAMESPACE;
    return space;
}

static lk_jvalue f_cycler(lk_j *j, const lk_jargs *args)
{
    lk_jcycler *c = lk_j_alloc(j, sizeof *c);
    if (args->n_keywords) lk_j_fail(j, "cycler takes no keyword arguments");
    if (args->n == 0) lk_j_fail(j, "at least one item has to be provided");
    *c = (lk_jcycler){.items = lk_j_alloc(j, (size_t)args->n * sizeof *c->items), .n = args->n};
    memcpy(c->items, args->values, (size_t)args->n * sizeof *c->items);
    return (lk_jvalue){.kind = LK_J_CYCLER, .cycler = c};
}

static lk_jvalue f_joiner(lk_j *j, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_jcycler *c = lk_j_alloc(j, sizeof *c);
    lk_j_take(j, "joiner", args, 0, 1, (const char *const[]){"sep"}, a);
    c->items = lk_j_alloc(j, sizeof *c->items);
    c->items[0] = a[0].kind ? a[0] : lk_j_string(lk_j_literal(j, ", "));
    return (lk_jvalue){.kind = LK_J_JOINER, .cycler = c};
}

static lk_jvalue f_lipsum(lk_j *j, const lk_jargs *args)
{
    (void)args;
    lk_j_raise(j, LK_ERR_UNSUPPORTED, "lipsum is not supported");
}

lk_jvalue lk_j_call_function(lk_j *j, const lk_jfunction *function, const lk_jargs *args) { return function->call(j, args); }

lk_jvalue lk_j_global(const lk_jtext *name)
{
    static const lk_jfunction functions[] = {
        {"raise_exception", f_raise_exception},
        {"strftime_now", f_strftime_now},
        {"namespace", f_namespace},
        {"range", f_range},
        {"dict", f_dict},
        {"cycler", f_cycler},
        {"joiner", f_joiner},
        {"lipsum", f_lipsum},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (lk_j_text_is(name, functions[i].name)) return (lk_jvalue){.kind = LK_J_FUNCTION, .function = &functions[i]};
    return (lk_jvalue){0};
}
