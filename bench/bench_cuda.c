/* The training operations and the training step on a GPU, each against ceilings measured in the same run: the bandwidth of a copy within
 * the device's memory (bytes read and written) and the rate of one large bf16 product.
 *
 *     bench_cuda [--device D] [--shape S] ops                    every operation at the shape's widths
 *     bench_cuda [--device D] train SHAPE ROWSxLENGTH ACCUMULATE  tokens/s of QLoRA, r 16 on all linear layers, AdamW
 *     bench_cuda [--device D] memory SHAPE ROWSxLENGTH            peak memory with the least activations kept, against the plan
 *
 * Shapes: tiny, 1b, 8b, 70b (bench/random_model.h); weights are random. A result is a line "row<TAB>name<TAB>value<TAB>of<TAB>goal<TAB>
 * verdict", which deploy/gpu.sh gathers. Times are of the host's clock round many queued calls and one wait; bytes are those that must move
 * once, operations those of the products as defined. On the CPU (`--device cpu --shape tiny`) the same program shows that it works. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/device.h"
#include "bench/random_model.h"
#include "bench/step.h"

static lk_tensor act(bench *b, int64_t cols) { return bench_tensor(b, lk_backend_act(b->be), b->tokens, cols, lk_row_gap(b->be, 16)); }

typedef struct linear_context {
    lk_tensor y, x;
    lk_matrix **w;
    int64_t matrices, next; /* in turn, so that weights come from memory as the layers of a model do */
    lk_batch *batch;        /* with adapters, which want h and dx */
    lk_tensor h, dx;
} linear_context;

static const lk_matrix *next_matrix(linear_context *c) { return c->w[c->next++ % c->matrices]; }

static lk_status run_linear(bench *b, void *context)
{
    linear_context *c = context;
    return lk_linear(b->be, &c->y, &c->x, next_matrix(c), NULL, NULL);
}
static lk_status run_linear_backward(bench *b, void *context)
{
    linear_context *c = context;
    return lk_linear_backward(b->be, &c->x, &c->y, next_matrix(c), false);
}
static lk_status run_linear_lora(bench *b, void *context)
{
    linear_context *c = context;
    return lk_linear_lora(b->be, c->batch, 0, &c->y, &c->x, next_matrix(c), NULL, NULL, &c->h, NULL);
}
static lk_status run_linear_lora_backward(bench *b, void *context)
{
    linear_context *c = context;
    return lk_linear_lora_backward(b->be, c->batch, 0, &c->dx, &c->y, next_matrix(c), &c->x, &c->h, false, NULL);
}

/* ---------------------------------------------------------------------------------------------- products */

enum { TURNS = 4, RANK = 16 };

/* The time of NF4 over that of the same product with dense weights is the dequantisation's: read codes and scales, write bf16. */
static void bench_dequantise(bench *b)
{
    int64_t n = b->c.intermediate, k = b->c.hidden, rows = 128;
    double weights = (double)n * (double)k, seconds[2];
    linear_context c = {.y = bench_tensor(b, lk_backend_act(b->be), rows, n, 0),
                        .x = bench_tensor(b, lk_backend_act(b->be), rows, k, 0),
                        .matrices = TURNS};
    for (int dense = 0; dense < 2; dense++) {
        lk_matrix *w[TURNS];
        if (bench_random_matrices(w, TURNS, b->be, dense ? LK_BF16 : LK_NF4, n, k, &b->err)) bench_stop("dequantise", &b->err);
        c.w = w;
        seconds[dense] = bench_seconds(b, "dequantise", run_linear, &c);
        for (int i = 0; i < TURNS; i++) lk_matrix_destroy(b->be, w[i]);
    }
    lk_free(b->be, c.y.data);
    lk_free(b->be, c.x.data);
    if (lk_backend_act(b->be) != LK_BF16 || seconds[0] <= seconds[1]) return; /* this backend multiplies codes as they are */
    bench_report(b, "dequantise NF4 (its product less a dense one)", seconds[0] - seconds[1], bench_nf4_bytes(weights) + 2 * weights, 0,
                 85);
}

