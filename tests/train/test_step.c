/* The optimiser step: fifty steps beside PEFT over bitsandbytes, accumulation against one large micro-batch, packed against separate
 * documents, what a diverged step leaves behind, and the memory plan to the byte. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/model.h"
#include "tests/train/fifty_steps.h"
#include "train/plan.h"
#include "train/step.h"

static const lk_backend_options f32 = {.device = "cpu", .threads = 2, .compute = LK_F32};
static const lk_backend_options bf16 = {.device = "cpu", .threads = 2, .compute = LK_BF16};
static const lk_backend_options reference = {.device = "cpu", .threads = 2, .compute = LK_F32, .cpu_tier = "reference"};

/* The bound is 2e-3; in fp32 we are far inside it. bf16 rounds every product's factors (8 bits), and the golden run's rate blows
 * that up, so there its losses only follow. At a tenth of the rate what is left is the rounding of a step of 80 tokens. */
static void test_golden_f32(void **state) { (void)state, fifty_steps(&(fifty){f32, LK_ADAMW_F32, false, 2e-3, 2e-2}); }
static void test_golden_reference(void **state) { (void)state, fifty_steps(&(fifty){reference, LK_ADAMW_F32, false, 2e-3, 2e-2}); }
static void test_golden_bf16(void **state) { (void)state, fifty_steps(&(fifty){bf16, LK_ADAMW_F32, false, 0.15, 1.0}); }
static void test_golden_gentle(void **state)
{
    (void)state;
    fifty_steps(&(fifty){f32, LK_ADAMW_F32, true, 2e-4, 0});
    fifty_steps(&(fifty){bf16, LK_ADAMW_F32, true, 1.5e-2, 0, 5e-3});
}
/* Moments in 8 bits, beside PEFT's run with fp32 moments. */
static void test_golden_8bit(void **state) { (void)state, fifty_steps(&(fifty){f32, LK_ADAMW_8BIT, false, 0.05, 0.2}); }

/* ---------------------------------------------------------------------------------------------- how the tokens are spread */

enum { DOCS = 4 };

static const int lengths[DOCS] = {13, 2, 29, 7};

static void make_documents(int32_t ids[DOCS][32], int32_t labels[DOCS][32])
{
    check_random r = {3};
    for (int d = 0; d < DOCS; d++)
        for (int t = 0; t < lengths[d]; t++) {
            ids[d][t] = (int32_t)(check_random_uniform(&r) * 90) + 3;
            labels[d][t] = t + 1 == lengths[d] || check_random_uniform(&r) < 0.5 ? ids[d][t] : -1;
        }
}

/* Two steps over the four documents, `each` of them in a micro-batch; the adapter afterwards in out (malloc'ed), losses of both steps. */
static float *spread(const check_model *model, int each, double losses[2], double norms[2], int64_t *n)
{
    lk_error err = {0};
    lk_adapter *a;
    lk_adapter_spec spec = {.rank = 4, .alpha = 8, .targets = {true, true, true, true, true, true, true}};
    CHECK_OK(lk_adapter_create(&a, model->model, &spec, 7, &err), &err);
    lk_trainer_options options = golden_options();
    options.max_tokens = 64;
    lk_trainer t;
    CHECK_OK(lk_trainer_init(&t, model->model, a, &options, &err), &err);
    int32_t ids[DOCS][32], labels[DOCS][32];
    make_documents(ids, labels);
    own_batch *own[DOCS];
    const lk_micro_batch *micro[DOCS];
    int n_micro = 0;
    for (int d = 0; d < DOCS; d++) {
        if (d % each == 0) micro[n_micro] = &(own[n_micro] = own_new())->m, n_micro++;
        own_add(own[n_micro - 1], ids[d], labels[d], lengths[d]);
    }
    for (int step = 0; step < 2; step++) {
        lk_step_result r;
        CHECK_OK(lk_trainer_step(&t, micro, n_micro, step, 1e-3, &r, &err), &err);
        losses[step] = r.loss;
        norms[step] = r.grad_norm;
    }
    *n = a->n_params;
    float *out = malloc((size_t)*n * 4);
    CHECK_OK(lk_download(model->be, out, a->weights, (size_t)*n * 4), &err);
    for (int i = 0; i < n_micro; i++) free(own[i]);
    lk_trainer_free(&t);
    lk_adapter_destroy(a);
    return out;
}

