/* A frozen matrix as the CPU backend keeps it. Only the files that multiply by it know the layout; everything else (the
 * reference operations, embedding, merging) reads rows through lk_cpu_matrix_unpack. */
#ifndef LK_KERNELS_CPU_MATRIX_H
#define LK_KERNELS_CPU_MATRIX_H

#include "kernels/backend.h"

lk_status lk_cpu_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source);
void lk_cpu_matrix_destroy(lk_backend *be, lk_matrix *w);
size_t lk_cpu_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k);

/* out[end-begin, K] = rows [begin, end) with the values that products use: dequantised, and rounded to bf16 when the matrix was
 * made for BF16 compute. Any thread. */
void lk_cpu_matrix_unpack(const lk_matrix *w, int64_t begin, int64_t end, float *out);

#endif
