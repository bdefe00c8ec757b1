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
    const unsigned char *tiles = (const unsigned char *)w.tiles;
    for (int64_t i = threadIdx.x; i < k; i += THREADS) {
        /* matrix.h, read backwards: which lane's which byte holds (row, i) */
        int in_tile = (int)(row % LK_CUDA_TILE_ROWS), at = (int)(i % 16), step = (int)(i % LK_CUDA_TILE_DEPTH / 16);
        int lane = in_tile % 8 * 4 + at % 8 / 2, byte = in_tile / 8 + at / 8 * 2;
        int64_t tile = row / LK_CUDA_TILE_ROWS * along + i / LK_CUDA_TILE_DEPTH;
        int pair = tiles[tile * LK_CUDA_TILE_BYTES + lane * 16 + step * 4 + byte];
        float value = w.constants[LK_CUDA_CODEBOOK + (i % 2 ? pair & 15 : pair >> 4)];
        y[blockIdx.x * y_stride + i] = lk_float_bf16(lk_mul_rn(value, lk_cuda_block_scale(w, row * along + i / LK_CUDA_TILE_DEPTH)));
    }
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
