/* Reading bundles. libarchive undoes the compression; the tar inside is parsed here, because less than a general reader accepts is
 * wanted: a bundle has one form, and what differs from it was made by somebody else. The unpacked tar is one block of memory and
 * members point into it. Writing is bundle_write.c's. */
#include "data/bundle.h"

#include <archive.h>
#include <archive_entry.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "data/bundle_keys.h"

enum { BLOCK = 512, CHUNK = 1 << 16, MAX_MANIFEST = 1 << 20, MAX_PADDING = 20 * BLOCK };

struct lk_bundle {
    char *tar;
    size_t size, capacity;
    lk_bundle_member members[LK_BUNDLE_MAX_MEMBERS + 2]; /* as they come */
    char names[LK_BUNDLE_MAX_MEMBERS + 2][104];
    int n, first; /* of all members; the first that is not the bundle's own */
    cJSON *manifest;
    char signer[2 * LK_KEY_BYTES + 1];
};

/* ---- decompression ---- */

static lk_status grow(lk_bundle *b, size_t more, const char *name, lk_error *err)
{
    if (b->size + more > LK_BUNDLE_MAX_BYTES)
        return lk_fail(err, LK_ERR_FORMAT, "%s: the bundle unpacks to more than %zu bytes", name, LK_BUNDLE_MAX_BYTES);
    if (b->size + more <= b->capacity) return LK_OK;
    size_t capacity = b->capacity ? 2 * b->capacity : 4 * CHUNK;
    char *larger = realloc(b->tar, capacity);
    if (!larger) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for a bundle of more than %zu bytes", name, b->size);
    b->tar = larger;
    b->capacity = capacity;
    return LK_OK;
}

static lk_status unpack(lk_bundle *b, const void *bytes, size_t size, const char *name, lk_error *err)
{
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    lk_status status = LK_OK;
    if (!a) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    archive_read_support_filter_zstd(a);
    archive_read_support_format_raw(a);
    if (archive_read_open_memory(a, bytes, size) != ARCHIVE_OK || archive_read_next_header(a, &entry) != ARCHIVE_OK ||
        archive_filter_code(a, 0) != ARCHIVE_FILTER_ZSTD) {
        status = lk_fail(err, LK_ERR_FORMAT, "%s: not a bundle: a tar compressed by zstd is expected", name);
        goto out;
    }
    for (;;) {
        if ((status = grow(b, CHUNK, name, err))) goto out;
        la_ssize_t n = archive_read_data(a, b->tar + b->size, CHUNK);
        if (n == 0) break;
        if (n < 0) {
            status = lk_fail(err, LK_ERR_FORMAT, "%s: the bundle is damaged: %s", name, archive_error_string(a));
            goto out;
        }
        b->size += (size_t)n;
    }
out:
    archive_read_free(a);
    return status;
}

/* ---- the tar ---- */

/* An octal field of a header; SIZE_MAX when it is something else. */
static size_t octal(const char *field, int length)
{
    size_t value = 0;
    int i = 0;
    for (; i < length && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (size_t)(field[i] - '0');
    if (i == 0 || (i < length && field[i] != ' ' && field[i] != 0)) return SIZE_MAX;
    return value;
}

static bool checksum_fits(const char *header)
{
    size_t sum = 0;
    for (int i = 0; i < BLOCK; i++) sum += i >= 148 && i < 156 ? ' ' : (unsigned char)header[i];
    return octal(header + 148, 8) == sum;
}

static bool all_zero(const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i]) return false;
    return true;
}

