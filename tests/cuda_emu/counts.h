/* What the emulated device has been asked to do so far, for tests that promise what a step costs.
 *
 *     void (*counts)(lk_emu_counts *) = emulation_symbol("lk_emu_get_counts");
 *     counts(&before); run; counts(&after);       -- after.host_copies - before.host_copies == 1 */
#ifndef LK_TESTS_CUDA_EMU_COUNTS_H
#define LK_TESTS_CUDA_EMU_COUNTS_H

#include <stdint.h>

typedef struct lk_emu_counts {
    int64_t kernels;                 /* run, in a replay or by themselves */
    int64_t host_copies, host_bytes; /* copies that read host memory */
    int64_t recordings, replays;     /* captures that became a graph; launches of one */
} lk_emu_counts;

#endif
