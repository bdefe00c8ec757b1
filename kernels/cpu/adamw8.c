/* AdamW with 8-bit moments, block by block: the moments are unpacked into two small arrays, updated by the vector kernel of plain AdamW
 * and packed again (kernels/dynamic_map.h).
 *
 * The vector kernel decays p before its update; it is given a decay of 1 (which changes no bit), and p is scaled afterwards. */
#include <math.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/dynamic_map.h"

enum { BLOCK = LK_ADAMW8_BLOCK };

typedef struct adamw8_args {
    const lk_rows *rows;
    float *p, *m_scale, *v_scale;
    const float *g;
    uint8_t *m8, *v8;
    int64_t n;
    lk_adamw_rates rates;
    float decay;
    lk_dynamic_coder m_coder, v_coder;
} adamw8_args;

static inline float larger(float a, float b) { return a > b ? a : b; }

/* In lanes, so that the compiler may use vectors: a maximum has no order. */
static float largest_magnitude(const float x[BLOCK], int64_t n)
{
    float lanes[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) lanes[j] = larger(fabsf(x[i + j]), lanes[j]);
    for (; i < n; i++) lanes[0] = larger(fabsf(x[i]), lanes[0]);
    for (int j = 1; j < 8; j++) lanes[0] = larger(lanes[0], lanes[j]);
    return lanes[0];
}

static bool all_finite(const float *g, int64_t n)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &g[i], 4);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static void pack_first(uint8_t *codes, const float *m, float scale, int64_t n, const lk_dynamic_coder *coder)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t code = lk_dynamic_code_signed(coder, m[i] / scale);
        codes[i] = (uint8_t)(code - ((code == LK_DYNAMIC_ZERO) & (signbit(m[i]) != 0))); /* the sign stays */
    }
}

static void pack_second(uint8_t *codes, const float *v, float scale, int64_t n, const lk_dynamic_coder *coder)
{
    for (int64_t i = 0; i < n; i++) codes[i] = lk_dynamic_code(coder, v[i] / scale);
}

/* A gradient that is not finite leaves its element alone: it takes part as 0, and its p comes back afterwards. */
static void update_some(const adamw8_args *a, float *p, const float *g, float *m, float *v, int64_t n)
{
    float clean[BLOCK], kept[BLOCK];
    memcpy(kept, p, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) clean[i] = isfinite(g[i]) ? g[i] : 0.0f;
    a->rows->adamw(p, clean, m, v, n, &a->rates);
    a->rows->scale(p, a->decay, n);
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(g[i])) continue;
        p[i] = kept[i];
        m[i] = v[i] = 0.0f;
    }
}

static void update_block(const adamw8_args *a, int64_t block)
{
    const float *map = lk_dynamic_map(), *unsigned_map = lk_dynamic_map_unsigned();
    int64_t at = block * BLOCK, n = a->n - at < BLOCK ? a->n - at : BLOCK;
    float m[BLOCK], v[BLOCK], *p = a->p + at, *m_scale = a->m_scale + block, *v_scale = a->v_scale + block;
    const float *g = a->g + at;
    for (int64_t i = 0; i < n; i++) {
        m[i] = map[a->m8[at + i]] * *m_scale;
        v[i] = unsigned_map[a->v8[at + i]] * *v_scale;
    }
    if (all_finite(g, n)) {
        a->rows->adamw(p, g, m, v, n, &a->rates);
        a->rows->scale(p, a->decay, n);
    } else {
        update_some(a, p, g, m, v, n);
    }
    *m_scale = largest_magnitude(m, n);
    *v_scale = largest_magnitude(v, n);
    if (*m_scale == 0.0f)
        memset(a->m8 + at, LK_DYNAMIC_ZERO, (size_t)n);
    else
        pack_first(a->m8 + at, m, *m_scale, n, &a->m_coder);
    if (*v_scale == 0.0f)
        memset(a->v8 + at, 0, (size_t)n);
    else
        pack_second(a->v8 + at, v, *v_scale, n, &a->v_coder);
}

static void update_blocks(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    for (int64_t block = begin; block < end; block++) update_block(context, block);
}

lk_status lk_cpu_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale, int64_t n,
                        const lk_adamw_step *s)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    double first = 1.0 - pow((double)s->beta1, (double)s->step), second = 1.0 - pow((double)s->beta2, (double)s->step);
    adamw8_args args = {.rows = lk_rows_get(cpu->tier), .p = p, .g = g, .m8 = m8, .v8 = v8, .m_scale = m_scale, .v_scale = v_scale, .n = n};
    args.rates = (lk_adamw_rates){.beta1 = s->beta1,
                                  .beta2 = s->beta2,
                                  .rest1 = 1.0f - s->beta1,
                                  .rest2 = 1.0f - s->beta2,
                                  .rate = (float)((double)s->lr / first),
                                  .root = (float)sqrt(second),
                                  .decay = 1.0f,
                                  .eps = s->eps,
                                  .grad_scale = s->grad_scale};
    args.decay = (float)(1.0 - (double)s->lr * (double)s->weight_decay);
    lk_dynamic_coder_init(&args.m_coder, lk_dynamic_map());
    lk_dynamic_coder_init(&args.v_coder, lk_dynamic_map_unsigned());
    lk_pool_run(cpu->pool, (n + BLOCK - 1) / BLOCK, 16, update_blocks, &args);
    return LK_OK;
}
