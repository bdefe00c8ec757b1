/* label: slow */
/* The packed products, prepared matrices and linear layers of every tier this machine has, against sums in double; and their
 * promise that a row's bits depend on nothing but the row. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/nf4.h"
#include "kernels/ops.h"
#include "tests/check.h"

static const lk_dtype computes[] = {LK_F32, LK_BF16};
enum { COMPUTES = 2, GUARD = 32 };
static const float guard_value = 12345.0f;

static float rounded(float f, lk_dtype compute) { return compute == LK_BF16 ? lk_bf16_to_f32(lk_f32_to_bf16(f)) : f; }

/* Memory of exactly this many floats with guards that check_guards inspects. */
static float *guarded(int64_t n)
{
    float *p = aligned_alloc(64, (size_t)(n + 2 * GUARD + 15) / 16 * 64);
    for (int64_t i = 0; i < n + 2 * GUARD; i++) p[i] = guard_value;
    return p + GUARD;
}

static void check_guards(const char *what, float *p, int64_t n)
{
    for (int i = 0; i < GUARD; i++)
        if (p[-1 - i] != guard_value || p[n + i] != guard_value) fail_msg("%s: wrote outside its result", what);
    free(p - GUARD);
}

/* |error| of a sum of K products of magnitude about 1 in fp32, with room for eight standard deviations. */
static double tolerance(int64_t k) { return 1e-6 * (4 + sqrt((double)k)); }

typedef void for_kernel(const lk_gemm *g, const char *name);

