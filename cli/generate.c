#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/complete.h"
#include "cli/stop.h"

static void print_now(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

static void print_json(const cli_completion *c, const cli_session *s, const char *adapter)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "text", c->text);
    cJSON *ids = cJSON_AddArrayToObject(json, "ids");
    for (int64_t i = 0; i < c->n_ids; i++) cJSON_AddItemToArray(ids, cJSON_CreateNumber(c->ids[i]));
    cJSON_AddStringToObject(json, "finish_reason", cli_finish_name(c->finish));
    cJSON_AddNumberToObject(json, "prompt_tokens", (double)c->n_prompt);
    cJSON *a = adapter ? cJSON_AddObjectToObject(json, "adapter") : cJSON_AddNullToObject(json, "adapter");
    if (adapter) {
        cJSON_AddStringToObject(a, "path", adapter);
        cJSON_AddStringToObject(a, "digest", c->adapter_digest);
    }
    cJSON *base = cJSON_AddObjectToObject(json, "base");
    cJSON_AddStringToObject(base, "path", s->model->path);
    cJSON_AddStringToObject(base, "digest", s->model->digest);
    char *out = cJSON_PrintUnformatted(json);
    printf("%s\n", out ? out : "");
    free(out);
    cJSON_Delete(json);
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *adapter = NULL, *prompt = NULL, *prompt_ids = NULL, *messages_file = NULL, *quant = "nf4";
    int64_t max_tokens = 256, seed = 0, top_k = 0;
    double temperature = 0.0, top_p = 1.0;
    bool json = false;
    int n_args;
    const cli_option options[] = {
        {"--adapter", CLI_STRING, &adapter, "PATH", "a PEFT folder or a bundle"},
        {"--prompt", CLI_STRING, &prompt, "TEXT", "text to continue, as it is"},
        {"--prompt-ids", CLI_STRING, &prompt_ids, "1,2", "token ids to continue"},
        {"--messages", CLI_STRING, &messages_file, "FILE", "a JSON file of chat messages to answer (- for standard input)"},
        {"--max-tokens", CLI_INT, &max_tokens, "N", "most tokens to generate (256)"},
        {"--temperature", CLI_NUMBER, &temperature, "T", "0 is greedy (0)"},
        {"--top-p", CLI_NUMBER, &top_p, "P", "nucleus sampling (1)"},
        {"--top-k", CLI_INT, &top_k, "K", "only the K likeliest tokens (0: all)"},
        {"--seed", CLI_INT, &seed, "S", "the same seed gives the same text (0)"},
        {"--quant", CLI_STRING, &quant, "nf4|nf4-head|none", "quantise the linear layers (nf4), and the head"},
        {"--json", CLI_FLAG, &json, NULL, "print {text, ids, finish_reason, prompt_tokens, adapter, base}"},
        {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n_args);
    if (rc >= 0) return rc;
    if ((prompt != NULL) + (prompt_ids != NULL) + (messages_file != NULL) != 1)
        return cli_fail(self, CLI_USAGE, "give exactly one of --prompt, --prompt-ids and --messages");
    if (temperature < 0 || temperature > 100 || top_p <= 0 || top_p > 1 || top_k < 0 || max_tokens < 1)
        return cli_fail(self, CLI_USAGE, "--temperature is 0 or more, --top-p in (0,1], --top-k 0 or more, --max-tokens 1 or more");
    cli_stop_install();
    cli_session s;
    /* Ids alone need no tokenizer: the text of the answer is then left empty. */
    int want = messages_file ? CLI_TOKENIZER | CLI_CHAT : prompt ? CLI_TOKENIZER : CLI_TOKENIZER_IF_ANY;
    if ((rc = cli_session_open(&s, self, &common, base, quant, want | CLI_ENGINE)) >= 0) return rc;
    lk_error err = {0};
    lk_engine *engine = NULL;
    cli_messages messages = {0};
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    cli_completion c = {0};
    rc = CLI_FAILED;
    if (prompt_ids) {
        if (!cli_parse_ids(self, prompt_ids, &ids, &n_ids)) goto out;
    } else if (messages_file) {
        if (!cli_read_messages(self, messages_file, &messages)) goto out;
        if (cli_encode_messages(&s, &messages.input, &ids, &n_ids, &err)) goto fail;
    } else if (lk_tokenizer_encode(s.tk, prompt, strlen(prompt), LK_TK_SPECIALS, &ids, &n_ids, &err)) {
        goto fail;
    }
    if (cli_engine_start(&engine, &s, adapter, &err)) goto fail;
    lk_request_spec spec = {.prompt = ids,
                            .n_prompt = n_ids,
                            .max_tokens = max_tokens,
                            .temperature = (float)temperature,
                            .top_p = (float)top_p,
                            .top_k = (int32_t)top_k,
                            .repetition_penalty = 1.0f,
                            .seed = (uint64_t)seed,
                            .n_logprobs = -1};
    if (cli_complete(&c, engine, &s, spec, adapter != NULL, json ? NULL : print_now, NULL, &err)) goto fail;
    if (json)
        print_json(&c, &s, adapter);
    else
        printf("\n");
    rc = c.finish == LK_FINISH_CANCELLED ? CLI_FAILED : CLI_DONE;
    goto out;
fail:
    cli_fail(self, rc, "%s", err.message);
out:
    cli_completion_free(&c);
    lk_engine_stop(engine);
    cli_messages_free(&messages);
    free(ids);
    cli_session_close(&s);
    return rc;
}

const cli_command cli_generate = {"generate", "BASE [--adapter PATH] (--prompt TEXT | --prompt-ids 1,2 | --messages FILE)",
                                  "continue a text or answer messages", NULL, run};
