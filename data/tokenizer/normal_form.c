/* Unicode's normal forms: NFC, NFD, NFKC, NFKD.
 *
 * Characters are decomposed and composed with utf8proc's tables, but the marks are ordered here: utf8proc_map does it by exchanging
 * neighbours, which is quadratic on a text of nothing but marks. Only runs of characters that may change are touched; in NFC ASCII,
 * Latin-1, Cyrillic, Han, kana, Hangul and emoji pass by. A run begins with the character before the first doubtful one, since
 * that one may absorb a mark. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "data/tokenizer/internal.h"

/* Characters that the form leaves alone whatever stands before them. A character after them may still compose with them. */
static bool inert(int kind, uint32_t c)
{
    if (kind != LK_NORM_NFC) return c < 0xa0;
    return c < 0x300 || (c >= 0x400 && c <= 0x482) || (c >= 0x2010 && c <= 0x2027) ||
           (c >= 0x3000 && c <= 0x9fff && c != 0x3099 && c != 0x309a && !(c >= 0x302a && c <= 0x302f)) || (c >= 0xac00 && c <= 0xd7a3) ||
           (c >= 0x1f000 && c < 0x20000);
}

/* Marks that are newer than the `tokenizers` library's tables are characters of class 0 to it. */
static bool is_new_mark(utf8proc_int32_t c) { return c >= 0x7fd && lk_is_new_mark((uint32_t)c); }

static int combining_class(utf8proc_int32_t c)
{
    int found = utf8proc_get_property(c)->combining_class;
    return found && is_new_mark(c) ? 0 : found;
}

/* Stable sort of marks[0..n) by combining class. */
static lk_status order_marks(utf8proc_int32_t *marks, size_t n, lk_error *err)
{
    if (n < 32) {
        for (size_t i = 1; i < n; i++) {
            utf8proc_int32_t c = marks[i];
            size_t j = i;
            for (; j > 0 && combining_class(marks[j - 1]) > combining_class(c); j--) marks[j] = marks[j - 1];
            marks[j] = c;
        }
        return LK_OK;
    }
    size_t start[257] = {0};
    utf8proc_int32_t *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for normalisation");
    for (size_t i = 0; i < n; i++) start[(combining_class(marks[i]) & 255) + 1]++;
    for (int k = 0; k < 256; k++) start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++) sorted[start[combining_class(marks[i]) & 255]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
    free(sorted);
    return LK_OK;
}

static lk_status decompose(int kind, const lk_view *in, size_t begin, size_t end, utf8proc_int32_t *chars, size_t room, size_t *n,
                           lk_error *err)
{
    int options = UTF8PROC_DECOMPOSE | UTF8PROC_STABLE;
    if (kind == LK_NORM_NFKC || kind == LK_NORM_NFKD) options |= UTF8PROC_COMPAT;
    for (size_t i = begin; i < end;) {
        uint32_t c;
        int length = lk_utf8_decode(in->p + i, end - i, &c), boundary = 0;
        i += (size_t)length;
        if (length && lk_decomposes_too_new(c)) {
            chars[(*n)++] = (utf8proc_int32_t)c;
            continue;
        }
        utf8proc_ssize_t k = length ? utf8proc_decompose_char((utf8proc_int32_t)c, chars + *n, (utf8proc_ssize_t)(room - *n),
                                                              (utf8proc_option_t)options, &boundary)
                                    : -1;
        if (k < 0 || (size_t)k > room - *n) return lk_fail(err, LK_ERR_INTERNAL, "tokenizer: normalisation failed");
        *n += (size_t)k;
    }
    for (size_t i = 0; i < *n;) {
        size_t j = i;
        while (j < *n && combining_class(chars[j])) j++;
        if (j > i + 1) LK_TRY(order_marks(chars + i, j - i, err));
        i = j + 1;
    }
    return LK_OK;
}

/* Composes in place, stretch by stretch: at a new mark nothing composes across, as nothing does at a character of class 0 that has no
 * compositions. Returns the new length or -1. */
static utf8proc_ssize_t compose(utf8proc_int32_t *chars, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && !is_new_mark(chars[end]);) end++;
        utf8proc_ssize_t count = utf8proc_normalize_utf32(chars + i, (utf8proc_ssize_t)(end - i), UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (count < 0) return -1;
        memmove(chars + kept, chars + i, (size_t)count * sizeof *chars);
        kept += (size_t)count;
    }
    return (utf8proc_ssize_t)kept;
}

/* in[begin, end) in the form. Sources are kept exactly when nothing changes; otherwise byte for byte as far as they go. */
static lk_status run(int kind, const lk_view *in, size_t begin, size_t end, lk_text *out, lk_error *err)
{
    enum { MOST = 18 }; /* the longest canonical decomposition has 4, the compatibility one of U+FDFA 18 */
    bool compat = kind == LK_NORM_NFKC || kind == LK_NORM_NFKD;
    size_t n = 0, room = (end - begin) * (compat ? MOST / 2 : 2) + MOST;
    utf8proc_int32_t *chars = malloc(room * sizeof *chars);
    if (!chars) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for normalisation");
    lk_status status = decompose(kind, in, begin, end, chars, room, &n, err);
    utf8proc_ssize_t count = (utf8proc_ssize_t)n;
    if (!status && (kind == LK_NORM_NFC || kind == LK_NORM_NFKC)) count = compose(chars, n);
    if (!status && count < 0) status = lk_fail(err, LK_ERR_INTERNAL, "tokenizer: normalisation failed");
    size_t at = begin;
    for (utf8proc_ssize_t i = 0; i < count && !status; i++) {
        char bytes[4];
        int length = lk_utf8_encode((uint32_t)chars[i], bytes);
        for (int b = 0; b < length && !status; b++, at++)
            status = lk_text_add(out, bytes + b, 1, lk_view_source(in, at < end ? at : end - 1), err);
    }
    free(chars);
    return status;
}

/* The first place at or after i where a run that must be normalised begins; in->n when there is none. */
static size_t next_run(int kind, const lk_view *in, size_t i)
{
    size_t previous = i;
    while (i < in->n) {
        uint64_t eight;
        if (in->n - i >= 8 && (memcpy(&eight, in->p + i, 8), !(eight & 0x8080808080808080u))) {
            previous = i + 7;
            i += 8;
            continue;
        }
        uint32_t c;
        int length = lk_utf8_decode(in->p + i, in->n - i, &c);
        if (!inert(kind, c)) return previous;
        previous = i;
        i += (size_t)length;
    }
    return in->n;
}

static size_t run_end(int kind, const lk_view *in, size_t i)
{
    uint32_t c;
    i += (size_t)lk_utf8_decode(in->p + i, in->n - i, &c); /* the character before, or the first doubtful one */
    while (i < in->n) {
        int length = lk_utf8_decode(in->p + i, in->n - i, &c);
        /* an inert one is left alone by what precedes it, and the next run begins with it if it has to */
        if (inert(kind, c)) break;
        i += (size_t)length;
    }
    return i;
}

bool lk_normal_form_is_needed(int kind, const lk_view *in) { return next_run(kind, in, 0) < in->n; }

lk_status lk_normal_form(int kind, const lk_view *in, lk_text *out, lk_error *err)
{
    size_t at = 0;
    while (at < in->n) {
        size_t begin = next_run(kind, in, at);
        LK_TRY(lk_text_copy(out, in, at, begin, err));
        if (begin == in->n) break;
        at = run_end(kind, in, begin);
        LK_TRY(run(kind, in, begin, at, out, err));
    }
    return LK_OK;
}
