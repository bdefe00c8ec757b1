/* What the files of the interpreter share.
 *
 *     jinja_lexer.c    text to tokens                     jinja_text.c     strings that know their origins; str() and repr()
 *     jinja_parser.c   expressions to a tree              jinja_value.c    truth, equality, order, iteration, lists and dicts
 *     jinja_block.c    statements to a tree               jinja_ops.c      operators, attributes, subscripts, slices
 *     jinja_eval.c     the tree's expressions             jinja_json.c     tojson, and JSON into values
 *     jinja_run.c      its statements, render             jinja_format.c   numbers as text, "%d" % x, "{}".format(x)
 *     jinja_string.c   methods of strings                 jinja_methods.c  methods of dicts and lists, global functions
 *     jinja_filter.c   filters on sequences               jinja_filter_text.c  filters on text   jinja_test.c  tests
 *
 * Errors leave through longjmp to compile or render, the only two places that catch them: everything the interpreter allocates lives in
 * one arena that those free, so nothing is lost on the way, and the many small functions here can return values. */
#ifndef LK_DATA_CHAT_JINJA_INTERNAL_H
#define LK_DATA_CHAT_JINJA_INTERNAL_H

#include <setjmp.h>

#include "base/arena.h"
#include "data/chat/jinja.h"

/* ------------------------------------------------------------------------------------------------ values */

typedef enum lk_jkind {
    LK_J_ABSENT, /* an argument that was not given; never a value */
    LK_J_UNDEFINED,
    LK_J_NONE,
    LK_J_BOOL,
    LK_J_INT,
    LK_J_FLOAT,
    LK_J_STRING,
    LK_J_LIST,
    LK_J_TUPLE,
    LK_J_DICT,
    LK_J_NAMESPACE,
    LK_J_RANGE,
    LK_J_VIEW,      /* dict.items(), keys(), values() */
    LK_J_GENERATOR, /* what map, select and others give: can be gone through once */
    LK_J_LOOP,
    LK_J_MACRO,
    LK_J_FUNCTION, /* a global */
    LK_J_METHOD,
    LK_J_CYCLER,
    LK_J_JOINER
} lk_jkind;

/* Immutable UTF-8. All of one origin, or in spans. */
typedef struct lk_jtext {
    const char *p;
    uint32_t n, origin, n_spans; /* n_spans 0: all of `origin` */
    int32_t chars;               /* code points; -1: not counted yet */
    const lk_jinja_span *spans;
} lk_jtext;

typedef struct lk_jlist lk_jlist;
typedef struct lk_jdict lk_jdict;
typedef struct lk_jrange lk_jrange;
typedef struct lk_jview lk_jview;
typedef struct lk_jloop lk_jloop;
typedef struct lk_jmacro lk_jmacro;
typedef struct lk_jmethod lk_jmethod;
typedef struct lk_jcycler lk_jcycler;
typedef struct lk_jfunction lk_jfunction;

typedef struct lk_jvalue {
    uint8_t kind;
    bool markup;     /* a string that is safe HTML: + escapes what it is added to */
    uint32_t origin; /* of numbers, lists and dicts */
    union {
        bool b;
        int64_t i;
        double f;
        const lk_jtext *s; /* STRING; UNDEFINED: what is wrong with it */
        lk_jlist *list;    /* LIST, TUPLE, GENERATOR (with `at` of its own) */
        lk_jdict *dict;    /* DICT, NAMESPACE */
        lk_jrange *range;
        lk_jview *view;
        lk_jloop *loop;
        lk_jmacro *macro;
        lk_jmethod *method;
        lk_jcycler *cycler; /* CYCLER, JOINER */
        const lk_jfunction *function;
    };
} lk_jvalue;

struct lk_jlist {
    lk_jvalue *items;
    int64_t n, room;
    bool used_up; /* a generator that was gone through */
};

struct lk_jdict {
    lk_jvalue *keys, *values; /* in order of insertion */
    int64_t n, room;
};

struct lk_jrange {
    int64_t start, stop, step, n;
};

struct lk_jview {
    lk_jdict *dict;
    enum { LK_J_ITEMS, LK_J_KEYS, LK_J_VALUES } what;
};

struct lk_jloop {
    lk_jvalue *items;
    int64_t n, index0;
    int depth0;
    lk_jvalue changed; /* the last arguments of loop.changed, a tuple */
};

struct lk_jcycler {
    lk_jvalue *items; /* a joiner: its separator */
    int64_t n, at;
};

