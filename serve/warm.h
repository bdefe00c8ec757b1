/* Recording steps of decoding before anybody asks for them. The engine's thread, between two steps:
 *
 *     lk_warm w = {.infer = infer, .kv = kv, .model = model, .pages = &pages, .registry = registry, .most_rows = 32, .longest = 8192};
 *     LK_TRY(lk_warm_up(&w, err)); */
#ifndef LK_SERVE_WARM_H
#define LK_SERVE_WARM_H

#include "model/transformer.h"
#include "serve/pages.h"
#include "serve/registry.h"

typedef struct lk_warm {
    lk_infer *infer;
    lk_kv *kv;
    const lk_model *model;
    lk_pages *pages;       /* one is taken meanwhile; without a free one nothing is done */
    lk_registry *registry; /* whose adapters are warmed up that are in the pool */
    int64_t most_pages;    /* that running sequences may come to need */
    int64_t most_rows, longest;
    bool (*stop)(void *context); /* asked before every step: somebody waits; NULL: nobody */
    void *context;
    bool adapters_only; /* the base is warm */
} lk_warm;

/* Leaves the backend with the recordings of steps that requests are likely to want first, and nothing else changed. */
lk_status lk_warm_up(const lk_warm *warm, lk_error *err);

#endif
