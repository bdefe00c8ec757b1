/* Folders without a tokenizer.json: vocab.json and merges.txt (GPT-2's and Qwen2's form), or SentencePiece's tokenizer.model. What the
 * pipeline is then stands nowhere in the files but in the Python class that tokenizer_config.json names, so the class is needed, and
 * a class that is not known here is refused. As transformers' conversion does it, the files become the tree of a tokenizer.json,
 * which the usual reader takes.
 *
 * The classes, as transformers 5 defines them:
 *   GPT2Tokenizer    ByteLevel with GPT-2's pattern
 *   Qwen2Tokenizer   NFC, Qwen2's pattern, ByteLevel
 *   LlamaTokenizer   Metaspace that puts a space in front of the text ("legacy": of every stretch between added tokens), byte fallback
 *   GemmaTokenizer   spaces become U+2581, none in front, byte fallback
 *   none, SentencePiece's unigram model: the model's own character map, spaces become U+2581
 * SentencePiece's BPE has scores; the merges they mean are derived in the order of the ids. The model's control and user-defined symbols,
 * the class's special tokens and those of the configuration become added tokens. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer/internal.h"

enum { MAX_FILE_BYTES = 64 << 20 };

#define SPACE "\xe2\x96\x81" /* U+2581 */

typedef enum slow_family { FAMILY_UNKNOWN, FAMILY_GPT2, FAMILY_QWEN2, FAMILY_LLAMA, FAMILY_GEMMA, FAMILY_PLAIN } slow_family;

typedef struct slow {
    const char *folder;
    cJSON *config, *root, *model, *added;
    lk_sha256 *hash;
    lk_arena arena; /* tables of this conversion */
    lk_vocab vocab;
    lk_piece_table table; /* pieces to places in vocab */
    int32_t next_id;
    lk_error *err;
} slow;

/* ---- which class ---- */

static bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static lk_status read_class(const slow *s, bool spm, slow_family *out, const char **name)
{
    static const struct {
        const char *name;
        slow_family family;
        bool spm;
    } classes[] = {{"GPT2Tokenizer", FAMILY_GPT2, false},       {"Qwen2Tokenizer", FAMILY_QWEN2, false},
                   {"LlamaTokenizer", FAMILY_LLAMA, true},      {"GemmaTokenizer", FAMILY_GEMMA, true},
                   {"PreTrainedTokenizer", FAMILY_PLAIN, true}, {"TokenizersBackend", FAMILY_PLAIN, true}};
    *name = NULL;
    *out = FAMILY_UNKNOWN;
    LK_TRY(lk_json_opt_string(s->config, "tokenizer_class", name, "tokenizer_config.json", s->err));
    if (!*name) return LK_OK;
    size_t n = strlen(*name);
    if (n > 4 && !strcmp(*name + n - 4, "Fast")) n -= 4;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (classes[i].spm == spm && strlen(classes[i].name) == n && !memcmp(*name, classes[i].name, n)) *out = classes[i].family;
    if (*out == FAMILY_UNKNOWN)
        return lk_fail(s->err, LK_ERR_UNSUPPORTED,
                       "%s: no tokenizer.json, and how the class \"%.60s\" reads %s is not known here (known: %s); transformers' "
                       "save_pretrained writes a tokenizer.json, which is read",
                       s->folder, *name, spm ? "a tokenizer.model" : "vocab.json and merges.txt",
                       spm ? "LlamaTokenizer, GemmaTokenizer" : "GPT2Tokenizer, Qwen2Tokenizer");
    return LK_OK;
}

