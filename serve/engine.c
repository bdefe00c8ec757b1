/* The engine's thread and its loop; everything else is a part of its own: scheduler (which tokens), pages (where), registry (which
 * weights), batch (how the backend sees it), request (how the client hears of it), stats.
 *
 * The thread alone drives the model's backend and touches the scheduler. Other threads reach it through two doors: the bell, with the list
 * of arrivals behind its lock, and the registry with its own lock. The thread sleeps on the bell when it can compute nothing; whatever
 * could change that rings: an arrival, a cancellation, an adapter that came, went or failed, and stop. Nothing is allocated in the loop.
 *
 * Look-ahead. Where the backend can sample behind the host's back (lk_backend_ahead), step n+1 is planned and queued before the tokens of
 * step n are read: a flight is a step that was queued and whose tokens have not been read yet. The host's work then costs nothing while the
 * device computes. What runs on takes its last token from the device's own memory (lk_drawn), since the host does not have it yet; a
 * request that turns out to have ended has computed one token too many, which nobody reads. Elsewhere a flight lands before the next plan.
 *
 * Locks are taken one at a time, except that a request's lock may be held while its bell rings. */
#include "serve/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/batch.h"
#include "serve/engine_options.h"
#include "serve/stats.h"
#include "serve/warm.h"

/* Service units (VTC) by which adapters in memory may get ahead of one that waits for a place: about two long answers. Less means more
 * loading, more means longer waits for the one outside. */
enum { OVERTAKE = 4096 };

/* A step that was queued: whose tokens its sampling draws, row by row; NULL: the request has ended meanwhile. */
typedef struct flight {
    uint64_t step; /* 1, 2, ...; 0: none */
    lk_request **requests;
    int32_t n_rows;
} flight;

struct lk_engine {
    lk_model *model; /* borrowed */
    lk_engine_options options;
    lk_request_limits limits;
    lk_infer *infer;
    lk_kv *kv;
    size_t page_bytes;
    lk_pages pages;
    lk_scheduler scheduler;
    lk_batch_builder builder;
    lk_registry *registry;
    lk_stats stats;
    lk_flow base_flow;           /* requests without adapter */
    lk_sample_request *sampling; /* [max_running] */
    lk_sample_result *results;
    flight flights[2]; /* step n is flights[n % 2] */
    uint64_t steps;    /* queued so far */
    pthread_t thread;

    lk_bell bell;
    /* Under the bell's lock. */
    lk_request *arrivals, **arrivals_end;
    int64_t n_queued, base_queued; /* submitted and never admitted yet */
    uint64_t n_submitted;
    bool stop;
    bool warm_wanted; /* lk_engine_warm_up waits */
    bool keep_warm;   /* it was called: adapters that come later are warmed up too, when there is nothing else to do */
    bool warm_loaded; /* such a one has come */
    lk_status warm_status;
    lk_error warm_error;
    pthread_cond_t warmed;
};

static lk_request *request_of(lk_task *task) { return (lk_request *)(void *)task; }
static lk_version *version_of(lk_flow *flow) { return (lk_version *)(void *)flow; }

/* ------------------------------------------------------------------------------------------------ submission, any thread */

/* The last eighth of the queue is not for whoever fills it already, so that one adapter's flood does not refuse the others. */
static lk_status enqueue(lk_engine *e, lk_request *r, lk_error *err)
{
    lk_status status = LK_OK;
    int64_t limit = e->options.max_waiting, share = limit - limit / 8;
    pthread_mutex_lock(&e->bell.lock);
    int64_t *queued = r->version ? &r->version->queued : &e->base_queued;
    if (e->stop) {
        status = lk_fail(err, LK_ERR_INTERRUPTED, "the server is stopping");
    } else if (e->n_queued >= limit) {
        status =
            lk_fail(err, LK_ERR_BUSY, "%lld requests are waiting, as many as the queue holds: try again later", (long long)e->n_queued);
    } else if (*queued >= share) {
        status = lk_fail(err, LK_ERR_BUSY, "%lld requests for %s%s are waiting, as many as the queue holds of one model: try again later",
                         (long long)*queued, r->version ? "adapter " : "the base", r->adapter);
    } else {
        ++*queued;
        e->n_queued++;
        r->task.order = e->n_submitted++;
        *e->arrivals_end = r;
        e->arrivals_end = &r->next_arrival;
        e->bell.ringing = true;
        pthread_cond_signal(&e->bell.rung);
    }
    pthread_mutex_unlock(&e->bell.lock);
    if (status == LK_ERR_BUSY) lk_stats_refuse(&e->stats);
    return status;
}

