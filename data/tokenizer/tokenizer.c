/* A tokenizer from the tree of a tokenizer.json, and the look-ups.
 *
 * The JSON tree is walked once, in order, and thrown away; strings go to the tokenizer's arena, entries to hash tables (cJSON's
 * own look-up walks a list, which a vocabulary of 150,000 entries cannot afford). The order matters: the pre-tokeniser says
 * whether the vocabulary is byte-level, the vocabulary is needed by the merges, the normaliser by added tokens. */
#include "data/tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sha256.h"
#include "data/tokenizer/internal.h"

enum { MAX_POST_ITEMS = 64 };

lk_status lk_only_keys(const cJSON *object, const char *const *keys, const char *where, const char *component, lk_error *err)
{
    const cJSON *child;
    cJSON_ArrayForEach(child, object)
    {
        int k = 0;
        while (keys[k] && strcmp(keys[k], child->string)) k++;
        if (!keys[k])
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s: the member \"%.60s\" is not known, so what it does cannot be honoured", where,
                           component, child->string);
    }
    return LK_OK;
}

lk_status lk_refuse(const char *where, const char *what, const char *type, const char *supported, lk_error *err)
{
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s \"%.80s\" is not supported (supported: %s)", where, what, type, supported);
}

/* ---- post-processors ---- */

/* items is the list so far; TemplateProcessing puts its own in place of the text. */
static lk_status read_template(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const char *where = tk->where;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "single", "pair", "special_tokens", NULL}, where,
                        "post_processor TemplateProcessing", err));
    const cJSON *single = lk_json_get(node, "single"), *specials = lk_json_get(node, "special_tokens"), *item;
    if (!cJSON_IsArray(single)) return lk_fail(err, LK_ERR_FORMAT, "%s: TemplateProcessing: single must be a list", where);
    lk_post_item items[MAX_POST_ITEMS];
    int n = 0;
    bool has_text = false;
    cJSON_ArrayForEach(item, single)
    {
        const cJSON *special = lk_json_get(item, "SpecialToken"), *sequence = lk_json_get(item, "Sequence"), *id;
        const char *name;
        if (cJSON_IsObject(sequence)) {
            LK_TRY(lk_json_string(sequence, "id", &name, where, err));
            if (strcmp(name, "A"))
                return lk_fail(err, LK_ERR_FORMAT, "%s: TemplateProcessing: single names the sequence \"%.20s\"", where, name);
            if (has_text) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: TemplateProcessing: single has the text twice", where);
            has_text = true;
            for (int i = 0; i < (tk->n_post ? tk->n_post : 1); i++) {
                if (n == MAX_POST_ITEMS)
                    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: TemplateProcessing: more than %d tokens", where, MAX_POST_ITEMS);
                items[n++] = tk->n_post ? tk->post[i] : (lk_post_item){-1};
            }
            continue;
        }
        if (!cJSON_IsObject(special))
            return lk_fail(err, LK_ERR_FORMAT, "%s: TemplateProcessing: an item is neither SpecialToken nor Sequence", where);
        LK_TRY(lk_json_string(special, "id", &name, where, err));
        const cJSON *ids = lk_json_get(lk_json_get(specials, name), "ids");
        if (!cJSON_IsArray(ids))
            return lk_fail(err, LK_ERR_FORMAT, "%s: TemplateProcessing: special_tokens lacks the ids of \"%.80s\"", where, name);
        cJSON_ArrayForEach(id, ids)
        {
            double value = id->valuedouble;
            if (!cJSON_IsNumber(id) || !(value >= 0 && value < tk->n_ids) || value != (double)(int32_t)value ||
                !tk->pieces[(int32_t)value].p)
                return lk_fail(err, LK_ERR_FORMAT, "%s: TemplateProcessing: \"%.80s\" has an id that is not in the vocabulary", where,
                               name);
            if (n == MAX_POST_ITEMS)
                return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: TemplateProcessing: more than %d tokens", where, MAX_POST_ITEMS);
            items[n++] = (lk_post_item){(int32_t)value};
        }
    }
    if (!has_text) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: TemplateProcessing: single drops the text", where);
    tk->post = lk_arena_alloc(&tk->arena, (size_t)n * sizeof *tk->post);
    if (!tk->post) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    memcpy(tk->post, items, (size_t)n * sizeof *items);
    tk->n_post = n;
    return LK_OK;
}

