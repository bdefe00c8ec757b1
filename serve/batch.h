/* From a plan to the lk_batch of one forward: rows of one adapter adjacent, block tables, the LoRA table, the rows whose logits count.
 *
 *     lk_batch_builder b;
 *     LK_TRY(lk_batch_builder_init(&b, &limits, err));
 *     lk_batch_build(&b, plan);        -- b.batch, b.rows[b.n_rows], b.requests[b.n_rows]
 *     lk_batch_builder_free(&b);
 *
 * Everything is allocated for the largest batch at init. The adapters of the plan must be held until the forward is over. */
#ifndef LK_SERVE_BATCH_H
#define LK_SERVE_BATCH_H

#include "kernels/ops.h"
#include "serve/request.h"
#include "serve/scheduler.h"

typedef struct lk_batch_limits {
    int64_t max_tokens;
    int32_t max_running, max_adapters, n_sites;
} lk_batch_limits;

typedef struct lk_batch_builder {
    lk_batch_limits limits;
    lk_batch batch; /* points into the arrays below */
    int32_t n_rows;
    int32_t *rows;         /* rows whose logits are wanted ... */
    lk_request **requests; /* ... and whose they are */
    int32_t *ids, *positions;
    lk_sequence *sequences;
    lk_segment *segments;
    const lk_plan_entry **order; /* entries by adapter, then as planned */
    int32_t *entry_adapter;
    const lk_adapter **adapters;
    uint64_t *serials;       /* of the adapters in the plan */
    uint64_t *table_serials; /* of those the table was built for */
    int32_t n_table;
    lk_lora *table;
    lk_adapter_tables *tables; /* of the same adapters */
} lk_batch_builder;

lk_status lk_batch_builder_init(lk_batch_builder *builder, const lk_batch_limits *limits, lk_error *err);
void lk_batch_builder_free(lk_batch_builder *builder); /* safe on a zeroed struct */
void lk_batch_build(lk_batch_builder *builder, const lk_plan *plan);

#endif
