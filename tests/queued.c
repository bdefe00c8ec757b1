#include "tests/queued.h"

#include <stdlib.h>
#include <string.h>

#include "tests/check.h"

static check_queued *queued_of(lk_backend *be)
{
    union {
        const lk_ops *ops;
        check_queued *queued;
    } p = {be->ops};
    return p.queued;
}

static int32_t drawn(const check_queued *q, int64_t row)
{
    if (row < 0 || row >= q->n_drawn) fail_msg("row %lld of a sampling of %lld is named", (long long)row, (long long)q->n_drawn);
    return q->drawn[row] < 0 ? 0 : q->drawn[row];
}

static lk_status embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids)
{
    const check_queued *q = queued_of(be);
    int32_t *known = malloc((size_t)y->rows * sizeof *known + 1);
    for (int64_t t = 0; t < y->rows; t++) known[t] = ids[t] < 0 ? drawn(q, -1 - ids[t]) : ids[t];
    lk_status status = q->real->embed(be, y, table, known);
    free(known);
    return status;
}

/* The request with the pending token among the seen ones; free() its two arrays. */
static lk_sample_request with_pending(const check_queued *q, const lk_sample_request *request)
{
    lk_sample_request r = *request;
    int32_t n = r.n_seen, i = 0;
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids), *counts = malloc(((size_t)n + 1) * sizeof *counts);
    if (n) memcpy(ids, r.seen, (size_t)n * sizeof *ids);
    if (n) memcpy(counts, r.seen_counts, (size_t)n * sizeof *counts);
    if (r.pending) {
        int32_t token = drawn(q, r.pending - 1);
        while (i < n && ids[i] != token) i++;
        if (i == n) counts[r.n_seen++] = 0;
        ids[i] = token;
        counts[i]++;
    }
    r.pending = 0;
    r.seen = ids;
    r.seen_counts = counts;
    return r;
}

static lk_status sample_begin(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests)
{
    check_queued *q = queued_of(be);
    if (q->begun - q->ended == 2) fail_msg("a third sampling is begun while two are under way");
    check_sampling *s = &q->under_way[q->begun++ % 2];
    size_t n = (size_t)logits->rows;
    *s = (check_sampling){.n = logits->rows, .results = calloc(n + 1, sizeof *s->results)};
    lk_sample_request *whole = calloc(n + 1, sizeof *whole);
    for (size_t r = 0; r < n; r++) whole[r] = with_pending(q, &requests[r]);
    s->status = q->real->sample(be, logits, whole, s->results);
    for (size_t r = 0; r < n; r++) {
        free((void *)(uintptr_t)whole[r].seen);
        free((void *)(uintptr_t)whole[r].seen_counts);
    }
    free(whole);
    free(q->drawn);
    q->drawn = calloc(n + 1, sizeof *q->drawn);
    q->n_drawn = logits->rows;
    for (size_t r = 0; r < n; r++) q->drawn[r] = s->results[r].token;
    if (q->begun - q->ended > q->most_under_way) q->most_under_way = q->begun - q->ended;
    return LK_OK;
}

static lk_status sample_end(lk_backend *be, lk_sample_result *results)
{
    check_queued *q = queued_of(be);
    if (q->begun == q->ended) fail_msg("a sampling is ended that was never begun");
    check_sampling *s = &q->under_way[q->ended++ % 2];
    memcpy(results, s->results, (size_t)s->n * sizeof *results);
    free(s->results);
    s->results = NULL;
    return s->status;
}

void check_queued_make(check_queued *q, lk_backend *be)
{
    *q = (check_queued){.ops = *be->ops, .real = be->ops, .be = be};
    q->ops.sample = NULL;
    q->ops.sample_begin = sample_begin;
    q->ops.sample_end = sample_end;
    q->ops.embed = embed;
    be->ops = &q->ops;
}

void check_queued_free(check_queued *q)
{
    q->be->ops = q->real;
    for (int i = 0; i < 2; i++) free(q->under_way[i].results);
    free(q->drawn);
}
