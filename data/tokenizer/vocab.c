/* Vocabularies: every source (tokenizer.json, vocab.json and merges.txt, SentencePiece's .model, GGUF) is read into one list of pieces,
 * ids, scores and merges, from which the model (bpe.c, unigram.c) builds its tables. The list's strings point into what was read
 * and nothing is copied before the tokenizer's own tables are filled. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

lk_status lk_vocab_alloc(lk_vocab *v, size_t n, size_t n_merges, bool scored, const char *where, lk_error *err)
{
    v->n = v->n_joinable = n;
    v->n_merges = n_merges;
    v->pieces = lk_arena_alloc(&v->arena, n * sizeof *v->pieces);
    v->ids = lk_arena_alloc(&v->arena, n * sizeof *v->ids);
    v->scores = scored ? lk_arena_alloc(&v->arena, n * sizeof *v->scores) : NULL;
    v->merges = lk_arena_alloc(&v->arena, n_merges * sizeof *v->merges);
    if (!v->pieces || !v->ids || (scored && !v->scores) || !v->merges)
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu pieces and %zu merges", where, n, n_merges);
    return LK_OK;
}

void lk_vocab_free(lk_vocab *v)
{
    lk_arena_free(&v->arena);
    *v = (lk_vocab){0};
}

/* ---- tokenizer.json ---- */

/* The two parts of a merge, "a b" or ["a", "b"]; they point into the tree. */
static bool merge_parts(const cJSON *node, lk_piece *left, lk_piece *right)
{
    if (cJSON_IsString(node)) {
        const char *text = node->valuestring, *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        *left = (lk_piece){text, (uint32_t)(space - text)};
        *right = (lk_piece){space + 1, (uint32_t)strlen(space + 1)};
    } else {
        if (cJSON_GetArraySize(node) != 2 || !cJSON_IsArray(node) || !cJSON_IsString(node->child) || !cJSON_IsString(node->child->next))
            return false;
        *left = (lk_piece){node->child->valuestring, (uint32_t)strlen(node->child->valuestring)};
        *right = (lk_piece){node->child->next->valuestring, (uint32_t)strlen(node->child->next->valuestring)};
    }
    /* an empty part would make a token out of itself */
    return left->n && right->n;
}

static size_t length_of(const cJSON *list)
{
    size_t n = 0;
    for (const cJSON *node = list->child; node; node = node->next) n++;
    return n;
}

/* BPE: {"piece": id}. */
static lk_status fill_pieces(lk_vocab *v, const cJSON *vocab, const char *where, lk_error *err)
{
    const cJSON *node;
    size_t i = 0;
    cJSON_ArrayForEach(node, vocab)
    {
        double id = node->valuedouble;
        if (!cJSON_IsNumber(node) || !(id >= 0 && id < LK_TK_MAX_IDS) || id != (double)(int32_t)id)
            return lk_fail(err, LK_ERR_FORMAT, "%s: the vocabulary's id of \"%.100s\" must be a whole number from 0 to %d", where,
                           node->string, LK_TK_MAX_IDS - 1);
        v->pieces[i] = (lk_piece){node->string, (uint32_t)strlen(node->string)};
        v->ids[i++] = (int32_t)id;
    }
    return LK_OK;
}

static lk_status object_vocab(lk_vocab *v, const cJSON *vocab, const cJSON *merges, const char *where, lk_error *err)
{
    const cJSON *node;
    size_t i = 0;
    if (!cJSON_IsArray(merges)) return lk_fail(err, LK_ERR_FORMAT, "%s: model.merges must be a list", where);
    LK_TRY(lk_vocab_alloc(v, length_of(vocab), length_of(merges), false, where, err));
    LK_TRY(fill_pieces(v, vocab, where, err));
    cJSON_ArrayForEach(node, merges)
    {
        if (!merge_parts(node, &v->merges[i].left, &v->merges[i].right))
            return lk_fail(err, LK_ERR_FORMAT, "%s: model.merges[%zu] must be \"a b\" or [\"a\", \"b\"] with two non-empty parts", where,
                           i);
        i++;
    }
    return LK_OK;
}