static lk_status check_name(const char *member, const char *name, lk_error *err)
{
    size_t n = strspn(member, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.");
    if (member[0] && member[0] != '.' && !member[n]) return LK_OK;
    return lk_fail(err, LK_ERR_FORMAT, "%s: a bundle's files have plain names without folders; \"%.100s\" is none", name, member);
}

static lk_status read_member(lk_bundle *b, const char *header, size_t *at, const char *name, lk_error *err)
{
    if (b->n == LK_BUNDLE_MAX_MEMBERS + 2)
        return lk_fail(err, LK_ERR_FORMAT, "%s: more than %d files in a bundle", name, LK_BUNDLE_MAX_MEMBERS);
    char *member = b->names[b->n];
    memcpy(member, header, 100);
    member[100] = 0;
    if (!checksum_fits(header) || memcmp(header + 257, "ustar", 5))
        return lk_fail(err, LK_ERR_FORMAT, "%s: the bundle is damaged: no tar header at byte %zu", name, *at - BLOCK);
    if (header[156] != '0' || !all_zero(header + 157, 100))
        return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.100s\" is not a regular file (links, folders and extended headers are refused)", name,
                       member);
    LK_TRY(check_name(member, name, err));
    if (!all_zero(header + 345, 155)) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.100s\" lies in a folder", name, member);
    for (int i = 0; i < b->n; i++)
        if (!strcmp(b->names[i], member)) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%s\" is there twice", name, member);
    size_t size = octal(header + 124, 12), room = b->size - *at;
    if (size > room || (size + BLOCK - 1) / BLOCK * BLOCK > room) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%s\" is cut off", name, member);
    b->members[b->n++] = (lk_bundle_member){member, b->tar + *at, size};
    *at += (size + BLOCK - 1) / BLOCK * BLOCK;
    return LK_OK;
}

static lk_status read_tar(lk_bundle *b, const char *name, lk_error *err)
{
    size_t at = 0;
    for (;;) {
        if (b->size - at < BLOCK) return lk_fail(err, LK_ERR_FORMAT, "%s: the bundle is cut off", name);
        const char *header = b->tar + at;
        if (all_zero(header, BLOCK)) break;
        at += BLOCK;
        LK_TRY(read_member(b, header, &at, name, err));
    }
    if (b->size - at > MAX_PADDING || !all_zero(b->tar + at, b->size - at))
        return lk_fail(err, LK_ERR_FORMAT, "%s: there are bytes behind the bundle's last file", name);
    return LK_OK;
}

/* ---- manifest and signature ---- */

static bool from_hex(unsigned char *out, const char *text, size_t n)
{
    if (strlen(text) != 2 * n) return false;
    for (size_t i = 0; i < 2 * n; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        out[i / 2] = (unsigned char)(i % 2 ? out[i / 2] << 4 | digit : digit);
    }
    return true;
}

static lk_status check_signature(lk_bundle *b, const lk_bundle_keys *keys, const char *name, lk_error *err)
{
    const lk_bundle_member *manifest = &b->members[0], *file = &b->members[1];
    if (b->first == 1)
        return keys ? lk_fail(err, LK_ERR_MISMATCH, "%s: the bundle is not signed, and only bundles of trusted signers are loaded", name)
                    : LK_OK;
    char where[600];
    snprintf(where, sizeof where, "%.500s: bundle.sig", name);
    cJSON *root;
    const char *algorithm, *key, *text;
    unsigned char public_key[LK_KEY_BYTES], signature[LK_SIGNATURE_BYTES];
    LK_TRY(lk_json_parse(&root, file->bytes, file->size, where, err));
    lk_status status = lk_json_string(root, "algorithm", &algorithm, where, err);
    if (!status) status = lk_json_string(root, "public_key", &key, where, err);
    if (!status) status = lk_json_string(root, "signature", &text, where, err);
    if (!status &&
        (strcmp(algorithm, "ed25519") || !from_hex(public_key, key, sizeof public_key) || !from_hex(signature, text, sizeof signature)))
        status = lk_fail(err, LK_ERR_FORMAT, "%s: an ed25519 signature in hexadecimal is expected", where);
    if (!status && !lk_verify(public_key, manifest->bytes, manifest->size, signature))
        status = lk_fail(err, LK_ERR_MISMATCH, "%s: the signature does not fit the bundle: it was changed after it was signed", name);
    if (!status && keys && !lk_bundle_keys_have(keys, public_key))
        status = lk_fail(err, LK_ERR_MISMATCH, "%s: the bundle is signed by %.16s..., which is none of the trusted keys", name, key);
    if (!status) memcpy(b->signer, key, sizeof b->signer);
    cJSON_Delete(root);
    return status;
}

