/* cJSON parses leniently where we must be strict, so a scan before it checks depth, UTF-8, control characters and (for
 * recipes) blanks out comments; a walk after it checks duplicate keys. */
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* Length of the well-formed UTF-8 sequence at p (1..4), or 0. Overlong forms, surrogates and > U+10FFFF are malformed. */
static int utf8_length(const unsigned char *p, size_t room)
{
    if (p[0] < 0x80) return 1;
    int n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (n == 0 || p[0] > 0xf4 || (size_t)n > room) return 0;
    for (int i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
    if (p[0] == 0xed && p[1] > 0x9f) return 0;
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    return n;
}

static int line_of(const char *text, size_t offset)
{
    int line = 1;
    for (size_t i = 0; i < offset; i++) line += text[i] == '\n';
    return line;
}

/* Replaces the comment at text[i] by spaces (newlines stay, for line numbers); returns the index after it. */
static size_t blank_comment(char *text, size_t i, size_t size)
{
    bool block = text[i + 1] == '*';
    size_t j = i + 2;
    while (j < size && !(block ? text[j] == '*' && j + 1 < size && text[j + 1] == '/' : text[j] == '\n')) j++;
    if (block) j = j + 2 < size ? j + 2 : size;
    for (size_t k = i; k < j; k++)
        if (text[k] != '\n') text[k] = ' ';
    return j;
}

static lk_status scan(char *text, size_t size, bool comments, const char *where, lk_error *err)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)text[i];
        if (in_string) {
            if (c < 0x20)
                return lk_fail(err, LK_ERR_FORMAT, "%s: line %d: a raw control character (0x%02x) inside a string; escape it", where,
                               line_of(text, i), c);
            int n = utf8_length((const unsigned char *)text + i, size - i);
            if (n == 0) return lk_fail(err, LK_ERR_FORMAT, "%s: line %d: not valid UTF-8", where, line_of(text, i));
            if (c == '\\' && i + 1 < size) {
                /* cJSON cannot hold U+0000 inside a string: it would silently cut it there. */
                if (size - i >= 6 && !memcmp(text + i, "\\u0000", 6))
                    return lk_fail(err, LK_ERR_FORMAT, "%s: line %d: \\u0000 is not allowed in a string", where, line_of(text, i));
                i += 2;
                continue;
            }
            if (c == '"') in_string = false;
            i += (size_t)n;
            continue;
        }
        if (comments && c == '/' && i + 1 < size && (text[i + 1] == '/' || text[i + 1] == '*')) {
            i = blank_comment(text, i, size);
            continue;
        }
        if (c == 0) return lk_fail(err, LK_ERR_FORMAT, "%s: line %d: a zero byte", where, line_of(text, i));
        if (c == '"') in_string = true;
        if (c == '{' || c == '[') {
            if (++depth > LK_JSON_MAX_DEPTH)
                return lk_fail(err, LK_ERR_FORMAT, "%s: line %d: nested deeper than %d", where, line_of(text, i), LK_JSON_MAX_DEPTH);
        }
        if ((c == '}' || c == ']') && depth > 0) depth--;
        i++;
    }
    return LK_OK;
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Objects can hold a vocabulary of 150,000 keys, so sort instead of comparing all pairs. Depth is bounded by scan(). */
static lk_status check_duplicates(const cJSON *node, const char *where, lk_error *err)
{
    size_t n = 0;
    for (const cJSON *child = node->child; child; child = child->next) {
        n++;
        if (child->child) LK_TRY(check_duplicates(child, where, err));
    }
    if (!cJSON_IsObject(node) || n < 2) return LK_OK;
    char **names = malloc(n * sizeof *names);
    if (!names) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    n = 0;
    for (const cJSON *child = node->child; child; child = child->next) names[n++] = child->string;
    qsort(names, n, sizeof *names, compare_names);
    lk_status status = LK_OK;
    for (size_t i = 1; i < n && !status; i++)
        if (!strcmp(names[i - 1], names[i])) status = lk_fail(err, LK_ERR_FORMAT, "%s: the key \"%.100s\" appears twice", where, names[i]);
    free(names);
    return status;
}

static lk_status parse(cJSON **root, const char *text, size_t size, bool comments, const char *where, lk_error *err)
{
    *root = NULL;
    char *copy = malloc(size + 1);
    if (!copy) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory for %zu bytes of JSON", where, size);
    if (size) memcpy(copy, text, size);
    copy[size] = 0;
    char *start = copy;
    if (size >= 3 && !memcmp(copy, "\xef\xbb\xbf", 3)) start += 3; /* a byte order mark, as some editors write */
    lk_status status = scan(start, size - (size_t)(start - copy), comments, where, err);
    if (!status) {
        const char *stop = NULL;
        *root = cJSON_ParseWithLengthOpts(start, size - (size_t)(start - copy) + 1, &stop, 1);
        if (!*root) {
            size_t offset = stop ? (size_t)(stop - start) : 0;
            status = lk_fail(err, LK_ERR_FORMAT, "%s: line %d: not valid JSON near '%.20s'", where, line_of(start, offset), start + offset);
        }
    }
    if (!status && (status = check_duplicates(*root, where, err))) {
        cJSON_Delete(*root);
        *root = NULL;
    }
    free(copy);
    return status;
}

lk_status lk_json_parse(cJSON **root, const char *text, size_t size, const char *where, lk_error *err)
{
    return parse(root, text, size, false, where, err);
}

