/* LoRA over segments of tokens with mixed ranks, on the packed products of kernels/cpu/gemm.h. Work is cut into blocks of rows of one
 * segment times blocks of columns, numbered through the whole batch, and the numbers are shared among the threads. An element of
 * the result is the same bits in any block, so neither company nor threads show.
 *
 * The gradients of the factors sum over rows: they are cut by columns only, and the owner of a column takes all segments in order. */
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

enum {
    ROWS = 64,       /* of a block */
    RANKS = 64,      /* columns of h or dh in a block */
    COLUMNS = 256,   /* columns of y or dx in a block */
    DEPTH = 512,     /* rows that one product of the factors' gradients sums over */
    OWNED = 128,     /* columns of the factors' gradients that one thread takes at a time */
    FEW = 16,        /* rows up to which the factors go left */
    FEW_COLUMNS = 64 /* of a left panel then */
};

typedef struct lora_args {
    const lk_gemm *gemm;
    const lk_rows *rows;
    lk_cpu_tier tier;
    const lk_batch *batch;
    int32_t site;
    const lk_tensor *x, *y, *h, *dx; /* y is dy in backward */
    const lk_dropout *dropout;       /* NULL when inactive */
    float *dh;                       /* [T, ldh] */
    int64_t ldh;
    char *threads; /* per thread: gemm scratch, then the dropout buffer */
    size_t thread_bytes;
} lora_args;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t pieces(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

static size_t dropout_bytes(int64_t width)
{
    return lk_carved((size_t)larger(ROWS * width, DEPTH * OWNED + width) * 4 + (size_t)width * 4);
}

static size_t thread_bytes(const lk_gemm *g, int64_t width, bool dropout)
{
    size_t product = lk_carved(ROWS * COLUMNS * sizeof(float)), dropped = dropout ? dropout_bytes(width) : 0;
    return lk_carved(lk_gemm_scratch_bytes(g)) + (dropped > product ? dropped : product);
}

size_t lk_cpu_lora_scratch(const lk_backend *be, const lk_limits *l)
{
    if (l->rank == 0) return 0;
    const lk_gemm *g = lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute);
    size_t dh = l->training ? lk_carved((size_t)(l->tokens * l->rank) * 4) : 0;
    return dh + (size_t)be->threads * thread_bytes(g, l->width, l->training);
}

static const lk_lora *segment_lora(const lora_args *a, int64_t s)
{
    int32_t adapter = a->batch->segments[s].adapter;
    if (adapter < 0) return NULL;
    const lk_lora *l = &a->batch->lora[(int64_t)a->site * a->batch->n_adapters + adapter];
    return l->rank > 0 ? l : NULL;
}

static void *gemm_scratch(const lora_args *a, int thread) { return a->threads + (size_t)thread * a->thread_bytes; }
static float *dropout_buffer(const lora_args *a, int thread)
{
    return (float *)(void *)(a->threads + (size_t)thread * a->thread_bytes + lk_carved(lk_gemm_scratch_bytes(a->gemm)));
}

/* One block: rows [row, row+rows) of segment l, columns [column, column+columns). */
typedef struct block {
    const lk_lora *l;
    int64_t row, rows, column, columns;
    int thread;
} block;

typedef void block_work(const lora_args *a, const block *b);
typedef struct block_run {
    const lora_args *args;
    block_work *work;
    int64_t unit, width; /* columns of a block, and in all; width 0: the rank of the segment */
} block_run;

static int64_t count_blocks(const block_run *r)
{
    int64_t count = 0;
    for (int64_t s = 0; s < r->args->batch->n_segments; s++) {
        const lk_segment *g = &r->args->batch->segments[s];
        const lk_lora *l = segment_lora(r->args, s);
        if (l) count += pieces(g->end - g->begin, ROWS) * pieces(r->width ? r->width : l->rank, r->unit);
    }
    return count;
}

