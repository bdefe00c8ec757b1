/* Any bytes as a GGUF file: an error, or keys and tensors that lie inside the file, all of which can be read and decoded; and then
 * a configuration, which can be said in a config.json or not, and a tokenizer, or an error. */
#include <stdlib.h>

#include "data/gguf.h"
#include "data/gguf_tokenizer.h"
#include "model/config_write.h"
#include "model/gguf_config.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED("GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    /* an array of strings, a float, one F32 tensor [1,2] */
    FUZZ_SEED("GGUF\3\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
              "\1\0\0\0\0\0\0\0a\011\0\0\0\010\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0x\0\0\0\0\0\0\0\0"
              "\1\0\0\0\0\0\0\0b\6\0\0\0\0\0\200\077"
              "\1\0\0\0\0\0\0\0t\2\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
              "\0\0\0\0"
              "\0\0\200\077\0\0\0@"),
    /* one Q8_0 tensor [32] */
    FUZZ_SEED("GGUF\3\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
              "\1\0\0\0\0\0\0\0t\1\0\0\0\040\0\0\0\0\0\0\0\010\0\0\0\0\0\0\0\0\0\0\0"
              "\0\0\0\0\0\0\0"
              "\0<ABCDEFGHIJKLMNOPQRSTUVWXYZ[\134]^_`"),
    /* a configuration; a byte-level tokenizer; a SentencePiece one */
    FUZZ_SEED("GGUF\3\0\0\0\1\0\0\0\0\0\0\0\011\0\0\0\0\0\0\000"
              "\024\0\0\0\0\0\0\0general.architecture\010\0\0\0\5\0\0\0\0\0\0\0llama"
              "\024\0\0\0\0\0\0\0llama.context_length\4\0\0\0\010\0\0\000"
              "\026\0\0\0\0\0\0\0llama.embedding_length\4\0\0\0\4\0\0\000"
              "\021\0\0\0\0\0\0\0llama.block_count\4\0\0\0\1\0\0\000"
              "\032\0\0\0\0\0\0\0llama.attention.head_count\4\0\0\0\1\0\0\000"
              "\031\0\0\0\0\0\0\0llama.feed_forward_length\4\0\0\0\4\0\0\000"
              "&\0\0\0\0\0\0\0llama.attention.layer_norm_rms_epsilon\6\0\0\0\254\305'7"
              "\027\0\0\0\0\0\0\0llama.rope.scaling.type\010\0\0\0\4\0\0\0\0\0\0\0yarn"
              "\031\0\0\0\0\0\0\0llama.rope.scaling.factor\6\0\0\0\0\0\0@"
              "\021\0\0\0\0\0\0\0token_embd.weight\2\0\0\0\4\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\000"
              "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\000"
              "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\000"),
    FUZZ_SEED("GGUF\3\0\0\0\0\0\0\0\0\0\0\0\6\0\0\0\0\0\0\000"
              "\024\0\0\0\0\0\0\0tokenizer.ggml.model\010\0\0\0\4\0\0\0\0\0\0\0gpt2"
              "\022\0\0\0\0\0\0\0tokenizer.ggml.pre\010\0\0\0\5\0\0\0\0\0\0\0qwen2"
              "\025\0\0\0\0\0\0\0tokenizer.ggml."
              "tokens\011\0\0\0\010\0\0\0\4\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0a\1\0\0\0\0\0\0\0b\2\0\0\0\0\0\0\0ab\3\0\0\0\0\0\0\0<x>"
              "\031\0\0\0\0\0\0\0tokenizer.ggml.token_type\011\0\0\0\5\0\0\0\4\0\0\0\0\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\3\0\0\000"
              "\025\0\0\0\0\0\0\0tokenizer.ggml.merges\011\0\0\0\010\0\0\0\1\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0a\040b"
              "\033\0\0\0\0\0\0\0tokenizer.ggml.eos_token_id\4\0\0\0\3\0\0\000"),
    FUZZ_SEED("GGUF\3\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0\0\0\0\000"
              "\024\0\0\0\0\0\0\0tokenizer.ggml.model\010\0\0\0\5\0\0\0\0\0\0\0llama"
              "\025\0\0\0\0\0\0\0tokenizer.ggml.tokens\011\0\0\0\010\0\0\0\7\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0<unk>\3\0\0\0\0\0\0\0<s>"
              "\4\0\0\0\0\0\0\0</s>\6\0\0\0\0\0\0\0<0x0A>\1\0\0\0\0\0\0\0a\1\0\0\0\0\0\0\0b\2\0\0\0\0\0\0\0ab"
              "\031\0\0\0\0\0\0\0tokenizer.ggml.token_"
              "type\011\0\0\0\5\0\0\0\7\0\0\0\0\0\0\0\2\0\0\0\3\0\0\0\3\0\0\0\6\0\0\0\1\0\0\0\1\0\0\0\1\0\0\000"
              "\025\0\0\0\0\0\0\0tokenizer.ggml.scores\011\0\0\0\6\0\0\0\7\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0@"
              "\300\0\0\0\300\0\0\200\277"),
};
FUZZ_MUTATOR(seeds)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    lk_error err = {0};
    lk_gguf *g;
    if (lk_gguf_open_memory(&g, data, size, "fuzz", &err)) return 0;
    double sum = 0;
    for (int64_t i = 0; i < lk_gguf_n_keys(g); i++) {
        const lk_gguf_value *v = lk_gguf_key_at(g, i);
        if (lk_gguf_key(g, v->key) != v) abort();
        for (int64_t k = 0; k < v->n; k++) {
            sum += v->texts ? (double)v->texts[k].n : (double)lk_gguf_item_int(v, k) + lk_gguf_item_number(v, k);
            for (size_t b = 0; v->texts && b < v->texts[k].n; b++) sum += v->texts[k].p[b];
        }
    }
    int64_t total = 0;
    for (int64_t i = 0; i < lk_gguf_count(g); i++) {
        const lk_gguf_tensor *t = lk_gguf_at(g, i);
        if (lk_gguf_find(g, t->name) != t) abort();
        for (int64_t first = 0; first < t->n_elements; first += 100) {
            float values[100];
            int64_t n = t->n_elements - first < 100 ? t->n_elements - first : 100;
            lk_ggml_decode(t->type, t->data, first, n, values);
            sum += (double)values[n - 1];
        }
        total += t->n_bytes;
    }
    lk_config config;
    lk_tokenizer *tk;
    cJSON *json;
    if (!lk_gguf_read_config(&config, g, &err) && !lk_config_json(&json, &config, "fuzz", &err)) cJSON_Delete(json);
    if (!lk_gguf_open_tokenizer(&tk, g, &err)) {
        sum += lk_tokenizer_size(tk);
        lk_tokenizer_close(tk);
    }
    if (total > (int64_t)size || (sum == 1 && total < 0)) abort();
    lk_gguf_close(g);
    return 0;
}
