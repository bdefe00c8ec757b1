/* What the server answers: shapes of replies and streams, stop strings, seeds, logprobs, adapters and their versions, against the real
 * engine over tests/golden's chat-tiny (random weights: its texts are noise, which is fine for everything here). */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "tests/check.h"
#include "tests/http_client.h"

#define HELLO  "\"messages\":[{\"role\":\"user\",\"content\":\"Hello world\"}]"
#define GREEDY "\"temperature\":0,\"ignore_eos\":true"

static http_fixture f;
static char *lazy_dir; /* adapters_dir: lazy -> chat_b, broken: not an adapter */

static int start(void **state)
{
    (void)state;
    char path[4300], *target = check_golden("adapters/chat_b");
    lk_error err = {0};
    lazy_dir = check_temporary("http_adapters");
    snprintf(path, sizeof path, "%s/lazy", lazy_dir);
    if (symlink(target, path)) return 1;
    snprintf(path, sizeof path, "%s/broken", lazy_dir);
    CHECK_OK(lk_folder_create(path, &err), &err);
    snprintf(path, sizeof path, "%s/broken/adapter_config.json", lazy_dir);
    check_write_file(path, "{\"peft_type\":", 13);
    lk_server_options options;
    lk_server_options_default(&options);
    options.port = 0;
    options.adapters_dir = lazy_dir;
    http_fixture_start(&f, NULL, &options);
    free(target);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    http_fixture_stop(&f);
    free(lazy_dir);
    return 0;
}

static char *format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
static char *format(const char *pattern, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, pattern);
    assert_true(vasprintf(&text, pattern, args) >= 0);
    va_end(args);
    return text;
}

/* The JSON of a 200 reply; frees body. */
static cJSON *ask(const char *path, char *body, http_reply *r)
{
    *r = http_post(f.port, path, body);
    if (r->status != 200) fail_msg("%s %s: %d %s", path, body, r->status, r->body);
    free(body);
    return http_json(r);
}

/* The text of choice 0. */
static char *chat_text(const char *model, const char *options)
{
    http_reply r;
    cJSON *json = ask("/v1/chat/completions", format("{\"model\":\"%s\"," HELLO ",%s}", model, options), &r);
    char *text = strdup(json_string(json, "choices.0.message.content"));
    cJSON_Delete(json);
    http_reply_free(&r);
    return text;
}

static http_stream chat_stream(const char *model, const char *options)
{
    char *body = format("{\"model\":\"%s\"," HELLO ",\"stream\":true,%s}", model, options);
    http_reply r = http_post(f.port, "/v1/chat/completions", body);
    if (r.status != 200 || !r.whole) fail_msg("%s: %d %s", body, r.status, r.body);
    http_stream s = http_stream_parse(r.body);
    http_reply_free(&r);
    free(body);
    return s;
}

/* ------------------------------------------------------------------------------------------------ shapes */

static void chat_whole(void **state)
{
    (void)state;
    char value[300];
    http_reply r;
    cJSON *json = ask("/v1/chat/completions", format("{\"model\":\"chat_a\"," HELLO "," GREEDY ",\"max_tokens\":12}"), &r);
    assert_string_equal(json_string(json, "object"), "chat.completion");
    assert_memory_equal(json_string(json, "id"), "chatcmpl-", 9);
    assert_string_equal(json_string(json, "model"), "chat_a");
    assert_string_equal(json_string(json, "choices.0.message.role"), "assistant");
    assert_true(cJSON_IsNull(json_at(json, "choices.0.message.refusal")));
    assert_true(cJSON_IsNull(json_at(json, "choices.0.logprobs")));
    assert_string_equal(json_string(json, "choices.0.finish_reason"), "length");
    assert_int_equal(json_number(json, "usage.prompt_tokens"), 18);
    assert_int_equal(json_number(json, "usage.completion_tokens"), 12);
    assert_int_equal(json_number(json, "usage.total_tokens"), 30);
    assert_int_equal(json_number(json, "usage.prompt_tokens_details.cached_tokens"), 0);
    assert_memory_equal(json_string(json, "system_fingerprint"), "lk-", 3);
    assert_memory_equal(json_string(json, "system_fingerprint") + 3, f.model->digest, 12);
    assert_string_equal(http_header(&r, "x-adapter-id", value, sizeof value), "chat_a");
    assert_string_equal(http_header(&r, "x-adapter-version", value, sizeof value), "1");
    assert_int_equal(strlen(http_header(&r, "x-adapter-digest", value, sizeof value)), 64);
    assert_string_equal(http_header(&r, "x-base-digest", value, sizeof value), f.model->digest);
    assert_string_equal(http_header(&r, "x-prompt-tokens", value, sizeof value), "18");
    assert_string_equal(http_header(&r, "x-generated-tokens", value, sizeof value), "12");
    cJSON_Delete(json);
    http_reply_free(&r);
}

