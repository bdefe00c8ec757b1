/* Embedding: rows of a table, one block a token. Bytes a token: 2*K read and 2*K written from a dense table; from NF4 K/2 read in
 * single bytes, which nobody would do to a large table (embeddings stay dense), so that path is the plain one. */
#include "kernels/cuda/scales.h"

enum { THREADS = 256 };

/* The token of a row; the host may know it only as what the sampling before drew (lk_drawn), which is 0 where that found no finite
 * logit: that row's result is thrown away. */
LK_DEVICE int64_t token_at(const int32_t *ids, const int32_t *drawn, int64_t row)
{
    int32_t id = ids[row];
    return id < 0 ? drawn[-1 - id] : id;
}

LK_KERNEL void embed_eights(lk_bf16 *y, int64_t y_stride, const lk_bf16 *table, int64_t ld, const int32_t *ids, const int32_t *drawn,
                            int64_t k)
{
    const uint4 *from = (const uint4 *)(table + token_at(ids, drawn, blockIdx.x) * ld);
    uint4 *to = (uint4 *)(y + blockIdx.x * y_stride);
    for (int64_t i = threadIdx.x; i < k / 8; i += THREADS) to[i] = from[i];
}

LK_KERNEL void embed_ones(lk_bf16 *y, int64_t y_stride, const lk_bf16 *table, int64_t ld, const int32_t *ids, const int32_t *drawn,
                          int64_t k)
{
    const lk_bf16 *from = table + token_at(ids, drawn, blockIdx.x) * ld;
    for (int64_t i = threadIdx.x; i < k; i += THREADS) y[blockIdx.x * y_stride + i] = from[i];
}

LK_KERNEL void embed_nf4(lk_bf16 *y, int64_t y_stride, lk_cuda_nf4 w, const int32_t *ids, const int32_t *drawn, int64_t k)
{
    int64_t row = token_at(ids, drawn, blockIdx.x), along = k / LK_CUDA_TILE_DEPTH;
    for (int64_t i = threadIdx.x; i < k; i += THREADS) y[blockIdx.x * y_stride + i] = lk_cuda_nf4_weight(w, row, i, along);
}

/* Rows of tokens that an adapter trained: a block looks its token up and leaves where it is none of them. */
LK_KERNEL void embed_some(lk_bf16 *y, int64_t y_stride, const lk_bf16 *rows, int64_t ld, const int32_t *some, int64_t n, const int32_t *ids,
                          const int32_t *drawn, int64_t k)
{
    int64_t id = token_at(ids, drawn, blockIdx.x), low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (some[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low >= n || some[low] != id) return;
    for (int64_t i = threadIdx.x; i < k; i += THREADS) y[blockIdx.x * y_stride + i] = rows[low * ld + i];
}

extern "C" lk_status lk_cuda_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids)
{
    lk_cuda *cu = lk_cuda_of(be);
    const lk_cuda_matrix *w = lk_cuda_matrix_of(table);
    if (y->rows == 0) return LK_OK;
    const int32_t *device_ids;
    LK_TRY(lk_cuda_array(be, &device_ids, ids, y->rows));
    lk_bf16 *to = (lk_bf16 *)y->data;
    const lk_bf16 *rows = (const lk_bf16 *)w->memory;
    dim3 blocks((unsigned)y->rows), threads(THREADS);
    if (w->storage == LK_NF4)
        LK_LAUNCH("embed_nf4", embed_nf4, blocks, threads, 0, cu->stream, to, y->stride, w->nf4, device_ids, cu->drawn, y->cols);
    else if (lk_cuda_eights(y))
        LK_LAUNCH("embed_eights", embed_eights, blocks, threads, 0, cu->stream, to, y->stride, rows, w->ld, device_ids, cu->drawn, y->cols);
    else
        LK_LAUNCH("embed_ones", embed_ones, blocks, threads, 0, cu->stream, to, y->stride, rows, w->ld, device_ids, cu->drawn, y->cols);
    return lk_rt_launched("embed", &be->error);
}

extern "C" lk_status lk_cuda_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids)
{
    lk_cuda *cu = lk_cuda_of(be);
    const lk_cuda_matrix *w = lk_cuda_matrix_of(rows);
    if (y->rows == 0) return LK_OK;
    if (w->storage != LK_BF16) return lk_fail(&be->error, LK_ERR_INTERNAL, "embed_some: rows of an NF4 matrix");
    const int32_t *device_ids;
    LK_TRY(lk_cuda_array(be, &device_ids, ids, y->rows));
    LK_LAUNCH("embed_some", embed_some, dim3((unsigned)y->rows), dim3(THREADS), 0, cu->stream, (lk_bf16 *)y->data, y->stride,
              (const lk_bf16 *)w->memory, w->ld, some, rows->n, device_ids, cu->drawn, y->cols);
    return lk_rt_launched("embed_some", &be->error);
}
