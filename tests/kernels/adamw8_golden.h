/* Recorded steps of 8-bit AdamW (tests/golden/adamw8.safetensors), for any backend: the rule bit for bit, and one step of each of
 * bitsandbytes' own states.
 *
 *     adamw8_golden g = adamw8_golden_open();
 *     check_adamw8_rule(&g, be); check_adamw8_library(&g, be);
 *     adamw8_golden_close(&g);
 */
#ifndef LK_TESTS_KERNELS_ADAMW8_GOLDEN_H
#define LK_TESTS_KERNELS_ADAMW8_GOLDEN_H

#include "data/safetensors.h"
#include "kernels/dynamic_map.h"
#include "tests/kernels/ops_check.h"

enum { GOLDEN_STEPS = 5 };

typedef struct adamw8_golden {
    lk_safetensors *st;
    int64_t n, blocks;
} adamw8_golden;

/* The four arrays of an optimiser beside the parameters; in host memory, or in a backend's. */
typedef struct adamw8_arrays {
    float *p, *m_scale, *v_scale;
    uint8_t *m8, *v8;
} adamw8_arrays;

static const lk_adamw_step golden_lib = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.995f, .eps = 1e-8f, .grad_scale = 1.0f};
static const lk_adamw_step golden_rule = {
    .lr = 3e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .grad_scale = 0.7f};

static inline const lk_st_tensor *golden_find(const adamw8_golden *g, const char *prefix, const char *name)
{
    char key[40];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    const lk_st_tensor *t = lk_safetensors_find(g->st, key);
    if (!t) fail_msg("adamw8.safetensors has no %s", key);
    return t;
}

static inline void *golden_copy(const lk_st_tensor *t)
{
    void *out = malloc((size_t)t->n_bytes);
    assert_non_null(out);
    return memcpy(out, t->data, (size_t)t->n_bytes);
}

