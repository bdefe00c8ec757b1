/* Adapters in the pool: who leaves, and how a run of pages is made. Only the engine's thread gives memory out.
 *
 * A run is made of what costs least: free pages that lie together; else adapters that run nothing leave until enough pages are free, and
 * then sequences' pages are moved out of a window, if need be after all pages and runs in use were pushed together at both ends. Moving a
 * page is a copy within the device, some microseconds; putting an adapter out that is wanted again costs an upload, preempting a request
 * its computation. So adapters leave for the pages they have, not for lying well, and nobody is preempted for an adapter: it waits until
 * running requests have ended, and what becomes free meanwhile is kept for it (lk_scheduler.kept).
 *
 * All copies are queued on the model's backend behind the steps that read the old places, and the steps queued later know the new ones. The
 * loader is put behind all of that before anybody is told of a run. */
#include "base/log.h"
#include "serve/registry_internal.h"

/* Times that everything is pushed apart before a run is given up until pages come free. */
enum { ROUNDS = 3 };

static bool may_leave(const lk_version *v, bool waited) { return v->adapter && !v->active && !v->copied_out && (waited || !v->pins); }

lk_version *lk_version_idle(const lk_registry *reg, bool waited)
{
    lk_version *best = NULL;
    for (lk_version *v = reg->versions; v; v = v->next) {
        if (!may_leave(v, waited)) continue;
        if (!best || !v->pins > !best->pins || (!v->pins == !best->pins && v->last_used < best->last_used)) best = v;
    }
    return best;
}

static int64_t idle_pages(const lk_registry *reg, bool waited)
{
    int64_t n = 0;
    for (const lk_version *v = reg->versions; v; v = v->next)
        if (may_leave(v, waited)) n += v->pages;
    return n;
}

void lk_run_bury(lk_registry *reg, int32_t first, int32_t n) { reg->graves[reg->n_graves++] = (lk_run){first, n}; }

void lk_version_put_out(lk_registry *reg, lk_version *v)
{
    if (!v->adapter) return;
    v->adapter = NULL;
    lk_adapter_attach(v->content, NULL);
    reg->n_places--;
    lk_run_bury(reg, v->first, v->pages);
}

void lk_version_arrive(lk_registry *reg, lk_version *v)
{
    lk_adapter_attach(v->content, lk_kv_page(reg->options.kv, v->first));
    v->adapter = v->content;
    v->serial = ++reg->serials;
    v->last_used = ++reg->clock;
    reg->pages_in_use -= v->pages;
    reg->loads++;
}

static void collect(lk_registry *reg)
{
    while (reg->n_graves > 0) {
        const lk_run *run = &reg->graves[--reg->n_graves];
        lk_pages_give(reg->options.pages, run->first, run->n);
    }
}

static void evict(lk_registry *reg, lk_version *v)
{
    lk_log(LK_LOG_INFO, "adapter %s@%lld leaves memory to make room; its next request brings it back", v->name, (long long)v->number);
    lk_version_put_out(reg, v);
    reg->evictions++;
    collect(reg);
}

/* ------------------------------------------------------------------------------------------------ runs */

/* To a higher place: the highest where it fits as a whole, else up by as many pages as are free behind it, in pieces that do not overlap. A
 * copy that cannot even be queued means that the device is gone; the step says so. */
static void lift(lk_registry *reg, lk_version *v)
{
    lk_pages *pages = reg->options.pages;
    lk_kv *kv = reg->options.kv;
    int32_t to = lk_pages_find(pages, v->pages), by = to - v->first, most = v->pages;
    if (by < 0) by = most = lk_pages_behind(pages, v->first + v->pages - 1);
    if (by == 0) return;
    for (int32_t left = v->pages; left > 0;) {
        int32_t n = left < most ? left : most, from = v->first + left - n;
        (void)lk_copy(reg->model->be, lk_kv_page(kv, from + by), lk_kv_page(kv, from), (size_t)n * reg->page_bytes);
        left -= n;
    }
    lk_pages_give(pages, v->first, v->pages);
    v->first += by;
    lk_pages_take(pages, v->first, v->pages);
    lk_adapter_attach(v->content, lk_kv_page(kv, v->first));
    v->serial = ++reg->serials;
}

/* Sequences' pages down, then the runs that may be moved up, the highest first. What stands in the way of one may be gone the next time. */
static void push_apart(lk_registry *reg)
{
    int32_t below = reg->options.pages->n_pages;
    reg->options.move(reg->options.context, 0, below);
    for (;;) {
        lk_version *highest = NULL;
        for (lk_version *v = reg->versions; v; v = v->next)
            if (v->adapter && !v->copied_out && v->first < below && (!highest || v->first > highest->first)) highest = v;
        if (!highest) return;
        below = highest->first;
        lift(reg, highest);
    }
}

/* n pages are free: makes a run of n that lie together. false: runs that cannot be moved are in the way. */
static bool place(lk_registry *reg, int32_t n, int32_t *first)
{
    lk_pages *pages = reg->options.pages;
    *first = lk_pages_find(pages, n);
    if (*first >= 0) {
        lk_pages_take(pages, *first, n);
        return true;
    }
    *first = lk_pages_window(pages, n);
    for (int i = 0; i < ROUNDS && *first < 0; i++) {
        push_apart(reg);
        *first = lk_pages_window(pages, n);
    }
    if (*first < 0) return false;
    lk_pages_take(pages, *first, n);
    reg->options.move(reg->options.context, *first, n);
    return true;
}

