/* The tables of cosines and sines of a batch: one for the layers of the common rotary embedding, one for those of the local one. Internal
 * to model/.
 *
 * Frequencies are kept for one length of sequence at a time and computed anew when a document has another (lk_rotary_by_length): with most
 * models that is once. */
#ifndef LK_MODEL_POSITIONS_H
#define LK_MODEL_POSITIONS_H

#include "model/carve.h"
#include "model/model.h"

typedef struct lk_positions {
    lk_tensor table[2]; /* [T, turning columns] F32; the second only where there are local layers */
    float *inv_freq[2];
    int64_t length; /* of sequence that inv_freq is for, 0: nothing yet */
} lk_positions;

void lk_positions_carve(lk_positions *p, lk_carve *c, const lk_config *config, int64_t tokens);

/* Brings the frequencies to this length of sequence. */
lk_status lk_positions_prepare(lk_positions *p, const lk_model *model, int64_t length);

/* For the rows of a batch: sequences of `length` each, or with length 0 the batch's documents with their own. */
lk_status lk_positions_fill(lk_positions *p, const lk_model *model, const lk_batch *batch, int64_t length);

/* The table of a layer for the first T rows; false when the layer has no rotary embedding. */
bool lk_positions_of(const lk_positions *p, const lk_config *config, int64_t layer, int64_t tokens, lk_tensor *table);

#endif
