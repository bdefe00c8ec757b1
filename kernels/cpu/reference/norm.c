/* RMSNorm and its gradient (Zhang & Sennrich 2019; the gradient by hand in the contract). */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

lk_status lk_ref_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps)
{
    (void)be;
    for (int64_t t = 0; t < x->rows; t++) {
        const float *in = lk_row(x, t);
        float *out = lk_row(y, t);
        double sum = 0.0;
        for (int64_t c = 0; c < x->cols; c++) sum += (double)in[c] * in[c];
        float r = (float)(1.0 / sqrt(sum / (double)x->cols + (double)eps));
        for (int64_t c = 0; c < x->cols; c++) out[c] = in[c] * r * weight[c];
        if (rstd) rstd[t] = r;
    }
    return LK_OK;
}

lk_status lk_ref_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                                  const float *rstd, bool accumulate)
{
    (void)be;
    for (int64_t t = 0; t < x->rows; t++) {
        const float *in = lk_row(x, t), *g = lk_row(dy, t);
        float *out = lk_row(dx, t), r = rstd[t];
        double dot = 0.0;
        for (int64_t c = 0; c < x->cols; c++) dot += (double)g[c] * weight[c] * in[c];
        float mean = (float)(dot / (double)x->cols);
        for (int64_t c = 0; c < x->cols; c++) {
            float d = r * (g[c] * weight[c] - in[c] * r * r * mean);
            out[c] = accumulate ? out[c] + d : d;
        }
    }
    return LK_OK;
}
