/* The config.json of a configuration that was read from another format.
 *
 *     cJSON *json;
 *     LK_TRY(lk_config_json(&json, &config, "model.gguf", err));      -- cJSON_Delete
 *
 * Written in the older spelling (rope_theta beside rope_scaling), which every version of transformers and vLLM reads. The result is parsed
 * again and compared, field by field and frequency by frequency: LK_ERR_UNSUPPORTED names what a config.json of this family cannot say, and
 * nothing that means something else is ever written. */
#ifndef LK_MODEL_CONFIG_WRITE_H
#define LK_MODEL_CONFIG_WRITE_H

#include "model/config.h"

/* `where`: what the configuration is of, for messages. */
lk_status lk_config_json(cJSON **json, const lk_config *config, const char *where, lk_error *err);

#endif
