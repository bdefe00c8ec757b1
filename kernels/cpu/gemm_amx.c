/* AMX: products of bf16 tiles, 16 x 32 by 32 x 16, summed in fp32 inside a 16 x 16 tile register. Used for any number of rows,
 * one included, so that a row has the same bits alone and in company: per step of 32 k the instruction adds up the even k and the odd k
 * (two chains of fused multiply-adds) and then adds both to the sum, whatever the shape of the tiles.
 *
 * Because a sum continues from what is in c, K may be split anywhere (at multiples of 32) without changing bits.
 *
 * Up to 16 rows of activations by an NF4 matrix are strips (second half of this file). For the rest, blocks are 2 x 2 tiles of sums,
 * with two left and two right tiles beside them: all eight registers. When c is contiguous down (the linear layers, whose weights are left
 * and whose activations are right), a finished tile is transposed on its way out; unfinished ones are kept as they are. */
#if defined(__x86_64__)
#include "kernels/cpu/gemm_avx512.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

enum { TILE_BYTES = LK_TILE_SIZE * 2, ROW_BYTES = 64 };

/* Which registers hold what; the intrinsics want literal numbers. */
#define SUM00  0 /* left tile 0 by right tile 0, ... */
#define SUM01  1
#define SUM10  2
#define SUM11  3
#define LEFT0  4
#define LEFT1  5
#define RIGHT0 6
#define RIGHT1 7

/* What was written to p must be in memory now: to gcc 12 a tile load does not read memory, and a configuration is eight bytes. */
static inline void settle(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

/* In passes all registers are 16 x 64 bytes, always: panels are padded with zeros, and setting other shapes for the edges costs as much
 * as the tiles that it would save. */
static void configure(uint16_t right_bytes)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = i == LEFT0 || i == LEFT1 ? ROW_BYTES : right_bytes;
        config.rows[i] = LK_TILE_ROWS;
    }
    settle(&config);
    _tile_loadconfig(&config);
}

static void begin(void) { configure(ROW_BYTES); }

static void end(void) { _tile_release(); }

/* The next tile of a stream, one step ahead. The hardware's own prefetching does nearly as well while a core has one thread; with two, as
 * most machines run, each has half of the first-level cache and of its fill buffers, and this is worth 40%. */
static inline void fetch_next(const char *tile)
{
#pragma GCC unroll 16
    for (int row = 0; row < LK_TILE_ROWS; row++) _mm_prefetch(tile + TILE_BYTES + row * ROW_BYTES, _MM_HINT_T0);
}

/* The tile loops. Every combination of one or two blocks on each side gets its own, so that nothing is loaded in vain. */
static inline void loop11(const char *a0, const char *b0, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, b0 += TILE_BYTES) {
        _tile_loadd(LEFT0, a0, ROW_BYTES);
        _tile_loadd(RIGHT0, b0, ROW_BYTES);
        _tile_dpbf16ps(SUM00, LEFT0, RIGHT0);
    }
}

static inline void loop12(const char *a0, const char *b0, const char *b1, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, b0 += TILE_BYTES, b1 += TILE_BYTES) {
        fetch_next(b0);
        _tile_loadd(LEFT0, a0, ROW_BYTES);
        _tile_loadd(RIGHT0, b0, ROW_BYTES);
        _tile_dpbf16ps(SUM00, LEFT0, RIGHT0);
        fetch_next(b1);
        _tile_loadd(RIGHT1, b1, ROW_BYTES);
        _tile_dpbf16ps(SUM01, LEFT0, RIGHT1);
    }
}

static inline void loop21(const char *a0, const char *a1, const char *b0, int64_t tiles)
{
    for (; tiles > 0; tiles--, a0 += TILE_BYTES, a1 += TILE_BYTES, b0 += TILE_BYTES) {
        _tile_loadd(LEFT0, a0, ROW_BYTES);
        _tile_loadd(RIGHT0, b0, ROW_BYTES);
        _tile_dpbf16ps(SUM00, LEFT0, RIGHT0);
        _tile_loadd(LEFT1, a1, ROW_BYTES);
        _tile_dpbf16ps(SUM10, LEFT1, RIGHT0);
    }
}

/* ---------------------------------------------------------------------------------------------- sums in and out */

/* _tile_loadd of a register whose number is known only at run time (once per 16 x 16 sums: it does not matter). */
static inline void load_sum(int number, const float *p, int64_t stride)
{
    size_t bytes = (size_t)stride * sizeof(float);
    switch (number) {
    case SUM00: _tile_loadd(SUM00, p, bytes); break;
    case SUM01: _tile_loadd(SUM01, p, bytes); break;
    case SUM10: _tile_loadd(SUM10, p, bytes); break;
    default: _tile_loadd(SUM11, p, bytes); break;
    }
}

