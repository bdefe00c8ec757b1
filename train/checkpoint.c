#include "train/checkpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "data/hdf5.h"
#include "train/recipe.h"

enum { FORMAT_VERSION = 2, CHUNK = 65536 };

enum { MAX_COLUMNS = 1 + LK_ADAMW_MAX_PARTS };

/* The parameters, then the optimizer's parts. Without a state only what they are, not where. */
static int lay_out(lk_adamw_part columns[MAX_COLUMNS], lk_adamw_kind kind, int64_t n, const lk_checkpoint_state *s)
{
    columns[0] = (lk_adamw_part){"params", LK_F32, n, s ? s->params : NULL};
    int n_parts = lk_adamw_layout(columns + 1, kind, n);
    for (int i = 0; s && i < n_parts; i++) columns[1 + i].data = s->optim->parts[i].data;
    return 1 + n_parts;
}

/* What the content digest begins with; the columns follow. */
static void hash_meta(lk_sha256 *hash, int64_t step, int64_t n, lk_adamw_kind kind, const char *essence, const char *base, const char *data)
{
    char numbers[80];
    snprintf(numbers, sizeof numbers, "%d %" PRId64 " %" PRId64, FORMAT_VERSION, step, n);
    const char *const texts[] = {numbers, lk_adamw_kind_name(kind), essence, base, data};
    lk_sha256_init(hash);
    for (int i = 0; i < 5; i++) lk_sha256_update(hash, texts[i], strlen(texts[i]) + 1);
}

/* ---------------------------------------------------------------------------------------------- writing */

static hid_t type_in_file(const lk_adamw_part *c) { return c->type == LK_F32 ? H5T_IEEE_F32LE : H5T_STD_U8LE; }
static hid_t type_in_memory(const lk_adamw_part *c) { return c->type == LK_F32 ? H5T_NATIVE_FLOAT : H5T_NATIVE_UINT8; }

