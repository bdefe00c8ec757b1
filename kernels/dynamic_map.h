/* The 8-bit dynamic data type of bitsandbytes (Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2016; create_dynamic_map
 * there): 256 values in [-1, 1] or [0, 1], one power of ten after another with ever more values in each, so that small magnitudes keep
 * their relative precision. The signed map codes the second level of NF4's scales and AdamW's first moment, the unsigned one its second.
 *
 *     lk_dynamic_coder coder;
 *     lk_dynamic_coder_init(&coder, lk_dynamic_map());                    -- once; some microseconds
 *     uint8_t code = lk_dynamic_code_signed(&coder, x / scale);           -- lk_dynamic_map()[code] * scale is near x
 */
#ifndef LK_KERNELS_DYNAMIC_MAP_H
#define LK_KERNELS_DYNAMIC_MAP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 256 ascending values; signed: -0.993 .. 1 with 0 at LK_DYNAMIC_ZERO; unsigned: 0 .. 1 with 0 at 0. */
const float *lk_dynamic_map(void);
const float *lk_dynamic_map_unsigned(void);
enum { LK_DYNAMIC_ZERO = 127 };

/* From values to codes. x takes the nearest code; right between two, the even one, as the search of bitsandbytes' CUDA kernels for
 * optimisers ends (quantize_2D in csrc/kernels.cu). A NaN takes code 0.
 *
 * A search would mispredict half of its eight comparisons. Instead the exponent and the seven leading bits of a magnitude name a bucket
 * that contains at most one bound between codes: the code of its lowest value, plus one comparison. */
enum {
    LK_DYNAMIC_LOWEST = 104 << 7 /* bucket of 2^-23: what is smaller is nearest to 0 */,
    LK_DYNAMIC_BUCKETS = (127 << 7) - LK_DYNAMIC_LOWEST + 1
};
typedef struct lk_dynamic_coder {
    uint8_t first[LK_DYNAMIC_BUCKETS];
    float bounds[256]; /* bounds[k]: the largest value of code k */
} lk_dynamic_coder;

void lk_dynamic_coder_init(lk_dynamic_coder *coder, const float map[256]);

/* 0 <= x <= 1, by either map. Here and below no branch depends on x: half of them would be mispredicted. */
static inline uint8_t lk_dynamic_code(const lk_dynamic_coder *c, float x)
{
    int32_t bits;
    memcpy(&bits, &x, 4);
    int32_t bucket = (bits >> 16) - LK_DYNAMIC_LOWEST;
    bucket = bucket < 0 ? 0 : bucket;
    bucket = bucket >= LK_DYNAMIC_BUCKETS ? LK_DYNAMIC_BUCKETS - 1 : bucket;
    int32_t code = c->first[bucket];
    code += x > c->bounds[code];
    return (uint8_t)(code & -(bits <= 0x3f800000)); /* 1; a NaN is above it */
}

/* -1 <= x <= 1, by the signed map, whose negative half is the positive one turned round, but for 1. */
static inline uint8_t lk_dynamic_code_signed(const lk_dynamic_coder *c, float x)
{
    int32_t bits, code = lk_dynamic_code(c, fabsf(x)), turned = 2 * LK_DYNAMIC_ZERO - code;
    memcpy(&bits, &x, 4);
    int32_t negative = bits >> 31;
    turned = turned < 0 ? 0 : turned;
    return (uint8_t)(((code & ~negative) | (turned & negative)) & -((bits & 0x7fffffff) <= 0x3f800000));
}

#ifdef __cplusplus
}
#endif
#endif
