#include "data/bundle_keys.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { MAX_KEYS = 256, MAX_KEY_FILE = 1 << 20 };

struct lk_bundle_keys {
    int n;
    unsigned char keys[MAX_KEYS][LK_KEY_BYTES];
};

/* The raw public half of an Ed25519 key; false when it is another kind of key. */
static bool public_half(const EVP_PKEY *key, unsigned char out[LK_KEY_BYTES])
{
    size_t size = LK_KEY_BYTES;
    return EVP_PKEY_id(key) == EVP_PKEY_ED25519 && EVP_PKEY_get_raw_public_key(key, out, &size) == 1 && size == LK_KEY_BYTES;
}

lk_status lk_bundle_keys_read(lk_bundle_keys **out, const char *path, lk_error *err)
{
    *out = NULL;
    char *text;
    size_t size;
    LK_TRY(lk_file_read(path, MAX_KEY_FILE, &text, &size, err));
    lk_bundle_keys *keys = calloc(1, sizeof *keys);
    BIO *bio = BIO_new_mem_buf(text, (int)size);
    lk_status status = LK_OK;
    EVP_PKEY *key = NULL;
    if (!keys || !bio) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    while (!status && (key = PEM_read_bio_PUBKEY(bio, NULL, NULL, NULL))) {
        if (keys->n == MAX_KEYS)
            status = lk_fail(err, LK_ERR_FORMAT, "%s: more than %d keys", path, MAX_KEYS);
        else if (!public_half(key, keys->keys[keys->n++]))
            status = lk_fail(err, LK_ERR_FORMAT, "%s: key %d is not an Ed25519 public key", path, keys->n);
        EVP_PKEY_free(key);
    }
    ERR_clear_error();
    if (!status && keys->n == 0)
        status = lk_fail(err, LK_ERR_FORMAT, "%s: no public keys; they are written by `openssl pkey -in key.pem -pubout`", path);
    BIO_free(bio);
    free(text);
    if (status)
        free(keys);
    else
        *out = keys;
    return status;
}

void lk_bundle_keys_free(lk_bundle_keys *keys) { free(keys); }

bool lk_bundle_keys_have(const lk_bundle_keys *keys, const unsigned char public_key[LK_KEY_BYTES])
{
    for (int i = 0; i < keys->n; i++)
        if (!memcmp(keys->keys[i], public_key, LK_KEY_BYTES)) return true;
    return false;
}

lk_status lk_sign(const char *key_path, const void *bytes, size_t size, unsigned char public_key[LK_KEY_BYTES],
                  unsigned char signature[LK_SIGNATURE_BYTES], lk_error *err)
{
    char *text;
    size_t text_size, length = LK_SIGNATURE_BYTES;
    LK_TRY(lk_file_read(key_path, MAX_KEY_FILE, &text, &text_size, err));
    BIO *bio = BIO_new_mem_buf(text, (int)text_size);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool right = key && public_half(key, public_key);
    bool done = right && context && EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
                EVP_DigestSign(context, signature, &length, bytes, size) == 1 && length == LK_SIGNATURE_BYTES;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    BIO_free(bio);
    OPENSSL_cleanse(text, text_size);
    free(text);
    ERR_clear_error();
    if (done) return LK_OK;
    if (right) return lk_fail(err, LK_ERR_INTERNAL, "%s: signing failed", key_path);
    return lk_fail(err, LK_ERR_FORMAT, "%s: not an Ed25519 private key; one is made by `openssl genpkey -algorithm ed25519 -out key.pem`",
                   key_path);
}

bool lk_verify(const unsigned char public_key[LK_KEY_BYTES], const void *bytes, size_t size,
               const unsigned char signature[LK_SIGNATURE_BYTES])
{
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, public_key, LK_KEY_BYTES);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool good = key && context && EVP_DigestVerifyInit(context, NULL, NULL, NULL, key) == 1 &&
                EVP_DigestVerify(context, signature, LK_SIGNATURE_BYTES, bytes, size) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    ERR_clear_error();
    return good;
}
