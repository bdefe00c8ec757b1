/* The scheduler's rules stand in scheduler.h. Running and preempted tasks are arrays sorted by arrival (at most max_running of them, so
 * insertion is cheap and the victim of a preemption is simply the last one); waiting tasks are one first-in-first-out list per flow, and
 * choosing a flow is a scan of the active ones. A heap was rejected: flows number in the dozens and their keys change at every token. */
#include "serve/scheduler.h"

#include <stdlib.h>
#include <string.h>

lk_status lk_scheduler_init(lk_scheduler *s, const lk_scheduler_options *options, lk_pages *pages, lk_error *err)
{
    *s = (lk_scheduler){.options = *options, .pages = pages};
    if (options->max_running < 1 || options->token_budget < 1)
        return lk_fail(err, LK_ERR_ARGUMENT, "max_running %d and token_budget %lld must both be at least 1", options->max_running,
                       (long long)options->token_budget);
    if (s->options.max_running > s->options.token_budget) s->options.max_running = (int32_t)s->options.token_budget;
    size_t n = (size_t)s->options.max_running;
    s->running = calloc(n, sizeof(lk_task *));
    s->preempted = calloc(n, sizeof(lk_task *));
    s->plan.entries = calloc(n, sizeof *s->plan.entries);
    if (!s->running || !s->preempted || !s->plan.entries) {
        lk_scheduler_free(s);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a scheduler of %zu running requests", n);
    }
    return LK_OK;
}

void lk_scheduler_free(lk_scheduler *s)
{
    free(s->running);
    free(s->preempted);
    free(s->plan.entries);
    *s = (lk_scheduler){0};
}

/* ------------------------------------------------------------------------------------------------ lists */

static void sorted_insert(lk_task **array, int32_t *n, lk_task *task)
{
    int32_t i = (*n)++;
    for (; i > 0 && array[i - 1]->order > task->order; i--) array[i] = array[i - 1];
    array[i] = task;
}

static void sorted_remove(lk_task **array, int32_t *n, const lk_task *task)
{
    int32_t i = 0;
    while (array[i] != task) i++;
    memmove(array + i, array + i + 1, (size_t)(--*n - i) * sizeof(lk_task *));
}

static void queue_remove(lk_flow *flow, lk_task *task)
{
    *(task->prev ? &task->prev->next : &flow->first) = task->next;
    *(task->next ? &task->next->prev : &flow->last) = task->prev;
    task->prev = task->next = NULL;
    flow->n_waiting--;
}

static void flow_activate(lk_scheduler *s, lk_flow *flow)
{
    int64_t level = s->idle_level;
    if (s->flows) {
        level = s->flows->served;
        for (const lk_flow *f = s->flows; f; f = f->next) level = f->served < level ? f->served : level;
    }
    if (flow->served < level) flow->served = level;
    flow->active = true;
    flow->prev = NULL;
    flow->next = s->flows;
    if (flow->next) flow->next->prev = flow;
    s->flows = flow;
}

static void flow_rest(lk_scheduler *s, lk_flow *flow)
{
    if (flow->n_waiting || flow->n_admitted) return;
    *(flow->prev ? &flow->prev->next : &s->flows) = flow->next;
    if (flow->next) flow->next->prev = flow->prev;
    flow->prev = flow->next = NULL;
    flow->active = false;
    s->idle_level = flow->served;
}

void lk_scheduler_add(lk_scheduler *s, lk_task *task)
{
    lk_flow *flow = task->flow;
    if (!flow->active) flow_activate(s, flow);
    task->state = LK_TASK_WAITING;
    task->next = NULL;
    task->prev = flow->last;
    *(flow->last ? &flow->last->next : &flow->first) = task;
    flow->last = task;
    flow->n_waiting++;
    s->n_waiting++;
}

