/* A model's configuration in a GGUF file's metadata, both ways.
 *
 *     LK_TRY(lk_gguf_check_config(&config, where, err));              -- can llama.cpp's architecture compute this?
 *     LK_TRY(lk_gguf_add_config(w, &config, err));
 *     LK_TRY(lk_gguf_read_config(&config, g, err));
 *
 * Keys: ggml docs/gguf.md and the gguf package's constants.py. What llama.cpp has built into an architecture (which layers slide, Gemma's
 * scale of the embedding) is not written anywhere; a configuration that differs from it is refused by what differs. Frequencies that no
 * key describes are tensors: rope_freqs.weight, rope_factors_{long,short}.weight, divisors of theta^(-2i/d). */
#ifndef LK_MODEL_GGUF_CONFIG_H
#define LK_MODEL_GGUF_CONFIG_H

#include "data/gguf.h"
#include "model/config.h"

/* LK_ERR_UNSUPPORTED, naming what cannot be expressed. A sliding window that llama.cpp would not apply is only warned of: texts shorter
 * than the window are the same. */
lk_status lk_gguf_check_config(const lk_config *config, const char *where, lk_error *err);
/* general.architecture and all keys of the architecture. */
lk_status lk_gguf_add_config(lk_gguf_writer *w, const lk_config *config, lk_error *err);

/* The tensors of divisors that this configuration needs: at most two names, values[pairs] each. */
typedef struct lk_gguf_divisors {
    const char *name[2];
    float values[2][LK_MAX_PAIRS];
    int64_t pairs;
    int n;
} lk_gguf_divisors;
void lk_gguf_rope_divisors(lk_gguf_divisors *out, const lk_config *config);

/* LK_ERR_UNSUPPORTED for another architecture than those known, naming them, and for what lk_config cannot say. */
lk_status lk_gguf_read_config(lk_config *config, const lk_gguf *g, lk_error *err);

#endif
