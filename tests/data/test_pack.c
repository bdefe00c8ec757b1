/* data/pack: properties on random lengths (each document once, order kept in a row, no row too full) and equality with first fit
 * written in the obvious way. */
#include <stdlib.h>

#include "data/pack.h"
#include "tests/check.h"

static void shuffle(int64_t *order, int64_t n, check_random *r)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)(check_random_u64(r) % (uint64_t)(i + 1)), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

static void check_case(int64_t n, int64_t row_tokens, int64_t longest, uint64_t seed)
{
    lk_error err = {0};
    check_random r = {seed};
    int64_t *lengths = calloc((size_t)n + 1, 8), *order = calloc((size_t)n + 1, 8), *rank = calloc((size_t)n + 1, 8);
    int64_t *want = calloc((size_t)n + 1, 8), *room = calloc((size_t)n + 1, 8), rows = 0;
    for (int64_t i = 0; i < n; i++) {
        lengths[i] = 1 + (int64_t)(check_random_u64(&r) % (uint64_t)longest);
        order[i] = i;
    }
    shuffle(order, n, &r);
    for (int64_t i = 0; i < n; i++) { /* the obvious way */
        int64_t row = 0, length = lengths[order[i]];
        while (row < rows && room[row] < length) row++;
        if (row == rows) room[rows++] = row_tokens;
        room[row] -= length;
        want[order[i]] = row;
        rank[order[i]] = i;
    }
    lk_pack *p;
    CHECK_OK(lk_pack_create(&p, lengths, order, n, row_tokens, &err), &err);
    assert_int_equal(lk_pack_rows(p), rows);
    int64_t seen = 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *documents;
        int64_t count = lk_pack_row(p, row, &documents), tokens = 0;
        assert_true(count >= 1);
        for (int64_t i = 0; i < count; i++) {
            if (want[documents[i]] != row) fail_msg("seed %d n %d: document %d in row %d", (int)seed, (int)n, (int)documents[i], (int)row);
            want[documents[i]] = -1; /* a second time would not match */
            if (i) assert_true(rank[documents[i - 1]] < rank[documents[i]]);
            tokens += lengths[documents[i]];
        }
        seen += count;
        assert_int_equal(tokens, lk_pack_row_tokens(p, row));
        assert_true(tokens <= row_tokens);
    }
    assert_int_equal(seen, n);
    lk_pack_destroy(p);
    free(lengths);
    free(order);
    free(rank);
    free(want);
    free(room);
}

static void test_properties(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 2, 3, 7, 8, 9, 64, 65, 500};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        check_case(counts[i], 1, 1, seed++);
        check_case(counts[i], 17, 17, seed++);
        check_case(counts[i], 1024, 1024, seed++);
        check_case(counts[i], 1024, 100, seed++);
        check_case(counts[i], 1000, 3, seed++);
    }
}

static void test_refused(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_pack *p;
    const int64_t lengths[3] = {4, 9, 0}, first[2] = {0, 1}, empty[1] = {2}, negative[1] = {-1};
    CHECK_FAILS(lk_pack_create(&p, lengths, first, 2, 8, &err), LK_ERR_ARGUMENT, "document 1 has 9 tokens", &err);
    CHECK_FAILS(lk_pack_create(&p, lengths, empty, 1, 8, &err), LK_ERR_ARGUMENT, "document 2 has 0 tokens", &err);
    CHECK_FAILS(lk_pack_create(&p, lengths, negative, 1, 8, &err), LK_ERR_ARGUMENT, "document -1", &err);
    CHECK_FAILS(lk_pack_create(&p, lengths, first, 1, 0, &err), LK_ERR_ARGUMENT, "rows of 0", &err);
    assert_null(p);
    CHECK_OK(lk_pack_create(&p, lengths, NULL, 1, 8, &err), &err);
    assert_int_equal(lk_pack_rows(p), 1);
    lk_pack_destroy(p);
    lk_pack_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_properties), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
