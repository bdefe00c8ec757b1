/* Reading GGUF. One cursor walks the header; every length is compared with what is left of the file before anything of that length is
 * touched or allocated, so a count of 2^60 is an error of the count and not a failed allocation. What the walk yields (keys, values,
 * tensor infos) points into the mapped file; only tables and terminated names are copied.
 *
 * Data must lie as every writer puts it: tensors one after the other in the order of their infos, each start rounded up to the alignment.
 * ggml itself refuses anything else, so does this reader: no byte of data belongs to two tensors. */
#include "data/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"

enum { MAX_KEY = 65535, MAX_ARRAY = 1 << 30 };

struct lk_gguf {
    lk_arena arena;
    const char *path;
    lk_map map;
    lk_gguf_value *values;
    lk_gguf_tensor *tensors;
    int64_t n_values, n_tensors;
    /* the same by name, for look-ups and to find duplicates */
    const lk_gguf_value **by_key;
    const lk_gguf_tensor **by_name;
};

static const struct {
    const char *name;
    int size;
} value_types[LK_GGUF_N_TYPES] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                                  {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

const char *lk_gguf_type_name(lk_gguf_type type) { return (unsigned)type < LK_GGUF_N_TYPES ? value_types[type].name : "unknown"; }

/* ---- the cursor ---- */

typedef struct cursor {
    const uint8_t *bytes;
    size_t size, at;
    lk_gguf *g;
    lk_error *err;
} cursor;

static size_t left(const cursor *c) { return c->size - c->at; }

static uint64_t load(const uint8_t *p, int size)
{
    uint64_t v = 0;
    for (int i = size - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static lk_status no_memory(const cursor *c) { return lk_fail(c->err, LK_ERR_MEMORY, "%s: no memory for its header", c->g->path); }

/* A number of 4 or 8 bytes; `what` says what it is when the file ends before it. */
static lk_status take(cursor *c, int size, uint64_t *value, const char *what)
{
    *value = 0;
    if (left(c) < (size_t)size)
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: truncated: the file ends at byte %zu, in %s", c->g->path, c->size, what);
    *value = load(c->bytes + c->at, size);
    c->at += (size_t)size;
    return LK_OK;
}

static lk_status take_text(cursor *c, lk_gguf_text *text, const char *what)
{
    *text = (lk_gguf_text){0};
    uint64_t n;
    LK_TRY(take(c, 8, &n, what));
    if (n > left(c))
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: truncated: %s says it has %" PRIu64 " bytes, %zu are left in the file", c->g->path, what,
                       n, left(c));
    *text = (lk_gguf_text){(const char *)c->bytes + c->at, (size_t)n};
    c->at += (size_t)n;
    return LK_OK;
}

/* A name: short, not empty, without zero bytes; terminated in the arena. */
static lk_status take_name(cursor *c, const char **name, size_t most, const char *what)
{
    lk_gguf_text text;
    LK_TRY(take_text(c, &text, what));
    if (text.n == 0 || text.n > most || memchr(text.p, 0, text.n))
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: %s has %zu bytes or a zero byte among them; 1 to %zu without zeros are allowed",
                       c->g->path, what, text.n, most);
    *name = lk_arena_strndup(&c->g->arena, text.p, text.n);
    return *name ? LK_OK : no_memory(c);
}

/* ---- metadata ---- */

static lk_status take_texts(cursor *c, lk_gguf_value *v, const char *what)
{
    lk_gguf_text *texts = lk_arena_alloc(&c->g->arena, (size_t)v->n * sizeof *texts);
    if (!texts) return no_memory(c);
    for (int64_t i = 0; i < v->n; i++) LK_TRY(take_text(c, &texts[i], what));
    v->texts = texts;
    return LK_OK;
}

static lk_status take_value(cursor *c, lk_gguf_value *v)
{
    char what[160];
    snprintf(what, sizeof what, "the value of %.100s", v->key);
    uint64_t type, n = 1;
    LK_TRY(take(c, 4, &type, what));
    if (type >= LK_GGUF_N_TYPES) return lk_fail(c->err, LK_ERR_FORMAT, "%s: %s has the unknown type %" PRIu64, c->g->path, what, type);
    v->type = v->item = (lk_gguf_type)type;
    if (v->type == LK_GGUF_ARRAY) {
        uint64_t item;
        LK_TRY(take(c, 4, &item, what));
        if (item >= LK_GGUF_N_TYPES || item == LK_GGUF_ARRAY)
            return lk_fail(c->err, LK_ERR_UNSUPPORTED, "%s: %s is an array of type %" PRIu64 "; arrays of numbers and strings are read",
                           c->g->path, what, item);
        LK_TRY(take(c, 8, &n, what));
        v->item = (lk_gguf_type)item;
        /* a string takes 8 bytes at least */
        size_t each = item == LK_GGUF_STRING ? 8 : (size_t)value_types[item].size;
        if (n > MAX_ARRAY || n > left(c) / each)
            return lk_fail(c->err, LK_ERR_FORMAT, "%s: %s says it has %" PRIu64 " items, the file cannot hold them (%zu bytes left)",
                           c->g->path, what, n, left(c));
    }
    v->n = (int64_t)n;
    if (v->item == LK_GGUF_STRING) return take_texts(c, v, what);
    size_t bytes = (size_t)n * (size_t)value_types[v->item].size;
    if (bytes > left(c)) return lk_fail(c->err, LK_ERR_FORMAT, "%s: truncated: the file ends in %s", c->g->path, what);
    v->data = c->bytes + c->at;
    c->at += bytes;
    for (size_t i = 0; v->item == LK_GGUF_BOOL && i < bytes; i++)
        if (v->data[i] > 1) return lk_fail(c->err, LK_ERR_FORMAT, "%s: %s is a bool of value %d", c->g->path, what, v->data[i]);
    return LK_OK;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp((*(const lk_gguf_value *const *)a)->key, (*(const lk_gguf_value *const *)b)->key);
}

static lk_status take_values(cursor *c, uint64_t n)
{
    lk_gguf *g = c->g;
    if (n > left(c) / 13) /* a key's length and one letter, a type, a byte of value */
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: says it has %" PRIu64 " keys, the file cannot hold them (%zu bytes left)", g->path, n,
                       left(c));
    g->values = lk_arena_alloc(&g->arena, (size_t)n * sizeof *g->values);
    g->by_key = lk_arena_alloc(&g->arena, (size_t)n * sizeof *g->by_key);
    if (!g->values || !g->by_key) return no_memory(c);
    for (uint64_t i = 0; i < n; i++) {
        lk_gguf_value *v = &g->values[i];
        LK_TRY(take_name(c, &v->key, MAX_KEY, "a key"));
        LK_TRY(take_value(c, v));
        g->by_key[i] = v;
    }
    g->n_values = (int64_t)n;
    if (n) qsort(g->by_key, (size_t)n, sizeof *g->by_key, compare_keys);
    for (uint64_t i = 1; i < n; i++)
        if (!strcmp(g->by_key[i - 1]->key, g->by_key[i]->key))
            return lk_fail(c->err, LK_ERR_FORMAT, "%s: the key %.100s is there twice", g->path, g->by_key[i]->key);
    return LK_OK;
}

