/* Adapters of a serving batch on the CUDA backend: mixed ranks and types against the reference; a token alone, in a segment, beside other
 * adapters and in the middle of a long prompt gives the same bits; what a batch leaves on the device is renewed with the next. */
#include "tests/cuda/cuda_check.h"

enum { N_SITES = 2, SITE = 1, MOST_ADAPTERS = 6, MOST_SEGMENTS = 9 };

typedef struct serve_case {
    int64_t n, k, gap;
    int32_t ranks[MOST_ADAPTERS]; /* 0: the adapter leaves the site alone */
    lk_dtype types[MOST_ADAPTERS];
    int64_t lengths[MOST_SEGMENTS];
    int32_t adapters[MOST_SEGMENTS];
    bool wide_y;
} serve_case;

/* Lengths: none, one, 8, 32, one past. K: less than a piece of 512, exactly one, several, odd ones that no 16-byte load fits. */
static const serve_case serve_cases[] = {
    {17, 64, 0, {1}, {LK_F32}, {1}, {0}, false},
    {130,
     520,
     0,
     {16, 8, 0, 256, 3, 64},
     {LK_BF16, LK_F32, LK_F32, LK_BF16, LK_F32, LK_F32},
     {1, 0, 33, 4, 2, 8, 1, 1, 3},
     {0, 1, 1, -1, 2, 3, 4, 5, 0},
     false},
    {64,
     1100,
     8,
     {16, 17, 1, 5, 30, 2},
     {LK_BF16, LK_BF16, LK_BF16, LK_F32, LK_F32, LK_BF16},
     {2, 1, 32, 1, 1, 9, 1, 1, 7},
     {5, 4, 3, 2, 1, 0, -1, 3, 3},
     true},
    {33,
     97,
     3,
     {4, 12, 7, 200, 1, 16},
     {LK_F32, LK_BF16, LK_BF16, LK_BF16, LK_BF16, LK_F32},
     {1, 1, 1, 1, 1, 1, 1, 1, 1},
     {0, 1, 2, 3, 4, 5, -1, 0, 1},
     false},
    {40, 512, 0, {300, 16}, {LK_BF16, LK_F32}, {70, 0, 5}, {0, 1, 1}, false},
    {24, 64, 0, {8}, {LK_F32}, {3, 2}, {-1, -1}, false},
};
enum { N_SERVE_CASES = sizeof serve_cases / sizeof *serve_cases };

static const lk_limits limits = {
    .tokens = 160, .width = 1200, .matrix = 1200 * 1200, .rank = 300, .adapters = MOST_ADAPTERS, .sites = N_SITES, .context = 64};

static int32_t no_page;

typedef struct serving {
    device_tensor a[MOST_ADAPTERS], b[MOST_ADAPTERS];
    lk_lora lora[N_SITES * MOST_ADAPTERS];
    int32_t n, max_rank;
} serving;

static serving serving_make(lk_backend *be, const serve_case *c)
{
    serving s = {.n = 0};
    for (int i = 0; i < MOST_SEGMENTS; i++)
        if (c->adapters[i] >= s.n) s.n = c->adapters[i] + 1;
    for (int i = 0; i < s.n; i++) {
        int32_t some = c->ranks[i] ? c->ranks[i] : 1;
        if (c->ranks[i] > s.max_rank) s.max_rank = c->ranks[i];
        s.a[i] = device_random(be, c->types[i], some, c->k, 0, (uint64_t)(40 + i), 0.3f);
        s.b[i] = device_random(be, c->types[i], c->n, some, 0, (uint64_t)(50 + i), 0.3f);
        s.lora[SITE * s.n + i] =
            (lk_lora){.a = s.a[i].t.data, .b = s.b[i].t.data, .type = c->types[i], .rank = c->ranks[i], .scale = 0.5f + 0.25f * (float)i};
    }
    if (s.max_rank == 0) s.max_rank = 1;
    return s;
}

static void serving_free(serving *s)
{
    for (int i = 0; i < s->n; i++) {
        device_free(&s->a[i]);
        device_free(&s->b[i]);
    }
}

/* y += over these segments of `rows` tokens. */
static void apply(lk_backend *be, serving *s, const lk_segment *segments, int64_t n_segments, const lk_tensor *y, const lk_tensor *x,
                  const lk_tensor *h)
{
    lk_sequence sequence = {.begin = 0, .count = x->rows, .length = x->rows, .pages = &no_page};
    lk_batch batch = {.n_tokens = x->rows,
                      .n_sequences = 1,
                      .sequences = &sequence,
                      .n_segments = n_segments,
                      .segments = segments,
                      .n_sites = N_SITES,
                      .n_adapters = s->n,
                      .lora = s->lora};
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_lora_forward(be, &batch, SITE, y, x, h, NULL));
}

