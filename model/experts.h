/* The mixture of experts in place of a block's MLP: out = x + sum over the chosen experts of weight * down(act(gate(x)) * up(x)).
 *
 * A router gives each of the T tokens K experts. Tokens are brought together by expert, in their own order, into T*K slots; each expert's
 * layers then are ordinary linear layers with adapters over its slots, as a small batch of its own. What a token gets is a sum over its
 * choices in the order of the router, so it does not depend on the others. Which slots are whose is the host's to say: the choices come
 * down once a layer. A server with the means for it leaves them on the device instead (model/expert_groups.h), where no adapter of the
 * batch touches experts; where one does, its factors alone go by turns. Internal to model/. */
#ifndef LK_MODEL_EXPERTS_H
#define LK_MODEL_EXPERTS_H

#include "model/carve.h"
#include "model/expert_groups.h"
#include "model/model.h"

/* Activations of a layer; (b): what backward needs. */
typedef struct lk_experts_block {
    lk_tensor logits;   /* [T,E] F32 (b) */
    lk_tensor weights;  /* [T,K] F32 (b) */
    int32_t *ids;       /* [T*K] (b) */
    lk_tensor rows;     /* [T*K,C] the tokens' x by slot; remade in backward */
    lk_tensor gate, up; /* [T*K,F] (b) */
    lk_tensor act;      /* [T*K,F] may be gate when serving; remade in backward */
    lk_tensor out;      /* [T*K,C] (b) */
    lk_tensor h[3];     /* [T*K,R] of gate, up and down (b); one shared when serving */
    lk_tensor h_router; /* [T,R] (b) */
} lk_experts_block;

/* Scratch of the backward, shared by all layers. */
typedef struct lk_experts_grads {
    lk_tensor dact;     /* [T*K,F] */
    lk_tensor dweights; /* [T,K] F32 */
    lk_tensor dlogits;  /* [T,E] */
} lk_experts_grads;

/* The host's tables for one layer at a time. */
typedef struct lk_routing {
    int64_t most; /* slots */
    int32_t *ids, *rows, *slots;
    int64_t *first;       /* [E+1] slots of expert e: first[e] .. first[e+1]-1 */
    lk_segment *segments; /* of one expert */
} lk_routing;

/* Nothing is made, and nothing fails, for a model without experts. */
lk_status lk_routing_init(lk_routing *routing, const lk_config *config, int64_t tokens, lk_error *err);
void lk_routing_free(lk_routing *routing);

/* training: every buffer its own; else act is gate and the h are one. rank: columns of h. */
void lk_experts_carve(lk_experts_block *b, lk_carve *c, const lk_config *config, lk_dtype act, int64_t tokens, int64_t rank, bool training);
void lk_experts_carve_shared(lk_experts_block *b, lk_experts_grads *g, lk_carve *c, const lk_config *config, lk_dtype act, int64_t tokens);

typedef struct lk_experts_call {
    const lk_model *model;
    const lk_batch *batch;
    const lk_dropout *dropout; /* or NULL */
    lk_routing *routing;
    int64_t layer;
    const lk_expert_groups *groups; /* serving; or NULL */
    bool adapted;                   /* with groups: an adapter touches experts */
} lk_experts_call;

/* out[T,C] = residual + the mixture of x[T,C]; out NULL: not wanted, only what backward needs. */
lk_status lk_experts_forward(const lk_experts_call *call, const lk_experts_block *b, const lk_tensor *out, const lk_tensor *x,
                             const lk_tensor *residual);
/* dx[T,C] from dy[T,C]; destroys gate, up and out of b. */
lk_status lk_experts_backward(const lk_experts_call *call, const lk_experts_block *b, const lk_experts_grads *g, const lk_tensor *dx,
                              const lk_tensor *dy, const lk_tensor *x);

#endif
