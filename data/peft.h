/* PEFT adapters: adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read and write them; in a folder or a bundle.
 *
 *     lk_peft *peft;
 *     LK_TRY(lk_peft_open(&peft, "acme-adapter", NULL, err));         -- a folder, or a bundle (data/bundle.h)
 *     for (i < lk_peft_count(peft)) { const lk_peft_module *m = lk_peft_at(peft, i); ... }
 *     for (i < lk_peft_n_values(peft)) { const lk_peft_value *v = lk_peft_value_at(peft, i); ... }
 *     lk_peft_close(peft);
 *
 * Honoured (huggingface/peft tuners/lora, utils/other.py): r, lora_alpha, rank_pattern, alpha_pattern, use_rslora, target_modules (list,
 * regular expression, "all-linear"), target_parameters, exclude_modules, layers_to_transform, layers_pattern, use_dora, lora_bias, bias,
 * modules_to_save, adapted embeddings, trainable_token_indices, ensure_weight_tying. fan_in_fan_out is for layers stored transposed, which
 * no supported model has: PEFT turns it off there, and so it changes nothing. Fields that only say how training began are let through,
 * unless that changed the base (pissa, olora, corda, loftq: refused, with what to do). Anything else that is set is refused by its name
 * (LK_ERR_UNSUPPORTED); null and default fields load.
 *
 * Refused too, naming the tensor: unknown tensors, A without B, tensors that the config does not account for (PEFT would drop them), NaN
 * and infinities (LK_ERR_FORMAT), shapes that contradict the config's rank (LK_ERR_MISMATCH). Whether the modules and sizes fit a model,
 * and what of this it computes, is for the model to say. */
#ifndef LK_DATA_PEFT_H
#define LK_DATA_PEFT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/safetensors.h"

typedef struct lk_peft lk_peft;

/* One adapted layer. */
typedef struct lk_peft_module {
    const char *name; /* "model.layers.0.self_attn.q_proj": the module path without "base_model.model." */
    int32_t rank;
    double alpha, scale;           /* scale = alpha/r, or alpha/sqrt(r) with use_rslora; after the patterns */
    const lk_st_tensor *a, *b;     /* A[R,in], B[out,R] */
    bool embedding;                /* of an embedding: A[R,vocab], B[hidden,R] */
    const lk_st_tensor *magnitude; /* DoRA: m[out]; NULL without */
    const lk_st_tensor *bias;      /* lora_bias: [out], to be scaled like the product; NULL without */
    /* Of target_parameters: factors on E matrices that transformers stacks in one parameter, "gate_up_proj" or "down_proj", with which the
     * name ends. Row e*R + j of A[R*E,in] and column j*E + e of B[out,R*E] are expert e's. 0: of a linear layer. */
    int64_t experts;
} lk_peft_module;

/* A value that the adapter puts in the place of one of the base's. */
typedef enum lk_peft_kind {
    LK_PEFT_WEIGHT, /* modules_to_save */
    LK_PEFT_BIAS,   /* bias: all or lora_only; or of a module in modules_to_save */
    LK_PEFT_TOKENS, /* trainable_token_indices: rows ids[] of an embedding */
    LK_PEFT_BASE    /* the base's own weight under adapted embeddings, which PEFT saves beside them */
} lk_peft_kind;

typedef struct lk_peft_value {
    lk_peft_kind kind;
    const char *name; /* module path: "lm_head", "model.embed_tokens", "model.layers.0.self_attn.q_proj" */
    const lk_st_tensor *tensor;
    const int32_t *ids; /* LK_PEFT_TOKENS: tensor->shape[0] token numbers */
} lk_peft_value;

struct lk_bundle_keys;

/* path: a folder or a bundle. keys: only a bundle that one of them signed is opened; NULL: anything. Reads every tensor once (finite
 * values, digest). Thread-safe afterwards; tensors are borrowed until close. */
