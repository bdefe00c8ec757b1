/* The free list is a stack of page numbers; a block table is an array. Nothing is searched and nothing is allocated. */
#include "serve/pages.h"

#include <stdlib.h>

lk_status lk_pages_init(lk_pages *pages, int32_t n_pages, int32_t page_tokens, lk_error *err)
{
    *pages = (lk_pages){.n_pages = n_pages, .n_free = n_pages, .page_tokens = page_tokens};
    if (n_pages < 1 || page_tokens < 1) return lk_fail(err, LK_ERR_INTERNAL, "%d KV pages of %d tokens", n_pages, page_tokens);
    pages->free = malloc((size_t)n_pages * sizeof *pages->free);
    if (!pages->free) return lk_fail(err, LK_ERR_MEMORY, "no memory for a list of %d KV pages", n_pages);
    for (int32_t i = 0; i < n_pages; i++) pages->free[i] = n_pages - 1 - i; /* page 0 on top */
    return LK_OK;
}

void lk_pages_free(lk_pages *pages)
{
    free(pages->free);
    *pages = (lk_pages){0};
}

int64_t lk_pages_for(const lk_pages *pages, int64_t n_tokens) { return (n_tokens + pages->page_tokens - 1) / pages->page_tokens; }

bool lk_pages_grow(lk_pages *pages, lk_block_table *table, int64_t n_tokens)
{
    int64_t want = lk_pages_for(pages, n_tokens);
    if (want > table->capacity || want - table->n > pages->n_free) return false;
    while (table->n < want) table->pages[table->n++] = pages->free[--pages->n_free];
    return true;
}

void lk_pages_release(lk_pages *pages, lk_block_table *table)
{
    while (table->n > 0) pages->free[pages->n_free++] = table->pages[--table->n];
}
