/* The operations beside the products: attention both ways, the paged cache, LoRA, the loss, and the small ones, on shapes of a 100M, a 1B
 * and an 8B model, against this machine's ceilings in the same run.
 *
 *     bench_ops [--threads N] [--tier T] [--compute bf16|f32] [--only NAME] [--seconds S]
 *
 * GFLOP/s count multiplications and additions of the products that the operation is defined by (causal attention: the lower
 * triangle; backward five products of it); GB/s the bytes that must move once. The percentage is of the nearer ceiling. `--tier reference`
 * is the naive version, number 1 of every comparison. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/ceilings.h"
#include "kernels/ops.h"

typedef struct bench {
    lk_backend *be;
    double seconds, peak, read; /* GFLOP/s of the tier, GB/s */
    const char *only;
} bench;

typedef void work(void *context);

static void check(const bench *b, lk_status status)
{
    if (!status) return;
    fprintf(stderr, "%s\n", lk_backend_error(b->be)->message);
    exit(1);
}

/* The best of many runs, in seconds. */
static double best_time(const bench *b, work *w, void *context)
{
    double best = 1e30, end;
    w(context);
    end = lk_clock_seconds() + b->seconds;
    do {
        double start = lk_clock_seconds();
        w(context);
        double took = lk_clock_seconds() - start;
        if (took < best) best = took;
    } while (lk_clock_seconds() < end);
    return best;
}

static bool wanted(const bench *b, const char *name) { return !b->only || strstr(name, b->only); }

static void line(const bench *b, const char *name, const char *shape, double seconds, double flops, double bytes)
{
    double bound = fmax(flops / (b->peak * 1e9), bytes / (b->read * 1e9));
    printf("%-22s %-34s %10.1f us %9.1f GFLOP/s %7.1f GB/s %5.1f%%\n", name, shape, seconds * 1e6, flops / seconds * 1e-9,
           bytes / seconds * 1e-9, 100 * bound / seconds);
    fflush(stdout);
}

static float *numbers(const bench *b, int64_t n)
{
    void *p;
    uint32_t x = 12345;
    check(b, lk_alloc(b->be, (size_t)n * 4, &p));
    for (int64_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        ((float *)p)[i] = (float)(x >> 8) * 0x1p-23f - 1.0f;
    }
    return p;
}

static lk_tensor tensor(const bench *b, int64_t rows, int64_t cols) { return lk_tensor_make(numbers(b, rows * cols), LK_F32, rows, cols); }

/* ---------------------------------------------------------------------------------------------- attention */

typedef struct attention_bench {
    const bench *b;
    lk_batch batch;
    lk_attention_shape shape;
    lk_tensor q, k, v, o, dq, dk, dv;
    float *lse;
    lk_kv *kv;
} attention_bench;

static void forward(void *context)
{
    attention_bench *a = context;
    check(a->b, lk_attention(a->b->be, &a->batch, &a->shape, &a->o, a->lse, &a->q, &a->k, &a->v));
}

static void backward(void *context)
{
    attention_bench *a = context;
    check(a->b, lk_attention_backward(a->b->be, &a->batch, &a->shape, &a->dq, &a->dk, &a->dv, &a->q, &a->o, a->lse, &a->q, &a->k, &a->v));
}

static void paged(void *context)
{
    attention_bench *a = context;
    check(a->b, lk_paged_attention(a->b->be, &a->batch, &a->shape, &a->o, &a->q, a->kv, 0));
}

static void written(void *context)
{
    attention_bench *a = context;
    check(a->b, lk_kv_write(a->b->be, &a->batch, a->kv, 0, &a->k, &a->v));
}

static void bench_attention(const bench *b, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim)
{
    char shape[80];
    int32_t starts[2] = {0, (int32_t)rows};
    attention_bench a = {.b = b,
                         .batch = {.n_tokens = rows, .n_docs = 1, .doc_starts = starts},
                         .shape = {heads, kv_heads, head_dim, 1.0f / sqrtf((float)head_dim), 0}};
    lk_tensor *wide[] = {&a.q, &a.o, &a.dq}, *narrow[] = {&a.k, &a.v, &a.dk, &a.dv};
    for (int i = 0; i < 3; i++) *wide[i] = tensor(b, rows, heads * head_dim);
    for (int i = 0; i < 4; i++) *narrow[i] = tensor(b, rows, kv_heads * head_dim);
    a.lse = numbers(b, rows * heads);
    snprintf(shape, sizeof shape, "%lld rows, %lld/%lld heads of %lld", (long long)rows, (long long)heads, (long long)kv_heads,
             (long long)head_dim);
    double product = (double)rows * (double)(rows + 1) * (double)(heads * head_dim); /* of one product over the triangle */
    if (wanted(b, "attention")) line(b, "attention", shape, best_time(b, forward, &a), 2 * product, 0);
    if (wanted(b, "attention_backward")) line(b, "attention_backward", shape, best_time(b, backward, &a), 5 * product, 0);
    for (int i = 0; i < 3; i++) lk_free(b->be, wide[i]->data);
    for (int i = 0; i < 4; i++) lk_free(b->be, narrow[i]->data);
    lk_free(b->be, a.lse);
}

