/* safetensors files and sharded folders: reading by memory map, writing by atomic replacement.
 *
 *     lk_safetensors *st;
 *     LK_TRY(lk_safetensors_open(&st, "llama-8b", err));      -- a folder (index or single file) or one .safetensors file
 *     const lk_st_tensor *t = lk_safetensors_find(st, "model.norm.weight");
 *     ... t->data, t->type, t->shape ...                       -- borrowed until close
 *     lk_safetensors_close(st);
 *
 * Format: huggingface/safetensors (u64 header length, JSON header, data). The reader refuses holes, overlaps, sizes that do not
 * match shape and type, duplicate keys, truncated or over-long files, shard names that leave the folder: every refusal names file,
 * tensor, expected and found. Thread-safe after open.
 *
 * The data stays in the mapped file: whoever replaces a model must rename a new file over the old (as the writer here does), never
 * cut or overwrite the old one in place, or readers die of SIGBUS or see mixed weights. */
#ifndef LK_DATA_SAFETENSORS_H
#define LK_DATA_SAFETENSORS_H

#include <stdint.h>

#include "base/status.h"
#include "kernels/tensor.h"

typedef struct lk_safetensors lk_safetensors;

/* Longest header the format allows. */
#define LK_ST_MAX_HEADER 100000000

enum { LK_ST_MAX_DIMS = 8 };

struct lk_st_tensor;

/* How a tensor is computed that another format stores in its own way (GGUF): rows permuted, blocks of codes. */
typedef struct lk_st_source {
    /* Elements [first, first+n) as floats; the range is inside the tensor. Thread-safe. */
    lk_status (*read)(const struct lk_st_tensor *t, int64_t first, int64_t n, float *out, lk_error *err);
    const void *bytes; /* what is stored, for digests */
    int64_t n_bytes;
} lk_st_source;

typedef struct lk_st_tensor {
    const char *name;
    lk_dtype type;
    int n_dims;
    int64_t shape[LK_ST_MAX_DIMS];
    int64_t n_elements;
    const void *data; /* unaligned in general: copy or use memcpy-safe access. NULL for a tensor with a source */
    int64_t n_bytes;
    const char *file;           /* which shard, for messages */
    const lk_st_source *source; /* NULL: what is stored is what it is, as in every safetensors file */
} lk_st_tensor;

/* path: a folder (model.safetensors, else model.safetensors.index.json with its shards: the order transformers looks in), an
 * .index.json, or one file of any name. A tensor type without an lk_dtype (F8_E4M3, U32, C64, ...) is LK_ERR_UNSUPPORTED. */
lk_status lk_safetensors_open(lk_safetensors **st, const char *path, lk_error *err);
void lk_safetensors_close(lk_safetensors *st); /* NULL is fine */
int64_t lk_safetensors_count(const lk_safetensors *st);
const lk_st_tensor *lk_safetensors_at(const lk_safetensors *st, int64_t index);      /* sorted by name */
const lk_st_tensor *lk_safetensors_find(const lk_safetensors *st, const char *name); /* NULL when missing */
/* Like find, but missing (LK_ERR_NOT_FOUND), of another rank or shape (LK_ERR_MISMATCH) is an error that says what was expected. A
 * dimension of -1 matches any. */
lk_status lk_safetensors_expect(const lk_safetensors *st, const char *name, int n_dims, const int64_t *shape, const lk_st_tensor **t,
                                lk_error *err);
/* __metadata__ of the (first) file; NULL when missing. */
const char *lk_safetensors_metadata(const lk_safetensors *st, const char *key);
/* Floating tensor (F32, BF16, F16, F64) to float, elements [first, first+n). */
lk_status lk_st_read_f32(const lk_st_tensor *t, int64_t first, int64_t n, float *out, lk_error *err);
/* Checks and parses a header in memory (for the reader itself and the fuzz target): opens a file that lives in memory, borrowed. */
lk_status lk_safetensors_open_memory(lk_safetensors **st, const void *bytes, size_t size, const char *name, lk_error *err);
/* Tensors of another format under names of a Hugging Face folder. Names, shapes and types are copied, data and sources borrowed. The owner
 * of what is borrowed is closed with st; on failure it stays the caller's. */
lk_status lk_safetensors_of_tensors(lk_safetensors **st, const char *path, const lk_st_tensor *tensors, int64_t n, void *owner,
                                    void (*close_owner)(void *owner), lk_error *err);
/* SHA-256 over the tensors in name order, each as name, 0, type name, 0, u8 dimensions, i64 LE shape, bytes (those of
 * the source where there is one): the same content gives the same digest however it is sharded. */
lk_status lk_safetensors_digest(const lk_safetensors *st, char hex[65], lk_error *err);

/* Writing: declare every tensor, then give the data in the order of declaration.
 *
 *     LK_TRY(lk_st_writer_create(&w, "out", "model", 5000000000, err));
 *     if ((status = lk_st_writer_declare(w, "model.norm.weight", LK_BF16, 1, (int64_t[]){4096}, err))) goto fail;   -- ... all of them
 *     if ((status = lk_st_writer_write(w, bytes, 8192, err))) goto fail;                                            -- ... all of them
 *     if ((status = lk_st_writer_commit(w, err))) goto fail;
 *     return LK_OK;
 *     fail: lk_st_writer_abort(w); return status;
 *
 * One file BASE.safetensors, or, when shard_bytes > 0 and the data is larger, shards BASE-00001-of-0000N.safetensors of at most
 * shard_bytes (a larger tensor gets a shard of its own) and BASE.safetensors.index.json. Everything is written to temporary names in the
 * folder; commit renames, the index last, and then removes what an earlier save of the other kind left (a single file shadows an index).
 * Metadata always holds {"format":"pt"}, without which transformers refuses a file. After an error only abort is of use. */
typedef struct lk_st_writer lk_st_writer;
/* folder must exist; base_name "model" or "adapter_model". */
lk_status lk_st_writer_create(lk_st_writer **w, const char *folder, const char *base_name, int64_t shard_bytes, lk_error *err);
lk_status lk_st_writer_declare(lk_st_writer *w, const char *name, lk_dtype type, int n_dims, const int64_t *shape, lk_error *err);
lk_status lk_st_writer_metadata(lk_st_writer *w, const char *key, const char *value, lk_error *err);
/* May be called several times for one tensor until its bytes are complete; one call never spans two tensors. After the first call
 * nothing can be declared. */
lk_status lk_st_writer_write(lk_st_writer *w, const void *bytes, size_t size, lk_error *err);
lk_status lk_st_writer_commit(lk_st_writer *w, lk_error *err); /* every declared byte must have come; frees the writer on success */
void lk_st_writer_abort(lk_st_writer *w);                      /* frees and removes what was written; NULL is fine */

#endif
