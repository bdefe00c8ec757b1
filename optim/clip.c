#include "optim/clip.h"

#include <math.h>

lk_status lk_clip_norm(lk_backend *be, const float *grads, int64_t n, double max_norm, double *norm, float *scale, lk_error *err)
{
    double squares = 0.0;
    lk_status status = lk_sum_squares(be, &squares, grads, n);
    if (status) return lk_backend_fail(be, status, err);
    *norm = sqrt(squares);
    /* torch's epsilon: a zero gradient divides by something. */
    double coefficient = max_norm > 0.0 ? max_norm / (*norm + 1e-6) : 1.0;
    *scale = coefficient < 1.0 ? (float)coefficient : 1.0f;
    return LK_OK;
}
