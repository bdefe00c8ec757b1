/* NF4 on the device: from the file's order into tiles (once, when a matrix is created) and from tiles to rows of bf16 (before every
 * product of training). kernels/cuda/matrix.h describes tiles and scales.
 *
 * Bits. A weight is bf16(codebook[code] * absmax), nested scales are map[q] * absmax2 + offset with each operation rounded: exactly
 * lk_nf4_unnest, lk_nf4_dequantize and rounding on the host. The test asks for equality.
 *
 * Bytes a weight of dequantising: 0.5 read, 2 written, scales 1/64 (nested) or 4/64. 2.52 GB for a billion weights, 0.58 ms at 4.3 TB/s.
 * A warp has 2 KB of codes on their way before it computes the first weight, a multiprocessor with 5 blocks of 8 warps (44 registers) 80
 * KB; latency times bandwidth of an H200 asks for about 30 KB, reads and writes together. Stores are 128 consecutive bytes of a row for
 * eight lanes. Arithmetic: about five instructions a weight, a quarter of what the time of the bytes allows; the 16 words of the codebook
 * lie in 16 banks, so the lookup of a lane never waits for another's.
 *
 * Rejected: a table of pairs (256 entries meet in banks, or cost 32 KB a block replicated); storing from the fragments without staging
 * (4-byte stores, a quarter of a sector each). */
#include "kernels/cuda/scales.h"

enum { WARPS = 8, DEPTHS = 4 /* tiles of one warp, along k */, STAGE_WORDS = 36 /* of a row: 32, and 4 that put rows in other banks */ };

/* ---------------------------------------------------------------------------------------------- packing */