static void test_spread(void **state)
{
    (void)state;
    char *folder = check_golden("models/llama-tiny");
    check_model model = check_model_open(folder, LK_QUANT_NF4, LK_F32, 2, NULL);
    double one[2], norms_one[2];
    int64_t n;
    float *want = spread(&model, 1, one, norms_one, &n);
    static const int eaches[] = {2, 4};
    for (int i = 0; i < 2; i++) {
        double many[2], norms[2];
        float *got = spread(&model, eaches[i], many, norms, &n);
        for (int s = 0; s < 2; s++) {
            /* The same sums in another order. */
            if (fabs(many[s] - one[s]) > 1e-5 || fabs(norms[s] - norms_one[s]) > 1e-4 * norms_one[s])
                fail_msg("%d documents a micro-batch, step %d: loss %.9g want %.9g, norm %.9g want %.9g", eaches[i], s, many[s], one[s],
                         norms[s], norms_one[s]);
        }
        /* Adam's first steps move by about lr whatever the gradient, so a tiny gradient's rounding shows: a bound of that size. */
        check_close("adapter", got, want, n, 2e-4, 1e-3);
        free(got);
    }
    free(want);
    check_model_close(&model);
    free(folder);
}

/* ---------------------------------------------------------------------------------------------- faults and memory */

static void test_divergence(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/llama-tiny");
    check_model model = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    lk_adapter *a;
    lk_adapter_spec spec = {.rank = 2, .alpha = 2, .targets = {true}};
    CHECK_OK(lk_adapter_create(&a, model.model, &spec, 1, &err), &err);
    float *weights = a->weights, huge = INFINITY;
    CHECK_OK(lk_upload(model.be, weights, &huge, 4), &err);
    lk_trainer t;
    lk_trainer_options options = golden_options();
    CHECK_OK(lk_trainer_init(&t, model.model, a, &options, &err), &err);
    own_batch *own = own_new();
    int32_t ids[3] = {5, 6, 7};
    own_add(own, ids, ids, 3);
    const lk_micro_batch *micro[1] = {&own->m};
    lk_step_result r;
    CHECK_FAILS(lk_trainer_step(&t, micro, 1, 0, 1e-3, &r, &err), LK_ERR_FORMAT, "diverged", &err);
    for (int64_t i = 0; i < a->n_params; i++) assert_true(((const float *)t.optim.parts[0].data)[i] == 0.0f);
    memset(own->labels, 0xff, sizeof own->labels);
    own->m.supervised = 0;
    CHECK_FAILS(lk_trainer_step(&t, micro, 1, 0, 1e-3, &r, &err), LK_ERR_FORMAT, "no supervised token", &err);
    free(own);
    lk_trainer_free(&t);
    lk_trainer_free(&t);
    lk_adapter_destroy(a);
    check_model_close(&model);
    free(folder);
}

/* What is planned is what is taken, at every kind of checkpointing; and a tight budget makes "auto" leaner. */
static void test_plan(void **state)
{
    (void)state;
    static const char *const models[] = {"models/llama-tiny", "models/qwen3-tiny", "models/llama-tiny-bnb4"};
    static const int64_t checkpointing[] = {LK_CHECKPOINTING_NONE, 1, 2, LK_CHECKPOINTING_AUTO};
    for (int i = 0; i < 3; i++)
        for (int c = 0; c < 4; c++) {
            lk_error err = {0};
            char *folder = check_golden(models[i]);
            lk_backend *be;
            lk_model_facts facts;
            lk_model *model;
            lk_adapter *a;
            lk_trainer t;
            lk_plan plan;
            lk_adapter_spec spec = {.rank = 3, .alpha = 2, .targets = {true, false, true, true, false, false, true}};
            CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 2, .compute = LK_BF16}, &err), &err);
            CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
            lk_plan_request request = {.be = be,
                                       .facts = &facts,
                                       .quant = LK_QUANT_NF4,
                                       .adapter = &spec,
                                       .rows = 2,
                                       .max_length = 33,
                                       .accumulate = 2,
                                       .train_documents = 10,
                                       .eval_documents = 3,
                                       .model_file_bytes = 1000,
                                       .optim = c % 2 ? LK_ADAMW_8BIT : LK_ADAMW_F32,
                                       .checkpointing = checkpointing[c],
                                       .offload = c % 2};
            CHECK_OK(lk_plan_make(&plan, &request, &err), &err);
            if (checkpointing[c] == LK_CHECKPOINTING_AUTO) assert_int_equal(plan.kept_layers, plan.layers);
            CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = LK_QUANT_NF4}, &err), &err);
            CHECK_OK(lk_adapter_create(&a, model, &spec, 1, &err), &err);
            lk_trainer_options options = golden_options();
            options.max_tokens = plan.micro_batch_tokens;
            options.kept_layers = plan.kept_layers;
            options.optim = request.optim;
            options.offload = request.offload;
            CHECK_OK(lk_trainer_init(&t, model, a, &options, &err), &err);
            if (lk_allocated_peak(be) != lk_plan_backend_bytes(&plan))
                fail_msg("%s, checkpointing %lld: planned %zu, taken %zu", models[i], (long long)checkpointing[c],
                         lk_plan_backend_bytes(&plan), lk_allocated_peak(be));
            char *text = lk_plan_text(&plan), *json = lk_plan_json(&plan);
            assert_non_null(strstr(text, "base weights"));
            assert_non_null(strstr(json, "\"peak_bytes\""));
            free(text);
            free(json);
            size_t most = lk_plan_peak_bytes(&plan);
            if (checkpointing[c] == LK_CHECKPOINTING_AUTO) {
                request.budget = most - 1;
                lk_plan lean;
                if (!lk_plan_make(&lean, &request, &err)) assert_true(lean.kept_layers < plan.layers && lk_plan_peak_bytes(&lean) < most);
                request.budget = 1000;
                CHECK_FAILS(lk_plan_make(&lean, &request, &err), LK_ERR_MEMORY, "memory.budget", &err);
            }
            lk_trainer_free(&t);
            lk_adapter_destroy(a);
            lk_model_close(model);
            lk_backend_close(be);
            free(folder);
        }
}

