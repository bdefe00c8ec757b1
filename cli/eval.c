#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/exact.h"
#include "cli/stop.h"
#include "train/evaluate.h"

static bool parse_format(const cli_command *self, const char *text, lk_data_format *format)
{
    static const char *const names[] = {"messages", "completion", "text", "alpaca", "sharegpt"};
    for (int i = 0; i < 5; i++) {
        if (strcmp(text, names[i])) continue;
        *format = (lk_data_format)i;
        return true;
    }
    cli_fail(self, CLI_USAGE, "--format is messages, completion, text, alpaca or sharegpt, not '%s'", text);
    return false;
}

static void print_answer(const lk_eval_result *r, const cli_exact *exact, bool with_exact, bool json)
{
    double share = exact->asked ? (double)exact->matched / (double)exact->asked : 0.0;
    if (!json) {
        printf("loss %.6f  perplexity %.4f  token accuracy %.4f  supervised tokens %lld of %lld in %lld documents\n", r->loss,
               r->perplexity, r->accuracy, (long long)r->supervised, (long long)r->tokens, (long long)r->documents);
        if (with_exact) printf("exact match %.4f (%lld of %lld)\n", share, (long long)exact->matched, (long long)exact->asked);
        return;
    }
    cJSON *out = cJSON_CreateObject();
    lk_json_add_number(out, "loss", r->loss);
    lk_json_add_number(out, "perplexity", r->perplexity);
    lk_json_add_number(out, "accuracy", r->accuracy);
    cJSON_AddNumberToObject(out, "tokens", (double)r->supervised);
    cJSON_AddNumberToObject(out, "documents", (double)r->documents);
    if (with_exact)
        lk_json_add_number(out, "exact_match", share);
    else
        cJSON_AddNullToObject(out, "exact_match");
    char *text = cJSON_PrintUnformatted(out);
    printf("%s\n", text ? text : "");
    free(text);
    cJSON_Delete(out);
}

static int exact_match(const cli_command *self, const cli_common *common, const char *base, const char *quant, const char *adapter,
                       const lk_source *source, int64_t max_tokens, int64_t limit, cli_exact *exact)
{
    cli_session s;
    int rc =
        cli_session_open(&s, self, common, base, quant, CLI_TOKENIZER | CLI_ENGINE | (source->format == LK_DATA_COMPLETION ? 0 : CLI_CHAT));
    if (rc >= 0) return rc;
    lk_error err = {0};
    if (cli_exact_match(exact, &s, adapter, source, max_tokens, limit, &err)) rc = cli_fail(self, CLI_FAILED, "%s", err.message);
    cli_session_close(&s);
    return rc;
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *adapter = NULL, *data = NULL, *format = "messages", *quant = "nf4", *loss_on = NULL, *prompt_field = NULL,
                      *completion_field = NULL;
    int64_t max_length = 1024, max_tokens = 128, limit = 0;
    bool json = false, no_exact = false;
    int n;
    const cli_option options[] = {
        {"--adapter", CLI_STRING, &adapter, "PATH", "a PEFT folder or a bundle"},
        {"--data", CLI_STRING, &data, "FILE", "the dataset (required)"},
        {"--format", CLI_STRING, &format, "F", "messages, completion, text, alpaca or sharegpt (messages)"},
        {"--prompt-field", CLI_STRING, &prompt_field, "NAME", "with --format completion: the prompt's field (prompt)"},
        {"--completion-field", CLI_STRING, &completion_field, "NAME", "with --format completion: the answer's field (completion)"},
        {"--loss-on", CLI_STRING, &loss_on, "WHAT", "assistant, completion or all (by the format)"},
        {"--max-length", CLI_INT, &max_length, "N", "longest document in tokens (1024)"},
        {"--max-tokens", CLI_INT, &max_tokens, "N", "longest answer for exact match (128)"},
        {"--limit", CLI_INT, &limit, "N", "ask only the first N for exact match (all)"},
        {"--no-exact-match", CLI_FLAG, &no_exact, NULL, "loss only, generate nothing"},
        {"--quant", CLI_STRING, &quant, "nf4|none", "quantise the linear layers (nf4)"},
        {"--json", CLI_FLAG, &json, NULL, "print {loss, perplexity, tokens, exact_match, ...}"},
        {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n);
    if (rc >= 0) return rc;
    if (!data) return cli_fail(self, CLI_USAGE, "--data FILE is required");
    if (max_length < 2 || max_tokens < 1 || limit < 0)
        return cli_fail(self, CLI_USAGE, "--max-length is at least 2, --max-tokens at least 1, --limit not negative");
    lk_source source = {.path = data, .prompt_field = prompt_field, .completion_field = completion_field};
    if (!parse_format(self, format, &source.format)) return CLI_USAGE;
    lk_eval_options eval = lk_eval_options_default();
    if (!cli_compute(self, &common, &eval.compute)) return CLI_USAGE;
    eval.base = base;
    eval.adapter = adapter;
    eval.quant = strcmp(quant, "none") ? LK_QUANT_NF4 : LK_QUANT_NONE;
    eval.sources = &source;
    eval.n_sources = 1;
    eval.max_length = max_length;
    eval.loss_on = loss_on                               ? loss_on
                   : source.format == LK_DATA_COMPLETION ? "completion"
                   : source.format == LK_DATA_TEXT       ? "all"
                                                         : "assistant";
    eval.device = common.device;
    eval.threads = (int)common.threads;
    eval.stop = &cli_stop;
    cli_stop_install();
    lk_eval_result result;
    cli_exact exact = {0};
    lk_error err = {0};
    if (lk_eval_run(&result, &eval, &err)) return cli_fail(self, CLI_FAILED, "%s", err.message);
    bool with_exact = !no_exact && source.format != LK_DATA_TEXT;
    if (with_exact && (rc = exact_match(self, &common, base, quant, adapter, &source, max_tokens, limit, &exact)) >= 0) return rc;
    print_answer(&result, &exact, with_exact && exact.asked > 0, json);
    return CLI_DONE;
}

const cli_command cli_eval = {
    "eval", "BASE [--adapter PATH] --data FILE [--json]", "loss, perplexity and exact match on a dataset",
    "The loss is over the supervised tokens. Exact match asks every example that has a reference answer, greedily, and compares the texts.",
    run};