static void bench_linear(bench *b)
{
    int64_t n = b->c.intermediate, k = b->c.hidden;
    double weights = (double)n * (double)k, t = (double)b->tokens, operations = 2 * t * weights;
    double bytes = bench_nf4_bytes(weights) + 2 * t * (double)(n + k);
    lk_matrix *w[TURNS];
    if (bench_random_matrices(w, TURNS, b->be, LK_NF4, n, k, &b->err)) bench_stop("linear", &b->err);
    linear_context c = {
        .y = act(b, n), .x = act(b, k), .w = w, .matrices = TURNS, .h = bench_tensor(b, LK_F32, b->tokens, RANK, 0), .dx = act(b, k)};
    bench_report(b, "linear NF4, forward", bench_seconds(b, "linear", run_linear, &c), bytes, operations, 0);
    bench_report(b, "linear NF4, input gradient", bench_seconds(b, "linear_backward", run_linear_backward, &c), bytes, operations, 0);
    lk_tensor lora_a = bench_tensor(b, LK_F32, RANK, k, 0), lora_b = bench_tensor(b, LK_F32, n, RANK, 0),
              da = bench_tensor(b, LK_F32, RANK, k, 0), db = bench_tensor(b, LK_F32, n, RANK, 0);
    lk_lora adapter = {.a = lora_a.data, .b = lora_b.data, .da = da.data, .db = db.data, .type = LK_F32, .rank = RANK, .scale = 1e-3f};
    lk_segment segment = {0, b->tokens, 0};
    int32_t starts[2] = {0, (int32_t)b->tokens};
    lk_batch batch = {.n_tokens = b->tokens,
                      .n_docs = 1,
                      .doc_starts = starts,
                      .n_segments = 1,
                      .segments = &segment,
                      .n_sites = 1,
                      .n_adapters = 1,
                      .lora = &adapter};
    c.batch = &batch;
    bench_check(b, "batch_begin", lk_batch_begin(b->be, &batch));
    double extra = 2 * t * RANK * (double)(n + k);
    bench_report(b, "linear NF4 with LoRA r 16, forward", bench_seconds(b, "linear_lora", run_linear_lora, &c), bytes, operations + extra,
                 0);
    bench_report(b, "linear NF4 with LoRA r 16, backward", bench_seconds(b, "linear_lora_backward", run_linear_lora_backward, &c), bytes,
                 operations + 3 * extra, 0);
    for (int i = 0; i < TURNS; i++) lk_matrix_destroy(b->be, w[i]);
    lk_tensor *all[] = {&c.y, &c.x, &c.h, &c.dx, &lora_a, &lora_b, &da, &db};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lk_free(b->be, all[i]->data);
}

/* ---------------------------------------------------------------------------------------------- the other operations */

typedef struct others {
    lk_tensor x, y, dy, gate, up, dglu, q, k, v, o, dq, dk, dv, lse, rstd, weight, cos_sin, nll;
    lk_matrix *head;
    int32_t *labels;
    lk_batch batch;
    lk_attention_shape shape;
    float *p, *g, *m, *v2, *m_scale, *v_scale;
    uint8_t *m8, *v8;
    int64_t params;
} others;

#define RUN(name, expression)                      \
    static lk_status name(bench *b, void *context) \
    {                                              \
        others *x = context;                       \
        return expression;                         \
    }
RUN(run_rmsnorm, lk_rmsnorm(b->be, &x->y, x->rstd.data, &x->x, x->weight.data, 1e-5f))
RUN(run_rmsnorm_backward, lk_rmsnorm_backward(b->be, &x->y, &x->dy, &x->x, x->weight.data, x->rstd.data, true))
RUN(run_rope, lk_rope(b->be, &x->q, x->shape.heads, &x->cos_sin, false))
RUN(run_glu, lk_glu(b->be, &x->dglu, &x->gate, &x->up, LK_SILU))
RUN(run_glu_backward, lk_glu_backward(b->be, &x->gate, &x->up, &x->dglu, &x->gate, &x->up, LK_SILU))
RUN(run_add, lk_add(b->be, &x->y, &x->x))
RUN(run_attention, lk_attention(b->be, &x->batch, &x->shape, &x->o, x->lse.data, &x->q, &x->k, &x->v))
RUN(run_attention_backward,
    lk_attention_backward(b->be, &x->batch, &x->shape, &x->dq, &x->dk, &x->dv, &x->dy, &x->o, x->lse.data, &x->q, &x->k, &x->v))
RUN(run_loss, lk_linear_loss(b->be, x->nll.data, NULL, &x->dy, &x->x, x->head, x->labels, 1e-3f, 0.0f))
static const lk_adamw_step adamw_step = {.lr = 1e-9f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .step = 10, .grad_scale = 1};
RUN(run_adamw, lk_adamw(b->be, x->p, x->g, x->m, x->v2, x->params, &adamw_step))
RUN(run_adamw8, lk_adamw8(b->be, x->p, x->g, x->m8, x->v8, x->m_scale, x->v_scale, x->params, &adamw_step))