static void base_names_no_adapter(void **state)
{
    (void)state;
    char value[300];
    http_reply r;
    cJSON *json = ask("/v1/completions", format("{\"model\":\"chat-tiny\",\"prompt\":\"Hello\",\"temperature\":0}"), &r);
    assert_string_equal(json_string(json, "object"), "text_completion");
    assert_memory_equal(json_string(json, "id"), "cmpl-", 5);
    assert_true(json_number(json, "usage.completion_tokens") <= 16); /* OpenAI's default */
    json_string(json, "choices.0.text");
    assert_string_equal(http_header(&r, "x-adapter-id", value, sizeof value), "");
    cJSON_Delete(json);
    http_reply_free(&r);
}

static void streams_equal_wholes(void **state)
{
    (void)state;
    static const char *const models[] = {"chat-tiny", "chat_a", "chat_b"};
    for (int i = 0; i < 3; i++) {
        char *whole = chat_text(models[i], GREEDY ",\"max_tokens\":40");
        http_stream s = chat_stream(models[i], GREEDY ",\"max_tokens\":40,\"stream_options\":{\"include_usage\":true}");
        assert_string_equal(s.text, whole);
        assert_true(s.role_first && s.done_last && s.usage_null);
        assert_string_equal(s.finish, "length");
        assert_int_equal(s.completion_tokens, 40);
        http_stream_free(&s);
        s = chat_stream(models[i], GREEDY ",\"max_tokens\":40");
        assert_string_equal(s.text, whole);
        assert_int_equal(s.completion_tokens, -1);
        http_stream_free(&s);
        free(whole);
    }
    char *body = format("{\"model\":\"chat_a\",\"prompt\":[1,2,3],\"stream\":true," GREEDY "}");
    http_reply r = http_post(f.port, "/v1/completions", body);
    http_stream s = http_stream_parse(r.body);
    assert_true(s.done_last && !s.role_first);
    assert_string_equal(s.finish, "length");
    assert_true(strstr(r.body, "\"object\":\"text_completion\"") != NULL);
    http_stream_free(&s);
    http_reply_free(&r);
    free(body);
}

/* ------------------------------------------------------------------------------------------------ stop strings */

static void stop_strings(void **state)
{
    (void)state;
    char *text = chat_text("chat_a", GREEDY ",\"max_tokens\":32");
    size_t n = strlen(text);
    int tried = 0;
    for (size_t at = 0; at + 6 < n; at += 3)
        for (size_t length = 1; length <= 5; length += 2) {
            char word[8];
            snprintf(word, sizeof word, "%.*s", (int)length, text + at);
            bool plain = true; /* whole characters, and nothing JSON would have to escape */
            for (size_t i = 0; word[i]; i++) plain &= word[i] >= 0x20 && word[i] < 0x7f && word[i] != '"' && word[i] != '\\';
            if (!plain) continue;
            char *options = format(GREEDY ",\"max_tokens\":32,\"stop\":[\"%s\",\"never there\"]", word);
            char *cut = chat_text("chat_a", options);
            http_stream s = chat_stream("chat_a", options);
            size_t want = (size_t)(strstr(text, word) - text);
            if (strlen(cut) != want || strncmp(cut, text, want) || strcmp(s.text, cut) || strcmp(s.finish, "stop"))
                fail_msg("stop '%s': '%s', streamed '%s' (%s), of '%s'", word, cut, s.text, s.finish, text);
            http_stream_free(&s);
            free(cut);
            free(options);
            tried++;
        }
    assert_true(tried > 5);
    free(text);
}