/* Without a class: config.json's model_type. */
static lk_status guess_class(const slow *s, bool spm, slow_family *out)
{
    char path[4096];
    const char *type = NULL;
    cJSON *config = NULL;
    LK_TRY(lk_path_join(path, sizeof path, s->folder, "config.json", s->err));
    if (lk_path_exists(path)) LK_TRY(lk_json_read(&config, path, MAX_FILE_BYTES, s->err));
    lk_status status = config ? lk_json_opt_string(config, "model_type", &type, path, s->err) : LK_OK;
    if (spm)
        *out = type && begins(type, "gemma") ? FAMILY_GEMMA : FAMILY_LLAMA; /* Llama's is what SentencePiece does by itself */
    else if (type && (begins(type, "qwen2") || begins(type, "qwen3")))
        *out = FAMILY_QWEN2;
    else if (type && !strcmp(type, "gpt2"))
        *out = FAMILY_GPT2;
    else if (!status)
        status = lk_fail(s->err, LK_ERR_UNSUPPORTED,
                         "%s: vocab.json and merges.txt alone do not say how texts are split; tokenizer_config.json must name the "
                         "tokenizer_class (GPT2Tokenizer or Qwen2Tokenizer)",
                         s->folder);
    cJSON_Delete(config);
    return status;
}

/* ---- added tokens ---- */

static bool listed(const slow *s, const char *content)
{
    const cJSON *token;
    cJSON_ArrayForEach(token, s->added)
    {
        if (!strcmp(lk_json_get(token, "content")->valuestring, content)) return true;
    }
    return false;
}

/* id -1: that of the vocabulary, or else the next free one. */
static lk_status add_token(slow *s, const char *content, int32_t id, bool special, bool normalized)
{
    if (!*content || listed(s, content)) return LK_OK;
    if (id < 0) {
        int32_t place = lk_piece_table_find(&s->table, content, strlen(content));
        id = place >= 0 ? s->vocab.ids[place] : s->next_id;
    }
    if (id >= s->next_id) s->next_id = id + 1;
    cJSON *token = cJSON_CreateObject();
    if (!token) return lk_fail(s->err, LK_ERR_MEMORY, "%s: no memory", s->folder);
    cJSON_AddItemToArray(s->added, token);
    cJSON_AddNumberToObject(token, "id", id);
    cJSON_AddStringToObject(token, "content", content);
    cJSON_AddBoolToObject(token, "special", special);
    cJSON_AddBoolToObject(token, "normalized", normalized);
    return LK_OK;
}

/* tokenizer_config.json's "added_tokens_decoder": {"id": {the token as tokenizer.json has it}}. */
static lk_status add_decoder(slow *s)
{
    const char *where = "tokenizer_config.json: added_tokens_decoder";
    const cJSON *decoder = lk_json_get(s->config, "added_tokens_decoder"), *node;
    if (!decoder || cJSON_IsNull(decoder)) return LK_OK;
    if (!cJSON_IsObject(decoder)) return lk_fail(s->err, LK_ERR_FORMAT, "%s: %s must be an object", s->folder, where);
    cJSON_ArrayForEach(node, decoder)
    {
        static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
        const char *content;
        char *end;
        long id = strtol(node->string, &end, 10);
        bool special = false, normalized, flag;
        if (!*node->string || *end || id < 0 || id >= LK_TK_MAX_IDS || !cJSON_IsObject(node))
            return lk_fail(s->err, LK_ERR_FORMAT, "%s: %s: \"%.40s\" must be an id with an object", s->folder, where, node->string);
        LK_TRY(lk_json_string(node, "content", &content, where, s->err));
        LK_TRY(lk_json_opt_bool(node, "special", &special, where, s->err));
        normalized = !special;
        LK_TRY(lk_json_opt_bool(node, "normalized", &normalized, where, s->err));
        LK_TRY(add_token(s, content, (int32_t)id, special, normalized));
        cJSON *token = cJSON_GetArrayItem(s->added, cJSON_GetArraySize(s->added) - 1);
        for (int i = 0; i < 3; i++) {
            flag = false;
            LK_TRY(lk_json_opt_bool(node, flags[i], &flag, where, s->err));
            if (flag) cJSON_AddTrueToObject(token, flags[i]);
        }
    }
    return LK_OK;
}

static const char *content_of(const cJSON *node)
{
    if (cJSON_IsObject(node)) node = lk_json_get(node, "content");
    return cJSON_IsString(node) ? node->valuestring : NULL;
}

