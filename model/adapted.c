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

static lk_tensor room(const lk_tensor *spare, int64_t rows, int64_t cols)
{
    return (lk_tensor){spare->data, spare->type, rows, cols, cols};
}

/* Of a site with a gain, in training with dropout: one adapter has all rows. */
static bool drops_gained(const lk_batch *batch, int32_t site, const lk_dropout *dropout)
{
    const lk_lora *l = batch->n_segments == 1 ? entry_of(batch, site, 0) : NULL;
    return l && l->gain && dropout && dropout->p > 0.0f;
}

/* y = g (W drop(x) + s B A drop(x)) + bias - W drop(x) + W x + residual. */
static lk_status dropped_linear(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                                const lk_tensor *residual, const lk_tensor *h, const lk_tensor *spare, const lk_dropout *dropout)
{
    lk_backend *be = model->be;
    const lk_weight *weight = &model->weights[site];
    const lk_lora *l = entry_of(batch, site, 0);
    if (!spare) return LK_ERR_INTERNAL; /* the pass was made for a DoRA without dropout */
    lk_tensor dropped = room(&spare[0], x->rows, x->cols), product = room(&spare[1], y->rows, y->cols);
    LK_TRY(lk_drop(be, &dropped, x, site, dropout));
    LK_TRY(lk_linear(be, &product, &dropped, weight->w, NULL, NULL));
    LK_TRY(lk_scale(be, y, &product, 1.0f));
    LK_TRY(lk_lora_forward(be, batch, site, y, &dropped, h, NULL));
    LK_TRY(lk_gain(be, y, l->gain, l->bias ? l->bias : weight->bias, NULL));
    LK_TRY(lk_scale(be, &product, &product, -1.0f));
    LK_TRY(lk_add(be, y, &product));
    LK_TRY(lk_linear(be, &product, x, weight->w, NULL, residual));
    return lk_add(be, y, &product);
}

/* The other way. What comes to the dropped input goes through the dropout once more; dx NULL: not wanted. */
static lk_status dropped_backward(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                                  const lk_tensor *x, const lk_tensor *h, const lk_tensor *spare, bool accumulate,
                                  const lk_dropout *dropout)
{
    lk_backend *be = model->be;
    const lk_matrix *w = model->weights[site].w;
    const lk_lora *l = entry_of(batch, site, 0);
    lk_tensor y = room(&spare[0], dy->rows, dy->cols), dropped = room(&spare[1], x->rows, x->cols),
              back = room(&spare[2], x->rows, x->cols);
    LK_TRY(lk_drop(be, &dropped, x, site, dropout));
    LK_TRY(lk_linear(be, &y, &dropped, w, NULL, NULL));
    LK_TRY(lk_lora_forward(be, batch, site, &y, &dropped, h, NULL));
    LK_TRY(lk_gain_backward(be, &y, dy, l->gain, l->dm, l->inverse_norm));
    LK_TRY(lk_linear_lora_backward(be, batch, site, dx ? &back : NULL, &y, w, &dropped, h, false, NULL));
    if (!dx) return LK_OK;
    LK_TRY(lk_linear_backward(be, &dropped, dy, w, false));
    LK_TRY(accumulate ? lk_add(be, dx, &dropped) : lk_scale(be, dx, &dropped, 1.0f));
    LK_TRY(lk_scale(be, &dropped, &dropped, -1.0f));
    LK_TRY(lk_add(be, &back, &dropped));
    LK_TRY(lk_drop(be, &back, &back, site, dropout));
    return lk_add(be, dx, &back);
}

lk_status lk_adapted_linear(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *y, const lk_tensor *x,
                            const lk_tensor *residual, const lk_tensor *h, const lk_tensor *spare, const lk_dropout *dropout)
{
    const lk_weight *weight = &model->weights[site];
    if (!batch->n_segments) return lk_linear(model->be, y, x, weight->w, weight->bias, residual);
    if (is_plain(batch, site)) return lk_linear_lora(model->be, batch, site, y, x, weight->w, weight->bias, residual, h, dropout);
    if (drops_gained(batch, site, dropout)) return dropped_linear(model, batch, site, y, x, residual, h, spare, dropout);
    LK_TRY(products(model, batch, site, y, x, residual));
    LK_TRY(lk_lora_forward(model->be, batch, site, y, x, h, dropout));
    return lk_lora_gain(model->be, batch, site, y, weight->bias, residual);
}

lk_status lk_adapted_parts(const lk_model *model, const lk_batch *batch, const lk_part *parts, int n, const lk_tensor *x,
                           const lk_tensor *spare, const lk_dropout *dropout)
{
    bool plain = true;
    for (int i = 0; i < n && plain; i++) plain = is_plain(batch, parts[i].site);
    if (plain) return lk_linear_parts(model->be, batch, parts, n, x, dropout);
    for (int i = 0; i < n; i++) LK_TRY(lk_adapted_linear(model, batch, parts[i].site, &parts[i].y, x, NULL, &parts[i].h, spare, dropout));
    return LK_OK;
}

