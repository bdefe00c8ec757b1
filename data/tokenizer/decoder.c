/* Decoders as tokenizer.json writes them: Sequence, Replace of a string, ByteFallback, Fuse, Strip, ByteLevel, Metaspace. This file
 * reads them and knows what one token stands for alone; stream.c runs them. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

/* GPT-2's byte alphabet: printable bytes are themselves, the other 68 are U+0100 and up in order (encoder.py, bytes_to_unicode). */
static bool printable(unsigned b) { return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae; }

int lk_byte_level_char(unsigned char byte, char out[4])
{
    uint32_t cp = byte;
    if (!printable(byte)) {
        cp = 0x100;
        for (unsigned b = 0; b < byte; b++) cp += !printable(b);
    }
    return lk_utf8_encode(cp, out);
}

/* The byte a character of the alphabet stands for, or -1. The others are 0..0x20, 0x7f..0xa0 and 0xad, in this order. */
static int byte_of(uint32_t cp)
{
    if (cp < 0x100) return printable(cp) ? (int)cp : -1;
    uint32_t k = cp - 0x100;
    return k <= 0x20 ? (int)k : k <= 0x42 ? (int)(k - 0x21 + 0x7f) : k == 0x43 ? 0xad : -1;
}

bool lk_byte_level_undo(const char *p, size_t n, char *out, size_t *size)
{
    *size = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int length = lk_utf8_decode(p + i, n - i, &cp), byte = length ? byte_of(cp) : -1;
        if (byte < 0) return false;
        out[(*size)++] = (char)byte;
        i += (size_t)length;
    }
    return true;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int lk_byte_piece(const char *p, size_t n)
{
    if (n != 6 || memcmp(p, "<0x", 3) || p[5] != '>' || hex(p[3]) < 0 || hex(p[4]) < 0) return -1;
    return hex(p[3]) * 16 + hex(p[4]);
}

static lk_status keep(lk_tokenizer *tk, const char *text, const char **out, size_t *size, lk_error *err)
{
    *size = strlen(text);
    *out = lk_arena_strdup(&tk->arena, text);
    return *out ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
}

static lk_status read_replace(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    const char *pattern, *content;
    step->kind = LK_DEC_REPLACE;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "pattern", "content", NULL}, tk->where, "decoder Replace", err));
    const cJSON *kind = lk_json_get(node, "pattern");
    if (!cJSON_IsObject(kind) || !lk_json_get(kind, "String"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: decoder Replace: only {\"String\": ...} patterns are supported", tk->where);
    LK_TRY(lk_json_string(kind, "String", &pattern, tk->where, err));
    LK_TRY(lk_json_string(node, "content", &content, tk->where, err));
    if (!*pattern) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: decoder Replace: the pattern is empty", tk->where);
    LK_TRY(keep(tk, pattern, &step->pattern, &step->pattern_size, err));
    return keep(tk, content, &step->content, &step->content_size, err);
}

static lk_status read_strip(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    const char *content;
    int64_t start, stop;
    uint32_t cp;
    step->kind = LK_DEC_STRIP;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "content", "start", "stop", NULL}, tk->where, "decoder Strip", err));
    LK_TRY(lk_json_string(node, "content", &content, tk->where, err));
    LK_TRY(lk_json_int(node, "start", 0, 1 << 20, &start, tk->where, err));
    LK_TRY(lk_json_int(node, "stop", 0, 1 << 20, &stop, tk->where, err));
    if (!*content || (size_t)lk_utf8_decode(content, strlen(content), &cp) != strlen(content))
        return lk_fail(err, LK_ERR_FORMAT, "%s: decoder Strip: content must be one character", tk->where);
    step->start = (size_t)start;
    step->stop = (size_t)stop;
    return keep(tk, content, &step->content, &step->content_size, err);
}

static lk_status read_metaspace(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    const char *replacement;
    int prepend;
    bool split = true;
    step->kind = LK_DEC_METASPACE;
    LK_TRY(lk_read_metaspace(node, &replacement, &prepend, &split, tk->where, err));
    step->drop_first = prepend != LK_PREPEND_NEVER;
    return keep(tk, replacement, &step->content, &step->content_size, err);
}

static lk_status read_byte_level(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    step->kind = LK_DEC_BYTE_LEVEL; /* the options are the pre-tokeniser's and mean nothing here */
    return lk_only_keys(node, (const char *const[]){"type", "add_prefix_space", "trim_offsets", "use_regex", NULL}, tk->where,
                        "decoder ByteLevel", err);
}

static lk_status read_byte_fallback(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    step->kind = LK_DEC_BYTE_FALLBACK;
    return lk_only_keys(node, (const char *const[]){"type", NULL}, tk->where, "decoder ByteFallback", err);
}

static lk_status read_fuse(lk_tokenizer *tk, const cJSON *node, lk_decode_step *step, lk_error *err)
{
    step->kind = LK_DEC_FUSE;
    return lk_only_keys(node, (const char *const[]){"type", NULL}, tk->where, "decoder Fuse", err);
}