static void run_blocks(void *context, int64_t begin, int64_t end, int thread)
{
    const block_run *r = context;
    int64_t number = 0;
    for (int64_t s = 0; s < r->args->batch->n_segments && number < end; s++) {
        const lk_segment *g = &r->args->batch->segments[s];
        const lk_lora *l = segment_lora(r->args, s);
        if (!l) continue;
        int64_t width = r->width ? r->width : l->rank, across = pieces(width, r->unit), count = pieces(g->end - g->begin, ROWS) * across;
        for (int64_t i = larger(begin - number, 0); i < count && number + i < end; i++) {
            block b = {.l = l, .row = g->begin + i / across * ROWS, .column = i % across * r->unit, .thread = thread};
            b.rows = smaller(ROWS, g->end - b.row);
            b.columns = smaller(r->unit, width - b.column);
            r->work(r->args, &b);
        }
        number += count;
    }
}

static void share(lk_pool *pool, const lora_args *a, block_work *work, int64_t unit, int64_t width)
{
    block_run run = {a, work, unit, width};
    lk_pool_run(pool, count_blocks(&run), 1, run_blocks, &run);
}

static const void *element(const lk_lora *l, const void *matrix, int64_t at) { return (const char *)matrix + at * lk_dtype_size(l->type); }

/* ---------------------------------------------------------------------------------------------- forward */

/* c (+)= x w^T for a few rows, as in decoding with many adapters: then packing the factors is the work, and a left panel is packed with
 * less of it. The bits are those of lk_gemm_product: left and right are told apart by their layout only. */
static void few_rows(const lora_args *a, float *c, int64_t ldc, const block *b, int64_t depth, lk_factor x, lk_factor w, lk_gemm_mode mode)
{
    const lk_gemm *g = a->gemm;
    char *left = gemm_scratch(a, b->thread), *right = left + lk_gemm_panel_bytes(g, FEW_COLUMNS, LK_GEMM_DEPTH);
    lk_gemm_begin(g);
    for (int64_t n = 0; n < b->columns; n += FEW_COLUMNS)
        for (int64_t first = 0; first < depth; first += LK_GEMM_DEPTH) {
            int64_t columns = smaller(FEW_COLUMNS, b->columns - n), along = smaller(LK_GEMM_DEPTH, depth - first);
            int64_t pitch = (int64_t)lk_gemm_panel_bytes(g, 1, along);
            lk_gemm_pack_left(g, left, w, n, columns, first, along);
            if (n == 0 || depth > LK_GEMM_DEPTH) lk_gemm_pack_right(g, right, x, 0, b->rows, first, along);
            lk_gemm_pass pass = {.c = c + n,
                                 .down = 1,
                                 .across = ldc,
                                 .left = left,
                                 .right = right,
                                 .left_rows = columns,
                                 .right_rows = b->rows,
                                 .left_pitch = pitch,
                                 .right_pitch = pitch,
                                 .first = first / LK_TILE_DEPTH,
                                 .tiles = lk_tiles_along(along),
                                 .mode = mode,
                                 .partial = first + along < depth,
                                 .sums = (float *)(void *)(right + lk_gemm_panel_bytes(g, FEW, LK_GEMM_DEPTH))};
            g->multiply(&pass);
        }
    lk_gemm_end(g);
}

static void multiply_rows(const lora_args *a, float *c, int64_t ldc, const block *b, int64_t depth, lk_factor x, lk_factor w,
                          lk_gemm_mode mode)
{
    if (b->rows <= FEW)
        few_rows(a, c, ldc, b, depth, x, w, mode);
    else
        lk_gemm_product(a->gemm, c, ldc, b->rows, b->columns, depth, x, w, mode, gemm_scratch(a, b->thread));
}

/* h = drop(x) A^T */
static void shrink(const lora_args *a, const block *b)
{
    int64_t width = a->x->cols;
    lk_factor x = lk_factor_rows(lk_row_of(a->x, b->row), LK_F32, a->x->stride);
    if (a->dropout) {
        float *dropped = dropout_buffer(a, b->thread), *factors = dropped + ROWS * width;
        for (int64_t i = 0; i < b->rows; i++) {
            lk_dropout_factors(factors, a->tier, a->dropout, a->site, b->row + i, width, 0, width);
            for (int64_t k = 0; k < width; k++) dropped[i * width + k] = lk_row_of(a->x, b->row + i)[k] * factors[k];
        }
        x = lk_factor_rows(dropped, LK_F32, width);
    }
    multiply_rows(a, lk_row_of(a->h, b->row) + b->column, a->h->stride, b, width, x,
                  lk_factor_rows(element(b->l, b->l->a, b->column * width), b->l->type, width), LK_GEMM_SET);
}