/* ---------------------------------------------------------------------------------------------- DoRA and PiSSA */

static float *adapter_logits(const check_model *model, const lk_adapter *a, const int32_t *ids, int64_t n)
{
    lk_error err = {0};
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, model->model, &(lk_pass_options){.max_tokens = n, .max_rank = a->max_rank}, &err), &err);
    check_batch b;
    check_batch_init(&b, ids, n);
    check_batch_adapter(&b, a, NULL);
    float *out = malloc((size_t)(n * model->model->config.vocab) * 4);
    CHECK_OK(lk_pass_logits(pass, &b.batch, out, &err), &err);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    return out;
}

/* A few steps: the loss falls, what was saved and loaded again computes what was trained (a DoRA's gains follow its weights, the halves
 * of a PiSSA stay together), and what is frozen keeps its bits. */
static void test_kinds(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/llama-tiny"), *saved = check_temporary("step_kinds");
    check_model model = check_model_open_on(folder, LK_QUANT_NF4, &f32);
    for (int kind = 0; kind < 4; kind++) {
        lk_adapter_spec spec = {.rank = 4, .alpha = 8, .targets = {true, true, true, true, true, true, true}};
        spec.use_dora = kind < 2;
        spec.init = kind < 2 ? LK_INIT_DEFAULT : LK_INIT_PISSA;
        lk_adapter *a, *b;
        CHECK_OK(lk_adapter_create(&a, model.model, &spec, 7, &err), &err);
        float *before = malloc((size_t)a->n_params * 4);
        memcpy(before, a->weights, (size_t)a->n_params * 4);
        lk_trainer_options options = golden_options();
        options.max_tokens = 64;
        options.optim = kind % 2 ? LK_ADAMW_8BIT : LK_ADAMW_F32;
        options.weight_decay = 0;
        lk_trainer t;
        CHECK_OK(lk_trainer_init(&t, model.model, a, &options, &err), &err);
        int32_t ids[DOCS][32], labels[DOCS][32];
        make_documents(ids, labels);
        own_batch *own = own_new();
        const lk_micro_batch *micro[] = {&own->m};
        for (int d = 0; d < DOCS; d++) own_add(own, ids[d], labels[d], lengths[d]);
        double first = 0, last = 0;
        for (int step = 0; step < 6; step++) {
            lk_step_result r;
            CHECK_OK(lk_trainer_step(&t, micro, 1, step, 5e-3, &r, &err), &err);
            *(step ? &last : &first) = r.loss;
        }
        assert_true(last < first - 0.1);
        for (int32_t s = 0; s < a->n_sites; s++) {
            const lk_adapter_site *site = &a->sites[s];
            const float *w = a->weights;
            assert_int_equal(site->frozen, kind < 2 ? 0 : 4);
            check_same_bits("frozen", w + site->a + (site->rank - site->frozen) * site->k,
                            before + site->a + (site->rank - site->frozen) * site->k, (size_t)(site->frozen * site->k) * 4);
            for (int64_t n = 0; n < site->n && site->frozen; n++)
                check_same_bits("frozen", w + site->b + n * 8 + 4, before + site->b + n * 8 + 4, 16);
            if (site->dora) assert_true(memcmp(w + site->m, before + site->m, (size_t)site->n * 4) != 0);
        }
        CHECK_OK(lk_adapter_save(a, saved, &err), &err);
        CHECK_OK(lk_adapter_load(&b, model.model, saved, LK_F32, &err), &err);
        float *trained = adapter_logits(&model, a, ids[2], 29), *loaded = adapter_logits(&model, b, ids[2], 29);
        check_close("saved and loaded", loaded, trained, 29 * model.model->config.vocab, 1e-5, 1e-5);
        free(trained);
        free(loaded);
        free(before);
        free(own);
        lk_adapter_destroy(b);
        lk_trainer_free(&t);
        lk_adapter_destroy(a);
    }
    check_model_close(&model);
    free(folder);
    free(saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),       cmocka_unit_test(test_golden_f32),  cmocka_unit_test(test_golden_reference),
        cmocka_unit_test(test_golden_bf16), cmocka_unit_test(test_golden_8bit), cmocka_unit_test(test_golden_gentle),
        cmocka_unit_test(test_spread),      cmocka_unit_test(test_divergence),  cmocka_unit_test(test_plan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
