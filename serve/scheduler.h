/* Which tokens run next: pure bookkeeping, without a model, a clock or a lock.
 *
 *     lk_scheduler s;
 *     LK_TRY(lk_scheduler_init(&s, &options, &pages, err));
 *     lk_scheduler_add(&s, task);                       -- a new request joins its flow's queue
 *     const lk_plan *plan = lk_scheduler_plan(&s);      -- choose tokens, take pages, preempt
 *     ... forward over plan->entries ...
 *     lk_scheduler_commit(&s);                          -- the planned tokens are in the cache now
 *     lk_task_generated(task, ends);                    -- for each entry with `last`: one token more ...
 *     lk_scheduler_finish(&s, task);                    -- ... or the request is over
 *     lk_scheduler_free(&s);
 *
 * A task is one request, a flow all requests of one adapter version. Of a task only two numbers matter: n_tokens known (prompt and
 * output) and n_cached, those whose keys and values are in the pages. Prefill, decode and recomputation are one thing: bring n_cached to
 * n_tokens, and when it arrives the last row's logits give the next token.
 *
 * The order within the budget of an iteration:
 *   1. running tasks that need one token (decodes), oldest first;
 *   2. running tasks that need more (prefill chunks), oldest first;
 *   3. preempted tasks, oldest first;
 *   4. new tasks of the flow that was served least (VTC: Sheng et al. 2024, "Fairness in Serving Large Language Models"): its counter grows
 *      by the prompt at admission and by 2 for every token generated. A flow that was idle starts at the least counter of the active
 *      flows: absence earns no credit.
 * At most as many tasks run as there are tokens in the budget, so every decode always fits.
 *
 * Pages are taken for the planned tokens only. When none is free the youngest running task gives all of its pages back and later starts
 * again from its tokens (recomputation: a copy to the host would need memory for the copies and a second path to test). The oldest task
 * is never the victim and always fits, so the whole moves on. No task is admitted or resumed while an older preempted one waits for
 * pages, nor in the iteration of a preemption: otherwise newcomers would take the pages it waits for.
 *
 * Look-ahead: a token counts as generated when the step that computes it has been queued, so the next step can be planned before its number
 * is known. A task whose last token is being computed `ends`: it keeps its place and is not planned any more. If the token turns out to
 * be a stop, what was queued for the task meanwhile is thrown away.
 *
 * The adapters of more flows may be wanted than fit in memory. `hold` asks for a flow's adapter at admission and `drop` lets it go when
 * the task ends. When the flow whose turn it is cannot be held, the plan names it as `wanted`; flows that are in memory may go on, but
 * only until they are OVERTAKE units of service ahead. Then nothing new is admitted, the memory drains and the wanted flow gets in
 * (a resident adapter must not overtake for ever).
 *
 * Adapters and pages of sequences share one pool. Adapters that run nothing leave it when running tasks need pages (`reclaim`), before
 * anybody is preempted for them; those that do run something stay. So `hold` is told the most pages that any admitted task may come to
 * need, and refuses where the adapters that run then and those pages together are more than the pool: the oldest task fits beside all
 * adapters in use, whatever happens. While an adapter waits for memory, `kept` pages are not for newcomers, so that what becomes free
 * adds up for it; running tasks take what they need all the same. */
#ifndef LK_SERVE_SCHEDULER_H
#define LK_SERVE_SCHEDULER_H

#include "serve/pages.h"

typedef struct lk_task lk_task;
typedef struct lk_flow lk_flow;

typedef enum lk_task_state { LK_TASK_NEW, LK_TASK_WAITING, LK_TASK_RUNNING, LK_TASK_PREEMPTED, LK_TASK_DONE } lk_task_state;

