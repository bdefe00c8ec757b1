/* Byte-pair encoding: a word's characters become symbols, and the adjacent pair with the lowest rank (leftmost among equals) is
 * merged until no pair has a rank.
 *
 * Byte-level vocabularies are kept as the bytes they stand for, so the byte alphabet is undone once when opening and never in
 * the text. Short words use a scan over an array of ranks, which beats any structure at their length; long ones a heap of
 * candidates over a linked list, O(n log n). Words the call has seen are remembered.
 *
 * SentencePiece-style files have no pre-tokeniser: the whole text is one word. But most neighbouring characters can never end up in
 * one token, because no merge has the first at the end of its left part and the second at the start of its right part. Cutting
 * there changes nothing (no merge reaches across, and merges on the two sides do not see each other), and makes words of it that are
 * short and recur. The pairs are kept as a bit filter over their hash: a collision only costs a cut. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

enum { JOIN_BITS = 20, SCAN_SYMBOLS = 32 };

/* ---- hash tables ---- */

uint32_t lk_hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    uint64_t tail = 0;
    if (n) memcpy(&tail, p, n);
    h = (h ^ tail) * 0xff51afd7ed558ccdu;
    return (uint32_t)(h >> 32);
}

lk_status lk_piece_table_init(lk_piece_table *table, lk_arena *arena, const lk_piece *pieces, size_t expected, lk_error *err)
{
    size_t slots = 16;
    while (slots < expected * 2) slots *= 2;
    table->slots = lk_arena_alloc(arena, slots * sizeof *table->slots);
    if (!table->slots) return lk_fail(err, LK_ERR_MEMORY, "tokenizer: no memory for %zu entries", slots);
    memset(table->slots, 0xff, slots * sizeof *table->slots);
    table->mask = (uint32_t)(slots - 1);
    table->pieces = pieces;
    return LK_OK;
}

/* The slot that holds these bytes, or the empty one where they belong. */
static uint32_t slot_of(const lk_piece_table *t, const char *p, size_t n)
{
    uint32_t hash = lk_hash_bytes(p, n), i = hash & t->mask;
    for (; t->slots[i].id >= 0; i = (i + 1) & t->mask) {
        if (t->slots[i].hash != hash) continue;
        const lk_piece *have = &t->pieces[t->slots[i].id];
        if (have->n == n && !memcmp(have->p, p, n)) break;
    }
    return i;
}

int32_t lk_piece_table_insert(lk_piece_table *table, int32_t id)
{
    const lk_piece *piece = &table->pieces[id];
    uint32_t i = slot_of(table, piece->p, piece->n);
    if (table->slots[i].id >= 0) return table->slots[i].id;
    table->slots[i] = (lk_piece_slot){lk_hash_bytes(piece->p, piece->n), id};
    return -1;
}

int32_t lk_piece_table_find(const lk_piece_table *table, const char *p, size_t n) { return table->slots[slot_of(table, p, n)].id; }

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static lk_merge *merge_slot(const lk_bpe *bpe, uint64_t pair)
{
    uint64_t i = (pair * 0x9e3779b97f4a7c15u) >> 32;
    for (i &= bpe->merge_mask; bpe->merges[i].pair != UINT64_MAX && bpe->merges[i].pair != pair; i = (i + 1) & bpe->merge_mask) {
    }
    return &bpe->merges[i];
}

static const lk_merge *find_merge(const lk_bpe *bpe, int32_t left, int32_t right)
{
    const lk_merge *m = merge_slot(bpe, pair_of(left, right));
    return m->pair == UINT64_MAX ? NULL : m;
}

int32_t lk_bpe_joined(const lk_bpe *bpe, int32_t left, int32_t right)
{
    const lk_merge *m = find_merge(bpe, left, right);
    return m ? m->id : -1;
}

/* ---- reading ---- */

static uint32_t join_hash(uint32_t last, uint32_t first)
{
    return (last * 0x9e3779b1u ^ first * 0x85ebca6bu) * 0xc2b2ae35u >> (32 - JOIN_BITS);
}

static uint32_t first_char(const lk_bpe *bpe, const lk_piece *k)
{
    uint32_t cp;
    return !bpe->byte_level && lk_utf8_decode(k->p, k->n, &cp) ? cp : (unsigned char)k->p[0];
}

static uint32_t last_char(const lk_bpe *bpe, const lk_piece *k)
{
    size_t i = k->n - 1;
    while (!bpe->byte_level && i > 0 && ((unsigned char)k->p[i] & 0xc0) == 0x80) i--;
    return first_char(bpe, &(lk_piece){k->p + i, k->n - (uint32_t)i});
}

