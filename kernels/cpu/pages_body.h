/* The kernels of pages.h on vectors of LK_LANES (kernels/cpu/vector.h). Every score and every output element is one chain of
 * multiply-adds, over d or over j, in its own lane. */
#include "kernels/cpu/pages.h"

enum { TILE = LK_KV_LANES, ACROSS = LK_KV_LANES / LK_LANES, BLOCK_KEYS = 64 };

LK_INLINE vf load_cached(const void *data, int64_t at, lk_dtype type)
{
    if (type == LK_I8) return vf_load_i8((const int8_t *)data + at);
    return type == LK_F32 ? vf_load((const float *)data + at) : vf_load_bf16((const uint16_t *)data + at);
}

/* `count` queries against `tiles` tiles from `tile` on; both are constants at every call. */
LK_INLINE void score_tiles(float *s, const float *q, const lk_page_block *b, int count, int tile, int tiles, lk_dtype type)
{
    vf sum[LK_QUERIES * 4];
    for (int i = 0; i < count * tiles * ACROSS; i++) sum[i] = vf_set(0.0f);
    int64_t D = b->head_dim;
    for (int64_t d = 0; d < D; d++)
        for (int t = 0; t < tiles; t++)
            for (int a = 0; a < ACROSS; a++) {
                vf key = load_cached(b->keys[tile + t], d * TILE + a * LK_LANES, type);
                for (int r = 0; r < count; r++) {
                    vf *to = &sum[(r * tiles + t) * ACROSS + a];
                    *to = vf_fma(vf_set(q[r * D + d]), key, *to);
                }
            }
    for (int r = 0; r < count; r++)
        for (int i = 0; i < tiles * ACROSS; i++) {
            vf score = sum[r * tiles * ACROSS + i];
            if (type == LK_I8) score = vf_mul(score, vf_load(b->scales[0][tile + i / ACROSS] + i % ACROSS * LK_LANES));
            vf_store(s + r * BLOCK_KEYS + tile * TILE + i * LK_LANES, score);
        }
}

/* Accumulators in registers at once: enough chains to hide the latency of each. */
enum { SUMS = LK_LANES == 16 ? 16 : 8, MOST_ROWS = SUMS / ACROSS < LK_QUERIES ? SUMS / ACROSS : LK_QUERIES };

LK_INLINE void score_rows(float *s, const float *q, const lk_page_block *b, int count, int begin, int end, lk_dtype type)
{
    const int fit = SUMS / (count * ACROSS), at_once = fit > 4 ? 4 : fit;
    int t = begin;
    for (; t + at_once <= end; t += at_once) score_tiles(s, q, b, count, t, at_once, type);
    for (; t < end; t++) score_tiles(s, q, b, count, t, 1, type);
}

LK_INLINE void scores_of(float *s, const float *q, int n, const lk_page_block *b, lk_dtype type)
{
    int begin = 0, end = 4, r = 0;
    while (end > 0 && !b->keys[end - 1]) end--;
    while (begin < end && !b->keys[begin]) begin++;
    for (; MOST_ROWS >= 8 && r + 8 <= n; r += 8) score_rows(s + r * BLOCK_KEYS, q + r * b->head_dim, b, 8, begin, end, type);
    for (; MOST_ROWS >= 4 && r + 4 <= n; r += 4) score_rows(s + r * BLOCK_KEYS, q + r * b->head_dim, b, 4, begin, end, type);
    for (; r + 2 <= n; r += 2) score_rows(s + r * BLOCK_KEYS, q + r * b->head_dim, b, 2, begin, end, type);
    for (; r < n; r++) score_rows(s + r * BLOCK_KEYS, q + r * b->head_dim, b, 1, begin, end, type);
}

LK_TARGET static void scores(float *s, const float *q, int n, const lk_page_block *b)
{
    if (b->type == LK_F32)
        scores_of(s, q, n, b, LK_F32);
    else if (b->type == LK_I8)
        scores_of(s, q, n, b, LK_I8);
    else
        scores_of(s, q, n, b, LK_BF16);
}

/* What value j is multiplied by. */
LK_INLINE float weight_of(const float *p, const lk_page_block *b, int j, lk_dtype type)
{
    return type == LK_I8 ? p[j] * b->scales[1][j / TILE][j % TILE] : p[j];
}

