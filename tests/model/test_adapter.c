/* Adapters: created, saved, loaded again, and refused when they belong elsewhere. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "tests/model.h"

static lk_adapter_spec all_linear(int32_t rank)
{
    lk_adapter_spec spec = {.rank = rank, .alpha = 2.0 * rank};
    for (int m = 0; m < LK_N_MODULES; m++) spec.targets[m] = true;
    return spec;
}

static void test_round_trip(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/qwen3-tiny"), *out = check_temporary("adapter_round");
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    lk_adapter_spec spec = all_linear(4);
    lk_adapter_pattern patterns[] = {{"layers\\.1\\..*q_proj", 7, 0}, {"down_proj", 0, 3.0}};
    spec.patterns = patterns;
    spec.n_patterns = 2;
    lk_adapter *a, *b, *again;
    CHECK_OK(lk_adapter_create(&a, m.model, &spec, 11, &err), &err);
    CHECK_OK(lk_adapter_create(&again, m.model, &spec, 11, &err), &err);
    assert_string_equal(a->digest, again->digest);
    assert_int_equal(a->sites[LK_Q].rank, 4);
    assert_int_equal(a->sites[lk_site_of(&m.model->config, 1, LK_Q, -1)].rank, 7);
    assert_true(fabsf(a->sites[LK_DOWN].scale - 0.75f) < 1e-7f);
    float *w = a->weights;
    double bound = 1.0 / sqrt((double)a->sites[LK_Q].k), most = 0;
    for (int64_t i = 0; i < 4 * a->sites[LK_Q].k; i++) most = fmax(most, fabs((double)w[a->sites[LK_Q].a + i]));
    assert_true(most <= bound && most > 0.9 * bound);
    for (int64_t i = 0; i < 4 * a->sites[LK_Q].n; i++) assert_true(w[a->sites[LK_Q].b + i] == 0.0f);
    check_random r = {3};
    for (int32_t s = 0; s < a->n_sites; s++) check_random_fill(&r, w + a->sites[s].b, a->sites[s].rank * a->sites[s].n, 0.1f);
    CHECK_OK(lk_adapter_update_digest(a, &err), &err);
    assert_string_not_equal(a->digest, again->digest);
    CHECK_OK(lk_adapter_save(a, out, &err), &err);
    CHECK_OK(lk_adapter_load(&b, m.model, out, LK_F32, &err), &err);
    assert_string_equal(a->digest, b->digest);
    check_same_bits("weights", b->weights, a->weights, lk_adapter_bytes(a));
    lk_adapter_destroy(b);
    CHECK_OK(lk_adapter_load(&b, m.model, out, LK_BF16, &err), &err);
    assert_int_equal(lk_adapter_bytes(b) * 2, lk_adapter_bytes(a));
    lk_adapter_destroy(b);
    /* Stamped for this base: another base with the same shapes refuses it. */
    char *tiny = check_golden("models/qwen2-tiny");
    check_model other = check_model_open(tiny, LK_QUANT_NF4, LK_F32, 1, NULL);
    CHECK_FAILS(lk_adapter_load(&b, other.model, out, LK_F32, &err), LK_ERR_MISMATCH, "was trained on another base", &err);
    assert_null(b);
    /* Another quantisation of the same base is fine. */
    check_model sixteen = check_model_open(folder, LK_QUANT_NONE, LK_F32, 1, NULL);
    CHECK_OK(lk_adapter_load(&b, sixteen.model, out, LK_F32, &err), &err);
    lk_adapter_destroy(b);
    lk_adapter_destroy(a);
    lk_adapter_destroy(again);
    check_model_close(&other);
    check_model_close(&sixteen);
    check_model_close(&m);
    free(folder);
    free(tiny);
    free(out);
}

