/* Vectors of fp32 for code that is written once and compiled for several instruction sets. A file names the set and then includes
 * this and a body:
 *
 *     #define LK_VECTOR_AVX512            -- or LK_VECTOR_AVX2, or nothing: plain C on vectors of four
 *     #include "kernels/cpu/vector.h"
 *     #include "kernels/cpu/rows_body.h"  -- functions marked LK_TARGET on values of type vf, LK_LANES of them
 *
 * Chosen over writing every loop once per instruction set, and over auto-vectorisation, which rearranges nothing under strict
 * floating point and so leaves every sum scalar. The target attribute sits on each function: a build needs no flags and a binary
 * runs anywhere. vf_ functions inline into bodies of the same target. */
#ifndef LK_KERNELS_CPU_VECTOR_H
#define LK_KERNELS_CPU_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(LK_VECTOR_AVX512)

#include <immintrin.h>
enum { LK_LANES = 16 };
#define LK_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"), unused))
typedef __m512 vf;
#define LK_INLINE LK_TARGET static inline __attribute__((always_inline))
LK_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
LK_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
LK_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
/* The first n lanes, 0 < n < LK_LANES; the others are 0 and memory beyond is not touched. */
LK_INLINE vf vf_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
LK_INLINE void vf_store_part(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
LK_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}
LK_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LK_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
LK_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
LK_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
LK_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
LK_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
LK_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); } /* a*b + c */
LK_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }            /* b where either is NaN */
LK_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
/* x where a >= b, else 0 */
LK_INLINE vf vf_keep_ge(vf x, vf a, vf b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), x); }
/* x * 2^n where a >= b, else 0; n integral and the product a normal number */
LK_INLINE vf vf_scale2_ge(vf x, vf n, vf a, vf b) { return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), x, n); }

#elif defined(LK_VECTOR_AVX2)

#include <immintrin.h>
enum { LK_LANES = 8 };
#define LK_TARGET __attribute__((target("avx2,fma"), unused))
typedef __m256 vf;
#define LK_INLINE LK_TARGET static inline __attribute__((always_inline))
LK_INLINE __m256i vf_first(int64_t n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
LK_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
LK_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
LK_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
LK_INLINE vf vf_load_part(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
LK_INLINE void vf_store_part(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), x); }
LK_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}
LK_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
LK_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
LK_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
LK_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
LK_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
LK_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
LK_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
LK_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
LK_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
LK_INLINE vf vf_keep_ge(vf x, vf a, vf b) { return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
LK_INLINE vf vf_scale2_ge(vf x, vf n, vf a, vf b)
{
    return vf_keep_ge(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23))), a, b);
}

#else

enum { LK_LANES = 4 };
#define LK_TARGET __attribute__((unused))
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vf_bits __attribute__((vector_size(16)));
#define LK_INLINE LK_TARGET static inline __attribute__((always_inline))
LK_INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
LK_INLINE vf vf_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
LK_INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
LK_INLINE vf vf_load_part(const float *p, int64_t n)
{
    vf x = {0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
LK_INLINE void vf_store_part(float *p, vf x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
LK_INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf_bits x = {(int32_t)((uint32_t)p[0] << 16), (int32_t)((uint32_t)p[1] << 16), (int32_t)((uint32_t)p[2] << 16),
                 (int32_t)((uint32_t)p[3] << 16)};
    return (vf)x;
}
LK_INLINE vf vf_choose(vf_bits which, vf a, vf b) { return (vf)((which & (vf_bits)a) | (~which & (vf_bits)b)); }
LK_INLINE vf vf_load_i8(const int8_t *p) { return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]}; }
LK_INLINE vf vf_add(vf a, vf b) { return a + b; }
LK_INLINE vf vf_sub(vf a, vf b) { return a - b; }
LK_INLINE vf vf_mul(vf a, vf b) { return a * b; }
LK_INLINE vf vf_div(vf a, vf b) { return a / b; }
LK_INLINE vf vf_sqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
LK_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; } /* not fused: that would be a library call on old machines */
LK_INLINE vf vf_max(vf a, vf b) { return vf_choose(a > b, a, b); }
LK_INLINE vf vf_min(vf a, vf b) { return vf_choose(a < b, a, b); }
LK_INLINE vf vf_keep_ge(vf x, vf a, vf b) { return (vf)((a >= b) & (vf_bits)x); }
LK_INLINE vf vf_scale2_ge(vf x, vf n, vf a, vf b)
{
    vf_bits whole = {(int32_t)n[0], (int32_t)n[1], (int32_t)n[2], (int32_t)n[3]};
    return vf_keep_ge((vf)((vf_bits)x + whole * (1 << 23)), a, b);
}

#endif

/* Sums and maxima over the lanes, always by halves: lane i and lane i + n/2 first. */
#if defined(LK_VECTOR_AVX512) || defined(LK_VECTOR_AVX2)
LK_INLINE __m256 vf_fold_sum(vf x)
{
#if defined(LK_VECTOR_AVX512)
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    return x;
#endif
}
LK_INLINE __m256 vf_fold_top(vf x)
{
#if defined(LK_VECTOR_AVX512)
    return _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    return x;
#endif
}
LK_INLINE float vf_sum(vf x)
{
    __m256 eight = vf_fold_sum(x);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)),
           two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LK_INLINE float vf_top(vf x)
{
    __m256 eight = vf_fold_top(x);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1)),
           two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
LK_INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
LK_INLINE float vf_top(vf x)
{
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}
#endif

/* exp(x) within 2 ulp for -87 <= x <= 88, 0 below, 1.6e38 above; 0 for NaN. x = n ln2 + r with n rounded by adding and subtracting
 * 1.5 * 2^23; exp(r) by a polynomial fitted to |r| <= ln2/2 for the least relative error, 4e-9. */
LK_INLINE vf vf_exp(vf x)
{
    const vf low = vf_set(-87.0f), rounder = vf_set(0x1.8p23f);
    vf inside = vf_max(vf_min(x, vf_set(88.0f)), low);
    vf n = vf_sub(vf_fma(inside, vf_set(0x1.715476p0f), rounder), rounder);
    vf r = vf_fma(n, vf_set(-0x1.62e4p-1f), inside); /* ln2 in two parts: the first times n is exact */
    r = vf_fma(n, vf_set(-0x1.7f7d1cp-20f), r);
    vf p = vf_set(0x1.6a23cep-10f);
    p = vf_fma(p, r, vf_set(0x1.123a2p-7f));
    p = vf_fma(p, r, vf_set(0x1.5558f2p-5f));
    p = vf_fma(p, r, vf_set(0x1.555492p-3f));
    p = vf_fma(p, r, vf_set(0x1.fffffcp-2f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
    return vf_scale2_ge(p, n, x, low);
}

#endif
