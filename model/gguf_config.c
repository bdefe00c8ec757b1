#include "model/gguf_config.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "model/gguf_map.h"
#include "model/sites.h"

/* Keys that are a field of lk_config. An optional one is written when it is not 0, and 0 when it is not there. */
typedef struct field {
    const char *key;
    size_t offset;
    enum { WHOLE, SINGLE, DOUBLE } kind;
    bool required;
    const char *only; /* architecture; NULL: all */
} field;

#define AT(name) offsetof(lk_config, name)
static const field fields[] = {
    {"context_length", AT(max_positions), WHOLE, true, NULL},
    {"embedding_length", AT(hidden), WHOLE, true, NULL},
    {"block_count", AT(layers), WHOLE, true, NULL},
    {"feed_forward_length", AT(intermediate), WHOLE, false, NULL},
    {"expert_feed_forward_length", AT(intermediate), WHOLE, false, "qwen3moe"},
    {"attention.head_count", AT(heads), WHOLE, true, NULL},
    {"attention.head_count_kv", AT(kv_heads), WHOLE, false, NULL},
    {"attention.key_length", AT(head_dim), WHOLE, false, NULL},
    {"attention.layer_norm_rms_epsilon", AT(rms_eps), SINGLE, true, NULL},
    {"attention.sliding_window", AT(window), WHOLE, false, "gemma2"},
    {"attention.sliding_window", AT(window), WHOLE, false, "gemma3"},
    {"attn_logit_softcapping", AT(attention_cap), DOUBLE, false, "gemma2"},
    {"final_logit_softcapping", AT(logit_cap), DOUBLE, false, "gemma2"},
    {"final_logit_softcapping", AT(logit_cap), DOUBLE, false, "gemma3"},
    {"attention.scale", AT(attention_scale), DOUBLE, false, "granite"},
    {"embedding_scale", AT(embedding_scale), DOUBLE, false, "granite"},
    {"residual_scale", AT(residual_scale), DOUBLE, false, "granite"},
    {"logit_scale", AT(logit_divisor), DOUBLE, false, "granite"},
    {"expert_count", AT(experts), WHOLE, false, NULL},
    {"expert_used_count", AT(experts_used), WHOLE, false, NULL},
    {"rope.freq_base", AT(rope.theta), DOUBLE, false, NULL},
    {"rope.freq_base_swa", AT(local_rope.theta), DOUBLE, false, "gemma3"},
};
#undef AT
enum { N_FIELDS = sizeof fields / sizeof *fields };

static void key_of(char out[128], const char *architecture, const char *key) { snprintf(out, 128, "%s.%s", architecture, key); }

static bool applies(const field *f, const char *architecture) { return !f->only || !strcmp(f->only, architecture); }

/* Gemma's 27B models scale by hidden/heads; llama.cpp knows them by their number of layers. */
static bool scales_by_width(const lk_config *c, const char *architecture)
{
    return (!strcmp(architecture, "gemma2") && c->layers == 46) || (!strcmp(architecture, "gemma3") && c->layers == 62);
}

/* ---- writing ---- */

static bool built_in_scale(const lk_config *c, const char *architecture)
{
    double built_in = scales_by_width(c, architecture) ? 1 / sqrt((double)c->hidden / (double)c->heads) : 1 / sqrt((double)c->head_dim);
    return c->attention_scale == 0 || fabs(c->attention_scale - built_in) <= 1e-6 * built_in;
}

/* Divisors that hold for all lengths: what is read of rope_freqs.weight (read_rope_tensors). */
static bool one_set(const lk_rotary *r, int64_t head_dim)
{
    return lk_rotary_factor(r) == 1 &&
           !memcmp(r->short_factor, r->long_factor, (size_t)lk_rotary_pairs(r, head_dim) * sizeof *r->short_factor);
}

static lk_status check_rope(const lk_rotary *r, int64_t head_dim, const char *architecture, const char *where, lk_error *err)
{
    bool divides = !strcmp(architecture, "llama") || !strcmp(architecture, "smollm3");
    if (r->kind == LK_ROPE_DYNAMIC) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: llama.cpp has no dynamic RoPE scaling", where);
    /* There are keys for the rest, but llama.cpp does not read them for these architectures. */
    bool usual = !r->exact && r->high == 32 && r->low == 1 && fabs((double)lk_rotary_factor(r) / (0.1 * log(r->factor) + 1) - 1) < 1e-6;
    if (r->kind == LK_ROPE_YARN && !usual)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: llama.cpp has YaRN with beta_fast 32, beta_slow 1, the usual attention_factor and truncation only", where);
    if (r->kind == LK_ROPE_LLAMA3 && !divides)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: llama.cpp has no llama3 RoPE scaling for %s", where, architecture);
    if (r->kind == LK_ROPE_LONG && strcmp(architecture, "phi3") && !(divides && one_set(r, head_dim)))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: llama.cpp has longrope for phi3 only", where);
    return LK_OK;
}

