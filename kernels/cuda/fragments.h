/* Rows of bf16 in shared memory that feed tensor cores by plain 16-byte loads, for kernels where both factors come in rows.
 *
 * The order of the 16 columns of an mma step does not matter as long as both factors have the same one. In 64 columns, lane t of four takes
 * columns 8t .. 8t+7 and 32 + 8t .. 32 + 8t+7 of its row, and gives each of the four steps of 16 two neighbouring pairs of them. */
#ifndef LK_KERNELS_CUDA_FRAGMENTS_H
#define LK_KERNELS_CUDA_FRAGMENTS_H

#include "kernels/cuda/device.h"

/* Where the 16 bytes `chunk` (of 8) of 64 columns of a row lie. Eight lanes read two rows at a time, whose starts share a bank: in every
 * second row the halves are swapped. */
LK_DEVICE int lk_cuda_row_place(int row, int chunk) { return chunk ^ (row & 1) * 4; }

/* pairs[step]: what lane t of the four at `row` brings to each step; `columns` points at the 128 bytes of the row. For the B operand these
 * are its registers; for the A operand registers 0 and 2, and those of row + 8 registers 1 and 3. */
LK_DEVICE void lk_cuda_row_pairs(uint32_t pairs[4][2], const unsigned char *columns, int row, int t)
{
    LK_UNROLL
    for (int half = 0; half < 2; half++) {
        const uint4 v = *(const uint4 *)(columns + lk_cuda_row_place(row, t + 4 * half) * 16);
        pairs[2 * half][0] = v.x;
        pairs[2 * half][1] = v.y;
        pairs[2 * half + 1][0] = v.z;
        pairs[2 * half + 1][1] = v.w;
    }
}

#endif
