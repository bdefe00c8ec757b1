/* The engine's options with every default resolved for one model. */
#ifndef LK_SERVE_ENGINE_OPTIONS_H
#define LK_SERVE_ENGINE_OPTIONS_H

#include "serve/engine.h"

/* Checks each option; zeros become numbers. shape: of the KV cache that kv_bytes pays for. LK_ERR_ARGUMENT names the option. */
lk_status lk_engine_options_resolve(lk_engine_options *options, const lk_model *model, lk_kv_shape *shape, lk_error *err);
lk_infer_options lk_engine_infer_options(const lk_engine_options *resolved);

#endif
