/* What the files of this folder share. Encoding is a pipeline over views of text:
 *
 *     text -> repaired UTF-8 -> added tokens (raw) -> normaliser -> added tokens (normalised) -> pre-tokeniser -> BPE -> ids
 *
 * Every step takes a view (bytes and where they came from) and hands smaller views to the next, so an ordinary text is never
 * copied: only steps that change bytes write into a scratch text of the call. Decoding is the same backwards (stream.c). */
#ifndef LK_DATA_TOKENIZER_INTERNAL_H
#define LK_DATA_TOKENIZER_INTERNAL_H

#include <cjson/cJSON.h>

#include "base/arena.h"
#include "base/sha256.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/utf8.h"
#include "data/tokenizer/vocabulary.h"

enum {
    LK_TK_MAX_TEXTS = 16,
    LK_TK_MAX_IDS = 1 << 22,   /* the largest vocabularies have 2^18; a file that says 2^31 must not make us allocate for it */
    LK_TK_MAX_STEPS = 16,      /* components in one Sequence */
    LK_TK_MAX_TEXT = 1 << 30,  /* bytes in one call: symbols are counted in 32 bits */
    LK_TK_MAX_PIECE = 1 << 11, /* bytes of one piece in formats that say lengths; deriving merges takes their squares */
};

/* ---- text.c: texts that remember where their bytes came from (and what utf8.h declares) ---- */

/* ---- unicode.c: characters newer than the libraries' Unicode ---- */

typedef struct lk_new_range {
    uint32_t first, last;
    char category[3];
} lk_new_range;
const lk_new_range *lk_unicode_added(size_t *n); /* sorted */
/* Has a decomposition since Unicode 12.1 or later only, which the `tokenizers` library's tables do not have. */
bool lk_decomposes_too_new(uint32_t cp);
uint32_t lk_lower(uint32_t cp);      /* one character's lower case */
bool lk_is_new_mark(uint32_t cp);    /* a combining mark that the library's tables do not have */
bool lk_is_mark(uint32_t cp);        /* a combining mark (M) */
bool lk_extends_newly(uint32_t cp);  /* a mark, too new for utf8proc, that does not begin a grapheme cluster */
bool lk_is_punctuation(uint32_t cp); /* ASCII's, and P */

/* Bytes and their source: byte i came from source position from[i], or base + i when from is NULL. */
typedef struct lk_view {
    const char *p;
    size_t n;
    const size_t *from;
    size_t base;
} lk_view;

static inline lk_view lk_view_sub(lk_view v, size_t begin, size_t end)
{
    return (lk_view){v.p + begin, end - begin, v.from ? v.from + begin : NULL, v.base + begin};
}
static inline size_t lk_view_source(const lk_view *v, size_t i) { return v->from ? v->from[i] : v->base + i; }

/* A growing text; tracked ones keep the source of every byte. */
typedef struct lk_text {
    char *p;
    size_t *from;
    size_t n, room;
    bool tracked;
} lk_text;

lk_status lk_text_reserve(lk_text *t, size_t more, lk_error *err);
/* Appends bytes that stand where the source's bytes [i, i+n) stood. */
lk_status lk_text_copy(lk_text *t, const lk_view *source, size_t begin, size_t end, lk_error *err);
/* Appends bytes that all come from one source position. */
lk_status lk_text_add(lk_text *t, const char *p, size_t n, size_t source, lk_error *err);
lk_view lk_text_view(const lk_text *t);
void lk_text_free(lk_text *t);

/* ---- regex.c: PCRE2 with the meaning Oniguruma gives the same pattern ---- */

typedef struct lk_regex lk_regex;
lk_status lk_regex_compile(lk_regex **regex, const char *pattern, const char *where, lk_error *err);
void lk_regex_free(lk_regex *regex);
/* Memory one thread needs while matching; zero-initialised, made on first use. */
typedef struct lk_regex_scratch {
    void *data, *context, *stack;
} lk_regex_scratch;
void lk_regex_scratch_free(lk_regex_scratch *scratch);
/* The first match at or after from; *begin == SIZE_MAX when there is none. The text must be well-formed UTF-8. */
lk_status lk_regex_find(const lk_regex *regex, lk_regex_scratch *scratch, const char *p, size_t n, size_t from, size_t *begin, size_t *end,
                        lk_error *err);