static void stop_token_ids(void **state)
{
    (void)state;
    http_reply r;
    cJSON *json =
        ask("/v1/completions", format("{\"model\":\"chat_a\",\"prompt\":[3,4,5],\"temperature\":0,\"logprobs\":0,\"max_tokens\":8}"), &r);
    int n = cJSON_GetArraySize(json_at(json, "choices.0.logprobs.tokens"));
    assert_true(n >= 3);
    cJSON_Delete(json);
    http_reply_free(&r);
    /* All of the vocabulary's first tokens as stops is too many; a bias towards one token and that as a stop ends at once. */
    json =
        ask("/v1/completions",
            format("{\"model\":\"chat_a\",\"prompt\":[3,4,5],\"temperature\":0,\"logit_bias\":{\"65\":100},\"stop_token_ids\":[65]}"), &r);
    assert_string_equal(json_string(json, "choices.0.text"), "");
    assert_string_equal(json_string(json, "choices.0.finish_reason"), "stop");
    cJSON_Delete(json);
    http_reply_free(&r);
}

/* ------------------------------------------------------------------------------------------------ sampling */

static void several_choices(void **state)
{
    (void)state;
    http_reply r;
    cJSON *json =
        ask("/v1/chat/completions", format("{\"model\":\"chat_b\"," HELLO ",\"max_tokens\":12,\"n\":3,\"seed\":40,\"logprobs\":true}"), &r);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "choices")), 3);
    for (int i = 0; i < 3; i++) {
        char path[64], options[64];
        snprintf(options, sizeof options, "\"max_tokens\":12,\"seed\":%d", 40 + i);
        snprintf(path, sizeof path, "choices.%d.message.content", i);
        char *alone = chat_text("chat_b", options);
        assert_string_equal(json_string(json, path), alone);
        snprintf(path, sizeof path, "choices.%d.index", i);
        assert_int_equal(json_number(json, path), i);
        free(alone);
    }
    assert_int_equal(json_number(json, "usage.prompt_tokens"), 18);
    cJSON_Delete(json);
    http_reply_free(&r);
    /* Two prompts, two choices each, streamed: four indices, each with an end. */
    char *body = format("{\"model\":\"chat_b\",\"prompt\":[\"one\",\"two\"],\"n\":2,\"stream\":true,\"max_tokens\":5}");
    r = http_post(f.port, "/v1/completions", body);
    assert_int_equal(r.status, 200);
    for (int i = 0; i < 4; i++) {
        char index[32];
        snprintf(index, sizeof index, "\"index\":%d,", i);
        assert_non_null(strstr(r.body, index));
    }
    int ends = 0;
    for (const char *p = r.body; (p = strstr(p, "\"finish_reason\":\"")); p++) ends++;
    assert_int_equal(ends, 4);
    http_reply_free(&r);
    free(body);
}

