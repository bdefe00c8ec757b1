/* LoRA on the CUDA backend: the CPU's cases, gradients, chunks of rows, the dropout mask bit for bit. */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/lora_cases.h"

typedef struct cuda_case {
    lora_case shape;
    bool no_dx;  /* the layer below needs no gradient */
    bool wide_y; /* y F32, as logits are */
} cuda_case;

/* Beside the CPU's: rows that cross the chunk of copies (1024) with and without dropout, ranks and widths that fit 16-byte loads and ones
 * that do not, and an output in fp32. */
static const cuda_case more_cases[] = {
    {{1100, 24, 40, 0, {8, 16, 0, 8, 8}, 0.2f, LK_F32}, false, false},
    {{1100, 24, 39, 1, {8, 5, 0, 8, 16}, 0.0f, LK_F32}, false, false},
    {{40, 48, 64, 8, {16, 8, 0, 24, 8}, 0.0f, LK_F32}, false, false},
    {{40, 48, 64, 0, {16, 8, 0, 24, 8}, 0.0f, LK_F32}, true, false},
    {{40, 48, 64, 0, {16, 8, 0, 24, 8}, 0.3f, LK_BF16}, true, true},
    {{15, 1, 1, 0, {1, 1, 0, 1, 1}, 0.5f, LK_F32}, false, false},
    {{30, 1040, 1100, 0, {16, 8, 0, 24, 40}, 0.1f, LK_F32}, false, false},
};

typedef struct adapters {
    device_tensor a[N_ADAPTERS], b[N_ADAPTERS], da[N_ADAPTERS], db[N_ADAPTERS];
    lk_lora lora[N_SITES * N_ADAPTERS];
    int32_t max_rank;
} adapters;

static adapters adapters_make(lk_backend *be, const lora_case *c)
{
    adapters f = {.max_rank = 0};
    for (int i = 0; i < N_ADAPTERS; i++) {
        int32_t r = c->ranks[i], some = r ? r : 1; /* nobody reads the factors of rank 0 */
        if (r > f.max_rank) f.max_rank = r;
        f.a[i] = device_random(be, c->type, some, c->k, 0, (uint64_t)(40 + i), 0.3f);
        f.b[i] = device_random(be, c->type, c->n, some, 0, (uint64_t)(50 + i), 0.3f);
        f.da[i] = device_random(be, LK_F32, some, c->k, 0, (uint64_t)(60 + i), 1.0f);
        f.db[i] = device_random(be, LK_F32, c->n, some, 0, (uint64_t)(70 + i), 1.0f);
        bool frozen = i == 3 || c->type == LK_BF16;
        f.lora[SITE * N_ADAPTERS + i] = (lk_lora){
            f.a[i].t.data,          f.b[i].t.data, frozen ? NULL : device_f32(&f.da[i]), frozen ? NULL : device_f32(&f.db[i]), c->type, r,
            0.5f + 0.25f * (float)i};
    }
    return f;
}

/* bf16 factors and activations on both sides. y rounds scale*h and itself, dx and the factors' gradients dh: each 0.4% of a term. */
static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const cuda_case *cc = the_case;
    const lora_case *c = &cc->shape;
    lk_dtype act = lk_backend_act(be);
    lk_segment segments[N_SEGMENTS];
    lora_segments(segments, c->rows);
    adapters f = adapters_make(be, c);
    lk_batch batch = {
        .n_tokens = c->rows, .n_segments = N_SEGMENTS, .segments = segments, .n_sites = N_SITES, .n_adapters = N_ADAPTERS, .lora = f.lora};
    lk_dropout dropout = {c->dropout, lk_philox_key_make(7, LK_STREAM_DROPOUT), 1234567};
    device_tensor x = device_random(be, act, c->rows, c->k, c->gap, 81, 1.0f), dy = device_random(be, act, c->rows, c->n, c->gap, 83, 1.0f);
    device_tensor y = device_random(be, cc->wide_y ? LK_F32 : act, c->rows, c->n, c->gap, 82, 1.0f),
                  dx = device_random(be, act, c->rows, c->k, c->gap, 84, 1.0f);
    device_tensor h = device_random(be, LK_F32, c->rows, f.max_rank, 0, 85, 1.0f); /* beyond a rank it must stay as it is */
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_lora_forward(be, &batch, SITE, &y.t, &x.t, &h.t, &dropout));
    OP(be, lk_lora_backward(be, &batch, SITE, cc->no_dx ? NULL : &dx.t, &dy.t, &x.t, &h.t, &dropout));
    /* Looser with dropout, where drop(x) rounds before h does; and at high rank, whose rows are several times larger than the mean of all,
     * to which the tolerances are relative; and of many rows, the worst of 26000 errors whose root mean square is 3e-3. */
    double loose = f.max_rank > 64 || c->dropout > 0.0f || c->rows > 1000 ? 2.0 : 1.0;
    outcome_add(o, "y", &y, loose * 1e-2);
    outcome_add(o, "h", &h, c->dropout > 0.0f ? 2e-2 : 1e-5); /* drop(x) rounds, 0.4% of a term; the worst of 17000 sums */
    outcome_add(o, "dx", &dx, loose * 1e-2);
    for (int i = 0; i < N_ADAPTERS; i++) {
        outcome_add(o, "da", &f.da[i], loose * 2e-2); /* both factors of its terms are rounded, and a few rows' terms may cancel */
        outcome_add(o, "db", &f.db[i], loose * 1e-2);
        device_free(&f.a[i]);
        device_free(&f.b[i]);
    }
    device_free(&x);
    device_free(&dy);
}

