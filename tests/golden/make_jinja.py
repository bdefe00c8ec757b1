"""Small templates, one for each thing the language does, rendered by jinja2 as transformers sets it up.

Run:  python tests/golden/make_jinja.py        (needs transformers and jinja2)
Writes jinja.json: {"versions", "now", "variables": given to all, "cases": [[template, text] or [template, null] where jinja2 raises]}.
strftime_now sees the fixed time `now`, in UTC.
"""

import datetime
import os
import time

os.environ["TZ"] = "UTC"
time.tzset()

import transformers.utils.chat_template_utils as utils

from golden import HERE, save_json, versions

NOW = 1700000000

VARIABLES = {
    "n": 3, "f": 2.5, "s": "Hello, World", "e": "", "u": "Grüße 你好 👩‍👩‍👧", "t": True, "no": False, "nil": None, "big": 1e22, "small": 1.5e-7, "one": 1.0,
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "mixed": [1, "1", None, True, 2.0], "nested": [[1, 2], [3, [4]]], "empty": [],
    "d": {"b": 1, "a": 2, "C": {"x": [1]}}, "ed": {}, "keys": {"items": "own", "get": 1, "_p": 2},
    "people": [{"name": "Ann", "age": 30, "pet": {"kind": "cat"}}, {"name": "bob", "age": 25}, {"name": "Cid", "age": 30, "pet": {"kind": "dog"}}],
    "ws": "  \t a b \n c\u00a0 ", "lines": "one\n two\n\nthree\r\nfour\u2028five", "html": "<a href=\"x\">'&'</a>", "text": "the quick brown fox-trot (over) it's",
}

# text between tags and the white space round them
LEXER = [
    "a\n", "a\n\n", "a\r\nb\rc", "{{ n }}\n{{ n }}\n", "x  {{- n -}}  y", "x  {{ n }}  y", "  {% if t %}\n  b\n  {% endif %}\nc", "a {% if t %} b {% endif %} c",
    "  {%+ if t %}x{% endif %}", "{% if t +%}\nx{% endif %}", "{% if t -%}\n\n  x{% endif %}", "a\n  {%- if t %} x{% endif %}", "{# c #}\na", "  {# c #}  \nb", "a {#- c -#} b",
    "{# a {{ b }} {% c %} #}x", "{% raw %}{{ x }}{% endraw %}y", "{% raw %}\n  {{ x }}\n  {% endraw %}\ny", "{%- raw -%} a {% if %} {%- endraw -%} b", "a{% raw +%}b{% endraw %}",
    "{{ '%}' }}{{ \"}}\" }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a': {}}}}", "}} %} #}", "{", "{ {", "{{ 'a\\n\\t\\\\\\'\\x41\\u00e9\\U0001F600\\101\\q' }}", "{{ \"it's\" 'x' \"y\" }}",
    "{% if t %}\t\n \n{% endif %}", "{% for x in l %}\n{{ x }}\n{% endfor %}\nend", "\n\n{% set x = 1 %}\n\n{{ x }}", "{{n}}{{ n}}{{n }}", "{{\nn\n}}", "{%\tif\nt\n%}x{%endif%}", "{%- set x = 1 %} {{ x }}",
    "  {{ n }}\n  {#- c #}\n  d", "{% set x %}\n a\n{% endset %}[{{ x }}]", "é{% if t %}ü{% endif %}ß", "a\n\t {% if t %}b{% endif %}", "{{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5E-3 }} {{ 1_0.5 }}",
    "{{ n ", "{{ 'abc }}", "{% if t %}x", "{# c", "{% raw %}x", "{{ } }}", "{{ (1] }}", "{{ n ! }}", "{% frobnicate %}", "{{ }}", "{% if %}x{% endif %}", "{% endif %}", "{{ 012 }}", "{% %}", "{{ a b }}",
    "{{ 'a' if }}", "{% for x l %}{% endfor %}", "{% set 1 = 2 %}", "{% set x.y = 2 %}", "{% for x in l %}{% else %}", "{{ x | }}", "{{ n is }}", "{{ f(a=1, 2) }}", "{{ [1, 2 }}", "{{ {'a' 1} }}", "{{ '\\x4' }}",
]

