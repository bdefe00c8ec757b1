/* Folders without tokenizer.json: which class is taken, added tokens, what is added to a text, and every refusal. That their ids are those
 * of transformers' conversions is test_tokenizer_strings.c's to show. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/tokenizer/vocabulary.h"
#include "tests/check.h"

static void put(const char *folder, const char *name, const char *text)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    check_write_file(path, text, strlen(text));
}

static void copy(const char *folder, const char *name, const char *golden)
{
    lk_error err = {0};
    char path[4200], *from = check_golden(golden), *bytes;
    size_t size;
    CHECK_OK(lk_file_read(from, 1 << 20, &bytes, &size, &err), &err);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    check_write_file(path, bytes, size);
    free(bytes);
    free(from);
}

static lk_tokenizer *open_folder(const char *folder)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    return tk;
}

static void refused(const char *folder, lk_status want, const char *says)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), want, says, &err);
    assert_null(tk);
}

/* The first and last ids of a text, and how many there are. */
static int64_t encode(const lk_tokenizer *tk, const char *text, int32_t *first, int32_t *last)
{
    lk_error err = {0};
    int32_t *ids;
    int64_t n;
    CHECK_OK(lk_tokenizer_encode(tk, text, strlen(text), LK_TK_SPECIALS, &ids, &n, &err), &err);
    *first = n ? ids[0] : -1;
    *last = n ? ids[n - 1] : -1;
    free(ids);
    return n;
}

static void test_bytes(void **state)
{
    (void)state;
    char *folder = check_temporary("tokenizer_bytes");
    int32_t first, last;
    copy(folder, "vocab.json", "tokenizers/slow_gpt2/vocab.json");
    refused(folder, LK_ERR_NOT_FOUND, "no vocab.json with merges.txt");
    copy(folder, "merges.txt", "tokenizers/slow_gpt2/merges.txt");
    refused(folder, LK_ERR_UNSUPPORTED, "must name the tokenizer_class");
    put(folder, "config.json", "{\"model_type\":\"gpt2\"}");
    lk_tokenizer *tk = open_folder(folder);
    assert_string_equal(lk_tokenizer_pretokenizer_name(tk), "gpt-2");
    assert_int_equal(lk_tokenizer_bos(tk), lk_tokenizer_id(tk, "<|endoftext|>")); /* the class's default */
    lk_tokenizer_close(tk);
    put(folder, "config.json", "{\"model_type\":\"qwen3\"}");
    tk = open_folder(folder);
    assert_string_equal(lk_tokenizer_pretokenizer_name(tk), "qwen2");
    assert_int_equal(lk_tokenizer_bos(tk), -1);
    lk_tokenizer_close(tk);

    /* older folders */
    put(folder, "added_tokens.json", "{\"<x>\": 1000}");
    put(folder, "special_tokens_map.json", "{\"eos_token\": \"<y>\", \"pad_token\": {\"content\": \"<x>\"}}");
    tk = open_folder(folder);
    assert_int_equal(lk_tokenizer_id(tk, "<x>"), 1000);
    assert_int_equal(lk_tokenizer_eos(tk), 1001);
    assert_int_equal(lk_tokenizer_pad(tk), 1000);
    assert_true(lk_tokenizer_is_special(tk, 1001));
    char digest[65];
    strcpy(digest, lk_tokenizer_digest(tk));
    lk_tokenizer_close(tk);
    put(folder, "tokenizer_config.json",
        "{\"tokenizer_class\":\"GPT2TokenizerFast\",\"add_bos_token\":true,\"add_eos_token\":true,"
        "\"add_prefix_space\":true,\"bos_token\":\"<x>\",\"additional_special_tokens\":[\"<z>\"]}");
    tk = open_folder(folder);
    assert_true(strcmp(digest, lk_tokenizer_digest(tk)) != 0);
    assert_int_equal(encode(tk, "a", &first, &last), 3);
    assert_int_equal(first, 1000);
    assert_int_equal(last, 1001);
    assert_true(lk_tokenizer_is_special(tk, lk_tokenizer_id(tk, "<z>")));
    assert_true(lk_tokenizer_adds_space(tk));
    lk_tokenizer_close(tk);

    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"RobertaTokenizer\"}");
    refused(folder, LK_ERR_UNSUPPORTED, "\"RobertaTokenizer\"");
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":7}");
    refused(folder, LK_ERR_FORMAT, "tokenizer_class");
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\",\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}");
    refused(folder, LK_ERR_FORMAT, "added_tokens_decoder: \"x\"");
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\",\"added_tokens_decoder\":{\"0\":{\"content\":\"abc\"}}}");
    refused(folder, LK_ERR_FORMAT, "added_tokens[0]");
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\"}");
    put(folder, "added_tokens.json", "{\"<x>\": \"1000\"}");
    refused(folder, LK_ERR_FORMAT, "added_tokens.json: must be");
    put(folder, "added_tokens.json", "{}");
    put(folder, "merges.txt", "#version: 0.2\na b\nabc\n");
    refused(folder, LK_ERR_FORMAT, "merges.txt: line 3");
    put(folder, "merges.txt", "q \xc5\x81\n");
    refused(folder, LK_ERR_FORMAT, "is not in the vocabulary");
    put(folder, "merges.txt", "");
    put(folder, "vocab.json", "[]");
    refused(folder, LK_ERR_FORMAT, "vocab.json: must be an object");
    put(folder, "vocab.json", "{\"a\": -1}");
    refused(folder, LK_ERR_FORMAT, "id of \"a\"");
    free(folder);
}

