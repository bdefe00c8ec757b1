/* Statements to a tree. A body is a list of nodes by `next`. */
#include <string.h>

#include "data/chat/jinja_internal.h"

static lk_jnode *parse_statement(lk_jparser *p);

/* Where a body ends: at a block that begins with one of these names. */
static bool at_end(const lk_jparser *p, const char *const *ends)
{
    for (int i = 0; ends && ends[i]; i++)
        if (lk_j_at_name(p, ends[i])) return true;
    return false;
}

static lk_jnode *parse_until(lk_jparser *p, const char *const *ends, const char *what, int line)
{
    lk_jnode *first = NULL, **end = &first;
    lk_j_enter(p->j);
    while (lk_j_now(p)->type != LK_T_END) {
        const lk_jtoken *t = lk_j_next(p);
        lk_jnode *node = NULL;
        if (t->type == LK_T_DATA) {
            node = lk_j_node(p, LK_N_DATA, t->line);
            node->value = lk_j_string(t->text);
        } else if (t->type == LK_T_VARIABLE_BEGIN) {
            node = lk_j_node(p, LK_N_OUTPUT, t->line);
            node->a = lk_j_parse_tuple(p, false, true, NULL, false, false);
            lk_j_expect(p, LK_T_VARIABLE_END, "}}");
        } else {
            if (at_end(p, ends)) {
                lk_j_leave(p->j);
                return first;
            }
            node = parse_statement(p);
            lk_j_expect(p, LK_T_BLOCK_END, "%}");
        }
        *end = node;
        while (*end) end = &(*end)->next;
    }
    if (ends) {
        p->j->line = line;
        lk_j_fail(p->j, "{%% %s %%} is not closed: {%% %s %%} is missing", what, ends[0]);
    }
    lk_j_leave(p->j);
    return first;
}

/* The rest of the tag and the body; what ended it is the current token. */
static lk_jnode *parse_body(lk_jparser *p, const char *const *ends, const char *what)
{
    int line = lk_j_now(p)->line;
    lk_j_skip_op(p, ':');
    lk_j_expect(p, LK_T_BLOCK_END, "%}");
    return parse_until(p, ends, what, line);
}

/* As parse_body, and the closing name is read. A function's body cannot break out of a loop round it. */
static lk_jnode *parse_inner(lk_jparser *p, const char *const *ends, const char *what, bool function)
{
    int loops = p->loops;
    if (function) p->loops = 0;
    lk_jnode *body = parse_body(p, ends, what);
    lk_j_next(p);
    p->loops = loops;
    return body;
}

static lk_jnode *parse_target(lk_jparser *p, const char *end_name, bool namespaces)
{
    lk_jnode *target = lk_j_parse_tuple(p, true, true, end_name, false, namespaces);
    lk_jnode *part = target->type == LK_N_TUPLE ? target->a : target;
    for (; part; part = target->type == LK_N_TUPLE ? part->next : NULL)
        if (part->type != LK_N_NAME && part->type != LK_N_NSREF && part->type != LK_N_TUPLE) lk_j_fail(p->j, "cannot assign to this");
    return target;
}

static lk_jnode *parse_for(lk_jparser *p, int line)
{
    lk_jnode *node = lk_j_node(p, LK_N_FOR, line);
    node->a = parse_target(p, "in", false);
    if (!lk_j_skip_name(p, "in")) lk_j_unexpected(p, "'in'");
    node->b = lk_j_parse_tuple(p, false, false, "recursive", false, false);
    if (lk_j_skip_name(p, "if")) node->c = lk_j_parse_expression(p);
    if (lk_j_at_name(p, "recursive")) lk_j_raise(p->j, LK_ERR_UNSUPPORTED, "recursive loops are not supported");
    p->loops++;
    node->d = parse_body(p, (const char *const[]){"endfor", "else", NULL}, "for");
    p->loops--;
    if (lk_j_text_is(lk_j_next(p)->text, "else")) {
        node->e = parse_body(p, (const char *const[]){"endfor", NULL}, "for");
        lk_j_next(p);
    }
    return node;
}

