/* config.json: what is refused and how it is said; RoPE frequencies against transformers are covered by the golden logits. */
#include <math.h>
#include <string.h>

#include "model/adapter.h"
#include "tests/check.h"

#define BASE "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":100"

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        lk_status status;
        const char *message;
    } cases[] = {
        {"{\"model_type\":\"gpt_oss\"," BASE "}", LK_ERR_UNSUPPORTED, "'gpt_oss' is not yet supported; supported are: llama"},
        {"{\"model_type\":\"qwen3_next\"," BASE "}", LK_ERR_UNSUPPORTED, "'qwen3_next' is not yet supported"},
        {"{\"model_type\":\"gemma3\"," BASE "}", LK_ERR_FORMAT, "has its text part in text_config, which is missing"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"model_type\":\"llama\"," BASE "}}", LK_ERR_UNSUPPORTED,
         "the text part of this gemma3 model is 'llama'; supported is gemma3_text"},
        {"{\"model_type\":\"gemma3\",\"text_config\":{\"hidden_size\":0}}", LK_ERR_FORMAT, "hidden_size"},
        {"{\"model_type\":\"bloom\"," BASE "}", LK_ERR_UNSUPPORTED,
         "'bloom' is not supported; supported are: llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, granite, smollm3, "
         "mixtral, qwen3_moe"},
        {"{\"model_type\":\"qwen3_moe\"," BASE ",\"mlp_only_layers\":3}", LK_ERR_FORMAT, "mlp_only_layers must be a list"},
        {"{\"model_type\":\"mixtral\"," BASE ",\"num_local_experts\":2,\"num_experts_per_tok\":3}", LK_ERR_FORMAT,
         "num_experts_per_tok 3 of 2 experts"},
        {"{" BASE "}", LK_ERR_FORMAT, "model_type is missing"},
        {"[]", LK_ERR_FORMAT, "must be an object"},
        {"{\"model_type\":\"llama\",\"hidden_size\":64}", LK_ERR_FORMAT, "intermediate_size is missing"},
        {"{\"model_type\":\"llama\"," BASE ",\"num_key_value_heads\":3}", LK_ERR_FORMAT, "not a multiple"},
        {"{\"model_type\":\"llama\"," BASE ",\"head_dim\":15}", LK_ERR_FORMAT, "must be even"},
        {"{\"model_type\":\"llama\"," BASE ",\"hidden_act\":\"gelu\"}", LK_ERR_UNSUPPORTED, "hidden_act 'gelu'"},
        {"{\"model_type\":\"llama\"," BASE ",\"rope_scaling\":{\"rope_type\":\"xpos\",\"factor\":2}}", LK_ERR_UNSUPPORTED,
         "rope type 'xpos' is not supported (default, linear, dynamic, yarn, longrope and llama3 are)"},
        {"{\"model_type\":\"llama\"," BASE ",\"rope_scaling\":7}", LK_ERR_FORMAT, "rope_scaling must be an object or null"},
        {"{\"model_type\":\"llama\"," BASE ",\"partial_rotary_factor\":0.2}", LK_ERR_FORMAT, "RoPE turns must be even"},
        {"{\"model_type\":\"phi3\"," BASE ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,2],\"long_factor\":[1,2]}}",
         LK_ERR_FORMAT, "short_factor must be a list of 8 numbers"},
        {"{\"model_type\":\"phi3\"," BASE ",\"partial_rotary_factor\":0.25,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,0],"
         "\"long_factor\":[1,2]}}",
         LK_ERR_FORMAT, "short_factor must hold positive numbers"},
        {"{\"model_type\":\"gemma2\"," BASE ",\"hidden_activation\":\"gelu\"}", LK_ERR_UNSUPPORTED,
         "hidden_activation 'gelu' is not supported"},
        {"{\"model_type\":\"gemma3_text\"," BASE ",\"use_bidirectional_attention\":true}", LK_ERR_UNSUPPORTED,
         "use_bidirectional_attention"},
        {"{\"model_type\":\"gemma2\"," BASE ",\"layer_types\":[\"full_attention\"]}", LK_ERR_FORMAT, "layer_types names 1 layers of 2"},
        {"{\"model_type\":\"qwen3\"," BASE ",\"layer_types\":[\"full_attention\",\"linear_attention\"]}", LK_ERR_UNSUPPORTED,
         "layer_types holds 'linear_attention'"},
        {"{\"model_type\":\"smollm3\"," BASE ",\"no_rope_layers\":[1]}", LK_ERR_FORMAT, "no_rope_layers names 1 layers of 2"},
        {"{\"model_type\":\"llama\"," BASE ",\"rope_scaling\":{\"rope_type\":\"linear\"}}", LK_ERR_FORMAT, "factor is missing"},
        {"{\"model_type\":\"llama\"," BASE ",\"eos_token_id\":100}", LK_ERR_FORMAT, "outside the vocabulary"},
        {"{\"model_type\":\"llama\"," BASE ",\"eos_token_id\":\"x\"}", LK_ERR_FORMAT, "must be a number or a list"},
        {"{\"model_type\":\"llama\"," BASE ",\"rms_norm_eps\":\"small\"}", LK_ERR_FORMAT, "rms_norm_eps must be a number"},
    };
    lk_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *json;
        CHECK_OK(lk_json_parse(&json, cases[i].json, strlen(cases[i].json), "config.json", &err), &err);
        lk_config config;
        CHECK_FAILS(lk_config_parse(&config, json, "config.json", &err), cases[i].status, cases[i].message, &err);
        cJSON_Delete(json);
    }
}

