/* Attention within documents, both ways: one query, primes, one past a block, several documents with empty ones, groups of query heads
 * on one key head, windows. */
#include "tests/kernels/attention_cases.h"
#include "tests/kernels/ops_check.h"

typedef struct outcome {
    float *o, *lse, *dq, *dk, *dv;
} outcome;

static void outcome_free(outcome *o)
{
    float *all[] = {o->o, o->lse, o->dq, o->dk, o->dv};
    for (int i = 0; i < 5; i++) free(all[i]);
}

/* Documents [first, first + docs) of the case as a batch of their own. */
static outcome run(lk_backend *be, const attention_case *c, int64_t first, int64_t docs)
{
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim, begin = c->starts[first],
            rows = c->starts[first + docs] - begin;
    float *in[4];
    int32_t starts[9];
    inputs(c, in);
    for (int64_t d = 0; d <= docs; d++) starts[d] = c->starts[first + d] - (int32_t)begin;
    lk_batch batch = {.n_tokens = rows, .n_docs = docs, .doc_starts = starts};
    lk_attention_shape shape = {c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), c->window, c->cap};
    guarded q = guarded_from(rows, wide, c->gap, in[0] + begin * wide), k = guarded_from(rows, narrow, c->gap, in[1] + begin * narrow);
    guarded v = guarded_from(rows, narrow, 0, in[2] + begin * narrow), dout = guarded_from(rows, wide, c->gap, in[3] + begin * wide);
    guarded o = guarded_make(rows, wide, c->gap), lse = guarded_make(rows, c->heads, 0), dq = guarded_make(rows, wide, 0);
    guarded dk = guarded_make(rows, narrow, c->gap), dv = guarded_make(rows, narrow, 1);
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_attention(be, &batch, &shape, &o.t, lse.t.data, &q.t, &k.t, &v.t));
    OP(be, lk_attention_backward(be, &batch, &shape, &dq.t, &dk.t, &dv.t, &dout.t, &o.t, lse.t.data, &q.t, &k.t, &v.t));
    outcome out = {guarded_values("o", &o), guarded_values("lse", &lse), guarded_values("dq", &dq), guarded_values("dk", &dk),
                   guarded_values("dv", &dv)};
    OP(be, lk_attention(be, &batch, &shape, &o.t, NULL, &q.t, &k.t, &v.t));
    float *again = guarded_values("o without lse", &o);
    check_same_bits("attention with and without lse", again, out.o, (size_t)(rows * wide) * 4);
    free(again);
    guarded *all[] = {&q, &k, &v, &dout, &o, &lse, &dq, &dk, &dv};
    for (int i = 0; i < 9; i++) guarded_free(all[i]);
    for (int i = 0; i < 4; i++) free(in[i]);
    return out;
}

static void compare(const attention_case *c, const outcome *got, const outcome *want, double tolerance)
{
    int64_t wide = n_rows(c) * c->heads * c->head_dim, narrow = n_rows(c) * c->kv_heads * c->head_dim;
    check_close("attention", got->o, want->o, wide, tolerance, tolerance);
    check_close("lse", got->lse, want->lse, n_rows(c) * c->heads, tolerance, tolerance);
    /* gradients add up to window*group terms each as wrong as one */
    double wider = tolerance * (4 + 0.2 * sqrt((double)n_rows(c) * (double)(c->heads / c->kv_heads))) * (double)c->spread;
    check_close("dq", got->dq, want->dq, wide, wider, wider);
    check_close("dk", got->dk, want->dk, narrow, wider, wider);
    check_close("dv", got->dv, want->dv, narrow, wider, wider);
}

static void same(const attention_case *c, const outcome *got, const outcome *want, const char *what)
{
    size_t wide = (size_t)(n_rows(c) * c->heads * c->head_dim) * 4, narrow = (size_t)(n_rows(c) * c->kv_heads * c->head_dim) * 4;
    check_same_bits(what, got->o, want->o, wide);
    check_same_bits(what, got->lse, want->lse, (size_t)(n_rows(c) * c->heads) * 4);
    check_same_bits(what, got->dq, want->dq, wide);
    check_same_bits(what, got->dk, want->dk, narrow);
    check_same_bits(what, got->dv, want->dv, narrow);
}

/* Each document in a batch of its own gives the bits it gives packed with others. */
static void check_packing(lk_backend *be, const attention_case *c, const outcome *packed)
{
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim;
    for (int64_t d = 0; d < c->docs; d++) {
        outcome alone = run(be, c, d, 1);
        int64_t begin = c->starts[d], rows = c->starts[d + 1] - begin;
        check_same_bits("a document alone: o", alone.o, packed->o + begin * wide, (size_t)(rows * wide) * 4);
        check_same_bits("a document alone: dq", alone.dq, packed->dq + begin * wide, (size_t)(rows * wide) * 4);
        check_same_bits("a document alone: dk", alone.dk, packed->dk + begin * narrow, (size_t)(rows * narrow) * 4);
        check_same_bits("a document alone: dv", alone.dv, packed->dv + begin * narrow, (size_t)(rows * narrow) * 4);
        outcome_free(&alone);
    }
}

