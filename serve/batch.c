/* Adapters are numbered in order of first appearance in the plan; a counting pass over so few entries needs no sort. In steady decoding
 * the same adapters come in the same order at every step, so the LoRA table (sites * adapters entries) is rebuilt only when the list of
 * serials changes. Serials, not pointers: a freed adapter's address may be another's tomorrow. */
#include "serve/batch.h"

#include <stdlib.h>
#include <string.h>

lk_status lk_batch_builder_init(lk_batch_builder *b, const lk_batch_limits *limits, lk_error *err)
{
    *b = (lk_batch_builder){.limits = *limits};
    size_t tokens = (size_t)limits->max_tokens, running = (size_t)limits->max_running, adapters = (size_t)limits->max_adapters;
    b->rows = calloc(running, sizeof *b->rows);
    b->requests = calloc(running, sizeof *b->requests);
    b->ids = calloc(tokens, sizeof *b->ids);
    b->positions = calloc(tokens, sizeof *b->positions);
    b->sequences = calloc(running, sizeof *b->sequences);
    b->segments = calloc(running, sizeof *b->segments);
    b->order = calloc(running, sizeof *b->order);
    b->entry_adapter = calloc(running, sizeof *b->entry_adapter);
    b->adapters = calloc(adapters, sizeof *b->adapters);
    b->serials = calloc(adapters, sizeof *b->serials);
    b->table_serials = calloc(adapters, sizeof *b->table_serials);
    b->table = calloc(adapters * (size_t)limits->n_sites, sizeof *b->table);
    b->tables = calloc(adapters, sizeof *b->tables);
    if (b->rows && b->requests && b->ids && b->positions && b->sequences && b->segments && b->order && b->entry_adapter && b->adapters &&
        b->serials && b->table_serials && b->table && b->tables)
        return LK_OK;
    lk_batch_builder_free(b);
    return lk_fail(err, LK_ERR_MEMORY, "no memory for batches of %zu tokens and %zu adapters", tokens, adapters);
}

void lk_batch_builder_free(lk_batch_builder *b)
{
    free(b->rows);
    free(b->requests);
    free(b->ids);
    free(b->positions);
    free(b->sequences);
    free(b->segments);
    free(b->order);
    free(b->entry_adapter);
    free(b->adapters);
    free(b->serials);
    free(b->table_serials);
    free(b->table);
    free(b->tables);
    *b = (lk_batch_builder){0};
}

/* Fills entry_adapter (-1: the base), adapters and serials; returns the number of adapters. */
static int32_t number_adapters(lk_batch_builder *b, const lk_plan *plan)
{
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n; i++) {
        const lk_version *v = ((const lk_request *)(const void *)plan->entries[i].task)->version;
        int32_t a = -1;
        if (v) {
            for (a = 0; a < n && b->serials[a] != v->serial; a++) {
            }
            if (a == n) {
                b->serials[n] = v->serial;
                b->adapters[n++] = v->adapter;
            }
        }
        b->entry_adapter[i] = a;
    }
    return n;
}

/* Entries of one adapter together, the base's last. */
static void order_entries(lk_batch_builder *b, const lk_plan *plan, int32_t n_adapters)
{
    int32_t n = 0;
    for (int32_t a = 0; a <= n_adapters; a++)
        for (int32_t i = 0; i < plan->n; i++)
            if (b->entry_adapter[i] == (a < n_adapters ? a : -1)) b->order[n++] = &plan->entries[i];
}

static void build_table(lk_batch_builder *b, int32_t n_adapters)
{
    size_t bytes = (size_t)n_adapters * sizeof *b->serials;
    if (n_adapters == 0 || (n_adapters == b->n_table && !memcmp(b->serials, b->table_serials, bytes))) return;
    lk_adapter_table(b->table, b->adapters, n_adapters, NULL);
    memcpy(b->table_serials, b->serials, bytes);
    b->n_table = n_adapters;
}

static void add_segment(lk_batch_builder *b, int64_t begin, int64_t end, int32_t adapter)
{
    lk_segment *last = b->batch.n_segments ? &b->segments[b->batch.n_segments - 1] : NULL;
    if (last && last->adapter == adapter)
        last->end = end;
    else
        b->segments[b->batch.n_segments++] = (lk_segment){begin, end, adapter};
}

/* The tokens of an entry; the last one may be known to the device alone. */
static void copy_ids(int32_t *ids, const lk_request *r, int64_t first, int64_t count)
{
    int64_t known = r->n_prompt + r->n_output - first;
    memcpy(ids, r->tokens + first, (size_t)(known < count ? known : count) * sizeof *ids);
    if (known < count) ids[count - 1] = lk_drawn(r->drawn_row);
}

void lk_batch_build(lk_batch_builder *b, const lk_plan *plan)
{
    int32_t n_adapters = number_adapters(b, plan);
    order_entries(b, plan, n_adapters);
    build_table(b, n_adapters);
    b->batch = (lk_batch){.ids = b->ids,
                          .positions = b->positions,
                          .sequences = b->sequences,
                          .segments = b->segments,
                          .n_sites = b->limits.n_sites,
                          .n_adapters = n_adapters,
                          .lora = b->table,
                          .tables = n_adapters ? lk_adapter_fill_tables(b->tables, b->adapters, n_adapters) : NULL};
    b->n_rows = 0;
    int64_t row = 0;
    for (int32_t i = 0; i < plan->n; i++) {
        const lk_plan_entry *e = b->order[i];
        lk_request *r = (lk_request *)(void *)e->task;
        int64_t first = e->task->n_cached;
        copy_ids(b->ids + row, r, first, e->count);
        for (int64_t t = 0; t < e->count; t++) b->positions[row + t] = (int32_t)(first + t);
        b->sequences[i] = (lk_sequence){.begin = row, .count = e->count, .length = first + e->count, .pages = e->task->table.pages};
        if (n_adapters) add_segment(b, row, row + e->count, b->entry_adapter[e - plan->entries]);
        row += e->count;
        if (!e->last) continue;
        b->rows[b->n_rows] = (int32_t)(row - 1);
        b->requests[b->n_rows++] = r;
    }
    b->batch.n_tokens = row;
    b->batch.n_sequences = plan->n;
    b->batch.rows = b->rows;
    b->batch.n_rows = b->n_rows;
}
