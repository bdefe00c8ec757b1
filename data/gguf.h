/* GGUF files (ggml's format of models, adapters and vocabularies): reading by memory map, writing by atomic replacement.
 *
 *     lk_gguf *g;
 *     LK_TRY(lk_gguf_open(&g, "model-q8_0.gguf", err));
 *     const char *architecture; size_t size;
 *     status = lk_gguf_string(g, "general.architecture", &architecture, &size, err);
 *     const lk_gguf_tensor *t = lk_gguf_find(g, "token_embd.weight");
 *     ... lk_ggml_decode(t->type, t->data, first, n, values) ...      -- borrowed until close
 *     lk_gguf_close(g);
 *
 * Format: ggml docs/gguf.md, versions 2 and 3, little-endian. Shapes here are row-major, the slowest dimension first, as everywhere else in
 * this program; the file has them the other way round. The reader checks every field before it is used and refuses, naming the
 * file and the key or tensor: truncated files and bytes left over, counts that the file cannot hold, duplicate keys and tensors, unknown
 * value types, element types that data/gguf_quants.h does not handle, rows that are not whole blocks, offsets that leave holes or overlap,
 * and files that are one part of a split model. Thread-safe after open. */
#ifndef LK_DATA_GGUF_H
#define LK_DATA_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/gguf_quants.h"

typedef struct lk_gguf lk_gguf;

enum { LK_GGUF_MAX_DIMS = 4, LK_GGUF_MAX_NAME = 63, LK_GGUF_ALIGNMENT = 32 };

/* Types of metadata values, as in the file. */
typedef enum lk_gguf_type {
    LK_GGUF_U8,
    LK_GGUF_I8,
    LK_GGUF_U16,
    LK_GGUF_I16,
    LK_GGUF_U32,
    LK_GGUF_I32,
    LK_GGUF_F32,
    LK_GGUF_BOOL,
    LK_GGUF_STRING,
    LK_GGUF_ARRAY,
    LK_GGUF_U64,
    LK_GGUF_I64,
    LK_GGUF_F64,
    LK_GGUF_N_TYPES
} lk_gguf_type;

typedef struct lk_gguf_text {
    const char *p; /* not terminated; may hold zero bytes */
    size_t n;
} lk_gguf_text;

typedef struct lk_gguf_value {
    const char *key;
    lk_gguf_type type;
    lk_gguf_type item;   /* of an array */
    int64_t n;           /* items of an array, else 1 */
    const uint8_t *data; /* numbers as in the file, unaligned; NULL for strings */
    const lk_gguf_text *texts;
} lk_gguf_value;

typedef struct lk_gguf_tensor {
    const char *name;
    const lk_ggml_type *type;
    int n_dims;
    int64_t shape[LK_GGUF_MAX_DIMS]; /* row-major */
    int64_t n_elements, n_bytes;
    const void *data;
} lk_gguf_tensor;

lk_status lk_gguf_open(lk_gguf **g, const char *path, lk_error *err);
/* A file in memory, borrowed until close; `name` for messages. */
lk_status lk_gguf_open_memory(lk_gguf **g, const void *bytes, size_t size, const char *name, lk_error *err);
void lk_gguf_close(lk_gguf *g); /* NULL is fine */
const char *lk_gguf_path(const lk_gguf *g);
/* Does this file begin as GGUF files do? false also when it cannot be read. */
bool lk_gguf_is_file(const char *path);

int64_t lk_gguf_count(const lk_gguf *g);                                /* tensors */
const lk_gguf_tensor *lk_gguf_at(const lk_gguf *g, int64_t index);      /* in the file's order */
const lk_gguf_tensor *lk_gguf_find(const lk_gguf *g, const char *name); /* NULL when missing */
int64_t lk_gguf_n_keys(const lk_gguf *g);
const lk_gguf_value *lk_gguf_key_at(const lk_gguf *g, int64_t index); /* in the file's order */
const lk_gguf_value *lk_gguf_key(const lk_gguf *g, const char *key);  /* NULL when missing */

/* Typed values. Missing is LK_ERR_NOT_FOUND, another type or a value out of range LK_ERR_FORMAT; integers of every width are integers,
 * both widths of floats (and integers) are numbers. The opt_ forms leave *value as it is when the key is missing. */
