/* Routing among experts and joining what they give. A row's work is small beside its linear layers': rows are shared among threads, and
 * each runs plain loops over the kernels for rows. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

typedef struct moe_args {
    const lk_rows *rows;
    const lk_tensor *y, *x, *weights, *dweights, *logits, *beside; /* beside: residual, or dy */
    int32_t *ids;
    const int32_t *chosen, *slots;
    bool normalise;
} moe_args;

static bool chosen(const int32_t *ids, int64_t n, int32_t e)
{
    for (int64_t j = 0; j < n; j++)
        if (ids[j] == e) return true;
    return false;
}

/* The largest of l that is not among the n chosen so far, the lower id among equals; whatever l holds, another one each time. */
static int32_t next_best(const float *l, int64_t experts, const int32_t *ids, int64_t n)
{
    int32_t best = -1;
    for (int32_t e = 0; e < experts; e++)
        if ((best < 0 || l[e] > l[best]) && !chosen(ids, n, e)) best = e;
    return best;
}

/* The sum of exp(l - top) over all experts or over the chosen ones. */
static float sum_that_counts(const float *l, int64_t n, const int32_t *ids, int64_t k, bool normalise)
{
    float sum = 0.0f, top = l[ids[0]];
    if (normalise)
        for (int64_t j = 0; j < k; j++) sum += expf(l[ids[j]] - top);
    else
        for (int64_t e = 0; e < n; e++) sum += expf(l[e] - top);
    return sum;
}

static void route_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const moe_args *a = context;
    int64_t K = a->weights->cols, E = a->logits->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *l = lk_row_of(a->logits, t);
        float *w = lk_row_of(a->weights, t);
        int32_t *ids = a->ids + t * K;
        for (int64_t j = 0; j < K; j++) ids[j] = next_best(l, E, ids, j);
        float sum = sum_that_counts(l, E, ids, K, a->normalise);
        for (int64_t j = 0; j < K; j++) w[j] = expf(l[ids[j]] - l[ids[0]]) / sum;
    }
}

lk_status lk_cpu_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise)
{
    moe_args args = {.ids = ids, .weights = weights, .logits = logits, .normalise = normalise};
    lk_pool_run(lk_cpu_of(be)->pool, logits->rows, 8, route_rows, &args);
    return LK_OK;
}

static void route_back_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const moe_args *a = context;
    int64_t K = a->dweights->cols, E = a->logits->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *l = lk_row_of(a->logits, t), *dw = lk_row_of(a->dweights, t);
        const int32_t *ids = a->chosen + t * K;
        float *out = lk_row_of(a->y, t), top = l[ids[0]], sum = sum_that_counts(l, E, ids, K, a->normalise), mean = 0.0f;
        for (int64_t j = 0; j < K; j++) mean += expf(l[ids[j]] - top) / sum * dw[j];
        for (int64_t e = 0; e < E; e++) out[e] = a->normalise ? 0.0f : -mean * expf(l[e] - top) / sum;
        for (int64_t j = 0; j < K; j++) out[ids[j]] = expf(l[ids[j]] - top) / sum * (dw[j] - mean);
    }
}

lk_status lk_cpu_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                    const lk_tensor *logits, bool normalise)
{
    moe_args args = {.y = dlogits, .dweights = dweights, .chosen = ids, .logits = logits, .normalise = normalise};
    lk_pool_run(lk_cpu_of(be)->pool, logits->rows, 8, route_back_rows, &args);
    return LK_OK;
}

static void combine_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const moe_args *a = context;
    int64_t K = a->x->rows / a->y->rows, C = a->y->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *y = lk_row_of(a->y, t);
        if (a->beside)
            memcpy(y, lk_row_of(a->beside, t), (size_t)C * sizeof(float));
        else
            memset(y, 0, (size_t)C * sizeof(float));
        for (int64_t j = 0; j < K; j++) {
            const float *x = lk_row_of(a->x, a->slots[t * K + j]);
            float w = a->weights ? lk_row_of(a->weights, t)[j] : 1.0f;
            for (int64_t c = 0; c < C; c++) y[c] += w * x[c];
        }
    }
}

lk_status lk_cpu_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                             const lk_tensor *residual)
{
    moe_args args = {.y = y, .x = x, .slots = slots, .weights = weights, .beside = residual};
    lk_pool_run(lk_cpu_of(be)->pool, y->rows, lk_cpu_grain(y->cols), combine_rows, &args);
    return LK_OK;
}

static void combine_back_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const moe_args *a = context;
    int64_t K = a->weights->cols, C = a->beside->cols;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *dy = lk_row_of(a->beside, t);
        for (int64_t j = 0; j < K; j++) {
            int32_t slot = a->slots[t * K + j];
            float *dx = lk_row_of(a->y, slot), w = lk_row_of(a->weights, t)[j];
            lk_row_of(a->dweights, t)[j] = a->rows->dot(dy, lk_row_of(a->x, slot), C);
            for (int64_t c = 0; c < C; c++) dx[c] = w * dy[c];
        }
    }
}

lk_status lk_cpu_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                      const lk_tensor *x, const int32_t *slots, const lk_tensor *weights)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    moe_args args = {
        .rows = lk_rows_get(cpu->tier), .y = dx, .x = x, .beside = dy, .slots = slots, .weights = weights, .dweights = dweights};
    lk_pool_run(cpu->pool, dy->rows, lk_cpu_grain(dy->cols), combine_back_rows, &args);
    return LK_OK;
}
