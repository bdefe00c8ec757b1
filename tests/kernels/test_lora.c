/* LoRA over segments: mixed ranks, segments without adapter, an adapter that skips the site, one segment split in two, frozen ones;
 * dropout; BF16 factors. */
#include "tests/kernels/lora_cases.h"
#include "tests/kernels/ops_check.h"

typedef struct fixture {
    lk_batch batch;
    lk_segment segments[16];
    lk_lora lora[N_SITES * N_ADAPTERS];
    float *a[N_ADAPTERS], *b[N_ADAPTERS], *da[N_ADAPTERS], *db[N_ADAPTERS]; /* a and b as values, rounded to the case's type */
    void *stored_a[N_ADAPTERS], *stored_b[N_ADAPTERS];
    int32_t max_rank;
    lk_dropout dropout;
} fixture;

static void *stored(lk_dtype type, float *values, int64_t n)
{
    void *out = malloc((size_t)n * 4 + 4);
    lk_from_f32(out, type, values, n);
    lk_to_f32(values, out, type, n);
    return out;
}

static void fixture_make(fixture *f, const lora_case *c)
{
    *f = (fixture){0};
    lora_segments(f->segments, c->rows);
    for (int i = 0; i < N_ADAPTERS; i++) {
        int32_t r = c->ranks[i];
        if (r > f->max_rank) f->max_rank = r;
        f->a[i] = random_floats((uint64_t)(40 + i), r * c->k, 0.3f);
        f->b[i] = random_floats((uint64_t)(50 + i), r * c->n, 0.3f);
        f->da[i] = random_floats((uint64_t)(60 + i), r * c->k, 1.0f);
        f->db[i] = random_floats((uint64_t)(70 + i), r * c->n, 1.0f);
        f->stored_a[i] = stored(c->type, f->a[i], r * c->k);
        f->stored_b[i] = stored(c->type, f->b[i], r * c->n);
        bool frozen = i == 3 || c->type == LK_BF16;
        f->lora[SITE * N_ADAPTERS + i] = (lk_lora){
            f->stored_a[i], f->stored_b[i], frozen ? NULL : f->da[i], frozen ? NULL : f->db[i], c->type, r, 0.5f + 0.25f * (float)i};
    }
    f->batch = (lk_batch){.n_tokens = c->rows,
                          .n_segments = N_SEGMENTS,
                          .segments = f->segments,
                          .n_sites = N_SITES,
                          .n_adapters = N_ADAPTERS,
                          .lora = f->lora};
    f->dropout = (lk_dropout){c->dropout, lk_philox_key_make(7, LK_STREAM_DROPOUT), 1234567};
}

static void fixture_free(fixture *f)
{
    for (int i = 0; i < N_ADAPTERS; i++) {
        void *all[] = {f->a[i], f->b[i], f->da[i], f->db[i], f->stored_a[i], f->stored_b[i]};
        for (int j = 0; j < 6; j++) free(all[j]);
    }
}

/* y, h, dx of one forward and backward; da and db stay in the fixture. */
typedef struct outcome {
    float *y, *h, *dx;
} outcome;

static void outcome_free(outcome *o)
{
    free(o->y);
    free(o->h);
    free(o->dx);
}

static outcome run(lk_backend *be, const lora_case *c, fixture *f)
{
    float *x = random_floats(81, c->rows * c->k, 1.0f), *y0 = random_floats(82, c->rows * c->n, 1.0f),
          *dy = random_floats(83, c->rows * c->n, 1.0f);
    float *dx0 = random_floats(84, c->rows * c->k, 1.0f);
    guarded gx = guarded_from(c->rows, c->k, c->gap, x), y = guarded_from(c->rows, c->n, c->gap, y0),
            h = guarded_make(c->rows, f->max_rank, 0);
    guarded gdy = guarded_from(c->rows, c->n, c->gap, dy), dx = guarded_from(c->rows, c->k, c->gap, dx0);
    OP(be, lk_batch_begin(be, &f->batch));
    OP(be, lk_lora_forward(be, &f->batch, SITE, &y.t, &gx.t, &h.t, &f->dropout));
    OP(be, lk_lora_backward(be, &f->batch, SITE, &dx.t, &gdy.t, &gx.t, &h.t, &f->dropout));
    outcome o = {guarded_values("y", &y), guarded_values("h", &h), guarded_values("dx", &dx)};
    guarded *all[] = {&gx, &y, &h, &gdy, &dx};
    for (int i = 0; i < 5; i++) guarded_free(all[i]);
    free(x);
    free(y0);
    free(dy);
    free(dx0);
    return o;
}

