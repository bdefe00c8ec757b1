/* What each family means where its config.json is silent, in one table: reading a row beside llama's says what differs. */
#include "model/families.h"

#include <stdio.h>
#include <string.h>

static const lk_family families[] = {
    {.model_type = "llama", .reads = LK_READS_BIAS},
    {.model_type = "mistral", .window = LK_WINDOW_ALL, .sliding = 4096},
    {.model_type = "qwen2", .qkv_bias = true, .window = LK_WINDOW_UPPER, .sliding = 4096},
    {.model_type = "qwen3", .reads = LK_READS_ATTENTION_BIAS, .qk_norm = LK_QK_HEADS, .window = LK_WINDOW_UPPER, .sliding = 4096},
    {.model_type = "gemma2",
     .reads = LK_READS_ATTENTION_BIAS | LK_READS_CAPS | LK_READS_SCALAR,
     .defaults = &(lk_family_shape){.heads = 8, .kv_heads = 4, .head_dim = 256, .positions = 8192},
     .tied = true,
     .norms = LK_NORMS_BOTH,
     .norm_plus_one = true,
     .activation = LK_GELU_TANH,
     .embedding_root = true,
     .attention_cap = 50.0,
     .logit_cap = 30.0,
     .window = LK_WINDOW_PATTERN,
     .sliding = 4096,
     .pattern = 2},
    {.model_type = "gemma3_text",
     .reads = LK_READS_ATTENTION_BIAS | LK_READS_LOGIT_CAP | LK_READS_SCALAR,
     .defaults = &(lk_family_shape){.heads = 8, .kv_heads = 4, .head_dim = 256, .positions = 131072, .vocab = 262208},
     .tied = true,
     .norms = LK_NORMS_BOTH,
     .norm_plus_one = true,
     .qk_norm = LK_QK_HEADS,
     .activation = LK_GELU_TANH,
     .embedding_root = true,
     .theta = 1e6,
     .local_theta = 1e4,
     .window = LK_WINDOW_PATTERN,
     .sliding = 4096,
     .pattern = 6},
    {.model_type = "phi3", .eps = 1e-5, .fused = true, .window = LK_WINDOW_ALL, .only_long = true, .original = 4096},
    {.model_type = "olmo2", .reads = LK_READS_ATTENTION_BIAS, .eps = 1e-5, .norms = LK_NORMS_AFTER, .qk_norm = LK_QK_WHOLE},
    {.model_type = "granite", .reads = LK_READS_BIAS | LK_READS_MULTIPLIERS},
    {.model_type = "smollm3", .reads = LK_READS_BIAS | LK_READS_NO_ROPE, .tied = true, .theta = 2e6, .window = LK_WINDOW_NO_ROPE},
    {.model_type = "mixtral",
     .reads = LK_READS_EXPERTS,
     .eps = 1e-5,
     .theta = 1e6,
     .window = LK_WINDOW_ALL,
     .experts = &(lk_family_experts){.count_key = "num_local_experts", .count = 8, .used = 2, .numbers = true}},
    {.model_type = "qwen3_moe",
     .reads = LK_READS_ATTENTION_BIAS | LK_READS_EXPERTS,
     .qk_norm = LK_QK_HEADS,
     .window = LK_WINDOW_ASKED,
     .sliding = 4096,
     .experts = &(lk_family_experts){.count_key = "num_experts", .count = 128, .used = 8, .width_key = "moe_intermediate_size"}},
};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static const lk_family_whole wholes[] = {
    {"gemma3", "gemma3_text", "Gemma3ForCausalLM"},
    {"mistral3", "mistral", "MistralForCausalLM"},
};

/* Known by name, so that the refusal can say that they are on the list: attention sinks and MXFP4, blocks that are not attention, layers
 * that share keys. */
static const char *const later[] = {"gpt_oss", "qwen3_next", "jamba", "falcon_h1", "granitemoehybrid", "bamba",
                                    "zamba2",  "nemotron_h", "lfm2",  "mamba",     "mamba2",           "gemma3n"};

static void list(char *out, size_t size)
{
    *out = 0;
    for (int i = 0; i < N_FAMILIES; i++) snprintf(out + strlen(out), size - strlen(out), "%s%s", i ? ", " : "", families[i].model_type);
    for (size_t i = 0; i < sizeof wholes / sizeof *wholes; i++)
        snprintf(out + strlen(out), size - strlen(out), ", the text of %s", wholes[i].model_type);
}

const lk_family_whole *lk_family_whole_of(const char *model_type)
{
    for (size_t i = 0; i < sizeof wholes / sizeof *wholes; i++)
        if (!strcmp(wholes[i].model_type, model_type)) return &wholes[i];
    return NULL;
}

lk_status lk_family_find(const lk_family **out, const char *model_type, const char *where, lk_error *err)
{
    char known[400];
    for (int i = 0; i < N_FAMILIES; i++) {
        if (strcmp(families[i].model_type, model_type)) continue;
        *out = &families[i];
        return LK_OK;
    }
    list(known, sizeof known);
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (!strcmp(later[i], model_type))
            return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model_type '%s' is not yet supported; supported are: %s", where, model_type,
                           known);
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: model_type '%.60s' is not supported; supported are: %s", where, model_type, known);
}
