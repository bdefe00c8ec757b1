/* What clients do wrong, and what the server does when it has too much or is told to stop. Real sockets, bounded in time. */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/check.h"
#include "tests/http_client.h"

#define CHAT       "/v1/chat/completions"
#define JSON       "Content-Type: application/json\r\n"
#define BODY(more) "{\"model\":\"chat_a\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"temperature\":0" more "}"
/* The first event with text; the one before it only names the role. */
#define TEXT "\"delta\":{\"content\":\""
#define LONG BODY(",\"max_tokens\":480,\"ignore_eos\":true,\"stream\":true")

static http_fixture f;

static int start(void **state)
{
    (void)state;
    lk_server_options options;
    lk_server_options_default(&options);
    options.port = 0;
    options.max_body_bytes = 64 * 1024;
    http_fixture_start(&f, NULL, &options);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    http_fixture_stop(&f);
    return 0;
}

static void pause_ms(int ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL); }

static void check_alive(void)
{
    http_reply r = http_post(f.port, CHAT, BODY(",\"max_tokens\":2"));
    if (r.status != 200) fail_msg("the server no longer answers: %d %s", r.status, r.body ? r.body : "");
    http_reply_free(&r);
}

/* ------------------------------------------------------------------------------------------------ refusals */

static void wrong_requests(void **state)
{
    (void)state;
    static const struct {
        const char *method, *path, *headers, *body;
        int status;
        const char *text;
    } rows[] = {
        {"GET", "/nothing", "", NULL, 404, "/nothing"},
        {"POST", "/v1/chat/completions/", JSON, "{}", 404, "nothing at"},
        {"GET", CHAT, "", NULL, 405, "POST"},
        {"DELETE", "/v1/models", "", NULL, 405, "GET"},
        {"POST", "/health", JSON, "{}", 405, "GET"},
        {"POST", CHAT, "", "{}", 415, "application/json"},
        {"POST", CHAT, "Content-Type: text/plain\r\n", "{}", 415, "application/json"},
        {"POST", CHAT, "Content-Type: application/json; charset=utf-8\r\n", "{}", 400, "model"},
        {"POST", CHAT, JSON, "", 400, "empty"},
        {"POST", CHAT, JSON, "{\"model\":", 400, "JSON"},
        {"POST", CHAT, JSON, "{\"model\":\"\xc3\x28\"}", 400, "UTF-8"},
        {"POST", CHAT, JSON, BODY(",\"temperature\":1"), 400, "twice"},
        {"POST", CHAT, JSON, BODY(",\"tools\":[{}]"), 400, "tools"},
        {"POST", CHAT, JSON, BODY(",\"max_tokens\":600"), 400, "context_length_exceeded"},
        {"POST", "/v1/completions", JSON, "{\"model\":\"chat_a\",\"prompt\":\"\"}", 400, "no tokens"},
        {"POST", "/v1/load_lora_adapter", JSON, "{\"lora_name\":3}", 400, "lora_name"},
        {"POST", "/v1/load_lora_adapter", JSON, "[]", 400, "object"},
        {"POST", "/tokenize", JSON, "{\"prompt\":\"a\",\"model\":\"nobody\"}", 404, "nobody"},
        {"POST", "/detokenize", JSON, "{\"tokens\":[424]}", 400, "423"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        http_reply r = http_call(f.port, rows[i].method, rows[i].path, rows[i].headers, rows[i].body);
        if (r.status != rows[i].status || !strstr(r.body, rows[i].text))
            fail_msg("row %zu: got %d %s; want %d ...%s...", i, r.status, r.body, rows[i].status, rows[i].text);
        cJSON *json = http_json(&r);
        json_string(json, "error.message");
        json_string(json, "error.type");
        assert_true(json_at(json, "error.param") && json_at(json, "error.code"));
        char value[40];
        if (r.status == 405) assert_string_equal(http_header(&r, "Allow", value, sizeof value), rows[i].text);
        cJSON_Delete(json);
        http_reply_free(&r);
    }
}

static void one_connection_many_requests(void **state)
{
    (void)state;
    int s = http_connect(f.port);
    for (int i = 0; i < 5; i++) {
        http_send(s, "POST", CHAT, JSON, i == 2 ? "{" : BODY(",\"max_tokens\":2"));
        http_reply r = http_read(s);
        assert_int_equal(r.status, i == 2 ? 400 : 200); /* a refusal does not end the connection */
        http_reply_free(&r);
    }
    close(s);
}

/* ------------------------------------------------------------------------------------------------ lies about length */

static void too_large(void **state)
{
    (void)state;
    size_t sizes[] = {64 * 1024 + 1, 300 * 1024};
    for (int i = 0; i < 2; i++) { /* read and thrown away: the refusal arrives */
        char *body = malloc(sizes[i] + 1);
        memset(body, ' ', sizes[i]);
        body[sizes[i]] = 0;
        http_reply r = http_post(f.port, CHAT, body);
        assert_int_equal(r.status, 413);
        http_reply_free(&r);
        free(body);
    }
    /* Announced as enormous: refused without a byte of it. */
    int s = http_connect(f.port);
    http_send(s, "POST", CHAT, JSON "Content-Length: 99999999999\r\n", NULL);
    http_reply r = http_read(s);
    assert_int_equal(r.status, 413);
    http_reply_free(&r);
    close(s);
    /* Not announced at all, in chunks without end. */
    s = http_connect(f.port);
    http_send(s, "POST", CHAT, JSON "Transfer-Encoding: chunked\r\n", NULL);
    char chunk[4096 + 8];
    int n = sprintf(chunk, "1000\r\n");
    memset(chunk + n, ' ', 4096);
    memcpy(chunk + n + 4096, "\r\n", 2);
    for (int i = 0; i < 400; i++) http_write(s, chunk, (size_t)n + 4096 + 2);
    r = http_read(s);
    assert_true(r.status == 0 || r.status == 413);
    http_reply_free(&r);
    close(s);
    check_alive();
}

static void chunked_body(void **state)
{
    (void)state;
    const char *body = BODY(",\"max_tokens\":2");
    char frame[32];
    int s = http_connect(f.port);
    http_send(s, "POST", CHAT, JSON "Transfer-Encoding: chunked\r\n", NULL);
    for (size_t i = 0, n = strlen(body); i < n; i += 7) {
        size_t size = n - i < 7 ? n - i : 7;
        sprintf(frame, "%zx\r\n", size);
        http_write_text(s, frame);
        http_write(s, body + i, size);
        http_write_text(s, "\r\n");
    }
    http_write_text(s, "0\r\n\r\n");
    http_reply r = http_read(s);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    close(s);
}

static void wrong_lengths(void **state)
{
    (void)state;
    static const char *const lengths[] = {"-1", "abc", "18446744073709551616", "1e3", ""};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char headers[128];
        snprintf(headers, sizeof headers, JSON "Content-Length: %s\r\n", lengths[i]);
        int s = http_connect(f.port);
        http_send(s, "POST", CHAT, headers, NULL);
        shutdown(s, SHUT_WR);
        http_reply r = http_read(s);
        if (r.status == 200) fail_msg("Content-Length '%s' was accepted", lengths[i]);
        http_reply_free(&r);
        close(s);
    }
    /* Less than announced, then gone. */
    int s = http_connect(f.port);
    http_send(s, "POST", CHAT, JSON "Content-Length: 5000\r\n", NULL);
    http_write_text(s, "{\"model\":");
    close(s);
    /* Less than announced, then silence on a connection that stays open: nobody else waits for it. */
    int silent = http_connect(f.port);
    http_send(silent, "POST", CHAT, JSON "Content-Length: 5000\r\n", NULL);
    http_write_text(silent, "{\"model\":");
    check_alive();
    /* More than announced: the rest is no request. */
    s = http_connect(f.port);
    http_send(s, "POST", CHAT, JSON "Content-Length: 2\r\n", NULL);
    http_write_text(s, "{}{\"model\":\"chat_a\"}\r\n\r\n");
    http_reply r = http_read(s);
    assert_int_equal(r.status, 400);
    http_reply_free(&r);
    r = http_read(s);
    assert_true(r.status == 0 || r.status >= 400);
    http_reply_free(&r);
    close(s);
    close(silent);
    check_alive();
}

