/* Products of a serving batch: which kernels, over which scratch. The arithmetic stands in product.h.
 *
 * Scratch: sums of pieces for up to 128 tokens (512 bytes a row of w and piece, at most eight pieces), and a copy of x when its rows do not
 * allow loads of 16 bytes, which activations of a model always do. A matrix whose sums would not fit (a head) has rows enough not to need
 * pieces. */
#include "kernels/cuda/product.h"

#include "kernels/cuda/lora.h"

enum { MOST_TOKENS = 128 };

static size_t copy_bytes(int64_t k) { return lk_cuda_carved((size_t)(MOST_TOKENS * lk_cuda_padded(k)) * 2); }

size_t lk_cuda_product_scratch(const lk_limits *l)
{
    int64_t pieces_rows = l->matrix / LK_CUDA_LEAST_PIECE + l->width; /* of any matrix: ceil(K / piece) * N */
    return copy_bytes(l->width) + lk_cuda_carved((size_t)(MOST_TOKENS * pieces_rows) * sizeof(float));
}

static lk_status run(lk_backend *be, const lk_cuda_product *p, int n)
{
    return p->w->storage == LK_NF4 ? lk_cuda_nf4_product(be, p, n) : lk_cuda_dense_product(be, p, n);
}

/* Rows that do not allow loads of 16 bytes: some at a time, by way of a copy. */
static lk_status run_copied(lk_backend *be, lk_cuda_product *p, const lk_tensor *x)
{
    const lk_cuda_product all = *p;
    int64_t size = p->y_f32 ? 4 : 2;
    void *rest, *copy;
    LK_TRY(lk_cuda_scratch(be, "linear", copy_bytes(x->cols), &rest));
    copy = lk_cuda_carve(&rest, copy_bytes(x->cols));
    p->x = copy;
    p->ldx = lk_cuda_padded(x->cols);
    p->partials = rest;
    p->partials_bytes -= copy_bytes(x->cols);
    for (int64_t first = 0; first < x->rows; first += MOST_TOKENS) {
        p->tokens = x->rows - first < MOST_TOKENS ? x->rows - first : MOST_TOKENS;
        p->y = (char *)all.y + first * all.ldy * size;
        if (all.residual) p->residual = (const char *)all.residual + first * all.ldr * size;
        LK_TRY(lk_cuda_dropped(be, copy, x, first, p->tokens, 0, NULL));
        LK_TRY(run(be, p, 1));
    }
    return LK_OK;
}

static lk_cuda_product product_for(const lk_cuda *cu, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias)
{
    return (lk_cuda_product){.w = lk_cuda_matrix_of(w),
                             .x = x->data,
                             .ldx = x->stride,
                             .tokens = x->rows,
                             .y = y->data,
                             .ldy = y->stride,
                             .y_f32 = y->type == LK_F32,
                             .bias = bias,
                             .partials = cu->scratch,
                             .partials_bytes = cu->scratch_bytes - cu->branch_bytes};
}

lk_status lk_cuda_serve_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                               const lk_tensor *residual)
{
    if (x->rows == 0) return LK_OK;
    lk_cuda_product p = product_for(lk_cuda_of(be), y, x, w, bias);
    if (residual) {
        p.residual = residual->data;
        p.ldr = residual->stride;
    }
    return lk_cuda_eights(x) ? run(be, &p, 1) : run_copied(be, &p, x);
}

lk_status lk_cuda_serve_linears(lk_backend *be, const lk_part *parts, int n, const lk_tensor *x)
{
    lk_cuda_product p[LK_MOST_PARTS];
    bool together = lk_cuda_eights(x) && x->rows > 0;
    for (int i = 0; i < n; i++) {
        p[i] = product_for(lk_cuda_of(be), &parts[i].y, x, parts[i].w, parts[i].bias);
        together = together && p[i].w->storage == p[0].w->storage;
    }
    if (together) return run(be, p, n);
    for (int i = 0; i < n; i++) LK_TRY(lk_cuda_serve_linear(be, &parts[i].y, x, parts[i].w, parts[i].bias, NULL));
    return LK_OK;
}
