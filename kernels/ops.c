/* The public operations: check that what the caller hands over fits together, then call the backend's entry. The checks cost
 * a few comparisons next to thousands of multiplications, and they stay on in release builds: a shape that is wrong by one
 * is otherwise found as a wrong token a week later. Every failure here is a mistake of the calling code, hence
 * LK_ERR_INTERNAL, except an operation that the backend lacks. */
#include "kernels/backend.h"

static lk_status bad(lk_backend *be, const char *op, const char *what) { return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s", op, what); }

#define NEED(entry)                                                                                                              \
    do {                                                                                                                         \
        if (!be->ops->entry)                                                                                                     \
            return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "%s: the backend %s does not have this operation", #entry, be->name); \
    } while (0)

/* t is [rows, cols] of this type; also_f32 allows F32 where activations are narrower. */
static lk_status check(lk_backend *be, const char *op, const char *name, const lk_tensor *t, bool also_f32, int64_t rows, int64_t cols)
{
    if (!t) return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: no %s", op, name);
    if (t->type != be->act && !(also_f32 && t->type == LK_F32))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s is %s, wanted %s", op, name, lk_dtype_name(t->type), lk_dtype_name(be->act));
    if (t->rows != rows || t->cols != cols)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s is [%lld, %lld], wanted [%lld, %lld]", op, name, (long long)t->rows,
                       (long long)t->cols, (long long)rows, (long long)cols);
    if (t->stride < t->cols)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s has stride %lld for %lld columns", op, name, (long long)t->stride,
                       (long long)t->cols);
    if (!t->data && rows > 0 && cols > 0) return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s has no data", op, name);
    return LK_OK;
}

static lk_status check_f32(lk_backend *be, const char *op, const char *name, const lk_tensor *t, int64_t rows, int64_t cols)
{
    if (t && t->type != LK_F32) return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: %s is %s, wanted f32", op, name, lk_dtype_name(t->type));
    return check(be, op, name, t, true, rows, cols);
}

/* Rows of every activation of a batch. */
static int64_t rows_of(const lk_batch *batch) { return batch->n_tokens + batch->padding; }

/* ---------------------------------------------------------------------------------------------- linear */

static lk_status check_linear(lk_backend *be, const char *op, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w,
                              const lk_tensor *residual)
{
    if (!x || !w) return bad(be, op, "no x or no matrix");
    LK_TRY(check(be, op, "x", x, false, x->rows, w->k));
    LK_TRY(check(be, op, "y", y, true, x->rows, w->n));
    if (x->rows > 0 && x->data == y->data) return bad(be, op, "y aliases x");
    if (!residual) return LK_OK;
    LK_TRY(check(be, op, "residual", residual, true, x->rows, w->n));
    if (residual->type != y->type) return bad(be, op, "residual and y are of different types");
    if (x->rows > 0 && residual->data == y->data) return bad(be, op, "y aliases residual");
    return LK_OK;
}

lk_status lk_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w, const float *bias,
                    const lk_tensor *residual)
{
    NEED(linear);
    LK_TRY(check_linear(be, "linear", y, x, w, residual));
    return be->ops->linear(be, y, x, w, bias, residual);
}

static lk_status check_linear_backward(lk_backend *be, const char *op, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w)
{
    if (!dy || !w) return bad(be, op, "no dy or no matrix");
    LK_TRY(check(be, op, "dy", dy, false, dy->rows, w->n));
    LK_TRY(check(be, op, "dx", dx, false, dy->rows, w->k));
    if (dy->rows > 0 && dx->data == dy->data) return bad(be, op, "dx aliases dy");
    return LK_OK;
}

lk_status lk_linear_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_matrix *w, bool accumulate)
{
    NEED(linear_backward);
    LK_TRY(check_linear_backward(be, "linear_backward", dx, dy, w));
    return be->ops->linear_backward(be, dx, dy, w, accumulate);
}

lk_status lk_embed(lk_backend *be, const lk_tensor *y, const lk_matrix *table, const int32_t *ids)
{
    NEED(embed);
    if (!y || !table) return bad(be, "embed", "no y or no table");
    LK_TRY(check(be, "embed", "y", y, false, y->rows, table->k));
    for (int64_t t = 0; t < y->rows; t++)
        if ((ids[t] < 0 && !lk_backend_ahead(be)) || ids[t] >= table->n)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "embed: token id %d at row %lld of a table of %lld", ids[t], (long long)t,
                           (long long)table->n);
    return be->ops->embed(be, y, table, ids);
}

lk_status lk_embed_some(lk_backend *be, const lk_tensor *y, const lk_matrix *rows, const int32_t *some, const int32_t *ids)
{
    NEED(embed_some);
    if (!y || !rows || !some || !ids) return bad(be, "embed_some", "an argument is missing");
    LK_TRY(check(be, "embed_some", "y", y, false, y->rows, rows->k));
    return be->ops->embed_some(be, y, rows, some, ids);
}

/* ---------------------------------------------------------------------------------------------- batch */

static lk_status check_documents(lk_backend *be, const lk_batch *b)
{
    if (b->n_docs == 0) return LK_OK;
    if (b->n_docs < 0 || !b->doc_starts || b->doc_starts[0] != 0 || b->doc_starts[b->n_docs] != b->n_tokens)
        return bad(be, "batch_begin", "documents do not cover the rows");
    for (int64_t d = 0; d < b->n_docs; d++)
        if (b->doc_starts[d] > b->doc_starts[d + 1]) return bad(be, "batch_begin", "document starts fall");
    return LK_OK;
}

