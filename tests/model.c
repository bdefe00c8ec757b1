#include "tests/model.h"

#include <stdlib.h>
#include <string.h>

check_model check_model_open(const char *folder, lk_quant quant, lk_dtype compute, int threads, const char *tier)
{
    check_model m = {0};
    lk_error err = {0};
    CHECK_OK(lk_backend_open(&m.be, &(lk_backend_options){.device = "cpu", .threads = threads, .compute = compute, .cpu_tier = tier}, &err),
             &err);
    CHECK_OK(lk_model_open(&m.model, m.be, folder, &(lk_model_options){.quant = quant}, &err), &err);
    return m;
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
}

void check_batch_free(check_batch *b)
{
    free(b->positions);
    free(b->table);
}
