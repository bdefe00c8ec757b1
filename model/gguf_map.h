/* Which GGUF name a tensor of a Hugging Face folder has, and the other way: one table of families and one of tensors, read by the exporters
 * and by the reader of GGUF bases.
 *
 *     const lk_gguf_family *f = lk_gguf_family_of(config.model_type);                          -- NULL: llama.cpp has no such architecture
 *     lk_gguf_place place;
 *     if (lk_gguf_place_of(&place, f, "model.layers.3.self_attn.q_proj.weight")) ... place.name "blk.3.attn_q.weight" ...
 *
 * Sources: the names in the gguf package (constants.py), the transformations in llama.cpp's convert_hf_to_gguf.py. */
#ifndef LK_MODEL_GGUF_MAP_H
#define LK_MODEL_GGUF_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct lk_gguf_family {
    const char *model_type;   /* in config.json */
    const char *architecture; /* in the GGUF file */
    unsigned bit;             /* which rows of the table of tensors it has */
    bool permutes;            /* rows of q and k are stored pair by pair instead of half by half (for another order of rotation) */
    bool plus_one;            /* norms are stored with the 1 added that the model adds to them */
    const char *biases;       /* modules that may have a bias there, as letters: q k v o, m for the MLP's */
} lk_gguf_family;

/* What happens to a tensor on the way to the file; undone when reading. */
enum {
    LK_GGUF_ROWS_Q = 1,   /* rows permuted by query heads, if the family permutes */
    LK_GGUF_ROWS_K = 2,   /* by key heads */
    LK_GGUF_NORM = 4,     /* a norm: plus one, if the family does */
    LK_GGUF_KEEP_F32 = 8, /* not quantised (1-D tensors never are) */
    LK_GGUF_EXPERT = 16   /* one of several matrices that the file has as one tensor [E,N,K] */
};

typedef struct lk_gguf_place {
    char name[64];
    int64_t layer;  /* -1: outside the blocks */
    int32_t expert; /* -1 unless LK_GGUF_EXPERT */
    unsigned how;
    bool bias;
} lk_gguf_place;

const lk_gguf_family *lk_gguf_family_of(const char *model_type);
/* The family of a file: its architecture and whether it has experts; NULL when it is not known. */
const lk_gguf_family *lk_gguf_family_in(const char *architecture, bool experts);
/* "llama, qwen2, ...": the architectures known, for messages. */
void lk_gguf_families(char *out, size_t size);

/* Where the tensor of this name goes; false when llama.cpp's architecture has no place for it. */
bool lk_gguf_place_of(lk_gguf_place *place, const lk_gguf_family *family, const char *tensor);
/* The tensor of a folder that a GGUF tensor holds (expert: which of them, ignored elsewhere); false when it is none. */
bool lk_gguf_tensor_of(char *tensor, size_t size, lk_gguf_place *place, const lk_gguf_family *family, const char *name, int32_t expert);

/* The row of a folder's matrix that is row `row` of the file's, heads of head_dim rows each. */
static inline int64_t lk_gguf_row(int64_t row, int64_t head_dim)
{
    int64_t in = row % head_dim;
    return row - in + in / 2 + in % 2 * (head_dim / 2);
}
/* And back. */
static inline int64_t lk_gguf_row_back(int64_t row, int64_t head_dim)
{
    int64_t in = row % head_dim, half = head_dim / 2;
    return row - in + in % half * 2 + in / half;
}

#endif
