#include "tests/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

check_model check_model_open_on(const char *folder, lk_quant quant, const lk_backend_options *options)
{
    check_model m = {0};
    lk_error err = {0};
    CHECK_OK(lk_backend_open(&m.be, options, &err), &err);
    CHECK_OK(lk_model_open(&m.model, m.be, folder, &(lk_model_options){.quant = quant}, &err), &err);
    return m;
}

check_model check_model_open(const char *folder, lk_quant quant, lk_dtype compute, int threads, const char *tier)
{
    return check_model_open_on(folder, quant,
                               &(lk_backend_options){.device = "cpu", .threads = threads, .compute = compute, .cpu_tier = tier});
}

void check_model_close(check_model *m)
{
    lk_model_close(m->model);
    lk_backend_close(m->be);
    *m = (check_model){0};
}

static const lk_st_tensor *need(const lk_safetensors *st, const char *name)
{
    const lk_st_tensor *t = lk_safetensors_find(st, name);
    if (!t) fail_msg("golden tensor %s is missing", name);
    return t;
}

float *check_floats(const lk_safetensors *st, const char *name, int64_t *n)
{
    const lk_st_tensor *t = need(st, name);
    lk_error err = {0};
    float *out = malloc((size_t)t->n_elements * 4 + 4);
    CHECK_OK(lk_st_read_f32(t, 0, t->n_elements, out, &err), &err);
    if (n) *n = t->n_elements;
    return out;
}

int32_t *check_ints(const lk_safetensors *st, const char *name, int64_t *n)
{
    const lk_st_tensor *t = need(st, name);
    assert_int_equal(t->type, LK_I64);
    int32_t *out = malloc((size_t)t->n_elements * 4 + 4);
    for (int64_t i = 0; i < t->n_elements; i++) {
        int64_t value;
        memcpy(&value, (const char *)t->data + i * 8, 8);
        out[i] = (int32_t)value;
    }
    if (n) *n = t->n_elements;
    return out;
}

void check_batch_init(check_batch *b, const int32_t *ids, int64_t n)
{
    memset(b, 0, sizeof *b);
    b->positions = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) b->positions[i] = (int32_t)i;
    b->doc_starts[1] = (int32_t)n;
    b->batch = (lk_batch){.n_tokens = n, .ids = ids, .positions = b->positions, .n_docs = 1, .doc_starts = b->doc_starts};
}

void check_batch_adapter(check_batch *b, const lk_adapter *adapter, float *grads)
{
    b->table = calloc((size_t)adapter->n_sites, sizeof *b->table);
    lk_adapter_table(b->table, &adapter, 1, &grads);
    b->segment = (lk_segment){0, b->batch.n_tokens, 0};
    b->batch.n_segments = 1;
    b->batch.segments = &b->segment;
    b->batch.n_sites = adapter->n_sites;
    b->batch.n_adapters = 1;
    b->batch.lora = b->table;
    b->batch.tables = lk_adapter_fill_tables(&b->tables, &adapter, 1);
}

void check_batch_free(check_batch *b)
{
    free(b->positions);
    free(b->table);
}

/* ---------------------------------------------------------------------------------------------- random weights */

static lk_status random_tensor(lk_st_writer *w, bool write, const char *name, int64_t rows, int64_t cols, check_random *r, lk_error *err)
{
    int64_t shape[2] = {rows, cols}, n = rows * (cols ? cols : 1);
    if (!write) return lk_st_writer_declare(w, name, LK_BF16, cols ? 2 : 1, shape, err);
    uint16_t *values = malloc((size_t)n * 2);
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++) values[i] = lk_f32_to_bf16(cols ? 0.1f * check_random_normal(r) : 1.0f + 0.1f * check_random_normal(r));
    lk_status status = lk_st_writer_write(w, values, (size_t)n * 2, err);
    free(values);
    return status;
}

static void random_weights(lk_st_writer *w, bool write, const lk_config *c, lk_error *err)
{
    check_random r = {41};
    char name[300], path[200];
    CHECK_OK(random_tensor(w, write, "model.embed_tokens.weight", c->vocab, c->hidden, &r, err), err);
    for (int64_t l = 0; l < c->layers; l++) {
        static const char *const norms[] = {"input_layernorm", "post_attention_layernorm"};
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)l, norms[i]);
            CHECK_OK(random_tensor(w, write, name, c->hidden, 0, &r, err), err);
        }
        for (int32_t s = 0; s < lk_layer_sites(c, l); s++) {
            int32_t number = lk_layer_first_site(c, l) + s;
            lk_site site = lk_site_at(c, number);
            lk_site_path(path, sizeof path, c, number);
            snprintf(name, sizeof name, "%s.weight", path);
            CHECK_OK(random_tensor(w, write, name, site.n, site.k, &r, err), err);
        }
    }
    CHECK_OK(random_tensor(w, write, "model.norm.weight", c->hidden, 0, &r, err), err);
}

char *check_random_model(const char *name, const lk_config *c)
{
    lk_error err = {0};
    lk_st_writer *w;
    char *folder = check_temporary(name), path[4200], text[1024];
    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    random_weights(w, false, c, &err);
    random_weights(w, true, c, &err);
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    int n = snprintf(text, sizeof text,
                     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": %lld, "
                     "\"intermediate_size\": %lld, \"num_hidden_layers\": %lld, \"num_attention_heads\": %lld, "
                     "\"num_key_value_heads\": %lld, \"head_dim\": %lld, \"vocab_size\": %lld, \"max_position_embeddings\": 4096, "
                     "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, "
                     "\"torch_dtype\": \"bfloat16\"}\n",
                     (long long)c->hidden, (long long)c->intermediate, (long long)c->layers, (long long)c->heads, (long long)c->kv_heads,
                     (long long)c->head_dim, (long long)c->vocab);
    snprintf(path, sizeof path, "%s/config.json", folder);
    check_write_file(path, text, (size_t)n);
    return folder;
}

