/* Rows times a gain for every column: DoRA. */
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct gain_args {
    const lk_tensor *y, *residual, *dy;
    const float *gain, *bias, *inverse_norm;
    float *dm;
} gain_args;

static void forward(void *context, int64_t begin, int64_t end, int thread)
{
    const gain_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = lk_row_of(a->y, t);
        const float *residual = a->residual ? lk_row_of(a->residual, t) : NULL;
        for (int64_t n = 0; n < a->y->cols; n++) y[n] *= a->gain[n];
        for (int64_t n = 0; a->bias && n < a->y->cols; n++) y[n] += a->bias[n];
        for (int64_t n = 0; residual && n < a->y->cols; n++) y[n] += residual[n];
    }
}

lk_status lk_cpu_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    gain_args args = {.y = y, .gain = gain, .bias = bias, .residual = residual};
    lk_pool_run(cpu->pool, y->rows, lk_cpu_grain(y->cols), forward, &args);
    return LK_OK;
}

/* Columns are shared out, so that each sum runs over the rows in their order. */
static void backward(void *context, int64_t begin, int64_t end, int thread)
{
    const gain_args *a = context;
    (void)thread;
    for (int64_t t = 0; t < a->y->rows; t++) {
        float *y = lk_row_of(a->y, t);
        const float *dy = lk_row_of(a->dy, t);
        for (int64_t n = begin; n < end; n++) {
            if (a->dm) a->dm[n] += a->inverse_norm[n] * dy[n] * y[n];
            y[n] = dy[n] * a->gain[n];
        }
    }
}

lk_status lk_cpu_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                               const float *inverse_norm)
{
    gain_args args = {.y = y, .dy = dy, .gain = gain, .dm = dm, .inverse_norm = inverse_norm};
    lk_pool_run(lk_cpu_of(be)->pool, y->cols, 64, backward, &args);
    return LK_OK;
}
