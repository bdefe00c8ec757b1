/* NF4 and double quantisation against bitsandbytes' own bits (tests/golden/nf4.safetensors). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "kernels/nf4.h"
#include "kernels/tensor.h"
#include "tests/check.h"

/* Just enough of safetensors: 8 bytes of header length, a JSON header, data. */
typedef struct golden {
    char *path;
    lk_map map;
    cJSON *header, *metadata;
    const unsigned char *data;
} golden;

typedef struct entry {
    const void *data;
    lk_dtype type;
    int64_t count;
} entry;

static golden open_golden(void)
{
    golden g = {0};
    lk_error err = {0};
    g.path = check_golden("nf4.safetensors");
    CHECK_OK(lk_map_open(&g.map, g.path, &err), &err);
    uint64_t size;
    memcpy(&size, g.map.data, sizeof size);
    assert_true(g.map.size > 8 && size < g.map.size - 8);
    CHECK_OK(lk_json_parse(&g.header, (const char *)g.map.data + 8, size, g.path, &err), &err);
    g.metadata = lk_json_get(g.header, "__metadata__");
    g.data = g.map.data + 8 + size;
    return g;
}

static void close_golden(golden *g)
{
    cJSON_Delete(g->header);
    lk_map_close(&g->map);
    free(g->path);
}

static cJSON *metadata_list(const golden *g, const char *key)
{
    const char *text;
    cJSON *list;
    lk_error err = {0};
    CHECK_OK(lk_json_string(g->metadata, key, &text, g->path, &err), &err);
    CHECK_OK(lk_json_parse(&list, text, strlen(text), key, &err), &err);
    return list;
}

static entry find(const golden *g, const char *name, const char *part)
{
    char key[200];
    snprintf(key, sizeof key, "%s%s%s", name, part[0] ? "." : "", part);
    const cJSON *item = lk_json_get(g->header, key);
    if (!item) fail_msg("%s has no %s", g->path, key);
    const cJSON *offsets = lk_json_get(item, "data_offsets");
    const char *type = cJSON_GetStringValue(lk_json_get(item, "dtype"));
    entry e = {.count = 1, .data = g->data + (size_t)cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 0))};
    e.type = !strcmp(type, "F32") ? LK_F32 : !strcmp(type, "BF16") ? LK_BF16 : !strcmp(type, "F16") ? LK_F16 : LK_U8;
    const cJSON *side;
    cJSON_ArrayForEach(side, lk_json_get(item, "shape")) e.count *= (int64_t)cJSON_GetNumberValue(side);
    return e;
}

/* A copy in aligned memory of exactly the entry's size, so that the sanitizers see any overrun. */
static void *copy(entry e)
{
    size_t bytes = (size_t)(e.count * lk_dtype_size(e.type));
    return memcpy(malloc(bytes), e.data, bytes);
}

static void check_entry(const golden *g, const char *name, const char *part, const void *got)
{
    entry e = find(g, name, part);
    char what[220];
    snprintf(what, sizeof what, "%s.%s", name, part);
    check_same_bits(what, got, e.data, (size_t)(e.count * lk_dtype_size(e.type)));
}

static void check_second_level(const golden *g, const char *name, const float *absmax, int64_t blocks, float *read_back)
{
    uint8_t *absmax8 = malloc((size_t)blocks);
    float *absmax2 = malloc((size_t)lk_nf4_nested_blocks(blocks) * sizeof(float)), offset;
    lk_nf4_nest(absmax8, absmax2, &offset, absmax, blocks);
    check_entry(g, name, "nested_offset", &offset);
    check_entry(g, name, "nested_absmax", absmax2);
    check_entry(g, name, "absmax", absmax8);
    lk_nf4_unnest(read_back, absmax8, absmax2, offset, blocks);
    check_entry(g, name, "absmax_dequant", read_back);
    free(absmax8);
    free(absmax2);
}

