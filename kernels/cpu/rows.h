/* Kernels over single rows and flat arrays, one set per instruction set (rows_portable.c, rows_avx2.c, rows_avx512.c, all from
 * rows_body.h).
 *
 *     const lk_rows *r = lk_rows_get(tier);
 *     float sum = r->exp_sum(p, p, n, top);
 *
 * Pure functions: the bits depend on the row and its width only. Rows need no alignment; nothing beyond n is read or written. */
#ifndef LK_KERNELS_CPU_ROWS_H
#define LK_KERNELS_CPU_ROWS_H

#include "kernels/cpu/features.h"
#include "kernels/ops.h"

/* The factors of one AdamW step, worked out once. */
typedef struct lk_adamw_rates {
    float beta1, beta2, rest1, rest2; /* rest = 1 - beta */
    float rate, root, decay, eps;     /* lr/(1-b1^t), sqrt(1-b2^t), 1 - lr*wd */
    float grad_scale;
} lk_adamw_rates;

typedef struct lk_rows {
    float (*sum_squares)(const float *x, int64_t n);
    double (*sum_squares_double)(const float *x, int64_t n);
    float (*dot)(const float *a, const float *b, int64_t n);
    /* sum of a*b*c */
    float (*dot3)(const float *a, const float *b, const float *c, int64_t n);
    /* y = x * scale * weight */
    void (*norm)(float *y, const float *x, const float *weight, float scale, int64_t n);
    /* dx (+)= r * (dy*w - x * c) */
    void (*norm_backward)(float *dx, const float *dy, const float *x, const float *weight, float r, float c, int64_t n, bool accumulate);
    void (*glu)(float *y, const float *gate, const float *up, int64_t n, lk_activation act);
    void (*glu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n, lk_activation act);
    void (*add)(float *y, const float *x, int64_t n);
    /* (a, b) = (a*c - b*s, b*c + a*s) with s negated when backward */
    void (*rotate)(float *a, float *b, const float *c, const float *s, int64_t n, bool backward);
    float (*max)(const float *x, int64_t n); /* -inf for n = 0; NaN are passed over */
    /* y = exp(x - top), in place if wanted; returns the sum */
    float (*exp_sum)(float *y, const float *x, int64_t n, float top);
    void (*scale)(float *y, float by, int64_t n);
    /* The sum of the x that are >= least, and how many. n up to some thousands: one fp32 sum. */
    float (*sum_from)(const float *x, int64_t n, float least, int64_t *count);
    /* One block of 64 scores in each of n <= 64 rows of a running softmax (Milakov & Gimelshein 2018). Of scale * s the columns [first,
     * last) count: s[r*64 + j] becomes exp(scale * s - top), 0 elsewhere; top and sum are brought up to date (begin with -inf and 0).
     * shrink[r] is the factor for what row r accumulated before. scale > 0. A row's bits do not depend on the others. */
    void (*softmax)(float *s, int n, const int *first, const int *last, float scale, float *top, float *sum, float *shrink);
    /* Its gradient: s becomes p = exp(scale * s - lse), dp becomes ds = p * (dp - delta) * scale; 0 outside [first, last). */
    void (*softmax_back)(float *s, float *dp, int n, const int *first, const int *last, float scale, const float *lse, const float *delta);
    void (*adamw)(float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_rates *rates);
} lk_rows;

const lk_rows *lk_rows_get(lk_cpu_tier tier);

extern const lk_rows lk_rows_portable, lk_rows_avx2, lk_rows_avx512;

#endif
