/* What this processor can do, in steps that the fast paths choose by. Pure questions, any thread.
 *
 *     lk_cpu_tier best = lk_cpu_tier_best();
 *
 * Each tier includes those before it, so that every faster path can be compared with the slower ones where it runs. */
#ifndef LK_KERNELS_CPU_FEATURES_H
#define LK_KERNELS_CPU_FEATURES_H

#include <stdbool.h>

typedef enum lk_cpu_tier {
    LK_CPU_REFERENCE, /* not about the processor: the readable single-threaded code that the others are compared with */
    LK_CPU_PORTABLE,  /* C without intrinsics: any 64-bit machine */
    LK_CPU_AVX2,      /* AVX2, FMA, F16C: Haswell, Zen and later */
    LK_CPU_AVX512,    /* AVX-512 F, BW, DQ, VL and BF16: Cooper Lake, Zen 4 and later. AVX-512 without BF16 counts as AVX2 */
    LK_CPU_AMX        /* the same with AMX tiles and AMX-BF16: Sapphire Rapids and later */
} lk_cpu_tier;

/* The best tier of processor and operating system. Asks the kernel for the use of AMX tiles where there are any (arch_prctl): that
 * permission then holds for all threads of the process. */
lk_cpu_tier lk_cpu_tier_best(void);
const char *lk_cpu_tier_name(lk_cpu_tier tier); /* "reference", "portable", "avx2", "avx512", "amx" */
/* False for a name that is none of those. */
bool lk_cpu_tier_parse(const char *name, lk_cpu_tier *tier);

#endif
