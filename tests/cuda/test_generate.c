/* Serving's forward and sampling together on the CUDA backend: logits of the golden models against transformers' through the paged cache,
 * in chunks; and the greedy text of a real model, each step queued before the one before it is read. */
#include "base/file.h"
#include "base/json.h"
#include "tests/cuda/cuda_check.h"
#include "tests/model.h"

static const lk_backend_options on_cuda = {.device = "cuda", .compute = LK_BF16};
static const lk_backend_options on_cpu = {.device = "cpu", .threads = 2, .compute = LK_BF16};

/* A model with what serving one sequence of `length` takes. */
typedef struct served {
    check_model m;
    lk_infer *infer;
    lk_kv *kv;
    int32_t pages[16];
} served;

enum { CHUNK = 7, PAGE = 16 };

static served served_open(const char *folder, const lk_backend_options *on, lk_quant quant, int64_t length)
{
    lk_error err = {0};
    served s = {.m = check_model_open_on(folder, quant, on)};
    CHECK_OK(lk_infer_create(&s.infer, s.m.model, &(lk_infer_options){.max_tokens = CHUNK, .max_rows = CHUNK, .max_context = length}, &err),
             &err);
    lk_kv_shape shape = lk_infer_kv_shape(s.m.model, PAGE, 16);
    assert_true(length <= 16 * PAGE);
    OP(s.m.be, lk_kv_create(s.m.be, &s.kv, &shape));
    for (int32_t i = 0; i < 16; i++) s.pages[i] = 15 - i;
    return s;
}

static void served_close(served *s)
{
    lk_kv_destroy(s->m.be, s->kv);
    lk_infer_destroy(s->infer);
    check_model_close(&s->m);
}

/* Tokens [at, at + n) of a sequence; logits of each. */
static lk_tensor served_step(served *s, const int32_t *ids, int64_t at, int64_t n)
{
    static const int32_t rows[CHUNK] = {0, 1, 2, 3, 4, 5, 6};
    lk_error err = {0};
    int32_t positions[CHUNK];
    for (int64_t i = 0; i < n; i++) positions[i] = (int32_t)(at + i);
    lk_sequence sequence = {.begin = 0, .count = n, .length = at + n, .pages = s->pages};
    lk_batch batch = {.n_tokens = n, .ids = ids, .positions = positions, .n_sequences = 1, .sequences = &sequence};
    lk_tensor logits;
    CHECK_OK(lk_infer_forward(s->infer, &batch, s->kv, rows, n, &logits, &err), &err);
    return logits;
}

/* ---- logits */

/* Root mean square of the difference to the golden logits, over that of the logits. */
static double difference(const char *folder, const lk_backend_options *on, const int32_t *ids, int64_t n, const float *want)
{
    served s = served_open(folder, on, LK_QUANT_NONE, n);
    int64_t V = s.m.model->config.vocab;
    float *got = malloc((size_t)(CHUNK * V) * sizeof(float));
    double off = 0.0, all = 0.0;
    for (int64_t t = 0; t < n; t += CHUNK) {
        int64_t count = n - t < CHUNK ? n - t : CHUNK;
        lk_tensor logits = served_step(&s, ids + t, t, count);
        OP(s.m.be, lk_download(s.m.be, got, logits.data, (size_t)(count * V) * sizeof(float)));
        for (int64_t i = 0; i < count * V; i++) {
            double w = (double)want[t * V + i], d = (double)got[i] - w;
            off += d * d;
            all += w * w;
        }
    }
    free(got);
    served_close(&s);
    return sqrt(off / all);
}

