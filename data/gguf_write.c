/* Writing GGUF: keys and tensor infos collect in memory; the first byte of data settles the header, which is then written, and the data
 * streams behind it. The number of keys and tensors stands at the very front, so nothing of the header can be written before all of it is
 * known. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/gguf.h"

typedef struct buffer {
    uint8_t *p;
    size_t n, room;
} buffer;

typedef struct declared {
    char name[LK_GGUF_MAX_NAME + 1];
    const lk_ggml_type *type;
    int n_dims;
    int64_t shape[LK_GGUF_MAX_DIMS];
    int64_t n_bytes;
} declared;

struct lk_gguf_writer {
    lk_atomic_file file;
    buffer keys;
    int64_t n_keys;
    declared *tensors;
    int64_t n_tensors, room;
    int64_t current, written_of_current; /* the tensor whose bytes come now */
    int64_t position;                    /* bytes in the file */
    bool started;
};

static lk_status put(buffer *b, const void *bytes, size_t n, lk_error *err)
{
    if (b->n + n > b->room) {
        size_t room = b->room * 2 + n + 4096;
        uint8_t *grown = realloc(b->p, room);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for the header of a GGUF file");
        b->p = grown;
        b->room = room;
    }
    if (n) memcpy(b->p + b->n, bytes, n);
    b->n += n;
    return LK_OK;
}

static lk_status put_number(buffer *b, uint64_t value, int size, lk_error *err)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    return put(b, bytes, (size_t)size, err);
}

static lk_status put_text(buffer *b, const char *p, size_t n, lk_error *err)
{
    LK_TRY(put_number(b, n, 8, err));
    return put(b, p, n, err);
}

static uint32_t float_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

lk_status lk_gguf_writer_create(lk_gguf_writer **out, const char *path, lk_error *err)
{
    *out = NULL;
    lk_gguf_writer *w = calloc(1, sizeof *w);
    if (!w) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    lk_status status = lk_atomic_open(&w->file, path, err);
    if (status) {
        free(w);
        return status;
    }
    *out = w;
    return LK_OK;
}

/* ---- keys ---- */