# operators and literals
OPERATORS = [
    "{{ 1 + 2 * 3 - 4 / 2 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}", "{{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 2.0 ** 0.5 }}",
    "{{ 1 / 3 }} {{ 2 / 1 }} {{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 0.0001 }} {{ big }} {{ small }} {{ one }} {{ 100.0 }} {{ -0.0 }} {{ 123456789012345.6 }}", "{{ 'a' + 'b' ~ 1 ~ none ~ true }}",
    "{{ 'a' * 3 }} {{ 2 * 'xy' }} {{ [1] * 2 }} {{ 'a' * -1 }}|", "{{ [1] + [2, 3] }} {{ (1,) + (2,) }}", "{{ 1 + true }} {{ true + true }}", "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 > 2 >= 2 != 1 == 1 }}",
    "{{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ none == false }} {{ [1, 2] == [1, 2.0] }} {{ (1,) == [1] }} {{ {'a': 1} == {'a': 1.0} }}", "{{ 'a' < 'b' }} {{ 'a' < 'B' }} {{ [1, 2] < [1, 3] }} {{ (1,) < (1, 2) }}",
    "{{ 2 in l }} {{ 9 in l }} {{ 2 not in l }} {{ 'ell' in s }} {{ 'a' in d }} {{ 1 in d }} {{ '' in e }} {{ 'x' in nope }} {{ 2 in range(3) }} {{ 'a' in d.keys() }} {{ 1 in d.values() }}", "{{ not t }} {{ not not e }} {{ not 1 in l }}",
    "{{ t and n }} {{ e and n }} {{ e or 'x' }} {{ 0 or [] or nil }} {{ t or nope.x }}", "{{ 'y' if t else 'n' }} {{ 'y' if no }}| {{ 'a' if no else 'b' if no else 'c' }}", "{{ -n }} {{ +f }} {{ - -n }} {{ -t }}",
    "{{ -1|abs }} {{ 1 + -1|abs }} {{ 'a' ~ 'b'|upper }} {{ ('a' ~ 'b')|upper }} {{ -5 % 3 }} {{ 2 * 3 % 4 }}", "{{ (1, 2) }} {{ (1,) }} {{ () }} {{ 1, 2 }} {{ [] }} {{ {} }} {{ {'a': 1, 2: 'b', none: [1.0, true]} }}",
    "{{ {'a': 1, 'a': 2} }} {{ {1: 'a', 1.0: 'b', true: 'c'} }}", "{{ s[0] }} {{ s[-1] }} {{ s[99] }}| {{ s[1:4] }} {{ s[:-3] }} {{ s[::2] }} {{ s[::-1] }} {{ s[5:1:-1] }} {{ s[-3:] }} {{ s[3:3] }}|",
    "{{ u[0] }} {{ u[2:4] }} {{ u[::-1] }} {{ u|length }} {{ u[6:8] }}", "{{ l[0] }} {{ l[-1] }} {{ l[5] }}| {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[5:] }} {{ l[-9:9] }} {{ l[::5] }} {{ l[2:0:-1] }} {{ (1, 2, 3)[1:] }}",
    "{{ range(10)[2] }} {{ range(10)[::3] }} {{ range(5)|list }} {{ range(5, 1, -2)|list }} {{ range(3) }} {{ range(0) | list }} {{ range(1, 9, 2)[1:] | list }}", "{{ d.a }} {{ d['b'] }} {{ d.C.x[0] }} {{ d['C']['x'] }} {{ d.zz }}| {{ d['zz'] }}|",
    "{{ keys.items is string }} {{ keys['items'] }} {{ keys.get is callable }} {{ keys['get'] }} {{ keys._p }} {{ d['items'] is callable }} {{ d.__class__ }}|", "{{ l.0 }} {{ nested.1.0 }} {{ l['0'] }}|", "{{ none }} {{ true }} {{ False }} {{ None }} {{ True }}",
    "{{ nil.x }}|{{ n.x }}|{{ s.x }}|{{ l.x }}|", "{{ 1.5.x }}|{{ 3|string ~ 4 }}", "{{ nope }}|{{ nope ~ 'x' }}|{{ nope == nope2 }}|{{ nope is defined }}|{{ nope|length }}|{{ nope|list }}|{{ [nope] }}|{{ nope != 1 }}",
    "{{ 'a' 'b' }} {{ 5 is odd and 4 is even }}", "{{ 10 - 2 - 3 }} {{ 2 * (3 + 4) }} {{ 8 / 2 / 2 }}", "{{ 1 - 1 ~ 2 }}", "{{ 3 + 2 ~ 1 }}", "{{ loop }}|",
    "{{ nope.x }}", "{{ nope() }}", "{{ nope + 1 }}", "{{ 1 + nope }}", "{{ 'a' + 1 }}", "{{ 1 + 'a' }}", "{{ none + 1 }}", "{{ 'a' + none }}", "{{ -s }}", "{{ -nope }}", "{{ 1 < 'a' }}", "{{ nope < 1 }}", "{{ none < 1 }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}",
    "{{ 1.0 / 0 }}", "{{ 'a' - 'b' }}", "{{ [1] + (2,) }}", "{{ d < d }}", "{{ 1 in 'a1' }}", "{{ 1 in 1 }}", "{{ s() }}", "{{ l() }}", "{{ s[::0] }}", "{{ s['a':] }}", "{{ {[]: 1} }}", "{{ {} in {} }}", "{{ l.append(1) }}", "{{ d.update({}) }}", "{{ d.zz.y }}",
    "{{ range(200000) }}", "{{ range(1, 2, 0) }}", "{{ range() }}", "{{ range('a') }}", "{{ d.__class__() }}", "{{ (nope,) < (1,) }}", "{{ 2 ** 0.5 }} {{ 10 ** 2 }} {{ (-8) ** 3 }}",
]