lk_status lk_vocab_from_files(lk_vocab *v, const cJSON *vocab, const char *vocab_path, const char *merges, size_t size,
                              const char *merges_path, lk_error *err)
{
    const char *end = merges + size;
    size_t lines = 1, n = 0;
    if (!cJSON_IsObject(vocab)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object of pieces and ids", vocab_path);
    for (const char *p = merges; p < end; p++) lines += *p == '\n';
    LK_TRY(lk_vocab_alloc(v, length_of(vocab), lines, false, vocab_path, err));
    LK_TRY(fill_pieces(v, vocab, vocab_path, err));
    const char *next;
    size_t number = 1;
    for (const char *line = merges; line < end; line = next, number++) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        if (stop > line && stop[-1] == '\r') stop--;
        if (stop == line || (stop - line >= 8 && !memcmp(line, "#version", 8))) continue;
        const char *space = memchr(line, ' ', (size_t)(stop - line));
        if (!space || space == line || space + 1 == stop || memchr(space + 1, ' ', (size_t)(stop - space - 1)))
            return lk_fail(err, LK_ERR_FORMAT, "%s: line %zu is not two pieces with a space between", merges_path, number);
        v->merges[n].left = (lk_piece){line, (uint32_t)(space - line)};
        v->merges[n++].right = (lk_piece){space + 1, (uint32_t)(stop - space - 1)};
    }
    v->n_merges = n;
    return LK_OK;
}

/* A score as the library reads it. serde_json takes the digits as a whole number and multiplies or divides by a power of ten, which in one
 * case of nine is a bit beside the nearest double; and of two ways to cut a word that are equally good by the file, that bit
 * decides. The digits are those of the shortest text that means the double, which is what the library writes. */
static double library_score(double exact)
{
    char text[40], power[16];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*e", digits - 1, exact < 0 ? -exact : exact);
        if (strtod(text, NULL) == (exact < 0 ? -exact : exact)) break;
    }
    uint64_t whole = 0;
    int exponent = 0;
    const char *p = text;
    for (bool behind = false; *p && *p != 'e'; p++) {
        if (*p == '.') {
            behind = true;
        } else {
            whole = whole * 10 + (uint64_t)(*p - '0');
            exponent -= behind;
        }
    }
    if (*p == 'e') exponent += atoi(p + 1);
    for (; whole && whole % 10 == 0; whole /= 10) exponent++; /* zeros that only our way of printing has */
    snprintf(power, sizeof power, "1e%d", abs(exponent));
    double value = exponent < 0 ? (double)whole / strtod(power, NULL) : (double)whole * strtod(power, NULL);
    return exact < 0 ? -value : value;
}

/* Unigram: [["piece", score], ...], the place being the id. */
static lk_status list_vocab(lk_vocab *v, const cJSON *vocab, const char *where, lk_error *err)
{
    const cJSON *node;
    int32_t i = 0;
    size_t n = length_of(vocab);
    if (n > LK_TK_MAX_IDS) return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab has %zu pieces, at most %d", where, n, LK_TK_MAX_IDS);
    LK_TRY(lk_vocab_alloc(v, n, 0, true, where, err));
    cJSON_ArrayForEach(node, vocab)
    {
        const cJSON *piece = node->child, *score = piece ? piece->next : NULL;
        if (!cJSON_IsArray(node) || !cJSON_IsString(piece) || !cJSON_IsNumber(score) || !isfinite(score->valuedouble) || score->next)
            return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab[%d] must be [piece, score]", where, i);
        v->pieces[i] = (lk_piece){piece->valuestring, (uint32_t)strlen(piece->valuestring)};
        v->scores[i] = library_score(score->valuedouble);
        v->ids[i] = i;
        i++;
    }
    return LK_OK;
}

lk_status lk_vocab_from_json(lk_vocab *v, const cJSON *model, bool unigram, const char *where, lk_error *err)
{
    const cJSON *vocab = lk_json_get(model, "vocab");
    if (unigram && !cJSON_IsArray(vocab))
        return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab must be a list of [piece, score] for Unigram", where);
    if (!unigram && !cJSON_IsObject(vocab)) return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab must be an object", where);
    return unigram ? list_vocab(v, vocab, where, err) : object_vocab(v, vocab, lk_json_get(model, "merges"), where, err);
}

/* ---- the merges a SentencePiece vocabulary implies ---- */

typedef struct derived {
    struct lk_vocab_merge merge;
    double score;    /* of the piece that comes out */
    int32_t id;      /* of that piece */
    uint32_t length; /* of the left part, in characters */
} derived;

static int compare_derived(const void *x, const void *y)
{
    const derived *a = x, *b = y;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    if (a->id != b->id) return a->id < b->id ? -1 : 1;
    return a->length < b->length ? -1 : a->length > b->length;
}

