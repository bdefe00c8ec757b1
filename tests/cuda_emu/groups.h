/* Products of warp groups (kernels/cuda/device.h, lk_group_*): groups.cpp, and what it needs of emu.cpp.
 *
 * A product is taken up when all 128 lanes have come to it. What it multiplies is read then or, as late as may be, at the first wait that
 * covers it (as asynchronous copies arrive: a seed other than 0 tosses for it); its registers d are poison until its own lane's wait. b is
 * decoded from the descriptor as the hardware does it, so a wrong address gives wrong numbers. Reported: products without the fence before
 * them, copies that lk_proxy_fence and a block barrier have not shown to the tensor cores, registers of a that changed before the wait,
 * lanes that bring different b, products never waited for, a device without warp groups. Plain stores to b are not seen by this. */
#ifndef LK_TESTS_CUDA_EMU_GROUPS_H
#define LK_TESTS_CUDA_EMU_GROUPS_H

#include <stddef.h>
#include <stdint.h>

#include "tests/cuda_emu/emu.h"

enum { LK_EMU_GROUP = 128 };

/* ---- groups.cpp */

void lk_emu_groups_begin(void); /* a block */
/* Whether every product has been waited for. */
bool lk_emu_groups_end(void);

/* ---- emu.cpp */

int lk_emu_thread(void); /* that runs, of its block */
__attribute__((format(printf, 1, 2), noreturn)) void lk_emu_fail(const char *format, ...);
bool lk_emu_toss(void); /* false under seed 0 */
/* As lk_emu_warp, for the 128 lanes of a warp group. */
void lk_emu_group(const char *what, lk_emu_combine *combine, void *mine, const char *file, int line);
/* Where p lies among the block's shared memory; fails when these bytes are not inside one array. */
size_t lk_emu_shared_offset(const void *p, size_t bytes, const char *what);
/* The other way round, for 16 bytes; NULL when they are not inside one array. */
const void *lk_emu_shared_chunk(size_t offset);
/* The chunk was written by an asynchronous copy that its thread has not shown by lk_proxy_fence, or that no barrier has passed since. */
bool lk_emu_chunk_unseen(size_t offset);

#endif
