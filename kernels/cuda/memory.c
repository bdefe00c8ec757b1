/* Memory of the CUDA backend, copies, and transfers beside the computing.
 *
 * The device's pointers say nothing about their size, and a header in device memory would cost a copy to read, so a list on the host
 * remembers what was taken. Blocks are few (a matrix is one) and mostly go in the reverse order of their coming: a search from the end
 * finds them at once.
 *
 * Order. Everything here runs in the queue's order. Upload and download wait for the copy, so that the caller may use its memory on return
 * whatever kind it is; they are used around the computing (loading, saving, reading a loss), not in it. What operations bring along for
 * every call (ids, rows, labels) goes through lk_cuda_stage, which does not wait. Transfers of checkpoints run on a stream of their own,
 * which waits for the queue where they begin, and which the queue waits for where they are wanted. */
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

struct lk_cuda_block {
    void *p;
    size_t bytes;
};

lk_status lk_cuda_alloc(lk_backend *be, size_t bytes, void **out)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (cu->n_blocks == cu->blocks_room) {
        size_t room = cu->blocks_room ? 2 * cu->blocks_room : 256;
        struct lk_cuda_block *more = realloc(cu->blocks, room * sizeof *more);
        if (!more) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for the list of %zu blocks", room);
        cu->blocks = more;
        cu->blocks_room = room;
    }
    void *p;
    LK_TRY(lk_rt_malloc(&p, bytes ? bytes : 1, &be->error));
    lk_status status = lk_rt_set(p, 0, bytes, cu->stream, &be->error);
    if (status) {
        lk_rt_free(p);
        return status;
    }
    cu->blocks[cu->n_blocks++] = (struct lk_cuda_block){p, bytes};
    lk_backend_account(be, bytes, 0);
    *out = p;
    return LK_OK;
}

void lk_cuda_free(lk_backend *be, void *p)
{
    lk_cuda *cu = lk_cuda_of(be);
    size_t i = cu->n_blocks;
    while (i > 0 && cu->blocks[i - 1].p != p) i--;
    if (i == 0) return; /* not one of ours: freeing it would be worse */
    lk_backend_account(be, 0, cu->blocks[i - 1].bytes);
    cu->blocks[i - 1] = cu->blocks[--cu->n_blocks];
    lk_error ignored;
    (void)lk_rt_stream_sync(cu->stream, &ignored); /* queued work may still use it */
    lk_rt_free(p);
}

lk_status lk_cuda_upload(lk_backend *be, void *device, const void *host, size_t bytes)
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_rt_copy(device, host, bytes, cu->stream, &be->error));
    return lk_rt_stream_sync(cu->stream, &be->error);
}

lk_status lk_cuda_download(lk_backend *be, void *host, const void *device, size_t bytes)
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_rt_copy(host, device, bytes, cu->stream, &be->error));
    return lk_rt_stream_sync(cu->stream, &be->error);
}

lk_status lk_cuda_zero(lk_backend *be, void *device, size_t bytes)
{
    return lk_rt_set(device, 0, bytes, lk_cuda_of(be)->stream, &be->error);
}

lk_status lk_cuda_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes)
{
    return lk_rt_copy(device_to, device_from, bytes, lk_cuda_of(be)->stream, &be->error);
}

size_t lk_cuda_device_memory(const lk_backend *be)
{
    (void)be; /* its device is current for the thread that drives it */
    size_t room = lk_rt_memory_free();
    return room ? room : 1; /* 0 would say that it has no memory of its own */
}

lk_status lk_cuda_sync(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    LK_TRY(lk_rt_stream_sync(cu->beside, &be->error));
    return lk_rt_stream_sync(cu->stream, &be->error);
}

/* ---------------------------------------------------------------------------------------------- transfers */

lk_status lk_cuda_host_alloc(lk_backend *be, size_t bytes, void **out) { return lk_rt_host_malloc(out, bytes ? bytes : 1, &be->error); }

void lk_cuda_host_free(lk_backend *be, void *p)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_error ignored;
    (void)lk_rt_stream_sync(cu->beside, &ignored); /* a transfer nobody waited for may still use it */
    (void)lk_rt_stream_sync(cu->stream, &ignored);
    lk_rt_host_free(p);
}

lk_status lk_cuda_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (cu->under_way[slot]) return lk_fail(&be->error, LK_ERR_INTERNAL, "transfer_begin: slot %d has a transfer under way", slot);
    LK_TRY(lk_rt_event_record(cu->reached, cu->stream, &be->error));
    LK_TRY(lk_rt_stream_wait(cu->beside, cu->reached, &be->error));
    LK_TRY(lk_rt_copy(to, from, bytes, cu->beside, &be->error));
    LK_TRY(lk_rt_event_record(cu->arrived[slot], cu->beside, &be->error));
    cu->under_way[slot] = true;
    return LK_OK;
}

lk_status lk_cuda_transfer_wait(lk_backend *be, int slot)
{
    lk_cuda *cu = lk_cuda_of(be);
    if (!cu->under_way[slot]) return LK_OK;
    cu->under_way[slot] = false;
    return lk_rt_stream_wait(cu->stream, cu->arrived[slot], &be->error);
}