static int shown(uint32_t n) { return n < 80 ? (int)n : 80; }

static lk_status add_merge(lk_tokenizer *tk, const struct lk_vocab_merge *merge, uint32_t rank, lk_text *joined, lk_error *err)
{
    lk_bpe *bpe = &tk->bpe;
    lk_piece left = merge->left, right = merge->right;
    joined->n = 0;
    LK_TRY(lk_text_add(joined, left.p, left.n, 0, err));
    LK_TRY(lk_text_add(joined, right.p, right.n, 0, err));
    int32_t a = lk_piece_table_find(&tk->contents, left.p, left.n), b = lk_piece_table_find(&tk->contents, right.p, right.n),
            id = lk_piece_table_find(&tk->contents, joined->p, joined->n);
    if (a < 0 || b < 0 || id < 0) {
        lk_piece missing = a < 0 ? left : b < 0 ? right : (lk_piece){joined->p, (uint32_t)joined->n};
        return lk_fail(err, LK_ERR_FORMAT, "%s: model.merges[%u], \"%.*s\" and \"%.*s\": \"%.*s\" is not in the vocabulary", tk->where,
                       rank, shown(left.n), left.p, shown(right.n), right.p, shown(missing.n), missing.p);
    }
    lk_merge *m = merge_slot(bpe, pair_of(a, b));
    *m = (lk_merge){pair_of(a, b), rank, id}; /* of two equal entries the later counts, as in the library */
    tk->ranks[rank] = (struct lk_rank){a, b};
    if (tk->scores[id] == 0) tk->scores[id] = -(double)rank - 1;
    const lk_piece *l = &bpe->keys[a], *r = &bpe->keys[b];
    if (l->p && r->p) {
        uint32_t bit = join_hash(last_char(bpe, l), first_char(bpe, r));
        bpe->joins[bit / 8] |= (uint8_t)(1u << bit % 8);
    }
    return LK_OK;
}

static lk_status read_merges(lk_tokenizer *tk, const lk_vocab *v, lk_error *err)
{
    lk_bpe *bpe = &tk->bpe;
    size_t n = v->n_merges, slots = 16;
    while (slots < n * 2) slots *= 2;
    bpe->merges = lk_arena_alloc(&tk->arena, slots * sizeof *bpe->merges);
    bpe->joins = lk_arena_alloc(&tk->arena, (1u << JOIN_BITS) / 8);
    tk->ranks = lk_arena_alloc(&tk->arena, n * sizeof *tk->ranks);
    tk->n_ranks = (int64_t)n;
    if (!bpe->merges || !bpe->joins || !tk->ranks || n > UINT32_MAX / 2)
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu merges", tk->where, n);
    for (size_t i = 0; i < slots; i++) bpe->merges[i].pair = UINT64_MAX;
    bpe->merge_mask = slots - 1;
    lk_text joined = {0};
    lk_status status = LK_OK;
    for (size_t i = 0; i < n && !status; i++) status = add_merge(tk, &v->merges[i], (uint32_t)i, &joined, err);
    lk_text_free(&joined);
    return status;
}

/* What the encoder sees of each piece: the piece, or the bytes it stands for. */
static lk_status read_keys(lk_tokenizer *tk, const lk_vocab *v, lk_error *err)
{
    lk_bpe *bpe = &tk->bpe;
    char bytes[512];
    for (size_t i = 0; i < v->n; i++) {
        int32_t id = v->ids[i];
        const lk_piece *piece = &tk->pieces[id];
        lk_piece *key = &bpe->keys[id];
        size_t n = piece->n, size = 0;
        if (n == 0) continue;
        *key = *piece;
        if (bpe->byte_level) {
            /* an entry with a character outside the byte alphabet can never come out of text */
            char *to = n > sizeof bytes ? lk_arena_alloc(&tk->arena, n) : bytes;
            if (!to) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
            *key = (lk_piece){0};
            if (!lk_byte_level_undo(piece->p, n, to, &size)) continue;
            key->n = (uint32_t)size;
            key->p = lk_arena_strndup(&tk->arena, to, size);
            if (!key->p) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
        }
        lk_piece_table_insert(&bpe->table, id);
        if (key->n == 1) bpe->single[(unsigned char)key->p[0]] = id;
    }
    return LK_OK;
}

