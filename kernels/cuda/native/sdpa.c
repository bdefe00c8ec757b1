/* kernels/cuda/sdpa.h over cuDNN: which plans a call takes, where they are kept, and how a backward is cut so that its workspace stays
 * small. The graphs themselves are in sdpa_graph.c.
 *
 * Forward: one plan for (documents, longest document), both rounded up to powers of two; the documents that are not there have no rows.
 * cuDNN needs no workspace for it.
 *
 * Backward: the repeatable algorithm of cuDNN 9 writes a bf16 value for every query and key of every document and head, documents * heads *
 * longest^2 * 2 bytes: 302 MB for one document of 2048 rows and 32 heads, 4.4 GB for one of 8192; and with a hundred short documents beside
 * one long one the padding alone would be many times that. So documents are sorted into classes by length (powers of two), and a class is
 * done in pieces: as many heads of as many documents at a time as fit the workspace that the caller has. Where not even the query heads
 * that share a key head fit for one document, a few of them go at a time, and what each piece contributes to dk and dv is kept in bf16 and
 * added up by head_sums.cu. The bits follow from the document and the size of the workspace.
 *
 * Rejected: one call for everything (the workspace above); the algorithm with an fp32 accumulator for dq (adds in an arbitrary order);
 * graphs of dynamic shape with a kernel cache (in 9.19 a forward plan then takes 2 ms instead of half a second after the first, but the
 * backward has no such engine, and they would be other kernels than the ones everybody runs).
 *
 * Only compute capability 9.0: for 8.x and 12.x cuDNN has no repeatable backward over packed documents, and for 10.x only in one
 * hand-picked engine (cudnn-frontend, node/scaled_dot_product_flash_attention.h); there attention runs on the module's own kernels. A plan
 * is compiled by cuDNN when it is made, which takes about half a second. */
#include "kernels/cuda/sdpa.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/head_sums.h"
#include "kernels/cuda/native/sdpa_described.h"
#include "kernels/cuda/native/sdpa_graph.h"

enum { PLANS = 192, SHAPES = 16, SHORTEST = 128, ALIGN = 256 };
/* Workspace asked for per token of a batch: at this many bytes a document of 2048 rows has 8 of its heads in flight, a tile of 128 rows
 * for every multiprocessor of an H200. */
enum { BYTES_PER_TOKEN = 40 << 10 };

typedef struct kept_plan {
    lk_sdpa_spec spec;
    lk_sdpa_plan *plan;
} kept_plan;

typedef struct kept_answer {
    lk_sdpa_shape shape;
    bool yes;
} kept_answer;

struct lk_sdpa {
    lk_cudnn *dnn;
    kept_plan plans[PLANS];
    int n_plans, next_out;
    kept_answer answers[SHAPES]; /* of lk_sdpa_supports */
    int n_answers;
    int32_t *numbers; /* lengths and offsets on their way to the device; grows to the most documents seen */
    size_t numbers_cap;
    lk_sdpa_report report;
};

/* ---------------------------------------------------------------------------------------------------------------- creation */

static lk_status create(lk_sdpa **sdpa, const char *json, lk_error *err)
{
    *sdpa = NULL;
    lk_sdpa *s = calloc(1, sizeof *s);
    if (!s) return lk_fail(err, LK_ERR_MEMORY, "no memory for the table of attention plans");
    lk_status status = lk_cudnn_open(&s->dnn, json, err);
    if (status) {
        free(s);
        return status;
    }
    *sdpa = s;
    return LK_OK;
}

lk_status lk_sdpa_create_described(lk_sdpa **sdpa, const char *device_json, lk_error *err) { return create(sdpa, device_json, err); }

lk_status lk_sdpa_create(lk_sdpa **sdpa, const lk_rt_device *device, lk_error *err)
{
    *sdpa = NULL;
    if (device->major != 9 || device->minor != 0)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "cuDNN has no repeatable attention over packed documents for sm_%d%d (%s)", device->major,
                       device->minor, device->name);
    return create(sdpa, NULL, err);
}

