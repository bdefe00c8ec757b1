/* Products with a frozen matrix, row by row of the weights as kernels/cpu/matrix.h unpacks them. */
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/reference/reference.h"

size_t lk_ref_linear_scratch(const lk_limits *limits) { return (size_t)limits->width * sizeof(float); }

lk_status lk_ref_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                        const lk_tensor *residual)
{
    void *scratch;
    LK_TRY(lk_cpu_scratch(be, "linear", (size_t)w->k * sizeof(float), &scratch));
    float *weights = scratch;
    for (int64_t n = 0; n < w->n; n++) {
        lk_cpu_matrix_unpack(w, n, n + 1, weights);
        for (int64_t t = 0; t < x->rows; t++) {
            const float *in = lk_row(x, t);
            double sum = 0.0;
            for (int64_t k = 0; k < w->k; k++) sum += (double)lk_cpu_round(be, in[k]) * weights[k];
            lk_row(y, t)[n] = (float)sum + (bias ? bias[n] : 0.0f) + (residual ? lk_row(residual, t)[n] : 0.0f);
        }
    }
    return LK_OK;
}

lk_status lk_ref_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate)
{
    void *scratch;
    LK_TRY(lk_cpu_scratch(be, "linear_backward", (size_t)w->k * sizeof(float), &scratch));
    float *weights = scratch;
    for (int64_t t = 0; t < dx->rows && !accumulate; t++) memset(lk_row(dx, t), 0, (size_t)w->k * sizeof(float));
    for (int64_t n = 0; n < w->n; n++) {
        lk_cpu_matrix_unpack(w, n, n + 1, weights);
        for (int64_t t = 0; t < dx->rows; t++) {
            float g = lk_cpu_round(be, lk_row(dy, t)[n]), *out = lk_row(dx, t);
            for (int64_t k = 0; k < w->k; k++) out[k] += g * weights[k];
        }
    }
    return LK_OK;
}

lk_status lk_ref_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++) lk_cpu_matrix_unpack(table, ids[t], (int64_t)ids[t] + 1, lk_row(y, t));
    return LK_OK;
}
