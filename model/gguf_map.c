#include "model/gguf_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LLAMA = 1,
    MIXTRAL = 2,
    QWEN2 = 4,
    QWEN3 = 8,
    QWEN3_MOE = 16,
    GEMMA2 = 32,
    GEMMA3 = 64,
    PHI3 = 128,
    OLMO2 = 256,
    GRANITE = 512,
    SMOLLM3 = 1024,
    GEMMAS = GEMMA2 | GEMMA3,
    ALL = 2047,
    SPLIT = ALL & ~PHI3, /* query, key, value and gate, up are layers of their own */
    DENSE = ALL & ~(MIXTRAL | QWEN3_MOE),
    PLAIN_NORMS = ALL & ~(GEMMAS | OLMO2), /* what the second norm of a block is called depends on where it stands */
};

static const lk_gguf_family families[] = {
    {"llama", "llama", LLAMA, true, false, "qkvom"},
    {"mistral", "llama", LLAMA, true, false, ""},
    {"mixtral", "llama", MIXTRAL, true, false, ""},
    {"qwen2", "qwen2", QWEN2, false, false, "qkv"},
    {"qwen3", "qwen3", QWEN3, false, false, ""},
    {"qwen3_moe", "qwen3moe", QWEN3_MOE, false, false, ""},
    {"gemma2", "gemma2", GEMMA2, false, true, ""},
    {"gemma3_text", "gemma3", GEMMA3, false, true, ""},
    {"phi3", "phi3", PHI3, false, false, ""},
    {"olmo2", "olmo2", OLMO2, false, false, ""},
    {"granite", "granite", GRANITE, true, false, "qkvom"},
    {"smollm3", "smollm3", SMOLLM3, true, false, ""},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* Without ".weight" and ".bias". An expert's number is written *; names of the same row for several families are several rows. */
static const struct tensor {
    const char *tensor, *name;
    unsigned families, how;
    char bias; /* the letter of lk_gguf_family.biases; 0: never */
} outer[] = {{"model.embed_tokens", "token_embd", ALL, 0, 0},
             {"model.norm", "output_norm", ALL, LK_GGUF_NORM, 0},
             {"lm_head", "output", ALL, 0, 0}},
  inner[] = {
      {"input_layernorm", "attn_norm", ALL & ~OLMO2, LK_GGUF_NORM, 0},
      {"self_attn.q_proj", "attn_q", SPLIT, LK_GGUF_ROWS_Q, 'q'},
      {"self_attn.k_proj", "attn_k", SPLIT, LK_GGUF_ROWS_K, 'k'},
      {"self_attn.v_proj", "attn_v", SPLIT, 0, 'v'},
      {"self_attn.qkv_proj", "attn_qkv", PHI3, 0, 0},
      {"self_attn.o_proj", "attn_output", ALL, 0, 'o'},
      {"self_attn.q_norm", "attn_q_norm", QWEN3 | QWEN3_MOE | GEMMA3 | OLMO2, LK_GGUF_NORM, 0},
      {"self_attn.k_norm", "attn_k_norm", QWEN3 | QWEN3_MOE | GEMMA3 | OLMO2, LK_GGUF_NORM, 0},
      {"post_attention_layernorm", "ffn_norm", PLAIN_NORMS, LK_GGUF_NORM, 0},
      {"post_attention_layernorm", "post_attention_norm", GEMMAS | OLMO2, LK_GGUF_NORM, 0},
      {"pre_feedforward_layernorm", "ffn_norm", GEMMAS, LK_GGUF_NORM, 0},
      {"post_feedforward_layernorm", "post_ffw_norm", GEMMAS | OLMO2, LK_GGUF_NORM, 0},
      {"mlp.gate_proj", "ffn_gate", SPLIT &DENSE, 0, 'm'},
      {"mlp.up_proj", "ffn_up", SPLIT &DENSE, 0, 'm'},
      {"mlp.gate_up_proj", "ffn_up", PHI3, 0, 0},
      {"mlp.down_proj", "ffn_down", DENSE, 0, 'm'},
      {"block_sparse_moe.gate", "ffn_gate_inp", MIXTRAL, LK_GGUF_KEEP_F32, 0},
      {"block_sparse_moe.experts.*.w1", "ffn_gate_exps", MIXTRAL, LK_GGUF_EXPERT, 0},
      {"block_sparse_moe.experts.*.w3", "ffn_up_exps", MIXTRAL, LK_GGUF_EXPERT, 0},
      {"block_sparse_moe.experts.*.w2", "ffn_down_exps", MIXTRAL, LK_GGUF_EXPERT, 0},
      {"mlp.gate", "ffn_gate_inp", QWEN3_MOE, LK_GGUF_KEEP_F32, 0},
      {"mlp.experts.*.gate_proj", "ffn_gate_exps", QWEN3_MOE, LK_GGUF_EXPERT, 0},
      {"mlp.experts.*.up_proj", "ffn_up_exps", QWEN3_MOE, LK_GGUF_EXPERT, 0},
      {"mlp.experts.*.down_proj", "ffn_down_exps", QWEN3_MOE, LK_GGUF_EXPERT, 0},
};
enum { N_OUTER = sizeof outer / sizeof *outer, N_INNER = sizeof inner / sizeof *inner };

const lk_gguf_family *lk_gguf_family_of(const char *model_type)
{
    for (int i = 0; i < N_FAMILIES; i++)
        if (!strcmp(families[i].model_type, model_type)) return &families[i];
    return NULL;
}

const lk_gguf_family *lk_gguf_family_in(const char *architecture, bool experts)
{
    for (int i = 0; i < N_FAMILIES; i++) /* of those that share an architecture the first is the plain one */
        if (!strcmp(families[i].architecture, architecture) && ((families[i].bit & (MIXTRAL | QWEN3_MOE)) != 0) == experts)
            return &families[i];
    return NULL;
}

void lk_gguf_families(char *out, size_t size)
{
    *out = 0;
    for (int i = 0; i < N_FAMILIES; i++) {
        if (i && !strcmp(families[i].architecture, families[i - 1].architecture)) continue;
        size_t n = strlen(out);
        snprintf(out + n, size - n, "%s%s", i ? ", " : "", families[i].architecture);
    }
}

/* Splits "model.layers.3.REST" or "blk.3.REST"; the layer is -1 for other names. */
static const char *split_layer(const char *name, const char *prefix, int64_t *layer)
{
    *layer = -1;
    size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) || name[n] < '0' || name[n] > '9') return name;
    char *rest;
    long long number = strtoll(name + n, &rest, 10);
    if (*rest != '.' || rest - (name + n) > 6) return name;
    *layer = number;
    return rest + 1;
}