typedef struct lk_jkeyword {
    const lk_jtext *name;
    lk_jvalue value;
} lk_jkeyword;

typedef struct lk_jargs {
    const lk_jvalue *values;
    int n;
    const lk_jkeyword *keywords;
    int n_keywords;
} lk_jargs;

/* ------------------------------------------------------------------------------------------------ the tree */

typedef enum lk_jtype {
    /* expressions */
    LK_N_CONST,
    LK_N_NAME,
    LK_N_LIST,  /* a: items */
    LK_N_TUPLE, /* a: items */
    LK_N_DICT,  /* a: PAIRs of a: b */
    LK_N_PAIR,
    LK_N_COND, /* a if b else c; c may be NULL */
    LK_N_OR,
    LK_N_AND,
    LK_N_NOT,
    LK_N_COMPARE, /* a, then b: OPERANDs with op and a */
    LK_N_OPERAND,
    LK_N_BINARY, /* a op b */
    LK_N_CONCAT, /* a: parts */
    LK_N_UNARY,  /* op a */
    LK_N_ATTRIBUTE,
    LK_N_ITEM,  /* a[b] */
    LK_N_SLICE, /* a:b:c as a subscript */
    LK_N_CALL,  /* a(b) */
    LK_N_FILTER,
    LK_N_TEST,
    LK_N_ARGUMENT, /* of a call: a, name for a keyword, op '*' or 'd' (**) for lists and dicts of arguments */
    LK_N_NSREF,    /* name.attribute as a target: name, text */
    /* statements */
    LK_N_DATA,
    LK_N_OUTPUT, /* {{ a }} */
    LK_N_IF,     /* a: condition, b: body, c: else or another IF */
    LK_N_FOR,    /* a: target, b: iterable, c: filter, d: body, e: else */
    LK_N_SET,    /* a: target, b: value */
    LK_N_SET_BLOCK,
    LK_N_MACRO,      /* name; a: parameters (NAMEs with a default in a); d: body */
    LK_N_CALL_BLOCK, /* b: the CALL; otherwise as a macro */
    LK_N_FILTER_BLOCK,
    LK_N_WITH, /* a: SETs, d: body */
    LK_N_SCOPE,
    LK_N_GENERATION,
    LK_N_BREAK,
    LK_N_CONTINUE
} lk_jtype;

typedef struct lk_jnode lk_jnode;
struct lk_jnode {
    uint8_t type;
    char op; /* the operator's first character; others below; macros: LK_USES_ bits */
    int32_t line;
    int32_t n;            /* how many in the list that begins at a (calls: at b) */
    const lk_jtext *name; /* interned: equal names are one pointer */
    lk_jvalue value;
    lk_jnode *a, *b, *c, *d, *e, *next;
};

/* Which of its special names a macro's body mentions. */
enum { LK_USES_CALLER = 1, LK_USES_VARARGS = 2, LK_USES_KWARGS = 4 };

/* Operators of more than one character. */
enum {
    LK_OP_POW = 'p',
    LK_OP_FLOOR = 'f',
    LK_OP_EQ = '=',
    LK_OP_NE = '!',
    LK_OP_LE = 'l',
    LK_OP_GE = 'g',
    LK_OP_IN = 'i',
    LK_OP_NOT_IN = 'n'
};

/* ------------------------------------------------------------------------------------------------ running */

typedef struct lk_jbuilder {
    char *p;
    size_t n, room;
    lk_jinja_span *spans; /* ends in order; the last one ends at n */
    size_t n_spans, span_room;
} lk_jbuilder;

typedef struct lk_jvariable {
    const lk_jtext *name;
    lk_jvalue value;
} lk_jvariable;

typedef struct lk_jscope {
    struct lk_jscope *parent;
    lk_jvariable *variables;
    int n, room;
    bool kept; /* a macro looks at it, or at one inside it */
} lk_jscope;

struct lk_jmacro {
    const lk_jnode *node;
    lk_jscope *scope; /* where it was defined */
};

typedef struct lk_jnames {
    const lk_jtext **names;
    size_t n, room; /* an open hash table */
} lk_jnames;

struct lk_jinja {
    lk_arena arena;
    char *name;
    lk_jnode *body;
    lk_jnames names;
    bool generation;
};

