/* Adapters that PEFT made with every option: the logits are PEFT's, over the stored base and over the 4-bit one; batched with others they
 * are the same bits as alone; and what a backend without lk_gain says. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/model.h"

static const struct {
    const char *name, *base;
} rows[] = {
    {"dora", "llama-tiny"},           {"dora_rslora", "qwen2-tiny"}, {"lora_bias", "llama-tiny"},   {"bias_lora_only", "qwen2-tiny"},
    {"bias_all", "qwen2-tiny"},       {"saved", "llama-tiny"},       {"saved_tied", "qwen3-tiny"},  {"embedding", "llama-tiny"},
    {"embedding_tied", "qwen3-tiny"}, {"tokens", "llama-tiny"},      {"tokens_tied", "qwen3-tiny"}, {"regex", "llama-tiny"},
    {"layers", "llama-tiny"},         {"transposed", "llama-tiny"},  {"pissa", "llama-tiny"},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

static lk_safetensors *golden;

static char *option_folder(const char *name)
{
    char path[100];
    snprintf(path, sizeof path, "options/%s", name);
    return check_golden(path);
}

static char *base_folder(const char *name)
{
    char path[100];
    snprintf(path, sizeof path, "models/%s", name);
    return check_golden(path);
}

static void test_logits(void **state)
{
    (void)state;
    lk_error err = {0};
    for (int i = 0; i < N_ROWS; i++)
        for (int nf4 = 0; nf4 < 2; nf4++) {
            char key[100];
            snprintf(key, sizeof key, "%s.logits%s", rows[i].name, nf4 ? "_nf4" : "");
            if (!lk_safetensors_find(golden, key)) continue; /* pissa: over the base as stored only */
            int64_t n, n_want;
            float *want = check_floats(golden, key, &n_want);
            char ids_key[100];
            snprintf(ids_key, sizeof ids_key, "%s.ids", rows[i].name);
            int32_t *ids = check_ints(golden, ids_key, &n);
            char *base = base_folder(rows[i].base), *folder = option_folder(rows[i].name);
            check_model m = check_model_open(base, nf4 ? LK_QUANT_NF4 : LK_QUANT_NONE, LK_F32, 2, NULL);
            lk_adapter *a;
            CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_F32, &err), &err);
            lk_pass *pass;
            CHECK_OK(lk_pass_create(&pass, m.model, &(lk_pass_options){.max_tokens = n, .max_rank = a->max_rank}, &err), &err);
            check_batch b;
            check_batch_init(&b, ids, n);
            check_batch_adapter(&b, a, NULL);
            float *got = malloc((size_t)n_want * 4), *nll = malloc((size_t)n * 4);
            CHECK_OK(lk_pass_logits(pass, &b.batch, got, &err), &err);
            check_close(key, got, want, n_want, 1e-4, 1e-4);
            /* The loss goes another way through the head. */
            int32_t *labels = malloc((size_t)n * 4);
            for (int64_t t = 0; t < n; t++) labels[t] = t + 1 < n ? ids[t + 1] : -1;
            CHECK_OK(lk_pass_loss(pass, &b.batch, labels, nll, NULL, &err), &err);
            int64_t vocab = n_want / n;
            for (int64_t t = 0; t + 1 < n; t++) {
                double sum = 0;
                for (int64_t v = 0; v < vocab; v++) sum += exp((double)want[t * vocab + v]);
                float loss = (float)(log(sum) - (double)want[t * vocab + labels[t]]);
                check_close("loss", &nll[t], &loss, 1, 2e-4, 2e-4);
            }
            free(labels);
            free(nll);
            free(got);
            free(want);
            free(ids);
            check_batch_free(&b);
            lk_pass_destroy(pass);
            lk_adapter_destroy(a);
            check_model_close(&m);
            free(base);
            free(folder);
        }
}

/* ---- in mixed batches ---- */

