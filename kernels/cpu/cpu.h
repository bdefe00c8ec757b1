/* The CPU backend's own state, and how its operations are entered. Memory of this backend is plain memory.
 *
 *     lk_cpu *cpu = lk_cpu_of(be);
 *     void *scratch;
 *     LK_TRY(lk_cpu_scratch(be, "linear", bytes, &scratch));
 *     lk_pool_run(cpu->pool, rows, 1, task, &args);
 *
 * Two tables: lk_cpu_ops for the tiers portable and up, whose entries choose by cpu->tier, and lk_ref_ops for the tier
 * "reference". They share memory, matrices and KV layout, so both read the same objects. */
#ifndef LK_KERNELS_CPU_CPU_H
#define LK_KERNELS_CPU_CPU_H

#include "base/pool.h"
#include "kernels/backend.h"
#include "kernels/cpu/features.h"

typedef struct lk_cpu {
    lk_backend base;
    lk_cpu_tier tier;
    lk_pool *pool;
    void *scratch;
    size_t scratch_bytes;
} lk_cpu;

static inline lk_cpu *lk_cpu_of(lk_backend *be) { return (lk_cpu *)be; }
static inline const lk_cpu *lk_cpu_of_const(const lk_backend *be) { return (const lk_cpu *)be; }

lk_status lk_cpu_open(lk_backend **be, const lk_backend_options *options, lk_error *err);

extern const lk_ops lk_cpu_ops;
extern const lk_ops lk_ref_ops;

/* The reserved scratch, when it holds at least `bytes`; an operation has all of it until it returns. */
lk_status lk_cpu_scratch(lk_backend *be, const char *op, size_t bytes, void **out);

/* Entries that both tables share (kernels/cpu/memory.c). */
void lk_cpu_close(lk_backend *be);
lk_status lk_cpu_loader_open(lk_backend **loader, lk_backend *be, lk_error *err);
lk_status lk_cpu_alloc(lk_backend *be, size_t bytes, void **out);
void lk_cpu_free(lk_backend *be, void *p);
lk_status lk_cpu_upload(lk_backend *be, void *device, const void *host, size_t bytes);
lk_status lk_cpu_download(lk_backend *be, void *host, const void *device, size_t bytes);
lk_status lk_cpu_zero(lk_backend *be, void *device, size_t bytes);
lk_status lk_cpu_copy(lk_backend *be, void *device_to, const void *device_from, size_t bytes);
lk_status lk_cpu_sync(lk_backend *be);
lk_status lk_cpu_host_alloc(lk_backend *be, size_t bytes, void **out);
void lk_cpu_host_free(lk_backend *be, void *p);
lk_status lk_cpu_transfer_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes);
lk_status lk_cpu_transfer_wait(lk_backend *be, int slot);
lk_status lk_cpu_all_reduce(lk_backend *be, float *x, int64_t n);
lk_status lk_cpu_reserve(lk_backend *be, const lk_limits *limits);

/* Rounds the way BF16 products do. */
static inline float lk_cpu_round(const lk_backend *be, float x) { return be->compute == LK_BF16 ? lk_bf16_to_f32(lk_f32_to_bf16(x)) : x; }

/* Carves pieces off the scratch, each 64-byte aligned: p = lk_carve(&rest, n * sizeof(float)). */
static inline void *lk_carve(void **rest, size_t bytes)
{
    void *p = *rest;
    *rest = (char *)p + (bytes + 63) / 64 * 64;
    return p;
}
static inline size_t lk_carved(size_t bytes) { return (bytes + 63) / 64 * 64; }

#endif
