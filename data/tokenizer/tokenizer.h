/* Tokenizers from tokenizer.json (huggingface/tokenizers) and the files before it: byte-level BPE (GPT-2, Llama-3, Qwen),
 * SentencePiece-style BPE (Llama-2, Mistral, Gemma) and Unigram, with added tokens and byte fallback. What other formats hold of a
 * tokenizer is in vocabulary.h.
 *
 *     lk_tokenizer *tk;
 *     LK_TRY(lk_tokenizer_open(&tk, "llama-8b", err));           -- a model folder: tokenizer.json, tokenizer_config.json
 *     int32_t *ids; int64_t n;
 *     LK_TRY(lk_tokenizer_encode(tk, text, strlen(text), LK_TK_SPECIALS, &ids, &n, err));   -- free(ids)
 *     char *back; LK_TRY(lk_tokenizer_decode(tk, ids, n, true, &back, &size, err));         -- free(back)
 *
 * A tokenizer is immutable and may be used by many threads at once. Components of tokenizer.json it cannot honour exactly are
 * refused by name when opening, never approximated. Malformed UTF-8 in text is replaced by U+FFFD as Python does. */
#ifndef LK_DATA_TOKENIZER_TOKENIZER_H
#define LK_DATA_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lk_tokenizer lk_tokenizer;

/* Added tokens in the text are always recognised, as in huggingface/tokenizers. LK_TK_SPECIALS adds what the post-processor adds
 * (BOS, EOS). LK_TK_PLAIN_TEXT does not recognise special tokens in the text (user input that must not forge turns). */
enum { LK_TK_SPECIALS = 1, LK_TK_PLAIN_TEXT = 2 };

/* A GGUF file gives the tokenizer in its metadata. The folder (or the file's folder) gives tokenizer.json, or, where there is none,
 * vocab.json and merges.txt or SentencePiece's tokenizer.model with the class that tokenizer_config.json names (slow.c: as transformers
 * converts them). If they are there, tokenizer_config.json (bos_token, eos_token, pad_token, add_bos_token, add_eos_token, chat_template)
 * and chat_template.jinja, which wins. LK_ERR_FORMAT for a malformed file, LK_ERR_UNSUPPORTED for one we could only approximate; the
 * message names the file and the entry or component. */
lk_status lk_tokenizer_open(lk_tokenizer **tk, const char *folder_or_file, lk_error *err);
/* From text in memory (fuzzing, tests). */
lk_status lk_tokenizer_parse(lk_tokenizer **tk, const char *json, size_t size, const char *where, lk_error *err);
void lk_tokenizer_close(lk_tokenizer *tk);

/* *ids is never NULL on success, also when *n is 0. At most 1 GiB of text a call. */
lk_status lk_tokenizer_encode(const lk_tokenizer *tk, const char *text, size_t size, int flags, int32_t **ids, int64_t *n, lk_error *err);

/* A text in parts, encoded as ONE text: the parts' boundaries leave no trace in the ids. Special tokens are recognised only where
 * they lie wholly outside plain parts, so a template can have its marks and the user's content cannot forge them; ordinary
 * added tokens are recognised everywhere. LK_TK_PLAIN_TEXT makes every part plain.
 * (*starts)[i] is the byte of the joined text where token i begins (what the post-processor adds stands at the end it is
 * added to); starts may be NULL. free(*ids), free(*starts). */
typedef struct lk_text_part {
    const char *text;
    size_t size;
    bool plain;
} lk_text_part;
/* Tokens that count as special in this call although the file may not say so (a fine-tune's <|im_end|>); {0} for none. */
typedef struct lk_text_marks {
    const int32_t *ids;
    int n;
} lk_text_marks;
lk_status lk_tokenizer_encode_parts(const lk_tokenizer *tk, const lk_text_part *parts, int64_t n_parts, lk_text_marks marks, int flags,
                                    int32_t **ids, int64_t **starts, int64_t *n, lk_error *err);

/* Ids beyond the vocabulary (a model may have more embedding rows) and holes in it decode to nothing; negative ones are refused.
 * *text ends in a zero that *size does not count. No "clean up" of spaces before punctuation is made. */
lk_status lk_tokenizer_decode(const lk_tokenizer *tk, const int32_t *ids, int64_t n, bool skip_special, char **text, size_t *size,
                              lk_error *err);

int32_t lk_tokenizer_size(const lk_tokenizer *tk);                                /* highest id + 1 */
int32_t lk_tokenizer_id(const lk_tokenizer *tk, const char *content);             /* -1 when there is no such token */
const char *lk_tokenizer_piece(const lk_tokenizer *tk, int32_t id, size_t *size); /* the vocabulary entry as written; NULL for a hole */
/* The bytes this token stands for on its own (byte-level and byte-fallback undone); valid until close. */
const char *lk_tokenizer_bytes(const lk_tokenizer *tk, int32_t id, size_t *size);
bool lk_tokenizer_is_special(const lk_tokenizer *tk, int32_t id);
int32_t lk_tokenizer_bos(const lk_tokenizer *tk); /* from tokenizer_config.json; -1 when none */
int32_t lk_tokenizer_eos(const lk_tokenizer *tk);
const char *lk_tokenizer_chat_template(const lk_tokenizer *tk); /* chat_template.jinja or tokenizer_config's; NULL when none */
/* What a chat template may ask for by name: "pad_token" and the like as tokenizer_config.json writes them, and further templates of the
 * folder ("tool_use", "rag"). NULL when there is none. */
const char *lk_tokenizer_text(const lk_tokenizer *tk, const char *name);
const char *lk_tokenizer_digest(const lk_tokenizer *tk); /* SHA-256 of tokenizer.json and the chat template */

/* Streaming: feed ids one by one, get text that is complete. Half a character is held back; at the end lk_detokenizer_finish gives
 * what is left (U+FFFD for bytes that never became a character). The concatenation equals lk_tokenizer_decode of all ids. */
typedef struct lk_detokenizer lk_detokenizer;
lk_status lk_detokenizer_create(lk_detokenizer **d, const lk_tokenizer *tk, bool skip_special, lk_error *err);
void lk_detokenizer_destroy(lk_detokenizer *d);
/* *text points into the detokenizer until the next call; *size may be 0. */
lk_status lk_detokenizer_push(lk_detokenizer *d, int32_t id, const char **text, size_t *size, lk_error *err);
lk_status lk_detokenizer_finish(lk_detokenizer *d, const char **text, size_t *size, lk_error *err);

#endif