void lk_sdpa_destroy(lk_sdpa *sdpa)
{
    if (!sdpa) return;
    for (int i = 0; i < sdpa->n_plans; i++) lk_sdpa_plan_destroy(sdpa->plans[i].plan, sdpa->dnn);
    lk_cudnn_close(sdpa->dnn);
    free(sdpa->numbers);
    free(sdpa);
}

lk_sdpa_report lk_sdpa_reported(const lk_sdpa *sdpa) { return sdpa->report; }

/* ------------------------------------------------------------------------------------------------------------------- plans */

static int64_t power_of_two(int64_t n)
{
    int64_t p = 1;
    while (p < n) p *= 2;
    return p;
}

static int64_t length_class(int64_t rows) { return rows <= SHORTEST ? SHORTEST : power_of_two(rows); }

static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* The plan of a spec, made when it is not there yet. When the table is full the oldest goes, after the queue has passed it. */
static lk_status plan_of(lk_sdpa *sdpa, const lk_sdpa_spec *spec, lk_rt_stream stream, lk_sdpa_plan **plan, lk_error *err)
{
    for (int i = 0; i < sdpa->n_plans; i++) {
        if (memcmp(&sdpa->plans[i].spec, spec, sizeof *spec)) continue;
        *plan = sdpa->plans[i].plan;
        return LK_OK;
    }
    LK_TRY(lk_sdpa_plan_create(plan, sdpa->dnn, spec, err));
    sdpa->report.plans_made++;
    int at = sdpa->n_plans;
    if (at == PLANS) {
        at = sdpa->next_out;
        sdpa->next_out = (at + 1) % PLANS;
        lk_status status = sdpa->dnn->described ? LK_OK : lk_rt_stream_sync(stream, err);
        if (status) {
            lk_sdpa_plan_destroy(*plan, sdpa->dnn);
            return status;
        }
        lk_sdpa_plan_destroy(sdpa->plans[at].plan, sdpa->dnn);
    } else {
        sdpa->n_plans++;
    }
    sdpa->plans[at].spec = *spec;
    sdpa->plans[at].plan = *plan;
    return LK_OK;
}

static lk_sdpa_spec forward_spec(const lk_sdpa_shape *s, int64_t docs, int64_t longest, const lk_sdpa_forward_args *args)
{
    lk_sdpa_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.docs = docs, spec.longest = longest;
    spec.heads = s->heads, spec.kv_heads = s->kv_heads, spec.head_dim = s->head_dim, spec.window = s->window;
    spec.stats = args->lse != NULL;
    spec.stride[LK_SDPA_Q] = args->q.stride, spec.stride[LK_SDPA_K] = args->k.stride, spec.stride[LK_SDPA_V] = args->v.stride;
    spec.stride[LK_SDPA_O] = args->o.stride;
    if (args->lse) spec.stride[LK_SDPA_STATS] = s->heads;
    return spec;
}

static lk_sdpa_spec backward_spec(const lk_sdpa_shape *s, int64_t docs, int64_t longest, int64_t heads, const lk_sdpa_backward_args *args)
{
    lk_sdpa_spec spec;
    memset(&spec, 0, sizeof spec);
    spec.docs = docs, spec.longest = longest;
    spec.heads = heads, spec.kv_heads = heads < s->heads / s->kv_heads ? 1 : heads / (s->heads / s->kv_heads), spec.head_dim = s->head_dim,
    spec.window = s->window;
    spec.backward = spec.stats = 1;
    spec.stride[LK_SDPA_Q] = args->q.stride, spec.stride[LK_SDPA_K] = args->k.stride, spec.stride[LK_SDPA_V] = args->v.stride;
    spec.stride[LK_SDPA_O] = args->o.stride, spec.stride[LK_SDPA_DOUT] = args->dout.stride;
    spec.stride[LK_SDPA_DQ] = args->dq.stride, spec.stride[LK_SDPA_DK] = args->dk.stride, spec.stride[LK_SDPA_DV] = args->dv.stride;
    spec.stride[LK_SDPA_STATS] = spec.stride[LK_SDPA_SUM] = s->heads;
    return spec;
}

