/* Checkpoints: there and back, the newest valid one, what does not belong, keep, and a disk that is full. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "tests/check.h"
#include "train/checkpoint.h"

enum { N = 70001 }; /* more than a chunk, and odd */

typedef struct fixture {
    lk_backend *be;
    lk_checkpoint_state state;
    lk_adamw_state *optim;
    char *folder;
} fixture;

static const lk_checkpoint_meta meta = {.essence = "{\"optim\":{\"lr\":1},\"seed\":1}", .base_digest = "base", .data_digest = "data"};

static void fill_part(check_random *r, const lk_adamw_part *part)
{
    if (part->type == LK_F32) {
        check_random_fill(r, part->data, part->n, 0.1f);
        return;
    }
    for (int64_t i = 0; i < part->n; i++) ((uint8_t *)part->data)[i] = (uint8_t)(check_random_uniform(r) * 256);
}

static void fill(fixture *f, uint64_t seed)
{
    check_random r = {seed};
    check_random_fill(&r, f->state.params, N, 1.0f);
    for (int i = 0; i < f->optim->n_parts; i++) fill_part(&r, &f->optim->parts[i]);
}

static fixture setup_with(const char *name, lk_adamw_kind kind)
{
    lk_error err = {0};
    fixture f = {.folder = check_temporary(name), .optim = calloc(1, sizeof *f.optim)};
    void *p;
    CHECK_OK(lk_backend_open(&f.be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
    CHECK_OK(lk_alloc(f.be, N * 4, &p), &err);
    CHECK_OK(lk_adamw_state_init(f.optim, f.be, kind, N, &err), &err);
    f.state = (lk_checkpoint_state){.be = f.be, .params = p, .n_params = N, .optim = f.optim};
    return f;
}

static fixture setup(const char *name) { return setup_with(name, LK_ADAMW_F32); }

static void teardown(fixture *f)
{
    lk_free(f->be, f->state.params);
    lk_adamw_state_free(f->optim);
    free(f->optim);
    lk_backend_close(f->be);
    free(f->folder);
}

static void save(fixture *f, int64_t step, int64_t keep)
{
    lk_error err = {0};
    lk_checkpoint_meta m = meta;
    m.step = step;
    fill(f, (uint64_t)step + 1);
    CHECK_OK(lk_checkpoint_save(f->folder, &m, &f->state, keep, &err), &err);
}

/* The newest valid one must be of this step (-1: none), with that step's content. */
static void expect(fixture *f, int64_t step)
{
    lk_error err = {0};
    lk_checkpoint_meta m = meta;
    bool found;
    memset(f->state.params, 0, N * 4);
    CHECK_OK(lk_checkpoint_resume(f->folder, &m, &f->state, &found, &err), &err);
    assert_int_equal(found, step >= 0);
    if (step < 0) return;
    assert_int_equal(m.step, step);
    fixture want = setup_with("checkpoint_want", f->optim->kind);
    fill(&want, (uint64_t)step + 1);
    check_same_bits("params", f->state.params, want.state.params, N * 4);
    for (int i = 0; i < f->optim->n_parts; i++) {
        const lk_adamw_part *part = &f->optim->parts[i];
        check_same_bits(part->name, part->data, want.optim->parts[i].data, lk_adamw_part_bytes(part));
    }
    teardown(&want);
}

static char *path_of(const fixture *f, int64_t step)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/step-%06lld.h5", f->folder, (long long)step);
    return path;
}

static void flip(const char *path, double place)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    long at = (long)((double)ftell(file) * place);
    fseek(file, at, SEEK_SET);
    int c = fgetc(file);
    fseek(file, at, SEEK_SET);
    fputc(c ^ 0x40, file);
    fclose(file);
}

static void test_newest_valid(void **state)
{
    (void)state;
    fixture f = setup("checkpoint");
    expect(&f, -1);
    save(&f, 5, 9);
    save(&f, 20, 9);
    save(&f, 100, 9);
    expect(&f, 100);
    flip(path_of(&f, 100), 0.5); /* in the middle of a column */
    expect(&f, 20);
    check_write_file(path_of(&f, 100), "torn", 4);
    expect(&f, 20);
    check_write_file(path_of(&f, 100), "", 0);
    assert_int_equal(truncate(path_of(&f, 20), 200000), 0);
    expect(&f, 5);
    char other[4200];
    snprintf(other, sizeof other, "%s/step-000200.h5.tmp-12", f.folder);
    check_write_file(other, "x", 1);
    snprintf(other, sizeof other, "%s/notes.txt", f.folder);
    check_write_file(other, "x", 1);
    expect(&f, 5);
    teardown(&f);
}

/* Whatever byte is hit, the file is taken whole or not at all. */
static void test_any_byte(void **state)
{
    (void)state;
    fixture f = setup("checkpoint_bytes");
    for (int i = 0; i < 40; i++) {
        save(&f, 1, 1);
        lk_error err = {0};
        lk_checkpoint_meta m = meta;
        bool found;
        flip(path_of(&f, 1), (i + 0.5) / 40);
        lk_status status = lk_checkpoint_resume(f.folder, &m, &f.state, &found, &err);
        if (status && status != LK_ERR_MISMATCH) fail_msg("flip %d: %s", i, err.message);
        if (!status && found) expect(&f, 1); /* a byte that means nothing */
    }
    teardown(&f);
}

