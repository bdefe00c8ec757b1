/* See tables.h.
 *
 * What a batch's cache and heads are is not among the things lk_batch_begin is told. It takes the backend's cache where there is one
 * alone, and the heads of the limits or of the last operation; an operation that finds tables made for others, or none, lays them out
 * again and sends them (never inside a recording).
 *
 * Sizes come from the limits: every token a sequence of its own at the longest context, up to MOST_PAGES and MOST_SPLITS, which is a
 * hundred times what one step is ever worth. A batch beyond goes in parts, its tables sent for each part and layer; so does one whose
 * splits' results do not fit the scratch. Such a step is not recorded.
 *
 * Rejected: tables of exact lengths with counts in device memory for blocks to look at first (one more dependent load, and nothing saved:
 * bytes sent are those of pages); a copy for each table. */
#include "kernels/cuda/tables.h"

#include <string.h>

#include "kernels/cuda/kv.h"

enum { MOST_PAGES = 1 << 20, MOST_SPLITS = 1 << 18, ALIGN = 16 };
enum { IDS = 1, POSITIONS = 2, ROWS = 4, SLOTS = 8 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t pieces(int64_t n, int64_t of) { return (n + of - 1) / of; }
static size_t aligned(int64_t n, size_t size) { return ((size_t)n * size + ALIGN - 1) / ALIGN * ALIGN; }
static int64_t power_of_two(int64_t n)
{
    int64_t p = n > 0;
    while (p < n) p *= 2;
    return p;
}

/* ---------------------------------------------------------------------------------------------- sizes */

static size_t front_bytes(int64_t rows, int64_t wanted, int64_t tiles)
{
    return 3 * aligned(rows, 4) + aligned(wanted, 4) + aligned(tiles, sizeof(lk_cuda_tokens));
}

static size_t kv_bytes(int64_t sequences, int64_t many, int64_t splits, int64_t pages)
{
    return aligned(sequences, sizeof(lk_cuda_kv_sequence)) + aligned(many, 4) + aligned(splits, sizeof(lk_cuda_kv_split)) +
           aligned(pages, 4);
}

static size_t room_for(const lk_limits *l)
{
    int64_t n = power_of_two(l->tokens);
    size_t front = front_bytes(l->tokens, l->tokens, l->adapters ? n : 0);
    if (l->training || l->kv_heads < 1 || l->head_dim < 1 || l->context < 1) return front; /* attention over pages is not to come */
    int64_t splits = smaller(2 * l->tokens * (l->context / LK_KV_SPLIT + 1), MOST_SPLITS);
    int64_t pages = smaller(l->tokens * (l->context / LK_KV_LEAST_PAGE + 1), MOST_PAGES);
    return front + kv_bytes(n, n, splits, pages);
}

size_t lk_cuda_tables_bytes(const lk_limits *limits) { return room_for(limits); }

void lk_cuda_tables_unreserve(lk_backend *be)
{
    lk_cuda_tables *t = &lk_cuda_of(be)->tables;
    lk_cuda_step_forget(be);
    if (t->device) lk_cuda_free(be, t->device);
    for (int i = 0; i < LK_CUDA_TURNS; i++) {
        lk_rt_host_free(t->turns[i].host);
        if (t->turns[i].sent) lk_rt_event_destroy(t->turns[i].sent);
    }
    *t = (lk_cuda_tables){.group = t->group};
}

/* The entries of adapters lie behind the tables in every piece of host memory: both are made anew when one of them grows. */
lk_status lk_cuda_tables_reserve(lk_backend *be, const lk_limits *limits)
{
    lk_cuda_tables *t = &lk_cuda_of(be)->tables;
    size_t entries = lk_cuda_adapters_entries_bytes(be), room = room_for(limits);
    if (limits->heads > 0 && limits->kv_heads > 0) t->group = limits->heads / limits->kv_heads;
    if (room <= t->room && entries <= t->entries_room) return LK_OK;
    if (room < t->room) room = t->room;
    lk_cuda_tables_unreserve(be);
    void *p;
    lk_status status = lk_cuda_alloc(be, room, &p);
    if (!status) t->device = p;
    for (int i = 0; i < LK_CUDA_TURNS && !status; i++) {
        status = lk_rt_host_malloc(&p, room + entries, &be->error);
        if (!status) t->turns[i].host = p;
        if (!status) status = lk_rt_event_create(&t->turns[i].sent, &be->error);
    }
    if (status) {
        lk_cuda_tables_unreserve(be);
        return status;
    }
    t->room = room;
    t->entries_room = entries;
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- layout */

/* A piece of host memory being filled, and where it will lie on the device. */
typedef struct layout {
    unsigned char *host, *device;
    size_t at;
} layout;

static void *take(layout *l, const void **device, int64_t n, size_t size)
{
    void *p = l->host + l->at;
    *device = l->device + l->at;
    l->at += aligned(n, size);
    return p;
}

static const int32_t *array(layout *l, const int32_t *from, int64_t n)
{
    const void *device;
    if (!from || n == 0) return NULL;
    memcpy(take(l, &device, n, sizeof *from), from, (size_t)n * sizeof *from);
    return device;
}

static const int32_t *slots(layout *l, const lk_batch *batch, int64_t rows, int32_t page_tokens)
{
    const void *device;
    int32_t *slot = take(l, &device, rows, sizeof *slot);
    for (int64_t i = 0; i < batch->n_sequences; i++) {
        const lk_sequence *q = &batch->sequences[i];
        for (int64_t at = q->length - q->count; at < q->length; at++)
            *slot++ = (int32_t)(q->pages[at / page_tokens] * page_tokens + at % page_tokens);
    }
    for (int64_t i = 0; i < batch->padding; i++) *slot++ = -1;
    return device;
}

static const lk_cuda_tokens *tiles(layout *l, const lk_batch *batch, int64_t n)
{
    const void *device;
    lk_cuda_tokens *tile = take(l, &device, n, sizeof *tile);
    int64_t filled = lk_cuda_adapters_tiles(batch, tile);
    memset(tile + filled, 0, (size_t)(n - filled) * sizeof *tile);
    return device;
}

typedef struct counts {
    int64_t sequences, pages, splits, many, few_rows, many_rows;
} counts;

static void count_sequence(counts *n, const lk_sequence *q, int32_t page_tokens, int64_t group)
{
    int64_t rows = q->count * group;
    bool few = rows <= LK_KV_FEW;
    int64_t *most = few ? &n->few_rows : &n->many_rows;
    n->sequences++;
    n->pages += pieces(q->length, page_tokens);
    n->splits += few ? pieces(q->length, LK_KV_SPLIT) : 0;
    n->many += !few;
    if (rows > *most) *most = rows;
}

/* Entries of the table of splits for n of them: whose results fit the scratch. 0: they do not. */
static int64_t bound_splits(const lk_cuda *cu, const lk_kv *kv, const counts *n)
{
    if (n->splits == 0) return 0;
    int64_t fit = (int64_t)(cu->scratch_bytes / lk_cuda_paged_split_bytes(kv->shape.kv_heads, n->few_rows, kv->shape.head_dim));
    return n->splits <= fit ? smaller(power_of_two(n->splits), fit) : 0;
}

/* Sequences from `first` on that fit what is left; 0 when not even one does. */
static int64_t choose(const lk_cuda *cu, const lk_kv *kv, const lk_batch *batch, int64_t first, size_t left, counts *taken)
{
    counts n = {0};
    int64_t next = first;
    for (; next < batch->n_sequences; next++) {
        count_sequence(&n, &batch->sequences[next], kv->shape.page_tokens, cu->tables.group);
        int64_t splits = bound_splits(cu, kv, &n);
        if ((n.splits && !splits) || kv_bytes(power_of_two(n.sequences), power_of_two(n.many), splits, n.pages) > left) break;
        *taken = n;
    }
    return next - first;
}

static void fill_sequences(layout *l, lk_cuda_tables *t, const lk_batch *batch, const counts *n)
{
    const void *device[4];
    lk_cuda_kv_tables *kv = &t->kv;
    lk_cuda_kv_sequence *sequence = take(l, &device[0], kv->n_sequences, sizeof *sequence);
    int32_t *many = take(l, &device[1], kv->n_many, sizeof *many);
    lk_cuda_kv_split *split = take(l, &device[2], kv->n_splits, sizeof *split);
    int32_t *pages = take(l, &device[3], n->pages, sizeof *pages), n_pages = 0, n_splits = 0, n_many = 0, index = 0;
    for (int64_t i = kv->first; i < kv->next; i++, index++) {
        const lk_sequence *q = &batch->sequences[i];
        int32_t own = (int32_t)pieces(q->length, t->page_tokens);
        int32_t n_own = q->count * t->group <= LK_KV_FEW ? (int32_t)pieces(q->length, LK_KV_SPLIT) : 0;
        sequence[index] = (lk_cuda_kv_sequence){(int32_t)q->begin, (int32_t)q->count, (int32_t)q->length, n_pages, n_splits, n_own, {0}};
        memcpy(pages + n_pages, q->pages, (size_t)own * sizeof *pages);
        n_pages += own;
        for (int32_t s = 0; s < n_own; s++) split[n_splits++] = (lk_cuda_kv_split){index, s};
        if (!n_own) many[n_many++] = index;
    }
    memset(sequence + index, 0, (size_t)(kv->n_sequences - index) * sizeof *sequence);
    memset(split + n_splits, 0xff, (size_t)(kv->n_splits - n_splits) * sizeof *split);
    memset(many + n_many, 0xff, (size_t)(kv->n_many - n_many) * sizeof *many);
    kv->sequences = device[0];
    kv->many = device[1];
    kv->splits = device[2];
    kv->pages = device[3];
}

/* False when no sequence fits. */
static bool attend(layout *l, lk_cuda *cu, const lk_batch *batch, const lk_kv *kv, int64_t first)
{
    lk_cuda_tables *t = &cu->tables;
    lk_cuda_bounds *b = &t->bounds;
    counts n = {0};
    int64_t chosen = choose(cu, kv, batch, first, t->room - l->at, &n);
    if (chosen == 0) return false;
    b->sequences = (int32_t)power_of_two(n.sequences);
    b->splits = (int32_t)bound_splits(cu, kv, &n);
    b->many = (int32_t)power_of_two(n.many);
    b->few_rows = (int32_t)n.few_rows;
    b->many_rows = (int32_t)power_of_two(n.many_rows);
    t->kv = (lk_cuda_kv_tables){.first = first, .next = first + chosen};
    t->kv.n_sequences = b->sequences;
    t->kv.n_splits = b->splits;
    t->kv.n_many = b->many;
    t->kv.few_rows = b->few_rows;
    t->kv.many_rows = b->many_rows;
    fill_sequences(l, t, batch, &n);
    return true;
}

static lk_status lay_out(lk_backend *be, layout *l, const lk_batch *batch, const lk_kv *kv, int64_t first)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_tables *t = &cu->tables;
    lk_cuda_bounds *b = &t->bounds;
    *b = (lk_cuda_bounds){.rows = batch->n_tokens + batch->padding, .wanted = batch->rows ? batch->n_rows : 0};
    b->tiles = (int32_t)power_of_two(lk_cuda_adapters_tiles(batch, NULL));
    if (front_bytes(b->rows, b->wanted, b->tiles) > t->room)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "batch_begin: %lld rows are more than lk_reserve made room for: limits.tokens",
                       (long long)b->rows);
    if (b->tiles) {
        b->ranks = cu->adapters.ranks;
        b->n_sites = batch->n_sites;
    }
    t->host[0] = batch->ids;
    t->host[1] = batch->positions;
    t->host[2] = batch->rows;
    t->ids = array(l, batch->ids, b->rows);
    t->positions = array(l, batch->positions, b->rows);
    t->rows = array(l, batch->rows, b->wanted);
    t->tiles = tiles(l, batch, b->tiles);
    t->page_tokens = kv ? kv->shape.page_tokens : 0;
    t->slots = kv ? slots(l, batch, b->rows, t->page_tokens) : NULL;
    b->arrays = (t->ids ? IDS : 0) | (t->positions ? POSITIONS : 0) | (t->rows ? ROWS : 0) | (t->slots ? SLOTS : 0);
    t->kv = (lk_cuda_kv_tables){.first = first, .next = first};
    t->whole = kv && attend(l, cu, batch, kv, first) && t->kv.next - t->kv.first == batch->n_sequences;
    return LK_OK;
}