/* kept: free pages to leave beside it. What is in use, on its way and most_pages must fit into the pool together with it. */
static bool make_run(lk_registry *reg, int32_t n, int64_t most_pages, int64_t kept, bool waited, int32_t *first)
{
    lk_pages *pages = reg->options.pages;
    collect(reg);
    if (reg->pages_in_use + n + most_pages > pages->n_pages || n + kept > pages->n_free + idle_pages(reg, waited)) return false;
    bool made = false;
    while (!made) {
        made = pages->n_free >= n && place(reg, n, first);
        lk_version *idle = made ? NULL : lk_version_idle(reg, waited);
        if (!made && !idle) break;
        if (!made) evict(reg, idle);
    }
    /* Also when none was made: runs may have been pushed about, and the loader may be asked to read one. */
    if (lk_loader_after(reg->loader, reg->model->be) && made) {
        lk_pages_give(pages, *first, n);
        made = false;
    }
    if (!made) return false;
    reg->n_places++;
    reg->pages_in_use += n;
    return true;
}

/* ------------------------------------------------------------------------------------------------ the engine's thread */

static lk_answer answer(lk_registry *reg, int64_t most_pages)
{
    const lk_alias *a = lk_alias_find(reg, reg->asks->name);
    lk_version *old = a ? a->current : NULL;
    int32_t n = reg->asks->pages;
    bool full = reg->n_places >= reg->options.max_resident;
    if (old && old->adapter && !old->pins && !old->copied_out && (full || reg->options.pages->n_free < n)) {
        lk_version_put_out(reg, old); /* its place is the new one's */
        collect(reg);
    }
    if (reg->n_places >= reg->options.max_resident) {
        lk_version *idle = lk_version_idle(reg, false);
        if (!idle) return LK_NO_PLACE;
        evict(reg, idle);
    }
    return make_run(reg, n, most_pages, reg->waited_pages, false, &reg->granted) ? LK_GRANTED : LK_NO_ROOM;
}

void lk_registry_serve(lk_registry *reg, int64_t most_pages)
{
    pthread_mutex_lock(&reg->lock);
    collect(reg);
    if (reg->answer == LK_ASKED) {
        reg->answer = answer(reg, most_pages);
        pthread_cond_signal(&reg->answered);
    }
    reg->waited_pages = 0; /* until the plan's wanted version says so again */
    pthread_mutex_unlock(&reg->lock);
}

void lk_registry_leave(lk_registry *reg)
{
    pthread_mutex_lock(&reg->lock);
    reg->left = true;
    if (reg->answer == LK_ASKED) reg->answer = LK_STOPPING;
    pthread_cond_signal(&reg->answered);
    pthread_mutex_unlock(&reg->lock);
}

bool lk_registry_hold(lk_registry *reg, lk_version *v, int64_t most_pages)
{
    pthread_mutex_lock(&reg->lock);
    int64_t more = v && !v->active ? v->pages : 0;
    bool may = (!v || v->adapter) && reg->pages_in_use + more + most_pages <= reg->options.pages->n_pages;
    if (may && v) {
        v->active++;
        v->last_used = ++reg->clock;
        reg->pages_in_use += more;
    }
    pthread_mutex_unlock(&reg->lock);
    return may;
}

void lk_registry_drop(lk_registry *reg, lk_version *v)
{
    if (!v) return;
    pthread_mutex_lock(&reg->lock);
    if (--v->active == 0) reg->pages_in_use -= v->pages;
    pthread_mutex_unlock(&reg->lock);
}

bool lk_registry_reclaim(lk_registry *reg, int64_t pages, bool waited)
{
    pthread_mutex_lock(&reg->lock);
    int64_t enough = reg->options.pages->n_free + pages;
    collect(reg);
    bool can = reg->options.pages->n_free + idle_pages(reg, waited) >= enough;
    while (can && reg->options.pages->n_free < enough) evict(reg, lk_version_idle(reg, waited));
    pthread_mutex_unlock(&reg->lock);
    return can;
}

/* With the lock: memory for bytes that the host has. */
static void claim(lk_registry *reg, lk_version *v, int64_t most_pages, int64_t *kept)
{
    lk_version *idle = reg->n_places < reg->options.max_resident ? NULL : lk_version_idle(reg, true);
    if (reg->n_places >= reg->options.max_resident && !idle) return; /* a place, not memory, is what it waits for */
    if (idle) evict(reg, idle);
    if (make_run(reg, v->pages, most_pages, 0, true, &v->first)) {
        v->job = LK_JOB_UPLOAD;
        pthread_cond_broadcast(&reg->work);
    } else {
        *kept = v->pages;
    }
}

bool lk_registry_want(lk_registry *reg, lk_version *v, int64_t most_pages, int64_t *kept, lk_error *reason)
{
    *kept = 0;
    pthread_mutex_lock(&reg->lock);
    bool failed = v->failed;
    if (failed) {
        *reason = v->error;
        v->failed = false;
    } else if (!v->adapter && !v->job && v->host.p) {
        claim(reg, v, most_pages, kept);
    } else if (!v->adapter && !v->job) {
        v->job = LK_JOB_READ;
        pthread_cond_broadcast(&reg->work);
    }
    reg->waited_pages = *kept;
    pthread_mutex_unlock(&reg->lock);
    return failed;
}