static lk_status check_sequences(lk_backend *be, const lk_batch *b)
{
    int64_t row = 0;
    for (int64_t s = 0; s < b->n_sequences; s++) {
        const lk_sequence *q = &b->sequences[s];
        if (q->begin != row || q->count < 1 || q->length < q->count || !q->pages)
            return lk_fail(&be->error, LK_ERR_INTERNAL,
                           "batch_begin: sequence %lld begins at row %lld (wanted %lld) with %lld of %lld tokens", (long long)s,
                           (long long)q->begin, (long long)row, (long long)q->count, (long long)q->length);
        row += q->count;
    }
    if (b->n_sequences && row != b->n_tokens) return bad(be, "batch_begin", "sequences do not cover the rows");
    return LK_OK;
}

static lk_status check_segments(lk_backend *be, const lk_batch *b)
{
    int64_t row = 0;
    for (int64_t s = 0; s < b->n_segments; s++) {
        const lk_segment *g = &b->segments[s];
        if (g->begin != row || g->end < g->begin || g->adapter < -1 || g->adapter >= b->n_adapters)
            return lk_fail(&be->error, LK_ERR_INTERNAL,
                           "batch_begin: segment %lld is rows %lld..%lld (wanted to begin at %lld) of adapter %d of %d", (long long)s,
                           (long long)g->begin, (long long)g->end, (long long)row, g->adapter, b->n_adapters);
        row = g->end;
    }
    if (b->n_segments && row != b->n_tokens) return bad(be, "batch_begin", "segments do not cover the rows");
    return LK_OK;
}

lk_status lk_batch_begin(lk_backend *be, const lk_batch *batch)
{
    if (!batch || batch->n_tokens < 0) return bad(be, "batch_begin", "no batch, or a negative number of tokens");
    LK_TRY(check_documents(be, batch));
    LK_TRY(check_sequences(be, batch));
    LK_TRY(check_segments(be, batch));
    if (batch->padding < 0 || (batch->padding && !batch->n_sequences)) return bad(be, "batch_begin", "padding without sequences");
    return be->ops->batch_begin ? be->ops->batch_begin(be, batch) : LK_OK;
}

lk_status lk_step_begin(lk_backend *be, uint64_t key, bool *queued)
{
    *queued = false;
    return be->ops->step_begin ? be->ops->step_begin(be, key, queued) : LK_OK;
}

lk_status lk_step_end(lk_backend *be) { return be->ops->step_end ? be->ops->step_end(be) : LK_OK; }

void lk_step_forget(lk_backend *be)
{
    if (be->ops->step_forget) be->ops->step_forget(be);
}

/* ---------------------------------------------------------------------------------------------- LoRA */

static lk_status check_lora(lk_backend *be, const char *op, const lk_batch *batch, int32_t site, const lk_tensor *h,
                            const lk_dropout *dropout)
{
    if (batch->n_segments > 0 && (!batch->segments || site < 0 || site >= batch->n_sites))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: site %d of %d", op, site, batch->n_sites);
    if (dropout && !(dropout->p >= 0.0f && dropout->p < 1.0f)) return bad(be, op, "dropout outside [0,1)");
    LK_TRY(check_f32(be, op, "h", h, rows_of(batch), h ? h->cols : 0));
    for (int64_t s = 0; s < batch->n_segments; s++) {
        if (batch->segments[s].adapter < 0) continue;
        const lk_lora *l = &batch->lora[(int64_t)site * batch->n_adapters + batch->segments[s].adapter];
        if (l->rank == 0) continue;
        if (l->rank < 0 || l->rank > h->cols || !l->a || !l->b || (l->type != LK_F32 && l->type != LK_BF16))
            return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: site %d, adapter %d: rank %d for h of %lld columns, or no factors", op, site,
                           batch->segments[s].adapter, l->rank, (long long)h->cols);
        if ((l->da != NULL) != (l->db != NULL) || (l->da && l->type != LK_F32))
            return bad(be, op, "gradients need f32 factors and come in pairs");
    }
    return LK_OK;
}

static lk_status check_lora_forward(lk_backend *be, const char *op, const lk_batch *batch, int32_t site, const lk_tensor *y,
                                    const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    if (!batch || !x || !y || !h) return bad(be, op, "an argument is missing");
    LK_TRY(check(be, op, "x", x, false, rows_of(batch), x->cols));
    LK_TRY(check(be, op, "y", y, true, rows_of(batch), y->cols));
    return check_lora(be, op, batch, site, h, dropout);
}

lk_status lk_drop(lk_backend *be, const lk_tensor *y, const lk_tensor *x, int32_t site, const lk_dropout *dropout)
{
    NEED(drop);
    if (!x || !dropout || !(dropout->p > 0.0f && dropout->p < 1.0f)) return bad(be, "drop", "no x, or dropout outside (0,1)");
    LK_TRY(check(be, "drop", "x", x, false, x->rows, x->cols));
    LK_TRY(check(be, "drop", "y", y, false, x->rows, x->cols));
    return be->ops->drop(be, y, x, site, dropout);
}

bool lk_backend_drops(const lk_backend *be) { return be->ops->drop != NULL; }

lk_status lk_lora_forward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x, const lk_tensor *h,
                          const lk_dropout *dropout)
{
    NEED(lora_forward);
    LK_TRY(check_lora_forward(be, "lora_forward", batch, site, y, x, h, dropout));
    if (batch->n_segments == 0) return LK_OK;
    return be->ops->lora_forward(be, batch, site, y, x, h, dropout);
}

static lk_status check_lora_backward(lk_backend *be, const char *op, const lk_batch *batch, int32_t site, const lk_tensor *dx,
                                     const lk_tensor *dy, const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    if (!batch || !dy || !x || !h) return bad(be, op, "an argument is missing");
    LK_TRY(check(be, op, "dy", dy, false, rows_of(batch), dy->cols));
    LK_TRY(check(be, op, "x", x, false, rows_of(batch), x->cols));
    if (dx) LK_TRY(check(be, op, "dx", dx, false, rows_of(batch), x->cols));
    return check_lora(be, op, batch, site, h, dropout);
}

