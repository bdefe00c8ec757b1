/* What the server says about itself: models, health, version, metrics. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "serve/server.h"

/* ------------------------------------------------------------------------------------------------ models */

static void model_json(lk_writer *out, const lk_server *server, const lk_adapter_info *adapter)
{
    const lk_model *base = lk_engine_model(server->place.engine);
    lk_writer_string(out, "{\"id\":");
    lk_writer_json_string(out, adapter ? adapter->name : server->model_name);
    lk_writer_printf(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"lorikeet\",\"root\":",
                     (int64_t)(adapter ? adapter->loaded_unix : server->started_unix));
    lk_writer_json_string(out, adapter ? adapter->path : server->model_name);
    lk_writer_string(out, ",\"parent\":");
    lk_writer_json_string(out, adapter ? server->model_name : NULL);
    lk_writer_printf(out, ",\"max_model_len\":%" PRId64 ",\"digest\":", lk_engine_get_options(server->place.engine)->max_model_len);
    lk_writer_json_string(out, adapter ? adapter->digest : base->digest);
    if (adapter) lk_writer_printf(out, ",\"version\":%" PRId64, adapter->version);
    lk_writer_string(out, "}");
}

/* All models (id NULL), or the one named; false when there is none of that name. */
static bool models_json(lk_writer *out, const lk_server *server, const char *id, lk_error *err)
{
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    if (lk_engine_list_adapters(server->place.engine, &list, &n, err)) return false;
    bool found = !id || !strcmp(id, server->model_name);
    if (!id) lk_writer_string(out, "{\"object\":\"list\",\"data\":[");
    if (found) model_json(out, server, NULL);
    const char *adapter = id ? lk_model_adapter(server, id) : NULL;
    for (int64_t i = 0; i < n && (!id || !found); i++) {
        if (!list[i].current || (id && (!adapter || strcmp(adapter, list[i].name)))) continue;
        if (!id) lk_writer_string(out, ",");
        model_json(out, server, &list[i]);
        found = true;
    }
    if (!id) lk_writer_string(out, "]}");
    free(list);
    return found;
}

enum MHD_Result lk_models_handle(lk_exchange *x)
{
    lk_writer out = {0};
    lk_error err = {0};
    lk_api_error e;
    if (models_json(&out, x->server, NULL, &err)) return lk_exchange_send(x, 200, "application/json", &out);
    lk_writer_free(&out);
    lk_api_fail_from(&e, &err, NULL);
    return lk_exchange_fail(x, &e);
}

enum MHD_Result lk_model_handle(lk_exchange *x)
{
    lk_writer out = {0};
    lk_error err = {0};
    lk_api_error e;
    if (models_json(&out, x->server, x->rest, &err)) return lk_exchange_send(x, 200, "application/json", &out);
    lk_writer_free(&out);
    if (err.code)
        lk_api_fail_from(&e, &err, NULL);
    else
        lk_adapters_unknown(x->server, x->rest, &e);
    return lk_exchange_fail(x, &e);
}

/* ------------------------------------------------------------------------------------------------ health, version, metrics */

enum { STALLED_S = 60 };

/* An engine that has work but has not finished an iteration for a minute hangs. Seen from the published counters, so that asking needs
 * nothing of the engine: its number of iterations was the same at every look since watched_since, and there was work each time. */
static bool engine_stalled(lk_server *server)
{
    lk_engine_stats stats;
    lk_engine_get_stats(server->place.engine, &stats);
    double now = lk_clock_seconds();
    pthread_mutex_lock(&server->watch);
    if (stats.running + stats.waiting == 0 || stats.iterations != server->watched_iterations) {
        server->watched_iterations = stats.iterations;
        server->watched_since = now;
    }
    bool stalled = now - server->watched_since > STALLED_S;
    pthread_mutex_unlock(&server->watch);
    return stalled;
}

enum MHD_Result lk_health_handle(lk_exchange *x)
{
    lk_api_error e;
    if (engine_stalled(x->server)) {
        lk_api_fail(&e, 503, NULL, "the engine has had work but made no progress for %d seconds", STALLED_S);
        return lk_exchange_fail(x, &e);
    }
    lk_writer out = {0};
    lk_writer_string(&out, "{\"status\":\"ok\"}");
    return lk_exchange_send(x, 200, "application/json", &out);
}

enum MHD_Result lk_version_handle(lk_exchange *x)
{
    lk_writer out = {0};
    lk_writer_printf(&out, "{\"version\":\"%s\"}", LK_VERSION);
    return lk_exchange_send(x, 200, "application/json", &out);
}

enum MHD_Result lk_metrics_handle(lk_exchange *x)
{
    lk_server *server = x->server;
    lk_engine_stats stats;
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    lk_engine_get_stats(server->place.engine, &stats);
    if (lk_engine_list_adapters(server->place.engine, &list, &n, NULL)) n = 0;
    lk_metrics_facts facts = {.model_name = server->model_name,
                              .base_digest = lk_engine_model(server->place.engine)->digest,
                              .max_adapters = lk_engine_get_options(server->place.engine)->max_resident_adapters,
                              .now_unix = lk_clock_unix(),
                              .connections = atomic_load(&server->connections),
                              .slow = lk_watch_closed(server->clients)};
    for (int i = 0; i < LK_METRICS_CODES; i++) facts.responses[i] = atomic_load(&server->responses[i]);
    lk_writer out = {0};
    lk_metrics_write(&out, &stats, list, n, &facts);
    free(list);
    return lk_exchange_send(x, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
}
