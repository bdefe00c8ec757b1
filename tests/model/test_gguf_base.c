/* GGUF files as a base: logits of one made by the gguf package, of our own exports against the folders they were made from, tokenizers, and
 * what is refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/gguf.h"
#include "data/gguf_tokenizer.h"
#include "model/export_gguf.h"
#include "model/weights.h"
#include "tests/model.h"

/* Every matrix in another type, quantised by the gguf package and ggml; transformers computed on what the package decodes. */
static void test_golden(void **state)
{
    (void)state;
    lk_error err = {0};
    char *path = check_golden("gguf_model.gguf"), *values = check_golden("gguf.safetensors");
    lk_safetensors *st;
    CHECK_OK(lk_safetensors_open(&st, values, &err), &err);
    int64_t n, n_want, n_got;
    int32_t *ids = check_ints(st, "model.ids", &n);
    float *want = check_floats(st, "model.logits", &n_want), *got = check_pass_logits(path, NULL, LK_QUANT_NONE, ids, n, &n_got);
    assert_int_equal(n_got, n_want);
    check_close("logits", got, want, n_got, 1e-4, 1e-4);
    free(got);
    free(want);
    free(ids);
    free(path);
    free(values);
    lk_safetensors_close(st);
}

/* A folder and its export are the same model: with permuted rows (llama, mistral), biases (qwen2), norms of heads (qwen3), RoPE in a
 * tensor (llama-tiny), with an adapter, and quantised to NF4 while loading. */
static void test_exports(void **state)
{
    (void)state;
    lk_error err = {0};
    int32_t ids[20];
    for (int i = 0; i < 20; i++) ids[i] = (i * 37 + 5) % 150;
    static const struct {
        const char *model, *adapter;
        lk_quant quant;
    } cases[] = {{"llama-tiny", NULL, LK_QUANT_NONE},
                 {"llama-tiny", "adapters/r8_all", LK_QUANT_NONE},
                 {"mistral-tiny", NULL, LK_QUANT_NF4},
                 {"qwen2-tiny", NULL, LK_QUANT_NONE},
                 {"qwen3-tiny", NULL, LK_QUANT_NONE}};
    char *folder = check_temporary("gguf_base"), path[4200];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[100];
        snprintf(name, sizeof name, "models/%s", cases[i].model);
        snprintf(path, sizeof path, "%s/%s.gguf", folder, cases[i].model);
        char *base = check_golden(name), *adapter = cases[i].adapter ? check_golden(cases[i].adapter) : NULL;
        lk_gguf_export_result result;
        CHECK_OK(lk_export_gguf(base, path, &(lk_gguf_export_options){.type = "f32"}, &result, &err), &err);
        int64_t n_want, n_got;
        float *want = check_pass_logits(base, adapter, cases[i].quant, ids, 20, &n_want),
              *got = check_pass_logits(path, adapter, cases[i].quant, ids, 20, &n_got);
        assert_int_equal(n_want, n_got);
        check_close(cases[i].model, got, want, n_got, 1e-5, 1e-5);
        free(want);
        free(got);
        free(base);
        free(adapter);
    }
    free(folder);
}

static void test_tokenizer(void **state)
{
    (void)state;
    lk_error err = {0};
    char *base = check_golden("models/chat-tiny"), *folder = check_temporary("gguf_tokenizer"), path[4200];
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    lk_gguf_export_result result;
    CHECK_OK(lk_export_gguf(base, path, &(lk_gguf_export_options){.type = "q8_0"}, &result, &err), &err);
    lk_tokenizer *a, *b;
    CHECK_OK(lk_tokenizer_open(&a, base, &err), &err);
    CHECK_OK(lk_tokenizer_open(&b, path, &err), &err);
    static const char *const texts[] = {"", "Once upon a time", "  two  spaces\n\nand lines 2025", "Grüße, 你好",
                                        "<|im_start|>user\nHi<|im_end|>\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t *x, *y;
        int64_t n, m;
        CHECK_OK(lk_tokenizer_encode(a, texts[i], strlen(texts[i]), LK_TK_SPECIALS, &x, &n, &err), &err);
        CHECK_OK(lk_tokenizer_encode(b, texts[i], strlen(texts[i]), LK_TK_SPECIALS, &y, &m, &err), &err);
        assert_int_equal(n, m);
        check_same_bits(texts[i], y, x, (size_t)n * sizeof *x);
        free(x);
        free(y);
    }
    assert_int_equal(lk_tokenizer_eos(a), lk_tokenizer_eos(b));
    assert_string_equal(lk_tokenizer_chat_template(a), lk_tokenizer_chat_template(b));
    lk_tokenizer_close(a);
    lk_tokenizer_close(b);
    free(base);
    free(folder);
}

/* ---- refusals ---- */

typedef struct wrong {
    lk_status status;
    const char *message;
    const char *architecture, *type, *skip, *extra; /* NULL: as it should be */
    int64_t layers, columns;
    double rms_eps;
    const char *scaling;
} wrong;

