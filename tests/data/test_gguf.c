/* GGUF: values and blocks as the gguf package and ggml have them, files written and read back, and every refusal with its message. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/arena.h"
#include "base/file.h"
#include "data/gguf.h"
#include "data/safetensors.h"
#include "kernels/tensor.h"
#include "tests/check.h"

static lk_safetensors *golden(void)
{
    lk_error err = {0};
    char *path = check_golden("gguf.safetensors");
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    free(path);
    return st;
}

static const lk_st_tensor *part(const lk_safetensors *st, const char *type, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", type, what);
    const lk_st_tensor *t = lk_safetensors_find(st, name);
    if (!t) fail_msg("the golden file lacks %s", name);
    return t;
}

static float *copy_floats(const lk_st_tensor *t)
{
    float *out = malloc((size_t)t->n_bytes);
    memcpy(out, t->data, (size_t)t->n_bytes);
    return out;
}

/* ---- element types ---- */

static void test_decode(void **state)
{
    (void)state;
    lk_safetensors *st = golden();
    static const char *const types[] = {"f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const lk_ggml_type *type = lk_ggml_type_named(types[i]);
        for (int any = 0; any < (type->block > 1 ? 2 : 1); any++) {
            const lk_st_tensor *blocks = part(st, types[i], any ? "any" : "blocks"),
                               *values = part(st, types[i], any ? "any_values" : "values");
            int64_t n = values->n_elements;
            float *got = malloc((size_t)n * 4);
            lk_ggml_decode(type, blocks->data, 0, n, got);
            check_same_bits(types[i], got, values->data, (size_t)n * 4);
            for (int64_t first = 0; first < n; first += 77) { /* ranges that begin and end inside blocks */
                int64_t count = n - first < 301 ? n - first : 301;
                lk_ggml_decode(type, blocks->data, first, count, got);
                check_same_bits(types[i], got, (const char *)values->data + first * 4, (size_t)count * 4);
            }
            free(got);
        }
    }
    lk_safetensors_close(st);
}

