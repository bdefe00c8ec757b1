/* A loaded base model: immutable, prepared for one backend, shared by training runs and serving engines.
 *
 *     lk_model *model;
 *     LK_TRY(lk_model_open(&model, be, "llama-8b", &(lk_model_options){.quant = LK_QUANT_NF4}, err));
 *     lk_model_close(model);
 *
 * The base is a GGUF file (F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K; model/gguf_weights.c) or a Hugging Face folder: config.json and
 * safetensors, 16-bit, fp32, or bitsandbytes 4-bit (NF4, with or without double quantisation). A 16-bit folder is quantised while loading
 * when quant is NF4 (blocks of 64, double-quantised, bit for bit bitsandbytes'); embedding, head and norms stay as they are. */
#ifndef LK_MODEL_MODEL_H
#define LK_MODEL_MODEL_H

#include "base/status.h"
#include "kernels/ops.h"
#include "model/sites.h"

typedef enum lk_quant { LK_QUANT_NF4, LK_QUANT_NONE } lk_quant;

typedef struct lk_model_options {
    lk_quant quant; /* of the linear layers. LK_QUANT_NONE on a 4-bit folder uses its 4-bit weights as they are (said in the log). */
    bool nf4_head;  /* the head in NF4 too, a tied one as a copy: a decoding step of an 8B model then reads a sixth less */
    void (*progress)(void *context, int64_t done, int64_t total); /* matrices prepared; NULL: silent */
    void *context;
} lk_model_options;

typedef struct lk_layer {
    float *norm[LK_N_NORMS]; /* F32 (lk_norm_name), or NULL; the 1 of norm_plus_one is in them */
} lk_layer;

/* The frozen weights of one site. */
typedef struct lk_weight {
    lk_matrix *w;
    float *bias; /* [N] F32, or NULL */
} lk_weight;

typedef struct lk_model {
    lk_backend *be; /* borrowed; must outlive the model */
    lk_config config;
    lk_quant quant; /* as loaded: NF4 also for a 4-bit folder */
    char path[4096];
    char name[256]; /* last part of the path */
    lk_matrix *embedding;
    lk_matrix *head;   /* == embedding when tied */
    float *final_norm; /* divided by logit_divisor: so are the logits */
    lk_layer *layers;
    lk_weight *weights; /* by site (model/sites.h) */
    /* Two SHA-256: `identity` over config, embedding, norms and biases: the same for every quantisation of one base. `digest` over all
     * effective weights as they are computed with: changes with the quantisation. Adapters are stamped with both. */
    char identity[65], digest[65];
} lk_model;

lk_status lk_model_open(lk_model **model, lk_backend *be, const char *base, const lk_model_options *options, lk_error *err);
void lk_model_close(lk_model *model); /* NULL is fine */

/* Bytes the loaded model takes, for the plan: what lk_model_open will allocate on this backend. dense: source type of unquantised
 * tensors (as lk_model_probe finds it). */
typedef struct lk_model_facts {
    lk_config config;
    bool prequantized; /* bitsandbytes 4-bit on disk */
    lk_dtype dense;    /* type of the embedding on disk */
    lk_dtype linear;   /* type of the linear layers on disk, LK_NF4 when prequantized */
    bool nested;       /* prequantized with double-quantised scales, judged by the first layer */
} lk_model_facts;

/* Reads the headers only. */
lk_status lk_model_probe(lk_model_facts *facts, const char *folder, lk_error *err);
size_t lk_model_bytes(const lk_backend *be, const lk_model_facts *facts, lk_quant quant);

/* Writes a bitsandbytes-compatible 4-bit folder: weights, config with quantization_config, tokenizer files copied (of a GGUF file: made).
 */
lk_status lk_model_quantize(const char *folder, const char *out, int threads, lk_error *err);

#endif
