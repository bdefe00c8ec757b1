/* What is warmed up: every padded number of rows, with contexts that double from one split of attention to the longest, for the base; the
 * same for each adapter in the pool, once with all rows on it and once with each row a segment of its own, as when each has another adapter
 * of these ranks. Short contexts come first. A step whose kind is known already is a repetition and costs no more than a step.
 *
 * How many: a backend keeps 64 recordings (kernels/cuda/step.h), those least used go. Most of them are for the base, the rest for
 * adapters; whatever is missing is recorded by the first request that needs it, as without warming up.
 *
 * The steps compute nothing that matters: every row is the same token at the same position of the same page, which is free, so all of them
 * write the same; what else they read of the page means nothing to anybody. */
#include "serve/warm.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"

enum { MOST_BASE = 40, MOST_ADAPTERS = 24 };
static const double MOST_SECONDS = 20;
enum { FIRST_LENGTH = 512 }; /* contexts begin to double here */

/* Arrays for the largest step. */
typedef struct steps {
    const lk_warm *warm;
    int32_t *ids, *positions, *rows, *pages;
    lk_sequence *sequences;
    lk_segment *segments;
    lk_lora *table;
    double until;
} steps;

static lk_status steps_make(steps *s, const lk_warm *w, int32_t page, lk_error *err)
{
    size_t n = (size_t)w->most_rows, n_pages = (size_t)lk_pages_for(w->pages, w->longest);
    *s = (steps){.warm = w, .until = lk_clock_seconds() + MOST_SECONDS};
    s->ids = calloc(n, sizeof *s->ids);
    s->positions = calloc(n, sizeof *s->positions);
    s->rows = calloc(n, sizeof *s->rows);
    s->pages = calloc(n_pages, sizeof *s->pages);
    s->sequences = calloc(n, sizeof *s->sequences);
    s->segments = calloc(n, sizeof *s->segments);
    s->table = calloc((size_t)lk_sites(&w->model->config), sizeof *s->table);
    if (!s->ids || !s->positions || !s->rows || !s->pages || !s->sequences || !s->segments || !s->table)
        return lk_fail(err, LK_ERR_MEMORY, "no memory for steps of %lld tokens", (long long)w->most_rows);
    for (size_t i = 0; i < n_pages; i++) s->pages[i] = page;
    return LK_OK;
}

static void steps_free(steps *s)
{
    free(s->ids);
    free(s->positions);
    free(s->rows);
    free(s->pages);
    free(s->sequences);
    free(s->segments);
    free(s->table);
}

/* One step: n sequences of this length. apart: each row is a segment. *fresh: it was not a repetition. */
static lk_status run(steps *s, const lk_adapter *adapter, bool apart, int64_t n, int64_t length, bool *fresh, lk_error *err)
{
    const lk_warm *w = s->warm;
    lk_tensor logits;
    for (int64_t i = 0; i < n; i++) {
        s->positions[i] = (int32_t)(length - 1);
        s->rows[i] = (int32_t)i;
        s->sequences[i] = (lk_sequence){.begin = i, .count = 1, .length = length, .pages = s->pages};
        s->segments[i] = (lk_segment){i, apart ? i + 1 : n, 0};
    }
    lk_batch batch = {.n_tokens = n, .ids = s->ids, .positions = s->positions, .n_sequences = n, .sequences = s->sequences};
    if (adapter) {
        lk_adapter_table(s->table, &adapter, 1, NULL);
        batch.n_segments = apart ? n : 1;
        batch.segments = s->segments;
        batch.n_sites = adapter->n_sites;
        batch.n_adapters = 1;
        batch.lora = s->table;
    }
    int64_t before = lk_infer_recorded(w->infer);
    LK_TRY(lk_infer_forward(w->infer, &batch, w->kv, s->rows, n, &logits, err));
    *fresh = lk_infer_recorded(w->infer) > before;
    return LK_OK;
}