static void run_tiers(lk_dtype compute, double tolerance)
{
    lk_backend *reference = open_tier("reference", 1, compute);
    for (int tier = 1; tier < N_TIERS; tier++) {
        lk_backend *be[3];
        for (int i = 0; i < 3; i++) be[i] = open_tier(all_tiers[tier], i + 1, compute);
        for (int i = 0; i < N_ATTENTION_CASES && be[0]; i++) {
            const attention_case *c = &attention_cases[i];
            outcome want = run(reference, c, 0, c->docs), one = run(be[0], c, 0, c->docs);
            compare(c, &one, &want, tolerance);
            check_packing(be[0], c, &one);
            for (int b = 1; b < 3; b++) {
                outcome more = run(be[b], c, 0, c->docs);
                same(c, &more, &one, "attention: threads");
                outcome_free(&more);
            }
            outcome_free(&want);
            outcome_free(&one);
        }
        for (int i = 0; i < 3; i++) lk_backend_close(be[i]);
    }
    lk_backend_close(reference);
}

static void test_f32(void **state)
{
    (void)state;
    run_tiers(LK_F32, 1e-5); /* scores up to ~20 with an error of 1e-6 each go through exp */
}

static void test_bf16(void **state)
{
    (void)state;
    run_tiers(LK_BF16, 3e-2); /* q, k, p and v may be rounded to 8 bits */
}

/* ---- differences */

typedef struct difference {
    const attention_case *c;
    const float *dout;
} difference;

/* x = q, k, v one after another */
static double attention_double(const double *x, void *context)
{
    const difference *f = context;
    const attention_case *c = f->c;
    int64_t D = c->head_dim, wide = c->heads * D, narrow = c->kv_heads * D, rows = n_rows(c);
    const double *q = x, *k = q + rows * wide, *v = k + rows * narrow;
    double total = 0.0, p[300];
    for (int64_t doc = 0; doc < c->docs; doc++)
        for (int64_t t = c->starts[doc]; t < c->starts[doc + 1]; t++)
            for (int64_t h = 0; h < c->heads; h++) {
                int64_t first = c->starts[doc], column = h / (c->heads / c->kv_heads) * D;
                if (c->window && t - c->window + 1 > first) first = t - c->window + 1;
                double sum = 0.0;
                for (int64_t j = first; j <= t; j++) {
                    double score = 0.0;
                    for (int64_t d = 0; d < D; d++) score += q[t * wide + h * D + d] * k[j * narrow + column + d];
                    score *= (double)(1.0f / sqrtf((float)D));
                    if (c->cap > 0.0f) score = (double)c->cap * tanh(score / (double)c->cap);
                    sum += p[j] = exp(score);
                }
                for (int64_t j = first; j <= t; j++)
                    for (int64_t d = 0; d < D; d++)
                        total += p[j] / sum * v[j * narrow + column + d] * (double)f->dout[t * wide + h * D + d];
            }
    return total;
}

static void test_differences(void **state)
{
    (void)state;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    static const int chosen[] = {1, 2, 3, 4, 15};
    for (int i = 0; i < 5; i++) {
        const attention_case *c = &attention_cases[chosen[i]];
        float *in[4];
        inputs(c, in);
        int64_t nq = n_rows(c) * c->heads * c->head_dim, nk = n_rows(c) * c->kv_heads * c->head_dim;
        double *x = malloc((size_t)(nq + 2 * nk) * sizeof(double));
        float *g = malloc((size_t)(nq + 2 * nk) * sizeof(float));
        outcome o = run(be, c, 0, c->docs);
        for (int64_t j = 0; j < nq + 2 * nk; j++) {
            int64_t at = j < nq ? j : j < nq + nk ? j - nq : j - nq - nk;
            x[j] = (double)in[j < nq ? 0 : j < nq + nk ? 1 : 2][at];
            g[j] = (j < nq ? o.dq : j < nq + nk ? o.dk : o.dv)[at];
        }
        check_gradient("attention_backward", g, x, nq + 2 * nk, attention_double, &(difference){c, in[3]}, 2e-4);
        double value = 0.0;
        for (int64_t j = 0; j < nq; j++) value += (double)o.o[j] * (double)in[3][j];
        assert_true(fabs(value - attention_double(x, &(difference){c, in[3]})) < 1e-5 * (double)(nq + 1));
        outcome_free(&o);
        free(x);
        free(g);
        for (int j = 0; j < 4; j++) free(in[j]);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16), cmocka_unit_test(test_differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
