/* The pool that adapters share with keys and values: its pages by themselves; with adapters that come, go and push each other about
 * (tests/pool.h); and under an engine with one adapter that needs nearly all of it. */
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "tests/engine.h"
#include "tests/pool.h"
#include "serve/pages.h"

enum { PAGES = 150, TABLES = 9, CAPACITY = 40, RUNS = 6 };

typedef struct content {
    int64_t of[PAGES]; /* what lies in a page: table * 1000 + index, or -1 - run */
} content;

static void move(void *context, int32_t to, int32_t from)
{
    content *c = context;
    c->of[to] = c->of[from];
}

static bool free_page(const lk_pages *p, int32_t i) { return p->is_free[i / 64] >> (i % 64) & 1; }

/* Random sequences and runs; every page is one's, and keeps what is in it. */
static void test_pages(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_pages p;
    CHECK_OK(lk_pages_init(&p, PAGES, 16, &err), &err);
    content c = {{0}};
    lk_block_table tables[TABLES];
    int32_t numbers[TABLES][CAPACITY], first[RUNS], length[RUNS] = {0}, moved = 0;
    for (int t = 0; t < TABLES; t++) tables[t] = (lk_block_table){.pages = numbers[t], .capacity = CAPACITY};
    check_random r = {7};
    for (int round = 0; round < 20000; round++) {
        int t = (int)(check_random_u64(&r) % TABLES), run = (int)(check_random_u64(&r) % RUNS);
        int32_t n = 1 + (int32_t)(check_random_u64(&r) % 30), before = tables[t].n;
        switch (check_random_u64(&r) % 5) {
        case 0: lk_pages_release(&p, &tables[t]); break;
        case 1:
        case 2:
            if (lk_pages_grow(&p, &tables[t], (int64_t)(before + n) * 16))
                for (int32_t i = before; i < tables[t].n; i++) c.of[numbers[t][i]] = t * 1000 + i;
            else
                assert_true(tables[t].n == before && (n > p.n_free || before + n > CAPACITY));
            break;
        case 3:
            if (length[run]) {
                lk_pages_give(&p, first[run], length[run]);
                length[run] = 0;
            }
            break;
        default:
            if (length[run] || p.n_free < n) break;
            first[run] = lk_pages_find(&p, n);
            if (first[run] < 0 && (first[run] = lk_pages_window(&p, n)) >= 0) moved++;
            if (first[run] < 0) break;
            length[run] = n;
            lk_pages_take(&p, first[run], n);
            for (int i = 0; i < TABLES; i++) lk_pages_move(&p, &tables[i], first[run], n, move, &c);
            for (int32_t i = 0; i < n; i++) c.of[first[run] + i] = -1 - run;
        }
        int32_t held = 0, in_runs = 0;
        for (int i = 0; i < TABLES; i++) {
            held += tables[i].n;
            for (int32_t k = 0; k < tables[i].n; k++) assert_true(c.of[numbers[i][k]] == i * 1000 + k && !free_page(&p, numbers[i][k]));
        }
        for (int i = 0; i < RUNS; i++) {
            in_runs += length[i];
            for (int32_t k = 0; k < length[i]; k++) assert_true(c.of[first[i] + k] == -1 - i && !free_page(&p, first[i] + k));
        }
        assert_int_equal(held + in_runs + p.n_free, PAGES);
        assert_int_equal(in_runs, p.n_runs);
    }
    assert_true(moved > 50);
    lk_pages_free(&p);
}

static void test_pool(void **state)
{
    (void)state;
    check_pool(&(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_BF16});
}

/* A flood of requests for the base takes all memory again and again; one for an adapter that needs most of it comes after them. */
static void test_a_flood_does_not_keep_an_adapter_out(void **state)
{
    (void)state;
    enum { FLOOD = 60, BIG = 24 };
    lk_log_set_level(LK_LOG_ERROR);
    lk_error err = {0};
    char *golden = check_golden("models/llama-tiny"), *folder = check_temporary("pool_flood");
    check_model m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    int64_t params = check_adapter_write(m.model, folder, BIG, 2, 0.1f);
    lk_engine_options o;
    lk_engine_options_default(&o);
    lk_kv_shape shape = lk_infer_kv_shape(m.model, 16, 1);
    size_t page = lk_kv_page_bytes(m.be, &shape), big = ((size_t)params * 2 + page - 1) / page;
    o.kv_bytes = (big + 10) * page;
    o.max_running = 6;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, m.model, &o, &err), &err);
    CHECK_OK(lk_engine_load_adapter(engine, "big", folder, false, NULL, &err), &err);
    int32_t prompt[24];
    for (int t = 0; t < 24; t++) prompt[t] = 3 + t * 5;
    lk_request_spec spec;
    lk_request_spec_default(&spec);
    spec.prompt = prompt;
    spec.n_prompt = 24;
    spec.max_tokens = 100;
    spec.ignore_eos = true;
    lk_request_spec wide = spec;
    wide.adapter = "big";
    check_answer *alone = check_ask(engine, &spec), *big_alone = check_ask(engine, &wide);
    wide.max_tokens = 180; /* it would fit without its adapter */
    lk_request *none, *flood[FLOOD], *request;
    CHECK_FAILS(lk_engine_submit(engine, &wide, &none, &err), LK_ERR_ARGUMENT, "positions of the whole KV cache", &err);
    wide.max_tokens = spec.max_tokens;
    for (int i = 0; i < FLOOD; i++) CHECK_OK(lk_engine_submit(engine, &spec, &flood[i], &err), &err);
    CHECK_OK(lk_engine_submit(engine, &wide, &request, &err), &err);
    check_answer *a = check_collect(request);
    lk_engine_stats stats;
    lk_engine_get_stats(engine, &stats);
    assert_true(stats.waiting > 5); /* most of the flood is still to come */
    check_same_answer("the adapter", a, big_alone);
    free(a);
    for (int i = 0; i < FLOOD; i++) {
        a = check_collect(flood[i]);
        check_same_answer("one of the flood", a, alone);
        free(a);
    }
    CHECK_OK(lk_engine_unload_adapter(engine, "big", &err), &err);
    check_engine_idle(engine);
    for (int i = 0; i < 2000 && (lk_engine_get_stats(engine, &stats), stats.pages_adapters); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(stats.pages_adapters + stats.pages_used, 0);
    lk_engine_stop(engine);
    check_model_close(&m);
    free(alone);
    free(big_alone);
    free(folder);
    free(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_a_flood_does_not_keep_an_adapter_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