/* entries: the adapters' as well. */
static lk_status send(lk_backend *be, const lk_batch *batch, const lk_kv *kv, int64_t first, bool entries)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_tables *t = &cu->tables;
    t->batch = NULL; /* nothing, until all of it is there */
    int turn = t->turn = (t->turn + 1) % LK_CUDA_TURNS;
    layout l = {t->turns[turn].host, t->device, 0};
    if (t->turns[turn].used) LK_TRY(lk_rt_event_wait(t->turns[turn].sent, &be->error));
    if (entries) LK_TRY(lk_cuda_adapters_begin(be, batch, l.host + t->room));
    LK_TRY(lay_out(be, &l, batch, kv, first));
    LK_TRY(lk_rt_copy(t->device, l.host, l.at, cu->stream, &be->error));
    LK_TRY(lk_rt_event_record(t->turns[turn].sent, cu->stream, &be->error));
    t->turns[turn].used = true;
    t->batch = batch;
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- what others call */

/* Training's batches bring their arrays along with each operation. */
lk_status lk_cuda_batch_begin(lk_backend *be, const lk_batch *batch)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_tables *t = &cu->tables;
    t->batch = NULL;
    t->whole = false;
    cu->serving = batch->n_sequences > 0 || (batch->of && batch->of->n_sequences > 0);
    if (!cu->serving) return LK_OK;
    if (batch->of && batch->n_segments == 0) return LK_OK; /* nothing asks for tables */
    if (batch->of) return send(be, batch, NULL, 0, false); /* the adapters are those of the batch it is of */
    return send(be, batch, cu->n_kvs == 1 ? cu->kv : NULL, 0, true);
}

