/* The tensors of a GGUF file as those of the folder it was made from: names, rows in their own order, norms without the 1, experts one by
 * one. What is neither quantised nor changed stays where the file is mapped; the rest is computed when it is read, a range of elements at
 * a time, so that quantising to NF4 never holds a matrix in fp32. */
#include <stdlib.h>
#include <string.h>

#include "data/gguf.h"
#include "model/gguf_map.h"
#include "model/weights.h"

typedef struct source {
    lk_st_source st; /* first: what lk_st_tensor points to */
    const lk_ggml_type *type;
    const void *data;
    int64_t offset;   /* first element of the expert */
    int64_t columns;  /* of a row whose place is permuted */
    int64_t head_dim; /* 0: rows are not permuted */
    bool minus_one;
} source;

typedef struct weights {
    lk_gguf *g;
    source *sources;
    lk_st_tensor *tensors;
    char (*names)[128];
    int64_t n;
} weights;

static void close_weights(void *owner)
{
    weights *w = owner;
    lk_gguf_close(w->g);
    free(w->sources);
    free(w->tensors);
    free(w->names);
    free(w);
}

static lk_status read_elements(const lk_st_tensor *t, int64_t first, int64_t n, float *out, lk_error *err)
{
    (void)err;
    const source *s = (const source *)(const void *)t->source;
    if (!s->head_dim) lk_ggml_decode(s->type, s->data, s->offset + first, n, out);
    for (int64_t done = 0; s->head_dim && done < n;) { /* row by row, each from its place in the file */
        int64_t row = (first + done) / s->columns, column = (first + done) % s->columns, count = s->columns - column;
        if (count > n - done) count = n - done;
        lk_ggml_decode(s->type, s->data, lk_gguf_row_back(row, s->head_dim) * s->columns + column, count, out + done);
        done += count;
    }
    for (int64_t i = 0; s->minus_one && i < n; i++) out[i] -= 1.0f;
    return LK_OK;
}

static lk_dtype plain_type(const lk_ggml_type *type)
{
    return type->id == LK_GGML_F16 ? LK_F16 : type->id == LK_GGML_BF16 ? LK_BF16 : LK_F32;
}

/* One tensor of the folder; expert: which part of a GGUF tensor with three dimensions it is. */
static lk_status add(weights *w, const lk_gguf_tensor *from, const lk_gguf_place *place, const lk_config *c, lk_error *err)
{
    lk_st_tensor *t = &w->tensors[w->n];
    source *s = &w->sources[w->n];
    bool expert = place->expert >= 0, permuted = (place->how & (LK_GGUF_ROWS_Q | LK_GGUF_ROWS_K)) != 0;
    int skip = expert ? 1 : 0;
    *t = (lk_st_tensor){.name = w->names[w->n], .type = plain_type(from->type), .n_dims = from->n_dims - skip, .n_elements = 1};
    for (int d = 0; d < t->n_dims; d++) t->n_elements *= t->shape[d] = from->shape[d + skip];
    t->n_bytes = t->n_elements * lk_dtype_size(t->type);
    *s = (source){.type = from->type, .data = from->data, .columns = t->n_dims == 2 ? t->shape[1] : 1};
    s->offset = expert ? place->expert * t->n_elements : 0;
    s->minus_one = (place->how & LK_GGUF_NORM) != 0;
    s->head_dim = permuted ? c->head_dim : 0;
    if (permuted && t->shape[0] % c->head_dim)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor %s has %lld rows, not a multiple of the head size %lld", lk_gguf_path(w->g),
                       from->name, (long long)t->shape[0], (long long)c->head_dim);
    int64_t bytes = lk_ggml_bytes(from->type, t->n_elements);
    const unsigned char *stored = (const unsigned char *)from->data + (expert ? place->expert * bytes : 0);
    if (from->type->block == 1 && !permuted && !s->minus_one) {
        t->data = stored;
    } else {
        s->st = (lk_st_source){read_elements, stored, bytes};
        t->source = &s->st;
    }
    w->n++;
    return LK_OK;
}

/* A GGUF tensor: one of the folder, or as many as there are experts. */
static lk_status add_tensor(weights *w, const lk_gguf_family *f, const lk_gguf_tensor *t, const lk_config *c, lk_error *err)
{
    lk_gguf_place place;
    if (!strncmp(t->name, "rope_f", 6)) return LK_OK; /* frequencies: part of the configuration */
    if (!lk_gguf_tensor_of(w->names[w->n], sizeof w->names[0], &place, f, t->name, 0))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: tensor %s has no place in a %s model; refusing to ignore it", lk_gguf_path(w->g),
                       t->name, c->model_type);
    if (!(place.how & LK_GGUF_EXPERT)) return add(w, t, &place, c, err);
    if (t->n_dims != 3 || t->shape[0] != c->experts)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor %s does not hold %lld matrices", lk_gguf_path(w->g), t->name,
                       (long long)c->experts);
    for (int32_t x = 0; x < c->experts; x++) {
        lk_gguf_tensor_of(w->names[w->n], sizeof w->names[0], &place, f, t->name, x);
        LK_TRY(add(w, t, &place, c, err));
    }
    return LK_OK;
}

lk_status lk_gguf_open_weights(lk_safetensors **st, const char *file, const lk_config *c, lk_error *err)
{
    const lk_gguf_family *f = lk_gguf_family_of(c->model_type);
    *st = NULL;
    if (!f) return lk_fail(err, LK_ERR_INTERNAL, "%s: no GGUF names are known for %s", file, c->model_type);
    weights *w = calloc(1, sizeof *w);
    if (!w) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", file);
    lk_status status = lk_gguf_open(&w->g, file, err);
    if (status) goto fail;
    size_t room = (size_t)lk_gguf_count(w->g) + 1;
    if (c->experts) room += room * (size_t)c->experts;
    w->sources = calloc(room, sizeof *w->sources);
    w->tensors = calloc(room, sizeof *w->tensors);
    w->names = calloc(room, sizeof *w->names);
    if (!w->sources || !w->tensors || !w->names) {
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %lld tensors", file, (long long)lk_gguf_count(w->g));
        goto fail;
    }
    for (int64_t i = 0; i < lk_gguf_count(w->g); i++)
        if ((status = add_tensor(w, f, lk_gguf_at(w->g, i), c, err))) goto fail;
    if ((status = lk_safetensors_of_tensors(st, file, w->tensors, w->n, w, close_weights, err))) goto fail;
    return LK_OK;
fail:
    close_weights(w);
    return status;
}