static void each_kernel(for_kernel *f)
{
    for (int tier = LK_CPU_PORTABLE; tier <= (int)lk_cpu_tier_best(); tier++) {
        for (int c = 0; c < COMPUTES; c++) {
            char name[40];
            snprintf(name, sizeof name, "%s/%s", lk_cpu_tier_name((lk_cpu_tier)tier), lk_dtype_name(computes[c]));
            f(lk_gemm_get((lk_cpu_tier)tier, computes[c]), name);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- lk_gemm_product */

typedef struct product_case {
    int64_t m, n, k;
    bool a_columns, b_columns, bf16, add;
} product_case;

static void check_product(const lk_gemm *g, const char *name, const product_case *t)
{
    check_random random = {(uint64_t)(t->m * 1000003 + t->n * 1009 + t->k + 1)};
    int64_t rows[2] = {t->m, t->n}, stride[2];
    bool columns[2] = {t->a_columns, t->b_columns};
    float *values[2];
    void *data[2];
    lk_factor factor[2];
    lk_dtype type = t->bf16 ? LK_BF16 : LK_F32;
    for (int s = 0; s < 2; s++) {
        stride[s] = (columns[s] ? rows[s] : t->k) + 3;
        int64_t count = stride[s] * (columns[s] ? t->k : rows[s]) + 1;
        values[s] = malloc((size_t)count * sizeof(float));
        data[s] = malloc((size_t)count * sizeof(float));
        check_random_fill(&random, values[s], count, 1.0f);
        lk_from_f32(data[s], type, values[s], count);
        lk_to_f32(values[s], data[s], type, count);
        factor[s] = columns[s] ? lk_factor_columns(data[s], type, stride[s]) : lk_factor_rows(data[s], type, stride[s]);
    }
    factor[0].scale = 0.75f;
    int64_t ldc = t->n + 5, count = t->m * ldc;
    float *c = guarded(count), *want = malloc((size_t)(count + 1) * sizeof(float));
    for (int64_t i = 0; i < count; i++) want[i] = c[i] = i % ldc < t->n ? 0.5f : guard_value;
    for (int64_t i = 0; i < t->m; i++)
        for (int64_t j = 0; j < t->n; j++) {
            double sum = 0;
            for (int64_t k = 0; k < t->k; k++) {
                float a = values[0][columns[0] ? k * stride[0] + i : i * stride[0] + k];
                float b = values[1][columns[1] ? k * stride[1] + j : j * stride[1] + k];
                sum += (double)rounded(a * 0.75f, g->compute) * rounded(b, g->compute);
            }
            want[i * ldc + j] = (float)(t->add ? sum + 0.5 : sum);
        }
    void *scratch = aligned_alloc(64, lk_gemm_scratch_bytes(g));
    memset(scratch, 0xff, lk_gemm_scratch_bytes(g)); /* NaNs, should anything read what was not packed */
    lk_gemm_product(g, c, ldc, t->m, t->n, t->k, factor[0], factor[1], t->add ? LK_GEMM_ADD : LK_GEMM_SET, scratch);
    char what[160];
    snprintf(what, sizeof what, "%s product %lldx%lldx%lld%s%s%s%s", name, (long long)t->m, (long long)t->n, (long long)t->k,
             t->a_columns ? " A'" : "", t->b_columns ? " B'" : "", t->bf16 ? " bf16" : "", t->add ? " add" : "");
    check_close(what, c, want, count, tolerance(t->k), 1e-6);
    check_guards(what, c, count);
    free(scratch);
    free(want);
    for (int s = 0; s < 2; s++) {
        free(values[s]);
        free(data[s]);
    }
}

static void products(const lk_gemm *g, const char *name)
{
    static const int64_t shapes[][3] = {{1, 1, 1},     {1, 16, 32},    {16, 16, 32},  {17, 33, 65},  {3, 5, 0},
                                        {1, 129, 64},  {64, 7, 16},    {65, 129, 31}, {48, 40, 128}, {33, 64, 1025},
                                        {5, 18, 2100}, {130, 257, 96}, {2, 2, 3},     {31, 1, 1024}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int flags = 0; flags < 16; flags++) {
            product_case t = {shapes[i][0], shapes[i][1], shapes[i][2], flags & 1, flags & 2, flags & 4, flags & 8};
            check_product(g, name, &t);
        }
}

static void test_products(void **state)
{
    (void)state;
    each_kernel(products);
}

/* ---------------------------------------------------------------------------------------------- linear */

typedef struct layer {
    lk_matrix_source source;
    float *values; /* what products must use, [n,k] */
    void *data;
    float *absmax;
} layer;

static layer make_layer(lk_dtype type, int64_t n, int64_t k, lk_dtype compute)
{
    check_random random = {(uint64_t)(n * 7919 + k)};
    int64_t count = n * k;
    layer l = {.values = malloc((size_t)count * 4), .data = malloc((size_t)count * 4), .absmax = malloc((size_t)lk_nf4_blocks(count) * 4)};
    check_random_fill(&random, l.values, count, 1.0f);
    if (type == LK_NF4) {
        lk_nf4_quantize(l.data, l.absmax, l.values, count);
        lk_nf4_dequantize(l.values, l.data, l.absmax, count);
    } else {
        lk_from_f32(l.data, type, l.values, count);
        lk_to_f32(l.values, l.data, type, count);
    }
    for (int64_t i = 0; i < count; i++) l.values[i] = rounded(l.values[i], compute);
    l.source = (lk_matrix_source){type, n, k, l.data, type == LK_NF4 ? l.absmax : NULL};
    return l;
}

static void free_layer(layer *l)
{
    free(l->values);
    free(l->data);
    free(l->absmax);
}

static lk_backend *open_backend(const lk_gemm *g, int threads, int64_t tokens, int64_t width)
{
    lk_error err = {0};
    lk_backend *be;
    lk_backend_options options = {.device = "cpu", .threads = threads, .compute = g->compute, .cpu_tier = lk_cpu_tier_name(g->tier)};
    CHECK_OK(lk_backend_open(&be, &options, &err), &err);
    CHECK_OK(lk_reserve(be, &(lk_limits){.tokens = tokens, .width = width}), lk_backend_error(be));
    return be;
}

static float *reference(const layer *l, const float *x, int64_t ldx, int64_t tokens, lk_dtype compute, bool backward, const float *start,
                        int64_t ldy)
{
    int64_t n = l->source.n, k = l->source.k, depth = backward ? n : k, width = backward ? k : n;
    float *want = malloc((size_t)(tokens * ldy + 1) * sizeof(float));
    memcpy(want, start, (size_t)(tokens * ldy) * sizeof(float));
    double *sums = malloc((size_t)width * sizeof(double));
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t j = 0; j < width; j++) sums[j] = want[t * ldy + j];
        for (int64_t i = 0; i < depth; i++) {
            double factor = rounded(x[t * ldx + i], compute);
            for (int64_t j = 0; j < width; j++) sums[j] += factor * l->values[backward ? i * k + j : j * k + i];
        }
        for (int64_t j = 0; j < width; j++) want[t * ldy + j] = (float)sums[j];
    }
    free(sums);
    return want;
}

static lk_tensor view(float *p, int64_t rows, int64_t cols, int64_t stride) { return (lk_tensor){p, LK_F32, rows, cols, stride}; }

static void check_layer(const lk_gemm *g, const char *name, lk_dtype type, int64_t tokens, int64_t n, int64_t k, int threads)
{
    layer l = make_layer(type, n, k, g->compute);
    lk_backend *be = open_backend(g, threads, tokens, n > k ? n : k);
    size_t before = lk_allocated(be);
    lk_matrix *w;
    CHECK_OK(lk_matrix_create(be, &w, &l.source), lk_backend_error(be));
    assert_int_equal(lk_allocated(be) - before, lk_matrix_bytes(be, type, n, k, false));
    check_random random = {77};
    int64_t ld[2] = {k + 1, n + 2};
    float *in[2], *bias = malloc((size_t)n * sizeof(float));
    for (int s = 0; s < 2; s++) {
        in[s] = malloc((size_t)(tokens * ld[s] + 1) * sizeof(float));
        check_random_fill(&random, in[s], tokens * ld[s], 1.0f);
    }
    check_random_fill(&random, bias, n, 1.0f);
    char what[160];
    for (int variant = 0; variant < 4; variant++) {
        bool backward = variant & 1, extra = variant & 2; /* bias, or accumulate */
        int64_t width = backward ? k : n, ldy = ld[!backward], count = tokens * ldy;
        float *y = guarded(count), *start = malloc((size_t)(count + 1) * sizeof(float));
        for (int64_t i = 0; i < count; i++) {
            bool inside = i % ldy < width;
            start[i] = !inside ? guard_value : extra ? (backward ? 0.25f : bias[i % ldy]) : 0;
            y[i] = inside && extra && backward ? 0.25f : inside ? (float)NAN : guard_value;
        }
        float *want = reference(&l, in[backward], ld[backward], tokens, g->compute, backward, start, ldy);
        lk_tensor source = view(in[backward], tokens, backward ? n : k, ld[backward]), result = view(y, tokens, width, ldy);
        lk_status status =
            backward ? lk_linear_backward(be, &result, &source, w, extra) : lk_linear(be, &result, &source, w, extra ? bias : NULL, NULL);
        CHECK_OK(status, lk_backend_error(be));
        snprintf(what, sizeof what, "%s %s %s T%lld N%lld K%lld, %d threads%s", name, lk_dtype_name(type), backward ? "backward" : "linear",
                 (long long)tokens, (long long)n, (long long)k, threads, extra ? ", extra" : "");
        check_close(what, y, want, count, tolerance(backward ? n : k), 2e-6);
        check_guards(what, y, count);
        free(start);
        free(want);
    }
    int32_t *ids = malloc((size_t)(tokens + 1) * sizeof *ids);
    float *rows = guarded(tokens * k), *want = malloc((size_t)(tokens * k + 1) * sizeof(float));
    for (int64_t t = 0; t < tokens; t++) {
        ids[t] = (int32_t)(t * 31 % n);
        memcpy(want + t * k, l.values + ids[t] * k, (size_t)k * sizeof(float));
    }
    lk_tensor result = view(rows, tokens, k, k);
    CHECK_OK(lk_embed(be, &result, w, ids), lk_backend_error(be));
    snprintf(what, sizeof what, "%s %s embed N%lld K%lld", name, lk_dtype_name(type), (long long)n, (long long)k);
    check_same_bits(what, rows, want, (size_t)(tokens * k) * sizeof(float));
    check_guards(what, rows, tokens * k);
    free(ids);
    free(want);
    free(bias);
    free(in[0]);
    free(in[1]);
    lk_matrix_destroy(be, w);
    lk_backend_close(be);
    free_layer(&l);
}

static void layers(const lk_gemm *g, const char *name)
{
    static const lk_dtype types[] = {LK_NF4, LK_BF16, LK_F32, LK_F16};
    static const int64_t shapes[][3] = {{1, 16, 64},    {1, 1, 1},   {2, 33, 128},  {5, 48, 192},   {17, 65, 320},
                                        {12, 130, 172}, {3, 7, 5},   {33, 96, 640}, {1, 257, 1088}, {16, 40, 2112},
                                        {4, 1100, 64},  {0, 16, 64}, {40, 31, 33}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            check_layer(g, name, types[t], shapes[i][0], shapes[i][1], shapes[i][2], 1 + (int)(i % 3));
    check_layer(g, name, LK_NF4, 530, 70, 128, 2);
    check_layer(g, name, LK_NF4, 100, 20, 64, 4); /* more threads than columns: the rows are divided */
}

static void test_layers(void **state)
{
    (void)state;
    each_kernel(layers);
}

/* ---------------------------------------------------------------------------------------------- invariance */

/* Every row alone, in groups and all together, on one and on several threads: the same bits. */
static void check_invariance(const lk_gemm *g, const char *name, int64_t tokens, int64_t n, int64_t k, const int64_t steps[4],
                             int max_threads)
{
    layer l = make_layer(LK_NF4, n, k, g->compute);
    size_t x_bytes = (size_t)(tokens * k) * sizeof(float), y_bytes = (size_t)(tokens * n) * sizeof(float);
    float *x = malloc(x_bytes), *dy = malloc(y_bytes), *y = malloc(y_bytes), *dx = malloc(x_bytes);
    float *first_y = malloc(y_bytes), *first_dx = malloc(x_bytes);
    check_random random = {5};
    check_random_fill(&random, x, tokens * k, 1.0f);
    check_random_fill(&random, dy, tokens * n, 1.0f);
    for (int threads = 1; threads <= max_threads; threads += 2) {
        lk_backend *be = open_backend(g, threads, tokens, n > k ? n : k);
        lk_matrix *w;
        CHECK_OK(lk_matrix_create(be, &w, &l.source), lk_backend_error(be));
        for (int s = 0; s < 4; s++) {
            for (int64_t t = 0; t < tokens; t += steps[s]) {
                int64_t rows = tokens - t < steps[s] ? tokens - t : steps[s];
                lk_tensor xs = view(x + t * k, rows, k, k), ys = view(y + t * n, rows, n, n);
                lk_tensor dys = view(dy + t * n, rows, n, n), dxs = view(dx + t * k, rows, k, k);
                CHECK_OK(lk_linear(be, &ys, &xs, w, NULL, NULL), lk_backend_error(be));
                CHECK_OK(lk_linear_backward(be, &dxs, &dys, w, false), lk_backend_error(be));
            }
            char what[120];
            snprintf(what, sizeof what, "%s %lldx%lld, %d threads, %lld rows at a time", name, (long long)n, (long long)k, threads,
                     (long long)steps[s]);
            if (threads == 1 && s == 0) {
                memcpy(first_y, y, y_bytes);
                memcpy(first_dx, dx, x_bytes);
            }
            check_same_bits(what, y, first_y, y_bytes);
            check_same_bits(what, dx, first_dx, x_bytes);
        }
        lk_matrix_destroy(be, w);
        lk_backend_close(be);
    }
    free(x);
    free(dy);
    free(y);
    free(dx);
    free(first_y);
    free(first_dx);
    free_layer(&l);
}

/* One pass and many; rows few enough for panels of the first-level cache, and more; blocks of rows and what is left of them. */
static void invariance(const lk_gemm *g, const char *name)
{
    check_invariance(g, name, 40, 200, 1216, (int64_t[]){1, 3, 16, 40}, 5);
    check_invariance(g, name, 150, 40, 2240, (int64_t[]){50, 1, 129, 150}, 3);
    check_invariance(g, name, 9, 2100, 128, (int64_t[]){9, 1, 8, 4}, 3);
    check_invariance(g, name, 17, 75, 2112, (int64_t[]){17, 2, 5, 15}, 3); /* strips of every width, beside none */
}

static void product_invariance(const lk_gemm *g, const char *name)
{
    enum { M = 67, N = 90, K = 1500 };
    static float a[M * K], b[N * K], whole[M * N], c[M * N];
    check_random random = {6};
    check_random_fill(&random, a, M * K, 1.0f);
    check_random_fill(&random, b, N * K, 1.0f);
    void *scratch = aligned_alloc(64, lk_gemm_scratch_bytes(g));
    lk_gemm_product(g, whole, N, M, N, K, lk_factor_rows(a, LK_F32, K), lk_factor_rows(b, LK_F32, K), LK_GEMM_SET, scratch);
    for (int64_t i = 0; i < M; i += 5)
        for (int64_t j = 0; j < N; j += 7)
            lk_gemm_product(g, c + i * N + j, N, M - i < 5 ? M - i : 5, N - j < 7 ? N - j : 7, K, lk_factor_rows(a + i * K, LK_F32, K),
                            lk_factor_rows(b + j * K, LK_F32, K), LK_GEMM_SET, scratch);
    check_same_bits(name, c, whole, sizeof whole);
    free(scratch);
}

static void test_invariance(void **state)
{
    (void)state;
    each_kernel(invariance);
    each_kernel(product_invariance);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products), cmocka_unit_test(test_layers), cmocka_unit_test(test_invariance)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
