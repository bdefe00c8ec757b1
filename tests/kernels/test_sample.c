/* From logits to a token: greedy ties, every cut against a naive sort, penalties, bias, bans, seeds, the distribution, log
 * probabilities, broken rows. */
#include "tests/kernels/sample_cases.h"

#define FOR_TIERS(be)                             \
    for (int tier_ = 0; tier_ < N_TIERS; tier_++) \
        for (lk_backend *be = open_tier(all_tiers[tier_], 2, LK_F32); be; lk_backend_close(be), be = NULL)

static void test_greedy(void **state)
{
    (void)state;
    FOR_TIERS(be) check_greedy(be);
}

static void test_against_naive(void **state)
{
    (void)state;
    static naive want;
    sample_case c;
    FOR_TIERS(be)
    {
        int compared = 0;
        for (int trial = 0; trial < SAMPLE_TRIALS; trial++) {
            sample_case_make(&c, trial);
            naive_sample(&want, c.logits, c.vocab, &c.q);
            int32_t token = sample_one(be, c.logits, c.vocab, &c.q).token;
            assert_true(token >= 0 && token < c.vocab);
            if (want.edge > 1e-5) { /* nearer than fp32 probabilities can tell, either answer is right */
                if (token != want.token)
                    fail_msg("%s, trial %d: token %d, the naive sampler draws %d", lk_backend_name(be), trial, token, want.token);
                compared++;
            }
            free(c.logits);
        }
        assert_true(compared > 150);
    }
}

static void test_seeds(void **state)
{
    (void)state;
    FOR_TIERS(be) check_seeds(be);
}

/* Chi-square of 20000 draws over 10 tokens: 9 degrees of freedom, 40 has a chance of 1e-5. */
static void test_distribution(void **state)
{
    (void)state;
    FOR_TIERS(be)
    {
        for (int cut = 0; cut < 2; cut++) {
            float logits[10];
            lk_sample_result r;
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
                lk_tensor t = lk_tensor_make(logits, LK_F32, 1, 10);
                OP(be, lk_sample(be, &t, &q, &r));
                count[r.token]++;
            }
            for (int i = 0; i < 10; i++) {
                double expected = DRAWS * p[i] / sum;
                chi += (count[i] - expected) * (count[i] - expected) / expected;
            }
            if (chi > 40) fail_msg("%s: chi-square %.1f", lk_backend_name(be), chi);
        }
    }
}

static void test_logprobs(void **state)
{
    (void)state;
    FOR_TIERS(be) check_logprobs(be);
}

static void test_broken(void **state)
{
    (void)state;
    FOR_TIERS(be) check_broken(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy),   cmocka_unit_test(test_against_naive),
                                       cmocka_unit_test(test_seeds),    cmocka_unit_test(test_distribution),
                                       cmocka_unit_test(test_logprobs), cmocka_unit_test(test_broken)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
