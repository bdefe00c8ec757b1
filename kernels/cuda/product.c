/* Products of a serving batch: which kernels, over which scratch. The arithmetic stands in product.h.
 *
 * Scratch: sums of pieces for up to 64 tokens (256 bytes a row of w and piece), and a copy of x when its rows do not allow loads of 16
 * bytes, which activations of a model always do. A matrix whose sums would not fit (a head) has rows enough not to need pieces. */
#include "kernels/cuda/product.h"

#include "kernels/cuda/lora.h"

enum { MOST_TOKENS = 64 };

static size_t copy_bytes(int64_t tokens, int64_t k) { return lk_cuda_carved((size_t)(tokens * lk_cuda_padded(k)) * 2); }

size_t lk_cuda_product_scratch(const lk_limits *l)
{
    int64_t pieces_rows = l->matrix / LK_CUDA_PIECE + l->width; /* of any matrix: ceil(K / piece) * N */
    return copy_bytes(l->tokens, l->width) + lk_cuda_carved((size_t)(MOST_TOKENS * pieces_rows) * sizeof(float));
}

lk_status lk_cuda_serve_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                               const lk_tensor *residual)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_product p = {.w = lk_cuda_matrix_of(w), .x = x->data, .ldx = x->stride, .tokens = x->rows, .bias = bias};
    if (x->rows == 0) return LK_OK;
    p.y = y->data;
    p.ldy = y->stride;
    p.y_f32 = y->type == LK_F32;
    if (residual) {
        p.residual = residual->data;
        p.ldr = residual->stride;
    }
    size_t copied = lk_cuda_eights(x) ? 0 : copy_bytes(x->rows, x->cols);
    void *rest;
    LK_TRY(lk_cuda_scratch(be, "linear", copied, &rest));
    if (copied) {
        void *copy = lk_cuda_carve(&rest, copied);
        LK_TRY(lk_cuda_dropped(be, copy, x, 0, x->rows, 0, NULL));
        p.x = copy;
        p.ldx = lk_cuda_padded(x->cols);
    }
    p.partials = rest;
    p.partials_bytes = cu->scratch_bytes - copied;
    return p.w->storage == LK_NF4 ? lk_cuda_nf4_product(be, &p) : lk_cuda_dense_product(be, &p);
}