/* ---- hash tables ---- */

typedef struct lk_piece {
    const char *p; /* NULL: a hole in the ids */
    uint32_t n;
} lk_piece;

/* Bytes to id, open addressing; keys point into pieces. */
typedef struct lk_piece_slot {
    uint32_t hash; /* kept, so that a probe rarely touches another piece's bytes */
    int32_t id;    /* -1 empty */
} lk_piece_slot;

typedef struct lk_piece_table {
    lk_piece_slot *slots;
    uint32_t mask;
    const lk_piece *pieces;
} lk_piece_table;

uint32_t lk_hash_bytes(const char *p, size_t n);
lk_status lk_piece_table_init(lk_piece_table *table, lk_arena *arena, const lk_piece *pieces, size_t expected, lk_error *err);
/* Returns the id that already holds these bytes, or -1 after inserting. */
int32_t lk_piece_table_insert(lk_piece_table *table, int32_t id);
int32_t lk_piece_table_find(const lk_piece_table *table, const char *p, size_t n);

/* ---- vocab.c: a vocabulary as every source gives it (tokenizer.json, vocab.json and merges.txt, .model, GGUF) ---- */

typedef struct lk_vocab {
    lk_piece *pieces;     /* [n]; they point into whatever was read, which must live until the tokenizer is built */
    int32_t *ids;         /* [n] */
    double *scores;       /* [n], or NULL */
    size_t n, n_joinable; /* merges may be derived of the first n_joinable */
    struct lk_vocab_merge {
        lk_piece left, right;
    } * merges; /* [n_merges] by rank */
    size_t n_merges;
    lk_arena arena; /* owns the arrays */
} lk_vocab;

lk_status lk_vocab_alloc(lk_vocab *v, size_t n, size_t n_merges, bool scored, const char *where, lk_error *err);
void lk_vocab_free(lk_vocab *v);
/* The model object of a tokenizer.json: BPE's vocab and merges, Unigram's list of [piece, score]. */
lk_status lk_vocab_from_json(lk_vocab *v, const cJSON *model, bool unigram, const char *where, lk_error *err);
/* vocab.json's object and the text of merges.txt. */
lk_status lk_vocab_from_files(lk_vocab *v, const cJSON *vocab, const char *vocab_path, const char *merges, size_t size,
                              const char *merges_path, lk_error *err);
/* The merges that a SentencePiece vocabulary implies: every way to cut a piece into two others. Best score first, where there are
 * scores; else in the order of the ids, as transformers has it. Of one piece those with the shorter left part first. */
lk_status lk_vocab_derive_merges(lk_vocab *v, const char *where, lk_error *err);
/* Fills pieces, contents, scores and the other tables by id. */
lk_status lk_vocab_place(lk_tokenizer *tk, const lk_vocab *v, lk_error *err);

/* ---- create.c: parts as the tree of a tokenizer.json (without vocabulary and merges), and those ---- */

lk_status lk_parts_tree(cJSON **root, const lk_tokenizer_parts *p, lk_error *err); /* cJSON_Delete(*root), also on failure */
lk_status lk_parts_vocab(lk_vocab *v, const lk_tokenizer_parts *p, lk_error *err);

/* ---- spm.c: SentencePiece's .model ---- */

typedef struct lk_spm {
    lk_tokenizer_entry *entries; /* [n] texts point into the file's bytes */
    int64_t n;
    int64_t model_type; /* trainer_spec.model_type: 1 unigram, 2 BPE */
    int64_t unk_id, bos_id, eos_id, pad_id;
    lk_piece unk, bos, eos; /* names */
    bool byte_fallback, suffix_spaces, dummy_prefix, escape_spaces;
    lk_piece charsmap; /* normalizer_spec.precompiled_charsmap; p NULL: none */
} lk_spm;

lk_status lk_spm_parse(lk_spm *m, lk_arena *arena, const char *bytes, size_t size, const char *where, lk_error *err);

