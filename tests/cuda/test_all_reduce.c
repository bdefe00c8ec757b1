/* Sums over ranks on the CUDA backend: the bits of adding in the order of ranks, for any length, with a scratch of any size. Each rank is a
 * process. Here every rank names the same GPU, which NCCL does not connect: on a real one this is the way through the host; the
 * emulation takes the way over the gather and the kernel. */
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "tests/check.h"

typedef struct reduce_case {
    int ranks;
    int64_t n, tokens; /* tokens of the limits: what scratch there is */
} reduce_case;

/* Values whose sum depends on the order, and signed zeros. */
static float value_of(int rank, int64_t i)
{
    if (i % 11 == 0) return -0.0f;
    return rank == 0 ? 1e8f : rank == 1 ? -1e8f : 0.25f * (float)(i % 7) + 1e-3f * (float)rank;
}

static lk_status compare(const reduce_case *c, const float *got, lk_error *err)
{
    for (int64_t i = 0; i < c->n; i++) {
        float want = value_of(0, i);
        for (int r = 1; r < c->ranks; r++) want += value_of(r, i);
        if (memcmp(&want, &got[i], sizeof want) != 0)
            return lk_fail(err, LK_ERR_INTERNAL, "%d ranks, %lld values: value %lld is %g, wanted %g", c->ranks, (long long)c->n,
                           (long long)i, (double)got[i], (double)want);
    }
    return LK_OK;
}

static lk_status one_rank(const reduce_case *c, lk_ranks *ranks, lk_error *err)
{
    lk_backend *be;
    size_t bytes = (size_t)c->n * sizeof(float);
    LK_TRY(lk_backend_open(&be, &(lk_backend_options){.device = "cuda:0", .compute = LK_BF16, .ranks = ranks}, err));
    float *host = malloc(bytes);
    void *x = NULL;
    for (int64_t i = 0; i < c->n; i++) host[i] = value_of(lk_ranks_rank(ranks), i);
    lk_limits limits = {
        .tokens = c->tokens, .width = 8, .vocab = 8, .rank = 8, .heads = 1, .kv_heads = 1, .head_dim = 8, .context = 8, .matrix = 64};
    lk_status status = lk_reserve(be, &limits);
    if (!status) status = lk_alloc(be, bytes, &x);
    if (!status) status = lk_upload(be, x, host, bytes);
    if (!status) status = lk_all_reduce(be, x, c->n);
    if (!status) status = lk_download(be, host, x, bytes);
    if (status)
        status = lk_backend_fail(be, status, err);
    else
        status = compare(c, host, err);
    if (x) lk_free(be, x);
    free(host);
    lk_backend_close(be);
    return status;
}

static void test_sums(void **state)
{
    (void)state;
    static const reduce_case cases[] = {{1, 100, 8}, {2, 1, 8}, {2, 1000003, 8}, {3, 65536, 8}, {4, 20011, 2048}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lk_error err = {0};
        lk_ranks *ranks;
        CHECK_OK(lk_ranks_start(&ranks, cases[i].ranks, &err), &err);
        lk_status status = cases[i].ranks == 1 ? LK_OK : one_rank(&cases[i], ranks, &err);
        CHECK_OK(lk_ranks_finish(ranks, status, &err), &err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
