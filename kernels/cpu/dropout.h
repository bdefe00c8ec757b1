/* LoRA's input dropout on one row, the same mask in forward and backward because it is a function of place alone. */
#ifndef LK_KERNELS_CPU_DROPOUT_H
#define LK_KERNELS_CPU_DROPOUT_H

#include "kernels/ops.h"

static inline bool lk_dropout_active(const lk_dropout *d) { return d && d->p > 0.0f; }

/* factors[k] = 0 or 1/(1-p) for row t of a site of width K. */
static inline void lk_dropout_factors(float *factors, const lk_dropout *d, int32_t site, int64_t t, int64_t width)
{
    float kept = 1.0f / (1.0f - d->p);
    uint64_t base = ((uint64_t)(uint32_t)site << 44) | ((uint64_t)t * (uint64_t)((width + 3) / 4));
    for (int64_t k = 0; k < width; k += 4) {
        uint32_t words[4];
        lk_philox(d->key, d->counter, base + (uint64_t)k / 4, words);
        for (int64_t i = 0; i < 4 && k + i < width; i++) factors[k + i] = lk_philox_uniform(words[i]) >= d->p ? kept : 0.0f;
    }
}

#endif
