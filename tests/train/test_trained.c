/* Runs that train more than factors of linear layers, beside PEFT's: losses and gradient norms of four steps of two micro-batches, what is
 * saved and loaded again, and the memory that was planned. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/trained.h"
#include "train/plan.h"
#include "train/step.h"

typedef struct own_batch {
    lk_micro_batch m;
    int32_t positions[TRAINED_LENGTH], labels[TRAINED_LENGTH], starts[2];
} own_batch;

static void own_fill(own_batch *o, const int32_t *ids, const int32_t *labels)
{
    *o = (own_batch){.starts = {0, TRAINED_LENGTH}};
    o->m =
        (lk_micro_batch){.batch = {.n_tokens = TRAINED_LENGTH, .ids = ids, .positions = o->positions, .n_docs = 1, .doc_starts = o->starts},
                         .labels = o->labels};
    for (int t = 0; t < TRAINED_LENGTH; t++) {
        o->positions[t] = t;
        o->labels[t] = t + 1 < TRAINED_LENGTH && labels[t + 1] >= 0 ? labels[t + 1] : -1;
        o->m.supervised += o->labels[t] >= 0;
    }
}

/* The four steps; the largest difference of a loss. */
static double four_steps(lk_trainer *t, const trained_case *c, const lk_safetensors *st, double limit)
{
    lk_error err = {0};
    int32_t *ids = trained_ints(st, c, "ids"), *labels = trained_ints(st, c, "labels");
    float *losses = trained_floats(st, c, "loss", NULL), *norms = trained_floats(st, c, "norm", NULL);
    double worst = 0;
    for (int step = 0; step < TRAINED_STEPS; step++) {
        own_batch own[TRAINED_MICRO];
        const lk_micro_batch *micro[TRAINED_MICRO];
        for (int m = 0; m < TRAINED_MICRO; m++) {
            int at = (step * TRAINED_MICRO + m) * TRAINED_LENGTH;
            own_fill(&own[m], ids + at, labels + at);
            micro[m] = &own[m].m;
        }
        lk_step_result r;
        CHECK_OK(lk_trainer_step(t, micro, TRAINED_MICRO, step, 1e-2, &r, &err), &err);
        double loss = fabs(r.loss - (double)losses[step]);
        if (!(loss <= limit) || (limit < 0.01 && !(fabs(r.grad_norm - (double)norms[step]) <= 2e-3 * (double)norms[step])))
            fail_msg("%s, step %d: loss %.6f want %.6f, norm %.6f want %.6f", c->name, step, r.loss, (double)losses[step], r.grad_norm,
                     (double)norms[step]);
        if (loss > worst) worst = loss;
    }
    free(ids);
    free(labels);
    free(losses);
    free(norms);
    return worst;
}

static lk_trainer_options options_of(lk_adamw_kind optim)
{
    return (lk_trainer_options){.max_tokens = TRAINED_LENGTH,
                                .kept_layers = 1,
                                .optim = optim,
                                .beta1 = 0.9,
                                .beta2 = 0.999,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .clip = 1.0};
}

