/* From logits to a token: greedy ties, every cut against a naive sort, penalties, bias, bans, seeds, the distribution, log
 * probabilities, broken rows. */
#include "tests/kernels/ops_check.h"

static const lk_sample_request plain = {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};

static lk_sample_result sample_one(lk_backend *be, float *logits, int64_t vocab, const lk_sample_request *q)
{
    lk_tensor t = lk_tensor_make(logits, LK_F32, 1, vocab);
    lk_sample_result r;
    OP(be, lk_sample(be, &t, q, &r));
    return r;
}

#define FOR_TIERS(be)                             \
    for (int tier_ = 0; tier_ < N_TIERS; tier_++) \
        for (lk_backend *be = open_tier(all_tiers[tier_], 2, LK_F32); be; lk_backend_close(be), be = NULL)

static void test_greedy(void **state)
{
    (void)state;
    FOR_TIERS(be)
    {
        lk_sample_request q = plain;
        q.temperature = 0.0f;
        float ties[40];
        for (int n = 1; n <= 40; n++)
            for (int best = 0; best < n; best++) {
                for (int i = 0; i < n; i++) ties[i] = i == best || i == n - 1 ? 3.0f : (float)i * 0.01f;
                if (best == n - 1 && n > 1) ties[n - 1] = 4.0f;
                assert_int_equal(sample_one(be, ties, n, &q).token, best);
            }
        float negative[3] = {-5.0f, -2.0f, -2.0f};
        assert_int_equal(sample_one(be, negative, 3, &q).token, 1);
        float infinite[4] = {NAN, 1.0f, INFINITY, -INFINITY};
        assert_int_equal(sample_one(be, infinite, 4, &q).token, 1);
    }
}

/* ---- the naive sampler: sorts by selection, in double */

typedef struct naive {
    double p[2100]; /* of the survivors, else 0 */
    double edge;    /* how near the draw or a cut came to a boundary, relative */
    int32_t token;
} naive;

static void naive_sample(naive *out, const float *logits, int64_t vocab, const lk_sample_request *q)
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

static void test_against_naive(void **state)
{
    (void)state;
    static naive want;
    static const int64_t vocabs[] = {1, 2, 17, 300, 2053};
    FOR_TIERS(be)
    {
        int compared = 0;
        for (int trial = 0; trial < 200; trial++) {
            check_random r = {(uint64_t)trial * 1234567 + 1};
            int64_t vocab = vocabs[trial % 5];
            float *logits = random_floats((uint64_t)trial, vocab, trial % 3 ? 3.0f : 0.5f);
            int32_t seen[8], counts[8], bias_ids[3], banned[2];
            float bias[3] = {2.0f, -100.0f, 0.5f};
            for (int i = 0; i < 8; i++) {
                seen[i] = (int32_t)((i * 31 + trial) % vocab);
                counts[i] = i % 3;
            }
            for (int i = 0; i < 3; i++) bias_ids[i] = (int32_t)((i * 53 + trial) % vocab);
            for (int i = 0; i < 2; i++) banned[i] = (int32_t)((i * 3 + 1) % vocab);
            lk_sample_request q = plain;
            q.temperature = (float)(0.3 + check_random_uniform(&r));
            if (trial % 2) q.top_k = (int32_t)(1 + check_random_u64(&r) % 50);
            if (trial % 4 > 1) q.top_p = (float)(0.05 + 0.9 * check_random_uniform(&r));
            if (trial % 8 > 3) q.min_p = (float)(0.2 * check_random_uniform(&r));
            if (trial % 16 > 7 && vocab > 16) {
                q.repetition_penalty = 1.3f;
                q.presence_penalty = 0.4f;
                q.frequency_penalty = 0.2f;
                q.seen = seen;
                q.seen_counts = counts;
                q.n_seen = 8;
                q.bias = bias;
                q.bias_ids = bias_ids;
                q.n_bias = 3;
                q.banned = banned;
                q.n_banned = 2;
            }
            q.key = lk_philox_key_make(5, LK_STREAM_SAMPLE);
            q.counter = (uint64_t)trial;
            naive_sample(&want, logits, vocab, &q);
            int32_t token = sample_one(be, logits, vocab, &q).token;
            assert_true(token >= 0 && token < vocab);
            if (want.edge > 1e-5) { /* nearer than fp32 probabilities can tell, either answer is right */
                if (token != want.token)
                    fail_msg("%s, trial %d: token %d, the naive sampler draws %d", lk_backend_name(be), trial, token, want.token);
                compared++;
            }
            free(logits);
        }
        assert_true(compared > 150);
    }
}

