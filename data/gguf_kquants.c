/* Encoders of Q4_K and Q6_K: the format says how values are read, not which scales are best.
 *
 * Both work in three steps. Each group of values gets the scale (and minimum) that minimise its squared error: from a few starting scales
 * round the one that just covers the group, codes are chosen, then the best real scale for these codes is solved for (two unknowns, the
 * normal equations), and the best of all is kept. The groups' scales then become small integers times the block's 16-bit scale. Last,
 * each integer is moved to its neighbours wherever that lowers the error: rounding a group's two integers independently is not what the
 * group would choose.
 *
 * Squared error is minimised because the error of a matrix product is, for inputs that are not correlated, the sum of it. Tried and left:
 * covering the range exactly (min/max), a fifth more error at 4 bits; weighting by magnitude as ggml does, which helps large
 * weights at the cost of the sum. */
#include <math.h>
#include <string.h>

#include "data/gguf_quants.h"
#include "kernels/tensor.h"

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

/* Nearest code; large quotients (a tiny scale) must not overflow the conversion. */
static int code(float x, float inverse, int low, int high)
{
    float v = x * inverse;
    if (!(v > (float)low)) return low;
    if (v >= (float)high) return high;
    return (int)lrintf(v);
}

/* ---- Q4_K: x = scale * q - minimum, q in 0..15, scale and minimum at least 0 ---- */

static float affine_error(const float *x, float scale, float minimum, uint8_t *q)
{
    float inverse = scale > 0 ? 1 / scale : 0, error = 0;
    for (int i = 0; i < 32; i++) {
        int c = code(x[i] + minimum, inverse, 0, 15);
        float e = scale * (float)c - minimum - x[i];
        q[i] = (uint8_t)c;
        error += e * e;
    }
    return error;
}

/* The best scale and minimum for given codes. */
static void affine_solve(const float *x, const uint8_t *q, float *scale, float *minimum)
{
    float sq = 0, sqq = 0, sx = 0, sxq = 0;
    for (int i = 0; i < 32; i++) {
        float c = q[i];
        sq += c;
        sqq += c * c;
        sx += x[i];
        sxq += x[i] * c;
    }
    float determinant = 32 * sqq - sq * sq;
    if (determinant <= 0) return; /* all codes the same: any scale does */
    *scale = (32 * sxq - sq * sx) / determinant;
    *minimum = (sq * sxq - sqq * sx) / determinant;
    if (*minimum < 0) { /* a minimum above zero cannot be written */
        *minimum = 0;
        *scale = sqq > 0 ? sxq / sqq : 0;
    }
    if (*scale < 0) *scale = 0;
}

static void fit_affine(const float *x, float *best_scale, float *best_minimum)
{
    float low = 0, high = x[0];
    for (int i = 0; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    *best_scale = 0;
    *best_minimum = -low;
    if (!(high > low)) return;
    float best = INFINITY;
    uint8_t q[32];
    /* from a scale that leaves the outermost values beyond the last codes to one that does not use the last code */
    for (int step = -4; step <= 8; step++) {
        float scale = (high - low) / (15 + 0.25f * (float)step), minimum = -low;
        for (int round = 0; round < 2; round++) {
            float error = affine_error(x, scale, minimum, q);
            if (error < best) {
                best = error;
                *best_scale = scale;
                *best_minimum = minimum;
            }
            affine_solve(x, q, &scale, &minimum);
        }
    }
}

static void pack_scales(uint8_t *out, const int *s, const int *m)
{
    memset(out, 0, 12);
    for (int g = 0; g < 4; g++) {
        out[g] = (uint8_t)(s[g] | (s[g + 4] >> 4) << 6);
        out[g + 4] = (uint8_t)(m[g] | (m[g + 4] >> 4) << 6);
        out[g + 8] = (uint8_t)((s[g + 4] & 15) | (m[g + 4] & 15) << 4);
    }
}

/* The pair of integers round (s, m) with the least error, and its codes. */
static void settle_affine(const float *x, float d, float dmin, int *s, int *m, uint8_t *q)
{
    uint8_t trial[32];
    int s0 = *s, m0 = *m;
    float best = affine_error(x, d * (float)s0, dmin * (float)m0, q);
    for (int i = clamp(s0 - 1, 0, 63); i <= clamp(s0 + 1, 0, 63); i++) {
        for (int j = clamp(m0 - 1, 0, 63); j <= clamp(m0 + 1, 0, 63); j++) {
            float error = affine_error(x, d * (float)i, dmin * (float)j, trial);
            if (!(error < best)) continue;
            best = error;
            *s = i;
            *m = j;
            memcpy(q, trial, sizeof trial);
        }
    }
}

void lk_q4k_encode(uint8_t out[144], const float x[256])
{
    float scale[8], minimum[8], most_scale = 0, most_minimum = 0;
    for (int g = 0; g < 8; g++) {
        fit_affine(x + 32 * g, &scale[g], &minimum[g]);
        most_scale = fmaxf(most_scale, scale[g]);
        most_minimum = fmaxf(most_minimum, minimum[g]);
    }
    uint16_t d16 = lk_f32_to_f16(most_scale / 63), m16 = lk_f32_to_f16(most_minimum / 63);
    float d = lk_f16_to_f32(d16), dmin = lk_f16_to_f32(m16);
    float by_d = d > 0 ? 1 / d : 0, by_dmin = dmin > 0 ? 1 / dmin : 0;
    int s[8], m[8];
    uint8_t q[256];
    for (int g = 0; g < 8; g++) {
        s[g] = code(scale[g], by_d, 0, 63);
        m[g] = code(minimum[g], by_dmin, 0, 63);
        settle_affine(x + 32 * g, d, dmin, &s[g], &m[g], q + 32 * g);
    }
    put16(out, d16);
    put16(out + 2, m16);
    pack_scales(out + 4, s, m);
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++) out[16 + 32 * j + i] = (uint8_t)(q[64 * j + i] | q[64 * j + 32 + i] << 4);
}