static bool over(const steps *s) { return lk_clock_seconds() > s->until || (s->warm->stop && s->warm->stop(s->warm->context)); }

/* Every number of rows, at contexts that double, until `most` more are recorded. *recorded counts on. */
static lk_status run_all(steps *s, const lk_adapter *adapter, int64_t most, int64_t *recorded, lk_error *err)
{
    const lk_warm *w = s->warm;
    bool fresh;
    for (int64_t length = 1, last = 0; !last; length = length < FIRST_LENGTH ? FIRST_LENGTH : 2 * length) {
        last = length >= w->longest;
        for (int64_t n = 1; n <= w->most_rows; n = lk_infer_padded(w->infer, n) + 1)
            for (int apart = 0; apart < (adapter && n > 1 ? 2 : 1); apart++) {
                if (*recorded >= most || over(s)) return LK_OK;
                LK_TRY(run(s, adapter, apart, n, last ? w->longest : length, &fresh, err));
                *recorded += fresh;
            }
    }
    return LK_OK;
}

/* Adapters of the same ranks share everything: the first step of the second one is a repetition, and that is all of it. */
static lk_status run_adapter(steps *s, const lk_adapter *adapter, int64_t *recorded, lk_error *err)
{
    bool fresh;
    LK_TRY(run(s, adapter, false, 1, 1, &fresh, err));
    if (!fresh) return LK_OK;
    ++*recorded;
    return run_all(s, adapter, MOST_ADAPTERS, recorded, err);
}

static lk_status run_adapters(steps *s, int64_t *recorded, lk_error *err)
{
    const lk_warm *w = s->warm;
    lk_adapter_info *list;
    int64_t n;
    LK_TRY(lk_registry_list(w->registry, &list, &n, err));
    lk_status status = LK_OK;
    for (int64_t i = 0; i < n && !status && *recorded < MOST_ADAPTERS && !over(s); i++) {
        char name[300];
        lk_version *v;
        lk_error gone;
        snprintf(name, sizeof name, "%s@%lld", list[i].name, (long long)list[i].version);
        if (!list[i].resident || lk_registry_pin(w->registry, name, &v, &gone)) continue;
        if (lk_registry_hold(w->registry, v, w->most_pages)) {
            status = run_adapter(s, v->adapter, recorded, err);
            lk_registry_drop(w->registry, v);
        }
        lk_registry_unpin(w->registry, v);
    }
    free(list);
    return status;
}

/* Where recording is turned off, or the driver refuses it, the same step is computed anew each time. */
static lk_status records(steps *s, bool *so, int64_t *recorded, lk_error *err)
{
    bool fresh;
    LK_TRY(run(s, NULL, false, 1, 1, &fresh, err));
    *recorded += fresh;
    LK_TRY(run(s, NULL, false, 1, 1, &fresh, err));
    *so = !fresh;
    return LK_OK;
}

lk_status lk_warm_up(const lk_warm *w, lk_error *err)
{
    double began = lk_clock_seconds();
    int32_t page;
    lk_block_table table = {.pages = &page, .capacity = 1};
    if (!lk_pages_grow(w->pages, &table, 1)) return LK_OK;
    steps s;
    bool so = false;
    int64_t base = 0, adapters = 0;
    lk_status status = steps_make(&s, w, page, err);
    if (!status) status = records(&s, &so, &base, err);
    if (!status && so && !w->adapters_only) status = run_all(&s, NULL, MOST_BASE, &base, err);
    if (!status && so) status = run_adapters(&s, &adapters, err);
    if (!status && (status = lk_sync(w->model->be))) lk_backend_fail(w->model->be, status, err);
    steps_free(&s);
    lk_pages_release(w->pages, &table);
    if (!status && base + adapters > 0 && so)
        lk_log(LK_LOG_INFO, "steps of decoding recorded beforehand: %lld for the base, %lld for adapters, %.0f ms", (long long)base,
               (long long)adapters, 1e3 * (lk_clock_seconds() - began));
    return status;
}
