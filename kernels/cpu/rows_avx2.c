#if defined(__x86_64__)

#define LK_VECTOR_AVX2
#include "kernels/cpu/vector.h"

#include "kernels/cpu/rows_body.h"

const lk_rows lk_rows_avx2 = LK_ROWS_TABLE;

#else

typedef int lk_rows_avx2_needs_x86; /* a translation unit may not be empty */

#endif