/* Asked once a shape: makes the smallest plan of both directions, because only cuDNN knows what its engines take. A window changes nothing
 * about it. Head sizes that are no multiple of 16 have a functional fault with packed sums (cudnn-frontend refuses to pack them). */
bool lk_sdpa_supports(lk_sdpa *sdpa, const lk_sdpa_shape *shape)
{
    if (!sdpa || shape->heads <= 0 || shape->kv_heads <= 0 || shape->heads % shape->kv_heads || shape->head_dim % 16) return false;
    for (int i = 0; i < sdpa->n_answers; i++) {
        const lk_sdpa_shape *known = &sdpa->answers[i].shape;
        if (known->heads == shape->heads && known->kv_heads == shape->kv_heads && known->head_dim == shape->head_dim)
            return sdpa->answers[i].yes;
    }
    int64_t q = shape->heads * shape->head_dim, kv = shape->kv_heads * shape->head_dim;
    float lse;
    lk_sdpa_rows q_rows = {NULL, q}, kv_rows = {NULL, kv};
    lk_sdpa_forward_args f = {q_rows, kv_rows, kv_rows, q_rows, &lse};
    lk_sdpa_backward_args b = {q_rows, kv_rows, kv_rows, q_rows, q_rows, q_rows, kv_rows, kv_rows, &lse};
    lk_sdpa_spec specs[2] = {forward_spec(shape, 1, SHORTEST, &f), backward_spec(shape, 1, SHORTEST, shape->heads, &b)};
    bool yes = true;
    for (int i = 0; i < 2 && yes; i++) {
        lk_sdpa_plan *plan;
        yes = lk_sdpa_plan_create(&plan, sdpa->dnn, &specs[i], NULL) == LK_OK;
        if (yes) lk_sdpa_plan_destroy(plan, sdpa->dnn);
    }
    if (sdpa->n_answers == SHAPES) sdpa->n_answers = 0; /* more shapes than models have: forget */
    sdpa->answers[sdpa->n_answers++] = (kept_answer){*shape, yes};
    return yes;
}

/* What a call of this shape met with: cuDNN is not asked again when it has refused after all. */
static lk_status remember(lk_sdpa *sdpa, const lk_sdpa_shape *shape, lk_status status, const lk_error *err)
{
    if (status != LK_ERR_UNSUPPORTED) return status;
    lk_log(LK_LOG_WARN, "cuDNN's attention is not used any more: %s", err ? err->message : "it refused");
    for (int i = 0; i < sdpa->n_answers; i++) {
        lk_sdpa_shape *known = &sdpa->answers[i].shape;
        if (known->heads == shape->heads && known->kv_heads == shape->kv_heads && known->head_dim == shape->head_dim)
            sdpa->answers[i].yes = false;
    }
    return status;
}

/* --------------------------------------------------------------------------------------------------------------- workspace */

size_t lk_sdpa_backward_bytes(int64_t docs, int64_t longest, int64_t heads, int64_t kv_heads, int64_t head_dim)
{
    size_t cells = (size_t)docs * (size_t)heads * (size_t)longest, bytes = cells * (size_t)longest * 2;
    if (heads != kv_heads) bytes += 2 * cells * (size_t)head_dim * 2; /* dk and dv of every query head, before they are added */
    return bytes + (size_t)docs * 512 + 4096;                         /* its notes on where documents lie */
}

/* Lengths and offsets of every part, each array at 16 bytes. A class of n documents has parts of together 2 n places at most, and n parts
 * at most, in each of which an array has one place more and up to three before the next: 6 n numbers. */
