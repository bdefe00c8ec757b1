/* A run from its recipe to its adapter: everything is opened and checked in the order in which a mistake is cheapest to find (recipe,
 * folder, headers, data, memory, weights), then the loop runs. */
#include "train/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "data/hdf5.h"
#include "train/dataset.h"
#include "train/loop.h"

typedef struct session {
    const lk_train_options *options;
    lk_train_result *result;
    lk_ranks *ranks; /* NULL: alone */
    lk_recipe *recipe;
    lk_run run;
    char temporary[4096]; /* a dry run's folder */
    lk_backend *be;
    lk_model_facts facts;
    lk_tokenizer *tokenizer;
    lk_chat *chat;
    lk_dataset train, eval;
    lk_batches *batches;
    lk_model *model;
    lk_adapter *adapter;
    lk_trainer trainer;
    double began;
    lk_error *err;
} session;

static bool leads(const session *s) { return lk_ranks_rank(s->ranks) == 0; }

/* ---------------------------------------------------------------------------------------------- opening */

static lk_status open_recipe(session *s)
{
    const lk_train_options *o = s->options;
    LK_TRY(lk_recipe_load(&s->recipe, o->recipe, o->sets, o->n_sets, s->err));
    lk_backend_options be = {
        .device = o->device, .threads = o->threads, .compute = s->recipe->compute, .cpu_tier = o->cpu_tier, .ranks = s->ranks};
    LK_TRY(lk_backend_open(&s->be, &be, s->err));
    lk_status status = lk_model_probe(&s->facts, s->recipe->base_path, s->err);
    if (status) return lk_error_prefix(s->err, status, "%s: base.path", o->recipe);
    if (s->recipe->adapter.init == LK_INIT_PISSA && s->recipe->weight_decay > 0 && lk_backend_act(s->be) != LK_F32)
        return lk_fail(s->err, LK_ERR_ARGUMENT,
                       "%s: adapter.init: pissa with optim.weight_decay is not trained on %s, which would wear its frozen half away: set "
                       "optim.weight_decay to 0, or use --device cpu",
                       o->recipe, lk_backend_name(s->be));
    return LK_OK;
}

static lk_status open_own_folder(session *s)
{
    const lk_train_options *o = s->options;
    char folder[4096];
    if (o->dry_run) {
        LK_TRY(lk_temporary_folder(s->temporary, "lorikeet-dry-run", s->err));
        return lk_run_open(&s->run, s->temporary, false, false, s->err);
    }
    snprintf(folder, sizeof folder, "runs/%s", s->recipe->name);
    LK_TRY(lk_run_open(&s->run, o->out ? o->out : folder, o->resume, o->fresh, s->err));
    snprintf(s->result->folder, sizeof s->result->folder, "%s", s->run.folder);
    return LK_OK;
}

static lk_status open_folder(session *s)
{
    char folder[4096] = "";
    if (leads(s)) {
        LK_TRY(open_own_folder(s));
        memcpy(folder, s->run.folder, sizeof folder);
    }
    LK_TRY(lk_ranks_broadcast(s->ranks, folder, sizeof folder, s->err));
    return leads(s) ? LK_OK : lk_run_join(&s->run, folder, s->err);
}

static lk_status open_dataset(session *s, lk_dataset *d, const char *what, const char *name, const lk_source *sources, int n)
{
    char path[4300];
    double began = lk_clock_seconds();
    LK_TRY(lk_path_join(path, sizeof path, s->run.data, name, s->err));
    lk_dataset_options o = {.what = what,
                            .path = path,
                            .sources = sources,
                            .n_sources = n,
                            .tokenizer = s->tokenizer,
                            .chat = s->chat,
                            .vocab = s->facts.config.vocab,
                            .max_length = s->recipe->max_length,
                            .loss_on = s->recipe->loss_on,
                            .stop = s->options->stop};
    LK_TRY(lk_dataset_open(d, &o, s->err));
    const lk_dataset_report *r = &d->report;
    if (!s->options->quiet)
        lk_log(LK_LOG_INFO, "%s: %lld documents, %lld tokens, %lld of them supervised (%s, %.2f s)", what, (long long)r->documents,
               (long long)r->tokens, (long long)r->supervised, r->reused ? "tokenised before" : lk_chat_name(s->chat),
               lk_clock_seconds() - began);
    return LK_OK;
}

