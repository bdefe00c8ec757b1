/* Connections over libmicrohttpd: one thread each, because a request waits for the engine most of its life and a thread that waits costs
 * little; an event loop with suspended connections was rejected for the number of states it needs.
 *
 * A request passes: route, method, key, type and announced length are looked at as soon as its headers are in; the body is then collected
 * up to the limit, or thrown away when the request is already refused (a refusal sent while the client still writes would reach it as
 * a broken connection); then the handler runs and queues one reply.
 *
 * What clients do wrong, and what happens: less body than announced: the idle timeout closes; more: the rest is read as another request
 * and refused; headers or a body that trickle: the watch closes (watch.h); no reading of the reply: the idle timeout closes; reading of it
 * byte by byte: the watch closes; gone while waiting: the request is cancelled (lk_exchange_abandoned). */
#include "serve/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    DISCARD_FACTOR = 8,    /* bodies up to this many times the limit are read and thrown away; larger ones are cut off */
    ABORT_GRACE_MS = 1000, /* for streams to say that they were cut, after draining */
    STACK_BYTES = 2 << 20
};

/* ------------------------------------------------------------------------------------------------ routes */

enum { OPEN = 1, ALWAYS = 2, PREFIX = 4 }; /* without key; also while stopping; the path goes on */

typedef struct lk_route {
    const char *method, *path;
    int flags;
    lk_handler handle;
} lk_route;

static const lk_route routes[] = {
    {"POST", "/v1/chat/completions", 0, lk_chat_completions_handle},
    {"POST", "/v1/completions", 0, lk_completions_handle},
    {"GET", "/v1/models", 0, lk_models_handle},
    {"GET", "/v1/models/", PREFIX, lk_model_handle},
    {"POST", "/v1/load_lora_adapter", 0, lk_adapter_load_handle},
    {"POST", "/v1/unload_lora_adapter", 0, lk_adapter_unload_handle},
    {"GET", "/lora-adapters", 0, lk_adapter_list_handle},
    {"POST", "/tokenize", 0, lk_tokenize_handle},
    {"POST", "/detokenize", 0, lk_detokenize_handle},
    {"GET", "/health", OPEN, lk_health_handle},
    {"GET", "/version", OPEN | ALWAYS, lk_version_handle},
    {"GET", "/metrics", OPEN | ALWAYS, lk_metrics_handle},
};

static bool path_fits(const lk_route *route, const char *path)
{
    size_t n = strlen(route->path);
    return route->flags & PREFIX ? !strncmp(route->path, path, n) && path[n] : !strcmp(route->path, path);
}

static void find_route(lk_exchange *x, const char *method, const char *path)
{
    if (!strcmp(method, "HEAD")) method = "GET"; /* the library leaves out the body */
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!path_fits(&routes[i], path)) continue;
        if (!strcmp(routes[i].method, method)) {
            x->route = &routes[i];
            x->rest = routes[i].flags & PREFIX ? path + strlen(routes[i].path) : "";
            return;
        }
        x->allow = routes[i].method;
    }
    if (x->allow)
        lk_api_fail(&x->refusal, 405, NULL, "%.20s is not possible on %.200s; use %s", method, path, x->allow);
    else
        lk_api_fail(&x->refusal, 404, NULL, "there is nothing at %.200s", path);
}

/* ------------------------------------------------------------------------------------------------ replies */

void lk_exchange_header(lk_exchange *x, const char *name, const char *format, ...)
{
    if (x->n_headers == LK_MAX_HEADERS) return;
    char *value = x->headers[x->n_headers].value;
    x->headers[x->n_headers++].name = name;
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof x->headers[0].value, format, args);
    va_end(args);
    for (char *p = value; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
}