static void check_logits(const char *folder, const char *name)
{
    char golden[100];
    lk_error err = {0};
    lk_safetensors *st;
    int64_t n;
    snprintf(golden, sizeof golden, "logits_%s.safetensors", name);
    char *path = check_golden(golden);
    CHECK_OK(lk_safetensors_open(&st, path, &err), &err);
    int32_t *ids = check_ints(st, "ids", &n);
    float *want = check_floats(st, "logits", NULL);
    double cuda = difference(folder, &on_cuda, ids, n, want), cpu = difference(folder, &on_cpu, ids, n, want);
    printf("%s, %d tokens: off by %.2g on CUDA, %.2g on the CPU in bf16\n", name, (int)n, cuda, cpu);
    /* Both round the factors of products to bf16 (4e-3 each); CUDA's activations and what is summed along the layers are bf16, too. */
    if (!(cuda < 2e-2 && cuda < 2 * cpu)) fail_msg("%s: logits are off by %.3g of their size, on the CPU by %.3g", name, cuda, cpu);
    free(ids);
    free(want);
    free(path);
    lk_safetensors_close(st);
}

static void test_logits(void **state)
{
    (void)state;
    static const char *const names[] = {"llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "llama-tiny-bnb4"};
    set_schedule(0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char folder[100];
        snprintf(folder, sizeof folder, "models/%s", names[i]);
        char *path = check_golden(folder);
        check_logits(path, names[i]);
        free(path);
    }
}

/* ---- greedy text */

enum { TEXT = 60 };

/* From the beginning-of-text token on, `n` tokens. A backend that can is one step ahead: the next id is what is being drawn. */
static void greedy(const char *folder, const lk_backend_options *on, lk_quant quant, int32_t *out, int n)
{
    served s = served_open(folder, on, quant, n + 1);
    lk_backend *be = s.m.be;
    const lk_sample_request q = {.top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
    lk_sample_result r;
    int32_t id = 1;
    bool ahead = lk_backend_ahead(be);
    for (int i = 0; i < n; i++) {
        lk_tensor logits = served_step(&s, &id, i, 1);
        if (!ahead) {
            OP(be, lk_sample(be, &logits, &q, &r));
            id = out[i] = r.token;
            continue;
        }
        OP(be, lk_sample_begin(be, &logits, &q));
        id = lk_drawn(0);
        if (i == 0) continue;
        OP(be, lk_sample_end(be, &r));
        out[i - 1] = r.token;
    }
    if (ahead) {
        OP(be, lk_sample_end(be, &r));
        out[n - 1] = r.token;
    }
    served_close(&s);
}

static void check_text(const char *what, const int32_t *got, const int32_t *want, int n)
{
    for (int i = 0; i < n; i++)
        if (got[i] != want[i]) fail_msg("%s: token %d is %d, not %d", what, i, got[i], want[i]);
}

static void test_text(void **state)
{
    (void)state;
    char *folder = check_shared("models/stories260K");
    if (!folder) return;
    int32_t want[TEXT], got[TEXT];
    char path[4200];
    lk_error err = {0};
    cJSON *json;
    CHECK_OK(lk_path_join(path, sizeof path, folder, "expected_greedy.json", &err), &err);
    CHECK_OK(lk_json_read(&json, path, 1 << 20, &err), &err);
    const cJSON *ids = lk_json_get(json, "greedy_ids");
    assert_int_equal(cJSON_GetArraySize(ids), TEXT + 1);
    for (int i = 0; i < TEXT; i++) want[i] = cJSON_GetArrayItem(ids, i + 1)->valueint;
    greedy(folder, &on_cuda, LK_QUANT_NONE, got, TEXT);
    check_text("CUDA", got, want, TEXT);
    greedy(folder, &on_cpu, LK_QUANT_NONE, got, TEXT);
    check_text("the CPU", got, want, TEXT);
    /* In four bits the text is another one, the same on both. */
    greedy(folder, &on_cpu, LK_QUANT_NF4, want, TEXT / 4);
    greedy(folder, &on_cuda, LK_QUANT_NF4, got, TEXT / 4);
    check_text("CUDA in NF4, beside the CPU", got, want, TEXT / 4);
    cJSON_Delete(json);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits), cmocka_unit_test(test_text)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