static void bench_paged(const bench *b, int64_t sequences, int64_t count, int64_t length, int64_t heads, int64_t kv_heads, int64_t head_dim)
{
    char shape[80];
    enum { PAGE = 32 };
    int64_t each = (length + PAGE - 1) / PAGE, rows = sequences * count;
    lk_sequence *s = calloc((size_t)sequences, sizeof *s);
    int32_t *pages = malloc((size_t)(sequences * each) * sizeof *pages);
    if (!s || !pages) exit(1);
    for (int64_t i = 0; i < sequences * each; i++) pages[i] = (int32_t)i;
    for (int64_t i = 0; i < sequences; i++) s[i] = (lk_sequence){i * count, count, length, pages + i * each};
    attention_bench a = {.b = b,
                         .batch = {.n_tokens = rows, .n_sequences = sequences, .sequences = s},
                         .shape = {heads, kv_heads, head_dim, 1.0f / sqrtf((float)head_dim), 0}};
    a.q = tensor(b, rows, heads * head_dim);
    a.o = tensor(b, rows, heads * head_dim);
    a.k = tensor(b, rows, kv_heads * head_dim);
    a.v = tensor(b, rows, kv_heads * head_dim);
    check(b,
          lk_kv_create(b->be, &a.kv, &(lk_kv_shape){1, (int32_t)kv_heads, (int32_t)head_dim, PAGE, (int32_t)(sequences * each), LK_BF16}));
    snprintf(shape, sizeof shape, "%lld x %lld of %lld, %lld/%lld heads of %lld", (long long)sequences, (long long)count, (long long)length,
             (long long)heads, (long long)kv_heads, (long long)head_dim);
    double seen = (double)count * ((double)length - 0.5 * (double)(count - 1));
    double bytes = (double)sequences * (double)length * (double)(kv_heads * head_dim) * 4.0;
    if (wanted(b, "kv_write")) line(b, "kv_write", shape, best_time(b, written, &a), 0, (double)(rows * kv_heads * head_dim) * 12.0);
    if (wanted(b, "paged_attention"))
        line(b, "paged_attention", shape, best_time(b, paged, &a), 4.0 * (double)sequences * seen * (double)(heads * head_dim), bytes);
    lk_kv_destroy(b->be, a.kv);
    lk_tensor *all[] = {&a.q, &a.o, &a.k, &a.v};
    for (int i = 0; i < 4; i++) lk_free(b->be, all[i]->data);
    free(s);
    free(pages);
}

/* ---------------------------------------------------------------------------------------------- LoRA */

typedef struct lora_bench {
    const bench *b;
    lk_batch batch;
    lk_tensor x, y, h, dx;
    lk_dropout dropout;
} lora_bench;

static void lora_forward(void *context)
{
    lora_bench *l = context;
    check(l->b, lk_lora_forward(l->b->be, &l->batch, 0, &l->y, &l->x, &l->h, &l->dropout));
}

static void lora_backward(void *context)
{
    lora_bench *l = context;
    check(l->b, lk_lora_backward(l->b->be, &l->batch, 0, &l->dx, &l->y, &l->x, &l->h, &l->dropout));
}

