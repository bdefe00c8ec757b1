/* Bodies to requests, stop strings over cut-up text, JSON text, metrics: the pure parts of the HTTP face. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "serve/api_keys.h"
#include "serve/metrics.h"
#include "serve/openai.h"
#include "serve/text_gate.h"
#include "tests/check.h"

static const lk_openai_limits limits = {.vocab = 1000};

static lk_status parse(lk_openai_request *q, lk_openai_kind kind, const char *body, lk_api_error *e)
{
    memset(e, 0, sizeof *e);
    return lk_openai_parse(q, kind, body, strlen(body), &limits, e);
}

/* ------------------------------------------------------------------------------------------------ what is accepted */

static void defaults(void **state)
{
    (void)state;
    lk_openai_request q;
    lk_api_error e;
    assert_int_equal(parse(&q, LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", &e), LK_OK);
    assert_string_equal(q.model, "m");
    assert_int_equal(cJSON_GetArraySize(q.messages), 1);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(q.messages->child, "role")), "user");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(q.messages->child, "content")), "hi");
    assert_null(q.tools);
    assert_true(q.sampling.temperature == 1.0f && q.sampling.top_p == 1.0f && q.sampling.repetition_penalty == 1.0f);
    assert_int_equal(q.sampling.max_tokens, 0);
    assert_int_equal(q.sampling.n_logprobs, -1);
    assert_int_equal(q.n, 1);
    assert_false(q.stream || q.has_seed || q.logprobs || q.include_usage);
    assert_true(q.skip_special_tokens && q.generation_prompt);
    lk_openai_request_free(&q);
    assert_int_equal(parse(&q, LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":\"hi\"}", &e), LK_OK);
    assert_int_equal(q.sampling.max_tokens, 16);
    lk_openai_request_free(&q);
}

static void every_parameter(void **state)
{
    (void)state;
    lk_openai_request q;
    lk_api_error e;
    const char *body =
        "{\"model\":\"acme@2\",\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\","
        "\"text\":\"b\"}]},"
        "{\"role\":\"assistant\",\"content\":\"c\",\"refusal\":null,\"tool_calls\":null,\"annotations\":[],\"name\":\"x\"}],"
        "\"temperature\":0.5,\"top_p\":0.25,\"min_p\":0.125,\"top_k\":-1,\"repetition_penalty\":1.5,\"presence_penalty\":-2,\"frequency_"
        "penalty\":2,"
        "\"seed\":-3,\"n\":4,\"stop\":[\"x\",\"yy\"],\"stop_token_ids\":[5,6],\"ignore_eos\":true,\"logit_bias\":{\"7\":-100,\"0\":1.5},"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"include_obfuscation\":false},\"logprobs\":true,\"top_logprobs\":20,"
        "\"max_completion_tokens\":9,\"max_tokens\":9,\"min_tokens\":2,\"skip_special_tokens\":false,\"response_format\":{\"type\":"
        "\"text\"},"
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":\"none\",\"documents\":[{\"text\":\"t\"}],"
        "\"chat_template_kwargs\":{\"enable_thinking\":false},\"modalities\":[\"text\"],\"audio\":null,\"unknown_but_null\":null,"
        "\"user\":\"u\",\"metadata\":{\"a\":\"b\"},\"store\":false,\"service_tier\":\"auto\",\"parallel_tool_calls\":true}";
    if (parse(&q, LK_OPENAI_CHAT, body, &e)) fail_msg("%s", e.message);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(q.messages->child, "role")), "developer"); /* the template's to know */
    assert_int_equal(cJSON_GetArraySize(q.messages), 2);
    assert_null(q.tools);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(q.variables, "enable_thinking")));
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(q.documents->child, "text")), "t");
    assert_true(q.sampling.temperature == 0.5f && q.sampling.top_p == 0.25f && q.sampling.min_p == 0.125f);
    assert_int_equal(q.sampling.top_k, 0);
    assert_true(q.sampling.repetition_penalty == 1.5f && q.sampling.presence_penalty == -2.0f && q.sampling.frequency_penalty == 2.0f);
    assert_true(q.has_seed && q.sampling.seed == (uint64_t)-3);
    assert_int_equal(q.n, 4);
    assert_int_equal(q.n_stops, 2);
    assert_string_equal(q.stops[1], "yy");
    assert_int_equal(q.sampling.n_stop_ids, 2);
    assert_int_equal(q.sampling.stop_ids[1], 6);
    assert_int_equal(q.sampling.n_bias, 2);
    assert_int_equal(q.sampling.bias_ids[0], 7);
    assert_true(q.sampling.bias[0] == -100.0f && q.sampling.bias[1] == 1.5f);
    assert_true(q.sampling.ignore_eos && q.stream && q.include_usage && q.logprobs && !q.skip_special_tokens);
    assert_int_equal(q.sampling.n_logprobs, 20);
    assert_int_equal(q.sampling.max_tokens, 9);
    assert_int_equal(q.sampling.min_tokens, 2);
    lk_openai_request_free(&q);
}

