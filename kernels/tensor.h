/* Element types and the 2-D view that operations work on.
 *
 *     lk_tensor x = lk_tensor_make(p, LK_F32, T, C);        -- rows are contiguous
 *     lk_tensor q = lk_tensor_columns(&qkv, 0, H * D);      -- a view of some columns: same rows, same stride
 *
 * A tensor is borrowed memory of one backend: it owns nothing. Row r starts at data + r * stride elements. */
#ifndef LK_KERNELS_TENSOR_H
#define LK_KERNELS_TENSOR_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lk_dtype { LK_F32, LK_BF16, LK_F16, LK_F64, LK_I64, LK_I32, LK_I16, LK_I8, LK_U8, LK_BOOL, LK_NF4 } lk_dtype;

/* Bytes of one element; 0 for LK_NF4, two of which share a byte. */
static inline int64_t lk_dtype_size(lk_dtype type)
{
    switch (type) {
    case LK_F64:
    case LK_I64: return 8;
    case LK_F32:
    case LK_I32: return 4;
    case LK_BF16:
    case LK_F16:
    case LK_I16: return 2;
    case LK_I8:
    case LK_U8:
    case LK_BOOL: return 1;
    case LK_NF4: return 0;
    }
    return 0;
}

const char *lk_dtype_name(lk_dtype type); /* "f32", "bf16", ... */

typedef struct lk_tensor {
    void *data;
    lk_dtype type;
    int64_t rows, cols;
    int64_t stride; /* elements from one row to the next, >= cols */
} lk_tensor;

static inline lk_tensor lk_tensor_make(void *data, lk_dtype type, int64_t rows, int64_t cols)
{
    return (lk_tensor){data, type, rows, cols, cols};
}

static inline lk_tensor lk_tensor_columns(const lk_tensor *t, int64_t first, int64_t n)
{
    return (lk_tensor){(char *)t->data + first * lk_dtype_size(t->type), t->type, t->rows, n, t->stride};
}

static inline lk_tensor lk_tensor_rows(const lk_tensor *t, int64_t first, int64_t n)
{
    return (lk_tensor){(char *)t->data + first * t->stride * lk_dtype_size(t->type), t->type, n, t->cols, t->stride};
}

static inline float lk_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; a NaN stays a (quiet) NaN. */
static inline uint16_t lk_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

float lk_f16_to_f32(uint16_t h);
uint16_t lk_f32_to_f16(float f); /* nearest even, overflow to infinity, denormals kept */

/* n elements between float and F32, BF16 or F16 memory. */
void lk_to_f32(float *out, const void *in, lk_dtype type, int64_t n);
void lk_from_f32(void *out, lk_dtype type, const float *in, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
