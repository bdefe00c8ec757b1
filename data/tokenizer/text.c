/* UTF-8 and texts that remember their sources. Malformed input is counted in maximal subparts, the practice of the Unicode
 * standard (chapter 3, "U+FFFD Substitution of Maximal Subparts") that Python's and Rust's decoders share. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"

int lk_utf8_decode(const char *text, size_t n, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned c = p[0];
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    if (c < 0xc2 || c > 0xf4) return 0;
    int length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if ((size_t)length > n) return 0;
    uint32_t value = c & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (p[i] & 0x3fu);
    }
    /* overlong forms, surrogates, beyond the last plane */
    if ((length == 3 && value < 0x800) || (length == 4 && (value < 0x10000 || value > 0x10ffff))) return 0;
    if (value >= 0xd800 && value < 0xe000) return 0;
    *cp = value;
    return length;
}

int lk_utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int length = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3f));
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    out[0] = (char)(lead[length] | cp);
    return length;
}

int lk_utf8_subpart(const char *text, size_t n, bool *incomplete)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned c = p[0];
    *incomplete = false;
    if (c < 0xc2 || c > 0xf4) return 1;
    int length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    /* the second byte has the narrower range that rules out overlong forms, surrogates and planes that do not exist */
    unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    int i = 1;
    for (; i < length; i++, low = 0x80, high = 0xbf) {
        if ((size_t)i == n) {
            *incomplete = true;
            return i;
        }
        if (p[i] < low || p[i] > high) return i;
    }
    return i;
}

size_t lk_utf8_valid_prefix(const char *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= 8 && (memcpy(&eight, p + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        uint32_t cp;
        int length = lk_utf8_decode(p + i, n - i, &cp);
        if (!length) break;
        i += (size_t)length;
    }
    return i;
}

lk_status lk_text_reserve(lk_text *t, size_t more, lk_error *err)
{
    if (t->room - t->n >= more) return LK_OK;
    size_t room = t->room < 64 ? 64 : t->room;
    while (room - t->n < more) {
        if (room > SIZE_MAX / 4 / sizeof *t->from) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: a text of %zu bytes is too large", t->n);
        room *= 2;
    }
    char *p = realloc(t->p, room);
    if (p) t->p = p;
    size_t *from = t->tracked && p ? realloc(t->from, room * sizeof *from) : t->from;
    if (from) t->from = from;
    if (!p || (t->tracked && !from)) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for %zu bytes of text", room);
    t->room = room;
    return LK_OK;
}

lk_status lk_text_copy(lk_text *t, const lk_view *source, size_t begin, size_t end, lk_error *err)
{
    size_t n = end - begin;
    if (n == 0) return LK_OK;
    LK_TRY(lk_text_reserve(t, n, err));
    memcpy(t->p + t->n, source->p + begin, n);
    if (t->tracked)
        for (size_t i = 0; i < n; i++) t->from[t->n + i] = lk_view_source(source, begin + i);
    t->n += n;
    return LK_OK;
}

lk_status lk_text_add(lk_text *t, const char *p, size_t n, size_t source, lk_error *err)
{
    if (n == 0) return LK_OK;
    LK_TRY(lk_text_reserve(t, n, err));
    memcpy(t->p + t->n, p, n);
    if (t->tracked)
        for (size_t i = 0; i < n; i++) t->from[t->n + i] = source;
    t->n += n;
    return LK_OK;
}

lk_view lk_text_view(const lk_text *t) { return (lk_view){t->p ? t->p : "", t->n, t->tracked ? t->from : NULL, 0}; }

void lk_text_free(lk_text *t)
{
    free(t->p);
    free(t->from);
    *t = (lk_text){0};
}