static void prompts(void **state)
{
    (void)state;
    lk_openai_request q;
    lk_api_error e;
    assert_int_equal(parse(&q, LK_OPENAI_COMPLETION,
                           "{\"model\":\"m\",\"prompt\":[\"a\",\"\",\"c\"],\"logprobs\":0,\"best_of\":1,\"echo\":false,\"suffix\":\"\"}",
                           &e),
                     LK_OK);
    assert_int_equal(q.n_prompts, 3);
    assert_string_equal(q.prompts[2].text, "c");
    assert_int_equal(q.sampling.n_logprobs, 0);
    lk_openai_request_free(&q);
    assert_int_equal(parse(&q, LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,2,999]}", &e), LK_OK);
    assert_int_equal(q.n_prompts, 1);
    assert_null(q.prompts[0].text);
    assert_int_equal(q.prompts[0].n_ids, 3);
    assert_int_equal(q.prompts[0].ids[2], 999);
    lk_openai_request_free(&q);
    assert_int_equal(parse(&q, LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[[1],[2,3]]}", &e), LK_OK);
    assert_int_equal(q.n_prompts, 2);
    assert_int_equal(q.prompts[1].n_ids, 2);
    lk_openai_request_free(&q);
    assert_int_equal(parse(&q, LK_OPENAI_TOKENIZE, "{\"prompt\":\"a\",\"add_special_tokens\":false,\"return_token_strs\":true}", &e),
                     LK_OK);
    assert_false(q.add_special_tokens);
    assert_true(q.token_strings);
    lk_openai_request_free(&q);
    assert_int_equal(parse(&q, LK_OPENAI_DETOKENIZE, "{\"tokens\":[]}", &e), LK_OK);
    lk_openai_request_free(&q);
}

/* ------------------------------------------------------------------------------------------------ what is refused */

#define MESSAGES "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define PROMPT   "\"model\":\"m\",\"prompt\":\"hi\""

static const struct refusal {
    lk_openai_kind kind;
    const char *body, *param, *text;
} refusals[] = {
    {LK_OPENAI_CHAT, "", "", "empty"},
    {LK_OPENAI_CHAT, "{", "", "not valid JSON"},
    {LK_OPENAI_CHAT, "[1]", "", "must be a JSON object"},
    {LK_OPENAI_CHAT, "{} x", "", "not valid JSON"},
    {LK_OPENAI_CHAT, "{\"model\":\"\xff\"}", "", "not valid UTF-8"},
    {LK_OPENAI_CHAT, "{\"model\":\"a\\u0000b\"}", "", "u0000"},
    {LK_OPENAI_CHAT, "{\"model\":\"a\",\"model\":\"b\"}", "", "twice"},
    {LK_OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "model", "missing"},
    {LK_OPENAI_CHAT, "{\"model\":3}", "model", "name"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\"}", "messages", "missing"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[]}", "messages", "at least one"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":\"hi\"}", "messages", "array"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[1]}", "messages[0]", "object"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"content\":\"hi\"}]}", "messages[0].role", "must be"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"toll\",\"content\":\"hi\"}]}", "messages[0].role", "\"toll\""},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "string"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":7}]}",
     "messages[1].content", "string"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "messages[0].content", "empty"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
     "messages[0].content[0]", "image_url"},
    {LK_OPENAI_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":[{}]}]}",
     "messages[0].tool_calls[0]", "function"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"temperature\":2.5}", "temperature", "from 0 to 2"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"temperature\":\"1\"}", "temperature", "number"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"temperature\":1e999}", "temperature", "from 0 to 2"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"top_p\":3}", "top_p", "from 0 to 1"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"top_k\":1.5}", "top_k", "whole"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"n\":17}", "n", "from 1 to 16"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"n\":0}", "n", "from 1"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"max_tokens\":-1}", "max_tokens", "from 1"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"max_tokens\":5,\"max_completion_tokens\":6}", "max_tokens", "differ"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"max_tokens\":5,\"min_tokens\":6}", "min_tokens", "larger"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"seed\":1.5}", "seed", "whole"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"seed\":1e300}", "seed", "2^53"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stop\":\"\"}", "stop", "empty"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stop\":[1]}", "stop", "strings"},
    {LK_OPENAI_CHAT,
     "{" MESSAGES ",\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]}",
     "stop", "at most 16"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stop_token_ids\":[1000]}", "stop_token_ids", "0 to 999"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logit_bias\":{\"x\":1}}", "logit_bias", "\"x\""},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logit_bias\":{\"1000\":1}}", "logit_bias", "999"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logit_bias\":{\"3\":101}}", "logit_bias", "100"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logit_bias\":[]}", "logit_bias", "object"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stream\":1}", "stream", "true or false"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stream_options\":{\"include_usage\":true}}", "stream_options", "stream"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"stream\":true,\"stream_options\":{\"x\":true}}", "stream_options", "x"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logprobs\":3}", "logprobs", "true or false"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"top_logprobs\":3}", "top_logprobs", "logprobs"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", "20"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"response_format\":{\"type\":\"json_object\"}}", "response_format", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"tools\":[{\"type\":\"function\"}]}", "tools[0]", "name"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"tools\":[{\"type\":\"web\"}]}", "tools[0]", "function"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"functions\":[{\"name\":\"f\"}]}", "functions", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"documents\":[3]}", "documents", "object"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"chat_template_kwargs\":[]}", "chat_template_kwargs", "object"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"tool_choice\":\"required\"}", "tool_choice", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"functions\":[{}]}", "functions", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"modalities\":[\"audio\"]}", "modalities", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"echo\":true}", "echo", "not supported"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"temprature\":1}", "temprature", "not a parameter"},
    {LK_OPENAI_CHAT, "{" MESSAGES ",\"prompt\":\"x\"}", "prompt", "not a parameter"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\"}", "prompt", "missing"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[]}", "prompt", "must be"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[[]]}", "prompt[0]", "empty"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,-1]}", "prompt", "prompt[1]"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "prompt", "prompt[1]"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",[1]]}", "prompt[1]", "must be"},
    {LK_OPENAI_COMPLETION, "{\"model\":\"m\",\"prompt\":[1.5]}", "prompt", "token id"},
    {LK_OPENAI_COMPLETION, "{" PROMPT ",\"suffix\":\"x\"}", "suffix", "not supported"},
    {LK_OPENAI_COMPLETION, "{" PROMPT ",\"best_of\":3}", "best_of", "not supported"},
    {LK_OPENAI_COMPLETION, "{" PROMPT ",\"logprobs\":true}", "logprobs", "whole number"},
    {LK_OPENAI_COMPLETION, "{" PROMPT ",\"messages\":[]}", "messages", "not a parameter"},
    {LK_OPENAI_TOKENIZE, "{}", "prompt", "either"},
    {LK_OPENAI_TOKENIZE, "{\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "prompt", "either"},
    {LK_OPENAI_TOKENIZE, "{\"prompt\":[1]}", "prompt", "string"},
    {LK_OPENAI_TOKENIZE, "{\"prompt\":\"a\",\"temperature\":1}", "temperature", "not a parameter"},
    {LK_OPENAI_DETOKENIZE, "{}", "tokens", "missing"},
    {LK_OPENAI_DETOKENIZE, "{\"tokens\":\"a\"}", "tokens", "array"},
};

