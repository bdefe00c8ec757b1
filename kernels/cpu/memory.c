/* Memory of the CPU backend: blocks of plain memory that remember their own size, so that what is taken can be counted and
 * compared with the plan. Large blocks come straight from the kernel: they are zero without being touched, may use huge pages
 * (a matrix product walks far through memory), and go back at once when freed. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"

enum { HEADER = 64, LARGE = 2 << 20 };

/* Lies right before the pointer that callers see; HEADER keeps that pointer 64-byte aligned. */
typedef struct block {
    size_t bytes;  /* what the caller asked for */
    size_t mapped; /* length of the mapping, or 0 for the heap */
} block;

lk_status lk_cpu_alloc(lk_backend *be, size_t bytes, void **out)
{
    char *p = NULL;
    size_t mapped = 0;
    if (bytes > SIZE_MAX / 2) return lk_fail(&be->error, LK_ERR_MEMORY, "%zu bytes cannot be allocated", bytes);
    if (bytes >= LARGE) {
        mapped = bytes + HEADER;
        p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            p = NULL;
        else
            (void)madvise(p, mapped, MADV_HUGEPAGE); /* advice only */
    } else {
        size_t size = (bytes + HEADER + 63) / 64 * 64;
        p = aligned_alloc(64, size);
        if (p) memset(p, 0, size);
    }
    if (!p) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a block of %zu bytes (%zu already taken)", bytes, be->allocated);
    *(block *)(void *)p = (block){bytes, mapped};
    lk_backend_account(be, bytes, 0);
    *out = p + HEADER;
    return LK_OK;
}

void lk_cpu_free(lk_backend *be, void *pointer)
{
    block *b = (block *)(void *)((char *)pointer - HEADER);
    lk_backend_account(be, 0, b->bytes);
    if (b->mapped)
        munmap(b, b->mapped);
    else
        free(b);
}

lk_status lk_cpu_upload(lk_backend *be, void *device, const void *host, size_t bytes) { return lk_cpu_copy(be, device, host, bytes); }
lk_status lk_cpu_download(lk_backend *be, void *host, const void *device, size_t bytes) { return lk_cpu_copy(be, host, device, bytes); }

lk_status lk_cpu_zero(lk_backend *be, void *device, size_t bytes)
{
    (void)be;
    memset(device, 0, bytes);
    return LK_OK;
}

lk_status lk_cpu_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes)
{
    (void)be;
    memcpy(device_to, device_from, bytes);
    return LK_OK;
}

lk_status lk_cpu_sync(lk_backend *be)
{
    (void)be;
    return LK_OK;
}

lk_status lk_cpu_host_alloc(lk_backend *be, size_t bytes, void **out)
{
    *out = malloc(bytes ? bytes : 1);
    if (!*out) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for %zu bytes on the host", bytes);
    return LK_OK;
}

void lk_cpu_host_free(lk_backend *be, void *p)
{
    (void)be;
    free(p);
}

/* Nothing runs beside: a transfer is done when it has begun. */
lk_status lk_cpu_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes)
{
    (void)slot;
    return lk_cpu_copy(be, to, from, bytes);
}

lk_status lk_cpu_transfer_wait(lk_backend *be, int slot)
{
    (void)be;
    (void)slot;
    return LK_OK;
}

lk_status lk_cpu_all_reduce(lk_backend *be, float *x, int64_t n) { return lk_ranks_sum(be->ranks, x, n, &be->error); }

lk_status lk_cpu_reserve(lk_backend *be, const lk_limits *limits)
{
    lk_cpu *cpu = lk_cpu_of(be);
    size_t bytes = be->ops->scratch_bytes(be, limits);
    if (bytes <= cpu->scratch_bytes) return LK_OK;
    lk_free(be, cpu->scratch); /* first: nothing in it is wanted, and the plan counts the larger one alone */
    cpu->scratch = NULL;
    cpu->scratch_bytes = 0;
    LK_TRY(lk_alloc(be, bytes, &cpu->scratch));
    cpu->scratch_bytes = bytes;
    return LK_OK;
}

lk_status lk_cpu_scratch(lk_backend *be, const char *op, size_t bytes, void **out)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    if (bytes > cpu->scratch_bytes)
        return lk_fail(&be->error, LK_ERR_INTERNAL, "%s: needs %zu bytes of scratch and lk_reserve made %zu: limits too small", op, bytes,
                       cpu->scratch_bytes);
    *out = cpu->scratch;
    return LK_OK;
}
