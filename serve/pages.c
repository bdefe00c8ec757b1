/* Two bit maps and a few counts. The lowest free page is found from a mark below which nothing is free, 64 pages at a look; runs are
 * looked for page by page, for an adapter comes seldom and the pool has some ten thousand pages at most. A stack of free pages was
 * quicker by nothing that shows and scattered sequences over the whole pool. */
#include "serve/pages.h"

#include <stdlib.h>

static bool bit(const uint64_t *map, int32_t page) { return map[page / 64] >> (page % 64) & 1; }
static void set(uint64_t *map, int32_t page) { map[page / 64] |= UINT64_C(1) << (page % 64); }
static void unset(uint64_t *map, int32_t page) { map[page / 64] &= ~(UINT64_C(1) << (page % 64)); }

lk_status lk_pages_init(lk_pages *pages, int32_t n_pages, int32_t page_tokens, lk_error *err)
{
    *pages = (lk_pages){.n_pages = n_pages, .page_tokens = page_tokens};
    if (n_pages < 1 || page_tokens < 1) return lk_fail(err, LK_ERR_INTERNAL, "a pool of %d pages of %d tokens", n_pages, page_tokens);
    size_t words = (size_t)n_pages / 64 + 1;
    pages->is_free = calloc(words, sizeof *pages->is_free);
    pages->in_run = calloc(words, sizeof *pages->in_run);
    if (!pages->is_free || !pages->in_run) {
        lk_pages_free(pages);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for a list of %d pages", n_pages);
    }
    for (int32_t i = 0; i < n_pages; i++) set(pages->is_free, i);
    pages->n_free = n_pages;
    return LK_OK;
}

void lk_pages_free(lk_pages *pages)
{
    free(pages->is_free);
    free(pages->in_run);
    *pages = (lk_pages){0};
}

/* ------------------------------------------------------------------------------------------------ sequences */

/* There is one. */
static int32_t find_lowest(lk_pages *pages)
{
    int32_t word = pages->lowest / 64;
    while (!pages->is_free[word]) word++;
    return pages->lowest = word * 64 + __builtin_ctzll(pages->is_free[word]);
}

static int32_t take_lowest(lk_pages *pages)
{
    int32_t page = find_lowest(pages);
    unset(pages->is_free, page);
    pages->n_free--;
    pages->lowest = page + 1;
    return page;
}

static void give_back(lk_pages *pages, int32_t page)
{
    set(pages->is_free, page);
    pages->n_free++;
    if (page < pages->lowest) pages->lowest = page;
}

int64_t lk_pages_for(const lk_pages *pages, int64_t n_tokens) { return (n_tokens + pages->page_tokens - 1) / pages->page_tokens; }

bool lk_pages_grow(lk_pages *pages, lk_block_table *table, int64_t n_tokens)
{
    int64_t want = lk_pages_for(pages, n_tokens);
    if (want > table->capacity || want - table->n > pages->n_free) return false;
    while (table->n < want) table->pages[table->n++] = take_lowest(pages);
    return true;
}

void lk_pages_release(lk_pages *pages, lk_block_table *table)
{
    while (table->n > 0) give_back(pages, table->pages[--table->n]);
}

/* ------------------------------------------------------------------------------------------------ runs */

int32_t lk_pages_find(const lk_pages *pages, int32_t n)
{
    int32_t together = 0;
    for (int32_t page = pages->n_pages - 1; page >= pages->lowest; page--) {
        together = bit(pages->is_free, page) ? together + 1 : 0;
        if (together == n) return page;
    }
    return -1;
}

void lk_pages_take(lk_pages *pages, int32_t first, int32_t n)
{
    for (int32_t page = first; page < first + n; page++) {
        pages->n_free -= bit(pages->is_free, page);
        unset(pages->is_free, page);
        set(pages->in_run, page);
    }
    pages->n_runs += n;
}

void lk_pages_give(lk_pages *pages, int32_t first, int32_t n)
{
    for (int32_t page = first; page < first + n; page++) {
        unset(pages->in_run, page);
        give_back(pages, page);
    }
    pages->n_runs -= n;
}

int32_t lk_pages_behind(const lk_pages *pages, int32_t last)
{
    int32_t n = 0;
    while (last + 1 + n < pages->n_pages && bit(pages->is_free, last + 1 + n)) n++;
    return n;
}

int32_t lk_pages_window(const lk_pages *pages, int32_t n)
{
    int32_t best = -1, fewest = 0, used = 0, length = 0; /* of the window that begins at `page`, as far as it reaches */
    for (int32_t page = pages->n_pages - 1; page >= 0; page--) {
        if (bit(pages->in_run, page)) {
            used = length = 0;
            continue;
        }
        used += !bit(pages->is_free, page);
        if (length == n)
            used -= !bit(pages->is_free, page + n);
        else
            length++;
        if (length == n && (best < 0 || used < fewest)) {
            best = page;
            fewest = used;
        }
    }
    return best;
}

void lk_pages_move(lk_pages *pages, lk_block_table *table, int32_t first, int32_t n, void (*move)(void *context, int32_t to, int32_t from),
                   void *context)
{
    for (int32_t i = 0; i < table->n; i++) {
        int32_t from = table->pages[i];
        if (from < first || from >= first + n) continue;
        bool must = bit(pages->in_run, from);
        if (!must && (pages->n_free == 0 || find_lowest(pages) > from)) continue;
        table->pages[i] = take_lowest(pages);
        move(context, table->pages[i], from);
        if (!must) give_back(pages, from);
    }
}
