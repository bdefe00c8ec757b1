/* A raw HTTP client that can also misbehave, and a server over the tiny model of tests/golden.
 *
 *     http_fixture f;
 *     http_fixture_start(&f, NULL, NULL);
 *     http_reply r = http_post(f.port, "/v1/chat/completions", body);
 *     assert_int_equal(r.status, 200);  cJSON *json = http_json(&r);
 *     http_reply_free(&r);
 *     http_fixture_stop(&f);
 *
 * Everything has a time limit; passing it fails the test. */
#ifndef LK_TESTS_HTTP_CLIENT_H
#define LK_TESTS_HTTP_CLIENT_H

#include <cjson/cJSON.h>

#include "serve/http.h"

typedef struct http_reply {
    int status; /* 0: the connection was closed without a reply */
    char *head; /* status line and headers */
    char *body; /* without the chunks' frames; ends in a zero */
    size_t size;
    bool whole; /* the body ended as announced, not by the connection's end */
} http_reply;

int http_connect(int port);
void http_write(int s, const void *bytes, size_t size); /* a closed connection is no failure: the reply tells */
void http_write_text(int s, const char *text);
/* Sends "METHOD path" with the headers (each ended by \r\n; may be "") and the body with its length, unless body is NULL. */
void http_send(int s, const char *method, const char *path, const char *headers, const char *body);
http_reply http_read(int s); /* one reply; leaves the connection open */
/* Reads until the bytes so far contain text; returns them (free). For looking into a stream that goes on. */
char *http_read_until(int s, const char *text);

http_reply http_call(int port, const char *method, const char *path, const char *headers, const char *body);
http_reply http_post(int port, const char *path, const char *body); /* as JSON */
http_reply http_get(int port, const char *path);
void http_reply_free(http_reply *r);
/* Value of a reply's header in a buffer of the caller's; "" when absent. */
const char *http_header(const http_reply *r, const char *name, char *value, size_t size);
cJSON *http_json(const http_reply *r); /* fails the test when the body is not JSON */
/* Text, by dotted path: "choices.0.message.content". Fails the test when absent. */
const char *json_string(const cJSON *json, const char *path);
double json_number(const cJSON *json, const char *path);
const cJSON *json_at(const cJSON *json, const char *path); /* NULL when absent */

/* A stream taken apart: the texts of a choice joined, its finish reason, and checks of the shape. */
typedef struct http_stream {
    char *text; /* of choice 0 */
    char finish[16];
    int n_chunks, n_text_chunks;
    bool role_first, done_last;
    int64_t completion_tokens; /* from the usage chunk; -1: none */
    bool usage_null;           /* on all the other chunks there was "usage": null */
} http_stream;
http_stream http_stream_parse(const char *body);
void http_stream_free(http_stream *s);

typedef struct http_fixture {
    lk_backend *be;
    lk_model *model;
    lk_tokenizer *tk;
    lk_chat *chat;
    lk_engine *engine;
    lk_server *server;
    int port;
} http_fixture;

/* The base is called chat-tiny; the adapters chat_a and chat_b are loaded. NULL options: defaults with a free port. */
void http_fixture_start(http_fixture *f, const lk_engine_options *engine, const lk_server_options *server);
void http_fixture_stop(http_fixture *f);

#endif