static size_t numbers_bytes(int64_t docs) { return aligned((size_t)(LK_SDPA_LENGTHS + 1) * (size_t)(6 * docs) * sizeof(int32_t)); }

static size_t sum_bytes(const lk_sdpa_shape *shape, int64_t tokens)
{
    return aligned((size_t)tokens * (size_t)shape->heads * sizeof(float));
}

/* What pieces of a group contribute to dk and dv: [T, pieces, D] bf16 each. */
static size_t pieces_bytes(const lk_sdpa_shape *shape, int64_t tokens, int64_t pieces)
{
    return 2 * aligned((size_t)tokens * (size_t)pieces * (size_t)shape->head_dim * 2);
}

/* For one document of a class, `heads` of a group at a time. */
static size_t piece_bytes(const lk_sdpa_shape *shape, int64_t tokens, int64_t longest, int64_t heads)
{
    int64_t group = shape->heads / shape->kv_heads;
    return lk_sdpa_backward_bytes(1, longest, heads, 1, shape->head_dim) + (heads < group ? pieces_bytes(shape, tokens, group / heads) : 0);
}

size_t lk_sdpa_workspace_bytes(lk_sdpa *sdpa, const lk_sdpa_shape *shape, int64_t tokens, bool training)
{
    (void)sdpa;
    if (!training) return numbers_bytes(tokens);
    int64_t longest = length_class(tokens);
    size_t least = piece_bytes(shape, tokens, longest, 1);
    size_t most = lk_sdpa_backward_bytes(1, longest, shape->heads, shape->kv_heads, shape->head_dim);
    size_t wanted = (size_t)tokens * BYTES_PER_TOKEN;
    if (wanted > most) wanted = most; /* short batches: room for one document as long as all of it */
    if (wanted < least) wanted = least;
    return numbers_bytes(tokens) + sum_bytes(shape, tokens) + aligned(wanted);
}

/* ----------------------------------------------------------------------------------------------------------------- running */

/* Documents of one plan. */
typedef struct part {
    int64_t docs, longest; /* of the plan */
    int64_t heads;         /* at a time */
    const int32_t *rows;   /* which documents: their index, [n] */
    int64_t n;
    int32_t *lengths;                  /* [docs] */
    int32_t *offsets[LK_SDPA_LENGTHS]; /* [docs+1] */
} part;

typedef struct numbers {
    int32_t *host;
    char *device;
    size_t used, cap; /* in numbers */
} numbers;

static lk_status check_call(const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const int64_t *strides, size_t n_strides, lk_error *err)
{
    if (shape->heads <= 0 || shape->kv_heads <= 0 || shape->heads % shape->kv_heads || shape->head_dim <= 0 || shape->head_dim % 8)
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: %lld heads, %lld key heads of %lld", (long long)shape->heads,
                       (long long)shape->kv_heads, (long long)shape->head_dim);
    if (docs->n <= 0 || docs->starts[0] != 0 || docs->starts[docs->n] != docs->tokens)
        return lk_fail(err, LK_ERR_ARGUMENT, "attention: documents must run from row 0 to the last, %lld", (long long)docs->tokens);
    for (size_t i = 0; i < n_strides; i++) {
        if (strides[i] % 8)
            return lk_fail(err, LK_ERR_ARGUMENT, "attention: a row stride of %lld is no multiple of 8", (long long)strides[i]);
        if (docs->tokens > INT32_MAX / strides[i])
            return lk_fail(err, LK_ERR_UNSUPPORTED, "attention: %lld rows of %lld values are more than cuDNN's 32-bit offsets reach",
                           (long long)docs->tokens, (long long)strides[i]);
    }
    return LK_OK;
}

static int32_t *take(numbers *n, size_t count)
{
    int32_t *at = n->host + n->used;
    n->used += (count + 3) / 4 * 4;
    return at;
}

