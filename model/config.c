/* config.json to lk_config. Every key that could change the result is either read or checked to have its neutral value; the rest
 * (training settings, library versions) is ignored. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/families.h"
#include "model/gguf_config.h"

enum { CONFIG_MAX_BYTES = 4 << 20 };
/* ---------------------------------------------------------------------------------------------- without JSON */

lk_status lk_config_family(lk_config *c, const char *model_type, const char *where, lk_error *err)
{
    const lk_family *f;
    memset(c, 0, sizeof *c);
    c->bos = -1;
    LK_TRY(lk_family_find(&f, model_type, where, err));
    snprintf(c->model_type, sizeof c->model_type, "%s", model_type);
    c->rms_eps = (float)(f->eps > 0.0 ? f->eps : 1e-6);
    c->max_positions = 2048;
    if (f->defaults) {
        c->heads = f->defaults->heads;
        c->kv_heads = f->defaults->kv_heads;
        c->head_dim = f->defaults->head_dim;
        c->max_positions = f->defaults->positions;
        c->vocab = f->defaults->vocab;
    }
    c->window = f->sliding;
    c->tied = f->tied;
    c->norms = f->norms;
    c->norm_plus_one = f->norm_plus_one;
    c->qk_norm = f->qk_norm;
    c->qkv_bias = f->qkv_bias;
    c->fused = f->fused;
    c->activation = f->activation;
    c->attention_cap = f->attention_cap;
    c->logit_cap = f->logit_cap;
    c->rope.theta = f->theta > 0.0 ? f->theta : 1e4;
    c->local_rope.theta = f->local_theta;
    if (f->experts) c->expert_numbers = f->experts->numbers;
    return LK_OK;
}

/* The rule of the family for layer i; a file's own list goes before it. */
static uint8_t layer_by_rule(const lk_config *c, const lk_family *f, int64_t i)
{
    uint8_t flags = 0;
    if ((f->reads & LK_READS_NO_ROPE) && (i + 1) % 4 == 0) flags |= LK_LAYER_NO_ROPE;
    if (f->window == LK_WINDOW_ALL && c->window > 0) flags |= LK_LAYER_SLIDES;
    if (f->window == LK_WINDOW_PATTERN && (i + 1) % f->pattern != 0) flags |= LK_LAYER_SLIDES;
    if (f->local_theta > 0.0 && (flags & LK_LAYER_SLIDES)) flags |= LK_LAYER_LOCAL_ROPE;
    return flags;
}

static lk_status check_shape(const lk_config *c, const char *where, lk_error *err)
{
    if (c->heads % c->kv_heads)
        return lk_fail(err, LK_ERR_FORMAT, "%s: num_attention_heads %lld is not a multiple of num_key_value_heads %lld", where,
                       (long long)c->heads, (long long)c->kv_heads);
    const lk_rotary *ropes[] = {&c->rope, &c->local_rope};
    for (int i = 0; i < 2; i++) {
        int64_t pairs = lk_rotary_pairs(ropes[i], c->head_dim);
        double turning = ropes[i]->partial > 0.0 ? (double)c->head_dim * ropes[i]->partial : (double)c->head_dim;
        if (pairs < 1 || (int64_t)turning % 2)
            return lk_fail(err, LK_ERR_FORMAT, "%s: head_dim %lld: the part that RoPE turns must be even", where, (long long)c->head_dim);
        if (ropes[i]->kind == LK_ROPE_DYNAMIC && pairs < 2)
            return lk_fail(err, LK_ERR_FORMAT, "%s: dynamic RoPE needs heads of more than 2", where);
    }
    if (c->experts && (c->experts_used < 1 || c->experts_used > c->experts))
        return lk_fail(err, LK_ERR_FORMAT, "%s: num_experts_per_tok %lld of %lld experts", where, (long long)c->experts_used,
                       (long long)c->experts);
    return LK_OK;
}

lk_status lk_config_complete(lk_config *c, const char *where, lk_error *err)
{
    const lk_family *f;
    LK_TRY(lk_family_find(&f, c->model_type, where, err));
    /* The root in fp32, as the checkpoint's own implementation takes it where it computes in fp32. */
    if (f->embedding_root) c->embedding_scale = (double)sqrtf((float)c->hidden);
    for (int64_t i = 0; i < c->layers; i++) c->layer[i] = layer_by_rule(c, f, i);
    return check_shape(c, where, err);
}