static lk_status read_post_processor(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const char *type;
    if (!node || cJSON_IsNull(node)) return LK_OK;
    if (!cJSON_IsObject(node)) return lk_fail(err, LK_ERR_FORMAT, "%s: post_processor must be an object", tk->where);
    LK_TRY(lk_json_string(node, "type", &type, tk->where, err));
    if (!strcmp(type, "TemplateProcessing")) return read_template(tk, node, err);
    if (!strcmp(type, "ByteLevel")) return LK_OK; /* adjusts offsets, which are ours to give */
    if (strcmp(type, "Sequence")) return lk_refuse(tk->where, "post_processor", type, "Sequence, TemplateProcessing, ByteLevel", err);
    const cJSON *list = lk_json_get(node, "processors"), *child;
    if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: post_processor Sequence: processors must be a list", tk->where);
    cJSON_ArrayForEach(child, list) LK_TRY(read_post_processor(tk, child, err));
    return LK_OK;
}

/* ---- tokenizer.json ---- */

/* Added tokens into the tables of pieces, checked against the vocabulary and each other. */
static lk_status place_added(lk_tokenizer *tk, lk_error *err)
{
    for (int32_t i = 0; i < tk->n_added; i++) {
        const lk_added *a = &tk->added[i];
        lk_piece *piece = &tk->pieces[a->id];
        if (piece->p && (piece->n != a->match_size || memcmp(piece->p, a->match, piece->n)))
            return lk_fail(err, LK_ERR_FORMAT, "%s: added_tokens[%d] \"%.100s\" has id %d, which is \"%.100s\"", tk->where, i, a->match,
                           a->id, piece->p);
        int32_t other = lk_piece_table_find(&tk->contents, a->match, a->match_size);
        if (other >= 0 && other != a->id)
            return lk_fail(err, LK_ERR_FORMAT, "%s: added_tokens[%d] \"%.100s\" has id %d, but elsewhere in the file id %d", tk->where, i,
                           a->match, a->id, other);
        tk->special[a->id] |= a->special;
        tk->added_ids[a->id] = 1;
        if (piece->p) continue;
        *piece = (lk_piece){a->match, a->match_size};
        lk_piece_table_insert(&tk->contents, a->id);
    }
    memcpy(tk->forms, tk->pieces, (size_t)tk->n_ids * sizeof *tk->forms);
    /* a token may be listed twice, once special: the library then treats the content as special */
    for (int32_t i = 0; i < tk->n_added; i++) tk->added[i].special = tk->special[tk->added[i].id];
    return LK_OK;
}

/* The model by its type; files from before the library wrote types are BPE. */
static lk_status read_model(lk_tokenizer *tk, const cJSON *model, const lk_vocab *vocab, lk_error *err)
{
    const char *type = "BPE";
    if (!cJSON_IsObject(model)) return lk_fail(err, LK_ERR_FORMAT, "%s: model must be an object", tk->where);
    LK_TRY(lk_json_opt_string(model, "type", &type, tk->where, err));
    bool unigram = !strcmp(type, "Unigram");
    if (!unigram && strcmp(type, "BPE")) return lk_refuse(tk->where, "model", type, "BPE, Unigram", err);
    tk->bpe.byte_level = tk->n_pre > 0 && tk->pre[tk->n_pre - 1].kind == LK_PRE_BYTE_LEVEL;
    tk->model = unigram ? LK_TK_UNIGRAM : tk->bpe.byte_level ? LK_TK_BYTE_BPE : LK_TK_SPM_BPE;
    lk_vocab own = {0};
    lk_status status = vocab ? LK_OK : lk_vocab_from_json(&own, model, unigram, tk->where, err);
    if (!status) status = (unigram ? lk_unigram_read : lk_bpe_read)(tk, model, vocab ? vocab : &own, err);
    lk_vocab_free(&own);
    return status;
}

