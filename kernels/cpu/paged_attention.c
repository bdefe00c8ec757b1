/* Attention over the paged cache, for prefill chunks and decode in one code path (online softmax, Milakov & Gimelshein 2018; pages as in
 * vLLM, Kwon et al. 2023). Keys are taken in blocks of 64 at fixed absolute positions, and each query runs its own softmax over
 * the blocks it sees, so a token's output is the same bits however its prompt was cut and whoever shares the batch.
 *
 * An item of work is up to 32 query rows (tokens times the query heads of a group) of one sequence on one key/value head. Items are
 * shared among threads by their cost, which is the number of keys they see: one long sequence beside many short ones must not
 * leave a thread alone with it. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/rows.h"

enum { ITEM_ROWS = 32, BLOCK = LK_KEY_BLOCK };

typedef struct paged_args {
    const lk_pages *pages;
    const lk_rows *rows;
    const lk_batch *batch;
    const lk_attention_shape *shape;
    const lk_tensor *o, *q;
    const lk_kv *kv;
    int32_t layer;
    int threads;
    double cost; /* of everything */
    char *scratch;
    size_t thread_bytes;
} paged_args;

static size_t thread_bytes(int64_t head_dim) { return lk_carved((size_t)(ITEM_ROWS * (2 * head_dim + BLOCK)) * sizeof(float)); }

size_t lk_cpu_paged_scratch(const lk_backend *be, const lk_limits *l)
{
    return l->head_dim ? (size_t)be->threads * thread_bytes(l->head_dim) : 0;
}

/* Rows of one sequence on one key/value head, numbered token by token and head by head of the group. */
typedef struct item {
    const lk_sequence *sequence;
    int64_t kv_head, begin, end;
} item;

static int64_t group_of(const paged_args *a) { return a->shape->heads / a->shape->kv_heads; }
static int64_t position_of(const paged_args *a, const item *it, int64_t row)
{
    return it->sequence->length - it->sequence->count + row / group_of(a);
}

static double item_cost(const paged_args *a, const item *it)
{
    int64_t last = position_of(a, it, it->end - 1), keys = last + 1 - lk_first_block(a->shape, last) * BLOCK;
    return (double)(it->end - it->begin) * (double)keys + 32.0; /* some fixed cost of beginning */
}

/* Where block j of the sequence lies; tiles from `begin` to `end` positions of the sequence. */
static lk_page_block block_at(const paged_args *a, const item *it, int64_t j, int64_t begin, int64_t end)
{
    const lk_kv_shape *s = &a->kv->shape;
    lk_page_block b = {.type = s->type, .head_dim = s->head_dim};
    int64_t size = lk_dtype_size(s->type);
    for (int t = 0; t < 4; t++) {
        int64_t position = j * BLOCK + t * LK_KV_LANES, inside = position % s->page_tokens;
        if (position + LK_KV_LANES <= begin || position >= end) continue;
        char *tile = lk_kv_tile(a->kv, it->sequence->pages[position / s->page_tokens], a->layer, it->kv_head);
        b.keys[t] = tile + lk_kv_key_at(s, inside, 0) * size;
        b.values[t] = tile + lk_kv_value_at(s, inside, 0) * size;
        for (int which = 0; s->type == LK_I8 && which < 2; which++) b.scales[which][t] = lk_kv_scales(s, tile, which) + inside;
    }
    return b;
}

typedef struct query_rows {
    float *q, *o, *p; /* [rows, D], [rows, D], [rows, 64] */
    float top[ITEM_ROWS], sum[ITEM_ROWS];
} query_rows;

