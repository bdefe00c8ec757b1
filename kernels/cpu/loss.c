/* Head and cross-entropy in one (Liger's fused linear cross-entropy): supervised rows are gathered into chunks, a chunk's logits are
 * computed, turned into loss and gradient where they lie, and multiplied back. Rows that are ignored cost nothing. The chunk is as
 * large as a fixed budget of logits allows, because the head is read once a chunk: results do not depend on its size, a row's
 * product being the same bits in any company.
 *
 * A head that is trained (lk_head_part) takes its gradient from the chunk's, before they are overwritten by the next: nothing of [T,V] is
 * ever kept. Factors on the head join there too. Only sums over rows see where chunks begin. */
#include <math.h>

#include "kernels/cpu/dropout.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

enum { LOGIT_BYTES = 32 << 20, LEAST_ROWS = 32, MOST_ROWS = 512, SUM_PIECE = 2048, OWNED = 64, PIECE_ROWS = 64 };

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
    /* With parts: */
    const lk_head_part *part;
    const lk_gemm *gemm;
    lk_cpu_tier tier;
    float *dropped, *factors, *h, *dh; /* [chunk, C] of x and of what it is multiplied with, [chunk, R] */
    char *threads;
    size_t thread_bytes;
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

/* What a trained head wants beside: the buffers of loss_args and the threads'. */
static size_t part_scratch(const lk_backend *be, int64_t rows, int64_t width, int64_t rank)
{
    const lk_gemm *g = lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute);
    return 2 * lk_carved((size_t)(rows * width) * 4) + 2 * lk_carved((size_t)(rows * rank) * 4) +
           (size_t)be->threads * lk_carved(lk_gemm_scratch_bytes(g));
}

size_t lk_cpu_loss_scratch(const lk_backend *be, const lk_limits *l)
{
    if (!l->vocab || !l->tokens) return 0;
    int64_t rows = chunk_rows(l->vocab, l->tokens);
    return scratch_for(be, rows, l->vocab, l->width) + (l->head ? part_scratch(be, rows, l->width, l->rank) : 0);
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

/* ---------------------------------------------------------------------------------------------- a trained head */

static void *gemm_scratch(const loss_args *a, int thread) { return a->threads + (size_t)thread * a->thread_bytes; }

static int64_t piece(int64_t width, int64_t i) { return width - i * OWNED < OWNED ? width - i * OWNED : OWNED; }

static void by_pieces(lk_pool *pool, int64_t width, lk_pool_task *task, loss_args *a)
{
    lk_pool_run(pool, (width + OWNED - 1) / OWNED, 1, task, a);
}

/* Rows of x as the factors read them. */
static void drop_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        float *factors = a->factors + i * a->width;
        lk_dropout_factors(factors, a->tier, a->part->dropout, a->part->site, a->index[i], a->width, 0, a->width);
        for (int64_t c = 0; c < a->width; c++) a->dropped[i * a->width + c] = a->x[i * a->width + c] * factors[c];
    }
}

static const float *factor_input(const loss_args *a) { return lk_dropout_active(a->part->dropout) ? a->dropped : a->x; }

/* h = x A^T of PIECE_ROWS rows. */
static void shrink_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    const lk_lora *f = a->part->factors;
    for (int64_t i = begin * PIECE_ROWS; i < end * PIECE_ROWS && i < a->n; i += PIECE_ROWS)
        lk_gemm_product(a->gemm, a->h + i * f->rank, f->rank, a->n - i < PIECE_ROWS ? a->n - i : PIECE_ROWS, f->rank, a->width,
                        lk_factor_rows(factor_input(a) + i * a->width, LK_F32, a->width), lk_factor_rows(f->a, LK_F32, a->width),
                        LK_GEMM_SET, gemm_scratch(a, thread));
}

/* logits += scale h B^T, of OWNED columns. */
static void expand_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    const lk_lora *f = a->part->factors;
    lk_factor h = lk_factor_rows(a->h, LK_F32, f->rank);
    h.scale = f->scale;
    for (int64_t i = begin; i < end; i++)
        lk_gemm_product(a->gemm, a->logits + i * OWNED, a->vocab, a->n, piece(a->vocab, i), f->rank, h,
                        lk_factor_rows((const float *)f->b + i * OWNED * f->rank, LK_F32, f->rank), LK_GEMM_ADD, gemm_scratch(a, thread));
}

