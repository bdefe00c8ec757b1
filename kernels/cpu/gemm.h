/* Matrix products on packed panels: everything on the CPU that multiplies matrices uses these.
 *
 *     const lk_gemm *g = lk_gemm_get(tier, LK_BF16);
 *     void *scratch = ... lk_gemm_scratch_bytes(g) of 64-byte aligned memory, one per thread ...
 *
 *     -- s[m,n] = q[m,d] * k[n,d]^T
 *     lk_gemm_product(g, s, lds, m, n, d, lk_factor_rows(q, LK_F32, ldq), lk_factor_rows(k, LK_F32, ldk), LK_GEMM_SET, scratch);
 *     -- o[m,d] += p[m,n] * v[n,d]: the contraction index n runs down v, so v is given by columns
 *     lk_gemm_product(g, o, ldo, m, d, n, lk_factor_rows(p, LK_F32, ldp), lk_factor_columns(v, LK_F32, ldv), LK_GEMM_ADD, scratch);
 *
 * C[M,N] (+)= A[M,K] * B[N,K]^T with fp32 C. A kernel set belongs to a tier (kernels/cpu/features.h) and a `compute`:
 *   F32   products and sums in fp32 (fused where the tier has FMA);
 *   BF16  both factors rounded to bf16 (nearest even), products and sums in fp32. On amx and avx512 the instructions treat
 *         denormals as zero.
 *
 * The bits of an element of C are a function of its row of A, its row of B, K and the tier alone: not of M, of N, of the other
 * rows, of the thread, or of how a caller splits M and N over calls. They do depend on where a caller splits K.
 *
 * Nothing here allocates, starts threads or fails. All functions are pure apart from c and scratch and thread-safe.
 *
 * For repeated use of one factor, pack it once and multiply many times (second half of this header); linear.c does. */
#ifndef LK_KERNELS_CPU_GEMM_H
#define LK_KERNELS_CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/features.h"
#include "kernels/tensor.h"

typedef struct lk_gemm lk_gemm;

/* compute is LK_F32 or LK_BF16. The tier "reference" gets the portable kernels. */
const lk_gemm *lk_gemm_get(lk_cpu_tier tier, lk_dtype compute);

/* One factor: element (row, k) is scale * data[row * stride + k], or of data[k * stride + row] when it is given by columns (row runs
 * along memory, the contraction index down). type F32 or BF16. scale is applied before the rounding to bf16. */
typedef struct lk_factor {
    const void *data;
    lk_dtype type;
    int64_t stride;
    bool columns;
    float scale;
} lk_factor;

static inline lk_factor lk_factor_rows(const void *data, lk_dtype type, int64_t stride)
{
    return (lk_factor){data, type, stride, false, 1.0f};
}

static inline lk_factor lk_factor_columns(const void *data, lk_dtype type, int64_t stride)
{
    return (lk_factor){data, type, stride, true, 1.0f};
}

typedef enum lk_gemm_mode {
    LK_GEMM_SET, /* c = product */
    LK_GEMM_ADD  /* c += product */
} lk_gemm_mode;

/* Scratch of one thread for lk_gemm_product of any shape. */
size_t lk_gemm_scratch_bytes(const lk_gemm *g);

/* c[m*ldc + n] (+)= sum over k of a(m,k) * b(n,k), on the calling thread. K = 0 gives zeros (SET) or leaves c alone (ADD).
 * c must not overlap a or b. Fastest when M and N are multiples of 16 and K of 32, correct always. */
void lk_gemm_product(const lk_gemm *g, float *c, int64_t ldc, int64_t m, int64_t n, int64_t k, lk_factor a, lk_factor b, lk_gemm_mode mode,
                     void *scratch);

