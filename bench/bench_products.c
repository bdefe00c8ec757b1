/* Products with an NF4 matrix: forward and input gradient, from one token to a training batch, every tier of this machine, against the
 * machine's ceilings and other libraries in the same run.
 *
 *     bench_products [--threads N] [--tier T] [--shape N,K] [--rows M] [--compute bf16|f32] [--peers] [--seconds S]
 *
 * GB/s count the nibbles and scales of the matrix once (what memory must deliver), GFLOP/s 2*M*N*K. "of ceiling" is of read bandwidth
 * while M is small and of the arithmetic peak of the tier's own instruction otherwise, whichever bound is nearer. Matrices are rotated
 * so that they come from memory, as the layers of a model do. Each product is first checked against fp64. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/ceilings.h"
#include "bench/peers.h"
#include "kernels/cpu/features.h"
#include "kernels/nf4.h"
#include "kernels/ops.h"

typedef struct settings {
    int threads;
    const char *tier;
    int64_t n, k, rows;
    double seconds;
    bool peers;
    lk_dtype compute;
} settings;

typedef struct ceilings {
    double read, f32_avx2, f32, dpbf16, amx;
} ceilings;

/* N, K: the projections of a 100M, a 1B and an 8B model */
static const int64_t shapes[][2] = {{768, 768},   {2048, 768},  {768, 2048},  {2048, 2048},
                                    {8192, 2048}, {2048, 8192}, {4096, 4096}, {14336, 4096}};
static const int64_t row_counts[] = {1, 2, 4, 8, 12, 16, 32, 128, 512, 2048};
enum {
    SHAPES = sizeof shapes / sizeof *shapes,
    ROW_COUNTS = sizeof row_counts / sizeof *row_counts,
    ROTATE_BYTES = 160 << 20,
    MOST_COPIES = 256
};

static uint64_t random_state = 88172645463325252ull;
static float noise(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)((double)(random_state >> 40) / (1 << 24) - 0.5);
}

static float *random_floats(int64_t n)
{
    float *p = aligned_alloc(64, (size_t)(n + 15) / 16 * 64);
    if (!p) exit(1);
    for (int64_t i = 0; i < n; i++) p[i] = noise();
    return p;
}

typedef struct layer {
    int64_t n, k;
    float *values; /* dequantised */
    uint8_t *codes;
    float *absmax;
} layer;

static layer make_layer(int64_t n, int64_t k)
{
    layer l = {n, k, random_floats(n * k), malloc((size_t)(n * k / 2)), malloc((size_t)lk_nf4_blocks(n * k) * sizeof(float))};
    if (!l.codes || !l.absmax) exit(1);
    lk_nf4_quantize(l.codes, l.absmax, l.values, n * k);
    lk_nf4_dequantize(l.values, l.codes, l.absmax, n * k);
    return l;
}

static void free_layer(layer *l)
{
    free(l->values);
    free(l->codes);
    free(l->absmax);
}

static void stop(lk_backend *be)
{
    fprintf(stderr, "bench_products: %s\n", lk_backend_error(be)->message);
    exit(1);
}

/* A few elements against fp64; the tolerance is that of bf16 factors. */
static void validate(const layer *l, const float *y, const float *x, int64_t rows, bool backward)
{
    int64_t depth = backward ? l->n : l->k, width = backward ? l->k : l->n;
    for (int i = 0; i < 50; i++) {
        int64_t r = i * 7919 % rows, c = i * 104729 % width;
        double want = 0, size = 0;
        for (int64_t d = 0; d < depth; d++) {
            double term = (double)x[r * depth + d] * l->values[backward ? d * l->k + c : c * l->k + d];
            want += term, size += term * term;
        }
        if (fabs(y[r * width + c] - want) <= 0.02 * sqrt(size) + 1e-6) continue;
        fprintf(stderr, "bench_products: wrong result at %lld,%lld: %g, not %g\n", (long long)r, (long long)c, y[r * width + c], want);
        exit(1);
    }
}

/* Seconds of one call: the best of what fits in the time, at least three. */
typedef void timed(void *context, int call);
static double best_time(timed *run, void *context, double seconds)
{
    double best = 1e30, begin = lk_clock_seconds();
    run(context, 0);
    for (int call = 1; call < 4 || lk_clock_seconds() - begin < seconds; call++) {
        double start = lk_clock_seconds();
        run(context, call);
        double taken = lk_clock_seconds() - start;
        if (taken < best) best = taken;
    }
    return best;
}

