/* One call of the encoder: repairs malformed UTF-8, splits at added tokens, runs the pipeline over what lies between, and
 * collects ids with their places. All state of a call is in lk_encoder, so that a tokenizer can be used by many threads. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"

lk_status lk_encoder_emit(lk_encoder *e, int32_t id, size_t source)
{
    if (e->n == e->room) {
        int64_t room = e->room ? e->room * 2 : 64;
        int32_t *ids = realloc(e->ids, (size_t)room * sizeof *ids);
        if (ids) e->ids = ids;
        int64_t *starts = e->track ? realloc(e->starts, (size_t)room * sizeof *starts) : NULL;
        if (starts) e->starts = starts;
        if (!ids || (e->track && !starts)) return lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory for %lld tokens", (long long)room);
        e->room = room;
    }
    if (e->track) e->starts[e->n] = (int64_t)source;
    e->ids[e->n++] = id;
    return LK_OK;
}

int lk_encoder_special_allowed(lk_encoder *e, size_t begin, size_t end)
{
    if (!e->parts) return e->plain ? 0 : 1;
    while (e->part > 0 && begin < e->part_ends[e->part - 1]) e->part--;
    while (e->part < e->n_parts && begin >= e->part_ends[e->part]) e->part++;
    bool any_plain = false, all_plain = true;
    for (int64_t k = e->part; k < e->n_parts; k++) {
        bool empty = k > 0 ? e->part_ends[k] == e->part_ends[k - 1] : e->part_ends[k] == 0;
        bool plain = e->plain || e->parts[k].plain;
        if (!empty) {
            any_plain |= plain;
            all_plain &= plain;
        }
        if (e->part_ends[k] >= end) break;
    }
    return !any_plain ? 1 : all_plain ? 0 : -1;
}

/* ---- the pipeline ---- */

static lk_status run_normalized(lk_encoder *e, lk_view text)
{
    lk_view out;
    LK_TRY(lk_normalize(e->tk, e->normal, &e->regex, text, &out, e->err));
    return lk_added_split(e, &e->tk->normalized, out, lk_pretokenize);
}

/* Malformed places become U+FFFD. */
static lk_status repair(lk_encoder *e, lk_view *text)
{
    size_t good = lk_utf8_valid_prefix(text->p, text->n);
    if (good == text->n) return LK_OK;
    size_t at = 0;
    while (at < text->n) {
        LK_TRY(lk_text_copy(&e->repaired, text, at, at + good, e->err));
        at += good;
        if (at == text->n) break;
        bool incomplete;
        int bad = lk_utf8_subpart(text->p + at, text->n - at, &incomplete);
        LK_TRY(lk_text_add(&e->repaired, "\xef\xbf\xbd", 3, at, e->err));
        at += (size_t)bad;
        good = lk_utf8_valid_prefix(text->p + at, text->n - at);
    }
    *text = lk_text_view(&e->repaired);
    return LK_OK;
}

static lk_status encoder_init(lk_encoder *e, size_t size)
{
    bool track = e->track || e->parts || e->tk->needs_sources;
    e->repaired.tracked = e->normal[0].tracked = e->normal[1].tracked = track;
    for (int i = 0; i < LK_TK_MAX_STEPS; i++) e->pre[i].tracked = track;
    /* one entry per few words of the text: a short prompt must not pay for a large table */
    uint32_t entries = 16;
    while (entries < size / 16 && entries < 8192) entries *= 2;
    e->cache = calloc(entries, sizeof *e->cache);
    e->cache_mask = entries - 1;
    return e->cache ? LK_OK : lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory");
}

static void encoder_free(lk_encoder *e)
{
    free(e->ids);
    free(e->starts);
    lk_text_free(&e->repaired);
    lk_text_free(&e->normal[0]);
    lk_text_free(&e->normal[1]);
    for (int i = 0; i < LK_TK_MAX_STEPS; i++) lk_text_free(&e->pre[i]);
    lk_regex_scratch_free(&e->regex);
    free(e->symbols);
    free(e->heap);
    free(e->cache);
}

static lk_status encode(lk_encoder *e, const char *text, size_t size, int flags)
{
    const lk_tokenizer *tk = e->tk;
    lk_view view = {size ? text : "", size, NULL, 0};
    const lk_post_item as_is = {-1}, *items = &as_is;
    int n_items = 1;
    if (size > LK_TK_MAX_TEXT)
        return lk_fail(e->err, LK_ERR_ARGUMENT, "tokenizer: %zu bytes in one call, at most %d", size, LK_TK_MAX_TEXT);
    LK_TRY(encoder_init(e, size));
    LK_TRY(repair(e, &view));
    if ((flags & LK_TK_SPECIALS) && tk->n_post) {
        items = tk->post;
        n_items = tk->n_post;
    }
    bool after = false;
    for (int i = 0; i < n_items; i++) {
        if (items[i].id >= 0)
            LK_TRY(lk_encoder_emit(e, items[i].id, after ? size : 0));
        else
            LK_TRY(lk_added_split(e, &tk->raw, view, run_normalized));
        after |= items[i].id < 0;
    }
    return LK_OK;
}

/* Hands the ids to the caller; malloc(1) so that an empty result is not NULL. */
static lk_status hand_over(lk_encoder *e, int32_t **ids, int64_t **starts, int64_t *n)
{
    if (!e->ids) e->ids = malloc(sizeof *e->ids);
    if (starts && !e->starts) e->starts = malloc(sizeof *e->starts);
    if (!e->ids || (starts && !e->starts)) return lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory");
    *ids = e->ids;
    *n = e->n;
    e->ids = NULL;
    if (starts) {
        *starts = e->starts;
        e->starts = NULL;
    }
    return LK_OK;
}

lk_status lk_tokenizer_encode(const lk_tokenizer *tk, const char *text, size_t size, int flags, int32_t **ids, int64_t *n, lk_error *err)
{
    lk_encoder e = {.tk = tk, .plain = flags & LK_TK_PLAIN_TEXT, .err = err};
    *ids = NULL;
    *n = 0;
    lk_status status = encode(&e, text, size, flags);
    if (!status) status = hand_over(&e, ids, NULL, n);
    encoder_free(&e);
    return status;
}

lk_status lk_tokenizer_encode_parts(const lk_tokenizer *tk, const lk_text_part *parts, int64_t n_parts, lk_text_marks marks, int flags,
                                    int32_t **ids, int64_t **starts, int64_t *n, lk_error *err)
{
    lk_encoder e = {.tk = tk,
                    .parts = parts,
                    .n_parts = n_parts,
                    .marks = marks,
                    .plain = flags & LK_TK_PLAIN_TEXT,
                    .track = starts != NULL,
                    .err = err};
    lk_status status = LK_OK;
    lk_text joined = {0};
    *ids = NULL;
    *n = 0;
    if (starts) *starts = NULL;
    size_t *ends = malloc(((size_t)n_parts + 1) * sizeof *ends);
    if (!ends) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for %lld parts", (long long)n_parts);
    for (int64_t i = 0; i < n_parts && !status; i++) {
        status = lk_text_add(&joined, parts[i].text, parts[i].size, 0, err);
        ends[i] = joined.n;
    }
    e.part_ends = ends;
    if (!status) status = encode(&e, joined.p, joined.n, flags);
    if (!status) status = hand_over(&e, ids, starts, n);
    encoder_free(&e);
    lk_text_free(&joined);
    free(ends);
    return status;
}