void lk_scheduler_finish(lk_scheduler *s, lk_task *task)
{
    lk_flow *flow = task->flow;
    switch (task->state) {
    case LK_TASK_WAITING:
        queue_remove(flow, task);
        s->n_waiting--;
        break;
    case LK_TASK_RUNNING: sorted_remove(s->running, &s->n_running, task); break;
    case LK_TASK_PREEMPTED: sorted_remove(s->preempted, &s->n_preempted, task); break;
    case LK_TASK_NEW:
    case LK_TASK_DONE: return;
    }
    if (task->state != LK_TASK_WAITING) {
        flow->n_admitted--;
        if (s->options.drop) s->options.drop(s->options.context, flow);
    }
    lk_pages_release(s->pages, &task->table);
    task->state = LK_TASK_DONE;
    flow_rest(s, flow);
}

lk_task *lk_scheduler_find(const lk_scheduler *s, bool (*match)(const lk_task *task, void *context), void *context)
{
    for (int32_t i = 0; i < s->n_running; i++)
        if (!match || match(s->running[i], context)) return s->running[i];
    for (int32_t i = 0; i < s->n_preempted; i++)
        if (!match || match(s->preempted[i], context)) return s->preempted[i];
    for (lk_flow *flow = s->flows; flow; flow = flow->next)
        for (lk_task *task = flow->first; task; task = task->next)
            if (!match || match(task, context)) return task;
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ choosing tokens */

static int64_t budget_left(const lk_scheduler *s) { return s->options.token_budget - s->plan.n_tokens; }

static void plan_drop(lk_plan *plan, const lk_task *task)
{
    for (int32_t i = 0; i < plan->n; i++) {
        if (plan->entries[i].task != task) continue;
        plan->n_tokens -= plan->entries[i].count;
        memmove(plan->entries + i, plan->entries + i + 1, (size_t)(--plan->n - i) * sizeof *plan->entries);
        return;
    }
}

/* The youngest gives everything back. It may already stand in this plan. */
static lk_task *preempt_youngest(lk_scheduler *s)
{
    lk_task *victim = s->running[--s->n_running];
    plan_drop(&s->plan, victim);
    lk_pages_release(s->pages, &victim->table);
    victim->n_cached = 0;
    victim->n_preempted++;
    victim->state = LK_TASK_PREEMPTED;
    sorted_insert(s->preempted, &s->n_preempted, victim);
    s->preemptions++;
    s->preempted_now = true;
    return victim;
}

static bool reclaim(const lk_scheduler *s, int64_t pages, bool waited)
{
    return s->options.reclaim && s->options.reclaim(s->options.context, pages, waited);
}

/* Puts as many of a running task's tokens into the plan as budget and pages allow. */
static void plan_task(lk_scheduler *s, lk_task *task)
{
    int64_t pending = task->n_tokens - task->n_cached;
    int64_t count = pending < budget_left(s) ? pending : budget_left(s);
    if (count < 1) return;
    while (!lk_pages_grow(s->pages, &task->table, task->n_cached + count)) {
        int64_t missing = lk_pages_for(s->pages, task->n_cached + count) - task->table.n - s->pages->n_free;
        if (missing > 0 && reclaim(s, missing, true)) continue;
        int64_t room = (int64_t)(task->table.n + s->pages->n_free) * s->pages->page_tokens - task->n_cached;
        if (room > 0 && room < count) {
            count = room; /* a shorter chunk is better than throwing somebody out */
        } else if (missing > 1 && reclaim(s, 1, true)) {
            continue;
        } else if (preempt_youngest(s) == task) {
            return;
        }
    }
    s->plan.entries[s->plan.n++] = (lk_plan_entry){task, count, count == pending};
    s->plan.n_tokens += count;
}

static void plan_running(lk_scheduler *s, bool decodes)
{
    for (int32_t i = 0; i < s->n_running; i++) { /* preemption only ever removes from the end */
        lk_task *task = s->running[i];
        if (!task->ends && (task->n_tokens - task->n_cached == 1) == decodes) plan_task(s, task);
    }
}

static bool has_place(const lk_scheduler *s) { return s->n_running < s->options.max_running && budget_left(s) > 0; }

/* Pages for all that is known of the task, and `kept` more. Adapters that others wait for give way to a task that was admitted once, and
 * where nothing else could ever give way. */
static bool has_pages(const lk_scheduler *s, const lk_task *task, int64_t kept)
{
    int64_t missing = lk_pages_for(s->pages, task->n_tokens) + kept - s->pages->n_free;
    return missing <= 0 || reclaim(s, missing, task->state == LK_TASK_PREEMPTED || s->n_running == 0);
}

static int64_t most_pages(const lk_scheduler *s, const lk_task *task)
{
    return lk_pages_for(s->pages, task->most_tokens > task->n_tokens ? task->most_tokens : task->n_tokens);
}

int64_t lk_scheduler_most_pages(const lk_scheduler *s)
{
    int64_t most = 0;
    for (int32_t i = 0; i < s->n_running; i++)
        if (most_pages(s, s->running[i]) > most) most = most_pages(s, s->running[i]);
    for (int32_t i = 0; i < s->n_preempted; i++)
        if (most_pages(s, s->preempted[i]) > most) most = most_pages(s, s->preempted[i]);
    return most;
}

void lk_scheduler_move(lk_scheduler *s, int32_t first, int32_t n, void (*move)(void *context, int32_t to, int32_t from), void *context)
{
    for (int32_t i = 0; i < s->n_running; i++) lk_pages_move(s->pages, &s->running[i]->table, first, n, move, context);
}

static void start(lk_scheduler *s, lk_task *task)
{
    task->state = LK_TASK_RUNNING;
    sorted_insert(s->running, &s->n_running, task);
    plan_task(s, task);
}

/* Least served first; among equals the flow whose oldest request is older. Flows passed over in this plan are left out. */
static lk_flow *next_flow(const lk_scheduler *s)
{
    lk_flow *best = NULL;
    for (lk_flow *flow = s->flows; flow; flow = flow->next) {
        if (!flow->first || flow->passed == s->plans) continue;
        if (!best || flow->served < best->served || (flow->served == best->served && flow->first->order < best->first->order)) best = flow;
    }
    return best;
}

static void admit(lk_scheduler *s)
{
    const lk_scheduler_options *o = &s->options;
    for (lk_flow *flow; (flow = next_flow(s));) {
        lk_task *task = flow->first;
        if (s->plan.wanted && flow->served > s->plan.wanted->served + o->overtake && !(o->drains && o->drains(o->context, flow))) {
            flow->passed = s->plans;
            continue;
        }
        if (!has_place(s)) return;
        int64_t most = lk_scheduler_most_pages(s), own = most_pages(s, task);
        if (o->hold && !o->hold(o->context, flow, most > own ? most : own)) {
            flow->passed = s->plans;
            if (!s->plan.wanted) s->plan.wanted = flow;
            continue;
        }
        if (!has_pages(s, task, s->n_running ? s->kept : 0)) { /* held first, lest its own adapter be what gives way */
            if (o->drop) o->drop(o->context, flow);
            return;
        }
        queue_remove(flow, task);
        s->n_waiting--;
        flow->n_admitted++;
        flow->served += task->n_tokens;
        start(s, task);
    }
}

const lk_plan *lk_scheduler_plan(lk_scheduler *s)
{
    s->plan.n = 0;
    s->plan.n_tokens = 0;
    s->plan.wanted = NULL;
    s->plans++;
    s->preempted_now = false;
    plan_running(s, true);
    plan_running(s, false);
    while (!s->preempted_now && s->n_preempted && has_place(s) && has_pages(s, s->preempted[0], 0)) {
        lk_task *task = s->preempted[0];
        sorted_remove(s->preempted, &s->n_preempted, task);
        start(s, task);
    }
    if (!s->n_preempted) admit(s);
    return &s->plan;
}

void lk_scheduler_commit(lk_scheduler *s)
{
    for (int32_t i = 0; i < s->plan.n; i++) s->plan.entries[i].task->n_cached += s->plan.entries[i].count;
}

void lk_task_generated(lk_task *task, bool ends)
{
    task->n_tokens++;
    task->ends = ends;
    task->flow->served += 2; /* VTC's weight of an output token */
}