enum { N_MIXED = 8, T_EACH = 5, PAGE = 16 };

/* Logits of each sequence's last row; order[i] is the adapter of sequence i (N_MIXED - 1: the base). */
static void serve(const check_model *m, lk_adapter *const *adapters, const int *order, int n, float *out)
{
    lk_error err = {0};
    lk_infer *infer;
    CHECK_OK(
        lk_infer_create(&infer, m->model, &(lk_infer_options){.max_tokens = 64, .max_rows = 8, .max_context = 64, .max_rank = 8}, &err),
        &err);
    lk_kv_shape shape = lk_infer_kv_shape(m->model, PAGE, 8);
    lk_kv *kv;
    assert_int_equal(lk_kv_create(m->be, &kv, &shape), LK_OK);
    int32_t ids[64], positions[64], pages[8], last[8];
    lk_sequence sequences[8];
    lk_segment segments[8];
    int32_t n_adapters = N_MIXED - 1, n_sites = adapters[0]->n_sites;
    lk_lora *table = calloc((size_t)(n_sites * n_adapters), sizeof *table);
    lk_adapter_tables tables[N_MIXED];
    const lk_adapter *list[N_MIXED];
    for (int i = 0; i < n_adapters; i++) list[i] = adapters[i];
    lk_adapter_table(table, list, n_adapters, NULL);
    for (int i = 0; i < n; i++) {
        int64_t begin = i * T_EACH;
        for (int t = 0; t < T_EACH; t++) {
            ids[begin + t] = (int32_t)((7 * t + 13 * order[i]) % 150 + 3);
            if (t == 2) ids[begin + t] = 9; /* a trained token */
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
                      .n_rows = n,
                      .rows = last,
                      .n_segments = n,
                      .segments = segments,
                      .n_sites = n_sites,
                      .n_adapters = n_adapters,
                      .lora = table,
                      .tables = lk_adapter_fill_tables(tables, list, n_adapters)};
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(infer, &batch, kv, last, n, &logits, &err), &err);
    for (int i = 0; i < n; i++)
        memcpy(out + i * m->model->config.vocab, (const float *)logits.data + i * logits.stride, (size_t)m->model->config.vocab * 4);
    free(table);
    lk_kv_destroy(m->be, kv);
    lk_infer_destroy(infer);
}

static void test_company(void **state)
{
    (void)state;
    lk_error err = {0};
    static const char *const names[] = {"dora", "lora_bias", "saved", "embedding", "tokens", "layers", "head"};
    char *base = base_folder("llama-tiny");
    for (int compute = 0; compute < 2; compute++) {
        lk_dtype type = compute ? LK_BF16 : LK_F32;
        check_model m = check_model_open(base, LK_QUANT_NF4, type, 2, NULL);
        lk_adapter *adapters[N_MIXED - 1];
        for (int i = 0; i < N_MIXED - 1; i++) {
            char *folder = option_folder(names[i]);
            CHECK_OK(lk_adapter_load(&adapters[i], m.model, folder, type, &err), &err);
            free(folder);
        }
        int64_t vocab = m.model->config.vocab;
        float *together = malloc((size_t)(N_MIXED * vocab) * 4), *alone = malloc((size_t)vocab * 4);
        static const int order[N_MIXED] = {4, 0, 7, 2, 1, 5, 3, 6};
        serve(&m, adapters, order, N_MIXED, together);
        for (int i = 0; i < N_MIXED; i++) {
            serve(&m, adapters, &order[i], 1, alone);
            check_same_bits("alone", together + i * vocab, alone, (size_t)vocab * 4);
            for (int j = 0; j < i; j++) assert_true(memcmp(together + i * vocab, together + j * vocab, (size_t)vocab * 4) != 0);
        }
        free(together);
        free(alone);
        for (int i = 0; i < N_MIXED - 1; i++) lk_adapter_destroy(adapters[i]);
        check_model_close(&m);
    }
    free(base);
}

