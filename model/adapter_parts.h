/* What a PEFT adapter says about one model, checked against its configuration: which module belongs to which site, and what it puts in the
 * place of the embedding, the head and biases. Loading for serving and merging read adapters through this. Internal to model/. */
#ifndef LK_MODEL_ADAPTER_PARTS_H
#define LK_MODEL_ADAPTER_PARTS_H

#include "data/peft.h"
#include "model/config.h"

/* Which part of a module's factors is a site's, where the module is of stacked experts. */
typedef struct lk_adapter_slice {
    int32_t expert; /* -1: all */
    int64_t row;    /* the first of B */
    bool turned;    /* as older PEFT had it: A and B are of the transposed matrix */
} lk_adapter_slice;

typedef struct lk_adapter_parts {
    const lk_peft *peft;
    const lk_peft_module **sites; /* [lk_sites]: NULL where nothing is adapted */
    lk_adapter_slice *slices;     /* [lk_sites] */
    const lk_st_tensor **biases;  /* [lk_sites]: values in place of the base's; NULL: its own */
    const lk_peft_module *embedding_lora, *head_lora;
    const lk_st_tensor *embedding, *head; /* whole new values; NULL: the base's */
    const lk_peft_value *embedding_tokens, *head_tokens;
    const lk_st_tensor *embedding_base, *head_base; /* the base's own, as the adapter knew them, when it says so */
    bool unties; /* the base ties its head to its embedding, and this adapter gives the two different values */
} lk_adapter_parts;

/* Everything the adapter holds has a place, or it is refused: LK_ERR_MISMATCH for what does not fit this model, LK_ERR_UNSUPPORTED, naming
 * the field, for what no model here computes. where: the adapter's path; base: the model's name. Borrows the peft. */
lk_status lk_adapter_parts_find(lk_adapter_parts *parts, const lk_peft *peft, const lk_config *config, const char *where, const char *base,
                                lk_error *err);
void lk_adapter_parts_free(lk_adapter_parts *parts);

/* rows[n,hidden] of the embedding, numbers first..: the base's values in, this adapter's out. */
lk_status lk_adapter_embedding_rows(const lk_adapter_parts *parts, const lk_config *config, int64_t first, int64_t n, float *rows,
                                    lk_error *err);
/* The same of the head. For a tied head, rows holds the embedding's. */
lk_status lk_adapter_head_rows(const lk_adapter_parts *parts, const lk_config *config, int64_t first, int64_t n, float *rows,
                               lk_error *err);
/* a[R,K] and b[N,R] of an adapted site (adapter_stacked.c). */
lk_status lk_adapter_factors(const lk_adapter_parts *parts, int32_t site, int64_t n, int64_t k, float *a, float *b, lk_error *err);
/* w[N,K] += scale * B A of an adapted site, and DoRA's rescaling of rows where it has a magnitude. Row by row on the pool's threads. */
struct lk_pool;
lk_status lk_adapter_add_delta(const lk_adapter_parts *parts, int32_t site, float *w, int64_t n, int64_t k, struct lk_pool *pool,
                               lk_error *err);
/* bias[N] of a site: the base's value in (0 where it has none), this adapter's out. *given: the adapter changes it. */
lk_status lk_adapter_bias(const lk_adapter_parts *parts, int32_t site, int64_t n, float *bias, bool *given, lk_error *err);

#endif
