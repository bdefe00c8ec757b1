/* Philox on several counters at once. A step of it is two 32 x 32 -> 64 bit products, which SSE and its successors have on every other
 * 32-bit lane: so each of the four words of a counter lives in the low half of a 64-bit lane, and 4 or 8 counters go side by side.
 * One number costs some 3 instructions instead of 25; dropout on all layers would otherwise double the time of a small model. */
#include "kernels/cpu/dropout.h"

#include <math.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* What every number of a row shares. */
typedef struct mask {
    lk_philox_key key;
    uint64_t counter, place; /* the two halves of the first Philox counter */
    uint32_t least;          /* uniform(word) >= p exactly when (word >> 8) >= least */
    float kept;
} mask;

static void factors_scalar(float *factors, const mask *m, int64_t count)
{
    for (int64_t k = 0; k < count; k += 4) {
        uint32_t words[4];
        lk_philox(m->key, m->counter, m->place + (uint64_t)k / 4, words);
        for (int64_t i = 0; i < 4 && k + i < count; i++) factors[k + i] = words[i] >> 8 >= m->least ? m->kept : 0.0f;
    }
}

#if defined(__x86_64__)

enum { MULTIPLIER0 = (int)0xd2511f53u, MULTIPLIER1 = (int)0xcd9e8d57u };

/* 32 factors a step; returns how many were made. */
__attribute__((target("avx512f,avx512vl,avx512dq"))) static int64_t factors_avx512(float *factors, const mask *m, int64_t count)
{
    const __m512i low = _mm512_set1_epi64(0xffffffff), step = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    const __m512i by0 = _mm512_set1_epi64((uint32_t)MULTIPLIER0), by1 = _mm512_set1_epi64((uint32_t)MULTIPLIER1);
    int64_t done = 0;
    for (; done + 32 <= count; done += 32) {
        __m512i place = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(m->place + (uint64_t)done / 4)), step);
        __m512i c0 = _mm512_and_si512(place, low), c1 = _mm512_srli_epi64(place, 32);
        __m512i c2 = _mm512_set1_epi64((uint32_t)m->counter), c3 = _mm512_set1_epi64((int64_t)(m->counter >> 32));
        uint32_t k0 = m->key.k0, k1 = m->key.k1;
        for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
            __m512i p0 = _mm512_mul_epu32(by0, c0), p1 = _mm512_mul_epu32(by1, c2);
            c0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), c1), _mm512_set1_epi64(k0));
            c2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), c3), _mm512_set1_epi64(k1));
            c1 = _mm512_and_si512(p1, low);
            c3 = _mm512_and_si512(p0, low);
        }
        __m512i front = _mm512_or_si512(c0, _mm512_slli_epi64(c1, 32)), back = _mm512_or_si512(c2, _mm512_slli_epi64(c3, 32));
        __m512i words[2] = {_mm512_permutex2var_epi64(front, first, back), _mm512_permutex2var_epi64(front, second, back)};
        for (int i = 0; i < 2; i++) {
            __mmask16 keep = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(words[i], 8), _mm512_set1_epi32((int)m->least));
            _mm512_storeu_ps(factors + done + 16 * i, _mm512_maskz_mov_ps(keep, _mm512_set1_ps(m->kept)));
        }
    }
    return done;
}

/* 16 factors a step. */
__attribute__((target("avx2"))) static int64_t factors_avx2(float *factors, const mask *m, int64_t count)
{
    const __m256i low = _mm256_set1_epi64x(0xffffffff), step = _mm256_setr_epi64x(0, 1, 2, 3);
    const __m256i by0 = _mm256_set1_epi64x((uint32_t)MULTIPLIER0), by1 = _mm256_set1_epi64x((uint32_t)MULTIPLIER1);
    int64_t done = 0;
    for (; done + 16 <= count; done += 16) {
        __m256i place = _mm256_add_epi64(_mm256_set1_epi64x((int64_t)(m->place + (uint64_t)done / 4)), step);
        __m256i c0 = _mm256_and_si256(place, low), c1 = _mm256_srli_epi64(place, 32);
        __m256i c2 = _mm256_set1_epi64x((uint32_t)m->counter), c3 = _mm256_set1_epi64x((int64_t)(m->counter >> 32));
        uint32_t k0 = m->key.k0, k1 = m->key.k1;
        for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
            __m256i p0 = _mm256_mul_epu32(by0, c0), p1 = _mm256_mul_epu32(by1, c2);
            c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), _mm256_set1_epi64x(k0));
            c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), _mm256_set1_epi64x(k1));
            c1 = _mm256_and_si256(p1, low);
            c3 = _mm256_and_si256(p0, low);
        }
        __m256i front = _mm256_or_si256(c0, _mm256_slli_epi64(c1, 32)), back = _mm256_or_si256(c2, _mm256_slli_epi64(c3, 32));
        __m256i even = _mm256_unpacklo_epi64(front, back), odd = _mm256_unpackhi_epi64(front, back); /* counters 0 and 2, 1 and 3 */
        __m256i words[2] = {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
        for (int i = 0; i < 2; i++) { /* 24 bits: the signed comparison is right */
            __m256i drop = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)m->least), _mm256_srli_epi32(words[i], 8));
            _mm256_storeu_ps(factors + done + 8 * i, _mm256_andnot_ps(_mm256_castsi256_ps(drop), _mm256_set1_ps(m->kept)));
        }
    }
    return done;
}

#endif

void lk_dropout_factors(float *factors, lk_cpu_tier tier, const lk_dropout *d, int32_t site, int64_t t, int64_t width, int64_t first,
                        int64_t count)
{
    mask m = {.key = d->key, .counter = d->counter, .least = (uint32_t)ceil((double)d->p * 0x1p24), .kept = 1.0f / (1.0f - d->p)};
    m.place = ((uint64_t)(uint32_t)site << 44 | (uint64_t)t * (uint64_t)((width + 3) / 4)) + (uint64_t)first / 4;
    int64_t done = 0;
#if defined(__x86_64__)
    if (tier >= LK_CPU_AVX512)
        done = factors_avx512(factors, &m, count);
    else if (tier >= LK_CPU_AVX2)
        done = factors_avx2(factors, &m, count);
#endif
    (void)tier;
    m.place += (uint64_t)done / 4;
    factors_scalar(factors + done, &m, count - done);
}
