/* One anonymous shared mapping made before the fork: a barrier of a mutex and a condition, a place for each rank's numbers, and how each
 * rank ended. MPI would do the same for this one purpose with a daemon and a launcher; on one machine fork and shared memory are simpler,
 * and between GPUs NCCL carries the data anyway. A waiting rank wakes ten times a second to see whether somebody has died: rank 0 by
 * waitpid, the others by what rank 0 notes. The mutex is robust, so a rank that dies inside does not lock the rest out. */
#include "base/ranks.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 16, MESSAGE = 4096 }; /* floats a rank puts down at a time; bytes of a broadcast */

typedef struct ending {
    bool over;
    lk_error error; /* code LK_OK: it ended well */
} ending;

typedef struct shared {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    int waiting;
    uint64_t round;
    int failed; /* 1 + the first rank that failed or died; 0: none */
    ending endings[LK_MAX_RANKS];
    unsigned char message[MESSAGE];
    float pieces[]; /* [size][PIECE] */
} shared;

struct lk_ranks {
    int rank, size;
    size_t bytes;
    shared *s;
    pid_t children[LK_MAX_RANKS]; /* of rank 0; [0] unused, 0: has been waited for */
};

int lk_ranks_rank(const lk_ranks *r) { return r ? r->rank : 0; }
int lk_ranks_size(const lk_ranks *r) { return r ? r->size : 1; }

/* ---------------------------------------------------------------------------------------------- starting */

static lk_status share(lk_ranks *r, lk_error *err)
{
    r->bytes = sizeof(shared) + (size_t)r->size * PIECE * sizeof(float);
    r->s = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r->s == MAP_FAILED) {
        r->s = NULL;
        return lk_fail_errno(err, "cannot share memory between %d processes", r->size);
    }
    pthread_mutexattr_t mutex;
    pthread_condattr_t cond;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&r->s->mutex, &mutex);
    pthread_mutexattr_destroy(&mutex);
    pthread_condattr_init(&cond);
    pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    pthread_condattr_setclock(&cond, CLOCK_MONOTONIC);
    pthread_cond_init(&r->s->moved, &cond);
    pthread_condattr_destroy(&cond);
    return LK_OK;
}

static void stop_children(lk_ranks *r)
{
    for (int i = 1; i < r->size; i++) {
        if (!r->children[i]) continue;
        kill(r->children[i], SIGKILL);
        waitpid(r->children[i], NULL, 0);
        r->children[i] = 0;
    }
}

lk_status lk_ranks_start(lk_ranks **ranks, int size, lk_error *err)
{
    *ranks = NULL;
    if (size < 1 || size > LK_MAX_RANKS)
        return lk_fail(err, LK_ERR_ARGUMENT, "%d processes: give a number from 1 to %d", size, LK_MAX_RANKS);
    if (size == 1) return LK_OK;
    lk_ranks *r = calloc(1, sizeof *r);
    if (!r) return lk_fail(err, LK_ERR_MEMORY, "no memory for %d processes", size);
    r->size = size;
    lk_status status = share(r, err);
    pid_t parent = getpid();
    for (int i = 1; !status && i < size; i++) {
        fflush(NULL); /* or what is buffered would be written twice */
        pid_t child = fork();
        if (child < 0) {
            status = lk_fail_errno(err, "cannot start process %d of %d", i + 1, size);
        } else if (child == 0) {
            r->rank = i;
            memset(r->children, 0, sizeof r->children);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1); /* it died before that took effect */
            break;
        } else {
            r->children[i] = child;
        }
    }
    if (status) {
        stop_children(r);
        if (r->s) munmap(r->s, r->bytes);
        free(r);
        return status;
    }
    *ranks = r;
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- the barrier */

static void lock(shared *s)
{
    if (pthread_mutex_lock(&s->mutex) == EOWNERDEAD) pthread_mutex_consistent(&s->mutex);
}

/* Rank 0: has a child died without saying how it ended? Called with the mutex held. */
static void notice_deaths(lk_ranks *r)
{
    for (int i = 1; i < r->size; i++) {
        int how;
        if (!r->children[i] || waitpid(r->children[i], &how, WNOHANG) != r->children[i]) continue;
        r->children[i] = 0;
        ending *e = &r->s->endings[i];
        if (!e->over) {
            e->over = true;
            if (WIFSIGNALED(how))
                lk_fail(&e->error, LK_ERR_IO, "process %d was ended by signal %d (%s)", i, WTERMSIG(how), strsignal(WTERMSIG(how)));
            else
                lk_fail(&e->error, LK_ERR_IO, "process %d left unexpectedly", i);
        }
        /* One that left well cannot come to a barrier any more, either. */
        if (!r->s->failed) r->s->failed = 1 + i;
        pthread_cond_broadcast(&r->s->moved);
    }
}

