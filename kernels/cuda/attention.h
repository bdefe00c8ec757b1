/* The module's own attention kernels (attention.cu): what runs where cuDNN is not there or refuses a shape. attention.c chooses.
 *
 *     if (cu->sdpa && lk_sdpa_supports(cu->sdpa, &s)) ... cuDNN ...
 *     else return lk_attention_own_forward(be, &call);
 *
 * The contracts are those of lk_attention and lk_attention_backward in kernels/ops.h. */
#ifndef LK_KERNELS_CUDA_ATTENTION_H
#define LK_KERNELS_CUDA_ATTENTION_H

#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_ATTENTION_HEAD_DIM = 256 }; /* the widest head; any size up to it, multiples of 8 fast */

/* A forward uses batch, shape, o, lse (or NULL), q, k, v; a backward all but `lse`. Borrowed for the call. */
typedef struct lk_attention_call {
    const lk_batch *batch;
    const lk_attention_shape *shape;
    const lk_tensor *q, *k, *v, *o, *dout, *dq, *dk, *dv;
    float *lse;            /* out [T,H] */
    const float *lse_kept; /* in [T,H] */
    float *delta;          /* work memory of lk_attention_own_bytes, backward only */
} lk_attention_call;

lk_status lk_attention_own_forward(lk_backend *be, const lk_attention_call *call);
lk_status lk_attention_own_backward(lk_backend *be, const lk_attention_call *call);
/* Bytes of `delta`. */
size_t lk_attention_own_bytes(int64_t tokens, int64_t heads);

#ifdef __cplusplus
}
#endif
#endif
