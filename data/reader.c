/* Dataset files as a stream of examples.
 *
 * libarchive reads everything, plain files too: its "raw" format hands through bytes that are no archive, after undoing gzip or zstd,
 * so one loop serves acme.jsonl, acme.jsonl.gz and the members of acme.tar.zst. Only the formats and filters that the manual promises
 * are enabled: the full set contains ones that start programs.
 *
 * A member is cut into records: lines, the elements of a JSON array (found by counting brackets outside strings; the parser proper
 * sees one element at a time), or, for .txt, the whole file. One buffer holds the record; its bound is what makes hostile input harmless.
 */
#include "data/reader.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

enum { CHUNK = 64 * 1024 };

typedef enum record_mode { MODE_CLOSED, MODE_LINES, MODE_ARRAY, MODE_DOCUMENT } record_mode;

struct lk_reader {
    lk_arena strings; /* the source's */
    lk_source source;
    int fd;
    struct archive *archive;
    char member[1024]; /* printable name inside an archive; "" for a plain file */
    record_mode mode;
    bool array_started; /* an element has been read: a comma comes before the next */
    bool finished;
    lk_status broken; /* the file itself cannot be read on */
    int64_t line;     /* that the next byte is on */
    int64_t examples;
    char chunk[CHUNK];
    size_t chunk_at, chunk_size;
    char *record;
    size_t record_size, record_room;
    int64_t record_line;
    lk_arena arena; /* the current example's */
    cJSON *tree;    /* too */
    char place[5200];
};

/* Brings the place up to date and returns it, for messages. */
static const char *here(lk_reader *r)
{
    if (r->mode == MODE_CLOSED)
        snprintf(r->place, sizeof r->place, "%.4000s", r->source.path);
    else
        snprintf(r->place, sizeof r->place, "%.4000s%s%s:%" PRId64, r->source.path, r->member[0] ? ":" : "", r->member, r->record_line);
    return r->place;
}

/* What is wrong with the file itself: nothing after it can be trusted. */
static lk_status unreadable(lk_reader *r, const char *what, lk_error *err)
{
    r->broken = LK_ERR_FORMAT;
    return lk_fail(err, LK_ERR_FORMAT, "%s: %s", here(r), what);
}

/* ---- bytes ---- */

/* The next byte of the member without taking it, or -1 at its end. */
static lk_status peek(lk_reader *r, int *byte, lk_error *err)
{
    *byte = -1;
    if (r->chunk_at == r->chunk_size) {
        la_ssize_t n = archive_read_data(r->archive, r->chunk, CHUNK);
        if (n < 0) {
            r->broken = LK_ERR_FORMAT;
            return lk_fail(err, LK_ERR_FORMAT, "%s: the file cannot be read on: %s", here(r), archive_error_string(r->archive));
        }
        r->chunk_at = 0;
        r->chunk_size = (size_t)n;
        if (n == 0) return LK_OK;
    }
    *byte = (unsigned char)r->chunk[r->chunk_at];
    return LK_OK;
}

static void take(lk_reader *r)
{
    if (r->chunk[r->chunk_at++] == '\n') r->line++;
}

static lk_status append(lk_reader *r, const char *bytes, size_t n, lk_error *err)
{
    if (n > LK_READER_MAX_LINE - r->record_size) {
        r->broken = LK_ERR_FORMAT;
        return lk_fail(err, LK_ERR_FORMAT, "%s: longer than %zu MiB; one example cannot be so large", here(r), LK_READER_MAX_LINE >> 20);
    }
    if (r->record_size + n >= r->record_room) {
        size_t room = r->record_room ? r->record_room : 4096;
        while (room <= r->record_size + n) room *= 2;
        char *grown = realloc(r->record, room);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu bytes", here(r), room);
        r->record = grown;
        r->record_room = room;
    }
    memcpy(r->record + r->record_size, bytes, n);
    r->record_size += n;
    r->record[r->record_size] = 0;
    return LK_OK;
}