STATEMENTS = [
    "{% if n > 2 %}a{% elif n > 1 %}b{% else %}c{% endif %}", "{% if no %}a{% elif e %}b{% else %}c{% endif %}", "{% if l %}x{% endif %}{% if empty %}y{% endif %}{% if ed %}z{% endif %}{% if nil %}w{% endif %}{% if '' %}v{% endif %}{% if 0.0 %}u{% endif %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.previtem }}/{{ loop.nextitem }} {% endfor %}",
    "{% for x in empty %}a{% else %}none{% endfor %}", "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.last }}{% else %}no{% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}no{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for c in 'abc' %}{{ c }}.{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for x in nope %}x{% else %}-{% endfor %}", "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}", "{% for x in l %}{% for y in ls %}{{ loop.index }}{% if y == 'A' %}{% break %}{% endif %}{% endfor %}{{ loop.index }} {% endfor %}", "{% for x in l %}{% set y = x %}{% endfor %}{{ y }}|{{ x }}|",
    "{% set y = 0 %}{% for x in l %}{{ y }}{% set y = x %}{{ y }}{% endfor %}{{ y }}", "{% set ns = namespace(v=0, w='a') %}{% for x in l %}{% set ns.v = ns.v + x %}{% endfor %}{{ ns.v }}{{ ns.w }}{{ ns.zz }}|{{ ns['v'] }}", "{{ namespace(a=1) }}", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}",
    "{% if t %}{% set z = 5 %}{% endif %}{{ z }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x is string }}", "{% set x | upper | replace('A', 'z') %}abc{% endset %}{{ x }}", "{% set x %}{% set q = 1 %}{{ q }}{% endset %}{{ q }}|{{ x }}",
    "{% macro m(a, b=2, c='x' ~ a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=9) }}{{ m(b=1, a=2) }}{{ m() }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m }}",
    "{% macro m(a) %}[{{ caller() }}{{ a }}]{% endmacro %}{% call m(1) %}in{{ n }}{% endcall %}", "{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b) m() %}{{ a }}-{{ b }}{% endcall %}", "{% macro m() %}{{ caller is defined }}{{ caller }}{% endmacro %}{{ m() }}", "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(4) }}",
    "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "{% macro m() %}{{ late }}{% endmacro %}{% set late = 'l' %}{{ m() }}", "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}|", "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m() %} a {% endmacro %}{{ m()|trim }}{{ m() ~ 1 }}{{ m()|length }}",
    "{% macro m() -%}\n  a\n{%- endmacro %}{{ m() + 'b' }}", "{% with a = 1, b = n %}{{ a + b }}{% set a = 9 %}{{ a }}{% endwith %}{{ a }}|", "{% with %}{{ n }}{% endwith %}", "{% filter upper %}abc{{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aa{% endfilter %}", "{% print n, s %}",
    "a{% generation %}b{{ n }}{% endgeneration %}c", "{% for x in l %}{%- generation -%} {{ x }} {{ loop.index }}{%- endgeneration -%} {% endfor %}", "{% generation %}{% set q = 1 %}{% endgeneration %}{{ q }}|", "{% set x = [1, 2] + [3] %}{% for i in x %}{{ i }}{% endfor %}", "{% for x in [1, 2, 3][::-1] %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }} {% endfor %}", "{% for x in l|sort %}{{ x }}{% endfor %}{% for x in people|selectattr('age', 'equalto', 30) %}{{ x.name }}{{ loop.length }}{% endfor %}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% set j = joiner('; ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %B %A %j') }}|{{ strftime_now('') }}|{{ strftime_now is defined }}", "{{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ dict(d, z=1) }} {{ dict() }}", "{% set loop_messages = l[1:] %}{{ loop_messages }}",
    "{% for x in range(3) %}{% if loop.first %}F{% elif loop.last %}L{% else %}M{% endif %}{% endfor %}", "{% for i in l %}{% if loop.index == 2 %}{% set found = i %}{% endif %}{% if found is defined %}{{ found }}{% endif %}.{% endfor %}", "{% for x in l %}{% break %}{% else %}e{% endfor %}{% for x in l %}{% continue %}{% else %}f{% endfor %}", "{% for x in l: %}{{ x }}{% endfor %}", "{% if t: %}x{% endif %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% set t = 'shadow' %}{{ t }}", "{% for n in l %}{{ n }}{% endfor %}{{ n }}", "{% for x in d.items()|list %}{{ x[0] }}{{ loop.depth }}{% endfor %}", "{% for x in l %}{% for y in l %}{{ loop.depth0 }}{% endfor %}{% endfor %}", "{% macro m(x) %}{{ x is defined }}{% endmacro %}{{ m() }}{{ m(none) }}",
    "{% for x in people|map(attribute='name') %}{{ x }}{{ ',' if not loop.last }}{% endfor %}", "{% set ns = namespace(a=[]) %}{% for x in l %}{% set ns.a = ns.a + [x * 2] %}{% endfor %}{{ ns.a }}", "{% if nope is not defined %}{% set nope = 1 %}{% endif %}{{ nope }}", "{% set n = n %}{{ n }}", "{% set n = n + 1 %}{% set n = n + 1 %}{{ n }}",
    "{{ raise_exception('stop ' ~ n) }}", "{% if no %}{{ raise_exception('x') }}{% endif %}ok", "{% for x in n %}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for a, b in l %}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% set a, b = [1] %}", "{% set ns = 1 %}{% set ns.x = 2 %}", "{% set ns = namespace() %}{% set ns._x = 2 %}", "{{ namespace(_a=1) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=1) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(a) %}{% endmacro %}{% call m(1) %}{% endcall %}", "{% break %}", "{% for x in l %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "{% call n %}{% endcall %}", "{{ caller() }}", "{% for x in l %}{{ loop(l) }}{% endfor %}",
    "{{ cycler() }}", "{{ strftime_now() }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ s|nofilter }}", "{{ s is notest }}", "{% if no %}{{ s|nofilter }}{% endif %}ok", "{% if no %}{% for x in l %}{{ s|nofilter }}{% endfor %}{% endif %}", "{{ (s|nofilter) if no else 'ok' }}", "{% for x in empty %}{{ s|nofilter }}{% endfor %}", "{% if t %}{{ s|nofilter }}{% endif %}",
]