static double squared_error(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

static void test_encode(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st = golden();
    float *x = copy_floats(lk_safetensors_find(st, "x"));
    const int64_t n = 8 * 256;
    static const char *const types[] = {"f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const lk_ggml_type *type = lk_ggml_type_named(types[i]);
        const lk_st_tensor *want = part(st, types[i], "blocks");
        uint8_t *got = malloc((size_t)want->n_bytes);
        float *values = malloc((size_t)n * 4), *theirs = copy_floats(part(st, types[i], "values"));
        assert_int_equal(want->n_bytes, lk_ggml_bytes(type, n));
        CHECK_OK(lk_ggml_encode(type, got, x, n, "x", &err), &err);
        if (type->block < 256)
            check_same_bits(types[i], got, want->data, (size_t)want->n_bytes);
        else { /* the scales are the encoder's choice: over normal values no worse than ggml's */
            lk_ggml_decode(type, got, 0, n, values);
            assert_true(squared_error(values, x, 5 * 256) < squared_error(theirs, x, 5 * 256));
            check_close("values of a constant row", values + 6 * 256, x + 6 * 256, 256, 0, 1e-3);
            assert_true(squared_error(values, x, n) < 1.05 * squared_error(theirs, x, n));
            for (int k = 5 * 256; k < 6 * 256; k++) assert_true(values[k] == 0);
        }
        free(values);
        free(theirs);
        free(got);
    }
    free(x);
    lk_safetensors_close(st);
}

/* Values of every size: what comes back is near, and nothing traps (conversions out of range are undefined). */
static void test_encode_extremes(void **state)
{
    (void)state;
    lk_error err = {0};
    check_random r = {9};
    float x[256], back[256];
    uint8_t out[1024];
    static const char *const types[] = {"q8_0", "q4_0", "q4_k", "q6_k"};
    static const double steps[] = {1.0 / 127, 1.0 / 8, 1.0 / 7, 1.0 / 30}; /* most of a block's largest value that a value may be off by */
    for (int e = -40; e <= 14; e++) {
        for (int i = 0; i < 256; i++) x[i] = ldexpf(check_random_normal(&r), e);
        for (int t = 0; t < 4; t++) {
            const lk_ggml_type *type = lk_ggml_type_named(types[t]);
            CHECK_OK(lk_ggml_encode(type, out, x, 256, "x", &err), &err);
            lk_ggml_decode(type, out, 0, 256, back);
            float most = 0;
            for (int i = 0; i < 256; i++) most = fmaxf(most, fabsf(x[i]));
            if (e > -6) check_close(types[t], back, x, 256, (double)most * steps[t], 0);
            for (int i = 0; i < 256; i++) assert_true(isfinite(back[i]));
        }
    }
    for (int t = 0; t < 4; t++) {
        const lk_ggml_type *type = lk_ggml_type_named(types[t]);
        x[3] = INFINITY;
        CHECK_FAILS(lk_ggml_encode(type, out, x, 256, "blk.0.ffn_up.weight", &err), LK_ERR_ARGUMENT,
                    "blk.0.ffn_up.weight: element 3 is NaN or infinite", &err);
        x[3] = 1e38f;
        CHECK_FAILS(lk_ggml_encode(type, out, x, 256, "w", &err), LK_ERR_ARGUMENT, "too large for the 16-bit scales", &err);
        x[3] = 0;
    }
    x[5] = 70000;
    CHECK_FAILS(lk_ggml_encode(lk_ggml_type_named("f16"), out, x, 256, "w", &err), LK_ERR_ARGUMENT,
                "w: element 5 is 70000, which f16 cannot hold", &err);
    CHECK_OK(lk_ggml_encode(lk_ggml_type_named("bf16"), out, x, 256, "w", &err), &err);
}

/* ---- reading ---- */

static void test_read(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("gguf.gguf");
    lk_safetensors *st = golden();
    lk_gguf *g;
    CHECK_OK(lk_gguf_open(&g, path, &err), &err);
    assert_true(lk_gguf_is_file(path));
    static const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"test.u8", 200},
                {"test.i8", -100},
                {"test.u16", 60000},
                {"test.i16", -30000},
                {"test.u32", 4000000000},
                {"test.i32", -2000000000},
                {"test.u64", (int64_t)1 << 62},
                {"test.i64", -((int64_t)1 << 62)}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        int64_t value;
        CHECK_OK(lk_gguf_int(g, ints[i].key, INT64_MIN, INT64_MAX, &value, &err), &err);
        assert_int_equal(value, ints[i].value);
    }
    double number;
    CHECK_OK(lk_gguf_number(g, "test.f32", &number, &err), &err);
    assert_true(number == (double)0.1f);
    CHECK_OK(lk_gguf_number(g, "test.f64", &number, &err), &err);
    assert_true(number == 0.1);
    bool flag = false;
    CHECK_OK(lk_gguf_bool(g, "test.bool", &flag, &err), &err);
    assert_true(flag);
    const char *text;
    size_t size;
    CHECK_OK(lk_gguf_string(g, "test.string", &text, &size, &err), &err);
    assert_int_equal(size, strlen("Grüße "));
    assert_memory_equal(text, "Grüße ", size);
    const lk_gguf_value *v;
    CHECK_OK(lk_gguf_array(g, "test.i32s", LK_GGUF_I32, &v, &err), &err);
    assert_int_equal(v->n, 3);
    assert_int_equal(lk_gguf_item_int(v, 1), -2);
    CHECK_OK(lk_gguf_array(g, "test.f32s", LK_GGUF_F32, &v, &err), &err);
    assert_true(lk_gguf_item_number(v, 1) == -1.5);
    CHECK_OK(lk_gguf_array(g, "test.strings", LK_GGUF_STRING, &v, &err), &err);
    assert_true(v->n == 3 && v->texts[1].n == 0 && v->texts[2].n == 2 && !memcmp(v->texts[2].p, "ü", 2));

    int64_t value = 7;
    CHECK_FAILS(lk_gguf_int(g, "test.none", 0, 9, &value, &err), LK_ERR_NOT_FOUND, "the key test.none is missing", &err);
    CHECK_OK(lk_gguf_opt_int(g, "test.none", 0, 9, &value, &err), &err);
    assert_int_equal(value, 7);
    CHECK_FAILS(lk_gguf_int(g, "test.u8", 0, 9, &value, &err), LK_ERR_FORMAT, "test.u8 is 200, expected 0 to 9", &err);
    CHECK_FAILS(lk_gguf_int(g, "test.f32", 0, 9, &value, &err), LK_ERR_FORMAT, "test.f32 is of type f32, a whole number expected", &err);
    CHECK_FAILS(lk_gguf_array(g, "test.i32s", LK_GGUF_STRING, &v, &err), LK_ERR_FORMAT, "an array of i32, an array of string expected",
                &err);

    static const char *const types[] = {"f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char name[16];
        snprintf(name, sizeof name, "t.%s", types[i]);
        const lk_gguf_tensor *t = lk_gguf_find(g, name);
        assert_non_null(t);
        assert_string_equal(t->type->name, types[i]);
        assert_true(t->n_dims == 2 && t->shape[0] == 8 && t->shape[1] == 256);
        const lk_st_tensor *blocks = part(st, types[i], "blocks");
        assert_int_equal(t->n_bytes, blocks->n_bytes);
        check_same_bits(name, t->data, blocks->data, (size_t)t->n_bytes);
    }
    const lk_gguf_tensor *t = lk_gguf_find(g, "t.f32");
    assert_true(t->n_dims == 2 && t->shape[0] == 3 && t->shape[1] == 5);
    assert_null(lk_gguf_find(g, "t.none"));
    lk_gguf_close(g);
    lk_safetensors_close(st);
    free(path);
}