static void logprobs(void **state)
{
    (void)state;
    http_reply r;
    cJSON *json = ask("/v1/chat/completions",
                      format("{\"model\":\"chat_a\"," HELLO "," GREEDY ",\"max_tokens\":10,\"logprobs\":true,\"top_logprobs\":3}"), &r);
    const cJSON *content = json_at(json, "choices.0.logprobs.content");
    assert_int_equal(cJSON_GetArraySize(content), 10);
    size_t n_bytes = 0;
    for (const cJSON *t = content->child; t; t = t->next) {
        assert_int_equal(cJSON_GetArraySize(json_at(t, "top_logprobs")), 3);
        assert_true(json_number(t, "logprob") <= 0);
        assert_true(json_number(t, "logprob") == json_number(t, "top_logprobs.0.logprob")); /* greedy */
        assert_true(json_number(t, "top_logprobs.0.logprob") >= json_number(t, "top_logprobs.2.logprob"));
        json_string(t, "token");
        n_bytes += (size_t)cJSON_GetArraySize(json_at(t, "bytes"));
    }
    assert_true(n_bytes >= 10);
    cJSON_Delete(json);
    http_reply_free(&r);
    json = ask("/v1/completions", format("{\"model\":\"chat_a\",\"prompt\":\"Hello\"," GREEDY ",\"max_tokens\":6,\"logprobs\":2}"), &r);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "choices.0.logprobs.tokens")), 6);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "choices.0.logprobs.token_logprobs")), 6);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "choices.0.logprobs.top_logprobs.0")), 2);
    assert_int_equal(json_number(json, "choices.0.logprobs.text_offset.0"), 0);
    cJSON_Delete(json);
    http_reply_free(&r);
    /* In a stream they come with their text: as many in all. */
    char *body = format("{\"model\":\"chat_a\"," HELLO "," GREEDY ",\"max_tokens\":10,\"logprobs\":true,\"stream\":true}");
    r = http_post(f.port, "/v1/chat/completions", body);
    int n = 0;
    for (const char *p = r.body; (p = strstr(p, "\"top_logprobs\":[]")); p++) n++;
    assert_int_equal(n, 10);
    http_reply_free(&r);
    free(body);
}

/* ------------------------------------------------------------------------------------------------ small endpoints */

static void models(void **state)
{
    (void)state;
    http_reply r = http_get(f.port, "/v1/models");
    cJSON *json = http_json(&r);
    assert_string_equal(json_string(json, "object"), "list");
    assert_string_equal(json_string(json, "data.0.id"), "chat-tiny");
    assert_true(cJSON_IsNull(json_at(json, "data.0.parent")));
    assert_int_equal(json_number(json, "data.0.max_model_len"), 512);
    assert_string_equal(json_string(json, "data.1.id"), "chat_a");
    assert_string_equal(json_string(json, "data.1.parent"), "chat-tiny");
    assert_non_null(strstr(json_string(json, "data.1.root"), "adapters/chat_a"));
    cJSON_Delete(json);
    http_reply_free(&r);
    r = http_get(f.port, "/v1/models/chat_b");
    json = http_json(&r);
    assert_int_equal(r.status, 200);
    assert_string_equal(json_string(json, "id"), "chat_b");
    assert_string_equal(json_string(json, "object"), "model");
    cJSON_Delete(json);
    http_reply_free(&r);
    r = http_get(f.port, "/v1/models/no%2Fsuch");
    assert_int_equal(r.status, 404);
    assert_non_null(strstr(r.body, "no/such"));
    http_reply_free(&r);
}

static void small_endpoints(void **state)
{
    (void)state;
    http_reply r = http_get(f.port, "/health");
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    r = http_get(f.port, "/version");
    cJSON *json = http_json(&r);
    json_string(json, "version");
    cJSON_Delete(json);
    http_reply_free(&r);
    r = http_get(f.port, "/lora-adapters");
    json = http_json(&r);
    assert_int_equal(json_number(json, "1.id"), 1);
    assert_int_equal(json_number(json, "1.scale"), 1);
    assert_string_equal(json_string(json, "1.name"), "chat_b");
    assert_true(json_number(json, "1.bytes") > 1000);
    cJSON_Delete(json);
    http_reply_free(&r);
    r = http_call(f.port, "HEAD", "/health", "Connection: close\r\n", NULL);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
}