/* added_tokens.json of older folders: {"<|im_end|>": id}. */
static lk_status add_old_file(slow *s)
{
    char path[4096];
    cJSON *file;
    const cJSON *node;
    LK_TRY(lk_path_join(path, sizeof path, s->folder, "added_tokens.json", s->err));
    if (lk_json_get(s->config, "added_tokens_decoder") || !lk_path_exists(path)) return LK_OK;
    LK_TRY(lk_json_read(&file, path, MAX_FILE_BYTES, s->err));
    lk_status status = LK_OK;
    for (node = file->child; node && !status; node = node->next) {
        if (!cJSON_IsNumber(node) || !(node->valuedouble >= 0 && node->valuedouble < LK_TK_MAX_IDS) || !node->string)
            status = lk_fail(s->err, LK_ERR_FORMAT, "%s: must be an object of tokens and ids", path);
        else
            status = add_token(s, node->string, (int32_t)node->valuedouble, false, true);
    }
    cJSON_Delete(file);
    return status;
}

static const char *const named_tokens[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

/* The configuration's special tokens. special_tokens_map.json, of older folders, says the same where tokenizer_config.json is silent. */
static lk_status read_special_map(slow *s)
{
    char path[4096];
    cJSON *map;
    LK_TRY(lk_path_join(path, sizeof path, s->folder, "special_tokens_map.json", s->err));
    if (!lk_path_exists(path)) return LK_OK;
    LK_TRY(lk_json_read(&map, path, MAX_FILE_BYTES, s->err));
    for (cJSON *node = map->child, *next; node; node = next) {
        next = node->next;
        if (node->string && !lk_json_get(s->config, node->string)) {
            cJSON *moved = cJSON_DetachItemViaPointer(map, node);
            cJSON_AddItemToObject(s->config, moved->string, moved);
        }
    }
    cJSON_Delete(map);
    return LK_OK;
}

static lk_status add_configured(slow *s)
{
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    for (size_t i = 0; i < sizeof named_tokens / sizeof *named_tokens; i++) {
        const cJSON *node = lk_json_get(s->config, named_tokens[i]);
        const char *content = content_of(node);
        if (content) LK_TRY(add_token(s, content, -1, true, false));
    }
    for (int i = 0; i < 2; i++) {
        const cJSON *node;
        cJSON_ArrayForEach(node, lk_json_get(s->config, lists[i]))
        {
            const char *content = content_of(node);
            if (content) LK_TRY(add_token(s, content, -1, true, false));
        }
    }
    return LK_OK;
}

/* What the class takes for granted where the configuration is silent (a null there means none). */
static void set_default(slow *s, const char *key, const char *content)
{
    if (!lk_json_get(s->config, key)) cJSON_AddStringToObject(s->config, key, content);
}

/* ---- the vocabulary ---- */

static lk_status read_file(slow *s, const char *path, char **text, size_t *size)
{
    LK_TRY(lk_file_read(path, MAX_FILE_BYTES, text, size, s->err));
    lk_sha256_update(s->hash, *text, *size);
    lk_sha256_update(s->hash, "", 1);
    return LK_OK;
}

static lk_status index_vocab(slow *s)
{
    LK_TRY(lk_piece_table_init(&s->table, &s->arena, s->vocab.pieces, s->vocab.n, s->err));
    for (size_t i = 0; i < s->vocab.n; i++) {
        if (s->vocab.pieces[i].n) lk_piece_table_insert(&s->table, (int32_t)i);
        if (s->vocab.ids[i] >= s->next_id) s->next_id = s->vocab.ids[i] + 1;
    }
    return LK_OK;
}

/* Parses a constant and moves its members into the tree. */
static lk_status add_members(slow *s, const char *json)
{
    cJSON *parsed = cJSON_Parse(json);
    if (!parsed) return lk_fail(s->err, LK_ERR_MEMORY, "%s: no memory", s->folder);
    while (parsed->child) {
        cJSON *node = cJSON_DetachItemViaPointer(parsed, parsed->child);
        cJSON_AddItemToObject(s->root, node->string, node);
    }
    cJSON_Delete(parsed);
    s->model = lk_json_get(s->root, "model");
    return LK_OK;
}

static lk_status build_bytes(slow *s, slow_family family)
{
    bool prefix = false;
    LK_TRY(lk_json_opt_bool(s->config, "add_prefix_space", &prefix, "tokenizer_config.json", s->err));
    LK_TRY(add_members(s, "{\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\"}}"));
    LK_TRY(lk_pretokenizer_named(s->root, s->model, family == FAMILY_QWEN2 ? "qwen2" : "gpt-2", s->folder, s->err));
    cJSON *steps = lk_json_get(lk_json_get(s->root, "pre_tokenizer"), "pretokenizers");
    cJSON *last = cJSON_GetArrayItem(steps, cJSON_GetArraySize(steps) - 1);
    cJSON_ReplaceItemInObject(last, "add_prefix_space", cJSON_CreateBool(prefix));
    set_default(s, "unk_token", "<|endoftext|>");
    if (family == FAMILY_GPT2) set_default(s, "bos_token", "<|endoftext|>");
    set_default(s, "eos_token", "<|endoftext|>");
    if (family == FAMILY_QWEN2) set_default(s, "pad_token", "<|endoftext|>");
    return LK_OK;
}

static lk_status open_bytes(slow *s, lk_tokenizer **tk, const char *vocab_path, const char *merges_path)
{
    slow_family family;
    const char *name;
    char *json = NULL, *merges = NULL;
    size_t json_size = 0, merges_size = 0;
    cJSON *vocab = NULL;
    LK_TRY(read_class(s, false, &family, &name));
    if (family == FAMILY_UNKNOWN) LK_TRY(guess_class(s, false, &family));
    lk_status status = read_file(s, vocab_path, &json, &json_size);
    if (!status) status = read_file(s, merges_path, &merges, &merges_size);
    if (!status) status = lk_json_parse(&vocab, json, json_size, vocab_path, s->err);
    if (!status) status = lk_vocab_from_files(&s->vocab, vocab, vocab_path, merges, merges_size, merges_path, s->err);
    if (!status) status = index_vocab(s);
    if (!status) status = build_bytes(s, family);
    if (!status) status = add_decoder(s);
    if (!status) status = add_old_file(s);
    if (!status) status = add_configured(s);
    if (!status) status = lk_tokenizer_build(tk, s->root, &s->vocab, vocab_path, s->err);
    cJSON_Delete(vocab);
    free(json);
    free(merges);
    return status;
}

/* ---- tokenizer.model ---- */

static lk_status build_llama(slow *s, const lk_spm *m, bool guessed)
{
    char json[1024];
    bool prefix = guessed ? m->dummy_prefix : true, legacy = false;
    LK_TRY(lk_json_opt_bool(s->config, "add_prefix_space", &prefix, "tokenizer_config.json", s->err));
    LK_TRY(lk_json_opt_bool(s->config, "legacy", &legacy, "tokenizer_config.json", s->err));
    snprintf(json, sizeof json,
             "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"" SPACE "\",\"prepend_scheme\":\"%s\",\"split\":false},"
             "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
             "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}%s]},"
             "\"model\":{\"type\":\"BPE\",\"fuse_unk\":true,\"byte_fallback\":true}}",
             !prefix  ? "never"
             : legacy ? "always"
                      : "first",
             prefix ? ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}" : "");
    set_default(s, "bos_token", "<s>");
    set_default(s, "eos_token", "</s>");
    set_default(s, "unk_token", "<unk>");
    return add_members(s, json);
}

static lk_status build_gemma(slow *s)
{
    const char *unk;
    set_default(s, "bos_token", "<bos>");
    set_default(s, "eos_token", "<eos>");
    set_default(s, "unk_token", "<unk>");
    set_default(s, "pad_token", "<pad>");
    set_default(s, "mask_token", "<mask>");
    LK_TRY(add_members(s, "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"},"
                          "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\"},"
                          "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
                          "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
                          "\"model\":{\"type\":\"BPE\",\"fuse_unk\":true,\"byte_fallback\":true}}"));
    unk = content_of(lk_json_get(s->config, "unk_token"));
    if (unk) cJSON_AddStringToObject(s->model, "unk_token", unk);
    return LK_OK;
}