lk_status lk_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                           const lk_tensor *x, const lk_tensor *h, const lk_dropout *dropout)
{
    NEED(lora_backward);
    LK_TRY(check_lora_backward(be, "lora_backward", batch, site, dx, dy, x, h, dropout));
    if (batch->n_segments == 0) return LK_OK;
    return be->ops->lora_backward(be, batch, site, dx, dy, x, h, dropout);
}

lk_status lk_linear_lora(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x, const lk_matrix *w,
                         const float *bias, const lk_tensor *residual, const lk_tensor *h, const lk_dropout *dropout)
{
    if (!be->ops->linear_lora || !batch || batch->n_segments == 0) {
        LK_TRY(lk_linear(be, y, x, w, bias, residual));
        return lk_lora_forward(be, batch, site, y, x, h, dropout);
    }
    LK_TRY(check_linear(be, "linear_lora", y, x, w, residual));
    LK_TRY(check_lora_forward(be, "linear_lora", batch, site, y, x, h, dropout));
    return be->ops->linear_lora(be, batch, site, y, x, w, bias, residual, h, dropout);
}

lk_status lk_linear_lora_backward(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                  const lk_matrix *w, const lk_tensor *x, const lk_tensor *h, bool accumulate, const lk_dropout *dropout)
{
    if (!be->ops->linear_lora_backward || !dx || !batch || batch->n_segments == 0) {
        if (dx) LK_TRY(lk_linear_backward(be, dx, dy, w, accumulate));
        return lk_lora_backward(be, batch, site, dx, dy, x, h, dropout);
    }
    LK_TRY(check_linear_backward(be, "linear_lora_backward", dx, dy, w));
    LK_TRY(check_lora_backward(be, "linear_lora_backward", batch, site, dx, dy, x, h, dropout));
    return be->ops->linear_lora_backward(be, batch, site, dx, dy, w, x, h, accumulate, dropout);
}

lk_status lk_linear_parts(lk_backend *be, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x, const lk_dropout *dropout)
{
    if (!batch || n < 0 || n > LK_MOST_PARTS)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "linear_parts: no batch, or %d layers of at most %d", n, LK_MOST_PARTS);
    bool joined = be->ops->linear_parts != NULL, adapted = batch->n_segments > 0;
    for (int i = 0; i < n; i++) {
        const lk_part *p = &parts[i];
        if (joined) {
            LK_TRY(check_linear(be, "linear_parts", &p->y, x, p->w, NULL));
            if (adapted) LK_TRY(check_lora_forward(be, "linear_parts", batch, p->site, &p->y, x, &p->h, dropout));
        } else if (adapted) {
            LK_TRY(lk_linear_lora(be, batch, p->site, &p->y, x, p->w, p->bias, NULL, &p->h, dropout));
        } else {
            LK_TRY(lk_linear(be, &p->y, x, p->w, p->bias, NULL));
        }
    }
    return joined && n > 0 ? be->ops->linear_parts(be, batch, parts, n, x, dropout) : LK_OK;
}

int64_t lk_row_gap(const lk_backend *be, int64_t rank) { return be->ops->row_gap && rank > 0 ? be->ops->row_gap(be, rank) : 0; }

/* ---------------------------------------------------------------------------------------------- what is trained whole */

lk_status lk_matrix_set(lk_backend *be, lk_matrix *w, const int32_t *ids, int64_t n, const float *rows)
{
    NEED(matrix_set);
    if (!w || w->type != LK_F32 || n < 0 || (n > 0 && !rows))
        return bad(be, "matrix_set", "no rows, or a matrix that was not made from f32");
    for (int64_t i = 0; i < n; i++) {
        int64_t row = ids ? ids[i] : i;
        if (row < 0 || row >= w->n)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "matrix_set: row %lld of %lld", (long long)row, (long long)w->n);
    }
    return be->ops->matrix_set(be, w, ids, n, rows);
}

lk_status lk_add_columns(lk_backend *be, float *sums, const lk_tensor *x, float by)
{
    NEED(add_columns);
    if (!x || !sums) return bad(be, "add_columns", "no x or no sums");
    LK_TRY(check(be, "add_columns", "x", x, true, x->rows, x->cols));
    return be->ops->add_columns(be, sums, x, by);
}

lk_status lk_weight_gradient(lk_backend *be, float *dw, const lk_tensor *dy, const lk_tensor *x, float by)
{
    NEED(weight_gradient);
    if (!dw || !dy || !x) return bad(be, "weight_gradient", "an argument is missing");
    LK_TRY(check(be, "weight_gradient", "dy", dy, false, dy->rows, dy->cols));
    LK_TRY(check(be, "weight_gradient", "x", x, true, dy->rows, x->cols));
    return be->ops->weight_gradient(be, dw, dy, x, by);
}

lk_status lk_embed_backward(lk_backend *be, float *dtable, int64_t n, const lk_tensor *dy, const int32_t *ids)
{
    NEED(embed_backward);
    if (!dtable || !dy) return bad(be, "embed_backward", "no dtable or no dy");
    LK_TRY(check(be, "embed_backward", "dy", dy, true, dy->rows, dy->cols));
    for (int64_t t = 0; t < dy->rows; t++)
        if (ids[t] < -1 || ids[t] >= n)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "embed_backward: id %d at row %lld of a table of %lld", ids[t], (long long)t,
                           (long long)n);
    return be->ops->embed_backward(be, dtable, n, dy, ids);
}

bool lk_backend_trains_weights(const lk_backend *be)
{
    const lk_ops *o = be->ops;
    return o->matrix_set && o->add_columns && o->weight_gradient && o->embed_backward && o->linear_loss_trained;
}

/* ---------------------------------------------------------------------------------------------- norms, RoPE, activations */

