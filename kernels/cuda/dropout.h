/* The dropout mask inside kernels: for .cu files only.
 *
 *     lk_cuda_mask m = lk_cuda_mask_of(site, dropout);            -- on the host; dropout NULL: keeps everything
 *     lk_drop8(values, &m, t, k, width);                          -- in a kernel: columns k .. k+7 of row t, k a multiple of 8
 */
#ifndef LK_KERNELS_CUDA_DROPOUT_H
#define LK_KERNELS_CUDA_DROPOUT_H

#include <math.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/lora.h"

typedef struct lk_cuda_mask {
    lk_philox_key key;
    uint64_t counter, site; /* site in its place, bits 44 and up */
    uint32_t least;         /* uniform(word) >= p exactly when (word >> 8) >= least */
    float kept;
    bool active;
} lk_cuda_mask;

static inline lk_cuda_mask lk_cuda_mask_of(int32_t site, const lk_dropout *d)
{
    lk_cuda_mask m = {};
    m.active = lk_cuda_drops(d);
    if (!m.active) return m;
    m.key = d->key;
    m.counter = d->counter;
    m.site = (uint64_t)(uint32_t)site << 44;
    m.least = (uint32_t)ceil((double)d->p * 0x1p24);
    m.kept = 1.0f / (1.0f - d->p);
    return m;
}

/* x[i] *= 0 or 1/(1-p) */
LK_DEVICE void lk_drop8(float x[8], const lk_cuda_mask *m, int64_t t, int64_t k, int64_t width)
{
    if (!m->active) return;
    uint64_t place = m->site | ((uint64_t)t * (uint64_t)((width + 3) / 4) + (uint64_t)k / 4);
    LK_UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t words[4];
        lk_philox(m->key, m->counter, place + (uint64_t)half, words);
        LK_UNROLL
        for (int i = 0; i < 4; i++) x[4 * half + i] = words[i] >> 8 >= m->least ? lk_mul_rn(x[4 * half + i], m->kept) : 0.0f;
    }
}

/* `count` <= 8 values, as one load where the row allows it; zeros after them. */
LK_DEVICE void lk_load_some(float out[8], const lk_bf16 *p, int64_t count, bool aligned)
{
    if (aligned && count >= 8) {
        lk_load8(out, p);
        return;
    }
    LK_UNROLL
    for (int i = 0; i < 8; i++) out[i] = i < count ? lk_bf16_float(p[i]) : 0.0f;
}

#endif
