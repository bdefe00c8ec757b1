/* Rows to sample from, and a naive sampler to compare with: for the CPU's tiers (tests/kernels/test_sample.c) and the CUDA backend
 * (tests/cuda/test_sample.c). */
#ifndef LK_TESTS_KERNELS_SAMPLE_CASES_H
#define LK_TESTS_KERNELS_SAMPLE_CASES_H

#include "tests/kernels/ops_check.h"

static const lk_sample_request plain = {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};

/* Samples rows of host logits; OP or CHECK_FAILS round it. The logits must come back as they went. */
static inline lk_status sample_rows(lk_backend *be, const float *logits, int64_t rows, int64_t vocab, const lk_sample_request *q,
                                    lk_sample_result *results)
{
    size_t bytes = (size_t)(rows * vocab) * sizeof(float);
    void *p;
    float *after = malloc(bytes);
    OP(be, lk_alloc(be, bytes, &p));
    OP(be, lk_upload(be, p, logits, bytes));
    lk_tensor t = lk_tensor_make(p, LK_F32, rows, vocab);
    lk_status status = lk_sample(be, &t, q, results);
    OP(be, lk_download(be, after, p, bytes));
    check_same_bits("logits after sampling", after, logits, bytes);
    lk_free(be, p);
    free(after);
    return status;
}

static inline lk_sample_result sample_one(lk_backend *be, const float *logits, int64_t vocab, const lk_sample_request *q)
{
    lk_sample_result r;
    OP(be, sample_rows(be, logits, 1, vocab, q, &r));
    return r;
}

static inline void check_greedy(lk_backend *be)
{
    enum { MOST = 40 };
    lk_sample_request q[MOST];
    lk_sample_result r[MOST];
    float ties[MOST * MOST];
    for (int i = 0; i < MOST; i++) {
        q[i] = plain;
        q[i].temperature = 0.0f;
    }
    for (int n = 1; n <= MOST; n++) {
        for (int best = 0; best < n; best++) {
            float *row = ties + best * n;
            for (int i = 0; i < n; i++) row[i] = i == best || i == n - 1 ? 3.0f : (float)i * 0.01f;
            if (best == n - 1 && n > 1) row[n - 1] = 4.0f;
        }
        OP(be, sample_rows(be, ties, n, n, q, r));
        for (int best = 0; best < n; best++) assert_int_equal(r[best].token, best);
    }
    float negative[3] = {-5.0f, -2.0f, -2.0f};
    assert_int_equal(sample_one(be, negative, 3, q).token, 1);
    float zeros[3] = {-5.0f, -0.0f, 0.0f};
    assert_int_equal(sample_one(be, zeros, 3, q).token, 1);
    float infinite[4] = {NAN, 1.0f, INFINITY, -INFINITY};
    assert_int_equal(sample_one(be, infinite, 4, q).token, 1);
}

/* ---- the naive sampler: sorts by selection, in double */

typedef struct naive {
    double p[2100]; /* of the survivors, else 0 */
    double edge;    /* how near the draw or a cut came to a boundary, relative */
    int32_t token;
} naive;

