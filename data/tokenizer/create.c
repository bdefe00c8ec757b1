/* A tokenizer put together from parts, as GGUF files hold them. The parts are written as the tree of a tokenizer.json, with the
 * vocabulary beside it, and go through the same reader as a file: there is one meaning of a pipeline, not two. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "data/tokenizer/internal.h"

static lk_status check_parts(const lk_tokenizer_parts *p, lk_error *err)
{
    if (p->n < 1 || p->n > LK_TK_MAX_IDS)
        return lk_fail(err, LK_ERR_FORMAT, "%s: a vocabulary of %lld tokens, at most %d", p->where, (long long)p->n, LK_TK_MAX_IDS);
    for (int64_t i = 0; i < p->n; i++) {
        const lk_tokenizer_entry *e = &p->entries[i];
        if (e->type < LK_TOKEN_NORMAL || e->type > LK_TOKEN_BYTE)
            return lk_fail(err, LK_ERR_FORMAT, "%s: token %lld is of the unknown type %d", p->where, (long long)i, e->type);
        if (e->size > LK_TK_MAX_PIECE || lk_utf8_valid_prefix(e->text, e->size) != e->size || (e->size && memchr(e->text, 0, e->size)))
            return lk_fail(err, LK_ERR_FORMAT, "%s: token %lld is not UTF-8 text of at most %d bytes", p->where, (long long)i,
                           LK_TK_MAX_PIECE);
    }
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {{"bos", p->bos}, {"eos", p->eos}, {"unknown", p->unk}, {"padding", p->pad}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i].id < -1 || ids[i].id >= p->n)
            return lk_fail(err, LK_ERR_FORMAT, "%s: the %s token is %d, but there are %lld tokens", p->where, ids[i].name, ids[i].id,
                           (long long)p->n);
    return LK_OK;
}

/* Copies of the entries' texts end in a zero, for cJSON. */
static lk_status add_tokens(cJSON *root, const lk_tokenizer_parts *p, lk_error *err)
{
    cJSON *list = cJSON_AddArrayToObject(root, "added_tokens");
    for (int64_t i = 0; i < p->n; i++) {
        const lk_tokenizer_entry *e = &p->entries[i];
        if ((e->type != LK_TOKEN_CONTROL && e->type != LK_TOKEN_USER_DEFINED) || e->size == 0) continue;
        char *text = strndup(e->text, e->size);
        cJSON *token = text ? cJSON_CreateObject() : NULL;
        if (!token) {
            free(text);
            return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", p->where);
        }
        cJSON_AddItemToArray(list, token);
        cJSON_AddNumberToObject(token, "id", (double)i);
        cJSON_AddStringToObject(token, "content", text);
        cJSON_AddBoolToObject(token, "special", e->type == LK_TOKEN_CONTROL);
        cJSON_AddFalseToObject(token, "normalized");
        free(text);
    }
    return LK_OK;
}

/* SentencePiece: a space in front, spaces as U+2581, and back. */
static lk_status add_spaces(cJSON *root, const lk_tokenizer_parts *p, lk_error *err)
{
    char text[512];
    snprintf(text, sizeof text,
             "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[%s"
             "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}]},"
             "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},"
             "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}%s]}}",
             p->add_space_prefix ? "{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"}," : "",
             p->add_space_prefix ? ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}" : "");
    cJSON *parsed = cJSON_Parse(text);
    if (!parsed) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", p->where);
    cJSON_AddItemToObject(root, "normalizer", cJSON_DetachItemFromObject(parsed, "normalizer"));
    cJSON_AddItemToObject(root, "decoder", cJSON_DetachItemFromObject(parsed, "decoder"));
    cJSON_Delete(parsed);
    return LK_OK;
}

static lk_status add_model(cJSON *root, const lk_tokenizer_parts *p, lk_error *err)
{
    cJSON *model = cJSON_AddObjectToObject(root, "model");
    bool bytes = false;
    for (int64_t i = 0; i < p->n; i++) bytes |= p->entries[i].type == LK_TOKEN_BYTE;
    cJSON_AddStringToObject(model, "type", p->model == LK_TK_UNIGRAM ? "Unigram" : "BPE");
    if (p->model == LK_TK_BYTE_BPE) {
        cJSON_AddStringToObject(cJSON_AddObjectToObject(root, "decoder"), "type", "ByteLevel");
        return lk_pretokenizer_named(root, model, p->pretokenizer ? p->pretokenizer : "(none)", p->where, err);
    }
    cJSON_AddBoolToObject(model, "byte_fallback", bytes);
    cJSON_AddTrueToObject(model, "fuse_unk");
    if (p->model == LK_TK_UNIGRAM && p->unk >= 0) cJSON_AddNumberToObject(model, "unk_id", p->unk);
    if (p->model == LK_TK_SPM_BPE && p->unk >= 0) {
        char *unk = strndup(p->entries[p->unk].text, p->entries[p->unk].size);
        if (unk) cJSON_AddStringToObject(model, "unk_token", unk);
        free(unk);
    }
    return add_spaces(root, p, err);
}

