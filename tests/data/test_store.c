/* data/store: what is written comes back, every flipped bit and every truncation is an error or changes nothing, and a full disk
 * leaves nothing behind. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/file.h"
#include "data/store.h"
#include "tests/check.h"

/* HDF5 1.10.8 loses a few hundred bytes when it refuses a damaged file; that is not ours to mend. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static int64_t length_of(int64_t document) { return 1 + document * 7919 % 997; }

static void make_document(int64_t document, int32_t *ids, uint8_t *mask)
{
    check_random r = {(uint64_t)document + 1};
    for (int64_t i = 0; i < length_of(document); i++) {
        uint64_t x = check_random_u64(&r);
        ids[i] = (int32_t)(x % 150000);
        mask[i] = (uint8_t)(x >> 40 & 1);
    }
}

static char *in(const char *folder, const char *name)
{
    char path[4200];
    assert_int_equal(lk_path_join(path, sizeof path, folder, name, NULL), LK_OK);
    return strdup(path);
}

static lk_status write_store(const char *path, int64_t documents, lk_error *err)
{
    lk_store_writer *w;
    int32_t ids[1000];
    uint8_t mask[1000];
    LK_TRY(lk_store_create(&w, path, err));
    lk_status status = lk_store_attribute(w, "tokenizer_digest", "abc", err);
    for (int64_t d = 0; d < documents && !status; d++) {
        make_document(d, ids, mask);
        status = lk_store_append(w, ids, mask, length_of(d), err);
    }
    if (status) {
        lk_store_abort(w);
        return status;
    }
    return lk_store_commit(w, err);
}

/* Opens and reads everything. *same: all of it is as written. */
static lk_status read_store(const char *path, int64_t documents, bool *same, lk_error *err)
{
    lk_store *s;
    int32_t ids[1000], want_ids[1000];
    uint8_t mask[1000], want_mask[1000];
    LK_TRY(lk_store_open(&s, path, err));
    lk_status status = LK_OK;
    int64_t total = 0, supervised = 0;
    *same = lk_store_documents(s) == documents;
    for (int64_t k = 0; k < documents && *same && !status; k++) {
        int64_t d = k * 31 % documents, n = length_of(d); /* not in order: 31 shares no factor with the counts used here */
        *same = lk_store_length(s, d) == n;
        if (*same) status = lk_store_read(s, d, ids, mask, err);
        if (status || !*same) break;
        make_document(d, want_ids, want_mask);
        *same = !memcmp(ids, want_ids, (size_t)n * 4) && !memcmp(mask, want_mask, (size_t)n);
        total += n;
        for (int64_t i = 1; i < n; i++) supervised += mask[i];
    }
    char *digest = NULL;
    if (!status && *same) status = lk_store_get_attribute(s, "tokenizer_digest", &digest, err);
    if (!status && *same) *same = lk_store_tokens(s) == total && lk_store_supervised(s) == supervised && !strcmp(digest, "abc");
    free(digest);
    lk_store_close(s);
    return status;
}

static void test_round_trip(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("store_round"), *path = in(folder, "a.h5"), *other = in(folder, "b.h5"), hex[65], again[65];
    static const int64_t counts[] = {0, 1, 2, 100, 33000}; /* the last: more than a chunk of offsets */
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bool same = false;
        CHECK_OK(write_store(path, counts[i], &err), &err);
        CHECK_OK(read_store(path, counts[i], &same, &err), &err);
        assert_true(same);
    }
    CHECK_OK(write_store(path, 50, &err), &err);
    CHECK_OK(write_store(other, 50, &err), &err);
    lk_store *s;
    CHECK_OK(lk_store_open(&s, path, &err), &err);
    CHECK_OK(lk_store_digest(s, hex, &err), &err);
    lk_store_close(s);
    CHECK_OK(lk_store_open(&s, other, &err), &err);
    CHECK_OK(lk_store_digest(s, again, &err), &err);
    assert_string_equal(hex, again);
    char *text;
    CHECK_OK(lk_store_get_attribute(s, "n_documents", &text, &err), &err);
    assert_string_equal(text, "50");
    free(text);
    CHECK_FAILS(lk_store_get_attribute(s, "gone", &text, &err), LK_ERR_NOT_FOUND, "gone", &err);
    int32_t id;
    uint8_t bit;
    CHECK_FAILS(lk_store_read(s, 50, &id, &bit, &err), LK_ERR_ARGUMENT, "50 of 50", &err);
    CHECK_FAILS(lk_store_read(s, -1, &id, &bit, &err), LK_ERR_ARGUMENT, "-1", &err);
    lk_store_close(s);
    free(path);
    free(other);
    free(folder);
}

