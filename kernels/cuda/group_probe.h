/* Whether a device's warp groups add as its mma.sync does. */
#ifndef LK_KERNELS_CUDA_GROUP_PROBE_H
#define LK_KERNELS_CUDA_GROUP_PROBE_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* On a device of compute capability 9.0: runs a kernel of one block and waits for it. *wrong: how many sums differ, or -1 when this module
 * has no code for warp groups. */
lk_status lk_cuda_probe_groups(lk_backend *be, int *wrong);

#ifdef __cplusplus
}
#endif
#endif
