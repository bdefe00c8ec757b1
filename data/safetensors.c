/* Reading safetensors: the header is parsed and checked once, the data stays where the file is mapped.
 *
 * Every file is checked completely before the first tensor is handed out, because a model is loaded by code that trusts offsets:
 * entries are sorted by place, and each must begin where the one before ended, so that no byte belongs to two tensors or to none.
 * A sharded folder is the union of its files; its index says which files, and everything it promises is looked up.
 *
 * Rejected: reading through a stream (a 4-bit base is mapped and uploaded; copies double the memory), and trusting the index for
 * names and shapes (files that people re-shard carry stale ones: the headers of the shards are the truth). */
#include "data/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"

enum { MAX_INDEX_BYTES = 256 << 20 };

typedef struct metadata_entry {
    const char *key, *value;
} metadata_entry;

struct lk_safetensors {
    lk_arena arena;   /* names */
    const char *path; /* what was opened, for messages */
    lk_map *maps;
    int64_t n_maps;
    lk_st_tensor *tensors; /* sorted by name when open has returned */
    int64_t n_tensors, room;
    metadata_entry *metadata; /* of the first file */
    int64_t n_metadata;
    void *owner; /* of tensors that are not in maps */
    void (*close_owner)(void *owner);
};

static const struct {
    const char *name;
    lk_dtype type;
} dtypes[] = {{"F32", LK_F32}, {"BF16", LK_BF16}, {"F16", LK_F16}, {"F64", LK_F64}, {"I64", LK_I64},
              {"I32", LK_I32}, {"I16", LK_I16},   {"I8", LK_I8},   {"U8", LK_U8},   {"BOOL", LK_BOOL}};

/* ---- one file ---- */

static lk_status parse_dtype(const cJSON *entry, lk_st_tensor *t, lk_error *err)
{
    const char *name;
    LK_TRY(lk_json_string(entry, "dtype", &name, t->file, err));
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, name)) continue;
        t->type = dtypes[i].type;
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: type %.40s is not supported (F32, BF16, F16, F64, I64, I32, I16, I8, U8 and BOOL are)",
                   t->file, name);
}

/* A whole number of a JSON array, 0 .. 2^53. */
static bool whole(const cJSON *item, int64_t *value)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 9007199254740992.0)) return false;
    *value = (int64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
}

static lk_status parse_shape(const cJSON *entry, lk_st_tensor *t, lk_error *err)
{
    const cJSON *shape = lk_json_get(entry, "shape"), *item;
    if (!cJSON_IsArray(shape)) return lk_fail(err, LK_ERR_FORMAT, "%s: shape must be a list of whole numbers", t->file);
    t->n_elements = 1;
    t->n_dims = 0;
    cJSON_ArrayForEach(item, shape)
    {
        int64_t size;
        if (t->n_dims == LK_ST_MAX_DIMS) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d dimensions", t->file, LK_ST_MAX_DIMS);
        if (!whole(item, &size)) return lk_fail(err, LK_ERR_FORMAT, "%s: shape must be a list of whole numbers", t->file);
        if (__builtin_mul_overflow(t->n_elements, size, &t->n_elements))
            return lk_fail(err, LK_ERR_FORMAT, "%s: the product of the shape overflows 64 bits", t->file);
        t->shape[t->n_dims++] = size;
    }
    if (__builtin_mul_overflow(t->n_elements, lk_dtype_size(t->type), &t->n_bytes))
        return lk_fail(err, LK_ERR_FORMAT, "%s: the size in bytes overflows 64 bits", t->file);
    return LK_OK;
}

