/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011). A number is a pure function of (key, counter): nothing is stored, so dropout masks are recomputed in the
 * backward pass and every run, thread count and batch sees the same ones.
 *
 *     lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_DROPOUT);
 *     uint32_t four[4]; lk_philox(key, step, position, four);
 */
#ifndef LK_KERNELS_PHILOX_H
#define LK_KERNELS_PHILOX_H

#include <stdint.h>

#if defined(__CUDACC__) /* kernels draw the same numbers */
#define LK_PHILOX_INLINE static inline __host__ __device__
#else
#define LK_PHILOX_INLINE static inline
#endif

typedef struct lk_philox_key {
    uint32_t k0, k1;
} lk_philox_key;

/* Independent streams of one seed. The numbers are part of what a seed means: never renumber. */
typedef enum lk_stream { LK_STREAM_INIT = 1, LK_STREAM_SHUFFLE = 2, LK_STREAM_DROPOUT = 3, LK_STREAM_SAMPLE = 4 } lk_stream;

/* Mixes a 64-bit seed and a stream into a key (splitmix64 finaliser, so near seeds give unrelated keys). */
static inline lk_philox_key lk_philox_key_make(uint64_t seed, uint64_t stream)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (stream + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (lk_philox_key){(uint32_t)z, (uint32_t)(z >> 32)};
}

/* Four uniform 32-bit words for the 128-bit counter (hi, lo). */
LK_PHILOX_INLINE void lk_philox(lk_philox_key key, uint64_t hi, uint64_t lo, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)lo, c1 = (uint32_t)(lo >> 32), c2 = (uint32_t)hi, c3 = (uint32_t)(hi >> 32);
    uint32_t k0 = key.k0, k1 = key.k1;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* [0,1) with 24 random bits: exact in a float. */
LK_PHILOX_INLINE float lk_philox_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

#endif