static enum MHD_Result queue(lk_exchange *x, int http, const char *type, struct MHD_Response *response)
{
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    for (int i = 0; i < x->n_headers; i++) MHD_add_response_header(response, x->headers[i].name, x->headers[i].value);
    if (atomic_load(&x->server->stopping)) MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    if (http >= 0 && http < LK_METRICS_CODES) atomic_fetch_add(&x->server->responses[http], 1);
    lk_watch_phase(x->server->clients, x->watched, LK_PHASE_REPLY);
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)http, response);
    MHD_destroy_response(response); /* our reference; the connection has its own */
    return result;
}

enum MHD_Result lk_exchange_send(lk_exchange *x, int http, const char *type, lk_writer *text)
{
    static const char no_memory[] =
        "{\"error\":{\"message\":\"out of memory for the reply\",\"type\":\"server_error\",\"param\":null,\"code\":503}}";
    if (text->failed || !text->data) {
        lk_writer_free(text);
        lk_writer_string(text, no_memory);
        http = 503;
        type = "application/json";
        if (text->failed) return MHD_NO;
    }
    struct MHD_Response *response = MHD_create_response_from_buffer(text->size, text->data, MHD_RESPMEM_MUST_FREE);
    if (!response) lk_writer_free(text);
    *text = (lk_writer){0};
    return response ? queue(x, http, type, response) : MHD_NO;
}

enum MHD_Result lk_exchange_fail(lk_exchange *x, const lk_api_error *e)
{
    lk_writer out = {0};
    lk_api_error_json(&out, e);
    if (e->retry_after_s) lk_exchange_header(x, "Retry-After", "%d", e->retry_after_s);
    if (e->http == 401) lk_exchange_header(x, "WWW-Authenticate", "Bearer");
    if (e->http == 405 && x->allow) lk_exchange_header(x, "Allow", "%s", x->allow);
    if (e->http >= 500) lk_log(LK_LOG_WARN, "http: %d: %s", e->http, e->message);
    return lk_exchange_send(x, e->http, "application/json", &out);
}

enum MHD_Result lk_exchange_stream(lk_exchange *x, const char *type, MHD_ContentReaderCallback read, void *context,
                                   MHD_ContentReaderFreeCallback done)
{
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 * 1024, read, context, done);
    if (response) return queue(x, 200, type, response);
    done(context);
    return MHD_NO;
}

static int socket_of(const lk_exchange *x)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

