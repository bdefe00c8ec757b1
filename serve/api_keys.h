/* API keys: a file with one a line, `#` comments. Kept as SHA-256, compared in constant time.
 *
 *     lk_api_keys *keys;
 *     LK_TRY(lk_api_keys_read(&keys, "keys.txt", err));
 *     if (!lk_api_keys_accept(keys, "Bearer sk-...")) 401
 *     lk_api_keys_free(keys); */
#ifndef LK_SERVE_API_KEYS_H
#define LK_SERVE_API_KEYS_H

#include <stdbool.h>

#include "base/status.h"

typedef struct lk_api_keys lk_api_keys;

/* A file without any key is refused: it would lock everybody out. */
lk_status lk_api_keys_read(lk_api_keys **keys, const char *path, lk_error *err);
/* The value of an Authorization header, NULL when the request had none. The time taken tells nothing about the keys. */
bool lk_api_keys_accept(const lk_api_keys *keys, const char *authorization);
void lk_api_keys_free(lk_api_keys *keys); /* NULL is fine */

#endif