lk_status lk_json_parse_commented(cJSON **root, const char *text, size_t size, const char *where, lk_error *err)
{
    return parse(root, text, size, true, where, err);
}

/* The next number outside strings, from *at on; its length, 0 at the end. */
static size_t next_number(const char *text, size_t size, size_t *at)
{
    for (size_t i = *at; i < size; i++) {
        if (text[i] == '"') {
            for (i++; i < size && text[i] != '"'; i++) i += text[i] == '\\';
        } else if (text[i] == '-' || (text[i] >= '0' && text[i] <= '9')) {
            *at = i;
            while (i < size && text[i] && strchr("+-.eE0123456789", text[i])) i++;
            return i - *at;
        }
    }
    return 0;
}

/* Numbers come in the tree in the order they have in the text. Depth was bounded when it was parsed. */
static lk_status keep_numbers(cJSON *node, const char *text, size_t size, size_t *at, lk_error *err)
{
    for (; node; node = node->next) {
        if (node->child) LK_TRY(keep_numbers(node->child, text, size, at, err));
        if (!cJSON_IsNumber(node)) continue;
        size_t n = next_number(text, size, at);
        bool plain = n < 16 && !memchr(text + *at, '.', n) && !memchr(text + *at, 'e', n) && !memchr(text + *at, 'E', n);
        if (n && !plain && !node->valuestring) {
            node->valuestring = cJSON_malloc(n + 1);
            if (!node->valuestring) return lk_fail(err, LK_ERR_MEMORY, "no memory for a number's text");
            memcpy(node->valuestring, text + *at, n);
            node->valuestring[n] = 0;
        }
        *at += n;
    }
    return LK_OK;
}

lk_status lk_json_keep_numbers(cJSON *root, const char *text, size_t size, lk_error *err)
{
    size_t at = 0;
    return keep_numbers(root, text, size, &at, err);
}

lk_status lk_json_read(cJSON **root, const char *path, size_t max_bytes, lk_error *err)
{
    char *text;
    size_t size;
    *root = NULL;
    LK_TRY(lk_file_read(path, max_bytes, &text, &size, err));
    lk_status status = lk_json_parse(root, text, size, path, err);
    free(text);
    return status;
}

cJSON *lk_json_get(const cJSON *object, const char *key) { return cJSON_GetObjectItemCaseSensitive(object, key); }

static lk_status want(const char *where, const char *key, const cJSON *item, const char *what, lk_error *err)
{
    if (!item) return lk_fail(err, LK_ERR_FORMAT, "%s: %s is missing (%s expected)", where, key, what);
    return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be %s", where, key, what);
}

lk_status lk_json_number(const cJSON *object, const char *key, double min, double max, double *value, const char *where, lk_error *err)
{
    const cJSON *item = lk_json_get(object, key);
    if (!cJSON_IsNumber(item)) return want(where, key, item, "a number", err);
    if (!(item->valuedouble >= min && item->valuedouble <= max)) {
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be between %g and %g, not %g", where, key, min, max, item->valuedouble);
    }
    *value = item->valuedouble;
    return LK_OK;
}

lk_status lk_json_int(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *value, const char *where, lk_error *err)
{
    const cJSON *item = lk_json_get(object, key);
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble)) return want(where, key, item, "a whole number", err);
    /* 2^53: beyond it a double no longer holds every whole number. */
    double limit = 9007199254740992.0;
    if (!(item->valuedouble >= -limit && item->valuedouble <= limit) || (int64_t)item->valuedouble < min ||
        (int64_t)item->valuedouble > max) {
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be between %" PRId64 " and %" PRId64 ", not %.17g", where, key, min, max,
                       item->valuedouble);
    }
    *value = (int64_t)item->valuedouble;
    return LK_OK;
}

lk_status lk_json_bool(const cJSON *object, const char *key, bool *value, const char *where, lk_error *err)
{
    const cJSON *item = lk_json_get(object, key);
    if (!cJSON_IsBool(item)) return want(where, key, item, "true or false", err);
    *value = cJSON_IsTrue(item);
    return LK_OK;
}

lk_status lk_json_string(const cJSON *object, const char *key, const char **value, const char *where, lk_error *err)
{
    const cJSON *item = lk_json_get(object, key);
    if (!cJSON_IsString(item)) return want(where, key, item, "a string", err);
    *value = item->valuestring;
    return LK_OK;
}

static bool absent(const cJSON *object, const char *key)
{
    const cJSON *item = lk_json_get(object, key);
    return !item || cJSON_IsNull(item);
}

lk_status lk_json_opt_int(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *value, const char *where, lk_error *err)
{
    return absent(object, key) ? LK_OK : lk_json_int(object, key, min, max, value, where, err);
}

lk_status lk_json_opt_number(const cJSON *object, const char *key, double min, double max, double *value, const char *where, lk_error *err)
{
    return absent(object, key) ? LK_OK : lk_json_number(object, key, min, max, value, where, err);
}

lk_status lk_json_opt_bool(const cJSON *object, const char *key, bool *value, const char *where, lk_error *err)
{
    return absent(object, key) ? LK_OK : lk_json_bool(object, key, value, where, err);
}

lk_status lk_json_opt_string(const cJSON *object, const char *key, const char **value, const char *where, lk_error *err)
{
    return absent(object, key) ? LK_OK : lk_json_string(object, key, value, where, err);
}

cJSON *lk_json_add_number(cJSON *object, const char *key, double value)
{
    if (!isfinite(value)) return cJSON_AddNullToObject(object, key);
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return cJSON_AddRawToObject(object, key, text);
}