static inline void store_sum(int number, float *p, int64_t stride)
{
    size_t bytes = (size_t)stride * sizeof(float);
    switch (number) {
    case SUM00: _tile_stored(SUM00, p, bytes); break;
    case SUM01: _tile_stored(SUM01, p, bytes); break;
    case SUM10: _tile_stored(SUM10, p, bytes); break;
    default: _tile_stored(SUM11, p, bytes); break;
    }
}

static inline void zero_sum(int number)
{
    switch (number) {
    case SUM00: _tile_zero(SUM00); break;
    case SUM01: _tile_zero(SUM01); break;
    case SUM10: _tile_zero(SUM10); break;
    default: _tile_zero(SUM11); break;
    }
}

/* Where one 16 x 16 of the result begins in c, how much of it exists, and where its unfinished sums are (NULL: in c). */
typedef struct place {
    float *c, *kept;
    int rows, columns;
} place;

/* A row of the tile in memory: along j, or along i when c is contiguous down. */
typedef struct lines {
    int64_t stride;
    int count;
    __mmask16 mask;
} lines;

static inline lines lines_of(const lk_gemm_pass *p, const place *at)
{
    bool down = p->down == 1;
    int width = down ? at->rows : at->columns;
    return (lines){down ? p->across : p->down, down ? at->columns : at->rows, (__mmask16)((1u << width) - 1)};
}

static inline bool is_whole(const place *at) { return at->rows == LK_TILE_ROWS && at->columns == LK_TILE_ROWS; }

static void begin_sum(const lk_gemm_pass *p, int number, const place *at)
{
    if (p->first == 0 && p->mode == LK_GEMM_SET) {
        zero_sum(number);
    } else if (p->first > 0 && at->kept) {
        load_sum(number, at->kept, LK_TILE_ROWS);
    } else if (p->down != 1 && is_whole(at)) {
        load_sum(number, at->c, p->down);
    } else {
        _Alignas(64) float room[2][16 * 16];
        lines l = lines_of(p, at);
        for (int j = 0; j < 16; j++)
            _mm512_store_ps(room[0] + 16 * j, j < l.count ? _mm512_maskz_loadu_ps(l.mask, at->c + j * l.stride) : _mm512_setzero_ps());
        if (p->down == 1 && l.count == 1) { /* one token: the column goes down the first of sixteen */
            for (int j = 0; j < 16; j++) _mm512_store_ps(room[1] + 16 * j, _mm512_setzero_ps());
            for (int j = 0; j < 16; j++) room[1][16 * j] = room[0][j];
        } else if (p->down == 1) {
            lk_avx512_transpose(room[1], 16, room[0], 16);
        }
        const float *from = room[p->down == 1];
        settle(from);
        load_sum(number, from, 16);
    }
}

/* Finished sums on their way to c by way of memory: up to a block's four tiles. Transposing one takes as long as several products, but
 * runs on other units: it is done in small pieces between the products of the next block, which hide it. */
typedef struct outbox {
    _Alignas(64) float room[4][16 * 16];
    place to[4];
    int first, count; /* those still to do */
} outbox;

static void deliver(const lk_gemm_pass *p, outbox *out)
{
    _Alignas(64) float turned[16 * 16];
    int n = out->first++;
    const place *to = &out->to[n];
    const float *from = out->room[n];
    lines l = lines_of(p, to);
    if (p->down == 1 && l.count == 1) {
        for (int j = 0; j < 16; j++) turned[j] = from[16 * j];
        from = turned;
    } else if (p->down == 1) {
        from = (lk_avx512_transpose(turned, 16, from, 16), turned);
    }
    for (int j = 0; j < l.count; j++) _mm512_mask_storeu_ps(to->c + j * l.stride, l.mask, _mm512_load_ps(from + 16 * j));
}

static void end_sum(const lk_gemm_pass *p, int number, const place *at, outbox *out)
{
    if (p->partial && at->kept) {
        store_sum(number, at->kept, LK_TILE_ROWS);
    } else if (p->down != 1 && is_whole(at)) {
        store_sum(number, at->c, p->down);
    } else {
        out->to[out->count] = *at;
        store_sum(number, out->room[out->count++], 16);
    }
}

