/* The distinct tokens a request has seen, with how often each was generated: what the penalties of lk_sample_request read.
 *
 *     lk_seen seen;
 *     LK_TRY(lk_seen_init(&seen, n_prompt + max_tokens, err));
 *     lk_seen_prompt(&seen, id);      -- counted 0
 *     lk_seen_output(&seen, id);      -- counted 1 more
 *     request.seen = seen.ids; request.seen_counts = seen.counts; request.n_seen = seen.n;
 *     lk_seen_free(&seen);
 *
 * Requests without penalties have none of this. */
#ifndef LK_SERVE_SEEN_H
#define LK_SERVE_SEEN_H

#include <stdint.h>

#include "base/status.h"

typedef struct lk_seen {
    int32_t *ids, *counts; /* in order of first appearance */
    int32_t n;
    int32_t *slots; /* open addressing: index into ids, or -1 */
    uint32_t mask;
} lk_seen;

/* Room for `most` distinct tokens; nothing is allocated later. */
lk_status lk_seen_init(lk_seen *seen, int64_t most, lk_error *err);
void lk_seen_free(lk_seen *seen); /* safe on a zeroed struct */
void lk_seen_prompt(lk_seen *seen, int32_t id);
void lk_seen_output(lk_seen *seen, int32_t id);

#endif
