#include "tests/check.h"

#include <errno.h>
#include <math.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"

void check_fails(lk_status got, lk_status want, const char *text, const lk_error *err, const char *expression, const char *file, int line)
{
    if (got == want && strstr(err->message, text)) return;
    fail_msg("%s:%d: %s gave %s '%s'; wanted %s with '%s'", file, line, expression, lk_status_name(got), got ? err->message : "",
             lk_status_name(want), text);
}

void check_close(const char *what, const float *got, const float *want, int64_t n, double absolute, double relative)
{
    int64_t first = -1, worst = -1;
    double worst_ratio = 1.0;
    for (int64_t i = 0; i < n; i++) {
        double limit = absolute + relative * fabs((double)want[i]);
        double difference = fabs((double)got[i] - (double)want[i]);
        if (difference <= limit) continue; /* a NaN fails this comparison and is counted */
        if (first < 0) first = worst = i;
        double ratio = limit > 0 ? difference / limit : INFINITY;
        if (ratio > worst_ratio) {
            worst_ratio = ratio;
            worst = i;
        }
    }
    if (first >= 0)
        fail_msg("%s: first at [%lld] got %.9g want %.9g; worst at [%lld] got %.9g want %.9g (allowed %.3g + %.3g relative)", what,
                 (long long)first, (double)got[first], (double)want[first], (long long)worst, (double)got[worst], (double)want[worst],
                 absolute, relative);
}

void check_same_bits(const char *what, const void *got, const void *want, size_t bytes)
{
    const unsigned char *a = got, *b = want;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i]) fail_msg("%s: byte %zu of %zu differs: got 0x%02x want 0x%02x", what, i, bytes, a[i], b[i]);
}

uint64_t check_random_u64(check_random *r)
{
    uint64_t x = r->state ? r->state : 0x9e3779b97f4a7c15u;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    r->state = x;
    return x * 0x2545f4914f6cdd1du;
}

double check_random_uniform(check_random *r) { return (double)(check_random_u64(r) >> 11) * 0x1p-53; }

float check_random_normal(check_random *r)
{
    double u = check_random_uniform(r) + 1e-12, v = check_random_uniform(r);
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

void check_random_fill(check_random *r, float *out, int64_t n, float scale)
{
    for (int64_t i = 0; i < n; i++) out[i] = scale * check_random_normal(r);
}

/* Empty counts as unset. */
static const char *from_environment(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

const char *check_source_folder(void) { return from_environment("LK_SOURCE_DIR", LK_SOURCE_DIR); }
const char *check_build_folder(void) { return from_environment("LK_BINARY_DIR", LK_BINARY_DIR); }

static char *joined(const char *root, const char *folder, const char *name)
{
    size_t size = strlen(root) + strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    assert_non_null(path);
    snprintf(path, size, "%s%s/%s", root, folder, name);
    return path;
}

char *check_temporary(const char *name)
{
    lk_error err = {0};
    char *all = joined(check_build_folder(), "/tests/tmp", program_invocation_short_name), *path = joined(all, "", name);
    free(all);
    CHECK_OK(lk_folder_remove(path, &err), &err);
    CHECK_OK(lk_folder_create(path, &err), &err);
    return path;
}

void check_write_file(const char *path, const void *bytes, size_t size)
{
    lk_error err = {0};
    CHECK_OK(lk_file_replace(path, bytes, size, &err), &err);
}

char *check_golden(const char *name) { return joined(check_source_folder(), "/tests/golden", name); }

char *check_shared(const char *name)
{
    const char *root = getenv("LK_SHARED");
    char *path = root ? joined(root, "", name) : joined(check_source_folder(), "/../shared", name);
    if (lk_path_exists(path)) return path;
    printf("skipped: %s is not here (set LK_SHARED)\n", path);
    free(path);
    return NULL;
}

void check_make_key(const char *folder, const char *name, char *private_path, char *public_path)
{
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_id(EVP_PKEY_ED25519, NULL);
    assert_true(EVP_PKEY_keygen_init(context) == 1 && EVP_PKEY_keygen(context, &key) == 1);
    snprintf(private_path, 4200, "%s/%s.pem", folder, name);
    snprintf(public_path, 4200, "%s/%s.pub", folder, name);
    FILE *f = fopen(private_path, "w");
    assert_true(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1);
    fclose(f);
    f = fopen(public_path, "w");
    assert_true(f && PEM_write_PUBKEY(f, key) == 1);
    fclose(f);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(context);
}

size_t check_count_files(const char *folder)
{
    lk_arena arena = {0};
    char **names;
    size_t n = 0;
    lk_folder_list(folder, &arena, &names, &n, NULL);
    lk_arena_free(&arena);
    return n;
}
