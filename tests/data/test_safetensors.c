/* data/safetensors: files of the reference library read right, what we write reads back, and hostile files are refused with the
 * reason. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/file.h"
#include "data/safetensors.h"
#include "tests/check.h"

/* A file in memory: length, header text, `data` zero bytes. The caller frees. */
static unsigned char *make_file(const char *header, size_t data, size_t *size)
{
    size_t n = strlen(header);
    unsigned char *bytes = calloc(1, 8 + n + data);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(n >> (8 * i));
    memcpy(bytes + 8, header, n);
    *size = 8 + n + data;
    return bytes;
}

static lk_status open_text(const char *header, size_t data, lk_error *err)
{
    size_t size;
    unsigned char *bytes = make_file(header, data, &size);
    lk_safetensors *st;
    lk_status status = lk_safetensors_open_memory(&st, bytes, size, "mem", err);
    if (!status)
        lk_safetensors_close(st);
    else
        assert_null(st);
    free(bytes);
    return status;
}

static void test_accepted(void **state)
{
    (void)state;
    lk_error err = {0};
    CHECK_OK(open_text("{}", 0, &err), &err);
    CHECK_OK(open_text("{}     ", 0, &err), &err);
    CHECK_OK(open_text("{\"__metadata__\":{\"a\":\"b\"}}", 0, &err), &err);
    CHECK_OK(open_text("{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, &err), &err);
    CHECK_OK(open_text("{\"a\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]}}", 0, &err), &err);
    /* any order of entries, an empty tensor between two others, odd starts */
    CHECK_OK(open_text("{\"b\":{\"dtype\":\"I16\",\"shape\":[2],\"data_offsets\":[3,7]},"
                       "\"e\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[3,3]},"
                       "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}",
                       7, &err),
             &err);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        lk_status status;
        const char *text;
    } rows[] = {
        {"", 0, LK_ERR_FORMAT, "'{'"},
        {"[]", 0, LK_ERR_FORMAT, "'{'"},
        {"{", 0, LK_ERR_FORMAT, "'{'"},
        {"{\"a\":", 0, LK_ERR_FORMAT, "not valid JSON"},
        {"{} x", 0, LK_ERR_FORMAT, "not valid JSON"},
        {"{\"a\":1}", 0, LK_ERR_FORMAT, "\"a\""},
        {"{\"__metadata__\":[]}", 0, LK_ERR_FORMAT, "__metadata__"},
        {"{\"__metadata__\":{\"k\":1}}", 0, LK_ERR_FORMAT, "\"k\""},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "dtype"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, LK_ERR_UNSUPPORTED, "F8_E4M3"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1e30],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, LK_ERR_UNSUPPORTED, "8 dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2147483648,2147483648],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, LK_ERR_FORMAT, "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, LK_ERR_FORMAT, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, LK_ERR_FORMAT, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, LK_ERR_FORMAT, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, LK_ERR_FORMAT, "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, LK_ERR_FORMAT, "need 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, LK_ERR_FORMAT, "accounts for 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, LK_ERR_FORMAT, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, LK_ERR_FORMAT, "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, LK_ERR_FORMAT, "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, LK_ERR_FORMAT, "twice"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        CHECK_FAILS(open_text(rows[i].header, rows[i].data, &err), rows[i].status, rows[i].text, &err);
        assert_non_null(strstr(err.message, "mem"));
    }
}

static void test_lengths(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st;
    CHECK_FAILS(lk_safetensors_open_memory(&st, "", 0, "mem", &err), LK_ERR_FORMAT, "0 bytes", &err);
    CHECK_FAILS(lk_safetensors_open_memory(&st, "1234567", 7, "mem", &err), LK_ERR_FORMAT, "7 bytes", &err);
    CHECK_FAILS(lk_safetensors_open_memory(&st, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "mem", &err), LK_ERR_FORMAT, "at most", &err);
    CHECK_FAILS(lk_safetensors_open_memory(&st, "\1\1\0\0\0\0\0\0{}", 10, "mem", &err), LK_ERR_FORMAT, "truncated", &err);
    /* every proper beginning of a good file is refused */
    size_t size;
    unsigned char *bytes = make_file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, &size);
    for (size_t n = 0; n < size; n++) {
        unsigned char *part = malloc(n + 1);
        memcpy(part, bytes, n);
        assert_int_equal(lk_safetensors_open_memory(&st, part, n, "mem", &err), LK_ERR_FORMAT);
        free(part);
    }
    free(bytes);
}

