#include "model/config_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/families.h"
#include "model/sites.h"

/* transformers' class of each family. */
static const char *class_of(const char *model_type)
{
    static const char *const classes[][2] = {
        {"llama", "LlamaForCausalLM"},     {"mistral", "MistralForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"},
        {"qwen3", "Qwen3ForCausalLM"},     {"gemma2", "Gemma2ForCausalLM"},   {"gemma3_text", "Gemma3ForCausalLM"},
        {"phi3", "Phi3ForCausalLM"},       {"olmo2", "Olmo2ForCausalLM"},     {"granite", "GraniteForCausalLM"},
        {"smollm3", "SmolLM3ForCausalLM"}, {"mixtral", "MixtralForCausalLM"}, {"qwen3_moe", "Qwen3MoeForCausalLM"},
    };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (!strcmp(classes[i][0], model_type)) return classes[i][1];
    return "";
}

/* A float to Python, too: 4.0, not 4. */
static void add_float(cJSON *json, const char *key, double value)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    if (!strpbrk(text, ".en")) strcat(text, ".0");
    cJSON_AddRawToObject(json, key, text);
}

static void add_int(cJSON *json, const char *key, int64_t value) { cJSON_AddNumberToObject(json, key, (double)value); }

static void add_sizes(cJSON *json, const lk_config *c)
{
    add_int(json, "hidden_size", c->hidden);
    add_int(json, "intermediate_size", lk_mlp_width(c) ? lk_mlp_width(c) : c->intermediate);
    add_int(json, "num_hidden_layers", c->layers);
    add_int(json, "num_attention_heads", c->heads);
    add_int(json, "num_key_value_heads", c->kv_heads);
    add_int(json, "head_dim", c->head_dim);
    add_int(json, "vocab_size", c->vocab);
    add_int(json, "max_position_embeddings", c->max_positions);
    char eps[40]; /* fp32 in the other format: as many digits as that has */
    snprintf(eps, sizeof eps, "%.7g", (double)c->rms_eps);
    add_float(json, "rms_norm_eps", strtod(eps, NULL));
    cJSON_AddBoolToObject(json, "tie_word_embeddings", c->tied);
    cJSON_AddStringToObject(json, c->activation == LK_GELU_TANH ? "hidden_activation" : "hidden_act",
                            c->activation == LK_GELU_TANH ? "gelu_pytorch_tanh" : "silu");
}

static void add_tokens(cJSON *json, const lk_config *c)
{
    if (c->bos >= 0)
        add_int(json, "bos_token_id", c->bos);
    else
        cJSON_AddNullToObject(json, "bos_token_id");
    if (c->n_eos == 0) cJSON_AddNullToObject(json, "eos_token_id");
    if (c->n_eos == 1) add_int(json, "eos_token_id", c->eos[0]);
    cJSON_AddNullToObject(json, "pad_token_id"); /* some families have a default, which need not be a token of this vocabulary */
    if (c->n_eos > 1) cJSON_AddItemToObject(json, "eos_token_id", cJSON_CreateIntArray(c->eos, c->n_eos));
}

static void add_cap(cJSON *json, const char *key, double cap)
{
    if (cap > 0)
        add_float(json, key, cap);
    else
        cJSON_AddNullToObject(json, key);
}

static void add_scales(cJSON *json, const lk_config *c, const lk_family *f)
{
    double scale = c->attention_scale > 0 ? c->attention_scale : 1 / sqrt((double)c->head_dim);
    if (f->reads & LK_READS_SCALAR) {
        double scalar = 1 / (scale * scale), whole = round(scalar);
        if (fabs(scalar - whole) < 1e-6 * scalar)
            add_int(json, "query_pre_attn_scalar", (int64_t)whole); /* transformers wants an integer */
        else
            add_float(json, "query_pre_attn_scalar", scalar);
    }
    if (f->reads & LK_READS_MULTIPLIERS) {
        add_float(json, "embedding_multiplier", c->embedding_scale > 0 ? c->embedding_scale : 1);
        add_float(json, "residual_multiplier", c->residual_scale > 0 ? c->residual_scale : 1);
        add_float(json, "attention_multiplier", scale);
        add_float(json, "logits_scaling", c->logit_divisor > 0 ? c->logit_divisor : 1);
    }
    if (f->reads & LK_READS_LOGIT_CAP) add_cap(json, "final_logit_softcapping", c->logit_cap);
    if ((f->reads & LK_READS_CAPS) == LK_READS_CAPS) add_cap(json, "attn_logit_softcapping", c->attention_cap);
    if (f->reads & LK_READS_ATTENTION_BIAS) cJSON_AddBoolToObject(json, "attention_bias", c->o_bias);
    if ((f->reads & LK_READS_BIAS) == LK_READS_BIAS) cJSON_AddBoolToObject(json, "mlp_bias", c->mlp_bias);
}

