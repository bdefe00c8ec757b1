/* Any bytes as a template, run on a conversation: a text whose spans cover it, or an error with a line. */
#include <stdlib.h>

#include "data/chat/jinja.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED(
        "{% for m in messages if m.role != 'x' %}{{ '<' + m['role'] ~ '>' + m.content|trim }}{{ loop.index }}{% else %}-{% endfor %}"),
    FUZZ_SEED(
        "{%- set ns = namespace(a=[1, 2.5, none], b={'k': (1,)}) -%}{% set ns.a = ns.a + [x] %}{{ ns.a|tojson(indent=2) }}{{ ns.b }}"),
    FUZZ_SEED("{% macro m(a, b='c', d=3) %}{{ a }}{{ varargs }}{{ kwargs }}{{ caller() }}{% endmacro %}{% call m(1, 2, 3, 4, e=5) %}x{% "
              "endcall %}"),
    FUZZ_SEED("{% generation %}{{ messages[-1].content.split('</think>')[-1].lstrip('\\n')[::-1] }}{% endgeneration %}{% raw %}{{ }}{% "
              "endraw %}"),
    FUZZ_SEED("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ')|upper|replace('A', 'b')|indent(2) }}"),
    FUZZ_SEED("{{ '%5.2f|%-4s|%x' % (x, 'a', 255) }}{{ '{:>8}{0!r}'.format(x) }}{{ x is number and x in [1] or not (2 ** 3 // 4) }}"),
    FUZZ_SEED("{% if x is defined and x > 1 %}a{% elif y %}b{% else %}c{% endif %}{% with a = range(3) %}{{ a|list|sort(reverse=true) }}{% "
              "endwith %}"),
    FUZZ_SEED("{% filter upper %}{# c #}{{ strftime_now('%Y') }}{% endfilter %}{{ d|dictsort|groupby(0)|list }}{{ "
              "d.items()|list|unique|batch(2)|list }}"),
};
FUZZ_MUTATOR(seeds)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char conversation[] =
        "[{\"role\":\"user\",\"content\":\" a\\n\\u00e9\"},{\"role\":\"assistant\",\"content\":\"<think>b</think>c\","
        "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"k\":[1,2.5,null,true]}}}]}]";
    lk_error err = {0};
    lk_jinja *t;
    if (lk_jinja_compile(&t, "t", (const char *)data, size, &err)) {
        if (!strstr(err.message, "line ")) abort();
        return 0;
    }
    cJSON *messages = cJSON_Parse(conversation), *d = cJSON_Parse("{\"b\":1,\"a\":\"x\"}"), *x = cJSON_CreateNumber(2);
    const lk_jinja_variable v[] = {{"messages", messages, LK_ORIGIN_MESSAGES}, {"d", d, LK_ORIGIN_DATA}, {"x", x, LK_ORIGIN_DATA}};
    const lk_jinja_options options = {.now = 1, .max_steps = 20000, .max_output = 1 << 16, .max_memory = 4 << 20};
    lk_jinja_output out;
    if (lk_jinja_render(t, v, 3, &options, &out, &err)) {
        if (!strstr(err.message, "line ") || out.text) abort();
    } else {
        uint32_t end = 0;
        for (int64_t i = 0; i < out.n_spans; i++) {
            if (out.spans[i].end < end) abort();
            end = out.spans[i].end;
        }
        if (end != out.n || strlen(out.text) > out.n) abort();
        lk_jinja_output_free(&out);
    }
    cJSON_Delete(messages);
    cJSON_Delete(d);
    cJSON_Delete(x);
    lk_jinja_free(t);
    return 0;
}
