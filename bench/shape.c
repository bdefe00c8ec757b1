#include "bench/shape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/safetensors.h"
#include "model/sites.h"
#include "kernels/philox.h"
#include "model/config.h"

static const struct {
    const char *name;
    int64_t hidden, layers, heads, kv_heads, ffn, vocab;
} shapes[] = {{"100m", 768, 12, 12, 4, 2048, 32000}, {"1b", 2048, 16, 32, 8, 8192, 32000}};

static lk_status write_tensor(lk_st_writer *w, int pass, const char *name, int64_t rows, int64_t cols, uint64_t *seed, lk_error *err)
{
    int64_t shape[2] = {rows, cols};
    if (pass == 0) return lk_st_writer_declare(w, name, LK_BF16, cols ? 2 : 1, shape, err);
    int64_t n = rows * (cols ? cols : 1);
    uint16_t *values = malloc((size_t)n * 2);
    if (!values) return lk_fail(err, LK_ERR_MEMORY, "no memory for %s", name);
    lk_philox_key key = lk_philox_key_make(++*seed, 0);
    uint32_t word[4];
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) lk_philox(key, 0, (uint64_t)i, word);
        /* Norm weights near one; the rest as a trained model's size: +-0.035, standard deviation 0.02. */
        float u = lk_philox_uniform(word[i % 4]) * 2.0f - 1.0f;
        values[i] = lk_f32_to_bf16(cols ? u * 0.035f : 1.0f + 0.1f * u);
    }
    lk_status status = lk_st_writer_write(w, values, (size_t)n * 2, err);
    free(values);
    return status;
}

static lk_status write_weights(const char *folder, const lk_config *c, lk_error *err)
{
    lk_st_writer *w;
    LK_TRY(lk_st_writer_create(&w, folder, "model", 0, err));
    lk_status status = LK_OK;
    for (int pass = 0; pass < 2 && !status; pass++) {
        uint64_t seed = 0;
        status = write_tensor(w, pass, "model.embed_tokens.weight", c->vocab, c->hidden, &seed, err);
        for (int64_t l = 0; l < c->layers && !status; l++) {
            char name[300], path[200];
            snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)l);
            status = write_tensor(w, pass, name, c->hidden, 0, &seed, err);
            snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)l);
            if (!status) status = write_tensor(w, pass, name, c->hidden, 0, &seed, err);
            for (int32_t s = 0; s < lk_layer_sites(c, l) && !status; s++) {
                int32_t number = lk_layer_first_site(c, l) + s;
                lk_site site = lk_site_at(c, number);
                lk_site_path(path, sizeof path, c, number);
                snprintf(name, sizeof name, "%s.weight", path);
                status = write_tensor(w, pass, name, site.n, site.k, &seed, err);
            }
        }
        if (!status) status = write_tensor(w, pass, "model.norm.weight", c->hidden, 0, &seed, err);
    }
    if (!status) return lk_st_writer_commit(w, err);
    lk_st_writer_abort(w);
    return status;
}

static lk_status write_tokenizer(const char *folder, lk_error *err)
{
    char from[4096], to[4096];
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) { /* any tokenizer will do: random weights answer nothing sensible */
        LK_TRY(lk_path_join(from, sizeof from, "recipes/demo/base", names[i], err));
        LK_TRY(lk_path_join(to, sizeof to, folder, names[i], err));
        char *text;
        size_t size;
        LK_TRY(lk_file_read(from, 64 << 20, &text, &size, err));
        lk_status status = lk_file_replace(to, text, size, err);
        free(text);
        LK_TRY(status);
    }
    return LK_OK;
}

lk_status bench_shape_folder(char *path, size_t size, const char *name, lk_error *err)
{
    snprintf(path, size, "bench-models/%s", name);
    char file[4096];
    LK_TRY(lk_path_join(file, sizeof file, path, "config.json", err));
    if (lk_path_exists(file)) return LK_OK;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name)) continue;
        lk_config c = {.hidden = shapes[i].hidden,
                       .layers = shapes[i].layers,
                       .heads = shapes[i].heads,
                       .kv_heads = shapes[i].kv_heads,
                       .intermediate = shapes[i].ffn,
                       .vocab = shapes[i].vocab,
                       .head_dim = shapes[i].hidden / shapes[i].heads};
        LK_TRY(lk_folder_create(path, err));
        LK_TRY(write_weights(path, &c, err));
        LK_TRY(write_tokenizer(path, err));
        char text[1024];
        int n =
            snprintf(text, sizeof text,
                     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": %lld, \"intermediate_size\": "
                     "%lld, \"num_hidden_layers\": %lld, "
                     "\"num_attention_heads\": %lld, \"num_key_value_heads\": %lld, \"vocab_size\": %lld, \"max_position_embeddings\": "
                     "4096, \"rms_norm_eps\": 1e-05, "
                     "\"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
                     (long long)c.hidden, (long long)c.intermediate, (long long)c.layers, (long long)c.heads, (long long)c.kv_heads,
                     (long long)c.vocab);
        return lk_file_replace(file, text, (size_t)n, err);
    }
    return lk_fail(err, LK_ERR_ARGUMENT, "no shape is called '%s' (100m, 1b)", name);
}