/* Layers as the family's rule has them, which is what llama.cpp has built in. */
static lk_status check_layers(const lk_config *c, const char *where, lk_error *err)
{
    lk_config plain;
    LK_TRY(lk_config_family(&plain, c->model_type, where, err));
    plain.hidden = c->hidden;
    plain.layers = c->layers;
    plain.heads = c->heads;
    plain.kv_heads = c->kv_heads;
    plain.head_dim = c->head_dim;
    plain.vocab = c->vocab;
    plain.intermediate = c->intermediate;
    plain.window = c->window;
    plain.experts = c->experts;
    plain.experts_used = c->experts_used;
    LK_TRY(lk_config_complete(&plain, where, err));
    for (int64_t i = 0; i < c->layers; i++)
        if ((plain.layer[i] ^ c->layer[i]) & LK_LAYER_NO_ROPE || (c->window && (plain.layer[i] ^ c->layer[i]) & LK_LAYER_LOCAL_ROPE))
            return lk_fail(err, LK_ERR_UNSUPPORTED,
                           "%s: layer %lld has another kind of attention than llama.cpp gives that layer of a %s model", where,
                           (long long)i, c->model_type);
    return LK_OK;
}

lk_status lk_gguf_check_config(const lk_config *c, const char *where, lk_error *err)
{
    const lk_gguf_family *f = lk_gguf_family_of(c->model_type);
    char known[300];
    lk_gguf_families(known, sizeof known);
    if (!f)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: no GGUF architecture is known for model_type %s (known: %s)", where, c->model_type,
                       known);
    LK_TRY(check_rope(&c->rope, c->head_dim, f->architecture, where, err));
    LK_TRY(check_layers(c, where, err));
    if (strcmp(f->architecture, "granite") && !built_in_scale(c, f->architecture))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: llama.cpp scales the attention of %s by 1/sqrt(head size), this model by %g", where,
                       f->architecture, c->attention_scale);
    if (!strcmp(f->architecture, "gemma2") && (c->attention_cap == 0 || c->logit_cap == 0))
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: llama.cpp caps a gemma2 model's scores at 50 and its logits at 30 where its file has no caps; this model has "
                       "none (attn_logit_softcapping or final_logit_softcapping is null)",
                       where);
    if (c->experts && c->experts_as_is)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: llama.cpp brings the chosen experts' weights to a sum of 1 (norm_topk_prob: false)",
                       where);
    if (c->experts && lk_mlp_width(c))
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: llama.cpp gives every layer of a %s model experts (mlp_only_layers and decoder_sparse_step are not for it)",
                       where, c->model_type);
    bool slides = false;
    for (int64_t i = 0; i < c->layers; i++) slides |= (c->layer[i] & LK_LAYER_SLIDES) != 0;
    if (c->window && slides && strncmp(f->architecture, "gemma", 5))
        lk_log(LK_LOG_WARN, "%s: llama.cpp attends to all positions of a %s model: texts longer than its window of %lld differ", where,
               c->model_type, (long long)c->window);
    return LK_OK;
}

static lk_status add_field(lk_gguf_writer *w, const char *key, const field *f, const lk_config *c, lk_error *err)
{
    const char *at = (const char *)c + f->offset;
    double number = 0;
    if (f->kind == WHOLE) {
        int64_t whole;
        memcpy(&whole, at, sizeof whole);
        return whole || f->required ? lk_gguf_add_u32(w, key, whole, err) : LK_OK;
    }
    if (f->kind == SINGLE) {
        float single;
        memcpy(&single, at, sizeof single);
        number = (double)single;
    } else {
        memcpy(&number, at, sizeof number);
    }
    return number != 0 || f->required ? lk_gguf_add_f32(w, key, number, err) : LK_OK;
}

