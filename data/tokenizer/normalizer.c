/* Normalisers: Sequence, Prepend, Replace of a string, NFC; null is the empty sequence.
 *
 * NFC decomposes, orders marks and composes with utf8proc's tables, but orders the marks itself: utf8proc_map does it by
 * exchanging neighbours, which is quadratic on a text of nothing but marks. Only runs of characters that may change are
 * touched; ASCII, Latin-1, Cyrillic, Han, kana, Hangul and emoji pass by. A run begins with the character before the first
 * doubtful one, since that one may absorb a mark. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

static lk_status read_step(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const char *type, *where = tk->where;
    if (!cJSON_IsObject(node)) return lk_fail(err, LK_ERR_FORMAT, "%s: a normalizer must be an object", where);
    LK_TRY(lk_json_string(node, "type", &type, where, err));
    if (!strcmp(type, "Sequence")) {
        LK_TRY(lk_only_keys(node, (const char *const[]){"type", "normalizers", NULL}, where, "normalizer Sequence", err));
        const cJSON *list = lk_json_get(node, "normalizers"), *child;
        if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: normalizer Sequence: normalizers must be a list", where);
        cJSON_ArrayForEach(child, list) LK_TRY(read_step(tk, child, err));
        return LK_OK;
    }
    if (tk->n_normalizer == LK_TK_MAX_STEPS)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d normalizers", where, LK_TK_MAX_STEPS);
    lk_normalizer_step step = {0};
    const char *content = "", *pattern = "";
    if (!strcmp(type, "Prepend")) {
        step.kind = LK_NORM_PREPEND;
        LK_TRY(lk_only_keys(node, (const char *const[]){"type", "prepend", NULL}, where, "normalizer Prepend", err));
        LK_TRY(lk_json_string(node, "prepend", &content, where, err));
    } else if (!strcmp(type, "Replace")) {
        step.kind = LK_NORM_REPLACE;
        LK_TRY(lk_only_keys(node, (const char *const[]){"type", "pattern", "content", NULL}, where, "normalizer Replace", err));
        const cJSON *kind = lk_json_get(node, "pattern");
        if (!cJSON_IsObject(kind) || !lk_json_get(kind, "String"))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: normalizer Replace: only {\"String\": ...} patterns are supported", where);
        LK_TRY(lk_json_string(kind, "String", &pattern, where, err));
        LK_TRY(lk_json_string(node, "content", &content, where, err));
        if (!*pattern) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: normalizer Replace: the pattern is empty", where);
    } else if (!strcmp(type, "NFC")) {
        step.kind = LK_NORM_NFC;
        LK_TRY(lk_only_keys(node, (const char *const[]){"type", NULL}, where, "normalizer NFC", err));
    } else {
        return lk_refuse(where, "normalizer", type, "Sequence, Prepend, Replace, NFC", err);
    }
    step.pattern_size = strlen(pattern);
    step.content_size = strlen(content);
    step.pattern = lk_arena_strdup(&tk->arena, pattern);
    step.content = lk_arena_strdup(&tk->arena, content);
    if (!step.pattern || !step.content) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    tk->normalizer[tk->n_normalizer++] = step;
    return LK_OK;
}

lk_status lk_normalizer_read(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    return !node || cJSON_IsNull(node) ? LK_OK : read_step(tk, node, err);
}

static lk_status prepend(const lk_normalizer_step *step, const lk_view *in, lk_text *out, lk_error *err)
{
    LK_TRY(lk_text_add(out, step->content, step->content_size, lk_view_source(in, 0), err));
    return lk_text_copy(out, in, 0, in->n, err);
}

static lk_status replace(const lk_normalizer_step *step, const lk_view *in, lk_text *out, lk_error *err)
{
    size_t at = 0;
    while (at < in->n) {
        const char *found = memmem(in->p + at, in->n - at, step->pattern, step->pattern_size);
        if (!found) break;
        size_t begin = (size_t)(found - in->p);
        LK_TRY(lk_text_copy(out, in, at, begin, err));
        LK_TRY(lk_text_add(out, step->content, step->content_size, lk_view_source(in, begin), err));
        at = begin + step->pattern_size;
    }
    return lk_text_copy(out, in, at, in->n, err);
}

/* Characters that NFC leaves alone whatever stands before them. A character after them may still compose with them. */
static bool nfc_inert(uint32_t c)
{
    return c < 0x300 || (c >= 0x400 && c <= 0x482) || (c >= 0x2010 && c <= 0x2027) ||
           (c >= 0x3000 && c <= 0x9fff && c != 0x3099 && c != 0x309a && !(c >= 0x302a && c <= 0x302f)) || (c >= 0xac00 && c <= 0xd7a3) ||
           (c >= 0x1f000 && c < 0x20000);
}

