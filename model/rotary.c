#include "model/rotary.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    lk_rope_kind kind;
} kinds[] = {{"default", LK_ROPE_PLAIN}, {"linear", LK_ROPE_LINEAR}, {"dynamic", LK_ROPE_DYNAMIC}, {"yarn", LK_ROPE_YARN},
             {"longrope", LK_ROPE_LONG}, {"llama3", LK_ROPE_LLAMA3}, {"su", LK_ROPE_LONG}};

static lk_status parse_kind(lk_rotary *r, const cJSON *json, const lk_rotary_context *c, const char *where, lk_error *err)
{
    const char *name = "default";
    LK_TRY(lk_json_opt_string(json, "type", &name, where, err));
    LK_TRY(lk_json_opt_string(json, "rope_type", &name, where, err));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].name, name)) continue;
        r->kind = kinds[i].kind;
        if (c->only_long && r->kind == LK_ROPE_YARN) r->kind = LK_ROPE_LONG;
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_UNSUPPORTED,
                   "%s: rope type '%.40s' is not supported (default, linear, dynamic, yarn, longrope and llama3 are)", where, name);
}

static lk_status parse_factors(float *out, const cJSON *json, const char *key, int64_t pairs, const char *where, lk_error *err)
{
    const cJSON *list = lk_json_get(json, key), *item;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != pairs)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be a list of %lld numbers", where, key, (long long)pairs);
    int64_t n = 0;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble > 0.0))
            return lk_fail(err, LK_ERR_FORMAT, "%s: %s must hold positive numbers", where, key);
        out[n++] = (float)item->valuedouble;
    }
    return LK_OK;
}

static lk_status parse_long(lk_rotary *r, const cJSON *json, const lk_rotary_context *c, const char *where, lk_error *err)
{
    int64_t pairs = lk_rotary_pairs(r, c->head_dim);
    LK_TRY(parse_factors(r->short_factor, json, "short_factor", pairs, where, err));
    LK_TRY(parse_factors(r->long_factor, json, "long_factor", pairs, where, err));
    if (r->factor == 0.0) r->factor = c->positions / r->original;
    if (r->attention_factor == 0.0)
        r->attention_factor = r->factor <= 1.0 || r->original <= 1.0 ? 1.0 : sqrt(1.0 + log(r->factor) / log(r->original));
    return LK_OK;
}

static double mscale(double factor, double by) { return factor <= 1.0 ? 1.0 : 0.1 * by * log(factor) + 1.0; }

static lk_status parse_yarn(lk_rotary *r, const cJSON *json, const lk_rotary_context *c, const char *where, lk_error *err)
{
    double by = 0.0, by_all = 0.0;
    bool truncate = true;
    r->high = 32.0;
    r->low = 1.0;
    LK_TRY(lk_json_opt_number(json, "beta_fast", 1e-3, 1e6, &r->high, where, err));
    LK_TRY(lk_json_opt_number(json, "beta_slow", 1e-3, 1e6, &r->low, where, err));
    LK_TRY(lk_json_opt_number(json, "mscale", 0.0, 1e3, &by, where, err));
    LK_TRY(lk_json_opt_number(json, "mscale_all_dim", 0.0, 1e3, &by_all, where, err));
    LK_TRY(lk_json_opt_bool(json, "truncate", &truncate, where, err));
    r->exact = !truncate;
    if (r->factor == 0.0) r->factor = c->positions / r->original;
    if (r->attention_factor == 0.0)
        r->attention_factor = by != 0.0 && by_all != 0.0 ? mscale(r->factor, by) / mscale(r->factor, by_all) : mscale(r->factor, 1.0);
    return LK_OK;
}

static lk_status parse_llama3(lk_rotary *r, const cJSON *json, const char *where, lk_error *err)
{
    LK_TRY(lk_json_number(json, "low_freq_factor", 1e-3, 1e6, &r->low, where, err));
    LK_TRY(lk_json_number(json, "high_freq_factor", 1e-3, 1e6, &r->high, where, err));
    if (r->high <= r->low) return lk_fail(err, LK_ERR_FORMAT, "%s: rope_scaling: high_freq_factor must be above low_freq_factor", where);
    return LK_OK;
}

