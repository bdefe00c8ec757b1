/* Adapters over HTTP: vLLM's load and unload, llama.cpp's list, and loading on demand from adapters_dir.
 *
 * Load and unload answer as vLLM does (serving facts: 200 with a plain sentence; errors InvalidUserInput and NotFoundError with the http
 * status as code), so that its operators' scripts and controllers work unchanged. Loading runs in the connection's thread: the engine reads
 * the folder there and flips the name between two of its iterations, so no request waits for a load that it did not ask for. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "serve/server.h"

/* ------------------------------------------------------------------------------------------------ which adapter a model name means */

const char *lk_model_adapter(const lk_server *server, const char *model)
{
    size_t n = strlen(server->model_name);
    if (strncmp(model, server->model_name, n)) return model;
    if (model[n] == 0) return NULL;
    return model[n] == ':' ? model + n + 1 : model;
}

bool lk_adapters_known(lk_server *server, const char *model)
{
    const char *adapter = lk_model_adapter(server, model);
    if (!adapter) return true;
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    bool found = false;
    if (lk_engine_list_adapters(server->place.engine, &list, &n, NULL)) return false;
    for (int64_t i = 0; i < n && !found; i++) {
        char versioned[320];
        snprintf(versioned, sizeof versioned, "%s@%" PRId64, list[i].name, list[i].version);
        found = (list[i].current && !strcmp(adapter, list[i].name)) || !strcmp(adapter, versioned);
    }
    free(list);
    return found;
}

lk_status lk_adapters_unknown(lk_server *server, const char *model, lk_api_error *e)
{
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    lk_writer known = {0};
    if (lk_engine_list_adapters(server->place.engine, &list, &n, NULL)) n = 0;
    lk_writer_string(&known, server->model_name);
    for (int64_t i = 0, shown = 0; i < n; i++) {
        if (!list[i].current) continue;
        if (++shown > 20) {
            lk_writer_string(&known, ", ...");
            break;
        }
        lk_writer_printf(&known, ", %s", list[i].name);
    }
    free(list);
    lk_status status = lk_api_fail_code(e, 404, "model_not_found", "model", "the model '%.200s' does not exist; known: %s", model,
                                        known.data ? known.data : "");
    lk_writer_free(&known);
    return status;
}

/* ------------------------------------------------------------------------------------------------ on demand */

/* A name that is one plain folder, or one bundle NAME.tar.zst, of adapters_dir: nothing in it can lead elsewhere. */
static bool plain_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 200 || name[0] == '.' || strstr(name, "..")) return false;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f || c == '/' || c == '\\' || c == '@') return false;
    }
    return true;
}

static bool folder_of(const lk_server *server, const char *name, char *path, size_t size)
{
    char config[4200];
    if (!server->adapters_dir || !plain_name(name)) return false;
    if (lk_path_join(path, size, server->adapters_dir, name, NULL)) return false;
    if (lk_path_join(config, sizeof config, path, "adapter_config.json", NULL)) return false;
    if (lk_path_exists(config)) return true;
    snprintf(config, sizeof config, "%s.tar.zst", name);
    return !lk_path_join(path, size, server->adapters_dir, config, NULL) && lk_path_exists(path);
}

/* Two requests for one new adapter must not read it twice: loads on demand go one by one, and each looks first. */
static lk_status load_on_demand(lk_server *server, const char *name, const char *path, lk_error *err)
{
    lk_status status = LK_OK;
    pthread_mutex_lock(&server->loading);
    if (!lk_adapters_known(server, name)) {
        lk_log(LK_LOG_INFO, "adapter %s: asked for, loading %s", name, path);
        status = lk_engine_load_adapter(server->place.engine, name, path, false, NULL, err);
        if (status == LK_ERR_CONFLICT) status = LK_OK; /* somebody loaded it by hand meanwhile */
    }
    pthread_mutex_unlock(&server->loading);
    return status;
}

lk_status lk_adapters_submit(lk_server *server, lk_generation *g, const char *model, lk_api_error *e)
{
    const char *adapter = lk_model_adapter(server, model);
    char path[4096];
    lk_error err = {0};
    if (adapter && !*adapter) return lk_adapters_unknown(server, model, e);
    /* Three: between loading and submitting somebody may unload it again. */
    for (int attempt = 0; attempt < 3; attempt++) {
        lk_status status = lk_generation_submit(g, adapter, &err);
        if (!status) return LK_OK;
        if (status != LK_ERR_NOT_FOUND || !adapter) return lk_api_fail_from(e, &err, NULL);
        if (!folder_of(server, adapter, path, sizeof path)) break;
        if (load_on_demand(server, adapter, path, &err)) return lk_api_fail_from(e, &err, "model");
    }
    return lk_adapters_unknown(server, model, e);
}

/* ------------------------------------------------------------------------------------------------ load and unload */

static enum MHD_Result fail_as_vllm(lk_exchange *x, int http, const char *message)
{
    lk_api_error e;
    lk_api_fail(&e, http, NULL, "%s", message);
    e.type = http == 400   ? "InvalidUserInput"
             : http == 404 ? "NotFoundError"
             : http == 429 ? "TooManyRequestsError"
                           : "InternalServerError";
    return lk_exchange_fail(x, &e);
}

/* Fields vLLM knows and that say nothing here. */
static bool harmless(const char *key)
{
    return !strcmp(key, "lora_int_id") || !strcmp(key, "base_model_name") || !strcmp(key, "is_3d_lora_weight");
}

typedef struct command {
    cJSON *root;
    const char *name, *path; /* "" when missing; they point into root */
    bool in_place;
} command;

