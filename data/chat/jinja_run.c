/* Statements, macros, and the two ways in: compile and render.
 *
 * Names live in scopes that are chained: a loop's every turn, a macro's call, with, call and filter blocks have one of their own, an if has
 * none. A macro keeps the scope it was defined in, so it sees what that holds when it is called, as jinja2's closures do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/chat/jinja_internal.h"

typedef enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } flow;
static flow run_body(lk_j *j, const lk_jnode *node);

/* ------------------------------------------------------------------------------------------------ limits and errors */

_Noreturn static void leave_with(lk_j *j, lk_status status, const char *format, va_list args)
{
    char text[700];
    vsnprintf(text, sizeof text, format, args);
    j->status = lk_fail(j->err, status, "%s: line %d: %s", j->template_name, j->line, text);
    longjmp(j->jump, 1);
}

_Noreturn void lk_j_raise(lk_j *j, lk_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    leave_with(j, status, format, args);
}

_Noreturn void lk_j_fail(lk_j *j, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    leave_with(j, LK_ERR_FORMAT, format, args);
}

void *lk_j_alloc(lk_j *j, size_t size)
{
    void *p = NULL;
    if (size < j->memory) p = lk_arena_alloc(j->arena, size);
    if (!p) lk_j_raise(j, LK_ERR_MEMORY, "the template needs too much memory");
    j->memory -= size;
    return p;
}

void lk_j_step(lk_j *j, int64_t n)
{
    j->steps -= n;
    if (j->steps < 0) lk_j_raise(j, LK_ERR_MEMORY, "the template does not come to an end: stopped after too many steps");
}

void lk_j_enter(lk_j *j)
{
    lk_j_step(j, 1);
    if (++j->depth > LK_J_MAX_DEPTH) lk_j_raise(j, LK_ERR_MEMORY, "nested deeper than %d", LK_J_MAX_DEPTH);
}

/* ------------------------------------------------------------------------------------------------ scopes */

static lk_jscope *open_scope(lk_j *j, lk_jscope *parent)
{
    lk_jscope *s = lk_j_alloc(j, sizeof *s);
    s->parent = parent;
    return s;
}

/* An empty scope for the next turn of a loop: the last one again, unless a macro keeps it. */
static lk_jscope *next_scope(lk_j *j, lk_jscope *last, lk_jscope *parent)
{
    if (!last || last->kept) return open_scope(j, parent);
    last->n = 0;
    return last;
}

static void bind(lk_j *j, lk_jscope *s, const lk_jtext *name, lk_jvalue value)
{
    for (int i = 0; i < s->n; i++)
        if (s->variables[i].name == name) {
            s->variables[i].value = value;
            return;
        }
    if (s->n == s->room) {
        int room = 2 * s->room + 4;
        lk_jvariable *grown = lk_j_alloc(j, (size_t)room * sizeof *grown);
        if (s->n) memcpy(grown, s->variables, (size_t)s->n * sizeof *grown);
        s->variables = grown;
        s->room = room;
    }
    s->variables[s->n++] = (lk_jvariable){name, value};
}

/* NULL when the template never mentions the name: nothing could read it. */
static const lk_jtext *find_name(const lk_jinja *t, const char *name)
{
    size_t n = strlen(name), h = 5381;
    for (size_t k = 0; k < n; k++) h = h * 33 + (unsigned char)name[k];
    for (; t->names.room && t->names.names[h & (t->names.room - 1)]; h++)
        if (lk_j_text_is(t->names.names[h & (t->names.room - 1)], name)) return t->names.names[h & (t->names.room - 1)];
    return NULL;
}

static void assign(lk_j *j, lk_jscope *scope, const lk_jnode *target, lk_jvalue value)
{
    if (target->type == LK_N_NAME) {
        bind(j, scope, target->name, value);
    } else if (target->type == LK_N_NSREF) {
        const lk_jnode name = {.type = LK_N_NAME, .line = target->line, .name = target->name};
        lk_jvalue space = lk_j_eval(j, &name);
        if (space.kind != LK_J_NAMESPACE) lk_j_fail(j, "cannot assign attribute on non-namespace object");
        if (target->value.s->n && target->value.s->p[0] == '_') lk_j_fail(j, "a namespace cannot hold names that begin with an underscore");
        lk_j_put(j, space, target->value, value);
    } else {
        int64_t n;
        lk_jvalue *items = lk_j_items(j, value, &n);
        if (n != target->n)
            lk_j_fail(j,
                      n < target->n ? "not enough values to unpack (expected %d, got %lld)"
                                    : "too many values to unpack (expected %d, got %lld)",
                      target->n, (long long)n);
        for (const lk_jnode *part = target->a; part; part = part->next) assign(j, scope, part, *items++);
    }
}

/* ------------------------------------------------------------------------------------------------ macros */

