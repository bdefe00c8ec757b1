/* DoRA's gain (Liu et al. 2024, equation 5): each column of a layer's output by its own factor. */
#include "kernels/cpu/reference/reference.h"

lk_status lk_ref_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t n = 0; n < y->cols; n++) {
            float value = lk_row(y, t)[n] * (gain ? gain[n] : 1.0f);
            if (bias) value += bias[n];
            if (residual) value += lk_row(residual, t)[n];
            lk_row(y, t)[n] = value;
        }
    return LK_OK;
}

lk_status lk_ref_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                               const float *inverse_norm)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t n = 0; n < y->cols; n++) {
            if (dm) dm[n] += inverse_norm[n] * lk_row(dy, t)[n] * lk_row(y, t)[n];
            lk_row(y, t)[n] = lk_row(dy, t)[n] * gain[n];
        }
    return LK_OK;
}
