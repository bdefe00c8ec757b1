/* Fifty optimiser steps beside PEFT over bitsandbytes (tests/golden/make_train50.py), on any backend. */
#ifndef LK_TESTS_TRAIN_FIFTY_STEPS_H
#define LK_TESTS_TRAIN_FIFTY_STEPS_H

#include <math.h>
#include <stdlib.h>

#include "optim/schedule.h"
#include "tests/model.h"
#include "train/step.h"

enum { STEPS = 50, MICRO = 2, T = 40 };

/* A micro-batch with memory of its own: documents of the given lengths, tokens and labels. */
typedef struct own_batch {
    lk_micro_batch m;
    int32_t ids[512], positions[512], labels[512], starts[64];
} own_batch;

static inline own_batch *own_new(void)
{
    own_batch *o = calloc(1, sizeof *o);
    assert_non_null(o);
    o->m = (lk_micro_batch){.batch = {.ids = o->ids, .positions = o->positions, .doc_starts = o->starts}, .labels = o->labels};
    return o;
}

/* token_labels[t]: the label PEFT gives token t, predicted by row t-1; -100 or -1: none. */
static inline void own_add(own_batch *o, const int32_t *ids, const int32_t *token_labels, int64_t n)
{
    lk_batch *b = &o->m.batch;
    int64_t first = b->n_tokens;
    for (int64_t t = 0; t < n; t++) {
        o->ids[first + t] = ids[t];
        o->positions[first + t] = (int32_t)t;
        o->labels[first + t] = t + 1 < n && token_labels[t + 1] >= 0 ? token_labels[t + 1] : -1;
        o->m.supervised += o->labels[first + t] >= 0;
    }
    b->n_tokens += n;
    o->starts[++b->n_docs] = (int32_t)b->n_tokens;
}

static inline lk_trainer_options golden_options(void)
{
    return (lk_trainer_options){
        .max_tokens = T, .kept_layers = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .clip = 1.0};
}

typedef struct fifty {
    lk_backend_options on;
    lk_adamw_kind optim;
    bool gentle;                   /* at a tenth of the rate: beside "gentle.loss" */
    double loss_limit, norm_limit; /* of every step; the norm is not looked at when gentle */
    double mean_limit;             /* of the fifty losses' differences, or 0 */
} fifty;

static inline void fifty_steps(const fifty *f)
{
    lk_error err = {0};
    char *folder = check_golden("models/llama-tiny"), *init = check_golden("adapters/train50_init"),
         *golden = check_golden("train50.safetensors");
    check_model model = check_model_open_on(folder, LK_QUANT_NF4, &f->on);
    lk_adapter *adapter;
    lk_trainer t;
    lk_safetensors *st;
    CHECK_OK(lk_adapter_load(&adapter, model.model, init, LK_F32, &err), &err);
    lk_trainer_options options = golden_options();
    options.optim = f->optim;
    CHECK_OK(lk_trainer_init(&t, model.model, adapter, &options, &err), &err);
    CHECK_OK(lk_safetensors_open(&st, golden, &err), &err);
    int32_t *ids = check_ints(st, "ids", NULL), *labels = check_ints(st, "labels", NULL);
    float *losses = check_floats(st, f->gentle ? "gentle.loss" : "loss", NULL), *norms = check_floats(st, "grad_norm", NULL);
    lk_schedule schedule = {LK_SCHEDULE_COSINE, 5, STEPS};
    double worst_loss = 0, worst_norm = 0, mean = 0;
    for (int step = 0; step < STEPS; step++) {
        own_batch *own[MICRO];
        const lk_micro_batch *micro[MICRO];
        for (int m = 0; m < MICRO; m++) {
            own[m] = own_new();
            own_add(own[m], ids + (step * MICRO + m) * T, labels + (step * MICRO + m) * T, T);
            micro[m] = &own[m]->m;
        }
        lk_step_result r;
        CHECK_OK(lk_trainer_step(&t, micro, MICRO, step, (f->gentle ? 1e-3 : 1e-2) * lk_schedule_factor(&schedule, step), &r, &err), &err);
        double loss = fabs(r.loss - (double)losses[step]), norm = f->gentle ? 0.0 : fabs(r.grad_norm - (double)norms[step]);
        mean += loss / STEPS;
        if (loss > worst_loss) worst_loss = loss;
        if (norm > worst_norm) worst_norm = norm;
        if (!(loss <= f->loss_limit && norm <= f->norm_limit))
            fail_msg("step %d: loss %.6f want %.6f, norm %.6f want %.6f", step, r.loss, (double)losses[step], r.grad_norm,
                     (double)norms[step]);
        for (int m = 0; m < MICRO; m++) free(own[m]);
    }
    print_message("%s, %s, %s%s: losses differ by %.2e at most, %.2e in the mean, gradient norms by %.2e\n", lk_backend_name(model.be),
                  lk_dtype_name(f->on.compute), lk_adamw_kind_name(f->optim), f->gentle ? ", gentle" : "", worst_loss, mean, worst_norm);
    if (f->mean_limit > 0) assert_true(mean <= f->mean_limit);
    free(ids);
    free(labels);
    free(losses);
    free(norms);
    lk_safetensors_close(st);
    lk_trainer_free(&t);
    lk_adapter_destroy(adapter);
    check_model_close(&model);
    free(folder);
    free(init);
    free(golden);
}

#endif