static void test_sentencepiece(void **state)
{
    (void)state;
    char *folder = check_temporary("tokenizer_model"), path[4200];
    int32_t first, last;
    copy(folder, "tokenizer.model", "tokenizers/slow_llama/tokenizer.model");
    lk_tokenizer *tk = open_folder(folder); /* no class: what SentencePiece does */
    assert_int_equal(lk_tokenizer_kind(tk), LK_TK_SPM_BPE);
    assert_true(lk_tokenizer_adds_space(tk));
    assert_int_equal(lk_tokenizer_bos(tk), 1);
    assert_int_equal(lk_tokenizer_added_bos(tk), -1);
    assert_int_equal(lk_tokenizer_type(tk, 3), LK_TOKEN_BYTE);
    assert_true(lk_tokenizer_fits_scores(tk, NULL)); /* the merges were made from the scores */
    lk_tokenizer_close(tk);
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    tk = open_folder(path); /* the file itself */
    assert_int_equal(encode(tk, "</s>", &first, &last), 1);
    assert_int_equal(first, 2);
    lk_tokenizer_close(tk);
    put(folder, "config.json", "{\"model_type\":\"gemma3_text\"}");
    tk = open_folder(folder);
    assert_false(lk_tokenizer_adds_space(tk));
    assert_true(lk_tokenizer_bos(tk) >= lk_tokenizer_id(tk, "e")); /* <bos> is not in this model: a new id */
    lk_tokenizer_close(tk);
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"LlamaTokenizer\",\"add_prefix_space\":false,\"add_bos_token\":true}");
    tk = open_folder(folder);
    assert_false(lk_tokenizer_adds_space(tk));
    assert_int_equal(encode(tk, "a", &first, &last), 2);
    assert_int_equal(first, 1);
    lk_tokenizer_close(tk);

    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"XLNetTokenizer\"}");
    refused(folder, LK_ERR_UNSUPPORTED, "\"XLNetTokenizer\"");
    put(folder, "tokenizer_config.json", "{\"tokenizer_class\":\"LlamaTokenizer\"}");
    copy(folder, "tokenizer.model", "tokenizers/slow_unigram/tokenizer.model");
    refused(folder, LK_ERR_UNSUPPORTED, "precompiled_charsmap");
    put(folder, "tokenizer_config.json", "{}");
    tk = open_folder(folder);
    assert_int_equal(lk_tokenizer_kind(tk), LK_TK_UNIGRAM);
    assert_int_equal(lk_tokenizer_unk(tk), 0);
    lk_tokenizer_close(tk);
    put(folder, "tokenizer.model", "IQ== 0\nIg== 1\nIw== 2\n");
    refused(folder, LK_ERR_UNSUPPORTED, "tiktoken");
    free(folder);
}

