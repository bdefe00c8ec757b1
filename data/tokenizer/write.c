/* A tokenizer taken from parts, as the files of a Hugging Face folder. The rules are the tree that create.c makes for our own reader; here
 * come the vocabulary, the merges and the fields that the tokenizers library wants to see although they say nothing. Merges of a
 * SentencePiece vocabulary, which GGUF has no list of, are those its scores imply, as transformers converts such models. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer/internal.h"

static lk_status no_memory(const lk_tokenizer_parts *p, lk_error *err)
{
    return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for its tokenizer", p->where);
}

/* cJSON wants texts that end in a zero. */
static cJSON *text_of(const char *p, size_t n)
{
    char *text = strndup(p, n);
    cJSON *node = text ? cJSON_CreateString(text) : NULL;
    free(text);
    return node;
}

static bool add_default(cJSON *object, const char *key, cJSON *value)
{
    if (value && !lk_json_get(object, key)) return cJSON_AddItemToObject(object, key, value);
    cJSON_Delete(value);
    return lk_json_get(object, key) != NULL;
}

static bool add_flags(cJSON *object, const char *const *keys, bool value)
{
    bool good = true;
    for (; *keys; keys++) good &= add_default(object, *keys, cJSON_CreateBool(value));
    return good;
}

static bool add_nulls(cJSON *object, const char *const *keys)
{
    bool good = true;
    for (; *keys; keys++) good &= add_default(object, *keys, cJSON_CreateNull());
    return good;
}

