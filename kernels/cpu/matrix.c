/* Preparing frozen matrices. A 4-bit checkpoint of a billion weights must be ready in well under a second, so the NF4 path only
 * moves nibbles; dense sources are converted tile by tile. Both are split over the pool by blocks of 16 rows.
 *
 * A row-major layout as in the file was the alternative (map and use, nothing to prepare). It lost: a product that reads 16 rows at
 * once would follow 16 streams, which the hardware prefetchers do not, and each 64 codes would meet their scale in another array. */
#include "kernels/cpu/matrix.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/nf4.h"

static inline int64_t blocks_along(int64_t k) { return (k + LK_NF4_TILE_DEPTH - 1) / LK_NF4_TILE_DEPTH; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline size_t storage_tile(lk_dtype storage) { return (size_t)LK_TILE_SIZE * (size_t)lk_dtype_size(storage); }

static lk_dtype storage_for(lk_dtype compute, lk_dtype type, int64_t k)
{
    if (type == LK_NF4 && k % LK_NF4_BLOCK == 0) return LK_NF4;
    if (compute == LK_BF16 || type == LK_BF16) return LK_BF16;
    return LK_F32;
}

static size_t bytes_for(lk_dtype storage, int64_t n, int64_t k)
{
    size_t down = (size_t)lk_tiles_down(n);
    if (storage == LK_NF4) return down * (size_t)blocks_along(k) * sizeof(lk_nf4_tile);
    return down * (size_t)lk_tiles_along(k) * storage_tile(storage);
}

size_t lk_cpu_matrix_bytes(const lk_backend *be, lk_dtype source_type, int64_t n, int64_t k, bool nested)
{
    (void)nested; /* scales lie beside their codes, un-nested */
    return bytes_for(storage_for(be->compute, source_type, k), n, k);
}

static inline const lk_cpu_matrix *matrix_of(const lk_matrix *w) { return (const lk_cpu_matrix *)w; }

/* ---------------------------------------------------------------------------------------------- preparing */

typedef struct prepare {
    lk_cpu_matrix *w;
    const lk_matrix_source *source;
} prepare;

/* 128 codes of the file (64 bytes, even k in the high nibble) in the order of lk_nf4_tile. */
static void order_codes(uint16_t words[32], const uint8_t bytes[64])
{
    uint8_t codes[LK_NF4_TILE_DEPTH];
    for (int i = 0; i < 64; i++) {
        codes[2 * i] = bytes[i] >> 4;
        codes[2 * i + 1] = bytes[i] & 15;
    }
    for (int j = 0; j < 32; j++) words[j] = (uint16_t)(codes[j] | codes[64 + j] << 4 | codes[32 + j] << 8 | codes[96 + j] << 12);
}

static void prepare_nf4(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const prepare *p = context;
    const lk_cpu_matrix *w = p->w;
    const uint8_t *codes = p->source->data;
    int64_t along = blocks_along(w->base.k);
    for (int64_t i = begin; i < end; i++) {
        lk_nf4_tile *block = (lk_nf4_tile *)w->data + i * along;
        for (int64_t j = 0; j < along; j++, block++) {
            int64_t depth = smaller(w->base.k - j * LK_NF4_TILE_DEPTH, LK_NF4_TILE_DEPTH); /* 64 or 128 */
            if (depth < LK_NF4_TILE_DEPTH || (i + 1) * LK_TILE_ROWS > w->base.n) memset(block, 0, sizeof *block);
            for (int64_t r = 0; r < smaller(w->base.n - i * LK_TILE_ROWS, LK_TILE_ROWS); r++) {
                int64_t at = (i * LK_TILE_ROWS + r) * w->base.k + j * LK_NF4_TILE_DEPTH;
                const uint8_t *from = codes + at / 2;
                uint8_t padded[64] = {0};
                if (depth < LK_NF4_TILE_DEPTH) from = memcpy(padded, from, 32);
                order_codes(block->codes[r], from);
                for (int64_t half = 0; half * LK_NF4_BLOCK < depth; half++)
                    block->absmax[half][r] = p->source->absmax[at / LK_NF4_BLOCK + half];
            }
        }
    }
}

/* k values of one row from position `at` of the flat source, in fp32. */
static void source_values(float *values, const lk_matrix_source *s, int64_t at, int64_t k)
{
    if (s->type != LK_NF4) {
        lk_to_f32(values, (const char *)s->data + at * lk_dtype_size(s->type), s->type, k);
        return;
    }
    const uint8_t *codes = s->data;
    for (int64_t i = 0; i < k; i++, at++) {
        unsigned code = at % 2 ? codes[at / 2] & 15u : (unsigned)codes[at / 2] >> 4;
        values[i] = lk_nf4_codebook[code] * s->absmax[at / LK_NF4_BLOCK];
    }
}

static void prepare_dense(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const prepare *p = context;
    const lk_cpu_matrix *w = p->w;
    int64_t along = lk_tiles_along(w->base.k);
    size_t bytes = storage_tile(w->storage), row_bytes = bytes / LK_TILE_ROWS;
    float values[LK_TILE_DEPTH];
    for (int64_t i = begin; i < end; i++) {
        char *tile = (char *)w->data + (size_t)(i * along) * bytes;
        for (int64_t j = 0; j < along; j++, tile += bytes) {
            int64_t k = smaller(w->base.k - j * LK_TILE_DEPTH, LK_TILE_DEPTH), rows = smaller(w->base.n - i * LK_TILE_ROWS, LK_TILE_ROWS);
            if (k < LK_TILE_DEPTH || rows < LK_TILE_ROWS) memset(tile, 0, bytes);
            for (int64_t r = 0; r < rows; r++) {
                source_values(values, p->source, (i * LK_TILE_ROWS + r) * w->base.k + j * LK_TILE_DEPTH, k);
                lk_from_f32(tile + (size_t)r * row_bytes, w->storage, values, k);
            }
        }
    }
}

lk_status lk_cpu_matrix_create(lk_backend *be, lk_matrix **out, const lk_matrix_source *source)
{
    const lk_cpu *cpu = lk_cpu_of(be);
    int64_t n = source->n, k = source->k;
    if (n > INT32_MAX || k > INT32_MAX)
        return lk_fail(&be->error, LK_ERR_UNSUPPORTED, "a matrix of %lld x %lld: sides end at %d", (long long)n, (long long)k, INT32_MAX);
    lk_cpu_matrix *w = malloc(sizeof *w);
    if (!w) return lk_fail(&be->error, LK_ERR_MEMORY, "no memory for a matrix");
    *w = (lk_cpu_matrix){.base = {source->type, n, k}, .gemm = lk_gemm_get(cpu->tier, be->compute)};
    w->storage = storage_for(be->compute, source->type, k);
    lk_status status = lk_alloc(be, bytes_for(w->storage, n, k), &w->data);
    if (status) {
        free(w);
        return status;
    }
    prepare p = {w, source};
    if (source->data) lk_pool_run(cpu->pool, lk_tiles_down(n), 1, w->storage == LK_NF4 ? prepare_nf4 : prepare_dense, &p);
    *out = &w->base;
    return LK_OK;
}

void lk_cpu_matrix_destroy(lk_backend *be, lk_matrix *matrix)
{
    lk_cpu_matrix *w = (lk_cpu_matrix *)matrix;
    if (!w->lent) lk_free(be, w->data);
    free(w);
}

const void *lk_cpu_matrix_data(const lk_matrix *w) { return matrix_of(w)->data; }

void lk_cpu_matrix_lend(lk_backend *be, lk_matrix *matrix, void *data)
{
    lk_cpu_matrix *w = (lk_cpu_matrix *)matrix;
    if (!w->lent) lk_free(be, w->data);
    w->lent = true;
    w->data = data;
}

/* ---------------------------------------------------------------------------------------------- reading */

/* Left tiles of rows of blocks `i`, from tile `first` on, `tiles` of them: unpacked, converted, or where they are. */
static const char *left_tiles(const lk_cpu_matrix *w, char *to, int64_t i, int64_t first, int64_t tiles)
{
    const lk_gemm *g = w->gemm;
    if (w->storage == LK_NF4) {
        const lk_nf4_tile *block = (const lk_nf4_tile *)w->data + i * blocks_along(w->base.k) + first / 4;
        for (int64_t t = 0; t < tiles; t += 4, block++) g->nf4(to + (size_t)t * LK_TILE_SIZE * g->element, block);
        return to;
    }
    size_t bytes = storage_tile(w->storage);
    const char *from = (const char *)w->data + (size_t)(i * lk_tiles_along(w->base.k) + first) * bytes;
    if (g->element == (size_t)lk_dtype_size(w->storage)) return from;
    lk_to_f32((float *)(void *)to, from, w->storage, tiles * LK_TILE_SIZE);
    return to;
}

const void *lk_cpu_matrix_panel(const lk_matrix *matrix, void *panel, int64_t *pitch, int64_t row, int64_t rows, int64_t first, int64_t k)
{
    const lk_cpu_matrix *w = matrix_of(matrix);
    size_t element = w->gemm->element;
    int64_t i = row / LK_TILE_ROWS, tile = first / LK_TILE_DEPTH, tiles = lk_tiles_along(k);
    if (w->storage != LK_NF4 && element == (size_t)lk_dtype_size(w->storage)) {
        *pitch = lk_tiles_along(w->base.k) * (int64_t)storage_tile(w->storage);
        return left_tiles(w, NULL, i, tile, tiles);
    }
    *pitch = blocks_along(k) * 4 * LK_TILE_SIZE * (int64_t)element;
    for (int64_t b = 0; b < lk_tiles_down(rows); b++) left_tiles(w, (char *)panel + b * *pitch, i + b, tile, tiles);
    return panel;
}

const lk_nf4_tile *lk_cpu_matrix_blocks(const lk_matrix *matrix, int64_t row, int64_t *along)
{
    const lk_cpu_matrix *w = matrix_of(matrix);
    *along = blocks_along(w->base.k);
    return w->storage == LK_NF4 ? (const lk_nf4_tile *)w->data + row / LK_TILE_ROWS * *along : NULL;
}

void lk_cpu_matrix_turned(const lk_matrix *matrix, void *panel, int64_t row, int64_t rows, int64_t first, int64_t k)
{
    const lk_cpu_matrix *w = matrix_of(matrix);
    const lk_gemm *g = w->gemm;
    size_t bytes = LK_TILE_SIZE * g->element;
    int64_t along = lk_tiles_along(rows), down = lk_tiles_down(w->base.n);
    _Alignas(64) char room[2][4 * LK_TILE_SIZE * sizeof(float)], none[LK_TILE_SIZE * sizeof(float)];
    for (int64_t r = 0; r < rows; r += LK_TILE_DEPTH) {
        int64_t i = (row + r) / LK_TILE_ROWS;
        bool alone = i + 1 >= down;
        if (alone) memset(none, 0, bytes);
        for (int64_t at = 0; at < k; at += LK_NF4_TILE_DEPTH) {
            int64_t tiles = lk_tiles_along(smaller(k - at, LK_NF4_TILE_DEPTH)), tile = (first + at) / LK_TILE_DEPTH;
            const char *top = left_tiles(w, room[0], i, tile, tiles);
            const char *bottom = alone ? none : left_tiles(w, room[1], i + 1, tile, tiles);
            for (int64_t t = 0; t < tiles; t++) {
                char *to = (char *)panel + (size_t)((at / LK_TILE_ROWS + 2 * t) * along + r / LK_TILE_DEPTH) * bytes;
                g->turn(to, to + (size_t)along * bytes, top + (size_t)t * bytes, alone ? none : bottom + (size_t)t * bytes);
            }
        }
    }
}

static void unpack_row(const lk_cpu_matrix *w, int64_t row, float *out)
{
    int64_t i = row / LK_TILE_ROWS, r = row % LK_TILE_ROWS, width = w->base.k;
    if (w->storage != LK_NF4) {
        size_t bytes = storage_tile(w->storage);
        const char *tile = (const char *)w->data + (size_t)(i * lk_tiles_along(width)) * bytes + (size_t)r * (bytes / LK_TILE_ROWS);
        for (int64_t k = 0; k < width; k += LK_TILE_DEPTH, tile += bytes)
            lk_to_f32(out + k, tile, w->storage, smaller(width - k, LK_TILE_DEPTH));
        return;
    }
    const lk_nf4_tile *block = (const lk_nf4_tile *)w->data + i * blocks_along(width);
    bool bf16 = w->gemm->compute == LK_BF16;
    for (int64_t first = 0; first < width; first += LK_NF4_TILE_DEPTH, block++) {
        for (int64_t k = 0; k < smaller(width - first, LK_NF4_TILE_DEPTH); k++) {
            int shift = (k & 32 ? 8 : 0) + (k & 64 ? 4 : 0);
            float value = lk_nf4_codebook[block->codes[r][k & 31] >> shift & 15] * block->absmax[k >> 6][r];
            out[first + k] = bf16 ? lk_bf16_to_f32(lk_f32_to_bf16(value)) : value;
        }
    }
}

void lk_cpu_matrix_unpack(const lk_matrix *w, int64_t begin, int64_t end, float *out)
{
    for (int64_t row = begin; row < end; row++) unpack_row(matrix_of(w), row, out + (row - begin) * w->k);
}

void lk_cpu_matrix_pack(lk_matrix *matrix, int64_t row, const float *values)
{
    const lk_cpu_matrix *w = matrix_of(matrix);
    int64_t width = w->base.k;
    size_t bytes = storage_tile(w->storage);
    char *tile = (char *)w->data + (size_t)(row / LK_TILE_ROWS * lk_tiles_along(width)) * bytes +
                 (size_t)(row % LK_TILE_ROWS) * (bytes / LK_TILE_ROWS);
    for (int64_t k = 0; k < width; k += LK_TILE_DEPTH, tile += bytes)
        lk_from_f32(tile, w->storage, values + k, smaller(width - k, LK_TILE_DEPTH));
}
