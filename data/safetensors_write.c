/* Writing safetensors: the header is laid out from the declarations before the first byte of data, so a merged model of any size
 * streams through and nothing is written twice.
 *
 * Tensors lie in the order of their declaration. The reference writer sorts by element size instead, which keeps every tensor
 * aligned; readers accept any order, and keeping the caller's lets it produce the data in one pass. All files get temporary names
 * until commit; a shard is closed when its last byte is in, so a thousand shards need one descriptor. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "data/safetensors.h"

typedef struct declared {
    const char *name;
    lk_dtype type;
    int n_dims;
    int64_t shape[LK_ST_MAX_DIMS];
    int64_t n_bytes;
    int64_t begin; /* in its shard's data */
    int64_t shard;
} declared;

typedef struct shard {
    char *name; /* the final one, without the folder */
    char *path, *temporary;
    bool renamed;
} shard;

struct lk_st_writer {
    lk_arena arena;
    const char *folder, *base_name;
    int64_t shard_bytes;
    cJSON *metadata;
    declared *tensors;
    int64_t n_tensors, room;
    shard *shards; /* laid out before the first byte */
    int64_t n_shards;
    lk_atomic_file file; /* the shard being written */
    int64_t shard_open;  /* its index, n_shards when none is left */
    int64_t current;     /* tensor that the next byte belongs to */
    int64_t written;     /* bytes of it */
    bool failed;
};

static const char *type_name(lk_dtype type)
{
    switch (type) {
    case LK_F32: return "F32";
    case LK_BF16: return "BF16";
    case LK_F16: return "F16";
    case LK_F64: return "F64";
    case LK_I64: return "I64";
    case LK_I32: return "I32";
    case LK_I16: return "I16";
    case LK_I8: return "I8";
    case LK_U8: return "U8";
    case LK_BOOL: return "BOOL";
    case LK_NF4: break;
    }
    return NULL;
}

static lk_status no_memory(lk_error *err) { return lk_fail(err, LK_ERR_MEMORY, "no memory to write safetensors"); }

lk_status lk_st_writer_create(lk_st_writer **w, const char *folder, const char *base_name, int64_t shard_bytes, lk_error *err)
{
    *w = NULL;
    if (!lk_path_is_folder(folder)) return lk_fail(err, LK_ERR_IO, "%s is not a folder", folder);
    if (shard_bytes < 0) return lk_fail(err, LK_ERR_ARGUMENT, "shard size %" PRId64, shard_bytes);
    lk_st_writer *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return no_memory(err);
    fresh->folder = lk_arena_strdup(&fresh->arena, folder);
    fresh->base_name = lk_arena_strdup(&fresh->arena, base_name);
    fresh->shard_bytes = shard_bytes;
    fresh->metadata = cJSON_CreateObject();
    if (!fresh->folder || !fresh->base_name || !cJSON_AddStringToObject(fresh->metadata, "format", "pt")) {
        lk_st_writer_abort(fresh);
        return no_memory(err);
    }
    *w = fresh;
    return LK_OK;
}

lk_status lk_st_writer_metadata(lk_st_writer *w, const char *key, const char *value, lk_error *err)
{
    if (w->shards) return lk_fail(err, LK_ERR_ARGUMENT, "metadata \"%s\" comes after the first data", key);
    if (lk_json_get(w->metadata, key)) return lk_fail(err, LK_ERR_CONFLICT, "metadata \"%s\" is set twice", key);
    if (!cJSON_AddStringToObject(w->metadata, key, value)) return no_memory(err);
    return LK_OK;
}

lk_status lk_st_writer_declare(lk_st_writer *w, const char *name, lk_dtype type, int n_dims, const int64_t *shape, lk_error *err)
{
    if (w->shards) return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\" is declared after the first data", name);
    if (!type_name(type)) return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\": safetensors has no type %s", name, lk_dtype_name(type));
    if (n_dims < 0 || n_dims > LK_ST_MAX_DIMS || !strcmp(name, "__metadata__"))
        return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\" with %d dimensions cannot be written", name, n_dims);
    if (w->n_tensors == w->room) {
        int64_t room = w->room ? w->room * 2 : 64;
        declared *grown = realloc(w->tensors, (size_t)room * sizeof *grown);
        if (!grown) return no_memory(err);
        w->tensors = grown;
        w->room = room;
    }
    declared *t = &w->tensors[w->n_tensors];
    *t = (declared){.name = lk_arena_strdup(&w->arena, name), .type = type, .n_dims = n_dims, .n_bytes = lk_dtype_size(type)};
    if (!t->name) return no_memory(err);
    for (int i = 0; i < n_dims; i++) {
        t->shape[i] = shape[i];
        if (shape[i] < 0 || __builtin_mul_overflow(t->n_bytes, shape[i], &t->n_bytes))
            return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\": impossible shape", name);
    }
    w->n_tensors++;
    return LK_OK;
}