static void half_requests(void **state)
{
    (void)state;
    static const char *const starts[] = {"",
                                         "P",
                                         "POST",
                                         "POST /v1/chat/completions HTTP/1.1\r\n",
                                         "\r\n\r\n\r\n",
                                         "garbage\r\n\r\n",
                                         "GET / HTTP/9.9\r\n\r\n",
                                         "\x16\x03\x01\x02",
                                         "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConten"};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        int s = http_connect(f.port);
        http_write_text(s, starts[i]);
        if (i % 2) shutdown(s, SHUT_WR);
        close(s);
    }
    check_random r = {11};
    for (int i = 0; i < 50; i++) { /* noise */
        unsigned char noise[512];
        for (size_t k = 0; k < sizeof noise; k++) noise[k] = (unsigned char)check_random_u64(&r);
        int s = http_connect(f.port);
        http_write(s, noise, 1 + check_random_u64(&r) % sizeof noise);
        close(s);
    }
    check_alive();
}

static void slow_body(void **state)
{
    (void)state;
    const char *body = BODY(",\"max_tokens\":2");
    char length[64];
    snprintf(length, sizeof length, JSON "Content-Length: %zu\r\n", strlen(body));
    int s = http_connect(f.port);
    http_send(s, "POST", CHAT, length, NULL);
    for (const char *p = body; *p; p++) {
        http_write(s, p, 1);
        if ((p - body) % 8 == 0) pause_ms(5);
    }
    http_reply r = http_read(s);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    close(s);
}