/* ---- gradients ---- */

/* PEFT's gradients of a DoRA's factors and magnitudes over the 4-bit base, with every setting of checkpointing. */
static void test_dora_gradient(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = base_folder("llama-tiny"), *folder = option_folder("dora");
    check_model m = check_model_open(base, LK_QUANT_NF4, LK_F32, 2, NULL);
    int64_t n;
    int32_t *ids = check_ints(golden, "dora.ids", &n), labels[16];
    for (int64_t t = 0; t < n; t++) labels[t] = t + 1 < n ? ids[t + 1] : -1;
    lk_adapter *a;
    CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_F32, &err), &err);
    float *grads[2], nll[16];
    for (int kept = 0; kept < 2; kept++) {
        grads[kept] = calloc((size_t)a->n_params, sizeof(float));
        lk_pass *pass;
        lk_pass_options options = {.max_tokens = n, .max_rank = a->max_rank, .kept_layers = 1 + kept, .training = true, .gains = true};
        CHECK_OK(lk_pass_create(&pass, m.model, &options, &err), &err);
        check_batch b;
        check_batch_init(&b, ids, n);
        check_batch_adapter(&b, a, grads[kept]);
        CHECK_OK(lk_pass_gradient(pass, &b.batch, labels, 1.0f / (float)(n - 1), NULL, nll, &err), &err);
        check_batch_free(&b);
        lk_pass_destroy(pass);
    }
    check_same_bits("gradients with and without recomputation", grads[0], grads[1], (size_t)a->n_params * 4);
    int compared = 0;
    for (int32_t s = 0; s < a->n_sites; s++) {
        const lk_adapter_site *site = &a->sites[s];
        if (!site->rank) continue;
        static const char *const tails[] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
        const int64_t offsets[] = {site->a, site->b, site->m};
        char path[200], key[400];
        lk_site_path(path, sizeof path, &m.model->config, s);
        for (int i = 0; i < 3; i++, compared++) {
            int64_t size;
            snprintf(key, sizeof key, "dora.grad.base_model.model.%s.%s", path, tails[i]);
            float *want = check_floats(golden, key, &size);
            check_close(key, grads[0] + offsets[i], want, size, 1e-5, 1e-3);
            free(want);
        }
    }
    assert_int_equal(compared, 30);
    free(grads[0]);
    free(grads[1]);
    free(ids);
    lk_adapter_destroy(a);
    check_model_close(&m);
    free(base);
    free(folder);
}

/* ---- refusals ---- */

typedef struct tensor {
    const char *name;
    int64_t shape[2]; /* the second 0: a vector */
} tensor;

#define P "base_model.model."
#define Q_PAIR                                                       \
    {P "model.layers.0.self_attn.q_proj.lora_A.weight", {2, 64}},    \
    {                                                                \
        P "model.layers.0.self_attn.q_proj.lora_B.weight", { 64, 2 } \
    }

static void write_adapter(const char *folder, const char *fields, const tensor *tensors)
{
    lk_error err = {0};
    char path[4200], config[1000];
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    snprintf(config, sizeof config, "{\"peft_type\":\"LORA\",\"r\":2%s%s}", *fields ? "," : "", fields);
    check_write_file(path, config, strlen(config));
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "adapter_model", 0, &err), &err);
    for (const tensor *t = tensors; t->name; t++)
        CHECK_OK(lk_st_writer_declare(w, t->name, LK_F32, t->shape[1] ? 2 : 1, t->shape, &err), &err);
    for (const tensor *t = tensors; t->name; t++) {
        int64_t n = t->shape[0] * (t->shape[1] ? t->shape[1] : 1);
        float *zeros = calloc((size_t)n, sizeof *zeros);
        CHECK_OK(lk_st_writer_write(w, zeros, (size_t)n * 4, &err), &err);
        free(zeros);
    }
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
}