static int64_t segments_of(const serve_case *c, lk_segment segments[MOST_SEGMENTS])
{
    int64_t row = 0;
    for (int i = 0; i < MOST_SEGMENTS; i++) {
        segments[i] = (lk_segment){row, row + c->lengths[i], c->adapters[i]};
        row += c->lengths[i];
    }
    return row;
}

/* y rounds scale*h and itself, 0.4% each of a term; high ranks have rows several times the mean, to which the tolerance is relative. */
static void run(lk_backend *be, const void *the_case, outcome *o)
{
    const serve_case *c = the_case;
    lk_segment segments[MOST_SEGMENTS];
    int64_t rows = segments_of(c, segments);
    lk_dtype act = lk_backend_act(be);
    serving s = serving_make(be, c);
    device_tensor x = device_random(be, act, rows, c->k, c->gap, 81, 1.0f), h = device_random(be, LK_F32, rows, s.max_rank, 0, 85, 1.0f);
    device_tensor y = device_random(be, c->wide_y ? LK_F32 : act, rows, c->n, c->gap, 82, 1.0f);
    apply(be, &s, segments, MOST_SEGMENTS, &y.t, &x.t, &h.t);
    outcome_add(o, "y", &y, s.max_rank > 64 ? 2e-2 : 1e-2);
    outcome_add(o, "h", &h, 1e-5);
    device_free(&x);
    serving_free(&s);
}

static void test_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_SERVE_CASES; i++) check_on_cuda_within(&limits, "serve lora", run, &serve_cases[i]);
}

/* Row t of x, with its adapter, in a batch of its own; then in batches cut elsewhere. */
static void check_company(const lk_limits *with, const serve_case *c)
{
    lk_segment segments[MOST_SEGMENTS];
    int64_t rows = segments_of(c, segments);
    lk_backend *be = open_cuda(with);
    serving s = serving_make(be, c);
    device_tensor x = device_random(be, LK_BF16, rows, c->k, c->gap, 81, 1.0f),
                  h = device_random(be, LK_F32, rows, s.max_rank, 0, 85, 1.0f);
    device_tensor y = device_random(be, LK_F32, rows, c->n, 0, 82, 1.0f);
    apply(be, &s, segments, MOST_SEGMENTS, &y.t, &x.t, &h.t);
    float *together = device_values("y", &y), *before = random_floats(82, rows * c->n, 1.0f);
    for (int i = 0; i < MOST_SEGMENTS; i++)
        for (int64_t first = segments[i].begin, count = 1; first < segments[i].end; first += count, count = count % 5 + 2) {
            if (first + count > segments[i].end) count = segments[i].end - first;
            device_tensor alone = device_from(be, LK_F32, count, c->n, 0, before + first * c->n);
            lk_tensor own = lk_tensor_rows(&x.t, first, count), hidden = lk_tensor_rows(&h.t, 0, count);
            lk_segment segment = {0, count, segments[i].adapter};
            apply(be, &s, &segment, 1, &alone.t, &own, &hidden);
            float *got = device_values("alone", &alone);
            check_same_bits("tokens alone", got, together + first * c->n, (size_t)(count * c->n) * sizeof(float));
            free(got);
            lk_free(be, alone.memory);
        }
    free(together);
    free(before);
    device_free(&x);
    device_free(&y);
    device_free(&h);
    serving_free(&s);
    lk_backend_close(be);
}

static void test_company(void **state)
{
    (void)state;
    static const serve_case longer = {24, 1544, 0, {16, 256, 5}, {LK_BF16, LK_BF16, LK_F32}, {70, 3, 40, 20, 1}, {0, 1, 2, -1, 0}, false};
    /* Without room for the sums of pieces a block adds them up itself. */
    lk_limits little = {.tokens = 134, .width = 8, .rank = 256, .adapters = MOST_ADAPTERS, .sites = N_SITES};
    lk_limits room = limits;
    room.width = 1600;
    for (int i = 0; i < N_SERVE_CASES; i++) check_company(&limits, &serve_cases[i]);
    check_company(&room, &longer);
    check_company(&little, &longer);
}

/* Layers that share x, as query, key and value do: together the bits that each has alone, though their h are one memory. Adapter 2 leaves
 * the third alone, nobody adapts the second in the second round. */
