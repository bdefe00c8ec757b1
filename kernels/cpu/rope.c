/* Rotary positions. The table is worked out once per batch and costs two library calls a pair; the rotation is what every layer pays. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct table_args {
    const lk_tensor *cos_sin;
    const int32_t *positions;
    const float *inv_freq;
    float factor;
} table_args;

static void table_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const table_args *a = context;
    int64_t half = a->cos_sin->cols / 2;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *row = lk_row_of(a->cos_sin, t);
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)a->positions[t] * a->inv_freq[i];
            row[i] = a->factor * (float)cos((double)angle); /* in double: an angle of 100000 leaves fp32 libraries astray */
            row[half + i] = a->factor * (float)sin((double)angle);
        }
    }
}

lk_status lk_cpu_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor)
{
    table_args args = {cos_sin, positions, inv_freq, factor};
    lk_pool_run(lk_cpu_of(be)->pool, cos_sin->rows, 4, table_rows, &args);
    return LK_OK;
}

typedef struct rope_args {
    const lk_rows *rows;
    const lk_tensor *x, *cos_sin;
    int64_t heads;
    bool backward;
} rope_args;

static void rope_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const rope_args *a = context;
    int64_t head_dim = a->x->cols / a->heads, half = a->cos_sin->cols / 2;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *row = lk_row_of(a->x, t);
        const float *cosine = lk_row_of(a->cos_sin, t);
        for (int64_t h = 0; h < a->heads; h++, row += head_dim) a->rows->rotate(row, row + half, cosine, cosine + half, half, a->backward);
    }
}

lk_status lk_cpu_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    rope_args args = {lk_rows_get(cpu->tier), x, cos_sin, heads, backward};
    lk_pool_run(cpu->pool, x->rows, lk_cpu_grain(x->cols), rope_rows, &args);
    return LK_OK;
}
