/* The template language against jinja2 as transformers sets it up (tests/golden/jinja.json): one small template for each thing it does, the
 * ones that must fail included; then what bounds it, what its errors say, and where the bytes of its output come from. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "data/chat/jinja.h"
#include "tests/check.h"

enum { FILE_LIMIT = 16 << 20, MAX_VARIABLES = 64 };

static int variables_of(const cJSON *object, lk_jinja_variable *out)
{
    int n = 0;
    for (const cJSON *v = object->child; v; v = v->next) {
        assert_true(n < MAX_VARIABLES);
        out[n++] = (lk_jinja_variable){v->string, v, LK_ORIGIN_DATA};
    }
    return n;
}

static lk_status render(const char *template, const lk_jinja_variable *v, int n, const lk_jinja_options *options, lk_jinja_output *out,
                        lk_error *err)
{
    lk_jinja *t;
    *out = (lk_jinja_output){0};
    LK_TRY(lk_jinja_compile(&t, "t", template, strlen(template), err));
    lk_status status = lk_jinja_render(t, v, n, options, out, err);
    lk_jinja_free(t);
    return status;
}

/* Spans are in order and cover the text. */
static void check_spans(const char *template, const lk_jinja_output *out)
{
    uint32_t end = 0;
    for (int64_t i = 0; i < out->n_spans; i++) {
        if (out->spans[i].end < end) fail_msg("%s: span %lld ends before it begins", template, (long long)i);
        end = out->spans[i].end;
    }
    if (end != out->n) fail_msg("%s: spans end at %u of %zu", template, end, out->n);
}

static void test_goldens(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("jinja.json"), *text;
    size_t size;
    cJSON *root;
    setenv("TZ", "UTC", 1);
    CHECK_OK(lk_file_read(path, FILE_LIMIT, &text, &size, &err), &err);
    CHECK_OK(lk_json_parse(&root, text, size, path, &err), &err);
    CHECK_OK(lk_json_keep_numbers(root, text, size, &err), &err);
    lk_jinja_variable v[MAX_VARIABLES];
    int n = variables_of(lk_json_get(root, "variables"), v), raised = 0, compared = 0;
    lk_jinja_options options;
    lk_jinja_options_default(&options);
    options.now = (int64_t)lk_json_get(root, "now")->valuedouble;
    const cJSON *row;
    cJSON_ArrayForEach(row, lk_json_get(root, "cases"))
    {
        const char *template = row->child->valuestring;
        const cJSON *want = row->child->next;
        lk_jinja_output out;
        lk_error why = {0};
        lk_status status = render(template, v, n, &options, &out, &why);
        if (cJSON_IsNull(want)) {
            if (!status) fail_msg("%s\nrendered as \"%s\"; jinja2 raises", template, out.text);
            assert_non_null(strstr(why.message, "line "));
            raised++;
        } else {
            if (status) fail_msg("%s\n%s\njinja2 gives \"%s\"", template, why.message, want->valuestring);
            if (strcmp(out.text, want->valuestring)) fail_msg("%s\ngives  \"%s\"\njinja2 \"%s\"", template, out.text, want->valuestring);
            check_spans(template, &out);
            compared++;
        }
        lk_jinja_output_free(&out);
    }
    printf("%d templates equal, %d refused as by jinja2\n", compared, raised);
    assert_true(compared > 200 && raised > 150);
    cJSON_Delete(root);
    free(text);
    free(path);
}

