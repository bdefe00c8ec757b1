/* Causal attention within documents for training, in blocks of 64 queries and 64 keys on packed products (FlashAttention-2, Dao 2023):
 * the scores of a block exist only in the cache. Blocks start at the document's first row, so a document gives the same bits packed
 * or alone.
 *
 * The unit of work is one key/value head of one document: its keys and values are packed once and used by all query heads of the
 * group. In backward that unit also owns dk and dv, whose sums over heads and queries therefore run in one order at any number of
 * threads. Forward splits a unit by query blocks when there are more threads than units. Backward does not: dk would need partial
 * sums per thread, or every score twice. */
#include "kernels/cpu/attention.h"

#include <math.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

enum { BLOCK = LK_KEY_BLOCK };

typedef struct attention_args {
    const lk_gemm *gemm;
    const lk_rows *rows;
    const lk_batch *batch;
    const lk_attention_shape *shape;
    const lk_tensor *q, *k, *v, *o, *dout, *dq, *dk, *dv;
    float *lse;          /* forward */
    const float *lse_in; /* backward */
    char *scratch;       /* per thread */
    size_t thread_bytes;
    int threads;
    int64_t slices; /* of the query blocks of a unit */
} attention_args;

/* The scratch of one thread. Panels of key block j begin at j times their size. */
typedef struct workspace {
    char *k_right, *v_right;   /* [keys, D] */
    char *k_turned, *v_turned; /* [D, keys] */
    char *q_left, *dout_left, *q_turned, *dout_turned;
    char *p_left;                /* 64 x 64 */
    float *s, *dp, *slope, *sum; /* [64, 64] three times (slope: backward only), [64, D] */
    float *dk, *dv;              /* [rows of the document, D] */
} workspace;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static size_t by_head(const lk_gemm *g, int64_t head_dim) { return lk_gemm_panel_bytes(g, BLOCK, head_dim); }
static size_t by_key(const lk_gemm *g, int64_t head_dim) { return lk_gemm_panel_bytes(g, head_dim, BLOCK); }

/* Lays a workspace out from `base` (NULL only to measure) for documents of up to `length` rows. Returns its size. */
static size_t lay_out(workspace *w, char *base, const lk_gemm *g, int64_t length, int64_t head_dim, bool backward)
{
    int64_t blocks = (length + BLOCK - 1) / BLOCK;
    size_t head = lk_carved(by_head(g, head_dim)), key = lk_carved(by_key(g, head_dim)), at = 0;
    struct piece {
        char **where;
        size_t bytes;
    } pieces[] = {{&w->k_right, (size_t)blocks * head},
                  {&w->v_right, backward ? (size_t)blocks * head : 0},
                  {&w->k_turned, backward ? (size_t)blocks * key : 0},
                  {&w->v_turned, backward ? 0 : (size_t)blocks * key},
                  {&w->q_left, head},
                  {&w->dout_left, backward ? head : 0},
                  {&w->q_turned, backward ? key : 0},
                  {&w->dout_turned, backward ? key : 0},
                  {&w->p_left, lk_carved(lk_gemm_panel_bytes(g, BLOCK, BLOCK))}};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        *pieces[i].where = base + at;
        at += pieces[i].bytes;
    }
    w->s = (float *)(void *)(base + at);
    w->dp = w->s + BLOCK * BLOCK;
    w->slope = w->dp + BLOCK * BLOCK;
    w->sum = w->slope + (backward ? BLOCK * BLOCK : 0);
    w->dk = w->sum + BLOCK * head_dim;
    w->dv = w->dk + length * head_dim;
    return lk_carved(at + (size_t)((backward ? 3 : 2) * BLOCK * BLOCK + (BLOCK + (backward ? 2 * length : 0)) * head_dim) * sizeof(float));
}

static size_t thread_bytes(const lk_gemm *g, int64_t length, int64_t head_dim, bool backward)
{
    static char origin[1]; /* only an address to measure from */
    workspace w;
    return lay_out(&w, origin, g, length, head_dim, backward);
}

size_t lk_cpu_attention_scratch(const lk_backend *be, const lk_limits *l)
{
    if (!l->training || l->head_dim == 0) return 0;
    const lk_gemm *g = lk_gemm_get(lk_cpu_of_const(be)->tier, be->compute);
    size_t forward = thread_bytes(g, l->tokens, l->head_dim, false), backward = thread_bytes(g, l->tokens, l->head_dim, true);
    return (size_t)be->threads * (forward > backward ? forward : backward);
}