static void refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *r = &refusals[i];
        lk_openai_request q;
        lk_api_error e;
        if (!parse(&q, r->kind, r->body, &e)) fail_msg("row %zu accepted: %s", i, r->body);
        if (e.http != 400 || strcmp(e.param, r->param) || !strstr(e.message, r->text))
            fail_msg("row %zu: %s\n  got %d param '%s': %s\n  want 400 param '%s': ...%s...", i, r->body, e.http, e.param, e.message,
                     r->param, r->text);
        lk_openai_request_free(&q);
    }
}

static void bombs(void **state)
{
    (void)state;
    lk_openai_request q;
    lk_api_error e;
    enum { DEEP = 100000, MANY = 1200000 };
    char *body = malloc(MANY + 64);
    memset(body, '[', DEEP);
    assert_int_not_equal(lk_openai_parse(&q, LK_OPENAI_CHAT, body, DEEP, &limits, &e), LK_OK);
    assert_non_null(strstr(e.message, "deeper"));
    int n = sprintf(body, "{\"model\":\"m\",\"prompt\":[0");
    while (n < MANY) n += sprintf(body + n, ",0");
    n += sprintf(body + n, "]}");
    assert_int_not_equal(lk_openai_parse(&q, LK_OPENAI_COMPLETION, body, (size_t)n, &limits, &e), LK_OK);
    assert_non_null(strstr(e.message, "more than"));
    free(body);
}