/* Runs a body into a text of its own. */
static const lk_jtext *capture(lk_j *j, const lk_jnode *body, lk_jscope *scope, flow *how)
{
    lk_jbuilder out = {0}, *outer = j->out;
    lk_jscope *outer_scope = j->scope;
    j->out = &out;
    j->scope = scope;
    *how = run_body(j, body);
    j->out = outer;
    j->scope = outer_scope;
    return lk_j_built(j, &out);
}

/* The special names a macro's body may use: caller, varargs, kwargs. What is given and fits nowhere is an error. */
static void bind_rest(lk_j *j, const lk_jnode *node, lk_jscope *scope, const lk_jargs *args, const bool *used)
{
    lk_jvalue rest = lk_j_list(j, LK_J_TUPLE, 0), named = lk_j_dict(j, 0), caller = {0};
    bool takes_named = node->op & LK_USES_KWARGS, takes_rest = node->op & LK_USES_VARARGS, takes_caller = node->op & LK_USES_CALLER;
    int name_size = node->name ? (int)node->name->n : 6;
    const char *name = node->name ? node->name->p : "caller";
    for (int i = node->n; i < args->n; i++) lk_j_push(j, rest, args->values[i]);
    for (int i = 0; i < args->n_keywords; i++) {
        const lk_jtext *keyword = args->keywords[i].name;
        if (used[i]) continue;
        if (takes_caller && lk_j_text_is(keyword, "caller"))
            caller = args->keywords[i].value;
        else if (takes_named)
            lk_j_put(j, named, lk_j_string(keyword), args->keywords[i].value);
        else
            lk_j_fail(j, "macro '%.*s' takes no keyword argument '%.*s'", name_size, name, (int)keyword->n, keyword->p);
    }
    if (rest.list->n && !takes_rest) lk_j_fail(j, "macro '%.*s' takes not more than %d argument(s)", name_size, name, node->n);
    const lk_jtext *n;
    if (takes_rest && (n = find_name(j->template, "varargs"))) bind(j, scope, n, rest);
    if (takes_named && (n = find_name(j->template, "kwargs"))) bind(j, scope, n, named);
    if (takes_caller && (n = find_name(j->template, "caller"))) {
        for (const lk_jnode *p = node->a; p; p = p->next)
            if (p->name == n) return; /* an ordinary parameter of that name */
        bind(j, scope, n, caller.kind ? caller : lk_j_undefined(j, "No caller defined"));
    }
}

lk_jvalue lk_j_call_macro(lk_j *j, lk_jmacro *macro, const lk_jargs *args)
{
    const lk_jnode *node = macro->node;
    lk_jscope *scope = open_scope(j, macro->scope), *outer = j->scope;
    bool *used = lk_j_alloc(j, (size_t)args->n_keywords);
    int i = 0, line = j->line;
    lk_j_enter(j);
    for (const lk_jnode *p = node->a; p; p = p->next, i++) {
        lk_jvalue value = {0};
        if (i < args->n) value = args->values[i];
        for (int k = 0; k < args->n_keywords && !value.kind; k++)
            if (lk_j_text_equal(args->keywords[k].name, p->name)) value = args->keywords[k].value, used[k] = true;
        if (!value.kind && p->a) { /* defaults see the parameters before them */
            j->scope = scope;
            value = lk_j_eval(j, p->a);
            j->scope = outer;
        }
        if (!value.kind) value = lk_j_undefined(j, "parameter '%.*s' was not provided", (int)p->name->n, p->name->p);
        bind(j, scope, p->name, value);
    }
    bind_rest(j, node, scope, args, used);
    flow how;
    const lk_jtext *text = capture(j, node->d, scope, &how);
    lk_j_leave(j);
    j->line = line;
    return lk_j_string(text);
}

static lk_jvalue make_macro(lk_j *j, const lk_jnode *node)
{
    lk_jmacro *macro = lk_j_alloc(j, sizeof *macro);
    *macro = (lk_jmacro){node, j->scope};
    for (lk_jscope *s = j->scope; s && !s->kept; s = s->parent) s->kept = true;
    return (lk_jvalue){.kind = LK_J_MACRO, .macro = macro};
}

/* ------------------------------------------------------------------------------------------------ loops */

/* The items that pass the loop's filter. */
static lk_jvalue *pick(lk_j *j, const lk_jnode *node, lk_jvalue *items, int64_t *n)
{
    lk_jscope *outer = j->scope, *scope = NULL;
    lk_jvalue *kept = lk_j_alloc(j, (size_t)*n * sizeof *kept);
    int64_t count = 0;
    for (int64_t i = 0; i < *n; i++) {
        j->scope = scope = next_scope(j, scope, outer);
        assign(j, scope, node->a, items[i]);
        if (lk_j_truth(lk_j_eval(j, node->c))) kept[count++] = items[i];
    }
    j->scope = outer;
    *n = count;
    return kept;
}

