/* data/tokenize: what is supervised, where BOS and EOS stand, that a completion goes on from its prompt, and that long texts are split
 * without losing a token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/tokenize.h"
#include "tests/check.h"

typedef struct kind {
    const char *file; /* of tests/golden/tokenizers */
    const char *bos, *eos;
    bool adds_bos;
    bool spaces; /* puts spaces before words and digits: its decoded text is not what was encoded */
} kind;

static const kind kinds[] = {
    {"gpt2", "<|endoftext|>", "<|endoftext|>", false, true},
    {"llama3", "<|begin_of_text|>", "<|eot_id|>", true},
    {"metaspace", "<s>", "</s>", true},
    {"qwen", NULL, "<|im_end|>", false},
    {"spm", "<s>", "</s>", true}, /* its post-processor adds EOS too */
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* The tokenizer in a folder with a tokenizer_config.json that names BOS and EOS. */
static lk_tokenizer *open_kind(const kind *k)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    char relative[100], path[4200], config[300], *text;
    size_t size;
    snprintf(relative, sizeof relative, "tokenizers/%s.json", k->file);
    char *source = check_golden(relative), *folder = check_temporary("tokenize");
    CHECK_OK(lk_file_read(source, 1 << 24, &text, &size, &err), &err);
    CHECK_OK(lk_path_join(path, sizeof path, folder, "tokenizer.json", &err), &err);
    check_write_file(path, text, size);
    if (k->bos)
        snprintf(config, sizeof config, "{\"bos_token\":\"%s\",\"eos_token\":\"%s\"}", k->bos, k->eos);
    else
        snprintf(config, sizeof config, "{\"eos_token\":\"%s\"}", k->eos);
    CHECK_OK(lk_path_join(path, sizeof path, folder, "tokenizer_config.json", &err), &err);
    check_write_file(path, config, strlen(config));
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    free(text);
    free(source);
    free(folder);
    return tk;
}

typedef struct result {
    int32_t *ids;
    uint8_t *mask;
    int64_t n;
    bool truncated;
} result;

static result tokenized(const lk_tokenizer *tk, const lk_chat *chat, lk_example ex, lk_loss_on loss_on, int64_t max_length)
{
    lk_error err = {0};
    result r;
    CHECK_OK(lk_tokenize_example(tk, chat, &ex, loss_on, max_length, &r.ids, &r.mask, &r.n, &r.truncated, &err), &err);
    if (r.n) assert_int_equal(r.mask[0], 0);
    return r;
}

static void result_free(result *r)
{
    free(r->ids);
    free(r->mask);
}

static result text_of(const lk_tokenizer *tk, const char *text)
{
    return tokenized(tk, NULL, (lk_example){.kind = LK_EXAMPLE_TEXT, .text = text}, LK_LOSS_ASSISTANT, 1 << 20);
}

static result completion_of(const lk_tokenizer *tk, const char *prompt, const char *completion)
{
    return tokenized(tk, NULL, (lk_example){.kind = LK_EXAMPLE_COMPLETION, .prompt = prompt, .completion = completion}, LK_LOSS_COMPLETION,
                     1 << 20);
}

static int count_of(const result *r, int32_t id)
{
    int n = 0;
    for (int64_t i = 0; i < r->n; i++) n += r->ids[i] == id;
    return n;
}

static void check_decodes(const lk_tokenizer *tk, const result *r, const char *want)
{
    lk_error err = {0};
    char *text;
    size_t size;
    CHECK_OK(lk_tokenizer_decode(tk, r->ids, r->n, true, &text, &size, &err), &err);
    assert_string_equal(text, want);
    free(text);
}

static void check_same(const result *a, const result *b)
{
    assert_int_equal(a->n, b->n);
    check_same_bits("ids", a->ids, b->ids, (size_t)a->n * sizeof *a->ids);
    check_same_bits("mask", a->mask, b->mask, (size_t)a->n);
}

