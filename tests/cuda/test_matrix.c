/* Frozen matrices on the CUDA backend: every weight bit for bit, through products with an identity and through embedding, and their bytes.
 */
#include "tests/cuda/cuda_check.h"
#include "tests/kernels/linear_cases.h"

/* Tiles of 16 x 64, four of them to a warp along k, and what is left over of each; more nested groups than one. */
static const linear_case tiles[] = {
    {4, 16, 64, 0}, {3, 1, 64, 0}, {5, 17, 128, 8}, {9, 40, 256, 0}, {6, 33, 320, 0}, {2, 130, 576, 0}, {3, 200, 192, 0},
};
enum { N_TILES = sizeof tiles / sizeof *tiles };

typedef struct nested_source {
    lk_matrix_source source;
    void *data;
    float *absmax, *absmax2;
    uint8_t *absmax8;
} nested_source;

/* NF4 with double-quantised scales, of rows whose sizes differ so that the scales do. */
static nested_source nested_make(int64_t n, int64_t k)
{
    nested_source s = {0};
    int64_t blocks = lk_nf4_blocks(n * k);
    float *values = random_floats((uint64_t)(n * 1000 + k), n * k, 0.5f);
    for (int64_t i = 0; i < n * k; i++) values[i] *= 1.0f + (float)(i / 64 % 13);
    s.data = calloc(1, (size_t)(n * k + 1) / 2);
    s.absmax = malloc((size_t)blocks * sizeof(float));
    s.absmax8 = malloc((size_t)blocks);
    s.absmax2 = malloc((size_t)lk_nf4_nested_blocks(blocks) * sizeof(float));
    assert_true(s.data && s.absmax && s.absmax8 && s.absmax2);
    lk_nf4_quantize(s.data, s.absmax, values, n * k);
    float offset;
    lk_nf4_nest(s.absmax8, s.absmax2, &offset, s.absmax, blocks);
    lk_nf4_unnest(s.absmax, s.absmax8, s.absmax2, offset, blocks);
    s.source = (lk_matrix_source){.type = LK_NF4, .n = n, .k = k, .data = s.data, .absmax = s.absmax};
    s.source.absmax8 = s.absmax8;
    s.source.absmax2 = s.absmax2;
    s.source.absmax_offset = offset;
    free(values);
    return s;
}

static void nested_free(nested_source *s)
{
    free(s->data);
    free(s->absmax);
    free(s->absmax8);
    free(s->absmax2);
}

/* What the contract says the weights are. */
static float *meant_weights(const lk_matrix_source *s)
{
    float *w = malloc((size_t)(s->n * s->k) * sizeof(float));
    assert_non_null(w);
    if (s->type == LK_NF4)
        lk_nf4_dequantize(w, s->data, s->absmax, s->n * s->k);
    else
        lk_to_f32(w, s->data, s->type, s->n * s->k);
    for (int64_t i = 0; i < s->n * s->k; i++) w[i] = round_bf16(w[i]);
    return w;
}

/* y = identity * w^T is w^T without any rounding. */
static void check_product(lk_backend *be, const lk_matrix *m, const float *w)
{
    int64_t n = lk_matrix_n(m), k = lk_matrix_k(m);
    float *identity = calloc((size_t)(k * k), sizeof(float));
    assert_non_null(identity);
    for (int64_t i = 0; i < k; i++) identity[i * k + i] = 1.0f;
    device_tensor x = device_from(be, LK_BF16, k, k, 0, identity), y = device_make(be, LK_BF16, k, n, 0);
    OP(be, lk_linear(be, &y.t, &x.t, m, NULL, NULL));
    float *got = device_values("the weights", &y);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++)
            if (got[c * n + r] != w[r * k + c])
                fail_msg("weight [%lld,%lld] of %lld x %lld is %.9g, meant %.9g", (long long)r, (long long)c, (long long)n, (long long)k,
                         (double)got[c * n + r], (double)w[r * k + c]);
    free(got);
    free(identity);
    device_free(&x);
    device_free(&y);
}

