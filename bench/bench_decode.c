/* Products, adapters and sampling of serving on a GPU, from one token to a prompt's chunk, and whole steps of decoding, each against
 * ceilings measured in the same run.
 *
 *     bench_decode [--device D] [--shape S]
 *
 * Shapes: tiny, 1b, 8b, 70b (bench/random_model.h). Matrices take turns, so that they come from memory as the layers of a model do; a round
 * of all of them is one recorded step, as in serving, so that the host's time for launches does not count. LK_CUDA_GRAPHS=0 shows what
 * it would be; the last rows are without wgmma. On the CPU (`--device cpu --shape tiny`) the same program
 * shows that it works. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/device.h"
#include "bench/random_model.h"

enum { RANK = 16, ADAPTERS = 32, MOST_TURNS = 64, MOST_TOKENS = 2048, PAGE_TOKENS = 16, SAMPLED = 256 };
static const double turn_bytes = 256e6; /* several times the last level of cache */

typedef struct serving {
    lk_tensor y, x, h;
    lk_matrix *w[MOST_TURNS];
    int turns;
    bool adapted;
    uint64_t key; /* of the step: another for every kind that is timed */
    lk_batch batch;
    lk_sequence sequence;
} serving;

static lk_status products(bench *b, const serving *s)
{
    for (int i = 0; i < s->turns; i++) {
        if (s->adapted)
            LK_TRY(lk_linear_lora(b->be, &s->batch, 0, &s->y, &s->x, s->w[i], NULL, NULL, &s->h, NULL));
        else
            LK_TRY(lk_linear(b->be, &s->y, &s->x, s->w[i], NULL, NULL));
    }
    return LK_OK;
}

/* All turns, as one step. */
static lk_status run_turns(bench *b, void *context)
{
    const serving *s = context;
    bool queued;
    LK_TRY(lk_batch_begin(b->be, &s->batch));
    LK_TRY(lk_step_begin(b->be, s->key, &queued));
    if (queued) return LK_OK;
    lk_status status = products(b, s), ended = lk_step_end(b->be);
    return status ? status : ended;
}

/* Seconds of one product over this many tokens of one sequence. */
static double time_one(bench *b, const char *what, serving *s, int64_t tokens)
{
    static const int32_t pages[MOST_TOKENS / PAGE_TOKENS];
    s->key++;
    s->sequence = (lk_sequence){.begin = 0, .count = tokens, .length = tokens, .pages = pages};
    s->batch.n_tokens = tokens;
    s->batch.n_sequences = 1;
    s->batch.sequences = &s->sequence;
    double seconds = bench_seconds(b, what, run_turns, s) / s->turns;
    lk_step_forget(b->be);
    return seconds;
}

static serving make(bench *b, lk_dtype type, int64_t n, int64_t k, int64_t tokens)
{
    double bytes = type == LK_NF4 ? bench_nf4_bytes((double)n * (double)k) : 2.0 * (double)n * (double)k, turns = turn_bytes / bytes;
    serving s = {.turns = turns < 2 ? 2 : turns > MOST_TURNS ? (int)MOST_TURNS : (int)turns};
    if (bench_random_matrices(s.w, s.turns, b->be, type, n, k, &b->err)) bench_stop("matrices", &b->err);
    s.x = bench_tensor(b, lk_backend_act(b->be), tokens, k, 0);
    s.y = bench_tensor(b, type == LK_NF4 ? lk_backend_act(b->be) : LK_F32, tokens, n, 0);
    s.h = bench_tensor(b, LK_F32, tokens, RANK, 0);
    return s;
}

static void destroy(bench *b, serving *s)
{
    for (int i = 0; i < s->turns; i++) lk_matrix_destroy(b->be, s->w[i]);
    lk_free(b->be, s->x.data);
    lk_free(b->be, s->y.data);
    lk_free(b->be, s->h.data);
}

