/* What all tiers share: choosing the kernel set, packing whole panels tile by tile, and the blocked product on one thread.
 *
 * Everything that differs between processors is behind five small functions on tiles of 16 x 32 (struct lk_gemm), so that the
 * many combinations of source (by rows, by columns, NF4, dense), side and tier are written once, here and in matrix.c. */
#include "kernels/cpu/gemm.h"

#include <string.h>

const lk_gemm *lk_gemm_get(lk_cpu_tier tier, lk_dtype compute)
{
    bool bf16 = compute == LK_BF16;
#if defined(__x86_64__)
    switch (tier) {
    case LK_CPU_AMX: return bf16 ? &lk_gemm_amx_bf16 : &lk_gemm_avx512_f32;
    case LK_CPU_AVX512: return bf16 ? &lk_gemm_avx512_bf16 : &lk_gemm_avx512_f32;
    case LK_CPU_AVX2: return bf16 ? &lk_gemm_avx2_bf16 : &lk_gemm_avx2_f32;
    case LK_CPU_PORTABLE:
    case LK_CPU_REFERENCE: break;
    }
#endif
    (void)tier;
    return bf16 ? &lk_gemm_portable_bf16 : &lk_gemm_portable_f32;
}

size_t lk_gemm_element(const lk_gemm *g) { return g->element; }
int64_t lk_gemm_depth(const lk_gemm *g) { return (int64_t)g->depth * LK_TILE_DEPTH; }

static inline size_t tile_bytes(const lk_gemm *g) { return LK_TILE_SIZE * g->element; }

size_t lk_gemm_panel_bytes(const lk_gemm *g, int64_t rows, int64_t k)
{
    return (size_t)(lk_tiles_down(rows) * lk_tiles_along(k)) * tile_bytes(g);
}

static inline int at_most(int64_t n, int limit) { return n < limit ? (int)n : limit; }

/* One tile of a factor given by rows: straight in, and swapped when the other side's layout is asked for. */
static void pack_rows(const lk_gemm *g, char *panel, const lk_factor *f, int64_t row, int64_t rows, int64_t first, int64_t k, bool swapped)
{
    _Alignas(64) char tile[LK_TILE_SIZE * sizeof(float)];
    size_t bytes = tile_bytes(g);
    const char *data = f->data;
    for (int64_t i = 0; i < rows; i += LK_TILE_ROWS) {
        for (int64_t j = 0; j < k; j += LK_TILE_DEPTH, panel += bytes) {
            const char *from = data + ((row + i) * f->stride + first + j) * lk_dtype_size(f->type);
            g->load(swapped ? tile : panel, from, f->type, f->stride, at_most(rows - i, LK_TILE_ROWS), at_most(k - j, LK_TILE_DEPTH),
                    f->scale);
            if (swapped) g->swap(panel, tile);
        }
    }
}

/* A factor given by columns: 32 k x 32 rows of memory at a time, turned. */
static void pack_columns(const lk_gemm *g, char *panel, const lk_factor *f, int64_t row, int64_t rows, int64_t first, int64_t k,
                         bool swapped)
{
    _Alignas(64) char top[LK_TILE_SIZE * sizeof(float)], bottom[LK_TILE_SIZE * sizeof(float)];
    _Alignas(64) char turned[2][LK_TILE_SIZE * sizeof(float)];
    size_t bytes = tile_bytes(g);
    const char *data = f->data;
    int64_t along = lk_tiles_along(k), size = lk_dtype_size(f->type);
    for (int64_t i = 0; i < rows; i += 2 * LK_TILE_ROWS) {
        int width = at_most(rows - i, 2 * LK_TILE_ROWS);
        for (int64_t j = 0; j < k; j += LK_TILE_DEPTH) {
            const char *from = data + ((first + j) * f->stride + row + i) * size;
            int above = at_most(k - j, LK_TILE_ROWS), below = at_most(k - j - above, LK_TILE_ROWS);
            g->load(top, from, f->type, f->stride, above, width, f->scale);
            g->load(bottom, from + LK_TILE_ROWS * f->stride * size, f->type, f->stride, below, width, f->scale);
            char *to[2] = {panel + (i / LK_TILE_ROWS * along + j / LK_TILE_DEPTH) * (int64_t)bytes, NULL};
            to[1] = width > LK_TILE_ROWS ? to[0] + along * (int64_t)bytes : turned[1];
            if (swapped) {
                g->turn(turned[0], turned[1], top, bottom);
                g->swap(to[0], turned[0]);
                if (width > LK_TILE_ROWS) g->swap(to[1], turned[1]);
            } else {
                g->turn(to[0], to[1], top, bottom);
            }
        }
    }
}

void lk_gemm_pack_left(const lk_gemm *g, void *panel, lk_factor factor, int64_t row, int64_t rows, int64_t first, int64_t k)
{
    if (factor.columns)
        pack_columns(g, panel, &factor, row, rows, first, k, g->right_differs);
    else
        pack_rows(g, panel, &factor, row, rows, first, k, false);
}

