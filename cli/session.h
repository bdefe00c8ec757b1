/* What most commands open: a backend, the base model, its tokenizer and chat format. */
#ifndef LK_CLI_SESSION_H
#define LK_CLI_SESSION_H

#include "cli/args.h"
#include "data/chat/chat.h"
#include "data/tokenizer/tokenizer.h"
#include "model/model.h"

typedef struct cli_session {
    lk_backend *be;
    lk_model *model;
    lk_tokenizer *tk; /* NULL when not asked for */
    lk_chat *chat;    /* NULL when not asked for */
} cli_session;

enum {
    CLI_TOKENIZER = 1,
    CLI_CHAT = 2,
    CLI_ENGINE = 4,          /* tokens will be generated: with --device auto on a backend that can */
    CLI_TOKENIZER_IF_ANY = 8 /* tk stays NULL where the base has none */
};

/* quant: "nf4", "nf4-head" or "none". Prints the error itself and returns the exit code, or -1 when all is open. */
int cli_session_open(cli_session *s, const cli_command *command, const cli_common *common, const char *base, const char *quant, int want);
void cli_session_close(cli_session *s);

/* "1,2,3" to ids; prints the error and returns false when it is not that. free(*ids). */
bool cli_parse_ids(const cli_command *command, const char *text, int32_t **ids, int64_t *n);
/* A whole file (or standard input for "-"); free(*text). */
bool cli_read_text(const cli_command *command, const char *path, char **text, size_t *size);
/* A conversation from a JSON file: an array of messages, or an object with "messages" and, as in a dataset, "tools", "documents" and
 * "chat_template_kwargs". The input points into the tree. */
typedef struct cli_messages {
    cJSON *json;
    lk_chat_input input;
} cli_messages;
bool cli_read_messages(const cli_command *command, const char *path, cli_messages *out);
void cli_messages_free(cli_messages *m);

#endif