static void bench_matrix(bench *b, const char *what, lk_dtype type, int64_t n, int64_t k, int64_t most, bool goals)
{
    static const int64_t counts[] = {1, 4, 8, 16, 32, 64, 128, 512, 2048};
    serving s = make(b, type, n, k, most);
    lk_tensor x = s.x, y = s.y;
    for (size_t i = 0; i < sizeof counts / sizeof *counts && counts[i] <= most; i++) {
        int64_t t = counts[i];
        double weights = (double)n * (double)k, own = type == LK_NF4 ? bench_nf4_bytes(weights) : 2 * weights;
        double bytes = own + (double)(t * (k * 2 + n * lk_dtype_size(y.type)));
        s.x = lk_tensor_rows(&x, 0, t);
        s.y = lk_tensor_rows(&y, 0, t);
        char name[96];
        snprintf(name, sizeof name, "serving %s, %lld x %lld, T %lld", what, (long long)n, (long long)k, (long long)t);
        double goal = !goals ? 0 : t == 1 ? 75 : t == MOST_TOKENS ? 60 : 0;
        bench_report(b, name, time_one(b, what, &s, t), bytes, 2 * (double)t * weights, goal);
    }
    s.x = x;
    s.y = y;
    destroy(b, &s);
}

/* A decoding step's rows, each with an adapter of its own: what that adds to the base's product. */
static void bench_adapters(bench *b, int64_t n, int64_t k)
{
    serving s = make(b, LK_NF4, n, k, ADAPTERS);
    lk_tensor factors = bench_tensor(b, LK_BF16, ADAPTERS, RANK * (n + k), 0);
    lk_lora lora[ADAPTERS];
    lk_segment segments[ADAPTERS];
    for (int i = 0; i < ADAPTERS; i++) {
        uint16_t *a = (uint16_t *)factors.data + i * factors.stride;
        lora[i] = (lk_lora){.a = a, .b = a + RANK * k, .type = LK_BF16, .rank = RANK, .scale = 1e-3f};
        segments[i] = (lk_segment){i, i + 1, i};
    }
    double base = time_one(b, "linear", &s, ADAPTERS);
    s.batch = (lk_batch){.n_segments = ADAPTERS, .segments = segments, .n_sites = 1, .n_adapters = ADAPTERS, .lora = lora};
    s.adapted = true;
    double adapted = time_one(b, "linear with adapters", &s, ADAPTERS);
    char value[64], of[96];
    snprintf(value, sizeof value, "%.4g us", (adapted - base) * 1e6);
    snprintf(of, sizeof of, "on %.4g us of the base, +%.0f%%; their bytes at copy rate %.4g us", base * 1e6, 100 * (adapted / base - 1),
             b->copy > 0 ? 2e6 * ADAPTERS * RANK * (double)(n + k) / b->copy : 0.0);
    char name[96];
    snprintf(name, sizeof name, "serving 32 adapters r 16, %lld x %lld, T 32", (long long)n, (long long)k);
    bench_row(name, value, of, "-", "-");
    lk_free(b->be, factors.data);
    destroy(b, &s);
}

/* Reserves, and makes a cache that nobody reads: a step is recorded only where one is. */
static lk_kv *ready(bench *b, bool small)
{
    int64_t wide = b->c.intermediate, most = small ? 64 : MOST_TOKENS, large = small ? 512 : 8192;
    int64_t width = wide > large ? wide : large;
    const lk_limits limits = {.tokens = most > large ? most : large,
                              .width = width,
                              .vocab = b->c.vocab,
                              .rank = RANK,
                              .matrix = width * large,
                              .heads = 1,
                              .kv_heads = 1,
                              .head_dim = 16,
                              .context = MOST_TOKENS,
                              .adapters = ADAPTERS,
                              .sites = 1};
    lk_kv *kv;
    lk_kv_shape shape = {1, 1, 16, PAGE_TOKENS, 1, LK_BF16};
    bench_check(b, "reserve", lk_reserve(b->be, &limits));
    bench_check(b, "kv", lk_kv_create(b->be, &kv, &shape));
    return kv;
}

static void bench_products(bench *b, bool small)
{
    int64_t hidden = b->c.hidden, wide = b->c.intermediate, most = small ? 64 : MOST_TOKENS;
    lk_kv *kv = ready(b, small);
    bench_matrix(b, "NF4", LK_NF4, hidden, hidden, most, !small);
    bench_matrix(b, "NF4", LK_NF4, wide, hidden, most, !small);
    bench_matrix(b, "NF4", LK_NF4, hidden, wide, most, !small);
    bench_matrix(b, "NF4", LK_NF4, b->c.kv_heads * b->c.head_dim, hidden, most, !small);
    bench_matrix(b, "bf16 head", LK_BF16, b->c.vocab, hidden, 64, true);
    bench_adapters(b, hidden, hidden);
    bench_adapters(b, wide, hidden);
    lk_kv_destroy(b->be, kv);
}