int64_t lk_config_longest(const lk_config *c)
{
    return c->rope.kind == LK_ROPE_DYNAMIC && c->rope.factor > 1.0 ? (int64_t)((double)c->max_positions * c->rope.factor)
                                                                   : c->max_positions;
}

int64_t lk_layer_window(const lk_config *c, int64_t layer) { return c->layer[layer] & LK_LAYER_SLIDES ? c->window : 0; }

const lk_rotary *lk_layer_rotary(const lk_config *c, int64_t layer)
{
    if (c->layer[layer] & LK_LAYER_NO_ROPE) return NULL;
    return c->layer[layer] & LK_LAYER_LOCAL_ROPE ? &c->local_rope : &c->rope;
}

/* ---------------------------------------------------------------------------------------------- config.json */

static lk_status add_eos(lk_config *c, int64_t id, const char *where, lk_error *err)
{
    if (id < 0 || id >= c->vocab)
        return lk_fail(err, LK_ERR_FORMAT, "%s: eos_token_id %lld is outside the vocabulary of %lld", where, (long long)id,
                       (long long)c->vocab);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == (int32_t)id) return LK_OK;
    if (c->n_eos == LK_MAX_EOS) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d end-of-text tokens", where, LK_MAX_EOS);
    c->eos[c->n_eos++] = (int32_t)id;
    return LK_OK;
}

