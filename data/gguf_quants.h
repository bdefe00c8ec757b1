/* The element types of GGUF files: what ggml calls F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K.
 *
 *     const lk_ggml_type *t = lk_ggml_type_named("q4_k");
 *     int64_t bytes = lk_ggml_bytes(t, n);                        -- n a multiple of t->block
 *     LK_TRY(lk_ggml_encode(t, out, values, n, "blk.0.ffn_up.weight", err));
 *     lk_ggml_decode(t, out, first, count, values);               -- any range
 *
 * Layouts and formulas are ggml's (ggml-common.h, ggml-quants.c); all numbers are little-endian. x is a value, q a code, d a scale:
 *
 *     Q8_0  32 values, 34 bytes: f16 d, i8 q[32]; x = d * q
 *     Q4_0  32 values, 18 bytes: f16 d, 16 bytes, value i in the low nibble of byte i, value i+16 in the high one; x = d * (q - 8)
 *     Q4_K  256 values in 8 groups of 32, 144 bytes: f16 d, f16 dmin, 12 bytes with a 6-bit scale s and minimum m a group, 128 bytes of
 *           nibbles, groups 2j and 2j+1 in the low and high ones of bytes 32j..32j+31; x = (d * s) * q - dmin * m
 *     Q6_K  256 values in 16 groups of 16, 210 bytes: low 4 bits (128 bytes), high 2 bits (64 bytes), i8 s[16], f16 d;
 *           x = (d * s) * (q - 32)
 *
 * Decoding gives the same bits as the gguf Python package and ggml. Encoding to Q8_0 and Q4_0 gives the same bytes as theirs; Q4_K and
 * Q6_K leave the choice of scales to the encoder: here the squared error is minimised (gguf_kquants.c). Pure and thread-safe; ranges
 * that start at block boundaries may be encoded by different threads. */
#ifndef LK_DATA_GGUF_QUANTS_H
#define LK_DATA_GGUF_QUANTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { LK_GGML_F32 = 0, LK_GGML_F16 = 1, LK_GGML_Q4_0 = 2, LK_GGML_Q8_0 = 8, LK_GGML_Q4_K = 12, LK_GGML_Q6_K = 14, LK_GGML_BF16 = 30 };

typedef struct lk_ggml_type {
    uint32_t id; /* as in the file */
    const char *name;
    int32_t block, bytes; /* values and bytes of one block; rows are whole blocks */
} lk_ggml_type;

/* NULL for a type that is not handled here. */
const lk_ggml_type *lk_ggml_type_of(uint32_t id);
/* By name in lower case, "q4_k"; NULL when unknown. */
const lk_ggml_type *lk_ggml_type_named(const char *name);
/* What ggml calls a type, also one not handled here; "unknown" for no type at all. For messages. */
const char *lk_ggml_type_name(uint32_t id);

static inline int64_t lk_ggml_bytes(const lk_ggml_type *type, int64_t n) { return n / type->block * type->bytes; }

/* values[n] to out[lk_ggml_bytes(n)]; n is a multiple of the block. NaN, infinities and values that the type's 16-bit numbers cannot hold
 * are LK_ERR_ARGUMENT naming `what` and the element; out is then undefined. */
lk_status lk_ggml_encode(const lk_ggml_type *type, void *out, const float *values, int64_t n, const char *what, lk_error *err);
/* Values [first, first + n) of the blocks at data; any alignment of data and of the range. */
void lk_ggml_decode(const lk_ggml_type *type, const void *data, int64_t first, int64_t n, float *values);

/* The searching encoders of one block of 256 (gguf_kquants.c); values are finite. */
void lk_q4k_encode(uint8_t out[144], const float values[256]);
void lk_q6k_encode(uint8_t out[210], const float values[256]);

#endif
