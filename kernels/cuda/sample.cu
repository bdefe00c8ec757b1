/* From logits to tokens on the device: all rows in a few launches, several blocks a row, and never a sort of the vocabulary.
 *
 * A row is cut into pieces of 4096 logits, one block each. A logit's place in a row's order, larger values first and lower ids first among
 * equals, is one 64-bit key, so the largest key is the greedy token, "the first k" is all keys from some key on, and so is top-p. A chance
 * exp((x - top) / temperature) counts as a whole number of 2^-44: sums of whole numbers are the same in any order, by atomics too, so a
 * row's result depends on that row alone and repeats bit for bit.
 *
 *     scan     every row: the largest key of each piece and, where logprobs are wanted, the sum of exponentials of the raw logits
 *     report   rows that want alternatives: the best n keys of each piece, one after the other
 *     change   rows with bias, penalties or bans: changes those logits in place (finish puts them back), and scan again
 *     tally    rows with top-k or top-p: number and mass of the logits by distance from the top, in 512 steps of 1/16
 *     select   the same rows, one block each: the step in which the cut lies is known from the tally; its logits are gathered and ranked. A
 *              step that holds too many to rank (equal or nearly equal logits by the thousand) is halved by key until it does not
 *     weigh    rows that are drawn: the mass of what survived in each piece
 *     finish   every row: the piece and then the id where the running mass passes the draw; logprob and alternatives from the raw row
 *
 * Greedy rows take scan and finish, plain draws scan, weigh and finish; a launch without rows is left out.
 *
 * Against the CPU's sampling: the same order of processing, the same draw, and the same arithmetic for bias and penalties (nothing fused).
 * Greedy tokens, bans and top-k among distinct or equal logits are the CPU's; top-k is by logits here, by rounded chances there, which may
 * tell apart only what rounds to the same chance. A draw or a cut by top-p or min-p may differ where the running sum lies within 1e-5 of
 * its boundary. Chances below 2^-44 of the top's count as 0. Logprobs: exponentials in fp32, 4096 at a time, joined in double: 3e-6.
 *
 * Bytes a row: 4V scanned; drawn 8V; cut 16V, and 4V each for changed and reporting rows. At V = 128256 on an H200 (4.3 TB/s, and the
 * logits of up to 96 rows may still be in its L2), computed, with 2 us a launch: 1 row greedy 5 us, cut 20 us (one block reads the row once
 * at 190 GB/s); 256 rows greedy 35 us, drawn 66 us, cut 130 us, beside a step of 10 ms.
 *
 * Rejected: histograms of float masses (their order would have to be fixed); several rounds of radix select (each reads the row again). */
#include "kernels/cuda/sample_cuts.h"

/* ---------------------------------------------------------------------------------------------- scan and report: raw logits */

/* rows NULL: every row, raw; else these, changed. */
LK_KERNEL void sample_scan(sample_args a, const int32_t *rows)
{
    LK_SHARED(wide, part, 32);
    LK_SHARED(float, sums, 32);
    int32_t r = rows ? rows[blockIdx.y] : (int32_t)blockIdx.y, piece = (int32_t)blockIdx.x;
    float x[EACH];
    wide best = 0;
    load(x, a, row_of(a, r), piece * PIECE);
    LK_UNROLL
    for (int i = 0; i < EACH; i++) best = larger(best, key_of(x[i], place(piece * PIECE, i)));
    best = block_max(best, part);
    if (threadIdx.x == 0) piece_keys(a, r, !rows)[piece] = best;
    if (rows || a.rows[r].n_logprobs < 0) return;
    float top = key_value(best), sum = 0.0f;
    LK_UNROLL
    for (int i = 0; i < EACH; i++)
        if (key_of(x[i], 0)) sum += expf(lk_add_rn(x[i], -top));
    sum = lk_block_sum(sum, sums);
    if (threadIdx.x == 0) a.sums[(int64_t)r * a.pieces + piece] = sum;
}

