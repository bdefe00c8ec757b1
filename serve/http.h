/* The HTTP face of an engine: OpenAI's API, vLLM's adapter control, health and Prometheus metrics, over libmicrohttpd.
 *
 *     lk_server *server;
 *     LK_TRY(lk_server_start(&server, engine, tk, chat, &options, err));
 *     printf("%d\n", lk_server_port(server));
 *     lk_server_stop(server);        -- stops accepting, lets connections end for up to drain_seconds, then closes
 */
#ifndef LK_SERVE_HTTP_H
#define LK_SERVE_HTTP_H

#include "data/chat/chat.h"
#include "data/tokenizer/tokenizer.h"
#include "serve/engine.h"

typedef struct lk_server lk_server;

typedef struct lk_server_options {
    const char *host;             /* "127.0.0.1" */
    int port;                     /* 0: any free one */
    const char *model_name;       /* the base's id in the API */
    const char *api_keys_file;    /* one key a line, # comments; NULL: no authentication */
    const char *adapters_dir;     /* folders here may be loaded by name; NULL: none */
    const char *tool_call_parser; /* how the model writes tool calls (serve/tool_calls.h); NULL: they stay text */
    int max_connections;          /* more are closed as they come */
    int drain_seconds;
    int64_t max_body_bytes;
    /* What ends a connection: silence while the server waits for the client; a request, headers and body, that takes longer than this
     * from the connection's beginning or the reply before; a reply, or a piece of a stream, that the client does not take in. */
    int idle_seconds, request_seconds, reply_seconds;
} lk_server_options;

void lk_server_options_default(lk_server_options *options);
/* engine, tk and chat are borrowed and must outlive the server. */
lk_status lk_server_start(lk_server **server, lk_engine *engine, const lk_tokenizer *tk, const lk_chat *chat,
                          const lk_server_options *options, lk_error *err);
void lk_server_stop(lk_server *server);
int lk_server_port(const lk_server *server);

#endif
