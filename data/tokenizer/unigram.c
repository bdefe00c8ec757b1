/* Unigram language models (SentencePiece's other kind: T5, XLM-R): of all ways to cut a word into pieces the one whose scores add up to the
 * most. One pass from left to right keeps for every place the best way to get there (Viterbi), as huggingface/tokenizers does,
 * ties included: the first way found stays, and shorter pieces come first.
 *
 * Pieces are looked up in an array sorted by bytes, narrowing a range of it one byte at a time: as fast as a trie of nodes for the
 * lengths that occur, and nothing to build but a sort. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

enum { UNK_PENALTY = 10 }; /* below the least score, as in SentencePiece */

static int compare_pieces(const void *x, const void *y, void *pieces)
{
    const lk_piece *a = &((const lk_piece *)pieces)[*(const int32_t *)x], *b = &((const lk_piece *)pieces)[*(const int32_t *)y];
    int c = memcmp(a->p, b->p, a->n < b->n ? a->n : b->n);
    return c ? c : a->n < b->n ? -1 : a->n > b->n;
}

static lk_status build_index(lk_tokenizer *tk, const lk_vocab *v, lk_error *err)
{
    lk_unigram *u = &tk->unigram;
    double least = 0;
    u->sorted = lk_arena_alloc(&tk->arena, v->n * sizeof *u->sorted);
    if (!u->sorted) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu pieces", tk->where, v->n);
    for (size_t i = 0; i < v->n; i++) {
        if (i == 0 || v->scores[i] < least) least = v->scores[i];
        if (v->pieces[i].n) u->sorted[u->n++] = v->ids[i];
    }
    u->unk_score = least - UNK_PENALTY;
    qsort_r(u->sorted, (size_t)u->n, sizeof *u->sorted, compare_pieces, tk->pieces);
    int32_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        u->first[byte] = at;
        while (at < u->n && (unsigned char)tk->pieces[u->sorted[at]].p[0] == byte) at++;
    }
    u->first[256] = u->n;
    return LK_OK;
}

lk_status lk_unigram_read(lk_tokenizer *tk, const cJSON *model, const lk_vocab *v, lk_error *err)
{
    lk_unigram *u = &tk->unigram;
    const char *where = tk->where;
    int64_t unk = -1;
    LK_TRY(lk_only_keys(model, (const char *const[]){"type", "unk_id", "vocab", "byte_fallback", "fuse_unk", NULL}, where, "model Unigram",
                        err));
    u->fuse_unk = true; /* what the library does when the file does not say */
    LK_TRY(lk_json_opt_int(model, "unk_id", 0, LK_TK_MAX_IDS - 1, &unk, where, err));
    LK_TRY(lk_json_opt_bool(model, "byte_fallback", &u->byte_fallback, where, err));
    LK_TRY(lk_json_opt_bool(model, "fuse_unk", &u->fuse_unk, where, err));
    if (tk->bpe.byte_level) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model Unigram after a ByteLevel pre_tokenizer", where);
    if (v->n == 0) return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab is empty", where);
    LK_TRY(lk_vocab_place(tk, v, err));
    if (unk >= 0 && (unk >= tk->n_ids || !tk->pieces[unk].p))
        return lk_fail(err, LK_ERR_FORMAT, "%s: model.unk_id is %lld, but there are %zu pieces", where, (long long)unk, v->n);
    u->unk = (int32_t)unk;
    return build_index(tk, v, err);
}

