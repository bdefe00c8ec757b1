/* Processes of one machine that do one job together: data-parallel training has one rank a GPU.
 *
 *     lk_ranks *ranks;
 *     LK_TRY(lk_ranks_start(&ranks, 4, err));          -- forks: from here on four processes run, each with its own lk_ranks_rank
 *     LK_TRY(lk_ranks_sum(ranks, x, n, err));          -- x[i] = sum over ranks, in the order of ranks, the same bits in each
 *     status = lk_ranks_finish(ranks, status, err);    -- rank 0 waits for the others; they leave by _exit in here
 *
 * Rank 0 is the process that called; it alone returns from lk_ranks_finish. Ranks talk through shared memory. Every function but rank and
 * size is collective: all ranks call it, in the same order. When a rank fails or dies, the others' next collective call fails with
 * LK_ERR_IO naming it, so nobody waits for ever; when rank 0 dies the kernel ends the others.
 *
 * Start before any thread exists: a fork copies only the calling one. NULL stands for a single rank in all functions. */
#ifndef LK_BASE_RANKS_H
#define LK_BASE_RANKS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" { /* kernels/ops.h is read by the C++ files of the CUDA module */
#endif

typedef struct lk_ranks lk_ranks;

enum { LK_MAX_RANKS = 64 };

/* size 1 gives NULL. */
lk_status lk_ranks_start(lk_ranks **ranks, int size, lk_error *err);
/* The last call. `status` and *err are how this rank ended; rank 0 returns its own failure or else the first of another rank. */
lk_status lk_ranks_finish(lk_ranks *ranks, lk_status status, lk_error *err);

int lk_ranks_rank(const lk_ranks *ranks);
int lk_ranks_size(const lk_ranks *ranks);

lk_status lk_ranks_barrier(lk_ranks *ranks, lk_error *err);
/* Bytes of rank 0 to all; at most 4096. */
lk_status lk_ranks_broadcast(lk_ranks *ranks, void *data, size_t bytes, lk_error *err);
lk_status lk_ranks_sum(lk_ranks *ranks, float *x, int64_t n, lk_error *err);
/* The same for up to 512 doubles: losses, counts, flags. */
lk_status lk_ranks_sum_doubles(lk_ranks *ranks, double *x, int n, lk_error *err);

#ifdef __cplusplus
}
#endif

#endif
