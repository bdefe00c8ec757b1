/* Head and cross-entropy in one (Liger's fused linear cross-entropy): supervised rows are gathered into chunks, a chunk's logits are
 * computed, turned into loss and gradient where they lie, and multiplied back. Rows that are ignored cost nothing. The chunk is as
 * large as a fixed budget of logits allows, because the head is read once a chunk: results do not depend on its size, a row's
 * product being the same bits in any company. */
#include <math.h>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

enum { LOGIT_BYTES = 32 << 20, LEAST_ROWS = 32, MOST_ROWS = 512, SUM_PIECE = 2048 };

static int64_t chunk_rows(int64_t vocab, int64_t tokens)
{
    int64_t rows = LOGIT_BYTES / (4 * vocab) / LEAST_ROWS * LEAST_ROWS;
    if (rows < LEAST_ROWS) rows = LEAST_ROWS;
    if (rows > MOST_ROWS) rows = MOST_ROWS;
    return rows < tokens ? rows : tokens;
}

typedef struct loss_args {
    const lk_rows *rows;
    float *logits, *x, *dx; /* [chunk, V], [chunk, C], [chunk, C] */
    int64_t index[MOST_ROWS];
    int64_t n, vocab, width;
    float *nll;
    uint8_t *hits;
    const lk_tensor *in, *out;
    const int32_t *labels;
    float grad_scale, cap;
} loss_args;

static size_t product_scratch(const lk_backend *be, int64_t rows, int64_t vocab, int64_t width)
{
    const lk_gemm *g = lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute);
    return lk_cpu_product_scratch(g, be->threads, rows, vocab > width ? vocab : width);
}

static size_t scratch_for(const lk_backend *be, int64_t rows, int64_t vocab, int64_t width)
{
    return lk_carved((size_t)(rows * vocab) * 4) + 2 * lk_carved((size_t)(rows * width) * 4) + product_scratch(be, rows, vocab, width);
}

size_t lk_cpu_loss_scratch(const lk_backend *be, const lk_limits *l)
{
    return l->vocab && l->tokens ? scratch_for(be, chunk_rows(l->vocab, l->tokens), l->vocab, l->width) : 0;
}

/* Loss of one row; the gradient with respect to the logits takes their place. */
static void row_loss(const loss_args *a, float *logits, int64_t t)
{
    int32_t label = a->labels[t];
    float top = a->rows->max(logits, a->vocab), own = logits[label];
    bool hit = own == top;
    for (int32_t i = 0; i < label && hit; i++) hit = logits[i] != top; /* among equals the lowest id counts as the arg max */
    double sum = 0.0; /* pieces in fp32, joined in double: a vocabulary is too long for one fp32 sum */
    for (int64_t i = 0; i < a->vocab; i += SUM_PIECE)
        sum += (double)a->rows->exp_sum(logits + i, logits + i, a->vocab - i < SUM_PIECE ? a->vocab - i : SUM_PIECE, top);
    a->nll[t] = (float)((double)top - (double)own + log(sum));
    if (a->hits) a->hits[t] = hit;
    if (!a->out) return;
    a->rows->scale(logits, (float)((double)a->grad_scale / sum), a->vocab);
    logits[label] -= a->grad_scale;
}

/* The same under a soft cap, whose slope each gradient takes: 1 - tanh^2, where tanh is the capped logit over the cap. */
static void row_loss_capped(const loss_args *a, float *logits, int64_t t)
{
    int32_t label = a->labels[t];
    float cap = a->cap, piece[SUM_PIECE];
    for (int64_t i = 0; i < a->vocab; i++) logits[i] = cap * tanhf(logits[i] / cap);
    float top = a->rows->max(logits, a->vocab), own = logits[label];
    bool hit = own == top;
    for (int32_t i = 0; i < label && hit; i++) hit = logits[i] != top;
    double sum = 0.0;
    for (int64_t i = 0; i < a->vocab; i += SUM_PIECE)
        sum += (double)a->rows->exp_sum(piece, logits + i, a->vocab - i < SUM_PIECE ? a->vocab - i : SUM_PIECE, top);
    a->nll[t] = (float)((double)top - (double)own + log(sum));
    if (a->hits) a->hits[t] = hit;
    if (!a->out) return;
    for (int64_t i = 0; i < a->vocab; i += SUM_PIECE) {
        int64_t n = a->vocab - i < SUM_PIECE ? a->vocab - i : SUM_PIECE;
        a->rows->exp_sum(piece, logits + i, n, top);
        for (int64_t j = 0; j < n; j++) {
            float th = logits[i + j] / cap, p = piece[j] * (float)(1.0 / sum) - (i + j == label ? 1.0f : 0.0f);
            logits[i + j] = a->grad_scale * (1.0f - th * th) * p;
        }
    }
}

static void loss_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) (a->cap > 0.0f ? row_loss_capped : row_loss)(a, a->logits + i * a->vocab, a->index[i]);
}

static void run_chunk(lk_cpu_team *team, loss_args *a, const lk_matrix *head)
{
    for (int64_t i = 0; i < a->n; i++) memcpy(a->x + i * a->width, lk_row_of(a->in, a->index[i]), (size_t)a->width * 4);
    lk_cpu_product(team, a->logits, a->vocab, a->x, a->width, a->n, head, NULL);
    lk_pool_run(team->pool, a->n, 1, loss_task, a);
    if (!a->out) return;
    lk_cpu_product_backward(team, a->dx, a->width, a->logits, a->vocab, a->n, head, false);
    for (int64_t i = 0; i < a->n; i++) memcpy(lk_row_of(a->out, a->index[i]), a->dx + i * a->width, (size_t)a->width * 4);
}

lk_status lk_cpu_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap)
{
    int64_t most = chunk_rows(head->n, x->rows);
    void *rest;
    LK_TRY(lk_cpu_scratch(be, "linear_loss", scratch_for(be, most, head->n, head->k), &rest));
    loss_args a = {.rows = lk_rows_get(lk_cpu_of(be)->tier),
                   .vocab = head->n,
                   .width = head->k,
                   .nll = nll,
                   .hits = hits,
                   .in = x,
                   .out = dx,
                   .labels = labels,
                   .grad_scale = grad_scale,
                   .cap = cap};
    a.logits = lk_carve(&rest, (size_t)(most * a.vocab) * 4);
    a.x = lk_carve(&rest, (size_t)(most * a.width) * 4);
    a.dx = lk_carve(&rest, (size_t)(most * a.width) * 4);
    lk_cpu_team team = lk_cpu_team_of(be, rest);
    for (int64_t t = 0; t < x->rows; t++) {
        if (labels[t] < 0) {
            nll[t] = 0.0f;
            if (hits) hits[t] = 0;
            if (dx) memset(lk_row_of(dx, t), 0, (size_t)dx->cols * 4);
        } else {
            a.index[a.n++] = t;
        }
        if (a.n == most || (t + 1 == x->rows && a.n > 0)) {
            run_chunk(&team, &a, head);
            a.n = 0;
        }
    }
    return LK_OK;
}
