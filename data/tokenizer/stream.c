/* The decoding pipeline, one token at a time. lk_tokenizer_decode feeds it everything and then finishes, so a stream and a whole decode
 * agree because they are the same code.
 *
 * Each decoder step takes pieces and may hold bytes back until it knows what becomes of them:
 *   ByteFallback   a run of byte tokens until it ends (one bad byte turns the whole run into U+FFFD, as in the library)
 *   ByteLevel      bytes until they are a character or cannot become one
 *   Replace        after Fuse: a tail that could be the beginning of the pattern
 *   Strip          after Fuse: characters at the end that are stripped if nothing follows
 * What is emitted is always whole characters. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"

struct lk_detokenizer {
    const lk_tokenizer *tk;
    bool skip_special;
    lk_text out;
    struct {
        lk_text held, scratch;
        size_t count; /* tokens seen (Metaspace), characters stripped (Strip) */
        bool begun;   /* Strip: something that is not stripped has come */
    } step[LK_TK_MAX_STEPS];
    bool any; /* without a decoder: a token came before */
};

static const char REPLACEMENT[] = "\xef\xbf\xbd";

lk_status lk_detokenizer_create(lk_detokenizer **out, const lk_tokenizer *tk, bool skip_special, lk_error *err)
{
    lk_detokenizer *d = calloc(1, sizeof *d);
    *out = d;
    if (!d) return lk_fail(err, LK_ERR_MEMORY, "detokenizer: no memory");
    d->tk = tk;
    d->skip_special = skip_special;
    return LK_OK;
}

void lk_detokenizer_destroy(lk_detokenizer *d)
{
    if (!d) return;
    for (int i = 0; i < LK_TK_MAX_STEPS; i++) {
        lk_text_free(&d->step[i].held);
        lk_text_free(&d->step[i].scratch);
    }
    lk_text_free(&d->out);
    free(d);
}

static lk_status feed(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err);

/* Bytes of the byte level so far: whole characters go on, bad bytes become U+FFFD, an unfinished tail stays unless this is the end. */
static lk_status drain_bytes(lk_detokenizer *d, int i, bool end, lk_error *err)
{
    lk_text *held = &d->step[i].held, *out = &d->step[i].scratch;
    size_t at = 0;
    out->n = 0;
    while (at < held->n) {
        size_t good = lk_utf8_valid_prefix(held->p + at, held->n - at);
        LK_TRY(lk_text_add(out, held->p + at, good, 0, err));
        at += good;
        if (at == held->n) break;
        bool incomplete;
        int bad = lk_utf8_subpart(held->p + at, held->n - at, &incomplete);
        if (incomplete && !end) break;
        LK_TRY(lk_text_add(out, REPLACEMENT, 3, 0, err));
        at += (size_t)bad;
    }
    if (at) memmove(held->p, held->p + at, held->n - at);
    held->n -= at;
    return out->n ? feed(d, i + 1, out->p, out->n, err) : LK_OK;
}

static lk_status byte_level(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err)
{
    lk_text *held = &d->step[i].held;
    size_t size;
    LK_TRY(lk_text_reserve(held, n, err));
    if (lk_byte_level_undo(p, n, held->p + held->n, &size))
        held->n += size;
    else
        LK_TRY(lk_text_add(held, p, n, 0, err)); /* a character outside the alphabet: the token is taken as it is */
    return drain_bytes(d, i, false, err);
}

static lk_status end_byte_run(lk_detokenizer *d, int i, lk_error *err)
{
    lk_text *held = &d->step[i].held;
    size_t n = held->n;
    if (n == 0) return LK_OK;
    held->n = 0;
    if (lk_utf8_valid_prefix(held->p, n) == n) return feed(d, i + 1, held->p, n, err);
    for (size_t k = 0; k < n; k++) LK_TRY(feed(d, i + 1, REPLACEMENT, 3, err));
    return LK_OK;
}