/* A warp a tile. Bytes: K/2 a row in, the same out. */
LK_KERNEL void pack_tiles(uint4 *tiles, const unsigned char *codes, int64_t rows, int64_t k, int64_t n_tiles)
{
    LK_SHARED(unsigned char, stage, WARPS *LK_CUDA_TILE_BYTES);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    unsigned char *mine = stage + warp * LK_CUDA_TILE_BYTES; /* 16 rows of 32 bytes */
    int64_t tile = (int64_t)blockIdx.x * WARPS + warp, along = k / LK_CUDA_TILE_DEPTH;
    bool there = tile < n_tiles;
    if (there) {
        int64_t row = tile / along * LK_CUDA_TILE_ROWS + lane / 2, column_bytes = tile % along * 32 + lane % 2 * 16;
        uint4 v = {0x77777777u, 0x77777777u, 0x77777777u, 0x77777777u}; /* the code of zero */
        if (row < rows) v = *(const uint4 *)(codes + row * (k / 2) + column_bytes);
        *(uint4 *)(mine + lane * 16) = v;
    }
    lk_warp_sync();
    if (there) {
        uint32_t words[4];
        for (int step = 0; step < 4; step++) {
            words[step] = 0;
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + 8 * (i & 1), at = step * 8 + lane % 4 + 4 * (i >> 1);
                words[step] |= (uint32_t)mine[row * 32 + at] << (8 * i);
            }
        }
        tiles[tile * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

extern "C" lk_status lk_cuda_nf4_pack(lk_backend *be, void *tiles, const void *codes, int64_t rows, int64_t k)
{
    int64_t n_tiles = (rows + LK_CUDA_TILE_ROWS - 1) / LK_CUDA_TILE_ROWS * (k / LK_CUDA_TILE_DEPTH);
    unsigned blocks = (unsigned)((n_tiles + WARPS - 1) / WARPS);
    LK_LAUNCH("pack_tiles", pack_tiles, dim3(blocks), dim3(WARPS * 32), 0, lk_cuda_of(be)->stream, (uint4 *)tiles,
              (const unsigned char *)codes, rows, k, n_tiles);
    return lk_rt_launched("pack_tiles", &be->error);
}

/* ---------------------------------------------------------------------------------------------- dequantising */

/* Two weights of a byte, the even column in the low half. */
LK_DEVICE uint32_t weight_pair(uint32_t byte, const float *codebook, float scale)
{
    return lk_pack_bf16(lk_mul_rn(codebook[byte >> 4], scale), lk_mul_rn(codebook[byte & 15], scale));
}

/* A warp takes DEPTHS tiles side by side. */
LK_KERNEL void dequantise_tiles(lk_bf16 *out, int64_t ld, lk_cuda_nf4 w, int64_t first_row, int64_t rows, int64_t n_rows, int64_t k)
{
    LK_SHARED(float, codebook, 16);
    LK_SHARED(uint32_t, stage, WARPS * LK_CUDA_TILE_ROWS * STAGE_WORDS);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    uint32_t *mine = stage + warp * LK_CUDA_TILE_ROWS * STAGE_WORDS;
    int64_t along = k / LK_CUDA_TILE_DEPTH, groups = (along + DEPTHS - 1) / DEPTHS;
    int64_t unit = (int64_t)blockIdx.x * WARPS + warp, down = unit / groups, depth = unit % groups * DEPTHS;
    int64_t row0 = first_row + down * LK_CUDA_TILE_ROWS; /* in the matrix */
    int64_t tile0 = row0 / LK_CUDA_TILE_ROWS * along + depth;
    int n_depths = down * LK_CUDA_TILE_ROWS < rows ? (int)(along - depth < DEPTHS ? along - depth : DEPTHS) : 0;

    uint4 codes[DEPTHS];
    float scales[DEPTHS][2];
    int64_t low = row0 + lane / 4, high = low + 8;
    LK_UNROLL
    for (int d = 0; d < DEPTHS; d++)
        if (d < n_depths) codes[d] = ((const uint4 *)w.tiles)[(tile0 + d) * 32 + lane];
    LK_UNROLL
    for (int d = 0; d < DEPTHS; d++) {
        scales[d][0] = d < n_depths && low < n_rows ? lk_cuda_block_scale(w, low * along + depth + d) : 0.0f;
        scales[d][1] = d < n_depths && high < n_rows ? lk_cuda_block_scale(w, high * along + depth + d) : 0.0f;
    }
    if (threadIdx.x < 16) codebook[threadIdx.x] = w.constants[LK_CUDA_CODEBOOK + threadIdx.x];
    lk_block_sync();

    LK_UNROLL
    for (int d = 0; d < DEPTHS; d++) {
        if (d >= n_depths) break; /* the same for the whole warp */
        const uint32_t words[4] = {codes[d].x, codes[d].y, codes[d].z, codes[d].w};
        LK_UNROLL
        for (int step = 0; step < 4; step++) LK_UNROLL
        for (int i = 0; i < 4; i++)
            mine[(lane / 4 + 8 * (i & 1)) * STAGE_WORDS + step * 8 + 4 * (i >> 1) + lane % 4] =
                weight_pair((words[step] >> (8 * i)) & 255u, codebook, scales[d][i & 1]);
        lk_warp_sync();
        LK_UNROLL
        for (int j = 0; j < 4; j++) {
            int row = 4 * j + lane / 8;
            int64_t at = down * LK_CUDA_TILE_ROWS + row; /* in the output */
            if (at < rows)
                *(uint4 *)(out + at * ld + (depth + d) * LK_CUDA_TILE_DEPTH + lane % 8 * 8) =
                    *(const uint4 *)(mine + row * STAGE_WORDS + lane % 8 * 4);
        }
        lk_warp_sync(); /* before the next tile overwrites what others still read */
    }
}

extern "C" lk_status lk_cuda_nf4_dequantise(lk_backend *be, void *out, int64_t ld, const lk_cuda_matrix *w, int64_t begin, int64_t end)
{
    int64_t k = w->base.k, rows = end - begin;
    int64_t groups = (k / LK_CUDA_TILE_DEPTH + DEPTHS - 1) / DEPTHS;
    int64_t units = (rows + LK_CUDA_TILE_ROWS - 1) / LK_CUDA_TILE_ROWS * groups;
    unsigned blocks = (unsigned)((units + WARPS - 1) / WARPS);
    LK_LAUNCH("dequantise_tiles", dequantise_tiles, dim3(blocks), dim3(WARPS * 32), 0, lk_cuda_of(be)->stream, (lk_bf16 *)out, ld, w->nf4,
              begin, rows, w->base.n, k);
    return lk_rt_launched("dequantise_tiles", &be->error);
}
