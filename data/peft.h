/* PEFT adapter folders: adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read and write them.
 *
 *     lk_peft *peft;
 *     LK_TRY(lk_peft_open(&peft, "acme-adapter", err));
 *     for (i < lk_peft_count(peft)) { const lk_peft_module *m = lk_peft_at(peft, i); ... }
 *     lk_peft_close(peft);
 *
 * Honoured: peft_type LORA, r, lora_alpha, lora_dropout, target_modules, rank_pattern, alpha_pattern (huggingface/peft
 * utils/other.py get_pattern_key: the first key, in the file's order, for which (.*\.)?(KEY)$ matches the module's path), use_rslora,
 * bias "none", fan_in_fan_out false. Anything that would change the result and is not honoured (use_dora, bias, lora_bias,
 * modules_to_save, trainable_token_indices, target_parameters, initialisations that change the base such as pissa, ...) is refused
 * by its field name (LK_ERR_UNSUPPORTED); null and default fields load. Refused too, naming the tensor: unknown tensors, A without B,
 * factors for modules that target_modules does not name, NaN and infinities (LK_ERR_FORMAT), shapes that contradict the config's rank
 * (LK_ERR_MISMATCH). Whether the modules and sizes fit a model is for the model to check. */
#ifndef LK_DATA_PEFT_H
#define LK_DATA_PEFT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/safetensors.h"

typedef struct lk_peft lk_peft;

/* One adapted linear layer. */
typedef struct lk_peft_module {
    const char *name; /* "model.layers.0.self_attn.q_proj": the module path without "base_model.model." */
    int32_t rank;
    double alpha, scale;       /* scale = alpha/r, or alpha/sqrt(r) with use_rslora; after the patterns */
    const lk_st_tensor *a, *b; /* A[R,in], B[out,R] */
} lk_peft_module;

/* Reads every factor once (finite values, digest). Thread-safe afterwards; tensors are borrowed until close. */
lk_status lk_peft_open(lk_peft **peft, const char *folder, lk_error *err);
void lk_peft_close(lk_peft *peft);
int64_t lk_peft_count(const lk_peft *peft);
const lk_peft_module *lk_peft_at(const lk_peft *peft, int64_t index); /* sorted by name */
const char *lk_peft_base(const lk_peft *peft);                        /* base_model_name_or_path, or "" */
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
    const float *a, *b; /* host memory */
} lk_peft_write_module;

typedef struct lk_peft_write_options {
    const char *base;          /* base_model_name_or_path */
    const char *base_identity; /* stamped into the metadata as lorikeet.base_identity; NULL: not stamped */
    const char *base_digest;   /* likewise lorikeet.base_digest */
    const char *quantization;  /* "nf4" or "none", stamped likewise */
    bool use_rslora;
    double dropout;
} lk_peft_write_options;

/* Creates the folder when missing and replaces both files atomically, weights before config. Tensors are F32. NaN or an infinity in a
 * factor is LK_ERR_ARGUMENT and leaves the old files. */
lk_status lk_peft_write(const char *folder, const lk_peft_write_module *modules, int64_t n_modules, const lk_peft_write_options *options,
                        lk_error *err);

#endif