/* y += scale h B^T, through a buffer: one chain of at most `rank` products is short, and starting it from y would cost more than adding
 * it afterwards. */
static void expand(const lora_args *a, const block *b)
{
    int64_t rank = b->l->rank;
    float *product = dropout_buffer(a, b->thread);
    lk_factor h = lk_factor_rows(lk_row_of(a->h, b->row), LK_F32, a->h->stride);
    h.scale = b->l->scale;
    multiply_rows(a, product, b->columns, b, rank, h, lk_factor_rows(element(b->l, b->l->b, b->column * rank), b->l->type, rank),
                  LK_GEMM_SET);
    for (int64_t i = 0; i < b->rows; i++) a->rows->add(lk_row_of(a->y, b->row + i) + b->column, product + i * b->columns, b->columns);
}

static lk_status prepare(lk_backend *be, lora_args *a, const char *op, int64_t dh_floats)
{
    void *rest;
    a->tier = lk_cpu_of(be)->tier;
    a->gemm = lk_gemm_get(a->tier, be->compute);
    a->rows = lk_rows_get(a->tier);
    a->dropout = lk_dropout_active(a->dropout) ? a->dropout : NULL;
    a->thread_bytes = thread_bytes(a->gemm, a->x->cols, a->dropout != NULL);
    LK_TRY(lk_cpu_scratch(be, op, lk_carved((size_t)dh_floats * 4) + (size_t)be->threads * a->thread_bytes, &rest));
    a->dh = lk_carve(&rest, (size_t)dh_floats * 4);
    a->threads = rest;
    return LK_OK;
}

