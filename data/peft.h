/* PEFT adapter folders: adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read and write them.
 *
 *     lk_peft *peft;
 *     LK_TRY(lk_peft_open(&peft, "acme-adapter", err));
 *     for (i < lk_peft_count(peft)) { const lk_peft_module *m = lk_peft_at(peft, i); ... }
 *     lk_peft_close(peft);
 *
 * Honoured: peft_type LORA, r, lora_alpha, lora_dropout, target_modules, rank_pattern, alpha_pattern, use_rslora, bias "none",
 * fan_in_fan_out false. Anything that would change the result and is not honoured (use_dora, bias, lora_bias, modules_to_save,
 * trainable_token_indices, target_parameters, ...) is refused by its field name; null and default fields load. */
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
    double alpha, scale;      /* scale = alpha/r, or alpha/sqrt(r) with use_rslora; after the patterns */
    const lk_st_tensor *a, *b; /* A[R,in], B[out,R] */
} lk_peft_module;

lk_status lk_peft_open(lk_peft **peft, const char *folder, lk_error *err);
void lk_peft_close(lk_peft *peft);
int64_t lk_peft_count(const lk_peft *peft);
const lk_peft_module *lk_peft_at(const lk_peft *peft, int64_t index); /* sorted by name */
const char *lk_peft_base(const lk_peft *peft);                        /* base_model_name_or_path, or "" */
/* SHA-256 of what the adapter computes: every module's name, rank, scale and factors (not of the files' bytes). */
const char *lk_peft_digest(const lk_peft *peft);
/* Metadata key of adapter_model.safetensors ("lorikeet.base_digest", ...); NULL when missing. */
const char *lk_peft_metadata(const lk_peft *peft, const char *key);

/* Writing. Modules with the same leaf name ("q_proj") may differ in rank or alpha: patterns are written then. */
typedef struct lk_peft_write_module {
    const char *name;
    int32_t rank;
    double alpha;
    int64_t in, out;
    const float *a, *b; /* host memory */
} lk_peft_write_module;

typedef struct lk_peft_write_options {
    const char *base;         /* base_model_name_or_path */
    const char *base_identity; /* stamped into the metadata as lorikeet.base_identity; NULL: not stamped */
    const char *base_digest;  /* likewise lorikeet.base_digest */
    const char *quantization; /* "nf4" or "none", stamped likewise */
    bool use_rslora;
    double dropout;
} lk_peft_write_options;

/* Creates the folder when missing and replaces both files atomically, weights before config. Tensors are F32. */
lk_status lk_peft_write(const char *folder, const lk_peft_write_module *modules, int64_t n_modules, const lk_peft_write_options *options, lk_error *err);

#endif