static void tokens_both_ways(void **state)
{
    (void)state;
    http_reply r;
    cJSON *json = ask("/tokenize", format("{\"model\":\"chat-tiny\",\"prompt\":\"Hello world\",\"return_token_strs\":true}"), &r);
    int n = (int)json_number(json, "count");
    assert_int_equal(json_number(json, "max_model_len"), 512);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "tokens")), n);
    assert_int_equal(cJSON_GetArraySize(json_at(json, "token_strs")), n);
    char *tokens = cJSON_PrintUnformatted(json_at(json, "tokens"));
    cJSON_Delete(json);
    http_reply_free(&r);
    json = ask("/detokenize", format("{\"tokens\":%s}", tokens), &r);
    assert_string_equal(json_string(json, "prompt"), "Hello world");
    free(tokens);
    cJSON_Delete(json);
    http_reply_free(&r);
    json = ask("/tokenize", format("{\"model\":\"chat_a\"," HELLO "}"), &r);
    assert_int_equal(json_number(json, "count"), 18);
    assert_true(cJSON_IsNull(json_at(json, "token_strs")));
    cJSON_Delete(json);
    http_reply_free(&r);
}

static double metric(const char *line_start)
{
    http_reply r = http_get(f.port, "/metrics");
    assert_int_equal(r.status, 200);
    char needle[200];
    snprintf(needle, sizeof needle, "\n%s", line_start);
    const char *at = strstr(r.body, needle);
    if (!at) fail_msg("no %s in\n%s", line_start, r.body);
    const char *value = strchr(at + 1, '}');
    double number = atof(value + 1);
    http_reply_free(&r);
    return number;
}

static void metrics(void **state)
{
    (void)state;
    double before = metric("vllm:generation_tokens_total"),
           stopped = metric("vllm:request_success_total{model_name=\"chat-tiny\",finished_reason=\"length\"");
    free(chat_text("chat_a", GREEDY ",\"max_tokens\":7"));
    assert_true(metric("vllm:generation_tokens_total") == before + 7);
    assert_true(metric("vllm:request_success_total{model_name=\"chat-tiny\",finished_reason=\"length\"") == stopped + 1);
    assert_true(metric("vllm:time_to_first_token_seconds_count") > 0);
    assert_true(metric("vllm:num_requests_running") == 0);
    assert_true(metric("lorikeet_http_responses_total{code=\"200\"") > 0);
    http_reply r = http_get(f.port, "/metrics");
    assert_non_null(strstr(r.body, "running_lora_adapters=\"chat_a,chat_b"));
    http_reply_free(&r);
}

/* ------------------------------------------------------------------------------------------------ adapters */

static http_reply control(const char *what, const char *name, const char *path, const char *more)
{
    char *body =
        path ? format("{\"lora_name\":\"%s\",\"lora_path\":\"%s\"%s}", name, path, more) : format("{\"lora_name\":\"%s\"%s}", name, more);
    char url[64];
    snprintf(url, sizeof url, "/v1/%s_lora_adapter", what);
    http_reply r = http_post(f.port, url, body);
    free(body);
    return r;
}

static void control_fails(const char *what, const char *name, const char *path, int http, const char *type, const char *text)
{
    http_reply r = control(what, name, path, "");
    cJSON *json = http_json(&r);
    if (r.status != http || strcmp(json_string(json, "error.type"), type) || !strstr(json_string(json, "error.message"), text))
        fail_msg("%s %s: %d %s", what, name, r.status, r.body);
    assert_int_equal(json_number(json, "error.code"), http);
    assert_true(cJSON_IsNull(json_at(json, "error.param")));
    cJSON_Delete(json);
    http_reply_free(&r);
}

