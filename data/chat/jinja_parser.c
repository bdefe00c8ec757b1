/* Expressions to a tree: a descent by precedence, rule by rule jinja2's own parser, its oddities included (a filter binds tighter than any
 * operator; ~ tighter than +; chains like a < b < c; a test takes one argument without parentheses). */
#include <string.h>

#include "data/chat/jinja_internal.h"

lk_jnode *lk_j_node(lk_jparser *p, lk_jtype type, int line)
{
    lk_jnode *node = lk_j_alloc(p->j, sizeof *node);
    node->type = (uint8_t)type;
    node->line = line;
    return node;
}

/* ---- the stream of tokens; the last one is LK_T_END ---- */

const lk_jtoken *lk_j_now(const lk_jparser *p) { return &p->tokens[p->at]; }

const lk_jtoken *lk_j_look(const lk_jparser *p) { return &p->tokens[p->at + (p->at + 1 < p->n)]; }

const lk_jtoken *lk_j_next(lk_jparser *p)
{
    const lk_jtoken *t = &p->tokens[p->at];
    p->j->line = t->line;
    p->at += p->at + 1 < p->n;
    return t;
}

bool lk_j_at_name(const lk_jparser *p, const char *name)
{
    const lk_jtoken *t = lk_j_now(p);
    return t->type == LK_T_NAME && lk_j_text_is(t->text, name);
}

bool lk_j_skip_name(lk_jparser *p, const char *name)
{
    bool there = lk_j_at_name(p, name);
    if (there) lk_j_next(p);
    return there;
}

bool lk_j_at_op(const lk_jparser *p, char op) { return lk_j_now(p)->type == LK_T_OPERATOR && lk_j_now(p)->op == op; }

bool lk_j_skip_op(lk_jparser *p, char op)
{
    bool there = lk_j_at_op(p, op);
    if (there) lk_j_next(p);
    return there;
}

_Noreturn void lk_j_unexpected(lk_jparser *p, const char *wanted)
{
    const lk_jtoken *t = lk_j_now(p);
    char operator[3] = {t->op, 0, 0};
    const char *what = t->type == LK_T_END         ? "the end of the template"
                       : t->type == LK_T_STRING    ? "a string"
                       : t->type == LK_T_INTEGER   ? "a number"
                       : t->type == LK_T_FLOAT     ? "a number"
                       : t->type == LK_T_BLOCK_END ? "%}"
                                                   : t->type == LK_T_OPERATOR
                           ?
                           operator: t->type == LK_T_NAME ? NULL : "}}";
    p->j->line = t->line;
    if (!what) lk_j_fail(p->j, "%s expected, found '%.*s'", wanted, (int)t->text->n, t->text->p);
    lk_j_fail(p->j, "%s expected, found %s", wanted, what);
}

void lk_j_expect_op(lk_jparser *p, char op)
{
    char wanted[4] = {'\'', op == 'a' ? '=' : op, '\'', 0};
    if (!lk_j_skip_op(p, op)) lk_j_unexpected(p, wanted);
}

const lk_jtoken *lk_j_expect(lk_jparser *p, lk_jtoken_type type, const char *what)
{
    if (lk_j_now(p)->type != type) lk_j_unexpected(p, what);
    return lk_j_next(p);
}

/* ---- lists of nodes ---- */

typedef struct chain {
    lk_jnode *first, **end;
    int32_t n;
} chain;

static void chain_add(chain *c, lk_jnode *node)
{
    if (!c->end) c->end = &c->first;
    *c->end = node;
    c->end = &node->next;
    c->n++;
}

static lk_jnode *two(lk_jparser *p, lk_jtype type, int line, lk_jnode *a, lk_jnode *b)
{
    lk_jnode *node = lk_j_node(p, type, line);
    node->a = a;
    node->b = b;
    return node;
}

/* ---- primaries ---- */

static bool ends_tuple(const lk_jparser *p, const char *end_name)
{
    const lk_jtoken *t = lk_j_now(p);
    if (t->type == LK_T_VARIABLE_END || t->type == LK_T_BLOCK_END || (t->type == LK_T_OPERATOR && t->op == ')')) return true;
    return end_name && lk_j_at_name(p, end_name);
}

