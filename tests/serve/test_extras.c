/* Adapters that are more than factors (gains, biases, own heads and embeddings; tests/golden/options, made by PEFT) lie in the pool as a
 * whole: they are counted, they push each other out, move, come back from host memory or their folder, and answer what they answer alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tests/engine.h"

enum { N = 6, MOST = 12 };

static const char *const names[N] = {"dora", "lora_bias", "saved", "embedding", "tokens", "layers"};

static size_t page_bytes(const lk_model *model)
{
    lk_kv_shape shape = lk_infer_kv_shape(model, 16, 1);
    return lk_kv_page_bytes(model->be, &shape);
}

static lk_engine *start(lk_model *model, size_t pool, size_t host)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.kv_bytes = pool;
    o.adapter_host_bytes = (int64_t)host;
    o.max_running = 4;
    o.max_resident_adapters = N;
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, model, &o, &err), &err);
    return engine;
}

static void load_all(lk_engine *engine)
{
    lk_error err = {0};
    for (int i = 0; i < N; i++) {
        char path[100];
        snprintf(path, sizeof path, "options/%s", names[i]);
        char *folder = check_golden(path);
        CHECK_OK(lk_engine_load_adapter(engine, names[i], folder, false, NULL, &err), &err);
        free(folder);
    }
}

/* Each has its own trained tokens and rows in the prompt. */
static lk_request_spec make_request(int i, int32_t prompt[MOST])
{
    for (int t = 0; t < MOST; t++) prompt[t] = t == 2 ? 9 : (7 * t + 13 * i) % 150 + 3;
    lk_request_spec spec;
    lk_request_spec_default(&spec);
    spec.adapter = i < N ? names[i] : NULL;
    spec.prompt = prompt;
    spec.n_prompt = MOST;
    spec.max_tokens = MOST;
    spec.n_logprobs = 3;
    spec.ignore_eos = true;
    return spec;
}

/* Bytes of the largest, as the registry counts them; every adapter but `layers`, plain factors, is larger than those. */
static size_t check_bytes(lk_engine *engine, const lk_model *model)
{
    lk_error err = {0};
    lk_adapter_info *list;
    int64_t n;
    size_t largest = 0;
    CHECK_OK(lk_engine_list_adapters(engine, &list, &n, &err), &err);
    assert_int_equal(n, N);
    for (int64_t i = 0; i < n; i++) {
        lk_adapter *a;
        CHECK_OK(lk_adapter_load(&a, model, list[i].path, lk_backend_compute(model->be), &err), &err);
        assert_int_equal(list[i].bytes, lk_adapter_image_bytes(a));
        if (strcmp(list[i].name, "layers")) assert_true((size_t)list[i].bytes > lk_adapter_bytes(a));
        if (!strcmp(list[i].name, "saved")) /* two tables in bf16 */
            assert_true((size_t)list[i].bytes >= lk_adapter_bytes(a) + (size_t)(2 * model->config.vocab * model->config.hidden * 2));
        if ((size_t)list[i].bytes > largest) largest = (size_t)list[i].bytes;
        lk_adapter_destroy(a);
    }
    free(list);
    return largest;
}

/* What is resident must be in the pages that are given to adapters. */
static void check_pages(lk_engine *engine, const lk_model *model)
{
    lk_error err = {0};
    lk_adapter_info *list;
    int64_t n;
    size_t pages = 0, page = page_bytes(model);
    lk_engine_stats stats;
    CHECK_OK(lk_engine_list_adapters(engine, &list, &n, &err), &err);
    for (int64_t i = 0; i < n; i++)
        if (list[i].resident) pages += ((size_t)list[i].bytes + page - 1) / page;
    lk_engine_get_stats(engine, &stats);
    assert_int_equal(stats.pages_adapters, pages);
    assert_true(stats.pages_adapters + stats.pages_used <= stats.pages_total);
    free(list);
}

static void test_small_pools(void **state)
{
    (void)state;
    lk_log_set_level(LK_LOG_ERROR);
    char *golden = check_golden("models/llama-tiny");
    check_model m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    int32_t prompts[N + 1][MOST];
    check_answer *alone[N + 1];
    lk_engine *engine = start(m.model, (size_t)4 << 20, 0);
    load_all(engine);
    size_t page = page_bytes(m.model), largest = check_bytes(engine, m.model);
    for (int i = 0; i <= N; i++) {
        lk_request_spec spec = make_request(i, prompts[i]);
        alone[i] = check_ask(engine, &spec);
        for (int j = 0; j < i; j++) assert_true(memcmp(alone[i]->logprobs, alone[j]->logprobs, sizeof alone[i]->logprobs) != 0);
    }
    check_pages(engine, m.model);
    lk_engine_stop(engine);
    /* Room for the largest, or for two, beside few pages; what is put out comes back from its folder, or from the host. */
    const struct {
        size_t pool, host;
    } rows[] = {{(largest + page - 1) / page * page + 6 * page, 0},
                {2 * largest + 8 * page, 0},
                {largest + 7 * page, (size_t)N << 20},
                {2 * largest + 8 * page, (size_t)2 << 20}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        lk_error err = {0};
        lk_request *requests[3 * (N + 1)];
        engine = start(m.model, rows[r].pool, rows[r].host);
        load_all(engine);
        for (int i = 0; i < 3 * (N + 1); i++) {
            lk_request_spec spec = make_request(i % (N + 1), prompts[i % (N + 1)]);
            CHECK_OK(lk_engine_submit(engine, &spec, &requests[i], &err), &err);
        }
        for (int i = 0; i < 3 * (N + 1); i++) {
            check_answer *a = check_collect(requests[i]);
            check_same_answer(i % (N + 1) < N ? names[i % (N + 1)] : "the base", a, alone[i % (N + 1)]);
            free(a);
        }
        check_engine_idle(engine);
        check_pages(engine, m.model);
        lk_engine_stats stats;
        lk_engine_get_stats(engine, &stats);
        assert_true(stats.adapter_evictions > (rows[r].pool > 2 * largest ? 0 : N - 2));
        lk_engine_stop(engine);
    }
    for (int i = 0; i <= N; i++) free(alone[i]);
    check_model_close(&m);
    free(golden);
}

/* Its factors would fit, its head does not: it is refused by name and says why. */
static void test_too_large(void **state)
{
    (void)state;
    lk_error err = {0};
    char *golden = check_golden("models/llama-tiny"), *folder = check_golden("options/saved");
    check_model m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 1, NULL);
    lk_adapter *a;
    CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_BF16, &err), &err);
    size_t page = page_bytes(m.model), factors = lk_adapter_bytes(a), all = lk_adapter_image_bytes(a);
    lk_adapter_destroy(a);
    assert_true(factors + 4 * page < all);
    lk_engine *engine = start(m.model, all - 1, 0);
    CHECK_FAILS(lk_engine_load_adapter(engine, "big", folder, false, NULL, &err), LK_ERR_UNSUPPORTED, "adapter 'big' takes", &err);
    assert_non_null(strstr(err.message, "an own head"));
    assert_non_null(strstr(err.message, "--kv-memory above"));
    int32_t prompt[MOST];
    lk_request_spec spec = make_request(N, prompt);
    free(check_ask(engine, &spec));
    lk_engine_stop(engine);
    check_model_close(&m);
    free(folder);
    free(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small_pools), cmocka_unit_test(test_too_large)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