static void test_reference_file(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st;
    char *path = check_golden("models/llama-tiny");
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    free(path);
    assert_true(lk_safetensors_count(st) > 10);
    for (int64_t i = 1; i < lk_safetensors_count(st); i++)
        assert_true(strcmp(lk_safetensors_at(st, i - 1)->name, lk_safetensors_at(st, i)->name) < 0);
    assert_string_equal(lk_safetensors_metadata(st, "format"), "pt");
    assert_null(lk_safetensors_metadata(st, "no such key"));
    assert_null(lk_safetensors_find(st, "no.such.tensor"));
    const lk_st_tensor *t;
    CHECK_OK(lk_safetensors_expect(st, "model.norm.weight", 1, (int64_t[]){-1}, &t, &err), &err);
    int64_t channels = t->shape[0];
    CHECK_OK(lk_safetensors_expect(st, "model.embed_tokens.weight", 2, (int64_t[]){-1, channels}, &t, &err), &err);
    CHECK_FAILS(lk_safetensors_expect(st, "model.norm.weight", 1, (int64_t[]){channels + 1}, &t, &err), LK_ERR_MISMATCH, "expected [",
                &err);
    CHECK_FAILS(lk_safetensors_expect(st, "model.norm.weight", 2, (int64_t[]){-1, 1}, &t, &err), LK_ERR_MISMATCH, "[any, 1]", &err);
    CHECK_FAILS(lk_safetensors_expect(st, "model.nrom.weight", 1, (int64_t[]){-1}, &t, &err), LK_ERR_NOT_FOUND, "model.nrom.weight", &err);
    lk_safetensors_close(st);
    CHECK_FAILS(lk_safetensors_open(&st, "no/such/file", &err), LK_ERR_IO, "no/such/file", &err);
    CHECK_FAILS(lk_safetensors_open(&st, LK_SOURCE_DIR "/base", &err), LK_ERR_NOT_FOUND, "neither", &err);
}

static void test_read_f32(void **state)
{
    (void)state;
    lk_error err = {0};
    /* one byte first, so that nothing after it is aligned */
    size_t size;
    unsigned char *bytes = make_file("{\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                     "\"h\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[1,5]},"
                                     "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[5,9]},"
                                     "\"f\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9,17]},"
                                     "\"d\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[17,33]}}",
                                     33, &size);
    unsigned char *data = bytes + size - 33;
    const float values[2] = {1.5f, -2.0f};
    const double wide[2] = {1.5, -2.0};
    uint16_t half[2];
    lk_from_f32(half, LK_F16, values, 2);
    memcpy(data + 1, half, 4);
    lk_from_f32(half, LK_BF16, values, 2);
    memcpy(data + 5, half, 4);
    memcpy(data + 9, values, 8);
    memcpy(data + 17, wide, 16);
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open_memory(&st, bytes, size, "mem", &err), &err);
    for (const char *name = "hbfd"; *name; name++) {
        char text[2] = {*name, 0};
        float got[2];
        CHECK_OK(lk_st_read_f32(lk_safetensors_find(st, text), 0, 2, got, &err), &err);
        check_same_bits(text, got, values, sizeof got);
        CHECK_OK(lk_st_read_f32(lk_safetensors_find(st, text), 1, 1, got, &err), &err);
        assert_true(got[0] == -2.0f);
        CHECK_FAILS(lk_st_read_f32(lk_safetensors_find(st, text), 1, 2, got, &err), LK_ERR_ARGUMENT, "2 elements", &err);
        CHECK_FAILS(lk_st_read_f32(lk_safetensors_find(st, text), INT64_MAX, 1, got, &err), LK_ERR_ARGUMENT, "2 elements", &err);
    }
    float got[1];
    CHECK_FAILS(lk_st_read_f32(lk_safetensors_find(st, "u"), 0, 1, got, &err), LK_ERR_FORMAT, "floating", &err);
    lk_safetensors_close(st);
    free(bytes);
}

/* ---- writing ---- */

typedef struct sample {
    const char *name;
    lk_dtype type;
    int n_dims;
    int64_t shape[3];
} sample;

static const sample samples[] = {
    {"model.layers.0.weight", LK_F32, 2, {5, 7}},    {"a.odd", LK_U8, 1, {3}}, {"scalar", LK_F64, 0, {0}}, {"nothing", LK_BF16, 2, {0, 9}},
    {"h \"quoted\" \xc3\xa9", LK_F16, 3, {2, 3, 4}}, {"last", LK_I64, 1, {2}},
};
enum { N_SAMPLES = sizeof samples / sizeof *samples };

static int64_t sample_bytes(const sample *s)
{
    int64_t n = lk_dtype_size(s->type);
    for (int i = 0; i < s->n_dims; i++) n *= s->shape[i];
    return n;
}

