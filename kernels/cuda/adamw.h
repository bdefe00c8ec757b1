/* What the two AdamW kernels share: the factors of a step, the update of one element's moments, and 16-byte access to floats.
 *
 * Only .cu files include this. */
#ifndef LK_KERNELS_CUDA_ADAMW_H
#define LK_KERNELS_CUDA_ADAMW_H

#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

/* Worked out once on the host, as the CPU's paths do. */
typedef struct lk_cuda_adamw_rates {
    float beta1, beta2, rest1, rest2; /* rest = 1 - beta */
    float rate, root, decay, eps;     /* lr/(1-b1^t), sqrt(1-b2^t), 1 - lr*wd */
    float grad_scale;
} lk_cuda_adamw_rates;

static inline lk_cuda_adamw_rates lk_cuda_adamw_rates_of(const lk_adamw_step *s)
{
    double first = 1.0 - pow((double)s->beta1, (double)s->step), second = 1.0 - pow((double)s->beta2, (double)s->step);
    lk_cuda_adamw_rates r;
    r.beta1 = s->beta1;
    r.beta2 = s->beta2;
    r.rest1 = 1.0f - s->beta1;
    r.rest2 = 1.0f - s->beta2;
    r.rate = (float)((double)s->lr / first);
    r.root = (float)sqrt(second);
    r.decay = (float)(1.0 - (double)s->lr * (double)s->weight_decay);
    r.eps = s->eps;
    r.grad_scale = s->grad_scale;
    return r;
}

/* Brings m and v up to date; what is to be taken off p. */
LK_DEVICE float lk_adamw_moments(float g, float *m, float *v, const lk_cuda_adamw_rates *r)
{
    g = lk_mul_rn(g, r->grad_scale);
    *m = lk_add_rn(lk_mul_rn(r->beta1, *m), lk_mul_rn(r->rest1, g));
    *v = lk_add_rn(lk_mul_rn(r->beta2, *v), lk_mul_rn(lk_mul_rn(r->rest2, g), g));
    return lk_mul_rn(r->rate, *m / lk_add_rn(sqrtf(*v) / r->root, r->eps));
}

static inline bool lk_aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

LK_DEVICE void lk_load4(float out[4], const float *p)
{
    uint4 v = *(const uint4 *)p;
    out[0] = lk_as_float(v.x);
    out[1] = lk_as_float(v.y);
    out[2] = lk_as_float(v.z);
    out[3] = lk_as_float(v.w);
}
LK_DEVICE void lk_store4(float *p, const float in[4])
{
    uint4 v;
    v.x = lk_as_bits(in[0]);
    v.y = lk_as_bits(in[1]);
    v.z = lk_as_bits(in[2]);
    v.w = lk_as_bits(in[3]);
    *(uint4 *)p = v;
}

#endif