/* ---- Q6_K: x = scale * q, q in -32..31, scale of either sign ---- */

static float symmetric_error(const float *x, float scale, int8_t *q)
{
    float inverse = scale != 0 ? 1 / scale : 0, error = 0;
    if (!isfinite(inverse)) inverse = 0;
    for (int i = 0; i < 16; i++) {
        int c = code(x[i], inverse, -32, 31);
        float e = scale * (float)c - x[i];
        q[i] = (int8_t)c;
        error += e * e;
    }
    return error;
}

static float fit_symmetric(const float *x)
{
    float most = 0;
    for (int i = 0; i < 16; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    if (most == 0) return 0;
    float best = INFINITY, best_scale = 0;
    int8_t q[16];
    for (int step = -4; step <= 8; step++) { /* the largest value at code -32, or a little inside or beyond */
        float scale = -most / (32 + 0.25f * (float)step);
        for (int round = 0; round < 2; round++) {
            float error = symmetric_error(x, scale, q), sqq = 0, sxq = 0;
            if (error < best) {
                best = error;
                best_scale = scale;
            }
            for (int i = 0; i < 16; i++) {
                sqq += (float)(q[i] * q[i]);
                sxq += x[i] * (float)q[i];
            }
            if (sqq > 0) scale = sxq / sqq;
        }
    }
    return best_scale;
}

void lk_q6k_encode(uint8_t out[210], const float x[256])
{
    float scale[16], most = 0;
    for (int g = 0; g < 16; g++) {
        scale[g] = fit_symmetric(x + 16 * g);
        if (fabsf(scale[g]) > fabsf(most)) most = scale[g];
    }
    uint16_t d16 = lk_f32_to_f16(most / -128); /* 8-bit integers reach one further below zero */
    float d = lk_f16_to_f32(d16), by_d = d != 0 ? 1 / d : 0;
    memset(out, 0, 210);
    for (int g = 0; g < 16; g++) {
        int8_t q[16], trial[16];
        int s0 = code(scale[g], by_d, -128, 127), s = s0;
        float best = symmetric_error(x + 16 * g, d * (float)s0, q);
        for (int i = clamp(s0 - 1, -128, 127); i <= clamp(s0 + 1, -128, 127); i++) {
            float error = symmetric_error(x + 16 * g, d * (float)i, trial);
            if (!(error < best)) continue;
            best = error;
            s = i;
            memcpy(q, trial, sizeof q);
        }
        out[192 + g] = (uint8_t)(int8_t)s;
        for (int i = 0; i < 16; i++) {
            int at = 16 * g + i, half = at / 128, part = at % 128 / 32, l = at % 32, c = q[i] + 32;
            out[half * 64 + part % 2 * 32 + l] |= (uint8_t)((c & 15) << 4 * (part / 2));
            out[128 + half * 32 + l] |= (uint8_t)((c >> 4) << 2 * part);
        }
    }
    put16(out + 208, d16);
}
