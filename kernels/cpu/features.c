/* CPUID says what the processor has, XGETBV what the operating system saves at a context switch, and arch_prctl asks Linux
 * for the 8 KiB of AMX state, which it gives only on request. __builtin_cpu_supports was not enough: gcc 12 and clang 14 do
 * not agree on the names of the newer features, and neither knows about the permission. */
#include "kernels/cpu/features.h"

#include <stdint.h>
#include <string.h>

static const char *const names[] = {"reference", "portable", "avx2", "avx512", "amx"};

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct cpuid_leaf {
    uint32_t a, b, c, d;
} cpuid_leaf;

static cpuid_leaf cpuid(uint32_t leaf, uint32_t subleaf)
{
    cpuid_leaf r = {0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return (cpuid_leaf){0, 0, 0, 0};
    return r;
}

static inline bool bit(uint32_t word, int i) { return word >> i & 1; }

static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool amx_permitted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
#ifdef SYS_arch_prctl
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

lk_cpu_tier lk_cpu_tier_best(void)
{
    enum { STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_TILES = 0x60000 };
    cpuid_leaf l1 = cpuid(1, 0), l7 = cpuid(7, 0), l7b = cpuid(7, 1);
    if (!bit(l1.c, 27)) return LK_CPU_PORTABLE; /* OSXSAVE: xgetbv exists */
    uint64_t state = saved_state();
    bool avx2 = bit(l1.c, 28) && bit(l1.c, 12) && bit(l1.c, 29) && bit(l7.b, 5); /* AVX, FMA, F16C, AVX2 */
    if (!avx2 || (state & STATE_AVX) != STATE_AVX) return LK_CPU_PORTABLE;
    bool avx512 = bit(l7.b, 16) && bit(l7.b, 17) && bit(l7.b, 30) && bit(l7.b, 31) && bit(l7b.a, 5); /* F, DQ, BW, VL, BF16 */
    if (!avx512 || (state & STATE_AVX512) != STATE_AVX512) return LK_CPU_AVX2;
    bool amx = bit(l7.d, 24) && bit(l7.d, 22); /* TILE, BF16 */
    if (!amx || (state & STATE_TILES) != STATE_TILES || !amx_permitted()) return LK_CPU_AVX512;
    return LK_CPU_AMX;
}

#else

lk_cpu_tier lk_cpu_tier_best(void) { return LK_CPU_PORTABLE; }

#endif

const char *lk_cpu_tier_name(lk_cpu_tier tier) { return names[tier]; }

bool lk_cpu_tier_parse(const char *name, lk_cpu_tier *tier)
{
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (strcmp(name, names[i])) continue;
        *tier = (lk_cpu_tier)i;
        return true;
    }
    return false;
}
