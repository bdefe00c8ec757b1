/* Gated activations (Shazeer 2020), and the two plain element operations. */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

/* The activation and its derivative at x. GELU is the tanh form of Hendrycks & Gimpel 2016. */
static double activate(lk_activation act, double x, double *derivative)
{
    if (act == LK_SILU) {
        double s = 1.0 / (1.0 + exp(-x));
        *derivative = s * (1.0 + x * (1.0 - s));
        return x * s;
    }
    const double root = 0.79788456080286535588, cubic = 0.044715; /* sqrt(2/pi) */
    double t = tanh(root * (x + cubic * x * x * x));
    *derivative = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * cubic * x * x);
    return 0.5 * x * (1.0 + t);
}

lk_status lk_ref_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act)
{
    (void)be;
    for (int64_t t = 0; t < gate->rows; t++)
        for (int64_t f = 0; f < gate->cols; f++) {
            double slope;
            lk_row(y, t)[f] = (float)activate(act, (double)lk_row(gate, t)[f], &slope) * lk_row(up, t)[f];
        }
    return LK_OK;
}

lk_status lk_ref_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                              const lk_tensor *up, lk_activation act)
{
    (void)be;
    for (int64_t t = 0; t < gate->rows; t++)
        for (int64_t f = 0; f < gate->cols; f++) {
            double slope, g = (double)lk_row(dy, t)[f], u = (double)lk_row(up, t)[f];
            double value = activate(act, (double)lk_row(gate, t)[f], &slope);
            lk_row(dgate, t)[f] = (float)(g * u * slope);
            lk_row(dup, t)[f] = (float)(g * value);
        }
    return LK_OK;
}

lk_status lk_ref_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t c = 0; c < y->cols; c++) lk_row(y, t)[c] += lk_row(x, t)[c];
    return LK_OK;
}

lk_status lk_ref_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t c = 0; c < y->cols; c++) lk_row(y, t)[c] = by * lk_row(x, t)[c];
    return LK_OK;
}

lk_status lk_ref_cap(lk_backend *be, const lk_tensor *y, float cap)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t c = 0; c < y->cols; c++) lk_row(y, t)[c] = (float)((double)cap * tanh((double)lk_row(y, t)[c] / (double)cap));
    return LK_OK;
}

lk_status lk_ref_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++) memcpy(lk_row(y, t), lk_row(x, rows[t]), (size_t)x->cols * sizeof(float));
    return LK_OK;
}