static void check_parts(const lk_limits *with, int64_t rows, const int32_t ranks[3][3])
{
    enum { PARTS = 3, K = 1096, N_ADAPTERS = 3, H = 40 };
    static const int64_t widths[PARTS] = {150, 17, 64};
    lk_backend *be = open_cuda(with);
    lk_lora lora[PARTS * N_ADAPTERS] = {{0}};
    device_tensor a[PARTS], b[PARTS], apart[PARTS], together[PARTS], x = device_random(be, LK_BF16, rows, K, 8, 7, 1.0f);
    device_tensor h = device_make(be, LK_F32, rows, H, 0);
    lk_matrix *w[PARTS];
    lk_part parts[PARTS];
    for (int i = 0; i < PARTS; i++) {
        a[i] = device_random(be, LK_BF16, N_ADAPTERS * H, K, 0, (uint64_t)(20 + i), 0.3f);
        b[i] = device_random(be, LK_BF16, N_ADAPTERS * widths[i], H, 0, (uint64_t)(30 + i), 0.3f);
        for (int j = 0; j < N_ADAPTERS; j++)
            lora[i * N_ADAPTERS + j] = (lk_lora){.a = (uint16_t *)a[i].t.data + j * H * K,
                                                 .b = (uint16_t *)b[i].t.data + j * H * widths[i],
                                                 .type = LK_BF16,
                                                 .rank = ranks[i][j],
                                                 .scale = 0.5f};
        float *values = random_floats((uint64_t)(50 + i), widths[i] * K, 0.1f);
        lk_matrix_source source = {.type = LK_F32, .n = widths[i], .k = K, .data = values};
        OP(be, lk_matrix_create(be, &w[i], &source));
        free(values);
        apart[i] = device_make(be, LK_BF16, rows, widths[i], i);
        together[i] = device_make(be, LK_BF16, rows, widths[i], i);
        parts[i] = (lk_part){.w = w[i], .site = i, .y = together[i].t, .h = h.t};
    }
    lk_segment segments[] = {{0, 3, 0}, {3, rows - 9, 1}, {rows - 9, rows - 8, -1}, {rows - 8, rows, 2}};
    lk_sequence sequence = {.begin = 0, .count = rows, .length = rows, .pages = &no_page};
    lk_batch batch = {.n_tokens = rows,
                      .n_sequences = 1,
                      .sequences = &sequence,
                      .n_segments = 4,
                      .segments = segments,
                      .n_sites = PARTS,
                      .n_adapters = N_ADAPTERS,
                      .lora = lora};
    OP(be, lk_batch_begin(be, &batch));
    for (int i = 0; i < PARTS; i++) OP(be, lk_linear_lora(be, &batch, i, &apart[i].t, &x.t, w[i], NULL, NULL, &h.t, NULL));
    OP(be, lk_linear_parts(be, &batch, parts, PARTS, &x.t, NULL));
    for (int i = 0; i < PARTS; i++) {
        float *want = device_values("apart", &apart[i]), *got = device_values("together", &together[i]);
        check_same_bits("together", got, want, (size_t)(rows * widths[i]) * sizeof(float));
        free(want);
        free(got);
        device_tensor *all[] = {&a[i], &b[i], &apart[i], &together[i]};
        for (int j = 0; j < 4; j++) device_free(all[j]);
        lk_matrix_destroy(be, w[i]);
    }
    device_free(&x);
    device_free(&h);
    lk_backend_close(be);
}

static void test_parts(void **state)
{
    (void)state;
    static const int32_t mixed[3][3] = {{16, 40, 3}, {8, 8, 8}, {1, 33, 0}}, gap[3][3] = {{16, 40, 3}, {0, 0, 0}, {1, 33, 0}};
    const lk_limits room = {.tokens = 160, .width = 1200, .matrix = 1200 * 200, .rank = 40, .adapters = 3, .sites = 3};
    const lk_limits little = {.tokens = 140, .width = 8, .rank = 40, .adapters = 3, .sites = 3, .serving = true};
    check_parts(&room, 20, mixed);
    check_parts(&room, 140, mixed);
    check_parts(&room, 40, gap);
    check_parts(&little, 140, mixed);
}

static void test_too_many(void **state)
{
    (void)state;
    lk_limits few = limits;
    few.adapters = 1;
    lk_backend *be = open_cuda(&few);
    lk_lora lora[N_SITES * 2] = {{0}};
    lk_segment segment = {0, 1, 1};
    lk_sequence sequence = {.begin = 0, .count = 1, .length = 1, .pages = &no_page};
    lk_batch batch = {.n_tokens = 1,
                      .n_sequences = 1,
                      .sequences = &sequence,
                      .n_segments = 1,
                      .segments = &segment,
                      .n_sites = N_SITES,
                      .n_adapters = 2,
                      .lora = lora};
    assert_int_equal(lk_batch_begin(be, &batch), LK_ERR_INTERNAL);
    assert_non_null(strstr(lk_backend_error(be)->message, "limits.adapters"));
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_company), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_too_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