LK_KERNEL void sample_report(sample_args a, const int32_t *rows)
{
    LK_SHARED(wide, part, 32);
    int32_t r = rows[blockIdx.y], piece = (int32_t)blockIdx.x;
    float x[EACH];
    wide last = ~(wide)0, *out = a.best + ((int64_t)r * a.pieces + piece) * LK_MAX_LOGPROBS;
    load(x, a, row_of(a, r), piece * PIECE);
    for (int n = 0; n < a.rows[r].n_logprobs; n++) {
        wide best = 0;
        LK_UNROLL
        for (int i = 0; i < EACH; i++) {
            wide key = key_of(x[i], place(piece * PIECE, i));
            if (key < last && key > best) best = key;
        }
        last = block_max(best, part);
        if (threadIdx.x == 0) out[n] = last;
    }
}

/* ---------------------------------------------------------------------------------------------- change */

typedef struct changes {
    const int32_t *ids; /* of bias, seen, banned */
    int32_t n;
    int32_t pending; /* the token, -1: none */
    float *saved;    /* [n], and the pending token's behind them */
} changes;

LK_DEVICE changes changes_of(const sample_args &a, const lk_cuda_sample_row &q, int32_t pending)
{
    changes c = {a.words + q.words, q.n_bias + q.n_seen + q.n_banned, pending, a.saved + q.saved};
    return c;
}

LK_DEVICE float penalise(const lk_cuda_sample_row &q, float x, int32_t count)
{
    x = x > 0.0f ? x / q.repetition : lk_mul_rn(x, q.repetition);
    return count > 0 ? lk_add_rn(x, -lk_add_rn(q.presence, lk_mul_rn(q.frequency, (float)count))) : x;
}

/* An id may be in the list of biases more than once: its first place takes them all, in order. */
LK_DEVICE void add_bias(float *row, const int32_t *ids, const float *bias, int32_t n, int32_t i)
{
    for (int32_t j = 0; j < i; j++)
        if (ids[j] == ids[i]) return;
    float x = row[ids[i]];
    for (int32_t j = i; j < n; j++)
        if (ids[j] == ids[i]) x = lk_add_rn(x, bias[j]);
    row[ids[i]] = x;
}

LK_KERNEL void sample_change(sample_args a, const int32_t *rows)
{
    LK_SHARED(int32_t, known, 1); /* the pending token is in the list of seen ones */
    int32_t r = rows[blockIdx.x], thread = (int32_t)threadIdx.x;
    const lk_cuda_sample_row q = a.rows[r];
    int32_t pending = q.pending ? a.before[q.pending - 1] : -1;
    if (pending >= a.vocab) pending = -1;
    changes c = changes_of(a, q, pending);
    const int32_t *seen = c.ids + q.n_bias, *banned = seen + q.n_seen;
    const float *bias = (const float *)(banned + q.n_banned);
    const int32_t *counts = (const int32_t *)(bias + q.n_bias);
    float *row = row_of(a, r);
    for (int32_t i = thread; i < c.n; i += THREADS) c.saved[i] = row[c.ids[i]];
    if (thread == 0) {
        known[0] = 0;
        a.pending[r] = pending;
        if (c.pending >= 0) c.saved[c.n] = row[c.pending];
    }
    lk_block_sync();
    for (int32_t i = thread; i < q.n_bias; i += THREADS) add_bias(row, c.ids, bias, q.n_bias, i);
    lk_block_sync();
    for (int32_t i = thread; i < q.n_seen; i += THREADS) {
        bool again = seen[i] == c.pending;
        if (again) known[0] = 1;
        row[seen[i]] = penalise(q, row[seen[i]], counts[i] + (again ? 1 : 0));
    }
    lk_block_sync();
    if (thread == 0 && c.pending >= 0 && !known[0]) row[c.pending] = penalise(q, row[c.pending], 1);
    lk_block_sync();
    for (int32_t i = thread; i < q.n_banned; i += THREADS) row[banned[i]] = -INFINITY;
}

/* All threads; what they wrote is seen by the block after its next barrier. */
LK_DEVICE void restore(const sample_args &a, int32_t r, float *row, const lk_cuda_sample_row &q)
{
    changes c = changes_of(a, q, a.pending[r]);
    for (int32_t i = (int32_t)threadIdx.x; i < c.n; i += (int32_t)blockDim.x) row[c.ids[i]] = c.saved[i];
    if (threadIdx.x == 0 && c.pending >= 0) row[c.pending] = c.saved[c.n];
}

