/* The tokenizer in a GGUF file, both ways.
 *
 *     LK_TRY(lk_gguf_add_tokenizer(w, tk, config.vocab, &(lk_gguf_tokenizer_options){.bos = -1, .eos = -1, .eot = -1}, err));
 *     LK_TRY(lk_gguf_open_tokenizer(&tk, g, err));
 *
 * Keys: tokenizer.ggml.{model, pre, tokens, token_type, scores or merges, *_token_id, add_bos_token, add_eos_token, add_space_prefix} and
 * tokenizer.chat_template (ggml docs/gguf.md). llama.cpp has the rules of each pre-tokeniser built in and goes by its name, so a tokenizer
 * whose rules have no name there cannot be exported; and it joins SentencePiece pieces by scores, so a tokenizer whose merges
 * no scores describe cannot either. Both are refused: a model that reads other tokens than it was trained on is no export. */
#ifndef LK_DATA_GGUF_TOKENIZER_H
#define LK_DATA_GGUF_TOKENIZER_H

#include "data/gguf.h"
#include "data/tokenizer/tokenizer.h"

typedef struct lk_gguf_tokenizer_options {
    int32_t bos, eos, eot; /* where the tokenizer's own files name none (bos, eos), and another token that ends a turn; -1: none */
    const char *pre;       /* llama.cpp's name of the pre-tokeniser where the rules are not recognised; NULL: only recognised ones */
} lk_gguf_tokenizer_options;

/* vocab: rows of the embedding; ids the tokenizer does not have become unused tokens "[PAD7]". LK_ERR_UNSUPPORTED as said above,
 * LK_ERR_MISMATCH when the tokenizer has more ids than rows. */
lk_status lk_gguf_add_tokenizer(lk_gguf_writer *w, const lk_tokenizer *tk, int64_t vocab, const lk_gguf_tokenizer_options *options,
                                lk_error *err);

/* LK_ERR_NOT_FOUND when the file has no tokenizer. Everything is copied out of g. */
lk_status lk_gguf_open_tokenizer(lk_tokenizer **tk, const lk_gguf *g, lk_error *err);
/* As tokenizer.json and tokenizer_config.json in a folder that exists. */
lk_status lk_gguf_save_tokenizer(const lk_gguf *g, const char *folder, lk_error *err);

#endif