static lk_status check_file(const lk_bundle_member *m, const cJSON *entry, const char *name, lk_error *err)
{
    const char *want_name, *want;
    int64_t size;
    char where[600], digest[65];
    snprintf(where, sizeof where, "%.500s: bundle.json", name);
    LK_TRY(lk_json_string(entry, "name", &want_name, where, err));
    LK_TRY(lk_json_string(entry, "sha256", &want, where, err));
    LK_TRY(lk_json_int(entry, "size", 0, INT64_MAX / 2, &size, where, err));
    if (strcmp(m->name, want_name))
        return lk_fail(err, LK_ERR_FORMAT, "%s: the manifest lists %.100s where the bundle has %s", name, want_name, m->name);
    if ((size_t)size != m->size)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s has %zu bytes, the manifest says %" PRId64, name, m->name, m->size, size);
    lk_sha256_bytes(m->bytes, m->size, digest);
    if (strcmp(digest, want))
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s has the digest %.16s..., the manifest says %.16s...: it was changed", name, m->name,
                       digest, want);
    return LK_OK;
}

static lk_status check_manifest(lk_bundle *b, const char *name, lk_error *err)
{
    char where[600];
    const char *format;
    int64_t version;
    snprintf(where, sizeof where, "%.500s: bundle.json", name);
    LK_TRY(lk_json_parse(&b->manifest, b->members[0].bytes, b->members[0].size, where, err));
    LK_TRY(lk_json_string(b->manifest, "format", &format, where, err));
    LK_TRY(lk_json_int(b->manifest, "version", 1, INT32_MAX, &version, where, err));
    if (strcmp(format, "lorikeet-bundle") || version != 1)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: \"%.60s\" version %" PRId64 "; this program reads \"lorikeet-bundle\" version 1",
                       where, format, version);
    const cJSON *files = lk_json_get(b->manifest, "files");
    int n = cJSON_IsArray(files) ? cJSON_GetArraySize(files) : -1;
    if (n != b->n - b->first)
        return lk_fail(err, LK_ERR_FORMAT, "%s: the manifest lists %d files, the bundle has %d", name, n, b->n - b->first);
    for (int i = 0; i < n; i++) LK_TRY(check_file(&b->members[b->first + i], cJSON_GetArrayItem(files, i), name, err));
    return LK_OK;
}

/* ---- public ---- */

lk_status lk_bundle_open_memory(lk_bundle **out, const void *bytes, size_t size, const char *name, const lk_bundle_keys *keys,
                                lk_error *err)
{
    *out = NULL;
    lk_bundle *b = calloc(1, sizeof *b);
    if (!b) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    lk_status status = unpack(b, bytes, size, name, err);
    if (!status) status = read_tar(b, name, err);
    if (!status && (b->n == 0 || strcmp(b->names[0], "bundle.json") || b->members[0].size > MAX_MANIFEST))
        status = lk_fail(err, LK_ERR_FORMAT, "%s: not a bundle: its first file must be bundle.json", name);
    if (!status) {
        b->first = b->n > 1 && !strcmp(b->names[1], "bundle.sig") ? 2 : 1;
        status = check_signature(b, keys, name, err);
    }
    if (!status) status = check_manifest(b, name, err);
    if (status)
        lk_bundle_close(b);
    else
        *out = b;
    return status;
}

lk_status lk_bundle_open(lk_bundle **bundle, const char *path, const lk_bundle_keys *keys, lk_error *err)
{
    lk_map map;
    *bundle = NULL;
    LK_TRY(lk_map_open(&map, path, err));
    lk_status status = lk_bundle_open_memory(bundle, map.data, map.size, path, keys, err);
    lk_map_close(&map);
    return status;
}

void lk_bundle_close(lk_bundle *b)
{
    if (!b) return;
    cJSON_Delete(b->manifest);
    free(b->tar);
    free(b);
}

int lk_bundle_count(const lk_bundle *b) { return b->n - b->first; }
const lk_bundle_member *lk_bundle_at(const lk_bundle *b, int index) { return &b->members[b->first + index]; }

const lk_bundle_member *lk_bundle_find(const lk_bundle *b, const char *name)
{
    for (int i = b->first; i < b->n; i++)
        if (!strcmp(b->names[i], name)) return &b->members[i];
    return NULL;
}

const cJSON *lk_bundle_manifest(const lk_bundle *b) { return b->manifest; }
const char *lk_bundle_signer(const lk_bundle *b) { return b->signer[0] ? b->signer : NULL; }