/* ------------------------------------------------------------------------------------------------ clients that take for ever */

/* What a slow client sends at once; more follows byte by byte, or nothing, or it reads a little at a time. */
typedef struct slow_client {
    const char *sends; /* NULL: a request with a long reply */
    bool silent, reads;
    int socket;
} slow_client;

/* The server has closed: nothing more can be read, and what can is not what keeps it open. */
static bool is_closed(int s)
{
    char byte;
    ssize_t n = recv(s, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

static int connect_narrow(int port) /* so that little of a reply fits on its way */
{
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), narrow = 2048;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_true(s >= 0 && setsockopt(s, SOL_SOCKET, SO_RCVBUF, &narrow, sizeof narrow) == 0);
    assert_int_equal(connect(s, (struct sockaddr *)&to, sizeof to), 0);
    return s;
}

/* A request whose reply is some megabytes. */
static void ask_for_much(int s)
{
    enum { SIZE = 1 << 20 };
    static const char head[] = "{\"model\":\"chat_a\",\"prompt\":\"";
    char *body = malloc(SIZE + 64);
    size_t n = sizeof head - 1;
    memcpy(body, head, n);
    for (; n < SIZE; n++) body[n] = (char)('a' + n * 7 % 26);
    memcpy(body + n, "\"}", 3);
    http_send(s, "POST", "/tokenize", JSON, body);
    free(body);
}

static double metric(int port, const char *name)
{
    http_reply r = http_get(port, "/metrics");
    assert_int_equal(r.status, 200);
    const char *at = strstr(r.body, name);
    assert_non_null(at);
    at = strstr(at, "} ");
    assert_non_null(at);
    double value = strtod(at + 2, NULL);
    http_reply_free(&r);
    return value;
}

static void slow_clients(void **state)
{
    (void)state;
    lk_server_options options;
    lk_error err = {0};
    lk_server *server;
    lk_server_options_default(&options);
    options.port = 0;
    options.request_seconds = options.reply_seconds = 1;
    options.idle_seconds = 3; /* of silence: later than the others here, too_many_connections waits for it */
    options.max_connections = 64;
    CHECK_OK(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), &err);
    int port = lk_server_port(server);
    slow_client clients[] = {
        {.sends = "", .silent = true},
        {.sends = "POST " CHAT " HTTP/1.1\r\nHo", .silent = true},
        {.sends = "GET /health HTTP/1.1\r\nX-A: "},
        {.sends = "POST " CHAT " HTTP/1.1\r\nHost: a\r\n" JSON "Content-Length: 5000\r\n\r\n{", .silent = true},
        {.sends = "POST " CHAT " HTTP/1.1\r\nHost: a\r\n" JSON "Content-Length: 500000\r\n\r\n{"},
        {.sends = "POST /nothing HTTP/1.1\r\nHost: a\r\n" JSON "Content-Length: 50000\r\n\r\n{"},
        {.sends = NULL, .silent = true},
        {.sends = NULL, .reads = true},
    };
    enum { N = sizeof clients / sizeof *clients };
    for (int i = 0; i < N; i++) {
        slow_client *c = &clients[i];
        c->socket = c->sends ? http_connect(port) : connect_narrow(port);
        if (c->sends)
            http_write_text(c->socket, c->sends);
        else
            ask_for_much(c->socket);
    }
    double begun = lk_clock_seconds(), took;
    int open;
    do { /* what waits to be read hides the end from a client: the server says how many there are */
        for (int i = 0; i < N; i++) {
            char some[700]; /* a window is not opened for a byte: to the server that would be silence */
            if (!clients[i].silent && !clients[i].reads) (void)!send(clients[i].socket, "a", 1, MSG_NOSIGNAL);
            if (clients[i].reads) (void)!recv(clients[i].socket, some, sizeof some, MSG_DONTWAIT);
        }
        pause_ms(50);
        open = (int)metric(port, "lorikeet_http_connections{") - 1; /* without the one that asks; nobody else waits for them */
        took = lk_clock_seconds() - begun;
        if (took < 0.8) assert_int_equal(open, N);
    } while (open > 0 && took < 20);
    if (open > 0) fail_msg("%d of %d slow clients are still connected after %.1f s", open, N, took);
    assert_true(metric(port, "lorikeet_http_slow_clients_total{") >= 4);
    for (int i = 0; i < N; i++) close(clients[i].socket);
    /* A client that takes its time between requests, but less than the limit, is not slow. */
    int s = http_connect(port);
    for (int i = 0; i < 3; i++, pause_ms(450)) {
        http_send(s, "GET", "/health", "", NULL);
        http_reply r = http_read(s);
        assert_int_equal(r.status, 200);
        http_reply_free(&r);
    }
    close(s);
    lk_server_stop(server);
}

