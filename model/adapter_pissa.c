/* PiSSA's start: the r principal components of every adapted weight, in A and B and, negated in B, in the frozen half behind them.
 *
 * Components come from subspace iteration with the layer's own products, W x and W^T y, so that the weight is what the layer computes with
 * and is never formed; a few more vectors than components and ITERATIONS rounds leave an error far below the trained changes
 * (Halko, Martinsson and Tropp 2011, 4.5). PEFT takes a full decomposition, or this with "pissa_niter_n". */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter_internal.h"
#include "model/low_rank.h"

enum { MORE = 8, ITERATIONS = 24 };

/* Rows of x[p][n] orthonormal; rows that depend on earlier ones become zero. */
static void orthonormalise(float *x, int32_t p, int64_t n)
{
    for (int32_t i = 0; i < p; i++) {
        float *row = x + i * n;
        double length = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int32_t j = 0; j < i; j++) {
                double part = 0;
                for (int64_t c = 0; c < n; c++) part += (double)row[c] * (double)x[j * n + c];
                for (int64_t c = 0; c < n; c++) row[c] -= (float)(part * (double)x[j * n + c]);
            }
        for (int64_t c = 0; c < n; c++) length += (double)row[c] * (double)row[c];
        length = sqrt(length);
        for (int64_t c = 0; c < n; c++) row[c] = length > 1e-20 ? (float)((double)row[c] / length) : 0.0f;
    }
}

/* a[r,K], b[N,r]: the r first components of w, so that b a is the best approximation. */
static lk_status components(lk_backend *be, const lk_matrix *w, float *a, float *b, int32_t r, lk_philox_key key, lk_error *err)
{
    int64_t n = lk_matrix_n(w), k = lk_matrix_k(w), least = n < k ? n : k;
    int32_t p = (int32_t)(r + MORE < least ? r + MORE : least);
    float *x = malloc((size_t)(p * k) * 4), *y = malloc((size_t)(p * n) * 4), *turned = malloc((size_t)(p * n) * 4);
    lk_status status = x && y && turned ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for %d components", p);
    if (status) goto out;
    for (int64_t i = 0; i < p * k; i++) {
        uint32_t word[4];
        lk_philox(key, 2, (uint64_t)i, word);
        x[i] = lk_philox_uniform(word[0]) - 0.5f;
    }
    lk_tensor tx = lk_tensor_make(x, LK_F32, p, k), ty = lk_tensor_make(y, LK_F32, p, n);
    for (int round = 0; round < ITERATIONS && !status; round++) {
        orthonormalise(x, p, k);
        if ((status = lk_linear(be, &ty, &tx, w, NULL, NULL))) break;
        orthonormalise(y, p, n);
        status = lk_linear_backward(be, &tx, &ty, w, false);
    }
    if (status) {
        lk_backend_fail(be, status, err);
        goto out;
    }
    for (int32_t i = 0; i < p; i++)
        for (int64_t c = 0; c < n; c++) turned[c * p + i] = y[i * n + c];
    status = lk_low_rank(a, b, r, x, turned, n, k, p, err);
out:
    free(x);
    free(y);
    free(turned);
    return status;
}

/* The square root of each singular value to either side, and the layer's scale out of both. */
static void place(const lk_adapter_site *site, const float *a, const float *b, float *host)
{
    int32_t r = site->frozen;
    for (int32_t i = 0; i < r; i++) {
        double length = 0;
        for (int64_t n = 0; n < site->n; n++) length += (double)b[n * r + i] * (double)b[n * r + i];
        length = sqrt(length); /* the singular value */
        double root = sqrt(length / (double)site->scale);
        for (int half = 0; half < 2; half++) {
            for (int64_t k = 0; k < site->k; k++) host[site->a + (half * r + i) * site->k + k] = (float)((double)a[i * site->k + k] * root);
            for (int64_t n = 0; n < site->n; n++)
                host[site->b + n * site->rank + half * r + i] =
                    length > 0 ? (float)((double)b[n * r + i] / length * root * (half ? -1 : 1)) : 0.0f;
        }
    }
}

lk_status lk_adapter_pissa(const lk_adapter *a, float *host, uint64_t seed, lk_error *err)
{
    const lk_config *c = &a->model->config;
    lk_backend *be = a->model->be;
    lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_INIT);
    lk_limits limits = {
        .tokens = a->max_rank + MORE, .width = lk_config_widest(c), .matrix = lk_config_largest_matrix(c), .training = true};
    lk_status status = lk_reserve(be, &limits);
    if (status) return lk_backend_fail(be, status, err);
    for (int32_t s = 0; s < a->n_sites && !status; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->rank) continue;
        float *factor_a = malloc((size_t)(site->frozen * site->k) * 4), *factor_b = malloc((size_t)(site->frozen * site->n) * 4);
        status = factor_a && factor_b ? components(be, a->model->weights[s].w, factor_a, factor_b, site->frozen, key, err)
                                      : lk_fail(err, LK_ERR_MEMORY, "no memory for the components of a layer");
        if (!status) place(site, factor_a, factor_b, host);
        free(factor_a);
        free(factor_b);
    }
    return status;
}