static char *copy_piece(slow *s, lk_piece piece) { return lk_arena_strndup(&s->arena, piece.p, piece.n); }

/* The model by itself, without a class. */
static lk_status build_plain(slow *s, const lk_spm *m)
{
    const char *unk = copy_piece(s, m->unk), *bos = copy_piece(s, m->bos), *eos = copy_piece(s, m->eos);
    if (!unk || !bos || !eos) return lk_fail(s->err, LK_ERR_MEMORY, "%s: no memory", s->folder);
    if (m->bos_id >= 0) set_default(s, "bos_token", bos);
    if (m->eos_id >= 0) set_default(s, "eos_token", eos);
    if (m->unk_id >= 0) set_default(s, "unk_token", unk);
    LK_TRY(add_members(s, m->byte_fallback
                              ? "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
                                "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}}"
                              : "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" SPACE
                                "\"},\"content\":\" \"}]}}"));
    LK_TRY(add_members(s, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]},\"model\":{}}"));
    cJSON *steps = lk_json_get(lk_json_get(s->root, "normalizer"), "normalizers"), *step = cJSON_CreateObject();
    if (m->charsmap.p) {
        size_t n = m->charsmap.n;
        char *text = lk_arena_alloc(&s->arena, n / 3 * 4 + 8);
        if (!text) return lk_fail(s->err, LK_ERR_MEMORY, "%s: no memory", s->folder);
        EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)m->charsmap.p, (int)n);
        cJSON_AddItemToArray(steps, step);
        cJSON_AddStringToObject(step, "type", "Precompiled");
        cJSON_AddStringToObject(step, "precompiled_charsmap", text);
        step = cJSON_CreateObject();
    }
    cJSON_AddItemToArray(steps, step);
    cJSON_AddStringToObject(step, "type", "Replace");
    cJSON_AddStringToObject(cJSON_AddObjectToObject(step, "pattern"), "String", " ");
    cJSON_AddStringToObject(step, "content", SPACE);
    cJSON_AddBoolToObject(s->model, "byte_fallback", m->byte_fallback);
    cJSON_AddTrueToObject(s->model, "fuse_unk");
    cJSON_AddStringToObject(s->model, "type", m->model_type == 1 ? "Unigram" : "BPE");
    if (m->model_type == 1)
        cJSON_AddNumberToObject(s->model, "unk_id", (double)m->unk_id);
    else
        cJSON_AddStringToObject(s->model, "unk_token", unk);
    return LK_OK;
}