lk_status lk_rmsnorm(lk_backend *be, const lk_tensor *y, float *rstd, const lk_tensor *x, const float *weight, float eps)
{
    NEED(rmsnorm);
    if (!x || !weight) return bad(be, "rmsnorm", "no x or no weight");
    LK_TRY(check(be, "rmsnorm", "x", x, false, x->rows, x->cols));
    LK_TRY(check(be, "rmsnorm", "y", y, false, x->rows, x->cols));
    return be->ops->rmsnorm(be, y, rstd, x, weight, eps);
}

lk_status lk_rmsnorm_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dy, const lk_tensor *x, const float *weight,
                              const float *rstd, bool accumulate)
{
    NEED(rmsnorm_backward);
    if (!x || !weight || !rstd) return bad(be, "rmsnorm_backward", "no x, weight or rstd");
    LK_TRY(check(be, "rmsnorm_backward", "x", x, false, x->rows, x->cols));
    LK_TRY(check(be, "rmsnorm_backward", "dy", dy, false, x->rows, x->cols));
    LK_TRY(check(be, "rmsnorm_backward", "dx", dx, false, x->rows, x->cols));
    if (accumulate && x->rows > 0 && dx->data == dy->data) return bad(be, "rmsnorm_backward", "dx aliases dy while accumulating");
    return be->ops->rmsnorm_backward(be, dx, dy, x, weight, rstd, accumulate);
}

lk_status lk_rope_table(lk_backend *be, const lk_tensor *cos_sin, const int32_t *positions, const float *inv_freq, float factor)
{
    NEED(rope_table);
    if (!cos_sin || !positions || !inv_freq || cos_sin->cols % 2) return bad(be, "rope_table", "an argument is missing, or an odd width");
    LK_TRY(check_f32(be, "rope_table", "cos_sin", cos_sin, cos_sin->rows, cos_sin->cols));
    return be->ops->rope_table(be, cos_sin, positions, inv_freq, factor);
}

static lk_status check_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin)
{
    if (!x || !cos_sin || heads < 1 || x->cols % heads) return bad(be, "rope", "columns do not divide into heads");
    LK_TRY(check(be, "rope", "x", x, false, x->rows, x->cols));
    LK_TRY(check_f32(be, "rope", "cos_sin", cos_sin, x->rows, cos_sin->cols));
    if (cos_sin->cols % 2 || cos_sin->cols > x->cols / heads) return bad(be, "rope", "cos_sin is wider than a head, or odd");
    return LK_OK;
}

lk_status lk_rope(lk_backend *be, const lk_tensor *x, int64_t heads, const lk_tensor *cos_sin, bool backward)
{
    NEED(rope);
    LK_TRY(check_rope(be, x, heads, cos_sin));
    return be->ops->rope(be, x, heads, cos_sin, backward);
}

lk_status lk_glu(lk_backend *be, const lk_tensor *y, const lk_tensor *gate, const lk_tensor *up, lk_activation act)
{
    NEED(glu);
    if (!gate) return bad(be, "glu", "no gate");
    LK_TRY(check(be, "glu", "gate", gate, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu", "up", up, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu", "y", y, false, gate->rows, gate->cols));
    return be->ops->glu(be, y, gate, up, act);
}

