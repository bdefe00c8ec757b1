#include "optim/adamw.h"

size_t lk_adamw_state_bytes(int64_t n) { return 2 * (size_t)n * sizeof(float); }

lk_status lk_adamw_state_init(lk_adamw_state *state, lk_backend *be, int64_t n, lk_error *err)
{
    void *m = NULL, *v = NULL;
    *state = (lk_adamw_state){.be = be, .n = n};
    lk_status status = lk_alloc(be, (size_t)n * sizeof(float), &m);
    if (!status) status = lk_alloc(be, (size_t)n * sizeof(float), &v);
    state->m = m;
    state->v = v;
    if (!status) return LK_OK;
    lk_backend_fail(be, status, err);
    lk_adamw_state_free(state);
    return status;
}

void lk_adamw_state_free(lk_adamw_state *state)
{
    if (!state->be) return;
    lk_free(state->be, state->m);
    lk_free(state->be, state->v);
    *state = (lk_adamw_state){0};
}

lk_status lk_adamw_state_update(lk_adamw_state *state, float *params, const float *grads, const lk_adamw_step *step, lk_error *err)
{
    lk_status status = lk_adamw(state->be, params, grads, state->m, state->v, state->n, step);
    return status ? lk_backend_fail(state->be, status, err) : LK_OK;
}
