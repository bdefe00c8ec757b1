/* JSON on top of cJSON: bounded parsing and typed access with errors that name the place.
 *
 *     cJSON *root;
 *     LK_TRY(lk_json_parse(&root, text, size, "config.json", err));
 *     int64_t hidden;
 *     status = lk_json_int(root, "hidden_size", 1, 1 << 20, &hidden, "config.json", err);
 *     cJSON_Delete(root);
 *
 * Duplicate keys are refused (readers disagree about which one counts), as are nesting deeper than 64 (JSON bombs), bytes
 * that are not UTF-8, raw control characters in strings and anything after the value. */
#ifndef LK_BASE_JSON_H
#define LK_BASE_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { LK_JSON_MAX_DEPTH = 64 };

/* `where` names the source in messages (a path, "request body"). The text need not end in a zero.
 * With comments allowed, // and C comments count as white space (recipes only). Caller frees with cJSON_Delete. */
lk_status lk_json_parse(cJSON **root, const char *text, size_t size, const char *where, lk_error *err);
lk_status lk_json_parse_commented(cJSON **root, const char *text, size_t size, const char *where, lk_error *err);
/* Reads and parses a file of at most max_bytes. */
lk_status lk_json_read(cJSON **root, const char *path, size_t max_bytes, lk_error *err);

/* Where the spelling of numbers matters (1.0 is no whole number to Python): puts the text of each number that is not a small whole one into
 * its node's valuestring, which the tree then owns. text is what root was parsed from. */
lk_status lk_json_keep_numbers(cJSON *root, const char *text, size_t size, lk_error *err);

/* Typed members of an object. The required ones fail with LK_ERR_FORMAT when missing or of another type or range. */
lk_status lk_json_int(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *value, const char *where, lk_error *err);
lk_status lk_json_number(const cJSON *object, const char *key, double min, double max, double *value, const char *where, lk_error *err);
lk_status lk_json_bool(const cJSON *object, const char *key, bool *value, const char *where, lk_error *err);
/* *value points into the tree. */
lk_status lk_json_string(const cJSON *object, const char *key, const char **value, const char *where, lk_error *err);

/* The same, leaving *value as it is when the key is missing or null. */
lk_status lk_json_opt_int(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *value, const char *where, lk_error *err);
lk_status lk_json_opt_number(const cJSON *object, const char *key, double min, double max, double *value, const char *where, lk_error *err);
lk_status lk_json_opt_bool(const cJSON *object, const char *key, bool *value, const char *where, lk_error *err);
lk_status lk_json_opt_string(const cJSON *object, const char *key, const char **value, const char *where, lk_error *err);

/* Case-sensitive member, or NULL when missing. */
cJSON *lk_json_get(const cJSON *object, const char *key);

/* Numbers that read back as the same double, without a needless tail: 0.0002 stays 0.0002. */
cJSON *lk_json_add_number(cJSON *object, const char *key, double value);

#endif
