/* Layers under adapters that are more than factors: DoRA, own biases, own embeddings and heads, and
 * the gradients of what of these is trained. Where no adapter of the batch is one, these
 * are the operations they are named after. A row's result does not depend on the other rows' adapters: each row goes through the same
 * operations whoever is beside it, only in fewer or more calls. Internal to model/. */
#ifndef LK_MODEL_ADAPTED_H
#define LK_MODEL_ADAPTED_H

#include "model/model.h"

/* No adapter of the batch is more than factors: which operations a step takes then follows from its shapes alone. */
bool lk_adapted_plain(const lk_batch *batch);

/* A DoRA that trains with dropout is PEFT's: W x + (g - 1) W drop(x) + g s B A drop(x), g = m / norm. It reads its input whole and dropped
 * and works in spare[0..LK_ADAPTED_SPARE), act [T, widest] each; elsewhere spare may be NULL. */
enum { LK_ADAPTED_SPARE = 3 };

/* lk_linear_lora of a site. */
lk_status lk_adapted_linear(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                            const lk_tensor *residual, const lk_tensor *h, const lk_tensor *spare, const lk_dropout *dropout);
/* lk_linear_parts: layers that read the same x. */
lk_status lk_adapted_parts(const lk_model *model, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                           const lk_tensor *spare, const lk_dropout *dropout);
/* lk_linear_lora_backward. spare[0] is for a DoRA's output before its gain, which is computed again. */
lk_status lk_adapted_backward(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                              const lk_tensor *x, const lk_tensor *h, const lk_tensor *spare, bool accumulate, const lk_dropout *dropout);

/* lk_embed of the batch's ids. spare [T,C] and h [T,R] are overwritten. */
lk_status lk_adapted_embed(const lk_model *model, const lk_batch *batch, const lk_tensor *y, const lk_tensor *spare, const lk_tensor *h);
/* Does an adapter of the batch train the embedding, factors on it or rows of it? Then this takes the gradient of what lk_adapted_embed
 * gave. spare [T,C] act and h [T,R] are overwritten. */
bool lk_adapted_trains_embedding(const lk_batch *batch);
lk_status lk_adapted_embed_backward(const lk_model *model, const lk_batch *batch, const lk_tensor *dy, const lk_tensor *spare,
                                    const lk_tensor *h);
/* y[n,V] = x[n,C] * head^T, where x's rows belong to the batch's rows rows[0..n), or first, first+1, ... when rows is NULL. h: at least n
 * rows [R] that are overwritten. */
lk_status lk_adapted_head(const lk_model *model, const lk_batch *batch, const lk_tensor *y, const lk_tensor *x, const int32_t *rows,
                          int64_t first, const lk_tensor *h);
/* lk_linear_loss over all rows of the batch, and the gradients of a head that is trained. dropout: of factors on the head, for rows that
 * are counted from the segment's first. */
lk_status lk_adapted_loss(const lk_model *model, const lk_batch *batch, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                          const int32_t *labels, float grad_scale, const lk_dropout *dropout);

#endif
