/* Models in tests: a CPU backend and a model from a folder, golden tensors, and simple batches. */
#ifndef LK_TESTS_MODEL_H
#define LK_TESTS_MODEL_H

#include "base/json.h"
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

/* tests/golden/families.json and families.safetensors: json.cases[] of {name, config, tensors, runs, adapter}. cJSON_Delete and
 * lk_safetensors_close. */
cJSON *check_families(lk_safetensors **st);
/* The folder of such a case, its weights made by the rule. free(). */
char *check_family_folder(const cJSON *the_case);
/* The adapter of such a case: all linear layers, alpha twice the rank, factors by the rule. */
lk_adapter *check_family_adapter(const lk_model *model, int32_t rank);
/* The rule: out[n] of a name, base + spread * u with u in [-1, 1). */
void check_rule(const char *name, float *out, int64_t n, float base, float spread);

/* fp32 logits of every position of one document, in one pass, over a model folder or file with an adapter (or NULL); free(). n_out:
 * elements. */
float *check_pass_logits(const char *base, const char *adapter, lk_quant quant, const int32_t *ids, int64_t n, int64_t *n_out);

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
