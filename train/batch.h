/* Micro-batches out of a token store: which documents, in which order, packed how, with labels. A pure function of (store, options,
 * step): nothing is carried from step to step, so a resumed run needs only the step's number.
 *
 *     lk_batches *b;
 *     LK_TRY(lk_batches_create(&b, store, &(lk_batches_options){.rows = 2, .accumulate = 4, .max_length = 1024, .seed = 1, .shuffle =
 * true}, err)); LK_TRY(lk_batches_load(b, step, err)); for (i < lk_batches_count(b)) { const lk_micro_batch *m = lk_batches_at(b, i); ... }
 *     lk_batches_destroy(b);
 *
 * Every epoch shuffles the documents (Fisher-Yates, Philox keyed by seed and epoch) and packs them into rows of at most max_length
 * tokens, first fit. A micro-batch is `rows` of these rows side by side, as one run of documents: nothing is padded, attention and
 * positions stay inside each document. A step is `accumulate` micro-batches; the last step of an epoch takes what is left. So every
 * supervised token is seen exactly once an epoch.
 *
 * Labels: row t predicts token t+1 of its document where that token is supervised, else -1. */
#ifndef LK_TRAIN_BATCH_H
#define LK_TRAIN_BATCH_H

#include <stdbool.h>

#include "data/store.h"
#include "kernels/ops.h"

typedef struct lk_micro_batch {
    lk_batch batch;        /* n_tokens, ids, positions, n_docs, doc_starts; no adapters */
    const int32_t *labels; /* [n_tokens] */
    int64_t supervised;    /* labels >= 0 */
} lk_micro_batch;

typedef struct lk_batches_options {
    int64_t rows, accumulate, max_length;
    uint64_t seed;
    bool shuffle; /* false: documents in the store's order, for evaluation */
} lk_batches_options;

typedef struct lk_batches lk_batches;

/* store is borrowed. A store without documents is refused; a document longer than max_length is,
 * when its epoch is packed. All memory is taken here, except for the packing of
 * an epoch, which is made again when the epoch changes. */
lk_status lk_batches_create(lk_batches **b, lk_store *store, const lk_batches_options *options, lk_error *err);
void lk_batches_destroy(lk_batches *b); /* NULL is fine */
/* Host memory for `documents` documents, for the plan. */
size_t lk_batches_bytes(const lk_batches_options *options, int64_t documents);

/* Steps of the first `epochs` epochs. */
lk_status lk_batches_steps(lk_batches *b, int64_t epochs, int64_t *steps, lk_error *err);

/* Reads step number `step` (from 0; there is no last one). */
lk_status lk_batches_load(lk_batches *b, int64_t step, lk_error *err);
/* Of the loaded step. Borrowed until the next load. */
int lk_batches_count(const lk_batches *b);
const lk_micro_batch *lk_batches_at(const lk_batches *b, int index);
int64_t lk_batches_tokens(const lk_batches *b);
int64_t lk_batches_supervised(const lk_batches *b);
double lk_batches_epoch(const lk_batches *b); /* epochs done after the loaded step: 1.5 is half through the second */

#endif