/* ---------------------------------------------------------------------------------------------- packed panels
 *
 * A panel holds rows x K as tiles of 16 rows x 32 k: tile (rows 16i.., k 32j..) is number i * tiles(K) + j, 512 elements of
 * `lk_gemm_element(g)` bytes each (bf16 where the kernels multiply bf16, fp32 otherwise). Rows and k beyond the end are zero.
 * A left tile is row-major [16][32]. A right tile is the same, except on amx, where it is [16 pairs of k][16 rows][2].
 * Panels are 64-byte aligned. */
enum { LK_TILE_ROWS = 16, LK_TILE_DEPTH = 32, LK_TILE_SIZE = LK_TILE_ROWS * LK_TILE_DEPTH };

/* Where sums are joined: kernels that keep several partial sums ("lanes") per element add them up after every lk_gemm_depth(g) k,
 * counted from 0. At most LK_GEMM_DEPTH, a power of two, at least 512. */
enum { LK_GEMM_DEPTH = 2048 };
int64_t lk_gemm_depth(const lk_gemm *g);

static inline int64_t lk_tiles_down(int64_t rows) { return (rows + LK_TILE_ROWS - 1) / LK_TILE_ROWS; }
static inline int64_t lk_tiles_along(int64_t k) { return (k + LK_TILE_DEPTH - 1) / LK_TILE_DEPTH; }

size_t lk_gemm_element(const lk_gemm *g);
size_t lk_gemm_panel_bytes(const lk_gemm *g, int64_t rows, int64_t k);

/* Rows [row, row + rows) and k [first, first + k) of a factor as a left or right panel. `row` and `first` may be anything. */
void lk_gemm_pack_left(const lk_gemm *g, void *panel, lk_factor factor, int64_t row, int64_t rows, int64_t first, int64_t k);
void lk_gemm_pack_right(const lk_gemm *g, void *panel, lk_factor factor, int64_t row, int64_t rows, int64_t first, int64_t k);

/* One pass over (part of) K. Element (i of left, j of right) of the result is c[i * down + j * across]; one of the two is 1.
 * A product whose K does not fit one panel takes several passes, in order, all but the last `partial`. They begin at multiples of
 * lk_gemm_depth, or at any tile when there are `sums`.
 *
 * sums keeps what is unfinished between passes, lk_gemm_sums floats in an arrangement of the kernel's own. It may be NULL when
 * across is 1 or there is one pass; unfinished sums are kept in c then. Wide results would be read and written a line a page. */
typedef struct lk_gemm_pass {
    float *c;
    int64_t down, across;
    const void *left, *right; /* first tile of each */
    int64_t left_rows, right_rows;
    int64_t left_pitch, right_pitch; /* bytes from one block of 16 rows to the next */
    int64_t first, tiles;            /* of K: those before this pass, and in it */
    lk_gemm_mode mode;               /* of the whole product, the same in every pass */
    bool partial;
    float *sums; /* 64-byte aligned */
} lk_gemm_pass;

/* Floats of sums for a result of this size; `inside`: passes end inside lk_gemm_depth. */
int64_t lk_gemm_sums(const lk_gemm *g, int64_t left_rows, int64_t right_rows, bool inside);

void lk_gemm_multiply(const lk_gemm *g, const lk_gemm_pass *pass);

/* The same for many passes on one thread: amx sets its registers up in begin and gives them back in end, which takes as long as a
 * short pass. In between call g->multiply. */
static inline void lk_gemm_begin(const lk_gemm *g);
static inline void lk_gemm_end(const lk_gemm *g);

/* 64 weights share a scale; a block of the NF4 layout is 16 rows x 128 k. Row r holds k in 32 words of 4 nibbles: word j has
 * k = j, 64 + j, 32 + j, 96 + j from the lowest nibble up, so that one byte-wise mask leaves the codes of one scale (AVX2)
 * and one 16-bit shift the codes of 32 neighbouring k (AVX-512). absmax[0] belongs to k 0..63 of the 16 rows, absmax[1] to the rest. */
typedef struct lk_nf4_tile {
    uint16_t codes[LK_TILE_ROWS][32];
    float absmax[2][LK_TILE_ROWS];
} lk_nf4_tile;