/* ------------------------------------------------------------------------------------------------ stop strings */

/* Cuts text into pieces of `step` bytes, and returns what came out. */
static bool through_gate(const char *text, size_t step, const char *const *stops, int n_stops, lk_writer *out)
{
    lk_text_gate gate;
    lk_text_gate_init(&gate, stops, n_stops);
    lk_writer_clear(out);
    lk_writer_string(out, "");
    bool matched = false;
    const char *piece;
    size_t size, length = strlen(text);
    for (size_t i = 0; i < length && !matched; i += step) {
        matched = lk_text_gate_push(&gate, text + i, step < length - i ? step : length - i, true);
        lk_text_gate_take(&gate, matched, &piece, &size);
        lk_writer_add(out, piece, size);
        assert_int_equal(lk_text_gate_position(&gate), out->size);
    }
    lk_text_gate_take(&gate, true, &piece, &size);
    lk_writer_add(out, piece, size);
    lk_text_gate_free(&gate);
    return matched;
}

static void stop_strings(void **state)
{
    (void)state;
    static const struct {
        const char *text, *stops[3];
        int n;
        const char *want;
        bool matched;
    } rows[] = {
        {"hello world", {"wor"}, 1, "hello ", true},
        {"hello wo", {"wor"}, 1, "hello wo", false},
        {"aaab", {"aab"}, 1, "a", true},
        {"abababac", {"ababac"}, 1, "ab", true},
        {"xabcd", {"abcd", "bc"}, 2, "xa", true}, /* bc is complete first */
        {"xabc", {"bc", "abc"}, 2, "x", true},    /* they end together: the longer */
        {"stop", {"stop"}, 1, "", true},
        {"one\n\ntwo", {"\n\n", "###"}, 2, "one", true},
        {"", {"a"}, 1, "", false},
        {"na\xc3\xafve \xe2\x82\xac 5", {"\xe2\x82\xac"}, 1, "na\xc3\xafve ", true},
        {"nothing to stop at", {"zz", "q"}, 2, "nothing to stop at", false},
    };
    lk_writer out = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t step = 1; step <= 8; step++) {
            bool matched = through_gate(rows[i].text, step, rows[i].stops, rows[i].n, &out);
            if (matched != rows[i].matched || strcmp(out.data, rows[i].want))
                fail_msg("row %zu, pieces of %zu: got '%s' %d want '%s' %d", i, step, out.data, matched, rows[i].want, rows[i].matched);
        }
    lk_writer_free(&out);
}