static inline adamw8_golden adamw8_golden_open(void)
{
    adamw8_golden g = {0};
    lk_error err = {0};
    char *path = check_golden("adamw8.safetensors");
    CHECK_OK(lk_safetensors_open(&g.st, path, &err), &err);
    free(path);
    g.n = golden_find(&g, "", "p0")->n_elements;
    g.blocks = (g.n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    assert_int_equal(golden_find(&g, "", "g")->n_elements, GOLDEN_STEPS * g.n);
    return g;
}

static inline void adamw8_golden_close(adamw8_golden *g) { lk_safetensors_close(g->st); }

static inline void *on_backend(lk_backend *be, const void *host, int64_t bytes)
{
    void *out;
    OP(be, lk_alloc(be, (size_t)bytes + 1, &out));
    if (bytes) OP(be, lk_upload(be, out, host, (size_t)bytes));
    return out;
}

static inline void *on_host(lk_backend *be, const void *device, int64_t bytes)
{
    size_t size = bytes > 0 ? (size_t)bytes : 0;
    void *out = malloc(size + 1);
    assert_non_null(out);
    if (size) OP(be, lk_download(be, out, device, size));
    return out;
}

static inline adamw8_arrays arrays_upload(lk_backend *be, const adamw8_arrays *a, int64_t n)
{
    int64_t blocks = (n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    return (adamw8_arrays){.p = on_backend(be, a->p, n * 4),
                           .m_scale = on_backend(be, a->m_scale, blocks * 4),
                           .v_scale = on_backend(be, a->v_scale, blocks * 4),
                           .m8 = on_backend(be, a->m8, n),
                           .v8 = on_backend(be, a->v8, n)};
}

static inline adamw8_arrays arrays_download(lk_backend *be, const adamw8_arrays *a, int64_t n)
{
    int64_t blocks = (n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    return (adamw8_arrays){.p = on_host(be, a->p, n * 4),
                           .m_scale = on_host(be, a->m_scale, blocks * 4),
                           .v_scale = on_host(be, a->v_scale, blocks * 4),
                           .m8 = on_host(be, a->m8, n),
                           .v8 = on_host(be, a->v8, n)};
}

static inline void arrays_free(adamw8_arrays *a)
{
    void *all[] = {a->p, a->m_scale, a->v_scale, a->m8, a->v8};
    for (int i = 0; i < 5; i++) free(all[i]);
}

static inline void arrays_free_on(lk_backend *be, adamw8_arrays *a)
{
    void *all[] = {a->p, a->m_scale, a->v_scale, a->m8, a->v8};
    for (int i = 0; i < 5; i++) lk_free(be, all[i]);
}

/* The state that the file has under this prefix. */
static inline adamw8_arrays golden_state(const adamw8_golden *g, const char *prefix)
{
    return (adamw8_arrays){.p = golden_copy(golden_find(g, prefix, "p")),
                           .m_scale = golden_copy(golden_find(g, prefix, "m_scale")),
                           .v_scale = golden_copy(golden_find(g, prefix, "v_scale")),
                           .m8 = golden_copy(golden_find(g, prefix, "m8")),
                           .v8 = golden_copy(golden_find(g, prefix, "v8"))};
}

static inline void arrays_same(const char *what, const adamw8_arrays *got, const adamw8_arrays *want, int64_t n)
{
    char name[80];
    size_t scales = (size_t)((n + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK) * 4;
    const void *a[] = {got->m_scale, got->v_scale, got->m8, got->v8, got->p},
               *b[] = {want->m_scale, want->v_scale, want->m8, want->v8, want->p};
    const char *const parts[] = {"m_scale", "v_scale", "m8", "v8", "p"};
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "%s: %s", what, parts[i]);
        check_same_bits(name, a[i], b[i], i < 2 ? scales : i < 4 ? (size_t)n : (size_t)n * 4);
    }
}

/* One call on the backend; *a is in its memory. */
static inline void golden_step(lk_backend *be, const adamw8_arrays *a, const float *g, int64_t n, lk_adamw_step step, int number)
{
    float *gradient = on_backend(be, g, n * 4);
    step.step = number;
    OP(be, lk_adamw8(be, a->p, gradient, a->m8, a->v8, a->m_scale, a->v_scale, n, &step));
    OP(be, lk_sync(be));
    lk_free(be, gradient);
}

/* All steps of the rule from zero moments. */
static inline void check_adamw8_rule(const adamw8_golden *g, lk_backend *be)
{
    adamw8_arrays start = golden_state(g, "lib0."), a;
    float *gradients = golden_copy(golden_find(g, "", "g_rule"));
    a = arrays_upload(be, &start, g->n);
    for (int k = 1; k <= GOLDEN_STEPS; k++) {
        char prefix[20];
        snprintf(prefix, sizeof prefix, "rule%d.", k);
        golden_step(be, &a, gradients + (k - 1) * g->n, g->n, golden_rule, k);
        adamw8_arrays got = arrays_download(be, &a, g->n), want = golden_state(g, prefix);
        arrays_same(prefix, &got, &want, g->n);
        arrays_free(&got);
        arrays_free(&want);
    }
    arrays_free_on(be, &a);
    arrays_free(&start);
    free(gradients);
}

/* The library's CPU backend finds codes through a grid of 65536 points, which moves a code by one, or by less than the grid where the map
 * is finer than it. A block of zeros may have any codes. */
static inline void check_codes(const char *what, const uint8_t *got, const uint8_t *want, const float *scale, const float *map, int64_t n)
{
    int64_t other = 0, coded = 0;
    for (int64_t i = 0; i < n; i++) {
        if (scale[i / LK_ADAMW8_BLOCK] == 0.0f) continue;
        coded++;
        other += got[i] != want[i];
        if (abs(got[i] - want[i]) > 1 && fabsf(map[got[i]] - map[want[i]]) > 4e-5f)
            fail_msg("%s[%lld]: code %d, the library's is %d", what, (long long)i, got[i], want[i]);
    }
    if (strcmp(what, "m8") == 0) assert_true(other * 10 < coded); /* of v, many are smaller than the grid */
}

static inline void check_adamw8_library(const adamw8_golden *g, lk_backend *be)
{
    float *gradients = golden_copy(golden_find(g, "", "g"));
    for (int k = 0; k < GOLDEN_STEPS; k++) {
        char before[20], after[20];
        snprintf(before, sizeof before, "lib%d.", k);
        snprintf(after, sizeof after, "lib%d.", k + 1);
        adamw8_arrays start = golden_state(g, before), want = golden_state(g, after), a = arrays_upload(be, &start, g->n);
        golden_step(be, &a, gradients + k * g->n, g->n, golden_lib, k + 1);
        adamw8_arrays got = arrays_download(be, &a, g->n);
        check_close("p after a step from the library's state", got.p, want.p, g->n, 1e-7, 1e-6);
        check_close("scales of m", got.m_scale, want.m_scale, g->blocks, 0.0, 1e-6);
        check_close("scales of v", got.v_scale, want.v_scale, g->blocks, 0.0, 1e-6);
        check_codes("m8", got.m8, want.m8, want.m_scale, lk_dynamic_map(), g->n);
        check_codes("v8", got.v8, want.v8, want.v_scale, lk_dynamic_map_unsigned(), g->n);
        arrays_free_on(be, &a);
        arrays_free(&start);
        arrays_free(&want);
        arrays_free(&got);
    }
    free(gradients);
}

#endif
