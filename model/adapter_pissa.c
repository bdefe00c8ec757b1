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

/* The layer's two products on rows in host memory. */
typedef struct layer {
    lk_backend *be;
    const lk_matrix *w;
    int64_t n, k;
    int32_t p;   /* rows */
    void *x, *y; /* memory of the backend: [p,K] and [p,N] activations */
    char *host;  /* [p, the wider] of them */
} layer;

static lk_status put(const layer *l, void *to, const float *from, int64_t count)
{
    lk_dtype act = lk_backend_act(l->be);
    lk_from_f32(l->host, act, from, count);
    return lk_upload(l->be, to, l->host, (size_t)(count * lk_dtype_size(act)));
}

static lk_status get(const layer *l, float *to, const void *from, int64_t count)
{
    lk_dtype act = lk_backend_act(l->be);
    LK_TRY(lk_download(l->be, l->host, from, (size_t)(count * lk_dtype_size(act))));
    lk_to_f32(to, l->host, act, count);
    return LK_OK;
}

/* y = W x or, back, x = W^T y. What goes in stays as the backend took it: rounded, where its activations are. */
static lk_status multiply(const layer *l, float *x, float *y, bool back)
{
    lk_dtype act = lk_backend_act(l->be);
    lk_tensor tx = lk_tensor_make(l->x, act, l->p, l->k), ty = lk_tensor_make(l->y, act, l->p, l->n);
    LK_TRY(back ? put(l, l->y, y, l->p * l->n) : put(l, l->x, x, l->p * l->k));
    LK_TRY(back ? lk_linear_backward(l->be, &tx, &ty, l->w, false) : lk_linear(l->be, &ty, &tx, l->w, NULL, NULL));
    LK_TRY(get(l, x, l->x, l->p * l->k));
    return get(l, y, l->y, l->p * l->n);
}

static lk_status take_layer(layer *l)
{
    size_t size = (size_t)lk_dtype_size(lk_backend_act(l->be));
    LK_TRY(lk_alloc(l->be, (size_t)(l->p * l->k) * size, &l->x));
    LK_TRY(lk_alloc(l->be, (size_t)(l->p * l->n) * size, &l->y));
    l->host = malloc((size_t)(l->p * (l->k > l->n ? l->k : l->n)) * size);
    return l->host ? LK_OK : LK_ERR_MEMORY;
}

/* a[r,K], b[N,r]: the r first components of w, so that b a is the best approximation. */
static lk_status components(lk_backend *be, const lk_matrix *w, float *a, float *b, int32_t r, lk_philox_key key, lk_error *err)
{
    int64_t n = lk_matrix_n(w), k = lk_matrix_k(w), least = n < k ? n : k;
    layer l = {.be = be, .w = w, .n = n, .k = k, .p = (int32_t)(r + MORE < least ? r + MORE : least)};
    int32_t p = l.p;
    float *x = malloc((size_t)(p * k) * 4), *y = malloc((size_t)(p * n) * 4), *turned = malloc((size_t)(p * n) * 4);
    lk_status status = x && y && turned ? take_layer(&l) : LK_ERR_MEMORY;
    for (int64_t i = 0; i < p * k && !status; i++) {
        uint32_t word[4];
        lk_philox(key, 2, (uint64_t)i, word);
        x[i] = lk_philox_uniform(word[0]) - 0.5f;
    }
    for (int round = 0; round < ITERATIONS && !status; round++) {
        orthonormalise(x, p, k);
        if ((status = multiply(&l, x, y, false))) break;
        orthonormalise(y, p, n);
        status = multiply(&l, x, y, true);
    }
    if (status) {
        if (status == LK_ERR_MEMORY)
            lk_fail(err, status, "no memory for %d components", p);
        else
            lk_backend_fail(be, status, err);
        goto out;
    }
    for (int64_t c = 0; c < n; c++)
        for (int32_t i = 0; i < p; i++) turned[c * p + i] = y[i * n + c];
    status = lk_low_rank(a, b, r, x, turned, n, k, p, err);
out:
    lk_free(be, l.x);
    lk_free(be, l.y);
    free(l.host);
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
