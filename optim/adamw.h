/* AdamW's state over one flat parameter vector (Loshchilov & Hutter 2019; the update itself is lk_adamw of kernels/ops.h).
 *
 *     lk_adamw_state state;
 *     LK_TRY(lk_adamw_state_init(&state, be, n, err));
 *     LK_TRY(lk_adamw_state_update(&state, params, grads, &(lk_adamw_step){.lr = 2e-4f, ..., .step = 1, .grad_scale = scale}, err));
 *     lk_adamw_state_free(&state);
 *
 * Two moments, F32, zero at first, of the same layout as the parameters. Padding elements have gradient 0 and stay 0. */
#ifndef LK_OPTIM_ADAMW_H
#define LK_OPTIM_ADAMW_H

#include "kernels/ops.h"

typedef struct lk_adamw_state {
    lk_backend *be; /* borrowed */
    float *m, *v;   /* [n] F32, backend memory */
    int64_t n;
} lk_adamw_state;

lk_status lk_adamw_state_init(lk_adamw_state *state, lk_backend *be, int64_t n, lk_error *err);
void lk_adamw_state_free(lk_adamw_state *state); /* safe on a zeroed struct */
lk_status lk_adamw_state_update(lk_adamw_state *state, float *params, const float *grads, const lk_adamw_step *step, lk_error *err);
size_t lk_adamw_state_bytes(int64_t n); /* for the plan */

#endif
