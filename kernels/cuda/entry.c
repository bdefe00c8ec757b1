/* The one symbol of the module. Everything else is hidden (-fvisibility=hidden): two modules, the real one and the emulated one, can be
 * in one process. LK_CUDA_BUILD comes from the build: "CUDA 13.0, cuDNN 9.19, sm_80 ... compute_120", or "emulated". */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/module.h"

#ifndef LK_CUDA_BUILD
#define LK_CUDA_BUILD "CUDA"
#endif

__attribute__((visibility("default"))) const lk_cuda_module lk_cuda_module_entry = {
    .abi = LK_CUDA_MODULE_ABI,
    .layout = LK_CUDA_MODULE_LAYOUT,
    .build = LK_CUDA_BUILD,
    .open = lk_cuda_open,
};
