/* A LoRA adapter: one flat vector of factors in backend memory, with a rank and a scale for every site.
 *
 *     lk_adapter *a;
 *     LK_TRY(lk_adapter_load(&a, model, "adapters/acme", LK_BF16, err));      -- a PEFT folder, for serving
 *     LK_TRY(lk_adapter_create(&a, model, &spec, seed, err));                  -- fresh, for training: A random, B zero, F32
 *     lk_adapter_destroy(a);
 *
 * Memory is exact for the ranks, up to that padding. The same object serves training (gradients and moments are flat vectors of the same
 * layout) and serving (lk_adapter_table builds the table that lk_lora_forward reads). Immutable once served. */
#ifndef LK_MODEL_ADAPTER_H
#define LK_MODEL_ADAPTER_H

#include "model/model.h"

struct lk_bundle_keys;
struct lk_peft;

typedef struct lk_adapter_site {
    int32_t rank;   /* 0: not adapted */
    int32_t frozen; /* so many of the rank, the last, are not trained: PiSSA's start, subtracted */
    float alpha, scale;
    int64_t n, k;  /* of the base matrix */
    int64_t a, b;  /* element offsets of A[R,K] and B[N,R] in the flat vector */
    bool stacked;  /* of stacked experts: one of as many slices of a parameter's factors (adapter_stacked.c) */
    bool shares_a; /* its A is the site's before it: up's, gate's */
    bool dora;
    bool own_bias;                      /* in place of the base's, which may have none; computed: in `extra` */
    bool trains_bias, trains_lora_bias; /* in training: the layer's bias [N] itself, and the one behind B [N] */
    int64_t bias_at, lora_bias_at;      /* of those two in the flat vector */
    int64_t m;                          /* with dora: of the magnitude [N] in the flat vector */
    int64_t gain, inverse_norm, bias;   /* offsets in `extra`: m/norm, 1/norm and the bias, [N] each */
} lk_adapter_site;

/* Factors on the embedding or the head; rank 0: none. */
typedef struct lk_table_factors {
    int32_t rank;
    float alpha, scale;
    int64_t a, b; /* in the flat vector: A[R,C] and B[V,R] of the head; A^T[V,R] and B[C,R] of the embedding */
} lk_table_factors;

/* What an adapter that is trained here has beside the factors of its sites and their biases (adapter_whole.c). */
typedef struct lk_adapter_whole {
    bool embedding, head; /* modules_to_save: whole new tables [V,C] */
    bool tied;            /* and the two are one */
    int64_t embedding_at, head_at;
    lk_table_factors embedding_factors, head_factors;
    int32_t n_tokens;  /* trainable_token_indices: rows [n_tokens,C] of the embedding, and of a tied head */
    int64_t tokens_at; /* in the flat vector, like all these */
} lk_adapter_whole;

typedef struct lk_adapter {
    const lk_model *model; /* borrowed */
    int32_t n_sites;       /* lk_sites of the model */
    lk_adapter_site *sites;
    int64_t n_params;
    int64_t n_decayed; /* of a trained one: the first so many take weight decay; behind them are biases */
    int32_t max_rank;
    lk_dtype type;   /* of the weights: F32, or BF16 for serving in BF16 compute */
    void *weights;   /* [n_params], backend memory; every A and B starts at a multiple of LK_ADAMW8_BLOCK elements */
    char digest[65]; /* SHA-256 of content: names, ranks, scales, factors */
    bool lent;       /* the weights' memory is not the adapter's own: lk_adapter_read */
    bool use_rslora;
    double dropout;
    lk_adapter_whole whole;
    /* What is more than factors, only on backends that have lk_gain: in memory of a loader of the adapter's own. Of an adapter that is
     * trained: of the model's backend, and computed from the flat vector (lk_adapter_refresh). */
    lk_backend *own;
    bool folded; /* what follows lies behind the factors instead, and there is no loader (lk_adapter_fold) */
    float *extra;
    int64_t n_extra;
    lk_matrix *embedding, *head, *embed_a, *embed_b, *token_rows; /* as lk_adapter_tables; NULL: none */
    lk_table_factors head_read; /* factors on the head of one that was read, its values in extra; rank 0: none */
    int32_t *token_ids;
    int32_t n_tokens;
    char values_digest[65]; /* of biases and tables; "" without */
} lk_adapter;