/* ---- refusals: a small file written by hand, one field of it wrong ---- */

typedef struct maker {
    uint8_t bytes[4096];
    size_t n;
} maker;

static void num(maker *m, uint64_t value, int size)
{
    for (int i = 0; i < size; i++) m->bytes[m->n++] = (uint8_t)(value >> (8 * i));
}

static void text(maker *m, const char *s)
{
    num(m, strlen(s), 8);
    memcpy(m->bytes + m->n, s, strlen(s));
    m->n += strlen(s);
}

typedef struct hostile {
    const char *what;
    lk_status status;
    const char *message;
    /* fields; 0 means the valid value of the file below */
    uint64_t version, n_tensors, n_keys, key_size, value_type, item_type, n_items, text_size, n_dims, rows, columns, type, second_offset;
    const char *second_key, *second_name;
    int64_t alignment, cut, extra;
    bool odd_bool;
} hostile;

/* Two keys (an array of strings and a bool), the alignment, two Q8_0 tensors [2,32] of 68 bytes. */
static void make(maker *m, const hostile *h)
{
    m->n = 0;
    memcpy(m->bytes, "GGUF", 4);
    m->n = 4;
    num(m, h->version ? h->version : 3, 4);
    num(m, h->n_tensors ? h->n_tensors : 2, 8);
    num(m, h->n_keys ? h->n_keys : 3, 8);
    if (h->key_size) {
        num(m, h->key_size, 8);
        memcpy(m->bytes + m->n, "words", 5);
        m->n += 5;
    } else {
        text(m, "words");
    }
    num(m, h->value_type ? h->value_type : LK_GGUF_ARRAY, 4);
    num(m, h->item_type ? h->item_type : LK_GGUF_STRING, 4);
    num(m, h->n_items ? h->n_items : 2, 8);
    text(m, "ab");
    num(m, h->text_size ? h->text_size : 1, 8);
    num(m, 'c', 1);
    text(m, h->second_key ? h->second_key : "flag");
    num(m, LK_GGUF_BOOL, 4);
    num(m, h->odd_bool ? 7 : 1, 1);
    text(m, "general.alignment");
    num(m, LK_GGUF_U32, 4);
    num(m, (uint64_t)(h->alignment ? h->alignment : 32), 4);
    for (int i = 0; i < 2; i++) {
        text(m, i == 0 ? "first" : h->second_name ? h->second_name : "second");
        num(m, h->n_dims ? h->n_dims : 2, 4);
        num(m, h->columns ? h->columns : 32, 8);
        num(m, h->rows ? h->rows : 2, 8);
        num(m, h->type ? h->type : LK_GGML_Q8_0, 4);
        num(m, i == 0 ? 0 : h->second_offset ? h->second_offset : 96, 8);
    }
    while (m->n % 32) num(m, 0, 1);
    for (int i = 0; i < 96 + 68; i++) num(m, (uint64_t)i, 1);
    m->n = (size_t)((int64_t)m->n - h->cut + h->extra);
}