/* ---- slow.c: folders without tokenizer.json ---- */

/* *config is the folder's tokenizer_config.json and gets what the tokenizer's class takes for granted (bos_token and so on). The digest
 * covers everything read. */
lk_status lk_tokenizer_open_slow(lk_tokenizer **tk, const char *folder, cJSON *config, lk_sha256 *hash, lk_error *err);

/* ---- bpe.c ---- */

typedef struct lk_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX empty */
    uint32_t rank;
    int32_t id;
} lk_merge;

typedef struct lk_bpe {
    lk_piece *keys;       /* [n_ids] what the encoder sees: raw bytes when byte_level, else the vocabulary's text */
    lk_piece_table table; /* keys to ids, the model's own vocabulary only */
    lk_merge *merges;
    uint64_t merge_mask;
    uint8_t *joins;      /* a filter over (last char of left, first char of right) of all merges: bpe.c */
    int32_t single[256]; /* ids of one-byte keys; -1 */
    int32_t byte[256];   /* ids of <0x..>; -1 */
    int32_t unk;         /* -1 when there is none */
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
} lk_bpe;

typedef struct lk_encoder lk_encoder;
lk_status lk_bpe_read(lk_tokenizer *tk, const cJSON *model, const lk_vocab *vocab, lk_error *err);
lk_status lk_bpe_encode(lk_encoder *e, lk_view word);
int32_t lk_bpe_joined(const lk_bpe *bpe, int32_t left, int32_t right); /* the id that the merge of these gives; -1: there is none */

/* ---- unigram.c ---- */

typedef struct lk_unigram {
    int32_t *sorted; /* [n] ids by the bytes of their pieces */
    int32_t n, first[257];
    double unk_score;
    int32_t unk; /* -1 when there is none */
    bool byte_fallback, fuse_unk;
} lk_unigram;

lk_status lk_unigram_read(lk_tokenizer *tk, const cJSON *model, const lk_vocab *vocab, lk_error *err);
lk_status lk_unigram_encode(lk_encoder *e, lk_view word);

/* ---- normalizer.c ---- */

/* ---- charsmap.c: SentencePiece's precompiled character map ---- */

typedef struct lk_charsmap {
    uint32_t *units; /* [n_units] a double-array trie */
    size_t n_units, n_texts;
    const char *texts; /* replacements, each ending in a zero */
} lk_charsmap;

lk_status lk_charsmap_read(lk_tokenizer *tk, const char *base64, lk_charsmap *map, lk_error *err);
lk_status lk_charsmap_apply(const lk_charsmap *map, const lk_view *in, lk_text *out, lk_error *err);

typedef struct lk_normalizer_step {
    enum {
        LK_NORM_PREPEND,
        LK_NORM_REPLACE,
        LK_NORM_NFC,
        LK_NORM_NFD,
        LK_NORM_NFKC,
        LK_NORM_NFKD,
        LK_NORM_LOWERCASE,
        LK_NORM_STRIP,
        LK_NORM_STRIP_ACCENTS,
        LK_NORM_PRECOMPILED
    } kind;
    const char *pattern, *content;
    size_t pattern_size, content_size;
    lk_regex *regex; /* Replace: instead of the pattern */
    bool left, right;
    lk_charsmap map;
} lk_normalizer_step;

lk_status lk_normalizer_read(lk_tokenizer *tk, const cJSON *node, lk_error *err);
/* *out is a view of `text` or of the scratch texts, valid until the next call with them. */
lk_status lk_normalize(const lk_tokenizer *tk, lk_text scratch[2], lk_regex_scratch *regex, lk_view text, lk_view *out, lk_error *err);

/* ---- normal_form.c; kind is one of LK_NORM_NFC.. ---- */

bool lk_normal_form_is_needed(int kind, const lk_view *in); /* false: the text is in the form already */
lk_status lk_normal_form(int kind, const lk_view *in, lk_text *out, lk_error *err);

/* ---- pretokenizer.c ---- */

