/* bitsandbytes 4-bit tensors in safetensors: X.weight with its quantisation state beside it.
 *
 * Keys (bitsandbytes functional.py, QuantState): X.weight, X.weight.absmax, .quant_map, .nested_absmax, .nested_quant_map and
 * .quant_state.bitsandbytes__nf4, a JSON text with quant_type, blocksize, shape, nested_blocksize, nested_offset. */
#ifndef LK_MODEL_BNB_H
#define LK_MODEL_BNB_H

#include <stdbool.h>

#include "base/status.h"
#include "data/safetensors.h"

/* Is `weight` ("....q_proj.weight") stored in 4 bits? */
bool lk_bnb_is_quantized(const lk_safetensors *st, const char *weight);
/* Does the folder hold any 4-bit tensor? */
bool lk_bnb_any(const lk_safetensors *st);
/* Is this tensor name part of a quantisation state rather than a weight? */
bool lk_bnb_is_state(const char *name);

/* One 4-bit tensor: the caller frees absmax and absmax2, the rest is borrowed from st until it is closed. */
typedef struct lk_bnb_tensor {
    const uint8_t *codes;
    float *absmax;          /* [lk_nf4_blocks(n*k)], un-nested */
    const uint8_t *absmax8; /* the nested form of the same values; NULL where there is none, or the file has a map of its own */
    float *absmax2;
    float offset;
} lk_bnb_tensor;

/* Refuses other types than nf4, other block sizes than 64/256, other shapes than [n,k]. */
lk_status lk_bnb_read(lk_bnb_tensor *out, const lk_safetensors *st, const char *weight, int64_t n, int64_t k, lk_error *err);
/* Will lk_bnb_read give this tensor a nested form? */
bool lk_bnb_is_nested(const lk_safetensors *st, const char *weight);

/* Writing, in two passes as the writer wants it: first declare the six tensors, then write them in the same order. dtype_name is the
 * original type as torch names it ("bfloat16"). */
typedef struct lk_bnb_matrix {
    const char *weight;
    const char *dtype_name;
    int64_t n, k;
    const uint8_t *codes, *absmax8;
    const float *absmax2;
    float offset;
} lk_bnb_matrix;
/* shapes only are needed to declare, but the state's text depends on the offset; its length is padded to be known beforehand. */
lk_status lk_bnb_declare(lk_st_writer *w, const char *weight, int64_t n, int64_t k, lk_error *err);
lk_status lk_bnb_write(lk_st_writer *w, const lk_bnb_matrix *m, lk_error *err);

#endif
