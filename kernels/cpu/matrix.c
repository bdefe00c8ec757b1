/* Frozen matrices, kept as they come: codes and scales, or rows of bf16 or f32. */
#include "kernels/cpu/matrix.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/nf4.h"

typedef struct cpu_matrix {
    lk_matrix base;
    lk_dtype kept;  /* LK_NF4, LK_BF16 or LK_F32 */
    bool round;     /* BF16 compute */
    void *data;     /* codes or rows, followed by the scales */
    float *absmax;
} cpu_matrix;

static lk_dtype kept_type(const lk_backend *be, lk_dtype source)
{
    if (source == LK_NF4) return LK_NF4;
    return be->compute == LK_BF16 || source == LK_BF16 ? LK_BF16 : LK_F32;
}

static size_t data_bytes(lk_dtype kept, int64_t n, int64_t k)
{
    size_t count = (size_t)n * (size_t)k;
    size_t bytes = kept == LK_NF4 ? (count + 1) / 2 : count * (size_t)lk_dtype_size(kept);
    return (bytes + 63) / 64 * 64;
}

size_t lk_cpu_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k)
{
    lk_dtype kept = kept_type(be, source_type);
    return data_bytes(kept, n, k) + (kept == LK_NF4 ? (size_t)lk_nf4_blocks(n * k) * sizeof(float) : 0);
}

lk_status lk_cpu_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *s)
{
    cpu_matrix *w = calloc(1, sizeof *w);
    if (!w) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a matrix");
    *w = (cpu_matrix){.base = {s->type, s->n, s->k}, .kept = kept_type(be, s->type), .round = be->compute == LK_BF16};
    lk_status status = lk_alloc(be, lk_cpu_matrix_bytes(be, s->type, s->n, s->k), &w->data);
    if (status) {
        free(w);
        return status;
    }
    int64_t count = s->n * s->k;
    if (s->type == LK_NF4) {
        w->absmax = (float *)(void *)((char *)w->data + data_bytes(LK_NF4, s->n, s->k));
        memcpy(w->data, s->data, ((size_t)count + 1) / 2);
        memcpy(w->absmax, s->absmax, (size_t)lk_nf4_blocks(count) * sizeof(float));
    } else if (w->kept == s->type) {
        memcpy(w->data, s->data, (size_t)(count * lk_dtype_size(s->type)));
    } else {
        int64_t from = lk_dtype_size(s->type), to = lk_dtype_size(w->kept);
        for (int64_t i = 0; i < count; i++) {
            float value;
            lk_to_f32(&value, (const char *)s->data + i * from, s->type, 1);
            lk_from_f32((char *)w->data + i * to, w->kept, &value, 1);
        }
    }
    *out = &w->base;
    return LK_OK;
}

void lk_cpu_matrix_destroy(lk_backend *be, lk_matrix *matrix)
{
    cpu_matrix *w = (cpu_matrix *)matrix;
    lk_free(be, w->data);
    free(w);
}

void lk_cpu_matrix_unpack(const lk_matrix *matrix, int64_t begin, int64_t end, float *out)
{
    const cpu_matrix *w = (const cpu_matrix *)matrix;
    int64_t first = begin * w->base.k, count = (end - begin) * w->base.k;
    if (w->kept != LK_NF4) {
        lk_to_f32(out, (const char *)w->data + first * lk_dtype_size(w->kept), w->kept, count);
        return;
    }
    const uint8_t *codes = w->data;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = first + i;
        int code = at % 2 ? codes[at / 2] & 15 : codes[at / 2] >> 4;
        float value = lk_nf4_codebook[code] * w->absmax[at / LK_NF4_BLOCK];
        out[i] = w->round ? lk_bf16_to_f32(lk_f32_to_bf16(value)) : value;
    }
}
