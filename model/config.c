/* config.json to lk_config. Every key that could change the result is either read or checked to have its neutral value; the rest
 * (training settings, library versions) is ignored. */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { CONFIG_MAX_BYTES = 4 << 20 };

/* What each family means where its config.json is silent. */
typedef struct family {
    const char *model_type, *architecture;
    bool qkv_bias, qk_norm;
    bool bias_from_config; /* attention_bias and mlp_bias are read */
    bool window;           /* sliding_window is read */
} family;

static const family families[] = {
    {"llama", "LlamaForCausalLM", false, false, true, false},
    {"mistral", "MistralForCausalLM", false, false, false, true},
    {"qwen2", "Qwen2ForCausalLM", true, false, false, false},
    {"qwen3", "Qwen3ForCausalLM", false, true, true, false},
};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static const family *find_family(const char *model_type)
{
    for (int i = 0; i < N_FAMILIES; i++)
        if (!strcmp(families[i].model_type, model_type)) return &families[i];
    return NULL;
}

static lk_status parse_rope(lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    c->rope = LK_ROPE_PLAIN;
    c->rope_theta = 10000.0;
    LK_TRY(lk_json_opt_number(json, "rope_theta", 1.0, 1e12, &c->rope_theta, where, err));
    /* Older files: rope_theta + rope_scaling. Newer ones: everything in rope_parameters. */
    const cJSON *scaling = lk_json_get(json, "rope_parameters");
    if (!cJSON_IsObject(scaling)) scaling = lk_json_get(json, "rope_scaling");
    if (!scaling || cJSON_IsNull(scaling)) return LK_OK;
    if (!cJSON_IsObject(scaling)) return lk_fail(err, LK_ERR_FORMAT, "%s: rope_scaling must be an object or null", where);
    LK_TRY(lk_json_opt_number(scaling, "rope_theta", 1.0, 1e12, &c->rope_theta, where, err));
    const char *kind = "default";
    LK_TRY(lk_json_opt_string(scaling, "type", &kind, where, err));
    LK_TRY(lk_json_opt_string(scaling, "rope_type", &kind, where, err));
    double partial = 1.0;
    LK_TRY(lk_json_opt_number(scaling, "partial_rotary_factor", 0.0, 1.0, &partial, where, err));
    if (partial != 1.0) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: partial_rotary_factor %g is not supported", where, partial);
    if (!strcmp(kind, "default")) return LK_OK;
    if (!strcmp(kind, "linear")) {
        c->rope = LK_ROPE_LINEAR;
        return lk_json_number(scaling, "factor", 1e-3, 1e6, &c->rope_factor, where, err);
    }
    if (!strcmp(kind, "llama3")) {
        c->rope = LK_ROPE_LLAMA3;
        LK_TRY(lk_json_number(scaling, "factor", 1e-3, 1e6, &c->rope_factor, where, err));
        LK_TRY(lk_json_number(scaling, "low_freq_factor", 1e-3, 1e6, &c->rope_low, where, err));
        LK_TRY(lk_json_number(scaling, "high_freq_factor", 1e-3, 1e6, &c->rope_high, where, err));
        LK_TRY(lk_json_number(scaling, "original_max_position_embeddings", 1, 1e9, &c->rope_original, where, err));
        if (c->rope_high <= c->rope_low)
            return lk_fail(err, LK_ERR_FORMAT, "%s: rope_scaling: high_freq_factor must be above low_freq_factor", where);
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: rope_scaling type '%.40s' is not supported (default, linear and llama3 are)", where, kind);
}

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

static lk_status parse_window(lk_config *c, const family *f, const cJSON *json, const char *where, lk_error *err)
{
    int64_t window = 0;
    LK_TRY(lk_json_opt_int(json, "sliding_window", 0, INT32_MAX, &window, where, err));
    bool use = f->window;
    if (!use) LK_TRY(lk_json_opt_bool(json, "use_sliding_window", &use, where, err)); /* Qwen: off unless it says so */
    if (!use || window == 0 || window >= c->max_positions) return LK_OK;
    if (!f->window) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: use_sliding_window true is not supported for %s", where, f->model_type);
    c->window = window;
    return LK_OK;
}

static lk_status check_shape(const lk_config *c, const char *where, lk_error *err)
{
    if (c->heads % c->kv_heads)
        return lk_fail(err, LK_ERR_FORMAT, "%s: num_attention_heads %lld is not a multiple of num_key_value_heads %lld", where,
                       (long long)c->heads, (long long)c->kv_heads);
    if (c->head_dim % 2) return lk_fail(err, LK_ERR_FORMAT, "%s: head_dim %lld must be even for RoPE", where, (long long)c->head_dim);
    return LK_OK;
}

lk_status lk_config_parse(lk_config *c, const cJSON *json, const char *where, lk_error *err)
{
    memset(c, 0, sizeof *c);
    c->bos = -1;
    if (!cJSON_IsObject(json)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object", where);
    const char *model_type;
    LK_TRY(lk_json_string(json, "model_type", &model_type, where, err));
    const family *f = find_family(model_type);
    if (!f) {
        char known[256] = "";
        for (int i = 0; i < N_FAMILIES; i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", families[i].model_type);
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model_type '%.60s' is not supported; supported are: %s", where, model_type, known);
    }
    snprintf(c->model_type, sizeof c->model_type, "%s", model_type);
    const int64_t most = 1 << 24;
    LK_TRY(lk_json_int(json, "hidden_size", 1, most, &c->hidden, where, err));
    LK_TRY(lk_json_int(json, "intermediate_size", 1, most, &c->intermediate, where, err));
    LK_TRY(lk_json_int(json, "num_hidden_layers", 1, 10000, &c->layers, where, err));
    LK_TRY(lk_json_int(json, "num_attention_heads", 1, 65536, &c->heads, where, err));
    LK_TRY(lk_json_int(json, "vocab_size", 1, most, &c->vocab, where, err));
    c->kv_heads = c->heads;
    LK_TRY(lk_json_opt_int(json, "num_key_value_heads", 1, 65536, &c->kv_heads, where, err));
    c->head_dim = c->hidden / c->heads;
    LK_TRY(lk_json_opt_int(json, "head_dim", 2, 1024, &c->head_dim, where, err));
    c->max_positions = 2048;
    LK_TRY(lk_json_opt_int(json, "max_position_embeddings", 1, INT32_MAX, &c->max_positions, where, err));
    double eps = 1e-6;
    LK_TRY(lk_json_opt_number(json, "rms_norm_eps", 0.0, 1.0, &eps, where, err));
    c->rms_eps = (float)eps;
    LK_TRY(lk_json_opt_bool(json, "tie_word_embeddings", &c->tied, where, err));
    c->qkv_bias = f->qkv_bias;
    c->qk_norm = f->qk_norm;
    if (f->bias_from_config) {
        bool bias = false;
        LK_TRY(lk_json_opt_bool(json, "attention_bias", &bias, where, err));
        c->qkv_bias = c->o_bias = bias;
        LK_TRY(lk_json_opt_bool(json, "mlp_bias", &c->mlp_bias, where, err));
    }
    const char *act = "silu";
    LK_TRY(lk_json_opt_string(json, "hidden_act", &act, where, err));
    if (strcmp(act, "silu"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: hidden_act '%.40s' is not supported for %s (silu is)", where, act, model_type);
    LK_TRY(check_shape(c, where, err));
    LK_TRY(parse_window(c, f, json, where, err));
    LK_TRY(parse_rope(c, json, where, err));
    int64_t bos = -1;
    const cJSON *bos_item = lk_json_get(json, "bos_token_id");
    if (cJSON_IsNumber(bos_item)) LK_TRY(lk_json_int(json, "bos_token_id", 0, c->vocab - 1, &bos, where, err));
    c->bos = (int32_t)bos;
    return parse_eos(c, json, where, err);
}

lk_status lk_config_read(lk_config *c, const char *folder, lk_error *err)
{
    char path[4096];
    if (!lk_path_is_folder(folder))
        return lk_fail(err, LK_ERR_IO, "%s is not a model folder (a folder with config.json and safetensors files)", folder);
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

/* transformers computes base ** (arange / dim) and its reciprocal in fp32 tensors, hence the float steps here. */
void lk_config_inv_freq(const lk_config *c, float *inv_freq)
{
    int64_t half = c->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float inv = 1.0f / (float)pow(c->rope_theta, (double)exponent);
        if (c->rope == LK_ROPE_LINEAR) inv /= (float)c->rope_factor;
        if (c->rope == LK_ROPE_LLAMA3) {
            float low_wavelength = (float)(c->rope_original / c->rope_low), high_wavelength = (float)(c->rope_original / c->rope_high);
            float wavelength = 2.0f * 3.14159265358979323846f / inv;
            if (wavelength > low_wavelength) {
                inv /= (float)c->rope_factor;
            } else if (wavelength >= high_wavelength) {
                float smooth = ((float)c->rope_original / wavelength - (float)c->rope_low) / (float)(c->rope_high - c->rope_low);
                inv = (1.0f - smooth) * inv / (float)c->rope_factor + smooth * inv;
            }
        }
        inv_freq[i] = inv;
    }
}