static void fill(unsigned char *out, int64_t n, int seed)
{
    check_random r = {(uint64_t)seed + 1};
    for (int64_t i = 0; i < n; i++) out[i] = (unsigned char)check_random_u64(&r);
}

static void write_samples(const char *folder, int64_t shard_bytes)
{
    lk_error err = {0};
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "model", shard_bytes, &err), &err);
    CHECK_OK(lk_st_writer_metadata(w, "note", "x\"y", &err), &err);
    for (int i = 0; i < N_SAMPLES; i++)
        CHECK_OK(lk_st_writer_declare(w, samples[i].name, samples[i].type, samples[i].n_dims, samples[i].shape, &err), &err);
    for (int i = 0; i < N_SAMPLES; i++) {
        unsigned char bytes[512];
        int64_t n = sample_bytes(&samples[i]);
        fill(bytes, n, i);
        for (int64_t j = 0; j < n; j += 13) CHECK_OK(lk_st_writer_write(w, bytes + j, (size_t)(n - j < 13 ? n - j : 13), &err), &err);
    }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
}

static void check_samples(const char *path)
{
    lk_error err = {0};
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    assert_int_equal(lk_safetensors_count(st), N_SAMPLES);
    for (int i = 0; i < N_SAMPLES; i++) {
        const lk_st_tensor *t;
        unsigned char bytes[512];
        int64_t n = sample_bytes(&samples[i]);
        fill(bytes, n, i);
        CHECK_OK(lk_safetensors_expect(st, samples[i].name, samples[i].n_dims, samples[i].shape, &t, &err), &err);
        assert_int_equal(t->type, samples[i].type);
        assert_int_equal(t->n_bytes, n);
        check_same_bits(samples[i].name, t->data, bytes, (size_t)n);
    }
    assert_string_equal(lk_safetensors_metadata(st, "format"), "pt");
    assert_string_equal(lk_safetensors_metadata(st, "note"), "x\"y");
    lk_safetensors_close(st);
}

static int count_files(const char *folder)
{
    int n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void digest_of(const char *path, char hex[65])
{
    lk_error err = {0};
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    CHECK_OK(lk_safetensors_digest(st, hex, &err), &err);
    lk_safetensors_close(st);
}

static void test_round_trip(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("st_round");
    char path[4200], one[65], many[65];
    write_samples(folder, 0);
    assert_int_equal(count_files(folder), 1);
    check_samples(folder);
    digest_of(folder, one);

    /* the header is padded to 8 */
    lk_map map;
    CHECK_OK(lk_path_join(path, sizeof path, folder, "model.safetensors", &err), &err);
    CHECK_OK(lk_map_open(&map, path, &err), &err);
    assert_int_equal(map.data[0] % 8, 0);
    lk_map_close(&map);

    /* shards replace the single file, and the other way round; the digest does not notice */
    write_samples(folder, 60);
    assert_int_equal(count_files(folder), 4);
    assert_false(lk_path_exists(path));
    check_samples(folder);
    digest_of(folder, many);
    assert_string_equal(one, many);
    CHECK_OK(lk_path_join(path, sizeof path, folder, "model.safetensors.index.json", &err), &err);
    check_samples(path);
    write_samples(folder, 1 << 20); /* fits one file: no index */
    assert_false(lk_path_exists(path));
    check_samples(folder);
    free(folder);
}

static void test_writer_misuse(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_st_writer *w;
    char *folder = check_temporary("st_misuse");
    const int64_t two[1] = {2};
    CHECK_FAILS(lk_st_writer_create(&w, "no/such/folder", "model", 0, &err), LK_ERR_IO, "folder", &err);

    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    CHECK_FAILS(lk_st_writer_declare(w, "n", LK_NF4, 1, two, &err), LK_ERR_ARGUMENT, "nf4", &err);
    CHECK_FAILS(lk_st_writer_declare(w, "n", LK_F32, 2, (int64_t[]){INT64_MAX, 2}, &err), LK_ERR_ARGUMENT, "shape", &err);
    CHECK_OK(lk_st_writer_declare(w, "a", LK_F32, 1, two, &err), &err);
    CHECK_OK(lk_st_writer_declare(w, "a", LK_F32, 1, two, &err), &err);
    CHECK_FAILS(lk_st_writer_write(w, "12345678", 8, &err), LK_ERR_CONFLICT, "twice", &err);
    CHECK_FAILS(lk_st_writer_commit(w, &err), LK_ERR_ARGUMENT, "after an error", &err);
    lk_st_writer_abort(w);

    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    CHECK_OK(lk_st_writer_declare(w, "a", LK_F32, 1, two, &err), &err);
    CHECK_OK(lk_st_writer_write(w, "1234", 4, &err), &err);
    CHECK_FAILS(lk_st_writer_declare(w, "b", LK_F32, 1, two, &err), LK_ERR_ARGUMENT, "after the first", &err);
    CHECK_FAILS(lk_st_writer_commit(w, &err), LK_ERR_ARGUMENT, "lacks 4 bytes", &err);
    lk_st_writer_abort(w);

    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    CHECK_OK(lk_st_writer_declare(w, "a", LK_F32, 1, two, &err), &err);
    CHECK_FAILS(lk_st_writer_write(w, "123456789", 9, &err), LK_ERR_ARGUMENT, "room for 8", &err);
    lk_st_writer_abort(w);
    lk_st_writer_abort(NULL);
    assert_int_equal(count_files(folder), 0);

    CHECK_OK(lk_st_writer_create(&w, folder, "empty", 0, &err), &err);
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    assert_int_equal(count_files(folder), 1);
    free(folder);
}

/* A limit on the size of files acts like a disk that is full, at every place where it may fill up. */
static void test_full_disk(void **state)
{
    (void)state;
    char *folder = check_temporary("st_full");
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    int failures = 0;
    for (rlim_t bytes = 0; bytes < 40000; bytes += 1777) {
        lk_error err = {0};
        lk_st_writer *w;
        static char data[10000];
        CHECK_OK(lk_st_writer_create(&w, folder, "model", 12000, &err), &err);
        for (int i = 0; i < 3; i++) {
            char name[2] = {(char)('a' + i), 0};
            CHECK_OK(lk_st_writer_declare(w, name, LK_U8, 1, (int64_t[]){10000}, &err), &err);
        }
        limit = old;
        limit.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &limit);
        lk_status status = LK_OK;
        for (int i = 0; i < 3 && !status; i++) status = lk_st_writer_write(w, data, sizeof data, &err);
        if (!status) status = lk_st_writer_commit(w, &err);
        if (status) lk_st_writer_abort(w);
        setrlimit(RLIMIT_FSIZE, &old);
        if (status) {
            failures++;
            assert_int_equal(status, LK_ERR_IO);
            assert_int_equal(count_files(folder), 0);
        } else {
            assert_int_equal(count_files(folder), 4);
            break;
        }
    }
    assert_in_range(failures, 3, 20);
    free(folder);
}

