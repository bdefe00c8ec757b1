/* Every family and every kind of rotary embedding against transformers (logits, in one pass and through pages in chunks) and PEFT
 * (gradients): tests/golden/families.json, families.safetensors and mixtures.safetensors. The models' weights are not stored but follow a
 * rule. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/model.h"

/* ---------------------------------------------------------------------------------------------- logits */

typedef struct run {
    const char *name;
    int64_t n;
    int32_t *ids;
    float *logits;
} run;

static run run_open(const lk_safetensors *st, const char *name, int64_t length)
{
    run r = {.name = name};
    char key[200];
    snprintf(key, sizeof key, "%s.%lld.ids", name, (long long)length);
    r.ids = check_ints(st, key, &r.n);
    assert_int_equal(r.n, length);
    snprintf(key, sizeof key, "%s.%lld.logits", name, (long long)length);
    r.logits = check_floats(st, key, NULL);
    return r;
}

static void run_close(run *r)
{
    free(r->ids);
    free(r->logits);
}

/* As two documents of one batch, the other of another length: neither may know of it. */
static void compare_pass(const check_model *m, const run *r)
{
    enum { OTHER = 5 };
    lk_error err = {0};
    int64_t n = r->n, V = m->model->config.vocab;
    int32_t starts[3] = {0, OTHER, (int32_t)(OTHER + n)}, *ids = malloc((size_t)(OTHER + n) * 4);
    for (int64_t i = 0; i < OTHER; i++) ids[i] = 3 + (int32_t)i;
    memcpy(ids + OTHER, r->ids, (size_t)n * 4);
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m->model, &(lk_pass_options){.max_tokens = OTHER + n + 3}, &err), &err);
    float *got = malloc((size_t)((OTHER + n) * V) * 4);
    check_batch b;
    check_batch_init(&b, ids, OTHER + n);
    for (int64_t i = 0; i < n; i++) b.positions[OTHER + i] = (int32_t)i;
    b.batch.n_docs = 2;
    b.batch.doc_starts = starts;
    CHECK_OK(lk_pass_logits(pass, &b.batch, got, &err), &err);
    check_close(r->name, got + OTHER * V, r->logits, n * V, 1e-4, 1e-4);
    lk_pass_destroy(pass);
    check_batch_free(&b);
    free(ids);
    free(got);
}

/* In chunks of 7 and then one by one, through pages. */
static void compare_paged(const check_model *m, const run *r)
{
    enum { CHUNK = 7 };
    lk_error err = {0};
    int64_t V = m->model->config.vocab;
    lk_infer *infer;
    CHECK_OK(lk_infer_create(&infer, m->model, &(lk_infer_options){.max_tokens = CHUNK, .max_rows = CHUNK, .max_context = r->n}, &err),
             &err);
    lk_kv_shape shape = lk_infer_kv_shape(m->model, 16, (int32_t)(r->n / 16 + 3));
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m->be, &kv, &shape), LK_OK);
    int32_t pages[64], rows[CHUNK] = {0, 1, 2, 3, 4, 5, 6};
    for (int i = 0; i < shape.n_pages; i++) pages[i] = shape.n_pages - 1 - i;
    for (int64_t t = 0; t < r->n;) {
        int64_t count = t + CHUNK <= r->n * 3 / 4 ? CHUNK : 1;
        int32_t positions[CHUNK];
        for (int64_t i = 0; i < count; i++) positions[i] = (int32_t)(t + i);
        lk_sequence sequence = {.begin = 0, .count = count, .length = t + count, .pages = pages};
        lk_batch step = {.n_tokens = count, .ids = r->ids + t, .positions = positions, .n_sequences = 1, .sequences = &sequence};
        lk_tensor logits;
        CHECK_OK(lk_infer_forward(infer, &step, kv, rows, count, &logits, &err), &err);
        check_close(r->name, logits.data, r->logits + t * V, count * V, 1e-4, 1e-4);
        t += count;
    }
    lk_kv_destroy(m->be, kv);
    lk_infer_destroy(infer);
}

/* ---------------------------------------------------------------------------------------------- gradients */

