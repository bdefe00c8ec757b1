#include "base/sha256.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"

/* libcrypto fails here only without memory; there is nothing sensible to do with half a digest then. */
static void must(int ok)
{
    if (!ok) abort();
}

void lk_sha256_init(lk_sha256 *hash)
{
    hash->context = EVP_MD_CTX_new();
    must(hash->context != NULL);
    must(EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL));
}

void lk_sha256_update(lk_sha256 *hash, const void *bytes, size_t size) { must(EVP_DigestUpdate(hash->context, bytes, size)); }

void lk_sha256_final(lk_sha256 *hash, char hex[65])
{
    unsigned char digest[32];
    must(EVP_DigestFinal_ex(hash->context, digest, NULL));
    EVP_MD_CTX_free(hash->context);
    hash->context = NULL;
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

void lk_sha256_bytes(const void *bytes, size_t size, char hex[65])
{
    lk_sha256 hash;
    lk_sha256_init(&hash);
    lk_sha256_update(&hash, bytes, size);
    lk_sha256_final(&hash, hex);
}

lk_status lk_sha256_file(const char *path, char hex[65], lk_error *err)
{
    lk_map map;
    LK_TRY(lk_map_open(&map, path, err));
    lk_sha256_bytes(map.data, map.size, hex);
    lk_map_close(&map);
    return LK_OK;
}
