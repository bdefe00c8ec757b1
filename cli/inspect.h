/* Parts of `lorikeet inspect`: each adds what it finds to a JSON object, which is then printed. */
#ifndef LK_CLI_INSPECT_H
#define LK_CLI_INSPECT_H

#include "base/json.h"
#include "base/status.h"
#include "model/config.h"

/* base: a model folder that it may fit, or NULL. */
lk_status cli_inspect_adapter(cJSON *out, const char *path, const char *base, lk_error *err);
bool cli_is_bundle(const char *path); /* a file that begins as zstd does */
lk_status cli_inspect_bundle(cJSON *out, const char *path, const char *base, lk_error *err);

void cli_inspect_config(cJSON *out, const lk_config *config); /* family and sizes */

/* A GGUF file, model or adapter. */
lk_status cli_inspect_gguf(cJSON *out, const char *path, lk_error *err);

#endif
