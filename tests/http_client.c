#include "tests/http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/check.h"

enum { LIMIT_S = 60 };

/* ------------------------------------------------------------------------------------------------ sockets */

int http_connect(int port)
{
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(s >= 0);
    struct timeval limit = {.tv_sec = LIMIT_S};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(s, (struct sockaddr *)&a, sizeof a)) {
        close(s);
        return -1;
    }
    return s;
}

void http_write(int s, const void *bytes, size_t size)
{
    const char *p = bytes;
    while (size) {
        ssize_t n = send(s, p, size, MSG_NOSIGNAL);
        if (n <= 0) return;
        p += n;
        size -= (size_t)n;
    }
}

void http_write_text(int s, const char *text) { http_write(s, text, strlen(text)); }

void http_send(int s, const char *method, const char *path, const char *headers, const char *body)
{
    char head[2048];
    int n = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: test\r\n%s", method, path, headers);
    if (body) n += snprintf(head + n, sizeof head - (size_t)n, "Content-Length: %zu\r\n", strlen(body));
    n += snprintf(head + n, sizeof head - (size_t)n, "\r\n");
    assert_true((size_t)n < sizeof head);
    http_write(s, head, (size_t)n);
    if (body) http_write_text(s, body);
}

typedef struct bytes {
    char *data;
    size_t size, capacity;
} bytes;

