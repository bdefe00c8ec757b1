/* Gradients of what is trained as a whole: biases, embeddings, tables. Each is cut by columns or by rows of the result, and the owner of a
 * part takes all rows of the batch in order, so that threads do not show. Dense gradients are packed products; embeddings add row to row
 * and have no product. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/ops.h"

enum { COLUMNS = 64, OWNED = 64 }; /* OWNED: as many rows as the product packs once */

typedef struct weight_args {
    const lk_gemm *gemm;
    const lk_tensor *dy, *x;
    const int32_t *ids;
    float *out, by;
    char *threads; /* scratch of the products */
    size_t thread_bytes;
} weight_args;

static void columns_task(void *context, int64_t begin, int64_t end, int thread)
{
    const weight_args *a = context;
    (void)thread;
    for (int64_t t = 0; t < a->x->rows; t++) {
        const float *x = lk_row_of(a->x, t);
        for (int64_t n = begin; n < end; n++) a->out[n] += a->by * x[n];
    }
}

lk_status lk_cpu_add_columns(lk_backend *be, float *sums, const lk_tensor *x, float by)
{
    weight_args args = {.x = x, .out = sums, .by = by};
    lk_pool_run(lk_cpu_of(be)->pool, x->cols, COLUMNS, columns_task, &args);
    return LK_OK;
}

static void embed_task(void *context, int64_t begin, int64_t end, int thread)
{
    const weight_args *a = context;
    (void)thread;
    for (int64_t t = 0; t < a->dy->rows; t++) {
        if (a->ids[t] < 0) continue;
        const float *dy = lk_row_of(a->dy, t);
        float *out = a->out + a->ids[t] * a->dy->cols;
        for (int64_t c = begin; c < end; c++) out[c] += dy[c];
    }
}

lk_status lk_cpu_embed_backward(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids)
{
    (void)n;
    weight_args args = {.dy = dy, .ids = ids, .out = dtable};
    lk_pool_run(lk_cpu_of(be)->pool, dy->cols, COLUMNS, embed_task, &args);
    return LK_OK;
}

static size_t thread_bytes(const lk_gemm *g) { return lk_carved(lk_gemm_scratch_bytes(g)); }

size_t lk_cpu_weight_gradient_scratch(const lk_backend *be, const lk_limits *l)
{
    return l->training ? (size_t)be->threads * thread_bytes(lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute)) : 0;
}

/* Rows [OWNED * begin, OWNED * end) of dw. */
static void product_task(void *context, int64_t begin, int64_t end, int thread)
{
    const weight_args *a = context;
    lk_factor x = lk_factor_columns(a->x->data, LK_F32, a->x->stride);
    x.scale = a->by;
    for (int64_t i = begin; i < end; i++) {
        int64_t n = i * OWNED, count = a->dy->cols - n < OWNED ? a->dy->cols - n : OWNED;
        lk_gemm_product(a->gemm, a->out + n * a->x->cols, a->x->cols, count, a->x->cols, a->dy->rows,
                        lk_factor_columns((const float *)a->dy->data + n, LK_F32, a->dy->stride), x, LK_GEMM_ADD,
                        a->threads + (size_t)thread * a->thread_bytes);
    }
}

lk_status lk_cpu_weight_gradient(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    weight_args args = {.gemm = lk_gemm_get(cpu->tier, be->compute), .dy = dy, .x = x, .out = dw, .by = by};
    void *scratch;
    args.thread_bytes = thread_bytes(args.gemm);
    LK_TRY(lk_cpu_scratch(be, "weight_gradient", (size_t)be->threads * args.thread_bytes, &scratch));
    args.threads = scratch;
    lk_pool_run(cpu->pool, (dy->cols + OWNED - 1) / OWNED, 1, product_task, &args);
    return LK_OK;
}

typedef struct set_args {
    lk_matrix *w;
    const int32_t *ids;
    const float *rows;
} set_args;

static void set_task(void *context, int64_t begin, int64_t end, int thread)
{
    const set_args *a = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) lk_cpu_matrix_pack(a->w, a->ids ? a->ids[i] : i, a->rows + i * a->w->k);
}

lk_status lk_cpu_matrix_set(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows)
{
    set_args args = {w, ids, rows};
    lk_pool_run(lk_cpu_of(be)->pool, n, lk_cpu_grain(w->k), set_task, &args);
    return LK_OK;
}
