/* Tool calls out of text: a table of what models write, whole and cut at every place; then through the server, whole and streamed, from a
 * model whose tokens are dictated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "kernels/backend.h"
#include "serve/openai_reply.h"
#include "serve/tool_calls.h"
#include "tests/check.h"
#include "tests/http_client.h"

enum { MOST_CALLS = 3 };

typedef struct row {
    lk_tool_format format;
    const char *written, *text;
    struct {
        const char *name, *arguments;
    } calls[MOST_CALLS];
} row;

#define CALL(name, arguments) "<tool_call>\n{\"name\": \"" name "\", \"arguments\": " arguments "}\n</tool_call>"
#define H                     LK_TOOLS_HERMES
#define L                     LK_TOOLS_LLAMA3_JSON
#define M                     LK_TOOLS_MISTRAL

static const row rows[] = {
    {H, "Hello, <b>you</b> < me.", "Hello, <b>you</b> < me.", {{0}}},
    {H, "", "", {{0}}},
    {H, CALL("get_time", "{}"), "", {{"get_time", "{}"}}},
    {H,
     CALL("f", "{\"a\": 1.0, \"b\": [1, {\"c\": \"} </tool_call\"}], \"n\": 12345678901234567890}"),
     "",
     {{"f", "{\"a\": 1.0, \"b\": [1, {\"c\": \"} </tool_call\"}], \"n\": 12345678901234567890}"}}},
    {H,
     "Let me see.\n" CALL("f", "{\"x\": 1}") "\n" CALL("g", "{\"y\": \"\\u00e9\\\"\"}") "\n",
     "Let me see.\n",
     {{"f", "{\"x\": 1}"}, {"g", "{\"y\": \"\\u00e9\\\"\"}"}}},
    {H, CALL("f", "{}") " and " CALL("g", "{}"), "and ", {{"f", "{}"}, {"g", "{}"}}},
    {H, "<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":1}}", "", {{"f", "{\"x\":1}"}}}, /* the end is missing */
    {H, "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}</tool_call>", "", {{"f", "{\"x\":1}"}}},
    {H, "<tool_call>{\"arguments\" : {\"x\":1} , \"name\" : \"f\"}</tool_call>", "", {{"f", "{\"x\":1}"}}},
    {H, "<tool_call>{\"name\":\"f\"}</tool_call>", "", {{"f", "{}"}}},
    {H, "<tool_call>{\"name\":\"f\",\"parameters\":null}</tool_call>", "", {{"f", "{}"}}},
    {H, "a<tool_call>not JSON</tool_call>b", "a<tool_call>not JSON</tool_call>b", {{0}}},
    {H, "<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":", "<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":", {{0}}},
    {H, "<tool_call>{\"name\":3,\"arguments\":{}}</tool_call>", "<tool_call>{\"name\":3,\"arguments\":{}}</tool_call>", {{0}}},
    {H, "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", {{0}}},
    {H, "<tool_call>[]</tool_call>" CALL("f", "{}"), "<tool_call>[]</tool_call>", {{"f", "{}"}}},
    {H, "<tool_call><tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>", "<tool_call>", {{"f", "{}"}}},
    {H, "ends in <tool_", "ends in <tool_", {{0}}},
    {L, "{\"name\": \"f\", \"parameters\": {\"city\": \"Oslo\"}}", "", {{"f", "{\"city\": \"Oslo\"}"}}},
    {L, "\n <|python_tag|> {\"name\": \"f\", \"parameters\": {}}", "", {{"f", "{}"}}},
    {L,
     "{\"type\": \"function\", \"name\": \"f\", \"arguments\": {\"a\": 1}}; {\"name\": \"g\", \"parameters\": {}}",
     "",
     {{"f", "{\"a\": 1}"}, {"g", "{}"}}},
    {L, "The answer is {\"name\": \"f\", \"parameters\": {}}", "The answer is {\"name\": \"f\", \"parameters\": {}}", {{0}}},
    {L, " {\"answer\": 42} ", " {\"answer\": 42} ", {{0}}},
    {L, "{\"name\": \"Anna\", \"age\": 3}", "{\"name\": \"Anna\", \"age\": 3}", {{0}}}, /* an answer in JSON */
    {L, "{\"name\": \"f\", \"parameters\": {", "{\"name\": \"f\", \"parameters\": {", {{0}}},
    {L, "<|python", "<|python", {{0}}},
    {L, "<|python_tag|>print(1)", "<|python_tag|>print(1)", {{0}}},
    {L, "{\"name\": \"f\", \"parameters\": {}} That is it.", "That is it.", {{"f", "{}"}}},
    {M,
     "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"]\"}}, {\"name\": \"g\", \"arguments\": {}}]",
     "",
     {{"f", "{\"a\": \"]\"}"}, {"g", "{}"}}},
    {M, "I look.[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}] ", "I look.", {{"f", "{}"}}},
    {M, "[TOOL_CALLS]get_time{\"zone\": \"CET\"}[TOOL_CALLS]g{}", "", {{"get_time", "{\"zone\": \"CET\"}"}, {"g", "{}"}}},
    {M, "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{\"a\": {}}", "", {{"f", "{\"a\": {}}"}}},
    {M, "[TOOL_CALLS]no call", "[TOOL_CALLS]no call", {{0}}},
    {M, "[TOOL_CALLS][nothing][TOOL_CALLS]f{}", "[TOOL_CALLS][nothing]", {{"f", "{}"}}},
    {M, "[TOOL_CALLS]f{\"a\": nothing}", "[TOOL_CALLS]f{\"a\": nothing}", {{0}}},
    {M, "[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}, {\"name\":", ", {\"name\":", {{"f", "{}"}}},
    {M, "[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}", "", {{"f", "{}"}}},
    {M, "[TOOL_", "[TOOL_", {{0}}},
    {M, "[TOOL_CALLS]", "[TOOL_CALLS]", {{0}}},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

