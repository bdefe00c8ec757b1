#include "kernels/cpu/features.h"

#include <string.h>

static const char *const names[] = {"reference", "portable", "avx2", "avx512", "amx"};

lk_cpu_tier lk_cpu_tier_best(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return LK_CPU_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return LK_CPU_AVX2;
#endif
    return LK_CPU_PORTABLE;
}

const char *lk_cpu_tier_name(lk_cpu_tier tier) { return names[tier]; }

bool lk_cpu_tier_parse(const char *name, lk_cpu_tier *tier)
{
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(name, names[i]) == 0) {
            *tier = (lk_cpu_tier)i;
            return true;
        }
    return false;
}