/* ---- hostile folders ---- */

static void put(const char *folder, const char *name, const char *header, size_t data)
{
    char path[4200];
    size_t size;
    unsigned char *bytes = make_file(header, data, &size);
    assert_int_equal(lk_path_join(path, sizeof path, folder, name, NULL), LK_OK);
    check_write_file(path, bytes, size);
    free(bytes);
}

static void test_hostile_folders(void **state)
{
    (void)state;
    static const struct {
        const char *index, *text;
        lk_status status;
    } rows[] = {
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", NULL, LK_OK},
        {"{\"metadata\":{\"total_size\":-1},\"weight_map\":{\"a\":\"one.safetensors\"}}", NULL, LK_OK},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "same folder", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "same folder", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"..\"}}", "same folder", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"\"}}", "same folder", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":7}}", "\"a\"", LK_ERR_FORMAT},
        {"{\"weight_map\":{}}", "empty", LK_ERR_FORMAT},
        {"{\"weight_map\":[]}", "weight_map", LK_ERR_FORMAT},
        {"{}", "weight_map", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}", "\"c\" is not in two", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}", "index has it in", LK_ERR_FORMAT},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"gone.safetensors\"}}", "gone.safetensors", LK_ERR_IO},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\"}}", "in two files", LK_ERR_FORMAT},
    };
    char *folder = check_temporary("st_hostile");
    char index[4200];
    assert_int_equal(lk_path_join(index, sizeof index, folder, "model.safetensors.index.json", NULL), LK_OK);
    put(folder, "one.safetensors", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    put(folder, "two.safetensors", "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    put(folder, "three.safetensors",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
        8);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_safetensors *st = NULL;
        check_write_file(index, rows[i].index, strlen(rows[i].index));
        if (rows[i].status)
            CHECK_FAILS(lk_safetensors_open(&st, folder, &err), rows[i].status, rows[i].text, &err);
        else
            CHECK_OK(lk_safetensors_open(&st, folder, &err), &err);
        lk_safetensors_close(st);
    }
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),       cmocka_unit_test(test_refused),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_reference_file), cmocka_unit_test(test_read_f32),  cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_writer_misuse),  cmocka_unit_test(test_full_disk), cmocka_unit_test(test_hostile_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