/* What does not fit a model, and what no model computes, by the field's or the module's name. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *fields;
        tensor tensors[4];
        lk_status status;
        const char *text, *base; /* NULL: llama-tiny */
    } refused[] = {
        {"", {Q_PAIR}, LK_OK, NULL, NULL},
        {"",
         {{P "lm_head.lora_A.weight", {2, 64}}, {P "lm_head.lora_B.weight", {170, 2}}},
         LK_ERR_MISMATCH,
         "lm_head adapts a [170,64] head, but llama-tiny has [163,64]",
         NULL},
        {"\"lora_bias\":true",
         {{P "lm_head.lora_A.weight", {2, 64}}, {P "lm_head.lora_B.weight", {163, 2}}, {P "lm_head.lora_B.bias", {163, 0}}},
         LK_ERR_UNSUPPORTED,
         "lora_bias on the head (lm_head)",
         NULL},
        {"\"use_dora\":true",
         {{P "lm_head.lora_A.weight", {2, 64}}, {P "lm_head.lora_B.weight", {163, 2}}, {P "lm_head.lora_magnitude_vector", {163, 0}}},
         LK_ERR_UNSUPPORTED,
         "use_dora on the head (lm_head)",
         NULL},
        {"",
         {{P "model.layers.9.self_attn.q_proj.lora_A.weight", {2, 64}}, {P "model.layers.9.self_attn.q_proj.lora_B.weight", {64, 2}}},
         LK_ERR_MISMATCH,
         "which is not a linear layer of llama-tiny (2 layers)",
         NULL},
        {"\"bias\":\"all\"",
         {Q_PAIR, {P "model.layers.0.self_attn.q_proj.bias", {64, 0}}},
         LK_ERR_MISMATCH,
         "brings a bias for model.layers.0",
         NULL},
        {"\"bias\":\"all\"",
         {{P "model.layers.0.self_attn.q_proj.bias", {63, 0}}},
         LK_ERR_MISMATCH,
         "has 63 elements, that of qwen2-tiny 64",
         "qwen2-tiny"},
        {"\"modules_to_save\":[\"input_layernorm\"]",
         {Q_PAIR, {P "model.layers.0.mlp.input_layernorm.weight", {8, 8}}},
         LK_ERR_UNSUPPORTED,
         "modules_to_save holds model.layers.0.mlp.input_layernorm",
         NULL},
        {"\"modules_to_save\":[\"lm_head\"]",
         {Q_PAIR, {P "lm_head.weight", {170, 64}}},
         LK_ERR_MISMATCH,
         "its lm_head is [170,64], but llama-tiny has [163,64]",
         NULL},
        {"",
         {{P "model.embed_tokens.lora_embedding_A", {2, 170}}, {P "model.embed_tokens.lora_embedding_B", {64, 2}}},
         LK_ERR_MISMATCH,
         "adapts a [170,64] embedding, but llama-tiny has [163,64]",
         NULL},
        {"",
         {{P "model.other.lora_embedding_A", {2, 163}}, {P "model.other.lora_embedding_B", {64, 2}}},
         LK_ERR_MISMATCH,
         "adapts the embedding model.other, which llama-tiny does not have",
         NULL},
        {"\"use_dora\":true",
         {{P "model.embed_tokens.lora_embedding_A", {2, 163}},
          {P "model.embed_tokens.lora_embedding_B", {64, 2}},
          {P "model.embed_tokens.lora_magnitude_vector", {64, 0}}},
         LK_ERR_UNSUPPORTED,
         "use_dora on an embedding (model.embed_tokens)",
         NULL},
        {"\"lora_bias\":true",
         {{P "model.embed_tokens.lora_embedding_A", {2, 163}},
          {P "model.embed_tokens.lora_embedding_B", {64, 2}},
          {P "model.embed_tokens.lora_B.bias", {64, 0}}},
         LK_ERR_UNSUPPORTED,
         "lora_bias on an embedding (model.embed_tokens)",
         NULL},
        {"\"ensure_weight_tying\":true",
         {{P "model.embed_tokens.lora_embedding_A", {2, 160}}, {P "model.embed_tokens.lora_embedding_B", {64, 2}}},
         LK_ERR_UNSUPPORTED,
         "ensure_weight_tying with factors on a tied embedding",
         "qwen3-tiny"},
        {"\"trainable_token_indices\":[163]",
         {{P "model.embed_tokens.token_adapter.trainable_tokens_delta", {1, 64}}},
         LK_ERR_MISMATCH,
         "token 163 of trainable_token_indices is outside the vocabulary of llama-tiny",
         NULL},
        {"\"trainable_token_indices\":[3]",
         {{P "model.embed_tokens.token_adapter.trainable_tokens_delta", {1, 60}}},
         LK_ERR_MISMATCH,
         "its trained tokens have width 60",
         NULL},
        {"\"trainable_token_indices\":{\"other\":[3]}",
         {{P "model.other.token_adapter.trainable_tokens_delta", {1, 64}}},
         LK_ERR_UNSUPPORTED,
         "trainable_token_indices of model.other",
         NULL},
    };
    lk_error err = {0};
    char *folder = check_temporary("option_refused");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char *base = base_folder(refused[i].base ? refused[i].base : "llama-tiny");
        check_model m = check_model_open(base, LK_QUANT_NF4, LK_F32, 1, NULL);
        write_adapter(folder, refused[i].fields, refused[i].tensors);
        lk_adapter *a;
        if (refused[i].status) {
            CHECK_FAILS(lk_adapter_load(&a, m.model, folder, LK_F32, &err), refused[i].status, refused[i].text, &err);
        } else {
            CHECK_OK(lk_adapter_load(&a, m.model, folder, LK_F32, &err), &err);
            lk_adapter_destroy(a);
        }
        check_model_close(&m);
        free(base);
    }
    free(folder);
    /* A backend without lk_gain: none of this is computed there, and it says so. */
    char *base = base_folder("llama-tiny");
    check_model m = check_model_open(base, LK_QUANT_NF4, LK_F32, 1, NULL);
    const lk_ops *whole = m.be->ops;
    lk_ops less = *whole;
    less.gain = NULL;
    m.be->ops = &less;
    static const char *const names[][2] = {{"dora", "adapters with use_dora are not computed on"},
                                           {"lora_bias", "adapters with lora_bias are not computed on"},
                                           {"saved", "adapters with modules_to_save are not computed on"},
                                           {"embedding", "adapters with an adapted embedding are not computed on"},
                                           {"tokens", "adapters with trainable_token_indices are not computed on"}};
    lk_adapter *a;
    for (int i = 0; i < 5; i++) {
        char *option = option_folder(names[i][0]);
        CHECK_FAILS(lk_adapter_load(&a, m.model, option, LK_F32, &err), LK_ERR_UNSUPPORTED, names[i][1], &err);
        free(option);
    }
    lk_adapter_spec spec = {.rank = 2, .alpha = 2, .use_dora = true, .targets = {[LK_Q] = true}};
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_UNSUPPORTED, "dora is not trained on", &err);
    spec.use_dora = false;
    spec.init = LK_INIT_PISSA;
    CHECK_FAILS(lk_adapter_create(&a, m.model, &spec, 1, &err), LK_ERR_UNSUPPORTED, "init pissa is not trained on", &err);
    m.be->ops = whole;
    check_model_close(&m);
    free(base);
}

static int open_golden(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("adapter_options.safetensors");
    CHECK_OK(lk_safetensors_open(&golden, path, &err), &err);
    free(path);
    return 0;
}

static int close_golden(void **state)
{
    (void)state;
    lk_safetensors_close(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits), cmocka_unit_test(test_company), cmocka_unit_test(test_dora_gradient),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