static lk_status failure(const lk_ranks *r, lk_error *err)
{
    int who = r->s->failed - 1;
    const ending *e = &r->s->endings[who];
    return lk_fail(err, LK_ERR_IO, "process %d of %d has ended: %s", who, r->size,
                   e->error.message[0] ? e->error.message : "it left before the others");
}

lk_status lk_ranks_barrier(lk_ranks *r, lk_error *err)
{
    if (!r) return LK_OK;
    shared *s = r->s;
    lock(s);
    uint64_t round = s->round;
    if (++s->waiting == r->size) {
        s->waiting = 0;
        s->round++;
        pthread_cond_broadcast(&s->moved);
    }
    while (s->round == round && !s->failed) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        if (pthread_cond_timedwait(&s->moved, &s->mutex, &until) == EOWNERDEAD) pthread_mutex_consistent(&s->mutex);
        if (s->round == round && r->rank == 0) notice_deaths(r);
    }
    lk_status status = s->round == round ? failure(r, err) : LK_OK;
    pthread_mutex_unlock(&s->mutex);
    return status;
}

/* ---------------------------------------------------------------------------------------------- data */

lk_status lk_ranks_broadcast(lk_ranks *r, void *data, size_t bytes, lk_error *err)
{
    if (!r) return LK_OK;
    if (bytes > MESSAGE) return lk_fail(err, LK_ERR_INTERNAL, "a broadcast of %zu bytes; %d fit", bytes, MESSAGE);
    if (r->rank == 0) memcpy(r->s->message, data, bytes);
    LK_TRY(lk_ranks_barrier(r, err));
    if (r->rank != 0) memcpy(data, r->s->message, bytes);
    return lk_ranks_barrier(r, err); /* nobody may write the next one before all have read this one */
}

lk_status lk_ranks_sum(lk_ranks *r, float *x, int64_t n, lk_error *err)
{
    if (!r) return LK_OK;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        memcpy(r->s->pieces + (size_t)r->rank * PIECE, x + at, (size_t)count * sizeof(float));
        LK_TRY(lk_ranks_barrier(r, err));
        memcpy(x + at, r->s->pieces, (size_t)count * sizeof(float));
        for (int other = 1; other < r->size; other++) {
            const float *theirs = r->s->pieces + (size_t)other * PIECE;
            for (int64_t i = 0; i < count; i++) x[at + i] += theirs[i];
        }
        LK_TRY(lk_ranks_barrier(r, err));
    }
    return LK_OK;
}

lk_status lk_ranks_sum_doubles(lk_ranks *r, double *x, int n, lk_error *err)
{
    if (!r) return LK_OK;
    if (n > 512) return lk_fail(err, LK_ERR_INTERNAL, "a sum of %d doubles; 512 fit", n);
    memcpy(r->s->pieces + (size_t)r->rank * PIECE, x, (size_t)n * sizeof *x);
    LK_TRY(lk_ranks_barrier(r, err));
    for (int i = 0; i < n; i++) {
        x[i] = 0.0;
        for (int other = 0; other < r->size; other++) {
            double theirs;
            memcpy(&theirs, (const char *)(r->s->pieces + (size_t)other * PIECE) + (size_t)i * sizeof theirs, sizeof theirs);
            x[i] += theirs;
        }
    }
    return lk_ranks_barrier(r, err);
}

/* ---------------------------------------------------------------------------------------------- the end */

static void record(lk_ranks *r, lk_status status, const lk_error *err)
{
    ending *e = &r->s->endings[r->rank];
    lock(r->s);
    e->over = true;
    if (status) {
        if (err) e->error = *err;
        e->error.code = status;
        if (!r->s->failed) r->s->failed = 1 + r->rank;
        pthread_cond_broadcast(&r->s->moved);
    }
    pthread_mutex_unlock(&r->s->mutex);
}

lk_status lk_ranks_finish(lk_ranks *r, lk_status status, lk_error *err)
{
    if (!r) return status;
    record(r, status, err);
    if (r->rank != 0) _exit(status ? 1 : 0); /* not exit: what atexit would do is the first process's business */
    for (int i = 1; i < r->size; i++) {
        int how;
        if (!r->children[i]) continue;
        while (waitpid(r->children[i], &how, 0) < 0 && errno == EINTR) continue;
        ending *e = &r->s->endings[i];
        if (!e->over) lk_fail(&e->error, LK_ERR_IO, "process %d ended before its work did", i);
    }
    /* The first failure is the cause; what others say is that somebody failed. */
    int first = r->s->failed ? r->s->failed - 1 : 0;
    for (int i = 0; i < r->size && !r->s->endings[first].error.code; i++) first = i;
    const lk_error *cause = &r->s->endings[first].error;
    if (cause->code) {
        status = cause->code;
        if (err) *err = *cause;
    }
    munmap(r->s, r->bytes);
    free(r);
    return status;
}