static lk_status add_rope(lk_gguf_writer *w, const char *architecture, const lk_rotary *r, int64_t head_dim, lk_error *err)
{
    char key[128];
    key_of(key, architecture, "rope.dimension_count");
    LK_TRY(lk_gguf_add_u32(w, key, 2 * lk_rotary_pairs(r, head_dim), err));
    if (r->kind == LK_ROPE_LINEAR || r->kind == LK_ROPE_YARN) {
        key_of(key, architecture, "rope.scaling.type");
        LK_TRY(lk_gguf_add_string(w, key, r->kind == LK_ROPE_LINEAR ? "linear" : "yarn", err));
        key_of(key, architecture, "rope.scaling.factor");
        LK_TRY(lk_gguf_add_f32(w, key, r->factor, err));
    }
    if (r->kind == LK_ROPE_YARN || (r->kind == LK_ROPE_LONG && !strcmp(architecture, "phi3"))) {
        key_of(key, architecture, "rope.scaling.original_context_length");
        LK_TRY(lk_gguf_add_u32(w, key, (int64_t)r->original, err));
        key_of(key, architecture, "rope.scaling.attn_factor");
        double attention = (double)lk_rotary_factor(r);
        if (r->kind == LK_ROPE_LONG && attention != 1) LK_TRY(lk_gguf_add_f32(w, key, attention, err));
    }
    return LK_OK;
}

lk_status lk_gguf_add_config(lk_gguf_writer *w, const lk_config *c, lk_error *err)
{
    const lk_gguf_family *f = lk_gguf_family_of(c->model_type);
    char key[128];
    LK_TRY(lk_gguf_add_string(w, "general.architecture", f->architecture, err));
    for (int i = 0; i < N_FIELDS; i++) {
        if (!applies(&fields[i], f->architecture)) continue;
        key_of(key, f->architecture, fields[i].key);
        LK_TRY(add_field(w, key, &fields[i], c, err));
    }
    if (!strcmp(f->architecture, "granite") && c->logit_divisor == 0) { /* llama.cpp wants this one key, also where it says nothing */
        key_of(key, f->architecture, "logit_scale");
        LK_TRY(lk_gguf_add_f32(w, key, 1, err));
    }
    key_of(key, f->architecture, "attention.value_length");
    LK_TRY(lk_gguf_add_u32(w, key, c->head_dim, err));
    key_of(key, f->architecture, "vocab_size");
    LK_TRY(lk_gguf_add_u32(w, key, c->vocab, err));
    return add_rope(w, f->architecture, &c->rope, c->head_dim, err);
}

void lk_gguf_rope_divisors(lk_gguf_divisors *out, const lk_config *c)
{
    const lk_rotary *r = &c->rope;
    *out = (lk_gguf_divisors){.pairs = lk_rotary_pairs(r, c->head_dim)};
    if (r->kind == LK_ROPE_LLAMA3) {
        float scaled[LK_MAX_PAIRS], plain[LK_MAX_PAIRS];
        lk_rotary unscaled = *r;
        unscaled.kind = LK_ROPE_PLAIN;
        lk_rotary_frequencies(r, c->head_dim, 1, scaled);
        lk_rotary_frequencies(&unscaled, c->head_dim, 1, plain);
        out->n = 1;
        out->name[0] = "rope_freqs.weight";
        for (int64_t i = 0; i < out->pairs; i++) out->values[0][i] = plain[i] / scaled[i];
    }
    if (r->kind == LK_ROPE_LONG && strcmp(c->model_type, "phi3") != 0) {
        out->n = 1;
        out->name[0] = "rope_freqs.weight";
        memcpy(out->values[0], r->long_factor, (size_t)out->pairs * 4);
    } else if (r->kind == LK_ROPE_LONG) {
        out->n = 2;
        out->name[0] = "rope_factors_long.weight";
        out->name[1] = "rope_factors_short.weight";
        memcpy(out->values[0], r->long_factor, (size_t)out->pairs * 4);
        memcpy(out->values[1], r->short_factor, (size_t)out->pairs * 4);
    }
}

/* ---- reading ---- */

static lk_status read_field(const lk_gguf *g, const char *key, const field *f, lk_config *c, lk_error *err)
{
    char *at = (char *)c + f->offset;
    if (!f->required && !lk_gguf_key(g, key)) return LK_OK;
    if (f->kind == WHOLE) {
        int64_t whole;
        LK_TRY(lk_gguf_int(g, key, 0, INT32_MAX, &whole, err));
        memcpy(at, &whole, sizeof whole);
        return LK_OK;
    }
    double number;
    LK_TRY(lk_gguf_number(g, key, &number, err));
    if (number < 0 || number > 1e12) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is %g, which makes no sense", lk_gguf_path(g), key, number);
    float single = (float)number;
    memcpy(at, f->kind == SINGLE ? (const void *)&single : (const void *)&number, f->kind == SINGLE ? sizeof single : sizeof number);
    return LK_OK;
}

