/* Attention over the cache, one query at a time. */
#include <math.h>

#include "kernels/cpu/kv.h"
#include "kernels/cpu/reference/reference.h"

static double cached(const lk_kv_shape *s, char *tile, int64_t at, int which, int64_t inside)
{
    if (s->type == LK_F32) return (double)((const float *)(void *)tile)[at];
    if (s->type == LK_BF16) return (double)lk_bf16_to_f32(((const uint16_t *)(void *)tile)[at]);
    return (double)((const int8_t *)tile)[at] * (double)lk_kv_scales(s, tile, which)[inside];
}

/* One query head of the token at `position`. */
static void row(const lk_attention_shape *s, const lk_kv *kv, int32_t layer, const int32_t *pages, int64_t position, int64_t kv_head,
                float *o, const float *q, double *p)
{
    const lk_kv_shape *shape = &kv->shape;
    int64_t first = s->window > 0 && position - s->window + 1 > 0 ? position - s->window + 1 : 0;
    double top = -INFINITY, sum = 0.0;
    for (int64_t j = first; j <= position; j++) {
        char *tile = lk_kv_tile(kv, pages[j / shape->page_tokens], layer, kv_head);
        int64_t inside = j % shape->page_tokens;
        double score = 0.0;
        for (int64_t d = 0; d < s->head_dim; d++) score += (double)q[d] * cached(shape, tile, lk_kv_key_at(shape, inside, d), 0, inside);
        p[j] = score * (double)s->scale;
        if (s->cap > 0.0f) p[j] = (double)s->cap * tanh(p[j] / (double)s->cap);
        if (p[j] > top) top = p[j];
    }
    for (int64_t j = first; j <= position; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t d = 0; d < s->head_dim; d++) {
        double out = 0.0;
        for (int64_t j = first; j <= position; j++) {
            int64_t inside = j % shape->page_tokens;
            out += p[j] * cached(shape, lk_kv_tile(kv, pages[j / shape->page_tokens], layer, kv_head), lk_kv_value_at(shape, inside, d), 1,
                                 inside);
        }
        o[d] = (float)(out / sum);
    }
}

lk_status lk_ref_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *s, const lk_tensor *o, const lk_tensor *q,
                                 const lk_kv *kv, int32_t layer)
{
    for (int64_t i = 0; i < batch->n_sequences; i++) {
        const lk_sequence *sequence = &batch->sequences[i];
        void *p;
        LK_TRY(lk_cpu_scratch(be, "paged_attention", (size_t)sequence->length * sizeof(double), &p));
        for (int64_t n = 0; n < sequence->count; n++)
            for (int64_t h = 0; h < s->heads; h++)
                row(s, kv, layer, sequence->pages, sequence->length - sequence->count + n, h / (s->heads / s->kv_heads),
                    lk_row(o, sequence->begin + n) + h * s->head_dim, lk_row(q, sequence->begin + n) + h * s->head_dim, p);
    }
    return LK_OK;
}