/* Which layers get which rank. Patterns are tried in order on the module path, PEFT's rule: (.*\.)?(PATTERN)$. */
typedef struct lk_adapter_pattern {
    const char *pattern;
    int32_t rank; /* 0: leave */
    double alpha; /* 0: leave */
} lk_adapter_pattern;

/* How training begins. DEFAULT as PEFT: A uniform in +-1/sqrt(K) (kaiming_uniform with a = sqrt 5), B zero. GAUSSIAN: A normal with
 * deviation 1/r. PISSA (Meng et al. 2024): A and B are the r principal components of the layer's weight as it is computed with, which the
 * base then lacks. Here the base stays what it is: the same components, frozen, are subtracted by a second half of the factors, so that
 * training starts from the base's own function. What is saved is the form PEFT converts such adapters to, of rank 2r, for the unchanged
 * base. */
typedef enum lk_adapter_init { LK_INIT_DEFAULT, LK_INIT_GAUSSIAN, LK_INIT_PISSA } lk_adapter_init;

typedef enum lk_bias_training { LK_BIAS_NONE, LK_BIAS_ALL, LK_BIAS_LORA_ONLY } lk_bias_training;

/* The last two groups as PEFT's LoraConfig has them, and with its meaning. */
typedef struct lk_adapter_spec {
    int32_t rank;
    double alpha;
    double dropout;
    bool use_rslora, use_dora;
    bool targets[LK_N_MODULES];
    const char *const *names; /* beside them: paths of linear layers or ends of paths, "layers.0.self_attn.q_proj" */
    int n_names;
    const char *expression; /* instead of them, or NULL: a regular expression that whole paths match */
    const lk_adapter_pattern *patterns;
    int n_patterns;
    lk_adapter_init init;
    /* PEFT's target_parameters: parameters or ends of their paths. "mlp.experts.gate_up_proj", "mlp.experts.down_proj": factors on stacked
     * experts, saved as PEFT saves them beside transformers 5. ".weight" of a linear layer is the layer. */
    const char *const *parameters;
    int n_parameters;
    const int32_t *layers; /* only these layers; n_layers 0: all */
    int n_layers;
    const char *const *exclude; /* names or ends of paths that are left out */
    int n_exclude;
    lk_bias_training bias; /* the base's own biases */
    bool lora_bias;
    bool target_embedding, target_head; /* factors on embed_tokens and lm_head */
    bool save_embedding, save_head;     /* modules_to_save: trained as a whole */
    bool tie_tables;                    /* ensure_weight_tying: a tied head stays tied */
    const int32_t *tokens;              /* trainable_token_indices */
    int n_tokens;
} lk_adapter_spec;

/* Parses "all-linear", or a list of module names, into targets; an unknown name is refused with the known ones. */
lk_status lk_adapter_targets(bool targets[LK_N_MODULES], const char *const *names, int n_names, const char *where, lk_error *err);

/* Values that one factor of rank x width takes, padding included. */
int64_t lk_adapter_factor(int64_t rank, int64_t width);
/* What a spec gives, for the plan. Refuses what lk_adapter_create would refuse for this model. */
typedef struct lk_adapter_sizes {
    int64_t n_params, n_trainable; /* with padding, and without */
    int32_t max_rank;
    size_t derived; /* bytes that lk_adapter_create takes from this backend beside the parameters */
    size_t scratch; /* and of its scratch, which the pass uses too: the larger of the two counts */
    bool gains;     /* a DoRA */
    bool dropped;   /* with dropout */
    bool head;      /* the head is trained, or has factors */
} lk_adapter_sizes;
lk_status lk_adapter_sizes_of(lk_adapter_sizes *sizes, const lk_backend *be, const lk_config *config, const lk_adapter_spec *spec,
                              lk_error *err);

/* Random numbers are drawn by Philox from the seed. */
lk_status lk_adapter_create(lk_adapter **a, const lk_model *model, const lk_adapter_spec *spec, uint64_t seed, lk_error *err);

/* From a PEFT folder or a bundle. Refuses an adapter whose layers or shapes are not the model's, and one stamped for another base
 * (identity); another quantisation of the same base is only logged. type: F32 or BF16 in memory. */