/* c[left_rows, right_rows] (+)= left * right over `depth` of the contraction. Between lk_gemm_begin and lk_gemm_end. */
static void product(const attention_args *a, float *c, int64_t ldc, const char *left, int64_t left_rows, const char *right,
                    int64_t right_rows, int64_t depth, bool add)
{
    int64_t pitch = (int64_t)lk_gemm_panel_bytes(a->gemm, 1, depth);
    lk_gemm_pass pass = {.c = c,
                         .down = ldc,
                         .across = 1,
                         .left = left,
                         .right = right,
                         .left_rows = left_rows,
                         .right_rows = right_rows,
                         .left_pitch = pitch,
                         .right_pitch = pitch,
                         .tiles = lk_tiles_along(depth),
                         .mode = add ? LK_GEMM_ADD : LK_GEMM_SET,
                         .partial = false};
    a->gemm->multiply(&pass);
}

/* One key/value head of one document. */
typedef struct unit {
    const attention_args *a;
    workspace w;
    int64_t begin, length, kv_head, blocks;
    size_t head_panel, key_panel;
} unit;

static const float *head_of(const lk_tensor *t, int64_t row, int64_t head, int64_t head_dim) { return lk_row_of(t, row) + head * head_dim; }
static float *head_out(const lk_tensor *t, int64_t row, int64_t head, int64_t head_dim) { return lk_row_of(t, row) + head * head_dim; }

/* What n queries of block i see of key block j. */
static void visible(const lk_attention_shape *s, int64_t i, int64_t j, int64_t n, int *first, int *last)
{
    bool all = j < i && s->window == 0;
    for (int64_t r = 0; r < n; r++) {
        first[r] = 0;
        last[r] = BLOCK;
        if (!all) lk_visible(s, i * BLOCK + r, j * BLOCK, &first[r], &last[r]);
    }
}

static int64_t block_rows(const unit *u, int64_t block) { return smaller(BLOCK, u->length - block * BLOCK); }

