/* The scheduler without a model: small scenes whose plan is known by hand, then random ones with the invariants checked at every step.
 * A "model" here only counts: a request ends after as many tokens as it was made for. */
#include <stdlib.h>
#include <string.h>

#include "serve/scheduler.h"
#include "tests/check.h"

enum { MAX_TASKS = 4000, MAX_FLOWS = 12, TABLE = 512 };

typedef struct sim_task {
    lk_task task; /* first: a task pointer is a sim_task pointer */
    int64_t want, n_prompt, n_output;
    int32_t table[TABLE];
} sim_task;

typedef struct sim {
    lk_scheduler s;
    lk_pages pages;
    lk_flow flows[MAX_FLOWS];
    bool resident[MAX_FLOWS];
    int n_resident, slots; /* slots 0: adapters always fit */
    sim_task *tasks;
    int n_tasks, n_done;
    uint64_t order;
    int64_t output[MAX_FLOWS]; /* tokens generated per flow */
} sim;

static bool hold(void *context, lk_flow *flow, int64_t most_pages)
{
    sim *m = context;
    (void)most_pages;
    return !m->slots || m->resident[flow - m->flows];
}

static void drop(void *context, lk_flow *flow)
{
    (void)context;
    assert_true(flow->n_admitted >= 0);
}

static sim *sim_open(int32_t n_pages, int32_t page_tokens, int32_t max_running, int64_t budget, int slots)
{
    lk_error err = {0};
    sim *m = calloc(1, sizeof *m);
    m->tasks = calloc(MAX_TASKS, sizeof *m->tasks);
    m->slots = slots;
    CHECK_OK(lk_pages_init(&m->pages, n_pages, page_tokens, &err), &err);
    lk_scheduler_options o = {
        .max_running = max_running, .token_budget = budget, .overtake = 200, .hold = hold, .drop = drop, .context = m};
    CHECK_OK(lk_scheduler_init(&m->s, &o, &m->pages, &err), &err);
    return m;
}

static void sim_close(sim *m)
{
    lk_scheduler_free(&m->s);
    lk_pages_free(&m->pages);
    free(m->tasks);
    free(m);
}

static sim_task *sim_add(sim *m, int flow, int64_t n_prompt, int64_t n_output)
{
    assert_true(m->n_tasks < MAX_TASKS);
    sim_task *t = &m->tasks[m->n_tasks++];
    t->task =
        (lk_task){.flow = &m->flows[flow], .n_tokens = n_prompt, .order = m->order++, .table = {.pages = t->table, .capacity = TABLE}};
    t->want = n_output;
    t->n_prompt = n_prompt;
    lk_scheduler_add(&m->s, &t->task);
    return t;
}

static void sim_finish(sim *m, sim_task *t)
{
    lk_scheduler_finish(&m->s, &t->task);
    assert_int_equal(t->task.table.n, 0);
    m->n_done++;
}

/* What the engine's registry does when a plan names a wanted flow: put it in the place of one that runs nothing. */
static void sim_make_resident(sim *m, lk_flow *wanted)
{
    if (m->n_resident == m->slots) {
        int victim = -1;
        for (int f = 0; f < MAX_FLOWS; f++)
            if (m->resident[f] && !m->flows[f].n_admitted) victim = f;
        if (victim < 0) return;
        m->resident[victim] = false;
        m->n_resident--;
    }
    m->resident[wanted - m->flows] = true;
    m->n_resident++;
}

static void check_invariants(const sim *m, const lk_plan *plan, int64_t budget, int32_t max_running)
{
    assert_true(plan->n_tokens <= budget);
    assert_true(m->s.n_running + m->s.n_preempted <= max_running);
    /* Every page is free or in exactly one table. */
    static unsigned char seen[4096];
    memset(seen, 0, sizeof seen);
    int64_t held = 0, waiting = 0, admitted = 0;
    for (int32_t p = 0; p < m->pages.n_pages; p++) seen[p] += m->pages.is_free[p / 64] >> (p % 64) & 1;
    for (int i = 0; i < m->n_tasks; i++) {
        const lk_task *t = &m->tasks[i].task;
        for (int32_t p = 0; p < t->table.n; p++) seen[t->table.pages[p]]++;
        held += t->table.n;
        waiting += t->state == LK_TASK_WAITING;
        admitted += t->state == LK_TASK_RUNNING || t->state == LK_TASK_PREEMPTED;
        if (t->state != LK_TASK_RUNNING) assert_int_equal(t->table.n, 0);
    }
    assert_int_equal(held + m->pages.n_free, m->pages.n_pages);
    for (int32_t p = 0; p < m->pages.n_pages; p++) assert_int_equal(seen[p], 1);
    assert_int_equal(waiting, m->s.n_waiting);
    assert_int_equal(admitted, m->s.n_running + m->s.n_preempted);
    int64_t total = 0;
    bool prefill_seen = false;
    for (int32_t i = 0; i < plan->n; i++) {
        const lk_plan_entry *e = &plan->entries[i];
        assert_true(e->count >= 1);
        assert_int_equal(e->task->state, LK_TASK_RUNNING);
        assert_true(e->task->n_cached + e->count <= e->task->n_tokens);
        assert_int_equal(e->last, e->task->n_cached + e->count == e->task->n_tokens);
        assert_int_equal(e->task->table.n, lk_pages_for(&m->pages, e->task->n_cached + e->count)); /* taken on demand: no more than that */
        bool decode = e->task->n_cached > 0 && e->task->n_tokens - e->task->n_cached == 1;
        if (decode) assert_false(prefill_seen);
        if (!decode && e->task->n_tokens - e->task->n_cached > 1) prefill_seen = true;
        for (int32_t j = 0; j < i; j++) assert_ptr_not_equal(plan->entries[j].task, e->task);
        total += e->count;
    }
    assert_int_equal(total, plan->n_tokens);
    int32_t decodes = 0, planned = 0;
    for (int32_t i = 0; i < m->s.n_running; i++) decodes += m->s.running[i]->n_tokens - m->s.running[i]->n_cached == 1;
    for (int32_t i = 0; i < plan->n; i++) planned += plan->entries[i].task->n_tokens - plan->entries[i].task->n_cached == 1;
    assert_true(planned >= decodes); /* no decode is ever left out */
}