/* A client that has closed only its writing side counts as gone, as for nginx: one cannot tell the two apart before writing. */
bool lk_exchange_abandoned(const lk_exchange *x)
{
    struct pollfd p = {.fd = socket_of(x), .events = POLLRDHUP};
    return p.fd >= 0 && poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* Setting the timeout from none to some restarts its clock, which is what is wanted after a wait. */
void lk_exchange_wait(lk_exchange *x, bool waiting)
{
    MHD_set_connection_option(x->connection, MHD_CONNECTION_OPTION_TIMEOUT, waiting ? 0u : (unsigned)x->server->options.idle_seconds);
    lk_watch_phase(x->server->clients, x->watched, waiting ? LK_PHASE_BUSY : LK_PHASE_REPLY);
}

/* ------------------------------------------------------------------------------------------------ requests */

static const char *header(const lk_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static bool is_json(const char *type)
{
    static const char json[] = "application/json";
    size_t n = sizeof json - 1;
    return type && !strncasecmp(type, json, n) && (type[n] == 0 || type[n] == ';' || type[n] == ' ');
}

/* What can be said from the headers alone. */
static void look_at_headers(lk_exchange *x, const char *method, const char *path)
{
    lk_server *server = x->server;
    lk_api_error *e = &x->refusal;
    find_route(x, method, path);
    if (!x->route) return;
    if (atomic_load(&server->stopping) && !(x->route->flags & ALWAYS)) {
        lk_api_fail(e, 503, NULL, "the server is stopping");
        return;
    }
    if (server->keys && !(x->route->flags & OPEN) && !lk_api_keys_accept(server->keys, header(x, MHD_HTTP_HEADER_AUTHORIZATION))) {
        lk_api_fail_code(e, 401, "invalid_api_key", NULL, "a valid key is needed: send the header Authorization: Bearer KEY");
        return;
    }
    if (strcmp(x->route->method, "POST")) return;
    /* A web page can make a browser post plain text to a local server, but not JSON: that needs a permission this server never gives. */
    if (!is_json(header(x, MHD_HTTP_HEADER_CONTENT_TYPE)))
        lk_api_fail(e, 415, NULL, "send JSON with the header Content-Type: application/json");
}

static void too_large(lk_exchange *x)
{
    lk_api_fail(&x->refusal, 413, NULL, "the request body is larger than %lld bytes", (long long)x->server->options.max_body_bytes);
    lk_writer_free(&x->body);
}

/* First call of a request. A body that is announced as enormous is not even thrown away. */
static enum MHD_Result begin(lk_exchange *x, const char *method, const char *path)
{
    x->started = lk_clock_seconds();
    look_at_headers(x, method, path);
    const char *length = header(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    unsigned long long announced = length ? strtoull(length, NULL, 10) : 0;
    unsigned long long limit = (unsigned long long)x->server->options.max_body_bytes;
    if (announced > limit && !x->refusal.http) too_large(x);
    if (announced > limit * DISCARD_FACTOR) return lk_exchange_fail(x, &x->refusal); /* the library closes after it */
    return MHD_YES;
}

static enum MHD_Result collect(lk_exchange *x, const char *bytes, size_t *size)
{
    size_t limit = (size_t)x->server->options.max_body_bytes;
    if (!x->refusal.http && x->body.size + *size > limit) too_large(x);
    if (x->refusal.http) {
        x->discarded += *size;
        if (x->discarded > limit * DISCARD_FACTOR) return MHD_NO;
    } else {
        lk_writer_add(&x->body, bytes, *size);
        if (x->body.failed) return MHD_NO;
    }
    *size = 0;
    return MHD_YES;
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *bytes, size_t *size, void **slot)
{
    lk_exchange *x = *slot;
    (void)version;
    if (!x) {
        x = calloc(1, sizeof *x);
        if (!x) return MHD_NO;
        x->server = context;
        x->connection = connection;
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        x->watched = info ? info->socket_context : NULL;
        *slot = x;
        return begin(x, method, path);
    }
    if (*size) return collect(x, bytes, size);
    x->counted = true;
    atomic_fetch_add(&x->server->active, 1);
    /* A stop may have begun while the body came in. */
    if (!x->refusal.http && atomic_load(&x->server->stopping) && !(x->route->flags & ALWAYS))
        lk_api_fail(&x->refusal, 503, NULL, "the server is stopping");
    return x->refusal.http ? lk_exchange_fail(x, &x->refusal) : x->route->handle(x);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **slot, enum MHD_RequestTerminationCode code)
{
    lk_server *server = context;
    lk_exchange *x = *slot;
    (void)connection;
    if (!x) return;
    lk_log(LK_LOG_DEBUG, "http: %s %.3f s%s", x->route ? x->route->path : "(no such path)", lk_clock_seconds() - x->started,
           code == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : ", not completed");
    if (x->counted) atomic_fetch_sub(&server->active, 1);
    lk_watch_phase(server->clients, x->watched, LK_PHASE_REQUEST); /* the next one */
    lk_writer_free(&x->body);
    free(x);
    *slot = NULL;
}

static void on_connection(void *context, struct MHD_Connection *connection, void **slot, enum MHD_ConnectionNotificationCode code)
{
    lk_server *server = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *slot = info ? lk_watch_add(server->clients, info->connect_fd) : NULL;
        atomic_fetch_add(&server->connections, 1);
    } else {
        lk_watch_remove(server->clients, *slot);
        *slot = NULL;
        atomic_fetch_sub(&server->connections, 1);
    }
}

__attribute__((format(printf, 2, 0))) static void on_log(void *context, const char *format, va_list args)
{
    char line[400];
    (void)context;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = 0;
    lk_log(LK_LOG_DEBUG, "http: %s", line);
}

/* ------------------------------------------------------------------------------------------------ start and stop */

void lk_server_options_default(lk_server_options *options)
{
    *options = (lk_server_options){.host = "127.0.0.1",
                                   .port = 8000,
                                   .max_connections = 512,
                                   .drain_seconds = 30,
                                   .max_body_bytes = 4 << 20,
                                   .idle_seconds = 60,
                                   .request_seconds = 120,
                                   .reply_seconds = 600};
}

/* Own socket, so that a failure says which address and why. */
static lk_status listen_on(lk_server *server, lk_error *err)
{
    char service[16];
    const char *host = server->options.host;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    snprintf(service, sizeof service, "%d", server->options.port);
    int failed = getaddrinfo(host, service, &hints, &found);
    if (failed) return lk_fail(err, LK_ERR_ARGUMENT, "host '%s': %s", host, gai_strerror(failed));
    lk_status status = LK_OK;
    int yes = 1;
    int s = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0) status = lk_fail_errno(err, "cannot make a socket for %s", host);
    if (!status) setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (!status && bind(s, found->ai_addr, found->ai_addrlen))
        status = lk_fail_errno(err, "cannot listen on %s port %d", host, server->options.port);
    if (!status && listen(s, 1024)) status = lk_fail_errno(err, "cannot listen on %s port %d", host, server->options.port);
    freeaddrinfo(found);
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    if (!status && getsockname(s, (struct sockaddr *)&bound, &size)) status = lk_fail_errno(err, "cannot ask for the port");
    if (status) {
        if (s >= 0) close(s);
        return status;
    }
    server->listener = s;
    server->port = bound.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)(void *)&bound)->sin6_port)
                                               : ntohs(((struct sockaddr_in *)(void *)&bound)->sin_port);
    return LK_OK;
}