/* Before min_tokens a stop string does not count, nor one that began then. */
static void stop_strings_unarmed(void **state)
{
    (void)state;
    static const char *const stops[] = {"ab"};
    lk_text_gate gate;
    const char *piece;
    size_t size;
    lk_text_gate_init(&gate, stops, 1);
    assert_false(lk_text_gate_push(&gate, "xaba", 4, false));
    lk_text_gate_take(&gate, false, &piece, &size);
    assert_int_equal(size, 4); /* nothing of it can match any more */
    assert_false(lk_text_gate_push(&gate, "b a", 3, true));
    lk_text_gate_take(&gate, false, &piece, &size);
    assert_int_equal(size, 2);
    assert_true(lk_text_gate_push(&gate, "b", 1, true));
    lk_text_gate_take(&gate, true, &piece, &size);
    assert_int_equal(size, 0);
    lk_text_gate_free(&gate);
}

/* Random texts over two letters: whatever the cutting, the result is that of a search letter by letter. */
static void stop_strings_random(void **state)
{
    (void)state;
    check_random r = {7};
    lk_writer got = {0}, want = {0};
    for (int round = 0; round < 3000; round++) {
        char text[24], words[2][6];
        const char *stops[2] = {words[0], words[1]};
        size_t n = check_random_u64(&r) % 23;
        for (size_t i = 0; i < n; i++) text[i] = "ab"[check_random_u64(&r) % 2];
        text[n] = 0;
        for (int w = 0; w < 2; w++) {
            size_t k = 1 + check_random_u64(&r) % 5;
            for (size_t i = 0; i < k; i++) words[w][i] = "ab"[check_random_u64(&r) % 2];
            words[w][k] = 0;
        }
        bool a = through_gate(text, 1, stops, 2, &want), b = through_gate(text, 2 + check_random_u64(&r) % 9, stops, 2, &got);
        if (a != b || strcmp(want.data, got.data))
            fail_msg("round %d: '%s' stops '%s' '%s': '%s' or '%s'", round, text, words[0], words[1], want.data, got.data);
        bool occurs = strstr(text, words[0]) || strstr(text, words[1]);
        if (a != occurs || strncmp(text, want.data, want.size)) fail_msg("round %d: '%s' gave '%s'", round, text, want.data);
    }
    lk_writer_free(&got);
    lk_writer_free(&want);
}

/* ------------------------------------------------------------------------------------------------ text, errors, keys, metrics */

static void json_text(void **state)
{
    (void)state;
    lk_writer out = {0};
    lk_writer_json(&out, "a\"\\\n\x01\xc3\xa9\xff\xe2\x82", 10);
    assert_string_equal(out.data, "\"a\\\"\\\\\\n\\u0001\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    lk_writer_clear(&out);
    static const float numbers[] = {0.0f, -1.5f, 0.1f, -13.815511f, 3e-10f, 1e20f};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        lk_writer_clear(&out);
        lk_writer_float(&out, numbers[i]);
        assert_true(strtof(out.data, NULL) == numbers[i]);
    }
    lk_writer_clear(&out);
    lk_writer_float(&out, -INFINITY);
    assert_string_equal(out.data, "-9999.0");
    lk_api_error e;
    lk_api_fail_code(&e, 404, "model_not_found", "model", "no '%s'", "x\"y");
    lk_writer_clear(&out);
    lk_api_error_json(&out, &e);
    assert_string_equal(
        out.data,
        "{\"error\":{\"message\":\"no 'x\\\"y'\",\"type\":\"invalid_request_error\",\"param\":\"model\",\"code\":\"model_not_found\"}}");
    lk_api_fail(&e, 429, NULL, "busy");
    assert_int_equal(e.retry_after_s, 1);
    lk_writer_clear(&out);
    lk_api_error_json(&out, &e);
    assert_string_equal(out.data, "{\"error\":{\"message\":\"busy\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":429}}");
    lk_writer_free(&out);
}