lk_status lk_cpu_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_tensor *h, const lk_dropout *dropout)
{
    lora_args a = {.batch = batch, .site = site, .x = x, .y = y, .h = h, .dropout = dropout};
    LK_TRY(prepare(be, &a, "lora_forward", 0));
    share(lk_cpu_of(be)->pool, &a, shrink, RANKS, 0);
    share(lk_cpu_of(be)->pool, &a, expand, COLUMNS, y->cols);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- backward */

/* dh = scale dy B */
static void shrink_back(const lora_args *a, const block *b)
{
    lk_factor dy = lk_factor_rows(lk_row_of(a->y, b->row), LK_F32, a->y->stride);
    dy.scale = b->l->scale;
    lk_gemm_product(a->gemm, a->dh + b->row * a->ldh + b->column, a->ldh, b->rows, b->columns, a->y->cols, dy,
                    lk_factor_columns(element(b->l, b->l->b, b->column), b->l->type, b->l->rank), LK_GEMM_SET, gemm_scratch(a, b->thread));
}

/* dx += drop(dh A) */
static void expand_back(const lora_args *a, const block *b)
{
    int64_t width = a->x->cols;
    lk_factor dh = lk_factor_rows(a->dh + b->row * a->ldh, LK_F32, a->ldh);
    lk_factor columns = lk_factor_columns(element(b->l, b->l->a, b->column), b->l->type, width);
    if (!a->dropout) {
        lk_gemm_product(a->gemm, lk_row_of(a->dx, b->row) + b->column, a->dx->stride, b->rows, b->columns, b->l->rank, dh, columns,
                        LK_GEMM_ADD, gemm_scratch(a, b->thread));
        return;
    }
    float *product = dropout_buffer(a, b->thread), *factors = product + ROWS * width;
    lk_gemm_product(a->gemm, product, b->columns, b->rows, b->columns, b->l->rank, dh, columns, LK_GEMM_SET, gemm_scratch(a, b->thread));
    for (int64_t i = 0; i < b->rows; i++) {
        float *out = lk_row_of(a->dx, b->row + i) + b->column;
        lk_dropout_factors(factors, a->tier, a->dropout, a->site, b->row + i, width, b->column, b->columns);
        for (int64_t k = 0; k < b->columns; k++) out[k] += product[i * b->columns + k] * factors[k];
    }
}

/* db[n] += scale dy[:,n] h for columns [n, n+count) */
static void own_db(const lora_args *a, const lk_lora *l, const lk_segment *g, int64_t n, int64_t count, int thread)
{
    lk_factor h = lk_factor_columns(lk_row_of(a->h, g->begin), LK_F32, a->h->stride);
    h.scale = l->scale;
    lk_gemm_product(a->gemm, l->db + n * l->rank, l->rank, count, l->rank, g->end - g->begin,
                    lk_factor_columns(lk_row_of(a->y, g->begin) + n, LK_F32, a->y->stride), h, LK_GEMM_ADD, gemm_scratch(a, thread));
}

/* da[:,k] += dh^T drop(x[:,k]) for columns [k, k+count), DEPTH rows at a time so that the dropped columns fit the buffer */
static void own_da(const lora_args *a, const lk_lora *l, const lk_segment *g, int64_t k, int64_t count, int thread)
{
    for (int64_t row = g->begin; row < g->end; row += DEPTH) {
        int64_t rows = smaller(DEPTH, g->end - row);
        lk_factor x = lk_factor_columns(lk_row_of(a->x, row) + k, LK_F32, a->x->stride);
        if (a->dropout) {
            float *dropped = dropout_buffer(a, thread), *factors = dropped + DEPTH * OWNED;
            for (int64_t i = 0; i < rows; i++) {
                lk_dropout_factors(factors, a->tier, a->dropout, a->site, row + i, a->x->cols, k, count);
                for (int64_t j = 0; j < count; j++) dropped[i * OWNED + j] = lk_row_of(a->x, row + i)[k + j] * factors[j];
            }
            x = lk_factor_columns(dropped, LK_F32, OWNED);
        }
        lk_gemm_product(a->gemm, l->da + k, a->x->cols, l->rank, count, rows, lk_factor_columns(a->dh + row * a->ldh, LK_F32, a->ldh), x,
                        LK_GEMM_ADD, gemm_scratch(a, thread));
    }
}

static void factor_gradients(void *context, int64_t begin, int64_t end, int thread)
{
    const lora_args *a = context;
    int64_t of_b = pieces(a->y->cols, OWNED);
    for (int64_t i = begin; i < end; i++)
        for (int64_t s = 0; s < a->batch->n_segments; s++) {
            const lk_lora *l = segment_lora(a, s);
            const lk_segment *g = &a->batch->segments[s];
            if (!l || !l->da || g->begin == g->end) continue;
            if (i < of_b)
                own_db(a, l, g, i * OWNED, smaller(OWNED, a->y->cols - i * OWNED), thread);
            else
                own_da(a, l, g, (i - of_b) * OWNED, smaller(OWNED, a->x->cols - (i - of_b) * OWNED), thread);
        }
}

lk_status lk_cpu_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                               const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    lk_pool *pool = lk_cpu_of(be)->pool;
    lora_args a = {.batch = batch, .site = site, .x = x, .y = dy, .h = h, .dx = dx, .dropout = dropout, .ldh = h->cols};
    LK_TRY(prepare(be, &a, "lora_backward", batch->n_tokens * h->cols));
    share(pool, &a, shrink_back, RANKS, 0);
    if (dx) share(pool, &a, expand_back, COLUMNS, x->cols);
    lk_pool_run(pool, pieces(dy->cols, OWNED) + pieces(x->cols, OWNED), 1, factor_gradients, &a);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- the dropped input */

typedef struct drop_args {
    const lk_tensor *y, *x;
    const lk_dropout *dropout;
    int32_t site;
    lk_cpu_tier tier;
} drop_args;

static void drop_rows(void *context, int64_t begin, int64_t end, int thread)
{
    const drop_args *a = context;
    float factors[COLUMNS];
    (void)thread;
    for (int64_t t = begin; t < end; t++)
        for (int64_t k = 0; k < a->x->cols; k += COLUMNS) {
            int64_t n = smaller(COLUMNS, a->x->cols - k);
            const float *x = lk_row_of(a->x, t) + k;
            float *y = lk_row_of(a->y, t) + k;
            lk_dropout_factors(factors, a->tier, a->dropout, a->site, t, a->x->cols, k, n);
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * factors[i];
        }
}

lk_status lk_cpu_drop(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    drop_args args = {y, x, dropout, site, cpu->tier};
    lk_pool_run(cpu->pool, x->rows, lk_cpu_grain(x->cols), drop_rows, &args);
    return LK_OK;
}
