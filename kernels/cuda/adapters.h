/* The adapters of a serving batch as the device knows them: a table of every site's factors and the batch's tokens in tiles of one adapter
 * each. Both are made in lk_batch_begin and copied only where they changed, so that a step of decoding with the adapters of the step
 * before it sends nothing, and no operation of the step does. */
#ifndef LK_KERNELS_CUDA_ADAPTERS_H
#define LK_KERNELS_CUDA_ADAPTERS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LK_CUDA_TILE_TOKENS = 32 };

/* lk_lora, for kernels. */
typedef struct lk_cuda_adapter {
    const void *a, *b;
    int32_t rank, is_bf16;
    float scale;
    int32_t unused;
} lk_cuda_adapter;

/* Tokens [first, first + count) use `adapter`; count <= LK_CUDA_TILE_TOKENS. */
typedef struct lk_cuda_tokens {
    int32_t first, count, adapter, unused;
} lk_cuda_tokens;

typedef struct lk_cuda_adapters {
    lk_cuda_adapter *entries, *sent_entries; /* device [site][adapter]; what it holds */
    lk_cuda_tokens *tiles, *sent_tiles;
    int64_t entries_room, tiles_room, n_entries, n_tiles;
} lk_cuda_adapters;

size_t lk_cuda_adapters_bytes(const lk_limits *limits);
lk_status lk_cuda_adapters_reserve(lk_backend *be, const lk_limits *limits); /* grows, never shrinks */
void lk_cuda_adapters_unreserve(lk_backend *be);
lk_status lk_cuda_adapters_begin(lk_backend *be, const lk_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