static lk_status open_tokenizer(session *s)
{
    const lk_recipe *r = s->recipe;
    LK_TRY(lk_tokenizer_open(&s->tokenizer, r->base_path, s->err));
    return r->chat_format ? lk_chat_open_named(&s->chat, s->tokenizer, r->chat_format, s->err)
                          : lk_chat_open(&s->chat, s->tokenizer, s->err);
}

static void close_tokenizer(session *s)
{
    if (s->chat) lk_chat_close(s->chat);
    if (s->tokenizer) lk_tokenizer_close(s->tokenizer);
    s->chat = NULL;
    s->tokenizer = NULL;
#ifdef __GLIBC__
    malloc_trim(0); /* its memory back to the system: the plan counts what stays */
#endif
}

static lk_status open_data(session *s)
{
    const lk_recipe *r = s->recipe;
    if (!leads(s)) LK_TRY(lk_ranks_barrier(s->ranks, s->err)); /* the first makes the stores, the others find them made */
    LK_TRY(open_tokenizer(s));
    LK_TRY(open_dataset(s, &s->train, "data.train", "train.h5", r->train, r->n_train));
    if (r->n_eval) LK_TRY(open_dataset(s, &s->eval, "data.eval", "eval.h5", r->eval, r->n_eval));
    close_tokenizer(s);
    if (leads(s)) LK_TRY(lk_ranks_barrier(s->ranks, s->err));
    lk_batches_options o = {.rows = r->rows, .accumulate = r->accumulate, .max_length = r->max_length, .seed = r->seed, .shuffle = true};
    LK_TRY(lk_batches_create(&s->batches, s->train.store, &o, s->err));
    s->result->steps = r->steps;
    return r->epochs ? lk_batches_steps(s->batches, r->epochs, &s->result->steps, s->err) : LK_OK;
}

/* Bytes of the safetensors of a model folder. */
static size_t model_file_bytes(const char *folder)
{
    size_t total = 0;
    lk_arena arena = {0};
    char **names, path[4200];
    size_t n;
    struct stat info;
    if (!lk_folder_list(folder, &arena, &names, &n, NULL)) {
        for (size_t i = 0; i < n; i++) {
            const char *dot = strrchr(names[i], '.');
            if (!dot || strcmp(dot, ".safetensors")) continue;
            snprintf(path, sizeof path, "%s/%s", folder, names[i]);
            if (!stat(path, &info)) total += (size_t)info.st_size;
        }
    }
    lk_arena_free(&arena);
    return total;
}

static lk_status make_plan(session *s, lk_plan *plan, int64_t train_documents, int64_t eval_documents)
{
    const lk_recipe *r = s->recipe;
    lk_plan_request request = {.be = s->be,
                               .facts = &s->facts,
                               .quant = r->quant,
                               .adapter = &r->adapter,
                               .rows = r->rows,
                               .max_length = r->max_length,
                               .accumulate = r->accumulate,
                               .train_documents = train_documents,
                               .eval_documents = eval_documents,
                               .processes = lk_ranks_size(s->ranks),
                               .model_file_bytes = model_file_bytes(r->base_path),
                               .optim = r->optim,
                               .checkpointing = r->checkpointing,
                               .offload = r->offload,
                               .budget = r->budget};
    return lk_plan_make(plan, &request, s->err);
}

static void print_plan(const lk_plan *plan)
{
    char *text = lk_plan_text(plan), *rest = text, *line;
    while (rest && (line = strsep(&rest, "\n")))
        if (*line) lk_log(LK_LOG_INFO, "%s", line);
    free(text);
}