static void test_keep(void **state)
{
    (void)state;
    fixture f = setup("checkpoint_keep");
    for (int64_t step = 10; step <= 50; step += 10) save(&f, step, 2);
    assert_false(lk_path_exists(path_of(&f, 30)));
    assert_true(lk_path_exists(path_of(&f, 40)) && lk_path_exists(path_of(&f, 50)));
    expect(&f, 50);
    teardown(&f);
}

static void test_belongs(void **state)
{
    (void)state;
    static const struct {
        lk_checkpoint_meta meta;
        const char *says;
    } rows[] = {
        {{.essence = "{\"optim\":{\"lr\":2},\"seed\":1}", .base_digest = "base", .data_digest = "data"}, "optim.lr is 2 here and 1 there"},
        {{.essence = "{\"optim\":{\"lr\":1}}", .base_digest = "base", .data_digest = "data"}, "seed is missing here"},
        {{.essence = "{\"optim\":{\"lr\":1},\"seed\":1}", .base_digest = "other", .data_digest = "data"}, "another base"},
        {{.essence = "{\"optim\":{\"lr\":1},\"seed\":1}", .base_digest = "base", .data_digest = "other"}, "other data"},
    };
    fixture f = setup("checkpoint_belongs");
    save(&f, 3, 1);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        lk_checkpoint_meta m = rows[i].meta;
        bool found;
        CHECK_FAILS(lk_checkpoint_resume(f.folder, &m, &f.state, &found, &err), LK_ERR_MISMATCH, rows[i].says, &err);
    }
    lk_error err = {0};
    lk_checkpoint_meta m = meta;
    bool found;
    lk_checkpoint_state fewer = f.state;
    fewer.n_params--;
    CHECK_FAILS(lk_checkpoint_resume(f.folder, &m, &fewer, &found, &err), LK_ERR_MISMATCH, "parameters", &err);
    teardown(&f);
}

/* Moments in 8 bits, with their scales; a state of another kind is not taken. */
static void test_eight_bits(void **state)
{
    (void)state;
    fixture f = setup_with("checkpoint_8bit", LK_ADAMW_8BIT), other = setup("checkpoint_8bit_other");
    save(&f, 7, 2);
    save(&f, 8, 2);
    expect(&f, 8);
    flip(path_of(&f, 8), 0.7);
    expect(&f, 7);
    lk_error err = {0};
    lk_checkpoint_meta m = meta;
    bool found;
    CHECK_FAILS(lk_checkpoint_resume(f.folder, &m, &other.state, &found, &err), LK_ERR_MISMATCH, "adamw8bit", &err);
    teardown(&f);
    teardown(&other);
}

/* A recipe of many sources is longer than the 64 KiB that HDF5 once allowed an attribute. */
static void test_long_recipe(void **state)
{
    (void)state;
    enum { LONG = 300000 };
    fixture f = setup("checkpoint_long");
    lk_error err = {0};
    bool found;
    char *essence = malloc(LONG + 1);
    memset(essence, 'x', LONG);
    essence[0] = essence[LONG - 1] = '"';
    essence[LONG] = 0;
    lk_checkpoint_meta m = meta;
    m.essence = essence;
    m.step = 4;
    fill(&f, 5);
    CHECK_OK(lk_checkpoint_save(f.folder, &m, &f.state, 1, &err), &err);
    m.step = 0;
    CHECK_OK(lk_checkpoint_resume(f.folder, &m, &f.state, &found, &err), &err);
    assert_true(found && m.step == 4);
    free(essence);
    teardown(&f);
}

/* The limit on file sizes stands for a full disk: the write fails half way, the older checkpoint stays, nothing is left behind. */
static void test_full_disk(void **state)
{
    (void)state;
    fixture f = setup("checkpoint_full");
    save(&f, 1, 1);
    for (int limit = 0; limit <= 800000; limit += 200000) {
        pid_t child = fork();
        if (child == 0) {
            lk_error err = {0};
            lk_checkpoint_meta m = meta;
            m.step = 2;
            signal(SIGXFSZ, SIG_IGN);
            struct rlimit r = {(rlim_t)limit, (rlim_t)limit};
            if (setrlimit(RLIMIT_FSIZE, &r)) _exit(9);
            lk_status status = lk_checkpoint_save(f.folder, &m, &f.state, 1, &err);
            exit(status == LK_ERR_IO && strstr(err.message, "step-000002") ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status)) fail_msg("limit %d: the child ended with %x", limit, status);
        lk_arena arena = {0};
        lk_error err = {0};
        char **names;
        size_t n;
        CHECK_OK(lk_folder_list(f.folder, &arena, &names, &n, &err), &err);
        assert_int_equal(n, 1);
        lk_arena_free(&arena);
        expect(&f, 1);
    }
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_newest_valid), cmocka_unit_test(test_any_byte),
                                       cmocka_unit_test(test_keep),         cmocka_unit_test(test_belongs),
                                       cmocka_unit_test(test_eight_bits),   cmocka_unit_test(test_long_recipe),
                                       cmocka_unit_test(test_full_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
