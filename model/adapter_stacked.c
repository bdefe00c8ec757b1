/* Factors on stacked experts: PEFT's target_parameters.
 *
 * transformers 5 keeps the experts of a layer in two parameters, gate over up and down, and PEFT gives each parameter one pair of factors:
 * A[E*R,in], whose rows e*R.. are expert e's, and B[out,R*E], of which expert e has every E-th column. Here an expert's layers are sites
 * of their own, whatever a file stacks; so gate and up of an expert have the same A, at one place of the flat vector (its gradient is the
 * sum of both), and their halves of B. PEFT up to 0.17 took the parameter for the transposed of what it is: then B's part is A transposed,
 * and A's is B transposed. */
#include <stdlib.h>
#include <string.h>

#include "model/adapter_internal.h"

static lk_status read_one(const lk_st_tensor *t, int64_t at, float *out, lk_error *err)
{
    if (t->type != LK_F32) return lk_st_read_f32(t, at, 1, out, err);
    memcpy(out, (const char *)t->data + at * 4, 4);
    return LK_OK;
}

/* out[i*R + j], or with `turned` out[j*rows + i], of column j*E + e of rows first.. of B. */
static lk_status read_columns(const lk_peft_module *m, const lk_adapter_slice *s, int64_t first, int64_t rows, bool turned, float *out,
                              lk_error *err)
{
    int64_t R = m->rank, E = m->experts;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < R; j++)
            LK_TRY(read_one(m->b, ((first + i) * R + j) * E + s->expert, &out[turned ? j * rows + i : i * R + j], err));
    return LK_OK;
}

lk_status lk_adapter_factors(const lk_adapter_parts *p, int32_t site, int64_t n, int64_t k, float *a, float *b, lk_error *err)
{
    const lk_peft_module *m = p->sites[site];
    const lk_adapter_slice *s = &p->slices[site];
    int64_t R = m->rank, width = m->a->shape[1];
    if (s->expert < 0) {
        LK_TRY(lk_st_read_f32(m->a, 0, R * k, a, err));
        return lk_st_read_f32(m->b, 0, R * n, b, err);
    }
    if (!s->turned) {
        LK_TRY(lk_st_read_f32(m->a, s->expert * R * width, R * k, a, err));
        return read_columns(m, s, s->row, n, false, b, err);
    }
    LK_TRY(read_columns(m, s, 0, k, true, a, err));
    for (int64_t j = 0; j < R; j++)
        for (int64_t i = 0; i < n; i++) LK_TRY(read_one(m->a, (s->expert * R + j) * width + s->row + i, &b[i * R + j], err));
    return LK_OK;
}

lk_status lk_adapter_stack(const lk_adapter *adapter, const float *values, int32_t first, lk_peft_write_module *m, float **memory,
                           lk_error *err)
{
    const lk_config *c = &adapter->model->config;
    lk_site where = lk_site_at(c, first);
    const lk_module up_or_none[2] = {where.module, LK_UP};
    int parts = where.module == LK_GATE ? 2 : 1;
    int64_t R = adapter->sites[first].rank, E = c->experts, N = parts * where.n;
    float *a = *memory = malloc((size_t)(R * E * (where.k + N)) * sizeof *a), *b = a + R * E * where.k;
    if (!a) return lk_fail(err, LK_ERR_MEMORY, "no memory to stack the factors of %lld experts", (long long)E);
    for (int32_t e = 0; e < E; e++)
        for (int part = 0; part < parts; part++) {
            const lk_adapter_site *site = &adapter->sites[lk_site_of(c, where.layer, up_or_none[part], e)];
            memcpy(a + e * R * where.k, values + site->a, (size_t)(R * where.k) * sizeof *a);
            for (int64_t n = 0; n < where.n; n++)
                for (int64_t j = 0; j < R; j++) b[((part * where.n + n) * R + j) * E + e] = values[site->b + n * R + j];
        }
    *m = (lk_peft_write_module){
        .rank = (int32_t)R, .alpha = (double)adapter->sites[first].alpha, .in = where.k, .out = N, .a = a, .b = b, .experts = E};
    return LK_OK;
}