static lk_jnode *parse_if(lk_jparser *p, int line)
{
    lk_jnode *first = NULL, **at = &first;
    for (;;) {
        lk_jnode *node = *at = lk_j_node(p, LK_N_IF, line);
        node->a = lk_j_parse_tuple(p, false, false, NULL, false, false);
        node->b = parse_body(p, (const char *const[]){"endif", "elif", "else", NULL}, "if");
        const lk_jtoken *t = lk_j_next(p);
        at = &node->c;
        if (lk_j_text_is(t->text, "elif")) {
            line = t->line;
            continue;
        }
        if (lk_j_text_is(t->text, "else")) {
            lk_jnode *scope = node->c = lk_j_node(p, LK_N_SCOPE, t->line); /* not an IF: marks the else */
            scope->d = parse_body(p, (const char *const[]){"endif", NULL}, "if");
            lk_j_next(p);
        }
        return first;
    }
}

static lk_jnode *parse_set(lk_jparser *p, int line)
{
    lk_jnode *node = lk_j_node(p, LK_N_SET, line);
    node->a = parse_target(p, NULL, true);
    if (lk_j_skip_op(p, 'a')) {
        node->b = lk_j_parse_tuple(p, false, true, NULL, false, false);
        return node;
    }
    node->type = LK_N_SET_BLOCK;
    node->b = lk_j_parse_filters(p, NULL, false);
    node->d = parse_body(p, (const char *const[]){"endset", NULL}, "set");
    lk_j_next(p);
    return node;
}

/* (a, b=1): NAMEs with their defaults in `a`. */
static void parse_signature(lk_jparser *p, lk_jnode *node)
{
    lk_jnode **end = &node->a;
    bool defaults = false;
    lk_j_expect_op(p, '(');
    while (!lk_j_at_op(p, ')')) {
        if (node->n) lk_j_expect_op(p, ',');
        const lk_jtoken *t = lk_j_expect(p, LK_T_NAME, "a name");
        lk_jnode *parameter = *end = lk_j_node(p, LK_N_NAME, t->line);
        parameter->name = t->text;
        for (lk_jnode *other = node->a; other != parameter; other = other->next)
            if (other->name == parameter->name) lk_j_fail(p->j, "a parameter named twice");
        end = &parameter->next;
        node->n++;
        if (lk_j_skip_op(p, 'a')) {
            parameter->a = lk_j_parse_expression(p);
            defaults = true;
        } else if (defaults) {
            lk_j_fail(p->j, "non-default argument follows default argument");
        }
    }
    lk_j_next(p);
}

static char special_names(lk_jparser *p, const lk_jnode *node)
{
    int uses = 0;
    lk_j_enter(p->j);
    for (; node; node = node->next) {
        if (node->type == LK_N_NAME && lk_j_text_is(node->name, "caller")) uses |= LK_USES_CALLER;
        if (node->type == LK_N_NAME && lk_j_text_is(node->name, "varargs")) uses |= LK_USES_VARARGS;
        if (node->type == LK_N_NAME && lk_j_text_is(node->name, "kwargs")) uses |= LK_USES_KWARGS;
        const lk_jnode *const below[] = {node->a, node->b, node->c, node->d, node->e};
        for (int i = 0; i < 5; i++) uses |= below[i] ? special_names(p, below[i]) : 0;
    }
    lk_j_leave(p->j);
    return (char)uses;
}

static lk_jnode *parse_macro(lk_jparser *p, int line)
{
    lk_jnode *node = lk_j_node(p, LK_N_MACRO, line);
    node->name = lk_j_expect(p, LK_T_NAME, "a name")->text;
    parse_signature(p, node);
    node->d = parse_inner(p, (const char *const[]){"endmacro", NULL}, "macro", true);
    node->op = special_names(p, node->d);
    return node;
}

static lk_jnode *parse_call_block(lk_jparser *p, int line)
{
    lk_jnode *node = lk_j_node(p, LK_N_CALL_BLOCK, line);
    if (lk_j_at_op(p, '(')) parse_signature(p, node);
    node->b = lk_j_parse_expression(p);
    if (node->b->type != LK_N_CALL) lk_j_fail(p->j, "expected call");
    node->d = parse_inner(p, (const char *const[]){"endcall", NULL}, "call", true);
    node->op = special_names(p, node->d);
    return node;
}

static lk_jnode *parse_with(lk_jparser *p, int line)
{
    lk_jnode *node = lk_j_node(p, LK_N_WITH, line), **end = &node->a;
    while (lk_j_now(p)->type != LK_T_BLOCK_END) {
        if (node->a) lk_j_expect_op(p, ',');
        lk_jnode *set = *end = lk_j_node(p, LK_N_SET, lk_j_now(p)->line);
        end = &set->next;
        set->a = parse_target(p, NULL, false);
        lk_j_expect_op(p, 'a');
        set->b = lk_j_parse_expression(p);
    }
    node->d = parse_body(p, (const char *const[]){"endwith", NULL}, "with");
    lk_j_next(p);
    return node;
}