typedef struct result {
    lk_writer text;
    char names[MOST_CALLS + 2][64], arguments[MOST_CALLS + 2][256];
    int n;
} result;

static void drain(lk_tool_parser *p, result *r)
{
    lk_tool_event e;
    while (lk_tool_parser_next(p, &e)) {
        if (!e.call) {
            assert_true(e.size > 0);
            lk_writer_add(&r->text, e.text, e.size);
            continue;
        }
        assert_int_equal(e.index, r->n);
        assert_true(r->n < MOST_CALLS + 2 && e.size < sizeof r->arguments[0]);
        snprintf(r->names[r->n], sizeof r->names[0], "%s", e.name);
        snprintf(r->arguments[r->n++], sizeof r->arguments[0], "%.*s", (int)e.size, e.text);
    }
}

static void check_row(const row *w, const result *r, size_t cut)
{
    int n = 0;
    while (n < MOST_CALLS && w->calls[n].name) n++;
    bool same = r->n == n && !strcmp(r->text.data ? r->text.data : "", w->text);
    for (int i = 0; i < n && same; i++) same = !strcmp(r->names[i], w->calls[i].name) && !strcmp(r->arguments[i], w->calls[i].arguments);
    if (!same)
        fail_msg("'%s', cut at %zu: text '%s', %d calls, the first %s(%s)", w->written, cut, r->text.data ? r->text.data : "", r->n,
                 r->names[0], r->arguments[0]);
}

static void one_call(lk_tool_format format, const char *written, size_t size, size_t cut, bool only_first, result *r)
{
    lk_error err = {0};
    lk_tool_parser *p;
    *r = (result){0};
    CHECK_OK(lk_tool_parser_create(&p, format, only_first, &err), &err);
    if (cut) {
        assert_true(lk_tool_parser_push(p, written, cut, false));
        drain(p, r);
    }
    assert_true(lk_tool_parser_push(p, written + cut, size - cut, true));
    drain(p, r);
    assert_int_equal(lk_tool_parser_calls(p), r->n);
    lk_tool_parser_destroy(p);
}

