/* Prometheus text of an engine: vLLM's names where tools expect them (the Gateway API Inference Extension scrapes every 50 ms), lorikeet_*
 * for what only we have.
 *
 *     lk_engine_get_stats(engine, &stats);
 *     lk_metrics_write(&out, &stats, adapters, n, &facts);
 *
 * A pure function of its arguments. */
#ifndef LK_SERVE_METRICS_H
#define LK_SERVE_METRICS_H

#include "serve/engine.h"
#include "serve/writer.h"

enum { LK_METRICS_CODES = 600 };

typedef struct lk_metrics_facts {
    const char *model_name, *base_digest;
    int32_t max_adapters;
    double now_unix;
    int64_t connections;                 /* open now */
    int64_t slow;                        /* closed because the client took too long, ever */
    int64_t responses[LK_METRICS_CODES]; /* by HTTP status */
} lk_metrics_facts;

void lk_metrics_write(lk_writer *out, const lk_engine_stats *stats, const lk_adapter_info *adapters, int64_t n_adapters,
                      const lk_metrics_facts *facts);

#endif
