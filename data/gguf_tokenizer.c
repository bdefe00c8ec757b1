#include "data/gguf_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "data/tokenizer/vocabulary.h"

#define KEY "tokenizer.ggml."

static const char *const models[] = {[LK_TK_BYTE_BPE] = "gpt2", [LK_TK_SPM_BPE] = "llama", [LK_TK_UNIGRAM] = "t5"};

/* ---- writing ---- */

static lk_status add_tokens(lk_gguf_writer *w, const lk_tokenizer *tk, int64_t vocab, lk_arena *arena, lk_error *err)
{
    lk_gguf_text *texts = lk_arena_alloc(arena, (size_t)vocab * sizeof *texts);
    int32_t *types = lk_arena_alloc(arena, (size_t)vocab * sizeof *types);
    float *scores = lk_arena_alloc(arena, (size_t)vocab * sizeof *scores);
    if (!texts || !types || !scores) return lk_fail(err, LK_ERR_MEMORY, "no memory for a vocabulary of %lld", (long long)vocab);
    for (int32_t id = 0; id < vocab; id++) {
        types[id] = lk_tokenizer_type(tk, id);
        scores[id] = lk_tokenizer_score(tk, id);
        texts[id].p = lk_tokenizer_piece(tk, id, &texts[id].n);
        if (texts[id].p) continue;
        char name[32];
        texts[id].n = (size_t)snprintf(name, sizeof name, "[PAD%d]", id);
        if (!(texts[id].p = lk_arena_strdup(arena, name))) return lk_fail(err, LK_ERR_MEMORY, "no memory for a vocabulary");
        types[id] = LK_TOKEN_UNUSED;
    }
    LK_TRY(lk_gguf_add_texts(w, KEY "tokens", texts, vocab, err));
    LK_TRY(lk_gguf_add_i32s(w, KEY "token_type", types, vocab, err));
    if (lk_tokenizer_kind(tk) == LK_TK_BYTE_BPE) return LK_OK;
    return lk_gguf_add_f32s(w, KEY "scores", scores, vocab, err);
}

static lk_status add_merges(lk_gguf_writer *w, const lk_tokenizer *tk, lk_arena *arena, lk_error *err)
{
    int64_t n = lk_tokenizer_n_merges(tk);
    lk_gguf_text *merges = lk_arena_alloc(arena, (size_t)n * sizeof *merges);
    if (!merges) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld merges", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        int32_t left, right;
        size_t a, b;
        lk_tokenizer_merge(tk, i, &left, &right);
        const char *p = lk_tokenizer_piece(tk, left, &a), *q = lk_tokenizer_piece(tk, right, &b);
        char *text = lk_arena_alloc(arena, a + b + 1);
        if (!text) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld merges", (long long)n);
        memcpy(text, p, a);
        text[a] = ' ';
        memcpy(text + a + 1, q, b);
        merges[i] = (lk_gguf_text){text, a + b + 1};
    }
    return lk_gguf_add_texts(w, KEY "merges", merges, n, err);
}

static lk_status add_id(lk_gguf_writer *w, const char *key, int32_t id, lk_error *err)
{
    return id < 0 ? LK_OK : lk_gguf_add_u32(w, key, id, err);
}

/* What can be said of the tokenizer in GGUF's terms, or why it cannot. */
static lk_status check(const lk_tokenizer *tk, int64_t vocab, const char **pre, lk_error *err)
{
    const char *why;
    if (lk_tokenizer_size(tk) > vocab)
        return lk_fail(err, LK_ERR_MISMATCH, "the tokenizer has %d ids, the model's embedding %lld rows", lk_tokenizer_size(tk),
                       (long long)vocab);
    if (lk_tokenizer_kind(tk) == LK_TK_BYTE_BPE && !*pre && !(*pre = lk_tokenizer_pretokenizer_name(tk)))
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "the tokenizer splits text by rules that llama.cpp has no name for, so far as is known here; if it has one, give "
                       "it with --pre NAME");
    if (lk_tokenizer_kind(tk) == LK_TK_SPM_BPE && !lk_tokenizer_fits_scores(tk, &why))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "llama.cpp would split text into other tokens: it goes by scores, and %s", why);
    return LK_OK;
}