static void load_and_unload(void **state)
{
    (void)state;
    char *path = check_golden("adapters/chat_a"), broken[4300];
    snprintf(broken, sizeof broken, "%s/broken", lazy_dir);
    http_reply r = control("load", "third", path, "");
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "Success: LoRA adapter 'third' added successfully.");
    http_reply_free(&r);
    char *a = chat_text("chat_a", GREEDY ",\"max_tokens\":12"), *third = chat_text("third", GREEDY ",\"max_tokens\":12"),
         *named = chat_text("chat-tiny:third", GREEDY ",\"max_tokens\":12"), *versioned = chat_text("third@1", GREEDY ",\"max_tokens\":12");
    assert_string_equal(a, third);
    assert_string_equal(a, named);
    assert_string_equal(a, versioned);
    free(a), free(third), free(named), free(versioned);
    control_fails("load", "third", path, 400, "InvalidUserInput", "loaded already");
    control_fails("load", "", path, 400, "InvalidUserInput", "lora_name");
    control_fails("load", "x", "", 400, "InvalidUserInput", "lora_path");
    control_fails("load", "chat-tiny", path, 400, "InvalidUserInput", "base");
    control_fails("load", "a/b", path, 400, "InvalidUserInput", "a/b");
    control_fails("load", "x", "/no/such/folder", 404, "NotFoundError", "/no/such/folder");
    control_fails("load", "x", LK_SOURCE_DIR "/tests", 404, "NotFoundError", "adapter_config.json");
    control_fails("load", "x", broken, 400, "InvalidUserInput", "broken");
    char *stranger = check_golden("adapters/r8_all_qwen3"); /* of another model */
    control_fails("load", "x", stranger, 400, "InvalidUserInput", "");
    free(stranger);
    r = control("unload", "third", NULL, "");
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "Success: LoRA adapter 'third' removed successfully.");
    http_reply_free(&r);
    control_fails("unload", "third", NULL, 404, "NotFoundError", "The lora adapter 'third' cannot be found.");
    control_fails("unload", "", NULL, 400, "InvalidUserInput", "lora_name");
    free(path);
}

static void unknown_models(void **state)
{
    (void)state;
    static const char *const names[] = {"nobody", "chat-tiny:nobody", "chat_a@9",  "chat-tiny:", "../chat_a",
                                        ".",      "lazy/../lazy",     "chat-tinyx"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *body = format("{\"model\":\"%s\"," HELLO "}", names[i]);
        http_reply r = http_post(f.port, "/v1/chat/completions", body);
        cJSON *json = http_json(&r);
        if (r.status != 404) fail_msg("%s: %d %s", names[i], r.status, r.body);
        assert_string_equal(json_string(json, "error.code"), "model_not_found");
        assert_string_equal(json_string(json, "error.param"), "model");
        assert_non_null(strstr(json_string(json, "error.message"), "chat-tiny, chat_a, chat_b"));
        cJSON_Delete(json);
        http_reply_free(&r);
        free(body);
    }
}

static void *ask_lazy(void *context)
{
    *(char **)context = chat_text("lazy", GREEDY ",\"max_tokens\":12");
    return NULL;
}

static void loads_on_demand(void **state)
{
    (void)state;
    enum { N = 8 };
    pthread_t threads[N];
    char *texts[N], *want = chat_text("chat_b", GREEDY ",\"max_tokens\":12");
    double loads = metric("lorikeet_adapter_loads_total");
    for (int i = 0; i < N; i++) assert_int_equal(pthread_create(&threads[i], NULL, ask_lazy, &texts[i]), 0);
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_string_equal(texts[i], want);
        free(texts[i]);
    }
    assert_true(metric("lorikeet_adapter_loads_total") == loads + 1); /* once, whoever asked */
    http_reply r = http_post(f.port, "/v1/chat/completions", "{\"model\":\"broken\"," HELLO "}");
    assert_int_equal(r.status, 400);
    assert_non_null(strstr(r.body, "broken"));
    http_reply_free(&r);
    r = control("unload", "lazy", NULL, "");
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    free(want);
}

