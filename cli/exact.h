/* Exact match: the share of examples whose greedy answer is the reference, many at a time through the serving engine. */
#ifndef LK_CLI_EXACT_H
#define LK_CLI_EXACT_H

#include "cli/session.h"
#include "data/reader.h"

typedef struct cli_exact {
    int64_t asked, matched;
    int64_t skipped; /* without a reference answer */
} cli_exact;

/* Asks every example of the source that has an answer: the messages before the last assistant turn, or the prompt. White space around
 * answers does not count. adapter may be NULL; limit 0: all. */
lk_status cli_exact_match(cli_exact *result, const cli_session *s, const char *adapter, const lk_source *source, int64_t max_tokens,
                          int64_t limit, lk_error *err);

#endif
