/* Normalisers: Sequence, Prepend, Replace of a string or a regular expression, the four normal forms, Lowercase, Strip,
 * StripAccents, Precompiled; null is the empty sequence. Each step reads a view and writes a scratch text, or is passed over when it would
 * change nothing. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

typedef struct reader {
    const char *type;
    int kind;
    lk_status (*read)(lk_tokenizer *, const cJSON *, lk_normalizer_step *, lk_error *);
} reader;

static lk_status keep(lk_tokenizer *tk, const char *text, const char **out, size_t *size, lk_error *err)
{
    *size = strlen(text);
    *out = lk_arena_strdup(&tk->arena, text);
    return *out ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
}

static lk_status read_prepend(lk_tokenizer *tk, const cJSON *node, lk_normalizer_step *step, lk_error *err)
{
    const char *content;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "prepend", NULL}, tk->where, "normalizer Prepend", err));
    LK_TRY(lk_json_string(node, "prepend", &content, tk->where, err));
    return keep(tk, content, &step->content, &step->content_size, err);
}

static lk_status read_replace(lk_tokenizer *tk, const cJSON *node, lk_normalizer_step *step, lk_error *err)
{
    const char *content, *pattern, *where = tk->where;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "pattern", "content", NULL}, where, "normalizer Replace", err));
    LK_TRY(lk_json_string(node, "content", &content, where, err));
    LK_TRY(keep(tk, content, &step->content, &step->content_size, err));
    const cJSON *kind = lk_json_get(node, "pattern");
    if (cJSON_IsObject(kind) && lk_json_get(kind, "Regex")) {
        LK_TRY(lk_json_string(kind, "Regex", &pattern, where, err));
        return lk_regex_compile(&step->regex, pattern, where, err);
    }
    if (!cJSON_IsObject(kind) || !lk_json_get(kind, "String"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: normalizer Replace: the pattern must be {\"String\": ...} or {\"Regex\": ...}", where);
    LK_TRY(lk_json_string(kind, "String", &pattern, where, err));
    if (!*pattern) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: normalizer Replace: the pattern is empty", where);
    return keep(tk, pattern, &step->pattern, &step->pattern_size, err);
}

static lk_status read_strip(lk_tokenizer *tk, const cJSON *node, lk_normalizer_step *step, lk_error *err)
{
    step->left = step->right = true;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "strip_left", "strip_right", NULL}, tk->where, "normalizer Strip", err));
    LK_TRY(lk_json_opt_bool(node, "strip_left", &step->left, tk->where, err));
    return lk_json_opt_bool(node, "strip_right", &step->right, tk->where, err);
}

static lk_status read_precompiled(lk_tokenizer *tk, const cJSON *node, lk_normalizer_step *step, lk_error *err)
{
    const char *text;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "precompiled_charsmap", NULL}, tk->where, "normalizer Precompiled", err));
    LK_TRY(lk_json_string(node, "precompiled_charsmap", &text, tk->where, err));
    return lk_charsmap_read(tk, text, &step->map, err);
}

static lk_status read_nothing(lk_tokenizer *tk, const cJSON *node, lk_normalizer_step *step, lk_error *err)
{
    (void)step;
    return lk_only_keys(node, (const char *const[]){"type", NULL}, tk->where, "normalizer", err);
}

static const reader kinds[] = {
    {"Prepend", LK_NORM_PREPEND, read_prepend},
    {"Replace", LK_NORM_REPLACE, read_replace},
    {"NFC", LK_NORM_NFC, read_nothing},
    {"NFD", LK_NORM_NFD, read_nothing},
    {"NFKC", LK_NORM_NFKC, read_nothing},
    {"NFKD", LK_NORM_NFKD, read_nothing},
    {"Lowercase", LK_NORM_LOWERCASE, read_nothing},
    {"Strip", LK_NORM_STRIP, read_strip},
    {"StripAccents", LK_NORM_STRIP_ACCENTS, read_nothing},
    {"Precompiled", LK_NORM_PRECOMPILED, read_precompiled},
};

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
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type)) continue;
        lk_normalizer_step *step = &tk->normalizer[tk->n_normalizer++]; /* counted at once, so that closing frees its regex */
        step->kind = kinds[i].kind;
        return kinds[i].read(tk, node, step, err);
    }
    return lk_refuse(where, "normalizer", type,
                     "Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Precompiled", err);
}

lk_status lk_normalizer_read(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    return !node || cJSON_IsNull(node) ? LK_OK : read_step(tk, node, err);
}

/* ---- running ---- */

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