typedef struct own_run {
    lk_backend *be;
    lk_matrix *copies[MOST_COPIES];
    int n_copies;
    lk_tensor x, y;
    bool backward;
} own_run;

static void run_own(void *context, int call)
{
    own_run *r = context;
    const lk_matrix *w = r->copies[call % r->n_copies];
    lk_status status = r->backward ? lk_linear_backward(r->be, &r->y, &r->x, w, false) : lk_linear(r->be, &r->y, &r->x, w, NULL, NULL);
    if (status) stop(r->be);
}

static double arithmetic_ceiling(const ceilings *c, const char *tier, lk_dtype compute)
{
    if (!strcmp(tier, "avx2") || !strcmp(tier, "portable")) return c->f32_avx2;
    if (compute == LK_F32) return c->f32;
    return !strcmp(tier, "amx") ? c->amx : c->dpbf16;
}

static void bench_tier(const settings *s, const ceilings *c, const char *tier, const layer *l)
{
    lk_error err = {0};
    own_run r = {0};
    lk_backend_options options = {.device = "cpu", .threads = s->threads, .compute = s->compute, .cpu_tier = tier};
    if (lk_backend_open(&r.be, &options, &err)) {
        fprintf(stderr, "bench_products: %s\n", err.message);
        exit(1);
    }
    int64_t widest = l->n > l->k ? l->n : l->k, most = s->rows ? s->rows : row_counts[ROW_COUNTS - 1];
    if (lk_reserve(r.be, &(lk_limits){.tokens = most, .width = widest})) stop(r.be);
    double bytes = (double)lk_matrix_bytes(r.be, LK_NF4, l->n, l->k, false), peak = arithmetic_ceiling(c, tier, s->compute);
    r.n_copies = (int)(ROTATE_BYTES / bytes) + 1;
    if (r.n_copies > MOST_COPIES) r.n_copies = MOST_COPIES;
    double start = lk_clock_seconds();
    for (int i = 0; i < r.n_copies; i++)
        if (lk_matrix_create(r.be, &r.copies[i], &(lk_matrix_source){LK_NF4, l->n, l->k, l->codes, l->absmax})) stop(r.be);
    double prepared = (lk_clock_seconds() - start) / r.n_copies;
    printf("%s %s  w[%lld,%lld]  prepared at %.2f G weights/s\n", tier, lk_dtype_name(s->compute), (long long)l->n, (long long)l->k,
           (double)l->n * (double)l->k / prepared * 1e-9);
    float *noise_x = random_floats(most * widest);
    void *x, *y; /* from the backend, as a model's activations are: huge pages */
    size_t most_bytes = (size_t)(most * widest) * sizeof(float);
    if (lk_alloc(r.be, most_bytes, &x) || lk_alloc(r.be, most_bytes, &y) || lk_upload(r.be, x, noise_x, most_bytes)) stop(r.be);
    free(noise_x);
    for (int backward = 0; backward < 2; backward++) {
        for (int i = 0; i < ROW_COUNTS; i++) {
            int64_t rows = s->rows ? s->rows : row_counts[i];
            r.x = lk_tensor_make(x, LK_F32, rows, backward ? l->n : l->k);
            r.y = lk_tensor_make(y, LK_F32, rows, backward ? l->k : l->n);
            r.backward = backward;
            run_own(&r, 0);
            validate(l, y, x, rows, backward);
            double seconds = best_time(run_own, &r, s->seconds);
            double rate = bytes / seconds * 1e-9, flops = 2.0 * (double)rows * (double)l->n * (double)l->k / seconds * 1e-9;
            double by_read = c->read > 0 ? rate / c->read : 0, by_peak = peak > 0 ? flops / peak : 0;
            printf("  %-8s M %5lld  %9.1f us  %7.2f GB/s  %8.1f GFLOP/s  %5.1f%% of %s\n", backward ? "backward" : "linear",
                   (long long)rows, seconds * 1e6, rate, flops, 100 * (by_read > by_peak ? by_read : by_peak),
                   by_read > by_peak ? "read bandwidth" : "arithmetic");
            if (s->rows) break;
        }
    }
    fflush(stdout);
    for (int i = 0; i < r.n_copies; i++) lk_matrix_destroy(r.be, r.copies[i]);
    lk_free(r.be, x);
    lk_free(r.be, y);
    lk_backend_close(r.be);
}

enum { MOST_PEERS = 24 }; /* copies of dense weights: enough that they come from memory too */

typedef struct peer_run {
    lk_peer *peers[MOST_PEERS];
    int n_peers;
    const float *x;
    float *y;
} peer_run;

