/* label: slow */
/* Attention over the paged cache on the CUDA backend: the cases of the CPU paths against the fp32 reference; and the bits of a row, which
 * must not depend on how its prompt was cut (decoding and prefill are different kernels), on company, on which pages it got, on the order
 * of threads, or on what lies in the unused part of a page. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/paged_cases.h"

/* How a run is cut and placed. */
typedef struct cut {
    const paged_case *c;
    int64_t chunks[4]; /* tokens of each sequence at a time, in turn; 0: all that are left */
    int32_t first_page;
    int64_t only; /* this sequence alone, or -1 */
} cut;

/* Pages dealt with a stride, so that they are out of order. */
static int32_t nth_page(const cut *t, int32_t n) { return (t->first_page + 7 * n) % N_PAGES; }

/* A cache full of NaN, so that a slot that was never written shows. */
static lk_kv *poisoned_cache(lk_backend *be, const paged_case *c)
{
    lk_kv *kv;
    lk_kv_shape shape = {LAYERS, (int32_t)c->kv_heads, (int32_t)c->head_dim, c->page_tokens, N_PAGES, c->type};
    int32_t pages[N_PAGES];
    OP(be, lk_kv_create(be, &kv, &shape));
    for (int32_t p = 0; p < N_PAGES; p++) pages[p] = p;
    int64_t rows = (int64_t)N_PAGES * c->page_tokens, width = c->kv_heads * c->head_dim;
    if (lk_backend_act(be) == LK_BF16 && c->head_dim % 8 == 0) { /* nothing lies between the values: at once */
        size_t bytes = N_PAGES * lk_kv_page_bytes(be, &shape);
        void *nan = malloc(bytes);
        assert_non_null(nan);
        memset(nan, 0xff, bytes);
        OP(be, lk_upload(be, lk_kv_page(kv, 0), nan, bytes));
        free(nan);
        return kv;
    }
    lk_sequence all = {0, rows, rows, pages};
    lk_batch batch = {.n_tokens = rows, .n_sequences = 1, .sequences = &all};
    device_tensor nan = device_make(be, lk_backend_act(be), rows, width, 0); /* the pattern is a NaN */
    OP(be, lk_batch_begin(be, &batch));
    for (int32_t layer = 0; layer < LAYERS; layer++) OP(be, lk_kv_write(be, &batch, kv, layer, &nan.t, &nan.t));
    lk_free(be, nan.memory);
    return kv;
}

/* Rows `from` of in, for each of the batch's sequences, as one tensor. */
static device_tensor gather(lk_backend *be, const float *in, const lk_sequence *sequences, const int64_t *from, int64_t n, int64_t rows,
                            int64_t width, int64_t gap)
{
    float *values = malloc((size_t)(rows * width) * sizeof(float));
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++)
        memcpy(values + sequences[i].begin * width, in + from[i] * width, (size_t)(sequences[i].count * width) * sizeof(float));
    device_tensor t = device_from(be, lk_backend_act(be), rows, width, gap, values);
    free(values);
    return t;
}

/* One step of the engine: writes two layers, of which the first is there to be told apart, and attends in the second. */
static void step(lk_backend *be, const cut *t, const paged_inputs *in, lk_kv *kv, const lk_sequence *sequences, const int64_t *from,
                 int64_t n, int64_t rows, float *out)
{
    const paged_case *c = t->c;
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim, gap = c->head_dim % 16 ? 3 : 8;
    lk_attention_shape shape = {c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), c->window, c->cap};
    device_tensor q = gather(be, in->q, sequences, from, n, rows, wide, gap), k = gather(be, in->k, sequences, from, n, rows, narrow, 0);
    device_tensor v = gather(be, in->v, sequences, from, n, rows, narrow, gap), o = device_make(be, lk_backend_act(be), rows, wide, gap);
    lk_batch batch = {.n_tokens = rows, .n_sequences = n, .sequences = sequences};
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_kv_write(be, &batch, kv, 0, &v.t, &k.t));
    OP(be, lk_kv_write(be, &batch, kv, LAYER, &k.t, &v.t));
    OP(be, lk_paged_attention(be, &batch, &shape, &o.t, &q.t, kv, LAYER));
    float *values = device_values("o", &o);
    for (int64_t i = 0; i < n; i++)
        memcpy(out + from[i] * wide, values + sequences[i].begin * wide, (size_t)(sequences[i].count * wide) * sizeof(float));
    free(values);
    device_tensor *all[] = {&q, &k, &v, &o};
    for (int i = 0; i < 4; i++) device_free(all[i]);
}