static lk_status replace_regex(const lk_normalizer_step *step, lk_regex_scratch *scratch, const lk_view *in, lk_text *out, lk_error *err)
{
    size_t done = 0, from = 0, last = SIZE_MAX;
    while (from <= in->n) {
        size_t begin, end;
        LK_TRY(lk_regex_find(step->regex, scratch, in->p, in->n, from, &begin, &end, err));
        if (begin == SIZE_MAX) break;
        if (begin == end && end == last) { /* an empty match right after a match does not count */
            uint32_t cp;
            from += from < in->n ? (size_t)lk_utf8_decode(in->p + from, in->n - from, &cp) : 1;
            continue;
        }
        from = last = end;
        LK_TRY(lk_text_copy(out, in, done, begin, err));
        LK_TRY(lk_text_add(out, step->content, step->content_size, lk_view_source(in, begin < in->n ? begin : in->n - 1), err));
        done = end;
    }
    return lk_text_copy(out, in, done, in->n, err);
}

/* Character by character; `changed` says what becomes of one: its replacement's length in bytes, 0 to drop it, -1 to keep it. */
static lk_status map_chars(const lk_view *in, int (*changed)(uint32_t, char[8]), lk_text *out, lk_error *err)
{
    size_t done = 0;
    for (size_t i = 0, length; i < in->n; i += length) {
        uint32_t c;
        char bytes[8];
        length = (size_t)lk_utf8_decode(in->p + i, in->n - i, &c);
        int size = changed(c, bytes);
        if (size < 0) continue;
        LK_TRY(lk_text_copy(out, in, done, i, err));
        LK_TRY(lk_text_add(out, bytes, (size_t)size, lk_view_source(in, i), err));
        done = i + length;
    }
    return lk_text_copy(out, in, done, in->n, err);
}

/* Each character by itself, so a final sigma is an ordinary one. */
static int lower(uint32_t c, char bytes[8])
{
    if (c < 0x80) {
        bytes[0] = (char)(c | 0x20);
        return c >= 'A' && c <= 'Z' ? 1 : -1;
    }
    if (c == 0x130) { /* the only one that becomes two: i and a dot above */
        bytes[0] = 'i';
        bytes[1] = (char)0xcc;
        bytes[2] = (char)0x87;
        return 3;
    }
    uint32_t small = lk_lower(c);
    return small == c ? -1 : lk_utf8_encode(small, bytes);
}

static int drop_marks(uint32_t c, char bytes[8])
{
    (void)bytes;
    return lk_is_mark(c) ? 0 : -1;
}

static lk_view strip(const lk_normalizer_step *step, lk_view in)
{
    size_t begin = 0, end = in.n;
    uint32_t c;
    int length;
    while (step->left && begin < end && (length = lk_utf8_decode(in.p + begin, end - begin, &c)) && lk_is_space(c)) begin += (size_t)length;
    while (step->right && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)in.p[at] & 0xc0) == 0x80) at--;
        if (!lk_utf8_decode(in.p + at, end - at, &c) || !lk_is_space(c)) break;
        end = at;
    }
    return lk_view_sub(in, begin, end);
}

/* Whether the step could change the text, where that is quickly told. */
static bool is_needed(const lk_normalizer_step *step, const lk_view *text)
{
    switch (step->kind) {
    case LK_NORM_REPLACE: return step->regex || memmem(text->p, text->n, step->pattern, step->pattern_size);
    case LK_NORM_NFC:
    case LK_NORM_NFD:
    case LK_NORM_NFKC:
    case LK_NORM_NFKD: return lk_normal_form_is_needed(step->kind, text);
    default: return true;
    }
}

static lk_status run(const lk_normalizer_step *step, lk_regex_scratch *scratch, const lk_view *in, lk_text *out, lk_error *err)
{
    switch (step->kind) {
    case LK_NORM_PREPEND: return prepend(step, in, out, err);
    case LK_NORM_REPLACE: return step->regex ? replace_regex(step, scratch, in, out, err) : replace(step, in, out, err);
    case LK_NORM_LOWERCASE: return map_chars(in, lower, out, err);
    case LK_NORM_STRIP_ACCENTS: return map_chars(in, drop_marks, out, err);
    case LK_NORM_PRECOMPILED: return lk_charsmap_apply(&step->map, in, out, err);
    default: return lk_normal_form(step->kind, in, out, err);
    }
}

lk_status lk_normalize(const lk_tokenizer *tk, lk_text scratch[2], lk_regex_scratch *regex, lk_view text, lk_view *out, lk_error *err)
{
    int turn = 0;
    for (int i = 0; i < tk->n_normalizer && text.n; i++) {
        const lk_normalizer_step *step = &tk->normalizer[i];
        lk_text *to = &scratch[turn];
        if (step->kind == LK_NORM_STRIP) {
            text = strip(step, text);
            continue;
        }
        if (!is_needed(step, &text)) continue;
        to->n = 0;
        LK_TRY(run(step, regex, &text, to, err));
        text = lk_text_view(to);
        turn ^= 1;
    }
    *out = text;
    return LK_OK;
}
