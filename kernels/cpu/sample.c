/* From logits to tokens, rows shared among the threads. The vocabulary is never sorted whole: falling thresholds are tried, each one
 * quick pass over the probabilities, until what lies above holds all that top-k and top-p can reach, and only that is sorted: usually
 * some dozens of a hundred thousand. (A histogram over the leading bits of the probabilities was a third slower: its counting is scattered
 * and scalar.) What survives is walked by rising id, so without a cut nothing is sorted at all. */
#include <float.h>
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct candidate {
    float p; /* of the most likely token: 1 */
    int32_t id;
} candidate;

enum { PIECE = 2048 }; /* of the vocabulary: summed in fp32, pieces joined in double */

typedef struct sample_args {
    const lk_rows *rows;
    const lk_tensor *logits;
    const lk_sample_request *requests;
    lk_sample_result *results;
    char *scratch;
    size_t thread_bytes;
} sample_args;

/* One row at work. */
typedef struct row {
    const lk_rows *rows;
    const float *raw;
    int64_t vocab;
    float *p;          /* logits, then probabilities; [V] */
    candidate *chosen; /* [V] */
} row;

static size_t thread_bytes(int64_t vocab)
{
    return lk_carved((size_t)vocab * sizeof(float)) + lk_carved((size_t)vocab * sizeof(candidate));
}

size_t lk_cpu_sample_scratch(const lk_backend *be, const lk_limits *l) { return (size_t)be->threads * thread_bytes(l->vocab); }

static double sum_pieces(const lk_rows *rows, float *out, const float *x, int64_t n, float top)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += PIECE) sum += (double)rows->exp_sum(out + i, x + i, n - i < PIECE ? n - i : PIECE, top);
    return sum;
}

/* r->p = the raw logits with what is not finite at -inf; false when nothing is left. */
static bool clean(const row *r)
{
    for (int64_t i = 0; i < r->vocab; i++) r->p[i] = fabsf(r->raw[i]) <= FLT_MAX ? r->raw[i] : -INFINITY;
    return r->rows->max(r->p, r->vocab) > -INFINITY;
}

/* The most likely tokens of the raw logits; returns their log sum exp. */
static double report(const row *r, const lk_sample_request *q, lk_sample_result *out)
{
    float top = r->rows->max(r->p, r->vocab);
    double lse = (double)top + log(sum_pieces(r->rows, (float *)(void *)r->chosen, r->p, r->vocab, top));
    int32_t n = 0, wanted = q->n_logprobs;
    for (int64_t i = 0; i < r->vocab && wanted > 0; i++) { /* insertion: later ids go behind their equals */
        float value = r->p[i];
        if (value == -INFINITY || (n == wanted && value <= out->top_logprobs[n - 1])) continue;
        int32_t at = n < wanted ? n++ : n - 1;
        for (; at > 0 && out->top_logprobs[at - 1] < value; at--) {
            out->top_logprobs[at] = out->top_logprobs[at - 1];
            out->top_ids[at] = out->top_ids[at - 1];
        }
        out->top_logprobs[at] = value;
        out->top_ids[at] = (int32_t)i;
    }
    out->n_top = n;
    for (int32_t i = 0; i < n; i++) out->top_logprobs[i] = (float)((double)out->top_logprobs[i] - lse);
    return lse;
}

static void process(const row *r, const lk_sample_request *q)
{
    for (int32_t i = 0; i < q->n_bias; i++) r->p[q->bias_ids[i]] += q->bias[i];
    for (int32_t i = 0; i < q->n_seen; i++) {
        float *value = &r->p[q->seen[i]];
        *value = *value > 0.0f ? *value / q->repetition_penalty : *value * q->repetition_penalty;
        if (q->seen_counts[i] > 0) *value -= q->presence_penalty + q->frequency_penalty * (float)q->seen_counts[i];
    }
    for (int32_t i = 0; i < q->n_banned; i++) r->p[q->banned[i]] = -INFINITY;
}

/* ---------------------------------------------------------------------------------------------- candidates */

static bool before(const candidate *a, const candidate *b, bool by_id)
{
    if (!by_id && a->p != b->p) return a->p > b->p;
    return a->id < b->id;
}

static void sift(candidate *c, int64_t at, int64_t n, bool by_id)
{
    candidate moved = c[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(&c[child], &c[child + 1], by_id)) child++;
        if (!before(&moved, &c[child], by_id)) break;
        c[at] = c[child];
    }
    c[at] = moved;
}

/* Heapsort: in place, no worst case, and qsort may allocate. */
static void sort(candidate *c, int64_t n, bool by_id)
{
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(c, i, n, by_id);
    for (int64_t i = n - 1; i > 0; i--) {
        candidate last = c[0];
        c[0] = c[i];
        c[i] = last;
        sift(c, 0, i, by_id);
    }
}

/* Sum and number of the probabilities from `least` up. */
static double mass_from(const row *r, float least, int64_t *count)
{
    double mass = 0.0;
    *count = 0;
    for (int64_t i = 0; i < r->vocab; i += PIECE) {
        int64_t n;
        mass += (double)r->rows->sum_from(r->p + i, r->vocab - i < PIECE ? r->vocab - i : PIECE, least, &n);
        *count += n;
    }
    return mass;
}

/* A probability below which neither top-k nor top-p reaches. */
static float threshold(const row *r, const lk_sample_request *q, double sum)
{
    float least = 0.25f;
    while (least > 1e-30f) {
        int64_t count;
        double mass = mass_from(r, least, &count);
        if (q->top_k > 0 ? count >= q->top_k : mass > (double)q->top_p * sum * 1.000001)
            return least; /* sums in another order differ in the last bits */
        least *= least > 1e-4f ? 0.25f : 0.01f;
    }
    return FLT_MIN;
}

