/* Tests of the tests: faults planted in kernels (planted.cu) are found by the emulation and their corrected twins pass under the same
 * schedules; tensor-core tiles against matrix products written out. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/tensor.h"
#include "tests/check.h"
#include "tests/cuda_emu/guard.h"
#include "tests/cuda_emu/planted.h"

enum { THREADS = 128, SEEDS = 8 };

static struct {
    void *module;
    lk_planted_run_function *run;
    lk_status (*runtime)(const char *what, lk_error *err);
    lk_status (*capture)(const char *what, int *sum, lk_error *err);
    lk_status (*late)(int got[2], lk_error *err);
    void (*set_late)(bool late);
    void (*schedule)(uint64_t seed);
    bool (*set_device)(const char *name);
    int64_t (*leaks)(void);
} emu;

static void find(void *function, const char *name)
{
    void *symbol = dlsym(emu.module, name);
    if (!symbol) fail_msg("%s is not in the module", name);
    memcpy(function, &symbol, sizeof symbol);
}

static int load(void **state)
{
    (void)state;
    const char *path = getenv("LK_PLANTED_MODULE");
    if (!path) fail_msg("LK_PLANTED_MODULE wants the path of the module of planted faults; ctest sets it");
    emu.module = dlopen(path, RTLD_NOW);
    if (!emu.module) fail_msg("%s", dlerror());
    find(&emu.run, "lk_planted_run");
    find(&emu.runtime, "lk_planted_runtime");
    find(&emu.late, "lk_planted_late");
    find(&emu.set_late, "lk_emu_set_late");
    find(&emu.capture, "lk_planted_capture");
    find(&emu.schedule, "lk_emu_schedule");
    find(&emu.set_device, "lk_emu_set_device");
    find(&emu.leaks, "lk_emu_leaks");
    return 0;
}

typedef struct numbers {
    int in[4 * THREADS], out[THREADS];
} numbers;

static lk_status run_numbers(numbers *x, const char *kernel, bool mended, uint64_t seed, lk_error *err)
{
    for (int i = 0; i < 4 * THREADS; i++) x->in[i] = 1000 + i * i;
    emu.schedule(seed);
    return emu.run(&(lk_planted){kernel, mended, x->in, sizeof x->in, x->out, sizeof x->out}, err);
}

/* ---- faults that change results */

static void test_orders(void **state)
{
    (void)state;
    static const char *const kernels[] = {"race", "warp_race", "far_ahead", "missing_wait"};
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
        lk_error err = {0};
        numbers first, other;
        int odd = 0, even = 0;
        CHECK_OK(run_numbers(&first, kernels[k], true, 0, &err), &err);
        for (uint64_t seed = 1; seed < SEEDS; seed++) {
            CHECK_OK(run_numbers(&other, kernels[k], true, seed, &err), &err);
            check_same_bits(kernels[k], other.out, first.out, sizeof first.out);
        }
        CHECK_OK(run_numbers(&first, kernels[k], false, 0, &err), &err);
        for (uint64_t seed = 1; seed < SEEDS; seed++) {
            CHECK_OK(run_numbers(&other, kernels[k], false, seed, &err), &err);
            *(seed % 2 ? &odd : &even) += memcmp(other.out, first.out, sizeof first.out) != 0;
        }
        if (!odd || !even)
            fail_msg("%s: %d of the depth-first and %d of the mixed schedules gave another result; each kind should", kernels[k], odd,
                     even);
    }
}

static void test_same_seed_same_bits(void **state)
{
    (void)state;
    lk_error err = {0};
    numbers a, b;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        CHECK_OK(run_numbers(&a, "race", false, seed, &err), &err);
        CHECK_OK(run_numbers(&b, "race", false, seed, &err), &err);
        check_same_bits("a race under one seed", a.out, b.out, sizeof a.out);
    }
}

/* With schedule 0 a copy arrives at its wait and no earlier: poison shows until then. */
static void test_missing_wait(void **state)
{
    (void)state;
    lk_error err = {0};
    numbers x;
    CHECK_OK(run_numbers(&x, "missing_wait", false, 0, &err), &err);
    for (int t = 0; t < THREADS; t++) assert_int_equal(x.out[t], -2); /* poison is -1, not the -7 that was there */
    CHECK_OK(run_numbers(&x, "missing_wait", true, 0, &err), &err);
    for (int t = 0; t < THREADS; t++) assert_int_equal(x.out[t], x.in[4 * ((t + 1) % THREADS)] + x.in[4 * t + 3]);
    CHECK_OK(run_numbers(&x, "zero_filled", false, 0, &err), &err);
    for (int t = 0; t < THREADS; t++) assert_int_equal(x.out[t], t % 2 ? 0 : x.in[4 * t + 1]);
}

