#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/complete.h"
#include "cli/stop.h"

static void print_now(void *context, const char *text, size_t size)
{
    (void)context;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
}

enum { MAX_TURNS = 2000 };

/* Reads a line, answers it, until the input ends. The whole conversation is the prompt of each turn. */
static int converse(const cli_command *self, const cli_session *s, lk_engine *engine, bool adapter, const char *system,
                    lk_request_spec spec)
{
    cJSON *messages = cJSON_CreateArray();
    int64_t n = 0;
    char *line = NULL;
    size_t room = 0;
    int rc = CLI_DONE;
    lk_error err = {0};
    if (!messages || (system && lk_chat_add(messages, "system", system, &err))) {
        cJSON_Delete(messages);
        return cli_fail(self, CLI_FAILED, "no memory");
    }
    bool terminal = isatty(STDIN_FILENO);
    while (n + 2 < MAX_TURNS && !cli_stop) {
        if (terminal) fprintf(stderr, "> ");
        ssize_t length = getline(&line, &room, stdin);
        if (length < 0) break;
        while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r')) line[--length] = 0;
        if (length == 0) continue;
        int32_t *ids = NULL;
        cli_completion c;
        if (lk_chat_add(messages, "user", line, &err) ||
            cli_encode_messages(s, &(lk_chat_input){.messages = messages}, &ids, &spec.n_prompt, &err)) {
            rc = cli_fail(self, CLI_FAILED, "%s", err.message);
            break;
        }
        spec.prompt = ids;
        lk_status status = cli_complete(&c, engine, s, spec, adapter, print_now, NULL, &err);
        free(ids);
        if (status) {
            rc = cli_fail(self, CLI_FAILED, "%s", err.message);
            break;
        }
        printf("\n");
        status = lk_chat_add(messages, "assistant", c.text, &err);
        cli_completion_free(&c);
        if (status) {
            rc = cli_fail(self, CLI_FAILED, "%s", err.message);
            break;
        }
        n += 2;
    }
    free(line);
    cJSON_Delete(messages);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *adapter = NULL, *system = NULL, *quant = "nf4";
    int64_t max_tokens = 512, seed = 0;
    double temperature = 0.7, top_p = 0.95;
    int n_args;
    const cli_option options[] = {{"--adapter", CLI_STRING, &adapter, "PATH", "a PEFT folder or a bundle"},
                                  {"--system", CLI_STRING, &system, "TEXT", "a system message"},
                                  {"--max-tokens", CLI_INT, &max_tokens, "N", "most tokens of an answer (512)"},
                                  {"--temperature", CLI_NUMBER, &temperature, "T", "0 is greedy (0.7)"},
                                  {"--top-p", CLI_NUMBER, &top_p, "P", "nucleus sampling (0.95)"},
                                  {"--seed", CLI_INT, &seed, "S", "the same seed and messages give the same answers (0)"},
                                  {"--quant", CLI_STRING, &quant, "nf4|nf4-head|none", "quantise the linear layers (nf4), and the head"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n_args);
    if (rc >= 0) return rc;
    if (temperature < 0 || top_p <= 0 || top_p > 1 || max_tokens < 1)
        return cli_fail(self, CLI_USAGE, "--temperature is 0 or more, --top-p in (0,1], --max-tokens 1 or more");
    cli_stop_install();
    cli_session s;
    if ((rc = cli_session_open(&s, self, &common, base, quant, CLI_TOKENIZER | CLI_CHAT | CLI_ENGINE)) >= 0) return rc;
    lk_error err = {0};
    lk_engine *engine;
    if (cli_engine_start(&engine, &s, adapter, &err)) {
        rc = cli_fail(self, CLI_FAILED, "%s", err.message);
    } else {
        lk_request_spec spec = {.max_tokens = max_tokens,
                                .temperature = (float)temperature,
                                .top_p = (float)top_p,
                                .repetition_penalty = 1.0f,
                                .seed = (uint64_t)seed,
                                .n_logprobs = -1};
        rc = converse(self, &s, engine, adapter != NULL, system, spec);
        lk_engine_stop(engine);
    }
    cli_session_close(&s);
    return rc;
}

const cli_command cli_chat = {"chat", "BASE [--adapter PATH] [--system TEXT]", "talk to a model in the terminal", NULL, run};
