/* LoRA gradients of whole tiny models against PEFT over the same dequantised NF4 weights, and what must not change them: checkpointing,
 * threads, packing. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/peft.h"
#include "kernels/backend.h"
#include "tests/model.h"

typedef struct example {
    lk_safetensors *st;
    check_model m;
    lk_adapter *adapter;
    int64_t n;
    int32_t *ids, *labels;
    int64_t supervised;
} example;

/* tests/golden: labels[t] == ids[t] where supervised; here row t predicts token t+1. */
static void shift_labels(example *x)
{
    for (int64_t t = 0; t + 1 < x->n; t++) x->labels[t] = x->labels[t + 1] < 0 ? -1 : x->labels[t + 1];
    x->labels[x->n - 1] = -1;
    for (int64_t t = 0; t < x->n; t++) x->supervised += x->labels[t] >= 0;
}

static example open_example(const char *model, const char *adapter, int threads, lk_dtype compute, const char *tier)
{
    example x = {0};
    lk_error err = {0};
    char name[100];
    snprintf(name, sizeof name, "models/%s", model);
    char *folder = check_golden(name);
    x.m = check_model_open(folder, LK_QUANT_NF4, compute, threads, tier);
    free(folder);
    snprintf(name, sizeof name, "adapters/%s", adapter);
    folder = check_golden(name);
    CHECK_OK(lk_adapter_load(&x.adapter, x.m.model, folder, LK_F32, &err), &err);
    free(folder);
    snprintf(name, sizeof name, "lora_%s.safetensors", adapter);
    folder = check_golden(name);
    CHECK_OK(lk_safetensors_open(&x.st, folder, &err), &err);
    free(folder);
    x.ids = check_ints(x.st, "ids", &x.n);
    x.labels = check_ints(x.st, "labels", NULL);
    shift_labels(&x);
    return x;
}

static void close_example(example *x)
{
    lk_adapter_destroy(x->adapter);
    check_model_close(&x->m);
    lk_safetensors_close(x->st);
    free(x->ids);
    free(x->labels);
}

/* Mean loss; gradients of the flat layout into grads. */
static double run(example *x, int64_t kept_layers, bool offload, float *grads)
{
    lk_error err = {0};
    lk_pass *pass;
    lk_pass_options options = {
        .max_tokens = x->n, .max_rank = x->adapter->max_rank, .kept_layers = kept_layers, .offload = offload, .training = true};
    CHECK_OK(lk_pass_create(&pass, x->m.model, &options, &err), &err);
    memset(grads, 0, (size_t)x->adapter->n_params * 4);
    check_batch b;
    check_batch_init(&b, x->ids, x->n);
    check_batch_adapter(&b, x->adapter, grads);
    float *nll = malloc((size_t)x->n * 4);
    CHECK_OK(lk_pass_gradient(pass, &b.batch, x->labels, 1.0f / (float)x->supervised, NULL, nll, &err), &err);
    double total = 0;
    for (int64_t t = 0; t < x->n; t++) total += (double)nll[t];
    free(nll);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    return total / (double)x->supervised;
}

static double norm(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Each factor's gradient: the error's norm relative to the gradient's. */
static void compare_gradients(const example *x, const float *grads, double tolerance)
{
    int compared = 0;
    for (int32_t s = 0; s < x->adapter->n_sites; s++) {
        const lk_adapter_site *site = &x->adapter->sites[s];
        if (!site->rank) continue;
        for (int f = 0; f < 2; f++) {
            char path[200], name[300];
            lk_site_path(path, sizeof path, &x->m.model->config, s);
            snprintf(name, sizeof name, "grad.base_model.model.%s.lora_%c.weight", path, "AB"[f]);
            int64_t n;
            float *want = check_floats(x->st, name, &n);
            const float *got = grads + (f ? site->b : site->a);
            assert_int_equal(n, site->rank * (f ? site->n : site->k));
            float *difference = malloc((size_t)n * 4);
            for (int64_t i = 0; i < n; i++) difference[i] = got[i] - want[i];
            double relative = norm(difference, n) / norm(want, n);
            if (!(relative <= tolerance)) fail_msg("%s: relative error %.3g above %.3g", name, relative, tolerance);
            free(difference);
            free(want);
            compared++;
        }
    }
    assert_true(compared > 0);
}

static void test_against_peft(void **state)
{
    (void)state;
    static const struct {
        const char *model, *adapter;
    } cases[] = {{"llama-tiny", "r8_all"},
                 {"llama-tiny", "mixed"},
                 {"llama-tiny", "rslora"},
                 {"qwen2-tiny", "r8_all_qwen2"},
                 {"qwen3-tiny", "r8_all_qwen3"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int fast = 0; fast < 2; fast++) {
            example x = open_example(cases[i].model, cases[i].adapter, 2, LK_F32, fast ? NULL : "reference");
            float *grads = calloc((size_t)x.adapter->n_params, 4);
            double loss = run(&x, 1, false, grads);
            float *want = check_floats(x.st, "loss", NULL);
            if (!(fabs(loss - (double)want[0]) < 1e-4)) fail_msg("%s: loss %.7f want %.7f", cases[i].adapter, loss, (double)want[0]);
            compare_gradients(&x, grads, 1e-3);
            /* In bf16 compute every product's factors carry 8 bits: 2^-9 each, accumulated over the layers. */
            free(want);
            free(grads);
            close_example(&x);
        }
    }
}

static void test_bf16_near(void **state)
{
    (void)state;
    example x = open_example("llama-tiny", "r8_all", 2, LK_BF16, NULL);
    float *grads = calloc((size_t)x.adapter->n_params, 4);
    double loss = run(&x, 1, false, grads);
    float *want = check_floats(x.st, "loss", NULL);
    assert_true(fabs(loss - (double)want[0]) < 3e-2);
    compare_gradients(&x, grads, 0.06); /* 2^-8 a factor, some forty products deep */
    free(want);
    free(grads);
    close_example(&x);
}

/* Recomputation repeats the same operations on the same numbers: bit for bit. Likewise threads. */
static void test_checkpointing_and_threads(void **state)
{
    (void)state;
    float *want = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        for (int setting = 0; setting <= 3; setting++) {
            example x = open_example("qwen3-tiny", "r8_all_qwen3", threads, LK_BF16, NULL);
            size_t bytes = (size_t)x.adapter->n_params * 4;
            float *grads = calloc(1, bytes);
            run(&x, setting + 1, false, grads);
            if (!want) {
                want = grads;
            } else {
                check_same_bits("gradients", grads, want, bytes);
                free(grads);
            }
            close_example(&x);
        }
    }
    free(want);
}