static void *on_device(const numbers *n, const int32_t *at) { return n->device + (at - n->host) * (ptrdiff_t)sizeof(int32_t); }

/* Writes a part's lengths and offsets; tensors of the same stride share an array. Documents that are not there have no rows and begin where
 * the last row ends: offsets never fall. */
static void write_part(part *p, numbers *n, const lk_sdpa_docs *docs, const lk_sdpa_spec *spec)
{
    p->lengths = take(n, (size_t)p->docs);
    for (int64_t i = 0; i < p->docs; i++) p->lengths[i] = i < p->n ? docs->starts[p->rows[i] + 1] - docs->starts[p->rows[i]] : 0;
    for (int t = 0; t < LK_SDPA_LENGTHS; t++) {
        p->offsets[t] = NULL;
        if (!spec->stride[t]) continue;
        for (int u = 0; u < t && !p->offsets[t]; u++)
            if (spec->stride[u] == spec->stride[t]) p->offsets[t] = p->offsets[u];
        if (p->offsets[t]) continue;
        p->offsets[t] = take(n, (size_t)p->docs + 1);
        for (int64_t i = 0; i <= p->docs; i++)
            p->offsets[t][i] = (int32_t)((i < p->n ? docs->starts[p->rows[i]] : docs->tokens) * spec->stride[t]);
    }
}

/* Room for the numbers of a call on the host; the order of documents follows them. */
static lk_status make_room(lk_sdpa *sdpa, const lk_sdpa_docs *docs, void *workspace, size_t workspace_bytes, numbers *n, int32_t **order,
                           lk_error *err)
{
    size_t bytes = numbers_bytes(docs->n), cap = bytes + (size_t)docs->n * sizeof(int32_t);
    if (workspace_bytes < bytes)
        return lk_fail(err, LK_ERR_INTERNAL, "attention: a workspace of %zu bytes for %lld documents, %zu are needed", workspace_bytes,
                       (long long)docs->n, bytes);
    if (sdpa->numbers_cap < cap) {
        int32_t *grown = realloc(sdpa->numbers, cap * 2);
        if (!grown) return lk_fail(err, LK_ERR_MEMORY, "no memory for the offsets of %lld documents", (long long)docs->n);
        sdpa->numbers = grown;
        sdpa->numbers_cap = cap * 2;
    }
    *n = (numbers){.host = sdpa->numbers, .device = workspace, .cap = bytes / sizeof(int32_t)};
    *order = sdpa->numbers + n->cap;
    return LK_OK;
}

static lk_status begin(lk_sdpa *sdpa, const numbers *n, lk_rt_stream stream, lk_error *err)
{
    if (n->used > n->cap) return lk_fail(err, LK_ERR_INTERNAL, "attention: %zu offsets where %zu were reserved", n->used, n->cap);
    if (sdpa->dnn->described) return LK_OK;
    LK_TRY(lk_rt_copy(n->device, n->host, n->used * sizeof(int32_t), stream, err));
    cudnnStatus_t s = sdpa->dnn->cudnnSetStream(sdpa->dnn->handle, stream);
    return s ? lk_cudnn_refused(sdpa->dnn, err, s, "attention: choosing the stream") : LK_OK;
}

static lk_status run_plan(lk_sdpa *sdpa, const lk_sdpa_spec *spec, const lk_sdpa_pointers *pointers, void *workspace,
                          size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    lk_sdpa_plan *plan;
    LK_TRY(plan_of(sdpa, spec, stream, &plan, err));
    size_t wants = lk_sdpa_plan_workspace(plan);
    if (wants > workspace_bytes) /* another cuDNN than the one whose figures are known */
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "attention: cuDNN wants %zu bytes of workspace for %lld documents of %lld rows and %lld heads, %zu are there", wants,
                       (long long)spec->docs, (long long)spec->longest, (long long)spec->heads, workspace_bytes);
    lk_sdpa_report *r = &sdpa->report;
    r->runs++;
    if (wants > r->largest_workspace) r->largest_workspace = wants;
    r->last_docs = spec->docs, r->last_longest = spec->longest, r->last_heads = spec->heads, r->last_engine = lk_sdpa_plan_engine(plan);
    return lk_sdpa_plan_run(plan, sdpa->dnn, pointers, workspace, err);
}

