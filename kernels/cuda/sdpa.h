/* Fused causal attention over packed documents: the thin layer over cuDNN's graph API (native/sdpa.c); the emulation answers with a plain
 * reference (tests/cuda_emu/sdpa.cpp). attention.c chooses between this and the module's own kernels (attention.cu).
 *
 *     lk_sdpa_shape s = {.heads = 32, .kv_heads = 8, .head_dim = 128, .scale = 0.088f, .window = 0};
 *     if (lk_sdpa_supports(sdpa, &s)) LK_TRY(lk_sdpa_forward(sdpa, &s, &docs, &forward, stream, err));
 *
 * Tensors are [T, heads*D] bf16 with a row stride in elements (a multiple of 8), heads side by side, rows of document i are
 * [starts[i], starts[i+1]). A query sees the keys of its own document at its own row and before. lse[T,H] F32 = log sum exp of the scaled
 * scores (natural logarithm). Backward is deterministic: the same bits every time.
 *
 * Plans are built once per bucket of (documents, longest document), both rounded up to powers of two, and kept. */
#ifndef LK_KERNELS_CUDA_SDPA_H
#define LK_KERNELS_CUDA_SDPA_H

#include <stdbool.h>

#include "kernels/cuda/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lk_sdpa lk_sdpa;

typedef struct lk_sdpa_shape {
    int64_t heads, kv_heads, head_dim;
    float scale;
    int64_t window; /* 0: none */
} lk_sdpa_shape;

typedef struct lk_sdpa_docs {
    int64_t n, tokens, longest;
    const int32_t *starts; /* [n+1], host memory, read before the call returns */
} lk_sdpa_docs;

typedef struct lk_sdpa_rows {
    void *data; /* bf16 */
    int64_t stride;
} lk_sdpa_rows;

typedef struct lk_sdpa_forward_args {
    lk_sdpa_rows q, k, v, o;
    float *lse; /* [T,H], or NULL: not wanted */
} lk_sdpa_forward_args;

typedef struct lk_sdpa_backward_args {
    lk_sdpa_rows q, k, v, o, dout, dq, dk, dv;
    const float *lse;
} lk_sdpa_backward_args;

/* LK_ERR_UNSUPPORTED when cuDNN is not there or too old: attention then runs on the module's own kernels. */
lk_status lk_sdpa_create(lk_sdpa **sdpa, const lk_rt_device *device, lk_error *err);
void lk_sdpa_destroy(lk_sdpa *sdpa); /* NULL is fine */
bool lk_sdpa_supports(lk_sdpa *sdpa, const lk_sdpa_shape *shape);
/* Device bytes that forward and (training) backward may need for up to these tokens in one document; the caller provides them. 0 or more.
 */
size_t lk_sdpa_workspace_bytes(lk_sdpa *sdpa, const lk_sdpa_shape *shape, int64_t tokens, bool training);
/* LK_ERR_UNSUPPORTED when cuDNN refuses after all; lk_sdpa_supports then says no from there on, and the caller takes another way: outputs
 * are all overwritten by it. */
lk_status lk_sdpa_forward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_forward_args *args,
                          void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err);
lk_status lk_sdpa_backward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_backward_args *args,
                           void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err);

#ifdef __cplusplus
}
#endif
#endif
