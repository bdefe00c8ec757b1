/* The whole model against transformers (golden logits in fp32), the serving step against the training pass, and the greedy text of a real
 * model. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/file.h"
#include "tests/model.h"

static void compare_logits(const char *folder, const char *golden, const char *tier, double tolerance)
{
    lk_error err = {0};
    char *path = check_golden(golden);
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    free(path);
    int64_t n, n_logits;
    int32_t *ids = check_ints(st, "ids", &n);
    float *want = check_floats(st, "logits", &n_logits);
    check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 2, tier);
    int64_t V = m.model->config.vocab;
    assert_int_equal(n_logits, n * V);
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m.model, &(lk_pass_options){.max_tokens = n + 3}, &err), &err);
    float *got = malloc((size_t)n_logits * 4);
    check_batch b;
    check_batch_init(&b, ids, n);
    CHECK_OK(lk_pass_logits(pass, &b.batch, got, &err), &err);
    check_close(golden, got, want, n_logits, tolerance, tolerance);

    /* The same rows through pages, in chunks of 7: the serving path has its own attention. */
    lk_infer *infer;
    CHECK_OK(lk_infer_create(&infer, m.model, &(lk_infer_options){.max_tokens = 7, .max_rows = 7, .max_context = n}, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(m.model, 16, (int32_t)(n / 16 + 3));
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m.be, &kv, &shape), LK_OK);
    int32_t pages[64], rows[7] = {0, 1, 2, 3, 4, 5, 6};
    for (int i = 0; i < shape.n_pages; i++) pages[i] = shape.n_pages - 1 - i;
    for (int64_t t = 0; t < n; t += 7) {
        int64_t count = n - t < 7 ? n - t : 7;
        lk_sequence sequence = {.begin = 0, .count = count, .length = t + count, .pages = pages};
        lk_batch step = {.n_tokens = count, .ids = ids + t, .positions = b.positions + t, .n_sequences = 1, .sequences = &sequence};
        lk_tensor logits;
        CHECK_OK(lk_infer_forward(infer, &step, kv, rows, count, &logits, &err), &err);
        check_close("paged logits", logits.data, want + t * V, count * V, tolerance, tolerance);
    }
    lk_kv_destroy(m.be, kv);
    lk_infer_destroy(infer);
    lk_pass_destroy(pass);
    check_batch_free(&b);
    check_model_close(&m);
    free(ids);
    free(want);
    free(got);
    lk_safetensors_close(st);
}

static const char *const tiers[] = {"reference", NULL};

static void test_tiny_models(void **state)
{
    (void)state;
    static const char *const names[] = {"llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "llama-tiny-bnb4"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (size_t t = 0; t < 2; t++) {
            char folder[100], golden[100];
            snprintf(folder, sizeof folder, "models/%s", names[i]);
            snprintf(golden, sizeof golden, "logits_%s.safetensors", names[i]);
            char *path = check_golden(folder);
            compare_logits(path, golden, tiers[t], 1e-4);
            free(path);
        }
    }
}

static void test_stories_logits(void **state)
{
    (void)state;
    char *folder = check_shared("models/stories260K");
    if (!folder) return;
    for (size_t t = 0; t < 2; t++) compare_logits(folder, "logits_stories260K.safetensors", tiers[t], 1e-4);
    free(folder);
}

/* Root mean square of the difference between serving logits and transformers' on a real model, with keys and values in `kind`. */
static double paged_difference(const char *folder, lk_dtype compute, lk_dtype kind)
{
    lk_error err = {0};
    char *path = check_golden("logits_stories260K.safetensors");
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    int64_t n, n_logits;
    int32_t *ids = check_ints(st, "ids", &n);
    float *want = check_floats(st, "logits", &n_logits);
    check_model m = check_model_open(folder, LK_QUANT_NONE, compute, 2, NULL);
    lk_infer *infer;
    CHECK_OK(lk_infer_create(&infer, m.model, &(lk_infer_options){.max_tokens = n, .max_rows = n, .max_context = n}, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(m.model, 16, (int32_t)(n / 16 + 1));
    shape.type = kind;
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m.be, &kv, &shape), LK_OK);
    check_batch b;
    check_batch_init(&b, ids, n);
    int32_t *rows = calloc((size_t)n, sizeof *rows), *pages = calloc((size_t)shape.n_pages, sizeof *pages);
    for (int32_t i = 0; i < n; i++) rows[i] = i;
    for (int32_t i = 0; i < shape.n_pages; i++) pages[i] = i;
    lk_sequence sequence = {.begin = 0, .count = n, .length = n, .pages = pages};
    lk_batch step = {.n_tokens = n, .ids = ids, .positions = b.positions, .n_sequences = 1, .sequences = &sequence};
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(infer, &step, kv, rows, n, &logits, &err), &err);
    double sum = 0.0;
    for (int64_t i = 0; i < n_logits; i++) {
        double d = (double)((const float *)logits.data)[i] - (double)want[i];
        sum += d * d;
    }
    free(rows);
    free(pages);
    check_batch_free(&b);
    lk_kv_destroy(m.be, kv);
    lk_infer_destroy(infer);
    check_model_close(&m);
    free(ids);
    free(want);
    free(path);
    lk_safetensors_close(st);
    return sqrt(sum / (double)n_logits);
}

/* 8-bit keys and values move the logits of this small model (heads of 8) some three times as much as computing in bf16 does: they are an
 * option. */