FILTERS = [
    "{{ d|tojson }}", "{{ d|tojson(indent=2) }}", "{{ mixed|tojson }} {{ nested|tojson(indent=4) }} {{ empty|tojson(indent=2) }} {{ ed|tojson(indent=2) }}", "{{ html|tojson }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ u|tojson(true) }}", "{{ {'b': 1, 'a': [1, {'z': 2, 'y': 3}]}|tojson(sort_keys=true) }}",
    "{{ d|tojson(separators=(',', ':')) }} {{ d|tojson(separators=[' ; ', ' = '], indent=1) }} {{ [1]|tojson(indent='\t') }} {{ [1]|tojson(indent=0) }}", "{{ 1.0|tojson }} {{ big|tojson }} {{ small|tojson }} {{ true|tojson }} {{ none|tojson }} {{ 'a\\n\\r\\t\\f\\b\\x01\\x7f\"\\\\/'|tojson }}", "{{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }}", "{{ (1, 2)|tojson }} {{ lines|tojson }}",
    "{{ ws|trim }}|{{ 'xxaxx'|trim('x') }}|{{ none|trim }}|{{ 5|trim }}", "{{ s|length }} {{ l|count }} {{ d|length }} {{ ''|length }} {{ d.items()|length }} {{ range(7)|length }}", "{{ s|upper }} {{ s|lower }} {{ u|upper }} {{ 'straße ǆ'|upper }} {{ 'hELLO wORLD'|capitalize }} {{ text|title }} {{ 'ÀB'|lower }} {{ 5|upper }}", "{{ ''|capitalize }}|{{ ''|title }}|",
    "{{ l|join }} {{ l|join(', ') }} {{ people|join('-', attribute='name') }} {{ 'abc'|join('.') }} {{ mixed|join('|') }} {{ l|join(1) }} {{ d|join }}", "{{ nope|default('x') }} {{ e|default('x') }}| {{ e|default('x', true) }} {{ nil|d('y') }} {{ nil|default('y', boolean=true) }} {{ nope|default }}|", "{{ l|first }} {{ l|last }} {{ empty|first }}| {{ empty|last }}| {{ s|first }} {{ s|last }} {{ d|first }} {{ d|last }} {{ d.items()|last }}",
    "{{ s|list }} {{ d|list }} {{ d.items()|list }} {{ d|items|list }} {{ nope|items|list }} {{ range(3)|list }} {{ (1, 2)|list }}", "{{ d|dictsort }} {{ d|dictsort(true) }} {{ {'a': 2, 'b': 1}|dictsort(by='value') }} {{ {'a': 2, 'b': 1}|dictsort(false, 'value', true) }}", "{{ ls|map('upper')|list }} {{ people|map(attribute='age')|list }} {{ people|map(attribute='pet.kind', default='none')|list }} {{ l|map('string')|join }} {{ ls|map('replace', 'a', 'z')|list }} {{ nested|map('first')|list }}",
    "{{ people|selectattr('pet')|map(attribute='name')|list }} {{ people|rejectattr('pet')|map(attribute='name')|list }} {{ people|selectattr('pet', 'defined')|list|length }} {{ people|selectattr('age', '>', 26)|list|length }} {{ people|rejectattr('name', 'in', ['Ann'])|map(attribute='name')|list }}", "{{ l|select('odd')|list }} {{ l|reject('odd')|list }} {{ mixed|select|list }} {{ mixed|select('string')|list }} {{ l|select('gt', 1)|list }} {{ l|select('divisibleby', 3)|list }}",
    "{{ s|replace('l', 'L') }} {{ s|replace('l', 'L', 1) }} {{ s|replace('', '-') }} {{ 'aaa'|replace('aa', 'b') }} {{ 5|replace(5, 6) }} {{ s|replace('o', none) }}", "{{ 5|string + '1' }} {{ '42'|int + 1 }} {{ '4.7'|int }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ 4.9|int }} {{ -4.9|int }} {{ '0x1f'|int(base=16) }} {{ '101'|int(0, 2) }} {{ true|int }} {{ none|int }} {{ ' 12 '|int }} {{ '1_0'|int }} {{ '1e3'|int }} {{ 'z'|int(base=36) }}",
    "{{ '2.5'|float }} {{ 3|float }} {{ 'x'|float }} {{ 'x'|float(1.5) }} {{ '1e3'|float }} {{ 'inf'|float }} {{ none|float }} {{ ' 1.5 '|float }}", "{{ 2.567|round }} {{ 2.567|round(2) }} {{ 2.5|round }} {{ 3.5|round }} {{ -2.5|round }} {{ 2.1|round(method='ceil') }} {{ 2.9|round(0, 'floor') }} {{ 5|round }} {{ 1234.5|round(-2) }} {{ 2.675|round(2) }} {{ 5|round(1, 'ceil') }} {{ 1250|round(-2) }}",
    "{{ ls|unique|list }} {{ ls|unique(true)|list }} {{ people|unique(attribute='age')|map(attribute='name')|list }} {{ [1, 1.0, true, '1']|unique|list }}", "{{ l|reverse|list }} {{ s|reverse }} {{ d|reverse|list }} {{ l|sort }} {{ ls|sort }} {{ ls|sort(case_sensitive=true) }} {{ l|sort(true) }} {{ people|sort(attribute='age,name')|map(attribute='name')|list }} {{ people|sort(attribute='name', reverse=true)|map(attribute='name')|list }}",
    "{{ html|safe }} {{ html|e }} {{ html|escape|length }} {{ 'a<'|safe + '<' }} {{ '<' + ('a'|safe) }} {{ ('<'|safe) ~ '<' }} {{ ('<b>'|safe)|upper + '<' }} {{ html|e|e }} {{ html|forceescape }} {{ 5|e }}", "{{ lines|indent }}|{{ lines|indent(2) }}|{{ lines|indent(2, true) }}|{{ lines|indent(2, true, true) }}|{{ lines|indent('> ', first=true) }}|{{ ''|indent }}|{{ 'a\n'|indent }}|", "{{ l|sum }} {{ people|sum(attribute='age') }} {{ l|sum(start=10) }} {{ [[1], [2]]|sum(start=[]) }} {{ empty|sum }} {{ [1.5, 2]|sum }}",
    "{{ l|min }} {{ l|max }} {{ ls|min }} {{ ls|max(true) }} {{ people|max(attribute='age') == people[0] }} {{ empty|min }}|", "{{ -3|abs }} {{ 2.5|abs }} {{ (-2.5)|abs }}", "{{ people|groupby('age')|list|length }} {% for k, g in people|groupby('age') %}{{ k }}:{{ g|map(attribute='name')|join(',') }};{% endfor %}{% for g in ls|groupby(0) %}{{ g[0] }}{{ g[1]|length }}{% endfor %}", "{{ l|batch(2)|list }} {{ l|batch(2, 'x')|list }} {{ [1, 2, 3, 4, 5]|slice(3)|list }} {{ [1, 2, 3, 4]|slice(3, 0)|list }}",
    "{{ 'abc'|center(9) }}|{{ 'abcd'|center(9) }}|{{ 'ab'|center(1) }}|", "{{ text|truncate(12) }}|{{ text|truncate(12, true) }}|{{ text|truncate(9, false, '!') }}|{{ text|truncate(34) }}|{{ text|truncate(30, leeway=0) }}", "{{ text|wordcount }} {{ ''|wordcount }} {{ u|wordcount }}", "{{ '%s and %d'|format('a', 5) }} {{ '%(x)s'|format(x=1) }} {{ '%.2f|%5d|%-5s|%05d|%x|%r'|format(1.005, 42, 'ab', 7, 255, 'q') }}", "{{ 'a b&c/d?é'|urlencode }}", "{{ 1|filesizeformat }} {{ 1500|filesizeformat }} {{ 1500|filesizeformat(true) }} {{ 123456789|filesizeformat }} {{ 0|filesizeformat }}",
    "{{ d|attr('items') is callable }} {{ d|attr('a') }}| {{ s|attr('upper')() }}", "{{ l|map('abs')|sum }} {{ ls|join('')|upper|length }}", "{{ people|map(attribute='pet')|select('defined')|list|length }} {{ people|map(attribute='pet')|reject('undefined')|map(attribute='kind')|join }}", "{{ l|select('odd') is iterable }} {{ l|select('odd') is sequence }} {{ l|select('odd')|first }}", "{{ (l|select('odd'))[0] }}|{{ l|reverse|first }}", "{% set g = l|select('odd') %}{{ g|list }}{{ g|list }}",
    "{{ nope|upper }}|{{ nope|trim }}|{{ nope|join }}|{{ nope|replace('a', 'b') }}|{{ nope|string }}|{{ nope|first }}|{{ nope|list }}|{{ nope|map('upper')|list }}|{{ nope|select|list }}|{{ nope|e }}|{{ nope|sort }}|{{ nope|sum }}|{{ nope|title }}|{{ nope|unique|list }}|{{ nope|reverse|list }}|{{ nope|last }}",
    "{{ n|length }}", "{{ none|length }}", "{{ n|list }}", "{{ none|join }}", "{{ none|first }}", "{{ n|first }}", "{{ nope|tojson }}", "{{ [nope]|tojson }}", "{{ range(3)|tojson }}", "{{ d.items()|tojson }}", "{{ {(1, 2): 3}|tojson }}", "{{ nope|int }}", "{{ nope|float }}", "{{ nope|abs }}", "{{ 'a'|abs }}", "{{ s|round }}", "{{ ls|sum }}", "{{ mixed|sort }}", "{{ [[1]]|unique|list }}", "{{ nope|dictsort }}", "{{ l|dictsort }}",
    "{{ d|dictsort(by='x') }}", "{{ l|map|list }}", "{{ l|map('nope')|list }}", "{{ l|select('nope')|list }}", "{{ l|selectattr|list }}", "{{ l|items|list }}", "{{ s|replace('a') }}", "{{ s|trim(1, 2) }}", "{{ s|upper(1) }}", "{{ s|default('a', zz=1) }}", "{{ l|round }}", "{{ 1.5|round(0, 'x') }}", "{{ n|indent }}", "{{ l|join('a', zz=1) }}", "{{ 'a'|truncate(1) }}", "{{ (l|select('odd'))|length }}", "{{ (l|select('odd'))|last }}", "{{ [1, 2]|min(attribute='x') }}", "{{ '%d'|format('a') }}", "{{ '%s'|format }}", "{{ '%s'|format(1, 2) }}",
]

