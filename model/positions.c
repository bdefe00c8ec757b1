#include "model/positions.h"

static bool has_local(const lk_config *c)
{
    for (int64_t i = 0; i < c->layers; i++)
        if (c->layer[i] & LK_LAYER_LOCAL_ROPE) return true;
    return false;
}

static const lk_rotary *rotary_of(const lk_config *c, int i) { return i ? &c->local_rope : &c->rope; }

void lk_positions_carve(lk_positions *p, lk_carve *c, const lk_config *config, int64_t tokens)
{
    for (int i = 0; i < 1 + has_local(config); i++) {
        int64_t pairs = lk_rotary_pairs(rotary_of(config, i), config->head_dim);
        p->table[i] = lk_carve_tensor(c, LK_F32, tokens, 2 * pairs);
        p->inv_freq[i] = lk_carve_floats(c, pairs);
    }
}

static bool other_frequencies(const lk_config *c, int64_t a, int64_t b)
{
    return lk_rotary_by_length(&c->rope, a, b) || lk_rotary_by_length(&c->local_rope, a, b);
}

lk_status lk_positions_prepare(lk_positions *p, const lk_model *model, int64_t length)
{
    const lk_config *c = &model->config;
    float host[LK_MAX_PAIRS];
    if (p->length && !other_frequencies(c, p->length, length)) return LK_OK;
    for (int i = 0; i < 2 && p->inv_freq[i]; i++) {
        lk_rotary_frequencies(rotary_of(c, i), c->head_dim, length, host);
        LK_TRY(lk_upload(model->be, p->inv_freq[i], host, (size_t)lk_rotary_pairs(rotary_of(c, i), c->head_dim) * 4));
    }
    p->length = length;
    return LK_OK;
}

/* Rows [begin, end) of sequences of one length. */
static lk_status fill_rows(lk_positions *p, const lk_model *model, const lk_batch *batch, int64_t begin, int64_t end, int64_t length)
{
    LK_TRY(lk_positions_prepare(p, model, length));
    for (int i = 0; i < 2 && p->inv_freq[i]; i++) {
        lk_tensor rows = lk_tensor_rows(&p->table[i], begin, end - begin);
        float factor = lk_rotary_factor(rotary_of(&model->config, i));
        LK_TRY(lk_rope_table(model->be, &rows, batch->positions + begin, p->inv_freq[i], factor));
    }
    return LK_OK;
}

lk_status lk_positions_fill(lk_positions *p, const lk_model *model, const lk_batch *batch, int64_t length)
{
    if (length > 0) return fill_rows(p, model, batch, 0, batch->n_tokens + batch->padding, length);
    /* Neighbours with the same frequencies go together. */
    for (int64_t d = 0; d < batch->n_docs;) {
        int64_t first = d, n = batch->doc_starts[d + 1] - batch->doc_starts[d];
        while (d < batch->n_docs && !other_frequencies(&model->config, n, batch->doc_starts[d + 1] - batch->doc_starts[d])) d++;
        LK_TRY(fill_rows(p, model, batch, batch->doc_starts[first], batch->doc_starts[d], n > 0 ? n : 1));
    }
    return LK_OK;
}

bool lk_positions_of(const lk_positions *p, const lk_config *c, int64_t layer, int64_t tokens, lk_tensor *table)
{
    if (!lk_layer_rotary(c, layer)) return false;
    *table = lk_tensor_rows(&p->table[lk_layer_rotary(c, layer) == &c->local_rope], 0, tokens);
    return true;
}