lk_status lk_engine_submit(lk_engine *e, const lk_request_spec *spec, lk_request **request, lk_error *err)
{
    *request = NULL;
    lk_request *r = NULL;
    lk_version *version = NULL;
    lk_request_limits limits = e->limits;
    if (spec->adapter) {
        LK_TRY(lk_registry_pin(e->registry, spec->adapter, &version, err));
        limits.kv_tokens -= (int64_t)version->pages * limits.page_tokens; /* the request must fit beside its adapter */
    }
    lk_status status = lk_request_create(&r, spec, &limits, &e->bell, err);
    if (status) goto out;
    if (version) {
        memcpy(r->adapter, version->name, sizeof r->adapter);
        memcpy(r->digest, version->digest, sizeof r->digest);
        r->adapter_version = version->number;
    }
    r->version = version;
    r->task.flow = version ? &version->flow : &e->base_flow;
    if ((status = enqueue(e, r, err))) goto out;
    *request = r;
    return LK_OK;
out:
    if (version) {
        lk_registry_unpin(e->registry, version);
        lk_bell_ring(&e->bell); /* the pin may have kept memory that somebody waits for */
    }
    if (r) lk_request_discard(r);
    return status;
}

/* ------------------------------------------------------------------------------------------------ the loop */

/* Returns false when it is time to stop. */
static bool take_arrivals(lk_engine *e)
{
    pthread_mutex_lock(&e->bell.lock);
    lk_request *r = e->arrivals;
    e->arrivals = NULL;
    e->arrivals_end = &e->arrivals;
    e->bell.ringing = false;
    bool stop = e->stop;
    pthread_mutex_unlock(&e->bell.lock);
    while (r) {
        lk_request *next = r->next_arrival;
        lk_scheduler_add(&e->scheduler, &r->task);
        /* Cancelled already, maybe before the last look at the flag, which could not find it then. */
        if (atomic_load(&r->cancelled)) atomic_store(&e->bell.cancels, true);
        r = next;
    }
    return !stop;
}

static void leave_queue(lk_engine *e, lk_request *r)
{
    pthread_mutex_lock(&e->bell.lock);
    e->n_queued--;
    --*(r->version ? &r->version->queued : &e->base_queued);
    pthread_mutex_unlock(&e->bell.lock);
}

static void count_finish(lk_engine_stats *stats, const lk_request *r, lk_finish finish)
{
    switch (finish) {
    case LK_FINISH_STOP: stats->finished_stop++; break;
    case LK_FINISH_LENGTH: stats->finished_length++; break;
    case LK_FINISH_CANCELLED: stats->finished_cancelled++; break;
    case LK_FINISH_ERROR: stats->finished_error++; break;
    case LK_FINISH_NONE: break;
    }
    lk_histogram_add(&stats->end_to_end, lk_clock_seconds() - r->submitted);
}

static void leave_flight(flight *f, const lk_request *r)
{
    for (int32_t i = 0; f->step && i < f->n_rows; i++)
        if (f->requests[i] == r) f->requests[i] = NULL;
}

static void publish(lk_engine *e)
{
    lk_engine_stats *stats = &e->stats.mine;
    stats->running = e->scheduler.n_running;
    stats->waiting = e->scheduler.n_preempted; /* those never admitted are counted where they queue, lk_engine_get_stats adds them */
    stats->pages_total = e->pages.n_pages;
    stats->pages_adapters = e->pages.n_runs;
    stats->pages_used = e->pages.n_pages - e->pages.n_free - e->pages.n_runs;
    stats->page_tokens = e->pages.page_tokens;
    stats->preemptions = e->scheduler.preemptions;
    lk_stats_publish(&e->stats);
}

/* Gives back pages, place and pin, and counts, before the client hears of the end. Steps that are queued may still write to the pages:
 * whatever gets them next is queued behind those. */
static void end_request(lk_engine *e, lk_request *r, lk_finish finish, const lk_error *error)
{
    for (int i = 0; i < 2; i++) leave_flight(&e->flights[i], r);
    lk_scheduler_finish(&e->scheduler, &r->task);
    if (r->admitted == 0) leave_queue(e, r);
    if (r->version) lk_registry_unpin(e->registry, r->version);
    r->version = NULL;
    count_finish(&e->stats.mine, r, finish);
    publish(e);
    lk_request_end(r, finish, error);
    lk_request_unref(r);
}