lk_status lk_gguf_int(const lk_gguf *g, const char *key, int64_t min, int64_t max, int64_t *value, lk_error *err);
lk_status lk_gguf_number(const lk_gguf *g, const char *key, double *value, lk_error *err);
lk_status lk_gguf_bool(const lk_gguf *g, const char *key, bool *value, lk_error *err);
/* *text points into the file and is not terminated. */
lk_status lk_gguf_string(const lk_gguf *g, const char *key, const char **text, size_t *size, lk_error *err);
lk_status lk_gguf_opt_int(const lk_gguf *g, const char *key, int64_t min, int64_t max, int64_t *value, lk_error *err);
lk_status lk_gguf_opt_number(const lk_gguf *g, const char *key, double *value, lk_error *err);
lk_status lk_gguf_opt_bool(const lk_gguf *g, const char *key, bool *value, lk_error *err);
lk_status lk_gguf_opt_string(const lk_gguf *g, const char *key, const char **text, size_t *size, lk_error *err);
/* An array with items of this type. */
lk_status lk_gguf_array(const lk_gguf *g, const char *key, lk_gguf_type item, const lk_gguf_value **value, lk_error *err);
/* Item i of a value (0 for a scalar) as a number; what is none is 0: a string, a float where an integer is asked for. */
int64_t lk_gguf_item_int(const lk_gguf_value *value, int64_t i);
double lk_gguf_item_number(const lk_gguf_value *value, int64_t i);
const char *lk_gguf_type_name(lk_gguf_type type); /* "u32", "string", ... */

/* Writing: keys, then tensor declarations, then the data in the order of declaration.
 *
 *     LK_TRY(lk_gguf_writer_create(&w, "model.gguf", err));
 *     if ((status = lk_gguf_add_string(w, "general.architecture", "llama", err))) goto fail;                        -- ...
 *     if ((status = lk_gguf_declare(w, "output_norm.weight", type, 1, (int64_t[]){4096}, err))) goto fail;          -- ...
 *     if ((status = lk_gguf_write(w, bytes, size, err))) goto fail;                                                 -- ...
 *     if ((status = lk_gguf_commit(w, err))) goto fail;
 *     return LK_OK;
 *     fail: lk_gguf_abort(w); return status;
 *
 * Everything goes to a temporary name beside the file, renamed by commit: a full disk or a crash leaves what was there. Memory is that of
 * the header. Version 3, alignment 32. Duplicate keys and tensors are the caller's mistake (LK_ERR_INTERNAL); a tensor's name that is too
 * long, or a shape whose rows are not whole blocks, is LK_ERR_ARGUMENT. After an error only abort is of use. */
typedef struct lk_gguf_writer lk_gguf_writer;
lk_status lk_gguf_writer_create(lk_gguf_writer **w, const char *path, lk_error *err);
lk_status lk_gguf_add_u32(lk_gguf_writer *w, const char *key, int64_t value, lk_error *err); /* 0 .. 2^32-1, else LK_ERR_ARGUMENT */
lk_status lk_gguf_add_f32(lk_gguf_writer *w, const char *key, double value, lk_error *err);
lk_status lk_gguf_add_bool(lk_gguf_writer *w, const char *key, bool value, lk_error *err);
lk_status lk_gguf_add_string(lk_gguf_writer *w, const char *key, const char *text, lk_error *err);
lk_status lk_gguf_add_texts(lk_gguf_writer *w, const char *key, const lk_gguf_text *texts, int64_t n, lk_error *err);
lk_status lk_gguf_add_i32s(lk_gguf_writer *w, const char *key, const int32_t *values, int64_t n, lk_error *err);
lk_status lk_gguf_add_f32s(lk_gguf_writer *w, const char *key, const float *values, int64_t n, lk_error *err);
lk_status lk_gguf_add_bools(lk_gguf_writer *w, const char *key, const bool *values, int64_t n, lk_error *err);
/* shape is row-major. */
lk_status lk_gguf_declare(lk_gguf_writer *w, const char *name, const lk_ggml_type *type, int n_dims, const int64_t *shape, lk_error *err);
/* May be called several times for one tensor until its bytes are complete; one call never spans two tensors. */
lk_status lk_gguf_write(lk_gguf_writer *w, const void *bytes, size_t size, lk_error *err);
int64_t lk_gguf_written(const lk_gguf_writer *w);           /* size of the file so far */
lk_status lk_gguf_commit(lk_gguf_writer *w, lk_error *err); /* every declared byte must have come; frees the writer on success */
void lk_gguf_abort(lk_gguf_writer *w);                      /* frees and removes what was written; NULL is fine */

#endif
