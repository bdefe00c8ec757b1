/* What adapters do beside their factors, on the CUDA backend: gains both ways, their norms, gains of a mixed serving batch, trained tokens.
 */
#include "kernels/nf4.h"
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/activation_cases.h"

/* One rounding to bf16, 2^-8. */
static const double tolerance = 4e-3;

typedef struct gain_case {
    shape_case shape;
    int with; /* bit 0 gain, bit 1 bias, bit 2 residual */
} gain_case;

static const shape_case more[] = {{3, 8, 8}, {70, 2056, 0}, {2, 4096, 16}, {130, 48, 4}};
enum { N_MORE = sizeof more / sizeof *more };

static void run_gain(lk_backend *be, const void *the_case, outcome *o)
{
    const gain_case *c = the_case;
    const shape_case *s = &c->shape;
    lk_dtype act = lk_backend_act(be);
    float *gain_values = random_floats(34, s->cols, 2.0f), *bias_values = random_floats(35, s->cols, 1.0f),
          *norm_values = random_floats(36, s->cols, 1.0f), *dm_values = random_floats(37, s->cols, 1.0f);
    device_tensor y = device_random(be, act, s->rows, s->cols, s->gap, 31, 1.0f),
                  dy = device_random(be, act, s->rows, s->cols, s->gap, 32, 1.0f);
    device_tensor residual = device_random(be, act, s->rows, s->cols, s->gap, 33, 1.0f);
    device_tensor back = device_random(be, act, s->rows, s->cols, s->gap, 31, 1.0f);
    device_tensor alone = device_random(be, act, s->rows, s->cols, s->gap, 31, 1.0f);
    device_tensor gain = device_exact(be, 1, s->cols, gain_values), bias = device_exact(be, 1, s->cols, bias_values);
    device_tensor norm = device_exact(be, 1, s->cols, norm_values), dm = device_exact(be, 1, s->cols, dm_values);
    OP(be,
       lk_gain(be, &y.t, c->with & 1 ? device_f32(&gain) : NULL, c->with & 2 ? device_f32(&bias) : NULL, c->with & 4 ? &residual.t : NULL));
    OP(be, lk_gain_backward(be, &back.t, &dy.t, device_f32(&gain), device_f32(&dm), device_f32(&norm)));
    OP(be, lk_gain_backward(be, &alone.t, &dy.t, device_f32(&gain), NULL, NULL)); /* without dm */
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "dy before the gain", &back, tolerance);
    outcome_add(o, "dm", &dm, 1e-4);
    float *same = device_values("dy without dm", &alone);
    check_same_bits("dy without dm", same, o->parts[1].values, (size_t)(s->rows * s->cols) * 4);
    free(same);
    device_tensor *all[] = {&dy, &residual, &alone, &gain, &bias, &norm};
    for (int i = 0; i < 6; i++) device_free(all[i]);
    float *values[] = {gain_values, bias_values, norm_values, dm_values};
    for (int i = 0; i < 4; i++) free(values[i]);
}

static void check_gain(const gain_case *c)
{
    lk_limits limits = test_limits;
    limits.matrix = limits.width * limits.width;
    limits.gains = limits.training = true;
    check_on_cuda_within(&limits, "gain", run_gain, c);
}

static void test_gain(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) check_gain(&(gain_case){shapes[i], 1 + 2 * (i % 4)});
    for (int i = 0; i < N_MORE; i++) check_gain(&(gain_case){more[i], 7 - i});
}

/* ---- norms */

typedef struct norms_case {
    int64_t n, k;
    int32_t rank;
    bool nf4, bf16;
} norms_case;

static const norms_case norms[] = {{1, 1, 0, false, false},   {17, 40, 1, false, false},  {33, 64, 3, true, false},
                                   {64, 192, 16, true, true}, {40, 128, 70, true, false}, {16, 100, 5, true, true}};
enum { N_NORMS = sizeof norms / sizeof *norms };

static lk_matrix *matrix_for(lk_backend *be, const norms_case *c)
{
    int64_t size = c->n * c->k;
    float *w = random_floats(41, size, 1.0f), *absmax = malloc((size_t)(lk_nf4_blocks(size) + 1) * 4);
    uint8_t *codes = malloc((size_t)size / 2 + 1);
    for (int64_t i = 0; i < size; i++) w[i] = round_bf16(w[i]);
    lk_nf4_quantize(codes, absmax, w, size);
    lk_matrix_source source = {.type = LK_F32, .n = c->n, .k = c->k, .data = w};
    if (c->nf4) source = (lk_matrix_source){.type = LK_NF4, .n = c->n, .k = c->k, .data = codes, .absmax = absmax};
    lk_matrix *m;
    OP(be, lk_matrix_create(be, &m, &source));
    free(w);
    free(absmax);
    free(codes);
    return m;
}

static void run_norms(lk_backend *be, const void *the_case, outcome *o)
{
    const norms_case *c = the_case;
    lk_dtype type = c->bf16 ? LK_BF16 : LK_F32;
    lk_matrix *w = matrix_for(be, c);
    int64_t rank = c->rank ? c->rank : 1;
    device_tensor a = device_random(be, type, rank, c->k, 0, 42, 0.5f), b = device_random(be, type, c->n, rank, 0, 43, 0.5f);
    float *m_values = random_floats(44, c->n, 1.0f);
    device_tensor m = device_exact(be, 1, c->n, m_values), gain = device_make(be, LK_F32, 1, c->n, 0),
                  inverse = device_make(be, LK_F32, 1, c->n, 0), again = device_make(be, LK_F32, 1, c->n, 0);
    lk_lora l = {.a = a.t.data, .b = b.t.data, .type = type, .rank = c->rank, .scale = 0.5f};
    OP(be, lk_gain_norms(be, device_f32(&gain), device_f32(&inverse), w, &l, device_f32(&m)));
    OP(be, lk_gain_norms(be, NULL, device_f32(&again), w, &l, NULL));
    /* weights that are bf16 on one side alone, and sums of some hundred squares in fp32 */
    outcome_add(o, "gain", &gain, 3e-3);
    outcome_add(o, "inverse norm", &inverse, 3e-3);
    outcome_add(o, "without gain", &again, 3e-3);
    check_same_bits("without gain", o->parts[2].values, o->parts[1].values, (size_t)c->n * 4);
    free(m_values);
    device_free(&a);
    device_free(&b);
    device_free(&m);
    lk_matrix_destroy(be, w);
}