static int combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

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

/* NFC of in[begin, end). Sources are kept exactly when nothing changes; otherwise byte for byte as far as they go. */
static lk_status nfc_run(const lk_view *in, size_t begin, size_t end, lk_text *out, lk_error *err)
{
    enum { MOST = 18 }; /* the longest canonical decomposition has 4, compatibility ones 18 */
    size_t n = 0, room = (end - begin) * 2 + MOST;
    utf8proc_int32_t *chars = malloc(room * sizeof *chars);
    if (!chars) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for normalisation");
    lk_status status = LK_OK;
    for (size_t i = begin; i < end && !status;) {
        uint32_t c;
        int length = lk_utf8_decode(in->p + i, end - i, &c), boundary = 0;
        utf8proc_ssize_t k = length ? utf8proc_decompose_char((utf8proc_int32_t)c, chars + n, (utf8proc_ssize_t)(room - n),
                                                              UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary)
                                    : -1;
        if (k < 0 || (size_t)k > room - n)
            status = lk_fail(err, LK_ERR_INTERNAL, "tokenizer: normalisation failed");
        else
            n += (size_t)k;
        i += (size_t)length;
    }
    for (size_t i = 0; i < n && !status;) {
        size_t j = i;
        while (j < n && combining_class(chars[j])) j++;
        if (j > i + 1) status = order_marks(chars + i, j - i, err);
        i = j + 1;
    }
    if (!status) {
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(chars, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (composed < 0) status = lk_fail(err, LK_ERR_INTERNAL, "tokenizer: normalisation failed");
        size_t at = begin;
        for (utf8proc_ssize_t i = 0; i < composed && !status; i++) {
            char bytes[4];
            int length = lk_utf8_encode((uint32_t)chars[i], bytes);
            for (int b = 0; b < length && !status; b++, at++)
                status = lk_text_add(out, bytes + b, 1, lk_view_source(in, at < end ? at : end - 1), err);
        }
    }
    free(chars);
    return status;
}

/* The first place at or after i where a run that must be normalised begins; in->n when there is none. */
static size_t nfc_next(const lk_view *in, size_t i)
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
        if (!nfc_inert(c)) return previous;
        previous = i;
        i += (size_t)length;
    }
    return in->n;
}

static size_t nfc_end(const lk_view *in, size_t i)
{
    uint32_t c;
    i += (size_t)lk_utf8_decode(in->p + i, in->n - i, &c); /* the character before, or the first doubtful one */
    while (i < in->n) {
        int length = lk_utf8_decode(in->p + i, in->n - i, &c);
        if (nfc_inert(c)) {
            /* it is left alone by what precedes it, and the next run begins with it if it has to */
            break;
        }
        i += (size_t)length;
    }
    return i;
}

static lk_status nfc(const lk_view *in, lk_text *out, lk_error *err)
{
    size_t at = 0;
    while (at < in->n) {
        size_t begin = nfc_next(in, at);
        LK_TRY(lk_text_copy(out, in, at, begin, err));
        if (begin == in->n) break;
        at = nfc_end(in, begin);
        LK_TRY(nfc_run(in, begin, at, out, err));
    }
    return LK_OK;
}

lk_status lk_normalize(const lk_tokenizer *tk, lk_text scratch[2], lk_view text, lk_view *out, lk_error *err)
{
    int turn = 0;
    for (int i = 0; i < tk->n_normalizer && text.n; i++) {
        const lk_normalizer_step *step = &tk->normalizer[i];
        lk_text *to = &scratch[turn];
        to->n = 0;
        switch (step->kind) {
        case LK_NORM_PREPEND: LK_TRY(prepend(step, &text, to, err)); break;
        case LK_NORM_REPLACE:
            if (!memmem(text.p, text.n, step->pattern, step->pattern_size)) continue;
            LK_TRY(replace(step, &text, to, err));
            break;
        case LK_NORM_NFC:
            if (nfc_next(&text, 0) == text.n) continue;
            LK_TRY(nfc(&text, to, err));
            break;
        }
        text = lk_text_view(to);
        turn ^= 1;
    }
    *out = text;
    return LK_OK;
}
