/* Routing among experts and joining what they give, on the CUDA backend; and the same without the host: slots as the host would give them,
 * every expert's product, a token's bits whoever else is there. */
#include "kernels/nf4.h"
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/moe_cases.h"

/* One rounding to bf16, 2^-8; a sum of up to eight products before it. */
static const double tolerance = 5e-3;

static float *ids_values(lk_backend *be, const void *ids, int64_t n)
{
    int32_t *host = malloc((size_t)n * 4);
    float *out = malloc((size_t)n * 4);
    OP(be, lk_download(be, host, ids, (size_t)n * 4));
    for (int64_t i = 0; i < n; i++) out[i] = (float)host[i];
    free(host);
    return out;
}

static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const moe_case *c = the_case;
    lk_dtype act = lk_backend_act(be);
    int64_t n = c->rows * c->k;
    int32_t *slots = moe_slots(c);
    void *ids;
    OP(be, lk_alloc(be, (size_t)n * 4, &ids));
    device_tensor logits = device_random(be, LK_F32, c->rows, c->experts, c->gap, 1, 2.0f);
    device_tensor weights = device_make(be, LK_F32, c->rows, c->k, c->gap), dlogits = device_make(be, act, c->rows, c->experts, c->gap);
    device_tensor dw = device_random(be, LK_F32, c->rows, c->k, c->gap, 2, 1.0f), x = device_random(be, act, n, c->cols, c->gap, 3, 1.0f);
    device_tensor residual = device_random(be, act, c->rows, c->cols, 0, 4, 1.0f),
                  dy = device_random(be, act, c->rows, c->cols, c->gap, 6, 1.0f);
    device_tensor y = device_make(be, act, c->rows, c->cols, c->gap), plain = device_make(be, act, c->rows, c->cols, c->gap);
    device_tensor dweights = device_make(be, LK_F32, c->rows, c->k, 0);
    OP(be, lk_moe_route(be, ids, &weights.t, &logits.t, c->normalise));
    OP(be, lk_moe_route_backward(be, &dlogits.t, &dw.t, ids, &logits.t, c->normalise));
    OP(be, lk_moe_combine(be, &y.t, &x.t, slots, &weights.t, &residual.t));
    OP(be, lk_moe_combine(be, &plain.t, &x.t, slots, NULL, NULL));
    OP(be, lk_moe_combine_backward(be, &x.t, &dweights.t, &dy.t, &x.t, slots, &weights.t)); /* in place, as the contract allows */
    outcome_take(o, "ids", ids_values(be, ids, n), n, 0.0);
    outcome_add(o, "weights", &weights, 1e-5);
    outcome_add(o, "dlogits", &dlogits, tolerance);
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "without weights", &plain, tolerance);
    outcome_add(o, "dx", &x, tolerance);
    outcome_add(o, "dweights", &dweights, 1e-4);
    device_tensor *all[] = {&logits, &dw, &residual, &dy};
    for (int i = 0; i < 4; i++) device_free(all[i]);
    lk_free(be, ids);
    free(slots);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_MOE_CASES; i++) check_on_cuda("moe", run, &moe_cases[i]);
    check_on_cuda("moe", run, &(moe_case){9, 2056, 16, 2, 8, true});
}

/* Equal logits: the lower id first. Not a number: each choice is still another expert. */
static void test_ties(void **state)
{
    (void)state;
    lk_backend *be = open_cuda(&test_limits);
    const float l[10] = {1, 3, 3, 0, 3, NAN, NAN, NAN, NAN, NAN};
    float w[6];
    int32_t ids[6];
    void *device_ids;
    OP(be, lk_alloc(be, sizeof ids, &device_ids));
    device_tensor logits = device_exact(be, 2, 5, l), weights = device_make(be, LK_F32, 2, 3, 0);
    OP(be, lk_moe_route(be, device_ids, &weights.t, &logits.t, true));
    OP(be, lk_download(be, ids, device_ids, sizeof ids));
    OP(be, lk_download(be, w, weights.t.data, sizeof w));
    assert_true(ids[0] == 1 && ids[1] == 2 && ids[2] == 4);
    for (int j = 0; j < 3; j++) assert_true(fabsf(w[j] - 1.0f / 3.0f) < 1e-6f);
    assert_true(ids[3] != ids[4] && ids[4] != ids[5] && ids[3] != ids[5]);
    for (int j = 3; j < 6; j++) assert_true(ids[j] >= 0 && ids[j] < 5);
    lk_tensor many = lk_tensor_make(logits.t.data, LK_F32, 1, 2000), one = lk_tensor_make(weights.t.data, LK_F32, 1, 2);
    assert_int_equal(lk_moe_route(be, device_ids, &one, &many, true), LK_ERR_UNSUPPORTED);
    assert_non_null(strstr(lk_backend_error(be)->message, "2 of 2000 experts a token; the CUDA backend takes up to 32 of 1024"));
    lk_free(be, device_ids);
    device_free(&logits);
    lk_free(be, weights.memory);
    lk_backend_close(be);
}