static lk_status read_step(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    static const struct {
        const char *type;
        lk_status (*read)(lk_tokenizer *, const cJSON *, lk_decode_step *, lk_error *);
        bool per_token; /* has no meaning we could stream once the tokens are one string */
    } kinds[] = {{"Replace", read_replace, false}, {"ByteFallback", read_byte_fallback, true}, {"Fuse", read_fuse, false},
                 {"Strip", read_strip, false},     {"ByteLevel", read_byte_level, true},       {"Metaspace", read_metaspace, true}};
    const char *type;
    if (!cJSON_IsObject(node)) return lk_fail(err, LK_ERR_FORMAT, "%s: a decoder must be an object", tk->where);
    LK_TRY(lk_json_string(node, "type", &type, tk->where, err));
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = lk_json_get(node, "decoders"), *child;
        LK_TRY(lk_only_keys(node, (const char *const[]){"type", "decoders", NULL}, tk->where, "decoder Sequence", err));
        if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: decoder Sequence: decoders must be a list", tk->where);
        cJSON_ArrayForEach(child, list) LK_TRY(read_step(tk, child, err));
        return LK_OK;
    }
    size_t k = 0, n = sizeof kinds / sizeof *kinds;
    while (k < n && strcmp(type, kinds[k].type)) k++;
    if (k == n) return lk_refuse(tk->where, "decoder", type, "Sequence, Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace", err);
    if (tk->n_decoder == LK_TK_MAX_STEPS) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d decoders", tk->where, LK_TK_MAX_STEPS);
    lk_decode_step step = {0};
    const lk_decode_step *last = tk->n_decoder ? &tk->decoder[tk->n_decoder - 1] : NULL;
    step.fused = last && (last->fused || last->kind == LK_DEC_FUSE || last->kind == LK_DEC_BYTE_LEVEL);
    if (step.fused && kinds[k].per_token)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: decoder %s after one that joins the tokens is not supported", tk->where, type);
    LK_TRY(kinds[k].read(tk, node, &step, err));
    tk->decoder[tk->n_decoder++] = step;
    return LK_OK;
}

lk_status lk_decoder_read(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    tk->no_decoder = !node || cJSON_IsNull(node);
    return tk->no_decoder ? LK_OK : read_step(tk, node, err);
}

/* p[0..n) with every pattern replaced, appended to out. */
static lk_status replace_all(const char *p, size_t n, const lk_decode_step *step, const char *content, size_t content_size,
                             bool content_is_pattern, lk_text *out, lk_error *err)
{
    const char *pattern = content_is_pattern ? step->content : step->pattern;
    size_t pattern_size = content_is_pattern ? step->content_size : step->pattern_size;
    while (n) {
        const char *found = memmem(p, n, pattern, pattern_size);
        size_t before = found ? (size_t)(found - p) : n;
        LK_TRY(lk_text_add(out, p, before, 0, err));
        if (!found) break;
        LK_TRY(lk_text_add(out, content, content_size, 0, err));
        p = found + pattern_size;
        n -= before + pattern_size;
    }
    return LK_OK;
}

static lk_status bytes_of(lk_tokenizer *tk, int32_t id, lk_text text[2], lk_piece *out, lk_error *err)
{
    lk_piece now = tk->pieces[id];
    for (int i = 0; i < tk->n_decoder; i++) {
        const lk_decode_step *step = &tk->decoder[i];
        lk_text *t = &text[i & 1];
        int byte;
        t->n = 0;
        switch (step->kind) {
        case LK_DEC_REPLACE: LK_TRY(replace_all(now.p, now.n, step, step->content, step->content_size, false, t, err)); break;
        case LK_DEC_METASPACE: LK_TRY(replace_all(now.p, now.n, step, " ", 1, true, t, err)); break;
        case LK_DEC_BYTE_FALLBACK:
            if ((byte = lk_byte_piece(now.p, now.n)) < 0) continue;
            LK_TRY(lk_text_add(t, &(char){(char)byte}, 1, 0, err));
            break;
        case LK_DEC_BYTE_LEVEL:
            LK_TRY(lk_text_reserve(t, now.n, err));
            if (!lk_byte_level_undo(now.p, now.n, t->p, &t->n)) continue;
            break;
        default: continue; /* Fuse and Strip concern the place in the text */
        }
        now = (lk_piece){t->p ? t->p : "", (uint32_t)t->n};
    }
    *out = now;
    return LK_OK;
}

lk_status lk_decoder_bytes(lk_tokenizer *tk, lk_error *err)
{
    lk_text text[2] = {{0}, {0}};
    lk_status status = LK_OK;
    for (int32_t id = 0; id < tk->n_ids && !status; id++) {
        lk_piece now;
        tk->bytes[id] = tk->pieces[id];
        if (!tk->pieces[id].p) continue;
        if ((status = bytes_of(tk, id, text, &now, err))) break;
        if (now.p == tk->pieces[id].p) continue;
        tk->bytes[id].n = now.n;
        if (!(tk->bytes[id].p = lk_arena_strndup(&tk->arena, now.p, now.n)))
            status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    }
    lk_text_free(&text[0]);
    lk_text_free(&text[1]);
    return status;
}