static lk_status parse_command(lk_exchange *x, command *c, lk_error *err)
{
    static const char where[] = "request body";
    *c = (command){.name = "", .path = ""};
    LK_TRY(lk_json_parse(&c->root, x->body.data ? x->body.data : "", x->body.size, where, err));
    if (!cJSON_IsObject(c->root)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be a JSON object", where);
    for (const cJSON *item = c->root->child; item; item = item->next) {
        const char *key = item->string;
        if (!strcmp(key, "lora_name") || !strcmp(key, "lora_path") || !strcmp(key, "load_inplace")) continue;
        if (!cJSON_IsNull(item) && !harmless(key)) return lk_fail(err, LK_ERR_FORMAT, "%s: unknown field '%.60s'", where, key);
    }
    LK_TRY(lk_json_opt_string(c->root, "lora_name", &c->name, where, err));
    LK_TRY(lk_json_opt_string(c->root, "lora_path", &c->path, where, err));
    return lk_json_opt_bool(c->root, "load_inplace", &c->in_place, where, err);
}

static int http_of(lk_status status)
{
    switch (status) {
    case LK_ERR_NOT_FOUND: return 404;
    case LK_ERR_BUSY: return 429;
    case LK_ERR_INTERNAL:
    case LK_ERR_INTERRUPTED:
    case LK_ERR_MEMORY: return 500;
    default: return 400;
    }
}

static lk_status load(lk_exchange *x, const command *c, int64_t *version, lk_error *err)
{
    lk_server *server = x->server;
    if (!*c->name || !*c->path) return lk_fail(err, LK_ERR_ARGUMENT, "both 'lora_name' and 'lora_path' are needed");
    if (!strcmp(c->name, server->model_name))
        return lk_fail(err, LK_ERR_ARGUMENT, "'%.100s' is the name of the base model; give the adapter another", c->name);
    if (!lk_path_exists(c->path)) return lk_fail(err, LK_ERR_NOT_FOUND, "there is no adapter at '%.400s'", c->path);
    if (lk_path_is_folder(c->path)) {
        char config[4200];
        LK_TRY(lk_path_join(config, sizeof config, c->path, "adapter_config.json", err));
        if (!lk_path_exists(config))
            return lk_fail(err, LK_ERR_NOT_FOUND, "there is no adapter at '%.400s': the folder has no adapter_config.json", c->path);
    }
    lk_status status = lk_engine_load_adapter(server->place.engine, c->name, c->path, c->in_place, version, err);
    if (status == LK_ERR_CONFLICT)
        return lk_fail(err, status, "the adapter '%.100s' is loaded already; send \"load_inplace\": true to put a new version in its place",
                       c->name);
    return status;
}

static enum MHD_Result say(lk_exchange *x, const char *name, const char *what)
{
    lk_writer out = {0};
    lk_writer_printf(&out, "Success: LoRA adapter '%s' %s successfully.", name, what);
    return lk_exchange_send(x, 200, "text/plain; charset=utf-8", &out);
}

enum MHD_Result lk_adapter_load_handle(lk_exchange *x)
{
    command c;
    lk_error err = {0};
    int64_t version = 0;
    enum MHD_Result result;
    lk_status status = parse_command(x, &c, &err);
    lk_exchange_wait(x, true);
    if (!status) status = load(x, &c, &version, &err);
    lk_exchange_wait(x, false);
    if (!status) {
        lk_log(LK_LOG_INFO, "adapter %s@%" PRId64 " loaded from %s", c.name, version, c.path);
        lk_exchange_header(x, "x-adapter-id", "%s", c.name);
        lk_exchange_header(x, "x-adapter-version", "%" PRId64, version);
        result = say(x, c.name, "added");
    } else
        result = fail_as_vllm(x, http_of(status), err.message);
    cJSON_Delete(c.root);
    return result;
}

enum MHD_Result lk_adapter_unload_handle(lk_exchange *x)
{
    command c;
    lk_error err = {0};
    enum MHD_Result result;
    lk_status status = parse_command(x, &c, &err);
    if (!status && !*c.name) status = lk_fail(&err, LK_ERR_ARGUMENT, "'lora_name' is needed");
    if (!status) status = lk_engine_unload_adapter(x->server->place.engine, c.name, &err);
    if (status == LK_ERR_NOT_FOUND) lk_fail(&err, status, "The lora adapter '%.200s' cannot be found.", c.name);
    if (!status) {
        lk_log(LK_LOG_INFO, "adapter %s unloaded", c.name);
        result = say(x, c.name, "removed");
    } else
        result = fail_as_vllm(x, http_of(status), err.message);
    cJSON_Delete(c.root);
    return result;
}

enum MHD_Result lk_adapter_list_handle(lk_exchange *x)
{
    lk_adapter_info *list = NULL;
    int64_t n = 0;
    lk_error err = {0};
    lk_api_error e;
    if (lk_engine_list_adapters(x->server->place.engine, &list, &n, &err)) {
        lk_api_fail_from(&e, &err, NULL);
        return lk_exchange_fail(x, &e);
    }
    lk_writer out = {0};
    lk_writer_string(&out, "[");
    for (int64_t i = 0, id = 0; i < n; i++) {
        if (!list[i].current) continue;
        lk_writer_printf(&out, "%s{\"id\":%" PRId64 ",\"path\":", id ? "," : "", id);
        lk_writer_json_string(&out, list[i].path);
        lk_writer_string(&out, ",\"scale\":1.0,\"name\":");
        lk_writer_json_string(&out, list[i].name);
        lk_writer_printf(&out, ",\"version\":%" PRId64 ",\"digest\":\"%s\",\"bytes\":%" PRId64 ",\"resident\":%s}", list[i].version,
                         list[i].digest, list[i].bytes, list[i].resident ? "true" : "false");
        id++;
    }
    lk_writer_string(&out, "]");
    free(list);
    return lk_exchange_send(x, 200, "application/json", &out);
}