/* Which sites of llama-tiny's two layers (q k v o gate up down) a choice of targets adapts: PEFT's target_modules, tried with PEFT 0.21. */
static void test_targets(void **state)
{
    (void)state;
    static const char *const two[] = {"layers.1.self_attn.q_proj", "mlp.up_proj"}, *const none[] = {"layers.9.mlp.up_proj"};
    static const struct {
        const char *expression, *const *names;
        int n_names;
        const char *adapted, *error;
    } cases[] = {
        {"model\\.layers\\.0\\..*_proj", NULL, 0, "qkvogud.......", NULL},
        {".*(q_proj|1\\.mlp\\.down_proj)", NULL, 0, "q......q.....d", NULL},
        {"q_proj", NULL, 0, NULL, "'q_proj' has to match whole paths such as model.layers.0.self_attn.q_proj"},
        {".*", NULL, 0, NULL, "also a match for model.embed_tokens"},
        {".*_proj|lm_head", NULL, 0, NULL, "also a match for lm_head"},
        {"(", NULL, 0, NULL, "not a valid pattern"},
        {NULL, two, 2, ".....u.q....u.", NULL},
        {NULL, none, 1, NULL, "adapter.targets names layers.9.mlp.up_proj, and no linear layer of this llama model"},
    };
    char *folder = check_golden("models/llama-tiny");
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lk_error err = {0};
        lk_adapter *a;
        lk_adapter_spec spec = {
            .rank = 2, .alpha = 2, .expression = cases[i].expression, .names = cases[i].names, .n_names = cases[i].n_names};
        if (cases[i].error) {
            CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT, cases[i].error, &err);
            continue;
        }
        CHECK_OK(lk_adapter_create(&a, m.model, &spec, 1, &err), &err);
        assert_int_equal(strlen(cases[i].adapted), a->n_sites);
        for (int32_t s = 0; s < a->n_sites; s++)
            if ((a->sites[s].rank > 0) != (cases[i].adapted[s] != '.')) fail_msg("case %zu: site %d has rank %d", i, s, a->sites[s].rank);
        lk_adapter_destroy(a);
    }
    check_model_close(&m);
    free(folder);
}

static void test_refusals(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/mistral-tiny");
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    lk_adapter *a;
    lk_adapter_spec spec = all_linear(65);
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT, "rank 65 does not fit", &err);
    spec = (lk_adapter_spec){.rank = 4, .alpha = 4};
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT, "targets no layer", &err);
    spec = all_linear(4);
    lk_adapter_pattern bad = {"(", 4, 0};
    spec.patterns = &bad;
    spec.n_patterns = 1;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_ARGUMENT, "not a valid pattern", &err);
    const char *names[] = {"q_proj", "lm_head"};
    bool targets[LK_N_MODULES];
    CHECK_FAILS(lk_adapter_targets(targets, names, 2, "recipe", &err), LK_ERR_ARGUMENT, "unknown target 'lm_head'", &err);
    /* Made by PEFT for llama-tiny (other shapes, no stamp): refused by shape. */
    char *adapter = check_golden("adapters/r8_all");
    CHECK_FAILS(lk_adapter_load(&a, m.model, adapter, LK_F32, &err), LK_ERR_MISMATCH, "another base model", &err);
    check_model_close(&m);
    free(folder);
    free(adapter);
}

/* A layer list, exclusions and a normal A. */
static void test_choices(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/qwen3-tiny");
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
    lk_adapter *a;
    lk_adapter_spec spec = all_linear(8);
    const int32_t layers[] = {0, 2};
    const char *exclude[] = {"k_proj", "layers.2.mlp.up_proj"};
    spec.layers = layers;
    spec.n_layers = 2;
    spec.exclude = exclude;
    spec.n_exclude = 2;
    spec.init = LK_INIT_GAUSSIAN;
    CHECK_OK(lk_adapter_create(&a, m.model, &spec, 3, &err), &err);
    double squares = 0;
    int64_t count = 0;
    for (int32_t s = 0; s < a->n_sites; s++) {
        lk_site where = lk_site_at(&m.model->config, s);
        bool out = where.layer == 1 || where.module == LK_K || (where.layer == 2 && where.module == LK_UP);
        assert_int_equal(a->sites[s].rank, out ? 0 : 8);
        const float *values = (const float *)a->weights + a->sites[s].a;
        for (int64_t i = 0; i < a->sites[s].rank * a->sites[s].k; i++) squares += (double)values[i] * (double)values[i];
        count += a->sites[s].rank * a->sites[s].k;
    }
    double deviation = sqrt(squares / (double)count); /* of some 8000 numbers: within 3% */
    assert_true(deviation > 0.97 / 8 && deviation < 1.03 / 8);
    lk_adapter_destroy(a);
    check_model_close(&m);
    free(folder);
}

