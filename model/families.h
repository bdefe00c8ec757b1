/* The families of models: what a model_type means where its config.json is silent, and which of the optional keys it reads. Internal to
 * model/; everyone else reads lk_config. */
#ifndef LK_MODEL_FAMILIES_H
#define LK_MODEL_FAMILIES_H

#include "model/config.h"

/* Optional keys that change results. Each family lists its own: in another family's file they would be ignored by transformers, too. */
enum {
    LK_READS_ATTENTION_BIAS = 1, /* attention_bias */
    LK_READS_BIAS = 3,           /* and mlp_bias */
    LK_READS_LOGIT_CAP = 4,      /* final_logit_softcapping */
    LK_READS_CAPS = 12,          /* and attn_logit_softcapping */
    LK_READS_SCALAR = 16,        /* query_pre_attn_scalar */
    LK_READS_MULTIPLIERS = 32,   /* embedding_, residual_, attention_multiplier, logits_scaling */
    LK_READS_NO_ROPE = 64,       /* no_rope_layers, no_rope_layer_interval */
    LK_READS_EXPERTS = 128,      /* lk_family_experts */
};

/* Which layers slide, given that sliding_window is a number. A list of layer_types in the file goes before the rule. */
typedef enum lk_window_rule {
    LK_WINDOW_NONE,
    LK_WINDOW_ALL,
    LK_WINDOW_ASKED,   /* all, with use_sliding_window */
    LK_WINDOW_UPPER,   /* those from max_window_layers on, with use_sliding_window */
    LK_WINDOW_NO_ROPE, /* those without RoPE, with use_sliding_window */
    LK_WINDOW_PATTERN, /* all but each `pattern`-th */
} lk_window_rule;

/* Gemma's published files leave these out when they are the default. vocab 0: it must be there. */
typedef struct lk_family_shape {
    int64_t heads, kv_heads, head_dim, positions, vocab;
} lk_family_shape;

typedef struct lk_family_experts {
    const char *count_key, *width_key; /* width_key NULL: intermediate_size */
    int64_t count, used;
    bool numbers; /* lk_config.expert_numbers; their probabilities are always brought to a sum of 1 */
} lk_family_experts;

typedef struct lk_family {
    const char *model_type;
    int reads;
    const lk_family_shape *defaults;
    const lk_family_experts *experts;
    double eps;                /* 0: 1e-6 */
    double theta, local_theta; /* 0: 1e4, and no second RoPE for the layers that slide */
    bool tied, qkv_bias, fused, norm_plus_one;
    bool embedding_root; /* embeddings times sqrt(hidden) */
    lk_norms norms;
    lk_qk_norm qk_norm;
    lk_activation activation;
    double attention_cap, logit_cap;
    lk_window_rule window;
    int64_t pattern, sliding; /* sliding: sliding_window where the file says nothing */
    bool only_long;           /* lk_rotary_context.only_long */
    int64_t original;         /* original_max_position_embeddings where the file gives none; 0: max_position_embeddings */
} lk_family;

/* A model of images and text whose text part, its text_config, is one of the families. */
typedef struct lk_family_whole {
    const char *model_type, *text, *architecture; /* architecture: of the text part alone */
} lk_family_whole;

/* NULL: not one of them. */
const lk_family_whole *lk_family_whole_of(const char *model_type);

lk_status lk_family_find(const lk_family **family, const char *model_type, const char *where, lk_error *err);

#endif