/* ---- tensors ---- */

static lk_status take_shape(cursor *c, lk_gguf_tensor *t)
{
    uint64_t n_dims, size;
    LK_TRY(take(c, 4, &n_dims, t->name));
    if (n_dims > LK_GGUF_MAX_DIMS)
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: tensor %s has %" PRIu64 " dimensions, at most %d are allowed", c->g->path, t->name,
                       n_dims, LK_GGUF_MAX_DIMS);
    t->n_dims = (int)n_dims;
    t->n_elements = 1;
    for (int d = t->n_dims - 1; d >= 0; d--) { /* the file has the fastest dimension first */
        LK_TRY(take(c, 8, &size, t->name));
        if (size == 0 || size > INT64_MAX || __builtin_mul_overflow(t->n_elements, (int64_t)size, &t->n_elements))
            return lk_fail(c->err, LK_ERR_FORMAT, "%s: tensor %s: a dimension of %" PRIu64 " is zero or the product overflows 64 bits",
                           c->g->path, t->name, size);
        t->shape[d] = (int64_t)size;
    }
    return LK_OK;
}

static lk_status take_type(cursor *c, lk_gguf_tensor *t)
{
    uint64_t id;
    LK_TRY(take(c, 4, &id, t->name));
    t->type = lk_ggml_type_of((uint32_t)id);
    if (!t->type)
        return lk_fail(c->err, LK_ERR_UNSUPPORTED,
                       "%s: tensor %s has type %s (%" PRIu64 "), which is not read; F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K are",
                       c->g->path, t->name, lk_ggml_type_name((uint32_t)id), id);
    int64_t row = t->n_dims ? t->shape[t->n_dims - 1] : 1;
    if (row % t->type->block)
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: tensor %s has rows of %" PRId64 " values, not a multiple of the %d in a block of %s",
                       c->g->path, t->name, row, t->type->block, t->type->name);
    if (__builtin_mul_overflow(t->n_elements / t->type->block, (int64_t)t->type->bytes, &t->n_bytes))
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: tensor %s: its size in bytes overflows 64 bits", c->g->path, t->name);
    return LK_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const lk_gguf_tensor *const *)a)->name, (*(const lk_gguf_tensor *const *)b)->name);
}