/* Ordinary pieces first: in SentencePiece the others are never put together from parts. Unused entries are holes. */
static void fill_pieces(lk_vocab *v, const lk_tokenizer_parts *p)
{
    v->n = 0;
    for (int ordinary = 1; ordinary >= 0; ordinary--) {
        for (int64_t i = 0; i < p->n; i++) {
            const lk_tokenizer_entry *e = &p->entries[i];
            if (e->type == LK_TOKEN_UNUSED || (e->type == LK_TOKEN_NORMAL) != ordinary) continue;
            v->pieces[v->n] = (lk_piece){e->text, (uint32_t)e->size};
            if (v->scores) v->scores[v->n] = (double)e->score;
            v->ids[v->n++] = (int32_t)i;
        }
        if (ordinary) v->n_joinable = v->n;
    }
}

lk_status lk_parts_vocab(lk_vocab *v, const lk_tokenizer_parts *p, lk_error *err)
{
    bool scored = p->model != LK_TK_BYTE_BPE;
    LK_TRY(lk_vocab_alloc(v, (size_t)p->n, scored ? 0 : (size_t)p->n_merges, scored, p->where, err));
    fill_pieces(v, p);
    for (int64_t i = 0; !scored && i < p->n_merges; i++) {
        const char *text = p->merges[i], *space = strchr(text, ' ');
        if (!space || space == text || !space[1])
            return lk_fail(err, LK_ERR_FORMAT, "%s: merge %lld, \"%.60s\", is not two pieces", p->where, (long long)i, text);
        v->merges[i].left = (lk_piece){text, (uint32_t)(space - text)};
        v->merges[i].right = (lk_piece){space + 1, (uint32_t)strlen(space + 1)};
    }
    return p->model == LK_TK_SPM_BPE ? lk_vocab_derive_merges(v, p->where, err) : LK_OK;
}

lk_status lk_parts_tree(cJSON **root, const lk_tokenizer_parts *p, lk_error *err)
{
    *root = NULL;
    LK_TRY(check_parts(p, err));
    if (!(*root = cJSON_CreateObject())) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", p->where);
    LK_TRY(add_tokens(*root, p, err));
    return add_model(*root, p, err);
}

static void digest_parts(lk_tokenizer *tk, const lk_tokenizer_parts *p, const cJSON *root)
{
    lk_sha256 hash;
    char *tree = cJSON_PrintUnformatted(root);
    const int32_t ids[] = {p->bos, p->eos, p->add_bos, p->add_eos};
    lk_sha256_init(&hash);
    if (tree) lk_sha256_update(&hash, tree, strlen(tree));
    lk_sha256_update(&hash, ids, sizeof ids);
    for (int64_t i = 0; i < p->n; i++) {
        lk_sha256_update(&hash, &p->entries[i].score, sizeof p->entries[i].score);
        lk_sha256_update(&hash, p->entries[i].text, p->entries[i].size);
        lk_sha256_update(&hash, "", 1);
    }
    for (int64_t i = 0; i < p->n_merges; i++) lk_sha256_update(&hash, p->merges[i], strlen(p->merges[i]) + 1);
    if (tk->chat_template) lk_sha256_update(&hash, tk->chat_template, strlen(tk->chat_template));
    lk_sha256_final(&hash, tk->digest);
    cJSON_free(tree);
}

lk_status lk_tokenizer_create(lk_tokenizer **out, const lk_tokenizer_parts *p, lk_error *err)
{
    lk_vocab vocab = {0};
    lk_tokenizer *tk = NULL;
    cJSON *root;
    *out = NULL;
    lk_status status = lk_parts_tree(&root, p, err);
    if (!status) status = lk_parts_vocab(&vocab, p, err);
    if (!status) status = lk_tokenizer_build(&tk, root, &vocab, p->where, err);
    lk_vocab_free(&vocab);
    if (!status) {
        tk->bos = p->bos;
        tk->eos = p->eos;
        tk->pad = p->pad;
        status = lk_tokenizer_set_post(tk, p->add_bos ? p->bos : -1, p->add_eos ? p->eos : -1, err);
    }
    if (!status && p->chat_template && !(tk->chat_template = lk_arena_strdup(&tk->arena, p->chat_template)))
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", p->where);
    if (!status) digest_parts(tk, p, root);
    cJSON_Delete(root);
    if (status)
        lk_tokenizer_close(tk);
    else
        *out = tk;
    return status;
}
