/* Models on the CUDA backend take exactly what lk_model_bytes says, whether they come in 16 bits, are quantised at loading, or are a
 * bitsandbytes folder, whose nested scales stay nested. A loader brings data in from a thread of its own. */
/* label: threads */
#include <pthread.h>

#include "model/model.h"
#include "tests/cuda/cuda_check.h"
#include "tests/model.h"

static const char *const names[] = {"models/llama-tiny", "models/qwen2-tiny", "models/qwen3-tiny", "models/mistral-tiny",
                                    "models/llama-tiny-bnb4"};

static void test_bytes(void **state)
{
    (void)state;
    lk_error err = {0};
    const lk_limits none = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int quant = 0; quant < 2; quant++) {
            char *folder = check_golden(names[i]);
            lk_model_facts facts;
            lk_quant how = quant ? LK_QUANT_NF4 : LK_QUANT_NONE;
            CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
            lk_backend *be = open_cuda(&none);
            size_t before = lk_allocated(be);
            lk_model *model;
            CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = how}, &err), &err);
            if (lk_allocated(be) - before != lk_model_bytes(be, &facts, how))
                fail_msg("%s, quant %d: took %zu bytes, planned %zu", names[i], quant, lk_allocated(be) - before,
                         lk_model_bytes(be, &facts, how));
            assert_true(lk_allocated_peak(be) == lk_allocated(be));
            lk_model_close(model);
            assert_int_equal(lk_allocated(be), before);
            lk_backend_close(be);
            free(folder);
        }
}

typedef struct upload {
    lk_backend *loader;
    void *device;
    const char *host;
    size_t bytes;
    lk_status status;
} upload;

static void *bring(void *context)
{
    upload *u = context;
    u->status = lk_backend_use(u->loader);
    for (size_t at = 0; at < u->bytes && !u->status; at += 64 << 10)
        u->status = lk_upload(u->loader, (char *)u->device + at, u->host + at, 64 << 10);
    return NULL;
}

static void test_loader(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    lk_error err = {0};
    const lk_limits none = {0};
    lk_backend *be = open_cuda(&none), *loader;
    CHECK_OK(lk_loader_open(&loader, be, &err), &err);
    void *host, *device, *copy;
    OP(be, lk_alloc(be, BYTES, &device));
    OP(be, lk_alloc(be, BYTES, &copy));
    OP(loader, lk_host_alloc(loader, BYTES, &host));
    char *back = malloc(BYTES);
    for (int round = 0; round < 3; round++) {
        memset(host, 17 + round, BYTES);
        OP(be, lk_copy(be, copy, device, BYTES)); /* still reads what was there before */
        OP(be, lk_loader_after(loader, be));
        upload u = {loader, device, host, BYTES, LK_OK};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, bring, &u), 0);
        pthread_join(thread, NULL);
        OP(loader, u.status);
        OP(be, lk_download(be, back, device, BYTES));
        assert_memory_equal(back, host, BYTES);
        OP(be, lk_download(be, back, copy, BYTES));
        assert_int_equal(back[BYTES / 2], round ? 16 + round : 0);
    }
    lk_tensor t = lk_tensor_make(device, LK_BF16, 2, 8);
    assert_int_equal(lk_add(loader, &t, &t), LK_ERR_UNSUPPORTED); /* it computes nothing */
    lk_host_free(loader, host);
    lk_backend_close(loader);
    lk_free(be, copy);
    lk_free(be, device);
    free(back);
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_loader)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
