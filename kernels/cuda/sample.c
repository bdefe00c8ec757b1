/* The host's half of sampling on the device: requests become one block of words in pinned memory, sent in one copy; answers come back into
 * pinned memory behind an event.
 *
 * Room. The words of a group hold the requests and their lists. A list is a request's whole context when it asks for penalties, so the room
 * is that of every row's context up to LISTS_MOST words, and never less than one row can need (each token of the vocabulary once in each
 * list): a sampling whose lists do not fit goes in several groups. Between groups the host waits for the copy, which few will ever see.
 *
 * Rejected: a copy of the logits to work on (131 MB for 256 rows of 128256): the few logits that a request changes are changed in place and
 * put back by the same sampling, under which nothing else runs. */
#include "kernels/cuda/sample.h"

#include <string.h>

#include "kernels/cuda/cuda.h"

enum { ROW_WORDS = sizeof(lk_cuda_sample_row) / 4, HEAD_WORDS = LK_CUDA_SAMPLE_ROWS * (ROW_WORDS + 4), LISTS_MOST = 1 << 20 };
enum { VOCAB_MOST = 1 << 19 }; /* masses of 2^44 each are summed in 64 bits */

/* ---------------------------------------------------------------------------------------------- memory */

typedef struct sizes {
    int64_t rows, words;
} sizes;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* What sampling has room for under these limits; nothing where no batch of sequences will come. */
static sizes sizes_for(const lk_limits *l)
{
    if (!l->serving || !l->vocab) return (sizes){0};
    int64_t one = 5 * l->vocab, all = smaller(smaller(l->tokens, LK_CUDA_SAMPLE_ROWS) * 2 * smaller(l->context, l->vocab), LISTS_MOST);
    return (sizes){l->tokens, HEAD_WORDS + (one > all ? one : all)};
}

/* Where the parts of the device's block begin, and behind the last its size. */
static void layout(const sizes *s, size_t at[6])
{
    const size_t parts[5] = {(size_t)s->words * sizeof(int32_t), (size_t)s->words * sizeof(float), (size_t)s->rows * sizeof(int32_t),
                             (size_t)s->rows * sizeof(int32_t), (size_t)s->rows * sizeof(lk_sample_result)};
    at[0] = 0;
    for (int i = 0; i < 5; i++) at[i + 1] = at[i] + lk_cuda_carved(parts[i]);
}

size_t lk_cuda_sampler_bytes(const lk_limits *limits)
{
    sizes s = sizes_for(limits);
    size_t at[6];
    layout(&s, at);
    return at[5];
}

void lk_cuda_sampler_unreserve(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_sampler *s = &cu->sampler;
    lk_cuda_step_forget(be);                    /* recordings name `drawn` */
    if (s->memory) lk_cuda_free(be, s->memory); /* waits for what uses it */
    for (int i = 0; i < 2; i++) {
        lk_rt_host_free(s->words[i]);
        lk_rt_host_free(s->answers[i]);
        if (s->answered[i]) lk_rt_event_destroy(s->answered[i]);
    }
    *s = (lk_cuda_sampler){0};
    cu->drawn = NULL;
}

static lk_status take_memory(lk_backend *be, lk_cuda_sampler *s, const sizes *room)
{
    size_t at[6];
    void *p;
    layout(room, at);
    for (int i = 0; i < 2; i++) {
        LK_TRY(lk_rt_host_malloc(&p, (size_t)room->words * sizeof(int32_t), &be->error));
        s->words[i] = p;
        LK_TRY(lk_rt_host_malloc(&p, (size_t)room->rows * sizeof(lk_sample_result), &be->error));
        s->answers[i] = p;
        LK_TRY(lk_rt_event_create(&s->answered[i], &be->error));
    }
    LK_TRY(lk_cuda_alloc(be, at[5], &s->memory));
    char *m = s->memory;
    s->sent = (int32_t *)(void *)(m + at[0]);
    s->saved = (float *)(void *)(m + at[1]);
    s->kept = (int32_t *)(void *)(m + at[2]);
    s->drawn = (int32_t *)(void *)(m + at[3]);
    s->results = (lk_sample_result *)(void *)(m + at[4]);
    return LK_OK;
}

