/* Routing among experts and joining what they give (Shazeer et al. 2017; the softmax of the chosen as Mixtral and Qwen3-MoE take it). */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

static bool chosen(const int32_t *ids, int64_t n, int32_t e)
{
    for (int64_t j = 0; j < n; j++)
        if (ids[j] == e) return true;
    return false;
}

/* exp(l - top) over the sum that counts. */
static double part(const float *l, int64_t experts, const int32_t *ids, int64_t k, int64_t e, bool normalise)
{
    double sum = 0.0, top = (double)l[ids[0]];
    for (int64_t i = 0; i < experts; i++)
        if (!normalise || chosen(ids, k, (int32_t)i)) sum += exp((double)l[i] - top);
    return exp((double)l[e] - top) / sum;
}

lk_status lk_ref_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise)
{
    (void)be;
    int64_t K = weights->cols;
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = lk_row(logits, t);
        int32_t *own = ids + t * K;
        for (int64_t j = 0; j < K; j++) {
            int32_t best = -1;
            for (int32_t e = 0; e < logits->cols; e++)
                if (!chosen(own, j, e) && (best < 0 || l[e] > l[best])) best = e;
            own[j] = best;
        }
        for (int64_t j = 0; j < K; j++) lk_row(weights, t)[j] = (float)part(l, logits->cols, own, K, own[j], normalise);
    }
    return LK_OK;
}

/* w = softmax over a set, of which dweights holds the chosen ones' gradients: dl_e = w_e (dw_e - sum w dw), dw 0 for the others. */
lk_status lk_ref_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                    const lk_tensor *logits, bool normalise)
{
    (void)be;
    int64_t K = dweights->cols;
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = lk_row(logits, t), *dw = lk_row(dweights, t);
        const int32_t *own = ids + t * K;
        double mean = 0.0;
        for (int64_t j = 0; j < K; j++) mean += part(l, logits->cols, own, K, own[j], normalise) * (double)dw[j];
        for (int32_t e = 0; e < logits->cols; e++) {
            double w = normalise && !chosen(own, K, e) ? 0.0 : part(l, logits->cols, own, K, e, normalise), d = 0.0;
            for (int64_t j = 0; j < K; j++)
                if (own[j] == e) d = (double)dw[j];
            lk_row(dlogits, t)[e] = (float)(w * (d - mean));
        }
    }
    return LK_OK;
}

lk_status lk_ref_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                             const lk_tensor *residual)
{
    (void)be;
    int64_t K = x->rows / y->rows;
    for (int64_t t = 0; t < y->rows; t++)
        for (int64_t c = 0; c < y->cols; c++) {
            double sum = residual ? (double)lk_row(residual, t)[c] : 0.0;
            for (int64_t j = 0; j < K; j++) sum += (weights ? (double)lk_row(weights, t)[j] : 1.0) * (double)lk_row(x, slots[t * K + j])[c];
            lk_row(y, t)[c] = (float)sum;
        }
    return LK_OK;
}

lk_status lk_ref_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                      const lk_tensor *x, const int32_t *slots, const lk_tensor *weights)
{
    (void)be;
    int64_t K = weights->cols;
    for (int64_t t = 0; t < dy->rows; t++)
        for (int64_t j = 0; j < K; j++) {
            const float *in = lk_row(x, slots[t * K + j]), *g = lk_row(dy, t);
            float *out = lk_row(dx, slots[t * K + j]), w = lk_row(weights, t)[j];
            double dot = 0.0;
            for (int64_t c = 0; c < dy->cols; c++) dot += (double)g[c] * in[c];
            lk_row(dweights, t)[j] = (float)dot;
            for (int64_t c = 0; c < dy->cols; c++) out[c] = w * g[c];
        }
    return LK_OK;
}
