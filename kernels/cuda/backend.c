/* Opens the CUDA backend: a device, a queue of work, a second one for copies beside it, cuBLASLt, cuDNN where it is there. Everything is
 * made here or in lk_reserve, so that no operation allocates. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/pool.h"
#include "kernels/cuda/group_probe.h"
#include "kernels/cuda/module.h"
#include "kernels/cuda/product.h"
#include "kernels/dynamic_map.h"
#include "kernels/nf4.h"

/* "cuda" and "auto" are the first GPU, or the one of the rank; "cuda:N" is number N. */
static lk_status parse_device(int *ordinal, const char *device, const lk_ranks *ranks, lk_error *err)
{
    *ordinal = lk_ranks_rank(ranks);
    if (!device || strcmp(device, "auto") == 0 || strcmp(device, "cuda") == 0) return LK_OK;
    const char *number = strncmp(device, "cuda:", 5) == 0 ? device + 5 : "";
    size_t digits = strspn(number, "0123456789");
    if (digits < 1 || digits > 4 || number[digits])
        return lk_fail(err, LK_ERR_ARGUMENT, "device \"%s\" is not known; use cuda, or cuda:N for GPU number N", device);
    *ordinal = atoi(number);
    return LK_OK;
}

static lk_status upload_constants(lk_cuda *cu)
{
    float constants[LK_CUDA_CONSTANTS];
    memcpy(constants + LK_CUDA_CODEBOOK, lk_nf4_codebook, 16 * sizeof(float));
    memcpy(constants + LK_CUDA_MAP_SIGNED, lk_dynamic_map(), 256 * sizeof(float));
    memcpy(constants + LK_CUDA_MAP_UNSIGNED, lk_dynamic_map_unsigned(), 256 * sizeof(float));
    void *p;
    LK_TRY(lk_cuda_alloc(&cu->base, sizeof constants, &p));
    cu->constants = p;
    return lk_cuda_upload(&cu->base, p, constants, sizeof constants);
}

/* NCCL between the ranks' GPUs, or else a piece of host memory through which sums go. */
static lk_status connect_ranks(lk_cuda *cu)
{
    lk_ranks *ranks = cu->base.ranks;
    if (!ranks) return LK_OK;
    lk_error without = {0};
    lk_status status = lk_collective_create(&cu->collective, ranks, &cu->device, &without);
    if (status && status != LK_ERR_UNSUPPORTED) return lk_fail(&cu->base.error, status, "%s", without.message);
    if (!status) return LK_OK;
    void *p;
    LK_TRY(lk_rt_host_malloc(&p, LK_CUDA_HOST_PIECE * sizeof(float), &cu->base.error));
    cu->host_piece = p;
    return LK_OK;
}

/* Products of many tokens take warp groups where there are some that add as mma.sync does. */
static lk_status try_warp_groups(lk_cuda *cu)
{
    const char *wanted = getenv("LK_CUDA_WGMMA"); /* "0": mma.sync everywhere; for comparisons, and should they ever misbehave */
    if (cu->device.major != 9 || cu->device.minor != 0 || (wanted && strcmp(wanted, "0") == 0)) return LK_OK;
    int wrong;
    LK_TRY(lk_cuda_probe_groups(&cu->base, &wrong));
    cu->warp_groups = wrong == 0;
    if (wrong < 0)
        lk_log(LK_LOG_WARN, "cuda: this module was built without sm_90a, so products of many tokens go by mma.sync, which is slower");
    else if (wrong > 0)
        lk_log(LK_LOG_WARN, "cuda: wgmma rounds otherwise than mma.sync on this GPU (%d sums), so all products go by mma.sync", wrong);
    return LK_OK;
}

/* What is constant for every model and run is not of the plan's making: lk_allocated starts at 0 for the caller. The plan has a term
 * of its own for the context and cuBLASLt's workspace. */
