/* What is trained beside factors of linear layers (biases, embeddings, heads, factors on them, chosen tokens): PEFT's gradients; the same
 * bits however layers are kept and however many threads; factors on the head as PEFT saved them, alone, in company and merged; and what is
 * refused, by name. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "model/merge.h"
#include "tests/trained.h"

static double gradient(const check_model *m, const trained_case *c, const lk_safetensors *st, int64_t kept, float **grads)
{
    lk_error err = {0};
    lk_adapter *a = trained_adapter(m->model, c);
    int32_t *ids = trained_ints(st, c, "ids"), *given = trained_ints(st, c, "labels"), labels[TRAINED_LENGTH];
    int64_t supervised = 0;
    for (int t = 0; t < TRAINED_LENGTH; t++) {
        labels[t] = t + 1 < TRAINED_LENGTH && given[t + 1] >= 0 ? given[t + 1] : -1;
        supervised += labels[t] >= 0;
    }
    lk_pass *pass;
    lk_pass_options options = {
        .max_tokens = TRAINED_LENGTH + 1, .max_rank = a->max_rank, .kept_layers = kept, .training = true, .head = true};
    CHECK_OK(lk_pass_create(&pass, m->model, &options, &err), &err);
    *grads = calloc((size_t)a->n_params, sizeof **grads);
    check_batch b;
    float nll[TRAINED_LENGTH];
    check_batch_init(&b, ids, TRAINED_LENGTH);
    check_batch_adapter(&b, a, *grads);
    b.batch.tables = lk_adapter_train_tables(&b.tables, a, *grads);
    CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 1.0f / (float)supervised, NULL, nll, &err), &err);
    double total = 0;
    for (int t = 0; t < TRAINED_LENGTH; t++) total += (double)nll[t];
    check_batch_free(&b);
    lk_pass_destroy(pass);
    lk_adapter_destroy(a);
    free(ids);
    free(given);
    return total / (double)supervised;
}

static double norm(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* The error's norm relative to the gradient's, tensor by tensor. */
static double compare(const check_model *m, const trained_case *c, const lk_safetensors *st, const float *grads)
{
    lk_adapter *a = trained_adapter(m->model, c);
    int n, compared = 0;
    trained_tensor *list = trained_tensors(a, &n);
    double worst = 0;
    for (int i = 0; i < n; i++) {
        char what[400];
        int64_t size;
        if (strstr(list[i].key, ".layers.") && !strstr(list[i].key, ".layers.0.")) continue;
        snprintf(what, sizeof what, "grad.%s", list[i].key);
        float *want = trained_floats(st, c, what, &size), *got = trained_values(&list[i], grads);
        assert_int_equal(size, list[i].n);
        for (int64_t j = 0; j < size; j++) got[j] -= want[j];
        double relative = norm(got, size) / norm(want, size);
        if (!(relative <= 1e-3)) fail_msg("%s, %s: relative error %.3g above 1e-3", c->name, list[i].key, relative);
        if (relative > worst) worst = relative;
        compared++;
        free(want);
        free(got);
    }
    assert_true(compared > 2);
    free(list);
    lk_adapter_destroy(a);
    return worst;
}

static void test_gradients(void **state)
{
    (void)state;
    lk_safetensors *st = trained_golden();
    double worst = 0;
    for (int i = 0; i < N_TRAINED; i++) {
        const trained_case *c = &trained_cases[i];
        lk_quant quant;
        char *folder = trained_base(c, &quant);
        float *grads[3];
        int64_t bytes = 0;
        for (int run = 0; run < 3; run++) { /* the reference; recomputing, one thread; keeping all, three threads */
            check_model m = check_model_open(folder, quant, LK_F32, run == 2 ? 3 : 1, run ? NULL : "reference");
            gradient(&m, c, st, run == 2 ? 9 : 1, &grads[run]);
            lk_adapter *a = trained_adapter(m.model, c);
            bytes = a->n_params * 4;
            lk_adapter_destroy(a);
            if (run < 2) worst = fmax(worst, compare(&m, c, st, grads[run]));
            check_model_close(&m);
        }
        check_same_bits("gradients with other threads and other kept layers", grads[1], grads[2], (size_t)bytes);
        for (int run = 0; run < 3; run++) free(grads[run]);
        free(folder);
    }
    print_message("largest relative error of a gradient beside PEFT's: %.2e\n", worst);
    lk_safetensors_close(st);
}

