#include "serve/writer.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` bytes and the final zero. */
static bool reserve(lk_writer *text, size_t more)
{
    if (text->failed) return false;
    if (more < text->capacity - text->size) return true;
    if (more > SIZE_MAX / 4 - text->size) {
        text->failed = true;
        return false;
    }
    size_t capacity = text->capacity ? text->capacity : 256;
    while (capacity <= text->size + more) capacity *= 2;
    char *data = realloc(text->data, capacity);
    if (!data) {
        text->failed = true;
        return false;
    }
    text->data = data;
    text->capacity = capacity;
    return true;
}

void lk_writer_add(lk_writer *text, const char *bytes, size_t size)
{
    if (!reserve(text, size)) return;
    if (size) memcpy(text->data + text->size, bytes, size);
    text->size += size;
    text->data[text->size] = 0;
}

void lk_writer_string(lk_writer *text, const char *string) { lk_writer_add(text, string, strlen(string)); }

void lk_writer_printf(lk_writer *text, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) text->failed = true;
    if (n >= 0 && reserve(text, (size_t)n)) {
        vsnprintf(text->data + text->size, (size_t)n + 1, format, again);
        text->size += (size_t)n;
    }
    va_end(again);
}

/* Overlong forms, surrogates and values above U+10FFFF are malformed (Unicode 15, table 3-7). */
int lk_utf8_length(const char *text, size_t room)
{
    const unsigned char *p = (const unsigned char *)text;
    if (room == 0) return 0;
    if (p[0] < 0x80) return 1;
    int n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (n == 0 || p[0] > 0xf4 || (size_t)n > room) return 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
    return n;
}

static void escape(lk_writer *text, unsigned char c)
{
    switch (c) {
    case '"': lk_writer_add(text, "\\\"", 2); break;
    case '\\': lk_writer_add(text, "\\\\", 2); break;
    case '\n': lk_writer_add(text, "\\n", 2); break;
    case '\r': lk_writer_add(text, "\\r", 2); break;
    case '\t': lk_writer_add(text, "\\t", 2); break;
    default: lk_writer_printf(text, "\\u%04x", c);
    }
}

void lk_writer_json(lk_writer *text, const char *bytes, size_t size)
{
    lk_writer_add(text, "\"", 1);
    size_t plain = 0; /* start of the bytes not yet copied */
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)bytes[i];
        int n = lk_utf8_length(bytes + i, size - i);
        if (n > 1 || (n == 1 && c >= 0x20 && c != 0x7f && c != '"' && c != '\\')) {
            i += (size_t)n;
            continue;
        }
        lk_writer_add(text, bytes + plain, i - plain);
        if (n == 0)
            lk_writer_string(text, "\xef\xbf\xbd");
        else
            escape(text, c);
        plain = ++i;
    }
    lk_writer_add(text, bytes + plain, size - plain);
    lk_writer_add(text, "\"", 1);
}

void lk_writer_json_string(lk_writer *text, const char *string)
{
    if (string)
        lk_writer_json(text, string, strlen(string));
    else
        lk_writer_string(text, "null");
}

void lk_writer_float(lk_writer *text, float value)
{
    if (!isfinite(value)) {
        lk_writer_string(text, "-9999.0");
        return;
    }
    char number[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(number, sizeof number, "%.*g", digits, (double)value);
        if (strtof(number, NULL) == value) break;
    }
    lk_writer_string(text, number);
    /* "-0" and "3" are JSON numbers too, but typed clients expect a fraction where the field is a float. */
    if (!strpbrk(number, ".e")) lk_writer_string(text, ".0");
}

void lk_writer_clear(lk_writer *text)
{
    text->size = 0;
    text->failed = false;
    if (text->data) text->data[0] = 0;
}

void lk_writer_free(lk_writer *text)
{
    free(text->data);
    *text = (lk_writer){0};
}
