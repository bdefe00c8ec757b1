/* The entries of the tiers portable and up (kernels/cpu/table.c) that are not products with a frozen matrix. */
#ifndef LK_KERNELS_CPU_OPS_H
#define LK_KERNELS_CPU_OPS_H

#include "kernels/cpu/cpu.h"

/* Row t of an F32 view. */
static inline float *lk_row_of(const lk_tensor *x, int64_t t) { return (float *)x->data + t * x->stride; }

/* Rows of this width that are worth waking a thread for: about 16 K elements, some microseconds. */
static inline int64_t lk_cpu_grain(int64_t width)
{
    int64_t rows = 16384 / (width + 1);
    return rows > 1 ? rows : 1;
}

lk_status lk_cpu_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps);
lk_status lk_cpu_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                                  const float *rstd, bool accumulate);
lk_status lk_cpu_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor);
lk_status lk_cpu_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward);
lk_status lk_cpu_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act);
lk_status lk_cpu_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                              const lk_tensor *up, lk_activation act);
lk_status lk_cpu_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual);
lk_status lk_cpu_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm,
                               const float *inverse_norm);
lk_status lk_cpu_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m);
size_t lk_cpu_gain_scratch(const lk_backend *be, const lk_limits *limits);
lk_status lk_cpu_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids);
lk_status lk_cpu_clear(lk_backend *be, const lk_tensor *y);
lk_status lk_cpu_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x);
lk_status lk_cpu_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by);
lk_status lk_cpu_cap(lk_backend *be, const lk_tensor *y, float cap);
lk_status lk_cpu_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows);
lk_status lk_cpu_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise);
lk_status lk_cpu_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                    const lk_tensor *logits, bool normalise);
lk_status lk_cpu_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                             const lk_tensor *residual);
lk_status lk_cpu_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy,
                                      const lk_tensor *x, const int32_t *slots, const lk_tensor *weights);
lk_status lk_cpu_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step);
lk_status lk_cpu_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                        const lk_adamw_step *step);
lk_status lk_cpu_sum_squares(lk_backend *be, double *out, const float *x, int64_t n);

lk_status lk_cpu_drop(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout);
lk_status lk_cpu_add_columns(lk_backend *be, float *sums, const lk_tensor *x, float by);
lk_status lk_cpu_weight_gradient(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by);
lk_status lk_cpu_embed_backward(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids);
lk_status lk_cpu_matrix_set(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows);
lk_status lk_cpu_linear_loss_trained(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                                     const lk_matrix *head, const lk_head_part *part, const int32_t *labels, float grad_scale, float cap);
lk_status lk_cpu_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                             const int32_t *labels, float grad_scale, float cap);
lk_status lk_cpu_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                              const lk_tensor *h, const lk_dropout *dropout);
lk_status lk_cpu_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                               const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout);
lk_status lk_cpu_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                           const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
lk_status lk_cpu_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                    const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                    const lk_tensor *q, const lk_tensor *k, const lk_tensor *v);
lk_status lk_cpu_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o,
                                 const lk_tensor *q, const lk_kv *kv, int32_t layer);
lk_status lk_cpu_sample(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results);

/* Scratch of the larger ones for these limits. */
size_t lk_cpu_loss_scratch(const lk_backend *be, const lk_limits *limits);
size_t lk_cpu_weight_gradient_scratch(const lk_backend *be, const lk_limits *limits);
size_t lk_cpu_lora_scratch(const lk_backend *be, const lk_limits *limits);
size_t lk_cpu_attention_scratch(const lk_backend *be, const lk_limits *limits);
size_t lk_cpu_paged_scratch(const lk_backend *be, const lk_limits *limits);
size_t lk_cpu_sample_scratch(const lk_backend *be, const lk_limits *limits);

#endif
