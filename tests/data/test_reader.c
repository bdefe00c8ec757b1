/* data/reader and data/example: every format, plain and packed, with the places of errors. */
#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/reader.h"
#include "tests/check.h"

/* A string of a message; NULL when it has none. */
static const char *field(const lk_example *ex, int i, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(ex->messages, i), key));
}

static const char text_a[] = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";

static char *put(const char *folder, const char *name, const void *bytes, size_t size)
{
    char path[4200];
    assert_int_equal(lk_path_join(path, sizeof path, folder, name, NULL), LK_OK);
    check_write_file(path, bytes, size);
    return strdup(path);
}

/* An archive, or with format 0 one compressed file. names[] ends with NULL. */
static char *pack(const char *folder, const char *file, int format, int filter, const char *const *names, const char *const *texts)
{
    char path[4200];
    assert_int_equal(lk_path_join(path, sizeof path, folder, file, NULL), LK_OK);
    struct archive *a = archive_write_new();
    assert_int_equal(archive_write_add_filter(a, filter), ARCHIVE_OK);
    if (format)
        assert_int_equal(archive_write_set_format(a, format), ARCHIVE_OK);
    else
        assert_int_equal(archive_write_set_format_raw(a), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    for (int i = 0; names[i]; i++) {
        struct archive_entry *e = archive_entry_new();
        bool folder_entry = names[i][strlen(names[i]) - 1] == '/';
        archive_entry_set_pathname(e, names[i]);
        archive_entry_set_filetype(e, folder_entry ? AE_IFDIR : AE_IFREG);
        archive_entry_set_perm(e, 0644);
        archive_entry_set_size(e, (la_int64_t)strlen(texts[i]));
        assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
        archive_write_data(a, texts[i], strlen(texts[i]));
        archive_entry_free(e);
    }
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    return strdup(path);
}

/* Reads all; texts are joined with '|' into out. Returns the first error. */
static lk_status join_texts(const lk_source *source, char *out, size_t size, lk_error *err)
{
    lk_reader *r;
    lk_example ex;
    out[0] = 0;
    LK_TRY(lk_reader_open(&r, source, err));
    lk_status status;
    while (!(status = lk_reader_next(r, &ex, err)) && ex.kind != LK_EXAMPLE_END) {
        assert_int_equal(ex.kind, LK_EXAMPLE_TEXT);
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s", used ? "|" : "", ex.text);
    }
    lk_reader_close(r);
    return status;
}

static void check_texts(const char *path, const char *want)
{
    lk_error err = {0};
    char got[4096];
    const lk_source source = {.path = path, .format = LK_DATA_TEXT};
    CHECK_OK(join_texts(&source, got, sizeof got, &err), &err);
    assert_string_equal(got, want);
}

static void check_refused(const char *path, lk_status status, const char *text)
{
    lk_error err = {0};
    char got[4096];
    const lk_source source = {.path = path, .format = LK_DATA_TEXT};
    CHECK_FAILS(join_texts(&source, got, sizeof got, &err), status, text, &err);
}

static void test_samples(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        lk_source source;
        int count;
    } rows[] = {{"messages.jsonl", {.format = LK_DATA_MESSAGES}, 0},
                {"completion.jsonl", {.format = LK_DATA_COMPLETION}, 0},
                {"mapped.jsonl", {.format = LK_DATA_COMPLETION, .prompt_field = "ask", .completion_field = "reply"}, 0},
                {"text.jsonl", {.format = LK_DATA_TEXT}, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_reader *r;
        lk_example ex;
        char path[4200], want[4300];
        snprintf(path, sizeof path, LK_SOURCE_DIR "/tests/data/%s", rows[i].file);
        lk_source source = rows[i].source;
        source.path = path;
        CHECK_OK(lk_reader_open(&r, &source, &err), &err);
        int64_t n = 0;
        for (;;) {
            CHECK_OK(lk_reader_next(r, &ex, &err), &err);
            if (ex.kind == LK_EXAMPLE_END) break;
            assert_int_equal(ex.line, ++n);
            snprintf(want, sizeof want, "%s:%d", path, (int)n);
            assert_string_equal(lk_reader_place(r), want);
            if (i == 2 && n == 2) {
                assert_string_equal(ex.prompt, "What sinks?");
                assert_string_equal(ex.completion, "A stone does.");
            }
            if (i == 0 && n == 2) {
                assert_int_equal(cJSON_GetArraySize(ex.messages), 3);
                assert_string_equal(field(&ex, 0, "role"), "system");
                assert_string_equal(field(&ex, 2, "content"), "Yes.");
            }
        }
        assert_true(n >= 3);
        CHECK_OK(lk_reader_next(r, &ex, &err), &err); /* the end stays the end */
        assert_int_equal(ex.kind, LK_EXAMPLE_END);
        lk_reader_close(r);
    }
}

static void test_plain(void **state)
{
    (void)state;
    char *folder = check_temporary("reader_plain");
    static const struct {
        const char *name, *bytes, *want;
    } good[] = {
        {"a.jsonl", text_a, "one|two"},
        {"a.jsonl", "\xef\xbb\xbf{\"text\":\"one\"}\r\n\r\n  \t\r\n{\"text\":\"two\"}", "one|two"},
        {"a.jsonl", "\n\n {\"text\":\"one\"} \n", "one"},
        {"a.jsonl", "{\"text\":\"\\u00e9\\ud83d\\ude00\xc3\xa9\"}", "\xc3\xa9\xf0\x9f\x98\x80\xc3\xa9"},
        {"a.json", "[{\"text\":\"one\"},\n{\"text\":\"t]w}o,\\\"\"}\n]\n", "one|t]w}o,\""},
        {"a.json", "\xef\xbb\xbf \r\n[\r\n {\n \"text\"\n: \"one\", \"x\": [[{}]]\n }\n]", "one"},
        {"a.txt", "one\n\ntwo\n", "one\n\ntwo\n"},
        {"a.txt", "\xef\xbb\xbfone\r\n", "one\r\n"},
        {"noext", text_a, "one|two"},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char *path = put(folder, good[i].name, good[i].bytes, strlen(good[i].bytes));
        check_texts(path, good[i].want);
        free(path);
    }
    static const struct {
        const char *name, *bytes, *text;
    } bad[] = {
        {"a.jsonl", "", "empty"},
        {"a.jsonl", "\n \r\n", "empty"},
        {"a.jsonl", "\xef\xbb\xbf", "empty"},
        {"a.json", "[]", "empty"},
        {"a.txt", "", "empty"},
        {"a.jsonl", "{\"text\":\"one\"}\n\n{\"text\":2}\n", "a.jsonl:3: text must be a string"},
        {"a.jsonl", "{\"text\":\"one\"}\n{\"txt\":\"2\"}\n", "a.jsonl:2: text is missing"},
        {"a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"2\"\n", "a.jsonl:2: not valid JSON"},
        {"a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"\xff\"}\n", "a.jsonl:2: not valid UTF-8"},
        {"a.jsonl", "{\"text\":\"one\"} {\"text\":\"two\"}\n", "a.jsonl:1: not valid JSON"},
        {"a.jsonl", "7\n", "a.jsonl:1: an example must be a JSON object"},
        {"a.jsonl", "{\"text\":\"a\",\"text\":\"b\"}\n", "twice"},
        {"a.jsonl", "\xff\xfe{", "UTF-16"},
        {"a.json", "[{\"text\":\"one\"},\n\n{\"text\":2}]", "a.json:3: text must be"},
        {"a.json", "[{\"text\":\"one\"}\n{\"text\":\"two\"}]", "a.json:2: a comma is missing"},
        {"a.json", "[{\"text\":\"one\"},]", "a comma before the end"},
        {"a.json", "[,{\"text\":\"one\"}]", "an element is missing"},
        {"a.json", "[{\"text\":\"one\"},,{\"text\":\"one\"}]", "an element is missing"},
        {"a.json", "[{\"text\":\"one\"}", "no end"},
        {"a.json", "[{\"text\":\"one", "cut off"},
        {"a.json", "[{\"text\":\"one\"}] x", "something follows"},
        {"a.json", "[1, 2]", "a.json:1: an example must be a JSON object"},
        {"a.json", "[[", "cut off"},
        {"a.json", "[}", "an element is missing"},
        {"a.txt", "one\ntwo \xff\n", "a.txt:2: not valid UTF-8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *path = put(folder, bad[i].name, bad[i].bytes, strlen(bad[i].bytes));
        check_refused(path, LK_ERR_FORMAT, bad[i].text);
        free(path);
    }
    char *path = put(folder, "z.txt", "a\0b", 3);
    check_refused(path, LK_ERR_FORMAT, "zero byte");
    free(path);
    check_refused("no/such.jsonl", LK_ERR_IO, "no/such.jsonl");
    check_refused(folder, LK_ERR_IO, "is a folder");
    free(folder);
}

/* A bad example does not end the file: a dry run reports them all. */
static void test_goes_on(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("reader_on");
    const char *text = "{\"text\":\"one\"}\nbad\n{\"text\":\"three\"}\n";
    char *path = put(folder, "a.jsonl", text, strlen(text));
    lk_reader *r;
    lk_example ex;
    CHECK_OK(lk_reader_open(&r, &(lk_source){.path = path, .format = LK_DATA_TEXT}, &err), &err);
    CHECK_OK(lk_reader_next(r, &ex, &err), &err);
    CHECK_FAILS(lk_reader_next(r, &ex, &err), LK_ERR_FORMAT, "a.jsonl:2:", &err);
    CHECK_OK(lk_reader_next(r, &ex, &err), &err);
    assert_string_equal(ex.text, "three");
    assert_int_equal(ex.line, 3);
    lk_reader_close(r);
    free(path);
    free(folder);
}

static void test_packed(void **state)
{
    (void)state;
    char *folder = check_temporary("reader_packed"), *path;
    const char *names[] = {"data/", "data/b.jsonl", "data/._b.jsonl", "readme.md", "a.json", "c.txt", NULL};
    const char *texts[] = {"", text_a, "\1\2 not data", "# nothing", "[{\"text\":\"three\"}]", "four"};
    static const struct {
        const char *file;
        int format, filter;
    } rows[] = {{"a.tar", ARCHIVE_FORMAT_TAR_PAX_RESTRICTED, ARCHIVE_FILTER_NONE},
                {"a.tar.gz", ARCHIVE_FORMAT_TAR_PAX_RESTRICTED, ARCHIVE_FILTER_GZIP},
                {"a.tar.zst", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_ZSTD},
                {"a.zip", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        path = pack(folder, rows[i].file, rows[i].format, rows[i].filter, names, texts);
        check_texts(path, "one|two|three|four");
        free(path);
    }
    const char *single[] = {"x", NULL};
    const char *single_text[] = {text_a};
    path = pack(folder, "a.jsonl.gz", 0, ARCHIVE_FILTER_GZIP, single, single_text);
    check_texts(path, "one|two");
    /* cut off: every length gives an error or, never, a wrong text */
    char *bytes;
    size_t size;
    assert_int_equal(lk_file_read(path, 1 << 20, &bytes, &size, NULL), LK_OK);
    for (size_t n = 12; n < size; n += 3) {
        char *part = put(folder, "cut.jsonl.gz", bytes, n), got[200];
        lk_error err = {0};
        assert_true(join_texts(&(lk_source){.path = part, .format = LK_DATA_TEXT}, got, sizeof got, &err) != LK_OK);
        free(part);
    }
    free(bytes);
    free(path);
    path = pack(folder, "a.jsonl.zst", 0, ARCHIVE_FILTER_ZSTD, single, single_text);
    check_texts(path, "one|two");
    free(path);
    const char *document[] = {"one\ntwo"};
    path = pack(folder, "a.txt.gz", 0, ARCHIVE_FILTER_GZIP, single, document);
    check_texts(path, "one\ntwo");
    free(path);

    const char *bad_names[] = {"good.jsonl", "sub/bad.jsonl", NULL}, *bad_texts[] = {text_a, "{\"text\":\"x\"}\n{\"text\":[]}\n"};
    path = pack(folder, "bad.tar.gz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_GZIP, bad_names, bad_texts);
    check_refused(path, LK_ERR_FORMAT, "bad.tar.gz:sub/bad.jsonl:2: text must be a string");
    free(path);
    const char *no_names[] = {"readme.md", NULL}, *no_texts[] = {"hello"};
    path = pack(folder, "none.zip", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE, no_names, no_texts);
    check_refused(path, LK_ERR_FORMAT, "empty");
    free(path);
    free(folder);
}

/* A line of 64 MiB and one byte is refused; long ones below it pass. */
static void test_long_line(void **state)
{
    (void)state;
    char *folder = check_temporary("reader_long");
    size_t size = LK_READER_MAX_LINE + 1;
    char *bytes = malloc(size);
    memset(bytes, ' ', size);
    char *path = put(folder, "a.json", bytes, size);
    bytes[0] = '{';
    char *line = put(folder, "a.jsonl", bytes, size), *array;
    check_refused(line, LK_ERR_FORMAT, "64 MiB");
    bytes[0] = '[', bytes[1] = '"';
    array = put(folder, "b.json", bytes, size + 0);
    check_refused(array, LK_ERR_FORMAT, "cut off");
    check_refused(path, LK_ERR_FORMAT, "empty");
    memset(bytes, 'x', size);
    memcpy(bytes, "{\"text\":\"", 9);
    memcpy(bytes + (1 << 20), "\"}\n", 3);
    free(path);
    path = put(folder, "c.jsonl", bytes, (1 << 20) + 3);
    lk_error err = {0};
    lk_reader *r;
    lk_example ex;
    CHECK_OK(lk_reader_open(&r, &(lk_source){.path = path, .format = LK_DATA_TEXT}, &err), &err);
    CHECK_OK(lk_reader_next(r, &ex, &err), &err);
    assert_int_equal(strlen(ex.text), (1 << 20) - 9);
    lk_reader_close(r);
    remove(line);
    remove(array);
    remove(path);
    free(line);
    free(array);
    free(path);
    free(bytes);
    free(folder);
}

/* ---- examples ---- */

static void test_shapes(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_arena arena = {0};
    lk_example ex = {0};
    const char *line = "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\",\"weight\":0}],"
                       "\"system\":\"s\",\"id\":9}";
    CHECK_OK(lk_example_parse(&ex, &arena, &(lk_source){.format = LK_DATA_SHAREGPT}, line, strlen(line), "x", &err), &err);
    assert_int_equal(ex.kind, LK_EXAMPLE_MESSAGES);
    assert_int_equal(cJSON_GetArraySize(ex.messages), 3);
    assert_string_equal(field(&ex, 0, "role"), "system");
    assert_string_equal(field(&ex, 1, "role"), "user");
    assert_string_equal(field(&ex, 2, "role"), "assistant");
    assert_string_equal(field(&ex, 2, "content"), "a");
    assert_null(field(&ex, 2, "from"));
    assert_true(cJSON_GetObjectItem(cJSON_GetArrayItem(ex.messages, 2), "weight")->valuedouble == 0);
    lk_example_free(&ex);

    line = "{\"instruction\":\"do\",\"input\":\"this\",\"output\":\"done\"}";
    CHECK_OK(lk_example_parse(&ex, &arena, &(lk_source){.format = LK_DATA_ALPACA}, line, strlen(line), "x", &err), &err);
    assert_int_equal(cJSON_GetArraySize(ex.messages), 2);
    assert_string_equal(field(&ex, 0, "content"), "do\n\nthis");
    assert_string_equal(field(&ex, 1, "content"), "done");
    lk_example_free(&ex);
    line = "{\"instruction\":\"do\",\"input\":\"\",\"output\":\"\"}";
    CHECK_OK(lk_example_parse(&ex, &arena, &(lk_source){.format = LK_DATA_ALPACA}, line, strlen(line), "x", &err), &err);
    assert_string_equal(field(&ex, 0, "content"), "do");
    lk_example_free(&ex);

    /* tools, a call without a content, a tool's answer, and what only the template knows */
    line = "{\"tools\":\"[{\\\"name\\\":\\\"f\\\",\\\"x\\\":1.0}]\",\"documents\":[],\"chat_template_kwargs\":{\"enable_thinking\":false},"
           "\"messages\":["
           "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"q\"}]},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{"
           "\"id\":\"1\"}],\"z\":2.0},"
           "{\"role\":\"tool\",\"content\":\"r\",\"name\":\"f\"}]}";
    CHECK_OK(lk_example_parse(&ex, &arena, &(lk_source){.format = LK_DATA_MESSAGES}, line, strlen(line), "x", &err), &err);
    assert_int_equal(cJSON_GetArraySize(ex.messages), 3);
    assert_string_equal(cJSON_GetObjectItem(ex.tools->child, "x")->valuestring, "1.0");
    assert_null(ex.documents);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(ex.variables, "enable_thinking")));
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetArrayItem(ex.messages, 1), "z")->valuestring, "2.0");
    assert_string_equal(field(&ex, 2, "role"), "tool");
    lk_example_free(&ex);
    lk_arena_free(&arena);
}

