#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/session.h"

static void print_json(const int32_t *ids, const uint8_t *mask, int64_t n, const char *text)
{
    cJSON *json = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(json, "ids");
    for (int64_t i = 0; i < n; i++) cJSON_AddItemToArray(list, cJSON_CreateNumber(ids[i]));
    if (mask) {
        cJSON *trained = cJSON_AddArrayToObject(json, "trained");
        for (int64_t i = 0; i < n; i++) cJSON_AddItemToArray(trained, cJSON_CreateNumber(mask[i]));
    }
    cJSON_AddStringToObject(json, "text", text);
    char *out = cJSON_PrintUnformatted(json);
    printf("%s\n", out ? out : "");
    free(out);
    cJSON_Delete(json);
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *text = NULL, *file = NULL, *messages = NULL;
    bool json = false;
    int n_args;
    const cli_option options[] = {{"--text", CLI_STRING, &text, "T", "the text itself"},
                                  {"--file", CLI_STRING, &file, "F", "a text file, - for standard input"},
                                  {"--messages", CLI_STRING, &messages, "FILE", "a JSON file of messages, rendered with the chat template"},
                                  {"--json", CLI_FLAG, &json, NULL, "print {ids, text} (and which tokens would be trained, for messages)"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n_args);
    if (rc >= 0) return rc;
    if ((text != NULL) + (file != NULL) + (messages != NULL) != 1)
        return cli_fail(self, CLI_USAGE, "give exactly one of --text, --file and --messages");
    lk_error err = {0};
    lk_tokenizer *tk = NULL;
    lk_chat *chat = NULL;
    lk_chat_tokens tokens = {0};
    cli_messages m = {0};
    char *owned = NULL, *decoded = NULL;
    size_t size = 0;
    rc = CLI_FAILED;
    if (lk_tokenizer_open(&tk, base, &err)) goto fail;
    if (messages) {
        if (!cli_read_messages(self, messages, &m)) goto out;
        if (lk_chat_open(&chat, tk, &err) || lk_chat_encode(chat, m.messages, m.n, false, &tokens, &err)) goto fail;
    } else {
        if (file && !cli_read_text(self, file, &owned, &size)) goto out;
        const char *source = file ? owned : text;
        if (!file) size = strlen(text);
        if (lk_tokenizer_encode(tk, source, size, LK_TK_SPECIALS, &tokens.ids, &tokens.n, &err)) goto fail;
    }
    if (lk_tokenizer_decode(tk, tokens.ids, tokens.n, false, &decoded, &size, &err)) goto fail;
    if (json) {
        print_json(tokens.ids, tokens.mask, tokens.n, decoded);
    } else {
        for (int64_t i = 0; i < tokens.n; i++) {
            const char *piece = lk_tokenizer_piece(tk, tokens.ids[i], &size);
            printf("%d\t%.*s%s\n", tokens.ids[i], piece ? (int)size : 0, piece ? piece : "",
                   tokens.mask && tokens.mask[i] ? "\ttrained" : "");
        }
    }
    rc = CLI_DONE;
    goto out;
fail:
    cli_fail(self, rc, "%s", err.message);
out:
    free(decoded);
    free(owned);
    cli_messages_free(&m);
    if (messages)
        lk_chat_tokens_free(&tokens);
    else
        free(tokens.ids);
    lk_chat_close(chat);
    lk_tokenizer_close(tk);
    return rc;
}

const cli_command cli_tokenize = {"tokenize", "BASE (--text T | --file F | --messages FILE) [--json]",
                                  "show how a model's tokenizer and chat template read a text", NULL, run};
