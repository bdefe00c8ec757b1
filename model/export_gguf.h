/* Writing a model, or an adapter, as a GGUF file that llama.cpp runs.
 *
 *     lk_gguf_export_result result;
 *     LK_TRY(lk_export_gguf("merged", "model-q8_0.gguf", &(lk_gguf_export_options){.type = "q8_0"}, &result, err));
 *     LK_TRY(lk_export_gguf_lora("llama-8b", "run/adapter", "adapter.gguf", &result, err));
 *
 * The base is a Hugging Face folder (16-bit, fp32 or bitsandbytes 4-bit, which is dequantised) or another GGUF file. Tensors are read,
 * converted and written one after the other, in pieces of rows: memory is that of one piece (of one matrix for a 4-bit base). The file
 * appears whole or not at all.
 *
 * Types: "f16", "bf16", "f32", "q8_0", "q4_0" and "q4_k_m". Norms, biases and routers are F32 in all of them. The quantised ones keep more
 * bits where an error costs more, as llama.cpp's own tool does (llama-quant.cpp): the head (the embedding when it is the head) is Q6_K in
 * q4_0 and q4_k_m; in q4_k_m value and down projections of the first and last eighth and of every third layer between are Q6_K, too; with
 * eight experts key and value projections are Q8_0 and, in q4_k_m, output projections Q6_K. Rows that are not whole blocks of 256 become
 * Q8_0, those not of 32 F16; the result says so.
 *
 * An adapter's file holds what PEFT computes as llama.cpp computes it: scale alpha/r for all, so rsLoRA and differing scales are folded:
 * alpha is the first module's scale times its rank, and B carries the ratio where a module's scale differs. DoRA, biases, adapted
 * embeddings and replaced modules have no place in the format: refused by name, with the advice to merge. */
#ifndef LK_MODEL_EXPORT_GGUF_H
#define LK_MODEL_EXPORT_GGUF_H

#include <stdint.h>

#include "base/status.h"

typedef struct lk_gguf_export_options {
    const char *type;                                             /* as above; NULL: "f16" */
    const char *name;                                             /* general.name; NULL: the last part of base */
    const char *pre;                                              /* lk_gguf_tokenizer_options.pre */
    int threads;                                                  /* 0: all */
    void (*progress)(void *context, int64_t done, int64_t total); /* tensors; NULL: silent */
    void *context;
} lk_gguf_export_options;

typedef struct lk_gguf_export_result {
    int64_t tensors, bytes; /* in the file */
    int64_t fallbacks;      /* tensors that are not of the type asked for because their rows are no whole blocks */
} lk_gguf_export_result;

lk_status lk_export_gguf(const char *base, const char *out, const lk_gguf_export_options *options, lk_gguf_export_result *result,
                         lk_error *err);
lk_status lk_export_gguf_lora(const char *base, const char *adapter, const char *out, lk_gguf_export_result *result, lk_error *err);

#endif
