/* Expressions to values. */
#include <string.h>

#include "data/chat/jinja_internal.h"

void lk_j_take(lk_j *j, const char *what, const lk_jargs *args, int required, int n, const char *const *names, lk_jvalue *out)
{
    for (int i = 0; i < n; i++) out[i] = (lk_jvalue){0};
    if (args->n > n) lk_j_fail(j, "%s takes at most %d argument%s (%d given)", what, n, n == 1 ? "" : "s", args->n);
    for (int i = 0; i < args->n; i++) out[i] = args->values[i];
    for (int k = 0; k < args->n_keywords; k++) {
        const lk_jtext *name = args->keywords[k].name;
        int i = 0;
        while (i < n && !lk_j_text_is(name, names[i])) i++;
        if (i == n) lk_j_fail(j, "%s got an unexpected keyword argument '%.*s'", what, (int)name->n, name->p);
        if (out[i].kind) lk_j_fail(j, "%s got multiple values for argument '%s'", what, names[i]);
        out[i] = args->keywords[k].value;
    }
    for (int i = 0; i < required; i++)
        if (!out[i].kind) lk_j_fail(j, "%s is missing the argument '%s'", what, names[i]);
}

/* ------------------------------------------------------------------------------------------------ names */

static lk_jvalue look_up(lk_j *j, const lk_jtext *name)
{
    for (const lk_jscope *s = j->scope; s; s = s->parent)
        for (int i = 0; i < s->n; i++)
            if (s->variables[i].name == name) return s->variables[i].value;
    lk_jvalue global = lk_j_global(name);
    if (global.kind) return global;
    return lk_j_undefined(j, "'%.*s' is undefined", (int)(name->n < 100 ? name->n : 100), name->p);
}

/* ------------------------------------------------------------------------------------------------ calls */

static void add_keyword(lk_j *j, lk_jargs *out, lk_jkeyword *room, const lk_jtext *name, lk_jvalue value)
{
    for (int i = 0; i < out->n_keywords; i++)
        if (lk_j_text_equal(room[i].name, name)) lk_j_fail(j, "got multiple values for keyword argument '%.*s'", (int)name->n, name->p);
    room[out->n_keywords++] = (lk_jkeyword){name, value};
}

/* The arguments of a call, * and ** unfolded. */
static lk_jargs arguments(lk_j *j, const lk_jnode *first, int n)
{
    lk_jargs out = {0};
    if (n == 0) return out;
    lk_jvalue *given = lk_j_alloc(j, (size_t)n * sizeof *given);
    int64_t values = 0, keywords = 0, k = 0;
    for (const lk_jnode *a = first; a; a = a->next, k++) {
        given[k] = lk_j_eval(j, a->a);
        if (a->op == '*') {
            int64_t count;
            lk_jvalue *items = lk_j_items(j, given[k], &count);
            given[k] = lk_j_list(j, LK_J_TUPLE, count); /* a generator can be read once only */
            for (int64_t i = 0; i < count; i++) lk_j_push(j, given[k], items[i]);
            values += count;
        } else if (a->op == 'd') {
            if (given[k].kind != LK_J_DICT) lk_j_fail(j, "argument after ** must be a mapping, not %s", lk_j_type_name(given[k]));
            keywords += given[k].dict->n;
        } else {
            values += a->name == NULL;
            keywords += a->name != NULL;
        }
    }
    if (values + keywords > LK_J_MAX_RANGE) lk_j_fail(j, "too many arguments");
    lk_jvalue *out_values = lk_j_alloc(j, (size_t)values * sizeof *out_values);
    lk_jkeyword *out_keywords = lk_j_alloc(j, (size_t)keywords * sizeof *out_keywords);
    k = 0;
    for (const lk_jnode *a = first; a; a = a->next, k++) {
        if (a->op == '*') {
            for (int64_t i = 0; i < given[k].list->n; i++) out_values[out.n++] = given[k].list->items[i];
        } else if (a->op == 'd') {
            for (int64_t i = 0; i < given[k].dict->n; i++) {
                if (given[k].dict->keys[i].kind != LK_J_STRING) lk_j_fail(j, "keywords must be strings");
                add_keyword(j, &out, out_keywords, given[k].dict->keys[i].s, given[k].dict->values[i]);
            }
        } else if (a->name) {
            add_keyword(j, &out, out_keywords, a->name, given[k]);
        } else {
            out_values[out.n++] = given[k];
        }
    }
    out.values = out_values;
    out.keywords = out_keywords;
    return out;
}