static void *zeroed(bench *b, size_t bytes)
{
    void *p;
    bench_check(b, "alloc", lk_alloc(b->be, bytes, &p));
    return p;
}

static void bench_small(bench *b, others *x)
{
    double hidden = (double)b->tokens * (double)b->c.hidden, wide = (double)b->tokens * (double)b->c.intermediate;
    double size = (double)lk_dtype_size(lk_backend_act(b->be));
    bench_report(b, "rmsnorm", bench_seconds(b, "rmsnorm", run_rmsnorm, x), 2 * size * hidden, 0, 0);
    bench_report(b, "rmsnorm, gradient added", bench_seconds(b, "rmsnorm_backward", run_rmsnorm_backward, x), 4 * size * hidden, 0, 0);
    bench_report(b, "rope", bench_seconds(b, "rope", run_rope, x), 2 * size * hidden, 0, 0);
    bench_report(b, "glu", bench_seconds(b, "glu", run_glu, x), 3 * size * wide, 0, 85);
    bench_report(b, "glu, gradient", bench_seconds(b, "glu_backward", run_glu_backward, x), 5 * size * wide, 0, 85);
    bench_report(b, "add", bench_seconds(b, "add", run_add, x), 3 * size * hidden, 0, 0);
    bench_report(b, "adamw", bench_seconds(b, "adamw", run_adamw, x), 28.0 * (double)x->params, 0, 0);
    bench_report(b, "adamw, 8 bits", bench_seconds(b, "adamw8", run_adamw8, x), 16.0 * (double)x->params, 0, 0);
}

static void bench_attention_and_loss(bench *b, others *x)
{
    const lk_config *c = &b->c;
    double pairs = 0, tokens = (double)b->tokens, width = (double)(c->heads * c->head_dim), narrow = (double)(c->kv_heads * c->head_dim);
    for (int64_t d = 0; d < x->batch.n_docs; d++) {
        double n = (double)(x->batch.doc_starts[d + 1] - x->batch.doc_starts[d]);
        pairs += n * (n + 1) / 2;
    }
    double size = (double)lk_dtype_size(lk_backend_act(b->be)), bytes = size * tokens * (2 * width + 2 * narrow);
    bench_report(b, "attention", bench_seconds(b, "attention", run_attention, x), bytes, 4 * pairs * width, 0);
    bench_report(b, "attention, gradients", bench_seconds(b, "attention_backward", run_attention_backward, x), 2 * bytes,
                 10 * pairs * width, 0);
    bench_report(b, "head and loss with gradient", bench_seconds(b, "linear_loss", run_loss, x), 2 * size * tokens * (double)c->hidden,
                 4 * tokens * (double)c->vocab * (double)c->hidden, 0);
}

static void bench_others(bench *b)
{
    const lk_config *c = &b->c;
    int64_t wide = c->intermediate, kv = c->kv_heads * c->head_dim, query = c->heads * c->head_dim;
    int32_t starts[3] = {0, (int32_t)(b->tokens / 2), (int32_t)b->tokens};
    others x = {.x = act(b, c->hidden),
                .y = act(b, c->hidden),
                .dy = act(b, c->hidden),
                .gate = act(b, wide),
                .up = act(b, wide),
                .dglu = act(b, wide),
                .q = act(b, query),
                .k = act(b, kv),
                .v = act(b, kv),
                .o = act(b, query),
                .dq = act(b, query),
                .dk = act(b, kv),
                .dv = act(b, kv),
                .lse = bench_tensor(b, LK_F32, b->tokens, c->heads, 0),
                .rstd = bench_tensor(b, LK_F32, b->tokens, 1, 0),
                .weight = bench_tensor(b, LK_F32, 1, c->hidden, 0),
                .cos_sin = bench_tensor(b, LK_F32, b->tokens, c->head_dim, 0),
                .nll = bench_tensor(b, LK_F32, b->tokens, 1, 0),
                .batch = {.n_tokens = b->tokens, .n_docs = 2, .doc_starts = starts},
                .shape = {c->heads, c->kv_heads, c->head_dim, 1 / sqrtf((float)c->head_dim), 0},
                .params = c->hidden * wide / 2};
    x.labels = malloc((size_t)b->tokens * 4);
    if (!x.labels) bench_stop("labels", &(lk_error){.message = "no memory"});
    for (int64_t i = 0; i < b->tokens; i++) x.labels[i] = (int32_t)(i * 7919 % c->vocab);
    size_t params = (size_t)x.params, blocks = (params + LK_ADAMW8_BLOCK - 1) / LK_ADAMW8_BLOCK;
    float **vectors[] = {&x.p, &x.g, &x.m, &x.v2};
    for (size_t i = 0; i < 4; i++) *vectors[i] = zeroed(b, params * 4);
    x.m8 = zeroed(b, params);
    x.v8 = zeroed(b, params);
    x.m_scale = zeroed(b, blocks * 4);
    x.v_scale = zeroed(b, blocks * 4);
    if (bench_random_matrices(&x.head, 1, b->be, LK_BF16, c->vocab, c->hidden, &b->err)) bench_stop("head", &b->err);
    bench_check(b, "batch_begin", lk_batch_begin(b->be, &x.batch));
    bench_small(b, &x);
    bench_attention_and_loss(b, &x);
    lk_tensor *tensors[] = {&x.x, &x.y,  &x.dy, &x.gate, &x.up,  &x.dglu, &x.q,      &x.k,       &x.v,
                            &x.o, &x.dq, &x.dk, &x.dv,   &x.lse, &x.rstd, &x.weight, &x.cos_sin, &x.nll};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) lk_free(b->be, tensors[i]->data);
    void *rest[] = {x.p, x.g, x.m, x.v2, x.m8, x.v8, x.m_scale, x.v_scale};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) lk_free(b->be, rest[i]);
    lk_matrix_destroy(b->be, x.head);
    free(x.labels);
}

