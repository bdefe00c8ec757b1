#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "data/bundle.h"
#include "serve/http.h"

/* NAME=PATH, or PATH alone under the folder's own name. */
static int load(const cli_command *self, lk_engine *engine, const char *text)
{
    char name[256];
    const char *equals = strchr(text, '='), *path = equals ? equals + 1 : text;
    if (equals) {
        snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
    } else {
        const char *slash = strrchr(text, '/');
        snprintf(name, sizeof name, "%s", slash ? slash + 1 : text);
    }
    lk_error err = {0};
    if (lk_engine_load_adapter(engine, name, path, false, NULL, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    lk_log(LK_LOG_INFO, "adapter %s from %s", name, path);
    return -1;
}

static int serve(const cli_command *self, const cli_session *s, lk_engine *engine, const lk_server_options *options,
                 const cli_list *adapters)
{
    int rc;
    for (int i = 0; i < adapters->n; i++)
        if ((rc = load(self, engine, adapters->items[i])) >= 0) return rc;
    lk_server *server;
    lk_error err = {0};
    if (lk_engine_warm_up(engine, &err)) lk_log(LK_LOG_WARN, "nothing is recorded beforehand: %s", err.message);
    if (lk_server_start(&server, engine, s->tk, s->chat, options, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    /* On standard output, so that a script that asked for port 0 learns the port. */
    printf("serving %s on http://%s:%d\n", options->model_name, options->host, lk_server_port(server));
    fflush(stdout);
    cli_stop_wait();
    lk_log(LK_LOG_INFO, "stopping: no new requests, waiting up to %d s for the running ones", options->drain_seconds);
    lk_server_stop(server);
    return CLI_DONE;
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *quant = "nf4", *kv_dtype = "auto", *trusted_keys = NULL;
    static cli_list adapters;
    lk_engine_options engine_options;
    lk_server_options server_options;
    lk_engine_options_default(&engine_options);
    lk_server_options_default(&server_options);
    int64_t port = 8000, kv_memory = 0, max_resident = engine_options.max_resident_adapters, max_running = engine_options.max_running,
            max_waiting = engine_options.max_waiting, budget = engine_options.token_budget, max_rank = engine_options.max_rank;
    int n;
    bool auto_tools = false;
    const cli_option options[] = {
        {"--adapter", CLI_LIST, &adapters, "NAME=PATH", "load an adapter; may be given several times"},
        {"--adapters-dir", CLI_STRING, &server_options.adapters_dir, "DIR",
         "folders and bundles (NAME.tar.zst) here are loaded when a request names them"},
        {"--trusted-keys", CLI_STRING, &trusted_keys, "FILE", "load only bundles that one of these Ed25519 public keys (PEM) signed"},
        {"--host", CLI_STRING, &server_options.host, "H", "address to listen on (127.0.0.1)"},
        {"--port", CLI_INT, &port, "P", "port, 0 for any free one (8000)"},
        {"--api-keys", CLI_STRING, &server_options.api_keys_file, "FILE", "a file of accepted keys, one a line"},
        {"--model-name", CLI_STRING, &server_options.model_name, "NAME", "the base's name in the API (the folder's name)"},
        {"--max-model-len", CLI_INT, &engine_options.max_model_len, "N", "longest prompt and answer together"},
        {"--kv-memory", CLI_BYTES, &kv_memory, "BYTES", "memory for keys, values and adapters together: 2G"},
        {"--memory-share", CLI_NUMBER, &engine_options.memory_share, "X", "without --kv-memory: most of a GPU's free memory to take (0.9)"},
        {"--adapter-host-memory", CLI_BYTES, &engine_options.adapter_host_bytes, "BYTES",
         "host memory for adapters that are put out, to bring them back quickly (4G on a GPU, else none)"},
        {"--kv-dtype", CLI_STRING, &kv_dtype, "auto|int8", "keys and values as computed, or in 8 bits: twice the context"},
        {"--max-resident-adapters", CLI_INT, &max_resident, "N", "adapters in memory at once"},
        {"--max-rank", CLI_INT, &max_rank, "R", "largest rank of an adapter"},
        {"--max-running", CLI_INT, &max_running, "N", "requests in one batch"},
        {"--max-waiting", CLI_INT, &max_waiting, "N", "requests in the queue; more are refused with 429"},
        {"--token-budget", CLI_INT, &budget, "N", "tokens of one step: larger favours throughput, smaller latency"},
        {"--tool-call-parser", CLI_STRING, &server_options.tool_call_parser, "hermes|llama3_json|mistral",
         "take tool calls out of chat answers, written as Hermes and Qwen, Llama 3 or Mistral do"},
        {"--enable-auto-tool-choice", CLI_FLAG, &auto_tools, NULL, "vLLM's; wants --tool-call-parser, which is enough here"},
        {"--enforce-eager", CLI_FLAG, &engine_options.eager, NULL,
         "compute every step of decoding operation by operation, without recordings (CUDA graphs): starts sooner, decodes slower"},
        {"--quant", CLI_STRING, &quant, "nf4|nf4-head|none", "quantise the linear layers (nf4), and the head"},
        {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n);
    if (rc >= 0) return rc;
    if (auto_tools && !server_options.tool_call_parser)
        return cli_fail(self, CLI_USAGE, "--enable-auto-tool-choice wants --tool-call-parser: hermes, llama3_json or mistral");
    if (port < 0 || port > 65535) return cli_fail(self, CLI_USAGE, "--port is 0 to 65535");
    if (max_resident < 1 || max_running < 1 || max_waiting < 1 || budget < 1 || max_rank < 1 || max_resident > 1 << 20 ||
        max_running > 4096 || max_waiting > 1 << 20 || budget > 1 << 20 || max_rank > 512)
        return cli_fail(self, CLI_USAGE,
                        "a limit is out of range: adapters, running (to 4096), waiting, token budget and rank (to 512) start at 1");
    engine_options.kv_8bit = !strcmp(kv_dtype, "int8");
    if (!engine_options.kv_8bit && strcmp(kv_dtype, "auto"))
        return cli_fail(self, CLI_USAGE, "--kv-dtype is auto or int8, not '%s'", kv_dtype);
    engine_options.kv_bytes = (size_t)kv_memory;
    engine_options.max_resident_adapters = (int32_t)max_resident;
    engine_options.max_running = (int32_t)max_running;
    engine_options.max_waiting = (int32_t)max_waiting;
    engine_options.token_budget = (int32_t)budget;
    engine_options.max_rank = (int32_t)max_rank;
    server_options.port = (int)port;
    lk_error err = {0};
    lk_bundle_keys *keys = NULL;
    if (trusted_keys && lk_bundle_keys_read(&keys, trusted_keys, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    engine_options.trusted_keys = keys;
    cli_stop_install();
    cli_session s;
    if ((rc = cli_session_open(&s, self, &common, base, quant, CLI_TOKENIZER | CLI_CHAT | CLI_ENGINE)) >= 0) goto out;
    if (!server_options.model_name) server_options.model_name = s.model->name;
    lk_engine *engine = NULL;
    lk_engine_memory memory;
    if (lk_engine_plan(s.model, &engine_options, &memory, &err) || lk_engine_start(&engine, s.model, &engine_options, &err)) {
        rc = cli_fail(self, CLI_FAILED, "%s", err.message);
    } else {
        const double MIB = 1048576.0;
        lk_log(LK_LOG_INFO,
               "%s on %s: weights %.1f MiB, keys, values and adapters %.1f MiB, activations %.1f MiB; on the host for adapters %.1f MiB",
               s.model->name, lk_backend_name(s.be), (double)(lk_allocated(s.be) - memory.pool - memory.activations) / MIB,
               (double)memory.pool / MIB, (double)memory.activations / MIB, (double)memory.host / MIB);
        rc = serve(self, &s, engine, &server_options, &adapters);
        lk_engine_stop(engine);
    }
    cli_session_close(&s);
out:
    lk_bundle_keys_free(keys);
    return rc;
}

const cli_command cli_serve = {"serve", "BASE [--adapter NAME=PATH]... [--adapters-dir DIR] [--host H] [--port P]",
                               "an OpenAI-compatible server for a base and many adapters", NULL, run};