/* ---- layout ---- */

static int compare_names(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static lk_status check_unique(const lk_st_writer *w, lk_error *err)
{
    const char **names = malloc(((size_t)w->n_tensors + 1) * sizeof *names);
    if (!names) return no_memory(err);
    for (int64_t i = 0; i < w->n_tensors; i++) names[i] = w->tensors[i].name;
    qsort(names, (size_t)w->n_tensors, sizeof *names, compare_names);
    lk_status status = LK_OK;
    for (int64_t i = 1; i < w->n_tensors && !status; i++)
        if (!strcmp(names[i - 1], names[i])) status = lk_fail(err, LK_ERR_CONFLICT, "tensor \"%.200s\" is declared twice", names[i]);
    free(names);
    return status;
}

/* Gives every tensor its shard and place, greedily in order; then the shards their names. */
static lk_status lay_out(lk_st_writer *w, lk_error *err)
{
    LK_TRY(check_unique(w, err));
    int64_t n = 1, used = 0;
    for (int64_t i = 0; i < w->n_tensors; i++) {
        declared *t = &w->tensors[i];
        if (w->shard_bytes && used && t->n_bytes > w->shard_bytes - used) {
            n++;
            used = 0;
        }
        t->shard = n - 1;
        t->begin = used;
        if (__builtin_add_overflow(used, t->n_bytes, &used)) return lk_fail(err, LK_ERR_ARGUMENT, "the tensors' sizes overflow 64 bits");
    }
    shard *shards = lk_arena_alloc(&w->arena, (size_t)n * sizeof *shards);
    if (!shards) return no_memory(err);
    for (int64_t i = 0; i < n; i++) {
        char name[300], path[4096];
        if (n == 1)
            snprintf(name, sizeof name, "%.200s.safetensors", w->base_name);
        else
            snprintf(name, sizeof name, "%.200s-%05" PRId64 "-of-%05" PRId64 ".safetensors", w->base_name, i + 1, n);
        LK_TRY(lk_path_join(path, sizeof path, w->folder, name, err));
        shards[i].name = lk_arena_strdup(&w->arena, name);
        shards[i].path = lk_arena_strdup(&w->arena, path);
        if (!shards[i].name || !shards[i].path) return no_memory(err);
    }
    w->shards = shards;
    w->n_shards = n;
    w->shard_open = -1;
    return LK_OK;
}

static cJSON *header_entry(const declared *t)
{
    cJSON *entry = cJSON_CreateObject();
    cJSON_AddStringToObject(entry, "dtype", type_name(t->type));
    cJSON *shape = cJSON_AddArrayToObject(entry, "shape");
    for (int i = 0; i < t->n_dims; i++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[i]));
    cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)t->begin));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)(t->begin + t->n_bytes)));
    return entry;
}

/* Length, JSON, and spaces up to a multiple of 8, so that the data starts aligned. */
static lk_status write_header(lk_st_writer *w, int64_t first, lk_error *err)
{
    cJSON *root = cJSON_CreateObject();
    bool complete = cJSON_AddItemReferenceToObject(root, "__metadata__", w->metadata);
    for (int64_t i = first; complete && i < w->n_tensors && w->tensors[i].shard == w->shard_open; i++)
        complete = cJSON_AddItemToObject(root, w->tensors[i].name, header_entry(&w->tensors[i]));
    char *text = complete ? cJSON_PrintUnformatted(root) : NULL;
    cJSON_Delete(root);
    if (!text) return no_memory(err);
    size_t size = strlen(text), padded = (size + 7) & ~(size_t)7;
    lk_status status = LK_OK;
    if (padded > LK_ST_MAX_HEADER) status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: a header of %zu bytes is too long", w->file.path, padded);
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    if (!status) status = lk_atomic_write(&w->file, length, 8, err);
    if (!status) status = lk_atomic_write(&w->file, text, size, err);
    if (!status) status = lk_atomic_write(&w->file, "       ", padded - size, err);
    cJSON_free(text);
    return status;
}

/* ---- data ---- */

/* Flushes and closes the open shard under its temporary name. */
static lk_status close_shard(lk_st_writer *w, lk_error *err)
{
    if (!w->file.stream) return LK_OK;
    lk_status status = LK_OK;
    if (fflush(w->file.stream)) status = lk_fail_errno(err, "cannot write %s", w->file.path);
    if (fclose(w->file.stream) && !status) status = lk_fail_errno(err, "cannot write %s", w->file.path);
    w->file.stream = NULL;
    return status;
}

static lk_status open_shard(lk_st_writer *w, int64_t index, int64_t first_tensor, lk_error *err)
{
    LK_TRY(close_shard(w, err));
    shard *s = &w->shards[index];
    LK_TRY(lk_atomic_open(&w->file, s->path, err));
    w->shard_open = index;
    s->temporary = lk_arena_strdup(&w->arena, w->file.temporary);
    if (!s->temporary) {
        lk_atomic_abort(&w->file);
        return no_memory(err);
    }
    return write_header(w, first_tensor, err);
}