static flow run_for(lk_j *j, const lk_jnode *node)
{
    lk_jvalue iterable = lk_j_eval(j, node->b);
    lk_jscope *outer = j->scope, *scope = NULL;
    lk_jloop *loop = lk_j_alloc(j, sizeof *loop);
    const lk_jtext *loop_name = find_name(j->template, "loop");
    bool completed = false;
    j->line = node->line;
    loop->items = lk_j_items(j, iterable, &loop->n);
    if (node->c) loop->items = pick(j, node, loop->items, &loop->n);
    for (; loop->index0 < loop->n; loop->index0++) {
        lk_j_step(j, 1);
        j->scope = scope = next_scope(j, scope, outer);
        if (loop_name) bind(j, j->scope, loop_name, (lk_jvalue){.kind = LK_J_LOOP, .loop = loop});
        assign(j, j->scope, node->a, loop->items[loop->index0]);
        flow turn = run_body(j, node->d);
        completed |= turn == FLOW_ON;
        if (turn == FLOW_BREAK) break;
    }
    flow how = FLOW_ON;
    if (!completed && node->e) { /* as in jinja2: also when every turn was cut short */
        j->scope = open_scope(j, outer);
        how = run_body(j, node->e);
    }
    j->scope = outer;
    return how;
}

/* ------------------------------------------------------------------------------------------------ statements */

static void put_out(lk_j *j, lk_jvalue v) { lk_j_add_text(j, j->out, lk_j_str(j, v)); }

static flow run_in_scope(lk_j *j, const lk_jnode *body)
{
    lk_jscope *outer = j->scope;
    j->scope = open_scope(j, outer);
    flow how = run_body(j, body);
    j->scope = outer;
    return how;
}

static flow run_with(lk_j *j, const lk_jnode *node)
{
    lk_jscope *scope = open_scope(j, j->scope), *outer = j->scope;
    for (const lk_jnode *set = node->a; set; set = set->next) assign(j, scope, set->a, lk_j_eval(j, set->b));
    j->scope = scope;
    flow how = run_body(j, node->d);
    j->scope = outer;
    return how;
}

static flow run_if(lk_j *j, const lk_jnode *node)
{
    for (; node && node->type == LK_N_IF; node = node->c)
        if (lk_j_truth(lk_j_eval(j, node->a))) return run_body(j, node->b);
    return node ? run_body(j, node->d) : FLOW_ON;
}

static flow run_captured(lk_j *j, const lk_jnode *node)
{
    flow how;
    lk_jvalue v = lk_j_string(capture(j, node->d, open_scope(j, j->scope), &how));
    if (how != FLOW_ON) return how;
    if (node->b) v = lk_j_eval_filters(j, node->b, v);
    if (node->type == LK_N_SET_BLOCK)
        assign(j, j->scope, node->a, lk_j_string(lk_j_str(j, v)));
    else
        put_out(j, v);
    return how;
}

static flow run_node(lk_j *j, const lk_jnode *node)
{
    size_t begin;
    switch ((lk_jtype)node->type) {
    case LK_N_DATA: lk_j_add_text(j, j->out, node->value.s); break;
    case LK_N_OUTPUT: put_out(j, lk_j_eval(j, node->a)); break;
    case LK_N_IF: return run_if(j, node);
    case LK_N_FOR: return run_for(j, node);
    case LK_N_SET: assign(j, j->scope, node->a, lk_j_eval(j, node->b)); break;
    case LK_N_SET_BLOCK:
    case LK_N_FILTER_BLOCK: return run_captured(j, node);
    case LK_N_MACRO: bind(j, j->scope, node->name, make_macro(j, node)); break;
    case LK_N_CALL_BLOCK: put_out(j, lk_j_eval_call(j, node->b, make_macro(j, node))); break;
    case LK_N_WITH: return run_with(j, node);
    case LK_N_GENERATION:
        begin = j->out->n;
        run_in_scope(j, node->d);
        lk_j_mark_generated(j, j->out, begin);
        break;
    case LK_N_BREAK: return FLOW_BREAK;
    case LK_N_CONTINUE: return FLOW_CONTINUE;
    default: lk_j_raise(j, LK_ERR_INTERNAL, "a node of type %d is no statement", node->type);
    }
    return FLOW_ON;
}

static flow run_body(lk_j *j, const lk_jnode *node)
{
    flow how = FLOW_ON;
    lk_j_enter(j);
    for (; node && how == FLOW_ON; node = node->next) {
        j->line = node->line;
        lk_j_step(j, 1);
        how = run_node(j, node);
    }
    lk_j_leave(j);
    return how;
}

/* ------------------------------------------------------------------------------------------------ in and out */

