#if defined(__x86_64__)

#define LK_VECTOR_AVX512
#include "kernels/cpu/vector.h"

#include "kernels/cpu/pages_body.h"

const lk_pages lk_pages_avx512 = LK_PAGES_TABLE;

#else

typedef int lk_pages_avx512_needs_x86; /* a translation unit may not be empty */

#endif