static void test_matrices(void **state)
{
    (void)state;
    golden g = open_golden();
    cJSON *cases = metadata_list(&g, "cases");
    const cJSON *item;
    assert_true(cJSON_GetArraySize(cases) >= 16);
    cJSON_ArrayForEach(item, cases)
    {
        const char *name = item->valuestring;
        entry weight = find(&g, name, "weight");
        int64_t n = weight.count, blocks = lk_nf4_blocks(n);
        void *raw = copy(weight);
        float *values = malloc((size_t)n * sizeof(float)), *absmax = malloc((size_t)blocks * sizeof(float));
        float *read_back = malloc((size_t)blocks * sizeof(float));
        uint8_t *codes = malloc((size_t)(n + 1) / 2);
        lk_to_f32(values, raw, weight.type, n);
        lk_nf4_quantize(codes, absmax, values, n);
        check_entry(&g, name, "codes", codes);
        check_entry(&g, name, "absmax32", absmax);
        check_second_level(&g, name, absmax, blocks, read_back);
        lk_nf4_dequantize(values, codes, read_back, n);
        check_entry(&g, name, "dequant", values);
        free(raw);
        free(values);
        free(absmax);
        free(read_back);
        free(codes);
    }
    cJSON_Delete(cases);
    close_golden(&g);
}

static void test_second_level_alone(void **state)
{
    (void)state;
    golden g = open_golden();
    cJSON *sizes = metadata_list(&g, "nested");
    const cJSON *item;
    assert_true(cJSON_GetArraySize(sizes) >= 10);
    cJSON_ArrayForEach(item, sizes)
    {
        char name[40];
        snprintf(name, sizeof name, "nested%d", item->valueint);
        entry input = find(&g, name, "input");
        float *absmax = copy(input), *read_back = malloc((size_t)input.count * sizeof(float));
        check_second_level(&g, name, absmax, input.count, read_back);
        free(absmax);
        free(read_back);
    }
    cJSON_Delete(sizes);
    close_golden(&g);
}

static void test_tables(void **state)
{
    (void)state;
    golden g = open_golden();
    check_entry(&g, "quant_map", "", lk_nf4_codebook);
    check_entry(&g, "nested_quant_map", "", lk_dynamic_map());
    close_golden(&g);
}

/* Ranges that start at multiples of 64 give the bits of the whole; values beyond any finite scale do no harm. */
static void test_ranges(void **state)
{
    (void)state;
    enum { N = 64 * 37 + 13, CUT = 64 * 11 };
    static float values[N], absmax[2][(N + 63) / 64];
    static uint8_t codes[2][(N + 1) / 2];
    check_random random = {99};
    check_random_fill(&random, values, N, 0.02f);
    lk_nf4_quantize(codes[0], absmax[0], values, N);
    lk_nf4_quantize(codes[1], absmax[1], values, CUT);
    lk_nf4_quantize(codes[1] + CUT / 2, absmax[1] + CUT / 64, values + CUT, N - CUT);
    check_same_bits("codes of two ranges", codes[1], codes[0], sizeof codes[0]);
    check_same_bits("scales of two ranges", absmax[1], absmax[0], sizeof absmax[0]);
    values[5] = (float)NAN;
    values[70] = (float)INFINITY;
    lk_nf4_quantize(codes[1], absmax[1], values, N);
    uint8_t absmax8[(N + 63) / 64];
    float absmax2[1], offset;
    lk_nf4_nest(absmax8, absmax2, &offset, absmax[1], (N + 63) / 64);
    assert_memory_equal(codes[0] + 64, codes[1] + 64, sizeof codes[0] - 64);
}

/* Large inputs look codes up in a table, small ones search: the same codes. Differences of both signs and of few bits make every
 * sum exact, so that the whole and its blocks have the same mean; each block holds the largest difference. */
static void test_large(void **state)
{
    (void)state;
    enum { BLOCKS = 64, N = BLOCKS * LK_NF4_NESTED_BLOCK };
    static float absmax[N];
    static uint8_t whole[N], block[LK_NF4_NESTED_BLOCK];
    float nested[BLOCKS], block_nested, offset;
    check_random random = {3};
    for (int i = 0; i < N; i += 2) {
        float difference = (float)(i % LK_NF4_NESTED_BLOCK ? check_random_u64(&random) % 512 : 512) / 8192;
        absmax[i] = 0.125f + difference;
        absmax[i + 1] = 0.125f - difference;
    }
    lk_nf4_nest(whole, nested, &offset, absmax, N);
    assert_true(offset == 0.125f);
    for (int b = 0; b < BLOCKS; b++) {
        lk_nf4_nest(block, &block_nested, &offset, absmax + b * LK_NF4_NESTED_BLOCK, LK_NF4_NESTED_BLOCK);
        assert_true(offset == 0.125f && block_nested == nested[b]);
        check_same_bits("codes of a block", block, whole + b * LK_NF4_NESTED_BLOCK, sizeof block);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_matrices), cmocka_unit_test(test_second_level_alone),
                                       cmocka_unit_test(test_tables), cmocka_unit_test(test_ranges), cmocka_unit_test(test_large)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