static lk_status open_trainer(session *s)
{
    const lk_recipe *r = s->recipe;
    const lk_plan *plan = &s->result->plan;
    LK_TRY(lk_model_open(&s->model, s->be, r->base_path, &(lk_model_options){.quant = r->quant}, s->err));
    LK_TRY(lk_adapter_create(&s->adapter, s->model, &r->adapter, r->seed, s->err));
    lk_trainer_options o = {.max_tokens = plan->micro_batch_tokens,
                            .kept_layers = plan->kept_layers,
                            .offload = r->offload,
                            .optim = r->optim,
                            .beta1 = r->beta1,
                            .beta2 = r->beta2,
                            .eps = r->eps,
                            .weight_decay = r->weight_decay,
                            .clip = r->clip,
                            .dropout = r->adapter.dropout,
                            .seed = r->seed,
                            .ranks = s->ranks};
    return lk_trainer_init(&s->trainer, s->model, s->adapter, &o, s->err);
}

/* ---------------------------------------------------------------------------------------------- run.json */

static cJSON *dataset_record(const lk_dataset *d)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "digest", d->digest);
    cJSON_AddNumberToObject(o, "examples", (double)d->report.examples);
    cJSON_AddNumberToObject(o, "documents", (double)d->report.documents);
    cJSON_AddNumberToObject(o, "tokens", (double)d->report.tokens);
    cJSON_AddNumberToObject(o, "supervised", (double)d->report.supervised);
    cJSON_AddNumberToObject(o, "cut", (double)d->report.cut);
    cJSON_AddNumberToObject(o, "masked", (double)d->report.masked);
    cJSON_AddNumberToObject(o, "cut_away", (double)d->report.cut_away);
    return o;
}

static void add_eval(cJSON *root, const char *key, const lk_eval_result *r)
{
    if (!r->supervised) return;
    cJSON *o = cJSON_AddObjectToObject(root, key);
    lk_json_add_number(o, "loss", r->loss);
    lk_json_add_number(o, "perplexity", r->perplexity);
    lk_json_add_number(o, "accuracy", r->accuracy);
    cJSON_AddNumberToObject(o, "supervised", (double)r->supervised);
}

static lk_status write_record(const session *s, const char *state)
{
    const lk_train_result *r = s->result;
    if (!leads(s)) return LK_OK;
    cJSON *root = cJSON_CreateObject(), *base = cJSON_AddObjectToObject(root, "base"), *data;
    cJSON_AddStringToObject(root, "state", state);
    cJSON_AddStringToObject(root, "program", "lorikeet " LK_VERSION);
    cJSON_AddStringToObject(base, "path", s->recipe->base_path);
    cJSON_AddStringToObject(base, "identity", s->model->identity);
    cJSON_AddStringToObject(base, "digest", s->model->digest);
    cJSON_AddStringToObject(base, "quantization", s->model->quant == LK_QUANT_NF4 ? "nf4" : "none");
    data = cJSON_AddObjectToObject(root, "data");
    cJSON_AddItemToObject(data, "train", dataset_record(&s->train));
    if (s->eval.store) cJSON_AddItemToObject(data, "eval", dataset_record(&s->eval));
    cJSON_AddStringToObject(root, "recipe_digest", s->recipe->digest);
    cJSON_AddItemToObject(root, "recipe", cJSON_Duplicate(s->recipe->resolved, 1));
    cJSON_AddNumberToObject(root, "seed", (double)s->recipe->seed);
    cJSON_AddStringToObject(root, "device", lk_backend_name(s->be));
    cJSON_AddNumberToObject(root, "threads", lk_backend_threads(s->be));
    cJSON_AddNumberToObject(root, "processes", lk_ranks_size(s->ranks));
    cJSON_AddNumberToObject(root, "steps", (double)r->steps);
    cJSON_AddNumberToObject(root, "trainable_parameters", (double)r->plan.n_trainable);
    cJSON_AddNumberToObject(root, "planned_peak_bytes", (double)lk_plan_peak_bytes(&r->plan));
    cJSON_AddNumberToObject(root, "kept_layers", (double)r->plan.kept_layers);
    add_eval(root, "eval_before", &r->before);
    add_eval(root, "eval_after", &r->after);
    if (r->adapter_digest[0]) cJSON_AddStringToObject(root, "adapter_digest", r->adapter_digest);
    lk_status status = lk_run_record(&s->run, root, s->err);
    cJSON_Delete(root);
    return status;
}