void lk_jinja_options_default(lk_jinja_options *options)
{
    *options = (lk_jinja_options){
        .now = (int64_t)time(NULL), .max_steps = 20000000, .max_output = (size_t)64 << 20, .max_memory = (size_t)512 << 20};
}

static void compile(lk_j *j, lk_jinja *t, const char *source, size_t size)
{
    lk_jparser p = {.j = j, .template = t};
    lk_j_lex(&p, source, size);
    t->body = lk_j_parse_statements(&p);
}

lk_status lk_jinja_compile(lk_jinja **out, const char *name, const char *source, size_t size, lk_error *err)
{
    *out = NULL;
    lk_jinja *t = calloc(1, sizeof *t);
    if (!t) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    lk_j j = {.arena = &t->arena,
              .err = err,
              .template_name = name,
              .line = 1,
              .steps = 100000000,
              .memory = (size_t)512 << 20,
              .max_output = SIZE_MAX};
    t->name = lk_arena_strdup(&t->arena, name);
    if (!t->name) {
        lk_jinja_free(t);
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    }
    if (setjmp(j.jump)) {
        lk_jinja_free(t);
        return j.status;
    }
    compile(&j, t, source, size);
    *out = t;
    return LK_OK;
}

void lk_jinja_free(lk_jinja *t)
{
    if (!t) return;
    lk_arena_free(&t->arena);
    free(t);
}

bool lk_jinja_has_generation(const lk_jinja *t) { return t->generation; }

bool lk_jinja_uses(const lk_jinja *t, const char *name) { return find_name(t, name) != NULL; }

/* messages: every entry of its own origin; their roles besides. */
static lk_jvalue numbered(lk_j *j, const cJSON *array)
{
    lk_jvalue list = lk_j_list(j, LK_J_LIST, cJSON_GetArraySize(array));
    uint32_t origin = LK_ORIGIN_MESSAGE;
    for (const cJSON *item = array->child; item; item = item->next) {
        lk_jvalue v = lk_j_from_json(j, item, origin);
        for (int64_t i = 0; v.kind == LK_J_DICT && i < v.dict->n; i++)
            if (lk_j_text_is(v.dict->keys[i].s, "role") && v.dict->values[i].kind == LK_J_STRING)
                ((lk_jtext *)(uintptr_t)v.dict->values[i].s)->origin |= LK_ORIGIN_ROLE;
        lk_j_push(j, list, v);
        if (origin < LK_ORIGIN_SOURCE) origin++;
    }
    return list;
}

static void render(lk_j *j, const lk_jinja_variable *variables, int n, lk_jbuilder *out)
{
    j->out = out;
    j->scope = open_scope(j, NULL);
    for (int i = 0; i < n; i++) {
        const lk_jtext *name = find_name(j->template, variables[i].name);
        if (!name || !variables[i].value) continue;
        bool messages = variables[i].origin == LK_ORIGIN_MESSAGES && cJSON_IsArray(variables[i].value);
        bind(j, j->scope, name, messages ? numbered(j, variables[i].value) : lk_j_from_json(j, variables[i].value, variables[i].origin));
    }
    run_body(j, j->template->body);
}

/* Out of the arena into memory of the caller's. */
static lk_status hand_out(const lk_jbuilder *b, lk_jinja_output *out, const char *name, lk_error *err)
{
    out->text = malloc(b->n + 1);
    out->spans = malloc((b->n_spans + 1) * sizeof *out->spans);
    if (!out->text || !out->spans) {
        lk_jinja_output_free(out);
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for the text", name);
    }
    if (b->n) memcpy(out->text, b->p, b->n);
    out->text[b->n] = 0;
    out->n = b->n;
    if (b->n_spans) memcpy(out->spans, b->spans, b->n_spans * sizeof *out->spans);
    out->n_spans = (int64_t)b->n_spans;
    return LK_OK;
}

lk_status lk_jinja_render(const lk_jinja *t, const lk_jinja_variable *variables, int n, const lk_jinja_options *options,
                          lk_jinja_output *out, lk_error *err)
{
    lk_arena arena = {0};
    lk_jbuilder b = {0};
    lk_j j = {.arena = &arena,
              .err = err,
              .template_name = t->name,
              .line = 1,
              .steps = options->max_steps,
              .memory = options->max_memory,
              .max_output = options->max_output < UINT32_MAX / 2 ? options->max_output : UINT32_MAX / 2,
              .now = options->now,
              .template = t};
    *out = (lk_jinja_output){0};
    if (setjmp(j.jump)) {
        lk_arena_free(&arena);
        return j.status;
    }
    render(&j, variables, n, &b);
    lk_status status = hand_out(&b, out, t->name, err);
    lk_arena_free(&arena);
    return status;
}

void lk_jinja_output_free(lk_jinja_output *out)
{
    free(out->text);
    free(out->spans);
    *out = (lk_jinja_output){0};
}
