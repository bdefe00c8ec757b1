/* Datasets: the store is used again only when it is the same, texts are split without losing a token, what is wrong is refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tests/check.h"
#include "train/dataset.h"

typedef struct fixture {
    char *folder, source_path[4096], store_path[4096];
    lk_tokenizer *tk;
    lk_chat *chat;
    lk_source source;
    lk_dataset_options o;
} fixture;

static fixture *setup(const char *name, lk_data_format format, const char *text)
{
    lk_error err = {0};
    fixture *f = calloc(1, sizeof *f);
    char *model = check_golden("models/chat-tiny");
    f->folder = check_temporary(name);
    snprintf(f->source_path, sizeof f->source_path, "%s/d.jsonl", f->folder);
    snprintf(f->store_path, sizeof f->store_path, "%s/data/d.h5", f->folder);
    check_write_file(f->source_path, text, strlen(text));
    CHECK_OK(lk_tokenizer_open(&f->tk, model, &err), &err);
    CHECK_OK(lk_chat_open(&f->chat, f->tk, &err), &err);
    f->source = (lk_source){.path = f->source_path, .format = format};
    f->o = (lk_dataset_options){.what = "data.train",
                                .path = f->store_path,
                                .sources = &f->source,
                                .n_sources = 1,
                                .tokenizer = f->tk,
                                .chat = f->chat,
                                .vocab = 424,
                                .max_length = 64,
                                .loss_on = "assistant"};
    free(model);
    return f;
}

static void teardown(fixture *f)
{
    lk_chat_close(f->chat);
    lk_tokenizer_close(f->tk);
    free(f->folder);
    free(f);
}

#define ONE  "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"the bread\"}]}\n"
#define MUTE "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n"

static void test_reuse(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_dataset d;
    char digest[65];
    fixture *f = setup("dataset", LK_DATA_MESSAGES, ONE MUTE ONE);
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_false(d.report.reused);
    assert_int_equal(d.report.examples, 3);
    assert_int_equal(d.report.documents, 2);
    assert_int_equal(d.report.masked, 1);
    assert_int_equal(d.report.supervised, lk_store_supervised(d.store));
    assert_int_equal(d.report.tokens, lk_store_tokens(d.store));
    strcpy(digest, d.digest);
    lk_dataset_close(&d);
    lk_dataset_close(&d);
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_true(d.report.reused && d.report.masked == 1);
    assert_string_equal(d.digest, digest);
    lk_dataset_close(&d);
    /* Anything the store depends on makes a new one; the same again is the same again. */
    f->o.loss_on = "all";
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_true(!d.report.reused && d.report.documents == 3);
    assert_string_not_equal(d.digest, digest);
    lk_dataset_close(&d);
    f->o.loss_on = "assistant";
    f->o.max_length = 63;
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_false(d.report.reused);
    assert_string_equal(d.digest, digest);
    lk_dataset_close(&d);
    check_write_file(f->source_path, ONE, strlen(ONE));
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_true(!d.report.reused && d.report.documents == 1);
    lk_dataset_close(&d);
    /* A damaged store is made again. */
    check_write_file(f->store_path, "junk", 4);
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_false(d.report.reused);
    lk_dataset_close(&d);
    teardown(f);
}

static void test_text_is_split(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_dataset d;
    char text[3000] = "{\"text\":\"";
    for (int i = 0; i < 200; i++) strcat(text, i % 3 ? "river " : "bread ");
    strcat(text, "\"}\n");
    fixture *f = setup("dataset_text", LK_DATA_TEXT, text);
    f->o.loss_on = "all";
    f->o.max_length = 1 << 20;
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    int64_t whole = d.report.tokens;
    assert_int_equal(d.report.documents, 1);
    assert_int_equal(d.report.supervised, whole - 1);
    lk_dataset_close(&d);
    f->o.max_length = 16;
    CHECK_OK(lk_dataset_open(&d, &f->o, &err), &err);
    assert_int_equal(d.report.split, 1);
    assert_int_equal(d.report.supervised, whole - 1); /* no token went unpredicted */
    assert_int_equal(d.report.tokens, whole + d.report.documents - 1);
    for (int64_t i = 0; i < lk_store_documents(d.store); i++) assert_true(lk_store_length(d.store, i) <= 16);
    int64_t estimate;
    CHECK_OK(lk_dataset_estimate(&f->source, 1, 16, &estimate, &err), &err);
    assert_true(estimate >= 1);
    lk_dataset_close(&d);
    teardown(f);
}

static void test_refusals(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_dataset d;
    fixture *f = setup("dataset_refusals", LK_DATA_MESSAGES, ONE);
    f->o.vocab = 300;
    CHECK_FAILS(lk_dataset_open(&d, &f->o, &err), LK_ERR_FORMAT, "do not belong together", &err);
    assert_non_null(strstr(err.message, "d.jsonl:1"));
    f->o.vocab = 424;
    volatile sig_atomic_t stop = 1;
    f->o.stop = &stop;
    CHECK_FAILS(lk_dataset_open(&d, &f->o, &err), LK_ERR_INTERRUPTED, "tokenised", &err);
    f->o.stop = NULL;
    f->o.max_length = 4;
    CHECK_FAILS(lk_dataset_open(&d, &f->o, &err), LK_ERR_FORMAT, "1 lost theirs to data.max_length 4", &err);
    check_write_file(f->source_path, MUTE MUTE, strlen(MUTE MUTE));
    f->o.max_length = 64;
    CHECK_FAILS(lk_dataset_open(&d, &f->o, &err), LK_ERR_FORMAT, "of 2 examples 2 have no supervised token", &err);
    assert_null(d.store);
    f->source.path = "/nowhere.jsonl";
    CHECK_FAILS(lk_dataset_open(&d, &f->o, &err), LK_ERR_IO, "/nowhere.jsonl", &err);
    teardown(f);
}

int main(void)
{
    lk_log_set_level(LK_LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reuse), cmocka_unit_test(test_text_is_split), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