static lk_status read_tokenizer(lk_tokenizer *tk, const cJSON *root, const lk_vocab *vocab, lk_error *err)
{
    if (!cJSON_IsObject(root)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", tk->where);
    const cJSON *model = lk_json_get(root, "model");
    if (!model) return lk_fail(err, LK_ERR_FORMAT, "%s: model is missing: this is not a tokenizer.json", tk->where);
    LK_TRY(lk_added_read(tk, lk_json_get(root, "added_tokens"), err));
    LK_TRY(lk_normalizer_read(tk, lk_json_get(root, "normalizer"), err));
    LK_TRY(lk_pretokenizer_read(tk, lk_json_get(root, "pre_tokenizer"), err));
    LK_TRY(read_model(tk, model, vocab, err));
    LK_TRY(place_added(tk, err));
    LK_TRY(lk_added_finish(tk, err));
    LK_TRY(read_post_processor(tk, lk_json_get(root, "post_processor"), err));
    LK_TRY(lk_decoder_read(tk, lk_json_get(root, "decoder"), err));
    return lk_decoder_bytes(tk, err);
}

lk_status lk_tokenizer_set_post(lk_tokenizer *tk, int32_t before, int32_t after, lk_error *err)
{
    tk->n_post = 0;
    tk->post = lk_arena_alloc(&tk->arena, 3 * sizeof *tk->post);
    if (!tk->post) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    if (before >= 0) tk->post[tk->n_post++].id = before;
    tk->post[tk->n_post++].id = -1;
    if (after >= 0) tk->post[tk->n_post++].id = after;
    return LK_OK;
}

lk_status lk_tokenizer_build(lk_tokenizer **out, const cJSON *root, const lk_vocab *vocab, const char *where, lk_error *err)
{
    *out = NULL;
    lk_tokenizer *tk = calloc(1, sizeof *tk);
    if (!tk) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    tk->bos = tk->eos = tk->pad = tk->bpe.unk = tk->unigram.unk = -1;
    tk->where = lk_arena_strdup(&tk->arena, where);
    lk_status status = tk->where ? read_tokenizer(tk, root, vocab, err) : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    if (status)
        lk_tokenizer_close(tk);
    else
        *out = tk;
    return status;
}

lk_status lk_tokenizer_parse(lk_tokenizer **out, const char *json, size_t size, const char *where, lk_error *err)
{
    cJSON *root;
    *out = NULL;
    LK_TRY(lk_json_parse(&root, json, size, where, err));
    lk_status status = lk_tokenizer_build(out, root, NULL, where, err);
    cJSON_Delete(root);
    if (!status) {
        lk_sha256 hash;
        lk_sha256_init(&hash);
        lk_sha256_update(&hash, json, size);
        lk_sha256_update(&hash, "", 1);
        lk_sha256_final(&hash, (*out)->digest);
    }
    return status;
}

void lk_tokenizer_close(lk_tokenizer *tk)
{
    if (!tk) return;
    for (int i = 0; i < tk->n_pre; i++) lk_regex_free(tk->pre[i].regex);
    for (int i = 0; i < tk->n_normalizer; i++) lk_regex_free(tk->normalizer[i].regex);
    lk_arena_free(&tk->arena);
    free(tk);
}

/* ---- look-ups ---- */

int32_t lk_tokenizer_size(const lk_tokenizer *tk) { return tk->n_ids; }

int32_t lk_tokenizer_id(const lk_tokenizer *tk, const char *content)
{
    return lk_piece_table_find(&tk->contents, content, strlen(content));
}

static const char *piece_of(const lk_piece *pieces, int32_t n, int32_t id, size_t *size)
{
    bool there = id >= 0 && id < n && pieces[id].p;
    if (size) *size = there ? pieces[id].n : 0;
    return there ? pieces[id].p : NULL;
}

const char *lk_tokenizer_piece(const lk_tokenizer *tk, int32_t id, size_t *size) { return piece_of(tk->pieces, tk->n_ids, id, size); }
const char *lk_tokenizer_bytes(const lk_tokenizer *tk, int32_t id, size_t *size) { return piece_of(tk->bytes, tk->n_ids, id, size); }
bool lk_tokenizer_is_special(const lk_tokenizer *tk, int32_t id) { return id >= 0 && id < tk->n_ids && tk->special[id]; }
int32_t lk_tokenizer_bos(const lk_tokenizer *tk) { return tk->bos; }
int32_t lk_tokenizer_eos(const lk_tokenizer *tk) { return tk->eos; }
const char *lk_tokenizer_text(const lk_tokenizer *tk, const char *name)
{
    for (int i = tk->n_texts; i-- > 0;)
        if (!strcmp(tk->texts[i].name, name)) return tk->texts[i].text;
    return NULL;
}

const char *lk_tokenizer_chat_template(const lk_tokenizer *tk) { return tk->chat_template; }
const char *lk_tokenizer_digest(const lk_tokenizer *tk) { return tk->digest; }
