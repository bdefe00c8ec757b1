/* Counting tokens for the penalties against an array over the vocabulary, and the bounds of the histograms. */
#include <stdlib.h>

#include "serve/seen.h"
#include "serve/stats.h"
#include "tests/check.h"

enum { VOCAB = 131 };

static void test_seen(void **state)
{
    (void)state;
    static const int64_t SIZES[] = {1, 2, 7, 100, 1000};
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        check_random r = {i + 1};
        lk_error err = {0};
        lk_seen seen;
        int32_t counts[VOCAB] = {0};
        bool known[VOCAB] = {false};
        CHECK_OK(lk_seen_init(&seen, SIZES[i], &err), &err);
        for (int64_t t = 0; t < SIZES[i]; t++) {
            int32_t id = (int32_t)(check_random_u64(&r) % VOCAB);
            known[id] = true;
            if (t < SIZES[i] / 2) {
                lk_seen_prompt(&seen, id);
            } else {
                lk_seen_output(&seen, id);
                counts[id]++;
            }
        }
        int32_t distinct = 0;
        for (int32_t id = 0; id < VOCAB; id++) distinct += known[id];
        assert_int_equal(seen.n, distinct);
        for (int32_t k = 0; k < seen.n; k++) {
            assert_true(known[seen.ids[k]]);
            known[seen.ids[k]] = false; /* each once */
            assert_int_equal(seen.counts[k], counts[seen.ids[k]]);
        }
        lk_seen_free(&seen);
    }
}

static void test_histogram(void **state)
{
    (void)state;
    lk_histogram h = {{0}, 0};
    for (int i = 0; i < LK_HISTOGRAM_BUCKETS; i++) {
        if (i) assert_true(lk_histogram_bounds[i] > lk_histogram_bounds[i - 1]);
        lk_histogram_add(&h, lk_histogram_bounds[i]); /* a bound belongs to its own bucket: le, as Prometheus counts */
        assert_int_equal(h.counts[i], 1);
    }
    lk_histogram_add(&h, 1e6);
    assert_int_equal(h.counts[LK_HISTOGRAM_BUCKETS], 1);
    assert_true(h.sum > 1e6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seen), cmocka_unit_test(test_histogram)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