/* Cuts by top-k, top-p and min-p; the survivors by rising id. Returns their number. */
static int64_t cut(const row *r, const lk_sample_request *q, double sum)
{
    candidate *c = r->chosen;
    int64_t n = 0, kept;
    float least = threshold(r, q, sum);
    for (int64_t i = 0; i < r->vocab; i++)
        if (r->p[i] >= least) c[n++] = (candidate){r->p[i], (int32_t)i};
    sort(c, n, false);
    if (q->top_k > 0) {
        if (q->top_k < n) n = q->top_k;
        sum = 0.0;
        for (int64_t i = 0; i < n; i++) sum += (double)c[i].p;
    }
    double seen = 0.0;
    for (kept = 0; kept < n && (q->top_p >= 1.0f || seen < (double)q->top_p * sum); kept++) seen += (double)c[kept].p;
    while (kept > 1 && c[kept - 1].p < q->min_p) kept--;
    sort(c, kept, true);
    return kept;
}

/* ---------------------------------------------------------------------------------------------- drawing */

static double uniform(const lk_sample_request *q)
{
    uint32_t words[4];
    lk_philox(q->key, 0, q->counter, words);
    return (double)lk_philox_uniform(words[0]);
}

static int32_t draw_chosen(const candidate *c, int64_t n, const lk_sample_request *q)
{
    double sum = 0.0, seen = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)c[i].p;
    double at = uniform(q) * sum;
    for (int64_t i = 0; i < n; i++) {
        seen += (double)c[i].p;
        if (at < seen) return c[i].id;
    }
    return c[n - 1].id;
}

static int32_t draw_any(const row *r, const lk_sample_request *q)
{
    int64_t count, last = 0;
    double at = uniform(q) * mass_from(r, FLT_MIN, &count), seen = 0.0;
    for (int64_t i = 0; i < r->vocab; i += PIECE) {
        int64_t n = r->vocab - i < PIECE ? r->vocab - i : PIECE;
        double mass = (double)r->rows->sum_from(r->p + i, n, FLT_MIN, &count), within = seen;
        seen += mass;
        if (count == 0) continue;
        for (int64_t j = i; j < i + n && at < seen; j++) {
            if (r->p[j] < FLT_MIN) continue;
            within += (double)r->p[j];
            last = j;
            if (at < within) return (int32_t)j;
        }
        if (at < seen) return (int32_t)last; /* the sum of the piece and the sum by elements differ in the last bits */
        for (int64_t j = i + n - 1; j >= i; j--)
            if (r->p[j] >= FLT_MIN) {
                last = j;
                break;
            }
    }
    return (int32_t)last;
}

static int32_t draw(const row *r, const lk_sample_request *q, float top)
{
    for (int64_t i = 0; i < r->vocab; i++)
        r->p[i] = (r->p[i] - top) / q->temperature; /* the difference first: at small temperatures it matters */
    double sum = sum_pieces(r->rows, r->p, r->p, r->vocab, 0.0f);
    if (q->top_k > 0 || q->top_p < 1.0f) return draw_chosen(r->chosen, cut(r, q, sum), q);
    for (int64_t i = 0; i < r->vocab && q->min_p > 0.0f; i++)
        if (r->p[i] < q->min_p) r->p[i] = 0.0f;
    return draw_any(r, q);
}

/* result->token stays -1 when no token can be drawn. */
static void sample_row(const row *r, const lk_sample_request *q, lk_sample_result *result)
{
    *result = (lk_sample_result){.token = -1};
    if (!clean(r)) return;
    double lse = q->n_logprobs >= 0 ? report(r, q, result) : 0.0;
    process(r, q);
    float top = r->rows->max(r->p, r->vocab);
    if (!(fabsf(top) <= FLT_MAX)) return;
    if (q->temperature > 0.0f) {
        result->token = draw(r, q, top);
    } else {
        int32_t best = 0;
        while (r->p[best] != top) best++;
        result->token = best;
    }
    if (q->n_logprobs >= 0) result->logprob = (float)((double)r->raw[result->token] - lse);
}

static void work(void *context, int64_t begin, int64_t end, int thread)
{
    const sample_args *a = context;
    void *rest = a->scratch + (size_t)thread * a->thread_bytes;
    row r = {.rows = a->rows, .vocab = a->logits->cols};
    r.p = lk_carve(&rest, (size_t)r.vocab * sizeof(float));
    r.chosen = rest;
    for (int64_t i = begin; i < end; i++) {
        r.raw = lk_row_of(a->logits, i);
        sample_row(&r, &a->requests[i], &a->results[i]);
    }
}

lk_status lk_cpu_sample(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    void *scratch;
    sample_args a = {lk_rows_get(cpu->tier), logits, requests, results, NULL, thread_bytes(logits->cols)};
    LK_TRY(lk_cpu_scratch(be, "sample", (size_t)be->threads * a.thread_bytes, &scratch));
    a.scratch = scratch;
    lk_pool_run(cpu->pool, logits->rows, 1, work, &a);
    for (int64_t i = 0; i < logits->rows; i++)
        if (results[i].token < 0)
            return lk_fail(&be->error, LK_ERR_FORMAT, "sample: row %lld has no finite logit: the model or the adapter is broken",
                           (long long)i);
    return LK_OK;
}
