/* AdamW's state over one flat parameter vector (Loshchilov & Hutter 2019; the updates themselves are lk_adamw and lk_adamw8 of
 * kernels/ops.h).
 *
 *     lk_adamw_state state;
 *     LK_TRY(lk_adamw_state_init(&state, be, LK_ADAMW_F32, n, err));
 *     LK_TRY(lk_adamw_state_update(&state, params, grads, &(lk_adamw_step){.lr = 2e-4f, ..., .step = 1, .grad_scale = scale}, err));
 *     lk_adamw_state_free(&state);
 *
 * Two moments, zero at first, of the same layout as the parameters: in fp32, or in 8 bits with a scale for each LK_ADAMW8_BLOCK of them.
 * In 8 bits the whole vector is quantised: bitsandbytes leaves tensors below 4096 elements in fp32, but a block here is never larger than
 * 256, so a small tensor shares its scale with nobody when it begins at a multiple of that (as an adapter's factors do). Padding elements
 * have gradient 0 and stay 0. */
#ifndef LK_OPTIM_ADAMW_H
#define LK_OPTIM_ADAMW_H

#include "kernels/ops.h"

typedef enum lk_adamw_kind { LK_ADAMW_F32, LK_ADAMW_8BIT } lk_adamw_kind;

/* A vector of the state, for whoever saves and restores it. */
typedef struct lk_adamw_part {
    const char *name; /* "m", "v"; in 8 bits also "m_scale", "v_scale" */
    lk_dtype type;    /* F32 or U8 */
    int64_t n;
    void *data; /* backend memory */
} lk_adamw_part;

enum { LK_ADAMW_MAX_PARTS = 4 };

typedef struct lk_adamw_state {
    lk_backend *be; /* borrowed */
    lk_adamw_kind kind;
    int64_t n;
    lk_adamw_part parts[LK_ADAMW_MAX_PARTS];
    int n_parts;
} lk_adamw_state;

const char *lk_adamw_kind_name(lk_adamw_kind kind);              /* "adamw", "adamw8bit" */
bool lk_adamw_kind_parse(const char *name, lk_adamw_kind *kind); /* false: no such kind */
/* What a state of n parameters consists of (data NULL); returns the number of parts. */
int lk_adamw_layout(lk_adamw_part parts[LK_ADAMW_MAX_PARTS], lk_adamw_kind kind, int64_t n);
static inline size_t lk_adamw_part_bytes(const lk_adamw_part *part) { return (size_t)(part->n * lk_dtype_size(part->type)); }

lk_status lk_adamw_state_init(lk_adamw_state *state, lk_backend *be, lk_adamw_kind kind, int64_t n, lk_error *err);
void lk_adamw_state_free(lk_adamw_state *state); /* safe on a zeroed struct */
lk_status lk_adamw_state_update(lk_adamw_state *state, float *params, const float *grads, const lk_adamw_step *step, lk_error *err);
/* The same of elements [first, first + n) alone; first a multiple of LK_ADAMW8_BLOCK. params and grads are those of the whole vector. */
lk_status lk_adamw_state_update_part(lk_adamw_state *state, float *params, const float *grads, int64_t first, int64_t n,
                                     const lk_adamw_step *step, lk_error *err);
size_t lk_adamw_state_bytes(lk_adamw_kind kind, int64_t n); /* for the plan */

#endif