/* ---- factors on the head, as PEFT saves them */

static void check_logits(const char *what, const char *base, const char *adapter, lk_quant quant, const int32_t *ids, const float *want,
                         double tolerance)
{
    int64_t n;
    float *got = check_pass_logits(base, adapter, quant, ids, TRAINED_LENGTH, &n);
    check_close(what, got, want, n, tolerance, tolerance);
    free(got);
}

static void test_head_factors(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st = trained_golden();
    for (int i = 0; i < N_TRAINED; i++) {
        const trained_case *c = &trained_cases[i];
        if (strncmp(c->name, "head", 4)) continue;
        char name[100];
        snprintf(name, sizeof name, "options/%s", c->name);
        lk_quant quant;
        char *adapter = check_golden(name), *base = trained_base(c, &quant), *merged = check_temporary("whole_merged");
        int32_t *ids = trained_ints(st, c, "ids");
        const int32_t *last = ids + TRAINED_STEPS * TRAINED_MICRO * TRAINED_LENGTH;
        float *want = trained_floats(st, c, "logits", NULL);
        check_logits("PEFT's factors on the head", base, adapter, quant, last, want, 1e-4);
        lk_merge_result result;
        lk_merge_options options = {.into = LK_MERGE_DEQUANTIZED, .dtype = LK_F32};
        CHECK_OK(lk_model_merge(base, adapter, merged, &options, &result, &err), &err);
        assert_int_equal(result.untied, strstr(c->name, "tied") != NULL);
        check_logits("and merged", merged, NULL, LK_QUANT_NONE, last, want, 1e-4);
        free(want);
        free(ids);
        free(adapter);
        free(base);
        free(merged);
    }
    lk_safetensors_close(st);
}

/* ---- refusals */

static const int32_t outside[] = {163}, twice[] = {4, 4}, one[] = {4};

#define Q .rank = 2, .alpha = 2, .targets = {[LK_Q] = true}

static const struct {
    lk_adapter_spec spec;
    const char *base; /* NULL: llama-tiny */
    lk_status status;
    const char *text;
} refused[] = {
    {{Q, .bias = LK_BIAS_ALL}, NULL, LK_ERR_ARGUMENT, "adapter.bias: in this llama model no linear layer has a bias to train"},
    {{.rank = 2, .alpha = 2, .targets = {[LK_O] = true}, .bias = LK_BIAS_LORA_ONLY},
     "qwen2-tiny",
     LK_ERR_ARGUMENT,
     "adapter.bias: in this qwen2 model none of the adapted layers has a bias to train"},
    {{Q, .lora_bias = true, .use_dora = true}, NULL, LK_ERR_ARGUMENT, "adapter.lora_bias together with dora"},
    {{Q, .lora_bias = true, .init = LK_INIT_GAUSSIAN}, NULL, LK_ERR_ARGUMENT, "adapter.lora_bias wants adapter.init default"},
    {{Q, .lora_bias = true, .target_embedding = true}, NULL, LK_ERR_ARGUMENT, "adapter.lora_bias: embed_tokens and lm_head"},
    {{Q, .save_head = true, .target_head = true}, NULL, LK_ERR_ARGUMENT, "both name lm_head"},
    {{Q, .save_embedding = true, .target_embedding = true}, NULL, LK_ERR_ARGUMENT, "both name embed_tokens"},
    {{Q, .use_dora = true, .target_head = true}, NULL, LK_ERR_UNSUPPORTED, "dora on embed_tokens or lm_head is not trained"},
    {{Q, .init = LK_INIT_PISSA, .target_head = true}, NULL, LK_ERR_UNSUPPORTED, "pissa on lm_head is not trained"},
    {{Q, .target_embedding = true, .layers = one, .n_layers = 1}, NULL, LK_ERR_ARGUMENT, "adapter.layers_to_transform leaves out"},
    {{Q, .tie_tables = true, .save_head = true}, NULL, LK_ERR_ARGUMENT, "this model's head is not tied"},
    {{Q, .tie_tables = true}, "qwen3-tiny", LK_ERR_ARGUMENT, "neither embed_tokens nor lm_head is in adapter.modules_to_save"},
    {{Q, .tie_tables = true, .target_embedding = true},
     "qwen3-tiny",
     LK_ERR_UNSUPPORTED,
     "adapter.ensure_weight_tying with factors on a tied embedding or head is not trained"},
    {{Q, .tokens = outside, .n_tokens = 1}, NULL, LK_ERR_ARGUMENT, "token 163 is outside the vocabulary of 163"},
    {{Q, .tokens = twice, .n_tokens = 2}, NULL, LK_ERR_ARGUMENT, "token 4 is there twice"},
    {{Q, .tokens = one, .n_tokens = 1, .save_embedding = true}, NULL, LK_ERR_ARGUMENT, "rows of embed_tokens, which is trained already"},
    {{Q, .tokens = one, .n_tokens = 1, .target_head = true}, "qwen3-tiny", LK_ERR_ARGUMENT, "rows of the tied lm_head"},
    {{.rank = 70, .alpha = 2, .target_head = true}, NULL, LK_ERR_ARGUMENT, "rank 70 does not fit lm_head of shape [163,64] (at most 64)"},
};