/* Rows [r, r+n) of the item against block j. */
static void attend(const paged_args *a, const item *it, query_rows *w, int64_t r, int n, int64_t j)
{
    int64_t D = a->shape->head_dim, from = INT64_MAX, to = 0;
    int first[LK_QUERIES], last[LK_QUERIES];
    float shrink[LK_QUERIES];
    for (int i = 0; i < n; i++) {
        lk_visible(a->shape, position_of(a, it, it->begin + r + i), j * BLOCK, &first[i], &last[i]);
        if (first[i] < last[i]) {
            if (j * BLOCK + first[i] < from) from = j * BLOCK + first[i];
            if (j * BLOCK + last[i] > to) to = j * BLOCK + last[i];
        }
    }
    if (to == 0) return;
    lk_page_block b = block_at(a, it, j, from, to);
    float *p = w->p + r * BLOCK;
    a->pages->scores(p, w->q + r * D, n, &b);
    for (int i = 0; i < n && a->shape->cap > 0.0f; i++) lk_cap_scores(a->shape, p + i * BLOCK, first[i], last[i]);
    a->rows->softmax(p, n, first, last, a->shape->scale, w->top + r, w->sum + r, shrink);
    for (int i = 0; i < n; i++)
        if (shrink[i] != 1.0f) a->rows->scale(w->o + (r + i) * D, shrink[i], D);
    a->pages->weigh(w->o + r * D, p, n, first, last, &b);
}

static void run_item(const paged_args *a, const item *it, char *scratch)
{
    int64_t D = a->shape->head_dim, group = group_of(a), rows = it->end - it->begin;
    query_rows w = {.q = (float *)(void *)scratch};
    w.o = w.q + ITEM_ROWS * D;
    w.p = w.o + ITEM_ROWS * D;
    memset(w.o, 0, (size_t)(rows * D) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        int64_t token = it->sequence->begin + (it->begin + r) / group, head = it->kv_head * group + (it->begin + r) % group;
        memcpy(w.q + r * D, lk_row_of(a->q, token) + head * D, (size_t)D * sizeof(float));
        w.top[r] = -INFINITY;
        w.sum[r] = 0.0f;
    }
    int64_t blocks = position_of(a, it, it->end - 1) / BLOCK + 1;
    for (int64_t j = lk_first_block(a->shape, position_of(a, it, it->begin)); j < blocks; j++)
        for (int64_t r = 0; r < rows; r += LK_QUERIES) attend(a, it, &w, r, rows - r < LK_QUERIES ? (int)(rows - r) : LK_QUERIES, j);
    for (int64_t r = 0; r < rows; r++) {
        int64_t token = it->sequence->begin + (it->begin + r) / group, head = it->kv_head * group + (it->begin + r) % group;
        float *o = lk_row_of(a->o, token) + head * D;
        memcpy(o, w.o + r * D, (size_t)D * sizeof(float));
        a->rows->scale(o, 1.0f / w.sum[r], D);
    }
}

/* Walks all items. Without scratch only adds up their cost; else runs those whose middle, along the sum of costs, falls into this
 * thread's equal share. */
static double walk(const paged_args *a, int thread, char *scratch)
{
    double before = 0.0, low = a->cost * thread / a->threads, high = a->cost * (thread + 1) / a->threads;
    for (int64_t s = 0; s < a->batch->n_sequences; s++) {
        const lk_sequence *q = &a->batch->sequences[s];
        int64_t rows = q->count * group_of(a);
        for (int64_t g = 0; g < a->shape->kv_heads; g++)
            for (int64_t r = 0; r < rows; r += ITEM_ROWS) {
                item it = {q, g, r, rows - r < ITEM_ROWS ? rows : r + ITEM_ROWS};
                double cost = item_cost(a, &it), middle = before + cost / 2;
                before += cost;
                if (scratch && middle >= low && middle < high) run_item(a, &it, scratch);
            }
    }
    return before;
}

static void work(void *context, int64_t begin, int64_t end, int thread)
{
    const paged_args *a = context;
    (void)begin, (void)end;
    walk(a, thread, a->scratch + (size_t)thread * a->thread_bytes);
}

lk_status lk_cpu_paged_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o,
                                 const lk_tensor *q, const lk_kv *kv, int32_t layer)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    void *scratch;
    paged_args a = {.pages = lk_pages_get(cpu->tier),
                    .rows = lk_rows_get(cpu->tier),
                    .batch = batch,
                    .shape = shape,
                    .o = o,
                    .q = q,
                    .kv = kv,
                    .layer = layer,
                    .threads = be->threads,
                    .thread_bytes = thread_bytes(shape->head_dim)};
    LK_TRY(lk_cpu_scratch(be, "paged_attention", (size_t)be->threads * a.thread_bytes, &scratch));
    a.scratch = scratch;
    a.cost = walk(&a, 0, NULL);
    lk_pool_each(cpu->pool, work, &a);
    return LK_OK;
}
