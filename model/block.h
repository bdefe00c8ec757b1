/* One transformer block, forward and backward, over buffers that the caller owns. Training (pass.c) and serving (infer.c) run this same
 * forward; they differ in which buffers are distinct and in how attention finds its keys. Internal to model/. */
#ifndef LK_MODEL_BLOCK_H
#define LK_MODEL_BLOCK_H

#include "model/model.h"

/* Activations of one block for the T rows of a batch. What backward needs is marked (b); everything else may share memory with anything
 * that is dead by then, as the comments allow. Types: act of the backend; rstd and lse F32. */
typedef struct lk_block {
    lk_tensor x_in;            /* [T,C] input (b) */
    lk_tensor normed;          /* [T,C] both norms' output; recomputed in backward */
    float *attn_rstd;          /* [T] (b); NULL when serving */
    lk_tensor q_raw, k_raw;    /* before the per-head norm (b); the same as q and k without qk_norm, or when serving */
    float *q_rstd, *k_rstd;    /* [T*H], [T*G] (b); NULL without qk_norm */
    lk_tensor q, k, v;         /* [T,H*D], [T,G*D] x2 after norm and RoPE (b) */
    lk_tensor o;               /* [T,H*D] attention output (b) */
    float *lse;                /* [T,H] (b) */
    lk_tensor x_mid;           /* [T,C] after the attention's residual (b) */
    float *mlp_rstd;           /* [T] (b) */
    lk_tensor gate, up;        /* [T,F] (b) */
    lk_tensor act;             /* [T,F] gated product; may alias gate when serving; recomputed in backward */
    lk_tensor x_out;           /* [T,C] output; may alias x_in when serving */
    lk_tensor h[LK_N_MODULES]; /* [T,R] LoRA's inner activations (b); one shared buffer when serving */
} lk_block;

/* What the rows are and where keys come from. kv NULL: attention within the batch's documents; else paged. */
typedef struct lk_block_context {
    const lk_model *model;
    const lk_batch *batch;
    const lk_tensor *cos_sin;
    const lk_dropout *dropout; /* NULL: none */
    lk_kv *kv;
} lk_block_context;

/* skip_output: x_out is not wanted (recomputation before backward), which saves the last product. */
lk_status lk_block_forward(const lk_block_context *context, int64_t layer, const lk_block *b, bool skip_output);

/* Scratch of the backward, shared by all layers. */
typedef struct lk_block_grads {
    lk_tensor wide[2]; /* [T, max(F, H*D)] */
    lk_tensor dk, dv;  /* [T, G*D] */
    lk_tensor dnormed; /* [T,C] */
    int64_t gap;       /* elements behind each row of wide beyond its widest use */
} lk_block_grads;

/* dx[T,C]: gradient of x_out in, gradient of x_in out. Destroys gate, up, q_raw, k_raw and act of b. need_dx false (the lowest layer): dx
 * is left undefined, and what only it would need is not computed. */
lk_status lk_block_backward(const lk_block_context *context, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx,
                            bool need_dx);

#endif
