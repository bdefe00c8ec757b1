/* Bundles: one file that carries an adapter and all that is said about it. A tar of regular files, compressed by zstd:
 *
 *     bundle.json                  the manifest: name, size and SHA-256 of every other file; digest and base of the adapter
 *     bundle.sig                   optional: an Ed25519 signature of the bytes of bundle.json
 *     adapter_config.json, adapter_model.safetensors, and what else there is (recipe.json, run.json, metrics.jsonl)
 *
 *     lk_bundle *bundle;
 *     LK_TRY(lk_bundle_open(&bundle, "acme.tar.zst", keys, err));
 *     const lk_bundle_member *config = lk_bundle_find(bundle, "adapter_config.json");
 *     lk_bundle_close(bundle);
 *
 * A bundle is read into memory, whole and bounded, and nothing is ever unpacked onto a disk. Only what the writer here makes is read:
 * plain names without folders, regular files, in the manifest's order, each once, with the manifest's size and digest, and nothing after
 * the last. Everything else (links, absolute names, "..", duplicates, other digests, trailing bytes) is refused by name. The same content
 * gives the same bytes: fixed order, no times, no owners. */
#ifndef LK_DATA_BUNDLE_H
#define LK_DATA_BUNDLE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/json.h"
#include "base/status.h"

typedef struct lk_bundle lk_bundle;
typedef struct lk_bundle_keys lk_bundle_keys;

/* Most bytes a bundle may unpack to. */
#define LK_BUNDLE_MAX_BYTES ((size_t)8 << 30)
enum { LK_BUNDLE_MAX_MEMBERS = 64 };

typedef struct lk_bundle_member {
    const char *name;
    const char *bytes; /* borrowed until close; not aligned */
    size_t size;
} lk_bundle_member;

/* keys NULL: unsigned bundles and bundles of any signer are opened. A signature that does not fit is always refused. */
lk_status lk_bundle_open(lk_bundle **bundle, const char *path, const lk_bundle_keys *keys, lk_error *err);
/* The compressed bytes are borrowed for the call. name: for messages. */
lk_status lk_bundle_open_memory(lk_bundle **bundle, const void *bytes, size_t size, const char *name, const lk_bundle_keys *keys,
                                lk_error *err);
void lk_bundle_close(lk_bundle *bundle);      /* NULL is fine */
int lk_bundle_count(const lk_bundle *bundle); /* without bundle.json and bundle.sig */
const lk_bundle_member *lk_bundle_at(const lk_bundle *bundle, int index);
const lk_bundle_member *lk_bundle_find(const lk_bundle *bundle, const char *name); /* NULL when missing */
const cJSON *lk_bundle_manifest(const lk_bundle *bundle);
const char *lk_bundle_signer(const lk_bundle *bundle); /* hexadecimal public key; NULL: unsigned */

/* Public keys, as `openssl pkey -in key.pem -pubout` writes them, one after the other in a file. */
lk_status lk_bundle_keys_read(lk_bundle_keys **keys, const char *path, lk_error *err);
void lk_bundle_keys_free(lk_bundle_keys *keys); /* NULL is fine */

typedef struct lk_bundle_source {
    const char *name, *path; /* the file's name in the bundle, and where it is */
} lk_bundle_source;

/* Replaces `path` atomically. about: members that go into the manifest beside the list of files (borrowed). key: an Ed25519 private key
 * in PEM, as `openssl genpkey -algorithm ed25519` writes it; NULL: no signature. */
lk_status lk_bundle_write(const char *path, const lk_bundle_source *files, int n, const cJSON *about, const char *key, lk_error *err);

/* An adapter folder as a bundle. run.json and metrics.jsonl of the run it lies in come along when they are there, and the recipe that is
 * named (may be NULL). */
lk_status lk_bundle_adapter(const char *path, const char *adapter, const char *recipe, const char *key, lk_error *err);

#endif
