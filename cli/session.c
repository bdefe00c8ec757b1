#include "cli/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"

static void show_progress(void *context, int64_t done, int64_t total)
{
    (void)context;
    fprintf(stderr, "\rloading %lld/%lld%s", (long long)done, (long long)total, done == total ? "\r\033[K" : "");
    fflush(stderr);
}

static lk_status open_backend(cli_session *s, const cli_common *common, lk_dtype compute, bool generates, lk_error *err)
{
    lk_backend_options options = {.device = common->device, .threads = (int)common->threads, .compute = compute};
    LK_TRY(lk_backend_open(&s->be, &options, err));
    if (!generates || lk_backend_serves(s->be) || strcmp(common->device, "auto")) return LK_OK;
    lk_log(LK_LOG_INFO, "the CPU computes: %s trains and evaluates, but cannot generate", lk_backend_name(s->be));
    lk_backend_close(s->be);
    options.device = "cpu";
    return lk_backend_open(&s->be, &options, err);
}

int cli_session_open(cli_session *s, const cli_command *command, const cli_common *common, const char *base, const char *quant, int want)
{
    memset(s, 0, sizeof *s);
    lk_error err = {0};
    lk_model_options options = {.quant = LK_QUANT_NF4, .progress = isatty(STDERR_FILENO) ? show_progress : NULL};
    if (!strcmp(quant, "none"))
        options.quant = LK_QUANT_NONE;
    else if (!strcmp(quant, "nf4-head"))
        options.nf4_head = true;
    else if (strcmp(quant, "nf4"))
        return cli_fail(command, CLI_USAGE, "--quant is nf4, nf4-head or none, not '%s'", quant);
    lk_dtype compute;
    if (!cli_compute(command, common, &compute)) return CLI_USAGE;
    if (open_backend(s, common, compute, want & CLI_ENGINE, &err)) goto fail;
    double start = lk_clock_seconds();
    if (lk_model_open(&s->model, s->be, base, &options, &err)) goto fail;
    lk_log(LK_LOG_DEBUG, "%s: %.1f M parameters, %s, %s, %.2f s", s->model->name, (double)lk_config_params(&s->model->config) / 1e6,
           s->model->quant == LK_QUANT_NF4 ? "nf4" : "16-bit", lk_backend_name(s->be), lk_clock_seconds() - start);
    lk_status status = want & (CLI_TOKENIZER | CLI_CHAT | CLI_TOKENIZER_IF_ANY) ? lk_tokenizer_open(&s->tk, base, &err) : LK_OK;
    if (status && !(status == LK_ERR_NOT_FOUND && want & CLI_TOKENIZER_IF_ANY)) goto fail;
    if ((want & CLI_CHAT) && lk_chat_open(&s->chat, s->tk, &err)) goto fail;
    return -1;
fail:
    cli_session_close(s);
    return cli_fail(command, CLI_FAILED, "%s", err.message);
}

void cli_session_close(cli_session *s)
{
    lk_chat_close(s->chat);
    lk_tokenizer_close(s->tk);
    lk_model_close(s->model);
    lk_backend_close(s->be);
    memset(s, 0, sizeof *s);
}

bool cli_parse_ids(const cli_command *command, const char *text, int32_t **ids, int64_t *n)
{
    *n = 0;
    *ids = malloc((strlen(text) / 2 + 1) * sizeof **ids);
    if (!*ids) return false;
    const char *p = text;
    for (;;) {
        char *end;
        errno = 0;
        long value = strtol(p, &end, 10);
        if (end == p || errno || value < 0 || value > INT32_MAX || (*end && *end != ',')) {
            cli_fail(command, CLI_USAGE, "token ids are numbers separated by commas; cannot read '%.40s'", p);
            free(*ids);
            *ids = NULL;
            return false;
        }
        (*ids)[(*n)++] = (int32_t)value;
        if (!*end) return true;
        p = end + 1;
    }
}

bool cli_read_text(const cli_command *command, const char *path, char **text, size_t *size)
{
    lk_error err = {0};
    if (!lk_file_read(strcmp(path, "-") ? path : "/dev/stdin", (size_t)1 << 30, text, size, &err)) return true;
    cli_fail(command, CLI_FAILED, "%s", err.message);
    return false;
}

bool cli_read_messages(const cli_command *command, const char *path, cli_messages *out)
{
    memset(out, 0, sizeof *out);
    char *text;
    size_t size;
    if (!cli_read_text(command, path, &text, &size)) return false;
    lk_error err = {0};
    lk_status status = lk_json_parse(&out->json, text, size, path, &err);
    if (!status) status = lk_json_keep_numbers(out->json, text, size, &err);
    free(text);
    const cJSON *root = out->json;
    if (!status) {
        out->input = (lk_chat_input){.messages = cJSON_IsArray(root) ? root : lk_json_get(root, "messages"),
                                     .tools = lk_json_get(root, "tools"),
                                     .documents = lk_json_get(root, "documents"),
                                     .variables = lk_json_get(root, "chat_template_kwargs")};
        if (cJSON_IsNull(out->input.tools)) out->input.tools = NULL;
        if (!cJSON_IsArray(out->input.messages) || !out->input.messages->child)
            status = lk_fail(&err, LK_ERR_FORMAT, "%s: a non-empty array of messages, or an object with \"messages\", is expected", path);
    }
    if (!status) return true;
    cli_messages_free(out);
    cli_fail(command, CLI_FAILED, "%s", err.message);
    return false;
}

void cli_messages_free(cli_messages *m)
{
    cJSON_Delete(m->json);
    memset(m, 0, sizeof *m);
}