static void add_window(cJSON *json, const lk_config *c, const lk_family *f)
{
    if (f->window == LK_WINDOW_NONE) return;
    if (c->window)
        add_int(json, "sliding_window", c->window);
    else
        cJSON_AddNullToObject(json, "sliding_window");
    if (f->window > LK_WINDOW_ALL && f->window < LK_WINDOW_PATTERN) cJSON_AddBoolToObject(json, "use_sliding_window", c->window > 0);
}

static void add_experts(cJSON *json, const lk_config *c, const lk_family *f)
{
    if (!f->experts) return;
    add_int(json, f->experts->count_key, c->experts);
    add_int(json, "num_experts_per_tok", c->experts_used);
    if (!f->experts->width_key) return;
    add_int(json, f->experts->width_key, c->intermediate);
    cJSON_AddBoolToObject(json, "norm_topk_prob", !c->experts_as_is);
    add_int(json, "decoder_sparse_step", 1);
    cJSON_AddArrayToObject(json, "mlp_only_layers");
}

/* ---- RoPE ---- */

static bool close_enough(double a, double b) { return fabs(a - b) <= 1e-5 * fmax(fabs(a), fabs(b)); }

static bool same_frequencies(const lk_rotary *a, const lk_rotary *b, int64_t head_dim, int64_t length)
{
    float x[LK_MAX_PAIRS], y[LK_MAX_PAIRS];
    int64_t pairs = lk_rotary_pairs(a, head_dim);
    if (pairs != lk_rotary_pairs(b, head_dim)) return false;
    lk_rotary_frequencies(a, head_dim, length, x);
    lk_rotary_frequencies(b, head_dim, length, y);
    for (int64_t i = 0; i < pairs; i++)
        if (!close_enough((double)x[i], (double)y[i])) return false;
    return true;
}

