/* Counters and histograms: the engine counts in its own copy and publishes it after every iteration.
 *
 *     lk_histogram_add(&stats->mine.first_token, seconds);     -- engine thread
 *     lk_stats_publish(stats);
 *     lk_stats_get(stats, &copy);                              -- any thread; never waits for an iteration */
#ifndef LK_SERVE_STATS_H
#define LK_SERVE_STATS_H

#include <pthread.h>

#include "serve/engine.h"

typedef struct lk_stats {
    lk_engine_stats mine; /* the engine thread's */
    pthread_mutex_t lock;
    lk_engine_stats published;
    int64_t refused; /* counted by the submitting threads, under the lock */
} lk_stats;

void lk_stats_init(lk_stats *stats);
void lk_stats_free(lk_stats *stats);
void lk_stats_publish(lk_stats *stats);
void lk_stats_refuse(lk_stats *stats);
void lk_stats_get(lk_stats *stats, lk_engine_stats *out);

void lk_histogram_add(lk_histogram *histogram, double seconds);

#endif