static lk_status read_options(lk_tokenizer *tk, const cJSON *model, const char **unk, lk_error *err)
{
    lk_bpe *bpe = &tk->bpe;
    const char *where = tk->where, *prefix = "", *suffix = "";
    double dropout = 0;
    LK_TRY(lk_only_keys(model,
                        (const char *const[]){"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                                              "byte_fallback", "ignore_merges", "vocab", "merges", NULL},
                        where, "model BPE", err));
    LK_TRY(lk_json_opt_number(model, "dropout", 0, 1, &dropout, where, err));
    LK_TRY(lk_json_opt_string(model, "continuing_subword_prefix", &prefix, where, err));
    LK_TRY(lk_json_opt_string(model, "end_of_word_suffix", &suffix, where, err));
    LK_TRY(lk_json_opt_bool(model, "fuse_unk", &bpe->fuse_unk, where, err));
    LK_TRY(lk_json_opt_bool(model, "byte_fallback", &bpe->byte_fallback, where, err));
    LK_TRY(lk_json_opt_bool(model, "ignore_merges", &bpe->ignore_merges, where, err));
    LK_TRY(lk_json_opt_string(model, "unk_token", unk, where, err));
    if (dropout != 0) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model BPE: dropout (random tokenisation) is not supported", where);
    if (*prefix) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model BPE: continuing_subword_prefix is not supported", where);
    if (*suffix) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model BPE: end_of_word_suffix is not supported", where);
    return LK_OK;
}

lk_status lk_bpe_read(lk_tokenizer *tk, const cJSON *model, const lk_vocab *v, lk_error *err)
{
    lk_bpe *bpe = &tk->bpe;
    const char *unk = NULL, *where = tk->where;
    LK_TRY(read_options(tk, model, &unk, err));
    LK_TRY(lk_vocab_place(tk, v, err));
    memset(tk->scores, 0, (size_t)tk->n_ids * sizeof *tk->scores); /* they are in the merges now, whatever scale they had */
    bpe->keys = lk_arena_alloc(&tk->arena, (size_t)tk->n_ids * sizeof *bpe->keys);
    if (!bpe->keys) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %d ids", where, tk->n_ids);
    LK_TRY(lk_piece_table_init(&bpe->table, &tk->arena, bpe->keys, v->n, err));
    memset(bpe->single, 0xff, sizeof bpe->single);
    LK_TRY(read_keys(tk, v, err));
    LK_TRY(read_merges(tk, v, err));
    bpe->unk = unk ? lk_piece_table_find(&tk->contents, unk, strlen(unk)) : -1;
    if (unk && bpe->unk < 0) return lk_fail(err, LK_ERR_FORMAT, "%s: model.unk_token \"%.100s\" is not in the vocabulary", where, unk);
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        bpe->byte[b] = lk_piece_table_find(&tk->contents, name, 6);
    }
    return LK_OK;
}

/* ---- encoding ---- */

/* The id of the character of a word at p; its length leaves through *size. -1 when the vocabulary has none. */
static int32_t char_id(const lk_bpe *bpe, const char *p, size_t n, int *size)
{
    unsigned char c = (unsigned char)*p;
    uint32_t cp;
    *size = bpe->byte_level || c < 0x80 ? 1 : lk_utf8_decode(p, n, &cp);
    return *size == 1 ? bpe->single[c] : lk_piece_table_find(&bpe->table, p, (size_t)*size);
}

static void push_symbol(lk_encoder *e, int32_t *n, int32_t id, size_t start, size_t size)
{
    e->symbols[(*n)++] = (lk_symbol){id, (uint32_t)start, (uint32_t)size, 0, 0};
}

/* The bytes of a character that the vocabulary lacks, as <0x..> tokens; false when one of those is missing too. */
static bool push_bytes(lk_encoder *e, int32_t *n, const char *p, int size, size_t start)
{
    const lk_bpe *bpe = &e->tk->bpe;
    char mapped[4];
    int count = size;
    if (bpe->byte_level) { /* the library would see the byte alphabet's character here */
        count = lk_byte_level_char((unsigned char)*p, mapped);
        p = mapped;
    }
    for (int i = 0; i < count; i++)
        if (bpe->byte[(unsigned char)p[i]] < 0) return false;
    for (int i = 0; i < count; i++) push_symbol(e, n, bpe->byte[(unsigned char)p[i]], start + (size_t)(bpe->byte_level ? 0 : i), 1);
    return true;
}

/* Fills e->symbols with the word's characters and returns their number. Unknown characters: bytes, else unk (neighbours fused
 * if the file says so), else nothing, in the library's order: a waiting unk is not written before byte tokens. */