lk_status lk_cuda_sampler_reserve(lk_backend *be, const lk_limits *limits)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_sampler *s = &cu->sampler;
    sizes room = sizes_for(limits);
    if (room.rows <= s->rows_room && room.words <= s->words_room) return LK_OK;
    if (s->begun > s->ended) return lk_fail(&be->error, LK_ERR_INTERNAL, "lk_reserve while a sampling is under way");
    if (room.rows < s->rows_room) room.rows = s->rows_room;
    if (room.words < s->words_room) room.words = s->words_room;
    lk_cuda_sampler_unreserve(be);
    LK_TRY(take_memory(be, s, &room));
    s->rows_room = room.rows;
    s->words_room = room.words;
    cu->drawn = s->drawn;
    return LK_OK;
}

/* ---------------------------------------------------------------------------------------------- words */

static bool penalised(const lk_sample_request *q)
{
    return q->repetition_penalty != 1.0f || q->presence_penalty != 0.0f || q->frequency_penalty != 0.0f;
}

static int64_t list_words(const lk_sample_request *q)
{
    return 2 * (int64_t)q->n_bias + q->n_banned + (penalised(q) ? 2 * (int64_t)q->n_seen : 0);
}

static void append(int32_t *words, int64_t *at, const void *from, int32_t n)
{
    if (n) memcpy(words + *at, from, (size_t)n * 4);
    *at += n;
}

/* One request and its lists, which go to words[*at]. */
static lk_cuda_sample_row pack_row(int32_t *words, int64_t *at, int32_t *saved, const lk_sample_request *q, int64_t vocab)
{
    bool penalties = penalised(q);
    lk_cuda_sample_row r = {.counter = q->counter,
                            .key = q->key,
                            .temperature = q->temperature,
                            .top_p = q->top_p,
                            .min_p = q->min_p,
                            .repetition = q->repetition_penalty,
                            .presence = q->presence_penalty,
                            .frequency = q->frequency_penalty,
                            .top_k = q->top_k < vocab ? q->top_k : 0,
                            .n_logprobs = q->n_logprobs,
                            .pending = penalties ? q->pending : 0,
                            .n_bias = q->n_bias,
                            .n_seen = penalties ? q->n_seen : 0,
                            .n_banned = q->n_banned,
                            .words = (int32_t)*at,
                            .saved = *saved};
    int32_t ids = r.n_bias + r.n_seen + r.n_banned;
    r.changed = ids > 0 || r.pending;
    *saved += ids + (r.pending ? 1 : 0);
    append(words, at, q->bias_ids, r.n_bias);
    append(words, at, q->seen, r.n_seen);
    append(words, at, q->banned, r.n_banned);
    append(words, at, q->bias, r.n_bias);
    append(words, at, q->seen_counts, r.n_seen);
    return r;
}

/* Requests from group->first on, as many as fit; returns the words they take. */
static int64_t pack(int32_t *words, const lk_cuda_sampler *s, const lk_sample_request *requests, lk_cuda_sample_group *g)
{
    int32_t most = (int32_t)smaller(g->logits->rows - g->first, LK_CUDA_SAMPLE_ROWS);
    int64_t room = s->words_room - HEAD_WORDS;
    for (g->n = 0; g->n < most; g->n++) {
        room -= list_words(&requests[g->first + g->n]);
        if (room < 0) break;
    }
    lk_cuda_sample_row *rows = (lk_cuda_sample_row *)(void *)words;
    int32_t lists[4][LK_CUDA_SAMPLE_ROWS], *n[4] = {&g->n_changed, &g->n_reporting, &g->n_sampled, &g->n_cut}, saved = 0;
    int64_t at = (int64_t)g->n * (ROW_WORDS + 4);
    for (int i = 0; i < 4; i++) *n[i] = 0;
    for (int32_t i = 0; i < g->n; i++) {
        lk_cuda_sample_row r = pack_row(words, &at, &saved, &requests[g->first + i], g->logits->cols);
        rows[i] = r;
        bool sampled = r.temperature > 0.0f;
        const bool in[4] = {r.changed, r.n_logprobs > 0, sampled, sampled && (r.top_k > 0 || r.top_p < 1.0f)};
        for (int l = 0; l < 4; l++)
            if (in[l]) lists[l][(*n[l])++] = i;
    }
    int64_t list = (int64_t)g->n * ROW_WORDS;
    for (int l = 0; l < 4; l++) append(words, &list, lists[l], *n[l]);
    return at;
}

