/* A row of logits becomes a token: process, sort everything, cut, draw. Survivors are walked by rising token id when drawing, so
 * that a draw means the same token whether or not something had to be sorted. Non-finite logits cannot be drawn. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/reference/reference.h"

typedef struct candidate {
    float value; /* logit, then probability */
    int32_t id;
} candidate;

size_t lk_ref_sample_scratch(const lk_limits *limits) { return (size_t)limits->vocab * sizeof(candidate); }

static int by_value(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b) { return ((const candidate *)a)->id < ((const candidate *)b)->id ? -1 : 1; }

/* Raw logits as candidates; returns how many are finite. */
static int64_t collect(candidate *c, const float *logits, int64_t vocab)
{
    int64_t finite = 0;
    for (int64_t i = 0; i < vocab; i++) {
        bool ok = isfinite(logits[i]);
        c[i] = (candidate){ok ? logits[i] : -INFINITY, (int32_t)i};
        finite += ok;
    }
    return finite;
}

/* c is indexed by token id here. */
static void process(candidate *c, const lk_sample_request *q)
{
    for (int32_t i = 0; i < q->n_bias; i++) c[q->bias_ids[i]].value += q->bias[i];
    for (int32_t i = 0; i < q->n_seen; i++) {
        float *value = &c[q->seen[i]].value;
        *value = *value > 0.0f ? *value / q->repetition_penalty : *value * q->repetition_penalty;
        if (q->seen_counts[i] > 0) *value -= q->presence_penalty + q->frequency_penalty * (float)q->seen_counts[i];
    }
    for (int32_t i = 0; i < q->n_banned; i++) c[q->banned[i]].value = -INFINITY;
}

/* Sorted logits to unnormalised probabilities (of the largest: 1), cut by top-k, top-p, min-p; returns how many are left. */
static int64_t cut(candidate *c, int64_t n, const lk_sample_request *q)
{
    while (n > 0 && !isfinite(c[n - 1].value)) n--;
    if (q->top_k > 0 && q->top_k < n) n = q->top_k;
    float top = c[0].value;
    double sum = 0.0, seen = 0.0;
    for (int64_t i = 0; i < n; i++) {
        c[i].value = expf((c[i].value - top) / q->temperature);
        sum += (double)c[i].value;
    }
    int64_t kept = n;
    if (q->top_p < 1.0f)
        for (kept = 0; kept < n && seen < (double)q->top_p * sum; kept++) seen += (double)c[kept].value;
    while (kept > 1 && c[kept - 1].value < q->min_p) kept--;
    return kept;
}

static int32_t draw(candidate *c, int64_t n, const lk_sample_request *q)
{
    uint32_t words[4];
    double sum = 0.0, seen = 0.0;
    qsort(c, (size_t)n, sizeof *c, by_id);
    for (int64_t i = 0; i < n; i++) sum += (double)c[i].value;
    lk_philox(q->key, 0, q->counter, words);
    double at = (double)lk_philox_uniform(words[0]) * sum;
    for (int64_t i = 0; i < n; i++) {
        seen += (double)c[i].value;
        if (at < seen) return c[i].id;
    }
    return c[n - 1].id;
}

static void report_logprobs(candidate *c, const float *logits, int64_t vocab, const lk_sample_request *q, lk_sample_result *out)
{
    int64_t finite = collect(c, logits, vocab);
    qsort(c, (size_t)vocab, sizeof *c, by_value);
    double sum = 0.0;
    for (int64_t i = 0; i < finite; i++) sum += exp((double)c[i].value - (double)c[0].value);
    double lse = (double)c[0].value + log(sum);
    out->logprob = (float)((double)logits[out->token] - lse);
    out->n_top = (int32_t)(q->n_logprobs < finite ? q->n_logprobs : finite);
    for (int32_t i = 0; i < out->n_top; i++) {
        out->top_ids[i] = c[i].id;
        out->top_logprobs[i] = (float)((double)c[i].value - lse);
    }
}

/* False when no token can be drawn. */
static bool sample_row(candidate *c, const float *logits, int64_t vocab, const lk_sample_request *q, lk_sample_result *out)
{
    *out = (lk_sample_result){.token = -1};
    if (collect(c, logits, vocab) == 0) return false;
    process(c, q);
    qsort(c, (size_t)vocab, sizeof *c, by_value);
    if (!isfinite(c[0].value)) return false;
    out->token = q->temperature > 0.0f ? draw(c, cut(c, vocab, q), q) : c[0].id;
    if (q->n_logprobs >= 0) report_logprobs(c, logits, vocab, q, out);
    return true;
}

lk_status lk_ref_sample(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results)
{
    void *scratch;
    int64_t failed = -1;
    LK_TRY(lk_cpu_scratch(be, "sample", (size_t)logits->cols * sizeof(candidate), &scratch));
    for (int64_t r = 0; r < logits->rows; r++)
        if (!sample_row(scratch, lk_row(logits, r), logits->cols, &requests[r], &results[r]) && failed < 0) failed = r;
    if (failed < 0) return LK_OK;
    return lk_fail(&be->error, LK_ERR_FORMAT, "sample: row %lld has no finite logit: the model or the adapter is broken",
                   (long long)failed);
}
