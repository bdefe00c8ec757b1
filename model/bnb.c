#include "model/bnb.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "kernels/nf4.h"

static const char state_suffix[] = ".quant_state.bitsandbytes__nf4";
/* The state's JSON has no fixed length (the offset's digits), but the writer wants sizes before the data: padded with spaces, which
 * JSON ignores. */
enum { STATE_BYTES = 256, NAME_BYTES = 512 };

static const lk_st_tensor *part(const lk_safetensors *st, const char *weight, const char *suffix)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", weight, suffix);
    return lk_safetensors_find(st, name);
}

bool lk_bnb_is_quantized(const lk_safetensors *st, const char *weight)
{
    return part(st, weight, state_suffix) || part(st, weight, ".absmax");
}

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && !strcmp(text + n - m, suffix);
}

bool lk_bnb_is_state(const char *name)
{
    static const char *const suffixes[] = {".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (ends_with(name, suffixes[i])) return true;
    return strstr(name, ".weight.quant_state.") != NULL;
}

bool lk_bnb_any(const lk_safetensors *st)
{
    for (int64_t i = 0; i < lk_safetensors_count(st); i++)
        if (strstr(lk_safetensors_at(st, i)->name, ".quant_state.bitsandbytes__")) return true;
    return false;
}

typedef struct quant_state {
    bool nested;
    double offset;
} quant_state;

static lk_status parse_state(const lk_st_tensor *t, int64_t n, int64_t k, quant_state *state, lk_error *err)
{
    cJSON *json;
    LK_TRY(lk_json_parse(&json, t->data, (size_t)t->n_bytes, t->name, err));
    const char *type = "";
    int64_t block = 0, nested_block = 0;
    lk_status status;
    if ((status = lk_json_string(json, "quant_type", &type, t->name, err))) goto out;
    if (strcmp(type, "nf4")) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: quant_type '%.20s' is not supported, only nf4", t->name, type);
        goto out;
    }
    if ((status = lk_json_int(json, "blocksize", 1, 1 << 20, &block, t->name, err))) goto out;
    state->nested = lk_json_get(json, "nested_blocksize") != NULL;
    if (state->nested) {
        if ((status = lk_json_int(json, "nested_blocksize", 1, 1 << 20, &nested_block, t->name, err))) goto out;
        if ((status = lk_json_number(json, "nested_offset", -1e30, 1e30, &state->offset, t->name, err))) goto out;
    }
    if (block != LK_NF4_BLOCK || (state->nested && nested_block != LK_NF4_NESTED_BLOCK)) {
        status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: blocksize %lld (nested %lld) is not supported, only 64 (256)", t->name,
                         (long long)block, (long long)nested_block);
        goto out;
    }
    const cJSON *shape = lk_json_get(json, "shape");
    const cJSON *rows = cJSON_GetArrayItem(shape, 0), *cols = cJSON_GetArrayItem(shape, 1);
    if (cJSON_GetArraySize(shape) != 2 || !cJSON_IsNumber(rows) || !cJSON_IsNumber(cols) || rows->valuedouble != (double)n ||
        cols->valuedouble != (double)k)
        status = lk_fail(err, LK_ERR_FORMAT, "%s: the shape in the quantisation state is not the [%lld,%lld] that config.json asks for",
                         t->name, (long long)n, (long long)k);
out:
    cJSON_Delete(json);
    return status;
}

/* A part of exactly this many bytes. */
static lk_status need(const lk_safetensors *st, const char *weight, const char *suffix, int64_t bytes, const void **data, lk_error *err)
{
    const lk_st_tensor *t = part(st, weight, suffix);
    if (!t) return lk_fail(err, LK_ERR_NOT_FOUND, "%s%s is missing from the 4-bit checkpoint", weight, suffix);
    if (t->n_bytes != bytes)
        return lk_fail(err, LK_ERR_FORMAT, "%s: %s holds %lld bytes, %lld expected", t->file, t->name, (long long)t->n_bytes,
                       (long long)bytes);
    *data = t->data;
    return LK_OK;
}

bool lk_bnb_is_nested(const lk_safetensors *st, const char *weight)
{
    const lk_st_tensor *map = part(st, weight, ".nested_quant_map");
    return map && map->n_bytes == 256 * 4 && !memcmp(map->data, lk_dynamic_map(), 256 * 4);
}

/* table[scales[b]] * scales2[b / 256] + offset. The file's own table and not ours: whoever wrote it meant these values. */
static void unnest(const lk_bnb_tensor *m, const void *table_bytes, const uint8_t *scales, int64_t blocks)
{
    float table[256];
    memcpy(table, table_bytes, sizeof table);
    for (int64_t b = 0; b < blocks; b++) {
        float scaled = table[scales[b]] * m->absmax2[b / LK_NF4_NESTED_BLOCK];
        m->absmax[b] = scaled + m->offset;
    }
}

