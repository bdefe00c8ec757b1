/* Inside of the HTTP face, shared by http.c (connections) and the *_api.c files (what each path does). Not for other folders.
 *
 *     enum MHD_Result lk_version_handle(lk_exchange *x)
 *     {
 *         lk_writer out = {0};
 *         lk_writer_string(&out, "{}");
 *         return lk_exchange_send(x, 200, "application/json", &out);
 *     }
 *
 * One thread a connection (a thread may wait for the engine), one exchange a request. A handler queues exactly one response. */
#ifndef LK_SERVE_SERVER_H
#define LK_SERVE_SERVER_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "serve/api_error.h"
#include "serve/api_keys.h"
#include "serve/generate.h"
#include "serve/http.h"
#include "serve/metrics.h"
#include "serve/tool_calls.h"
#include "serve/watch.h"

enum { LK_MAX_HEADERS = 16 };

struct lk_server {
    lk_place place; /* engine, tokenizer, chat */
    lk_server_options options;
    char *host, *model_name, *adapters_dir; /* copies; options points to them */
    lk_tool_format tool_format;
    char fingerprint[24]; /* "lk-" and 12 digits of the base's digest */
    double started_unix;
    lk_api_keys *keys; /* NULL: open */
    struct MHD_Daemon *daemon;
    lk_watch *clients;
    int listener, port;
    atomic_bool stopping; /* no new work */
    atomic_bool aborting; /* what still runs ends now */
    atomic_int active;    /* requests between their last byte in and their last byte out */
    atomic_int connections;
    atomic_llong responses[LK_METRICS_CODES];
    pthread_mutex_t loading; /* one load on demand at a time */
    pthread_mutex_t watch;   /* guards the two below */
    int64_t watched_iterations;
    double watched_since; /* when the iterations were first seen at that number with work to do */
};

typedef struct lk_exchange {
    lk_server *server;
    struct MHD_Connection *connection;
    lk_watched *watched;
    const struct lk_route *route;
    const char *rest; /* what follows a prefix route in the path */
    lk_writer body;
    size_t discarded;     /* bytes of a refused request's body */
    lk_api_error refusal; /* http != 0: answered with this once the body has been read and thrown away */
    const char *allow;    /* for 405 */
    double started;
    bool counted; /* in server->active */
    int n_headers;
    struct {
        const char *name;
        char value[320];
    } headers[LK_MAX_HEADERS];
} lk_exchange;

typedef enum MHD_Result (*lk_handler)(lk_exchange *x);

/* A header of the reply to come. Bytes that may not stand in a header become '?'. */
void lk_exchange_header(lk_exchange *x, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Queues the reply and takes over the text's memory (the text is empty after). Memory that ran out while writing it becomes a 503. */
enum MHD_Result lk_exchange_send(lk_exchange *x, int http, const char *type, lk_writer *text);
enum MHD_Result lk_exchange_fail(lk_exchange *x, const lk_api_error *e);
/* A stream: read writes up to max bytes and returns how many, blocking until it has some; or MHD_CONTENT_READER_END_OF_STREAM or
 * _END_WITH_ERROR. done is called once in any case, also when this fails. */
enum MHD_Result lk_exchange_stream(lk_exchange *x, const char *type, MHD_ContentReaderCallback read, void *context,
                                   MHD_ContentReaderFreeCallback done);
/* The client has closed its side: no use in going on. */
bool lk_exchange_abandoned(const lk_exchange *x);
/* While a handler or stream waits for the engine the connection is idle for good reason. Call with true before waiting, false after: from
 * then on it is the client who is waited for. */
void lk_exchange_wait(lk_exchange *x, bool waiting);

/* Handlers. */
enum MHD_Result lk_chat_completions_handle(lk_exchange *x);
enum MHD_Result lk_completions_handle(lk_exchange *x);
enum MHD_Result lk_tokenize_handle(lk_exchange *x);
enum MHD_Result lk_detokenize_handle(lk_exchange *x);
enum MHD_Result lk_models_handle(lk_exchange *x);
enum MHD_Result lk_model_handle(lk_exchange *x);
enum MHD_Result lk_adapter_load_handle(lk_exchange *x);
enum MHD_Result lk_adapter_unload_handle(lk_exchange *x);
enum MHD_Result lk_adapter_list_handle(lk_exchange *x);
enum MHD_Result lk_health_handle(lk_exchange *x);
enum MHD_Result lk_version_handle(lk_exchange *x);
enum MHD_Result lk_metrics_handle(lk_exchange *x);

/* The adapter part of a `model`: NULL for the base; "acme", "acme@2"; "base:acme" is "acme". Points into model. */
const char *lk_model_adapter(const lk_server *server, const char *model);
/* Submits g on the adapter `model` names; one that is not loaded but lies in adapters_dir is loaded first. */
lk_status lk_adapters_submit(lk_server *server, lk_generation *g, const char *model, lk_api_error *e);
/* 404 for a model that is neither the base nor an adapter, naming those there are. */
lk_status lk_adapters_unknown(lk_server *server, const char *model, lk_api_error *e);
/* Does `model` name something that can be asked for at this moment, without loading it? */
bool lk_adapters_known(lk_server *server, const char *model);
/* Fills limits for parsing bodies. */
lk_openai_limits lk_server_limits(const lk_server *server);

#endif
