/* AdamW against a plain loop in double, any partition the same bits, and sums of squares. */
#include "tests/kernels/ops_check.h"

static const int64_t sizes[] = {0, 1, 7, 16, 1009, 65537};
enum { N_SIZES = 6, STEPS = 5 };

static void fill_gradient(float *g, int64_t n, int step)
{
    check_random r = {(uint64_t)(step + 1) * 77};
    check_random_fill(&r, g, n, step % 2 ? 1e-3f : 2.0f);
    if (n > 3) g[3] = 0.0f;
}

static const lk_adamw_step settings = {.lr = 3e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .grad_scale = 0.7f};

/* Loshchilov & Hutter, algorithm 2, as torch arranges it. */
static void plain(double *p, double *m, double *v, const float *g, int64_t n, int step)
{
    const lk_adamw_step *s = &settings;
    for (int64_t i = 0; i < n; i++) {
        double gradient = (double)(g[i] * s->grad_scale);
        p[i] *= 1.0 - (double)s->lr * (double)s->weight_decay;
        m[i] = (double)s->beta1 * m[i] + (1.0 - (double)s->beta1) * gradient;
        v[i] = (double)s->beta2 * v[i] + (1.0 - (double)s->beta2) * gradient * gradient;
        double mean = m[i] / (1.0 - pow((double)s->beta1, step)), root = sqrt(v[i]) / sqrt(1.0 - pow((double)s->beta2, step));
        p[i] -= (double)s->lr * mean / (root + (double)s->eps);
    }
}

/* p, m, v after STEPS steps, one after another in one array. */
static float *run(lk_backend *be, int64_t n, int64_t piece)
{
    float *all = calloc((size_t)(3 * n + 1), sizeof(float)), *start = random_floats(5, n, 1.0f),
          *g = malloc((size_t)(n + 1) * sizeof(float));
    memcpy(all, start, (size_t)n * 4);
    for (int step = 1; step <= STEPS; step++) {
        lk_adamw_step s = settings;
        s.step = step;
        fill_gradient(g, n, step);
        for (int64_t at = 0; at < n; at += piece) {
            int64_t count = n - at < piece ? n - at : piece;
            OP(be, lk_adamw(be, all + at, g + at, all + n + at, all + 2 * n + at, count, &s));
        }
    }
    free(start);
    free(g);
    return all;
}

static void test_adamw(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++)
        for (int i = 0; i < N_SIZES; i++) {
            lk_backend *one = open_tier(all_tiers[tier], 1, LK_F32), *three = open_tier(all_tiers[tier], 3, LK_F32);
            if (!one) continue;
            int64_t n = sizes[i];
            float *got = run(one, n, n + 1), *pieces = run(three, n, 1001), *start = random_floats(5, n, 1.0f),
                  *g = malloc((size_t)(n + 1) * sizeof(float));
            check_same_bits("adamw in pieces on three threads", pieces, got, (size_t)(3 * n) * 4);
            double *want = calloc((size_t)(3 * n + 1), sizeof(double));
            for (int64_t j = 0; j < n; j++) want[j] = (double)start[j];
            for (int step = 1; step <= STEPS; step++) {
                fill_gradient(g, n, step);
                plain(want, want + n, want + 2 * n, g, n, step);
            }
            float *rounded = malloc((size_t)(3 * n + 1) * sizeof(float));
            for (int64_t j = 0; j < 3 * n; j++) rounded[j] = (float)want[j];
            check_close("adamw", got, rounded, 3 * n, 1e-6, 3e-6); /* five fp32 updates of numbers near 1 */
            void *blocks[] = {got, pieces, start, g, want, rounded};
            for (int j = 0; j < 6; j++) free(blocks[j]);
            lk_backend_close(one);
            lk_backend_close(three);
        }
}

static void test_sum_squares(void **state)
{
    (void)state;
    for (int tier = 0; tier < N_TIERS; tier++)
        for (int i = 0; i < N_SIZES; i++) {
            double first = 0.0, want = 0.0;
            float *x = random_floats(9, sizes[i], 3.0f);
            for (int64_t j = 0; j < sizes[i]; j++) want += (double)x[j] * (double)x[j];
            for (int threads = 1; threads <= 3; threads++) {
                lk_backend *be = open_tier(all_tiers[tier], threads, LK_F32);
                double got;
                if (!be) continue;
                OP(be, lk_sum_squares(be, &got, x, sizes[i]));
                if (threads == 1) first = got;
                assert_true(got == first);
                assert_true(fabs(got - want) <= 1e-13 * want * (double)(1 + sizes[i] / 1000));
                lk_backend_close(be);
            }
            free(x);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adamw), cmocka_unit_test(test_sum_squares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
