/* A server's mixtures of experts without the host: what the backend's calls over all experts of a layer want (lk_experts_linear). Only
 * where the backend has them and the model's shapes allow; else, and in training, experts have turns (model/experts.c). Internal to model/.
 */
#ifndef LK_MODEL_EXPERT_GROUPS_H
#define LK_MODEL_EXPERT_GROUPS_H

#include "model/carve.h"
#include "model/model.h"

typedef struct lk_expert_groups {
    int32_t *places; /* memory of the backend, for one layer at a time */
    char *tables;    /* the same, [layers][3] */
    lk_experts *of;  /* [layers][3]: gate, up and down; NULL: not for this model */
    const lk_matrix **matrices;
    int32_t *sites; /* of all experts */
    int32_t n_sites;
} lk_expert_groups;

/* tokens: the most of a step. Carves nothing where there is nothing to have. */
void lk_expert_groups_carve(lk_expert_groups *g, lk_carve *c, const lk_backend *be, const lk_config *config, int64_t tokens);
lk_status lk_expert_groups_prepare(lk_expert_groups *g, const lk_model *model, lk_error *err);
void lk_expert_groups_free(lk_expert_groups *g); /* what lies on the host */

/* The three of a layer, or NULL. */
const lk_experts *lk_expert_groups_at(const lk_expert_groups *g, int64_t layer);
/* Every layer of experts has them: a step's operations then follow from its shapes. */
bool lk_expert_groups_whole(const lk_expert_groups *g, const lk_model *model);
/* Whether an adapter of the batch touches any expert: then the host has to know who goes where, after all. */
bool lk_expert_groups_adapted(const lk_expert_groups *g, const lk_batch *batch);

#endif