static inline void naive_sample(naive *out, const float *logits, int64_t vocab, const lk_sample_request *q)
{
    static double l[2100];
    static int32_t order[2100];
    for (int64_t i = 0; i < vocab; i++) l[i] = isfinite(logits[i]) ? (double)logits[i] : -INFINITY;
    for (int32_t i = 0; i < q->n_bias; i++) l[q->bias_ids[i]] += (double)q->bias[i];
    for (int32_t i = 0; i < q->n_seen; i++) {
        double *x = &l[q->seen[i]];
        *x = *x > 0 ? *x / (double)q->repetition_penalty : *x * (double)q->repetition_penalty;
        if (q->seen_counts[i] > 0) *x -= (double)q->presence_penalty + (double)q->frequency_penalty * q->seen_counts[i];
    }
    for (int32_t i = 0; i < q->n_banned; i++) l[q->banned[i]] = -INFINITY;
    for (int64_t i = 0; i < vocab; i++) order[i] = (int32_t)i;
    for (int64_t i = 0; i < vocab; i++) {
        int64_t best = i;
        for (int64_t j = i + 1; j < vocab; j++)
            if (l[order[j]] > l[order[best]] || (l[order[j]] == l[order[best]] && order[j] < order[best])) best = j;
        int32_t moved = order[i];
        order[i] = order[best];
        order[best] = moved;
    }
    int64_t n = q->top_k > 0 && q->top_k < vocab ? q->top_k : vocab;
    double sum = 0.0, seen = 0.0, top = l[order[0]];
    out->edge = 1.0;
    memset(out->p, 0, sizeof out->p);
    for (int64_t i = 0; i < n; i++) sum += exp((l[order[i]] - top) / (double)q->temperature);
    for (int64_t i = 0; i < n; i++) {
        double p = exp((l[order[i]] - top) / (double)q->temperature);
        double short_of = (double)q->top_p * sum - seen;
        if (q->top_p < 1.0f && fabs(short_of) < out->edge * sum) out->edge = fabs(short_of) / sum;
        if (q->min_p > 0.0f && fabs(p - (double)q->min_p) < out->edge) out->edge = fabs(p - (double)q->min_p);
        if (q->top_p < 1.0f && short_of <= 0) break;
        if (p >= (double)q->min_p) out->p[order[i]] = p;
        seen += p;
    }
    uint32_t words[4];
    lk_philox(q->key, 0, q->counter, words);
    double total = 0.0, running = 0.0;
    for (int64_t i = 0; i < vocab; i++) total += out->p[i];
    double at = (double)lk_philox_uniform(words[0]) * total;
    out->token = -1;
    for (int64_t i = 0; i < vocab; i++) {
        running += out->p[i];
        if (fabs(at - running) < out->edge * total) out->edge = fabs(at - running) / total;
        if (out->token < 0 && at < running) out->token = (int32_t)i;
    }
}

/* ---- cases for it */

enum { SAMPLE_TRIALS = 200, SAMPLE_VOCABS = 5 };
static const int64_t sample_vocabs[SAMPLE_VOCABS] = {1, 2, 17, 300, 2053}; /* of trial i: number i % SAMPLE_VOCABS */

typedef struct sample_case {
    float *logits; /* free it */
    int64_t vocab;
    lk_sample_request q;
    int32_t seen[8], counts[8], bias_ids[3], banned[2];
    float bias[3];
} sample_case;

static inline void sample_case_make(sample_case *c, int trial)
{
    check_random r = {(uint64_t)trial * 1234567 + 1};
    *c = (sample_case){.vocab = sample_vocabs[trial % SAMPLE_VOCABS], .q = plain, .bias = {2.0f, -100.0f, 0.5f}};
    c->logits = random_floats((uint64_t)trial, c->vocab, trial % 3 ? 3.0f : 0.5f);
    for (int i = 0; i < 8; i++) {
        c->seen[i] = (int32_t)((i * 31 + trial) % c->vocab);
        c->counts[i] = i % 3;
    }
    for (int i = 0; i < 3; i++) c->bias_ids[i] = (int32_t)((i * 53 + trial) % c->vocab);
    for (int i = 0; i < 2; i++) c->banned[i] = (int32_t)((i * 3 + 1) % c->vocab);
    lk_sample_request *q = &c->q;
    q->temperature = (float)(0.3 + check_random_uniform(&r));
    if (trial % 2) q->top_k = (int32_t)(1 + check_random_u64(&r) % 50);
    if (trial % 4 > 1) q->top_p = (float)(0.05 + 0.9 * check_random_uniform(&r));
    if (trial % 8 > 3) q->min_p = (float)(0.2 * check_random_uniform(&r));
    if (trial % 16 > 7 && c->vocab > 16) {
        q->repetition_penalty = 1.3f;
        q->presence_penalty = 0.4f;
        q->frequency_penalty = 0.2f;
        q->seen = c->seen;
        q->seen_counts = c->counts;
        q->n_seen = 8;
        q->bias = c->bias;
        q->bias_ids = c->bias_ids;
        q->n_bias = 3;
        q->banned = c->banned;
        q->n_banned = 2;
    }
    q->key = lk_philox_key_make(5, LK_STREAM_SAMPLE);
    q->counter = (uint64_t)trial;
}

/* ---- draws */