static void bench_ops(bench *b, const char *shape)
{
    if (bench_config(&b->c, shape, &b->err)) bench_stop("ops", &b->err);
    bool small = strcmp(shape, "tiny") == 0;
    b->tokens = small ? 64 : 4096;
    int64_t large = small ? 512 : 8192, widest = b->c.intermediate > large ? b->c.intermediate : large;
    lk_limits limits = {.tokens = b->tokens > large ? b->tokens : large,
                        .width = widest,
                        .vocab = b->c.vocab,
                        .rank = RANK,
                        .heads = b->c.heads,
                        .kv_heads = b->c.kv_heads,
                        .head_dim = b->c.head_dim,
                        .context = b->tokens,
                        .matrix = widest * large,
                        .training = true};
    bench_check(b, "reserve", lk_reserve(b->be, &limits));
    bench_ceilings(b, small);
    bench_dequantise(b);
    bench_linear(b);
    bench_others(b);
}

/* ---------------------------------------------------------------------------------------------- whole steps */

enum { ALL_LAYERS = 1000 };

static bench_step_options parse(int argc, char **argv)
{
    long long rows = 0, length = 0;
    if (argc < 2 || sscanf(argv[1], "%lldx%lld", &rows, &length) != 2 || rows < 1 || length < 2) {
        fprintf(stderr, "bench_cuda: wanted SHAPE ROWSxLENGTH, e.g. 8b 2x2048\n");
        exit(2);
    }
    return (bench_step_options){.shape = argv[0], .rows = rows, .length = length, .accumulate = argc > 2 ? atoll(argv[2]) : 1};
}

static void bench_train(bench *b, int argc, char **argv)
{
    bench_step_options options = parse(argc, argv);
    options.kept_layers = ALL_LAYERS;
    bench_step *s;
    char name[96], value[64], of[96];
    double seconds[5], loss = 0, flops = 0;
    if (bench_step_create(&s, b->be, &options, &b->err)) bench_stop("train", &b->err);
    if (bench_step_run(s, &loss, &b->err)) bench_stop("train", &b->err);
    int n = 0;
    for (double begin = lk_clock_seconds(); n < 5 && (n < 2 || lk_clock_seconds() - begin < 30); n++) {
        double start = lk_clock_seconds();
        if (bench_step_run(s, &loss, &b->err)) bench_stop("train", &b->err);
        seconds[n] = lk_clock_seconds() - start;
        for (int i = n; i > 0 && seconds[i] < seconds[i - 1]; i--) {
            double swap = seconds[i];
            seconds[i] = seconds[i - 1];
            seconds[i - 1] = swap;
        }
    }
    size_t peak = lk_allocated_peak(b->be);
    bench_step_destroy(s);
    bench_ceilings(b, strcmp(options.shape, "tiny") == 0);
    if (bench_step_flops(&flops, &options, &b->err)) bench_stop("train", &b->err);
    double median = seconds[n / 2], rate = (double)(options.rows * options.length * options.accumulate) / median;
    snprintf(name, sizeof name, "%s train step, tokens/s", options.shape);
    snprintf(value, sizeof value, "%.0f", rate);
    snprintf(of, sizeof of, "%lldx%lld x%lld, %.3f s, loss %.3f", (long long)options.rows, (long long)options.length,
             (long long)options.accumulate, median, loss);
    bool goal = strcmp(options.shape, "8b") == 0;
    bench_row(name, value, of, goal ? ">= 14000" : "-", !goal ? "-" : rate >= 14000 ? "pass" : "MISSED");
    snprintf(name, sizeof name, "%s train step, products", options.shape);
    snprintf(value, sizeof value, "%.4g TFLOP/s", flops / median * 1e-12);
    snprintf(of, sizeof of, "%.0f%% of the product", 100 * flops / median / b->product);
    bench_row(name, value, of, "-", "-");
    snprintf(name, sizeof name, "%s train step, backend memory", options.shape);
    snprintf(value, sizeof value, "%.2f GB", (double)peak * 1e-9);
    bench_row(name, value, "all activations kept", "-", "-");
}

