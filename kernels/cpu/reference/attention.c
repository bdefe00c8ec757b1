/* Causal attention within documents, and its gradient, with every score of one query written out. Products are of fp32 values
 * whatever `compute` is. */
#include <math.h>

#include "kernels/cpu/reference/reference.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scores of one query, and the gradients of the scores; and in backward one row of a document's dq. */
size_t lk_ref_attention_scratch(const lk_limits *limits)
{
    return 2 * lk_carved((size_t)larger(limits->context, limits->tokens) * sizeof(double));
}

static double dot(const float *a, const float *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* A scaled score under the soft cap; *slope is its derivative. */
static double capped(const lk_attention_shape *s, double score, double *slope)
{
    double cap = (double)s->cap, t = cap > 0.0 ? tanh(score / cap) : 0.0;
    *slope = 1.0 - t * t;
    return cap > 0.0 ? cap * t : score;
}

/* The first key that query i of a document sees. */
static int64_t first_key(const lk_attention_shape *s, int64_t i) { return s->window > 0 ? larger(0, i - s->window + 1) : 0; }

static void forward_row(const lk_attention_shape *s, float *o, float *lse, const float *q, const lk_tensor *k, const lk_tensor *v,
                        int64_t column, int64_t begin, int64_t i, double *p)
{
    int64_t first = first_key(s, i);
    double top = -INFINITY, sum = 0.0, slope;
    for (int64_t j = first; j <= i; j++) {
        p[j] = capped(s, (double)s->scale * dot(q, lk_row(k, begin + j) + column, s->head_dim), &slope);
        if (p[j] > top) top = p[j];
    }
    for (int64_t j = first; j <= i; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t d = 0; d < s->head_dim; d++) {
        double out = 0.0;
        for (int64_t j = first; j <= i; j++) out += p[j] * (double)lk_row(v, begin + j)[column + d];
        o[d] = (float)(out / sum);
    }
    if (lse) *lse = (float)(top + log(sum));
}

lk_status lk_ref_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *s, const lk_tensor *o, float *lse,
                           const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    void *p;
    LK_TRY(lk_cpu_scratch(be, "attention", (size_t)batch->n_tokens * sizeof(double), &p));
    int64_t group = s->heads / s->kv_heads;
    for (int64_t doc = 0; doc < batch->n_docs; doc++) {
        int64_t begin = batch->doc_starts[doc], end = batch->doc_starts[doc + 1];
        for (int64_t t = begin; t < end; t++)
            for (int64_t h = 0; h < s->heads; h++)
                forward_row(s, lk_row(o, t) + h * s->head_dim, lse ? lse + t * s->heads + h : NULL, lk_row(q, t) + h * s->head_dim, k, v,
                            h / group * s->head_dim, begin, t - begin, p);
    }
    return LK_OK;
}

typedef struct gradients {
    const lk_tensor *dq, *dk, *dv, *dout, *o, *q, *k, *v;
} gradients;

/* p = exp(score - lse), dp = dout . v, ds = p * (dp - dout . o): FlashAttention's backward, one query at a time. */
static void backward_row(const lk_attention_shape *s, const gradients *g, double lse, int64_t begin, int64_t i, int64_t h)
{
    int64_t t = begin + i, D = s->head_dim, column = h / (s->heads / s->kv_heads) * D;
    const float *q = lk_row(g->q, t) + h * D, *dout = lk_row(g->dout, t) + h * D;
    float *dq = lk_row(g->dq, t) + h * D;
    double delta = dot(dout, lk_row(g->o, t) + h * D, D);
    memset(dq, 0, (size_t)D * sizeof(float));
    for (int64_t j = first_key(s, i); j <= i; j++) {
        const float *k = lk_row(g->k, begin + j) + column, *v = lk_row(g->v, begin + j) + column;
        float *dk = lk_row(g->dk, begin + j) + column, *dv = lk_row(g->dv, begin + j) + column;
        double slope, p = exp(capped(s, (double)s->scale * dot(q, k, D), &slope) - lse);
        double ds = p * (dot(dout, v, D) - delta) * slope * (double)s->scale;
        for (int64_t d = 0; d < D; d++) {
            dq[d] += (float)(ds * (double)k[d]);
            dk[d] += (float)(ds * (double)q[d]);
            dv[d] += (float)(p * (double)dout[d]);
        }
    }
}

lk_status lk_ref_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *s, const lk_tensor *dq,
                                    const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                    const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    (void)be;
    gradients g = {dq, dk, dv, dout, o, q, k, v};
    for (int64_t t = 0; t < batch->n_tokens; t++) {
        memset(lk_row(dk, t), 0, (size_t)dk->cols * sizeof(float));
        memset(lk_row(dv, t), 0, (size_t)dv->cols * sizeof(float));
    }
    for (int64_t doc = 0; doc < batch->n_docs; doc++)
        for (int64_t t = batch->doc_starts[doc]; t < batch->doc_starts[doc + 1]; t++)
            for (int64_t h = 0; h < s->heads; h++)
                backward_row(s, &g, (double)lse[t * s->heads + h], batch->doc_starts[doc], t - batch->doc_starts[doc], h);
    return LK_OK;
}
