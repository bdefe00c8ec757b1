/* kernels/cuda/collective.h through the ranks' shared memory: each emulated device is a process of its own. A gather is a sum in which
 * every rank's place is zero in the others; values travel as halves of 16 bits in floats, which such a sum keeps exactly, signs of zero and
 * NaNs included. */
#include "kernels/cuda/collective.h"

#include <cstring>
#include <new>
#include <vector>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/control.h"

struct lk_collective {
    lk_ranks *ranks;
};

lk_status lk_collective_create(lk_collective **c, lk_ranks *ranks, const lk_rt_device *device, lk_error *err)
{
    (void)device;
    *c = new (std::nothrow) lk_collective{ranks};
    return *c ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for the emulated collective");
}

void lk_collective_destroy(lk_collective *c) { delete c; }

lk_status lk_collective_gather(lk_collective *c, void *all, const void *mine, size_t bytes, lk_rt_stream stream, lk_error *err)
{
    if (stream) lk_emu_catch_up(stream, stream->queued); /* this one is done at once */
    size_t size = (size_t)lk_ranks_size(c->ranks), rank = (size_t)lk_ranks_rank(c->ranks), halves = bytes / 2;
    if (bytes % 2) return lk_fail(err, LK_ERR_ARGUMENT, "gather: %zu bytes are no whole halves", bytes);
    if (!lk_emu_is_device_range(mine, bytes) || !lk_emu_is_device_range(all, bytes * size))
        return lk_fail(err, LK_ERR_INTERNAL, "gather: %zu bytes of %zu ranks are not inside memory of the device", bytes, size);
    std::vector<uint16_t> words(halves * size);
    std::vector<float> carried(halves * size, 0.0f);
    memcpy(&words[rank * halves], mine, bytes);
    for (size_t i = rank * halves; i < (rank + 1) * halves; i++) carried[i] = (float)words[i];
    LK_TRY(lk_ranks_sum(c->ranks, carried.data(), (int64_t)carried.size(), err));
    for (size_t i = 0; i < carried.size(); i++) words[i] = (uint16_t)carried[i];
    memcpy(all, words.data(), bytes * size);
    return LK_OK;
}