static lk_status fill_vocab(slow *s, const lk_spm *m, const char *path)
{
    bool scored = m->model_type == 1;
    LK_TRY(lk_vocab_alloc(&s->vocab, (size_t)m->n, 0, scored, path, s->err));
    for (int64_t i = 0; i < m->n; i++) {
        s->vocab.pieces[i] = (lk_piece){m->entries[i].text, (uint32_t)m->entries[i].size};
        s->vocab.ids[i] = (int32_t)i;
        if (scored) s->vocab.scores[i] = (double)m->entries[i].score;
    }
    if (!scored) LK_TRY(lk_vocab_derive_merges(&s->vocab, path, s->err));
    return index_vocab(s);
}

/* The model's control symbols (special) and user-defined ones. */
static lk_status add_symbols(slow *s, const lk_spm *m)
{
    for (int64_t i = 0; i < m->n; i++) {
        const lk_tokenizer_entry *e = &m->entries[i];
        if (e->type != LK_TOKEN_CONTROL && e->type != LK_TOKEN_USER_DEFINED) continue;
        char *text = copy_piece(s, (lk_piece){e->text, (uint32_t)e->size});
        if (!text) return lk_fail(s->err, LK_ERR_MEMORY, "%s: no memory", s->folder);
        LK_TRY(add_token(s, text, (int32_t)i, e->type == LK_TOKEN_CONTROL, false));
    }
    return LK_OK;
}

