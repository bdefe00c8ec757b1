/* The loops that come closest to a machine's peaks: many independent chains of one instruction, nothing else. */
#include "bench/ceilings.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/cpu/features.h"

enum { TRIES = 7 };

typedef struct job {
    double (*run)(void *memory, size_t bytes); /* returns work done: bytes or floating-point operations */
    void **memory;
    size_t bytes;
    double *work;
} job;

static void each(void *context, int64_t begin, int64_t end, int thread)
{
    (void)begin, (void)end;
    const job *j = context;
    j->work[thread] = j->run(j->memory[thread], j->bytes);
}

static double best_rate(lk_pool *pool, double (*run)(void *, size_t), size_t bytes)
{
    int threads = lk_pool_threads(pool);
    void *memory[256] = {NULL};
    double work[256] = {0}, best = 0;
    job j = {run, memory, bytes, work};
    for (int i = 0; i < threads && bytes; i++) {
        if (posix_memalign(&memory[i], 1 << 21, bytes)) memory[i] = NULL;
        if (!memory[i]) goto out;
        memset(memory[i], i + 1, bytes);
    }
    for (int try = 0; try < TRIES; try++) {
        double start = lk_clock_seconds(), total = 0;
        lk_pool_each(pool, each, &j);
        double seconds = lk_clock_seconds() - start;
        for (int i = 0; i < threads; i++) total += work[i];
        if (total / seconds > best) best = total / seconds;
    }
out:
    for (int i = 0; i < threads; i++) free(memory[i]);
    return best * 1e-9;
}

static volatile uint64_t sink;

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static double read_avx2(void *memory, size_t bytes)
{
    const __m256i *p = memory, *end = p + bytes / sizeof *p;
    __m256i sum[8] = {_mm256_setzero_si256()};
    for (int i = 1; i < 8; i++) sum[i] = sum[0];
    for (; p < end; p += 8)
        for (int i = 0; i < 8; i++) sum[i] = _mm256_add_epi64(sum[i], _mm256_load_si256(p + i));
    for (int i = 1; i < 8; i++) sum[0] = _mm256_add_epi64(sum[0], sum[i]);
    sink += (uint64_t)_mm256_extract_epi64(sum[0], 0);
    return (double)bytes;
}

enum { ROUNDS = 4000000, CHAINS = 12 };

__attribute__((target("avx2,fma"))) static double fma_avx2(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
    __m256 c[CHAINS], a = _mm256_set1_ps(0.9999f), b = _mm256_set1_ps(0.5f);
    for (int i = 0; i < CHAINS; i++) c[i] = _mm256_set1_ps((float)i);
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < CHAINS; i++) c[i] = _mm256_fmadd_ps(c[i], a, b);
    for (int i = 1; i < CHAINS; i++) c[0] = _mm256_add_ps(c[0], c[i]);
    sink += (uint64_t)_mm256_cvtss_f32(c[0]);
    return 2.0 * 8 * CHAINS * ROUNDS;
}

__attribute__((target("avx512f"))) static double fma_avx512(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
    __m512 c[CHAINS], a = _mm512_set1_ps(0.9999f), b = _mm512_set1_ps(0.5f);
    for (int i = 0; i < CHAINS; i++) c[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < CHAINS; i++) c[i] = _mm512_fmadd_ps(c[i], a, b);
    for (int i = 1; i < CHAINS; i++) c[0] = _mm512_add_ps(c[0], c[i]);
    sink += (uint64_t)_mm512_cvtss_f32(c[0]);
    return 2.0 * 16 * CHAINS * ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_bf16(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
    __m512 c[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_set1_epi32(0x3c003c00);
    for (int i = 0; i < CHAINS; i++) c[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < ROUNDS / 2; r++)
        for (int i = 0; i < CHAINS; i++) c[i] = _mm512_dpbf16_ps(c[i], a, b);
    for (int i = 1; i < CHAINS; i++) c[0] = _mm512_add_ps(c[0], c[i]);
    sink += (uint64_t)_mm512_cvtss_f32(c[0]);
    const int pairs = ROUNDS / 2;
    return 4.0 * 16 * CHAINS * pairs;
}

__attribute__((target("amx-tile,amx-bf16"))) static double dot_amx(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
    enum { PRODUCTS = 400000 };
    _Alignas(64) unsigned char config[64] = {1};
    _Alignas(64) static const unsigned short zeros[512];
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    __asm__ volatile("" : : "r"(config) : "memory"); /* gcc 12 believes that eight bytes of it are read */
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (int r = 0; r < PRODUCTS; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 2 * 16 * 16 * 32 * PRODUCTS;
}

enum { READ_BYTES = 256 << 20 };

double lk_ceiling_read(lk_pool *pool) { return lk_cpu_tier_best() >= LK_CPU_AVX2 ? best_rate(pool, read_avx2, READ_BYTES) : 0; }

double lk_ceiling_f32_avx2(lk_pool *pool) { return lk_cpu_tier_best() >= LK_CPU_AVX2 ? best_rate(pool, fma_avx2, 0) : 0; }

double lk_ceiling_f32(lk_pool *pool)
{
    double narrow = lk_ceiling_f32_avx2(pool), wide = lk_cpu_tier_best() >= LK_CPU_AVX512 ? best_rate(pool, fma_avx512, 0) : 0;
    return wide > narrow ? wide : narrow;
}

double lk_ceiling_dpbf16(lk_pool *pool) { return lk_cpu_tier_best() >= LK_CPU_AVX512 ? best_rate(pool, dot_bf16, 0) : 0; }
double lk_ceiling_amx(lk_pool *pool) { return lk_cpu_tier_best() >= LK_CPU_AMX ? best_rate(pool, dot_amx, 0) : 0; }

#else

double lk_ceiling_read(lk_pool *pool) { return (void)pool, 0; }
double lk_ceiling_f32_avx2(lk_pool *pool) { return (void)pool, 0; }
double lk_ceiling_f32(lk_pool *pool) { return (void)pool, 0; }
double lk_ceiling_dpbf16(lk_pool *pool) { return (void)pool, 0; }
double lk_ceiling_amx(lk_pool *pool) { return (void)pool, 0; }

#endif
