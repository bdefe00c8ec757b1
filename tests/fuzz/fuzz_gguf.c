/* Any bytes as a GGUF file: an error, or keys and tensors that lie inside the file, all of which can be read and decoded. */
#include <stdlib.h>

#include "data/gguf.h"
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
    if (total > (int64_t)size || (sum == 1 && total < 0)) abort();
    lk_gguf_close(g);
    return 0;
}
