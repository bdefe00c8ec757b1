/* The 8-bit dynamic data type of bitsandbytes (Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2016; create_dynamic_map
 * there): 256 values in [-1, 1] or [0, 1], one power of ten after another with ever more values in each, so that small magnitudes keep
 * their relative precision. The signed map codes the second level of NF4's scales and AdamW's first moment, the unsigned one its second.
 *
 *     float bounds[LK_DYNAMIC_BOUNDS];
 *     lk_dynamic_bounds(bounds, lk_dynamic_map());                -- once
 *     uint8_t code = lk_dynamic_code(bounds, x / scale);          -- lk_dynamic_map()[code] * scale is near x
 */
#ifndef LK_KERNELS_DYNAMIC_MAP_H
#define LK_KERNELS_DYNAMIC_MAP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 256 ascending values; signed: -0.993 .. 1 with 0 at LK_DYNAMIC_ZERO; unsigned: 0 .. 1 with 0 at 0. */
const float *lk_dynamic_map(void);
const float *lk_dynamic_map_unsigned(void);
enum { LK_DYNAMIC_ZERO = 127 };

/* What lies between the codes: x takes the code that is the number of bounds below x. That is the nearest one; a value right between two
 * takes the even code, as the search of bitsandbytes' CUDA kernels for optimisers ends (quantize_2D in csrc/kernels.cu): the bounds after
 * odd codes are lowered by one step of a float for it. A NaN becomes code 0. */
enum { LK_DYNAMIC_BOUNDS = 255 };
void lk_dynamic_bounds(float bounds[LK_DYNAMIC_BOUNDS], const float map[256]);

static inline uint8_t lk_dynamic_code(const float bounds[LK_DYNAMIC_BOUNDS], float x)
{
    int code = 0;
    for (int step = 128; step; step >>= 1) code += x > bounds[code + step - 1] ? step : 0;
    return (uint8_t)code;
}

#ifdef __cplusplus
}
#endif
#endif