/* Fields without which the library refuses a file. */
static bool complete(cJSON *root)
{
    static const char *const token[] = {"single_word", "lstrip", "rstrip", NULL}, *const invert[] = {"invert", NULL},
                             *const byte_level[] = {"add_prefix_space", "trim_offsets", "use_regex", NULL},
                             *const model_nulls[] = {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", NULL},
                             *const model_flags[] = {"fuse_unk", "byte_fallback", "ignore_merges", NULL},
                             *const outer[] = {"truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder", NULL};
    bool good = add_nulls(root, outer);
    cJSON *item, *model = lk_json_get(root, "model"), *decoder = lk_json_get(root, "decoder");
    cJSON_ArrayForEach(item, lk_json_get(root, "added_tokens")) good &= add_flags(item, token, false);
    cJSON_ArrayForEach(item, lk_json_get(lk_json_get(root, "pre_tokenizer"), "pretokenizers"))
    {
        const cJSON *type = lk_json_get(item, "type");
        if (!strcmp(type->valuestring, "Split")) good &= add_flags(item, invert, false);
        if (!strcmp(type->valuestring, "ByteLevel")) good &= add_flags(item, byte_level, true);
    }
    if (lk_json_get(decoder, "type") && !strcmp(lk_json_get(decoder, "type")->valuestring, "ByteLevel"))
        good &= add_flags(decoder, byte_level, true);
    if (strcmp(lk_json_get(model, "type")->valuestring, "BPE")) return good;
    return good && add_nulls(model, model_nulls) && add_flags(model, model_flags, false);
}

/* {"Ġhello": 17, ...} and ["Ġ", "hello"]; or [["▁hello", -3.5], ...] by id. */
static bool add_vocab(cJSON *model, const lk_vocab *v, const lk_tokenizer_parts *p)
{
    if (p->model == LK_TK_UNIGRAM) {
        cJSON *list = cJSON_AddArrayToObject(model, "vocab");
        for (int64_t i = 0; list && i < p->n; i++) {
            cJSON *pair = cJSON_CreateArray();
            if (!pair || !cJSON_AddItemToArray(list, pair) ||
                !cJSON_AddItemToArray(pair, text_of(p->entries[i].text, p->entries[i].size)) ||
                !cJSON_AddItemToArray(pair, cJSON_CreateNumber((double)p->entries[i].score)))
                return false;
        }
        return list;
    }
    cJSON *vocab = cJSON_AddObjectToObject(model, "vocab"), *merges = cJSON_AddArrayToObject(model, "merges");
    for (size_t i = 0; vocab && i < v->n; i++) {
        char *key = strndup(v->pieces[i].p, v->pieces[i].n);
        bool good = key && cJSON_AddItemToObject(vocab, key, cJSON_CreateNumber(v->ids[i]));
        free(key);
        if (!good) return false;
    }
    for (size_t i = 0; merges && i < v->n_merges; i++) {
        cJSON *pair = cJSON_CreateArray();
        if (!pair || !cJSON_AddItemToArray(merges, pair) ||
            !cJSON_AddItemToArray(pair, text_of(v->merges[i].left.p, v->merges[i].left.n)) ||
            !cJSON_AddItemToArray(pair, text_of(v->merges[i].right.p, v->merges[i].right.n)))
            return false;
    }
    return vocab && merges;
}

/* One item of a TemplateProcessing: a special token, or the text (id < 0). */
static bool add_item(cJSON *list, const lk_tokenizer_parts *p, int32_t id, const char *sequence, int type_id)
{
    cJSON *outer = cJSON_CreateObject(), *inner = outer ? cJSON_AddObjectToObject(outer, id < 0 ? "Sequence" : "SpecialToken") : NULL;
    if (!inner || !cJSON_AddItemToArray(list, outer)) return false;
    cJSON_AddItemToObject(inner, "id", id < 0 ? cJSON_CreateString(sequence) : text_of(p->entries[id].text, p->entries[id].size));
    return cJSON_AddNumberToObject(inner, "type_id", type_id);
}

static bool add_sequence(cJSON *list, const lk_tokenizer_parts *p, int32_t bos, int32_t eos, const char *sequence, int type_id)
{
    return (bos < 0 || add_item(list, p, bos, NULL, type_id)) && add_item(list, p, -1, sequence, type_id) &&
           (eos < 0 || add_item(list, p, eos, NULL, type_id));
}

static bool add_post_processor(cJSON *root, const lk_tokenizer_parts *p)
{
    int32_t bos = p->add_bos ? p->bos : -1, eos = p->add_eos ? p->eos : -1;
    if (bos < 0 && eos < 0) return true;
    cJSON *post = cJSON_AddObjectToObject(root, "post_processor");
    if (!post || !cJSON_AddStringToObject(post, "type", "TemplateProcessing")) return false;
    cJSON *single = cJSON_AddArrayToObject(post, "single"), *pair = cJSON_AddArrayToObject(post, "pair"),
          *tokens = cJSON_AddObjectToObject(post, "special_tokens");
    bool good = single && pair && tokens && add_sequence(single, p, bos, eos, "A", 0) && add_sequence(pair, p, bos, eos, "A", 0) &&
                add_sequence(pair, p, bos, eos, "B", 1);
    const int32_t both[] = {bos, eos};
    for (int i = 0; i < 2 && good; i++) {
        if (both[i] < 0 || (i == 1 && eos == bos)) continue;
        char *text = strndup(p->entries[both[i]].text, p->entries[both[i]].size);
        cJSON *token = text ? cJSON_AddObjectToObject(tokens, text) : NULL;
        good = token && cJSON_AddStringToObject(token, "id", text) &&
               cJSON_AddItemToObject(token, "ids", cJSON_CreateIntArray(&both[i], 1)) &&
               cJSON_AddItemToObject(token, "tokens", cJSON_CreateStringArray((const char *const *)&text, 1));
        free(text);
    }
    return good;
}

static lk_status write_json(const char *folder, const char *name, const cJSON *root, const lk_tokenizer_parts *p, lk_error *err)
{
    char path[4200], *text = cJSON_PrintUnformatted(root);
    if (!text) return no_memory(p, err);
    lk_status status = lk_path_join(path, sizeof path, folder, name, err);
    if (!status) status = lk_file_replace(path, text, strlen(text), err);
    free(text);
    return status;
}

static lk_status write_config(const char *folder, const lk_tokenizer_parts *p, lk_error *err)
{
    const struct {
        const char *key;
        int32_t id;
    } tokens[] = {{"bos_token", p->bos}, {"eos_token", p->eos}, {"unk_token", p->unk}, {"pad_token", p->pad}};
    cJSON *root = cJSON_CreateObject();
    bool good = root && cJSON_AddStringToObject(root, "tokenizer_class", "PreTrainedTokenizerFast") &&
                cJSON_AddFalseToObject(root, "clean_up_tokenization_spaces");
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens && good; i++)
        if (tokens[i].id >= 0)
            good = cJSON_AddItemToObject(root, tokens[i].key, text_of(p->entries[tokens[i].id].text, p->entries[tokens[i].id].size));
    if (good && p->chat_template) good = cJSON_AddStringToObject(root, "chat_template", p->chat_template);
    lk_status status = good ? write_json(folder, "tokenizer_config.json", root, p, err) : no_memory(p, err);
    cJSON_Delete(root);
    return status;
}

lk_status lk_tokenizer_write(const char *folder, const lk_tokenizer_parts *p, lk_error *err)
{
    lk_vocab vocab = {0};
    cJSON *root;
    lk_status status = lk_parts_tree(&root, p, err);
    if (!status) status = lk_parts_vocab(&vocab, p, err);
    if (!status && !(cJSON_AddStringToObject(root, "version", "1.0") && add_post_processor(root, p) && complete(root) &&
                     add_vocab(lk_json_get(root, "model"), &vocab, p)))
        status = no_memory(p, err);
    if (!status) status = write_json(folder, "tokenizer.json", root, p, err);
    if (!status) status = write_config(folder, p, err);
    lk_vocab_free(&vocab);
    cJSON_Delete(root);
    return status;
}
