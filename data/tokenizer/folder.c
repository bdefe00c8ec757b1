/* Opening a model's folder: tokenizer.json or what stands in for it (slow.c), tokenizer_config.json and the chat template beside it.
 *
 * tokenizer_config.json's add_bos_token and add_eos_token, where either is given, replace the post-processor of tokenizer.json, as in
 * transformers 5; where neither is, the post-processor counts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "data/tokenizer/internal.h"
#include "data/gguf_tokenizer.h"

enum { MAX_TOKENIZER_BYTES = 256 << 20, MAX_CONFIG_BYTES = 32 << 20, MAX_TEMPLATE_BYTES = 1 << 20 };

/* "bos_token": "<s>", or an object with the content, or null. */
static lk_status read_config_token(const lk_tokenizer *tk, const cJSON *config, const char *key, int32_t *id, const char *where,
                                   lk_error *err)
{
    const cJSON *node = lk_json_get(config, key);
    if (!node || cJSON_IsNull(node)) return LK_OK;
    if (cJSON_IsObject(node)) node = lk_json_get(node, "content");
    if (!cJSON_IsString(node))
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be a string or an object with the string content", where, key);
    *id = lk_tokenizer_id(tk, node->valuestring);
    if (*id < 0)
        lk_log(LK_LOG_WARN, "%s: %s \"%.80s\" is not in the vocabulary of tokenizer.json and is ignored", where, key, node->valuestring);
    return LK_OK;
}

/* Texts by name, for chat templates: special tokens ("pad_token") and templates besides the default one ("tool_use"). */
static lk_status keep_text(lk_tokenizer *tk, const char *name, const char *text, size_t size, const char *where, lk_error *err)
{
    if (tk->n_texts == LK_TK_MAX_TEXTS) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d chat templates", where, LK_TK_MAX_TEXTS);
    lk_named_text *t = &tk->texts[tk->n_texts++];
    t->name = lk_arena_strdup(&tk->arena, name);
    t->text = lk_arena_strndup(&tk->arena, text, size);
    return t->name && t->text ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
}

static lk_status keep_token_texts(lk_tokenizer *tk, const cJSON *config, const char *where, lk_error *err)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *node = lk_json_get(config, keys[i]);
        if (cJSON_IsObject(node)) node = lk_json_get(node, "content");
        if (cJSON_IsString(node)) LK_TRY(keep_text(tk, keys[i], node->valuestring, strlen(node->valuestring), where, err));
    }
    return LK_OK;
}

static lk_status read_config_template(lk_tokenizer *tk, const cJSON *config, const char *where, lk_error *err)
{
    const cJSON *node = lk_json_get(config, "chat_template"), *child;
    if (!node || cJSON_IsNull(node)) return LK_OK;
    if (cJSON_IsArray(node)) {
        const cJSON *chosen = NULL;
        cJSON_ArrayForEach(child, node)
        {
            const cJSON *name = lk_json_get(child, "name"), *text = lk_json_get(child, "template");
            if (!cJSON_IsString(name)) continue;
            if (!strcmp(name->valuestring, "default"))
                chosen = text;
            else if (cJSON_IsString(text))
                LK_TRY(keep_text(tk, name->valuestring, text->valuestring, strlen(text->valuestring), where, err));
        }
        if (!chosen) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: chat_template is a list without an entry named \"default\"", where);
        node = chosen;
    }
    if (!cJSON_IsString(node))
        return lk_fail(err, LK_ERR_FORMAT, "%s: chat_template must be a string or a list of {name, template}", where);
    tk->chat_template = lk_arena_strdup(&tk->arena, node->valuestring);
    return tk->chat_template ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
}

/* What is added to a text, if the configuration says so. */
static lk_status read_post_flags(lk_tokenizer *tk, const cJSON *config, bool always, lk_sha256 *hash, const char *where, lk_error *err)
{
    bool bos = false, eos = false;
    LK_TRY(lk_json_opt_bool(config, "add_bos_token", &bos, where, err));
    LK_TRY(lk_json_opt_bool(config, "add_eos_token", &eos, where, err));
    if (!always && !cJSON_IsBool(lk_json_get(config, "add_bos_token")) && !cJSON_IsBool(lk_json_get(config, "add_eos_token"))) return LK_OK;
    const lk_post_item *had = tk->post;
    int n_had = tk->n_post;
    LK_TRY(lk_tokenizer_set_post(tk, bos ? tk->bos : -1, eos ? tk->eos : -1, err));
    /* the digest tells apart what encodes differently, and only that */
    bool same = n_had ? n_had == tk->n_post && !memcmp(had, tk->post, (size_t)n_had * sizeof *had) : tk->n_post == 1;
    if (!same) lk_sha256_update(hash, tk->post, (size_t)tk->n_post * sizeof *tk->post);
    return LK_OK;
}

static lk_status read_config(lk_tokenizer *tk, const cJSON *config, bool slow, lk_sha256 *hash, const char *where, lk_error *err)
{
    LK_TRY(read_config_token(tk, config, "bos_token", &tk->bos, where, err));
    LK_TRY(read_config_token(tk, config, "eos_token", &tk->eos, where, err));
    LK_TRY(read_config_token(tk, config, "pad_token", &tk->pad, where, err));
    LK_TRY(read_post_flags(tk, config, slow, hash, where, err));
    LK_TRY(keep_token_texts(tk, config, where, err));
    return read_config_template(tk, config, where, err);
}