static void test_refuses(void **state)
{
    (void)state;
    static const hostile cases[] = {
        {"the valid file", LK_OK, ""},
        {"padding at the end", LK_OK, "", .extra = 28},
        {"version 2", LK_OK, "", .version = 2},
        {"version 1", LK_ERR_UNSUPPORTED, "GGUF version 1; 2 and 3 are read", .version = 1},
        {"big-endian", LK_ERR_UNSUPPORTED, "a big-endian GGUF file", .version = 3u << 24},
        {"many keys", LK_ERR_FORMAT, "says it has 1152921504606846976 keys", .n_keys = (uint64_t)1 << 60},
        {"many tensors", LK_ERR_FORMAT, "says it has 1152921504606846976 tensors", .n_tensors = (uint64_t)1 << 60},
        {"long key", LK_ERR_FORMAT, "truncated: a key says it has 4611686018427387904 bytes", .key_size = (uint64_t)1 << 62},
        {"value type", LK_ERR_FORMAT, "the value of words has the unknown type 13", .value_type = 13},
        {"array of arrays", LK_ERR_UNSUPPORTED, "is an array of type 9; arrays of numbers and strings are read", .item_type = 9},
        {"item type", LK_ERR_UNSUPPORTED, "is an array of type 77", .item_type = 77},
        {"many items", LK_ERR_FORMAT, "the value of words says it has 1099511627776 items", .n_items = (uint64_t)1 << 40},
        {"many numbers", LK_ERR_FORMAT, "says it has 536870912 items, the file cannot hold them", .n_items = 1 << 29,
         .item_type = LK_GGUF_F64},
        {"long string", LK_ERR_FORMAT, "the value of words says it has 18446744073709551615 bytes", .text_size = UINT64_MAX},
        {"bool", LK_ERR_FORMAT, "the value of flag is a bool of value 7", .odd_bool = true},
        {"duplicate key", LK_ERR_FORMAT, "the key words is there twice", .second_key = "words"},
        {"empty key", LK_ERR_FORMAT, "a key has 0 bytes or a zero byte", .second_key = ""},
        {"split", LK_ERR_FORMAT, "split.count is of type bool, a whole number expected", .second_key = "split.count"},
        {"duplicate tensor", LK_ERR_FORMAT, "the tensor first is there twice", .second_name = "first"},
        {"long name", LK_ERR_FORMAT, "a tensor's name has 64 bytes",
         .second_name = "0123456789012345678901234567890123456789012345678901234567890123"},
        {"dimensions", LK_ERR_FORMAT, "tensor first has 5 dimensions, at most 4", .n_dims = 5},
        {"overflow", LK_ERR_FORMAT, "is zero or the product overflows 64 bits", .rows = (uint64_t)1 << 60},
        {"negative", LK_ERR_FORMAT, "tensor first: a dimension of 18446744073709551615", .columns = UINT64_MAX},
        {"bytes overflow", LK_ERR_FORMAT, "its size in bytes overflows 64 bits", .rows = (uint64_t)1 << 60, .columns = 7,
         .type = LK_GGML_BF16},
        {"known type", LK_ERR_UNSUPPORTED, "tensor first has type IQ4_XS (23), which is not read; F32, F16, BF16, Q8_0", .type = 23},
        {"unknown type", LK_ERR_UNSUPPORTED, "has type unknown (4000)", .type = 4000},
        {"rows of part blocks", LK_ERR_FORMAT, "has rows of 33 values, not a multiple of the 32 in a block of q8_0", .columns = 33},
        {"a hole", LK_ERR_FORMAT, "tensor second is at offset 128, expected 96 (alignment 32)", .second_offset = 128},
        {"overlap", LK_ERR_FORMAT, "tensor second is at offset 64, expected 96", .second_offset = 64},
        {"alignment", LK_ERR_FORMAT, "general.alignment is 48, which is not a power of two", .alignment = 48},
        {"other alignment", LK_ERR_FORMAT, "tensor second is at offset 96, expected 128 (alignment 64)", .alignment = 64},
        {"truncated data", LK_ERR_FORMAT, "tensor second needs bytes 96 to 164 of the data, the file has 163 (is it truncated?)", .cut = 1},
        {"no data", LK_ERR_FORMAT, "tensor first needs bytes 0 to 68 of the data, the file has 0", .cut = 164},
        {"bytes left over", LK_ERR_FORMAT, "1 bytes after the last tensor belong to nothing", .extra = 29},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        maker m = {.n = 0};
        make(&m, &cases[i]);
        lk_error err = {0};
        lk_gguf *g;
        lk_status status = lk_gguf_open_memory(&g, m.bytes, m.n, "f.gguf", &err);
        if (status != cases[i].status || (status && (!strstr(err.message, cases[i].message) || strncmp(err.message, "f.gguf: ", 8))))
            fail_msg("%s: %s: %s", cases[i].what, lk_status_name(status), err.message);
        lk_gguf_close(g);
    }
    /* cut anywhere, it is an error and reads nothing beyond (exact memory, for the address sanitizer) */
    maker m = {.n = 0};
    make(&m, &cases[0]);
    for (size_t n = 0; n < m.n; n++) {
        lk_error err = {0};
        uint8_t *bytes = malloc(n ? n : 1);
        memcpy(bytes, m.bytes, n);
        lk_gguf *g;
        assert_int_not_equal(lk_gguf_open_memory(&g, bytes, n, "f.gguf", &err), LK_OK);
        free(bytes);
    }
    lk_error err = {0};
    lk_gguf *g;
    CHECK_FAILS(lk_gguf_open_memory(&g, "PK\3\4aaaaaaaa", 12, "f.gguf", &err), LK_ERR_FORMAT, "f.gguf: not a GGUF file", &err);
    CHECK_FAILS(lk_gguf_open(&g, "/nonexistent/f.gguf", &err), LK_ERR_IO, "/nonexistent/f.gguf", &err);
}

