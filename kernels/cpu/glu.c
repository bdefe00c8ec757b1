/* Gated activations, addition and gathering of rows. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct glu_args {
    const lk_rows *rows;
    const lk_tensor *y, *gate, *up, *dgate, *dup, *dy;
    lk_activation act;
} glu_args;

static void forward(void *context, int64_t begin, int64_t end, int thread)
{
    const glu_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        a->rows->glu(lk_row_of(a->y, t), lk_row_of(a->gate, t), lk_row_of(a->up, t), a->gate->cols, a->act);
}

lk_status lk_cpu_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    glu_args args = {.rows = lk_rows_get(cpu->tier), .y = y, .gate = gate, .up = up, .act = act};
    lk_pool_run(cpu->pool, gate->rows, lk_cpu_grain(gate->cols), forward, &args);
    return LK_OK;
}

static void backward(void *context, int64_t begin, int64_t end, int thread)
{
    const glu_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        a->rows->glu_backward(lk_row_of(a->dgate, t), lk_row_of(a->dup, t), lk_row_of(a->dy, t), lk_row_of(a->gate, t), lk_row_of(a->up, t),
                              a->gate->cols, a->act);
}

lk_status lk_cpu_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                              const lk_tensor *up, lk_activation act)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    glu_args args = {.rows = lk_rows_get(cpu->tier), .gate = gate, .up = up, .dgate = dgate, .dup = dup, .dy = dy, .act = act};
    lk_pool_run(cpu->pool, gate->rows, lk_cpu_grain(gate->cols), backward, &args);
    return LK_OK;
}

static void add_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const glu_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++) a->rows->add(lk_row_of(a->y, t), lk_row_of(a->up, t), a->y->cols);
}

lk_status lk_cpu_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    glu_args args = {.rows = lk_rows_get(cpu->tier), .y = y, .up = x};
    lk_pool_run(cpu->pool, y->rows, lk_cpu_grain(y->cols), add_rows, &args);
    return LK_OK;
}

typedef struct scale_args {
    const lk_rows *rows;
    const lk_tensor *y, *x;
    float by;
} scale_args;

static void scale_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const scale_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = lk_row_of(a->y, t);
        if (a->x->data != a->y->data) memcpy(y, lk_row_of(a->x, t), (size_t)a->y->cols * sizeof(float));
        a->rows->scale(y, a->by, a->y->cols);
    }
}

lk_status lk_cpu_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    scale_args args = {lk_rows_get(cpu->tier), y, x, by};
    lk_pool_run(cpu->pool, y->rows, lk_cpu_grain(y->cols), scale_rows, &args);
    return LK_OK;
}

static void cap_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const scale_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = lk_row_of(a->y, t);
        for (int64_t c = 0; c < a->y->cols; c++) y[c] = a->by * tanhf(y[c] / a->by);
    }
}

lk_status lk_cpu_cap(lk_backend *be, const lk_tensor *y, float cap)
{
    scale_args args = {.y = y, .by = cap};
    lk_pool_run(lk_cpu_of(be)->pool, y->rows, 1, cap_rows, &args);
    return LK_OK;
}

typedef struct gather_args {
    const lk_tensor *y, *x;
    const int32_t *rows;
} gather_args;

static void gather(void *context, int64_t begin, int64_t end, int thread)
{
    const gather_args *a = context;
    (void)thread;
    for (int64_t t = begin; t < end; t++) memcpy(lk_row_of(a->y, t), lk_row_of(a->x, a->rows[t]), (size_t)a->x->cols * sizeof(float));
}

lk_status lk_cpu_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows)
{
    gather_args args = {y, x, rows};
    lk_pool_run(lk_cpu_of(be)->pool, y->rows, lk_cpu_grain(x->cols), gather, &args);
    return LK_OK;
}
