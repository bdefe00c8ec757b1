/* A thread pool with a static partition: which thread does which item depends only on the item and thread counts, so
 * results do not depend on timing.
 *
 *     static void scale(void *context, int64_t begin, int64_t end, int thread);
 *     lk_pool_run(pool, n_rows, 16, scale, &args);      -- returns when all is done
 *
 * lk_pool_run splits [0, n_items) into as many contiguous ranges as there are threads, each but the last a multiple of
 * `grain`, and calls the task once per non-empty range. The calling thread works too (as thread 0). One run at a time per
 * pool: a pool belongs to one owner; a task must not call lk_pool_run on its own pool. For bit-identical results at any
 * number of threads a task must compute each item independently of the range it came in. */
#ifndef LK_BASE_POOL_H
#define LK_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

typedef struct lk_pool lk_pool;
typedef void lk_pool_task(void *context, int64_t begin, int64_t end, int thread);

/* n_threads 0: as many as the process may run on (affinity and cgroup quota respected). */
lk_status lk_pool_create(lk_pool **pool, int n_threads, lk_error *err);
void lk_pool_destroy(lk_pool *pool); /* NULL is fine */
int lk_pool_threads(const lk_pool *pool);
int lk_pool_default_threads(void); /* what 0 stands for */
void lk_pool_run(lk_pool *pool, int64_t n_items, int64_t grain, lk_pool_task *task, void *context);
/* Runs task once on every thread with begin = thread, end = thread + 1: for work shared out by the task itself. */
void lk_pool_each(lk_pool *pool, lk_pool_task *task, void *context);

#endif