TESTS = [
    "{{ n is defined }} {{ nope is defined }} {{ nope is undefined }} {{ d.zz is defined }} {{ d.a is not defined }}", "{{ nil is none }} {{ n is none }} {{ nope is none }} {{ nil is not none }}", "{{ s is string }} {{ n is string }} {{ nope is string }}", "{{ d is mapping }} {{ l is mapping }} {{ s is mapping }}",
    "{% for x in [s, l, d, n, nil, nope, t, f, range(2), (1,), d.items()] %}{{ x is iterable }}{{ x is sequence }}{{ x is mapping }}{{ x is string }}{{ x is number }}{{ x is boolean }}{{ x is integer }}{{ x is float }}{{ x is callable }} {% endfor %}", "{{ t is true }} {{ 1 is true }} {{ no is false }} {{ 0 is false }} {{ t is boolean }}", "{{ n is number }} {{ f is float }} {{ n is integer }} {{ t is integer }} {{ t is number }} {{ one is integer }}",
    "{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }}", "{{ n is eq 3 }} {{ n is equalto(3) }} {{ n is ne 3 }} {{ n is lt 4 }} {{ n is gt 4 }} {{ n is le 3 }} {{ n is ge(3) }} {{ n is sameas 3 }} {{ nil is sameas none }} {{ t is sameas true }} {{ 1 is sameas true }}", "{{ 2 is in l }} {{ 2 is in([1]) }} {{ 'a' is in 'abc' }} {{ 'x' is not in d }}",
    "{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'a1' is lower }} {{ '1' is upper }} {{ 5 is upper }}", "{{ range is callable }} {{ s is callable }} {{ s.upper is callable }}", "{{ 'upper' is filter }} {{ 'zz' is filter }} {{ 'odd' is test }} {{ 'zz' is test }}", "{{ s is string and n is number }} {{ n is defined or nope }} {{ not n is defined }} {{ n is not string }}", "{{ 'a'|safe is escaped }} {{ 'a' is escaped }}", "{{ n is string is string }}", "{{ 'a' is odd }}", "{{ nope is odd }}", "{{ n is divisibleby 0 }}", "{{ n is eq }}", "{{ n is in }}", "{{ 1 is in 1 }}", "{{ n is defined(1) }}",
    "{{ message is defined and message is not none }} {{ l is iterable and l is not string and l is not mapping }}", "{{ n is == 3 }}", "{{ (n is odd) ~ 'x' }} {{ n + 1 is even }} {{ -n is odd }}",
]