static void test_text(void **state)
{
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        lk_tokenizer *tk = open_kind(&kinds[k]);
        int32_t bos = lk_tokenizer_bos(tk), eos = lk_tokenizer_eos(tk);
        const char *text = "The ferry leaves at dawn.\nNobody waves, for it is 6 o'clock.";
        result r = text_of(tk, text);
        if (!kinds[k].spaces) check_decodes(tk, &r, text);
        assert_int_equal(r.ids[r.n - 1], eos);
        assert_int_equal(count_of(&r, eos), 1);
        assert_int_equal(r.ids[0] == bos, kinds[k].adds_bos);
        for (int64_t i = 1; i < r.n; i++) assert_int_equal(r.mask[i], 1);

        /* text that brings its own: never two */
        char own[300];
        snprintf(own, sizeof own, "%s%s%s", kinds[k].adds_bos ? kinds[k].bos : "", text, kinds[k].eos);
        result same = text_of(tk, own);
        /* (metaspace puts its space before what is first in the data, which is BOS then) */
        if (strcmp(kinds[k].file, "metaspace")) check_same(&r, &same);
        if (bos >= 0 && bos != eos) assert_int_equal(count_of(&same, bos), kinds[k].adds_bos);
        assert_int_equal(count_of(&same, eos), 1);
        result_free(&same);
        if (kinds[k].bos) {
            snprintf(own, sizeof own, "%s%s%s%s", kinds[k].bos, kinds[k].bos, kinds[k].bos, text);
            same = text_of(tk, own);
            assert_true(same.ids[0] == bos && same.ids[1] != bos);
            result_free(&same);
        }
        result_free(&r);
        r = text_of(tk, "");
        assert_int_equal(r.n, kinds[k].adds_bos ? 2 : 1);
        result_free(&r);
        lk_tokenizer_close(tk);
    }
}

static void test_completion(void **state)
{
    (void)state;
    static const struct {
        const char *prompt, *completion;
    } rows[] = {{"2 + 3 = ", "5"}, {"The sea is", " salt"}, {"Q: a?\nA:", "\nb"}, {"", "all"},
                {"x", ""},         {"one", "two three"},    {"a  ", "  b"},       {"\xc3\xa9", "\xc3\xa9"}};
    for (int k = 0; k < N_KINDS; k++) {
        lk_tokenizer *tk = open_kind(&kinds[k]);
        int32_t bos = lk_tokenizer_bos(tk), eos = lk_tokenizer_eos(tk);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            lk_error err = {0};
            char both[100];
            int32_t *prompt;
            int64_t n, supervised = 0;
            CHECK_OK(lk_tokenizer_encode(tk, rows[i].prompt, strlen(rows[i].prompt), LK_TK_SPECIALS, &prompt, &n, &err), &err);
            while (n && prompt[n - 1] == eos) n--; /* what a post-processor puts behind a whole text */
            result r = completion_of(tk, rows[i].prompt, rows[i].completion);
            check_same_bits("prompt", r.ids, prompt, (size_t)n * sizeof *prompt);
            for (int64_t j = 0; j < r.n; j++) {
                if (j > 0) assert_int_equal(r.mask[j], j >= n);
                supervised += r.mask[j];
            }
            assert_true(supervised >= 1 && r.ids[r.n - 1] == eos);
            assert_int_equal(count_of(&r, eos), 1);
            if (bos >= 0 && bos != eos) assert_int_equal(count_of(&r, bos), kinds[k].adds_bos);
            /* The seam adds no space. A prompt that is empty makes the completion the start of the text, where one belongs. */
            snprintf(both, sizeof both, "%s%s", rows[i].prompt, rows[i].completion);
            if (rows[i].prompt[0] && !kinds[k].spaces) check_decodes(tk, &r, both);
            result_free(&r);
            free(prompt);
        }
        if (kinds[k].bos && bos != eos) { /* BOS in either text is not a second one */
            char prompt[100], completion[100];
            snprintf(prompt, sizeof prompt, "%sone", kinds[k].bos);
            snprintf(completion, sizeof completion, "%stwo%s", kinds[k].bos, kinds[k].eos);
            result r = completion_of(tk, prompt, completion);
            assert_int_equal(count_of(&r, bos), 1);
            assert_int_equal(count_of(&r, eos), 1);
            result_free(&r);
        }
        result all =
            tokenized(tk, NULL, (lk_example){.kind = LK_EXAMPLE_COMPLETION, .prompt = "one", .completion = "two"}, LK_LOSS_ALL, 100);
        for (int64_t j = 1; j < all.n; j++) assert_int_equal(all.mask[j], 1);
        result_free(&all);
        lk_tokenizer_close(tk);
    }
}

