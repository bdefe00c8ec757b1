#include "model/merge.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "data/peft.h"
#include "kernels/nf4.h"
#include "model/adapter_internal.h"
#include "model/bnb.h"
#include "model/folder.h"
#include "model/weights.h"

typedef struct merger {
    lk_config config;
    lk_safetensors *st;
    lk_peft *peft;
    lk_pool *pool;
    lk_st_writer *w;
    lk_merge_into into;
    lk_dtype dtype;
    lk_merge_result *result;
    lk_error *err;
} merger;

/* The adapter's module for a weight tensor, or NULL. */
static const lk_peft_module *module_of(const merger *g, const char *tensor)
{
    size_t length = strlen(tensor) - strlen(".weight");
    for (int64_t i = 0; i < lk_peft_count(g->peft); i++) {
        const lk_peft_module *m = lk_peft_at(g->peft, i);
        if (strlen(m->name) == length && !strncmp(m->name, tensor, length)) return m;
    }
    return NULL;
}

static lk_status check_adapter(const merger *g, const char *base)
{
    char identity[65];
    LK_TRY(lk_weights_identity(g->st, &g->config, g->pool, identity, g->err));
    const char *stamp = lk_peft_metadata(g->peft, "lorikeet.base_identity");
    if (stamp && strcmp(stamp, identity))
        return lk_fail(g->err, LK_ERR_MISMATCH, "the adapter was trained on another base (%.12s...) than %s (%.12s...)", stamp, base,
                       identity);
    for (int64_t i = 0; i < lk_peft_count(g->peft); i++) {
        const lk_peft_module *m = lk_peft_at(g->peft, i);
        int32_t number = lk_site_find(&g->config, m->name);
        if (number < 0) return lk_fail(g->err, LK_ERR_MISMATCH, "the adapter adapts %s, which is not a linear layer of %s", m->name, base);
        lk_site site = lk_site_at(&g->config, number);
        if (m->a->shape[1] != site.k || m->b->shape[0] != site.n)
            return lk_fail(g->err, LK_ERR_MISMATCH, "the adapter's %s is for a [%lld,%lld] layer, %s has [%lld,%lld]", m->name,
                           (long long)m->b->shape[0], (long long)m->a->shape[1], base, (long long)site.n, (long long)site.k);
    }
    return LK_OK;
}

typedef struct delta_job {
    float *w;
    const float *a, *b;
    int64_t k;
    int32_t rank;
    float scale;
} delta_job;

static void add_delta(void *context, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const delta_job *job = context;
    for (int64_t n = begin; n < end; n++) {
        float *row = job->w + n * job->k;
        for (int32_t r = 0; r < job->rank; r++) {
            float factor = job->scale * job->b[n * job->rank + r];
            const float *a = job->a + r * job->k;
            for (int64_t k = 0; k < job->k; k++) row[k] += factor * a[k];
        }
    }
}

