/* What a model is, read from its config.json (and generation_config.json): Llama, Mistral, Qwen2 and Qwen3.
 *
 *     lk_config config;
 *     LK_TRY(lk_config_read(&config, "llama-8b", err));
 *
 * The families differ only in these fields; no code asks for a family by name afterwards. An architecture or a setting that changes
 * results and is not known here is refused by name. Sources: transformers' modeling_{llama,mistral,qwen2,qwen3}.py and
 * modeling_rope_utils.py. */
#ifndef LK_MODEL_CONFIG_H
#define LK_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"

typedef enum lk_rope_kind { LK_ROPE_PLAIN, LK_ROPE_LINEAR, LK_ROPE_LLAMA3 } lk_rope_kind;

enum { LK_MAX_EOS = 8 };

typedef struct lk_config {
    char model_type[32]; /* "llama", "mistral", "qwen2", "qwen3" */
    int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab;
    int64_t max_positions;
    int64_t window; /* sliding attention window, 0 = none */
    float rms_eps;
    bool tied; /* the head is the embedding */
    bool qkv_bias, o_bias, mlp_bias;
    bool fused;          /* query, key and value are one layer, gate and up another (Phi-3) */
    int64_t experts;     /* of a mixture, each with an MLP of `intermediate`; 0: one MLP */
    bool expert_numbers; /* they are block_sparse_moe.experts.E.{w1,w2,w3} in files (Mixtral) */
    bool qk_norm;        /* per-head RMSNorm of q and k before RoPE (Qwen3) */
    double rope_theta;
    lk_rope_kind rope;
    double rope_factor, rope_low, rope_high, rope_original; /* llama3 uses all four, linear the first */
    int32_t bos;                                            /* -1: none */
    int32_t eos[LK_MAX_EOS];                                /* config and generation_config together */
    int n_eos;
} lk_config;

lk_status lk_config_read(lk_config *config, const char *folder, lk_error *err);
lk_status lk_config_parse(lk_config *config, const cJSON *json, const char *where, lk_error *err);

/* inv_freq[head_dim/2] with the scaling applied, in fp32 as transformers computes it. */
void lk_config_inv_freq(const lk_config *config, float *inv_freq);

#endif