/* `adapters` segments of equal length. */
static void bench_lora(const bench *b, int64_t rows, int32_t adapters, int64_t n, int64_t k, int32_t rank, float p)
{
    char shape[80];
    lk_lora lora[64];
    lk_segment segments[64];
    bool serving = rows <= 32; /* with the factors a server has */
    lk_dtype type = serving ? lk_backend_compute(b->be) : LK_F32;
    for (int32_t i = 0; i < adapters; i++) {
        lora[i] = (lk_lora){numbers(b, rank * k), numbers(b, rank * n), NULL, NULL, type, rank, 0.01f};
        if (!serving) {
            lora[i].da = numbers(b, rank * k);
            lora[i].db = numbers(b, rank * n);
        }
        segments[i] = (lk_segment){rows * i / adapters, rows * (i + 1) / adapters, i};
    }
    lora_bench l = {
        .b = b,
        .batch = {.n_tokens = rows, .n_segments = adapters, .segments = segments, .n_sites = 1, .n_adapters = adapters, .lora = lora}};
    l.x = tensor(b, rows, k);
    l.y = tensor(b, rows, n);
    l.h = tensor(b, rows, rank);
    l.dx = tensor(b, rows, k);
    l.dropout = (lk_dropout){p, lk_philox_key_make(1, LK_STREAM_DROPOUT), 1};
    snprintf(shape, sizeof shape, "%lld rows, %d of rank %d, %lldx%lld%s", (long long)rows, adapters, rank, (long long)n, (long long)k,
             p > 0 ? ", dropout" : "");
    double one = 2.0 * (double)rows * (double)rank * (double)(n + k), factors = (double)(lk_dtype_size(type) * adapters * rank * (n + k));
    const char *name = serving ? "lora_serving" : "lora_forward";
    if (wanted(b, name)) line(b, name, shape, best_time(b, lora_forward, &l), one, factors + 4.0 * (double)rows * (double)(k + 2 * n));
    if (wanted(b, "lora_backward") && !serving)
        line(b, "lora_backward", shape, best_time(b, lora_backward, &l), 2 * one, 4.0 * (double)rows * (double)(3 * k + 2 * n));
    for (int32_t i = 0; i < adapters; i++) {
        union {
            const void *in;
            void *out;
        } a = {lora[i].a}, bb = {lora[i].b};
        lk_free(b->be, a.out);
        lk_free(b->be, bb.out);
        lk_free(b->be, lora[i].da);
        lk_free(b->be, lora[i].db);
    }
    lk_tensor *all[] = {&l.x, &l.y, &l.h, &l.dx};
    for (int i = 0; i < 4; i++) lk_free(b->be, all[i]->data);
}

/* ---------------------------------------------------------------------------------------------- the rest */

typedef struct small_bench {
    const bench *b;
    lk_tensor x, y, z;
    float *rstd, *weight;
    lk_matrix *head;
    int32_t *labels;
    lk_sample_request request;
} small_bench;

static void norm(void *context)
{
    small_bench *s = context;
    check(s->b, lk_rmsnorm(s->b->be, &s->y, s->rstd, &s->x, s->weight, 1e-5f));
}

static void glu(void *context)
{
    small_bench *s = context;
    check(s->b, lk_glu(s->b->be, &s->y, &s->x, &s->z, LK_SILU));
}

static void adamw(void *context)
{
    small_bench *s = context;
    int64_t n = s->x.rows * s->x.cols / 2;
    check(s->b, lk_adamw(s->b->be, s->x.data, s->y.data, s->z.data, (float *)s->y.data + n, n,
                         &(lk_adamw_step){1e-9f, 0.9f, 0.999f, 1e-8f, 0, 5, 1}));
}

static void loss(void *context)
{
    small_bench *s = context;
    check(s->b, lk_linear_loss(s->b->be, s->rstd, NULL, &s->y, &s->x, s->head, s->labels, 1.0f, 0.0f));
}

static void sample(void *context)
{
    small_bench *s = context;
    lk_sample_result r;
    lk_tensor one = lk_tensor_rows(&s->z, 0, 1);
    check(s->b, lk_sample(s->b->be, &one, &s->request, &r));
}

