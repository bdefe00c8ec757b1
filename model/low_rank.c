/* B A with R much smaller than N and K: A^T = Q T by Gram-Schmidt (twice, which is enough: Kahan and Parlett), then one-sided Jacobi
 * (Hestenes 1958) on the columns of C = B T^T, which gives C = U S V^T, and so B A = U S (Q V)^T. No LAPACK: the matrices are thin, and a
 * library's threads and instruction sets would decide the last bits. */
#include "model/low_rank.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

enum { MAX_SWEEPS = 60 };

static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* Columns are rows of memory here: q[r][K] orthonormal (or zero), t[r][c] with a_r = sum_c t[r][c] q_c. */
static void orthogonalise(double *q, double *t, const float *a, int64_t k, int32_t r)
{
    for (int32_t i = 0; i < r; i++) {
        double *row = q + i * k;
        for (int64_t j = 0; j < k; j++) row[j] = a[i * k + j];
        double before = sqrt(dot(row, row, k));
        for (int pass = 0; pass < 2; pass++)
            for (int32_t c = 0; c < i; c++) {
                double part = dot(row, q + c * k, k);
                t[i * r + c] += part;
                for (int64_t j = 0; j < k; j++) row[j] -= part * q[c * k + j];
            }
        double length = sqrt(dot(row, row, k));
        bool nothing = length <= 1e-13 * before || length == 0; /* depends on the rows before it */
        t[i * r + i] = nothing ? 0 : length;
        for (int64_t j = 0; j < k; j++) row[j] = nothing ? 0 : row[j] / length;
    }
}

static void rotate(double *x, double *y, int64_t n, double c, double s)
{
    for (int64_t i = 0; i < n; i++) {
        double u = x[i], v = y[i];
        x[i] = c * u - s * v;
        y[i] = s * u + c * v;
    }
}

/* Makes the rows of c[r][n] orthogonal; v[r][r] collects the rotations. */
static void jacobi(double *c, double *v, int64_t n, int32_t r)
{
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        bool settled = true;
        for (int32_t i = 0; i < r; i++)
            for (int32_t j = i + 1; j < r; j++) {
                double alpha = dot(c + i * n, c + i * n, n), beta = dot(c + j * n, c + j * n, n), gamma = dot(c + i * n, c + j * n, n);
                if (fabs(gamma) <= 1e-15 * sqrt(alpha * beta) || gamma == 0) continue;
                settled = false;
                double zeta = (beta - alpha) / (2 * gamma), tangent = (zeta >= 0 ? 1 : -1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double cosine = 1 / sqrt(1 + tangent * tangent);
                rotate(c + i * n, c + j * n, n, cosine, cosine * tangent);
                rotate(v + i * r, v + j * r, r, cosine, cosine * tangent);
            }
        if (settled) return;
    }
}

/* Row numbers of c by falling length; equal ones in their order. */
static void order_by_length(int32_t *order, const double *c, int64_t n, int32_t r)
{
    for (int32_t i = 0; i < r; i++) {
        double length = dot(c + i * n, c + i * n, n);
        int32_t at = i;
        for (; at > 0 && dot(c + order[at - 1] * n, c + order[at - 1] * n, n) < length; at--) order[at] = order[at - 1];
        order[at] = i;
    }
}

lk_status lk_low_rank(float *out_a, float *out_b, int32_t rank, const float *a, const float *b, int64_t n, int64_t k, int32_t r,
                      lk_error *err)
{
    double *q = calloc((size_t)(r * k), sizeof *q), *t = calloc((size_t)(r * r), sizeof *t), *c = calloc((size_t)(r * n), sizeof *c),
           *v = calloc((size_t)(r * r), sizeof *v);
    int32_t *order = calloc((size_t)r, sizeof *order);
    lk_status status = LK_OK;
    if (!q || !t || !c || !v || !order) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for a decomposition of rank %d", r);
        goto out;
    }
    orthogonalise(q, t, a, k, r);
    for (int32_t j = 0; j < r; j++) {
        v[j * r + j] = 1;
        for (int64_t i = 0; i < n; i++)
            for (int32_t x = j; x < r; x++) c[j * n + i] += (double)b[i * r + x] * t[x * r + j];
    }
    jacobi(c, v, n, r);
    order_by_length(order, c, n, r);
    for (int32_t x = 0; x < rank; x++) {
        const double *left = x < r ? c + order[x] * n : NULL, *turn = x < r ? v + order[x] * r : NULL;
        for (int64_t i = 0; i < n; i++) out_b[i * rank + x] = left ? (float)left[i] : 0.0f;
        for (int64_t j = 0; j < k; j++) {
            double sum = 0;
            for (int32_t y = 0; turn && y < r; y++) sum += turn[y] * q[y * k + j];
            out_a[x * k + j] = (float)sum;
        }
    }
out:
    free(q);
    free(t);
    free(c);
    free(v);
    free(order);
    return status;
}