/* The loop that matters. `STEPS` steps of four products, then a piece of the last block's delivery. */
static inline void loop22(const lk_gemm_pass *p, const char *a0, const char *a1, const char *b0, const char *b1, outbox *out)
{
    enum { STEPS = 4 };
    for (int64_t tiles = p->tiles; tiles > 0; tiles -= STEPS) {
        for (int64_t t = tiles < STEPS ? tiles : STEPS; t > 0;
             t--, a0 += TILE_BYTES, a1 += TILE_BYTES, b0 += TILE_BYTES, b1 += TILE_BYTES) {
            fetch_next(b0);
            _tile_loadd(LEFT0, a0, ROW_BYTES);
            _tile_loadd(RIGHT0, b0, ROW_BYTES);
            _tile_dpbf16ps(SUM00, LEFT0, RIGHT0);
            fetch_next(b1);
            _tile_loadd(LEFT1, a1, ROW_BYTES);
            _tile_dpbf16ps(SUM10, LEFT1, RIGHT0);
            fetch_next(a0);
            _tile_loadd(RIGHT1, b1, ROW_BYTES);
            _tile_dpbf16ps(SUM01, LEFT0, RIGHT1);
            fetch_next(a1);
            _tile_dpbf16ps(SUM11, LEFT1, RIGHT1);
        }
        if (out->first < out->count) deliver(p, out);
    }
}

static inline int exist(int64_t total, int64_t at) { return total - at >= LK_TILE_ROWS ? LK_TILE_ROWS : (int)(total - at); }

static inline place place_of(const lk_gemm_pass *p, int64_t i, int64_t j)
{
    int64_t tile = i / LK_TILE_ROWS * lk_tiles_down(p->right_rows) + j / LK_TILE_ROWS;
    return (place){p->c + i * p->down + j * p->across, p->sums ? p->sums + tile * LK_TILE_ROWS * LK_TILE_ROWS : NULL,
                   exist(p->left_rows, i), exist(p->right_rows, j)};
}

/* Lines that the end of this block, and the beginning of the next one to the right, will touch: sums lie in the third-level cache and
 * results a row of c apart, where nothing else foresees them. */
static void fetch_places(const lk_gemm_pass *p, const place *at, int64_t next)
{
    if (!p->partial || !at->kept) {
        lines l = lines_of(p, at);
        for (int j = 0; j < l.count; j++) __builtin_prefetch(at->c + j * l.stride, 1);
    }
    if (p->first > 0 && at->kept)
        for (int j = 0; j < LK_TILE_ROWS; j++) __builtin_prefetch(at->kept + next + j * LK_TILE_ROWS, 1);
}

static void multiply_block(const lk_gemm_pass *p, int64_t i, int64_t j, outbox *out)
{
    const char *a0 = (const char *)p->left + i / LK_TILE_ROWS * p->left_pitch, *a1 = a0 + p->left_pitch;
    const char *b0 = (const char *)p->right + j / LK_TILE_ROWS * p->right_pitch, *b1 = b0 + p->right_pitch;
    int row_blocks = i + LK_TILE_ROWS < p->left_rows ? 2 : 1, column_blocks = j + LK_TILE_ROWS < p->right_rows ? 2 : 1;
    place at[2][2];
    for (int y = 0; y < row_blocks; y++) {
        for (int x = 0; x < column_blocks; x++) {
            at[y][x] = place_of(p, i + y * LK_TILE_ROWS, j + x * LK_TILE_ROWS);
            begin_sum(p, SUM00 + 2 * y + x, &at[y][x]);
            fetch_places(p, &at[y][x], 2 * LK_TILE_ROWS * LK_TILE_ROWS);
        }
    }
    if (row_blocks == 2 && column_blocks == 2)
        loop22(p, a0, a1, b0, b1, out);
    else if (row_blocks == 2)
        loop21(a0, a1, b0, p->tiles);
    else if (column_blocks == 2)
        loop12(a0, b0, b1, p->tiles);
    else
        loop11(a0, b0, p->tiles);
    while (out->first < out->count) deliver(p, out);
    out->first = out->count = 0;
    for (int y = 0; y < row_blocks; y++)
        for (int x = 0; x < column_blocks; x++) end_sum(p, SUM00 + 2 * y + x, &at[y][x], out);
}

static void multiply(const lk_gemm_pass *p)
{
    outbox out;
    out.first = out.count = 0;
    for (int64_t i = 0; i < p->left_rows; i += 2 * LK_TILE_ROWS)
        for (int64_t j = 0; j < p->right_rows; j += 2 * LK_TILE_ROWS) multiply_block(p, i, j, &out);
    while (out.first < out.count) deliver(p, &out);
}

