#include "model/folder.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "data/gguf_tokenizer.h"
#include "model/config.h"
#include "model/config_write.h"

enum { MAX_COPY_BYTES = 256 << 20, MAX_CONFIG_BYTES = 4 << 20 };

static lk_status save_gguf_tokenizer(const char *file, const char *to, lk_error *err)
{
    lk_gguf *g;
    lk_error missing = {0};
    LK_TRY(lk_gguf_open(&g, file, err));
    lk_status status = lk_gguf_save_tokenizer(g, to, &missing);
    lk_gguf_close(g);
    if (!status) return LK_OK;
    if (status != LK_ERR_NOT_FOUND) return lk_fail(err, status, "%s", missing.message);
    lk_log(LK_LOG_WARN, "%s, and neither will %s", missing.message, to);
    return LK_OK;
}

lk_status lk_folder_copy_tokenizer(const char *from, const char *to, lk_error *err)
{
    if (lk_gguf_is_file(from)) return save_gguf_tokenizer(from, to, err);
    static const char *const names[] = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",   "vocab.json",
        "merges.txt",     "added_tokens.json",     "tokenizer.model",         "generation_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char source[4096], target[4096];
        LK_TRY(lk_path_join(source, sizeof source, from, names[i], err));
        LK_TRY(lk_path_join(target, sizeof target, to, names[i], err));
        if (!lk_path_exists(source)) continue;
        char *text;
        size_t size;
        LK_TRY(lk_file_read(source, MAX_COPY_BYTES, &text, &size, err));
        lk_status status = lk_file_replace(target, text, size, err);
        free(text);
        if (status) return status;
    }
    return LK_OK;
}

/* Numbers are printed as they were written: 4.0 that became 4 is another type to Python (vLLM fails on such a factor of a linear RoPE). */
static void keep_spelling(cJSON *node)
{
    for (; node; node = node->next) {
        keep_spelling(node->child); /* as deep as the parser lets a file be */
        if (cJSON_IsNumber(node) && node->valuestring) node->type = (node->type & ~0xff) | cJSON_Raw;
    }
}

static lk_status read_config(cJSON **json, const char *folder, lk_error *err)
{
    char path[4096], *text;
    size_t size;
    lk_config c;
    if (lk_gguf_is_file(folder)) {
        LK_TRY(lk_config_read(&c, folder, err));
        return lk_config_json(json, &c, folder, err);
    }
    LK_TRY(lk_path_join(path, sizeof path, folder, "config.json", err));
    LK_TRY(lk_file_read(path, MAX_CONFIG_BYTES, &text, &size, err));
    lk_status status = lk_json_parse(json, text, size, path, err);
    if (!status) status = lk_json_keep_numbers(*json, text, size, err);
    if (!status) keep_spelling(*json);
    free(text);
    return status;
}

lk_status lk_folder_write_config(const char *from, const char *to, const char *dtype, cJSON *quantization, bool untie, lk_error *err)
{
    char path[4096];
    cJSON *json = NULL;
    char *text = NULL;
    lk_status status;
    if ((status = read_config(&json, from, err))) goto out;
    cJSON *part = lk_config_text(json); /* what is written holds a text part alone */
    if (part) {
        cJSON_Delete(json);
        json = part;
    }
    cJSON_DeleteItemFromObjectCaseSensitive(json, "quantization_config");
    if (quantization) {
        cJSON_AddItemToObject(json, "quantization_config", quantization);
        quantization = NULL;
    }
    if (untie) {
        cJSON_DeleteItemFromObjectCaseSensitive(json, "tie_word_embeddings");
        cJSON_AddFalseToObject(json, "tie_word_embeddings");
    }
    if (dtype) {
        /* Both spellings are read by different versions; keep whichever the file has, and the older one in any case. */
        bool newer = lk_json_get(json, "dtype") != NULL;
        cJSON_DeleteItemFromObjectCaseSensitive(json, "dtype");
        cJSON_DeleteItemFromObjectCaseSensitive(json, "torch_dtype");
        cJSON_AddStringToObject(json, "torch_dtype", dtype);
        if (newer) cJSON_AddStringToObject(json, "dtype", dtype);
    }
    text = cJSON_Print(json);
    if (!text) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory to write config.json");
        goto out;
    }
    if ((status = lk_path_join(path, sizeof path, to, "config.json", err))) goto out;
    status = lk_file_replace(path, text, strlen(text), err);
out:
    cJSON_Delete(quantization);
    cJSON_Delete(json);
    free(text);
    return status;
}

lk_status lk_folder_prepare_output(const char *from, const char *to, lk_error *err)
{
    char *a = realpath(from, NULL), *b = realpath(to, NULL);
    bool same = a && b && !strcmp(a, b);
    free(a);
    free(b);
    if (same) return lk_fail(err, LK_ERR_ARGUMENT, "the output folder %s is the input folder; choose another", to);
    LK_TRY(lk_folder_create(to, err));
    lk_arena arena = {0};
    char **names;
    size_t n;
    lk_status status = lk_folder_list(to, &arena, &names, &n, err);
    lk_arena_free(&arena);
    if (!status && n > 0) status = lk_fail(err, LK_ERR_ARGUMENT, "the output folder %s is not empty; choose another or empty it", to);
    return status;
}

const char *lk_torch_dtype(lk_dtype type) { return type == LK_BF16 ? "bfloat16" : type == LK_F16 ? "float16" : "float32"; }

cJSON *lk_bnb_config(lk_dtype type)
{
    cJSON *q = cJSON_CreateObject();
    cJSON_AddStringToObject(q, "quant_method", "bitsandbytes");
    cJSON_AddBoolToObject(q, "load_in_4bit", 1);
    cJSON_AddBoolToObject(q, "load_in_8bit", 0);
    cJSON_AddBoolToObject(q, "_load_in_4bit", 1);
    cJSON_AddBoolToObject(q, "_load_in_8bit", 0);
    cJSON_AddStringToObject(q, "bnb_4bit_quant_type", "nf4");
    cJSON_AddBoolToObject(q, "bnb_4bit_use_double_quant", 1);
    cJSON_AddStringToObject(q, "bnb_4bit_compute_dtype", lk_torch_dtype(type));
    cJSON_AddStringToObject(q, "bnb_4bit_quant_storage", "uint8");
    cJSON_AddBoolToObject(q, "llm_int8_enable_fp32_cpu_offload", 0);
    cJSON_AddBoolToObject(q, "llm_int8_has_fp16_weight", 0);
    cJSON_AddNullToObject(q, "llm_int8_skip_modules");
    cJSON_AddRawToObject(q, "llm_int8_threshold", "6.0"); /* transformers refuses the integer 6 */
    return q;
}
