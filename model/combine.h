/* Several adapters of one base combined into one, as PEFT's add_weighted_adapter does (tuners/lora/model.py, utils/merge_utils.py).
 *
 *     lk_combine_options o = {.kind = LK_COMBINE_TIES, .weights = weights, .density = 0.5};
 *     LK_TRY(lk_combine("both", paths, 2, &o, err));              -- a PEFT folder
 *
 * CAT adds the deltas exactly: the ranks add up. SVD is the best approximation of that sum of a given rank. The others work on the factors
 * themselves, which wants equal ranks: LINEAR adds them; TIES (Yadav et al. 2023) keeps the largest share `density` of each, elects a sign
 * for every element and averages those that agree; DARE (Yu et al. 2024) drops elements at random and rescales the rest, and then adds
 * (DARE_LINEAR) or elects (DARE_TIES); PRUNE keeps the largest and adds. Random numbers are Philox's, by seed, adapter, tensor and
 * element, so a seed gives one result. Among equal magnitudes the first is kept.
 *
 * A module that only some of the adapters have takes part with those. Only plain factors can be combined: DoRA, biases, trained tokens and
 * modules_to_save are refused by name. Factors on stacked experts (target_parameters), which PEFT does not combine at all, are by CAT. */
#ifndef LK_MODEL_COMBINE_H
#define LK_MODEL_COMBINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef enum lk_combine_kind {
    LK_COMBINE_CAT,
    LK_COMBINE_LINEAR,
    LK_COMBINE_SVD,
    LK_COMBINE_TIES,
    LK_COMBINE_DARE_LINEAR,
    LK_COMBINE_DARE_TIES,
    LK_COMBINE_PRUNE,
    LK_N_COMBINE
} lk_combine_kind;

enum { LK_COMBINE_MOST = 64 };

typedef struct lk_combine_options {
    lk_combine_kind kind;
    const double *weights; /* one an adapter; NULL: 1 each */
    double density;        /* (0,1]: TIES, DARE, PRUNE */
    int32_t rank;          /* SVD; 0: the largest of the adapters' */
    bool by_frequency;     /* the elected sign is that of most adapters instead of that of the sum */
    uint64_t seed;         /* DARE */
} lk_combine_options;

/* "cat", "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", PEFT's names; false: another. */
bool lk_combine_parse(const char *name, lk_combine_kind *kind);

lk_status lk_combine(const char *out, const char *const *adapters, int n, const lk_combine_options *options, lk_error *err);

#endif
