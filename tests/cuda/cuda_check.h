/* What the tests of the CUDA backend share. A test states an operation once, as a function that runs on any backend, and a row of cases:
 *
 *     static void run(lk_backend *be, const void *the_case, outcome *o)
 *     {
 *         const norm_case *c = the_case;
 *         device_tensor x = device_from(be, lk_backend_act(be), c->rows, c->cols, c->gap, values), y = device_make(be, ...);
 *         OP(be, lk_rmsnorm(be, &y.t, NULL, &x.t, weight, 1e-5f));
 *         outcome_add(o, "y", &y, 1e-2);                     -- reads it back, checks its guards, frees it
 *         device_free(&x);                                   -- checks the guards of what was only read, too
 *     }
 *     CUDA_TEST: check_on_cuda("rmsnorm", run, &cases[i]);
 *
 * check_on_cuda runs it on the CPU's fp32 reference and on the CUDA backend, where on the emulation it runs under several schedules of
 * threads and blocks: these must agree bit for bit with each other, and within the stated tolerance with the reference. Inputs are rounded
 * to bf16 on both sides, so that only the operation's own rounding counts.
 *
 * The backend is whatever module `--device cuda` finds: on this build's tests LK_CUDA_MODULE names the emulation; on a machine with a
 * GPU the same programs run on it. */
#ifndef LK_TESTS_CUDA_CUDA_CHECK_H
#define LK_TESTS_CUDA_CUDA_CHECK_H

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>

#include "tests/cuda_emu/counts.h"
#include "tests/kernels/ops_check.h"

/* ---- backends */

static inline lk_backend *open_cuda(const lk_limits *limits)
{
    lk_error err = {0};
    lk_backend *be;
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cuda", .compute = LK_BF16}, &err), &err);
    CHECK_OK(lk_reserve(be, limits), lk_backend_error(be));
    return be;
}

