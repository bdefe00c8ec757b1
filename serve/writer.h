/* A growing text, and JSON written into it: what replies, stream chunks and metrics are made of.
 *
 *     lk_writer out = {0};
 *     lk_writer_string(&out, "{\"text\":");
 *     lk_writer_json(&out, bytes, size);
 *     lk_writer_string(&out, "}");
 *     if (out.failed) ...                 -- no memory: once for the whole text, not after every call
 *     lk_writer_free(&out);
 *
 * A tree of nodes (cJSON) would cost an allocation for every field of every token streamed. */
#ifndef LK_SERVE_WRITER_H
#define LK_SERVE_WRITER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct lk_writer {
    char *data; /* ends in a zero that size does not count; NULL while empty */
    size_t size, capacity;
    bool failed; /* memory ran out: the content is incomplete and later calls do nothing */
} lk_writer;

void lk_writer_add(lk_writer *text, const char *bytes, size_t size);
void lk_writer_string(lk_writer *text, const char *string);
void lk_writer_printf(lk_writer *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A quoted JSON string. Bytes that are not UTF-8 become U+FFFD, so the result is always valid JSON. */
void lk_writer_json(lk_writer *text, const char *bytes, size_t size);
void lk_writer_json_string(lk_writer *text, const char *string); /* NULL: null */
/* A JSON number that reads back as the same float. Not finite: -9999 as vLLM writes, JSON has no infinity. */
void lk_writer_float(lk_writer *text, float value);
void lk_writer_clear(lk_writer *text); /* keeps the memory */
void lk_writer_free(lk_writer *text);

/* Length of the well-formed UTF-8 character at p (1..4), or 0. */
int lk_utf8_length(const char *p, size_t room);

#endif
