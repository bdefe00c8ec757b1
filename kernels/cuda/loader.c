/* The loader (lk_loader_open): a backend that has a queue, copies and what making an adapter takes (matrices, rows of them, norms), and
 * nothing else. It is opened on the device of a backend that is
 * there already, so no driver can be missing and no library is loaded; its queue is all it owns. The copies of one direction share an
 * engine of the device, which takes them one after the other: whoever uploads much does so in pieces, or the small copies of a step in the
 * main queue would wait for the whole of it. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

static void loader_close(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_error ignored;
    if (cu->stream) (void)lk_rt_stream_sync(cu->stream, &ignored);
    if (cu->beside) (void)lk_rt_stream_sync(cu->beside, &ignored);
    lk_cuda_unreserve(be);
    if (cu->reached) lk_rt_event_destroy(cu->reached);
    if (cu->beside) lk_rt_stream_destroy(cu->beside);
    if (cu->stream) lk_rt_stream_destroy(cu->stream);
    free(cu->blocks);
    free(cu);
}

static const lk_ops loader_ops = {
    .close = loader_close,
    .use = lk_cuda_use,
    .alloc = lk_cuda_alloc,
    .free = lk_cuda_free,
    .upload = lk_cuda_upload,
    .download = lk_cuda_download,
    .zero = lk_cuda_zero,
    .copy = lk_cuda_copy,
    .sync = lk_cuda_sync,
    .device_memory = lk_cuda_device_memory,
    .host_alloc = lk_cuda_host_alloc,
    .host_free = lk_cuda_host_free,
    .scratch_bytes = lk_cuda_scratch_bytes,
    .reserve = lk_cuda_reserve_scratch,
    .matrix_create = lk_cuda_matrix_create,
    .matrix_destroy = lk_cuda_matrix_destroy,
    .matrix_bytes = lk_cuda_matrix_bytes,
    .matrix_data = lk_cuda_matrix_data,
    .matrix_lend = lk_cuda_matrix_lend,
    .embed = lk_cuda_embed,
    .gain_norms = lk_cuda_gain_norms,
};

lk_status lk_cuda_loader_open(lk_backend **out, lk_backend *be, lk_error *err)
{
    lk_cuda *cu = calloc(1, sizeof *cu);
    if (!cu) return lk_fail(err, LK_ERR_MEMORY, "no memory for a loader");
    cu->base = (lk_backend){.ops = &loader_ops, .compute = be->compute, .act = be->act, .threads = 1};
    cu->device = lk_cuda_of(be)->device;
    cu->constants = lk_cuda_of(be)->constants; /* borrowed */
    snprintf(cu->base.name, sizeof cu->base.name, "%s", be->name);
    lk_status status = lk_rt_stream_create(&cu->stream, err);
    if (!status) status = lk_rt_stream_create(&cu->beside, err);
    if (!status) status = lk_rt_event_create(&cu->reached, err);
    if (status) {
        loader_close(&cu->base);
        return status;
    }
    *out = &cu->base;
    return LK_OK;
}

/* The event is used by this call alone, whichever thread drives the loader meanwhile. */
lk_status lk_cuda_loader_after(lk_backend *loader, lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(loader);
    LK_TRY(lk_rt_event_record(cu->reached, lk_cuda_of(be)->stream, &be->error));
    return lk_rt_stream_wait(cu->stream, cu->reached, &be->error);
}