typedef struct lk_pre_step {
    enum {
        LK_PRE_REGEX,
        LK_PRE_LITERAL,
        LK_PRE_DIGITS,
        LK_PRE_PUNCTUATION,
        LK_PRE_SPACES, /* WhitespaceSplit */
        LK_PRE_WORDS,  /* Whitespace */
        LK_PRE_BYTE_LEVEL,
        LK_PRE_METASPACE
    } kind;
    enum { LK_SPLIT_REMOVED, LK_SPLIT_ISOLATED, LK_SPLIT_PREVIOUS, LK_SPLIT_NEXT, LK_SPLIT_CONTIGUOUS } behavior;
    enum { LK_PREPEND_NEVER, LK_PREPEND_ALWAYS, LK_PREPEND_FIRST } prepend; /* of a space or of the replacement */
    bool invert, split;
    lk_regex *regex;
    const char *pattern; /* what regex was compiled from */
    const char *literal; /* Split's string, Metaspace's replacement */
    size_t literal_size;
} lk_pre_step;

lk_status lk_pretokenizer_read(lk_tokenizer *tk, const cJSON *node, lk_error *err);
lk_status lk_pretokenize(lk_encoder *e, lk_view text); /* hands every word to the model */
lk_status lk_read_metaspace(const cJSON *node, const char **replacement, int *prepend, bool *split, const char *where, lk_error *err);

/* ---- named.c: pre-tokenisers that go by llama.cpp's names ---- */

/* NULL when tk's is none of them. */
const char *lk_pretokenizer_name_of(const lk_tokenizer *tk);
/* Adds normalizer, pre_tokenizer and the model's options to the tree of a tokenizer.json. */
lk_status lk_pretokenizer_named(cJSON *root, cJSON *model, const char *name, const char *where, lk_error *err);

/* ---- added.c ---- */

typedef struct lk_added {
    const char *match; /* what is looked for: the content, normalised when `normalized` */
    uint32_t match_size;
    int32_t id, order;
    bool single_word, lstrip, rstrip, normalized, special;
} lk_added;

/* Sorted by bytes: a match is found by narrowing a range, byte after byte. */
typedef struct lk_added_set {
    lk_added *tokens;
    int32_t n;
    uint8_t first[256]; /* 1: some token begins with this byte */
} lk_added_set;

lk_status lk_added_read(lk_tokenizer *tk, const cJSON *list, lk_error *err);
/* The normalised contents need the normaliser, which is read later. */
lk_status lk_added_finish(lk_tokenizer *tk, lk_error *err);
/* Splits text at the tokens of the set: their ids are emitted, what lies between goes to next(). */
lk_status lk_added_split(lk_encoder *e, const lk_added_set *set, lk_view text, lk_status (*next)(lk_encoder *, lk_view));

/* ---- decoder.c ---- */

typedef struct lk_decode_step {
    enum { LK_DEC_REPLACE, LK_DEC_BYTE_FALLBACK, LK_DEC_FUSE, LK_DEC_STRIP, LK_DEC_BYTE_LEVEL, LK_DEC_METASPACE } kind;
    bool fused; /* an earlier step made one string of all tokens: what comes in are fragments of it */
    bool drop_first;
    const char *pattern, *content;
    size_t pattern_size, content_size, start, stop;
} lk_decode_step;

lk_status lk_decoder_read(lk_tokenizer *tk, const cJSON *node, lk_error *err);
/* Fills tk->bytes: every token decoded on its own. */
lk_status lk_decoder_bytes(lk_tokenizer *tk, lk_error *err);
/* GPT-2's byte alphabet: appends the bytes that the piece's characters stand for, or returns false when one stands for none. */
bool lk_byte_level_undo(const char *p, size_t n, char *out, size_t *size);
int lk_byte_level_char(unsigned char byte, char out[4]);
/* The byte of "<0xAB>", or -1. */
int lk_byte_piece(const char *p, size_t n);

/* ---- the tokenizer ---- */

typedef struct lk_post_item {
    int32_t id; /* -1: the text */
} lk_post_item;

typedef struct lk_named_text {
    const char *name, *text;
} lk_named_text;