static lk_status merge_delta(const merger *g, const lk_peft_module *m, float *w, int64_t n, int64_t k)
{
    float *a = malloc((size_t)(m->rank * k) * 4), *b = malloc((size_t)(m->rank * n) * 4);
    lk_status status = LK_OK;
    if (!a || !b) status = lk_fail(g->err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    if (!status) status = lk_st_read_f32(m->a, 0, m->rank * k, a, g->err);
    if (!status) status = lk_st_read_f32(m->b, 0, m->rank * n, b, g->err);
    if (!status) {
        delta_job job = {w, a, b, k, m->rank, (float)m->scale};
        lk_pool_run(g->pool, n, 8, add_delta, &job);
        g->result->merged++;
    }
    free(a);
    free(b);
    return status;
}

static lk_status write_as(const merger *g, const float *values, int64_t n)
{
    if (g->dtype == LK_F32) return lk_st_writer_write(g->w, values, (size_t)n * 4, g->err);
    uint16_t narrow[4096];
    for (int64_t i = 0; i < n; i += 4096) {
        int64_t count = n - i < 4096 ? n - i : 4096;
        lk_from_f32(narrow, g->dtype, values + i, count);
        LK_TRY(lk_st_writer_write(g->w, narrow, (size_t)count * 2, g->err));
    }
    return LK_OK;
}

/* One linear layer of a block: read or dequantised, plus the delta. */
static lk_status write_linear(const merger *g, const char *name, int64_t n, int64_t k)
{
    float *w = malloc((size_t)(n * k) * 4);
    if (!w) return lk_fail(g->err, LK_ERR_MEMORY, "no memory for the [%lld,%lld] values of %s", (long long)n, (long long)k, name);
    lk_status status;
    if (g->into == LK_MERGE_DEQUANTIZED) {
        lk_nf4_host host;
        status = lk_nf4_host_read(&host, g->st, name, n, k, g->pool, g->err);
        if (!status) {
            lk_nf4_dequantize(w, host.codes, host.absmax, n * k);
            lk_nf4_host_free(&host);
        }
    } else {
        const lk_st_tensor *t;
        int64_t shape[2] = {n, k};
        status = lk_safetensors_expect(g->st, name, 2, shape, &t, g->err);
        if (!status) status = lk_st_read_f32(t, 0, n * k, w, g->err);
    }
    const lk_peft_module *m = module_of(g, name);
    if (!status && m) status = merge_delta(g, m, w, n, k);
    if (!status) status = write_as(g, w, n * k);
    free(w);
    return status;
}

static lk_status write_other(const merger *g, const lk_st_tensor *t)
{
    float values[4096];
    for (int64_t i = 0; i < t->n_elements; i += 4096) {
        int64_t count = t->n_elements - i < 4096 ? t->n_elements - i : 4096;
        LK_TRY(lk_st_read_f32(t, i, count, values, g->err));
        LK_TRY(write_as(g, values, count));
    }
    g->result->copied++;
    return LK_OK;
}

static bool carried(const lk_st_tensor *t) { return !lk_bnb_is_state(t->name) && !strstr(t->name, ".rotary_emb."); }

static lk_status write_all(const merger *g)
{
    int64_t n = lk_safetensors_count(g->st);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < n; i++) {
            const lk_st_tensor *t = lk_safetensors_at(g->st, i);
            if (!carried(t)) continue;
            int32_t site = lk_weights_site(&g->config, t->name);
            bool linear = site >= 0;
            int64_t shape[2] = {0, 0}; /* in the merged folder: a 4-bit tensor has another one on disk */
            if (linear) shape[0] = lk_site_at(&g->config, site).n, shape[1] = lk_site_at(&g->config, site).k;
            if (pass == 0)
                LK_TRY(lk_st_writer_declare(g->w, t->name, g->dtype, linear ? 2 : t->n_dims, linear ? shape : t->shape, g->err));
            else if (linear)
                LK_TRY(write_linear(g, t->name, shape[0], shape[1]));
            else
                LK_TRY(write_other(g, t));
        }
    }
    return LK_OK;
}

static lk_status resolve_into(merger *g, lk_merge_into asked, const char *base)
{
    bool four_bit = lk_bnb_any(g->st);
    const char *stamp = lk_peft_metadata(g->peft, "lorikeet.quantization");
    g->into = asked;
    if (asked == LK_MERGE_AUTO) g->into = four_bit || (stamp && !strcmp(stamp, "nf4")) ? LK_MERGE_DEQUANTIZED : LK_MERGE_ORIGINAL;
    if (g->into == LK_MERGE_ORIGINAL && four_bit)
        return lk_fail(g->err, LK_ERR_ARGUMENT, "%s holds only 4-bit weights; give the 16-bit folder, or merge --into dequantized", base);
    g->result->into = g->into;
    return LK_OK;
}

lk_status lk_model_merge(const char *base, const char *adapter, const char *out, const lk_merge_options *options, lk_merge_result *result,
                         lk_error *err)
{
    merger g = {.dtype = options->dtype, .result = result, .err = err};
    memset(result, 0, sizeof *result);
    bool created = false;
    lk_status status;
    if ((status = lk_config_read(&g.config, base, err))) goto out;
    if ((status = lk_safetensors_open(&g.st, base, err))) goto out;
    if ((status = lk_weights_check_names(g.st, &g.config, err))) goto out;
    if ((status = lk_peft_open(&g.peft, adapter, NULL, err))) goto out;
    if ((status = lk_adapter_check_plain(g.peft, adapter, err))) goto out;
    if ((status = lk_pool_create(&g.pool, options->threads, err))) goto out;
    if ((status = resolve_into(&g, options->into, base))) goto out;
    if ((status = check_adapter(&g, base))) goto out;
    if ((status = lk_folder_prepare_output(base, out, err))) goto out;
    created = true;
    if ((status = lk_st_writer_create(&g.w, out, "model", (int64_t)5 << 30, err))) goto out;
    if ((status = write_all(&g))) goto out;
    if ((status = lk_st_writer_commit(g.w, err))) goto out;
    g.w = NULL;
    if ((status = lk_folder_copy_tokenizer(base, out, err))) goto out;
    status = lk_folder_write_config(base, out,
                                    options->dtype == LK_F32   ? "float32"
                                    : options->dtype == LK_F16 ? "float16"
                                                               : "bfloat16",
                                    NULL, err);
out:
    lk_st_writer_abort(g.w);
    if (status && created) lk_folder_remove(out, NULL);
    lk_pool_destroy(g.pool);
    lk_peft_close(g.peft);
    lk_safetensors_close(g.st);
    return status;
}
