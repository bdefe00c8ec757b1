/* The scratch that operations share, and the ring through which their host arrays arrive. Both are sized by the limits and taken once.
 *
 * Why one scratch is enough: operations run one after the other on one stream, so what an operation queued has used its scratch before
 * anything queued later writes there. What runs on the second stream beside a product (lora_serve.cu) has the end of it. The ring is a ring
 * only so that one operation may stage several arrays; an array staged on top of an older one is copied after everything that read the
 * older one. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/product.h"

/* Room beyond what tokens ask for: segments, starts of documents, tables of adapters. */
enum { STAGING_BASE = 64 << 10, SCRATCH_BASE = 64 << 10 };

/* Twice what an operation may stage, so that what it staged first survives the ring's turn; a bias is 2 bytes a column. */
static size_t staging_needs(const lk_limits *l)
{
    int64_t arrays = l->slots * 4 > l->tokens * 8 ? l->slots * 4 : l->tokens * 8;
    return 2 * (size_t)(arrays + l->width * 2 + STAGING_BASE);
}

size_t lk_cuda_scratch_needs(const lk_cuda *cu, const lk_limits *l)
{
    bool training = !l->serving; /* batches of documents, which go to cuBLASLt */
    const size_t each[] = {
        SCRATCH_BASE, /* sums in pieces and other small things */
        training ? lk_cuda_weights_scratch(l) : 0,
        lk_cuda_product_scratch(l) + lk_cuda_lora_serve_scratch(l),
        training ? lk_cuda_lora_scratch(l) : 0,
        training ? lk_cuda_linear_lora_scratch(l) : 0,
        training ? lk_cuda_loss_scratch(l) : 0,
        lk_cuda_squares_scratch(),
        lk_cuda_gain_scratch(l),
        training ? lk_cuda_attention_scratch(cu, l) : 0,
        lk_cuda_paged_scratch(l),
        l->serving ? lk_cuda_sample_scratch(l) : 0,
    };
    size_t most = 0;
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        if (each[i] > most) most = each[i];
    return lk_cuda_carved(most);
}

size_t lk_cuda_scratch_bytes(const lk_backend *be, const lk_limits *limits)
{
    return lk_cuda_scratch_needs((const lk_cuda *)be, limits) + staging_needs(limits) + lk_cuda_adapters_bytes(limits) +
           lk_cuda_tables_bytes(limits) + lk_cuda_sampler_bytes(limits);
}

void lk_cuda_unreserve(lk_backend *be)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_step_forget(be);
    if (cu->scratch) lk_cuda_free(be, cu->scratch);
    if (cu->staging) lk_cuda_free(be, cu->staging);
    cu->scratch = cu->staging = NULL;
    cu->scratch_bytes = cu->branch_bytes = cu->staging_bytes = cu->staging_at = 0;
}

/* What is too small goes before its successor comes: the plan has room for one of them. */
lk_status lk_cuda_reserve_scratch(lk_backend *be, const lk_limits *limits)
{
    lk_cuda *cu = lk_cuda_of(be);
    size_t scratch = lk_cuda_scratch_needs(cu, limits), staging = staging_needs(limits), branch = lk_cuda_lora_serve_scratch(limits);
    if (branch < cu->branch_bytes) branch = cu->branch_bytes;
    if (scratch <= cu->scratch_bytes && staging <= cu->staging_bytes && branch == cu->branch_bytes) return LK_OK;
    if (scratch < cu->scratch_bytes) scratch = cu->scratch_bytes;
    if (staging < cu->staging_bytes) staging = cu->staging_bytes;
    lk_cuda_unreserve(be);
    cu->branch_bytes = branch;
    LK_TRY(lk_cuda_alloc(be, scratch, &cu->scratch));
    cu->scratch_bytes = scratch;
    LK_TRY(lk_cuda_alloc(be, staging, &cu->staging));
    cu->staging_bytes = staging;
    return LK_OK;
}

lk_status lk_cuda_reserve(lk_backend *be, const lk_limits *limits)
{
    LK_TRY(lk_cuda_adapters_reserve(be, limits));
    LK_TRY(lk_cuda_tables_reserve(be, limits));
    LK_TRY(lk_cuda_sampler_reserve(be, limits));
    return lk_cuda_reserve_scratch(be, limits);
}

lk_status lk_cuda_scratch(lk_backend *be, const char *op, size_t bytes, void **out)
{
    const lk_cuda *cu = lk_cuda_of(be);
    if (bytes > cu->scratch_bytes)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: needs %zu bytes of scratch and lk_reserve made %zu: limits too small", op, bytes,
                       cu->scratch_bytes);
    *out = cu->scratch;
    return LK_OK;
}

lk_status lk_cuda_ring(lk_backend *be, void **device, size_t bytes)
{
    lk_cuda *cu = lk_cuda_of(be);
    size_t taken = lk_cuda_carved(bytes);
    if (taken > cu->staging_bytes)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%zu bytes of the ring at once and lk_reserve made room for %zu: limits too small",
                       bytes, cu->staging_bytes);
    if (cu->staging_at + taken > cu->staging_bytes) cu->staging_at = 0;
    *device = (char *)cu->staging + cu->staging_at;
    cu->staging_at += taken;
    return LK_OK;
}

lk_status lk_cuda_stage(lk_backend *be, void **device, const void *host, size_t bytes)
{
    if (lk_cuda_of(be)->steps.recording)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "a recorded step brings a host array that lk_batch_begin was not given");
    LK_TRY(lk_cuda_ring(be, device, bytes));
    return lk_rt_copy(*device, host, bytes, lk_cuda_of(be)->stream, &be->error);
}