/* ---- faults that are reported */

static void test_reports(void **state)
{
    (void)state;
    static const struct {
        const char *kernel, *text;
    } rows[] = {
        {"part_of_a_block", "stuck: 32 of 128 threads wait at the block barrier of "},
        {"part_of_a_block", "96 of 128 threads have returned"},
        {"two_barriers", "divergent barriers: this thread waits at "},
        {"missing_lane", "lanes missing from lk_shuffle of warp 1 at "},
        {"missing_lane", "mask 0x00000002"},
        {"two_operations", "divergent warp: this lane is at "},
        {"misplaced_copy", "the destination is not inside a shared array"},
        {"many_threads", "a block of (2048,1,1) threads"},
        {"much_shared", "65536 bytes of dynamic shared memory; 49152 are allowed"},
        {"host_argument", "argument 2 points to "},
        {"part_of_a_group", "96 of 128 lanes of warp group 0 are at lk_group_mma of "},
        {"never_waited", "it ended before products of a warp group that nothing waited for"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            lk_error err = {0};
            numbers x;
            CHECK_FAILS(run_numbers(&x, rows[i].kernel, false, seed, &err), LK_ERR_INTERNAL, rows[i].text, &err);
            CHECK_FAILS(run_numbers(&x, rows[i].kernel, false, seed, &err), LK_ERR_INTERNAL, rows[i].kernel, &err);
            CHECK_OK(run_numbers(&x, rows[i].kernel, true, seed, &err), &err);
        }
    assert_int_equal(emu.leaks(), 0);
}

#ifdef LK_EMU_ASAN
/* The sanitizer ends the program at the access: in a child. */
static void sanitizer_ends(const char *what, void (*wrong)(const char *what))
{
    pid_t child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        if (nowhere >= 0) dup2(nowhere, STDERR_FILENO);
        wrong(what);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) fail_msg("%s: the sanitizer saw nothing", what);
}

static void wrong_numbers(const char *kernel)
{
    lk_error err = {0};
    numbers x;
    (void)run_numbers(&x, kernel, false, 0, &err);
}

static void wrong_capture(const char *what)
{
    lk_error err = {0};
    int sum = 0;
    (void)emu.capture(what, &sum, &err);
}
#endif

static void test_guards(void **state)
{
    (void)state;
    static const struct {
        const char *kernel, *text;
    } rows[] = {
        {"past_the_end", "guard bytes of a block of 512 bytes of device memory were overwritten 0 bytes past its end"},
        {"before_the_beginning", "guard bytes of a block of 512 bytes of device memory were overwritten 4 bytes before its beginning"},
        {"past_shared", "a write 0 bytes past the end of shared array tile (512 bytes)"},
        {"past_dynamic_shared", "a write 0 bytes past the end of shared array dynamic shared memory (512 bytes)"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_error err = {0};
        numbers x;
        for (uint64_t seed = 0; seed < SEEDS; seed++) CHECK_OK(run_numbers(&x, rows[i].kernel, true, seed, &err), &err);
#ifndef LK_EMU_ASAN
        CHECK_FAILS(run_numbers(&x, rows[i].kernel, false, 0, &err), LK_ERR_INTERNAL, rows[i].text, &err);
        CHECK_OK(run_numbers(&x, rows[i].kernel, true, 0, &err), &err); /* reported once */
#else
        sanitizer_ends(rows[i].kernel, wrong_numbers);
#endif
    }
}

static void test_runtime(void **state)
{
    (void)state;
    lk_error err = {0};
    CHECK_FAILS(emu.runtime("too much memory", &err), LK_ERR_MEMORY, "no room for", &err);
    CHECK_FAILS(emu.runtime("foreign free", &err), LK_ERR_INTERNAL, "which it is not", &err);
    CHECK_FAILS(emu.runtime("free twice", &err), LK_ERR_INTERNAL, "which it is not", &err);
    CHECK_FAILS(emu.runtime("long copy", &err), LK_ERR_INTERNAL, "copying to 64 bytes at offset 0 of a block of 60 bytes", &err);
    assert_int_equal(emu.leaks(), 0);
    CHECK_OK(emu.runtime("leak", &err), &err);
    assert_int_equal(emu.leaks(), 1);
}

/* What a stream may not be told while it captures; and a graph reads memory as it is when it runs. */
static void test_captures(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"host copy", "copying from host memory while a stream captures"},
        {"pinned copy", "copying from host memory while a stream captures"},
        {"copy back", "copying to host memory while a stream captures"},
        {"wait", "waiting for a stream while a stream captures"},
        {"event", "waiting for an event while a stream captures"},
        {"memory", "taking memory while a stream captures"},
        {"host argument", "argument 1 points to "},
        {"open branch", "a stream that branched off was never joined"},
    };
    lk_error err = {0};
    int sum = 0;