static lk_jnode *parse_list(lk_jparser *p)
{
    chain items = {0};
    lk_jnode *node = lk_j_node(p, LK_N_LIST, lk_j_next(p)->line);
    while (!lk_j_at_op(p, ']')) {
        if (items.n) lk_j_expect_op(p, ',');
        if (lk_j_at_op(p, ']')) break;
        chain_add(&items, lk_j_parse_expression(p));
    }
    lk_j_next(p);
    node->a = items.first;
    node->n = items.n;
    return node;
}

static lk_jnode *parse_dict(lk_jparser *p)
{
    chain items = {0};
    lk_jnode *node = lk_j_node(p, LK_N_DICT, lk_j_next(p)->line);
    while (!lk_j_at_op(p, '}')) {
        if (items.n) lk_j_expect_op(p, ',');
        if (lk_j_at_op(p, '}')) break;
        lk_jnode *key = lk_j_parse_expression(p);
        lk_j_expect_op(p, ':');
        chain_add(&items, two(p, LK_N_PAIR, key->line, key, lk_j_parse_expression(p)));
    }
    lk_j_next(p);
    node->a = items.first;
    node->n = items.n;
    return node;
}

static lk_jnode *parse_strings(lk_jparser *p)
{
    const lk_jtoken *t = lk_j_next(p);
    lk_jnode *node = lk_j_node(p, LK_N_CONST, t->line);
    node->value = t->value;
    if (lk_j_now(p)->type != LK_T_STRING) return node;
    lk_jbuilder b = {0};
    lk_j_add_text(p->j, &b, t->text);
    while (lk_j_now(p)->type == LK_T_STRING) lk_j_add_text(p->j, &b, lk_j_next(p)->text);
    node->value = lk_j_string(lk_j_built(p->j, &b));
    lk_j_chars(p->j, node->value.s);
    return node;
}

static lk_jnode *parse_name(lk_jparser *p, bool namespaces)
{
    const lk_jtoken *t = lk_j_next(p);
    const lk_jtext *name = t->text;
    lk_jnode *node = lk_j_node(p, LK_N_CONST, t->line);
    if (lk_j_text_is(name, "true") || lk_j_text_is(name, "True")) {
        node->value = lk_j_bool(true);
    } else if (lk_j_text_is(name, "false") || lk_j_text_is(name, "False")) {
        node->value = lk_j_bool(false);
    } else if (lk_j_text_is(name, "none") || lk_j_text_is(name, "None")) {
        node->value = lk_j_none;
    } else if (namespaces && lk_j_skip_op(p, '.')) {
        node->type = LK_N_NSREF;
        node->name = name;
        node->value = lk_j_string(lk_j_expect(p, LK_T_NAME, "a name")->text);
    } else {
        node->type = LK_N_NAME;
        node->name = name;
    }
    return node;
}

static lk_jnode *parse_primary(lk_jparser *p, bool namespaces)
{
    const lk_jtoken *t = lk_j_now(p);
    lk_jnode *node;
    switch (t->type) {
    case LK_T_NAME: return parse_name(p, namespaces);
    case LK_T_STRING: return parse_strings(p);
    case LK_T_INTEGER:
    case LK_T_FLOAT:
        node = lk_j_node(p, LK_N_CONST, t->line);
        node->value = lk_j_next(p)->value;
        return node;
    case LK_T_OPERATOR:
        if (t->op == '[') return parse_list(p);
        if (t->op == '{') return parse_dict(p);
        if (t->op == '(') {
            lk_j_next(p);
            node = lk_j_parse_tuple(p, false, true, NULL, true, false);
            lk_j_expect_op(p, ')');
            return node;
        }
    }
    lk_j_unexpected(p, "an expression");
}

/* ---- what follows a primary ---- */

