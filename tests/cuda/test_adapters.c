/* Adapters that are more than factors, on the CUDA backend: PEFT's logits, losses and gradients with every option; in a mixed serving batch
 * the same bits as alone; DoRA and PiSSA trained for some steps. The engine's part is test_company.c's. */
#include <stdio.h>

#include "tests/cuda/cuda_check.h"
#include "tests/model.h"
#include "train/step.h"

static const struct {
    const char *name, *base;
} rows[] = {
    {"dora", "llama-tiny"},     {"dora_rslora", "qwen2-tiny"}, {"lora_bias", "llama-tiny"},  {"bias_lora_only", "qwen2-tiny"},
    {"bias_all", "qwen2-tiny"}, {"saved", "llama-tiny"},       {"saved_tied", "qwen3-tiny"}, {"embedding", "llama-tiny"},
    {"tokens", "llama-tiny"},   {"tokens_tied", "qwen3-tiny"},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

static const lk_backend_options on_cuda = {.device = "cuda", .threads = 1, .compute = LK_BF16};
static lk_safetensors *golden;

static char *folder_of(const char *kind, const char *name)
{
    char path[100];
    snprintf(path, sizeof path, "%s/%s", kind, name);
    return check_golden(path);
}

/* Off by how much of its size. */
static double off(const float *got, const float *want, int64_t n)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(error / (size > 0 ? size : 1e-30));
}

static double mean_loss(const float *logits, const int32_t *labels, int64_t n, int64_t vocab)
{
    double total = 0;
    for (int64_t t = 0; t + 1 < n; t++) {
        double sum = 0;
        for (int64_t v = 0; v < vocab; v++) sum += exp((double)logits[t * vocab + v]);
        total += log(sum) - (double)logits[t * vocab + labels[t]];
    }
    return total / (double)(n - 1);
}

static void check_option(const char *name, const char *base, bool nf4)
{
    lk_error err = {0};
    char key[100];
    int64_t n, n_want;
    snprintf(key, sizeof key, "%s.ids", name);
    int32_t *ids = check_ints(golden, key, &n);
    snprintf(key, sizeof key, "%s.logits%s", name, nf4 ? "_nf4" : "");
    float *want = check_floats(golden, key, &n_want), *got = malloc((size_t)n_want * 4), *nll = malloc((size_t)n * 4);
    char *model = folder_of("models", base), *folder = folder_of("options", name);
    check_model m = check_model_open_on(model, nf4 ? LK_QUANT_NF4 : LK_QUANT_NONE, &on_cuda);
    lk_adapter *a;
    CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_F32, &err), &err);
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m.model, &(lk_pass_options){.max_tokens = n, .max_rank = a->max_rank}, &err), &err);
    check_batch b;
    check_batch_init(&b, ids, n);
    check_batch_adapter(&b, a, NULL);
    CHECK_OK(lk_pass_logits(pass, &b.batch, got, &err), &err);
    int32_t *labels = malloc((size_t)n * 4);
    for (int64_t t = 0; t < n; t++) labels[t] = t + 1 < n ? ids[t + 1] : -1;
    CHECK_OK(lk_pass_loss(pass, &b.batch, labels, nll, NULL, &err), &err);
    double loss = 0, logits = off(got, want, n_want);
    for (int64_t t = 0; t + 1 < n; t++) loss += (double)nll[t] / (double)(n - 1);
    double wanted = mean_loss(want, labels, n, n_want / n);
    print_message("%s%s: logits off by %.2g, loss %.4f, PEFT's %.4f\n", name, nf4 ? " over 4 bits" : "", logits, loss, wanted);
    /* a relative 2^-9 a rounding, some ten a layer, two layers */
    if (!(logits < 3e-2 && fabs(loss - wanted) < 2e-2)) fail_msg("%s: off by %.3g, loss %.4f for %.4f", name, logits, loss, wanted);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    lk_adapter_destroy(a);
    check_model_close(&m);
    void *all[] = {ids, want, got, nll, labels, model, folder};
    for (int i = 0; i < 7; i++) free(all[i]);
}

