/* Which KV pages are free, and which ones a sequence holds.
 *
 *     lk_pages pages;
 *     LK_TRY(lk_pages_init(&pages, 4096, 16, err));
 *     if (!lk_pages_grow(&pages, &table, n_tokens)) ...      -- all the missing pages, or none and false
 *     lk_pages_release(&pages, &table);                      -- gives all of them back at once
 *     lk_pages_free(&pages);
 *
 * A page holds page_tokens positions of one sequence. Pages are taken when tokens are about to be written, not when a request is
 * admitted: a reservation for the longest possible answer would leave most of the memory idle. One thread, no allocation after init. */
#ifndef LK_SERVE_PAGES_H
#define LK_SERVE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lk_pages {
    int32_t *free; /* a stack: the page given back last is taken first, it is the likeliest to be in a cache */
    int32_t n_free, n_pages, page_tokens;
} lk_pages;

/* The pages of one sequence in order of position. The array belongs to whoever owns the sequence. */
typedef struct lk_block_table {
    int32_t *pages;
    int32_t n, capacity;
} lk_block_table;

lk_status lk_pages_init(lk_pages *pages, int32_t n_pages, int32_t page_tokens, lk_error *err);
void lk_pages_free(lk_pages *pages); /* safe on a zeroed struct */

/* Pages that n_tokens positions take. */
int64_t lk_pages_for(const lk_pages *pages, int64_t n_tokens);

/* Makes the table long enough for n_tokens positions. false: too few pages are free (or the table's capacity is passed); nothing taken. */
bool lk_pages_grow(lk_pages *pages, lk_block_table *table, int64_t n_tokens);
void lk_pages_release(lk_pages *pages, lk_block_table *table);

#endif
