/* The token store on HDF5.
 *
 * Tokens and masks are two long vectors; a document is a range of both. The writer collects a chunk's worth before each write, because
 * a write that covers a whole chunk costs one filter pass and never a read back. The reader selects the document's range; HDF5 checks
 * the Fletcher32 sum of each chunk it touches, and the metadata carry checksums of their own (format of HDF5 1.10).
 *
 * Chunks of 16384 tokens (64 KiB): documents are read in shuffled order, so a chunk is read for little more than one document; smaller
 * ones make the index large, larger ones read more than is used. */
#include "data/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sha256.h"
#include "data/hdf5.h"

enum { FORMAT_VERSION = 1, CHUNK = 16384 };

/* A growing vector in the file. */
typedef struct column {
    hid_t set;
    hid_t type; /* in memory */
    size_t element;
    hsize_t length;
} column;

struct lk_store_writer {
    char path[4096], temporary[4160];
    hid_t file;
    int write_error; /* errno of the first write that failed; see data/hdf5.h */
    column tokens, mask, offsets;
    int32_t *ids; /* [CHUNK], not yet written */
    uint8_t *bits;
    int64_t pending;
    int64_t *ends; /* [CHUNK] offsets not yet written */
    int64_t pending_ends;
    int64_t documents, total, supervised;
    bool failed;
};

struct lk_store {
    char path[4096];
    hid_t file, tokens, mask, tokens_space, mask_space;
    int64_t *offsets; /* [documents + 1] */
    int64_t documents, total, supervised;
};

/* ---- writing ---- */

