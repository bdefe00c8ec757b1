/* The pool: one row of equal pages that the keys and values of sequences and the weights of adapters share.
 *
 *     lk_pages pages;
 *     LK_TRY(lk_pages_init(&pages, 4096, 16, err));
 *     if (!lk_pages_grow(&pages, &table, n_tokens)) ...      -- all the missing pages of a sequence, or none and false
 *     lk_pages_release(&pages, &table);                      -- gives all of them back at once
 *     int32_t first = lk_pages_find(&pages, 40);             -- 40 free pages behind one another, or -1
 *     if (first >= 0) lk_pages_take(&pages, first, 40);      -- a run: what lies in it is nobody's business here
 *     lk_pages_give(&pages, first, 40);
 *     lk_pages_free(&pages);
 *
 * A page holds page_tokens positions of one sequence. Pages are taken when tokens are about to be written, not when a request is
 * admitted: a reservation for the longest possible answer would leave most of the memory idle. An adapter wants its memory in one piece:
 * a run of pages.
 *
 * Sequences take the lowest free pages, runs the highest, so that they meet in the middle and the free pages mostly lie together. Where
 * enough pages are free but not together, a run gets a window from which the sequences' pages are moved away (lk_pages_window,
 * lk_pages_move): of a sequence's page only its number in the block table is known outside, so moving one is a copy and
 * a new number.
 *
 * One thread, no allocation after init. */
#ifndef LK_SERVE_PAGES_H
#define LK_SERVE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct lk_pages {
    uint64_t *is_free, *in_run; /* one bit a page */
    int32_t n_free, n_pages, page_tokens;
    int32_t n_runs; /* pages in runs */
    int32_t lowest; /* nothing below is free */
} lk_pages;

/* The pages of one sequence in order of position. The array belongs to whoever owns the sequence. */
typedef struct lk_block_table {
    int32_t *pages;
    int32_t n, capacity;
} lk_block_table;

lk_status lk_pages_init(lk_pages *pages, int32_t n_pages, int32_t page_tokens, lk_error *err);
void lk_pages_free(lk_pages *pages); /* safe on a zeroed struct */

/* ------------------------------------------------------------------------------------------------ sequences */

/* Pages that n_tokens positions take. */
int64_t lk_pages_for(const lk_pages *pages, int64_t n_tokens);

/* Makes the table long enough for n_tokens positions. false: too few pages are free (or the table's capacity is passed); nothing taken. */
bool lk_pages_grow(lk_pages *pages, lk_block_table *table, int64_t n_tokens);
void lk_pages_release(lk_pages *pages, lk_block_table *table);

/* ------------------------------------------------------------------------------------------------ runs */

/* The highest n free pages that lie together: the first of them, or -1. */
int32_t lk_pages_find(const lk_pages *pages, int32_t n);
/* They become a run. Pages of sequences may be among them (lk_pages_window): each of those then has to be moved by lk_pages_move. */
void lk_pages_take(lk_pages *pages, int32_t first, int32_t n);
void lk_pages_give(lk_pages *pages, int32_t first, int32_t n);
/* Free pages right behind page `last`. */
int32_t lk_pages_behind(const lk_pages *pages, int32_t last);

/* Of all windows of n pages without a page of a run, the one with the fewest pages in use, the highest of several: its first page, or -1.
 * Only where n pages are free can what is in it go elsewhere. */
int32_t lk_pages_window(const lk_pages *pages, int32_t n);
/* Moves the pages of a table that lie in [first, first + n): those in a run away from there, others down where that is possible. move is
 * to copy a page's content. */
void lk_pages_move(lk_pages *pages, lk_block_table *table, int32_t first, int32_t n, void (*move)(void *context, int32_t to, int32_t from),
                   void *context);

#endif
