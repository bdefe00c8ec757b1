/* AdamW with 8-bit moments. A warp takes a block of 256 values, eight a lane (four at 4*lane, four at 128 + 4*lane), keeps its moments in
 * registers from unpacking to packing, and finds the new scales by shuffles: no barrier but the one after the tables are filled.
 *
 * Bytes moved: 16 an element (p read and written, g read, two codes read and written) and 16 a block. A lane has 80 bytes of loads in
 * flight. Packing is a binary search over the bounds between codes in shared memory, eight steps for each moment: some 16 loads with few
 * conflicts beside 16 bytes of DRAM; were it twice as slow as memory, an adapter of 42 million parameters would still take half a
 * millisecond of a step of a second.
 *
 * The bits are those of the CPU's paths: same order, every operation rounded once. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.h"

#include "kernels/cuda/adamw.h"
#include "kernels/dynamic_map.h"

enum { THREADS = 256, WARPS = THREADS / 32, BLOCK = LK_ADAMW8_BLOCK, LANE = BLOCK / 32, BLOCKS_PER_WARP = 4 };

typedef struct tables {
    const float *map, *unsigned_map, *bounds, *unsigned_bounds; /* shared memory */
} tables;

/* The largest value of code k: right between two codes is the even one's. */
LK_DEVICE float bound_of(const float *map, int k)
{
    float middle = lk_mul_rn(lk_add_rn(map[k], map[k + 1]), 0.5f);
    uint32_t bits = lk_as_bits(middle);
    return k % 2 == 0 ? middle : lk_as_float(middle > 0.0f ? bits - 1 : bits + 1);
}

LK_DEVICE uint32_t code_of(const float *bounds, float x)
{
    int code = 0;
    LK_UNROLL
    for (int step = 128; step; step >>= 1) code += x > bounds[code + step - 1] ? step : 0;
    return (uint32_t)code;
}

LK_DEVICE uint32_t first_code(const tables *t, float m, float scale)
{
    if (scale == 0.0f) return LK_DYNAMIC_ZERO;
    uint32_t code = code_of(t->bounds, m / scale);
    return code == LK_DYNAMIC_ZERO && (lk_as_bits(m) >> 31) ? LK_DYNAMIC_ZERO - 1 : code;
}

LK_DEVICE uint32_t second_code(const tables *t, float v, float scale) { return scale == 0.0f ? 0 : code_of(t->unsigned_bounds, v / scale); }

/* One lane's values: in registers as they were and as they become. `present` values of 8; the others are zeros. */
typedef struct lane {
    float p[LANE], g[LANE];
    uint32_t m8[LANE / 4], v8[LANE / 4]; /* four codes a word, the first lowest */
} lane;

LK_DEVICE void update_lane(lane *a, const tables *t, float *m_scale, float *v_scale, const lk_cuda_adamw_rates *r)
{
    float m[LANE], v[LANE], m_most = 0.0f, v_most = 0.0f;
    LK_UNROLL
    for (int i = 0; i < LANE; i++) {
        bool finite = (lk_as_bits(a->g[i]) & 0x7f800000u) != 0x7f800000u;
        m[i] = lk_mul_rn(t->map[a->m8[i / 4] >> i % 4 * 8 & 255], *m_scale);
        v[i] = lk_mul_rn(t->unsigned_map[a->v8[i / 4] >> i % 4 * 8 & 255], *v_scale);
        float change = lk_adamw_moments(a->g[i], &m[i], &v[i], r), p = lk_mul_rn(lk_add_rn(a->p[i], -change), r->decay);
        a->p[i] = finite ? p : a->p[i];
        m[i] = finite ? m[i] : 0.0f;
        v[i] = finite ? v[i] : 0.0f;
        m_most = fmaxf(m_most, fabsf(m[i]));
        v_most = fmaxf(v_most, v[i]);
    }
    *m_scale = m_most = lk_warp_max(m_most);
    *v_scale = v_most = lk_warp_max(v_most);
    LK_UNROLL
    for (int word = 0; word < LANE / 4; word++) {
        a->m8[word] = a->v8[word] = 0;
        LK_UNROLL
        for (int i = 0; i < 4; i++) {
            a->m8[word] |= first_code(t, m[4 * word + i], m_most) << 8 * i;
            a->v8[word] |= second_code(t, v[4 * word + i], v_most) << 8 * i;
        }
    }
}

typedef struct arrays {
    float *p, *m_scale, *v_scale;
    const float *g;
    uint8_t *m8, *v8;
    int64_t n;
} arrays;

LK_DEVICE void load_aligned(lane *a, const arrays *s, int64_t at)
{
    LK_UNROLL
    for (int word = 0; word < LANE / 4; word++) {
        lk_load4(a->p + 4 * word, s->p + at + 128 * word);
        lk_load4(a->g + 4 * word, s->g + at + 128 * word);
        a->m8[word] = *(const uint32_t *)(s->m8 + at + 128 * word);
        a->v8[word] = *(const uint32_t *)(s->v8 + at + 128 * word);
    }
}