static void test_fields(void **state)
{
    (void)state;
    static const struct {
        lk_data_format format;
        const char *line, *text;
        lk_status status;
    } rows[] = {
        {LK_DATA_MESSAGES, "{}", "messages is missing", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":{}}", "messages is not a list", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[]}", "messages is empty", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[3]}", "x:7: messages[0]: must be an object", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"content\":\"a\"}]}", "messages[1]: role is missing",
         LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"tolo\",\"content\":\"a\"}]}", "\"tolo\"", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "content must be a string", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", "content must be a string", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"weight\":0.5}]}", "weight must be 0 or 1", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"weight\":\"1\"}]}", "weight", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[]}]}", "content is missing", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"tools\":3,\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "tools must be a list", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"tools\":[1],\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "tools must be a list of objects",
         LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"tools\":\"[\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "x:7: tools", LK_ERR_FORMAT},
        {LK_DATA_MESSAGES, "{\"functions\":[{}],\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "functions", LK_ERR_UNSUPPORTED},
        {LK_DATA_MESSAGES, "{\"chat_template_kwargs\":[],\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
         "chat_template_kwargs must be", LK_ERR_FORMAT},
        {LK_DATA_SHAREGPT, "{\"messages\":[]}", "conversations is missing", LK_ERR_FORMAT},
        {LK_DATA_SHAREGPT, "{\"conversations\":[{\"from\":\"bard\",\"value\":\"\"}]}", "\"bard\"", LK_ERR_FORMAT},
        {LK_DATA_ALPACA, "{\"instruction\":\"a\"}", "output is missing", LK_ERR_FORMAT},
        {LK_DATA_ALPACA, "{\"instruction\":1,\"output\":\"\"}", "instruction must be a string", LK_ERR_FORMAT},
        {LK_DATA_ALPACA, "{\"instruction\":\"a\",\"output\":\"\",\"history\":[[\"a\",\"b\"]]}", "history", LK_ERR_UNSUPPORTED},
        {LK_DATA_COMPLETION, "{\"prompt\":\"a\"}", "completion is missing", LK_ERR_FORMAT},
        {LK_DATA_COMPLETION, "{\"prompt\":true,\"completion\":\"\"}", "prompt must be a string", LK_ERR_FORMAT},
        {LK_DATA_TEXT, "{\"text\":\"a\\u0000b\"}", "x:7: \\u0000", LK_ERR_FORMAT},
        {LK_DATA_TEXT, "", "x:7: not valid JSON", LK_ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_arena arena = {0};
        lk_example ex = {0};
        CHECK_FAILS(lk_example_parse(&ex, &arena, &(lk_source){.format = rows[i].format}, rows[i].line, strlen(rows[i].line), "x:7", &err),
                    rows[i].status, rows[i].text, &err);
        lk_arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),   cmocka_unit_test(test_plain),  cmocka_unit_test(test_goes_on), cmocka_unit_test(test_packed),
        cmocka_unit_test(test_long_line), cmocka_unit_test(test_shapes), cmocka_unit_test(test_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