static lk_status forward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_forward_args *args,
                         void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    int64_t strides[] = {args->q.stride, args->k.stride, args->v.stride, args->o.stride};
    LK_TRY(check_call(shape, docs, strides, sizeof strides / sizeof *strides, err));
    numbers n;
    int32_t *order;
    LK_TRY(make_room(sdpa, docs, workspace, workspace_bytes, &n, &order, err));
    for (int64_t i = 0; i < docs->n; i++) order[i] = (int32_t)i;
    part p = {.docs = power_of_two(docs->n), .longest = length_class(docs->longest), .heads = shape->heads, .rows = order, .n = docs->n};
    lk_sdpa_spec spec = forward_spec(shape, p.docs, p.longest, args);
    write_part(&p, &n, docs, &spec);
    LK_TRY(begin(sdpa, &n, stream, err));

    lk_sdpa_pointers at = {.scale = shape->scale};
    at.tensor[LK_SDPA_Q] = args->q.data, at.tensor[LK_SDPA_K] = args->k.data, at.tensor[LK_SDPA_V] = args->v.data;
    at.tensor[LK_SDPA_O] = args->o.data, at.tensor[LK_SDPA_STATS] = args->lse;
    at.lengths = on_device(&n, p.lengths);
    for (int t = 0; t < LK_SDPA_LENGTHS; t++)
        if (p.offsets[t]) at.offsets[t] = on_device(&n, p.offsets[t]);
    size_t before = numbers_bytes(docs->n);
    return run_plan(sdpa, &spec, &at, (char *)workspace + before, workspace_bytes - before, stream, err);
}

/* How many heads and documents of a class go together: all heads and as many documents as fit; or as many groups of heads of one document;
 * or as many heads of a group. */
static lk_status cut(const lk_sdpa_shape *shape, int64_t tokens, int64_t longest, int64_t n, size_t bytes, int64_t *docs, int64_t *heads,
                     lk_error *err)
{
    int64_t group = shape->heads / shape->kv_heads, d = shape->head_dim;
    *docs = power_of_two(n);
    while (*docs > 1 && lk_sdpa_backward_bytes(*docs, longest, shape->heads, shape->kv_heads, d) > bytes) *docs /= 2;
    for (int64_t kv = shape->kv_heads; kv > 0; kv--) {
        *heads = kv * group;
        if (shape->kv_heads % kv == 0 && lk_sdpa_backward_bytes(*docs, longest, *heads, kv, d) <= bytes) return LK_OK;
    }
    for (*heads = group - 1; *heads > 0; --*heads)
        if (group % *heads == 0 && piece_bytes(shape, tokens, longest, *heads) <= bytes) return LK_OK;
    return lk_fail(err, LK_ERR_MEMORY,
                   "attention: the backward of a document of up to %lld rows needs %zu bytes of workspace, %zu are there",
                   (long long)longest, piece_bytes(shape, tokens, longest, 1), bytes);
}

static void *heads_on(const lk_sdpa_rows *rows, int64_t values) { return (char *)rows->data + values * 2; }

/* Where a call's memory is. */
typedef struct room_for {
    float *sum;
    char *rest; /* cuDNN's, and before it what pieces of groups contribute */
    size_t bytes;
} room_for;

static void place(lk_sdpa_pointers *at, const part *p, const numbers *n)
{
    at->lengths = on_device(n, p->lengths);
    for (int t = 0; t < LK_SDPA_LENGTHS; t++)
        if (p->offsets[t]) at->offsets[t] = on_device(n, p->offsets[t]);
}