static void make_wrong(const char *path, const wrong *x)
{
    lk_error err = {0};
    lk_gguf_writer *w;
    static const float zeros[64 * 64];
    const lk_ggml_type *f32 = lk_ggml_type_named("f32");
    static const struct {
        const char *name;
        int n_dims;
        int64_t rows, columns;
    } tensors[] = {{"token_embd.weight", 2, 16, 8},    {"output_norm.weight", 1, 1, 8},       {"blk.0.attn_norm.weight", 1, 1, 8},
                   {"blk.0.ffn_norm.weight", 1, 1, 8}, {"blk.0.attn_q.weight", 2, 8, 8},      {"blk.0.attn_k.weight", 2, 8, 8},
                   {"blk.0.attn_v.weight", 2, 8, 8},   {"blk.0.attn_output.weight", 2, 8, 8}, {"blk.0.ffn_gate.weight", 2, 12, 8},
                   {"blk.0.ffn_up.weight", 2, 12, 8},  {"blk.0.ffn_down.weight", 2, 8, 12},   {"", 2, 3, 3}};
    CHECK_OK(lk_gguf_writer_create(&w, path, &err), &err);
    if (!x->skip || strcmp(x->skip, "architecture"))
        CHECK_OK(lk_gguf_add_string(w, "general.architecture", x->architecture ? x->architecture : "llama", &err), &err);
    CHECK_OK(lk_gguf_add_string(w, "general.type", x->type ? x->type : "model", &err), &err);
    if (!x->skip || strcmp(x->skip, "context")) CHECK_OK(lk_gguf_add_u32(w, "llama.context_length", 32, &err), &err);
    CHECK_OK(lk_gguf_add_u32(w, "llama.embedding_length", 8, &err), &err);
    CHECK_OK(lk_gguf_add_u32(w, "llama.block_count", x->layers ? x->layers : 1, &err), &err);
    CHECK_OK(lk_gguf_add_u32(w, "llama.feed_forward_length", 12, &err), &err);
    CHECK_OK(lk_gguf_add_u32(w, "llama.attention.head_count", 2, &err), &err);
    CHECK_OK(lk_gguf_add_f32(w, "llama.attention.layer_norm_rms_epsilon", x->rms_eps != 0 ? x->rms_eps : 1e-5, &err), &err);
    if (x->scaling) CHECK_OK(lk_gguf_add_string(w, "llama.rope.scaling.type", x->scaling, &err), &err);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
            const char *name = *tensors[i].name ? tensors[i].name : x->extra;
            if (!name || (x->skip && !strcmp(x->skip, name))) continue;
            int64_t shape[2] = {tensors[i].rows, x->columns && i == 5 ? x->columns : tensors[i].columns};
            if (pass == 0)
                CHECK_OK(lk_gguf_declare(w, name, f32, tensors[i].n_dims, tensors[i].n_dims == 1 ? shape + 1 : shape, &err), &err);
            else
                CHECK_OK(lk_gguf_write(w, zeros, (size_t)(shape[0] * shape[1]) * 4, &err), &err);
        }
    }
    CHECK_OK(lk_gguf_commit(w, &err), &err);
}

static void test_refuses(void **state)
{
    (void)state;
    static const wrong cases[] = {
        {LK_OK, ""},
        {LK_ERR_UNSUPPORTED, "general.architecture is 'mamba', which is not supported; supported are: llama, qwen2",
         .architecture = "mamba"},
        {LK_ERR_NOT_FOUND, "the key general.architecture is missing", .skip = "architecture"},
        {LK_ERR_ARGUMENT, "general.type is \"adapter\": not a model", .type = "adapter"},
        {LK_ERR_NOT_FOUND, "the key llama.context_length is missing", .skip = "context"},
        {LK_ERR_FORMAT, "sizes that make no model", .layers = 5000},
        {LK_ERR_FORMAT, "layer_norm_rms_epsilon is -1, which makes no sense", .rms_eps = -1},
        {LK_ERR_UNSUPPORTED, "llama.rope.scaling.type is \"alibi\"; none, linear, yarn and longrope are read", .scaling = "alibi"},
        {LK_ERR_NOT_FOUND, "the key llama.rope.scaling.factor is missing", .scaling = "linear"},
        {LK_ERR_NOT_FOUND, "the matrix token_embd.weight is missing", .skip = "token_embd.weight"},
        {LK_ERR_NOT_FOUND, "model.layers.0.mlp.down_proj.weight", .skip = "blk.0.ffn_down.weight"},
        {LK_ERR_NOT_FOUND, "model.layers.1.", .layers = 2},
        {LK_ERR_UNSUPPORTED, "tensor blk.0.attn_sinks.weight has no place in a llama model", .extra = "blk.0.attn_sinks.weight"},
        {LK_ERR_MISMATCH, "model.layers.0.self_attn.k_proj.weight", .columns = 6},
    };
    char *folder = check_temporary("gguf_wrong"), path[4200];
    snprintf(path, sizeof path, "%s/m.gguf", folder);
    lk_error err = {0};
    lk_backend *be;
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_wrong(path, &cases[i]);
        lk_model *model = NULL;
        lk_status status = lk_model_open(&model, be, path, &(lk_model_options){.quant = LK_QUANT_NONE}, &err);
        if (status != cases[i].status || (status && !strstr(err.message, cases[i].message)))
            fail_msg("%s: got %s: %s", cases[i].message, lk_status_name(status), err.message);
        lk_model_close(model);
    }
    make_wrong(path, &cases[0]);
    lk_tokenizer *tk;
    CHECK_FAILS(lk_tokenizer_open(&tk, path, &err), LK_ERR_NOT_FOUND, "has no tokenizer (tokenizer.ggml.model is missing)", &err);
    lk_backend_close(be);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_exports), cmocka_unit_test(test_tokenizer),
                                       cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