static void test_split(void **state)
{
    (void)state;
    maker m = {.n = 0};
    memcpy(m.bytes, "GGUF", 4);
    m.n = 4;
    num(&m, 3, 4);
    num(&m, 0, 8);
    num(&m, 1, 8);
    text(&m, "split.count");
    num(&m, LK_GGUF_U16, 4);
    num(&m, 3, 2);
    lk_error err = {0};
    lk_gguf *g;
    CHECK_FAILS(lk_gguf_open_memory(&g, m.bytes, m.n, "f-00001-of-00003.gguf", &err), LK_ERR_UNSUPPORTED,
                "one of the 3 parts of a split model; join them first", &err);
}

/* ---- writing ---- */

static lk_status write_sample(const char *path, lk_error *err)
{
    lk_gguf_writer *w;
    LK_TRY(lk_gguf_writer_create(&w, path, err));
    static const float vector[3] = {1, 2, 3};
    static uint8_t blocks[2000 * 34];
    lk_status status;
    if ((status = lk_gguf_add_string(w, "general.architecture", "llama", err))) goto fail;
    if ((status = lk_gguf_add_u32(w, "n", 4000000000, err))) goto fail;
    if ((status = lk_gguf_add_f32(w, "f", 0.1, err))) goto fail;
    if ((status = lk_gguf_add_bool(w, "b", true, err))) goto fail;
    if ((status = lk_gguf_add_texts(w, "texts", (lk_gguf_text[]){{"a", 1}, {"", 0}, {"bcd", 3}}, 3, err))) goto fail;
    if ((status = lk_gguf_add_i32s(w, "ints", (int32_t[]){-1, 7}, 2, err))) goto fail;
    if ((status = lk_gguf_add_f32s(w, "floats", (float[]){0.5f, -2}, 2, err))) goto fail;
    if ((status = lk_gguf_add_bools(w, "bools", (bool[]){true, false}, 2, err))) goto fail;
    if ((status = lk_gguf_declare(w, "v", lk_ggml_type_named("f32"), 1, (int64_t[]){3}, err))) goto fail;
    if ((status = lk_gguf_declare(w, "m", lk_ggml_type_named("q8_0"), 3, (int64_t[]){4, 250, 64}, err))) goto fail;
    if ((status = lk_gguf_write(w, vector, 4, err))) goto fail;
    if ((status = lk_gguf_write(w, vector + 1, 8, err))) goto fail;
    if ((status = lk_gguf_write(w, blocks, sizeof blocks, err))) goto fail;
    if ((status = lk_gguf_commit(w, err))) goto fail;
    return LK_OK;
fail:
    lk_gguf_abort(w);
    return status;
}