static bool is_space(int c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static lk_status skip_space(lk_reader *r, int *byte, lk_error *err)
{
    for (;;) {
        LK_TRY(peek(r, byte, err));
        if (!is_space(*byte)) return LK_OK;
        take(r);
    }
}

/* ---- records: *found says whether there was one ---- */

static lk_status next_line(lk_reader *r, bool *found, lk_error *err)
{
    *found = false;
    for (;;) {
        int byte;
        r->record_size = 0;
        r->record_line = r->line;
        for (;;) { /* by the piece: what is left of the chunk up to the end of the line */
            LK_TRY(peek(r, &byte, err));
            if (byte < 0) break;
            const char *start = r->chunk + r->chunk_at, *end = memchr(start, '\n', r->chunk_size - r->chunk_at);
            size_t n = end ? (size_t)(end - start) : r->chunk_size - r->chunk_at;
            LK_TRY(append(r, start, n, err));
            r->chunk_at += n;
            if (end) {
                take(r);
                break;
            }
        }
        size_t n = 0;
        while (n < r->record_size && is_space(r->record[n])) n++;
        *found = n < r->record_size;
        if (*found || byte < 0) return LK_OK;
    }
}

/* Appends one JSON value: up to the bracket that closes it, or, for anything that is no object or list, up to a comma or bracket. */
static lk_status append_value(lk_reader *r, lk_error *err)
{
    int depth = 0, byte;
    bool in_string = false, escaped = false;
    for (;;) {
        LK_TRY(peek(r, &byte, err));
        if (byte < 0) return unreadable(r, "the JSON array is cut off inside this element", err);
        char c = (char)byte;
        if (!in_string && depth == 0 && (c == ',' || c == ']' || c == '}')) return LK_OK;
        LK_TRY(append(r, &c, 1, err));
        take(r);
        if (in_string) {
            if (escaped)
                escaped = false;
            else if (c == '\\')
                escaped = true;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if ((c == '}' || c == ']') && --depth == 0) {
            return LK_OK;
        }
    }
}

static lk_status next_element(lk_reader *r, bool *found, lk_error *err)
{
    int byte;
    *found = false;
    LK_TRY(skip_space(r, &byte, err));
    r->record_line = r->line;
    if (byte == ',' && r->array_started) {
        take(r);
        LK_TRY(skip_space(r, &byte, err));
        r->record_line = r->line;
        if (byte == ']') return unreadable(r, "a comma before the end of the JSON array", err);
    } else if (byte != ']' && byte >= 0 && r->array_started) {
        return unreadable(r, "a comma is missing between the elements of the JSON array", err);
    }
    if (byte < 0) return unreadable(r, "the JSON array has no end; is the file cut off?", err);
    if (byte == ']') {
        take(r);
        LK_TRY(skip_space(r, &byte, err));
        r->record_line = r->line;
        return byte < 0 ? LK_OK : unreadable(r, "something follows the end of the JSON array", err);
    }
    r->record_size = 0;
    r->array_started = true;
    LK_TRY(append_value(r, err));
    if (r->record_size == 0) return unreadable(r, "an element is missing in the JSON array", err);
    *found = true;
    return LK_OK;
}

static lk_status next_document(lk_reader *r, bool *found, lk_error *err)
{
    int byte;
    r->record_size = 0;
    r->record_line = 1;
    for (;;) {
        LK_TRY(peek(r, &byte, err));
        if (byte < 0) break;
        LK_TRY(append(r, r->chunk + r->chunk_at, r->chunk_size - r->chunk_at, err));
        r->chunk_at = r->chunk_size;
    }
    *found = r->record_size > 0;
    return LK_OK;
}

/* ---- members ---- */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n > m && !strcasecmp(text + n - m, end);
}

/* Whether the name, without a suffix for compression, is a text file. */
static bool is_text_name(const char *name)
{
    static const char *const suffixes[] = {".txt", ".txt.gz", ".txt.zst", ".txt.bz2", ".txt.xz"};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (ends_with(name, suffixes[i])) return true;
    return false;
}

static bool is_wanted(const lk_reader *r, struct archive_entry *entry, const char *name)
{
    const char *slash = strrchr(name, '/'), *leaf = slash ? slash + 1 : name;
    if (archive_entry_filetype(entry) != AE_IFREG) return false;
    if (!strncmp(leaf, "._", 2)) return false; /* what macOS puts beside every file */
    return ends_with(leaf, ".jsonl") || ends_with(leaf, ".json") || (r->source.format == LK_DATA_TEXT && ends_with(leaf, ".txt"));
}

/* Looks at the start: a byte order mark, and what kind of file it is. */
static lk_status begin_member(lk_reader *r, const char *name, lk_error *err)
{
    int byte;
    r->mode = MODE_LINES; /* places have lines from here on */
    r->line = r->record_line = 1;
    r->array_started = false;
    r->chunk_at = r->chunk_size = 0;
    LK_TRY(peek(r, &byte, err));
    size_t n = r->chunk_size;
    if (n >= 2 && (!memcmp(r->chunk, "\xff\xfe", 2) || !memcmp(r->chunk, "\xfe\xff", 2)))
        return unreadable(r, "the file is UTF-16; save it as UTF-8", err);
    if (n >= 3 && !memcmp(r->chunk, "\xef\xbb\xbf", 3)) r->chunk_at = 3;
    if (r->source.format == LK_DATA_TEXT && is_text_name(name)) {
        r->mode = MODE_DOCUMENT;
        return LK_OK;
    }
    LK_TRY(skip_space(r, &byte, err));
    if (byte == '[') {
        take(r);
        r->mode = MODE_ARRAY;
    }
    return LK_OK;
}

static void set_member(lk_reader *r, const char *name)
{
    snprintf(r->member, sizeof r->member, "%s", name);
    for (char *p = r->member; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
}

/* Opens the next member that holds data; r->finished when there is none. */
static lk_status next_member(lk_reader *r, lk_error *err)
{
    for (;;) {
        struct archive_entry *entry;
        int code = archive_read_next_header(r->archive, &entry);
        if (code == ARCHIVE_EOF) {
            r->finished = true;
            return LK_OK;
        }
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
            r->broken = LK_ERR_FORMAT;
            return lk_fail(err, LK_ERR_FORMAT, "%s: cannot be read: %s", r->source.path, archive_error_string(r->archive));
        }
        if (archive_format(r->archive) == ARCHIVE_FORMAT_RAW) {
            r->member[0] = 0;
            return begin_member(r, r->source.path, err);
        }
        const char *name = archive_entry_pathname_utf8(entry);
        if (!name) name = archive_entry_pathname(entry);
        if (!name || !is_wanted(r, entry, name)) continue;
        set_member(r, name);
        return begin_member(r, name, err);
    }
}

/* ---- examples ---- */

/* A .txt file: the record is the text, which nobody has checked yet. */
static lk_status document_example(lk_reader *r, lk_example *example, lk_error *err)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)r->record;
    for (size_t i = 0, line = 1; i < r->record_size;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(p + i, (utf8proc_ssize_t)(r->record_size - i), &c);
        if (n <= 0 || c == 0) {
            r->record_line = (int64_t)line;
            return lk_fail(err, LK_ERR_FORMAT, "%s: %s", here(r), c == 0 && n > 0 ? "a zero byte" : "not valid UTF-8");
        }
        line += c == '\n';
        i += (size_t)n;
    }
    *example = (lk_example){.kind = LK_EXAMPLE_TEXT, .text = r->record, .line = 1};
    return LK_OK;
}