static void test_norms(void **state)
{
    (void)state;
    lk_limits limits = test_limits;
    limits.gains = true;
    for (int i = 0; i < N_NORMS; i++) check_on_cuda_within(&limits, "gain_norms", run_norms, &norms[i]);
}

/* ---- a mixed batch */

enum { TOKENS = 75, ADAPTERS = 4 };

typedef struct mixed_case {
    int64_t cols, gap;
    bool serving, bias, residual, wide; /* wide: y is F32, as a router's logits */
} mixed_case;

/* Adapters: neither, a gain, a bias, both; with the base between them and segments of one row and of more than a tile. */
static void run_mixed(lk_backend *be, const void *the_case, outcome *o)
{
    const mixed_case *c = the_case;
    lk_dtype act = c->wide ? LK_F32 : lk_backend_act(be);
    float *gain_values = random_floats(51, c->cols, 2.0f), *bias_values = random_floats(52, c->cols, 1.0f),
          *own_values = random_floats(53, c->cols, 1.0f);
    device_tensor y = device_random(be, act, TOKENS, c->cols, c->gap, 54, 1.0f),
                  residual = device_random(be, act, TOKENS, c->cols, c->gap, 55, 1.0f);
    device_tensor gain = device_exact(be, 1, c->cols, gain_values), bias = device_exact(be, 1, c->cols, bias_values),
                  own = device_exact(be, 1, c->cols, own_values);
    lk_lora lora[2 * ADAPTERS] = {0}; /* the second site's */
    for (int i = 0; i < ADAPTERS; i++)
        lora[ADAPTERS + i] = (lk_lora){.type = LK_F32, .gain = i & 1 ? device_f32(&gain) : NULL, .bias = i & 2 ? device_f32(&own) : NULL};
    lk_segment segments[] = {{0, 3, 0}, {3, 4, 1}, {4, 40, 2}, {40, 73, 3}, {73, TOKENS, -1}};
    int32_t ids[TOKENS] = {0}, pages[] = {0, 1, 2, 3, 4};
    lk_sequence sequence = {.begin = 0, .count = TOKENS, .length = TOKENS, .pages = pages};
    lk_batch batch = {.n_tokens = TOKENS,
                      .ids = ids,
                      .positions = ids,
                      .n_segments = 5,
                      .segments = segments,
                      .n_sites = 2,
                      .n_adapters = ADAPTERS,
                      .lora = lora};
    if (c->serving) {
        batch.n_sequences = 1;
        batch.sequences = &sequence;
    }
    OP(be, lk_batch_begin(be, &batch));
    OP(be, lk_lora_gain(be, &batch, 1, &y.t, c->bias ? device_f32(&bias) : NULL, c->residual ? &residual.t : NULL));
    outcome_add(o, "y", &y, tolerance);
    device_tensor *all[] = {&residual, &gain, &bias, &own};
    for (int i = 0; i < 4; i++) device_free(all[i]);
    free(gain_values);
    free(bias_values);
    free(own_values);
}

static void test_mixed(void **state)
{
    (void)state;
    lk_limits limits = test_limits;
    limits.tokens = 128;
    limits.adapters = ADAPTERS;
    limits.sites = 2;
    for (int i = 0; i < 8; i++) {
        mixed_case c = {.cols = i & 1 ? 264 : 37, .gap = i & 1 ? 8 : 1, .serving = i & 2, .bias = i & 4, .residual = i != 3, .wide = i > 5};
        check_on_cuda_within(&limits, "lora_gain", run_mixed, &c);
    }
}

/* ---- trained tokens and clearing */

static void run_some(lk_backend *be, const void *the_case, outcome *o)
{
    int64_t cols = *(const int64_t *)the_case;
    static const int32_t some[] = {3, 7, 8, 500}, ids[] = {7, 0, 3, 500, 9, 8, 7, 501, 2};
    float *rows = random_floats(61, 4 * cols, 1.0f);
    lk_matrix *w;
    void *known;
    OP(be, lk_matrix_create(be, &w, &(lk_matrix_source){.type = LK_F32, .n = 4, .k = cols, .data = rows}));
    OP(be, lk_alloc(be, sizeof some, &known));
    OP(be, lk_upload(be, known, some, sizeof some));
    device_tensor y = device_random(be, lk_backend_act(be), 9, cols, 3, 62, 1.0f), square = device_random(be, LK_F32, 5, cols, 2, 63, 1.0f);
    OP(be, lk_embed_some(be, &y.t, w, known, ids));
    lk_tensor middle = lk_tensor_rows(&square.t, 1, 3);
    OP(be, lk_clear(be, &middle));
    outcome_add(o, "y", &y, tolerance);
    outcome_add(o, "cleared", &square, 0.0);
    lk_free(be, known);
    lk_matrix_destroy(be, w);
    free(rows);
}

static void test_some(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 37, 264};
    for (int i = 0; i < 3; i++) check_on_cuda("embed_some", run_some, &widths[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gain), cmocka_unit_test(test_norms), cmocka_unit_test(test_mixed),
                                       cmocka_unit_test(test_some)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
