/* Attention over the paged cache. The bits of a row must not depend on how its prompt was cut, on company, on threads, on which pages
 * it got, or on what lies in the unused part of a page. */
#include "tests/kernels/ops_check.h"
#include "tests/kernels/paged_cases.h"

/* A cache full of NaN, so that a slot that was never written shows. */
static lk_kv *poisoned_cache(lk_backend *be, const paged_case *c)
{
    lk_kv *kv;
    lk_kv_shape shape = {LAYERS, (int32_t)c->kv_heads, (int32_t)c->head_dim, c->page_tokens, N_PAGES, c->type};
    OP(be, lk_kv_create(be, &kv, &shape));
    int32_t pages[N_PAGES];
    for (int32_t p = 0; p < N_PAGES; p++) pages[p] = p;
    int64_t rows = (int64_t)N_PAGES * c->page_tokens, width = c->kv_heads * c->head_dim;
    float *nan = malloc((size_t)(rows * width) * sizeof(float));
    for (int64_t i = 0; i < rows * width; i++) nan[i] = NAN;
    lk_sequence all = {0, rows, rows, pages};
    lk_batch batch = {.n_tokens = rows, .n_sequences = 1, .sequences = &all};
    lk_tensor t = lk_tensor_make(nan, LK_F32, rows, width);
    for (int32_t layer = 0; layer < LAYERS; layer++) OP(be, lk_kv_write(be, &batch, kv, layer, &t, &t));
    free(nan);
    return kv;
}

/* Runs all sequences, `chunk` tokens of each at a time (0: whole), pages dealt from `first_page` with a stride; o[rows, H*D]. */
static float *run(lk_backend *be, const paged_case *c, const paged_inputs *in, int64_t chunk, int32_t first_page, int64_t only)
{
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim;
    float *out = calloc((size_t)(in->rows * wide), sizeof(float));
    lk_kv *kv = poisoned_cache(be, c);
    int32_t pages[4][32], next = 0;
    int64_t done[4] = {0}, offset[4] = {0};
    for (int64_t s = 0; s < c->sequences; s++) {
        for (int64_t p = 0; p * c->page_tokens < c->lengths[s]; p++) pages[s][p] = (first_page + 7 * next++) % N_PAGES;
        if (s) offset[s] = offset[s - 1] + c->lengths[s - 1];
    }
    lk_attention_shape shape = {c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), c->window, c->cap};
    for (;;) {
        lk_sequence sequences[4];
        int64_t from[4], rows = 0, n = 0;
        for (int64_t s = 0; s < c->sequences; s++) {
            int64_t left = c->lengths[s] - done[s], count = chunk && chunk < left ? chunk : left;
            if (count == 0 || (only >= 0 && s != only)) continue;
            from[n] = offset[s] + done[s];
            done[s] += count;
            sequences[n++] = (lk_sequence){rows, count, done[s], pages[s]};
            rows += count;
        }
        if (n == 0) break;
        guarded q = guarded_make(rows, wide, 2), k = guarded_make(rows, narrow, 1), v = guarded_make(rows, narrow, 0),
                o = guarded_make(rows, wide, 1);
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < sequences[i].count; r++) {
                int64_t to = sequences[i].begin + r, at = from[i] + r;
                memcpy((float *)q.t.data + to * q.t.stride, in->q + at * wide, (size_t)wide * 4);
                memcpy((float *)k.t.data + to * k.t.stride, in->k + at * narrow, (size_t)narrow * 4);
                memcpy((float *)v.t.data + to * v.t.stride, in->v + at * narrow, (size_t)narrow * 4);
            }
        lk_batch batch = {.n_tokens = rows, .n_sequences = n, .sequences = sequences};
        OP(be, lk_batch_begin(be, &batch));
        OP(be, lk_kv_write(be, &batch, kv, LAYER, &k.t, &v.t));
        OP(be, lk_paged_attention(be, &batch, &shape, &o.t, &q.t, kv, LAYER));
        float *values = guarded_values("o", &o);
        for (int64_t i = 0; i < n; i++)
            memcpy(out + from[i] * wide, values + sequences[i].begin * wide, (size_t)(sequences[i].count * wide) * 4);
        free(values);
        guarded *all[] = {&q, &k, &v, &o};
        for (int i = 0; i < 4; i++) guarded_free(all[i]);
    }
    lk_kv_destroy(be, kv);
    return out;
}

/* One case on one tier, whole and in chunks, on other threads and pages, and each of its sequences alone. */
static void run_tier(const paged_case *c, const paged_inputs *in, const char *tier, lk_dtype compute, const float *want, double tolerance)
{
    lk_backend *one = open_tier(tier, 1, compute);
    if (!one) return;
    lk_backend *two = open_tier(tier, 2, compute);
    int64_t width = c->heads * c->head_dim;
    size_t bytes = (size_t)(in->rows * width) * 4;
    float *whole = run(one, c, in, 0, 0, -1);
    check_close("paged attention", whole, want, in->rows * width, tolerance, tolerance);
    const int64_t chunks[2][3] = {{1, 16, 50}, {3, 33, 64}};
    for (int j = 0; j < 3; j++) {
        float *cut = run(j % 2 ? two : one, c, in, chunks[compute == LK_BF16][j], 13 * j + 1, -1);
        check_same_bits("paged attention in chunks, other threads, other pages", cut, whole, bytes);
        free(cut);
    }
    int64_t row = 0;
    for (int64_t s = 0; s < c->sequences; row += c->lengths[s++]) {
        float *alone = run(two, c, in, 5, 3, s);
        check_same_bits("a sequence alone", alone + row * width, whole + row * width, (size_t)(c->lengths[s] * width) * 4);
        free(alone);
    }
    free(whole);
    lk_backend_close(one);
    lk_backend_close(two);
}