static lk_status next_record(lk_reader *r, bool *found, lk_error *err)
{
    switch (r->mode) {
    case MODE_LINES: return next_line(r, found, err);
    case MODE_ARRAY: return next_element(r, found, err);
    case MODE_DOCUMENT: return next_document(r, found, err);
    case MODE_CLOSED: break;
    }
    *found = false;
    return LK_OK;
}

lk_status lk_reader_next(lk_reader *r, lk_example *example, lk_error *err)
{
    *example = (lk_example){0};
    lk_arena_free(&r->arena);
    cJSON_Delete(r->tree);
    r->tree = NULL;
    if (r->broken) return lk_fail(err, r->broken, "%s: reading stopped at an earlier error", r->source.path);
    while (!r->finished) {
        if (r->mode == MODE_CLOSED) {
            LK_TRY(next_member(r, err));
            continue;
        }
        bool found;
        LK_TRY(next_record(r, &found, err));
        if (!found) {
            r->mode = MODE_CLOSED;
            continue;
        }
        r->examples++;
        here(r);
        if (r->mode == MODE_DOCUMENT) return document_example(r, example, err);
        example->line = r->record_line;
        lk_status status = lk_example_parse(example, &r->arena, &r->source, r->record, r->record_size, r->place, err);
        r->tree = example->tree;
        return status;
    }
    if (r->examples) return LK_OK; /* LK_EXAMPLE_END */
    return lk_fail(err, LK_ERR_FORMAT, "%s: the dataset is empty: no example in it%s", r->source.path,
                   r->source.format == LK_DATA_TEXT ? "" : " (in an archive .jsonl and .json members count)");
}