/* ---------------------------------------------------------------------------------------------- the run */

static lk_status finish(session *s)
{
    LK_TRY(lk_adapter_update_digest(s->adapter, s->err));
    memcpy(s->result->adapter_digest, s->adapter->digest, sizeof s->result->adapter_digest);
    if (leads(s)) LK_TRY(lk_adapter_save(s->adapter, s->run.adapter, s->err));
    return write_record(s, "finished");
}

static lk_status train(session *s)
{
    lk_train_result *r = s->result;
    LK_TRY(open_trainer(s));
    lk_loop loop = {.recipe = s->recipe,
                    .run = &s->run,
                    .model = s->model,
                    .trainer = &s->trainer,
                    .batches = s->batches,
                    .eval = s->eval.store,
                    .data_digest = s->train.digest,
                    .total = r->steps,
                    .quiet = s->options->quiet,
                    .ranks = s->ranks,
                    .stop = s->options->stop};
    if (s->options->resume) LK_TRY(lk_loop_resume(&loop, s->err));
    r->first_step = loop.first;
    LK_TRY(write_record(s, "running"));
    lk_status status = lk_loop_run(&loop, r, s->err);
    r->backend_peak = lk_allocated_peak(s->be);
    if (status == LK_ERR_INTERRUPTED) (void)write_record(s, "interrupted");
    return status ? status : finish(s);
}

static lk_status run(session *s)
{
    LK_TRY(open_recipe(s));
    LK_TRY(open_folder(s));
    LK_TRY(open_data(s));
    LK_TRY(make_plan(s, &s->result->plan, s->train.report.documents, s->eval.report.documents));
    LK_TRY(lk_ranks_barrier(s->ranks, s->err)); /* all have looked at what is free before any takes of it */
    if (!s->options->quiet) print_plan(&s->result->plan);
    return s->options->dry_run ? LK_OK : train(s);
}

static void close_session(session *s)
{
    lk_trainer_free(&s->trainer);
    lk_adapter_destroy(s->adapter);
    lk_model_close(s->model);
    lk_batches_destroy(s->batches);
    lk_dataset_close(&s->train);
    lk_dataset_close(&s->eval);
    close_tokenizer(s);
    lk_backend_close(s->be);
    lk_run_close(&s->run);
    lk_recipe_free(s->recipe);
    if (s->temporary[0]) lk_folder_remove(s->temporary, NULL);
}

lk_status lk_train_run(lk_train_result *result, const lk_train_options *options, lk_error *err)
{
    session s = {.options = options, .result = result, .run = {.lock = -1}, .began = lk_clock_seconds(), .err = err};
    *result = (lk_train_result){.loss = NAN};
    LK_TRY(lk_ranks_start(&s.ranks, options->processes > 0 && !options->dry_run ? options->processes : 1, err));
    if (!leads(&s)) lk_log_set_level(LK_LOG_ERROR); /* they would all say the same */
    lk_status status = run(&s);
    result->seconds = lk_clock_seconds() - s.began;
    close_session(&s);
    return lk_ranks_finish(s.ranks, status, err);
}

/* The libraries that a run brings into memory before it plans are used here once too, so that "resident now" means the same. */
static lk_status plan_only(session *s, lk_plan *plan)
{
    const lk_recipe *r;
    int64_t train_documents, eval_documents;
    LK_TRY(open_recipe(s));
    r = s->recipe;
    LK_TRY(open_tokenizer(s));
    close_tokenizer(s);
    lk_h5_begin();
    LK_TRY(lk_dataset_estimate(r->train, r->n_train, r->max_length, &train_documents, s->err));
    LK_TRY(lk_dataset_estimate(r->eval, r->n_eval, r->max_length, &eval_documents, s->err));
    return make_plan(s, plan, train_documents, eval_documents);
}

lk_status lk_train_plan(lk_plan *plan, const lk_train_options *options, lk_error *err)
{
    lk_train_result result = {0};
    session s = {.options = options, .result = &result, .run = {.lock = -1}, .err = err};
    memset(plan, 0, sizeof *plan);
    lk_status status = plan_only(&s, plan);
    close_session(&s);
    return status;
}
