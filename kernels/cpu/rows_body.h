/* The kernels of rows.h on vectors of LK_LANES (kernels/cpu/vector.h says why this is a header). Sums keep four vectors of partial
 * sums, joined in one fixed tree. */
#include "kernels/cpu/rows.h"

/* Calls ONCE(load, store) for every full vector and then for the rest. i is the element. */
#define EACH_VECTOR(n, full, rest)                   \
    do {                                             \
        int64_t i = 0;                               \
        for (; i + LK_LANES <= (n); i += LK_LANES) { \
            full                                     \
        }                                            \
        if (i < (n)) {                               \
            const int64_t left = (n)-i;              \
            rest                                     \
        }                                            \
    } while (0)

LK_TARGET static float sum_squares(const float *x, int64_t n)
{
    vf s[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + 4 * LK_LANES <= n; i += 4 * LK_LANES)
        for (int j = 0; j < 4; j++) {
            vf a = vf_load(x + i + j * LK_LANES);
            s[j] = vf_fma(a, a, s[j]);
        }
    for (int j = 0; i < n; i += LK_LANES, j++) {
        vf a = n - i < LK_LANES ? vf_load_part(x + i, n - i) : vf_load(x + i);
        s[j] = vf_fma(a, a, s[j]);
    }
    return vf_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3])));
}

/* Pieces short enough for fp32 lanes, joined in double. */
LK_TARGET static double sum_squares_double(const float *x, int64_t n)
{
    double sums[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i < n; i++, j++) sums[j] += (double)x[i] * (double)x[i];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

LK_TARGET static float dot(const float *a, const float *b, int64_t n)
{
    vf s[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + 4 * LK_LANES <= n; i += 4 * LK_LANES)
        for (int j = 0; j < 4; j++) s[j] = vf_fma(vf_load(a + i + j * LK_LANES), vf_load(b + i + j * LK_LANES), s[j]);
    for (int j = 0; i < n; i += LK_LANES, j++) {
        int64_t left = n - i;
        if (left < LK_LANES)
            s[j] = vf_fma(vf_load_part(a + i, left), vf_load_part(b + i, left), s[j]);
        else
            s[j] = vf_fma(vf_load(a + i), vf_load(b + i), s[j]);
    }
    return vf_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3])));
}

LK_TARGET static float dot3(const float *a, const float *b, const float *c, int64_t n)
{
    vf s[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + 4 * LK_LANES <= n; i += 4 * LK_LANES)
        for (int j = 0; j < 4; j++) {
            int64_t at = i + j * LK_LANES;
            s[j] = vf_fma(vf_mul(vf_load(a + at), vf_load(b + at)), vf_load(c + at), s[j]);
        }
    for (int j = 0; i < n; i += LK_LANES, j++) {
        int64_t left = n - i;
        if (left < LK_LANES)
            s[j] = vf_fma(vf_mul(vf_load_part(a + i, left), vf_load_part(b + i, left)), vf_load_part(c + i, left), s[j]);
        else
            s[j] = vf_fma(vf_mul(vf_load(a + i), vf_load(b + i)), vf_load(c + i), s[j]);
    }
    return vf_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3])));
}

LK_TARGET static void norm(float *y, const float *x, const float *weight, float scale, int64_t n)
{
    vf by = vf_set(scale);
    EACH_VECTOR(n, vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), by), vf_load(weight + i)));
                , vf_store_part(y + i, vf_mul(vf_mul(vf_load_part(x + i, left), by), vf_load_part(weight + i, left)), left););
}

LK_INLINE vf norm_slope(vf dy, vf x, vf weight, vf r, vf c) { return vf_mul(r, vf_sub(vf_mul(dy, weight), vf_mul(x, c))); }