static void run_peer(void *context, int call)
{
    const peer_run *r = context;
    lk_peer_run(r->peers[call % r->n_peers], r->y, r->x);
}

static void bench_peer(const settings *s, const layer *l, lk_peer_kind kind, int64_t rows)
{
    float *x = random_floats(rows * l->k), *y = random_floats(rows * l->n);
    peer_run r = {.x = x, .y = y};
    int64_t copies = ROTATE_BYTES / (l->n * l->k * 2) + 1;
    if (copies > MOST_PEERS || kind == LK_PEER_OPENBLAS_F32) copies = kind == LK_PEER_OPENBLAS_F32 ? 1 : MOST_PEERS; /* it keeps no copy */
    while (r.n_peers < copies && (r.peers[r.n_peers] = lk_peer_open(kind, rows, l->n, l->k, l->values, s->threads))) r.n_peers++;
    if (r.n_peers) {
        run_peer(&r, 0);
        validate(l, y, x, rows, false);
        double seconds = best_time(run_peer, &r, s->seconds);
        printf("%-12s w[%lld,%lld]  M %5lld  %9.1f us  %8.1f GFLOP/s\n", lk_peer_name(kind), (long long)l->n, (long long)l->k,
               (long long)rows, seconds * 1e6, 2.0 * (double)rows * (double)l->n * (double)l->k / seconds * 1e-9);
    }
    for (int i = 0; i < r.n_peers; i++) lk_peer_close(r.peers[i]);
    free(x);
    free(y);
}

static void bench_peers(const settings *s, const layer *l)
{
    for (int kind = 0; kind < LK_PEERS; kind++) {
        for (int i = 0; i < ROW_COUNTS; i++) {
            bench_peer(s, l, (lk_peer_kind)kind, s->rows ? s->rows : row_counts[i]);
            if (s->rows) break;
        }
    }
}

static int usage(void)
{
    fprintf(stderr,
            "usage: bench_products [--threads N] [--tier T] [--shape N,K] [--rows M] [--compute bf16|f32] [--peers] [--seconds S]\n");
    return 2;
}

int main(int argc, char **argv)
{
    settings s = {.seconds = 0.2, .compute = LK_BF16};
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--peers"))
            s.peers = true;
        else if (!more)
            return usage();
        else if (!strcmp(argv[i], "--threads"))
            s.threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--tier"))
            s.tier = argv[++i];
        else if (!strcmp(argv[i], "--rows"))
            s.rows = atoll(argv[++i]);
        else if (!strcmp(argv[i], "--seconds"))
            s.seconds = atof(argv[++i]);
        else if (!strcmp(argv[i], "--compute"))
            s.compute = strcmp(argv[++i], "f32") ? LK_BF16 : LK_F32;
        else if (!strcmp(argv[i], "--shape")) {
            char *comma;
            s.n = strtoll(argv[++i], &comma, 10);
            s.k = *comma == ',' ? strtoll(comma + 1, NULL, 10) : 0;
            if (s.n < 1 || s.k < 64 || s.k % 64) return usage();
        } else
            return usage();
    }
    lk_error err = {0};
    lk_pool *pool;
    if (lk_pool_create(&pool, s.threads, &err)) {
        fprintf(stderr, "bench_products: %s\n", err.message);
        return 1;
    }
    s.threads = lk_pool_threads(pool);
    ceilings c = {lk_ceiling_read(pool), lk_ceiling_f32_avx2(pool), lk_ceiling_f32(pool), lk_ceiling_dpbf16(pool), lk_ceiling_amx(pool)};
    lk_pool_destroy(pool);
    printf("%d threads; ceilings: read %.1f GB/s, fp32 %.0f (avx2 %.0f), dpbf16 %.0f, AMX %.0f GFLOP/s\n", s.threads, c.read, c.f32,
           c.f32_avx2, c.dpbf16, c.amx);
    for (int i = 0; i < SHAPES; i++) {
        layer l = make_layer(s.n ? s.n : shapes[i][0], s.n ? s.k : shapes[i][1]);
        for (int tier = LK_CPU_AVX2; tier <= (int)lk_cpu_tier_best(); tier++) {
            const char *name = lk_cpu_tier_name((lk_cpu_tier)tier);
            if (!s.tier || !strcmp(s.tier, name)) bench_tier(&s, &c, name, &l);
        }
        if (s.tier && !strcmp(s.tier, "portable")) bench_tier(&s, &c, s.tier, &l);
        if (s.peers) bench_peers(&s, &l);
        free_layer(&l);
        if (s.n) break;
    }
    return 0;
}
