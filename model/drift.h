/* How far one model's logits are from another's, on a text: what a merge or a quantisation costs.
 *
 *     float *reference, *merged;
 *     LK_TRY(lk_logits_of(&reference, &vocab, be, "llama-8b", LK_QUANT_NF4, "run/adapter", ids, n, err));
 *     LK_TRY(lk_logits_of(&merged, &vocab, be, "merged", LK_QUANT_NONE, NULL, ids, n, err));
 *     lk_drift d = lk_drift_measure(reference, merged, n, vocab); */
#ifndef LK_MODEL_DRIFT_H
#define LK_MODEL_DRIFT_H

#include "model/model.h"

typedef struct lk_drift {
    double max, mean; /* of |difference| of logits */
    double kl;        /* mean over tokens of KL(reference || other), in nats */
    double same_top;  /* share of tokens whose arg max is the same */
} lk_drift;

lk_drift lk_drift_measure(const float *reference, const float *other, int64_t n, int64_t vocab);

/* Opens a model (and an adapter, or NULL), computes logits[n,vocab] of the ids as one document, and closes it. free(*logits). */
lk_status lk_logits_of(float **logits, int64_t *vocab, lk_backend *be, const char *folder, lk_quant quant, const char *adapter,
                       const int32_t *ids, int64_t n, lk_error *err);

#endif