lk_status lk_glu_backward(lk_backend *be, const lk_tensor *dgate, const lk_tensor *dup, const lk_tensor *dy, const lk_tensor *gate,
                          const lk_tensor *up, lk_activation act)
{
    NEED(glu_backward);
    if (!gate) return bad(be, "glu_backward", "no gate");
    LK_TRY(check(be, "glu_backward", "gate", gate, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu_backward", "up", up, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu_backward", "dy", dy, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu_backward", "dgate", dgate, false, gate->rows, gate->cols));
    LK_TRY(check(be, "glu_backward", "dup", dup, false, gate->rows, gate->cols));
    return be->ops->glu_backward(be, dgate, dup, dy, gate, up, act);
}

lk_status lk_gain(lk_backend *be, const lk_tensor *y, const float *gain, const float *bias, const lk_tensor *residual)
{
    NEED(gain);
    if (!y) return bad(be, "gain", "no y");
    LK_TRY(check(be, "gain", "y", y, true, y->rows, y->cols));
    if (residual) LK_TRY(check(be, "gain", "residual", residual, true, y->rows, y->cols));
    if (residual && residual->type != y->type) return bad(be, "gain", "residual and y are of different types");
    return be->ops->gain(be, y, gain, bias, residual);
}

static lk_status gain_segment(lk_backend *be, const lk_segment *s, const lk_lora *l, const lk_tensor *y, const float *bias,
                              const lk_tensor *residual)
{
    lk_tensor y_rows = lk_tensor_rows(y, s->begin, s->end - s->begin), r_rows;
    if (residual) r_rows = lk_tensor_rows(residual, s->begin, s->end - s->begin);
    return be->ops->gain(be, &y_rows, l->gain, l->bias ? l->bias : bias, residual ? &r_rows : NULL);
}

lk_status lk_lora_gain(lk_backend *be, const lk_batch *batch, int32_t site, const lk_tensor *y, const float *bias,
                       const lk_tensor *residual)
{
    NEED(gain);
    if (!batch || (batch->n_segments > 0 && (site < 0 || site >= batch->n_sites))) return bad(be, "lora_gain", "no batch, or no such site");
    LK_TRY(check(be, "lora_gain", "y", y, true, rows_of(batch), y ? y->cols : 0));
    if (residual) LK_TRY(check(be, "lora_gain", "residual", residual, true, y->rows, y->cols));
    if (residual && residual->type != y->type) return bad(be, "lora_gain", "residual and y are of different types");
    if (residual && y->rows > 0 && residual->data == y->data) return bad(be, "lora_gain", "y aliases residual");
    if (batch->n_segments > 0 && be->ops->lora_gain) return be->ops->lora_gain(be, batch, site, y, bias, residual);
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_segment *s = &batch->segments[i];
        const lk_lora *l = s->adapter < 0 ? NULL : &batch->lora[(int64_t)site * batch->n_adapters + s->adapter];
        if (l && (l->gain || l->bias)) LK_TRY(gain_segment(be, s, l, y, bias, residual));
    }
    return LK_OK;
}

lk_status lk_gain_norms(lk_backend *be, float *gain, float *inverse_norm, const lk_matrix *w, const lk_lora *l, const float *m)
{
    NEED(gain_norms);
    if (!inverse_norm || !w || !l || (gain && !m)) return bad(be, "gain_norms", "an argument is missing");
    if (l->rank < 0 || (l->rank > 0 && (!l->a || !l->b)) || (l->type != LK_F32 && l->type != LK_BF16))
        return bad(be, "gain_norms", "no factors, or of another type than f32 and bf16");
    return be->ops->gain_norms(be, gain, inverse_norm, w, l, m);
}

lk_status lk_clear(lk_backend *be, const lk_tensor *y)
{
    NEED(clear);
    LK_TRY(check_f32(be, "clear", "y", y, y ? y->rows : 0, y ? y->cols : 0));
    return be->ops->clear(be, y);
}

lk_status lk_gain_backward(lk_backend *be, const lk_tensor *y, const lk_tensor *dy, const float *gain, float *dm, const float *inverse_norm)
{
    NEED(gain_backward);
    if (!y || !gain || (dm && !inverse_norm)) return bad(be, "gain_backward", "no y, no gain or no norm");
    LK_TRY(check(be, "gain_backward", "y", y, false, y->rows, y->cols));
    LK_TRY(check(be, "gain_backward", "dy", dy, false, y->rows, y->cols));
    return be->ops->gain_backward(be, y, dy, gain, dm, inverse_norm);
}

bool lk_backend_gains(const lk_backend *be)
{
    const lk_ops *o = be->ops;
    return o->gain && o->gain_backward && o->gain_norms && o->embed_some && o->clear;
}

lk_status lk_add(lk_backend *be, const lk_tensor *y, const lk_tensor *x)
{
    NEED(add);
    if (!y) return bad(be, "add", "no y");
    LK_TRY(check(be, "add", "y", y, false, y->rows, y->cols));
    LK_TRY(check(be, "add", "x", x, false, y->rows, y->cols));
    return be->ops->add(be, y, x);
}

lk_status lk_scale(lk_backend *be, const lk_tensor *y, const lk_tensor *x, float by)
{
    NEED(scale);
    if (!x) return bad(be, "scale", "no x");
    LK_TRY(check(be, "scale", "x", x, false, x->rows, x->cols));
    LK_TRY(check(be, "scale", "y", y, false, x->rows, x->cols));
    return be->ops->scale(be, y, x, by);
}

lk_status lk_cap(lk_backend *be, const lk_tensor *y, float cap)
{
    NEED(cap);
    if (!y || !(cap > 0.0f)) return bad(be, "cap", "no y, or a cap that is not positive");
    LK_TRY(check_f32(be, "cap", "y", y, y->rows, y->cols));
    return be->ops->cap(be, y, cap);
}

lk_status lk_gather_rows(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *rows)
{
    NEED(gather_rows);
    if (!y || !x) return bad(be, "gather_rows", "no y or no x");
    LK_TRY(check(be, "gather_rows", "x", x, false, x->rows, x->cols));
    LK_TRY(check(be, "gather_rows", "y", y, false, y->rows, x->cols));
    for (int64_t i = 0; i < y->rows; i++)
        if (rows[i] < 0 || rows[i] >= x->rows) return bad(be, "gather_rows", "a row outside x");
    return be->ops->gather_rows(be, y, x, rows);
}

/* ---------------------------------------------------------------------------------------------- mixtures of experts */

static lk_status check_route(lk_backend *be, const char *op, const int32_t *ids, const lk_tensor *weights, const lk_tensor *logits)
{
    if (!ids || !weights || !logits || weights->cols < 1 || weights->cols > logits->cols)
        return bad(be, op, "an argument is missing, or more choices than experts");
    LK_TRY(check_f32(be, op, "logits", logits, logits->rows, logits->cols));
    return check_f32(be, op, "weights", weights, logits->rows, weights->cols);
}

lk_status lk_moe_route(lk_backend *be, int32_t *ids, const lk_tensor *weights, const lk_tensor *logits, bool normalise)
{
    NEED(moe_route);
    LK_TRY(check_route(be, "moe_route", ids, weights, logits));
    return be->ops->moe_route(be, ids, weights, logits, normalise);
}

lk_status lk_moe_route_backward(lk_backend *be, const lk_tensor *dlogits, const lk_tensor *dweights, const int32_t *ids,
                                const lk_tensor *logits, bool normalise)
{
    NEED(moe_route_backward);
    LK_TRY(check_route(be, "moe_route_backward", ids, dweights, logits));
    LK_TRY(check(be, "moe_route_backward", "dlogits", dlogits, false, logits->rows, logits->cols));
    return be->ops->moe_route_backward(be, dlogits, dweights, ids, logits, normalise);
}

/* t[T,C] beside x[T*K,C]; weights may be NULL. */
static lk_status check_slots(lk_backend *be, const char *op, const char *name, const lk_tensor *t, const lk_tensor *x, const int32_t *slots,
                             const lk_tensor *weights)
{
    if (!t || !x || !slots || t->rows < 1 || x->rows % t->rows)
        return bad(be, op, "an argument is missing, or slots do not divide into rows");
    LK_TRY(check(be, op, "x", x, false, x->rows, t->cols));
    LK_TRY(check(be, op, name, t, false, t->rows, t->cols));
    if (weights) LK_TRY(check_f32(be, op, "weights", weights, t->rows, x->rows / t->rows));
    for (int64_t i = 0; i < x->rows; i++)
        if (slots[i] < 0 || slots[i] >= x->rows)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: slot %d of %lld", op, slots[i], (long long)x->rows);
    return LK_OK;
}

lk_status lk_moe_combine(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *slots, const lk_tensor *weights,
                         const lk_tensor *residual)
{
    NEED(moe_combine);
    LK_TRY(check_slots(be, "moe_combine", "y", y, x, slots, weights));
    if (residual) LK_TRY(check(be, "moe_combine", "residual", residual, false, y->rows, y->cols));
    if (residual && residual->data == y->data) return bad(be, "moe_combine", "y aliases residual");
    return be->ops->moe_combine(be, y, x, slots, weights, residual);
}

bool lk_backend_groups(const lk_backend *be) { return be->ops->experts_linear != NULL; }

size_t lk_experts_bytes(const lk_backend *be, int64_t experts) { return lk_backend_groups(be) ? be->ops->experts_bytes(be, experts) : 0; }

size_t lk_moe_placing_bytes(const lk_backend *be, int64_t slots, int64_t experts)
{
    return lk_backend_groups(be) ? be->ops->moe_placing_bytes(be, slots, experts) : 0;
}

lk_status lk_experts_fill(lk_backend *be, const lk_experts *w)
{
    NEED(experts_fill);
    if (!w || !w->table || w->count < 1) return bad(be, "experts_fill", "no table, or no experts");
    for (int64_t e = 0; e < w->count; e++)
        if (w->w[e]->n != w->w[0]->n || w->w[e]->k != w->w[0]->k || w->w[e]->type != w->w[0]->type || w->w[e]->k % 8)
            return bad(be, "experts_fill", "experts of different shapes or types, or of a width that is no multiple of 8");
    return be->ops->experts_fill(be, w->table, w->w, w->count);
}

lk_status lk_moe_place(lk_backend *be, int32_t *places, const int32_t *ids, int64_t tokens, int64_t k, int64_t experts)
{
    NEED(moe_place);
    if (!places || !ids || tokens < 0 || k < 1 || experts < k) return bad(be, "moe_place", "an argument is missing");
    return be->ops->moe_place(be, places, ids, tokens, k, experts);
}

lk_status lk_experts_linear(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const lk_experts *w, int32_t *places, bool by_token)
{
    NEED(experts_linear);
    if (!y || !x || !w || !places) return bad(be, "experts_linear", "an argument is missing");
    LK_TRY(check(be, "experts_linear", "y", y, false, y->rows, w->w[0]->n));
    LK_TRY(check(be, "experts_linear", "x", x, false, x->rows, w->w[0]->k));
    if (by_token ? x->rows < 1 || y->rows % x->rows : y->rows != x->rows) return bad(be, "experts_linear", "slots do not divide into rows");
    return be->ops->experts_linear(be, y, x, w, places, by_token);
}

lk_status lk_moe_combine_placed(lk_backend *be, const lk_tensor *y, const lk_tensor *x, const int32_t *places, const lk_tensor *weights,
                                const lk_tensor *residual)
{
    NEED(moe_combine_placed);
    if (!y || !x || !places || !weights) return bad(be, "moe_combine_placed", "an argument is missing");
    LK_TRY(check(be, "moe_combine_placed", "x", x, false, y->rows * weights->cols, y->cols));
    LK_TRY(check(be, "moe_combine_placed", "y", y, false, y->rows, y->cols));
    LK_TRY(check_f32(be, "moe_combine_placed", "weights", weights, y->rows, weights->cols));
    if (residual) LK_TRY(check(be, "moe_combine_placed", "residual", residual, false, y->rows, y->cols));
    return be->ops->moe_combine_placed(be, y, x, places, weights, residual);
}

lk_status lk_moe_combine_backward(lk_backend *be, const lk_tensor *dx, const lk_tensor *dweights, const lk_tensor *dy, const lk_tensor *x,
                                  const int32_t *slots, const lk_tensor *weights)
{
    NEED(moe_combine_backward);
    if (!weights || !dweights) return bad(be, "moe_combine_backward", "no weights or no dweights");
    LK_TRY(check_slots(be, "moe_combine_backward", "dy", dy, x, slots, weights));
    LK_TRY(check(be, "moe_combine_backward", "dx", dx, false, x->rows, x->cols));
    LK_TRY(check_f32(be, "moe_combine_backward", "dweights", dweights, weights->rows, weights->cols));
    return be->ops->moe_combine_backward(be, dx, dweights, dy, x, slots, weights);
}

/* ---------------------------------------------------------------------------------------------- attention */

static lk_status check_heads(lk_backend *be, const char *op, const lk_attention_shape *s)
{
    if (!s || s->heads < 1 || s->kv_heads < 1 || s->head_dim < 1 || s->heads % s->kv_heads || s->window < 0 || !(s->scale > 0.0f) ||
        !(s->cap >= 0.0f))
        return bad(be, op, "heads, key/value heads, head size, scale, window or cap make no sense");
    return LK_OK;
}

lk_status lk_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                       const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    NEED(attention);
    LK_TRY(check_heads(be, "attention", shape));
    int64_t rows = batch->n_tokens, wide = shape->heads * shape->head_dim, narrow = shape->kv_heads * shape->head_dim;
    LK_TRY(check(be, "attention", "q", q, false, rows, wide));
    LK_TRY(check(be, "attention", "k", k, false, rows, narrow));
    LK_TRY(check(be, "attention", "v", v, false, rows, narrow));
    LK_TRY(check(be, "attention", "o", o, false, rows, wide));
    if (rows > 0 && batch->n_docs == 0) return bad(be, "attention", "a batch without documents");
    return be->ops->attention(be, batch, shape, o, lse, q, k, v);
}

