/* What adapters do beside their factors: rows times a gain for every column, the norms behind the gains (DoRA), trained tokens. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/matrix.h"
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
        for (int64_t n = 0; a->gain && n < a->y->cols; n++) y[n] *= a->gain[n];
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

/* ---------------------------------------------------------------------------------------------- norms */

typedef struct norm_args {
    const lk_matrix *w;
    const lk_lora *l;
    const float *m;
    float *gain, *inverse_norm, *rows; /* rows: two of K for each thread */
} norm_args;

size_t lk_cpu_gain_scratch(const lk_backend *be, const lk_limits *l)
{
    return l->gains ? (size_t)be->threads * 2 * (size_t)l->width * sizeof(float) : 0;
}

static const void *row_of(const void *factor, lk_dtype type, int64_t at) { return (const char *)factor + at * lk_dtype_size(type); }

/* w[n] + scale b[n] a, in the order of the ranks. */
static void adapted_row(float *row, float *factor, const lk_matrix *w, const lk_lora *l, int64_t n)
{
    lk_cpu_matrix_unpack(w, n, n + 1, row);
    for (int64_t i = 0; i < l->rank; i++) {
        float b;
        lk_to_f32(&b, row_of(l->b, l->type, n * l->rank + i), l->type, 1);
        if (b == 0.0f) continue; /* a fresh adapter's */
        lk_to_f32(factor, row_of(l->a, l->type, i * w->k), l->type, w->k);
        b *= l->scale;
        for (int64_t k = 0; k < w->k; k++) row[k] += b * factor[k];
    }
}

static void norm_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const norm_args *a = context;
    float *row = a->rows + (int64_t)thread * 2 * a->w->k;
    for (int64_t n = begin; n < end; n++) {
        double sum = 0.0;
        adapted_row(row, row + a->w->k, a->w, a->l, n);
        for (int64_t k = 0; k < a->w->k; k++) sum += (double)row[k] * (double)row[k];
        a->inverse_norm[n] = (float)(1.0 / sqrt(sum > 1e-30 ? sum : 1e-30));
        if (a->gain) a->gain[n] = a->m[n] * a->inverse_norm[n];
    }
}

lk_status lk_cpu_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m)
{
    norm_args args = {.w = w, .l = l, .m = m, .gain = gain, .inverse_norm = inverse_norm};
    void *rows;
    LK_TRY(lk_cpu_scratch(be, "gain_norms", (size_t)be->threads * 2 * (size_t)w->k * sizeof(float), &rows));
    args.rows = rows;
    lk_pool_run(lk_cpu_of(be)->pool, w->n, 8, norm_rows, &args);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- tokens of its own */

/* Place of a token among some[n], or -1. */
static int64_t place_of(const int32_t *some, int64_t n, int32_t id)
{
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (some[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && some[low] == id ? low : -1;
}

lk_status lk_cpu_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++) {
        int64_t place = place_of(some, rows->n, ids[t]);
        if (place >= 0) lk_cpu_matrix_unpack(rows, place, place + 1, lk_row_of(y, t));
    }
    return LK_OK;
}

lk_status lk_cpu_clear(lk_backend *be, const lk_tensor *y)
{
    (void)be;
    for (int64_t t = 0; t < y->rows; t++) memset(lk_row_of(y, t), 0, (size_t)y->cols * sizeof(float));
    return LK_OK;
}
