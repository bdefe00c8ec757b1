#include "kernels/tensor.h"

const char *lk_dtype_name(lk_dtype type)
{
    static const char *const names[] = {"f32", "bf16", "f16", "f64", "i64", "i32", "i16", "i8", "u8", "bool", "nf4"};
    return names[type];
}

/* IEEE 754 half to single: shift the fields and let one multiplication by 2^112 rebias, denormals included. */
float lk_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    float f;
    if ((h & 0x7c00u) == 0x7c00u) {
        rest |= 0x7f800000u;
        memcpy(&f, &rest, 4);
    } else {
        memcpy(&f, &rest, 4);
        f *= 0x1p112f;
        memcpy(&rest, &f, 4);
    }
    rest |= sign;
    memcpy(&f, &rest, 4);
    return f;
}

uint16_t lk_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (u < 0x38800000u) {                                   /* below 2^-14: a denormal; let an addition do the rounding */
        float magic = 0.5f, value;
        memcpy(&value, &u, 4);
        value += magic;
        memcpy(&u, &value, 4);
        return (uint16_t)(sign | (uint16_t)(u - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1);
    return (uint16_t)(sign | (uint16_t)((u - 0x38000000u) >> 13));
}

void lk_to_f32(float *out, const void *in, lk_dtype type, int64_t n)
{
    if (type == LK_F32) {
        memcpy(out, in, (size_t)n * 4);
    } else if (type == LK_BF16) {
        const uint16_t *p = in;
        for (int64_t i = 0; i < n; i++) out[i] = lk_bf16_to_f32(p[i]);
    } else {
        const uint16_t *p = in;
        for (int64_t i = 0; i < n; i++) out[i] = lk_f16_to_f32(p[i]);
    }
}

void lk_from_f32(void *out, lk_dtype type, const float *in, int64_t n)
{
    if (type == LK_F32) {
        memcpy(out, in, (size_t)n * 4);
    } else if (type == LK_BF16) {
        uint16_t *p = out;
        for (int64_t i = 0; i < n; i++) p[i] = lk_f32_to_bf16(in[i]);
    } else {
        uint16_t *p = out;
        for (int64_t i = 0; i < n; i++) p[i] = lk_f32_to_f16(in[i]);
    }
}
