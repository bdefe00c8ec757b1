/* Head and cross-entropy in one, a few rows at a time so that unpacking a row of the head is shared among them. */
#include <math.h>

#include "kernels/cpu/matrix.h"
#include "kernels/cpu/reference/reference.h"

enum { CHUNK = 8 };

static size_t scratch_for(int64_t vocab, int64_t width)
{
    return CHUNK * lk_carved((size_t)vocab * sizeof(float)) + lk_carved((size_t)width * sizeof(float));
}

size_t lk_ref_loss_scratch(const lk_limits *limits) { return limits->vocab ? scratch_for(limits->vocab, limits->width) : 0; }

/* Loss of one row of logits; leaves the gradient with respect to them in their place. */
static float row_loss(float *logits, int64_t vocab, int32_t label, float grad_scale, float cap, bool *hit)
{
    int64_t best = 0;
    for (int64_t n = 0; n < vocab && cap > 0.0f; n++) logits[n] = (float)((double)cap * tanh((double)logits[n] / (double)cap));
    for (int64_t n = 1; n < vocab; n++)
        if (logits[n] > logits[best]) best = n;
    *hit = best == label;
    double sum = 0.0, top = (double)logits[best];
    for (int64_t n = 0; n < vocab; n++) sum += exp((double)logits[n] - top);
    double lse = top + log(sum);
    float loss = (float)(lse - (double)logits[label]);
    for (int64_t n = 0; n < vocab; n++) {
        double t = cap > 0.0f ? (double)logits[n] / (double)cap : 0.0;
        logits[n] = grad_scale * (float)(1.0 - t * t) * ((float)exp((double)logits[n] - lse) - (n == label ? 1.0f : 0.0f));
    }
    return loss;
}

static void chunk_logits(const lk_backend *be, float *const logits[], const int64_t rows[], int n, const lk_tensor *x,
                         const lk_matrix *head, float *weights)
{
    for (int64_t v = 0; v < head->n; v++) {
        lk_cpu_matrix_unpack(head, v, v + 1, weights);
        for (int i = 0; i < n; i++) {
            const float *in = lk_row(x, rows[i]);
            double sum = 0.0;
            for (int64_t c = 0; c < head->k; c++) sum += (double)lk_cpu_round(be, in[c]) * weights[c];
            logits[i][v] = (float)sum;
        }
    }
}

static void chunk_gradient(const lk_backend *be, const lk_tensor *dx, float *const dlogits[], const int64_t rows[], int n,
                           const lk_matrix *head, float *weights)
{
    for (int64_t v = 0; v < head->n; v++) {
        lk_cpu_matrix_unpack(head, v, v + 1, weights);
        for (int i = 0; i < n; i++) {
            float g = lk_cpu_round(be, dlogits[i][v]), *out = lk_row(dx, rows[i]);
            for (int64_t c = 0; c < head->k; c++) out[c] += g * weights[c];
        }
    }
}

lk_status lk_ref_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap)
{
    void *rest;
    LK_TRY(lk_cpu_scratch(be, "linear_loss", scratch_for(head->n, head->k), &rest));
    float *logits[CHUNK], *weights = lk_carve(&rest, (size_t)head->k * sizeof(float));
    for (int i = 0; i < CHUNK; i++) logits[i] = lk_carve(&rest, (size_t)head->n * sizeof(float));
    for (int64_t t = 0; t < x->rows;) {
        int64_t rows[CHUNK];
        int n = 0;
        for (; t < x->rows && n < CHUNK; t++) {
            if (dx) memset(lk_row(dx, t), 0, (size_t)dx->cols * sizeof(float));
            nll[t] = 0.0f;
            if (hits) hits[t] = 0;
            if (labels[t] >= 0) rows[n++] = t;
        }
        if (n == 0) continue;
        chunk_logits(be, logits, rows, n, x, head, weights);
        for (int i = 0; i < n; i++) {
            bool hit;
            nll[rows[i]] = row_loss(logits[i], head->n, labels[rows[i]], grad_scale, cap, &hit);
            if (hits) hits[rows[i]] = hit;
        }
        if (dx) chunk_gradient(be, dx, logits, rows, n, head, weights);
    }
    return LK_OK;
}
