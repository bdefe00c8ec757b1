/* Sums over ranks. What each rank has is gathered into every rank, a piece that fits the scratch at a time, and added up by a kernel in the
 * order of ranks: the bits are those of lk_ranks_sum, the same in every rank and whatever connects the GPUs. Without NCCL the pieces go
 * through the host and lk_ranks_sum itself, with the same result.
 *
 * Rejected: NCCL's all-reduce. It moves 2 (R-1)/R of the bytes where this moves R-1 times them, but rings and trees add in an order that
 * depends on the machine; an adapter of 84 MB on eight GPUs is 0.6 GB a step and GPU, some 2 ms of NVLink once an optimiser step.
 *
 * Bytes moved by the kernel: 4 R an element read, 4 written. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

enum { THREADS = 256, MOST_BLOCKS = 2048, ALIGN = 64 /* floats: 256 bytes */ };

LK_KERNEL void add_ranks_kernel(float *out, const float *gathered, int64_t n, int64_t apart, int ranks)
{
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        float sum = gathered[i];
        for (int r = 1; r < ranks; r++) sum = lk_add_rn(sum, gathered[(int64_t)r * apart + i]);
        out[i] = sum;
    }
}

static lk_status through_host(lk_backend *be, float *x, int64_t n)
{
    lk_cuda *cu = lk_cuda_of(be);
    for (int64_t at = 0; at < n; at += LK_CUDA_HOST_PIECE) {
        int64_t count = n - at < LK_CUDA_HOST_PIECE ? n - at : LK_CUDA_HOST_PIECE;
        size_t bytes = (size_t)count * sizeof(float);
        LK_TRY(lk_cuda_download(be, cu->host_piece, x + at, bytes));
        LK_TRY(lk_ranks_sum(be->ranks, cu->host_piece, count, &be->error));
        LK_TRY(lk_cuda_upload(be, x + at, cu->host_piece, bytes));
    }
    return LK_OK;
}

extern "C" lk_status lk_cuda_all_reduce(lk_backend *be, float *x, int64_t n)
{
    lk_cuda *cu = lk_cuda_of(be);
    int ranks = lk_ranks_size(be->ranks);
    /* A rank whose queue has failed must not leave the others waiting on their GPUs: it says so here, where they hear it. */
    LK_TRY(lk_cuda_sync(be));
    LK_TRY(lk_ranks_barrier(be->ranks, &be->error));
    if (!cu->collective) return through_host(be, x, n);

    void *scratch;
    LK_TRY(lk_cuda_scratch(be, "all_reduce", (size_t)ranks * ALIGN * sizeof(float), &scratch));
    int64_t piece = (int64_t)(cu->scratch_bytes / sizeof(float)) / ranks / ALIGN * ALIGN;
    for (int64_t at = 0; at < n; at += piece) {
        int64_t count = n - at < piece ? n - at : piece, blocks = (count + THREADS - 1) / THREADS;
        LK_TRY(lk_collective_gather(cu->collective, scratch, x + at, (size_t)count * sizeof(float), cu->stream, &be->error));
        LK_LAUNCH("all_reduce", add_ranks_kernel, dim3((unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS)), dim3(THREADS), 0,
                  cu->stream, x + at, (const float *)scratch, count, count, ranks);
        LK_TRY(lk_rt_launched("all_reduce", &be->error));
    }
    return LK_OK;
}
