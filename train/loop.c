/* One iteration: load the step's batches, step, log, evaluate, checkpoint, in this order, so that a checkpoint's step has all its lines
 * in metrics.jsonl and a run that goes on from it repeats none. */
#include "train/loop.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "train/progress.h"

typedef struct state {
    lk_loop *loop;
    lk_train_result *result;
    lk_metrics metrics;
    lk_progress progress;
    const lk_micro_batch **micro; /* [accumulate] */
    lk_schedule schedule;
    double began;
    int64_t saved; /* step of the last checkpoint of this process, -1: none */
    lk_error *err;
} state;

static lk_checkpoint_meta meta_of(const lk_loop *l)
{
    return (lk_checkpoint_meta){.essence = l->recipe->essence, .base_digest = l->model->digest, .data_digest = l->data_digest};
}

static lk_checkpoint_state state_of(const lk_loop *l)
{
    const lk_trainer *t = l->trainer;
    return (lk_checkpoint_state){.be = l->model->be, .params = t->adapter->weights, .n_params = t->adapter->n_params, .optim = &t->optim};
}

lk_status lk_loop_resume(lk_loop *loop, lk_error *err)
{
    lk_checkpoint_meta meta = meta_of(loop);
    lk_checkpoint_state content = state_of(loop);
    bool found;
    LK_TRY(lk_checkpoint_resume(loop->run->checkpoints, &meta, &content, &found, err));
    LK_TRY(lk_adapter_refresh(loop->trainer->adapter, err)); /* a DoRA's gains follow its weights */
    loop->first = found ? meta.step : 0;
    if (!found)
        lk_log(LK_LOG_INFO, "no checkpoint in %s: starting from the first step", loop->run->checkpoints);
    else if (loop->first >= loop->total)
        lk_log(LK_LOG_INFO, "the run is finished: all %lld steps are done", (long long)loop->total);
    else
        lk_log(LK_LOG_INFO, "going on after step %lld of %lld", (long long)loop->first, (long long)loop->total);
    return LK_OK;
}

static bool leads(const state *s) { return lk_ranks_rank(s->loop->ranks) == 0; }

static lk_status checkpoint(state *s, int64_t done)
{
    if (s->saved == done || !leads(s)) return LK_OK;
    lk_checkpoint_meta meta = meta_of(s->loop);
    lk_checkpoint_state content = state_of(s->loop);
    meta.step = done;
    LK_TRY(lk_checkpoint_save(s->loop->run->checkpoints, &meta, &content, s->loop->recipe->checkpoint_keep, s->err));
    s->saved = done;
    return LK_OK;
}

static lk_status evaluate(state *s, int64_t done, lk_eval_result *out)
{
    const lk_loop *l = s->loop;
    lk_eval_result r;
    if (!l->eval || !leads(s)) return LK_OK;
    LK_TRY(
        lk_evaluate(&r, l->trainer->pass, l->model, l->trainer->adapter, l->eval, l->recipe->rows, l->recipe->max_length, l->stop, s->err));
    LK_TRY(lk_metrics_eval_line(&s->metrics, done, lk_clock_seconds() - s->began, &r, s->err));
    lk_progress_say(&s->progress, "step %lld: held-out loss %.4f, perplexity %.3f, token accuracy %.1f%%", (long long)done, r.loss,
                    r.perplexity, 100 * r.accuracy);
    s->result->evaluated = true;
    if (out) *out = r;
    return LK_OK;
}