static lk_status check_model(const slow *s, const lk_spm *m, slow_family family, const char *path)
{
    const char *why = NULL;
    if (m->model_type != 1 && m->model_type != 2) why = "it is a word or character model";
    if (m->suffix_spaces) why = "treat_whitespace_as_suffix is set";
    if (!m->escape_spaces) why = "escape_whitespaces is off";
    if (family != FAMILY_PLAIN && m->model_type == 1) why = "it is a unigram model, which this tokenizer_class is not made for";
    if (family != FAMILY_PLAIN && m->charsmap.p) why = "it has a normalisation (precompiled_charsmap), which this tokenizer_class ignores";
    if (why)
        return lk_fail(s->err, LK_ERR_UNSUPPORTED, "%s: %s; transformers' save_pretrained writes a tokenizer.json, which may be read", path,
                       why);
    if (m->model_type == 1 && (m->unk_id < 0 || m->unk_id >= m->n))
        return lk_fail(s->err, LK_ERR_FORMAT, "%s: unk_id is %lld, but there are %lld pieces", path, (long long)m->unk_id, (long long)m->n);
    return LK_OK;
}

static lk_status open_model(slow *s, lk_tokenizer **tk, const char *path)
{
    slow_family family;
    const char *name;
    char *bytes;
    size_t size;
    lk_spm m;
    LK_TRY(read_class(s, true, &family, &name));
    LK_TRY(read_file(s, path, &bytes, &size));
    lk_status status = lk_spm_parse(&m, &s->arena, bytes, size, path, s->err);
    bool guessed = family == FAMILY_UNKNOWN;
    if (!status && guessed) status = guess_class(s, true, &family);
    if (guessed && m.model_type == 1) family = FAMILY_PLAIN;
    if (!status) status = check_model(s, &m, family, path);
    if (!status) status = fill_vocab(s, &m, path);
    if (!status)
        status = family == FAMILY_LLAMA ? build_llama(s, &m, guessed) : family == FAMILY_GEMMA ? build_gemma(s) : build_plain(s, &m);
    if (!status) status = add_decoder(s);
    if (!status) status = add_old_file(s);
    if (!status) status = add_configured(s);
    if (!status) status = add_symbols(s, &m);
    if (!status) status = lk_tokenizer_build(tk, s->root, &s->vocab, path, s->err);
    free(bytes);
    return status;
}

lk_status lk_tokenizer_open_slow(lk_tokenizer **tk, const char *folder, cJSON *config, lk_sha256 *hash, lk_error *err)
{
    slow s = {.folder = folder, .config = config, .hash = hash, .err = err};
    char vocab[4096], merges[4096], model[4096];
    LK_TRY(lk_path_join(vocab, sizeof vocab, folder, "vocab.json", err));
    LK_TRY(lk_path_join(merges, sizeof merges, folder, "merges.txt", err));
    LK_TRY(lk_path_join(model, sizeof model, folder, "tokenizer.model", err));
    bool bytes = lk_path_exists(vocab) && lk_path_exists(merges);
    if (!bytes && !lk_path_exists(model))
        return lk_fail(err, LK_ERR_NOT_FOUND,
                       "%s: no tokenizer.json, no vocab.json with merges.txt and no tokenizer.model: a model folder needs one of them",
                       folder);
    s.root = cJSON_CreateObject();
    s.added = cJSON_AddArrayToObject(s.root, "added_tokens");
    lk_status status = s.added ? read_special_map(&s) : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", folder);
    if (!status) status = bytes ? open_bytes(&s, tk, vocab, merges) : open_model(&s, tk, model);
    char *tree = status ? NULL : cJSON_PrintUnformatted(s.root);
    if (tree) lk_sha256_update(hash, tree, strlen(tree) + 1);
    cJSON_free(tree);
    cJSON_Delete(s.root);
    lk_vocab_free(&s.vocab);
    lk_arena_free(&s.arena);
    return status;
}