LK_DEVICE void store_aligned(const lane *a, const arrays *s, int64_t at)
{
    LK_UNROLL
    for (int word = 0; word < LANE / 4; word++) {
        lk_store4(s->p + at + 128 * word, a->p + 4 * word);
        *(uint32_t *)(s->m8 + at + 128 * word) = a->m8[word];
        *(uint32_t *)(s->v8 + at + 128 * word) = a->v8[word];
    }
}

/* Beyond the end: zeros that no gradient moves, coded as zero, so that they never raise a scale. */
LK_DEVICE void load_part(lane *a, const arrays *s, int64_t at)
{
    LK_UNROLL
    for (int i = 0; i < LANE; i++) {
        int64_t e = at + 128 * (i / 4) + i % 4;
        bool in = e < s->n;
        uint32_t m8 = in ? s->m8[e] : LK_DYNAMIC_ZERO, v8 = in ? s->v8[e] : 0, shift = (uint32_t)(i % 4 * 8);
        a->p[i] = in ? s->p[e] : 0.0f;
        a->g[i] = in ? s->g[e] : 0.0f;
        a->m8[i / 4] = (i % 4 ? a->m8[i / 4] : 0) | m8 << shift;
        a->v8[i / 4] = (i % 4 ? a->v8[i / 4] : 0) | v8 << shift;
    }
}

LK_DEVICE void store_part(const lane *a, const arrays *s, int64_t at)
{
    LK_UNROLL
    for (int i = 0; i < LANE; i++) {
        int64_t e = at + 128 * (i / 4) + i % 4;
        if (e >= s->n) continue;
        s->p[e] = a->p[i];
        s->m8[e] = (uint8_t)(a->m8[i / 4] >> i % 4 * 8);
        s->v8[e] = (uint8_t)(a->v8[i / 4] >> i % 4 * 8);
    }
}

LK_KERNEL void adamw8_kernel(arrays s, const float *constants, lk_cuda_adamw_rates rates, bool aligned)
{
    LK_SHARED(float, map, 256);
    LK_SHARED(float, unsigned_map, 256);
    LK_SHARED(float, bounds, 256);
    LK_SHARED(float, unsigned_bounds, 256);
    int thread = (int)threadIdx.x, in_warp = thread % 32;
    const float *from = constants + LK_CUDA_MAP_SIGNED, *from_unsigned = constants + LK_CUDA_MAP_UNSIGNED;
    map[thread] = from[thread];
    unsigned_map[thread] = from_unsigned[thread];
    if (thread < 255) {
        bounds[thread] = bound_of(from, thread);
        unsigned_bounds[thread] = bound_of(from_unsigned, thread);
    }
    lk_block_sync();
    tables t = {map, unsigned_map, bounds, unsigned_bounds};
    int64_t blocks = (s.n + BLOCK - 1) / BLOCK, warp = (int64_t)blockIdx.x * WARPS + thread / 32;
    for (int64_t block = warp; block < blocks; block += (int64_t)gridDim.x * WARPS) {
        int64_t at = block * BLOCK + 4 * in_warp;
        bool whole = aligned && (block + 1) * BLOCK <= s.n;
        float m_scale = s.m_scale[block], v_scale = s.v_scale[block];
        lane a;
        if (whole)
            load_aligned(&a, &s, at);
        else
            load_part(&a, &s, at);
        update_lane(&a, &t, &m_scale, &v_scale, &rates);
        if (whole)
            store_aligned(&a, &s, at);
        else
            store_part(&a, &s, at);
        if (in_warp == 0) {
            s.m_scale[block] = m_scale;
            s.v_scale[block] = v_scale;
        }
    }
}

extern "C" lk_status lk_cuda_adamw8(lk_backend *be, float *p, const float *g, uint8_t *m8, uint8_t *v8, float *m_scale, float *v_scale,
                                    int64_t n, const lk_adamw_step *step)
{
    if (n == 0) return LK_OK;
    lk_cuda *cu = lk_cuda_of(be);
    arrays s = {p, m_scale, v_scale, g, m8, v8, n};
    bool aligned = lk_aligned16(p) && lk_aligned16(g) && (uintptr_t)m8 % 4 == 0 && (uintptr_t)v8 % 4 == 0;
    int64_t blocks = (n + BLOCK - 1) / BLOCK, grid = (blocks + WARPS * BLOCKS_PER_WARP - 1) / (WARPS * BLOCKS_PER_WARP);
    LK_LAUNCH("adamw8", adamw8_kernel, dim3((unsigned)grid), dim3(THREADS), 0, cu->stream, s, cu->constants, lk_cuda_adamw_rates_of(step),
              aligned);
    return lk_rt_launched("adamw8", &be->error);
}
