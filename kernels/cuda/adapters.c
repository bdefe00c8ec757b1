/* See adapters.h. Sizes come from the limits: sites * adapters entries of 48 bytes (0.34 MB for 32 adapters of a model of 32 layers).
 * Comparing the batch's table with the one that was sent reads 64 bytes an entry on the host: some 20 us for those 7168.
 *
 * Rejected: factors handed to each launch by value or through the staging ring: 448 small copies a step, and a recorded step would hold
 * the adapters of the step it was recorded in. */
#include "kernels/cuda/adapters.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

static int64_t entries_for(const lk_limits *l) { return l->sites * l->adapters; }

size_t lk_cuda_adapters_bytes(const lk_limits *l) { return (size_t)entries_for(l) * sizeof(lk_cuda_adapter); }

size_t lk_cuda_adapters_entries_bytes(lk_backend *be) { return (size_t)lk_cuda_of(be)->adapters.room * sizeof(lk_cuda_adapter); }

void lk_cuda_adapters_unreserve(lk_backend *be)
{
    lk_cuda_adapters *t = &lk_cuda_of(be)->adapters;
    lk_cuda_step_forget(be);
    if (t->entries) lk_cuda_free(be, t->entries);
    free(t->sent);
    free(t->site_ranks);
    *t = (lk_cuda_adapters){0};
}

lk_status lk_cuda_adapters_reserve(lk_backend *be, const lk_limits *limits)
{
    lk_cuda_adapters *t = &lk_cuda_of(be)->adapters;
    int64_t room = entries_for(limits);
    if (room <= t->room) return LK_OK;
    lk_cuda_adapters_unreserve(be);
    void *p;
    LK_TRY(lk_cuda_alloc(be, (size_t)room * sizeof *t->entries, &p));
    t->entries = p;
    t->sent = calloc((size_t)room, sizeof *t->sent);
    t->site_ranks = calloc((size_t)room, sizeof *t->site_ranks);
    if (!t->sent || !t->site_ranks)
        return lk_fail(&be->error, LK_ERR_MEMORY, "no host memory for a table of %lld adapted layers", (long long)room);
    t->room = room;
    return LK_OK;
}

static bool same_lora(const lk_lora *a, const lk_lora *b)
{
    return a->a == b->a && a->b == b->b && a->rank == b->rank && a->type == b->type && a->scale == b->scale && a->gain == b->gain &&
           a->bias == b->bias;
}

static bool sent_already(const lk_cuda_adapters *t, const lk_batch *batch, int64_t n)
{
    if (t->n_sites != batch->n_sites || t->n_adapters != batch->n_adapters) return false;
    for (int64_t i = 0; i < n; i++)
        if (!same_lora(&t->sent[i], &batch->lora[i])) return false;
    return true;
}

static void note_ranks(lk_cuda_adapters *t, const lk_batch *batch)
{
    t->ranks = 14695981039346656037u; /* FNV-1a */
    for (int32_t site = 0; site < batch->n_sites; site++) {
        int32_t most = 0;
        for (int32_t i = 0; i < batch->n_adapters; i++) {
            int32_t rank = batch->lora[(int64_t)site * batch->n_adapters + i].rank;
            if (rank > most) most = rank;
        }
        t->site_ranks[site] = lk_cuda_rank_class(most);
        t->ranks = (t->ranks ^ (uint64_t)t->site_ranks[site]) * 1099511628211u;
    }
}

lk_status lk_cuda_adapters_begin(lk_backend *be, const lk_batch *batch, void *pinned)
{
    lk_cuda *cu = lk_cuda_of(be);
    lk_cuda_adapters *t = &cu->adapters;
    int64_t n = batch->n_segments ? (int64_t)batch->n_sites * batch->n_adapters : 0;
    if (n == 0) return LK_OK;
    if (n > t->room)
        return lk_fail(&be->error, LK_ERR_INTERNAL,
                       "batch_begin: %d adapters of %d sites are more than lk_reserve made room for: limits.adapters and limits.sites",
                       batch->n_adapters, batch->n_sites);
    if (sent_already(t, batch, n)) return LK_OK;
    lk_cuda_adapter *entry = pinned;
    for (int32_t i = 0; i < batch->n_adapters; i++)
        for (int32_t site = 0; site < batch->n_sites; site++) {
            const lk_lora *l = &batch->lora[(int64_t)site * batch->n_adapters + i];
            *entry++ = (lk_cuda_adapter){
                .a = l->a, .b = l->b, .rank = l->rank, .is_bf16 = l->type == LK_BF16, .scale = l->scale, .gain = l->gain, .bias = l->bias};
        }
    t->n_sites = 0; /* nothing is known of the device's table until it is sent */
    LK_TRY(lk_rt_copy(t->entries, pinned, (size_t)n * sizeof *t->entries, cu->stream, &be->error));
    memcpy(t->sent, batch->lora, (size_t)n * sizeof *t->sent);
    note_ranks(t, batch);
    t->n_sites = batch->n_sites;
    t->n_adapters = batch->n_adapters;
    return LK_OK;
}

int64_t lk_cuda_adapters_tiles(const lk_batch *batch, lk_cuda_tokens *tiles)
{
    int64_t n = 0;
    for (int64_t s = 0; s < batch->n_segments; s++) {
        const lk_segment *g = &batch->segments[s];
        for (int64_t first = g->begin; g->adapter >= 0 && first < g->end; first += LK_CUDA_TILE_TOKENS, n++) {
            int64_t count = g->end - first < LK_CUDA_TILE_TOKENS ? g->end - first : LK_CUDA_TILE_TOKENS;
            if (tiles) tiles[n] = (lk_cuda_tokens){.first = (int32_t)first, .count = (int32_t)count, .adapter = g->adapter};
        }
    }
    return n;
}