/* Offsets count from the start of the data, buffer_size bytes that begin at data. */
static lk_status parse_offsets(const cJSON *entry, lk_st_tensor *t, const unsigned char *data, int64_t buffer_size, lk_error *err)
{
    const cJSON *offsets = lk_json_get(entry, "data_offsets");
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !whole(cJSON_GetArrayItem(offsets, 0), &begin) ||
        !whole(cJSON_GetArrayItem(offsets, 1), &end))
        return lk_fail(err, LK_ERR_FORMAT, "%s: data_offsets must be two whole numbers", t->file);
    if (begin > end || end > buffer_size)
        return lk_fail(err, LK_ERR_FORMAT,
                       "%s: data_offsets [%" PRId64 ", %" PRId64 "] lie outside the %" PRId64 " bytes of data that the file has%s", t->file,
                       begin, end, buffer_size, begin <= end ? " (is the file truncated?)" : "");
    if (end - begin != t->n_bytes)
        return lk_fail(err, LK_ERR_FORMAT, "%s: data_offsets hold %" PRId64 " bytes, type and shape need %" PRId64, t->file, end - begin,
                       t->n_bytes);
    t->data = data + begin;
    return LK_OK;
}

static lk_status add_tensor(lk_safetensors *st, const lk_st_tensor *t, lk_error *err)
{
    if (st->n_tensors == st->room) {
        int64_t room = st->room ? st->room * 2 : 64;
        lk_st_tensor *grown = realloc(st->tensors, (size_t)room * sizeof *grown);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %" PRId64 " tensors", t->file, room);
        st->tensors = grown;
        st->room = room;
    }
    st->tensors[st->n_tensors++] = *t;
    return LK_OK;
}

static lk_status parse_metadata(lk_safetensors *st, const cJSON *object, const char *file, lk_error *err)
{
    const cJSON *item;
    if (!cJSON_IsObject(object)) return lk_fail(err, LK_ERR_FORMAT, "%s: __metadata__ must be an object of strings", file);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: __metadata__ \"%.100s\" must be a string", file, item->string);
    }
    if (st->metadata) return LK_OK; /* a later shard: the first file's counts */
    st->metadata = lk_arena_alloc(&st->arena, (size_t)cJSON_GetArraySize(object) * sizeof *st->metadata);
    if (!st->metadata) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", file);
    cJSON_ArrayForEach(item, object)
    {
        metadata_entry *m = &st->metadata[st->n_metadata];
        m->key = lk_arena_strdup(&st->arena, item->string);
        m->value = lk_arena_strdup(&st->arena, item->valuestring);
        if (!m->key || !m->value) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", file);
        st->n_metadata++;
    }
    return LK_OK;
}

static int compare_places(const void *a, const void *b)
{
    const lk_st_tensor *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes); /* an empty tensor comes before the one that starts there */
}

/* No byte belongs to two tensors or to none. Sorts the file's tensors by place. */
static lk_status check_places(lk_st_tensor *tensors, int64_t n, const unsigned char *data, int64_t buffer_size, const char *file,
                              lk_error *err)
{
    if (n) qsort(tensors, (size_t)n, sizeof *tensors, compare_places);
    int64_t end = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t begin = (const unsigned char *)tensors[i].data - data;
        if (begin != end)
            return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.200s\" begins at %" PRId64 " but the one before it ends at %" PRId64 " (%s)",
                           file, tensors[i].name, begin, end, begin < end ? "they overlap" : "a hole");
        end = begin + tensors[i].n_bytes;
    }
    if (end != buffer_size)
        return lk_fail(err, LK_ERR_FORMAT, "%s: the file has %" PRId64 " bytes of data, its header accounts for %" PRId64, file,
                       buffer_size, end);
    return LK_OK;
}