static lk_status step(state *s, int64_t index)
{
    const lk_loop *l = s->loop;
    double began = lk_clock_seconds(), lr = l->recipe->lr * lk_schedule_factor(&s->schedule, index);
    LK_TRY(lk_batches_load(l->batches, index, s->err));
    int n = lk_batches_count(l->batches);
    for (int i = 0; i < n; i++) s->micro[i] = lk_batches_at(l->batches, i);
    lk_step_result r;
    LK_TRY(lk_trainer_step(l->trainer, s->micro, n, index, lr, &r, s->err));
    double now = lk_clock_seconds(), rate = (double)r.tokens / (now - began > 1e-9 ? now - began : 1e-9);
    lk_metrics_step line = {.step = index + 1,
                            .tokens = r.tokens,
                            .supervised = r.supervised,
                            .loss = r.loss,
                            .grad_norm = r.grad_norm,
                            .lr = lr,
                            .tokens_per_s = rate,
                            .epoch = lk_batches_epoch(l->batches),
                            .seconds = now - s->began};
    if (leads(s)) LK_TRY(lk_metrics_step_line(&s->metrics, &line, s->err));
    s->result->loss = r.loss;
    s->result->tokens += r.tokens;
    lk_progress_step(&s->progress, index + 1, r.loss, rate);
    return LK_OK;
}

static lk_status stopped(state *s, int64_t done)
{
    const lk_loop *l = s->loop;
    LK_TRY(checkpoint(s, done));
    return lk_fail(s->err, LK_ERR_INTERRUPTED, "stopped after step %lld of %lld; a checkpoint is in %s: --resume goes on from it",
                   (long long)done, (long long)l->total, l->run->checkpoints);
}

/* Evaluations can take minutes, so a stop does not wait for their end. */
static lk_status evaluate_or_stop(state *s, int64_t done, lk_eval_result *out)
{
    lk_status status = evaluate(s, done, out);
    return status == LK_ERR_INTERRUPTED ? stopped(s, done) : status;
}

/* The ranks must agree, or some would wait for one that has gone: a stop that reached any stops all. */
static lk_status wants_stop(const state *s, bool *stop)
{
    double flag = s->loop->stop && *s->loop->stop ? 1.0 : 0.0;
    LK_TRY(lk_ranks_sum_doubles(s->loop->ranks, &flag, 1, s->err));
    *stop = flag > 0.0;
    return LK_OK;
}

static bool due(int64_t done, int64_t every, int64_t total) { return every > 0 && done % every == 0 && done < total; }

static lk_status steps(state *s)
{
    const lk_loop *l = s->loop;
    if (l->first == 0) LK_TRY(evaluate_or_stop(s, 0, &s->result->before));
    for (int64_t index = l->first; index < l->total; index++) {
        LK_TRY(step(s, index));
        int64_t done = index + 1;
        if (due(done, l->recipe->eval_every, l->total)) LK_TRY(evaluate_or_stop(s, done, NULL));
        if (due(done, l->recipe->checkpoint_every, l->total)) LK_TRY(checkpoint(s, done));
        bool stop;
        LK_TRY(wants_stop(s, &stop));
        if (stop && done < l->total) return stopped(s, done);
    }
    if (l->first < l->total) {
        LK_TRY(evaluate_or_stop(s, l->total, &s->result->after));
        LK_TRY(checkpoint(s, l->total));
    }
    return LK_OK;
}

lk_status lk_loop_run(lk_loop *loop, lk_train_result *result, lk_error *err)
{
    const lk_recipe *r = loop->recipe;
    state s = {.loop = loop, .result = result, .began = lk_clock_seconds(), .saved = -1, .err = err};
    s.schedule = (lk_schedule){r->schedule, lk_schedule_warmup(r->warmup_steps, r->warmup_ratio, loop->total), loop->total};
    result->loss = result->before.loss = result->after.loss = NAN;
    s.micro = calloc((size_t)r->accumulate, sizeof *s.micro);
    if (!s.micro) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld micro-batches", (long long)r->accumulate);
    lk_status status = LK_OK;
    if (leads(&s)) status = lk_metrics_open(&s.metrics, loop->run->metrics, loop->first > 0 ? loop->first : -1, err);
    lk_progress_begin(&s.progress, "training", loop->total, loop->first, r->log_every, loop->quiet || !leads(&s));
    if (!status) status = steps(&s);
    lk_progress_end(&s.progress);
    lk_metrics_close(&s.metrics);
    free(s.micro);
    return status;
}
