#include "bench/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/random_model.h"

double bench_nf4_bytes(double weights) { return weights * (0.5 + (1.0 + 4.0 / 256) / 64); }

void bench_row(const char *name, const char *value, const char *of, const char *goal, const char *verdict)
{
    printf("row\t%s\t%s\t%s\t%s\t%s\n", name, value, of, goal, verdict);
    fflush(stdout);
}

_Noreturn void bench_stop(const char *what, const lk_error *err)
{
    fprintf(stderr, "bench: %s: %s\n", what, err->message);
    exit(1);
}

void bench_check(bench *b, const char *what, lk_status status)
{
    if (status) bench_stop(what, lk_backend_error(b->be));
}

/* ---------------------------------------------------------------------------------------------- memory and timing */

lk_tensor bench_tensor(bench *b, lk_dtype type, int64_t rows, int64_t cols, int64_t gap)
{
    int64_t stride = cols + gap, n = rows * stride, size = lk_dtype_size(type);
    char *host = malloc((size_t)(n * size));
    void *p;
    if (!host) bench_stop("tensor", &(lk_error){.message = "no memory"});
    uint64_t x = (uint64_t)(rows * 31 + cols) | 1;
    for (int64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        float v = ((float)(x >> 40) * 0x1p-24f - 0.5f) * 0.5f;
        uint16_t h = lk_f32_to_bf16(v);
        if (type == LK_BF16)
            memcpy(host + i * 2, &h, 2);
        else
            memcpy(host + i * 4, &v, 4);
    }
    bench_check(b, "alloc", lk_alloc(b->be, (size_t)(n * size), &p));
    bench_check(b, "upload", lk_upload(b->be, p, host, (size_t)(n * size)));
    free(host);
    lk_tensor t = lk_tensor_make(p, type, rows, cols);
    t.stride = stride;
    return t;
}

double bench_seconds(bench *b, const char *what, bench_operation *run, void *context)
{
    double rounds[5], once;
    int64_t calls = 1;
    for (int i = 0; i < 2; i++) bench_check(b, what, run(b, context)); /* algorithms are chosen, plans built */
    bench_check(b, what, lk_sync(b->be));
    double begin = lk_clock_seconds();
    bench_check(b, what, run(b, context));
    bench_check(b, what, lk_sync(b->be));
    once = lk_clock_seconds() - begin;
    if (once < 0.03) calls = (int64_t)(0.03 / (once > 1e-6 ? once : 1e-6));
    for (int r = 0; r < 5; r++) {
        begin = lk_clock_seconds();
        for (int64_t i = 0; i < calls; i++) bench_check(b, what, run(b, context));
        bench_check(b, what, lk_sync(b->be));
        rounds[r] = (lk_clock_seconds() - begin) / (double)calls;
        for (int i = r; i > 0 && rounds[i] < rounds[i - 1]; i--) {
            double swap = rounds[i];
            rounds[i] = rounds[i - 1];
            rounds[i - 1] = swap;
        }
    }
    return b->last = rounds[2];
}

/* The nearer ceiling is the one that this work would take longer under. */
void bench_report(bench *b, const char *name, double seconds, double bytes, double operations, double goal_percent)
{
    char value[64], of[96], goal[32] = "-";
    bool arithmetic = b->product > 0 && (b->copy <= 0 || operations / b->product > bytes / b->copy);
    double rate = arithmetic ? operations / seconds : bytes / seconds, ceiling = arithmetic ? b->product : b->copy;
    double percent = ceiling > 0 ? 100 * rate / ceiling : 0;
    snprintf(value, sizeof value, "%.4g us", seconds * 1e6);
    snprintf(of, sizeof of, "%.4g %s, %.0f%% of %s", rate * (arithmetic ? 1e-12 : 1e-9), arithmetic ? "TFLOP/s" : "GB/s", percent,
             arithmetic ? "the product" : "the copy");
    if (goal_percent > 0) snprintf(goal, sizeof goal, ">= %.0f%%", goal_percent);
    bench_row(name, value, of, goal, goal_percent <= 0 ? "-" : percent >= goal_percent ? "pass" : "MISSED");
}

/* ---------------------------------------------------------------------------------------------- ceilings */

typedef struct copy_context {
    void *to, *from;
    size_t bytes;
} copy_context;

static lk_status run_copy(bench *b, void *context)
{
    const copy_context *c = context;
    return lk_copy(b->be, c->to, c->from, c->bytes);
}

typedef struct product_context {
    lk_tensor y, x;
    lk_matrix *w;
} product_context;

static lk_status run_product(bench *b, void *context)
{
    const product_context *c = context;
    return lk_linear(b->be, &c->y, &c->x, c->w, NULL, NULL);
}

void bench_ceilings(bench *b, bool small)
{
    copy_context copy = {.bytes = small ? (size_t)64 << 20 : (size_t)2 << 30};
    bench_check(b, "copy", lk_alloc(b->be, copy.bytes, &copy.to));
    bench_check(b, "copy", lk_alloc(b->be, copy.bytes, &copy.from));
    b->copy = 2 * (double)copy.bytes / bench_seconds(b, "copy", run_copy, &copy);
    lk_free(b->be, copy.to);
    lk_free(b->be, copy.from);
    int64_t n = small ? 512 : 8192;
    product_context product = {.y = bench_tensor(b, lk_backend_act(b->be), n, n, 0), .x = bench_tensor(b, lk_backend_act(b->be), n, n, 0)};
    if (bench_random_matrices(&product.w, 1, b->be, LK_BF16, n, n, &b->err)) bench_stop("product", &b->err);
    b->product = 2 * (double)n * (double)n * (double)n / bench_seconds(b, "product", run_product, &product);
    lk_matrix_destroy(b->be, product.w);
    lk_free(b->be, product.y.data);
    lk_free(b->be, product.x.data);
    char value[64];
    snprintf(value, sizeof value, "%.0f GB/s", b->copy * 1e-9);
    bench_row("ceiling: copy within the device", value, lk_backend_name(b->be), "-", "-");
    snprintf(value, sizeof value, "%.4g TFLOP/s", b->product * 1e-12);
    bench_row("ceiling: bf16 product", value, small ? "512^3" : "8192^3", "-", "-");
}