/* fp32: the cached values are the same numbers as the reference's, what differs is order and exp. bf16: q and p may be rounded. */
static void test_tiers(void **state)
{
    (void)state;
    lk_backend *reference = open_tier("reference", 1, LK_F32);
    for (int i = 0; i < N_PAGED_CASES; i++) {
        const paged_case *c = &paged_cases[i];
        paged_inputs in = paged_inputs_make(c);
        float *want = run(reference, c, &in, 0, 0, -1);
        for (int tier = 1; tier < N_TIERS; tier++) {
            run_tier(c, &in, all_tiers[tier], LK_F32, want, 1e-5);
            run_tier(c, &in, all_tiers[tier], LK_BF16, want, 3e-2);
        }
        free(want);
        paged_inputs_free(&in);
    }
    lk_backend_close(reference);
}

/* With an F32 cache it is the attention that training uses. */
static void test_against_training(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be = open_tier(all_tiers[tier], 2, LK_F32);
        if (!be) continue;
        const paged_case *c = &paged_cases[2];
        paged_inputs in = paged_inputs_make(c);
        int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim;
        float *paged = run(be, c, &in, 6, 0, -1);
        int32_t starts[4] = {0, 17, 50, 51};
        lk_batch batch = {.n_tokens = in.rows, .n_docs = 3, .doc_starts = starts};
        lk_attention_shape shape = {c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), c->window, c->cap};
        guarded o = guarded_make(in.rows, wide, 0);
        lk_tensor q = lk_tensor_make(in.q, LK_F32, in.rows, wide), k = lk_tensor_make(in.k, LK_F32, in.rows, narrow),
                  v = lk_tensor_make(in.v, LK_F32, in.rows, narrow);
        OP(be, lk_attention(be, &batch, &shape, &o.t, NULL, &q, &k, &v));
        float *trained = guarded_values("o", &o);
        check_close("paged against training", paged, trained, in.rows * wide, 1e-5, 1e-5);
        free(trained);
        free(paged);
        guarded_free(&o);
        paged_inputs_free(&in);
        lk_backend_close(be);
    }
}

/* What 8 bits keep is what ops.h says: a query that sees one position gets its value back, code * scale. */
static void test_8_bits(void **state)
{
    (void)state;
    const paged_case *c = &paged_cases[N_PAGED_CASES - 2];
    assert_int_equal(c->type, LK_I8);
    paged_inputs in = paged_inputs_make(c);
    int64_t D = c->head_dim, narrow = c->kv_heads * D, group = c->heads / c->kv_heads;
    memset(in.v, 0, (size_t)D * 4); /* a value of zeros */
    in.v[D + 1] = 40.0f;            /* and one with an outlier */
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be = open_tier(all_tiers[tier], 2, LK_F32);
        if (!be) continue;
        float *out = run(be, c, &in, 0, 0, -1);
        int64_t row = 0;
        for (int64_t s = 0; s < c->sequences; row += c->lengths[s++])
            for (int64_t h = 0; h < c->heads; h++) {
                const float *value = in.v + row * narrow + h / group * D;
                float most = 0.0f;
                for (int64_t d = 0; d < D; d++) most = fmaxf(most, fabsf(value[d]));
                for (int64_t d = 0; d < D; d++) {
                    float want = most > 0.0f ? rintf(value[d] * (127.0f / most)) * (most / 127.0f) : 0.0f;
                    assert_float_equal(out[(row * c->heads + h) * D + d], want, 1e-6 * (double)most);
                }
            }
        free(out);
        lk_backend_close(be);
    }
    paged_inputs_free(&in);
}

static void test_page_bytes(void **state)
{
    (void)state;
    lk_backend *be = open_tier("portable", 1, LK_F32);
    lk_kv_shape shape = {3, 2, 40, 32, 5, LK_BF16};
    lk_kv *kv;
    size_t before = lk_allocated(be);
    assert_int_equal(lk_kv_page_bytes(be, &shape), 2 * 3 * 2 * 40 * 32 * 2);
    lk_kv_shape small = shape;
    small.type = LK_I8; /* a float for each key and each value on top */
    assert_int_equal(lk_kv_page_bytes(be, &small), 3 * 2 * (2 * 40 * 32 + 2 * 32 * 4));
    OP(be, lk_kv_create(be, &kv, &shape));
    assert_int_equal(lk_allocated(be) - before, 5 * lk_kv_page_bytes(be, &shape));
    lk_kv_destroy(be, kv);
    assert_int_equal(lk_allocated(be), before);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiers), cmocka_unit_test(test_against_training), cmocka_unit_test(test_8_bits),
                                       cmocka_unit_test(test_page_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
