/* AdamW with 8-bit moments, one block after another, in the order of operations of bitsandbytes' GPU kernel. The nearest code is looked for
 * among all of them. */
#include <math.h>

#include "kernels/cpu/reference/reference.h"
#include "kernels/dynamic_map.h"

static uint8_t nearest(const float *map, float x)
{
    int code = 0;
    for (int k = 0; k + 1 < 256; k++) {
        float middle = (map[k] + map[k + 1]) * 0.5f;
        if (x > middle || (x == middle && k % 2 != 0)) code = k + 1;
    }
    return (uint8_t)code;
}

static uint8_t first_code(float m, float scale)
{
    if (scale == 0.0f) return LK_DYNAMIC_ZERO;
    uint8_t code = nearest(lk_dynamic_map(), m / scale);
    return code == LK_DYNAMIC_ZERO && signbit(m) ? LK_DYNAMIC_ZERO - 1 : code;
}

static uint8_t second_code(float v, float scale) { return scale == 0.0f ? 0 : nearest(lk_dynamic_map_unsigned(), v / scale); }

/* One block of n <= LK_ADAMW8_BLOCK elements. */
static void update_block(float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                         const lk_adamw_step *step)
{
    double first = 1.0 - pow((double)step->beta1, (double)step->step), second = 1.0 - pow((double)step->beta2, (double)step->step);
    float rate = (float)((double)step->lr / first), root = (float)sqrt(second),
          decay = (float)(1.0 - (double)step->lr * (double)step->weight_decay);
    float m[LK_ADAMW8_BLOCK], v[LK_ADAMW8_BLOCK], m_most = 0.0f, v_most = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        m[i] = v[i] = 0.0f;
        if (isfinite(g[i])) {
            float gradient = g[i] * step->grad_scale;
            m[i] = step->beta1 * (lk_dynamic_map()[m8[i]] * *m_scale) + (1.0f - step->beta1) * gradient;
            v[i] = step->beta2 * (lk_dynamic_map_unsigned()[v8[i]] * *v_scale) + (1.0f - step->beta2) * gradient * gradient;
            p[i] = (p[i] - rate * (m[i] / (sqrtf(v[i]) / root + step->eps))) * decay;
        }
        m_most = fmaxf(m_most, fabsf(m[i]));
        v_most = fmaxf(v_most, v[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        m8[i] = first_code(m[i], m_most);
        v8[i] = second_code(v[i], v_most);
    }
    *m_scale = m_most;
    *v_scale = v_most;
}

lk_status lk_ref_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                        const lk_adamw_step *step)
{
    (void)be;
    for (int64_t at = 0; at < n; at += LK_ADAMW8_BLOCK) {
        int64_t count = n - at < LK_ADAMW8_BLOCK ? n - at : LK_ADAMW8_BLOCK, block = at / LK_ADAMW8_BLOCK;
        update_block(p + at, g + at, m8 + at, v8 + at, m_scale + block, v_scale + block, count, step);
    }
    return LK_OK;
}