/* ---- without the host ---- */

typedef struct group_case {
    int64_t tokens, experts, k, n, width;
    bool nf4;
} group_case;

static const group_case groups[] = {{1, 1, 1, 1, 8, false},    {5, 4, 2, 33, 24, false},  {70, 6, 3, 150, 200, false},
                                    {40, 3, 1, 16, 64, true},  {1, 8, 2, 140, 128, true}, {130, 4, 2, 129, 320, true},
                                    {40, 70, 8, 24, 64, true}, {33, 2, 2, 48, 1088, true}};
enum { N_GROUPS = sizeof groups / sizeof *groups };

static lk_matrix *expert_of(lk_backend *be, const group_case *c, uint64_t seed)
{
    int64_t size = c->n * c->width;
    float *w = random_floats(seed, size, 1.0f), *absmax = malloc((size_t)(lk_nf4_blocks(size) + 1) * 4);
    uint8_t *codes = malloc((size_t)size / 2 + 1);
    for (int64_t i = 0; i < size; i++) w[i] = round_bf16(w[i]);
    lk_nf4_quantize(codes, absmax, w, size);
    lk_matrix_source source = {.type = LK_F32, .n = c->n, .k = c->width, .data = w};
    if (c->nf4) source = (lk_matrix_source){.type = LK_NF4, .n = c->n, .k = c->width, .data = codes, .absmax = absmax};
    lk_matrix *m;
    OP(be, lk_matrix_create(be, &m, &source));
    free(w);
    free(absmax);
    free(codes);
    return m;
}

/* Choices of every token, different ones; some experts get nothing. */
static int32_t *choices(const group_case *c)
{
    int32_t *ids = malloc((size_t)(c->tokens * c->k) * 4);
    check_random r = {77};
    for (int64_t i = 0; i < c->tokens * c->k; i++) {
        int64_t first = i / c->k * c->k, at;
        bool again = true;
        while (again) {
            at = (int64_t)(check_random_u64(&r) % (uint64_t)c->experts);
            again = false;
            for (int64_t j = first; j < i; j++) again = again || ids[j] == at;
        }
        ids[i] = (int32_t)at;
    }
    return ids;
}

static void host_slots(const group_case *c, const int32_t *ids, int32_t *slots, int32_t *rows)
{
    int32_t slot = 0;
    for (int64_t e = 0; e < c->experts; e++)
        for (int64_t i = 0; i < c->tokens * c->k; i++)
            if (ids[i] == e) {
                slots[i] = slot;
                rows[slot++] = (int32_t)(i / c->k);
            }
}

/* What is joined of gate-like products by token and of down-like ones by slot. */
static void by_turns(lk_backend *be, const group_case *c, lk_matrix *const *w, const int32_t *ids, const device_tensor *x, outcome *o)
{
    int64_t n = c->tokens * c->k;
    int32_t *slots = malloc((size_t)n * 4), *rows = malloc((size_t)n * 4);
    host_slots(c, ids, slots, rows);
    device_tensor gathered = device_make(be, lk_backend_act(be), n, c->width, 0), y = device_make(be, lk_backend_act(be), n, c->n, 0);
    OP(be, lk_gather_rows(be, &gathered.t, &x->t, rows));
    int64_t first = 0;
    for (int64_t e = 0; e < c->experts; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; i++) count += ids[i] == e;
        lk_tensor ye = lk_tensor_rows(&y.t, first, count), xe = lk_tensor_rows(&gathered.t, first, count);
        OP(be, lk_linear(be, &ye, &xe, w[e], NULL, NULL));
        first += count;
    }
    outcome_add(o, "y", &y, 8e-3);
    device_free(&gathered);
    free(slots);
    free(rows);
}