/* dh = scale dlogits B of PIECE_ROWS rows. */
static void shrink_back_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    const lk_lora *f = a->part->factors;
    for (int64_t i = begin * PIECE_ROWS; i < end * PIECE_ROWS && i < a->n; i += PIECE_ROWS) {
        lk_factor dlogits = lk_factor_rows(a->logits + i * a->vocab, LK_F32, a->vocab);
        dlogits.scale = f->scale;
        lk_gemm_product(a->gemm, a->dh + i * f->rank, f->rank, a->n - i < PIECE_ROWS ? a->n - i : PIECE_ROWS, f->rank, a->vocab, dlogits,
                        lk_factor_columns(f->b, LK_F32, f->rank), LK_GEMM_SET, gemm_scratch(a, thread));
    }
}

/* dx += drop(dh A), and da += dh^T x, of OWNED columns. */
static void of_a_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    const lk_lora *f = a->part->factors;
    bool drops = lk_dropout_active(a->part->dropout);
    for (int64_t i = begin; i < end; i++) {
        int64_t first = i * OWNED, count = piece(a->width, i);
        if (f->da)
            lk_gemm_product(a->gemm, f->da + first, a->width, f->rank, count, a->n, lk_factor_columns(a->dh, LK_F32, f->rank),
                            lk_factor_columns(factor_input(a) + first, LK_F32, a->width), LK_GEMM_ADD, gemm_scratch(a, thread));
        if (!drops) {
            lk_gemm_product(a->gemm, a->dx + first, a->width, a->n, count, f->rank, lk_factor_rows(a->dh, LK_F32, f->rank),
                            lk_factor_columns((const float *)f->a + first, LK_F32, a->width), LK_GEMM_ADD, gemm_scratch(a, thread));
            continue;
        }
        float *own = a->dropped + first; /* read for the last time above */
        lk_gemm_product(a->gemm, own, a->width, a->n, count, f->rank, lk_factor_rows(a->dh, LK_F32, f->rank),
                        lk_factor_columns((const float *)f->a + first, LK_F32, a->width), LK_GEMM_SET, gemm_scratch(a, thread));
        for (int64_t t = 0; t < a->n; t++)
            for (int64_t c = 0; c < count; c++)
                a->dx[t * a->width + first + c] += own[t * a->width + c] * a->factors[t * a->width + first + c];
    }
}

/* db += scale dlogits^T h, and dw += dlogits^T x where the whole head is trained, of OWNED rows of the head. */
static void of_head_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    const lk_head_part *p = a->part;
    for (int64_t i = begin; i < end; i++) {
        lk_factor dlogits = lk_factor_columns(a->logits + i * OWNED, LK_F32, a->vocab);
        int64_t rows = piece(a->vocab, i);
        if (p->dw && !p->ids)
            lk_gemm_product(a->gemm, p->dw + i * OWNED * a->width, a->width, rows, a->width, a->n, dlogits,
                            lk_factor_columns(a->x, LK_F32, a->width), LK_GEMM_ADD, gemm_scratch(a, thread));
        if (!p->factors || !p->factors->db) continue;
        const lk_lora *f = p->factors;
        lk_factor h = lk_factor_columns(a->h, LK_F32, f->rank);
        h.scale = f->scale;
        lk_gemm_product(a->gemm, f->db + i * OWNED * f->rank, f->rank, rows, f->rank, a->n, dlogits, h, LK_GEMM_ADD,
                        gemm_scratch(a, thread));
    }
}

/* dw += dlogits^T x of the chosen rows of the head: few, and far apart. */
static void of_rows_task(void *context, int64_t begin, int64_t end, int thread)
{
    const loss_args *a = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        for (int64_t t = 0; t < a->n; t++) {
            float by = a->logits[t * a->vocab + a->part->ids[i]];
            const float *x = a->x + t * a->width;
            float *out = a->part->dw + i * a->width;
            for (int64_t c = 0; c < a->width; c++) out[c] += by * x[c];
        }
}

static void add_factors(lk_pool *pool, loss_args *a)
{
    if (!a->part || !a->part->factors) return;
    if (lk_dropout_active(a->part->dropout)) lk_pool_run(pool, a->n, 1, drop_task, a);
    lk_pool_run(pool, (a->n + PIECE_ROWS - 1) / PIECE_ROWS, 1, shrink_task, a);
    by_pieces(pool, a->vocab, expand_task, a);
}

