/* One transformer block, forward and backward, over buffers that the caller owns. Training (pass.c) and serving (infer.c) run this same
 * forward; they differ in which buffers are distinct and in how attention finds its keys. Internal to model/.
 *
 * A block is twice the same: x + scale * norm(f(norm(x))), with attention and with the MLP for f. Which of the norms and scales are there
 * is the family's (lk_config); what is not there costs nothing. */
#ifndef LK_MODEL_BLOCK_H
#define LK_MODEL_BLOCK_H

#include "model/adapted.h"
#include "model/experts.h"
#include "model/model.h"
#include "model/positions.h"

/* Activations of one block for the T rows of a batch. What backward needs is marked (b); everything else may share memory with anything
 * that is dead by then, as the comments allow. Types: act of the backend; rstd and lse F32. */
typedef struct lk_block {
    lk_tensor x_in;            /* [T,C] input (b) */
    lk_tensor normed;          /* [T,C] output of the norms before attention and MLP; recomputed in backward */
    float *attn_rstd;          /* [T] (b); NULL when serving */
    lk_tensor qkv;             /* [T,(H+2G)*D] of a fused layer: q, k and v are its columns; else no data */
    lk_tensor q_raw, k_raw;    /* before their norm (b); the same as q and k without qk_norm, or when serving */
    float *q_rstd, *k_rstd;    /* [T*H], [T*G], or [T] of norms over the whole (b); NULL without qk_norm */
    lk_tensor q, k, v;         /* [T,H*D], [T,G*D] x2 after norm and RoPE (b) */
    lk_tensor o;               /* [T,H*D] attention output (b) */
    float *lse;                /* [T,H] (b) */
    lk_tensor attn_out;        /* [T,C] before the norm behind attention (b); may be x_mid when serving or without that norm */
    float *attn_out_rstd;      /* [T] (b) */
    lk_tensor x_mid;           /* [T,C] after the attention's residual (b) */
    float *mlp_rstd;           /* [T] (b) */
    lk_tensor gate_up;         /* [T,2F] of a fused layer: gate and up are its columns; else no data */
    lk_tensor gate, up;        /* [T,F] (b) */
    lk_tensor act;             /* [T,F] gated product; may alias gate when serving; recomputed in backward */
    lk_experts_block experts;  /* instead of the MLP's, where there are experts */
    lk_tensor mlp_out;         /* [T,C] before the norm behind the MLP (b); may be x_out when serving or without that norm */
    float *mlp_out_rstd;       /* [T] (b) */
    lk_tensor x_out;           /* [T,C] output; may alias x_in when serving */
    lk_tensor h[LK_N_MODULES]; /* [T,R] LoRA's inner activations (b), of the modules there are; one shared buffer when serving */
} lk_block;

/* The same of T rows. */
lk_block lk_block_rows(const lk_block *block, int64_t T);

/* What the rows are and where keys come from. kv NULL: attention within the batch's documents; else paged. */
typedef struct lk_block_context {
    const lk_model *model;
    const lk_batch *batch;
    const lk_positions *positions;
    const lk_dropout *dropout; /* NULL: none */
    const lk_tensor *spare;    /* [LK_ADAPTED_SPARE] where a DoRA trains with dropout, or NULL */
    lk_kv *kv;
    lk_routing *routing;            /* where there are experts */
    const lk_expert_groups *groups; /* as lk_experts_call */
    bool experts_adapted;
} lk_block_context;

/* skip_output: x_out is not wanted (recomputation before backward), which saves the last product where no norm stands behind it. */
lk_status lk_block_forward(const lk_block_context *context, int64_t layer, const lk_block *b, bool skip_output);

/* Scratch of the backward, shared by all layers. */
typedef struct lk_block_grads {
    lk_tensor wide[2]; /* [T, max(F, H*D)], or of the fused layers */
    lk_tensor dk, dv;  /* [T, G*D]; unused with fused layers */
    lk_tensor dnormed; /* [T,C] */
    lk_experts_grads experts;
    lk_tensor dbranch; /* [T,C] where something stands between the last layer of attention or MLP and the residual; else no data */
    lk_tensor spare[LK_ADAPTED_SPARE]; /* [T, widest]: the first where a DoRA trains, all where with dropout; else no data */
    int64_t gap;                       /* elements behind each row of wide beyond its widest use */
} lk_block_grads;

/* Does a family have anything there? */
bool lk_block_has_branch(const lk_config *config);

/* dx[T,C]: gradient of x_out in, gradient of x_in out. Destroys gate, up, q_raw, k_raw and act of b. need_dx false (the lowest layer): dx
 * is left undefined, and what only it would need is not computed. */
lk_status lk_block_backward(const lk_block_context *context, int64_t layer, const lk_block *b, const lk_block_grads *g, const lk_tensor *dx,
                            bool need_dx);

#endif
