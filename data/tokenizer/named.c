/* Pre-tokenisers that go by a name: GGUF files say "qwen2" where tokenizer.json has the regular expression. The names are llama.cpp's
 * (tokenizer.ggml.pre); the expressions are those of the models' tokenizer.json. Several names stand for the same rules; the first of
 * a row is the one we write. llama.cpp does not normalise, so what a model's file normalises stands here too. */
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/internal.h"

#define GPT2   "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define TAIL   " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define APOS   "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD   "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER  "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define SLASH  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define QWEN2  APOS "|" WORD "\\p{L}+|\\p{N}|" TAIL
#define LLAMA3 APOS "|" WORD "\\p{L}+|\\p{N}{1,3}|" TAIL
#define TEKKEN WORD UPPER "*" LOWER "+|" WORD UPPER "+" LOWER "*|\\p{N}|" SLASH
#define GPT4O  WORD UPPER "*" LOWER "+" APOS "?|" WORD UPPER "+" LOWER "*" APOS "?|\\p{N}{1,3}|" SLASH

static const struct named {
    const char *names[5];
    const char *pattern;
    bool digits; /* digits alone first, then the pattern */
    bool ignore_merges, nfc;
} table[] = {
    {{"gpt-2", "phi-2", "olmo"}, GPT2, false, false, false},
    {{"smollm", "starcoder", "refact", "command-r", "codeshell"}, GPT2, true, false, false},
    {{"qwen2", "deepseek-r1-qwen"}, QWEN2, false, false, true},
    {{"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"}, LLAMA3, false, true, false},
    {{"dbrx", "smaug-bpe"}, LLAMA3, false, false, false},
    {{"tekken"}, TEKKEN, false, true, false},
    {{"gpt-4o"}, GPT4O, false, false, false},
};
enum { N_NAMED = sizeof table / sizeof *table, N_NAMES = 5 };

const char *lk_pretokenizer_name_of(const lk_tokenizer *tk)
{
    const lk_pre_step *p = tk->pre, *last = &tk->pre[tk->n_pre - 1];
    bool digits = tk->n_pre == 2 && p[0].kind == LK_PRE_DIGITS && p[0].behavior == LK_SPLIT_ISOLATED;
    bool split = tk->n_pre == 2 && p[0].kind == LK_PRE_REGEX && p[0].behavior == LK_SPLIT_ISOLATED && !p[0].invert;
    if (tk->n_pre < 1 || last->kind != LK_PRE_BYTE_LEVEL || last->prepend != LK_PREPEND_NEVER) return NULL;
    const char *pattern = split && !last->regex ? p[0].pattern : (tk->n_pre == 1 || digits) && last->regex ? last->pattern : NULL;
    for (int i = 0; pattern && i < N_NAMED; i++) {
        /* whether merges are ignored is part of what llama.cpp reads from the name, where two names differ in nothing else */
        bool merges_fit = strcmp(table[i].pattern, LLAMA3) || table[i].ignore_merges == tk->bpe.ignore_merges;
        if (table[i].digits == digits && merges_fit && !strcmp(pattern, table[i].pattern)) return table[i].names[0];
    }
    return NULL;
}

static const struct named *find(const char *name)
{
    for (int i = 0; i < N_NAMED; i++)
        for (int k = 0; k < N_NAMES && table[i].names[k]; k++)
            if (!strcmp(name, table[i].names[k])) return &table[i];
    return NULL;
}

static cJSON *add_step(cJSON *list, const char *type)
{
    cJSON *step = cJSON_CreateObject();
    cJSON_AddItemToArray(list, step);
    cJSON_AddStringToObject(step, "type", type);
    return step;
}

lk_status lk_pretokenizer_named(cJSON *root, cJSON *model, const char *name, const char *where, lk_error *err)
{
    const struct named *named = find(name);
    if (!named)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: the pre-tokenizer \"%.60s\" is not known here, so its ids could only be guessed (known: gpt-2, smollm, qwen2, "
                       "llama-bpe, dbrx, tekken, gpt-4o and their other names)",
                       where, name);
    if (named->nfc) cJSON_AddStringToObject(cJSON_AddObjectToObject(root, "normalizer"), "type", "NFC");
    cJSON *pre = cJSON_AddObjectToObject(root, "pre_tokenizer");
    cJSON_AddStringToObject(pre, "type", "Sequence");
    cJSON *list = cJSON_AddArrayToObject(pre, "pretokenizers"), *step;
    bool own = !strcmp(named->pattern, GPT2); /* ByteLevel's own pattern */
    if (named->digits) cJSON_AddTrueToObject(add_step(list, "Digits"), "individual_digits");
    if (!own) {
        step = add_step(list, "Split");
        cJSON_AddStringToObject(cJSON_AddObjectToObject(step, "pattern"), "Regex", named->pattern);
        cJSON_AddStringToObject(step, "behavior", "Isolated");
    }
    step = add_step(list, "ByteLevel");
    cJSON_AddFalseToObject(step, "add_prefix_space");
    cJSON_AddBoolToObject(step, "use_regex", own);
    cJSON_AddBoolToObject(model, "ignore_merges", named->ignore_merges);
    return LK_OK;
}
