/* Tests: what stands behind `is`. */
#include "data/chat/jinja_internal.h"

static void none_given(lk_j *j, const lk_jargs *args) { lk_j_take(j, "this test", args, 0, 0, NULL, NULL); }

static lk_jvalue one_given(lk_j *j, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "this test", args, 1, 1, (const char *const[]){"other"}, a);
    return a[0];
}

#define KIND_TEST(name, condition)                                   \
    static bool t_##name(lk_j *j, lk_jvalue v, const lk_jargs *args) \
    {                                                                \
        none_given(j, args);                                         \
        return condition;                                            \
    }
KIND_TEST(defined, v.kind != LK_J_UNDEFINED)
KIND_TEST(undefined, v.kind == LK_J_UNDEFINED)
KIND_TEST(none, v.kind == LK_J_NONE)
KIND_TEST(boolean, v.kind == LK_J_BOOL)
KIND_TEST(true, v.kind == LK_J_BOOL && v.b)
KIND_TEST(false, v.kind == LK_J_BOOL && !v.b)
KIND_TEST(integer, v.kind == LK_J_INT)
KIND_TEST(float, v.kind == LK_J_FLOAT)
KIND_TEST(number, lk_j_is_number(v))
KIND_TEST(string, v.kind == LK_J_STRING)
KIND_TEST(mapping, v.kind == LK_J_DICT)
KIND_TEST(iterable, lk_j_is_iterable(v))
KIND_TEST(sequence, v.kind == LK_J_STRING || v.kind == LK_J_LIST || v.kind == LK_J_TUPLE || v.kind == LK_J_DICT || v.kind == LK_J_RANGE ||
                        v.kind == LK_J_UNDEFINED)
KIND_TEST(callable, (v.kind >= LK_J_LOOP && v.kind <= LK_J_METHOD) || v.kind == LK_J_JOINER || v.kind == LK_J_UNDEFINED)
KIND_TEST(escaped, v.kind == LK_J_STRING && v.markup)
KIND_TEST(upper, lk_j_is_case(lk_j_str(j, v), true))
KIND_TEST(lower, lk_j_is_case(lk_j_str(j, v), false))
KIND_TEST(odd, lk_j_equal(j, lk_j_binary(j, '%', v, lk_j_int(2)), lk_j_int(1)))
KIND_TEST(even, lk_j_equal(j, lk_j_binary(j, '%', v, lk_j_int(2)), lk_j_int(0)))

#define COMPARE_TEST(name, op) \
    static bool t_##name(lk_j *j, lk_jvalue v, const lk_jargs *args) { return lk_j_compare(j, op, v, one_given(j, args)); }
COMPARE_TEST(eq, LK_OP_EQ)
COMPARE_TEST(ne, LK_OP_NE)
COMPARE_TEST(lt, '<')
COMPARE_TEST(le, LK_OP_LE)
COMPARE_TEST(gt, '>')
COMPARE_TEST(ge, LK_OP_GE)
COMPARE_TEST(in, LK_OP_IN)

static bool t_divisibleby(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    return lk_j_equal(j, lk_j_binary(j, '%', v, one_given(j, args)), lk_j_int(0));
}

/* Python's `is`: one object. Small numbers are one in practice. */
static bool t_sameas(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    lk_jvalue other = one_given(j, args);
    if (v.kind != other.kind) return false;
    if (v.kind == LK_J_STRING || v.kind < LK_J_FLOAT) return lk_j_equal(j, v, other) && v.kind != LK_J_UNDEFINED;
    return v.list == other.list;
}

static bool t_filter(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    none_given(j, args);
    return v.kind == LK_J_STRING && lk_j_known_filter(v.s);
}

static bool t_test(lk_j *j, lk_jvalue v, const lk_jargs *args)
{
    none_given(j, args);
    return v.kind == LK_J_STRING && lk_j_test(v.s);
}

lk_jtest *lk_j_test(const lk_jtext *name)
{
    static const struct {
        const char *name;
        lk_jtest *test;
    } tests[] = {
        {"defined", t_defined},
        {"undefined", t_undefined},
        {"none", t_none},
        {"boolean", t_boolean},
        {"true", t_true},
        {"false", t_false},
        {"integer", t_integer},
        {"float", t_float},
        {"number", t_number},
        {"string", t_string},
        {"mapping", t_mapping},
        {"iterable", t_iterable},
        {"sequence", t_sequence},
        {"callable", t_callable},
        {"escaped", t_escaped},
        {"upper", t_upper},
        {"lower", t_lower},
        {"odd", t_odd},
        {"even", t_even},
        {"divisibleby", t_divisibleby},
        {"sameas", t_sameas},
        {"filter", t_filter},
        {"test", t_test},
        {"in", t_in},
        {"eq", t_eq},
        {"equalto", t_eq},
        {"==", t_eq},
        {"ne", t_ne},
        {"!=", t_ne},
        {"lt", t_lt},
        {"lessthan", t_lt},
        {"<", t_lt},
        {"le", t_le},
        {"<=", t_le},
        {"gt", t_gt},
        {"greaterthan", t_gt},
        {">", t_gt},
        {"ge", t_ge},
        {">=", t_ge},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (lk_j_text_is(name, tests[i].name)) return tests[i].test;
    return NULL;
}