static lk_status start(lk_cuda *cu, int ordinal)
{
    lk_error *err = &cu->base.error;
    LK_TRY(lk_rt_open(ordinal, &cu->device, err));
    LK_TRY(lk_rt_stream_create(&cu->stream, err));
    LK_TRY(lk_rt_stream_create(&cu->beside, err));
    LK_TRY(lk_rt_event_create(&cu->reached, err));
    LK_TRY(lk_rt_event_create(&cu->joined, err));
    for (int i = 0; i < LK_TRANSFER_SLOTS; i++) LK_TRY(lk_rt_event_create(&cu->arrived[i], err));
    LK_TRY(lk_blas_create(&cu->blas, &cu->device, err));
    const char *graphs = getenv("LK_CUDA_GRAPHS"); /* "0": steps run without; for tests, and should recordings ever misbehave */
    cu->steps.off = graphs && strcmp(graphs, "0") == 0;
    lk_error without = {0};
    const char *attention = getenv("LK_CUDA_ATTENTION"); /* "own": never cuDNN's; for tests, and should its attention ever misbehave */
    bool own = attention && strcmp(attention, "own") == 0;
    lk_status status = own ? LK_ERR_UNSUPPORTED : lk_sdpa_create(&cu->sdpa, &cu->device, &without);
    if (status == LK_ERR_UNSUPPORTED)
        cu->sdpa = NULL;
    else if (status)
        return lk_fail(err, status, "%s", without.message);
    LK_TRY(upload_constants(cu));
    LK_TRY(connect_ranks(cu));
    LK_TRY(try_warp_groups(cu));
    LK_TRY(lk_cuda_nf4_product_prepare(&cu->base));
    LK_TRY(lk_cuda_dense_product_prepare(&cu->base));
    cu->base.allocated = cu->base.allocated_peak = 0;
    return LK_OK;
}

lk_status lk_cuda_open(lk_backend **be, const lk_backend_options *options, lk_error *err)
{
    *be = NULL;
    int ordinal;
    LK_TRY(parse_device(&ordinal, options->device, options->ranks, err));
    if (options->compute != LK_BF16)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "the CUDA backend computes in bf16: use --dtype bf16, or --device cpu");
    lk_cuda *cu = calloc(1, sizeof *cu);
    if (!cu) return lk_fail(err, LK_ERR_MEMORY, "no memory for the CUDA backend");
    cu->base.ops = &lk_cuda_ops;
    cu->base.ranks = options->ranks;
    cu->base.compute = LK_BF16;
    cu->base.act = LK_BF16;
    cu->base.threads = options->threads > 0 ? options->threads : lk_pool_default_threads(); /* of the host: loading quantises there */
    lk_status status = start(cu, ordinal);
    if (status) {
        if (err) *err = cu->base.error;
        lk_cuda_close(&cu->base);
        return status;
    }
    snprintf(cu->base.about, sizeof cu->base.about, "%s, %.1f GiB, products by %s, module for %.180s", cu->device.name,
             (double)cu->device.memory / 1073741824.0, cu->warp_groups ? "wgmma and mma.sync" : "mma.sync", lk_cuda_module_entry.build);
    snprintf(cu->base.name, sizeof cu->base.name, "cuda/sm_%d%d", cu->device.major, cu->device.minor);
    *be = &cu->base;
    return LK_OK;
}

lk_status lk_cuda_use(lk_backend *be) { return lk_rt_use(lk_cuda_of(be)->device.ordinal, &be->error); }

void lk_cuda_close(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_error ignored;
    if (cu->stream) (void)lk_rt_stream_sync(cu->stream, &ignored); /* what failed has been reported, or nobody asked */
    if (cu->beside) (void)lk_rt_stream_sync(cu->beside, &ignored);
    lk_cuda_unreserve(be);
    lk_cuda_tables_unreserve(be);
    lk_cuda_adapters_unreserve(be);
    lk_cuda_sampler_unreserve(be);
    if (cu->constants) lk_cuda_free(be, cu->constants);
    lk_collective_destroy(cu->collective);
    lk_rt_host_free(cu->host_piece);
    lk_sdpa_destroy(cu->sdpa);
    lk_blas_destroy(cu->blas);
    for (int i = 0; i < LK_TRANSFER_SLOTS; i++)
        if (cu->arrived[i]) lk_rt_event_destroy(cu->arrived[i]);
    if (cu->reached) lk_rt_event_destroy(cu->reached);
    if (cu->joined) lk_rt_event_destroy(cu->joined);
    if (cu->beside) lk_rt_stream_destroy(cu->beside);
    if (cu->stream) lk_rt_stream_destroy(cu->stream);
    free(cu->blocks);
    free(cu);
}
