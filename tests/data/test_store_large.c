/* label: slow */
/* data/store: 50 million tokens (250 MB) are written and read in random order by a process that grows by a few megabytes only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/store.h"
#include "tests/check.h"

enum { DOCUMENTS = 10000, LENGTH = 5000 };

static int64_t resident_bytes(void)
{
    long pages = 0, ignored = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &ignored, &pages), 2);
    fclose(f);
    return (int64_t)pages * 4096;
}

static void test_larger_than_memory(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_temporary("store_large"), path[4200];
    CHECK_OK(lk_path_join(path, sizeof path, folder, "large.h5", &err), &err);
    static int32_t ids[LENGTH];
    static uint8_t mask[LENGTH];
    int64_t before = resident_bytes();
    lk_store_writer *w;
    CHECK_OK(lk_store_create(&w, path, &err), &err);
    for (int64_t d = 0; d < DOCUMENTS; d++) {
        for (int64_t i = 0; i < LENGTH; i++) {
            ids[i] = (int32_t)((d * 31 + i) % 32000);
            mask[i] = (uint8_t)((d + i) & 1);
        }
        CHECK_OK(lk_store_append(w, ids, mask, LENGTH, &err), &err);
    }
    CHECK_OK(lk_store_commit(w, &err), &err);
    int64_t written = resident_bytes();
    lk_store *s;
    CHECK_OK(lk_store_open(&s, path, &err), &err);
    check_random r = {5};
    for (int64_t k = 0; k < 2 * DOCUMENTS; k++) {
        int64_t d = (int64_t)(check_random_u64(&r) % DOCUMENTS);
        CHECK_OK(lk_store_read(s, d, ids, mask, &err), &err);
        assert_int_equal(ids[LENGTH - 1], (d * 31 + LENGTH - 1) % 32000);
        assert_int_equal(mask[0], d & 1);
    }
    lk_store_close(s);
    int64_t read = resident_bytes();
    printf("resident: +%.1f MB after writing, +%.1f MB after reading\n", (double)(written - before) / 1e6, (double)(read - before) / 1e6);
    assert_in_range(written - before < 0 ? 0 : written - before, 0, 32 << 20);
    assert_in_range(read - before < 0 ? 0 : read - before, 0, 32 << 20);
    CHECK_OK(lk_folder_remove(folder, &err), &err);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_larger_than_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
