/* Products with frozen matrices. Those of a serving batch have kernels of their own, whose bits do not depend on company: product.c. Here
 * are training's: the matrix as bf16, in the workspace when it is quantised, then cuBLASLt.
 *
 * Bytes a call, T tokens: NF4 reads N*K/2 (and scales) and writes 2*N*K, the product reads these again beside T*K and T*N of activations:
 * at 8192 tokens of a 4096 x 4096 layer 10 us beside the arithmetic's 350 (computed, 4.3 TB/s and 790 TFLOP/s). Bias and residual ride in
 * the product's epilogue and cost one read of the residual. The bias is rounded to bf16 first where y is (checkpoints have it so).
 *
 * A matrix larger than the workspace (a quantised head) is done in blocks of rows, which are columns of y: no result changes. The gradient
 * would have to be summed over such blocks in bf16, so there the whole matrix has to fit; limits.matrix covers every layer that has one.
 *
 * Rejected: keeping dequantised layers (2 bytes a weight is what NF4 is there to avoid). With an adapter the two products become one:
 * linear_lora.c. */
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/product.h"

/* Rows of w that the scratch takes as bf16 at a time. It takes none where the limits were those of a server. */
static lk_status workspace_rows(lk_backend *be, const char *op, const lk_matrix *w, int64_t *rows)
{
    *rows = lk_cuda_matrix_fit(w, lk_cuda_of(be)->scratch_bytes);
    int64_t most = *rows < w->n ? *rows : w->n;
    if (lk_cuda_matrix_of(w)->storage != LK_NF4) return LK_OK;
    void *workspace;
    return lk_cuda_scratch(be, op, (size_t)(most * w->k) * 2, &workspace);
}

lk_status lk_cuda_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                         const lk_tensor *residual)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (x->rows == 0) return LK_OK;
    if (cu->serving) return lk_cuda_serve_linear(be, y, x, w, bias, residual);
    int64_t fit, size = lk_dtype_size(y->type);
    LK_TRY(workspace_rows(be, "linear", w, &fit));
    const void *typed_bias;
    LK_TRY(lk_cuda_bias(be, &typed_bias, bias, w->n, y->type));
    for (int64_t begin = 0; begin < w->n; begin += fit) {
        int64_t end = begin + fit < w->n ? begin + fit : w->n, ld;
        const void *rows;
        LK_TRY(lk_cuda_matrix_rows(be, w, begin, end, cu->scratch, &rows, &ld));
        lk_gemm g = {.m = x->rows, .n = end - begin, .k = w->k, .type = LK_BF16, .d_type = y->type, .alpha = 1.0f};
        g.a = x->data;
        g.lda = x->stride;
        g.b = rows;
        g.ldb = ld;
        g.b_transposed = true;
        g.d = (char *)y->data + begin * size;
        g.ldd = y->stride;
        if (residual) {
            g.beta = 1.0f;
            g.c = (const char *)residual->data + begin * size;
            g.ldc = residual->stride;
        }
        g.bias = typed_bias ? (const char *)typed_bias + begin * size : NULL;
        LK_TRY(lk_cuda_multiply(be, &g));
    }
    return LK_OK;
}

lk_status lk_cuda_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (dy->rows == 0) return LK_OK;
    int64_t fit;
    LK_TRY(workspace_rows(be, "linear_backward", w, &fit));
    if (fit < w->n)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "linear_backward: a matrix of %lld x %lld does not fit the workspace: limits.matrix",
                       (long long)w->n, (long long)w->k);
    const void *rows;
    int64_t ld;
    LK_TRY(lk_cuda_matrix_rows(be, w, 0, w->n, cu->scratch, &rows, &ld));
    lk_gemm g = {.m = dy->rows, .n = w->k, .k = w->n, .type = LK_BF16, .d_type = dx->type, .alpha = 1.0f};
    g.a = dy->data;
    g.lda = dy->stride;
    g.b = rows;
    g.ldb = ld;
    g.d = dx->data;
    g.ldd = dx->stride;
    g.beta = accumulate ? 1.0f : 0.0f;
    return lk_cuda_multiply(be, &g);
}
