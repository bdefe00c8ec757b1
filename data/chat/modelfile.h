/* The Modelfile that tells Ollama how to run an exported model.
 *
 *     char *text;
 *     LK_TRY(lk_modelfile(&text, tk, config.eos, config.n_eos, false, err));      -- free(text)
 *
 * FROM ./model.gguf, ADAPTER ./adapter.gguf where there is one, PARAMETER stop for every token that ends a text, and TEMPLATE in Ollama's
 * language, where the chat template can be said in it: found by rendering conversations and taking them apart, and used only when it
 * then renders every one of them to the same text. What a template writes when there is no system message can be said, too; a day it writes
 * stays that of the export, which a comment says. A template that does more (text that depends on the turn, a system message inside a
 * user's) gets a comment instead: Ollama then uses one of its own where it recognises the template in the GGUF file, and no marks at all
 * where it does not. The grammar is that of Ollama's parser (parser.go), the language Go's text/template with .Messages and .System. */
#ifndef LK_DATA_CHAT_MODELFILE_H
#define LK_DATA_CHAT_MODELFILE_H

#include <stdbool.h>

#include "data/tokenizer/tokenizer.h"

lk_status lk_modelfile(char **text, const lk_tokenizer *tk, const int32_t *eos, int n_eos, bool adapter, lk_error *err);

#endif
