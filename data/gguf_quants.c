/* Element types of GGUF: the table, decoding of every type, encoding of the plain ones. The encoders that search are in gguf_kquants.c. */
#include "data/gguf_quants.h"

#include <math.h>
#include <string.h>

#include "kernels/tensor.h"

static const lk_ggml_type types[] = {
    {LK_GGML_F32, "f32", 1, 4},     {LK_GGML_F16, "f16", 1, 2},       {LK_GGML_BF16, "bf16", 1, 2},     {LK_GGML_Q8_0, "q8_0", 32, 34},
    {LK_GGML_Q4_0, "q4_0", 32, 18}, {LK_GGML_Q4_K, "q4_k", 256, 144}, {LK_GGML_Q6_K, "q6_k", 256, 210},
};
enum { N_TYPES = sizeof types / sizeof *types, MAX_BLOCK = 256 };

const lk_ggml_type *lk_ggml_type_of(uint32_t id)
{
    for (int i = 0; i < N_TYPES; i++)
        if (types[i].id == id) return &types[i];
    return NULL;
}

const lk_ggml_type *lk_ggml_type_named(const char *name)
{
    for (int i = 0; i < N_TYPES; i++)
        if (!strcmp(types[i].name, name)) return &types[i];
    return NULL;
}

const char *lk_ggml_type_name(uint32_t id)
{
    static const char *const names[] = {
        "F32",  "F16",   "Q4_0",    "Q4_1",   NULL,      NULL,    "Q5_0",   "Q5_1",  "Q8_0",  "Q8_1",   "Q2_K", "Q3_K",  "Q4_K", "Q5_K",
        "Q6_K", "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",   "I16",   "I32",  "I64",
        "F64",  "IQ1_M", "BF16",    NULL,     NULL,      NULL,    "TQ1_0",  "TQ2_0", NULL,    NULL,     NULL,   "MXFP4", "NVFP4"};
    return id < sizeof names / sizeof *names && names[id] ? names[id] : "unknown";
}

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* ---- decoding, a block at a time ---- */

static void decode_q8_0(const uint8_t *p, float *x)
{
    float d = lk_f16_to_f32(get16(p));
    for (int i = 0; i < 32; i++) x[i] = d * (float)(int8_t)p[2 + i];
}

static void decode_q4_0(const uint8_t *p, float *x)
{
    float d = lk_f16_to_f32(get16(p));
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((p[2 + i] & 15) - 8);
        x[i + 16] = d * (float)((p[2 + i] >> 4) - 8);
    }
}

static void decode_q4_k(const uint8_t *p, float *x)
{
    float d = lk_f16_to_f32(get16(p)), dmin = lk_f16_to_f32(get16(p + 2));
    const uint8_t *scales = p + 4, *codes = p + 16;
    for (int g = 0; g < 8; g++) {
        /* the first four scales and minima lie in 6 bits of a byte; the others in a byte of nibbles and what is left above the first */
        int s = g < 4 ? scales[g] & 63 : (scales[g + 4] & 15) | (scales[g - 4] >> 6) << 4;
        int m = g < 4 ? scales[g + 4] & 63 : (scales[g + 4] >> 4) | (scales[g] >> 6) << 4;
        float ds = d * (float)s, dm = dmin * (float)m;
        for (int i = 0; i < 32; i++) x[32 * g + i] = ds * (float)(codes[g / 2 * 32 + i] >> 4 * (g % 2) & 15) - dm;
    }
}

static void decode_q6_k(const uint8_t *p, float *x)
{
    float d = lk_f16_to_f32(get16(p + 208));
    for (int i = 0; i < 256; i++) {
        int half = i / 128, part = i % 128 / 32, l = i % 32; /* 128 values share 64 low bytes and 32 high ones */
        int low = p[half * 64 + part % 2 * 32 + l] >> 4 * (part / 2) & 15, high = p[128 + half * 32 + l] >> 2 * part & 3;
        float ds = d * (float)(int8_t)p[192 + i / 16];
        x[i] = ds * (float)((low | high << 4) - 32);
    }
}

