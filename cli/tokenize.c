#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "data/tokenizer/utf8.h"

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

/* ---- the view in colour ---- */

enum { SHOWN_BYTES = 512 };

/* Bytes of a token so that they can do no harm on a terminal: a tab as an arrow, other control characters as \xNN. */
static void put_shown(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c == '\t')
            fputs("\xe2\x86\x92", stdout); /* an arrow */
        else if (c < ' ' || c == 0x7f)
            printf("\\x%02x", c);
        else if (c == 0xc2 && i + 1 < n && (unsigned char)p[i + 1] < 0xa0) /* C1 controls */
            printf("\\x%02x", (unsigned char)p[++i]);
        else
            putchar(c);
    }
}

/* One stretch in its colour: trained on green, the rest on grey, each in two shades so that neighbours are told apart, special tokens
 * underlined. Colours end before a newline, or the terminal would paint the rest of the line. */
static void put_stretch(const char *p, size_t n, bool trained, bool special, bool odd)
{
    static const char *const colours[2][2] = {{"\033[97;100m", "\033[30;47m"}, {"\033[30;42m", "\033[30;102m"}};
    while (n) {
        const char *line = memchr(p, '\n', n);
        size_t size = line ? (size_t)(line - p) : n;
        printf("%s%s", special ? "\033[4m" : "", colours[trained][odd]);
        put_shown(p, size);
        fputs(line ? "\xe2\x86\xb5\033[0m\n" : "\033[0m", stdout);
        p += size + (line != NULL);
        n -= size + (line != NULL);
    }
}

/* Tokens that are parts of one character are shown together, in the colour of the first. */
static void print_colours(const lk_tokenizer *tk, const lk_chat_tokens *tokens)
{
    char bytes[SHOWN_BYTES] = {0};
    size_t held = 0;
    int64_t trained = 0, first = 0;
    bool odd = false;
    for (int64_t i = 0; i < tokens->n; i++) {
        size_t size;
        const char *p = lk_tokenizer_bytes(tk, tokens->ids[i], &size);
        trained += tokens->mask && tokens->mask[i];
        if (held == 0) first = i;
        bool mark = tokens->mask && tokens->mask[first], special = lk_tokenizer_is_special(tk, tokens->ids[first]);
        if (held == 0 && p && lk_utf8_valid_prefix(p, size) == size) {
            put_stretch(p, size, mark, special, odd);
            odd = !odd;
            continue;
        }
        for (size_t k = 0; p && k < size && held < sizeof bytes; k++) bytes[held++] = p[k];
        bool incomplete = false, whole = lk_utf8_valid_prefix(bytes, held) == held;
        size_t good = lk_utf8_valid_prefix(bytes, held);
        if (!whole) lk_utf8_subpart(bytes + good, held - good, &incomplete);
        if (incomplete && i + 1 < tokens->n && held < sizeof bytes) continue;
        put_stretch(bytes, good, mark, special, odd);
        if (!whole) put_stretch("\xef\xbf\xbd", 3, mark, special, odd);
        odd = !odd;
        held = 0;
    }
    printf("\n%lld tokens", (long long)tokens->n);
    if (tokens->mask)
        printf(", %lld of them trained (\033[30;42mgreen\033[0m), the others only read (\033[97;100mgrey\033[0m)", (long long)trained);
    putchar('\n');
}

static void print_lines(const lk_tokenizer *tk, const lk_chat_tokens *tokens)
{
    for (int64_t i = 0; i < tokens->n; i++) {
        size_t size;
        const char *piece = lk_tokenizer_piece(tk, tokens->ids[i], &size);
        printf("%d\t%.*s%s\n", tokens->ids[i], piece ? (int)size : 0, piece ? piece : "",
               tokens->mask && tokens->mask[i] ? "\ttrained" : "");
    }
}

static int run(const cli_command *self, int argc, char **argv)
{
    cli_common common;
    const char *base, *text = NULL, *file = NULL, *messages = NULL, *color = "auto";
    bool json = false, chat_view = false;
    int n_args;
    const cli_option options[] = {{"--text", CLI_STRING, &text, "T", "the text itself"},
                                  {"--file", CLI_STRING, &file, "F", "a text file, - for standard input"},
                                  {"--messages", CLI_STRING, &messages, "FILE", "a JSON file of messages, rendered with the chat template"},
                                  {"--chat", CLI_FLAG, &chat_view, NULL,
                                   "render --text or --file as a user's turn too, and show the tokens in colour: green is trained on"},
                                  {"--color", CLI_STRING, &color, "WHEN", "auto (on a terminal), always or never"},
                                  {"--json", CLI_FLAG, &json, NULL, "print {ids, text} (and which tokens would be trained, for messages)"},
                                  {0}};
    int rc = cli_parse(self, options, &common, argc, argv, &base, 1, 1, &n_args);
    if (rc >= 0) return rc;
    if ((text != NULL) + (file != NULL) + (messages != NULL) != 1)
        return cli_fail(self, CLI_USAGE, "give exactly one of --text, --file and --messages");
    bool always = !strcmp(color, "always"), terminal = !strcmp(color, "auto") && isatty(STDOUT_FILENO);
    if (!always && strcmp(color, "auto") && strcmp(color, "never"))
        return cli_fail(self, CLI_USAGE, "--color must be auto, always or never, not %s", color);
    if (always && !chat_view) return cli_fail(self, CLI_USAGE, "--color goes with --chat");
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
        if (lk_chat_open(&chat, tk, &err) || lk_chat_encode(chat, &m.input, &tokens, &err)) goto fail;
    } else {
        if (file && !cli_read_text(self, file, &owned, &size)) goto out;
        const char *source = file ? owned : text;
        if (!file) size = strlen(text);
        if (chat_view) {
            lk_chat_input in = {.messages = m.json = cJSON_CreateArray(), .generation_prompt = true};
            if (!m.json || lk_chat_add(m.json, "user", source, &err)) goto fail;
            if (lk_chat_open(&chat, tk, &err) || lk_chat_encode(chat, &in, &tokens, &err)) goto fail;
        } else if (lk_tokenizer_encode(tk, source, size, LK_TK_SPECIALS, &tokens.ids, &tokens.n, &err))
            goto fail;
    }
    if (lk_tokenizer_decode(tk, tokens.ids, tokens.n, false, &decoded, &size, &err)) goto fail;
    if (json) {
        print_json(tokens.ids, tokens.mask, tokens.n, decoded);
    } else if (chat_view && (always || terminal)) {
        print_colours(tk, &tokens);
    } else {
        print_lines(tk, &tokens);
    }
    rc = CLI_DONE;
    goto out;
fail:
    cli_fail(self, rc, "%s", err.message);
out:
    free(decoded);
    free(owned);
    cli_messages_free(&m);
    lk_chat_tokens_free(&tokens);
    lk_chat_close(chat);
    lk_tokenizer_close(tk);
    return rc;
}

const cli_command cli_tokenize = {"tokenize", "BASE (--text T | --file F | --messages FILE) [--chat [--color WHEN]] [--json]",
                                  "show how a model's tokenizer and chat template read a text",
                                  "One token a line: id, the vocabulary's piece, and \"trained\" where a loss would be taken. --chat on a\n"
                                  "terminal shows the rendered conversation itself, token by token, what is trained on in green.",
                                  run};