/* ---- seven layers of random weights: every number of kept layers, inputs on the device or away */

static void check_document(check_batch *b, const lk_adapter *adapter, int32_t *ids, int32_t *labels, int64_t n, int64_t vocab)
{
    check_random r = {11};
    for (int64_t t = 0; t < n; t++) {
        ids[t] = (int32_t)(check_random_uniform(&r) * (double)vocab);
        labels[t] = t % 5 == 4 ? -1 : (int32_t)(check_random_uniform(&r) * (double)vocab);
    }
    check_batch_init(b, ids, n);
    check_batch_adapter(b, adapter, NULL);
}

/* Transfers at the last moment that the contract allows: what is wanted too early, or changed too early, shows. */
static struct {
    void *to;
    const void *from;
    size_t bytes;
} late[LK_TRANSFER_SLOTS];

static int n_transfers;

static lk_status late_begin(lk_backend *be, int slot, void *to, const void *from, size_t bytes)
{
    if (late[slot].bytes) return lk_fail(&be->error, LK_ERR_INTERNAL, "slot %d is busy", slot);
    late[slot].to = to;
    late[slot].from = from;
    late[slot].bytes = bytes;
    n_transfers++;
    return LK_OK;
}

static lk_status late_wait(lk_backend *be, int slot)
{
    (void)be;
    if (late[slot].bytes) memcpy(late[slot].to, late[slot].from, late[slot].bytes);
    late[slot].bytes = 0;
    return LK_OK;
}

