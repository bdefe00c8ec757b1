/* Steady decoding takes nothing from the heap: every call of malloc, calloc or realloc in the process is counted between two moments in the
 * middle of long greedy answers. Only where glibc lets a program put its own malloc in front, which the sanitizers do themselves. */
#if defined(__GLIBC__) || defined(__linux__)
#include <features.h>
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef COUNTS
#endif
#endif

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "tests/engine.h"

#ifdef COUNTS
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
static atomic_llong calls;

void *malloc(size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    atomic_fetch_add(&calls, 1);
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    atomic_fetch_add(&calls, 1);
    return __libc_realloc(p, n);
}

enum { N = 6 };

static void test_steady_decoding_allocates_nothing(void **state)
{
    (void)state;
    lk_log_set_level(LK_LOG_ERROR);
    lk_error err = {0};
    char *golden = check_golden("models/llama-tiny"), *folder = check_temporary("steady");
    check_model m = check_model_open(golden, LK_QUANT_NF4, LK_BF16, 2, NULL);
    check_adapter_write(m.model, folder, 8, 1, 0.05f);
    lk_engine_options o;
    lk_engine_options_default(&o);
    lk_engine *engine;
    CHECK_OK(lk_engine_start(&engine, m.model, &o, &err), &err);
    CHECK_OK(lk_engine_load_adapter(engine, "acme", folder, false, NULL, &err), &err);
    int32_t prompt[4] = {5, 6, 7, 8};
    lk_request *requests[N];
    lk_event event;
    for (int i = 0; i < N; i++) {
        lk_request_spec spec;
        lk_request_spec_default(&spec);
        spec.adapter = i % 2 ? "acme" : NULL;
        spec.prompt = prompt;
        spec.n_prompt = 4;
        spec.max_tokens = 240;
        spec.ignore_eos = true;
        CHECK_OK(lk_engine_submit(engine, &spec, &requests[i], &err), &err);
    }
    for (int t = 0; t < 20; t++)
        for (int i = 0; i < N; i++) assert_true(lk_request_next(requests[i], 60000, &event));
    long long before = calls;
    for (int t = 0; t < 200; t++)
        for (int i = 0; i < N; i++) assert_true(lk_request_next(requests[i], 60000, &event));
    assert_int_equal(calls - before, 0);
    for (int i = 0; i < N; i++) lk_request_release(requests[i]);
    lk_engine_stop(engine);
    check_model_close(&m);
    free(folder);
    free(golden);
}
#else
static void test_steady_decoding_allocates_nothing(void **state)
{
    (void)state;
    print_message("skipped: another malloc is in front here\n");
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steady_decoding_allocates_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