static lk_status start_daemon(lk_server *server, lk_error *err)
{
    unsigned flags = MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, server->listener,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)server->options.max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)server->options.idle_seconds, MHD_OPTION_THREAD_STACK_SIZE, (size_t)STACK_BYTES, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, server, MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_END);
    return server->daemon ? LK_OK : lk_fail(err, LK_ERR_INTERNAL, "the HTTP library did not start on port %d", server->port);
}

static lk_status check_options(const lk_server_options *o, const lk_engine *engine, lk_error *err)
{
    const char *base = o->model_name ? o->model_name : lk_engine_model(engine)->name;
    if (o->port < 0 || o->port > 65535) return lk_fail(err, LK_ERR_ARGUMENT, "port %d: must be from 0 to 65535", o->port);
    if (!*base || strlen(base) > 500) return lk_fail(err, LK_ERR_ARGUMENT, "the model's name must have 1 to 500 bytes");
    if (o->max_connections < 1 || o->max_connections > 100000)
        return lk_fail(err, LK_ERR_ARGUMENT, "max_connections %d: must be from 1 to 100000", o->max_connections);
    if (o->max_body_bytes < 1024 || o->max_body_bytes > 1 << 30)
        return lk_fail(err, LK_ERR_ARGUMENT, "max_body_bytes %lld: must be from 1024 to 2^30", (long long)o->max_body_bytes);
    if (o->idle_seconds < 1 || o->request_seconds < 1 || o->reply_seconds < 1)
        return lk_fail(err, LK_ERR_ARGUMENT, "idle_seconds, request_seconds and reply_seconds must be at least 1");
    if (o->drain_seconds < 0) return lk_fail(err, LK_ERR_ARGUMENT, "drain_seconds %d: must not be negative", o->drain_seconds);
    return LK_OK;
}