static void test_write(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("gguf_write"), path[4200];
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    CHECK_OK(write_sample(path, &err), &err);
    lk_gguf *g;
    CHECK_OK(lk_gguf_open(&g, path, &err), &err);
    int64_t n;
    CHECK_OK(lk_gguf_int(g, "n", 0, INT64_MAX, &n, &err), &err);
    assert_int_equal(n, 4000000000);
    const lk_gguf_value *v;
    CHECK_OK(lk_gguf_array(g, "texts", LK_GGUF_STRING, &v, &err), &err);
    assert_true(v->n == 3 && v->texts[2].n == 3 && !memcmp(v->texts[2].p, "bcd", 3));
    CHECK_OK(lk_gguf_array(g, "floats", LK_GGUF_F32, &v, &err), &err);
    assert_true(lk_gguf_item_number(v, 1) == -2);
    CHECK_OK(lk_gguf_array(g, "bools", LK_GGUF_BOOL, &v, &err), &err);
    assert_true(lk_gguf_item_int(v, 0) == 1 && lk_gguf_item_int(v, 1) == 0);
    const lk_gguf_tensor *t = lk_gguf_find(g, "m");
    assert_true(t->n_dims == 3 && t->shape[0] == 4 && t->shape[1] == 250 && t->shape[2] == 64);
    t = lk_gguf_find(g, "v");
    assert_memory_equal(t->data, ((float[]){1, 2, 3}), 12);
    lk_gguf_close(g);

    lk_gguf_writer *w;
    snprintf(path, sizeof path, "%s/other.gguf", folder);
    CHECK_OK(lk_gguf_writer_create(&w, path, &err), &err);
    CHECK_FAILS(lk_gguf_add_u32(w, "n", -1, &err), LK_ERR_ARGUMENT, "n: -1 does not fit", &err);
    CHECK_FAILS(lk_gguf_declare(w, "w", lk_ggml_type_named("q4_k"), 2, (int64_t[]){4, 64}, &err), LK_ERR_ARGUMENT,
                "rows of 64 values; q4_k needs a multiple of 256", &err);
    CHECK_FAILS(lk_gguf_declare(w, "0123456789012345678901234567890123456789012345678901234567890123", lk_ggml_type_named("f32"), 1,
                                (int64_t[]){4}, &err),
                LK_ERR_ARGUMENT, "names have at most 63 bytes", &err);
    CHECK_OK(lk_gguf_declare(w, "w", lk_ggml_type_named("f32"), 1, (int64_t[]){4}, &err), &err);
    CHECK_FAILS(lk_gguf_declare(w, "w", lk_ggml_type_named("f32"), 1, (int64_t[]){4}, &err), LK_ERR_INTERNAL, "w declared twice", &err);
    CHECK_FAILS(lk_gguf_commit(w, &err), LK_ERR_INTERNAL, "the bytes of tensor w are not complete", &err);
    lk_gguf_abort(w);
    lk_gguf_abort(NULL);
    assert_int_equal(check_count_files(folder), 1);
    free(folder);
}

/* A limit on the size of files acts like a disk that is full: an error, and what was there before stays. */
static void test_full_disk(void **state)
{
    (void)state;
    char *folder = check_temporary("gguf_full"), path[4200];
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    check_write_file(path, "before", 6);
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    int failures = 0;
    for (rlim_t bytes = 0; bytes < 80000; bytes += 7001) {
        lk_error err = {0};
        limit = old;
        limit.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &limit);
        lk_status status = write_sample(path, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(check_count_files(folder), 1);
        if (!status) break;
        failures++;
        assert_int_equal(status, LK_ERR_IO);
        char *text_now;
        size_t size;
        CHECK_OK(lk_file_read(path, 100, &text_now, &size, &err), &err);
        assert_int_equal(size, 6);
        free(text_now);
    }
    assert_in_range(failures, 3, 11);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode), cmocka_unit_test(test_encode),    cmocka_unit_test(test_encode_extremes),
        cmocka_unit_test(test_read),   cmocka_unit_test(test_refuses),   cmocka_unit_test(test_split),
        cmocka_unit_test(test_write),  cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
