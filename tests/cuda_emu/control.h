/* The emulation's own doors. Tests find the exported ones by dlsym in the module; the rest is what its parts know of each other.
 *
 *     void (*schedule)(uint64_t) = dlsym(module, "lk_emu_schedule");
 *     schedule(1); run; schedule(2); run again: the same bits, or the kernel depends on an order that nothing promises */
#ifndef LK_TESTS_CUDA_EMU_CONTROL_H
#define LK_TESTS_CUDA_EMU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LK_EMU_EXPORT extern "C" __attribute__((visibility("default")))

/* The order that blocks, threads and warps take from now on. 0: ascending, each thread as far as it gets. Odd seeds: permuted, and a warp
 * runs as far ahead of the others as it can. Even ones: permuted, and after every synchronisation any thread of the block may be next. With
 * a seed other than 0 about half of the asynchronous copies arrive at once instead of at their wait. The environment's LK_EMU_SEED is the
 * seed until the first call. */
LK_EMU_EXPORT void lk_emu_schedule(uint64_t seed);
/* Streams do nothing before somebody waits for it, or (the environment's LK_EMU_LATE unset) everything at once. */
LK_EMU_EXPORT void lk_emu_set_late(bool late);
/* What the device presents itself as, to backends that open from now on: "sm_80" (163 KB of shared memory a block), "sm_86" (99 KB) or
 * "sm_90" (227 KB, warp groups; the default). The environment's LK_EMU_DEVICE until the first call. False: no such device. */
LK_EMU_EXPORT bool lk_emu_set_device(const char *name);
/* Products of warp groups add the 16 of a step from the last to the first, which gives other bits than lk_mma_bf16. */
LK_EMU_EXPORT void lk_emu_set_other_sums(bool other);
/* Blocks of device and pinned memory, streams and events that are alive. */
LK_EMU_EXPORT int64_t lk_emu_leaks(void);

/* ---- between emu.cpp and runtime.cpp */

/* What went wrong since it was last asked, once; false when nothing did. */
bool lk_emu_take_failure(char *text, size_t size);
/* `kernel` may use this much shared memory from now on. */
void lk_emu_allow_shared(const void *kernel, size_t bytes);
typedef struct lk_emu_model {
    const char *name;
    int major, minor;
    size_t shared; /* most a block may opt in to */
    bool groups;   /* products of warp groups */
} lk_emu_model;
const lk_emu_model *lk_emu_device_model(void);
bool lk_emu_other_sums(void);
enum { LK_EMU_SHARED_DEFAULT = 48 * 1024, LK_EMU_SHARED_MOST = 227 * 1024 };
/* Whether kernels may be given p: inside or at the end of a block of device or pinned memory. */
bool lk_emu_is_device(const void *p);
/* All of these bytes lie in one block. */
bool lk_emu_is_device_range(const void *p, size_t bytes);
/* The kernel that ran last, for messages about damage found later. */
const char *lk_emu_last_kernel(void);

#endif