static lk_status read_divisors(const lk_gguf *g, const char *name, int64_t pairs, float *values, lk_error *err)
{
    const lk_gguf_tensor *t = lk_gguf_find(g, name);
    if (!t) return lk_fail(err, LK_ERR_NOT_FOUND, "%s: tensor %s is missing", lk_gguf_path(g), name);
    if (t->n_elements != pairs || pairs > LK_MAX_PAIRS)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: %s has %lld values, expected %lld", lk_gguf_path(g), name, (long long)t->n_elements,
                       (long long)pairs);
    lk_ggml_decode(t->type, t->data, 0, pairs, values);
    for (int64_t i = 0; i < pairs; i++)
        if (!(values[i] > 1e-6f && values[i] < 1e9f))
            return lk_fail(err, LK_ERR_FORMAT, "%s: %s: value %lld is %g, not a divisor", lk_gguf_path(g), name, (long long)i,
                           (double)values[i]);
    return LK_OK;
}

/* Divisors in the file are what longrope's two sets are; llama3's single set stands for both. */
static lk_status read_rope_tensors(const lk_gguf *g, lk_config *c, lk_error *err)
{
    lk_rotary *r = &c->rope;
    int64_t pairs = lk_rotary_pairs(r, c->head_dim);
    if (lk_gguf_find(g, "rope_freqs.weight")) {
        LK_TRY(read_divisors(g, "rope_freqs.weight", pairs, r->long_factor, err));
        memcpy(r->short_factor, r->long_factor, sizeof r->short_factor);
        r->original = (double)c->max_positions;
    } else if (lk_gguf_find(g, "rope_factors_long.weight")) {
        LK_TRY(read_divisors(g, "rope_factors_long.weight", pairs, r->long_factor, err));
        LK_TRY(read_divisors(g, "rope_factors_short.weight", pairs, r->short_factor, err));
    } else {
        return LK_OK;
    }
    r->kind = LK_ROPE_LONG;
    if (r->factor == 0) r->factor = 1;
    return LK_OK;
}

static lk_status read_rope(const lk_gguf *g, const char *architecture, lk_config *c, lk_error *err)
{
    char key[128];
    lk_rotary *r = &c->rope;
    int64_t dimensions = c->head_dim, original = c->max_positions;
    key_of(key, architecture, "rope.dimension_count");
    LK_TRY(lk_gguf_opt_int(g, key, 2, c->head_dim, &dimensions, err));
    if (dimensions < c->head_dim) r->partial = (double)dimensions / (double)c->head_dim;
    const char *type = "none";
    size_t size = 4;
    key_of(key, architecture, "rope.scaling.type");
    LK_TRY(lk_gguf_opt_string(g, key, &type, &size, err));
    bool linear = size == 6 && !memcmp(type, "linear", 6), yarn = size == 4 && !memcmp(type, "yarn", 4),
         plain = (size == 4 && !memcmp(type, "none", 4)) || (size == 8 && !memcmp(type, "longrope", 8));
    if (!linear && !yarn && !plain)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: %s is \"%.*s\"; none, linear, yarn and longrope are read", lk_gguf_path(g), key,
                       size > 40 ? 40 : (int)size, type);
    key_of(key, architecture, "rope.scaling.original_context_length");
    LK_TRY(lk_gguf_opt_int(g, key, 1, INT32_MAX, &original, err));
    r->original = (double)original;
    double attention = 1;
    key_of(key, architecture, "rope.scaling.attn_factor");
    LK_TRY(lk_gguf_opt_number(g, key, &attention, err));
    key_of(key, architecture, "rope.scaling.factor");
    if (linear || yarn) {
        LK_TRY(lk_gguf_number(g, key, &r->factor, err));
        if (!(r->factor >= 1e-3 && r->factor <= 1e6)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is %g", lk_gguf_path(g), key, r->factor);
        r->kind = linear ? LK_ROPE_LINEAR : LK_ROPE_YARN;
    }
    if (yarn) {
        r->high = 32;
        r->low = 1;
        attention *= 0.1 * log(r->factor) + 1;
    }
    if (attention != 1) r->attention_factor = attention;
    return read_rope_tensors(g, c, err);
}

