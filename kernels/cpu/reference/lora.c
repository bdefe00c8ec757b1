/* LoRA as its paper writes it, one row at a time. When compute is BF16 every product takes both factors rounded to bf16, the scale
 * folded into h or dy before that. */
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/reference/reference.h"

size_t lk_ref_lora_scratch(const lk_limits *limits)
{
    return 2 * lk_carved((size_t)limits->width * sizeof(float)) + lk_carved((size_t)limits->rank * sizeof(float));
}

typedef struct row_buffers {
    float *x;       /* [K] drop(x), rounded */
    float *factors; /* [K] dropout */
    float *dh;      /* [R] */
} row_buffers;

static lk_status buffers(lk_backend *be, row_buffers *b, int64_t k, int64_t rank)
{
    void *rest;
    LK_TRY(lk_cpu_scratch(be, "lora", 2 * lk_carved((size_t)k * sizeof(float)) + lk_carved((size_t)rank * sizeof(float)), &rest));
    b->x = lk_carve(&rest, (size_t)k * sizeof(float));
    b->factors = lk_carve(&rest, (size_t)k * sizeof(float));
    b->dh = lk_carve(&rest, (size_t)rank * sizeof(float));
    return LK_OK;
}

static float factor(const lk_backend *be, const lk_lora *l, const void *matrix, int64_t at)
{
    return l->type == LK_BF16 ? lk_bf16_to_f32(((const uint16_t *)matrix)[at]) : lk_cpu_round(be, ((const float *)matrix)[at]);
}

static void dropped(const lk_backend *be, const row_buffers *b, const float *x, int64_t k, const lk_dropout *dropout, int32_t site,
                    int64_t t)
{
    for (int64_t i = 0; i < k; i++) b->factors[i] = 1.0f;
    if (lk_dropout_active(dropout)) lk_dropout_factors(b->factors, LK_CPU_REFERENCE, dropout, site, t, k, 0, k);
    for (int64_t i = 0; i < k; i++) b->x[i] = lk_cpu_round(be, x[i] * b->factors[i]);
}

static const lk_lora *segment_lora(const lk_batch *batch, int32_t site, const lk_segment *s)
{
    if (s->adapter < 0) return NULL;
    const lk_lora *l = &batch->lora[(int64_t)site * batch->n_adapters + s->adapter];
    return l->rank > 0 ? l : NULL;
}

lk_status lk_ref_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_tensor *h, const lk_dropout *dropout)
{
    row_buffers b;
    LK_TRY(buffers(be, &b, x->cols, h->cols));
    for (int64_t s = 0; s < batch->n_segments; s++) {
        const lk_lora *l = segment_lora(batch, site, &batch->segments[s]);
        if (!l) continue;
        for (int64_t t = batch->segments[s].begin; t < batch->segments[s].end; t++) {
            float *hidden = lk_row(h, t), *out = lk_row(y, t);
            dropped(be, &b, lk_row(x, t), x->cols, dropout, site, t);
            for (int64_t r = 0; r < l->rank; r++) {
                double sum = 0.0;
                for (int64_t k = 0; k < x->cols; k++) sum += (double)b.x[k] * factor(be, l, l->a, r * x->cols + k);
                hidden[r] = (float)sum;
            }
            for (int64_t n = 0; n < y->cols; n++) {
                double sum = 0.0;
                for (int64_t r = 0; r < l->rank; r++)
                    sum += (double)lk_cpu_round(be, l->scale * hidden[r]) * factor(be, l, l->b, n * l->rank + r);
                out[n] += (float)sum;
            }
        }
    }
    return LK_OK;
}

/* One row: dh, then what it adds to db, da and dx. */
static void backward_row(const lk_backend *be, const lk_lora *l, const row_buffers *b, float *dx, const float *dy, const float *h,
                         int64_t n_out, int64_t width)
{
    for (int64_t r = 0; r < l->rank; r++) {
        double sum = 0.0;
        for (int64_t n = 0; n < n_out; n++) sum += (double)lk_cpu_round(be, l->scale * dy[n]) * factor(be, l, l->b, n * l->rank + r);
        b->dh[r] = (float)sum;
    }
    for (int64_t n = 0; n < n_out && l->db; n++)
        for (int64_t r = 0; r < l->rank; r++) l->db[n * l->rank + r] += lk_cpu_round(be, dy[n]) * lk_cpu_round(be, l->scale * h[r]);
    for (int64_t r = 0; r < l->rank; r++) b->dh[r] = lk_cpu_round(be, b->dh[r]);
    for (int64_t r = 0; r < l->rank && l->da; r++)
        for (int64_t k = 0; k < width; k++) l->da[r * width + k] += b->dh[r] * b->x[k];
    for (int64_t k = 0; k < width && dx; k++) {
        double sum = 0.0;
        for (int64_t r = 0; r < l->rank; r++) sum += (double)b->dh[r] * factor(be, l, l->a, r * width + k);
        dx[k] += b->factors[k] * (float)sum;
    }
}

lk_status lk_ref_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                               const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    row_buffers b;
    LK_TRY(buffers(be, &b, x->cols, h->cols));
    for (int64_t s = 0; s < batch->n_segments; s++) {
        const lk_lora *l = segment_lora(batch, site, &batch->segments[s]);
        if (!l) continue;
        for (int64_t t = batch->segments[s].begin; t < batch->segments[s].end; t++) {
            dropped(be, &b, lk_row(x, t), x->cols, dropout, site, t);
            backward_row(be, l, &b, dx ? lk_row(dx, t) : NULL, lk_row(dy, t), lk_row(h, t), dy->cols, x->cols);
        }
    }
    return LK_OK;
}

lk_status lk_ref_drop(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout)
{
    (void)be;
    for (int64_t t = 0; t < x->rows; t++)
        for (int64_t k = 0; k < x->cols; k += 4) {
            float factors[4];
            int64_t n = x->cols - k < 4 ? x->cols - k : 4;
            lk_dropout_factors(factors, LK_CPU_REFERENCE, dropout, site, t, x->cols, k, n);
            for (int64_t i = 0; i < n; i++) lk_row(y, t)[k + i] = lk_row(x, t)[k + i] * factors[i];
        }
    return LK_OK;
}
