/* Whether something fits a base: what `lorikeet inspect --base` answers beside lk_adapter_fits. Not fitting is LK_ERR_MISMATCH (or what
 * made the base unreadable), and the message says why.
 *
 *     lk_likeness likeness;
 *     lk_status status = lk_model_fits("model-q4_0.gguf", "llama-8b", &likeness, err);      -- another copy of the same model?
 *     status = lk_gguf_lora_fits(g, "llama-8b", err);                                       -- llama.cpp's adapter, by its tensors
 *     status = lk_tensors_fit(st, "llama-8b", err);                                         -- loose tensors: names and shapes
 *
 * Two models fit when adapters of one mean the same on the other, but for rounding: layers of the same kinds and sizes, and weights that
 * differ by no more than 4-bit rounding does (a tenth of their size; a quarter is allowed, unrelated weights differ by 1.4 times). Of each
 * tensor the first 65,536 values are compared; matrices in bitsandbytes' 4 bits are not. Identities may differ all the same, as a GGUF
 * file's from its folder's: then adapters stamped for one are refused on the other, and same_identity says so. */
#ifndef LK_MODEL_FITS_H
#define LK_MODEL_FITS_H

#include <stdbool.h>

#include "data/gguf.h"
#include "data/safetensors.h"

typedef struct lk_likeness {
    bool same_identity;
    double difference; /* the largest of any tensor: root mean square, relative to the base's */
    char tensor[200];  /* which; "" when all are equal */
} lk_likeness;

/* Both are model folders or GGUF files. *likeness is filled as far as it was found out. */
lk_status lk_model_fits(const char *path, const char *base, lk_likeness *likeness, lk_error *err);
lk_status lk_gguf_lora_fits(const lk_gguf *g, const char *base, lk_error *err);
lk_status lk_tensors_fit(const lk_safetensors *st, const char *base, lk_error *err);

#endif