static lk_jvalue call_joiner(lk_j *j, lk_jcycler *joiner, const lk_jargs *args)
{
    lk_j_take(j, "joiner", args, 0, 0, NULL, NULL);
    return joiner->at++ ? joiner->items[0] : lk_j_string(lk_j_literal(j, ""));
}

lk_jvalue lk_j_call(lk_j *j, lk_jvalue callee, const lk_jargs *args)
{
    switch ((lk_jkind)callee.kind) {
    case LK_J_MACRO: return lk_j_call_macro(j, callee.macro, args);
    case LK_J_FUNCTION: return lk_j_call_function(j, callee.function, args);
    case LK_J_METHOD: return lk_j_call_method(j, callee.method, args);
    case LK_J_JOINER: return call_joiner(j, callee.cycler, args);
    case LK_J_LOOP: lk_j_fail(j, "The loop must have the 'recursive' marker to be called recursively.");
    case LK_J_UNDEFINED: lk_j_fail_undefined(j, callee);
    default: lk_j_fail(j, "'%s' object is not callable", lk_j_type_name(callee));
    }
}

lk_jvalue lk_j_eval_call(lk_j *j, const lk_jnode *node, lk_jvalue caller)
{
    lk_jvalue callee = lk_j_eval(j, node->a);
    lk_jargs args = arguments(j, node->b, node->n);
    if (caller.kind) {
        lk_jkeyword *keywords = lk_j_alloc(j, ((size_t)args.n_keywords + 1) * sizeof *keywords);
        if (args.n_keywords) memcpy(keywords, args.keywords, (size_t)args.n_keywords * sizeof *keywords);
        args.keywords = keywords;
        add_keyword(j, &args, keywords, lk_j_literal(j, "caller"), caller);
    }
    j->line = node->line;
    return lk_j_call(j, callee, &args);
}

/* ------------------------------------------------------------------------------------------------ filters and tests */

lk_jvalue lk_j_apply_filter(lk_j *j, const lk_jtext *name, lk_jvalue v, const lk_jargs *args)
{
    lk_jfilter *filter = lk_j_filter(name);
    if (!filter) filter = lk_j_text_filter(name);
    if (filter) return filter(j, v, args);
    if (lk_j_known_filter(name)) lk_j_raise(j, LK_ERR_UNSUPPORTED, "the filter '%.*s' is not supported", (int)name->n, name->p);
    lk_j_fail(j, "no filter named '%.*s'", (int)name->n, name->p);
}

bool lk_j_apply_test(lk_j *j, const lk_jtext *name, lk_jvalue v, const lk_jargs *args)
{
    lk_jtest *test = lk_j_test(name);
    if (!test) lk_j_fail(j, "no test named '%.*s'", (int)name->n, name->p);
    return test(j, v, args);
}

lk_jvalue lk_j_eval_filters(lk_j *j, const lk_jnode *node, lk_jvalue input)
{
    lk_jvalue v = node->a ? node->a->type == LK_N_FILTER ? lk_j_eval_filters(j, node->a, input) : lk_j_eval(j, node->a) : input;
    lk_jargs args = arguments(j, node->b, node->n);
    j->line = node->line;
    return lk_j_apply_filter(j, node->name, v, &args);
}

static bool eval_test(lk_j *j, const lk_jnode *node)
{
    lk_jvalue v = lk_j_eval(j, node->a);
    lk_jargs args = arguments(j, node->b, node->n);
    j->line = node->line;
    return lk_j_apply_test(j, node->name, v, &args);
}

/* ------------------------------------------------------------------------------------------------ the rest */

static lk_jvalue eval_list(lk_j *j, const lk_jnode *node)
{
    lk_jvalue list = lk_j_list(j, node->type == LK_N_TUPLE ? LK_J_TUPLE : LK_J_LIST, node->n);
    for (const lk_jnode *item = node->a; item; item = item->next) lk_j_push(j, list, lk_j_eval(j, item));
    return list;
}