static void run(lk_backend *be, const void *the_cut, outcome *result)
{
    const cut *t = the_cut;
    const paged_case *c = t->c;
    paged_inputs in = paged_inputs_make(c);
    float *out = calloc((size_t)(in.rows * c->heads * c->head_dim), sizeof(float));
    lk_kv *kv = poisoned_cache(be, c);
    int32_t pages[4][32], next = 0;
    int64_t done[4] = {0}, offset[4] = {0};
    for (int64_t s = 0; s < c->sequences; s++) {
        for (int64_t p = 0; p * c->page_tokens < c->lengths[s]; p++) pages[s][p] = nth_page(t, next++);
        if (s) offset[s] = offset[s - 1] + c->lengths[s - 1];
    }
    for (int turn = 0;; turn++) {
        lk_sequence sequences[4];
        int64_t from[4], rows = 0, n = 0;
        for (int64_t s = 0; s < c->sequences; s++) {
            int64_t chunk = t->chunks[(turn + s) % 4], left = c->lengths[s] - done[s], count = chunk && chunk < left ? chunk : left;
            if (count == 0 || (t->only >= 0 && s != t->only)) continue;
            from[n] = offset[s] + done[s];
            done[s] += count;
            sequences[n++] = (lk_sequence){rows, count, done[s], pages[s]};
            rows += count;
        }
        if (n == 0) break;
        step(be, t, &in, kv, sequences, from, n, rows, out);
    }
    lk_kv_destroy(be, kv);
    outcome_take(result, "o", out, in.rows * c->heads * c->head_dim, 1e-2); /* probabilities and o rounded to 8 bits */
    paged_inputs_free(&in);
}

static lk_limits limits_of_cases(void)
{
    lk_limits limits = test_limits;
    limits.tokens = 1024;
    limits.training = false;
    return limits;
}

static void test_reference(void **state)
{
    (void)state;
    lk_limits limits = limits_of_cases();
    for (int i = 0; i < N_PAGED_CASES; i++) /* in chunks of both kinds; test_company has the same bits of a prompt that is whole */
        check_on_cuda_within(&limits, "paged attention", run, &(cut){&paged_cases[i], {60, 2, 130, 1}, 3, -1});
}

static void test_company(void **state)
{
    (void)state;
    lk_limits limits = limits_of_cases();
    lk_backend *be = open_cuda(&limits);
    for (int i = 0; i < N_PAGED_CASES; i++) {
        const paged_case *c = &paged_cases[i];
        const cut cuts[] = {{c, {60, 2, 130, 1}, 3, -1}, {c, {1, 16, 100, 33}, 13, -1}};
        outcome whole = {0};
        run(be, &(cut){.c = c, .only = -1}, &whole);
        for (int j = 0; j < 2; j++) {
            outcome other = {0};
            run(be, &cuts[j], &other);
            check_same_bits("paged attention in chunks, on other pages", other.parts[0].values, whole.parts[0].values,
                            (size_t)whole.parts[0].n * sizeof(float));
            outcome_clear(&other);
        }
        int64_t row = 0, width = c->heads * c->head_dim;
        for (int64_t s = 0; s < c->sequences; s++) {
            outcome alone = {0};
            run(be, &(cut){c, {70, 5, 5, 5}, 3, s}, &alone);
            check_same_bits("a sequence alone", alone.parts[0].values + row * width, whole.parts[0].values + row * width,
                            (size_t)(c->lengths[s] * width) * sizeof(float));
            row += c->lengths[s];
            outcome_clear(&alone);
        }
        outcome_clear(&whole);
    }
    lk_backend_close(be);
}

/* The cache takes what its pages take. */
static void test_bytes(void **state)
{
    (void)state;
    lk_limits limits = limits_of_cases();
    lk_backend *be = open_cuda(&limits);
    lk_kv_shape shape = {3, 2, 40, 32, 5, LK_BF16};
    lk_kv *kv;
    size_t before = lk_allocated(be);
    assert_int_equal(lk_kv_page_bytes(be, &shape), 2 * 3 * 2 * 40 * 32 * 2);
    OP(be, lk_kv_create(be, &kv, &shape));
    assert_int_equal(lk_allocated(be) - before, 5 * lk_kv_page_bytes(be, &shape));
    lk_kv_destroy(be, kv);
    assert_int_equal(lk_allocated(be), before);
    lk_backend_close(be);
}