static lk_config parse(const char *text)
{
    lk_error err = {0};
    cJSON *json;
    CHECK_OK(lk_json_parse(&json, text, strlen(text), "config.json", &err), &err);
    lk_config c;
    CHECK_OK(lk_config_parse(&c, json, "config.json", &err), &err);
    cJSON_Delete(json);
    return c;
}

/* Where a file says nothing, the family does; and how long a sequence may be. */
static void test_silence(void **state)
{
    (void)state;
    lk_config c = parse("{\"model_type\":\"mistral\"," BASE ",\"max_position_embeddings\":32768}");
    assert_int_equal(lk_layer_window(&c, 1), 4096);
    assert_int_equal(lk_config_longest(&c), 32768);
    c = parse("{\"model_type\":\"mistral\"," BASE ",\"max_position_embeddings\":32768,\"sliding_window\":null}");
    assert_int_equal(lk_layer_window(&c, 1), 0);
    c = parse("{\"model_type\":\"qwen2\"," BASE
              ",\"max_position_embeddings\":32768,\"sliding_window\":128}"); /* use_sliding_window is false */
    assert_int_equal(lk_layer_window(&c, 1), 0);
    c = parse("{\"model_type\":\"gemma2\",\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":3,\"vocab_size\":100}");
    assert_true(c.heads == 8 && c.kv_heads == 4 && c.head_dim == 256 && c.tied && c.embedding_scale == 8.0);
    assert_true(lk_layer_window(&c, 0) == 4096 && lk_layer_window(&c, 1) == 0 && lk_layer_window(&c, 2) == 4096);
    assert_true(c.attention_cap == 50.0 && c.logit_cap == 30.0 && c.attention_scale == 1.0 / 16.0);
    c = parse("{\"model_type\":\"llama\"," BASE ",\"max_position_embeddings\":100,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":3.5}}");
    assert_int_equal(lk_config_longest(&c), 350);
    c = parse("{\"model_type\":\"smollm3\"," BASE "}");
    assert_true(lk_layer_rotary(&c, 1) == &c.rope && c.rope.theta == 2e6 && c.tied);
}

static void test_fields(void **state)
{
    (void)state;
    const char *text =
        "{\"model_type\":\"mistral\"," BASE ",\"num_key_value_heads\":2,\"sliding_window\":32,\"max_position_embeddings\":64,"
        "\"eos_token_id\":[2,3,2],\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":500.0}}";
    lk_error err = {0};
    cJSON *json;
    CHECK_OK(lk_json_parse(&json, text, strlen(text), "config.json", &err), &err);
    lk_config c;
    CHECK_OK(lk_config_parse(&c, json, "config.json", &err), &err);
    cJSON_Delete(json);
    assert_int_equal(c.window, 32);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.bos, -1);
    float inv[8];
    lk_rotary_frequencies(&c.rope, c.head_dim, 64, inv);
    for (int i = 0; i < 8; i++) assert_true(fabs((double)inv[i] - pow(500.0, -i / 8.0) / 4.0) < 1e-7);
    lk_site site = lk_site_at(&c, LK_K);
    assert_int_equal(site.n, 32);
    assert_int_equal(site.k, 64);
    int32_t up = lk_site_find(&c, "model.layers.1.mlp.up_proj");
    assert_int_equal(up, lk_site_of(&c, 1, LK_UP, -1));
    site = lk_site_at(&c, up);
    assert_int_equal(site.layer, 1);
    assert_int_equal(site.module, LK_UP);
    assert_int_equal(site.expert, -1);
    assert_int_equal(lk_site_find(&c, "model.layers.2.mlp.up_proj"), -1);
    assert_int_equal(lk_site_find(&c, "model.layers.01.mlp.up_proj"), -1);
    assert_int_equal(lk_site_find(&c, "model.layers.1.self_attn.up_proj"), -1);
    assert_int_equal(lk_site_find(&c, "model.layers.1.mlp.experts.0.up_proj"), -1);
    assert_int_equal(lk_site_of(&c, 1, LK_QKV, -1), -1);
    int64_t linear = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128);
    assert_int_equal(lk_config_linear_params(&c), linear);
    assert_int_equal(lk_config_params(&c), linear + 2 * 2 * 64 + 64 + 2 * 100 * 64);
}