static lk_status column_create(lk_store_writer *w, column *c, const char *name, hid_t file_type, hid_t type, size_t element, lk_error *err)
{
    const hsize_t zero = 0, limit = H5S_UNLIMITED, chunk = CHUNK;
    *c = (column){.set = -1, .type = type, .element = element};
    hid_t space = H5Screate_simple(1, &zero, &limit), properties = H5Pcreate(H5P_DATASET_CREATE);
    if (space >= 0 && properties >= 0 && H5Pset_chunk(properties, 1, &chunk) >= 0 && H5Pset_fletcher32(properties) >= 0)
        c->set = H5Dcreate2(w->file, name, file_type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    lk_status status = c->set < 0 ? lk_h5_fail(err, LK_ERR_IO, "%s: cannot create /%s", w->path, name) : LK_OK;
    if (properties >= 0) H5Pclose(properties);
    if (space >= 0) H5Sclose(space);
    return status;
}

static lk_status column_append(lk_store_writer *w, column *c, const void *values, int64_t n, lk_error *err)
{
    if (n == 0) return LK_OK;
    const hsize_t start = c->length, count = (hsize_t)n, length = start + count;
    hid_t space = -1, memory = -1;
    bool failed = H5Dset_extent(c->set, &length) < 0 || (space = H5Dget_space(c->set)) < 0 ||
                  (memory = H5Screate_simple(1, &count, NULL)) < 0 ||
                  H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0 ||
                  H5Dwrite(c->set, c->type, memory, space, H5P_DEFAULT, values) < 0;
    lk_status status = failed ? lk_h5_fail(err, LK_ERR_IO, "cannot write %s", w->path) : lk_h5_check(&w->write_error, w->path, err);
    if (memory >= 0) H5Sclose(memory);
    if (space >= 0) H5Sclose(space);
    c->length = length;
    return status;
}

static lk_status flush_tokens(lk_store_writer *w, lk_error *err)
{
    LK_TRY(column_append(w, &w->tokens, w->ids, w->pending, err));
    LK_TRY(column_append(w, &w->mask, w->bits, w->pending, err));
    w->pending = 0;
    return LK_OK;
}

static lk_status push_offset(lk_store_writer *w, int64_t offset, lk_error *err)
{
    w->ends[w->pending_ends++] = offset;
    if (w->pending_ends < CHUNK) return LK_OK;
    LK_TRY(column_append(w, &w->offsets, w->ends, w->pending_ends, err));
    w->pending_ends = 0;
    return LK_OK;
}

static lk_status create_file(lk_store_writer *w, lk_error *err)
{
    LK_TRY(lk_h5_create(&w->file, w->temporary, &w->write_error, err));
    LK_TRY(column_create(w, &w->tokens, "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, 4, err));
    LK_TRY(column_create(w, &w->mask, "mask", H5T_STD_U8LE, H5T_NATIVE_UINT8, 1, err));
    LK_TRY(column_create(w, &w->offsets, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, 8, err));
    return push_offset(w, 0, err);
}

lk_status lk_store_create(lk_store_writer **w, const char *path, lk_error *err)
{
    *w = NULL;
    lk_h5_begin();
    if (strlen(path) >= sizeof(*w)->path) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", path);
    lk_store_writer *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    fresh->file = fresh->tokens.set = fresh->mask.set = fresh->offsets.set = -1;
    snprintf(fresh->path, sizeof fresh->path, "%s", path);
    snprintf(fresh->temporary, sizeof fresh->temporary, "%s.tmp-%ld", path, (long)getpid());
    fresh->ids = malloc(CHUNK * sizeof *fresh->ids);
    fresh->bits = malloc(CHUNK * sizeof *fresh->bits);
    fresh->ends = malloc(CHUNK * sizeof *fresh->ends);
    lk_status status = LK_OK;
    if (!fresh->ids || !fresh->bits || !fresh->ends) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    if (!status) status = create_file(fresh, err);
    if (status) {
        lk_store_abort(fresh);
        return status;
    }
    *w = fresh;
    return LK_OK;
}

static lk_status append(lk_store_writer *w, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
{
    for (int64_t done = 0; done < n;) {
        int64_t room = CHUNK - w->pending, count = n - done < room ? n - done : room;
        memcpy(w->ids + w->pending, ids + done, (size_t)count * sizeof *ids);
        memcpy(w->bits + w->pending, mask + done, (size_t)count);
        w->pending += count;
        done += count;
        if (w->pending == CHUNK) LK_TRY(flush_tokens(w, err));
    }
    for (int64_t i = 1; i < n; i++) w->supervised += mask[i];
    w->documents++;
    w->total += n;
    return push_offset(w, w->total, err);
}

lk_status lk_store_append(lk_store_writer *w, const int32_t *ids, const uint8_t *mask, int64_t n, lk_error *err)
{
    lk_h5_begin();
    if (w->failed) return lk_fail(err, LK_ERR_ARGUMENT, "%s: writing goes on after an error", w->path);
    if (n < 1) return lk_fail(err, LK_ERR_ARGUMENT, "%s: document %" PRId64 " has no tokens", w->path, w->documents);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || mask[i] > 1)
            return lk_fail(err, LK_ERR_ARGUMENT, "%s: document %" PRId64 ": token %d with mask %d at %" PRId64, w->path, w->documents,
                           ids[i], mask[i], i);
    lk_status status = append(w, ids, mask, n, err);
    w->failed = status != LK_OK;
    return status;
}

static const char *const own_attributes[] = {"format_version", "n_documents", "n_tokens", "n_supervised"};

lk_status lk_store_attribute(lk_store_writer *w, const char *name, const char *value, lk_error *err)
{
    lk_h5_begin();
    for (size_t i = 0; i < sizeof own_attributes / sizeof *own_attributes; i++)
        if (!strcmp(own_attributes[i], name)) return lk_fail(err, LK_ERR_ARGUMENT, "%s: the store writes %s itself", w->path, name);
    lk_status status = lk_h5_write_text(w->file, name, value, w->path, err);
    if (status) w->failed = true;
    return status;
}

/* HDF5 writes much of the file only now, so a full disk may show here. */
static lk_status close_writer(lk_store_writer *w, lk_error *err)
{
    if (w->tokens.set >= 0) H5Dclose(w->tokens.set);
    if (w->mask.set >= 0) H5Dclose(w->mask.set);
    if (w->offsets.set >= 0) H5Dclose(w->offsets.set);
    w->tokens.set = w->mask.set = w->offsets.set = -1;
    return lk_h5_close(&w->file, &w->write_error, w->path, err);
}

static lk_status finish(lk_store_writer *w, lk_error *err)
{
    if (w->failed) return lk_fail(err, LK_ERR_ARGUMENT, "%s: cannot be completed after an error", w->path);
    LK_TRY(flush_tokens(w, err));
    LK_TRY(column_append(w, &w->offsets, w->ends, w->pending_ends, err));
    LK_TRY(lk_h5_write_int(w->file, "format_version", FORMAT_VERSION, w->path, err));
    LK_TRY(lk_h5_write_int(w->file, "n_documents", w->documents, w->path, err));
    LK_TRY(lk_h5_write_int(w->file, "n_tokens", w->total, w->path, err));
    LK_TRY(lk_h5_write_int(w->file, "n_supervised", w->supervised, w->path, err));
    LK_TRY(close_writer(w, err));
    return lk_path_commit(w->temporary, w->path, err);
}

lk_status lk_store_commit(lk_store_writer *w, lk_error *err)
{
    lk_h5_begin();
    lk_status status = finish(w, err);
    lk_store_abort(w); /* after a rename there is no temporary file left to remove */
    return status;
}

void lk_store_abort(lk_store_writer *w)
{
    if (!w) return;
    lk_h5_begin();
    close_writer(w, NULL);
    unlink(w->temporary);
    free(w->ids);
    free(w->bits);
    free(w->ends);
    free(w);
}

/* ---- reading ---- */

static lk_status open_column(lk_store *s, const char *name, hid_t *set, hid_t *space, int64_t *length, lk_error *err)
{
    *set = H5Dopen2(s->file, name, H5P_DEFAULT);
    if (*set < 0) return lk_h5_fail(err, LK_ERR_FORMAT, "%s: no token store: cannot open /%s", s->path, name);
    *space = H5Dget_space(*set);
    hsize_t size = 0;
    if (*space < 0 || H5Sget_simple_extent_ndims(*space) != 1 || H5Sget_simple_extent_dims(*space, &size, NULL) < 0 ||
        size > (hsize_t)INT64_MAX / 16)
        return lk_h5_fail(err, LK_ERR_FORMAT, "%s: /%s must be a vector", s->path, name);
    *length = (int64_t)size;
    return LK_OK;
}

/* [first, first+n) of an open vector. */
static lk_status read_range(hid_t set, hid_t space, hid_t type, int64_t first, int64_t n, void *out)
{
    if (n == 0) return LK_OK;
    const hsize_t start = (hsize_t)first, count = (hsize_t)n;
    hid_t memory = H5Screate_simple(1, &count, NULL);
    bool failed = memory < 0 || H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0 ||
                  H5Dread(set, type, memory, space, H5P_DEFAULT, out) < 0;
    if (memory >= 0) H5Sclose(memory);
    return failed ? LK_ERR_FORMAT : LK_OK;
}

static lk_status load_offsets(lk_store *s, lk_error *err)
{
    hid_t set = -1, space = -1;
    int64_t n = 0;
    lk_status status = open_column(s, "offsets", &set, &space, &n, err);
    if (!status && n != s->documents + 1)
        status = lk_fail(err, LK_ERR_FORMAT, "%s: %" PRId64 " offsets for %" PRId64 " documents", s->path, n, s->documents);
    if (!status && !(s->offsets = malloc((size_t)n * sizeof *s->offsets)))
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %" PRId64 " documents", s->path, s->documents);
    if (!status && read_range(set, space, H5T_NATIVE_INT64, 0, n, s->offsets))
        status = lk_h5_fail(err, LK_ERR_FORMAT, "%s: the offsets are damaged", s->path);
    for (int64_t i = 0; i < n && !status; i++)
        if (i == 0 ? s->offsets[0] != 0 : s->offsets[i] <= s->offsets[i - 1])
            status = lk_fail(err, LK_ERR_FORMAT, "%s: offset %" PRId64 " is %" PRId64 ", out of order", s->path, i, s->offsets[i]);
    if (!status && s->offsets[n - 1] != s->total)
        status =
            lk_fail(err, LK_ERR_FORMAT, "%s: the offsets end at %" PRId64 " of %" PRId64 " tokens", s->path, s->offsets[n - 1], s->total);
    if (space >= 0) H5Sclose(space);
    if (set >= 0) H5Dclose(set);
    return status;
}

static lk_status open_file(lk_store *s, lk_error *err)
{
    int64_t version, tokens = 0, masks = 0;
    LK_TRY(lk_h5_open(&s->file, s->path, err));
    LK_TRY(lk_h5_read_int(s->file, "format_version", &version, s->path, err));
    if (version != FORMAT_VERSION)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: format version %" PRId64 ", this program reads %d; tokenise the data again", s->path,
                       version, FORMAT_VERSION);
    LK_TRY(lk_h5_read_int(s->file, "n_documents", &s->documents, s->path, err));
    LK_TRY(lk_h5_read_int(s->file, "n_tokens", &s->total, s->path, err));
    LK_TRY(lk_h5_read_int(s->file, "n_supervised", &s->supervised, s->path, err));
    LK_TRY(open_column(s, "tokens", &s->tokens, &s->tokens_space, &tokens, err));
    LK_TRY(open_column(s, "mask", &s->mask, &s->mask_space, &masks, err));
    if (tokens != s->total || masks != s->total)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %" PRId64 " tokens and %" PRId64 " masks, the file says %" PRId64, s->path, tokens, masks,
                       s->total);
    return load_offsets(s, err);
}

lk_status lk_store_open(lk_store **s, const char *path, lk_error *err)
{
    *s = NULL;
    lk_h5_begin();
    if (strlen(path) >= sizeof(*s)->path) return lk_fail(err, LK_ERR_ARGUMENT, "path too long: %.80s...", path);
    lk_store *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    fresh->file = fresh->tokens = fresh->mask = fresh->tokens_space = fresh->mask_space = -1;
    snprintf(fresh->path, sizeof fresh->path, "%s", path);
    lk_status status = open_file(fresh, err);
    if (status) {
        lk_store_close(fresh);
        /* A missing attribute is a fault of the file here, not of the question. */
        if (status == LK_ERR_NOT_FOUND && err) err->code = LK_ERR_FORMAT;
        return status == LK_ERR_NOT_FOUND ? LK_ERR_FORMAT : status;
    }
    *s = fresh;
    return LK_OK;
}

void lk_store_close(lk_store *s)
{
    if (!s) return;
    lk_h5_begin();
    if (s->tokens_space >= 0) H5Sclose(s->tokens_space);
    if (s->mask_space >= 0) H5Sclose(s->mask_space);
    if (s->tokens >= 0) H5Dclose(s->tokens);
    if (s->mask >= 0) H5Dclose(s->mask);
    if (s->file >= 0) H5Fclose(s->file);
    free(s->offsets);
    free(s);
}

int64_t lk_store_documents(const lk_store *s) { return s->documents; }
int64_t lk_store_tokens(const lk_store *s) { return s->total; }
int64_t lk_store_supervised(const lk_store *s) { return s->supervised; }
int64_t lk_store_length(const lk_store *s, int64_t document) { return s->offsets[document + 1] - s->offsets[document]; }

lk_status lk_store_read(lk_store *s, int64_t document, int32_t *ids, uint8_t *mask, lk_error *err)
{
    lk_h5_begin();
    if (document < 0 || document >= s->documents)
        return lk_fail(err, LK_ERR_ARGUMENT, "%s: document %" PRId64 " of %" PRId64, s->path, document, s->documents);
    int64_t first = s->offsets[document], n = lk_store_length(s, document);
    if (read_range(s->tokens, s->tokens_space, H5T_NATIVE_INT32, first, n, ids) ||
        read_range(s->mask, s->mask_space, H5T_NATIVE_UINT8, first, n, mask))
        return lk_h5_fail(err, LK_ERR_FORMAT, "%s: document %" PRId64 " is damaged; tokenise the data again", s->path, document);
    return LK_OK;
}

lk_status lk_store_get_attribute(lk_store *s, const char *name, char **value, lk_error *err)
{
    lk_h5_begin();
    return lk_h5_read_text(s->file, name, value, s->path, err);
}

/* Hashes a whole vector in pieces. Little endian in memory: the machines we build for are. */
static lk_status hash_column(lk_store *s, lk_sha256 *hash, hid_t set, hid_t space, hid_t type, size_t element, lk_error *err)
{
    void *buffer = malloc(CHUNK * element);
    if (!buffer) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", s->path);
    lk_status status = LK_OK;
    for (int64_t i = 0; i < s->total && !status; i += CHUNK) {
        int64_t n = s->total - i < CHUNK ? s->total - i : CHUNK;
        if (read_range(set, space, type, i, n, buffer))
            status = lk_h5_fail(err, LK_ERR_FORMAT, "%s: tokens %" PRId64 " to %" PRId64 " are damaged", s->path, i, i + n - 1);
        else
            lk_sha256_update(hash, buffer, (size_t)n * element);
    }
    free(buffer);
    return status;
}

lk_status lk_store_digest(lk_store *s, char hex[65], lk_error *err)
{
    lk_h5_begin();
    lk_sha256 hash;
    lk_sha256_init(&hash);
    lk_sha256_update(&hash, s->offsets, ((size_t)s->documents + 1) * sizeof *s->offsets);
    lk_status status = hash_column(s, &hash, s->tokens, s->tokens_space, H5T_NATIVE_INT32, 4, err);
    if (!status) status = hash_column(s, &hash, s->mask, s->mask_space, H5T_NATIVE_UINT8, 1, err);
    lk_sha256_final(&hash, hex);
    return status;
}