static inline void check_seeds(lk_backend *be)
{
    float *logits = random_floats(3, 5 * 500, 1.0f);
    lk_sample_request q[5], many[20];
    lk_sample_result first[5], again[5], alone, drawn[20];
    float *copies = malloc(20 * 500 * sizeof(float));
    int differ = 0;
    for (int i = 0; i < 5; i++) {
        q[i] = plain;
        q[i].key = lk_philox_key_make((uint64_t)i, LK_STREAM_SAMPLE);
        q[i].top_p = i % 2 ? 0.9f : 1.0f;
        q[i].n_logprobs = 3;
    }
    OP(be, sample_rows(be, logits, 5, 500, q, first));
    OP(be, sample_rows(be, logits, 5, 500, q, again));
    for (int i = 0; i < 5; i++) {
        alone = sample_one(be, logits + i * 500, 500, &q[i]);
        assert_true(first[i].token == again[i].token && alone.token == first[i].token);
        check_same_bits("logprob alone", &alone.logprob, &first[i].logprob, 4);
        check_same_bits("top logprobs alone", alone.top_logprobs, first[i].top_logprobs, 3 * sizeof(float));
    }
    for (int c = 0; c < 20; c++) {
        many[c] = q[0];
        many[c].counter = (uint64_t)c;
        memcpy(copies + c * 500, logits, 500 * sizeof(float));
    }
    OP(be, sample_rows(be, copies, 20, 500, many, drawn));
    for (int c = 0; c < 20; c++) differ += drawn[c].token != first[0].token;
    assert_true(differ > 10);
    free(copies);
    free(logits);
}

/* ---- logprobs */

static inline void check_logprobs(lk_backend *be)
{
    static const int64_t vocabs[] = {1, 5, 20, 21, 1009};
    for (int i = 0; i < 5; i++) {
        int64_t vocab = vocabs[i];
        float *logits = random_floats(7, vocab, 4.0f);
        if (vocab > 20) logits[9] = logits[4] = 30.0f; /* a tie at the top: lower id first */
        if (vocab == 5) logits[2] = NAN;
        lk_sample_request q = plain;
        int32_t banned[1] = {4};
        q.temperature = 0.0f;
        q.n_logprobs = 20;
        q.banned = banned;
        q.n_banned = vocab > 4;
        lk_sample_result r = sample_one(be, logits, vocab, &q);
        double sum = 0.0;
        int64_t finite = 0;
        for (int64_t j = 0; j < vocab; j++)
            if (isfinite(logits[j])) {
                sum += exp((double)logits[j]);
                finite++;
            }
        assert_true(fabs((double)r.logprob - ((double)logits[r.token] - log(sum))) < 3e-6); /* of the raw logits: bans do not show */
        assert_int_equal(r.n_top, finite < 20 ? finite : 20);
        for (int j = 0; j < r.n_top; j++) {
            assert_true(fabs((double)r.top_logprobs[j] - ((double)logits[r.top_ids[j]] - log(sum))) < 3e-6);
            if (j)
                assert_true(r.top_logprobs[j] < r.top_logprobs[j - 1] ||
                            (r.top_logprobs[j] == r.top_logprobs[j - 1] && r.top_ids[j] > r.top_ids[j - 1]));
        }
        if (vocab > 20) {
            assert_int_equal(r.token, 9);
            assert_int_equal(r.top_ids[0], 4);
        }
        q.n_logprobs = 0;
        r = sample_one(be, logits, vocab, &q);
        assert_int_equal(r.n_top, 0);
        assert_true(r.logprob < 0.0f || vocab == 1);
        free(logits);
    }
}

/* A broken row is reported and the others are answered. */
static inline void check_broken(lk_backend *be)
{
    float logits[3][33];
    for (int i = 0; i < 33; i++) {
        logits[0][i] = (float)i;
        logits[1][i] = i % 2 ? NAN : -INFINITY;
        logits[2][i] = (float)-i;
    }
    for (int drawn = 0; drawn < 2; drawn++) {
        lk_sample_request q[3] = {plain, plain, plain};
        q[0].temperature = q[2].temperature = 0.0f;
        q[1].temperature = (float)drawn;
        q[1].top_p = 0.5f;
        lk_sample_result r[3];
        CHECK_FAILS(sample_rows(be, logits[0], 3, 33, q, r), LK_ERR_FORMAT, "row 1", lk_backend_error(be));
        assert_int_equal(r[0].token, 32);
        assert_int_equal(r[1].token, -1);
        assert_int_equal(r[2].token, 0);
    }
}

#endif
