/* Sites: the linear layers of a model's blocks, numbered from 0. Weights, adapters and the table of a batch (lk_batch.lora) are all indexed
 * by site.
 *
 *     for (int32_t s = 0; s < lk_sites(&config); s++) {
 *         lk_site site = lk_site_at(&config, s);                       -- layer, module, expert, shape
 *         lk_site_path(path, sizeof path, &config, s);                 -- "model.layers.3.self_attn.q_proj"
 *     }
 *     int32_t s = lk_site_find(&config, "model.layers.3.mlp.up_proj"); -- -1: no linear layer of this model
 *
 * Which sites a layer has follows from the configuration: query, key and value are three or one (`fused`), gate and up are two or one. A
 * layer that is a mixture has one set of gate, up and down for each expert, and the router, which is adapted like any other but never in 4
 * bits. A fused layer is one matrix, and so one site, as it is one layer to PEFT. */
#ifndef LK_MODEL_SITES_H
#define LK_MODEL_SITES_H

#include "model/config.h"

typedef enum lk_module { LK_Q, LK_K, LK_V, LK_O, LK_GATE, LK_UP, LK_DOWN, LK_QKV, LK_GATE_UP, LK_ROUTER, LK_N_MODULES } lk_module;

typedef struct lk_site {
    int64_t layer;
    lk_module module;
    int32_t expert; /* -1: the only one */
    int64_t n, k;   /* w[N,K] */
    bool bias;
} lk_site;

int32_t lk_sites(const lk_config *config);                           /* of all layers */
int32_t lk_layer_sites(const lk_config *config, int64_t layer);      /* of this one */
int32_t lk_layer_first_site(const lk_config *config, int64_t layer); /* their first */
lk_site lk_site_at(const lk_config *config, int32_t site);
/* expert -1: the model's only one. Returns -1 when this model has no such layer. */
int32_t lk_site_of(const lk_config *config, int64_t layer, lk_module module, int32_t expert);
bool lk_has_module(const lk_config *config, lk_module module); /* in any layer */

bool lk_layer_mixes(const lk_config *config, int64_t layer); /* is its MLP a mixture of experts? */
int64_t lk_mlp_width(const lk_config *config);               /* of the MLP of those layers that are none; 0: all are */

/* transformers 5 stacks the experts of a layer in two parameters, which adapters may name: gate over up, and down. */
void lk_stacked_path(char *out, size_t size, int64_t layer, bool gate_up); /* "model.layers.3.mlp.experts.gate_up_proj" */
/* The layer of such a path, or -1. */
int64_t lk_stacked_find(const lk_config *config, const char *path, bool *gate_up);

/* The norms of a block. Which of them a layer has follows from lk_config.norms and qk_norm. */
typedef enum lk_norm { LK_NORM_ATTENTION, LK_NORM_ATTENTION_OUT, LK_NORM_MLP, LK_NORM_MLP_OUT, LK_NORM_Q, LK_NORM_K, LK_N_NORMS } lk_norm;

/* Its name within the layer ("input_layernorm"), and how many weights it has; NULL: the layer has no such norm. */
const char *lk_norm_name(const lk_config *config, lk_norm norm, int64_t *width);

const char *lk_module_number(lk_module m); /* "w1": what Mixtral calls it, or NULL */
const char *lk_module_name(lk_module m);   /* "q_proj" */
/* Path of the layer in transformers and PEFT, without ".weight". */
void lk_site_path(char *out, size_t size, const lk_config *config, int32_t site);
int32_t lk_site_find(const lk_config *config, const char *path);

/* Parameters: linear layers of all blocks with their biases, and everything. */
int64_t lk_config_linear_params(const lk_config *config);
int64_t lk_config_params(const lk_config *config);
/* N*K of the largest linear layer, and the largest N or K of any (the router's, too). */
int64_t lk_config_largest_matrix(const lk_config *config);
int64_t lk_config_widest(const lk_config *config);

#endif