lk_status lk_cuda_array(lk_backend *be, const int32_t **device, const int32_t *host, int64_t n)
{
    const lk_cuda_tables *t = &lk_cuda_of(be)->tables;
    const int32_t *const sent[] = {t->ids, t->positions, t->rows};
    for (int i = 0; i < 3 && t->batch; i++) {
        int64_t all = i == 2 ? t->bounds.wanted : t->bounds.rows;
        uintptr_t first = (uintptr_t)t->host[i], at = (uintptr_t)host;
        if (!sent[i] || at < first || at + (uintptr_t)n * sizeof *host > first + (uintptr_t)all * sizeof *host) continue;
        *device = sent[i] + (at - first) / sizeof *host;
        return LK_OK;
    }
    void *staged;
    LK_TRY(lk_cuda_stage(be, &staged, host, (size_t)n * sizeof *host));
    *device = staged;
    return LK_OK;
}

lk_status lk_cuda_tables_for(lk_backend *be, const lk_batch *batch, const lk_kv *kv, int64_t group, int64_t first)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_tables *t = &cu->tables;
    cu->kv = kv;
    bool same = t->batch == batch && t->page_tokens == kv->shape.page_tokens;
    if (same && group == 0) return LK_OK;
    if (same && group == t->group && t->kv.first == first && t->kv.next > first) return LK_OK;
    if (cu->steps.recording) return lk_fail(&be->error, LK_ERR_INTERNAL, "a recorded step wants tables that lk_batch_begin did not make");
    if (group) t->group = group;
    LK_TRY(send(be, batch, kv, first, false));
    if (group == 0 || t->kv.next > first) return LK_OK;
    return lk_fail(&be->error, LK_ERR_INTERNAL,
                   "paged attention: a sequence of %lld positions does not fit what lk_reserve made: limits too small",
                   (long long)batch->sequences[first].length);
}
