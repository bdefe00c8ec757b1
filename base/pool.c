/* Workers spin briefly for the next job and then sleep: a decode step is hundreds of jobs of some 20 microseconds, and a
 * wake-up through the kernel costs as much as the job; a server that idles must not burn a core. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SPINS = 4000, MAX_THREADS = 256 };

typedef struct worker {
    lk_pool *pool;
    pthread_t handle;
    int index;
} worker;

struct lk_pool {
    int n_threads;
    worker *workers; /* n_threads - 1 of them; the caller is thread 0 */
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    _Atomic uint64_t generation; /* counts jobs; a worker runs when it differs from what it last saw */
    _Atomic int pending;         /* workers still at the current job */
    bool stopping;
    lk_pool_task *task;
    void *context;
    int64_t n_items, grain;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

/* One turn of a wait. Now and then it lets others have the core: where more threads run than there are cores, the one waited for may be
 * among them. */
static inline void wait_turn(int turn)
{
    if (turn % 64 == 63)
        sched_yield();
    else
        relax();
}

static void run_share(const lk_pool *pool, int thread)
{
    int64_t units = (pool->n_items + pool->grain - 1) / pool->grain;
    int64_t begin = units * thread / pool->n_threads * pool->grain;
    int64_t end = units * (thread + 1) / pool->n_threads * pool->grain;
    if (end > pool->n_items) end = pool->n_items;
    if (begin < end) pool->task(pool->context, begin, end, thread);
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    lk_pool *pool = self->pool;
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool->generation) == seen; i++) wait_turn(i);
        if (atomic_load(&pool->generation) == seen) {
            pthread_mutex_lock(&pool->lock);
            while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        seen = atomic_load(&pool->generation);
        if (pool->stopping) return NULL;
        run_share(pool, self->index);
        if (atomic_fetch_sub(&pool->pending, 1) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

/* The CPU quota of a container (cgroup v2 "max" file: quota and period in microseconds); 0 when there is none. */
static int quota_threads(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    long quota = 0, period = 0;
    int fields = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    if (fields != 2 || quota <= 0 || period <= 0) return 0;
    return (int)((quota + period - 1) / period);
}

int lk_pool_default_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    int quota = quota_threads();
    if (quota > 0 && quota < n) n = quota;
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

lk_status lk_pool_create(lk_pool **out, int n_threads, lk_error *err)
{
    *out = NULL;
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return lk_fail(err, LK_ERR_ARGUMENT, "threads must be 0 (all) to %d, not %d", MAX_THREADS, n_threads);
    if (n_threads == 0) n_threads = lk_pool_default_threads();
    lk_pool *pool = calloc(1, sizeof *pool);
    worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a pool of %d threads", n_threads);
    }
    pool->workers = workers;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        worker *w = &workers[i - 1];
        *w = (worker){.pool = pool, .index = i};
        if (pthread_create(&w->handle, NULL, worker_main, w)) {
            lk_pool_destroy(pool);
            return lk_fail(err, LK_ERR_MEMORY, "cannot start thread %d of %d; use --threads with fewer", i + 1, n_threads);
        }
        pool->n_threads = i + 1;
    }
    *out = pool;
    return LK_OK;
}

static void start_job(lk_pool *pool)
{
    atomic_store(&pool->pending, pool->n_threads - 1);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void lk_pool_destroy(lk_pool *pool)
{
    if (!pool) return;
    pool->stopping = true;
    start_job(pool);
    for (int i = 0; i < pool->n_threads - 1; i++) pthread_join(pool->workers[i].handle, NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->finished);
    free(pool->workers);
    free(pool);
}

int lk_pool_threads(const lk_pool *pool) { return pool->n_threads; }

static void wait_job(lk_pool *pool)
{
    for (int i = 0; i < SPINS && atomic_load(&pool->pending) > 0; i++) wait_turn(i);
    if (atomic_load(&pool->pending) == 0) return;
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->pending) > 0) pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

void lk_pool_run(lk_pool *pool, int64_t n_items, int64_t grain, lk_pool_task *task, void *context)
{
    if (n_items <= 0) return;
    if (grain < 1) grain = 1;
    if (pool->n_threads == 1 || n_items <= grain) { /* waking others for one unit costs more than it gives */
        task(context, 0, n_items, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_items = n_items;
    pool->grain = grain;
    start_job(pool);
    run_share(pool, 0);
    wait_job(pool);
}

void lk_pool_each(lk_pool *pool, lk_pool_task *task, void *context)
{
    if (pool->n_threads == 1) {
        task(context, 0, 1, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->n_items = pool->n_threads;
    pool->grain = 1;
    start_job(pool);
    run_share(pool, 0);
    wait_job(pool);
}
