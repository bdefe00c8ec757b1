/* One generation through the serving engine, for the commands that generate in the terminal: the same code path and the same bits as the
 * server. */
#ifndef LK_CLI_COMPLETE_H
#define LK_CLI_COMPLETE_H

#include "cli/session.h"
#include "serve/engine.h"

typedef struct cli_completion {
    char *text;   /* free() */
    int32_t *ids; /* free(); generated tokens, without the stop token */
    int64_t n_ids, n_prompt;
    lk_finish finish;
    char adapter_digest[65];
} cli_completion;

/* Called with each piece of text as it comes; NULL: not wanted. */
typedef void cli_text_sink(void *context, const char *text, size_t size);

/* An engine for one request at a time over the session's model, with the adapter (a PEFT folder, may be NULL) loaded as "adapter". */
lk_status cli_engine_start(lk_engine **engine, const cli_session *s, const char *adapter, lk_error *err);
/* Runs the request (spec->adapter is set here) to its end, or until cli_stop. free the parts with cli_completion_free. */
lk_status cli_complete(cli_completion *out, lk_engine *engine, const cli_session *s, lk_request_spec spec, bool with_adapter,
                       cli_text_sink *sink, void *context, lk_error *err);
void cli_completion_free(cli_completion *c);
const char *cli_finish_name(lk_finish finish);

/* Ids of a prompt: messages rendered with the generation prompt, or text with special tokens. free(*ids). */
lk_status cli_encode_messages(const cli_session *s, const lk_chat_input *input, int32_t **ids, int64_t *n_ids, lk_error *err);

#endif