static const lk_segment *segment_of(const fixture *f, int64_t row)
{
    for (int s = 0; s < N_SEGMENTS; s++)
        if (row >= f->segments[s].begin && row < f->segments[s].end) return &f->segments[s];
    return NULL;
}

/* The mask by the words of the contract. */
static double kept(const fixture *f, int64_t t, int64_t k, int64_t width)
{
    if (f->dropout.p == 0.0f) return 1.0;
    uint32_t words[4];
    lk_philox(f->dropout.key, f->dropout.counter, ((uint64_t)SITE << 44) | (uint64_t)(t * ((width + 3) / 4) + k / 4), words);
    return lk_philox_uniform(words[k % 4]) >= f->dropout.p ? 1.0 / (1.0 - (double)f->dropout.p) : 0.0;
}

/* ---- every tier against the reference */

static void compare(const lora_case *c, const fixture *got_f, const outcome *got, const fixture *want_f, const outcome *want,
                    double tolerance)
{
    check_close("lora y", got->y, want->y, c->rows * c->n, tolerance, tolerance);
    check_close("lora dx", got->dx, want->dx, c->rows * c->k, tolerance, tolerance);
    for (int64_t t = 0; t < c->rows; t++) {
        int32_t adapter = segment_of(want_f, t)->adapter, rank = adapter < 0 ? 0 : c->ranks[adapter];
        const float *a = got->h + t * want_f->max_rank, *b = want->h + t * want_f->max_rank;
        check_close("lora h", a, b, rank, tolerance, tolerance);
        check_same_bits("lora h beyond the rank", a + rank, b + rank, (size_t)(want_f->max_rank - rank) * 4);
    }
    for (int i = 0; i < N_ADAPTERS; i++) {
        check_close("lora da", got_f->da[i], want_f->da[i], c->ranks[i] * c->k, 4 * tolerance, tolerance);
        check_close("lora db", got_f->db[i], want_f->db[i], c->ranks[i] * c->n, 4 * tolerance, tolerance);
    }
}

static void run_tiers(lk_dtype compute, double tolerance)
{
    lk_backend *reference = open_tier("reference", 1, compute);
    for (int i = 0; i < N_LORA_CASES; i++) {
        const lora_case *c = &lora_cases[i];
        fixture wf;
        fixture_make(&wf, c);
        outcome want = run(reference, c, &wf);
        for (int tier = 1; tier < N_TIERS; tier++) {
            fixture first;
            outcome one = {0};
            for (int threads = 1; threads <= 3; threads++) {
                lk_backend *be = open_tier(all_tiers[tier], threads, compute);
                if (!be) continue;
                fixture f;
                fixture_make(&f, c);
                outcome got = run(be, c, &f);
                compare(c, &f, &got, &wf, &want, tolerance);
                if (threads == 1) {
                    first = f;
                    one = got;
                } else {
                    check_same_bits("lora threads: y", got.y, one.y, (size_t)(c->rows * c->n) * 4);
                    check_same_bits("lora threads: dx", got.dx, one.dx, (size_t)(c->rows * c->k) * 4);
                    for (int a = 0; a < N_ADAPTERS; a++) {
                        check_same_bits("lora threads: da", f.da[a], first.da[a], (size_t)(c->ranks[a] * c->k) * 4);
                        check_same_bits("lora threads: db", f.db[a], first.db[a], (size_t)(c->ranks[a] * c->n) * 4);
                    }
                    outcome_free(&got);
                    fixture_free(&f);
                }
                lk_backend_close(be);
            }
            if (one.y) {
                outcome_free(&one);
                fixture_free(&first);
            }
        }
        outcome_free(&want);
        fixture_free(&wf);
    }
    lk_backend_close(reference);
}

static void test_f32(void **state)
{
    (void)state;
    run_tiers(LK_F32, 2e-5); /* fp32 sums of up to 256 products, chained twice */
}