LK_TARGET static void norm_backward(float *dx, const float *dy, const float *x, const float *weight, float r, float c, int64_t n,
                                    bool accumulate)
{
    vf vr = vf_set(r), vc = vf_set(c);
    EACH_VECTOR(n, vf d = norm_slope(vf_load(dy + i), vf_load(x + i), vf_load(weight + i), vr, vc);
                vf_store(dx + i, accumulate ? vf_add(vf_load(dx + i), d) : d);
                , vf d = norm_slope(vf_load_part(dy + i, left), vf_load_part(x + i, left), vf_load_part(weight + i, left), vr, vc);
                vf_store_part(dx + i, accumulate ? vf_add(vf_load_part(dx + i, left), d) : d, left););
}

LK_INLINE vf logistic(vf x) { return vf_div(vf_set(1.0f), vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_set(0.0f), x)))); }

/* Value and slope. tanh(u) = 2 logistic(2u) - 1, so GELU is x * logistic(2u) and shares the code. */
LK_INLINE vf activate(vf x, lk_activation act, vf *slope)
{
    const vf one = vf_set(1.0f);
    if (act == LK_SILU) {
        vf s = logistic(x);
        *slope = vf_mul(s, vf_fma(x, vf_sub(one, s), one));
        return vf_mul(x, s);
    }
    const vf root2 = vf_set(1.5957691216057308f), cubic = vf_set(0.044715f); /* 2 sqrt(2/pi) */
    vf square = vf_mul(x, x), u = vf_mul(vf_mul(root2, x), vf_fma(cubic, square, one));
    vf s = logistic(u), du = vf_mul(root2, vf_fma(vf_set(0.134145f), square, one));
    *slope = vf_mul(s, vf_fma(vf_mul(x, vf_sub(one, s)), du, one));
    return vf_mul(x, s);
}

LK_TARGET static void glu(float *y, const float *gate, const float *up, int64_t n, lk_activation act)
{
    vf slope;
    EACH_VECTOR(n, vf_store(y + i, vf_mul(activate(vf_load(gate + i), act, &slope), vf_load(up + i)));
                , vf_store_part(y + i, vf_mul(activate(vf_load_part(gate + i, left), act, &slope), vf_load_part(up + i, left)), left););
}

LK_TARGET static void glu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n,
                                   lk_activation act)
{
    vf slope;
    EACH_VECTOR(n, vf d = vf_load(dy + i); vf value = activate(vf_load(gate + i), act, &slope);
                vf dg = vf_mul(vf_mul(d, vf_load(up + i)), slope); vf_store(dgate + i, dg); vf_store(dup + i, vf_mul(d, value));
                , vf d = vf_load_part(dy + i, left); vf value = activate(vf_load_part(gate + i, left), act, &slope);
                vf dg = vf_mul(vf_mul(d, vf_load_part(up + i, left)), slope); vf_store_part(dgate + i, dg, left);
                vf_store_part(dup + i, vf_mul(d, value), left););
}

LK_TARGET static void add(float *y, const float *x, int64_t n)
{
    EACH_VECTOR(n, vf_store(y + i, vf_add(vf_load(y + i), vf_load(x + i)));
                , vf_store_part(y + i, vf_add(vf_load_part(y + i, left), vf_load_part(x + i, left)), left););
}

LK_TARGET static void rotate(float *a, float *b, const float *c, const float *s, int64_t n, bool backward)
{
    vf sign = vf_set(backward ? -1.0f : 1.0f);
    EACH_VECTOR(n, vf va = vf_load(a + i); vf vb = vf_load(b + i); vf vc = vf_load(c + i); vf vs = vf_mul(sign, vf_load(s + i));
                vf_store(a + i, vf_sub(vf_mul(va, vc), vf_mul(vb, vs))); vf_store(b + i, vf_add(vf_mul(vb, vc), vf_mul(va, vs)));
                , vf va = vf_load_part(a + i, left); vf vb = vf_load_part(b + i, left); vf vc = vf_load_part(c + i, left);
                vf vs = vf_mul(sign, vf_load_part(s + i, left)); vf_store_part(a + i, vf_sub(vf_mul(va, vc), vf_mul(vb, vs)), left);
                vf_store_part(b + i, vf_add(vf_mul(vb, vc), vf_mul(va, vs)), left););
}