/* *text stays NULL when there is no such file; free(*text). */
static lk_status read_template_file(const char *folder, const char *name, char **text, size_t *size, lk_error *err)
{
    char path[4096];
    *text = NULL;
    LK_TRY(lk_path_join(path, sizeof path, folder, name, err));
    if (!lk_path_exists(path)) return LK_OK;
    LK_TRY(lk_file_read(path, MAX_TEMPLATE_BYTES, text, size, err));
    if (lk_utf8_valid_prefix(*text, *size) == *size && !memchr(*text, 0, *size)) return LK_OK;
    free(*text);
    *text = NULL;
    return lk_fail(err, LK_ERR_FORMAT, "%s: is not UTF-8 text", path);
}

/* chat_template.jinja wins over tokenizer_config.json, as in transformers, which puts further ones into a folder. */
static lk_status read_template_files(lk_tokenizer *tk, const char *folder, lk_error *err)
{
    static const char *const more[][2] = {{"tool_use", "additional_chat_templates/tool_use.jinja"},
                                          {"rag", "additional_chat_templates/rag.jinja"}};
    char *text;
    size_t size;
    LK_TRY(read_template_file(folder, "chat_template.jinja", &text, &size, err));
    if (text) {
        tk->chat_template = lk_arena_strndup(&tk->arena, text, size);
        free(text);
        if (!tk->chat_template) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", folder);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        LK_TRY(read_template_file(folder, more[i][1], &text, &size, err));
        lk_status status = text ? keep_text(tk, more[i][0], text, size, folder, err) : LK_OK;
        free(text);
        if (status) return status;
    }
    return LK_OK;
}

static lk_status open_json(lk_tokenizer **tk, const char *file, lk_sha256 *hash, lk_error *err)
{
    char *json;
    size_t size;
    cJSON *root = NULL;
    LK_TRY(lk_file_read(file, MAX_TOKENIZER_BYTES, &json, &size, err));
    lk_sha256_update(hash, json, size);
    lk_sha256_update(hash, "", 1);
    lk_status status = lk_json_parse(&root, json, size, file, err);
    free(json);
    if (!status) status = lk_tokenizer_build(tk, root, NULL, file, err);
    cJSON_Delete(root);
    return status;
}

/* folder_or_file is a folder, its tokenizer.json (by any name), or one of the files a folder without one has. */
static lk_status find_file(const char *path, char *file, char *folder, size_t size, bool *slow, lk_error *err)
{
    if (lk_path_is_folder(path)) {
        LK_TRY(lk_path_join(file, size, path, "tokenizer.json", err));
        *slow = !lk_path_exists(file);
    } else {
        const char *base = strrchr(path, '/');
        base = base ? base + 1 : path;
        if ((size_t)snprintf(file, size, "%s", path) >= size) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", path);
        *slow = !strcmp(base, "tokenizer.model") || !strcmp(base, "vocab.json") || !strcmp(base, "merges.txt");
    }
    return lk_path_folder(folder, size, file, err);
}

static lk_status open_gguf(lk_tokenizer **tk, const char *file, lk_error *err)
{
    lk_gguf *g;
    LK_TRY(lk_gguf_open(&g, file, err));
    lk_status status = lk_gguf_open_tokenizer(tk, g, err);
    lk_gguf_close(g);
    return status;
}

lk_status lk_tokenizer_open(lk_tokenizer **out, const char *path, lk_error *err)
{
    char file[4096], folder[4096], where[4096];
    lk_tokenizer *tk = NULL;
    lk_sha256 hash;
    bool slow = false;
    cJSON *config = NULL;
    *out = NULL;
    if (lk_gguf_is_file(path)) return open_gguf(out, path, err);
    LK_TRY(find_file(path, file, folder, sizeof file, &slow, err));
    LK_TRY(lk_path_join(where, sizeof where, folder, "tokenizer_config.json", err));
    if (lk_path_exists(where))
        LK_TRY(lk_json_read(&config, where, MAX_CONFIG_BYTES, err));
    else if (!(config = cJSON_CreateObject()))
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    lk_sha256_init(&hash);
    lk_status status = cJSON_IsObject(config) ? LK_OK : lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    if (!status) status = slow ? lk_tokenizer_open_slow(&tk, folder, config, &hash, err) : open_json(&tk, file, &hash, err);
    if (!status) status = read_config(tk, config, slow, &hash, where, err);
    if (!status) status = read_template_files(tk, folder, err);
    cJSON_Delete(config);
    if (!status && tk->chat_template) lk_sha256_update(&hash, tk->chat_template, strlen(tk->chat_template));
    for (int i = 0; !status && i < tk->n_texts; i++)
        if (!strstr(tk->texts[i].name, "_token")) lk_sha256_update(&hash, tk->texts[i].text, strlen(tk->texts[i].text));
    char digest[65];
    lk_sha256_final(&hash, digest); /* frees the hash, so also after a failure */
    if (status) {
        lk_tokenizer_close(tk);
        return status;
    }
    memcpy(tk->digest, digest, sizeof digest);
    *out = tk;
    return LK_OK;
}