/* A version put in place while another one's requests stream: they finish on theirs, later ones get the new. */
static void hot_swap(void **state)
{
    (void)state;
    char *old_path = check_golden("adapters/chat_a"), *new_path = check_golden("adapters/chat_b"), value[80];
    const char *options = GREEDY ",\"max_tokens\":400";
    char *old_text = chat_text("chat_a", options), *new_text = chat_text("chat_b", options);
    assert_string_not_equal(old_text, new_text);
    http_reply r = control("load", "hot", old_path, "");
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    int s = http_connect(f.port);
    char *body = format("{\"model\":\"hot\"," HELLO ",\"stream\":true,%s}", options);
    http_send(s, "POST", "/v1/chat/completions", "Content-Type: application/json\r\n", body);
    char *begun = http_read_until(s, "\"delta\":{\"content\":\"");
    r = control("load", "hot", new_path, ",\"load_inplace\":true");
    assert_int_equal(r.status, 200);
    assert_string_equal(http_header(&r, "x-adapter-version", value, sizeof value), "2");
    http_reply_free(&r);
    char *after = chat_text("hot", options);
    assert_string_equal(after, new_text);
    char *rest = http_read_until(s, "[DONE]");
    char *all = format("%s%s", begun, rest);
    assert_non_null(strstr(all, "x-adapter-version: 1"));
    /* Joined from the raw connection, chunk frames and all: take the events out line by line. */
    char *joined = calloc(1, strlen(all) + 1);
    for (char *line = strtok(all, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        cJSON *chunk = strncmp(line, "data: {", 7) ? NULL : cJSON_Parse(line + 6);
        const cJSON *content = json_at(chunk, "choices.0.delta.content");
        if (cJSON_IsString(content)) strcat(joined, content->valuestring);
        cJSON_Delete(chunk);
    }
    assert_string_equal(joined, old_text);
    r = control("unload", "hot", NULL, "");
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    close(s);
    free(joined), free(all), free(rest), free(after), free(begun), free(body);
    free(old_text), free(new_text), free(old_path), free(new_path);
}

/* ------------------------------------------------------------------------------------------------ many at once */

typedef struct caller {
    pthread_t thread;
    const char *model;
    bool stream;
    char *text;
} caller;

static void *call(void *context)
{
    caller *c = context;
    const char *options = GREEDY ",\"max_tokens\":24";
    if (c->stream)
        c->text = chat_stream(c->model, options).text;
    else
        c->text = chat_text(c->model, options);
    return NULL;
}

static void fifty_at_once(void **state)
{
    (void)state;
    enum { N = 50 };
    static const char *const names[] = {"chat-tiny", "chat_a", "chat_b"};
    char *alone[3];
    caller callers[N];
    for (int i = 0; i < 3; i++) alone[i] = chat_text(names[i], GREEDY ",\"max_tokens\":24");
    for (int i = 0; i < N; i++) {
        callers[i] = (caller){.model = names[i % 3], .stream = i % 2};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_string_equal(callers[i].text, alone[i % 3]);
        free(callers[i].text);
    }
    for (int i = 0; i < 3; i++) free(alone[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_whole),
        cmocka_unit_test(base_names_no_adapter),
        cmocka_unit_test(streams_equal_wholes),
        cmocka_unit_test(stop_strings),
        cmocka_unit_test(stop_token_ids),
        cmocka_unit_test(several_choices),
        cmocka_unit_test(logprobs),
        cmocka_unit_test(models),
        cmocka_unit_test(small_endpoints),
        cmocka_unit_test(tokens_both_ways),
        cmocka_unit_test(metrics),
        cmocka_unit_test(load_and_unload),
        cmocka_unit_test(unknown_models),
        cmocka_unit_test(loads_on_demand),
        cmocka_unit_test(hot_swap),
        cmocka_unit_test(fifty_at_once),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