static lk_status write_column(hid_t file, const lk_adamw_part *c, const void *values, const char *path, lk_error *err)
{
    const hsize_t length = (hsize_t)c->n, chunk = c->n < CHUNK ? (hsize_t)c->n : CHUNK;
    hid_t space = H5Screate_simple(1, &length, NULL), properties = H5Pcreate(H5P_DATASET_CREATE), set = -1;
    bool failed = space < 0 || properties < 0 || H5Pset_chunk(properties, 1, &chunk) < 0 || H5Pset_fletcher32(properties) < 0 ||
                  (set = H5Dcreate2(file, c->name, type_in_file(c), space, H5P_DEFAULT, properties, H5P_DEFAULT)) < 0 ||
                  H5Dwrite(set, type_in_memory(c), H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0;
    lk_status status = failed ? lk_h5_fail(err, LK_ERR_IO, "%s: cannot write /%s", path, c->name) : LK_OK;
    if (set >= 0) H5Dclose(set);
    if (properties >= 0) H5Pclose(properties);
    if (space >= 0) H5Sclose(space);
    return status;
}

static lk_status write_content(hid_t file, const lk_checkpoint_meta *meta, const lk_checkpoint_state *s, void *host, const char *path,
                               lk_error *err)
{
    lk_sha256 hash;
    char hex[65];
    lk_status status = LK_OK;
    lk_adamw_part columns[MAX_COLUMNS];
    int n_columns = lay_out(columns, s->optim->kind, s->n_params, s);
    hash_meta(&hash, meta->step, s->n_params, s->optim->kind, meta->essence, meta->base_digest, meta->data_digest);
    for (int i = 0; i < n_columns && !status; i++) {
        size_t bytes = lk_adamw_part_bytes(&columns[i]);
        if ((status = lk_download(s->be, host, columns[i].data, bytes))) {
            lk_backend_fail(s->be, status, err);
            break;
        }
        lk_sha256_update(&hash, host, bytes);
        status = write_column(file, &columns[i], host, path, err);
    }
    lk_sha256_final(&hash, hex);
    LK_TRY(status);
    LK_TRY(lk_h5_write_int(file, "format_version", FORMAT_VERSION, path, err));
    LK_TRY(lk_h5_write_int(file, "step", meta->step, path, err));
    LK_TRY(lk_h5_write_int(file, "n_params", s->n_params, path, err));
    LK_TRY(lk_h5_write_text(file, "optimizer", lk_adamw_kind_name(s->optim->kind), path, err));
    LK_TRY(lk_h5_write_text(file, "recipe", meta->essence, path, err));
    LK_TRY(lk_h5_write_text(file, "base_digest", meta->base_digest, path, err));
    LK_TRY(lk_h5_write_text(file, "data_digest", meta->data_digest, path, err));
    LK_TRY(lk_h5_write_text(file, "program", "lorikeet " LK_VERSION, path, err));
    return lk_h5_write_text(file, "content", hex, path, err);
}

static lk_status write_file(const char *temporary, const lk_checkpoint_meta *meta, const lk_checkpoint_state *s, lk_error *err)
{
    hid_t file = -1;
    int write_error = 0;
    void *host = malloc((size_t)s->n_params * 4 + 1);
    if (!host) return lk_fail(err, LK_ERR_MEMORY, "no memory to write %s", temporary);
    lk_h5_begin();
    lk_status status = lk_h5_create(&file, temporary, &write_error, err);
    if (!status) status = write_content(file, meta, s, host, temporary, err);
    lk_error closing = {0};
    lk_status closed = lk_h5_close(&file, &write_error, temporary, status ? &closing : err);
    free(host);
    return status ? status : closed;
}

/* ---------------------------------------------------------------------------------------------- the folder */

/* step-000123.h5 -> 123, anything else -> -1 */
static int64_t step_of(const char *name)
{
    if (strncmp(name, "step-", 5)) return -1;
    char *end;
    long long step = strtoll(name + 5, &end, 10);
    return end > name + 5 && !strcmp(end, ".h5") && step >= 0 ? (int64_t)step : -1;
}

/* Steps for which there is a file, newest first, at most 4096 of them. */
static lk_status list_steps(const char *folder, int64_t *steps, int *n, lk_error *err)
{
    lk_arena arena = {0};
    char **names;
    size_t count;
    *n = 0;
    if (!lk_path_is_folder(folder)) return LK_OK;
    lk_status status = lk_folder_list(folder, &arena, &names, &count, err);
    for (size_t i = 0; !status && i < count && *n < 4096; i++) {
        int64_t step = step_of(names[i]);
        if (step < 0) continue;
        int at = (*n)++;
        for (; at > 0 && steps[at - 1] < step; at--) steps[at] = steps[at - 1];
        steps[at] = step;
    }
    lk_arena_free(&arena);
    return status;
}

static void path_of(char path[4200], const char *folder, int64_t step)
{
    snprintf(path, 4200, "%.4000s/step-%06" PRId64 ".h5", folder, step);
}

static void remove_old(const char *folder, int64_t keep)
{
    int64_t steps[4096];
    int n;
    char path[4200];
    if (list_steps(folder, steps, &n, NULL)) return;
    for (int i = 0; i < n; i++) {
        if (i < keep) continue;
        path_of(path, folder, steps[i]);
        if (unlink(path)) lk_log(LK_LOG_WARN, "cannot remove the old checkpoint %s", path);
    }
}

lk_status lk_checkpoint_save(const char *folder, const lk_checkpoint_meta *meta, const lk_checkpoint_state *state, int64_t keep,
                             lk_error *err)
{
    char path[4200], temporary[4300];
    LK_TRY(lk_folder_create(folder, err));
    path_of(path, folder, meta->step);
    snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid());
    lk_status status = write_file(temporary, meta, state, err);
    if (!status) status = lk_path_commit(temporary, path, err);
    if (status) {
        unlink(temporary);
        return status;
    }
    remove_old(folder, keep);
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- reading */

typedef struct reading {
    const char *path;
    hid_t file;
    int64_t step, n;
    lk_adamw_kind kind;
    char *optimizer, *essence, *base, *data, *content;
    void *host; /* room for any column */
    lk_error *err;
} reading;

static lk_status read_column(reading *r, const lk_adamw_part *c)
{
    hid_t set = H5Dopen2(r->file, c->name, H5P_DEFAULT), space = set >= 0 ? H5Dget_space(set) : -1;
    hsize_t length = 0;
    lk_status status = LK_OK;
    if (space < 0 || H5Sget_simple_extent_ndims(space) != 1 || H5Sget_simple_extent_dims(space, &length, NULL) < 0 ||
        length != (hsize_t)c->n || H5Dread(set, type_in_memory(c), H5S_ALL, H5S_ALL, H5P_DEFAULT, r->host) < 0)
        status = lk_h5_fail(r->err, LK_ERR_FORMAT, "%s: /%s is damaged", r->path, c->name);
    if (space >= 0) H5Sclose(space);
    if (set >= 0) H5Dclose(set);
    return status;
}

static lk_status read_meta(reading *r)
{
    int64_t version;
    LK_TRY(lk_h5_open(&r->file, r->path, r->err));
    LK_TRY(lk_h5_read_int(r->file, "format_version", &version, r->path, r->err));
    if (version != FORMAT_VERSION)
        return lk_fail(r->err, LK_ERR_FORMAT, "%s: format version %lld, this program reads %d", r->path, (long long)version,
                       FORMAT_VERSION);
    LK_TRY(lk_h5_read_int(r->file, "step", &r->step, r->path, r->err));
    LK_TRY(lk_h5_read_int(r->file, "n_params", &r->n, r->path, r->err));
    LK_TRY(lk_h5_read_text(r->file, "optimizer", &r->optimizer, r->path, r->err));
    if (!lk_adamw_kind_parse(r->optimizer, &r->kind))
        return lk_fail(r->err, LK_ERR_FORMAT, "%s: an optimizer \"%.40s\"", r->path, r->optimizer);
    LK_TRY(lk_h5_read_text(r->file, "recipe", &r->essence, r->path, r->err));
    LK_TRY(lk_h5_read_text(r->file, "base_digest", &r->base, r->path, r->err));
    LK_TRY(lk_h5_read_text(r->file, "data_digest", &r->data, r->path, r->err));
    return lk_h5_read_text(r->file, "content", &r->content, r->path, r->err);
}

/* Is the file whole, whatever it belongs to? */
static lk_status verify(reading *r)
{
    LK_TRY(read_meta(r));
    if (r->n < 1 || r->n > INT64_MAX / 64) return lk_fail(r->err, LK_ERR_FORMAT, "%s: %lld parameters", r->path, (long long)r->n);
    hid_t set = H5Dopen2(r->file, "params", H5P_DEFAULT);
    if (set < 0 || H5Dget_storage_size(set) < (hsize_t)r->n * 4) { /* before memory is taken on the file's word */
        if (set >= 0) H5Dclose(set);
        return lk_fail(r->err, LK_ERR_FORMAT, "%s: shorter than its %lld parameters", r->path, (long long)r->n);
    }
    H5Dclose(set);
    r->host = malloc((size_t)r->n * 4);
    if (!r->host) return lk_fail(r->err, LK_ERR_MEMORY, "%s: no memory for %lld parameters", r->path, (long long)r->n);
    lk_sha256 hash;
    char hex[65];
    lk_status status = LK_OK;
    lk_adamw_part columns[MAX_COLUMNS];
    int n_columns = lay_out(columns, r->kind, r->n, NULL);
    hash_meta(&hash, r->step, r->n, r->kind, r->essence, r->base, r->data);
    for (int i = 0; i < n_columns && !status; i++) {
        status = read_column(r, &columns[i]);
        if (!status) lk_sha256_update(&hash, r->host, lk_adamw_part_bytes(&columns[i]));
    }
    lk_sha256_final(&hash, hex);
    if (!status && strcmp(hex, r->content))
        status = lk_fail(r->err, LK_ERR_FORMAT, "%s: the content does not have the digest that was stored with it", r->path);
    return status;
}

static lk_status belongs(const reading *r, const lk_checkpoint_meta *meta, const lk_checkpoint_state *s)
{
    char what[600];
    if (lk_recipe_difference(meta->essence, r->essence, what, sizeof what))
        return lk_fail(r->err, LK_ERR_MISMATCH, "%s is from another recipe: %s. Use that recipe, or --fresh to start again", r->path, what);
    if (strcmp(meta->base_digest, r->base))
        return lk_fail(r->err, LK_ERR_MISMATCH,
                       "%s was trained on another base (weights %.12s... there, %.12s... here). Use that base, or --fresh to start again",
                       r->path, r->base, meta->base_digest);
    if (strcmp(meta->data_digest, r->data))
        return lk_fail(r->err, LK_ERR_MISMATCH,
                       "%s was trained on other data (tokens %.12s... there, %.12s... here): a file of data.train or the tokenizer has "
                       "changed. Restore it, or --fresh to start again",
                       r->path, r->data, meta->data_digest);
    if (r->n != s->n_params)
        return lk_fail(r->err, LK_ERR_MISMATCH, "%s has %lld adapter parameters, this run %lld", r->path, (long long)r->n,
                       (long long)s->n_params);
    if (r->kind != s->optim->kind)
        return lk_fail(r->err, LK_ERR_MISMATCH, "%s has the state of %s, this run uses %s", r->path, lk_adamw_kind_name(r->kind),
                       lk_adamw_kind_name(s->optim->kind));
    return LK_OK;
}

static lk_status load(reading *r, const lk_checkpoint_state *s)
{
    lk_adamw_part columns[MAX_COLUMNS];
    int n_columns = lay_out(columns, r->kind, r->n, s);
    for (int i = 0; i < n_columns; i++) {
        LK_TRY(read_column(r, &columns[i]));
        lk_status status = lk_upload(s->be, columns[i].data, r->host, lk_adamw_part_bytes(&columns[i]));
        if (status) return lk_backend_fail(s->be, status, r->err);
    }
    return LK_OK;
}

static void close_reading(reading *r)
{
    if (r->file >= 0) H5Fclose(r->file);
    free(r->optimizer);
    free(r->essence);
    free(r->base);
    free(r->data);
    free(r->content);
    free(r->host);
}

/* *valid false: the file is damaged, the next older one may do. */
static lk_status try_file(const char *path, lk_checkpoint_meta *meta, const lk_checkpoint_state *s, bool *valid, lk_error *err)
{
    lk_error why = {0};
    reading r = {.path = path, .file = -1, .err = &why};
    lk_h5_begin();
    lk_status status = verify(&r);
    *valid = !status;
    if (status == LK_ERR_FORMAT || status == LK_ERR_IO || status == LK_ERR_NOT_FOUND) {
        lk_log(LK_LOG_WARN, "checkpoint skipped: %s", why.message);
        status = LK_OK;
    } else if (!status && !(status = belongs(&r, meta, s)) && !(status = load(&r, s))) {
        meta->step = r.step;
    }
    close_reading(&r);
    if (status && err) *err = why;
    return status;
}

lk_status lk_checkpoint_resume(const char *folder, lk_checkpoint_meta *meta, const lk_checkpoint_state *state, bool *found, lk_error *err)
{
    int64_t steps[4096];
    int n;
    *found = false;
    LK_TRY(list_steps(folder, steps, &n, err));
    for (int i = 0; i < n && !*found; i++) {
        char path[4200];
        path_of(path, folder, steps[i]);
        LK_TRY(try_file(path, meta, state, found, err));
    }
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- described */

lk_status lk_checkpoint_describe(lk_checkpoint_facts *facts, const char *path, lk_error *err)
{
    reading r = {.path = path, .file = -1, .err = err};
    memset(facts, 0, sizeof *facts);
    lk_h5_begin();
    lk_status status = verify(&r);
    if (!status) {
        *facts = (lk_checkpoint_facts){r.step, r.n, r.optimizer, r.essence, r.base, r.data, r.content};
        r.optimizer = r.essence = r.base = r.data = r.content = NULL;
    }
    close_reading(&r);
    return status;
}

void lk_checkpoint_facts_free(lk_checkpoint_facts *f)
{
    char *const texts[] = {f->optimizer, f->essence, f->base_digest, f->data_digest, f->content};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(texts[i]);
}