/* ---------------------------------------------------------------------------------------------- weigh and finish */

typedef struct survival {
    scale scaled;
    float min_p;
    wide cut;
} survival;

LK_DEVICE survival survival_of(const sample_args &a, int32_t r, wide top)
{
    const lk_cuda_sample_row &q = a.rows[r];
    survival s = {{key_value(top), q.temperature}, q.min_p, q.top_k > 0 || q.top_p < 1.0f ? a.cuts[r] : 0};
    return s;
}
LK_DEVICE wide surviving(const survival &s, float x, int32_t id)
{
    wide key = key_of(x, id);
    if (!key || key < s.cut) return 0;
    float p = chance(s.scaled, x);
    return p >= s.min_p ? mass_of(p) : 0;
}

LK_KERNEL void sample_weigh(sample_args a, const int32_t *rows)
{
    LK_SHARED(wide, part, 32);
    int32_t r = rows[blockIdx.y], piece = (int32_t)blockIdx.x;
    float x[EACH];
    wide sum = 0;
    load(x, a, row_of(a, r), piece * PIECE);
    survival s = survival_of(a, r, top_key(a, piece_keys(a, r, false), part));
    LK_UNROLL
    for (int i = 0; i < EACH; i++) sum += surviving(s, x[i], place(piece * PIECE, i));
    sum = block_total(sum, part);
    if (threadIdx.x == 0) a.masses[(int64_t)r * a.pieces + piece] = sum;
}

/* The id of the piece where the running mass passes `at`, from the piece's beginning. */
LK_DEVICE void draw_in(const sample_args &a, const survival &s, const float *row, int32_t piece, wide at, wide *part, int32_t *token)
{
    int32_t first = piece * PIECE + (int32_t)threadIdx.x * EACH;
    wide masses[EACH], mine = 0, all;
    LK_UNROLL
    for (int i = 0; i < EACH; i++) {
        masses[i] = first + i < a.vocab ? surviving(s, row[first + i], first + i) : 0;
        mine += masses[i];
    }
    wide running = block_before(mine, part, &all);
    if (at < running || at >= running + mine) return;
    bool open = true;
    LK_UNROLL
    for (int i = 0; i < EACH; i++) {
        running += masses[i];
        if (open && at < running) {
            token[0] = first + i;
            open = false;
        }
    }
}

/* All threads; the token is in shared memory after the next barrier. */
LK_DEVICE void draw(const sample_args &a, int32_t r, wide top, wide *part, wide *told, int32_t *token)
{
    const wide *masses = a.masses + (int64_t)r * a.pieces;
    uint32_t random[4];
    wide total = 0;
    for (int32_t p = (int32_t)threadIdx.x; p < a.pieces; p += THREADS) total += masses[p];
    total = block_total(total, part);
    lk_philox(a.rows[r].key, 0, a.rows[r].counter, random);
    /* u * total with u = 24 bits / 2^24, rounded down: a whole running sum exceeds the one when it exceeds the other. */
    wide u = random[0] >> 8, at = u * (total >> 24) + (u * (total & 0xffffff) >> 24), earlier = 0;
    for (int32_t first = 0; first < a.pieces; first += THREADS) {
        int32_t p = first + (int32_t)threadIdx.x;
        wide mine = p < a.pieces ? masses[p] : 0, all, running = earlier + block_before(mine, part, &all);
        if (running <= at && at < running + mine) {
            told[0] = (wide)p;
            told[1] = at - running;
        }
        earlier += all;
    }
    lk_block_sync();
    draw_in(a, survival_of(a, r, top), row_of(a, r), (int32_t)told[0], told[1], part, token);
}

/* log sum exp of the raw row, in thread 0. */
LK_DEVICE double log_sum(const sample_args &a, int32_t r, const wide *keys, float top, double *terms)
{
    double sum = 0.0;
    for (int32_t first = 0; first < a.pieces; first += THREADS) {
        int32_t p = first + (int32_t)threadIdx.x;
        if (p < a.pieces) {
            float sum_here = a.sums[(int64_t)r * a.pieces + p];
            terms[threadIdx.x] = keys[p] ? (double)sum_here * exp((double)key_value(keys[p]) - (double)top) : 0.0;
        }
        lk_block_sync();
        if (threadIdx.x == 0)
            for (int32_t i = 0; i < THREADS && first + i < a.pieces; i++) sum += terms[i];
        lk_block_sync();
    }
    return (double)top + log(sum);
}