static void test_rows(void **state)
{
    (void)state;
    for (int i = 0; i < N_ROWS; i++) {
        const row *w = &rows[i];
        size_t size = strlen(w->written);
        result r;
        for (size_t cut = 0; cut <= size; cut++) { /* the whole, and in two */
            one_call(w->format, w->written, size, cut, false, &r);
            check_row(w, &r, cut);
            lk_writer_free(&r.text);
        }
        lk_error err = {0}; /* byte by byte */
        lk_tool_parser *p;
        r = (result){0};
        CHECK_OK(lk_tool_parser_create(&p, w->format, false, &err), &err);
        for (size_t k = 0; k < size; k++) {
            assert_true(lk_tool_parser_push(p, w->written + k, 1, false));
            drain(p, &r);
        }
        assert_true(lk_tool_parser_push(p, "", 0, true));
        drain(p, &r);
        check_row(w, &r, size + 1);
        lk_writer_free(&r.text);
        lk_tool_parser_destroy(p);
        one_call(w->format, w->written, size, 0, true, &r);
        assert_int_equal(r.n, w->calls[0].name != NULL);
        lk_writer_free(&r.text);
    }
}

/* Random texts of the pieces that calls are made of: the same whole and byte by byte. */
static void test_random(void **state)
{
    (void)state;
    static const char *const pieces[] = {"<tool_call>",
                                         "</tool_call>",
                                         "[TOOL_CALLS]",
                                         "<|python_tag|>",
                                         "{\"name\": \"f\", ",
                                         "\"arguments\": ",
                                         "{",
                                         "}",
                                         "[",
                                         "]",
                                         ",",
                                         ";",
                                         "\"",
                                         "\\",
                                         " ",
                                         "\n",
                                         "f",
                                         "{}",
                                         "\"parameters\": {}",
                                         "x",
                                         "[ARGS]"};
    check_random random = {5};
    for (int round = 0; round < 3000; round++) {
        char text[600] = "";
        int n = 1 + (int)(check_random_u64(&random) % 14);
        for (int i = 0; i < n; i++) strcat(text, pieces[check_random_u64(&random) % (sizeof pieces / sizeof *pieces)]);
        lk_tool_format format = LK_TOOLS_HERMES + (lk_tool_format)(check_random_u64(&random) % 3);
        size_t size = strlen(text);
        lk_error err = {0};
        lk_tool_parser *p[2];
        lk_tool_event e;
        lk_writer all[2] = {{0}, {0}};
        for (int k = 0; k < 2; k++) {
            CHECK_OK(lk_tool_parser_create(&p[k], format, false, &err), &err);
            for (size_t i = 0; i <= size; i += k ? 1 : size + 1) {
                bool last = !k || i == size;
                assert_true(lk_tool_parser_push(p[k], text + i, k ? !last : size, last));
                while (lk_tool_parser_next(p[k], &e)) {
                    if (e.call) lk_writer_printf(&all[k], "\x01%s\x02", e.name);
                    lk_writer_add(&all[k], e.text, e.size);
                    if (e.call) lk_writer_string(&all[k], "\x03");
                }
            }
        }
        if (strcmp(all[0].data ? all[0].data : "", all[1].data ? all[1].data : ""))
            fail_msg("'%s': whole '%s', byte by byte '%s'", text, all[0].data, all[1].data);
        for (int k = 0; k < 2; k++) {
            lk_tool_parser_destroy(p[k]);
            lk_writer_free(&all[k]);
        }
    }
}

static void test_names(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tool_format format;
    CHECK_OK(lk_tool_format_find(&format, "llama3_json", &err), &err);
    assert_int_equal(format, L);
    CHECK_FAILS(lk_tool_format_find(&format, "pythonic", &err), LK_ERR_ARGUMENT, "hermes, llama3_json and mistral", &err);
}

/* ------------------------------------------------------------------------------------------------ through the server */