/* What would not end, or would fill the memory, is stopped and says where. */
static void test_limits(void **state)
{
    (void)state;
    static const struct {
        const char *template, *text;
    } rows[] = {
        {"a\n{% for a in range(99999) %}\n{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
         "t: line 3: the template does not come to an end"},
        {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"},
        {"\n\n{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "line 3: nested deeper"},
        {"{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "line 1: the t"},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "line 1: the template"},
        {"{{ 'abcdefgh' * 99999999 }}", "line 1: the t"},
        {"{{ [1] * 99999999 }}", "line 1: the template"},
        {"{{ range(99999)|list|map('string')|join|length }}{{ '%0999999999d' % 1 }}", "line 1: "},
        {"{{ 'x'.center(99999999999) }}", "line 1: the t"},
        {"{{ 'a'.zfill(99999999999) }}", "line 1: the t"},
    };
    lk_jinja_options options;
    lk_jinja_options_default(&options);
    options.max_steps = 500000;
    options.max_output = 1 << 20;
    options.max_memory = 64 << 20;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_jinja_output out;
        CHECK_FAILS(render(rows[i].template, NULL, 0, &options, &out, &err), LK_ERR_MEMORY, rows[i].text, &err);
        assert_null(out.text);
    }
    /* nesting that would fill the stack: of brackets, blocks, operators */
    static const char *const nested[][2] = {{"{{ ((", "(("},         {"{{ [[", "[["}, {"{% if 1 %}{% if 1 %}", "{% if 1 %}"},
                                            {"{{ not not ", "not "}, {"{{ - -", "-"}, {"{{ 1 ** 1", " ** 1"},
                                            {"{{ a", ".a"},          {"{{ a", "|e"}};
    for (size_t i = 0; i < sizeof nested / sizeof *nested; i++) {
        char *text = malloc(100000);
        lk_error err = {0};
        lk_jinja_output out;
        assert_non_null(text);
        strcpy(text, nested[i][0]);
        size_t n = strlen(text), step = strlen(nested[i][1]);
        while (n + step + 50 < 60000) memcpy(text + n, nested[i][1], step + 1), n += step;
        strcpy(text + n, i < 3 ? "" : i == 3 || i == 4 ? "1 }}" : " }}");
        lk_status status = render(text, NULL, 0, &options, &out, &err);
        if (status != LK_ERR_MEMORY && status != LK_ERR_FORMAT) fail_msg("nested[%zu]: %s", i, lk_status_name(status));
        free(text);
    }
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *template, *text;
        lk_status status;
    } rows[] = {
        {"a\nb\n{{ x.y.z }}", "t: line 3: 'x' is undefined", LK_ERR_FORMAT},
        {"{% for i in [1] %}\n{{ [1].z.y }}{% endfor %}", "line 2: 'list object' has no attribute 'z'", LK_ERR_FORMAT},
        {"\n{{ raise_exception('No ' ~ 'way') }}", "t: line 2: No way", LK_ERR_ARGUMENT},
        {"\n{{ 'a' + 1 }}", "line 2: can only concatenate str (not \"int\") to str", LK_ERR_FORMAT},
        {"\n\n{% if x %}", "line 3: {% if %} is not closed: {% endif %} is missing", LK_ERR_FORMAT},
        {"\n{{ x |", "line 2: ", LK_ERR_FORMAT},
        {"{{ 'a'|frob }}", "no filter named 'frob'", LK_ERR_FORMAT},
        {"{{ 'a' is frob }}", "no test named 'frob'", LK_ERR_FORMAT},
        {"{% include 'x' %}", "{% include %} is not supported", LK_ERR_UNSUPPORTED},
        {"{% extends 'x' %}", "{% extends %} is not supported", LK_ERR_UNSUPPORTED},
        {"{% for x in [] recursive %}{% endfor %}", "recursive loops are not supported", LK_ERR_UNSUPPORTED},
        {"{{ [1]|random }}", "the filter 'random' is not supported", LK_ERR_UNSUPPORTED},
        {"{{ 9223372036854775807 + 1 }}", "64 bits", LK_ERR_UNSUPPORTED},
        {"a\xff", "is not UTF-8 text", LK_ERR_FORMAT},
    };
    lk_jinja_options options;
    lk_jinja_options_default(&options);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_jinja_output out;
        CHECK_FAILS(render(rows[i].template, NULL, 0, &options, &out, &err), rows[i].status, rows[i].text, &err);
    }
}

/* Each byte's source as a character: '.' the template's, '0'.. a message's, 'd' other data; upper case and ':' inside {% generation %}. */
static void sources(const lk_jinja_output *out, char *map)
{
    for (int64_t s = 0; s < out->n_spans; s++) {
        uint32_t origin = out->spans[s].origin, of = origin & LK_ORIGIN_SOURCE;
        bool generated = origin & LK_ORIGIN_GENERATED;
        for (size_t i = s ? out->spans[s - 1].end : 0; i < out->spans[s].end; i++)
            map[i] = of == LK_ORIGIN_TEMPLATE ? (generated ? ':' : '.')
                     : of == LK_ORIGIN_DATA   ? (generated ? 'D' : 'd')
                                              : (char)((generated ? 'A' : '0') + of - LK_ORIGIN_MESSAGE);
    }
    map[out->n] = 0;
}