/* One iteration; returns the tokens computed. */
static int64_t sim_step(sim *m)
{
    const lk_plan *plan = lk_scheduler_plan(&m->s);
    check_invariants(m, plan, m->s.options.token_budget, m->s.options.max_running);
    if (plan->wanted) sim_make_resident(m, plan->wanted);
    int64_t n = plan->n_tokens;
    sim_task *last[512];
    int n_last = 0;
    for (int32_t i = 0; i < plan->n; i++)
        if (plan->entries[i].last) last[n_last++] = (sim_task *)plan->entries[i].task;
    lk_scheduler_commit(&m->s);
    for (int i = 0; i < n_last; i++) {
        sim_task *t = last[i];
        assert_int_equal(t->task.n_tokens, t->n_prompt + t->n_output);
        m->output[t->task.flow - m->flows]++;
        if (++t->n_output == t->want)
            sim_finish(m, t);
        else
            lk_task_generated(&t->task, false);
    }
    return n;
}

static void test_chunks_and_decodes_first(void **state)
{
    (void)state;
    sim *m = sim_open(64, 16, 4, 8, 0);
    sim_task *a = sim_add(m, 0, 20, 5);
    assert_int_equal(sim_step(m), 8); /* 8 + 8 + 4 tokens of the prompt; the 4 left over go to the next request */
    assert_int_equal(sim_step(m), 8);
    sim_task *b = sim_add(m, 0, 10, 2);
    assert_int_equal(sim_step(m), 8);
    assert_int_equal(a->n_output, 1);
    assert_int_equal(b->task.n_cached, 4);
    assert_int_equal(sim_step(m), 7); /* one decode, then the six left of b's prompt */
    assert_int_equal(a->n_output, 2);
    assert_int_equal(b->n_output, 1);
    assert_int_equal(sim_step(m), 2);
    assert_int_equal(b->task.state, LK_TASK_DONE);
    while (m->n_done < 2) assert_true(sim_step(m) > 0);
    assert_int_equal(m->pages.n_free, 64);
    sim_close(m);
}

static void test_preemption_only_when_out_of_pages(void **state)
{
    (void)state;
    sim *m = sim_open(4, 4, 4, 16, 0); /* 16 positions in all */
    sim_task *a = sim_add(m, 0, 4, 9), *b = sim_add(m, 0, 4, 9);
    sim_step(m); /* one page each, first tokens out */
    for (int i = 0; i < 4; i++) sim_step(m);
    assert_int_equal(m->s.preemptions, 0); /* 8 positions each: exactly full */
    sim_step(m);                           /* a needs a third page: b, the younger, goes */
    assert_int_equal(m->s.preemptions, 1);
    assert_int_equal(b->task.state, LK_TASK_PREEMPTED);
    assert_int_equal(b->task.n_cached, 0);
    assert_int_equal(a->task.n_preempted, 0);
    while (a->task.state != LK_TASK_DONE) {
        sim_step(m);
        if (a->task.state != LK_TASK_DONE) assert_int_equal(b->task.state, LK_TASK_PREEMPTED); /* needs three pages, one is free */
    }
    while (m->n_done < 2) sim_step(m);
    assert_int_equal(m->s.preemptions, 1);
    assert_int_equal(m->pages.n_free, 4);
    sim_close(m);
}

static void test_newcomers_wait_for_the_preempted(void **state)
{
    (void)state;
    sim *m = sim_open(4, 4, 4, 16, 0);
    sim_task *a = sim_add(m, 0, 4, 9), *b = sim_add(m, 0, 4, 9);
    for (int i = 0; i < 6; i++) sim_step(m);
    assert_int_equal(b->task.state, LK_TASK_PREEMPTED);
    sim_task *c = sim_add(m, 1, 1, 1); /* would fit into the free page */
    while (a->task.state != LK_TASK_DONE) {
        assert_int_equal(c->task.state, LK_TASK_WAITING);
        sim_step(m);
    }
    while (m->n_done < 3) sim_step(m);
    sim_close(m);
}