static lk_status parse_entries(lk_safetensors *st, const cJSON *root, const unsigned char *data, int64_t buffer_size, const char *file,
                               lk_error *err)
{
    int64_t first = st->n_tensors;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, root)
    {
        if (!strcmp(entry->string, "__metadata__")) {
            LK_TRY(parse_metadata(st, entry, file, err));
            continue;
        }
        char where[512];
        snprintf(where, sizeof where, "%.250s: tensor \"%.200s\"", file, entry->string);
        if (!cJSON_IsObject(entry)) return lk_fail(err, LK_ERR_FORMAT, "%s: must be an object with dtype, shape and data_offsets", where);
        lk_st_tensor t = {.file = where, .name = lk_arena_strdup(&st->arena, entry->string)};
        if (!t.name) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
        LK_TRY(parse_dtype(entry, &t, err));
        LK_TRY(parse_shape(entry, &t, err));
        LK_TRY(parse_offsets(entry, &t, data, buffer_size, err));
        t.file = file;
        LK_TRY(add_tensor(st, &t, err));
    }
    if (st->n_tensors == first) return check_places(NULL, 0, data, buffer_size, file, err);
    return check_places(st->tensors + first, st->n_tensors - first, data, buffer_size, file, err);
}

/* Checks one file in memory and adds its tensors. `file` must live as long as st. */
static lk_status add_file(lk_safetensors *st, const unsigned char *bytes, size_t size, const char *file, lk_error *err)
{
    if (size < 8)
        return lk_fail(err, LK_ERR_FORMAT, "%s: not a safetensors file: %zu bytes, it starts with 8 bytes of header length", file, size);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | bytes[i];
    if (n > LK_ST_MAX_HEADER)
        return lk_fail(err, LK_ERR_FORMAT, "%s: not a safetensors file: header length %" PRIu64 ", at most %d is allowed", file, n,
                       LK_ST_MAX_HEADER);
    if (n > size - 8)
        return lk_fail(err, LK_ERR_FORMAT, "%s: truncated: the header has %" PRIu64 " bytes, the file ends after %zu of them", file, n,
                       size - 8);
    if (n < 2 || bytes[8] != '{')
        return lk_fail(err, LK_ERR_FORMAT, "%s: not a safetensors file: the header does not start with '{'", file);
    cJSON *root;
    LK_TRY(lk_json_parse(&root, (const char *)bytes + 8, (size_t)n, file, err));
    lk_status status = LK_OK;
    if (!cJSON_IsObject(root)) status = lk_fail(err, LK_ERR_FORMAT, "%s: the header is not an object", file);
    if (!status) status = parse_entries(st, root, bytes + 8 + n, (int64_t)(size - 8 - n), file, err);
    cJSON_Delete(root);
    return status;
}

static int compare_tensor_names(const void *a, const void *b)
{
    return strcmp(((const lk_st_tensor *)a)->name, ((const lk_st_tensor *)b)->name);
}

static lk_status sort_by_name(lk_safetensors *st, lk_error *err)
{
    if (st->n_tensors) qsort(st->tensors, (size_t)st->n_tensors, sizeof *st->tensors, compare_tensor_names);
    for (int64_t i = 1; i < st->n_tensors; i++) {
        const lk_st_tensor *a = &st->tensors[i - 1], *b = &st->tensors[i];
        if (!strcmp(a->name, b->name))
            return lk_fail(err, LK_ERR_FORMAT, "tensor \"%.200s\" is in two files, %.250s and %.250s", a->name, a->file, b->file);
    }
    return LK_OK;
}

/* ---- folders ---- */

/* Maps files[n] (paths in the arena) and adds them. */
static lk_status add_mapped(lk_safetensors *st, const char *const *files, int64_t n, lk_error *err)
{
    st->maps = calloc((size_t)n, sizeof *st->maps);
    if (!st->maps) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", files[0]);
    for (int64_t i = 0; i < n; i++) {
        LK_TRY(lk_map_open(&st->maps[i], files[i], err));
        st->n_maps = i + 1;
        LK_TRY(add_file(st, st->maps[i].data, st->maps[i].size, files[i], err));
    }
    return LK_OK;
}