lk_status lk_vocab_derive_merges(lk_vocab *v, const char *where, lk_error *err)
{
    lk_piece_table table;
    lk_arena arena = {0};
    derived *list = NULL;
    size_t n = 0, room = 0;
    /* the table's ids are places in v->pieces; of two equal pieces the first counts */
    lk_status status = lk_piece_table_init(&table, &arena, v->pieces, v->n, err);
    for (size_t i = 0; i < v->n_joinable && !status; i++)
        if (v->pieces[i].n) lk_piece_table_insert(&table, (int32_t)i);
    for (size_t i = 0; i < v->n_joinable && !status; i++) {
        const lk_piece *piece = &v->pieces[i];
        uint32_t length = 0;
        for (uint32_t cut = 1; cut < piece->n; cut++) {
            if (((unsigned char)piece->p[cut] & 0xc0) == 0x80) continue;
            length++;
            if (lk_piece_table_find(&table, piece->p, cut) < 0 || lk_piece_table_find(&table, piece->p + cut, piece->n - cut) < 0) continue;
            if (n == room) {
                room = room ? room * 2 : 4096;
                derived *grown = realloc(list, room * sizeof *list);
                if (!grown) {
                    status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu merges", where, room);
                    break;
                }
                list = grown;
            }
            list[n++] = (derived){{{piece->p, cut}, {piece->p + cut, piece->n - cut}}, v->scores ? v->scores[i] : 0, v->ids[i], length};
        }
    }
    if (!status) {
        if (n) qsort(list, n, sizeof *list, compare_derived);
        v->n_merges = n;
        v->merges = lk_arena_alloc(&v->arena, n * sizeof *v->merges);
        if (!v->merges) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu merges", where, n);
        for (size_t i = 0; i < n && !status; i++) v->merges[i] = list[i].merge;
    }
    free(list);
    lk_arena_free(&arena);
    return status;
}

/* ---- into the tokenizer ---- */

static lk_status place_piece(lk_tokenizer *tk, const lk_vocab *v, size_t i, lk_error *err)
{
    lk_piece *piece = &tk->pieces[v->ids[i]], from = v->pieces[i];
    if (piece->p)
        return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab: \"%.100s\" and \"%.*s\" both have id %d", tk->where, piece->p,
                       (int)(from.n < 100 ? from.n : 100), from.p, v->ids[i]);
    *piece = (lk_piece){lk_arena_strndup(&tk->arena, from.p, from.n), from.n};
    if (!piece->p) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    int32_t other = lk_piece_table_insert(&tk->contents, v->ids[i]);
    if (other >= 0)
        return lk_fail(err, LK_ERR_FORMAT, "%s: model.vocab: \"%.100s\" has both id %d and id %d", tk->where, piece->p, other, v->ids[i]);
    if (v->scores) tk->scores[v->ids[i]] = v->scores[i];
    return LK_OK;
}

lk_status lk_vocab_place(lk_tokenizer *tk, const lk_vocab *v, lk_error *err)
{
    for (int32_t i = 0; i < tk->n_added; i++)
        if (tk->added[i].id >= tk->n_ids) tk->n_ids = tk->added[i].id + 1;
    for (size_t i = 0; i < v->n; i++)
        if (v->ids[i] >= tk->n_ids) tk->n_ids = v->ids[i] + 1;
    size_t n = (size_t)tk->n_ids;
    tk->pieces = lk_arena_alloc(&tk->arena, n * sizeof *tk->pieces);
    tk->forms = lk_arena_alloc(&tk->arena, n * sizeof *tk->forms);
    tk->bytes = lk_arena_alloc(&tk->arena, n * sizeof *tk->bytes);
    tk->special = lk_arena_alloc(&tk->arena, n);
    tk->added_ids = lk_arena_alloc(&tk->arena, n);
    tk->scores = lk_arena_alloc(&tk->arena, n * sizeof *tk->scores);
    if (!tk->pieces || !tk->forms || !tk->bytes || !tk->special || !tk->added_ids || !tk->scores)
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu ids", tk->where, n);
    LK_TRY(lk_piece_table_init(&tk->contents, &tk->arena, tk->pieces, v->n + (size_t)tk->n_added, err));
    for (size_t i = 0; i < v->n; i++) LK_TRY(place_piece(tk, v, i, err));
    return LK_OK;
}
