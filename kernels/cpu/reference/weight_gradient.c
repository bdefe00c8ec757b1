/* Gradients of what is trained as a whole. */
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/reference/reference.h"

lk_status lk_ref_add_columns(lk_backend *be, float *sums, const lk_tensor *x, float by)
{
    (void)be;
    for (int64_t t = 0; t < x->rows; t++)
        for (int64_t n = 0; n < x->cols; n++) sums[n] += by * lk_row(x, t)[n];
    return LK_OK;
}

lk_status lk_ref_weight_gradient(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by)
{
    for (int64_t n = 0; n < dy->cols; n++)
        for (int64_t k = 0; k < x->cols; k++) {
            double sum = 0.0;
            for (int64_t t = 0; t < dy->rows; t++)
                sum += (double)lk_cpu_round(be, lk_row(dy, t)[n]) * (double)lk_cpu_round(be, by * lk_row(x, t)[k]);
            dw[n * x->cols + k] += (float)sum;
        }
    return LK_OK;
}

lk_status lk_ref_embed_backward(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids)
{
    (void)be;
    (void)n;
    for (int64_t t = 0; t < dy->rows; t++)
        for (int64_t c = 0; c < dy->cols && ids[t] >= 0; c++) dtable[ids[t] * dy->cols + c] += lk_row(dy, t)[c];
    return LK_OK;
}

lk_status lk_ref_matrix_set(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows)
{
    (void)be;
    for (int64_t i = 0; i < n; i++) lk_cpu_matrix_pack(w, ids ? ids[i] : i, rows + i * w->k);
    return LK_OK;
}
