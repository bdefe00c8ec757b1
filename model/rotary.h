/* Rotary embeddings: the frequencies that a configuration means.
 *
 *     float inv_freq[LK_MAX_PAIRS];
 *     int64_t pairs = lk_rotary_pairs(&config.rope, config.head_dim);
 *     lk_rotary_frequencies(&config.rope, config.head_dim, length, inv_freq);   -- cos and sin are multiplied by lk_rotary_factor
 *
 * All of transformers' kinds (modeling_rope_utils.py) in both spellings: rope_theta beside rope_scaling, and rope_parameters. Two of them
 * depend on the length of the sequence (lk_rotary_by_length): dynamic, whose base grows with it, and longrope, which has a set of
 * frequencies for sequences up to the length of pretraining and one for those beyond. `length` is fixed for a sequence before its first
 * token is computed: in training the length of the document, in serving the longest that a sequence may become (lk_infer_options). A key
 * is therefore rotated once and for all, and no result depends on company or on how a prompt was cut. */
#ifndef LK_MODEL_ROTARY_H
#define LK_MODEL_ROTARY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"

enum { LK_MAX_PAIRS = 512 };

typedef enum lk_rope_kind { LK_ROPE_PLAIN, LK_ROPE_LINEAR, LK_ROPE_LLAMA3, LK_ROPE_DYNAMIC, LK_ROPE_YARN, LK_ROPE_LONG } lk_rope_kind;

typedef struct lk_rotary {
    lk_rope_kind kind;
    double theta;
    double partial;                                              /* the part of each head that turns, 0: all */
    double factor;                                               /* linear, dynamic, yarn, llama3 */
    double low, high;                                            /* llama3: low_freq_factor, high_freq_factor; yarn: beta_slow, beta_fast */
    bool exact;                                                  /* yarn: the bounds between its bands are not rounded to whole pairs */
    double original;                                             /* positions of pretraining: dynamic, yarn, longrope, llama3 */
    double attention_factor;                                     /* yarn, longrope: cos and sin are multiplied by it, 0: by 1 */
    float short_factor[LK_MAX_PAIRS], long_factor[LK_MAX_PAIRS]; /* longrope: divisors of each frequency */
} lk_rotary;

/* What the parser must know of the rest of the configuration. */
typedef struct lk_rotary_context {
    double theta, partial; /* where the object gives none */
    double positions;      /* max_position_embeddings */
    double original;       /* original_max_position_embeddings beside the object, which wins over the one in it; 0: none */
    double fallback;       /* where neither is there */
    int64_t head_dim;
    bool only_long; /* every scaled kind is longrope (Phi-3 files say "su" or "yarn" and mean that) */
} lk_rotary_context;

/* From an object of the newer form, or an older rope_scaling; NULL or null: plain. */
lk_status lk_rotary_parse(lk_rotary *rope, const cJSON *json, const lk_rotary_context *context, const char *where, lk_error *err);

int64_t lk_rotary_pairs(const lk_rotary *rope, int64_t head_dim);
void lk_rotary_frequencies(const lk_rotary *rope, int64_t head_dim, int64_t length, float *inv_freq);
float lk_rotary_factor(const lk_rotary *rope);
/* Do sequences of these two lengths have different frequencies? */
bool lk_rotary_by_length(const lk_rotary *rope, int64_t a, int64_t b);

#endif