static double norm(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* The error's norm relative to the gradient's. */
static void compare_factor(const lk_safetensors *st, const char *key, const float *got, int64_t n, double tolerance)
{
    int64_t stored;
    float *want = check_floats(st, key, &stored);
    assert_int_equal(stored, n);
    double size = norm(want, n);
    for (int64_t i = 0; i < n; i++) want[i] -= got[i];
    if (!(norm(want, n) <= tolerance * size)) fail_msg("%s: off by %.3g of %.3g", key, norm(want, n), size);
    free(want);
}

/* kept 1 recomputes every layer but the last; all keep: the same bits. */
static float *gradients_of(const check_model *m, const lk_adapter *a, const run *r, int64_t kept, double *loss)
{
    lk_error err = {0};
    int32_t *labels = malloc((size_t)r->n * 4);
    for (int64_t t = 0; t < r->n; t++) labels[t] = t >= 10 && t + 1 < r->n ? r->ids[t + 1] : -1;
    int64_t supervised = r->n - 11;
    float *grads = calloc((size_t)a->n_params, 4), *nll = malloc((size_t)r->n * 4);
    lk_pass *pass;
    lk_pass_options options = {.max_tokens = r->n, .max_rank = a->max_rank, .kept_layers = kept, .training = true};
    CHECK_OK(lk_pass_create(&pass, m->model, &options, &err), &err);
    check_batch b;
    check_batch_init(&b, r->ids, r->n);
    check_batch_adapter(&b, a, grads);
    CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 1.0f / (float)supervised, NULL, nll, &err), &err);
    *loss = 0;
    for (int64_t t = 0; t < r->n; t++) *loss += (double)nll[t] / (double)supervised;
    check_batch_free(&b);
    lk_pass_destroy(pass);
    free(nll);
    free(labels);
    return grads;
}

static void compare_gradients(const check_model *m, const lk_safetensors *st, const run *r, int32_t rank)
{
    lk_adapter *a = check_family_adapter(m->model, rank);
    double loss, again;
    float *grads = gradients_of(m, a, r, 1, &loss), *kept = gradients_of(m, a, r, m->model->config.layers, &again);
    check_same_bits("gradients with all layers kept", kept, grads, (size_t)a->n_params * 4);
    char key[300], path[200];
    snprintf(key, sizeof key, "%s.loss", r->name);
    float *want = check_floats(st, key, NULL);
    if (!(fabs(loss - (double)want[0]) < 1e-4)) fail_msg("%s: loss %.7f, wanted %.7f", r->name, loss, (double)want[0]);
    free(want);
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        lk_site_path(path, sizeof path, &m->model->config, s);
        snprintf(key, sizeof key, "%s.grad.%s.A", r->name, path);
        compare_factor(st, key, grads + site->a, site->rank * site->k, 1e-3);
        snprintf(key, sizeof key, "%s.grad.%s.B", r->name, path);
        compare_factor(st, key, grads + site->b, site->rank * site->n, 1e-3);
    }
    free(grads);
    free(kept);
    lk_adapter_destroy(a);
}

/* ---------------------------------------------------------------------------------------------- company */

enum { SEQUENCES = 3, TOKENS = 9, PAGE = 16 };

/* Logits of TOKENS tokens of each sequence in [first, first + count), in one batch; sequence 0 on the base, the others on an adapter each.
 */
static float *together(const check_model *m, const lk_adapter *const adapters[2], int first, int count)
{
    lk_error err = {0};
    int64_t V = m->model->config.vocab, n = count * TOKENS;
    int32_t ids[SEQUENCES * TOKENS], positions[SEQUENCES * TOKENS], rows[SEQUENCES * TOKENS], pages[SEQUENCES] = {1, 0, 2};
    lk_sequence sequences[SEQUENCES];
    lk_segment segments[SEQUENCES];
    for (int s = 0; s < count; s++) {
        sequences[s] = (lk_sequence){.begin = s * TOKENS, .count = TOKENS, .length = TOKENS, .pages = &pages[s]};
        segments[s] = (lk_segment){s * TOKENS, (s + 1) * TOKENS, first + s - 1};
        for (int t = 0; t < TOKENS; t++) {
            ids[s * TOKENS + t] = 3 + (17 * (first + s) + 5 * t * t) % (int32_t)(V - 3);
            positions[s * TOKENS + t] = t;
            rows[s * TOKENS + t] = s * TOKENS + t;
        }
    }
    lk_lora *table = calloc((size_t)adapters[0]->n_sites * 2, sizeof *table);
    lk_adapter_table(table, adapters, 2, NULL);
    lk_batch batch = {.n_tokens = n, .ids = ids, .positions = positions, .n_sequences = count, .sequences = sequences};
    batch.n_segments = count;
    batch.segments = segments;
    batch.n_sites = adapters[0]->n_sites;
    batch.n_adapters = 2;
    batch.lora = table;
    lk_infer *infer;
    lk_infer_options options = {.max_tokens = n, .max_rows = n, .max_context = PAGE, .max_rank = 3};
    CHECK_OK(lk_infer_create(&infer, m->model, &options, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(m->model, PAGE, SEQUENCES);
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m->be, &kv, &shape), LK_OK);
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(infer, &batch, kv, rows, n, &logits, &err), &err);
    float *out = malloc((size_t)(n * V) * 4);
    memcpy(out, logits.data, (size_t)(n * V) * 4);
    lk_kv_destroy(m->be, kv);
    lk_infer_destroy(infer);
    free(table);
    return out;
}