static bool is_cancelled(const lk_task *task, void *context)
{
    (void)context;
    return atomic_load(&((const lk_request *)(const void *)task)->cancelled);
}

static void end_cancelled(lk_engine *e)
{
    if (!atomic_exchange(&e->bell.cancels, false)) return;
    for (lk_task *task; (task = lk_scheduler_find(&e->scheduler, is_cancelled, NULL));)
        end_request(e, request_of(task), LK_FINISH_CANCELLED, NULL);
}

/* Returns true when requests ended because their adapter cannot be read any more: then another plan may do better. */
static bool bring_in(lk_engine *e, lk_flow *wanted)
{
    lk_error reason;
    if (wanted == &e->base_flow) return false; /* what it waits for is that others end */
    if (!lk_registry_want(e->registry, version_of(wanted), lk_scheduler_most_pages(&e->scheduler), &e->scheduler.kept, &reason))
        return false;
    while (wanted->first) {
        lk_task *task = wanted->first;
        bool more = task->next != NULL; /* the flow goes with its last request */
        end_request(e, request_of(task), LK_FINISH_ERROR, &reason);
        if (!more) break;
    }
    return true;
}

static void note_admissions(lk_engine *e, const lk_plan *plan)
{
    for (int32_t i = 0; i < plan->n; i++) {
        if (plan->entries[i].task->n_cached) continue;
        lk_request *r = request_of(plan->entries[i].task);
        double waited = lk_request_admitted(r);
        if (waited < 0) continue;
        leave_queue(e, r);
        lk_histogram_add(&e->stats.mine.queue, waited);
    }
}

static void deliver(lk_engine *e, lk_request *r, const lk_sample_result *result)
{
    if (result->token < 0) {
        lk_error error;
        lk_fail(&error, LK_ERR_FORMAT, "no finite logit came out of %s%s: its weights are broken or overflow the compute type",
                r->version ? "adapter " : "the base model", r->adapter);
        lk_log(LK_LOG_WARN, "request ended: %s", error.message);
        end_request(e, r, LK_FINISH_ERROR, &error);
        return;
    }
    lk_engine_stats *stats = &e->stats.mine;
    double before = r->last_token;
    lk_finish finish = lk_request_push(r, result);
    stats->generated_tokens++;
    if (r->n_output == 1) {
        stats->prompt_tokens += r->n_prompt;
        lk_histogram_add(&stats->first_token, r->last_token - r->submitted);
    } else {
        lk_histogram_add(&stats->inter_token, r->last_token - before);
    }
    if (finish) end_request(e, r, finish, NULL);
}

/* The forward or the sampling as a whole has failed: nobody in the batch got an answer, and nobody else is touched. */
static void fail_batch(lk_engine *e, const lk_plan *plan, const lk_error *err)
{
    lk_log(LK_LOG_ERROR, "a batch of %d requests failed: %s", plan->n, err->message);
    for (int32_t i = 0; i < plan->n; i++) end_request(e, request_of(plan->entries[i].task), LK_FINISH_ERROR, err);
}

/* The step is queued: its tokens are in the cache and one more of each row is on its way. */
static void take_off(lk_engine *e)
{
    const lk_batch_builder *b = &e->builder;
    flight *f = &e->flights[++e->steps % 2];
    f->step = e->steps;
    f->n_rows = b->n_rows;
    lk_scheduler_commit(&e->scheduler);
    for (int32_t i = 0; i < b->n_rows; i++) {
        lk_request *r = f->requests[i] = b->requests[i];
        r->drawn_step = f->step;
        r->drawn_row = i;
        lk_task_generated(&r->task, r->task.n_tokens + 1 == r->n_prompt + r->max_tokens);
    }
    e->stats.mine.iterations++;
    if (b->batch.n_sequences > e->stats.mine.largest_batch) e->stats.mine.largest_batch = b->batch.n_sequences;
}

/* The tokens of a step have come: out they go. */
static void land(lk_engine *e, flight *f)
{
    if (!f->step) return;
    lk_error err = {0};
    lk_status status = LK_OK;
    if (f->n_rows && lk_backend_ahead(e->model->be)) {
        status = lk_sample_end(e->model->be, e->results);
        if (status == LK_ERR_FORMAT) status = LK_OK; /* some row has no finite logit; its token says which */
        if (status) lk_backend_fail(e->model->be, status, &err);
    }
    uint64_t step = f->step;
    f->step = 0;
    if (status) lk_log(LK_LOG_ERROR, "a step of %d requests failed: %s", f->n_rows, err.message);
    for (int32_t i = 0; i < f->n_rows; i++) {
        lk_request *r = f->requests[i];
        if (!r) continue;
        if (r->drawn_step == step) r->drawn_step = 0;
        if (status)
            end_request(e, r, LK_FINISH_ERROR, &err);
        else
            deliver(e, r, &e->results[i]);
    }
}