/* ---------------------------------------------------------------------------------------------- rotation and write in one */

typedef struct rotated {
    int64_t heads, kv_heads, head_dim, turned;
    lk_dtype type;
    bool fused;
} rotated;

/* Queries as they come out, and all pages. */
static void run_rotated(lk_backend *be, const void *the_case, outcome *o)
{
    const rotated *c = the_case;
    enum { ROWS = 5, PAGES = 3 };
    int64_t wide = c->heads * c->head_dim, narrow = c->kv_heads * c->head_dim;
    lk_dtype act = lk_backend_act(be);
    float *q = random_floats(31, ROWS * wide, 1.0f), *k = random_floats(32, ROWS * narrow, 1.0f),
          *v = random_floats(33, ROWS * narrow, 1.0f);
    float inv_freq[128];
    for (int64_t i = 0; i < c->turned / 2; i++) inv_freq[i] = (float)pow(10000.0, -2.0 * (double)i / (double)c->turned);
    int32_t positions[ROWS] = {14, 15, 16, 17, 40}, pages[2][PAGES] = {{2, 0, 1}, {2, 0, 1}};
    lk_sequence sequences[2] = {{0, 4, 18, pages[0]}, {4, 1, 41, pages[1]}};
    lk_batch batch = {.n_tokens = ROWS, .positions = positions, .n_sequences = 2, .sequences = sequences};
    lk_kv_shape shape = {1, (int32_t)c->kv_heads, (int32_t)c->head_dim, 16, PAGES, c->type};
    lk_kv *kv;
    OP(be, lk_kv_create(be, &kv, &shape));
    device_tensor frequencies = device_exact(be, 1, c->turned / 2, inv_freq), table = device_make(be, LK_F32, ROWS, c->turned, 0);
    device_tensor queries = device_from(be, act, ROWS, wide, 8, q), keys = device_from(be, act, ROWS, narrow, 8, k),
                  values = device_from(be, act, ROWS, narrow, 0, v);
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_rope_table(be, &table.t, positions, device_f32(&frequencies), 1.0f));
    if (c->fused) {
        OP(be, lk_rope_kv_write(be, &batch, kv, 0, c->heads, &queries.t, &keys.t, &values.t, &table.t));
    } else {
        OP(be, lk_rope(be, &queries.t, c->heads, &table.t, false));
        OP(be, lk_rope(be, &keys.t, c->kv_heads, &table.t, false));
        OP(be, lk_kv_write(be, &batch, kv, 0, &keys.t, &values.t));
    }
    size_t bytes = PAGES * lk_kv_page_bytes(be, &shape);
    unsigned char *held = malloc(bytes);
    float *shown = malloc(bytes * sizeof *shown);
    OP(be, lk_download(be, held, lk_kv_page(kv, 0), bytes));
    for (size_t i = 0; i < bytes; i++) shown[i] = held[i];
    outcome_add(o, "queries", &queries, 4e-3);
    outcome_take(o, "pages", shown, (int64_t)bytes, 0.0);
    free(held);
    free(q);
    free(k);
    free(v);
    device_tensor *all[] = {&frequencies, &table, &keys, &values};
    for (int i = 0; i < 4; i++) device_free(all[i]);
    lk_kv_destroy(be, kv);
}

static void test_rotated(void **state)
{
    (void)state;
    static const rotated cases[] = {
        {4, 2, 64, 64, LK_BF16, false}, {6, 2, 96, 32, LK_BF16, false}, {4, 1, 128, 128, LK_I8, false},
        {4, 2, 64, 32, LK_I8, false},   {3, 3, 20, 20, LK_I8, false}, /* odd sizes: not in one */
    };
    lk_limits limits = limits_of_cases();
    lk_backend *be = open_cuda(&limits);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome apart = {0}, together = {0};
        rotated c = cases[i];
        run_rotated(be, &c, &apart);
        c.fused = true;
        run_rotated(be, &c, &together);
        assert_int_equal(apart.n, together.n);
        for (int p = 0; p < apart.n; p++)
            check_same_bits(apart.parts[p].name, together.parts[p].values, apart.parts[p].values, (size_t)apart.parts[p].n * sizeof(float));
        outcome_clear(&apart);
        outcome_clear(&together);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_company), cmocka_unit_test(test_rotated),
                                       cmocka_unit_test(test_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