LK_TARGET static float max(const float *x, int64_t n)
{
    vf top = vf_set(-INFINITY);
    float best = -INFINITY;
    int64_t i = 0;
    for (; i + LK_LANES <= n; i += LK_LANES) top = vf_max(vf_load(x + i), top);
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    float lanes = vf_top(top);
    return lanes > best ? lanes : best;
}

LK_TARGET static float exp_sum(float *y, const float *x, int64_t n, float top)
{
    vf shift = vf_set(top), s[2] = {vf_set(0), vf_set(0)};
    int64_t i = 0;
    int j = 0;
    for (; i + LK_LANES <= n; i += LK_LANES, j ^= 1) {
        vf e = vf_exp(vf_sub(vf_load(x + i), shift));
        vf_store(y + i, e);
        s[j] = vf_add(s[j], e);
    }
    float sum = vf_sum(vf_add(s[0], s[1]));
    if (i < n) {
        vf_store_part(y + i, vf_exp(vf_sub(vf_load_part(x + i, n - i), shift)), n - i);
        sum += vf_sum(vf_load_part(y + i, n - i));
    }
    return sum;
}

LK_TARGET static void scale(float *y, float by, int64_t n)
{
    vf factor = vf_set(by);
    EACH_VECTOR(n, vf_store(y + i, vf_mul(vf_load(y + i), factor));
                , vf_store_part(y + i, vf_mul(vf_load_part(y + i, left), factor), left););
}

LK_TARGET static float sum_from(const float *x, int64_t n, float least, int64_t *count)
{
    vf from = vf_set(least), one = vf_set(1.0f), s[2] = {vf_set(0), vf_set(0)}, c[2] = {vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + 2 * LK_LANES <= n; i += 2 * LK_LANES)
        for (int j = 0; j < 2; j++) {
            vf a = vf_load(x + i + j * LK_LANES);
            s[j] = vf_add(s[j], vf_keep_ge(a, a, from));
            c[j] = vf_add(c[j], vf_keep_ge(one, a, from));
        }
    float sum = vf_sum(vf_add(s[0], s[1])), counted = vf_sum(vf_add(c[0], c[1]));
    for (; i < n; i++) {
        if (!(x[i] >= least)) continue;
        sum += x[i];
        counted += 1.0f;
    }
    *count = (int64_t)counted;
    return sum;
}

enum { BLOCK = 64, BLOCK_VECTORS = BLOCK / LK_LANES };

static inline void blank(float *s, int first, int last, float value)
{
    for (int i = 0; i < first; i++) s[i] = value;
    for (int i = last < first ? first : last; i < BLOCK; i++) s[i] = value;
}

/* In three sweeps over the rows rather than row by row: each sweep's rows are independent chains that overlap in the processor. */
LK_TARGET static void softmax(float *s, int n, const int *first, const int *last, float factor, float *top, float *sum, float *shrink)
{
    float now[BLOCK + LK_LANES];
    for (int r = 0; r < n; r++) {
        float *row = s + r * BLOCK;
        if (first[r] > 0 || last[r] < BLOCK) blank(row, first[r], last[r], -INFINITY);
        vf best = vf_load(row);
        for (int i = 1; i < BLOCK_VECTORS; i++) best = vf_max(vf_load(row + i * LK_LANES), best);
        float highest = vf_top(best) * factor;
        now[r] = highest > top[r] ? highest : top[r];
        shrink[r] = top[r];
    }
    for (int r = 0; r < n; r += LK_LANES) { /* exp(-inf - now) is 0; a row that has seen nothing yet has nothing to shrink */
        int64_t left = n - r;
        if (left >= LK_LANES)
            vf_store(shrink + r, vf_exp(vf_sub(vf_load(shrink + r), vf_load(now + r))));
        else
            vf_store_part(shrink + r, vf_exp(vf_sub(vf_load_part(shrink + r, left), vf_load_part(now + r, left))), left);
    }
    vf by = vf_set(factor);
    for (int r = 0; r < n; r++) {
        float *row = s + r * BLOCK;
        vf shift = vf_set(now[r] == -INFINITY ? 0.0f : -now[r]), total = vf_set(0.0f);
        for (int i = 0; i < BLOCK_VECTORS; i++) {
            vf e = vf_exp(vf_fma(vf_load(row + i * LK_LANES), by, shift));
            vf_store(row + i * LK_LANES, e);
            total = vf_add(total, e);
        }
        if (now[r] == top[r]) shrink[r] = 1.0f;
        top[r] = now[r];
        sum[r] = sum[r] * shrink[r] + vf_sum(total);
    }
}