static void test_writer(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("store_writer"), *path = in(folder, "a.h5");
    const int32_t ids[2] = {5, -1};
    const uint8_t mask[2] = {1, 2};
    lk_store_writer *w;
    CHECK_OK(lk_store_create(&w, path, &err), &err);
    CHECK_FAILS(lk_store_append(w, ids, mask, 0, &err), LK_ERR_ARGUMENT, "no tokens", &err);
    CHECK_FAILS(lk_store_append(w, ids, mask, 2, &err), LK_ERR_ARGUMENT, "token -1 with mask 2", &err);
    CHECK_FAILS(lk_store_attribute(w, "n_tokens", "7", &err), LK_ERR_ARGUMENT, "itself", &err);
    CHECK_OK(lk_store_append(w, ids, mask, 1, &err), &err);
    /* replaced, empty, and longer than HDF5's usual limit of 64 KiB */
    CHECK_OK(lk_store_attribute(w, "template", "first", &err), &err);
    CHECK_OK(lk_store_attribute(w, "template", "", &err), &err);
    char *sources = malloc(200001), *got;
    memset(sources, 's', 200000);
    sources[200000] = 0;
    CHECK_OK(lk_store_attribute(w, "sources", sources, &err), &err);
    assert_false(lk_path_exists(path)); /* nothing has the name before commit */
    CHECK_OK(lk_store_commit(w, &err), &err);
    lk_store *s;
    CHECK_OK(lk_store_open(&s, path, &err), &err);
    assert_int_equal(lk_store_supervised(s), 0); /* the first token has nothing before it */
    CHECK_OK(lk_store_get_attribute(s, "template", &got, &err), &err);
    assert_string_equal(got, "");
    free(got);
    CHECK_OK(lk_store_get_attribute(s, "sources", &got, &err), &err);
    assert_string_equal(got, sources);
    free(got);
    free(sources);
    lk_store_close(s);
    CHECK_OK(lk_store_create(&w, path, &err), &err);
    lk_store_abort(w);
    lk_store_abort(NULL);
    CHECK_OK(lk_store_open(&s, path, &err), &err); /* the old one is untouched */
    lk_store_close(s);
    CHECK_FAILS(lk_store_create(&w, "no/such/folder/a.h5", &err), LK_ERR_IO, "no/such/folder", &err);
    CHECK_FAILS(lk_store_open(&s, "no/such.h5", &err), LK_ERR_IO, "no/such.h5", &err);
    check_write_file(path, "hello", 5);
    CHECK_FAILS(lk_store_open(&s, path, &err), LK_ERR_FORMAT, "not an HDF5 file", &err);
    free(path);
    free(folder);
}

/* One byte of a file, in place: rewriting it hundreds of times would wait for the disk. */
static void put_byte(const char *path, size_t at, char byte)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static void test_flipped_bits(void **state)
{
    (void)state;
    enum { DOCUMENTS = 100 };
    lk_error err = {0};
    char *folder = check_temporary("store_flip"), *path = in(folder, "a.h5"), *broken = in(folder, "b.h5"), *bytes;
    size_t size;
    CHECK_OK(write_store(path, DOCUMENTS, &err), &err);
    CHECK_OK(lk_file_read(path, 1 << 24, &bytes, &size, &err), &err);
    check_write_file(broken, bytes, size);
    check_random r = {3};
    int errors = 0, tries = 400;
    for (int i = 0; i < tries; i++) {
        /* half of them in the first 4 KiB, where the structure is */
        size_t at = (size_t)(check_random_u64(&r) % (i % 2 ? size : 4096)), bit = (size_t)(check_random_u64(&r) % 8);
        bool same = false;
        put_byte(broken, at, (char)(bytes[at] ^ (1 << bit)));
        lk_status status = read_store(broken, DOCUMENTS, &same, &err);
        put_byte(broken, at, bytes[at]);
        if (!status && !same) fail_msg("bit %zu of byte %zu was flipped and the store reads otherwise without an error", bit, at);
        if (status) {
            assert_true(status == LK_ERR_FORMAT || status == LK_ERR_NOT_FOUND || status == LK_ERR_UNSUPPORTED);
            errors++;
        }
    }
    /* what is left over lies in unused space */
    assert_in_range(errors, tries / 3, tries);
    for (size_t n = size - 1; n > size / 40; n -= size / 40) {
        bool same = false;
        assert_int_equal(truncate(broken, (off_t)n), 0);
        assert_int_equal(read_store(broken, DOCUMENTS, &same, &err), LK_ERR_FORMAT);
    }
    free(bytes);
    free(path);
    free(broken);
    free(folder);
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

static void test_full_disk(void **state)
{
    (void)state;
    char *folder = check_temporary("store_full"), *path = in(folder, "a.h5");
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (rlim_t bytes = 0; bytes < 400000; bytes += 39999) {
        lk_error err = {0};
        limit = old;
        limit.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &limit);
        lk_status status = write_store(path, 300, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(status, LK_ERR_IO);
        assert_int_equal(count_files(folder), 0);
    }
    lk_error err = {0};
    bool same = false;
    CHECK_OK(write_store(path, 300, &err), &err); /* and the library still works */
    CHECK_OK(read_store(path, 300, &same, &err), &err);
    assert_true(same);
    free(path);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