#ifndef LK_EMU_ASAN
    CHECK_FAILS(emu.capture("freed memory", &sum, &err), LK_ERR_INTERNAL, "which is not memory of the device", &err);
#else
    sanitizer_ends("freed memory", wrong_capture);
#endif
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_FAILS(emu.capture(rows[i][0], &sum, &err), LK_ERR_INTERNAL, rows[i][1], &err);
        CHECK_OK(emu.capture("nothing", &sum, &err), &err); /* nothing stays behind */
        assert_int_equal(sum, 2 * (1 + 2 + 3));
    }
    CHECK_OK(emu.capture("branch", &sum, &err), &err);
    assert_int_equal(sum, 2 * (1 + 2 + 3));
    CHECK_OK(emu.capture("late join", &sum, &err), &err); /* a branch comes as late as it may: the sum misses the copy */
    assert_int_equal(sum, (1 + 0) + (2 + 1) + (3 + 2));
    assert_int_equal(emu.leaks(), 0);
}

/* Streams that are late show host memory that was written before it was read. */
static void test_late(void **state)
{
    (void)state;
    lk_error err = {0};
    int got[2];
    for (int late = 0; late < 2; late++) {
        emu.set_late(late);
        CHECK_OK(emu.late(got, &err), &err);
        assert_int_equal(got[0], late ? 2 : 1);
        assert_int_equal(got[1], 3);
    }
    int sum = 0;
    CHECK_OK(emu.capture("nothing", &sum, &err), &err);
    assert_int_equal(sum, 2 * (1 + 2 + 3));
    emu.set_late(false);
    assert_int_equal(emu.leaks(), 0);
}

/* ---- what a correct kernel computes */

static void test_indices(void **state)
{
    (void)state;
    lk_error err = {0};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        int in[64], out[12], sum = 0;
        for (int i = 0; i < 64; i++) sum += in[i] = i * i + 3;
        emu.schedule(seed);
        CHECK_OK(emu.run(&(lk_planted){"indices", true, in, sizeof in, out, sizeof out}, &err), &err);
        for (int b = 0; b < 12; b++) assert_int_equal(out[b], sum * (b + 1));
    }
}

static void test_product(void **state)
{
    (void)state;
    lk_error err = {0};
    check_random r = {7};
    uint16_t in[512];
    float values[512], out[256];
    for (int i = 0; i < 512; i++) {
        values[i] = (float)(int)(check_random_u64(&r) % 65) - 32.0f; /* sums stay exact: any order gives these bits */
        in[i] = lk_f32_to_bf16(values[i]);
    }
    for (int mended = 0; mended < 2; mended++) {
        CHECK_OK(emu.run(&(lk_planted){"product", mended, in, sizeof in, out, sizeof out}, &err), &err);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                float want = 1.0f;
                for (int k = 0; k < 16; k++) want += values[i * 16 + k] * values[256 + k * 16 + j];
                if (mended && out[i * 16 + j] != want)
                    fail_msg("d[%d,%d] is %g, the product is %g", i, j, (double)out[i * 16 + j], (double)want);
            }
    }
}

/* Products of a warp group: what a right kernel computes, and what each fault shows. */
enum { GROUP_IN = 64 * 32 + 64 * 64, GROUP_OUT = 64 * 64 };

typedef struct group_numbers {
    uint16_t in[GROUP_IN];
    float values[GROUP_IN], out[GROUP_OUT];
} group_numbers;

static lk_status run_group(group_numbers *x, const char *kernel, uint64_t seed, lk_error *err)
{
    check_random r = {17};
    for (int i = 0; i < GROUP_IN; i++) {
        x->values[i] = (float)(int)(check_random_u64(&r) % 65) - 32.0f; /* exact in any order */
        x->in[i] = lk_f32_to_bf16(x->values[i]);
    }
    emu.schedule(seed);
    return emu.run(&(lk_planted){kernel, true, x->in, sizeof x->in, x->out, sizeof x->out}, err);
}

/* Rows of d that are what the product says. */
static int right_rows(const group_numbers *x)
{
    int right = 0;
    for (int i = 0; i < 64; i++) {
        int same = 0;
        for (int j = 0; j < 64; j++) {
            float want = 0.0f;
            for (int k = 0; k < 32; k++) want += x->values[i * 32 + k] * x->values[64 * 32 + j * 64 + k];
            same += x->out[i * 64 + j] == want;
        }
        right += same == 64;
    }
    return right;
}