/* offsets[i] as the file says; they are checked when the alignment and the start of the data are known. */
static lk_status take_tensors(cursor *c, uint64_t n, uint64_t *offsets)
{
    lk_gguf *g = c->g;
    for (uint64_t i = 0; i < n; i++) {
        lk_gguf_tensor *t = &g->tensors[i];
        LK_TRY(take_name(c, &t->name, LK_GGUF_MAX_NAME, "a tensor's name"));
        LK_TRY(take_shape(c, t));
        LK_TRY(take_type(c, t));
        LK_TRY(take(c, 8, &offsets[i], t->name));
        g->by_name[i] = t;
    }
    g->n_tensors = (int64_t)n;
    if (n) qsort(g->by_name, (size_t)n, sizeof *g->by_name, compare_names);
    for (uint64_t i = 1; i < n; i++)
        if (!strcmp(g->by_name[i - 1]->name, g->by_name[i]->name))
            return lk_fail(c->err, LK_ERR_FORMAT, "%s: the tensor %s is there twice", g->path, g->by_name[i]->name);
    return LK_OK;
}

/* Every tensor begins where the one before it ends, rounded up. The padding after the last one may be missing. */
static lk_status place_tensors(cursor *c, const uint64_t *offsets)
{
    lk_gguf *g = c->g;
    int64_t alignment = LK_GGUF_ALIGNMENT;
    LK_TRY(lk_gguf_opt_int(g, "general.alignment", 1, 1 << 20, &alignment, c->err));
    if (alignment & (alignment - 1) || alignment % 8)
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: general.alignment is %" PRId64 ", which is not a power of two from 8 on", g->path,
                       alignment);
    size_t mask = (size_t)alignment - 1;
    size_t start = (c->at + mask) & ~mask;
    if (g->n_tensors && start > c->size) return lk_fail(c->err, LK_ERR_FORMAT, "%s: truncated: no data after the header", g->path);
    uint64_t end = 0, room = g->n_tensors ? c->size - start : 0;
    for (int64_t i = 0; i < g->n_tensors; i++) {
        lk_gguf_tensor *t = &g->tensors[i];
        uint64_t at = (end + mask) & ~(uint64_t)mask;
        if (offsets[i] != at)
            return lk_fail(c->err, LK_ERR_FORMAT, "%s: tensor %s is at offset %" PRIu64 ", expected %" PRIu64 " (alignment %" PRId64 ")",
                           g->path, t->name, offsets[i], at, alignment);
        if (at > room || (uint64_t)t->n_bytes > room - at)
            return lk_fail(c->err, LK_ERR_FORMAT,
                           "%s: tensor %s needs bytes %" PRIu64 " to %" PRIu64 " of the data, the file has %" PRIu64 " (is it truncated?)",
                           g->path, t->name, at, at + (uint64_t)t->n_bytes, room);
        t->data = c->bytes + start + at;
        end = at + (uint64_t)t->n_bytes;
    }
    uint64_t padded = (end + mask) & ~(uint64_t)mask;
    if (room > padded)
        return lk_fail(c->err, LK_ERR_FORMAT, "%s: %" PRIu64 " bytes after the last tensor belong to nothing", g->path, room - padded);
    return LK_OK;
}

