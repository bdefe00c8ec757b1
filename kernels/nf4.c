/* NF4 as bitsandbytes' CPU backend computes it, bit for bit; tests/golden/README.md has the rule in words and nf4_rule.py in numpy.
 *
 * A code is the number of the 15 bounds below the scaled value. Counting with 15 comparisons beats a search here: it has no
 * branches and the compiler turns the loop over a block into vectors. The build's -ffp-contract=off matters: a fused d*r or
 * map*absmax+offset would move last bits. */
#include "kernels/nf4.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

const float lk_nf4_codebook[16] = {-1.0f,
                                   -0.6961928009986877f,
                                   -0.5250730514526367f,
                                   -0.39491748809814453f,
                                   -0.28444138169288635f,
                                   -0.18477343022823334f,
                                   -0.09105003625154495f,
                                   0.0f,
                                   0.07958029955625534f,
                                   0.16093020141124725f,
                                   0.24611230194568634f,
                                   0.33791524171829224f,
                                   0.44070982933044434f,
                                   0.5626170039176941f,
                                   0.7229568362236023f,
                                   1.0f};

/* bitsandbytes' floor for the maximum: subnormal, so that 1 / it is still finite. */
static const float tiny = 1e-38f;

enum { ZERO_CODE = 7 };

static inline float larger(float a, float b) { return a > b ? a : b; }
/* A NaN becomes -1, so that whatever comes in, an index stays in range. */
static inline float clamp(float v) { return !(v > -1.0f) ? -1.0f : v > 1.0f ? 1.0f : v; }

static float largest_magnitude(const float x[LK_NF4_BLOCK])
{
    float lanes[8] = {0};
    for (int i = 0; i < LK_NF4_BLOCK; i += 8)
        for (int j = 0; j < 8; j++) lanes[j] = larger(fabsf(x[i + j]), lanes[j]);
    for (int j = 1; j < 8; j++) lanes[0] = larger(lanes[0], lanes[j]);
    return lanes[0];
}

/* codes[i] = how many bounds are strictly below v[i]. */
static void count_bounds(uint8_t codes[LK_NF4_BLOCK], const float v[LK_NF4_BLOCK])
{
    int32_t counts[LK_NF4_BLOCK] = {0};
    for (int b = 0; b < 15; b++) {
        float bound = (lk_nf4_codebook[b] + lk_nf4_codebook[b + 1]) / 2.0f;
        for (int i = 0; i < LK_NF4_BLOCK; i++) counts[i] += v[i] > bound;
    }
    for (int i = 0; i < LK_NF4_BLOCK; i++) codes[i] = (uint8_t)counts[i];
}

void lk_nf4_quantize(uint8_t *codes, float *absmax, const float *values, int64_t n)
{
    float scaled[LK_NF4_BLOCK];
    uint8_t unpacked[LK_NF4_BLOCK];
    int64_t first = 0;
    for (; first + LK_NF4_BLOCK <= n; first += LK_NF4_BLOCK) {
        const float *x = values + first;
        float m = largest_magnitude(x);
        absmax[first / LK_NF4_BLOCK] = m;
        float reciprocal = 1.0f / larger(m, tiny);
        for (int i = 0; i < LK_NF4_BLOCK; i++) scaled[i] = clamp(x[i] * reciprocal);
        count_bounds(unpacked, scaled);
        for (int i = 0; i < LK_NF4_BLOCK / 2; i++) codes[first / 2 + i] = (uint8_t)(unpacked[2 * i] << 4 | unpacked[2 * i + 1]);
    }
    if (first == n) return;
    /* The short block divides, and stores the raised maximum. Its padding is zeros, which are code 7. */
    int rest = (int)(n - first);
    memset(scaled, 0, sizeof scaled);
    memcpy(scaled, values + first, (size_t)rest * sizeof *scaled);
    float m = larger(largest_magnitude(scaled), tiny);
    absmax[first / LK_NF4_BLOCK] = m;
    for (int i = 0; i < LK_NF4_BLOCK; i++) scaled[i] = clamp(scaled[i] / m);
    count_bounds(unpacked, scaled);
    for (int i = 0; i < (rest + 1) / 2; i++) codes[first / 2 + i] = (uint8_t)(unpacked[2 * i] << 4 | unpacked[2 * i + 1]);
}

void lk_nf4_dequantize(float *values, const uint8_t *codes, const float *absmax, int64_t n)
{
    for (int64_t first = 0; first < n; first += LK_NF4_BLOCK) {
        float table[16], scale = absmax[first / LK_NF4_BLOCK];
        for (int c = 0; c < 16; c++) table[c] = lk_nf4_codebook[c] * scale;
        int64_t end = first + LK_NF4_BLOCK < n ? first + LK_NF4_BLOCK : n;
        for (int64_t i = first; i + 1 < end; i += 2) {
            values[i] = table[codes[i / 2] >> 4];
            values[i + 1] = table[codes[i / 2] & 15];
        }
        if (end % 2) values[end - 1] = table[codes[end / 2] >> 4];
    }
}

