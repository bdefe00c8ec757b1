/* Several processes that add numbers together: sums in the order of ranks, broadcasts, and what the rest hears when one fails or dies. */
#include "base/ranks.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/check.h"

/* Values whose sum depends on the order. */
static float value_of(int rank, int64_t i) { return rank == 0 ? 1e8f : rank == 1 ? -1e8f : 0.25f * (float)(i % 7); }

static lk_status add_together(lk_ranks *r, lk_error *err)
{
    enum { N = 150001 };
    float *x = malloc(N * sizeof *x);
    int rank = lk_ranks_rank(r), size = lk_ranks_size(r);
    double counts[2] = {rank + 1, 0.5};
    char text[32] = "";
    lk_status status = LK_OK;
    for (int64_t i = 0; i < N; i++) x[i] = value_of(rank, i);
    if (rank == 0) strcpy(text, "from the first");
    for (int round = 0; !status && round < 3; round++) {
        if (round == 0) status = lk_ranks_sum(r, x, N, err);
        if (!status) status = lk_ranks_broadcast(r, text, sizeof text, err);
    }
    if (!status) status = lk_ranks_sum_doubles(r, counts, 2, err);
    for (int64_t i = 0; !status && i < N; i++) {
        float want = 0.0f;
        for (int other = 0; other < size; other++) want += value_of(other, i);
        if (memcmp(&want, &x[i], sizeof want) != 0)
            status = lk_fail(err, LK_ERR_INTERNAL, "rank %d: sum %d is %g, wanted %g", rank, (int)i, (double)x[i], (double)want);
    }
    if (!status && strcmp(text, "from the first") != 0) status = lk_fail(err, LK_ERR_INTERNAL, "rank %d heard \"%s\"", rank, text);
    if (!status && (counts[0] != size * (size + 1) / 2.0 || counts[1] != 0.5 * size))
        status = lk_fail(err, LK_ERR_INTERNAL, "rank %d counted %g and %g", rank, counts[0], counts[1]);
    free(x);
    return status;
}

static void test_sums(void **state)
{
    (void)state;
    for (int size = 1; size <= 4; size++) {
        lk_error err = {0};
        lk_ranks *r;
        CHECK_OK(lk_ranks_start(&r, size, &err), &err);
        lk_status status = add_together(r, &err);
        CHECK_OK(lk_ranks_finish(r, status, &err), &err);
    }
}

static void test_one_fails(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_ranks *r;
    CHECK_OK(lk_ranks_start(&r, 3, &err), &err);
    lk_status status = LK_OK;
    if (lk_ranks_rank(r) == 2)
        status = lk_fail(&err, LK_ERR_MEMORY, "the third has no memory");
    else
        status = lk_ranks_barrier(r, &err);
    CHECK_FAILS(lk_ranks_finish(r, status, &err), LK_ERR_MEMORY, "the third has no memory", &err);
}

static void test_one_dies(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_ranks *r;
    CHECK_OK(lk_ranks_start(&r, 3, &err), &err);
    if (lk_ranks_rank(r) == 1) raise(SIGKILL);
    lk_status status = lk_ranks_barrier(r, &err);
    CHECK_FAILS(lk_ranks_finish(r, status, &err), LK_ERR_IO, "process 1 was ended by signal 9", &err);
}

static void test_one_leaves_early(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_ranks *r;
    CHECK_OK(lk_ranks_start(&r, 2, &err), &err);
    lk_status status = lk_ranks_rank(r) == 0 ? lk_ranks_barrier(r, &err) : LK_OK;
    CHECK_FAILS(lk_ranks_finish(r, status, &err), LK_ERR_IO, "has ended", &err);
}

static void test_too_many(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_ranks *r;
    CHECK_FAILS(lk_ranks_start(&r, 65, &err), LK_ERR_ARGUMENT, "from 1 to 64", &err);
    CHECK_FAILS(lk_ranks_start(&r, 0, &err), LK_ERR_ARGUMENT, "from 1 to 64", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums), cmocka_unit_test(test_one_fails), cmocka_unit_test(test_one_dies),
                                       cmocka_unit_test(test_one_leaves_early), cmocka_unit_test(test_too_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