/* One compile or one render. */
typedef struct lk_j {
    jmp_buf jump;
    lk_arena *arena;
    lk_error *err;
    lk_status status;
    const char *template_name;
    int line, depth, loop_depth;
    int64_t steps, now;
    size_t memory, max_output;
    const lk_jinja *template;
    lk_jbuilder *out;
    lk_jscope *scope;
} lk_j;

enum { LK_J_MAX_DEPTH = 250, LK_J_MAX_RANGE = 100000 };

_Noreturn void lk_j_raise(lk_j *j, lk_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A TypeError, ValueError or UndefinedError of Python: LK_ERR_FORMAT. */
_Noreturn void lk_j_fail(lk_j *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void lk_j_fail_undefined(lk_j *j, lk_jvalue v);
void *lk_j_alloc(lk_j *j, size_t size);
void lk_j_step(lk_j *j, int64_t n);
void lk_j_enter(lk_j *j); /* one level deeper, and a step */
static inline void lk_j_leave(lk_j *j) { j->depth--; }

/* ---- jinja_text.c ---- */

lk_jtext *lk_j_text(lk_j *j, const char *p, size_t n, uint32_t origin); /* p is borrowed */
const lk_jtext *lk_j_literal(lk_j *j, const char *text);                /* borrowed, zero-terminated, the template's */
void lk_j_add(lk_j *j, lk_jbuilder *b, const char *p, size_t n, uint32_t origin);
void lk_j_add_text(lk_j *j, lk_jbuilder *b, const lk_jtext *t);
void lk_j_add_part(lk_j *j, lk_jbuilder *b, const lk_jtext *t, size_t begin, size_t end); /* bytes */
void lk_j_add_printf(lk_j *j, lk_jbuilder *b, uint32_t origin, const char *format, ...) __attribute__((format(printf, 4, 5)));
void lk_j_mark_generated(lk_j *j, lk_jbuilder *b, size_t begin);
const lk_jtext *lk_j_built(lk_j *j, const lk_jbuilder *b);
const lk_jtext *lk_j_part(lk_j *j, const lk_jtext *t, size_t begin, size_t end);
uint32_t lk_j_origin_at(const lk_jtext *t, size_t byte);
uint32_t lk_j_any_origin(const lk_jtext *t); /* that of its first byte that is not the template's */
int64_t lk_j_chars(lk_j *j, const lk_jtext *t);
size_t lk_j_byte_of(lk_j *j, const lk_jtext *t, int64_t character);
uint32_t lk_j_char_at(const lk_jtext *t, size_t byte, int *length); /* never 0 length */
bool lk_j_text_is(const lk_jtext *t, const char *text);
bool lk_j_text_equal(const lk_jtext *a, const lk_jtext *b);
int64_t lk_j_find(lk_j *j, const lk_jtext *t, const lk_jtext *what, size_t from); /* byte, or -1 */
const lk_jtext *lk_j_str(lk_j *j, lk_jvalue v);
void lk_j_repr(lk_j *j, lk_jbuilder *b, lk_jvalue v);
bool lk_j_is_space(uint32_t cp); /* Python's str.isspace */
bool lk_j_is_break(uint32_t cp); /* Python's str.splitlines */

/* ---- jinja_value.c ---- */

extern const lk_jvalue lk_j_none;
static inline lk_jvalue lk_j_bool(bool b) { return (lk_jvalue){.kind = LK_J_BOOL, .b = b}; }
static inline lk_jvalue lk_j_int(int64_t i) { return (lk_jvalue){.kind = LK_J_INT, .i = i}; }
static inline lk_jvalue lk_j_float(double f) { return (lk_jvalue){.kind = LK_J_FLOAT, .f = f}; }
static inline lk_jvalue lk_j_string(const lk_jtext *s) { return (lk_jvalue){.kind = LK_J_STRING, .s = s}; }
lk_jvalue lk_j_undefined(lk_j *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
lk_jvalue lk_j_list(lk_j *j, lk_jkind kind, int64_t room);
void lk_j_push(lk_j *j, lk_jvalue list, lk_jvalue item);
lk_jvalue lk_j_dict(lk_j *j, int64_t room);
void lk_j_put(lk_j *j, lk_jvalue dict, lk_jvalue key, lk_jvalue value);
const lk_jvalue *lk_j_get(lk_j *j, const lk_jdict *dict, lk_jvalue key); /* NULL: not there */
const lk_jvalue *lk_j_get_name(const lk_jdict *dict, const lk_jtext *name);
const char *lk_j_type_name(lk_jvalue v);
bool lk_j_truth(lk_jvalue v);
bool lk_j_equal(lk_j *j, lk_jvalue a, lk_jvalue b);
int lk_j_order(lk_j *j, lk_jvalue a, lk_jvalue b, const char *op); /* -1, 0, 1; 2 for not a number */
bool lk_j_contains(lk_j *j, lk_jvalue where, lk_jvalue what);
int64_t lk_j_length(lk_j *j, lk_jvalue v); /* -1: has none */
bool lk_j_is_iterable(lk_jvalue v);
lk_jvalue *lk_j_items(lk_j *j, lk_jvalue v, int64_t *n); /* uses a generator up */
void lk_j_check_hashable(lk_j *j, lk_jvalue v);
static inline bool lk_j_is_integer(lk_jvalue v) { return v.kind == LK_J_INT || v.kind == LK_J_BOOL; }
static inline bool lk_j_is_number(lk_jvalue v) { return lk_j_is_integer(v) || v.kind == LK_J_FLOAT; }
static inline int64_t lk_j_as_int(lk_jvalue v) { return v.kind == LK_J_BOOL ? v.b : v.i; }
static inline double lk_j_as_float(lk_jvalue v) { return v.kind == LK_J_FLOAT ? v.f : (double)lk_j_as_int(v); }
int64_t lk_j_need_int(lk_j *j, lk_jvalue v, const char *what);
void lk_j_sort(lk_j *j, lk_jvalue *items, lk_jvalue *keys, int64_t n, bool reverse); /* stable, by keys */

/* ---- jinja_ops.c ---- */

lk_jvalue lk_j_binary(lk_j *j, char op, lk_jvalue a, lk_jvalue b);
lk_jvalue lk_j_unary(lk_j *j, char op, lk_jvalue a);
bool lk_j_compare(lk_j *j, char op, lk_jvalue a, lk_jvalue b);
lk_jvalue lk_j_attribute(lk_j *j, lk_jvalue object, const lk_jtext *name);
lk_jvalue lk_j_item(lk_j *j, lk_jvalue object, lk_jvalue key);
lk_jvalue lk_j_slice(lk_j *j, lk_jvalue object, lk_jvalue start, lk_jvalue stop, lk_jvalue step); /* ABSENT or None: left out */
lk_jvalue lk_j_escape(lk_j *j, lk_jvalue v);

/* ---- jinja_json.c, jinja_format.c ---- */

lk_jvalue lk_j_from_json(lk_j *j, const cJSON *json, uint32_t origin);
lk_jvalue lk_j_tojson(lk_j *j, lk_jvalue v, const lk_jargs *args);
void lk_j_float_text(double f, char out[40]);
lk_jvalue lk_j_percent(lk_j *j, const lk_jtext *format, lk_jvalue args);
lk_jvalue lk_j_format(lk_j *j, const lk_jtext *format, const lk_jargs *args);
bool lk_j_parse_int(const lk_jtext *t, int base, int64_t *out);
bool lk_j_parse_float(const lk_jtext *t, double *out);

/* ---- jinja_eval.c ---- */

lk_jvalue lk_j_eval(lk_j *j, const lk_jnode *node);
lk_jvalue lk_j_eval_call(lk_j *j, const lk_jnode *node, lk_jvalue caller); /* caller ABSENT: none */
/* A chain of filters whose innermost has no operand, applied to input. */
lk_jvalue lk_j_eval_filters(lk_j *j, const lk_jnode *node, lk_jvalue input);

/* ---- calls ---- */

/* Fills out[0..n) from positions and keywords; what is not given is ABSENT. Fails on too many, unknown, doubled or missing ones. */
void lk_j_take(lk_j *j, const char *what, const lk_jargs *args, int required, int n, const char *const *names, lk_jvalue *out);
lk_jvalue lk_j_call(lk_j *j, lk_jvalue callee, const lk_jargs *args);
lk_jvalue lk_j_call_macro(lk_j *j, lk_jmacro *macro, const lk_jargs *args);
/* jinja_methods.c: a bound method, or ABSENT when Python's type has no such attribute, UNDEFINED when the sandbox hides it. */
lk_jvalue lk_j_find_method(lk_j *j, lk_jvalue self, const lk_jtext *name);
lk_jvalue lk_j_call_method(lk_j *j, const lk_jmethod *method, const lk_jargs *args);
lk_jvalue lk_j_call_function(lk_j *j, const lk_jfunction *function, const lk_jargs *args);
lk_jvalue lk_j_global(const lk_jtext *name); /* ABSENT when there is none */
/* jinja_string.c */
typedef lk_jvalue lk_jstring_method(lk_j *j, const lk_jtext *self, const lk_jargs *args);
lk_jstring_method *lk_j_string_method(const char *name, size_t n);
const lk_jtext *lk_j_strip(lk_j *j, const lk_jtext *t, const lk_jtext *chars, bool left, bool right); /* chars NULL: white space */
const lk_jtext *lk_j_replace(lk_j *j, const lk_jtext *t, const lk_jtext *old, const lk_jtext *fresh, int64_t count);
const lk_jtext *lk_j_map_case(lk_j *j, const lk_jtext *t, char how); /* 'u', 'l', 't' Python's title, 'c' capitalize, 's' swap */
lk_jvalue lk_j_split_lines(lk_j *j, const lk_jtext *t, bool keep);
bool lk_j_is_case(const lk_jtext *t, bool upper);
bool lk_j_is_alnum(uint32_t cp);

struct lk_jmethod {
    lk_jvalue self;
    const char *name;
    lk_jstring_method *string; /* of strings */
    int id;                    /* of others */
};

/* Filters and tests by name; NULL when there is none. */
typedef lk_jvalue lk_jfilter(lk_j *j, lk_jvalue v, const lk_jargs *args);
lk_jfilter *lk_j_filter(const lk_jtext *name);
lk_jfilter *lk_j_text_filter(const lk_jtext *name);
bool lk_j_known_filter(const lk_jtext *name); /* of jinja2, supported here or not */
typedef bool lk_jtest(lk_j *j, lk_jvalue v, const lk_jargs *args);
lk_jtest *lk_j_test(const lk_jtext *name);
lk_jvalue lk_j_apply_filter(lk_j *j, const lk_jtext *name, lk_jvalue v, const lk_jargs *args);
bool lk_j_apply_test(lk_j *j, const lk_jtext *name, lk_jvalue v, const lk_jargs *args);

/* ---- parsing ---- */

typedef enum lk_jtoken_type {
    LK_T_END,
    LK_T_DATA,
    LK_T_VARIABLE_BEGIN,
    LK_T_VARIABLE_END,
    LK_T_BLOCK_BEGIN,
    LK_T_BLOCK_END,
    LK_T_NAME,
    LK_T_STRING,
    LK_T_INTEGER,
    LK_T_FLOAT,
    LK_T_OPERATOR
} lk_jtoken_type;

typedef struct lk_jtoken {
    uint8_t type;
    char op; /* as in the tree; '=' is "==", 'a' a single "=" */
    int32_t line;
    const lk_jtext *text; /* names interned */
    lk_jvalue value;
} lk_jtoken;

typedef struct lk_jparser {
    lk_j *j;
    lk_jinja *template;
    lk_jtoken *tokens;
    size_t n, at, room;
    int loops; /* how many that a break here could leave */
} lk_jparser;

const lk_jtext *lk_j_intern(lk_jparser *p, const char *text, size_t n);
void lk_j_lex(lk_jparser *p, const char *source, size_t size);
lk_jnode *lk_j_node(lk_jparser *p, lk_jtype type, int line);
const lk_jtoken *lk_j_now(const lk_jparser *p);
const lk_jtoken *lk_j_look(const lk_jparser *p);
const lk_jtoken *lk_j_next(lk_jparser *p);
bool lk_j_at_name(const lk_jparser *p, const char *name);
bool lk_j_skip_name(lk_jparser *p, const char *name);
bool lk_j_at_op(const lk_jparser *p, char op);
bool lk_j_skip_op(lk_jparser *p, char op);
void lk_j_expect_op(lk_jparser *p, char op);
const lk_jtoken *lk_j_expect(lk_jparser *p, lk_jtoken_type type, const char *what);
_Noreturn void lk_j_unexpected(lk_jparser *p, const char *wanted);
lk_jnode *lk_j_parse_expression(lk_jparser *p);
/* simplified: names and literals only (targets). end_name: a name that ends the tuple. */
lk_jnode *lk_j_parse_tuple(lk_jparser *p, bool simplified, bool with_cond, const char *end_name, bool parentheses, bool namespaces);
lk_jnode *lk_j_parse_filters(lk_jparser *p, lk_jnode *node, bool start_inline);
lk_jnode *lk_j_parse_statements(lk_jparser *p); /* the whole template */

#endif
