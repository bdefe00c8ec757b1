#include "model/drift.h"

#include <math.h>
#include <stdlib.h>

#include "model/adapter.h"
#include "model/transformer.h"

static int64_t top_of(const float *row, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (row[v] > row[best]) best = v;
    return best;
}

static double log_sum(const float *row, int64_t vocab, float most)
{
    double sum = 0;
    for (int64_t v = 0; v < vocab; v++) sum += exp((double)row[v] - (double)most);
    return (double)most + log(sum);
}

lk_drift lk_drift_measure(const float *reference, const float *other, int64_t n, int64_t vocab)
{
    lk_drift d = {0};
    for (int64_t t = 0; t < n; t++) {
        const float *p = reference + t * vocab, *q = other + t * vocab;
        int64_t top_p = top_of(p, vocab), top_q = top_of(q, vocab);
        double log_p = log_sum(p, vocab, p[top_p]), log_q = log_sum(q, vocab, q[top_q]);
        for (int64_t v = 0; v < vocab; v++) {
            double difference = fabs((double)p[v] - (double)q[v]), log_odds = ((double)p[v] - log_p) - ((double)q[v] - log_q);
            if (difference > d.max) d.max = difference;
            d.mean += difference;
            d.kl += exp((double)p[v] - log_p) * log_odds;
        }
        d.same_top += top_p == top_q;
    }
    d.mean /= (double)(n * vocab);
    d.kl /= (double)n;
    d.same_top /= (double)n;
    return d;
}

static lk_status compute(float *out, const lk_model *model, const lk_adapter *adapter, const int32_t *ids, int64_t n, lk_error *err)
{
    int32_t starts[2] = {0, (int32_t)n}, *positions = malloc((size_t)n * sizeof *positions);
    lk_lora *table = calloc((size_t)lk_sites(&model->config), sizeof *table);
    lk_segment segment = {0, n, 0};
    lk_adapter_tables tables;
    lk_batch batch = {.n_tokens = n, .ids = ids, .positions = positions, .n_docs = 1, .doc_starts = starts};
    lk_pass *pass = NULL;
    lk_status status = positions && table ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for %lld tokens", (long long)n);
    for (int64_t t = 0; t < n && !status; t++) positions[t] = (int32_t)t;
    if (!status && adapter) {
        lk_adapter_table(table, &adapter, 1, NULL);
        batch.n_segments = 1;
        batch.segments = &segment;
        batch.n_sites = adapter->n_sites;
        batch.n_adapters = 1;
        batch.lora = table;
        batch.tables = lk_adapter_fill_tables(&tables, &adapter, 1);
    }
    lk_pass_options options = {.max_tokens = n, .max_rank = adapter ? adapter->max_rank : 0};
    if (!status) status = lk_pass_create(&pass, model, &options, err);
    if (!status) status = lk_pass_logits(pass, &batch, out, err);
    lk_pass_destroy(pass);
    free(table);
    free(positions);
    return status;
}

lk_status lk_logits_of(float **logits, int64_t *vocab, lk_backend *be, const char *folder, lk_quant quant, const char *adapter_path,
                       const int32_t *ids, int64_t n, lk_error *err)
{
    lk_model *model = NULL;
    lk_adapter *adapter = NULL;
    *logits = NULL;
    lk_status status = lk_model_open(&model, be, folder, &(lk_model_options){.quant = quant}, err);
    if (!status && adapter_path) status = lk_adapter_load(&adapter, model, adapter_path, LK_F32, err);
    if (!status) {
        *vocab = model->config.vocab;
        *logits = malloc((size_t)(n * *vocab) * 4);
        status = *logits ? compute(*logits, model, adapter, ids, n, err)
                         : lk_fail(err, LK_ERR_MEMORY, "no memory for the logits of %lld tokens", (long long)n);
    }
    if (status) {
        free(*logits);
        *logits = NULL;
    }
    lk_adapter_destroy(adapter);
    lk_model_close(model);
    return status;
}
