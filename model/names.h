/* Names of tensors and modules in the spellings that folders and adapters have, and the one that the rest of model/ knows: that of a text
 * model, with its experts apart ("model.layers.0.mlp.experts.3.up_proj.weight").
 *
 *     LK_TRY(lk_names_open(&st, "gemma-3-4b-it", &config, &left_out, err));     -- tensors of its text part, under the text model's names
 *     const char *name = lk_text_name(&config, "model.language_model.layers.0.mlp.up_proj", out, sizeof out);
 *
 * A model of images and text (lk_config.part_of) has its text part's tensors behind "language_model." (as published) or
 * "model.language_model.", and beside them those of the images, which are left out. transformers 5 may keep the experts of a layer in one
 * tensor. Internal to model/. */
#ifndef LK_MODEL_NAMES_H
#define LK_MODEL_NAMES_H

#include "data/safetensors.h"
#include "model/config.h"

/* The text model's name for a tensor or module; NULL: it belongs to the images. A text model's own name is itself. out is only written
 * where the name changes. */
const char *lk_text_name(const lk_config *config, const char *name, char *out, size_t size);
/* The other way round: what transformers calls it in the whole model. */
const char *lk_whole_name(const lk_config *config, const char *name, char *out, size_t size);

/* A folder's tensors under the text model's names; left_out (may be NULL): how many belong to images. */
lk_status lk_names_open(lk_safetensors **st, const char *folder, const lk_config *config, int64_t *left_out, lk_error *err);

#endif
