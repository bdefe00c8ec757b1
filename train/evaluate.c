#include "train/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "train/batch.h"
#include "train/dataset.h"
#include "train/run.h"

/* What a pass needs beside the batches. */
typedef struct evaluation {
    lk_pass *pass;
    const lk_adapter *adapter;
    lk_lora *table; /* NULL: the base alone */
    float *nll;
    uint8_t *hits;
    double total; /* of the NLL */
} evaluation;

static lk_status add_micro_batch(evaluation *e, const lk_micro_batch *m, lk_eval_result *r, lk_error *err)
{
    lk_segment segment = {0, m->batch.n_tokens, 0};
    lk_batch batch = m->batch;
    lk_adapter_tables tables;
    if (e->adapter) {
        batch.n_segments = 1;
        batch.segments = &segment;
        batch.n_sites = e->adapter->n_sites;
        batch.n_adapters = 1;
        batch.lora = e->table;
        batch.tables = lk_adapter_fill_tables(&tables, &e->adapter, 1);
    }
    LK_TRY(lk_pass_loss(e->pass, &batch, m->labels, e->nll, e->hits, err));
    for (int64_t t = 0; t < batch.n_tokens; t++) {
        if (m->labels[t] < 0) continue;
        e->total += (double)e->nll[t];
        r->hits += e->hits[t];
    }
    r->documents += batch.n_docs;
    r->tokens += batch.n_tokens;
    r->supervised += m->supervised;
    return LK_OK;
}

static lk_status walk(evaluation *e, lk_batches *batches, lk_eval_result *r, const volatile sig_atomic_t *stop, lk_error *err)
{
    int64_t steps;
    LK_TRY(lk_batches_steps(batches, 1, &steps, err));
    for (int64_t step = 0; step < steps; step++) {
        if (stop && *stop) return lk_fail(err, LK_ERR_INTERRUPTED, "stopped during the evaluation");
        LK_TRY(lk_batches_load(batches, step, err));
        LK_TRY(add_micro_batch(e, lk_batches_at(batches, 0), r, err));
    }
    return LK_OK;
}

lk_status lk_evaluate(lk_eval_result *result, lk_pass *pass, const lk_model *model, const lk_adapter *adapter, lk_store *store,
                      int64_t rows, int64_t max_length, const volatile sig_atomic_t *stop, lk_error *err)
{
    (void)model;
    double began = lk_clock_seconds();
    evaluation e = {.pass = pass, .adapter = adapter};
    lk_batches *batches = NULL;
    size_t tokens = (size_t)(rows * max_length);
    *result = (lk_eval_result){0};
    lk_status status =
        lk_batches_create(&batches, store, &(lk_batches_options){.rows = rows, .accumulate = 1, .max_length = max_length}, err);
    if (status) return status;
    e.nll = malloc(tokens * sizeof *e.nll);
    e.hits = malloc(tokens);
    if (adapter) e.table = calloc((size_t)adapter->n_sites, sizeof *e.table);
    if (!e.nll || !e.hits || (adapter && !e.table)) status = lk_fail(err, LK_ERR_MEMORY, "no memory for an evaluation");
    if (e.table) lk_adapter_table(e.table, &adapter, 1, NULL);
    if (!status) status = walk(&e, batches, result, stop, err);
    if (!status && result->supervised > 0) {
        result->loss = e.total / (double)result->supervised;
        result->perplexity = exp(result->loss);
        result->accuracy = (double)result->hits / (double)result->supervised;
    }
    result->seconds = lk_clock_seconds() - began;
    lk_batches_destroy(batches);
    free(e.nll);
    free(e.hits);
    free(e.table);
    return status;
}

/* ---------------------------------------------------------------------------------------------- on its own */

lk_eval_options lk_eval_options_default(void)
{
    return (lk_eval_options){.quant = LK_QUANT_NF4, .compute = LK_BF16, .max_length = 1024, .rows = 1, .loss_on = "assistant"};
}

typedef struct alone {
    const lk_eval_options *o;
    lk_tokenizer *tokenizer;
    lk_chat *chat;
    lk_backend *be;
    lk_model *model;
    lk_adapter *adapter;
    lk_pass *pass;
    lk_dataset data;
    char temporary[4096]; /* "" when the caller gave a folder */
    lk_error *err;
} alone;

static lk_status open_data(alone *a, const lk_config *config)
{
    const lk_eval_options *o = a->o;
    char path[4200];
    LK_TRY(lk_tokenizer_open(&a->tokenizer, o->base, a->err));
    LK_TRY(o->chat_format ? lk_chat_open_named(&a->chat, a->tokenizer, o->chat_format, a->err)
                          : lk_chat_open(&a->chat, a->tokenizer, a->err));
    const char *folder = o->work_folder;
    if (!folder) {
        LK_TRY(lk_temporary_folder(a->temporary, "lorikeet-eval", a->err));
        folder = a->temporary;
    }
    LK_TRY(lk_path_join(path, sizeof path, folder, "eval.h5", a->err));
    lk_dataset_options data = {.what = "the evaluation data",
                               .path = path,
                               .sources = o->sources,
                               .n_sources = o->n_sources,
                               .tokenizer = a->tokenizer,
                               .chat = a->chat,
                               .vocab = config->vocab,
                               .max_length = o->max_length,
                               .loss_on = o->loss_on,
                               .stop = o->stop};
    return lk_dataset_open(&a->data, &data, a->err);
}

static lk_status run_alone(alone *a, lk_eval_result *result)
{
    const lk_eval_options *o = a->o;
    lk_config config;
    LK_TRY(lk_config_read(&config, o->base, a->err));
    LK_TRY(lk_backend_open(
        &a->be, &(lk_backend_options){.device = o->device, .threads = o->threads, .compute = o->compute, .cpu_tier = o->cpu_tier}, a->err));
    LK_TRY(open_data(a, &config));
    LK_TRY(lk_model_open(&a->model, a->be, o->base, &(lk_model_options){.quant = o->quant}, a->err));
    if (o->adapter) LK_TRY(lk_adapter_load(&a->adapter, a->model, o->adapter, LK_F32, a->err));
    lk_pass_options pass = {.max_tokens = o->rows * o->max_length,
                            .max_rank = a->adapter ? a->adapter->max_rank : 0,
                            .head = a->adapter && lk_adapter_head_rank(a->adapter) > 0};
    LK_TRY(lk_pass_create(&a->pass, a->model, &pass, a->err));
    return lk_evaluate(result, a->pass, a->model, a->adapter, a->data.store, o->rows, o->max_length, o->stop, a->err);
}

lk_status lk_eval_run(lk_eval_result *result, const lk_eval_options *options, lk_error *err)
{
    alone a = {.o = options, .err = err};
    *result = (lk_eval_result){0};
    if (options->max_length < 2 || options->rows < 1)
        return lk_fail(err, LK_ERR_ARGUMENT, "evaluation needs documents of at least 2 tokens and at least 1 row");
    lk_status status = run_alone(&a, result);
    lk_pass_destroy(a.pass);
    lk_adapter_destroy(a.adapter);
    lk_model_close(a.model);
    lk_backend_close(a.be);
    lk_dataset_close(&a.data);
    if (a.chat) lk_chat_close(a.chat);
    if (a.tokenizer) lk_tokenizer_close(a.tokenizer);
    if (a.temporary[0]) lk_folder_remove(a.temporary, NULL);
    return status;
}
