/* Values of several GPUs brought together: the thin layer over NCCL (native/collective.c); the emulation answers through the ranks' shared
 * memory (tests/cuda_emu/collective.cpp). all_reduce.cu adds them up.
 *
 *     LK_TRY(lk_collective_create(&c, ranks, err));                       -- each rank with its own GPU current
 *     LK_TRY(lk_collective_gather(c, all, mine, bytes, stream, err));     -- all[r * bytes ...] = mine of rank r, in every rank
 *
 * Only data is moved: no order of addition is left to NCCL, whose rings and trees add in an order that depends on the machine. Every
 * function but destroy is collective. */
#ifndef LK_KERNELS_CUDA_COLLECTIVE_H
#define LK_KERNELS_CUDA_COLLECTIVE_H

#include "base/ranks.h"
#include "kernels/cuda/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lk_collective lk_collective;

/* LK_ERR_UNSUPPORTED, in all ranks alike, when any of them has no NCCL or NCCL does not connect them (two ranks on one GPU, for one): sums
 * then go through the host. */
lk_status lk_collective_create(lk_collective **c, lk_ranks *ranks, const lk_rt_device *device, lk_error *err);
void lk_collective_destroy(lk_collective *c); /* NULL is fine */
/* `mine` may be this rank's place in `all`. Queued on the stream. */
lk_status lk_collective_gather(lk_collective *c, void *all, const void *mine, size_t bytes, lk_rt_stream stream, lk_error *err);

#ifdef __cplusplus
}
#endif
#endif