static void test_stories_8bit(void **state)
{
    (void)state;
    char *folder = check_shared("models/stories260K");
    if (!folder) return;
    double exact = paged_difference(folder, LK_F32, LK_F32), bits8 = paged_difference(folder, LK_F32, LK_I8);
    double bf16 = paged_difference(folder, LK_BF16, LK_BF16), both = paged_difference(folder, LK_BF16, LK_I8);
    print_message("logits off by %.1e in fp32, %.1e with 8-bit keys and values, %.1e in bf16, %.1e in bf16 with 8 bits\n", exact, bits8,
                  bf16, both);
    assert_true(exact < 1e-4);
    assert_true(bits8 > exact);
    assert_true(bits8 < 5.0 * bf16);
    assert_true(both < 5.0 * bf16);
    free(folder);
}

/* A head in NF4 is what quantising the dense one gives; a tied one leaves the embedding as it is. */
static void test_nf4_head(void **state)
{
    (void)state;
    static const char *const names[] = {"models/llama-tiny", "models/qwen3-tiny"};
    bool tied = false, untied = false;
    for (int i = 0; i < 2; i++) {
        lk_error err = {0};
        char *folder = check_golden(names[i]);
        check_model dense = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL),
                    small = check_model_open(folder, LK_QUANT_NF4, LK_F32, 1, NULL);
        lk_model_close(small.model);
        CHECK_OK(lk_model_open(&small.model, small.be, folder, &(lk_model_options){.nf4_head = true}, &err), &err);
        const lk_config *c = &small.model->config;
        tied |= c->tied;
        untied |= !c->tied;
        assert_int_equal(lk_matrix_type(small.model->head), LK_NF4);
        assert_int_not_equal(lk_matrix_type(small.model->embedding), LK_NF4);
        assert_string_equal(small.model->identity, dense.model->identity);
        assert_string_not_equal(small.model->digest, dense.model->digest);
        /* One row of the head at a time, by its product with a one. */
        float *x = calloc((size_t)c->hidden, sizeof *x),
              *y[2] = {calloc((size_t)c->vocab, sizeof **y), calloc((size_t)c->vocab, sizeof **y)};
        double most = 0.0, off = 0.0;
        for (int64_t k = 0; k < c->hidden; k++) {
            x[k] = 1.0f;
            lk_tensor in = lk_tensor_make(x, LK_F32, 1, c->hidden), out[2];
            for (int j = 0; j < 2; j++) {
                const check_model *m = j ? &small : &dense;
                out[j] = lk_tensor_make(y[j], LK_F32, 1, c->vocab);
                lk_limits limits = {.tokens = 1, .width = c->hidden, .vocab = c->vocab, .matrix = c->hidden * c->vocab};
                assert_int_equal(lk_reserve(m->be, &limits), LK_OK);
                assert_int_equal(lk_linear(m->be, &out[j], &in, m->model->head, NULL, NULL), LK_OK);
            }
            for (int64_t n = 0; n < c->vocab; n++) {
                most = fmax(most, fabs((double)y[0][n]));
                off = fmax(off, fabs((double)y[1][n] - (double)y[0][n]));
            }
            x[k] = 0.0f;
        }
        assert_true(off > 0.0);
        assert_true(off <= 0.16 * most); /* half the widest gap of the codebook, 0.304, and the scales' own rounding */
        free(x);
        free(y[0]);
        free(y[1]);
        check_model_close(&dense);
        check_model_close(&small);
        free(folder);
    }
    assert_true(tied && untied);
}

static int32_t arg_max(const float *x, int64_t n)
{
    int32_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = (int32_t)i;
    return best;
}

/* expected_greedy.json comes with the model: the ids a greedy run gives after BOS. */
static void test_stories_greedy(void **state)
{
    (void)state;
    char *folder = check_shared("models/stories260K");
    if (!folder) return;
    lk_error err = {0};
    char path[4200];
    CHECK_OK(lk_path_join(path, sizeof path, folder, "expected_greedy.json", &err), &err);
    cJSON *json;
    CHECK_OK(lk_json_read(&json, path, 1 << 20, &err), &err);
    const cJSON *want = lk_json_get(json, "greedy_ids");
    int n = cJSON_GetArraySize(want);
    assert_true(n > 50);
    check_model m = check_model_open(folder, LK_QUANT_NONE, LK_F32, 2, NULL);
    lk_infer *infer;
    CHECK_OK(lk_infer_create(&infer, m.model, &(lk_infer_options){.max_tokens = 1, .max_rows = 1, .max_context = n}, &err), &err);
    lk_kv_shape shape = lk_infer_kv_shape(m.model, 16, 8);
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m.be, &kv, &shape), LK_OK);
    int32_t pages[8] = {3, 1, 4, 0, 5, 2, 6, 7}, row = 0;
    int32_t id = m.model->config.bos;
    for (int t = 0; t < n; t++) {
        assert_int_equal(id, cJSON_GetArrayItem(want, t)->valueint);
        int32_t position = t;
        lk_sequence sequence = {.begin = 0, .count = 1, .length = t + 1, .pages = pages};
        lk_batch step = {.n_tokens = 1, .ids = &id, .positions = &position, .n_sequences = 1, .sequences = &sequence};
        lk_tensor logits;
        CHECK_OK(lk_infer_forward(infer, &step, kv, &row, 1, &logits, &err), &err);
        id = arg_max(logits.data, m.model->config.vocab);
    }
    lk_kv_destroy(m.be, kv);
    lk_infer_destroy(infer);
    check_model_close(&m);
    cJSON_Delete(json);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiny_models), cmocka_unit_test(test_stories_logits),
                                       cmocka_unit_test(test_stories_greedy), cmocka_unit_test(test_stories_8bit),
                                       cmocka_unit_test(test_nf4_head)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