/* The emulation's control, or NULL on a real GPU. */
static inline void *emulation_symbol(const char *name)
{
    const char *path = getenv("LK_CUDA_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : NULL;
    return module ? dlsym(module, name) : NULL;
}

/* Which order threads and blocks take from now on; false where there is no choosing. */
static inline bool set_schedule(uint64_t seed)
{
    void (*schedule)(uint64_t);
    void *symbol = emulation_symbol("lk_emu_schedule");
    memcpy(&schedule, &symbol, sizeof symbol); /* POSIX's way round the missing conversion */
    if (schedule) schedule(seed);
    return schedule != NULL;
}

/* What the emulated device presents itself as to backends opened from now on (tests/cuda_emu/control.h); false on a real GPU. */
static inline bool set_device(const char *name)
{
    bool (*set)(const char *);
    void *symbol = emulation_symbol("lk_emu_set_device");
    memcpy(&set, &symbol, sizeof symbol);
    return set && set(name);
}

/* Kernels launched so far; 0 on a real GPU. */
static inline int64_t kernels_launched(void)
{
    void (*get)(lk_emu_counts *);
    void *symbol = emulation_symbol("lk_emu_get_counts");
    memcpy(&get, &symbol, sizeof symbol);
    lk_emu_counts counts = {0};
    if (get) get(&counts);
    return counts.kernels;
}

/* ---- tensors in a backend's memory, with a pattern round and between their rows */

typedef struct device_tensor {
    lk_backend *be;
    const char *what;
    void *memory;
    int64_t elements; /* of the whole block */
    lk_tensor t;
} device_tensor;

enum { DEVICE_GUARD = 64 }; /* elements; keeps the first row 16-byte aligned */

static inline float round_bf16(float x) { return lk_bf16_to_f32(lk_f32_to_bf16(x)); }

/* The pattern is a NaN in both types: reading it shows as well. */
static inline void *pattern_block(lk_dtype type, int64_t elements)
{
    void *host = malloc((size_t)elements * 4);
    assert_non_null(host);
    for (int64_t i = 0; i < elements; i++) {
        if (type == LK_BF16)
            ((uint16_t *)host)[i] = 0x7fc1;
        else
            memcpy((float *)host + i, &guard_bits, 4);
    }
    return host;
}

static inline void device_write(device_tensor *d, const float *values)
{
    void *host = pattern_block(d->t.type, d->elements);
    for (int64_t r = 0; values && r < d->t.rows; r++)
        for (int64_t c = 0; c < d->t.cols; c++) {
            int64_t at = DEVICE_GUARD + r * d->t.stride + c;
            if (d->t.type == LK_BF16)
                ((uint16_t *)host)[at] = lk_f32_to_bf16(values[r * d->t.cols + c]);
            else
                ((float *)host)[at] = values[r * d->t.cols + c];
        }
    OP(d->be, lk_upload(d->be, d->memory, host, (size_t)(d->elements * lk_dtype_size(d->t.type))));
    free(host);
}

/* type: LK_F32 or LK_BF16; `gap` elements lie between rows. Filled with the pattern. */
static inline device_tensor device_make(lk_backend *be, lk_dtype type, int64_t rows, int64_t cols, int64_t gap)
{
    device_tensor d = {.be = be, .what = "a tensor", .elements = rows * (cols + gap) + 2 * DEVICE_GUARD};
    OP(be, lk_alloc(be, (size_t)(d.elements * lk_dtype_size(type)), &d.memory));
    d.t = lk_tensor_make((char *)d.memory + DEVICE_GUARD * lk_dtype_size(type), type, rows, cols);
    d.t.stride = cols + gap;
    device_write(&d, NULL);
    return d;
}

/* With values[rows*cols], rounded to bf16 whatever the type, so that every backend starts from the same numbers. */
static inline device_tensor device_from(lk_backend *be, lk_dtype type, int64_t rows, int64_t cols, int64_t gap, const float *values)
{
    device_tensor d = device_make(be, type, rows, cols, gap);
    float *rounded = malloc((size_t)(rows * cols + 1) * sizeof(float));
    assert_non_null(rounded);
    for (int64_t i = 0; i < rows * cols; i++) rounded[i] = round_bf16(values[i]);
    device_write(&d, rounded);
    free(rounded);
    return d;
}

/* With random values of this seed and scale. */
static inline device_tensor device_random(lk_backend *be, lk_dtype type, int64_t rows, int64_t cols, int64_t gap, uint64_t seed,
                                          float scale)
{
    float *values = random_floats(seed, rows * cols, scale);
    device_tensor d = device_from(be, type, rows, cols, gap, values);
    free(values);
    return d;
}

/* The same without rounding: weights, statistics, optimiser states, which are F32 everywhere. */
static inline device_tensor device_exact(lk_backend *be, int64_t rows, int64_t cols, const float *values)
{
    device_tensor d = device_make(be, LK_F32, rows, cols, 0);
    device_write(&d, values);
    return d;
}

static inline float *device_f32(const device_tensor *d) { return d->t.data; }

/* The values, without gaps; the caller frees. Fails the test where the pattern was touched. */
static inline float *device_values(const char *what, const device_tensor *d)
{
    int64_t size = lk_dtype_size(d->t.type);
    char *host = malloc((size_t)(d->elements * size));
    float *out = malloc((size_t)(d->t.rows * d->t.cols + 1) * sizeof(float));
    assert_true(host && out);
    OP(d->be, lk_download(d->be, host, d->memory, (size_t)(d->elements * size)));
    void *pattern = pattern_block(d->t.type, 1);
    for (int64_t i = 0; i < d->elements; i++) {
        int64_t at = i - DEVICE_GUARD, row = at / d->t.stride, column = at % d->t.stride;
        if (at >= 0 && row < d->t.rows && column < d->t.cols)
            lk_to_f32(&out[row * d->t.cols + column], host + i * size, d->t.type, 1);
        else if (memcmp(host + i * size, pattern, (size_t)size) != 0)
            fail_msg("%s: wrote outside its rows, at element %lld of row %lld", what, (long long)column, (long long)row);
    }
    free(pattern);
    free(host);
    return out;
}

/* Checks the guards and frees. */
static inline void device_free(device_tensor *d)
{
    free(device_values(d->what, d));
    lk_free(d->be, d->memory);
    d->memory = NULL;
}

/* ---- outcomes */

enum { MAX_RESULTS = 16 };

typedef struct outcome_part {
    const char *name;
    float *values;
    int64_t n;
    double tolerance;
} outcome_part;

typedef struct outcome {
    outcome_part parts[MAX_RESULTS];
    int n;
} outcome;

/* values is taken over and freed with the outcome. */
static inline void outcome_take(outcome *o, const char *name, float *values, int64_t n, double tolerance)
{
    assert_true(o->n < MAX_RESULTS);
    o->parts[o->n++] = (outcome_part){name, values, n, tolerance};
}

static inline void outcome_add(outcome *o, const char *name, device_tensor *d, double tolerance)
{
    outcome_take(o, name, device_values(name, d), d->t.rows * d->t.cols, tolerance);
    lk_free(d->be, d->memory);
    d->memory = NULL;
}

static inline void outcome_clear(outcome *o)
{
    for (int i = 0; i < o->n; i++) free(o->parts[i].values);
    o->n = 0;
}

/* Every |got - want| <= tolerance * (|want| + root mean square of want): relative, but not to values that are small by cancellation. */
static inline void check_relative(const char *op, const outcome_part *got, const outcome_part *want)
{
    assert_int_equal(got->n, want->n);
    double squares = 0.0;
    for (int64_t i = 0; i < want->n; i++) squares += (double)want->values[i] * (double)want->values[i];
    double rms = want->n ? sqrt(squares / (double)want->n) : 0.0;
    for (int64_t i = 0; i < want->n; i++) {
        double g = (double)got->values[i], w = (double)want->values[i];
        if (!(fabs(g - w) <= want->tolerance * (fabs(w) + rms)) && !(isinf(g) && g == w))
            fail_msg("%s: %s[%lld] is %.8g, the reference says %.8g (root mean square %.3g, tolerance %.3g)", op, got->name, (long long)i,
                     g, w, rms, want->tolerance);
    }
}

typedef void run_function(lk_backend *be, const void *the_case, outcome *o);

enum { N_SCHEDULES = 3 };

/* With limits of the caller, for what test_limits do not fit. */
static inline void check_on_cuda_within(const lk_limits *limits, const char *op, run_function *run, const void *the_case)
{
    lk_error err = {0};
    lk_backend *reference;
    lk_status status =
        lk_backend_open(&reference, &(lk_backend_options){.device = "cpu", .compute = LK_F32, .cpu_tier = "reference"}, &err);
    CHECK_OK(status, &err);
    CHECK_OK(lk_reserve(reference, limits), lk_backend_error(reference));
    lk_backend *cuda = open_cuda(limits);
    outcome want = {0}, first = {0};
    run(reference, the_case, &want);
    for (uint64_t seed = 0; seed < N_SCHEDULES; seed++) {
        outcome got = {0};
        bool more = set_schedule(seed);
        run(cuda, the_case, &got);
        assert_int_equal(got.n, want.n);
        for (int i = 0; i < got.n; i++) {
            if (seed == 0)
                check_relative(op, &got.parts[i], &want.parts[i]);
            else
                check_same_bits(got.parts[i].name, got.parts[i].values, first.parts[i].values, (size_t)got.parts[i].n * sizeof(float));
        }
        if (seed == 0)
            first = got;
        else
            outcome_clear(&got);
        if (!more) break; /* a real GPU chooses its own order; running twice there is what the determinism tests do */
    }
    outcome_clear(&first);
    outcome_clear(&want);
    OP(cuda, lk_sync(cuda));
    lk_backend_close(cuda);
    lk_backend_close(reference);
}

static inline void check_on_cuda(const char *op, run_function *run, const void *the_case)
{
    lk_limits limits = test_limits;
    limits.matrix = limits.width * limits.width;
    check_on_cuda_within(&limits, op, run, the_case);
}

#endif
