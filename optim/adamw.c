#include "optim/adamw.h"

#include <string.h>

static const char *const names[] = {[LK_ADAMW_F32] = "adamw", [LK_ADAMW_8BIT] = "adamw8bit"};

const char *lk_adamw_kind_name(lk_adamw_kind kind) { return names[kind]; }

bool lk_adamw_kind_parse(const char *name, lk_adamw_kind *kind)
{
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (strcmp(name, names[i])) continue;
        *kind = (lk_adamw_kind)i;
        return true;
    }
    return false;
}

int lk_adamw_layout(lk_adamw_part parts[LK_ADAMW_MAX_PARTS], lk_adamw_kind kind, int64_t n)
{
    lk_dtype type = kind == LK_ADAMW_8BIT ? LK_U8 : LK_F32;
    int64_t blocks = (n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    parts[0] = (lk_adamw_part){"m", type, n, NULL};
    parts[1] = (lk_adamw_part){"v", type, n, NULL};
    if (kind == LK_ADAMW_F32) return 2;
    parts[2] = (lk_adamw_part){"m_scale", LK_F32, blocks, NULL};
    parts[3] = (lk_adamw_part){"v_scale", LK_F32, blocks, NULL};
    return 4;
}

size_t lk_adamw_state_bytes(lk_adamw_kind kind, int64_t n)
{
    lk_adamw_part parts[LK_ADAMW_MAX_PARTS];
    int n_parts = lk_adamw_layout(parts, kind, n);
    size_t total = 0;
    for (int i = 0; i < n_parts; i++) total += lk_adamw_part_bytes(&parts[i]);
    return total;
}

lk_status lk_adamw_state_init(lk_adamw_state *state, lk_backend *be, lk_adamw_kind kind, int64_t n, lk_error *err)
{
    *state = (lk_adamw_state){.be = be, .kind = kind, .n = n};
    state->n_parts = lk_adamw_layout(state->parts, kind, n);
    for (int i = 0; i < state->n_parts; i++) {
        lk_status status = lk_alloc(be, lk_adamw_part_bytes(&state->parts[i]), &state->parts[i].data);
        if (!status) continue;
        lk_backend_fail(be, status, err);
        lk_adamw_state_free(state);
        return status;
    }
    return LK_OK;
}

void lk_adamw_state_free(lk_adamw_state *state)
{
    if (!state->be) return;
    for (int i = 0; i < state->n_parts; i++) lk_free(state->be, state->parts[i].data);
    *state = (lk_adamw_state){0};
}

lk_status lk_adamw_state_update_part(lk_adamw_state *state, float *params, const float *grads, int64_t first, int64_t n,
                                     const lk_adamw_step *step, lk_error *err)
{
    const lk_adamw_part *p = state->parts;
    params += first;
    grads += first;
    lk_status status;
    if (state->kind == LK_ADAMW_8BIT) {
        int64_t block = first / LK_ADAMW8_BLOCK;
        status = lk_adamw8(state->be, params, grads, (uint8_t *)p[0].data + first, (uint8_t *)p[1].data + first, (float *)p[2].data + block,
                           (float *)p[3].data + block, n, step);
    } else {
        status = lk_adamw(state->be, params, grads, (float *)p[0].data + first, (float *)p[1].data + first, n, step);
    }
    return status ? lk_backend_fail(state->be, status, err) : LK_OK;
}

lk_status lk_adamw_state_update(lk_adamw_state *state, float *params, const float *grads, const lk_adamw_step *step, lk_error *err)
{
    return lk_adamw_state_update_part(state, params, grads, 0, state->n, step, err);
}