static void bench_memory(bench *b, int argc, char **argv)
{
    bench_step_options options = parse(argc, argv);
    options.kept_layers = 1;
    options.offload = strcmp(options.shape, "70b") == 0;
    bench_step *s;
    char name[96], value[64], of[96], goal[32] = "-";
    double loss, start = lk_clock_seconds();
    size_t plan;
    if (bench_step_bytes(&plan, b->be, &options, &b->err)) bench_stop("memory", &b->err);
    if (bench_step_create(&s, b->be, &options, &b->err)) bench_stop("memory", &b->err);
    double opened = lk_clock_seconds() - start;
    if (bench_step_run(s, &loss, &b->err)) bench_stop("memory", &b->err);
    start = lk_clock_seconds();
    if (bench_step_run(s, &loss, &b->err)) bench_stop("memory", &b->err);
    double seconds = lk_clock_seconds() - start, peak = (double)lk_allocated_peak(b->be);
    bench_step_destroy(s);
    double most = strcmp(options.shape, "8b") == 0 ? 8.0e9 : strcmp(options.shape, "70b") == 0 ? 48.0e9 : 0;
    snprintf(name, sizeof name, "%s %s peak memory", argv[0], argv[1]);
    snprintf(value, sizeof value, "%.2f GB", peak * 1e-9);
    snprintf(of, sizeof of, "recomputing%s; made in %.0f s, step %.2f s", options.offload ? ", offload" : "", opened, seconds);
    if (most > 0) snprintf(goal, sizeof goal, "<= %.1f GB", most * 1e-9);
    bench_row(name, value, of, goal, most <= 0 ? "-" : peak <= most ? "pass" : "MISSED");
    double apart = 100 * (peak / (double)plan - 1);
    snprintf(name, sizeof name, "%s %s peak against its plan", argv[0], argv[1]);
    snprintf(value, sizeof value, "%+.2f%%", apart);
    snprintf(of, sizeof of, "planned %.2f GB", (double)plan * 1e-9);
    bench_row(name, value, of, "within 3%", fabs(apart) <= 3 ? "pass" : "MISSED");
}

int main(int argc, char **argv)
{
    const char *device = "cuda", *shape = "8b";
    int at = 1;
    for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
        if (strcmp(argv[at], "--device") == 0)
            device = argv[at + 1];
        else if (strcmp(argv[at], "--shape") == 0)
            shape = argv[at + 1];
    }
    bench b = {0};
    const char *what = at < argc ? argv[at] : "";
    if (strcmp(what, "ops") != 0 && strcmp(what, "train") != 0 && strcmp(what, "memory") != 0)
        return fprintf(stderr,
                       "usage: bench_cuda [--device D] [--shape S] ops | train SHAPE ROWSxLENGTH ACCUMULATE | memory SHAPE ROWSxLENGTH\n"),
               2;
    if (lk_backend_open(&b.be, &(lk_backend_options){.device = device, .compute = LK_BF16}, &b.err)) bench_stop(device, &b.err);
    if (strcmp(what, "ops") == 0)
        bench_ops(&b, shape);
    else if (strcmp(what, "train") == 0)
        bench_train(&b, argc - at - 1, argv + at + 1);
    else
        bench_memory(&b, argc - at - 1, argv + at + 1);
    lk_backend_close(b.be);
    return 0;
}