static int compare_strings(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The shards that weight_map names: sorted, each once, as paths in the arena. */
static lk_status list_shards(lk_safetensors *st, const cJSON *weight_map, const char *index, const char ***files, int64_t *n, lk_error *err)
{
    char folder[4096], path[4096];
    LK_TRY(lk_path_folder(folder, sizeof folder, index, err));
    const char **list = lk_arena_alloc(&st->arena, (size_t)cJSON_GetArraySize(weight_map) * sizeof *list);
    if (!list) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", index);
    int64_t used = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, weight_map)
    {
        const char *name = item->valuestring;
        if (!cJSON_IsString(item)) return lk_fail(err, LK_ERR_FORMAT, "%s: weight_map \"%.200s\" must name a file", index, item->string);
        if (!name[0] || strchr(name, '/') || strchr(name, '\\') || name[0] == '.')
            return lk_fail(err, LK_ERR_FORMAT, "%s: weight_map \"%.200s\" names the file \"%.200s\"; it must lie in the same folder", index,
                           item->string, name);
        list[used++] = name;
    }
    if (!used) return lk_fail(err, LK_ERR_FORMAT, "%s: weight_map is empty", index);
    qsort(list, (size_t)used, sizeof *list, compare_strings);
    int64_t unique = 0;
    for (int64_t i = 0; i < used; i++) /* names are compared before they become paths, in place behind the reader */
        if (i == 0 || strcmp(list[i], list[unique - 1])) list[unique++] = list[i];
    for (int64_t i = 0; i < unique; i++) {
        LK_TRY(lk_path_join(path, sizeof path, folder, list[i], err));
        if (!(list[i] = lk_arena_strdup(&st->arena, path))) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", index);
    }
    *files = list;
    *n = unique;
    return LK_OK;
}

/* Every tensor that the index promises is in the file where it says. */
static lk_status check_index(const lk_safetensors *st, const cJSON *weight_map, const char *index, lk_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, weight_map)
    {
        const lk_st_tensor *t = lk_safetensors_find(st, item->string);
        if (!t)
            return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.200s\" is not in %.200s, where the index has it", index, item->string,
                           item->valuestring);
        const char *slash = strrchr(t->file, '/'), *name = slash ? slash + 1 : t->file;
        if (strcmp(name, item->valuestring))
            return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.200s\" is in %.200s, but the index has it in %.200s", index, item->string,
                           name, item->valuestring);
    }
    return LK_OK;
}

static lk_status open_index(lk_safetensors *st, const char *index, lk_error *err)
{
    cJSON *root;
    LK_TRY(lk_json_read(&root, index, MAX_INDEX_BYTES, err));
    const cJSON *weight_map = lk_json_get(root, "weight_map");
    const char **files = NULL;
    int64_t n = 0;
    lk_status status = LK_OK;
    if (!cJSON_IsObject(weight_map)) status = lk_fail(err, LK_ERR_FORMAT, "%s: weight_map must be an object of tensor: file", index);
    if (!status) status = list_shards(st, weight_map, index, &files, &n, err);
    if (!status && (status = add_mapped(st, files, n, err))) lk_error_prefix(err, status, "%s", index);
    if (!status) status = sort_by_name(st, err);
    if (!status) status = check_index(st, weight_map, index, err);
    cJSON_Delete(root);
    return status;
}

static lk_status open_single(lk_safetensors *st, const char *path, lk_error *err)
{
    const char *file = lk_arena_strdup(&st->arena, path);
    if (!file) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    LK_TRY(add_mapped(st, &file, 1, err));
    return sort_by_name(st, err);
}

