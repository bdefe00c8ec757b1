/* Head and cross-entropy in one, a few rows at a time so that unpacking a row of the head is shared among them. */
#include <math.h>

#include "kernels/cpu/matrix.h"
#include "kernels/cpu/reference/reference.h"

enum { CHUNK = 8 };

static size_t scratch_for(int64_t vocab, int64_t width)
{
    return CHUNK * lk_carved((size_t)vocab * sizeof(float)) + lk_carved((size_t)width * sizeof(float));
}

static size_t part_scratch(int64_t width, int64_t rank)
{
    return lk_carved((size_t)width * sizeof(float)) + 2 * lk_carved((size_t)rank * sizeof(float));
}

size_t lk_ref_loss_scratch(const lk_limits *limits)
{
    if (!limits->vocab) return 0;
    return scratch_for(limits->vocab, limits->width) + (limits->head ? part_scratch(limits->width, limits->rank) : 0);
}

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

/* A trained head, row by row of the batch. */
typedef struct trained {
    const lk_head_part *part;
    float *dropped, *h, *dh; /* of one row: [C], [R], [R] */
} trained;

static float factor(const lk_dropout *d, int32_t site, int64_t t, int64_t k, int64_t width)
{
    uint32_t word[4];
    if (!d || !(d->p > 0.0f)) return 1.0f;
    lk_philox(d->key, d->counter, (uint64_t)site << 44 | (uint64_t)(t * ((width + 3) / 4) + k / 4), word);
    return lk_philox_uniform(word[k % 4]) >= d->p ? 1.0f / (1.0f - d->p) : 0.0f;
}

/* h of the row. */
static void shrink(const lk_backend *be, const trained *w, const float *x, int64_t row, int64_t width)
{
    const lk_lora *f = w->part->factors;
    const float *a = f->a;
    for (int64_t c = 0; c < width; c++) w->dropped[c] = x[c] * factor(w->part->dropout, w->part->site, row, c, width);
    for (int32_t r = 0; r < f->rank; r++) {
        double sum = 0.0;
        for (int64_t c = 0; c < width; c++) sum += (double)lk_cpu_round(be, w->dropped[c]) * (double)lk_cpu_round(be, a[r * width + c]);
        w->h[r] = (float)sum;
    }
}

static void add_factors(const lk_backend *be, const trained *w, float *logits, const float *x, int64_t row, const lk_matrix *head)
{
    const lk_lora *f = w->part->factors;
    if (!f) return;
    const float *b = f->b;
    shrink(be, w, x, row, head->k);
    for (int64_t v = 0; v < head->n; v++) {
        double sum = 0.0;
        for (int32_t r = 0; r < f->rank; r++)
            sum += (double)lk_cpu_round(be, f->scale * w->h[r]) * (double)lk_cpu_round(be, b[v * f->rank + r]);
        logits[v] += (float)sum;
    }
}

static void head_gradient(const lk_backend *be, const trained *w, const float *dlogits, const float *x, int64_t width, int64_t vocab)
{
    const lk_head_part *p = w->part;
    int64_t rows = p->ids ? p->n_ids : vocab;
    for (int64_t i = 0; p->dw && i < rows; i++) {
        float by = dlogits[p->ids ? p->ids[i] : i];
        for (int64_t c = 0; c < width; c++) p->dw[i * width + c] += p->ids ? by * x[c] : lk_cpu_round(be, by) * lk_cpu_round(be, x[c]);
    }
}

static void factor_gradients(const lk_backend *be, const trained *w, float *dx, const float *dlogits, const float *x, int64_t row,
                             const lk_matrix *head)
{
    const lk_lora *f = w->part->factors;
    if (!f) return;
    const float *a = f->a, *b = f->b;
    shrink(be, w, x, row, head->k);
    for (int32_t r = 0; r < f->rank; r++) {
        double sum = 0.0;
        for (int64_t v = 0; v < head->n; v++)
            sum += (double)lk_cpu_round(be, f->scale * dlogits[v]) * (double)lk_cpu_round(be, b[v * f->rank + r]);
        w->dh[r] = (float)sum;
    }
    for (int64_t c = 0; c < head->k; c++) {
        float sum = 0.0f;
        for (int32_t r = 0; r < f->rank; r++) {
            sum += lk_cpu_round(be, w->dh[r]) * lk_cpu_round(be, a[r * head->k + c]);
            if (f->da) f->da[r * head->k + c] += lk_cpu_round(be, w->dh[r]) * lk_cpu_round(be, w->dropped[c]);
        }
        dx[c] += sum * factor(w->part->dropout, w->part->site, row, c, head->k);
    }
    for (int64_t v = 0; v < head->n && f->db; v++)
        for (int32_t r = 0; r < f->rank; r++) f->db[v * f->rank + r] += lk_cpu_round(be, dlogits[v]) * lk_cpu_round(be, f->scale * w->h[r]);
}

lk_status lk_ref_linear_loss_trained(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                                     const lk_matrix *head, const lk_head_part *part, const int32_t *labels, float grad_scale, float cap)
{
    void *rest;
    int64_t rank = part && part->factors ? part->factors->rank : 0;
    LK_TRY(lk_cpu_scratch(be, "linear_loss", scratch_for(head->n, head->k) + (part ? part_scratch(head->k, rank) : 0), &rest));
    trained w = {.part = part};
    if (part) {
        w.dropped = lk_carve(&rest, (size_t)head->k * sizeof(float));
        w.h = lk_carve(&rest, (size_t)rank * sizeof(float));
        w.dh = lk_carve(&rest, (size_t)rank * sizeof(float));
    }
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
            if (part) add_factors(be, &w, logits[i], lk_row(x, rows[i]), rows[i], head);
            nll[rows[i]] = row_loss(logits[i], head->n, labels[rows[i]], grad_scale, cap, &hit);
            if (hits) hits[rows[i]] = hit;
        }
        if (!dx) continue;
        chunk_gradient(be, dx, logits, rows, n, head, weights);
        for (int i = 0; part && i < n; i++) {
            head_gradient(be, &w, logits[i], lk_row(x, rows[i]), head->k, head->n);
            factor_gradients(be, &w, lk_row(dx, rows[i]), logits[i], lk_row(x, rows[i]), rows[i], head);
        }
    }
    return LK_OK;
}

lk_status lk_ref_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap)
{
    return lk_ref_linear_loss_trained(be, nll, hits, dx, x, head, NULL, labels, grad_scale, cap);
}
