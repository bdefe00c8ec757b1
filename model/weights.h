/* Pieces of loading shared by lk_model_open, lk_model_quantize and merging: one linear layer from a folder, quantised or not.
 * Internal to model/. */
#ifndef LK_MODEL_WEIGHTS_H
#define LK_MODEL_WEIGHTS_H

#include "base/pool.h"
#include "data/safetensors.h"
#include "model/model.h"

/* The tensors of a base under the names of a Hugging Face folder: of the folder, or of a GGUF file (gguf_weights.c), where a tensor that is
 * quantised there is F32 and computed when read. */
lk_status lk_weights_open(lk_safetensors **st, const char *base, const lk_config *config, lk_error *err);
lk_status lk_gguf_open_weights(lk_safetensors **st, const char *file, const lk_config *config, lk_error *err);
/* The tensor's bytes in its type: *data points to what is stored, or to *own, computed on the pool's threads; free(*own). */
lk_status lk_weights_bytes(const lk_st_tensor *t, lk_pool *pool, const void **data, void **own, lk_error *err);

/* The NF4 form of a matrix in host memory. */
typedef struct lk_nf4_host {
    int64_t n, k;
    const uint8_t *codes; /* points into own or borrowed */
    uint8_t *own_codes;
    float *absmax;          /* un-nested */
    const uint8_t *absmax8; /* nested form, own or borrowed; NULL when the checkpoint has none */
    uint8_t *own_absmax8;
    float *absmax2;
    float offset;
} lk_nf4_host;

/* Reads `weight` as NF4: as stored when the checkpoint is 4-bit, else quantised here (double-quantised, on the pool's threads). */
lk_status lk_nf4_host_read(lk_nf4_host *m, const lk_safetensors *st, const char *weight, int64_t n, int64_t k, lk_pool *pool,
                           lk_error *err);
lk_status lk_nf4_host_quantize(lk_nf4_host *m, const lk_st_tensor *t, int64_t n, int64_t k, lk_pool *pool, lk_error *err);
void lk_nf4_host_free(lk_nf4_host *m);

/* SHA-256 of large memory on the pool's threads: the digest of the digests of its 1 MiB pieces, so the same for any thread count. */
void lk_tree_digest(lk_pool *pool, const void *bytes, int64_t size, char hex[65]);

/* The site whose weight this tensor is, or -1: among those that quantising turns to 4 bits, and among the routers, which it leaves. */
int32_t lk_weights_site(const lk_config *config, const char *tensor);
int32_t lk_weights_router(const lk_config *config, const char *tensor);

/* The identity of a base: SHA-256 over the configuration and every tensor that quantising leaves alone (embedding, head, norms, biases). */
lk_status lk_weights_identity(const lk_safetensors *st, const lk_config *config, lk_pool *pool, char hex[65], lk_error *err);

/* Refuses tensors that this configuration does not use: a bias or norm nobody reads would silently change the model. */
lk_status lk_weights_check_names(const lk_safetensors *st, const lk_config *config, lk_error *err);

#endif