/* Is the key among those written? The buffer is its own list: every entry's size follows from its type. */
static bool has_key(const lk_gguf_writer *w, const char *key)
{
    static const int sizes[LK_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    size_t length = strlen(key), at = 0;
    while (at < w->keys.n) {
        uint64_t n, count = 1;
        uint32_t type;
        memcpy(&n, w->keys.p + at, 8);
        if (n == length && !memcmp(w->keys.p + at + 8, key, length)) return true;
        at += 8 + n;
        memcpy(&type, w->keys.p + at, 4);
        at += 4;
        if (type == LK_GGUF_ARRAY) {
            memcpy(&type, w->keys.p + at, 4);
            memcpy(&count, w->keys.p + at + 4, 8);
            at += 12;
        }
        for (; type == LK_GGUF_STRING && count; count--) {
            memcpy(&n, w->keys.p + at, 8);
            at += 8 + n;
        }
        at += count * (uint64_t)sizes[type];
    }
    return false;
}

static lk_status put_key(lk_gguf_writer *w, const char *key, lk_gguf_type type, lk_error *err)
{
    if (w->started || has_key(w, key)) return lk_fail(err, LK_ERR_INTERNAL, "GGUF key %s written twice or after the data", key);
    LK_TRY(put_text(&w->keys, key, strlen(key), err));
    w->n_keys++;
    return put_number(&w->keys, type, 4, err);
}

static lk_status put_array(lk_gguf_writer *w, const char *key, lk_gguf_type item, int64_t n, lk_error *err)
{
    LK_TRY(put_key(w, key, LK_GGUF_ARRAY, err));
    LK_TRY(put_number(&w->keys, item, 4, err));
    return put_number(&w->keys, (uint64_t)n, 8, err);
}

lk_status lk_gguf_add_u32(lk_gguf_writer *w, const char *key, int64_t value, lk_error *err)
{
    if (value < 0 || value > UINT32_MAX)
        return lk_fail(err, LK_ERR_ARGUMENT, "GGUF key %s: %" PRId64 " does not fit 32 unsigned bits", key, value);
    LK_TRY(put_key(w, key, LK_GGUF_U32, err));
    return put_number(&w->keys, (uint64_t)value, 4, err);
}

lk_status lk_gguf_add_f32(lk_gguf_writer *w, const char *key, double value, lk_error *err)
{
    LK_TRY(put_key(w, key, LK_GGUF_F32, err));
    return put_number(&w->keys, float_bits((float)value), 4, err);
}

lk_status lk_gguf_add_bool(lk_gguf_writer *w, const char *key, bool value, lk_error *err)
{
    LK_TRY(put_key(w, key, LK_GGUF_BOOL, err));
    return put_number(&w->keys, value, 1, err);
}

lk_status lk_gguf_add_string(lk_gguf_writer *w, const char *key, const char *text, lk_error *err)
{
    LK_TRY(put_key(w, key, LK_GGUF_STRING, err));
    return put_text(&w->keys, text, strlen(text), err);
}

lk_status lk_gguf_add_texts(lk_gguf_writer *w, const char *key, const lk_gguf_text *texts, int64_t n, lk_error *err)
{
    LK_TRY(put_array(w, key, LK_GGUF_STRING, n, err));
    for (int64_t i = 0; i < n; i++) LK_TRY(put_text(&w->keys, texts[i].p, texts[i].n, err));
    return LK_OK;
}

lk_status lk_gguf_add_i32s(lk_gguf_writer *w, const char *key, const int32_t *values, int64_t n, lk_error *err)
{
    LK_TRY(put_array(w, key, LK_GGUF_I32, n, err));
    for (int64_t i = 0; i < n; i++) LK_TRY(put_number(&w->keys, (uint32_t)values[i], 4, err));
    return LK_OK;
}

lk_status lk_gguf_add_f32s(lk_gguf_writer *w, const char *key, const float *values, int64_t n, lk_error *err)
{
    LK_TRY(put_array(w, key, LK_GGUF_F32, n, err));
    for (int64_t i = 0; i < n; i++) LK_TRY(put_number(&w->keys, float_bits(values[i]), 4, err));
    return LK_OK;
}

lk_status lk_gguf_add_bools(lk_gguf_writer *w, const char *key, const bool *values, int64_t n, lk_error *err)
{
    LK_TRY(put_array(w, key, LK_GGUF_BOOL, n, err));
    for (int64_t i = 0; i < n; i++) LK_TRY(put_number(&w->keys, values[i], 1, err));
    return LK_OK;
}

/* ---- tensors ---- */

lk_status lk_gguf_declare(lk_gguf_writer *w, const char *name, const lk_ggml_type *type, int n_dims, const int64_t *shape, lk_error *err)
{
    if (w->started) return lk_fail(err, LK_ERR_INTERNAL, "GGUF tensor %s declared after the data", name);
    if (!*name || strlen(name) > LK_GGUF_MAX_NAME || n_dims < 1 || n_dims > LK_GGUF_MAX_DIMS)
        return lk_fail(err, LK_ERR_ARGUMENT, "GGUF cannot hold a tensor of %d dimensions called %.100s (names have at most %d bytes)",
                       n_dims, name, LK_GGUF_MAX_NAME);
    for (int64_t i = 0; i < w->n_tensors; i++)
        if (!strcmp(w->tensors[i].name, name)) return lk_fail(err, LK_ERR_INTERNAL, "GGUF tensor %s declared twice", name);
    if (shape[n_dims - 1] % type->block)
        return lk_fail(err, LK_ERR_ARGUMENT, "tensor %s has rows of %" PRId64 " values; %s needs a multiple of %d", name, shape[n_dims - 1],
                       type->name, type->block);
    if (w->n_tensors == w->room) {
        int64_t room = w->room * 2 + 64;
        declared *grown = realloc(w->tensors, (size_t)room * sizeof *grown);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for %" PRId64 " GGUF tensors", room);
        w->tensors = grown;
        w->room = room;
    }
    declared *t = &w->tensors[w->n_tensors++];
    *t = (declared){.type = type, .n_dims = n_dims};
    strcpy(t->name, name);
    int64_t n = 1;
    for (int d = 0; d < n_dims; d++) n *= t->shape[d] = shape[d];
    t->n_bytes = lk_ggml_bytes(type, n);
    return LK_OK;
}

static int64_t padded(int64_t n) { return (n + LK_GGUF_ALIGNMENT - 1) / LK_GGUF_ALIGNMENT * LK_GGUF_ALIGNMENT; }

static lk_status emit(lk_gguf_writer *w, const void *bytes, size_t size, lk_error *err)
{
    LK_TRY(lk_atomic_write(&w->file, bytes, size, err));
    w->position += (int64_t)size;
    return LK_OK;
}

static lk_status pad(lk_gguf_writer *w, lk_error *err)
{
    static const uint8_t zeros[LK_GGUF_ALIGNMENT];
    return emit(w, zeros, (size_t)(padded(w->position) - w->position), err);
}

static lk_status start(lk_gguf_writer *w, lk_error *err)
{
    buffer front = {0}, infos = {0};
    lk_status status = LK_OK;
    if ((status = put(&front, "GGUF", 4, err))) goto out;
    if ((status = put_number(&front, 3, 4, err))) goto out;
    if ((status = put_number(&front, (uint64_t)w->n_tensors, 8, err))) goto out;
    if ((status = put_number(&front, (uint64_t)w->n_keys, 8, err))) goto out;
    uint64_t offset = 0;
    for (int64_t i = 0; i < w->n_tensors; i++) {
        const declared *t = &w->tensors[i];
        if ((status = put_text(&infos, t->name, strlen(t->name), err))) goto out;
        if ((status = put_number(&infos, (uint64_t)t->n_dims, 4, err))) goto out;
        for (int d = t->n_dims - 1; d >= 0; d--)
            if ((status = put_number(&infos, (uint64_t)t->shape[d], 8, err))) goto out;
        if ((status = put_number(&infos, t->type->id, 4, err))) goto out;
        if ((status = put_number(&infos, offset, 8, err))) goto out;
        offset += (uint64_t)padded(t->n_bytes);
    }
    if ((status = emit(w, front.p, front.n, err))) goto out;
    if ((status = emit(w, w->keys.p, w->keys.n, err))) goto out;
    if ((status = emit(w, infos.p, infos.n, err))) goto out;
    status = pad(w, err);
    w->started = true;
out:
    free(front.p);
    free(infos.p);
    return status;
}

lk_status lk_gguf_write(lk_gguf_writer *w, const void *bytes, size_t size, lk_error *err)
{
    if (!w->started) LK_TRY(start(w, err));
    if (w->current == w->n_tensors) return lk_fail(err, LK_ERR_INTERNAL, "%s: more data than was declared", w->file.path);
    const declared *t = &w->tensors[w->current];
    if ((int64_t)size > t->n_bytes - w->written_of_current)
        return lk_fail(err, LK_ERR_INTERNAL, "%s: tensor %s gets more than its %" PRId64 " bytes", w->file.path, t->name, t->n_bytes);
    LK_TRY(emit(w, bytes, size, err));
    w->written_of_current += (int64_t)size;
    if (w->written_of_current < t->n_bytes) return LK_OK;
    w->current++;
    w->written_of_current = 0;
    return pad(w, err);
}

int64_t lk_gguf_written(const lk_gguf_writer *w) { return w->position; }

lk_status lk_gguf_commit(lk_gguf_writer *w, lk_error *err)
{
    if (!w->started) LK_TRY(start(w, err));
    if (w->current < w->n_tensors)
        return lk_fail(err, LK_ERR_INTERNAL, "%s: the bytes of tensor %s are not complete", w->file.path, w->tensors[w->current].name);
    LK_TRY(lk_atomic_commit(&w->file, err));
    lk_gguf_abort(w);
    return LK_OK;
}

void lk_gguf_abort(lk_gguf_writer *w)
{
    if (!w) return;
    lk_atomic_abort(&w->file);
    free(w->keys.p);
    free(w->tensors);
    free(w);
}
