/* SHA-256 (FIPS 180-4, by OpenSSL's libcrypto): digests of files, weights, recipes and adapters.
 *
 *     lk_sha256 hash; lk_sha256_init(&hash); lk_sha256_update(&hash, p, n);
 *     char hex[65]; lk_sha256_final(&hash, hex);
 *
 * final also releases; call it even when the result is not wanted. */
#ifndef LK_BASE_SHA256_H
#define LK_BASE_SHA256_H

#include <stddef.h>

#include "base/status.h"

typedef struct lk_sha256 {
    void *context;
} lk_sha256;

void lk_sha256_init(lk_sha256 *hash);
void lk_sha256_update(lk_sha256 *hash, const void *bytes, size_t size);
void lk_sha256_final(lk_sha256 *hash, char hex[65]); /* lower-case hexadecimal with a final zero */

void lk_sha256_bytes(const void *bytes, size_t size, char hex[65]);
lk_status lk_sha256_file(const char *path, char hex[65], lk_error *err);

#endif
