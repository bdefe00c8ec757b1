/* Modules for test_backend.c, one source built several ways: LAYOUT claims another build, NEEDY needs a library that is not where the
 * linker looks, FAILING is a proper module whose open answers what the environment's LK_TEST_MODULE_FAILS says. LIBRARY is what NEEDY
 * needs. */
#include <stdlib.h>
#include <string.h>

#ifdef CASE_LIBRARY

int lk_absent_answer(void);
int lk_absent_answer(void) { return 42; }

#else

#include "kernels/cuda/module.h"

extern const lk_cuda_module lk_cuda_module_entry;

#ifdef CASE_NEEDY
int lk_absent_answer(void);
#endif

static lk_status fail_to_open(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    (void)options;
    *be = NULL;
    const char *how = getenv("LK_TEST_MODULE_FAILS");
    bool memory = how && strcmp(how, "memory") == 0;
    if (err) {
        err->code = memory ? LK_ERR_MEMORY : LK_ERR_UNSUPPORTED;
        strcpy(err->message, memory ? "device memory is full" : "no driver");
#ifdef CASE_NEEDY
        err->code = (lk_status)lk_absent_answer();
#endif
    }
    return memory ? LK_ERR_MEMORY : LK_ERR_UNSUPPORTED;
}

const lk_cuda_module lk_cuda_module_entry = {
    .abi = LK_CUDA_MODULE_ABI,
#ifdef CASE_LAYOUT
    .layout = LK_CUDA_MODULE_LAYOUT + 1,
#else
    .layout = LK_CUDA_MODULE_LAYOUT,
#endif
    .build = "a test",
    .open = fail_to_open,
};

#endif
