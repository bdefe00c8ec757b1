/* Attention within documents: cuDNN's fused attention where it takes the shape, the module's own kernels elsewhere.
 *
 * The choice depends on the device, the heads, the window, the soft cap (never cuDNN) and whether rows are aligned: never on the documents
 * of a batch, so that a document gives the same bits in every company. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.h"

static bool aligned(const lk_tensor *t) { return (uintptr_t)t->data % 16 == 0 && t->stride % 8 == 0; }

static bool all_aligned(const lk_attention_call *c)
{
    const lk_tensor *all[] = {c->q, c->k, c->v, c->o, c->dout, c->dq, c->dk, c->dv};
    for (int i = 0; i < 8; i++)
        if (all[i] && !aligned(all[i])) return false;
    return true;
}

static lk_sdpa_shape sdpa_shape(const lk_attention_shape *s)
{
    return (lk_sdpa_shape){s->heads, s->kv_heads, s->head_dim, s->scale, s->window};
}

static bool takes_sdpa(lk_cuda *cu, const lk_attention_call *c)
{
    lk_sdpa_shape shape = sdpa_shape(c->shape);
    return cu->sdpa && c->shape->cap == 0.0f && all_aligned(c) && lk_sdpa_supports(cu->sdpa, &shape);
}

static lk_sdpa_rows rows_of(const lk_tensor *t) { return (lk_sdpa_rows){t->data, t->stride}; }

static lk_sdpa_docs docs_of(const lk_batch *batch)
{
    lk_sdpa_docs docs = {batch->n_docs, batch->n_tokens, 0, batch->doc_starts};
    for (int64_t d = 0; d < batch->n_docs; d++) {
        int64_t length = batch->doc_starts[d + 1] - batch->doc_starts[d];
        if (length > docs.longest) docs.longest = length;
    }
    return docs;
}

static size_t sdpa_bytes(const lk_cuda *cu, const lk_sdpa_shape *shape, int64_t tokens, bool training)
{
    return cu->sdpa && lk_sdpa_supports(cu->sdpa, shape) ? lk_sdpa_workspace_bytes(cu->sdpa, shape, tokens, training) : 0;
}

/* All of the scratch, once it is known to hold what was planned for so many tokens: how much cuDNN takes depends on the documents, too. */
static lk_status workspace(lk_backend *be, const char *op, const lk_sdpa_shape *shape, int64_t tokens, bool training, void **out,
                           size_t *bytes)
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_cuda_scratch(be, op, sdpa_bytes(cu, shape, tokens, training), out));
    *bytes = cu->scratch_bytes;
    return LK_OK;
}

size_t lk_cuda_attention_scratch(const lk_cuda *cu, const lk_limits *limits)
{
    if (limits->heads < 1 || limits->kv_heads < 1 || limits->head_dim < 1) return 0;
    /* The window is not among the limits; plans with one and without may differ. */
    lk_sdpa_shape all = {limits->heads, limits->kv_heads, limits->head_dim, 1.0f, 0}, windowed = all;
    windowed.window = limits->tokens > 1 ? limits->tokens / 2 : 1;
    size_t bytes = sdpa_bytes(cu, &all, limits->tokens, limits->training);
    size_t other = sdpa_bytes(cu, &windowed, limits->tokens, limits->training);
    if (other > bytes) bytes = other;
    size_t own = limits->training ? lk_attention_own_bytes(limits->tokens, limits->heads) : 0;
    return own > bytes ? own : bytes;
}

lk_status lk_cuda_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                            const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_attention_call c = {.batch = batch, .shape = shape, .q = q, .k = k, .v = v, .o = o, .lse = lse};
    if (batch->n_tokens == 0) return LK_OK;
    if (!takes_sdpa(cu, &c)) return lk_attention_own_forward(be, &c);
    lk_sdpa_shape s = sdpa_shape(shape);
    lk_sdpa_docs docs = docs_of(batch);
    lk_sdpa_forward_args args = {rows_of(q), rows_of(k), rows_of(v), rows_of(o), lse};
    void *work;
    size_t bytes;
    LK_TRY(workspace(be, "attention", &s, docs.tokens, false, &work, &bytes));
    lk_status status = lk_sdpa_forward(cu->sdpa, &s, &docs, &args, work, bytes, cu->stream, &be->error);
    return status == LK_ERR_UNSUPPORTED ? lk_attention_own_forward(be, &c) : status;
}

static lk_status own_backward(lk_backend *be, lk_attention_call *c)
{
    void *work;
    LK_TRY(lk_cuda_scratch(be, "attention_backward", lk_attention_own_bytes(c->batch->n_tokens, c->shape->heads), &work));
    c->delta = work;
    return lk_attention_own_backward(be, c);
}

lk_status lk_cuda_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                     const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                     const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_attention_call c = {
        .batch = batch, .shape = shape, .q = q, .k = k, .v = v, .o = o, .dout = dout, .dq = dq, .dk = dk, .dv = dv, .lse_kept = lse};
    if (batch->n_tokens == 0) return LK_OK;
    void *work;
    size_t bytes;
    if (!takes_sdpa(cu, &c)) return own_backward(be, &c);
    lk_sdpa_shape s = sdpa_shape(shape);
    lk_sdpa_docs docs = docs_of(batch);
    lk_sdpa_backward_args args = {rows_of(q),  rows_of(k),  rows_of(v),  rows_of(o), rows_of(dout),
                                  rows_of(dq), rows_of(dk), rows_of(dv), lse};
    LK_TRY(workspace(be, "attention_backward", &s, docs.tokens, true, &work, &bytes));
    lk_status status = lk_sdpa_backward(cu->sdpa, &s, &docs, &args, work, bytes, cu->stream, &be->error);
    return status == LK_ERR_UNSUPPORTED ? own_backward(be, &c) : status;
}
