/* Makes the KV cache and writes into it. Writing is a transposition of single rows, threads share it by rows. */
#include "kernels/cpu/kv.h"

#include <stdlib.h>

size_t lk_cpu_kv_page_bytes(const lk_backend *be, const lk_kv_shape *s)
{
    (void)be;
    return (size_t)2 * (size_t)s->n_layers * (size_t)s->kv_heads * (size_t)s->page_tokens * (size_t)s->head_dim *
           (size_t)lk_dtype_size(s->type);
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

typedef struct write_args {
    const lk_batch *batch;
    const lk_kv *kv;
    int32_t layer;
    const lk_tensor *k, *v;
} write_args;

static inline void store(void *data, lk_dtype type, int64_t at, float value)
{
    if (type == LK_F32)
        ((float *)data)[at] = value;
    else
        ((uint16_t *)data)[at] = lk_f32_to_bf16(value);
}

/* Rows [begin, end) of one sequence. */
static void write_rows(const write_args *a, const lk_sequence *q, int64_t begin, int64_t end)
{
    const lk_kv_shape *s = &a->kv->shape;
    for (int64_t row = begin; row < end; row++) {
        int64_t position = q->length - q->count + (row - q->begin), inside = position % s->page_tokens;
        const float *k = (const float *)a->k->data + row * a->k->stride, *v = (const float *)a->v->data + row * a->v->stride;
        for (int64_t g = 0; g < s->kv_heads; g++) {
            int64_t tile = lk_kv_tile(s, q->pages[position / s->page_tokens], a->layer, g);
            for (int64_t d = 0; d < s->head_dim; d++) {
                store(a->kv->data, s->type, tile + lk_kv_key_at(s, inside, d), k[g * s->head_dim + d]);
                store(a->kv->data, s->type, tile + lk_kv_value_at(s, inside, d), v[g * s->head_dim + d]);
            }
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