static void api_keys(void **state)
{
    (void)state;
    char *folder = check_temporary("api_keys"), path[4200];
    lk_api_keys *keys;
    lk_error err = {0};
    snprintf(path, sizeof path, "%s/keys", folder);
    check_write_file(path, "# ours\nsk-one\n\n  sk-two  \r\n", 27);
    CHECK_OK(lk_api_keys_read(&keys, path, &err), &err);
    assert_true(lk_api_keys_accept(keys, "Bearer sk-one"));
    assert_true(lk_api_keys_accept(keys, "bearer  sk-two"));
    assert_false(lk_api_keys_accept(keys, "Bearer sk-on"));
    assert_false(lk_api_keys_accept(keys, "Bearer sk-onee"));
    assert_false(lk_api_keys_accept(keys, "Bearer "));
    assert_false(lk_api_keys_accept(keys, "Basic sk-one"));
    assert_false(lk_api_keys_accept(keys, "Bearer # ours"));
    assert_false(lk_api_keys_accept(keys, NULL));
    lk_api_keys_free(keys);
    check_write_file(path, "# nothing\n", 10);
    CHECK_FAILS(lk_api_keys_read(&keys, path, &err), LK_ERR_FORMAT, "no key", &err);
    check_write_file(path, "two words\n", 10);
    CHECK_FAILS(lk_api_keys_read(&keys, path, &err), LK_ERR_FORMAT, "line 1", &err);
    free(folder);
}

static void metrics(void **state)
{
    (void)state;
    lk_engine_stats stats = {
        .running = 3, .waiting = 2, .pages_total = 8, .pages_used = 2, .page_tokens = 16, .prompt_tokens = 100, .finished_stop = 5};
    stats.first_token.counts[0] = 2;
    stats.first_token.counts[LK_HISTOGRAM_BUCKETS] = 1;
    stats.first_token.sum = 70.5;
    lk_adapter_info adapters[3] = {
        {.name = "ac\"me", .version = 1, .resident = true, .running = 1, .bytes = 10},
        {.name = "ac\"me", .version = 2, .resident = true, .current = true, .waiting = 1, .bytes = 20},
        {.name = "out", .version = 1, .current = true, .bytes = 30},
    };
    lk_metrics_facts facts = {.model_name = "base", .base_digest = "d", .max_adapters = 4, .now_unix = 12.5};
    facts.responses[404] = 7;
    lk_writer out = {0};
    lk_metrics_write(&out, &stats, adapters, 3, &facts);
    static const char *const lines[] = {
        "\nvllm:num_requests_running{model_name=\"base\"} 3\n",
        "\nvllm:num_requests_waiting{model_name=\"base\"} 2\n",
        "\nvllm:kv_cache_usage_perc{model_name=\"base\"} 0.25\n",
        "\nvllm:prompt_tokens_total{model_name=\"base\"} 100\n",
        "\nvllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"ac\\\"me\",waiting_lora_adapters=\"ac\\\"me\"} 12.500\n",
        "\nvllm:request_success_total{model_name=\"base\",finished_reason=\"stop\"} 5\n",
        "\nvllm:time_to_first_token_seconds_bucket{model_name=\"base\",le=\"0.001\"} 2\n",
        "\nvllm:time_to_first_token_seconds_bucket{model_name=\"base\",le=\"+Inf\"} 3\n",
        "\nvllm:time_to_first_token_seconds_count{model_name=\"base\"} 3\n",
        "\nvllm:time_to_first_token_seconds_sum{model_name=\"base\"} 70.5\n",
        "\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"8\"} 1\n",
        "\nlorikeet_adapter_bytes{model_name=\"base\",adapter=\"ac\\\"me\",version=\"2\"} 20\n",
        "\nlorikeet_adapter_bytes{model_name=\"base\",adapter=\"out\",version=\"1\"} 0\n",
        "\nlorikeet_http_responses_total{code=\"404\"} 7\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(out.data, lines[i])) fail_msg("no line %s in\n%s", lines[i], out.data);
    lk_writer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(every_parameter),
        cmocka_unit_test(prompts),
        cmocka_unit_test(refused),
        cmocka_unit_test(bombs),
        cmocka_unit_test(stop_strings),
        cmocka_unit_test(stop_strings_unarmed),
        cmocka_unit_test(stop_strings_random),
        cmocka_unit_test(json_text),
        cmocka_unit_test(api_keys),
        cmocka_unit_test(metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