static void check_rows(lk_backend *be, const lk_matrix *m, const linear_case *c, const float *w)
{
    int32_t ids[200];
    for (int64_t t = 0; t < c->rows; t++) ids[t] = (int32_t)((t * 7 + 3) % c->n);
    device_tensor y = device_make(be, LK_BF16, c->rows, c->k, c->gap);
    OP(be, lk_embed(be, &y.t, m, ids));
    float *got = device_values("embed", &y);
    for (int64_t t = 0; t < c->rows; t++) check_same_bits("embed", got + t * c->k, w + ids[t] * c->k, (size_t)c->k * 4);
    free(got);
    device_free(&y);
}

static void check_matrix(lk_backend *be, const lk_matrix_source *source, const linear_case *c)
{
    set_schedule((uint64_t)(c->n * 31 + c->k)); /* any order of threads packs and unpacks the same */
    size_t before = lk_allocated(be);
    lk_matrix *m;
    float *w = meant_weights(source);
    OP(be, lk_matrix_create(be, &m, source));
    assert_int_equal(lk_allocated(be) - before, lk_matrix_bytes(be, source->type, c->n, c->k, source->absmax8 != NULL));
    assert_int_equal(lk_matrix_type(m), source->type);
    check_product(be, m, w);
    check_rows(be, m, c, w);
    lk_matrix_destroy(be, m);
    assert_int_equal(lk_allocated(be), before);
    free(w);
}

static lk_limits limits_for_all(void)
{
    lk_limits limits = test_limits;
    limits.matrix = limits.width * limits.width;
    return limits;
}

static void check_source(lk_backend *be, const linear_case *c, lk_dtype type)
{
    void *data;
    float *absmax;
    lk_matrix_source source = make_source(type, c->n, c->k, &data, &absmax);
    check_matrix(be, &source, c);
    free(data);
    free(absmax);
}

static void test_weights(void **state)
{
    (void)state;
    lk_limits limits = limits_for_all();
    lk_backend *be = open_cuda(&limits);
    for (int i = 0; i < N_TILES * 4; i++) check_source(be, &tiles[i / 4], linear_types[i % 4]);
    for (int i = 0; i < N_LINEAR_CASES * 4; i++) check_source(be, &linear_cases[i / 4], linear_types[i % 4]);
    lk_backend_close(be);
}

/* Nested scales give the bits of the un-nested ones, and take a quarter of their memory. */
static void test_nested(void **state)
{
    (void)state;
    lk_limits limits = limits_for_all();
    lk_backend *be = open_cuda(&limits);
    for (int i = 0; i < N_TILES; i++) {
        const linear_case *c = &tiles[i];
        nested_source s = nested_make(c->n, c->k);
        check_matrix(be, &s.source, c);
        lk_matrix_source flat = s.source;
        flat.absmax8 = NULL;
        flat.absmax2 = NULL;
        check_matrix(be, &flat, c);
        nested_free(&s);
    }
    for (int i = 0; i < N_LINEAR_CASES; i++) { /* any other width: dequantised at once */
        const linear_case *c = &linear_cases[i];
        nested_source s = nested_make(c->n, c->k);
        check_matrix(be, &s.source, c);
        nested_free(&s);
    }
    lk_backend_close(be);
    be = open_cuda(&limits);
    double n = 4096, k = 4096, bits = 8.0 * (double)lk_matrix_bytes(be, LK_NF4, 4096, 4096, true) / (n * k);
    assert_true(bits < 4.13); /* 4 + 1/8 + 1/512 */
    lk_backend_close(be);
}

/* Blocks of rows where the workspace does not hold the whole matrix. */
static void test_blocks(void **state)
{
    (void)state;
    const lk_limits limits = {.tokens = 512, .width = 64};
    const linear_case c = {5, 1031, 64, 0};
    lk_backend *be = open_cuda(&limits);
    nested_source s = nested_make(c.n, c.k);
    check_matrix(be, &s.source, &c);
    nested_free(&s);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_weights), cmocka_unit_test(test_nested), cmocka_unit_test(test_blocks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