static void pack_keys(const unit *u, bool backward)
{
    const attention_args *a = u->a;
    int64_t D = a->shape->head_dim;
    for (int64_t j = 0; j < u->blocks; j++) {
        int64_t row = u->begin + j * BLOCK, n = block_rows(u, j);
        const float *k = head_of(a->k, row, u->kv_head, D), *v = head_of(a->v, row, u->kv_head, D);
        lk_gemm_pack_right(a->gemm, u->w.k_right + (size_t)j * u->head_panel, lk_factor_rows(k, LK_F32, a->k->stride), 0, n, 0, D);
        if (backward) {
            lk_gemm_pack_right(a->gemm, u->w.v_right + (size_t)j * u->head_panel, lk_factor_rows(v, LK_F32, a->v->stride), 0, n, 0, D);
            lk_gemm_pack_right(a->gemm, u->w.k_turned + (size_t)j * u->key_panel, lk_factor_columns(k, LK_F32, a->k->stride), 0, D, 0, n);
        } else {
            lk_gemm_pack_right(a->gemm, u->w.v_turned + (size_t)j * u->key_panel, lk_factor_columns(v, LK_F32, a->v->stride), 0, D, 0, n);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- forward */

/* Query block i of head h. */
static void forward_block(const unit *u, int64_t i, int64_t h)
{
    const attention_args *a = u->a;
    int64_t D = a->shape->head_dim, n = block_rows(u, i), row = u->begin + i * BLOCK;
    float top[BLOCK], sum[BLOCK], shrink[BLOCK], *s = u->w.s, *out = u->w.sum;
    int first[BLOCK], last[BLOCK];
    lk_gemm_pack_left(a->gemm, u->w.q_left, lk_factor_rows(head_of(a->q, row, h, D), LK_F32, a->q->stride), 0, n, 0, D);
    memset(out, 0, (size_t)(n * D) * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        top[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    for (int64_t j = lk_first_block(a->shape, i * BLOCK); j <= i; j++) {
        int64_t keys = block_rows(u, j);
        product(a, s, BLOCK, u->w.q_left, n, u->w.k_right + (size_t)j * u->head_panel, keys, D, false);
        visible(a->shape, i, j, n, first, last);
        for (int64_t r = 0; r < n && a->shape->cap > 0.0f; r++) lk_cap_scores(a->shape, s + r * BLOCK, first[r], last[r]);
        a->rows->softmax(s, (int)n, first, last, a->shape->scale, top, sum, shrink);
        for (int64_t r = 0; r < n; r++)
            if (shrink[r] != 1.0f) a->rows->scale(out + r * D, shrink[r], D);
        lk_gemm_pack_left(a->gemm, u->w.p_left, lk_factor_rows(s, LK_F32, BLOCK), 0, n, 0, keys);
        product(a, out, D, u->w.p_left, n, u->w.v_turned + (size_t)j * u->key_panel, D, keys, true);
    }
    for (int64_t r = 0; r < n; r++) {
        float *o = head_out(a->o, row + r, h, D);
        memcpy(o, out + r * D, (size_t)D * sizeof(float));
        a->rows->scale(o, 1.0f / sum[r], D);
        if (a->lse) a->lse[(row + r) * a->shape->heads + h] = top[r] + logf(sum[r]);
    }
}

static void forward_unit(unit *u, int64_t slice)
{
    int64_t group = u->a->shape->heads / u->a->shape->kv_heads, period = 2 * u->a->slices;
    pack_keys(u, false);
    for (int64_t h = u->kv_head * group; h < (u->kv_head + 1) * group; h++)
        for (int64_t i = 0; i < u->blocks; i++) /* there and back, so that every slice gets long and short rows */
            if (i % period == slice || i % period == period - 1 - slice) forward_block(u, i, h);
}

/* ---------------------------------------------------------------------------------------------- backward */

/* What backward_block keeps of its query rows. */
typedef struct query_stats {
    float lse[BLOCK], delta[BLOCK]; /* delta = dout . o */
} query_stats;

/* Caps the scores and keeps the cap's slope: 1 - tanh^2, where tanh is the capped score over the cap. */
static void cap_block(const unit *u, int64_t n, const int *first, const int *last)
{
    const lk_attention_shape *shape = u->a->shape;
    for (int64_t r = 0; r < n; r++) {
        float *s = u->w.s + r * BLOCK, *slope = u->w.slope + r * BLOCK, in = shape->scale / shape->cap;
        lk_cap_scores(shape, s, first[r], last[r]);
        for (int j = first[r]; j < last[r]; j++) slope[j] = 1.0f - (s[j] * in) * (s[j] * in);
    }
}

/* Scores and their gradients of query block i against key block j: leaves p in s and ds in dp. */
static void score_gradients(const unit *u, int64_t i, int64_t j, const query_stats *stats)
{
    const attention_args *a = u->a;
    int64_t D = a->shape->head_dim, n = block_rows(u, i), keys = block_rows(u, j);
    int first[BLOCK], last[BLOCK];
    product(a, u->w.s, BLOCK, u->w.q_left, n, u->w.k_right + (size_t)j * u->head_panel, keys, D, false);
    product(a, u->w.dp, BLOCK, u->w.dout_left, n, u->w.v_right + (size_t)j * u->head_panel, keys, D, false);
    visible(a->shape, i, j, n, first, last);
    if (a->shape->cap > 0.0f) cap_block(u, n, first, last);
    a->rows->softmax_back(u->w.s, u->w.dp, (int)n, first, last, a->shape->scale, stats->lse, stats->delta);
    for (int64_t r = 0; r < n && a->shape->cap > 0.0f; r++)
        for (int c = first[r]; c < last[r]; c++) u->w.dp[r * BLOCK + c] *= u->w.slope[r * BLOCK + c];
}

/* Sums go to the workspace, whose rows lie together: in the tensors a tile's rows are so far apart that they fall out of the cache's
 * few ways. */
static void backward_block(const unit *u, int64_t i, int64_t h)
{
    const attention_args *a = u->a;
    int64_t D = a->shape->head_dim, n = block_rows(u, i), row = u->begin + i * BLOCK;
    const float *q = head_of(a->q, row, h, D), *dout = head_of(a->dout, row, h, D);
    float *dq = u->w.sum;
    query_stats stats;
    lk_gemm_pack_left(a->gemm, u->w.q_left, lk_factor_rows(q, LK_F32, a->q->stride), 0, n, 0, D);
    lk_gemm_pack_left(a->gemm, u->w.dout_left, lk_factor_rows(dout, LK_F32, a->dout->stride), 0, n, 0, D);
    lk_gemm_pack_right(a->gemm, u->w.q_turned, lk_factor_columns(q, LK_F32, a->q->stride), 0, D, 0, n);
    lk_gemm_pack_right(a->gemm, u->w.dout_turned, lk_factor_columns(dout, LK_F32, a->dout->stride), 0, D, 0, n);
    memset(dq, 0, (size_t)(n * D) * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        stats.lse[r] = a->lse_in[(row + r) * a->shape->heads + h];
        stats.delta[r] = a->rows->dot(dout + r * a->dout->stride, head_of(a->o, row + r, h, D), D);
    }
    for (int64_t j = lk_first_block(a->shape, i * BLOCK); j <= i; j++) {
        int64_t keys = block_rows(u, j);
        float *dk = u->w.dk + j * BLOCK * D, *dv = u->w.dv + j * BLOCK * D;
        score_gradients(u, i, j, &stats);
        lk_gemm_pack_left(a->gemm, u->w.p_left, lk_factor_rows(u->w.dp, LK_F32, BLOCK), 0, n, 0, keys);
        product(a, dq, D, u->w.p_left, n, u->w.k_turned + (size_t)j * u->key_panel, D, keys, true);
        lk_gemm_pack_left(a->gemm, u->w.p_left, lk_factor_columns(u->w.dp, LK_F32, BLOCK), 0, keys, 0, n);
        product(a, dk, D, u->w.p_left, keys, u->w.q_turned, D, n, true);
        lk_gemm_pack_left(a->gemm, u->w.p_left, lk_factor_columns(u->w.s, LK_F32, BLOCK), 0, keys, 0, n);
        product(a, dv, D, u->w.p_left, keys, u->w.dout_turned, D, n, true);
    }
    for (int64_t r = 0; r < n; r++) memcpy(head_out(a->dq, row + r, h, D), dq + r * D, (size_t)D * sizeof(float));
}

static void backward_unit(unit *u)
{
    const attention_args *a = u->a;
    int64_t group = a->shape->heads / a->shape->kv_heads, D = a->shape->head_dim;
    pack_keys(u, true);
    memset(u->w.dk, 0, (size_t)(u->length * D) * sizeof(float));
    memset(u->w.dv, 0, (size_t)(u->length * D) * sizeof(float));
    for (int64_t h = u->kv_head * group; h < (u->kv_head + 1) * group; h++)
        for (int64_t i = 0; i < u->blocks; i++) backward_block(u, i, h);
    for (int64_t t = 0; t < u->length; t++) {
        memcpy(head_out(a->dk, u->begin + t, u->kv_head, D), u->w.dk + t * D, (size_t)D * sizeof(float));
        memcpy(head_out(a->dv, u->begin + t, u->kv_head, D), u->w.dv + t * D, (size_t)D * sizeof(float));
    }
}

/* ---------------------------------------------------------------------------------------------- sharing the work */

/* Items are dealt round: neighbours are heads of one document and cost the same. */
static void work(void *context, int64_t begin, int64_t end, int thread)
{
    const attention_args *a = context;
    int64_t heads = a->shape->kv_heads, D = a->shape->head_dim, items = a->batch->n_docs * heads * a->slices;
    (void)begin, (void)end;
    for (int64_t item = thread; item < items; item += a->threads) {
        int64_t doc = item / (heads * a->slices), slice = item % a->slices;
        unit u = {.a = a, .begin = a->batch->doc_starts[doc], .kv_head = item / a->slices % heads};
        u.length = a->batch->doc_starts[doc + 1] - u.begin;
        if (u.length == 0) continue;
        u.blocks = (u.length + BLOCK - 1) / BLOCK;
        u.head_panel = lk_carved(by_head(a->gemm, D));
        u.key_panel = lk_carved(by_key(a->gemm, D));
        lay_out(&u.w, a->scratch + (size_t)thread * a->thread_bytes, a->gemm, u.length, D, a->dq != NULL);
        lk_gemm_begin(a->gemm);
        if (a->dq)
            backward_unit(&u);
        else
            forward_unit(&u, slice);
        lk_gemm_end(a->gemm);
    }
}

static lk_status run(lk_backend *be, attention_args *a, const char *op)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    int64_t longest = 0, units = a->batch->n_docs * a->shape->kv_heads;
    for (int64_t d = 0; d < a->batch->n_docs; d++) {
        int64_t length = a->batch->doc_starts[d + 1] - a->batch->doc_starts[d];
        if (length > longest) longest = length;
    }
    if (longest == 0) return LK_OK;
    void *scratch;
    a->gemm = lk_gemm_get(cpu->tier, be->compute);
    a->rows = lk_rows_get(cpu->tier);
    a->threads = be->threads;
    a->thread_bytes = thread_bytes(a->gemm, longest, a->shape->head_dim, a->dq != NULL);
    a->slices = a->dq || units >= be->threads ? 1 : smaller((be->threads + units - 1) / units, (longest + BLOCK - 1) / BLOCK);
    LK_TRY(lk_cpu_scratch(be, op, (size_t)be->threads * a->thread_bytes, &scratch));
    a->scratch = scratch;
    lk_pool_each(cpu->pool, work, a);
    return LK_OK;
}

lk_status lk_cpu_attention(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *o, float *lse,
                           const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    attention_args a = {.batch = batch, .shape = shape, .q = q, .k = k, .v = v, .o = o, .lse = lse};
    return run(be, &a, "attention");
}

lk_status lk_cpu_attention_backward(lk_backend *be, const lk_batch *batch, const lk_attention_shape *shape, const lk_tensor *dq,
                                    const lk_tensor *dk, const lk_tensor *dv, const lk_tensor *dout, const lk_tensor *o, const float *lse,
                                    const lk_tensor *q, const lk_tensor *k, const lk_tensor *v)
{
    attention_args a = {
        .batch = batch, .shape = shape, .q = q, .k = k, .v = v, .o = o, .dout = dout, .dq = dq, .dk = dk, .dv = dv, .lse_in = lse};
    return run(be, &a, "attention_backward");
}