#define CHAT      "/v1/chat/completions"
#define TOOLS     ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_time\",\"parameters\":{\"type\":\"object\"}}}]"
#define ASK(more) "{\"model\":\"chat_a\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":0" more "}"

/* The engine's backend, whose every request draws these tokens. */
static struct {
    lk_ops ops;
    const lk_ops *real;
    int32_t *ids;
    int64_t n;
    int32_t end;
} dictated;

static lk_status dictate(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results)
{
    LK_TRY(dictated.real->sample(be, logits, requests, results));
    for (int64_t r = 0; r < logits->rows; r++) {
        int64_t at = (int64_t)requests[r].counter;
        results[r].token = at < dictated.n ? dictated.ids[at] : dictated.end;
    }
    return LK_OK;
}

static http_fixture f;

static int start(void **state)
{
    (void)state;
    lk_server_options options;
    lk_server_options_default(&options);
    options.port = 0;
    options.tool_call_parser = "hermes";
    http_fixture_start(&f, NULL, &options);
    dictated.real = f.be->ops;
    dictated.ops = *f.be->ops;
    dictated.ops.sample = dictate;
    f.be->ops = &dictated.ops;
    dictated.end = lk_chat_end_of_turn(f.chat) >= 0 ? lk_chat_end_of_turn(f.chat) : lk_tokenizer_eos(f.tk);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    f.be->ops = dictated.real;
    http_fixture_stop(&f);
    free(dictated.ids);
    return 0;
}

static void let_it_write(const char *text)
{
    lk_error err = {0};
    free(dictated.ids);
    dictated.ids = NULL;
    CHECK_OK(lk_tokenizer_encode(f.tk, text, strlen(text), 0, &dictated.ids, &dictated.n, &err), &err);
}

static cJSON *post(const char *body)
{
    http_reply r = http_post(f.port, CHAT, body);
    if (r.status != 200) fail_msg("%d %s", r.status, r.body);
    cJSON *json = http_json(&r);
    http_reply_free(&r);
    return json;
}

static void test_whole(void **state)
{
    (void)state;
    let_it_write("I look. " CALL("get_time", "{\"zone\": \"CET\"}") CALL("f", "{}"));
    cJSON *json = post(ASK(TOOLS ",\"n\":2"));
    for (int i = 0; i < 2; i++) {
        char path[80];
        snprintf(path, sizeof path, "choices.%d.finish_reason", i);
        assert_string_equal(json_string(json, path), "tool_calls");
        snprintf(path, sizeof path, "choices.%d.message.content", i);
        assert_string_equal(json_string(json, path), "I look. ");
        snprintf(path, sizeof path, "choices.%d.message.tool_calls.0.function.name", i);
        assert_string_equal(json_string(json, path), "get_time");
        snprintf(path, sizeof path, "choices.%d.message.tool_calls.0.function.arguments", i);
        assert_string_equal(json_string(json, path), "{\"zone\": \"CET\"}");
        snprintf(path, sizeof path, "choices.%d.message.tool_calls.1.function.name", i);
        assert_string_equal(json_string(json, path), "f");
        snprintf(path, sizeof path, "choices.%d.message.tool_calls.1.type", i);
        assert_string_equal(json_string(json, path), "function");
    }
    const char *a = json_string(json, "choices.0.message.tool_calls.0.id"), *b = json_string(json, "choices.0.message.tool_calls.1.id");
    assert_true(!strncmp(a, "call_", 5) && strlen(a) == 29 && strcmp(a, b) != 0);
    cJSON_Delete(json);
    json = post(ASK(TOOLS ",\"parallel_tool_calls\":false"));
    assert_non_null(json_at(json, "choices.0.message.tool_calls.0"));
    assert_null(json_at(json, "choices.0.message.tool_calls.1"));
    cJSON_Delete(json);
    /* Nothing beside a call: no content. Cut off in the middle of one: text, and its end says why. */
    let_it_write(CALL("f", "{\"x\": 1}"));
    json = post(ASK(TOOLS));
    assert_true(cJSON_IsNull(json_at(json, "choices.0.message.content")));
    cJSON_Delete(json);
    json = post(ASK(TOOLS ",\"max_tokens\":5"));
    assert_string_equal(json_string(json, "choices.0.finish_reason"), "length");
    assert_int_equal(strncmp(json_string(json, "choices.0.message.content"), "<tool_call>", 5), 0);
    assert_null(json_at(json, "choices.0.message.tool_calls"));
    cJSON_Delete(json);
    /* Without tools, or with none of them wanted, it is text. */
    static const char *const plain[] = {ASK(""), ASK(TOOLS ",\"tool_choice\":\"none\"")};
    for (int i = 0; i < 2; i++) {
        json = post(plain[i]);
        assert_string_equal(json_string(json, "choices.0.message.content"), CALL("f", "{\"x\": 1}"));
        assert_string_equal(json_string(json, "choices.0.finish_reason"), "stop");
        assert_null(json_at(json, "choices.0.message.tool_calls"));
        cJSON_Delete(json);
    }
    http_reply r = http_post(f.port, CHAT, ASK(TOOLS ",\"tool_choice\":\"required\""));
    assert_int_equal(r.status, 400);
    assert_non_null(strstr(r.body, "tool_choice"));
    http_reply_free(&r);
}

