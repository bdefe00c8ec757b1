/* The token store: tokenised, masked documents in an HDF5 file, written once and read by hyperslab; may be larger than memory.
 *
 *     lk_store_writer *w; lk_store_create(&w, "train.h5", err); lk_store_append(w, ids, mask, n, err)...; lk_store_commit(w, err);
 *     lk_store *s; lk_store_open(&s, "train.h5", err); lk_store_read(s, doc, ids, mask, err); lk_store_close(s);
 *
 * Layout: /tokens int32 [N] and /mask uint8 [N] chunked with Fletcher32 checksums (a flipped bit is an error, not a token),
 * /offsets int64 [docs+1], attributes on the root: format_version, tokenizer_digest, template, sources (paths, sizes, digests),
 * n_documents, n_tokens, n_supervised. Written to a temporary name and renamed when complete.
 *
 * A writer or store belongs to one thread at a time, and HDF5 as a whole does (data/hdf5.h). Memory: 8 bytes a document and a few chunks.
 * A file that is damaged, cut off or of another kind is LK_ERR_FORMAT. */
#ifndef LK_DATA_STORE_H
#define LK_DATA_STORE_H

#include <stdint.h>

#include "base/status.h"

typedef struct lk_store_writer lk_store_writer;
typedef struct lk_store lk_store;

/* Replaces a store of that name on commit. */
lk_status lk_store_create(lk_store_writer **w, const char *path, lk_error *err);
/* mask[i] = 1: token i is supervised (it is predicted from the ones before it and enters the loss). n >= 1. Token 0 has nothing before it:
 * its mask is kept but not counted in n_supervised. */
lk_status lk_store_append(lk_store_writer *w, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err);
/* Provenance: tokenizer_digest, template, sources, ... The four that the store writes itself are refused. */
lk_status lk_store_attribute(lk_store_writer *w, const char *name, const char *value, lk_error *err);
lk_status lk_store_commit(lk_store_writer *w, lk_error *err); /* frees the writer, also on failure */
void lk_store_abort(lk_store_writer *w);                      /* NULL is fine */

lk_status lk_store_open(lk_store **s, const char *path, lk_error *err);
void lk_store_close(lk_store *s);
int64_t lk_store_documents(const lk_store *s);
int64_t lk_store_tokens(const lk_store *s);
int64_t lk_store_supervised(const lk_store *s);
int64_t lk_store_length(const lk_store *s, int64_t document);
/* ids[length], mask[length] of one document. */
lk_status lk_store_read(lk_store *s, int64_t document, int32_t *ids, uint8_t *mask, lk_error *err);
/* An attribute's text (counts as decimal numbers); LK_ERR_NOT_FOUND when missing. free(*value). */
lk_status lk_store_get_attribute(lk_store *s, const char *name, char **value, lk_error *err);
/* SHA-256 over offsets (i64), tokens (i32), all little endian, and masks: the same documents give the same digest. Reads everything. */
lk_status lk_store_digest(lk_store *s, char hex[65], lk_error *err);

#endif