/* Far more connections than there may be: those within the limit work, the others are closed as they come, and when some leave, or are cut
 * off for their silence, there is room again. */
static void too_many_connections(void **state)
{
    (void)state;
    enum { LIMIT = 16, MANY = 2000 };
    lk_server_options options;
    lk_error err = {0};
    lk_server *server;
    lk_server_options_default(&options);
    options.port = 0;
    options.idle_seconds = 1;
    options.max_connections = LIMIT;
    CHECK_OK(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), &err);
    int port = lk_server_port(server), held[LIMIT + 64], n_held = 0;
    int first = http_connect(port);
    http_send(first, "GET", "/health", "", NULL);
    http_reply r = http_read(first);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    for (int i = 0; i < LIMIT + 64; i++) {
        held[n_held] = http_connect(port);
        if (held[n_held] >= 0) n_held++;
    }
    double begun = lk_clock_seconds();
    for (int i = 0; i < MANY; i++) {
        int s = http_connect(port);
        if (s >= 0) close(s);
    }
    http_send(first, "POST", CHAT, JSON, BODY(",\"max_tokens\":2")); /* who is in is served */
    r = http_read(first);
    assert_true(r.status == 200 || (r.status == 0 && lk_clock_seconds() - begun > 0.8)); /* idle for too long on a slow machine */
    http_reply_free(&r);
    int closed = 0;
    for (int i = 0; i < n_held; i++) closed += is_closed(held[i]);
    if (closed < 64) fail_msg("of %d connections %d were closed where %d may be open", n_held, closed, LIMIT);
    do { /* until the silent ones are gone */
        pause_ms(50);
        r = http_get(port, "/health");
        if (r.status == 200) break;
        http_reply_free(&r);
    } while (lk_clock_seconds() - begun < 20);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    for (int i = 0; i < n_held; i++) close(held[i]);
    close(first);
    lk_server_stop(server);
}

/* ------------------------------------------------------------------------------------------------ clients that leave */