METHODS = [
    "{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ 'it\\'s a'.title() }} {{ 'hELLO'.capitalize() }} {{ s.swapcase() }}", "{{ ws.strip() }}|{{ ws.lstrip() }}|{{ ws.rstrip() }}|{{ 'xyaxy'.strip('yx') }}|{{ 'xya'.lstrip('x') }}|{{ 'ayx'.rstrip('x') }}|{{ '\\n\\na\\n'.strip('\\n') }}", "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'abc'.split('</x>') }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a b  c '.split(none, 1) }} {{ 'a--b'.split('-') }} {{ 'a b'.split(maxsplit=0) }}",
    "{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ 'abc'.rsplit('x') }} {{ 'aXXb'.rsplit('X') }} {{ ' x '.rsplit() }}", "{{ 'x<think>y</think>z'.split('</think>')[-1] }} {{ 'x<think>y</think>z'.split('</think>')[0].split('<think>')[-1] }}", "{{ s.startswith('He') }} {{ s.endswith('ld') }} {{ s.startswith(('x', 'H')) }} {{ s.startswith('llo', 2) }} {{ s.endswith('o', 0, 5) }} {{ s.startswith('') }} {{ ''.endswith('') }} {{ s.startswith('', 99) }}",
    "{{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ s.replace('', '.') }} {{ s.replace('zz', 'y') }}|{{ u.replace('你', '') }}", "{{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ s.index('W') }} {{ s.count('l') }} {{ s.find('o', 5) }} {{ u.find('好') }} {{ s.count('') }} {{ s.find('') }} {{ s.rindex('l') }}", "{{ 'abc'.isalpha() }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ ''.isalpha() }} {{ '½'.isnumeric() }} {{ 'é'.isascii() }}",
    "{{ ', '.join(ls) }} {{ ''.join('abc') }} {{ '-'.join(d) }} {{ '-'.join(ls|map('upper')) }}", "{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'abc'.partition('-') }} {{ 'abc'.rpartition('-') }}", "{{ 'abc'.center(8, '*') }} {{ 'abc'.ljust(5) }}| {{ 'abc'.rjust(5, '.') }} {{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ 'ab'.center(5, '*') }}", "{{ lines.splitlines() }} {{ lines.splitlines(true) }} {{ ''.splitlines() }}", "{{ 'prefix-a'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }} {{ 'a'.removesuffix('') }}",
    "{{ '{} {}'.format(1, 'a') }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=5) }} {{ '{:.2f}|{:>5}|{:<5}|{:^5}|{:05d}|{:,}'.format(3.14159, 'a', 'b', 'c', 42, 1234567) }} {{ '{{}}'.format() }} {{ '{0[1]} {1[a]} {0!r}'.format(['x', 'y'], d) }} {{ '{:x} {:b} {:%} {:+d} {:e}'.format(255, 5, 0.25, 3, 12345.678) }}", "{{ '%s %d %5.1f %%' % ('a', 3, 2.25) }} {{ '%s' % 'x' }} {{ '%s' % none }} {{ '%(a)s-%(b)d' % d }} {{ '%s' % [1] }} {{ '%r' % 'a' }} {{ '%c' % 'x' }} {{ '%+d % d %o %X %e %g' % (1, 2, 8, 255, 1.5, 0.0001) }} {{ 'x' % () }} {{ '%s' % nope }}|",
    "{{ d.items() }} {{ d.keys() }} {{ d.values() }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d.copy() }} {{ d.keys()|list }} {{ d.items()|list }}", "{% for k, v in d.items() if k != 'a' %}{{ k }}{{ loop.last }}{% endfor %}", "{{ l.index(1) }} {{ l.count(2) }} {{ (1, 1).count(1) }} {{ l.copy() }}",
    "{{ ['\\n\\t\\r\\x01\\x7f\\x85\\xa0\\u200b\\u2028é你😀', \"it's\", 'a\"b', 'a\"b\\'c', '\\\\'] }}", "{{ mixed }} {{ d }} {{ nested }} {{ {'a': nope} }} {{ [1e16, 1e-5, 1.0, -0.0] }} {{ ('a',) }} {{ [[], {}, ()] }} {{ ['a'|safe] }}", "{{ d.items()|list|first }} {{ dict(d.items()) == d }} {{ d.items() is sequence }}", "{{ 2.0.is_integer() }} {{ f.is_integer() }}", "{{ u.upper() }} {{ u.split(' ')[1] }} {{ u.strip('G') }}",
    "{{ s.nope() }}", "{{ s.split('') }}", "{{ s.index('zz') }}", "{{ ', '.join(l) }}", "{{ ', '.join(none) }}", "{{ s.replace('a') }}", "{{ s.startswith(1) }}", "{{ s.strip(1) }}", "{{ '%d' % 'a' }}", "{{ '%s %s' % 'a' }}", "{{ '%s' % (1, 2) }}", "{{ '%z' % 1 }}", "{{ '%(x)s' % d }}", "{{ '{}'.format() }}", "{{ '{x}'.format() }}", "{{ '{'.format() }}", "{{ '{:d}'.format('a') }}", "{{ d.get() }}", "{{ d.get([]) }}", "{{ l.index(9) }}", "{{ l.pop() }}", "{{ d.pop('a') }}", "{{ d.clear() }}", "{{ l.sort() }}", "{{ s.center() }}",
    "{{ 'a'.partition('') }}", "{{ nil.upper() }}", "{{ n.upper() }}", "{{ '%(a' % d }}", "{{ '%' % 1 }}", "{{ s.upper(1) }}", "{{ 'a'.zfill('b') }}",
]


def main():
    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(NOW)

    utils.datetime = Fixed
    cases = []
    for template in LEXER + OPERATORS + STATEMENTS + FILTERS + TESTS + METHODS:
        try:
            text = utils._compile_jinja_template(template).render(**VARIABLES)
            assert " at 0x" not in text, template
        except Exception:  # whatever Python raises ends the rendering
            text = None
        cases.append([template, text])
    save_json(HERE / "jinja.json", {"versions": versions("transformers", "jinja2"), "now": NOW, "variables": VARIABLES, "cases": cases})
    print(len(cases), "templates,", sum(c[1] is None for c in cases), "raise")


if __name__ == "__main__":
    main()
