/* Merging an adapter (a PEFT folder or a bundle) into its base (a model folder or a GGUF file): a Hugging Face folder that needs no
 * adapter.
 *
 *     lk_merge_result result;
 *     LK_TRY(lk_model_merge("llama-8b", "run/adapter", "merged", &(lk_merge_options){.into = LK_MERGE_AUTO, .dtype = LK_BF16}, &result,
 * err));
 *
 * W' = W + scale * B A in fp32, its rows rescaled where the adapter is a DoRA, rounded once to dtype. Biases, embedding and head take the
 * adapter's values. Where the base ties its head to its embedding and the adapter changes one of them only, the folder written holds both
 * and ties them no more. What W is matters: an adapter trained on 4-bit weights corrects those, and added to
 * the 16-bit ones gives another model (close, not equal). AUTO takes what the adapter was trained on, and says so in the result. */
#ifndef LK_MODEL_MERGE_H
#define LK_MODEL_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/tensor.h"

typedef enum lk_merge_into {
    LK_MERGE_AUTO,     /* the dequantised NF4 weights when the adapter is stamped nf4 or the base folder is 4-bit, else the original ones */
    LK_MERGE_ORIGINAL, /* the 16-bit (or fp32) weights of the folder; refused for a 4-bit folder */
    LK_MERGE_DEQUANTIZED, /* codebook * absmax of the folder's NF4 weights, or of what quantising it gives */
    LK_MERGE_NF4          /* like DEQUANTIZED, and the sum quantised again: a bitsandbytes 4-bit folder */
} lk_merge_into;

typedef struct lk_merge_options {
    lk_merge_into into;
    lk_dtype dtype;      /* LK_BF16, LK_F16 or LK_F32 of all floating tensors written (those not in 4 bits) */
    int threads;         /* 0: all */
    int64_t shard_bytes; /* of a file of weights, at most; 0: 5 GiB */
} lk_merge_options;

typedef struct lk_merge_result {
    lk_merge_into into;     /* what it was: never AUTO */
    int64_t merged, copied; /* tensors changed, tensors carried over */
    bool untied;            /* the base ties its head to its embedding, what was written does not */
    bool reference_nf4; /* the adapter is about the 4-bit base: stamped so, the folder is 4-bit, or it was asked to be merged into that */
} lk_merge_result;

/* adapter NULL: the base is only written anew, in another type, in other shards, or dequantised.
 * The out folder must not exist or be empty. Tokenizer files are copied; config.json comes last. On failure what was written is removed. */
lk_status lk_model_merge(const char *base, const char *adapter, const char *out, const lk_merge_options *options, lk_merge_result *result,
                         lk_error *err);

#endif