static int32_t load_symbols(lk_encoder *e, lk_view word)
{
    const lk_bpe *bpe = &e->tk->bpe;
    int32_t n = 0;
    bool waiting = false;
    size_t unk_start = 0, unk_size = 0;
    int size;
    for (size_t i = 0; i < word.n; i += (size_t)size) {
        int32_t id = char_id(bpe, word.p + i, word.n - i, &size);
        if (id >= 0) {
            if (waiting) push_symbol(e, &n, bpe->unk, unk_start, unk_size);
            waiting = false;
            push_symbol(e, &n, id, i, (size_t)size);
        } else if (bpe->byte_fallback && push_bytes(e, &n, word.p + i, size, i)) {
            continue;
        } else if (bpe->unk >= 0) {
            if (waiting && bpe->fuse_unk) {
                unk_size += (size_t)size;
            } else {
                if (waiting) push_symbol(e, &n, bpe->unk, unk_start, unk_size);
                waiting = true;
                unk_start = i;
                unk_size = (size_t)size;
            }
        }
    }
    if (waiting) push_symbol(e, &n, bpe->unk, unk_start, unk_size);
    return n;
}

/* Few symbols: keep the rank of every adjacent pair in an array and look for the least. */
static int32_t merge_scan(const lk_bpe *bpe, lk_symbol *s, int32_t n)
{
    uint32_t rank[SCAN_SYMBOLS];
    int32_t result[SCAN_SYMBOLS];
    for (int32_t i = 0; i + 1 < n; i++) {
        const lk_merge *m = find_merge(bpe, s[i].id, s[i + 1].id);
        rank[i] = m ? m->rank : UINT32_MAX;
        result[i] = m ? m->id : -1;
    }
    while (n > 1) {
        int32_t best = 0;
        for (int32_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == UINT32_MAX) break;
        s[best].id = result[best];
        s[best].size += s[best + 1].size;
        size_t tail = (size_t)(n - best - 2);
        memmove(&s[best + 1], &s[best + 2], tail * sizeof *s);
        memmove(&rank[best], &rank[best + 1], tail * sizeof *rank);
        memmove(&result[best], &result[best + 1], tail * sizeof *result);
        n--;
        for (int32_t i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const lk_merge *m = find_merge(bpe, s[i].id, s[i + 1].id);
            rank[i] = m ? m->rank : UINT32_MAX;
            result[i] = m ? m->id : -1;
        }
    }
    return n;
}