/* ---------------------------------------------------------------------------------------------- double quantisation */

/* torch's fp32 mean of a contiguous vector on one x86-64 thread: a cascade of partial sums over rows of 4 vectors of 8. */
static float torch_mean(const float *a, int64_t n)
{
    enum { LANES = 8, SIDE = 4, LEVELS = 4, ROW = LANES * SIDE };
    float sums[LEVELS][ROW] = {{0}};
    int64_t vectors = n / LANES, rows = vectors / SIDE;
    int log2_rows = 0; /* rounded up */
    while (((int64_t)1 << log2_rows) < rows) log2_rows++;
    int power = log2_rows / LEVELS < 4 ? 4 : log2_rows / LEVELS;
    int64_t step = (int64_t)1 << power, mask = step - 1, i = 0;
    while (i + step <= rows) {
        for (int64_t s = 0; s < step; s++, i++)
            for (int j = 0; j < ROW; j++) sums[0][j] += a[i * ROW + j];
        for (int level = 1; level < LEVELS; level++) {
            for (int j = 0; j < ROW; j++) {
                sums[level][j] += sums[level - 1][j];
                sums[level - 1][j] = 0;
            }
            if (i & (mask << (level * power))) break;
        }
    }
    for (; i < rows; i++)
        for (int j = 0; j < ROW; j++) sums[0][j] += a[i * ROW + j];
    for (int level = 1; level < LEVELS; level++)
        for (int j = 0; j < ROW; j++) sums[0][j] += sums[level][j];
    float *lanes = sums[0];
    for (int64_t v = rows * SIDE; v < vectors; v++)
        for (int j = 0; j < LANES; j++) lanes[j] += a[v * LANES + j];
    for (int side = 1; side < SIDE; side++)
        for (int j = 0; j < LANES; j++) lanes[j] += lanes[side * LANES + j];
    float total = 0;
    for (int64_t t = vectors * LANES; t < n; t++) total += a[t];
    for (int j = 0; j < LANES; j++) total += lanes[j];
    return total / (float)n;
}

/* A code is looked up from v rounded to one of 65536 grid points, not from v: near a midpoint the library's answer is not the nearest
 * code, and ours must be the same. */
enum { GRID = 65536 };

static inline int32_t grid_index(float v)
{
    float half = (v + 1.0f) * 0.5f, position = half * (GRID - 1);
    return (int32_t)(position + 0.5f);
}

static inline float grid_value(int32_t index) { return -1.0f + (float)(2 * index) / (GRID - 1); }

/* The bound between codes k and k + 1: a code is the number of bounds below the grid point. */
static inline float dynamic_bound(int k) { return 0.5f * (lk_dynamic_map()[k] + lk_dynamic_map()[k + 1]); }

static uint8_t dynamic_code(float v)
{
    float grid = grid_value(grid_index(v));
    int low = 0, high = 255;
    while (low < high) {
        int mid = (low + high) / 2;
        if (dynamic_bound(mid) < grid)
            low = mid + 1;
        else
            high = mid;
    }
    return (uint8_t)low;
}

/* The codes of all grid points, for large inputs: a load instead of eight comparisons that no processor predicts. */
static void fill_codes(uint8_t codes[GRID])
{
    int code = 0;
    for (int32_t i = 0; i < GRID; i++) {
        while (code < 255 && dynamic_bound(code) < grid_value(i)) code++;
        codes[i] = (uint8_t)code;
    }
}

void lk_nf4_nest(uint8_t *absmax8, float *absmax2, float *offset, const float *absmax, int64_t n)
{
    enum { LARGE = 16384 };
    uint8_t codes[GRID];
    if (n >= LARGE) fill_codes(codes);
    float mean = n > 0 ? torch_mean(absmax, n) : 0.0f;
    *offset = mean;
    for (int64_t first = 0; first < n; first += LK_NF4_NESTED_BLOCK) {
        int64_t end = first + LK_NF4_NESTED_BLOCK < n ? first + LK_NF4_NESTED_BLOCK : n;
        float m = 0;
        for (int64_t i = first; i < end; i++) m = larger(fabsf(absmax[i] - mean), m);
        absmax2[first / LK_NF4_NESTED_BLOCK] = m;
        float reciprocal = m == 0 ? 0.0f : 1.0f / m;
        for (int64_t i = first; i < end; i++) {
            float v = clamp((absmax[i] - mean) * reciprocal);
            absmax8[i] = m == 0 ? 0 : n >= LARGE ? codes[grid_index(v)] : dynamic_code(v);
        }
    }
}

void lk_nf4_unnest(float *absmax, const uint8_t *absmax8, const float *absmax2, float offset, int64_t n)
{
    const float *map = lk_dynamic_map();
    for (int64_t i = 0; i < n; i++) {
        float product = map[absmax8[i]] * absmax2[i / LK_NF4_NESTED_BLOCK];
        absmax[i] = product + offset;
    }
}