static void parse_arguments(lk_jparser *p, lk_jnode *call)
{
    chain args = {0};
    bool star = false, star_star = false, keywords = false;
    lk_j_expect_op(p, '(');
    while (!lk_j_at_op(p, ')')) {
        if (args.n) {
            lk_j_expect_op(p, ',');
            if (lk_j_at_op(p, ')')) break;
        }
        lk_jnode *arg = lk_j_node(p, LK_N_ARGUMENT, lk_j_now(p)->line);
        bool legal;
        if (lk_j_skip_op(p, '*')) {
            legal = !star && !star_star;
            star = true;
            arg->op = '*';
        } else if (lk_j_skip_op(p, LK_OP_POW)) {
            legal = !star_star;
            star_star = true;
            arg->op = 'd';
        } else if (lk_j_now(p)->type == LK_T_NAME && lk_j_look(p)->type == LK_T_OPERATOR && lk_j_look(p)->op == 'a') {
            legal = !star_star;
            keywords = true;
            arg->name = lk_j_next(p)->text;
            lk_j_next(p);
        } else {
            legal = !star && !star_star && !keywords;
        }
        if (!legal) lk_j_fail(p->j, "invalid syntax for function call expression");
        arg->a = lk_j_parse_expression(p);
        chain_add(&args, arg);
    }
    lk_j_next(p);
    call->b = args.first;
    call->n = args.n;
}

static lk_jnode *parse_call(lk_jparser *p, lk_jnode *callee)
{
    lk_jnode *node = two(p, LK_N_CALL, lk_j_now(p)->line, callee, NULL);
    parse_arguments(p, node);
    return node;
}

/* One index or a slice. */
static lk_jnode *parse_subscribed(lk_jparser *p)
{
    int line = lk_j_now(p)->line;
    lk_jnode *start = NULL;
    if (!lk_j_at_op(p, ':')) {
        start = lk_j_parse_expression(p);
        if (!lk_j_at_op(p, ':')) return start;
    }
    lk_j_next(p);
    lk_jnode *node = two(p, LK_N_SLICE, line, start, NULL);
    if (!lk_j_at_op(p, ':') && !lk_j_at_op(p, ']') && !lk_j_at_op(p, ',')) node->b = lk_j_parse_expression(p);
    if (lk_j_skip_op(p, ':') && !lk_j_at_op(p, ']') && !lk_j_at_op(p, ',')) node->c = lk_j_parse_expression(p);
    return node;
}

static lk_jnode *parse_subscript(lk_jparser *p, lk_jnode *object)
{
    const lk_jtoken *t = lk_j_next(p);
    if (t->op == '.') {
        const lk_jtoken *name = lk_j_now(p);
        if (name->type != LK_T_NAME && name->type != LK_T_INTEGER) lk_j_unexpected(p, "a name or number");
        lk_j_next(p);
        lk_jnode *node = two(p, name->type == LK_T_NAME ? LK_N_ATTRIBUTE : LK_N_ITEM, t->line, object, NULL);
        node->name = name->text;
        if (name->type == LK_T_INTEGER) {
            node->b = lk_j_node(p, LK_N_CONST, t->line);
            node->b->value = name->value;
        }
        return node;
    }
    chain keys = {0};
    while (!lk_j_at_op(p, ']')) {
        if (keys.n) lk_j_expect_op(p, ',');
        chain_add(&keys, parse_subscribed(p));
    }
    lk_j_next(p);
    lk_jnode *key = keys.first;
    if (keys.n != 1) {
        key = lk_j_node(p, LK_N_TUPLE, t->line);
        key->a = keys.first;
        key->n = keys.n;
        for (lk_jnode *k = keys.first; k; k = k->next)
            if (k->type == LK_N_SLICE) lk_j_raise(p->j, LK_ERR_UNSUPPORTED, "slices of several dimensions are not supported");
    }
    return two(p, LK_N_ITEM, t->line, object, key);
}

static lk_jnode *parse_postfix(lk_jparser *p, lk_jnode *node)
{
    for (;;) {
        if (lk_j_at_op(p, '.') || lk_j_at_op(p, '['))
            node = parse_subscript(p, node);
        else if (lk_j_at_op(p, '('))
            node = parse_call(p, node);
        else
            return node;
    }
}

