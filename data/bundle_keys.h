/* Ed25519 (RFC 8032, by OpenSSL's libcrypto): signatures of bundle manifests. Internal to data/bundle. */
#ifndef LK_DATA_BUNDLE_KEYS_H
#define LK_DATA_BUNDLE_KEYS_H

#include "data/bundle.h"

enum { LK_KEY_BYTES = 32, LK_SIGNATURE_BYTES = 64 };

lk_status lk_sign(const char *key_path, const void *bytes, size_t size, unsigned char public_key[LK_KEY_BYTES],
                  unsigned char signature[LK_SIGNATURE_BYTES], lk_error *err);
bool lk_verify(const unsigned char public_key[LK_KEY_BYTES], const void *bytes, size_t size,
               const unsigned char signature[LK_SIGNATURE_BYTES]);
bool lk_bundle_keys_have(const lk_bundle_keys *keys, const unsigned char public_key[LK_KEY_BYTES]);

#endif
