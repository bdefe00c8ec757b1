/* Operators, attributes, subscripts and slices, with Python's rules for each pair of types. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "data/chat/jinja_internal.h"

static _Noreturn void unsupported_operands(lk_j *j, const char *op, lk_jvalue a, lk_jvalue b)
{
    lk_j_fail(j, "unsupported operand type(s) for %s: '%s' and '%s'", op, lk_j_type_name(a), lk_j_type_name(b));
}

static _Noreturn void too_large(lk_j *j) { lk_j_raise(j, LK_ERR_UNSUPPORTED, "a whole number beyond 64 bits"); }

/* ------------------------------------------------------------------------------------------------ arithmetic */

/* Python's // and %: towards minus infinity, the remainder with the divisor's sign. */
static int64_t floor_div(lk_j *j, int64_t a, int64_t b)
{
    if (b == 0) lk_j_fail(j, "integer division or modulo by zero");
    if (a == INT64_MIN && b == -1) too_large(j);
    int64_t q = a / b;
    return q - ((a % b != 0) && ((a < 0) != (b < 0)));
}

static double float_mod(lk_j *j, double a, double b)
{
    if (b == 0) lk_j_fail(j, "float modulo");
    double m = fmod(a, b);
    if (m != 0 ? (m < 0) != (b < 0) : false) m += b;
    return m != 0 ? m : copysign(0, b);
}

static double float_floor_div(lk_j *j, double a, double b)
{
    if (b == 0) lk_j_fail(j, "float floor division by zero");
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0 && (m < 0) != (b < 0)) q -= 1;
    if (q == 0) return copysign(0, a / b);
    double f = floor(q);
    return q - f > 0.5 ? f + 1 : f;
}

static lk_jvalue power(lk_j *j, lk_jvalue a, lk_jvalue b)
{
    if (lk_j_is_integer(a) && lk_j_is_integer(b) && lk_j_as_int(b) >= 0) {
        int64_t base = lk_j_as_int(a), result = 1;
        if (base == 0 || base == 1 || base == -1)
            return lk_j_int(lk_j_as_int(b) == 0 ? 1 : base == -1 ? (lk_j_as_int(b) % 2 ? -1 : 1) : base);
        for (int64_t e = lk_j_as_int(b); e > 0; e--)
            if (__builtin_mul_overflow(result, base, &result)) too_large(j);
        return lk_j_int(result);
    }
    double x = lk_j_as_float(a), y = lk_j_as_float(b);
    if (x == 0 && y < 0) lk_j_fail(j, "0.0 cannot be raised to a negative power");
    if (x < 0 && y != floor(y)) lk_j_raise(j, LK_ERR_UNSUPPORTED, "complex numbers are not supported");
    double z = pow(x, y);
    if (isinf(z) && !isinf(x) && !isinf(y)) lk_j_fail(j, "the result of ** is too large");
    return lk_j_float(z);
}

static lk_jvalue integers(lk_j *j, char op, int64_t a, int64_t b)
{
    int64_t r;
    switch (op) {
    case '+':
        if (__builtin_add_overflow(a, b, &r)) too_large(j);
        return lk_j_int(r);
    case '-':
        if (__builtin_sub_overflow(a, b, &r)) too_large(j);
        return lk_j_int(r);
    case '*':
        if (__builtin_mul_overflow(a, b, &r)) too_large(j);
        return lk_j_int(r);
    case LK_OP_FLOOR: return lk_j_int(floor_div(j, a, b));
    case '%': return lk_j_int(a - floor_div(j, a, b) * b);
    default: /* '/' */
        if (b == 0) lk_j_fail(j, "division by zero");
        return lk_j_float((double)a / (double)b);
    }
}

static lk_jvalue numbers(lk_j *j, char op, lk_jvalue a, lk_jvalue b)
{
    if (op == LK_OP_POW) return power(j, a, b);
    if (lk_j_is_integer(a) && lk_j_is_integer(b)) return integers(j, op, lk_j_as_int(a), lk_j_as_int(b));
    double x = lk_j_as_float(a), y = lk_j_as_float(b);
    switch (op) {
    case '+': return lk_j_float(x + y);
    case '-': return lk_j_float(x - y);
    case '*': return lk_j_float(x * y);
    case LK_OP_FLOOR: return lk_j_float(float_floor_div(j, x, y));
    case '%': return lk_j_float(float_mod(j, x, y));
    default:
        if (y == 0) lk_j_fail(j, "float division by zero");
        return lk_j_float(x / y);
    }
}

/* ------------------------------------------------------------------------------------------------ sequences */