static void test_bf16(void **state)
{
    (void)state;
    run_tiers(LK_BF16, 3e-2); /* h and dh round to bf16: where one tier's sum differs in the last bit the rounding may differ */
}

/* ---- the row of one token in a batch of its own */

static const lora_case company[] = {
    {23, 64, 48, 0, {16, 8, 0, 4, 1}, 0.0f, LK_F32}, /* short segments */
    {70, 96, 64, 0, {33, 17, 0, 256, 8}, 0.0f, LK_F32},
    {20, 70, 2500, 0, {5, 3, 0, 70, 2}, 0.0f, LK_F32}, /* K in two passes, ranks in two blocks */
    {20, 600, 130, 0, {5, 3, 0, 70, 2}, 0.0f, LK_BF16},
};

/* Every row of the fixture's batch against a batch of that row alone. */
static void check_alone(lk_backend *be, const lora_case *c, const fixture *f)
{
    float *x = random_floats(81, c->rows * c->k, 1.0f), *y0 = random_floats(82, c->rows * c->n, 1.0f);
    guarded gx = guarded_from(c->rows, c->k, 0, x), y = guarded_from(c->rows, c->n, 0, y0), h = guarded_make(c->rows, f->max_rank, 0);
    OP(be, lk_lora_forward(be, &f->batch, SITE, &y.t, &gx.t, &h.t, NULL));
    float *all = guarded_values("y", &y);
    for (int64_t t = 0; t < c->rows; t++) {
        int32_t adapter = f->batch.n_segments == 1 ? f->batch.segments[0].adapter : segment_of(f, t)->adapter;
        lk_segment own = {0, 1, adapter};
        lk_batch single = f->batch;
        single.n_tokens = single.n_segments = 1;
        single.segments = &own;
        guarded one = guarded_from(1, c->n, 0, y0 + t * c->n);
        lk_tensor tx = lk_tensor_rows(&gx.t, t, 1), th = lk_tensor_rows(&h.t, t, 1);
        OP(be, lk_lora_forward(be, &single, SITE, &one.t, &tx, &th, NULL));
        float *alone = guarded_values("y", &one);
        check_same_bits("lora: a row alone", alone, all + t * c->n, (size_t)c->n * 4);
        free(alone);
        guarded_free(&one);
    }
    free(all);
    free(x);
    free(y0);
    guarded_free(&gx);
    guarded_free(&y);
    guarded_free(&h);
}

static void test_alone(void **state)
{
    (void)state;
    for (int i = 0; i < (int)(sizeof company / sizeof *company); i++)
        for (int tier = 0; tier < N_TIERS; tier++)
            for (int compute = 0; compute < 2; compute++) {
                lk_backend *be = open_tier(all_tiers[tier], 2, compute ? LK_BF16 : LK_F32);
                if (!be) continue;
                const lora_case *c = &company[i];
                fixture f;
                fixture_make(&f, c);
                check_alone(be, c, &f);
                for (int32_t adapter = 1; adapter <= 3; adapter += 2) { /* all rows in one segment: many rows take another way */
                    lk_segment whole = {0, c->rows, adapter};
                    f.batch.n_segments = 1;
                    f.batch.segments = &whole;
                    check_alone(be, c, &f);
                }
                fixture_free(&f);
                lk_backend_close(be);
            }
}

/* ---- differences: the scalar sum(y * dy) as a function of x, A and B of adapter 1 */

typedef struct difference {
    const lora_case *c;
    const fixture *f;
    const float *dy;
} difference;

/* v = x[T,K], then a[R,K], b[N,R] of adapter 1 */
static double lora_double(const double *v, void *context)
{
    const difference *d = context;
    const lora_case *c = d->c;
    double total = 0.0, hidden[256];
    for (int64_t t = 0; t < c->rows; t++) {
        int32_t adapter = segment_of(d->f, t)->adapter;
        if (adapter < 0 || c->ranks[adapter] == 0) continue;
        const double *own_a = v + c->rows * c->k, *own_b = own_a + c->ranks[1] * c->k;
        int32_t rank = c->ranks[adapter];
        for (int32_t r = 0; r < rank; r++) {
            hidden[r] = 0.0;
            for (int64_t k = 0; k < c->k; k++)
                hidden[r] += v[t * c->k + k] * kept(d->f, t, k, c->k) *
                             (adapter == 1 ? own_a[r * c->k + k] : (double)d->f->a[adapter][r * c->k + k]);
        }
        for (int64_t n = 0; n < c->n; n++)
            for (int32_t r = 0; r < rank; r++)
                total += (double)d->f->lora[SITE * N_ADAPTERS + adapter].scale * hidden[r] * (double)d->dy[t * c->n + n] *
                         (adapter == 1 ? own_b[n * rank + r] : (double)d->f->b[adapter][n * rank + r]);
    }
    return total;
}