static void test_logits(void **state)
{
    (void)state;
    set_schedule(0);
    for (int i = 0; i < N_ROWS; i++)
        for (int nf4 = 0; nf4 < 2; nf4++) check_option(rows[i].name, rows[i].base, nf4);
}

/* ---- gradients ---- */

static void test_dora_gradient(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = folder_of("models", "llama-tiny"), *folder = folder_of("options", "dora");
    check_model m = check_model_open_on(base, LK_QUANT_NF4, &on_cuda);
    int64_t n;
    int32_t *ids = check_ints(golden, "dora.ids", &n), labels[64];
    for (int64_t t = 0; t < n; t++) labels[t] = t + 1 < n ? ids[t + 1] : -1;
    lk_adapter *a;
    CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_F32, &err), &err);
    size_t bytes = (size_t)a->n_params * 4;
    float *got[2], nll[64];
    for (int kept = 0; kept < 2; kept++) {
        void *grads;
        OP(m.be, lk_alloc(m.be, bytes, &grads));
        lk_pass *pass;
        lk_pass_options options = {.max_tokens = n, .max_rank = a->max_rank, .kept_layers = 1 + kept, .training = true, .gains = true};
        CHECK_OK(lk_pass_create(&pass, m.model, &options, &err), &err);
        check_batch b;
        check_batch_init(&b, ids, n);
        check_batch_adapter(&b, a, grads);
        CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 1.0f / (float)(n - 1), NULL, nll, &err), &err);
        got[kept] = malloc(bytes);
        OP(m.be, lk_download(m.be, got[kept], grads, bytes));
        lk_free(m.be, grads);
        check_batch_free(&b);
        lk_pass_destroy(pass);
    }
    check_same_bits("gradients with and without recomputation", got[0], got[1], bytes);
    double worst = 0;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        static const char *const tails[] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
        const int64_t offsets[] = {site->a, site->b, site->m};
        for (int i = 0; i < 3 && site->rank; i++) {
            char path[200], key[400];
            int64_t size;
            lk_site_path(path, sizeof path, &m.model->config, s);
            snprintf(key, sizeof key, "dora.grad.base_model.model.%s.%s", path, tails[i]);
            float *want = check_floats(golden, key, &size);
            double o = off(got[0] + offsets[i], want, size);
            if (o > worst) worst = o;
            free(want);
        }
    }
    print_message("a DoRA's gradients are off by at most %.2g\n", worst);
    assert_true(worst < 8e-2);
    free(got[0]);
    free(got[1]);
    free(ids);
    lk_adapter_destroy(a);
    check_model_close(&m);
    free(base);
    free(folder);
}

/* ---- in mixed batches ---- */

enum { N_MIXED = 7, T_EACH = 5, PAGE = 16 };