/* Of the layer's bias and of the one behind B, where they are trained: both stand behind a DoRA's gain. */
static lk_status bias_gradients(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *dy)
{
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_lora *l = entry_of(batch, site, i);
        if (!l || (!l->dbias && !l->dlora_bias)) continue;
        lk_tensor rows = lk_tensor_rows(dy, batch->segments[i].begin, batch->segments[i].end - batch->segments[i].begin);
        if (l->dbias) LK_TRY(lk_add_columns(model->be, l->dbias, &rows, 1.0f));
        if (l->dlora_bias) LK_TRY(lk_add_columns(model->be, l->dlora_bias, &rows, l->scale));
    }
    return LK_OK;
}

lk_status lk_adapted_backward(const lk_model *model, const lk_batch *batch, int32_t site, const lk_tensor *dx, const lk_tensor *dy,
                              const lk_tensor *x, const lk_tensor *h, const lk_tensor *spare, bool accumulate, const lk_dropout *dropout)
{
    lk_backend *be = model->be;
    const lk_matrix *w = model->weights[site].w;
    if (!batch->n_segments) return dx ? lk_linear_backward(be, dx, dy, w, accumulate) : LK_OK;
    LK_TRY(bias_gradients(model, batch, site, dy));
    bool gains = false;
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_lora *l = entry_of(batch, site, i);
        gains = gains || (l && l->gain);
    }
    if (!gains) return lk_linear_lora_backward(be, batch, site, dx, dy, w, x, h, accumulate, dropout);
    if (drops_gained(batch, site, dropout)) return dropped_backward(model, batch, site, dx, dy, x, h, spare, accumulate, dropout);
    lk_tensor y = room(spare, dy->rows, dy->cols);
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

/* ---- the embedding's gradients ---- */

bool lk_adapted_trains_embedding(const lk_batch *batch)
{
    for (int64_t i = 0; batch->tables && i < batch->n_segments; i++) {
        const lk_adapter_tables *t = tables_of(batch, i);
        if (t && (t->dembedding || t->dembed_a || t->dtokens)) return true;
    }
    return false;
}

/* Place of a token among an adapter's trained ones, or -1. Training is on backends whose memory is the host's. */
static int32_t token_place(const lk_adapter_tables *t, int32_t id)
{
    int32_t low = 0, high = t->n_tokens;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (t->token_ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->n_tokens && t->token_ids[low] == id ? low : -1;
}

/* Rows of trained tokens, a piece of the batch at a time. */
static lk_status token_gradients(lk_backend *be, const lk_adapter_tables *t, const int32_t *ids, const lk_tensor *dy)
{
    enum { PIECE = 256 };
    int32_t places[PIECE];
    for (int64_t begin = 0; begin < dy->rows; begin += PIECE) {
        int64_t n = dy->rows - begin < PIECE ? dy->rows - begin : PIECE;
        lk_tensor rows = lk_tensor_rows(dy, begin, n);
        for (int64_t i = 0; i < n; i++) places[i] = token_place(t, ids[begin + i]);
        LK_TRY(lk_embed_backward(be, t->dtokens, t->n_tokens, &rows, places));
    }
    return LK_OK;
}

/* y = A^T[ids] (scale B)^T: the gradient of A's rows is dy (scale B), that of B dy^T A^T[ids], scaled. */
static lk_status factor_gradients(lk_backend *be, const lk_adapter_tables *t, const int32_t *ids, const lk_tensor *dy,
                                  const lk_tensor *spare, const lk_tensor *h)
{
    int64_t R = lk_matrix_k(t->embed_a);
    lk_tensor inner = {h->data, h->type, h->rows, R, h->stride}, back = {spare->data, spare->type, spare->rows, R, spare->stride};
    LK_TRY(lk_embed(be, &inner, t->embed_a, ids));
    LK_TRY(lk_weight_gradient(be, t->dembed_b, dy, &inner, t->embed_scale));
    LK_TRY(lk_linear_backward(be, &back, dy, t->embed_b, false));
    return lk_embed_backward(be, t->dembed_a, lk_matrix_n(t->embed_a), &back, ids);
}

lk_status lk_adapted_embed_backward(const lk_model *model, const lk_batch *batch, const lk_tensor *dy, const lk_tensor *spare,
                                    const lk_tensor *h)
{
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_adapter_tables *t = tables_of(batch, i);
        int64_t begin = batch->segments[i].begin, n = batch->segments[i].end - begin;
        lk_tensor rows = lk_tensor_rows(dy, begin, n), free_rows = lk_tensor_rows(spare, begin, n), inner = lk_tensor_rows(h, begin, n);
        const int32_t *ids = batch->ids + begin;
        if (!t) continue;
        if (t->dembedding) LK_TRY(lk_embed_backward(model->be, t->dembedding, model->config.vocab, &rows, ids));
        if (t->dtokens) LK_TRY(token_gradients(model->be, t, ids, &rows));
        if (t->dembed_a) LK_TRY(factor_gradients(model->be, t, ids, &rows, &free_rows, &inner));
    }
    return LK_OK;
}