void lk_gemm_pack_right(const lk_gemm *g, void *panel, lk_factor factor, int64_t row, int64_t rows, int64_t first, int64_t k)
{
    if (factor.columns)
        pack_columns(g, panel, &factor, row, rows, first, k, false);
    else
        pack_rows(g, panel, &factor, row, rows, first, k, g->right_differs);
}

/* The first `bytes` of each 64. */
static inline void narrow(char *to, const char *tile, int64_t bytes)
{
    for (int i = 0; i < LK_TILE_ROWS; i++) memcpy(to + i * bytes, tile + (size_t)i * 64, (size_t)bytes);
}

/* Where right tiles are not like left ones, they are 16 pairs of k by rows. */
void lk_gemm_pack_few(const lk_gemm *g, void *packed, const float *x, int64_t stride, int64_t count, int64_t k)
{
    _Alignas(64) char tile[2][LK_TILE_SIZE * sizeof(float)];
    int rows = lk_gemm_few_rows(count);
    size_t bytes = (size_t)rows * LK_TILE_DEPTH * g->element;
    char *to = packed;
    for (int64_t j = 0; j < k; j += LK_TILE_DEPTH, to += bytes) {
        g->load(tile[0], x + j, LK_F32, stride, (int)count, at_most(k - j, LK_TILE_DEPTH), 1.0f);
        if (rows > 1 && g->right_differs) g->swap(tile[1], tile[0]);
        switch (g->right_differs ? rows : 0) {
        case 2: narrow(to, tile[1], 8); break;
        case 4: narrow(to, tile[1], 16); break;
        case 8: narrow(to, tile[1], 32); break;
        case 16: memcpy(to, tile[1], bytes); break;
        default: memcpy(to, tile[0], bytes);
        }
    }
}

int64_t lk_gemm_sums(const lk_gemm *g, int64_t left_rows, int64_t right_rows, bool inside)
{
    return lk_tiles_down(left_rows) * lk_tiles_down(right_rows) * LK_TILE_ROWS * LK_TILE_ROWS * (inside ? g->lanes : 1);
}

void lk_gemm_multiply(const lk_gemm *g, const lk_gemm_pass *pass)
{
    if (pass->left_rows <= 0 || pass->right_rows <= 0) return;
    lk_gemm_begin(g);
    g->multiply(pass);
    lk_gemm_end(g);
}

/* Blocks of lk_gemm_product: the right panel is reused by every left one, and both stay in the second-level cache. */
enum { PRODUCT_LEFT = 64, PRODUCT_RIGHT = 64 };

size_t lk_gemm_scratch_bytes(const lk_gemm *g)
{
    return lk_gemm_panel_bytes(g, PRODUCT_LEFT, LK_GEMM_DEPTH) + lk_gemm_panel_bytes(g, PRODUCT_RIGHT, LK_GEMM_DEPTH);
}

static void clear(float *c, int64_t ldc, int64_t m, int64_t n)
{
    for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
}

void lk_gemm_product(const lk_gemm *g, float *c, int64_t ldc, int64_t m, int64_t n, int64_t k, lk_factor a, lk_factor b, lk_gemm_mode mode,
                     void *scratch)
{
    if (k <= 0 && mode == LK_GEMM_SET) clear(c, ldc, m, n);
    if (k <= 0 || m <= 0 || n <= 0) return;
    lk_gemm_begin(g);
    char *left = scratch, *right = left + lk_gemm_panel_bytes(g, PRODUCT_LEFT, LK_GEMM_DEPTH);
    for (int64_t first = 0; first < k; first += lk_gemm_depth(g)) {
        int64_t depth = at_most(k - first, (int)lk_gemm_depth(g));
        for (int64_t j = 0; j < n; j += PRODUCT_RIGHT) {
            int64_t columns = at_most(n - j, PRODUCT_RIGHT);
            lk_gemm_pack_right(g, right, b, j, columns, first, depth);
            for (int64_t i = 0; i < m; i += PRODUCT_LEFT) {
                int64_t rows = at_most(m - i, PRODUCT_LEFT);
                if (j == 0 || m > PRODUCT_LEFT) lk_gemm_pack_left(g, left, a, i, rows, first, depth);
                lk_gemm_pass pass = {.c = c + i * ldc + j,
                                     .down = ldc,
                                     .across = 1,
                                     .left = left,
                                     .right = right,
                                     .left_rows = rows,
                                     .right_rows = columns,
                                     .left_pitch = (int64_t)lk_gemm_panel_bytes(g, 1, depth),
                                     .right_pitch = (int64_t)lk_gemm_panel_bytes(g, 1, depth),
                                     .first = first / LK_TILE_DEPTH,
                                     .tiles = lk_tiles_along(depth),
                                     .mode = mode,
                                     .partial = first + depth < k};
                g->multiply(&pass);
            }
        }
    }
    lk_gemm_end(g);
}