static lk_status copy_options(lk_server *server, const lk_server_options *o, lk_error *err)
{
    const lk_model *base = lk_engine_model(server->place.engine);
    server->host = strdup(o->host ? o->host : "127.0.0.1");
    server->model_name = strdup(o->model_name ? o->model_name : base->name);
    server->adapters_dir = o->adapters_dir ? strdup(o->adapters_dir) : NULL;
    if (!server->host || !server->model_name || (o->adapters_dir && !server->adapters_dir))
        return lk_fail(err, LK_ERR_MEMORY, "no memory for the server");
    server->options = *o;
    server->options.host = server->host;
    server->options.model_name = server->model_name;
    server->options.adapters_dir = server->adapters_dir;
    server->options.api_keys_file = NULL; /* read once, at the start */
    server->options.tool_call_parser = NULL;
    if (o->tool_call_parser) LK_TRY(lk_tool_format_find(&server->tool_format, o->tool_call_parser, err));
    snprintf(server->fingerprint, sizeof server->fingerprint, "lk-%.12s", base->digest);
    server->started_unix = lk_clock_unix();
    server->watched_since = lk_clock_seconds();
    return LK_OK;
}

/* An adapter may not hide behind the base's name in the API, which need not be the one the engine knows. */
static lk_status check_names(const lk_server *server, lk_error *err)
{
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    LK_TRY(lk_engine_list_adapters(server->place.engine, &list, &n, err));
    lk_status status = LK_OK;
    for (int64_t i = 0; i < n && !status; i++)
        if (!strcmp(list[i].name, server->model_name))
            status =
                lk_fail(err, LK_ERR_ARGUMENT, "an adapter has the name of the base, '%s'; give one of them another", server->model_name);
    free(list);
    return status;
}

static void destroy(lk_server *server)
{
    if (server->listener >= 0) close(server->listener);
    lk_watch_stop(server->clients);
    lk_api_keys_free(server->keys);
    pthread_mutex_destroy(&server->loading);
    pthread_mutex_destroy(&server->watch);
    free(server->host);
    free(server->model_name);
    free(server->adapters_dir);
    free(server);
}

lk_status lk_server_start(lk_server **out, lk_engine *engine, const lk_tokenizer *tk, const lk_chat *chat, const lk_server_options *options,
                          lk_error *err)
{
    *out = NULL;
    LK_TRY(check_options(options, engine, err));
    lk_server *server = calloc(1, sizeof *server);
    if (!server) return lk_fail(err, LK_ERR_MEMORY, "no memory for the server");
    server->place = (lk_place){engine, tk, chat};
    server->listener = -1;
    pthread_mutex_init(&server->loading, NULL);
    pthread_mutex_init(&server->watch, NULL);
    lk_status status = copy_options(server, options, err);
    if (!status) status = check_names(server, err);
    if (!status && options->api_keys_file) status = lk_api_keys_read(&server->keys, options->api_keys_file, err);
    if (!status) status = listen_on(server, err);
    const lk_watch_limits limits = {{[LK_PHASE_REQUEST] = options->request_seconds, [LK_PHASE_REPLY] = options->reply_seconds}};
    if (!status) status = lk_watch_start(&server->clients, &limits, err);
    if (!status) status = start_daemon(server, err);
    if (status)
        destroy(server);
    else
        *out = server;
    return status;
}

static void wait_until_idle(lk_server *server, double seconds)
{
    double end = lk_clock_seconds() + seconds;
    while (atomic_load(&server->active) > 0 && lk_clock_seconds() < end) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

void lk_server_stop(lk_server *server)
{
    if (!server) return;
    atomic_store(&server->stopping, true);
    MHD_socket listener = MHD_quiesce_daemon(server->daemon); /* gives the socket back; no new connections */
    wait_until_idle(server, server->options.drain_seconds);
    atomic_store(&server->aborting, true);
    wait_until_idle(server, ABORT_GRACE_MS * 1e-3);
    MHD_stop_daemon(server->daemon);
    if (listener == MHD_INVALID_SOCKET) server->listener = -1; /* the library has closed it */
    destroy(server);
}

int lk_server_port(const lk_server *server) { return server->port; }

lk_openai_limits lk_server_limits(const lk_server *server)
{
    return (lk_openai_limits){.vocab = lk_engine_model(server->place.engine)->config.vocab};
}