static lk_status open_path(lk_safetensors *st, const char *path, lk_error *err)
{
    size_t length = strlen(path);
    if (length > 11 && !strcmp(path + length - 11, ".index.json")) return open_index(st, path, err);
    if (!lk_path_is_folder(path)) return open_single(st, path, err);
    char file[4096];
    LK_TRY(lk_path_join(file, sizeof file, path, "model.safetensors", err));
    if (lk_path_exists(file)) return open_single(st, file, err);
    LK_TRY(lk_path_join(file, sizeof file, path, "model.safetensors.index.json", err));
    if (lk_path_exists(file)) return open_index(st, file, err);
    LK_TRY(lk_path_join(file, sizeof file, path, "pytorch_model.bin", err));
    bool pickle = lk_path_exists(file);
    return lk_fail(err, LK_ERR_NOT_FOUND, "%s holds neither model.safetensors nor model.safetensors.index.json%s", path,
                   pickle ? " (pytorch_model.bin is not read: save the model with safe_serialization=True)" : "");
}

/* ---- public ---- */

lk_status lk_safetensors_open(lk_safetensors **st, const char *path, lk_error *err)
{
    *st = NULL;
    lk_safetensors *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    fresh->path = lk_arena_strdup(&fresh->arena, path);
    lk_status status = fresh->path ? open_path(fresh, path, err) : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    if (status) {
        lk_safetensors_close(fresh);
        return status;
    }
    *st = fresh;
    return LK_OK;
}

lk_status lk_safetensors_open_memory(lk_safetensors **st, const void *bytes, size_t size, const char *name, lk_error *err)
{
    *st = NULL;
    lk_safetensors *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    fresh->path = lk_arena_strdup(&fresh->arena, name);
    lk_status status = fresh->path ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    if (!status) status = add_file(fresh, bytes, size, fresh->path, err);
    if (!status) status = sort_by_name(fresh, err);
    if (status) {
        lk_safetensors_close(fresh);
        return status;
    }
    *st = fresh;
    return LK_OK;
}

lk_status lk_safetensors_of_tensors(lk_safetensors **st, const char *path, const lk_st_tensor *tensors, int64_t n, void *owner,
                                    void (*close_owner)(void *owner), lk_error *err)
{
    *st = NULL;
    lk_safetensors *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    fresh->path = lk_arena_strdup(&fresh->arena, path);
    lk_status status = fresh->path ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    for (int64_t i = 0; i < n && !status; i++) {
        lk_st_tensor t = tensors[i];
        t.file = fresh->path;
        if (!(t.name = lk_arena_strdup(&fresh->arena, tensors[i].name))) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
        if (!status) status = add_tensor(fresh, &t, err);
    }
    if (!status) status = sort_by_name(fresh, err);
    if (status) {
        lk_safetensors_close(fresh);
        return status;
    }
    fresh->owner = owner;
    fresh->close_owner = close_owner;
    *st = fresh;
    return LK_OK;
}

void lk_safetensors_close(lk_safetensors *st)
{
    if (!st) return;
    if (st->close_owner) st->close_owner(st->owner);
    for (int64_t i = 0; i < st->n_maps; i++) lk_map_close(&st->maps[i]);
    free(st->maps);
    free(st->tensors);
    lk_arena_free(&st->arena);
    free(st);
}

int64_t lk_safetensors_count(const lk_safetensors *st) { return st->n_tensors; }

const lk_st_tensor *lk_safetensors_at(const lk_safetensors *st, int64_t index) { return &st->tensors[index]; }

const lk_st_tensor *lk_safetensors_find(const lk_safetensors *st, const char *name)
{
    if (!st->n_tensors) return NULL;
    lk_st_tensor key = {.name = name};
    return bsearch(&key, st->tensors, (size_t)st->n_tensors, sizeof key, compare_tensor_names);
}

/* "[32, any, 8]" */
static void shape_text(char *out, size_t size, int n_dims, const int64_t *shape)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < n_dims && used < size; i++) {
        if (shape[i] < 0)
            used += (size_t)snprintf(out + used, size - used, "%sany", i ? ", " : "");
        else
            used += (size_t)snprintf(out + used, size - used, "%s%" PRId64, i ? ", " : "", shape[i]);
    }
    if (used < size) snprintf(out + used, size - used, "]");
}

