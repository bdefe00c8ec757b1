/* One optimiser step: gradients of the step's micro-batches, clipping, AdamW.
 *
 *     lk_trainer t;
 *     LK_TRY(lk_trainer_init(&t, model, adapter, &options, err));
 *     LK_TRY(lk_trainer_step(&t, micro, n_micro, step, lr, &result, err));
 *     lk_trainer_free(&t);
 *
 * The loss of a step is the sum of the NLL over all supervised tokens of all its micro-batches divided by their number; the gradient is
 * that of this loss, however the tokens are spread over micro-batches (transformers#35203 is the fault this avoids). Dropout is keyed by
 * seed, step and micro-batch. All memory is taken in init. */
#ifndef LK_TRAIN_STEP_H
#define LK_TRAIN_STEP_H

#include "model/adapter.h"
#include "model/transformer.h"
#include "optim/adamw.h"
#include "train/batch.h"

typedef struct lk_trainer_options {
    int64_t max_tokens;  /* of a micro-batch */
    int64_t kept_layers; /* as lk_pass_options */
    bool offload;
    lk_adamw_kind optim;
    double beta1, beta2, eps, weight_decay;
    double clip; /* 0: off */
    double dropout;
    uint64_t seed;
    lk_ranks *ranks; /* NULL: alone. Rank r computes the micro-batches r, r + size, ... of each step; all update alike */
} lk_trainer_options;

typedef struct lk_trainer {
    const lk_model *model; /* borrowed */
    lk_adapter *adapter;   /* borrowed; its weights are what is trained */
    lk_trainer_options options;
    lk_pass *pass;
    lk_adamw_state optim;
    float *grads; /* [n_params] backend memory */
    lk_lora *table;
    lk_adapter_tables tables; /* what the adapter has of them, with their gradients */
    bool has_tables;
    float *nll; /* [max_tokens] host */
} lk_trainer;

typedef struct lk_step_result {
    double loss;      /* mean NLL of the supervised tokens, before the update */
    double grad_norm; /* before clipping */
    int64_t tokens, supervised;
} lk_step_result;

lk_status lk_trainer_init(lk_trainer *t, const lk_model *model, lk_adapter *adapter, const lk_trainer_options *options, lk_error *err);
void lk_trainer_free(lk_trainer *t); /* safe on a zeroed struct */

/* step counts from 0. A loss or gradient norm that is not finite is LK_ERR_FORMAT and changes neither adapter nor moments. */
lk_status lk_trainer_step(lk_trainer *t, const lk_micro_batch *const *micro, int n_micro, int64_t step, double lr, lk_step_result *result,
                          lk_error *err);

#endif
