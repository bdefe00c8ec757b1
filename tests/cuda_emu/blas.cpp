/* kernels/cuda/blas.h by plain loops: each value of the result is one fp32 sum over ascending k of the operands as stored, so its bits
 * depend on nothing else; then alpha, c, bias, and one rounding. Operands are brought into fp32 rows first, which lets the compiler work on
 * many columns at once. Every matrix must lie inside memory of the device, which cuBLASLt could not check. */
#include "kernels/cuda/blas.h"

#include <string.h>

#include <new>
#include <vector>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/control.h"

struct lk_blas {
    void *workspace; /* as in the real thing, so that plans count it; unused */
};

enum { WORKSPACE = 1 << 20 };
static const int64_t ROWS = 4; /* of the result at once */

size_t lk_blas_workspace_bytes(void) { return WORKSPACE; }

lk_status lk_blas_create(lk_blas **blas, const lk_rt_device *device, lk_error *err)
{
    (void)device;
    *blas = new (std::nothrow) lk_blas();
    if (!*blas) return lk_fail(err, LK_ERR_MEMORY, "no memory for the matrix products");
    lk_status status = lk_rt_malloc(&(*blas)->workspace, WORKSPACE, err);
    if (status) {
        delete *blas;
        *blas = NULL;
    }
    return status;
}

void lk_blas_destroy(lk_blas *blas)
{
    if (!blas) return;
    lk_rt_free(blas->workspace);
    delete blas;
}

/* ---- checks */

static lk_status check_matrix(const char *name, const void *p, lk_dtype type, int64_t rows, int64_t cols, int64_t ld, lk_error *err)
{
    int64_t size = lk_dtype_size(type);
    if (ld < cols)
        return lk_fail(err, LK_ERR_ARGUMENT, "product: leading dimension %lld of %s is less than its width %lld", (long long)ld, name,
                       (long long)cols);
    if ((uintptr_t)p % (size_t)size)
        return lk_fail(err, LK_ERR_ARGUMENT, "product: %s at %p is not aligned to its %lld-byte values", name, p, (long long)size);
    if (!lk_emu_is_device_range(p, (size_t)(((rows - 1) * ld + cols) * size)))
        return lk_fail(err, LK_ERR_INTERNAL,
                       "product: %s, [%lld,%lld] with leading dimension %lld at %p, is not inside memory of the device", name,
                       (long long)rows, (long long)cols, (long long)ld, p);
    return LK_OK;
}

static lk_status check(const lk_gemm *g, lk_error *err)
{
    if (g->m < 0 || g->n < 0 || g->k <= 0)
        return lk_fail(err, LK_ERR_ARGUMENT, "product of m %lld, n %lld, k %lld: sizes must be positive", (long long)g->m, (long long)g->n,
                       (long long)g->k);
    if ((g->type != LK_BF16 && g->type != LK_F32) || (g->d_type != LK_BF16 && g->d_type != LK_F32))
        return lk_fail(err, LK_ERR_ARGUMENT, "product of %s into %s: types are bf16 and f32", lk_dtype_name(g->type),
                       lk_dtype_name(g->d_type));
    if (g->m == 0 || g->n == 0) return LK_OK;
    bool ta = g->a_transposed, tb = g->b_transposed;
    LK_TRY(check_matrix("a", g->a, g->type, ta ? g->k : g->m, ta ? g->m : g->k, g->lda, err));
    LK_TRY(check_matrix("b", g->b, g->type, tb ? g->n : g->k, tb ? g->k : g->n, g->ldb, err));
    LK_TRY(check_matrix("d", g->d, g->d_type, g->m, g->n, g->ldd, err));
    if (g->beta != 0.0f && g->c) LK_TRY(check_matrix("c", g->c, g->d_type, g->m, g->n, g->ldc, err));
    if (g->bias) LK_TRY(check_matrix("bias", g->bias, g->d_type, 1, g->n, g->n, err));
    return LK_OK;
}

/* ---- the product */

static float value_of(const void *p, lk_dtype type, int64_t at)
{
    return type == LK_F32 ? ((const float *)p)[at] : lk_bf16_to_f32(((const uint16_t *)p)[at]);
}

/* out[rows,cols] of a matrix stored so, or the other way round. */
static std::vector<float> to_rows(const void *p, lk_dtype type, int64_t rows, int64_t cols, int64_t ld, bool transposed)
{
    std::vector<float> out((size_t)(rows * cols));
    int64_t stored_rows = transposed ? cols : rows, stored_cols = transposed ? rows : cols;
    for (int64_t r = 0; r < stored_rows; r++)
        for (int64_t c = 0; c < stored_cols; c++) out[(size_t)(transposed ? c * cols + r : r * cols + c)] = value_of(p, type, r * ld + c);
    return out;
}

/* sums[count,n] = a[count,k] b[k,n], a few rows at a time so that a row of b is read once for all of them. */
static void sum_rows(float *sums, const float *a, const float *b, int64_t count, int64_t n, int64_t k)
{
    memset(sums, 0, (size_t)(count * n) * sizeof(float));
    for (int64_t at = 0; at < k; at++) {
        const float *row = b + at * n;
        for (int64_t i = 0; i < count; i++) {
            float x = a[i * k + at], *sum = sums + i * n;
            for (int64_t j = 0; j < n; j++) sum[j] += x * row[j];
        }
    }
}

lk_status lk_blas_gemm(lk_blas *blas, const lk_gemm *g, lk_rt_stream stream, lk_error *err)
{
    LK_TRY(check(g, err));
    if (lk_emu_keeps(stream)) {
        lk_gemm kept = *g;
        lk_emu_keep_node(stream, [blas, kept](lk_error *later) { return lk_blas_gemm(blas, &kept, NULL, later); });
        return LK_OK;
    }
    if (g->m == 0 || g->n == 0) return LK_OK;
    std::vector<float> a = to_rows(g->a, g->type, g->m, g->k, g->lda, g->a_transposed);
    std::vector<float> b = to_rows(g->b, g->type, g->k, g->n, g->ldb, g->b_transposed);
    std::vector<float> sums((size_t)(ROWS * g->n));
    const void *c = g->c ? g->c : g->d;
    int64_t ldc = g->c ? g->ldc : g->ldd;
    for (int64_t first = 0; first < g->m; first += ROWS) {
        int64_t count = g->m - first < ROWS ? g->m - first : ROWS;
        sum_rows(sums.data(), a.data() + first * g->k, b.data(), count, g->n, g->k);
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < g->n; j++) {
                float x = g->alpha * sums[(size_t)(i * g->n + j)];
                if (g->beta != 0.0f) x += g->beta * value_of(c, g->d_type, (first + i) * ldc + j);
                if (g->bias) x += value_of(g->bias, g->d_type, j);
                int64_t at = (first + i) * g->ldd + j;
                if (g->d_type == LK_F32)
                    ((float *)g->d)[at] = x;
                else
                    ((uint16_t *)g->d)[at] = lk_f32_to_bf16(x);
            }
    }
    return LK_OK;
}
