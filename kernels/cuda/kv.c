/* Makes the cache of keys and values, and the tables by which kernels find a batch's sequences in it. */
#include "kernels/cuda/kv.h"

#include <stdlib.h>

/* Words of tables beyond those that a cache's own pages ask for: sequences that share pages name them once each. */
enum { TABLE_BASE = 1 << 16, SEQUENCE_WORDS = sizeof(lk_cuda_kv_sequence) / 4, SPLIT_WORDS = sizeof(lk_cuda_kv_split) / 4 };

size_t lk_cuda_kv_page_bytes(const lk_backend *be, const lk_kv_shape *s)
{
    (void)be;
    return (size_t)2 * (size_t)s->n_layers * (size_t)s->kv_heads * (size_t)s->page_tokens * (size_t)lk_cuda_padded(s->head_dim) * 2;
}

lk_status lk_cuda_kv_create(lk_backend *be, lk_kv **out, const lk_kv_shape *shape)
{
    int64_t positions = (int64_t)shape->n_pages * shape->page_tokens;
    if (positions > INT32_MAX)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "a cache of %lld positions; at most %d", (long long)positions, INT32_MAX);
    if (shape->type == LK_I8) return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "keys and values in 8 bits are not there on CUDA");
    lk_status status = LK_ERR_MEMORY;
    void *data = NULL, *tables = NULL;
    lk_cuda_kv *kv = calloc(1, sizeof *kv);
    if (!kv) goto memory;
    kv->base.shape = *shape;
    kv->words = TABLE_BASE + (size_t)shape->n_pages * (1 + SPLIT_WORDS);
    if (!(kv->host = malloc(kv->words * sizeof *kv->host))) goto memory;
    kv->base.page_bytes = lk_cuda_kv_page_bytes(be, shape);
    if ((status = lk_alloc(be, (size_t)shape->n_pages * kv->base.page_bytes, &data))) goto out;
    if ((status = lk_alloc(be, kv->words * sizeof *kv->tables, &tables))) goto out;
    kv->base.data = data;
    kv->tables = tables;
    *out = &kv->base;
    return LK_OK;
memory:
    lk_fail(&be->error, status, "no memory for the tables of a KV cache");
out:
    lk_free(be, data);
    if (kv) free(kv->host);
    free(kv);
    return status;
}

void lk_cuda_kv_destroy(lk_backend *be, lk_kv *kv)
{
    lk_cuda_kv *c = lk_cuda_kv_of(kv);
    lk_free(be, c->tables);
    lk_free(be, c->base.data);
    free(c->host);
    free(c);
}

/* ---------------------------------------------------------------------------------------------------------- tables of a batch */

typedef struct counts {
    size_t sequences, pages, splits, many;
} counts;

static size_t words_of(const counts *n) { return n->sequences * SEQUENCE_WORDS + n->splits * SPLIT_WORDS + n->pages + n->many; }

static int64_t pieces(int64_t n, int64_t of) { return (n + of - 1) / of; }

/* Adds one sequence; false when it has many rows. */
static bool count_sequence(const lk_kv_shape *shape, const lk_sequence *q, int64_t group, counts *n)
{
    bool few = q->count * group <= LK_KV_FEW;
    n->sequences++;
    n->pages += (size_t)pieces(q->length, shape->page_tokens);
    n->splits += few ? (size_t)pieces(q->length, LK_KV_SPLIT) : 0;
    n->many += !few;
    return few;
}

/* Sequences from t->first on that fit; at least one, or an error. */
static lk_status choose(lk_backend *be, const lk_cuda_kv *kv, const lk_batch *batch, int64_t group, int64_t most_splits, counts *taken,
                        lk_cuda_kv_tables *t)
{
    counts n = {0};
    for (t->next = t->first; t->next < batch->n_sequences; t->next++) {
        const lk_sequence *q = &batch->sequences[t->next];
        bool few = count_sequence(&kv->base.shape, q, group, &n);
        if (words_of(&n) > kv->words || (int64_t)n.splits > most_splits) break;
        *taken = n;
        int32_t rows = (int32_t)(q->count * group);
        int32_t *most = few ? &t->few_rows : &t->many_rows;
        if (rows > *most) *most = rows;
    }
    if (t->next > t->first || batch->n_sequences == 0) return LK_OK;
    return lk_fail(&be->error, LK_ERR_INTERNAL,
                   "paged attention: a sequence of %lld positions does not fit what lk_reserve made: limits too small",
                   (long long)batch->sequences[t->first].length);
}

static void fill(const lk_cuda_kv *kv, const lk_batch *batch, const counts *n, const lk_cuda_kv_tables *t)
{
    lk_cuda_kv_sequence *sequences = (lk_cuda_kv_sequence *)kv->host;
    lk_cuda_kv_split *splits = (lk_cuda_kv_split *)(sequences + n->sequences);
    int32_t *pages = (int32_t *)(splits + n->splits), *many = pages + n->pages;
    int32_t n_pages = 0, n_splits = 0;
    for (int64_t i = t->first; i < t->next; i++) {
        const lk_sequence *q = &batch->sequences[i];
        int32_t own = (int32_t)pieces(q->length, kv->base.shape.page_tokens), index = (int32_t)(i - t->first);
        bool few = q->count * kv->group <= LK_KV_FEW;
        int32_t n_own = few ? (int32_t)pieces(q->length, LK_KV_SPLIT) : 0;
        sequences[index] = (lk_cuda_kv_sequence){(int32_t)q->begin, (int32_t)q->count, (int32_t)q->length, n_pages, n_splits, n_own, {0}};
        memcpy(pages + n_pages, q->pages, (size_t)own * sizeof *pages);
        n_pages += own;
        for (int32_t s = 0; s < n_own; s++) splits[n_splits++] = (lk_cuda_kv_split){index, s};
        if (!few) *many++ = index;
    }
}

lk_status lk_cuda_kv_prepare(lk_backend *be, const lk_kv *cache, const lk_batch *batch, int64_t group, int64_t most_splits,
                             lk_cuda_kv_tables *t)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_kv *kv = lk_cuda_kv_of(cache);
    bool same = cu->batches > 0 && kv->serial == cu->batches && kv->batch == batch && kv->held.first == t->next;
    if (same && (group == 0 || (kv->group == group && kv->most_splits == most_splits))) {
        *t = kv->held;
        return LK_OK;
    }
    kv->serial = 0; /* nothing, until all of it is there */
    kv->group = group ? group : 1;
    kv->most_splits = most_splits;
    kv->batch = batch;
    counts n = {0};
    *t = (lk_cuda_kv_tables){.first = t->next};
    LK_TRY(choose(be, kv, batch, kv->group, most_splits, &n, t));
    fill(kv, batch, &n, t);
    LK_TRY(lk_rt_copy(kv->tables, kv->host, words_of(&n) * sizeof *kv->tables, cu->stream, &be->error));
    t->sequences = (const lk_cuda_kv_sequence *)kv->tables;
    t->splits = (const lk_cuda_kv_split *)(t->sequences + n.sequences);
    t->pages = (const int32_t *)(t->splits + n.splits);
    t->many = t->pages + n.pages;
    t->n_sequences = (int32_t)n.sequences;
    t->n_splits = (int32_t)n.splits;
    t->n_many = (int32_t)n.many;
    if (n.sequences) {
        const lk_sequence *last = &batch->sequences[t->next - 1];
        t->row = (int32_t)batch->sequences[t->first].begin;
        t->n_rows = (int32_t)(last->begin + last->count) - t->row;
    }
    kv->held = *t;
    kv->serial = cu->batches;
    return LK_OK;
}
