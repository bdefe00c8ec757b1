/* What matrix.c prepares and dequantise.cu, embed.cu and the fused products read.
 *
 * NF4 in the order of the tensor cores. W[N,K] is cut into tiles of 16 rows and 64 columns, N padded to whole tiles with the code of
 * zero. A tile is 512 bytes: lane l of a warp owns the 16 at l * 16, one u32 for each of the four steps of 16 columns. With W as the A
 * operand of mma.m16n8k16, g = l / 4 and t = l % 4, byte i of the u32 of step s holds the two weights of A register i:
 *
 *     row = tile*16 + g + 8*(i & 1),   columns = depth*64 + s*16 + 2*t + 8*(i >> 1) and the next,   even column in the high nibble
 *
 * so a byte of the file stays a byte, one 16-byte load a lane feeds four steps, and a tile's 512 bytes are one coalesced load of a warp.
 * Tiles follow each other along K first: tile number = (row / 16) * (K / 64) + column / 64.
 *
 * Scales lie in the order of the file: block b = row * (K / 64) + column / 64. Nested: one byte a block, an fp32 for each 256 blocks of
 * this order and an offset, absmax = map[absmax8[b]] * absmax2[b / 256] + offset, each operation rounded; else fp32 a block.
 *
 * NF4 with K % 64 != 0 (no real model) has blocks that run over the ends of rows; such a matrix is dequantised when it is created and
 * kept dense. Dense matrices are bf16, rows padded with zeros to a multiple of 8 elements (16 bytes). */
#ifndef LK_KERNELS_CUDA_MATRIX_H
#define LK_KERNELS_CUDA_MATRIX_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_TILE_ROWS = 16, LK_CUDA_TILE_DEPTH = 64, LK_CUDA_TILE_BYTES = 512 };

/* By value into kernels: plain pointers of the device. */
typedef struct lk_cuda_nf4 {
    const void *tiles;
    const float *absmax;    /* NULL when nested */
    const uint8_t *absmax8; /* NULL unless nested */
    const float *absmax2;
    float offset;
    const float *constants; /* lk_cuda.constants: codebook and map */
} lk_cuda_nf4;

typedef struct lk_cuda_matrix {
    lk_matrix base;   /* first: pointers convert; its type is the source's */
    lk_dtype storage; /* LK_NF4 or LK_BF16 */
    int64_t ld;       /* LK_BF16: elements from one row to the next */
    void *memory;     /* all of it */
    bool lent;        /* memory is somebody else's (lk_matrix_lend) */
    lk_cuda_nf4 nf4;  /* LK_NF4 */
} lk_cuda_matrix;

static inline const lk_cuda_matrix *lk_cuda_matrix_of(const lk_matrix *w) { return (const lk_cuda_matrix *)w; }

/* Codes of rows [0, rows) as the file has them (row-major, rows a multiple of 16 or the last of the matrix) into tiles. */
lk_status lk_cuda_nf4_pack(lk_backend *be, void *tiles, const void *codes, int64_t rows, int64_t k);
/* Rows [begin, end) as bf16 [end-begin, K], ld elements from row to row (a multiple of 8); begin a multiple of 16. */
lk_status lk_cuda_nf4_dequantise(lk_backend *be, void *out, int64_t ld, const lk_cuda_matrix *w, int64_t begin, int64_t end);

#ifdef __cplusplus
}
#endif
#endif
