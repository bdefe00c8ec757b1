/* RoPE: the table of cosines and sines of a batch, and the rotation in place (rotate_half of transformers).
 *
 * One block a row of x. Bytes a row: 4 an element of x, and 4*D' of the table, which the first head brings into the block's cache for the
 * others. The angle is one fp32 product and the functions are the exact ones: positions in the hundred thousands leave nothing for
 * approximations of sin and cos. The table is made once a batch, 8 bytes a pair. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rope.h"

enum { THREADS = 256 };

/* ---------------------------------------------------------------------------------------------- the table */

LK_KERNEL void rope_angles(float *table, int64_t stride, const int32_t *positions, const float *inv_freq, float factor, int64_t half)
{
    for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
        float angle = lk_mul_rn((float)positions[blockIdx.x], inv_freq[i]);
        table[blockIdx.x * stride + i] = factor * cosf(angle);
        table[blockIdx.x * stride + half + i] = factor * sinf(angle);
    }
}

static unsigned threads_for(int64_t items) { return items >= THREADS ? THREADS : (unsigned)((items + 31) / 32 * 32); }

extern "C" lk_status lk_cuda_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq,
                                        float factor)
{
    int64_t half = cos_sin->cols / 2;
    if (cos_sin->rows == 0 || half == 0) return LK_OK;
    const int32_t *device_positions;
    LK_TRY(lk_cuda_array(be, &device_positions, positions, cos_sin->rows));
    LK_LAUNCH("rope_angles", rope_angles, dim3((unsigned)cos_sin->rows), dim3(threads_for(half)), 0, lk_cuda_of(be)->stream,
              (float *)cos_sin->data, cos_sin->stride, device_positions, inv_freq, factor, half);
    return lk_rt_launched("rope_table", &be->error);
}

/* ---------------------------------------------------------------------------------------------- the rotation */

/* backward: sign -1. */
LK_KERNEL void rotate_eights(lk_bf16 *x, int64_t stride, const float *table, int64_t table_stride, int heads, int head_dim, int half,
                             float sign)
{
    lk_bf16 *row = x + blockIdx.x * stride;
    const float *turn = table + blockIdx.x * table_stride;
    int per_head = half / 8;
    for (int item = (int)threadIdx.x; item < heads * per_head; item += (int)blockDim.x) {
        int at = item % per_head * 8;
        lk_bf16 *p = row + (int64_t)(item / per_head) * head_dim + at;
        lk_cuda_turn_eights(p, p + half, p, turn + at, half, sign);
    }
}

LK_KERNEL void rotate_ones(lk_bf16 *x, int64_t stride, const float *table, int64_t table_stride, int heads, int head_dim, int half,
                           float sign)
{
    lk_bf16 *row = x + blockIdx.x * stride;
    const float *turn = table + blockIdx.x * table_stride;
    for (int item = (int)threadIdx.x; item < heads * half; item += (int)blockDim.x) {
        int i = item % half;
        lk_bf16 *p = row + (int64_t)(item / half) * head_dim + i;
        float a = lk_bf16_float(p[0]), b = lk_bf16_float(p[half]), c = turn[i], s = sign * turn[half + i];
        p[0] = lk_float_bf16(lk_cuda_turn_low(a, b, c, s));
        p[half] = lk_float_bf16(lk_cuda_turn_high(a, b, c, s));
    }
}

extern "C" lk_status lk_cuda_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    int64_t half = cos_sin->cols / 2, head_dim = x->cols / heads;
    if (x->rows == 0 || half == 0) return LK_OK;
    if (x->cols > INT32_MAX / 2) return lk_fail(&be->error, LK_ERR_INTERNAL, "rope: rows of %lld columns", (long long)x->cols);
    lk_bf16 *data = (lk_bf16 *)x->data;
    const float *table = (const float *)cos_sin->data, sign = backward ? -1.0f : 1.0f;
    dim3 blocks((unsigned)x->rows);
    if (lk_cuda_eights(x) && half % 8 == 0 && head_dim % 8 == 0)
        LK_LAUNCH("rotate_eights", rotate_eights, blocks, dim3(threads_for(heads * half / 8)), 0, stream, data, x->stride, table,
                  cos_sin->stride, (int)heads, (int)head_dim, (int)half, sign);
    else
        LK_LAUNCH("rotate_ones", rotate_ones, blocks, dim3(threads_for(heads * half)), 0, stream, data, x->stride, table, cos_sin->stride,
                  (int)heads, (int)head_dim, (int)half, sign);
    return lk_rt_launched("rope", &be->error);
}
