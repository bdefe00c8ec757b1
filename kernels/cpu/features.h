/* What this processor can do, in four steps that the fast paths choose by. Pure questions: no state, any thread. */
#ifndef LK_KERNELS_CPU_FEATURES_H
#define LK_KERNELS_CPU_FEATURES_H

#include <stdbool.h>

/* Each tier includes those before it. REFERENCE is not about the processor: it is the readable single-threaded code that the
 * others are compared with. */
typedef enum lk_cpu_tier { LK_CPU_REFERENCE, LK_CPU_PORTABLE, LK_CPU_AVX2, LK_CPU_AVX512, LK_CPU_AMX } lk_cpu_tier;

lk_cpu_tier lk_cpu_tier_best(void);
const char *lk_cpu_tier_name(lk_cpu_tier tier); /* "reference", "portable", "avx2", "avx512", "amx" */
/* False for a name that is none of those. */
bool lk_cpu_tier_parse(const char *name, lk_cpu_tier *tier);

#endif