lk_status lk_gguf_add_tokenizer(lk_gguf_writer *w, const lk_tokenizer *tk, int64_t vocab, const lk_gguf_tokenizer_options *o, lk_error *err)
{
    const char *pre = o->pre, *template = lk_tokenizer_chat_template(tk);
    LK_TRY(check(tk, vocab, &pre, err));
    bool spm = lk_tokenizer_kind(tk) != LK_TK_BYTE_BPE;
    int32_t bos = lk_tokenizer_bos(tk) >= 0 ? lk_tokenizer_bos(tk) : o->bos,
            eos = lk_tokenizer_eos(tk) >= 0 ? lk_tokenizer_eos(tk) : o->eos;
    lk_arena arena = {0};
    lk_status status;
    if ((status = lk_gguf_add_string(w, KEY "model", models[lk_tokenizer_kind(tk)], err))) goto out;
    if ((status = lk_gguf_add_string(w, KEY "pre", spm ? "default" : pre, err))) goto out;
    if ((status = add_tokens(w, tk, vocab, &arena, err))) goto out;
    if (!spm && (status = add_merges(w, tk, &arena, err))) goto out;
    if ((status = add_id(w, KEY "bos_token_id", bos, err))) goto out;
    if ((status = add_id(w, KEY "eos_token_id", eos, err))) goto out;
    if (o->eot != eos && (status = add_id(w, KEY "eot_token_id", o->eot, err))) goto out;
    if ((status = add_id(w, KEY "unknown_token_id", lk_tokenizer_unk(tk), err))) goto out;
    if ((status = add_id(w, KEY "padding_token_id", lk_tokenizer_pad(tk), err))) goto out;
    if ((status = lk_gguf_add_bool(w, KEY "add_bos_token", lk_tokenizer_added_bos(tk) >= 0, err))) goto out;
    if ((status = lk_gguf_add_bool(w, KEY "add_eos_token", lk_tokenizer_added_eos(tk) >= 0, err))) goto out;
    if (spm && (status = lk_gguf_add_bool(w, KEY "add_space_prefix", lk_tokenizer_adds_space(tk), err))) goto out;
    if (template && *template) status = lk_gguf_add_string(w, "tokenizer.chat_template", template, err);
out:
    lk_arena_free(&arena);
    return status;
}

/* ---- reading ---- */

/* A string value in the arena, terminated; NULL when the key is missing. */
static lk_status text_of(const lk_gguf *g, const char *key, lk_arena *arena, const char **out, lk_error *err)
{
    const char *p = NULL;
    size_t n = 0;
    *out = NULL;
    LK_TRY(lk_gguf_opt_string(g, key, &p, &n, err));
    if (!p) return LK_OK;
    if (memchr(p, 0, n)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s holds a zero byte", lk_gguf_path(g), key);
    *out = lk_arena_strndup(arena, p, n);
    return *out ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory for its tokenizer", lk_gguf_path(g));
}

/* An array as long as the vocabulary; *values NULL when the key is missing. */
static lk_status column(const lk_gguf *g, const char *key, lk_gguf_type item, int64_t n, const lk_gguf_value **values, lk_error *err)
{
    *values = NULL;
    if (!lk_gguf_key(g, key)) return LK_OK;
    LK_TRY(lk_gguf_array(g, key, item, values, err));
    if ((*values)->n != n)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s has %lld items, the vocabulary %lld", lk_gguf_path(g), key, (long long)(*values)->n,
                       (long long)n);
    return LK_OK;
}

static lk_status read_entries(const lk_gguf *g, lk_tokenizer_parts *parts, lk_arena *arena, lk_error *err)
{
    const lk_gguf_value *tokens, *types, *scores;
    LK_TRY(lk_gguf_array(g, KEY "tokens", LK_GGUF_STRING, &tokens, err));
    LK_TRY(column(g, KEY "token_type", LK_GGUF_I32, tokens->n, &types, err));
    LK_TRY(column(g, KEY "scores", LK_GGUF_F32, tokens->n, &scores, err));
    if (parts->model != LK_TK_BYTE_BPE && !scores)
        return lk_fail(err, LK_ERR_FORMAT, "%s: " KEY "scores is missing, by which a SentencePiece vocabulary goes", lk_gguf_path(g));
    lk_tokenizer_entry *entries = lk_arena_alloc(arena, (size_t)tokens->n * sizeof *entries);
    if (!entries) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for its tokenizer", lk_gguf_path(g));
    for (int64_t i = 0; i < tokens->n; i++) {
        int64_t type = types ? lk_gguf_item_int(types, i) : LK_TOKEN_NORMAL;
        if (type < LK_TOKEN_NORMAL || type > LK_TOKEN_BYTE)
            return lk_fail(err, LK_ERR_FORMAT, "%s: " KEY "token_type of token %lld is %lld, expected 1 to 6", lk_gguf_path(g),
                           (long long)i, (long long)type);
        entries[i] =
            (lk_tokenizer_entry){tokens->texts[i].p, tokens->texts[i].n, scores ? (float)lk_gguf_item_number(scores, i) : 0, (int)type};
    }
    parts->entries = entries;
    parts->n = tokens->n;
    return LK_OK;
}