static void wait_for_idle_engine(const http_fixture *g)
{
    double end = lk_clock_seconds() + 20;
    lk_engine_stats stats;
    do {
        lk_engine_get_stats(g->engine, &stats);
        if (stats.running + stats.waiting == 0) return;
        pause_ms(5);
    } while (lk_clock_seconds() < end);
    fail_msg("still running %lld, waiting %lld", (long long)stats.running, (long long)stats.waiting);
}

static void leaving_cancels(void **state)
{
    (void)state;
    lk_engine_stats before, after;
    wait_for_idle_engine(&f);
    lk_engine_get_stats(f.engine, &before);
    enum { N = 12 };
    int sockets[N];
    for (int i = 0; i < N; i++) { /* half of them streams, half of them whole */
        sockets[i] = http_connect(f.port);
        http_send(sockets[i], "POST", CHAT, JSON, i % 2 ? LONG : BODY(",\"n\":16,\"max_tokens\":480,\"ignore_eos\":true"));
    }
    free(http_read_until(sockets[1], TEXT));
    after.running = 0;
    for (int i = 0; i < 2000 && after.running == 0; i++, pause_ms(1)) lk_engine_get_stats(f.engine, &after); /* published after the token */
    for (int i = 0; i < N; i++) close(sockets[i]);
    wait_for_idle_engine(&f);
    lk_engine_get_stats(f.engine, &after);
    assert_true(after.finished_cancelled > before.finished_cancelled); /* some were never taken in before their client left */
    check_alive();
}

/* ------------------------------------------------------------------------------------------------ keys */

static void keys(void **state)
{
    (void)state;
    char *folder = check_temporary("http_keys"), path[4200], value[64];
    snprintf(path, sizeof path, "%s/keys", folder);
    check_write_file(path, "sk-right\n", 9);
    lk_server_options options;
    lk_error err = {0};
    lk_server *server;
    lk_server_options_default(&options);
    options.port = 0;
    options.api_keys_file = path;
    CHECK_OK(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), &err);
    int port = lk_server_port(server);
    static const char *const closed[] = {"/v1/models", "/lora-adapters"}, *const open[] = {"/health", "/metrics", "/version"};
    for (int i = 0; i < 2; i++) {
        http_reply r = http_get(port, closed[i]);
        assert_int_equal(r.status, 401);
        assert_string_equal(http_header(&r, "WWW-Authenticate", value, sizeof value), "Bearer");
        assert_non_null(strstr(r.body, "invalid_api_key"));
        http_reply_free(&r);
        r = http_call(port, "GET", closed[i], "Authorization: Bearer sk-wrong\r\n", NULL);
        assert_int_equal(r.status, 401);
        http_reply_free(&r);
        r = http_call(port, "GET", closed[i], "Authorization: Bearer sk-right\r\n", NULL);
        assert_int_equal(r.status, 200);
        http_reply_free(&r);
    }
    http_reply r = http_post(port, CHAT, BODY(",\"max_tokens\":2"));
    assert_int_equal(r.status, 401);
    http_reply_free(&r);
    r = http_call(port, "POST", CHAT, JSON "Authorization: Bearer sk-right\r\n", BODY(",\"max_tokens\":2"));
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    for (int i = 0; i < 3; i++) {
        r = http_get(port, open[i]);
        assert_int_equal(r.status, 200);
        http_reply_free(&r);
    }
    lk_server_stop(server);
    free(folder);
}

static void wrong_options(void **state)
{
    (void)state;
    lk_server_options options;
    lk_error err = {0};
    lk_server *server;
    lk_server_options_default(&options);
    options.port = f.port; /* taken */
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_IO, "cannot listen", &err);
    options.port = 70000;
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_ARGUMENT, "70000", &err);
    options.port = 0;
    options.host = "256.1.1.1.1";
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_ARGUMENT, "256.1.1.1.1", &err);
    options.host = "127.0.0.1";
    options.model_name = "chat_b";
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_ARGUMENT, "chat_b", &err);
    options.model_name = NULL;
    options.api_keys_file = "/no/such/file";
    CHECK_FAILS(lk_server_start(&server, f.engine, f.tk, f.chat, &options, &err), LK_ERR_IO, "/no/such/file", &err);
    assert_null(server);
}

