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
/* lengths[document], each 1 .. row_tokens (LK_ERR_ARGUMENT otherwise, naming the document); order[n] names the documents in the order they
 * are placed, NULL: 0 .. n-1. Both are only read during the call. n may be 0. */
lk_status lk_pack_create(lk_pack **p, const int64_t *lengths, const int64_t *order, int64_t n, int64_t row_tokens, lk_error *err);
void lk_pack_destroy(lk_pack *p);
int64_t lk_pack_rows(const lk_pack *p);
/* Documents of a row in their order, borrowed until destroy; returns how many (at least one). */
int64_t lk_pack_row(const lk_pack *p, int64_t row, const int64_t **documents);
int64_t lk_pack_row_tokens(const lk_pack *p, int64_t row);

#endif