/* Sizes that are not keys are shapes of tensors. */
static lk_status read_tensors(const lk_gguf *g, const lk_gguf_family *f, lk_config *c, lk_error *err)
{
    const lk_gguf_tensor *embedding = lk_gguf_find(g, "token_embd.weight");
    if (!embedding || embedding->n_dims != 2)
        return lk_fail(err, LK_ERR_NOT_FOUND, "%s: the matrix token_embd.weight is missing", lk_gguf_path(g));
    if (embedding->shape[0] > 1 << 24)
        return lk_fail(err, LK_ERR_FORMAT, "%s: a vocabulary of %lld", lk_gguf_path(g), (long long)embedding->shape[0]);
    c->vocab = embedding->shape[0];
    c->tied = !lk_gguf_find(g, "output.weight");
    if (strchr(f->biases, 'o')) c->o_bias = lk_gguf_find(g, "blk.0.attn_output.bias") != NULL;
    if (strchr(f->biases, 'q')) c->qkv_bias = lk_gguf_find(g, "blk.0.attn_q.bias") != NULL;
    if (strchr(f->biases, 'm')) c->mlp_bias = lk_gguf_find(g, "blk.0.ffn_up.bias") != NULL;
    return LK_OK;
}

static lk_status read_eos(const lk_gguf *g, lk_config *c, lk_error *err)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    int64_t id = -1;
    LK_TRY(lk_gguf_opt_int(g, "tokenizer.ggml.bos_token_id", 0, c->vocab - 1, &id, err));
    c->bos = (int32_t)id;
    for (int i = 0; i < 2; i++) {
        id = -1;
        LK_TRY(lk_gguf_opt_int(g, keys[i], 0, c->vocab - 1, &id, err));
        if (id >= 0 && (c->n_eos == 0 || c->eos[0] != id)) c->eos[c->n_eos++] = (int32_t)id;
    }
    return LK_OK;
}

static lk_status find_family(const lk_gguf *g, const lk_gguf_family **f, lk_error *err)
{
    const char *text;
    size_t size;
    char architecture[64], key[128], known[300];
    LK_TRY(lk_gguf_string(g, "general.architecture", &text, &size, err));
    snprintf(architecture, sizeof architecture, "%.*s", size > 60 ? 60 : (int)size, text);
    int64_t experts = 0;
    key_of(key, architecture, "expert_count");
    LK_TRY(lk_gguf_opt_int(g, key, 0, LK_MAX_EXPERTS, &experts, err));
    *f = lk_gguf_family_in(architecture, experts > 0);
    if (*f) return LK_OK;
    lk_gguf_families(known, sizeof known);
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: general.architecture is '%s'%s, which is not supported; supported are: %s",
                   lk_gguf_path(g), architecture, experts ? " with experts" : "", known);
}

lk_status lk_gguf_read_config(lk_config *c, const lk_gguf *g, lk_error *err)
{
    const lk_gguf_family *f;
    const char *type = "model";
    size_t size = 5;
    LK_TRY(lk_gguf_opt_string(g, "general.type", &type, &size, err));
    if (size != 5 || memcmp(type, "model", 5))
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: general.type is \"%.*s\": not a model", lk_gguf_path(g), size > 40 ? 40 : (int)size,
                       type);
    LK_TRY(find_family(g, &f, err));
    LK_TRY(lk_config_family(c, f->model_type, lk_gguf_path(g), err));
    c->window = 0;
    c->kv_heads = c->head_dim = 0;
    for (int i = 0; i < N_FIELDS; i++) {
        char key[128];
        if (!applies(&fields[i], f->architecture)) continue;
        key_of(key, f->architecture, fields[i].key);
        LK_TRY(read_field(g, key, &fields[i], c, err));
    }
    if (c->layers < 1 || c->layers > LK_MAX_LAYERS || c->heads < 1 || c->hidden < 1 || c->intermediate < 1 || c->max_positions < 1 ||
        c->heads > 65536 || c->kv_heads > 65536 || c->hidden > 1 << 24 || c->intermediate > 1 << 24 || c->head_dim > 2 * LK_MAX_PAIRS)
        return lk_fail(err, LK_ERR_FORMAT, "%s: layers %lld, heads %lld, hidden %lld, intermediate %lld: sizes that make no model",
                       lk_gguf_path(g), (long long)c->layers, (long long)c->heads, (long long)c->hidden, (long long)c->intermediate);
    if (c->kv_heads == 0) c->kv_heads = c->heads;
    if (c->head_dim == 0) c->head_dim = c->hidden / c->heads;
    if (c->head_dim < 2) return lk_fail(err, LK_ERR_FORMAT, "%s: heads of %lld numbers", lk_gguf_path(g), (long long)c->head_dim);
    if (scales_by_width(c, f->architecture)) c->attention_scale = 1 / sqrt((double)c->hidden / (double)c->heads);
    LK_TRY(read_tensors(g, f, c, err));
    LK_TRY(read_rope(g, f->architecture, c, err));
    LK_TRY(read_eos(g, c, err));
    return lk_config_complete(c, lk_gguf_path(g), err);
}