/* ---- the head ---- */

/* Tables of the adapter of this row of the batch, or NULL. */
static const lk_adapter_tables *tables_of_row(const lk_batch *batch, int64_t row)
{
    for (int64_t i = 0; i < batch->n_segments; i++)
        if (row >= batch->segments[i].begin && row < batch->segments[i].end) return tables_of(batch, i);
    return NULL;
}

static const lk_matrix *head_of(const lk_model *model, const lk_adapter_tables *t) { return t && t->head ? t->head : model->head; }

/* Rows of one adapter: the product, and factors behind it as a batch of one site. */
static lk_status head_rows(const lk_model *model, const lk_adapter_tables *t, const lk_tensor *y, const lk_tensor *x, const lk_tensor *h)
{
    LK_TRY(lk_linear(model->be, y, x, head_of(model, t), NULL, NULL));
    if (!t || !t->head_factors.rank) return LK_OK;
    lk_segment segment = {0, x->rows, 0};
    lk_batch all = {.n_tokens = x->rows, .n_segments = 1, .segments = &segment, .n_sites = 1, .n_adapters = 1, .lora = &t->head_factors};
    return lk_lora_forward(model->be, &all, 0, y, x, h, NULL);
}

lk_status lk_adapted_head(const lk_model *model, const lk_batch *batch, const lk_tensor *y, const lk_tensor *x, const int32_t *rows,
                          int64_t first, const lk_tensor *h)
{
    if (!batch->tables) return lk_linear(model->be, y, x, model->head, NULL, NULL);
    for (int64_t i = 0, next; i < x->rows; i = next) {
        const lk_adapter_tables *t = tables_of_row(batch, rows ? rows[i] : first + i);
        for (next = i + 1; next < x->rows && tables_of_row(batch, rows ? rows[next] : first + next) == t;) next++;
        lk_tensor y_rows = lk_tensor_rows(y, i, next - i), x_rows = lk_tensor_rows(x, i, next - i), h_rows = lk_tensor_rows(h, i, next - i);
        LK_TRY(head_rows(model, t, &y_rows, &x_rows, &h_rows));
    }
    return LK_OK;
}

/* What lk_linear_loss_trained is to know of this adapter's head; false: nothing. */
static bool head_part(lk_head_part *part, const lk_model *model, const lk_adapter_tables *t, bool training, const lk_dropout *dropout)
{
    *part = (lk_head_part){.dropout = dropout, .site = lk_sites(&model->config)}; /* the number behind the last layer's */
    if (!t) return false;
    if (training && t->dhead) part->dw = t->dhead;
    if (training && t->dhead_tokens) {
        part->dw = t->dhead_tokens;
        part->ids = t->token_ids;
        part->n_ids = t->n_tokens;
    }
    if (t->head_factors.rank) part->factors = &t->head_factors;
    return part->dw || part->factors;
}

lk_status lk_adapted_loss(const lk_model *model, const lk_batch *batch, float *nll, uint8_t *hits, const lk_tensor *dx, const lk_tensor *x,
                          const int32_t *labels, float grad_scale, const lk_dropout *dropout)
{
    lk_backend *be = model->be;
    float cap = (float)model->config.logit_cap;
    if (!batch->tables) return lk_linear_loss(be, nll, hits, dx, x, model->head, labels, grad_scale, cap);
    for (int64_t i = 0; i < batch->n_segments; i++) {
        const lk_adapter_tables *t = tables_of(batch, i);
        int64_t begin = batch->segments[i].begin, n = batch->segments[i].end - begin;
        lk_tensor x_rows = lk_tensor_rows(x, begin, n), dx_rows;
        if (dx) dx_rows = lk_tensor_rows(dx, begin, n);
        uint8_t *hits_rows = hits ? hits + begin : NULL;
        lk_head_part part;
        LK_TRY(head_part(&part, model, t, dx != NULL, dropout)
                   ? lk_linear_loss_trained(be, nll + begin, hits_rows, dx ? &dx_rows : NULL, &x_rows, head_of(model, t), &part,
                                            labels + begin, grad_scale, cap)
                   : lk_linear_loss(be, nll + begin, hits_rows, dx ? &dx_rows : NULL, &x_rows, head_of(model, t), labels + begin,
                                    grad_scale, cap));
    }
    return LK_OK;
}