/* A target that the family does not have is refused by name. */
static void check_targets(const check_model *m)
{
    lk_error err = {0};
    lk_adapter *a;
    bool fused = m->model->config.fused;
    lk_adapter_spec spec = {.rank = 2, .alpha = 2};
    spec.targets[LK_O] = spec.targets[fused ? LK_Q : LK_QKV] = true;
    CHECK_FAILS(lk_adapter_create(&a, m->model, &spec, 1, &err), LK_ERR_ARGUMENT,
                fused ? "targets q_proj, which a phi3 model does not have; it has o_proj, down_proj, qkv_proj, gate_up_proj"
                      : "targets qkv_proj, which a",
                &err);
}

static void check_company(const check_model *m)
{
    lk_adapter *a = check_family_adapter(m->model, 2), *b = check_family_adapter(m->model, 3);
    const lk_adapter *const adapters[2] = {a, b};
    float *all = together(m, adapters, 0, SEQUENCES);
    int64_t size = TOKENS * m->model->config.vocab;
    for (int s = 0; s < SEQUENCES; s++) {
        float *alone = together(m, adapters, s, 1);
        check_same_bits("a sequence alone and in company", alone, all + s * size, (size_t)size * 4);
        free(alone);
    }
    assert_true(memcmp(all, all + size, (size_t)size * 4) != 0);
    free(all);
    lk_adapter_destroy(a);
    lk_adapter_destroy(b);
}

/* ---------------------------------------------------------------------------------------------- memory */

/* What the plans say is what a fresh backend hands out. */
static void check_plans(const char *folder, const char *tier)
{
    lk_error err = {0};
    check_model m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 2, tier);
    lk_model_facts facts;
    CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
    assert_int_equal(lk_allocated(m.be), lk_model_bytes(m.be, &facts, LK_QUANT_NF4));
    size_t before = lk_allocated(m.be);
    lk_pass_options options = {.max_tokens = 21, .max_rank = 2, .kept_layers = 2, .training = true};
    lk_pass_plan plan;
    lk_pass *pass;
    lk_pass_plan_bytes(m.be, &m.model->config, &options, &plan);
    CHECK_OK(lk_pass_create(&pass, m.model, &options, &err), &err);
    assert_int_equal(lk_allocated(m.be) - before, plan.checkpoints + plan.activations + plan.transient + plan.scratch);
    lk_pass_destroy(pass);
    check_model_close(&m);
    m = check_model_open(folder, LK_QUANT_NF4, LK_F32, 2, tier);
    before = lk_allocated(m.be);
    lk_infer_options serving = {.max_tokens = 21, .max_rows = 5, .max_context = 64, .max_rank = 2};
    lk_infer *infer;
    CHECK_OK(lk_infer_create(&infer, m.model, &serving, &err), &err);
    assert_int_equal(lk_allocated(m.be) - before, lk_infer_bytes(m.be, &m.model->config, &serving));
    lk_infer_destroy(infer);
    check_model_close(&m);
}

/* ---------------------------------------------------------------------------------------------- */

static void check_case(const cJSON *the_case, const lk_safetensors *st, const lk_safetensors *judge, const char *tier)
{
    lk_error err = {0};
    const char *name = lk_json_get(the_case, "name")->valuestring;
    int32_t rank = lk_json_get(the_case, "adapter")->valueint;
    char *folder = check_family_folder(the_case);
    check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 2, tier);
    lk_model_facts facts;
    CHECK_OK(lk_model_probe(&facts, folder, &err), &err);
    assert_int_equal(lk_allocated(m.be), lk_model_bytes(m.be, &facts, LK_QUANT_NONE));
    const cJSON *length;
    cJSON_ArrayForEach(length, lk_json_get(the_case, "runs"))
    {
        run r = run_open(st, name, length->valueint);
        compare_pass(&m, &r);
        compare_paged(&m, &r);
        if (rank && !length->next) compare_gradients(&m, judge, &r, rank);
        run_close(&r);
    }
    check_company(&m);
    check_targets(&m);
    check_model_close(&m);
    check_plans(folder, tier);
    free(folder);
}

static void check_all(const char *tier)
{
    lk_error err = {0};
    lk_safetensors *st, *mixtures;
    cJSON *json = check_families(&st);
    char *path = check_golden("mixtures.safetensors");
    CHECK_OK(lk_safetensors_open(&mixtures, path, &err), &err);
    free(path);
    const cJSON *the_case;
    int n = 0;
    cJSON_ArrayForEach(the_case, lk_json_get(json, "cases"))
    {
        bool mixes = lk_json_get(lk_json_get(the_case, "config"), "num_experts_per_tok");
        check_case(the_case, st, mixes ? mixtures : st, tier);
        n++;
    }
    assert_true(n > 23);
    lk_safetensors_close(st);
    lk_safetensors_close(mixtures);
    cJSON_Delete(json);
}

static void test_reference(void **state)
{
    (void)state;
    check_all("reference");
}

static void test_fast(void **state)
{
    (void)state;
    check_all(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_fast)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
