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

/* Taken from bitsandbytes (create_dynamic_map), not recomputed: the roundings inside its linspace decide last bits. */
static const float dynamic_map[256] = {
    -0.99296874f,   -0.9789063f,    -0.96484375f,    -0.9507812f,     -0.93671876f,    -0.92265624f,    -0.9085938f,     -0.89453125f,
    -0.8804687f,    -0.86640626f,   -0.85234374f,    -0.8382813f,     -0.82421875f,    -0.8101562f,     -0.79609376f,    -0.78203124f,
    -0.7679688f,    -0.75390625f,   -0.7398437f,     -0.72578126f,    -0.7117188f,     -0.6976563f,     -0.68359375f,    -0.6695312f,
    -0.65546876f,   -0.6414063f,    -0.6273438f,     -0.61328125f,    -0.5992187f,     -0.58515626f,    -0.5710938f,     -0.5570313f,
    -0.54296875f,   -0.5289062f,    -0.5148437f,     -0.50078124f,    -0.4867187f,     -0.47265625f,    -0.45859373f,    -0.44453126f,
    -0.43046874f,   -0.41640624f,   -0.40234375f,    -0.38828123f,    -0.37421876f,    -0.36015624f,    -0.34609374f,    -0.33203125f,
    -0.31796873f,   -0.30390626f,   -0.28984374f,    -0.27578127f,    -0.26171875f,    -0.24765624f,    -0.23359375f,    -0.21953125f,
    -0.20546874f,   -0.19140625f,   -0.17734376f,    -0.16328125f,    -0.14921875f,    -0.13515624f,    -0.12109375f,    -0.107031256f,
    -0.09859375f,   -0.09578126f,   -0.092968754f,   -0.09015625f,    -0.08734375f,    -0.08453125f,    -0.08171876f,    -0.07890625f,
    -0.07609375f,   -0.07328125f,   -0.070468746f,   -0.067656256f,   -0.06484375f,    -0.06203125f,    -0.059218753f,   -0.05640625f,
    -0.05359375f,   -0.05078125f,   -0.04796875f,    -0.04515625f,    -0.042343747f,   -0.03953125f,    -0.036718752f,   -0.03390625f,
    -0.03109375f,   -0.028281251f,  -0.02546875f,    -0.02265625f,    -0.019843752f,   -0.01703125f,    -0.01421875f,    -0.01140625f,
    -0.00971875f,   -0.009156249f,  -0.00859375f,    -0.00803125f,    -0.00746875f,    -0.00690625f,    -0.00634375f,    -0.00578125f,
    -0.0052187503f, -0.0046562497f, -0.00409375f,    -0.0035312497f,  -0.00296875f,    -0.00240625f,    -0.00184375f,    -0.0012812499f,
    -0.0009437501f, -0.00083125f,   -0.00071875006f, -0.0006062501f,  -0.00049375003f, -0.00038125002f, -0.00026875004f, -0.00015625001f,
    -8.875e-05f,    -6.625e-05f,    -4.375e-05f,     -2.1249998e-05f, -7.75e-06f,      -3.2500002e-06f, -5.5000004e-07f, 0.0f,
    5.5000004e-07f, 3.2500002e-06f, 7.75e-06f,       2.1249998e-05f,  4.375e-05f,      6.625e-05f,      8.875e-05f,      0.00015625001f,
    0.00026875004f, 0.00038125002f, 0.00049375003f,  0.0006062501f,   0.00071875006f,  0.00083125f,     0.0009437501f,   0.0012812499f,
    0.00184375f,    0.00240625f,    0.00296875f,     0.0035312497f,   0.00409375f,     0.0046562497f,   0.0052187503f,   0.00578125f,
    0.00634375f,    0.00690625f,    0.00746875f,     0.00803125f,     0.00859375f,     0.009156249f,    0.00971875f,     0.01140625f,
    0.01421875f,    0.01703125f,    0.019843752f,    0.02265625f,     0.02546875f,     0.028281251f,    0.03109375f,     0.03390625f,
    0.036718752f,   0.03953125f,    0.042343747f,    0.04515625f,     0.04796875f,     0.05078125f,     0.05359375f,     0.05640625f,
    0.059218753f,   0.06203125f,    0.06484375f,     0.067656256f,    0.070468746f,    0.07328125f,     0.07609375f,     0.07890625f,
    0.08171876f,    0.08453125f,    0.08734375f,     0.09015625f,     0.092968754f,    0.09578126f,     0.09859375f,     0.107031256f,
    0.12109375f,    0.13515624f,    0.14921875f,     0.16328125f,     0.17734376f,     0.19140625f,     0.20546874f,     0.21953125f,
    0.23359375f,    0.24765624f,    0.26171875f,     0.27578127f,     0.28984374f,     0.30390626f,     0.31796873f,     0.33203125f,
    0.34609374f,    0.36015624f,    0.37421876f,     0.38828123f,     0.40234375f,     0.41640624f,     0.43046874f,     0.44453126f,
    0.45859373f,    0.47265625f,    0.4867187f,      0.50078124f,     0.5148437f,      0.5289062f,      0.54296875f,     0.5570313f,
    0.5710938f,     0.58515626f,    0.5992187f,      0.61328125f,     0.6273438f,      0.6414063f,      0.65546876f,     0.6695312f,
    0.68359375f,    0.6976563f,     0.7117188f,      0.72578126f,     0.7398437f,      0.75390625f,     0.7679688f,      0.78203124f,
    0.79609376f,    0.8101562f,     0.82421875f,     0.8382813f,      0.85234374f,     0.86640626f,     0.8804687f,      0.89453125f,
    0.9085938f,     0.92265624f,    0.93671876f,     0.9507812f,      0.96484375f,     0.9789063f,      0.99296874f,     1.0f};

const float *lk_dynamic_map(void) { return dynamic_map; }

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
static inline float dynamic_bound(int k) { return 0.5f * (dynamic_map[k] + dynamic_map[k + 1]); }

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
