/* Makes the KV cache and writes into it. Writing is a transposition of single rows, threads share it by rows. */
#include "kernels/cpu/kv.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

size_t lk_cpu_kv_page_bytes(const lk_backend *be, const lk_kv_shape *s)
{
    (void)be;
    return ((size_t)s->n_layers * (size_t)s->kv_heads * (size_t)lk_kv_tile_bytes(s) + 63) / 64 * 64;
}

lk_status lk_cpu_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape)
{
    lk_kv *made = calloc(1, sizeof *made);
    if (!made) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a KV cache");
    made->shape = *shape;
    made->page_bytes = lk_cpu_kv_page_bytes(be, shape);
    lk_status status = lk_alloc(be, (size_t)shape->n_pages * made->page_bytes, &made->data);
    if (status) {
        free(made);
        return status;
    }
    *kv = made;
    return LK_OK;
}

void lk_cpu_kv_destroy(lk_backend *be, lk_kv *kv)
{
    lk_free(be, kv->data);
    free(kv);
}

/* The scale of one head's key or value in 8 bits, and what its elements are multiplied by. NaN and infinities make the scale NaN, so
 * that they show where they are read. */
static float scale_of(float *scale, const float *x, int64_t n)
{
    float most = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        most = size > most ? size : most;
        finite = finite && size <= FLT_MAX;
    }
    *scale = finite ? most / 127.0f : NAN;
    return finite && most > 0.0f ? 127.0f / most : 0.0f;
}

static int8_t code_of(float x, float inverse)
{
    float code = rintf(x * inverse);
    if (!(code > -127.0f)) return inverse > 0.0f ? -127 : 0;
    return (int8_t)(code < 127.0f ? code : 127.0f);
}

typedef struct write_args {
    const lk_batch *batch;
    const lk_kv *kv;
    int32_t layer;
    const lk_tensor *k, *v;
} write_args;

/* One head's key or value into its place: elements `stride` apart from `at` on. */
static void store(char *tile, const lk_kv_shape *s, int64_t at, int64_t stride, float *scale, const float *x)
{
    if (s->type == LK_F32) {
        for (int64_t d = 0; d < s->head_dim; d++) ((float *)(void *)tile)[at + d * stride] = x[d];
    } else if (s->type == LK_BF16) {
        for (int64_t d = 0; d < s->head_dim; d++) ((uint16_t *)(void *)tile)[at + d * stride] = lk_f32_to_bf16(x[d]);
    } else {
        float inverse = scale_of(scale, x, s->head_dim);
        for (int64_t d = 0; d < s->head_dim; d++) ((int8_t *)tile)[at + d * stride] = code_of(x[d], inverse);
    }
}

/* Rows [begin, end) of one sequence. */
static void write_rows(const write_args *a, const lk_sequence *q, int64_t begin, int64_t end)
{
    const lk_kv_shape *s = &a->kv->shape;
    for (int64_t row = begin; row < end; row++) {
        int64_t position = q->length - q->count + (row - q->begin), inside = position % s->page_tokens;
        const float *k = (const float *)a->k->data + row * a->k->stride, *v = (const float *)a->v->data + row * a->v->stride;
        for (int64_t g = 0; g < s->kv_heads; g++) {
            char *tile = lk_kv_tile(a->kv, q->pages[position / s->page_tokens], a->layer, g);
            store(tile, s, lk_kv_key_at(s, inside, 0), LK_KV_LANES, lk_kv_scales(s, tile, 0) + inside, k + g * s->head_dim);
            store(tile, s, lk_kv_value_at(s, inside, 0), 1, lk_kv_scales(s, tile, 1) + inside, v + g * s->head_dim);
        }
    }
}

static void write_task(void *context, int64_t begin, int64_t end, int thread)
{
    const write_args *a = context;
    (void)thread;
    for (int64_t i = 0; i < a->batch->n_sequences; i++) {
        const lk_sequence *q = &a->batch->sequences[i];
        int64_t from = begin > q->begin ? begin : q->begin, to = q->begin + q->count;
        if (to > end) to = end;
        if (from < to) write_rows(a, q, from, to);
    }
}

lk_status lk_cpu_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v)
{
    write_args args = {batch, kv, layer, k, v};
    lk_pool_run(lk_cpu_of(be)->pool, batch->n_tokens, 32, write_task, &args);
    return LK_OK;
}
