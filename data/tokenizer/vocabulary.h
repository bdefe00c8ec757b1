/* A tokenizer taken apart and put together: what other formats (GGUF) hold of one.
 *
 *     for (int32_t id = 0; id < lk_tokenizer_size(tk); id++) {         -- out
 *         const char *piece = lk_tokenizer_piece(tk, id, &size);
 *         int type = lk_tokenizer_type(tk, id);
 *         float score = lk_tokenizer_score(tk, id);
 *     }
 *     for (int64_t i = 0; i < lk_tokenizer_n_merges(tk); i++) lk_tokenizer_merge(tk, i, &left, &right);
 *
 *     lk_tokenizer_parts parts = {.where = "model.gguf", .model = LK_TK_BYTE_BPE, .pretokenizer = "qwen2", .entries = ...};   -- in
 *     LK_TRY(lk_tokenizer_create(&tk, &parts, err));
 *
 * Names and numbers are GGUF's (ggml's docs/gguf.md, llama.cpp's vocabulary), so nothing has to be translated on the way. */
#ifndef LK_DATA_TOKENIZER_VOCABULARY_H
#define LK_DATA_TOKENIZER_VOCABULARY_H

#include "data/tokenizer/tokenizer.h"

typedef enum lk_tokenizer_model {
    LK_TK_BYTE_BPE, /* byte-level BPE: tokenizer.ggml.model "gpt2"; merges count */
    LK_TK_SPM_BPE,  /* SentencePiece's BPE: "llama"; there scores count, here merges, which are derived from them */
    LK_TK_UNIGRAM,  /* SentencePiece's unigram model: "t5"; scores count */
} lk_tokenizer_model;

/* tokenizer.ggml.token_type */
enum {
    LK_TOKEN_NORMAL = 1,
    LK_TOKEN_UNKNOWN = 2,
    LK_TOKEN_CONTROL = 3,      /* special added tokens */
    LK_TOKEN_USER_DEFINED = 4, /* other added tokens */
    LK_TOKEN_UNUSED = 5,       /* holes in the ids */
    LK_TOKEN_BYTE = 6,         /* <0x0A> where bytes are fallen back to */
};

lk_tokenizer_model lk_tokenizer_kind(const lk_tokenizer *tk);
int lk_tokenizer_type(const lk_tokenizer *tk, int32_t id);
/* Unigram: the piece's score. BPE: minus the place (from 1) of the first merge that gives the piece,
 * 0 for a piece that no merge gives. */
float lk_tokenizer_score(const lk_tokenizer *tk, int32_t id);
/* Whether an encoder that goes by scores (SentencePiece's rule, llama.cpp's "llama" model: join the neighbours whose joint piece has
 * the best score, leftmost first) does what the merges say. False when a piece can be joined in a way that is no merge, or when
 * the merges that give one piece do not stand together. *why, if not NULL, gets a sentence to go into a message. */
bool lk_tokenizer_fits_scores(const lk_tokenizer *tk, const char **why);
int64_t lk_tokenizer_n_merges(const lk_tokenizer *tk);
/* The i-th merge in order of rank, as ids; their pieces are what is joined. */
void lk_tokenizer_merge(const lk_tokenizer *tk, int64_t i, int32_t *left, int32_t *right);
/* tokenizer.ggml.pre: "gpt-2", "llama-bpe", "dbrx" (Llama-3's without ignore_merges: Phi-4, OLMo2), "qwen2", "tekken", "gpt-4o",
 * "smollm" (also StarCoder's and Granite's); "default" for SentencePiece. NULL when the pre-tokeniser is none of these. */
const char *lk_tokenizer_pretokenizer_name(const lk_tokenizer *tk);
/* Whether encoding puts a space in front of a text (tokenizer.ggml.add_space_prefix). */
bool lk_tokenizer_adds_space(const lk_tokenizer *tk);
/* The tokens the post-processor puts before and after a text; -1 when none. A post-processor that adds more than these is told apart by
 * encoding with LK_TK_SPECIALS. */
int32_t lk_tokenizer_added_bos(const lk_tokenizer *tk);
int32_t lk_tokenizer_added_eos(const lk_tokenizer *tk);
int32_t lk_tokenizer_unk(const lk_tokenizer *tk); /* the model's unknown token; -1 when none */
int32_t lk_tokenizer_pad(const lk_tokenizer *tk); /* from tokenizer_config.json; -1 when none */

/* One entry of the vocabulary; its place in the list is its id. */
typedef struct lk_tokenizer_entry {
    const char *text; /* need not end in a zero */
    size_t size;
    float score; /* SentencePiece kinds only */
    int type;    /* LK_TOKEN_*; LK_TOKEN_UNUSED entries become holes */
} lk_tokenizer_entry;

typedef struct lk_tokenizer_parts {
    const char *where; /* names the file in messages */
    lk_tokenizer_model model;
    const char *pretokenizer; /* LK_TK_BYTE_BPE: as named above, or another of llama.cpp's names for the same rules */
    const lk_tokenizer_entry *entries;
    int64_t n;
    const char *const *merges; /* LK_TK_BYTE_BPE: "left right", in order of rank */
    int64_t n_merges;
    int32_t bos, eos, unk, pad; /* -1: none */
    bool add_bos, add_eos;      /* what LK_TK_SPECIALS adds */
    bool add_space_prefix;      /* SentencePiece kinds */
    const char *chat_template;  /* or NULL */
} lk_tokenizer_parts;

/* Everything is copied. CONTROL and USER_DEFINED entries become added tokens (special and not), BYTE entries turn byte fallback on. The
 * digest is the SHA-256 of all of the parts. LK_ERR_UNSUPPORTED for a pre-tokeniser whose rules are not known here, naming it. */
lk_status lk_tokenizer_create(lk_tokenizer **tk, const lk_tokenizer_parts *parts, lk_error *err);

/* The same as files: tokenizer.json (vocabulary, merges, rules, what is put before and after a text) and tokenizer_config.json (special
 * tokens, chat template), which the tokenizers library and transformers read, and lk_tokenizer_open. Each by atomic replacement; the folder
 * exists. */
lk_status lk_tokenizer_write(const char *folder, const lk_tokenizer_parts *parts, lk_error *err);

#endif