lk_status lk_peft_open(lk_peft **peft, const char *path, const struct lk_bundle_keys *keys, lk_error *err);
/* From memory that outlives the peft. name: for messages. */
lk_status lk_peft_open_memory(lk_peft **peft, const char *name, const char *config, size_t config_bytes, const void *weights,
                              size_t weights_bytes, lk_error *err);
void lk_peft_close(lk_peft *peft);
int64_t lk_peft_count(const lk_peft *peft);
const lk_peft_module *lk_peft_at(const lk_peft *peft, int64_t index); /* sorted by name */
int64_t lk_peft_n_values(const lk_peft *peft);
const lk_peft_value *lk_peft_value_at(const lk_peft *peft, int64_t index); /* sorted by name */
bool lk_peft_use_rslora(const lk_peft *peft);
bool lk_peft_ties_tables(const lk_peft *peft); /* ensure_weight_tying: a tied head follows the embedding's new value */
const char *lk_peft_base(const lk_peft *peft); /* base_model_name_or_path, or "" */
/* SHA-256 of what the adapter computes: every module's name, rank, scale and factors as fp32 (not of the files' bytes). */
const char *lk_peft_digest(const lk_peft *peft);
/* Metadata key of adapter_model.safetensors ("lorikeet.base_digest", ...); NULL when missing. */
const char *lk_peft_metadata(const lk_peft *peft, const char *key);

/* Writing.
 *
 *     lk_peft_write_module m = {.name = "model.layers.0.self_attn.q_proj", .rank = 16, .alpha = 32, .in = C, .out = C, .a = a, .b = b};
 *     LK_TRY(lk_peft_write("run/adapter", &m, 1, &(lk_peft_write_options){.base = "llama-8b", .quantization = "nf4"}, err));
 *
 * Modules with the same leaf name ("q_proj") may differ in rank or alpha: patterns are written then. */
typedef struct lk_peft_write_module {
    const char *name;
    int32_t rank;
    double alpha;
    int64_t in, out;
    const float *a, *b;     /* host memory */
    const float *magnitude; /* DoRA's m[out]; of all modules or of none */
    int64_t experts;        /* as lk_peft_module's, A and B so much larger; 0: a linear layer */
    const float *bias;      /* lora_bias [out]; NULL: none */
    bool embedding;         /* of an embedding: `in` tokens, `out` wide; a is its A transposed, [in,R] */
} lk_peft_write_module;

/* A value in the place of one of the base's, or trained tokens' rows: everything but factors. */
typedef struct lk_peft_write_value {
    const char *name; /* "lm_head.weight", "model.layers.0.self_attn.q_proj.base_layer.bias" */
    int n_dims;
    int64_t shape[2];
    const float *values;
} lk_peft_write_value;

typedef struct lk_peft_write_options {
    const char *base;          /* base_model_name_or_path */
    const char *base_identity; /* stamped into the metadata as lorikeet.base_identity; NULL: not stamped */
    const char *base_digest;   /* likewise lorikeet.base_digest */
    const char *quantization;  /* "nf4" or "none", stamped likewise */
    bool whole_paths;          /* target_modules names whole paths: the model has others of the same leaf that are not adapted */
    bool use_rslora;
    double dropout;
    const lk_peft_write_value *values;
    int64_t n_values;
    const char *bias;                   /* "all" or "lora_only" where biases are among them; NULL: "none" */
    const char *const *modules_to_save; /* whose weights are among them */
    int n_modules_to_save;
    bool tie_tables;       /* ensure_weight_tying */
    const int32_t *tokens; /* of embed_tokens, whose rows are among them, in this order */
    int32_t n_tokens;
} lk_peft_write_options;

/* Creates the folder when missing and replaces both files atomically, weights before config. Tensors are F32. NaN or an infinity in a
 * factor is LK_ERR_ARGUMENT and leaves the old files. */
lk_status lk_peft_write(const char *folder, const lk_peft_write_module *modules, int64_t n_modules, const lk_peft_write_options *options,
                        lk_error *err);

#endif