const char *lk_reader_place(const lk_reader *r) { return r->place; }

/* ---- opening ---- */

static lk_status open_archive(lk_reader *r, lk_error *err)
{
    const char *path = r->source.path;
    struct stat info;
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0) return lk_fail_errno(err, "cannot open the dataset %s", path);
    if (!fstat(r->fd, &info) && S_ISDIR(info.st_mode))
        return lk_fail(err, LK_ERR_IO, "the dataset %s is a folder; name a file or an archive", path);
    r->archive = archive_read_new();
    if (!r->archive) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    archive_read_support_filter_gzip(r->archive);
    archive_read_support_filter_zstd(r->archive);
    archive_read_support_filter_bzip2(r->archive);
    archive_read_support_filter_xz(r->archive);
    archive_read_support_format_tar(r->archive);
    archive_read_support_format_zip(r->archive);
    archive_read_support_format_empty(r->archive);
    archive_read_support_format_raw(r->archive);
    if (archive_read_open_fd(r->archive, r->fd, CHUNK) != ARCHIVE_OK)
        return lk_fail(err, LK_ERR_FORMAT, "%s: cannot be read: %s", path, archive_error_string(r->archive));
    return LK_OK;
}

static lk_status copy_source(lk_reader *r, const lk_source *source, lk_error *err)
{
    r->source.format = source->format;
    r->source.path = lk_arena_strdup(&r->strings, source->path);
    if (source->prompt_field) r->source.prompt_field = lk_arena_strdup(&r->strings, source->prompt_field);
    if (source->completion_field) r->source.completion_field = lk_arena_strdup(&r->strings, source->completion_field);
    bool complete =
        r->source.path && (!source->prompt_field || r->source.prompt_field) && (!source->completion_field || r->source.completion_field);
    return complete ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", source->path);
}

lk_status lk_reader_open(lk_reader **r, const lk_source *source, lk_error *err)
{
    *r = NULL;
    lk_reader *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", source->path);
    fresh->fd = -1;
    lk_status status = copy_source(fresh, source, err);
    if (!status) here(fresh);
    if (!status) status = open_archive(fresh, err);
    if (status) {
        lk_reader_close(fresh);
        return status;
    }
    *r = fresh;
    return LK_OK;
}

void lk_reader_close(lk_reader *r)
{
    if (!r) return;
    if (r->archive) archive_read_free(r->archive);
    if (r->fd >= 0) close(r->fd);
    free(r->record);
    cJSON_Delete(r->tree);
    lk_arena_free(&r->arena);
    lk_arena_free(&r->strings);
    free(r);
}
