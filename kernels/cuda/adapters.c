/* See adapters.h. Sizes come from the limits: sites * adapters entries of 32 bytes (0.23 MB for 32 adapters of a model of 32 layers) and,
 * at worst, a tile a token.
 *
 * Rejected: factors handed to each launch by value or through the staging ring: 448 small copies a step, and a captured graph would hold
 * the adapters of the step it was captured in. */
#include "kernels/cuda/adapters.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t entries_for(const lk_limits *l) { return l->sites * l->adapters; }
static int64_t tiles_for(const lk_limits *l) { return entries_for(l) ? l->tokens : 0; }

size_t lk_cuda_adapters_bytes(const lk_limits *l)
{
    return (size_t)entries_for(l) * sizeof(lk_cuda_adapter) + (size_t)tiles_for(l) * sizeof(lk_cuda_tokens);
}

void lk_cuda_adapters_unreserve(lk_backend *be)
{
    lk_cuda_adapters *t = &lk_cuda_of(be)->adapters;
    if (t->entries) lk_cuda_free(be, t->entries);
    if (t->tiles) lk_cuda_free(be, t->tiles);
    free(t->sent_entries);
    free(t->sent_tiles);
    *t = (lk_cuda_adapters){0};
}

lk_status lk_cuda_adapters_reserve(lk_backend *be, const lk_limits *limits)
{
    lk_cuda_adapters *t = &lk_cuda_of(be)->adapters;
    int64_t entries = entries_for(limits), tiles = tiles_for(limits);
    if (entries <= t->entries_room && tiles <= t->tiles_room) return LK_OK;
    entries = larger(entries, t->entries_room);
    tiles = larger(tiles, t->tiles_room);
    lk_cuda_adapters_unreserve(be);
    void *p;
    LK_TRY(lk_cuda_alloc(be, (size_t)entries * sizeof *t->entries, &p));
    t->entries = p;
    LK_TRY(lk_cuda_alloc(be, (size_t)tiles * sizeof *t->tiles, &p));
    t->tiles = p;
    t->sent_entries = calloc((size_t)entries, sizeof *t->entries);
    t->sent_tiles = calloc((size_t)tiles, sizeof *t->tiles);
    if (!t->sent_entries || !t->sent_tiles)
        return lk_fail(&be->error, LK_ERR_MEMORY, "no host memory for a table of %lld adapted layers", (long long)entries);
    t->entries_room = entries;
    t->tiles_room = tiles;
    return LK_OK;
}

/* Replaces *kept where it differs. */
static bool renew(void *kept, const void *now, size_t size)
{
    if (memcmp(kept, now, size) == 0) return false;
    memcpy(kept, now, size);
    return true;
}

static bool renew_entries(lk_cuda_adapters *t, const lk_batch *batch, int64_t n)
{
    bool changed = n > t->n_entries;
    for (int64_t i = 0; i < n; i++) {
        const lk_lora *l = &batch->lora[i];
        lk_cuda_adapter e = {.a = l->a, .b = l->b, .rank = l->rank, .is_bf16 = l->type == LK_BF16, .scale = l->scale};
        changed |= renew(&t->sent_entries[i], &e, sizeof e);
    }
    t->n_entries = n;
    return changed;
}

static bool renew_tiles(lk_cuda_adapters *t, const lk_batch *batch)
{
    int64_t n = 0, before = t->n_tiles;
    bool changed = false;
    for (int64_t s = 0; s < batch->n_segments; s++) {
        const lk_segment *g = &batch->segments[s];
        for (int64_t first = g->begin; g->adapter >= 0 && first < g->end; first += LK_CUDA_TILE_TOKENS) {
            int64_t count = g->end - first < LK_CUDA_TILE_TOKENS ? g->end - first : LK_CUDA_TILE_TOKENS;
            lk_cuda_tokens tile = {.first = (int32_t)first, .count = (int32_t)count, .adapter = g->adapter};
            changed |= renew(&t->sent_tiles[n++], &tile, sizeof tile);
        }
    }
    t->n_tiles = n;
    return changed || n > before;
}

lk_status lk_cuda_adapters_begin(lk_backend *be, const lk_batch *batch)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_adapters *t = &cu->adapters;
    int64_t entries = batch->n_segments ? (int64_t)batch->n_sites * batch->n_adapters : 0;
    if (entries == 0) {
        t->n_tiles = 0;
        return LK_OK;
    }
    if (entries > t->entries_room || batch->n_tokens > t->tiles_room)
        return lk_fail(&be->error, LK_ERR_INTERNAL,
                       "batch_begin: %d adapters of %d sites over %lld tokens are more than lk_reserve made room for: limits.adapters, "
                       "limits.sites and limits.tokens",
                       batch->n_adapters, batch->n_sites, (long long)batch->n_tokens);
    if (renew_entries(t, batch, entries))
        LK_TRY(lk_rt_copy(t->entries, t->sent_entries, (size_t)entries * sizeof *t->entries, cu->stream, &be->error));
    if (renew_tiles(t, batch) && t->n_tiles)
        LK_TRY(lk_rt_copy(t->tiles, t->sent_tiles, (size_t)t->n_tiles * sizeof *t->tiles, cu->stream, &be->error));
    return LK_OK;
}