/* ---------------------------------------------------------------------------------------------- families (make_families.py) */

void check_rule(const char *name, float *out, int64_t n, float base, float spread)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = name; *p; p++) h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    for (int64_t i = 0; i < n; i++) {
        uint64_t z = h + (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        out[i] = base + spread * ((float)(z >> 40) / 8388608.0f - 1.0f);
    }
}

static void write_family_tensor(lk_st_writer *w, const cJSON *t, bool write, lk_error *err)
{
    const cJSON *sizes = cJSON_GetArrayItem(t, 0);
    int64_t shape[LK_ST_MAX_DIMS] = {1}, n = 1;
    int dims = cJSON_GetArraySize(sizes);
    for (int i = 0; i < dims; i++) n *= shape[i] = cJSON_GetArrayItem(sizes, i)->valueint;
    if (!write) {
        CHECK_OK(lk_st_writer_declare(w, t->string, LK_BF16, dims, shape, err), err);
        return;
    }
    float *values = malloc((size_t)n * 4);
    uint16_t *narrow = malloc((size_t)n * 2);
    check_rule(t->string, values, n, (float)cJSON_GetArrayItem(t, 1)->valuedouble, (float)cJSON_GetArrayItem(t, 2)->valuedouble);
    lk_from_f32(narrow, LK_BF16, values, n);
    CHECK_OK(lk_st_writer_write(w, narrow, (size_t)n * 2, err), err);
    free(values);
    free(narrow);
}

char *check_family_folder(const cJSON *the_case)
{
    lk_error err = {0};
    char name[100], path[4200];
    snprintf(name, sizeof name, "family_%s", lk_json_get(the_case, "name")->valuestring);
    char *folder = check_temporary(name), *config = cJSON_Print(lk_json_get(the_case, "config"));
    snprintf(path, sizeof path, "%s/config.json", folder);
    check_write_file(path, config, strlen(config));
    free(config);
    lk_st_writer *w;
    CHECK_OK(lk_st_writer_create(&w, folder, "model", 0, &err), &err);
    const cJSON *t;
    cJSON_ArrayForEach(t, lk_json_get(the_case, "tensors")) write_family_tensor(w, t, false, &err);
    cJSON_ArrayForEach(t, lk_json_get(the_case, "tensors")) write_family_tensor(w, t, true, &err);
    CHECK_OK(lk_st_writer_commit(w, &err), &err);
    return folder;
}

cJSON *check_families(lk_safetensors **st)
{
    lk_error err = {0};
    char *path = check_golden("families.json");
    cJSON *json;
    CHECK_OK(lk_json_read(&json, path, 1 << 20, &err), &err);
    free(path);
    path = check_golden("families.safetensors");
    CHECK_OK(lk_safetensors_open(st, path, &err), &err);
    free(path);
    return json;
}

lk_adapter *check_family_adapter(const lk_model *model, int32_t rank)
{
    lk_error err = {0};
    lk_adapter *a;
    lk_adapter_spec spec = {.rank = rank, .alpha = 2.0 * rank};
    for (int i = 0; i < LK_N_MODULES; i++) spec.targets[i] = true;
    CHECK_OK(lk_adapter_create(&a, model, &spec, 1, &err), &err);
    float *host = calloc((size_t)a->n_params, sizeof *host);
    for (int32_t s = 0; s < a->n_sites; s++) {
        char path[200], name[220];
        lk_site_path(path, sizeof path, &model->config, s);
        snprintf(name, sizeof name, "%s.lora_A", path);
        check_rule(name, host + a->sites[s].a, rank * a->sites[s].k, 0.0f, 0.25f);
        snprintf(name, sizeof name, "%s.lora_B", path);
        check_rule(name, host + a->sites[s].b, rank * a->sites[s].n, 0.0f, 0.2f);
    }
    CHECK_OK(lk_upload(model->be, a->weights, host, (size_t)a->n_params * 4), lk_backend_error(model->be));
    free(host);
    return a;
}

float *check_pass_logits(const char *base, const char *adapter, lk_quant quant, const int32_t *ids, int64_t n, int64_t *n_out)
{
    lk_error err = {0};
    check_model m = check_model_open(base, quant, LK_F32, 2, NULL);
    lk_pass *pass;
    CHECK_OK(lk_pass_create(&pass, m.model, &(lk_pass_options){.max_tokens = n, .max_rank = 16}, &err), &err);
    check_batch b;
    check_batch_init(&b, ids, n);
    lk_adapter *a = NULL;
    if (adapter) {
        CHECK_OK(lk_adapter_load(&a, m.model, adapter, LK_F32, &err), &err);
        check_batch_adapter(&b, a, NULL);
    }
    *n_out = n * m.model->config.vocab;
    float *out = malloc((size_t)*n_out * 4);
    CHECK_OK(lk_pass_logits(pass, &b.batch, out, &err), &err);
    lk_adapter_destroy(a);
    check_batch_free(&b);
    lk_pass_destroy(pass);
    check_model_close(&m);
    return out;
}
