/* kernels/cuda/collective.h over NCCL, which is found when it is wanted: one GPU needs none.
 *
 * Rank 0 makes NCCL's identifier and the ranks' shared memory carries it. All ranks then agree on whether it worked, because a rank that
 * went on alone would wait for the others for ever. */
#include "kernels/cuda/collective.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nccl.h>

#define NCCL_FUNCTIONS(X) X(ncclGetUniqueId) X(ncclCommInitRank) X(ncclCommAbort) X(ncclAllGather) X(ncclGetErrorString) X(ncclGetLastError)

enum { MAJOR = NCCL_MAJOR };

struct lk_collective {
    ncclComm_t comm;
#define POINTER(name) __typeof__(name) *name;
    NCCL_FUNCTIONS(POINTER)
#undef POINTER
};

static lk_status refused(const lk_collective *c, lk_error *err, ncclResult_t r, const char *what)
{
    const char *detail = c->ncclGetLastError(c->comm);
    return lk_fail(err, LK_ERR_IO, "%s: NCCL says %s%s%s", what, c->ncclGetErrorString(r), detail && *detail ? ": " : "",
                   detail ? detail : "");
}

static lk_status load(lk_collective *c, lk_error *err)
{
    char name[32];
    snprintf(name, sizeof name, "libnccl.so.%d", MAJOR);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) return lk_fail(err, LK_ERR_UNSUPPORTED, "NCCL is not there: %s", dlerror());
#define FIND(function)                                                                                            \
    do {                                                                                                          \
        void *found = dlsym(library, #function);                                                                  \
        if (!found) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s has no %s: install NCCL again", name, #function); \
        memcpy(&c->function, &found, sizeof found);                                                               \
    } while (0);
    NCCL_FUNCTIONS(FIND)
#undef FIND
    return LK_OK;
}

/* LK_OK when every rank says so. */
static lk_status agree(lk_ranks *ranks, lk_status status, lk_error *err)
{
    double failed = status != LK_OK;
    LK_TRY(lk_ranks_sum_doubles(ranks, &failed, 1, err));
    if (status) return status;
    return failed == 0.0 ? LK_OK : lk_fail(err, LK_ERR_UNSUPPORTED, "NCCL does not start in another rank");
}

lk_status lk_collective_create(lk_collective **out, lk_ranks *ranks, const lk_rt_device *device, lk_error *err)
{
    *out = NULL;
    lk_collective *c = calloc(1, sizeof *c);
    lk_status status = c ? load(c, err) : lk_fail(err, LK_ERR_MEMORY, "no memory for NCCL's table of functions");
    if ((status = agree(ranks, status, err))) goto out;

    ncclUniqueId id;
    ncclResult_t r = ncclSuccess;
    memset(&id, 0, sizeof id);
    if (lk_ranks_rank(ranks) == 0) r = c->ncclGetUniqueId(&id);
    if (r) status = refused(c, err, r, "making NCCL's identifier");
    if ((status = agree(ranks, status, err))) goto out;
    if ((status = lk_ranks_broadcast(ranks, &id, sizeof id, err))) goto out;

    r = c->ncclCommInitRank(&c->comm, lk_ranks_size(ranks), id, lk_ranks_rank(ranks));
    if (r) { /* not fatal: the sums have another way */
        c->comm = NULL;
        (void)refused(c, err, r, "connecting the GPUs");
        (void)lk_error_prefix(err, LK_ERR_IO, "GPU %d (%s)", device->ordinal, device->name);
        if (err) err->code = LK_ERR_UNSUPPORTED;
        status = LK_ERR_UNSUPPORTED;
    }
    if ((status = agree(ranks, status, err))) goto out;
    *out = c;
    return LK_OK;
out:
    lk_collective_destroy(c);
    return status;
}

/* Abort, not destroy: that would wait for ranks that may be gone. The caller has waited for its own queue. */
void lk_collective_destroy(lk_collective *c)
{
    if (!c) return;
    if (c->comm) (void)c->ncclCommAbort(c->comm);
    free(c); /* the library stays: it has threads */
}

lk_status lk_collective_gather(lk_collective *c, void *all, const void *mine, size_t bytes, lk_rt_stream stream, lk_error *err)
{
    ncclResult_t r = c->ncclAllGather(mine, all, bytes, ncclInt8, c->comm, stream);
    return r ? refused(c, err, r, "gathering the ranks' values") : LK_OK;
}
