/* A device whose memory the pool takes to the last page (memory_share 1): requests and plain adapters need nothing beside it; an adapter
 * that must be computed on the device while it is read finds no memory for that, is refused by name, and nobody else notices. */
#include "base/log.h"
#include "tests/cuda/cuda_check.h"
#include "tests/engine.h"

enum { TOGETHER = 8, PROMPT = 40, BESIDE = 1 << 20 };

static const char *const names[] = {NULL, "a", "b"};

static lk_engine *start(lk_model *model, size_t pool, lk_engine_memory *memory)
{
    lk_error err = {0};
    lk_engine_options o;
    lk_engine_options_default(&o);
    o.max_running = TOGETHER;
    o.token_budget = 64;
    o.max_rank = 16;
    o.kv_bytes = pool;
    o.memory_share = 1.0;
    o.adapter_host_bytes = 4 << 20;
    lk_engine *engine;
    CHECK_OK(lk_engine_plan(model, &o, memory, &err), &err);
    CHECK_OK(lk_engine_start(&engine, model, &o, &err), &err);
    return engine;
}

static lk_request_spec make_request(int i)
{
    static int32_t prompt[PROMPT];
    for (int t = 0; t < PROMPT; t++) prompt[t] = 3 + t * 7 % 150;
    lk_request_spec spec;
    lk_request_spec_default(&spec);
    spec.prompt = prompt;
    spec.n_prompt = PROMPT - i;
    spec.max_tokens = 10;
    spec.ignore_eos = true;
    spec.adapter = names[i % 3];
    return spec;
}

static void load(lk_engine *engine, char *const folders[2])
{
    lk_error err = {0};
    for (int i = 0; i < 2; i++) CHECK_OK(lk_engine_load_adapter(engine, names[1 + i], folders[i], false, NULL, &err), &err);
}

static void test_full(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_log_set_level(LK_LOG_ERROR);
    char *golden = check_golden("models/llama-tiny"), *dora = check_golden("options/dora"), *folder = check_temporary("full");
    char folders[2][4300], *list[2] = {folders[0], folders[1]};
    check_model cpu = check_model_open(golden, LK_QUANT_NF4, LK_F32, 1, NULL);
    for (int i = 0; i < 2; i++) {
        snprintf(folders[i], sizeof folders[i], "%s/%d", folder, i);
        check_adapter_write(cpu.model, folders[i], 8 + i, (uint64_t)i + 1, 0.05f);
    }
    check_model_close(&cpu);
    check_model m = check_model_open_on(golden, LK_QUANT_NF4, &(lk_backend_options){.device = "cuda", .compute = LK_BF16});
    if (!set_schedule(0)) { /* a real GPU has other users, and its driver wants some for recordings */
        check_model_close(&m);
        free(folder);
        free(dora);
        free(golden);
        return;
    }
    check_answer *alone[TOGETHER];
    lk_engine_memory memory;
    lk_engine *engine = start(m.model, 4 << 20, &memory);
    load(engine, list);
    for (int i = 0; i < TOGETHER; i++) {
        lk_request_spec spec = make_request(i);
        alone[i] = check_ask(engine, &spec);
    }
    lk_engine_stop(engine);
    check_model_close(&m);

    m = check_model_open_on(golden, LK_QUANT_NF4, &(lk_backend_options){.device = "cuda", .compute = LK_BF16});
    char text[32];
    size_t before = lk_allocated(m.be), beside = (size_t)4 << 30;
    beside -= lk_device_memory(m.be); /* what the model and the backend have */
    snprintf(text, sizeof text, "%zu", beside + memory.activations + BESIDE);
    setenv("LK_EMU_MEMORY", text, 1);
    engine = start(m.model, 0, &memory);
    lk_kv_shape shape = lk_infer_kv_shape(m.model, 16, 1);
    size_t page = lk_kv_page_bytes(m.be, &shape);
    assert_true(memory.pool <= BESIDE && memory.pool + page > BESIDE - page);
    assert_int_equal(lk_allocated(m.be) - before, memory.pool + memory.activations);
    assert_true(lk_device_memory(m.be) <= 2 * page);
    load(engine, list);
    lk_request *requests[TOGETHER];
    for (int i = 0; i < TOGETHER; i++) {
        lk_request_spec spec = make_request(i);
        CHECK_OK(lk_engine_submit(engine, &spec, &requests[i], &err), &err);
    }
    for (int round = 0; round < 3; round++) {
        CHECK_FAILS(lk_engine_load_adapter(engine, "dora", dora, false, NULL, &err), LK_ERR_MEMORY, "adapter 'dora'", &err);
        assert_non_null(strstr(err.message, "no room for"));
    }
    for (int i = 0; i < TOGETHER; i++) {
        check_answer *a = check_collect(requests[i]);
        check_same_answer("with a full device", a, alone[i]);
        free(a);
        free(alone[i]);
    }
    check_engine_idle(engine);
    assert_int_equal(lk_allocated(m.be) - before, memory.pool + memory.activations);
    assert_true(lk_device_memory(m.be) > 1 || memory.pool == BESIDE);
    lk_engine_stop(engine);
    unsetenv("LK_EMU_MEMORY");
    check_model_close(&m);
    free(folder);
    free(dora);
    free(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_full)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