/* Replaces complete patterns in held. `end`: nothing follows, so an unfinished pattern is ordinary text. */
static lk_status drain_replace(lk_detokenizer *d, int i, bool end, lk_error *err)
{
    const lk_decode_step *step = &d->tk->decoder[i];
    lk_text *held = &d->step[i].held, *out = &d->step[i].scratch;
    size_t at = 0;
    out->n = 0;
    if (held->n == 0) return step->fused ? LK_OK : feed(d, i + 1, "", 0, err);
    for (;;) {
        const char *found = at < held->n ? memmem(held->p + at, held->n - at, step->pattern, step->pattern_size) : NULL;
        if (!found) break;
        LK_TRY(lk_text_add(out, held->p + at, (size_t)(found - held->p) - at, 0, err));
        LK_TRY(lk_text_add(out, step->content, step->content_size, 0, err));
        at = (size_t)(found - held->p) + step->pattern_size;
    }
    size_t tail = 0;
    if (!end) {
        tail = step->pattern_size - 1 < held->n - at ? step->pattern_size - 1 : held->n - at;
        while (tail && memcmp(held->p + held->n - tail, step->pattern, tail)) tail--;
    }
    LK_TRY(lk_text_add(out, held->p + at, held->n - at - tail, 0, err));
    memmove(held->p, held->p + held->n - tail, tail);
    held->n = tail;
    return out->n || !step->fused ? feed(d, i + 1, out->p ? out->p : "", out->n, err) : LK_OK;
}

/* One string in fragments: drops up to `start` leading and holds up to `stop` trailing characters. */
static lk_status strip_fragment(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err)
{
    const lk_decode_step *step = &d->tk->decoder[i];
    size_t size = step->content_size;
    while (!d->step[i].begun && n) {
        if (d->step[i].count < step->start && n >= size && !memcmp(p, step->content, size)) {
            d->step[i].count++;
            p += size;
            n -= size;
        } else {
            d->step[i].begun = true;
        }
    }
    if (n == 0) return LK_OK;
    lk_text *held = &d->step[i].held, *out = &d->step[i].scratch;
    LK_TRY(lk_text_add(held, p, n, 0, err));
    size_t tail = 0;
    for (size_t k = 0; k < step->stop && held->n - tail >= size && !memcmp(held->p + held->n - tail - size, step->content, size); k++)
        tail += size;
    out->n = 0;
    LK_TRY(lk_text_add(out, held->p, held->n - tail, 0, err));
    memmove(held->p, held->p + held->n - tail, tail);
    held->n = tail;
    return out->n ? feed(d, i + 1, out->p, out->n, err) : LK_OK;
}

static lk_status strip_token(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err)
{
    const lk_decode_step *step = &d->tk->decoder[i];
    size_t size = step->content_size;
    for (size_t k = 0; k < step->start && n >= size && !memcmp(p, step->content, size); k++) {
        p += size;
        n -= size;
    }
    for (size_t k = 0; k < step->stop && n >= size && !memcmp(p + n - size, step->content, size); k++) n -= size;
    return feed(d, i + 1, p, n, err);
}

/* The replacement becomes a space; in the first token it is dropped where encoding put one in front. */
static lk_status metaspace(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err)
{
    const lk_decode_step *step = &d->tk->decoder[i];
    lk_text *out = &d->step[i].scratch;
    bool drop = d->step[i].count++ == 0 && step->drop_first;
    out->n = 0;
    while (n) {
        const char *found = memmem(p, n, step->content, step->content_size);
        size_t before = found ? (size_t)(found - p) : n;
        LK_TRY(lk_text_add(out, p, before, 0, err));
        if (!found) break;
        if (!drop) LK_TRY(lk_text_add(out, " ", 1, 0, err));
        p = found + step->content_size;
        n -= before + step->content_size;
    }
    return feed(d, i + 1, out->p ? out->p : "", out->n, err);
}