/* eos_token_id is a number, a list of numbers, or null. */
static lk_status parse_eos(lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    const cJSON *eos = lk_json_get(json, "eos_token_id");
    if (!eos || cJSON_IsNull(eos)) return LK_OK;
    if (cJSON_IsNumber(eos)) return add_eos(c, (int64_t)eos->valuedouble, where, err);
    if (!cJSON_IsArray(eos)) return lk_fail(err, LK_ERR_FORMAT, "%s: eos_token_id must be a number or a list", where);
    const cJSON *item;
    cJSON_ArrayForEach(item, eos)
    {
        if (!cJSON_IsNumber(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: eos_token_id must hold numbers", where);
        LK_TRY(add_eos(c, (int64_t)item->valuedouble, where, err));
    }
    return LK_OK;
}

/* Where the object is an older rope_scaling, theta and the turning part stand beside it. */
static lk_status parse_rope(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    lk_rotary_context context = {.theta = c->rope.theta,
                                 .positions = (double)c->max_positions,
                                 .fallback = (double)(f->original ? f->original : c->max_positions),
                                 .head_dim = c->head_dim,
                                 .only_long = f->only_long};
    double local_theta = c->local_rope.theta;
    LK_TRY(lk_json_opt_number(json, "rope_theta", 1.0, 1e12, &context.theta, where, err));
    LK_TRY(lk_json_opt_number(json, "partial_rotary_factor", 1e-3, 1.0, &context.partial, where, err));
    LK_TRY(lk_json_opt_number(json, "original_max_position_embeddings", 1.0, 1e9, &context.original, where, err));
    const cJSON *object = lk_json_get(json, "rope_parameters"), *local = NULL;
    if (!cJSON_IsObject(object)) object = lk_json_get(json, "rope_scaling");
    if (f->local_theta > 0.0) {
        LK_TRY(lk_json_opt_number(json, "rope_local_base_freq", 1.0, 1e12, &local_theta, where, err));
        if (lk_json_get(object, "full_attention") || lk_json_get(object, "sliding_attention")) {
            local = lk_json_get(object, "sliding_attention");
            object = lk_json_get(object, "full_attention");
        }
    }
    LK_TRY(lk_rotary_parse(&c->rope, object, &context, where, err));
    context.theta = local_theta > 0.0 ? local_theta : context.theta;
    return lk_rotary_parse(&c->local_rope, local, &context, where, err);
}

/* layer_types names each layer; a family whose layers are all alike may carry it, too. */
static lk_status parse_layer_types(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    const cJSON *list = lk_json_get(json, "layer_types"), *item;
    if (!cJSON_IsArray(list)) return LK_OK;
    if (cJSON_GetArraySize(list) != c->layers)
        return lk_fail(err, LK_ERR_FORMAT, "%s: layer_types names %d layers of %lld", where, cJSON_GetArraySize(list),
                       (long long)c->layers);
    int64_t i = 0;
    cJSON_ArrayForEach(item, list)
    {
        const char *type = cJSON_IsString(item) ? item->valuestring : "";
        bool slides = !strcmp(type, "sliding_attention");
        if (!slides && strcmp(type, "full_attention"))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: layer_types holds '%.40s' (full_attention and sliding_attention are supported)",
                           where, type);
        if (f->window >= LK_WINDOW_UPPER) {
            c->layer[i] = (uint8_t)(c->layer[i] & ~(LK_LAYER_SLIDES | LK_LAYER_LOCAL_ROPE));
            if (slides) c->layer[i] |= (uint8_t)(LK_LAYER_SLIDES | (f->local_theta > 0.0 ? LK_LAYER_LOCAL_ROPE : 0));
        }
        i++;
    }
    return LK_OK;
}

/* no_rope_layers: 0 where a layer has none. */
static lk_status parse_no_rope(lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    const cJSON *list = lk_json_get(json, "no_rope_layers");
    int64_t interval = 4;
    LK_TRY(lk_json_opt_int(json, "no_rope_layer_interval", 1, LK_MAX_LAYERS, &interval, where, err));
    if (cJSON_IsArray(list) && cJSON_GetArraySize(list) < c->layers)
        return lk_fail(err, LK_ERR_FORMAT, "%s: no_rope_layers names %d layers of %lld", where, cJSON_GetArraySize(list),
                       (long long)c->layers);
    const cJSON *item = cJSON_IsArray(list) ? list->child : NULL;
    for (int64_t i = 0; i < c->layers; i++) {
        bool has_rope = item ? cJSON_IsTrue(item) || (cJSON_IsNumber(item) && item->valuedouble != 0.0) : (i + 1) % interval != 0;
        c->layer[i] = has_rope ? 0 : LK_LAYER_NO_ROPE;
        if (item) item = item->next;
    }
    return LK_OK;
}

static lk_status parse_layers(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    bool use = f->window == LK_WINDOW_ALL || f->window == LK_WINDOW_PATTERN;
    int64_t window = c->window, from = 28, pattern = f->pattern; /* 28: Qwen2's default */
    LK_TRY(lk_json_opt_int(json, "sliding_window", 0, INT32_MAX, &window, where, err));
    if (cJSON_IsNull(lk_json_get(json, "sliding_window"))) window = 0;
    LK_TRY(lk_json_opt_int(json, "max_window_layers", 0, LK_MAX_LAYERS, &from, where, err));
    LK_TRY(lk_json_opt_int(json, "sliding_window_pattern", 1, LK_MAX_LAYERS, &pattern, where, err));
    LK_TRY(lk_json_opt_int(json, "_sliding_window_pattern", 1, LK_MAX_LAYERS, &pattern, where, err));
    if (f->window > LK_WINDOW_ALL && f->window < LK_WINDOW_PATTERN) LK_TRY(lk_json_opt_bool(json, "use_sliding_window", &use, where, err));
    c->window = use && window < lk_config_longest(c) ? window : 0; /* nothing is ever that far away */
    LK_TRY(lk_config_complete(c, where, err));
    if (f->reads & LK_READS_NO_ROPE) LK_TRY(parse_no_rope(c, json, where, err));
    for (int64_t i = 0; i < c->layers; i++) {
        bool slides = c->layer[i] & LK_LAYER_SLIDES;
        if (f->window == LK_WINDOW_ASKED) slides = use;
        if (f->window == LK_WINDOW_UPPER) slides = use && i >= from;
        if (f->window == LK_WINDOW_NO_ROPE) slides = use && (c->layer[i] & LK_LAYER_NO_ROPE);
        if (f->window == LK_WINDOW_PATTERN) slides = (i + 1) % pattern != 0;
        c->layer[i] = (uint8_t)(c->layer[i] & LK_LAYER_NO_ROPE);
        if (slides) c->layer[i] |= (uint8_t)(LK_LAYER_SLIDES | (f->local_theta > 0.0 ? LK_LAYER_LOCAL_ROPE : 0));
    }
    return parse_layer_types(c, f, json, where, err);
}

static lk_status parse_experts(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    const lk_family_experts *e = f->experts;
    if (!e) return LK_OK;
    c->experts = e->count;
    c->experts_used = e->used;
    LK_TRY(lk_json_opt_int(json, "num_local_experts", 1, LK_MAX_EXPERTS, &c->experts, where, err));
    LK_TRY(lk_json_opt_int(json, e->count_key, 1, LK_MAX_EXPERTS, &c->experts, where, err));
    LK_TRY(lk_json_opt_int(json, "num_experts_per_tok", 1, LK_MAX_EXPERTS, &c->experts_used, where, err));
    /* With the first transformers adds router_aux_loss_coef times a loss that balances experts, with the second Mixtral shakes what its
     * router reads. Both only when training, and both are off in published files. */
    bool logits = false;
    double noise = 0, coefficient = 0.001;
    LK_TRY(lk_json_opt_bool(json, "output_router_logits", &logits, where, err));
    LK_TRY(lk_json_opt_number(json, "router_aux_loss_coef", 0, 1e6, &coefficient, where, err));
    LK_TRY(lk_json_opt_number(json, "router_jitter_noise", 0, 1, &noise, where, err));
    c->router_training = logits && coefficient > 0 ? "output_router_logits" : noise > 0 && e->numbers ? "router_jitter_noise" : NULL;
    if (!e->width_key) return LK_OK;
    /* A file that says nothing means transformers' default, and that is false. */
    bool normalised = false;
    c->dense_intermediate = c->intermediate;
    LK_TRY(lk_json_opt_bool(json, "norm_topk_prob", &normalised, where, err));
    c->experts_as_is = !normalised;
    return lk_json_opt_int(json, e->width_key, 1, 1 << 24, &c->intermediate, where, err);
}

/* Which layers have an MLP in the place of experts: those of mlp_only_layers, and all but each decoder_sparse_step-th. */
static lk_status parse_dense(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    int64_t step = 1, n_dense = 0;
    if (!f->experts || !f->experts->width_key) return LK_OK;
    LK_TRY(lk_json_opt_int(json, "decoder_sparse_step", 1, LK_MAX_LAYERS, &step, where, err));
    const cJSON *list = lk_json_get(json, "mlp_only_layers"), *item;
    if (list && !cJSON_IsNull(list) && !cJSON_IsArray(list))
        return lk_fail(err, LK_ERR_FORMAT, "%s: mlp_only_layers must be a list", where);
    for (int64_t i = 0; i < c->layers; i++) {
        bool dense = (i + 1) % step != 0;
        cJSON_ArrayForEach(item, list) dense = dense || (cJSON_IsNumber(item) && item->valuedouble == (double)i);
        if (dense) c->layer[i] |= LK_LAYER_DENSE;
        n_dense += dense;
    }
    if (n_dense < c->layers) return LK_OK;
    /* No layer has experts: then it is the model without them. */
    for (int64_t i = 0; i < c->layers; i++) c->layer[i] = (uint8_t)(c->layer[i] & ~LK_LAYER_DENSE);
    c->intermediate = c->dense_intermediate;
    c->experts = c->experts_used = 0;
    c->experts_as_is = false;
    return LK_OK;
}

static lk_status parse_scales(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    if (f->reads & LK_READS_SCALAR) {
        double scalar = 256.0;
        LK_TRY(lk_json_opt_number(json, "query_pre_attn_scalar", 1e-6, 1e9, &scalar, where, err));
        c->attention_scale = 1.0 / sqrt(scalar);
    }
    if (f->reads & LK_READS_MULTIPLIERS) {
        c->attention_scale = 1.0;
        LK_TRY(lk_json_opt_number(json, "embedding_multiplier", 1e-6, 1e6, &c->embedding_scale, where, err));
        LK_TRY(lk_json_opt_number(json, "residual_multiplier", 1e-6, 1e6, &c->residual_scale, where, err));
        LK_TRY(lk_json_opt_number(json, "attention_multiplier", 1e-9, 1e6, &c->attention_scale, where, err));
        LK_TRY(lk_json_opt_number(json, "logits_scaling", 1e-6, 1e6, &c->logit_divisor, where, err));
    }
    if (f->reads & LK_READS_LOGIT_CAP) {
        LK_TRY(lk_json_opt_number(json, "final_logit_softcapping", 1e-3, 1e6, &c->logit_cap, where, err));
        if (cJSON_IsNull(lk_json_get(json, "final_logit_softcapping"))) c->logit_cap = 0.0;
    }
    if ((f->reads & LK_READS_CAPS) == LK_READS_CAPS) {
        LK_TRY(lk_json_opt_number(json, "attn_logit_softcapping", 1e-3, 1e6, &c->attention_cap, where, err));
        if (cJSON_IsNull(lk_json_get(json, "attn_logit_softcapping"))) c->attention_cap = 0.0;
    }
    bool both_ways = false;
    LK_TRY(lk_json_opt_bool(json, "use_bidirectional_attention", &both_ways, where, err));
    if (both_ways)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: use_bidirectional_attention is not supported: this is no causal model", where);
    return LK_OK;
}

static lk_status parse_biases(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    bool bias = false;
    if (f->reads & LK_READS_ATTENTION_BIAS) {
        LK_TRY(lk_json_opt_bool(json, "attention_bias", &bias, where, err));
        c->qkv_bias = c->o_bias = bias;
    }
    if ((f->reads & LK_READS_BIAS) == LK_READS_BIAS) LK_TRY(lk_json_opt_bool(json, "mlp_bias", &c->mlp_bias, where, err));
    return LK_OK;
}

/* Llama's and all its heirs' "silu", Gemma's "gelu_pytorch_tanh" under a key of its own. */
static lk_status check_activation(const lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    const char *want = c->activation == LK_GELU_TANH ? "gelu_pytorch_tanh" : "silu", *key = "hidden_act", *act = want;
    LK_TRY(lk_json_opt_string(json, key, &act, where, err));
    if (lk_json_get(json, "hidden_activation")) LK_TRY(lk_json_opt_string(json, key = "hidden_activation", &act, where, err));
    if (strcmp(act, want))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s '%.40s' is not supported for %s (%s is)", where, key, act, c->model_type, want);
    return LK_OK;
}

static lk_status parse_sizes(lk_config *c, const lk_family *f, const cJSON *json, const char *where, lk_error *err)
{
    const int64_t most = 1 << 24;
    LK_TRY(lk_json_int(json, "hidden_size", 1, most, &c->hidden, where, err));
    LK_TRY(lk_json_int(json, "intermediate_size", 1, most, &c->intermediate, where, err));
    LK_TRY(lk_json_int(json, "num_hidden_layers", 1, LK_MAX_LAYERS, &c->layers, where, err));
    if (c->vocab)
        LK_TRY(lk_json_opt_int(json, "vocab_size", 1, most, &c->vocab, where, err));
    else
        LK_TRY(lk_json_int(json, "vocab_size", 1, most, &c->vocab, where, err));
    if (f->defaults)
        LK_TRY(lk_json_opt_int(json, "num_attention_heads", 1, 65536, &c->heads, where, err));
    else
        LK_TRY(lk_json_int(json, "num_attention_heads", 1, 65536, &c->heads, where, err));
    if (!f->defaults) c->kv_heads = c->heads;
    LK_TRY(lk_json_opt_int(json, "num_key_value_heads", 1, 65536, &c->kv_heads, where, err));
    if (!f->defaults) c->head_dim = c->hidden / c->heads;
    LK_TRY(lk_json_opt_int(json, "head_dim", 2, 2 * LK_MAX_PAIRS, &c->head_dim, where, err));
    LK_TRY(lk_json_opt_int(json, "max_position_embeddings", 1, INT32_MAX, &c->max_positions, where, err));
    double eps = (double)c->rms_eps;
    LK_TRY(lk_json_opt_number(json, "rms_norm_eps", 0.0, 1.0, &eps, where, err));
    c->rms_eps = (float)eps;
    return lk_json_opt_bool(json, "tie_word_embeddings", &c->tied, where, err);
}

static lk_status parse_text(lk_config *c, const cJSON *json, const char *model_type, const char *where, lk_error *err)
{
    const lk_family *f;
    LK_TRY(lk_config_family(c, model_type, where, err));
    LK_TRY(lk_family_find(&f, model_type, where, err));
    LK_TRY(parse_sizes(c, f, json, where, err));
    LK_TRY(parse_biases(c, f, json, where, err));
    LK_TRY(check_activation(c, json, where, err));
    LK_TRY(parse_scales(c, f, json, where, err));
    LK_TRY(parse_experts(c, f, json, where, err));
    LK_TRY(parse_rope(c, f, json, where, err));
    LK_TRY(parse_layers(c, f, json, where, err));
    LK_TRY(parse_dense(c, f, json, where, err));
    int64_t bos = -1;
    const cJSON *bos_item = lk_json_get(json, "bos_token_id");
    if (cJSON_IsNumber(bos_item)) LK_TRY(lk_json_int(json, "bos_token_id", 0, c->vocab - 1, &bos, where, err));
    c->bos = (int32_t)bos;
    return parse_eos(c, json, where, err);
}

cJSON *lk_config_text(const cJSON *json)
{
    static const char *const shared[] = {"eos_token_id", "bos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype"};
    const cJSON *type = lk_json_get(json, "model_type"), *part = lk_json_get(json, "text_config");
    const lk_family_whole *whole = cJSON_IsString(type) ? lk_family_whole_of(type->valuestring) : NULL;
    cJSON *text = whole && cJSON_IsObject(part) ? cJSON_Duplicate(part, true) : NULL;
    if (!text) return NULL;
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
        const cJSON *above = lk_json_get(json, shared[i]), *own = lk_json_get(text, shared[i]);
        if (!above || (own && !cJSON_IsNull(own))) continue;
        cJSON_DeleteItemFromObjectCaseSensitive(text, shared[i]);
        cJSON_AddItemToObject(text, shared[i], cJSON_Duplicate(above, true));
    }
    if (!lk_json_get(text, "model_type")) cJSON_AddStringToObject(text, "model_type", whole->text);
    cJSON_DeleteItemFromObjectCaseSensitive(text, "architectures");
    cJSON *architectures = cJSON_AddArrayToObject(text, "architectures");
    cJSON_AddItemToArray(architectures, cJSON_CreateString(whole->architecture));
    return text;
}