static bool same_rope(const lk_rotary *a, const lk_rotary *b, const lk_config *c)
{
    const int64_t lengths[] = {1, (int64_t)a->original, (int64_t)a->original + 1, c->max_positions, c->max_positions + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        if (lengths[i] > 0 && !same_frequencies(a, b, c->head_dim, lengths[i])) return false;
    return close_enough((double)lk_rotary_factor(a), (double)lk_rotary_factor(b));
}

/* One set of divisors for all lengths is what GGUF files keep of Llama 3's scaling: its numbers, as published, are found again. */
static bool find_llama3(lk_rotary *out, const lk_rotary *r, const lk_config *c)
{
    *out = (lk_rotary){.kind = LK_ROPE_LLAMA3, .theta = r->theta, .partial = r->partial, .low = 1, .high = 4};
    for (int64_t i = 0; i < lk_rotary_pairs(r, c->head_dim); i++) {
        if (r->long_factor[i] != r->short_factor[i]) return false;
        out->factor = fmax(out->factor, (double)r->long_factor[i]);
    }
    if (fabs(out->factor - round(out->factor)) < 1e-4) out->factor = round(out->factor);
    for (out->original = 8; out->original <= 1 << 20; out->original *= 2)
        if (same_frequencies(out, r, c->head_dim, 1)) return (double)lk_rotary_factor(r) == 1;
    return false;
}

static void add_factors(cJSON *scaling, const char *key, const float *values, int64_t n)
{
    cJSON *list = cJSON_AddArrayToObject(scaling, key);
    for (int64_t i = 0; i < n; i++) {
        char text[40];
        snprintf(text, sizeof text, "%.9g", (double)values[i]);
        if (!strpbrk(text, ".e")) strcat(text, ".0");
        cJSON_AddItemToArray(list, cJSON_CreateRaw(text));
    }
}

static void add_scaling(cJSON *json, const lk_rotary *r, const lk_config *c, const lk_family *f)
{
    static const char *const names[] = {[LK_ROPE_LINEAR] = "linear",
                                        [LK_ROPE_LLAMA3] = "llama3",
                                        [LK_ROPE_DYNAMIC] = "dynamic",
                                        [LK_ROPE_YARN] = "yarn",
                                        [LK_ROPE_LONG] = "longrope"};
    int64_t pairs = lk_rotary_pairs(r, c->head_dim);
    cJSON *scaling = cJSON_AddObjectToObject(json, "rope_scaling");
    cJSON_AddStringToObject(scaling, "rope_type", names[r->kind]);
    cJSON_AddStringToObject(scaling, "type", names[r->kind]);
    if (r->kind != LK_ROPE_LONG) add_float(scaling, "factor", r->factor);
    if (r->kind == LK_ROPE_LLAMA3) {
        add_float(scaling, "low_freq_factor", r->low);
        add_float(scaling, "high_freq_factor", r->high);
    }
    if (r->kind == LK_ROPE_LONG) {
        add_factors(scaling, "short_factor", r->short_factor, pairs);
        add_factors(scaling, "long_factor", r->long_factor, pairs);
    }
    if (r->kind == LK_ROPE_LONG && f->only_long)
        add_int(json, "original_max_position_embeddings", (int64_t)r->original);
    else if (r->kind >= LK_ROPE_LLAMA3 && r->kind != LK_ROPE_DYNAMIC)
        add_int(scaling, "original_max_position_embeddings", (int64_t)r->original);
    /* where it is not what the other numbers imply */
    double stretch = (double)c->max_positions / r->original, implied = 1;
    if (r->kind == LK_ROPE_YARN) implied = r->factor > 1 ? 0.1 * log(r->factor) + 1 : 1;
    if (r->kind == LK_ROPE_LONG) implied = stretch > 1 && r->original > 1 ? sqrt(1 + log(stretch) / log(r->original)) : 1;
    if (!close_enough((double)lk_rotary_factor(r), implied)) add_float(scaling, "attention_factor", (double)lk_rotary_factor(r));
}

static void add_rope(cJSON *json, const lk_config *c, const lk_family *f)
{
    lk_rotary found;
    const lk_rotary *r = &c->rope;
    add_float(json, "rope_theta", r->theta);
    if (f->local_theta > 0) add_float(json, "rope_local_base_freq", c->local_rope.theta);
    if (r->partial > 0) add_float(json, "partial_rotary_factor", r->partial);
    if (r->kind == LK_ROPE_LONG && !f->only_long && find_llama3(&found, r, c)) r = &found;
    if (r->kind == LK_ROPE_PLAIN)
        cJSON_AddNullToObject(json, "rope_scaling");
    else
        add_scaling(json, r, c, f);
}

/* ---- and back ---- */

static const char *difference(const lk_config *a, const lk_config *b)
{
    const struct {
        const char *what;
        double x, y;
    } facts[] = {
        {"the window", (double)(a->window < a->max_positions ? a->window : 0), (double)b->window},
        {"the biases", a->qkv_bias + 2 * a->o_bias + 4 * a->mlp_bias, b->qkv_bias + 2 * b->o_bias + 4 * b->mlp_bias},
        {"the scale of the embedding", a->embedding_scale > 0 ? a->embedding_scale : 1, b->embedding_scale > 0 ? b->embedding_scale : 1},
        {"the scale of the residuals", a->residual_scale > 0 ? a->residual_scale : 1, b->residual_scale > 0 ? b->residual_scale : 1},
        {"the scale of the attention", a->attention_scale > 0 ? a->attention_scale : 1 / sqrt((double)a->head_dim),
         b->attention_scale > 0 ? b->attention_scale : 1 / sqrt((double)b->head_dim)},
        {"the scale of the logits", a->logit_divisor > 0 ? a->logit_divisor : 1, b->logit_divisor > 0 ? b->logit_divisor : 1},
        {"the cap of the attention", a->attention_cap, b->attention_cap},
        {"the cap of the logits", a->logit_cap, b->logit_cap},
        {"rms_norm_eps", (double)a->rms_eps, (double)b->rms_eps},
        {"the sum of the experts' weights", a->experts_as_is, b->experts_as_is},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (!close_enough(facts[i].x, facts[i].y)) return facts[i].what;
    if (memcmp(a->layer, b->layer, (size_t)a->layers) != 0) return "which layers slide or have RoPE";
    if (!same_rope(&a->rope, &b->rope, a)) return "RoPE";
    for (int64_t i = 0; i < a->layers; i++)
        if (a->layer[i] & LK_LAYER_LOCAL_ROPE && !same_rope(&a->local_rope, &b->local_rope, a)) return "RoPE of the sliding layers";
    if (a->n_eos != b->n_eos || memcmp(a->eos, b->eos, (size_t)a->n_eos * sizeof *a->eos) != 0) return "the end-of-text tokens";
    return NULL;
}

/* What was printed is what will be read: raw numbers are none before that. */
static lk_status check(const cJSON *json, const lk_config *c, const char *where, lk_error *err)
{
    cJSON *parsed = NULL;
    char *text = cJSON_PrintUnformatted(json);
    lk_config *back = calloc(1, sizeof *back);
    lk_status status = text && back ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory to write its config.json", where);
    if (!status) status = lk_json_parse(&parsed, text, strlen(text), where, err);
    if (!status) status = lk_config_parse(back, parsed, where, err);
    const char *what = status ? NULL : difference(c, back);
    if (what)
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s of this model cannot be said in a %s config.json", where, what, c->model_type);
    cJSON_Delete(parsed);
    free(text);
    free(back);
    return status;
}

lk_status lk_config_json(cJSON **json, const lk_config *c, const char *where, lk_error *err)
{
    const lk_family *f;
    *json = NULL;
    LK_TRY(lk_family_find(&f, c->model_type, where, err));
    cJSON *out = cJSON_CreateObject(), *architectures = cJSON_AddArrayToObject(out, "architectures");
    if (!architectures) {
        cJSON_Delete(out);
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory to write its config.json", where);
    }
    cJSON_AddItemToArray(architectures, cJSON_CreateString(class_of(c->model_type)));
    cJSON_AddStringToObject(out, "model_type", c->model_type);
    add_sizes(out, c);
    add_scales(out, c, f);
    add_window(out, c, f);
    add_experts(out, c, f);
    add_rope(out, c, f);
    add_tokens(out, c);
    lk_status status = check(out, c, where, err);
    if (status)
        cJSON_Delete(out);
    else
        *json = out;
    return status;
}
