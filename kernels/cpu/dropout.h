/* LoRA's input dropout on one row: the same mask in forward and backward, because it is a function of place alone.
 *
 *     lk_dropout_factors(factors, tier, dropout, site, t, width, first, count);       -- factors[i] = 0 or 1/(1-p) of column first + i
 *
 * `first` is a multiple of 4. The bits do not depend on the tier. */
#ifndef LK_KERNELS_CPU_DROPOUT_H
#define LK_KERNELS_CPU_DROPOUT_H

#include "kernels/cpu/features.h"
#include "kernels/ops.h"

static inline bool lk_dropout_active(const lk_dropout *d) { return d && d->p > 0.0f; }

void lk_dropout_factors(float *factors, lk_cpu_tier tier, const lk_dropout *d, int32_t site, int64_t t, int64_t width, int64_t first,
                        int64_t count);

#endif
