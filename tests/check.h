/* What every test shares: cmocka, deterministic random data, comparison that prints where and by how much, temporary
 * folders, and the place of golden files and of the data that is not in the tree. */
#ifndef LK_TESTS_CHECK_H
#define LK_TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/status.h"

/* Fails the test with the error's message. */
#define CHECK_OK(expression, err)                                                                \
    do {                                                                                         \
        lk_status check_ = (expression);                                                         \
        if (check_) fail_msg("%s: %s: %s", #expression, lk_status_name(check_), (err)->message); \
    } while (0)

/* The expression must fail with this status and its message contain the text. */
#define CHECK_FAILS(expression, want, text, err) check_fails((expression), (want), (text), (err), #expression, __FILE__, __LINE__)
void check_fails(lk_status got, lk_status want, const char *text, const lk_error *err, const char *expression, const char *file, int line);

/* |got - want| <= absolute + relative * |want| for all n; prints the seed-independent first offender and the worst. */
void check_close(const char *what, const float *got, const float *want, int64_t n, double absolute, double relative);
/* Bit for bit. */
void check_same_bits(const char *what, const void *got, const void *want, size_t bytes);

/* xorshift: the same numbers on every machine. */
typedef struct check_random {
    uint64_t state;
} check_random;
uint64_t check_random_u64(check_random *r);
double check_random_uniform(check_random *r); /* [0,1) */
float check_random_normal(check_random *r);
void check_random_fill(check_random *r, float *out, int64_t n, float scale);

/* Where the sources (golden files, recipes) and the build (the program, temporary folders) are: those of the build that this test came
 * from, or what the environment's LK_SOURCE_DIR and LK_BINARY_DIR say, as in a bundle. */
const char *check_source_folder(void);
const char *check_build_folder(void);

/* A fresh empty folder of this program's under the build's test folder, removed and remade: programs may run side by side. free(). */
char *check_temporary(const char *name);
/* Files and folders in a folder. */
size_t check_count_files(const char *folder);
void check_write_file(const char *path, const void *bytes, size_t size);

/* NAME.pem and NAME.pub of a new Ed25519 key in the folder; their paths, of at most 4200 bytes, into the last two. */
void check_make_key(const char *folder, const char *name, char *private_path, char *public_path);

/* tests/golden/NAME; the caller frees. */
char *check_golden(const char *name);
/* A file of the shared data (LK_SHARED or ../shared), or NULL after printing that the test is skipped without it. */
char *check_shared(const char *name);

#endif