static void part_gradients(lk_pool *pool, loss_args *a)
{
    if (!a->part) return;
    const lk_head_part *p = a->part;
    if (p->dw && p->ids) lk_pool_run(pool, p->n_ids, 1, of_rows_task, a);
    if ((p->dw && !p->ids) || p->factors) by_pieces(pool, a->vocab, of_head_task, a);
    if (!p->factors) return;
    lk_pool_run(pool, (a->n + PIECE_ROWS - 1) / PIECE_ROWS, 1, shrink_back_task, a);
    by_pieces(pool, a->width, of_a_task, a);
}

/* ---------------------------------------------------------------------------------------------- all of it */

static void run_chunk(lk_cpu_team *team, loss_args *a, const lk_matrix *head)
{
    for (int64_t i = 0; i < a->n; i++) memcpy(a->x + i * a->width, lk_row_of(a->in, a->index[i]), (size_t)a->width * 4);
    lk_cpu_product(team, a->logits, a->vocab, a->x, a->width, a->n, head, NULL);
    add_factors(team->pool, a);
    lk_pool_run(team->pool, a->n, 1, loss_task, a);
    if (!a->out) return;
    lk_cpu_product_backward(team, a->dx, a->width, a->logits, a->vocab, a->n, head, false);
    part_gradients(team->pool, a);
    for (int64_t i = 0; i < a->n; i++) memcpy(lk_row_of(a->out, a->index[i]), a->dx + i * a->width, (size_t)a->width * 4);
}

static void run(lk_cpu_team *team, loss_args *a, const lk_matrix *head, int64_t most)
{
    for (int64_t t = 0; t < a->in->rows; t++) {
        if (a->labels[t] < 0) {
            a->nll[t] = 0.0f;
            if (a->hits) a->hits[t] = 0;
            if (a->out) memset(lk_row_of(a->out, t), 0, (size_t)a->width * 4);
        } else {
            a->index[a->n++] = t;
        }
        if (a->n == most || (t + 1 == a->in->rows && a->n > 0)) {
            run_chunk(team, a, head);
            a->n = 0;
        }
    }
}

static void carve_part(loss_args *a, lk_backend *be, int64_t most, void **rest)
{
    int64_t rank = a->part->factors ? a->part->factors->rank : 0;
    a->tier = lk_cpu_of(be)->tier;
    a->gemm = lk_gemm_get(a->tier, be->compute);
    a->dropped = lk_carve(rest, (size_t)(most * a->width) * 4);
    a->factors = lk_carve(rest, (size_t)(most * a->width) * 4);
    a->h = lk_carve(rest, (size_t)(most * rank) * 4);
    a->dh = lk_carve(rest, (size_t)(most * rank) * 4);
    a->thread_bytes = lk_carved(lk_gemm_scratch_bytes(a->gemm));
    a->threads = lk_carve(rest, (size_t)be->threads * a->thread_bytes);
}

lk_status lk_cpu_linear_loss_trained(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                                     const lk_matrix *head, const lk_head_part *part, const int32_t *labels, float grad_scale, float cap)
{
    int64_t most = chunk_rows(head->n, x->rows), rank = part && part->factors ? part->factors->rank : 0;
    size_t more = part ? part_scratch(be, most, head->k, rank) : 0;
    void *rest;
    LK_TRY(lk_cpu_scratch(be, "linear_loss", scratch_for(be, most, head->n, head->k) + more, &rest));
    loss_args a = {.rows = lk_rows_get(lk_cpu_of(be)->tier),
                   .vocab = head->n,
                   .width = head->k,
                   .nll = nll,
                   .hits = hits,
                   .in = x,
                   .out = dx,
                   .labels = labels,
                   .grad_scale = grad_scale,
                   .cap = cap,
                   .part = part};
    a.logits = lk_carve(&rest, (size_t)(most * a.vocab) * 4);
    a.x = lk_carve(&rest, (size_t)(most * a.width) * 4);
    a.dx = lk_carve(&rest, (size_t)(most * a.width) * 4);
    if (part) carve_part(&a, be, most, &rest);
    lk_cpu_team team = lk_cpu_team_of(be, rest);
    run(&team, &a, head, most);
    return LK_OK;
}

lk_status lk_cpu_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap)
{
    return lk_cpu_linear_loss_trained(be, nll, hits, dx, x, head, NULL, labels, grad_scale, cap);
}
