/* A hash table from token to its place in two arrays, at most half full. An array over the vocabulary was rejected: 128 thousand entries
 * for every request, of which a few hundred are touched. */
#include "serve/seen.h"

#include <stdlib.h>
#include <string.h>

lk_status lk_seen_init(lk_seen *seen, int64_t most, lk_error *err)
{
    *seen = (lk_seen){0};
    uint32_t size = 16;
    while (size < 2 * (uint64_t)most && size < 1u << 30) size *= 2;
    seen->mask = size - 1;
    seen->ids = calloc((size_t)most, sizeof *seen->ids);
    seen->counts = calloc((size_t)most, sizeof *seen->counts);
    seen->slots = malloc(size * sizeof *seen->slots);
    if (!seen->ids || !seen->counts || !seen->slots) {
        lk_seen_free(seen);
        return lk_fail(err, LK_ERR_MEMORY, "no memory to count %lld tokens for the penalties", (long long)most);
    }
    memset(seen->slots, -1, size * sizeof *seen->slots);
    return LK_OK;
}

void lk_seen_free(lk_seen *seen)
{
    free(seen->ids);
    free(seen->counts);
    free(seen->slots);
    *seen = (lk_seen){0};
}

static int32_t find(lk_seen *seen, int32_t id)
{
    uint32_t at = (uint32_t)id * 0x9e3779b1u & seen->mask;
    while (seen->slots[at] >= 0 && seen->ids[seen->slots[at]] != id) at = (at + 1) & seen->mask;
    if (seen->slots[at] < 0) {
        seen->slots[at] = seen->n;
        seen->ids[seen->n++] = id;
    }
    return seen->slots[at];
}

void lk_seen_prompt(lk_seen *seen, int32_t id) { (void)find(seen, id); }
void lk_seen_output(lk_seen *seen, int32_t id) { seen->counts[find(seen, id)]++; }