/* The query heads from h on, and the key heads from h / group on. */
static void place_heads(lk_sdpa_pointers *at, const lk_sdpa_shape *shape, const lk_sdpa_backward_args *args, float *sum, int64_t h)
{
    int64_t q = h * shape->head_dim, kv = h / (shape->heads / shape->kv_heads) * shape->head_dim;
    at->tensor[LK_SDPA_Q] = heads_on(&args->q, q), at->tensor[LK_SDPA_DQ] = heads_on(&args->dq, q);
    at->tensor[LK_SDPA_O] = heads_on(&args->o, q), at->tensor[LK_SDPA_DOUT] = heads_on(&args->dout, q);
    at->tensor[LK_SDPA_K] = heads_on(&args->k, kv), at->tensor[LK_SDPA_DK] = heads_on(&args->dk, kv);
    at->tensor[LK_SDPA_V] = heads_on(&args->v, kv), at->tensor[LK_SDPA_DV] = heads_on(&args->dv, kv);
    at->tensor[LK_SDPA_STATS] = (void *)(uintptr_t)(args->lse + h); /* read only; cuDNN takes every pointer as void * */
    at->tensor[LK_SDPA_SUM] = sum + h;
}

/* All heads of a part, whole groups at a time. */
static lk_status run_groups(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const part *p, const numbers *n, const lk_sdpa_backward_args *args,
                            const room_for *room, lk_rt_stream stream, lk_error *err)
{
    lk_sdpa_spec spec = backward_spec(shape, p->docs, p->longest, p->heads, args);
    lk_sdpa_pointers at = {.scale = shape->scale};
    place(&at, p, n);
    for (int64_t h = 0; h < shape->heads; h += p->heads) {
        place_heads(&at, shape, args, room->sum, h);
        LK_TRY(run_plan(sdpa, &spec, &at, room->rest, room->bytes, stream, err));
    }
    return LK_OK;
}

/* All heads of a part's one document, some of a group at a time; `pieces` are the arguments with the places of the contributions as dk and
 * dv (pieces_of), for which the part's offsets were written. */
static lk_status run_pieces(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const part *p, const numbers *n, const lk_sdpa_docs *docs,
                            const lk_sdpa_backward_args *args, const lk_sdpa_backward_args *pieces, const room_for *room,
                            lk_rt_stream stream, lk_error *err)
{
    int64_t d = shape->head_dim, group = shape->heads / shape->kv_heads, count = group / p->heads;
    int64_t begin = docs->starts[p->rows[0]], length = docs->starts[p->rows[0] + 1] - begin;
    size_t taken = pieces_bytes(shape, docs->tokens, count);
    lk_sdpa_spec spec = backward_spec(shape, p->docs, p->longest, p->heads, pieces);
    lk_sdpa_pointers at = {.scale = shape->scale};
    place(&at, p, n);
    for (int64_t h = 0; h < shape->heads; h += p->heads) {
        int64_t piece = h % group / p->heads, kv = h / group * d;
        place_heads(&at, shape, args, room->sum, h);
        at.tensor[LK_SDPA_DK] = heads_on(&pieces->dk, piece * d);
        at.tensor[LK_SDPA_DV] = heads_on(&pieces->dv, piece * d);
        LK_TRY(run_plan(sdpa, &spec, &at, room->rest + taken, room->bytes - taken, stream, err));
        if (piece < count - 1 || sdpa->dnn->described) continue;
        LK_TRY(lk_cuda_head_sums(heads_on(&args->dk, begin * args->dk.stride + kv), args->dk.stride,
                                 heads_on(&pieces->dk, begin * count * d), length, count, d, stream, err));
        LK_TRY(lk_cuda_head_sums(heads_on(&args->dv, begin * args->dv.stride + kv), args->dv.stride,
                                 heads_on(&pieces->dv, begin * count * d), length, count, d, stream, err));
    }
    return LK_OK;
}