static void decode_block(const lk_ggml_type *type, const uint8_t *p, float *x)
{
    switch (type->id) {
    case LK_GGML_Q8_0: decode_q8_0(p, x); return;
    case LK_GGML_Q4_0: decode_q4_0(p, x); return;
    case LK_GGML_Q4_K: decode_q4_k(p, x); return;
    default: decode_q6_k(p, x); return;
    }
}

void lk_ggml_decode(const lk_ggml_type *type, const void *data, int64_t first, int64_t n, float *values)
{
    const uint8_t *p = data;
    if (type->block == 1) {
        lk_dtype plain = type->id == LK_GGML_F32 ? LK_F32 : type->id == LK_GGML_F16 ? LK_F16 : LK_BF16;
        lk_to_f32(values, p + first * type->bytes, plain, n);
        return;
    }
    for (int64_t i = first; i < first + n;) {
        int64_t block = i / type->block, skip = i % type->block, count = type->block - skip;
        if (count > first + n - i) count = first + n - i;
        if (count == type->block) {
            decode_block(type, p + block * type->bytes, values);
        } else {
            float whole[MAX_BLOCK];
            decode_block(type, p + block * type->bytes, whole);
            memcpy(values, whole + skip, (size_t)count * 4);
        }
        values += count;
        i += count;
    }
}

/* ---- encoding ---- */

static void encode_q8_0(uint8_t *p, const float *x)
{
    float most = 0;
    for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
    float d = most / 127, inverse = d != 0 ? 1 / d : 0;
    put16(p, lk_f32_to_f16(d));
    for (int i = 0; i < 32; i++) p[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
}

/* The value of largest magnitude, with its sign, is code 0: eight steps below zero, of which there are only seven above. */
static void encode_q4_0(uint8_t *p, const float *x)
{
    float most = 0;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    float d = most / -8, inverse = d != 0 ? 1 / d : 0;
    put16(p, lk_f32_to_f16(d));
    for (int i = 0; i < 16; i++) {
        int low = (int)(x[i] * inverse + 8.5f), high = (int)(x[i + 16] * inverse + 8.5f);
        p[2 + i] = (uint8_t)((low > 15 ? 15 : low) | (high > 15 ? 15 : high) << 4);
    }
}

/* Where a block keeps its 16-bit scale. */
static int scale_offset(const lk_ggml_type *type) { return type->id == LK_GGML_Q6_K ? 208 : 0; }

static bool finite16(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

static lk_status encode_plain(const lk_ggml_type *type, void *out, const float *x, int64_t n, const char *what, lk_error *err)
{
    lk_dtype plain = type->id == LK_GGML_F32 ? LK_F32 : type->id == LK_GGML_F16 ? LK_F16 : LK_BF16;
    lk_from_f32(out, plain, x, n);
    for (int64_t i = 0; type->id == LK_GGML_F16 && i < n; i++)
        if (!finite16(get16((const uint8_t *)out + 2 * i)))
            return lk_fail(err, LK_ERR_ARGUMENT, "%s: element %lld is %g, which f16 cannot hold (most 65504); bf16 can", what, (long long)i,
                           (double)x[i]);
    return LK_OK;
}

lk_status lk_ggml_encode(const lk_ggml_type *type, void *out, const float *x, int64_t n, const char *what, lk_error *err)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return lk_fail(err, LK_ERR_ARGUMENT, "%s: element %lld is NaN or infinite", what, (long long)i);
    if (type->block == 1) return encode_plain(type, out, x, n, what, err);
    uint8_t *p = out;
    for (int64_t i = 0; i < n; i += type->block, x += type->block, p += type->bytes) {
        switch (type->id) {
        case LK_GGML_Q8_0: encode_q8_0(p, x); break;
        case LK_GGML_Q4_0: encode_q4_0(p, x); break;
        case LK_GGML_Q4_K: lk_q4k_encode(p, x); break;
        default: lk_q6k_encode(p, x); break;
        }
        if (!finite16(get16(p + scale_offset(type))) || (type->id == LK_GGML_Q4_K && !finite16(get16(p + 2))))
            return lk_fail(err, LK_ERR_ARGUMENT, "%s: values near element %lld are too large for the 16-bit scales of %s", what,
                           (long long)i, type->name);
    }
    return LK_OK;
}
