/* base/: errors, files that survive a crash, JSON strictness, digests, and a pool whose result does not depend on threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/json.h"
#include "base/pool.h"
#include "base/sha256.h"
#include "tests/check.h"

static void test_errors(void **state)
{
    (void)state;
    lk_error err = {0};
    assert_int_equal(lk_fail(&err, LK_ERR_FORMAT, "line %d", 3), LK_ERR_FORMAT);
    assert_int_equal(lk_error_prefix(&err, LK_ERR_IO, "file %s", "a"), LK_ERR_FORMAT);
    assert_string_equal(err.message, "file a: line 3");
    assert_int_equal(lk_fail(NULL, LK_ERR_MEMORY, "x"), LK_ERR_MEMORY);
    char big[3000];
    memset(big, 'y', sizeof big - 1);
    big[sizeof big - 1] = 0;
    lk_fail(&err, LK_ERR_IO, "%s", big);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
}

static void test_arena(void **state)
{
    (void)state;
    lk_arena arena = {0};
    char *small = lk_arena_strdup(&arena, "abc");
    unsigned char *large = lk_arena_alloc(&arena, 1000000);
    assert_int_equal(large[999999], 0);
    for (int i = 0; i < 10000; i++) {
        char *p = lk_arena_alloc(&arena, (size_t)(i % 97));
        assert_int_equal((uintptr_t)p % 16, 0);
        memset(p, 0xff, (size_t)(i % 97));
    }
    assert_string_equal(small, "abc");
    lk_arena_free(&arena);
    assert_null(arena.head);
}

static void test_files(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("base_files");
    char path[4200];
    CHECK_OK(lk_path_join(path, sizeof path, folder, "a/b/c", &err), &err);
    CHECK_OK(lk_folder_create(path, &err), &err);
    CHECK_OK(lk_path_join(path, sizeof path, folder, "value", &err), &err);
    CHECK_OK(lk_file_replace(path, "old", 3, &err), &err);
    lk_map before;
    CHECK_OK(lk_map_open(&before, path, &err), &err);
    CHECK_OK(lk_file_replace(path, "newer", 5, &err), &err);
    assert_memory_equal(before.data, "old", 3); /* the mapping keeps what it had */
    lk_map_close(&before);
    char *text;
    size_t size;
    CHECK_OK(lk_file_read(path, 100, &text, &size, &err), &err);
    assert_string_equal(text, "newer");
    free(text);
    CHECK_FAILS(lk_file_read(path, 4, &text, &size, &err), LK_ERR_FORMAT, "larger than the 4 bytes", &err);
    CHECK_FAILS(lk_file_read("/nonexistent/x", 4, &text, &size, &err), LK_ERR_IO, "/nonexistent/x", &err);
    lk_atomic_file file;
    CHECK_OK(lk_atomic_open(&file, path, &err), &err);
    CHECK_OK(lk_atomic_write(&file, "torn", 4, &err), &err);
    lk_atomic_abort(&file);
    lk_arena arena = {0};
    char **names;
    size_t n;
    CHECK_OK(lk_folder_list(folder, &arena, &names, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "value");
    lk_arena_free(&arena);
    /* A full disk is an error at commit or before, and the old content stays. */
    if (lk_path_exists("/dev/full")) {
        FILE *full = fopen("/dev/full", "wb");
        lk_atomic_file fake = {.stream = full};
        strcpy(fake.path, path);
        snprintf(fake.temporary, sizeof fake.temporary, "%s.tmp", path);
        (void)lk_atomic_write(&fake, "x", 1, &err);
        CHECK_FAILS(lk_atomic_commit(&fake, &err), LK_ERR_IO, "No space left", &err);
        CHECK_OK(lk_file_read(path, 100, &text, &size, &err), &err);
        assert_string_equal(text, "newer");
        free(text);
    }
    CHECK_OK(lk_folder_remove(folder, &err), &err);
    assert_false(lk_path_exists(folder));
    free(folder);
}