static bool before(const lk_candidate *a, const lk_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static lk_status heap_push(lk_encoder *e, lk_candidate c)
{
    if (e->heap_n == e->heap_room) {
        size_t room = e->heap_room ? e->heap_room * 2 : 256;
        lk_candidate *grown = realloc(e->heap, room * sizeof *grown);
        if (!grown) return lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory for a word of %zu merges", room);
        e->heap = grown;
        e->heap_room = room;
    }
    size_t i = e->heap_n++;
    for (; i > 0 && before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return LK_OK;
}

static lk_candidate heap_pop(lk_encoder *e)
{
    lk_candidate top = e->heap[0], last = e->heap[--e->heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= e->heap_n) break;
        if (child + 1 < e->heap_n && before(&e->heap[child + 1], &e->heap[child])) child++;
        if (!before(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    if (e->heap_n) e->heap[i] = last;
    return top;
}

static lk_status heap_consider(lk_encoder *e, int32_t left)
{
    const lk_symbol *s = e->symbols;
    if (left < 0 || s[left].next < 0) return LK_OK;
    const lk_merge *m = find_merge(&e->tk->bpe, s[left].id, s[s[left].next].id);
    return m ? heap_push(e, (lk_candidate){m->rank, left, m->id}) : LK_OK;
}

/* Many symbols: a linked list and a heap of candidates, stale ones recognised when they come up. A symbol merged away has size 0. */
static lk_status merge_heap(lk_encoder *e, int32_t *count)
{
    const lk_bpe *bpe = &e->tk->bpe;
    lk_symbol *s = e->symbols;
    int32_t n = *count, kept = 0;
    e->heap_n = 0;
    for (int32_t i = 0; i < n; i++) {
        s[i].previous = i - 1;
        s[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (int32_t i = 0; i < n; i++) LK_TRY(heap_consider(e, i));
    while (e->heap_n) {
        lk_candidate c = heap_pop(e);
        lk_symbol *left = &s[c.position];
        if (left->size == 0 || left->next < 0) continue;
        lk_symbol *right = &s[left->next];
        const lk_merge *m = find_merge(bpe, left->id, right->id);
        if (!m || m->id != c.id || m->rank != c.rank) continue;
        left->id = c.id;
        left->size += right->size;
        left->next = right->next;
        right->size = 0;
        if (left->next >= 0) s[left->next].previous = c.position;
        LK_TRY(heap_consider(e, left->previous));
        LK_TRY(heap_consider(e, c.position));
    }
    for (int32_t i = 0, next; i >= 0; i = next) {
        next = s[i].next;
        s[kept++] = s[i]; /* kept <= i: only places already visited or dead are overwritten */
    }
    *count = kept;
    return LK_OK;
}

static lk_status merge_word(lk_encoder *e, lk_view word)
{
    if (word.n > e->symbol_room) {
        /* in byte fallback one character of the byte alphabet may give two symbols for one byte */
        size_t room = word.n < 256 ? 256 : word.n;
        lk_symbol *grown = realloc(e->symbols, 2 * room * sizeof *grown);
        if (!grown) return lk_fail(e->err, LK_ERR_MEMORY, "tokenizer: no memory for a word of %zu bytes", word.n);
        e->symbols = grown;
        e->symbol_room = room;
    }
    int32_t n = load_symbols(e, word);
    if (n <= SCAN_SYMBOLS)
        n = merge_scan(&e->tk->bpe, e->symbols, n);
    else
        LK_TRY(merge_heap(e, &n));
    for (int32_t i = 0; i < n; i++) LK_TRY(lk_encoder_emit(e, e->symbols[i].id, lk_view_source(&word, e->symbols[i].start)));
    return LK_OK;
}

/* A word through the cache of recent ones. */
static lk_status cached_word(lk_encoder *e, lk_view word)
{
    const lk_bpe *bpe = &e->tk->bpe;
    lk_word_entry *entry = NULL;
    if (word.n <= sizeof entry->word) {
        entry = &e->cache[lk_hash_bytes(word.p, word.n) & e->cache_mask];
        if (entry->size == word.n && !memcmp(entry->word, word.p, word.n)) {
            for (int i = 0; i < entry->n; i++) LK_TRY(lk_encoder_emit(e, entry->ids[i], lk_view_source(&word, entry->start[i])));
            return LK_OK;
        }
    }
    int64_t from = e->n;
    if (bpe->ignore_merges) {
        int32_t id = lk_piece_table_find(&bpe->table, word.p, word.n);
        if (id >= 0) return lk_encoder_emit(e, id, lk_view_source(&word, 0));
    }
    LK_TRY(merge_word(e, word));
    int64_t n = e->n - from;
    if (entry && n <= (int64_t)(sizeof entry->ids / sizeof *entry->ids)) {
        entry->size = (uint8_t)word.n;
        memcpy(entry->word, word.p, word.n);
        entry->n = (uint8_t)n;
        for (int64_t i = 0; i < n; i++) {
            entry->ids[i] = e->ids[from + i];
            entry->start[i] = (uint8_t)e->symbols[i].start;
        }
    }
    return LK_OK;
}

static bool known(const lk_bpe *bpe, lk_view word, size_t i)
{
    int size;
    return char_id(bpe, word.p + i, word.n - i, &size) >= 0;
}

lk_status lk_bpe_encode(lk_encoder *e, lk_view word)
{
    const lk_bpe *bpe = &e->tk->bpe;
    /* ignore_merges looks the whole word up, so it must stay whole */
    if (word.n <= sizeof e->cache->word || bpe->ignore_merges) return cached_word(e, word);
    size_t begin = 0, previous = 0;
    uint32_t last = 0;
    int size = 1;
    for (size_t i = 0; i < word.n; i += (size_t)size) {
        uint32_t c = (unsigned char)word.p[i];
        size = bpe->byte_level || c < 0x80 ? 1 : lk_utf8_decode(word.p + i, word.n - i, &c);
        uint32_t bit = join_hash(last, c);
        /* both sides must be in the vocabulary: a waiting unk reaches across */
        if (i > begin && !(bpe->joins[bit / 8] & 1u << bit % 8) && known(bpe, word, previous) && known(bpe, word, i)) {
            LK_TRY(cached_word(e, lk_view_sub(word, begin, i)));
            begin = i;
        }
        last = c;
        previous = i;
    }
    return cached_word(e, lk_view_sub(word, begin, word.n));
}