struct lk_tokenizer {
    lk_arena arena; /* owns every string and table below except regexes */
    char *where;    /* the file, for messages */
    int32_t n_ids;
    lk_piece *pieces;        /* [n_ids] as written; added tokens included */
    lk_piece *forms;         /* [n_ids] what decoding starts from: the piece, normalised for added tokens that are */
    lk_piece *bytes;         /* [n_ids] decoded on their own */
    uint8_t *special;        /* [n_ids] */
    uint8_t *added_ids;      /* [n_ids] 1: an added token */
    double *scores;          /* [n_ids] */
    lk_piece_table contents; /* pieces to ids */
    lk_tokenizer_model model;
    lk_bpe bpe;
    lk_unigram unigram;
    struct lk_rank {
        int32_t left, right;
    } * ranks; /* [n_ranks] the merges in order */
    int64_t n_ranks;
    lk_added *added;
    int32_t n_added;
    lk_added_set raw, normalized;
    lk_normalizer_step normalizer[LK_TK_MAX_STEPS];
    lk_pre_step pre[LK_TK_MAX_STEPS];
    lk_decode_step decoder[LK_TK_MAX_STEPS];
    int n_normalizer, n_pre, n_decoder;
    lk_post_item *post; /* [n_post]; NULL when nothing is added */
    int n_post;
    bool needs_sources; /* Metaspace "first" asks whether a piece stands at the start of the original text */
    bool no_decoder;    /* tokens are joined by spaces */
    int32_t bos, eos, pad;
    char *chat_template;
    lk_named_text
        texts[LK_TK_MAX_TEXTS]; /* special tokens and further templates, as tokenizer_config.json has them; the last of a name counts */
    int n_texts;
    char digest[65];
};

/* The tree of a tokenizer.json into a tokenizer; with `vocab` the model's vocabulary and merges are that, and the tree's model has the
 * options only. The digest is left to the caller. */
lk_status lk_tokenizer_build(lk_tokenizer **tk, const cJSON *root, const lk_vocab *vocab, const char *where, lk_error *err);
/* Makes the post-processor add exactly these; -1 for none. */
lk_status lk_tokenizer_set_post(lk_tokenizer *tk, int32_t before, int32_t after, lk_error *err);

/* ---- encode.c: the state of one call ---- */

typedef struct lk_symbol {
    int32_t id;
    uint32_t start, size; /* in the word */
    int32_t previous, next;
} lk_symbol;

typedef struct lk_candidate {
    uint32_t rank;
    int32_t position, id;
} lk_candidate;

typedef struct lk_word_entry {
    uint8_t size, n; /* size 0: empty */
    char word[22];
    uint8_t start[8];
    int32_t ids[8];
} lk_word_entry;

struct lk_encoder {
    const lk_tokenizer *tk;
    const lk_text_part *parts; /* whose text may hold special tokens; NULL: all of it, or none with plain */
    const size_t *part_ends;
    int64_t n_parts, part; /* part: where the last question was, since they come in order */
    lk_text_marks marks;
    bool plain, track;
    int32_t *ids;
    int64_t *starts;
    int64_t n, room;
    lk_text repaired, normal[2], pre[LK_TK_MAX_STEPS];
    lk_regex_scratch regex;
    lk_symbol *symbols;
    size_t symbol_room;
    lk_candidate *heap;
    size_t heap_n, heap_room;
    lk_word_entry *cache; /* direct-mapped; recent words of this call */
    uint32_t cache_mask;
    lk_error *err;
};

lk_status lk_encoder_emit(lk_encoder *e, int32_t id, size_t source);
/* May a special token be recognised at source bytes [begin, end)? 1 yes; 0 no, it lies in plain text; -1 no, it straddles. */
int lk_encoder_special_allowed(lk_encoder *e, size_t begin, size_t end);

/* Refuses members of a component other than those named (a list ending in NULL): they may change what it does. */
lk_status lk_only_keys(const cJSON *object, const char *const *keys, const char *where, const char *component, lk_error *err);
lk_status lk_refuse(const char *where, const char *what, const char *type, const char *supported, lk_error *err);

#endif