lk_status lk_rotary_parse(lk_rotary *r, const cJSON *json, const lk_rotary_context *c, const char *where, lk_error *err)
{
    memset(r, 0, sizeof *r);
    r->theta = c->theta;
    r->partial = c->partial;
    if (!json || cJSON_IsNull(json)) return LK_OK;
    if (!cJSON_IsObject(json)) return lk_fail(err, LK_ERR_FORMAT, "%s: rope_scaling must be an object or null", where);
    LK_TRY(lk_json_opt_number(json, "rope_theta", 1.0, 1e12, &r->theta, where, err));
    LK_TRY(lk_json_opt_number(json, "partial_rotary_factor", 1e-3, 1.0, &r->partial, where, err));
    LK_TRY(parse_kind(r, json, c, where, err));
    if (r->kind == LK_ROPE_PLAIN) return LK_OK;
    r->original = c->fallback;
    LK_TRY(lk_json_opt_number(json, "original_max_position_embeddings", 1.0, 1e9, &r->original, where, err));
    if (c->original > 0.0) r->original = c->original;
    if (r->kind == LK_ROPE_DYNAMIC) r->original = c->positions;
    if (r->kind == LK_ROPE_LINEAR) r->original = 0.0;
    LK_TRY(lk_json_opt_number(json, "attention_factor", 1e-3, 1e3, &r->attention_factor, where, err));
    if (r->kind == LK_ROPE_LONG || r->kind == LK_ROPE_YARN)
        LK_TRY(lk_json_opt_number(json, "factor", 1e-3, 1e6, &r->factor, where, err));
    else
        LK_TRY(lk_json_number(json, "factor", 1e-3, 1e6, &r->factor, where, err));
    if (r->kind != LK_ROPE_LONG && r->kind != LK_ROPE_YARN) r->attention_factor = 0.0; /* nobody reads it there */
    switch (r->kind) {
    case LK_ROPE_LONG: return parse_long(r, json, c, where, err);
    case LK_ROPE_YARN: return parse_yarn(r, json, c, where, err);
    case LK_ROPE_LLAMA3: return parse_llama3(r, json, where, err);
    default: return LK_OK;
    }
}

/* ---------------------------------------------------------------------------------------------- frequencies */

int64_t lk_rotary_pairs(const lk_rotary *r, int64_t head_dim)
{
    return (r->partial > 0.0 ? (int64_t)((double)head_dim * r->partial) : head_dim) / 2;
}

float lk_rotary_factor(const lk_rotary *r) { return r->attention_factor > 0.0 ? (float)r->attention_factor : 1.0f; }

bool lk_rotary_by_length(const lk_rotary *r, int64_t a, int64_t b)
{
    double low = (double)(a < b ? a : b), high = (double)(a < b ? b : a);
    if (r->kind == LK_ROPE_LONG) return low <= r->original && high > r->original;
    return r->kind == LK_ROPE_DYNAMIC && high > r->original && low != high;
}

static float llama3(const lk_rotary *r, float inv)
{
    float low_wavelength = (float)(r->original / r->low), high_wavelength = (float)(r->original / r->high);
    float wavelength = 2.0f * 3.14159265358979323846f / inv;
    if (wavelength > low_wavelength) return inv / (float)r->factor;
    if (wavelength < high_wavelength) return inv;
    float smooth = ((float)r->original / wavelength - (float)r->low) / (float)(r->high - r->low);
    return (1.0f - smooth) * inv / (float)r->factor + smooth * inv;
}

/* The pair whose frequency makes `turns` turns in pretraining's positions. */
static double yarn_pair(const lk_rotary *r, double turns, double width)
{
    return width * log(r->original / (turns * 2.0 * 3.14159265358979323846)) / (2.0 * log(r->theta));
}

/* Fast pairs keep their frequency, slow ones are stretched, those between are blended. */
static float yarn(const lk_rotary *r, float power, int64_t i, double width)
{
    double low = yarn_pair(r, r->high, width), high = yarn_pair(r, r->low, width);
    if (!r->exact) low = floor(low), high = ceil(high);
    if (low < 0.0) low = 0.0;
    if (high > width - 1.0) high = width - 1.0;
    if (low == high) high += 0.001;
    float ramp = ((float)i - (float)low) / (float)(high - low);
    ramp = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
    float keep = 1.0f - ramp;
    return 1.0f / ((float)r->factor * power) * (1.0f - keep) + 1.0f / power * keep;
}

/* transformers computes base ** (arange / dim) and its reciprocal in fp32 tensors, hence the float steps here. */
void lk_rotary_frequencies(const lk_rotary *r, int64_t head_dim, int64_t length, float *inv_freq)
{
    int64_t pairs = lk_rotary_pairs(r, head_dim);
    double width = (double)(2 * pairs), theta = r->theta;
    if (r->kind == LK_ROPE_DYNAMIC && (double)length > r->original)
        theta *= pow(r->factor * (double)length / r->original - (r->factor - 1.0), width / (width - 2.0));
    const float *divisors = (double)length > r->original ? r->long_factor : r->short_factor;
    for (int64_t i = 0; i < pairs; i++) {
        float power = (float)pow(theta, (double)((float)(2 * i) / (float)(2 * pairs)));
        float inv = 1.0f / power;
        switch (r->kind) {
        case LK_ROPE_LINEAR: inv_freq[i] = inv / (float)r->factor; break;
        case LK_ROPE_LLAMA3: inv_freq[i] = llama3(r, inv); break;
        case LK_ROPE_YARN: inv_freq[i] = yarn(r, power, i, width); break;
        case LK_ROPE_LONG: inv_freq[i] = 1.0f / (divisors[i] * power); break;
        default: inv_freq[i] = inv; break;
        }
    }
}