lk_jvalue lk_j_escape(lk_j *j, lk_jvalue v)
{
    if (v.kind == LK_J_STRING && v.markup) return v;
    static const struct {
        char c;
        const char *as;
    } escapes[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&#34;"}, {'\'', "&#39;"}};
    const lk_jtext *t = lk_j_str(j, v);
    lk_jbuilder b = {0};
    size_t done = 0;
    for (size_t i = 0; i < t->n; i++)
        for (size_t k = 0; k < sizeof escapes / sizeof *escapes; k++)
            if (t->p[i] == escapes[k].c) {
                lk_j_add_part(j, &b, t, done, i);
                lk_j_add(j, &b, escapes[k].as, strlen(escapes[k].as), lk_j_origin_at(t, i));
                done = i + 1;
            }
    lk_j_add_part(j, &b, t, done, t->n);
    lk_jvalue out = lk_j_string(lk_j_built(j, &b));
    out.markup = true;
    return out;
}

static lk_jvalue concatenate(lk_j *j, lk_jvalue a, lk_jvalue b)
{
    bool markup = a.markup || b.markup;
    if (markup) a = lk_j_escape(j, a), b = lk_j_escape(j, b);
    lk_jbuilder out = {0};
    lk_j_add_text(j, &out, a.s);
    lk_j_add_text(j, &out, b.s);
    lk_jvalue v = lk_j_string(lk_j_built(j, &out));
    v.markup = markup;
    return v;
}

static lk_jvalue join_lists(lk_j *j, lk_jvalue a, lk_jvalue b)
{
    lk_jvalue list = lk_j_list(j, (lk_jkind)a.kind, a.list->n + b.list->n);
    lk_j_step(j, (a.list->n + b.list->n) / 4);
    for (int64_t i = 0; i < a.list->n; i++) lk_j_push(j, list, a.list->items[i]);
    for (int64_t i = 0; i < b.list->n; i++) lk_j_push(j, list, b.list->items[i]);
    return list;
}

static lk_jvalue repeat(lk_j *j, lk_jvalue v, int64_t times)
{
    if (times < 0) times = 0;
    if (v.kind == LK_J_STRING) {
        lk_jbuilder b = {0};
        for (int64_t i = 0; i < times && v.s->n; i++) lk_j_step(j, 1), lk_j_add_text(j, &b, v.s);
        lk_jvalue out = lk_j_string(lk_j_built(j, &b));
        out.markup = v.markup;
        return out;
    }
    lk_jvalue list = lk_j_list(j, (lk_jkind)v.kind, 0);
    for (int64_t i = 0; i < times && v.list->n; i++) {
        lk_j_step(j, v.list->n);
        for (int64_t k = 0; k < v.list->n; k++) lk_j_push(j, list, v.list->items[k]);
    }
    return list;
}

static bool repeats(lk_jvalue v) { return v.kind == LK_J_STRING || v.kind == LK_J_LIST || v.kind == LK_J_TUPLE; }

lk_jvalue lk_j_binary(lk_j *j, char op, lk_jvalue a, lk_jvalue b)
{
    const char name[3] = {op == LK_OP_POW ? '*' : op == LK_OP_FLOOR ? '/' : op, op == LK_OP_POW ? '*' : op == LK_OP_FLOOR ? '/' : 0, 0};
    if (op == '%' && a.kind == LK_J_STRING) return lk_j_percent(j, a.s, b);
    if (a.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, a);
    if (b.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, b);
    if (lk_j_is_number(a) && lk_j_is_number(b)) return numbers(j, op, a, b);
    if (op == '+' && a.kind == LK_J_STRING && b.kind == LK_J_STRING) return concatenate(j, a, b);
    if (op == '+' && a.kind == b.kind && (a.kind == LK_J_LIST || a.kind == LK_J_TUPLE)) return join_lists(j, a, b);
    if (op == '*' && repeats(a) && lk_j_is_integer(b)) return repeat(j, a, lk_j_as_int(b));
    if (op == '*' && repeats(b) && lk_j_is_integer(a)) return repeat(j, b, lk_j_as_int(a));
    if (op == '+' && a.kind == LK_J_STRING) lk_j_fail(j, "can only concatenate str (not \"%s\") to str", lk_j_type_name(b));
    unsupported_operands(j, name, a, b);
}

lk_jvalue lk_j_unary(lk_j *j, char op, lk_jvalue a)
{
    if (a.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, a);
    if (!lk_j_is_number(a)) lk_j_fail(j, "bad operand type for unary %c: '%s'", op, lk_j_type_name(a));
    if (a.kind == LK_J_FLOAT) return lk_j_float(op == '-' ? -a.f : a.f);
    int64_t i = lk_j_as_int(a);
    if (op == '-' && i == INT64_MIN) too_large(j);
    return lk_j_int(op == '-' ? -i : i);
}

bool lk_j_compare(lk_j *j, char op, lk_jvalue a, lk_jvalue b)
{
    switch (op) {
    case LK_OP_EQ: return lk_j_equal(j, a, b);
    case LK_OP_NE: return !lk_j_equal(j, a, b);
    case LK_OP_IN: return lk_j_contains(j, b, a);
    case LK_OP_NOT_IN: return !lk_j_contains(j, b, a);
    case '<': return lk_j_order(j, a, b, "<") == -1;
    case '>': return lk_j_order(j, a, b, ">") == 1;
    case LK_OP_LE: {
        int order = lk_j_order(j, a, b, "<=");
        return order == -1 || order == 0;
    }
    default: {
        int order = lk_j_order(j, a, b, ">=");
        return order == 1 || order == 0;
    }
    }
}

/* ------------------------------------------------------------------------------------------------ attributes and subscripts */

static lk_jvalue loop_attribute(lk_j *j, const lk_jloop *l, const lk_jtext *name)
{
    if (lk_j_text_is(name, "index")) return lk_j_int(l->index0 + 1);
    if (lk_j_text_is(name, "index0")) return lk_j_int(l->index0);
    if (lk_j_text_is(name, "revindex")) return lk_j_int(l->n - l->index0);
    if (lk_j_text_is(name, "revindex0")) return lk_j_int(l->n - l->index0 - 1);
    if (lk_j_text_is(name, "first")) return lk_j_bool(l->index0 == 0);
    if (lk_j_text_is(name, "last")) return lk_j_bool(l->index0 + 1 == l->n);
    if (lk_j_text_is(name, "length")) return lk_j_int(l->n);
    if (lk_j_text_is(name, "depth")) return lk_j_int(l->depth0 + 1);
    if (lk_j_text_is(name, "depth0")) return lk_j_int(l->depth0);
    if (lk_j_text_is(name, "previtem")) return l->index0 > 0 ? l->items[l->index0 - 1] : lk_j_undefined(j, "there is no previous item");
    if (lk_j_text_is(name, "nextitem")) return l->index0 + 1 < l->n ? l->items[l->index0 + 1] : lk_j_undefined(j, "there is no next item");
    return (lk_jvalue){0};
}

static lk_jvalue macro_attribute(lk_j *j, const lk_jnode *node, const lk_jtext *name)
{
    if (lk_j_text_is(name, "name")) return node->name ? lk_j_string(node->name) : lk_j_none;
    if (!lk_j_text_is(name, "arguments")) return (lk_jvalue){0};
    lk_jvalue names = lk_j_list(j, LK_J_TUPLE, node->n);
    for (const lk_jnode *a = node->a; a; a = a->next) lk_j_push(j, names, lk_j_string(a->name));
    return names;
}

/* What Python's getattr finds: methods and such. ABSENT: nothing. */
static lk_jvalue python_attribute(lk_j *j, lk_jvalue object, const lk_jtext *name)
{
    lk_jvalue found = {0};
    if (object.kind == LK_J_LOOP) found = loop_attribute(j, object.loop, name);
    if (object.kind == LK_J_MACRO) found = macro_attribute(j, object.macro->node, name);
    if (object.kind == LK_J_NAMESPACE) {
        const lk_jvalue *v = lk_j_get_name(object.dict, name);
        if (v) found = *v;
    }
    if (object.kind == LK_J_CYCLER && lk_j_text_is(name, "current") && object.cycler->n) found = object.cycler->items[object.cycler->at];
    return found.kind ? found : lk_j_find_method(j, object, name);
}

static lk_jvalue no_attribute(lk_j *j, lk_jvalue object, const lk_jtext *name)
{
    return lk_j_undefined(j, "'%s object' has no attribute '%.*s'", lk_j_type_name(object), (int)(name->n < 100 ? name->n : 100), name->p);
}

/* object.name: an attribute, else a key. */
lk_jvalue lk_j_attribute(lk_j *j, lk_jvalue object, const lk_jtext *name)
{
    if (object.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, object);
    lk_jvalue found = python_attribute(j, object, name);
    if (found.kind) return found;
    const lk_jvalue *value = object.kind == LK_J_DICT ? lk_j_get_name(object.dict, name) : NULL;
    return value ? *value : no_attribute(j, object, name);
}

static lk_jvalue char_of(lk_j *j, lk_jvalue v, int64_t index)
{
    int length;
    size_t byte = lk_j_byte_of(j, v.s, index);
    lk_j_char_at(v.s, byte, &length);
    lk_jvalue c = lk_j_string(lk_j_part(j, v.s, byte, byte + (size_t)length));
    c.markup = v.markup;
    return c;
}

/* object[key]: a key or index, else an attribute. */
lk_jvalue lk_j_item(lk_j *j, lk_jvalue object, lk_jvalue key)
{
    if (object.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, object);
    bool sequence = object.kind == LK_J_STRING || object.kind == LK_J_LIST || object.kind == LK_J_TUPLE || object.kind == LK_J_RANGE;
    if (object.kind == LK_J_DICT && key.kind != LK_J_LIST && key.kind != LK_J_DICT) {
        const lk_jvalue *value = lk_j_get(j, object.dict, key);
        if (value) return *value;
    } else if (sequence && lk_j_is_integer(key)) {
        int64_t n = lk_j_length(j, object), i = lk_j_as_int(key);
        if (i < 0) i += n;
        if (i >= 0 && i < n) {
            if (object.kind == LK_J_STRING) return char_of(j, object, i);
            if (object.kind == LK_J_RANGE) return lk_j_int(object.range->start + i * object.range->step);
            return object.list->items[i];
        }
    }
    if (key.kind != LK_J_STRING) {
        lk_jbuilder b = {0};
        if (lk_j_is_number(key)) lk_j_repr(j, &b, key);
        return lk_j_undefined(j, "%s object has no element %.*s", lk_j_type_name(object), (int)b.n, b.p ? b.p : "");
    }
    lk_jvalue found = python_attribute(j, object, key.s);
    return found.kind ? found : no_attribute(j, object, key.s);
}

/* ------------------------------------------------------------------------------------------------ slices */

static bool left_out(lk_jvalue v) { return v.kind == LK_J_ABSENT || v.kind == LK_J_NONE; }

static int64_t bound(lk_j *j, lk_jvalue v, int64_t n, int64_t low, int64_t high, int64_t fallback)
{
    if (left_out(v)) return fallback;
    int64_t i = lk_j_need_int(j, v, "a slice index");
    if (i < 0) i = i < -n ? -1 : i + n; /* -1: before the first */
    return i < low ? low : i > high ? high : i;
}

static lk_jvalue slice_text(lk_j *j, lk_jvalue v, int64_t start, int64_t step, int64_t n)
{
    const lk_jtext *t = v.s;
    lk_jvalue out;
    if (step == 1) {
        size_t begin = lk_j_byte_of(j, t, start);
        out = lk_j_string(lk_j_part(j, t, begin, n ? lk_j_byte_of(j, t, start + n) : begin));
    } else { /* where every character begins, then pick */
        size_t *at = lk_j_alloc(j, ((size_t)lk_j_chars(j, t) + 1) * sizeof *at), count = 0;
        for (size_t i = 0; i < t->n; i++)
            if (((unsigned char)t->p[i] & 0xc0) != 0x80) at[count++] = i;
        at[count] = t->n;
        lk_jbuilder b = {0};
        lk_j_step(j, n / 4);
        for (int64_t i = 0; i < n; i++) lk_j_add_part(j, &b, t, at[start + i * step], at[start + i * step + 1]);
        out = lk_j_string(lk_j_built(j, &b));
    }
    out.markup = v.markup;
    return out;
}

lk_jvalue lk_j_slice(lk_j *j, lk_jvalue object, lk_jvalue start, lk_jvalue stop, lk_jvalue step_value)
{
    if (object.kind == LK_J_UNDEFINED) lk_j_fail_undefined(j, object);
    int64_t step = left_out(step_value) ? 1 : lk_j_need_int(j, step_value, "a slice index"), n = lk_j_length(j, object);
    bool sequence = object.kind == LK_J_STRING || object.kind == LK_J_LIST || object.kind == LK_J_TUPLE || object.kind == LK_J_RANGE;
    if (!sequence || n < 0) lk_j_fail(j, "'%s' object cannot be sliced", lk_j_type_name(object));
    if (step == 0) lk_j_fail(j, "slice step cannot be zero");
    if (step > n) step = n + 1; /* the same picks, and no overflow */
    if (step < -n) step = -n - 1;
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    int64_t begin = bound(j, start, n, low, high, step < 0 ? high : low), end = bound(j, stop, n, low, high, step < 0 ? low : high);
    /* NOLINTNEXTLINE(clang-analyzer-core.DivideZero): step is not 0, n is not negative */
    int64_t count = step > 0 ? (end > begin ? (end - begin + step - 1) / step : 0) : (begin > end ? (begin - end - step - 1) / -step : 0);
    if (object.kind == LK_J_STRING) return slice_text(j, object, begin, step, count);
    if (object.kind == LK_J_RANGE) {
        lk_jrange *r = lk_j_alloc(j, sizeof *r);
        const lk_jrange *o = object.range;
        *r = (lk_jrange){o->start + begin * o->step, o->start + end * o->step, o->step * step, count};
        return (lk_jvalue){.kind = LK_J_RANGE, .range = r};
    }
    lk_jvalue list = lk_j_list(j, (lk_jkind)object.kind, count);
    list.origin = object.origin;
    lk_j_step(j, count / 4);
    for (int64_t i = 0; i < count; i++) lk_j_push(j, list, object.list->items[begin + i * step]);
    return list;
}