static lk_status check_magic(cursor *c)
{
    uint64_t version;
    if (left(c) < 4 || memcmp(c->bytes, "GGUF", 4)) return lk_fail(c->err, LK_ERR_FORMAT, "%s: not a GGUF file", c->g->path);
    c->at = 4;
    LK_TRY(take(c, 4, &version, "the version"));
    if (version && !(version & 0xffff))
        return lk_fail(c->err, LK_ERR_UNSUPPORTED, "%s: a big-endian GGUF file; little-endian ones are read", c->g->path);
    if (version != 2 && version != 3)
        return lk_fail(c->err, LK_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu64 "; 2 and 3 are read", c->g->path, version);
    return LK_OK;
}

static lk_status parse(lk_gguf *g, const void *bytes, size_t size, lk_error *err)
{
    cursor c = {bytes, size, 0, g, err};
    uint64_t n_tensors, n_values;
    LK_TRY(check_magic(&c));
    LK_TRY(take(&c, 8, &n_tensors, "the number of tensors"));
    LK_TRY(take(&c, 8, &n_values, "the number of keys"));
    LK_TRY(take_values(&c, n_values));
    int64_t parts = 1;
    LK_TRY(lk_gguf_opt_int(g, "split.count", 0, INT64_MAX, &parts, err));
    if (parts > 1)
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: one of the %" PRId64 " parts of a split model; join them first with llama.cpp's gguf-split --merge", g->path,
                       parts);
    if (n_tensors > left(&c) / 25) /* a name of one letter, dimensions, type, offset */
        return lk_fail(err, LK_ERR_FORMAT, "%s: says it has %" PRIu64 " tensors, the file cannot hold them (%zu bytes left)", g->path,
                       n_tensors, left(&c));
    g->tensors = lk_arena_alloc(&g->arena, (size_t)n_tensors * sizeof *g->tensors);
    g->by_name = lk_arena_alloc(&g->arena, (size_t)n_tensors * sizeof *g->by_name);
    uint64_t *offsets = lk_arena_alloc(&g->arena, (size_t)n_tensors * sizeof *offsets);
    if (!g->tensors || !g->by_name || !offsets) return no_memory(&c);
    LK_TRY(take_tensors(&c, n_tensors, offsets));
    return place_tensors(&c, offsets);
}

static lk_status create(lk_gguf **out, const char *name, lk_error *err)
{
    *out = NULL;
    lk_gguf *g = calloc(1, sizeof *g);
    if (!g) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    if (!(g->path = lk_arena_strdup(&g->arena, name))) {
        free(g);
        return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    }
    *out = g;
    return LK_OK;
}

lk_status lk_gguf_open_memory(lk_gguf **out, const void *bytes, size_t size, const char *name, lk_error *err)
{
    LK_TRY(create(out, name, err));
    lk_status status = parse(*out, bytes, size, err);
    if (!status) return LK_OK;
    lk_gguf_close(*out);
    *out = NULL;
    return status;
}

