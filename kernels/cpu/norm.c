/* RMSNorm both ways, rows shared among the threads. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct norm_args {
    const lk_rows *rows;
    const lk_tensor *y, *x, *dy;
    const float *weight;
    float *rstd;
    const float *rstd_in;
    float eps;
    bool accumulate;
} norm_args;

static void forward(void *context, int64_t begin, int64_t end, int thread)
{
    const norm_args *a = context;
    int64_t width = a->x->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *x = lk_row_of(a->x, t);
        float r = 1.0f / sqrtf(a->rows->sum_squares(x, width) / (float)width + a->eps);
        a->rows->norm(lk_row_of(a->y, t), x, a->weight, r, width);
        if (a->rstd) a->rstd[t] = r;
    }
}

lk_status lk_cpu_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    norm_args args = {.rows = lk_rows_get(cpu->tier), .y = y, .x = x, .weight = weight, .rstd = rstd, .eps = eps};
    lk_pool_run(cpu->pool, x->rows, lk_cpu_grain(x->cols), forward, &args);
    return LK_OK;
}

static void backward(void *context, int64_t begin, int64_t end, int thread)
{
    const norm_args *a = context;
    int64_t width = a->x->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *x = lk_row_of(a->x, t), *dy = lk_row_of(a->dy, t);
        float r = a->rstd_in[t], mean = a->rows->dot3(dy, a->weight, x, width) / (float)width;
        a->rows->norm_backward(lk_row_of(a->y, t), dy, x, a->weight, r, r * r * mean, width, a->accumulate);
    }
}

lk_status lk_cpu_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                                  const float *rstd, bool accumulate)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    norm_args args = {
        .rows = lk_rows_get(cpu->tier), .y = dx, .x = x, .dy = dy, .weight = weight, .rstd_in = rstd, .accumulate = accumulate};
    lk_pool_run(cpu->pool, x->rows, lk_cpu_grain(x->cols), backward, &args);
    return LK_OK;
}
