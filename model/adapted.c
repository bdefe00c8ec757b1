#include "model/adapted.h"

#include <stdlib.h>

static const lk_lora *entry_of(const lk_batch *batch, int32_t site, int64_t segment)
{
    int32_t adapter = batch->segments[segment].adapter;
    return adapter < 0 ? NULL : &batch->lora[(int64_t)site * batch->n_adapters + adapter];
}

/* Whether what ends a layer comes behind the product: a gain, or a bias of the adapter's own. */
static bool is_ended(const lk_batch *batch, int32_t site, int64_t segment)
{
    const lk_lora *l = entry_of(batch, site, segment);
    return l && (l->gain || l->bias);
}

static bool is_plain(const lk_batch *batch, int32_t site)
{
    for (int64_t i = 0; i < batch->n_segments; i++)
        if (is_ended(batch, site, i)) return false;
    return true;
}

bool lk_adapted_plain(const lk_batch *batch)
{
    if (!batch->n_segments) return true;
    if (batch->tables) return false;
    int64_t n = (int64_t)batch->n_sites * batch->n_adapters;
    for (int64_t i = 0; i < n; i++)
        if (batch->lora[i].gain || batch->lora[i].bias) return false;
    return true;
}

/* ---- linear layers ---- */

/* W x for runs of rows whose layer ends alike: in the product, or behind the factors. However many adapters, the matrix is read once for
 * each run. */
static lk_status products(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                          const lk_tensor *residual)
{
    const lk_weight *weight = &model->weights[site];
    for (int64_t i = 0, next; i < batch->n_segments; i = next) {
        bool ended = is_ended(batch, site, i);
        for (next = i + 1; next < batch->n_segments && is_ended(batch, site, next) == ended;) next++;
        int64_t begin = batch->segments[i].begin, n = batch->segments[next - 1].end - begin;
        lk_tensor y_rows = lk_tensor_rows(y, begin, n), x_rows = lk_tensor_rows(x, begin, n), r_rows;
        if (residual) r_rows = lk_tensor_rows(residual, begin, n);
        LK_TRY(lk_linear(model->be, &y_rows, &x_rows, weight->w, ended ? NULL : weight->bias, residual && !ended ? &r_rows : NULL));
    }
    return LK_OK;
}

lk_status lk_adapted_linear(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                            const lk_tensor *residual, const lk_tensor *h, const lk_dropout *dropout)
{
    const lk_weight *weight = &model->weights[site];
    if (!batch->n_segments) return lk_linear(model->be, y, x, weight->w, weight->bias, residual);
    if (is_plain(batch, site)) return lk_linear_lora(model->be, batch, site, y, x, weight->w, weight->bias, residual, h, dropout);
    LK_TRY(products(model, batch, site, y, x, residual));
    LK_TRY(lk_lora_forward(model->be, batch, site, y, x, h, dropout));
    return lk_lora_gain(model->be, batch, site, y, weight->bias, residual);
}

lk_status lk_adapted_parts(const lk_model *model, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                           const lk_dropout *dropout)
{
    bool plain = true;
    for (int i = 0; i < n && plain; i++) plain = is_plain(batch, parts[i].site);
    if (plain) return lk_linear_parts(model->be, batch, parts, n, x, dropout);
    for (int i = 0; i < n; i++) LK_TRY(lk_adapted_linear(model, batch, parts[i].site, &parts[i].y, x, NULL, &parts[i].h, dropout));
    return LK_OK;
}

lk_status lk_adapted_backward(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                              const lk_tensor *x, const lk_tensor *h, const lk_tensor *spare, bool accumulate, const lk_dropout *dropout)
{
    lk_backend *be = model->be;
    const lk_matrix *w = model->weights[site].w;
    if (!batch->n_segments) return dx ? lk_linear_backward(be, dx, dy, w, accumulate) : LK_OK;
    bool gains = false;
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_lora *l = entry_of(batch, site, i);
        gains = gains || (l && l->gain);
    }
    if (!gains) return lk_linear_lora_backward(be, batch, site, dx, dy, w, x, h, accumulate, dropout);
    lk_tensor y = (lk_tensor){spare->data, spare->type, dy->rows, dy->cols, dy->cols};
    LK_TRY(lk_linear(be, &y, x, w, NULL, NULL));
    LK_TRY(lk_lora_forward(be, batch, site, &y, x, h, dropout));
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_lora *l = entry_of(batch, site, i);
        int64_t begin = batch->segments[i].begin, n = batch->segments[i].end - begin;
        lk_tensor y_rows = lk_tensor_rows(&y, begin, n), dy_rows = lk_tensor_rows(dy, begin, n);
        if (!l || !l->gain) return LK_ERR_INTERNAL; /* one adapter trains at a time */
        LK_TRY(lk_gain_backward(be, &y_rows, &dy_rows, l->gain, l->dm, l->inverse_norm));
    }
    return lk_linear_lora_backward(be, batch, site, dx, &y, w, x, h, accumulate, dropout);
}