/* Keys [from, to) for `count` queries, `vectors` vectors of d from `at`; count and vectors are constants. */
LK_INLINE void weigh_part(float *o, const float *p, const lk_page_block *b, int count, int from, int to, int64_t at, int vectors,
                          lk_dtype type)
{
    vf sum[LK_QUERIES * 4];
    int64_t D = b->head_dim;
    for (int r = 0; r < count; r++)
        for (int i = 0; i < vectors; i++) sum[r * vectors + i] = vf_load(o + r * D + at + i * LK_LANES);
    for (int tile = from / TILE; tile * TILE < to; tile++) {
        int begin = tile * TILE < from ? from : tile * TILE, end = (tile + 1) * TILE > to ? to : (tile + 1) * TILE;
        int64_t row = (int64_t)(begin - tile * TILE) * D + at;
        for (int j = begin; j < end; j++, row += D)
            for (int i = 0; i < vectors; i++) {
                vf value = load_cached(b->values[tile], row + i * LK_LANES, type);
                for (int r = 0; r < count; r++)
                    sum[r * vectors + i] = vf_fma(vf_set(weight_of(p + r * BLOCK_KEYS, b, j, type)), value, sum[r * vectors + i]);
            }
    }
    for (int r = 0; r < count; r++)
        for (int i = 0; i < vectors; i++) vf_store(o + r * D + at + i * LK_LANES, sum[r * vectors + i]);
}

/* The last elements of a head whose size is no multiple of a vector. */
LK_INLINE void weigh_rest(float *o, const float *p, const lk_page_block *b, int from, int to, int64_t at, lk_dtype type)
{
    int64_t D = b->head_dim, left = D - at;
    vf sum = vf_load_part(o + at, left);
    for (int j = from; j < to; j++) {
        float value[LK_LANES] = {0};
        int64_t row = (int64_t)(j % TILE) * D + at;
        const int8_t *values = (const int8_t *)b->values[j / TILE] + row * lk_dtype_size(type);
        if (type == LK_I8)
            for (int64_t i = 0; i < left; i++) value[i] = (float)values[i];
        else
            lk_to_f32(value, values, type, left);
        sum = vf_fma(vf_set(weight_of(p, b, j, type)), vf_load(value), sum);
    }
    vf_store_part(o + at, sum, left);
}

LK_INLINE void weigh_rows(float *o, const float *p, const lk_page_block *b, int count, int from, int to, lk_dtype type)
{
    const int fit = SUMS / count, at_once = fit > 4 ? 4 : fit;
    int64_t D = b->head_dim, at = 0;
    for (; at + at_once * LK_LANES <= D; at += at_once * LK_LANES) weigh_part(o, p, b, count, from, to, at, at_once, type);
    for (; at + LK_LANES <= D; at += LK_LANES) weigh_part(o, p, b, count, from, to, at, 1, type);
    for (int r = 0; r < count && at < D; r++) weigh_rest(o + r * D, p + r * BLOCK_KEYS, b, from, to, at, type);
}

/* Keys [from, to) for queries that all see them. */
LK_INLINE void weigh_common(float *o, const float *p, const lk_page_block *b, int n, int from, int to, lk_dtype type)
{
    int64_t D = b->head_dim;
    int r = 0;
    if (from >= to) return;
    for (; SUMS >= 16 && r + 8 <= n; r += 8) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 8, from, to, type);
    for (; r + 4 <= n; r += 4) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 4, from, to, type);
    for (; r + 2 <= n; r += 2) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 2, from, to, type);
    for (; r < n; r++) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 1, from, to, type);
}

/* Keys that every query sees go jointly; those before and after, at the edges of the causal triangle and of the window, one query at a
 * time. A masked value is never multiplied, not even by 0: it may be a slot that nobody wrote. */
LK_INLINE void weigh_of(float *o, const float *p, int n, const int *first, const int *last, const lk_page_block *b, lk_dtype type)
{
    int64_t D = b->head_dim;
    int begin = 0, end = BLOCK_KEYS;
    for (int r = 0; r < n; r++) {
        if (first[r] > begin) begin = first[r];
        if (last[r] < end) end = last[r];
    }
    if (begin >= end) {
        for (int r = 0; r < n; r++) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 1, first[r], last[r], type);
        return;
    }
    for (int r = 0; r < n; r++) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 1, first[r], begin, type);
    weigh_common(o, p, b, n, begin, end, type);
    for (int r = 0; r < n; r++) weigh_rows(o + r * D, p + r * BLOCK_KEYS, b, 1, end, last[r], type);
}

LK_TARGET static void weigh(float *o, const float *p, int n, const int *first, const int *last, const lk_page_block *b)
{
    if (b->type == LK_F32)
        weigh_of(o, p, n, first, last, b, LK_F32);
    else if (b->type == LK_I8)
        weigh_of(o, p, n, first, last, b, LK_I8);
    else
        weigh_of(o, p, n, first, last, b, LK_BF16);
}

#define LK_PAGES_TABLE                   \
    {                                    \
        .scores = scores, .weigh = weigh \
    }