static void test_origins(void **state)
{
    (void)state;
    static const struct {
        const char *template, *text, *map;
    } rows[] = {
        {"<{{ messages[0].content }}>", "<Ab c>", ".0000."},
        {"{{ '<' + messages[1].content + '>' ~ x }}", "<d,e>X y", ".111.ddd"},
        {"{{ messages[0].content|upper }}{{ messages[1].content.split(',')[1] }}", "AB Ce", "00001"},
        {"{{ (messages[0].content ~ messages[1].content)[2:6] }}", " cd,", "0011"},
        {"{{ messages[1].content.replace(',', '--') }}", "d--e", "1..1"},
        {"{{ messages|map(attribute='content')|join('+') }}", "Ab c+d,e", "0000.111"},
        {"{{ messages[1].args|tojson }}", "{\"k\": [1, \"v\"]}", "111111111111111"},
        {"{{ {'a': messages[0].content}|tojson }}", "{\"a\": \"Ab c\"}", "......000000."},
        {"{% set y %}[{{ messages[0].content }}]{% endset %}{{ y|trim }}{{ y|length }}", "[Ab c]6", ".0000.."},
        {"{% macro m(c) %}({{ c }}){% endmacro %}{{ m(messages[1].content) }}", "(d,e)", ".111."},
        {"a{% generation %}b{{ messages[1].content }}{% endgeneration %}c", "abd,ec", ".:BBB."},
        {"{% macro m(c) %}({% generation %}{{ c }}{% endgeneration %}){% endmacro %}{{ m(messages[1].content)|upper }}", "(D,E)", ".BBB."},
        {"{{ '%s|%5s' % (messages[0].content, messages[1].content) }}", "Ab c|  d,e", "0000...111"},
        {"{{ messages[0].content|indent(2, true) }}", "  Ab c", "..0000"},
        {"{{ messages[0].content[::-1] }}{{ messages[0].content|reverse }}", "c bAc bA", "00000000"},
        {"{{ [messages[0].content] }}", "['Ab c']", ".000000."},
        {"{{ messages[1].n + 1 }}{{ messages[1].n }}", "87", ".1"},
        {"{% for c in messages[1].content %}{{ c }}.{% endfor %}", "d.,.e.", "1.1.1."},
        {"{{ messages[1].content.title() }}{{ messages[0].content|capitalize }}", "D,EAb c", "1110000"},
        {"{{ '{0}-{1}'.format(x, messages[0].content) }}", "X y-Ab c", "ddd.0000"},
    };
    lk_error err = {0};
    cJSON *messages = cJSON_Parse(
        "[{\"role\":\"user\",\"content\":\"Ab c\"},{\"role\":\"assistant\",\"content\":\"d,e\",\"n\":7,\"args\":{\"k\":[1,\"v\"]}}]");
    cJSON *x = cJSON_CreateString("X y");
    const lk_jinja_variable v[] = {{"messages", messages, LK_ORIGIN_MESSAGES}, {"x", x, LK_ORIGIN_DATA}};
    lk_jinja_options options;
    lk_jinja_options_default(&options);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_jinja_output out;
        char map[200];
        CHECK_OK(render(rows[i].template, v, 2, &options, &out, &err), &err);
        assert_string_equal(out.text, rows[i].text);
        check_spans(rows[i].template, &out);
        sources(&out, map);
        if (strcmp(map, rows[i].map)) fail_msg("%s\ntext %s\ngot  %s\nwant %s", rows[i].template, out.text, map, rows[i].map);
        lk_jinja_output_free(&out);
    }
    /* an empty content leaves its mark; a role has one of its own */
    lk_jinja_output out;
    cJSON *empty = cJSON_Parse("[{\"role\":\"user\",\"content\":\" \"}]");
    const lk_jinja_variable w[] = {{"messages", empty, LK_ORIGIN_MESSAGES}};
    CHECK_OK(render("{{ messages[0].role }}<{{ messages[0].content|trim }}>", w, 1, &options, &out, &err), &err);
    assert_int_equal(out.n_spans, 4);
    assert_int_equal(out.spans[0].origin, LK_ORIGIN_MESSAGE | LK_ORIGIN_ROLE);
    assert_int_equal(out.spans[2].end, 5);
    assert_int_equal(out.spans[2].origin, LK_ORIGIN_MESSAGE);
    lk_jinja_output_free(&out);
    cJSON_Delete(empty);
    cJSON_Delete(messages);
    cJSON_Delete(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_origins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