lk_status lk_bnb_read(lk_bnb_tensor *out, const lk_safetensors *st, const char *weight, int64_t n, int64_t k, lk_error *err)
{
    memset(out, 0, sizeof *out);
    const lk_st_tensor *t = part(st, weight, state_suffix);
    if (!t)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: 4-bit weights without %s (only bitsandbytes NF4 is supported; FP4 and 8-bit are not)",
                       weight, state_suffix + 1);
    quant_state state = {0};
    LK_TRY(parse_state(t, n, k, &state, err));
    int64_t blocks = lk_nf4_blocks(n * k), nested = lk_nf4_nested_blocks(blocks);
    const void *data = NULL, *scales = NULL, *scales2 = NULL, *map = NULL, *book = NULL;
    LK_TRY(need(st, weight, "", (n * k + 1) / 2, &data, err));
    LK_TRY(need(st, weight, ".quant_map", 16 * 4, &book, err));
    if (memcmp(book, lk_nf4_codebook, 16 * 4)) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s.quant_map is not the NF4 codebook", weight);
    LK_TRY(need(st, weight, ".absmax", blocks * (state.nested ? 1 : 4), &scales, err));
    if (state.nested) {
        LK_TRY(need(st, weight, ".nested_absmax", nested * 4, &scales2, err));
        LK_TRY(need(st, weight, ".nested_quant_map", 256 * 4, &map, err));
    }
    lk_bnb_tensor m = {.codes = data, .offset = (float)state.offset};
    m.absmax = malloc((size_t)blocks * 4);
    m.absmax2 = state.nested ? malloc((size_t)nested * 4) : NULL;
    if (!m.absmax || (state.nested && !m.absmax2)) {
        free(m.absmax);
        free(m.absmax2);
        return lk_fail(err, LK_ERR_MEMORY, "no memory for the scales of %s", weight);
    }
    if (state.nested) {
        memcpy(m.absmax2, scales2, (size_t)nested * 4); /* the file aligns nothing */
        unnest(&m, map, scales, blocks);
        if (lk_bnb_is_nested(st, weight)) m.absmax8 = scales;
    } else {
        memcpy(m.absmax, scales, (size_t)blocks * 4);
    }
    if (!m.absmax8) {
        free(m.absmax2);
        m.absmax2 = NULL;
    }
    *out = m;
    return LK_OK;
}

static lk_status declare(lk_st_writer *w, const char *weight, const char *suffix, lk_dtype type, int64_t d0, int64_t d1, lk_error *err)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", weight, suffix);
    int64_t shape[2] = {d0, d1};
    return lk_st_writer_declare(w, name, type, d1 ? 2 : 1, shape, err);
}

lk_status lk_bnb_declare(lk_st_writer *w, const char *weight, int64_t n, int64_t k, lk_error *err)
{
    int64_t blocks = lk_nf4_blocks(n * k);
    LK_TRY(declare(w, weight, "", LK_U8, (n * k + 1) / 2, 1, err));
    LK_TRY(declare(w, weight, ".absmax", LK_U8, blocks, 0, err));
    LK_TRY(declare(w, weight, ".nested_absmax", LK_F32, lk_nf4_nested_blocks(blocks), 0, err));
    LK_TRY(declare(w, weight, ".nested_quant_map", LK_F32, 256, 0, err));
    LK_TRY(declare(w, weight, ".quant_map", LK_F32, 16, 0, err));
    return declare(w, weight, state_suffix, LK_U8, STATE_BYTES, 0, err);
}

lk_status lk_bnb_write(lk_st_writer *w, const lk_bnb_matrix *m, lk_error *err)
{
    int64_t blocks = lk_nf4_blocks(m->n * m->k);
    char state[STATE_BYTES + 1];
    int length =
        snprintf(state, sizeof state,
                 "{\"quant_type\": \"nf4\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%lld, %lld], \"nested_blocksize\": %d, "
                 "\"nested_dtype\": \"float32\", \"nested_offset\": %.17g}",
                 LK_NF4_BLOCK, m->dtype_name, (long long)m->n, (long long)m->k, LK_NF4_NESTED_BLOCK, (double)m->offset);
    if (length < 0 || length > STATE_BYTES) return lk_fail(err, LK_ERR_INTERNAL, "%s: quantisation state too long", m->weight);
    memset(state + length, ' ', (size_t)(STATE_BYTES - length));
    LK_TRY(lk_st_writer_write(w, m->codes, (size_t)((m->n * m->k + 1) / 2), err));
    LK_TRY(lk_st_writer_write(w, m->absmax8, (size_t)blocks, err));
    LK_TRY(lk_st_writer_write(w, m->absmax2, (size_t)lk_nf4_nested_blocks(blocks) * 4, err));
    LK_TRY(lk_st_writer_write(w, lk_dynamic_map(), 256 * 4, err));
    LK_TRY(lk_st_writer_write(w, lk_nf4_codebook, 16 * 4, err));
    return lk_st_writer_write(w, state, STATE_BYTES, err);
}