static void placed(lk_backend *be, const group_case *c, lk_matrix *const *w, const int32_t *ids, const device_tensor *x, outcome *o)
{
    int64_t n = c->tokens * c->k;
    void *device_ids, *places, *table;
    OP(be, lk_alloc(be, (size_t)n * 4, &device_ids));
    OP(be, lk_upload(be, device_ids, ids, (size_t)n * 4));
    OP(be, lk_alloc(be, lk_moe_placing_bytes(be, n, c->experts), &places));
    OP(be, lk_alloc(be, lk_experts_bytes(be, c->experts), &table));
    const lk_matrix **all = malloc((size_t)c->experts * sizeof *all);
    for (int64_t e = 0; e < c->experts; e++) all[e] = w[e];
    lk_experts experts = {.w = all, .count = c->experts, .table = table};
    OP(be, lk_experts_fill(be, &experts));
    OP(be, lk_moe_place(be, places, device_ids, c->tokens, c->k, c->experts));
    int32_t *want = malloc((size_t)n * 4), *rows = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
    host_slots(c, ids, want, rows);
    OP(be, lk_download(be, got, places, (size_t)n * 4));
    check_same_bits("slots", got, want, (size_t)n * 4);
    device_tensor gathered = device_make(be, lk_backend_act(be), n, c->width, 0), y = device_make(be, lk_backend_act(be), n, c->n, 0);
    device_tensor again = device_make(be, lk_backend_act(be), n, c->n, 3);
    OP(be, lk_experts_linear(be, &y.t, &x->t, &experts, places, true));
    OP(be, lk_gather_rows(be, &gathered.t, &x->t, rows));
    OP(be, lk_experts_linear(be, &again.t, &gathered.t, &experts, places, false));
    outcome_add(o, "y", &y, 8e-3);
    float *by_slot = device_values("by slot", &again);
    check_same_bits("by token and by slot", by_slot, o->parts[0].values, (size_t)(n * c->n) * 4);
    free(by_slot);
    lk_free(be, again.memory);
    device_free(&gathered);
    lk_free(be, device_ids);
    lk_free(be, places);
    lk_free(be, table);
    free(all);
    free(want);
    free(rows);
    free(got);
}

static void run_groups(lk_backend *be, const void *the_case, outcome *o)
{
    const group_case *c = the_case;
    lk_matrix **w = malloc((size_t)c->experts * sizeof *w);
    for (int64_t e = 0; e < c->experts; e++) w[e] = expert_of(be, c, 100 + (uint64_t)e);
    int32_t *ids = choices(c);
    device_tensor x = device_random(be, lk_backend_act(be), c->tokens, c->width, 8, 9, 1.0f);
    if (lk_backend_groups(be))
        placed(be, c, w, ids, &x, o);
    else
        by_turns(be, c, w, ids, &x, o);
    device_free(&x);
    for (int64_t e = 0; e < c->experts; e++) lk_matrix_destroy(be, w[e]);
    free(w);
    free(ids);
}

static void test_groups(void **state)
{
    (void)state;
    for (int i = 0; i < N_GROUPS; i++) check_on_cuda("experts", run_groups, &groups[i]);
}

/* A token alone, and among others: the same bits of its slots. */
static void test_company(void **state)
{
    (void)state;
    set_schedule(0);
    lk_backend *be = open_cuda(&test_limits);
    const group_case *c = &groups[5];
    lk_matrix **w = malloc((size_t)c->experts * sizeof *w);
    for (int64_t e = 0; e < c->experts; e++) w[e] = expert_of(be, c, 100 + (uint64_t)e);
    int32_t *ids = choices(c);
    device_tensor x = device_random(be, LK_BF16, c->tokens, c->width, 0, 9, 1.0f);
    outcome all = {0};
    placed(be, c, w, ids, &x, &all);
    int32_t *slots = malloc((size_t)(c->tokens * c->k) * 4), *rows = malloc((size_t)(c->tokens * c->k) * 4);
    host_slots(c, ids, slots, rows);
    for (int64_t t = 0; t < c->tokens; t += 43) {
        group_case one = *c;
        one.tokens = 1;
        outcome alone = {0};
        device_tensor row = x;
        row.t = lk_tensor_rows(&x.t, t, 1);
        placed(be, &one, w, ids + t * c->k, &row, &alone);
        int32_t own[8], none[8];
        host_slots(&one, ids + t * c->k, own, none);
        for (int64_t j = 0; j < c->k; j++)
            check_same_bits("alone", alone.parts[0].values + own[j] * c->n, all.parts[0].values + slots[t * c->k + j] * c->n,
                            (size_t)c->n * 4);
        outcome_clear(&alone);
    }
    outcome_clear(&all);
    device_free(&x);
    for (int64_t e = 0; e < c->experts; e++) lk_matrix_destroy(be, w[e]);
    free(w);
    free(ids);
    free(slots);
    free(rows);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_ties), cmocka_unit_test(test_groups),
                                       cmocka_unit_test(test_company)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
