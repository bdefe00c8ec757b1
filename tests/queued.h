/* A CPU backend that samples behind the host's back, as a device does: what the engine's look-ahead is tested with where nothing is queued
 * in earnest. Tokens are drawn in lk_sample_begin and stay hidden until lk_sample_end; ids and penalties may name them meanwhile.
 *
 *     check_queued queued;
 *     check_queued_make(&queued, be);     -- be samples in two halves from now on
 *     check_queued_free(&queued);         -- before be is closed */
#ifndef LK_TESTS_QUEUED_H
#define LK_TESTS_QUEUED_H

#include "kernels/backend.h"

typedef struct check_sampling {
    int64_t n;
    lk_status status;
    lk_sample_result *results;
} check_sampling;

typedef struct check_queued {
    lk_ops ops; /* first: the backend's table, by which its entries find the rest */
    const lk_ops *real;
    lk_backend *be;
    check_sampling under_way[2]; /* the oldest is number begun - n */
    int64_t begun, ended;
    int64_t most_under_way; /* ever */
    int64_t n_drawn;
    int32_t *drawn; /* of the last sampling begun */
} check_queued;

void check_queued_make(check_queued *queued, lk_backend *be);
void check_queued_free(check_queued *queued);

#endif