/* ---- draws */

static void test_seeds(void **state)
{
    (void)state;
    float *logits = random_floats(3, 5 * 500, 1.0f);
    FOR_TIERS(be)
    {
        lk_sample_request q[5];
        lk_sample_result first[5], again[5], alone;
        int differ = 0;
        for (int i = 0; i < 5; i++) {
            q[i] = plain;
            q[i].key = lk_philox_key_make((uint64_t)i, LK_STREAM_SAMPLE);
            q[i].top_p = i % 2 ? 0.9f : 1.0f;
            q[i].n_logprobs = 3;
        }
        lk_tensor t = lk_tensor_make(logits, LK_F32, 5, 500);
        OP(be, lk_sample(be, &t, q, first));
        OP(be, lk_sample(be, &t, q, again));
        for (int i = 0; i < 5; i++) {
            alone = sample_one(be, logits + i * 500, 500, &q[i]);
            assert_true(first[i].token == again[i].token && alone.token == first[i].token);
            check_same_bits("logprob alone", &alone.logprob, &first[i].logprob, 4);
            check_same_bits("top logprobs alone", alone.top_logprobs, first[i].top_logprobs, sizeof alone.top_logprobs);
        }
        for (uint64_t c = 0; c < 20; c++) {
            q[0].counter = c;
            differ += sample_one(be, logits, 500, &q[0]).token != first[0].token;
        }
        assert_true(differ > 10);
    }
    free(logits);
}

/* Chi-square of 20000 draws over 10 tokens: 9 degrees of freedom, 40 has a chance of 1e-5. */
static void test_distribution(void **state)
{
    (void)state;
    FOR_TIERS(be)
    {
        for (int cut = 0; cut < 2; cut++) {
            float logits[10];
            double p[10], sum = 0.0, chi = 0.0;
            int count[10] = {0};
            enum { DRAWS = 20000 };
            for (int i = 0; i < 10; i++) {
                logits[i] = 0.3f * (float)((i * 7) % 10);
                p[i] = exp((double)logits[i] / 0.8);
                sum += p[i];
            }
            lk_sample_request q = plain;
            q.temperature = 0.8f;
            q.top_k = cut ? 10 : 0; /* sorted or not, the same distribution */
            q.key = lk_philox_key_make(11, LK_STREAM_SAMPLE);
            for (int i = 0; i < DRAWS; i++) {
                q.counter = (uint64_t)i;
                count[sample_one(be, logits, 10, &q).token]++;
            }
            for (int i = 0; i < 10; i++) {
                double expected = DRAWS * p[i] / sum;
                chi += (count[i] - expected) * (count[i] - expected) / expected;
            }
            if (chi > 40) fail_msg("%s: chi-square %.1f", lk_backend_name(be), chi);
        }
    }
}

/* ---- logprobs */

static void test_logprobs(void **state)
{
    (void)state;
    static const int64_t vocabs[] = {1, 5, 20, 21, 1009};
    FOR_TIERS(be)
    {
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
}

/* A broken row is reported and the others are answered. */
static void test_broken(void **state)
{
    (void)state;
    FOR_TIERS(be)
    {
        float logits[3][33];
        for (int i = 0; i < 33; i++) {
            logits[0][i] = (float)i;
            logits[1][i] = i % 2 ? NAN : -INFINITY;
            logits[2][i] = (float)-i;
        }
        lk_sample_request q[3] = {plain, plain, plain};
        q[0].temperature = q[2].temperature = 0.0f;
        lk_sample_result r[3];
        lk_tensor t = lk_tensor_make(logits, LK_F32, 3, 33);
        CHECK_FAILS(lk_sample(be, &t, q, r), LK_ERR_FORMAT, "row 1", lk_backend_error(be));
        assert_int_equal(r[0].token, 32);
        assert_int_equal(r[1].token, -1);
        assert_int_equal(r[2].token, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy),   cmocka_unit_test(test_against_naive),
                                       cmocka_unit_test(test_seeds),    cmocka_unit_test(test_distribution),
                                       cmocka_unit_test(test_logprobs), cmocka_unit_test(test_broken)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