/* Gives step i a token, or a fragment of the one string when an earlier step fused them. */
static lk_status feed(lk_detokenizer *d, int i, const char *p, size_t n, lk_error *err)
{
    if (i == d->tk->n_decoder) return lk_text_add(&d->out, p, n, 0, err);
    const lk_decode_step *step = &d->tk->decoder[i];
    switch (step->kind) {
    case LK_DEC_FUSE: return n ? feed(d, i + 1, p, n, err) : LK_OK;
    case LK_DEC_BYTE_LEVEL: return byte_level(d, i, p, n, err);
    case LK_DEC_METASPACE: return metaspace(d, i, p, n, err);
    case LK_DEC_STRIP: return step->fused ? strip_fragment(d, i, p, n, err) : strip_token(d, i, p, n, err);
    case LK_DEC_REPLACE: LK_TRY(lk_text_add(&d->step[i].held, p, n, 0, err)); return drain_replace(d, i, !step->fused, err);
    case LK_DEC_BYTE_FALLBACK: {
        int byte = lk_byte_piece(p, n);
        if (byte >= 0) return lk_text_add(&d->step[i].held, &(char){(char)byte}, 1, 0, err);
        LK_TRY(end_byte_run(d, i, err));
        return feed(d, i + 1, p, n, err);
    }
    }
    return lk_fail(err, LK_ERR_INTERNAL, "detokenizer: an unknown step");
}

static lk_status finish(lk_detokenizer *d, lk_error *err)
{
    for (int i = 0; i < d->tk->n_decoder; i++) {
        const lk_decode_step *step = &d->tk->decoder[i];
        if (step->kind == LK_DEC_BYTE_LEVEL) LK_TRY(drain_bytes(d, i, true, err));
        if (step->kind == LK_DEC_BYTE_FALLBACK) LK_TRY(end_byte_run(d, i, err));
        if (step->kind == LK_DEC_REPLACE && step->fused) LK_TRY(drain_replace(d, i, true, err));
        d->step[i].held.n = 0; /* what Strip still holds is what it strips */
        d->step[i].count = 0;
        d->step[i].begun = false;
    }
    d->any = false;
    return LK_OK;
}

static lk_status push(lk_detokenizer *d, int32_t id, lk_error *err)
{
    const lk_tokenizer *tk = d->tk;
    if (id < 0) return lk_fail(err, LK_ERR_ARGUMENT, "detokenizer: %d is no token id", id);
    /* A model's embedding may have more rows than the tokenizer has tokens: such ids stand for nothing, as in the library. */
    if (id >= tk->n_ids || !tk->pieces[id].p || (d->skip_special && tk->special[id])) return LK_OK;
    if (tk->no_decoder && d->any) LK_TRY(lk_text_add(&d->out, " ", 1, 0, err));
    d->any = true;
    return feed(d, 0, tk->forms[id].p, tk->forms[id].n, err);
}

lk_status lk_detokenizer_push(lk_detokenizer *d, int32_t id, const char **text, size_t *size, lk_error *err)
{
    d->out.n = 0;
    LK_TRY(push(d, id, err));
    *text = d->out.p ? d->out.p : "";
    *size = d->out.n;
    return LK_OK;
}

lk_status lk_detokenizer_finish(lk_detokenizer *d, const char **text, size_t *size, lk_error *err)
{
    d->out.n = 0;
    LK_TRY(finish(d, err));
    *text = d->out.p ? d->out.p : "";
    *size = d->out.n;
    return LK_OK;
}

lk_status lk_tokenizer_decode(const lk_tokenizer *tk, const int32_t *ids, int64_t n, bool skip_special, char **text, size_t *size,
                              lk_error *err)
{
    lk_detokenizer *d;
    *text = NULL;
    *size = 0;
    lk_status status = lk_detokenizer_create(&d, tk, skip_special, err);
    for (int64_t i = 0; i < n && !status; i++) status = push(d, ids[i], err);
    if (!status) status = finish(d, err);
    if (!status) status = lk_text_add(&d->out, "", 1, 0, err);
    if (!status) {
        *size = d->out.n - 1;
        *text = d->out.p;
        d->out = (lk_text){0};
    }
    lk_detokenizer_destroy(d);
    return status;
}