static lk_sdpa_backward_args pieces_of(const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_backward_args *args,
                                       int64_t heads, const room_for *room)
{
    int64_t count = shape->heads / shape->kv_heads / heads;
    lk_sdpa_backward_args pieces = *args;
    pieces.dk = (lk_sdpa_rows){room->rest, count * shape->head_dim};
    pieces.dv = (lk_sdpa_rows){room->rest + pieces_bytes(shape, docs->tokens, count) / 2, count * shape->head_dim};
    return pieces;
}

static lk_status backward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_backward_args *args,
                          void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    int64_t strides[] = {args->q.stride,    args->k.stride,  args->v.stride,  args->o.stride,
                         args->dout.stride, args->dq.stride, args->dk.stride, args->dv.stride};
    LK_TRY(check_call(shape, docs, strides, sizeof strides / sizeof *strides, err));
    numbers n;
    int32_t *order;
    LK_TRY(make_room(sdpa, docs, workspace, workspace_bytes, &n, &order, err));
    size_t before = numbers_bytes(docs->n) + sum_bytes(shape, docs->tokens);
    if (workspace_bytes < before)
        return lk_fail(err, LK_ERR_INTERNAL, "attention: a workspace of %zu bytes for a backward over %lld rows", workspace_bytes,
                       (long long)docs->tokens);
    room_for room = {(float *)(void *)((char *)workspace + numbers_bytes(docs->n)), (char *)workspace + before, workspace_bytes - before};
    int64_t group = shape->heads / shape->kv_heads;

    /* Two passes over the same parts, because all their numbers go to the device in one copy before the first of them runs. */
    for (int running = 0; running < 2; running++) {
        n.used = 0;
        int64_t ordered = 0;
        for (int64_t longest = SHORTEST; longest <= length_class(docs->longest); longest *= 2) {
            int64_t first = ordered, at_once = 1, heads = shape->heads;
            for (int64_t i = 0; i < docs->n; i++) {
                int64_t rows = docs->starts[i + 1] - docs->starts[i];
                if (rows > 0 && length_class(rows) == longest) order[ordered++] = (int32_t)i;
            }
            if (first == ordered) continue;
            LK_TRY(cut(shape, docs->tokens, longest, ordered - first, room.bytes, &at_once, &heads, err));
            lk_sdpa_backward_args used = heads < group ? pieces_of(shape, docs, args, heads, &room) : *args;
            for (int64_t i = first; i < ordered; i += at_once) {
                int64_t count = ordered - i < at_once ? ordered - i : at_once;
                part p = {.docs = at_once, .longest = longest, .heads = heads, .rows = order + i, .n = count};
                lk_sdpa_spec spec = backward_spec(shape, p.docs, p.longest, p.heads, &used);
                write_part(&p, &n, docs, &spec);
                if (!running) continue;
                LK_TRY(heads < group ? run_pieces(sdpa, shape, &p, &n, docs, args, &used, &room, stream, err)
                                     : run_groups(sdpa, shape, &p, &n, args, &room, stream, err));
            }
        }
        if (!running) LK_TRY(begin(sdpa, &n, stream, err));
    }
    return LK_OK;
}

lk_status lk_sdpa_forward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_forward_args *args,
                          void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    return remember(sdpa, shape, forward(sdpa, shape, docs, args, workspace, workspace_bytes, stream, err), err);
}

lk_status lk_sdpa_backward(lk_sdpa *sdpa, const lk_sdpa_shape *shape, const lk_sdpa_docs *docs, const lk_sdpa_backward_args *args,
                           void *workspace, size_t workspace_bytes, lk_rt_stream stream, lk_error *err)
{
    return remember(sdpa, shape, backward(sdpa, shape, docs, args, workspace, workspace_bytes, stream, err), err);
}