LK_DEVICE int32_t alternatives(const sample_args &a, int32_t r, double lse, wide *part, lk_sample_result *out)
{
    const wide *best = a.best + (int64_t)r * a.pieces * LK_MAX_LOGPROBS;
    wide last = ~(wide)0;
    int32_t n = 0, most = a.rows[r].n_logprobs;
    for (; n < most; n++) {
        wide next = 0;
        for (int32_t i = (int32_t)threadIdx.x; i < a.pieces * LK_MAX_LOGPROBS; i += THREADS) {
            if (i % LK_MAX_LOGPROBS >= most) continue;
            if (best[i] < last && best[i] > next) next = best[i];
        }
        last = block_max(next, part);
        if (!last) break;
        if (threadIdx.x == 0) {
            out->top_ids[n] = key_id(last);
            out->top_logprobs[n] = (float)((double)key_value(last) - lse);
        }
    }
    return n;
}

LK_KERNEL void sample_finish(sample_args a)
{
    LK_SHARED(wide, part, 32);
    LK_SHARED(wide, told, 2);
    LK_SHARED(double, terms, THREADS);
    LK_SHARED(int32_t, token, 1);
    int32_t r = (int32_t)blockIdx.x;
    const lk_cuda_sample_row q = a.rows[r];
    float *row = row_of(a, r);
    lk_sample_result *out = &a.results[r];
    wide top = top_key(a, piece_keys(a, r, false), part);
    if (threadIdx.x == 0) token[0] = top ? key_id(top) : -1;
    lk_block_sync();
    if (top && q.temperature > 0.0f) draw(a, r, top, part, told, token);
    lk_block_sync();
    if (q.changed) restore(a, r, row, q);
    lk_block_sync();
    int32_t drawn = token[0], n = 0;
    float logprob = 0.0f;
    if (drawn >= 0 && q.n_logprobs >= 0) {
        const wide *raw = piece_keys(a, r, true);
        double lse = log_sum(a, r, raw, key_value(top_key(a, raw, part)), terms);
        logprob = (float)((double)row[drawn] - lse);
        n = alternatives(a, r, lse, part, out);
    }
    if (threadIdx.x) return;
    out->token = drawn;
    out->logprob = logprob;
    out->n_top = n;
    a.drawn[r] = drawn < 0 ? 0 : drawn; /* whoever embeds it reads a row that exists */
}

/* ---------------------------------------------------------------------------------------------- launches */

typedef struct piece_sizes {
    size_t keys, sums, best, steps, cuts, pending;
} piece_sizes;

static int64_t pieces_of(int64_t vocab) { return (vocab + PIECE - 1) / PIECE; }

static size_t scratch_of(int64_t rows, int64_t vocab, piece_sizes *s)
{
    size_t n = (size_t)(rows * pieces_of(vocab));
    s->keys = lk_cuda_carved(n * sizeof(wide));
    s->sums = lk_cuda_carved(n * sizeof(float));
    s->best = lk_cuda_carved(n * LK_MAX_LOGPROBS * sizeof(wide));
    s->steps = lk_cuda_carved((size_t)rows * STEPS * sizeof(wide));
    s->cuts = lk_cuda_carved((size_t)rows * sizeof(wide));
    s->pending = lk_cuda_carved((size_t)rows * sizeof(int32_t));
    return 3 * s->keys + s->sums + s->best + 2 * s->steps + s->cuts + s->pending;
}

extern "C" size_t lk_cuda_sample_scratch(const lk_limits *l)
{
    piece_sizes sizes;
    int64_t rows = l->tokens < LK_CUDA_SAMPLE_ROWS ? l->tokens : LK_CUDA_SAMPLE_ROWS;
    return l->vocab ? scratch_of(rows, l->vocab, &sizes) : 0;
}