/* ------------------------------------------------------------------------------------------------ overload and stopping */

static void busy(void **state)
{
    (void)state;
    http_fixture g;
    lk_engine_options options;
    lk_engine_options_default(&options);
    options.max_running = 1;
    options.max_waiting = 1;
    http_fixture_start(&g, &options, NULL);
    enum { N = 10 };
    int sockets[N], answered = 0, refused = 0;
    char value[40];
    for (int i = 0; i < N; i++) {
        sockets[i] = http_connect(g.port);
        http_send(sockets[i], "POST", CHAT, JSON, LONG);
    }
    for (int i = 0; i < N; i++) {
        http_reply r = http_read(sockets[i]);
        if (r.status == 200)
            answered++;
        else {
            assert_int_equal(r.status, 429);
            assert_string_equal(http_header(&r, "Retry-After", value, sizeof value), "1");
            assert_non_null(strstr(r.body, "rate_limit_error"));
            refused++;
        }
        http_reply_free(&r);
        close(sockets[i]);
    }
    assert_true(answered >= 1 && refused >= 1);
    http_fixture_stop(&g);
}

static void *stop_server(void *context)
{
    lk_server_stop(context);
    return NULL;
}

/* A stream that runs when the stop comes ends properly; a request on a connection that is open gets 503; nobody new gets in. */
static void stop_drains(void **state)
{
    (void)state;
    http_fixture g;
    pthread_t thread;
    http_fixture_start(&g, NULL, NULL);
    int stream = http_connect(g.port), kept = http_connect(g.port);
    http_send(kept, "GET", "/health", "", NULL);
    http_reply r = http_read(kept);
    assert_int_equal(r.status, 200);
    http_reply_free(&r);
    http_send(stream, "POST", CHAT, JSON, LONG);
    char *begun = http_read_until(stream, TEXT);
    assert_int_equal(pthread_create(&thread, NULL, stop_server, g.server), 0);
    pause_ms(20);
    http_send(kept, "POST", CHAT, JSON, BODY(",\"max_tokens\":2"));
    r = http_read(kept);
    assert_true(r.status == 503 || r.status == 0); /* 0: the stream was done sooner and the server is gone */
    http_reply_free(&r);
    char *rest = strstr(begun, "[DONE]") ? strdup("") : http_read_until(stream, "[DONE]");
    pthread_join(thread, NULL);
    int late = http_connect(g.port);
    assert_true(late < 0);
    close(stream);
    close(kept);
    free(begun);
    free(rest);
    g.server = NULL;
    http_fixture_stop(&g);
}

/* With no time to drain the stream is told why it ends. */
static void stop_at_once(void **state)
{
    (void)state;
    http_fixture g;
    lk_server_options options;
    lk_server_options_default(&options);
    options.port = 0;
    options.drain_seconds = 0;
    http_fixture_start(&g, NULL, &options);
    int s = http_connect(g.port);
    http_send(s, "POST", CHAT, JSON, BODY(",\"n\":16,\"max_tokens\":480,\"ignore_eos\":true,\"stream\":true"));
    free(http_read_until(s, TEXT));
    double begun = lk_clock_seconds();
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_server, g.server), 0);
    char *rest = http_read_until(s, "[DONE]");
    pthread_join(thread, NULL);
    assert_true(lk_clock_seconds() - begun < 10);
    assert_true(strstr(rest, "\"error\"") || strstr(rest, "\"finish_reason\":\"length\""));
    free(rest);
    close(s);
    g.server = NULL;
    http_fixture_stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_requests), cmocka_unit_test(one_connection_many_requests),
        cmocka_unit_test(too_large),      cmocka_unit_test(chunked_body),
        cmocka_unit_test(wrong_lengths),  cmocka_unit_test(half_requests),
        cmocka_unit_test(slow_body),      cmocka_unit_test(leaving_cancels),
        cmocka_unit_test(slow_clients),   cmocka_unit_test(too_many_connections),
        cmocka_unit_test(keys),           cmocka_unit_test(wrong_options),
        cmocka_unit_test(busy),           cmocka_unit_test(stop_drains),
        cmocka_unit_test(stop_at_once),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