static void test_differences(void **state)
{
    (void)state;
    static const lora_case small = {15, 9, 11, 1, {2, 3, 0, 1, 2}, 0.3f, LK_F32};
    const lora_case *c = &small;
    lk_backend *be = open_tier("reference", 1, LK_F32);
    fixture f;
    fixture_make(&f, c);
    float *dx0 = random_floats(84, c->rows * c->k, 1.0f), *da0 = random_floats(61, c->ranks[1] * c->k, 1.0f),
          *db0 = random_floats(71, c->ranks[1] * c->n, 1.0f);
    float *dy = random_floats(83, c->rows * c->n, 1.0f), *x = random_floats(81, c->rows * c->k, 1.0f);
    outcome o = run(be, c, &f);
    int64_t nx = c->rows * c->k, na = c->ranks[1] * c->k, nb = c->ranks[1] * c->n;
    double *v = malloc((size_t)(nx + na + nb) * sizeof(double));
    float *g = malloc((size_t)(nx + na + nb) * sizeof(float));
    for (int64_t i = 0; i < nx + na + nb; i++) {
        int64_t at = i < nx ? i : i < nx + na ? i - nx : i - nx - na;
        v[i] = (double)(i < nx ? x[at] : i < nx + na ? f.a[1][at] : f.b[1][at]);
        g[i] = i < nx ? o.dx[at] - dx0[at] : i < nx + na ? f.da[1][at] - da0[at] : f.db[1][at] - db0[at];
    }
    check_gradient("lora_backward", g, v, nx + na + nb, lora_double, &(difference){c, &f, dy}, 1e-4);
    void *all[] = {dx0, da0, db0, dy, x, v, g};
    for (int i = 0; i < 7; i++) free(all[i]);
    outcome_free(&o);
    fixture_free(&f);
    lk_backend_close(be);
}

/* ---- dropout keeps 1-p of the elements, each scaled so that the mean stays */

static void test_dropout_rate(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++) {
        lk_backend *be = open_tier(all_tiers[tier], 2, LK_F32);
        if (!be) continue;
        enum { K = 257, T = 300 };
        float *ones = malloc(T * K * sizeof(float)), *h = malloc(T * sizeof(float)), *y = calloc(T, sizeof(float)), a[K], b[1] = {1.0f};
        for (int64_t i = 0; i < T * K; i++) ones[i] = 1.0f;
        for (int k = 0; k < K; k++) a[k] = 1.0f;
        lk_lora lora = {a, b, NULL, NULL, LK_F32, 1, 1.0f};
        lk_segment segment = {0, T, 0};
        lk_batch batch = {.n_tokens = T, .n_segments = 1, .segments = &segment, .n_sites = 1, .n_adapters = 1, .lora = &lora};
        lk_tensor tx = lk_tensor_make(ones, LK_F32, T, K), th = lk_tensor_make(h, LK_F32, T, 1), ty = lk_tensor_make(y, LK_F32, T, 1);
        lk_dropout dropout = {0.3f, lk_philox_key_make(3, LK_STREAM_DROPOUT), 9};
        OP(be, lk_lora_forward(be, &batch, 0, &ty, &tx, &th, &dropout));
        double mean = 0.0;
        for (int t = 0; t < T; t++) mean += (double)h[t] / (T * K);
        assert_true(fabs(mean - 1.0) < 0.012); /* 5 standard errors of 77100 draws */
        float before = h[5];
        dropout.counter++;
        OP(be, lk_lora_forward(be, &batch, 0, &ty, &tx, &th, &dropout));
        assert_true(h[5] != before); /* another micro-batch, another mask */
        free(ones);
        free(h);
        free(y);
        lk_backend_close(be);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16), cmocka_unit_test(test_alone),
                                       cmocka_unit_test(test_differences), cmocka_unit_test(test_dropout_rate)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