/* What was saved computes what was trained, and that is what PEFT's training gave. */
static void check_saved(const check_model *m, const lk_adapter *a, const trained_case *c, const lk_safetensors *st)
{
    lk_error err = {0};
    char *saved = check_temporary("trained_saved");
    CHECK_OK(lk_adapter_save(a, saved, &err), &err);
    lk_adapter *b;
    CHECK_OK(lk_adapter_load(&b, m->model, saved, LK_F32, &err), &err);
    int32_t *ids = trained_ints(st, c, "ids");
    int64_t n;
    float *want = trained_floats(st, c, "logits", &n), *got[2];
    const lk_adapter *both[] = {a, b};
    for (int i = 0; i < 2; i++) {
        lk_pass *pass;
        check_batch batch;
        got[i] = malloc((size_t)n * 4);
        CHECK_OK(lk_pass_create(&pass, m->model, &(lk_pass_options){.max_tokens = TRAINED_LENGTH, .max_rank = a->max_rank}, &err), &err);
        check_batch_init(&batch, ids + TRAINED_STEPS * TRAINED_MICRO * TRAINED_LENGTH, TRAINED_LENGTH);
        check_batch_adapter(&batch, both[i], NULL);
        CHECK_OK(lk_pass_logits(pass, &batch.batch, got[i], &err), &err);
        check_batch_free(&batch);
        lk_pass_destroy(pass);
    }
    check_close("saved and loaded", got[1], got[0], n, 1e-5, 1e-5);
    /* Adam's first steps move a value by about lr whatever its gradient: where that is a rounding, so is its sign. */
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += pow((double)got[0][i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    if (!(error <= 1e-5 * size)) fail_msg("%s: logits after training differ from PEFT's by %.3g of them", c->name, sqrt(error / size));
    free(got[0]);
    free(got[1]);
    free(want);
    free(ids);
    lk_adapter_destroy(b);
    free(saved);
}

static void test_beside_peft(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_safetensors *st = trained_golden();
    double worst = 0;
    for (int i = 0; i < N_TRAINED; i++) {
        const trained_case *c = &trained_cases[i];
        lk_quant quant;
        char *folder = trained_base(c, &quant);
        check_model m = check_model_open(folder, quant, LK_F32, 2, NULL);
        for (int kind = 0; kind < 2; kind++) {
            lk_adapter *a = trained_adapter(m.model, c);
            lk_trainer t;
            lk_trainer_options options = options_of(kind ? LK_ADAMW_8BIT : LK_ADAMW_F32);
            CHECK_OK(lk_trainer_init(&t, m.model, a, &options, &err), &err);
            double loss = four_steps(&t, c, st, kind ? 0.1 : 1e-3);
            if (!kind) worst = fmax(worst, loss);
            if (!kind) check_saved(&m, a, c, st);
            lk_trainer_free(&t);
            lk_adapter_destroy(a);
        }
        check_model_close(&m);
        free(folder);
    }
    print_message("losses of four steps differ from PEFT's by %.2e at most\n", worst);
    lk_safetensors_close(st);
}

/* From PiSSA's start, with weight decay, also as a DoRA: over the base as it is stored. The frozen half stays what it was. */
static void test_pissa(void **state)
{
    (void)state;
    static const trained_case cases[] = {
        {"pissa", "llama-tiny", {.rank = 2, .alpha = 3, .targets = {[LK_Q] = true, [LK_V] = true}, .init = LK_INIT_PISSA}},
        {"pissa_dora",
         "llama-tiny",
         {.rank = 3, .alpha = 4, .targets = {[LK_Q] = true, [LK_O] = true, [LK_DOWN] = true}, .init = LK_INIT_PISSA, .use_dora = true}}};
    lk_error err = {0};
    lk_safetensors *st = trained_golden();
    char *folder = check_golden("models/llama-tiny");
    check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 2, NULL);
    for (int i = 0; i < 4; i++) {
        const trained_case *c = &cases[i / 2];
        lk_adapter *a;
        lk_trainer t;
        CHECK_OK(lk_adapter_create(&a, m.model, &c->spec, 5, &err), &err);
        lk_trainer_options options = options_of(i % 2 ? LK_ADAMW_8BIT : LK_ADAMW_F32);
        CHECK_OK(lk_trainer_init(&t, m.model, a, &options, &err), &err);
        size_t bytes = (size_t)a->n_params * 4;
        float *before = malloc(bytes), *weights = a->weights;
        memcpy(before, weights, bytes);
        double worst = four_steps(&t, c, st, i % 2 ? 0.1 : 1e-3);
        print_message("%s, %s: losses differ by %.2e\n", c->name, i % 2 ? "8 bits" : "fp32", worst);
        for (int32_t s = 0; s < a->n_sites; s++) {
            const lk_adapter_site *site = &a->sites[s];
            int32_t r = site->rank - site->frozen;
            check_same_bits("frozen", weights + site->a + r * site->k, before + site->a + r * site->k,
                            (size_t)(site->frozen * site->k) * 4);
            for (int64_t n = 0; n < site->n && r; n++)
                check_same_bits("frozen", weights + site->b + n * 2 * r + r, before + site->b + n * 2 * r + r, (size_t)r * 4);
        }
        if (i % 2 == 0) check_saved(&m, a, c, st);
        free(before);
        lk_trainer_free(&t);
        lk_adapter_destroy(a);
    }
    check_model_close(&m);
    lk_safetensors_close(st);
    free(folder);
}

/* Dropout on a DoRA's layers and on factors of the head, PEFT's run with the same masks. */
static void test_dropped(void **state)
{
    (void)state;
    static const trained_case cases[] = {
        {"dropped_dora",
         "llama-tiny",
         {.rank = 3,
          .alpha = 5,
          .dropout = 0.25,
          .use_dora = true,
          .targets = {[LK_Q] = true, [LK_K] = true, [LK_O] = true, [LK_DOWN] = true}}},
        {"dropped_head", "llama-tiny", {.rank = 3, .alpha = 5, .dropout = 0.25, .targets = {[LK_V] = true}, .target_head = true}}};
    lk_error err = {0};
    lk_safetensors *st = trained_golden();
    for (int i = 0; i < 4; i++) { /* recomputing; keeping all layers, three threads: the same bits */
        static float *want[2];
        const trained_case *c = &cases[i / 2];
        lk_quant quant;
        char *folder = trained_base(c, &quant);
        check_model m = check_model_open(folder, quant, LK_F32, i % 2 ? 3 : 1, NULL);
        lk_adapter *a = trained_adapter(m.model, c);
        lk_trainer t;
        lk_trainer_options options = options_of(LK_ADAMW_F32);
        options.dropout = 0.25;
        options.kept_layers = i % 2 ? 9 : 1;
        CHECK_OK(lk_trainer_init(&t, m.model, a, &options, &err), &err);
        double worst = four_steps(&t, c, st, 1e-3);
        size_t bytes = (size_t)a->n_params * 4;
        if (i % 2 == 0) {
            print_message("%s: losses differ by %.2e\n", c->name, worst);
            check_saved(&m, a, c, st);
            want[i / 2] = malloc(bytes);
            memcpy(want[i / 2], a->weights, bytes);
        } else {
            check_same_bits("trained with other threads and other kept layers", a->weights, want[i / 2], bytes);
            free(want[i / 2]);
        }
        lk_trainer_free(&t);
        lk_adapter_destroy(a);
        check_model_close(&m);
        free(folder);
    }
    lk_safetensors_close(st);
}

/* Biases take no weight decay, everything else does: with gradients of zero a step is nothing but decay. */
static void test_decay(void **state)
{
    (void)state;
    lk_error err = {0};
    const trained_case *c = &trained_cases[1];
    lk_quant quant;
    char *folder = trained_base(c, &quant);
    check_model m = check_model_open(folder, quant, LK_F32, 1, NULL);
    lk_adapter *a = trained_adapter(m.model, c);
    int n;
    trained_tensor *list = trained_tensors(a, &n);
    float *weights = a->weights, *before = malloc((size_t)a->n_params * 4), *grads = calloc((size_t)a->n_params, 4);
    memcpy(before, weights, (size_t)a->n_params * 4);
    lk_adamw_state optim;
    lk_adamw_step step = {.lr = 0.1f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.5f, .step = 1, .grad_scale = 1};
    CHECK_OK(lk_adamw_state_init(&optim, m.be, LK_ADAMW_F32, a->n_params, &err), &err);
    CHECK_OK(lk_adamw_state_update_part(&optim, weights, grads, 0, a->n_decayed, &step, &err), &err);
    step.weight_decay = 0;
    CHECK_OK(lk_adamw_state_update_part(&optim, weights, grads, a->n_decayed, a->n_params - a->n_decayed, &step, &err), &err);
    int biases = 0;
    for (int i = 0; i < n; i++) {
        bool bias = strstr(list[i].key, "bias") != NULL;
        biases += bias;
        for (int64_t j = list[i].at; j < list[i].at + list[i].n; j++)
            if (fabsf(weights[j] - before[j] * (bias ? 1.0f : 0.95f)) > 1e-6f) fail_msg("%s decays wrongly", list[i].key);
    }
    assert_true(biases == 6); /* of two layers: q_proj's own, and behind B of q_proj and o_proj */
    lk_adamw_state_free(&optim);
    free(before);
    free(grads);
    free(list);
    lk_adapter_destroy(a);
    check_model_close(&m);
    free(folder);
}

/* What is planned is what is taken; a DoRA, which keeps gains beside its factors, too. */
static void test_plan(void **state)
{
    (void)state;
    for (int i = 0; i < N_TRAINED + 2; i++) {
        const trained_case *c = &trained_cases[i < N_TRAINED ? i : 2];
        lk_adapter_spec spec = c->spec;
        if (i >= N_TRAINED) spec.use_dora = true, spec.lora_bias = false, spec.dropout = i > N_TRAINED ? 0.1 : 0;
        lk_error err = {0};
        lk_quant quant;
        char *folder = trained_base(c, &quant);
        lk_backend *be;
        lk_model_facts facts;
        lk_model *model;
        lk_adapter *a;
        lk_trainer t;
        lk_plan plan;
        CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 2, .compute = LK_BF16}, &err), &err);
        CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
        lk_plan_request request = {.be = be,
                                   .facts = &facts,
                                   .quant = quant,
                                   .adapter = &spec,
                                   .rows = 1,
                                   .max_length = TRAINED_LENGTH,
                                   .accumulate = 2,
                                   .train_documents = 10,
                                   .checkpointing = 1};
        CHECK_OK(lk_plan_make(&plan, &request, &err), &err);
        CHECK_OK(lk_model_open(&model, be, folder, &(lk_model_options){.quant = quant}, &err), &err);
        CHECK_OK(lk_adapter_create(&a, model, &spec, 1, &err), &err);
        lk_trainer_options options = options_of(LK_ADAMW_F32);
        options.dropout = spec.dropout;
        CHECK_OK(lk_trainer_init(&t, model, a, &options, &err), &err);
        if (lk_allocated_peak(be) != lk_plan_backend_bytes(&plan))
            fail_msg("%s: planned %zu, taken %zu", c->name, lk_plan_backend_bytes(&plan), lk_allocated_peak(be));
        int n;
        int64_t trainable = 0;
        trained_tensor *list = trained_tensors(a, &n);
        for (int j = 0; j < n; j++) trainable += list[j].n;
        if (i < N_TRAINED) assert_int_equal(plan.n_trainable, trainable);
        free(list);
        lk_trainer_free(&t);
        lk_adapter_destroy(a);
        lk_model_close(model);
        lk_backend_close(be);
        free(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_beside_peft), cmocka_unit_test(test_pissa), cmocka_unit_test(test_dropped),
                                       cmocka_unit_test(test_decay), cmocka_unit_test(test_plan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
