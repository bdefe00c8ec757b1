#include "serve/api_keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"
#include "base/sha256.h"

struct lk_api_keys {
    int n;
    char digests[][65];
};

enum { MAX_FILE = 1 << 20, MAX_KEY = 4096 };

/* Digests have one length and say nothing about the key, so neither length nor prefix can leak through the time of the comparison. */
static bool same_digest(const char *a, const char *b)
{
    unsigned char difference = 0;
    for (int i = 0; i < 64; i++) difference |= (unsigned char)(a[i] ^ b[i]);
    return difference == 0;
}

lk_status lk_api_keys_read(lk_api_keys **out, const char *path, lk_error *err)
{
    char *text;
    size_t size;
    *out = NULL;
    LK_TRY(lk_file_read(path, MAX_FILE, &text, &size, err));
    size_t lines = 1;
    for (size_t i = 0; i < size; i++) lines += text[i] == '\n';
    lk_api_keys *keys = calloc(1, sizeof *keys + lines * sizeof *keys->digests);
    lk_status status = keys ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu keys", path, lines);
    int line_number = 0;
    for (char *line = text, *next; line && !status; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        line_number++;
        line += strspn(line, " \t\r");
        size_t length = strcspn(line, " \t\r");
        if (length == 0 || *line == '#') continue;
        if (line[length + strspn(line + length, " \t\r")])
            status = lk_fail(err, LK_ERR_FORMAT, "%s: line %d: a key must not contain spaces", path, line_number);
        else if (length > MAX_KEY)
            status = lk_fail(err, LK_ERR_FORMAT, "%s: line %d: a key has at most %d bytes", path, line_number, MAX_KEY);
        else
            lk_sha256_bytes(line, length, keys->digests[keys->n++]);
    }
    if (!status && keys->n == 0) status = lk_fail(err, LK_ERR_FORMAT, "%s: holds no key; write one a line", path);
    explicit_bzero(text, size);
    free(text);
    if (status)
        lk_api_keys_free(keys);
    else
        *out = keys;
    return status;
}

bool lk_api_keys_accept(const lk_api_keys *keys, const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer ", 7)) return false;
    const char *key = authorization + 7 + strspn(authorization + 7, " ");
    size_t length = strcspn(key, " \t");
    if (length == 0 || length > MAX_KEY) return false;
    char digest[65];
    lk_sha256_bytes(key, length, digest);
    bool found = false;
    for (int i = 0; i < keys->n; i++) found |= same_digest(digest, keys->digests[i]);
    return found;
}

void lk_api_keys_free(lk_api_keys *keys) { free(keys); }
