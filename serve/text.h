/* A growing text, and JSON written into it: what replies, stream chunks and metrics are made of.
 *
 *     lk_text out = {0};
 *     lk_text_string(&out, "{\"text\":");
 *     lk_text_json(&out, bytes, size);
 *     lk_text_string(&out, "}");
 *     if (out.failed) ...                 -- no memory: once for the whole text, not after every call
 *     lk_text_free(&out);
 *
 * A tree of nodes (cJSON) would cost an allocation for every field of every token streamed. */
#ifndef LK_SERVE_TEXT_H
#define LK_SERVE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct lk_text {
    char *data; /* ends in a zero that size does not count; NULL while empty */
    size_t size, capacity;
    bool failed; /* memory ran out: the content is incomplete and later calls do nothing */
} lk_text;

void lk_text_add(lk_text *text, const char *bytes, size_t size);
void lk_text_string(lk_text *text, const char *string);
void lk_text_printf(lk_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A quoted JSON string. Bytes that are not UTF-8 become U+FFFD, so the result is always valid JSON. */
void lk_text_json(lk_text *text, const char *bytes, size_t size);
void lk_text_json_string(lk_text *text, const char *string); /* NULL: null */
/* A JSON number that reads back as the same float. Not finite: -9999 as vLLM writes, JSON has no infinity. */
void lk_text_float(lk_text *text, float value);
void lk_text_clear(lk_text *text); /* keeps the memory */
void lk_text_free(lk_text *text);

/* Length of the well-formed UTF-8 character at p (1..4), or 0. */
int lk_utf8_length(const char *p, size_t room);

#endif