static void bench_small(const bench *b, int64_t rows, int64_t width, int64_t ffn, int64_t vocab)
{
    char shape[80];
    small_bench s = {.b = b};
    s.rstd = numbers(b, rows);
    s.weight = numbers(b, width);
    s.x = tensor(b, rows, width);
    s.y = tensor(b, rows, width);
    snprintf(shape, sizeof shape, "%lld x %lld", (long long)rows, (long long)width);
    if (wanted(b, "rmsnorm")) line(b, "rmsnorm", shape, best_time(b, norm, &s), 0, 8.0 * (double)(rows * width));
    if (wanted(b, "linear_loss")) {
        float *w = numbers(b, vocab * width);
        s.labels = calloc((size_t)rows, sizeof *s.labels);
        check(b, lk_matrix_create(b->be, &s.head, &(lk_matrix_source){LK_F32, vocab, width, w, NULL}));
        snprintf(shape, sizeof shape, "%lld x %lld, vocabulary %lld", (long long)rows, (long long)width, (long long)vocab);
        line(b, "linear_loss", shape, best_time(b, loss, &s), 4.0 * (double)rows * (double)(width * vocab), 0);
        lk_matrix_destroy(b->be, s.head);
        lk_free(b->be, w);
        free(s.labels);
    }
    lk_tensor *all[] = {&s.x, &s.y, &s.z};
    for (int i = 0; i < 2; i++) lk_free(b->be, all[i]->data);
    for (int i = 0; i < 3; i++) *all[i] = tensor(b, rows, ffn);
    snprintf(shape, sizeof shape, "%lld x %lld", (long long)rows, (long long)ffn);
    if (wanted(b, "glu")) line(b, "glu", shape, best_time(b, glu, &s), 0, 12.0 * (double)(rows * ffn));
    snprintf(shape, sizeof shape, "%lld parameters", (long long)(rows * ffn / 2));
    if (wanted(b, "adamw")) line(b, "adamw", shape, best_time(b, adamw, &s), 0, 14.0 * (double)(rows * ffn));
    lk_free(b->be, s.z.data);
    s.z = tensor(b, 1, vocab);
    for (int64_t i = 0; i < vocab; i++)
        ((float *)s.z.data)[i] = 24.0f * powf(((float *)s.z.data)[i], 9.0f); /* a few likely tokens, as a trained model has */
    s.request = (lk_sample_request){.temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1.0f, .n_logprobs = -1};
    snprintf(shape, sizeof shape, "vocabulary %lld, top-p", (long long)vocab);
    if (wanted(b, "sample")) line(b, "sample", shape, best_time(b, sample, &s), 0, 4.0 * (double)vocab);
    s.request.temperature = 0.0f;
    snprintf(shape, sizeof shape, "vocabulary %lld, greedy", (long long)vocab);
    if (wanted(b, "sample")) line(b, "sample", shape, best_time(b, sample, &s), 0, 4.0 * (double)vocab);
    for (int i = 0; i < 3; i++) lk_free(b->be, all[i]->data);
    lk_free(b->be, s.rstd);
    lk_free(b->be, s.weight);
}

int main(int argc, char **argv)
{
    bench b = {.seconds = 0.5};
    lk_backend_options options = {.device = "cpu", .compute = LK_BF16};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            options.threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--tier") == 0)
            options.cpu_tier = argv[i + 1];
        else if (strcmp(argv[i], "--compute") == 0)
            options.compute = strcmp(argv[i + 1], "f32") == 0 ? LK_F32 : LK_BF16;
        else if (strcmp(argv[i], "--only") == 0)
            b.only = argv[i + 1];
        else if (strcmp(argv[i], "--seconds") == 0)
            b.seconds = atof(argv[i + 1]);
    }
    lk_error err = {0};
    lk_pool *pool;
    if (lk_backend_open(&b.be, &options, &err) || lk_pool_create(&pool, options.threads, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    check(&b, lk_reserve(b.be, &(lk_limits){2048, 14336, 128256, 64, 32, 8, 128, 4096, true}));
    b.read = lk_ceiling_read(pool);
    double f32 = lk_ceiling_f32(pool), dp = lk_ceiling_dpbf16(pool), amx = lk_ceiling_amx(pool);
    const char *name = lk_backend_name(b.be);
    b.peak = options.compute == LK_F32 ? f32 : strstr(name, "amx") ? amx : strstr(name, "avx512") ? dp : f32;
    printf("%s, %d threads, %s; read %.1f GB/s, peak %.0f GFLOP/s (fp32 %.0f)\n", name, lk_backend_threads(b.be),
           lk_dtype_name(options.compute), b.read, b.peak, f32);
    lk_pool_destroy(pool);
    bench_attention(&b, 1024, 12, 4, 64);
    bench_attention(&b, 2048, 32, 8, 128);
    bench_paged(&b, 1, 1, 1024, 12, 4, 64);
    bench_paged(&b, 16, 1, 1024, 12, 4, 64);
    bench_paged(&b, 1, 512, 512, 12, 4, 64);
    bench_paged(&b, 16, 1, 2048, 32, 8, 128);
    bench_paged(&b, 1, 512, 2048, 32, 8, 128);
    bench_lora(&b, 1, 1, 4096, 4096, 16, 0);
    bench_lora(&b, 16, 16, 768, 768, 16, 0);
    bench_lora(&b, 1024, 1, 2048, 768, 16, 0);
    bench_lora(&b, 1024, 1, 4096, 4096, 16, 0);
    bench_lora(&b, 1024, 1, 4096, 4096, 16, 0.05f);
    bench_small(&b, 1024, 768, 2048, 32000);
    bench_small(&b, 512, 4096, 14336, 128256);
    lk_backend_close(b.be);
    return 0;
}