static void test_group_product(void **state)
{
    (void)state;
    static const struct {
        const char *kernel, *text; /* NULL: wrong numbers, under some seed */
    } faults[] = {
        {"early_a", "registers of a changed while a product read them"},
        {"no_group_fence", "has not called lk_group_fence since it began or waited"},
        {"no_proxy_fence", "has not called lk_proxy_fence and passed a barrier since"},
        {"no_group_barrier", "has not called lk_proxy_fence and passed a barrier since"},
        {"no_group_wait", NULL},
        {"no_commit", NULL},
        {"rows_moved", NULL},
        {"b_changed", NULL},
    };
    group_numbers x;
    lk_error err = {0};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        CHECK_OK(run_group(&x, "group_product", seed, &err), &err);
        assert_int_equal(right_rows(&x), 64);
    }
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        int wrong = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            lk_status status = run_group(&x, faults[i].kernel, seed, &err);
            if (faults[i].text) CHECK_FAILS(status, LK_ERR_INTERNAL, faults[i].text, &err);
            wrong += status || right_rows(&x) < 64;
        }
        if (!wrong) fail_msg("%s: no schedule shows it", faults[i].kernel);
        CHECK_OK(run_group(&x, "group_product", 1, &err), &err); /* nothing stays behind */
    }
    emu.set_device("sm_86");
    CHECK_FAILS(run_group(&x, "group_product", 0, &err), LK_ERR_INTERNAL, "on sm_86, which has none", &err);
    assert_false(emu.set_device("sm_10"));
    assert_true(emu.set_device("sm_90"));
    CHECK_OK(run_group(&x, "group_product", 0, &err), &err);
    assert_int_equal(emu.leaks(), 0);
}

/* Lane l, tile i: row l/4, columns 2(l%4) and the next; transposed, the other way round. */
static void test_tiles(void **state)
{
    (void)state;
    lk_error err = {0};
    uint16_t in[256];
    uint32_t out[256];
    for (int i = 0; i < 256; i++) in[i] = (uint16_t)(0x100 + i);
    CHECK_OK(emu.run(&(lk_planted){"tiles", true, in, sizeof in, out, sizeof out}, &err), &err);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            const uint16_t *m = in + 64 * i;
            int g = l / 4, t = 2 * (l % 4);
            assert_int_equal(out[4 * l + i], (uint32_t)m[8 * g + t] | (uint32_t)m[8 * g + t + 1] << 16);
            assert_int_equal(out[128 + 4 * l + i], (uint32_t)m[8 * t + g] | (uint32_t)m[8 * (t + 1) + g] << 16);
        }
    CHECK_FAILS(emu.run(&(lk_planted){"tiles", false, in, sizeof in, out, sizeof out}, &err), LK_ERR_INTERNAL, "wants 16-byte alignment",
                &err);
}

static void test_rounding(void **state)
{
    (void)state;
    lk_error err = {0};
    check_random r = {11};
    uint32_t bits[2 * THREADS] = {0x7f800000, 0xff800000, 0x7f7fffff, 0x00000001, 0x3f808000,
                                  0x3f818000, 0x7fc00001, 0xff800001, 0x80000000};
    uint32_t out[THREADS];
    for (int i = 9; i < 2 * THREADS; i++) bits[i] = (uint32_t)check_random_u64(&r);
    CHECK_OK(emu.run(&(lk_planted){"round_pairs", true, bits, sizeof bits, out, sizeof out}, &err), &err);
    for (int i = 0; i < 2 * THREADS; i++) {
        float f;
        memcpy(&f, &bits[i], 4);
        uint16_t got = (uint16_t)(out[i / 2] >> (i % 2 * 16)), want = f == f ? lk_f32_to_bf16(f) : 0x7fff;
        if (got != want) fail_msg("0x%08x rounds to 0x%04x, not 0x%04x", bits[i], got, want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),       cmocka_unit_test(test_same_seed_same_bits),
        cmocka_unit_test(test_missing_wait), cmocka_unit_test(test_reports),
        cmocka_unit_test(test_guards),       cmocka_unit_test(test_indices),
        cmocka_unit_test(test_product),      cmocka_unit_test(test_group_product),
        cmocka_unit_test(test_tiles),        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_captures),     cmocka_unit_test(test_late),
        cmocka_unit_test(test_runtime), /* last: it leaks */
    };
    return cmocka_run_group_tests(tests, load, NULL);
}
