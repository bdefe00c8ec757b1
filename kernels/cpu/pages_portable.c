#include "kernels/cpu/vector.h"

#include "kernels/cpu/pages_body.h"

const lk_pages lk_pages_portable = LK_PAGES_TABLE;

const lk_pages *lk_pages_get(lk_cpu_tier tier)
{
#if defined(__x86_64__)
    if (tier >= LK_CPU_AVX512) return &lk_pages_avx512;
    if (tier >= LK_CPU_AVX2) return &lk_pages_avx2;
#endif
    (void)tier;
    return &lk_pages_portable;
}