static lk_status arguments(lk_backend *be, const lk_cuda_sample_group *g, sample_args *a)
{
    const lk_cuda_sampler *s = &lk_cuda_of(be)->sampler;
    const lk_tensor *t = g->logits;
    piece_sizes sizes;
    void *rest;
    LK_TRY(lk_cuda_scratch(be, "sample", scratch_of(g->n, t->cols, &sizes), &rest));
    a->logits = (float *)t->data + g->first * t->stride;
    a->stride = t->stride;
    a->vocab = (int32_t)t->cols;
    a->pieces = (int32_t)pieces_of(t->cols);
    a->fours = (uintptr_t)t->data % 16 == 0 && t->stride % 4 == 0;
    a->rows = (const lk_cuda_sample_row *)s->sent;
    a->words = s->sent;
    a->before = g->before;
    a->saved = s->saved;
    a->tally_mass = (wide *)lk_cuda_carve(&rest, sizes.steps); /* these two behind one another: one filling */
    a->tally_count = (wide *)lk_cuda_carve(&rest, sizes.steps);
    a->raw_keys = (wide *)lk_cuda_carve(&rest, sizes.keys);
    a->changed_keys = (wide *)lk_cuda_carve(&rest, sizes.keys);
    a->masses = (wide *)lk_cuda_carve(&rest, sizes.keys);
    a->sums = (float *)lk_cuda_carve(&rest, sizes.sums);
    a->best = (wide *)lk_cuda_carve(&rest, sizes.best);
    a->cuts = (wide *)lk_cuda_carve(&rest, sizes.cuts);
    a->pending = (int32_t *)lk_cuda_carve(&rest, sizes.pending);
    a->results = s->results + g->first;
    a->drawn = s->drawn + g->first;
    return g->n_cut ? lk_rt_set(a->tally_mass, 0, 2 * sizes.steps, lk_cuda_of(be)->stream, &be->error) : LK_OK;
}

extern "C" lk_status lk_cuda_sample_queue(lk_backend *be, const lk_cuda_sample_group *g)
{
    lk_rt_stream stream = lk_cuda_of(be)->stream;
    sample_args a;
    LK_TRY(arguments(be, g, &a));
    const int32_t *changed = (const int32_t *)(a.rows + g->n), *reporting = changed + g->n_changed;
    const int32_t *sampled = reporting + g->n_reporting, *cut = sampled + g->n_sampled, *all = NULL;
    unsigned pieces = (unsigned)a.pieces;
    LK_LAUNCH("sample_scan", sample_scan, dim3(pieces, (unsigned)g->n), dim3(THREADS), 0, stream, a, all);
    LK_TRY(lk_rt_launched("sample_scan", &be->error));
    if (g->n_reporting) {
        LK_LAUNCH("sample_report", sample_report, dim3(pieces, (unsigned)g->n_reporting), dim3(THREADS), 0, stream, a, reporting);
        LK_TRY(lk_rt_launched("sample_report", &be->error));
    }
    if (g->n_changed) {
        LK_LAUNCH("sample_change", sample_change, dim3((unsigned)g->n_changed), dim3(THREADS), 0, stream, a, changed);
        LK_TRY(lk_rt_launched("sample_change", &be->error));
        LK_LAUNCH("sample_scan", sample_scan, dim3(pieces, (unsigned)g->n_changed), dim3(THREADS), 0, stream, a, changed);
        LK_TRY(lk_rt_launched("sample_scan", &be->error));
    }
    if (g->n_cut) {
        LK_LAUNCH("sample_tally", sample_tally, dim3(pieces, (unsigned)g->n_cut), dim3(THREADS), 0, stream, a, cut);
        LK_TRY(lk_rt_launched("sample_tally", &be->error));
        LK_LAUNCH("sample_select", sample_select, dim3((unsigned)g->n_cut), dim3(STEPS), 0, stream, a, cut);
        LK_TRY(lk_rt_launched("sample_select", &be->error));
    }
    if (g->n_sampled) {
        LK_LAUNCH("sample_weigh", sample_weigh, dim3(pieces, (unsigned)g->n_sampled), dim3(THREADS), 0, stream, a, sampled);
        LK_TRY(lk_rt_launched("sample_weigh", &be->error));
    }
    LK_LAUNCH("sample_finish", sample_finish, dim3((unsigned)g->n), dim3(THREADS), 0, stream, a);
    return lk_rt_launched("sample_finish", &be->error);
}