/* First place in [low, high) whose byte at `depth` is at least `byte`. */
static int32_t lower(const lk_tokenizer *tk, int32_t low, int32_t high, size_t depth, int byte)
{
    while (low < high) {
        int32_t mid = low + (high - low) / 2;
        const lk_piece *piece = &tk->pieces[tk->unigram.sorted[mid]];
        int have = depth < piece->n ? (unsigned char)piece->p[depth] : -1;
        if (have < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The best way to a place: the piece that ends there and where it began. */
typedef struct way {
    double score;
    size_t from; /* SIZE_MAX: no way found yet */
    int32_t id;
} way;

static void consider(way *w, double score, size_t from, int32_t id)
{
    if (w->from == SIZE_MAX || score > w->score) *w = (way){score, from, id};
}

static void search(const lk_tokenizer *tk, lk_view word, way *ways)
{
    const lk_unigram *u = &tk->unigram;
    for (size_t i = 0; i <= word.n; i++) ways[i] = (way){0, SIZE_MAX, -1};
    ways[0].from = 0;
    for (size_t i = 0, size; i < word.n; i += size) {
        uint32_t cp;
        size = (size_t)lk_utf8_decode(word.p + i, word.n - i, &cp);
        int32_t low = u->first[(unsigned char)word.p[i]], high = u->first[(unsigned char)word.p[i] + 1];
        bool single = false;
        for (size_t depth = 1; low < high; depth++) {
            const lk_piece *piece = &tk->pieces[u->sorted[low]];
            if (piece->n == depth) { /* the shortest of the range sorts first */
                consider(&ways[i + depth], ways[i].score + tk->scores[u->sorted[low]], i, u->sorted[low]);
                single |= depth == size;
                low++;
            }
            if (i + depth == word.n) break;
            int byte = (unsigned char)word.p[i + depth];
            low = lower(tk, low, high, depth, byte);
            high = lower(tk, low, high, depth, byte + 1);
        }
        if (!single) consider(&ways[i + size], ways[i].score + u->unk_score, i, u->unk);
    }
}

static int32_t byte_id(const lk_tokenizer *tk, unsigned char byte)
{
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", byte);
    return lk_piece_table_find(&tk->contents, name, 6);
}

/* A stretch no piece stands for: its bytes, if the vocabulary has them all, else one unk. */
static lk_status emit_unknown(lk_encoder *e, lk_view word, size_t begin, size_t end)
{
    const lk_tokenizer *tk = e->tk;
    int32_t whole = lk_piece_table_find(&tk->contents, word.p + begin, end - begin);
    if (whole >= 0) return lk_encoder_emit(e, whole, lk_view_source(&word, begin)); /* fused, it may happen to be one */
    bool all = tk->unigram.byte_fallback;
    for (size_t i = begin; i < end && all; i++) all = byte_id(tk, (unsigned char)word.p[i]) >= 0;
    if (!all && tk->unigram.unk < 0)
        return lk_fail(e->err, LK_ERR_ARGUMENT, "%s: the text has \"%.*s\", which no piece stands for, and there is no unk_id", tk->where,
                       (int)(end - begin < 40 ? end - begin : 40), word.p + begin);
    if (!all) return lk_encoder_emit(e, tk->unigram.unk, lk_view_source(&word, begin));
    for (size_t i = begin; i < end; i++) LK_TRY(lk_encoder_emit(e, byte_id(tk, (unsigned char)word.p[i]), lk_view_source(&word, i)));
    return LK_OK;
}

lk_status lk_unigram_encode(lk_encoder *e, lk_view word)
{
    const lk_tokenizer *tk = e->tk;
    const lk_unigram *u = &tk->unigram;
    if (word.n == 0) return LK_OK;
    way *ways = malloc((word.n + 1) * sizeof *ways);
    if (!ways) return lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory for a word of %zu bytes", word.n);
    search(tk, word, ways);
    /* turn the way round: ways[i].from becomes where the piece that begins at i ends */
    size_t to = word.n, begin = 0;
    int32_t id = ways[to].id;
    for (size_t at = ways[to].from, end = to;;) {
        size_t before = ways[at].from;
        int32_t before_id = ways[at].id;
        ways[at].from = end;
        ways[at].id = id;
        if (at == 0) break;
        end = at;
        id = before_id;
        at = before;
    }
    lk_status status = LK_OK;
    for (size_t i = 0; i < word.n && !status; i = to) {
        to = ways[i].from;
        begin = i;
        bool unknown = ways[i].id == u->unk;
        if (unknown && u->fuse_unk && u->unk >= 0)
            while (to < word.n && ways[to].id == u->unk) to = ways[to].from;
        status = unknown ? emit_unknown(e, word, begin, to) : lk_encoder_emit(e, ways[i].id, lk_view_source(&word, i));
    }
    free(ways);
    return status;
}
