/* One short lock round a copy of a kilobyte: a scrape every 50 ms costs the engine nothing that could be measured. */
#include "serve/stats.h"

const double lk_histogram_bounds[LK_HISTOGRAM_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60};

void lk_stats_init(lk_stats *stats)
{
    *stats = (lk_stats){0};
    pthread_mutex_init(&stats->lock, NULL);
}

void lk_stats_free(lk_stats *stats) { pthread_mutex_destroy(&stats->lock); }

void lk_stats_publish(lk_stats *stats)
{
    pthread_mutex_lock(&stats->lock);
    stats->published = stats->mine;
    pthread_mutex_unlock(&stats->lock);
}

void lk_stats_refuse(lk_stats *stats)
{
    pthread_mutex_lock(&stats->lock);
    stats->refused++;
    pthread_mutex_unlock(&stats->lock);
}

void lk_stats_get(lk_stats *stats, lk_engine_stats *out)
{
    pthread_mutex_lock(&stats->lock);
    *out = stats->published;
    out->refused = stats->refused;
    pthread_mutex_unlock(&stats->lock);
}

void lk_histogram_add(lk_histogram *histogram, double seconds)
{
    int i = 0;
    while (i < LK_HISTOGRAM_BUCKETS && seconds > lk_histogram_bounds[i]) i++;
    histogram->counts[i]++;
    histogram->sum += seconds;
}