lk_status lk_safetensors_expect(const lk_safetensors *st, const char *name, int n_dims, const int64_t *shape, const lk_st_tensor **t,
                                lk_error *err)
{
    char want[256], got[256];
    shape_text(want, sizeof want, n_dims, shape);
    *t = lk_safetensors_find(st, name);
    if (!*t)
        return lk_fail(err, LK_ERR_NOT_FOUND, "%s: tensor \"%.200s\" %s is missing among its %" PRId64 " tensors", st->path, name, want,
                       st->n_tensors);
    bool same = (*t)->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = shape[i] < 0 || (*t)->shape[i] == shape[i];
    if (same) return LK_OK;
    shape_text(got, sizeof got, (*t)->n_dims, (*t)->shape);
    return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.200s\" has shape %s, expected %s", (*t)->file, name, got, want);
}

const char *lk_safetensors_metadata(const lk_safetensors *st, const char *key)
{
    for (int64_t i = 0; i < st->n_metadata; i++)
        if (!strcmp(st->metadata[i].key, key)) return st->metadata[i].value;
    return NULL;
}

lk_status lk_st_read_f32(const lk_st_tensor *t, int64_t first, int64_t n, float *out, lk_error *err)
{
    if (first < 0 || n < 0 || first > t->n_elements || n > t->n_elements - first)
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: tensor \"%.200s\" has %" PRId64 " elements, not [%" PRId64 ", +%" PRId64 ")", t->file,
                       t->name, t->n_elements, first, n);
    if (n == 0) return LK_OK;
    if (t->source) return t->source->read(t, first, n, out, err);
    const unsigned char *p = (const unsigned char *)t->data + first * lk_dtype_size(t->type);
    switch (t->type) {
    case LK_F32: memcpy(out, p, (size_t)n * 4); return LK_OK;
    case LK_BF16:
    case LK_F16:
        if ((uintptr_t)p % 2 == 0) {
            lk_to_f32(out, p, t->type, n);
            return LK_OK;
        }
        for (int64_t i = 0; i < n; i++) { /* a writer that does not pad its header */
            uint16_t h;
            memcpy(&h, p + 2 * i, 2);
            out[i] = t->type == LK_BF16 ? lk_bf16_to_f32(h) : lk_f16_to_f32(h);
        }
        return LK_OK;
    case LK_F64:
        for (int64_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, p + 8 * i, 8);
            out[i] = (float)d;
        }
        return LK_OK;
    default: break;
    }
    return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.200s\" is %s; a floating type is needed", t->file, t->name, lk_dtype_name(t->type));
}

lk_status lk_safetensors_digest(const lk_safetensors *st, char hex[65], lk_error *err)
{
    (void)err;
    lk_sha256 hash;
    lk_sha256_init(&hash);
    for (int64_t i = 0; i < st->n_tensors; i++) {
        const lk_st_tensor *t = &st->tensors[i];
        const char *type = lk_dtype_name(t->type);
        unsigned char head[1 + 8 * LK_ST_MAX_DIMS];
        head[0] = (unsigned char)t->n_dims;
        for (int d = 0; d < t->n_dims; d++)
            for (int b = 0; b < 8; b++) head[1 + 8 * d + b] = (unsigned char)((uint64_t)t->shape[d] >> (8 * b));
        lk_sha256_update(&hash, t->name, strlen(t->name) + 1);
        lk_sha256_update(&hash, type, strlen(type) + 1);
        lk_sha256_update(&hash, head, 1 + 8 * (size_t)t->n_dims);
        if (t->source)
            lk_sha256_update(&hash, t->source->bytes, (size_t)t->source->n_bytes);
        else if (t->n_bytes)
            lk_sha256_update(&hash, t->data, (size_t)t->n_bytes);
    }
    lk_sha256_final(&hash, hex);
    return LK_OK;
}