/* ---- tables ---- */

static const lk_adapter_tables *tables_of(const lk_batch *batch, int64_t segment)
{
    int32_t adapter = batch->segments[segment].adapter;
    return adapter < 0 ? NULL : &batch->tables[adapter];
}

static lk_status embed_segment(const lk_model *model, const lk_adapter_tables *t, const int32_t *ids, const lk_tensor *y,
                               const lk_tensor *spare, const lk_tensor *h)
{
    lk_backend *be = model->be;
    const lk_matrix *table = t && t->embedding ? t->embedding : model->embedding;
    bool adds = t && t->embed_a;
    LK_TRY(lk_embed(be, adds ? spare : y, table, ids));
    if (adds) {
        lk_dtype act = lk_backend_act(be); /* of the embedding's factors: h itself where activations are F32 */
        lk_tensor inner = {h->data, act, h->rows, lk_matrix_k(t->embed_a), h->stride * 4 / lk_dtype_size(act)};
        LK_TRY(lk_embed(be, &inner, t->embed_a, ids));
        LK_TRY(lk_linear(be, y, &inner, t->embed_b, NULL, spare));
    }
    return t && t->n_tokens ? lk_embed_some(be, y, t->token_rows, t->token_ids, ids) : LK_OK;
}

lk_status lk_adapted_embed(const lk_model *model, const lk_batch *batch, const lk_tensor *y, const lk_tensor *spare, const lk_tensor *h)
{
    if (!batch->tables || !batch->n_segments) return lk_embed(model->be, y, model->embedding, batch->ids);
    for (int64_t i = 0; i < batch->n_segments; i++) {
        int64_t begin = batch->segments[i].begin, n = batch->segments[i].end - begin;
        lk_tensor rows = lk_tensor_rows(y, begin, n), base = lk_tensor_rows(spare, begin, n), inner = lk_tensor_rows(h, begin, n);
        LK_TRY(embed_segment(model, tables_of(batch, i), batch->ids + begin, &rows, &base, &inner));
    }
    return LK_OK;
}

static const lk_matrix *head_of(const lk_model *model, const lk_batch *batch, int64_t row)
{
    for (int64_t i = 0; i < batch->n_segments; i++) {
        if (row < batch->segments[i].begin || row >= batch->segments[i].end) continue;
        const lk_adapter_tables *t = tables_of(batch, i);
        return t && t->head ? t->head : model->head;
    }
    return model->head;
}

lk_status lk_adapted_head(const lk_model *model, const lk_batch *batch, const lk_tensor *y, const lk_tensor *x, const int32_t *rows,
                          int64_t first)
{
    if (!batch->tables) return lk_linear(model->be, y, x, model->head, NULL, NULL);
    for (int64_t i = 0, next; i < x->rows; i = next) {
        const lk_matrix *head = head_of(model, batch, rows ? rows[i] : first + i);
        for (next = i + 1; next < x->rows && head_of(model, batch, rows ? rows[next] : first + next) == head;) next++;
        lk_tensor y_rows = lk_tensor_rows(y, i, next - i), x_rows = lk_tensor_rows(x, i, next - i);
        LK_TRY(lk_linear(model->be, &y_rows, &x_rows, head, NULL, NULL));
    }
    return LK_OK;
}

lk_status lk_adapted_loss(const lk_model *model, const lk_batch *batch, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                          const int32_t *labels, float grad_scale)
{
    float cap = (float)model->config.logit_cap;
    if (!batch->tables) return lk_linear_loss(model->be, nll, hits, dx, x, model->head, labels, grad_scale, cap);
    for (int64_t i = 0; i < batch->n_segments; i++) {
        int64_t begin = batch->segments[i].begin, n = batch->segments[i].end - begin;
        lk_tensor x_rows = lk_tensor_rows(x, begin, n), dx_rows;
        if (dx) dx_rows = lk_tensor_rows(dx, begin, n);
        LK_TRY(lk_linear_loss(model->be, nll + begin, hits ? hits + begin : NULL, dx ? &dx_rows : NULL, &x_rows,
                              head_of(model, batch, begin), labels + begin, grad_scale, cap));
    }
    return LK_OK;
}
