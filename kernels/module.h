/* Finding and opening the CUDA module, liblorikeet_cuda.so (kernels/cuda/module.h). Only kernels/backend.c includes this.
 *
 *     lk_status status = lk_module_open(&be, options, err);      -- options->device is "cuda", "cuda:N" or "auto"
 *
 * Where it is looked for: the file that the environment's LK_CUDA_MODULE names and nothing else (empty: as if there were none);
 * otherwise beside the running program, in ../lib of the program's folder, and where the dynamic linker looks.
 *
 * LK_ERR_NOT_FOUND: there is no module. LK_ERR_UNSUPPORTED: there is one, but it cannot be used here (a library of CUDA's is missing, it is
 * of another build, no driver, no device). Anything else is the backend's own failure. The message is one line that says what to do.
 *
 * The module stays loaded until the program ends, also after its backends are closed: CUDA's libraries do not survive unloading, and a
 * second open costs nothing. Thread-safe. */
#ifndef LK_KERNELS_MODULE_H
#define LK_KERNELS_MODULE_H

#include "kernels/backend.h"

lk_status lk_module_open(lk_backend **be, const lk_backend_options *options, lk_error *err);

/* Whether an NVIDIA driver shows itself: a machine whose owner may expect more than the CPU. */
bool lk_module_driver_present(void);

#endif