#define FOUR "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"vocab_size\":100"

/* Which layers of a mixture have an MLP: mlp_only_layers, and all but each decoder_sparse_step-th. */
static void test_dense_layers(void **state)
{
    (void)state;
    lk_config c = parse("{\"model_type\":\"qwen3_moe\",\"num_experts\":3,\"num_experts_per_tok\":2,\"moe_intermediate_size\":16,"
                        "\"mlp_only_layers\":[3],\"decoder_sparse_step\":2," FOUR "}");
    for (int64_t l = 0; l < 4; l++) assert_int_equal(lk_layer_mixes(&c, l), l == 1);
    assert_int_equal(lk_mlp_width(&c), 128);
    assert_int_equal(lk_sites(&c), 3 * 7 + 4 + 9 + 1);
    for (int32_t s = 0; s < lk_sites(&c); s++) {
        char path[200];
        lk_site site = lk_site_at(&c, s);
        lk_site_path(path, sizeof path, &c, s);
        assert_int_equal(lk_site_find(&c, path), s);
        assert_int_equal(lk_site_of(&c, site.layer, site.module, site.expert), s);
        if (site.module == LK_DOWN) assert_int_equal(site.k, site.layer == 1 ? 16 : 128);
    }
    assert_int_equal(lk_site_find(&c, "model.layers.1.mlp.up_proj"), -1);
    assert_int_equal(lk_site_find(&c, "model.layers.0.mlp.experts.0.up_proj"), -1);
    assert_int_equal(lk_site_find(&c, "model.layers.0.mlp.gate"), -1);
    int32_t router = lk_site_find(&c, "model.layers.1.mlp.gate");
    assert_int_equal(lk_site_at(&c, router).n, 3);
    c = parse("{\"model_type\":\"qwen3_moe\",\"mlp_only_layers\":[0,1,2,3]," FOUR "}");
    assert_int_equal(c.experts, 0);
    assert_int_equal(lk_sites(&c), 28);
    c = parse("{\"model_type\":\"mixtral\",\"num_local_experts\":2," FOUR "}");
    assert_int_equal(lk_site_find(&c, "model.layers.0.mlp.gate"), lk_site_find(&c, "model.layers.0.block_sparse_moe.gate"));
}

/* What transformers would train in another way is refused where adapters are made, not where the model is used. */
static void test_router_training(void **state)
{
    (void)state;
    static const struct {
        const char *json, *field;
    } cases[] = {
        {"{\"model_type\":\"mixtral\"," FOUR "}", NULL},
        {"{\"model_type\":\"mixtral\",\"output_router_logits\":false,\"router_aux_loss_coef\":0.02," FOUR "}", NULL},
        {"{\"model_type\":\"mixtral\",\"output_router_logits\":true,\"router_aux_loss_coef\":0," FOUR "}", NULL},
        {"{\"model_type\":\"mixtral\",\"output_router_logits\":true," FOUR "}", "config.json sets output_router_logits, with which"},
        {"{\"model_type\":\"mixtral\",\"router_jitter_noise\":0.1," FOUR "}", "config.json sets router_jitter_noise, with which"},
        {"{\"model_type\":\"qwen3_moe\",\"router_jitter_noise\":0.1," FOUR "}", NULL},
    };
    lk_error err = {0};
    lk_backend *be;
    CHECK_OK(lk_backend_open(&be, &(lk_backend_options){.device = "cpu", .threads = 1, .compute = LK_F32}, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lk_config c = parse(cases[i].json);
        lk_adapter_spec spec = {.rank = 2, .alpha = 2, .targets = {[LK_Q] = true}};
        lk_adapter_sizes sizes;
        if (cases[i].field)
            CHECK_FAILS(lk_adapter_sizes_of(&sizes, be, &c, &spec, &err), LK_ERR_UNSUPPORTED, cases[i].field, &err);
        else
            CHECK_OK(lk_adapter_sizes_of(&sizes, be, &c, &spec, &err), &err);
    }
    lk_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refusals), cmocka_unit_test(test_silence), cmocka_unit_test(test_fields),
                                       cmocka_unit_test(test_dense_layers), cmocka_unit_test(test_router_training)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
