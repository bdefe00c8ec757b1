/* Writing bundles, by libarchive: ustar without times and owners, zstd on one thread, so that the same content gives the same bytes.
 * Files are mapped, digested for the manifest, and then copied in. */
#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/sha256.h"
#include "data/bundle.h"
#include "data/bundle_keys.h"
#include "data/peft.h"

static bool add_member(struct archive *a, const char *name, const void *bytes, size_t size)
{
    struct archive_entry *entry = archive_entry_new();
    if (!entry) return false;
    archive_entry_set_pathname(entry, name);
    archive_entry_set_size(entry, (la_int64_t)size);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_mtime(entry, 0, 0);
    bool good = archive_write_header(a, entry) == ARCHIVE_OK && (size == 0 || archive_write_data(a, bytes, size) == (la_ssize_t)size);
    archive_entry_free(entry);
    return good;
}

static char *make_manifest(const lk_bundle_source *files, const lk_map *maps, int n, const cJSON *about)
{
    cJSON *root = cJSON_CreateObject(), *list;
    const cJSON *item;
    cJSON_AddStringToObject(root, "format", "lorikeet-bundle");
    cJSON_AddNumberToObject(root, "version", 1);
    cJSON_ArrayForEach(item, about) cJSON_AddItemToObject(root, item->string, cJSON_Duplicate(item, 1));
    list = cJSON_AddArrayToObject(root, "files");
    for (int i = 0; i < n; i++) {
        char digest[65];
        lk_sha256_bytes(maps[i].data, maps[i].size, digest);
        cJSON *file = cJSON_CreateObject();
        cJSON_AddStringToObject(file, "name", files[i].name);
        cJSON_AddNumberToObject(file, "size", (double)maps[i].size);
        cJSON_AddStringToObject(file, "sha256", digest);
        cJSON_AddItemToArray(list, file);
    }
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}

static void to_hex(char *out, const unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static lk_status make_signature(char *out, size_t size, const char *manifest, const char *key, lk_error *err)
{
    unsigned char public_key[LK_KEY_BYTES], signature[LK_SIGNATURE_BYTES];
    char key_text[2 * LK_KEY_BYTES + 1], signature_text[2 * LK_SIGNATURE_BYTES + 1];
    LK_TRY(lk_sign(key, manifest, strlen(manifest), public_key, signature, err));
    to_hex(key_text, public_key, sizeof public_key);
    to_hex(signature_text, signature, sizeof signature);
    snprintf(out, size, "{\"algorithm\": \"ed25519\", \"public_key\": \"%s\", \"signature\": \"%s\"}\n", key_text, signature_text);
    return LK_OK;
}

static lk_status write_archive(lk_atomic_file *out, const lk_bundle_source *files, const lk_map *maps, int n, const char *manifest,
                               const char *signature, lk_error *err)
{
    struct archive *a = archive_write_new();
    if (!a) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", out->path);
    archive_write_set_format_ustar(a);
    archive_write_add_filter_zstd(a);
    archive_write_set_bytes_in_last_block(a, 1);
    bool good = archive_write_open_FILE(a, out->stream) == ARCHIVE_OK && add_member(a, "bundle.json", manifest, strlen(manifest));
    if (good && signature[0]) good = add_member(a, "bundle.sig", signature, strlen(signature));
    for (int i = 0; i < n && good; i++) good = add_member(a, files[i].name, maps[i].data, maps[i].size);
    good = good && archive_write_close(a) == ARCHIVE_OK;
    lk_status status = LK_OK;
    if (!good) status = lk_fail(err, LK_ERR_IO, "%s: cannot be written: %s", out->path, archive_error_string(a));
    archive_write_free(a);
    return status;
}

lk_status lk_bundle_write(const char *path, const lk_bundle_source *files, int n, const cJSON *about, const char *key, lk_error *err)
{
    lk_map maps[LK_BUNDLE_MAX_MEMBERS] = {{0}};
    char signature[400] = "", *manifest = NULL;
    lk_atomic_file out = {0};
    lk_status status = LK_OK;
    if (n > LK_BUNDLE_MAX_MEMBERS) return lk_fail(err, LK_ERR_ARGUMENT, "%s: more than %d files", path, LK_BUNDLE_MAX_MEMBERS);
    for (int i = 0; i < n; i++)
        if ((status = lk_map_open(&maps[i], files[i].path, err))) goto out;
    manifest = make_manifest(files, maps, n, about);
    if (!manifest) {
        status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
        goto out;
    }
    if (key && (status = make_signature(signature, sizeof signature, manifest, key, err))) goto out;
    if ((status = lk_atomic_open(&out, path, err))) goto out;
    status = write_archive(&out, files, maps, n, manifest, signature, err);
    if (!status)
        status = lk_atomic_commit(&out, err);
    else
        lk_atomic_abort(&out);
out:
    cJSON_free(manifest);
    for (int i = 0; i < n; i++) lk_map_close(&maps[i]);
    return status;
}

/* ---- an adapter's bundle ---- */

static void add_metadata(cJSON *about, const lk_peft *peft, const char *key, const char *field)
{
    const char *value = lk_peft_metadata(peft, key);
    if (value) cJSON_AddStringToObject(about, field, value);
}

static cJSON *describe(const lk_peft *peft)
{
    cJSON *root = cJSON_CreateObject(), *about = cJSON_AddObjectToObject(root, "adapter");
    cJSON_AddStringToObject(about, "digest", lk_peft_digest(peft));
    cJSON_AddStringToObject(about, "base", lk_peft_base(peft));
    add_metadata(about, peft, "lorikeet.base_identity", "base_identity");
    add_metadata(about, peft, "lorikeet.base_digest", "base_digest");
    add_metadata(about, peft, "lorikeet.quantization", "quantization");
    return root;
}

lk_status lk_bundle_adapter(const char *path, const char *adapter, const char *recipe, const char *key, lk_error *err)
{
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors", "run.json", "metrics.jsonl"};
    char paths[4][4200];
    lk_bundle_source files[5];
    int n = 0;
    lk_peft *peft;
    LK_TRY(lk_peft_open(&peft, adapter, NULL, err));
    cJSON *about = describe(peft);
    lk_peft_close(peft);
    lk_status status = LK_OK;
    if (!lk_path_is_folder(adapter)) status = lk_fail(err, LK_ERR_ARGUMENT, "%s is a bundle already", adapter);
    for (int i = 0; i < 4 && !status; i++) {
        snprintf(paths[i], sizeof paths[i], "%.4000s/%s%s", adapter, i < 2 ? "" : "../", names[i]);
        if (i < 2 || lk_path_exists(paths[i])) files[n++] = (lk_bundle_source){names[i], paths[i]};
    }
    if (recipe) files[n++] = (lk_bundle_source){"recipe.json", recipe};
    if (!status) status = lk_bundle_write(path, files, n, about, key, err);
    cJSON_Delete(about);
    return status;
}