static void append(bytes *b, const char *p, size_t n)
{
    if (b->size + n + 1 > b->capacity) {
        b->capacity = (b->size + n + 1) * 2;
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    memcpy(b->data + b->size, p, n);
    b->size += n;
    b->data[b->size] = 0;
}

/* false at the end of the connection. */
static bool more(int s, bytes *b)
{
    char buffer[16384];
    ssize_t n = recv(s, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        fail_msg("nothing from the server for %d s; so far: %s", LIMIT_S, b->data ? b->data : "");
    if (n <= 0) return false;
    append(b, buffer, (size_t)n);
    return true;
}

char *http_read_until(int s, const char *text)
{
    bytes b = {0};
    append(&b, "", 0);
    while (!strstr(b.data, text))
        if (!more(s, &b)) fail_msg("the connection ended before '%s': %s", text, b.data);
    return b.data;
}

const char *http_header(const http_reply *r, const char *name, char *value, size_t size)
{
    size_t n = strlen(name);
    value[0] = 0;
    for (const char *line = r->head; line && *line; line = strstr(line, "\r\n"), line = line ? line + 2 : NULL) {
        if (strncasecmp(line, name, n) || line[n] != ':') continue;
        const char *start = line + n + 1 + strspn(line + n + 1, " ");
        snprintf(value, size, "%.*s", (int)strcspn(start, "\r"), start);
        break;
    }
    return value;
}

/* Takes the frames off in place of `raw`, reading more as needed; false when the connection ends early. */
static bool read_chunks(int s, bytes *raw, size_t at, bytes *body)
{
    for (;;) {
        char *end;
        while (!(end = strstr(raw->data + at, "\r\n")))
            if (!more(s, raw)) return false;
        size_t length = strtoul(raw->data + at, NULL, 16);
        at = (size_t)(end - raw->data) + 2;
        while (raw->size < at + length + 2)
            if (!more(s, raw)) return false;
        append(body, raw->data + at, length);
        at += length + 2;
        if (length == 0) return true;
    }
}

http_reply http_read(int s)
{
    http_reply r = {0};
    bytes raw = {0}, body = {0};
    char value[64], *end = NULL;
    append(&raw, "", 0);
    append(&body, "", 0);
    do { /* an interim "100 Continue" is not the reply */
        if (end) {
            size_t skip = (size_t)(end - raw.data) + 4;
            memmove(raw.data, raw.data + skip, raw.size - skip + 1);
            raw.size -= skip;
        }
        while (!(end = strstr(raw.data, "\r\n\r\n")))
            if (!more(s, &raw)) break;
    } while (end && !strncmp(raw.data, "HTTP/1.1 100", 12));
    if (end) {
        size_t at = (size_t)(end - raw.data) + 4;
        r.head = strndup(raw.data, at);
        r.status = atoi(raw.data + 9);
        if (!strcasecmp(http_header(&r, "Transfer-Encoding", value, sizeof value), "chunked"))
            r.whole = read_chunks(s, &raw, at, &body);
        else {
            size_t length = (size_t)atoll(http_header(&r, "Content-Length", value, sizeof value));
            while (raw.size < at + length && more(s, &raw)) {
            }
            r.whole = raw.size >= at + length;
            append(&body, raw.data + at, r.whole ? length : raw.size - at);
        }
    }
    free(raw.data);
    r.body = body.data;
    r.size = body.size;
    return r;
}

http_reply http_call(int port, const char *method, const char *path, const char *headers, const char *body)
{
    int s = http_connect(port);
    if (s < 0) return (http_reply){0};
    http_send(s, method, path, headers, body);
    http_reply r = http_read(s);
    close(s);
    return r;
}

http_reply http_post(int port, const char *path, const char *body)
{
    return http_call(port, "POST", path, "Content-Type: application/json\r\n", body);
}

http_reply http_get(int port, const char *path) { return http_call(port, "GET", path, "", NULL); }

void http_reply_free(http_reply *r)
{
    free(r->head);
    free(r->body);
    *r = (http_reply){0};
}

/* ------------------------------------------------------------------------------------------------ JSON */

cJSON *http_json(const http_reply *r)
{
    cJSON *json = cJSON_Parse(r->body);
    if (!json) fail_msg("status %d, not JSON: %s", r->status, r->body);
    return json;
}

const cJSON *json_at(const cJSON *json, const char *path)
{
    while (json && *path) {
        char key[64];
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        json = cJSON_IsArray(json) ? cJSON_GetArrayItem(json, atoi(key)) : cJSON_GetObjectItemCaseSensitive(json, key);
        path += n + (path[n] == '.');
    }
    return json;
}

static void missing(const cJSON *json, const char *path)
{
    char *text = cJSON_PrintUnformatted(json);
    fail_msg("no %s in %s", path, text);
}

const char *json_string(const cJSON *json, const char *path)
{
    const cJSON *item = json_at(json, path);
    if (!cJSON_IsString(item)) missing(json, path);
    return item->valuestring;
}

double json_number(const cJSON *json, const char *path)
{
    const cJSON *item = json_at(json, path);
    if (!cJSON_IsNumber(item)) missing(json, path);
    return item->valuedouble;
}

/* ------------------------------------------------------------------------------------------------ streams */

static void take_chunk(http_stream *s, bytes *text, const cJSON *chunk)
{
    s->n_chunks++;
    const cJSON *usage = json_at(chunk, "usage");
    if (cJSON_IsObject(usage)) {
        s->completion_tokens = (int64_t)json_number(chunk, "usage.completion_tokens");
        assert_int_equal(cJSON_GetArraySize(json_at(chunk, "choices")), 0);
        return;
    }
    s->usage_null &= cJSON_IsNull(usage);
    if (json_number(chunk, "choices.0.index") != 0) return;
    const cJSON *content = json_at(chunk, "choices.0.delta.content");
    if (!content) content = json_at(chunk, "choices.0.text");
    if (s->n_chunks == 1) s->role_first = cJSON_IsString(json_at(chunk, "choices.0.delta.role"));
    if (cJSON_IsString(content) && content->valuestring[0]) {
        append(text, content->valuestring, strlen(content->valuestring));
        s->n_text_chunks++;
    }
    const cJSON *finish = json_at(chunk, "choices.0.finish_reason");
    if (cJSON_IsString(finish)) snprintf(s->finish, sizeof s->finish, "%s", finish->valuestring);
}

http_stream http_stream_parse(const char *body)
{
    http_stream s = {.completion_tokens = -1, .usage_null = true};
    bytes text = {0};
    append(&text, "", 0);
    for (const char *at = body, *end; (end = strstr(at, "\n\n")); at = end + 2) {
        assert_false(s.done_last); /* nothing comes after [DONE] */
        if (*at == ':') continue;
        if (strncmp(at, "data: ", 6)) fail_msg("not an event: %s", at);
        if (!strncmp(at, "data: [DONE]", 12)) {
            s.done_last = true;
            continue;
        }
        cJSON *chunk = cJSON_ParseWithLength(at + 6, (size_t)(end - at - 6));
        if (!chunk) fail_msg("not JSON: %s", at);
        if (json_at(chunk, "error"))
            snprintf(s.finish, sizeof s.finish, "error");
        else
            take_chunk(&s, &text, chunk);
        cJSON_Delete(chunk);
    }
    s.text = text.data;
    return s;
}

void http_stream_free(http_stream *s) { free(s->text); }

/* ------------------------------------------------------------------------------------------------ the server */

void http_fixture_start(http_fixture *f, const lk_engine_options *engine, const lk_server_options *server)
{
    lk_error err = {0};
    lk_engine_options engine_options;
    lk_server_options server_options;
    lk_engine_options_default(&engine_options);
    lk_server_options_default(&server_options);
    server_options.port = 0;
    if (engine) engine_options = *engine;
    if (server) server_options = *server;
    char *folder = check_golden("models/chat-tiny");
    memset(f, 0, sizeof *f);
    CHECK_OK(lk_backend_open(&f->be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
    CHECK_OK(lk_model_open(&f->model, f->be, folder, &(lk_model_options){.quant = LK_QUANT_NF4}, &err), &err);
    CHECK_OK(lk_tokenizer_open(&f->tk, folder, &err), &err);
    CHECK_OK(lk_chat_open(&f->chat, f->tk, &err), &err);
    CHECK_OK(lk_engine_start(&f->engine, f->model, &engine_options, &err), &err);
    static const char *const names[] = {"chat_a", "chat_b"};
    for (int i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "adapters/%s", names[i]);
        char *path = check_golden(name);
        CHECK_OK(lk_engine_load_adapter(f->engine, names[i], path, false, NULL, &err), &err);
        free(path);
    }
    CHECK_OK(lk_server_start(&f->server, f->engine, f->tk, f->chat, &server_options, &err), &err);
    f->port = lk_server_port(f->server);
    free(folder);
}

void http_fixture_stop(http_fixture *f)
{
    lk_server_stop(f->server);
    lk_engine_stop(f->engine);
    lk_chat_close(f->chat);
    lk_tokenizer_close(f->tk);
    lk_model_close(f->model);
    lk_backend_close(f->be);
}