static void test_stream(void **state)
{
    (void)state;
    let_it_write("Well: " CALL("get_time", "{\"zone\": \"CET\"}") "\n" CALL("f", "{}"));
    http_reply r = http_post(f.port, CHAT, ASK(TOOLS ",\"stream\":true,\"logprobs\":true,\"stream_options\":{\"include_usage\":true}"));
    assert_int_equal(r.status, 200);
    char text[100] = "", finish[20] = "";
    int calls = 0, logprobs = 0;
    for (const char *at = r.body; (at = strstr(at, "data: {")); at += 6) {
        const char *end = strstr(at, "\n\n");
        lk_error err = {0};
        cJSON *json;
        assert_non_null(end);
        CHECK_OK(lk_json_parse(&json, at + 6, (size_t)(end - at - 6), "event", &err), &err);
        const cJSON *content = json_at(json, "choices.0.delta.content"), *call = json_at(json, "choices.0.delta.tool_calls.0");
        const cJSON *why = json_at(json, "choices.0.finish_reason");
        if (cJSON_IsString(content)) strcat(text, content->valuestring);
        if (call) {
            static const char *const want[2][2] = {{"get_time", "{\"zone\": \"CET\"}"}, {"f", "{}"}};
            assert_int_equal(json_number(call, "index"), calls);
            assert_string_equal(json_string(call, "function.name"), want[calls][0]);
            assert_string_equal(json_string(call, "function.arguments"), want[calls][1]);
            assert_string_equal(json_string(call, "type"), "function");
            assert_int_equal(strncmp(json_string(call, "id"), "call_", 5), 0);
            calls++;
        }
        logprobs += cJSON_GetArraySize(json_at(json, "choices.0.logprobs.content"));
        if (cJSON_IsString(why)) strcpy(finish, why->valuestring);
        cJSON_Delete(json);
    }
    assert_string_equal(text, "Well: ");
    assert_string_equal(finish, "tool_calls");
    assert_int_equal(calls, 2);
    assert_int_equal(logprobs, dictated.n); /* of every token, also of those that became calls */
    assert_non_null(strstr(r.body, "data: [DONE]"));
    http_reply_free(&r);
}

static void test_wrong_option(void **state)
{
    (void)state;
    lk_server_options options;
    lk_error err = {0};
    lk_server *server;
    lk_server_options_default(&options);
    options.port = 0;
    options.tool_call_parser = "gpt";
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_ARGUMENT, "'gpt'", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),  cmocka_unit_test(test_random), cmocka_unit_test(test_names),
        cmocka_unit_test(test_whole), cmocka_unit_test(test_stream), cmocka_unit_test(test_wrong_option),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