LK_TARGET static void softmax_back(float *s, float *dp, int n, const int *first, const int *last, float factor, const float *lse,
                                   const float *delta)
{
    vf by = vf_set(factor);
    for (int r = 0; r < n; r++, s += BLOCK, dp += BLOCK) {
        if (first[r] > 0 || last[r] < BLOCK) {
            blank(s, first[r], last[r], -INFINITY);
            blank(dp, first[r], last[r], 0.0f);
        }
        vf shift = vf_set(-lse[r]), less = vf_set(delta[r]);
        for (int i = 0; i < BLOCK; i += LK_LANES) {
            vf p = vf_exp(vf_fma(vf_load(s + i), by, shift));
            vf_store(s + i, p);
            vf_store(dp + i, vf_mul(vf_mul(p, by), vf_sub(vf_load(dp + i), less)));
        }
    }
}

/* One vector of parameters; the products stay unfused so that the scalar rest and every tier give the same bits. */
LK_INLINE void adamw_vector(vf *p, vf g, vf *m, vf *v, const lk_adamw_rates *r)
{
    g = vf_mul(g, vf_set(r->grad_scale));
    *m = vf_add(vf_mul(vf_set(r->beta1), *m), vf_mul(vf_set(r->rest1), g));
    *v = vf_add(vf_mul(vf_set(r->beta2), *v), vf_mul(vf_mul(vf_set(r->rest2), g), g));
    vf step = vf_div(*m, vf_add(vf_div(vf_sqrt(*v), vf_set(r->root)), vf_set(r->eps)));
    *p = vf_sub(vf_mul(*p, vf_set(r->decay)), vf_mul(vf_set(r->rate), step));
}

LK_TARGET static void adamw(float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_rates *rates)
{
    EACH_VECTOR(n, vf a = vf_load(p + i); vf b = vf_load(m + i); vf c = vf_load(v + i); adamw_vector(&a, vf_load(g + i), &b, &c, rates);
                vf_store(p + i, a); vf_store(m + i, b); vf_store(v + i, c);, vf a = vf_load_part(p + i, left);
                vf b = vf_load_part(m + i, left); vf c = vf_load_part(v + i, left);
                adamw_vector(&a, vf_load_part(g + i, left), &b, &c, rates); vf_store_part(p + i, a, left); vf_store_part(m + i, b, left);
                vf_store_part(v + i, c, left););
}

#define LK_ROWS_TABLE                                                                                                              \
    {                                                                                                                              \
        .sum_squares = sum_squares, .sum_squares_double = sum_squares_double, .dot = dot, .dot3 = dot3, .norm = norm,              \
        .norm_backward = norm_backward, .glu = glu, .glu_backward = glu_backward, .add = add, .rotate = rotate, .max = max,        \
        .exp_sum = exp_sum, .scale = scale, .sum_from = sum_from, .softmax = softmax, .softmax_back = softmax_back, .adamw = adamw \
    }
