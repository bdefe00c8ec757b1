/* The adapters of a serving batch as the device knows them: a table of every site's factors, and the batch's tokens in tiles of one adapter
 * each. Both are made in lk_batch_begin (tables.c). The factors' table is sent only where the adapters are others than before, so that
 * decoding on goes without; it lies at one address, an adapter's sites behind one another, so that a recording of a step finds whichever
 * adapters are there when it runs. */
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
    const float *gain, *bias; /* lk_lora_gain's; NULL: none */
} lk_cuda_adapter;

/* Tokens [first, first + count) use `adapter`; count <= LK_CUDA_TILE_TOKENS, 0: an empty tile. */
typedef struct lk_cuda_tokens {
    int32_t first, count, adapter, unused;
} lk_cuda_tokens;

typedef struct lk_cuda_adapters {
    lk_cuda_adapter *entries; /* device [adapter][site] */
    lk_lora *sent;            /* what it holds, as the batch gave it: [site][adapter] */
    int64_t room;             /* entries of both */
    int32_t n_sites, n_adapters;
    int32_t *site_ranks; /* [n_sites] class of the largest rank at each */
    uint64_t ranks;      /* all of them in one number: batches that have it in common launch the same */
} lk_cuda_adapters;

/* Ranks that launches tell apart: 0, 16, 32, 64, 128, and multiples of 256. Blocks beyond an adapter's own rank leave at once. */
static inline int32_t lk_cuda_rank_class(int64_t rank)
{
    int32_t most = 16;
    while (most < rank) most += most < 256 ? most : 256;
    return rank > 0 ? most : 0;
}

size_t lk_cuda_adapters_bytes(const lk_limits *limits);
lk_status lk_cuda_adapters_reserve(lk_backend *be, const lk_limits *limits); /* grows, never shrinks */
void lk_cuda_adapters_unreserve(lk_backend *be);
size_t lk_cuda_adapters_entries_bytes(lk_backend *be); /* of what was reserved */

/* Sends the factors' table when it changed, by way of `pinned`, which has room for all of it. */
lk_status lk_cuda_adapters_begin(lk_backend *be, const lk_batch *batch, void *pinned);
/* Fills tiles (NULL: only counts) and says how many. */
int64_t lk_cuda_adapters_tiles(const lk_batch *batch, lk_cuda_tokens *tiles);

#ifdef __cplusplus
}
#endif
#endif