enum { LK_NF4_TILE_DEPTH = 128 };

/* While row r of a block is unpacked, that of a later one is fetched (with the scales beside the first two): the hardware's
 * prefetchers stop at every 4 KiB, and without this a product at one token waits for memory half of its time. */
static inline void lk_nf4_fetch(const lk_nf4_tile *block, int r)
{
    __builtin_prefetch(block->codes[r]);
    if (r < 2) __builtin_prefetch(block->absmax[r]);
}

/* At most `few` rows of activations by rows of an NF4 matrix, from nibbles to finished sums: passes would put unfinished sums away every
 * few tiles. Element (row i of the matrix, row j of the activations) is c[i + j * across]. */
typedef struct lk_gemm_strip {
    float *c;
    int64_t across;
    const lk_nf4_tile *blocks; /* of the first row, a multiple of 16 */
    int64_t blocks_along;      /* from 16 rows to the next 16 */
    int64_t rows;
    int64_t tiles;      /* of K */
    const void *packed; /* lk_gemm_pack_few */
    int64_t count;      /* of activations */
    void *panel;        /* LK_GEMM_STRIP_BYTES, 64-byte aligned */
} lk_gemm_strip;

enum { LK_GEMM_STRIP_BYTES = 16 << 10 };

/* x[count, k] for strips: a right panel whose tiles have only as many rows as there are, to the next power of two: that of one token is
 * 1/16 of a whole one and stays in the first-level cache. */
static inline int lk_gemm_few_rows(int64_t count) { return count > 8 ? 16 : count > 4 ? 8 : count > 2 ? 4 : (int)count; }
void lk_gemm_pack_few(const lk_gemm *g, void *packed, const float *x, int64_t stride, int64_t count, int64_t k);

/* What a tier provides (gemm_*.c). Tiles as above. */
struct lk_gemm {
    lk_cpu_tier tier;
    lk_dtype compute;
    size_t element;
    int lanes;          /* partial sums per element */
    int depth;          /* in tiles, between joins of the lanes */
    bool right_differs; /* right tiles are not laid out like left ones: `swap` turns one kind into the other */
    /* A left tile from rows x k values in memory (rows <= 16, k <= 32); the rest of the tile is zeroed. */
    void (*load)(void *tile, const void *data, lk_dtype type, int64_t stride, int rows, int k, float scale);
    /* A left tile into a right tile of the same rows, and back. Not in place. */
    void (*swap)(void *to, const void *from);
    /* Left tiles `top` (rows 0..15) and `bottom` (rows 16..31) of the same 32 k, transposed: two right tiles whose rows are k 0..15
     * and k 16..31 and whose depth are the 32 rows. */
    void (*turn)(void *right0, void *right1, const void *top, const void *bottom);
    /* Four left tiles in a row (k 0..31, 32.., 64.., 96..) from one NF4 block: codebook * absmax. */
    void (*nf4)(void *tiles, const lk_nf4_tile *block);
    void (*begin)(void); /* or NULL */
    void (*end)(void);
    void (*multiply)(const lk_gemm_pass *pass); /* between begin and end; at least one row on each side */
    int few;                                    /* rows of activations that `strip` takes, 0 when there is none */
    void (*strip)(const lk_gemm_strip *strip);  /* not between begin and end */
};

static inline void lk_gemm_begin(const lk_gemm *g)
{
    if (g->begin) g->begin();
}

static inline void lk_gemm_end(const lk_gemm *g)
{
    if (g->end) g->end();
}

extern const lk_gemm lk_gemm_portable_f32, lk_gemm_portable_bf16;
#if defined(__x86_64__)
extern const lk_gemm lk_gemm_avx2_f32, lk_gemm_avx2_bf16, lk_gemm_avx512_f32, lk_gemm_avx512_bf16, lk_gemm_amx_bf16;
#endif

#endif
