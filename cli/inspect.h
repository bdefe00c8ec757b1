/* Parts of `lorikeet inspect`: each adds what it finds to a JSON object, which is then printed. */
#ifndef LK_CLI_INSPECT_H
#define LK_CLI_INSPECT_H

#include "base/json.h"
#include "base/status.h"
#include "model/config.h"

/* base: what it may fit, or NULL: not asked. */
lk_status cli_inspect_adapter(cJSON *out, const char *path, const char *base, lk_error *err);
bool cli_is_bundle(const char *path); /* a file that begins as zstd does */
lk_status cli_inspect_bundle(cJSON *out, const char *path, const char *base, lk_error *err);
bool cli_is_checkpoint(const char *path); /* as HDF5 does */
lk_status cli_inspect_checkpoint(cJSON *out, const char *path, const char *base, lk_error *err);
/* A GGUF file, model or adapter. */
lk_status cli_inspect_gguf(cJSON *out, const char *path, const char *base, lk_error *err);

void cli_inspect_config(cJSON *out, const lk_config *config); /* family and sizes */

/* "fits", and "why_not". Not fitting is an answer, not a failure. */
void cli_add_fit(cJSON *out, lk_status status, const lk_error *why);
/* Of a model beside a base: how like they are, too (model/fits.h). */
void cli_add_model_fit(cJSON *out, const char *path, const char *base);

bool cli_begins_with(const char *path, const void *bytes, size_t size); /* false also when it cannot be read */

#endif