static lk_status sample(lk_engine *e, const lk_tensor *logits)
{
    const lk_batch_builder *b = &e->builder;
    for (int32_t i = 0; i < b->n_rows; i++) lk_request_sampling(b->requests[i], &e->sampling[i]);
    if (lk_backend_ahead(e->model->be)) return lk_sample_begin(e->model->be, logits, e->sampling);
    lk_status status = lk_sample(e->model->be, logits, e->sampling, e->results);
    return status == LK_ERR_FORMAT ? LK_OK : status; /* as in land */
}

static void step(lk_engine *e, const lk_plan *plan)
{
    lk_batch_builder *b = &e->builder;
    lk_tensor logits;
    lk_error err = {0};
    note_admissions(e, plan);
    lk_batch_build(b, plan);
    lk_status status = lk_infer_forward(e->infer, &b->batch, e->kv, b->rows, b->n_rows, &logits, &err);
    if (!status && b->n_rows && (status = sample(e, &logits))) lk_backend_fail(e->model->be, status, &err);
    if (status)
        fail_batch(e, plan, &err);
    else
        take_off(e);
}

static bool is_ringing(void *context)
{
    lk_engine *e = context;
    pthread_mutex_lock(&e->bell.lock);
    bool ringing = e->bell.ringing;
    pthread_mutex_unlock(&e->bell.lock);
    return ringing || atomic_load(&e->bell.cancels);
}

static lk_warm make_warm(lk_engine *e)
{
    return (lk_warm){.infer = e->infer,
                     .kv = e->kv,
                     .model = e->model,
                     .pages = &e->pages,
                     .registry = e->registry,
                     .most_pages = lk_scheduler_most_pages(&e->scheduler),
                     .most_rows = e->options.max_running,
                     .longest = e->options.max_model_len};
}

/* Whoever waits in lk_engine_warm_up hears of the end. */
static void warm_up(lk_engine *e, bool stopping)
{
    pthread_mutex_lock(&e->bell.lock);
    bool wanted = e->warm_wanted;
    pthread_mutex_unlock(&e->bell.lock);
    if (!wanted) return;
    lk_error err = {0};
    lk_warm w = make_warm(e);
    lk_status status = stopping ? lk_fail(&err, LK_ERR_INTERRUPTED, "the server is stopping") : lk_warm_up(&w, &err);
    pthread_mutex_lock(&e->bell.lock);
    e->warm_wanted = false;
    e->keep_warm = true;
    e->warm_status = status;
    e->warm_error = err;
    pthread_cond_broadcast(&e->warmed);
    pthread_mutex_unlock(&e->bell.lock);
}

/* With nothing to compute: what the first request of an adapter that was loaded meanwhile would record, until somebody rings. */
static void warm_loaded(lk_engine *e)
{
    pthread_mutex_lock(&e->bell.lock);
    bool loaded = e->warm_loaded;
    e->warm_loaded = false;
    pthread_mutex_unlock(&e->bell.lock);
    if (!loaded) return;
    lk_error err = {0};
    lk_warm w = make_warm(e);
    w.stop = is_ringing;
    w.context = e;
    w.adapters_only = true;
    lk_status status = lk_warm_up(&w, &err);
    if (status) lk_log(LK_LOG_WARN, "nothing is recorded beforehand for an adapter: %s", err.message);
    if (status || !is_ringing(e)) return;
    pthread_mutex_lock(&e->bell.lock);
    e->warm_loaded = true; /* interrupted: the rest another time */
    pthread_mutex_unlock(&e->bell.lock);
}