/* Logits of each sequence's last row; order[i] is the adapter of sequence i (N_MIXED - 1: the base). */
static void serve(const check_model *m, lk_adapter *const *adapters, const int *order, int n, float *out)
{
    lk_error err = {0};
    lk_infer *infer;
    lk_infer_options options = {.max_tokens = 64, .max_rows = 8, .max_context = 64, .max_rank = 8};
    CHECK_OK(lk_infer_create(&infer, m->model, &options, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(m->model, PAGE, 8);
    lk_kv *kv;
    OP(m->be, lk_kv_create(m->be, &kv, &shape));
    int32_t ids[64], positions[64], pages[8], last[8], n_adapters = N_MIXED - 1, n_sites = adapters[0]->n_sites;
    lk_sequence sequences[8];
    lk_segment segments[8];
    lk_lora *table = calloc((size_t)(n_sites * n_adapters), sizeof *table);
    lk_adapter_tables tables[N_MIXED];
    const lk_adapter *list[N_MIXED];
    for (int i = 0; i < n_adapters; i++) list[i] = adapters[i];
    lk_adapter_table(table, list, n_adapters, NULL);
    for (int i = 0; i < n; i++) {
        int64_t begin = i * T_EACH;
        for (int t = 0; t < T_EACH; t++) {
            ids[begin + t] = t == 2 ? 9 : (int32_t)((7 * t + 13 * order[i]) % 150 + 3); /* 9: a trained token */
            positions[begin + t] = t;
        }
        pages[i] = i;
        last[i] = (int32_t)(begin + T_EACH - 1);
        sequences[i] = (lk_sequence){.begin = begin, .count = T_EACH, .length = T_EACH, .pages = &pages[i]};
        segments[i] = (lk_segment){begin, begin + T_EACH, order[i] < n_adapters ? order[i] : -1};
    }
    lk_batch batch = {.n_tokens = n * T_EACH,
                      .ids = ids,
                      .positions = positions,
                      .n_sequences = n,
                      .sequences = sequences,
                      .n_segments = n,
                      .segments = segments,
                      .n_sites = n_sites,
                      .n_adapters = n_adapters,
                      .lora = table,
                      .tables = lk_adapter_fill_tables(tables, list, n_adapters)};
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(infer, &batch, kv, last, n, &logits, &err), &err);
    OP(m->be, lk_download(m->be, out, logits.data, (size_t)(n * logits.cols) * 4));
    free(table);
    lk_kv_destroy(m->be, kv);
    lk_infer_destroy(infer);
}

static void test_company(void **state)
{
    (void)state;
    lk_error err = {0};
    static const char *const names[] = {"dora", "lora_bias", "saved", "embedding", "tokens", "layers"};
    static const int order[N_MIXED] = {4, 0, 6, 2, 1, 5, 3};
    char *base = folder_of("models", "llama-tiny");
    check_model m = check_model_open_on(base, LK_QUANT_NF4, &on_cuda);
    lk_adapter *adapters[N_MIXED - 1];
    for (int i = 0; i < N_MIXED - 1; i++) {
        char *folder = folder_of("options", names[i]);
        CHECK_OK(lk_adapter_load(&adapters[i], m.model, folder, LK_BF16, &err), &err);
        free(folder);
    }
    int64_t vocab = m.model->config.vocab;
    float *together = malloc((size_t)(N_MIXED * vocab) * 4), *alone = malloc((size_t)vocab * 4);
    for (uint64_t seed = 0; seed < 2; seed++) {
        set_schedule(seed);
        serve(&m, adapters, order, N_MIXED, together);
        for (int i = 0; i < N_MIXED; i++) {
            serve(&m, adapters, &order[i], 1, alone);
            check_same_bits("alone", together + i * vocab, alone, (size_t)vocab * 4);
            for (int j = 0; j < i; j++) assert_true(memcmp(together + i * vocab, together + j * vocab, (size_t)vocab * 4) != 0);
        }
    }
    set_schedule(0);
    free(together);
    free(alone);
    for (int i = 0; i < N_MIXED - 1; i++) lk_adapter_destroy(adapters[i]);
    check_model_close(&m);
    free(base);
}

/* ---- training ---- */

typedef struct run {
    double losses[4];
    float *before, *after; /* the flat vector */
    lk_adapter_site *sites;
} run;

enum { STEPS = 4, TOKENS = 40 };

static run train(const lk_backend_options *on, bool dora)
{
    lk_error err = {0};
    run r = {0};
    char *base = folder_of("models", "llama-tiny");
    check_model m = check_model_open_on(base, LK_QUANT_NF4, on);
    lk_adapter_spec spec = {.rank = 4, .alpha = 8, .targets = {true, true, true, true, true, true, true}};
    spec.use_dora = dora;
    spec.init = dora ? LK_INIT_DEFAULT : LK_INIT_PISSA;
    lk_adapter *a;
    CHECK_OK(lk_adapter_create(&a, m.model, &spec, 7, &err), &err);
    r.before = malloc(lk_adapter_bytes(a));
    r.after = malloc(lk_adapter_bytes(a));
    r.sites = malloc((size_t)a->n_sites * sizeof *r.sites);
    memcpy(r.sites, a->sites, (size_t)a->n_sites * sizeof *r.sites);
    OP(m.be, lk_download(m.be, r.before, a->weights, lk_adapter_bytes(a)));
    lk_trainer_options options = {
        .max_tokens = TOKENS, .kept_layers = 2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1.0, .seed = 1};
    lk_trainer t;
    CHECK_OK(lk_trainer_init(&t, m.model, a, &options, &err), &err);
    int32_t ids[TOKENS], labels[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (17 * i) % 150 + 3;
    for (int i = 0; i < TOKENS; i++) labels[i] = i + 1 < TOKENS ? ids[i + 1] : -1;
    check_batch b;
    check_batch_init(&b, ids, TOKENS);
    lk_micro_batch micro = {.batch = b.batch, .labels = labels, .supervised = TOKENS - 1};
    const lk_micro_batch *all[] = {&micro};
    for (int step = 0; step < STEPS; step++) {
        lk_step_result result;
        CHECK_OK(lk_trainer_step(&t, all, 1, step, 5e-3, &result, &err), &err);
        r.losses[step] = result.loss;
    }
    OP(m.be, lk_download(m.be, r.after, a->weights, lk_adapter_bytes(a)));
    check_batch_free(&b);
    lk_trainer_free(&t);
    lk_adapter_destroy(a);
    check_model_close(&m);
    free(base);
    return r;
}

static void check_frozen(const run *r, const lk_adapter_site *site)
{
    int32_t trained = site->rank - site->frozen;
    check_same_bits("frozen rows of A", r->after + site->a + trained * site->k, r->before + site->a + trained * site->k,
                    (size_t)(site->frozen * site->k) * 4);
    for (int64_t n = 0; n < site->n; n++)
        check_same_bits("frozen columns of B", r->after + site->b + n * site->rank + trained,
                        r->before + site->b + n * site->rank + trained, (size_t)site->frozen * 4);
    assert_true(memcmp(r->after + site->a, r->before + site->a, (size_t)(trained * site->k) * 4) != 0);
}

static void test_training(void **state)
{
    (void)state;
    static const lk_backend_options on_cpu = {.device = "cpu", .threads = 1, .compute = LK_F32};
    for (int dora = 0; dora < 2; dora++) {
        run want = train(&on_cpu, dora), got = train(&on_cuda, dora);
        for (int step = 0; step < STEPS; step++) {
            print_message("%s, step %d: loss %.4f, on the CPU %.4f\n", dora ? "dora" : "pissa", step, got.losses[step], want.losses[step]);
            assert_true(fabs(got.losses[step] - want.losses[step]) < 0.01 * want.losses[step]);
        }
        assert_true(got.losses[STEPS - 1] < got.losses[0] - 0.05);
        for (int s = 0; s < 14; s++) { /* all of them: two layers of seven */
            const lk_adapter_site *site = &got.sites[s];
            assert_int_equal(site->frozen, dora ? 0 : 4);
            if (!dora) check_frozen(&got, site);
            if (!dora) continue;
            double o = off(got.before + site->m, want.before + site->m, site->n);
            if (!(o < 1e-2)) fail_msg("first magnitudes of site %d are off by %.3g", s, o);
            assert_true(memcmp(got.before + site->m, got.after + site->m, (size_t)site->n * 4) != 0);
        }
        run *both[] = {&want, &got};
        for (int i = 0; i < 2; i++) {
            free(both[i]->before);
            free(both[i]->after);
            free(both[i]->sites);
        }
    }
}

static int open_golden(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("adapter_options.safetensors");
    lk_status status = lk_safetensors_open(&golden, path, &err);
    free(path);
    return status;
}

static int close_golden(void **state)
{
    (void)state;
    lk_safetensors_close(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits), cmocka_unit_test(test_dora_gradient), cmocka_unit_test(test_company),
                                       cmocka_unit_test(test_training)};
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