/* Moves to the tensor that takes the next byte, opening its shard; tensors without bytes are passed over. */
static lk_status advance(lk_st_writer *w, lk_error *err)
{
    if (!w->shards) LK_TRY(lay_out(w, err));
    if (w->shard_open < 0) LK_TRY(open_shard(w, 0, 0, err));
    while (w->current < w->n_tensors && w->written == w->tensors[w->current].n_bytes) {
        w->current++;
        w->written = 0;
        if (w->current < w->n_tensors && w->tensors[w->current].shard != w->shard_open)
            LK_TRY(open_shard(w, w->tensors[w->current].shard, w->current, err));
    }
    return LK_OK;
}

static lk_status write_bytes(lk_st_writer *w, const void *bytes, size_t size, lk_error *err)
{
    LK_TRY(advance(w, err));
    if (size == 0) return LK_OK;
    if (w->current == w->n_tensors) return lk_fail(err, LK_ERR_ARGUMENT, "%zu bytes come after the last declared tensor", size);
    const declared *t = &w->tensors[w->current];
    if (size > (uint64_t)(t->n_bytes - w->written))
        return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\" has room for %" PRId64 " more bytes, not %zu", t->name,
                       t->n_bytes - w->written, size);
    LK_TRY(lk_atomic_write(&w->file, bytes, size, err));
    w->written += (int64_t)size;
    return LK_OK;
}

lk_status lk_st_writer_write(lk_st_writer *w, const void *bytes, size_t size, lk_error *err)
{
    if (w->failed) return lk_fail(err, LK_ERR_ARGUMENT, "writing %s goes on after an error", w->folder);
    lk_status status = write_bytes(w, bytes, size, err);
    w->failed = status != LK_OK;
    return status;
}

/* ---- commit ---- */

static lk_status write_index(lk_st_writer *w, const char *path, lk_error *err)
{
    int64_t total = 0;
    cJSON *root = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(root, "metadata");
    cJSON *map = cJSON_AddObjectToObject(root, "weight_map");
    for (int64_t i = 0; i < w->n_tensors; i++) {
        total += w->tensors[i].n_bytes;
        cJSON_AddStringToObject(map, w->tensors[i].name, w->shards[w->tensors[i].shard].name);
    }
    cJSON_AddNumberToObject(metadata, "total_size", (double)total);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) return no_memory(err);
    lk_status status = lk_file_replace(path, text, strlen(text), err);
    cJSON_free(text);
    return status;
}

static lk_status commit(lk_st_writer *w, lk_error *err)
{
    LK_TRY(advance(w, err));
    if (w->current < w->n_tensors)
        return lk_fail(err, LK_ERR_ARGUMENT, "tensor \"%.200s\" lacks %" PRId64 " bytes", w->tensors[w->current].name,
                       w->tensors[w->current].n_bytes - w->written);
    LK_TRY(close_shard(w, err));
    char single[4096], index[4096], name[300];
    snprintf(name, sizeof name, "%.200s.safetensors", w->base_name);
    LK_TRY(lk_path_join(single, sizeof single, w->folder, name, err));
    snprintf(name, sizeof name, "%.200s.safetensors.index.json", w->base_name);
    LK_TRY(lk_path_join(index, sizeof index, w->folder, name, err));
    for (int64_t i = 0; i < w->n_shards; i++) {
        LK_TRY(lk_path_commit(w->shards[i].temporary, w->shards[i].path, err));
        w->shards[i].renamed = true;
    }
    if (w->n_shards > 1) LK_TRY(write_index(w, index, err));
    const char *stale = w->n_shards > 1 ? single : index;
    if (unlink(stale) && errno != ENOENT) return lk_fail_errno(err, "cannot remove %s, which would hide what was just written", stale);
    return LK_OK;
}

lk_status lk_st_writer_commit(lk_st_writer *w, lk_error *err)
{
    if (w->failed) return lk_fail(err, LK_ERR_ARGUMENT, "writing %s cannot be completed after an error", w->folder);
    lk_status status = commit(w, err);
    if (status) {
        w->failed = true;
        return status;
    }
    w->n_shards = 0; /* nothing left to remove */
    lk_st_writer_abort(w);
    return LK_OK;
}

void lk_st_writer_abort(lk_st_writer *w)
{
    if (!w) return;
    lk_atomic_abort(&w->file);
    for (int64_t i = 0; i < w->n_shards; i++) {
        const shard *s = &w->shards[i];
        /* A shard that was renamed before a later one failed is of no use: no index tells what it belongs to. */
        if (s->renamed)
            unlink(s->path);
        else if (s->temporary)
            unlink(s->temporary);
    }
    cJSON_Delete(w->metadata);
    free(w->tensors);
    lk_arena_free(&w->arena);
    free(w);
}