lk_status lk_gguf_open(lk_gguf **out, const char *path, lk_error *err)
{
    LK_TRY(create(out, path, err));
    lk_gguf *g = *out;
    lk_status status = lk_map_open(&g->map, path, err);
    if (!status) status = parse(g, g->map.data, g->map.size, err);
    if (!status) return LK_OK;
    lk_gguf_close(g);
    *out = NULL;
    return status;
}

void lk_gguf_close(lk_gguf *g)
{
    if (!g) return;
    lk_map_close(&g->map);
    lk_arena_free(&g->arena);
    free(g);
}

bool lk_gguf_is_file(const char *path)
{
    if (lk_path_is_folder(path)) return false;
    FILE *file = fopen(path, "rb");
    char magic[4];
    bool is = file && fread(magic, 1, 4, file) == 4 && !memcmp(magic, "GGUF", 4);
    if (file) fclose(file);
    return is;
}

/* ---- look-ups ---- */

const char *lk_gguf_path(const lk_gguf *g) { return g->path; }
int64_t lk_gguf_count(const lk_gguf *g) { return g->n_tensors; }
const lk_gguf_tensor *lk_gguf_at(const lk_gguf *g, int64_t index) { return &g->tensors[index]; }
int64_t lk_gguf_n_keys(const lk_gguf *g) { return g->n_values; }
const lk_gguf_value *lk_gguf_key_at(const lk_gguf *g, int64_t index) { return &g->values[index]; }

const lk_gguf_tensor *lk_gguf_find(const lk_gguf *g, const char *name)
{
    lk_gguf_tensor wanted = {.name = name}, *key = &wanted;
    const lk_gguf_tensor **found = g->n_tensors ? bsearch(&key, g->by_name, (size_t)g->n_tensors, sizeof *g->by_name, compare_names) : NULL;
    return found ? *found : NULL;
}

const lk_gguf_value *lk_gguf_key(const lk_gguf *g, const char *name)
{
    lk_gguf_value wanted = {.key = name}, *key = &wanted;
    const lk_gguf_value **found = g->n_values ? bsearch(&key, g->by_key, (size_t)g->n_values, sizeof *g->by_key, compare_keys) : NULL;
    return found ? *found : NULL;
}

int64_t lk_gguf_item_int(const lk_gguf_value *v, int64_t i)
{
    int size = value_types[v->item].size;
    if (!size || v->item == LK_GGUF_F32 || v->item == LK_GGUF_F64) return 0;
    uint64_t raw = load(v->data + i * size, size);
    bool is_signed = v->item == LK_GGUF_I8 || v->item == LK_GGUF_I16 || v->item == LK_GGUF_I32;
    if (is_signed && raw >> (8 * size - 1)) raw |= ~0ull << (8 * size - 1); /* extend the sign */
    if (v->item == LK_GGUF_U64 && raw > INT64_MAX) return INT64_MAX;
    return (int64_t)raw;
}

double lk_gguf_item_number(const lk_gguf_value *v, int64_t i)
{
    if (v->item == LK_GGUF_F32) {
        uint32_t raw = (uint32_t)load(v->data + i * 4, 4);
        float f;
        memcpy(&f, &raw, 4);
        return (double)f;
    }
    if (v->item == LK_GGUF_F64) {
        uint64_t raw = load(v->data + i * 8, 8);
        double f;
        memcpy(&f, &raw, 8);
        return f;
    }
    return (double)lk_gguf_item_int(v, i);
}

static lk_status want(const lk_gguf *g, const char *key, const lk_gguf_value **v, lk_error *err)
{
    *v = lk_gguf_key(g, key);
    return *v ? LK_OK : lk_fail(err, LK_ERR_NOT_FOUND, "%s: the key %s is missing", g->path, key);
}