struct lk_task {
    lk_flow *flow;    /* set by the caller, as are n_tokens (the prompt), order and the table's array */
    int64_t n_tokens; /* known: prompt and generated */
    int64_t n_cached; /* with keys and values in the pages */
    uint64_t order;   /* arrival: smaller is older */
    lk_block_table table;
    lk_task_state state;
    bool ends;           /* nothing more is to be computed */
    int64_t most_tokens; /* positions it may ever need, the caller's word as well; 0: n_tokens at admission */
    int64_t n_preempted;
    lk_task *prev, *next; /* in the flow's queue */
};

/* Zero-initialised by its owner; must outlive its tasks. */
struct lk_flow {
    int64_t served;        /* the VTC counter */
    lk_task *first, *last; /* waiting, never admitted yet */
    int64_t n_waiting, n_admitted;
    bool active;     /* in the scheduler's list */
    uint64_t passed; /* plan in which its adapter could not be held */
    lk_flow *prev, *next;
};

typedef struct lk_plan_entry {
    lk_task *task;
    int64_t count; /* tokens n_cached .. n_cached+count-1 */
    bool last;     /* these are all that are known: the last row's logits are wanted */
} lk_plan_entry;

typedef struct lk_plan {
    lk_plan_entry *entries;
    int32_t n;
    int64_t n_tokens;
    lk_flow *wanted; /* its turn has come but its adapter is not in memory; or NULL */
} lk_plan;

typedef struct lk_scheduler_options {
    int32_t max_running;
    int64_t token_budget;
    int64_t overtake; /* service units that a flow in memory may get ahead of a wanted one */
    /* Is the flow's adapter in memory, may it stay there until drop, and do most_pages fit beside it? NULL: always. */
    bool (*hold)(void *context, lk_flow *flow, int64_t most_pages);
    void (*drop)(void *context, lk_flow *flow);
    /* Puts out adapters that run nothing until `pages` more are free, or none where that is not enough. waited: those that requests wait
     * for may go too. NULL: there are none. */
    bool (*reclaim)(void *context, int64_t pages, bool waited);
    /* May always overtake: it gets no new tasks and leaves memory after its last. NULL: none. */
    bool (*drains)(void *context, lk_flow *flow);
    void *context;
} lk_scheduler_options;

typedef struct lk_scheduler {
    lk_scheduler_options options;
    lk_pages *pages;                /* borrowed */
    lk_task **running, **preempted; /* each by rising order; together at most max_running */
    int32_t n_running, n_preempted;
    lk_flow *flows;      /* active ones */
    int64_t n_waiting;   /* in all flows */
    int64_t idle_level;  /* counter of the flow that was last to become idle */
    int64_t preemptions; /* ever */
    uint64_t plans;
    bool preempted_now;
    int64_t kept; /* free pages that newcomers must leave; the caller's */
    lk_plan plan;
} lk_scheduler;

lk_status lk_scheduler_init(lk_scheduler *s, const lk_scheduler_options *options, lk_pages *pages, lk_error *err);
void lk_scheduler_free(lk_scheduler *s); /* safe on a zeroed struct; tasks belong to the caller */

void lk_scheduler_add(lk_scheduler *s, lk_task *task);
const lk_plan *lk_scheduler_plan(lk_scheduler *s); /* valid until the next call */
void lk_scheduler_commit(lk_scheduler *s);
void lk_task_generated(lk_task *task, bool ends); /* after commit; ends: it is the last */
/* From any state; not between plan and commit. Pages go back at once. */
void lk_scheduler_finish(lk_scheduler *s, lk_task *task);

/* The most pages that any admitted task may come to need. */
int64_t lk_scheduler_most_pages(const lk_scheduler *s);
/* Pages [first, first + n) have become a run: moves those of sequences away from there; or they are any pages: moves them down
 * (lk_pages_move). Not between the making
 * of a batch and its forward. */
void lk_scheduler_move(lk_scheduler *s, int32_t first, int32_t n, void (*move)(void *context, int32_t to, int32_t from), void *context);

/* Any task for which match says true (any at all when match is NULL), or NULL. */
lk_task *lk_scheduler_find(const lk_scheduler *s, bool (*match)(const lk_task *task, void *context), void *context);

#endif