static lk_status read_merges(const lk_gguf *g, lk_tokenizer_parts *parts, lk_arena *arena, lk_error *err)
{
    const lk_gguf_value *merges;
    LK_TRY(lk_gguf_array(g, KEY "merges", LK_GGUF_STRING, &merges, err));
    const char **list = lk_arena_alloc(arena, (size_t)merges->n * sizeof *list);
    for (int64_t i = 0; list && i < merges->n; i++) {
        if (memchr(merges->texts[i].p, 0, merges->texts[i].n))
            return lk_fail(err, LK_ERR_FORMAT, "%s: merge %lld holds a zero byte", lk_gguf_path(g), (long long)i);
        if (!(list[i] = lk_arena_strndup(arena, merges->texts[i].p, merges->texts[i].n))) list = NULL;
    }
    if (!list) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for its merges", lk_gguf_path(g));
    parts->merges = list;
    parts->n_merges = merges->n;
    return LK_OK;
}

static lk_status read_id(const lk_gguf *g, const char *key, int64_t n, int32_t *id, lk_error *err)
{
    int64_t value = *id;
    LK_TRY(lk_gguf_opt_int(g, key, -1, n - 1, &value, err));
    *id = (int32_t)value;
    return LK_OK;
}

/* What a file without the key means is llama.cpp's default for the kind of vocabulary. */
static lk_status read_rules(const lk_gguf *g, lk_tokenizer_parts *parts, lk_error *err)
{
    bool spm = parts->model != LK_TK_BYTE_BPE;
    const char *pre = parts->pretokenizer;
    parts->bos = spm && parts->n > 2 ? 1 : -1;
    parts->eos = spm && parts->n > 2 ? 2 : -1;
    parts->unk = spm && parts->n > 2 ? 0 : -1;
    parts->pad = -1;
    parts->add_bos = spm || (pre && (!strcmp(pre, "llama-bpe") || !strcmp(pre, "llama3") || !strcmp(pre, "tekken")));
    parts->add_space_prefix = spm;
    LK_TRY(read_id(g, KEY "bos_token_id", parts->n, &parts->bos, err));
    LK_TRY(read_id(g, KEY "eos_token_id", parts->n, &parts->eos, err));
    LK_TRY(read_id(g, KEY "unknown_token_id", parts->n, &parts->unk, err));
    LK_TRY(read_id(g, KEY "padding_token_id", parts->n, &parts->pad, err));
    LK_TRY(lk_gguf_opt_bool(g, KEY "add_bos_token", &parts->add_bos, err));
    LK_TRY(lk_gguf_opt_bool(g, KEY "add_eos_token", &parts->add_eos, err));
    return lk_gguf_opt_bool(g, KEY "add_space_prefix", &parts->add_space_prefix, err);
}

static lk_status read_parts(lk_tokenizer_parts *parts, const lk_gguf *g, lk_arena *arena, lk_error *err)
{
    const char *model;
    LK_TRY(text_of(g, KEY "model", arena, &model, err));
    if (!model || !strcmp(model, "no_vocab"))
        return lk_fail(err, LK_ERR_NOT_FOUND, "%s has no tokenizer (" KEY "model is %s)", lk_gguf_path(g), model ? model : "missing");
    int kind = 0;
    while (kind < 3 && strcmp(models[kind], model)) kind++;
    if (kind == 3)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: " KEY "model is \"%.40s\"; gpt2, llama and t5 are read", lk_gguf_path(g), model);
    parts->where = lk_gguf_path(g);
    parts->model = (lk_tokenizer_model)kind;
    LK_TRY(text_of(g, KEY "pre", arena, &parts->pretokenizer, err));
    if (kind == LK_TK_BYTE_BPE && !parts->pretokenizer)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: " KEY "pre is missing: how text is split is not known", lk_gguf_path(g));
    LK_TRY(read_entries(g, parts, arena, err));
    if (kind == LK_TK_BYTE_BPE) LK_TRY(read_merges(g, parts, arena, err));
    LK_TRY(read_rules(g, parts, err));
    return text_of(g, "tokenizer.chat_template", arena, &parts->chat_template, err);
}

lk_status lk_gguf_open_tokenizer(lk_tokenizer **tk, const lk_gguf *g, lk_error *err)
{
    lk_arena arena = {0};
    lk_tokenizer_parts parts = {0};
    *tk = NULL;
    lk_status status = read_parts(&parts, g, &arena, err);
    if (!status) status = lk_tokenizer_create(tk, &parts, err);
    lk_arena_free(&arena);
    return status;
}

lk_status lk_gguf_save_tokenizer(const lk_gguf *g, const char *folder, lk_error *err)
{
    lk_arena arena = {0};
    lk_tokenizer_parts parts = {0};
    lk_status status = read_parts(&parts, g, &arena, err);
    if (!status) status = lk_tokenizer_write(folder, &parts, err);
    lk_arena_free(&arena);
    return status;
}