static const lk_jtext *dotted_name(lk_jparser *p)
{
    const lk_jtext *name = lk_j_expect(p, LK_T_NAME, "a name")->text;
    if (!lk_j_at_op(p, '.')) return name;
    lk_jbuilder b = {0};
    lk_j_add_text(p->j, &b, name);
    while (lk_j_skip_op(p, '.')) {
        lk_j_add(p->j, &b, ".", 1, LK_ORIGIN_TEMPLATE);
        lk_j_add_text(p->j, &b, lk_j_expect(p, LK_T_NAME, "a name")->text);
    }
    return lk_j_intern(p, b.p, b.n);
}

/* |filter|filter(...): node is what it is applied to, NULL for {% filter %} and {% set x | ... %}. */
lk_jnode *lk_j_parse_filters(lk_jparser *p, lk_jnode *node, bool start_inline)
{
    while (lk_j_at_op(p, '|') || start_inline) {
        if (!start_inline) lk_j_next(p);
        start_inline = false;
        node = two(p, LK_N_FILTER, lk_j_now(p)->line, node, NULL);
        node->name = dotted_name(p);
        if (lk_j_at_op(p, '(')) parse_arguments(p, node);
    }
    return node;
}

static lk_jnode *parse_test(lk_jparser *p, lk_jnode *node)
{
    int line = lk_j_next(p)->line;
    bool negated = lk_j_skip_name(p, "not");
    lk_jnode *test = two(p, LK_N_TEST, line, node, NULL);
    test->name = dotted_name(p);
    const lk_jtoken *t = lk_j_now(p);
    bool argument = t->type == LK_T_NAME || t->type == LK_T_STRING || t->type == LK_T_INTEGER || t->type == LK_T_FLOAT ||
                    (t->type == LK_T_OPERATOR && (t->op == '[' || t->op == '{'));
    if (lk_j_at_op(p, '(')) {
        parse_arguments(p, test);
    } else if (argument && !lk_j_at_name(p, "else") && !lk_j_at_name(p, "or") && !lk_j_at_name(p, "and")) {
        if (lk_j_at_name(p, "is")) lk_j_fail(p->j, "tests cannot be chained with is");
        test->b = lk_j_node(p, LK_N_ARGUMENT, t->line);
        test->b->a = parse_postfix(p, parse_primary(p, false));
        test->n = 1;
    }
    if (!negated) return test;
    return two(p, LK_N_NOT, line, test, NULL);
}

static lk_jnode *parse_filter_expression(lk_jparser *p, lk_jnode *node)
{
    for (;;) {
        if (lk_j_at_op(p, '|'))
            node = lk_j_parse_filters(p, node, false);
        else if (lk_j_at_name(p, "is"))
            node = parse_test(p, node);
        else if (lk_j_at_op(p, '('))
            node = parse_call(p, node);
        else
            return node;
    }
}

/* ---- operators, tightest first ---- */

static lk_jnode *parse_unary(lk_jparser *p, bool with_filter)
{
    lk_jnode *node;
    lk_j_enter(p->j);
    if (lk_j_at_op(p, '-') || lk_j_at_op(p, '+')) {
        const lk_jtoken *t = lk_j_next(p);
        node = two(p, LK_N_UNARY, t->line, parse_unary(p, false), NULL);
        node->op = t->op;
    } else {
        node = parse_primary(p, false);
    }
    node = parse_postfix(p, node);
    if (with_filter) node = parse_filter_expression(p, node);
    lk_j_leave(p->j);
    return node;
}

/* Left-associative operators of one level. */
static lk_jnode *parse_level(lk_jparser *p, const char *operators, lk_jnode *(*below)(lk_jparser *))
{
    lk_jnode *left = below(p);
    while (lk_j_now(p)->type == LK_T_OPERATOR && lk_j_now(p)->op && strchr(operators, lk_j_now(p)->op)) {
        const lk_jtoken *t = lk_j_next(p);
        left = two(p, LK_N_BINARY, t->line, left, below(p));
        left->op = t->op;
    }
    return left;
}

static lk_jnode *parse_operand(lk_jparser *p) { return parse_unary(p, true); }

static lk_jnode *parse_power(lk_jparser *p) { return parse_level(p, (const char[]){LK_OP_POW, 0}, parse_operand); }

static lk_jnode *parse_product(lk_jparser *p) { return parse_level(p, (const char[]){'*', '/', LK_OP_FLOOR, '%', 0}, parse_power); }