static float *logits_of(const check_model *m, const lk_adapter *a, int64_t *n)
{
    lk_error err = {0};
    int32_t ids[12];
    for (int i = 0; i < 12; i++) ids[i] = 5 + 11 * i;
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m->model, &(lk_pass_options){.max_tokens = 12, .max_rank = 16}, &err), &err);
    check_batch b;
    check_batch_init(&b, ids, 12);
    if (a) check_batch_adapter(&b, a, NULL);
    *n = 12 * m->model->config.vocab;
    float *out = malloc((size_t)*n * 4);
    CHECK_OK(lk_pass_logits(pass, &b.batch, out, &err), &err);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    return out;
}

/* Whatever training starts from computes what the base computes; and PiSSA's components are PEFT's. */
static void test_starts(void **state)
{
    (void)state;
    lk_error err = {0};
    char *folder = check_golden("models/llama-tiny"), *golden = check_golden("options/pissa");
    for (int nf4 = 0; nf4 < 2; nf4++) {
        check_model m = check_model_open(folder, nf4 ? LK_QUANT_NF4 : LK_QUANT_NONE, LK_F32, 1, NULL);
        int64_t n;
        float *base = logits_of(&m, NULL, &n);
        for (int kind = 0; kind < 3; kind++) {
            lk_adapter *a;
            lk_adapter_spec spec = all_linear(4);
            spec.use_dora = kind == 1;
            spec.init = kind == 2 ? LK_INIT_PISSA : LK_INIT_DEFAULT;
            spec.use_rslora = kind == 2;
            CHECK_OK(lk_adapter_create(&a, m.model, &spec, 3, &err), &err);
            assert_int_equal(a->max_rank, kind == 2 ? 8 : 4);
            float *start = logits_of(&m, a, &n);
            check_close("logits at the start", start, base, n, 1e-4, 1e-4);
            free(start);
            lk_adapter_destroy(a);
        }
        free(base);
        check_model_close(&m);
    }
    /* PEFT's folder holds its components, negated, in the second half of the factors. */
    check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 1, NULL);
    lk_adapter *ours, *theirs;
    lk_adapter_spec spec = {.rank = 2, .alpha = 8, .init = LK_INIT_PISSA, .targets = {[LK_Q] = true, [LK_V] = true}};
    CHECK_OK(lk_adapter_create(&ours, m.model, &spec, 3, &err), &err);
    CHECK_OK(lk_adapter_load(&theirs, m.model, golden, LK_F32, &err), &err);
    for (int32_t s = 0; s < ours->n_sites; s++) {
        const lk_adapter_site *x = &ours->sites[s], *y = &theirs->sites[s];
        assert_int_equal(x->rank, y->rank);
        assert_true(x->scale == y->scale);
        const float *a = ours->weights, *b = theirs->weights;
        for (int64_t i = 0; x->rank && i < x->n * x->k; i++) {
            float got = 0, want = 0;
            for (int r = 2; r < 4; r++) {
                got += a[x->b + i / x->k * 4 + r] * a[x->a + r * x->k + i % x->k];
                want += b[y->b + i / x->k * 4 + r] * b[y->a + r * x->k + i % x->k];
            }
            check_close("components", &got, &want, 1, 1e-5, 1e-4);
        }
    }
    lk_adapter_destroy(ours);
    lk_adapter_destroy(theirs);
    check_model_close(&m);
    free(folder);
    free(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_targets), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_choices), cmocka_unit_test(test_starts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
