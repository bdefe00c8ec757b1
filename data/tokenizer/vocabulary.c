/* A tokenizer taken apart: types, scores, merges and the pre-tokeniser's name, as other formats call them. */
#include "data/tokenizer/vocabulary.h"

#include <string.h>

#include "data/tokenizer/internal.h"

lk_tokenizer_model lk_tokenizer_kind(const lk_tokenizer *tk) { return tk->model; }

int32_t lk_tokenizer_unk(const lk_tokenizer *tk) { return tk->model == LK_TK_UNIGRAM ? tk->unigram.unk : tk->bpe.unk; }
int32_t lk_tokenizer_pad(const lk_tokenizer *tk) { return tk->pad; }

static bool falls_back(const lk_tokenizer *tk) { return tk->model == LK_TK_UNIGRAM ? tk->unigram.byte_fallback : tk->bpe.byte_fallback; }

int lk_tokenizer_type(const lk_tokenizer *tk, int32_t id)
{
    if (id < 0 || id >= tk->n_ids || !tk->pieces[id].p) return LK_TOKEN_UNUSED;
    if (id == lk_tokenizer_unk(tk)) return LK_TOKEN_UNKNOWN;
    if (tk->special[id]) return LK_TOKEN_CONTROL;
    if (tk->added_ids[id]) return LK_TOKEN_USER_DEFINED;
    return falls_back(tk) && lk_byte_piece(tk->pieces[id].p, tk->pieces[id].n) >= 0 ? LK_TOKEN_BYTE : LK_TOKEN_NORMAL;
}

float lk_tokenizer_score(const lk_tokenizer *tk, int32_t id) { return id < 0 || id >= tk->n_ids ? 0 : (float)tk->scores[id]; }

int64_t lk_tokenizer_n_merges(const lk_tokenizer *tk) { return tk->n_ranks; }

void lk_tokenizer_merge(const lk_tokenizer *tk, int64_t i, int32_t *left, int32_t *right)
{
    *left = tk->ranks[i].left;
    *right = tk->ranks[i].right;
}

/* Every way to cut the piece in two must be a merge, or an encoder that goes by scores would join what the merges do not. */
static bool all_cuts_merge(const lk_tokenizer *tk, int32_t id)
{
    const lk_piece *piece = &tk->pieces[id];
    for (uint32_t cut = 1; cut < piece->n; cut++) {
        if (((unsigned char)piece->p[cut] & 0xc0) == 0x80) continue;
        int32_t left = lk_piece_table_find(&tk->contents, piece->p, cut),
                right = left < 0 ? -1 : lk_piece_table_find(&tk->contents, piece->p + cut, piece->n - cut);
        if (left < 0 || right < 0 || tk->added_ids[left] || tk->added_ids[right]) continue;
        if (lk_bpe_joined(&tk->bpe, left, right) != id) return false;
    }
    return true;
}

bool lk_tokenizer_fits_scores(const lk_tokenizer *tk, const char **why)
{
    const char *unheard;
    if (!why) why = &unheard;
    *why = NULL;
    if (tk->model == LK_TK_UNIGRAM) return true;
    if (tk->model == LK_TK_BYTE_BPE) {
        *why = "a byte-level vocabulary goes by merges";
        return false;
    }
    for (int64_t i = 0; i < tk->n_ranks; i++) {
        int32_t id = lk_bpe_joined(&tk->bpe, tk->ranks[i].left, tk->ranks[i].right);
        if (i == 0 || -tk->scores[id] == (double)i + 1) continue; /* the first of its piece */
        if (id != lk_bpe_joined(&tk->bpe, tk->ranks[i - 1].left, tk->ranks[i - 1].right)) {
            *why = "the merges that give one piece do not stand together";
            return false;
        }
    }
    for (int32_t id = 0; id < tk->n_ids; id++)
        if (tk->pieces[id].p && !tk->added_ids[id] && !all_cuts_merge(tk, id)) {
            *why = "a piece can be put together from two others although no merge does so";
            return false;
        }
    return true;
}

const char *lk_tokenizer_pretokenizer_name(const lk_tokenizer *tk)
{
    if (tk->model != LK_TK_BYTE_BPE) return "default";
    return lk_pretokenizer_name_of(tk);
}

bool lk_tokenizer_adds_space(const lk_tokenizer *tk)
{
    for (int i = 0; i < tk->n_normalizer; i++)
        if (tk->normalizer[i].kind == LK_NORM_PREPEND) return true;
    for (int i = 0; i < tk->n_pre; i++)
        if (tk->pre[i].prepend != LK_PREPEND_NEVER) return true;
    return false;
}

int32_t lk_tokenizer_added_bos(const lk_tokenizer *tk) { return tk->n_post ? tk->post[0].id : -1; }
int32_t lk_tokenizer_added_eos(const lk_tokenizer *tk) { return tk->n_post ? tk->post[tk->n_post - 1].id : -1; }
