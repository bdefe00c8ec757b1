/* AdamW in the order of operations of torch.optim.AdamW (single tensor, no amsgrad). */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

lk_status lk_ref_sum_squares(lk_backend *be, double *out, const float *x, int64_t n)
{
    (void)be;
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    *out = sum;
    return LK_OK;
}

lk_status lk_ref_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step)
{
    (void)be;
    double first = 1.0 - pow((double)step->beta1, (double)step->step), second = 1.0 - pow((double)step->beta2, (double)step->step);
    float rate = (float)((double)step->lr / first), root = (float)sqrt(second),
          decay = (float)(1.0 - (double)step->lr * (double)step->weight_decay);
    for (int64_t i = 0; i < n; i++) {
        float gradient = g[i] * step->grad_scale;
        m[i] = step->beta1 * m[i] + (1.0f - step->beta1) * gradient;
        v[i] = step->beta2 * v[i] + (1.0f - step->beta2) * gradient * gradient;
        p[i] = p[i] * decay - rate * (m[i] / (sqrtf(v[i]) / root + step->eps));
    }
    return LK_OK;
}
