/* The Modelfile that tells Ollama how to run an exported model.
 *
 *     char *text;
 *     LK_TRY(lk_modelfile(&text, tk, config.eos, config.n_eos, false, err));      -- free(text)
 *
 * FROM ./model.gguf, ADAPTER ./adapter.gguf where there is one, PARAMETER stop for every token that ends a text, and TEMPLATE in Ollama's
 * language, where the chat template can be said in it: found by rendering conversations and taking them apart, and used only when it
 * then renders every one of them to the same text. A template that does more (a default system prompt, dates, text that depends on the
 * turn) gets a comment instead; Ollama then goes by the template in the GGUF file, of which it knows the usual ones. */
#ifndef LK_DATA_CHAT_MODELFILE_H
#define LK_DATA_CHAT_MODELFILE_H

#include <stdbool.h>

#include "data/tokenizer/tokenizer.h"

lk_status lk_modelfile(char **text, const lk_tokenizer *tk, const int32_t *eos, int n_eos, bool adapter, lk_error *err);

#endif