static lk_jvalue eval_dict(lk_j *j, const lk_jnode *node)
{
    lk_jvalue dict = lk_j_dict(j, node->n);
    for (const lk_jnode *pair = node->a; pair; pair = pair->next) {
        lk_jvalue key = lk_j_eval(j, pair->a);
        lk_j_put(j, dict, key, lk_j_eval(j, pair->b));
    }
    return dict;
}

static bool eval_compare(lk_j *j, const lk_jnode *node)
{
    lk_jvalue left = lk_j_eval(j, node->a);
    for (const lk_jnode *o = node->b; o; o = o->next) {
        lk_jvalue right = lk_j_eval(j, o->a);
        j->line = o->line;
        if (!lk_j_compare(j, o->op, left, right)) return false;
        left = right;
    }
    return true;
}

static lk_jvalue eval_concat(lk_j *j, const lk_jnode *node)
{
    lk_jbuilder b = {0};
    for (const lk_jnode *part = node->a; part; part = part->next) lk_j_add_text(j, &b, lk_j_str(j, lk_j_eval(j, part)));
    return lk_j_string(lk_j_built(j, &b));
}

static lk_jvalue eval_item(lk_j *j, const lk_jnode *node)
{
    lk_jvalue object = lk_j_eval(j, node->a), bounds[3] = {{0}};
    const lk_jnode *slice = node->b;
    if (slice->type != LK_N_SLICE) {
        lk_jvalue key = lk_j_eval(j, slice);
        j->line = node->line;
        return lk_j_item(j, object, key);
    }
    if (slice->a) bounds[0] = lk_j_eval(j, slice->a);
    if (slice->b) bounds[1] = lk_j_eval(j, slice->b);
    if (slice->c) bounds[2] = lk_j_eval(j, slice->c);
    j->line = node->line;
    return lk_j_slice(j, object, bounds[0], bounds[1], bounds[2]);
}

static lk_jvalue eval_binary(lk_j *j, const lk_jnode *node)
{
    lk_jvalue left = lk_j_eval(j, node->a), right = lk_j_eval(j, node->b);
    j->line = node->line;
    return lk_j_binary(j, node->op, left, right);
}

static lk_jvalue eval_node(lk_j *j, const lk_jnode *node)
{
    lk_jvalue v;
    switch ((lk_jtype)node->type) {
    case LK_N_CONST: return node->value;
    case LK_N_NAME: return look_up(j, node->name);
    case LK_N_LIST:
    case LK_N_TUPLE: return eval_list(j, node);
    case LK_N_DICT: return eval_dict(j, node);
    case LK_N_COND:
        if (lk_j_truth(lk_j_eval(j, node->b))) return lk_j_eval(j, node->a);
        if (node->c) return lk_j_eval(j, node->c);
        return lk_j_undefined(j, "the inline if-expression on line %d evaluated to false and no else section was defined", node->line);
    case LK_N_OR: v = lk_j_eval(j, node->a); return lk_j_truth(v) ? v : lk_j_eval(j, node->b);
    case LK_N_AND: v = lk_j_eval(j, node->a); return lk_j_truth(v) ? lk_j_eval(j, node->b) : v;
    case LK_N_NOT: return lk_j_bool(!lk_j_truth(lk_j_eval(j, node->a)));
    case LK_N_COMPARE: return lk_j_bool(eval_compare(j, node));
    case LK_N_BINARY: return eval_binary(j, node);
    case LK_N_CONCAT: return eval_concat(j, node);
    case LK_N_UNARY: v = lk_j_eval(j, node->a); return lk_j_unary(j, node->op, v);
    case LK_N_ATTRIBUTE: v = lk_j_eval(j, node->a); return lk_j_attribute(j, v, node->name);
    case LK_N_ITEM: return eval_item(j, node);
    case LK_N_CALL: return lk_j_eval_call(j, node, (lk_jvalue){0});
    case LK_N_FILTER: return lk_j_eval_filters(j, node, (lk_jvalue){0});
    case LK_N_TEST: return lk_j_bool(eval_test(j, node));
    default: lk_j_raise(j, LK_ERR_INTERNAL, "a node of type %d is no expression", node->type);
    }
}

lk_jvalue lk_j_eval(lk_j *j, const lk_jnode *node)
{
    lk_j_enter(j);
    j->line = node->line;
    lk_jvalue v = eval_node(j, node);
    lk_j_leave(j);
    return v;
}
