/* Forward and backward of the whole model, written once against kernels/ops.h.
 *
 * Training, over packed documents:
 *
 *     lk_pass *pass;
 *     lk_pass_options options = {.max_tokens = 2048, .max_rank = 16, .kept_layers = 1, .training = true};
 *     LK_TRY(lk_pass_create(&pass, model, &options, err));
 *     LK_TRY(lk_pass_gradient(pass, &batch, labels, 1.0f / n_supervised, NULL, nll, err)); -- accumulates into the table's da, db
 *     LK_TRY(lk_pass_loss(pass, &batch, labels, nll, hits, err));                          -- evaluation
 *
 * Serving, over pages:
 *
 *     lk_infer *infer;
 *     LK_TRY(lk_infer_create(&infer, model, &(lk_infer_options){.max_tokens = 512, .max_rows = 64, .max_rank = 64}, err));
 *     LK_TRY(lk_infer_forward(infer, &batch, kv, rows, n_rows, &logits, err));
 *
 * All memory is taken at creation; lk_pass_plan and lk_infer_bytes say how much beforehand. One thread uses a pass or an infer at a
 * time; several may share a model (one thread at a time per backend). */
#ifndef LK_MODEL_TRANSFORMER_H
#define LK_MODEL_TRANSFORMER_H

#include "model/model.h"

typedef struct lk_pass lk_pass;

typedef struct lk_pass_options {
    int64_t max_tokens; /* rows of a micro-batch */
    int32_t max_rank;
    int64_t kept_layers; /* training: the last so many layers keep their activations (1..layers; a larger number means all); the others
                            keep their input alone and are recomputed in the backward. Every setting gives the same bits */
    bool offload;        /* training: those inputs wait in host memory, copied beside the computing, instead of on the device */
    bool training;       /* false: lk_pass_loss only */
    bool gains;          /* training: the adapter is a DoRA */
    bool dropped_gains;  /* and takes dropout */
    bool head;           /* the head is trained, or an adapter has factors on it */
} lk_pass_options;

typedef struct lk_pass_plan {
    size_t checkpoints; /* layer inputs on the device */
    size_t activations; /* of the layers that keep them */
    size_t transient;   /* gradients of activations, rope table, losses */
    size_t scratch;     /* reserved in the backend */
    size_t host;        /* layer inputs in host memory: with offload */
} lk_pass_plan;

void lk_pass_plan_bytes(const lk_backend *be, const lk_config *config, const lk_pass_options *options, lk_pass_plan *plan);
lk_status lk_pass_create(lk_pass **pass, const lk_model *model, const lk_pass_options *options, lk_error *err);
void lk_pass_destroy(lk_pass *pass);

/* Forward, loss and backward of one micro-batch. labels[t] is the token that row t must predict (already shifted), -1 = ignored.
 * grad_scale multiplies the gradient of the summed NLL (1 / supervised tokens of the whole step). Gradients accumulate into the batch's
 * lora table and tables. dropout NULL: none. nll[n_tokens] (host, 0 where ignored) is filled. Of dropout, the counter must differ for every
 * micro-batch. */
lk_status lk_pass_gradient(lk_pass *pass, const lk_batch *batch, const int32_t *labels, float grad_scale, const lk_dropout *dropout,
                           float *nll, lk_error *err);
/* Forward and loss. hits (host, may be NULL): 1 where the label is the arg max. */
lk_status lk_pass_loss(lk_pass *pass, const lk_batch *batch, const int32_t *labels, float *nll, uint8_t *hits, lk_error *err);
/* Logits of every row of a packed batch into out[n_tokens, V] host F32 (golden tests, `lorikeet logits`). */
lk_status lk_pass_logits(lk_pass *pass, const lk_batch *batch, float *out, lk_error *err);

typedef struct lk_infer lk_infer;

typedef struct lk_infer_options {
    int64_t max_tokens;  /* tokens of one step (the token budget) */
    int64_t max_rows;    /* rows whose logits are wanted in one step */
    int64_t max_context; /* longest sequence */
    int32_t max_rank;    /* largest rank any adapter may have */
    bool eager;          /* never record a step */
} lk_infer_options;

size_t lk_infer_bytes(const lk_backend *be, const lk_config *config, const lk_infer_options *options);
lk_status lk_infer_create(lk_infer **infer, const lk_model *model, const lk_infer_options *options, lk_error *err);
void lk_infer_destroy(lk_infer *infer);
/* One step over the mixed batch. rows[n_rows] are the rows whose logits are computed; *logits is [n_rows, V] F32 in backend memory, valid
 * until the next call. A row's logits are the same bits whatever else is in the batch. */
lk_status lk_infer_forward(lk_infer *infer, const lk_batch *batch, lk_kv *kv, const int32_t *rows, int64_t n_rows, lk_tensor *logits,
                           lk_error *err);
/* For who records steps before they are wanted (serve/warm.h). The rows that a recorded step of n tokens of decoding is
 * padded to; and the steps so far that were computed operation by operation where the backend records: each left a
 * recording, unless recording is turned off. */
int64_t lk_infer_padded(const lk_infer *infer, int64_t n);
int64_t lk_infer_recorded(const lk_infer *infer);
/* The KV shape for this model: pages of page_tokens, type F32 in F32 compute and BF16 in BF16 compute. */
lk_kv_shape lk_infer_kv_shape(const lk_model *model, int32_t page_tokens, int32_t n_pages);

#endif
