/* What a backend is: a table of operations with the signatures of kernels/ops.h, and the few fields every backend has.
 *
 *     static const lk_ops my_ops = {.close = my_close, .alloc = my_alloc, ..., .linear = my_linear};
 *     typedef struct my_backend { lk_backend base; ... } my_backend;     -- base comes first, so pointers convert
 *
 * Only kernels/ and its backends include this; everyone else uses kernels/ops.h, whose functions (kernels/backend.c and
 * kernels/ops.c) check shapes and types before they call through the table. So an entry may trust its arguments, and reports
 * what else goes wrong in be->error (`return lk_fail(&be->error, ...)`). An empty entry is an operation that the backend does
 * not have: the caller gets LK_ERR_UNSUPPORTED. */
#ifndef LK_KERNELS_BACKEND_H
#define LK_KERNELS_BACKEND_H

#include "kernels/ops.h"

typedef struct lk_ops {
    void (*close)(lk_backend *be);
    lk_status (*use)(lk_backend *be); /* may be empty: any thread will do */
    lk_status (*loader_open)(lk_backend **loader, lk_backend *be, lk_error *err);
    lk_status (*loader_after)(lk_backend *loader, lk_backend *be); /* of be's table; may be empty: nothing is ever queued */
    lk_status (*alloc)(lk_backend *be, size_t bytes, void **out);
    void (*free)(lk_backend *be, void *p);
    lk_status (*upload)(lk_backend *be, void *device, const void *host, size_t bytes);
    lk_status (*download)(lk_backend *be, void *host, const void *device, size_t bytes);
    lk_status (*zero)(lk_backend *be, void *device, size_t bytes);
    lk_status (*copy)(lk_backend *be, void *device_to, const void *device_from, size_t bytes);
    lk_status (*sync)(lk_backend *be);
    size_t (*device_memory)(const lk_backend *be); /* empty: it has none of its own */
    lk_status (*host_alloc)(lk_backend *be, size_t bytes, void **out);
    void (*host_free)(lk_backend *be, void *p);
    lk_status (*transfer_begin)(lk_backend *be, int slot, void *to, const void *from, size_t bytes);
    lk_status (*transfer_wait)(lk_backend *be, int slot);
    lk_status (*all_reduce)(lk_backend *be, float *x, int64_t n); /* only called when there are ranks */
    size_t (*scratch_bytes)(const lk_backend *be, const lk_limits *limits);
    lk_status (*reserve)(lk_backend *be, const lk_limits *limits);

    lk_status (*matrix_create)(lk_backend *be, lk_matrix **out, const lk_matrix_source *source);
    void (*matrix_destroy)(lk_backend *be, lk_matrix *w);
    lk_status (*matrix_set)(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows);
    size_t (*matrix_bytes)(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested);
    const void *(*matrix_data)(const lk_matrix *w);
    void (*matrix_lend)(lk_backend *be, lk_matrix *w, void *data);
    lk_status (*linear)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                        const lk_tensor *residual);
    lk_status (*linear_backward)(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate);
    lk_status (*embed)(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids);
    lk_status (*embed_some)(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids);

    lk_status (*batch_begin)(lk_backend *be, const lk_batch *batch);     /* may be empty: nothing to mirror */
    lk_status (*step_begin)(lk_backend *be, uint64_t key, bool *queued); /* these three may be empty: nothing is recorded */
    lk_status (*step_end)(lk_backend *be);
    void (*step_forget)(lk_backend *be);
    lk_status (*lora_forward)(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_tensor *h, const lk_dropout *dropout);
    lk_status (*lora_backward)(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                               const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout);

    /* These four may be empty: then the operations they join run one after the other. linear_parts may find no segments. */
    lk_status (*linear_lora)(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                             const lk_matrix *w, const float *bias, const lk_tensor *residual, const lk_tensor *h,
                             const lk_dropout *dropout);
    lk_status (*linear_lora_backward)(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                      const lk_matrix *w, const lk_tensor *x, const lk_tensor *h, bool accumulate,
                                      const lk_dropout *dropout);
    lk_status (*linear_parts)(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                              const lk_dropout *dropout);
    int64_t (*row_gap)(const lk_backend *be, int64_t rank);

    lk_status (*drop)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout);
    lk_status (*add_columns)(lk_backend *be, float *sums, const lk_tensor *x, float by);
    lk_status (*weight_gradient)(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by);
    lk_status (*embed_backward)(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids);

    lk_status (*rmsnorm)(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps);
    lk_status (*rmsnorm_backward)(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                                  const float *rstd, bool accumulate);
    lk_status (*rope_table)(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor);
    lk_status (*rope)(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward);
    lk_status (*glu)(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act);
    lk_status (*glu_backward)(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                              const lk_tensor *up, lk_activation act);
    lk_status (*gain)(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual);
    lk_status (*gain_backward)(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                               const float *inverse_norm);
    lk_status (*gain_norms)(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m);
    /* May be empty: then gain for one segment after the other. */
    lk_status (*lora_gain)(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                           const lk_tensor *residual);
    lk_status (*clear)(lk_backend *be, const lk_tensor *y);
    lk_status (*add)(lk_backend *be, const lk_tensor *y, const lk_tensor *x);
    lk_status (*scale)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by);
    lk_status (*cap)(lk_backend *be, const lk_tensor *y, float cap);
    lk_status (*gather_rows)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows);

    lk_status (*moe_route)(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise);
    lk_status (*moe_route_backward)(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                    const lk_tensor *logits, bool normalise);
    lk_status (*moe_combine)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                             const lk_tensor *residual);
    lk_status (*moe_combine_backward)(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                      const lk_tensor *x, const int32_t *slots, const lk_tensor *weights);

    /* All of these or none. places begin with the slots. */
    size_t (*experts_bytes)(const lk_backend *be, int64_t experts);
    lk_status (*experts_fill)(lk_backend *be, void *table, const lk_matrix *const *w, int64_t experts);
    size_t (*moe_placing_bytes)(const lk_backend *be, int64_t slots, int64_t experts);
    lk_status (*moe_place)(lk_backend *be, int32_t *places, const int32_t *ids, int64_t tokens, int64_t k, int64_t experts);
    lk_status (*experts_linear)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_experts *w, int32_t *places,
                                bool by_token);
    lk_status (*moe_combine_placed)(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                                    const lk_tensor *residual);

    lk_status (*attention)(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                           const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
    lk_status (*attention_backward)(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                    const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                    const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
    size_t (*kv_page_bytes)(const lk_backend *be, const lk_kv_shape *shape);
    lk_status (*kv_create)(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape);
    void (*kv_destroy)(lk_backend *be, lk_kv *kv);
    lk_status (*kv_write)(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v);
    /* May be empty: then rope, rope and kv_write run one after the other. */
    lk_status (*rope_kv_write)(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, int64_t heads, const lk_tensor *q,
                               const lk_tensor *k, const lk_tensor *v, const lk_tensor *cos_sin);
    lk_status (*paged_attention)(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o,
                                 const lk_tensor *q, const lk_kv *kv, int32_t layer);

    lk_status (*linear_loss)(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap);
    lk_status (*linear_loss_trained)(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                                     const lk_matrix *head, const lk_head_part *part, const int32_t *labels, float grad_scale, float cap);
    lk_status (*sum_squares)(lk_backend *be, double *out, const float *x, int64_t n);
    lk_status (*adamw)(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step);
    lk_status (*adamw8)(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                        const lk_adamw_step *step);
    /* The first of these, or the other two. */
    lk_status (*sample)(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results);
    lk_status (*sample_begin)(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests);
    lk_status (*sample_end)(lk_backend *be, lk_sample_result *results);
} lk_ops;

struct lk_backend {
    const lk_ops *ops;
    lk_dtype compute, act;
    int threads;
    lk_ranks *ranks; /* borrowed, or NULL */
    char name[64];
    char about[320];
    lk_error error;                   /* of the last operation that failed */
    size_t allocated, allocated_peak; /* kept through lk_backend_account */
};

/* The first member of every backend's matrix and KV cache. */
struct lk_matrix {
    lk_dtype type;
    int64_t n, k;
};
struct lk_kv {
    lk_kv_shape shape;
    void *data; /* all pages */
    size_t page_bytes;
};

static inline void lk_backend_account(lk_backend *be, size_t taken, size_t given)
{
    be->allocated += taken;
    be->allocated -= given;
    if (be->allocated > be->allocated_peak) be->allocated_peak = be->allocated;
}

#endif