static lk_jnode *parse_concat(lk_jparser *p)
{
    lk_jnode *first = parse_product(p);
    if (!lk_j_at_op(p, '~')) return first;
    chain parts = {0};
    lk_jnode *node = lk_j_node(p, LK_N_CONCAT, first->line);
    chain_add(&parts, first);
    while (lk_j_skip_op(p, '~')) chain_add(&parts, parse_product(p));
    node->a = parts.first;
    node->n = parts.n;
    return node;
}

static lk_jnode *parse_sum(lk_jparser *p) { return parse_level(p, "+-", parse_concat); }

static lk_jnode *parse_compare(lk_jparser *p)
{
    lk_jnode *left = parse_sum(p);
    chain operands = {0};
    for (;;) {
        const lk_jtoken *t = lk_j_now(p);
        char op;
        if (t->type == LK_T_OPERATOR && t->op && strchr((const char[]){LK_OP_EQ, LK_OP_NE, LK_OP_LE, LK_OP_GE, '<', '>', 0}, t->op))
            op = t->op;
        else if (lk_j_at_name(p, "in"))
            op = LK_OP_IN;
        else if (lk_j_at_name(p, "not") && lk_j_look(p)->type == LK_T_NAME && lk_j_text_is(lk_j_look(p)->text, "in"))
            op = LK_OP_NOT_IN;
        else
            break;
        lk_j_next(p);
        if (op == LK_OP_NOT_IN) lk_j_next(p);
        lk_jnode *operand = two(p, LK_N_OPERAND, t->line, parse_sum(p), NULL);
        operand->op = op;
        chain_add(&operands, operand);
    }
    return operands.n ? two(p, LK_N_COMPARE, left->line, left, operands.first) : left;
}

static lk_jnode *parse_not(lk_jparser *p)
{
    if (!lk_j_at_name(p, "not")) return parse_compare(p);
    lk_j_enter(p->j);
    int line = lk_j_next(p)->line;
    lk_jnode *node = two(p, LK_N_NOT, line, parse_not(p), NULL);
    lk_j_leave(p->j);
    return node;
}

static lk_jnode *parse_and(lk_jparser *p)
{
    lk_jnode *left = parse_not(p);
    while (lk_j_skip_name(p, "and")) left = two(p, LK_N_AND, left->line, left, parse_not(p));
    return left;
}

static lk_jnode *parse_or(lk_jparser *p)
{
    lk_jnode *left = parse_and(p);
    while (lk_j_skip_name(p, "or")) left = two(p, LK_N_OR, left->line, left, parse_and(p));
    return left;
}

lk_jnode *lk_j_parse_expression(lk_jparser *p)
{
    lk_j_enter(p->j);
    lk_jnode *node = parse_or(p);
    while (lk_j_skip_name(p, "if")) {
        lk_jnode *cond = two(p, LK_N_COND, node->line, node, NULL);
        cond->b = parse_or(p);
        if (lk_j_skip_name(p, "else")) cond->c = lk_j_parse_expression(p);
        node = cond;
    }
    lk_j_leave(p->j);
    return node;
}

static lk_jnode *parse_part(lk_jparser *p, bool simplified, bool with_cond, bool namespaces)
{
    if (simplified) return parse_primary(p, namespaces);
    return with_cond ? lk_j_parse_expression(p) : parse_or(p);
}

lk_jnode *lk_j_parse_tuple(lk_jparser *p, bool simplified, bool with_cond, const char *end_name, bool parentheses, bool namespaces)
{
    chain items = {0};
    bool is_tuple = false;
    int line = lk_j_now(p)->line;
    for (;;) {
        if (items.n) lk_j_expect_op(p, ',');
        if (ends_tuple(p, end_name)) break;
        chain_add(&items, parse_part(p, simplified, with_cond, namespaces));
        if (!lk_j_at_op(p, ',')) break;
        is_tuple = true;
    }
    if (!is_tuple && items.n) return items.first;
    if (!is_tuple && !parentheses) lk_j_unexpected(p, "an expression");
    lk_jnode *node = lk_j_node(p, LK_N_TUPLE, line);
    node->a = items.first;
    node->n = items.n;
    return node;
}
