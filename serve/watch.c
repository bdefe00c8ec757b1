/* One list, one lock, one thread: connections are at most some thousand and a look at one is a comparison. */
#include "serve/watch.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"

struct lk_watched {
    int socket;
    lk_phase phase;
    double since;
    bool closed;
    lk_watched *prev, *next;
};

struct lk_watch {
    lk_watch_limits limits;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stopping;
    bool stop;
    lk_watched *all;
    int64_t closed;
};

static void look(lk_watch *w)
{
    double now = lk_clock_seconds();
    for (lk_watched *c = w->all; c; c = c->next) {
        int limit = w->limits.seconds[c->phase];
        if (limit == 0 || c->closed || now - c->since <= limit) continue;
        c->closed = true;
        w->closed++;
        const struct linger at_once = {.l_onoff = 1}; /* what has not been taken is not kept for the client either */
        (void)setsockopt(c->socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        (void)shutdown(c->socket, SHUT_RDWR);
        lk_log(LK_LOG_DEBUG, "http: a client took more than %d s to %s", limit,
               c->phase == LK_PHASE_REQUEST ? "send a request" : "take a reply");
    }
}

static void *watch_run(void *context)
{
    lk_watch *w = context;
    int shortest = 4;
    for (int i = 0; i < LK_N_PHASES; i++)
        if (w->limits.seconds[i] > 0 && w->limits.seconds[i] < shortest) shortest = w->limits.seconds[i];
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        look(w);
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        int64_t ns = until.tv_nsec + (int64_t)shortest * 250000000;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = (long)(ns % 1000000000);
        (void)pthread_cond_timedwait(&w->stopping, &w->lock, &until);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

lk_status lk_watch_start(lk_watch **watch, const lk_watch_limits *limits, lk_error *err)
{
    *watch = NULL;
    lk_watch *w = calloc(1, sizeof *w);
    if (!w) return lk_fail(err, LK_ERR_MEMORY, "no memory to watch connections");
    w->limits = *limits;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->stopping, NULL);
    if (pthread_create(&w->thread, NULL, watch_run, w)) {
        pthread_cond_destroy(&w->stopping);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return lk_fail(err, LK_ERR_MEMORY, "the system gave no thread to watch connections");
    }
    *watch = w;
    return LK_OK;
}

void lk_watch_stop(lk_watch *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->stopping);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->stopping);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

lk_watched *lk_watch_add(lk_watch *w, int socket)
{
    lk_watched *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->socket = socket;
    c->since = lk_clock_seconds();
    pthread_mutex_lock(&w->lock);
    c->next = w->all;
    if (c->next) c->next->prev = c;
    w->all = c;
    pthread_mutex_unlock(&w->lock);
    return c;
}

void lk_watch_remove(lk_watch *w, lk_watched *c)
{
    if (!c) return;
    pthread_mutex_lock(&w->lock);
    if (c->next) c->next->prev = c->prev;
    *(c->prev ? &c->prev->next : &w->all) = c->next;
    pthread_mutex_unlock(&w->lock);
    free(c);
}

void lk_watch_phase(lk_watch *w, lk_watched *c, lk_phase phase)
{
    if (!c) return;
    pthread_mutex_lock(&w->lock);
    c->phase = phase;
    c->since = lk_clock_seconds();
    pthread_mutex_unlock(&w->lock);
}

int64_t lk_watch_closed(lk_watch *w)
{
    pthread_mutex_lock(&w->lock);
    int64_t closed = w->closed;
    pthread_mutex_unlock(&w->lock);
    return closed;
}
