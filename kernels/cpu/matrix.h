/* A frozen matrix w[N,K] as the CPU backend keeps it. Only the products know the layout; everything else (the reference
 * operations, embedding, merging) reads rows through lk_cpu_matrix_unpack.
 *
 * Layouts, all in blocks of 16 rows (N is padded to 16 with zeros):
 *   NF4 with K a multiple of 64: lk_nf4_tile, block (rows 16i.., k 128j..) is number i * ceil(K/128) + j: codes and their scales lie
 *     together, a product reads one stream. 4.5 bits a weight (an odd multiple of 64 pads the last block).
 *   dense: tiles of 16 x 32 as kernels/cpu/gemm.h describes left ones, of bf16 or fp32. Also NF4 of any other K, whose blocks of 64
 *     run across rows (only toy models have it): dequantised once, into exactly what the products would have used.
 * Values are as kernels/ops.h says (lk_matrix_create). */
#ifndef LK_KERNELS_CPU_MATRIX_H
#define LK_KERNELS_CPU_MATRIX_H

#include "kernels/backend.h"
#include "kernels/cpu/gemm.h"

typedef struct lk_cpu_matrix {
    lk_matrix base;
    lk_dtype storage; /* LK_NF4, LK_BF16 or LK_F32 */
    const lk_gemm *gemm;
    void *data;
    bool lent; /* data is somebody else's (lk_matrix_lend) */
} lk_cpu_matrix;

/* Entries of the operation table. Repacking runs on the backend's threads. */
lk_status lk_cpu_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source);
void lk_cpu_matrix_destroy(lk_backend *be, lk_matrix *w);
size_t lk_cpu_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested);
const void *lk_cpu_matrix_data(const lk_matrix *w);
void lk_cpu_matrix_lend(lk_backend *be, lk_matrix *w, void *data);

/* out[end-begin, K] = rows [begin, end) with the values that products use: dequantised, and rounded to bf16 when the matrix was
 * made for BF16 compute. Any thread. */
void lk_cpu_matrix_unpack(const lk_matrix *w, int64_t begin, int64_t end, float *out);

/* The other way: one row of a dense matrix takes these values, rounded as when it was made. Different rows on any threads. */
void lk_cpu_matrix_pack(lk_matrix *w, int64_t row, const float *values);

/* Rows [row, row + rows) (row a multiple of 16), k [first, first + k) (first a multiple of 128), as a left panel: returns its first
 * tile and the bytes between blocks of 16 rows. Unpacked to `panel` (room for 16-row blocks of k rounded up to 128), unless the
 * matrix is kept as the panel already. */
const void *lk_cpu_matrix_panel(const lk_matrix *w, void *panel, int64_t *pitch, int64_t row, int64_t rows, int64_t first, int64_t k);

/* The NF4 blocks from row `row` (a multiple of 16) on, *along of them for each 16 rows; NULL when the matrix is not kept as such. */
const lk_nf4_tile *lk_cpu_matrix_blocks(const lk_matrix *w, int64_t row, int64_t *along);

/* The transpose as a right panel: its rows are k [first, first + k) (first a multiple of 128), its depth is rows [row, row + rows) of
 * the matrix (row a multiple of 32). The panel holds k rounded up to 128 rows. */
void lk_cpu_matrix_turned(const lk_matrix *w, void *panel, int64_t row, int64_t rows, int64_t first, int64_t k);

#endif