static void *engine_run(void *context)
{
    lk_engine *e = context;
    bool ahead = lk_backend_ahead(e->model->be);
    lk_backend_use(e->model->be);
    while (take_arrivals(e)) {
        end_cancelled(e);
        warm_up(e, false);
        lk_registry_serve(e->registry, lk_scheduler_most_pages(&e->scheduler));
        const lk_plan *plan = lk_scheduler_plan(&e->scheduler);
        e->scheduler.kept = 0;
        bool again = plan->wanted && bring_in(e, plan->wanted);
        publish(e); /* what runs now, before it leaves the queue: no request is ever uncounted */
        flight *before = &e->flights[e->steps % 2];
        bool flying = before->step != 0;
        if (plan->n) step(e, plan);
        land(e, before);
        if (!ahead) land(e, &e->flights[e->steps % 2]);
        publish(e);
        if (plan->n || again || flying) continue;
        warm_loaded(e);
        lk_bell_wait(&e->bell);
    }
    land(e, &e->flights[e->steps % 2]);
    for (lk_task *task; (task = lk_scheduler_find(&e->scheduler, NULL, NULL));) end_request(e, request_of(task), LK_FINISH_CANCELLED, NULL);
    warm_up(e, true);
    lk_registry_leave(e->registry);
    publish(e);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ start and stop */

static bool hold(void *context, lk_flow *flow, int64_t most_pages)
{
    lk_engine *e = context;
    return lk_registry_hold(e->registry, flow == &e->base_flow ? NULL : version_of(flow), most_pages);
}

static void drop(void *context, lk_flow *flow)
{
    lk_engine *e = context;
    if (flow != &e->base_flow) lk_registry_drop(e->registry, version_of(flow));
}

static bool reclaim(void *context, int64_t pages, bool waited)
{
    return lk_registry_reclaim(((lk_engine *)context)->registry, pages, waited);
}

/* A copy that cannot even be queued means that the device is gone; the step says so. */
static void copy_page(void *context, int32_t to, int32_t from)
{
    lk_engine *e = context;
    (void)lk_copy(e->model->be, lk_kv_page(e->kv, to), lk_kv_page(e->kv, from), e->page_bytes);
    e->stats.mine.pages_moved++;
}

static void move(void *context, int32_t first, int32_t n)
{
    lk_engine *e = context;
    lk_scheduler_move(&e->scheduler, first, n, copy_page, e);
}

static bool drains(void *context, lk_flow *flow)
{
    lk_engine *e = context;
    return flow != &e->base_flow && lk_registry_drains(e->registry, version_of(flow));
}

static void adapters_changed(void *context) { lk_bell_ring(&((lk_engine *)context)->bell); }

static void engine_free(lk_engine *e)
{
    lk_registry_close(e->registry);
    lk_batch_builder_free(&e->builder);
    lk_scheduler_free(&e->scheduler);
    lk_pages_free(&e->pages);
    lk_infer_destroy(e->infer);
    lk_kv_destroy(e->model->be, e->kv);
    lk_stats_free(&e->stats);
    lk_bell_free(&e->bell);
    pthread_cond_destroy(&e->warmed);
    for (int i = 0; i < 2; i++) free(e->flights[i].requests);
    free(e->sampling);
    free(e->results);
    free(e);
}

static lk_status engine_allocate(lk_engine *e, const lk_kv_shape *shape, lk_error *err)
{
    const lk_engine_options *o = &e->options;
    lk_infer_options infer = lk_engine_infer_options(o);
    lk_scheduler_options scheduler = {.max_running = o->max_running,
                                      .token_budget = o->token_budget,
                                      .overtake = OVERTAKE,
                                      .hold = hold,
                                      .drop = drop,
                                      .reclaim = reclaim,
                                      .drains = drains,
                                      .context = e};
    int32_t n_sites = lk_sites(&e->model->config);
    int32_t most = o->max_running < o->max_resident_adapters ? o->max_running : o->max_resident_adapters;
    lk_batch_limits batch = {o->token_budget, o->max_running, most, n_sites};
    lk_registry_options registry = {.max_resident = o->max_resident_adapters,
                                    .max_rank = o->max_rank,
                                    .host_bytes = (size_t)o->adapter_host_bytes,
                                    .trusted_keys = o->trusted_keys,
                                    .pages = &e->pages,
                                    .move = move,
                                    .changed = adapters_changed,
                                    .context = e};
    e->sampling = calloc((size_t)o->max_running, sizeof *e->sampling);
    e->results = calloc((size_t)o->max_running, sizeof *e->results);
    for (int i = 0; i < 2; i++) e->flights[i].requests = calloc((size_t)o->max_running, sizeof *e->flights[i].requests);
    if (!e->sampling || !e->results || !e->flights[0].requests || !e->flights[1].requests)
        return lk_fail(err, LK_ERR_MEMORY, "no memory for %d requests", o->max_running);
    LK_TRY(lk_infer_create(&e->infer, e->model, &infer, err));
    lk_status status = lk_kv_create(e->model->be, &e->kv, shape);
    if (status) return lk_backend_fail(e->model->be, status, err);
    e->page_bytes = lk_kv_page_bytes(e->model->be, shape);
    LK_TRY(lk_pages_init(&e->pages, shape->n_pages, shape->page_tokens, err));
    LK_TRY(lk_scheduler_init(&e->scheduler, &scheduler, &e->pages, err));
    LK_TRY(lk_batch_builder_init(&e->builder, &batch, err));
    registry.kv = e->kv;
    return lk_registry_open(&e->registry, e->model, &registry, err);
}

lk_status lk_engine_start(lk_engine **engine, lk_model *model, const lk_engine_options *options, lk_error *err)
{
    *engine = NULL;
    lk_engine_options resolved = *options;
    lk_kv_shape shape;
    LK_TRY(lk_engine_options_resolve(&resolved, model, &shape, err));
    lk_engine *e = calloc(1, sizeof *e);
    if (!e) return lk_fail(err, LK_ERR_MEMORY, "no memory for an engine");
    e->model = model;
    e->options = resolved;
    e->limits = (lk_request_limits){&model->config, resolved.max_model_len, (int64_t)shape.n_pages * shape.page_tokens, shape.page_tokens};
    e->arrivals_end = &e->arrivals;
    lk_bell_init(&e->bell);
    pthread_cond_init(&e->warmed, NULL);
    lk_stats_init(&e->stats);
    lk_status status = engine_allocate(e, &shape, err);
    if (!status) {
        publish(e);
        if (pthread_create(&e->thread, NULL, engine_run, e))
            status = lk_fail(err, LK_ERR_MEMORY, "the system gave no thread for the engine");
    }
    if (status) {
        engine_free(e);
        return status;
    }
    *engine = e;
    return LK_OK;
}

lk_status lk_engine_warm_up(lk_engine *e, lk_error *err)
{
    if (!lk_backend_records(e->model->be) || e->options.eager) return LK_OK;
    pthread_mutex_lock(&e->bell.lock);
    e->warm_wanted = true;
    e->bell.ringing = true;
    pthread_cond_signal(&e->bell.rung);
    while (e->warm_wanted) pthread_cond_wait(&e->warmed, &e->bell.lock);
    lk_status status = e->warm_status;
    if (status) *err = e->warm_error;
    pthread_mutex_unlock(&e->bell.lock);
    return status;
}

void lk_engine_stop(lk_engine *e)
{
    if (!e) return;
    pthread_mutex_lock(&e->bell.lock);
    e->stop = true;
    e->bell.ringing = true;
    pthread_cond_signal(&e->bell.rung);
    pthread_mutex_unlock(&e->bell.lock);
    pthread_join(e->thread, NULL);
    engine_free(e);
}

/* ------------------------------------------------------------------------------------------------ adapters and observation */

lk_status lk_engine_load_adapter(lk_engine *e, const char *name, const char *path, bool replace, int64_t *version, lk_error *err)
{
    lk_status status = lk_registry_load(e->registry, name, path, replace, version, err);
    pthread_mutex_lock(&e->bell.lock);
    e->warm_loaded |= !status && e->keep_warm;
    pthread_mutex_unlock(&e->bell.lock);
    lk_bell_ring(&e->bell);
    return status;
}

lk_status lk_engine_unload_adapter(lk_engine *e, const char *name, lk_error *err)
{
    lk_status status = lk_registry_unload(e->registry, name, err);
    lk_bell_ring(&e->bell); /* its place may be what another adapter waits for */
    return status;
}

lk_status lk_engine_list_adapters(lk_engine *e, lk_adapter_info **list, int64_t *n, lk_error *err)
{
    return lk_registry_list(e->registry, list, n, err);
}

void lk_engine_get_stats(lk_engine *e, lk_engine_stats *stats)
{
    pthread_mutex_lock(&e->bell.lock);
    int64_t queued = e->n_queued;
    pthread_mutex_unlock(&e->bell.lock);
    lk_stats_get(&e->stats, stats);
    stats->waiting += queued;
    lk_registry_counts counts;
    lk_registry_count(e->registry, &counts);
    stats->adapter_loads = counts.loads;
    stats->adapter_evictions = counts.evictions;
    stats->pages_adapters_in_use = counts.pages_in_use;
}

const lk_engine_options *lk_engine_get_options(const lk_engine *e) { return &e->options; }
const lk_model *lk_engine_model(const lk_engine *e) { return e->model; }
