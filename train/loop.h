/* The training loop over things that are open already: steps, evaluation, checkpoints, metrics, until the last step or a stop.
 *
 * Internal to train/: lk_train_run opens what stands here and calls it. */
#ifndef LK_TRAIN_LOOP_H
#define LK_TRAIN_LOOP_H

#include "train/batch.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/recipe.h"
#include "train/run.h"
#include "train/step.h"
#include "train/train.h"

typedef struct lk_loop {
    const lk_recipe *recipe;
    const lk_run *run;
    const lk_model *model;
    lk_trainer *trainer;
    lk_batches *batches;
    lk_store *eval; /* NULL: no held-out set */
    const char *data_digest;
    int64_t total, first; /* steps of the run; done before this process */
    bool quiet;
    lk_ranks *ranks; /* NULL: alone; rank 0 evaluates, saves and reports */
    const volatile sig_atomic_t *stop;
} lk_loop;

/* Takes the newest valid checkpoint when there is one and sets loop->first. */
lk_status lk_loop_resume(lk_loop *loop, lk_error *err);
/* From loop->first to loop->total. Fills loss, evaluated, before, after, tokens of the result. Ends with a checkpoint of the last step. */
lk_status lk_loop_run(lk_loop *loop, lk_train_result *result, lk_error *err);

#endif