/* ---------------------------------------------------------------------------------------------- few rows, from nibbles to sums
 *
 * Up to 64 rows of the matrix are unpacked 128 k at a time and multiplied at once: four chains of sums, which stay in registers, hide the
 * latency of a product. Unpacking cannot be mixed with the products more finely: tile loads wait for the stores before them.
 *
 * Tiles have as many columns as there are tokens (to a power of two): one token is read as 64 bytes for each 32 k instead of 1024, and the
 * first-level cache is left to the panel. Here the shapes are set once for a whole strip. */
enum { STRIP = 4, BLOCK_BYTES = 4 * TILE_BYTES };

static inline void strip_step(const char *panel, const char *x, int64_t row_bytes, int64_t tiles, int blocks)
{
    for (; tiles > 0; tiles--, panel += TILE_BYTES, x += LK_TILE_ROWS * row_bytes) {
        _tile_loadd(RIGHT0, x, (size_t)row_bytes);
        _tile_loadd(LEFT0, panel, ROW_BYTES);
        _tile_dpbf16ps(SUM00, LEFT0, RIGHT0);
        if (blocks > 1) {
            _tile_loadd(LEFT1, panel + BLOCK_BYTES, ROW_BYTES);
            _tile_dpbf16ps(SUM01, LEFT1, RIGHT0);
        }
        if (blocks > 2) {
            _tile_loadd(LEFT0, panel + 2 * BLOCK_BYTES, ROW_BYTES);
            _tile_dpbf16ps(SUM10, LEFT0, RIGHT0);
        }
        if (blocks > 3) {
            _tile_loadd(LEFT1, panel + 3 * BLOCK_BYTES, ROW_BYTES);
            _tile_dpbf16ps(SUM11, LEFT1, RIGHT0);
        }
    }
}

/* The sums of rows [row, row + 16 * blocks) to c. */
static void strip_end(const lk_gemm_strip *s, int64_t row, int blocks)
{
    _Alignas(64) float room[16 * 16], turned[16 * 16];
    for (int i = 0; i < blocks; i++, row += LK_TILE_ROWS) {
        int64_t left = s->rows - row;
        __mmask16 mask = left >= LK_TILE_ROWS ? 0xffff : (__mmask16)((1u << left) - 1);
        store_sum(SUM00 + i, room, s->count == 1 ? 1 : 16); /* one column is in order as it is */
        settle(room);
        if (s->count > 1) lk_avx512_transpose(turned, 16, room, 16);
        const float *from = s->count > 1 ? turned : room;
        for (int64_t j = 0; j < s->count; j++) _mm512_mask_storeu_ps(s->c + row + j * s->across, mask, _mm512_load_ps(from + 16 * j));
    }
}

static void strip_rows(const lk_gemm_strip *s, int64_t row, int blocks)
{
    int64_t row_bytes = 4 * lk_gemm_few_rows(s->count), along = s->blocks_along;
    const lk_nf4_tile *first = s->blocks + row / LK_TILE_ROWS * along;
    for (int i = 0; i < STRIP; i++) zero_sum(SUM00 + i);
    for (int64_t t = 0; t < s->tiles; t += 4) {
        const lk_nf4_tile *block = first + t / 4, *next = t + 4 < s->tiles ? block + 1 : first + STRIP * along;
        for (int i = 0; i < blocks; i++) lk_avx512_nf4_ahead((char *)s->panel + i * BLOCK_BYTES, block + i * along, next + i * along);
        settle(s->panel);
        int64_t tiles = s->tiles - t < 4 ? s->tiles - t : 4;
        strip_step(s->panel, (const char *)s->packed + t * LK_TILE_ROWS * row_bytes, row_bytes, tiles, blocks);
    }
    strip_end(s, row, blocks);
}

static void strip(const lk_gemm_strip *s)
{
    configure((uint16_t)(4 * lk_gemm_few_rows(s->count)));
    for (int64_t row = 0; row < s->rows; row += STRIP * LK_TILE_ROWS) {
        int64_t blocks = lk_tiles_down(s->rows - row);
        strip_rows(s, row, blocks < STRIP ? (int)blocks : STRIP);
    }
    end();
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

const lk_gemm lk_gemm_amx_bf16 = {.tier = LK_CPU_AMX,
                                  .compute = LK_BF16,
                                  .element = sizeof(uint16_t),
                                  .lanes = 1,
                                  .depth = LK_GEMM_DEPTH / LK_TILE_DEPTH, /* nothing to join: any would do */
                                  .right_differs = true,
                                  .load = lk_avx512_load_bf16,
                                  .swap = lk_avx512_swap_pairs,
                                  .turn = lk_avx512_turn_pairs,
                                  .nf4 = lk_avx512_nf4_bf16,
                                  .begin = begin,
                                  .end = end,
                                  .multiply = multiply,
                                  .few = 16,
                                  .strip = strip};
#endif
