/* A module of kernels with known faults, and their corrected twins, to test the emulation with: planted.cu, run by test_emulation.c.
 *
 *     status = run(&(lk_planted){.kernel = "race", .mended = false, .in = in, .in_bytes = 256, .out = out, .out_bytes = 256}, err);
 *
 * Copies `in` to the device, launches the kernel on it, waits, and copies `out` back. Whatever the emulation has to say comes as status
 * and text. */
#ifndef LK_TESTS_CUDA_EMU_PLANTED_H
#define LK_TESTS_CUDA_EMU_PLANTED_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef struct lk_planted {
    const char *kernel;
    bool mended;
    const void *in;
    size_t in_bytes;
    void *out;
    size_t out_bytes;
} lk_planted;

typedef lk_status lk_planted_run_function(const lk_planted *p, lk_error *err);

#endif
