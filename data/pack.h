/* Packing: documents into rows of at most row_tokens, first fit in the given order, with boundaries kept; nothing is padded.
 *
 *     lk_pack *p;
 *     LK_TRY(lk_pack_create(&p, lengths, order, n_documents, row_tokens, err));
 *     for (r < lk_pack_rows(p)) { n = lk_pack_row(p, r, &documents); ... }
 *     lk_pack_destroy(p);
 *
 * First fit: each document goes into the earliest open row with room (a segment tree over the free room finds it in O(log rows)).
 * Documents longer than a row must have been cut before (lk_pack_create refuses them). Attention never crosses a document and
 * positions restart with each, so a packed row means the same as its documents alone. */
#ifndef LK_DATA_PACK_H
#define LK_DATA_PACK_H

#include <stdint.h>

#include "base/status.h"

typedef struct lk_pack lk_pack;
/* lengths[document]; order[n] names the documents in the order they are placed. */
lk_status lk_pack_create(lk_pack **p, const int64_t *lengths, const int64_t *order, int64_t n, int64_t row_tokens, lk_error *err);
void lk_pack_destroy(lk_pack *p);
int64_t lk_pack_rows(const lk_pack *p);
/* Documents of row r in their order; returns how many. */
int64_t lk_pack_row(const lk_pack *p, int64_t row, const int64_t **documents);
int64_t lk_pack_row_tokens(const lk_pack *p, int64_t row);

#endif