/* A model of images and text: what its text part is, and that it is the one whose names are known. */
static lk_status parse_whole(lk_config *c, const cJSON *json, const lk_family_whole *whole, const char *where, lk_error *err)
{
    const char *model_type;
    cJSON *text = lk_config_text(json);
    if (!text)
        return lk_fail(err, LK_ERR_FORMAT, "%s: a %s model has its text part in text_config, which is missing", where, whole->model_type);
    lk_status status = lk_json_string(text, "model_type", &model_type, where, err);
    if (!status && strcmp(model_type, whole->text))
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: the text part of this %s model is '%.60s'; supported is %s", where,
                         whole->model_type, model_type, whole->text);
    if (!status) status = parse_text(c, text, model_type, where, err);
    snprintf(c->part_of, sizeof c->part_of, "%s", whole->model_type);
    cJSON_Delete(text);
    return status;
}

lk_status lk_config_parse(lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    const char *model_type;
    if (!cJSON_IsObject(json)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    LK_TRY(lk_json_string(json, "model_type", &model_type, where, err));
    const lk_family_whole *whole = lk_family_whole_of(model_type);
    return whole ? parse_whole(c, json, whole, where, err) : parse_text(c, json, model_type, where, err);
}

static lk_status read_gguf(lk_config *c, const char *file, lk_error *err)
{
    lk_gguf *g;
    LK_TRY(lk_gguf_open(&g, file, err));
    lk_status status = lk_gguf_read_config(c, g, err);
    lk_gguf_close(g);
    return status;
}

lk_status lk_config_read(lk_config *c, const char *folder, lk_error *err)
{
    char path[4096];
    if (lk_gguf_is_file(folder)) return read_gguf(c, folder, err);
    if (!lk_path_is_folder(folder))
        return lk_fail(err, LK_ERR_IO, "%s is not a model folder (a folder with config.json and safetensors files), nor a GGUF file",
                       folder);
    LK_TRY(lk_path_join(path, sizeof path, folder, "config.json", err));
    cJSON *json;
    LK_TRY(lk_json_read(&json, path, CONFIG_MAX_BYTES, err));
    lk_status status = lk_config_parse(c, json, path, err);
    cJSON_Delete(json);
    if (status) return status;
    LK_TRY(lk_path_join(path, sizeof path, folder, "generation_config.json", err));
    if (!lk_path_exists(path)) return LK_OK;
    LK_TRY(lk_json_read(&json, path, CONFIG_MAX_BYTES, err));
    status = parse_eos(c, json, path, err);
    cJSON_Delete(json);
    return status;
}
