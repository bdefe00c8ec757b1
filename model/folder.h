/* What surrounds the weights in a Hugging Face folder: configuration and tokenizer files, carried along when weights are rewritten. */
#ifndef LK_MODEL_FOLDER_H
#define LK_MODEL_FOLDER_H

#include "base/json.h"
#include "base/status.h"
#include "kernels/tensor.h"

/* Copies tokenizer, chat template and generation settings that exist in `from`; each by atomic replacement. Of a GGUF file the tokenizer
 * and template in its metadata are written as such files; one without is warned of. */
lk_status lk_folder_copy_tokenizer(const char *from, const char *to, lk_error *err);

/* Reads from/config.json (of a GGUF file: lk_config_json), lets the caller change it, writes to/config.json. quantization NULL removes
 * quantization_config, else it becomes that object (taken over). dtype ("bfloat16", "float32", ...) replaces torch_dtype and dtype; NULL
 * leaves them. untie: the folder written has a head of its own. */
lk_status lk_folder_write_config(const char *from, const char *to, const char *dtype, cJSON *quantization, bool untie, lk_error *err);

/* "bfloat16", "float16" or "float32". */
const char *lk_torch_dtype(lk_dtype type);
/* quantization_config of a bitsandbytes NF4 folder; the caller's. */
cJSON *lk_bnb_config(lk_dtype compute);

/* Refuses an output folder that exists and is not empty, or that is the source. Creates it. */
lk_status lk_folder_prepare_output(const char *from, const char *to, lk_error *err);

#endif
