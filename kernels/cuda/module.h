/* The door between the program and a CUDA module, liblorikeet_cuda.so, which is loaded with dlopen so that the program itself links
 * no CUDA library and starts on machines without a driver.
 *
 *     const lk_cuda_module *m = dlsym(handle, LK_CUDA_MODULE_SYMBOL);
 *     if (m->abi != LK_CUDA_MODULE_ABI || m->layout != LK_CUDA_MODULE_LAYOUT) refuse: module and program are of different builds
 *     LK_TRY(m->open(&be, options, err));
 *
 * The module fills an ordinary lk_backend (kernels/backend.h); nothing else passes between the two. There are two builds of the
 * same sources: the real one (nvcc, CUDA's libraries), and the one on tests/cuda_emu, which runs the kernels on the host. */
#ifndef LK_KERNELS_CUDA_MODULE_H
#define LK_KERNELS_CUDA_MODULE_H

#include "kernels/backend.h"

#define LK_CUDA_MODULE_SYMBOL "lk_cuda_module_entry"

/* Raised with every change of meaning in kernels/ops.h or backend.h that sizes do not show. */
enum { LK_CUDA_MODULE_ABI = 1 };
/* Changes whenever an operation, a field of a backend or of a batch comes or goes. */
#define LK_CUDA_MODULE_LAYOUT                                                                                         \
    ((uint32_t)(sizeof(lk_ops) * 31 + sizeof(struct lk_backend) * 17 + sizeof(lk_batch) * 13 + sizeof(lk_lora) * 11 + \
                sizeof(lk_limits) * 7 + sizeof(lk_matrix_source) * 5 + sizeof(lk_backend_options) * 3 + sizeof(lk_error)))

typedef struct lk_cuda_module {
    uint32_t abi, layout;
    const char *build; /* "CUDA 13.0, cuDNN 9.19, sm_80 ... compute_120" or "emulated", for doctor */
    /* LK_ERR_UNSUPPORTED with one line when there is no driver, a driver too old, or no device: `auto` then takes the CPU. */
    lk_status (*open)(lk_backend **be, const lk_backend_options *options, lk_error *err);
} lk_cuda_module;

/* The module's own side of it (entry.c). */
extern const lk_cuda_module lk_cuda_module_entry;

#endif
