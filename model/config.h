/* What a model is, read from its config.json (and generation_config.json).
 *
 *     lk_config config;
 *     LK_TRY(lk_config_read(&config, "llama-8b", err));
 *
 * Families differ only in these fields: model/families.c says what each one means where its file is silent, and no code asks for a family
 * by name afterwards. An architecture or a setting that changes results and is not known here is refused by name. A reader of another
 * format fills the struct itself: lk_config_family, then its own numbers, then lk_config_complete. In every field 0 (or false) is the plain
 * thing, a Llama's. Sources: transformers' modeling_*.py of each family and modeling_rope_utils.py. */
#ifndef LK_MODEL_CONFIG_H
#define LK_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"
#include "kernels/ops.h"
#include "model/rotary.h"

enum { LK_MAX_EOS = 8, LK_MAX_LAYERS = 1024, LK_MAX_EXPERTS = 512 };

/* Where a block normalises: what goes into its attention and its MLP, what comes out of them before it is added, or both. */
typedef enum lk_norms { LK_NORMS_BEFORE, LK_NORMS_AFTER, LK_NORMS_BOTH } lk_norms;

/* RMSNorm of query and key before RoPE: none, of each head, or of the whole projection. */
typedef enum lk_qk_norm { LK_QK_PLAIN, LK_QK_HEADS, LK_QK_WHOLE } lk_qk_norm;

/* What sets a layer apart from its neighbours. */
enum { LK_LAYER_SLIDES = 1, LK_LAYER_NO_ROPE = 2, LK_LAYER_LOCAL_ROPE = 4, LK_LAYER_DENSE = 8 /* an MLP in a mixture of experts */ };

typedef struct lk_config {
    char model_type[32]; /* "llama", "gemma2", ... */
    char part_of[32];    /* "gemma3": the text part of a model of images and text, which has other names for it (model/names.h); else "" */
    int64_t hidden, layers, heads, kv_heads, head_dim, vocab;
    int64_t intermediate;       /* of the MLP, or of each expert */
    int64_t dense_intermediate; /* of the MLP in layers with LK_LAYER_DENSE */
    int64_t max_positions;
    float rms_eps;
    bool tied; /* the head is the embedding */

    lk_norms norms;
    bool norm_plus_one; /* norms multiply by 1 + weight; the loader adds the 1 */
    lk_qk_norm qk_norm;
    bool qkv_bias, o_bias, mlp_bias;
    bool fused;               /* query, key and value are one linear layer, gate and up another */
    lk_activation activation; /* of the gate */

    int64_t window;                  /* of the layers that slide, 0: none does */
    uint8_t layer[LK_MAX_LAYERS];    /* LK_LAYER_* of each */
    lk_rotary rope, local_rope;      /* the second is for layers with LK_LAYER_LOCAL_ROPE */
    double embedding_scale;          /* embeddings are multiplied by it */
    double residual_scale;           /* what attention and MLP add is multiplied by it */
    double attention_scale;          /* of the scores; 0: 1/sqrt(head_dim) */
    double logit_divisor;            /* logits are divided by it */
    double attention_cap, logit_cap; /* scores and logits x become cap * tanh(x / cap) */

    int64_t experts;             /* 0: one MLP; else a router chooses among so many */
    int64_t experts_used;        /* for each token */
    bool experts_as_is;          /* the chosen ones' probabilities are not brought to a sum of 1 */
    const char *router_training; /* a field that changes training (a loss for the router, noise), which is not computed; NULL: none */
    bool expert_numbers;         /* in files they are block_sparse_moe.experts.E.{w1,w2,w3} (Mixtral) */

    int32_t bos;             /* -1: none */
    int32_t eos[LK_MAX_EOS]; /* config and generation_config together */
    int n_eos;
} lk_config;

/* Of a model folder, or of a GGUF file (model/gguf_config.h). */
lk_status lk_config_read(lk_config *config, const char *base, lk_error *err);
lk_status lk_config_parse(lk_config *config, const cJSON *json, const char *where, lk_error *err);

/* The config.json of the text part of a model of images and text, by itself; the caller's. NULL: json is none. */
cJSON *lk_config_text(const cJSON *json);

/* What this model_type means where nothing else is said, everything else zero. Refuses one that is not known, with the list of those that
 * are; `where` names the file. */
lk_status lk_config_family(lk_config *config, const char *model_type, const char *where, lk_error *err);
/* With the sizes filled in: what follows from them (which layers slide, Gemma's embedding scale), and whether they fit together. */
lk_status lk_config_complete(lk_config *config, const char *where, lk_error *err);

/* The longest sequence that the model's RoPE is made for: max_positions, or as many times more as a dynamic one stretches. */
int64_t lk_config_longest(const lk_config *config);

/* The attention window of a layer, 0: none; the rotary embedding of a layer, NULL: none. */
int64_t lk_layer_window(const lk_config *config, int64_t layer);
const lk_rotary *lk_layer_rotary(const lk_config *config, int64_t layer);

#endif