static void test_a_flood_does_not_starve(void **state)
{
    (void)state;
    sim *m = sim_open(1024, 16, 8, 64, 0);
    for (int i = 0; i < 500; i++) sim_add(m, 0, 30, 10);
    for (int i = 0; i < 30; i++) sim_step(m);
    int64_t flood_done = m->n_done;
    sim_task *quiet[10];
    for (int i = 0; i < 10; i++) quiet[i] = sim_add(m, 1, 30, 10);
    int steps = 0;
    bool done = false;
    while (!done) {
        sim_step(m);
        assert_true(++steps < 200);
        done = true;
        for (int i = 0; i < 10; i++) done &= quiet[i]->task.state == LK_TASK_DONE;
    }
    /* The newcomer gets about half of the machine although 500 were there before: the flood ended at most about as many meanwhile. */
    assert_true(m->n_done - flood_done - 10 <= 30);
    while (m->n_done < 510) sim_step(m);
    sim_close(m);
}

static void test_absence_earns_no_credit(void **state)
{
    (void)state;
    sim *m = sim_open(1024, 16, 4, 64, 0);
    for (int i = 0; i < 300; i++) sim_add(m, 0, 20, 20);
    for (int i = 0; i < 400; i++) sim_step(m);
    int64_t before = m->output[0];
    for (int i = 0; i < 300; i++) sim_add(m, 1, 20, 20);
    for (int i = 0; i < 400; i++) sim_step(m);
    int64_t a = m->output[0] - before, b = m->output[1];
    assert_true(b < 2 * a && a < 2 * b); /* equal shares from now on, no catching up */
    sim_close(m);
}

static void test_more_adapters_than_slots(void **state)
{
    (void)state;
    sim *m = sim_open(1024, 16, 8, 64, 2);
    for (int i = 0; i < 120; i++) sim_add(m, i % 6, 20, 10);
    int64_t first_done[6];
    memset(first_done, -1, sizeof first_done);
    int idle = 0;
    for (int step = 0; m->n_done < 120; step++) {
        assert_true(step < 20000);
        idle = sim_step(m) ? 0 : idle + 1;
        assert_true(idle < 3); /* an empty plan only while an adapter is brought in */
        for (int i = 0; i < 120; i++)
            if (m->tasks[i].task.state == LK_TASK_DONE && first_done[i % 6] < 0) first_done[i % 6] = step;
    }
    for (int f = 0; f < 6; f++) assert_true(first_done[f] < 200); /* none had to wait for the two first to run dry */
    sim_close(m);
}

static void test_random(void **state)
{
    (void)state;
    int64_t preemptions = 0;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        check_random r = {seed * 7919};
        int32_t page_tokens = 1 << (2 + check_random_u64(&r) % 3);
        int32_t n_pages = (int32_t)(128 / page_tokens + check_random_u64(&r) % 40);
        int32_t max_running = (int32_t)(1 + check_random_u64(&r) % 16);
        int64_t budget = (int64_t)(1 + check_random_u64(&r) % 64);
        int slots = seed % 3 == 0 ? 0 : (int)(1 + check_random_u64(&r) % 4);
        sim *m = sim_open(n_pages, page_tokens, max_running, budget, slots);
        int cancelled = 0;
        for (int step = 0; step < 1500; step++) {
            if (m->n_tasks < 400 && check_random_u64(&r) % 3 == 0) {
                int64_t n_prompt = (int64_t)(1 + check_random_u64(&r) % 60), n_output = (int64_t)(1 + check_random_u64(&r) % 60);
                int flow = check_random_u64(&r) % 2 ? 0 : (int)(check_random_u64(&r) % MAX_FLOWS); /* flow 0 gets half of all */
                sim_add(m, flow, n_prompt, n_output);
            }
            if (m->n_tasks && check_random_u64(&r) % 20 == 0) { /* a client goes away, in whatever state */
                sim_task *t = &m->tasks[check_random_u64(&r) % (uint64_t)m->n_tasks];
                if (t->task.state != LK_TASK_DONE) {
                    sim_finish(m, t);
                    cancelled++;
                }
            }
            sim_step(m);
        }
        for (int step = 0; m->n_done < m->n_tasks; step++) {
            if (step > 200000) fail_msg("seed %llu: %d of %d ended", (unsigned long long)seed, m->n_done, m->n_tasks);
            sim_step(m);
        }
        assert_true(cancelled > 0);
        assert_int_equal(m->pages.n_free, n_pages);
        assert_null(m->s.flows);
        assert_null(lk_scheduler_find(&m->s, NULL, NULL));
        preemptions += m->s.preemptions;
        sim_close(m);
    }
    assert_true(preemptions > 100); /* the scenes are tight enough to mean something */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_and_decodes_first),
        cmocka_unit_test(test_preemption_only_when_out_of_pages),
        cmocka_unit_test(test_newcomers_wait_for_the_preempted),
        cmocka_unit_test(test_a_flood_does_not_starve),
        cmocka_unit_test(test_absence_earns_no_credit),
        cmocka_unit_test(test_more_adapters_than_slots),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