/* A model of one piece "a" with the given trainer_spec bytes after it. */
static void test_broken_models(void **state)
{
    (void)state;
    char *folder = check_temporary("tokenizer_broken"), path[4200];
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
#define PIECE          \
    "\x0a\x03\x0a\x01" \
    "a"
    static const struct {
        const char *bytes;
        size_t size;
        lk_status want;
        const char *says;
    } rows[] = {
#define ROW(bytes, want, says) {bytes, sizeof bytes - 1, want, says}
        ROW("", LK_ERR_FORMAT, "no pieces"),
        ROW("\x0a", LK_ERR_FORMAT, "inside a number"),
        ROW("\x0a\x05\x0a", LK_ERR_FORMAT, "beyond the end"),
        ROW("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", LK_ERR_FORMAT, "longer than 64 bits"),
        ROW("\x02\x00", LK_ERR_FORMAT, "number 0"),
        ROW("\x0b\x00", LK_ERR_FORMAT, "wire type"),
        ROW("\x0a\x04\x0a\x02\xff\xff", LK_ERR_FORMAT, "not UTF-8"),
        ROW("\x0a\x03\x0a\x01\x00", LK_ERR_FORMAT, "not UTF-8"),
        ROW("\x0a\x05\x0a\x01"
            "a\x18\x07",
            LK_ERR_FORMAT, "unknown type"),
        ROW("\x0a\x08\x0a\x01"
            "a\x15\x00\x00\xc0\x7f",
            LK_ERR_FORMAT, "not a number"),
        ROW(PIECE "\x12\x02\x18\x03", LK_ERR_UNSUPPORTED, "word or character"),
        ROW(PIECE "\x12\x05\x18\x02\xc0\x01\x01", LK_ERR_UNSUPPORTED, "treat_whitespace_as_suffix"),
        ROW(PIECE "\x1a\x02\x28\x00", LK_ERR_UNSUPPORTED, "escape_whitespaces"),
        ROW(PIECE "\x12\x03\xc0\x02\x05", LK_ERR_FORMAT, "unk_id is 5"),
        ROW(PIECE PIECE "\x12\x02\x18\x02", LK_ERR_FORMAT, "both id 0 and id 1"),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_write_file(path, rows[i].bytes, rows[i].size);
        refused(folder, rows[i].want, rows[i].says);
    }
    /* every truncation of a real one: refused, or fewer pieces */
    lk_error err = {0};
    char *golden = check_golden("tokenizers/slow_llama/tokenizer.model"), *bytes;
    size_t size;
    CHECK_OK(lk_file_read(golden, 1 << 20, &bytes, &size, &err), &err);
    int opened = 0;
    for (size_t cut = 1; cut < size; cut += 1 + size / 200) {
        lk_tokenizer *tk;
        check_write_file(path, bytes, cut);
        opened += lk_tokenizer_open(&tk, folder, &err) == LK_OK;
        lk_tokenizer_close(tk);
    }
    assert_true(opened < 60);
    free(bytes);
    free(golden);
    free(folder);
}

/* What the configuration beside a tokenizer.json changes. */
static void test_post_flags(void **state)
{
    (void)state;
    char *folder = check_temporary("tokenizer_post");
    int32_t first, last;
    copy(folder, "tokenizer.json", "tokenizers/spm.json"); /* adds <s> and </s> */
    lk_tokenizer *tk = open_folder(folder);
    assert_int_equal(encode(tk, "", &first, &last), 2);
    lk_tokenizer_close(tk);
    put(folder, "tokenizer_config.json", "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":true}");
    tk = open_folder(folder);
    assert_int_equal(encode(tk, "", &first, &last), 1);
    assert_int_equal(first, 1);
    char digest[65];
    strcpy(digest, lk_tokenizer_digest(tk));
    lk_tokenizer_close(tk);
    put(folder, "tokenizer_config.json", "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_eos_token\":true}");
    tk = open_folder(folder);
    assert_int_equal(encode(tk, "", &first, &last), 1);
    assert_int_equal(first, 2);
    assert_true(strcmp(digest, lk_tokenizer_digest(tk)) != 0); /* other ids, another digest */
    lk_tokenizer_close(tk);
    put(folder, "tokenizer_config.json", "{\"add_bos_token\":1}");
    refused(folder, LK_ERR_FORMAT, "add_bos_token");
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_sentencepiece),
        cmocka_unit_test(test_broken_models),
        cmocka_unit_test(test_post_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