lk_status lk_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    NEED(attention_backward);
    const char *op = "attention_backward";
    LK_TRY(check_heads(be, op, shape));
    int64_t rows = batch->n_tokens, wide = shape->heads * shape->head_dim, narrow = shape->kv_heads * shape->head_dim;
    LK_TRY(check(be, op, "q", q, false, rows, wide));
    LK_TRY(check(be, op, "k", k, false, rows, narrow));
    LK_TRY(check(be, op, "v", v, false, rows, narrow));
    LK_TRY(check(be, op, "o", o, false, rows, wide));
    LK_TRY(check(be, op, "dout", dout, false, rows, wide));
    LK_TRY(check(be, op, "dq", dq, false, rows, wide));
    LK_TRY(check(be, op, "dk", dk, false, rows, narrow));
    LK_TRY(check(be, op, "dv", dv, false, rows, narrow));
    if (rows > 0 && (batch->n_docs == 0 || !lse)) return bad(be, op, "a batch without documents, or no lse");
    if (rows > 0 && dq->data == dout->data) return bad(be, op, "dq aliases dout");
    return be->ops->attention_backward(be, batch, shape, dq, dk, dv, dout, o, lse, q, k, v);
}

static lk_status check_kv_shape(lk_backend *be, const lk_kv_shape *s)
{
    if (s->n_layers < 1 || s->kv_heads < 1 || s->head_dim < 1 || s->n_pages < 1) return bad(be, "kv_create", "an empty cache");
    if (s->page_tokens < 16 || s->page_tokens > 256 || (s->page_tokens & (s->page_tokens - 1)))
        return lk_fail(&be->error, LK_ERR_INTERNAL, "kv_create: pages of %d tokens; a power of two in 16..256 is wanted", s->page_tokens);
    if (s->type != LK_F32 && s->type != LK_BF16 && s->type != LK_I8)
        return bad(be, "kv_create", "keys and values are kept in f32, bf16 or 8 bits");
    return LK_OK;
}

