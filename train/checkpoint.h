/* Checkpoints: everything that a run needs to go on exactly, in one HDF5 file a step.
 *
 *     LK_TRY(lk_checkpoint_save("run/checkpoints", &meta, &state, keep, err));
 *     LK_TRY(lk_checkpoint_resume("run/checkpoints", &meta, &state, &found, err));      -- the newest valid one, when there is any
 *
 * step-000123.h5 holds /params, /m, /v (float32 [n_params], Fletcher32; with the optimizer adamw8bit /m and /v are uint8 and /m_scale and
 * /v_scale lie beside them) and, as attributes, the optimizer, the step, the recipe's essence and the digests
 * of base and data. Random numbers are counter-based, so there is no generator to store. `content` is a SHA-256 over all of it.
 *
 * Crash-safe: written to a temporary name, flushed, renamed; a full disk leaves the older ones. On resume a torn or corrupt file is skipped
 * with a warning and the next older one is taken. One that is whole but belongs to another recipe, base or dataset is LK_ERR_MISMATCH,
 * saying what differs: nothing is guessed. */
#ifndef LK_TRAIN_CHECKPOINT_H
#define LK_TRAIN_CHECKPOINT_H

#include <stdbool.h>

#include "optim/adamw.h"

typedef struct lk_checkpoint_meta {
    int64_t step;            /* optimiser steps done */
    const char *essence;     /* lk_recipe.essence */
    const char *base_digest; /* lk_model.digest */
    const char *data_digest; /* of the training token store */
} lk_checkpoint_meta;

typedef struct lk_checkpoint_state {
    lk_backend *be;
    float *params; /* [n_params], backend memory */
    int64_t n_params;
    const lk_adamw_state *optim; /* of n_params too; what its parts point to is written on resume */
} lk_checkpoint_state;

/* Afterwards only the `keep` newest are left. On failure the folder is as before. */
lk_status lk_checkpoint_save(const char *folder, const lk_checkpoint_meta *meta, const lk_checkpoint_state *state, int64_t keep,
                             lk_error *err);

/* Takes the newest valid checkpoint: sets meta->step, fills the state, *found = true. meta says what it must belong to. Without any (or
 * without the folder) *found is false and nothing changes. */
lk_status lk_checkpoint_resume(const char *folder, lk_checkpoint_meta *meta, const lk_checkpoint_state *state, bool *found, lk_error *err);

/* What a file says of itself, after it was found whole. Strings are the struct's: lk_checkpoint_facts_free. */
typedef struct lk_checkpoint_facts {
    int64_t step, n_params;
    char *optimizer, *essence, *base_digest, *data_digest, *content;
} lk_checkpoint_facts;
lk_status lk_checkpoint_describe(lk_checkpoint_facts *facts, const char *path, lk_error *err);
void lk_checkpoint_facts_free(lk_checkpoint_facts *facts);

#endif
