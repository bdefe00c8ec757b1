#include "kernels/cpu/vector.h"

#include "kernels/cpu/rows_body.h"

const lk_rows lk_rows_portable = LK_ROWS_TABLE;

const lk_rows *lk_rows_get(lk_cpu_tier tier)
{
#if defined(__x86_64__)
    if (tier >= LK_CPU_AVX512) return &lk_rows_avx512;
    if (tier >= LK_CPU_AVX2) return &lk_rows_avx2;
#endif
    (void)tier;
    return &lk_rows_portable;
}