static lk_status wrong_type(const lk_gguf *g, const lk_gguf_value *v, const char *expected, lk_error *err)
{
    return lk_fail(err, LK_ERR_FORMAT, "%s: %s is of type %s, %s expected", g->path, v->key, lk_gguf_type_name(v->type), expected);
}

static bool is_integer(lk_gguf_type type)
{
    return type <= LK_GGUF_I32 || type == LK_GGUF_U64 || type == LK_GGUF_I64; /* the enumeration begins with integers */
}

lk_status lk_gguf_int(const lk_gguf *g, const char *key, int64_t min, int64_t max, int64_t *value, lk_error *err)
{
    const lk_gguf_value *v;
    LK_TRY(want(g, key, &v, err));
    if (!is_integer(v->type)) return wrong_type(g, v, "a whole number", err);
    int64_t number = lk_gguf_item_int(v, 0);
    if (number < min || number > max)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s is %" PRId64 ", expected %" PRId64 " to %" PRId64, g->path, key, number, min, max);
    *value = number;
    return LK_OK;
}

lk_status lk_gguf_number(const lk_gguf *g, const char *key, double *value, lk_error *err)
{
    const lk_gguf_value *v;
    LK_TRY(want(g, key, &v, err));
    if (!is_integer(v->type) && v->type != LK_GGUF_F32 && v->type != LK_GGUF_F64) return wrong_type(g, v, "a number", err);
    double number = lk_gguf_item_number(v, 0);
    if (!(number - number == 0)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is NaN or infinite", g->path, key);
    *value = number;
    return LK_OK;
}

lk_status lk_gguf_bool(const lk_gguf *g, const char *key, bool *value, lk_error *err)
{
    const lk_gguf_value *v;
    LK_TRY(want(g, key, &v, err));
    if (v->type != LK_GGUF_BOOL) return wrong_type(g, v, "a bool", err);
    *value = v->data[0] != 0;
    return LK_OK;
}

lk_status lk_gguf_string(const lk_gguf *g, const char *key, const char **text, size_t *size, lk_error *err)
{
    const lk_gguf_value *v;
    LK_TRY(want(g, key, &v, err));
    if (v->type != LK_GGUF_STRING) return wrong_type(g, v, "a string", err);
    *text = v->texts[0].p;
    *size = v->texts[0].n;
    return LK_OK;
}

lk_status lk_gguf_opt_int(const lk_gguf *g, const char *key, int64_t min, int64_t max, int64_t *value, lk_error *err)
{
    return lk_gguf_key(g, key) ? lk_gguf_int(g, key, min, max, value, err) : LK_OK;
}

lk_status lk_gguf_opt_number(const lk_gguf *g, const char *key, double *value, lk_error *err)
{
    return lk_gguf_key(g, key) ? lk_gguf_number(g, key, value, err) : LK_OK;
}

lk_status lk_gguf_opt_bool(const lk_gguf *g, const char *key, bool *value, lk_error *err)
{
    return lk_gguf_key(g, key) ? lk_gguf_bool(g, key, value, err) : LK_OK;
}

lk_status lk_gguf_opt_string(const lk_gguf *g, const char *key, const char **text, size_t *size, lk_error *err)
{
    return lk_gguf_key(g, key) ? lk_gguf_string(g, key, text, size, err) : LK_OK;
}

lk_status lk_gguf_array(const lk_gguf *g, const char *key, lk_gguf_type item, const lk_gguf_value **value, lk_error *err)
{
    const lk_gguf_value *v;
    LK_TRY(want(g, key, &v, err));
    if (v->type != LK_GGUF_ARRAY || v->item != item)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s is %s%s, an array of %s expected", g->path, key,
                       v->type == LK_GGUF_ARRAY ? "an array of " : "of type ", lk_gguf_type_name(v->item), lk_gguf_type_name(item));
    *value = v;
    return LK_OK;
}