static void test_cases(void **state)
{
    (void)state;
    lk_limits limits = test_limits;
    limits.tokens = 1100;
    limits.width = 1100;
    limits.matrix = 1100 * 1100;
    for (int i = 0; i < (int)N_LORA_CASES; i++) {
        cuda_case c = {.shape = lora_cases[i]};
        check_on_cuda_within(&limits, "lora", run, &c);
    }
    for (int i = 0; i < (int)(sizeof more_cases / sizeof *more_cases); i++) check_on_cuda_within(&limits, "lora", run, &more_cases[i]);
}

/* A = 1, x of ones: h is the mask itself, times 1/(1-p) as bf16. Rows in two chunks, a site other than 0. */
static void test_mask(void **state)
{
    (void)state;
    enum { T = 1030, K = 21 };
    lk_limits limits = {.tokens = T, .width = K, .rank = K, .training = true, .matrix = K * K};
    lk_backend *be = open_cuda(&limits);
    float ones[T * K], identity[K * K] = {0};
    for (int i = 0; i < T * K; i++) ones[i] = 1.0f;
    for (int i = 0; i < K; i++) identity[i * K + i] = 1.0f;
    device_tensor x = device_from(be, LK_BF16, T, K, 0, ones), a = device_exact(be, K, K, identity), b = device_exact(be, 1, K, ones),
                  y = device_from(be, LK_BF16, T, 1, 0, ones), h = device_make(be, LK_F32, T, K, 0);
    lk_lora lora[2] = {{0}, {a.t.data, b.t.data, NULL, NULL, LK_F32, K, 1.0f}};
    lk_segment segment = {0, T, 0};
    lk_batch batch = {.n_tokens = T, .n_segments = 1, .segments = &segment, .n_sites = 2, .n_adapters = 1, .lora = lora};
    lk_dropout dropout = {0.3f, lk_philox_key_make(99, LK_STREAM_DROPOUT), 0x1234567890abcdefu};
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_lora_forward(be, &batch, 1, &y.t, &x.t, &h.t, &dropout));
    float *mask = device_values("h", &h), kept = round_bf16(1.0f / (1.0f - dropout.p));
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            uint32_t words[4];
            lk_philox(dropout.key, dropout.counter, ((uint64_t)1 << 44) | (uint64_t)(t * ((K + 3) / 4) + k / 4), words);
            float want = lk_philox_uniform(words[k % 4]) >= dropout.p ? kept : 0.0f;
            if (mask[t * K + k] != want)
                fail_msg("row %lld, column %lld: %g, wanted %g", (long long)t, (long long)k, (double)mask[t * K + k], (double)want);
        }
    free(mask);
    device_tensor *all[] = {&x, &a, &b, &y, &h};
    for (int i = 0; i < 5; i++) device_free(all[i]);
    lk_backend_close(be);
}

/* h of a row alone is h of the row among others, bit for bit. */
static void test_alone(void **state)
{
    (void)state;
    enum { T = 37, K = 600, R = 12 };
    lk_limits limits = {.tokens = T, .width = K, .rank = R, .training = true, .matrix = 128 * K};
    lk_backend *be = open_cuda(&limits);
    device_tensor x = device_random(be, LK_BF16, T, K, 0, 1, 1.0f), a = device_random(be, LK_F32, R, K, 0, 2, 0.3f),
                  b = device_random(be, LK_F32, 8, R, 0, 3, 0.3f), y = device_random(be, LK_BF16, T, 8, 0, 4, 1.0f),
                  h = device_make(be, LK_F32, T, R, 0), alone = device_make(be, LK_F32, T, R, 0);
    lk_lora lora = {a.t.data, b.t.data, NULL, NULL, LK_F32, R, 1.0f};
    lk_segment segment = {0, T, 0};
    lk_batch batch = {.n_tokens = T, .n_segments = 1, .segments = &segment, .n_sites = 1, .n_adapters = 1, .lora = &lora};
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_lora_forward(be, &batch, 0, &y.t, &x.t, &h.t, NULL));
    batch.n_tokens = segment.end = 1;
    for (int64_t t = 0; t < T; t++) {
        lk_tensor one_x = lk_tensor_rows(&x.t, t, 1), one_y = lk_tensor_rows(&y.t, t, 1), one_h = lk_tensor_rows(&alone.t, t, 1);
        OP(be, lk_batch_begin(be, &batch));
        OP(be, lk_lora_forward(be, &batch, 0, &one_y, &one_x, &one_h, NULL));
    }
    float *among = device_values("h", &h), *by_itself = device_values("h", &alone);
    check_same_bits("h of rows alone", by_itself, among, T * R * sizeof(float));
    free(among);
    free(by_itself);
    device_tensor *all[] = {&x, &a, &b, &y, &h, &alone};
    for (int i = 0; i < 6; i++) device_free(all[i]);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_mask), cmocka_unit_test(test_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