size_t lk_kv_page_bytes(const lk_backend *be, const lk_kv_shape *shape)
{
    return be->ops->kv_page_bytes ? be->ops->kv_page_bytes(be, shape) : 0;
}

lk_status lk_kv_create(lk_backend *be, lk_kv **kv, const lk_kv_shape *shape)
{
    *kv = NULL;
    NEED(kv_create);
    LK_TRY(check_kv_shape(be, shape));
    return be->ops->kv_create(be, kv, shape);
}

void lk_kv_destroy(lk_backend *be, lk_kv *kv)
{
    if (kv) be->ops->kv_destroy(be, kv);
}

void *lk_kv_page(lk_kv *kv, int32_t page) { return (char *)kv->data + (size_t)page * kv->page_bytes; }

static lk_status check_pages(lk_backend *be, const char *op, const lk_batch *batch, const lk_kv *kv, int32_t layer)
{
    if (!kv || layer < 0 || layer >= kv->shape.n_layers) return bad(be, op, "no cache, or a layer outside it");
    if (batch->n_tokens > 0 && batch->n_sequences == 0) return bad(be, op, "a batch without sequences");
    for (int64_t s = 0; s < batch->n_sequences; s++) {
        const lk_sequence *q = &batch->sequences[s];
        int64_t n = (q->length + kv->shape.page_tokens - 1) / kv->shape.page_tokens;
        for (int64_t p = 0; p < n; p++)
            if (q->pages[p] < 0 || q->pages[p] >= kv->shape.n_pages)
                return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: sequence %lld names page %d of %d", op, (long long)s, q->pages[p],
                               kv->shape.n_pages);
    }
    return LK_OK;
}

static lk_status check_kv_write(lk_backend *be, const char *op, const lk_batch *batch, const lk_kv *kv, int32_t layer, const lk_tensor *k,
                                const lk_tensor *v)
{
    LK_TRY(check_pages(be, op, batch, kv, layer));
    int64_t width = (int64_t)kv->shape.kv_heads * kv->shape.head_dim;
    LK_TRY(check(be, op, "k", k, false, rows_of(batch), width));
    return check(be, op, "v", v, false, rows_of(batch), width);
}

lk_status lk_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, const lk_tensor *k, const lk_tensor *v)
{
    NEED(kv_write);
    LK_TRY(check_kv_write(be, "kv_write", batch, kv, layer, k, v));
    return be->ops->kv_write(be, batch, kv, layer, k, v);
}

lk_status lk_rope_kv_write(lk_backend *be, const lk_batch *batch, lk_kv *kv, int32_t layer, int64_t heads, const lk_tensor *q,
                           const lk_tensor *k, const lk_tensor *v, const lk_tensor *cos_sin)
{
    if (!kv) return bad(be, "rope_kv_write", "no cache");
    if (!be->ops->rope_kv_write) {
        LK_TRY(lk_rope(be, q, heads, cos_sin, false));
        LK_TRY(lk_rope(be, k, kv->shape.kv_heads, cos_sin, false));
        return lk_kv_write(be, batch, kv, layer, k, v);
    }
    LK_TRY(check_rope(be, q, heads, cos_sin));
    LK_TRY(check_rope(be, k, kv->shape.kv_heads, cos_sin));
    LK_TRY(check_kv_write(be, "rope_kv_write", batch, kv, layer, k, v));
    return be->ops->rope_kv_write(be, batch, kv, layer, heads, q, k, v, cos_sin);
}

lk_status lk_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, const lk_tensor *q,
                             const lk_kv *kv, int32_t layer)
{
    NEED(paged_attention);
    LK_TRY(check_heads(be, "paged_attention", shape));
    LK_TRY(check_pages(be, "paged_attention", batch, kv, layer));
    if (shape->kv_heads != kv->shape.kv_heads || shape->head_dim != kv->shape.head_dim)
        return bad(be, "paged_attention", "the cache was made for other heads");
    LK_TRY(check(be, "paged_attention", "q", q, false, rows_of(batch), shape->heads * shape->head_dim));
    LK_TRY(check(be, "paged_attention", "o", o, false, rows_of(batch), shape->heads * shape->head_dim));
    return be->ops->paged_attention(be, batch, shape, o, q, kv, layer);
}