static void test_offload(void **state)
{
    (void)state;
    enum { LAYERS = 7, N = 29 };
    lk_error err = {0};
    lk_config shape = {.hidden = 64, .layers = LAYERS, .heads = 4, .kv_heads = 2, .head_dim = 16, .intermediate = 96, .vocab = 101};
    char *folder = check_random_model("gradient_deep", &shape);
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_BF16, 2, NULL);
    const lk_ops *eager = m.be->ops;
    lk_ops lazy = *eager;
    lazy.transfer_begin = late_begin;
    lazy.transfer_wait = late_wait;
    lk_adapter *adapter;
    lk_adapter_spec spec = {.rank = 4, .alpha = 8, .targets = {true, true, true, true, true, true, true}};
    CHECK_OK(lk_adapter_create(&adapter, m.model, &spec, 5, &err), &err);
    check_random random = {23};
    check_random_fill(&random, adapter->weights, adapter->n_params, 0.05f);
    size_t bytes = (size_t)adapter->n_params * 4;
    float *want = NULL, nll[N];
    int32_t ids[N], labels[N];
    for (int64_t kept = LAYERS; kept >= 1; kept--) {
        for (int away = 0; away < 3; away++) { /* on the device; away, copied at once; away, copied late */
            check_batch b;
            check_document(&b, adapter, ids, labels, N, shape.vocab);
            float *grads = calloc(1, bytes);
            const lk_adapter *adapters[1] = {adapter};
            lk_adapter_table(b.table, adapters, 1, &grads);
            m.be->ops = away == 2 ? &lazy : eager;
            n_transfers = 0;
            lk_pass_options options = {.max_tokens = N + 3, .max_rank = 4, .kept_layers = kept, .offload = away > 0, .training = true};
            lk_dropout dropout = {.p = 0.25f, .key = lk_philox_key_make(3, LK_STREAM_DROPOUT), .counter = 1};
            lk_pass_plan plan;
            lk_pass *pass;
            lk_pass_plan_bytes(m.be, &m.model->config, &options, &plan);
            size_t before = lk_allocated(m.be), scratch = plan.scratch * (want == NULL);
            CHECK_OK(lk_pass_create(&pass, m.model, &options, &err), &err);
            assert_int_equal(lk_allocated(m.be) - before, plan.checkpoints + plan.activations + plan.transient + scratch);
            int64_t elsewhere = away && LAYERS - kept > 2 ? LAYERS - kept - 2 : 0;
            assert_int_equal(plan.host, elsewhere * (N + 3) * shape.hidden * 4);
            CHECK_OK(lk_pass_loss(pass, &b.batch, labels, nll, NULL, &err), &err); /* leaves nothing behind */
            CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 0.1f, &dropout, nll, &err), &err);
            if (away == 2) assert_int_equal(n_transfers, 2 * elsewhere);
            for (int slot = 0; slot < LK_TRANSFER_SLOTS; slot++) assert_int_equal(late[slot].bytes, 0);
            if (want)
                check_same_bits("gradients", grads, want, bytes);
            else
                want = calloc(1, bytes), memcpy(want, grads, bytes);
            free(grads);
            lk_pass_destroy(pass);
            check_batch_free(&b);
        }
    }
    assert_true(norm(want, adapter->n_params) > 0);
    m.be->ops = eager;
    free(want);
    lk_adapter_destroy(adapter);
    check_model_close(&m);
    free(folder);
}

/* Three documents in one row equal the three alone. */
static void test_packing(void **state)
{
    (void)state;
    lk_error err = {0};
    example x = open_example("qwen2-tiny", "r8_all_qwen2", 2, LK_F32, NULL);
    int32_t starts[4] = {0, (int32_t)x.n / 3, (int32_t)x.n / 3 + 1, (int32_t)x.n};
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, x.m.model, &(lk_pass_options){.max_tokens = x.n, .max_rank = 8}, &err), &err);
    float *packed = malloc((size_t)x.n * 4), *alone = malloc((size_t)x.n * 4);
    int32_t *labels = malloc((size_t)x.n * 4);
    for (int64_t t = 0; t < x.n; t++) labels[t] = t + 1 < x.n ? x.ids[t + 1] : -1;
    for (int d = 1; d <= 3; d++) labels[starts[d] - 1] = -1;
    check_batch b;
    check_batch_init(&b, x.ids, x.n);
    check_batch_adapter(&b, x.adapter, NULL);
    for (int d = 0; d < 3; d++)
        for (int32_t t = starts[d]; t < starts[d + 1]; t++) b.positions[t] = t - starts[d];
    b.batch.n_docs = 3;
    b.batch.doc_starts = starts;
    CHECK_OK(lk_pass_loss(pass, &b.batch, labels, packed, NULL, &err), &err);
    for (int d = 0; d < 3; d++) {
        check_batch one;
        check_batch_init(&one, x.ids + starts[d], starts[d + 1] - starts[d]);
        check_batch_adapter(&one, x.adapter, NULL);
        CHECK_OK(lk_pass_loss(pass, &one.batch, labels + starts[d], alone + starts[d], NULL, &err), &err);
        check_batch_free(&one);
    }
    check_same_bits("packed and separate losses", packed, alone, (size_t)x.n * 4);
    lk_pass_destroy(pass);
    check_batch_free(&b);
    free(packed);
    free(alone);
    free(labels);
    close_example(&x);
}

/* The pass takes exactly what its plan says. */
static void test_plan_is_exact(void **state)
{
    (void)state;
    lk_error err = {0};
    for (int kept = 1; kept <= 3; kept++) {
        example x = open_example("qwen3-tiny", "r8_all_qwen3", 2, LK_BF16, NULL);
        lk_pass_options options = {.max_tokens = 37, .max_rank = 8, .kept_layers = kept, .training = true};
        lk_pass_plan plan;
        lk_pass_plan_bytes(x.m.be, &x.m.model->config, &options, &plan);
        size_t before = lk_allocated(x.m.be);
        lk_pass *pass;
        CHECK_OK(lk_pass_create(&pass, x.m.model, &options, &err), &err);
        assert_int_equal(lk_allocated(x.m.be) - before, plan.checkpoints + plan.activations + plan.transient + plan.scratch);
        lk_pass_destroy(pass);
        close_example(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_peft), cmocka_unit_test(test_bf16_near), cmocka_unit_test(test_checkpointing_and_threads),
        cmocka_unit_test(test_offload),      cmocka_unit_test(test_packing),   cmocka_unit_test(test_plan_is_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