static void test_sha256(void **state)
{
    (void)state;
    char hex[65];
    lk_sha256_bytes("abc", 3, hex); /* FIPS 180-4 example */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void test_json(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"{\"a\":1,\"a\":2}", "appears twice"},
        {"{\"a\":{\"x\":[{\"q\":1,\"q\":1}]}}", "appears twice"},
        {"{\"a\":1} x", "not valid JSON"},
        {"{\"a\":\"\xff\"}", "not valid UTF-8"},
        {"{\"a\":\"\xed\xa0\x80\"}", "not valid UTF-8"},
        {"{\"a\":\"b\nc\"}", "control character"},
        {"{\"a\":\"b\\u0000c\"}", "\\u0000"},
        {"{\"a\":", "not valid JSON"},
        {"", "not valid JSON"},
        {"{\"a\":1}//x", "not valid JSON"},
    };
    lk_error err = {0};
    cJSON *root;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_FAILS(lk_json_parse(&root, bad[i].text, strlen(bad[i].text), "here", &err), LK_ERR_FORMAT, bad[i].message, &err);
        assert_null(root);
    }
    char bomb[4000];
    memset(bomb, '[', sizeof bomb);
    CHECK_FAILS(lk_json_parse(&root, bomb, sizeof bomb, "here", &err), LK_ERR_FORMAT, "nested deeper", &err);

    const char *text = "{ /* c */ \"a\": 3, // x \"\n \"s\":\"//no\", \"f\":0.0002}";
    CHECK_OK(lk_json_parse_commented(&root, text, strlen(text), "r", &err), &err);
    int64_t a = 0;
    double f = 0;
    const char *s;
    CHECK_OK(lk_json_int(root, "a", 0, 10, &a, "r", &err), &err);
    assert_int_equal(a, 3);
    CHECK_OK(lk_json_string(root, "s", &s, "r", &err), &err);
    assert_string_equal(s, "//no");
    CHECK_FAILS(lk_json_int(root, "a", 5, 10, &a, "r", &err), LK_ERR_FORMAT, "between 5 and 10", &err);
    CHECK_FAILS(lk_json_int(root, "f", 5, 10, &a, "r", &err), LK_ERR_FORMAT, "whole number", &err);
    CHECK_FAILS(lk_json_int(root, "zz", 5, 10, &a, "r", &err), LK_ERR_FORMAT, "zz is missing", &err);
    CHECK_OK(lk_json_number(root, "f", 0, 1, &f, "r", &err), &err);
    cJSON_Delete(root);
    root = cJSON_CreateObject();
    lk_json_add_number(root, "x", 0.0002);
    char *printed = cJSON_PrintUnformatted(root);
    assert_string_equal(printed, "{\"x\":0.0002}");
    free(printed);
    cJSON_Delete(root);
}

static void mark(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    int *hits = context;
    for (int64_t i = begin; i < end; i++) hits[i]++;
}

static void test_pool(void **state)
{
    (void)state;
    lk_error err = {0};
    for (int threads = 1; threads <= 5; threads++) {
        lk_pool *pool;
        CHECK_OK(lk_pool_create(&pool, threads, &err), &err);
        assert_int_equal(lk_pool_threads(pool), threads);
        for (int n = 0; n < 70; n += 7) {
            for (int grain = 1; grain < 20; grain += 6) {
                int hits[70] = {0};
                lk_pool_run(pool, n, grain, mark, hits);
                for (int i = 0; i < 70; i++) assert_int_equal(hits[i], i < n);
            }
        }
        int seen[5] = {0};
        lk_pool_each(pool, mark, seen);
        for (int i = 0; i < threads; i++) assert_int_equal(seen[i], 1);
        lk_pool_destroy(pool);
    }
    lk_pool *pool;
    CHECK_FAILS(lk_pool_create(&pool, -1, &err), LK_ERR_ARGUMENT, "threads", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors), cmocka_unit_test(test_arena), cmocka_unit_test(test_files),
        cmocka_unit_test(test_sha256), cmocka_unit_test(test_json),  cmocka_unit_test(test_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
