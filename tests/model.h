/* Models in tests: a CPU backend and a model from a folder, golden tensors, and simple batches. */
#ifndef LK_TESTS_MODEL_H
#define LK_TESTS_MODEL_H

#include "data/safetensors.h"
#include "model/adapter.h"
#include "model/transformer.h"
#include "tests/check.h"

typedef struct check_model {
    lk_backend *be;
    lk_model *model;
} check_model;

/* tier NULL: the best. Fails the test when it cannot be opened. */
check_model check_model_open(const char *folder, lk_quant quant, lk_dtype compute, int threads, const char *tier);
/* On any backend. */
check_model check_model_open_on(const char *folder, lk_quant quant, const lk_backend_options *options);
void check_model_close(check_model *m);

/* A model folder of random bf16 weights (Llama, tied head) for the shape: hidden, layers, heads, kv_heads, head_dim, intermediate, vocab.
 * No tokenizer. Returns its path; free(). */
char *check_random_model(const char *name, const lk_config *shape);

/* A tensor of a golden file as float or int32 (I64 narrowed); free(). n (may be NULL): elements. Fails the test when missing. */
float *check_floats(const lk_safetensors *st, const char *name, int64_t *n);
int32_t *check_ints(const lk_safetensors *st, const char *name, int64_t *n);

/* One document of T tokens: positions and boundaries point into the struct's own memory. */
typedef struct check_batch {
    lk_batch batch;
    int32_t *positions;
    int32_t doc_starts[2];
    lk_segment segment;
    lk_lora *table;
    lk_adapter_tables tables;
} check_batch;
void check_batch_init(check_batch *b, const int32_t *ids, int64_t n);
/* All rows on one adapter; grads may be NULL. */
void check_batch_adapter(check_batch *b, const lk_adapter *adapter, float *grads);
void check_batch_free(check_batch *b);

#endif
