/* adapter_config.json, parsed: which modules it names, with which rank and scale. Internal to data/peft. */
#ifndef LK_DATA_PEFT_CONFIG_H
#define LK_DATA_PEFT_CONFIG_H

#include "base/json.h"
#include "base/status.h"

/* A regular expression and the number that goes with it. */
typedef struct lk_peft_pattern {
    void *code; /* pcre2_code */
    double value;
} lk_peft_pattern;

typedef struct lk_peft_patterns {
    lk_peft_pattern *items;
    int n;
} lk_peft_patterns;

typedef enum lk_peft_bias { LK_PEFT_BIAS_NONE, LK_PEFT_BIAS_ALL, LK_PEFT_BIAS_LORA_ONLY } lk_peft_bias;

typedef struct lk_peft_config {
    const char *where; /* path, for messages */
    const cJSON *root; /* borrowed */
    int64_t r;
    double alpha;
    bool rslora, dora, lora_bias, tie_tables;
    lk_peft_bias bias;
    lk_peft_patterns ranks, alphas;
    /* Regular expressions; the lists of names are read from the tree. */
    lk_peft_patterns target, exclude, saved, layers;
    const cJSON *target_list, *exclude_list, *parameter_list;
    const cJSON *layer_numbers; /* a number or an array of them; NULL: all */
} lk_peft_config;

/* On failure the config is still to be freed. */
lk_status lk_peft_config_parse(lk_peft_config *config, const cJSON *root, const char *where, lk_error *err);
void lk_peft_config_free(lk_peft_config *config);

/* Refuses factors that PEFT would drop: of modules that target_modules does not name, or that something else leaves out. */
lk_status lk_peft_config_check_target(const lk_peft_config *config, const char *module, lk_error *err);
/* Which parameters of a module target_parameters names, in the order in which PEFT wraps the module: the innermost first. Returns how many.
 */
enum { LK_PEFT_PARAMETERS = 2 };
int lk_peft_config_parameters(const lk_peft_config *config, const char *module, const char *names[LK_PEFT_PARAMETERS]);
/* module: of a parameter, its path. */
lk_status lk_peft_config_scale(const lk_peft_config *config, const char *module, int32_t *rank, double *alpha, double *scale,
                               lk_error *err);
/* *saved: modules_to_save names this module. */
lk_status lk_peft_config_saved(const lk_peft_config *config, const char *module, bool *saved, lk_error *err);
/* The token numbers that trainable_token_indices gives a module, or NULL. */
const cJSON *lk_peft_config_tokens(const lk_peft_config *config, const char *module);

#endif