/* ---------------------------------------------------------------------------------------------- the operation */

static lk_status check_room(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests)
{
    const lk_cuda_sampler *s = &lk_cuda_of(be)->sampler;
    if (s->begun - s->ended == 2) return lk_fail(&be->error, LK_ERR_INTERNAL, "sample: two samplings are under way already");
    if (logits->cols > VOCAB_MOST)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "sample: a vocabulary of %lld; at most %d", (long long)logits->cols, VOCAB_MOST);
    if (logits->rows > s->rows_room || 5 * logits->cols > s->words_room - HEAD_WORDS)
        return lk_fail(&be->error, LK_ERR_INTERNAL,
                       "sample: %lld rows of %lld logits are more than lk_reserve made room for: limits.tokens, limits.vocab and "
                       "limits.serving",
                       (long long)logits->rows, (long long)logits->cols);
    for (int64_t r = 0; r < logits->rows; r++) {
        const lk_sample_request *q = &requests[r];
        if (q->n_bias > logits->cols || q->n_seen > logits->cols || q->n_banned > logits->cols)
            return lk_fail(&be->error, LK_ERR_INTERNAL, "sample: a list of row %lld is longer than the vocabulary", (long long)r);
        if (q->pending < 0 || (q->pending > 0 && (s->begun == s->ended || q->pending > s->rows[(s->begun + 1) % 2])))
            return lk_fail(&be->error, LK_ERR_INTERNAL, "sample: row %lld awaits the token of row %d of a sampling that is not under way",
                           (long long)r, q->pending - 1);
    }
    return LK_OK;
}

static lk_status queue(lk_backend *be, int slot, const lk_tensor *logits, const lk_sample_request *requests)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_sampler *s = &cu->sampler;
    lk_cuda_sample_group g = {.logits = logits, .before = s->drawn};
    for (; g.first < logits->rows; g.first += g.n) {
        if (g.first > 0) LK_TRY(lk_rt_stream_sync(cu->stream, &be->error)); /* the words before these are on their way */
        int64_t words = pack(s->words[slot], s, requests, &g);
        if (g.first == 0 && g.n < logits->rows) {
            LK_TRY(lk_rt_copy(s->kept, s->drawn, (size_t)s->rows_room * sizeof(int32_t), cu->stream, &be->error));
            g.before = s->kept;
        }
        LK_TRY(lk_rt_copy(s->sent, s->words[slot], (size_t)words * sizeof(int32_t), cu->stream, &be->error));
        LK_TRY(lk_cuda_sample_queue(be, &g));
    }
    size_t bytes = (size_t)logits->rows * sizeof(lk_sample_result);
    LK_TRY(lk_rt_copy(s->answers[slot], s->results, bytes, cu->stream, &be->error));
    return lk_rt_event_record(s->answered[slot], cu->stream, &be->error);
}

lk_status lk_cuda_sample_begin(lk_backend *be, const lk_tensor *logits, const lk_sample_request *requests)
{
    lk_cuda_sampler *s = &lk_cuda_of(be)->sampler;
    LK_TRY(check_room(be, logits, requests));
    int slot = (int)(s->begun % 2);
    lk_status status = queue(be, slot, logits, requests);
    if (status) {
        lk_error ignored;
        (void)lk_rt_stream_sync(lk_cuda_of(be)->stream, &ignored); /* the slot's memory is written again by the next one */
        return status;
    }
    s->rows[slot] = logits->rows;
    s->begun++;
    return LK_OK;
}

lk_status lk_cuda_sample_end(lk_backend *be, lk_sample_result *results)
{
    lk_cuda_sampler *s = &lk_cuda_of(be)->sampler;
    if (s->begun == s->ended) return lk_fail(&be->error, LK_ERR_INTERNAL, "sample_end: no sampling is under way");
    int slot = (int)(s->ended++ % 2);
    LK_TRY(lk_rt_event_wait(s->answered[slot], &be->error));
    memcpy(results, s->answers[slot], (size_t)s->rows[slot] * sizeof *results);
    for (int64_t r = 0; r < s->rows[slot]; r++)
        if (results[r].token < 0)
            return lk_fail(&be->error, LK_ERR_FORMAT, "sample: row %lld has no finite logit: the model or the adapter is broken",
                           (long long)r);
    return LK_OK;
}