static void test_truncation(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk = open_kind(&kinds[1]);
    const lk_example ex = {.kind = LK_EXAMPLE_COMPLETION, .prompt = "one two three", .completion = "four five six"};
    result whole = tokenized(tk, NULL, ex, LK_LOSS_COMPLETION, 1000), r;
    assert_false(whole.truncated);
    for (int64_t length = 1; length <= whole.n + 1; length++) {
        r = tokenized(tk, NULL, ex, LK_LOSS_COMPLETION, length);
        assert_int_equal(r.truncated, length < whole.n);
        assert_int_equal(r.n, length < whole.n ? length : whole.n);
        check_same_bits("front", r.ids, whole.ids, (size_t)r.n * sizeof *r.ids);
        check_same_bits("front's mask", r.mask, whole.mask, (size_t)r.n);
        result_free(&r);
    }
    result_free(&whole);
    CHECK_FAILS(lk_tokenize_example(tk, NULL, &ex, LK_LOSS_ALL, 0, &r.ids, &r.mask, &r.n, &r.truncated, &err), LK_ERR_ARGUMENT,
                "max_length", &err);
    const lk_example end = {0}, chat = {.kind = LK_EXAMPLE_MESSAGES};
    CHECK_FAILS(lk_tokenize_example(tk, NULL, &end, LK_LOSS_ALL, 9, &r.ids, &r.mask, &r.n, &r.truncated, &err), LK_ERR_ARGUMENT, "end",
                &err);
    CHECK_FAILS(lk_tokenize_example(tk, NULL, &chat, LK_LOSS_ALL, 9, &r.ids, &r.mask, &r.n, &r.truncated, &err), LK_ERR_ARGUMENT, "chat",
                &err);
    lk_tokenizer_close(tk);
}

/* ---- splitting ---- */

typedef struct collected {
    int32_t ids[4096];
    int64_t n, documents, supervised, max_length;
} collected;