/* Rows of logits to tokens, one sampling begun before the one before it is read, as the engine does. */
typedef struct sampling {
    lk_tensor logits;
    lk_sample_request requests[SAMPLED];
    lk_sample_result results[SAMPLED];
    bool under_way;
} sampling;

static lk_status run_sampling(bench *b, void *context)
{
    sampling *s = context;
    if (!lk_backend_ahead(b->be)) return lk_sample(b->be, &s->logits, s->requests, s->results);
    LK_TRY(lk_sample_begin(b->be, &s->logits, s->requests));
    if (s->under_way) LK_TRY(lk_sample_end(b->be, s->results));
    s->under_way = true;
    return LK_OK;
}

/* passes: over the row that each kind is meant to take (kernels/cuda/sample.cu). */
static void bench_sampling(bench *b, int64_t most)
{
    static const struct {
        const char *name;
        float temperature, top_p;
        int passes;
    } kinds[] = {{"greedy", 0.0f, 1.0f, 1}, {"plain", 0.02f, 1.0f, 2}, {"top-p 0.9", 0.02f, 0.9f, 4}};
    static const int64_t counts[] = {1, 32, SAMPLED};
    static sampling s;
    bench_check(b, "reserve", lk_reserve(b->be, &(lk_limits){.tokens = most, .vocab = b->c.vocab, .context = 1, .serving = true}));
    lk_tensor all = bench_tensor(b, LK_F32, most, b->c.vocab, 0);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts && counts[i] <= most; i++) {
            s.logits = lk_tensor_rows(&all, 0, counts[i]);
            for (int64_t r = 0; r < counts[i]; r++)
                s.requests[r] = (lk_sample_request){.temperature = kinds[k].temperature,
                                                    .top_p = kinds[k].top_p,
                                                    .repetition_penalty = 1.0f,
                                                    .counter = (uint64_t)r,
                                                    .n_logprobs = -1};
            char name[96];
            snprintf(name, sizeof name, "sampling, %s, %lld x %lld", kinds[k].name, (long long)counts[i], (long long)b->c.vocab);
            double seconds = bench_seconds(b, name, run_sampling, &s);
            if (s.under_way) bench_check(b, name, lk_sample_end(b->be, s.results));
            s.under_way = false;
            bench_report(b, name, seconds, 4.0 * kinds[k].passes * (double)(counts[i] * b->c.vocab), 0, 0);
        }
    lk_free(b->be, all.data);
}

/* The largest matrix once more on a backend that has only mma.sync (docs/gpu.md). */
static void bench_without_wgmma(bench *b, const char *device, bool small)
{
    if (setenv("LK_CUDA_WGMMA", "0", 1)) return;
    if (lk_backend_open(&b->be, &(lk_backend_options){.device = device, .compute = LK_BF16}, &b->err)) bench_stop(device, &b->err);
    lk_kv *kv = ready(b, small);
    bench_matrix(b, "NF4 without wgmma", LK_NF4, b->c.intermediate, b->c.hidden, small ? 64 : MOST_TOKENS, false);
    lk_kv_destroy(b->be, kv);
    lk_backend_close(b->be);
}

int main(int argc, char **argv)
{
    const char *device = "cuda", *shape = "8b";
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && strcmp(argv[i], "--device") == 0)
            device = argv[i + 1];
        else if (i + 1 < argc && strcmp(argv[i], "--shape") == 0)
            shape = argv[i + 1];
        else
            return fprintf(stderr, "usage: bench_decode [--device D] [--shape S]\n"), 2;
    }
    bench b = {0};
    bool small = strcmp(shape, "tiny") == 0;
    if (bench_config(&b.c, shape, &b.err)) bench_stop(shape, &b.err);
    if (lk_backend_open(&b.be, &(lk_backend_options){.device = device, .compute = LK_BF16}, &b.err)) bench_stop(device, &b.err);
    const lk_limits ceilings = {.tokens = small ? 512 : 8192, .width = small ? 512 : 8192, .matrix = small ? 512 * 512 : 8192 * 8192};
    bench_check(&b, "reserve", lk_reserve(b.be, &ceilings));
    bench_ceilings(&b, small);
    bench_products(&b, small);
    bench_sampling(&b, small ? 32 : SAMPLED);
    bool choice = strncmp(lk_backend_name(b.be), "cuda/sm_90", 10) == 0;
    lk_backend_close(b.be);
    if (choice) bench_without_wgmma(&b, device, small);
    return 0;
}