static lk_jnode *parse_print(lk_jparser *p, int line)
{
    lk_jnode *first = NULL, **end = &first;
    while (lk_j_now(p)->type != LK_T_BLOCK_END) {
        if (first) lk_j_expect_op(p, ',');
        *end = lk_j_node(p, LK_N_OUTPUT, line);
        (*end)->a = lk_j_parse_expression(p);
        end = &(*end)->next;
    }
    return first;
}

static lk_jnode *parse_statement(lk_jparser *p)
{
    const lk_jtoken *t = lk_j_expect(p, LK_T_NAME, "a tag's name");
    const char *const unsupported[] = {"include", "import", "from", "extends", "block", "autoescape"};
    int line = t->line;
    lk_jnode *node;
    if (lk_j_text_is(t->text, "for")) return parse_for(p, line);
    if (lk_j_text_is(t->text, "if")) return parse_if(p, line);
    if (lk_j_text_is(t->text, "set")) return parse_set(p, line);
    if (lk_j_text_is(t->text, "macro")) return parse_macro(p, line);
    if (lk_j_text_is(t->text, "call")) return parse_call_block(p, line);
    if (lk_j_text_is(t->text, "with")) return parse_with(p, line);
    if (lk_j_text_is(t->text, "print")) return parse_print(p, line);
    if (lk_j_text_is(t->text, "generation")) {
        node = lk_j_node(p, LK_N_GENERATION, line);
        p->template->generation = true;
        node->d = parse_inner(p, (const char *const[]){"endgeneration", NULL}, "generation", true);
        return node;
    }
    if (lk_j_text_is(t->text, "filter")) {
        node = lk_j_node(p, LK_N_FILTER_BLOCK, line);
        node->b = lk_j_parse_filters(p, NULL, true);
        node->d = parse_inner(p, (const char *const[]){"endfilter", NULL}, "filter", false);
        return node;
    }
    bool stop = lk_j_text_is(t->text, "break");
    if (stop || lk_j_text_is(t->text, "continue")) {
        if (p->loops == 0) lk_j_fail(p->j, "%s outside a loop", stop ? "break" : "continue");
        return lk_j_node(p, stop ? LK_N_BREAK : LK_N_CONTINUE, line);
    }
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (lk_j_text_is(t->text, unsupported[i])) lk_j_raise(p->j, LK_ERR_UNSUPPORTED, "{%% %s %%} is not supported", unsupported[i]);
    lk_j_fail(p->j, "unknown tag '%.*s'", (int)t->text->n, t->text->p);
}

/* Unknown filters and tests are found here, as jinja2 does: unless they stand directly in an if, where only running into them fails. */
static void check_names(lk_jparser *p, const lk_jnode *node, bool soft)
{
    lk_j_enter(p->j);
    for (; node; node = node->next) {
        p->j->line = node->line;
        if (!soft && node->type == LK_N_FILTER && !lk_j_known_filter(node->name))
            lk_j_fail(p->j, "no filter named '%.*s'", (int)node->name->n, node->name->p);
        if (!soft && node->type == LK_N_TEST && !lk_j_test(node->name))
            lk_j_fail(p->j, "no test named '%.*s'", (int)node->name->n, node->name->p);
        bool lenient = soft || node->type == LK_N_IF || node->type == LK_N_COND;
        if (node->type == LK_N_IF) { /* the chain of elif is long, not deep */
            const lk_jnode *branch = node;
            for (; branch && branch->type == LK_N_IF; branch = branch->c) {
                check_names(p, branch->a, true);
                check_names(p, branch->b, true);
            }
            if (branch) check_names(p, branch->d, true);
            continue;
        }
        check_names(p, node->a, lenient);
        check_names(p, node->b, lenient);
        check_names(p, node->c, node->type == LK_N_FOR ? false : lenient);
        check_names(p, node->d, false);
        check_names(p, node->e, false);
    }
    lk_j_leave(p->j);
}

lk_jnode *lk_j_parse_statements(lk_jparser *p)
{
    lk_jnode *body = parse_until(p, NULL, NULL, 1);
    check_names(p, body, false);
    return body;
}