/* Joins documents again; each begins with the last token of the one before. */
static lk_status collect(void *context, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
{
    collected *c = context;
    (void)err;
    assert_true(n >= 1 && n <= c->max_length);
    assert_int_equal(mask[0], 0);
    int64_t skip = c->documents++ ? 1 : 0;
    if (skip) {
        assert_int_equal(ids[0], c->ids[c->n - 1]);
        assert_true(n >= 2);
    }
    memcpy(c->ids + c->n, ids + skip, (size_t)(n - skip) * sizeof *ids);
    c->n += n - skip;
    for (int64_t i = 0; i < n; i++) c->supervised += mask[i];
    return LK_OK;
}

static lk_status refuse(void *context, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
{
    (void)context, (void)ids, (void)mask, (void)n;
    return lk_fail(err, LK_ERR_BUSY, "full");
}

static void test_splitting(void **state)
{
    (void)state;
    lk_error err = {0};
    bool truncated;
    lk_tokenizer *tk = open_kind(&kinds[1]);
    char text[1200] = "";
    for (int i = 0; i < 100; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "word %d, ", i);
    const lk_example ex = {.kind = LK_EXAMPLE_TEXT, .text = text};
    result whole = text_of(tk, text);
    assert_true(whole.n > 300);
    const int64_t lengths[] = {2, 3, 7, 100, whole.n - 1, whole.n, whole.n + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        static collected c;
        c = (collected){.max_length = lengths[i]};
        CHECK_OK(lk_tokenize_documents(tk, NULL, &ex, LK_LOSS_ALL, lengths[i], collect, &c, &truncated, &err), &err);
        assert_false(truncated);
        assert_int_equal(c.n, whole.n);
        check_same_bits("joined", c.ids, whole.ids, (size_t)whole.n * sizeof *whole.ids);
        assert_int_equal(c.supervised, whole.n - 1);
        assert_int_equal(c.documents, lengths[i] >= whole.n ? 1 : (whole.n - 1 + lengths[i] - 2) / (lengths[i] - 1));
    }
    result_free(&whole);
    static collected c;
    const lk_example completion = {.kind = LK_EXAMPLE_COMPLETION, .prompt = text, .completion = text};
    c = (collected){.max_length = 50};
    CHECK_OK(lk_tokenize_documents(tk, NULL, &completion, LK_LOSS_ALL, 50, collect, &c, &truncated, &err), &err);
    assert_true(truncated && c.documents == 1 && c.n == 50);
    CHECK_FAILS(lk_tokenize_documents(tk, NULL, &ex, LK_LOSS_ALL, 1, collect, &c, &truncated, &err), LK_ERR_ARGUMENT, "at least 2", &err);
    CHECK_FAILS(lk_tokenize_documents(tk, NULL, &ex, LK_LOSS_ALL, 9, refuse, NULL, &truncated, &err), LK_ERR_BUSY, "full", &err);
    lk_tokenizer_close(tk);
}

/* ---- messages ---- */

/* The supervised tokens, decoded, with | where masked tokens lie between two stretches. */
static void check_supervised(const lk_tokenizer *tk, const result *r, const char *want)
{
    lk_error err = {0};
    char got[500] = "";
    for (int64_t i = 0; i < r->n;) {
        int64_t end = i;
        while (end < r->n && r->mask[end]) end++;
        if (end > i) {
            char *text;
            size_t size, used = strlen(got);
            CHECK_OK(lk_tokenizer_decode(tk, r->ids + i, end - i, false, &text, &size, &err), &err);
            snprintf(got + used, sizeof got - used, "%s%s", used ? "|" : "", text);
            free(text);
        }
        i = end + 1;
    }
    assert_string_equal(got, want);
}

static void test_messages(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk;
    lk_chat *chat;
    CHECK_OK(lk_tokenizer_open(&tk, LK_SOURCE_DIR "/recipes/demo/base", &err), &err);
    CHECK_OK(lk_chat_open(&chat, tk, &err), &err);
    cJSON *m = cJSON_Parse("[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"good day\"},"
                           "{\"role\":\"user\",\"content\":\"time?\"},{\"role\":\"assistant\",\"content\":\"noon\"}]");
    const lk_example ex = {.kind = LK_EXAMPLE_MESSAGES, .messages = m};
    result r = tokenized(tk, chat, ex, LK_LOSS_ASSISTANT, 1000);
    check_supervised(tk, &r, "good day<|im_end|>|noon<|im_end|>");
    result_free(&r);
    r = tokenized(tk, chat, ex, LK_LOSS_COMPLETION, 1000);
    check_supervised(tk, &r, "noon<|im_end|>");
    result_free(&r);
    cJSON_AddNumberToObject(cJSON_GetArrayItem(m, 3), "weight", 0);
    r = tokenized(tk, chat, ex, LK_LOSS_ASSISTANT, 1000);
    check_supervised(tk, &r, "good day<|im_end|>");
    result_free(&r);
    r = tokenized(tk, chat, ex, LK_LOSS_COMPLETION, 1000);
    check_supervised(tk, &r, "");
    result_free(&r);
    r = tokenized(tk, chat, ex, LK_LOSS_ALL, 1000);
    for (int64_t i = 1; i < r.n; i++) assert_int_equal(r.mask[i], 1);
    result_free(&r);
    cJSON_Delete(m);
    lk_chat_close(chat);
    lk_tokenizer_close(tk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),      cmocka_unit_test(test_completion), cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_splitting), cmocka_unit_test(test_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