/* Cuts ".weight" or ".bias" off into stem; false for other endings. */
static bool split_kind(const char *name, char *stem, size_t size, bool *bias)
{
    const char *dot = strrchr(name, '.');
    if (!dot || (size_t)(dot - name) >= size) return false;
    *bias = !strcmp(dot, ".bias");
    if (!*bias && strcmp(dot, ".weight")) return false;
    memcpy(stem, name, (size_t)(dot - name));
    stem[dot - name] = 0;
    return true;
}

/* Does text equal pattern, in which * is a number? */
static bool matches(const char *pattern, const char *text, int32_t *number)
{
    *number = -1;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (*text++ != *pattern) return false;
            continue;
        }
        char *end;
        if (*text < '0' || *text > '9') return false;
        long value = strtol(text, &end, 10);
        if (end - text > 6) return false;
        *number = (int32_t)value;
        text = end;
    }
    return !*text;
}

static bool has_bias(const lk_gguf_family *f, const struct tensor *t) { return t->bias && strchr(f->biases, t->bias); }

static unsigned transforms(const lk_gguf_family *f, const struct tensor *t)
{
    unsigned how = t->how;
    if (!f->permutes) how &= ~(unsigned)(LK_GGUF_ROWS_Q | LK_GGUF_ROWS_K);
    if (!f->plus_one) how &= ~(unsigned)LK_GGUF_NORM;
    return how;
}

bool lk_gguf_place_of(lk_gguf_place *place, const lk_gguf_family *f, const char *tensor)
{
    char stem[200];
    *place = (lk_gguf_place){.expert = -1};
    if (!split_kind(tensor, stem, sizeof stem, &place->bias)) return false;
    const char *rest = split_layer(stem, "model.layers.", &place->layer), *kind = place->bias ? "bias" : "weight";
    bool within = place->layer >= 0;
    for (int i = 0; i < (within ? N_INNER : N_OUTER); i++) {
        const struct tensor *t = within ? &inner[i] : &outer[i];
        if (!(t->families & f->bit) || (place->bias && !has_bias(f, t)) || !matches(t->tensor, rest, &place->expert)) continue;
        place->how = transforms(f, t);
        if (within)
            snprintf(place->name, sizeof place->name, "blk.%lld.%s.%s", (long long)place->layer, t->name, kind);
        else
            snprintf(place->name, sizeof place->name, "%s.%s", t->name, kind);
        return true;
    }
    return false;
}

static void write_name(char *out, size_t size, const struct tensor *t, int64_t layer, int32_t expert, const char *kind)
{
    char path[100];
    const char *star = strchr(t->tensor, '*');
    if (star)
        snprintf(path, sizeof path, "%.*s%d%s", (int)(star - t->tensor), t->tensor, expert, star + 1);
    else
        snprintf(path, sizeof path, "%s", t->tensor);
    if (layer >= 0)
        snprintf(out, size, "model.layers.%lld.%s.%s", (long long)layer, path, kind);
    else
        snprintf(out, size, "%s.%s", path, kind);
}

bool lk_gguf_tensor_of(char *tensor, size_t size, lk_gguf_place *place, const lk_gguf_family *f, const char *name, int32_t expert)
{
    char stem[64];
    *place = (lk_gguf_place){.expert = -1};
    snprintf(place->name, sizeof place->name, "%s", name);
    if (!split_kind(name, stem, sizeof stem, &place->bias)) return false;
    const char *rest = split_layer(stem, "blk.", &place->layer);
    bool within = place->layer >= 0;
    for (int i = 0; i < (within ? N_INNER : N_OUTER); i++) {
        const struct tensor *t = within ? &inner[i] : &outer[i];
        if (!(t->families & f->bit) || (place->bias && !has_bias(f, t)) || strcmp(t->name, rest)) continue;
        place->how = transforms(f, t);
        if (t->how & LK_GGUF_EXPERT) place->expert = expert;
        write_name(tensor, size, t, place->layer, expert, place->bias ? "bias" : "weight");
        return true;
    }
    return false;
}