/* ---------------------------------------------------------------------------------------------- loss and optimiser */

static lk_status check_loss(lk_backend *be, const char *op, const float *nll, const lk_tensor *dx, const lk_tensor *x,
                            const lk_matrix *head, const int32_t *labels, float cap)
{
    if (!x || !head || !nll || !labels || !(cap >= 0.0f)) return bad(be, op, "an argument is missing, or a negative cap");
    LK_TRY(check(be, op, "x", x, false, x->rows, head->k));
    if (dx) LK_TRY(check(be, op, "dx", dx, false, x->rows, head->k));
    for (int64_t t = 0; t < x->rows; t++)
        if (labels[t] >= head->n)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: label %d at row %lld of a head of %lld", op, labels[t], (long long)t,
                           (long long)head->n);
    return LK_OK;
}

lk_status lk_linear_loss(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                         const int32_t *labels, float grad_scale, float cap)
{
    NEED(linear_loss);
    LK_TRY(check_loss(be, "linear_loss", nll, dx, x, head, labels, cap));
    return be->ops->linear_loss(be, nll, hits, dx, x, head, labels, grad_scale, cap);
}

lk_status lk_linear_loss_trained(lk_backend *be, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x, const lk_matrix *head,
                                 const lk_head_part *part, const int32_t *labels, float grad_scale, float cap)
{
    NEED(linear_loss_trained);
    LK_TRY(check_loss(be, "linear_loss_trained", nll, dx, x, head, labels, cap));
    if (!part) return bad(be, "linear_loss_trained", "no part");
    const lk_lora *f = part->factors;
    if (f && (f->rank < 1 || f->type != LK_F32 || !f->a || !f->b || (f->da != NULL) != (f->db != NULL)))
        return bad(be, "linear_loss_trained", "factors that are not whole, or not f32");
    if (part->dropout && !(part->dropout->p >= 0.0f && part->dropout->p < 1.0f))
        return bad(be, "linear_loss_trained", "dropout outside [0,1)");
    for (int64_t i = 0; part->ids && i < part->n_ids; i++)
        if (part->ids[i] < 0 || part->ids[i] >= head->n) return bad(be, "linear_loss_trained", "a row outside the head");
    return be->ops->linear_loss_trained(be, nll, hits, dx, x, head, part, labels, grad_scale, cap);
}

lk_status lk_sum_squares(lk_backend *be, double *out, const float *x, int64_t n)
{
    NEED(sum_squares);
    if (!out || n < 0 || (n > 0 && !x)) return bad(be, "sum_squares", "no data");
    return be->ops->sum_squares(be, out, x, n);
}

lk_status lk_adamw(lk_backend *be, float *p, const float *g, float *m, float *v, int64_t n, const lk_adamw_step *step)
{
    NEED(adamw);
    if (n < 0 || (n > 0 && (!p || !g || !m || !v))) return bad(be, "adamw", "no data");
    if (step->step < 1) return bad(be, "adamw", "steps count from 1");
    return be->ops->adamw(be, p, g, m, v, n, step);
}

lk_status lk_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                    const lk_adamw_step *step)
{
    NEED(adamw8);
    if (n < 0 || (n > 0 && (!p || !g || !m8 || !v8 || !m_scale || !v_scale))) return bad(be, "adamw8", "no data");
    if (step->step < 1) return bad(be, "adamw8", "steps count from 1");
    return be->ops->adamw8(be, p, g, m8, v8, m_scale, v_scale, n, step);
}

/* ---------------------------------------------------------------------------------------------- sampling */

static bool ids_fit(const int32_t *ids, int64_t n, int64_t vocab)
{
    if (n < 0 || (n > 0 && !ids)) return false;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab) return false;
    return true;
}

static lk_status check_sampling(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests)
{
    if (!logits || logits->cols < 1) return bad(be, "sample", "no logits");
    LK_TRY(check_f32(be, "sample", "logits", logits, logits->rows, logits->cols));
    for (int64_t r = 0; r < logits->rows; r++) {
        const lk_sample_request *q = &requests[r];
        if (!(q->temperature >= 0.0f) || !(q->top_p > 0.0f) || !(q->min_p >= 0.0f && q->min_p <= 1.0f) || !(q->repetition_penalty > 0.0f) ||
            q->top_k < 0 || q->n_logprobs < -1 || q->n_logprobs > LK_MAX_LOGPROBS)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "sample: the settings of row %lld are outside their ranges", (long long)r);
        if (!ids_fit(q->seen, q->n_seen, logits->cols) || !ids_fit(q->bias_ids, q->n_bias, logits->cols) ||
            !ids_fit(q->banned, q->n_banned, logits->cols))
            return lk_fail(&be->error, LK_ERR_INTERNAL, "sample: row %lld names a token outside the %lld of the vocabulary", (long long)r,
                           (long long)logits->cols);
        if (q->pending && !lk_backend_ahead(be)) return bad(be, "sample", "a token is pending that this backend has drawn already");
    }
    return LK_OK;
}

lk_status lk_sample(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests, lk_sample_result *results)
{
    if (be->ops->sample_begin) {
        LK_TRY(lk_sample_begin(be, logits, requests));
        return lk_sample_end(be, results);
    }
    NEED(sample);
    LK_TRY(check_sampling(be, logits, requests));
    return be->ops->sample(be, logits, requests, results);
}

lk_status lk_sample_begin(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests)
{
    NEED(sample_begin);
    LK_TRY(check_sampling(be, logits, requests));
    return be->ops->sample_begin(be, logits, requests);
}

lk_status lk_sample_end(lk_backend *be, lk_sample_result *results)
{
    NEED(sample_end);
    return be->ops->sample_end(be, results);
}
