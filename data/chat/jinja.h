/* Chat templates' Jinja: the language of jinja2 as transformers sets it up for chat templates, without Python.
 *
 *     lk_jinja *t;
 *     LK_TRY(lk_jinja_compile(&t, "chat_template", source, size, err));
 *     lk_jinja_variable v[] = {{"messages", messages, LK_ORIGIN_MESSAGES}, {"bos_token", bos, LK_ORIGIN_TEMPLATE}};
 *     LK_TRY(lk_jinja_render(t, v, 2, &options, &out, err));
 *     lk_jinja_output_free(&out);
 *     lk_jinja_free(t);
 *
 * Matched is jinja2's ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks, loopcontrols, transformers' tojson, raise_exception,
 * strftime_now and {% generation %}: statements for, if, set, macro, call, filter, with, raw, break, continue; all operators; the filters,
 * tests and methods that docs/tokenizers.md lists, with Python's semantics of str(), repr(), truth, comparison and slices. Where Python
 * would raise, rendering fails with the template's line. include, import, extends, block and recursive loops are refused when compiling.
 *
 * Every byte put out knows its origin: the template's own text, or which message (or other input) it was copied from, through all string
 * operations; so the caller can keep users' words from being read as special tokens and can find an assistant's turn. */
#ifndef LK_DATA_CHAT_JINJA_H
#define LK_DATA_CHAT_JINJA_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lk_jinja lk_jinja;

/* Where bytes come from. A message's strings have LK_ORIGIN_MESSAGE + its index, its role LK_ORIGIN_ROLE besides; a literal is 0. */
enum {
    LK_ORIGIN_TEMPLATE = 0,
    LK_ORIGIN_DATA = 1,
    LK_ORIGIN_MESSAGE = 2,
    LK_ORIGIN_SOURCE = (1 << 24) - 1, /* mask of the above */
    LK_ORIGIN_ROLE = 1 << 24,
    LK_ORIGIN_GENERATED = 1 << 25, /* inside {% generation %} */
    LK_ORIGIN_MESSAGES = 1 << 26   /* only for variables: an array whose entries are numbered */
};

/* value is borrowed until the render returns; NULL leaves the name undefined. Numbers whose valuestring is set are read from that text
 * (lk_json_keep_numbers), so that 1.0 stays a float. */
typedef struct lk_jinja_variable {
    const char *name;
    const cJSON *value;
    uint32_t origin;
} lk_jinja_variable;

typedef struct lk_jinja_options {
    int64_t now;       /* seconds since 1970 for strftime_now, shown in local time */
    int64_t max_steps; /* of the interpreter; a copied byte is 1/64 */
    size_t max_output; /* bytes of the text */
    size_t max_memory; /* bytes of everything */
} lk_jinja_options;
/* 20 million steps, 64 MiB, 512 MiB, the clock's time. */
void lk_jinja_options_default(lk_jinja_options *options);

/* A stretch of one origin: it begins where the one before ends. Empty ones mark where an empty value was put out. */
typedef struct lk_jinja_span {
    uint32_t end, origin;
} lk_jinja_span;

typedef struct lk_jinja_output {
    char *text; /* ends in a zero that n does not count */
    size_t n;
    lk_jinja_span *spans; /* cover the text */
    int64_t n_spans;
} lk_jinja_output;

/* name is used in messages ("chat_template: line 3: ..."). LK_ERR_FORMAT for what jinja2 does not take either, LK_ERR_UNSUPPORTED for what
 * only this interpreter does not know. An immutable value that many threads may render. */
lk_status lk_jinja_compile(lk_jinja **t, const char *name, const char *source, size_t size, lk_error *err);
void lk_jinja_free(lk_jinja *t); /* NULL is fine */
bool lk_jinja_has_generation(const lk_jinja *t);
/* The template reads this variable somewhere, or calls this function. */
bool lk_jinja_uses(const lk_jinja *t, const char *name);

/* LK_ERR_ARGUMENT for what raise_exception said (the message is its text), LK_ERR_FORMAT for any other error of the template on these
 * inputs, LK_ERR_MEMORY beyond a limit. Thread-safe. */
lk_status lk_jinja_render(const lk_jinja *t, const lk_jinja_variable *variables, int n, const lk_jinja_options *options,
                          lk_jinja_output *out, lk_error *err);
void lk_jinja_output_free(lk_jinja_output *out);

#endif