lk_status lk_adapter_load(lk_adapter **a, const lk_model *model, const char *path, lk_dtype type, lk_error *err);
/* The same, but only from a bundle that one of the keys signed (data/bundle.h). keys NULL: anything. */
lk_status lk_adapter_load_trusted(lk_adapter **a, const lk_model *model, const char *path, lk_dtype type, const struct lk_bundle_keys *keys,
                                  lk_error *err);
/* In two halves, for who has memory of their own (serving): the values come into host memory that `take` gives, laid out as the backend is
 * to have them and digested; room is taken for lk_adapter_image_bytes(a), the factors come first. take returns NULL when it has none.
 * a->weights is NULL until the caller has copied the values to the backend and points it there; that memory stays the caller's. On failure
 * *values may be set, for the caller to give back. */
typedef struct lk_host_memory {
    void *(*take)(void *context, size_t bytes);
    void *context;
} lk_host_memory;
lk_status lk_adapter_read(lk_adapter **a, void **values, const lk_model *model, const char *path, lk_dtype type,
                          const struct lk_bundle_keys *keys, const lk_host_memory *memory, lk_error *err);
/* Whether an adapter fits a model folder: modules, shapes, and the base it is stamped with. LK_OK, or why not. path: for messages. */
lk_status lk_adapter_fits(const struct lk_peft *peft, const char *path, const char *base, lk_error *err);
lk_status lk_adapter_save(const lk_adapter *a, const char *folder, lk_error *err); /* a PEFT folder, stamped; F32 adapters only */
void lk_adapter_destroy(lk_adapter *a);                                            /* NULL is fine */
size_t lk_adapter_bytes(const lk_adapter *a);                                      /* of the factors */
int32_t lk_adapter_head_rank(const lk_adapter *a);                                 /* of factors on the head, 0: none */

/* An adapter as one piece of memory that may be copied about, for who keeps many of them (serving): factors, gains, biases and tables, one
 * behind the other.
 *
 *     LK_TRY(lk_adapter_read(&a, &values, ...));     -- values has room for lk_adapter_image_bytes(a)
 *     LK_TRY(lk_adapter_fold(a, values, err));       -- and holds all of it
 *     ... copy it to `place` in the backend's memory ...
 *     lk_adapter_attach(a, place);                   -- the adapter is there; NULL: nowhere, until it is attached again
 *
 * What lies behind the factors is as the backend keeps it; a page of a KV cache is aligned well enough for it. */
size_t lk_adapter_image_bytes(const lk_adapter *a);
lk_status lk_adapter_fold(lk_adapter *a, void *image, lk_error *err);
void lk_adapter_attach(lk_adapter *a, void *place);
/* After the flat vector of an adapter that is trained changed: a DoRA's gains, biases, and the kernels' copies of tables, computed by the
 * model's backend. Does nothing for others. */
lk_status lk_adapter_refresh(lk_adapter *a, lk_error *err);
/* Weight decay by itself, of what takes any and is trained: times `by`. For adapters with frozen parts, which AdamW must leave alone; only
 * where activations are F32, and for adapters that were made here. */
lk_status lk_adapter_decay(lk_adapter *a, float by, lk_error *err);
/* Gradients, in the flat layout, of what is frozen become zero. Does nothing where nothing is. */
lk_status lk_adapter_mask(const lk_adapter *a, float *grads, lk_error *err);
lk_status lk_adapter_update_digest(lk_adapter *a, lk_error *err); /* after training changed the weights */

/* table[site * n_adapters + i] for adapters[i], as lk_batch.lora wants it. grads: flat gradient vectors parallel to adapters (NULL, or an
 * entry NULL: no gradients). */
void lk_adapter_table(lk_lora *table, const lk_adapter *const *adapters, int32_t n_adapters, float *const *grads);

/* tables[i] of adapters[i], as lk_batch.tables wants them. Returns NULL when none has any, else tables. */
const lk_adapter_tables *lk_adapter_fill_tables(lk_adapter_tables *tables, const lk_adapter *const *adapters, int32_t n_adapters);
/* The same of one adapter, with the places of its gradients in grads, a vector of the flat layout. */
const lk_adapter_tables *lk_adapter_train_tables(lk_adapter_tables *table, const lk_adapter *adapter, float *grads);

#endif