static void test_refused(void **state)
{
    (void)state;
    lk_error err = {0};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char name[100];
        snprintf(name, sizeof name, "models/%s", refused[i].base ? refused[i].base : "llama-tiny");
        char *folder = check_golden(name);
        check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
        lk_adapter *a;
        lk_adapter_sizes sizes;
        CHECK_FAILS(lk_adapter_create(&a, m.model, &refused[i].spec, 1, &err), refused[i].status, refused[i].text, &err);
        CHECK_FAILS(lk_adapter_sizes_of(&sizes, m.be, &m.model->config, &refused[i].spec, &err), refused[i].status, refused[i].text, &err);
        check_model_close(&m);
        free(folder);
    }
}

/* A backend without the operations names what it does not train. */
static void test_backend_without(void **state)
{
    (void)state;
    lk_error err = {0};
    static const struct {
        lk_adapter_spec spec;
        const char *text;
    } rows[] = {{{Q, .bias = LK_BIAS_ALL}, "bias: not trained on"},
                {{Q, .lora_bias = true}, "lora_bias: not trained on"},
                {{Q, .save_head = true}, "modules_to_save: not trained on"},
                {{Q, .target_embedding = true}, "factors on embed_tokens and lm_head: not trained on"},
                {{Q, .tokens = one, .n_tokens = 1}, "trainable_token_indices: not trained on"}};
    char *folder = check_golden("models/qwen2-tiny"), *head = check_golden("options/head"), *llama = check_golden("models/llama-tiny");
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL), other = check_model_open(llama, LK_QUANT_NF4, LK_F32, 1, NULL);
    const lk_ops *whole = m.be->ops;
    lk_ops less = *whole;
    less.embed_backward = NULL;
    m.be->ops = &less;
    lk_adapter *a;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_FAILS(lk_adapter_create(&a, m.model, &rows[i].spec, 1, &err), LK_ERR_UNSUPPORTED, rows[i].text, &err);
    m.be->ops = whole;
    lk_ops plain = *other.be->ops;
    whole = other.be->ops;
    plain.gain = NULL;
    other.be->ops = &plain;
    CHECK_FAILS(lk_adapter_load(&a, other.model, head, LK_F32, &err), LK_ERR_UNSUPPORTED,
                "adapters with an adapted head are not computed on", &err);
    other.be->ops = whole;
    check_model_close(&m);
    check_model_close(&other);
    free(folder);
    free(head);
    free(llama);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients), cmocka_unit_test(test_head_factors),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_backend_without)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
